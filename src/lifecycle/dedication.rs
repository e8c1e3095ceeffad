//! Whom a dedicated host serves: the configuration names installations, the tables know tenants. Resolved again at
//! each pass of the dispatch, since an account may install the App later. Does not: decide what is claimed (`store`).

use crate::domain::ids::{HostId, TenantId};
use crate::points::effect;
use crate::secrets::Lookup;
use crate::store::{Result, hosts, tenants};
use sqlx::PgPool;

/// Whom a host serves.
pub struct Dedication {
    /// Tenants by our own ids.
    tenants: Vec<TenantId>,
    /// Installations by the keyed look-ups of GitHub's ids, and who may look: a gateway, which holds the key.
    installations: Option<(PgPool, Vec<Lookup>)>,
}

impl Dedication {
    /// To these tenants, and these installations.
    #[must_use]
    pub const fn new(tenants: Vec<TenantId>, installations: Option<(PgPool, Vec<Lookup>)>) -> Self {
        Self { tenants, installations }
    }

    /// Writes whom the host serves now, if that changed.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn renew(&self, pool: &PgPool, host: HostId) -> Result<()> {
        let mut all = self.tenants.clone();
        if let Some((gateway, lookups)) = &self.installations {
            all.extend(tenants::ids_of(gateway, lookups).await?);
        }
        all.sort_unstable_by_key(|tenant| tenant.0);
        all.dedup();
        effect!("lifecycle.dedicate", hosts::dedicate(pool, host, &all).await)
    }
}
