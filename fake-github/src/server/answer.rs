//! Answers in GitHub's form: errors as `basic-error`, bodies as JSON, and bodies of requests read with GitHub's words.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::world::tokens::Refused;

/// What handlers answer.
pub type Answer = Result<Response, Refused>;

/// Where GitHub's errors point to.
const DOCS: &str = "https://docs.github.com/rest";

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        error(status, &self.message)
    }
}

/// An error in GitHub's form.
pub fn error(status: StatusCode, message: &str) -> Response {
    let body = json!({ "message": message, "documentation_url": DOCS, "status": status.as_u16().to_string() });
    (status, Json(body)).into_response()
}

/// 200 with a body.
pub fn ok(body: Value) -> Response {
    Json(body).into_response()
}

/// 201 with a body.
pub fn created(body: Value) -> Response {
    (StatusCode::CREATED, Json(body)).into_response()
}

/// 202 with GitHub's empty object.
pub fn accepted() -> Response {
    (StatusCode::ACCEPTED, Json(json!({}))).into_response()
}

/// 204.
pub fn no_content() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// Reads a JSON body: 400 if it is no JSON, 422 if it is not what the route takes.
pub fn body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refused> {
    let value: Value = serde_json::from_slice(bytes).map_err(|_| Refused::new(400, "Problems parsing JSON"))?;
    serde_json::from_value(value).map_err(|e| Refused::new(422, format!("Invalid request.\n\n{e}")))
}

/// Reads an optional JSON body.
pub fn optional_body<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<T, Refused> {
    if bytes.is_empty() { Ok(T::default()) } else { body(bytes) }
}

/// What no route answers.
pub async fn unknown_route() -> Response {
    Refused::not_found().into_response()
}
