//! What keys say together, and the files that they name.

use super::files;
use super::sections::{Beneficiary, Github, HypervisorKind, Intake, TlsMode};
use super::source::Origin;
use super::table::Reading;
use super::{Allow, Config, SecretUrl};
use crate::domain::admission::{Need, Refusal};
use crate::domain::profile::Profile;
use crate::domain::runner_version::RunnerVersion;
use crate::domain::units::{Bytes, Span};
use crate::secrets::files::check_private;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// macOS guests at once on one Mac: Apple's licence and its kernel allow two.
const MAX_MACOS_VMS: u32 = 2;
/// Slots of any host: beyond that it is a slip of the pen.
const MAX_SLOTS: u32 = 256;
/// Virtual CPUs that one CPU may carry at most.
const MAX_OVERCOMMIT: f64 = 16.0;
/// Characters of a host's name (a DNS label).
const MAX_NAME_LENGTH: usize = 63;
/// Characters of a label (GitHub's limit).
const MAX_LABEL_LENGTH: usize = 256;
/// The least memory that a guest boots with.
const MIN_MEMORY: Bytes = Bytes(64_000_000);
/// Virtual CPUs of any vm.
const MAX_CPUS: u32 = 128;
/// Labels that every runner of a kind has: no profile can be asked for by one.
const GENERAL_LABELS: [&str; 6] = ["self-hosted", "macos", "linux", "windows", "arm64", "x64"];
/// Bytes of a Unix socket's path, with the zero at its end (`sockaddr_un`).
const MAX_SOCKET_PATH: usize = if cfg!(target_os = "macos") { 104 } else { 108 };
/// The longest path of a socket below the data directory: a vm's.
const VM_SOCKET: &str = "/vms/00000000-0000-0000-0000-000000000000/agent.sock";
/// Connections of a role, at least and at most.
const CONNECTIONS: std::ops::RangeInclusive<u32> = 2..=1_000;

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 24 * 60 * 60)
}

/// What the machine has, as it was detected.
#[derive(Clone, PartialEq, Debug)]
pub struct Machine {
    /// CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// The chip, as profiles name it.
    pub hardware: String,
}

/// Checks all of it; what is wrong is written down in `reading`.
pub(super) fn check(config: &Config, reading: &Reading<'_>) {
    roles(config, reading);
    data_dir(config, reading);
    web(config, reading);
    listeners(config, reading);
    if let Some(github) = &config.github {
        self::github(github, reading);
    } else if reading.is_given("github") {
        reading.warning_after(
            &["roles"],
            "github",
            "is for a gateway alone: the App's key is best kept away from hosts",
        );
    }
    database(config, reading);
    if config.is_host() {
        host(config, reading);
    }
    runner(config, reading);
    config.images.check(reading);
    files::registry_logins(reading, "images.credentials_file", config.images.credentials_file.as_deref());
    files::authorities(reading, "images.ca_file", config.images.ca_file.as_deref());
    times(config, reading);
    super::keys::check(&config.keys, reading);
    profiles(config, reading);
    not_there_yet(config, reading);
}

/// What this version reads and does not do: refused, since a promise that is not kept is worse than none.
fn not_there_yet(config: &Config, reading: &Reading<'_>) {
    const NOT_YET: &str = "is not done by this version yet";
    if config.database.listen_url.is_some() {
        reading.fault("database.listen_url", format!("{NOT_YET}: leave it out"));
    }
}

fn roles(config: &Config, reading: &Reading<'_>) {
    if config.roles.is_empty() {
        reading.fault("roles", "is empty: write `[\"gateway\"]`, `[\"host\"]` or both");
    }
    if config.roles.iter().enumerate().any(|(position, role)| config.roles[..position].contains(role)) {
        reading.fault("roles", "names a role twice");
    }
    if config.is_host() && !config.is_gateway() && config.database.url.is_none() {
        reading.fault("database.url", "is missing: a host alone works around the gateways' Postgres");
    }
}

