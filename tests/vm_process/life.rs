//! A VM's process comes, is adopted, and goes without a trace.

use crate::support::{Host, PATIENCE, eventually, options, pids_of, processes_of, ready, spec};
use flyci::hypervisor::vz::Vz;
use flyci::hypervisor::vz::options::StandIns;
use flyci::hypervisor::{Hypervisor, Presence};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getsid};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_boots_answers_and_leaves_nothing() {
    let host = Host::new();
    let spec = host.spec(0);
    host.vz.clone_vm(&spec).await.expect("cloned");
    host.vz.clone_vm(&spec).await.expect("again: it is there");
    assert_eq!(host.vz.presence(spec.id).await, Presence::Dormant);
    host.vz.boot(&spec).await.expect("booted");
    let running = pids_of(&format!("vm --directory {}", host.path(spec.id).display()));
    host.vz.boot(&spec).await.expect("again: it runs");
    assert_eq!(pids_of(&format!("vm --directory {}", host.path(spec.id).display())), running, "once");
    assert_eq!(host.vz.presence(spec.id).await, Presence::Running);
    ready(&host.vz, spec.id).await;

    let [pid] = running[..] else { panic!("one process, not {running:?}") };
    let pid = Pid::from_raw(pid);
    assert_eq!(getsid(Some(pid)), Ok(pid), "a session of its own");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("the limit");
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "no core dumps: {core}");
    assert_eq!(host.vz.images_in_use().expect("listed").len(), 1);
    host.is_gone(spec.id).await;
    assert!(host.vz.list().await.expect("listed").is_empty());
    host.vz.ended(spec.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_outlives_a_daemon_that_is_killed_and_the_next_one_adopts_it() {
    let host = Host::new();
    // This very test, run again as a daemon that boots a VM and waits to be killed.
    let mut daemon = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "life::a_daemon_that_boots_a_vm_and_waits", "--nocapture"])
        .env(DAEMON, host.directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    let marker = host.directory.path().join("booted");
    eventually("the daemon boots a vm", async || marker.exists()).await;
    let vm = std::fs::read_to_string(marker).expect("its id").parse().expect("an id");
    daemon.kill().expect("killed");
    daemon.wait().expect("collected");

    let next = host.next_daemon();
    assert_eq!(next.list().await.expect("listed"), [vm]);
    assert_eq!(next.presence(vm).await, Presence::Running);
    ready(&next, vm).await;
    let mut adopted = spec(&host.image, 0);
    adopted.id = vm;
    next.boot(&adopted).await.expect("it runs already");
    let ended = tokio::spawn(async move {
        next.ended(vm).await;
        next
    });
    for pid in pids_of(&format!("vm --directory {}", host.path(vm).display())) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killed");
    }
    let next = timeout(PATIENCE, ended).await.expect("the end is seen").expect("no panic");
    assert_eq!(next.presence(vm).await, Presence::Dormant);
    assert_eq!(
        next.last_words(vm).await.expect("some").split(':').next(),
        Some("it was killed, or crashed; its log ends so")
    );
    host.is_gone(vm).await;
}

/// Names the data directory of the daemon that the story above kills.
const DAEMON: &str = "FLYCI_TEST_VM_DAEMON";

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_boots_a_vm_and_waits() {
    // Without its story it has nothing to do.
    let Some(directory) = std::env::var_os(DAEMON) else { return };
    let directory = Path::new(&directory);
    let stand_ins = Arc::new(StandIns::new(&crate::support::built("flyci-agent"), &directory.join("runner")));
    let vz = Vz::open(options(directory, &stand_ins)).expect("a backend");
    let spec = spec(&directory.join("image"), 0);
    vz.clone_vm(&spec).await.expect("cloned");
    vz.boot(&spec).await.expect("booted");
    std::fs::write(directory.join("draft"), spec.id.to_string()).expect("written");
    std::fs::rename(directory.join("draft"), directory.join("booted")).expect("renamed");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_whose_directory_was_removed_is_still_found_and_killed() {
    let host = Host::new();
    let spec = host.booted(0).await;
    std::fs::remove_dir_all(host.path(spec.id)).expect("somebody removed it");
    assert_eq!(host.vz.list().await.expect("listed"), [spec.id]);
    assert_eq!(host.vz.presence(spec.id).await, Presence::Running);
    host.is_gone(spec.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_channel_outlives_a_hundred_drops() {
    const ROUNDS: usize = 100;
    let host = Host::new();
    let spec = host.booted(0).await;
    let socket = host.path(spec.id).join("agent.sock");
    for round in 0..ROUNDS {
        let mut stream = UnixStream::connect(&socket).await.expect("it takes connections");
        // What HTTP/2 begins with, cut anywhere, and now and then an answer that is not read to its end.
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let sent = &preface[..round % (preface.len() + 1)];
        stream.write_all(sent).await.expect("written");
        if sent.len() == preface.len() {
            let mut begun = [0; 1];
            timeout(PATIENCE, stream.read_exact(&mut begun)).await.expect("in time").expect("the agent answers");
        }
    }
    ready(&host.vz, spec.id).await;
    let mine = processes_of(&format!("vm --directory {}", host.path(spec.id).display()));
    assert_eq!(mine.len(), 1, "the process lives");
    host.is_gone(spec.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_alone_refuses_and_touches_nothing() {
    let host = Host::new();
    let spec = host.booted(0).await;
    let by_hand = Command::new(env!("CARGO_BIN_EXE_flyci"))
        .args(["vm", "--directory"])
        .arg(host.path(spec.id))
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    assert_eq!(by_hand.status.code(), Some(1));
    let told = String::from_utf8_lossy(&by_hand.stderr);
    assert!(told.contains("standard input is not the vm's lock"), "{told}");
    // Under the lock's file, but beside the process that holds it.
    let lock = std::fs::OpenOptions::new().read(true).write(true).open(host.path(spec.id).join("vm.lock")).expect("it");
    let second = Command::new(env!("CARGO_BIN_EXE_flyci"))
        .args(["vm", "--directory"])
        .arg(host.path(spec.id))
        .stdin(Stdio::from(lock))
        .output()
        .expect("it runs");
    let told = String::from_utf8_lossy(&second.stderr);
    assert!(told.contains("another process of this vm lives"), "{told}");
    assert!(!host.path(spec.id).join("end.json").exists(), "the vm that lives is not said to be dead");
    ready(&host.vz, spec.id).await;
    host.is_gone(spec.id).await;
}
