//! Compares what became of flows with what the plan says, and counts which rules of Services they have tried.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_plan::finding::Object;
use portolan_plan::model::*;
use portolan_plan::planner::Views;
use portolan_plan::trace::{Origin, Outcome, SourceSeen, Verdict};
use portolan_plan::view::EndpointView;

use crate::draw::Drawn;
use crate::flows::ENOUGH;
use crate::world::{Fate, is_answered};

/// The rules, by the number of their row in the table of what is correct.
pub const ROWS: [&str; 31] = [
    "A1.11 external IP",
    "A1.12 affinity keeps a client at its endpoint",
    "A1.14 source range lets in",
    "A1.14 source range shuts out",
    "A1.16 external policy Cluster",
    "A1.16 external policy Local keeps the source",
    "A1.23 internal policy Local",
    "A1.31 ipMode Proxy is not captured",
    "A1.3 SCTP",
    "A1.3 UDP",
    "A6.1 a Service of another proxy is left alone",
    "A6.5 terminating endpoints where none is ready",
    "A6.6 hints for this node",
    "A6.6 hints for this zone",
    "A6.7 external policy Local without a local endpoint",
    "A6.7 internal policy Local without a local endpoint",
    "A6.7 no endpoint at all",
    "A6.8 external policy Local from a pod of the node",
    "A6.8 external policy Local from the node",
    "A6.9 a cluster IP from a pod keeps the source",
    "A6.9 a cluster IP from the node",
    "A6.9 a cluster IP from outside",
    "A6.9 masquerade all",
    "A6.10 hairpin",
    "A6.11 an undefined port of a cluster IP",
    "A6.11 an unallocated cluster IP",
    "A6.15 a family without a range",
    "A6.16 a node port",
    "A6.16 a node port on an address that wasn't chosen",
    "A6.17 a node port on localhost",
    "no Service: untouched",
];

/// How often each row was tried.
pub type Counts = BTreeMap<&'static str, usize>;

/// What one round knows.
pub struct Judge<'a> {
    pub plan: &'a Plan,
    pub views: &'a Views,
    pub masquerade_all: bool,
    /// By set and source: the backend that a sticky client has.
    pub memory: BTreeMap<(ServiceName, SetName, IpAddr), Backend>,
    /// By set: how many flows without affinity it got, and which of its backends.
    pub spread: BTreeMap<(ServiceName, SetName), (usize, BTreeSet<Backend>)>,
    pub node_addresses: BTreeSet<IpAddr>,
}

