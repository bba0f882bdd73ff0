//! What a request would do, as it is decided upon: a verb on a resource, or a method on a path.

use http::Method;
use portolan_api::Status;
use portolan_api::fielderror::quote;
use serde_json::{Map, Value};

use crate::path::{Query, decode, segments};

/// The attributes of a request (apiserver's `RequestInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for a bare path the method in
    /// lower case.
    pub verb: String,
    /// The path, for what is no resource.
    pub path: String,
    /// Whether a resource is asked for.
    pub of_resource: bool,
    /// The API group.
    pub group: String,
    /// Its version.
    pub version: String,
    /// The namespace; that of a Namespace is its own name.
    pub namespace: String,
    /// The plural.
    pub resource: String,
    /// The subresource.
    pub subresource: String,
    /// The object's name; also that which a list or watch narrows down to.
    pub name: String,
    /// What a list, watch or deletion of a collection demands of fields: pairs that must be equal.
    pub fields: Vec<(String, String)>,
}

impl Attributes {
    /// What a request would do, by its method, path and query (apiserver's `RequestInfoFactory.NewRequestInfo`).
    pub(crate) fn of(method: &Method, path: &str, query: &Query) -> Attributes {
        let bare = Attributes {
            verb: method.as_str().to_ascii_lowercase(),
            path: decode(path, false),
            ..Attributes::default()
        };
        let parts = segments(path);
        let words: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, mut rest) = match words.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return bare,
        };
        let verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        };
        let mut out = Attributes { verb: verb.into(), of_resource: true, ..bare };
        (out.group, out.version) = (group.into(), version.into());
        // The oldest way to watch stands in the path; it is not served, and whoever asks for it must be allowed to watch.
        let by_path = matches!(rest[0], "watch" | "proxy") && rest.len() > 1;
        if by_path {
            out.verb = rest[0].into();
            rest = &rest[1..];
        }
        if let ["namespaces", namespace, inner @ ..] = rest {
            out.namespace = (*namespace).into();
            if inner.first().is_some_and(|word| !matches!(*word, "status" | "finalize")) {
                rest = inner;
            }
        }
        out.resource = rest[0].into();
        out.name = rest.get(1).copied().unwrap_or_default().into();
        if out.verb != "proxy" {
            out.subresource = rest.get(2).copied().unwrap_or_default().into();
        }
        if out.name.is_empty() && out.verb == "get" {
            // As the dispatch reads it: what is allowed and what is done must be the same.
            out.verb = if query.flag("watch") { "watch" } else { "list" }.into();
            let name = exact(query).into_iter().find(|(field, _)| field == "metadata.name");
            // Only what could stand in a path (apimachinery's `IsPathSegmentName`).
            out.name = name
                .map(|(_, name)| name)
                .filter(|name| !matches!(name.as_str(), "." | "..") && !name.contains(['/', '%']))
                .unwrap_or_default();
        }
        if rest.len() < 2 && out.verb == "delete" {
            out.verb = "deletecollection".into();
        }
        if !by_path && matches!(out.verb.as_str(), "list" | "watch" | "deletecollection") {
            out.fields = exact(query);
        }
        out
    }

    /// The resource with its subresource: `pods/log`.
    pub(crate) fn combined(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// Whether a list or watch demands that a field has a value.
    pub(crate) fn demands(&self, field: &str, value: &str) -> bool {
        self.fields.iter().any(|(have, wanted)| have == field && wanted == value)
    }

    /// 403 in Kubernetes' words (apiserver's `ForbiddenStatusError`).
    pub(crate) fn forbidden(&self, user: &str, reason: &str) -> Status {
        let (user, verb) = (quote(user), &self.verb);
        let what = if !self.of_resource {
            format!("User {user} cannot {verb} path {}", quote(&self.path))
        } else {
            let scope = match self.namespace.as_str() {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace {}", quote(namespace)),
            };
            let (resource, group) = (quote(&self.combined()), quote(&self.group));
            format!("User {user} cannot {verb} resource {resource} in API group {group} {scope}")
        };
        let what = what.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let why = if reason.is_empty() { what } else { format!("{what}: {reason}") };
        forbidden(&self.group, &self.resource, &self.name, &why)
    }
}

