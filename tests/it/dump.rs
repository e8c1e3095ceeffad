//! A dump of the database, after a story, joined against every id and every name of the simulated GitHub in
//! every encoding: it says of no row which account, repository or person it is about.

use crate::support::world::{LABEL, World, working_for};
use fake_github::{AccountKind, JobScript, Visibility};
use flyci::cli::search::{self, Needle};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Where the simulated GitHub's numbers begin, for accounts, installations, repositories and runners; for jobs; for runs.
const SMALL: u64 = 61_000_000;
const JOB: u64 = 50_000_000_000;
const RUN: u64 = 18_000_000_000;
/// Names that no word of ours contains.
const NAMES: [&str; 2] = ["dumped-organisation-5d1c", "dumped-repository-a7e3"];

/// pg_dump, of the Postgres that the tests run on.
fn pg_dump() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = installed.map(|version| version.path().join("bin/pg_dump")).collect();
    found.extend(["/opt/homebrew/bin/pg_dump", "/usr/local/bin/pg_dump", "/usr/bin/pg_dump"].map(PathBuf::from));
    found.into_iter().find(|path| path.exists()).expect("pg_dump is installed with Postgres: run script/setup")
}

async fn dump(url: &str) -> String {
    let output = tokio::process::Command::new(pg_dump()).arg("--dbname").arg(url).output().await.expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a dump in plain format is text")
}

/// An id's encodings that no chance makes, anywhere in a text.
fn long_forms(id: u64) -> Vec<String> {
    use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine};
    let (big, little, decimal) = (id.to_be_bytes(), id.to_le_bytes(), id.to_string());
    let mut forms = vec![hex::encode(big), hex::encode(little), hex::encode(&decimal)];
    for bytes in [big.as_slice(), &little, decimal.as_bytes()] {
        forms.push(BASE64_STANDARD_NO_PAD.encode(bytes));
        forms.push(BASE64_URL_SAFE_NO_PAD.encode(bytes));
    }
    forms
}

/// An id's encodings that are short: as whole words only.
fn short_forms(id: u64) -> Vec<String> {
    let mut forms = vec![id.to_string(), format!("{id:x}"), format!("{id:X}")];
    if let Ok(short) = u32::try_from(id) {
        forms.extend([hex::encode(short.to_be_bytes()), hex::encode(short.to_le_bytes())]);
    }
    forms
}

/// The ids and names that a dump tells.
fn told(dump: &str, ids: &[u64]) -> BTreeSet<String> {
    let words: BTreeSet<&str> = dump
        .split(|c: char| !c.is_ascii_alphanumeric())
        // Bytes are shown as `\x…`.
        .flat_map(|word| [word, word.strip_prefix('x').unwrap_or(word)])
        .collect();
    let mut found = BTreeSet::new();
    for id in ids {
        let is_told = long_forms(*id).iter().any(|form| dump.contains(form))
            || short_forms(*id).iter().any(|form| words.contains(form.as_str()));
        if is_told {
            found.insert(id.to_string());
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("dump");
    std::fs::write(&file, dump).expect("it is writable");
    let needles: Vec<Needle> = NAMES.iter().map(|name| Needle::new(*name, name)).collect();
    let mut findings = search::Findings::default();
    search::in_file(&file, &needles, &mut findings).expect("it is readable");
    found.extend(findings.found.into_iter().map(|(what, _)| what));
    found
}

#[tokio::test]
async fn a_dump_tells_of_no_account_repository_or_person() {
    let world = World::new().await;
    world.runners.will(working_for(Duration::from_millis(50)));
    let account = world.github.install(NAMES[0], AccountKind::Organization);
    let repository = world.github.repository(&account, NAMES[1], Visibility::Private);
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(world.queue_on(&repository));
        jobs.push(world.queue());
    }
    jobs.push(world.github.queue_job(&repository, &["flyci-unknown"], JobScript::new().step("true")));
    for job in &jobs[..6] {
        world.completed(*job).await;
    }
    world
        .until("every job is done", async || {
            world.texts("SELECT id::text FROM jobs WHERE state = 'done'").await.len() == 6
        })
        .await;
    // Whatever came after it has a greater number.
    let last = world.github.install("the-last", AccountKind::User);
    let last = world.github.repository(&last, "the-last", Visibility::Private).id;
    assert!((SMALL..SMALL + 1_000).contains(&last), "the simulated GitHub counts otherwise: {last}");
    let jobs_made = u64::try_from(jobs.len()).expect("few");
    let ids: Vec<u64> = (SMALL + 1..=last).chain(JOB + 1..=JOB + jobs_made).chain(RUN + 1..=RUN + jobs_made).collect();
    assert!(jobs.iter().all(|job| ids.contains(&job.id)), "the jobs are among them");

    let text = dump(&world.db.url).await;
    assert!(text.contains("COPY public.jobs") && text.contains(LABEL), "it is a dump with rows");
    assert_eq!(told(&text, &ids), BTreeSet::new());

    // The search finds each, in each of these encodings, where somebody stores one.
    world.execute("CREATE TABLE planted (of text, word text, number bigint, bytes bytea)").await;
    let repo = repository.id;
    for value in [
        format!("('decimal', NULL, {}, NULL)", jobs[0].id),
        format!("('big endian', NULL, NULL, '\\x{}')", hex::encode(repo.to_be_bytes())),
        format!("('little endian', NULL, NULL, '\\x{}')", hex::encode(jobs[1].id.to_le_bytes())),
        format!("('short', NULL, NULL, '\\x{:08x}')", u32::try_from(account.id).expect("it is short")),
        format!("('base64', '{}', NULL, NULL)", &long_forms(jobs[2].id)[3]),
        format!("('hexadecimal', '{:x}', NULL, NULL)", jobs[3].id),
        format!("('name', 'of {}', NULL, NULL)", NAMES[0]),
        format!("('name in bytes', NULL, NULL, '{}'::bytea)", NAMES[1]),
    ] {
        world.execute(&format!("INSERT INTO planted VALUES {value}")).await;
    }
    let expected = [jobs[0].id, repo, jobs[1].id, account.id, jobs[2].id, jobs[3].id].map(|id| id.to_string());
    let expected: BTreeSet<String> = expected.into_iter().chain(NAMES.map(str::to_owned)).collect();
    let found = told(&dump(&world.db.url).await, &ids);
    assert_eq!(expected.difference(&found).collect::<Vec<_>>(), Vec::<&String>::new());
    world.nothing_is_left().await;
}
