//! Roles and who has them.

use serde_json::{Value, json};

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::selector::validate_object;
use crate::{duration, walk};

const GROUP: &str = "rbac.authorization.k8s.io";

/// The entry of Role.
pub static ROLE: Kind = Kind::Listed(&Entry {
    names: NameRule::PathSegment,
    strategy: Strategy {
        default: default_role,
        validate: |o| rules(o, true),
        validate_update: |new, _| rules(new, true),
        ..Strategy::PLAIN
    },
    ..Entry::of(GROUP, "v1", ("Role", "RoleList"), ("roles", "role"))
});

/// The entry of ClusterRole.
pub static CLUSTER_ROLE: Kind = Kind::Listed(&Entry {
    namespaced: false,
    names: NameRule::PathSegment,
    strategy: Strategy {
        default: default_role,
        validate: cluster_role,
        validate_update: |new, _| cluster_role(new),
        ..Strategy::PLAIN
    },
    ..Entry::of(GROUP, "v1", ("ClusterRole", "ClusterRoleList"), ("clusterroles", "clusterrole"))
});

const BINDING_COLUMNS: &[Column] = &[
    Column::object_name(),
    Column::new("Role", "string", "The role that is given."),
    Column::new("Age", "string", AGE),
    Column::wide("Users", "string", "The users that have it."),
    Column::wide("Groups", "string", "The groups that have it."),
    Column::wide("ServiceAccounts", "string", "The service accounts that have it."),
];

/// The entry of RoleBinding.
pub static ROLE_BINDING: Kind = Kind::Listed(&Entry {
    names: NameRule::PathSegment,
    strategy: Strategy {
        default: default_binding,
        validate: |o| binding(o, true),
        validate_update: |new, old| {
            let mut errors = binding(new, true);
            errors.extend(same_role(new, old));
            errors
        },
        ..Strategy::PLAIN
    },
    columns: BINDING_COLUMNS,
    cells: binding_cells,
    ..Entry::of(GROUP, "v1", ("RoleBinding", "RoleBindingList"), ("rolebindings", "rolebinding"))
});

/// The entry of ClusterRoleBinding.
pub static CLUSTER_ROLE_BINDING: Kind = Kind::Listed(&Entry {
    namespaced: false,
    names: NameRule::PathSegment,
    strategy: Strategy {
        default: default_binding,
        validate: |o| binding(o, false),
        validate_update: |new, old| {
            let mut errors = binding(new, false);
            errors.extend(same_role(new, old));
            errors
        },
        ..Strategy::PLAIN
    },
    columns: BINDING_COLUMNS,
    cells: binding_cells,
    ..Entry::of(
        GROUP,
        "v1",
        ("ClusterRoleBinding", "ClusterRoleBindingList"),
        ("clusterrolebindings", "clusterrolebinding"),
    )
});

/// A role without rules says so, also one that has been emptied: `rules` has no `omitempty`, and is stored without its emptiness.
fn default_role(object: &mut Value) {
    if walk::list(object, "rules").is_empty() {
        walk::set(object, "rules", Value::Null);
    }
}

fn default_binding(object: &mut Value) {
    walk::default(object, "roleRef.apiGroup", GROUP);
    for subject in walk::list_mut(object, "subjects") {
        super::drop_if_empty(subject, "namespace");
        if matches!(walk::text(subject, "kind"), "User" | "Group") {
            walk::default(subject, "apiGroup", GROUP);
        }
    }
}

