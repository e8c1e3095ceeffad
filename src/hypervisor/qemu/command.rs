//! The command line of one VM's process. Pure: what is not here the machine does not get.
//!
//! No directory sharing, clipboard, audio, USB, graphics or balloon. Options and devices:
//! <https://www.qemu.org/docs/master/system/invocation.html>.

use crate::images::Architecture;
use std::path::{Path, PathBuf};

/// The virtio-serial port that the agent serves.
pub(super) const AGENT_PORT: &str = "flyci.agent.0";

/// The guest's address, and what it takes for the way out: the addresses of QEMU's own network.
const GUEST_ADDRESS: &str = "10.0.2.15/24,10.0.2.2";

/// Most memory that translated instructions take, in MiB. QEMU's own default reaches a gigabyte.
const TRANSLATIONS_MIB: u32 = 128;

/// What makes a start under emulation quick (measured: 3.7 s to 2.1 s). Nothing here protects a
/// guest from another: each has one job, and everything in it is that job's.
const QUICK_START: &str = "nokaslr mitigations=off tsc=reliable no_timer_check cryptomgr.notests random.trust_cpu=on";

/// How a guest's instructions are run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// In software.
    Tcg,
}

/// The guest's way to the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Uplink {
    /// To nowhere.
    Closed,
    /// To whatever the process can reach in its network namespace; names are asked there.
    Open { dns: std::net::Ipv4Addr },
}

/// One machine, as its process is told.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) architecture: Architecture,
    pub(super) accelerator: Accelerator,
    pub(super) cpus: u32,
    pub(super) memory_mib: u64,
    /// Shown in the process list; also the machine's UUID.
    pub(super) id: uuid::Uuid,
    pub(super) slot: u16,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// The clone, in an encrypted volume.
    pub(super) disk: PathBuf,
    /// The pipe that the volume's key comes out of.
    pub(super) key: PathBuf,
    /// A read-only disk with the runner.
    pub(super) runner_disk: Option<PathBuf>,
    /// What the image wants the kernel to be told.
    pub(super) command_line: String,
    pub(super) uplink: Uplink,
    /// Socket of the control protocol.
    pub(super) control: PathBuf,
    /// Socket of the agent's channel.
    pub(super) agent: PathBuf,
}

