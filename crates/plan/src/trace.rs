//! Where a flow would go, and which object and field decided it: evaluates a plan and never asks an encoder.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::finding::Object;
use crate::model::*;

/// Where a flow starts, and its source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// In a pod: it comes in by a link. Whether it counts as inside is decided by its address, as in the kernel.
    Pod(IpAddr),
    /// In the node's own network namespace.
    Node(IpAddr),
    /// Elsewhere: it comes in by a link.
    Outside(IpAddr),
}

/// A new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Where it starts.
    pub from: Origin,
    /// The address it is sent to.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port it is sent to.
    pub port: u16,
}

/// What becomes of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Verdict {
    /// The outcome.
    pub outcome: Outcome,
    /// Why, in the order of the decisions.
    pub because: Vec<Reason>,
}

/// The outcome of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To one of these backends.
    Forward {
        /// The backends, each as likely as another.
        set: BTreeSet<Backend>,
        /// The source address that the backend sees.
        source_seen: SourceSeen,
        /// How long the same source keeps its backend.
        affinity: Option<Duration>,
    },
    /// Silently dropped.
    Drop,
    /// Refused: RST for TCP, ICMP port unreachable for others.
    Reject,
    /// Not the business of any Service: routed as if there were no plan.
    NotAService,
}

/// The source address that a backend sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceSeen {
    /// The client's.
    Kept,
    /// An address of this node.
    Node,
    /// The client's, but an address of this node at the backend that is the client itself.
    KeptUnlessItself,
}

/// A step of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The object that decided.
    pub object: Object,
    /// Its field.
    pub field: Cow<'static, str>,
    /// What follows from it.
    pub text: String,
}

impl Origin {
    /// The source address.
    pub fn address(self) -> IpAddr {
        match self {
            Origin::Pod(a) | Origin::Node(a) | Origin::Outside(a) => a,
        }
    }
}

