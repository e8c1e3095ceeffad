//! Carries a plan out, step by step, and says of each what was done. Every step can be done twice.

use super::{Act, Owner, Step};
use crate::doctor::shown;
use crate::errors::chain;
use crate::hypervisor::process::Tool;
use nix::unistd::User;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a command of a plan may take: signing and starting take seconds.
const DEADLINE: Duration = Duration::from_secs(120);

/// Parts of a path that is removed with all that is in it, at least: `/`, `var`, `lib`.
const LEAST_DEPTH: usize = 3;

/// What became of a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Done {
    /// It changed something.
    Changed,
    /// There was nothing to do.
    Already,
    /// It is for the operator, with this command.
    Yours(String),
    /// It is a command, and this is not the real root.
    NotHere,
}

/// Why a plan was not carried out to its end. What was done stays: the plan can be carried out again.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The file system refused.
    #[error("{} cannot be {doing}", .path.display())]
    Io {
        path: PathBuf,
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    /// A command failed.
    #[error("`{command}` failed: {why}")]
    Command { command: String, why: String },
    /// There is no such user.
    #[error("there is no user `{0}` (yet): run the step above that makes it, then this command again")]
    NoUser(String),
}

/// Where plans are carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// Below a directory instead of the machine's root: files are written there, commands are not run, and owners are
    /// left as they are. For packages, and to look at the outcome beforehand.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// This machine.
    #[must_use]
    pub fn machine() -> Self {
        Self::below(Path::new("/"))
    }

    fn is_machine(&self) -> bool {
        self.root == Path::new("/")
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Does one step.
    ///
    /// # Errors
    /// What kept it from being done.
    pub async fn apply(&self, step: &Step) -> Result<Done, ApplyError> {
        match &step.act {
            Act::Directory { path, mode, owner } => self.directory(path, *mode, owner),
            Act::Write { path, mode, owner, text } => self.write(path, *mode, owner, text.as_bytes()),
            Act::Copy { from, to, mode } => {
                let bytes = fs::read(from).map_err(fault(from, "read"))?;
                self.write(to, *mode, &Owner::Root, &bytes)
            }
            Act::Link { link, to } => self.link(link, to),
            Act::Remove { path } => gone(&self.at(path), |path| fs::remove_file(path)),
            Act::RemoveAll { path } => self.remove_all(path),
            Act::Run { command, unless, may_fail } => self.run(command, unless.as_deref(), *may_fail).await,
            Act::Ask { command } => Ok(Done::Yours(command.clone())),
        }
    }

    /// Makes a directory, and gives it to its owner by its descriptor: who owns it may swap what its name means.
    fn directory(&self, path: &Path, mode: u32, owner: &Owner) -> Result<Done, ApplyError> {
        let path = self.at(path);
        let before = fs::symlink_metadata(&path).ok().map(|about| (about.uid(), about.mode() & 0o7777));
        fs::create_dir_all(&path).map_err(fault(&path, "made"))?;
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let directory = opened.map_err(fault(&path, "opened as a directory"))?;
        directory.set_permissions(Permissions::from_mode(mode)).map_err(fault(&path, "closed to others"))?;
        self.give(&directory, &path, owner)?;
        let after = directory.metadata().ok().map(|about| (about.uid(), about.mode() & 0o7777));
        Ok(if before == after { Done::Already } else { Done::Changed })
    }

    /// Writes a file whole: a crash leaves the old one or the new one.
    fn write(&self, path: &Path, mode: u32, owner: &Owner, bytes: &[u8]) -> Result<Done, ApplyError> {
        let path = self.at(path);
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(Done::Already);
        }
        let unfinished = beside(&path)?;
        // What an interrupted install left.
        let _ = fs::remove_file(&unfinished);
        // `create_new` follows no link: the directory may be the service's own.
        let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished);
        let mut file = opened.map_err(fault(&path, "written"))?;
        file.write_all(bytes)
            .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
            .and_then(|()| file.sync_all())
            .map_err(fault(&path, "written"))?;
        self.give(&file, &path, owner)?;
        fs::rename(&unfinished, &path).map_err(fault(&path, "put in place"))?;
        Ok(Done::Changed)
    }

    fn link(&self, link: &Path, to: &Path) -> Result<Done, ApplyError> {
        let link = self.at(link);
        if fs::read_link(&link).is_ok_and(|there| there == to) {
            return Ok(Done::Already);
        }
        let unfinished = beside(&link)?;
        // What an interrupted install left.
        let _ = fs::remove_file(&unfinished);
        symlink(to, &unfinished).map_err(fault(&link, "linked"))?;
        fs::rename(&unfinished, &link).map_err(fault(&link, "put in place"))?;
        Ok(Done::Changed)
    }

    fn give(&self, file: &File, path: &Path, owner: &Owner) -> Result<(), ApplyError> {
        if !self.is_machine() {
            return Ok(());
        }
        let (uid, gid) = match owner {
            Owner::Root => (0, 0),
            Owner::User(name) => {
                let user = User::from_name(name).ok().flatten().ok_or_else(|| ApplyError::NoUser(name.clone()))?;
                (user.uid.as_raw(), user.gid.as_raw())
            }
        };
        fchown(file, Some(uid), Some(gid)).map_err(fault(path, "given to its owner"))
    }

    /// A slip in the configuration must not take a system with it.
    fn remove_all(&self, path: &Path) -> Result<Done, ApplyError> {
        if path.components().count() < LEAST_DEPTH {
            return Err(fault(path, "removed: it is no directory of flyci's")(ErrorKind::InvalidInput.into()));
        }
        gone(&self.at(path), |path| fs::remove_dir_all(path))
    }

    async fn run(&self, command: &[String], unless: Option<&[String]>, may_fail: bool) -> Result<Done, ApplyError> {
        if !self.is_machine() {
            return Ok(Done::NotHere);
        }
        if let Some(unless) = unless
            && execute(unless).await.is_ok()
        {
            return Ok(Done::Already);
        }
        match execute(command).await {
            Ok(()) => Ok(Done::Changed),
            Err(_) if may_fail => Ok(Done::Already),
            Err(why) => Err(ApplyError::Command { command: shown(command), why }),
        }
    }
}

async fn execute(command: &[String]) -> Result<(), String> {
    let (program, arguments) = command.split_first().expect("a command has a program");
    let tool = Tool::new(program, DEADLINE).map_err(|error| error.to_string())?;
    tool.args(arguments).run().await.map(drop).map_err(|error| chain(&error).to_string())
}

fn fault(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> ApplyError {
    let path = path.to_owned();
    move |source| ApplyError::Io { path, doing, source }
}

/// The name under which a file is made before it is put in place, in a directory that is there.
fn beside(path: &Path) -> Result<PathBuf, ApplyError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(fault(directory, "made"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(directory.join(format!(".{name}.new")))
}

fn gone(path: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) -> Result<Done, ApplyError> {
    match remove(path) {
        Ok(()) => Ok(Done::Changed),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Done::Already),
        Err(error) => Err(fault(path, "removed")(error)),
    }
}
