//! The verbs of [`FakeGitHub`] for tests: what people do at GitHub, questions about what came of it, and waits with
//! deadlines. A verb on something that does not exist panics: the story is wrong then.

use std::time::Duration;

use super::views::{DeliveryView, Installation, JobHandle, JobView, Repo, RunnerView};
use crate::fake::FakeGitHub;
use crate::hub::Late;
use crate::world::World;
use crate::world::model::{AccountKind, JobScript, Status, Visibility};
use crate::world::switches::{Failure, Switches};

impl World {
    /// [`World::install`], with a handle.
    pub fn installed(&mut self, account: &str, kind: AccountKind) -> Installation {
        let id = self.install(account, kind);
        Installation { id, account: account.into(), account_id: self.installations[&id].account }
    }

    /// [`World::add_repository`], with a handle.
    pub fn repository_handle(&mut self, installation: u64, name: &str, visibility: Visibility) -> Option<Repo> {
        let id = self.add_repository(installation, name, visibility)?;
        Some(Repo { id, full_name: self.full_name(&self.repositories[&id]), installation })
    }

    /// [`World::queue_job`], with a handle; `None`: no such repository.
    pub fn job_handle(&mut self, repository: u64, labels: Vec<String>, script: JobScript) -> Option<JobHandle> {
        self.repositories.get(&repository)?;
        let id = self.queue_job(repository, labels, script);
        Some(JobHandle { id, run_id: self.jobs[&id].run })
    }
}

/// What people do.
impl FakeGitHub {
    /// An account installs the App on all its repositories.
    pub fn install(&self, account: &str, kind: AccountKind) -> Installation {
        self.hub.change(|w| w.installed(account, kind))
    }

    /// The account gets a repository.
    pub fn repository(&self, of: &Installation, name: &str, visibility: Visibility) -> Repo {
        self.hub.change(|w| w.repository_handle(of.id, name, visibility)).expect("the installation exists")
    }

    /// A push queues a job.
    pub fn queue_job(&self, on: &Repo, labels: &[&str], script: JobScript) -> JobHandle {
        let labels = labels.iter().map(|l| (*l).to_owned()).collect();
        self.hub.change(|w| w.job_handle(on.id, labels, script)).expect("the repository exists")
    }

    /// Somebody cancels a job. False: it had ended.
    pub fn cancel(&self, job: JobHandle) -> bool {
        self.hub.change(|w| w.cancel(job.id))
    }

    /// A queued job's run ends with `startup_failure`, and the job stays queued for ever. False: a runner has it.
    pub fn kill_run(&self, job: JobHandle) -> bool {
        self.hub.change(|w| w.kill_run(job.id))
    }

    /// A queued job gets stuck at an environment's gate. False: a runner has it.
    pub fn wait_gate(&self, job: JobHandle) -> bool {
        self.hub.change(|w| w.wait_gate(job.id))
    }

    /// Somebody approves a job at its gate. False: it is not there.
    pub fn approve(&self, job: JobHandle) -> bool {
        self.hub.change(|w| w.approve(job.id))
    }

    /// Somebody runs an ended job again: a new attempt with a new job id.
    pub fn rerun(&self, job: JobHandle) -> JobHandle {
        let again = self.hub.change(|w| w.rerun(&[job.id])).expect("the job has ended");
        JobHandle { id: again[0], run_id: job.run_id }
    }

    /// GitHub takes a running job back into the queue. False: it does not run.
    pub fn requeue(&self, job: JobHandle) -> bool {
        self.hub.change(|w| w.requeue(job.id))
    }

    /// The account suspends the App.
    pub fn suspend(&self, installation: &Installation) {
        assert!(self.hub.change(|w| w.suspend(installation.id)), "no such installation");
    }

    /// The account lifts the suspension.
    pub fn unsuspend(&self, installation: &Installation) {
        assert!(self.hub.change(|w| w.unsuspend(installation.id)), "no such installation");
    }

    /// The account removes the App.
    pub fn uninstall(&self, installation: &Installation) {
        assert!(self.hub.change(|w| w.uninstall(installation.id)), "no such installation");
    }

    /// The account grants another level of a permission; `None` takes it away.
    pub fn grant(&self, installation: &Installation, permission: &str, level: Option<&str>) {
        assert!(self.hub.change(|w| w.grant(installation.id, permission, level)), "no such installation");
    }

    /// The organisation allows or forbids runners on single repositories.
    pub fn forbid_repository_runners(&self, installation: &Installation, forbid: bool) {
        let done = self.hub.change(|w| w.forbid_repository_runners(installation.id, forbid));
        assert!(done, "no such installation");
    }

    /// The organisation makes a runner group for some repositories. Answers the group's id.
    pub fn runner_group(&self, of: &Installation, name: &str, repositories: &[&Repo]) -> u64 {
        let ids = repositories.iter().map(|r| r.id).collect();
        self.hub.change(|w| w.add_group(of.account_id, name, Some(ids)))
    }

    /// The account changes its name.
    pub fn rename_account(&self, installation: &Installation, login: &str) {
        assert!(self.hub.change(|w| w.rename_account(installation.id, login)), "no such installation");
    }

    /// The repository changes its name.
    pub fn rename(&self, repo: &Repo, name: &str) {
        assert!(self.hub.change(|w| w.rename(repo.id, name)), "no such repository");
    }

    /// The repository becomes public.
    pub fn publicize(&self, repo: &Repo) {
        assert!(self.hub.change(|w| w.set_visibility(repo.id, Visibility::Public)), "no such repository");
    }

    /// The repository becomes private.
    pub fn privatize(&self, repo: &Repo) {
        assert!(self.hub.change(|w| w.set_visibility(repo.id, Visibility::Private)), "no such repository");
    }