impl Plan {
    /// Where a new connection would go.
    pub fn trace(&self, flow: &Flow) -> Verdict {
        let source = flow.from.address();
        let inside = self.is_inside(flow.from);
        let mut because = Vec::new();
        let found = self.find(flow);
        let in_service_range = self.node.service_cidrs.iter().any(|r| r.contains(&flow.destination));

        if in_service_range && !inside && self.node.cluster_ip_from_outside == FromOutside::Refuse {
            because.push(Reason::of_config(
                "clusterIPFromOutside",
                format!(
                    "{source} is neither this node nor one of its pods, and cluster IPs are closed to others"
                ),
            ));
            return Verdict { outcome: Outcome::Drop, because };
        }
        // RFC 1122, 3.2.1.3: such addresses don't come from a network. The kernel sees to it for IPv6.
        if flow.destination.is_loopback() && !matches!(flow.from, Origin::Node(_)) {
            because.push(Reason::of_config(
                "nodePortAddresses",
                format!("{} is a loopback address and {source} is not this node", flow.destination),
            ));
            return Verdict { outcome: Outcome::Drop, because };
        }
        let Some((service, part, frontend, plan)) = found else {
            let outcome = self.nobodys(flow, in_service_range, &mut because);
            return Verdict { outcome, because };
        };

        because.push(Reason::of_service(
            service,
            plan.kind.field(),
            match frontend {
                Frontend::Address { .. } => format!("{frontend} is an address of this Service"),
                Frontend::NodePort { .. } => {
                    format!("{} is an address of this node, {frontend}", flow.destination)
                }
            },
        ));
        if let Some(ranges) = &plan.source_ranges {
            let allowed = ranges.iter().find(|r| r.contains(&source));
            because.push(Reason::of_service(
                service,
                "spec.loadBalancerSourceRanges",
                match allowed {
                    Some(range) => format!("{source} is in {range}"),
                    None => format!("{source} is in none of the {} ranges", frontend.family()),
                },
            ));
            if allowed.is_none() {
                return Verdict { outcome: Outcome::Drop, because };
            }
        }

        let policy = match plan.kind {
            FrontendKind::ClusterIp => "spec.internalTrafficPolicy",
            _ => "spec.externalTrafficPolicy",
        };
        let action = match &plan.inside {
            Some(action) if inside => {
                because.push(Reason::of_service(
                    service,
                    policy,
                    "Local, but this comes from the node or one of its pods: endpoints anywhere count".into(),
                ));
                action
            }
            _ => &plan.action,
        };
        let set = match action {
            Action::Balance(name) => match part.sets.get(name) {
                Some(set) => {
                    because.push(Reason::of_service(
                        service,
                        policy,
                        match name.scope {
                            Scope::Cluster => "usable endpoints anywhere".into(),
                            Scope::Local => "Local: usable endpoints on this node".into(),
                        },
                    ));
                    set
                }
                // Not a plan of ours: a frontend never names a set that isn't there.
                None => {
                    because.push(Reason::of_service(
                        service,
                        policy,
                        "the plan lacks the set that it names".into(),
                    ));
                    return Verdict { outcome: Outcome::Drop, because };
                }
            },
            Action::Drop => {
                because.push(Reason::of_service(
                    service,
                    policy,
                    "Local, and all usable endpoints are on other nodes".into(),
                ));
                return Verdict { outcome: Outcome::Drop, because };
            }
            Action::Reject => {
                because.push(Reason {
                    object: Object::Endpoints(service.clone()),
                    field: "endpoints[].conditions".into(),
                    text: "no endpoint for this port and family is ready, nor serving while it terminates"
                        .into(),
                });
                return Verdict { outcome: Outcome::Reject, because };
            }
        };

        let source_seen = self.source_seen(flow, plan, set);
        if source_seen != SourceSeen::Kept {
            because.push(Reason::of_service(
                service,
                policy,
                match (source_seen, plan.masquerade) {
                    (SourceSeen::KeptUnlessItself, _) => {
                        "a pod that reaches itself sees the node's address as the source".into()
                    }
                    (_, Masquerade::Outsiders) => {
                        format!("{source} is not a pod's address: the source becomes the node's")
                    }
                    (_, Masquerade::Everyone) => "Cluster: the source becomes the node's".into(),
                    (_, Masquerade::Node) => {
                        "the connection starts on the node: the source becomes the node's".into()
                    }
                },
            ));
        }
        if let Some(timeout) = set.affinity {
            because.push(Reason::of_service(
                service,
                "spec.sessionAffinity",
                format!(
                    "ClientIP: {source} keeps its endpoint for {} s after its last connection",
                    timeout.as_secs()
                ),
            ));
        }
        let outcome = Outcome::Forward { set: set.backends.clone(), source_seen, affinity: set.affinity };
        Verdict { outcome, because }
    }

    /// The set that a flow is spread over, and whose it is, as far as frontends and policies go.
    pub fn chosen(&self, flow: &Flow) -> Option<(&ServiceName, &SetName)> {
        let (service, _, _, plan) = self.find(flow)?;
        let inside = plan.inside.as_ref().filter(|_| self.is_inside(flow.from));
        match inside.unwrap_or(&plan.action) {
            Action::Balance(set) => Some((service, set)),
            Action::Drop | Action::Reject => None,
        }
    }

    /// Whether a flow counts as inside: it starts on the node, or comes from the address of one of its pods.
    fn is_inside(&self, from: Origin) -> bool {
        match from {
            Origin::Node(_) => true,
            Origin::Pod(source) | Origin::Outside(source) => {
                self.node.inside.iter().any(|r| r.contains(&source))
            }
        }
    }

