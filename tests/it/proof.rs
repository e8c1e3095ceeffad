//! A host proves that it can boot before it takes a job, and a dedicated one serves whom it is for.

use crate::support::gate::Gate;
use crate::support::payload::Job;
use crate::support::world::{Setup, World};
use fake_github::Conclusion;
use flyci::domain::ids::{HostId, VmId};
use flyci::domain::vm::{VmEvent, VmState, next};
use flyci::hypervisor::fake::{Fault, Step};
use flyci::lifecycle::Dedication;
use flyci::secrets::Lookup;
use flyci::store::Applied;
use flyci::store::demand::{self, Binding};
use flyci::store::hosts::{self, Introduction};
use flyci::store::vms::{self, Fence, NewVm};

const PROFILE: &str = "flyci-test";
const NO_LIMIT: u32 = 100;

fn tested() -> Setup {
    Setup { host: "self_test = true", limits: "jobs_per_installation = 100\nidle_timeout = \"1s\"", ..Setup::default() }
}

#[tokio::test]
async fn a_new_host_boots_a_vm_before_anybody_asks_for_one() {
    let world = World::with(tested()).await;
    world.until("the canary was ready, and went", async || world.ends().await == ["surplus"]).await;
    assert_eq!(world.texts("SELECT (i.proven_in = h.world)::text FROM host_images i, hosts h").await, ["true"]);
    let job = world.queue();
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    world.jobs_are(&["done"]).await;
    assert_eq!(world.ends().await.len(), 2, "what is proven is not tested again");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn after_a_reboot_nothing_is_claimed_until_a_vm_was_ready() {
    let mut world = World::with(tested()).await;
    world.until("the canary was ready, and went", async || world.ends().await == ["surplus"]).await;
    world.stop().await;
    world.execute("UPDATE host_images SET proven_in = 'another boot'").await;
    world.machines.inject(Step::Ready, Fault::Hang);
    world.start().await;
    let jobs = [world.queue(), world.queue(), world.queue()];
    world.vms_are("booting", 1).await;
    world.until("the jobs are known", async || world.texts("SELECT state FROM jobs").await.len() == 3).await;
    // Whatever passes are made meanwhile: a pass is made when a job comes.
    assert_eq!(world.texts("SELECT id::text FROM vms WHERE state <> 'gone'").await.len(), 1, "the canary alone");
    assert_eq!(world.texts("SELECT id::text FROM runners").await.len(), 0, "nothing is claimed");
    world.machines.heal(Step::Ready);
    for job in jobs {
        assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success));
    }
    world.nothing_is_left().await;
}

#[tokio::test]
async fn a_host_whose_guests_reach_what_they_must_not_takes_no_job() {
    let mut world = World::with(tested()).await;
    world.until("the canary was ready, and went", async || world.ends().await == ["surplus"]).await;
    world.stop().await;
    world.execute("UPDATE host_images SET proven_in = 'another network'").await;
    world.machines.inject(Step::Reach, Fault::Fail(1));
    world.start().await;
    let job = world.queue();
    world.until("it was seen", async || world.ends().await.contains(&"not_isolated".to_owned())).await;
    let served = "SELECT r.id::text FROM runners r JOIN vms v ON v.id = r.vm_id WHERE v.reason = 'not_isolated'";
    assert_eq!(world.texts(served).await, Vec::<String>::new(), "nothing was claimed for it");
    assert_eq!(world.completed(job).await.conclusion, Some(Conclusion::Success), "once another canary tried in vain");
    world.jobs_are(&["done"]).await;
    let ends = world.ends().await;
    assert_eq!(ends.iter().filter(|end| *end == "not_isolated").count(), 1, "{ends:?}");
    world.nothing_is_left().await;
}

