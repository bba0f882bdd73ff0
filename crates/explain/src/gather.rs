//! Evidence from an API, as an ordinary client: lists, and nothing else.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use portolan_control::SERVICE_NAME;
use portolan_dataplane::{ActionReading, Reading};
use portolan_heard::Heard;
use portolan_plan::model::{Backend, Family, FromOutside, Frontend, Protocol, ServiceName};
use portolan_plan::trace::Origin;
use portolan_plan::view::{ExternalIps, NodePortAddresses};
use serde::de::DeserializeOwned;

use crate::objects::{Objects, is_portolans, name_of, node_addresses};
use crate::probe::{Outcome, Probe};
use crate::question::{About, FlowAsked, Place, Question, Target};
use crate::situation::{Situation, Told, has_address, related, service_at};
use crate::{Evidence, kernel};

/// What the question needs of the API: all Services and nodes, and of the Service's namespace the rest.
pub async fn gather(client: &Client, question: &Question) -> anyhow::Result<Objects> {
    let mut objects = Objects::default();
    let all = ListParams::default();
    let services = Api::<Heard<Service>>::all(client.clone());
    let nodes = Api::<Node>::all(client.clone());
    let leases = Api::<Lease>::namespaced(client.clone(), "kube-node-lease");
    let (services, nodes, leases) = tokio::join!(services.list(&all), nodes.list(&all), leases.list(&all));
    objects.services = services.context("listing Services")?.items.into_iter().map(|s| s.0).collect();
    objects.nodes = nodes.context("listing nodes")?.items.into_iter().map(Arc::new).collect();
    // Who may not see leases can still be told the rest.
    objects.leases = leases.map(|l| l.items).unwrap_or_default();

    if let About::Flow(asked) = &question.about {
        match &asked.from {
            Place::Pod { namespace, .. } => pods(client, namespace, &mut objects).await?,
            // Whether an address is a pod's, and where, is known when all are.
            Place::Address(address) if objects.node_at(*address).is_none() => {
                let every = Api::<Pod>::all(client.clone()).list(&all).await.context("listing pods")?;
                objects.pods = every.items.into_iter().map(Arc::new).collect();
            }
            _ => {}
        }
        // Nor is it known of where it is sent, if no Service and no node has it.
        if let Target::Address(address) = asked.to
            && is_strange(&objects, address)
            && !matches!(asked.from, Place::Address(from) if objects.node_at(from).is_none())
        {
            let every = Api::<Pod>::all(client.clone()).list(&all).await.context("listing pods")?;
            objects.pods = every.items.into_iter().map(Arc::new).collect();
        }
    }
    let concerned = concerned(&objects, question);
    let Some(first) = concerned.first() else { return Ok(objects) };
    let namespace = first.namespace.to_string();
    pods(client, &namespace, &mut objects).await?;
    for service in &concerned {
        // Who asks for an address means whoever has it, and that is known when all is planned.
        let shares = |address| objects.service(service).is_some_and(|s| has_address(s, address));
        if let About::Flow(FlowAsked { to: Target::Address(address), .. }) = &question.about
            && shares(*address)
        {
            pods(client, &service.namespace, &mut objects).await?;
        }
        let selector = ListParams::default().labels(&format!("{SERVICE_NAME}={}", service.name));
        let api = Api::namespaced(client.clone(), &service.namespace);
        objects.slices.extend(api.list(&selector).await.context("listing EndpointSlices")?.items);
    }
    objects.deployments = optional(client, &namespace).await;
    objects.statefulsets = optional(client, &namespace).await;
    objects.replicasets = optional(client, &namespace).await;
    objects.policies = optional(client, &namespace).await;
    objects.events = optional::<Event>(client, &namespace).await;
    Ok(objects)
}

/// Whether an address is no Service's and no node's: then it may be a pod's of any namespace.
fn is_strange(objects: &Objects, address: IpAddr) -> bool {
    objects.node_at(address).is_none() && !objects.services.iter().any(|s| has_address(s, address))
}

