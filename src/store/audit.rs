//! The audit trail: who did what from where. Append-only.
//!
//! Each writer has a chain. A row carries its number in the chain, the MAC of the row before, and a MAC
//! over all of it under a key that the database holds only wrapped: a row that was changed, added,
//! moved or taken out shows, and so does a chain that was computed anew. What was cut off the end shows
//! to whoever kept a head. Rows of flyci before 0.2 are the chain `""`, hashed without a key; the first
//! row of a keyed chain names its head.

use super::Result;
use crate::secrets::AuditKey;
use crate::secrets::vouch::Warrant;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgExecutor, PgPool};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use uuid::Uuid;

/// Every writer of a chain takes this advisory lock with the chain's, so that it has one order.
const CHAIN_LOCK: i32 = 0x6175_6469;
/// The chain of the rows that were hashed without a key.
pub const UNKEYED: &str = "";
/// The first act of a chain: its detail is the head of the rows before there was a key.
const BEGIN: &str = "audit.begin";
/// Older rows were removed up to the head that is its detail.
pub const CHECKPOINT: &str = "audit.checkpoint";

/// One act.
pub struct Act<'a> {
    /// Who: `operator:uid`, `gateway`, `host:NAME`.
    pub actor: &'a str,
    /// What: a word of the code, like `tenant.approve`.
    pub action: &'a str,
    /// To what: an id of ours.
    pub subject: &'a str,
    /// What else there is to say; never a name of a person, an account or a repository.
    pub detail: Option<&'a str>,
}

/// The end of a chain, or of a part of it: `gateway:mini-1@12:5f…`. Whoever kept one sees later that
/// nothing before it was cut off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// Which chain.
    pub chain: String,
    /// The row's number in it.
    pub position: i64,
    /// The row's MAC.
    pub hash: Vec<u8>,
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.chain, self.position, hex::encode(&self.hash))
    }
}

impl FromStr for Head {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let parse = || {
            let (chain, rest) = text.rsplit_once('@')?;
            let (position, hash) = rest.split_once(':')?;
            let position = position.parse().ok().filter(|position| *position > 0)?;
            Some(Self { chain: chain.to_owned(), position, hash: hex::decode(hash).ok()? })
        };
        parse().ok_or("a head is written as `flyci audit head` shows it: CHAIN@NUMBER:HASH")
    }
}

/// One writer's hold on the trail: the gateway's of one machine.
#[derive(Clone, Debug)]
pub struct Trail {
    chain: Arc<str>,
    key: Arc<AuditKey>,
}

impl Trail {
    /// The trail of the gateway on the machine of this name.
    #[must_use]
    pub fn of_gateway(name: &str, key: AuditKey) -> Self {
        Self { chain: format!("gateway:{name}").into(), key: Arc::new(key) }
    }

    /// What the gateways of the fleet vouch for hosts by: it comes from the trail's key, which they share.
    #[must_use]
    pub fn warrant(&self) -> Warrant {
        Warrant::of(&self.key)
    }

    /// The chain that this writes.
    #[must_use]
    pub fn chain(&self) -> &str {
        &self.chain
    }

    /// Appends an act to the chain.
    pub async fn append(&self, pool: &PgPool, act: &Act<'_>) -> Result<Head> {
        let mut tx = pool.begin().await?;
        let head = self.append_within(&mut tx, act).await?;
        tx.commit().await?;
        Ok(head)
    }

    /// Appends an act to the chain in the transaction that does it: there is neither without the other.
    /// Call it last, since other writers of the chain wait until the transaction ends.
    pub async fn append_within(&self, tx: &mut PgConnection, act: &Act<'_>) -> Result<Head> {
        sqlx::query!("SELECT pg_advisory_xact_lock($1, hashtext($2))", CHAIN_LOCK, &*self.chain)
            .execute(&mut *tx)
            .await?;
        let last = match last_of(&mut *tx, &self.chain).await? {
            Some(head) => head,
            None => self.begin(tx).await?,
        };
        self.insert(tx, last, act).await
    }

    /// The first row: it names what was written before there was a key.
    async fn begin(&self, tx: &mut PgConnection) -> Result<Head> {
        let unkeyed = last_of(&mut *tx, UNKEYED).await?.map(|head| head.to_string());
        let act = Act { actor: "gateway", action: BEGIN, subject: &self.chain, detail: unkeyed.as_deref() };
        let nothing = Head { chain: self.chain.to_string(), position: 0, hash: Vec::new() };
        self.insert(tx, nothing, &act).await
    }

