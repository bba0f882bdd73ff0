//! What there is: groups, versions and resources, in the plain and in the aggregated documents, from the table of kinds and
//! from what is defined.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use portolan_api::review::REVIEWS;
use portolan_api::{Kind, Status};
use serde_json::{Value, json};

use crate::config::Config;
use crate::http::{Answer, json as respond, not_modified, tag, typed};
use crate::negotiate::aggregated_discovery;
use crate::path::Target;

/// The media type of aggregated discovery (KEP-3352).
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// What is kept, then what is only asked, then what is defined.
fn served(kinds: &[Kind]) -> impl Iterator<Item = &Kind> {
    let listed = kinds.iter().filter(|kind| kind.custom().is_none());
    listed.chain(REVIEWS.iter().copied()).chain(kinds.iter().filter(|kind| kind.custom().is_some()))
}

/// What can be done with a kind's objects.
fn verbs(kind: &Kind) -> &'static [&'static str] {
    let asked = REVIEWS.contains(&kind);
    match kind.custom() {
        _ if asked => &["create"],
        Some(custom) if custom.is_terminating() => &["delete", "deletecollection", "get", "list", "watch"],
        _ => &VERBS,
    }
}

/// Answers a discovery path.
pub(crate) fn answer(target: &Target, headers: &HeaderMap, config: &Config, kinds: &[Kind]) -> Answer {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let value = match target {
        Target::Index => index(kinds),
        Target::LegacyApi if aggregated_discovery(accept) => return Ok(aggregated(kinds, true, headers)),
        Target::Groups if aggregated_discovery(accept) => return Ok(aggregated(kinds, false, headers)),
        Target::LegacyApi => {
            let address = config.advertise_addresses.first().map(|ip| {
                let at = std::net::SocketAddr::new(*ip, config.advertise_port);
                json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": at.to_string()}])
            });
            json!({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": address.unwrap_or_else(|| json!([])),
            })
        }
        Target::Groups => {
            let list: Vec<Value> = groups(kinds)
                .into_iter()
                .filter(|group| !group.is_empty())
                .map(|group| group_entry(kinds, group))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
        }
        Target::Group(group) if groups(kinds).contains(&group.as_str()) && !group.is_empty() => {
            let mut entry = group_entry(kinds, group);
            entry["kind"] = "APIGroup".into();
            entry["apiVersion"] = "v1".into();
            entry
        }
        Target::Resources { group, version } => {
            let kinds: Vec<_> =
                served(kinds).filter(|k| k.group() == group && k.version() == version).collect();
            let first = kinds.first().ok_or_else(Status::no_such_path)?;
            let resources: Vec<Value> = kinds.iter().flat_map(|kind| plain_resources(kind)).collect();
            json!({
                "kind": "APIResourceList", "apiVersion": "v1",
                "groupVersion": first.api_version(), "resources": resources,
            })
        }
        _ => return Err(Status::no_such_path()),
    };
    Ok(respond(StatusCode::OK, &value))
}

/// The groups, each once, in the table's order.
fn groups(kinds: &[Kind]) -> Vec<&str> {
    let mut groups: Vec<&str> = Vec::new();
    for kind in served(kinds) {
        if !groups.contains(&kind.group()) {
            groups.push(kind.group());
        }
    }
    groups
}

/// The versions of a group, each once.
fn versions<'a>(kinds: &'a [Kind], group: &str) -> Vec<&'a str> {
    let mut versions: Vec<&str> = Vec::new();
    for kind in served(kinds).filter(|kind| kind.group() == group) {
        if !versions.contains(&kind.version()) {
            versions.push(kind.version());
        }
    }
    versions
}

/// Every group and version as it stands in paths: `api/v1`, `apis/apps/v1`.
pub(crate) fn group_versions(kinds: &[Kind]) -> Vec<(String, &str, &str)> {
    let mut out = Vec::new();
    for group in groups(kinds) {
        for version in versions(kinds, group) {
            let path =
                if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            out.push((path, group, version));
        }
    }
    out
}

fn index(kinds: &[Kind]) -> Value {
    let mut paths: Vec<String> = [
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ]
    .into_iter()
    .map(str::to_owned)
    .collect();
    paths.extend(group_versions(kinds).into_iter().map(|(path, ..)| format!("/{path}")));
    paths.sort();
    json!({"paths": paths})
}

