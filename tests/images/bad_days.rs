//! Bad days: interruptions, damage, refusals and full disks, and what each leaves behind.

use crate::support::apple;
use crate::support::bundle::{CHUNK, Home, config, disk, options};
use crate::support::proxy::{Deed, Proxy, Seen};
use crate::support::registry::Registry;
use axum::http::{StatusCode, header};
use flyci::domain::units::Bytes;
use flyci::errors::chain;
use flyci::images::registry::{Keyring, RegistryError};
use flyci::images::{Progress, PullError, PullOptions, pull};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A registry with an image of seven layers of disk, `mac/base:1`.
struct Scene {
    registry: Registry,
    disk: Vec<u8>,
    host: Home,
}

impl Scene {
    async fn new(seed: u64) -> Self {
        let (registry, maker, disk) = (Registry::start(), Home::new(), disk(6, seed));
        maker.push(&maker.import(&disk), &registry.image("mac/base:1")).await;
        Self { registry, disk, host: Home::new() }
    }

    async fn proxy(&self, rule: impl Fn(&Seen) -> Deed + Send + Sync + 'static) -> Proxy {
        Proxy::before(&self.registry.place, rule).await
    }

    /// The digest in a blob's path of the layer of disk with this number.
    async fn layer(&self, number: usize) -> String {
        let url = format!("http://{}/v2/mac/base/manifests/1", self.registry.place);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let accept = "application/vnd.oci.image.manifest.v1+json";
        let text = http.get(url).header("accept", accept).send().await.expect("sent").text().await.expect("text");
        let manifest: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        manifest["layers"][number + 1]["digest"].as_str().expect("a digest").to_owned()
    }

    /// Pulls through a proxy with a rule for one layer, and expects a refusal that leaves nothing.
    async fn refused(&self, deed: fn() -> Deed) -> PullError {
        let layer = self.layer(2).await;
        let proxy = self.proxy(move |seen| if seen.path.ends_with(&layer) { deed() } else { Deed::Pass }).await;
        let error = self.host.pull(&proxy.image("mac/base:1")).await.expect_err("refused");
        assert_eq!(self.host.entries(), Vec::<String>::new(), "nothing is left: {error}");
        error
    }
}

#[tokio::test]
async fn a_layer_that_breaks_off_is_taken_up_where_it_did() {
    let scene = Scene::new(20).await;
    let layer = scene.layer(2).await;
    let whole = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&whole);
    let proxy = scene
        .proxy(move |seen| match seen.path.ends_with(&layer) {
            true if seen.count == 1 => Deed::Cut(100_000),
            true => {
                asked.store(
                    seen.header(header::RANGE).is_some_and(|range| range.starts_with("bytes=")),
                    Ordering::SeqCst,
                );
                Deed::Pass
            }
            false => Deed::Pass,
        })
        .await;
    let (image, _) = scene.host.pull(&proxy.image("mac/base:1")).await.expect("pulled");
    assert!(whole.load(Ordering::SeqCst), "the rest was asked for by its range");
    assert_eq!(scene.host.disk_of(&image), scene.disk);
}

#[tokio::test]
async fn a_registry_without_ranges_begins_again_and_nothing_is_written_twice() {
    let scene = Scene::new(21).await;
    let layer = scene.layer(3).await;
    let proxy = scene
        .proxy(move |seen| match seen.path.ends_with(&layer) {
            true if seen.count == 1 => Deed::Cut(100_000),
            true => Deed::WithoutRange,
            false => Deed::Pass,
        })
        .await;
    let (image, fetched) = scene.host.pull(&proxy.image("mac/base:1")).await.expect("pulled");
    assert_eq!(scene.host.disk_of(&image), scene.disk);
    assert_eq!(fetched.fetched, fetched.total);
}

#[tokio::test]
async fn an_interrupted_pull_goes_on_with_what_it_has() {
    let scene = Scene::new(22).await;
    let layer = scene.layer(5).await;
    let broken = scene
        .proxy(move |seen| match seen.path.ends_with(&layer) {
            true => Deed::Answer(StatusCode::INTERNAL_SERVER_ERROR, Vec::new(), String::new()),
            false => Deed::Pass,
        })
        .await;
    let error = scene.host.pull(&broken.image("mac/base:1")).await.expect_err("broken");
    assert!(matches!(error, PullError::Registry(RegistryError::Busy { .. })), "{error}");
    assert!(scene.host.store.list().expect("listed").is_empty(), "half an image is none");
    assert!(scene.host.entries()[0].starts_with(".pull-"), "what came is kept");
    let proxy = scene.proxy(|_| Deed::Pass).await;
    let (image, fetched) = scene.host.pull(&proxy.image("mac/base:1")).await.expect("pulled");
    assert_eq!(scene.host.disk_of(&image), scene.disk);
    assert!(proxy.blobs_asked_for() < 7, "most layers were there: {} asked for", proxy.blobs_asked_for());
    assert!(fetched.reused > 0);
}

