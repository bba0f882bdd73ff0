//! What the watches said so far, held as views in a planner.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_plan::finding::Finding;
use portolan_plan::model::ServiceName;
use portolan_plan::planner::Planner;
use portolan_plan::view::{EndpointsView, NodeView, ServiceView, SliceView};

use crate::from_kube::{Key, NodeSeen};

/// One thing that a watch said of objects of one kind.
#[derive(Clone, Debug)]
pub enum Said<T> {
    /// The list begins anew: what isn't present by its end is gone.
    Begin,
    /// An object as it is now.
    Present(Key, T),
    /// An object is gone.
    Absent(Key),
    /// The list is complete.
    End,
}

impl<T> Said<T> {
    /// Whether it is of an object, and not of a list.
    pub fn is_change(&self) -> bool {
        matches!(self, Said::Present(..) | Said::Absent(_))
    }
}

/// One thing that one of the watches said.
#[derive(Clone, Debug)]
pub enum Update {
    /// Of Services; `None` for one that nodes have nothing to do with.
    Service(Said<(Option<ServiceView>, Vec<Finding>)>),
    /// Of EndpointSlices; `None` for one that belongs to no Service.
    Slice(Said<Option<(ServiceName, SliceView)>>),
    /// Of this node.
    Node(Said<(NodeSeen, Vec<Finding>)>),
    /// Of ServiceCIDRs: the ranges of each.
    ServiceCidr(Said<Vec<IpNet>>),
}

/// What the watches said so far.
#[derive(Debug)]
pub struct Observed {
    planner: Planner,
    services: Listing<()>,
    slices: Listing<ServiceName>,
    nodes: Listing<()>,
    service_cidrs: Listing<Vec<IpNet>>,
    /// ServiceCIDRs are to be listed too.
    expects_service_cidrs: bool,
    /// What translation had to say.
    findings: BTreeMap<Key, Vec<Finding>>,
    node_findings: Vec<Finding>,
    /// Endpoints that changed and that the planner was not yet told of, so that a burst costs one look at a Service.
    endpoints: BTreeMap<ServiceName, EndpointsView>,
    /// What the agent was told of the node.
    told: NodeView,
    /// What the API last said of it.
    seen: NodeSeen,
}

/// The objects of one kind that are there, and whether the list was ever complete.
#[derive(Debug)]
struct Listing<T> {
    present: BTreeMap<Key, T>,
    /// While a list is under way: what it has not named yet.
    unconfirmed: Option<BTreeSet<Key>>,
    complete: bool,
}

impl<T> Default for Listing<T> {
    fn default() -> Listing<T> {
        Listing { present: BTreeMap::new(), unconfirmed: None, complete: false }
    }
}

impl<T> Listing<T> {
    /// Notes what was said; gives each object that is there now or gone, with what was known of it before.
    fn note<U>(
        &mut self,
        said: Said<U>,
        of: impl FnOnce(&U) -> Option<T>,
    ) -> Vec<(Key, Option<T>, Option<U>)> {
        match said {
            Said::Begin => {
                self.unconfirmed = Some(self.present.keys().cloned().collect());
                Vec::new()
            }
            Said::Present(key, object) => {
                if let Some(unconfirmed) = &mut self.unconfirmed {
                    unconfirmed.remove(&key);
                }
                let before = match of(&object) {
                    Some(value) => self.present.insert(key.clone(), value),
                    None => self.present.remove(&key),
                };
                vec![(key, before, Some(object))]
            }
            Said::Absent(key) => {
                if let Some(unconfirmed) = &mut self.unconfirmed {
                    unconfirmed.remove(&key);
                }
                let before = self.present.remove(&key);
                vec![(key, before, None)]
            }
            Said::End => {
                self.complete = true;
                let gone = self.unconfirmed.take().unwrap_or_default();
                gone.into_iter().map(|key| (key.clone(), self.present.remove(&key), None)).collect()
            }
        }
    }
}

impl Observed {
    /// Nothing yet, but what the agent was told of its node.
    pub fn new(told: NodeView) -> Observed {
        Observed {
            planner: Planner::new(told.clone()),
            services: Listing::default(),
            slices: Listing::default(),
            nodes: Listing::default(),
            service_cidrs: Listing::default(),
            expects_service_cidrs: false,
            findings: BTreeMap::new(),
            node_findings: Vec::new(),
            endpoints: BTreeMap::new(),
            told,
            seen: NodeSeen::default(),
        }
    }

