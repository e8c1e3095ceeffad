//! The state of the simulated GitHub and the rules that change it. No I/O: what is to be sent lies in the outbox, which
//! [`crate::hub`] empties. Times that GitHub tells are wall-clock times that can be moved; waits are monotonic.

pub mod jobs;
pub mod limits;
pub mod model;
pub mod runners;
pub mod switches;
pub mod tenants;
pub mod tick;
pub mod tokens;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use chrono::{DateTime, Duration, Utc};
use serde_json::Value;

use crate::webhooks::log::DeliveryRecord;
use limits::Budget;
use model::{Account, Installed, Job, Repository, Run, Runner, RunnerGroup};
use switches::Switches;
use tokens::Token;

/// The permissions that the App asks for, and each new installation grants.
pub const APP_PERMISSIONS: [(&str, &str); 4] = [
    ("actions", "write"),
    ("administration", "write"),
    ("metadata", "read"),
    ("organization_self_hosted_runners", "write"),
];
/// The events that the App subscribes to (`installation*` comes without).
pub const APP_EVENTS: [&str; 2] = ["repository", "workflow_job"];

/// The App itself.
#[derive(Clone, Debug)]
pub struct App {
    /// GitHub's id.
    pub id: u64,
    /// Also accepted as a JWT's `iss`.
    pub client_id: String,
    /// The name in URLs.
    pub slug: String,
    /// The account that owns it.
    pub owner: u64,
    /// Its webhook's id.
    pub hook_id: u64,
    /// What it asks for.
    pub permissions: BTreeMap<String, String>,
    /// What it subscribes to.
    pub events: Vec<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// A webhook to be sent.
#[derive(Clone, Debug)]
pub struct Event {
    /// `X-GitHub-Event`.
    pub name: Cow<'static, str>,
    /// The payload's `action`.
    pub action: Option<&'static str>,
    /// Whom it concerns.
    pub installation: Option<u64>,
    /// What it concerns.
    pub repository: Option<u64>,
    /// Events of one key are sent in order unless a switch says otherwise.
    pub key: u64,
    /// The body.
    pub payload: Value,
}

/// Counters that GitHub-like ids come from. They begin high, so that nobody keeps them in 32 bits.
#[derive(Clone, Debug)]
pub struct Ids {
    small: u64,
    job: u64,
    run: u64,
    delivery: u64,
}

impl Ids {
    /// For accounts, installations, repositories, groups, runners.
    pub fn small(&mut self) -> u64 {
        self.small += 1;
        self.small
    }

    /// For jobs.
    pub fn job(&mut self) -> u64 {
        self.job += 1;
        self.job
    }

    /// For runs.
    pub fn run(&mut self) -> u64 {
        self.run += 1;
        self.run
    }

    /// For deliveries.
    pub fn delivery(&mut self) -> u64 {
        self.delivery += 1;
        self.delivery
    }
}

/// Everything that the simulated GitHub knows.
pub struct World {
    /// The App.
    pub app: App,
    /// Base URL that goes into payloads and Link headers.
    pub api_url: String,
    /// Accounts by id.
    pub accounts: BTreeMap<u64, Account>,
    /// Installations by id.
    pub installations: BTreeMap<u64, Installed>,
    /// Repositories by id.
    pub repositories: BTreeMap<u64, Repository>,
    /// Runner groups by account and id; each account's default group is number 1.
    pub groups: BTreeMap<(u64, u64), RunnerGroup>,
    /// Runs by id.
    pub runs: BTreeMap<u64, Run>,
    /// Jobs by id.
    pub jobs: BTreeMap<u64, Job>,
    /// Queued jobs, oldest first.
    pub queued: BTreeSet<u64>,
    /// Registered runners by id.
    pub runners: BTreeMap<u64, Runner>,
    /// Runner ids by the digest of their session's token.
    pub sessions: HashMap<String, u64>,
    /// Installation tokens by their digest.
    pub tokens: HashMap<String, Token>,
    /// Calls by route template.
    pub requests: BTreeMap<String, u64>,
    /// Rate-limit windows by who calls and resource.
    pub budgets: HashMap<(String, &'static str), Budget>,
    /// What misbehaves.
    pub switches: Switches,
    /// Attempts to deliver, newest last, bounded.
    pub log: VecDeque<DeliveryRecord>,
    /// Events that were made and whose delivery has not ended.
    pub in_flight: usize,
    /// Source of ids.
    pub ids: Ids,
    pub(crate) outbox: Vec<Event>,
    clock_offset: Duration,
}

impl World {
    /// A GitHub with one App and no installation.
    pub fn new(api_url: String) -> Self {
        let mut ids =
            Ids { small: 61_000_000, job: 50_000_000_000, run: 18_000_000_000, delivery: 300_000_000_000_000 };
        let owner = ids.small();
        let app = App {
            id: ids.small(),
            client_id: "Iv23liFakeGitHubApp0".into(),
            slug: "flyci-test".into(),
            owner,
            hook_id: ids.small(),
            permissions: APP_PERMISSIONS.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            events: APP_EVENTS.iter().map(|e| (*e).into()).collect(),
            created_at: Utc::now(),
        };
        let operator = Account { id: owner, login: "operator".into(), kind: model::AccountKind::Organization };
        Self {
            app,
            api_url,
            accounts: BTreeMap::from([(owner, operator)]),
            installations: BTreeMap::new(),
            repositories: BTreeMap::new(),
            groups: BTreeMap::new(),
            runs: BTreeMap::new(),
            jobs: BTreeMap::new(),
            queued: BTreeSet::new(),
            runners: BTreeMap::new(),
            sessions: HashMap::new(),
            tokens: HashMap::new(),
            requests: BTreeMap::new(),
            budgets: HashMap::new(),
            switches: Switches::default(),
            log: VecDeque::new(),
            in_flight: 0,
            ids,
            outbox: Vec::new(),
            clock_offset: Duration::zero(),
        }
    }

