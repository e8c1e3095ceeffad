//! The points, read from the daemon's source.

use std::fs;
use std::path::Path;

/// What an effect begins with.
const MARK: &str = "effect!(";
/// The file of the macro itself.
const MACRO: &str = "points.rs";

/// The effects' names, sorted.
pub fn effects() -> Vec<String> {
    let mut names = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    names.sort();
    assert!(names.len() > 40, "the daemon has more effects than {}", names.len());
    names
}

fn collect(directory: &Path, names: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("the source").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|end| end == "rs") && path.file_name().is_some_and(|name| name != MACRO)
        {
            let text = fs::read_to_string(&path).expect("the source");
            names.extend(text.split(MARK).skip(1).map(|rest| name(rest, &path)));
        }
    }
}

fn name(rest: &str, path: &Path) -> String {
    let name = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
    name.unwrap_or_else(|| panic!("{}: an effect has no name", path.display())).to_owned()
}

/// The points of an effect.
pub fn points(effect: &str) -> [String; 2] {
    [format!("before {effect}"), format!("after {effect}")]
}
