//! Rules for what people read: documents, manifests, scripts.

use crate::source::{Source, holds_token};
use crate::tree::Tree;

/// Words that belong to the place where the code was written, or to work that is not done.
const WORKSHOP: &[&str] = &["/work/", "worktree", "TODO", "FIXME", "XXX", "(under construction)", "lorem ipsum"];
/// Where the product's documents say what each dependency is for.
const DEPENDENCIES: &str = "docs/dependencies.md";
/// What a path in a document begins with.
const ROOTS: &[&str] =
    &["src/", "tests/", "docs/", "agent/", "fake-github/", "script/", "migrations/", "config/", "images/", ".github/"];

/// Every dependency of every crate has a line that says what it is for.
pub fn dependencies_are_explained(tree: &Tree) -> Vec<String> {
    let listed = tree.text_of(DEPENDENCIES).unwrap_or_default();
    let mut faults = Vec::new();
    for manifest in tree.all().filter(|file| file.path.ends_with("Cargo.toml")) {
        for (line, name) in dependencies(&manifest.text) {
            if !listed.lines().any(|entry| entry.starts_with(&format!("| `{name}` |"))) {
                faults.push(format!(
                    "{}:{line}: `{name}` has no line in {DEPENDENCIES}: say what it is for",
                    manifest.path
                ));
            }
        }
    }
    faults
}

/// The names in the dependency tables of a manifest, with their lines.
fn dependencies(manifest: &str) -> Vec<(usize, &str)> {
    let mut names = Vec::new();
    let mut inside = false;
    for (index, line) in manifest.lines().enumerate() {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end_matches(']');
            inside = header.ends_with("dependencies");
            if let Some((table, name)) = header.rsplit_once('.')
                && table.ends_with("dependencies")
            {
                names.push((index + 1, name));
            }
        } else if inside
            && let Some((name, _)) = line.split_once([' ', '=', '.'])
            && !name.is_empty()
            && !name.starts_with(['#', '"', '}', ']'])
        {
            names.push((index + 1, name));
        }
    }
    names
}

/// The changelog is one of "Keep a Changelog", with a place for what is not released.
pub fn changelog_is_kept(tree: &Tree) -> Vec<String> {
    let headings = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
    let mut faults = Vec::new();
    for file in tree.all().filter(|file| file.path == "CHANGELOG.md") {
        let mut sections = file.text.split("\n## ").skip(1);
        let unreleased = sections.next().filter(|section| section.starts_with("[Unreleased]\n"));
        let has_heading = |section: &str| headings.iter().any(|word| section.contains(&format!("\n### {word}\n")));
        if !unreleased.is_some_and(has_heading) {
            faults.push(format!(
                "{}: its first section is not `## [Unreleased]` with one of {headings:?} in it",
                file.path
            ));
        }
    }
    faults
}

/// Relative links lead to a file, and to a heading of it.
pub fn links_lead_somewhere(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for file in tree.documents() {
        for (line, target) in links(&file.text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { file.path.clone() } else { beside(&file.path, path) };
            if !tree.has(&path) {
                faults.push(format!("{}:{line}: links to `{path}`, which is not there", file.path));
            } else if !anchor.is_empty() && !headings(&tree.text_of(&path).unwrap_or_default()).any(|one| one == anchor)
            {
                faults.push(format!("{}:{line}: links to `#{anchor}`, which is no heading of {path}", file.path));
            }
        }
    }
    faults
}

/// Files and tests that are named in a document's code spans exist: `src/x.rs`, `tests/it/x.rs::a_test`.
pub fn named_things_exist(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for file in tree.documents().filter(|file| file.path != "CHANGELOG.md") {
        for (line, span) in spans(&file.text) {
            let (path, test) = span.split_once("::").unwrap_or((span, ""));
            if !ROOTS.iter().any(|root| path.starts_with(root)) || path.contains([' ', '*', '<', '{', '…']) {
                continue;
            }
            if !tree.has(path) {
                faults.push(format!("{}:{line}: names `{path}`, which is not there", file.path));
            } else if !test.is_empty() && !has_function(tree, path, test) {
                faults.push(format!("{}:{line}: names `{span}`: {path} has no such function", file.path));
            }
        }
    }
    faults
}

fn has_function(tree: &Tree, path: &str, name: &str) -> bool {
    tree.text_of(path).is_some_and(|text| holds_token(&text, &format!("fn {name}")))
}

/// The repository speaks of the product: no workplaces, no promises to oneself.
pub fn no_words_of_the_workshop(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for file in tree.all().filter(|file| !file.path.starts_with("tests/tidy")) {
        for (index, line) in file.text.lines().enumerate() {
            if let Some(word) = WORKSHOP.iter().find(|word| holds_token(line, word)) {
                faults.push(format!(
                    "{}:{}: `{word}`: the repository speaks of the product alone; open work is an issue",
                    file.path,
                    index + 1
                ));
            }
        }
    }
    faults
}

/// Scripts name their shell and stop at the first failure.
pub fn scripts_are_strict(tree: &Tree) -> Vec<String> {
    let is_script = |file: &&Source| {
        let name = file.path.strip_prefix("script/");
        name.is_some_and(|name| !name.contains('.')) || file.path == ".ci/run"
    };
    tree.all()
        .filter(is_script)
        .filter(|file| !file.text.starts_with("#!") || !file.text.lines().any(|line| line.starts_with("set -eu")))
        .map(|file| format!("{}: must begin with `#!` and hold `set -eu` (bash: `set -euo pipefail`)", file.path))
        .collect()
}

/// The text outside of code blocks, by line.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((index + 1, line))
    })
}

/// The code spans of a document.
fn spans(text: &str) -> impl Iterator<Item = (usize, &str)> {
    prose(text).flat_map(|(line, text)| text.split('`').skip(1).step_by(2).map(move |span| (line, span)))
}

/// The targets of a document's links.
fn links(text: &str) -> impl Iterator<Item = (usize, &str)> {
    prose(text).flat_map(|(line, text)| {
        text.split('`')
            .step_by(2)
            .flat_map(|part| part.split("](").skip(1))
            .filter_map(|after| after.split_once(')'))
            .map(move |(target, _)| (line, target))
    })
}

/// The anchors that GitHub makes of a document's headings.
fn headings(text: &str) -> impl Iterator<Item = String> {
    prose(text).filter(|(_, line)| line.starts_with('#')).map(|(_, line)| {
        let kept = line.trim_start_matches('#').trim().to_lowercase();
        kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
    })
}

/// `path` as seen from the folder of `document`, without `.` and `..`.
fn beside(document: &str, path: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}