fn rules(object: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, rule) in walk::list(object, "rules").iter().enumerate() {
        let path = |field: &str| format!("rules[{i}].{field}");
        let has = |field: &str| !walk::list(rule, field).is_empty();
        if !has("verbs") {
            errors.push(FieldError::required(path("verbs"), "verbs must contain at least one value"));
        }
        if has("nonResourceURLs") {
            let urls = || Value::from(walk::list(rule, "nonResourceURLs").to_vec());
            if namespaced {
                let text = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(path("nonResourceURLs"), urls(), text));
            }
            if has("apiGroups") || has("resources") || has("resourceNames") {
                let text = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(path("nonResourceURLs"), urls(), text));
            }
            continue;
        }
        if !has("apiGroups") {
            let text = "resource rules must supply at least one api group";
            errors.push(FieldError::required(path("apiGroups"), text));
        }
        if !has("resources") {
            let text = "resource rules must supply at least one resource";
            errors.push(FieldError::required(path("resources"), text));
        }
    }
    errors
}

fn cluster_role(object: &Value) -> Vec<FieldError> {
    const SELECTORS: &str = "aggregationRule.clusterRoleSelectors";
    let mut errors = rules(object, false);
    if walk::at(object, "aggregationRule").is_some() {
        let selectors = walk::list(object, SELECTORS);
        if selectors.is_empty() {
            let text = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.push(FieldError::required(SELECTORS, text));
        }
        for (i, selector) in selectors.iter().enumerate() {
            let path = format!("{SELECTORS}[{i}]");
            let faults = validate_object(selector, &path);
            let sound = faults.is_empty();
            errors.extend(faults);
            if !sound {
                errors.push(FieldError::invalid(path, Value::Null, "invalid label selector."));
            }
        }
    }
    errors
}

fn binding(object: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let group = walk::text(object, "roleRef.apiGroup");
    if group != GROUP {
        errors.push(FieldError::not_supported("roleRef.apiGroup", group, &[GROUP]));
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    let kind = walk::text(object, "roleRef.kind");
    if !kinds.contains(&kind) {
        errors.push(FieldError::not_supported("roleRef.kind", kind, kinds));
    }
    match walk::text(object, "roleRef.name") {
        "" => errors.push(FieldError::required("roleRef.name", "")),
        name => errors.extend(meta::findings("roleRef.name", name, meta::path_segment_faults(name))),
    }
    for (i, subject) in walk::list(object, "subjects").iter().enumerate() {
        let path = |field: &str| format!("subjects[{i}].{field}");
        let (name, group) = (walk::text(subject, "name"), walk::text(subject, "apiGroup"));
        if name.is_empty() {
            errors.push(FieldError::required(path("name"), ""));
        }
        match walk::text(subject, "kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    errors.extend(meta::findings(&path("name"), name, meta::subdomain_faults(name)));
                }
                if !group.is_empty() {
                    errors.push(FieldError::not_supported(path("apiGroup"), group, &[""]));
                }
                if !namespaced && walk::text(subject, "namespace").is_empty() {
                    errors.push(FieldError::required(path("namespace"), ""));
                }
            }
            "User" | "Group" => {
                if group != GROUP {
                    errors.push(FieldError::not_supported(path("apiGroup"), group, &[GROUP]));
                }
            }
            other => errors.push(FieldError::not_supported(
                path("kind"),
                other,
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
    errors
}

fn same_role(new: &Value, old: &Value) -> Option<FieldError> {
    let (now, before) = (new.get("roleRef"), old.get("roleRef"));
    (now != before)
        .then(|| FieldError::invalid("roleRef", now.cloned().unwrap_or(json!({})), "cannot change roleRef"))
}

fn binding_cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let of = |kind: &str| {
        let some = walk::list(object, "subjects").iter().filter(|s| walk::text(s, "kind") == kind);
        let names = some.map(|s| {
            let (namespace, name) = (walk::text(s, "namespace"), walk::text(s, "name"));
            if kind == "ServiceAccount" { format!("{namespace}/{name}") } else { name.to_owned() }
        });
        Value::from(names.collect::<Vec<_>>().join(", "))
    };
    vec![
        meta::name(object).into(),
        format!("{}/{}", walk::text(object, "roleRef.kind"), walk::text(object, "roleRef.name")).into(),
        duration::age(object, now).into(),
        of("User"),
        of("Group"),
        of("ServiceAccount"),
    ]
}
