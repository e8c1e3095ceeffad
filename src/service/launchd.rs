//! A LaunchDaemon, and what a new Mac mini lacks. Keys: launchd.plist(5); programs: their manual pages.
//!
//! Both services are daemons of the system domain under a user of their own (`UserName`). A daemon may use the local
//! network, where the fleet's Postgres can be; an agent of a logged-in session may not without a prompt that nobody
//! sees (Local Network Privacy, macOS 15). What a macOS guest needs of a session (Aqua, an unlocked keychain), the vms'
//! own processes get: each is a launchd job in `gui/UID` of the host's user, started by the daemon. The gateway's user
//! cannot log in at all.

use super::{
    Act, Duty, OPEN_FILES, Owner, PROGRAM, PROGRAMS, STOP_SECONDS, Settings, Step, data_goes, program, run, run_unless,
    try_run, undone,
};
use crate::doctor::{BootMode, MODE_FILE};
use std::path::{Path, PathBuf};

const DAEMONS: &str = "/Library/LaunchDaemons";
/// The logs of the services; each rotates its own.
const LOGS: &str = "/usr/local/var/log/flyci";
const UPDATER: &str = "/Library/Preferences/com.apple.SoftwareUpdate";
/// What the program is signed with: without it Virtualization.framework refuses every VM.
const ENTITLEMENTS: &str = include_str!("../../config/flyci.entitlements");
/// Seconds between two starts of a service that ends at once.
const THROTTLE_SECONDS: u32 = 10;
/// Group and others get nothing: 077, in decimal digits, as launchd reads it.
const UMASK: u32 = 0o077;

const fn label(duty: Duty) -> &'static str {
    match duty {
        Duty::Gateway => "io.flyci.gateway",
        Duty::Host => "io.flyci.host",
        Duty::Both => "io.flyci.flyci",
    }
}

/// The property lists of the other services that there may be on this Mac.
pub fn others(duty: Duty) -> Vec<PathBuf> {
    Duty::ALL.into_iter().filter(|other| *other != duty).map(plist_file).collect()
}

fn plist_file(duty: Duty) -> PathBuf {
    Path::new(DAEMONS).join(format!("{}.plist", label(duty)))
}

fn entitlements_file() -> PathBuf {
    Path::new(PROGRAMS).join("flyci.entitlements")
}

/// Everything, in order.
pub fn install(settings: &Settings) -> Vec<Step> {
    let user = settings.user();
    let mut steps = account(settings, &user);
    steps.extend(program(settings, None).into_iter().take(2));
    steps.extend(sign(settings));
    steps.extend(program(settings, None).into_iter().skip(2));
    steps.extend(directories(settings, &user));
    if settings.duty.runs_vms() {
        steps.extend(boot_mode(settings, &user));
    }
    steps.extend(machine());
    steps.extend(service(settings, &user));
    steps
}

/// What install did, the last first.
pub fn uninstall(settings: &Settings) -> Vec<Step> {
    let user = settings.user();
    let mut steps = undone(service(settings, &user));
    if !settings.shared {
        steps.extend(undone(machine()));
    }
    if settings.duty.runs_vms() {
        steps.extend(undone(boot_mode(settings, &user)));
    }
    steps.extend(undone(directories(settings, &user)));
    if !settings.shared {
        steps.extend(undone(program(settings, None)));
    }
    if settings.purge {
        steps.push(data_goes(settings));
        steps.extend(undone(account(settings, &user)));
    }
    steps
}

/// `launchctl print`, and the property list.
pub fn status_command(duty: Duty) -> (Vec<String>, PathBuf) {
    (vec!["launchctl".to_owned(), "print".to_owned(), format!("system/{}", label(duty))], plist_file(duty))
}

/// The user. A host's is an ordinary account that is no administrator: it is logged in at the screen.
fn account(settings: &Settings, user: &str) -> Vec<Step> {
    if settings.user.is_some() {
        return Vec::new();
    }
    let gone = try_run(&["sysadminctl", "-deleteUser", user]);
    if settings.duty == Duty::Gateway {
        let make = [
            "sysadminctl",
            "-addUser",
            user,
            "-roleAccount",
            "-fullName",
            "flyci gateway",
            "-home",
            "/var/empty",
            "-shell",
            "/usr/bin/false",
        ];
        return vec![
            Step::new("a user that nobody logs in as: it holds the App's key", run_unless(&make, &["id", "-u", user]))
                .undone_by(gone),
        ];
    }
    vec![
        Step::new(
            "an ordinary user that is no administrator: it is logged in at the screen, and owns the VMs",
            Act::Ask {
                command: format!(
                    "id -u {user} || sudo sysadminctl -addUser {user} -fullName flyci -home /Users/{user} -password -"
                ),
            },
        )
        .undone_by(gone),
    ]
}

