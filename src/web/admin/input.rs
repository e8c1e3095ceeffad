//! What requests bring: queries, bodies, pages, times. Whatever is wrong with it is said in words.

use crate::api::Page;
use crate::domain::units::Span;
use crate::store::views::Cursor;
use crate::web::failure::Failure;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// Rows of a page, if not said.
const PAGE: u32 = 100;
/// The most rows of a page.
const MAX_PAGE: u32 = 500;
/// The longest reason that an operator may give, in characters.
const MAX_REASON: usize = 200;

/// A request's query.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let axum::extract::Query(value) = axum::extract::Query::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Failure::bad_request(format!("the query: {}", rejection.body_text())))?;
        Ok(Self(value))
    }
}

/// A request's body. An empty one is `{}`.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| Failure::new(rejection.status(), "the body could not be read"))?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(bytes).map(Self).map_err(|error| Failure::bad_request(format!("the body: {error}")))
    }
}

/// How many rows a page is to have.
pub fn page_size(limit: Option<u32>) -> Result<u32, Failure> {
    match limit {
        None => Ok(PAGE),
        Some(limit @ 1..=MAX_PAGE) => Ok(limit),
        Some(limit) => Err(Failure::bad_request(format!("limit is {limit}; 1 to {MAX_PAGE} rows make a page"))),
    }
}

/// Where the page before ended.
pub fn cursor(after: Option<&str>) -> Result<Option<Cursor>, Failure> {
    let Some(text) = after else { return Ok(None) };
    let parse = || {
        let (at, id) = text.split_once('.')?;
        let at = DateTime::from_timestamp_micros(at.parse().ok()?)?;
        Some(Cursor { at, id: Uuid::try_parse(id).ok()? })
    };
    parse().map(Some).ok_or_else(|| Failure::bad_request("after is not the `next` of a page"))
}

/// A page of `rows`, of which one more than `limit` was asked for. `end` says where a row is.
pub fn page<R, T>(
    mut rows: Vec<R>,
    limit: u32,
    end: impl Fn(&R) -> (DateTime<Utc>, Uuid),
    show: impl FnMut(R) -> T,
) -> Page<T> {
    let limit = usize::try_from(limit).expect("a page is small");
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|last| {
        let (at, id) = end(last);
        format!("{}.{id}", at.timestamp_micros())
    });
    Page { items: rows.into_iter().map(show).collect(), next }
}

/// A list that is whole.
pub const fn whole<T>(items: Vec<T>) -> Page<T> {
    Page { items, next: None }
}

/// A time: of RFC 3339, or a length of time before now.
pub fn since(text: Option<&str>) -> Result<Option<DateTime<Utc>>, Failure> {
    let Some(text) = text else { return Ok(None) };
    if let Ok(time) = text.parse::<DateTime<Utc>>() {
        return Ok(Some(time));
    }
    let span = text.parse::<Span>().ok().and_then(|span| chrono::Duration::from_std(span.0).ok());
    span.and_then(|span| Utc::now().checked_sub_signed(span)).map(Some).ok_or_else(|| {
        Failure::bad_request(format!(
            "since is `{text}`; write a length of time like `1h`, or a time like `2026-11-25T08:00:00Z`"
        ))
    })
}

/// What an operator gives as reason: one line, not too long.
pub fn reason(text: &str) -> Result<&str, Failure> {
    let text = text.trim();
    let fits = !text.is_empty() && text.chars().count() <= MAX_REASON && !text.chars().any(char::is_control);
    fits.then_some(text)
        .ok_or_else(|| Failure::bad_request(format!("reason must be one line of 1 to {MAX_REASON} characters")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_where_the_next_begins() {
        let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("a time");
        let id = Uuid::new_v4();
        let first = page(vec![1, 2, 3], 2, |_| (at, id), |row| row);
        assert_eq!(first.items, [1, 2]);
        let next = cursor(first.next.as_deref()).expect("it is a `next`").expect("there is more");
        assert_eq!((next.at, next.id), (at, id));
        assert_eq!(page(vec![1, 2], 2, |_| (at, id), |row| row).next, None);
        for wrong in ["", "1", "x.y", "1.2"] {
            assert!(cursor(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_points_or_lengths() {
        let hour = since(Some("1h")).expect("a length").expect("a time");
        assert!((Utc::now() - hour - chrono::Duration::hours(1)).num_seconds().abs() < 5);
        assert!(since(Some("2026-11-25T08:00:00Z")).expect("a time").is_some());
        for wrong in ["yesterday", "999999999999y", ""] {
            assert!(since(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
