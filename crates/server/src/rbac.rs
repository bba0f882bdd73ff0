//! Rules of roles: what one allows, and whether some cover others. Pure.

mod bootstrap;
mod escalation;
mod index;

use std::collections::BTreeMap;

use portolan_api::fielderror::quote;
use portolan_api::walk;
use serde_json::{Map, Value};

use crate::attributes::Attributes;

pub(crate) use bootstrap::{node_rules, reconcile};
pub(crate) use escalation::Grant;
pub(crate) use index::{Index, RoleRef};

/// The API group of roles and bindings.
pub(crate) const GROUP: &str = "rbac.authorization.k8s.io";

/// `rbac.authorization.k8s.io/v1 PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub urls: Vec<String>,
    pub names: Vec<String>,
    pub verbs: Vec<String>,
}

fn has(set: &[String], text: &str) -> bool {
    set.iter().any(|have| have == text)
}

fn has_or_all(set: &[String], text: &str) -> bool {
    set.iter().any(|have| have == text || have == "*")
}

/// Whether a path matches one of a rule: equal, `*`, or with a prefix before a final star.
fn url_matches(pattern: &str, path: &str) -> bool {
    pattern == "*"
        || pattern == path
        || (pattern.ends_with('*') && path.starts_with(pattern.trim_end_matches('*')))
}

impl Rule {
    /// The rules of a role.
    pub(crate) fn all(role: &Value) -> Vec<Rule> {
        walk::list(role, "rules").iter().map(Rule::from_value).collect()
    }

    fn from_value(rule: &Value) -> Rule {
        let texts = |field| {
            walk::list(rule, field).iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
        };
        Rule {
            groups: texts("apiGroups"),
            resources: texts("resources"),
            urls: texts("nonResourceURLs"),
            names: texts("resourceNames"),
            verbs: texts("verbs"),
        }
    }

    /// The rule as it stands in a role, with the fields in the API's order.
    pub(crate) fn to_value(&self) -> Value {
        let fields = [
            ("verbs", &self.verbs),
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ];
        let fields = fields.into_iter().filter(|(name, texts)| !texts.is_empty() || *name == "verbs");
        fields.map(|(name, texts)| (name.to_owned(), texts.clone().into())).collect::<Map<_, _>>().into()
    }

    /// Whether the rule allows a request (Kubernetes' `RuleAllows`).
    pub(crate) fn allows(&self, request: &Attributes) -> bool {
        if !has_or_all(&self.verbs, &request.verb) {
            return false;
        }
        if !request.of_resource {
            return self.urls.iter().any(|pattern| url_matches(pattern, &request.path));
        }
        has_or_all(&self.groups, &request.group)
            && self.resources.iter().any(|resource| resource_matches(resource, request))
            && (self.names.is_empty() || has(&self.names, &request.name))
    }

    /// As messages show it (Kubernetes' `CompactString`).
    pub(crate) fn compact(&self) -> String {
        let parts = [
            ("APIGroups", &self.groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.names),
            ("Verbs", &self.verbs),
        ];
        let parts = parts.into_iter().filter(|(_, texts)| !texts.is_empty());
        let parts: Vec<String> = parts.map(|(name, texts)| format!("{name}:{}", quoted(texts))).collect();
        format!("{{{}}}", parts.join(", "))
    }

    /// Whether this rule allows all that a rule of one verb and one resource or path allows.
    fn covers(&self, single: &Rule) -> bool {
        let all = |set: &[String], wanted: &[String], covers: fn(&str, &str) -> bool| {
            wanted.iter().all(|text| set.iter().any(|have| covers(have, text)))
        };
        all(&self.verbs, &single.verbs, |have, text| have == "*" || have == text)
            && all(&self.groups, &single.groups, |have, text| have == "*" || have == text)
            && all(&self.resources, &single.resources, resource_covers)
            && all(&self.urls, &single.urls, |have, text| {
                have == text || (have.ends_with('*') && text.starts_with(have.trim_end_matches('*')))
            })
            && (self.names.is_empty()
                || (!single.names.is_empty() && single.names.iter().all(|name| has(&self.names, name))))
    }

    /// The same rule in pieces of one verb and one resource or path each.
    fn pieces(&self) -> Vec<Rule> {
        let one = |text: &String| vec![text.clone()];
        let mut out = Vec::new();
        for group in &self.groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let piece = Rule {
                        groups: one(group),
                        resources: one(resource),
                        verbs: one(verb),
                        ..Rule::default()
                    };
                    if self.names.is_empty() {
                        out.push(piece);
                    } else {
                        out.extend(self.names.iter().map(|name| Rule { names: one(name), ..piece.clone() }));
                    }
                }
            }
        }
        for url in &self.urls {
            out.extend(self.verbs.iter().map(|verb| Rule {
                urls: one(url),
                verbs: one(verb),
                ..Rule::default()
            }));
        }
        out
    }
}