#[tokio::test]
async fn a_pull_that_was_killed_is_taken_up_by_content() {
    let scene = Scene::new(23).await;
    let layer = scene.layer(6).await;
    let proxy = scene
        .proxy(move |seen| match seen.path.ends_with(&layer) {
            true => Deed::Answer(StatusCode::BAD_GATEWAY, Vec::new(), String::new()),
            false => Deed::Pass,
        })
        .await;
    scene.host.pull(&proxy.image("mac/base:1")).await.expect_err("broken");
    // What was being written when the power went: rubbish in the middle of a layer that was whole.
    let work = scene.host.root.path().join("images").join(&scene.host.entries()[0]).join("disk.img");
    let mut bytes = std::fs::read(&work).expect("read");
    bytes[100..200].fill(0xAA);
    bytes[1 << 20..(1 << 20) + 50].fill(0xBB);
    std::fs::write(&work, bytes).expect("written");
    let (image, _) = scene.host.pull(&scene.registry.image("mac/base:1")).await.expect("pulled");
    assert_eq!(scene.host.disk_of(&image), scene.disk, "also where zeros belong");
}

#[tokio::test]
async fn two_pulls_of_one_image_do_not_meet() {
    let scene = Scene::new(24).await;
    let name = scene.registry.image("mac/base:1");
    let (one, two) = tokio::join!(scene.host.pull(&name), scene.host.pull(&name));
    let busy = |outcome: &Result<_, PullError>| matches!(outcome, Err(PullError::Busy(_)));
    assert!(one.is_ok() || two.is_ok());
    assert!([&one, &two].iter().all(|outcome| outcome.is_ok() || busy(outcome)));
}

#[tokio::test]
async fn a_layer_that_is_damaged_once_is_fetched_again() {
    let scene = Scene::new(25).await;
    let layer = scene.layer(2).await;
    let proxy = scene
        .proxy(
            move |seen| if seen.path.ends_with(&layer) && seen.count == 1 { Deed::Spoil(300_001) } else { Deed::Pass },
        )
        .await;
    let (image, _) = scene.host.pull(&proxy.image("mac/base:1")).await.expect("pulled");
    assert_eq!(scene.host.disk_of(&image), scene.disk);
}

