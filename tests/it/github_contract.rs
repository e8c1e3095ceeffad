//! Every request that the client sends is one that GitHub documents: Prism checks them against
//! GitHub's own OpenAPI description, and answers with GitHub's own examples, which must be read.

use crate::github_stub::{labels, options};
use crate::listening;
use flyci::github::{Denial, GitHub, GitHubError, InstallationId, RepositoryRef, Scope};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

const INSTALLATION: InstallationId = InstallationId(1);
/// The repository of GitHub's examples.
const REPOSITORY: RepositoryRef<'static> = RepositoryRef { id: 1_296_269, full_name: "octocat/Hello-World" };
/// Node starts slowly on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

struct Prism {
    url: String,
    _process: Child,
}

impl Prism {
    async fn start() -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let directory = root.join("target/contract");
        let fetched = Command::new(root.join("fake-github/contract/fetch.sh")).arg(&directory).output().await;
        let fetched = fetched.expect("fetch.sh runs");
        assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let process = Command::new("node")
            .arg(directory.join("node_modules/@stoplight/prism-cli/dist/index.js"))
            .args(["mock", "-h", "127.0.0.1", "-p", &port.to_string()])
            .arg(directory.join("openapi.json"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("Node.js is installed");
        listening::until(port, START_DEADLINE).await;
        Self { url: format!("http://127.0.0.1:{port}"), _process: process }
    }
}

#[tokio::test]
async fn every_request_is_one_that_github_documents() {
    let prism = Prism::start().await;
    let github = GitHub::new(&options(&prism.url)).expect("options");
    github.app().await.expect("app");
    github.runner_releases().await.expect("releases");
    github.installation(INSTALLATION).await.expect("installation").expect("the example");
    github.deliveries(Some("v1_12345"), None).await.expect("deliveries");
    github.delivery(12_345).await.expect("delivery").expect("the example");
    github.redeliver(12_345).await.expect("redeliver");
    github.job(INSTALLATION, REPOSITORY, 399_444_496).await.expect("job").expect("the example");
    github.run(INSTALLATION, REPOSITORY, 30_433_642).await.expect("run").expect("the example");
    github.open_jobs(INSTALLATION, REPOSITORY, None).await.expect("queued jobs");
    github.rerun_job(INSTALLATION, REPOSITORY, 30_433_642).await.expect("rerun");
    for scope in [Scope::Repository, Scope::OrganizationGroup] {
        github.list_runners(INSTALLATION, REPOSITORY, scope).await.expect("list");
        github.find_runner(INSTALLATION, REPOSITORY, scope, "flyci-1").await.expect("find");
        github.runner(INSTALLATION, REPOSITORY, scope, 23).await.expect("runner").expect("the example");
        github.remove_runner(INSTALLATION, REPOSITORY, scope, 23).await.expect("remove");
        match github.mint(INSTALLATION, REPOSITORY, scope, "flyci-1", &labels()).await {
            Ok(_) => {}
            // The example's group is one for all repositories: found, made and looked at, then refused.
            Err(GitHubError::Forbidden { reason: Denial::GroupNotExclusive, .. })
                if scope == Scope::OrganizationGroup => {}
            Err(error) => panic!("{scope:?}: {error}"),
        }
    }
}
