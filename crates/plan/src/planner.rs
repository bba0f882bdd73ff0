//! A plan kept up to date: an event names what changed, and only what depends on it is planned again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::claims::Claims;
use crate::finding::{Finding, Object};
use crate::model::*;
use crate::service::{HealthCheck, ServiceClaims, UdpBackends, node_port_addresses, plan_service};
use crate::view::*;

/// Everything that a plan is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Views {
    /// The Services.
    pub services: BTreeMap<ServiceName, Arc<ServiceView>>,
    /// Their endpoints. Endpoints without a Service are of no consequence.
    pub endpoints: BTreeMap<ServiceName, EndpointsView>,
    /// The node.
    pub node: NodeView,
}

/// UDP frontends whose flows may be stale, each with what becomes of flows to its backends.
pub type StaleUdp = BTreeMap<Frontend, Arc<UdpBackends>>;

/// A plan kept up to date. Whatever the history, its plan and findings are those of [`plan_all`].
#[derive(Debug)]
pub struct Planner {
    views: Views,
    claims: Claims,
    node_addresses: BTreeSet<IpAddr>,
    planned: BTreeMap<ServiceName, ServiceClaims>,
    /// Of the first step and of the second, of the few Services that have any.
    findings: BTreeMap<ServiceName, [Vec<Finding>; 2]>,
    /// How many Services have an endpoint of this address on the node.
    local_pods: Counts,
    /// How many frontends have a cluster IP that is in none of the node's ranges.
    stray_cluster_ips: Counts,
    node_findings: Vec<Finding>,
    health_checks: BTreeMap<ServiceName, HealthCheck>,
    plan: Plan,
    /// Of each UDP frontend in the plan.
    udp_backends: StaleUdp,
    stale_udp: StaleUdp,
    dirty: BTreeSet<ServiceName>,
    node_dirty: bool,
}

/// Plans everything from nothing.
pub fn plan_all(views: Views) -> (Plan, Vec<Finding>) {
    let mut planner = Planner::new(views.node.clone());
    planner.dirty = views.services.keys().cloned().collect();
    planner.views = views;
    planner.take_change();
    (planner.plan.clone(), planner.findings().cloned().collect())
}

impl Planner {
    /// A planner without Services.
    pub fn new(node: NodeView) -> Planner {
        Planner {
            views: Views { services: BTreeMap::new(), endpoints: BTreeMap::new(), node },
            claims: Claims::default(),
            node_addresses: BTreeSet::new(),
            planned: BTreeMap::new(),
            findings: BTreeMap::new(),
            local_pods: Counts::default(),
            stray_cluster_ips: Counts::default(),
            node_findings: Vec::new(),
            health_checks: BTreeMap::new(),
            plan: Plan::default(),
            udp_backends: StaleUdp::new(),
            stale_udp: StaleUdp::new(),
            dirty: BTreeSet::new(),
            node_dirty: true,
        }
    }

    /// A Service as it is now.
    pub fn set_service(&mut self, service: ServiceView) {
        if self.views.services.get(&service.name).is_none_or(|s| **s != service) {
            self.dirty.insert(service.name.clone());
            self.views.services.insert(service.name.clone(), Arc::new(service));
        }
    }

    /// A Service is gone, or no longer this node's business.
    pub fn remove_service(&mut self, name: &ServiceName) {
        if self.views.services.remove(name).is_some() {
            self.dirty.insert(name.clone());
        }
    }

    /// The endpoints of a Service as they are now; none at all if empty.
    pub fn set_endpoints(&mut self, name: &ServiceName, endpoints: EndpointsView) {
        let changed = if endpoints.slices.is_empty() {
            self.views.endpoints.remove(name).is_some()
        } else if self.views.endpoints.get(name) != Some(&endpoints) {
            self.views.endpoints.insert(name.clone(), endpoints);
            true
        } else {
            false
        };
        if changed {
            self.dirty.insert(name.clone());
        }
    }

    /// The node as it is now. Plans everything again if it changed.
    pub fn set_node(&mut self, node: NodeView) {
        if self.views.node != node {
            self.views.node = node;
            self.node_dirty = true;
        }
    }

    /// Whether something was set since the last [`take_change`](Planner::take_change).
    pub fn is_dirty(&self) -> bool {
        self.node_dirty || !self.dirty.is_empty()
    }