#[tokio::test]
async fn in_another_world_what_was_proven_is_proven_anew() {
    let gate = Gate::open().await;
    let fence = dedicated(&gate).await;
    let untested = async || hosts::is_untested(&gate.db.host, fence.host, "any").await.expect("the database answers");
    assert!(!untested().await, "a host that does not test has nothing to prove");
    hosts::renew_world(&gate.db.host, fence.host, "today").await.expect("written");
    assert!(untested().await);
    hosts::image_proven(&gate.db.host, fence.host, "any").await.expect("written");
    assert!(!untested().await);
    hosts::renew_world(&gate.db.host, fence.host, "today").await.expect("nothing to write");
    assert!(!untested().await);
    hosts::renew_world(&gate.db.host, fence.host, "tomorrow").await.expect("written");
    assert!(untested().await);
}

async fn dedicated(gate: &Gate) -> Fence {
    let introduction = Introduction {
        id: HostId::random(),
        name: "dedicated",
        public_key: &[0; 32],
        hypervisor: "fake",
        hardware: "m2",
        os: "macos",
        architecture: "arm64",
        slots: 2,
        cpus: 8,
        memory: 1 << 34,
        version: "0",
        runner_version: None,
        world: None,
        is_dedicated: true,
    };
    let (host, session) = hosts::introduce(&gate.db.host, &introduction).await.expect("the host is known");
    Fence { host, session }
}

/// What a ready vm of a host finds.
async fn find(gate: &Gate, fence: Fence, slot: u16) -> Binding {
    let id = VmId::random();
    let vm = NewVm { id, slot, profile: PROFILE, image: "any", cpus: 1, memory: 1 };
    let planned = vms::insert(&gate.db.host, fence, &vm).await.expect("planned");
    assert_eq!(planned, Applied::Yes);
    let mut state = VmState::Planned;
    for event in [VmEvent::BeginClone, VmEvent::Cloned, VmEvent::BeginBoot, VmEvent::Ready] {
        let _ = vms::advance(&gate.db.host, fence, id, state, event).await.expect("the next step");
        state = next(state, event).expect("a step of the ordinary life");
    }
    demand::bind(&gate.db.host, fence, id, PROFILE, NO_LIMIT).await.expect("the database answers")
}

#[tokio::test]
async fn a_dedicated_host_serves_its_accounts_and_nobody_else() {
    let gate = Gate::open().await;
    gate.take(&Job { installation: 2, owner: 200, repository: 20, ..Job::queued(100) }).await;
    gate.take(&Job::queued(1)).await;
    let fence = dedicated(&gate).await;
    let wanted = async || demand::wanted(&gate.db.host, fence.host, PROFILE, NO_LIMIT, 0).await.expect("counted");
    assert_eq!(wanted().await, 0, "as long as nobody said whom it serves, it serves nobody");
    assert_eq!(find(&gate, fence, 0).await, Binding::NoDemand);
    let lookup: Vec<u8> = sqlx::query_scalar(
        "SELECT t.installation_lookup FROM tenants t WHERE t.id = (SELECT tenant_id FROM jobs ORDER BY received_at DESC LIMIT 1)",
    )
    .fetch_one(&gate.db.owner)
    .await
    .expect("its tenant is there");
    let lookup = Lookup(lookup.try_into().expect("32 bytes"));
    let dedication = Dedication::new(Vec::new(), Some((gate.db.gateway.clone(), vec![lookup])));
    dedication.renew(&gate.db.host, fence.host).await.expect("written");
    assert_eq!(wanted().await, 0, "the job of its account, less the vm that is ready");
    assert!(matches!(find(&gate, fence, 1).await, Binding::Bound(_)));
    let served: bool = sqlx::query_scalar(
        "SELECT bool_and(v.tenant_id = ANY (h.dedicated_to)) FROM vms v, hosts h WHERE v.class IS NOT NULL",
    )
    .fetch_one(&gate.db.owner)
    .await
    .expect("counted");
    assert!(served, "it took its own account's job, although the other's is older");
    assert_eq!(find(&gate, fence, 2).await, Binding::NoDemand, "and not the other's");
}
