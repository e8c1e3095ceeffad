//! (under construction)
/// A stored value that only its tenant's key opens.
#[derive(Clone, PartialEq, Eq, Debug, sqlx::Type)]
#[sqlx(transparent)]
pub struct Sealed(pub Vec<u8>);
/// The keyed HMAC by which a value is found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Lookup(pub [u8; 32]);
impl Lookup {
    /// The bytes as stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
