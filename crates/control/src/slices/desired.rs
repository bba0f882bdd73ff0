//! Which EndpointSlices a Service should have, and the fewest writes that lead there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::topology::{self, Shares};
use super::{HEADLESS, MANAGED_BY, MANAGER, SERVICE_NAME, TRIGGER_TIME, ZONE, resolve};
use crate::pods;

/// The writes that make the slices as they should be.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct Changes {
    /// New slices.
    pub create: Vec<EndpointSlice>,
    /// Slices with new contents, each with the resource version it was decided from.
    pub update: Vec<EndpointSlice>,
    /// Slices that should not be.
    pub delete: Vec<Arc<EndpointSlice>>,
}

impl Changes {
    /// The same, and what is written tells when the change was made that caused it.
    pub(crate) fn caused(mut self, trigger: Option<Timestamp>) -> Changes {
        for slice in self.create.iter_mut().chain(&mut self.update) {
            let mut annotations = slice.metadata.annotations.take().unwrap_or_default();
            annotations.remove(TRIGGER_TIME);
            annotations.extend(trigger.map(|time| (TRIGGER_TIME.to_owned(), time.to_string())));
            slice.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
        }
        self
    }
}

/// A slice on its way from what it is to what it should be.
struct Draft {
    slice: Arc<EndpointSlice>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

type PortsKey = Vec<(String, String, Option<i32>, Option<String>)>;

/// Decides. `pods` are those that the Service selects, `existing` the slices that carry its name and our label; `shares` matter to
/// a Service that wants hints by them (`topology`).
pub fn desired_slices(
    service: &Service,
    pods: &[Arc<Pod>],
    node: &dyn Fn(&str) -> Option<Arc<Node>>,
    shares: &Shares,
    existing: &[Arc<EndpointSlice>],
    max: usize,
) -> Changes {
    let max = max.max(1);
    let mut changes = Changes::default();
    let families = families(service);
    let uid = service.uid();
    // Slices of a former Service of the same name, or of a family that the Service no longer has.
    let (own, foreign): (Vec<_>, Vec<_>) = existing.iter().cloned().partition(|slice| {
        families.contains(&slice.address_type.as_str())
            && slice.owner_references().iter().any(|owner| Some(&owner.uid) == uid.as_ref())
            && slice.metadata.deletion_timestamp.is_none()
    });
    changes.delete.extend(foreign.into_iter().filter(|slice| slice.metadata.deletion_timestamp.is_none()));
    for family in families {
        let own: Vec<Arc<EndpointSlice>> =
            own.iter().filter(|slice| slice.address_type == family).cloned().collect();
        let mut groups = groups(service, family, pods, node);
        if topology::wanted(service) {
            hint_by_size(&mut groups, shares);
        }
        family_changes(service, family, &groups, own, max, &mut changes);
    }
    changes
}

/// A pod that can be an endpoint: not ended, and with an address. Terminating pods are included.
pub(crate) fn is_included(pod: &Pod) -> bool {
    !pods::is_terminal(pod)
        && pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).is_some_and(|ip| !ip.is_empty())
}

/// The pod's address in a family.
pub fn pod_ip(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    listed
        .chain(status.pod_ip.as_deref())
        .find(|ip| ip.parse().is_ok_and(|ip: IpAddr| (family == "IPv6") == ip.is_ipv6()))
        .map(str::to_owned)
}

fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let known = |family: &str| if family == "IPv6" { "IPv6" } else { "IPv4" };
    let listed: Vec<&'static str> = spec
        .and_then(|spec| spec.ip_families.as_deref())
        .unwrap_or_default()
        .iter()
        .map(|f| known(f))
        .collect();
    if !listed.is_empty() {
        return listed;
    }
    match spec.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default() {
        // A headless Service that says nothing may have endpoints of both.
        "" | "None" => vec!["IPv4", "IPv6"],
        ip => vec![if ip.contains(':') { "IPv6" } else { "IPv4" }],
    }
}

/// The endpoints of one family by the ports they have.
fn groups(
    service: &Service,
    family: &str,
    pods: &[Arc<Pod>],
    node: &dyn Fn(&str) -> Option<Arc<Node>>,
) -> BTreeMap<PortsKey, (Vec<EndpointPort>, Vec<Endpoint>)> {
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let mut groups: BTreeMap<PortsKey, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_included(pod)) {
        let Some(address) = pod_ip(pod, family) else { continue };
        let home = pods::node_name(pod).map(|name| (name, node(name)));
        // Without its node the zone is unknown; the node's arrival wakes us again.
        if matches!(home, Some((_, None))) && !publish {
            continue;
        }
        let zone = home.and_then(|(_, node)| node?.labels().get(ZONE).cloned());
        let endpoint = endpoint(service, pod, address, zone, publish);
        let ports = resolve(service, pod);
        groups.entry(ports_key(&ports)).or_insert_with(|| (ports, Vec::new())).1.push(endpoint);
    }
    groups
}

