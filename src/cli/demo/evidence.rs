//! What the demo ends with: each promise with what was looked at, and whether it holds.

use super::live::Seen;
use super::search::{self, Findings, Needle, Process};
use super::stage::Stage;
use super::story::{Expected, Story};
use super::{DemoError, Running};
use crate::api::{Page, Vm, VmsQuery};
use crate::cli::human::{count, plural, size, span};
use crate::cli::out::{self, Look, Tone, harmless};
use chrono::Utc;
use fake_github::Conclusion;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The planted text of the positive control.
const CONTROL: &str = "flyci-control-5d1e0c2b7a9f4f6e";
/// Webhooks and calls that are still on their way at the end.
const SETTLE: Duration = Duration::from_secs(30);
/// Places that are named for a text that was found.
const PLACES_NAMED: usize = 3;

/// A promise, and whether it holds.
#[derive(Debug)]
pub struct Proof {
    /// It holds.
    pub holds: bool,
    /// What was looked at and found, in a sentence.
    pub told: String,
}

fn proof(holds: bool, told: impl Into<String>) -> Proof {
    Proof { holds, told: told.into() }
}

/// A mark and what was found, in lines that fit the terminal.
#[must_use]
pub fn lines(proof: &Proof, look: &Look) -> String {
    const MARGIN: usize = 4;
    let mark = if proof.holds { look.paint(Tone::Good, "✔") } else { look.paint(Tone::Bad, "✘") };
    out::hanging(&format!("  {mark} "), MARGIN, &harmless(&proof.told), look)
}

/// Every job ended as it had to, by GitHub's word and by ours.
#[must_use]
pub fn ends(stage: &Stage, story: &Story, seen: &Seen) -> Proof {
    let wrong: Vec<String> = story.jobs.iter().filter_map(|job| wrong_end(stage, job, seen)).collect();
    if !wrong.is_empty() {
        return proof(false, wrong.join("; "));
    }
    let of = |wanted: Conclusion| story.jobs.iter().filter(|job| job.expected == Expected::Ends(wanted)).count();
    let (succeeded, failed) = (of(Conclusion::Success), of(Conclusion::Failure));
    let never = story.jobs.len() - succeeded - failed;
    proof(
        true,
        format!("each job ended as it should: {succeeded} succeeded, {failed} failed, {never} cancelled before it ran"),
    )
}

fn wrong_end(stage: &Stage, job: &super::story::Job, seen: &Seen) -> Option<String> {
    let github = stage.github.job(job.handle.id)?.conclusion;
    let ours = seen.jobs.iter().find(|ours| ours.id == job.handle.id.to_string())?;
    let is_right = job.ends_as_expected(ours)
        && match job.expected {
            Expected::Ends(conclusion) => github == Some(conclusion),
            Expected::NeverRuns => true,
        };
    (!is_right).then(|| {
        let conclusion =
            github.map_or_else(|| "no conclusion".to_owned(), |conclusion| format!("{conclusion:?}").to_lowercase());
        format!("{job} had to be {:?}, and is {} ({conclusion} at GitHub)", job.expected, ours.state)
    })
}

/// No two jobs were in one vm.
#[must_use]
pub fn one_vm_per_job(seen: &Seen) -> Proof {
    let mut vms: Vec<&str> = seen.jobs.iter().filter_map(|job| job.vm.as_ref()).map(|vm| vm.id.as_str()).collect();
    let jobs = vms.len();
    vms.sort_unstable();
    vms.dedup();
    proof(vms.len() == jobs, format!("{} ran in {}: none was used twice", plural(jobs, "job"), plural(vms.len(), "vm")))
}

/// Every delivery was taken.
pub async fn deliveries(stage: &Stage) -> Proof {
    let settled = stage.github.deliveries_settled(SETTLE).await;
    let deliveries = stage.github.deliveries();
    let slowest = deliveries.iter().map(|delivery| delivery.seconds).fold(0.0, f64::max);
    let refused = deliveries.iter().filter(|delivery| !(200..300).contains(&delivery.status_code)).count();
    proof(
        settled.is_ok() && refused == 0 && !deliveries.is_empty(),
        format!(
            "{} signed webhooks came over HTTPS and were taken, the slowest in {:.0} ms; {refused} were refused",
            deliveries.len(),
            slowest * 1000.0
        ),
    )
}

/// No vm is left: no row that lives, no directory, no process.
pub async fn no_vm(running: &Running<'_>) -> Result<Proof, DemoError> {
    let query = VmsQuery { all: false, limit: None, after: None };
    let rows: Page<Vm> = running.daemon.admin.get("/vms", &query).await.map_err(DemoError::Ask)?;
    let data_dir = &running.stage.data_dir;
    let directories = search::subdirectories(&data_dir.join("vms")).map_err(super::stage::io("look for vms"))?;
    let processes = search::processes();
    let machines = machines(&processes, data_dir);
    let rows = rows.items.len();
    Ok(proof(
        rows == 0 && directories.is_empty() && machines.is_empty(),
        format!(
            "no vm is left: {rows} rows that live, {} directories, {} processes of {} that this user sees{}",
            directories.len(),
            machines.len(),
            count(processes.len() as u64),
            places(&machines.iter().map(|process| format!("{} ({})", process.pid, process.name)).collect::<Vec<_>>())
        ),
    ))
}

/// The processes of vms: their arguments name a file of a vm.
pub fn machines<'a>(processes: &'a [Process], data_dir: &Path) -> Vec<&'a Process> {
    let home = data_dir.join("vms");
    processes.iter().filter(|process| process.names(&home)).collect()
}

