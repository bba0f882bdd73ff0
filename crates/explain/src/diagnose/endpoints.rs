//! Why nobody is there to answer: from the selector over the pods to the slices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use portolan_control::{Shares, desired_slices, pod_ip, pods as control_pods, resolve};
use portolan_plan::model::Family;

use super::{is_whole, pods};
use crate::cause::{Cause, Kind};
use crate::near;
use crate::objects::*;
use crate::situation::Situation;

/// Why a port has no endpoint to use in a family. The slices are known to have none.
pub fn none(s: &Situation<'_>, service: &Service, port: &ServicePort, family: Family) -> Option<Cause> {
    let objects = &s.evidence.objects;
    let name = name_of(service);
    let slices: Vec<&EndpointSlice> =
        objects.slices_of(&name).filter(|slice| slice.address_type == family.to_string()).collect();
    let selector = spec(service).selector.clone().unwrap_or_default();
    if selector.is_empty() {
        if slices.iter().all(|slice| slice.endpoints.as_deref().unwrap_or_default().is_empty()) {
            return Some(Cause::new(
                Kind::NoSelector,
                s.object(),
                "spec.selector",
                format!(
                    "there is no selector, and nobody has written {family} EndpointSlices for the Service"
                ),
                "set spec.selector to the labels of the pods, or write EndpointSlices",
            ));
        }
        return Some(of_slices(service, port, &slices));
    }
    let members = objects.pods_of(service);
    if members.is_empty() {
        return Some(matches_nothing(s, service, &selector));
    }
    let live: Vec<&Arc<Pod>> =
        members.iter().filter(|p| control_pods::is_ready(p) && !control_pods::is_terminating(p)).collect();
    let publishes = spec(service).publish_not_ready_addresses.unwrap_or(false);
    // Pods on their way out because nobody wants any.
    if members.iter().all(|p| control_pods::is_terminating(p) || !is_live(p))
        && let Some(cause) =
            no_replicas(s, service, &text_of(&selector)).filter(|c| c.kind == Kind::ScaledToZero)
    {
        return Some(cause);
    }
    if live.is_empty() && !publishes {
        return pods::why_none_ready(s, &members);
    }
    let considered: Vec<&Arc<Pod>> = if live.is_empty() { members.iter().collect() } else { live };
    if let Some(cause) = target_port(s, service, port, &considered) {
        return Some(cause);
    }
    if considered.iter().all(|pod| pod_ip(pod, &family.to_string()).is_none()) {
        let first = considered[0];
        return Some(Cause::new(
            Kind::PodsLackFamily,
            pods::object(first),
            "status.podIPs",
            format!("the Service has {family}, and no ready pod has an {family} address"),
            format!("give the nodes {family} ranges for pods, or take {family} out of spec.ipFamilies"),
        ));
    }
    Some(stale(service, port, family, &slices))
}

/// The selector matches no pod: what would it match?
fn matches_nothing(s: &Situation<'_>, service: &Service, selector: &BTreeMap<String, String>) -> Cause {
    let namespace = service.namespace().unwrap_or_default();
    let asked = text_of(selector);
    if let Some(cause) = no_replicas(s, service, &asked) {
        return cause;
    }
    let here = |n: Option<String>| n.as_deref() == Some(&*namespace);
    let pods: Vec<&Arc<Pod>> = s.evidence.objects.pods.iter().filter(|p| here(p.namespace())).collect();
    let mut text = format!("no pod of namespace {namespace} has {asked}");
    let mut remedy = "set the selector to the labels of the pods: kubectl get pods --show-labels".to_owned();
    if let Some(nearest) = nearest_label(selector, &pods) {
        let has = if nearest.count == 1 { "pod has" } else { "pods have" };
        text.push_str(&format!("; {} {has} {}", nearest.count, nearest.label));
        remedy = match nearest.meant {
            true => {
                format!("set the selector to {}, or label the pods {asked}", text_of(&nearest.corrected))
            }
            // Somebody else's pods: to send them what was meant for others would be worse than no answer.
            false => format!(
                "create pods with {asked} in namespace {namespace}, since a selector doesn't reach into another, or correct the selector: kubectl get pods --show-labels"
            ),
        };
    } else if pods.is_empty() {
        text = format!("there is no pod in namespace {namespace} at all; the selector asks for {asked}");
        remedy =
            "create the pods in the Service's own namespace: a selector doesn't reach into another".into();
    }
    Cause::new(Kind::SelectorMatchesNothing, s.object(), "spec.selector", text, remedy)
}