/// What becomes of connections to a ClusterIP from outside, where no kernel says it: `portolan node` refuses them if nothing
/// else is said, everybody else's nodes let them in (kube-proxy and `portolan agent` masquerade).
pub fn from_outside_by_default(objects: &Objects) -> FromOutside {
    match objects.nodes.iter().any(|node| is_portolans(node)) {
        true => FromOutside::Refuse,
        false => FromOutside::Masquerade,
    }
}

/// What connections said that were made where there may be no way to pods: that none came through is then no fault of the
/// backends', but worth telling.
fn away_from_nodes(probes: Vec<Probe>) -> (Vec<Probe>, Option<String>) {
    let all = probes.len();
    let lost = |p: &Probe| matches!(p.outcome, Outcome::Silent | Outcome::Unreachable);
    let (lost, told): (Vec<Probe>, Vec<Probe>) = probes.into_iter().partition(lost);
    let remark = lost.first().map(|first| {
        let how = if first.outcome == Outcome::Unreachable { "unreachable" } else { "no answer" };
        format!(
            "{} of {all} backends could not be reached from here ({} first: {how}), which says nothing of them: pods are reached from nodes; run this on one",
            lost.len(),
            first.to
        )
    });
    (told, remark)
}

/// The Service in question first, then those that contend with it.
fn concerned(objects: &Objects, question: &Question) -> Vec<ServiceName> {
    let service = match &question.about {
        About::Service(name) => objects.service(name),
        About::Flow(asked) => match &asked.to {
            Target::Service(name) => objects.service(name),
            Target::Address(address) => {
                service_at(objects, (*address, asked.port.unwrap_or_default()), asked.protocol)
            }
            Target::Node(name) => objects.node(name).and_then(|node| {
                let addresses = crate::objects::node_addresses(node);
                let at = addresses.first()?;
                service_at(objects, (*at, asked.port.unwrap_or_default()), asked.protocol)
            }),
        },
    };
    let Some(service) = service else { return Vec::new() };
    let mut names = vec![name_of(service)];
    names.extend(related(objects, service).into_iter().map(name_of).filter(|n| *n != name_of(service)));
    if let About::Flow(asked) = &question.about
        && let Target::Address(address) = asked.to
    {
        let others = objects.services.iter().filter(|s| has_address(s, address)).map(name_of);
        names.extend(others);
    }
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

async fn pods(client: &Client, namespace: &str, objects: &mut Objects) -> anyhow::Result<()> {
    let known = objects.pods.iter().any(|p| p.namespace().as_deref() == Some(namespace));
    if !known {
        let api = Api::<Pod>::namespaced(client.clone(), namespace);
        let list = api.list(&ListParams::default()).await.context("listing pods")?;
        objects.pods.extend(list.items.into_iter().map(Arc::new));
    }
    Ok(())
}

/// Objects without which an answer is poorer, but still one: a server may not have the kind, or not show it.
async fn optional<K>(client: &Client, namespace: &str) -> Vec<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    api.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default()
}

/// What to look at besides the API.
#[derive(Clone, Debug, Default)]
pub struct Looks {
    /// Connect to the backends.
    pub probe: bool,
    /// What the asker said that nodes were told; learnt from the kernel where it can be, else the defaults.
    pub service_cidrs: Option<Vec<IpNet>>,
    /// Likewise, of connections to a ClusterIP from outside.
    pub cluster_ip_from_outside: Option<FromOutside>,
    /// On which addresses NodePorts answer; the primary ones unless said.
    pub node_ports: Option<NodePortAddresses>,
    /// Which external IPs are captured; any unless said.
    pub external_ips: Option<ExternalIps>,
}

