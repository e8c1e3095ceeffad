//! Tokens, digests, signatures and the App's key. Tokens are kept by digest only.

use std::sync::OnceLock;

use hmac::{Hmac, KeyInit as _, Mac as _};
use rsa::PrivateKey;
use rsa::pkcs1::{DecodeRsaPrivateKey as _, EncodeRsaPrivateKey as _, EncodeRsaPublicKey as _, LineEnding};
use sha2::{Digest as _, Sha256};

/// Size of the App's key, in bits: the least that GitHub makes.
const KEY_BITS: usize = 2048;

/// A token with GitHub's kind of prefix and 40 hexadecimal digits of chance.
pub fn random_token(prefix: &str) -> String {
    format!("{prefix}{}", hex::encode(rand::random::<[u8; 20]>()))
}

/// What a token is found by.
pub fn digest(token: &str) -> String {
    digest_bytes(token.as_bytes())
}

/// SHA-256, hexadecimal.
pub fn digest_bytes(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// `X-Hub-Signature-256` of a body.
pub fn signature(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(body);
    format!("sha256={}", hex::encode(mac.finalize().into_bytes()))
}

/// The App's key pair, PEM as GitHub hands it out (PKCS#1).
#[derive(Clone)]
pub struct AppKey {
    /// The half that the App signs with.
    pub private_pem: String,
    /// The half that checks it.
    pub public_pem: String,
}

/// Why there is no key.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyError {
    /// It was not made.
    #[error("an RSA key could not be generated: {0}")]
    Generate(String),
    /// It is no PKCS#1 PEM.
    #[error("the key is no PKCS#1 PEM as GitHub hands it out: {0}")]
    Pem(String),
}

impl AppKey {
    /// A new key.
    pub fn generate() -> Result<Self, KeyError> {
        let private = PrivateKey::new(&mut rand::rng(), KEY_BITS).map_err(|e| KeyError::Generate(e.to_string()))?;
        Self::from_key(&private)
    }

    /// The key of this process: making one takes long in tests.
    pub fn shared() -> Result<Self, KeyError> {
        static SHARED: OnceLock<Result<AppKey, KeyError>> = OnceLock::new();
        SHARED.get_or_init(Self::generate).clone()
    }

    /// A key that was made elsewhere.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let private = PrivateKey::from_pkcs1_pem(pem).map_err(|e| KeyError::Pem(e.to_string()))?;
        Self::from_key(&private)
    }

    fn from_key(private: &PrivateKey) -> Result<Self, KeyError> {
        let failed = |e: rsa::pkcs1::Error| KeyError::Pem(e.to_string());
        let private_pem = private.to_pkcs1_pem(LineEnding::LF).map_err(failed)?.to_string();
        let public_pem = private.to_public_key().to_pkcs1_pem(LineEnding::LF).map_err(failed)?;
        Ok(Self { private_pem, public_pem })
    }
}
