//! GitHub's limits are an installation's, whichever gateway meets them: what one was told, all obey.
//!
//! Definition: each hold that GitHub's answers put on an installation's calls, or on the App's own, has a row
//! until it is over. A pass writes what this gateway was told, and obeys what others were.
//!
//! Does not: divide what is left of a budget among gateways, or the points by the minute, which GitHub tells
//! nobody of: each gateway keeps to those alone, and a hold follows when several exceed them together.

use crate::github::{GitHub, HeldBudget, Hold};
use crate::place;
use crate::points::effect;
use crate::secrets::KeyRing;
use crate::store::github_holds::{self, Held};
use crate::store::{StoreError, tenants};
use sqlx::PgPool;
use std::sync::Arc;

/// Holds that one pass obeys.
const BATCH: i64 = 500;

/// Shares holds.
pub struct Holds {
    /// Acts as the gateway.
    pub pool: PgPool,
    /// Finds installations.
    pub ring: Arc<KeyRing>,
    /// GitHub.
    pub github: GitHub,
}

/// What one pass did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HoldsReport {
    /// Holds that this gateway told of.
    pub told: u32,
    /// Holds that it obeys.
    pub obeyed: u32,
}

impl Holds {
    /// One round.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn pass(&self) -> Result<HoldsReport, StoreError> {
        let mut report = HoldsReport::default();
        for hold in self.github.holds() {
            let lookup = hold.installation.map(|id| self.ring.installation_lookup(id.0));
            let lookup = lookup.as_ref().map_or(&[][..], |lookup| lookup.as_bytes());
            effect!("upkeep.hold_told", github_holds::put(&self.pool, lookup, hold.budget.as_str(), hold.wait).await)?;
            report.told += 1;
        }
        for held in effect!("upkeep.holds_over", github_holds::current(&self.pool, BATCH).await)? {
            report.obeyed += u32::from(self.obey(&held).await?);
        }
        Ok(report)
    }

    async fn obey(&self, held: &Held) -> Result<bool, StoreError> {
        let Some(budget) = HeldBudget::parse(&held.budget) else { return Ok(false) };
        let installation = match held.tenant {
            None if held.installation_lookup.is_empty() => None,
            None => return Ok(false),
            Some(id) => {
                let Some(tenant) = tenants::get(&self.pool, id).await? else { return Ok(false) };
                let opened = self
                    .ring
                    .unwrap(tenant.id, &tenant.wrapped_keys)
                    .and_then(|keys| place::installation(&keys, &tenant));
                let Ok(installation) = opened else { return Ok(false) };
                Some(installation)
            }
        };
        self.github.hold(&Hold { installation, budget, wait: held.wait });
        Ok(true)
    }
}
