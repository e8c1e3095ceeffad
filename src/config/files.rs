//! The files that the configuration names: each is read and understood here as those who use it do, so that what is
//! wrong with one is told by `flyci config check`, beside everything else, and not when it is first needed.
//! Nothing of them is kept.

use super::table::Reading;
use crate::github::is_app_key;
use crate::images::registry::is_docker_config;
use crate::secrets::files;
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io::Read as _;
use std::path::Path;
use zeroize::Zeroizing;

/// No file of certificates is longer, in bytes: a system's whole bundle has a quarter of it.
const MAX_CERTIFICATES: u64 = 1024 * 1024;

/// A certificate with its chain, and its key: there, in PEM, and of one another.
pub(super) fn server_certificate(
    reading: &Reading<'_>,
    certificate: (&str, Option<&Path>),
    key: (&str, Option<&Path>),
) {
    let chain = certificate.1.and_then(|path| certificates(reading, certificate.0, path));
    let private = key.1.and_then(|path| private_key(reading, key.0, path));
    if let (Some(chain), Some(private), Some(path)) = (chain, private, certificate.1)
        && CertifiedKey::from_der(chain, private, &default_provider()).is_err()
    {
        let problem = format!("is not the key that {} is for, or is of a kind that is not supported", path.display());
        reading.fault(key.0, problem);
    }
}

/// Certificates to trust: there, in PEM, and certificates.
pub(super) fn authorities(reading: &Reading<'_>, key: &str, path: Option<&Path>) {
    let Some((path, found)) = path.and_then(|path| Some((path, certificates(reading, key, path)?))) else { return };
    let mut roots = RootCertStore::empty();
    if found.into_iter().any(|certificate| roots.add(certificate).is_err()) {
        reading.fault(key, format!("{} holds a certificate that cannot be trusted as it is", path.display()));
    }
}

/// The App's private key.
pub(super) fn app_key(reading: &Reading<'_>, key: &str, path: Option<&Path>) {
    if let Some(pem) = secret(reading, key, path)
        && !is_app_key(&pem)
    {
        let path = path.map(Path::display).expect("it was just read");
        let what = "is no RSA private key in PEM form: download a new one from the App's settings";
        reading.fault(key, format!("{path} {what}"));
    }
}

/// A text that is nobody else's business, without the end of its line. An empty one protects nothing.
pub(super) fn secret(reading: &Reading<'_>, key: &str, path: Option<&Path>) -> Option<Zeroizing<String>> {
    let path = path?;
    let bytes = private(reading, key, path)?;
    let fault = |what: &str| reading.fault(key, format!("{} {what}", path.display()));
    match std::str::from_utf8(&bytes).map(str::trim) {
        Ok("") => fault("is empty: write the secret into it"),
        Ok(text) => return Some(Zeroizing::new(text.to_owned())),
        Err(_) => fault("is no text in UTF-8"),
    }
    None
}

/// Logins of registries, as docker writes them.
pub(super) fn registry_logins(reading: &Reading<'_>, key: &str, path: Option<&Path>) {
    let Some(path) = path else { return };
    if private(reading, key, path).is_some_and(|bytes| !is_docker_config(&bytes)) {
        reading.fault(key, format!("{} is no configuration of docker (`{{\"auths\": …}}`)", path.display()));
    }
}

/// A file that can be read.
pub(super) fn readable(reading: &Reading<'_>, key: &str, path: Option<&Path>) {
    let Some(path) = path else { return };
    if let Err(problem) = open(path) {
        reading.fault(key, problem);
    }
}

fn certificates(reading: &Reading<'_>, key: &str, path: &Path) -> Option<Vec<CertificateDer<'static>>> {
    let read = |file: std::fs::File| {
        let mut pem = Vec::new();
        file.take(MAX_CERTIFICATES).read_to_end(&mut pem).map(|_| pem)
    };
    let pem = match open(path).and_then(|file| read(file).map_err(|error| cannot(path, "read", &error))) {
        Ok(pem) => pem,
        Err(problem) => {
            reading.fault(key, problem);
            return None;
        }
    };
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let found = found.ok().filter(|found| !found.is_empty());
    if found.is_none() {
        let path = path.display();
        reading.fault(key, format!("{path} holds no certificate in PEM: it should begin with BEGIN CERTIFICATE"));
    }
    found
}

fn private_key(reading: &Reading<'_>, key: &str, path: &Path) -> Option<PrivateKeyDer<'static>> {
    let found = PrivateKeyDer::from_pem_slice(&private(reading, key, path)?).ok();
    if found.is_none() {
        let path = path.display();
        reading.fault(key, format!("{path} holds no private key in PEM: it should begin with BEGIN PRIVATE KEY"));
    }
    found
}

fn private(reading: &Reading<'_>, key: &str, path: &Path) -> Option<Zeroizing<Vec<u8>>> {
    files::read_private(path).map_err(|error| reading.fault(key, describe(&error))).ok()
}

fn open(path: &Path) -> Result<std::fs::File, String> {
    let file = std::fs::File::open(path).map_err(|error| cannot(path, "opened", &error))?;
    let about = file.metadata().map_err(|error| cannot(path, "read", &error))?;
    if about.is_file() { Ok(file) } else { Err(format!("{} is no regular file", path.display())) }
}

fn cannot(path: &Path, be: &str, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => format!("{} does not exist", path.display()),
        _ => format!("{} cannot be {be} ({error})", path.display()),
    }
}

/// An error with what caused it: faults are read by people, one line each.
fn describe(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error} ({source})"),
        None => error.to_string(),
    }
}
