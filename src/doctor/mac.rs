//! What a Mac must be and have set, before macOS guests run on it. Formats: the manual pages of the programs named.

use super::probe::{Probe, Said};
use super::{BootMode, Check, MODE_FILE, Subject};
use crate::config::Role;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::path::Path;

/// The oldest macOS that the backend is written for.
const OLDEST_MACOS: u32 = 14;
/// macOS guests at once on one Mac.
const MACOS_LIMIT: usize = 2;
/// Addresses of the network that guests share: a /24, less net, broadcast and the Mac itself.
const DHCP_RANGE: usize = 253;
/// From so many leases on, the range is about to be used up.
const DHCP_FULL: usize = 200;
/// A lease that is longer outlives several vms of the same slot.
const LONGEST_LEASE_S: u64 = 3600;
/// The preferences of macOS's DHCP server.
const DHCP_PREFERENCES: &str = "/Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default";
/// Its leases.
const DHCP_LEASES: &str = "/var/db/dhcpd_leases";
/// The preferences of the login window.
const LOGIN_WINDOW: &str = "/Library/Preferences/com.apple.loginwindow";
/// The preferences of the updater.
const UPDATER: &str = "/Library/Preferences/com.apple.SoftwareUpdate";
/// The entitlement without which the framework refuses every VM.
const ENTITLEMENT: &str = "com.apple.security.virtualization";
/// The process that holds a VM of the framework.
const VM_PROCESS: &str = "com.apple.Virtualization.VirtualMachine";

/// Every check of a Mac.
pub async fn checks(subject: &Subject<'_>, probe: &dyn Probe) -> Vec<Check> {
    let mut checks = vec![
        version(&probe.run(&["sw_vers", "-productVersion"]).await),
        chip(&probe.run(&["sysctl", "-n", "hw.optional.arm64"]).await),
        sleep(&probe.run(&["pmset", "-g"]).await),
        updates(&probe.run(&["defaults", "read", UPDATER]).await),
        clock(&probe.run(&["systemsetup", "-getusingnetworktime"]).await),
    ];
    if !subject.config.roles.contains(&Role::Host) {
        return checks;
    }
    let program = subject.program.to_string_lossy();
    checks.push(entitlement(&program, &probe.run(&["codesign", "-d", "--entitlements", "-", "--xml", &program]).await));
    checks.push(quarantine(&program, &probe.run(&["xattr", "-p", "com.apple.quarantine", &program]).await));
    checks.extend(session(subject, probe).await);
    checks.extend(volume(&subject.config.data_dir, probe).await);
    checks.push(lease_time(&probe.run(&["defaults", "read", DHCP_PREFERENCES, "bootpd"]).await));
    checks.push(leases(probe.read(Path::new(DHCP_LEASES)).ok().as_deref(), subject.now));
    checks.push(strays(&probe.run(&["ps", "-axo", "pid=,user=,command="]).await));
    checks
}

fn not_looked_at(name: &'static str, said: &Said) -> Check {
    match said {
        Said::Yes(text) => Check::unknown(name, format!("not understood: {}", first_line(text))),
        Said::No(text) | Said::Nothing(text) => Check::unknown(name, first_line(text)),
    }
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing").to_owned()
}

/// `sw_vers -productVersion`: `15.5`.
fn version(said: &Said) -> Check {
    const NAME: &str = "macos version";
    let Said::Yes(text) = said else { return not_looked_at(NAME, said) };
    let text = text.trim();
    match text.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(major) if major >= OLDEST_MACOS => Check::good(NAME, format!("macOS {text}")),
        Some(_) => Check::bad(NAME, format!("macOS {text}; the oldest that flyci runs on is {OLDEST_MACOS}"))
            .fix("softwareupdate --list, then softwareupdate -i -R LABEL (drain the host first)"),
        None => not_looked_at(NAME, said),
    }
}