fn data_dir(config: &Config, reading: &Reading<'_>) {
    let path = &config.data_dir;
    if path.exists() && !path.is_dir() {
        return reading.fault("data_dir", "is no directory");
    }
    let room = MAX_SOCKET_PATH - 1 - VM_SOCKET.len();
    let length = path.as_os_str().as_bytes().len();
    if config.is_host() && length > room {
        reading.fault_after(
            &["roles"],
            "data_dir",
            format!("has {length} bytes; the sockets below it fit in {} if it has at most {room}", MAX_SOCKET_PATH - 1),
        );
    }
    let length = config.admin.socket.as_os_str().as_bytes().len();
    if length >= MAX_SOCKET_PATH {
        let socket = config.admin.socket.display();
        reading.fault(
            "admin.socket",
            format!("{socket} has {length} bytes, and a socket's path at most {}", MAX_SOCKET_PATH - 1),
        );
    }
}

fn web(config: &Config, reading: &Reading<'_>) {
    if !config.is_gateway() || config.is_pulling() {
        return;
    }
    let (web, tls) = (&config.web, &config.web.tls);
    if tls.mode == TlsMode::Off && !web.listen.ip().is_loopback() {
        let address = web.listen;
        reading.fault_after(&["web.listen"], "web.tls.mode", format!("is only for loopback, and `web.listen` is {address}: listen on 127.0.0.1 behind a proxy or tunnel that ends TLS, or give a certificate"));
    }
    if tls.mode == TlsMode::Off && web.allow == Allow::Github {
        reading.fault("web.allow", "needs flyci's own TLS: behind a proxy everybody comes from the proxy's address, so let the proxy keep GitHub's list");
    }
    if tls.mode == TlsMode::Files {
        let certificate = ("web.tls.cert_file", tls.cert_file.as_deref());
        files::server_certificate(reading, certificate, ("web.tls.key_file", tls.key_file.as_deref()));
    }
    if tls.mode == TlsMode::SelfSigned {
        reading.warning(
            "web.tls.mode",
            "GitHub delivers to no self-signed certificate unless its check is switched off: use it for a demo",
        );
    }
    if web.public_url.as_ref().is_some_and(|url| !url.is_protected()) {
        reading.fault("web.public_url", "must begin with `https://`, or name this machine");
    }
}

fn listeners(config: &Config, reading: &Reading<'_>) {
    if config.admin.listen.is_some_and(|address| !address.ip().is_loopback()) {
        reading
            .fault("admin.listen", "must be on loopback, like `127.0.0.1:9465`: whoever reaches it operates the fleet");
    }
    if config.admin.metrics_listen.0.is_some_and(|address| !address.ip().is_loopback()) {
        reading.warning("admin.metrics_listen", "whoever reaches this address reads the fleet's load and host names");
    }
    let mut taken = HashMap::new();
    let all = [
        ("web.listen", (config.is_gateway() && !config.is_pulling()).then_some(config.web.listen)),
        ("admin.listen", config.admin.listen),
        ("admin.metrics_listen", config.admin.metrics_listen.0),
    ];
    for (key, address) in all.into_iter().filter_map(|(key, address)| Some((key, address?))) {
        // Port 0 is any free one.
        if address.port() != 0
            && let Some(other) = taken.insert(address.port(), key)
        {
            reading.fault_after(&[key, other], key, format!("has the port of `{other}`"));
        }
    }
}

fn github(github: &Github, reading: &Reading<'_>) {
    // A stand-in for what is missing, which was told.
    if github.app_id == 0 && reading.is_given("github.app_id") {
        reading.fault("github.app_id", "is no App's id: it is on the App's page, beside its client id");
    }
    if !github.api_url.is_protected() {
        reading.fault("github.api_url", "must begin with `https://`, or name this machine: tokens go there");
    }
    let is_named = reading.is_given("github.private_key_file");
    files::app_key(reading, "github.private_key_file", is_named.then_some(&github.private_key_file));
    files::app_key(reading, "github.previous_private_key_file", github.previous_private_key_file.as_deref());
    files::secret(reading, "github.webhook_secret_file", github.webhook_secret_file.as_deref());
    files::secret(reading, "github.previous_webhook_secret_file", github.previous_webhook_secret_file.as_deref());
    files::authorities(reading, "github.ca_file", github.ca_file.as_deref());
    if github.intake == Intake::Pull && github.webhook_secret_file.is_some() {
        reading.warning("github.webhook_secret_file", "is not used: deliveries are pulled");
    }
    secret_url(reading, "github.proxy_url", github.proxy_url.as_ref(), &["http"]);
}

