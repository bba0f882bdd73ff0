//! OpenAPI: the operations of each group and version, and the schemas of their types, in versions 3 and 2.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use portolan_api::schema::openapi::{Version, schemas};
use portolan_api::schema::{self, TypeRef};
use portolan_api::{KINDS, Kind, Status};
use serde_json::{Map, Value, json};

use crate::body::ServerBody;
use crate::discovery::{group_versions, subresources};
use crate::http::{Answer, json as respond, not_modified, tag, typed};
use crate::path::{Query, Target};
use crate::server::Server;

mod protobuf; // version 2 for client-go

/// A document as it is sent, and its hash.
struct Document {
    body: Bytes,
    hash: String,
}

impl Document {
    fn new(value: &Value) -> Document {
        Document::of(serde_json::to_vec(value).unwrap_or_default())
    }

    fn of(body: Vec<u8>) -> Document {
        let body = Bytes::from(body);
        Document { hash: tag(&body), body }
    }
}

/// The document of version 2, in both its forms.
struct Swagger {
    json: Document,
    protobuf: Document,
}

impl Swagger {
    fn of(kinds: &[Kind]) -> Swagger {
        let value = swagger(kinds);
        Swagger { json: Document::new(&value), protobuf: Document::of(protobuf::write(&value)) }
    }
}

/// The documents of one state of what is served.
pub(crate) struct Documents {
    /// Of version 3, by `api/v1`, `apis/apps/v1`: those with custom kinds.
    groups: BTreeMap<String, Document>,
    /// The one of version 2, if there are custom kinds.
    swagger: Option<Swagger>,
}

impl Documents {
    fn of(kinds: &[Kind]) -> Documents {
        let custom: Vec<Kind> = kinds.iter().filter(|kind| kind.custom().is_some()).cloned().collect();
        let made = |(path, group, version): (String, &str, &str)| {
            (path, Document::new(&document(kinds, group, version)))
        };
        let swagger = (!custom.is_empty()).then(|| Swagger::of(kinds));
        let reviews =
            |group: &str| portolan_api::review::REVIEWS.iter().any(|review| review.group() == group);
        let groups = group_versions(&custom).into_iter().filter(|(_, group, _)| !reviews(group)).map(made);
        Documents { groups: groups.collect(), swagger }
    }
}

static LISTED: LazyLock<Vec<Kind>> = LazyLock::new(|| KINDS.iter().map(|kind| (*kind).clone()).collect());

/// The documents of version 3 without custom kinds.
static GROUPS: LazyLock<BTreeMap<String, Document>> = LazyLock::new(|| {
    let made = |(path, group, version): (String, &str, &str)| {
        (path, Document::new(&document(&LISTED, group, version)))
    };
    group_versions(&LISTED).into_iter().map(made).collect()
});

/// The one document of version 2 without custom kinds.
static SWAGGER: LazyLock<Swagger> = LazyLock::new(|| Swagger::of(&LISTED));

/// Answers an OpenAPI path.
pub(crate) async fn answer(server: &Server, target: &Target, query: &Query, headers: &HeaderMap) -> Answer {
    let kinds = server.kinds().await;
    let documents = server.definitions.documents();
    let documents = documents.get_or_init(|| Documents::of(&kinds));
    match target {
        Target::OpenApiV3 => {
            let listed = GROUPS.iter().filter(|(path, _)| !documents.groups.contains_key(*path));
            let paths: Map<String, Value> = listed
                .chain(&documents.groups)
                .map(|(path, document)| {
                    // The hash lets clients keep the document until it changes.
                    let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                    (path.clone(), json!({"serverRelativeURL": url}))
                })
                .collect();
            Ok(respond(StatusCode::OK, &json!({"paths": paths})))
        }
        Target::OpenApiV3Group(asked) => {
            let document = documents.groups.get(asked).or_else(|| GROUPS.get(asked));
            let document = document.ok_or_else(Status::no_such_path)?;
            match query.get("hash") {
                Some(hash) if hash != document.hash => {
                    let mut response = http::Response::new(ServerBody::empty());
                    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
                    let place = format!("/openapi/v3/{asked}?hash={}", document.hash);
                    if let Ok(place) = HeaderValue::from_str(&place) {
                        response.headers_mut().insert(header::LOCATION, place);
                    }
                    Ok(response)
                }
                hash => Ok(send(document, JSON, hash.is_some(), headers)),
            }
        }
        _ => {
            let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
            let document = documents.swagger.as_ref().unwrap_or(&SWAGGER);
            // What is named first is preferred.
            let asked = accept.split(',').map(|one| one.split(';').next().unwrap_or_default().trim());
            for media in asked {
                if protobuf::MEDIA.contains(&media) {
                    // Always by the new name: the old one is no media type that a client's parser takes.
                    return Ok(send(&document.protobuf, protobuf::MEDIA[0], false, headers));
                }
                if matches!(media, JSON | "application/*" | "*/*" | "") {
                    return Ok(send(&document.json, JSON, false, headers));
                }
            }
            Err(Status::not_acceptable(&[JSON, protobuf::MEDIA[0], protobuf::MEDIA[1]]))
        }
    }
}

