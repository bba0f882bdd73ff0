//! OpenAPI v3: the operations of each group and version. Schemas are absent: `kubectl` then uses those it was built with.

use http::StatusCode;
use portolan_api::{KINDS, Kind, Status};
use serde_json::{Map, Value, json};

use crate::auth::{fingerprint, hex};
use crate::discovery::group_versions;
use crate::http::{Answer, json as respond};
use crate::path::Target;

/// Answers an OpenAPI path. There is no version 2: `kubectl` asks for it only where version 3 says nothing, and takes a
/// 404 for "no schema".
pub(crate) fn answer(target: &Target) -> Answer {
    match target {
        Target::OpenApiV3 => {
            let paths: Map<String, Value> = group_versions()
                .into_iter()
                .map(|(path, group, version)| {
                    // The hash lets clients keep the document until it changes.
                    let hash =
                        hex(&fingerprint(document(group, version).to_string().as_bytes())).to_uppercase();
                    let url = format!("/openapi/v3/{path}?hash={hash}");
                    (path, json!({"serverRelativeURL": url}))
                })
                .collect();
            Ok(respond(StatusCode::OK, &json!({"paths": paths})))
        }
        Target::OpenApiV3Group(asked) => {
            let found = group_versions().into_iter().find(|(path, ..)| path == asked);
            let (_, group, version) = found.ok_or_else(Status::no_such_path)?;
            Ok(respond(StatusCode::OK, &document(group, version)))
        }
        _ => Err(Status::no_such_path()),
    }
}

fn document(group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    for kind in KINDS.iter().filter(|kind| kind.group == group && kind.version == version) {
        let root =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let collection = match kind.namespaced {
            true => format!("{root}/namespaces/{{namespace}}/{}", kind.plural),
            false => format!("{root}/{}", kind.plural),
        };
        paths.insert(
            collection.clone(),
            json!({"get": operation(kind, "list", &[]), "post": operation(kind, "post", WRITE)}),
        );
        let mut patch = operation(kind, "patch", WRITE);
        // Strategic merge patch is understood too. It isn't listed, because kubectl would then make such patches with the
        // schema of this document (kubectl pkg/cmd/apply/patcher.go); not finding it, it uses its compiled-in types.
        patch["requestBody"] =
            json!({"content": {"application/json-patch+json": {}, "application/merge-patch+json": {}}});
        paths.insert(
            format!("{collection}/{{name}}"),
            json!({
                "get": operation(kind, "get", &[]), "put": operation(kind, "put", WRITE), "patch": patch,
                "delete": operation(kind, "delete", &["dryRun", "gracePeriodSeconds", "propagationPolicy"]),
            }),
        );
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Portolan", "version": "v1"},
        "paths": paths,
        "components": {"schemas": {}},
    })
}

const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];

fn operation(kind: &Kind, action: &str, parameters: &[&str]) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| {
            let schema = if *name == "gracePeriodSeconds" { "integer" } else { "string" };
            json!({"name": name, "in": "query", "schema": {"type": schema, "uniqueItems": true}})
        })
        .collect();
    json!({
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
    })
}
