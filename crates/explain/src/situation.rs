//! The question resolved against the objects, and planned: the Service meant, the node, the flow, the verdict.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service, ServicePort};
use kube::ResourceExt;
use portolan_agent::from_kube::{self, Names};
use portolan_agent::observed::{Observed, Said, Update};
use portolan_plan::finding::{Finding, Object};
use portolan_plan::model::{Family, FromOutside, Plan, Protocol, ServiceName};
use portolan_plan::planner::{StaleUdp, Views};
use portolan_plan::trace::{Flow, Origin, Verdict};
use portolan_plan::view::{ExternalIps, NodePortAddresses, NodeView};

use crate::Evidence;
use crate::objects::*;
use crate::question::{About, FlowAsked, Place, Target};

/// How nodes were told to treat Services, as `portolan node` is by its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The ranges of cluster IPs.
    pub service_cidrs: Vec<IpNet>,
    /// What becomes of connections to a ClusterIP from outside.
    pub cluster_ip_from_outside: FromOutside,
    /// On which addresses NodePorts answer.
    pub node_ports: NodePortAddresses,
    /// Which external IPs are captured.
    pub external_ips: ExternalIps,
}

/// Why a question can't be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CantTell(pub String);

/// What one node makes of the Services in question.
#[derive(Clone, Debug)]
pub struct Picture {
    /// What it plans from.
    pub views: Views,
    /// Its plan.
    pub plan: Plan,
    /// What there is to say about the objects.
    pub findings: Vec<Finding>,
    /// Each UDP frontend, with its backends.
    pub udp_backends: StaleUdp,
}

/// A flow, and what its node does with it.
#[derive(Clone, Debug)]
pub struct FlowPath {
    /// The node that decides.
    pub node: String,
    /// The flow.
    pub flow: Flow,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// A resolved question.
#[derive(Debug)]
pub struct Situation<'e> {
    /// What it was made from.
    pub evidence: &'e Evidence,
    /// The name of the Service in question, whether or not it exists.
    pub name: Option<ServiceName>,
    /// The Service in question.
    pub service: Option<&'e Service>,
    /// The nodes in question.
    pub pictures: BTreeMap<String, Picture>,
    /// The flow in question; none for a question about a Service, or if there is no address to send it to.
    pub path: Option<FlowPath>,
    /// A family that was asked for and that the Service doesn't have.
    pub lacks: Option<Family>,
    /// What was chosen for the asker.
    pub remarks: Vec<String>,
}

/// An address of TEST-NET-2 (RFC 5737) and of the documentation prefix (RFC 3849): somebody outside.
const SOMEBODY: (&str, &str) = ("198.51.100.1", "2001:db8::1");

