//! EndpointSlices of Endpoints that somebody writes for a Service without a selector: observe, decide, write
//! (controller/endpointslicemirroring).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::DeleteParams;

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Result};
use crate::owned::owner_of;
use crate::queue::Done;
use crate::slices::{MANAGED_BY, SERVICE_NAME, TRIGGER_TIME, is_open};

/// The name of Kubernetes' own controller, by which clients know its slices.
pub(crate) const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Of one subset so many addresses are taken over (`--mirroring-max-endpoints-per-subset`).
const MOST: usize = 1000;

/// Whether these Endpoints are to be mirrored at all.
fn wanted(endpoints: &Endpoints, service: &Service) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_none_or(|selector| selector.is_empty())
        && service.metadata.deletion_timestamp.is_none()
        && endpoints.metadata.deletion_timestamp.is_none()
        && endpoints.labels().get(SKIP).is_none_or(|skip| skip != "true")
        && !endpoints.annotations().contains_key(LEADER)
}

/// The slices that Endpoints mean: one for each subset and family, no larger than `max`.
fn desired(endpoints: &Endpoints, max: usize) -> Vec<EndpointSlice> {
    let mut labels = endpoints.labels().clone();
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.annotations().clone();
    annotations.retain(|key, _| key != TRIGGER_TIME && key != LAST_APPLIED);
    let mut slices = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: port.protocol.clone(),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let mut families: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(not_ready).take(MOST) {
            if let Some((family, endpoint)) = endpoint(address, ready) {
                families.entry(family).or_default().push(endpoint);
            }
        }
        for (family, all) in families {
            for some in all.chunks(max.max(1)) {
                slices.push(EndpointSlice {
                    metadata: ObjectMeta {
                        generate_name: Some(format!("{}-", endpoints.name_any())),
                        namespace: endpoints.namespace(),
                        labels: Some(labels.clone()),
                        annotations: (!annotations.is_empty()).then(|| annotations.clone()),
                        owner_references: Some(vec![owner_of(endpoints)]),
                        ..ObjectMeta::default()
                    },
                    address_type: family.to_owned(),
                    endpoints: Some(some.to_vec()),
                    ports: Some(ports.clone()),
                });
            }
        }
    }
    slices
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Option<(&'static str, Endpoint)> {
    let ip: IpAddr = address.ip.parse().ok()?;
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    };
    Some((if ip.is_ipv4() { "IPv4" } else { "IPv6" }, endpoint))
}

/// What is to be made, changed and removed so that `have` becomes `want`: slices of the same ports keep their names, and others
/// if they can.
fn changes(
    have: &[Arc<EndpointSlice>],
    want: Vec<EndpointSlice>,
) -> (Vec<EndpointSlice>, Vec<EndpointSlice>, Vec<Arc<EndpointSlice>>) {
    let (mut create, mut update, mut left) = (Vec::new(), Vec::new(), have.to_vec());
    let mut open = Vec::new();
    // What is as it should be stays first.
    for slice in want {
        let same = |old: &Arc<EndpointSlice>| {
            old.address_type == slice.address_type
                && old.ports == slice.ports
                && old.endpoints == slice.endpoints
                && old.metadata.labels == slice.metadata.labels
                && old.metadata.annotations == slice.metadata.annotations
                && old.metadata.owner_references == slice.metadata.owner_references
        };
        match left.iter().position(same) {
            Some(at) => drop(left.remove(at)),
            None => open.push(slice),
        }
    }
    let rewritten = |old: &EndpointSlice, slice: EndpointSlice| {
        let mut old = old.clone();
        old.ports = slice.ports;
        old.endpoints = slice.endpoints;
        old.metadata.labels = slice.metadata.labels;
        old.metadata.annotations = slice.metadata.annotations;
        old.metadata.owner_references = slice.metadata.owner_references;
        old
    };
    let mut fresh = Vec::new();
    for slice in open {
        match left.iter().position(|old| old.address_type == slice.address_type && old.ports == slice.ports) {
            Some(at) => update.push(rewritten(&left.remove(at), slice)),
            None => fresh.push(slice),
        }
    }
    // What would be deleted takes over what would be created (`recycleSlices`).
    for slice in fresh {
        match left.iter().position(|old| old.address_type == slice.address_type) {
            Some(at) => update.push(rewritten(&left.remove(at), slice)),
            None => create.push(slice),
        }
    }
    (create, update, left)
}

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    if !is_open(cluster, &key.namespace) {
        return Ok(Done::Settled);
    }
    let have = cluster.select::<EndpointSlice>(&key.namespace, |slice| {
        let labels = slice.labels();
        labels.get(SERVICE_NAME) == Some(&key.name) && labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER)
    });
    let (endpoints, service) = (cluster.find::<Endpoints>(key), cluster.find::<Service>(key));
    let want = match (endpoints, service) {
        (Some(endpoints), Some(service)) if wanted(&endpoints, &service) => {
            desired(&endpoints, cluster.config.max_endpoints_per_slice)
        }
        _ => Vec::new(),
    };
    let (create, update, delete) = changes(&have, want);
    for slice in &create {
        cluster.create(slice).await?;
    }
    for slice in &update {
        cluster.replace(slice).await?;
    }
    for slice in &delete {
        cluster.delete(slice.as_ref(), DeleteParams::default()).await?;
    }
    Ok(Done::Settled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_subset_becomes_a_slice_a_family_and_a_change_keeps_its_name() {
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "e", "namespace": "n", "uid": "u", "labels": {"a": "b"},
                "annotations": {"x": "y", LAST_APPLIED: "{}"}},
            "subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "notReadyAddresses": [{"ip": "10.0.0.2"}], "ports": [{"port": 80, "protocol": "TCP"}]}]}))
        .expect("endpoints");
        let slices = desired(&endpoints, 100);
        assert_eq!(slices.iter().map(|s| s.address_type.as_str()).collect::<Vec<_>>(), ["IPv4", "IPv6"]);
        let four = slices[0].endpoints.clone().unwrap_or_default();
        let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready);
        assert_eq!(four.iter().map(ready).collect::<Vec<_>>(), [Some(true), Some(false)]);
        assert_eq!(slices[0].annotations().keys().collect::<Vec<_>>(), ["x"]);
        assert_eq!(slices[0].labels()[MANAGED_BY], MANAGER);
        let mut old = slices[0].clone();
        old.metadata.name = Some("e-1".into());
        old.endpoints = Some(Vec::new());
        let (create, update, delete) = changes(&[Arc::new(old.clone())], slices.clone());
        assert_eq!((create.len(), update.len(), delete.len()), (1, 1, 0));
        assert_eq!(update[0].name_any(), "e-1");
        old.ports = None;
        let (create, update, delete) = changes(&[Arc::new(old)], slices);
        assert_eq!((create.len(), update.len(), delete.len()), (1, 1, 0), "one of other ports is taken over");
    }
}
