//! Hosts follow the fleet's pins: the first one that needs a tag pins it, and all have the image that it was pinned to.

use crate::support::bundle::{Home, disk};
use crate::support::database::TestDatabase;
use crate::support::registry::Registry;
use flyci::config;
use flyci::domain::admission::MacosVersion;
use flyci::domain::ids::{HostId, VmId};
use flyci::domain::profile::Profile;
use flyci::domain::units::{Bytes, Span};
use flyci::store::Applied;
use flyci::store::hosts::{self, Introduction};
use flyci::store::image_pins::{self, Update};
use flyci::store::image_pulls::{self, PullRow};
use flyci::store::vms::{self, Fence, NewVm};
use flyci::upkeep::follow::{FollowReport, Follower, Pauses};
use serde_json::json;
use std::sync::Arc;

/// A fleet with a registry that has `mac/base:latest`, and whoever makes its images.
struct Fleet {
    db: TestDatabase,
    registry: Registry,
    maker: Home,
    tag: String,
}

/// A host of it.
struct Host {
    home: Home,
    fence: Fence,
    follower: Follower,
}

const HERE: FollowReport = FollowReport { here: 1, pulled: 0, waiting: 0, failed: 0 };
const PULLED: FollowReport = FollowReport { here: 0, pulled: 1, waiting: 0, failed: 0 };
const WAITING: FollowReport = FollowReport { here: 0, pulled: 0, waiting: 1, failed: 0 };
const FAILED: FollowReport = FollowReport { here: 0, pulled: 0, waiting: 0, failed: 1 };

impl Fleet {
    async fn new() -> Self {
        let registry = Registry::start();
        let tag = registry.image("mac/base:latest");
        Self { db: TestDatabase::new().await, registry, maker: Home::new(), tag }
    }

    /// The tag names another image in the registry from now on.
    async fn publish(&self, seed: u64) -> String {
        self.maker.push(&self.maker.import(&disk(1, seed)), &self.tag).await
    }

    async fn host(&self, name: &str) -> Host {
        let introduction = Introduction {
            id: HostId::random(),
            name,
            public_key: &[1; 32],
            hypervisor: "vz",
            hardware: "m2",
            os: "macos",
            architecture: "aarch64",
            slots: 2,
            cpus: 8,
            memory: 16_000_000_000,
            version: "0.0.0",
            runner_version: None,
            world: None,
            is_dedicated: false,
        };
        let (host, session) = hosts::introduce(&self.db.host, &introduction).await.expect("introduced");
        let home = Home::new();
        let follower = Follower {
            pool: self.db.host.clone(),
            host,
            name: name.to_owned(),
            store: home.store.clone(),
            section: section(),
            macos: None,
            profiles: vec![profile(&self.tag)],
            wakes: Arc::default(),
            shutdown: tokio_util::sync::CancellationToken::new(),
            pauses: Pauses::default(),
        };
        Host { home, fence: Fence { host, session }, follower }
    }

    async fn pulls(&self) -> Vec<PullRow> {
        image_pulls::all(&self.db.gateway).await.expect("read")
    }

    async fn update(&self, digest: &str, canary: &Host) {
        let update = Update { reference: &self.tag, digest, canary: canary.fence.host, jobs: 0, by: "operator:0" };
        assert_eq!(image_pins::begin_update(&self.db.gateway, &update).await.expect("asked"), Applied::Yes);
    }
}

impl Host {
    async fn pass(&self) -> FollowReport {
        self.follower.pass().await.expect("the database answers")
    }

    /// What the tag stands for here.
    fn stands_for(&self, tag: &str) -> Option<String> {
        self.home.store.find(tag).ok().map(|image| image.digest.to_string())
    }

    async fn vm(&self, image: &str) -> VmId {
        let id = VmId::random();
        let new = NewVm { id, slot: 0, profile: "flyci-mac", image, cpus: 4, memory: 1 };
        let planned = vms::insert(&self.follower.pool, self.fence, &new).await.expect("the slot is free");
        assert_eq!(planned, Applied::Yes);
        id
    }
}

