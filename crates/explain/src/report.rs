//! The answer: what people and programs are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use kube::ResourceExt;
use portolan_plan::model::{
    Action, Backend, Family, FromOutside, Frontend, FrontendKind, FrontendPlan, ServicePlan,
};
use portolan_plan::service::Rule;
use portolan_plan::trace::{Origin, Outcome, SourceSeen};
use serde::Serialize;

use crate::Evidence;
use crate::cause::{Cause, Kind};
use crate::diagnose::{self, diagnose};
use crate::objects::*;
use crate::situation::{CantTell, FlowPath, Situation};

/// An answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was asked, as it was understood.
    pub question: String,
    /// Whether nothing was found that keeps it from answering.
    pub answers: bool,
    /// What keeps it, the first cause first.
    pub causes: Vec<Cause>,
    /// What is worth knowing, and no reason not to answer.
    pub notes: Vec<Cause>,
    /// The Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceSeen>,
    /// Where clients connect to, and what becomes of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub frontends: Vec<FrontendRow>,
    /// Who answers, by node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<SetRow>,
    /// The flow's way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathSeen>,
    /// What the kernel of a node holds now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelSeen>,
    /// What was chosen or assumed for the asker.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<String>,
}

/// A Service, in short.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSeen {
    /// Its `namespace/name`.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub type_: String,
    /// Its selector; empty if it has none.
    pub selector: BTreeMap<String, String>,
    /// Pods that it selects, and how many of them are ready.
    pub pods: usize,
    /// How many of them are ready.
    pub ready: usize,
}

/// What clients connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendRow {
    /// The address and port.
    pub frontend: String,
    /// What kind of address it is.
    pub kind: &'static str,
    /// The Service's port that it leads to.
    pub port: String,
    /// What becomes of connections from anywhere.
    pub action: String,
    /// What becomes of connections from the node and its pods, where that differs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub inside: String,
    /// The nodes where it is so.
    pub nodes: Vec<String>,
}

/// Who answers at a port of the Service, on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SetRow {
    /// The port.
    pub port: String,
    /// The family.
    pub family: String,
    /// The endpoints of the cluster or of the node.
    pub policy: &'static str,
    /// What decided.
    pub rule: String,
    /// Who answers.
    pub backends: Vec<String>,
    /// The nodes where it is so.
    pub nodes: Vec<String>,
}

/// A flow's way, decision by decision.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathSeen {
    /// From.
    pub from: String,
    /// To.
    pub to: String,
    /// The node that decides.
    pub node: String,
    /// The decisions.
    pub steps: Vec<Step>,
    /// What becomes of it.
    pub outcome: &'static str,
    /// Who may get it, each as likely as another.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<BackendSeen>,
    /// The source address that they see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_seen: Option<String>,
    /// For how many seconds the client keeps its backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky_seconds: Option<u64>,
}

/// A decision.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The object that decided.
    pub object: String,
    /// Its field.
    pub field: String,
    /// What follows.
    pub text: String,
}

/// A backend, and the way to it.
#[derive(Clone, Debug, Serialize)]
pub struct BackendSeen {
    /// Its address and port.
    pub address: String,
    /// Where the packet passes: the node, then the pod.
    pub hops: Vec<String>,
}

/// What the kernel of a node holds now.
#[derive(Clone, Debug, Serialize)]
pub struct KernelSeen {
    /// The node.
    pub node: String,
    /// Whether it holds what the plan wants.
    pub agrees: bool,
    /// What was looked at.
    pub checks: Vec<Check>,
}

/// Something that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// What was seen.
    pub seen: String,
}

/// Answers. An error says that there is nothing to answer the question from.
pub fn examine(evidence: &Evidence) -> Result<Report, CantTell> {
    let situation = Situation::of(evidence)?;
    let (notes, causes) = diagnose(&situation).into_iter().partition(|c: &Cause| c.kind.is_note());
    Ok(report(&situation, causes, notes))
}

fn report(s: &Situation<'_>, causes: Vec<Cause>, notes: Vec<Cause>) -> Report {
    let whole = diagnose::is_whole(s);
    Report {
        question: question(s),
        answers: causes.is_empty(),
        service: s.service.map(|service| seen(s, service)),
        frontends: s.service.filter(|_| whole).map(|service| frontends(s, service)).unwrap_or_default(),
        sets: s.service.filter(|_| whole).map(|service| sets(s, service)).unwrap_or_default(),
        path: s.path.as_ref().map(|path| path_seen(s, path)),
        kernel: kernel(s, &causes),
        assumed: assumed(s),
        causes,
        notes,
    }
}

