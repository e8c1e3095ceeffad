//! The sections of the configuration: what each key means, and its default.

use super::setting::{HttpUrl, Listener, SecretUrl, Setting, choices};
use super::table::Table;
use super::vz::Vz;
use crate::domain::admission::{Capacity, MacosVersion};
use crate::domain::ids::TenantId;
use crate::domain::reason::words;
use crate::domain::units::{Bytes, Span};
use figment::value::Value;
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

const GB: u64 = 1_000_000_000;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

words! {
    /// What a daemon does.
    Role {
        /// Takes webhooks and speaks to GitHub.
        Gateway = "gateway",
        /// Runs vms.
        Host = "host",
    }
}

words! {
    /// Where the certificate of the public listener comes from.
    TlsMode {
        /// From two files.
        Files = "files",
        /// Made at the start: for the demo, GitHub trusts none.
        SelfSigned = "self-signed",
        /// No TLS: loopback only, behind a proxy or a tunnel that ends it.
        Off = "off",
    }
}

words! {
    /// How deliveries reach the gateway.
    Intake {
        /// GitHub sends them.
        Webhook = "webhook",
        /// The App's delivery log is read: no inbound port is needed.
        Pull = "pull",
    }
}

words! {
    /// Where a runner is registered.
    RunnerScope {
        /// On the repository of its job.
        Repository = "repository",
        /// In a runner group of the organisation that holds one repository.
        OrganizationGroup = "organization-group",
    }
}

words! {
    /// Who is served.
    AdmissionRule {
        /// Accounts that the operator approved.
        Approve = "approve",
        /// Everybody who installs the App.
        Open = "open",
    }
}

words! {
    /// What runs the vms.
    HypervisorKind {
        /// Apple's Virtualization.framework (macOS).
        Vz = "vz",
        /// QEMU (Linux).
        Qemu = "qemu",
        /// None: vms are pretended, for load and fault tests.
        Fake = "fake",
    }
}

words! {
    /// How QEMU runs a guest's instructions.
    Accel {
        /// KVM where there is one, else TCG.
        Auto = "auto",
        /// By the processor.
        Kvm = "kvm",
        /// In software: slow, works everywhere.
        Tcg = "tcg",
    }
}

choices!(Role, TlsMode, Intake, RunnerScope, AdmissionRule, HypervisorKind, Accel);

/// `[admin]`: how the operator's commands reach the daemon.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Admin {
    /// The socket of the API; relative to the data directory.
    pub socket: PathBuf,
    /// The API over TCP as well, on loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Where Prometheus finds the metrics.
    pub metrics_listen: Listener,
}

impl Admin {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let admin = Self {
            socket: table.or("socket", PathBuf::from("admin.sock")),
            listen: table.maybe("listen"),
            metrics_listen: table.or("metrics_listen", Listener(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464))))),
        };
        table.finish();
        admin
    }
}

/// `[github]`: the App. There for a gateway alone.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Github {
    /// GitHub's API, or that of an Enterprise Server.
    pub api_url: HttpUrl,
    /// The App's id.
    pub app_id: u64,
    /// The App's private key, PEM.
    pub private_key_file: PathBuf,
    /// The key before, during a rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_private_key_file: Option<PathBuf>,
    /// The webhook's secret; there unless deliveries are pulled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook_secret_file: Option<PathBuf>,
    /// The secret before, during a rotation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_webhook_secret_file: Option<PathBuf>,
    /// How deliveries come.
    pub intake: Intake,
    /// Where runners are registered.
    pub runner_scope: RunnerScope,
    /// Certificates to trust beside the system's, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// A proxy for all calls to GitHub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_url: Option<SecretUrl>,
}

impl Github {
    pub(super) fn read(mut table: Table<'_>, default_api: HttpUrl) -> Self {
        let why = "a gateway cannot speak to GitHub without it (docs/operations.md says how an App is made)";
        table.follow(&["roles"]);
        let intake = table.or("intake", Intake::Webhook);
        let api_url = table.or("api_url", default_api);
        // What is missing is told; a stand-in lets the rest be checked.
        let app_id = table.need("app_id", why).unwrap_or_default();
        let private_key_file = table.need_path("private_key_file", why).unwrap_or_default();
        table.follow(&["roles", "github.intake"]);
        let webhook_secret_file = match intake {
            Intake::Webhook => table.need_path("webhook_secret_file", "webhooks are verified by it"),
            Intake::Pull => table.path("webhook_secret_file"),
        };
        let github = Self {
            api_url,
            app_id,
            private_key_file,
            previous_private_key_file: table.path("previous_private_key_file"),
            webhook_secret_file,
            previous_webhook_secret_file: table.path("previous_webhook_secret_file"),
            intake,
            runner_scope: table.or("runner_scope", RunnerScope::Repository),
            ca_file: table.path("ca_file"),
            proxy_url: table.maybe("proxy_url"),
        };
        table.finish();
        github
    }
}

