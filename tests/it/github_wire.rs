//! The way to GitHub: TLS with a CA of one's own, a proxy, servers that are silent or gone.

use crate::github_stub::{APP_7, INSTALLATION, Stub, labels, options, router};
use flyci::github::{GitHub, GitHubError, NetworkFault, OptionsError, Scope};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use secrecy::SecretString;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A GitHub with a certificate of a CA that no system knows.
struct Enterprise {
    url: String,
    ca_pem: String,
    handle: axum_server::Handle<std::net::SocketAddr>,
}

impl Drop for Enterprise {
    fn drop(&mut self) {
        self.handle.shutdown();
    }
}

impl Enterprise {
    async fn start() -> Self {
        let (ca_pem, certificate, key) = certificate();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate");
        let handle = axum_server::Handle::new();
        let config = axum_server::tls_rustls::RustlsConfig::from_config(Arc::new(config));
        let server = axum_server::bind_rustls(([127, 0, 0, 1], 0).into(), config).handle(handle.clone());
        tokio::spawn(server.serve(router(|_, _| None).into_make_service()));
        let address = handle.listening().await.expect("listens");
        Self { url: format!("https://{address}"), ca_pem, handle }
    }
}

fn certificate() -> (String, CertificateDer<'static>, PrivateKeyDer<'static>) {
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca_pem = ca.self_signed(&ca_key).expect("a CA").pem();
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).expect("a certificate");
    (ca_pem, certificate.der().clone(), PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
}

/// A proxy that asks for `me:p@ss`, and knows CONNECT only.
async fn proxy() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let task = tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(tunnel(client));
        }
    });
    (address, task)
}

async fn tunnel(client: TcpStream) {
    let mut client = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head).await.expect("a line") == 0 {
            return;
        }
    }
    // base64 of me:p@ss
    if !head.to_lowercase().contains("proxy-authorization: basic bwu6cebzcw==") {
        client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await.expect("written");
        return;
    }
    let target = head.strip_prefix("CONNECT ").expect("only CONNECT").split(' ').next().expect("a target").to_owned();
    let mut server = TcpStream::connect(target).await.expect("the server");
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.expect("written");
    copy_bidirectional(&mut client, &mut server).await.ok();
}

async fn mint(github: &GitHub) -> Result<u64, GitHubError> {
    github.mint(INSTALLATION, APP_7, Scope::Repository, "one", &labels()).await.map(|minted| minted.runner_id)
}

fn detail(answer: Result<u64, GitHubError>) -> String {
    match answer {
        Err(GitHubError::Network { fault: NetworkFault::Connect, detail, .. }) => detail,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_enterprise_server_is_trusted_by_its_ca_file_and_not_without_it() {
    let server = Enterprise::start().await;
    let mut options = options(&server.url);
    options.ca_pem = Some(server.ca_pem.clone().into_bytes());
    mint(&GitHub::new(&options).expect("options")).await.expect("minted over TLS");

    options.ca_pem = Some(certificate().0.into_bytes());
    let why = detail(mint(&GitHub::new(&options).expect("options")).await);
    assert!(why.contains("certificate"), "{why}");
}

#[tokio::test]
async fn a_proxy_carries_calls_without_reading_them() {
    let server = Enterprise::start().await;
    let (address, task) = proxy().await;
    let mut options = options(&server.url);
    options.ca_pem = Some(server.ca_pem.clone().into_bytes());
    options.proxy_url = Some(SecretString::from(format!("http://me:p%40ss@{address}")));
    mint(&GitHub::new(&options).expect("options")).await.expect("minted through the proxy");

    options.proxy_url = Some(SecretString::from(format!("http://me:wrong@{address}")));
    let why = detail(mint(&GitHub::new(&options).expect("options")).await);
    assert!(why.contains("proxy") && !why.contains("wrong"), "{why}");
    task.abort();
}

#[tokio::test]
async fn a_server_that_is_gone_is_a_passing_fault_that_did_nothing() {
    let stub = Stub::well_behaved().await;
    let github = stub.client();
    drop(stub);
    let error = mint(&github).await.expect_err("nobody there");
    assert!(error.is_transient() && !error.may_have_happened(), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_holds_nobody_for_ever() {
    // The clock jumps whenever all wait, so that no real time passes.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let github =
        GitHub::new(&options(&format!("http://{}", listener.local_addr().expect("an address")))).expect("options");
    let error = mint(&github).await.expect_err("no answer");
    assert!(error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn options_that_cannot_work_are_refused_with_their_name() {
    let refused = |change: &dyn Fn(&mut flyci::github::Options)| {
        let mut options = options("https://api.github.com");
        change(&mut options);
        GitHub::new(&options).expect_err("refused").to_string()
    };
    assert!(refused(&|options| options.api_url = "http://ghe.example".to_owned()).contains("github.api_url"));
    assert!(refused(&|options| options.private_key = "nonsense".to_owned().into()).contains("private_key_file"));
    let previous = refused(&|options| options.previous_private_key = Some("nonsense".to_owned().into()));
    assert!(previous.contains("previous_private_key_file"));
    assert!(refused(&|options| options.ca_pem = Some(Vec::new())).contains("ca_file"));
    assert!(refused(&|options| options.proxy_url = Some("proxy".to_owned().into())).contains("proxy_url"));
    assert!(OptionsError::UserAgent.to_string().contains("user agent"));
}
