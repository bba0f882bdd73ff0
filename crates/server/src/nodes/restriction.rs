//! What a node may write: itself, its lease, its pods' status, and tokens for its pods (Kubernetes' admission plugin
//! NodeRestriction, which sees the objects that the authorizer can't).

use std::collections::BTreeSet;

use portolan_api::fielderror::quote;
use portolan_api::{Status, meta, walk};
use serde_json::Value;

use super::node_of;
use crate::attributes::forbidden;
use crate::auth::Identity;

/// A write that a node asks for.
pub(crate) struct Write<'a> {
    pub group: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    /// The object's name; at creation that of the new object.
    pub name: &'a str,
    /// What it shall become; none for a deletion.
    pub new: Option<&'a Value>,
    /// What it is; for a subresource that is made, the object it belongs to; none for a creation.
    pub old: Option<&'a Value>,
    /// The pod that a token shall be bound to, if it is there.
    pub pod: Option<&'a Value>,
    /// The UID of the node's own object.
    pub node_uid: &'a str,
}

/// Refuses what is none of the node's business. Who is no node passes.
pub(crate) fn confine(user: &Identity, write: &Write<'_>) -> Result<(), Status> {
    let Some(node) = node_of(user) else { return Ok(()) };
    let why = match (write.group, write.resource, write.subresource) {
        _ if node.is_empty() => Err(format!("could not determine node from user {}", quote(&user.user))),
        ("", "pods", "") => pod(node, write),
        ("", "pods", "status") => pod_status(node, write),
        ("", "pods", "eviction") if bound(write.old) == node => Ok(()),
        ("", "pods", "eviction") => {
            Err(format!("node {node} can only evict pods with spec.nodeName set to itself"))
        }
        ("", "pods", other) => Err(format!(
            "unexpected pod subresource {}, only 'status' and 'eviction' are allowed",
            quote(other)
        )),
        ("", "nodes", _) => own(node, write),
        ("", "serviceaccounts", "token") => token(node, write),
        // That the namespace is that of leases, the authorizer has seen.
        ("coordination.k8s.io", "leases", _) if write.name != node => {
            Err("can only access node lease with the same name as the requesting node".into())
        }
        _ => Ok(()),
    };
    why.map_err(|why| forbidden(write.group, write.resource, write.name, &why))
}

fn bound(pod: Option<&Value>) -> &str {
    pod.map_or("", |pod| walk::text(pod, "spec.nodeName"))
}

fn pod(node: &str, write: &Write<'_>) -> Result<(), String> {
    let named = quote(node);
    match (write.new, write.old) {
        (Some(pod), None) => {
            if meta::annotation(pod, "kubernetes.io/config.mirror").is_none() {
                return Err(format!(
                    "pod does not have \"kubernetes.io/config.mirror\" annotation, node {named} can only create mirror pods"
                ));
            }
            if bound(Some(pod)) != node {
                return Err(format!("node {named} can only create pods with spec.nodeName set to itself"));
            }
            let owner = match meta::owner_references(pod) {
                [owner] => owner,
                [] => {
                    return Err(format!(
                        "node {named} can only create pods with an owner reference set to itself"
                    ));
                }
                _ => {
                    return Err(format!(
                        "node {named} can only create pods with a single owner reference set to itself"
                    ));
                }
            };
            let of = |field| walk::text(owner, field);
            if (of("apiVersion"), of("kind"), of("name")) != ("v1", "Node", node) {
                return Err(format!(
                    "node {named} can only create pods with an owner reference set to itself"
                ));
            }
            if walk::flag(owner, "controller") != Some(true) {
                return Err(format!(
                    "node {named} can only create pods with a controller owner reference set to itself"
                ));
            }
            if walk::flag(owner, "blockOwnerDeletion") == Some(true) {
                return Err(format!("node {named} must not set blockOwnerDeletion on an owner reference"));
            }
            if of("uid") != write.node_uid {
                return Err(format!(
                    "node {node} UID mismatch: expected {} got {}",
                    of("uid"),
                    write.node_uid
                ));
            }
            Ok(())
        }
        (None, old) if bound(old) == node => Ok(()),
        (None, _) => Err(format!("node {named} can only delete pods with spec.nodeName set to itself")),
        (Some(_), Some(_)) => Err(format!(
            "unexpected operation \"UPDATE\", node {named} can only create and delete mirror pods"
        )),
    }
}