/// All evidence there is: of the API, of the kernel where we are on a node and may read it, and of connections if asked for.
pub async fn evidence(client: &Client, question: &Question, looks: &Looks) -> anyhow::Result<Evidence> {
    let objects = gather(client, question).await?;
    let mut assumed = Vec::new();
    let own = kernel::own_addresses();
    let here = objects.nodes.iter().find(|n| node_addresses(n).iter().any(|a| own.contains(a)));
    let on_node = here.is_some();
    let mut kernel = None;
    match here.map(|n| n.name_any()) {
        None => assumed.push(
            "only the API was asked: run this on a node, as root, to look into its kernel too"
                .to_owned()
                .into(),
        ),
        Some(node) => match kernel::read(&node) {
            Ok(read) => kernel = Some(read),
            Err(error) => assumed
                .push(format!("the kernel of {node} could not be read ({error:#}): run this as root").into()),
        },
    }
    let reading = kernel.as_ref().and_then(|k| k.reading.as_ref());
    let told = Told {
        service_cidrs: match &looks.service_cidrs {
            Some(ranges) => ranges.clone(),
            None => reading
                .map(|r| ranges(r, SERVICE_CIDRS))
                .filter(|r| !r.is_empty())
                .unwrap_or_else(default_ranges),
        },
        cluster_ip_from_outside: looks.cluster_ip_from_outside.unwrap_or_else(|| match reading {
            Some(reading) if ranges(reading, CLOSED_CIDRS).is_empty() => FromOutside::Masquerade,
            Some(_) => FromOutside::Refuse,
            None => from_outside_by_default(&objects),
        }),
        node_ports: looks.node_ports.clone().unwrap_or_else(NodePortAddresses::primary),
        external_ips: looks.external_ips.clone().unwrap_or_default(),
    };
    let now = Some(Timestamp::now());
    let mut evidence =
        Evidence { question: question.clone(), objects, told, kernel, probes: None, assumed, now };
    let backends = {
        let Ok(situation) = Situation::of(&evidence) else { return Ok(evidence) };
        let here = evidence.kernel.as_ref().and_then(|k| situation.pictures.get(&k.node));
        let picture = here.or_else(|| situation.pictures.values().next());
        (here.is_some(), picture.map(|p| crate::diagnose::reachable(&situation, p)).unwrap_or_default())
    };
    if let (true, Some(kernel)) = (backends.0, &mut evidence.kernel) {
        let addresses: BTreeSet<_> = backends.1.iter().map(|b| b.address).collect();
        kernel.routes = kernel::routes(addresses).context("asking for routes")?;
    }
    if looks.probe {
        let tcp = match &question.about {
            About::Flow(asked) => asked.protocol == Protocol::Tcp,
            About::Service(_) => true,
        };
        // A UDP port says nothing to a connection, and a TCP port of the same number would say the wrong thing.
        let wanted = if tcp { of_tcp(&evidence, &backends.1) } else { BTreeSet::new() };
        let mut probes = crate::probe::connect(&wanted, false).await;
        if !on_node {
            let (told, remark) = away_from_nodes(probes);
            evidence.assumed.extend(remark.map(Into::into));
            probes = told;
        }
        if probes.iter().any(|probe| probe.outcome == Outcome::Accepted) {
            probes.extend(crate::probe::connect(&entrances(&evidence), true).await);
        }
        evidence.probes = Some(probes);
    }
    Ok(evidence)
}

