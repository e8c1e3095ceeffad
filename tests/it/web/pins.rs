//! What tags stand for: updates are tried on one host, and the gateway decides by what it has shown.

use crate::support::payload::Job;
use crate::support::site::Site;
use axum::http::StatusCode;
use flyci::api;
use flyci::domain::reason::{VmEnd, Waiting};
use flyci::store::hosts::{self, Weight};
use flyci::store::image_pins;
use flyci::store::image_pulls::{self, Pull};
use flyci::store::vms::Fence;
use flyci::upkeep::rollouts::{self, RolloutReport};
use serde_json::json;

const TAG: &str = "ghcr.io/mac/base:latest";
const ENOUGH: u64 = 16_000_000_000;

fn digest(digit: &str) -> String {
    format!("sha256:{}", digit.repeat(64))
}

/// A site with two hosts, whose tag is pinned to the image 1.
async fn pinned() -> (Site, Fence) {
    let site = Site::with(|policy| policy.profiles[0].0.image = TAG.to_owned()).await;
    let fence = site.host("mini-1", 2, ENOUGH).await;
    let other = site.host("mini-2", 2, ENOUGH).await;
    for host in [fence, other] {
        let told = hosts::set_offer(&site.db.host, host.host, host.session, &["flyci-test".to_owned()], &[]).await;
        let _ = told.expect("told");
    }
    let _ = image_pins::pin_first(&site.db.host, TAG, &digest("1"), "host:mini-1").await.expect("pinned");
    (site, fence)
}

impl Site {
    async fn pin(&self) -> api::Pin {
        let page = self.get("/images/pins").await.body;
        serde_json::from_value(page["items"][0].clone()).expect("a pin")
    }

    async fn rollouts(&self) -> RolloutReport {
        rollouts::pass(&self.db.gateway, &self.admin.trail).await.expect("a round")
    }

    async fn actions(&self) -> Vec<String> {
        let page = self.get("/audit").await.body;
        let rows = page["items"].as_array().expect("rows").iter();
        let actions = rows.map(|row| row["action"].as_str().expect("an action").to_owned());
        actions.filter(|action| action.starts_with("image.")).collect()
    }
}

#[tokio::test]
async fn an_update_reaches_every_host_after_a_boot_and_jobs_on_one() {
    let (site, _) = pinned().await;
    let body = json!({"reference": TAG, "digest": digest("2"), "canary": "mini-1", "jobs": 1});
    let answer = site.change("/images/update", body).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(site.rollouts().await, RolloutReport::default(), "it has not booted");
    let pin = site.pin().await;
    assert_eq!((pin.digest, pin.profiles), (digest("1"), vec!["flyci-test".to_owned()]));
    assert_eq!(pin.update.expect("under way").canary.as_deref(), Some("mini-1"));
    site.deliver(&Job::queued(1)).await;
    site.sql(
        "INSERT INTO vms (id, host_id, session, slot, profile, image, cpus, memory, state, ready_at)
         SELECT gen_random_uuid(), canary, 1, 0, 'flyci-test', candidate, 1, 1, 'gone', now() FROM image_pins",
    )
    .await;
    assert_eq!(site.rollouts().await, RolloutReport::default(), "no job succeeded");
    site.sql("UPDATE jobs SET conclusion = 'failure', vm_id = (SELECT id FROM vms)").await;
    assert_eq!(site.rollouts().await, RolloutReport::default(), "nor one that failed");
    assert_eq!(site.pin().await.update.map(|update| (update.passed, update.failed)), Some((0, 1)));
    site.sql("UPDATE jobs SET conclusion = 'success'").await;
    assert_eq!(site.rollouts().await, RolloutReport { promoted: 1, rejected: 0 });
    let pin = site.pin().await;
    assert_eq!((pin.digest, pin.previous, pin.update), (digest("2"), Some(digest("1")), None));
    let back = site.change("/images/rollback", json!({"reference": TAG})).await;
    assert_eq!(back.status, StatusCode::OK, "{back:?}");
    assert_eq!(site.pin().await.digest, digest("1"));
    assert_eq!(site.actions().await, ["image.update", "image.promote", "image.rollback"]);
}