/// What was assumed of the Service in question, or of all.
fn assumed(s: &Situation<'_>) -> Vec<String> {
    let of_all = s.evidence.assumed.iter().filter(|a| a.service.is_none() || a.service == s.name);
    of_all.map(|a| &a.text).chain(&s.remarks).cloned().collect()
}

fn question(s: &Situation<'_>) -> String {
    use crate::question::About;
    match &s.evidence.question.about {
        About::Service(name) => format!("service {name}"),
        About::Flow(asked) => {
            // Without a port a protocol would read as part of the name.
            let port = asked.port.map_or(String::new(), |p| format!(" port {p}/{}", asked.protocol));
            format!("{} to {}{port}", asked.from, asked.to)
        }
    }
}

fn seen(s: &Situation<'_>, service: &Service) -> ServiceSeen {
    let pods = s.evidence.objects.pods_of(service);
    let usable = |p: &&std::sync::Arc<k8s_openapi::api::core::v1::Pod>| {
        portolan_control::pods::is_ready(p) && !portolan_control::pods::is_terminating(p)
    };
    ServiceSeen {
        name: name_of(service).to_string(),
        type_: match spec(service).cluster_ip.as_deref() {
            Some("None") => "ClusterIP (headless)".into(),
            _ => type_of(service).into(),
        },
        selector: spec(service).selector.clone().unwrap_or_default(),
        pods: pods.len(),
        ready: pods.iter().filter(usable).count(),
    }
}

fn kind_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::ExternalIp => "externalIP",
        FrontendKind::LoadBalancer => "LoadBalancer",
        FrontendKind::NodePort => "NodePort",
    }
}

fn action(action: &Action, part: &ServicePlan) -> String {
    match action {
        Action::Drop => "dropped: no local endpoint".into(),
        Action::Reject => "refused: no endpoint".into(),
        Action::Balance(name) => {
            let count = part.sets.get(name).map_or(0, |set| set.backends.len());
            let scope = match name.scope {
                portolan_plan::model::Scope::Cluster => "",
                portolan_plan::model::Scope::Local => " on the node",
            };
            format!("{count} backend{}{scope}", if count == 1 { "" } else { "s" })
        }
    }
}

fn frontends(s: &Situation<'_>, service: &Service) -> Vec<FrontendRow> {
    let mut rows: Vec<(FrontendKind, FrontendRow)> = Vec::new();
    for (node, picture) in &s.pictures {
        let Some(part) = picture.plan.services.get(&name_of(service)) else { continue };
        for (frontend, plan) in &part.frontends {
            let outside = limited(action(&plan.action, part), plan);
            let inside = plan.inside.as_ref().map(|a| action(a, part));
            let (action, inside) = match is_closed(s, frontend, plan.kind) {
                true => ("dropped: ClusterIP".to_owned(), inside.unwrap_or(outside)),
                false => (outside, inside.unwrap_or_default()),
            };
            let row = FrontendRow {
                frontend: frontend_text(frontend),
                kind: kind_name(plan.kind),
                port: service_port(service, frontend),
                action,
                inside,
                nodes: Vec::new(),
            };
            match rows.iter_mut().find(|(_, known)| FrontendRow { nodes: Vec::new(), ..known.clone() } == row)
            {
                Some((_, known)) => known.nodes.push(node.clone()),
                None => rows.push((plan.kind, FrontendRow { nodes: vec![node.clone()], ..row })),
            }
        }
    }
    rows.sort_by_key(|(kind, _)| *kind);
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Whether nodes refuse outsiders at a frontend: as they were told, at cluster IPs.
fn is_closed(s: &Situation<'_>, frontend: &Frontend, kind: FrontendKind) -> bool {
    let told = &s.evidence.told;
    let in_range = matches!(frontend, Frontend::Address { address, .. } if told.service_cidrs.iter().any(|r| r.contains(address)));
    told.cluster_ip_from_outside == FromOutside::Refuse && kind == FrontendKind::ClusterIp && in_range
}

fn limited(text: String, plan: &FrontendPlan) -> String {
    match &plan.source_ranges {
        Some(ranges) if ranges.is_empty() => "dropped: no source range".into(),
        Some(ranges) => {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            format!("{text}, for {}", ranges.join(", "))
        }
        None => text,
    }
}

fn frontend_text(frontend: &Frontend) -> String {
    match frontend {
        Frontend::Address { .. } => frontend.to_string(),
        Frontend::NodePort { family, protocol, port } => format!("NODE:{port}/{protocol} ({family})"),
    }
}

fn service_port(service: &Service, frontend: &Frontend) -> String {
    let fits = |p: &&ServicePort| match frontend {
        Frontend::Address { port, protocol, .. } => p.port == i32::from(*port) && carries(p, *protocol),
        Frontend::NodePort { port, protocol, .. } => {
            p.node_port == Some(i32::from(*port)) && carries(p, *protocol)
        }
    };
    ports(service).iter().find(fits).map(port_text).unwrap_or_default()
}

fn port_text(port: &ServicePort) -> String {
    let number = format!("{}/{}", port.port, protocol(port));
    match port.name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => format!("{name} {number}"),
        None => number,
    }
}

