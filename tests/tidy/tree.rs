//! The files that the rules look at: the repository's own, or a few made-up ones.

use crate::source::Source;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Folders that hold nothing of ours.
const NOT_OURS: &[&str] = &["target", ".git", ".flyci", "node_modules"];
/// Kinds of files that hold nothing a person wrote.
const NOT_WRITTEN: &[&str] = &["Cargo.lock"];

/// Some files, by their paths from the repository's root.
pub struct Tree {
    files: Vec<Source>,
}

impl Tree {
    /// Made-up files.
    pub fn of(files: &[(&str, &str)]) -> Self {
        Self { files: files.iter().map(|(path, text)| Source::new(path, text)).collect() }
    }

    /// The repository's files: all that are text and ours. Read once for all rules.
    pub fn of_the_repository() -> &'static Self {
        static TREE: OnceLock<Tree> = OnceLock::new();
        TREE.get_or_init(|| {
            let root = root();
            let mut files = Vec::new();
            collect(&root, &root, &mut files);
            assert!(files.len() > 50, "the repository's files were not found at {}", root.display());
            files.sort_by(|a, b| a.path.cmp(&b.path));
            Self { files }
        })
    }

    /// All files.
    pub fn all(&self) -> impl Iterator<Item = &Source> {
        self.files.iter()
    }

    /// The Rust files.
    pub fn rust(&self) -> impl Iterator<Item = &Source> {
        self.all().filter(|file| file.is_a("rs"))
    }

    /// The documents.
    pub fn documents(&self) -> impl Iterator<Item = &Source> {
        self.all().filter(|file| file.is_a("md"))
    }

    /// The file at `path`: of this tree, or else of the repository.
    pub fn text_of(&self, path: &str) -> Option<String> {
        match self.all().find(|file| file.path == path) {
            Some(file) => Some(file.text.clone()),
            None => fs::read_to_string(root().join(path)).ok(),
        }
    }

    /// Whether there is a file or a folder at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.all().any(|file| file.path == path) || root().join(path).exists()
    }
}

/// The repository's root: what cargo says, or else the folder we are in.
fn root() -> PathBuf {
    PathBuf::from(option_env!("CARGO_MANIFEST_DIR").unwrap_or("."))
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<Source>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_symlink() || NOT_OURS.contains(&name.as_str()) || NOT_WRITTEN.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, files);
        } else if let Ok(text) = fs::read_to_string(&path) {
            let path = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            files.push(Source::new(&path, &text));
        }
    }
}