const JSON: &str = "application/json";

/// A document, unless the client has it. One that is asked for by its hash never changes.
fn send(
    document: &Document,
    media: &'static str,
    by_hash: bool,
    headers: &HeaderMap,
) -> http::Response<ServerBody> {
    let mut response = match not_modified(headers, &document.hash) {
        Some(response) => response,
        None => typed(StatusCode::OK, media, document.body.clone()),
    };
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", document.hash)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    if by_hash {
        let forever = HeaderValue::from_static("public, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    response
}

/// The types that a kind's operations speak.
fn roots(kind: &Kind) -> Vec<TypeRef> {
    let version = kind.api_version();
    let mut roots: Vec<TypeRef> = [kind.kind(), kind.list_kind(), "DeleteOptions", "Status"]
        .iter()
        .filter_map(|name| schema::of(&version, name))
        .collect();
    if kind.custom().is_some() {
        roots.extend(["meta/v1.ObjectMeta", "meta/v1.ListMeta"].into_iter().filter_map(schema::find));
    }
    for (_, (group, version, name), _) in subresources(kind) {
        let version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        // What stands in the query of `exec` and its like is no body.
        roots.extend(schema::of(&version, name).filter(|_| !name.ends_with("Options")));
    }
    roots.extend(schema::find("meta/v1.WatchEvent"));
    roots
}

fn document(kinds: &[Kind], group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    let mut types = Vec::new();
    let of_group = || kinds.iter().filter(|kind| kind.group() == group && kind.version() == version);
    for kind in of_group() {
        paths.extend(operations(kind));
        types.extend(roots(kind));
    }
    let mut components = schemas(&types, Version::V3);
    of_group().for_each(|kind| components.extend(custom_schemas(kind, Version::V3)));
    components.insert(PATCH.into(), json!({"type": "object"}));
    // What all groups share is of each of them.
    for name in ["DeleteOptions", "WatchEvent"] {
        let mut own = vec![json!({"group": "", "kind": name, "version": "v1"})];
        if !group.is_empty() {
            own.push(json!({"group": group, "kind": name, "version": version}));
        }
        if let Some(schema) = components.get_mut(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}")) {
            schema["x-kubernetes-group-version-kind"] = own.into();
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "1.36"},
        "paths": paths,
        "components": {"schemas": components},
    })
}

fn swagger(kinds: &[Kind]) -> Value {
    let types: Vec<TypeRef> = kinds.iter().flat_map(roots).collect();
    let mut definitions = schemas(&types, Version::V2);
    kinds.iter().for_each(|kind| definitions.extend(custom_schemas(kind, Version::V2)));
    let mut paths = Map::new();
    for kind in kinds {
        for (path, operations) in operations(kind) {
            // In version 2 the operations are there by name alone: who reads it looks for definitions.
            let mut bare = Map::new();
            for (verb, operation) in operations.as_object().into_iter().flatten() {
                let mut out = json!({
                    "consumes": ["*/*"], "produces": ["application/json"],
                    "responses": {"200": {"description": "OK"}, "401": {"description": "Unauthorized"}},
                });
                for key in ["x-kubernetes-action", "x-kubernetes-group-version-kind"] {
                    out[key] = operation[key].clone();
                }
                bare.insert(verb.clone(), out);
            }
            paths.insert(path, bare.into());
        }
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.36"},
        "paths": paths,
        "definitions": definitions,
    })
}

const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const DELETE: &[&str] = &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"];
const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];