    async fn insert(&self, tx: &mut PgConnection, last: Head, act: &Act<'_>) -> Result<Head> {
        // Microseconds are what the database keeps.
        let at = DateTime::from_timestamp_micros(Utc::now().timestamp_micros()).unwrap_or_default();
        let mut entry = Entry {
            seq: 0,
            chain: last.chain,
            position: last.position + 1,
            at,
            actor: act.actor.to_owned(),
            action: act.action.to_owned(),
            subject: act.subject.to_owned(),
            detail: act.detail.map(str::to_owned),
            previous: last.hash,
            hash: Vec::new(),
        };
        entry.hash = self.key.mac(&parts(&entry, &numbers(&entry))).to_vec();
        sqlx::query!(
            "INSERT INTO audit (chain, position, at, actor, action, subject, detail, previous, hash)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            entry.chain,
            entry.position,
            at,
            act.actor,
            act.action,
            act.subject,
            act.detail,
            entry.previous,
            entry.hash
        )
        .execute(tx)
        .await?;
        Ok(entry.head())
    }

    /// True when the row says what it said when it was written.
    #[must_use]
    pub fn is_intact(&self, entry: &Entry) -> bool {
        if entry.chain == UNKEYED {
            return unkeyed_hash(entry).as_slice() == entry.hash;
        }
        self.key.verify(&parts(entry, &numbers(entry)), &entry.hash)
    }
}

/// One row of the trail.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its number among all rows.
    pub seq: i64,
    /// Whose chain it is in.
    pub chain: String,
    /// Its number in that chain, from 1.
    pub position: i64,
    /// When.
    pub at: DateTime<Utc>,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// To what.
    pub subject: String,
    /// What else there is to say.
    pub detail: Option<String>,
    /// The MAC of the row before.
    pub previous: Vec<u8>,
    /// The MAC of this row.
    pub hash: Vec<u8>,
}

impl Entry {
    /// The chain up to this row.
    #[must_use]
    pub fn head(&self) -> Head {
        Head { chain: self.chain.clone(), position: self.position, hash: self.hash.clone() }
    }

    /// Up to where rows were removed, if this is a checkpoint.
    #[must_use]
    pub fn removed_up_to(&self) -> Option<Head> {
        (self.action == CHECKPOINT).then(|| self.detail.as_deref()?.parse().ok()).flatten()
    }

    /// The head of the rows before there was a key, if this row begins a chain and there were any.
    #[must_use]
    pub fn unkeyed_head(&self) -> Option<Head> {
        (self.action == BEGIN && self.position == 1).then(|| self.detail.as_deref()?.parse().ok()).flatten()
    }
}

/// The numbers of a row as they are in its MAC.
fn numbers(entry: &Entry) -> [[u8; 8]; 2] {
    [entry.position.to_be_bytes(), entry.at.timestamp_micros().to_be_bytes()]
}

/// All that a row's MAC is over. That there is no detail is another thing than an empty one.
fn parts<'a>(entry: &'a Entry, [position, at]: &'a [[u8; 8]; 2]) -> [&'a [u8]; 9] {
    let detail: (&[u8], &[u8]) = match &entry.detail {
        None => (b"-", b""),
        Some(detail) => (b"+", detail.as_bytes()),
    };
    [
        entry.chain.as_bytes(),
        position,
        &entry.previous,
        at,
        entry.actor.as_bytes(),
        entry.action.as_bytes(),
        entry.subject.as_bytes(),
        detail.0,
        detail.1,
    ]
}