/// Signs the program, before its link points to it: a signature is of one file, so each upgrade is signed again.
fn sign(settings: &Settings) -> Vec<Step> {
    let (file, versioned) = (entitlements_file(), settings.versioned());
    let (file, versioned) = (file.to_string_lossy(), versioned.to_string_lossy());
    let by = &settings.identity;
    let how = if by == "-" { "ad hoc: each build is a new identity" } else { "by the given identity" };
    vec![
        Step::new(
            "what it is signed with",
            Act::Write { path: entitlements_file(), mode: 0o644, owner: Owner::Root, text: ENTITLEMENTS.to_owned() },
        ),
        Step::new(
            format!("signed with the virtualization entitlement, {how}"),
            run(&[
                "codesign",
                "--force",
                "--sign",
                by,
                "--identifier",
                "io.flyci.flyci",
                "--entitlements",
                &file,
                &versioned,
            ]),
        ),
        Step::new(
            "a download by a browser is quarantined",
            try_run(&["xattr", "-d", "com.apple.quarantine", &versioned]),
        ),
    ]
}

fn directories(settings: &Settings, user: &str) -> Vec<Step> {
    let owner = || Owner::User(user.to_owned());
    let data_dir = settings.data_dir.to_string_lossy();
    let mark = settings.data_dir.join(".metadata_never_index");
    vec![
        Step::new(
            "keys, images and vms: for this user alone",
            Act::Directory { path: settings.data_dir.clone(), mode: 0o700, owner: owner() },
        ),
        Step::new(
            "Spotlight leaves it alone",
            Act::Write { path: mark, mode: 0o600, owner: owner(), text: String::new() },
        ),
        Step::new(
            "Time Machine leaves it alone: its snapshots keep deleted clones",
            run(&["tmutil", "addexclusion", "-p", &data_dir]),
        )
        .undone_by(try_run(&["tmutil", "removeexclusion", "-p", &data_dir])),
        Step::new("the logs", Act::Directory { path: log_directory(settings), mode: 0o700, owner: owner() })
            .undone_by(Act::RemoveAll { path: log_directory(settings) }),
    ]
}

fn log_directory(settings: &Settings) -> PathBuf {
    Path::new(LOGS).join(settings.duty.name())
}

/// What the Mac does after a power cut. Either is a choice with a price, so `doctor` judges by the one that was made.
fn boot_mode(settings: &Settings, user: &str) -> Vec<Step> {
    let word = format!("{}\n", settings.mode.as_str());
    let mut steps = vec![
        Step::new(
            "the chosen mode, for doctor",
            Act::Write { path: MODE_FILE.into(), mode: 0o644, owner: Owner::Root, text: word },
        )
        .undone_by(Act::Remove { path: MODE_FILE.into() }),
    ];
    match settings.mode {
        BootMode::Unattended => steps.extend([
            Step::new(
                "unattended: FileVault is off, so who takes the disk reads what is on it, but for encrypted columns",
                Act::Ask { command: "fdesetup status; sudo fdesetup disable".to_owned() },
            )
            .undone_by(Act::Ask { command: "sudo fdesetup enable".to_owned() }),
            Step::new(
                "unattended: the user is logged in when the Mac starts; macOS 15 guests need its session",
                Act::Ask { command: format!("sudo sysadminctl -autologin set -userName {user} -password -") },
            )
            .undone_by(try_run(&["sysadminctl", "-autologin", "off"])),
        ]),
        BootMode::Attended => steps.push(
            Step::new(
                "attended: FileVault is on; after a power cut no VM starts until somebody logs in at the screen",
                Act::Ask { command: format!("fdesetup status; sudo fdesetup enable; then log in as {user}") },
            )
            .undone_by(Act::Ask { command: "sudo fdesetup disable".to_owned() }),
        ),
    }
    steps
}

