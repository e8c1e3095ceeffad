//! Encrypted volumes for clones: what a guest writes is on the host's disk under a key that is in memory only.
//!
//! The format is LUKS 1, which QEMU opens by itself, without root; its own tools take seconds to make one, because
//! they measure how much work a guessed passphrase should cost. Here the key is 256 random bits: nobody guesses it.
//! <https://gitlab.com/cryptsetup/LUKS2-docs> and the "LUKS1 On-Disk Format Specification", version 1.2.3.

use crate::domain::units::Bytes;
use aes::Aes256;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit as _};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// Bytes of a sector: what one tweak encrypts.
const SECTOR: usize = 512;

/// Bytes of an AES block.
const BLOCK: usize = 16;

/// Bytes of the volume's key: two AES-256 keys, as XTS takes them.
const KEY: usize = 64;

/// Bytes of the key that opens the volume, before they are written in hex.
const PASSPHRASE: usize = 32;

/// Copies into which the volume's key is split. The format's own number: QEMU takes no other.
const STRIPES: usize = 4_000;

/// Rounds of PBKDF2. They would make a guess dear, and a key of 256 random bits is not guessed.
const ROUNDS: u32 = 1_000;

/// Key slots of a header. One is used.
const SLOTS: u32 = 8;

/// Sectors to which the format aligns key material.
const ALIGNMENT: u32 = 8;

/// Sectors that one slot's key material takes, aligned.
const SLOT_SECTORS: u32 = ((KEY * STRIPES / SECTOR) as u32).next_multiple_of(ALIGNMENT);

/// Where the guest's bytes begin, in sectors: a whole mebibyte.
const PAYLOAD: u32 = (ALIGNMENT + SLOTS * SLOT_SECTORS).next_multiple_of(2_048);

/// Bytes of the header before its slots, and of a slot.
const HEADER: usize = 208;
const SLOT: usize = 48;

/// What says that a slot is used, or not.
const USED: u32 = 0x00AC_71F3;
const UNUSED: u32 = 0x0000_DEAD;

/// Makes a volume with room for `capacity` bytes that begins with `content`. Answers the key that opens it, as
/// text; there is no other copy.
///
/// # Errors
/// The file system refuses, or there is a file already.
pub(super) fn make(path: &Path, content: &[u8], capacity: Bytes) -> io::Result<Zeroizing<String>> {
    let passphrase = Zeroizing::new(hex::encode(*Zeroizing::new(rand::random::<[u8; PASSPHRASE]>())));
    let key = Zeroizing::new(rand::random::<[u8; KEY]>());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(u64::from(PAYLOAD) * SECTOR as u64 + capacity.0)?;
    let (header, material) = header(&key, passphrase.as_bytes());
    file.write_all_at(&header, 0)?;
    file.write_all_at(&material, u64::from(ALIGNMENT) * SECTOR as u64)?;
    let mut sectors = content.to_vec();
    sectors.resize(content.len().next_multiple_of(SECTOR), 0);
    Xts::new(&key).encrypt(&mut sectors);
    file.write_all_at(&sectors, u64::from(PAYLOAD) * SECTOR as u64)?;
    Ok(passphrase)
}

/// The header of a volume with this key, and the first slot's key material.
fn header(key: &[u8; KEY], passphrase: &[u8]) -> (Vec<u8>, Zeroizing<Vec<u8>>) {
    let mut header = Vec::with_capacity(HEADER + SLOTS as usize * SLOT);
    let text = |header: &mut Vec<u8>, words: &str, len: usize| {
        let end = header.len() + len;
        header.extend(words.as_bytes());
        header.resize(end, 0);
    };
    let salt = rand::random::<[u8; 32]>();
    header.extend(b"LUKS\xba\xbe\x00\x01");
    text(&mut header, "aes", 32);
    text(&mut header, "xts-plain64", 32);
    text(&mut header, "sha256", 32);
    header.extend(PAYLOAD.to_be_bytes());
    header.extend((KEY as u32).to_be_bytes());
    header.extend(pbkdf2::<20>(key, &salt).as_slice());
    header.extend(salt);
    header.extend(ROUNDS.to_be_bytes());
    text(&mut header, &uuid::Uuid::new_v4().to_string(), 40);
    let slot_salt = rand::random::<[u8; 32]>();
    for slot in 0..SLOTS {
        header.extend(if slot == 0 { USED } else { UNUSED }.to_be_bytes());
        header.extend(if slot == 0 { ROUNDS } else { 0 }.to_be_bytes());
        header.extend(if slot == 0 { slot_salt } else { [0; 32] });
        header.extend((ALIGNMENT + slot * SLOT_SECTORS).to_be_bytes());
        header.extend((STRIPES as u32).to_be_bytes());
    }
    let mut material = split(key);
    Xts::new(&pbkdf2::<KEY>(passphrase, &slot_salt)).encrypt(&mut material);
    (header, material)
}

/// The key, split so that all of the copies are needed: who overwrites one has erased it.
fn split(key: &[u8; KEY]) -> Zeroizing<Vec<u8>> {
    let mut material = Zeroizing::new(vec![0; KEY * STRIPES]);
    let mut last = Zeroizing::new([0; KEY]);
    let (copies, end) = material.split_at_mut(KEY * (STRIPES - 1));
    rand::fill(copies);
    for copy in copies.chunks_exact(KEY) {
        xor(last.as_mut(), copy);
        diffuse(&mut last);
    }
    end.copy_from_slice(last.as_slice());
    xor(end, key);
    material
}