fn group_entry(kinds: &[Kind], group: &str) -> Value {
    let list: Vec<Value> = versions(kinds, group)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    json!({"name": group, "versions": list, "preferredVersion": list.first()})
}

/// A subresource: its name, the kind it speaks (group, version, kind), and its verbs.
pub(crate) type Subresource<'a> = (&'static str, (&'a str, &'a str, &'a str), &'static [&'static str]);

pub(crate) fn subresources(kind: &Kind) -> Vec<Subresource<'_>> {
    let own = (kind.group(), kind.version(), kind.kind());
    let describe = |name: &'static str| match name {
        "scale" => (name, ("autoscaling", "v1", "Scale"), &["get", "patch", "update"][..]),
        "binding" => (name, ("", "v1", "Binding"), &["create"][..]),
        "token" => (name, ("authentication.k8s.io", "v1", "TokenRequest"), &["create"][..]),
        "eviction" => (name, ("policy", "v1", "Eviction"), &["create"][..]),
        "log" => (name, own, &["get"][..]),
        "exec" => (name, ("", "v1", "PodExecOptions"), &["create", "get"][..]),
        "attach" => (name, ("", "v1", "PodAttachOptions"), &["create", "get"][..]),
        "portforward" => (name, ("", "v1", "PodPortForwardOptions"), &["create", "get"][..]),
        "proxy" => {
            let options = match kind.kind() {
                "Pod" => "PodProxyOptions",
                "Service" => "ServiceProxyOptions",
                _ => "NodeProxyOptions",
            };
            (name, ("", "v1", options), &["create", "delete", "get", "patch", "update"][..])
        }
        "finalize" => (name, own, &["update"][..]),
        _ => (name, own, &["get", "patch", "update"][..]),
    };
    kind.subresources().iter().copied().map(describe).collect()
}

fn plain_resources(kind: &Kind) -> Vec<Value> {
    let mut main = json!({
        "name": kind.plural(), "singularName": kind.singular(), "namespaced": kind.namespaced(), "kind": kind.kind(),
        "verbs": verbs(kind),
    });
    if !kind.short_names().is_empty() {
        main["shortNames"] = json!(kind.short_names());
    }
    if !kind.categories().is_empty() {
        main["categories"] = json!(kind.categories());
    }
    let mut out = vec![main];
    for (name, (group, version, word), verbs) in subresources(kind) {
        let mut entry = json!({
            "name": format!("{}/{name}", kind.plural()), "singularName": "", "namespaced": kind.namespaced(),
            "kind": word, "verbs": verbs,
        });
        if (group, version) != (kind.group(), kind.version()) {
            entry["group"] = group.into();
            entry["version"] = version.into();
        }
        out.push(entry);
    }
    out
}

fn aggregated(kinds: &[Kind], core: bool, headers: &HeaderMap) -> http::Response<crate::body::ServerBody> {
    let items: Vec<Value> = groups(kinds)
        .into_iter()
        .filter(|group| group.is_empty() == core)
        .map(|group| {
            let versions: Vec<Value> = versions(kinds, group)
                .into_iter()
                .map(|version| {
                    let kinds = served(kinds).filter(|k| k.group() == group && k.version() == version);
                    let resources: Vec<Value> = kinds.map(aggregated_resource).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let mut metadata = json!({"creationTimestamp": null});
            if !group.is_empty() {
                metadata["name"] = group.into();
            }
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    let body = serde_json::to_vec(&list).unwrap_or_default();
    let hash = tag(&body);
    let mut response =
        not_modified(headers, &hash).unwrap_or_else(|| typed(StatusCode::OK, AGGREGATED, body));
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{hash}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

fn aggregated_resource(kind: &Kind) -> Value {
    let response_kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let mut out = json!({
        "resource": kind.plural(),
        "responseKind": response_kind((kind.group(), kind.version(), kind.kind())),
        "scope": if kind.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular(),
        "verbs": verbs(kind),
    });
    if !kind.short_names().is_empty() {
        out["shortNames"] = json!(kind.short_names());
    }
    if !kind.categories().is_empty() {
        out["categories"] = json!(kind.categories());
    }
    let subresources: Vec<Value> = subresources(kind)
        .into_iter()
        .map(|(name, spoken, verbs)| {
            json!({"subresource": name, "responseKind": response_kind(spoken), "verbs": verbs})
        })
        .collect();
    if !subresources.is_empty() {
        out["subresources"] = subresources.into();
    }
    out
}