impl<'e> Situation<'e> {
    /// Resolves the question.
    pub fn of(evidence: &'e Evidence) -> Result<Situation<'e>, CantTell> {
        let mut situation = Situation {
            evidence,
            name: None,
            service: None,
            pictures: BTreeMap::new(),
            path: None,
            lacks: None,
            remarks: Vec::new(),
        };
        let question = &evidence.question;
        if let Some(node) = &question.node
            && evidence.objects.node(node).is_none()
        {
            return Err(no_node(&evidence.objects, node));
        }
        match &question.about {
            About::Service(name) => situation.about_service(name),
            About::Flow(asked) => situation.about_flow(asked)?,
        }
        Ok(situation)
    }

    fn about_service(&mut self, name: &ServiceName) {
        self.name = Some(name.clone());
        self.service = self.evidence.objects.service(name);
        self.on_all_nodes();
    }

    /// What the nodes make of the Service.
    fn on_all_nodes(&mut self) {
        let Some(service) = self.service else { return };
        let related = related(&self.evidence.objects, service);
        for node in &self.evidence.objects.nodes {
            let node_name = node.name_any();
            if self.evidence.question.node.as_ref().is_none_or(|wanted| *wanted == node_name) {
                self.pictures.insert(node_name, self.picture(node, &related));
            }
        }
    }

    fn about_flow(&mut self, asked: &FlowAsked) -> Result<(), CantTell> {
        let objects = &self.evidence.objects;
        let source = Source::of(&asked.from, objects)?;
        let target = match &asked.to {
            Target::Service(name) => {
                self.name = Some(name.clone());
                self.service = objects.service(name);
                let Some(service) = self.service else { return Ok(()) };
                match self.address_of(service, asked, &source)? {
                    Some(target) => target,
                    None => {
                        self.on_all_nodes();
                        return Ok(());
                    }
                }
            }
            Target::Address(address) => (*address, required(asked.port)?),
            Target::Node(name) => {
                let node = objects.node(name).ok_or_else(|| no_node(objects, name))?;
                let address = of_family(&node_addresses(node), asked.family.or(source.family()));
                let address =
                    address.ok_or_else(|| CantTell(format!("node {name} has no address of that family")))?;
                (address, required(asked.port)?)
            }
        };
        if self.service.is_none() {
            self.service = service_at(objects, target, asked.protocol);
            self.name = self.service.map(name_of);
        }
        let node = self.node_for(&source, target.0)?;
        let mut concerned = self.service.map(|s| related(objects, s)).unwrap_or_default();
        for service in objects.services.iter().filter(|s| has_address(s, target.0)) {
            if !concerned.iter().any(|known| name_of(known) == name_of(service)) {
                concerned.push(service);
            }
        }
        let picture = self.picture(&node, &concerned);
        let origin = source.origin(Family::of(target.0), &mut self.remarks)?;
        let flow = Flow { from: origin, destination: target.0, protocol: asked.protocol, port: target.1 };
        let verdict = picture.plan.trace(&flow);
        // Who asks for an address means whoever has it.
        let owner = verdict.because.first().map(|reason| &reason.object);
        if let (Some(Object::Service(owner)), false) = (owner, matches!(asked.to, Target::Service(_))) {
            self.service = objects.service(owner);
            self.name = Some(owner.clone());
        }
        if let Some(here) =
            self.evidence.kernel.as_ref().map(|k| &k.node).filter(|here| **here != node.name_any())
        {
            let there = node.name_any();
            self.remarks.push(format!(
                "this is {here}: the kernel of {there} was not looked into; ask there for that"
            ));
        }
        self.path = Some(FlowPath { node: node.name_any(), flow, verdict });
        self.pictures.insert(node.name_any(), picture);
        Ok(())
    }

    /// The address and port of a Service that suit the client.
    fn address_of(
        &mut self,
        service: &Service,
        asked: &FlowAsked,
        source: &Source,
    ) -> Result<Option<(IpAddr, u16)>, CantTell> {
        let family = asked.family.or_else(|| source.family());
        let cluster_ips = cluster_ips(service);
        if cluster_ips.is_empty() {
            return Ok(None);
        }
        let port = port_asked(service, asked)?;
        if let Some(family) = asked.family
            && of_family(&cluster_ips, Some(family)).is_none()
        {
            self.lacks = Some(family);
            return Ok(None);
        }
        let suits = |addresses: &[IpAddr]| {
            addresses
                .iter()
                .copied()
                .find(|a| source.has(Family::of(*a)) && family.is_none_or(|f| Family::of(*a) == f))
        };
        if !source.outside() {
            let Some(address) = suits(&cluster_ips) else {
                self.lacks = family;
                return Ok(None);
            };
            return Ok(Some((address, port)));
        }
        // From outside a Service is reached by the most public of its addresses.
        let balancers: Vec<IpAddr> = ingress(service).into_iter().map(|(ip, _)| ip).collect();
        if let Some(address) = suits(&balancers).or_else(|| suits(&external_ips(service))) {
            return Ok(Some((address, port)));
        }
        if type_of(service) == "LoadBalancer" && self.evidence.question.node.is_none() {
            return Ok(None);
        }
        let found = ports(service).iter().find(|p| p.port == i32::from(port) && carries(p, asked.protocol));
        let node_port = found.and_then(|p| u16::try_from(p.node_port?).ok()).filter(|p| *p != 0);
        if let Some(node_port) = node_port
            && let Some(node) = self.default_node(None)
            && let Some(address) =
                of_family(&node_addresses(&node), family.or(Family::of(cluster_ips[0]).into()))
        {
            self.remarks.push(format!(
                "from outside, port {port} of this Service is reached at a node's address and its node port: {}",
                std::net::SocketAddr::new(address, node_port)
            ));
            return Ok(Some((address, node_port)));
        }
        Ok(suits(&cluster_ips).map(|address| (address, port)))
    }

    /// The node whose decisions count for a flow.
    fn node_for(&mut self, source: &Source, destination: IpAddr) -> Result<Node, CantTell> {
        let objects = &self.evidence.objects;
        if let (Some(asked), Some(own)) = (&self.evidence.question.node, &source.node)
            && asked != own
        {
            return Err(CantTell(format!(
                "--node {asked}: {} is on node {own}, which decides; leave --node out",
                source.name
            )));
        }
        let named = self.evidence.question.node.as_ref().or(source.node.as_ref());
        if let Some(name) = named {
            return objects.node(name).map(|n| (**n).clone()).ok_or_else(|| no_node(objects, name));
        }
        if let Some(node) = objects.node_at(destination) {
            return Ok((**node).clone());
        }
        let node = self.default_node(Some(destination)).ok_or_else(|| {
            CantTell("there is no Node object, so there is nobody to decide; give one".into())
        })?;
        self.remarks.push(format!("decided by {}; name another with --node", node.name_any()));
        Ok(node)
    }

    /// Who announces the address, else the node that explain runs on, else the first that is ready.
    fn default_node(&self, destination: Option<IpAddr>) -> Option<Node> {
        let objects = &self.evidence.objects;
        if let Some(node) = &self.evidence.question.node {
            return objects.node(node).map(|n| (**n).clone());
        }
        let ready: Vec<&Node> = objects.nodes.iter().map(|n| &**n).filter(|n| is_node_ready(n)).collect();
        let balanced =
            destination.zip(self.service).filter(|(d, s)| ingress(s).iter().any(|(ip, _)| ip == d));
        if let Some((address, service)) = balanced {
            let local = spec(service).external_traffic_policy.as_deref() == Some("Local");
            let has_endpoint = |node: &str| {
                let slices = objects.slices_of(self.name.as_ref()?);
                slices
                    .flat_map(|s| s.endpoints.iter().flatten())
                    .find(|e| e.node_name.as_deref() == Some(node))
            };
            let names: Vec<String> = ready.iter().map(|n| n.name_any()).collect();
            let candidates = names.iter().map(String::as_str).filter(|n| !local || has_endpoint(n).is_some());
            let chosen = portolan_lb::elect::announcer(address, candidates);
            if let Some(node) = chosen.and_then(|name| ready.iter().find(|n| n.name_any() == name)) {
                return Some((*node).clone());
            }
        }
        let here = self.evidence.kernel.as_ref().and_then(|k| objects.node(&k.node)).map(|n| (**n).clone());
        here.or_else(|| ready.first().map(|n| (*n).clone()))
            .or_else(|| objects.nodes.first().map(|n| (**n).clone()))
    }

    /// What a node plans of these Services.
    fn picture(&self, node: &Node, services: &[&Service]) -> Picture {
        let told = &self.evidence.told;
        let mut observed = Observed::new(NodeView {
            node_ports: told.node_ports.clone(),
            external_ips: told.external_ips.clone(),
            service_cidrs: told.service_cidrs.iter().copied().collect(),
            cluster_ip_from_outside: told.cluster_ip_from_outside,
            ..NodeView::named(&node.name_any())
        });
        observed.note(Update::Node(Said::Present(from_kube::key(&node.metadata), from_kube::node(node))));
        let mut names = Names::default();
        for service in services.iter().filter(|s| !s.labels().contains_key(PROXY_NAME)) {
            let key = from_kube::key(&service.metadata);
            observed.note(Update::Service(Said::Present(key, from_kube::service(service))));
            for slice in self.evidence.objects.slices_of(&name_of(service)) {
                let key = from_kube::key(&slice.metadata);
                observed.note(Update::Slice(Said::Present(key, from_kube::slice(slice, &mut names))));
            }
        }
        let planner = observed.planner();
        let _ = planner.take_change();
        let (plan, views, udp_backends) =
            (planner.plan().clone(), planner.views().clone(), planner.take_stale_udp());
        Picture { plan, views, udp_backends, findings: observed.findings().cloned().collect() }
    }

    /// The Service in question, as causes name it.
    pub fn object(&self) -> String {
        self.name.as_ref().map_or_else(String::new, |n| format!("service {n}"))
    }
}

/// The port that is asked for, as far as the Service leaves a choice.
fn port_asked(service: &Service, asked: &FlowAsked) -> Result<u16, CantTell> {
    if let Some(port) = asked.port {
        return Ok(port);
    }
    let mut fits: Vec<&ServicePort> = ports(service).iter().filter(|p| carries(p, asked.protocol)).collect();
    // That the only one has another protocol is the answer.
    if let ([], [only]) = (&fits[..], ports(service)) {
        fits.push(only);
    }
    match fits[..] {
        [port] => u16::try_from(port.port).map_err(|_| CantTell(format!("{} is not a port", port.port))),
        _ => Err(CantTell(format!(
            "--port: service {} has {}; name one",
            name_of(service),
            listed(ports(service))
        ))),
    }
}

/// The ports of a Service as kubectl writes them.
pub fn listed(ports: &[ServicePort]) -> String {
    let all: Vec<String> = ports.iter().map(|p| format!("{}/{}", p.port, protocol(p))).collect();
    if all.is_empty() { "no ports".into() } else { format!("the ports {}", all.join(", ")) }
}

fn required(port: Option<u16>) -> Result<u16, CantTell> {
    port.ok_or_else(|| CantTell("--port: name the port that the connection is sent to".into()))
}

fn no_node(objects: &Objects, name: &str) -> CantTell {
    let known: Vec<String> = objects.nodes.iter().map(|n| n.name_any()).collect();
    CantTell(format!("there is no node {name}; there are {}", known.join(", ")))
}

/// Whether one of a Service's addresses is this one.
pub fn has_address(service: &Service, address: IpAddr) -> bool {
    cluster_ips(service).contains(&address)
        || external_ips(service).contains(&address)
        || ingress(service).iter().any(|(ip, _)| *ip == address)
}

/// The Service that a flow to an address and port means, whether or not it gets there.
pub fn service_at(objects: &Objects, (address, port): (IpAddr, u16), wanted: Protocol) -> Option<&Service> {
    let number = i32::from(port);
    let with_address = || objects.services.iter().filter(|s| has_address(s, address));
    // The owner of a cluster IP goes before whoever else names it.
    let owner = with_address().find(|s| cluster_ips(s).contains(&address)).or_else(|| {
        let offers = |s: &&Service| ports(s).iter().any(|p| p.port == number && carries(p, wanted));
        with_address().find(offers).or_else(|| with_address().next())
    });
    if owner.is_some() || objects.node_at(address).is_none() {
        return owner;
    }
    let any =
        |test: &dyn Fn(&ServicePort) -> bool| objects.services.iter().find(|s| ports(s).iter().any(test));
    any(&|p| p.node_port == Some(number) && carries(p, wanted))
        .or_else(|| any(&|p| p.node_port == Some(number)))
        .or_else(|| any(&|p| p.port == number && p.node_port.is_some_and(|n| n != 0)))
}

/// The Service, and those that could contend with it for an address or a node port.
pub fn related<'o>(objects: &'o Objects, service: &'o Service) -> Vec<&'o Service> {
    let addresses = |s: &Service| -> Vec<IpAddr> {
        let balancers = ingress(s).into_iter().map(|(ip, _)| ip);
        cluster_ips(s).into_iter().chain(external_ips(s)).chain(balancers).collect()
    };
    let node_ports = |s: &Service| -> Vec<i32> {
        ports(s).iter().filter_map(|p| p.node_port).filter(|p| *p != 0).collect()
    };
    let (own, own_ports) = (addresses(service), node_ports(service));
    let on_node = own.iter().any(|a| objects.node_at(*a).is_some());
    let contends = |other: &&Service| {
        name_of(other) == name_of(service)
            || addresses(other).iter().any(|a| own.contains(a))
            || node_ports(other).iter().any(|p| own_ports.contains(p) || on_node)
    };
    objects.services.iter().filter(contends).collect()
}

/// Where a flow starts.
struct Source {
    kind: SourceKind,
    addresses: Vec<IpAddr>,
    node: Option<String>,
    name: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SourceKind {
    Pod,
    Node,
    Outside,
}

impl Source {
    fn of(place: &Place, objects: &Objects) -> Result<Source, CantTell> {
        let on_node = |node: &Node| Source {
            kind: SourceKind::Node,
            addresses: node_addresses(node),
            node: Some(node.name_any()),
            name: format!("node {}", node.name_any()),
        };
        Ok(match place {
            Place::Node(name) => on_node(objects.node(name).ok_or_else(|| no_node(objects, name))?),
            Place::Outside => {
                Source { kind: SourceKind::Outside, addresses: vec![], node: None, name: "outside".into() }
            }
            Place::Pod { namespace, name } => {
                let pod = objects.pod(namespace, name).ok_or_else(|| {
                    let known = objects.pods.iter().map(|p| p.name_any()).collect::<Vec<_>>();
                    let near = crate::near::nearest(name, known.iter().map(String::as_str));
                    CantTell(match near {
                        Some(near) => format!("there is no pod {namespace}/{name}; did you mean {near}?"),
                        None => format!("there is no pod {namespace}/{name}"),
                    })
                })?;
                let node = portolan_control::pods::node_name(pod).map(str::to_owned);
                if node.is_none() || pod_addresses(pod).is_empty() {
                    return Err(CantTell(format!(
                        "pod {namespace}/{name} has no {} yet, so nothing can start there",
                        if node.is_none() { "node" } else { "address" }
                    )));
                }
                let kind = if uses_host_network(pod) { SourceKind::Node } else { SourceKind::Pod };
                Source { kind, addresses: pod_addresses(pod), node, name: format!("pod {namespace}/{name}") }
            }
            Place::Address(address) => {
                if let Some(pod) = objects.pod_at(*address) {
                    let node = portolan_control::pods::node_name(pod).map(str::to_owned);
                    let name = format!("pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
                    Source { kind: SourceKind::Pod, addresses: vec![*address], node, name }
                } else if let Some(node) = objects.node_at(*address) {
                    Source { addresses: vec![*address], ..on_node(node) }
                } else {
                    let name = address.to_string();
                    Source { kind: SourceKind::Outside, addresses: vec![*address], node: None, name }
                }
            }
        })
    }

    fn outside(&self) -> bool {
        self.kind == SourceKind::Outside
    }

    /// The family of all its addresses, if they have one.
    fn family(&self) -> Option<Family> {
        let first = Family::of(*self.addresses.first()?);
        self.addresses.iter().all(|a| Family::of(*a) == first).then_some(first)
    }

    fn has(&self, family: Family) -> bool {
        self.addresses.is_empty() || self.addresses.iter().any(|a| Family::of(*a) == family)
    }

    fn origin(&self, family: Family, remarks: &mut Vec<String>) -> Result<Origin, CantTell> {
        let address = of_family(&self.addresses, Some(family));
        match (self.kind, address) {
            (SourceKind::Pod, Some(address)) => Ok(Origin::Pod(address)),
            (SourceKind::Node, Some(address)) => Ok(Origin::Node(address)),
            (SourceKind::Outside, Some(address)) => Ok(Origin::Outside(address)),
            (SourceKind::Outside, None) if self.addresses.is_empty() => {
                let text = if family == Family::V4 { SOMEBODY.0 } else { SOMEBODY.1 };
                remarks
                    .push(format!("{text} stands for somebody outside; give an address for --from instead"));
                text.parse().map(Origin::Outside).map_err(|_| CantTell(text.into()))
            }
            (_, None) => Err(CantTell(format!("{} has no {family} address to send from", self.name))),
        }
    }
}