/// `sysctl -n hw.optional.arm64`: `1` on Apple silicon; unknown to an Intel Mac.
fn chip(said: &Said) -> Check {
    const NAME: &str = "apple silicon";
    match said {
        Said::Yes(text) if text.trim() == "1" => Check::good(NAME, "hw.optional.arm64 is 1"),
        Said::Yes(_) | Said::No(_) => Check::bad(NAME, "this is no Apple silicon: macOS guests do not run on it")
            .fix("use a Mac with an M1 or later"),
        Said::Nothing(_) => not_looked_at(NAME, said),
    }
}

/// `codesign -d --entitlements - --xml PROGRAM`: a property list.
fn entitlement(program: &str, said: &Said) -> Check {
    const NAME: &str = "entitlement";
    let squeezed = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    match said {
        Said::Yes(text) if squeezed(text).contains(&format!("<key>{ENTITLEMENT}</key><true/>")) => {
            Check::good(NAME, format!("{program} may use Virtualization.framework"))
        }
        Said::Yes(_) | Said::No(_) => {
            Check::bad(NAME, format!("{program} is not signed with {ENTITLEMENT}: every VM is refused (VZErrorDomain 2)"))
                .fix("flyci service install signs it; by hand: codesign --force --sign - --entitlements flyci.entitlements PROGRAM")
        }
        Said::Nothing(_) => not_looked_at(NAME, said),
    }
}

/// `xattr -p com.apple.quarantine PROGRAM` fails when there is none.
fn quarantine(program: &str, said: &Said) -> Check {
    const NAME: &str = "quarantine";
    match said {
        Said::No(_) => Check::good(NAME, "the program is not quarantined"),
        Said::Yes(_) => Check::bad(NAME, "the program came by a browser: launchd will not start it").mended_by(&[&[
            "xattr",
            "-d",
            "com.apple.quarantine",
            program,
        ]]),
        Said::Nothing(_) => not_looked_at(NAME, said),
    }
}

/// Who is logged in, by which mode, and whether the keychain is open.
async fn session(subject: &Subject<'_>, probe: &dyn Probe) -> Vec<Check> {
    // The user of the daemon is the owner of its data.
    let uid = probe.about(&subject.config.data_dir).map_or_else(|_| probe.uid(), |about| about.uid);
    let user = probe.user(uid);
    let domain = format!("gui/{uid}");
    let mut checks = vec![gui(uid, &probe.run(&["launchctl", "print", &domain]).await)];
    if let Some((_, home)) = &user {
        let keychain = home.join("Library/Keychains/login.keychain-db");
        let keychain = keychain.to_string_lossy();
        checks.push(self::keychain(&keychain, &probe.run(&["security", "show-keychain-info", &keychain]).await));
    }
    let mode = probe.read(Path::new(MODE_FILE)).ok().and_then(|word| BootMode::parse(word.trim()));
    let login = probe.run(&["defaults", "read", LOGIN_WINDOW, "autoLoginUser"]).await;
    let vault = probe.run(&["fdesetup", "status"]).await;
    let name = user.map_or_else(|| uid.to_string(), |(name, _)| name);
    checks.push(boot_mode(mode, &name, &login, &vault));
    checks
}

/// `launchctl print gui/UID`: has a line `session = Aqua` while that user is logged in at the screen.
fn gui(uid: u32, said: &Said) -> Check {
    const NAME: &str = "gui session";
    if uid == 0 {
        return Check::bad(NAME, "the data directory is root's: macOS 15 guests do not start for root")
            .fix("flyci service install makes a user for it");
    }
    match said {
        Said::Yes(text) if text.lines().any(|line| line.trim() == "session = Aqua") => {
            Check::good(NAME, format!("user {uid} is logged in at the screen"))
        }
        Said::Yes(_) | Said::No(_) => Check::bad(
            NAME,
            format!(
                "user {uid} has no Aqua session: guests of macOS 15 and later do not start (VZErrorDomain -9 or 1)"
            ),
        )
        .fix("log the user in (Screen Sharing: open vnc://THIS-MAC); with auto-login: sudo killall -HUP loginwindow"),
        Said::Nothing(_) => not_looked_at(NAME, said),
    }
}