/// A workload whose pods the Service would select, if it had any.
fn no_replicas(s: &Situation<'_>, service: &Service, asked: &str) -> Option<Cause> {
    let namespace = service.namespace().unwrap_or_default();
    let objects = &s.evidence.objects;
    let deployments = objects.deployments.iter().map(|d| {
        let spec = d.spec.as_ref();
        ("Deployment", &d.metadata, spec.map(|s| &s.template), spec.and_then(|s| s.replicas))
    });
    let statefulsets = objects.statefulsets.iter().map(|d| {
        let spec = d.spec.as_ref();
        ("StatefulSet", &d.metadata, spec.map(|s| &s.template), spec.and_then(|s| s.replicas))
    });
    // Those of a Deployment are its own affair: the older ones have no replicas on purpose.
    let free = objects.replicasets.iter().filter(|r| r.owner_references().is_empty());
    let replicasets = free.map(|d| {
        let spec = d.spec.as_ref();
        ("ReplicaSet", &d.metadata, spec.and_then(|s| s.template.as_ref()), spec.and_then(|s| s.replicas))
    });
    let all = deployments.chain(statefulsets).chain(replicasets);
    let (kind, meta, _, replicas) = all
        .filter(|(_, meta, ..)| meta.namespace.as_deref() == Some(&*namespace))
        .find(|(.., template, _)| {
            let labels = template.and_then(|t| t.metadata.as_ref()?.labels.clone());
            portolan_control::pods::selects(service, &labels.unwrap_or_default())
        })?;
    let name = meta.name.clone().unwrap_or_default();
    let lower = kind.to_lowercase();
    let object = format!("{lower} {namespace}/{name}");
    Some(match replicas.unwrap_or(1) {
        0 => Cause::new(
            Kind::ScaledToZero,
            object,
            "spec.replicas",
            format!("the {kind} whose pods have {asked} has 0 replicas"),
            format!("kubectl scale {lower} {name} -n {namespace} --replicas=1"),
        ),
        n => Cause::new(
            Kind::Starting,
            object,
            "status.replicas",
            format!("the {kind} whose pods have {asked} should have {n} replicas, and has no pod"),
            format!("kubectl describe {lower} {name} -n {namespace}"),
        ),
    })
}