/// No runner is registered any more.
pub async fn no_runner(stage: &Stage, seen: &Seen) -> Proof {
    let gone = stage.github.no_runners(SETTLE).await.is_ok();
    let left = stage.github.all_runners().len();
    let made = seen.vms.iter().filter(|vm| vm.times.minted_at.is_some()).count();
    proof(gone && made > 0, format!("no runner is left at GitHub: {made} were registered, {left} are there now"))
}

/// The spy could look, and saw nothing: in its own words.
#[must_use]
pub fn spy(stage: &Stage, story: &Story) -> Proof {
    let log = stage.github.logs(story.job("spy").handle);
    let words = log.iter().rev().find(|line| line.contains("nothing of another job"));
    match words {
        Some(words) => proof(true, format!("the spy's own log: \"{words}\"")),
        None => proof(false, "the spy found something, or could not look"),
    }
}

/// GitHub's log of the job with the secret shows that the job had it, and never the secret.
#[must_use]
pub fn masked(stage: &Stage, story: &Story) -> Proof {
    let log = stage.github.logs(story.job("deploy").handle).join("\n");
    let had = log.contains("deploying with ***");
    proof(
        had && !log.contains(&story.canary),
        "the job with the secret had it, and its log shows \"deploying with ***\"",
    )
}

/// The texts that must be nowhere. Where nothing of a job is run, its secret never comes here: that it is not found
/// would prove nothing.
#[must_use]
pub fn needles(story: &Story, are_real: bool) -> Vec<Needle> {
    let secret = are_real.then(|| Needle::new("the job's secret", &story.canary));
    let names =
        story.repositories.iter().map(|repo| Needle::new(format!("the name {}", repo.full_name), &repo.full_name));
    secret.into_iter().chain(names).collect()
}

/// The secret was in no process's arguments or environment, whenever it was looked.
#[must_use]
pub fn in_processes(looks: u64, findings: &Findings, control: bool) -> Proof {
    proof(
        looks > 0 && findings.found.is_empty() && control,
        format!(
            "the secret was in no arguments and no environment of any process: {} looks, {} processes in all{}",
            count(looks),
            count(findings.looked_at),
            places_of(findings)
        ),
    )
}

/// The secret and the names are in no file that is left, once a planted text is found.
///
/// # Errors
/// When a file cannot be read.
pub fn in_files(stage: &Stage, needles: &[Needle], are_real: bool) -> Result<Vec<Proof>, DemoError> {
    let read = || super::stage::io("read what is left");
    let planted = stage.data_dir.join("planted");
    fs::write(&planted, format!("x{CONTROL}y")).map_err(read())?;
    let control = search::in_files(&stage.data_dir, &[Needle::new("the planted text", CONTROL)]).map_err(read())?;
    fs::remove_file(&planted).map_err(read())?;
    let mut findings = search::in_files(&stage.data_dir, needles).map_err(read())?;
    let before = findings.bytes;
    let what = if are_real {
        "the secret is in no file, and no repository's name"
    } else {
        "no repository's name is in any file"
    };
    search::in_file(&stage.log, needles, &mut findings).map_err(read())?;
    Ok(vec![
        proof(control.found.len() == 1, "the search works: a text that was planted there was found"),
        proof(
            findings.found.is_empty() && findings.bytes > before,
            format!(
                "{what}: {} files, {} (database with its write-ahead log, \
                 images, and the daemon's log, {} at level trace), in clear, hexadecimal and base64{}",
                count(findings.looked_at),
                size(findings.bytes),
                size(findings.bytes - before),
                places_of(&findings)
            ),
        ),
    ])
}

/// The daemon ended in order, and nothing of it runs any more.
#[must_use]
pub fn stopped(status: std::process::ExitStatus, took: Duration, stage: &Stage) -> Proof {
    let processes = search::processes();
    let left: Vec<String> = processes
        .iter()
        .filter(|process| process.names(&stage.data_dir))
        .map(|process| format!("{} ({})", process.pid, process.name))
        .collect();
    proof(
        status.success() && left.is_empty(),
        format!(
            "told to stop, the daemon ended after {} ({status}); {} of it or its database is left{}",
            span(took),
            if left.is_empty() { "nothing".to_owned() } else { format!("{} processes", left.len()) },
            places(&left)
        ),
    )
}

fn places_of(findings: &Findings) -> String {
    places(&findings.found.iter().map(|(what, place)| format!("{what} in {place}")).collect::<Vec<_>>())
}

fn places(found: &[String]) -> String {
    match found.len() {
        0 => String::new(),
        many => {
            let named = found.iter().take(PLACES_NAMED).cloned().collect::<Vec<_>>().join(", ");
            let rest = if many > PLACES_NAMED { format!(" and {} more", many - PLACES_NAMED) } else { String::new() };
            format!(": {named}{rest}")
        }
    }
}

/// The rows that are left of the jobs, as the operator sees them.
#[must_use]
pub fn left(seen: &Seen, look: &Look) -> String {
    crate::cli::jobs::render(&seen.jobs, Utc::now(), look)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::out::tests::look;

    #[test]
    fn a_long_proof_fits_the_terminal() {
        let long = proof(false, "no vm is left: 1 row that lives");
        assert_eq!(lines(&long, &look(20)), "  ✘ no vm is left: 1\n    row that lives\n");
    }

    #[test]
    fn what_was_found_is_named_up_to_a_few() {
        let found: Vec<String> = (1..=5).map(|number| format!("file {number}")).collect();
        assert_eq!(places(&found), ": file 1, file 2, file 3 and 2 more");
        assert_eq!(places(&[]), "");
    }
}
