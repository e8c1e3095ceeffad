//! Jobs: queueing, gates, which runner gets which job, cancelling, ending, running again.

use std::time::Instant;

use super::World;
use super::model::{Job, JobScript, NamedRunner, Repository, Run, Runner, Scope, Status, Step};
use crate::protocol::{Complete, Conclusion, JobMessage, StepReport};
use crate::webhooks::payload;

/// Lines of output kept per job; what comes later is dropped.
pub const LOG_LIMIT: usize = 50_000;

impl World {
    /// Queues a job in a new run, as a push would.
    pub fn queue_job(&mut self, repository: u64, labels: Vec<String>, script: JobScript) -> u64 {
        let run = self.ids.run();
        let created_at = self.now();
        let found = self.repositories.get_mut(&repository).expect("the caller looked it up");
        found.runs += 1;
        let number = found.runs;
        let made = Run { id: run, repository, number, attempt: 1, dead: false, jobs: Vec::new(), created_at };
        self.runs.insert(run, made);
        self.add_job(run, labels, script)
    }

    fn add_job(&mut self, run: u64, labels: Vec<String>, script: JobScript) -> u64 {
        let id = self.ids.job();
        let found = self.runs.get_mut(&run).expect("made before its jobs");
        found.jobs.push(id);
        let (repository, attempt) = (found.repository, found.attempt);
        let gated = script.gated;
        let job = Job {
            id,
            run,
            attempt,
            repository,
            name: script.name.clone().unwrap_or_else(|| "build".into()),
            labels,
            script,
            status: if gated { Status::Waiting } else { Status::Queued },
            conclusion: None,
            runner: None,
            steps: Vec::new(),
            log: Vec::new(),
            note: None,
            cancel_at: None,
            created_at: self.now(),
            started_at: None,
            completed_at: None,
        };
        self.jobs.insert(id, job);
        // Seen in GitHub's own examples: a gated job is told twice, first as `queued` with status `waiting`.
        self.tell_job(id, "queued");
        if gated {
            self.tell_job(id, "waiting");
        } else {
            self.queued.insert(id);
            self.match_job(id);
        }
        id
    }

    /// Ends a queued job's run with `startup_failure`, as GitHub has been seen to do: nobody is told, and the job stays
    /// queued for ever.
    pub fn kill_run(&mut self, id: u64) -> bool {
        if !self.queued.remove(&id) {
            return false;
        }
        let run = self.jobs[&id].run;
        self.runs.get_mut(&run).expect("a job's run exists").dead = true;
        true
    }

    /// Puts a queued job that nobody runs yet before a gate.
    pub fn wait_gate(&mut self, id: u64) -> bool {
        if !self.queued.remove(&id) {
            // Unknown, taken, or reserved for a runner.
            return false;
        }
        self.job_mut(id).status = Status::Waiting;
        self.tell_job(id, "waiting");
        true
    }

    /// Opens the gate of a waiting job.
    pub fn approve(&mut self, id: u64) -> bool {
        if self.jobs.get(&id).is_none_or(|j| j.status != Status::Waiting) {
            return false;
        }
        self.job_mut(id).status = Status::Queued;
        self.queued.insert(id);
        self.tell_job(id, "queued");
        self.match_job(id);
        true
    }

    /// Cancels a job: at once if nobody runs it, else its runner is told.
    pub fn cancel(&mut self, id: u64) -> bool {
        let Some(job) = self.jobs.get_mut(&id) else {
            return false;
        };
        match job.status {
            Status::Completed => false,
            Status::InProgress => {
                job.cancel_at.get_or_insert_with(Instant::now);
                true
            }
            Status::Waiting | Status::Queued => {
                self.end_job(id, Conclusion::Cancelled, None);
                true
            }
        }
    }

    /// Runs completed jobs of one run again: a new attempt of the run, with new job ids. `None`: some are not completed.
    pub fn rerun(&mut self, ids: &[u64]) -> Option<Vec<u64>> {
        let jobs: Vec<&Job> = ids.iter().filter_map(|id| self.jobs.get(id)).collect();
        let run = jobs.first()?.run;
        if jobs.iter().any(|j| j.status != Status::Completed || j.run != run) {
            return None;
        }
        let again: Vec<_> = jobs.iter().map(|j| (j.labels.clone(), j.script.clone())).collect();
        self.runs.get_mut(&run).expect("a job's run exists").attempt += 1;
        Some(again.into_iter().map(|(labels, script)| self.add_job(run, labels, script)).collect())
    }

