//! A unit of systemd. Keys: systemd.service(5), systemd.exec(5), systemd.kill(5).

use super::{
    Act, Duty, OPEN_FILES, Owner, PROGRAM, STOP_SECONDS, Settings, Step, data_goes, program, run, run_unless, try_run,
    undone,
};
use std::path::{Path, PathBuf};

const UNITS: &str = "/etc/systemd/system";

fn unit_name(duty: Duty) -> String {
    format!("{}.service", duty.name())
}

fn unit_file(duty: Duty) -> PathBuf {
    Path::new(UNITS).join(unit_name(duty))
}

/// The units of the other services that there may be on this machine.
pub fn others(duty: Duty) -> Vec<PathBuf> {
    Duty::ALL.into_iter().filter(|other| *other != duty).map(unit_file).collect()
}

/// Everything, in order.
pub fn install(settings: &Settings) -> Vec<Step> {
    let (user, unit) = (settings.user(), unit_name(settings.duty));
    let mut steps = account(settings, &user);
    steps.extend(program(settings, None));
    steps.push(Step::new(
        "keys, images and vms: for this user alone",
        Act::Directory { path: settings.data_dir.clone(), mode: 0o700, owner: Owner::User(user.clone()) },
    ));
    steps.push(
        Step::new(
            "the unit",
            Act::Write {
                path: unit_file(settings.duty),
                mode: 0o644,
                owner: Owner::Root,
                text: self::unit(settings, &user),
            },
        )
        .undone_by(Act::Remove { path: unit_file(settings.duty) }),
    );
    steps.push(
        Step::new("systemd reads it", run(&["systemctl", "daemon-reload"]))
            .undone_by(try_run(&["systemctl", "daemon-reload"])),
    );
    steps.push(Step::new("it starts with the machine", run(&["systemctl", "enable", &unit])).undone_by(try_run(&[
        "systemctl",
        "disable",
        "--now",
        &unit,
    ])));
    if settings.start {
        steps.push(Step::new("it starts now; vms of a daemon before it go on", run(&["systemctl", "restart", &unit])));
    }
    steps
}

/// What install did, the last first: `disable` stands before the unit's file goes, `daemon-reload` after it.
pub fn uninstall(settings: &Settings) -> Vec<Step> {
    let (user, unit) = (settings.user(), unit_name(settings.duty));
    let mut steps = vec![
        Step::new("it stops, and starts no more", try_run(&["systemctl", "disable", "--now", &unit])),
        Step::new("the unit goes", Act::Remove { path: unit_file(settings.duty) }),
        Step::new("systemd forgets it", try_run(&["systemctl", "daemon-reload"])),
    ];
    if !settings.shared {
        steps.extend(undone(program(settings, None)));
    }
    if settings.purge {
        steps.push(data_goes(settings));
        if settings.user.is_none() {
            steps.push(Step::new("the user", try_run(&["userdel", &user])));
        }
    }
    steps
}

/// `systemctl show`, and the unit.
pub fn status_command(duty: Duty) -> (Vec<String>, PathBuf) {
    let command =
        ["systemctl", "show", &unit_name(duty), "--property=ActiveState,SubState,MainPID,ExecMainStartTimestamp"];
    (command.iter().map(|&word| word.to_owned()).collect(), unit_file(duty))
}

fn account(settings: &Settings, user: &str) -> Vec<Step> {
    if settings.user.is_some() {
        return Vec::new();
    }
    let home = settings.data_dir.to_string_lossy();
    let make = [
        "useradd",
        "--system",
        "--user-group",
        "--no-create-home",
        "--home-dir",
        &home,
        "--shell",
        "/usr/sbin/nologin",
        user,
    ];
    let mut steps = vec![
        Step::new("an unprivileged user of its own", run_unless(&make, &["id", "-u", user]))
            .undone_by(try_run(&["userdel", user])),
    ];
    if settings.kvm {
        // A machine without KVM has no such group.
        steps.push(Step::new("it may use /dev/kvm", try_run(&["usermod", "--append", "--groups", "kvm", user])));
    }
    steps
}

/// The unit. `KillMode=process`: VMs are processes of their own, and outlive the daemon.
fn unit(settings: &Settings, user: &str) -> String {
    let (config, data_dir) = (settings.config_file.display(), settings.data_dir.display());
    let mut unit = format!(
        "\
# Written by `flyci service install`; `flyci service uninstall` removes it.
[Unit]
Description={description}
Documentation=https://github.com/flyci/flyci
Wants=network-online.target
After=network-online.target time-sync.target postgresql.service

[Service]
Type=simple
User={user}
ExecStart={PROGRAM} serve --config {config}
ExecReload=/bin/kill -HUP $MAINPID
# VMs are processes of their own: they outlive the daemon, and the next one adopts them.
KillMode=process
TimeoutStopSec={STOP_SECONDS}
Restart=always
RestartSec=5
# A wrong configuration (78) gets no better by trying again.
RestartPreventExitStatus=78
LimitNOFILE={OPEN_FILES}
LimitCORE=0
UMask=0077
WorkingDirectory={data_dir}
# The daemon's own log goes to the journal, which rotates it.
StandardOutput=journal
StandardError=journal
NoNewPrivileges=yes
ProtectSystem=full
ReadWritePaths={data_dir}
PrivateTmp=yes
ProtectControlGroups=yes
LockPersonality=yes
",
        description = describe(settings.duty),
    );
    if settings.duty == Duty::Gateway {
        // A host needs user namespaces, /dev/net/tun and /dev/kvm for its guests; a gateway none of it.
        unit.push_str(GATEWAY_ONLY);
    }
    unit.push_str("\n[Install]\nWantedBy=multi-user.target\n");
    unit
}

const GATEWAY_ONLY: &str = "\
# It runs no vms, so it needs none of what they need.
ProtectHome=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
PrivateDevices=yes
RestrictNamespaces=yes
RestrictSUIDSGID=yes
";

const fn describe(duty: Duty) -> &'static str {
    match duty {
        Duty::Gateway => "flyci gateway: takes GitHub's webhooks",
        Duty::Host => "flyci host: runs a VM for each job",
        Duty::Both => "flyci: a VM for each GitHub Actions job",
    }
}