/// The paths of a kind with their operations.
fn operations(kind: &Kind) -> Vec<(String, Value)> {
    let root = match kind.group() {
        "" => format!("/api/{}", kind.version()),
        group => format!("/apis/{group}/{}", kind.version()),
    };
    let collection = match kind.namespaced() {
        true => format!("{root}/namespaces/{{namespace}}/{}", kind.plural()),
        false => format!("{root}/{}", kind.plural()),
    };
    let own = (kind.group(), kind.version(), kind.kind());
    let list = (kind.group(), kind.version(), kind.list_kind());
    let mut out = vec![(
        collection.clone(),
        json!({
            "get": operation(own, "list", LIST, None, list),
            "post": operation(own, "post", WRITE, Some(own), own),
            "delete": operation(own, "deletecollection", DELETE, None, ("", "v1", "Status")),
        }),
    )];
    if kind.namespaced() {
        out.push((
            format!("{root}/{}", kind.plural()),
            json!({"get": operation(own, "list", LIST, None, list)}),
        ));
    }
    out.push((
        format!("{collection}/{{name}}"),
        json!({
            "get": operation(own, "get", &[], None, own),
            "put": operation(own, "put", WRITE, Some(own), own),
            "patch": patch(kind, own),
            "delete": operation(own, "delete", DELETE, Some(("", "v1", "DeleteOptions")), ("", "v1", "Status")),
        }),
    ));
    for (name, spoken, verbs) in subresources(kind) {
        let operations: Map<String, Value> = verbs
            .iter()
            .filter_map(|verb| {
                Some(match *verb {
                    "get" => ("get".to_owned(), operation(spoken, "get", &[], None, spoken)),
                    "create" => ("post".to_owned(), operation(spoken, "post", WRITE, Some(spoken), spoken)),
                    "update" => ("put".to_owned(), operation(spoken, "put", WRITE, Some(spoken), spoken)),
                    "patch" => ("patch".to_owned(), patch(kind, spoken)),
                    _ => return None,
                })
            })
            .collect();
        out.push((format!("{collection}/{{name}}/{name}"), operations.into()));
    }
    out
}

/// Group, version and kind.
type Spoken<'a> = (&'a str, &'a str, &'a str);

/// The name of a custom kind's schema: the group is turned round.
fn custom_name((group, version, kind): Spoken<'_>) -> String {
    let parts: Vec<&str> = group.split('.').rev().collect();
    format!("{}.{version}.{kind}", parts.join("."))
}

/// The schemas of a custom kind and of its list (apiextensions-apiserver `controller/openapi/builder`).
fn custom_schemas(kind: &Kind, version: Version) -> Vec<(String, Value)> {
    let Some(custom) = kind.custom() else { return Vec::new() };
    let said = |of: &str| json!([{"group": kind.group(), "kind": of, "version": kind.version()}]);
    let part = |name: &str| version.reference(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"));
    let mut own = match (custom.schema(), version) {
        (Value::Null, _) => json!({"type": "object"}),
        // Who reads it would take what isn't named for unknown.
        (schema, Version::V2) if is_open(schema) => json!({"type": "object"}),
        (schema, Version::V2) => plain(schema),
        (schema, Version::V3) => schema.clone(),
    };
    if own.get("properties").is_some() || version == Version::V3 {
        for field in ["apiVersion", "kind"] {
            own["properties"][field] = json!({"type": "string"});
        }
        own["properties"]["metadata"] = part("ObjectMeta");
    }
    own["x-kubernetes-group-version-kind"] = said(kind.kind());
    let names = [kind.kind(), kind.list_kind()].map(|name| custom_name((kind.group(), kind.version(), name)));
    let list = json!({
        "type": "object", "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": part("ListMeta"),
            "items": {"type": "array", "items": version.reference(&names[0])},
        },
        "x-kubernetes-group-version-kind": said(kind.list_kind()),
    });
    names.into_iter().zip([own, list]).collect()
}

fn is_open(schema: &Value) -> bool {
    schema["x-kubernetes-preserve-unknown-fields"] == true
}

