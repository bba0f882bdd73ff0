//! The roles and bindings that every cluster has, read from a table and kept up at each start.

use portolan_api::{Kind, Status, find, meta, walk};
use serde_json::{Value, json};

use super::{GROUP, Rule, missing};
use crate::config::{Error, Result};
use crate::server::Server;
use crate::write::{Part, Subject};

const TABLE: &str = include_str!("bootstrap.txt");
/// Set to `false` on an object, it keeps what its owner made of it (Kubernetes' auto-reconciliation).
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// The table's objects, in its order.
fn objects() -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    for line in TABLE.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        match line.strip_prefix("  ") {
            None => out.push(head(line)),
            Some(rest) => {
                if let Some(object) = out.last_mut() {
                    add(object, rest);
                }
            }
        }
    }
    out
}

/// `clusterrole NAME [LABEL=VALUE …]`, `rolebinding NAMESPACE/NAME to KIND ROLE`.
fn head(line: &str) -> Value {
    let (line, role) = line.split_once(" to ").map_or((line, None), |(line, role)| (line, Some(role)));
    let mut words = line.split(' ');
    let kind = match words.next() {
        Some("clusterrole") => "ClusterRole",
        Some("clusterrolebinding") => "ClusterRoleBinding",
        Some("role") => "Role",
        _ => "RoleBinding",
    };
    let name = words.next().unwrap_or_default();
    let mut labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        labels[key] = value.into();
    }
    let mut metadata = json!({"name": name, "labels": labels, "annotations": {AUTOUPDATE: "true"}});
    if let Some((namespace, name)) = name.split_once('/').filter(|_| !kind.starts_with("Cluster")) {
        (metadata["namespace"], metadata["name"]) = (namespace.into(), name.into());
    }
    let mut object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata});
    match role.and_then(|role| role.split_once(' ')) {
        Some((kind, role)) => {
            object["roleRef"] = json!({"apiGroup": GROUP, "kind": kind, "name": role});
        }
        None => object["rules"] = json!([]),
    }
    object
}

/// A rule, a selector of an aggregation, or the subjects of a binding.
fn add(object: &mut Value, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let list = |text: &str| -> Vec<String> {
        text.split(',').map(|word| if word == "core" { "" } else { word }.to_owned()).collect()
    };
    if object.get("roleRef").is_some() {
        let subjects = words.iter().filter_map(|word| word.split_once(':')).map(|(kind, name)| match kind {
            "account" => {
                let (namespace, name) = name.split_once(':').unwrap_or_default();
                json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
            }
            "user" => json!({"kind": "User", "apiGroup": GROUP, "name": name}),
            _ => json!({"kind": "Group", "apiGroup": GROUP, "name": name}),
        });
        object["subjects"] = subjects.collect();
        return;
    }
    let mut rule = Rule::default();
    match words.as_slice() {
        ["aggregates", label] => {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            // Its rules are for its controller to collect.
            object["rules"] = Value::Null;
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {key: value}}]});
            return;
        }
        [verbs, "on", urls] => (rule.verbs, rule.urls) = (list(verbs), list(urls)),
        [verbs, groups, resources, named @ ..] => {
            (rule.verbs, rule.groups, rule.resources) = (list(verbs), list(groups), list(resources));
            if let ["named", names] = named {
                rule.names = list(names);
            }
        }
        _ => return,
    }
    if let Some(rules) = object["rules"].as_array_mut() {
        rules.push(rule.to_value());
    }
}

/// What any node may do with what isn't divided among nodes: the role `system:node`.
pub(crate) fn node_rules() -> Vec<Rule> {
    let role = objects()
        .into_iter()
        .find(|object| walk::text(object, "kind") == "ClusterRole" && meta::name(object) == "system:node");
    role.map(|role| Rule::all(&role)).unwrap_or_default()
}