fn endpoint(service: &Service, pod: &Pod, address: String, zone: Option<String>, publish: bool) -> Endpoint {
    let serving = pods::is_ready(pod);
    let terminating = pods::is_terminating(pod);
    let ready = publish || (serving && !terminating);
    let spec = pod.spec.as_ref();
    let hostname = spec
        .filter(|spec| spec.subdomain.as_deref() == service.metadata.name.as_deref())
        .and_then(|spec| spec.hostname.clone())
        .filter(|hostname| !hostname.is_empty());
    let node_name = pods::node_name(pod).map(str::to_owned);
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        deprecated_topology: None,
        hints: hints(service, ready, zone.as_deref(), node_name.as_deref()),
        hostname,
        node_name,
        target_ref: Some(pods::reference(pod)),
        zone,
    }
}

fn hints(service: &Service, ready: bool, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    if topology::wanted(service) {
        return None;
    }
    let wanted = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    if !ready || !matches!(wanted, "PreferClose" | "PreferSameZone" | "PreferSameNode") {
        return None;
    }
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let for_nodes =
        node.filter(|_| wanted == "PreferSameNode").map(|node| vec![ForNode { name: node.to_owned() }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_nodes, for_zones })
}

/// Hints for all ready endpoints, or for none: whoever reads them takes them so.
fn hint_by_size(groups: &mut BTreeMap<PortsKey, (Vec<EndpointPort>, Vec<Endpoint>)>, shares: &Shares) {
    let all = groups.values_mut().flat_map(|(_, desired)| desired);
    let ready =
        |endpoint: &&mut Endpoint| endpoint.conditions.as_ref().is_some_and(|one| one.ready == Some(true));
    let mut ready: Vec<&mut Endpoint> = all.filter(ready).collect();
    // The order decides who is given away: it must not depend on anything else.
    ready.sort_by(|one, other| one.addresses.cmp(&other.addresses));
    let own: Option<Vec<&str>> = ready.iter().map(|endpoint| endpoint.zone.as_deref()).collect();
    let Some(zones) = own.and_then(|own| topology::assign(&own, shares)) else { return };
    for (endpoint, name) in ready.into_iter().zip(zones) {
        endpoint.hints = Some(EndpointHints { for_zones: Some(vec![ForZone { name }]), for_nodes: None });
    }
}

/// The writes for one family, whose endpoints should be `groups` and whose slices are `own`.
fn family_changes(
    service: &Service,
    family: &str,
    groups: &BTreeMap<PortsKey, (Vec<EndpointPort>, Vec<Endpoint>)>,
    own: Vec<Arc<EndpointSlice>>,
    max: usize,
    changes: &mut Changes,
) {
    let mut by_ports: HashMap<PortsKey, Vec<Arc<EndpointSlice>>> = HashMap::new();
    for slice in own {
        by_ports.entry(ports_key(slice.ports.as_deref().unwrap_or_default())).or_default().push(slice);
    }
    let mut fresh: Vec<EndpointSlice> = Vec::new();
    let mut spare: Vec<Arc<EndpointSlice>> = Vec::new();
    for (key, (ports, desired)) in groups {
        let existing = by_ports.remove(key).unwrap_or_default();
        fill(service, family, ports, desired, existing, max, changes, &mut fresh, &mut spare);
    }
    spare.extend(by_ports.into_values().flatten());
    spare.sort_by_key(|slice| slice.name_any());
    if groups.is_empty() {
        // A Service without endpoints has exactly one slice, an empty one: readers can tell "none" from "not yet".
        let kept = spare.iter().position(|slice| {
            slice.endpoints.as_deref().unwrap_or_default().is_empty()
                && slice.ports.as_deref().unwrap_or_default().is_empty()
        });
        match kept {
            Some(at) => {
                let slice = spare.remove(at);
                if *slice.labels() != labels(service) {
                    changes.update.push(rewrite(service, &slice, Vec::new(), Vec::new()));
                }
            }
            None => fresh.push(new_slice(service, family, Vec::new(), Vec::new())),
        }
    }
    // What would be deleted takes over what would be created: one write instead of two.
    let mut spare = spare.into_iter();
    for slice in fresh {
        match spare.next() {
            Some(old) => {
                let mut slice = slice;
                slice.metadata.generate_name = old.metadata.generate_name.clone();
                slice.metadata = ObjectMeta {
                    labels: slice.metadata.labels.take(),
                    annotations: slice.metadata.annotations.take(),
                    ..old.metadata.clone()
                };
                changes.update.push(slice);
            }
            None => changes.create.push(slice),
        }
    }
    changes.delete.extend(spare);
}