/// `[tenants]`: who is served.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Tenants {
    /// Whether the operator approves each account.
    pub admission: AdmissionRule,
    /// Whether jobs of public repositories are run: a fork's pull request is anybody's code.
    pub public_repositories: bool,
}

impl Tenants {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let tenants = Self {
            admission: table.or("admission", AdmissionRule::Approve),
            public_repositories: table.or("public_repositories", false),
        };
        table.finish();
        tenants
    }
}

/// `[database]`: Postgres.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Database {
    /// The fleet's database; absent: a private Postgres in the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<SecretUrl>,
    /// Holds the password of `url`, so that it is in no URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// A direct connection for LISTEN, where `url` goes through a pooler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen_url: Option<SecretUrl>,
    /// Certificates that the database's is checked against, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Connections of each role of this daemon.
    pub max_connections: u32,
    /// Whether Postgres may be downloaded where none is installed.
    pub download: bool,
}

impl Database {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let database = Self {
            url: table.maybe("url"),
            password_file: table.path("password_file"),
            listen_url: table.maybe("listen_url"),
            ca_file: table.path("ca_file"),
            max_connections: table.or("max_connections", 10),
            download: table.or("download", false),
        };
        table.finish();
        database
    }
}

/// Whom a host may be dedicated to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum Beneficiary {
    /// An installation, by GitHub's id.
    Installation(u64),
    /// A tenant, by our own id (`flyci tenants --json`): for hosts that have no key to find installations by.
    Tenant(TenantId),
}

impl Setting for Beneficiary {
    fn accepts() -> String {
        "GitHub's id of an installation, or a tenant's id (a UUID) in quotes".to_owned()
    }
    fn read(value: &Value) -> Option<Self> {
        u64::read(value)
            .map(Self::Installation)
            .or_else(|| value.as_str()?.trim().parse().ok().map(|id| Self::Tenant(TenantId(id))))
    }
}

/// `[host]`: this machine's vms.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Host {
    /// Its unique name in the fleet.
    pub name: String,
    /// What runs the vms.
    pub hypervisor: HypervisorKind,
    /// Vms at once.
    pub slots: u32,
    /// Memory kept for the host itself.
    pub reserve_memory: Bytes,
    /// CPUs kept for the host itself.
    pub reserve_cpus: u32,
    /// Virtual CPUs that one CPU may carry.
    pub cpu_overcommit: f64,
    /// Its hardware as profiles name it, if it is not to be detected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<String>,
    /// The only ones that it serves; empty: all approved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dedicated_to: Vec<Beneficiary>,
    /// Whether one vm of each image boots to ready before work, since the host, its system or its flyci changed.
    pub self_test: bool,
    /// Whether that vm tries what no job may reach, and the host takes no jobs while it does reach it.
    pub probe_network: bool,
    /// `[host.vz]`.
    pub vz: Vz,
    /// `[host.qemu]`.
    pub qemu: Qemu,
    /// `[host.fake]`.
    pub fake: Fake,
}

impl Host {
    /// What vms may take of a machine with so many CPUs and so much memory, which runs this macOS if any.
    #[must_use]
    pub fn capacity(&self, cpus: u32, memory: Bytes, macos: Option<MacosVersion>) -> Capacity {
        Capacity {
            slots: self.slots,
            memory,
            cpus,
            reserve_memory: self.reserve_memory,
            reserve_cpus: self.reserve_cpus,
            cpu_overcommit: self.cpu_overcommit,
            macos,
        }
    }

    pub(super) fn read(mut table: Table<'_>, default_name: String) -> Self {
        let (qemu, fake) = (Qemu::read(table.table("qemu")), Fake::read(table.table("fake")));
        let native = if cfg!(target_os = "macos") { HypervisorKind::Vz } else { HypervisorKind::Qemu };
        let hypervisor = table.or("hypervisor", native);
        let host = Self {
            name: table.or("name", default_name),
            hypervisor,
            slots: table.or("slots", 2),
            reserve_memory: table.or("reserve_memory", Bytes(4 * GB)),
            reserve_cpus: table.or("reserve_cpus", 0),
            cpu_overcommit: table.or("cpu_overcommit", 1.0),
            hardware: table.maybe("hardware"),
            dedicated_to: table.or("dedicated_to", Vec::new()),
            vz: Vz::read(table.table("vz")),
            self_test: table.or("self_test", hypervisor == HypervisorKind::Vz),
            probe_network: table.or("probe_network", true),
            qemu,
            fake,
        };
        table.finish();
        host
    }
}