/// The hash of a row of before there was a key.
fn unkeyed_hash(entry: &Entry) -> [u8; 32] {
    let mut hash = Sha256::new();
    let at = entry.at.timestamp_micros().to_be_bytes();
    let detail = entry.detail.as_deref().unwrap_or_default().as_bytes();
    let (actor, action, subject) = (entry.actor.as_bytes(), entry.action.as_bytes(), entry.subject.as_bytes());
    for part in [&entry.previous, at.as_slice(), actor, action, subject, detail] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

async fn last_of(db: impl PgExecutor<'_>, chain: &str) -> Result<Option<Head>> {
    Ok(sqlx::query_as!(
        Head,
        "SELECT chain, position, hash FROM audit WHERE chain = $1 ORDER BY position DESC LIMIT 1",
        chain
    )
    .fetch_optional(db)
    .await?)
}

/// The end of every chain.
pub async fn heads(db: impl PgExecutor<'_>) -> Result<Vec<Head>> {
    Ok(sqlx::query_as!(
        Head,
        "SELECT DISTINCT ON (chain) chain, position, hash FROM audit ORDER BY chain, position DESC"
    )
    .fetch_all(db)
    .await?)
}

/// The rows after `seq`, in the order in which they were written.
pub async fn after(db: impl PgExecutor<'_>, seq: i64, limit: i64) -> Result<Vec<Entry>> {
    Ok(sqlx::query_as!(
        Entry,
        "SELECT seq, chain, position, at, actor, action, subject, detail, previous, hash
         FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2",
        seq,
        limit
    )
    .fetch_all(db)
    .await?)
}

/// The rows of a chain after `position`.
pub async fn of_chain(db: impl PgExecutor<'_>, chain: &str, position: i64, limit: i64) -> Result<Vec<Entry>> {
    Ok(sqlx::query_as!(
        Entry,
        "SELECT seq, chain, position, at, actor, action, subject, detail, previous, hash
         FROM audit WHERE chain = $1 AND position > $2 ORDER BY position LIMIT $3",
        chain,
        position,
        limit
    )
    .fetch_all(db)
    .await?)
}

/// The last of the first `limit` rows of a chain that are all from before `before`, and how many these are.
/// A chain that may go on keeps its last row.
pub async fn removable(
    db: impl PgExecutor<'_>,
    chain: &str,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<Option<(Head, i64)>> {
    let row = sqlx::query!(
        r#"SELECT chain, position, hash, number AS "number!" FROM (
            SELECT chain, position, hash, bool_and(at < $2) OVER so_far AS old, count(*) OVER so_far AS number
            FROM (SELECT * FROM audit WHERE chain = $1 ORDER BY position LIMIT $3) first
            WINDOW so_far AS (ORDER BY position)) of_age
         WHERE old AND (chain = '' OR position < (SELECT max(position) FROM audit WHERE chain = $1))
         ORDER BY position DESC LIMIT 1"#,
        chain,
        before,
        limit
    )
    .fetch_optional(db)
    .await?;
    Ok(row.map(|row| (Head { chain: row.chain, position: row.position, hash: row.hash }, row.number)))
}

/// Removes the rows of a chain up to this head, by the one function that may. Answers how many.
pub async fn remove(db: impl PgExecutor<'_>, up_to: &Head) -> Result<i64> {
    Ok(sqlx::query_scalar!(r#"SELECT audit_prune($1, $2) AS "removed!""#, up_to.chain, up_to.position)
        .fetch_one(db)
        .await?)
}

/// The trail's key as stored: its row's id, and the wrapped key.
pub async fn find_key(db: impl PgExecutor<'_>) -> Result<Option<(Uuid, Vec<u8>)>> {
    let row = sqlx::query!("SELECT id, wrapped FROM audit_key").fetch_optional(db).await?;
    Ok(row.map(|row| (row.id, row.wrapped)))
}

/// Stores the trail's key, unless another gateway was faster.
pub async fn insert_key(db: impl PgExecutor<'_>, id: Uuid, wrapped: &[u8]) -> Result<()> {
    sqlx::query!("INSERT INTO audit_key (id, wrapped) VALUES ($1, $2) ON CONFLICT DO NOTHING", id, wrapped)
        .execute(db)
        .await?;
    Ok(())
}

/// Writes the trail's key as another master key wraps it, unless somebody did.
pub async fn rewrap_key(db: impl PgExecutor<'_>, id: Uuid, from: &[u8], to: &[u8]) -> Result<()> {
    sqlx::query!("UPDATE audit_key SET wrapped = $3 WHERE id = $1 AND wrapped = $2", id, from, to).execute(db).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_as_it_is_shown() {
        let head = Head { chain: "gateway:mini@home".into(), position: 12, hash: vec![0xab; 32] };
        assert_eq!(head.to_string().parse(), Ok(head));
        for wrong in ["", "12:ab", "gateway:x@0:ab", "gateway:x@-1:ab", "gateway:x@1:xyz"] {
            assert!(wrong.parse::<Head>().is_err(), "{wrong}");
        }
    }
}
