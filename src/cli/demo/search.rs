//! Looks for texts that must be nowhere: in every file of a tree, and in what every process shows of itself.
//!
//! Each text is looked for in clear, in hexadecimal digits and in base64 at any offset. The search is proved by a
//! positive control: whoever uses it plants a text first and expects it to be found.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use memchr::memmem::Finder;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// Files are read in pieces of this many bytes.
const PIECE: usize = 4 << 20;

/// A text, in every form that it is looked for.
#[derive(Clone, Debug)]
pub struct Needle {
    /// What it is, for people; never the text itself.
    pub what: String,
    forms: Vec<Finder<'static>>,
}

impl Needle {
    /// A text and what it is.
    #[must_use]
    pub fn new(what: impl Into<String>, text: &str) -> Self {
        let mut forms = vec![text.as_bytes().to_vec(), hex::encode(text).into_bytes()];
        forms.extend((0..3).map(|offset| base64_inside(text, offset)));
        Self { what: what.into(), forms: forms.iter().map(|form| Finder::new(form).into_owned()).collect() }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        self.forms.iter().any(|form| form.find(bytes).is_some())
    }

    fn longest(&self) -> usize {
        self.forms.iter().map(|form| form.needle().len()).max().unwrap_or_default()
    }
}

/// What stands in base64 whatever is around the text, when the text begins `offset` bytes into a group of three.
fn base64_inside(text: &str, offset: usize) -> Vec<u8> {
    let mut padded = vec![0; offset];
    padded.extend_from_slice(text.as_bytes());
    let whole_groups = padded.len() / 3 * 3;
    let encoded = STANDARD_NO_PAD.encode(&padded[..whole_groups]).into_bytes();
    let first_whole = if offset == 0 { 0 } else { 4 };
    encoded.get(first_whole..).unwrap_or_default().to_vec()
}

/// What a search looked at, and where it found something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Files, or processes.
    pub looked_at: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Which text was found where.
    pub found: Vec<(String, String)>,
}

/// Looks into every regular file below a directory. A file that ends while it is read is no failure: Postgres and
/// the daemon may be at work.
///
/// # Errors
/// When something is there and cannot be read: then nothing is proved.
pub fn in_files(root: &Path, needles: &[Needle]) -> io::Result<Findings> {
    let mut findings = Findings::default();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let Some(entries) = there(fs::read_dir(&directory))? else { continue };
        for entry in entries {
            let entry = entry?;
            let Some(kind) = there(entry.file_type())? else { continue };
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                in_file(&entry.path(), needles, &mut findings)?;
            }
        }
    }
    Ok(findings)
}

/// `None`: it was removed meanwhile.
fn there<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks into one file.
///
/// # Errors
/// When it is there and cannot be read.
pub fn in_file(path: &Path, needles: &[Needle], findings: &mut Findings) -> io::Result<()> {
    let Some(mut file) = there(File::open(path))? else { return Ok(()) };
    findings.looked_at += 1;
    let overlap = needles.iter().map(Needle::longest).max().unwrap_or_default();
    let mut missing: Vec<&Needle> = needles.iter().collect();
    let mut buffer = Vec::with_capacity(PIECE + overlap);
    loop {
        let before = buffer.len();
        let read = file.by_ref().take(PIECE as u64).read_to_end(&mut buffer)?;
        findings.bytes += read as u64;
        if read == 0 {
            return Ok(());
        }
        missing.retain(|needle| {
            let found = needle.is_in(&buffer);
            if found {
                findings.found.push((needle.what.clone(), path.display().to_string()));
            }
            !found
        });
        // What may be the beginning of a text stays for the next piece.
        let kept = overlap.min(before + read);
        buffer.drain(..before + read - kept);
    }
}

/// A process, as it shows itself to its own user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its program's name.
    pub name: String,
    /// Its arguments, apart by zero bytes.
    pub arguments: Vec<u8>,
    /// Its environment, apart by zero bytes; empty if it is not shown to us.
    pub environment: Vec<u8>,
}

impl Process {
    /// True when its arguments name this path.
    #[must_use]
    pub fn names(&self, path: &Path) -> bool {
        memchr::memmem::find(&self.arguments, path.as_os_str().as_bytes()).is_some()
    }
}

/// Every process that this user can see.
#[must_use]
pub fn processes() -> Vec<Process> {
    // On a system that shows nothing, nothing is found; the positive control tells.
    let Ok(mut system) = System::new() else { return Vec::new() };
    let wanted = ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always).with_environ(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, wanted.without_tasks());
    let joined = |words: &[std::ffi::OsString]| {
        words.iter().flat_map(|word| OsStr::as_bytes(word).iter().copied().chain([0])).collect()
    };
    let all = system.processes().values();
    all.map(|process| Process {
        pid: process.pid().as_u32(),
        name: process.name().to_string_lossy().into_owned(),
        arguments: joined(process.cmd()),
        environment: joined(process.environ()),
    })
    .collect()
}

/// Looks into arguments and environment of processes.
#[must_use]
pub fn in_processes(processes: &[Process], needles: &[Needle]) -> Findings {
    let mut findings = Findings::default();
    for process in processes {
        findings.looked_at += 1;
        findings.bytes += (process.arguments.len() + process.environment.len()) as u64;
        let found =
            needles.iter().filter(|needle| needle.is_in(&process.arguments) || needle.is_in(&process.environment));
        findings
            .found
            .extend(found.map(|needle| (needle.what.clone(), format!("process {} ({})", process.pid, process.name))));
    }
    findings
}

/// Directories directly below a directory; none if it is not there.
///
/// # Errors
/// When it cannot be read.
pub fn subdirectories(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(entries) = there(fs::read_dir(directory))? else { return Ok(Vec::new()) };
    entries.map(|entry| entry.map(|entry| entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "canary-0f1e2d3c";

    fn needles() -> [Needle; 1] {
        [Needle::new("the secret", SECRET)]
    }

    fn found_in(content: &[u8]) -> bool {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("deep")).expect("it is writable");
        fs::write(directory.path().join("deep/file"), content).expect("it is writable");
        !in_files(directory.path(), &needles()).expect("it is readable").found.is_empty()
    }

    #[test]
    fn every_form_of_a_text_is_found() {
        assert!(found_in(format!("key={SECRET}\n").as_bytes()));
        assert!(found_in(hex::encode(format!("x{SECRET}")).as_bytes()));
        for before in ["", "a", "ab", "abc"] {
            let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{before}{SECRET} and more"));
            assert!(found_in(encoded.as_bytes()), "{before}");
        }
        assert!(!found_in(b"canary-0f1e2d3d and nothing else"));
    }

    #[test]
    fn a_text_across_two_pieces_is_found() {
        let mut content = vec![b'.'; PIECE - 3];
        content.extend_from_slice(SECRET.as_bytes());
        content.extend(vec![b'.'; PIECE]);
        assert!(found_in(&content));
    }

    #[test]
    fn a_process_shows_what_it_was_started_with() {
        let own: Vec<Process> = processes().into_iter().filter(|process| process.pid == std::process::id()).collect();
        let program = std::env::args().next().expect("a program");
        let needle = Needle::new("this program", &program);
        assert_eq!(in_processes(&own, &[needle]).found.len(), 1, "{own:?}");
        assert!(in_processes(&own, &needles()).found.is_empty());
    }
}