/// Those of the backends that are reached by TCP.
fn of_tcp(evidence: &Evidence, backends: &BTreeSet<Backend>) -> BTreeSet<SocketAddr> {
    let slices = evidence.objects.slices.iter();
    let ports: BTreeSet<u16> = slices
        .flat_map(|s| s.ports.iter().flatten())
        .filter(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP")
        .filter_map(|p| u16::try_from(p.port?).ok())
        .collect();
    let backends = backends.iter().filter(|b| ports.contains(&b.port));
    backends.map(|b| SocketAddr::new(b.address, b.port)).collect()
}

/// The addresses and ports at which the Service should answer whoever is on this node; none if we aren't on one, or the
/// question is about a client elsewhere.
fn entrances(evidence: &Evidence) -> BTreeSet<SocketAddr> {
    let Ok(situation) = Situation::of(evidence) else { return BTreeSet::new() };
    let Some(picture) = evidence.kernel.as_ref().and_then(|k| situation.pictures.get(&k.node)) else {
        return BTreeSet::new();
    };
    if situation.path.as_ref().is_some_and(|path| !matches!(path.flow.from, Origin::Node(_))) {
        return BTreeSet::new();
    }
    let concerned = crate::diagnose::concerned(&situation, picture);
    let here: Vec<IpAddr> = picture.views.node.addresses.clone();
    let answered = concerned.into_iter().filter(|(_, reading)| {
        let inside = reading.inside.as_ref().unwrap_or(&reading.action);
        matches!(inside, ActionReading::Balance { .. }) && reading.source_ranges.is_none()
    });
    let at = answered.flat_map(|(frontend, _)| match frontend {
        Frontend::Address { address, protocol: Protocol::Tcp, port } => vec![SocketAddr::new(address, port)],
        Frontend::NodePort { family, protocol: Protocol::Tcp, port } => {
            let of_family = here.iter().filter(|a| Family::of(**a) == family).take(1);
            of_family.map(|a| SocketAddr::new(*a, port)).collect()
        }
        _ => Vec::new(),
    });
    at.collect()
}

/// The kernel's sets that hold the ranges of cluster IPs, and those that are closed to outsiders (`portolan-dataplane`).
const SERVICE_CIDRS: &str = "service-cidrs";
const CLOSED_CIDRS: &str = "closed-cidrs";

/// The ranges in a set of the kernel.
fn ranges(reading: &Reading, set: &str) -> Vec<IpNet> {
    let of = |(first, last): &(IpAddr, IpAddr)| -> Vec<IpNet> {
        match (*first, *last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => ipnet::Ipv4Subnets::new(a, b, 0).map(IpNet::V4).collect(),
            (IpAddr::V6(a), IpAddr::V6(b)) => ipnet::Ipv6Subnets::new(a, b, 0).map(IpNet::V6).collect(),
            _ => Vec::new(),
        }
    };
    let named = reading.intervals.iter().filter(|((_, name), _)| *name == set);
    named.flat_map(|(_, intervals)| intervals.iter().flat_map(of)).collect()
}

/// The ranges of cluster IPs that `portolan server` and `portolan node` have if nothing else is said.
pub fn default_ranges() -> Vec<IpNet> {
    ["10.96.0.0/16", "fd00:10:96::/112"].iter().filter_map(|r| r.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_nodes_of_portolan_refuse_outsiders_at_cluster_ips_if_no_kernel_says_so() {
        let of = |runtime: &str| {
            let info = json!({"containerRuntimeVersion": runtime, "architecture": "", "bootID": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""});
            let node = json!({"metadata": {"name": "n"}, "status": {"nodeInfo": info}});
            let node: Node = serde_json::from_value(node).expect("a node");
            from_outside_by_default(&Objects { nodes: vec![Arc::new(node)], ..Objects::default() })
        };
        assert_eq!(of("portolan://0.1.0"), FromOutside::Refuse);
        assert_eq!(of("containerd://1.7.0"), FromOutside::Masquerade);
    }

    #[test]
    fn backends_that_are_out_of_reach_of_a_place_that_is_no_node_are_a_remark() {
        let probe =
            |port, outcome| Probe { to: SocketAddr::from(([10, 244, 1, 5], port)), through: false, outcome };
        let all = vec![probe(1, Outcome::Unreachable), probe(2, Outcome::Refused), probe(3, Outcome::Silent)];
        let (told, remark) = away_from_nodes(all);
        assert_eq!(told, [probe(2, Outcome::Refused)]);
        let remark = remark.expect("a remark");
        assert!(remark.starts_with("2 of 3 backends") && remark.contains("unreachable"), "{remark}");
        assert_eq!(away_from_nodes(vec![probe(1, Outcome::Accepted)]).1, None);
    }
}
