//! Looks after the audit trail: tells its heads to the log, removes what is beyond its retention behind a
//! checkpoint, and verifies it.

use crate::points::effect;
use crate::secrets::{AuditKey, KeyRing, SecretsError};
use crate::store::StoreError;
use crate::store::audit::{self, Act, CHECKPOINT, Entry, Head, Trail, UNKEYED};
use chrono::{DateTime, Duration, Utc};
use sqlx::PgPool;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use uuid::Uuid;

/// Rows that are removed in one transaction.
const BATCH: i64 = 1_000;
/// Rows that are checked at once.
const VERIFY_PAGE: i64 = 1_000;

/// Why the trail cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum TrailError {
    /// The database is away.
    #[error("the audit trail's key could not be read")]
    Store(#[from] StoreError),
    /// The key does not open.
    #[error("the audit trail's key cannot be opened")]
    Secrets(#[from] SecretsError),
}

/// The trail of the gateway on the machine of this name. The first gateway makes the trail's key.
///
/// # Errors
/// When the database is away, or the key was wrapped by a master key that is not at hand.
pub async fn open(pool: &PgPool, ring: &KeyRing, name: &str) -> Result<Trail, TrailError> {
    Ok(Trail::of_gateway(name, key(pool, ring).await?))
}

async fn key(pool: &PgPool, ring: &KeyRing) -> Result<AuditKey, TrailError> {
    let (id, wrapped) = match audit::find_key(pool).await? {
        Some(found) => found,
        None => {
            let id = Uuid::new_v4();
            effect!("upkeep.trail_key", audit::insert_key(pool, id, &ring.new_audit_key(id)).await)?;
            // Another gateway may have been faster: its key counts.
            audit::find_key(pool).await?.ok_or_else(|| StoreError::from(sqlx::Error::RowNotFound))?
        }
    };
    Ok(ring.open_audit_key(id, &wrapped)?)
}

/// Keeps the trail.
pub struct Auditor {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// The trail.
    pub trail: Trail,
    /// How long rows are kept.
    pub retention: Duration,
    shipped: Mutex<Vec<Head>>,
}

impl Auditor {
    /// An auditor that has told nobody of any head yet.
    #[must_use]
    pub const fn new(pool: PgPool, trail: Trail, retention: Duration) -> Self {
        Self { pool, trail, retention, shipped: Mutex::new(Vec::new()) }
    }

    /// One round. Answers how many rows were removed.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn pass(&self, now: DateTime<Utc>) -> Result<i64, StoreError> {
        let heads = audit::heads(&self.pool).await?;
        self.ship(&heads);
        let mut removed = 0;
        // Our own last: checkpoints of the others are in it.
        let (own, others): (Vec<Head>, Vec<Head>) =
            heads.into_iter().partition(|head| head.chain == self.trail.chain());
        for head in others.iter().chain(&own) {
            removed += self.prune(&head.chain, now - self.retention).await?;
        }
        Ok(removed)
    }

    /// Whoever keeps the log can show later that nothing was cut off the end.
    fn ship(&self, heads: &[Head]) {
        let mut shipped = self.shipped.lock().unwrap_or_else(PoisonError::into_inner);
        for head in heads.iter().filter(|head| !shipped.contains(head)) {
            tracing::info!(audit.head = %head, "the audit trail goes on");
        }
        *shipped = heads.to_vec();
    }

    /// The checkpoint and the removal are one transaction: a chain always begins where its last checkpoint says.
    async fn prune(&self, chain: &str, before: DateTime<Utc>) -> Result<i64, StoreError> {
        let Some((up_to, rows)) = audit::removable(&self.pool, chain, before, BATCH).await? else { return Ok(0) };
        let detail = up_to.to_string();
        let mut tx = self.pool.begin().await?;
        let removed = audit::remove(&mut *tx, &up_to).await?;
        if removed != rows {
            tracing::error!(audit.head = %up_to, rows, removed, "the database does not remove these rows of the audit trail");
            return Ok(0);
        }
        let act = Act { actor: "gateway", action: CHECKPOINT, subject: &up_to.chain, detail: Some(&detail) };
        self.trail.append_within(&mut tx, &act).await?;
        effect!("upkeep.trail_prune", tx.commit().await)?;
        Ok(removed)
    }

    /// Reads the whole trail, and compares it with heads that were kept elsewhere.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn verify(&self, kept: &[Head]) -> Result<Verdict, StoreError> {
        let ends = audit::heads(&self.pool).await?;
        let mut check =
            Check { trail: &self.trail, kept, chains: BTreeMap::new(), notes: Notes::default(), fault: None };
        for end in &ends {
            check.chains.insert(end.chain.clone(), Span::default());
            let mut position = 0;
            loop {
                let rows = audit::of_chain(&self.pool, &end.chain, position, VERIFY_PAGE).await?;
                let Some(last) = rows.last() else { break };
                position = last.position;
                rows.iter().for_each(|row| check.row(row));
                // What was written since is for the next time.
                if position >= end.position {
                    break;
                }
            }
        }
        Ok(check.finish())
    }
}

/// What the trail proves to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// How many rows were looked at.
    pub entries: u64,
    /// The end of each chain.
    pub heads: Vec<Head>,
    /// The first thing that is wrong.
    pub fault: Option<TrailFault>,
    /// Kept heads that nothing is left of to compare with: they are beyond the retention.
    pub too_old: Vec<Head>,
}

/// What is wrong with a trail, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrailFault {
    /// In which chain.
    pub chain: String,
    /// At which row of it.
    pub position: i64,
    /// What.
    pub what: &'static str,
}