/// `security show-keychain-info KEYCHAIN` succeeds while it is unlocked.
fn keychain(path: &str, said: &Said) -> Check {
    const NAME: &str = "login keychain";
    match said {
        Said::Yes(_) => Check::good(NAME, "it is unlocked"),
        Said::No(text) if text.contains("could not be found") => {
            Check::bad(NAME, format!("there is no {path}: guests of macOS 15 and later cannot make their host key"))
                .fix("log the user in once at the screen: that makes it")
        }
        Said::No(text) if text.contains("interaction is not allowed") => Check::warning(
            NAME,
            "it is locked for this session; in an SSH session that says nothing of the daemon's",
        )
        .fix("run flyci doctor in the user's own session (Screen Sharing, Terminal); there: security unlock-keychain"),
        Said::No(_) | Said::Nothing(_) => not_looked_at(NAME, said),
    }
}

/// `defaults read … autoLoginUser` and `fdesetup status`, against the mode that was chosen.
fn boot_mode(mode: Option<BootMode>, user: &str, login: &Said, vault: &Said) -> Check {
    const NAME: &str = "boot mode";
    let encrypted = match vault {
        Said::Yes(text) if text.contains("FileVault is On") => true,
        Said::Yes(text) if text.contains("FileVault is Off") => false,
        _ => return not_looked_at(NAME, vault),
    };
    let logs_in = match login {
        Said::Yes(text) => Some(text.trim()),
        Said::No(_) => None,
        Said::Nothing(_) => return not_looked_at(NAME, login),
    };
    let seen = format!(
        "FileVault is {}, {}",
        if encrypted { "on" } else { "off" },
        logs_in.map_or_else(
            || "nobody is logged in automatically".to_owned(),
            |who| format!("{who} is logged in automatically")
        )
    );
    match mode {
        Some(BootMode::Attended) if encrypted => {
            Check::good(NAME, format!("attended, as chosen: {seen}; after a power cut somebody logs in as {user}"))
        }
        Some(BootMode::Attended) => {
            Check::bad(NAME, format!("attended was chosen, but {seen}: data at rest is readable"))
                .fix("sudo fdesetup enable (keep the recovery key), or: flyci service install --mode unattended")
        }
        _ if !encrypted && logs_in == Some(user) => {
            Check::good(NAME, format!("unattended: {seen}; who takes the disk can read what is on it"))
        }
        Some(BootMode::Unattended) => {
            Check::bad(NAME, format!("unattended was chosen, but {seen}: after a power cut no VM starts"))
                .fix(format!("sudo fdesetup disable; System Settings, Users & Groups: log in automatically as {user}"))
        }
        None if encrypted => {
            Check::warning(NAME, format!("{seen}: after a power cut no VM starts until somebody logs in as {user}"))
                .fix("choose: flyci service install --mode attended, or --mode unattended")
        }
        None => Check::bad(NAME, format!("{seen}: after a reboot no VM starts, and the disk is not encrypted either"))
            .fix("choose: flyci service install --mode unattended, or --mode attended"),
    }
}

/// `pmset -g`: indented names with numbers; a note in brackets may follow.
fn sleep(said: &Said) -> Check {
    const NAME: &str = "power settings";
    const WANTED: [(&str, &str); 5] =
        [("sleep", "0"), ("disksleep", "0"), ("displaysleep", "0"), ("powernap", "0"), ("autorestart", "1")];
    let Said::Yes(text) = said else { return not_looked_at(NAME, said) };
    let settings: BTreeMap<&str, &str> = text.lines().filter_map(name_and_number).collect();
    if !settings.contains_key("sleep") {
        return not_looked_at(NAME, said);
    }
    // A Mac without a setting has nothing to be set.
    let wrong: Vec<&(&str, &str)> =
        WANTED.iter().filter(|(name, wanted)| settings.get(name).is_some_and(|value| value != wanted)).collect();
    if wrong.is_empty() {
        return Check::good(NAME, "it never sleeps, and starts again after a power cut");
    }
    let seen: Vec<String> = wrong.iter().map(|(name, _)| format!("{name} {}", settings[name])).collect();
    let mut command = vec!["pmset", "-a"];
    command.extend(wrong.iter().flat_map(|(name, wanted)| [*name, *wanted]));
    let check = if wrong.iter().any(|(name, _)| *name == "sleep") {
        Check::bad(NAME, format!("{}: a Mac that sleeps stops its guests' clocks", seen.join(", ")))
    } else {
        Check::warning(NAME, seen.join(", "))
    };
    check.mended_by(&[&command])
}

