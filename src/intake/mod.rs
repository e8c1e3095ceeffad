//! A webhook delivery: verify, parse, store. Answered only after its effect is committed.
//!
//! Decides which jobs become rows: those of an account that the operator approved, of a repository
//! that may be served, with labels that a profile serves, and every job that one of our runners has.
//! The others leave a refusal, so that `flyci jobs why` can answer for every job.
//!
//! Does not: speak to GitHub, choose hosts, or keep anything of a payload beyond the columns.

mod accounts;
mod found;
mod jobs;
pub mod payload;
pub mod signature;

use crate::domain::profile::{Platform, Profile};
use crate::points::effect;
use crate::secrets::{KeyRing, SecretsError};
use crate::store::audit::Trail;
use crate::store::deliveries::Outcome;
use crate::store::{StoreError, deliveries};
use crate::wake::Wakes;
use chrono::Duration;
use payload::Envelope;
use signature::WebhookSecrets;
use sqlx::PgPool;
use std::sync::Arc;
use uuid::Uuid;

/// The events that have an effect.
pub const EVENTS: [&str; 5] =
    ["workflow_job", "installation", "installation_repositories", "installation_target", "repository"];

/// What the operator's configuration says of who is served, and with what.
#[derive(Clone)]
pub struct Policy {
    /// What is on offer, with what is known of each profile's guest.
    pub profiles: Vec<(Profile, Option<Platform>)>,
    /// An account that installs the App is served at once.
    pub open_admission: bool,
    /// Jobs of public repositories are served.
    pub public_repositories: bool,
    /// A queued job that is older than this when we first hear of it is asked about first.
    pub queue_timeout: Duration,
}

/// Takes deliveries in.
pub struct Intake {
    pool: PgPool,
    ring: Arc<KeyRing>,
    trail: Trail,
    secrets: WebhookSecrets,
    policy: Policy,
    wakes: Arc<Wakes>,
}

/// One delivery as it came.
pub struct Delivery<'a> {
    /// `X-GitHub-Delivery`: names it, also when it is sent again. Not signed.
    pub guid: Option<&'a str>,
    /// `X-GitHub-Event`. Not signed: the body must fit it.
    pub event: Option<&'a str>,
    /// `X-Hub-Signature-256`.
    pub signature: Option<&'a str>,
    /// The raw bytes.
    pub body: &'a [u8],
}

/// What was done with a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receipt {
    /// Its effect is committed.
    Applied,
    /// It was applied before.
    Repeated,
    /// It calls for nothing, for this reason.
    Ignored(&'static str),
    /// It is GitHub's, and this version does not understand it, for this reason.
    NotUnderstood(&'static str),
}

impl Receipt {
    /// The word of it, for logs and counters.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Repeated => "repeated",
            Self::Ignored(_) => "ignored",
            Self::NotUnderstood(_) => "not_understood",
        }
    }
}

/// Why a delivery was not taken.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// It is not signed with our secret.
    #[error("the delivery's signature is missing or wrong: is the App's webhook secret the configured one?")]
    Signature,
    /// It is not JSON, or a header is missing.
    #[error("the delivery is malformed: {0}")]
    Malformed(&'static str),
    /// The database is away: GitHub will be asked to deliver it again.
    #[error("the delivery could not be stored")]
    Store(#[from] StoreError),
    /// Other gateways were faster each time: GitHub is asked to deliver it again, and then their row is there.
    #[error("the delivery could not be decided: other gateways changed the same job each time")]
    Contended,
    /// A stored value does not open with the keys that we have.
    #[error("the delivery's tenant cannot be opened")]
    Secrets(#[from] SecretsError),
}

impl From<sqlx::Error> for IntakeError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Intake {
    /// An intake for deliveries signed with `secrets`.
    #[must_use]
    pub const fn new(
        pool: PgPool,
        ring: Arc<KeyRing>,
        trail: Trail,
        secrets: WebhookSecrets,
        policy: Policy,
        wakes: Arc<Wakes>,
    ) -> Self {
        Self { pool, ring, trail, secrets, policy, wakes }
    }

    /// Verifies, parses and stores a delivery that came over HTTP.
    ///
    /// # Errors
    /// When it is not GitHub's, not a delivery, or cannot be stored now.
    pub async fn receive(&self, delivery: &Delivery<'_>) -> Result<Receipt, IntakeError> {
        if !self.secrets.verify(delivery.signature, delivery.body) {
            return Err(IntakeError::Signature);
        }
        let event = delivery.event.ok_or(IntakeError::Malformed("the X-GitHub-Event header is missing"))?;
        let guid = delivery
            .guid
            .and_then(|text| text.parse().ok())
            .ok_or(IntakeError::Malformed("the X-GitHub-Delivery header is missing or not a GUID"))?;
        self.apply(guid, event, delivery.body).await
    }

    /// Parses and stores a delivery whose origin is beyond doubt.
    ///
    /// # Errors
    /// When it is not JSON, or cannot be stored now.
    pub async fn apply(&self, guid: Uuid, event: &str, body: &[u8]) -> Result<Receipt, IntakeError> {
        let value: serde_json::Value =
            serde_json::from_slice(body).map_err(|_| IntakeError::Malformed("the body is not JSON"))?;
        let Ok(envelope) = serde_json::from_value::<Envelope>(value) else {
            return self.note(guid, "unknown", None, Receipt::NotUnderstood("unexpected_shape")).await;
        };
        match event {
            "workflow_job" => self.workflow_job(guid, &envelope).await,
            "installation" => self.installation(guid, &envelope).await,
            "installation_repositories" => self.installation_repositories(guid, &envelope).await,
            "installation_target" => self.installation_target(guid, &envelope).await,
            "repository" => self.repository(guid, &envelope).await,
            "ping" => self.note(guid, "ping", None, Receipt::Ignored("ping")).await,
            // The name is an unsigned header: it is not kept.
            _ => self.note(guid, "other", None, Receipt::Ignored("event_not_used")).await,
        }
    }

    /// Remembers a delivery that has no effect.
    async fn note(
        &self,
        guid: Uuid,
        event: &'static str,
        envelope: Option<&Envelope>,
        receipt: Receipt,
    ) -> Result<Receipt, IntakeError> {
        let (outcome, reason) = match receipt {
            Receipt::Applied | Receipt::Repeated => (Outcome::Applied, None),
            Receipt::Ignored(reason) => (Outcome::Ignored, Some(reason)),
            Receipt::NotUnderstood(reason) => (Outcome::NotUnderstood, Some(reason)),
        };
        let action = envelope.and_then(known_action);
        effect!("intake.note", deliveries::record(&self.pool, guid, event, action, outcome, reason).await)?;
        Ok(receipt)
    }
}

/// Actions that are stored by their name; another could carry anything.
const ACTIONS: [&str; 17] = [
    "queued",
    "waiting",
    "in_progress",
    "completed",
    "created",
    "deleted",
    "suspend",
    "unsuspend",
    "new_permissions_accepted",
    "added",
    "removed",
    "renamed",
    "transferred",
    "publicized",
    "privatized",
    "archived",
    "edited",
];

fn known_action(envelope: &Envelope) -> Option<&'static str> {
    let action = envelope.action.as_deref()?;
    ACTIONS.into_iter().find(|known| *known == action)
}