fn database(config: &Config, reading: &Reading<'_>) {
    let database = &config.database;
    let postgres = ["postgres", "postgresql"];
    secret_url(reading, "database.url", database.url.as_ref(), &postgres);
    secret_url(reading, "database.listen_url", database.listen_url.as_ref(), &postgres);
    files::secret(reading, "database.password_file", database.password_file.as_deref());
    files::authorities(reading, "database.ca_file", database.ca_file.as_deref());
    if !CONNECTIONS.contains(&database.max_connections) {
        reading.fault(
            "database.max_connections",
            format!("write a number from {} to {}", CONNECTIONS.start(), CONNECTIONS.end()),
        );
    }
    if database.url.is_some() {
        return;
    }
    if !config.is_gateway() {
        reading.fault_after(
            &["roles", "database.url"],
            "database.url",
            "is missing: a host without the gateway role needs the fleet's database",
        );
    }
    let of_no_use = [
        ("database.listen_url", database.listen_url.is_some()),
        ("database.password_file", database.password_file.is_some()),
        ("database.ca_file", database.ca_file.is_some()),
    ];
    for (key, _) in of_no_use.into_iter().filter(|(_, given)| *given) {
        reading.fault_after(&["database.url"], key, "has no meaning without `database.url`");
    }
}

/// A password must not be where other users, or other processes' environment listings, show it.
fn secret_url(reading: &Reading<'_>, key: &str, url: Option<&SecretUrl>, schemes: &[&str]) {
    let Some(url) = url else { return };
    let scheme = url.expose().split_once("://").map_or("", |(scheme, _)| scheme);
    if !schemes.contains(&scheme) {
        return reading.fault(key, format!("must begin with `{}://`", schemes.join("://` or `")));
    }
    if !url.has_password() {
        return;
    }
    match reading.origin_of(key) {
        Origin::File(path) if path.exists() => {
            if let Err(error) = check_private(&path) {
                reading.fault(key, format!("has a password in it, and {error}"));
            }
        }
        Origin::File(_) | Origin::Nowhere => {}
        Origin::Variable(_) => {
            reading.fault(key, "has a password in it, and a process's environment is no place for one: write it to a file of mode 0600 (`database.password_file`), or put the URL into the configuration file");
        }
    }
}

fn host(config: &Config, reading: &Reading<'_>) {
    let host = &config.host;
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    if host.name.is_empty() || host.name.len() > MAX_NAME_LENGTH || !host.name.chars().all(fits) {
        reading.fault("host.name", format!("write 1 to {MAX_NAME_LENGTH} letters, digits, `-`, `_` or `.`"));
    }
    let here = std::env::consts::OS;
    match host.hypervisor {
        HypervisorKind::Vz if here != "macos" => {
            reading.fault("host.hypervisor", "is for macOS: on this system write `qemu`, or `fake` to try things")
        }
        HypervisorKind::Qemu if here != "linux" => {
            reading.fault("host.hypervisor", "is for Linux: on a Mac write `vz`, or `fake` to try things")
        }
        HypervisorKind::Vz | HypervisorKind::Qemu | HypervisorKind::Fake => {}
    }
    if host.hypervisor == HypervisorKind::Vz && host.slots > MAX_MACOS_VMS {
        let problem = format!("write 1 or {MAX_MACOS_VMS}: macOS runs no more macOS guests at once");
        reading.fault_after(&["host.hypervisor"], "host.slots", problem);
    }
    if host.slots == 0 || host.slots > MAX_SLOTS {
        reading.fault("host.slots", format!("write a number from 1 to {MAX_SLOTS} (to take no work, `flyci drain`)"));
    }
    if !(host.cpu_overcommit > 0.0 && host.cpu_overcommit <= MAX_OVERCOMMIT) {
        reading.fault("host.cpu_overcommit", format!("write a number above 0, up to {MAX_OVERCOMMIT}"));
    }
    let by_github = |one: &Beneficiary| matches!(one, Beneficiary::Installation(_));
    if !config.is_gateway() && host.dedicated_to.iter().any(by_github) {
        reading.fault_after(
            &["roles"],
            "host.dedicated_to",
            "a host without the gateway role has no key to find installations by GitHub's ids: write the tenants' own ids, which `flyci tenants --json` shows at the gateway",
        );
    }
    files::readable(reading, "host.qemu.binary", host.qemu.binary.as_deref());
    if host.qemu.allow_host_ports.contains(&0) {
        reading.fault("host.qemu.allow_host_ports", "port 0 is none");
    }
    if config.profiles.is_empty() && config.is_gateway() {
        reading.warning_after(&["profiles", "roles"], "profiles", "there is no profile: no job will ever be served");
    }
}

