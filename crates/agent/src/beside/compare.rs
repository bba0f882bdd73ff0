//! Where a plan and what kube-proxy carries differ.

use std::collections::BTreeMap;
use std::fmt;

use portolan_plan::model::{Action, Family, Frontend, Plan, Protocol, ServiceName, ServicePlan};

use super::trace::{Carried, Fate};

/// A frontend that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The frontend.
    pub frontend: Frontend,
    /// The Service that has it in the plan.
    pub service: Option<ServiceName>,
    /// What the plan says; none where it doesn't have it.
    pub ours: Option<Fate>,
    /// What kube-proxy does; none where it doesn't have it.
    pub theirs: Option<Fate>,
}

/// What a plan carries, with the Service that each frontend belongs to.
fn planned(plan: &Plan) -> BTreeMap<Frontend, (&ServiceName, Fate)> {
    let mut all = BTreeMap::new();
    for (name, service) in &plan.services {
        for (frontend, part) in service.frontends.iter() {
            let mut fate = Fate { drops: part.source_ranges.is_some(), ..Fate::default() };
            for action in [Some(&part.action), part.inside.as_ref()].into_iter().flatten() {
                add(&mut fate, action, service);
            }
            all.insert(*frontend, (name, fate));
        }
    }
    all
}

fn add(fate: &mut Fate, action: &Action, service: &ServicePlan) {
    match action {
        Action::Balance(set) => {
            fate.backends.extend(service.sets.get(set).into_iter().flat_map(|set| &set.backends));
        }
        Action::Drop => fate.drops = true,
        Action::Reject => fate.rejects = true,
    }
}

/// All differences, by frontend.
pub fn compare(plan: &Plan, carried: &Carried) -> Vec<Difference> {
    let planned = planned(plan);
    let mut differences = Vec::new();
    for (frontend, (service, ours)) in &planned {
        let theirs = carried.get(frontend);
        if theirs != Some(ours) {
            differences.push(Difference {
                frontend: *frontend,
                service: Some((*service).clone()),
                ours: Some(ours.clone()),
                theirs: theirs.cloned(),
            });
        }
    }
    for (frontend, theirs) in carried.iter().filter(|(frontend, _)| !planned.contains_key(frontend)) {
        let theirs = Some(theirs.clone());
        differences.push(Difference { frontend: *frontend, service: None, ours: None, theirs });
    }
    differences.sort_by_key(|difference| difference.frontend);
    differences
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(service) = &self.service {
            write!(f, "{service} ")?;
        }
        let protocol = |protocol| match protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        };
        match self.frontend {
            Frontend::Address { address, protocol: p, port } => {
                write!(f, "{}/{}", std::net::SocketAddr::new(address, port), protocol(p))?;
            }
            Frontend::NodePort { family, protocol: p, port } => {
                let of = if family == Family::V4 { "IPv4" } else { "IPv6" };
                write!(f, "node port {port}/{} ({of})", protocol(p))?;
            }
        }
        match (&self.ours, &self.theirs) {
            (Some(ours), None) => write!(f, ": kube-proxy doesn't have it; here it {ours}"),
            (None, Some(theirs)) => write!(f, ": only kube-proxy has it; there it {theirs}"),
            (ours, theirs) => {
                let (ours, theirs) = (ours.clone().unwrap_or_default(), theirs.clone().unwrap_or_default());
                let only = |a: &Fate, b: &Fate| Fate {
                    backends: a.backends.difference(&b.backends).copied().collect(),
                    drops: a.drops && !b.drops,
                    rejects: a.rejects && !b.rejects,
                };
                write!(f, ": only here it {}; ", only(&ours, &theirs))?;
                write!(f, "only with kube-proxy it {}", only(&theirs, &ours))
            }
        }
    }
}

impl fmt::Display for Fate {
    /// A verb's phrase, such as `goes to 10.244.1.5:80 or is dropped`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let mut parts = Vec::new();
        if !self.backends.is_empty() {
            let ends = self.backends.iter().take(SHOWN);
            let ends: Vec<_> =
                ends.map(|b| std::net::SocketAddr::new(b.address, b.port).to_string()).collect();
            let more = self.backends.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            parts.push(format!("goes to {}{more}", ends.join(", ")));
        }
        if self.drops {
            parts.push("is dropped".into());
        }
        if self.rejects {
            parts.push("is refused".into());
        }
        if parts.is_empty() {
            parts.push("does nothing else".into());
        }
        f.write_str(&parts.join(" or "))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use portolan_plan::model::{Backend, BackendSet, FrontendKind, FrontendPlan, Masquerade, Scope, SetName};

    use super::*;

    fn backend(text: &str) -> Backend {
        let at: std::net::SocketAddr = text.parse().expect("an address");
        Backend { address: at.ip(), port: at.port() }
    }

    fn at(text: &str) -> Frontend {
        let at: std::net::SocketAddr = text.parse().expect("an address");
        Frontend::Address { address: at.ip(), protocol: Protocol::Tcp, port: at.port() }
    }

    fn plan(frontend: Frontend, backends: &[&str]) -> Plan {
        let scope = Scope::Cluster;
        let set = SetName { port: "".into(), protocol: Protocol::Tcp, family: Family::V4, scope };
        let action = match backends {
            [] => Action::Reject,
            _ => Action::Balance(set.clone()),
        };
        let part = FrontendPlan {
            kind: FrontendKind::ClusterIp,
            action,
            inside: None,
            masquerade: Masquerade::Outsiders,
            source_ranges: None,
        };
        let mut service = ServicePlan::default();
        let backends = backends.iter().map(|b| backend(b)).collect();
        service.sets.insert(set, BackendSet { backends, affinity: None });
        service.frontends.insert(frontend, part);
        let name = ServiceName { namespace: "default".into(), name: "web".into() };
        Plan { services: [(name, Arc::new(service))].into(), ..Plan::default() }
    }

    fn carried(frontend: Frontend, backends: &[&str], rejects: bool) -> Carried {
        let backends = backends.iter().map(|b| backend(b)).collect();
        [(frontend, Fate { backends, drops: false, rejects })].into()
    }

    #[test]
    fn a_difference_says_which_service_and_what_is_only_on_one_side() {
        let web = at("10.96.0.10:80");
        let two = plan(web, &["10.244.1.1:80", "10.244.1.2:80"]);
        assert_eq!(compare(&two, &carried(web, &["10.244.1.1:80", "10.244.1.2:80"], false)), []);
        assert_eq!(compare(&plan(web, &[]), &carried(web, &[], true)), []);
        let said = |plan: &Plan, carried: &Carried| {
            compare(plan, carried).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            said(&two, &carried(web, &["10.244.1.1:80", "10.244.1.3:80"], false)),
            [
                "default/web 10.96.0.10:80/TCP: only here it goes to 10.244.1.2:80; only with kube-proxy it goes to 10.244.1.3:80"
            ]
        );
        assert_eq!(
            said(&two, &carried(at("10.96.0.11:80"), &["10.244.1.9:80"], false)),
            [
                "default/web 10.96.0.10:80/TCP: kube-proxy doesn't have it; here it goes to 10.244.1.1:80, 10.244.1.2:80",
                "10.96.0.11:80/TCP: only kube-proxy has it; there it goes to 10.244.1.9:80"
            ]
        );
        assert_eq!(
            said(&two, &carried(web, &[], true)),
            [
                "default/web 10.96.0.10:80/TCP: only here it goes to 10.244.1.1:80, 10.244.1.2:80; only with kube-proxy it is refused"
            ]
        );
    }
}
