//! Where the master keys are: a file (the default), a systemd credential, an inherited descriptor, the
//! answer of a command, or the system keychain. Never the environment: whoever may look at a process
//! may read that for as long as it lives.
//!
//! Only a file of ours is ever written. Of the others the operator changes the content; flyci says when.

mod command;
#[cfg(target_os = "macos")]
mod keychain;

use super::SecretsError;
use super::files::{self, MAX_PRIVATE_FILE, PrivateFileError};
use super::master::MasterKeys;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// As errors name it.
pub(super) const WHAT: &str = "master key";
/// Names the directory of credentials (systemd.exec(5)); the credential itself is in no environment.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// How long an inherited descriptor or a command may take to give the key.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the master keys are.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MasterSource {
    /// A file of mode 0600. The only source that flyci writes, and so can rotate by itself.
    File(PathBuf),
    /// A credential of the service (`LoadCredentialEncrypted=` of systemd), by its name.
    Credential(String),
    /// A descriptor that the daemon inherits; read once, then closed.
    Descriptor(u16),
    /// What a program prints: for a key that another system keeps. No shell.
    Command(Vec<String>),
    /// The system keychain of macOS: a generic password of this service, account `master-key`.
    Keychain(String),
}

impl fmt::Display for MasterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Credential(name) => write!(f, "the credential {name}"),
            Self::Descriptor(number) => write!(f, "the inherited descriptor {number}"),
            // Its arguments may tell more than a log should hold.
            Self::Command(words) => write!(f, "the command {}", words.first().map_or("", String::as_str)),
            Self::Keychain(service) => write!(f, "the system keychain's item {service}"),
        }
    }
}

/// Why a source gives no key. Nothing of what it gave is told.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no such credential.
    #[error(
        "this service has no credentials (${CREDENTIALS_DIRECTORY} is not set): add LoadCredentialEncrypted= to its unit"
    )]
    NoCredentials,
    /// The credential's file is open to everybody.
    #[error("{0} can be read by everybody")]
    Exposed(PathBuf),
    /// The file system refused.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// Nothing came.
    #[error("nothing came within {} s", PATIENCE.as_secs())]
    Late,
    /// More came than any master keys have.
    #[error("it gives more than the {MAX_PRIVATE_FILE} bytes that any master keys have")]
    TooLong,
    /// The program ended badly. What it printed may be secret and is not told.
    #[error("the command ended with {0}: run it by hand as flyci's user to see why")]
    Command(std::process::ExitStatus),
    /// The keychain refused.
    #[error("the keychain answers {0}: add the item with `security add-generic-password`, open to flyci")]
    Keychain(i32),
    /// Only macOS has one.
    #[error("this system has no keychain: name another source in `[keys] master`")]
    NoKeychain,
}

impl From<nix::Error> for SourceError {
    fn from(error: nix::Error) -> Self {
        Self::Io(error.into())
    }
}

impl MasterSource {
    /// True when flyci may write it, and so rotate the key by itself.
    #[must_use]
    pub const fn is_ours(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// True when it gives its content more than once in a process's life.
    #[must_use]
    pub const fn can_be_read_again(&self) -> bool {
        !matches!(self, Self::Descriptor(_))
    }

    /// Reads the keys.
    pub(super) fn read(&self) -> Result<MasterKeys, SecretsError> {
        let text = match self {
            Self::File(path) => {
                let text = files::read_private(path).map_err(|source| SecretsError::File { what: WHAT, source })?;
                let not_a_key = || SecretsError::NotAKey { what: WHAT, path: path.clone() };
                return MasterKeys::parse(&text).ok_or_else(not_a_key);
            }
            Self::Credential(name) => credential(name),
            Self::Descriptor(number) => descriptor(*number),
            Self::Command(words) => command::output(words, PATIENCE),
            Self::Keychain(service) => keychain_item(service),
        };
        let text = text.map_err(|source| SecretsError::Source { place: self.to_string(), source })?;
        MasterKeys::parse(&text).ok_or_else(|| SecretsError::NoMasterKey(self.to_string()))
    }

    /// Whether the keys can be read, without keeping them.
    ///
    /// # Errors
    /// When the file cannot be used. Other sources are not tried: they may cost something, or give once.
    pub fn check(&self) -> Result<(), PrivateFileError> {
        match self {
            Self::File(path) => files::check_private(path),
            Self::Credential(_) | Self::Descriptor(_) | Self::Command(_) | Self::Keychain(_) => Ok(()),
        }
    }
}

/// systemd puts credentials into a directory in memory that the service alone can enter; an ACL lets the
/// service's user read, which shows as the group's bit.
fn credential(name: &str) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let directory = std::env::var_os(CREDENTIALS_DIRECTORY).ok_or(SourceError::NoCredentials)?;
    read_credential(&Path::new(&directory).join(name))
}

