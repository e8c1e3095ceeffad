//! What Prometheus reads. Labels are closed lists, profiles and hosts: never a tenant, a repository,
//! a person or a runner.
//!
//! What this process does itself is counted as it happens. What the tables know (jobs and vms by
//! state, the times of each step) is read when Prometheus asks, in constant work: totals over what
//! lives, and the vms that ended since it last asked. Each process that is asked tells it, so over
//! several gateways take the maximum, not the sum.

use crate::domain::reason::{VmEnd, words};
use crate::domain::vm::VmState;
use crate::errors::chain;
use crate::store::views::{self, Cursor, GoneVm};
use crate::store::{Result, StoreError, delivery_log};
use chrono::{DateTime, Utc};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use sqlx::PgPool;
use std::fmt::{self, Write};
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use uuid::Uuid;

/// The content type of the answer.
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the steps' times in seconds: from a warm claim to the longest job.
const STEP_BUCKETS: [f64; 20] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0,
    7200.0, 21600.0,
];
/// Upper bounds of calls and passes in seconds.
const CALL_BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// Vms that are read at once.
const PAGE: i64 = 1000;
/// Pages that one scrape reads; what is beyond comes with the next.
const MAX_PAGES: u32 = 10;
/// No statement lasts longer, so a vm that ended before that is in sight.
const SETTLE_S: f64 = 5.0;
/// The database must have answered by then; Prometheus itself waits for ten seconds.
const SCRAPE_DEADLINE: Duration = Duration::from_secs(5);

words! {
    /// What became of a delivery.
    DeliveryOutcome {
        /// Its effect is committed.
        Applied = "applied",
        /// It was applied before.
        Repeated = "repeated",
        /// It calls for nothing.
        Ignored = "ignored",
        /// It is GitHub's, and this version does not understand it.
        NotUnderstood = "not_understood",
        /// It was not signed with our secret.
        BadSignature = "bad_signature",
        /// Its sender signed wrongly too often.
        Limited = "limited",
        /// Its sender is not on the list of who may deliver.
        NotAllowed = "not_allowed",
        /// It is no JSON, or lacks a header.
        Malformed = "malformed",
        /// Its body was too large, too slow, or too much beside the others.
        Unread = "unread",
        /// The database was away.
        Unavailable = "unavailable",
    }
}

words! {
    /// A step of a vm's life, from one time to another.
    Step {
        /// From the job's demand to the vm's plan. Not of a warm vm.
        QueuedToPlanned = "queued_to_planned",
        /// Cloning.
        PlannedToCloned = "planned_to_cloned",
        /// Starting the process.
        ClonedToBooted = "cloned_to_booted",
        /// Booting.
        BootedToReady = "booted_to_ready",
        /// Waiting for a class; long for a warm vm.
        ReadyToBound = "ready_to_bound",
        /// Having GitHub make the runner.
        BoundToMinted = "bound_to_minted",
        /// Starting the runner in the guest.
        MintedToServing = "minted_to_serving",
        /// Destroying.
        StoppingToGone = "stopping_to_gone",
        /// From the job's demand to GitHub saying that our runner has it.
        QueuedToRunning = "queued_to_running",
    }
}

