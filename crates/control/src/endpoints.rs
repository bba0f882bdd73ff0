//! The legacy Endpoints of a Service: the same pods as its EndpointSlices, in the older shape.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::DeleteParams;

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Result};
use crate::pods;
use crate::queue::Done;
use crate::slices::{
    HEADLESS, TRIGGER_TIME, has_selector, is_headless, is_included, is_open, pod_ip, resolve,
};

/// The label that names the controller that owns Endpoints.
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
/// At most so many addresses are in one Endpoints object.
const CAPACITY: usize = 1000;
/// What says that there were more.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    let existing = cluster.find::<Endpoints>(key);
    let Some(service) = cluster.find::<Service>(key) else {
        cluster.endpoints_triggers.forget(key);
        // Endpoints have no owner reference: whoever made them ends them with the Service. Those that somebody else
        // made (a leader election) stay.
        if let Some(existing) = existing
            && existing.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER)
        {
            cluster.delete(existing.as_ref(), DeleteParams::default()).await?;
        }
        return Ok(Done::Settled);
    };
    if service.metadata.deletion_timestamp.is_some()
        || !has_selector(&service)
        || !is_open(cluster, &key.namespace)
    {
        return Ok(Done::Settled);
    }
    let members = cluster.select::<Pod>(&key.namespace, |pod| pods::selects(&service, pod.labels()));
    let trigger = cluster.endpoints_triggers.look(key, &service, &members).map(|time| time.to_string());
    match (existing, desired(&service, &members)) {
        (None, mut desired) => {
            let annotations = desired.metadata.annotations.get_or_insert_default();
            annotations.extend(trigger.map(|time| (TRIGGER_TIME.to_owned(), time)));
            cluster.create(&desired).await?;
        }
        (Some(existing), desired) if !same(&existing, &desired) => {
            let mut metadata = existing.metadata.clone();
            metadata.labels = desired.metadata.labels;
            let annotations = metadata.annotations.get_or_insert_default();
            annotations.remove(OVER_CAPACITY);
            annotations.remove(TRIGGER_TIME);
            annotations.extend(desired.metadata.annotations.unwrap_or_default());
            annotations.extend(trigger.map(|time| (TRIGGER_TIME.to_owned(), time)));
            cluster.replace(&Endpoints { metadata, subsets: desired.subsets }).await?;
        }
        _ => {}
    }
    Ok(Done::Settled)
}

/// Whether there is nothing to write.
fn same(existing: &Endpoints, desired: &Endpoints) -> bool {
    existing.subsets.as_deref().unwrap_or_default() == desired.subsets.as_deref().unwrap_or_default()
        && existing.labels() == desired.labels()
        && existing.annotations().get(OVER_CAPACITY) == desired.annotations().get(OVER_CAPACITY)
}

/// The Endpoints that a Service with these pods should have.
fn desired(service: &Service, members: &[Arc<Pod>]) -> Endpoints {
    let spec = service.spec.as_ref();
    let publish = spec.and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let family = spec
        .and_then(|spec| spec.ip_families.as_deref())
        .and_then(|families| families.first().map(String::as_str));
    // By port, since a subset says that each of its addresses has each of its ports.
    type Ports = Vec<(String, i32, String, Option<String>)>;
    let mut by_ports: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let (mut total, mut truncated) = (0, false);
    for pod in members.iter().filter(|pod| is_included(pod) && (publish || !pods::is_terminating(pod))) {
        let ip = match family {
            Some(family) => pod_ip(pod, family),
            None => pod.status.as_ref().and_then(|status| status.pod_ip.clone()),
        };
        let Some(ip) = ip else { continue };
        let mut ports: Ports = resolve(service, pod)
            .into_iter()
            .map(|port| {
                (
                    port.name.unwrap_or_default(),
                    port.port.unwrap_or_default(),
                    port.protocol.unwrap_or_default(),
                    port.app_protocol,
                )
            })
            .collect();
        ports.sort();
        let headless_without_ports = is_headless(service) && spec.is_some_and(|spec| spec.ports.is_none());
        if ports.is_empty() && !headless_without_ports {
            continue;
        }
        if total == CAPACITY {
            truncated = true;
            continue;
        }
        total += 1;
        let address = address(service, pod, ip);
        let (ready, not_ready) = by_ports.entry(ports).or_default();
        if publish || pods::is_ready(pod) { ready.push(address) } else { not_ready.push(address) }
    }
    let subsets: Vec<EndpointSubset> = by_ports
        .into_iter()
        .map(|(ports, (mut ready, mut not_ready))| {
            ready.sort_by(|a, b| a.ip.cmp(&b.ip));
            not_ready.sort_by(|a, b| a.ip.cmp(&b.ip));
            let ports: Vec<EndpointPort> = ports
                .into_iter()
                .map(|(name, port, protocol, app_protocol)| EndpointPort {
                    name: (!name.is_empty()).then_some(name),
                    port,
                    protocol: Some(protocol),
                    app_protocol,
                })
                .collect();
            EndpointSubset {
                addresses: (!ready.is_empty()).then_some(ready),
                not_ready_addresses: (!not_ready.is_empty()).then_some(not_ready),
                ports: (!ports.is_empty()).then_some(ports),
            }
        })
        .collect();
    let mut labels = service.labels().clone();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: truncated
                .then(|| BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())])),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

fn address(service: &Service, pod: &Pod, ip: String) -> EndpointAddress {
    let hostname = pod
        .spec
        .as_ref()
        .filter(|spec| spec.subdomain.as_deref() == service.metadata.name.as_deref())
        .and_then(|spec| spec.hostname.clone())
        .filter(|hostname| !hostname.is_empty());
    EndpointAddress {
        hostname,
        ip,
        node_name: pods::node_name(pod).map(str::to_owned),
        target_ref: Some(pods::reference(pod)),
    }
}
