//! Whether this machine runs guests by its processor (KVM) or in software (TCG).
//!
//! A device that opens proves nothing: there are machines whose `/dev/kvm` takes a VM and then
//! cannot run a stock kernel. So a kernel is booted, once per boot of the machine and version of
//! QEMU, and the outcome is kept in the data directory.

use super::command::Accelerator;
use crate::api::Trouble;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::process::{Tool, find};
use crate::hypervisor::record::boot_id;
use crate::images::{Architecture, INITRD, Image, KERNEL};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

/// How long a kernel may take to reach its first program. With a usable KVM it takes a second.
const TRIAL: Duration = Duration::from_secs(8);

/// How long QEMU may take to say its version.
const ASK_VERSION: Duration = Duration::from_secs(10);

/// What the kernel says when it starts its first program.
const REACHED: &str = "Run /init as init process";

/// Most bytes of console output that are looked through.
const CONSOLE_LIMIT: u64 = 1 << 20;

/// The device.
pub(super) const KVM: &str = "/dev/kvm";

/// The outcome of a trial, and for what it holds.
#[derive(PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
struct Verdict {
    boot_id: String,
    qemu: String,
    accelerator: Accelerator,
}

/// Makes sure that KVM can be used.
///
/// # Errors
/// When its device is missing, or not for this user.
pub(super) fn demand_kvm(device: &Path) -> Result<(), HypervisorError> {
    let Some((fault, fix)) = fault_of(device) else { return Ok(()) };
    Err(HypervisorError::Unfit(format!(
        "host.qemu.accel = \"kvm\", and {fault}: {fix}, or set accel = \"auto\", which runs vms without it, many times \
         slower"
    )))
}

/// Why the device cannot be used, and what to do about it.
fn fault_of(device: &Path) -> Option<(String, &'static str)> {
    let error = fs::OpenOptions::new().read(true).write(true).open(device).err()?;
    let fix = match error.kind() {
        io::ErrorKind::PermissionDenied => "put this user into the group that owns it (`usermod -aG kvm USER`)",
        _ => "switch virtualisation on in the machine's firmware, and load the module kvm",
    };
    Some((format!("{} cannot be used ({error})", device.display()), fix))
}

/// What an operator is told of a machine that was to run guests by its processor if it can, and does not.
pub(super) fn in_software(device: &Path) -> Trouble {
    let (evidence, fix) = fault_of(device).unwrap_or_else(|| {
        let evidence = format!("{} is there, but booted no kernel when it was tried", device.display());
        (evidence, "update this machine's firmware and kernel (in a VM: switch on nested virtualisation)")
    });
    Trouble {
        what: "vms run in software, many times slower than by KVM".to_owned(),
        evidence,
        fix: format!("{fix}; where it is meant so, say it: [host.qemu] accel = \"tcg\""),
    }
}

/// Whether the device can be tried at all.
pub(super) fn is_there(device: &Path) -> bool {
    fault_of(device).is_none()
}

/// Says how guests are run here. Boots a trial machine when that is not known yet.
pub(super) async fn detect(binary: &Path, image: &Image, data_dir: &Path) -> Accelerator {
    if !is_there(Path::new(KVM)) {
        return Accelerator::Tcg;
    }
    let (Ok(boot_id), Some(qemu)) = (boot_id(), version(binary).await) else { return Accelerator::Tcg };
    let file = data_dir.join("accelerator.json");
    if let Some(known) = recall(&file, &boot_id, &qemu) {
        return known;
    }
    let accelerator = if boots(binary, image).await { Accelerator::Kvm } else { Accelerator::Tcg };
    tracing::info!(?accelerator, "tried whether this machine's KVM boots a kernel");
    if let Err(error) = remember(&file, &Verdict { boot_id, qemu, accelerator }) {
        tracing::warn!(path = %file.display(), %error, "the outcome is not kept; it is tried again at the next start");
    }
    accelerator
}