fn text_of(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

/// A label that comes near to what a selector asks for.
struct Nearest {
    label: String,
    /// How many pods have it.
    count: usize,
    /// Whether it is so near that it may be what was meant.
    meant: bool,
    /// The whole selector as a pod with that label meets it.
    corrected: BTreeMap<String, String>,
}

/// A label further from what is asked for than this is somebody else's.
const FAR: usize = 16;

/// The label that comes nearest to the selector's first term that no pod meets.
fn nearest_label(selector: &BTreeMap<String, String>, pods: &[&Arc<Pod>]) -> Option<Nearest> {
    let has = |pod: &Arc<Pod>, key: &str, value: &str| pod.labels().get(key).is_some_and(|v| v == value);
    // The pods that meet most of the terms are those that were meant.
    let met = |pod: &Arc<Pod>| selector.iter().filter(|(k, v)| has(pod, k, v)).count();
    let most = pods.iter().map(|p| met(p)).max().unwrap_or(0);
    let best: Vec<&Arc<Pod>> = pods.iter().copied().filter(|p| met(p) == most).collect();
    let mut candidates: BTreeMap<(usize, String), (usize, &Arc<Pod>, &String)> = BTreeMap::new();
    for pod in &best {
        for (key, value) in selector.iter().filter(|(k, v)| !has(pod, k, v)) {
            for (k, v) in pod.labels() {
                let distance = match (k == key, v == value) {
                    (true, _) if near::is_near(value, v) || most > 0 => near::distance(value, v),
                    (false, true) if near::is_near(key, k) => near::distance(key, k),
                    // The value under another key: `name=web` for `app=web`.
                    (false, true) if k != "pod-template-hash" => 8,
                    (true, false) => FAR + near::distance(value, v),
                    _ => continue,
                };
                candidates.entry((distance, format!("{k}={v}"))).or_insert((0, *pod, key)).0 += 1;
            }
        }
    }
    let ((distance, label), (count, pod, replaced)) = candidates.into_iter().next()?;
    let mut corrected: BTreeMap<String, String> = selector
        .keys()
        .filter_map(|k| Some((k.clone(), pod.labels().get(k)?.clone())).filter(|_| k != replaced))
        .collect();
    let (k, v) = label.split_once('=')?;
    corrected.insert(k.to_owned(), v.to_owned());
    Some(Nearest { meant: distance < FAR, label, count, corrected })
}

/// The named targetPort is in no pod.
fn target_port(
    s: &Situation<'_>,
    service: &Service,
    port: &ServicePort,
    pods: &[&Arc<Pod>],
) -> Option<Cause> {
    let Some(IntOrString::String(wanted)) = &port.target_port else { return None };
    let named = port.name.clone().unwrap_or_default();
    let has = |pod: &Arc<Pod>| {
        resolve(service, pod)
            .iter()
            .any(|p| p.name.as_deref() == Some(&*named) && p.protocol.as_deref() == Some(protocol(port)))
    };
    if pods.iter().any(|p| has(p)) {
        return None;
    }
    let declared = declared(pods[0]);
    let other_protocol = declared.iter().find(|(name, ..)| name == wanted);
    let named: Vec<String> = declared
        .iter()
        .filter(|(n, ..)| !n.is_empty())
        .map(|(n, p, proto)| format!("{n} ({p}/{proto})"))
        .collect();
    let has =
        if named.is_empty() { "none has a name".into() } else { format!("there are {}", named.join(", ")) };
    let text = match other_protocol {
        Some((_, _, proto)) => {
            format!("{wanted:?} is a {proto} port of the pods, and the Service's port is {}", protocol(port))
        }
        None => format!("no container port of the pods is named {wanted:?}; {has}"),
    };
    let near = near::nearest(wanted, declared.iter().map(|(n, ..)| n.as_str()).filter(|n| !n.is_empty()));
    let remedy = match (other_protocol, near) {
        (Some((_, _, proto)), _) => format!(
            "set protocol: {proto} on the Service's port, or declare a {} port of that name in the container",
            protocol(port)
        ),
        (None, Some(near)) => format!("set targetPort: {near}, or name the container's port {wanted}"),
        (None, None) => format!(
            "set targetPort to a name or number that the containers have, or name the container's port {wanted}"
        ),
    };
    Some(Cause::new(
        Kind::TargetPortMissing,
        s.object(),
        format!("spec.ports[{}].targetPort", index(service, port)),
        text,
        remedy,
    ))
}

fn index(service: &Service, port: &ServicePort) -> usize {
    ports(service).iter().position(|p| p == port).unwrap_or_default()
}

/// The ports that a pod's containers declare: name, number, protocol.
fn declared(pod: &Pod) -> Vec<(String, i32, String)> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten();
    let all = spec.containers.iter().chain(init).flat_map(|c| c.ports.iter().flatten());
    all.map(|p| {
        let protocol = p.protocol.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "TCP".into());
        (p.name.clone().unwrap_or_default(), p.container_port, protocol)
    })
    .collect()
}

/// Slices that somebody wrote by hand have no usable endpoint for the port.
fn of_slices(service: &Service, port: &ServicePort, slices: &[&EndpointSlice]) -> Cause {
    let object = format!("endpointslices of {}", name_of(service));
    match ports_differ(port, slices) {
        Some(text) => Cause::new(Kind::SlicePortsDiffer, object, "ports", text, PORTS_REMEDY),
        None => Cause::new(
            Kind::SlicesNotReady,
            object,
            "endpoints[].conditions.ready",
            "no endpoint is ready, and the Service has no selector: whoever writes the slices says so",
            "set ready: true on the endpoints that answer",
        ),
    }
}

const PORTS_REMEDY: &str = "give the slices' port the name and protocol of the Service's port";

/// The slices have no port of this name and protocol: what do they have?
fn ports_differ(port: &ServicePort, slices: &[&EndpointSlice]) -> Option<String> {
    let wanted = port.name.clone().unwrap_or_default();
    let have: BTreeSet<String> = slices
        .iter()
        .filter(|slice| !slice.endpoints.as_deref().unwrap_or_default().is_empty())
        .flat_map(|slice| slice.ports.iter().flatten())
        .map(|p| {
            format!("{:?} ({})", p.name.clone().unwrap_or_default(), p.protocol.as_deref().unwrap_or("TCP"))
        })
        .collect();
    let this = format!("{wanted:?} ({})", protocol(port));
    (!have.is_empty() && !have.contains(&this)).then(|| {
        format!(
            "the Service's port is {this}; the slices have {}",
            have.into_iter().collect::<Vec<_>>().join(", ")
        )
    })
}