fn section() -> config::Images {
    config::Images {
        concurrency: 3,
        keep: Span::seconds(3_600),
        keep_free: Bytes(0),
        replace: false,
        mirrors: Vec::new(),
        credentials_file: None,
        ca_file: None,
        plain_loopback: true,
    }
}

fn profile(image: &str) -> Profile {
    let described = json!({"label": "flyci-mac", "cpus": 4, "memory": "7GB", "disk_free": "1GB", "image": image});
    serde_json::from_value(described).expect("a profile")
}

#[tokio::test]
async fn a_tag_is_resolved_once_for_the_whole_fleet() {
    let fleet = Fleet::new().await;
    let old = fleet.publish(1).await;
    let (first, second) = (fleet.host("mini-1").await, fleet.host("mini-2").await);
    assert_eq!(first.pass().await, PULLED);
    fleet.publish(2).await;
    assert_eq!((first.pass().await, second.pass().await), (HERE, PULLED));
    for host in [&first, &second] {
        assert_eq!(host.stands_for(&fleet.tag), Some(old.clone()), "that it moved in the registry moves nothing");
    }
    assert!(fleet.pulls().await.is_empty(), "nothing is left to fetch");
    let pins = image_pins::all(&fleet.db.gateway).await.expect("read");
    assert_eq!((pins.len(), pins[0].pinned_by.as_str()), (1, "host:mini-1"));
}

#[tokio::test]
async fn what_was_pulled_by_hand_is_what_is_pinned() {
    let fleet = Fleet::new().await;
    let old = fleet.publish(1).await;
    let host = fleet.host("mini-1").await;
    host.home.pull(&fleet.tag).await.expect("pulled");
    fleet.publish(2).await;
    assert_eq!(host.pass().await, HERE);
    assert_eq!(host.stands_for(&fleet.tag), Some(old));
}

#[tokio::test]
async fn the_canary_tries_an_update_and_the_others_follow_when_it_is_promoted() {
    let fleet = Fleet::new().await;
    let old = fleet.publish(1).await;
    let (canary, other) = (fleet.host("mini-1").await, fleet.host("mini-2").await);
    assert_eq!((canary.pass().await, other.pass().await), (PULLED, PULLED));
    let new = fleet.publish(2).await;
    fleet.update(&new, &canary).await;
    assert_eq!((canary.pass().await, other.pass().await), (PULLED, HERE));
    assert_eq!(canary.stands_for(&fleet.tag), Some(new.clone()));
    assert_eq!(other.stands_for(&fleet.tag), Some(old.clone()));
    assert_eq!(image_pins::promote(&fleet.db.gateway, &fleet.tag, &new).await.expect("asked"), Applied::Yes);
    assert_eq!((canary.pass().await, other.pass().await), (HERE, PULLED));
    assert_eq!(other.stands_for(&fleet.tag), Some(new));
    assert_eq!(image_pins::roll_back(&fleet.db.gateway, &fleet.tag, "operator:0").await.expect("asked"), Applied::Yes);
    assert_eq!((canary.pass().await, other.pass().await), (HERE, HERE), "the old one was kept");
    assert_eq!(canary.stands_for(&fleet.tag), Some(old));
}

#[tokio::test]
async fn a_candidate_that_is_given_up_leaves_the_canary_with_the_old_image() {
    let fleet = Fleet::new().await;
    let old = fleet.publish(1).await;
    let canary = fleet.host("mini-1").await;
    assert_eq!(canary.pass().await, PULLED);
    let new = fleet.publish(2).await;
    fleet.update(&new, &canary).await;
    assert_eq!(canary.pass().await, PULLED);
    let rejected = image_pins::reject(&fleet.db.gateway, &fleet.tag, &new, "it does not boot").await;
    assert_eq!(rejected.expect("asked"), Applied::Yes);
    assert_eq!(canary.pass().await, HERE);
    assert_eq!(canary.stands_for(&fleet.tag), Some(old));
}

