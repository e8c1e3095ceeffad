//! `/keys`: the master keys, and their rotation.

use super::AdminState;
use super::guard::Operator;
use crate::api;
use crate::secrets::SecretsError;
use crate::store::keys::{self, Gateway, MasterKeyRow};
use crate::upkeep::keys::{KeysError, Rotation};
use crate::web::failure::Failure;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

/// `GET /keys`
pub async fn list(State(state): State<AdminState>) -> Result<Json<api::Keys>, Failure> {
    let rotation = state.keeper.rotation().await.map_err(failure)?;
    let gateways = keys::gateways(&state.pool).await?;
    let current = state.ring.master_key_id();
    let at_hand = state.ring.master_key_ids();
    let show = |key: MasterKeyRow| {
        let has_it = |gateway: &&Gateway| gateway.keys.contains(&key.id);
        let holders: Vec<String> = gateways.iter().filter(has_it).map(|gateway| gateway.name.clone()).collect();
        let word = match key.destroyed_at {
            _ if key.id == current => "current",
            _ if at_hand.first() == Some(&key.id) => "next",
            None if holders.is_empty() && key.is_needed() => "missing",
            None => "old",
            Some(_) => "destroyed",
        };
        api::MasterKey {
            id: key.id.to_string(),
            state: word.to_owned(),
            since: key.first_at,
            destroyed_at: key.destroyed_at,
            tenants: u64::try_from(key.tenants).unwrap_or(0),
            audit: key.audit,
            erasures: u64::try_from(key.erasures).unwrap_or(0),
            gateways: holders,
        }
    };
    let (word, waits_for) = match rotation {
        Rotation::None => ("none", Vec::new()),
        Rotation::WaitsFor(gateways) => ("waits_for_gateways", gateways),
        Rotation::Rewrapping => ("rewrapping", Vec::new()),
        Rotation::Removable => ("removable", Vec::new()),
    };
    Ok(Json(api::Keys {
        source: state.ring.source().to_string(),
        rotation: word.to_owned(),
        waits_for,
        keys: keys::master_keys(&state.pool).await?.into_iter().map(show).collect(),
    }))
}

/// `POST /keys/rotate`
pub async fn rotate(State(state): State<AdminState>, operator: Operator) -> Result<Json<api::Done>, Failure> {
    let old = state.ring.master_key_id();
    let rotation = state.keeper.rotate(&operator.to_string()).await.map_err(failure)?;
    let new = state.ring.master_key_ids().first().copied().unwrap_or(old);
    let source = state.ring.source();
    let message = match rotation {
        Rotation::None => format!(
            "master key {new} wraps everything, and {old} is destroyed here. Keep a copy of {source} elsewhere now: the \
             copy of before opens nothing that is stored from now on"
        ),
        Rotation::WaitsFor(gateways) => format!(
            "master key {new} is made, and waits until every gateway has it: bring {source} to {}",
            gateways.join(", ")
        ),
        Rotation::Rewrapping => {
            format!(
                "master key {new} is made; everything is wrapped by it now, and {old} destroyed when that is done: `flyci keys list`"
            )
        }
        Rotation::Removable => {
            format!("master key {new} wraps everything: take the line of {old} out of {source}, and start flyci again")
        }
    };
    Ok(Json(api::Done { message, changed: u64::from(new != old) }))
}

fn failure(error: KeysError) -> Failure {
    match error {
        KeysError::Store(error) => error.into(),
        KeysError::Secrets(
            error @ (SecretsError::NotOurs(_) | SecretsError::TooManyMasterKeys | SecretsError::StillNeeded { .. }),
        ) => Failure::new(StatusCode::CONFLICT, "the master key cannot be rotated").detail(error.to_string()),
        KeysError::Secrets(error) => {
            tracing::error!(error = %crate::errors::chain(&error), "the master key cannot be rotated");
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the master key cannot be rotated")
                .detail("the daemon's log says why")
        }
    }
}