/// `["a" "b"]`, as Go prints a list of quoted texts.
pub(crate) fn quoted(texts: &[String]) -> String {
    format!("[{}]", texts.iter().map(|text| quote(text)).collect::<Vec<_>>().join(" "))
}

/// `pods`, `pods/log`, `*`, or `*/scale` for that subresource of anything.
fn resource_matches(resource: &str, request: &Attributes) -> bool {
    if resource == "*" {
        return true;
    }
    if request.subresource.is_empty() {
        return resource == request.resource;
    }
    let main = resource.strip_suffix(request.subresource.as_str()).and_then(|main| main.strip_suffix('/'));
    main.is_some_and(|main| main == "*" || main == request.resource)
}

fn resource_covers(have: &str, wanted: &str) -> bool {
    let by_subresource =
        || wanted.split_once('/').is_some_and(|(_, sub)| have.strip_prefix("*/").is_some_and(|h| h == sub));
    have == "*" || have == wanted || by_subresource()
}

/// What of `wanted` is not covered by `held`, in pieces (Kubernetes' `Covers`).
pub(crate) fn missing(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let pieces = wanted.iter().flat_map(Rule::pieces);
    pieces.filter(|piece| !held.iter().any(|rule| rule.covers(piece))).collect()
}

/// Pieces that differ by their verb alone, put together (Kubernetes' `CompactRules`).
pub(crate) fn compacted(pieces: Vec<Rule>) -> Vec<Rule> {
    let mut simple: BTreeMap<Rule, Vec<String>> = BTreeMap::new();
    let mut out = Vec::new();
    for piece in pieces {
        if piece.urls.is_empty() {
            let key = Rule { verbs: Vec::new(), ..piece.clone() };
            simple.entry(key).or_default().extend(piece.verbs);
        } else {
            out.push(piece);
        }
    }
    out.extend(simple.into_iter().map(|(rule, verbs)| Rule { verbs, ..rule }));
    out
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::path::Query;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let list = |text: &str| match text {
            "" => Vec::new(),
            text => text.split(',').map(|word| if word == "core" { "" } else { word }.to_owned()).collect(),
        };
        Rule {
            groups: list(groups),
            resources: list(resources),
            urls: Vec::new(),
            names: list(names),
            verbs: list(verbs),
        }
    }

    fn allows(rule: &Rule, method: Method, url: &str) -> bool {
        rule.allows(&Attributes::of(&method, url, &Query::default()))
    }

    #[test]
    fn a_rule_allows_what_it_names_and_nothing_beside() {
        let logs = rule("get", "core", "pods/log", "");
        assert!(allows(&logs, Method::GET, "/api/v1/namespaces/n/pods/p/log"));
        assert!(!allows(&logs, Method::GET, "/api/v1/namespaces/n/pods/p"));
        assert!(!allows(&rule("get", "core", "pods", ""), Method::GET, "/api/v1/namespaces/n/pods/p/log"));
        assert!(allows(&rule("*", "*", "*", ""), Method::GET, "/api/v1/namespaces/n/pods/p/log"));
        let scales = rule("patch", "*", "*/scale", "");
        assert!(allows(&scales, Method::PATCH, "/apis/apps/v1/namespaces/n/deployments/d/scale"));
        assert!(!allows(&scales, Method::PATCH, "/apis/apps/v1/namespaces/n/deployments/d"));
        let named = rule("get,list", "core", "configmaps", "a");
        assert!(allows(&named, Method::GET, "/api/v1/namespaces/n/configmaps/a"));
        assert!(!allows(&named, Method::GET, "/api/v1/namespaces/n/configmaps/b"));
        assert!(!allows(&named, Method::GET, "/api/v1/namespaces/n/configmaps"), "a list names nothing");
        let paths = Rule { urls: vec!["/healthz/*".into(), "/version".into()], ..rule("get", "", "", "") };
        assert!(allows(&paths, Method::GET, "/healthz/ping") && allows(&paths, Method::GET, "/version"));
        assert!(!allows(&paths, Method::GET, "/version/x") && !allows(&paths, Method::POST, "/version"));
    }

    #[test]
    fn what_somebody_lacks_is_named_in_few_words() {
        let held = [rule("get,list", "core", "pods", ""), rule("*", "apps", "*/scale", "")];
        let wanted =
            [rule("get,delete,watch", "core", "pods", ""), rule("get", "apps", "deployments/scale", "")];
        let lacks = compacted(missing(&held, &wanted));
        let lacks: Vec<String> = lacks.iter().map(Rule::compact).collect();
        assert_eq!(lacks, ["{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"watch\"]}"]);
        assert!(missing(&[rule("*", "*", "*", "")], &wanted).is_empty());
        // Whoever holds one name doesn't hold all.
        let one = rule("get", "core", "secrets", "a");
        assert_eq!(missing(std::slice::from_ref(&one), &[rule("get", "core", "secrets", "")]).len(), 1);
        assert!(missing(&[rule("get", "core", "secrets", "")], &[one]).is_empty());
    }
}
