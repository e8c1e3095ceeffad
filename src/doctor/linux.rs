//! What a Linux machine must be and have, before QEMU's guests run on it.

use super::probe::{Probe, Said};
use super::{Check, Subject};
use crate::config::{Accel, HypervisorKind, Role};
use std::path::Path;

/// The oldest QEMU that the backend is tested with: Debian 12's.
const OLDEST_QEMU: (u32, u32) = (7, 2);
/// The kernel's way to run guests by the processor.
const KVM: &str = "/dev/kvm";
/// What lets a user use KVM.
const JOIN_KVM: &str = "usermod -aG kvm USER, then restart flyci";
/// Where the backend remembers whether KVM boots a kernel.
const ACCELERATOR: &str = "accelerator.json";
/// What pasta makes guests' networks with.
const TUN: &str = "/dev/net/tun";
/// Which resources the kernel can limit, cgroup version 2.
const CONTROLLERS: &str = "/sys/fs/cgroup/cgroup.controllers";
/// The unit that `flyci service install` writes.
const UNIT: &str = "flyci.service";

/// Every check of a Linux machine.
pub async fn checks(subject: &Subject<'_>, probe: &dyn Probe) -> Vec<Check> {
    let mut checks = vec![
        user(subject, probe),
        clock(&probe.run(&["timedatectl", "show", "--property=NTPSynchronized", "--property=NTP"]).await),
        unit(&probe.run(&["systemctl", "show", UNIT, "--property=LoadState,KillMode,ActiveState"]).await),
    ];
    let host = &subject.config.host;
    if !subject.config.roles.contains(&Role::Host) || host.hypervisor != HypervisorKind::Qemu {
        return checks;
    }
    let binary = host.qemu.binary.as_ref().map(|path| path.to_string_lossy().into_owned());
    let binary = binary.unwrap_or_else(|| format!("qemu-system-{}", std::env::consts::ARCH));
    checks.push(kvm(host.qemu.accel, &subject.config.data_dir, probe));
    checks.push(qemu(&probe.run(&[&binary, "--version"]).await));
    checks.push(cgroups(probe));
    checks.push(pasta(&probe.run(&["pasta", "--version"]).await, probe));
    checks
}

/// Root needs not be, and the private Postgres refuses it.
fn user(subject: &Subject<'_>, probe: &dyn Probe) -> Check {
    const NAME: &str = "unprivileged user";
    let owner = probe.about(&subject.config.data_dir).map(|about| about.uid);
    match owner {
        Ok(0) => Check::bad(NAME, "the data directory is root's: who escapes from a VM would be root")
            .fix("give it to a user of its own: flyci service install does"),
        Ok(uid) => Check::good(NAME, format!("the data directory is of user {uid}")),
        Err(_) if probe.uid() == 0 => Check::unknown(NAME, "there is no data directory yet, and you are root")
            .fix("flyci service install makes a user for it"),
        Err(_) => Check::good(NAME, format!("you are user {}", probe.uid())),
    }
}

/// `timedatectl show`: `NTP=yes` and `NTPSynchronized=yes`.
fn clock(said: &Said) -> Check {
    const NAME: &str = "clock";
    let text = match said {
        Said::Yes(text) => text,
        Said::No(why) | Said::Nothing(why) => return Check::unknown(NAME, why.lines().next().unwrap_or_default()),
    };
    let is = |line: &str| text.lines().any(|one| one.trim() == line);
    if is("NTPSynchronized=yes") {
        Check::good(NAME, "it is set by the network")
    } else if is("NTP=no") {
        Check::bad(NAME, "nobody sets it: GitHub refuses tokens of a clock that is a minute off").mended_by(&[&[
            "timedatectl",
            "set-ntp",
            "true",
        ]])
    } else {
        Check::warning(NAME, "it is not synchronised (yet)").fix("timedatectl timesync-status says what it waits for")
    }
}

/// `systemctl show`: a unit that kills the whole group kills running jobs with the daemon.
fn unit(said: &Said) -> Check {
    const NAME: &str = "service";
    let text = match said {
        Said::Yes(text) => text,
        Said::No(why) | Said::Nothing(why) => return Check::unknown(NAME, why.lines().next().unwrap_or_default()),
    };
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default();
    match (value("LoadState"), value("KillMode")) {
        ("loaded", "process") => Check::good(NAME, format!("{UNIT} is {}; VMs outlive it", value("ActiveState"))),
        ("loaded", other) => Check::bad(NAME, format!("KillMode={other}: a restart of {UNIT} kills running jobs"))
            .fix("flyci service install writes the unit anew"),
        _ => Check::warning(NAME, format!("there is no {UNIT}: who starts flyci after a reboot?"))
            .fix("flyci service install"),
    }
}