    /// The frontend that a flow is addressed to.
    fn find(&self, flow: &Flow) -> Option<(&ServiceName, &ServicePlan, Frontend, &FrontendPlan)> {
        let Flow { destination, protocol, port, .. } = *flow;
        let address = Frontend::Address { address: destination, protocol, port };
        let node_port = Frontend::NodePort { family: Family::of(destination), protocol, port };
        let on_node = self.node.node_addresses.contains(&destination);
        let wanted = [Some(address), on_node.then_some(node_port)];
        wanted.into_iter().flatten().find_map(|frontend| {
            self.services.iter().find_map(|(name, part)| {
                part.frontends.get(&frontend).map(|plan| (name, &**part, frontend, plan))
            })
        })
    }

    /// What becomes of a flow to an address and port that is no frontend.
    fn nobodys(&self, flow: &Flow, in_service_range: bool, because: &mut Vec<Reason>) -> Outcome {
        let owner = self.services.iter().find_map(|(service, part)| {
            let of_address = |(f, p): (&Frontend, &FrontendPlan)| match f {
                Frontend::Address { address, .. } if *address == flow.destination => Some(p.kind),
                _ => None,
            };
            part.frontends.iter().find_map(of_address).map(|kind| (service, kind))
        });
        // As kube-proxy's nftables mode has it (pkg/proxy/nftables/proxier.go, v1.36): its `cluster-ips` chain.
        match owner {
            Some((service, kind)) => {
                let mut text = format!("the Service has no {} port {}", flow.protocol, flow.port);
                if kind != FrontendKind::ClusterIp {
                    text += "; routed on as if there were no Service, or refused if that leads back where it came from";
                }
                because.push(Reason::of_service(service, "spec.ports", text));
                if kind == FrontendKind::ClusterIp { Outcome::Reject } else { Outcome::NotAService }
            }
            None if in_service_range => {
                let text =
                    format!("{} is in a range of cluster IPs, but no Service has it", flow.destination);
                because.push(Reason::of_config("serviceCIDRs", text));
                Outcome::Drop
            }
            None => {
                because.push(Reason::of_config(
                    "services",
                    format!("no Service has {} at {} port {}", flow.destination, flow.protocol, flow.port),
                ));
                Outcome::NotAService
            }
        }
    }

    fn source_seen(&self, flow: &Flow, plan: &FrontendPlan, set: &BackendSet) -> SourceSeen {
        let source = flow.from.address();
        let masqueraded = match plan.masquerade {
            Masquerade::Outsiders => !self.node.unmasqueraded.iter().any(|r| r.contains(&source)),
            Masquerade::Everyone => true,
            Masquerade::Node => matches!(flow.from, Origin::Node(_)),
        };
        let reaches_itself =
            || self.node.local_pods.contains(&source) && set.backends.iter().any(|b| b.address == source);
        match masqueraded {
            true => SourceSeen::Node,
            false if reaches_itself() => SourceSeen::KeptUnlessItself,
            false => SourceSeen::Kept,
        }
    }
}

impl Reason {
    fn of_service(service: &ServiceName, field: &'static str, text: String) -> Reason {
        Reason { object: Object::Service(service.clone()), field: field.into(), text }
    }

    fn of_config(field: &'static str, text: String) -> Reason {
        Reason { object: Object::Config, field: field.into(), text }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Forward { set, source_seen, affinity } => {
                f.write_str("forward to ")?;
                for (i, backend) in set.iter().enumerate() {
                    write!(f, "{}{backend}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(match source_seen {
                    SourceSeen::Kept => "; the client's address is kept",
                    SourceSeen::Node => "; with this node's address as source",
                    SourceSeen::KeptUnlessItself => "; the client's address is kept, except to itself",
                })?;
                if let Some(timeout) = affinity {
                    write!(f, "; sticky for {} s", timeout.as_secs())?;
                }
            }
            Outcome::Drop => f.write_str("drop")?,
            Outcome::Reject => f.write_str("reject")?,
            Outcome::NotAService => f.write_str("not a Service's")?,
        }
        for reason in &self.because {
            write!(f, "\n  {reason}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.text)
    }
}
