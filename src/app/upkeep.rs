//! The gateway's passes that keep the tables and GitHub in agreement: built once, each called by a loop.
//! Tests call them by hand.

use super::gateway::Gateway;
use super::loops::{By, Loops, More, Never};
use crate::intake::Intake;
use crate::metrics::Metrics;
use crate::store::audit::Trail;
use crate::store::jobs::Patience;
use crate::store::profiles;
use crate::troubles::Troubles;
use crate::upkeep::backfill::Backfill;
use crate::upkeep::doubts::{Doubts, Silence};
use crate::upkeep::holds::Holds;
use crate::upkeep::prune::{self, Retention};
use crate::upkeep::pull::Pull;
use crate::upkeep::redeliver::Redeliver;
use crate::upkeep::registrations::Registrations;
use crate::upkeep::rerun::Rerun;
use crate::upkeep::rescue::Rescue;
use crate::upkeep::rollouts;
use crate::wake::Wakes;
use chrono::Utc;
use sqlx::PgPool;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How often GitHub's log of deliveries is read where they come by webhook, open jobs are compared, and registrations.
/// After so long an error of any of them has its second chance.
const RECONCILE_PERIOD: Duration = Duration::from_secs(60);
/// How often GitHub's log is read where deliveries are pulled. An unchanged log costs nothing of the hourly budget.
const PULL_PERIOD: Duration = Duration::from_secs(3);
/// How often doubts are looked at although nobody woke them.
const DOUBT_PERIOD: Duration = Duration::from_secs(5);
/// How often the hosts' beats are looked at.
const RESCUE_PERIOD: Duration = Duration::from_secs(5);
/// How often holds are shared.
const HOLDS_PERIOD: Duration = Duration::from_secs(5);
/// How often lost jobs are looked for.
const RERUN_PERIOD: Duration = Duration::from_secs(30);
/// How often updates of images are looked at.
const ROLLOUTS_PERIOD: Duration = Duration::from_secs(10);
/// How often rows are pruned.
const PRUNE_PERIOD: Duration = Duration::from_secs(600);
/// How long after its vm's end a job's `completed` may come by itself before GitHub is asked.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);
/// How long GitHub may go on calling a job running whose vm is gone: its own time-out is 10 minutes.
const LOST_PATIENCE: Duration = Duration::from_secs(900);
/// How long an open job goes unconfirmed before GitHub is asked about it alone.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// How long a job is queued before its run is asked about as well.
const RUN_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// What reconciles a gateway with GitHub.
pub struct Upkeep {
    /// Failed deliveries; where they come by webhook.
    pub redeliver: Option<Arc<Redeliver>>,
    /// All deliveries; where they are pulled.
    pub pull: Option<Arc<Pull>>,
    /// Open jobs.
    pub backfill: Arc<Backfill>,
    /// What is in doubt.
    pub doubts: Arc<Doubts>,
    /// Registrations without an owner.
    pub registrations: Arc<Registrations>,
    /// Lost jobs; if the operator wants them run again.
    pub rerun: Option<Arc<Rerun>>,
    /// Hosts that went silent.
    pub rescue: Arc<Rescue>,
    /// GitHub's limits.
    pub holds: Arc<Holds>,
    pool: PgPool,
    /// Labels and descriptions of the profiles.
    offer: Arc<(Vec<String>, Vec<String>)>,
    retention: Retention,
    trail: Trail,
    wakes: Arc<Wakes>,
}

impl Upkeep {
    /// Builds the passes of a gateway, which is this process's `id`.
    pub fn build(
        gateway: &Gateway,
        intake: &Arc<Intake>,
        id: Uuid,
        troubles: &Arc<Troubles>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let (pool, ring, github) = (&gateway.pool, &gateway.vault.ring, &gateway.github);
        let pull = || Pull::new(pool.clone(), github.clone(), Arc::clone(intake), Arc::clone(metrics), id);
        let redeliver = || Redeliver { pool: pool.clone(), github: github.clone(), gateway: id };
        let backfill = Backfill::new(
            pool.clone(),
            Arc::clone(ring),
            github.clone(),
            Arc::clone(intake),
            id,
            Arc::clone(&gateway.vault.wakes),
            Utc::now(),
        );
        let rerun = || Rerun { pool: pool.clone(), ring: Arc::clone(ring), github: github.clone() };
        Self {
            redeliver: gateway.by_webhook.then(|| Arc::new(redeliver())),
            pull: (!gateway.by_webhook).then(|| Arc::new(pull())),
            backfill: Arc::new(backfill),
            doubts: Arc::new(doubts(gateway, troubles)),
            registrations: Arc::new(Registrations {
                pool: pool.clone(),
                ring: Arc::clone(ring),
                github: github.clone(),
                scope: gateway.scope,
                fleet: gateway.fleet,
                gateway: id,
                troubles: Arc::clone(troubles),
            }),
            rerun: gateway.rerun_lost_jobs.then(|| Arc::new(rerun())),
            rescue: Arc::new(Rescue::new(pool.clone(), id, Arc::clone(&gateway.vault.wakes))),
            holds: Arc::new(Holds { pool: pool.clone(), ring: Arc::clone(ring), github: github.clone() }),
            pool: pool.clone(),
            offer: Arc::new(offer(gateway)),
            retention: gateway.retention,
            trail: gateway.vault.trail.clone(),
            wakes: Arc::clone(&gateway.vault.wakes),
        }
    }