/// ` sleep   1 (sleep prevented by powerd)` is `sleep` and `1`; ` Sleep On Power Button 1` is no such line.
fn name_and_number(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    let (name, value) = (words.next()?, words.next()?);
    value.bytes().all(|byte| byte.is_ascii_digit()).then_some((name, value))
}

/// `defaults read …SoftwareUpdate`: `    AutomaticallyInstallMacOSUpdates = 1;`.
fn updates(said: &Said) -> Check {
    const NAME: &str = "automatic updates";
    const KEY: &str = "AutomaticallyInstallMacOSUpdates";
    let off = ["defaults", "write", UPDATER, KEY, "-bool", "false"];
    match said {
        Said::Yes(text) => match setting(text, KEY) {
            Some("0") => Check::good(NAME, "macOS is updated when you say so"),
            Some(_) => Check::bad(NAME, "macOS installs updates by itself, and reboots: running jobs are lost")
                .mended_by(&[&off]),
            None => {
                Check::warning(NAME, format!("{KEY} is not set: whether macOS updates itself depends on its version"))
                    .mended_by(&[&off])
            }
        },
        Said::No(_) => Check::warning(NAME, "nothing is set: whether macOS updates itself depends on its version")
            .mended_by(&[&off]),
        Said::Nothing(_) => not_looked_at(NAME, said),
    }
}

/// The value of a key in what `defaults read` prints.
fn setting<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim().trim_matches('"') == key).then(|| value.trim().trim_end_matches(';').trim_matches('"'))
    })
}

/// `systemsetup -getusingnetworktime`: `Network Time: On`; only root may ask.
fn clock(said: &Said) -> Check {
    const NAME: &str = "clock";
    match said {
        Said::Yes(text) if text.contains("Network Time: On") => Check::good(NAME, "it is set by the network"),
        Said::Yes(text) if text.contains("Network Time: Off") => {
            Check::bad(NAME, "nobody sets it: GitHub refuses tokens of a clock that is a minute off").mended_by(&[&[
                "systemsetup",
                "-setusingnetworktime",
                "on",
            ]])
        }
        Said::Yes(text) | Said::No(text) if text.contains("administrator") => {
            Check::unknown(NAME, "only root may ask").fix("sudo systemsetup -getusingnetworktime")
        }
        _ => not_looked_at(NAME, said),
    }
}

/// Time Machine, Spotlight and APFS on the data directory.
async fn volume(data_dir: &Path, probe: &dyn Probe) -> Vec<Check> {
    let path = data_dir.to_string_lossy();
    vec![
        time_machine(&path, &probe.run(&["tmutil", "isexcluded", &path]).await),
        spotlight(data_dir, probe),
        apfs(&probe.run(&["diskutil", "info", &path]).await),
    ]
}

/// `tmutil isexcluded PATH`: `[Excluded]    /path` or `[Included]    /path`.
fn time_machine(path: &str, said: &Said) -> Check {
    const NAME: &str = "time machine";
    match said {
        Said::Yes(text) if text.contains("[Excluded]") => Check::good(NAME, "the data directory is left out"),
        Said::Yes(text) if text.contains("[Included]") => {
            Check::warning(NAME, "local snapshots keep deleted clones and images, and the disk fills").mended_by(&[&[
                "tmutil",
                "addexclusion",
                "-p",
                path,
            ]])
        }
        _ => not_looked_at(NAME, said),
    }
}

fn spotlight(data_dir: &Path, probe: &dyn Probe) -> Check {
    const NAME: &str = "spotlight";
    let mark = data_dir.join(".metadata_never_index");
    if probe.about(&mark).is_ok() {
        return Check::good(NAME, "the data directory is not indexed");
    }
    if probe.about(data_dir).is_err() {
        return Check::unknown(NAME, "the data directory cannot be looked into");
    }
    Check::warning(NAME, "the data directory may be indexed while jobs run")
        .mended_by(&[&["touch", &mark.to_string_lossy()]])
}

