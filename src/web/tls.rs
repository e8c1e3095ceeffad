//! How the public listener speaks TLS: with the operator's files, with a certificate made at start
//! (demo), or not at all (loopback, behind a proxy or tunnel of the same machine).

use crate::secrets::files::{PrivateFileError, read_private};
use axum_server::tls_rustls::RustlsConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is spoken inside, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// A certificate file holds a few kilobytes; more is a mistake. In bytes.
const MAX_CERTIFICATE_FILE: u64 = 1024 * 1024;

/// `[web.tls] mode`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// The operator's certificate chain and key, in PEM.
    Files {
        /// The chain, the server's own certificate first.
        cert_file: PathBuf,
        /// Its private key; only its owner may read it.
        key_file: PathBuf,
    },
    /// A certificate made at start, for tests and demo. Its key never leaves memory.
    SelfSigned {
        /// Where the certificate is written, so that clients can trust it.
        cert_file: PathBuf,
        /// Names and addresses that it is valid for.
        names: Vec<String>,
    },
    /// Plain HTTP; the listener must be on loopback.
    Off,
}

/// Why there is no TLS as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate file cannot be read.
    #[error("[web.tls] cert_file {path} cannot be read")]
    CertificateFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It holds no certificate.
    #[error("[web.tls] cert_file {path} holds no certificate in PEM: it should begin with BEGIN CERTIFICATE")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The key file cannot be used.
    #[error("[web.tls] key_file cannot be used")]
    KeyFile(#[from] PrivateFileError),
    /// It holds no private key.
    #[error("[web.tls] key_file {path} holds no private key in PEM: it should begin with BEGIN PRIVATE KEY")]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// They do not belong together, or are of a kind that is not supported.
    #[error("[web.tls] certificate and key cannot be used together: is the key the one that the certificate is for?")]
    Mismatch(#[source] rustls::Error),
    /// The certificate could not be made.
    #[error("no certificate could be made for {names}: are these host names or IP addresses?")]
    Make {
        /// What it was to be for.
        names: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The certificate could not be written.
    #[error("the certificate could not be written to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A listener's TLS, which can be read anew while it serves.
#[derive(Clone)]
pub struct Tls {
    mode: TlsMode,
    config: RustlsConfig,
}

impl Tls {
    /// Reads or makes what the mode wants. `None` with [`TlsMode::Off`].
    ///
    /// # Errors
    /// When a file is missing, exposed or wrong.
    pub fn load(mode: &TlsMode) -> Result<Option<Self>, TlsError> {
        let Some(config) = server_config(mode)? else { return Ok(None) };
        Ok(Some(Self { mode: mode.clone(), config: RustlsConfig::from_config(config) }))
    }

    /// Reads the files again; connections that are open keep what they have. What served before goes
    /// on serving when the new files are wrong.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn reload(&self) -> Result<(), TlsError> {
        // A certificate made at start stays, since clients trust it.
        if matches!(self.mode, TlsMode::Files { .. })
            && let Some(config) = server_config(&self.mode)?
        {
            self.config.reload_from_config(config);
        }
        Ok(())
    }

    pub(super) fn config(&self) -> RustlsConfig {
        self.config.clone()
    }
}

fn server_config(mode: &TlsMode) -> Result<Option<Arc<ServerConfig>>, TlsError> {
    let (chain, key) = match mode {
        TlsMode::Off => return Ok(None),
        TlsMode::Files { cert_file, key_file } => (read_chain(cert_file)?, read_key(key_file)?),
        TlsMode::SelfSigned { cert_file, names } => make(cert_file, names)?,
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("ring offers TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Mismatch)?;
    config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Some(Arc::new(config)))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::CertificateFile { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_CERTIFICATE_FILE {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    let pem = std::fs::read(path).map_err(unreadable)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::NoCertificate { path: path.to_owned() })?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_owned() });
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read_private(path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::NoKey { path: path.to_owned() })
}

fn make(path: &Path, names: &[String]) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let failed = |source| TlsError::Make { names: names.join(", "), source };
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = CertificateParams::new(names).and_then(|params| params.self_signed(&key)).map_err(failed)?;
    std::fs::write(path, certificate.pem()).map_err(|source| TlsError::Write { path: path.to_owned(), source })?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key that was just made is one");
    Ok((vec![certificate.der().clone()], key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::files::create_private;

    #[test]
    fn files_that_cannot_serve_are_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| directory.path().join(name);
        let files = |cert: &str, key: &str| {
            Tls::load(&TlsMode::Files { cert_file: at(cert), key_file: at(key) }).map(|_| ()).unwrap_err().to_string()
        };
        assert!(files("missing.pem", "key.pem").contains("missing.pem cannot be read"));
        std::fs::write(at("empty.pem"), "").expect("it can be written");
        assert!(files("empty.pem", "key.pem").contains("holds no certificate"));
        make(&at("cert.pem"), &["localhost".to_owned()]).expect("it can be made");
        assert!(files("cert.pem", "missing.pem").contains("key_file cannot be used"));
        create_private(&at("no-key.pem"), b"nothing").expect("it can be written");
        assert!(files("cert.pem", "no-key.pem").contains("holds no private key"));
        let other = KeyPair::generate().expect("a key").serialize_pem();
        create_private(&at("other.pem"), other.as_bytes()).expect("it can be written");
        assert!(files("cert.pem", "other.pem").contains("is the key the one"));
    }
}