impl Judge<'_> {
    /// An error says how a flow's fate differs from the verdict.
    pub fn judge(&mut self, drawn: &Drawn, verdict: &Verdict, fate: &Fate) -> Result<(), String> {
        let untouched = fate.arrived.is_none_or(|(at, source)| {
            at.address == drawn.flow.destination && at.port == drawn.flow.port && source == drawn.source.ip()
        });
        match &verdict.outcome {
            Outcome::Drop => match fate {
                Fate { arrived: None, refused: false, .. } => Ok(()),
                _ => Err("is to be dropped".into()),
            },
            Outcome::Reject => match fate {
                Fate { arrived: None, refused: true, .. } => Ok(()),
                _ => Err("is to be refused".into()),
            },
            Outcome::NotAService if untouched => Ok(()),
            Outcome::NotAService => Err("is no Service's and was translated".into()),
            Outcome::Forward { set, source_seen, affinity } => {
                let Some((backend, source)) = fate.arrived else { return Err("is to arrive".into()) };
                if !set.contains(&backend) {
                    return Err(format!("arrived at {backend}"));
                }
                let hidden = match source_seen {
                    SourceSeen::Kept => false,
                    SourceSeen::Node => true,
                    SourceSeen::KeptUnlessItself => backend.address == drawn.source.ip(),
                };
                let right =
                    if hidden { self.node_addresses.contains(&source) } else { source == drawn.source.ip() };
                if !right || hidden && source.is_loopback() {
                    return Err(format!("has the source {source} at {backend}"));
                }
                if is_answered(drawn) && !fate.answered {
                    return Err("got no answer in the name of the address that it was sent to".into());
                }
                let (service, name) =
                    self.plan.chosen(&drawn.flow).expect("a verdict to forward names a set");
                if affinity.is_some() {
                    let key = (service.clone(), name.clone(), drawn.source.ip());
                    let kept = *self.memory.entry(key).or_insert(backend);
                    if kept != backend {
                        return Err(format!("went to {backend}, and before to {kept}"));
                    }
                } else {
                    let (count, seen) = self.spread.entry((service.clone(), name.clone())).or_default();
                    *count += 1;
                    seen.insert(backend);
                }
                Ok(())
            }
        }
    }

    /// Sets that got many flows, and those not to all of their backends.
    pub fn uneven(&self) -> Vec<String> {
        let mut all = Vec::new();
        for ((service, name), (count, seen)) in &self.spread {
            let Some(set) = self.plan.services.get(service).and_then(|p| p.sets.get(name)) else { continue };
            if *count >= set.backends.len() * ENOUGH && seen.len() < set.backends.len() {
                all.push(format!("{service} {name:?}: {count} flows, and only to {seen:?}"));
            }
        }
        all
    }

    /// The rows that a flow has tried.
    pub fn rows(&self, drawn: &Drawn, verdict: &Verdict) -> Vec<&'static str> {
        let flow = &drawn.flow;
        let mut rows = Vec::new();
        if drawn.foreign {
            rows.push("A6.1 a Service of another proxy is left alone");
        }
        let address =
            Frontend::Address { address: flow.destination, protocol: flow.protocol, port: flow.port };
        let node_port = Frontend::NodePort {
            family: Family::of(flow.destination),
            protocol: flow.protocol,
            port: flow.port,
        };
        let at_node = self.node_addresses.contains(&flow.destination) || flow.destination.is_loopback();
        let frontend = |wanted: &Frontend| {
            self.plan.services.iter().find_map(|(name, part)| Some((name, part.frontends.get(wanted)?)))
        };
        let chosen = self.plan.node.node_addresses.contains(&flow.destination);
        if at_node && !chosen && frontend(&node_port).is_some() {
            rows.push("A6.16 a node port on an address that wasn't chosen");
        }
        let found = frontend(&address).or_else(|| chosen.then(|| frontend(&node_port)).flatten());
        let from_node = matches!(flow.from, Origin::Node(_));
        let from_pod = matches!(flow.from, Origin::Pod(_));
        let Some((service, plan)) = found else {
            rows.extend(self.rows_of_nobody(drawn, verdict));
            return rows;
        };
        let view = &self.views.services[service];
        if let Outcome::Forward { set, source_seen, affinity } = &verdict.outcome {
            match flow.protocol {
                Protocol::Sctp => rows.push("A1.3 SCTP"),
                Protocol::Udp => rows.push("A1.3 UDP"),
                Protocol::Tcp => {}
            }
            if affinity.is_some() {
                rows.push("A1.12 affinity keeps a client at its endpoint");
            }
            if *source_seen == SourceSeen::KeptUnlessItself {
                rows.push("A6.10 hairpin");
            }
            rows.extend(self.rows_of_endpoints(service, drawn, set));
        }
        match plan.kind {
            FrontendKind::ClusterIp => {
                rows.push(match flow.from {
                    Origin::Pod(_) => "A6.9 a cluster IP from a pod keeps the source",
                    Origin::Node(_) => "A6.9 a cluster IP from the node",
                    Origin::Outside(_) => "A6.9 a cluster IP from outside",
                });
                if self.masquerade_all && from_pod {
                    rows.push("A6.9 masquerade all");
                }
                match (&plan.action, view.internal_policy) {
                    (Action::Balance(set), _) if set.scope == Scope::Local => {
                        rows.push("A1.23 internal policy Local")
                    }
                    (Action::Drop, _) => rows.push("A6.7 internal policy Local without a local endpoint"),
                    _ => {}
                }
            }
            kind => {
                match kind {
                    FrontendKind::ExternalIp => rows.push("A1.11 external IP"),
                    FrontendKind::NodePort => rows.push(match flow.destination.is_loopback() {
                        true => "A6.17 a node port on localhost",
                        false => "A6.16 a node port",
                    }),
                    _ => {}
                }
                match (&plan.action, plan.masquerade) {
                    (Action::Drop, _) if !from_node && !from_pod => {
                        rows.push("A6.7 external policy Local without a local endpoint");
                    }
                    (_, Masquerade::Node) if from_node => {
                        rows.push("A6.8 external policy Local from the node")
                    }
                    (_, Masquerade::Node) if from_pod => {
                        rows.push("A6.8 external policy Local from a pod of the node")
                    }
                    (Action::Balance(_), Masquerade::Node) => {
                        rows.push("A1.16 external policy Local keeps the source")
                    }
                    (Action::Balance(_), _) => rows.push("A1.16 external policy Cluster"),
                    _ => {}
                }
            }
        }
        if let Some(ranges) = &plan.source_ranges {
            rows.push(match (ranges.is_empty(), verdict.outcome == Outcome::Drop) {
                (true, _) => "A6.15 a family without a range",
                (false, true) => "A1.14 source range shuts out",
                (false, false) => "A1.14 source range lets in",
            });
        }
        if verdict.outcome == Outcome::Reject {
            rows.push("A6.7 no endpoint at all");
        }
        rows
    }

    fn rows_of_nobody(&self, drawn: &Drawn, verdict: &Verdict) -> Option<&'static str> {
        let destination = drawn.flow.destination;
        let of_proxy = self.views.services.values().flat_map(|s| &s.load_balancer);
        let reason = verdict.because.last().map(|r| (&*r.field, &r.object));
        Some(match (&verdict.outcome, reason) {
            (Outcome::Reject, _) => "A6.11 an undefined port of a cluster IP",
            (Outcome::Drop, Some(("serviceCIDRs", _))) => "A6.11 an unallocated cluster IP",
            (Outcome::Drop, Some(("clusterIPFromOutside", Object::Config))) => {
                "A6.9 a cluster IP from outside"
            }
            (Outcome::NotAService, _) if of_proxy.clone().any(|i| i.proxy && i.ip == destination) => {
                "A1.31 ipMode Proxy is not captured"
            }
            (Outcome::NotAService, _) => "no Service: untouched",
            _ => return None,
        })
    }

    /// Which choice among the endpoints of a Service this set shows.
    fn rows_of_endpoints(
        &self,
        service: &ServiceName,
        drawn: &Drawn,
        set: &BTreeSet<Backend>,
    ) -> Option<&'static str> {
        let (_, name) = self.plan.chosen(&drawn.flow)?;
        let slices = self.views.endpoints.get(service)?.slices.values().filter(|s| s.family == name.family);
        let of_port =
            slices.filter(|s| s.ports.iter().any(|p| p.name == name.port && p.protocol == name.protocol));
        let endpoints: Vec<&EndpointView> = of_port.flat_map(|s| &s.endpoints).collect();
        let used = |e: &EndpointView| set.iter().any(|b| b.address == e.address);
        if endpoints.iter().filter(|e| used(e)).all(|e| e.terminating) {
            return Some("A6.5 terminating endpoints where none is ready");
        }
        let left_out = endpoints.iter().any(|e| e.ready && !used(e));
        if name.scope == Scope::Local || !left_out {
            return None;
        }
        let node = &self.views.node;
        let ready = || endpoints.iter().filter(|e| e.ready && used(e));
        let for_node = ready().all(|e| e.hints.as_ref().is_some_and(|h| h.nodes.contains(&node.name)));
        Some(if for_node { "A6.6 hints for this node" } else { "A6.6 hints for this zone" })
    }
}
