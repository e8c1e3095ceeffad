//! Opens what is stored sealed, for the operator's eyes. A value that does not open is shown as null
//! and logged: one damaged row must not hide the others.

use super::AdminState;
use crate::domain::ids::TenantId;
use crate::errors::chain;
use crate::secrets::{Column, KeyRing, Sealed, SecretsError, TenantKeys};
use crate::store::tenants::{self, Tenant};
use crate::store::views::SealedName;
use crate::web::failure::Failure;
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// Opens one tenant's values.
pub struct Names(Option<Arc<TenantKeys>>);

impl Names {
    /// With the keys that are wrapped in the tenant's row.
    pub fn of(ring: &KeyRing, tenant: TenantId, wrapped: &[u8]) -> Self {
        Self(ring.unwrap(tenant, wrapped).map_err(|error| log(tenant, &error)).ok())
    }

    /// One of GitHub's ids, as text.
    pub fn id(&self, column: Column, row: Uuid, value: &Sealed) -> Option<String> {
        self.open(|keys| keys.open_id(column, row, value)).map(|id| id.to_string())
    }

    /// A name.
    pub fn text(&self, column: Column, row: Uuid, value: &Sealed) -> Option<String> {
        self.open(|keys| keys.open_text(column, row, value))
    }

    /// A name with its row.
    pub fn name(&self, column: Column, value: &SealedName) -> Option<String> {
        self.text(column, value.row, &value.name)
    }

    fn open<T>(&self, open: impl FnOnce(&TenantKeys) -> Result<T, SecretsError>) -> Option<T> {
        let keys = self.0.as_ref()?;
        open(keys).map_err(|error| log(keys.tenant(), &error)).ok()
    }
}

fn log(tenant: TenantId, error: &SecretsError) {
    tracing::error!(tenant.id = %tenant, "a stored value cannot be shown: {}", chain(error));
}

/// The logins of all accounts that were not erased.
pub async fn accounts(state: &AdminState) -> Result<HashMap<TenantId, String>, Failure> {
    let all = tenants::all(&state.pool).await?;
    Ok(all.iter().filter_map(|tenant| Some((tenant.id, account(&state.ring, tenant)?))).collect())
}

/// The login of a tenant's account.
pub fn account(ring: &KeyRing, tenant: &Tenant) -> Option<String> {
    Names::of(ring, tenant.id, &tenant.wrapped_keys).text(Column::TenantAccount, tenant.id.0, &tenant.account)
}
