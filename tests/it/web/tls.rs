//! TLS on the public listener.

use crate::support::site::{client_builder, loopback};
use axum::Router;
use axum::routing::get;
use flyci::config::Allow;
use flyci::web::servers::{Lifetime, start_public};
use flyci::web::{Sources, TlsMode};
use rcgen::{CertificateParams, KeyPair};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

/// A client that trusts one certificate, and the version it got an answer in.
async fn answered(port: u16, certificate: &[u8], http1: bool) -> Result<reqwest::Version, reqwest::Error> {
    let certificate = reqwest::Certificate::from_pem(certificate)?;
    let builder = client_builder().tls_certs_only([certificate]);
    let client = if http1 { builder.http1_only() } else { builder }.build()?;
    Ok(client.get(format!("https://localhost:{port}/")).send().await?.version())
}

fn sources() -> Arc<Sources> {
    Arc::new(Sources::new(Allow::Anyone))
}

fn write_pair(directory: &Path) -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    fs::write(directory.join("cert.pem"), &certificate).expect("it is written");
    fs::write(directory.join("key.pem"), key.serialize_pem()).expect("it is written");
    fs::set_permissions(directory.join("key.pem"), fs::Permissions::from_mode(0o600)).expect("it is ours");
    certificate.into_bytes()
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_and_new_files_are_taken_while_serving() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = write_pair(folder.path());
    let mode = TlsMode::Files { cert_file: folder.path().join("cert.pem"), key_file: folder.path().join("key.pem") };
    let router = Router::new().route("/", get(async || "ok"));
    let life = Lifetime::default();
    let (server, tls) = start_public(loopback(), &mode, router, &sources(), &life).expect("it starts");
    let port = server.address.port();
    assert_eq!(answered(port, &first, false).await.expect("it is trusted"), reqwest::Version::HTTP_2);
    assert_eq!(answered(port, &first, true).await.expect("it is trusted"), reqwest::Version::HTTP_11);

    let tls = tls.expect("there is TLS");
    let second = write_pair(folder.path());
    tls.reload().expect("the files are good");
    answered(port, &second, false).await.expect("the new certificate is served");
    answered(port, &first, false).await.expect_err("the old one is not");
    fs::write(folder.path().join("cert.pem"), "nonsense").expect("it is written");
    tls.reload().expect_err("the file is bad");
    answered(port, &second, false).await.expect("what was good goes on");
    life.stop.cancel();
    server.stopped().await;
}

#[tokio::test]
async fn a_certificate_made_at_start_is_written_for_clients_to_trust() {
    let folder = tempfile::tempdir().expect("a folder");
    let cert_file = folder.path().join("self-signed.pem");
    let mode = TlsMode::SelfSigned { cert_file: cert_file.clone(), names: vec!["localhost".to_owned()] };
    let router = Router::new().route("/", get(async || "ok"));
    let (server, _) = start_public(loopback(), &mode, router, &sources(), &Lifetime::default()).expect("it starts");
    let certificate = fs::read(cert_file).expect("it is written");
    answered(server.address.port(), &certificate, false).await.expect("it is trusted");
}