fn rule(rule: &Rule) -> String {
    match rule {
        Rule::Ready => "all that are ready".into(),
        Rule::ThisNode => "ready, and meant for this node".into(),
        Rule::ThisZone(zone) => format!("ready, and meant for zone {zone}"),
        Rule::Terminating => "none is ready: terminating, still serving".into(),
        Rule::Nothing => "none".into(),
    }
}

/// Who answers at one port in one family under one policy, by which rule, and the nodes where it is so.
struct Chosen<'s> {
    port: &'s ServicePort,
    family: Family,
    policy: &'static str,
    rule: Rule,
    backends: BTreeSet<Backend>,
    nodes: Vec<String>,
}

fn sets(s: &Situation<'_>, service: &Service) -> Vec<SetRow> {
    let local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let both = [&spec(service).internal_traffic_policy, &spec(service).external_traffic_policy];
    let external =
        matches!(type_of(service), "NodePort" | "LoadBalancer") || !external_ips(service).is_empty();
    let wants_local = local(both[0]) || (external && local(both[1]));
    let wants_cluster = !local(both[0]) || external;
    let mut chosen: Vec<Chosen<'_>> = Vec::new();
    for (node, picture) in &s.pictures {
        for port in ports(service) {
            for family in diagnose::families(service) {
                let Some(choice) = diagnose::choice(picture, service, port, family) else { continue };
                let mut add = |policy, backends: BTreeSet<Backend>, rule: Rule| {
                    let known = chosen.iter_mut().find(|c| {
                        (c.port, c.family, c.policy, &c.rule) == (port, family, policy, &rule)
                            && c.backends == backends
                    });
                    match known {
                        Some(known) => known.nodes.push(node.clone()),
                        None => chosen.push(Chosen {
                            port,
                            family,
                            policy,
                            rule,
                            backends,
                            nodes: vec![node.clone()],
                        }),
                    }
                };
                if wants_cluster {
                    add("Cluster", choice.cluster, choice.cluster_rule);
                }
                if wants_local {
                    add("Local", choice.local, choice.local_rule);
                }
            }
        }
    }
    let pods: BTreeMap<IpAddr, String> = s
        .evidence
        .objects
        .pods_of(service)
        .iter()
        .flat_map(|pod| pod_addresses(pod).into_iter().map(|a| (a, pod.name_any())))
        .collect();
    let named = |backend: &Backend| match pods.get(&backend.address) {
        Some(pod) => format!("{backend} ({pod})"),
        None => backend.to_string(),
    };
    let row = |c: Chosen<'_>| SetRow {
        port: port_text(c.port),
        family: c.family.to_string(),
        policy: c.policy,
        rule: rule(&c.rule),
        backends: c.backends.iter().map(named).collect(),
        nodes: c.nodes,
    };
    chosen.into_iter().map(row).collect()
}

