//! Runners: registration by JIT configuration, sessions, removal.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::World;
use super::model::{Runner, Scope, Session};
use crate::secret::{digest, random_token};

/// Why a session is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionRefusal {
    /// The JIT configuration was used before.
    Used,
    /// No such registration (any more).
    Gone,
    /// The runner's version is no longer served.
    Deprecated,
}

/// Why a runner is not removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalRefusal {
    /// No such runner.
    NotFound,
    /// It runs a job.
    Busy,
}

impl World {
    /// Registers a runner. `None`: the name is taken in this scope.
    pub fn register(&mut self, scope: Scope, group: u64, name: &str, labels: Vec<String>) -> Option<(u64, String)> {
        if self.runners.values().any(|r| r.scope == scope && r.name == name) {
            return None;
        }
        let token = random_token("jit_");
        let id = self.ids.small();
        let runner = Runner {
            id,
            name: name.into(),
            scope,
            group,
            labels,
            jit_digest: digest(&token),
            used: false,
            session: None,
            job: None,
            registered: Instant::now(),
            lingers_until: None,
            os: "unknown".into(),
            version: None,
        };
        self.runners.insert(id, runner);
        Some((id, token))
    }

    /// Opens the one session of a JIT configuration.
    pub fn open_session(&mut self, jit_token: &str, version: &str, os: &str) -> Result<String, SessionRefusal> {
        let wanted = digest(jit_token);
        let deprecated = self.switches.deprecated_runners;
        let runner = self.runners.values_mut().find(|r| r.jit_digest == wanted).ok_or(SessionRefusal::Gone)?;
        if runner.used {
            return Err(SessionRefusal::Used);
        }
        if deprecated {
            return Err(SessionRefusal::Deprecated);
        }
        let token = random_token("session_");
        runner.used = true;
        runner.version = Some(version.into());
        runner.os = os.into();
        let session = Session {
            digest: digest(&token),
            heard: Instant::now(),
            silent_since: None,
            ready: false,
            wake: Arc::new(Notify::new()),
        };
        self.sessions.insert(session.digest.clone(), runner.id);
        runner.session = Some(session);
        Ok(token)
    }

    /// The runner of a session's token; it has been heard of now.
    pub fn heard(&mut self, session_token: &str) -> Option<u64> {
        let id = *self.sessions.get(&digest(session_token))?;
        let session = self.runners.get_mut(&id)?.session.as_mut()?;
        session.heard = Instant::now();
        session.silent_since = None;
        Some(id)
    }

    /// A runner waits for a job: it may get one at once. Answers what wakes it; `None`: it is gone.
    pub fn ready(&mut self, id: u64) -> Option<Arc<Notify>> {
        let runner = self.runners.get_mut(&id)?;
        let idle = runner.job.is_none();
        let session = runner.session.as_mut()?;
        session.ready = idle;
        let wake = session.wake.clone();
        if idle {
            self.match_runner(id);
        }
        Some(wake)
    }

    /// A runner says good-bye: it is offline, and its registration stays.
    pub fn end_session(&mut self, id: u64) {
        let session = self.runners.get_mut(&id).and_then(|r| r.session.take());
        if let Some(session) = session {
            self.sessions.remove(&session.digest);
        }
    }

    /// Removes a runner that somebody asked to remove.
    pub fn delete_runner(&mut self, id: u64, scope: Scope) -> Result<(), RemovalRefusal> {
        let runner = self.runners.get(&id).filter(|r| r.scope == scope).ok_or(RemovalRefusal::NotFound)?;
        if runner.busy() {
            return Err(RemovalRefusal::Busy);
        }
        self.remove_runner(id);
        Ok(())
    }

    /// An ephemeral runner's job has ended: it goes, at once or after a while of looking busy.
    pub fn retire(&mut self, id: u64) {
        match self.switches.linger_ms {
            0 => self.remove_runner(id),
            ms => {
                let Some(runner) = self.runners.get_mut(&id) else {
                    return;
                };
                runner.job = None;
                runner.lingers_until = Some(Instant::now() + Duration::from_millis(ms));
                if let Some(session) = runner.session.take() {
                    self.sessions.remove(&session.digest);
                }
            }
        }
    }

    /// Forgets a runner and ends its session.
    pub fn remove_runner(&mut self, id: u64) {
        if let Some(session) = self.runners.remove(&id).and_then(|r| r.session) {
            self.sessions.remove(&session.digest);
            session.wake.notify_one();
        }
    }
}

impl Runner {
    /// It runs a job, or still looks as if it did.
    pub fn busy(&self) -> bool {
        self.job.is_some() || self.lingers_until.is_some()
    }

    /// Its session is alive.
    pub fn online(&self) -> bool {
        self.session.as_ref().is_some_and(|s| s.silent_since.is_none())
    }
}