fn pod_status(node: &str, write: &Write<'_>) -> Result<(), String> {
    let named = quote(node);
    if bound(write.old) != node {
        return Err(format!(
            "node {named} can only update pod status for pods with spec.nodeName set to itself"
        ));
    }
    let labels =
        |object: Option<&Value>| object.map(|object| meta::labels(object).clone()).unwrap_or_default();
    if labels(write.old) != labels(write.new) {
        return Err(format!("node {named} cannot update labels through pod status"));
    }
    let claims =
        |object: Option<&Value>| object.and_then(|o| walk::at(o, "status.resourceClaimStatuses").cloned());
    if claims(write.old) != claims(write.new) {
        return Err(format!("node {named} cannot update resource claim statues"));
    }
    Ok(())
}

fn own(node: &str, write: &Write<'_>) -> Result<(), String> {
    let named = quote(node);
    if write.name != node {
        return Err(format!("node {named} is not allowed to modify node {}", quote(write.name)));
    }
    let Some(new) = write.new else { return Ok(()) };
    let Some(old) = write.old else {
        let labels = forbidden_labels(new, None);
        return if labels.is_empty() {
            Ok(())
        } else {
            Err(format!("node {named} is not allowed to set the following labels: {labels}"))
        };
    };
    if walk::list(new, "spec.taints") != walk::list(old, "spec.taints") {
        return Err(format!("node {named} is not allowed to modify taints"));
    }
    if meta::owner_references(new) != meta::owner_references(old) {
        return Err(format!("node {named} is not allowed to modify ownerReferences"));
    }
    let labels = forbidden_labels(new, Some(old));
    if labels.is_empty() { Ok(()) } else { Err(format!("is not allowed to modify labels: {labels}")) }
}

/// The labels that differ and that a node may not give itself: they would steer other people's pods to it.
fn forbidden_labels(new: &Value, old: Option<&Value>) -> String {
    let before = old.map(|old| meta::labels(old).clone()).unwrap_or_default();
    let after = meta::labels(new);
    let differs = |key: &&String| before.get(*key) != after.get(*key);
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).filter(differs).collect();
    let within = |namespace: &str, of: &str| {
        namespace == of || namespace.strip_suffix(of).is_some_and(|front| front.ends_with('.'))
    };
    let barred = |key: &str| {
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        let kubernetes = within(namespace, "kubernetes.io") || within(namespace, "k8s.io");
        let own = OWN_LABELS.contains(&key)
            || within(namespace, "kubelet.kubernetes.io")
            || within(namespace, "node.kubernetes.io");
        within(namespace, "node-restriction.kubernetes.io") || (kubernetes && !own)
    };
    keys.into_iter().map(String::as_str).filter(|key| barred(key)).collect::<Vec<_>>().join(", ")
}

