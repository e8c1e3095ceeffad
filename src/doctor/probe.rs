//! How the checks look at the machine: a fixed program, a file, a path. Behind a trait, so that what other machines
//! answered can be judged anywhere.

use crate::data_dir::free_space;
use crate::hypervisor::process::{Tool, ToolError};
use nix::unistd::{AccessFlags, Uid, User, access};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How long one of the system's programs may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// Most bytes that are read of a file.
const MAX_FILE: u64 = 1 << 20;

/// What a program said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// It went well; its standard output.
    Yes(String),
    /// It failed; what it complained of.
    No(String),
    /// It could not be run; why.
    Nothing(String),
}

/// What there is at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct About {
    /// Its owner.
    pub uid: u32,
    /// Its permission bits.
    pub mode: u32,
    /// The volume that it is on.
    pub device: u64,
    /// Bytes of that volume that an ordinary user may still write.
    pub free: u64,
    /// True for a directory.
    pub is_directory: bool,
}

/// A look at one machine.
#[async_trait::async_trait]
pub trait Probe: Send + Sync {
    /// Runs one of the system's programs, which changes nothing.
    async fn run(&self, command: &[&str]) -> Said;

    /// Reads a text file.
    fn read(&self, path: &Path) -> io::Result<String>;

    /// Looks at a path.
    fn about(&self, path: &Path) -> io::Result<About>;

    /// Whether the user of this process may read and write what is there.
    fn may_use(&self, path: &Path) -> bool;

    /// The user of this process.
    fn uid(&self) -> u32;

    /// The name and the home directory of a user.
    fn user(&self, uid: u32) -> Option<(String, std::path::PathBuf)>;
}

/// The machine that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Here;

#[async_trait::async_trait]
impl Probe for Here {
    async fn run(&self, command: &[&str]) -> Said {
        let Some((program, arguments)) = command.split_first() else { return Said::Nothing("no command".into()) };
        let tool = match Tool::new(program, DEADLINE) {
            Ok(tool) => tool,
            Err(error) => return Said::Nothing(error.to_string()),
        };
        match tool.args(arguments).run().await {
            Ok(output) => Said::Yes(String::from_utf8_lossy(&output).into_owned()),
            Err(ToolError::Failed { complaint, .. }) => Said::No(complaint),
            Err(error) => Said::Nothing(crate::errors::chain(&error).to_string()),
        }
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        let mut text = String::new();
        std::fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
        Ok(text)
    }

    fn about(&self, path: &Path) -> io::Result<About> {
        let about = std::fs::metadata(path)?;
        Ok(About {
            uid: about.uid(),
            mode: about.mode() & 0o7777,
            device: about.dev(),
            free: free_space(path)?.0,
            is_directory: about.is_dir(),
        })
    }

    fn may_use(&self, path: &Path) -> bool {
        access(path, AccessFlags::R_OK | AccessFlags::W_OK).is_ok()
    }

    fn uid(&self) -> u32 {
        Uid::effective().as_raw()
    }

    fn user(&self, uid: u32) -> Option<(String, std::path::PathBuf)> {
        User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| (user.name, user.dir))
    }
}

/// A machine that was recorded: what its programs print stands in `recorded/`.
#[cfg(test)]
pub mod recorded {
    use super::{About, Probe, Said};
    use std::collections::HashMap;
    use std::io;
    use std::path::{Path, PathBuf};

    /// A recorded machine.
    #[derive(Clone, Default)]
    pub struct Recorded {
        said: HashMap<String, Said>,
        files: HashMap<PathBuf, String>,
        paths: HashMap<PathBuf, About>,
        /// Paths that may not be used.
        pub forbidden: Vec<PathBuf>,
        /// Who looks.
        pub uid: u32,
    }

    impl Recorded {
        /// A program's answer.
        pub fn says(mut self, command: &str, answer: &str) -> Self {
            self.said.insert(command.to_owned(), Said::Yes(answer.to_owned()));
            self
        }

        /// A program's complaint.
        pub fn fails(mut self, command: &str, complaint: &str) -> Self {
            self.said.insert(command.to_owned(), Said::No(complaint.to_owned()));
            self
        }

        /// A file.
        pub fn holds(mut self, path: &str, text: &str) -> Self {
            self.files.insert(path.into(), text.to_owned());
            self.has(path, About { uid: 0, mode: 0o644, device: 1, free: 0, is_directory: false })
        }

        /// A path.
        pub fn has(mut self, path: &str, about: About) -> Self {
            self.paths.insert(path.into(), about);
            self
        }

        /// A private directory of `uid` on a volume with so much room.
        pub fn directory(self, path: &str, uid: u32, free: u64) -> Self {
            self.has(path, About { uid, mode: 0o700, device: 1, free, is_directory: true })
        }
    }

    #[async_trait::async_trait]
    impl Probe for Recorded {
        async fn run(&self, command: &[&str]) -> Said {
            let command = command.join(" ");
            self.said.get(&command).cloned().unwrap_or_else(|| Said::Nothing(format!("`{command}` was not recorded")))
        }

        fn read(&self, path: &Path) -> io::Result<String> {
            self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn about(&self, path: &Path) -> io::Result<About> {
            self.paths.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn may_use(&self, path: &Path) -> bool {
            self.paths.contains_key(path) && !self.forbidden.iter().any(|forbidden| forbidden == path)
        }

        fn uid(&self) -> u32 {
            self.uid
        }

        fn user(&self, uid: u32) -> Option<(String, PathBuf)> {
            Some((format!("user{uid}"), PathBuf::from(format!("/Users/user{uid}"))))
        }
    }
}