/// What a stored object lacks of the table's, put in; none if it lacks nothing or wants to be left alone. What somebody
/// added stays.
fn completed(stored: &Value, table: &Value) -> Option<Value> {
    if meta::annotation(stored, AUTOUPDATE) == Some("false") {
        return None;
    }
    let mut new = stored.clone();
    for field in ["labels", "annotations"] {
        let path = format!("metadata.{field}");
        for (key, value) in walk::map(table, &path) {
            if let Some(map) = walk::map_mut(&mut new, &path) {
                map.entry(key).or_insert_with(|| value.clone());
            }
        }
    }
    // Who collects the rules of other roles is filled by its controller.
    if table.get("rules").is_some() && table.get("aggregationRule").is_none() {
        let lacking = missing(&Rule::all(stored), &Rule::all(table));
        if let Some(rules) = new["rules"].as_array_mut() {
            rules.extend(super::compacted(lacking).iter().map(Rule::to_value));
        } else {
            new["rules"] = table["rules"].clone();
        }
    }
    if let Some(selectors) = walk::at(table, "aggregationRule.clusterRoleSelectors").and_then(Value::as_array)
    {
        let mut all = walk::list(stored, "aggregationRule.clusterRoleSelectors").to_vec();
        all.extend(
            selectors
                .iter()
                .filter(|s| !walk::list(stored, "aggregationRule.clusterRoleSelectors").contains(s))
                .cloned(),
        );
        new["aggregationRule"] = json!({"clusterRoleSelectors": all});
    }
    if let Some(subjects) = table.get("subjects").and_then(Value::as_array) {
        let mut all = walk::list(stored, "subjects").to_vec();
        let missing: Vec<Value> = subjects.iter().filter(|subject| !all.contains(subject)).cloned().collect();
        all.extend(missing);
        new["subjects"] = all.into();
    }
    (new != *stored).then_some(new)
}

fn kind(object: &Value) -> Result<&'static Kind> {
    let plural = format!("{}s", walk::text(object, "kind").to_ascii_lowercase());
    find(GROUP, "v1", &plural)
        .ok_or_else(|| Error::Bootstrap { what: plural, why: "the kind is not served".into() })
}

/// Makes what isn't there and completes what is, as kube-apiserver does at its start.
pub(crate) async fn reconcile(server: &Server) -> Result<()> {
    for object in objects() {
        let kind = kind(&object)?;
        let name = meta::name(&object).to_owned();
        let namespace = Some(meta::namespace(&object).to_owned()).filter(|namespace| !namespace.is_empty());
        let subject = Subject { kind, namespace: namespace.as_deref(), name: &name };
        let failed = |status: Status| Error::Bootstrap {
            what: format!("{} {name}", kind.kind()),
            why: status.message,
        };
        match server.cache(kind).get(&subject.key()).map(|stored| stored.value()) {
            None => match server.create_object(kind, namespace.as_deref(), object.clone(), false).await {
                Ok(_) => {}
                Err(status) if status.reason == "AlreadyExists" => {}
                Err(status) => return Err(failed(status)),
            },
            // Another role can't be referred to by a change (the API forbids it); a binding to another role than the
            // table's is made anew by Kubernetes, and left alone here: whoever did it meant it.
            Some(stored) if completed(&stored, &object).is_some() => {
                let make = |old: &Value| Ok(completed(old, &object).unwrap_or_else(|| old.clone()));
                server.modify(subject, Part::Main, false, make).await.map_err(failed)?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_whole() {
        let objects = objects();
        let count = |kind: &str| objects.iter().filter(|object| walk::text(object, "kind") == kind).count();
        assert_eq!((count("ClusterRole"), count("Role")), (69 + 2, 7));
        let named =
            |name: &str| objects.iter().find(|object| meta::name(object) == name).expect("in the table");
        let admin = Rule::all(named("cluster-admin"));
        assert!(missing(&admin, &node_rules()).is_empty() && !node_rules().is_empty());
        assert_eq!(
            walk::list(named("view"), "aggregationRule.clusterRoleSelectors"),
            [json!({"matchLabels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}})]
        );
        for object in &objects {
            let empty =
                |rule: &Rule| rule.verbs.is_empty() || (rule.urls.is_empty() && rule.resources.is_empty());
            assert!(!Rule::all(object).iter().any(empty), "{object}");
        }
    }

    #[test]
    fn what_is_there_is_completed_and_never_cut() {
        let table = head("clusterrole a x=y");
        let mut table_with_rule = table.clone();
        add(&mut table_with_rule, "get,list core pods");
        let mut stored = table_with_rule.clone();
        stored["rules"] = json!([{"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"]}]);
        let new = completed(&stored, &table_with_rule).expect("list is missing");
        assert_eq!(new["rules"][1], json!({"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}));
        assert_eq!(completed(&new, &table_with_rule), None);
        stored["metadata"]["annotations"][AUTOUPDATE] = "false".into();
        assert_eq!(completed(&stored, &table_with_rule), None);
    }
}