/// A chain, as far as it was read.
#[derive(Default)]
struct Span {
    first: Option<Head>,
    last: Option<(Head, i64)>,
    /// The kept heads that were met.
    met: Vec<Head>,
}

/// What intact rows say of chains.
#[derive(Default)]
struct Notes {
    /// Intact rows that were made with the key.
    keyed: u64,
    /// Where the last checkpoint of each chain says that it begins.
    begins: BTreeMap<String, Head>,
    /// The head of the rows before there was a key.
    unkeyed: Option<Head>,
}

struct Check<'a> {
    trail: &'a Trail,
    kept: &'a [Head],
    chains: BTreeMap<String, Span>,
    notes: Notes,
    fault: Option<TrailFault>,
}

impl Check<'_> {
    fn row(&mut self, row: &Entry) {
        let span = self.chains.entry(row.chain.clone()).or_default();
        let wrong = match &span.last {
            _ if !self.trail.is_intact(row) => Some("is not what was written"),
            Some((last, _)) if row.position != last.position + 1 => Some("is not the next one: rows are missing"),
            Some((last, _)) if row.previous != last.hash => Some("does not follow from the row before it"),
            Some((_, seq)) if row.seq <= *seq => Some("is not where it was written"),
            Some(_) | None => None,
        };
        let head = row.head();
        if let Some(kept) = self.kept.iter().find(|kept| kept.chain == row.chain && kept.position == row.position) {
            span.met.push(kept.clone());
            if *kept != head {
                self.blame(row, "is not the one whose head was kept");
            }
        }
        if let Some(wrong) = wrong {
            self.blame(row, wrong);
        } else {
            self.note(row);
        }
        let span = self.chains.entry(row.chain.clone()).or_default();
        let before = Head { chain: row.chain.clone(), position: row.position - 1, hash: row.previous.clone() };
        span.first.get_or_insert(before);
        span.last = Some((head, row.seq));
    }

    fn note(&mut self, row: &Entry) {
        // Without a key anybody writes a checkpoint.
        if row.chain == UNKEYED {
            return;
        }
        self.notes.keyed += 1;
        if let Some(head) = row.removed_up_to() {
            let begins = self.notes.begins.entry(head.chain.clone()).or_insert_with(|| head.clone());
            if begins.position < head.position {
                *begins = head;
            }
        }
        if let Some(head) = row.unkeyed_head() {
            self.notes.unkeyed = Some(head);
        }
    }

    fn blame(&mut self, row: &Entry, what: &'static str) {
        self.blame_at(&row.chain, row.position, what);
    }

    fn blame_at(&mut self, chain: &str, position: i64, what: &'static str) {
        self.fault.get_or_insert(TrailFault { chain: chain.to_owned(), position, what });
    }

    fn finish(mut self) -> Verdict {
        let spans = std::mem::take(&mut self.chains);
        let entries = spans.values().map(Span::length).sum();
        for (chain, span) in &spans {
            let begins = self.notes.begins.get(chain);
            let is_whole = match (&span.first, begins) {
                (Some(first), Some(begins)) => first == begins,
                (Some(first), None) => first.position == 0 && first.hash.is_empty(),
                (None, _) => true,
            };
            if !is_whole {
                let position = span.first.as_ref().map_or(1, |first| first.position + 1);
                self.blame_at(chain, position, "is not the chain's first: rows before it are missing");
            }
        }
        self.judge_unkeyed(spans.get(UNKEYED));
        let too_old = self.compare_kept(&spans);
        let heads = spans.into_values().filter_map(|span| span.last.map(|(head, _)| head)).collect();
        Verdict { entries, heads, fault: self.fault, too_old }
    }

    /// The rows of before there was a key are what a keyed row says of them.
    fn judge_unkeyed(&mut self, span: Option<&Span>) {
        let last = span.and_then(|span| span.last.as_ref()).map(|(last, _)| last.clone());
        match (self.notes.unkeyed.take(), last) {
            (None, None) => {}
            (Some(said), last) => {
                let is_removed = last.is_none() && self.notes.begins.get(UNKEYED) == Some(&said);
                if last.as_ref() != Some(&said) && !is_removed {
                    self.blame_at(UNKEYED, said.position, "is not the last one before the trail had a key");
                }
            }
            // Until the first keyed row is written nobody can vouch for them.
            (None, Some(_)) if self.notes.keyed == 0 => {}
            (None, Some(last)) => self.blame_at(UNKEYED, last.position, "is vouched for by no keyed row"),
        }
    }

    /// Of the kept heads those that were not met: beyond the retention, or cut off.
    fn compare_kept(&mut self, spans: &BTreeMap<String, Span>) -> Vec<Head> {
        let mut too_old = Vec::new();
        for kept in self.kept {
            let is_met = spans.get(&kept.chain).is_some_and(|span| span.met.contains(kept));
            let begins = self.notes.begins.get(&kept.chain);
            match begins {
                _ if is_met => {}
                Some(begins) if kept.position < begins.position => too_old.push(kept.clone()),
                Some(begins) if begins == kept => {}
                Some(_) | None => {
                    let (chain, position) = (kept.chain.clone(), kept.position);
                    self.blame_at(
                        &chain,
                        position,
                        "was there when its head was kept, and is not: rows were cut off the end",
                    );
                }
            }
        }
        too_old
    }
}

impl Span {
    fn length(&self) -> u64 {
        let (Some(first), Some((last, _))) = (&self.first, &self.last) else { return 0 };
        u64::try_from(last.position - first.position).unwrap_or(0)
    }
}