fn runner(config: &Config, reading: &Reading<'_>) {
    let runner = &config.runner;
    if runner.directory.as_ref().is_some_and(|path| !path.join("run.sh").exists()) {
        reading.fault("runner.directory", "holds no `run.sh`: unpack GitHub's runner there");
    }
    if config.host.hypervisor == HypervisorKind::Vz && (runner.directory.is_some() || runner.archive.is_some()) {
        reading.warning_after(
            &["host.hypervisor"],
            "runner",
            "is not handed to the guests of a Mac by this version: they use the runner of their image",
        );
    }
    if runner.directory.is_some() && runner.archive.is_some() {
        reading.fault("runner.archive", "and `runner.directory` are two runners: give one of them");
    }
    files::readable(reading, "runner.archive", runner.archive.as_deref());
    if runner.archive.is_some() {
        for (key, given) in [("runner.version", runner.version.is_some()), ("runner.sha256", runner.sha256.is_some())] {
            if !given {
                reading.fault_after(
                    &[key],
                    key,
                    "is missing: an archive is pinned by its version and its SHA-256 (the release page shows both)",
                );
            }
        }
    } else if runner.sha256.is_some() {
        let problem = "is missing: `runner.sha256` is the digest of GitHub's archive";
        reading.fault_after(&["runner.archive"], "runner.archive", problem);
    } else if runner.version.is_some() && runner.directory.is_none() {
        reading.fault_after(
            &["runner.archive", "runner.directory"],
            "runner.archive",
            "is missing: `runner.version` says which version it, or `runner.directory`, holds",
        );
    }
    if runner.version.as_ref().is_some_and(|text| text.parse::<RunnerVersion>().is_err()) {
        reading.fault("runner.version", "write three numbers, like `2.330.0`");
    }
    let digits = |text: &String| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !runner.sha256.as_ref().is_none_or(digits) {
        reading.fault("runner.sha256", "write 64 hexadecimal digits in small letters");
    }
}

fn times(config: &Config, reading: &Reading<'_>) {
    let (limits, retention) = (&config.limits, &config.retention);
    let bounds = [
        ("limits.boot_timeout", limits.boot_timeout, Duration::from_secs(1), minutes(120), "from clone to ready"),
        (
            "limits.idle_timeout",
            limits.idle_timeout,
            Duration::from_secs(1),
            minutes(60),
            "GitHub drops idle JIT runners within minutes",
        ),
        (
            "limits.job_timeout",
            limits.job_timeout,
            Duration::from_secs(1),
            days(5),
            "GitHub ends every job after 5 days",
        ),
        ("limits.queue_timeout", limits.queue_timeout, minutes(1), days(30), "GitHub holds a job for a day or two"),
        (
            "retention.deliveries",
            retention.deliveries,
            days(3),
            days(3_650),
            "GitHub can send a delivery again for 3 days",
        ),
        ("retention.jobs", retention.jobs, days(7), days(36_500), "redeliveries are matched with the rows of jobs"),
        ("retention.uninstalled", retention.uninstalled, minutes(0), days(3_650), "an account may come back"),
        ("retention.audit", retention.audit, days(31), days(36_500), "the database keeps what is younger"),
        ("retention.backups", retention.backups, minutes(0), days(36_500), "an erasure is final when they are gone"),
    ];
    for (key, value, least, most, why) in bounds {
        if value.0 < least || value.0 > most {
            reading.fault(key, format!("write a time from {} to {}: {why}", Span(least), Span(most)));
        }
    }
    for (key, count) in
        [("limits.jobs_per_installation", limits.jobs_per_installation), ("limits.attempts", limits.attempts)]
    {
        if count == 0 {
            reading.fault(key, "write 1 or more");
        }
    }
}

