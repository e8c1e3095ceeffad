//! `jobs why`: for every job that anybody asks about, a word of the closed list and what shows it.

use crate::support::payload::Job;
use crate::support::site::Site;
use axum::http::StatusCode;
use flyci::domain::reason::Waiting;
use serde_json::{Value, json};

/// Memory of a host that every vm of the tests fits on, in bytes.
const ENOUGH: u64 = 16_000_000_000;

async fn why(site: &Site, id: u64) -> Value {
    let answer = site.get(&format!("/jobs/{id}/why")).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let first = answer.body["reasons"][0].clone();
    assert!(first["evidence"].as_str().is_some_and(|text| !text.is_empty()), "{answer:?}");
    first["reason"].clone()
}

/// A site with the queued job 1.
async fn queued() -> Site {
    let site = Site::open().await;
    site.deliver(&Job::queued(1)).await;
    site
}

/// Takes the job's class for a vm, as dispatch does.
const BIND: &str = "UPDATE vms SET state = 'bound', bound_at = now(), class = j.class, tenant_id = j.tenant_id,
                        repository_id = j.repository_id FROM jobs j";
/// Asks for a runner for the vm.
const REQUEST: &str =
    "INSERT INTO runners (id, vm_id, host_id, tenant_id, repository_id, labels, class, state, trouble)
                       SELECT gen_random_uuid(), id, host_id, tenant_id, repository_id, '{}', class, 'requested',
                              'org_forbids_repo_runners' FROM vms";

#[tokio::test]
async fn github_holds_it_back() {
    let site = Site::open().await;
    site.deliver(&Job::waiting(1)).await;
    assert_eq!(why(&site, 1).await, Waiting::GithubApproval.as_str());
}

#[tokio::test]
async fn it_was_refused() {
    let site = Site::with(|policy| policy.open_admission = false).await;
    site.deliver(&Job::queued(1)).await;
    site.deliver(&Job::queued(2).labels(&["flyci-tset"])).await;
    assert_eq!(why(&site, 1).await, Waiting::TenantNotApproved.as_str());
    assert_eq!(why(&site, 2).await, Waiting::LabelUnknown.as_str());
    let answer = site.get("/jobs/2/why?account=ACME").await.body;
    assert_eq!(answer["refusal"]["account"], "acme");
    assert_eq!(answer["reasons"][0]["fix"], "did it mean `flyci-test`?");
    let open = Site::open().await;
    open.deliver(&Job { private: false, ..Job::queued(3) }).await;
    assert_eq!(why(&open, 3).await, Waiting::PublicRepository.as_str());
}

#[tokio::test]
async fn nobody_told_us_of_it() {
    let site = queued().await;
    assert_eq!(site.get("/jobs/2/why").await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.get("/jobs/1/why?account=stranger").await.status, StatusCode::NOT_FOUND);
    assert_eq!(site.get("/jobs/abc/why").await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn no_machine_can_run_it() {
    let site = queued().await;
    assert_eq!(why(&site, 1).await, Waiting::NoHostForProfile.as_str(), "there is none");
    site.host("tiny", 2, 1_000_000).await;
    assert_eq!(why(&site, 1).await, Waiting::NoHostForProfile.as_str(), "it has too little memory");
}

#[tokio::test]
async fn the_machines_are_drained_failing_or_full() {
    let site = queued().await;
    let fence = site.host("mini-1", 1, ENOUGH).await;
    assert_eq!(why(&site, 1).await, Waiting::BeingServed.as_str(), "a slot is free: it is next");
    site.change("/hosts/drain", json!({"reason": "new disk"})).await;
    assert_eq!(why(&site, 1).await, Waiting::PausedByOperator.as_str());
    let told = site.get("/jobs/1/why").await.body.to_string();
    assert!(told.contains("new disk"), "{told}");
    site.change("/hosts/resume", json!({})).await;
    site.sql("INSERT INTO host_images SELECT id, 'any', 4, 'boot_failed', now() + interval '1 hour' FROM hosts").await;
    assert_eq!(why(&site, 1).await, Waiting::HostQuarantined.as_str());
    site.sql("DELETE FROM host_images").await;
    site.vm(fence, 0).await;
    site.sql("UPDATE vms SET profile = 'another'").await;
    assert_eq!(why(&site, 1).await, Waiting::NoCapacity.as_str());
}

#[tokio::test]
async fn its_account_has_what_it_may_have() {
    let site = queued().await;
    site.host("mini-1", 2, ENOUGH).await;
    site.change("/tenants/acme/limit", json!({"vms": 0})).await;
    assert_eq!(why(&site, 1).await, Waiting::TenantLimit.as_str());
    site.change("/tenants/acme/suspend", json!({})).await;
    assert_eq!(why(&site, 1).await, Waiting::TenantNotApproved.as_str());
}

#[tokio::test]
async fn a_vm_is_coming_or_its_runner_is_not_made() {
    let site = queued().await;
    let fence = site.host("mini-1", 2, ENOUGH).await;
    site.vm(fence, 0).await;
    assert_eq!(why(&site, 1).await, Waiting::BeingServed.as_str(), "a blank vm boots");
    site.sql(BIND).await;
    assert_eq!(why(&site, 1).await, Waiting::BeingServed.as_str(), "it is taken");
    site.sql(REQUEST).await;
    assert_eq!(why(&site, 1).await, Waiting::OrgForbidsRepoRunners.as_str());
    site.sql("UPDATE runners SET trouble = 'minting_rate_limited'").await;
    assert_eq!(why(&site, 1).await, Waiting::MintingRateLimited.as_str());
    site.sql("UPDATE runners SET trouble = NULL, state = 'online'").await;
    site.sql("UPDATE vms SET state = 'serving', serving_at = now()").await;
    assert_eq!(why(&site, 1).await, Waiting::GithubDelay.as_str(), "its runner waits for it");
}

#[tokio::test]
async fn it_was_tried_in_vain_or_is_in_doubt() {
    let site = queued().await;
    site.host("mini-1", 2, ENOUGH).await;
    site.sql("UPDATE jobs SET attempts = 5, not_before = now() + interval '10 minutes'").await;
    assert_eq!(why(&site, 1).await, Waiting::DeferredAfterFailures.as_str());
    site.sql("UPDATE jobs SET not_before = NULL, verify_since = now()").await;
    assert_eq!(why(&site, 1).await, Waiting::GithubDelay.as_str());
}

#[tokio::test]
async fn github_refuses_the_images_runner() {
    let site = queued().await;
    let fence = site.host("mini-1", 2, ENOUGH).await;
    site.vm(fence, 0).await;
    site.sql("UPDATE vms SET state = 'gone', reason = 'runner_too_old', delivering_at = now(), gone_at = now()").await;
    assert_eq!(why(&site, 1).await, Waiting::RunnerTooOld.as_str());
}

#[tokio::test]
async fn how_it_ended() {
    let site = queued().await;
    site.deliver(&Job::cancelled(1)).await;
    assert_eq!(why(&site, 1).await, "cancelled_in_queue");
    site.sql("UPDATE jobs SET state = 'unserved', reason = 'queue_timeout'").await;
    assert_eq!(why(&site, 1).await, "queue_timeout");
    site.vm(site.host("mini-1", 2, ENOUGH).await, 0).await;
    site.sql("UPDATE vms SET state = 'gone', reason = 'job_done', gone_at = now()").await;
    site.sql("UPDATE jobs SET state = 'done', reason = NULL, conclusion = 'success', vm_id = (SELECT id FROM vms)")
        .await;
    assert_eq!(why(&site, 1).await, "job_done");
}