fn read_credential(path: &Path) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(path)?;
    if file.metadata()?.mode() & 0o007 != 0 {
        return Err(SourceError::Exposed(path.to_owned()));
    }
    bounded(file)
}

/// Reads an inherited descriptor to its end, and closes it: no VM inherits it from us.
fn descriptor(number: u16) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let path = format!("/dev/fd/{number}");
    let reader = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::close(i32::from(number))?;
    read_within(reader, PATIENCE)
}

/// Reads to the end, within a time and the bound.
fn read_within(reader: OwnedFd, patience: Duration) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let (deadline, mut reader) = (Instant::now() + patience, File::from(reader));
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity()));
    let mut piece = Zeroizing::new([0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        if poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], wait)? == 0 {
            return Err(SourceError::Late);
        }
        match reader.read(piece.as_mut())? {
            0 => return Ok(bytes),
            length if bytes.len() + length >= capacity() => return Err(SourceError::TooLong),
            length => bytes.extend_from_slice(&piece[..length]),
        }
    }
}

/// Reads to the end, within the bound. One buffer: one that grows leaves pieces of keys behind.
fn bounded(reader: impl Read) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity()));
    reader.take(MAX_PRIVATE_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_PRIVATE_FILE { Err(SourceError::TooLong) } else { Ok(bytes) }
}

/// Room for all, and for one byte that is too much.
fn capacity() -> usize {
    usize::try_from(MAX_PRIVATE_FILE).unwrap_or(usize::MAX - 1) + 1
}

#[cfg(target_os = "macos")]
use keychain::item as keychain_item;

#[cfg(not(target_os = "macos"))]
fn keychain_item(_: &str) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    Err(SourceError::NoKeychain)
}

#[cfg(test)]
mod tests {
    use super::super::master::MasterKey;
    use super::*;
    use std::io::Write;
    use std::os::fd::{AsRawFd, IntoRawFd};

    fn keys() -> MasterKeys {
        MasterKeys::one(MasterKey::generate())
    }

    #[test]
    fn a_descriptor_gives_the_key_once_and_is_closed() {
        let keys = keys();
        let (reader, writer) = nix::unistd::pipe().expect("a pipe");
        File::from(writer).write_all(keys.text().as_bytes()).expect("it fits in the pipe");
        let number = u16::try_from(reader.into_raw_fd()).expect("descriptors are small");
        let source = MasterSource::Descriptor(number);
        assert_eq!(source.read().expect("it holds a key").ids(), keys.ids());
        assert!(!source.can_be_read_again());
    }

    #[test]
    fn a_descriptor_that_is_not_there_is_told() {
        let file = File::open("/dev/null").expect("it is there");
        let number = u16::try_from(file.as_raw_fd()).expect("descriptors are small") + 500;
        let error = MasterSource::Descriptor(number).read().err().expect("nobody gave it");
        assert!(error.to_string().contains("the inherited descriptor"), "{error}");
    }

    #[test]
    fn a_credential_is_read_unless_everybody_can() {
        use std::os::unix::fs::PermissionsExt;
        let (keys, directory) = (keys(), tempfile::tempdir().expect("a temporary directory"));
        let path = directory.path().join("flyci-master-key");
        for (mode, is_read) in [(0o400, true), (0o440, true), (0o444, false)] {
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, keys.text().as_bytes()).expect("it is writable");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
            assert_eq!(read_credential(&path).is_ok(), is_read, "{mode:o}");
        }
    }

    #[test]
    fn a_command_gives_the_key_and_its_failure_tells_nothing_of_it() {
        let keys = keys();
        let line = keys.text().trim_end().to_owned();
        let shell = |script: String| MasterSource::Command(vec!["/bin/sh".into(), "-c".into(), script]);
        assert_eq!(shell(format!("echo {line}")).read().expect("it prints a key").ids(), keys.ids());
        let failed = shell(format!("echo {line}; echo {line} >&2; exit 3")).read().err().expect("it failed");
        let told = format!("{failed:?} {}", crate::errors::chain(&failed));
        assert!(told.contains("exit status: 3") && !told.contains(&line["flyci-master-key-1:".len()..]), "{told}");
        let flood = shell("while :; do echo 0123456789012345678901234567890123456789; done".to_owned()).read();
        assert!(matches!(flood.err(), Some(SecretsError::Source { source: SourceError::TooLong, .. })));
        let silent = shell("true".to_owned()).read();
        assert!(matches!(silent.err(), Some(SecretsError::NoMasterKey(_))));
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn without_a_keychain_another_source_is_asked_for() {
        let error = MasterSource::Keychain("flyci".into()).read().err().expect("this system has none");
        assert!(crate::errors::chain(&error).to_string().contains("name another source"));
    }
}
