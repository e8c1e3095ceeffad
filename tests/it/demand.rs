//! Demand is counted per class under its lock: however many hosts look at once, no job gets two vms.

use crate::support::gate::Gate;
use crate::support::payload::Job;
use flyci::domain::ids::{HostId, VmId};
use flyci::domain::vm::{VmEvent, VmState};
use flyci::store::Applied;
use flyci::store::demand::{self, Binding};
use flyci::store::hosts::{self, Introduction};
use flyci::store::vms::{self, Fence, NewVm};
use sqlx::PgPool;

const PROFILE: &str = "flyci-test";
/// More than any of these tests needs.
const NO_LIMIT: u32 = 100;

async fn host(pool: &PgPool, name: &str) -> Fence {
    let introduction = Introduction {
        id: HostId::random(),
        name,
        public_key: &[0; 32],
        hypervisor: "fake",
        hardware: "m2",
        os: "linux",
        architecture: "x86_64",
        slots: 10,
        cpus: 8,
        memory: 1 << 34,
        version: "0",
        runner_version: None,
        world: None,
        is_dedicated: false,
    };
    let (host, session) = hosts::introduce(pool, &introduction).await.expect("the host is known");
    Fence { host, session }
}

/// A vm that is ready and blank.
async fn ready_vm(pool: &PgPool, fence: Fence, slot: u16) -> VmId {
    let id = VmId::random();
    let vm = NewVm { id, slot, profile: PROFILE, image: "any", cpus: 1, memory: 1 };
    assert_eq!(vms::insert(pool, fence, &vm).await.expect("planned"), Applied::Yes);
    let mut state = VmState::Planned;
    for event in [VmEvent::BeginClone, VmEvent::Cloned, VmEvent::BeginBoot, VmEvent::Ready] {
        let _ = vms::advance(pool, fence, id, state, event).await.expect("the next step");
        state = flyci::domain::vm::next(state, event).expect("a step of the ordinary life");
    }
    id
}

#[tokio::test]
async fn ten_hosts_that_look_at_once_take_each_job_once() {
    let gate = Gate::open().await;
    for id in 0..5 {
        gate.take(&Job::queued(id)).await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for name in 0..10 {
        let pool = gate.db.host.clone();
        tasks.spawn(async move {
            let fence = host(&pool, &format!("host-{name}")).await;
            let vm = ready_vm(&pool, fence, 0).await;
            loop {
                match demand::bind(&pool, fence, vm, PROFILE, NO_LIMIT).await.expect("the database answers") {
                    Binding::Bound(_) => return true,
                    Binding::NoDemand => return false,
                    Binding::Contended => {}
                }
            }
        });
    }
    let bound = tasks.join_all().await.into_iter().filter(|bound| *bound).count();
    assert_eq!(bound, 5);
}

#[tokio::test]
async fn a_tenants_limit_holds_however_many_hosts_look_at_once() {
    let gate = Gate::open().await;
    for id in 0..10 {
        gate.take(&Job { repository: 10 + id, ..Job::queued(id) }).await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for name in 0..10 {
        let pool = gate.db.host.clone();
        tasks.spawn(async move {
            let fence = host(&pool, &format!("host-{name}")).await;
            let vm = ready_vm(&pool, fence, 0).await;
            loop {
                match demand::bind(&pool, fence, vm, PROFILE, 3).await.expect("the database answers") {
                    Binding::Bound(_) => return true,
                    Binding::NoDemand => return false,
                    Binding::Contended => {}
                }
            }
        });
    }
    let bound = tasks.join_all().await.into_iter().filter(|bound| *bound).count();
    assert_eq!(bound, 3);
}

#[tokio::test]
async fn a_tenant_that_floods_the_queue_starves_nobody() {
    let gate = Gate::open().await;
    for id in 0..20 {
        gate.take(&Job::queued(id)).await;
    }
    gate.take(&Job { installation: 2, owner: 200, repository: 20, ..Job::queued(100) }).await;
    let fence = host(&gate.db.host, "host").await;
    let mut tenants = Vec::new();
    for slot in 0..3 {
        let vm = ready_vm(&gate.db.host, fence, slot).await;
        let bound = demand::bind(&gate.db.host, fence, vm, PROFILE, NO_LIMIT).await.expect("bound");
        assert!(matches!(bound, Binding::Bound(_)));
        tenants.push(vms::get(&gate.db.host, vm).await.expect("read").expect("there").tenant);
    }
    assert_ne!(tenants[0], tenants[1], "the second vm goes to the other tenant");
    assert_eq!(tenants[0], tenants[2], "and the third to the first again");
}

#[tokio::test]
async fn vms_are_wanted_for_what_is_queued_less_what_is_there() {
    let gate = Gate::open().await;
    let fence = host(&gate.db.host, "host").await;
    let wanted = async |limit| demand::wanted(&gate.db.host, fence.host, PROFILE, limit, 0).await.expect("counted");
    assert_eq!(wanted(NO_LIMIT).await, 0);
    for id in 0..3 {
        gate.take(&Job::queued(id)).await;
    }
    assert_eq!((wanted(NO_LIMIT).await, wanted(2).await), (3, 2));
    let vm = ready_vm(&gate.db.host, fence, 0).await;
    assert_eq!(wanted(NO_LIMIT).await, 2, "a blank vm counts");
    let _ = demand::bind(&gate.db.host, fence, vm, PROFILE, NO_LIMIT).await.expect("bound");
    assert_eq!(wanted(NO_LIMIT).await, 2, "and so does one that waits for its job");
    gate.take(&Job::cancelled(0)).await;
    gate.take(&Job::cancelled(1)).await;
    gate.take(&Job::cancelled(2)).await;
    assert!(!demand::stands(&gate.db.host, vm).await.expect("counted"), "nobody wants it any more");
    assert_eq!(demand::wanted(&gate.db.host, fence.host, PROFILE, NO_LIMIT, 2).await.expect("counted"), 2, "warm ones");
}

#[tokio::test]
async fn of_more_vms_than_jobs_the_youngest_are_not_covered() {
    let gate = Gate::open().await;
    let fence = host(&gate.db.host, "host").await;
    gate.take(&Job::queued(1)).await;
    gate.take(&Job::queued(2)).await;
    let (older, younger) = (ready_vm(&gate.db.host, fence, 0).await, ready_vm(&gate.db.host, fence, 1).await);
    for vm in [older, younger] {
        let _ = demand::bind(&gate.db.host, fence, vm, PROFILE, NO_LIMIT).await.expect("bound");
    }
    gate.take(&Job::in_progress(1, 99, "somebody-elses")).await;
    assert!(demand::stands(&gate.db.host, older).await.expect("counted"));
    assert!(!demand::stands(&gate.db.host, younger).await.expect("counted"));
}
