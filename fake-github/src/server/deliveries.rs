//! The App's webhook: its configuration, its delivery log, and sending again.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Answer, accepted, ok};
use super::caller::Caller;
use super::paging::{Page, put_link};
use crate::hub::Hub;
use crate::webhooks::log::DeliveryRecord;
use crate::webhooks::sender::Redelivery;
use crate::world::tokens::Refused;

/// `GET /app/hook/config`
pub async fn config(State(hub): State<Arc<Hub>>, Extension(caller): Extension<Caller>) -> Answer {
    caller.app()?;
    let url = crate::webhooks::sender::url(&hub.wiring.target).unwrap_or_default();
    Ok(ok(json!({ "content_type": "json", "insecure_ssl": "0", "secret": "********", "url": url })))
}

/// Parameters of the list.
#[derive(Deserialize)]
pub struct Listing {
    per_page: Option<usize>,
    cursor: Option<String>,
    status: Option<String>,
}

/// `GET /app/hook/deliveries`: newest first, pages by cursor.
pub async fn list(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Query(listing): Query<Listing>,
) -> Answer {
    caller.app()?;
    let size = Page::new(None, listing.per_page).size();
    let before = match &listing.cursor {
        None => u64::MAX,
        Some(cursor) => cursor
            .strip_prefix("v1_")
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| Refused::new(422, "The cursor is not one that this endpoint gave."))?,
    };
    let (shown, more, url) = hub.read(|w| {
        let fits = |r: &&DeliveryRecord| match listing.status.as_deref() {
            Some("success") => r.ok(),
            Some("failure") => !r.ok(),
            _ => true,
        };
        let mut older = w.log.iter().rev().filter(|r| r.id < before).filter(fits);
        let shown: Vec<(u64, Value)> = older.by_ref().take(size).map(|r| (r.id, r.item())).collect();
        (shown, older.next().is_some(), format!("{}/app/hook/deliveries", w.api_url))
    });
    let last = shown.last().map(|(id, _)| *id);
    let mut response = ok(shown.into_iter().map(|(_, item)| item).collect());
    if let Some(last) = last.filter(|_| more) {
        let status = listing.status.map(|s| format!("&status={s}")).unwrap_or_default();
        put_link(&mut response, &[format!("<{url}?per_page={size}&cursor=v1_{last}{status}>; rel=\"next\"")]);
    }
    Ok(response)
}

/// `GET /app/hook/deliveries/{delivery_id}`
pub async fn one(State(hub): State<Arc<Hub>>, Extension(caller): Extension<Caller>, Path(id): Path<u64>) -> Answer {
    caller.app()?;
    hub.read(|w| w.attempt(id).map(|r| r.full(w.app.id, w.app.hook_id))).map(ok).ok_or_else(Refused::not_found)
}

/// `POST /app/hook/deliveries/{delivery_id}/attempts`: the same GUID again.
pub async fn redeliver(
    State(hub): State<Arc<Hub>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<u64>,
) -> Answer {
    caller.app()?;
    let delivery = hub.read(|w| w.attempt(id).map(|r| r.delivery.clone())).ok_or_else(Refused::not_found)?;
    // Fails only when the sender has stopped with the server.
    hub.wiring.redeliveries.send(Redelivery { delivery }).ok();
    Ok(accepted())
}