fn kvm(accel: Accel, data_dir: &Path, probe: &dyn Probe) -> Check {
    const NAME: &str = "kvm";
    let path = Path::new(KVM);
    let usable = probe.may_use(path);
    match accel {
        Accel::Tcg => Check::warning(NAME, "[host.qemu] accel = \"tcg\": guests run in software, many times slower")
            .fix("accel = \"auto\", where there is KVM"),
        Accel::Auto if usable && was_refused(data_dir, probe) => Check::warning(
            NAME,
            format!("{KVM} is there, but booted no kernel when it was tried: guests run in software"),
        )
        .fix(format!("where that was mended: rm {}", data_dir.join(ACCELERATOR).display())),
        Accel::Auto | Accel::Kvm if usable => Check::good(NAME, format!("{KVM} can be used")),
        Accel::Kvm if probe.about(path).is_err() => Check::bad(NAME, format!("there is no {KVM}, and accel = \"kvm\""))
            .fix("enable virtualisation in the firmware; modprobe kvm_intel or kvm_amd"),
        Accel::Auto if probe.about(path).is_err() => {
            Check::warning(NAME, format!("there is no {KVM}: guests run in software, many times slower"))
                .fix("enable virtualisation in the firmware; modprobe kvm_intel or kvm_amd")
        }
        Accel::Kvm => Check::bad(NAME, format!("{KVM} is there, and this user may not use it")).fix(JOIN_KVM),
        Accel::Auto => Check::warning(
            NAME,
            format!("{KVM} is there, and this user may not use it: guests run in software, many times slower"),
        )
        .fix(JOIN_KVM),
    }
}

/// What the backend found out when it tried KVM once in this boot.
fn was_refused(data_dir: &Path, probe: &dyn Probe) -> bool {
    let found = probe.read(&data_dir.join(ACCELERATOR)).ok().and_then(|text| serde_json::from_str(&text).ok());
    found.is_some_and(|found: serde_json::Value| {
        found["accelerator"].as_str().is_some_and(|word| word.eq_ignore_ascii_case("tcg"))
    })
}

/// `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn qemu(said: &Said) -> Check {
    const NAME: &str = "qemu";
    const INSTALL: &str = "install the package qemu-system (script/setup does)";
    let text = match said {
        Said::Yes(text) => text.lines().next().unwrap_or_default(),
        Said::No(why) | Said::Nothing(why) => {
            return Check::bad(NAME, why.lines().next().unwrap_or_default()).fix(INSTALL);
        }
    };
    let version = text.split("version ").nth(1).and_then(|rest| {
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse::<u32>().ok()?, numbers.next()?.parse::<u32>().ok()?))
    });
    match version {
        Some(version) if version >= OLDEST_QEMU => Check::good(NAME, text),
        Some(_) => Check::bad(NAME, format!("{text}; the oldest is {}.{}", OLDEST_QEMU.0, OLDEST_QEMU.1)).fix(INSTALL),
        None => Check::unknown(NAME, format!("not understood: {text}")),
    }
}

fn cgroups(probe: &dyn Probe) -> Check {
    const NAME: &str = "cgroups";
    match probe.read(Path::new(CONTROLLERS)) {
        Ok(text) if ["cpu", "memory"].iter().all(|one| text.split_whitespace().any(|has| has == *one)) => {
            Check::good(NAME, "version 2, with cpu and memory: the unit's limits hold")
        }
        Ok(text) => Check::warning(NAME, format!("the kernel limits only: {}", text.trim()))
            .fix("limits of the unit (MemoryMax, CPUWeight) have no effect here"),
        Err(_) => Check::warning(NAME, "there is no cgroup version 2: limits of the unit have no effect")
            .fix("boot with systemd.unified_cgroup_hierarchy=1"),
    }
}

