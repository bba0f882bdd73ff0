//! The closed set of wake-ups, and which change causes which.
//!
//! A wake-up only says "look": the reconcile decides from what it then observes.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::cache::{Change, ObjectKey};
use crate::cluster::{Cluster, Kind};
use crate::pods;

/// One thing to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Wake {
    /// The EndpointSlices of a Service.
    Slices(ObjectKey),
    /// The Endpoints of a Service.
    Endpoints(ObjectKey),
    /// The load-balancer addresses of a Service.
    LoadBalancer(ObjectKey),
    /// The ReplicaSets of a Deployment.
    Deployment(ObjectKey),
    /// The pods of a ReplicaSet.
    ReplicaSet(ObjectKey),
    /// All pods that have no node.
    Schedule,
    /// A node: its CIDRs, readiness, taints, and the pods on it. It may be gone.
    Node(String),
    /// A namespace.
    Namespace(String),
    /// The rules of the ClusterRoles that collect those of others.
    Aggregation,
    /// An object with owners, or one that waits for its dependents, by its uid.
    Garbage(String),
}

/// The controller among an object's owners.
pub(crate) fn controller<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object.meta().owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// The controller, if it is of this kind.
pub(crate) fn controller_of_kind<'a, K: Resource>(object: &'a K, kind: &str) -> Option<&'a OwnerReference> {
    controller(object).filter(|owner| owner.kind == kind && owner.api_version.starts_with("apps/"))
}

/// A namespace that is being emptied wants to know of each change inside.
fn emptied<K: Kind>(cluster: &Cluster, change: &Change<K>, wakes: &mut Vec<Wake>) {
    if change.new.is_none()
        && let Some(namespace) = change.old.as_ref().and_then(|object| object.namespace())
        && cluster
            .get::<Namespace>("", &namespace)
            .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
    {
        wakes.push(Wake::Namespace(namespace));
    }
}

pub(crate) fn cluster_role(_: &Cluster, _: &Change<ClusterRole>) -> Vec<Wake> {
    vec![Wake::Aggregation]
}

pub(crate) fn pod(cluster: &Cluster, change: &Change<Pod>) -> Vec<Wake> {
    let mut wakes = BTreeSet::new();
    let namespace = change.last().and_then(|pod| pod.namespace()).unwrap_or_default();
    let labels: Vec<&BTreeMap<String, String>> = change.both().map(|pod| pod.labels()).collect();
    {
        let services = cluster.caches.services.read();
        for service in services.in_namespace(&namespace) {
            if labels.iter().any(|labels| pods::selects(service, labels)) {
                let key = ObjectKey::of(service.as_ref());
                wakes.insert(Wake::Slices(key.clone()));
                wakes.insert(Wake::Endpoints(key));
            }
        }
    }
    for pod in change.both() {
        match controller(pod.as_ref()) {
            Some(owner) if owner.kind == "ReplicaSet" => {
                wakes.insert(Wake::ReplicaSet(ObjectKey::new(&namespace, &owner.name)));
                // A Deployment that recreates waits until its old pods are gone.
                if change.new.is_none()
                    && let Some(set) = cluster.get::<ReplicaSet>(&namespace, &owner.name)
                    && let Some(owner) = controller_of_kind(set.as_ref(), "Deployment")
                {
                    wakes.insert(Wake::Deployment(ObjectKey::new(&namespace, &owner.name)));
                }
            }
            Some(_) => {}
            None => {
                let sets = cluster.caches.replica_sets.read();
                for set in sets.in_namespace(&namespace) {
                    if pods::matches(&set.spec.as_ref().map(|spec| &spec.selector), pod.labels()) {
                        wakes.insert(Wake::ReplicaSet(ObjectKey::of(set.as_ref())));
                    }
                }
            }
        }
    }
    match &change.new {
        Some(pod) => match pods::node_name(pod) {
            None => {
                wakes.insert(Wake::Schedule);
            }
            Some(node) => {
                // Its node may be gone or tainted; and a pod that has ended makes room.
                let moved = change.old.as_ref().is_none_or(|old| pods::node_name(old) != Some(node));
                if moved {
                    wakes.insert(Wake::Node(node.to_owned()));
                }
                if pods::is_terminal(pod) {
                    wakes.insert(Wake::Schedule);
                }
            }
        },
        None => {
            wakes.insert(Wake::Schedule);
        }
    }
    let mut wakes: Vec<Wake> = wakes.into_iter().collect();
    emptied(cluster, change, &mut wakes);
    wakes
}

pub(crate) fn service(cluster: &Cluster, change: &Change<Service>) -> Vec<Wake> {
    let Some(key) = change.last().map(|service| ObjectKey::of(service.as_ref())) else { return Vec::new() };
    let mut wakes = vec![Wake::Slices(key.clone()), Wake::Endpoints(key.clone()), Wake::LoadBalancer(key)];
    emptied(cluster, change, &mut wakes);
    wakes
}