/// Settings of the Mac. The undo is what macOS comes with.
fn machine() -> Vec<Step> {
    const UPDATES: &str = "AutomaticallyInstallMacOSUpdates";
    vec![
        Step::new(
            "it never sleeps, and starts again after a power cut",
            run(&[
                "pmset",
                "-a",
                "sleep",
                "0",
                "displaysleep",
                "0",
                "disksleep",
                "0",
                "powernap",
                "0",
                "autorestart",
                "1",
            ]),
        )
        .undone_by(run(&[
            "pmset",
            "-a",
            "sleep",
            "1",
            "displaysleep",
            "10",
            "disksleep",
            "10",
            "powernap",
            "1",
            "autorestart",
            "0",
        ])),
        Step::new(
            "macOS is updated when you say so, not while jobs run",
            run(&["defaults", "write", UPDATER, UPDATES, "-bool", "false"]),
        )
        .undone_by(run(&["defaults", "write", UPDATER, UPDATES, "-bool", "true"])),
        // Only root may ask whether it is on; to switch it on twice does no harm.
        Step::new("its clock is set by the network", run(&["systemsetup", "-setusingnetworktime", "on"])),
    ]
}

fn service(settings: &Settings, user: &str) -> Vec<Step> {
    let (file, label) = (plist_file(settings.duty), label(settings.duty));
    let job = format!("system/{label}");
    let mut steps = vec![
        Step::new(
            "the service",
            Act::Write { path: file.clone(), mode: 0o644, owner: Owner::Root, text: plist(settings, user) },
        )
        .undone_by(Act::Remove { path: file.clone() }),
        Step::new("a disabled one is enabled", try_run(&["launchctl", "enable", &job])),
        Step::new("one that runs ends; its vms go on", try_run(&["launchctl", "bootout", &job])),
    ];
    if settings.start {
        steps.push(Step::new(
            "it starts now, and with the Mac",
            run(&["launchctl", "bootstrap", "system", &file.to_string_lossy()]),
        ));
    }
    // Last, so that it is the first to be undone.
    if let Some(step) = steps.last_mut() {
        step.undo = Some(try_run(&["launchctl", "bootout", &job]));
    }
    steps
}

/// The property list.
fn plist(settings: &Settings, user: &str) -> String {
    let text = |path: &Path| escaped(&path.to_string_lossy());
    let log = log_directory(settings);
    format!(
        "\
<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">
<!-- Written by `flyci service install`; `flyci service uninstall` removes it. -->
<plist version=\"1.0\">
<dict>
	<key>Label</key>
	<string>{label}</string>
	<key>ProgramArguments</key>
	<array>
		<string>{PROGRAM}</string>
		<string>serve</string>
		<string>--config</string>
		<string>{config}</string>
		<string>--log-file</string>
		<string>{log_file}</string>
	</array>
	<!-- A daemon of the system with a user of its own: it may use the local network, and is never root. -->
	<key>UserName</key>
	<string>{user}</string>
	<key>RunAtLoad</key>
	<true/>
	<key>KeepAlive</key>
	<true/>
	<key>ThrottleInterval</key>
	<integer>{THROTTLE_SECONDS}</integer>
	<!-- Without it launchd slows the daemon, and all that it starts, like a background task. -->
	<key>ProcessType</key>
	<string>Interactive</string>
	<!-- VMs outlive the daemon, and the next one adopts them. -->
	<key>AbandonProcessGroup</key>
	<true/>
	<key>ExitTimeOut</key>
	<integer>{STOP_SECONDS}</integer>
{soft}{hard}	<key>Umask</key>
	<integer>{UMASK}</integer>
	<key>WorkingDirectory</key>
	<string>{data_dir}</string>
	<!-- A daemon has no HOME, and flyci needs none. -->
	<key>EnvironmentVariables</key>
	<dict>
		<key>PATH</key>
		<string>/usr/local/bin:/opt/homebrew/bin:/usr/bin:/bin:/usr/sbin:/sbin</string>
	</dict>
	<!-- What is said before the log is open. launchd never rotates this: the log itself is the other file. -->
	<key>StandardErrorPath</key>
	<string>{early}</string>
</dict>
</plist>
",
        label = label(settings.duty),
        soft = limits("SoftResourceLimits"),
        hard = limits("HardResourceLimits"),
        config = text(&settings.config_file),
        log_file = text(&log.join("flyci.log")),
        user = escaped(user),
        data_dir = text(&settings.data_dir),
        early = text(&log.join("early.log")),
    )
}

/// Many files, because each vm and client is some; no core dumps, because memory holds secrets.
fn limits(which: &str) -> String {
    format!(
        "\t<key>{which}</key>
	<dict>
		<key>NumberOfFiles</key>
		<integer>{OPEN_FILES}</integer>
		<key>Core</key>
		<integer>0</integer>
	</dict>
"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