/// Distributes the endpoints with one set of ports over its slices.
#[allow(clippy::too_many_arguments)]
fn fill(
    service: &Service,
    family: &str,
    ports: &[EndpointPort],
    desired: &[Endpoint],
    existing: Vec<Arc<EndpointSlice>>,
    max: usize,
    changes: &mut Changes,
    fresh: &mut Vec<EndpointSlice>,
    spare: &mut Vec<Arc<EndpointSlice>>,
) {
    let wanted: HashMap<Identity<'_>, &Endpoint> =
        desired.iter().map(|endpoint| (identity(endpoint), endpoint)).collect();
    let mut placed: HashSet<Identity<'_>> = HashSet::new();
    let labels = labels(service);
    let mut dirty: Vec<Draft> = Vec::new();
    let mut clean: Vec<Draft> = Vec::new();
    // Keep what is right, change what has changed, drop what should not be.
    for slice in &existing {
        let mut draft = Draft { slice: slice.clone(), endpoints: Vec::new(), changed: false };
        for endpoint in slice.endpoints.iter().flatten() {
            match wanted.get_key_value(&identity(endpoint)) {
                Some((key, want)) if draft.endpoints.len() < max && placed.insert(*key) => {
                    draft.changed |= **want != *endpoint;
                    draft.endpoints.push((*want).clone());
                }
                _ => draft.changed = true,
            }
        }
        if draft.endpoints.is_empty() {
            spare.push(slice.clone());
        } else if draft.changed {
            dirty.push(draft);
        } else {
            draft.changed = *slice.labels() != labels;
            if draft.changed { dirty.push(draft) } else { clean.push(draft) }
        }
    }
    let mut rest: Vec<&Endpoint> =
        desired.iter().filter(|endpoint| !placed.contains(&identity(endpoint))).collect();
    rest.reverse();
    // Slices that are written anyway take the new endpoints, the fullest first.
    dirty.sort_by_key(|draft| std::cmp::Reverse(draft.endpoints.len()));
    for draft in &mut dirty {
        draft.take(&mut rest, max);
    }
    // Then one more slice, if it has room for all that is left; then new slices.
    while !rest.is_empty() {
        let room = clean
            .iter()
            .enumerate()
            .filter(|(_, draft)| draft.endpoints.len() + rest.len() <= max)
            .max_by_key(|(_, draft)| draft.endpoints.len())
            .map(|(at, _)| at);
        match room {
            Some(at) => {
                let mut draft = clean.swap_remove(at);
                draft.take(&mut rest, max);
                dirty.push(draft);
            }
            None => {
                let part = rest.split_off(rest.len() - rest.len().min(max));
                let endpoints = part.into_iter().rev().cloned().collect();
                fresh.push(new_slice(service, family, ports.to_vec(), endpoints));
            }
        }
    }
    for draft in dirty {
        changes.update.push(rewrite(service, &draft.slice, ports.to_vec(), draft.endpoints));
    }
}

impl Draft {
    fn take(&mut self, rest: &mut Vec<&Endpoint>, max: usize) {
        while self.endpoints.len() < max
            && let Some(endpoint) = rest.pop()
        {
            self.endpoints.push(endpoint.clone());
        }
    }
}

type Identity<'a> = (&'a str, Option<&'a str>);

/// Two endpoints with the same address and pod are the same one at two times.
fn identity(endpoint: &Endpoint) -> Identity<'_> {
    let pod = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref());
    (endpoint.addresses.first().map(String::as_str).unwrap_or_default(), pod)
}

fn ports_key(ports: &[EndpointPort]) -> PortsKey {
    let mut key: PortsKey = ports
        .iter()
        .map(|port| {
            (
                port.name.clone().unwrap_or_default(),
                port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port.port,
                port.app_protocol.clone(),
            )
        })
        .collect();
    key.sort();
    key
}

/// The labels of each of the Service's slices.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = service
        .labels()
        .iter()
        .filter(|(name, _)| ![SERVICE_NAME, MANAGED_BY, HEADLESS].contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    labels.insert(SERVICE_NAME.to_owned(), service.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

/// The Service has no ClusterIP on purpose.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

fn new_slice(
    service: &Service,
    family: &str,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name_any())),
            namespace: service.namespace(),
            labels: Some(labels(service)),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Service".into(),
                name: service.name_any(),
                uid: service.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports),
    }
}

fn rewrite(
    service: &Service,
    slice: &EndpointSlice,
    ports: Vec<EndpointPort>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta { labels: Some(labels(service)), ..slice.metadata.clone() },
        address_type: slice.address_type.clone(),
        endpoints: Some(endpoints),
        ports: Some(ports),
    }
}

#[cfg(test)]
mod tests;