#[tokio::test]
async fn an_image_that_does_not_come_up_goes_no_further_than_its_canary() {
    let (site, fence) = pinned().await;
    let body = json!({"reference": TAG, "digest": digest("2"), "canary": "mini-1"});
    site.change("/images/update", body).await;
    let candidate = digest("2");
    let failed = hosts::image_failed(&site.db.host, fence.host, &candidate, VmEnd::BootTimeout, Weight::Final);
    failed.await.expect("told");
    assert_eq!(site.rollouts().await, RolloutReport { promoted: 0, rejected: 1 });
    let pin = site.pin().await;
    assert_eq!((pin.digest, pin.update.is_none()), (digest("1"), true));
    assert!(pin.rejected.expect("told").why.contains("boot_timeout"));
    let problems = site.get("/status").await.body["problems"].to_string();
    assert!(problems.contains("was given up"), "{problems}");
}

#[tokio::test]
async fn what_cannot_be_updated_is_said() {
    let (site, _) = pinned().await;
    let ask = async |reference: &str, digest: &str, canary: Option<&str>| {
        let body = json!({"reference": reference, "digest": digest, "canary": canary});
        site.change("/images/update", body).await.status
    };
    assert_eq!(ask(TAG, &digest("1"), None).await, StatusCode::OK, "it is there already");
    assert_eq!(site.pin().await.update, None);
    assert_eq!(ask("ghcr.io/mac/other:1", &digest("2"), None).await, StatusCode::NOT_FOUND);
    assert_eq!(ask(TAG, &digest("2"), Some("mini-9")).await, StatusCode::NOT_FOUND);
    assert_eq!(ask(TAG, "latest", None).await, StatusCode::BAD_REQUEST);
    assert_eq!(ask(&format!("ghcr.io/mac/base@{}", digest("1")), &digest("2"), None).await, StatusCode::BAD_REQUEST);
    let back = site.change("/images/rollback", json!({"reference": TAG})).await;
    assert_eq!(back.status, StatusCode::CONFLICT, "there is none before");
    site.change("/hosts/drain", json!({})).await;
    assert_eq!(ask(TAG, &digest("2"), None).await, StatusCode::CONFLICT, "nobody takes work");
}

#[tokio::test]
async fn a_rollback_ends_an_update_under_way() {
    let (site, _) = pinned().await;
    let answer = site.change("/images/update", json!({"reference": TAG, "digest": digest("2")})).await;
    assert_eq!(answer.status, StatusCode::OK, "a canary is found: {answer:?}");
    site.change("/images/rollback", json!({"reference": TAG})).await;
    let pin = site.pin().await;
    assert_eq!((pin.digest, pin.previous, pin.update), (digest("1"), None, None));
}

#[tokio::test]
async fn a_job_whose_image_is_fetched_is_told_how_far_it_is() {
    let (site, fence) = pinned().await;
    site.sql("UPDATE hosts SET can_boot = '{}'").await;
    site.deliver(&Job::queued(1)).await;
    let image = digest("1");
    let pull = Pull { host: fence.host, reference: TAG, image: &image, total: 27_000_000_000, done: 0, trouble: None };
    image_pulls::report(&site.db.host, &pull).await.expect("told");
    image_pulls::report(&site.db.host, &Pull { done: 13_500_000_000, ..pull }).await.expect("told");
    let why = site.get("/jobs/1/why").await.body["reasons"][0].clone();
    assert_eq!(why["reason"], Waiting::ImagePulling.as_str());
    let evidence = why["evidence"].as_str().expect("a text");
    assert!(evidence.starts_with(&format!("mini-1 fetches {TAG}: 50 % of 27 GB")), "{evidence}");
    assert_eq!(site.get("/hosts").await.body["items"][0]["pulls"][0]["done_bytes"], 13_500_000_000_u64);
    let told = Pull { trouble: Some("the registry wants a login"), ..pull };
    image_pulls::report(&site.db.host, &told).await.expect("told");
    let why = site.get("/jobs/1/why").await.body["reasons"][0].clone();
    assert!(why["evidence"].as_str().is_some_and(|text| text.contains("wants a login")), "{why}");
    assert!(site.get("/status").await.body["problems"].to_string().contains("could not fetch"));
}
