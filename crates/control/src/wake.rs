//! The closed set of wake-ups, and which change causes which.
//!
//! A wake-up only says "look": the reconcile decides from what it then observes.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, ReplicationController, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
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
    /// The pods of a ReplicationController.
    Replication(ObjectKey),
    /// The pods of a StatefulSet.
    StatefulSet(ObjectKey),
    /// The pods of a DaemonSet.
    DaemonSet(ObjectKey),
    /// The pods of a Job. It may be gone.
    Job(ObjectKey),
    /// The Jobs of a CronJob.
    CronJob(ObjectKey),
    /// The numbers of a PodDisruptionBudget.
    Budget(ObjectKey),
    /// The numbers of a ResourceQuota.
    Quota(ObjectKey),
    /// The EndpointSlices of hand-written Endpoints.
    Mirror(ObjectKey),
    /// An address of a Service.
    Address(String),
    /// A range of addresses.
    ServiceCidr(String),
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
    {
        let budgets = cluster.caches.budgets.read();
        for budget in budgets.in_namespace(&namespace) {
            if labels.iter().any(|labels| crate::budget::covers(budget, labels)) {
                wakes.insert(Wake::Budget(ObjectKey::of(budget.as_ref())));
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
            Some(owner) => {
                let key = ObjectKey::new(&namespace, &owner.name);
                wakes.extend(match owner.kind.as_str() {
                    "ReplicationController" => Some(Wake::Replication(key)),
                    "StatefulSet" => Some(Wake::StatefulSet(key)),
                    "DaemonSet" => Some(Wake::DaemonSet(key)),
                    "Job" => Some(Wake::Job(key)),
                    _ => None,
                });
            }
            None => {
                let controllers = cluster.caches.replication_controllers.read();
                let mine =
                    controllers.in_namespace(&namespace).filter(|rc| crate::replication::selects(rc, pod));
                wakes.extend(mine.map(|rc| Wake::Replication(ObjectKey::of(rc.as_ref()))));
                let daemons = cluster.caches.daemon_sets.read();
                for set in daemons.in_namespace(&namespace) {
                    if pods::matches(&set.spec.as_ref().map(|spec| &spec.selector), pod.labels()) {
                        wakes.insert(Wake::DaemonSet(ObjectKey::of(set.as_ref())));
                    }
                }
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
    let mut wakes = vec![
        Wake::Slices(key.clone()),
        Wake::Endpoints(key.clone()),
        Wake::Mirror(key.clone()),
        Wake::LoadBalancer(key),
    ];
    for service in change.both() {
        wakes.extend(crate::addresses::cluster_ips(service).into_iter().map(Wake::Address));
    }
    emptied(cluster, change, &mut wakes);
    wakes
}

pub(crate) fn slice(cluster: &Cluster, change: &Change<EndpointSlice>) -> Vec<Wake> {
    let mut wakes = Vec::new();
    for slice in change.both() {
        if let Some(service) = slice.labels().get(crate::slices::SERVICE_NAME) {
            let key = ObjectKey::new(&slice.namespace().unwrap_or_default(), service);
            let by = slice.labels().get(crate::slices::MANAGED_BY);
            let mirrored = by.is_some_and(|by| by == crate::mirror::MANAGER);
            let wake = if mirrored { Wake::Mirror(key) } else { Wake::Slices(key) };
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
    let mut wakes = vec![Wake::Endpoints(key.clone()), Wake::Mirror(key)];
    emptied(cluster, change, &mut wakes);
    wakes
}

pub(crate) fn node(cluster: &Cluster, change: &Change<Node>) -> Vec<Wake> {
    let Some(name) = change.last().map(|node| node.name_any()) else { return Vec::new() };
    let mut wakes = vec![Wake::Node(name.clone()), Wake::Schedule];
    let meant = |node: &Node| {
        let spec = node.spec.as_ref();
        (
            node.labels().clone(),
            spec.and_then(|spec| spec.taints.clone()),
            node.metadata.deletion_timestamp.is_some(),
        )
    };
    if change.old.as_deref().map(meant) != change.new.as_deref().map(meant) {
        let sets = cluster.caches.daemon_sets.read();
        wakes.extend(sets.all().map(|set| Wake::DaemonSet(ObjectKey::of(set.as_ref()))));
    }
    // Some Services share their endpoints out by the sizes of zones.
    let size = |node: &Node| {
        crate::slices::topology::size(node).map(|(zone, processors)| (zone.map(str::to_owned), processors))
    };
    if change.old.as_deref().map(size) != change.new.as_deref().map(size) {
        let services = cluster.caches.services.read();
        let wanting = services.all().filter(|service| crate::slices::topology::wanted(service));
        wakes.extend(wanting.map(|service| Wake::Slices(ObjectKey::of(service.as_ref()))));
    }
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
    wakes.extend(budgets(cluster, &key.namespace));
    emptied(cluster, change, &mut wakes);
    wakes
}

pub(crate) fn deployment(cluster: &Cluster, change: &Change<Deployment>) -> Vec<Wake> {
    let Some(key) = change.last().map(|object| ObjectKey::of(object.as_ref())) else { return Vec::new() };
    let mut wakes = vec![Wake::Deployment(key.clone())];
    wakes.extend(budgets(cluster, &key.namespace));
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

/// The budgets of a namespace: how many pods are wanted there is another number now.
fn budgets(cluster: &Cluster, namespace: &str) -> Vec<Wake> {
    let budgets = cluster.caches.budgets.read();
    budgets.in_namespace(namespace).map(|budget| Wake::Budget(ObjectKey::of(budget.as_ref()))).collect()
}

/// An object itself, and the namespace that waits for its end.
fn own<K: Kind>(cluster: &Cluster, change: &Change<K>, wake: impl Fn(ObjectKey) -> Wake) -> Vec<Wake> {
    let Some(key) = change.last().map(|object| ObjectKey::of(object.as_ref())) else { return Vec::new() };
    let mut wakes = vec![wake(key)];
    emptied(cluster, change, &mut wakes);
    wakes
}

pub(crate) fn replication_controller(cluster: &Cluster, change: &Change<ReplicationController>) -> Vec<Wake> {
    let mut wakes = own(cluster, change, Wake::Replication);
    let namespace = change.last().and_then(|object| object.namespace()).unwrap_or_default();
    wakes.extend(budgets(cluster, &namespace));
    wakes
}

pub(crate) fn stateful_set(cluster: &Cluster, change: &Change<StatefulSet>) -> Vec<Wake> {
    let mut wakes = own(cluster, change, Wake::StatefulSet);
    let namespace = change.last().and_then(|object| object.namespace()).unwrap_or_default();
    wakes.extend(budgets(cluster, &namespace));
    wakes
}

pub(crate) fn daemon_set(cluster: &Cluster, change: &Change<DaemonSet>) -> Vec<Wake> {
    own(cluster, change, Wake::DaemonSet)
}

pub(crate) fn revision(cluster: &Cluster, change: &Change<ControllerRevision>) -> Vec<Wake> {
    let mut wakes = Vec::new();
    emptied(cluster, change, &mut wakes);
    wakes
}

pub(crate) fn job(cluster: &Cluster, change: &Change<Job>) -> Vec<Wake> {
    let mut wakes = own(cluster, change, Wake::Job);
    for job in change.both() {
        if let Some(owner) = controller(job.as_ref()).filter(|owner| owner.kind == "CronJob") {
            wakes.push(Wake::CronJob(ObjectKey::new(&job.namespace().unwrap_or_default(), &owner.name)));
        }
    }
    wakes
}

pub(crate) fn cron_job(cluster: &Cluster, change: &Change<CronJob>) -> Vec<Wake> {
    own(cluster, change, Wake::CronJob)
}

pub(crate) fn budget(cluster: &Cluster, change: &Change<PodDisruptionBudget>) -> Vec<Wake> {
    own(cluster, change, Wake::Budget)
}

pub(crate) fn quota(cluster: &Cluster, change: &Change<ResourceQuota>) -> Vec<Wake> {
    // The server charges what is made; to count anew because of that would count before what was made is seen.
    let hard = |quota: &ResourceQuota| quota.spec.as_ref().and_then(|spec| spec.hard.clone());
    let counted = |quota: &ResourceQuota| quota.status.as_ref().and_then(|status| status.hard.clone());
    if change.new.as_ref().is_some_and(|quota| hard(quota) == counted(quota)) {
        return Vec::new();
    }
    own(cluster, change, Wake::Quota)
}

/// The ranges that wait for an address to go, or for another range to come.
fn waiting_ranges(cluster: &Cluster) -> impl Iterator<Item = Wake> {
    let ranges = cluster.all::<ServiceCIDR>(|range| range.metadata.deletion_timestamp.is_some());
    ranges.into_iter().map(|range| Wake::ServiceCidr(range.name_any()))
}

pub(crate) fn address(cluster: &Cluster, change: &Change<IPAddress>) -> Vec<Wake> {
    let mut wakes: Vec<Wake> =
        change.last().map(|address| Wake::Address(address.name_any())).into_iter().collect();
    wakes.extend(waiting_ranges(cluster).filter(|_| change.new.is_none()));
    wakes
}

pub(crate) fn service_cidr(cluster: &Cluster, change: &Change<ServiceCIDR>) -> Vec<Wake> {
    let mut wakes: Vec<Wake> =
        change.last().map(|range| Wake::ServiceCidr(range.name_any())).into_iter().collect();
    wakes.extend(waiting_ranges(cluster));
    wakes
}
