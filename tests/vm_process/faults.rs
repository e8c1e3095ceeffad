//! What goes wrong with a VM's process: it is noticed, told with its reason, charged to whom it belongs, and cleared away.

use crate::support::{Host, START, pids_of};
use flyci::hypervisor::vz::fault::FaultReason;
use flyci::hypervisor::vz::stand_in::{Act, Happening};
use flyci::hypervisor::{Hypervisor, HypervisorError, Presence, VmSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// Whether an error is charged as it should be.
type Charged = fn(&HypervisorError) -> bool;

/// A vm that does not come up, and why.
async fn refused(host: &Host, start: Act) -> (VmSpec, HypervisorError) {
    host.stand_ins.change(|script| script.start = start);
    let spec = host.spec(1);
    host.vz.clone_vm(&spec).await.expect("cloned");
    let error = host.vz.boot(&spec).await.expect_err("it does not come up");
    assert_eq!(host.vz.presence(spec.id).await, Presence::Dormant, "no process is left: {error}");
    (spec, error)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_start_is_charged_to_whom_it_belongs() {
    let host = Host::new();
    let table: [(FaultReason, Charged); 9] = [
        (FaultReason::SessionLost, |error| matches!(error, HypervisorError::NoSession(_))),
        (FaultReason::OutOfSpace, |error| matches!(error, HypervisorError::NoRoom(_))),
        (FaultReason::DiskBroken, |error| matches!(error, HypervisorError::Image { .. })),
        (FaultReason::Unfit, |error| matches!(error, HypervisorError::Unfit(_))),
        (FaultReason::StorageLocked, |error| matches!(error, HypervisorError::Process(_))),
        (FaultReason::Network, |error| matches!(error, HypervisorError::Process(_))),
        (FaultReason::StateMismatch, |error| matches!(error, HypervisorError::Process(_))),
        (FaultReason::WrongState, |error| matches!(error, HypervisorError::Process(_))),
        (FaultReason::Internal, |error| matches!(error, HypervisorError::Process(_))),
    ];
    for (reason, is_right) in table {
        let (spec, error) = refused(&host, Act::Fail(reason)).await;
        assert!(is_right(&error), "{reason:?}: {error:?}");
        assert!(error.to_string().contains(reason.advice()), "{error}");
        let words = host.vz.last_words(spec.id).await.expect("it left word");
        assert!(words.contains("told to fail"), "{words}");
        host.is_gone(spec.id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_platform_lost_costs_one_and_the_other_goes_on() {
    let host = Host::new();
    let lives = host.booted(0).await;
    let (spec, error) = refused(&host, Act::Fail(FaultReason::LimitExceeded)).await;
    assert!(matches!(error, HypervisorError::SlotLost(_)), "{error:?}");
    assert_eq!(host.vz.lost_slots(), 1);
    assert_eq!(host.next_daemon().lost_slots(), 1, "a restart does not forget it");
    host.is_gone(spec.id).await;
    host.is_gone(lives.id).await;

    host.stand_ins.change(|script| script.start = Act::Well);
    let (one, other) = (host.booted(0).await, host.booted(1).await);
    assert_eq!(host.vz.lost_slots(), 0, "it is back when two run");
    host.is_gone(one.id).await;
    host.is_gone(other.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_is_ended_before_a_slot_is_given_up() {
    let host = Host::new();
    let stray = host.booted(0).await;
    std::fs::remove_dir_all(host.path(stray.id)).expect("somebody removed it");
    let (spec, _) = refused(&host, Act::Fail(FaultReason::LimitExceeded)).await;
    assert_eq!(host.vz.presence(stray.id).await, Presence::Absent, "the stray is ended");
    host.is_gone(spec.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_machine_is_not_taken_for_a_lost_slot() {
    let host = Host::with(|options| options.slots = 1);
    let lives = host.booted(0).await;
    let (spec, error) = refused(&host, Act::Fail(FaultReason::LimitExceeded)).await;
    assert!(matches!(error, HypervisorError::NoRoom(_)), "{error:?}");
    assert_eq!(host.vz.lost_slots(), 0);
    host.is_gone(spec.id).await;
    host.is_gone(lives.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_hangs_is_ended_by_its_deadline() {
    let host = Host::with(|options| options.start_deadline = Duration::from_millis(300));
    let (spec, error) = refused(&host, Act::Hang).await;
    assert!(error.to_string().contains("did not answer within"), "{error}");
    host.is_gone(spec.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_crashes_at_the_start_says_so() {
    let host = Host::new();
    let begun = tokio::time::Instant::now();
    let (spec, error) = refused(&host, Act::Crash).await;
    assert!(matches!(error, HypervisorError::Process(_)), "{error:?}");
    assert!(begun.elapsed() < START, "the crash is noticed, the deadline is not waited for");
    host.is_gone(spec.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_will_not_stop_is_killed_by_deadline() {
    let host = Host::new();
    host.stand_ins.change(|script| script.stop = Act::Hang);
    let hangs = host.booted(0).await;
    host.is_gone(hangs.id).await;
    host.stand_ins.change(|script| script.stop = Act::Fail(FaultReason::Internal));
    let refuses = host.booted(0).await;
    host.is_gone(refuses.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_still_is_killed_by_deadline() {
    let host = Host::new();
    let spec = host.booted(0).await;
    for pid in pids_of(&format!("vm --directory {}", host.path(spec.id).display())) {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("stopped");
    }
    assert_eq!(host.vz.presence(spec.id).await, Presence::Running, "it keeps its slot");
    host.is_gone(spec.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn however_a_vm_ends_its_end_is_noticed_and_told() {
    let host = Host::new();
    let off = host.booted(0).await;
    host.happens(off.id, Happening::PowerOff);
    assert_eq!(host.end(off.id).await, "the guest powered itself off");

    let failed = host.booted(1).await;
    host.happens(failed.id, Happening::Fail(FaultReason::Network));
    assert!(host.end(failed.id).await.contains("told to fail"));

    let crashed = host.booted(0).await;
    host.happens(crashed.id, Happening::Crash);
    assert!(host.end(crashed.id).await.contains("signal: 6 (SIGABRT)"));

    let told = host.booted(0).await;
    signal_of(&host, &told, Signal::SIGTERM);
    assert_eq!(host.end(told.id).await, "SIGTERM told it to end");

    let killed = host.booted(0).await;
    signal_of(&host, &killed, Signal::SIGKILL);
    assert!(host.end(killed.id).await.contains("signal: 9 (SIGKILL)"));
    for spec in [off, failed, crashed, told, killed] {
        assert_eq!(host.vz.presence(spec.id).await, Presence::Dormant);
        host.is_gone(spec.id).await;
    }
}

fn signal_of(host: &Host, spec: &VmSpec, signal: Signal) {
    let pids = pids_of(&format!("vm --directory {}", host.path(spec.id).display()));
    let [pid] = pids[..] else { panic!("one process, not {pids:?}") };
    kill(Pid::from_raw(pid), signal).expect("it is ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_a_recipe_it_can_read_says_so() {
    let host = Host::new();
    let spec = host.booted(0).await;
    let recipe = host.path(spec.id).join("recipe.json");
    let text = std::fs::read_to_string(&recipe).expect("a recipe");
    signal_of(&host, &spec, Signal::SIGKILL);
    host.end(spec.id).await;
    std::fs::remove_file(host.path(spec.id).join("end.json")).expect("it was told");
    std::fs::write(&recipe, text.replace("\"format\": 1", "\"format\": 99")).expect("written");
    let lock = std::fs::OpenOptions::new().read(true).write(true).open(host.path(spec.id).join("vm.lock")).expect("it");
    let ended = std::process::Command::new(env!("CARGO_BIN_EXE_flyci"))
        .args(["vm", "--directory"])
        .arg(host.path(spec.id))
        .stdin(std::process::Stdio::from(lock))
        .output()
        .expect("it runs");
    assert_eq!(ended.status.code(), Some(1));
    let left = std::fs::read_to_string(host.path(spec.id).join("end.json")).expect("it left word");
    assert!(left.contains("format 99"), "{left}");
    host.is_gone(spec.id).await;
}