    /// Waits for a list of ServiceCIDRs too. Their ranges go before those that the agent was told of.
    pub fn with_service_cidrs(mut self) -> Observed {
        self.expects_service_cidrs = true;
        self
    }

    /// Whether every kind was listed once. Before that a plan would take rules away that are only not yet known again.
    pub fn synced(&self) -> bool {
        let ranges = self.service_cidrs.complete || !self.expects_service_cidrs;
        self.services.complete && self.slices.complete && self.nodes.complete && ranges
    }

    /// Whether it is known which addresses are those of this node's pods.
    pub fn pods_are_known(&self) -> bool {
        !self.planner.views().node.pod_cidrs.is_empty()
    }

    /// Notes what a watch said.
    pub fn note(&mut self, update: Update) {
        match update {
            Update::Service(said) => {
                for (key, _, now) in self.services.note(said, |_| Some(())) {
                    self.service(key, now);
                }
            }
            Update::Slice(said) => {
                for (key, before, now) in
                    self.slices.note(said, |s| s.as_ref().map(|(service, _)| service.clone()))
                {
                    self.slice(key, before, now.flatten());
                }
            }
            Update::Node(said) => {
                for (_, _, now) in self.nodes.note(said, |_| Some(())) {
                    self.node(now);
                }
            }
            Update::ServiceCidr(said) => {
                self.service_cidrs.note(said, |ranges| Some(ranges.clone()));
                self.set_node();
            }
        }
    }

    fn service(&mut self, key: Key, now: Option<(Option<ServiceView>, Vec<Finding>)>) {
        let (view, findings) = now.unwrap_or_default();
        match view {
            Some(view) => self.planner.set_service(view),
            None => self
                .planner
                .remove_service(&ServiceName { namespace: key.namespace.clone(), name: key.name.clone() }),
        }
        if findings.is_empty() {
            self.findings.remove(&key);
        } else {
            self.findings.insert(key, findings);
        }
    }

    fn slice(&mut self, key: Key, before: Option<ServiceName>, now: Option<(ServiceName, SliceView)>) {
        if let Some(service) = before
            && now.as_ref().is_none_or(|(s, _)| *s != service)
        {
            self.endpoints_of(service).slices.remove(&key.name);
        }
        if let Some((service, slice)) = now {
            self.endpoints_of(service).slices.insert(key.name, Arc::new(slice));
        }
    }

    fn endpoints_of(&mut self, service: ServiceName) -> &mut EndpointsView {
        let known = &self.planner.views().endpoints;
        self.endpoints.entry(service).or_insert_with_key(|s| known.get(s).cloned().unwrap_or_default())
    }

    /// A node that is deleted under us, or made anew and not yet furnished, keeps what it was last seen with: its pods and
    /// their connections are still there.
    fn node(&mut self, now: Option<(NodeSeen, Vec<Finding>)>) {
        let Some((mut seen, findings)) = now else { return };
        if seen.pod_cidrs.is_empty() {
            seen.pod_cidrs = std::mem::take(&mut self.seen.pod_cidrs);
        }
        if seen.addresses.is_empty() {
            seen.addresses = std::mem::take(&mut self.seen.addresses);
        }
        self.seen = seen;
        self.node_findings = findings;
        self.set_node();
    }

    /// The machine's own addresses, as far as NodePorts may answer on more than the primary one.
    pub fn local_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        self.told.local_addresses = addresses;
        self.set_node();
    }

    fn set_node(&mut self) {
        let mut view = NodeView { zone: self.seen.zone.clone(), ..self.told.clone() };
        view.addresses.clone_from(&self.seen.addresses);
        if view.pod_cidrs.is_empty() {
            view.pod_cidrs.clone_from(&self.seen.pod_cidrs);
        }
        // While a list is under way, what the last one had still counts. An API without any says nothing of the ranges.
        let ranges: BTreeSet<IpNet> = self.service_cidrs.present.values().flatten().copied().collect();
        if !ranges.is_empty() {
            view.service_cidrs = ranges;
        }
        self.planner.set_node(view);
    }

    /// The planner, told of everything that was said.
    pub fn planner(&mut self) -> &mut Planner {
        for (service, view) in std::mem::take(&mut self.endpoints) {
            self.planner.set_endpoints(&service, view);
        }
        &mut self.planner
    }

    /// How many slices there are.
    pub fn slices(&self) -> usize {
        self.slices.present.len()
    }

    /// All findings: of translation and of planning.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.node_findings.iter().chain(self.findings.values().flatten()).chain(self.planner.findings())
    }
}
