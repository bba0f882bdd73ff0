//! The ranges that Services' addresses come from, and the addresses that are taken.
//!
//! A Service gets its address in the transaction that writes it; here only what others did to the objects is put right
//! (in Kubernetes: controller/servicecidrs, and registry/core/service/ipallocator/controller).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, IPAddressSpec, ParentReference, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use crate::cluster::{Cluster, Error, Result, is};
use crate::queue::Done;
use crate::recorder::Severity;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const SOURCE: &str = "ipallocator-repair-controller";

/// What a range is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It is new: it gets its finalizer.
    Hold,
    /// It gives addresses.
    Ready,
    /// It is deleted, and there are addresses that would belong to no range.
    Blocked,
    /// It is deleted, and nobody needs it.
    LetGo,
}

fn ranges(cidr: &ServiceCIDR) -> Vec<IpNet> {
    let all = cidr.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    all.filter_map(|range| range.parse().ok()).collect()
}

/// Decides. `others` are the other ranges that stay, `taken` the addresses of Services.
fn next(cidr: &ServiceCIDR, others: &[IpNet], taken: &[IpAddr]) -> Next {
    if cidr.metadata.deletion_timestamp.is_none() {
        let held = cidr.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
        return if held { Next::Ready } else { Next::Hold };
    }
    let orphaned = |ip: &IpAddr| {
        ranges(cidr).iter().any(|range| range.contains(ip)) && !others.iter().any(|range| range.contains(ip))
    };
    if taken.iter().any(orphaned) { Next::Blocked } else { Next::LetGo }
}

/// A ServiceCIDR.
pub(crate) async fn reconcile_range(cluster: &Cluster, name: &str) -> Result<Done> {
    let Some(cidr) = cluster.get::<ServiceCIDR>("", name) else { return Ok(Done::Settled) };
    let others = cluster.all::<ServiceCIDR>(|other| other.name_any() != name);
    let others: Vec<IpNet> = others.iter().flat_map(|other| ranges(other)).collect();
    let taken = cluster.all::<IPAddress>(is_allocated);
    let taken: Vec<IpAddr> = taken.iter().filter_map(|ip| ip.name_any().parse().ok()).collect();
    match next(&cidr, &others, &taken) {
        Next::Hold => {
            let mut finalizers = cidr.finalizers().to_vec();
            finalizers.push(FINALIZER.to_owned());
            cluster.patch(cidr.as_ref(), json!({"metadata": {"finalizers": finalizers}})).await?;
        }
        Next::Ready => ready(cluster, &cidr, true, "", "Kubernetes Service CIDR is ready").await?,
        Next::Blocked => {
            let text = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new \
                        ServiceCIDR";
            ready(cluster, &cidr, false, "Terminating", text).await?;
        }
        Next::LetGo => {
            let finalizers: Vec<_> = cidr.finalizers().iter().filter(|f| *f != FINALIZER).collect();
            if finalizers.len() < cidr.finalizers().len() {
                cluster.patch(cidr.as_ref(), json!({"metadata": {"finalizers": finalizers}})).await?;
            }
        }
    }
    Ok(Done::Settled)
}

async fn ready(
    cluster: &Cluster,
    cidr: &Arc<ServiceCIDR>,
    yes: bool,
    reason: &str,
    message: &str,
) -> Result<()> {
    let conditions = cidr.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let status = if yes { "True" } else { "False" };
    let old = conditions.clone().find(|condition| condition.type_ == "Ready");
    if old.is_some_and(|old| old.status == status && old.reason == reason) {
        return Ok(());
    }
    let condition = Condition {
        type_: "Ready".into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Time(Timestamp::now()),
        observed_generation: None,
    };
    let mut all: Vec<Condition> = conditions.filter(|c| c.type_ != "Ready").cloned().collect();
    all.push(condition);
    cluster.patch_status(cidr.as_ref(), json!({"status": {"conditions": all}})).await.map(drop)
}

/// Whether the address is a Service's by allocation, not somebody's own object.
pub(crate) fn is_allocated(address: &IPAddress) -> bool {
    address.labels().get(MANAGED_BY.0).is_some_and(|by| by == MANAGED_BY.1)
}

