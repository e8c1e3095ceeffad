//! Every effect is a point: what a process changes stands in `effect!`, so that a test can kill it before and after.
//!
//! An effect is a commit, a call of a store function that changes rows on a connection of the pool, a call
//! to GitHub, a step of a machine or of its guest. Within a transaction the commit alone is the effect.
//! What is not known to read only counts as an effect: the lists name readers.

use crate::source::Source;
use crate::tree::Tree;
use std::collections::BTreeMap;

/// The modules whose effects are points.
const MODULES: &[&str] = &["src/intake/", "src/dispatch/", "src/mint/", "src/lifecycle/", "src/upkeep/"];
/// Files of them whose effects are no points, and why.
const BESIDE: &[(&str, &str)] = &[
    ("src/upkeep/follow.rs", "images are fetched beside the jobs; what breaks that off is played in tests/images"),
    ("src/upkeep/joins.rs", "who belongs to the fleet; no job, vm or registration depends on its end"),
    (
        "src/mint/warrant.rs",
        "rows that intake never wrote are removed and refusals written down; no story has such rows",
    ),
    ("src/upkeep/rollouts.rs", "which image a tag stands for; no job, vm or registration depends on its end"),
];
/// How they call whom they have things done by, and what of that only reads.
const CALLS: &[(&str, &[&str])] = &[
    (
        "github.",
        &[
            // They ask.
            "find_runner",
            "runner",
            "list_runners",
            "job",
            "open_jobs",
            "run",
            "repository",
            "installation",
            "deliveries",
            "delivery",
            // They are of this process alone.
            "holds",
            "hold",
        ],
    ),
    ("hypervisor.", &["presence", "ended", "last_words", "lost_slots", "boots_pulled_images", "list", "guest"]),
    ("guest.", &["ready", "reached", "probe", "wait"]),
    // Within a transaction its commit is the effect.
    ("trail.", &["append_within", "chain", "is_intact"]),
];
/// How they name the pool, as the first argument of a function of the store.
const POOLS: &[&str] = &["&self.pool", "&machine.pool", "pool"];
/// Functions beside the store that read on the pool only.
const READERS: &[&str] = &["open"];
/// Statements that are no points of their own, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "src/lifecycle/mod.rs",
        "Ok(vms::advance(&self.pool, self.fence, vm.id, vm.state, event).await?)",
        "its callers are points, each with the name of its event",
    ),
    ("src/lifecycle/bringup.rs", "let _ = machine.advance(vm, event).await?;", "its callers are points"),
    (
        "src/upkeep/redeliver.rs",
        "let read = log::read(&self.pool, &self.github, self, &BOUNDS, now).await?;",
        "what it changes are points",
    ),
    (
        "src/upkeep/pull.rs",
        "let read = log::read(&self.pool, &self.github, self, &BOUNDS, now).await;",
        "what it changes are points",
    ),
];

/// Every effect has its point.
pub fn effects_are_points(tree: &Tree) -> Vec<String> {
    let readers = readers(tree);
    effectful(tree).flat_map(|file| faults_of(file, &readers)).collect()
}

/// The name of an effect says where it is, and there is one of that name.
pub fn points_have_names(tree: &Tree) -> Vec<String> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut faults = Vec::new();
    for file in effectful(tree) {
        for (at, _) in spans(file.shipped_code()) {
            let line = line_of(file.shipped_code(), at);
            let name = name_in(&file.text, line);
            let module = file.path.split('/').nth(1).unwrap_or_default();
            if !name.starts_with(&format!("{module}.")) {
                faults.push(format!("{}:{line}: the effect `{name}` must be called `{module}.…`", file.path));
            } else if let Some(other) = seen.insert(name.clone(), file.path.clone()) {
                faults.push(format!("{}:{line}: there is an effect `{name}` in {other}: find another name", file.path));
            }
        }
    }
    faults
}

fn effectful(tree: &Tree) -> impl Iterator<Item = &Source> {
    let is_beside = |file: &Source| BESIDE.iter().any(|(path, _reason)| *path == file.path);
    tree.rust().filter(move |file| MODULES.iter().any(|module| file.path.starts_with(module)) && !is_beside(file))
}

