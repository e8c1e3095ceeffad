//! Who sends, by address: strangers have their share, whoever signs rightly is never limited.

use crate::support::payload::Job;
use crate::support::site::{CERTIFICATE, Site, client_builder, sign};
use crate::support::world::{Setup, World};
use flyci::config::Allow;
use hyper::StatusCode;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use uuid::Uuid;

/// No step of a test takes longer.
const SOON: Duration = Duration::from_secs(30);
/// Wrong signatures of one source that are told as such; what comes after them is limited.
const BEFORE_LIMITED: usize = 20;
/// Connections that one stranger has.
const OF_A_STRANGER: usize = 32;

/// Somebody who sends from an address of this machine.
struct Somebody {
    client: reqwest::Client,
    url: String,
}

impl Somebody {
    fn at(last: u8, public: SocketAddr, certificate: &[u8]) -> Self {
        let certificate = reqwest::Certificate::from_pem(certificate).expect("a certificate");
        let builder = client_builder().tls_certs_only([certificate]).local_address(address(last));
        let url = format!("https://localhost:{}", public.port());
        Self { client: builder.build().expect("a client"), url }
    }

    fn of(site: &Site, last: u8) -> Self {
        Self::at(last, site.public, &std::fs::read(site.path(CERTIFICATE)).expect("the site made it"))
    }

    async fn sends(&self, job: &Job, signature: &str) -> reqwest::Response {
        let body = serde_json::to_vec(&job.body()).expect("JSON");
        let signature = if signature == RIGHT { sign(&body) } else { signature.to_owned() };
        let request = self.client.post(format!("{}/webhooks/github", self.url)).body(body);
        let request = request.header("x-github-event", "workflow_job").header("x-hub-signature-256", signature);
        request.header("x-github-delivery", Uuid::new_v4().to_string()).send().await.expect("it is answered")
    }

    async fn is_answered(&self, job: &Job, signature: &str) -> u16 {
        self.sends(job, signature).await.status().as_u16()
    }
}

/// Stands for what the body calls for.
const RIGHT: &str = "right";

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

#[tokio::test]
async fn who_signs_wrongly_is_limited_and_whoever_signs_rightly_is_not() {
    let site = Site::over_tls(Allow::Anyone).await;
    let (stranger, other) = (Somebody::of(&site, 1), Somebody::of(&site, 2));
    let wrong = sign(b"another body");
    for signature in ["", "sha256=00", &wrong].into_iter().cycle().take(BEFORE_LIMITED) {
        assert_eq!(stranger.is_answered(&Job::queued(1), signature).await, 401, "{signature}");
    }
    for signature in ["", "sha256=00", &wrong] {
        let limited = stranger.sends(&Job::queued(1), signature).await;
        assert_eq!(limited.status(), StatusCode::TOO_MANY_REQUESTS, "{signature}");
        assert_eq!(limited.headers()["retry-after"], "60");
    }
    assert_eq!(other.is_answered(&Job::queued(1), &wrong).await, 401, "another is not counted with it");
    assert_eq!(stranger.is_answered(&Job::queued(1), RIGHT).await, 202, "a right signature is never limited");
    for _ in 0..2 * BEFORE_LIMITED {
        assert_eq!(stranger.is_answered(&Job::queued(1), &wrong).await, 401, "it proved itself");
    }
    let metrics = site.read(site.metrics, "/metrics").await.1;
    assert!(metrics.contains("flyci_deliveries_total{outcome=\"limited\"} 3"), "{metrics}");
}

#[tokio::test]
async fn a_stranger_has_its_share_of_connections_and_github_as_many_as_it_wants() {
    let site = Site::over_tls(Allow::Anyone).await;
    site.sources.set_github(vec!["127.0.0.9/32".parse().expect("a range")], Instant::now());
    let mut held = Vec::new();
    for _ in 0..OF_A_STRANGER {
        held.push(connect(&site, 1).await);
    }
    let mut one_too_many = connect(&site, 1).await;
    // Whoever does not begin the handshake is closed some time: this one before those that were let in.
    tokio::select! {
        biased;
        () = is_closed(&mut held[0]) => panic!("it has more than its share"),
        () = is_closed(&mut one_too_many) => {}
    }
    for _ in 0..2 * OF_A_STRANGER {
        held.push(connect(&site, 9).await);
    }
    assert_eq!(Somebody::of(&site, 9).is_answered(&Job::queued(1), RIGHT).await, 202);
    assert_eq!(Somebody::of(&site, 2).is_answered(&Job::queued(2), RIGHT).await, 202, "others have their own");
}