/// `[host.qemu]`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Qemu {
    /// How instructions are run.
    pub accel: Accel,
    /// The program `qemu-system-…`; absent: found on the PATH.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<PathBuf>,
    /// TCP ports of this machine's loopback that guests can reach; none by default.
    pub allow_host_ports: Vec<u16>,
}

impl Qemu {
    fn read(mut table: Table<'_>) -> Self {
        let qemu = Self {
            accel: table.or("accel", Accel::Auto),
            binary: table.path("binary"),
            allow_host_ports: table.or("allow_host_ports", Vec::new()),
        };
        table.finish();
        qemu
    }
}

/// `[host.fake]`: how long each pretended step takes.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Fake {
    /// From boot to ready.
    pub boot: Span,
    /// Making a clone.
    pub clone: Span,
    /// Destroying a vm.
    pub destroy: Span,
    /// How long a job runs; absent: until GitHub says completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<Span>,
    /// A line of JSON is appended here for each step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_file: Option<PathBuf>,
}

impl Fake {
    fn read(mut table: Table<'_>) -> Self {
        let fake = Self {
            boot: table.or("boot", Span::seconds(0)),
            clone: table.or("clone", Span::seconds(0)),
            destroy: table.or("destroy", Span::seconds(0)),
            job: table.maybe("job"),
            events_file: table.path("events_file"),
        };
        table.finish();
        fake
    }
}

/// `[runner]`: GitHub's runner program, supplied to guests by the host.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Runner {
    /// An unpacked runner; absent: the one inside the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// The archive of the pinned version, as GitHub publishes it; unpacked by the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<PathBuf>,
    /// The version of either.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The SHA-256 of the archive, in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Runner {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let runner = Self {
            directory: table.path("directory"),
            archive: table.path("archive"),
            version: table.maybe("version"),
            sha256: table.maybe("sha256"),
        };
        table.finish();
        runner
    }
}

/// `[limits]`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Limits {
    /// Vms that one account may have at once.
    pub jobs_per_installation: u32,
    /// From clone to ready.
    pub boot_timeout: Span,
    /// How long a runner may wait for its job.
    pub idle_timeout: Span,
    /// How long a job may run, from GitHub's `started_at`; profiles may say otherwise.
    pub job_timeout: Span,
    /// How long a job may wait.
    pub queue_timeout: Span,
    /// After so many tries a job is shown as a problem and tried slowly; never dropped.
    pub attempts: u32,
    /// Whether GitHub is asked to run jobs again that were lost with their machine.
    pub rerun_lost_jobs: bool,
}

impl Limits {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let limits = Self {
            jobs_per_installation: table.or("jobs_per_installation", 5),
            boot_timeout: table.or("boot_timeout", Span::seconds(5 * MINUTE)),
            idle_timeout: table.or("idle_timeout", Span::seconds(4 * MINUTE)),
            job_timeout: table.or("job_timeout", Span::seconds(6 * HOUR + 15 * MINUTE)),
            queue_timeout: table.or("queue_timeout", Span::seconds(48 * HOUR)),
            attempts: table.or("attempts", 5),
            rerun_lost_jobs: table.or("rerun_lost_jobs", false),
        };
        table.finish();
        limits
    }
}

/// `[retention]`: how long rows are kept.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Retention {
    /// Webhook deliveries.
    pub deliveries: Span,
    /// Jobs, with the vms and runners that served them.
    pub jobs: Span,
    /// Accounts that uninstalled the App: after that they are erased.
    pub uninstalled: Span,
    /// The audit trail.
    pub audit: Span,
    /// Backups, by the operator's own word: an erasure is final only when those of before are gone.
    pub backups: Span,
}

impl Retention {
    pub(super) fn read(mut table: Table<'_>) -> Self {
        let retention = Self {
            deliveries: table.or("deliveries", Span::seconds(7 * DAY)),
            jobs: table.or("jobs", Span::seconds(400 * DAY)),
            uninstalled: table.or("uninstalled", Span::seconds(30 * DAY)),
            audit: table.or("audit", Span::seconds(3 * 365 * DAY)),
            backups: table.or("backups", Span::seconds(30 * DAY)),
        };
        table.finish();
        retention
    }
}
