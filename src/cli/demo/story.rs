//! The demo's story: who has which repository, what their jobs do, and how each has to end.

use fake_github::{AccountKind, Conclusion, FakeGitHub, Installation, JobHandle, JobScript, Repo, Visibility};
use rand::RngExt;
use std::fmt;

/// The organisations that install the App.
pub const ACCOUNTS: [&str; 2] = ["acme", "umbrella"];
/// How a canary begins: the spy looks for whatever has this shape.
const CANARY_SHAPE: &str = "flyci-canary-";

/// A job of the story.
#[derive(Debug)]
pub struct Job {
    /// `owner/name`.
    pub repository: String,
    /// What it is called.
    pub name: &'static str,
    /// At GitHub.
    pub handle: JobHandle,
    /// How it has to end.
    pub expected: Expected,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.repository, self.name)
    }
}

impl Job {
    /// True when it ended as it has to, as the daemon tells it.
    #[must_use]
    pub fn ends_as_expected(&self, ours: &crate::api::Job) -> bool {
        match self.expected {
            Expected::Ends(conclusion) => {
                let word = format!("{conclusion:?}").to_lowercase();
                ours.state == "done" && ours.vm.is_some() && ours.conclusion.as_deref() == Some(word.as_str())
            }
            Expected::NeverRuns => ours.state == "cancelled" && ours.vm.is_none(),
        }
    }
}

/// How a job has to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// It runs, and ends so.
    Ends(Conclusion),
    /// It is cancelled before any runner has it.
    NeverRuns,
}

/// The story, begun.
#[derive(Debug)]
pub struct Story {
    /// All jobs, in the order in which they were queued.
    pub jobs: Vec<Job>,
    /// All repositories.
    pub repositories: Vec<Repo>,
    /// The secret of the job that deploys.
    pub canary: String,
}

/// Who installs the App.
pub fn install(github: &FakeGitHub) -> Vec<Installation> {
    ACCOUNTS.iter().map(|account| github.install(account, AccountKind::Organization)).collect()
}

impl Story {
    /// Queues all jobs. `label` is the profile's; `are_real`: steps run, so a job can fail by itself.
    pub fn begin(github: &FakeGitHub, installations: &[Installation], label: &str, are_real: bool) -> Self {
        let canary = format!("{CANARY_SHAPE}{:032x}", rand::rng().random::<u128>());
        let repositories: Vec<Repo> = installations
            .iter()
            .zip(["rocket-engine", "virology"])
            .map(|(installation, name)| github.repository(installation, name, Visibility::Private))
            .collect();
        let failed = if are_real { Conclusion::Failure } else { Conclusion::Success };
        let cast = [
            (1, "docs", JobScript::new().step("echo this never runs"), Expected::NeverRuns),
            (0, "build", build(), Expected::Ends(Conclusion::Success)),
            (0, "deploy", deploy(&canary), Expected::Ends(Conclusion::Success)),
            (0, "test", failing(), Expected::Ends(failed)),
            (1, "spy", spy(), Expected::Ends(Conclusion::Success)),
        ];
        let jobs = cast.map(|(repository, name, script, expected)| {
            let repository: &Repo = &repositories[repository];
            let handle = github.queue_job(repository, &["self-hosted", label], script.named(name));
            Job { repository: repository.full_name.clone(), name, handle, expected }
        });
        Self { jobs: jobs.into(), repositories, canary }
    }

    /// The job of this name.
    #[must_use]
    pub fn job(&self, name: &str) -> &Job {
        self.jobs.iter().find(|job| job.name == name).expect("the story has it")
    }
}

fn build() -> JobScript {
    JobScript::new()
        .step("uname -srm; grep -c ^processor /proc/cpuinfo")
        .step("echo 'int main(void) { return 0; }' > main.c; sha256sum main.c; sleep 1")
}

/// Leaves its secret wherever a careless job does: in files, in arguments, in the log.
fn deploy(canary: &str) -> JobScript {
    JobScript::new().secret("DEPLOY_KEY", canary).step(
        "echo \"deploying with $DEPLOY_KEY\"\n\
         for place in /tmp/key \"$HOME/key\" ./key; do echo \"$DEPLOY_KEY\" > \"$place\" || true; done\n\
         sh -c 'sleep 2' \"$DEPLOY_KEY\"\n\
         sync",
    )
}

fn failing() -> JobScript {
    JobScript::new().step("echo 'assertion failed: 1 + 1 == 3'; exit 1").step("echo this step is skipped")
}

/// Reads its machine's disks, raw, and every file, for what another job may have left there. The pattern does not
/// match itself. Zero bytes are left out: a disk is mostly those, and has few lines.
fn spy() -> JobScript {
    JobScript::new().step(format!(
        "pattern='{CANARY_SHAPE}[0-9a-f]\\{{32\\}}'; disks=0\n\
         for disk in /dev/vda /dev/vdb; do\n\
           [ -b \"$disk\" ] || continue\n\
           if tr -d '\\000' < \"$disk\" | grep -q -a \"$pattern\"; then echo \"a secret is on $disk\"; exit 1; fi\n\
           disks=$((disks + 1))\n\
         done\n\
         [ $disks -gt 0 ] || {{ echo 'no disk to read: nothing is proved'; exit 1; }}\n\
         found=$(find /tmp /root /home /opt /var -xdev -type f -exec grep -l -a \"$pattern\" {{}} + 2>/dev/null || true)\n\
         [ -z \"$found\" ] || {{ echo \"a secret is in $found\"; exit 1; }}\n\
         echo \"read $disks disk(s) and every file: nothing of another job here\""
    ))
}
