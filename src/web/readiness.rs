//! Whether this gateway can do its work, as one word for load balancers and people.
//!
//! What is asked of the database is asked by a loop, so that who calls `/readyz` costs it nothing.

use crate::errors::chain;
use crate::store::views;
use sqlx::PgPool;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the database is asked whether it answers.
const PERIOD: Duration = Duration::from_secs(2);
/// It must answer by then.
const DEADLINE: Duration = Duration::from_secs(2);

/// What readiness is made of. Shared: `web` reads it, the loops that know write it.
#[derive(Default)]
pub struct Readiness {
    database: AtomicBool,
    github: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    /// Whether the database answers.
    pub fn set_database(&self, answers: bool) {
        self.database.store(answers, Ordering::Relaxed);
    }

    /// Whether GitHub gives us tokens.
    pub fn set_github(&self, gives_tokens: bool) {
        self.github.store(gives_tokens, Ordering::Relaxed);
    }

    /// Whether this process is going down, and wants no new work.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// `ready`, or what it is not ready for: `draining`, `database`, `github`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        if self.draining.load(Ordering::Relaxed) {
            "draining"
        } else if !self.database.load(Ordering::Relaxed) {
            "database"
        } else if !self.github.load(Ordering::Relaxed) {
            "github"
        } else {
            "ready"
        }
    }

    /// True when deliveries can be taken and runners minted.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.word() == "ready"
    }

    /// Asks the database, until `stop`.
    pub async fn watch_database(&self, pool: PgPool, stop: CancellationToken) {
        let mut was = None;
        loop {
            let answers = self.pass(&pool).await;
            if was.is_some_and(|was| was != answers) || (was.is_none() && !answers) {
                tracing::warn!(answers, "the database {}", if answers { "answers again" } else { "does not answer" });
            }
            was = Some(answers);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    /// Asks the database once.
    async fn pass(&self, pool: &PgPool) -> bool {
        let answers = match tokio::time::timeout(DEADLINE, views::ping(pool)).await {
            Ok(Ok(())) => true,
            Err(_) => false,
            Ok(Err(error)) => {
                tracing::debug!("the database was asked in vain: {}", chain(&error));
                false
            }
        };
        self.set_database(answers);
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_says_what_is_missing() {
        let readiness = Readiness::default();
        assert_eq!(readiness.word(), "database");
        readiness.set_database(true);
        assert_eq!(readiness.word(), "github");
        readiness.set_github(true);
        assert!(readiness.is_ready());
        readiness.set_draining(true);
        assert_eq!(readiness.word(), "draining");
    }
}
