//! No customer's name in an error or a log line, whatever GitHub answers.

use crate::github_stub::{INSTALLATION, Reply, Stub, labels};
use flyci::github::{GitHub, GitHubError, RepositoryRef, Scope};
use proptest::prelude::*;
use std::error::Error as _;
use std::io::Write;
use std::sync::{Arc, Mutex};

const OWNER: &str = "canary-owner";
const FULL_NAME: &str = "canary-owner/canary-repo";
const RUNNER: &str = "canary-runner";
const REPOSITORY: RepositoryRef<'static> = RepositoryRef { id: 7, full_name: FULL_NAME };

fn assert_clean(text: &str) {
    assert!(!text.to_lowercase().contains("canary"), "a name got out: {text}");
}

fn assert_error_is_clean(error: &GitHubError) {
    assert_clean(&format!("{error}\n{error:?}\n{error:#?}"));
    let mut source = error.source();
    while let Some(cause) = source {
        assert_clean(&format!("{cause}\n{cause:?}"));
        source = cause.source();
    }
}

/// Every kind of call, and what it failed with.
async fn failures(github: &GitHub) -> Vec<GitHubError> {
    let (inst, scope) = (INSTALLATION, Scope::Repository);
    let answers = [
        github.mint(inst, REPOSITORY, scope, RUNNER, &labels()).await.err(),
        github.mint(inst, REPOSITORY, Scope::OrganizationGroup, RUNNER, &labels()).await.err(),
        github.find_runner(inst, REPOSITORY, scope, RUNNER).await.err(),
        github.list_runners(inst, REPOSITORY, Scope::OrganizationGroup).await.err(),
        github.remove_runner(inst, REPOSITORY, scope, 1).await.err(),
        github.job(inst, REPOSITORY, 1).await.err(),
        github.open_jobs(inst, REPOSITORY, None).await.err(),
        github.rerun_job(inst, REPOSITORY, 1).await.err(),
        github.installation(inst).await.err(),
        github.deliveries(Some("canary-cursor"), None).await.err(),
        github.delivery(1).await.err(),
    ];
    answers.into_iter().flatten().collect()
}

fn bodies() -> impl Strategy<Value = String> {
    let message = format!("{FULL_NAME}: {RUNNER} is not accessible by integration");
    prop_oneof![
        Just(serde_json::json!({ "message": message }).to_string()),
        Just(serde_json::json!({ "message": message, "runners": FULL_NAME, "id": OWNER, "jobs": OWNER }).to_string()),
        Just(serde_json::json!({ "runner": { "id": OWNER }, "encoded_jit_config": FULL_NAME }).to_string()),
        Just(format!("\"{FULL_NAME}\"")),
        Just(format!("<html>{FULL_NAME}</html>")),
        ".{0,40}".prop_map(|noise| format!("{FULL_NAME}{noise}")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_error_holds_a_name(
        status in prop_oneof![Just(200_u16), Just(201), Just(301), Just(307), 400_u16..=426, Just(451)],
        token_too in any::<bool>(),
        body in bodies(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let stub = Stub::start(move |seen, _| {
                (token_too || !seen.is("POST", "/access_tokens")).then(|| {
                    Reply::new(status, body.clone())
                        .header("location", format!("https://elsewhere.example/{FULL_NAME}"))
                        .header("x-github-request-id", FULL_NAME)
                })
            })
            .await;
            for error in failures(&stub.client()).await {
                assert_error_is_clean(&error);
            }
        });
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn not_even_the_most_detailed_log_holds_a_name_or_a_token() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    // For all tests of this program: theirs must be clean as well.
    tracing::subscriber::set_global_default(subscriber).expect("the only one that sets it");
    let stub = Stub::start(|seen, _| {
        let answer = serde_json::json!({ "runner": { "id": 1 }, "encoded_jit_config": "canary-jit" });
        (!seen.is("POST", "/access_tokens")).then(|| match seen.path.ends_with("/generate-jitconfig") {
            true => Reply::json(201, &answer),
            false => Reply::message(503, FULL_NAME),
        })
    })
    .await;
    let github = stub.client();
    let minted = github.mint(INSTALLATION, REPOSITORY, Scope::Repository, RUNNER, &labels()).await.expect("minted");
    assert_clean(&format!("{minted:?} {REPOSITORY:?} {github:?}"));
    github.list_runners(INSTALLATION, REPOSITORY, Scope::Repository).await.expect_err("503");
    let text = String::from_utf8_lossy(&log.0.lock().expect("not poisoned")).into_owned();
    assert!(text.contains("/repos/{owner}/{repo}/actions/runners/generate-jitconfig"), "calls are logged: {text}");
    assert_clean(&text);
    assert!(!text.contains("ghs_") && !text.contains("eyJ"), "a credential got out: {text}");
}