/// The Service that an address belongs to.
pub(crate) fn parent(address: &IPAddress) -> Option<(&str, &str)> {
    let parent = &address.spec.parent_ref;
    let service = parent.resource == "services" && parent.group.as_deref().unwrap_or("").is_empty();
    service.then(|| (parent.namespace.as_deref().unwrap_or(""), parent.name.as_str()))
}

fn has(service: &Service, address: &str) -> bool {
    cluster_ips(service).iter().any(|ip| ip == address)
}

/// The addresses of a Service, in their canonical form.
pub(crate) fn cluster_ips(service: &Service) -> Vec<String> {
    let Some(spec) = &service.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let all = spec.cluster_ips.iter().flatten();
    all.filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.to_string()).collect()
}

/// An address: it goes if no Service has it, and comes back if one has.
pub(crate) async fn reconcile_address(cluster: &Cluster, name: &str) -> Result<Done> {
    match cluster.get::<IPAddress>("", name) {
        Some(address) if is_allocated(&address) => {
            let (namespace, service) = parent(&address).unwrap_or_default();
            let known = cluster.get::<Service>(namespace, service);
            if known.is_some_and(|service| has(&service, name)) {
                return Ok(Done::Settled);
            }
            // Both are written at once, but seen by two watches: the API itself says whether the Service is there.
            let live = if service.is_empty() {
                None
            } else {
                Api::<Service>::namespaced(cluster.client.clone(), namespace).get_opt(service).await?
            };
            if live.is_some_and(|service| has(&service, name)) {
                return Ok(Done::Settled);
            }
            let text = format!(
                "IPAddress: {name} for Service {namespace}/{service} has a wrong reference; cleaning up"
            );
            cluster.recorder.note(address.as_ref(), SOURCE, Severity::Warning, "IPAddressNotAllocated", text);
            cluster.delete(address.as_ref(), DeleteParams::default()).await?;
        }
        Some(_) => {}
        None => {
            let owner = cluster.all::<Service>(|service| has(service, name));
            let Some(service) = owner.first() else { return Ok(Done::Settled) };
            let api =
                Api::<Service>::namespaced(cluster.client.clone(), &service.namespace().unwrap_or_default());
            let live = api.get_opt(&service.name_any()).await?;
            if !live.is_some_and(|live| has(&live, name) && live.metadata.deletion_timestamp.is_none()) {
                return Ok(Done::Settled);
            }
            match cluster.create(&address_of(service, name)).await {
                Err(Error::Api(error)) if is(&error, 409) => {}
                made => {
                    made?;
                    let text = format!("Cluster IP [IPv4]: {name} is not allocated; repairing");
                    let reason = "ClusterIPNotAllocated";
                    cluster.recorder.note(service.as_ref(), SOURCE, Severity::Warning, reason, text);
                }
            }
        }
    }
    Ok(Done::Settled)
}

fn address_of(service: &Service, name: &str) -> IPAddress {
    let family = if name.contains(':') { "IPv6" } else { "IPv4" };
    IPAddress {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([
                (FAMILY.to_owned(), family.to_owned()),
                (MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned()),
            ])),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec {
            parent_ref: ParentReference {
                group: None,
                resource: "services".into(),
                namespace: service.namespace(),
                name: service.name_any(),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(range: &str, deleted: bool) -> ServiceCIDR {
        let mut object =
            json!({"metadata": {"name": "c", "finalizers": [FINALIZER]}, "spec": {"cidrs": [range]}});
        if deleted {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        serde_json::from_value(object).expect("a range")
    }

    #[test]
    fn a_deleted_range_stays_while_an_address_would_belong_to_no_other() {
        let net = |text: &str| text.parse::<IpNet>().expect("a range");
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let small = cidr("10.1.0.0/24", true);
        assert_eq!(next(&small, &[], &[ip("10.1.0.7")]), Next::Blocked);
        assert_eq!(next(&small, &[], &[ip("10.2.0.7")]), Next::LetGo);
        assert_eq!(next(&small, &[net("10.1.0.0/16")], &[ip("10.1.0.7")]), Next::LetGo);
        assert_eq!(next(&cidr("10.1.0.0/24", false), &[], &[]), Next::Ready);
    }
}