    /// The repository moves to another installed account.
    pub fn transfer(&self, repo: &Repo, to: &Installation) {
        assert!(self.hub.change(|w| w.transfer(repo.id, to.id)), "no such repository or installation");
    }

    /// The repository is deleted.
    pub fn delete_repository(&self, repo: &Repo) {
        assert!(self.hub.change(|w| w.delete_repository(repo.id)), "no such repository");
    }

    /// The account takes the repository out of, or back into, what the App reaches.
    pub fn select(&self, repo: &Repo, selected: bool) {
        assert!(self.hub.change(|w| w.select(repo.id, selected)), "no such repository");
    }

    /// The operator changes what the App asks for (`("actions", "read")`) and subscribes to. Installations keep what
    /// they grant.
    pub fn change_app(&self, permissions: &[(&str, &str)], events: &[&str]) {
        let permissions = permissions.iter().map(|(n, l)| ((*n).into(), (*l).into())).collect();
        let events = events.iter().map(|e| (*e).into()).collect();
        self.hub.change(|w| w.change_app(permissions, events));
    }

    /// GitHub sends `ping`.
    pub fn ping(&self) {
        self.hub.change(World::ping);
    }

    /// Sends an event with any payload: for malformed, foreign and historic ones.
    pub fn send_event(&self, name: &'static str, payload: serde_json::Value) {
        self.hub.change(|w| w.send_event(name, payload));
    }

    /// Somebody removes a runner by hand, whatever it does.
    pub fn remove_runner(&self, id: u64) {
        self.hub.change(|w| w.remove_runner(id));
    }

    /// Turns switches.
    pub fn switch(&self, turn: impl FnOnce(&mut Switches)) {
        self.hub.change(|w| turn(&mut w.switches));
    }

    /// The next `times` calls of a route (`POST /app/installations/{installation_id}/access_tokens`) answer `status`,
    /// before or after they had their effect.
    pub fn fail_next(&self, route: &str, status: u16, times: u32, after_effect: bool) {
        let failure = Failure { route: route.into(), status, times, after_effect, retry_after_s: None };
        self.switch(|s| s.failures.push(failure));
    }

    /// Uses up an installation's hourly budget.
    pub fn exhaust(&self, installation: &Installation) {
        self.hub.change(|w| w.exhaust(&installation.id.to_string()));
    }

    /// Moves GitHub's clock, backwards with a negative number.
    pub fn move_clock(&self, seconds: i64) {
        self.hub.change(|w| w.move_clock(chrono::Duration::seconds(seconds)));
    }
}

/// What came of it.
impl FakeGitHub {
    /// A job as it is.
    pub fn job(&self, id: u64) -> Option<JobView> {
        self.hub.read(|w| JobView::of(w, id))
    }

    /// All jobs.
    pub fn jobs(&self) -> Vec<JobView> {
        self.hub.read(|w| w.jobs.keys().filter_map(|id| JobView::of(w, *id)).collect())
    }

    /// What a job's runner streamed.
    pub fn logs(&self, job: JobHandle) -> Vec<String> {
        self.hub.read(|w| w.jobs[&job.id].log.clone())
    }

    /// The runners registered on a repository.
    pub fn runners(&self, repo: &Repo) -> Vec<RunnerView> {
        self.all_runners().into_iter().filter(|r| r.repository == Some(repo.id)).collect()
    }

    /// Every registered runner.
    pub fn all_runners(&self) -> Vec<RunnerView> {
        self.hub.read(|w| w.runners.values().map(RunnerView::of).collect())
    }

    /// Attempts to deliver, oldest first.
    pub fn deliveries(&self) -> Vec<DeliveryView> {
        self.hub.read(|w| w.log.iter().map(DeliveryView::of).collect())
    }

    /// Sends a delivery again, as the button in GitHub's settings does. False: no such attempt in the log.
    pub fn redeliver(&self, id: u64) -> bool {
        let Some(delivery) = self.hub.read(|w| w.attempt(id).map(|r| r.delivery.clone())) else {
            return false;
        };
        self.hub.wiring.redeliveries.send(crate::webhooks::sender::Redelivery { delivery }).is_ok()
    }

    /// How often a route was called: `GET /app`, `DELETE /repos/{owner}/{repo}/actions/runners/{runner_id}`.
    pub fn requests(&self, route: &str) -> u64 {
        self.hub.read(|w| w.requests.get(route).copied().unwrap_or_default())
    }
}

/// Waits.
impl FakeGitHub {
    /// Waits for a job's end.
    pub async fn job_completed(&self, id: u64, within: Duration) -> Result<JobView, Late> {
        self.job_reached(id, Status::Completed, within).await
    }

    /// Waits until a job is somewhere.
    pub async fn job_reached(&self, id: u64, status: Status, within: Duration) -> Result<JobView, Late> {
        let what = format!("job {id} {}", status.word());
        self.hub.wait(&what, within, |w| JobView::of(w, id).filter(|j| j.status == status)).await
    }

    /// Waits until every event was sent (or dropped) and answered. Answers how many attempts failed.
    pub async fn deliveries_settled(&self, within: Duration) -> Result<usize, Late> {
        self.hub.settled(within).await
    }

    /// Waits until no runner is registered.
    pub async fn no_runners(&self, within: Duration) -> Result<(), Late> {
        self.hub.wait("no runner registered", within, |w| w.runners.is_empty().then_some(())).await
    }

    /// Waits until `look` answers something; `what` names it when the deadline passes.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        within: Duration,
        look: impl FnMut(&World) -> Option<T>,
    ) -> Result<T, Late> {
        self.hub.wait(what, within, look).await
    }
}