fn path_seen(s: &Situation<'_>, path: &FlowPath) -> PathSeen {
    let steps = path.verdict.because.iter().map(|reason| Step {
        object: reason.object.to_string(),
        field: reason.field.to_string(),
        text: reason.text.clone(),
    });
    let from = match path.flow.from {
        Origin::Pod(a) => format!("{a} (a pod)"),
        Origin::Node(a) => format!("{a} (node {})", path.node),
        Origin::Outside(a) => format!("{a} (outside)"),
    };
    let mut seen = PathSeen {
        from,
        to: format!(
            "{}/{}",
            std::net::SocketAddr::new(path.flow.destination, path.flow.port),
            path.flow.protocol
        ),
        node: path.node.clone(),
        steps: steps.collect(),
        outcome: "",
        backends: Vec::new(),
        source_seen: None,
        sticky_seconds: None,
    };
    match &path.verdict.outcome {
        Outcome::Forward { set, source_seen, affinity } => {
            seen.outcome = "forwarded";
            seen.backends =
                set.iter().map(|b| BackendSeen { address: b.to_string(), hops: hops(s, path, b) }).collect();
            let (client, node) = (
                format!("the client's own, {}", path.flow.from.address()),
                format!("one of node {}", path.node),
            );
            seen.source_seen = Some(match source_seen {
                SourceSeen::Kept => client,
                SourceSeen::Node => node,
                SourceSeen::KeptUnlessItself => {
                    format!("{client}; {node} where the backend is the client itself")
                }
            });
            seen.sticky_seconds = affinity.map(|a| a.as_secs());
        }
        Outcome::Drop => seen.outcome = "dropped",
        Outcome::Reject => seen.outcome = "refused",
        Outcome::NotAService => seen.outcome = "routed, no Service has a part in it",
    }
    seen
}

/// Where a packet passes on its way to a backend.
fn hops(s: &Situation<'_>, path: &FlowPath, backend: &Backend) -> Vec<String> {
    let mut hops = vec![format!("node {}", path.node)];
    let objects = &s.evidence.objects;
    let pod = objects.pod_at(backend.address);
    let slices = s.name.iter().flat_map(|name| objects.slices_of(name));
    let text = backend.address.to_string();
    let endpoint = slices
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .find(|e| e.addresses.first() == Some(&text));
    let node = endpoint.and_then(|e| e.node_name.clone());
    if let Some(node) = node.filter(|n| *n != path.node) {
        hops.push(format!("node {node}"));
    }
    hops.push(match pod {
        Some(pod) => format!("pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any()),
        None => format!("endpoint {backend}"),
    });
    hops
}

fn kernel(s: &Situation<'_>, causes: &[Cause]) -> Option<KernelSeen> {
    let kernel = s.evidence.kernel.as_ref()?;
    let picture = s.pictures.get(&kernel.node)?;
    s.service?;
    let has = |kind: Kind| causes.iter().any(|c| c.kind == kind);
    let mut checks = Vec::new();
    let mut check = |what: &str, seen: String| checks.push(Check { what: what.into(), seen });
    let wanted = diagnose::concerned(s, picture);
    let agrees = !has(Kind::TableMissing) && !has(Kind::TableDrift);
    check(
        "tables",
        match (&kernel.reading, agrees) {
            (None, _) => match kernel.other_proxy() {
                Some(proxy) => format!("not there; {proxy} forwards here"),
                None if kernel.emptied => "there, empty".into(),
                None => "not there".into(),
            },
            (_, true) => {
                format!("as planned: {} frontend{}", wanted.len(), if wanted.len() == 1 { "" } else { "s" })
            }
            (_, false) => "differ from the plan".into(),
        },
    );
    if !kernel.routes.is_empty() {
        let bad = kernel.routes.keys().filter(|a| diagnose::no_way(s, kernel, **a).is_some()).count();
        let all = kernel.routes.len();
        check("routes to backends", format!("{} of {all}", all - bad));
    }
    if let Some((count, most)) = kernel.conntrack {
        check("connections tracked", format!("{count} of at most {most}"));
    }
    let at = |f: &&portolan_sys::conntrack::Flow| {
        wanted.iter().any(|(w, _)| match w {
            Frontend::Address { address, port, protocol } => {
                *protocol == portolan_plan::model::Protocol::Udp
                    && (*address, *port) == (f.original.destination, f.original.destination_port)
            }
            Frontend::NodePort { family, port, .. } => {
                *family == Family::of(f.original.destination) && *port == f.original.destination_port
            }
        })
    };
    let flows = kernel.udp.iter().filter(at).count();
    if flows > 0 {
        check(
            "UDP flows",
            format!("{flows}{}", if has(Kind::StaleFlow) { ", some to backends that are gone" } else { "" }),
        );
    }
    for probe in s.evidence.probes.iter().flatten() {
        let seen = match probe.outcome {
            crate::probe::Outcome::Accepted => "accepted",
            crate::probe::Outcome::Refused => "refused",
            crate::probe::Outcome::Unreachable => "unreachable",
            crate::probe::Outcome::Silent => "no answer",
        };
        check(&format!("connection to {}", probe.to), seen.into());
    }
    Some(KernelSeen { node: kernel.node.clone(), agrees, checks })
}
