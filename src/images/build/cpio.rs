//! The initial file system as the kernel reads it: a cpio archive in the `newc` format,
//! <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>. All owned by root, all
//! times zero: the same content is the same archive.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Names and contents begin at multiples of this many bytes.
const ALIGNMENT: usize = 4;

/// An archive being written.
pub(super) struct Archive<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    pub(super) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    pub(super) fn program(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.entry(name, FILE | 0o755, (0, 0), content)
    }

    pub(super) fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.entry(name, FILE | 0o644, (0, 0), content)
    }

    /// A character device, by its major and minor number.
    pub(super) fn device(&mut self, name: &str, number: (u32, u32)) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE | 0o600, number, &[])
    }

    /// Writes the end, and returns what was written to.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let (owner, group, links, time, check) = (0, 0, 1, 0, 0);
        let fields = [self.inode, mode, owner, group, links, time, size, 0, 0, device.0, device.1, name_size, check];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(name);
        header.push('\0');
        self.padded(header.as_bytes())?;
        self.padded(content)
    }

    fn padded(&mut self, data: &[u8]) -> io::Result<()> {
        self.out.write_all(data)?;
        self.out.write_all(&[0; ALIGNMENT][..data.len().next_multiple_of(ALIGNMENT) - data.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_as_the_format_says() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a", b"hello").expect("written");
        let bytes = archive.finish().expect("written");
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("070701"), "magic");
        assert_eq!(&text[14..22], "000081a4", "mode 0100644");
        assert_eq!(&text[54..62], "00000005", "length");
        assert_eq!(&bytes[110..112], b"a\0", "name");
        assert_eq!(&bytes[112..117], b"hello", "content at a multiple of four");
        assert!(text.trim_end_matches('\0').ends_with("TRAILER!!!"));
        assert_eq!(bytes.len() % ALIGNMENT, 0);
    }
}