/// The pods are ready and the slices don't say so.
fn stale(service: &Service, port: &ServicePort, family: Family, slices: &[&EndpointSlice]) -> Cause {
    let object = format!("endpointslices of {}", name_of(service));
    let remedy = "see to the EndpointSlice controller: `portolan server` runs it, on Kubernetes kube-controller-manager";
    if slices.is_empty() {
        return Cause::new(
            Kind::SlicesMissing,
            object,
            "metadata",
            format!(
                "pods are ready, and the Service has no {family} EndpointSlice: its controller doesn't run or can't write"
            ),
            remedy,
        );
    }
    match ports_differ(port, slices) {
        Some(text) => Cause::new(Kind::SlicePortsDiffer, object, "ports", text, PORTS_REMEDY),
        None => Cause::new(
            Kind::SlicesStale,
            object,
            "endpoints",
            "pods are ready, and the EndpointSlices don't say so: they are out of date",
            remedy,
        ),
    }
}

/// Worth knowing about the endpoints of a Service that has some.
pub fn notes(
    s: &Situation<'_>,
    service: &Service,
    concerned: &[(&ServicePort, Family)],
    causes: &mut Vec<Cause>,
) {
    let members = s.evidence.objects.pods_of(service);
    let live: Vec<&Arc<Pod>> =
        members.iter().filter(|p| !control_pods::is_terminating(p) && is_live(p)).collect();
    let (ready, unready): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
        live.iter().partition(|p| control_pods::is_ready(p));
    if let (false, Some(first)) = (ready.is_empty(), unready.first()) {
        let why = pods::why(s, first);
        causes.push(Cause::new(
            Kind::SomeNotReady,
            why.object,
            why.field,
            format!("{} of {} pods are not ready: {}", unready.len(), live.len(), why.text),
            why.remedy,
        ));
    }
    for (port, _) in concerned {
        let Some(IntOrString::Int(number)) = port.target_port else { continue };
        let Some(first) = ready.first() else { continue };
        let declared = declared(first);
        if number != 0 && !declared.is_empty() && !declared.iter().any(|(_, p, _)| *p == number) {
            let all: Vec<String> = declared.iter().map(|(_, p, proto)| format!("{p}/{proto}")).collect();
            causes.push(Cause::new(
                Kind::TargetPortUndeclared,
                s.object(),
                format!("spec.ports[{}].targetPort", index(service, port)),
                format!("no container declares port {number}; they declare {}", all.join(", ")),
                match &declared[..] {
                    [(_, one, _)] => format!("set targetPort: {one}, or ask with --probe on a node"),
                    _ => "set targetPort to one of these, or ask with --probe on a node".to_owned(),
                },
            ));
        }
    }
    if !causes.iter().any(|c| !c.kind.is_note()) && is_whole(s) {
        causes.extend(behind(s, service, &members));
    }
}

/// Slices that say something else than the pods, though somebody answers.
fn behind(s: &Situation<'_>, service: &Service, members: &[Arc<Pod>]) -> Option<Cause> {
    let objects = &s.evidence.objects;
    // Pods whose nodes aren't known are no endpoints to the controller.
    if objects.nodes.is_empty() || spec(service).selector.as_ref().is_none_or(BTreeMap::is_empty) {
        return None;
    }
    let node = |name: &str| objects.node(name).cloned();
    let wanted = desired_slices(service, members, &node, &Shares::new(), &[], usize::MAX).create;
    // On somebody's Kubernetes hints are distributed otherwise: only who is ready is compared.
    let ready = |slices: &mut dyn Iterator<Item = &EndpointSlice>| -> BTreeSet<String> {
        let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
        let usable = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true));
        usable.filter_map(|e| e.addresses.first().cloned()).collect()
    };
    let wanted = ready(&mut wanted.iter());
    let have = ready(&mut objects.slices_of(&name_of(service)));
    let lost: Vec<&String> = have.difference(&wanted).collect();
    let new: Vec<&String> = wanted.difference(&have).collect();
    let (text, field) = match (lost.first(), new.first()) {
        (Some(address), _) => {
            (format!("{address} is an endpoint, and no ready pod has that address"), "endpoints[].addresses")
        }
        (None, Some(address)) => (format!("a ready pod has {address}, which is no endpoint"), "endpoints"),
        (None, None) => return None,
    };
    Some(Cause::new(
        Kind::SlicesStale,
        format!("endpointslices of {}", name_of(service)),
        field,
        format!("{text}: the slices are out of date"),
        "see to the EndpointSlice controller: `portolan server` runs it, on Kubernetes kube-controller-manager",
    ))
}