/// The labels of Kubernetes that a node sets on itself (kubelet's `well_known_labels.go`).
const OWN_LABELS: [&str; 11] = [
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

fn token(node: &str, write: &Write<'_>) -> Result<(), String> {
    let Some(request) = write.new else { return Ok(()) };
    let of = |field: &str| walk::text(request, &format!("spec.boundObjectRef.{field}"));
    if of("apiVersion") != "v1" || of("kind") != "Pod" || of("name").is_empty() {
        return Err("node requested token not bound to a pod".into());
    }
    let uid = of("uid");
    if uid.is_empty() {
        return Err("node requested token with a pod binding without a uid".into());
    }
    // A pod that isn't there is for the request itself to complain of.
    let Some(pod) = write.pod else { return Ok(()) };
    if uid != meta::uid(pod) {
        return Err(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been \
             deleted and then recreated"
        ));
    }
    if bound(Some(pod)) != node {
        return Err("node requested token bound to a pod scheduled on a different node".into());
    }
    let wanted = walk::list(request, "spec.audiences");
    let audience = match wanted {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Err("node may only request 0 or 1 audiences".into()),
    };
    let sources = walk::list(pod, "spec.volumes").iter().flat_map(|v| walk::list(v, "projected.sources"));
    let mut tokens = sources.filter_map(|source| walk::at(source, "serviceAccountToken"));
    if tokens.any(|token| walk::text(token, "audience") == audience) {
        return Ok(());
    }
    Err(format!(
        "audience {} not found in pod spec volume, system:node:{node} is not authorized to request tokens for this audience",
        quote(audience)
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn write<'a>(
        resource: &'a str,
        name: &'a str,
        new: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> Write<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let group = if resource == "leases" { "coordination.k8s.io" } else { "" };
        Write { group, resource, subresource, name, new, old, pod: None, node_uid: "u" }
    }

    fn refusal(write: &Write<'_>) -> String {
        confine(&Identity::node("n1"), write).err().map(|status| status.message).unwrap_or_default()
    }

    #[test]
    fn a_node_writes_itself_but_not_its_taints_nor_labels_that_steer_pods() {
        let plain = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/os": "linux", "mine": "x"}}});
        assert_eq!(refusal(&write("nodes", "n1", Some(&plain), None)), "");
        assert!(
            refusal(&write("nodes", "n2", Some(&plain), None)).contains("not allowed to modify node \"n2\"")
        );
        let mut steering = plain.clone();
        steering["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] = "".into();
        steering["metadata"]["labels"]["x.node-restriction.kubernetes.io/a"] = "".into();
        let said = refusal(&write("nodes", "n1", Some(&steering), Some(&plain)));
        let labels = "node-role.kubernetes.io/control-plane, x.node-restriction.kubernetes.io/a";
        assert_eq!(said, format!("nodes \"n1\" is forbidden: is not allowed to modify labels: {labels}"));
        let mut tainted = plain.clone();
        tainted["spec"] = json!({"taints": [{"key": "a", "effect": "NoSchedule"}]});
        assert!(refusal(&write("nodes", "n1", Some(&plain), Some(&tainted))).contains("modify taints"));
        assert_eq!(confine(&Identity::admin(), &write("nodes", "n2", Some(&plain), None)), Ok(()));
    }

    #[test]
    fn a_node_writes_the_status_of_its_own_pods_and_deletes_only_these() {
        let pod =
            |node: &str| json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"nodeName": node}});
        let (own, other) = (pod("n1"), pod("n2"));
        assert_eq!(refusal(&write("pods/status", "p", Some(&own), Some(&own))), "");
        assert!(
            refusal(&write("pods/status", "p", Some(&other), Some(&other)))
                .contains("can only update pod status")
        );
        let unlabelled = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}});
        assert!(
            refusal(&write("pods/status", "p", Some(&unlabelled), Some(&own)))
                .contains("cannot update labels")
        );
        assert_eq!(refusal(&write("pods", "p", None, Some(&own))), "");
        assert!(refusal(&write("pods", "p", None, Some(&other))).contains("can only delete pods"));
        assert!(refusal(&write("pods", "p", Some(&own), None)).contains("can only create mirror pods"));
        assert!(
            refusal(&write("leases", "n2", Some(&own), None)).contains("same name as the requesting node")
        );
    }

    #[test]
    fn a_node_gets_tokens_for_its_pods_alone() {
        let request = |uid: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}}});
        let pod = |node: &str| {
            json!({"metadata": {"uid": "1"}, "spec": {"nodeName": node, "volumes": [
                {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]}})
        };
        let ask = |request: &Value, pod: &Value| {
            let write = Write { pod: Some(pod), ..write("serviceaccounts/token", "s", Some(request), None) };
            refusal(&write)
        };
        assert_eq!(ask(&request("1"), &pod("n1")), "");
        assert!(ask(&request("1"), &pod("n2")).contains("scheduled on a different node"));
        assert!(ask(&request("2"), &pod("n1")).contains("does not match the UID"));
        assert!(ask(&request(""), &pod("n1")).contains("without a uid"));
        assert!(ask(&json!({"spec": {}}), &pod("n1")).contains("not bound to a pod"));
        let mut foreign = request("1");
        foreign["spec"]["audiences"] = json!(["vault"]);
        assert!(ask(&foreign, &pod("n1")).contains("audience \"vault\" not found"));
    }
}