    /// Plans what was set since the last time. Gives what that changes in the plan, maybe nothing.
    pub fn take_change(&mut self) -> PlanChange {
        let mut dirty = std::mem::take(&mut self.dirty);
        let node_dirty = std::mem::take(&mut self.node_dirty);
        if node_dirty {
            self.node_addresses = node_port_addresses(&self.views.node);
            // What is planned depends on the node all over, so begin again with empty books.
            dirty.extend(self.planned.keys().cloned());
            dirty.extend(self.views.services.keys().cloned());
            self.claims = Claims::default();
            self.planned.clear();
            self.findings.clear();
            self.local_pods = Counts::default();
            self.stray_cluster_ips = Counts::default();
        }

        let mut unsettled = BTreeSet::new();
        for name in dirty {
            unsettled.append(&mut self.plan_one(&name));
            unsettled.insert(name);
        }

        let mut change = PlanChange::default();
        let mut udp = (BTreeSet::new(), BTreeMap::new());
        for name in unsettled {
            udp.0.extend(self.plan.services.get(&name).into_iter().flat_map(|p| udp_frontends(p)));
            let settled = self.settle_one(&name);
            if let (Some(part), Some(claims)) = (&settled, self.planned.get(&name)) {
                let backends = |f: Frontend| Some((f, claims.udp_backends.get(&f)?.clone()));
                udp.1.extend(udp_frontends(part).filter_map(backends));
            }
            if settled.as_ref() != self.plan.services.get(&name) {
                change.services.insert(name, settled);
            }
        }
        self.note_stale_udp(udp.0, udp.1);
        if node_dirty || self.local_pods.take_changed() | self.stray_cluster_ips.take_changed() {
            let (node, findings) = self.plan_node();
            self.node_findings = findings;
            if node != self.plan.node {
                change.node = Some(node);
            }
        }
        self.plan.apply(&change);
        change
    }

    /// The first step for one Service. Gives the others that have to be settled again.
    fn plan_one(&mut self, name: &ServiceName) -> BTreeSet<ServiceName> {
        let no_endpoints = EndpointsView::default();
        let new = self.views.services.get(name).map(|service| {
            let endpoints = self.views.endpoints.get(name).unwrap_or(&no_endpoints);
            plan_service(service, endpoints, &self.views.node)
        });
        let old = self.planned.remove(name);
        let new = new.map(|(claims, findings)| {
            note(&mut self.findings, name, 0, findings);
            claims
        });
        if new.is_none() {
            self.findings.remove(name);
        }
        let touched = self.claims.replace(name, old.as_ref(), new.as_ref(), &self.node_addresses);
        if let Some(claims) = &new {
            claims.local_pods.iter().for_each(|a| self.local_pods.up(*a));
            stray_cluster_ips(claims, &self.views.node).for_each(|a| self.stray_cluster_ips.up(a));
        }
        if let Some(claims) = &old {
            claims.local_pods.iter().for_each(|a| self.local_pods.down(*a));
            stray_cluster_ips(claims, &self.views.node).for_each(|a| self.stray_cluster_ips.down(a));
        }
        match new.as_ref().and_then(|c| c.health_check) {
            Some(check) => self.health_checks.insert(name.clone(), check),
            None => self.health_checks.remove(name),
        };
        if let Some(claims) = new {
            self.planned.insert(name.clone(), claims);
        }
        touched
    }

    /// The second step for one Service: its part of the plan, if it has one.
    fn settle_one(&mut self, name: &ServiceName) -> Option<Arc<ServicePlan>> {
        let claims = self.planned.get(name)?;
        let (part, findings) = self.claims.settle(name, claims, &self.node_addresses);
        note(&mut self.findings, name, 1, findings);
        (!part.frontends.is_empty()).then_some(part)
    }

    /// A UDP flow lives on in the connection table for as long as packets come, whatever the plan says by then. It is to
    /// be forgotten when its frontend is gone or its backend no longer serves; also when the frontend is new, since the
    /// flow may be older than it.
    fn note_stale_udp(&mut self, before: BTreeSet<Frontend>, after: StaleUdp) {
        for frontend in before {
            if !after.contains_key(&frontend) {
                self.udp_backends.remove(&frontend);
                self.stale_udp.insert(frontend, Arc::default());
            }
        }
        for (frontend, backends) in after {
            let old = self.udp_backends.insert(frontend, backends.clone());
            let pending = self.stale_udp.contains_key(&frontend);
            if pending || old.is_none_or(|old| old.lose_flows_under(&backends)) {
                self.stale_udp.insert(frontend, backends);
            }
        }
    }