    /// Starts a loop for each pass.
    pub fn spawn(&self, loops: &Loops) {
        self.spawn_deliveries(loops);
        let backfill = Arc::clone(&self.backfill);
        loops.spawn("backfill", RECONCILE_PERIOD, Never, move || {
            let backfill = Arc::clone(&backfill);
            async move { backfill.pass().await.map(|report| more(report.partial)) }
        });
        let doubts = Arc::clone(&self.doubts);
        loops.spawn("doubts", DOUBT_PERIOD, By(Arc::clone(&self.wakes), |wakes| &wakes.doubt), move || {
            let doubts = Arc::clone(&doubts);
            async move { doubts.pass().await.map(|report| more(report.is_full())) }
        });
        let registrations = Arc::clone(&self.registrations);
        loops.spawn("registrations", RECONCILE_PERIOD, Never, move || {
            let registrations = Arc::clone(&registrations);
            async move { registrations.pass().await.map(|_| More::No) }
        });
        if let Some(rerun) = self.rerun.clone() {
            loops.spawn("rerun", RERUN_PERIOD, Never, move || {
                let rerun = Arc::clone(&rerun);
                async move { rerun.pass().await.map(|_| More::No) }
            });
        }
        let rescue = Arc::clone(&self.rescue);
        loops.spawn("rescue", RESCUE_PERIOD, Never, move || {
            let rescue = Arc::clone(&rescue);
            async move { rescue.pass(Instant::now()).await.map(|_| More::No) }
        });
        let holds = Arc::clone(&self.holds);
        loops.spawn("holds", HOLDS_PERIOD, Never, move || {
            let holds = Arc::clone(&holds);
            async move { holds.pass().await.map(|_| More::No) }
        });
        let (pool, offer) = (self.pool.clone(), Arc::clone(&self.offer));
        loops.spawn("profiles", RECONCILE_PERIOD, Never, move || {
            let (pool, offer) = (pool.clone(), Arc::clone(&offer));
            async move { profiles::publish(&pool, &offer.0, &offer.1).await.map(|()| More::No) }
        });
        let (pool, trail) = (self.pool.clone(), self.trail.clone());
        loops.spawn("rollouts", ROLLOUTS_PERIOD, Never, move || {
            let (pool, trail) = (pool.clone(), trail.clone());
            async move { rollouts::pass(&pool, &trail).await.map(|_| More::No) }
        });
        let (pool, retention) = (self.pool.clone(), self.retention);
        loops.spawn("prune", PRUNE_PERIOD, Never, move || {
            let pool = pool.clone();
            async move { prune::pass(&pool, retention, Utc::now()).await.map(|report| more(report.is_partial())) }
        });
    }

    fn spawn_deliveries(&self, loops: &Loops) {
        if let Some(redeliver) = self.redeliver.clone() {
            loops.spawn("redeliver", RECONCILE_PERIOD, Never, move || {
                let redeliver = Arc::clone(&redeliver);
                async move { redeliver.pass(Utc::now()).await.map(|report| more(report.partial)) }
            });
        }
        if let Some(pull) = self.pull.clone() {
            loops.spawn("pull", PULL_PERIOD, Never, move || {
                let pull = Arc::clone(&pull);
                async move { pull.pass(Utc::now()).await.map(|report| more(report.partial)) }
            });
        }
    }
}

/// The profiles as they are published.
fn offer(gateway: &Gateway) -> (Vec<String>, Vec<String>) {
    let described = |profile| serde_json::to_string(profile).expect("a profile has only texts and numbers");
    gateway.policy.profiles.iter().map(|(profile, _)| (profile.label.clone(), described(profile))).unzip()
}

fn doubts(gateway: &Gateway, troubles: &Arc<Troubles>) -> Doubts {
    Doubts {
        pool: gateway.pool.clone(),
        ring: Arc::clone(&gateway.vault.ring),
        github: gateway.github.clone(),
        scope: gateway.scope,
        patience: Patience {
            queue: gateway.queue_timeout,
            run: RUN_PATIENCE,
            confirm: CONFIRM_PATIENCE,
            delivery: DELIVERY_PATIENCE,
            lost: LOST_PATIENCE,
        },
        wakes: Arc::clone(&gateway.vault.wakes),
        troubles: Arc::clone(troubles),
        silence: Silence::default(),
    }
}

const fn more(is_left: bool) -> More {
    if is_left { More::Soon } else { More::No }
}
