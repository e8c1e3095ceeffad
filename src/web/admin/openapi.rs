//! `/openapi.json`: the API described by OpenAPI 3.1, with the schemas of the types that it is made of.

use super::ROUTES;
use crate::api;
use axum::Json;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};
use std::sync::LazyLock;

static DESCRIPTION: LazyLock<Value> = LazyLock::new(describe);

/// `GET /openapi.json`
pub async fn serve() -> Json<&'static Value> {
    Json(&DESCRIPTION)
}

/// What one route takes and gives.
struct Operation {
    summary: &'static str,
    query: Option<Schema>,
    body: Option<Schema>,
    answer: Option<Schema>,
}

impl Operation {
    fn reads<T: JsonSchema>(schemas: &mut SchemaGenerator, summary: &'static str) -> Self {
        Self { summary, query: None, body: None, answer: Some(schemas.subschema_for::<T>()) }
    }

    fn changes(schemas: &mut SchemaGenerator, summary: &'static str) -> Self {
        Self::reads::<api::Done>(schemas, summary)
    }

    fn query<T: JsonSchema>(mut self, schemas: &mut SchemaGenerator) -> Self {
        self.query = Some(schemas.root_schema_for::<T>());
        self
    }

    fn body<T: JsonSchema>(mut self, schemas: &mut SchemaGenerator) -> Self {
        self.body = Some(schemas.subschema_for::<T>());
        self
    }

    /// Not JSON of ours.
    const fn other(summary: &'static str) -> Self {
        Self { summary, query: None, body: None, answer: None }
    }
}

/// What each route takes and gives; `None` for one that is not described, which a test finds.
fn operation(schemas: &mut SchemaGenerator, method: &str, path: &str) -> Option<Operation> {
    use api::{Page, Tenant};
    let s = schemas;
    Some(match (method, path.strip_prefix(api::BASE)?) {
        ("GET", "/status") => Operation::reads::<api::Status>(s, "How everything is"),
        ("GET", "/jobs") => Operation::reads::<Page<api::Job>>(s, "Jobs, newest first").query::<api::JobsQuery>(s),
        ("GET", "/jobs/{id}/why") => {
            Operation::reads::<api::Why>(s, "Why a job waits, or ended so").query::<api::WhyQuery>(s)
        }
        ("GET", "/refusals") => Operation::reads::<api::Refusals>(s, "Jobs that were not taken, newest first")
            .query::<api::RefusalsQuery>(s),
        ("GET", "/vms") => Operation::reads::<Page<api::Vm>>(s, "Vms, newest first").query::<api::VmsQuery>(s),
        ("POST", "/vms/{id}/kill") => Operation::changes(s, "Destroys a vm").body::<api::Kill>(s),
        ("GET", "/hosts") => Operation::reads::<Page<api::Host>>(s, "The machines"),
        ("POST", "/hosts/drain") => Operation::changes(s, "No host takes new work").body::<api::Drain>(s),
        ("POST", "/hosts/{name}/drain") => Operation::changes(s, "A host takes no new work").body::<api::Drain>(s),
        ("POST", "/hosts/resume") => Operation::changes(s, "Every host takes work again"),
        ("POST", "/hosts/{name}/resume") => Operation::changes(s, "A host takes work again"),
        ("POST", "/hosts/{name}/invite") => {
            Operation::reads::<api::Invitation>(s, "Lets a machine join the fleet").body::<api::Invite>(s)
        }
        ("POST", "/hosts/{name}/revoke") => Operation::changes(s, "Throws a machine out of the fleet"),
        ("GET", "/tenants") => Operation::reads::<Page<Tenant>>(s, "The accounts that installed the App"),
        ("POST", "/tenants/{account}/approve") => Operation::changes(s, "Serves an account"),
        ("POST", "/tenants/{account}/suspend") => Operation::changes(s, "Serves an account no more"),
        ("POST", "/tenants/{account}/limit") => {
            Operation::changes(s, "Sets how many vms an account may have").body::<api::Limit>(s)
        }
        ("POST", "/tenants/{account}/export") => {
            Operation::reads::<api::Export>(s, "All that is stored of an account, part by part")
                .body::<api::ExportFrom>(s)
        }
        ("POST", "/tenants/{account}/erase") => Operation::reads::<api::Erasure>(s, "Forgets an account"),
        ("GET", "/keys") => Operation::reads::<api::Keys>(s, "The master keys, and how far a rotation is"),
        ("POST", "/keys/rotate") => Operation::changes(s, "Makes a new master key, and wraps everything by it"),
        ("GET", "/deliveries") => {
            Operation::reads::<Page<api::Delivery>>(s, "Deliveries, newest first").query::<api::DeliveriesQuery>(s)
        }
        ("GET", "/audit") => {
            Operation::reads::<Page<api::AuditEntry>>(s, "The audit trail, oldest first").query::<api::AuditQuery>(s)
        }
        ("GET", "/audit/head") => Operation::reads::<api::AuditHeads>(s, "The ends of the audit trail's chains"),
        ("GET", "/audit/verify") => {
            Operation::reads::<api::AuditVerdict>(s, "Whether the audit trail is intact").query::<api::VerifyQuery>(s)
        }
        ("GET", "/usage") => {
            Operation::reads::<Page<api::Usage>>(s, "What accounts used, by UTC day").query::<api::UsageQuery>(s)
        }
        ("GET", "/images") => Operation::reads::<Page<api::Image>>(s, "Images, as far as the tables know them"),
        ("GET", "/images/pins") => Operation::reads::<Page<api::Pin>>(s, "What tags stand for, and updates under way"),
        ("POST", "/images/update") => {
            Operation::changes(s, "Lets a tag stand for another image, on one host first").body::<api::UpdateImage>(s)
        }
        ("POST", "/images/rollback") => {
            Operation::changes(s, "Lets a tag stand for the image before again").body::<api::RollbackImage>(s)
        }
        ("GET", "/metrics") => Operation::other("What Prometheus reads"),
        ("GET", "/openapi.json") => Operation::other("This description"),
        _ => return None,
    })
}