macro_rules! label_values {
    ($($name:ident),+) => {$(
        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::result::Result<(), fmt::Error> {
                encoder.write_str(self.as_str())
            }
        }
    )+};
}
label_values!(DeliveryOutcome, Step);

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByOutcome {
    outcome: DeliveryOutcome,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByStep {
    step: Step,
    profile: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByEnd {
    host: String,
    profile: String,
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByProfileState {
    profile: String,
    state: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByHostState {
    host: String,
    state: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByHost {
    host: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByCall {
    route: &'static str,
    status: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByRoute {
    route: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByPass {
    pass: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByConnection {
    state: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ByAge {
    age: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The metrics of this process. One for the process, behind an `Arc`.
pub struct Metrics {
    registry: Registry,
    deliveries: Family<ByOutcome, Counter>,
    steps: Histograms<ByStep>,
    ends: Family<ByEnd, Counter>,
    jobs: Family<ByProfileState, Gauge>,
    vms: Family<ByHostState, Gauge>,
    slots: Family<ByHost, Gauge>,
    draining: Family<ByHost, Gauge>,
    silent: Family<ByHost, Gauge<f64, AtomicU64>>,
    calls: Family<ByCall, Counter>,
    call_times: Histograms<ByRoute>,
    passes: Histograms<ByPass>,
    pass_errors: Family<ByPass, Counter>,
    connections: Family<ByConnection, Gauge>,
    database_up: Gauge,
    pull_lag: Histogram,
    delivery_ages: Family<ByAge, Gauge<f64, AtomicU64>>,
    missed: Gauge,
    /// The last vm whose end was told. Held while the tables are read: scrapes come one after the other.
    told: tokio::sync::Mutex<Cursor>,
}

impl Metrics {
    /// Metrics that tell of vms that end from `since` on: when the process started.
    #[must_use]
    pub fn new(since: DateTime<Utc>) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("flyci"),
            deliveries: Family::default(),
            steps: Family::new_with_constructor(|| Histogram::new(STEP_BUCKETS)),
            ends: Family::default(),
            jobs: Family::default(),
            vms: Family::default(),
            slots: Family::default(),
            draining: Family::default(),
            silent: Family::default(),
            calls: Family::default(),
            call_times: Family::new_with_constructor(|| Histogram::new(CALL_BUCKETS)),
            passes: Family::new_with_constructor(|| Histogram::new(CALL_BUCKETS)),
            pass_errors: Family::default(),
            connections: Family::default(),
            database_up: Gauge::default(),
            pull_lag: Histogram::new(CALL_BUCKETS),
            delivery_ages: Family::default(),
            missed: Gauge::default(),
            told: tokio::sync::Mutex::new(Cursor { at: since, id: Uuid::nil() }),
        };
        metrics.register_own();
        metrics.register_read();
        // Every outcome is there from the start, so that its first occurrence is seen as a rise.
        for outcome in DeliveryOutcome::ALL {
            let _ = metrics.deliveries.get_or_create(&ByOutcome { outcome: *outcome });
        }
        metrics
    }

    /// What this process counts itself.
    fn register_own(&mut self) {
        let registry = &mut self.registry;
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that runs", build);
        registry.register("deliveries", "Deliveries, by what became of them", self.deliveries.clone());
        registry.register("github_calls", "Calls to GitHub, by route template and status", self.calls.clone());
        let help = "How long GitHub took to answer";
        registry.register_with_unit("github_call", help, Unit::Seconds, self.call_times.clone());
        registry.register_with_unit("pass", "How long a loop's pass took", Unit::Seconds, self.passes.clone());
        registry.register("pass_errors", "Passes that failed", self.pass_errors.clone());
        let help = "From GitHub's attempt to a pulled delivery's effect";
        registry.register_with_unit("pull_lag", help, Unit::Seconds, self.pull_lag.clone());
        let help = "Connections to the database, by use";
        registry.register("database_connections", help, self.connections.clone());
        let help = "1 while the database answers; while it does not, what is read from it is missing";
        registry.register("database_up", help, self.database_up.clone());
    }

    /// What the tables know.
    fn register_read(&mut self) {
        let registry = &mut self.registry;
        let help = "How long each step of a vm took, of vms that ended";
        registry.register_with_unit("vm_step", help, Unit::Seconds, self.steps.clone());
        registry.register("vms_ended", "Vms that ended, by reason", self.ends.clone());
        registry.register("jobs", "Jobs that are not over", self.jobs.clone());
        registry.register("vms", "Vms that live", self.vms.clone());
        registry.register("host_slots", "Vms that the host can have at once", self.slots.clone());
        registry.register("host_draining", "1 while the host takes no new work", self.draining.clone());
        let help = "How long ago the host was heard of";
        registry.register_with_unit("host_silent", help, Unit::Seconds, self.silent.clone());
        let help = "How long ago GitHub last delivered well, and its log of deliveries was read";
        registry.register_with_unit("delivery_age", help, Unit::Seconds, self.delivery_ages.clone());
        registry.register("deliveries_missed", "Deliveries that failed and have not come yet", self.missed.clone());
    }

    /// Counts a delivery.
    pub fn delivery(&self, outcome: DeliveryOutcome) {
        self.deliveries.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// Counts how long a pulled delivery took.
    pub fn pull_lag(&self, lag: Duration) {
        self.pull_lag.observe(lag.as_secs_f64());
    }

    /// Counts a call to GitHub. `route` is the template (`/repos/{owner}/{repo}/…`), never the path;
    /// `status` is 0 when there was no answer.
    pub fn github_call(&self, route: &'static str, status: u16, took: Duration) {
        self.calls.get_or_create(&ByCall { route, status }).inc();
        self.call_times.get_or_create(&ByRoute { route }).observe(took.as_secs_f64());
    }

    /// Counts one pass of a loop, called by its module's name.
    pub fn pass(&self, pass: &'static str, took: Duration, succeeded: bool) {
        self.passes.get_or_create(&ByPass { pass }).observe(took.as_secs_f64());
        let errors = self.pass_errors.get_or_create(&ByPass { pass });
        if !succeeded {
            errors.inc();
        }
    }

    /// Reads the tables, and writes all metrics in the OpenMetrics text format. When the database is
    /// away, what this process counts itself is told all the same.
    pub async fn render(&self, pool: &PgPool) -> String {
        let mut told = self.told.lock().await;
        let outcome = match tokio::time::timeout(SCRAPE_DEADLINE, self.read(pool, &mut told)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(StoreError::from(sqlx::Error::PoolTimedOut)),
        };
        if let Err(error) = &outcome {
            tracing::warn!("the tables could not be read for metrics: {}", chain(error));
            self.forget_read();
        }
        self.database_up.set(i64::from(outcome.is_ok()));
        let (size, idle) = (i64::from(pool.size()), i64::try_from(pool.num_idle()).unwrap_or(i64::MAX));
        self.connections.get_or_create(&ByConnection { state: "idle" }).set(idle);
        self.connections.get_or_create(&ByConnection { state: "used" }).set(size.saturating_sub(idle).max(0));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes all text");
        text
    }

    async fn read(&self, pool: &PgPool, told: &mut Cursor) -> Result<()> {
        let (jobs, vms) = (views::jobs_by_state(pool).await?, views::vms_by_state(pool).await?);
        let hosts = views::hosts(pool).await?;
        self.forget_read();
        for (profile, state, count) in jobs {
            let state = crate::domain::job::JobState::decode(&state, None).as_str();
            self.jobs.get_or_create(&ByProfileState { profile, state }).set(count);
        }
        for (host, state, count) in vms {
            let state = live_state(&state);
            self.vms.get_or_create(&ByHostState { host, state }).inc_by(count);
        }
        for host in hosts {
            let by = ByHost { host: host.name };
            self.slots.get_or_create(&by).set(i64::from(host.slots));
            self.draining.get_or_create(&by).set(i64::from(host.draining));
            self.silent.get_or_create(&by).set(host.silent_for_s);
        }
        self.read_deliveries(pool).await?;
        for _ in 0..MAX_PAGES {
            let page = views::gone_vms(pool, *told, SETTLE_S, PAGE).await?;
            let Some(last) = page.last() else { break };
            *told = Cursor { at: last.times.gone_at.unwrap_or(told.at), id: last.id.0 };
            page.iter().for_each(|vm| self.tell(vm));
        }
        Ok(())
    }

    async fn read_deliveries(&self, pool: &PgPool) -> Result<()> {
        let health = delivery_log::health(pool).await?;
        for (age, at) in [("good", health.good_at), ("log_read", health.read_at)] {
            if let Some(at) = at {
                let seconds = (Utc::now() - at).as_seconds_f64();
                self.delivery_ages.get_or_create(&ByAge { age }).set(seconds);
            }
        }
        self.missed.set(health.missed);
        Ok(())
    }

    /// What was read before is not true any more.
    fn forget_read(&self) {
        self.jobs.clear();
        self.vms.clear();
        self.slots.clear();
        self.draining.clear();
        self.silent.clear();
        self.delivery_ages.clear();
    }

    fn tell(&self, vm: &GoneVm) {
        for (step, seconds) in steps(vm) {
            self.steps.get_or_create(&ByStep { step, profile: vm.profile.clone() }).observe(seconds);
        }
        let reason = vm.reason.as_deref().and_then(VmEnd::parse).map_or("unknown", VmEnd::as_str);
        let by = ByEnd { host: vm.host.clone(), profile: vm.profile.clone(), reason };
        self.ends.get_or_create(&by).inc();
    }
}

/// A state as a label: words of a later version are one.
fn live_state(state: &str) -> &'static str {
    match state {
        // Decoded without its reason, which is not asked for here.
        "stopping" => "stopping",
        other => VmState::decode(other, None).as_str(),
    }
}

/// The steps that a vm took, in seconds. One that would be negative was not taken in this order: a
/// warm vm's plan is older than its job's demand.
fn steps(vm: &GoneVm) -> impl Iterator<Item = (Step, f64)> {
    let times = &vm.times;
    let planned = Some(times.planned_at);
    [
        (Step::QueuedToPlanned, vm.queued_at, planned),
        (Step::PlannedToCloned, planned, times.cloned_at),
        (Step::ClonedToBooted, times.cloned_at, times.booted_at),
        (Step::BootedToReady, times.booted_at, times.ready_at),
        (Step::ReadyToBound, times.ready_at, times.bound_at),
        (Step::BoundToMinted, times.bound_at, times.minted_at),
        (Step::MintedToServing, times.minted_at, times.serving_at),
        (Step::StoppingToGone, times.stopping_at, times.gone_at),
        (Step::QueuedToRunning, vm.queued_at, vm.running_at),
    ]
    .into_iter()
    .filter_map(|(step, from, to)| Some((step, (to? - from?).as_seconds_f64())))
    .filter(|(_, seconds)| *seconds >= 0.0)
}