/// Spreads each byte over its part: the hash of the part's number and itself.
fn diffuse(bytes: &mut [u8; KEY]) {
    for (number, part) in (0u32..).zip(bytes.chunks_exact_mut(32)) {
        let hash = Sha256::new().chain_update(number.to_be_bytes()).chain_update(&*part).finalize();
        part.copy_from_slice(&hash);
    }
}

fn xor(bytes: &mut [u8], with: &[u8]) {
    for (byte, with) in bytes.iter_mut().zip(with) {
        *byte ^= with;
    }
}

/// PBKDF2 with HMAC-SHA-256 and [`ROUNDS`] rounds (RFC 8018).
fn pbkdf2<const LEN: usize>(secret: &[u8], salt: &[u8]) -> Zeroizing<[u8; LEN]> {
    let keyed = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    let mut derived = Zeroizing::new([0; LEN]);
    for (number, part) in (1u32..).zip(derived.chunks_mut(32)) {
        let mut last = keyed.clone().chain_update(salt).chain_update(number.to_be_bytes()).finalize().into_bytes();
        let mut sum = last;
        for _ in 1..ROUNDS {
            last = keyed.clone().chain_update(last).finalize().into_bytes();
            xor(&mut sum, &last);
        }
        part.copy_from_slice(&sum[..part.len()]);
    }
    derived
}

/// AES-256 in XTS mode (IEEE 1619), with the sector's number as tweak: `aes-xts-plain64`.
struct Xts {
    data: Aes256,
    tweak: Aes256,
}

impl Xts {
    fn new(key: &[u8; KEY]) -> Self {
        let of = |half: &[u8]| Aes256::new_from_slice(half).expect("half a key is 256 bits");
        Self { data: of(&key[..KEY / 2]), tweak: of(&key[KEY / 2..]) }
    }

    /// Encrypts whole sectors, numbered from 0.
    fn encrypt(&self, sectors: &mut [u8]) {
        for (number, sector) in (0u128..).zip(sectors.chunks_exact_mut(SECTOR)) {
            let mut tweak = Array::from(number.to_le_bytes());
            self.tweak.encrypt_block(&mut tweak);
            for bytes in sector.chunks_exact_mut(BLOCK) {
                let mut block = Array::from([0; BLOCK]);
                block.copy_from_slice(bytes);
                xor(&mut block, &tweak);
                self.data.encrypt_block(&mut block);
                xor(&mut block, &tweak);
                bytes.copy_from_slice(&block);
                tweak = Array::from(doubled(tweak.into()));
            }
        }
    }
}

/// A tweak times x, in the field of 2¹²⁸ elements.
fn doubled(tweak: [u8; BLOCK]) -> [u8; BLOCK] {
    const POLYNOMIAL: u128 = 0x87;
    let number = u128::from_le_bytes(tweak);
    ((number << 1) ^ ((number >> 127) * POLYNOMIAL)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::process::{Tool, ToolError};
    use std::time::Duration;

    /// How long QEMU's tool may take.
    const SOON: Duration = Duration::from_secs(60);

    /// What QEMU reads out of a volume with this key.
    async fn read(path: &Path, key: &str) -> Result<Vec<u8>, ToolError> {
        let plain = path.with_extension("plain");
        let tool = Tool::new("qemu-img", SOON).expect("there");
        tool.args(["convert", "--object", &format!("secret,id=key,data={key}"), "--image-opts"])
            .arg(format!("driver=luks,key-secret=key,file.filename={}", path.display()))
            .args(["-O", "raw"])
            .arg(&plain)
            .run()
            .await?;
        Ok(std::fs::read(plain).expect("converted"))
    }

    #[tokio::test]
    async fn qemu_opens_a_volume_with_its_key_and_with_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("volume");
        let content: Vec<u8> = (0..100_001u32).flat_map(u32::to_le_bytes).collect();
        let key = make(&path, &content, Bytes(1 << 20)).expect("made");
        let read_back = read(&path, &key).await.expect("it opens");
        assert_eq!(read_back.len(), 1 << 20);
        assert!(read_back.starts_with(&content));
        let raw = std::fs::read(&path).expect("the file");
        assert!(memchr::memmem::find(&raw, &content[4_096..4_112]).is_none(), "nothing of it is in the file");
        assert!(memchr::memmem::find(&raw, key.as_bytes()).is_none(), "nor is the key");
        assert_ne!(*make(&directory.path().join("other"), b"", Bytes(0)).expect("made"), *key);
        assert!(matches!(read(&path, &"0".repeat(64)).await, Err(ToolError::Failed { .. })), "another key opens it");
    }

    /// IEEE 1619-2007, XTS-AES-256, vector 10: sector 0xff, its first block.
    #[test]
    fn the_standards_own_example_comes_out() {
        let key = hex::decode(concat!(
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592"
        ));
        let mut sectors: Vec<u8> = (0..=255).cycle().take(256 * SECTOR).collect();
        Xts::new(&key.expect("hex").try_into().expect("64 bytes")).encrypt(&mut sectors);
        assert!(hex::encode(&sectors[255 * SECTOR..]).starts_with("1c3b3a102f770386e4836c99e370cf9b"));
    }

    #[test]
    fn a_file_that_is_there_is_not_written_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("volume");
        std::fs::write(&path, "mine").expect("written");
        make(&path, b"", Bytes(0)).expect_err("there is one");
        assert_eq!(std::fs::read(&path).expect("there"), b"mine");
    }
}
