//! The second step of planning: who owns a frontend that several Services claim.
//!
//! In this order:
//! 1. An address that is some Service's cluster IP is never an external or load-balancer address of another Service,
//!    at no port: otherwise whoever may write a Service could take over another's traffic (CVE-2020-8554).
//! 2. A node port goes before an external or load-balancer address that is an address of the node.
//! 3. A cluster IP goes before the rest; then the older Service; of two of one age, the first by name.
//!
//! Whoever loses keeps its other frontends, and gets a finding.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::finding::Finding;
use crate::model::*;
use crate::service::ServiceClaims;

/// All claims, by what they claim.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// Who claims a frontend, best first. Most have one claimant, so a `Vec` that holds exactly one.
    frontends: BTreeMap<Frontend, Vec<Claim>>,
    /// Who has an address as cluster IP, and who wants it as another kind of address.
    addresses: BTreeMap<IpAddr, Claimants>,
}

/// Ordered by precedence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    not_cluster_ip: bool,
    created: i64,
    service: ServiceName,
}

/// Counts of claims, by Service.
#[derive(Clone, Debug, Default)]
struct Claimants {
    cluster_ip: Vec<(ServiceName, u32)>,
    other: Vec<(ServiceName, u32)>,
}

impl Claims {
    /// Replaces the claims of one Service. Gives the other Services whose share may have changed by it.
    #[must_use]
    pub fn replace(
        &mut self,
        service: &ServiceName,
        old: Option<&ServiceClaims>,
        new: Option<&ServiceClaims>,
        node_addresses: &BTreeSet<IpAddr>,
    ) -> BTreeSet<ServiceName> {
        let mut touched = BTreeSet::new();
        let same_age = old.map(|c| c.created) == new.map(|c| c.created);
        let kind = |claims: Option<&ServiceClaims>, f: &Frontend| {
            claims.and_then(|c| c.wanted.frontends.get(f)).map(|p| p.kind)
        };
        for (frontend, plan) in old.into_iter().flat_map(|c| &c.wanted.frontends) {
            if !same_age || kind(new, frontend) != Some(plan.kind) {
                self.remove(service, frontend, plan.kind, node_addresses, &mut touched);
            }
        }
        for (frontend, plan) in new.into_iter().flat_map(|c| &c.wanted.frontends) {
            if !same_age || kind(old, frontend) != Some(plan.kind) {
                let created = new.map(|c| c.created).unwrap_or_default();
                self.add(service, created, frontend, plan.kind, node_addresses, &mut touched);
            }
        }
        touched.remove(service);
        touched
    }

    fn add(
        &mut self,
        service: &ServiceName,
        created: i64,
        frontend: &Frontend,
        kind: FrontendKind,
        node_addresses: &BTreeSet<IpAddr>,
        touched: &mut BTreeSet<ServiceName>,
    ) {
        let claim =
            Claim { not_cluster_ip: kind != FrontendKind::ClusterIp, created, service: service.clone() };
        match self.frontends.get_mut(frontend) {
            None => {
                self.frontends.insert(*frontend, vec![claim]);
            }
            Some(claims) => {
                let at = claims.partition_point(|c| *c < claim);
                claims.insert(at, claim);
            }
        }
        if let Frontend::Address { address, .. } = frontend {
            let claimants = self.addresses.entry(*address).or_default();
            if count_up(claimants.of(kind), service) && kind == FrontendKind::ClusterIp {
                touched.extend(claimants.other.iter().map(|(s, _)| s.clone()));
            }
        }
        self.touch(frontend, node_addresses, touched);
    }

    fn remove(
        &mut self,
        service: &ServiceName,
        frontend: &Frontend,
        kind: FrontendKind,
        node_addresses: &BTreeSet<IpAddr>,
        touched: &mut BTreeSet<ServiceName>,
    ) {
        if let Some(claims) = self.frontends.get_mut(frontend) {
            claims.retain(|c| c.service != *service);
            if claims.is_empty() {
                self.frontends.remove(frontend);
            }
        }
        if let Frontend::Address { address, .. } = frontend
            && let Some(claimants) = self.addresses.get_mut(address)
        {
            if count_down(claimants.of(kind), service) && kind == FrontendKind::ClusterIp {
                touched.extend(claimants.other.iter().map(|(s, _)| s.clone()));
            }
            if claimants.cluster_ip.is_empty() && claimants.other.is_empty() {
                self.addresses.remove(address);
            }
        }
        self.touch(frontend, node_addresses, touched);
    }