impl Machine {
    /// The arguments of `qemu-system-…`.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut list = Arguments(Vec::new());
        self.board(&mut list);
        self.confinement(&mut list);
        self.channels(&mut list);
        self.disks(&mut list);
        self.network(&mut list);
        list.add("-device", "virtio-rng-pci");
        list.add("-kernel", self.kernel.display());
        list.add("-initrd", self.initrd.display());
        list.add("-append", self.append());
        list.0
    }

    fn board(&self, list: &mut Arguments) {
        // Memory of guests is kept out of core dumps and out of page merging, which leaks content.
        let private = "dump-guest-core=off,mem-merge=off";
        match self.architecture {
            Architecture::X86_64 => {
                list.add("-machine", format!("q35,usb=off,vmport=off,hpet=off,{private}"));
                // Tells the guest when it was copied, so that its randomness is made anew.
                list.add("-device", "vmgenid,guid=auto");
            }
            Architecture::Aarch64 => list.add("-machine", format!("virt,gic-version=max,{private}")),
        }
        match self.accelerator {
            Accelerator::Kvm => {
                list.add("-accel", "kvm");
                list.add("-cpu", "host");
            }
            Accelerator::Tcg => {
                list.add("-accel", format!("tcg,tb-size={TRANSLATIONS_MIB}"));
                list.add("-cpu", "max");
            }
        }
        list.add("-smp", self.cpus);
        list.add("-m", format!("{}M", self.memory_mib));
        list.add("-name", format!("flyci-{}", self.id));
        list.add("-uuid", self.id);
    }

    fn confinement(&self, list: &mut Arguments) {
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            list.0.push(flag.to_owned());
        }
        list.add("-display", "none");
        list.add("-serial", "none");
        list.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }

    fn channels(&self, list: &mut Arguments) {
        list.add("-chardev", format!("socket,id=control,path={},server=on,wait=off", escaped(&self.control)));
        list.add("-mon", "chardev=control,mode=control");
        list.add("-chardev", format!("socket,id=agent,path={},server=on,wait=off", escaped(&self.agent)));
        list.add("-device", "virtio-serial-pci,max_ports=2");
        list.add("-device", format!("virtserialport,chardev=agent,name={AGENT_PORT}"));
    }

    fn disks(&self, list: &mut Arguments) {
        // Nothing of a clone is wanted after a crash of the host: it need not be written out.
        let disk = escaped(&self.disk);
        list.add("-object", format!("secret,id=key,file={}", escaped(&self.key)));
        let volume = format!("file.driver=luks,file.key-secret=key,file.file.driver=file,file.file.filename={disk}");
        list.add("-drive", format!("if=none,id=root,driver=qcow2,{volume},cache=unsafe,discard=unmap"));
        list.add("-device", "virtio-blk-pci,drive=root");
        if let Some(runner) = &self.runner_disk {
            let disk = escaped(runner);
            list.add("-drive", format!("file={disk},if=none,id=runner,format=raw,readonly=on"));
            list.add("-device", "virtio-blk-pci,drive=runner");
        }
    }

    fn network(&self, list: &mut Arguments) {
        let restrict = match self.uplink {
            Uplink::Closed => "on",
            Uplink::Open { .. } => "off",
        };
        let [high, low] = self.slot.to_be_bytes();
        list.add("-netdev", format!("user,id=net,ipv6=off,restrict={restrict}"));
        list.add("-device", format!("virtio-net-pci,netdev=net,romfile=,mac=52:54:00:66:{high:02x}:{low:02x}"));
    }

    /// The kernel's command line: see the agent's `init` for the words that begin with `flyci.`.
    fn append(&self) -> String {
        let mut words = vec!["panic=-1 quiet".to_owned()];
        if self.accelerator == Accelerator::Tcg && self.architecture == Architecture::X86_64 {
            words.push(QUICK_START.to_owned());
        }
        words.push(format!("flyci.port={AGENT_PORT} flyci.root=/dev/vda"));
        if self.runner_disk.is_some() {
            words.push("flyci.data=/dev/vdb".to_owned());
        }
        if let Uplink::Open { dns } = self.uplink {
            words.push(format!("flyci.net={GUEST_ADDRESS},{dns}"));
        }
        if !self.command_line.is_empty() {
            words.push(self.command_line.clone());
        }
        words.join(" ")
    }
}

struct Arguments(Vec<String>);

impl Arguments {
    fn add(&mut self, option: &str, value: impl std::fmt::Display) {
        self.0.push(option.to_owned());
        self.0.push(value.to_string());
    }
}

/// A path as a value among QEMU's options, where a comma ends a value unless it is doubled.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            architecture: Architecture::X86_64,
            accelerator: Accelerator::Tcg,
            cpus: 2,
            memory_mib: 512,
            id: uuid::Uuid::from_u128(7),
            slot: 1,
            kernel: "/images/a/kernel".into(),
            initrd: "/images/a/initrd".into(),
            disk: "/vms/7/disk.luks".into(),
            key: "/vms/7/disk.key".into(),
            runner_disk: Some("/runners/a,b.img".into()),
            command_line: "flyci.modules=virtio_net".into(),
            uplink: Uplink::Open { dns: [198, 51, 100, 3].into() },
            control: "/vms/7/qmp.sock".into(),
            agent: "/vms/7/agent.sock".into(),
        }
    }

    fn shown(machine: &Machine) -> String {
        machine
            .arguments()
            .join("\n")
            .replace("\n-", "\n\n-")
            .replace("\n\n", "\r")
            .replace('\n', " ")
            .replace('\r', "\n")
    }

    #[test]
    fn a_machine_gets_this_and_no_more() {
        insta::assert_snapshot!(shown(&machine()));
    }

    #[test]
    fn a_machine_of_another_kind_gets_its_own_board() {
        let arm = Machine {
            architecture: Architecture::Aarch64,
            accelerator: Accelerator::Kvm,
            runner_disk: None,
            uplink: Uplink::Closed,
            ..machine()
        };
        insta::assert_snapshot!(shown(&arm));
    }
}