fn faults_of(file: &Source, readers: &BTreeMap<String, bool>) -> Vec<String> {
    let code = file.shipped_code();
    let points = spans(code);
    let mut found = effects(code, readers);
    found.retain(|(at, _)| !points.iter().any(|(from, to)| (*from..*to).contains(at)) && !is_excepted(file, *at));
    found
        .into_iter()
        .map(|(at, what)| {
            let line = line_of(code, at);
            format!(
                "{}:{line}: `{what}` changes something and is no point: write effect!(\"module.what\", …)",
                file.path
            )
        })
        .collect()
}

/// Where effects are, and what they are.
fn effects(code: &str, readers: &BTreeMap<String, bool>) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> =
        code.match_indices(".commit()").map(|(at, _)| (at, "commit".into())).collect();
    found.extend(code.match_indices("machine.advance(").map(|(at, _)| (at, "advance".into())));
    for (whose, reading) in CALLS {
        for (at, _) in code.match_indices(whose) {
            let name = word(&code[at + whose.len()..]);
            let is_call = code[at + whose.len() + name.len()..].starts_with('(') && !name.is_empty();
            if is_call && !goes_on_before(code, at) && !reading.contains(&name) {
                found.push((at, format!("{whose}{name}")));
            }
        }
    }
    for (at, _) in code.match_indices("::") {
        let name = word(&code[at + 2..]);
        let Some(arguments) = code[at + 2 + name.len()..].strip_prefix('(') else { continue };
        let arguments = arguments.trim_start();
        let on_a_pool = POOLS.iter().any(|pool| {
            arguments.strip_prefix(pool).is_some_and(|rest| rest.starts_with(',') || rest.starts_with(')'))
        });
        if on_a_pool && readers.get(name) != Some(&true) && !READERS.contains(&name) {
            found.push((at, name.to_owned()));
        }
    }
    found
}

/// The public functions of the store, and whether they only read. Of two of one name, both must.
fn readers(tree: &Tree) -> BTreeMap<String, bool> {
    let mut readers = BTreeMap::new();
    for file in tree.rust().filter(|file| file.path.starts_with("src/store/")) {
        for function in file.text.split("\npub async fn ").skip(1) {
            let body = function.split("\n}").next().unwrap_or(function);
            let upper = body.replace("FOR UPDATE", "").replace("FOR NO KEY UPDATE", "");
            let changes =
                ["INSERT", "UPDATE", "DELETE", ".begin()", "advisory"].iter().any(|word| upper.contains(word));
            let reads = !changes && body.contains("SELECT");
            let known = readers.entry(word(function).to_owned()).or_insert(true);
            *known = *known && reads;
        }
    }
    readers
}

/// The stretches of code within an `effect!(…)`.
fn spans(code: &str) -> Vec<(usize, usize)> {
    code.match_indices("effect!(").map(|(at, mark)| (at, at + mark.len() + closing(&code[at + mark.len()..]))).collect()
}

/// The length up to the parenthesis that closes.
fn closing(code: &str) -> usize {
    let mut depth = 1_usize;
    for (at, c) in code.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

/// The name of the effect that begins on a line: it is in the text, since the code has no texts.
fn name_in(text: &str, line: usize) -> String {
    let rest: Vec<&str> = text.lines().skip(line - 1).take(2).collect();
    let rest = rest.concat();
    let arguments = rest.split("effect!(").nth(1).unwrap_or_default();
    arguments.split('"').nth(1).unwrap_or_default().to_owned()
}

fn is_excepted(file: &Source, at: usize) -> bool {
    let code = file.shipped_code();
    let from = code[..at].rfind('\n').map_or(0, |line| line + 1);
    let line = code[from..].lines().next().unwrap_or_default().trim();
    EXCEPTIONS.iter().any(|(path, statement, _reason)| *path == file.path && line == *statement)
}

fn goes_on_before(code: &str, at: usize) -> bool {
    code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_')
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}