    /// A runner may take jobs of a repository.
    pub fn serves(&self, runner: &Runner, repository: &Repository) -> bool {
        match runner.scope {
            Scope::Repository(id) => id == repository.id,
            Scope::Organization(org) => {
                let group = self.group(runner);
                org == repository.owner
                    && group.repositories.as_ref().is_none_or(|r| r.contains(&repository.id))
                    && (group.allows_public || repository.visibility == super::model::Visibility::Private)
            }
        }
    }

    fn fits(&self, runner: &Runner, job: &Job) -> bool {
        self.serves(runner, &self.repositories[&job.repository])
            && job.labels.iter().all(|want| runner.labels.iter().any(|has| has.eq_ignore_ascii_case(want)))
    }

    /// Gives a queued job to an idle runner, if there is one.
    pub fn match_job(&mut self, id: u64) {
        let job = &self.jobs[&id];
        let idle = |r: &&Runner| r.job.is_none() && r.session.as_ref().is_some_and(|s| s.ready);
        let Some(runner) = self.runners.values().filter(idle).find(|r| self.fits(r, job)).map(|r| r.id) else {
            return;
        };
        self.assign(id, runner);
    }

    /// Gives the oldest queued job that fits to a runner, if there is one.
    pub fn match_runner(&mut self, id: u64) {
        let runner = &self.runners[&id];
        if runner.job.is_some() {
            return;
        }
        let Some(job) = self.queued.iter().copied().find(|job| self.fits(runner, &self.jobs[job])) else {
            return;
        };
        self.assign(job, id);
    }

    /// Reserves a job for a runner and wakes the runner's poll; the job begins when the poll fetches it.
    fn assign(&mut self, job_id: u64, runner_id: u64) {
        let runner = self.runners.get_mut(&runner_id).expect("matched among the registered");
        runner.job = Some(job_id);
        let session = runner.session.as_mut().expect("only a runner with a session is matched");
        session.ready = false;
        session.wake.notify_one();
        self.queued.remove(&job_id);
    }

    /// The runner fetches the job that is reserved for it: the job begins.
    pub fn fetch(&mut self, runner_id: u64) -> Option<JobMessage> {
        let now = self.now();
        let runner = self.runners.get(&runner_id)?;
        let job_id = runner.job?;
        let named = self.name_runner(runner);
        let job = self.job_mut(job_id);
        if job.status != Status::Queued {
            return Some(self.job_message(job_id));
        }
        job.status = Status::InProgress;
        job.started_at = Some(now);
        job.runner = Some(named);
        job.steps.push(Step {
            name: "Set up job".into(),
            number: 1,
            status: Status::InProgress,
            conclusion: None,
            started_at: Some(now),
            completed_at: None,
        });
        self.tell_job(job_id, "in_progress");
        Some(self.job_message(job_id))
    }

    /// A runner's poll was cut: it gets nothing until its next, and what was reserved for it goes back to the queue.
    pub fn unready(&mut self, runner_id: u64) {
        let Some(runner) = self.runners.get_mut(&runner_id) else {
            return;
        };
        if let Some(session) = runner.session.as_mut() {
            session.ready = false;
        }
        let Some(job) = runner.job else { return };
        if self.jobs[&job].status == Status::Queued {
            self.runners.get_mut(&runner_id).expect("found above").job = None;
            self.queued.insert(job);
            self.match_job(job);
        }
    }

    fn name_runner(&self, runner: &Runner) -> NamedRunner {
        let group = self.group(runner);
        NamedRunner { id: runner.id, name: runner.name.clone(), group_id: group.id, group_name: group.name.clone() }
    }

    fn job_message(&self, id: u64) -> JobMessage {
        let job = &self.jobs[&id];
        JobMessage {
            job_id: id,
            name: job.name.clone(),
            repository: self.full_name(&self.repositories[&job.repository]),
            steps: job.script.steps.clone(),
            secrets: job.script.secrets.clone(),
        }
    }

