//! The way of a disk's key into the VM's process: a named pipe in the VM's directory, which keeps nothing. An
//! argument is in the process list, a file on the disk, and an inherited descriptor does not get past `pasta`.

use crate::hypervisor::remove_if_there;
use nix::sys::stat::Mode;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::time::sleep;

/// Pause between looks for a reader.
const LOOK: Duration = Duration::from_millis(5);

/// A pipe that is there for one key, and goes with this.
pub(super) struct KeyPipe(PathBuf);

impl KeyPipe {
    /// Makes the pipe, for this user alone.
    pub(super) fn make(path: PathBuf) -> io::Result<Self> {
        remove_if_there(&path)?;
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(Self(path))
    }

    /// Gives the key to the first reader, once there is one.
    pub(super) async fn hand_over(&self, key: &str) -> io::Result<()> {
        let mut sender = loop {
            match pipe::OpenOptions::new().open_sender(&self.0) {
                // Nobody reads yet.
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => sleep(LOOK).await,
                opened => break opened?,
            }
        };
        sender.write_all(key.as_bytes()).await
    }
}

impl Drop for KeyPipe {
    fn drop(&mut self) {
        // The directory goes with the VM in any case.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    #[tokio::test]
    async fn the_first_reader_gets_the_key_and_nothing_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        fs::write(&path, "left by a daemon that died").expect("written");
        let pipe = KeyPipe::make(path.clone()).expect("made");
        let data = fs::metadata(&path).expect("there");
        assert!(data.file_type().is_fifo() && data.permissions().mode().trailing_zeros() >= 7, "for its owner alone");
        let reader = tokio::task::spawn_blocking({
            let path = path.clone();
            move || fs::read_to_string(path)
        });
        pipe.hand_over("a key").await.expect("handed over");
        assert_eq!(reader.await.expect("no panic").expect("read"), "a key");
        drop(pipe);
        assert!(!path.exists());
    }
}