/// `diskutil info PATH`: `   Type (Bundle):             apfs`.
fn apfs(said: &Said) -> Check {
    const NAME: &str = "apfs";
    let Said::Yes(text) = said else { return not_looked_at(NAME, said) };
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim())
    };
    match field("Type (Bundle)") {
        Some("apfs") if field("Owners") == Some("Disabled") => {
            Check::bad(NAME, "the volume ignores ownership: every user reads every file")
                .fix("sudo diskutil enableOwnership VOLUME")
        }
        Some("apfs") => Check::good(NAME, "clones cost nothing on it"),
        Some(other) => Check::bad(NAME, format!("the data directory is on {other}: a clone would be a full copy"))
            .fix("put data_dir on an APFS volume"),
        None => not_looked_at(NAME, said),
    }
}

/// `defaults read …InternetSharing.default bootpd`: `    DHCPLeaseTimeSecs = 600;`.
fn lease_time(said: &Said) -> Check {
    const NAME: &str = "dhcp lease time";
    const DAY: &str = "86400";
    let set = ["defaults", "write", DHCP_PREFERENCES, "bootpd", "-dict", "DHCPLeaseTimeSecs", "-int", "600"];
    let seconds = match said {
        Said::Yes(text) => setting(text, "DHCPLeaseTimeSecs").unwrap_or(DAY),
        Said::No(_) => DAY,
        Said::Nothing(_) => return not_looked_at(NAME, said),
    };
    match seconds.parse::<u64>() {
        Ok(seconds) if seconds <= LONGEST_LEASE_S => Check::good(NAME, format!("{seconds} s")),
        Ok(seconds) => Check::warning(
            NAME,
            format!("{seconds} s: other tools that give each VM a new address use up the {DHCP_RANGE} there are"),
        )
        .mended_by(&[&set]),
        Err(_) => not_looked_at(NAME, said),
    }
}

/// How many of `/var/db/dhcpd_leases` still hold. Blocks in braces; `lease=0x` and the end in Unix seconds. The file
/// may be in the middle of being written: a block without an end counts by what it has.
fn leases(text: Option<&str>, now: DateTime<Utc>) -> Check {
    const NAME: &str = "dhcp leases";
    let Some(text) = text else { return Check::good(NAME, "there is no lease yet") };
    let end = |line: &str| i64::from_str_radix(line.trim().strip_prefix("lease=0x")?, 16).ok();
    let live = text.lines().filter_map(end).filter(|end| *end > now.timestamp()).count();
    let seen = format!("{live} of {DHCP_RANGE} addresses are taken");
    if live < DHCP_FULL {
        Check::good(NAME, seen)
    } else {
        Check::bad(NAME, format!("{seen}: the next guests get no address"))
            .fix(format!("when no VM runs: sudo rm {DHCP_LEASES}; then shorten the lease time"))
    }
}

/// `ps`: the framework's processes, against those of flyci. Each takes one of the two places, whoever started it.
fn strays(said: &Said) -> Check {
    const NAME: &str = "other VMs";
    let Said::Yes(text) = said else { return not_looked_at(NAME, said) };
    let vms = text.lines().filter(|line| line.contains(VM_PROCESS)).count();
    let ours = text.lines().filter(|line| is_ours(line)).count();
    if vms <= ours {
        return Check::good(NAME, format!("{vms} of {MACOS_LIMIT} places taken, all by flyci"));
    }
    let others = vms - ours;
    Check::warning(
        NAME,
        format!("{others} of the {MACOS_LIMIT} places for macOS VMs are taken by other programs, or were left over"),
    )
    .fix(format!("ps -axo pid,user,command | grep {VM_PROCESS}; end what is not needed, or set [host] slots lower"))
}

/// `  812 flyci  /usr/local/bin/flyci vm --directory …`
fn is_ours(line: &str) -> bool {
    let mut words = line.split_whitespace().skip(2);
    let program = words.next().unwrap_or_default();
    program.rsplit('/').next().is_some_and(|name| name.starts_with("flyci")) && words.next() == Some("vm")
}
