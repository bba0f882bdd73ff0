//! What an object uses, whether a quota counts it, and whether there is room.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::amount;
use crate::quantity::Quantity;
use crate::{pod, walk};

/// Amounts by the names that quotas bound.
pub type Usage = BTreeMap<String, Quantity>;

/// What one object of a resource uses (pkg/quota/v1/evaluator/core).
pub fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let mut used = Usage::new();
    let mut count = |name: &str, n: usize| {
        used.insert(name.to_owned(), Quantity::whole(i64::try_from(n).unwrap_or(i64::MAX)));
    };
    count(&format!("count/{plural}{}{group}", if group.is_empty() { "" } else { "." }), 1);
    match (group, plural) {
        ("", "pods") if pod::is_finished(object) => {}
        ("", "pods") => {
            count("pods", 1);
            used.extend(compute(walk::at(object, "spec").unwrap_or(&Value::Null)));
        }
        ("", "services") => {
            count("services", 1);
            let ports = walk::list(object, "spec.ports");
            let kind = walk::text(object, "spec.type");
            let all = walk::flag(object, "spec.allocateLoadBalancerNodePorts") != Some(false);
            let given = ports.iter().filter(|port| walk::int(port, "nodePort").unwrap_or(0) != 0).count();
            let nodes = match kind {
                "NodePort" => ports.len(),
                "LoadBalancer" if all => ports.len(),
                "LoadBalancer" => given,
                _ => 0,
            };
            count("services.nodeports", nodes);
            count("services.loadbalancers", usize::from(kind == "LoadBalancer"));
        }
        ("", "persistentvolumeclaims") => {
            count("persistentvolumeclaims", 1);
            if let Some(size) = walk::map(object, "spec.resources.requests").get("storage").and_then(amount) {
                used.insert("requests.storage".into(), size);
            }
        }
        ("", "replicationcontrollers" | "secrets" | "configmaps" | "resourcequotas") => count(plural, 1),
        _ => {}
    }
    used
}

/// The sum of the containers, or the largest of those that run before them.
fn compute(spec: &Value) -> Usage {
    let of = |container: &Value| {
        let mut used = Usage::new();
        for (name, value) in walk::map(container, "resources.requests") {
            let Some(value) = amount(value) else { continue };
            if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                used.insert(name.clone(), value);
            }
            used.insert(format!("requests.{name}"), value);
        }
        for (name, value) in walk::map(container, "resources.limits") {
            if let (true, Some(value)) =
                (matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage"), amount(value))
            {
                used.insert(format!("limits.{name}"), value);
            }
        }
        used
    };
    let mut total = Usage::new();
    for container in walk::list(spec, "containers") {
        add(&mut total, &of(container));
    }
    let mut before = Usage::new();
    for container in walk::list(spec, "initContainers") {
        if walk::text(container, "restartPolicy") == "Always" {
            add(&mut total, &of(container));
            add(&mut before, &of(container));
        } else {
            for (name, value) in of(container) {
                let beside = before.get(&name).copied().unwrap_or(Quantity::ZERO) + value;
                let most = total.entry(name).or_insert(beside);
                *most = (*most).max(beside);
            }
        }
    }
    for (name, value) in walk::map(spec, "overhead") {
        if let Some(value) = amount(value) {
            for name in [name.clone(), format!("requests.{name}"), format!("limits.{name}")] {
                if let Some(sum) = total.get_mut(&name) {
                    *sum = *sum + value;
                }
            }
        }
    }
    total
}

/// Adds one usage to another.
pub fn add(to: &mut Usage, more: &Usage) {
    for (name, value) in more {
        let sum = to.entry(name.clone()).or_insert(Quantity::ZERO);
        *sum = *sum + *value;
    }
}

/// Whether a quota counts an object, by its scopes. Only pods have any.
pub fn counts(quota: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let scopes: Vec<&str> = walk::list(quota, "spec.scopes").iter().filter_map(Value::as_str).collect();
    let expressions = walk::list(quota, "spec.scopeSelector.matchExpressions");
    if (group, plural) != ("", "pods") {
        return scopes.is_empty() && expressions.is_empty();
    }
    scopes.iter().all(|scope| in_scope(scope, object))
        && expressions.iter().all(|expression| {
            let scope = walk::text(expression, "scopeName");
            if scope != "PriorityClass" {
                return in_scope(scope, object);
            }
            let class = walk::text(object, "spec.priorityClassName");
            let named = walk::list(expression, "values").iter().any(|value| value == class);
            match walk::text(expression, "operator") {
                "In" => named,
                "NotIn" => !named,
                "Exists" => !class.is_empty(),
                _ => class.is_empty(),
            }
        })
}

fn in_scope(scope: &str, object: &Value) -> bool {
    let ends = walk::int(object, "spec.activeDeadlineSeconds").is_some_and(|n| n >= 0);
    let best_effort = || pod::quality_of_service(object) == "BestEffort";
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => !walk::text(object, "spec.priorityClassName").is_empty(),
        "CrossNamespacePodAffinity" => crosses(object),
        _ => false,
    }
}

fn crosses(object: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let at = |when: &str| format!("spec.affinity.{kind}.{when}DuringSchedulingIgnoredDuringExecution");
        let required = walk::list(object, &at("required")).iter();
        let preferred =
            walk::list(object, &at("preferred")).iter().filter_map(|p| walk::at(p, "podAffinityTerm"));
        required.chain(preferred).any(|term| {
            !walk::list(term, "namespaces").is_empty() || walk::at(term, "namespaceSelector").is_some()
        })
    })
}

/// What a quota bounds: the amounts of `field` (`spec.hard`, `status.hard`, `status.used`).
pub fn amounts(quota: &Value, field: &str) -> Usage {
    walk::map(quota, field).iter().filter_map(|(name, value)| Some((name.clone(), amount(value)?))).collect()
}