async fn connect(site: &Site, last: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(address(last), 0)).expect("an address of this machine");
    socket.connect(site.public).await.expect("the port is open")
}

/// Returns when the other side closes; it says nothing before.
async fn is_closed(stream: &mut TcpStream) {
    let read = tokio::time::timeout(SOON, stream.read_u8()).await.expect("it is closed in time");
    let error = read.expect_err("nothing is said").kind();
    assert!(matches!(error, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{error}");
}

#[tokio::test]
async fn with_an_allow_list_a_right_signature_from_elsewhere_is_refused() {
    let world = World::with(Setup { web_over_tls: Some("allow = \"github\""), ..Setup::default() }).await;
    let certificate = std::fs::read(world.path("data/web.crt")).expect("the daemon made it");
    let (github, stranger) =
        (Somebody::at(1, world.public(), &certificate), Somebody::at(2, world.public(), &certificate));
    // The simulated GitHub publishes 127.0.0.1 alone. Before its list is read, nobody is shut out.
    world
        .until("strangers are shut out", async || stranger.is_answered(&Job::queued(1), "sha256=00").await == 403)
        .await;
    assert_eq!(github.is_answered(&Job::queued(1), "sha256=00").await, 401);
    let job = world.queue();
    world.completed(job).await;
    world.nothing_is_left().await;
}

#[tokio::test]
async fn every_answer_is_hardened_and_over_tls_browsers_are_told_to_stay_there() {
    let (site, plain) = (Site::over_tls(Allow::Anyone).await, Site::open().await);
    let secured = Somebody::of(&site, 1);
    for path in ["/healthz", "/nowhere", "/.well-known/security.txt"] {
        let answer = secured.client.get(format!("{}{path}", secured.url)).send().await.expect("it is answered");
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        assert_eq!(header("strict-transport-security"), Some("max-age=63072000"), "{path}");
        assert_eq!(header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(header("content-security-policy"), Some("default-src 'none'; frame-ancestors 'none'"), "{path}");
        assert_eq!(header("cache-control"), Some("no-store"), "{path}");
    }
    let answer = client_builder().build().expect("a client").get(format!("http://{}/healthz", plain.public));
    let answer = answer.send().await.expect("it is answered");
    assert!(answer.headers().get("strict-transport-security").is_none(), "not said where it is not true");
    assert_eq!(answer.headers()["x-frame-options"], "DENY");
}

#[tokio::test]
async fn older_tls_is_refused() {
    /// A fatal alert: there is no version in common.
    const NO_VERSION: [u8; 7] = [21, 3, 3, 0, 2, 2, 70];
    let site = Site::over_tls(Allow::Anyone).await;
    let answer = async |minor: u8| {
        let mut client = connect(&site, 1).await;
        client.write_all(&hello(minor)).await.expect("it is read");
        let mut answer = [0; 7];
        tokio::time::timeout(SOON, client.read_exact(&mut answer)).await.expect("in time").expect("it is answered");
        answer
    };
    // TLS 1.0 and 1.1, as a hello says them; TLS 1.2 is answered by a handshake.
    assert_eq!((answer(1).await, answer(2).await), (NO_VERSION, NO_VERSION));
    assert_eq!(answer(3).await[0], 22);
}

/// A client's hello of TLS 1.x that offers no newer one.
fn hello(minor: u8) -> Vec<u8> {
    let mut hello = vec![3, minor];
    hello.extend([7; 32]);
    // No session, ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, no compression.
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    // Extensions: groups (P-256), signature algorithms (ECDSA with it).
    hello.extend([0, 16, 0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3]);
    let length = |bytes: usize| u8::try_from(bytes).expect("it is short");
    let mut record = vec![22, 3, 1, 0, length(hello.len() + 4), 1, 0, 0, length(hello.len())];
    record.extend(hello);
    record
}
