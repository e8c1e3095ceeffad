//! A clean connection on a byte pipe that outlives its users.
//!
//! A virtio-serial port is one pipe for the guest's whole life: when the host side drops in the
//! middle of traffic, half a frame stays behind in either direction and the next HTTP/2 connection
//! breaks on it, for good. So each connection begins with a HELLO: the host sends [`MAGIC`] and a
//! fresh nonce, and discards whatever comes until the guest returns both. The guest looks for a
//! HELLO at all times, also within a connection, which it then ends: see [`Port`].
//! Nothing here authenticates anybody: whoever holds the pipe's end may say HELLO.

mod guest;
mod host;

pub use guest::{Port, Session};
pub use host::{ChannelError, Connection, connect};

/// Begins every HELLO. Its first byte occurs in it only once, which [`Scanner`] relies on.
pub const MAGIC: [u8; 16] = *b"\xF5flyci-hello-1\xFA\n";

/// Length of a nonce, in bytes.
pub const NONCE_BYTES: usize = 16;

/// Most bytes handed to the pipe in one write: larger ones stall on a virtio-serial port.
const WRITE_BYTES: usize = 32 * 1024;

/// What tells one HELLO from another.
pub type Nonce = [u8; NONCE_BYTES];

/// The bytes of a HELLO.
fn hello(nonce: &Nonce) -> [u8; MAGIC.len() + NONCE_BYTES] {
    let mut bytes = [0; MAGIC.len() + NONCE_BYTES];
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes[MAGIC.len()..].copy_from_slice(nonce);
    bytes
}

/// Finds HELLOs in a stream of bytes, however it is cut into reads.
#[derive(Default, Debug)]
struct Scanner {
    /// How much of [`MAGIC`] the latest bytes are.
    matched: usize,
    nonce: Nonce,
    /// How much of a nonce is there, once a [`MAGIC`] was seen.
    filled: Option<usize>,
}

impl Scanner {
    /// Takes bytes up to the end of the first HELLO that ends in them; returns its nonce and how
    /// many bytes were taken. `None`: all were taken.
    fn feed(&mut self, bytes: &[u8]) -> Option<(Nonce, usize)> {
        let mut at = 0;
        while at < bytes.len() {
            if self.matched == 0 && self.filled.is_none() {
                at += bytes[at..].iter().position(|byte| *byte == MAGIC[0])?;
            }
            let found = self.step(bytes[at]);
            at += 1;
            if found {
                return Some((self.nonce, at));
            }
        }
        None
    }

    /// Takes one byte: whether it ends a HELLO. [`MAGIC`] is looked for within a nonce too, since a
    /// HELLO that was cut short may be followed by a whole one.
    fn step(&mut self, byte: u8) -> bool {
        let mut found = false;
        if let Some(filled) = self.filled {
            self.nonce[filled] = byte;
            found = filled + 1 == NONCE_BYTES;
            self.filled = (!found).then_some(filled + 1);
        }
        self.matched = match byte {
            _ if byte == MAGIC[self.matched] => self.matched + 1,
            _ => usize::from(byte == MAGIC[0]),
        };
        if self.matched == MAGIC.len() {
            self.matched = 0;
            self.filled = Some(0);
            return false;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every nonce found when the bytes arrive in pieces of this size.
    fn found(bytes: &[u8], piece: usize) -> Vec<Nonce> {
        let mut scanner = Scanner::default();
        let mut nonces = Vec::new();
        for mut piece in bytes.chunks(piece) {
            while let Some((nonce, taken)) = scanner.feed(piece) {
                nonces.push(nonce);
                piece = &piece[taken..];
            }
        }
        nonces
    }

    #[test]
    fn the_first_byte_of_magic_is_in_it_once() {
        assert_eq!(MAGIC.iter().filter(|byte| **byte == MAGIC[0]).count(), 1);
    }

    #[test]
    fn a_hello_is_found_behind_stale_bytes_and_in_any_pieces() {
        let mut bytes = vec![0xF5, 0xF5, b'f', 0, 0xFF, 0xF5];
        bytes.extend_from_slice(&MAGIC[..9]);
        bytes.extend_from_slice(&hello(&[7; 16]));
        bytes.extend_from_slice(b"frames");
        for piece in 1..bytes.len() {
            assert_eq!(found(&bytes, piece), [[7; 16]], "pieces of {piece}");
        }
    }

    #[test]
    fn a_hello_cut_anywhere_does_not_hide_the_next() {
        for cut in 0..32 {
            let mut bytes = hello(&[1; 16])[..cut].to_vec();
            bytes.extend_from_slice(&hello(&[2; 16]));
            for piece in [1, 3, 32, 64] {
                let nonces = found(&bytes, piece);
                assert_eq!(nonces.last(), Some(&[2; 16]), "cut at {cut}");
            }
        }
    }
}
