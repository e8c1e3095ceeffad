//! Conditional requests: each 200 to a GET has an ETag, and 304 answers who has it already. GitHub does not count a 304
//! against the hourly budget.

use axum::body::{Body, to_bytes};
use axum::http::header::{ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};

use crate::secret::digest_bytes;

/// Longest body that gets an ETag, in bytes; all of ours are shorter.
const BODY_LIMIT: usize = 64 * 1024 * 1024;

/// What a request says of the copy it has.
pub struct Condition {
    get: bool,
    has: Option<HeaderValue>,
}

impl Condition {
    /// Out of a request.
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        Self { get: method == Method::GET, has: headers.get(IF_NONE_MATCH).cloned() }
    }

    /// The answer with its ETag, or 304.
    pub async fn apply(self, response: Response) -> Response {
        if !self.get || response.status() != StatusCode::OK {
            return response;
        }
        let (mut head, body) = response.into_parts();
        let Ok(body) = to_bytes(body, BODY_LIMIT).await else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let tag = format!("W/\"{}\"", digest_bytes(&body));
        let tag = HeaderValue::from_str(&tag).expect("hexadecimal digits fit a header");
        head.headers.insert(ETAG, tag.clone());
        if self.has == Some(tag) {
            head.status = StatusCode::NOT_MODIFIED;
            return Response::from_parts(head, Body::empty());
        }
        Response::from_parts(head, Body::from(body))
    }
}