    /// A step began or ended.
    pub fn report_step(&mut self, id: u64, report: &StepReport) {
        let now = self.now();
        let job = self.job_mut(id);
        finish_open_step(job, 1, Conclusion::Success, now);
        let Some(script) = job.script.steps.get(report.number.wrapping_sub(1)) else {
            return;
        };
        let (name, number) = (script.name.clone(), report.number + 1);
        match report.conclusion {
            Some(conclusion) if job.steps.iter().any(|s| s.number == number) => {
                finish_open_step(job, number, conclusion, now);
            }
            conclusion => job.steps.push(Step {
                name,
                number,
                status: if conclusion.is_some() { Status::Completed } else { Status::InProgress },
                conclusion,
                started_at: Some(now),
                completed_at: conclusion.map(|_| now),
            }),
        }
    }

    /// Keeps a job's output, up to [`LOG_LIMIT`] lines.
    pub fn append_log(&mut self, id: u64, lines: Vec<String>) {
        let log = &mut self.job_mut(id).log;
        let room = LOG_LIMIT.saturating_sub(log.len());
        log.extend(lines.into_iter().take(room));
    }

    /// The runner says that its job ended; an ephemeral runner is gone with it.
    pub fn complete(&mut self, runner_id: u64, complete: Complete) -> bool {
        let Some(job) = self.runners.get(&runner_id).and_then(|r| r.job) else {
            return false;
        };
        let cancelled = self.jobs[&job].cancel_at.is_some();
        self.end_job(job, if cancelled { Conclusion::Cancelled } else { complete.conclusion }, None);
        self.retire(runner_id);
        true
    }

    /// Ends a job, whatever its state.
    pub fn end_job(&mut self, id: u64, conclusion: Conclusion, note: Option<&str>) {
        let now = self.now();
        self.queued.remove(&id);
        let zero = self.switches.cancelled_names_runner_zero;
        let job = self.job_mut(id);
        if job.status == Status::Completed {
            return;
        }
        for number in job.steps.iter().map(|s| s.number).collect::<Vec<_>>() {
            finish_open_step(job, number, conclusion, now);
        }
        if job.status == Status::Queued {
            self.runners.values_mut().filter(|r| r.job == Some(id)).for_each(|r| r.job = None);
        }
        let job = self.job_mut(id);
        if job.runner.is_none() && zero {
            job.runner = Some(NamedRunner { id: 0, name: String::new(), group_id: 0, group_name: String::new() });
        }
        job.status = Status::Completed;
        job.conclusion = Some(conclusion);
        job.completed_at = Some(now);
        job.note = note.map(Into::into);
        self.tell_job(id, "completed");
    }

    /// GitHub changes its mind, as it does when a runner vanishes before it begins: a running job is queued again.
    pub fn requeue(&mut self, id: u64) -> bool {
        let Some(job) = self.jobs.get_mut(&id).filter(|j| j.status == Status::InProgress) else {
            return false;
        };
        job.status = Status::Queued;
        job.started_at = None;
        job.steps.clear();
        let runner = job.runner.take();
        if let Some(runner) = runner {
            self.remove_runner(runner.id);
        }
        self.queued.insert(id);
        self.tell_job(id, "queued");
        self.match_job(id);
        true
    }

    pub(crate) fn job_mut(&mut self, id: u64) -> &mut Job {
        self.jobs.get_mut(&id).expect("the job exists: ids are never removed")
    }

    fn tell_job(&mut self, id: u64, action: &'static str) {
        let job = &self.jobs[&id];
        let repository = &self.repositories[&job.repository];
        let Some(installation) = self.installation_hearing(repository) else {
            return;
        };
        let event = payload::workflow_job(self, job, repository, installation, action);
        self.emit(event);
    }
}

fn finish_open_step(job: &mut Job, number: usize, conclusion: Conclusion, now: chrono::DateTime<chrono::Utc>) {
    let open = job.steps.iter_mut().find(|s| s.number == number && s.status == Status::InProgress);
    if let Some(step) = open {
        step.status = Status::Completed;
        step.conclusion = Some(conclusion);
        step.completed_at = Some(now);
    }
}
