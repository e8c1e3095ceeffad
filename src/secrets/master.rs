//! Master keys: what is derived from one, and the text that a source holds them in.
//!
//! A text has a key per line, the newest first; those after it are of before, and are there until nothing
//! needs them any more. The newest wraps what is new once every gateway has it; until then the oldest does.

use super::envelope::{CipherKey, KEY_LENGTH};
use super::{KeyId, random};
use hkdf::Hkdf;
use sha2::Sha256;
use std::sync::Arc;
use zeroize::Zeroizing;

/// What a line begins with; the rest is the key in hexadecimal digits.
const LINE_HEADER: &str = "flyci-master-key-1:";
/// Keys in a text at most: more than one at a time is a rotation that goes on.
const MAX_KEYS: usize = 8;
/// Purposes for which keys are derived from a master key.
const PURPOSE_ID: &[u8] = b"flyci master key id v1";
const PURPOSE_WRAPPING: &[u8] = b"flyci wrapping of tenant keys v1";
const PURPOSE_INDEX: &[u8] = b"flyci index of tenants v1";

/// A key that wraps all others. Only gateways have it; without it the stored names and ids are lost,
/// and nothing else. Wiped from memory when dropped.
pub(super) struct MasterKey {
    secret: Zeroizing<[u8; KEY_LENGTH]>,
    /// Wraps tenants' keys. Its id is the master key's.
    pub wrapping: CipherKey,
    /// Makes the look-ups by which a tenant is found.
    pub index: Zeroizing<[u8; KEY_LENGTH]>,
}

impl MasterKey {
    /// Makes one.
    pub fn generate() -> Self {
        Self::new(random())
    }

    fn new(secret: Zeroizing<[u8; KEY_LENGTH]>) -> Self {
        let wrapping = CipherKey { id: KeyId(*derive(&secret, PURPOSE_ID)), key: derive(&secret, PURPOSE_WRAPPING) };
        let index = derive(&secret, PURPOSE_INDEX);
        Self { secret, wrapping, index }
    }

    /// Names it: safe to show.
    pub fn id(&self) -> KeyId {
        self.wrapping.id
    }

    fn line(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex::encode(self.secret.as_slice()));
        Zeroizing::new(format!("{LINE_HEADER}{}\n", *digits))
    }

    fn parse(line: &str) -> Option<Self> {
        let digits = line.strip_prefix(LINE_HEADER)?;
        let mut secret = Zeroizing::new([0; KEY_LENGTH]);
        hex::decode_to_slice(digits, secret.as_mut()).ok()?;
        Some(Self::new(secret))
    }
}

fn derive<const N: usize>(secret: &Zeroizing<[u8; KEY_LENGTH]>, purpose: &[u8]) -> Zeroizing<[u8; N]> {
    let mut derived = Zeroizing::new([0; N]);
    Hkdf::<Sha256>::new(None, secret.as_slice())
        .expand(purpose, derived.as_mut())
        .expect("HKDF gives keys of up to 8,160 bytes");
    derived
}

/// The keys of a source, the newest first. Never empty, none twice.
pub(super) struct MasterKeys {
    keys: Vec<Arc<MasterKey>>,
    /// Which one wraps what is new.
    wraps: usize,
}

impl MasterKeys {
    /// One key.
    pub fn one(key: MasterKey) -> Self {
        Self { keys: vec![key.into()], wraps: 0 }
    }

    /// Reads a text; `None` when it is not one of keys.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut keys: Vec<Arc<MasterKey>> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let key = MasterKey::parse(line)?;
            if !keys.iter().any(|known| known.id() == key.id()) {
                keys.push(key.into());
            }
        }
        (1..=MAX_KEYS).contains(&keys.len()).then(|| Self { wraps: keys.len() - 1, keys })
    }

    /// The text of these keys.
    pub fn text(&self) -> Zeroizing<String> {
        // Room for all: a buffer that grows leaves pieces of keys behind.
        let mut text =
            Zeroizing::new(String::with_capacity(self.keys.len() * (LINE_HEADER.len() + 2 * KEY_LENGTH + 1)));
        for key in &self.keys {
            text.push_str(&key.line());
        }
        text
    }

    /// With a new key before all others, which does not wrap yet; `None` when there are too many already.
    pub fn with_new(&self) -> Option<Self> {
        let mut keys = vec![Arc::new(MasterKey::generate())];
        keys.extend(self.keys.iter().cloned());
        (keys.len() <= MAX_KEYS).then_some(Self { keys, wraps: self.wraps + 1 })
    }

    /// The same, the newest one wrapping.
    pub fn newest_wraps(&self) -> Self {
        Self { keys: self.keys.clone(), wraps: 0 }
    }

    /// Without these. The newest stays, and so does the one that wraps.
    pub fn without(&self, gone: &[KeyId]) -> Self {
        let (newest, current) = (self.newest(), self.current().id());
        let stays = |key: &&Arc<MasterKey>| [newest, current].contains(&key.id()) || !gone.contains(&key.id());
        let keys: Vec<_> = self.keys.iter().filter(stays).cloned().collect();
        let wraps = keys.iter().position(|key| key.id() == current).expect("it stays");
        Self { keys, wraps }
    }

    /// The key that wraps what is new.
    pub fn current(&self) -> &MasterKey {
        self.keys.get(self.wraps).expect("it is one of the keys")
    }

    /// The name of the newest.
    pub fn newest(&self) -> KeyId {
        self.keys.first().expect("there is always one").id()
    }

    /// The key with this id.
    pub fn find(&self, id: KeyId) -> Option<&MasterKey> {
        self.iter().find(|key| key.id() == id)
    }

    /// All, the newest first.
    pub fn iter(&self) -> impl Iterator<Item = &MasterKey> {
        self.keys.iter().map(AsRef::as_ref)
    }

    /// The names of all, the newest first.
    pub fn ids(&self) -> Vec<KeyId> {
        self.iter().map(MasterKey::id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_gives_back_its_keys_in_their_order() {
        let first = MasterKeys::one(MasterKey::generate());
        let both = first.with_new().expect("there is room");
        assert_eq!(both.current().id(), first.current().id(), "the new one waits until every gateway has it");
        assert_eq!(both.newest_wraps().current().id(), both.newest());
        let read = MasterKeys::parse(both.text().as_bytes()).expect("it is a text of keys");
        assert_eq!(read.ids(), both.ids());
        assert_eq!(read.newest_wraps().without(&first.ids()).ids(), [both.newest()]);
        assert_eq!(read.without(&first.ids()).ids(), both.ids(), "the one that wraps is never taken away");
        assert_eq!(first.without(&first.ids()).ids(), first.ids(), "the newest is never taken away");
    }

    #[test]
    fn what_is_no_text_of_keys_is_refused() {
        let line = MasterKeys::one(MasterKey::generate()).text();
        let good = line.trim_end();
        let torn = format!("{good}\nflyci-master-key-1:abcd");
        for text in ["", "\n", "-----BEGIN", "flyci-master-key-1:abcd", &torn] {
            assert!(MasterKeys::parse(text.as_bytes()).is_none(), "{text}");
        }
        let twice = format!("{good}\n\n{good}\r\n");
        assert_eq!(MasterKeys::parse(twice.as_bytes()).expect("a key twice is one").ids().len(), 1);
    }

    #[test]
    fn a_rotation_that_never_ends_stops_making_keys() {
        let mut keys = MasterKeys::one(MasterKey::generate());
        while let Some(more) = keys.with_new() {
            keys = more;
        }
        assert_eq!(keys.ids().len(), MAX_KEYS);
    }
}
