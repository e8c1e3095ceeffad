//! Certificates: the server's own CA, and what clients trust.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// What is wrong with a certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// None was made.
    #[error("a certificate could not be made")]
    Make(#[source] rcgen::Error),
    /// A PEM text holds none.
    #[error("the PEM text holds no certificate")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// rustls refuses it.
    #[error("the certificate is refused")]
    Rustls(#[source] rustls::Error),
}

/// A CA made for this server, and the server's side of TLS.
pub struct ServerTls {
    /// What clients must trust, PEM.
    pub ca_pem: String,
    /// For the listener.
    pub config: Arc<ServerConfig>,
}

impl ServerTls {
    /// A new CA, and a certificate by it for `names` (DNS names and IP addresses).
    pub fn generate(names: &[String]) -> Result<Self, TlsError> {
        let ca_key = KeyPair::generate().map_err(TlsError::Make)?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        ca.distinguished_name.push(DnType::CommonName, "simulated GitHub CA");
        let ca_pem = ca.self_signed(&ca_key).map_err(TlsError::Make)?.pem();
        let key = KeyPair::generate().map_err(TlsError::Make)?;
        let mut params = CertificateParams::new(names.to_vec()).map_err(TlsError::Make)?;
        params.distinguished_name.push(DnType::CommonName, "simulated GitHub");
        let cert = params.signed_by(&key, &Issuer::new(ca, ca_key)).map_err(TlsError::Make)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Rustls)?
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], private)
            .map_err(TlsError::Rustls)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { ca_pem, config: Arc::new(config) })
    }
}

/// A client that trusts the certificates of `ca_pem` and no others.
pub fn client_config(ca_pem: Option<&str>) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.unwrap_or_default().as_bytes()) {
        roots.add(cert.map_err(TlsError::Pem)?).map_err(TlsError::Rustls)?;
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Rustls)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
