//! ClusterRoles that collect the rules of others: `admin`, `edit` and `view` grow with each role that is labelled for them.

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::ResourceExt;

use crate::cluster::{Cluster, Result};
use crate::pods::matches;
use crate::queue::Done;

/// The rules that a role collects: those of the roles that one of its selectors selects, in the order of their names, each
/// rule once (Kubernetes' clusterroleaggregation controller). `None` for a role that collects nothing.
fn desired(role: &ClusterRole, all: &[&ClusterRole]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    if selectors.is_empty() {
        return None;
    }
    let mut sources: Vec<&ClusterRole> = all
        .iter()
        .copied()
        .filter(|source| source.metadata.name != role.metadata.name)
        .filter(|source| selectors.iter().any(|selector| matches(&Some(selector), source.labels())))
        .collect();
    sources.sort_by_key(|source| source.name_any());
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in sources.iter().flat_map(|source| source.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    Some(rules)
}

/// Gives each collecting role its rules.
pub(crate) async fn reconcile(cluster: &Cluster) -> Result<Done> {
    let roles = cluster.all::<ClusterRole>(|_| true);
    let all: Vec<&ClusterRole> = roles.iter().map(AsRef::as_ref).collect();
    for role in &all {
        let Some(rules) = desired(role, &all) else { continue };
        if role.rules.clone().unwrap_or_default() != rules {
            cluster.patch(*role, serde_json::json!({"rules": rules})).await?;
        }
    }
    // What was written is a change, and wakes this again: roles that collect collecting roles come to rest then.
    Ok(Done::Settled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(value: serde_json::Value) -> ClusterRole {
        serde_json::from_value(value).expect("a role")
    }

    #[test]
    fn a_role_collects_the_rules_of_the_roles_it_selects_each_once_and_never_its_own() {
        let rule = |resource: &str| serde_json::json!({"apiGroups": [""], "resources": [resource], "verbs": ["get"]});
        let labelled = |name: &str, resources: &[&str]| {
            let rules: Vec<_> = resources.iter().map(|resource| rule(resource)).collect();
            role(
                serde_json::json!({"metadata": {"name": name, "labels": {"to-view": "true"}}, "rules": rules}),
            )
        };
        let view = role(serde_json::json!({
            "metadata": {"name": "view", "labels": {"to-view": "true"}}, "rules": [rule("secrets")],
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to-view": "true"}}]},
        }));
        let (b, a) = (labelled("b", &["pods", "nodes"]), labelled("a", &["pods"]));
        let other = role(serde_json::json!({"metadata": {"name": "c"}, "rules": [rule("leases")]}));
        let rules = desired(&view, &[&view, &b, &other, &a]).expect("it collects");
        let resources: Vec<_> =
            rules.iter().map(|rule| rule.resources.clone().unwrap_or_default().join(",")).collect();
        assert_eq!(resources, ["pods", "nodes"]);
        assert_eq!(desired(&other, &[&view, &a]), None);
    }
}