pub(crate) fn slice(cluster: &Cluster, change: &Change<EndpointSlice>) -> Vec<Wake> {
    let mut wakes = Vec::new();
    for slice in change.both() {
        if let Some(service) = slice.labels().get(crate::slices::SERVICE_NAME) {
            let wake = Wake::Slices(ObjectKey::new(&slice.namespace().unwrap_or_default(), service));
            if !wakes.contains(&wake) {
                wakes.push(wake);
            }
        }
    }
    emptied(cluster, change, &mut wakes);
    wakes
}

pub(crate) fn endpoints(cluster: &Cluster, change: &Change<Endpoints>) -> Vec<Wake> {
    let Some(key) = change.last().map(|endpoints| ObjectKey::of(endpoints.as_ref())) else {
        return Vec::new();
    };
    let mut wakes = vec![Wake::Endpoints(key)];
    emptied(cluster, change, &mut wakes);
    wakes
}

pub(crate) fn node(cluster: &Cluster, change: &Change<Node>) -> Vec<Wake> {
    let Some(name) = change.last().map(|node| node.name_any()) else { return Vec::new() };
    let mut wakes = vec![Wake::Node(name.clone()), Wake::Schedule];
    // Endpoints carry their node's zone, and wait for a node that is not known yet.
    let zone = |node: &Node| node.labels().get(crate::slices::ZONE).cloned();
    let same = match (&change.old, &change.new) {
        (Some(old), Some(new)) => zone(old) == zone(new),
        _ => false,
    };
    if !same {
        let pods = cluster.all::<Pod>(|pod| pods::node_name(pod) == Some(&name));
        let services = cluster.caches.services.read();
        for service in services.all() {
            let namespace = service.namespace();
            if pods.iter().any(|pod| pod.namespace() == namespace && pods::selects(service, pod.labels())) {
                wakes.push(Wake::Slices(ObjectKey::of(service.as_ref())));
            }
        }
    }
    wakes
}

pub(crate) fn lease(_: &Cluster, change: &Change<Lease>) -> Vec<Wake> {
    change.last().map(|lease| Wake::Node(lease.name_any())).into_iter().collect()
}

pub(crate) fn namespace(_: &Cluster, change: &Change<Namespace>) -> Vec<Wake> {
    change.last().map(|namespace| Wake::Namespace(namespace.name_any())).into_iter().collect()
}

pub(crate) fn replica_set(cluster: &Cluster, change: &Change<ReplicaSet>) -> Vec<Wake> {
    let Some(set) = change.last() else { return Vec::new() };
    let key = ObjectKey::of(set.as_ref());
    let mut wakes = vec![Wake::ReplicaSet(key.clone())];
    for set in change.both() {
        match controller_of_kind(set.as_ref(), "Deployment") {
            Some(owner) => {
                let wake = Wake::Deployment(ObjectKey::new(&key.namespace, &owner.name));
                if !wakes.contains(&wake) {
                    wakes.push(wake);
                }
            }
            None if controller(set.as_ref()).is_none() => {
                let deployments = cluster.caches.deployments.read();
                for deployment in deployments.in_namespace(&key.namespace) {
                    if pods::matches(&deployment.spec.as_ref().map(|spec| &spec.selector), set.labels()) {
                        wakes.push(Wake::Deployment(ObjectKey::of(deployment.as_ref())));
                    }
                }
            }
            None => {}
        }
    }
    // Its pods may be there already.
    emptied(cluster, change, &mut wakes);
    wakes
}

pub(crate) fn deployment(cluster: &Cluster, change: &Change<Deployment>) -> Vec<Wake> {
    let Some(key) = change.last().map(|object| ObjectKey::of(object.as_ref())) else { return Vec::new() };
    let mut wakes = vec![Wake::Deployment(key)];
    emptied(cluster, change, &mut wakes);
    wakes
}

pub(crate) fn service_account(cluster: &Cluster, change: &Change<ServiceAccount>) -> Vec<Wake> {
    let mut wakes = Vec::new();
    // Each namespace has this one; its loss is made good.
    if change.new.is_none() && change.old.as_ref().is_some_and(|account| account.name_any() == "default") {
        wakes.extend(change.old.as_ref().and_then(|account| account.namespace()).map(Wake::Namespace));
    } else {
        emptied(cluster, change, &mut wakes);
    }
    wakes
}

pub(crate) fn config_map(cluster: &Cluster, change: &Change<ConfigMap>) -> Vec<Wake> {
    let mut wakes = Vec::new();
    match change.last() {
        Some(map) if map.name_any() == crate::namespaces::ROOT_CA => {
            wakes.extend(map.namespace().map(Wake::Namespace));
        }
        _ => emptied(cluster, change, &mut wakes),
    }
    wakes
}