/// The amounts as they stand in an object.
pub fn to_object(usage: &Usage) -> Map<String, Value> {
    usage.iter().map(|(name, value)| (name.clone(), value.to_string().into())).collect()
}

fn pretty(usage: &Usage, names: &BTreeSet<&String>) -> String {
    let shown =
        names.iter().map(|name| format!("{name}={}", usage.get(*name).copied().unwrap_or(Quantity::ZERO)));
    shown.collect::<Vec<_>>().join(",")
}

/// Charges a new object (or what a changed one uses more) to a quota: the quota as it is then, none if it doesn't care; or
/// why there is no room (plugin/pkg/admission/resourcequota).
pub fn charge(
    quota: &Value,
    group: &str,
    plural: &str,
    object: &Value,
    old: Option<&Value>,
) -> Result<Option<Value>, String> {
    if !counts(quota, group, plural, object) {
        return Ok(None);
    }
    let name = crate::meta::name(quota);
    let hard = amounts(quota, "status.hard");
    if old.is_none() && (group, plural) == ("", "pods") {
        specified(&hard, object).map_err(|why| format!("failed quota: {name}: {why}"))?;
    }
    let mut more = usage(group, plural, object);
    if let Some(old) = old.filter(|old| counts(quota, group, plural, old)) {
        for (name, value) in usage(group, plural, old) {
            if let Some(now) = more.get_mut(&name) {
                *now = *now - value;
            }
        }
    }
    more.retain(|name, value| hard.contains_key(name) && *value > Quantity::ZERO);
    if more.is_empty() {
        return Ok(None);
    }
    let used = amounts(quota, "status.used");
    if let Some(unknown) = more.keys().find(|name| !used.contains_key(*name)) {
        return Err(format!("status unknown for quota: {name}, resources: {unknown}"));
    }
    let mut then = used.clone();
    add(&mut then, &more);
    let over: BTreeSet<&String> = more.keys().filter(|name| then.get(*name) > hard.get(*name)).collect();
    if !over.is_empty() {
        return Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            pretty(&more, &over),
            pretty(&used, &over),
            pretty(&hard, &over)
        ));
    }
    let mut quota = quota.clone();
    walk::set(&mut quota, "status.used", json!(to_object(&then)));
    Ok(Some(quota))
}

/// Where a quota bounds what containers ask for, each container must say it.
fn specified(hard: &Usage, object: &Value) -> Result<(), String> {
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let containers = ["initContainers", "containers"].into_iter();
    for container in containers.flat_map(|list| walk::list(object, &format!("spec.{list}"))) {
        let alone = json!({"containers": [container]});
        let has = compute(&alone);
        for name in super::POD_COMPUTE {
            if hard.contains_key(name) && !has.contains_key(name) {
                missing.entry(name).or_default().insert(walk::text(container, "name"));
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let parts = missing.iter().map(|(name, containers)| {
        format!("{name} for: {}", containers.iter().copied().collect::<Vec<_>>().join(","))
    });
    Err(format!("must specify {}", parts.collect::<Vec<_>>().join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(hard: Value, used: Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
    }

    #[test]
    fn a_pod_is_charged_by_its_containers_and_refused_when_there_is_no_room() {
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"cpu": "1"}}},
            {"name": "b", "resources": {"requests": {"cpu": "300m", "memory": "64Mi"}, "limits": {"cpu": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "2"}}}]}});
        let used = usage("", "pods", &pod);
        assert_eq!(used["pods"].to_string(), "1");
        assert_eq!(used["cpu"].to_string(), "2");
        assert_eq!(used["requests.memory"].to_string(), "128Mi");
        assert_eq!(used["limits.cpu"].to_string(), "2");
        let room = quota(json!({"pods": "2", "count/pods": "5"}), json!({"pods": "1", "count/pods": "1"}));
        let then = charge(&room, "", "pods", &pod, None).unwrap().unwrap();
        assert_eq!(then["status"]["used"], json!({"count/pods": "2", "pods": "2"}));
        assert_eq!(
            charge(&then, "", "pods", &pod, None),
            Err("exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2".into())
        );
        let silent = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        let strict = quota(json!({"cpu": "2", "memory": "1Gi"}), json!({"cpu": "0", "memory": "0"}));
        assert_eq!(
            charge(&strict, "", "pods", &silent, None),
            Err("failed quota: q: must specify cpu for: a,b; memory for: a,b".into())
        );
    }

    #[test]
    fn a_scope_says_which_pods_are_meant() {
        let mut bound = quota(json!({"pods": "1"}), json!({"pods": "1"}));
        bound["spec"]["scopes"] = json!(["BestEffort"]);
        let heavy = json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}});
        let light = json!({"spec": {"containers": [{"name": "a"}]}});
        assert_eq!(charge(&bound, "", "pods", &heavy, None), Ok(None));
        assert!(charge(&bound, "", "pods", &light, None).is_err());
        assert!(!counts(&bound, "", "services", &json!({})));
    }

    #[test]
    fn a_service_is_charged_for_what_a_change_adds() {
        let quota = quota(json!({"services.nodeports": "2"}), json!({"services.nodeports": "1"}));
        let of = |kind: &str| json!({"spec": {"type": kind, "ports": [{"port": 1}, {"port": 2}]}});
        let refused = charge(&quota, "", "services", &of("NodePort"), Some(&of("ClusterIP")));
        assert_eq!(
            refused,
            Err("exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=1, limited: \
                 services.nodeports=2"
                .into())
        );
        assert_eq!(charge(&quota, "", "services", &of("NodePort"), Some(&of("NodePort"))), Ok(None));
    }
}