    /// Everyone whose share depends on who claims this frontend.
    fn touch(
        &self,
        frontend: &Frontend,
        node_addresses: &BTreeSet<IpAddr>,
        touched: &mut BTreeSet<ServiceName>,
    ) {
        let mut claimants = |f: &Frontend| {
            touched.extend(self.frontends.get(f).into_iter().flatten().map(|c| c.service.clone()));
        };
        claimants(frontend);
        if let Frontend::NodePort { family, protocol, port } = *frontend {
            for &address in node_addresses.iter().filter(|a| Family::of(**a) == family) {
                claimants(&Frontend::Address { address, protocol, port });
            }
        }
    }

    /// What a Service gets of what it claims, and a finding for whatever it doesn't get.
    pub fn settle(
        &self,
        service: &ServiceName,
        claims: &ServiceClaims,
        node_addresses: &BTreeSet<IpAddr>,
    ) -> (Arc<ServicePlan>, Vec<Finding>) {
        let mut findings = Vec::new();
        let mut lost = BTreeSet::new();
        for (frontend, plan) in &claims.wanted.frontends {
            if let Some(text) = self.obstacle(service, frontend, plan.kind, node_addresses) {
                lost.insert(*frontend);
                findings.push(Finding::service(service, plan.kind.field(), text));
            }
        }
        if lost.is_empty() {
            return (claims.wanted.clone(), findings);
        }
        let mut plan = ServicePlan::clone(&claims.wanted);
        plan.frontends.retain(|f, _| !lost.contains(f));
        let used: BTreeSet<&SetName> = plan.frontends.values().flat_map(FrontendPlan::sets).collect();
        plan.sets.retain(|name, _| used.contains(name));
        (Arc::new(plan), findings)
    }

    /// Why a Service doesn't get a frontend that it claims.
    fn obstacle(
        &self,
        service: &ServiceName,
        frontend: &Frontend,
        kind: FrontendKind,
        node_addresses: &BTreeSet<IpAddr>,
    ) -> Option<String> {
        if let Some(why) = self.barred(service, frontend, kind, node_addresses) {
            return Some(why);
        }
        // The first that isn't barred owns it; `service` itself is in the list, so the search ends there at the latest.
        let owner = self.frontends.get(frontend)?.iter().find(|c| {
            let kind = if c.not_cluster_ip { FrontendKind::ExternalIp } else { FrontendKind::ClusterIp };
            c.service == *service || self.barred(&c.service, frontend, kind, node_addresses).is_none()
        })?;
        if owner.service == *service {
            return None;
        }
        let why = match owner.not_cluster_ip {
            false => "is its cluster IP",
            true => "it is the older of the two, or of the same age and first by name",
        };
        Some(format!(
            "{frontend} belongs to service {}: {why}; choose another address or port, or delete that Service",
            owner.service
        ))
    }

    /// Rules 1 and 2: why a Service can't have a frontend whoever else claims it.
    fn barred(
        &self,
        service: &ServiceName,
        frontend: &Frontend,
        kind: FrontendKind,
        node_addresses: &BTreeSet<IpAddr>,
    ) -> Option<String> {
        let Frontend::Address { address, protocol, port } = *frontend else { return None };
        if kind != FrontendKind::ClusterIp
            && let Some((owner, _)) =
                self.addresses.get(&address).and_then(|c| c.cluster_ip.iter().find(|(s, _)| s != service))
        {
            return Some(format!(
                "{address} is the cluster IP of service {owner} and is not captured; use another address"
            ));
        }
        if node_addresses.contains(&address) {
            let node_port = Frontend::NodePort { family: Family::of(address), protocol, port };
            if let Some(owner) = self.frontends.get(&node_port).and_then(|c| c.first()) {
                return Some(format!(
                    "{frontend} is an address of this node and the node port of service {}; choose another port",
                    owner.service
                ));
            }
        }
        None
    }
}

impl Claimants {
    fn of(&mut self, kind: FrontendKind) -> &mut Vec<(ServiceName, u32)> {
        match kind {
            FrontendKind::ClusterIp => &mut self.cluster_ip,
            _ => &mut self.other,
        }
    }
}

/// Counts one more; says whether it is the first. Kept in order of names, so that what is read off it is the same
/// whatever the history.
fn count_up(counts: &mut Vec<(ServiceName, u32)>, service: &ServiceName) -> bool {
    match counts.binary_search_by(|(s, _)| s.cmp(service)) {
        Ok(at) => {
            counts[at].1 += 1;
            false
        }
        Err(at) => {
            counts.insert(at, (service.clone(), 1));
            true
        }
    }
}

/// Counts one less; says whether it was the last.
fn count_down(counts: &mut Vec<(ServiceName, u32)>, service: &ServiceName) -> bool {
    let Ok(at) = counts.binary_search_by(|(s, _)| s.cmp(service)) else { return false };
    counts[at].1 -= 1;
    let gone = counts[at].1 == 0;
    if gone {
        counts.remove(at);
    }
    gone
}
