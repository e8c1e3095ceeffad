//! The App's delivery log: one record per attempt, bounded, redeliverable by id.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::world::World;

/// Attempts that are kept; GitHub keeps those of three days.
pub const LOG_LIMIT: usize = 20_000;

/// A delivery that can be attempted: the event with its body and its GUID.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// `X-GitHub-Delivery`: the same in every attempt.
    pub guid: String,
    /// `X-GitHub-Event`.
    pub event: Cow<'static, str>,
    /// The payload's action.
    pub action: Option<&'static str>,
    /// Whom it concerns.
    pub installation: Option<u64>,
    /// What it concerns.
    pub repository: Option<u64>,
    /// Deliveries of one key are sent in order.
    pub key: u64,
    /// The bytes that are signed and sent.
    pub body: Arc<Vec<u8>>,
}

/// What came of an attempt.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// GitHub's words: `OK`, `timed out`, `failed to connect to host`, or the status's.
    pub status: String,
    /// The status code; GitHub shows 502 and 504 for attempts without an answer.
    pub code: u16,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// The answer's body, cut.
    pub answer: String,
}

/// One attempt.
#[derive(Clone, Debug)]
pub struct DeliveryRecord {
    /// This attempt's id.
    pub id: u64,
    /// What was sent.
    pub delivery: Delivery,
    /// Somebody asked for this attempt.
    pub redelivery: bool,
    /// When it was sent.
    pub at: DateTime<Utc>,
    /// Where to.
    pub url: String,
    /// What came of it.
    pub outcome: Outcome,
}

impl DeliveryRecord {
    /// The receiver answered 2xx.
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.outcome.code)
    }

    /// `hook-delivery-item`.
    pub fn item(&self) -> Value {
        json!({
            "id": self.id,
            "guid": self.delivery.guid,
            "delivered_at": self.at.to_rfc3339_opts(SecondsFormat::Millis, true),
            "redelivery": self.redelivery,
            "duration": self.outcome.seconds,
            "status": self.outcome.status,
            "status_code": self.outcome.code,
            "event": self.delivery.event,
            "action": self.delivery.action,
            "installation_id": self.delivery.installation,
            "repository_id": self.delivery.repository,
            "throttled_at": null,
        })
    }

    /// `hook-delivery`: with request and answer.
    pub fn full(&self, app_id: u64, hook_id: u64) -> Value {
        let headers: serde_json::Map<String, Value> = super::sender::headers(&self.delivery, app_id, hook_id)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Value::String(value)))
            .collect();
        let mut shape = self.item();
        shape["url"] = json!(self.url);
        shape["request"] = json!({
            "headers": headers,
            "payload": serde_json::from_slice::<Value>(&self.delivery.body).unwrap_or(Value::Null),
        });
        shape["response"] = json!({ "headers": {}, "payload": self.outcome.answer });
        shape
    }
}

impl World {
    /// Keeps an attempt.
    pub fn record(&mut self, record: DeliveryRecord) {
        if self.log.len() >= LOG_LIMIT {
            self.log.pop_front();
        }
        self.log.push_back(record);
    }

    /// An attempt by id.
    pub fn attempt(&self, id: u64) -> Option<&DeliveryRecord> {
        self.log.iter().find(|r| r.id == id)
    }
}
