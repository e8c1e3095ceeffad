//! GitHub's log of the App's deliveries, read from the newest down to where it was read before.
//!
//! The place is kept in the database, so that any gateway goes on where another ended. An attempt enters
//! the log some seconds after its time, so each reading goes back a little beyond the place. A reading
//! that is longer than one pass goes on at a cursor, while later passes still begin with what is new.
//! The place moves once everything was handled: what was not is read again.
//!
//! Does not: decide what an attempt calls for.

use crate::github::{Deliveries, Delivery, GitHub, GitHubError};
use crate::points::effect;
use crate::store::StoreError;
use crate::store::delivery_log::{self, Reading};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::PgPool;
use std::future::Future;

/// How long GitHub keeps deliveries:
/// <https://docs.github.com/webhooks/testing-and-troubleshooting-webhooks/redelivering-webhooks>.
pub(super) const KEPT: TimeDelta = TimeDelta::days(3);

/// What is done with the attempts of a page.
pub(super) trait Handler: Sync {
    /// Why it could not be done.
    type Error: From<StoreError> + From<GitHubError> + Send;

    /// Handles the attempts of one page, the newest first. They may have been handled before.
    fn handle(&self, page: Vec<Delivery>) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// How much one pass reads.
pub(super) struct Bounds {
    /// Pages of 100 attempts at most.
    pub pages: u32,
    /// How far beyond the place it reads.
    pub overlap: TimeDelta,
}

/// What one pass read.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Read {
    /// Pages that were asked for.
    pub pages: u32,
    /// There is more than one pass reads.
    pub partial: bool,
}

struct Walk<'a, H> {
    github: &'a GitHub,
    handler: &'a H,
    left: u32,
    good_at: Option<DateTime<Utc>>,
}

/// Reads what is new in the log.
pub(super) async fn read<H: Handler>(
    pool: &PgPool,
    github: &GitHub,
    handler: &H,
    bounds: &Bounds,
    now: DateTime<Utc>,
) -> Result<Read, H::Error> {
    let mut reading = delivery_log::reading(pool).await?;
    let mut walk = Walk { github, handler, left: bounds.pages, good_at: reading.good_at };
    walk.newest(&mut reading, bounds.overlap, now).await?;
    walk.backlog(&mut reading).await?;
    reading.good_at = walk.good_at;
    effect!("upkeep.log_read", delivery_log::set_reading(pool, &reading).await)?;
    Ok(Read { pages: bounds.pages - walk.left, partial: reading.cursor.is_some() })
}

impl<H: Handler> Walk<'_, H> {
    /// From the newest attempt to the place, or as far as the pass goes.
    async fn newest(&mut self, reading: &mut Reading, overlap: TimeDelta, now: DateTime<Utc>) -> Result<(), H::Error> {
        let page = self.page(None, reading.etag.as_deref()).await?;
        if page.unchanged {
            return Ok(());
        }
        let oldest = now - KEPT;
        let floor = reading.read_to.map_or(oldest, |at| (at - overlap).max(oldest));
        let (top, etag) = (page.deliveries.first().map(|newest| newest.delivered_at), page.etag.clone());
        if let Some(cursor) = self.descend(page, floor).await? {
            // An older gap, if there is one, lies below: one reading closes both.
            reading.floor = Some(reading.floor.map_or(floor, |below| below.min(floor)));
            reading.cursor = Some(cursor);
        }
        reading.read_to = reading.read_to.max(top);
        reading.etag = etag;
        Ok(())
    }

    /// What an earlier pass left.
    async fn backlog(&mut self, reading: &mut Reading) -> Result<(), H::Error> {
        let (Some(cursor), Some(floor)) = (reading.cursor.clone(), reading.floor) else { return Ok(()) };
        if self.left == 0 {
            return Ok(());
        }
        match self.page(Some(&cursor), None).await {
            Ok(page) => {
                reading.cursor = self.descend(page, floor).await?;
                if reading.cursor.is_none() {
                    reading.floor = None;
                }
                Ok(())
            }
            Err(GitHubError::Invalid { .. } | GitHubError::NotFound { .. }) => {
                tracing::warn!("GitHub does not know the place in its log of deliveries any more: it is read again");
                *reading = Reading { read_to: Some(floor), ..Reading::default() };
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Handles page after page down to `floor`. Answers where to go on when the pass ends before.
    async fn descend(&mut self, mut page: Deliveries, floor: DateTime<Utc>) -> Result<Option<String>, H::Error> {
        loop {
            let reached = page.deliveries.last().is_none_or(|oldest| oldest.delivered_at <= floor);
            let good = page.deliveries.iter().filter(|one| one.succeeded()).map(|one| one.delivered_at).max();
            self.handler.handle(page.deliveries).await?;
            self.good_at = self.good_at.max(good);
            let Some(next) = page.next.filter(|_| !reached) else { return Ok(None) };
            if self.left == 0 {
                return Ok(Some(next));
            }
            page = self.page(Some(&next), None).await?;
        }
    }

    async fn page(&mut self, cursor: Option<&str>, etag: Option<&str>) -> Result<Deliveries, GitHubError> {
        self.left = self.left.saturating_sub(1);
        self.github.deliveries(cursor, etag).await
    }
}