#[tokio::test]
async fn what_does_not_come_is_told_and_left_alone_for_a_while() {
    let fleet = Fleet::new().await;
    fleet.publish(1).await;
    let mut host = fleet.host("mini-1").await;
    host.follower.macos = Some(MacosVersion(13, 6, 0));
    assert_eq!(host.pass().await, FAILED);
    let pulls = fleet.pulls().await;
    let told = pulls[0].trouble.as_deref().expect("told");
    assert!(told.contains("macOS 14.2 and later, and this Mac runs 13.6"), "{told}");
    assert_eq!(host.home.entries(), Vec::<String>::new(), "nothing of it is here");
    host.follower.macos = None;
    assert_eq!(host.pass().await, WAITING, "its pause is not over");
    host.follower.pauses = Pauses::default();
    assert_eq!(host.pass().await, PULLED);
    assert!(fleet.pulls().await.is_empty());
}

#[tokio::test]
async fn unused_images_make_room() {
    let fleet = Fleet::new().await;
    let old = fleet.publish(1).await;
    let mut host = fleet.host("mini-1").await;
    host.home.pull(&fleet.tag).await.expect("pulled");
    host.follower.profiles = vec![profile(&fleet.registry.image("mac/other:1"))];
    let other = fleet.maker.push(&fleet.maker.import(&disk(1, 3)), &fleet.registry.image("mac/other:1")).await;
    host.follower.section.keep_free = Bytes(u64::MAX / 2);
    assert_eq!(host.pass().await, FAILED, "all that is unused would not be enough");
    assert_eq!(host.stands_for(&fleet.tag), Some(old), "so it stays");
    let told = fleet.pulls().await.remove(0).trouble.expect("told");
    assert!(told.contains("of disk") && told.contains("stay free"), "{told}");
    host.follower.section.keep_free = Bytes(0);
    host.follower.pauses = Pauses::default();
    assert_eq!(host.pass().await, PULLED);
    assert_eq!(host.stands_for(&fleet.registry.image("mac/other:1")), Some(other));
}

#[tokio::test]
async fn on_a_small_disk_the_image_before_goes_first_on_one_host_at_a_time() {
    let fleet = Fleet::new().await;
    let old = fleet.publish(1).await;
    let (mut first, mut second) = (fleet.host("mini-1").await, fleet.host("mini-2").await);
    assert_eq!((first.pass().await, second.pass().await), (PULLED, PULLED));
    let new = fleet.publish(2).await;
    fleet.update(&new, &first).await;
    assert_eq!(image_pins::promote(&fleet.db.gateway, &fleet.tag, &new).await.expect("asked"), Applied::Yes);
    for host in [&mut first, &mut second] {
        host.follower.section = config::Images { replace: true, keep_free: Bytes(u64::MAX / 2), ..section() };
    }
    let vm = first.vm(&old).await;
    assert_eq!(first.pass().await, WAITING);
    assert_eq!(first.stands_for(&fleet.tag), None, "no vm is made of it any more");
    assert_eq!(second.pass().await, WAITING);
    assert_eq!(second.stands_for(&fleet.tag), Some(old.clone()), "the other one goes on");
    assert_eq!(first.pass().await, WAITING, "its last vm runs still");
    assert!(first.home.store.directory(&old.parse().expect("a digest")).is_some(), "and so the image stays");
    sqlx::query("UPDATE vms SET state = 'gone' WHERE id = $1").bind(vm.0).execute(&fleet.db.owner).await.expect("gone");
    first.follower.section.keep_free = Bytes(0);
    assert_eq!(first.pass().await, PULLED);
    assert_eq!(first.stands_for(&fleet.tag), Some(new.clone()));
    second.follower.section.keep_free = Bytes(0);
    assert_eq!(second.pass().await, PULLED, "and now the other one");
    assert_eq!(second.stands_for(&fleet.tag), Some(new));
}

#[tokio::test]
async fn a_host_can_move_no_pin() {
    let fleet = Fleet::new().await;
    fleet.publish(1).await;
    let host = fleet.host("mini-1").await;
    assert_eq!(host.pass().await, PULLED);
    let digest = fleet.publish(2).await;
    let pinned = image_pins::pin_first(&fleet.db.host, &fleet.tag, &digest, "host:mini-1").await;
    assert_eq!(pinned.expect("asked"), Applied::Stale);
    image_pins::roll_back(&fleet.db.host, &fleet.tag, "host:mini-1").await.expect_err("the database refuses");
    image_pins::promote(&fleet.db.host, &fleet.tag, &digest).await.expect_err("the database refuses");
}