/// A schema with what version 2 has words for (apiextensions-apiserver `controller/openapi/v2`).
fn plain(schema: &Value) -> Value {
    let mut out = schema.clone();
    let Some(map) = out.as_object_mut() else { return out };
    let (open, either) = (is_open(schema), schema["x-kubernetes-int-or-string"] == true);
    let nullable = schema["nullable"] == true;
    for name in ["allOf", "anyOf", "oneOf", "not", "nullable", "default"] {
        map.shift_remove(name);
    }
    if either || nullable {
        map.shift_remove("type");
    }
    if open || nullable {
        map.shift_remove("items");
        map.shift_remove("properties");
    }
    for name in ["items", "additionalProperties"] {
        if let Some(part) = map.get_mut(name).filter(|part| part.is_object()) {
            *part = plain(part);
        }
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(|part| *part = plain(part));
    }
    out
}

fn reference((group, version, kind): Spoken<'_>) -> Value {
    // No type of the table is of a group that anybody could define.
    if schema::of(&format!("{group}/{version}"), kind).is_none() && group.contains('.') {
        return Version::V3.reference(&custom_name((group, version, kind)));
    }
    let version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    match schema::of(&version, kind).filter(|_| !kind.ends_with("Options") || kind == "DeleteOptions") {
        Some(of) => Version::V3.reference(&of.get().openapi_name()),
        None => json!({"type": "string"}),
    }
}

fn patch(kind: &Kind, spoken: Spoken<'_>) -> Value {
    let mut out =
        operation(spoken, "patch", &["dryRun", "fieldManager", "fieldValidation", "force"], None, spoken);
    let ways = ["apply-patch+yaml", "json-patch+json", "merge-patch+json", "strategic-merge-patch+json"];
    // kubectl looks here for how it may patch.
    let some = if kind.custom().is_some() { 3 } else { 4 };
    let content: Map<String, Value> = ways
        .iter()
        .take(some)
        .map(|way| (format!("application/{way}"), json!({"schema": Version::V3.reference(PATCH)})))
        .collect();
    out["requestBody"] = json!({"content": content, "required": true});
    out
}

fn operation(
    (group, version, kind): Spoken<'_>,
    action: &str,
    parameters: &[&str],
    body: Option<Spoken<'_>>,
    answer: Spoken<'_>,
) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| {
            let r#type = match *name {
                "gracePeriodSeconds" | "limit" | "timeoutSeconds" => "integer",
                "allowWatchBookmarks" | "force" | "orphanDependents" | "sendInitialEvents" | "watch" => {
                    "boolean"
                }
                _ => "string",
            };
            json!({"name": name, "in": "query", "schema": {"type": r#type, "uniqueItems": true}})
        })
        .collect();
    let mut out = json!({
        "parameters": parameters,
        "responses": {
            "200": {"description": "OK", "content": {"application/json": {"schema": reference(answer)}}},
            "401": {"description": "Unauthorized"},
        },
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": group, "kind": kind, "version": version},
    });
    if let Some(body) = body {
        out["requestBody"] = json!({"content": {"*/*": {"schema": reference(body)}}});
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_to_a_schema() {
        for (path, group, version) in group_versions(&LISTED) {
            let document = document(&LISTED, group, version);
            let text = document.to_string();
            for part in text.split("\"#/components/schemas/").skip(1) {
                let name = part.split('"').next().unwrap_or_default();
                assert!(!document["components"]["schemas"][name].is_null(), "{path}: {name}");
            }
        }
        let document = swagger(&LISTED);
        let text = document.to_string();
        for part in text.split("\"#/definitions/").skip(1) {
            let name = part.split('"').next().unwrap_or_default();
            assert!(!document["definitions"][name].is_null(), "{name}");
        }
    }

    #[test]
    fn every_kind_is_described_with_what_patches_need() {
        for kind in KINDS {
            let document = document(&LISTED, kind.group(), kind.version());
            let name = schema::of_kind(kind).map(|of| of.get().openapi_name()).unwrap_or_default();
            let schema = &document["components"]["schemas"][&name];
            assert_eq!(
                schema["x-kubernetes-group-version-kind"],
                json!([{"group": kind.group(), "kind": kind.kind(), "version": kind.version()}]),
                "{name}"
            );
        }
        let service = &document(&LISTED, "", "v1")["components"]["schemas"]["io.k8s.api.core.v1.ServiceSpec"];
        assert_eq!(
            service["properties"]["ports"],
            json!({
                "type": "array",
                "items": {"allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.ServicePort"}], "default": {}},
                "x-kubernetes-list-map-keys": ["port", "protocol"], "x-kubernetes-list-type": "map",
                "x-kubernetes-patch-merge-key": "port", "x-kubernetes-patch-strategy": "merge",
            })
        );
    }
}