fn describe() -> Value {
    let mut schemas = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let problem = schemas.subschema_for::<api::Problem>();
    let mut paths = Map::new();
    for (method, path) in ROUTES {
        let Some(operation) = operation(&mut schemas, method, path) else { continue };
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        entry[method.to_lowercase()] = show(path, operation, &problem);
    }
    let schemas: Map<String, Value> = schemas.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "flyci admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "On the admin socket, for the user that flyci runs as and for root; GET on loopback too, if configured.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn show(path: &str, operation: Operation, problem: &Schema) -> Value {
    let mut parameters: Vec<Value> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    let properties = operation.query.as_ref().and_then(|query| query.get("properties")?.as_object());
    for (name, schema) in properties.into_iter().flatten() {
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        parameters.push(json!({"name": name, "in": "query", "description": description, "schema": schema}));
    }
    let answer = match operation.answer {
        Some(schema) => json!({"description": "done", "content": {"application/json": {"schema": schema}}}),
        None => json!({"description": "done"}),
    };
    let failure = json!({"description": "failed", "content": {api::PROBLEM_JSON: {"schema": problem}}});
    let mut shown = json!({
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {"200": answer, "default": failure},
    });
    if let Some(body) = operation.body {
        shown["requestBody"] = json!({"content": {"application/json": {"schema": body}}});
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` in a value.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    #[test]
    fn every_route_is_described() {
        let description = describe();
        for (method, path) in ROUTES {
            let operation = &description["paths"][path][method.to_lowercase()];
            assert!(operation["summary"].is_string(), "{method} {path}");
        }
        let drain = &description["paths"]["/api/v1/hosts/{name}/drain"]["post"];
        assert_eq!(drain["parameters"][0]["name"], "name");
        assert!(drain["requestBody"].is_object());
        let jobs = &description["paths"]["/api/v1/jobs"]["get"]["parameters"];
        assert_eq!(jobs.as_array().map(Vec::len), Some(4), "state, since, limit, after: {jobs}");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let description = describe();
        let mut found = Vec::new();
        references(&description, &mut found);
        assert!(found.len() > ROUTES.len());
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("it is in this description");
            assert!(description.pointer(pointer).is_some(), "{reference}");
        }
    }
}