fn recall(file: &Path, boot_id: &str, qemu: &str) -> Option<Accelerator> {
    let verdict: Verdict = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    (verdict.boot_id == boot_id && verdict.qemu == qemu).then_some(verdict.accelerator)
}

fn remember(file: &Path, verdict: &Verdict) -> io::Result<()> {
    let draft = file.with_extension("draft");
    fs::write(&draft, serde_json::to_vec_pretty(verdict)?)?;
    fs::rename(draft, file)
}

async fn version(binary: &Path) -> Option<String> {
    let said = Tool::new(&binary.to_string_lossy(), ASK_VERSION).ok()?.arg("--version").run().await.ok()?;
    Some(String::from_utf8_lossy(&said).lines().next()?.to_owned())
}

/// Whether the image's kernel gets as far as its first program under KVM.
async fn boots(binary: &Path, image: &Image) -> bool {
    let trial = async {
        let mut child = trial_machine(binary, image).spawn().ok()?;
        let console = child.stdout.take()?.take(CONSOLE_LIMIT);
        let mut lines = BufReader::new(console).split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            if String::from_utf8_lossy(&line).contains(REACHED) {
                return Some(());
            }
        }
        None
    };
    // The child is killed when it is dropped, also at the deadline.
    matches!(tokio::time::timeout(TRIAL, trial).await, Ok(Some(())))
}

fn trial_machine(binary: &Path, image: &Image) -> Command {
    let (machine, console) = match image.manifest.architecture {
        Architecture::X86_64 => ("q35", "ttyS0"),
        Architecture::Aarch64 => ("virt,gic-version=max", "ttyAMA0"),
    };
    let mut command = Command::new(binary);
    command
        .args(["-machine", machine, "-accel", "kvm", "-cpu", "host", "-m", "256M"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"])
        .args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"])
        .args(["-serial", "stdio", "-kernel"])
        .arg(image.path.join(KERNEL))
        .arg("-initrd")
        .arg(image.path.join(INITRD))
        .args(["-append", &format!("panic=-1 loglevel=7 console={console}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The program that runs guests of this architecture.
pub(super) fn program(
    configured: Option<&Path>,
    architecture: Architecture,
) -> Result<PathBuf, crate::hypervisor::process::ToolError> {
    match configured {
        Some(path) => find(&path.to_string_lossy()),
        None => find(&format!("qemu-system-{}", architecture.name())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_kvm_the_operator_is_told_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = demand_kvm(&directory.path().join("kvm")).expect_err("there is none").to_string();
        for words in ["host.qemu.accel", "cannot be used", "firmware", "accel = \"auto\""] {
            assert!(error.contains(words), "{words}: {error}");
        }
        let device = directory.path().join("device");
        fs::write(&device, "").expect("written");
        demand_kvm(&device).expect("it opens");
    }

    #[test]
    fn a_machine_without_kvm_is_told_of_with_a_way_to_say_that_it_is_meant() {
        let directory = tempfile::tempdir().expect("a directory");
        let none = in_software(&directory.path().join("kvm"));
        assert!(none.evidence.contains("cannot be used") && none.fix.contains("firmware"), "{none:?}");
        fs::write(directory.path().join("kvm"), "").expect("written");
        let useless = in_software(&directory.path().join("kvm"));
        assert!(useless.evidence.contains("booted no kernel"), "{useless:?}");
        assert!([none, useless].iter().all(|told| told.fix.ends_with("accel = \"tcg\"")));
    }

    #[test]
    fn an_outcome_holds_for_one_boot_and_one_qemu() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("accelerator.json");
        assert_eq!(recall(&file, "a", "10"), None);
        let verdict = Verdict { boot_id: "a".into(), qemu: "10".into(), accelerator: Accelerator::Kvm };
        remember(&file, &verdict).expect("written");
        assert_eq!(recall(&file, "a", "10"), Some(Accelerator::Kvm));
        assert_eq!(recall(&file, "b", "10"), None, "the machine was booted again");
        assert_eq!(recall(&file, "a", "11"), None, "QEMU was upgraded");
    }
}
