//! Which module may use which: imports point down. The picture is in `docs/architecture.md`.

use crate::source::{Source, holds_token};
use crate::tree::Tree;
use std::collections::BTreeSet;

/// The layers of the daemon, the lowest first. A module may use any module of a lower layer.
const LAYERS: &[&[&str]] = &[
    &["domain"],
    &["api", "data_dir", "errors", "points", "program", "wake"],
    &["secrets", "guest", "troubles"],
    &["config", "github", "hypervisor", "images", "logging", "store"],
    &["machine", "metrics", "place"],
    &["lifecycle"],
    &["dispatch", "intake", "mint", "upkeep"],
    &["web"],
    &["app"],
    &["doctor"],
    &["service"],
    &["cli"],
];

/// What may be used although it lies beside or above, with the reason.
const BESIDE: &[(&str, &str, &str)] = &[
    ("config", "github", "knows the App's key as the one who signs with it does"),
    ("config", "images", "reads mirrors and logins of registries as those who use them do"),
    ("errors", "store", "tells a database's refusal without the values it quotes"),
    ("hypervisor", "images", "reads the manifest of the image that it boots"),
    ("images", "hypervisor", "runs the system's tools by the one way of starting a process"),
    ("upkeep", "intake", "what GitHub tells when it is asked is decided as what it delivers"),
];

/// Imports point down, and every module has its layer.
pub fn imports_point_down(tree: &Tree) -> Vec<String> {
    tree.rust().filter(|file| file.path.starts_with("src/")).flat_map(faults_of).collect()
}

fn faults_of(file: &Source) -> Vec<String> {
    let module = module_of(&file.path);
    if ["lib", "main"].contains(&module) {
        return Vec::new();
    }
    let Some(layer) = layer_of(module) else {
        return vec![format!("{}: module `{module}` has no layer: give it one in tests/tidy/layers.rs", file.path)];
    };
    used_modules(file.shipped_code())
        .into_iter()
        .filter(|(_, used)| *used != module && !may_use(module, layer, used))
        .map(|(line, used)| {
            format!(
                "{}:{line}: `{module}` uses `{used}`, which lies above or beside it: move the code down, or pass a value in",
                file.path
            )
        })
        .collect()
}

fn may_use(module: &str, layer: usize, used: &str) -> bool {
    let beside = BESIDE.iter().any(|(from, to, _reason)| *from == module && *to == used);
    beside || layer_of(used).is_none_or(|of_used| of_used < layer)
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// `src/store/jobs.rs` is of `store`, `src/wake.rs` is `wake`.
fn module_of(path: &str) -> &str {
    let path = path.trim_start_matches("src/");
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// Every module that is named after `crate::`, with its line.
fn used_modules(code: &str) -> BTreeSet<(usize, String)> {
    let mut used = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        if code[..at].ends_with('$') || !holds_token(&code[at.saturating_sub(1)..at + found.len()], "crate::") {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let after = &code[at + found.len()..];
        let names = if after.starts_with('{') { group(after) } else { vec![first_word(after)] };
        used.extend(names.into_iter().filter(|name| !name.is_empty()).map(|name| (line, name.to_owned())));
    }
    used
}

/// The first names of a group `{a::b, c::{d, e}}`: `a` and `c`.
fn group(after: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut depth = 0_usize;
    for (at, c) in after.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && (c == '{' || c == ',') {
            names.push(first_word(after[at + 1..].trim_start()));
        }
    }
    names
}

fn first_word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}