    /// GitHub's clock.
    pub fn now(&self) -> DateTime<Utc> {
        Utc::now() + self.clock_offset
    }

    /// Changes what the App asks for and subscribes to, as its settings page does. Installations keep what they grant.
    pub fn change_app(&mut self, permissions: BTreeMap<String, String>, events: Vec<String>) {
        self.app.permissions = permissions;
        self.app.events = events;
    }

    /// Moves GitHub's clock, so that tokens expire and skew shows without waiting.
    pub fn move_clock(&mut self, by: Duration) {
        self.clock_offset += by;
    }

    /// Sends an event with any payload: for malformed, foreign and historic ones.
    pub fn send_event(&mut self, name: impl Into<Cow<'static, str>>, payload: Value) {
        let name = name.into();
        self.emit(Event { name, action: None, installation: None, repository: None, key: 0, payload });
    }

    /// Puts an event into the outbox.
    pub(crate) fn emit(&mut self, event: Event) {
        let unsubscribed = |name: &str| !self.app.events.iter().any(|e| e == name);
        if APP_EVENTS.iter().any(|e| *e == event.name) && unsubscribed(&event.name) {
            return;
        }
        self.in_flight += 1;
        self.outbox.push(event);
    }

    /// A repository by the names in a path; both ignore case, as GitHub's do.
    pub fn repository_named(&self, owner: &str, name: &str) -> Option<&Repository> {
        let owner = self.account_named(owner)?.id;
        self.repositories.values().find(|r| r.owner == owner && r.name.eq_ignore_ascii_case(name))
    }

    /// An account by its login.
    pub fn account_named(&self, login: &str) -> Option<&Account> {
        self.accounts.values().find(|a| a.login.eq_ignore_ascii_case(login))
    }

    /// The installation of an account.
    pub fn installation_of(&self, account: u64) -> Option<&Installed> {
        self.installations.values().find(|i| i.account == account)
    }

    /// The installation that reaches a repository.
    pub fn installation_reaching(&self, repository: &Repository) -> Option<&Installed> {
        self.installation_of(repository.owner).filter(|_| repository.selected)
    }

    /// The installation that is told of a repository: an App hears only of repositories that it reaches, and nothing
    /// while it is suspended.
    pub fn installation_hearing(&self, repository: &Repository) -> Option<&Installed> {
        self.installation_reaching(repository).filter(|i| i.suspended_at.is_none())
    }

    /// A repository's owner.
    pub fn owner(&self, repository: &Repository) -> &Account {
        self.accounts.get(&repository.owner).expect("a repository's owner exists")
    }

    /// A runner's group.
    pub fn group(&self, runner: &Runner) -> &RunnerGroup {
        let account = match runner.scope {
            model::Scope::Repository(id) => self.repositories[&id].owner,
            model::Scope::Organization(id) => id,
        };
        // A repository that moved to another account leaves the old account's groups behind.
        let group = self.groups.get(&(account, runner.group));
        group.unwrap_or_else(|| &self.groups[&(account, tenants::DEFAULT_GROUP)])
    }

    /// `owner/name`.
    pub fn full_name(&self, repository: &Repository) -> String {
        format!("{}/{}", self.owner(repository).login, repository.name)
    }
}