#[tokio::test]
async fn a_damaged_layer_is_refused_and_leaves_nothing() {
    let scene = Scene::new(26).await;
    for spoil in [|| Deed::Spoil(0), || Deed::Spoil(300_001)] {
        let error = scene.refused(spoil).await;
        assert!(matches!(error, PullError::Wrong { layer: 2, .. } | PullError::Decode { layer: 2, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_layer_that_ends_early_or_late_is_refused_and_leaves_nothing() {
    let scene = Scene::new(27).await;
    let error = scene.refused(|| Deed::Shorten(0)).await;
    assert!(matches!(error, PullError::Size { layer: 2, .. }), "{error}");
    let error = scene.refused(|| Deed::Lengthen(vec![1; 10])).await;
    assert!(matches!(error, PullError::Size { layer: 2, .. } | PullError::Decode { .. }), "{error}");
}

#[tokio::test]
async fn content_that_is_not_what_the_manifest_tells_is_refused_and_leaves_nothing() {
    let (registry, host) = (Registry::start(), Home::new());
    let disk = disk(3, 28);
    for (number, (key, value, said)) in [
        ("org.cirruslabs.tart.uncompressed-content-digest", apple::digest(b"another"), "the content"),
        ("org.cirruslabs.tart.uncompressed-size", (CHUNK - 1).to_string(), "has 1048576 bytes"),
        ("org.cirruslabs.tart.uncompressed-size", (CHUNK + 1).to_string(), "has 1048576 bytes"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut made = apple::image(&disk, CHUNK as usize);
        made.manifest["layers"][2]["annotations"][key] = value.into();
        made.manifest["annotations"] = serde_json::json!({});
        made.put(&registry.place, "mac/wrong", &number.to_string()).await;
        let error = host.pull(&registry.image(&format!("mac/wrong:{number}"))).await.expect_err(said);
        assert!(chain(&error).to_string().contains(said), "{}", chain(&error));
        assert_eq!(host.entries(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn images_of_other_kinds_are_refused_with_a_clear_word() {
    let (registry, host) = (Registry::start(), Home::new());
    let kinds = [
        ("application/vnd.cirruslabs.tart.disk.v1", "old format"),
        ("application/vnd.cirruslabs.tart.disk.asif.overlay.v1", "stacked"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "no macOS vm image"),
    ];
    for (number, (kind, said)) in kinds.into_iter().enumerate() {
        let mut made = apple::image(b"a small disk", CHUNK as usize);
        made.manifest["layers"][1]["mediaType"] = kind.into();
        made.put(&registry.place, "mac/other", &number.to_string()).await;
        let error = host.pull(&registry.image(&format!("mac/other:{number}"))).await.expect_err(said);
        assert!(chain(&error).to_string().contains(said), "{}", chain(&error));
    }
    let error = host.pull(&registry.image("mac/none:1")).await.expect_err("there is none");
    assert!(matches!(error, PullError::Registry(RegistryError::NotFound { .. })), "{error}");
    assert_eq!(host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn a_manifest_that_was_exchanged_is_refused() {
    let scene = Scene::new(29).await;
    let digest = apple::digest(b"the manifest that is meant");
    let target = digest.clone();
    let text = scene.registry.image("mac/base");
    let proxy = scene
        .proxy(move |seen| match seen.path.ends_with(&target) {
            true => Deed::Answer(StatusCode::OK, Vec::new(), "{}".to_owned()),
            false => Deed::Pass,
        })
        .await;
    let error = scene.host.pull(&format!("{}@{digest}", proxy.image("mac/base"))).await.expect_err(&text);
    assert!(matches!(error, PullError::Registry(RegistryError::WrongManifest { .. })), "{error}");
}

/// Lets in who says this in `Authorization`; asks others for `challenge`.
fn guarded(seen: &Seen, word: &str, challenge: &str) -> Deed {
    match seen.header(header::AUTHORIZATION) == Some(word) {
        true => Deed::Pass,
        false => {
            Deed::Answer(StatusCode::UNAUTHORIZED, vec![("www-authenticate", challenge.to_owned())], String::new())
        }
    }
}

/// A login for a place, in a file of docker's.
fn keyring(home: &Home, place: &str) -> Keyring {
    let file = home.root.path().join("logins.json");
    std::fs::write(&file, format!(r#"{{"auths": {{"{place}": {{"auth": "bWU6c2VjcmV0"}}}}}}"#)).expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("closed");
    Keyring { file: Some(file), docker: None }
}

#[tokio::test]
async fn a_registry_that_wants_a_password_gets_it() {
    let scene = Scene::new(30).await;
    let proxy = scene.proxy(|seen| guarded(seen, "Basic bWU6c2VjcmV0", "Basic realm=\"here\"")).await;
    let error = scene.host.pull(&proxy.image("mac/base:1")).await.expect_err("nobody is logged in");
    assert!(matches!(error, PullError::Registry(RegistryError::Unauthorised { .. })), "{error}");
    assert_eq!(scene.host.entries(), Vec::<String>::new());
    let mut options = options();
    options.keyring = keyring(&scene.host, &proxy.place);
    let (image, _) = scene.host.pull_with(&proxy.image("mac/base:1"), options).await.expect("pulled");
    assert_eq!(scene.host.disk_of(&image), scene.disk);
}

#[tokio::test]
async fn a_token_is_fetched_and_fetched_again_when_it_runs_out() {
    let scene = Scene::new(31).await;
    let tokens = Arc::new(std::sync::Mutex::new(0_u32));
    let place = Arc::new(std::sync::OnceLock::<String>::new());
    let (given, known) = (Arc::clone(&tokens), Arc::clone(&place));
    let proxy = scene
        .proxy(move |seen| {
            let mut given = given.lock().expect("held shortly");
            if seen.path.starts_with("/token?") {
                assert!(seen.path.contains("scope=repository%3Amac%2Fbase%3Apull"), "{}", seen.path);
                assert_eq!(seen.header(header::AUTHORIZATION), Some("Basic bWU6c2VjcmV0"));
                *given += 1;
                return Deed::Answer(StatusCode::OK, Vec::new(), format!(r#"{{"token": "t{given}"}}"#));
            }
            // The first token is good for the manifest alone.
            let expired = seen.is_blob() && *given == 1;
            let word = if expired { "none".to_owned() } else { format!("Bearer t{given}") };
            let realm = format!(r#"Bearer realm="http://{}/token",service="here""#, known.get().expect("known"));
            guarded(seen, &word, &realm)
        })
        .await;
    place.set(proxy.place.clone()).expect("once");
    let mut options = options();
    options.keyring = keyring(&scene.host, &proxy.place);
    let (image, _) = scene.host.pull_with(&proxy.image("mac/base:1"), options).await.expect("pulled");
    assert_eq!(scene.host.disk_of(&image), scene.disk);
    assert_eq!(*tokens.lock().expect("held shortly"), 2, "one token serves all layers");
}

#[tokio::test]
async fn a_login_place_without_tls_gets_no_password() {
    let scene = Scene::new(32).await;
    let proxy = scene.proxy(|seen| guarded(seen, "never", r#"Bearer realm="http://login.example.com/token""#)).await;
    let mut options = options();
    options.keyring = keyring(&scene.host, &proxy.place);
    let error = scene.host.pull_with(&proxy.image("mac/base:1"), options).await.expect_err("refused");
    assert!(chain(&error).to_string().contains("a login place without TLS"), "{}", chain(&error));
}

#[tokio::test]
async fn a_busy_registry_is_waited_for() {
    let scene = Scene::new(33).await;
    let proxy = scene
        .proxy(|seen| match seen.count {
            1 => Deed::Answer(StatusCode::TOO_MANY_REQUESTS, vec![("retry-after", "0".to_owned())], String::new()),
            2 => Deed::Answer(StatusCode::SERVICE_UNAVAILABLE, Vec::new(), String::new()),
            _ => Deed::Pass,
        })
        .await;
    let (image, _) = scene.host.pull(&proxy.image("mac/base:1")).await.expect("pulled");
    assert_eq!(scene.host.disk_of(&image), scene.disk);
}

#[tokio::test]
async fn a_registry_that_stays_busy_is_given_up() {
    let scene = Scene::new(34).await;
    for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::INTERNAL_SERVER_ERROR] {
        let proxy = scene.proxy(move |_| Deed::Answer(status, Vec::new(), String::new())).await;
        let error = scene.host.pull(&proxy.image("mac/base:1")).await.expect_err("it is busy");
        let told = chain(&error).to_string();
        assert!(told.contains(status.as_str()) && told.contains("5 times"), "{told}");
    }
    let gone = Proxy::before(&scene.registry.place, |_| Deed::Pass).await.image("mac/base:1");
    let error = scene.host.pull(&gone).await.expect_err("nobody listens");
    assert!(matches!(error, PullError::Registry(RegistryError::Unreachable { .. })), "{error}");
    assert_eq!(scene.host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn what_cannot_fit_is_refused_before_its_first_byte() {
    let scene = Scene::new(35).await;
    let proxy = scene.proxy(|_| Deed::Pass).await;
    let reference = proxy.image("mac/base:1").parse().expect("a reference");
    let pull_options = PullOptions { registry: options(), concurrency: 3, reserve: Bytes(u64::MAX / 2), macos: None };
    let error = pull(&scene.host.store, &reference, &pull_options, &Progress::default()).await.expect_err("no room");
    let needed = scene.disk.len() + 70_000 + config().len();
    assert!(error.to_string().starts_with(&format!("the image needs {needed}B of disk")), "{error}");
    assert_eq!(proxy.blobs_asked_for(), 1, "its description alone");
    assert_eq!(scene.host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn a_disk_that_fills_ends_the_pull_and_leaves_nothing() {
    let scene = Scene::new(36).await;
    let root = scene.host.root.path();
    let text = format!(
        "roles = [\"host\"]\ndata_dir = \"{}\"\n[database]\nurl = \"postgres://nowhere/none\"\n[images]\nkeep_free = \"0B\"\n[host]\nname = \"h\"\nhypervisor = \"fake\"\n",
        root.display()
    );
    std::fs::write(root.join("flyci.toml"), text).expect("written");
    // No file of this process may be longer than 2 MB: writing beyond fails as on a full disk.
    let command = r#"trap '' XFSZ; ulimit -f 4096; exec "$@""#;
    let output = Command::new("sh")
        .args(["-c", command, "sh", env!("CARGO_BIN_EXE_flyci"), "--config"])
        .arg(root.join("flyci.toml"))
        .args(["image", "pull", &scene.registry.image("mac/base:1")])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the disk is full; nothing of the image is kept"), "{said}");
    assert_eq!(scene.host.entries(), Vec::<String>::new());
}
