//! The verbs as data, for `POST /_control/do`: `{ "do": "cancel", "job": 1 }`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::world::World;
use crate::world::model::{AccountKind, JobScript, Visibility};

/// A verb: what somebody does.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Verb {
    /// Answers an installation.
    Install { account: String, kind: AccountKind },
    /// Answers a repository.
    Repository { installation: u64, name: String, visibility: Visibility },
    /// Answers a job handle.
    QueueJob { repository: u64, labels: Vec<String>, script: JobScript },
    /// Cancels a job.
    Cancel { job: u64 },
    /// Ends a queued job's run with `startup_failure`; the job stays queued.
    KillRun { job: u64 },
    /// Puts a job before a gate.
    WaitGate { job: u64 },
    /// Lets it through.
    Approve { job: u64 },
    /// Answers the new job's id.
    Rerun { job: u64 },
    /// Takes a running job back into the queue.
    Requeue { job: u64 },
    /// Suspends an installation.
    Suspend { installation: u64 },
    /// Lifts the suspension.
    Unsuspend { installation: u64 },
    /// Removes the App.
    Uninstall { installation: u64 },
    /// Changes a granted permission; without a level it is taken away.
    Grant { installation: u64, permission: String, level: Option<String> },
    /// Allows or forbids runners on single repositories.
    ForbidRepositoryRunners { installation: u64, forbid: bool },
    /// Answers the group's id.
    RunnerGroup { account: u64, name: String, repositories: BTreeSet<u64> },
    /// Renames an account.
    RenameAccount { installation: u64, login: String },
    /// Renames a repository.
    Rename { repository: u64, name: String },
    /// Makes it public or private.
    SetVisibility { repository: u64, visibility: Visibility },
    /// Moves it to another account.
    Transfer { repository: u64, installation: u64 },
    /// Deletes it.
    DeleteRepository { repository: u64 },
    /// Takes it out of, or into, the installation.
    Select { repository: u64, selected: bool },
    /// Removes a runner.
    RemoveRunner { runner: u64 },
    /// Changes what the App asks for and subscribes to.
    ChangeApp { permissions: BTreeMap<String, String>, events: Vec<String> },
    /// Sends `ping`.
    Ping,
    /// Sends an event with any payload.
    SendEvent { event: String, payload: Value },
    /// Moves GitHub's clock.
    MoveClock { seconds: i64 },
    /// Uses up an installation's hourly budget.
    Exhaust { installation: u64 },
}

impl Verb {
    /// Does it. Answers what it made, or null; `None`: it could not be done.
    pub fn act(self, w: &mut World) -> Option<Value> {
        match self {
            Self::Install { account, kind } => Some(json!(w.installed(&account, kind))),
            Self::Repository { installation, name, visibility } => {
                w.repository_handle(installation, &name, visibility).map(|r| json!(r))
            }
            Self::QueueJob { repository, labels, script } => w.job_handle(repository, labels, script).map(|j| json!(j)),
            Self::Rerun { job } => w.rerun(&[job]).map(|ids| json!(ids[0])),
            Self::RunnerGroup { account, name, repositories } => {
                let known = w.accounts.contains_key(&account);
                known.then(|| json!(w.add_group(account, &name, Some(repositories))))
            }
            Self::RemoveRunner { runner } => Some(json!(w.remove_runner(runner))),
            Self::SendEvent { event, payload } => Some(json!(w.send_event(event, payload))),
            Self::ChangeApp { permissions, events } => Some(json!(w.change_app(permissions, events))),
            Self::Ping => Some(json!(w.ping())),
            Self::MoveClock { seconds } => Some(json!(w.move_clock(chrono::Duration::seconds(seconds)))),
            Self::Exhaust { installation } => Some(json!(w.exhaust(&installation.to_string()))),
            change => change.done(w).then_some(Value::Null),
        }
    }

    /// The verbs that say no more than whether they were done.
    fn done(self, w: &mut World) -> bool {
        match self {
            Self::Cancel { job } => w.cancel(job),
            Self::KillRun { job } => w.kill_run(job),
            Self::WaitGate { job } => w.wait_gate(job),
            Self::Approve { job } => w.approve(job),
            Self::Requeue { job } => w.requeue(job),
            Self::Suspend { installation } => w.suspend(installation),
            Self::Unsuspend { installation } => w.unsuspend(installation),
            Self::Uninstall { installation } => w.uninstall(installation),
            Self::Grant { installation, permission, level } => w.grant(installation, &permission, level.as_deref()),
            Self::ForbidRepositoryRunners { installation, forbid } => w.forbid_repository_runners(installation, forbid),
            Self::RenameAccount { installation, login } => w.rename_account(installation, &login),
            Self::Rename { repository, name } => w.rename(repository, &name),
            Self::SetVisibility { repository, visibility } => w.set_visibility(repository, visibility),
            Self::Transfer { repository, installation } => w.transfer(repository, installation),
            Self::DeleteRepository { repository } => w.delete_repository(repository),
            Self::Select { repository, selected } => w.select(repository, selected),
            answered => unreachable!("{answered:?} has an answer of its own"),
        }
    }
}
