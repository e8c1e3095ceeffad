//! The configuration: one TOML file with the environment over it, typed, and all faults told at once.
//!
//! Two passes: every key is read by its kind (`sections`, `profiles`), then what keys say together is
//! checked, with the files they name (`check`, `files`). A [`Config`] in hand has passed both. What is *not*
//! here: what the daemon does with it, and secrets themselves (`files` reads them to check them, and keeps nothing).

mod check;
mod files;
mod images;
mod keys;
mod profiles;
mod sections;
mod setting;
mod source;
mod table;
mod vz;
mod web;

pub use check::Machine;
pub use images::Images;
pub use keys::Keys;
pub use sections::{
    Accel, Admin, AdmissionRule, Beneficiary, Database, Fake, Github, Host, HypervisorKind, Intake, Limits, Qemu,
    Retention, Role, Runner, RunnerScope, Tenants, TlsMode,
};
pub use setting::{ContactUri, HttpUrl, Listener, SecretUrl};
pub use source::{FILE_VARIABLE, Origin, USUAL_PLACES};
pub use table::Fault;
pub use vz::{Spawn, Vz};
pub use web::{Allow, SecurityTxt, Tls, Web};

use crate::domain::profile::Profile;
use serde::Serialize;
use setting::Setting;
use source::Source;
use std::fmt;
use std::path::{Path, PathBuf};
use table::Reading;

/// Where everything is kept, if the configuration does not say otherwise.
const DEFAULT_DATA_DIR: &str = if cfg!(target_os = "macos") { "/var/db/flyci" } else { "/var/lib/flyci" };
/// GitHub's public API.
const GITHUB_API: &str = "https://api.github.com";

/// A configuration that was read and checked. All paths are absolute.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Config {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// What this daemon does.
    pub roles: Vec<Role>,
    /// The public listener.
    pub web: Web,
    /// The operator's way in.
    pub admin: Admin,
    /// The App; there exactly when the daemon is a gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub github: Option<Github>,
    /// Who is served.
    pub tenants: Tenants,
    /// Postgres.
    pub database: Database,
    /// This machine's vms.
    pub host: Host,
    /// GitHub's runner program.
    pub runner: Runner,
    /// How images come to this host, and how long they stay.
    pub images: Images,
    /// Bounds of a job's way.
    pub limits: Limits,
    /// The master key.
    pub keys: Keys,
    /// How long rows are kept.
    pub retention: Retention,
    /// The sizes on offer.
    pub profiles: Vec<Profile>,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigFaults(pub Vec<Fault>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [fault] => write!(f, "the configuration is wrong\n  {fault}"),
            faults => {
                write!(f, "the configuration is wrong in {} places", faults.len())?;
                faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

impl std::error::Error for ConfigFaults {}

/// What was found out about a configuration.
#[derive(Debug)]
pub struct Report {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// What is wrong. Empty: the configuration can be used.
    pub faults: Vec<Fault>,
    /// What is allowed and perhaps not meant.
    pub warnings: Vec<Fault>,
    /// The configuration, if nothing is wrong.
    pub config: Option<Config>,
}

impl Config {
    /// Reads and checks the configuration: the named file, else the one that `$FLYCI_CONFIG` names, else
    /// the first in the [`USUAL_PLACES`]; with the environment over it.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigFaults> {
        let report = check(path, None);
        report.config.ok_or(ConfigFaults(report.faults))
    }

    /// Reads and checks a text as if it were a file of `directory`; the environment is not looked at.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn from_toml(text: &str, directory: &Path) -> Result<Self, ConfigFaults> {
        let report = examine(Source::from_text(text, directory), None);
        report.config.ok_or(ConfigFaults(report.faults))
    }

    /// True when this daemon takes webhooks and speaks to GitHub.
    #[must_use]
    pub fn is_gateway(&self) -> bool {
        self.roles.contains(&Role::Gateway)
    }

    /// True when deliveries are fetched from GitHub: there is no public listener then.
    #[must_use]
    pub fn is_pulling(&self) -> bool {
        self.github.as_ref().is_some_and(|github| github.intake == Intake::Pull)
    }

    /// True when this daemon runs vms.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.roles.contains(&Role::Host)
    }

    /// The file of the key that JIT configs are sealed to.
    #[must_use]
    pub fn host_key_file(&self) -> PathBuf {
        self.data_dir.join("host.key")
    }
}