    fn plan_node(&self) -> (NodePlan, Vec<Finding>) {
        let node = &self.views.node;
        let mut findings = Vec::new();
        let mut finding = |field: &'static str, text: String| {
            findings.push(Finding { object: Object::Node(node.name.clone()), field: field.into(), text });
        };
        let mut cluster_ip_from_outside = node.cluster_ip_from_outside;
        if node.pod_cidrs.is_empty() {
            finding(
                "spec.podCIDRs",
                "the ranges of this node's pods are not known, so its pods can't be told from outsiders; \
                 connections to ClusterIPs are forwarded from everywhere; set the node's pod ranges"
                    .to_owned(),
            );
            cluster_ip_from_outside = FromOutside::Masquerade;
        }
        if self.node_addresses.is_empty() {
            finding(
                "status.addresses",
                "no address is known on which NodePorts could answer; see the node's addresses".to_owned(),
            );
        }
        let strays = || self.stray_cluster_ips.keys().map(IpNet::from);
        if let Some(stray) = strays().next() {
            finding(
                "serviceCIDRs",
                format!(
                    "{} cluster IPs, {stray} among them, lie in none of the known ranges; add the range they come from",
                    strays().count()
                ),
            );
        }
        let pods = aggregate(node.pod_cidrs.iter().copied());
        let plan = NodePlan {
            node_addresses: self.node_addresses.clone(),
            service_cidrs: aggregate(node.service_cidrs.iter().copied().chain(strays())),
            unmasqueraded: if node.masquerade_all { BTreeSet::new() } else { pods.clone() },
            inside: pods,
            local_pods: self.local_pods.keys().collect(),
            cluster_ip_from_outside,
        };
        (plan, findings)
    }

    /// Every UDP frontend in the plan, with its backends.
    pub fn udp_backends(&self) -> &StaleUdp {
        &self.udp_backends
    }

    /// UDP frontends whose flows may have become stale since the last time: a flow to such a frontend that leads to none of
    /// its serving backends is to be deleted from the connection table once the kernel has the plan.
    pub fn take_stale_udp(&mut self) -> StaleUdp {
        std::mem::take(&mut self.stale_udp)
    }

    /// The plan as of the last [`take_change`](Planner::take_change).
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What there is to say about the objects, as of the last [`take_change`](Planner::take_change).
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.node_findings.iter().chain(self.findings.values().flatten().flatten())
    }

    /// What load balancers may ask of this node, as of the last [`take_change`](Planner::take_change).
    pub fn health_checks(&self) -> &BTreeMap<ServiceName, HealthCheck> {
        &self.health_checks
    }

    /// What the plan is made from.
    pub fn views(&self) -> &Views {
        &self.views
    }
}

/// Notes the findings of one step of one Service.
fn note(
    all: &mut BTreeMap<ServiceName, [Vec<Finding>; 2]>,
    name: &ServiceName,
    step: usize,
    findings: Vec<Finding>,
) {
    if findings.is_empty() && !all.contains_key(name) {
        return;
    }
    let of_service = all.entry(name.clone()).or_default();
    of_service[step] = findings;
    if of_service.iter().all(Vec::is_empty) {
        all.remove(name);
    }
}

fn udp_frontends(part: &ServicePlan) -> impl Iterator<Item = Frontend> {
    let is_udp = |f: &&Frontend| match f {
        Frontend::Address { protocol, .. } | Frontend::NodePort { protocol, .. } => {
            *protocol == Protocol::Udp
        }
    };
    part.frontends.keys().filter(is_udp).copied()
}

fn stray_cluster_ips<'a>(claims: &'a ServiceClaims, node: &'a NodeView) -> impl Iterator<Item = IpAddr> + 'a {
    claims.wanted.frontends.iter().filter_map(|(frontend, plan)| match frontend {
        Frontend::Address { address, .. }
            if plan.kind == FrontendKind::ClusterIp
                && !node.service_cidrs.iter().any(|r| r.contains(address)) =>
        {
            Some(*address)
        }
        _ => None,
    })
}

/// The same addresses in as few ranges as possible, none overlapping: the kernel refuses a set with overlaps.
fn aggregate(ranges: impl Iterator<Item = IpNet>) -> BTreeSet<IpNet> {
    IpNet::aggregate(&ranges.map(|r| r.trunc()).collect::<Vec<_>>()).into_iter().collect()
}

/// How often each address is wanted, and whether the addresses changed.
#[derive(Clone, Debug, Default)]
struct Counts {
    of: BTreeMap<IpAddr, u32>,
    changed: bool,
}

impl Counts {
    fn up(&mut self, address: IpAddr) {
        let count = self.of.entry(address).or_default();
        self.changed |= *count == 0;
        *count += 1;
    }

    fn down(&mut self, address: IpAddr) {
        if let Some(count) = self.of.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.of.remove(&address);
                self.changed = true;
            }
        }
    }

    fn keys(&self) -> impl Iterator<Item = IpAddr> {
        self.of.keys().copied()
    }

    fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }
}
