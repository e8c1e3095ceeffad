//! What every answer says to browsers, so that nothing here can be used by a page of somebody else.
//! <https://cheatsheetseries.owasp.org/cheatsheets/HTTP_Headers_Cheat_Sheet.html>

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

/// On every answer of every listener: texts and JSON, nothing that runs, is shown in a frame, or is kept.
const ALWAYS: [(HeaderName, HeaderValue); 6] = [
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
];
/// Over TLS: browsers come back over TLS alone, for two years. Of this name only; others are not ours.
/// <https://www.rfc-editor.org/rfc/rfc6797>
const TLS_ONLY: HeaderValue = HeaderValue::from_static("max-age=63072000");

/// Puts the headers of every answer on it; those that its handler chose stay.
pub(super) fn harden(response: &mut Response) {
    for (name, value) in ALWAYS {
        response.headers_mut().entry(name).or_insert(value);
    }
}

/// The layer of a listener that speaks TLS.
pub(super) async fn over_tls(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, TLS_ONLY);
    response
}