fn profiles(config: &Config, reading: &Reading<'_>) {
    let mut seen = HashMap::new();
    for profile in &config.profiles {
        let key = |name: &str| format!("profiles.{}.{name}", profile.label);
        let lower = profile.label.to_lowercase();
        if GENERAL_LABELS.contains(&lower.as_str()) {
            reading.fault(&key("label"), "is a label that GitHub gives to runners of every owner: write one of your own, like `flyci-macos-large`");
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if profile.label.is_empty() || profile.label.len() > MAX_LABEL_LENGTH || !profile.label.chars().all(fits) {
            reading.fault(&key("label"), format!("write 1 to {MAX_LABEL_LENGTH} letters, digits, `-`, `_` or `.`"));
        }
        if let Some(other) = seen.insert(lower, profile.label.clone()) {
            reading.fault(&key("label"), format!("is there twice (`{other}`): case does not tell labels apart"));
        }
        if profile.cpus == 0 || profile.cpus > MAX_CPUS {
            reading.fault(&key("cpus"), format!("write a number from 1 to {MAX_CPUS}"));
        }
        if profile.memory < MIN_MEMORY {
            reading.fault(&key("memory"), format!("write {MIN_MEMORY} or more"));
        }
        if profile.image.trim().is_empty() {
            reading.fault(&key("image"), "is empty: name an image (`flyci image list`)");
        }
        if profile.job_timeout.is_some_and(|time| time.0.is_zero() || time.0 > days(5)) {
            reading.fault(&key("job_timeout"), "write a time up to 5d: GitHub ends every job then");
        }
    }
}

/// Warns of profiles that this machine can never run.
pub(super) fn runnable(config: &Config, machine: &Machine, reading: &Reading<'_>) {
    if !config.is_host() {
        return;
    }
    for profile in &config.profiles {
        if let Some(problem) = never_runs(config, machine, profile) {
            reading.warning(&format!("profiles.{}", profile.label), format!("can never run on this host: {problem}"));
        }
    }
}

fn never_runs(config: &Config, machine: &Machine, profile: &Profile) -> Option<String> {
    let host = &config.host;
    let hardware = host.hardware.as_deref().unwrap_or(&machine.hardware);
    if let Some(need) = profile.hardware.as_ref().filter(|need| !need.is_met_by(hardware)) {
        return Some(format!("it wants `{need}`, and the hardware is `{hardware}`"));
    }
    match host
        .capacity(machine.cpus, machine.memory, None)
        .could_ever_admit(Need { memory: profile.memory, cpus: profile.cpus })
    {
        // Which macOS an image needs is known only where the image is.
        Ok(()) | Err(Refusal::Slots | Refusal::Macos) => None,
        Err(Refusal::Memory) => {
            let (has, keeps) = (machine.memory, host.reserve_memory);
            Some(format!("it wants {} of memory; the machine has {has}, of which {keeps} are reserved", profile.memory))
        }
        Err(Refusal::Cpus) => {
            let (has, keeps) = (machine.cpus, host.reserve_cpus);
            Some(format!("it wants {} CPUs; the machine has {has}, of which {keeps} are reserved", profile.cpus))
        }
    }
}
