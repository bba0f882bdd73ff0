//! EndpointSlices of a Service: observe, decide, write.

use std::sync::Arc;

use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::DeleteParams;

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Result};
use crate::pods;
use crate::queue::Done;

mod desired; // which slices there should be: pure
mod ports; // which ports of a pod a Service means: pure
pub(crate) mod topology; // hints by the sizes of zones: pure
mod triggers; // when what has slices written was changed

pub use desired::pod_ip;
pub use desired::{Changes, desired_slices};
pub(crate) use desired::{is_headless, is_included};
pub use ports::resolve;
pub use topology::{Shares, shares};
pub(crate) use triggers::Triggers;

/// The label by which a slice belongs to a Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that names the controller that owns a slice.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// What our slices say there; the name that Kubernetes' own controller has, since clients select by it.
pub(crate) const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The label of slices and Endpoints of headless Services.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";
/// The label of a node that names its zone.
pub(crate) const ZONE: &str = "topology.kubernetes.io/zone";
/// The annotation with the time of the change that made a slice be written.
pub(crate) const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Whether this controller cares for the Service at all.
pub(crate) fn has_selector(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() != Some("ExternalName")
            && spec.selector.as_ref().is_some_and(|selector| !selector.is_empty())
    })
}

/// Whether the namespace takes new objects.
pub(crate) fn is_open(cluster: &Cluster, namespace: &str) -> bool {
    cluster
        .get::<Namespace>("", namespace)
        .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
}

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    // A Service that is gone leaves its slices to the collection of garbage.
    let Some(service) = cluster.find::<Service>(key) else {
        cluster.slice_triggers.forget(key);
        return Ok(Done::Settled);
    };
    if service.metadata.deletion_timestamp.is_some()
        || !has_selector(&service)
        || !is_open(cluster, &key.namespace)
    {
        return Ok(Done::Settled);
    }
    let members = cluster.select::<Pod>(&key.namespace, |pod| pods::selects(&service, pod.labels()));
    let trigger = cluster.slice_triggers.look(key, &service, &members);
    let existing = cluster.select::<EndpointSlice>(&key.namespace, |slice| {
        let labels = slice.labels();
        labels.get(SERVICE_NAME) == Some(&key.name) && labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER)
    });
    let node = |name: &str| cluster.get::<Node>("", name);
    let shares = match topology::wanted(&service) {
        true => shares(&cluster.all::<Node>(|_| true)),
        false => Shares::new(),
    };
    let max = cluster.config.max_endpoints_per_slice;
    let changes = desired_slices(&service, &members, &node, &shares, &existing, max);
    apply(cluster, changes.caused(trigger)).await?;
    Ok(Done::Settled)
}

/// What is new becomes visible before what is old disappears: an endpoint that moves is never missing.
async fn apply(cluster: &Cluster, changes: Changes) -> Result<()> {
    try_join_all(changes.create.iter().map(|slice| cluster.create(slice))).await?;
    try_join_all(changes.update.iter().map(|slice| cluster.replace(slice))).await?;
    let delete: Vec<Arc<EndpointSlice>> = changes.delete;
    try_join_all(delete.iter().map(|slice| cluster.delete(slice.as_ref(), DeleteParams::default()))).await?;
    Ok(())
}