/// Reads and checks the configuration; with `machine`, also whether it can run the profiles.
#[must_use]
pub fn check(path: Option<&Path>, machine: Option<&Machine>) -> Report {
    match Source::find(path) {
        Ok(source) => examine(source, machine),
        Err(fault) => {
            let file = path.map(Path::to_owned);
            Report { file, faults: vec![fault], warnings: Vec::new(), config: None }
        }
    }
}

/// Where the daemon of a configuration listens for its operator. Nothing else is looked at: root must be able to ask
/// a daemon whose secrets are another user's, and a daemon can be asked while its configuration is being edited.
///
/// # Errors
/// What is wrong with the file as a whole, and with these keys.
pub fn admin_socket(path: Option<&Path>) -> Result<PathBuf, ConfigFaults> {
    let mut source = Source::find(path).map_err(|fault| ConfigFaults(vec![fault]))?;
    let values = source.values().map_err(|fault| ConfigFaults(vec![fault]))?;
    let reading = Reading::new(&source);
    let mut root = reading.root(values);
    let data_dir = root.path("data_dir").unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR));
    let admin = Admin::read(root.table("admin"));
    let (faults, _) = reading.into_findings();
    if faults.is_empty() { Ok(data_dir.join(admin.socket)) } else { Err(ConfigFaults(faults)) }
}

/// The configuration as TOML, defaults written out and passwords masked.
#[must_use]
pub fn show(config: &Config) -> String {
    toml::to_string(config).expect("a configuration has only texts, numbers, lists and tables")
}

fn examine(mut source: Source, machine: Option<&Machine>) -> Report {
    let file = source.file().map(Path::to_owned);
    let values = match source.values() {
        Ok(values) => values,
        Err(fault) => return Report { file, faults: vec![fault], warnings: Vec::new(), config: None },
    };
    let reading = Reading::new(&source);
    let config = read(&reading, values);
    check::check(&config, &reading);
    if let Some(machine) = machine {
        check::runnable(&config, machine, &reading);
    }
    let (faults, warnings) = reading.into_findings();
    let config = faults.is_empty().then_some(config);
    Report { file, faults, warnings, config }
}

/// Reads every key. Faults are written down in `reading`, and a default stands in for what is wrong.
fn read(reading: &Reading<'_>, values: figment::value::Dict) -> Config {
    let mut root = reading.root(values);
    let data_dir = root.path("data_dir").unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR));
    let roles = root.or("roles", Role::ALL.to_vec());
    let is_gateway = roles.contains(&Role::Gateway);
    let web = root.table("web");
    let mut admin = Admin::read(root.table("admin"));
    admin.socket = data_dir.join(admin.socket);
    let api = HttpUrl::read(&GITHUB_API.into()).expect("it is a URL");
    let github = root.table("github");
    let github = is_gateway.then(|| Github::read(github, api));
    let web = Web::read(web, github.as_ref().is_some_and(|github| github.intake == Intake::Webhook));
    let tenants = Tenants::read(root.table("tenants"));
    let database = Database::read(root.table("database"));
    let host = Host::read(root.table("host"), machine_name());
    let runner = Runner::read(root.table("runner"));
    let images = Images::read(root.table("images"));
    let limits = Limits::read(root.table("limits"));
    let keys = Keys::read(root.table("keys"), &data_dir, reading);
    let retention = Retention::read(root.table("retention"));
    let profiles = root.tables("profiles", "label").into_iter().filter_map(profiles::read).collect();
    root.finish();
    Config {
        data_dir,
        roles,
        web,
        admin,
        github,
        tenants,
        database,
        host,
        runner,
        images,
        limits,
        keys,
        retention,
        profiles,
    }
}

/// The machine's name without its domain.
fn machine_name() -> String {
    let full = hostname::get().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    full.split('.').next().unwrap_or_default().to_lowercase()
}

#[cfg(test)]
mod tests;