/// 403 about a resource that may be none of ours (apimachinery's `NewForbidden`).
pub(crate) fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Status {
    let qualified = if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") };
    let message = match (resource, name) {
        ("", _) => format!("forbidden: {why}"),
        (_, "") => format!("{qualified} is forbidden: {why}"),
        _ => format!("{qualified} {} is forbidden: {why}", quote(name)),
    };
    let details = [("name", name), ("group", group), ("kind", resource)];
    let details = details.into_iter().filter(|(_, text)| !text.is_empty());
    let details: Map<String, Value> = details.map(|(key, text)| (key.to_owned(), text.into())).collect();
    Status { code: 403, reason: "Forbidden", message, details, warnings: Vec::new(), resume: String::new() }
}

/// The pairs of a field selector that must be equal.
fn exact(query: &Query) -> Vec<(String, String)> {
    exact_terms(query.get("fieldSelector").unwrap_or_default())
}

/// The same of the selector's text.
pub(crate) fn exact_terms(selector: &str) -> Vec<(String, String)> {
    let terms = selector.split(',');
    let equal = |term: &str| {
        let (field, value) = term.split_once("==").or_else(|| term.split_once('='))?;
        (!field.ends_with('!')).then(|| (field.trim().to_owned(), value.trim().to_owned()))
    };
    terms.filter_map(equal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(method: &str, url: &str) -> Attributes {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        Attributes::of(&method.parse().expect("a method"), path, &Query::parse(query))
    }

    /// Verb, group, namespace, resource with subresource, name.
    fn brief(method: &str, url: &str) -> String {
        let a = of(method, url);
        if !a.of_resource {
            return format!("{} {}", a.verb, a.path);
        }
        [a.verb.clone(), a.group.clone(), a.namespace.clone(), a.combined(), a.name].join("|")
    }

    #[test]
    fn requests_are_read_as_kubernetes_reads_them() {
        for (method, url, expected) in [
            ("GET", "/api/v1/namespaces/n/pods/p/log", "get||n|pods/log|p"),
            ("GET", "/api/v1/pods", "list|||pods|"),
            ("HEAD", "/api/v1/pods?watch=true", "watch|||pods|"),
            (
                "GET",
                "/apis/apps/v1/namespaces/n/deployments?fieldSelector=metadata.name%3Dx",
                "list|apps|n|deployments|x",
            ),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name!=x", "list|||pods|"),
            ("DELETE", "/api/v1/namespaces/n/pods", "deletecollection||n|pods|"),
            ("DELETE", "/api/v1/namespaces/n", "delete||n|namespaces|n"),
            ("PUT", "/api/v1/namespaces/n/finalize", "update||n|namespaces/finalize|n"),
            ("POST", "/api/v1/namespaces/n/serviceaccounts/s/token", "create||n|serviceaccounts/token|s"),
            ("GET", "/api/v1/namespaces", "list|||namespaces|"),
            ("GET", "/api/v1/watch/namespaces/n/pods", "watch||n|pods|"),
            ("OPTIONS", "/api/v1/nodes/x", "|||nodes|x"),
            ("GET", "/api/v1", "get /api/v1"),
            ("GET", "/apis/apps/v1", "get /apis/apps/v1"),
            ("POST", "/livez/ping", "post /livez/ping"),
        ] {
            assert_eq!(brief(method, url), expected, "{method} {url}");
        }
        assert!(
            of("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1,a!=b").demands("spec.nodeName", "n1")
        );
    }

    #[test]
    fn a_refusal_names_who_may_not_do_what_where() {
        for (method, url, expected) in [
            (
                "GET",
                "/api/v1/namespaces/n/pods",
                "pods is forbidden: User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \"n\"",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/n/deployments/d/scale",
                "deployments.apps \"d\" is forbidden: User \"x\" cannot patch resource \"deployments/scale\" in API group \
                 \"apps\" in the namespace \"n\"",
            ),
            (
                "GET",
                "/api/v1/nodes",
                "nodes is forbidden: User \"x\" cannot list resource \"nodes\" in API group \"\" at the cluster scope",
            ),
            ("GET", "/metrics", "forbidden: User \"x\" cannot get path \"/metrics\""),
        ] {
            let status = of(method, url).forbidden("x", "");
            assert_eq!((status.code, status.message.as_str()), (403, expected));
        }
    }
}
