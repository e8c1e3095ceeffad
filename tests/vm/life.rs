//! A VM comes, is adopted, and goes without a trace.

use crate::support::{Host, PATIENCE};
use flyci::domain::ids::VmId;
use flyci::domain::units::Bytes;
use flyci::hypervisor::qemu::{Options, Qemu};
use flyci::hypervisor::{Hypervisor, HypervisorError, Presence};
use std::time::Instant;

/// Processes that know a VM's id: its own, and those around it.
fn processes_of(vm: VmId) -> Vec<String> {
    let name = vm.to_string();
    let entries = std::fs::read_dir("/proc").expect("processes");
    let commands = entries.flatten().filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    commands.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(&name)).collect()
}

/// Whether the VM's first process leads a session of its own.
fn leads_a_session(vm: &std::path::Path) -> bool {
    let record = std::fs::read(vm.join("vm.json")).expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    let pid = record["process"]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a process id");
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::unistd::getsid(Some(pid)) == Ok(pid)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_boots_runs_a_command_and_leaves_nothing() {
    let host = Host::new(|_| {}).await;
    let spec = host.spec(0);
    let begun = Instant::now();
    host.qemu.clone_vm(&spec).await.expect("cloned");
    host.qemu.clone_vm(&spec).await.expect("again: it is there");
    assert_eq!(host.qemu.presence(spec.id).await, Presence::Dormant);
    let cloned = begun.elapsed();
    host.qemu.boot(&spec).await.expect("booted");
    host.qemu.boot(&spec).await.expect("again: it runs");
    assert_eq!(host.qemu.presence(spec.id).await, Presence::Running);
    let up = begun.elapsed();
    host.qemu.guest(spec.id).ready().await.expect("the agent answers");
    let ready = begun.elapsed();
    assert_eq!(host.qemu.images_in_use().expect("listed"), [host.image.digest.clone()].into());

    let dying = Instant::now();
    host.qemu.destroy(spec.id).await.expect("destroyed");
    println!(
        "clone {cloned:?}, process up {:?}, ready {:?} after the boot call, destroy {:?}",
        up - cloned,
        ready - cloned,
        dying.elapsed()
    );
    host.qemu.destroy(spec.id).await.expect("again: nothing to do");
    assert_eq!(host.qemu.presence(spec.id).await, Presence::Absent);
    assert!(!host.path(spec.id).exists());
    assert_eq!(processes_of(spec.id), Vec::<String>::new());
    assert!(host.qemu.list().await.expect("listed").is_empty());
    host.qemu.ended(spec.id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_daemon_adopts_the_vm_and_sees_its_end() {
    let host = Host::new(|_| {}).await;
    let vm = host.booted(0).await;
    let adopted = Qemu::open(Options::new(host.directory.path())).expect("a second daemon");
    assert_eq!(adopted.list().await.expect("listed"), [vm.spec.id]);
    assert_eq!(adopted.presence(vm.spec.id).await, Presence::Running);
    adopted.boot(&vm.spec).await.expect("it runs already");
    assert!(leads_a_session(&host.path(vm.spec.id)), "nothing that ends the daemon's processes ends it");
    assert_eq!(vm.run("echo alive").await, (0, "alive\n".into()));

    let ended = adopted.ended(vm.spec.id);
    host.qemu.destroy(vm.spec.id).await.expect("destroyed by the first");
    tokio::time::timeout(PATIENCE, ended).await.expect("seen by the second");
    adopted.destroy(vm.spec.id).await.expect("nothing is left to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_powers_off_ends_its_vm() {
    let host = Host::new(|_| {}).await;
    let vm = host.booted(0).await;
    // Whether it still answers is chance.
    let _ = vm.try_run("kill -TERM 1").await;
    tokio::time::timeout(PATIENCE, host.qemu.ended(vm.spec.id)).await.expect("it ends by itself");
    assert_eq!(host.qemu.presence(vm.spec.id).await, Presence::Dormant);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_vms_run_at_once_each_with_its_own_disk() {
    let host = Host::new(|_| {}).await;
    let (one, two) = tokio::join!(host.booted(0), host.booted(1));
    assert_eq!(one.run("echo mine > /root/file; cat /root/file").await, (0, "mine\n".into()));
    let (status, _) = two.run("cat /root/file").await;
    assert_ne!(status, 0, "the other one has no such file");
    assert_ne!(one.run("cat /sys/class/net/eth0/address").await, two.run("cat /sys/class/net/eth0/address").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_finds_the_space_and_memory_it_was_promised() {
    let host = Host::new(|_| {}).await;
    let mut spec = host.spec(0);
    (spec.disk_free, spec.cpus) = (Bytes(3_000_000_000), 2);
    host.qemu.clone_vm(&spec).await.expect("cloned");
    host.qemu.boot(&spec).await.expect("booted");
    let vm = crate::support::Vm { socket: host.path(spec.id).join("agent.sock"), spec };
    let (_, free) = vm.run("df -k / | tail -1 | awk '{print $4}'").await;
    let free: u64 = free.trim().parse().expect("a number of kilobytes");
    assert!(free * 1024 >= vm.spec.disk_free.0, "{free} kB free");
    assert_eq!(vm.run("nproc").await, (0, "2\n".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_of_the_host_is_in_the_guest() {
    let runner = tempfile::tempdir().expect("a directory");
    std::fs::write(runner.path().join("run.sh"), "#!/bin/sh\necho runner\n").expect("written");
    let host = Host::new(|options| options.runner_directory = Some(runner.path().to_owned())).await;
    let vm = host.booted(0).await;
    assert_eq!(vm.run("sh /opt/runner/run.sh").await, (0, "runner\n".into()));
    assert_ne!(vm.run("touch /opt/runner/x").await.0, 0, "it is read-only");
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_boot_with_whatever_this_machine_is_found_to_have() {
    let host = Host::new(|options| options.accelerator = None).await;
    let vm = host.booted(0).await;
    assert_eq!(vm.run("echo up").await, (0, "up\n".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_start_says_why() {
    let host = Host::new(|_| {}).await;
    let mut spec = host.spec(0);
    spec.cpus = 100_000;
    host.qemu.clone_vm(&spec).await.expect("cloned");
    let told = host.qemu.boot(&spec).await.expect_err("no machine has so many").to_string();
    assert!(told.to_lowercase().contains("cpu"), "{told}");
    assert_eq!(host.qemu.presence(spec.id).await, Presence::Dormant);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_there_is_told() {
    let host = Host::new(|_| {}).await;
    let mut spec = host.spec(0);
    spec.image = host.directory.path().join("no-image");
    let told = host.qemu.clone_vm(&spec).await.expect_err("no image");
    assert!(matches!(told, HypervisorError::Image { .. }), "{told}");
    assert_eq!(host.qemu.presence(spec.id).await, Presence::Absent);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_parts_make_the_same_image() {
    let (one, two) = (crate::support::rebuilt().await, crate::support::rebuilt().await);
    assert_eq!(one.manifest.files, two.manifest.files);
    assert_eq!(one.digest, two.digest);
}
