//! Runs the loops: each calls its `pass()` when it is woken or its period is over, until the daemon stops.

use crate::metrics::Metrics;
use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a loop waits after a pass that failed, at first; then twice as long each time.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// The longest such wait.
const LONGEST_RETRY: Duration = Duration::from_secs(15);

/// Whether a pass left something to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum More {
    /// Nothing until the next wake or period.
    No,
    /// Another pass is called for at once.
    Now,
    /// Another pass is called for soon: somebody else was faster.
    Soon,
}

/// How long `Soon` is. Several that lost a race to one another must not meet again.
const SOON: Duration = Duration::from_millis(20);

/// Owns the loops' tasks.
#[derive(Clone)]
pub struct Loops {
    tasks: TaskTracker,
    shutdown: CancellationToken,
    metrics: Arc<Metrics>,
}

impl Loops {
    /// Loops that end with `shutdown`.
    #[must_use]
    pub const fn new(tasks: TaskTracker, shutdown: CancellationToken, metrics: Arc<Metrics>) -> Self {
        Self { tasks, shutdown, metrics }
    }

    /// Starts a loop. A pass that fails is logged once until it succeeds again, and tried again.
    pub fn spawn<W, P, F, E>(&self, name: &'static str, period: Duration, woken: W, pass: P)
    where
        W: Wake,
        P: Fn() -> F + Send + 'static,
        F: Future<Output = Result<More, E>> + Send,
        E: Error + Send + 'static,
    {
        let (shutdown, metrics) = (self.shutdown.clone(), Arc::clone(&self.metrics));
        self.tasks.spawn(async move {
            let mut failures = 0_u32;
            while !shutdown.is_cancelled() {
                // A pass is short, and what it began it finishes: it is not cut off by a shutdown.
                let began = Instant::now();
                let outcome = pass().await;
                metrics.pass(name, began.elapsed(), outcome.is_ok());
                let rest = after(name, &outcome, &mut failures);
                let Some(rest) = rest else { continue };
                let period = rest.unwrap_or(period);
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = woken.wait(period, failures > 0) => {}
                }
            }
        });
    }
}

/// How long to rest after a pass: `None` not at all, `Some(None)` the loop's own period.
#[expect(clippy::option_option, reason = "the three cases are the three answers")]
fn after<E: Error + 'static>(
    name: &'static str,
    outcome: &Result<More, E>,
    failures: &mut u32,
) -> Option<Option<Duration>> {
    match outcome {
        Ok(more) => {
            if *failures > 0 {
                tracing::info!(task = name, failures, "the task works again");
            }
            *failures = 0;
            match more {
                More::No => Some(None),
                More::Now => None,
                More::Soon => Some(Some(SOON.mul_f64(rand::random_range(0.5..2.0)))),
            }
        }
        Err(error) => {
            if *failures == 0 {
                tracing::warn!(task = name, error = %crate::errors::chain(error), "the task failed; it is tried again until it works");
            }
            let wait = LONGEST_RETRY.min(FIRST_RETRY * 2_u32.saturating_pow((*failures).min(8)));
            *failures = failures.saturating_add(1);
            Some(Some(wait))
        }
    }
}

/// What wakes a loop before its period is over.
pub trait Wake: Send + 'static {
    /// Resolves at a wake or after `period`. After a failure only the period counts: a stream of wakes
    /// must not turn a broken database into a busy loop.
    fn wait(&self, period: Duration, failed: bool) -> impl Future<Output = ()> + Send;
}

/// Nothing: the loop lives by its period.
pub struct Never;

impl Wake for Never {
    async fn wait(&self, period: Duration, _failed: bool) {
        tokio::time::sleep(period).await;
    }
}

/// One of the [`crate::wake::Wakes`].
pub struct By(pub std::sync::Arc<crate::wake::Wakes>, pub fn(&crate::wake::Wakes) -> &Notify);

impl Wake for By {
    async fn wait(&self, period: Duration, failed: bool) {
        if failed {
            tokio::time::sleep(period).await;
        } else {
            crate::wake::wait((self.1)(&self.0), period).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_failing_pass_is_tried_again_with_growing_waits() {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let passes = Arc::new(AtomicU32::new(0));
        let (counted, stop) = (Arc::clone(&passes), shutdown.clone());
        let metrics = Arc::new(Metrics::new(chrono::Utc::now()));
        Loops::new(tasks.clone(), shutdown, metrics).spawn("test", Duration::from_secs(3600), Never, move || {
            let (counted, stop) = (Arc::clone(&counted), stop.clone());
            async move {
                if counted.fetch_add(1, Ordering::SeqCst) == 4 {
                    stop.cancel();
                    return Ok(More::No);
                }
                Err(std::io::Error::other("broken"))
            }
        });
        tasks.close();
        tasks.wait().await;
        assert_eq!(passes.load(Ordering::SeqCst), 5);
    }
}
