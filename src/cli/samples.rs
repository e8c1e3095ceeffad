//! A fleet that never was: the fixed data behind the snapshots of what is printed.

use crate::api::*;
use chrono::{DateTime, TimeDelta, Utc};

/// The moment at which all samples were taken.
pub fn now() -> DateTime<Utc> {
    "2026-11-25T03:13:12.500Z".parse().expect("a time")
}

/// So many seconds before [`now`].
pub fn before(seconds: f64) -> DateTime<Utc> {
    now() - TimeDelta::milliseconds((seconds * 1000.0) as i64)
}

pub fn status() -> Status {
    Status {
        fleet_id: "6e2f".into(),
        version: "0.1.0".into(),
        started_at: before(187_300.0),
        now: now(),
        roles: vec!["gateway".into(), "host".into()],
        intake: "webhook".into(),
        readiness: "ready".into(),
        last_delivery_at: Some(before(3.2)),
        deliveries: DeliveryHealth {
            good_at: Some(before(3.2)),
            log_read_at: Some(before(20.0)),
            missed: 0,
            given_up: 0,
        },
        queue: Queue { waiting: 1, queued: 6, claimed: 2, running: 3, oldest_queued_at: Some(before(130.0)) },
        day: Day { done: 1_812, cancelled: 14, unserved: 0, lost: 0, wait_p50_s: Some(9.1), wait_p99_s: Some(100.4) },
        hosts: vec![host("mini-07", "ready", 2), draining(), quarantined()],
        problems: vec![
            Trouble {
                what: "image 923c98d3aabb is quarantined on mini-31".into(),
                evidence: "3 boots failed in a row (boot_timeout)".into(),
                fix: "flyci image verify 923c98d3aabb".into(),
            },
            Trouble {
                what: "1 account waits for approval".into(),
                evidence: "acme installed the App 2 h ago".into(),
                fix: "flyci tenants approve acme".into(),
            },
        ],
    }
}

pub fn host(name: &str, state: &str, vms: u32) -> Host {
    Host {
        name: name.into(),
        state: state.into(),
        hypervisor: "vz".into(),
        hardware: "m4".into(),
        os: "macOS 26.6".into(),
        architecture: "aarch64".into(),
        slots: 2,
        vms,
        cpus: 10,
        memory_bytes: 16 << 30,
        memory_used_bytes: u64::from(vms) * (6 << 30),
        runner_version: Some("2.330.0".into()),
        runner_cut_off_at: None,
        version: "0.1.0".into(),
        beat_at: before(0.8),
        silent_for_s: 0.8,
        drain_reason: None,
        drained_by: None,
        drained_at: None,
        failing_images: Vec::new(),
        pulls: Vec::new(),
        can_boot: Some(vec!["flyci-macos-large".into()]),
        differs: Vec::new(),
    }
}

fn draining() -> Host {
    Host {
        drain_reason: Some("macOS update".into()),
        drained_by: Some("operator:501".into()),
        drained_at: Some(before(840.0)),
        ..host("mini-12", "draining", 1)
    }
}

fn quarantined() -> Host {
    let failing = FailingImage {
        host: "mini-31".into(),
        image: "sha256:923c98d3aabbccddeeff00112233445566778899aabbccddeeff001122334455".into(),
        failures: 3,
        last_failure: Some("boot_timeout".into()),
        quarantined_until: Some(before(-840.0)),
    };
    Host { failing_images: vec![failing], ..host("mini-31", "ready", 0) }
}

pub fn job(id: &str, state: &str) -> Job {
    Job {
        id: id.into(),
        run_id: "91".into(),
        run_attempt: 1,
        repository: Some("acme/app".into()),
        initiator: Some("mona".into()),
        profile: "flyci-macos-large".into(),
        hardware: None,
        state: state.into(),
        conclusion: None,
        reason: None,
        received_at: before(129.4),
        github: JobTimes { created_at: Some(before(130.5)), started_at: None, completed_at: None },
        vm: None,
    }
}

/// A job that ran and failed, with a vm that is gone.
pub fn ended_job() -> Job {
    let github =
        JobTimes { created_at: Some(before(130.5)), started_at: Some(before(110.5)), completed_at: Some(before(30.5)) };
    Job {
        conclusion: Some("failure".into()),
        hardware: Some("m4".into()),
        github,
        vm: Some(JobVm {
            id: "3f0c9a4e-1111-4222-8333-444455556666".into(),
            host: "mini-07".into(),
            image: "sha256:923c98d3aabbccddeeff00112233445566778899aabbccddeeff001122334455".into(),
            runner_name: Some("flyci-6e2f-01".into()),
            times: VmTimes {
                planned_at: before(129.37),
                cloned_at: Some(before(129.29)),
                booted_at: Some(before(129.0)),
                ready_at: Some(before(114.9)),
                bound_at: Some(before(114.88)),
                minted_at: Some(before(114.2)),
                delivering_at: Some(before(114.15)),
                serving_at: Some(before(113.9)),
                gone_at: Some(before(29.8)),
            },
        }),
        ..job("4711", "done")
    }
}

pub fn vm(id: &str, state: &str) -> Vm {
    Vm {
        id: id.into(),
        host: "mini-07".into(),
        slot: 0,
        profile: "flyci-macos-large".into(),
        image: "sha256:923c98d3aabbccddeeff00112233445566778899aabbccddeeff001122334455".into(),
        cpus: 4,
        memory_bytes: 7_000_000_000,
        state: state.into(),
        reason: None,
        kill_asked: None,
        repository: Some("acme/app".into()),
        job_id: Some("4711".into()),
        runner_name: Some("flyci-6e2f-01".into()),
        runner_status: None,
        stopping_at: None,
        times: ended_job().vm.expect("it has one").times,
    }
}
