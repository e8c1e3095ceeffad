//! The switches that make the simulated GitHub misbehave: lost and repeated deliveries, failing and slow calls, limits,
//! deprecated runners. Data only; `/_control/switches` reads and writes it as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything that can be switched. The default is a well-behaved GitHub with its documented limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Switches {
    /// How webhooks get lost.
    pub deliveries: DeliverySwitches,
    /// Calls that fail; a rule whose `times` reached 0 is gone.
    pub failures: Vec<Failure>,
    /// Extra time before a route answers, in milliseconds, by route (`GET /app`).
    pub latency_ms: BTreeMap<String, u64>,
    /// Every API call answers 503.
    pub outage: bool,
    /// Calls per hour and installation.
    pub primary_limit: u32,
    /// JIT configurations per hour and installation.
    pub registration_limit: u32,
    /// Points per minute and installation (GET 1, others 5); absent: not counted. GitHub's own figure is 900.
    pub points_per_minute: Option<u32>,
    /// The next calls meet the secondary limit.
    pub secondary: Option<Secondary>,
    /// Runners are told that their version is deprecated.
    pub deprecated_runners: bool,
    /// A JIT runner that got no job is removed after this long, in milliseconds.
    pub idle_runner_ms: u64,
    /// A runner that is silent this long is offline, in milliseconds.
    pub silence_ms: u64,
    /// A job whose runner is silent this much longer fails as lost, in milliseconds.
    pub lost_after_ms: u64,
    /// A runner looks busy this long after its job ended, in milliseconds.
    pub linger_ms: u64,
    /// A cancelled job that its runner does not end is ended after this long, in milliseconds.
    pub cancel_grace_ms: u64,
    /// A job cancelled in the queue names runner 0 instead of none.
    pub cancelled_names_runner_zero: bool,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            deliveries: DeliverySwitches::default(),
            failures: Vec::new(),
            latency_ms: BTreeMap::new(),
            outage: false,
            primary_limit: 5_000,
            registration_limit: 10_000,
            points_per_minute: None,
            secondary: None,
            deprecated_runners: false,
            idle_runner_ms: 300_000,
            silence_ms: 15_000,
            lost_after_ms: 30_000,
            linger_ms: 0,
            cancel_grace_ms: 300_000,
            cancelled_names_runner_zero: false,
        }
    }
}

impl Switches {
    /// [`Switches::idle_runner_ms`] as a duration.
    pub fn idle_runner(&self) -> Duration {
        Duration::from_millis(self.idle_runner_ms)
    }

    /// [`Switches::silence_ms`] as a duration.
    pub fn silence(&self) -> Duration {
        Duration::from_millis(self.silence_ms)
    }

    /// [`Switches::lost_after_ms`] as a duration.
    pub fn lost_after(&self) -> Duration {
        Duration::from_millis(self.lost_after_ms)
    }

    /// [`Switches::cancel_grace_ms`] as a duration.
    pub fn cancel_grace(&self) -> Duration {
        Duration::from_millis(self.cancel_grace_ms)
    }
}

/// How webhooks get lost, late, doubled and out of order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliverySwitches {
    /// The next deliveries are not sent.
    pub drop_next: u32,
    /// This part of all deliveries is not sent, 0 to 1.
    pub drop_fraction: f64,
    /// A dropped delivery is not even in the delivery log.
    pub drop_without_trace: bool,
    /// Each delivery is sent this many times more, with the same GUID.
    pub repeat: u32,
    /// Each delivery waits this long, in milliseconds.
    pub delay_ms: u64,
    /// So many deliveries (or those of 200 ms) are collected and shuffled; 0 and 1: in order.
    pub reorder: usize,
    /// Seed of what is dropped and how it is shuffled.
    pub seed: u64,
}

/// Calls that fail on purpose.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Method and template, as `POST /app/installations/{installation_id}/access_tokens`.
    pub route: String,
    /// The status that is answered.
    pub status: u16,
    /// How many calls.
    pub times: u32,
    /// The call has its effect and only its answer is lost.
    #[serde(default)]
    pub after_effect: bool,
    /// Sent as `retry-after`, in seconds.
    #[serde(default)]
    pub retry_after_s: Option<u64>,
}

/// GitHub's secondary limit, for the next calls.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secondary {
    /// How many calls are refused.
    pub times: u32,
    /// Sent as `retry-after`, in seconds.
    pub retry_after_s: u64,
}