fn pasta(said: &Said, probe: &dyn Probe) -> Check {
    const NAME: &str = "guests' network";
    let version = match said {
        Said::Yes(text) => text.lines().next().unwrap_or_default().to_owned(),
        Said::No(why) | Said::Nothing(why) => {
            return Check::bad(NAME, why.lines().next().unwrap_or_default())
                .fix("install the package passt (script/setup does): guests are isolated by it");
        }
    };
    if probe.about(Path::new(TUN)).is_err() {
        return Check::bad(NAME, format!("there is no {TUN}, which pasta needs")).mended_by(&[&["modprobe", "tun"]]);
    }
    Check::good(NAME, version)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::doctor::probe::recorded::Recorded;

    fn said(text: &str) -> Said {
        Said::Yes(text.to_owned())
    }

    #[test]
    fn the_version_of_qemu_is_judged() {
        for (text, verdict) in [
            (
                "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003-2025 Fabrice Bellard",
                Verdict::Good,
            ),
            ("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u14)\n", Verdict::Good),
            ("QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2ubuntu6.26)\n", Verdict::Bad),
            ("something else\n", Verdict::Unknown),
        ] {
            assert_eq!(qemu(&said(text)).verdict, verdict, "{text}");
        }
        assert_eq!(qemu(&Said::Nothing("`qemu-system-x86_64` is not installed".into())).verdict, Verdict::Bad);
    }

    #[test]
    fn a_clock_that_nobody_sets_is_bad() {
        assert_eq!(clock(&said("NTPSynchronized=yes\nNTP=yes\n")).verdict, Verdict::Good);
        assert_eq!(clock(&said("NTP=yes\nNTPSynchronized=no\n")).verdict, Verdict::Warning);
        let off = clock(&said("NTP=no\nNTPSynchronized=no\n"));
        assert_eq!((off.verdict, off.fix.as_deref()), (Verdict::Bad, Some("timedatectl set-ntp true")));
        assert_eq!(clock(&Said::No("System has not been booted with systemd".into())).verdict, Verdict::Unknown);
    }

    #[test]
    fn a_unit_that_kills_jobs_is_bad() {
        let unit_of = |text: &str| unit(&said(text)).verdict;
        assert_eq!(unit_of("LoadState=loaded\nKillMode=process\nActiveState=active\n"), Verdict::Good);
        assert_eq!(unit_of("LoadState=loaded\nKillMode=control-group\nActiveState=active\n"), Verdict::Bad);
        assert_eq!(unit_of("LoadState=not-found\nKillMode=control-group\nActiveState=inactive\n"), Verdict::Warning);
    }

    #[test]
    fn kvm_that_cannot_be_used_is_told() {
        let home = Path::new("/var/lib/flyci");
        let none = Recorded::default();
        assert_eq!(kvm(Accel::Auto, home, &none).verdict, Verdict::Warning);
        assert_eq!(kvm(Accel::Kvm, home, &none).verdict, Verdict::Bad);
        let there = Recorded::default().holds(KVM, "");
        assert_eq!(kvm(Accel::Auto, home, &there).verdict, Verdict::Good);
        assert_eq!(kvm(Accel::Tcg, home, &there).verdict, Verdict::Warning);
        let tried = there
            .clone()
            .holds("/var/lib/flyci/accelerator.json", r#"{"boot_id":"b","qemu":"10","accelerator":"Tcg"}"#);
        assert_eq!(kvm(Accel::Auto, home, &tried).verdict, Verdict::Warning);
        let mut forbidden = there;
        forbidden.forbidden = vec![KVM.into()];
        assert_eq!(kvm(Accel::Auto, home, &forbidden).verdict, Verdict::Warning);
        assert_eq!(kvm(Accel::Kvm, home, &forbidden).verdict, Verdict::Bad);
    }

    #[test]
    fn pasta_needs_its_device() {
        let version = said("pasta 0.0~git20250503.587980c-2\n");
        assert_eq!(pasta(&version, &Recorded::default()).verdict, Verdict::Bad);
        assert_eq!(pasta(&version, &Recorded::default().holds(TUN, "")).verdict, Verdict::Good);
        assert_eq!(pasta(&Said::Nothing("not installed".into()), &Recorded::default()).verdict, Verdict::Bad);
    }

    #[test]
    fn the_kernels_limits_are_looked_for() {
        let has = |text: &str| cgroups(&Recorded::default().holds(CONTROLLERS, text)).verdict;
        assert_eq!(has("cpuset cpu io memory pids\n"), Verdict::Good);
        assert_eq!(has("pids\n"), Verdict::Warning);
        assert_eq!(cgroups(&Recorded::default()).verdict, Verdict::Warning);
    }
}
