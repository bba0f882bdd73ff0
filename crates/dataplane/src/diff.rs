//! From what the kernel holds and what a plan says to the operations between them.
//!
//! The law: whatever the kernel held, after these operations it reads back as the plan, up to the order of slots. And while
//! they are committed, a packet may take a frontend's word from before a commit and its slot from after it. That must not make
//! it miss, which is why
//!
//! - a set of N backends fills the slots 0..N, so that the lower half of those drawn from has no hole;
//! - a packet that finds nothing in all its tries looks its frontend up again: the step may have been one over several classes;
//! - a set that grows or shrinks by much gets a new id: its slots are written before its frontends point there.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use portolan_plan::few::Few;
use portolan_plan::model::{
    Action, Backend, BackendSet, Family, FromOutside, Frontend, FrontendKind, FrontendPlan, Masquerade,
    NodePlan, Plan, PlanChange, Protocol, ServiceName, ServicePlan, SetName,
};

use crate::element::Element;
use crate::mirror::{Entry, Mirror, Service, Slots, slot_elements};
use crate::unit::{Finding, Interval, NodeSet, Op, Unit};
use crate::word::{KINDS, SetId, Word};

/// A set more of whose slots change at once is written anew, so that the switch stays small.
const REWRITE: usize = 1024;

impl Mirror {
    /// Takes a change of the plan; gives the operations to `emit` in the order in which they are to be committed.
    pub fn change<E>(
        &mut self,
        change: &PlanChange,
        emit: &mut dyn FnMut(Unit) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(node) = &change.node {
            emit(self.node(node))?;
        }
        let parts = change.services.iter().map(|(name, part)| (name, part.as_ref()));
        self.parts(parts.collect(), emit)
    }

    /// Takes a whole plan.
    pub fn whole<E>(&mut self, plan: &Plan, emit: &mut dyn FnMut(Unit) -> Result<(), E>) -> Result<(), E> {
        emit(self.node(&plan.node))?;
        let gone: Vec<ServiceName> =
            self.services.keys().filter(|name| !plan.services.contains_key(*name)).cloned().collect();
        let same = |mirror: &Mirror, name: &ServiceName, part: &Arc<ServicePlan>| {
            mirror
                .services
                .get(name)
                .is_some_and(|known| Arc::ptr_eq(&known.plan, part) || known.plan == *part)
        };
        let changed = plan.services.iter().filter(|(name, part)| !same(self, name, part));
        let parts = gone
            .iter()
            .map(|name| (name, None))
            .chain(changed.map(|(name, part)| (name, Some(part))))
            .collect();
        self.parts(parts, emit)?;
        if std::mem::take(&mut self.adopted) {
            emit(self.strays())?;
        }
        Ok(())
    }

    /// Takes the new parts of Services. Those between which frontends move share a unit, so that no frontend is without an
    /// owner in between.
    fn parts<E>(
        &mut self,
        parts: Vec<(&ServiceName, Option<&Arc<ServicePlan>>)>,
        emit: &mut dyn FnMut(Unit) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut moving: BTreeSet<Frontend> = BTreeSet::new();
        let mut entangled: BTreeSet<&ServiceName> = BTreeSet::new();
        if parts.len() > 1 && !self.frontends.is_empty() {
            let names: BTreeSet<&ServiceName> = parts.iter().map(|(name, _)| *name).collect();
            for (name, part) in &parts {
                for frontend in part.iter().flat_map(|p| p.frontends.keys()) {
                    let owner = self.frontends.get(frontend).and_then(|e| e.owner.as_ref());
                    if let Some(loser) = owner.filter(|o| o != name).and_then(|o| names.get(o)) {
                        moving.insert(*frontend);
                        entangled.extend([*name, *loser]);
                    }
                }
            }
        }
        let mut joint = Unit::default();
        for (name, part) in &parts {
            if entangled.contains(*name) {
                self.service(name, *part, &moving, &mut joint);
            }
        }
        emit(joint)?;
        for (name, part) in &parts {
            if !entangled.contains(*name) {
                let mut unit = Unit::default();
                self.service(name, *part, &moving, &mut unit);
                emit(unit)?;
            }
        }
        Ok(())
    }

    /// The node's part.
    fn node(&mut self, node: &NodePlan) -> Unit {
        let mut unit = Unit::default();
        for (key, wanted) in node_sets(node) {
            let known = self.node.entry(key).or_default();
            if *known != wanted {
                unit.switch.push(Op::Node(key.0, key.1, wanted.clone()));
                *known = wanted;
            }
        }
        for address in node.local_pods.difference(&self.hairpin) {
            unit.switch.push(Op::Add(Element::Hairpin(*address)));
        }
        for address in self.hairpin.difference(&node.local_pods) {
            unit.switch.push(Op::Delete(Element::Hairpin(*address)));
        }
        self.hairpin.clone_from(&node.local_pods);
        unit
    }

    /// One Service's part: `None` removes it.
    fn service(
        &mut self,
        name: &ServiceName,
        part: Option<&Arc<ServicePlan>>,
        moving: &BTreeSet<Frontend>,
        unit: &mut Unit,
    ) {
        let known = self.services.remove(name);
        let mut old_sets = known.as_ref().map(|k| k.sets.clone()).unwrap_or_default();
        let old_frontends = || known.iter().flat_map(|k| k.plan.frontends.keys());

        let mut sets = Few::default();
        let mut dead = Vec::new();
        for (set_name, set) in part.iter().flat_map(|p| &p.sets) {
            let old = old_sets
                .remove(set_name)
                .or_else(|| self.recognise(name, set_name, part.expect("the part has this set")));
            if let Some(id) = self.backend_set(name, set_name, set, old, &mut dead, unit) {
                sets.insert(set_name.clone(), id);
            }
        }
        dead.extend(old_sets.into_iter().map(|(set_name, id)| (set_name.family, id)));

        for (frontend, wanted) in part.iter().flat_map(|p| &p.frontends) {
            let entry = self.entry_of(name, *frontend, wanted, &sets);
            self.allow_ranges(*frontend, &entry.ranges, unit);
            self.replace(*frontend, Some(entry), unit);
        }
        for frontend in old_frontends() {
            let stays = part.is_some_and(|p| p.frontends.contains_key(frontend)) || moving.contains(frontend);
            let owner = self.frontends.get(frontend).and_then(|e| e.owner.as_ref());
            if !stays && owner == Some(name) {
                self.replace(*frontend, None, unit);
            }
        }
        for (family, id) in dead {
            self.free(family, id, unit);
        }
        if let Some(part) = part {
            self.services.insert(name.clone(), Service { plan: part.clone(), sets });
        }
    }

    /// After reading the kernel: what no Service of the plan owns.
    fn strays(&mut self) -> Unit {
        let mut unit = Unit::default();
        let owned = |mirror: &Mirror, frontend: &Frontend, entry: &Entry| {
            entry
                .owner
                .as_ref()
                .and_then(|owner| mirror.services.get(owner))
                .is_some_and(|service| service.plan.frontends.contains_key(frontend))
        };
        let strays: Vec<Frontend> =
            self.frontends.iter().filter(|(f, e)| !owned(self, f, e)).map(|(f, _)| *f).collect();
        for frontend in strays {
            if is_udp(&frontend) {
                unit.stray_udp.push(frontend);
            }
            self.replace(frontend, None, &mut unit);
        }
        let unbound: Vec<(Family, SetId)> =
            self.sets.iter().filter(|(_, slots)| slots.bound.is_none()).map(|(key, _)| *key).collect();
        for (family, id) in unbound {
            self.free(family, id, &mut unit);
        }
        unit
    }

    /// The set that the kernel already has under this name, known by a frontend of the same Service that leads there.
    fn recognise(&mut self, service: &ServiceName, name: &SetName, part: &ServicePlan) -> Option<SetId> {
        if !self.adopted {
            return None;
        }
        let leads = |action: Option<&Action>| matches!(action, Some(Action::Balance(set)) if set == name);
        let id = part.frontends.iter().find_map(|(frontend, wanted)| {
            let entry = self.frontends.get(frontend).filter(|e| e.owner.as_ref() == Some(service))?;
            let word = if leads(Some(&wanted.action)) {
                entry.word
            } else if leads(wanted.inside.as_ref()) {
                entry.inside?
            } else {
                return None;
            };
            let slots = self.backends(name.family, word)?;
            slots.bound.is_none().then(|| word.set())
        })?;
        let slots = self.sets.get_mut(&(name.family, id))?;
        slots.bound = Some((service.clone(), name.clone()));
        Some(id)
    }

    /// Makes a set of backends equal to the plan's; its id.
    fn backend_set(
        &mut self,
        service: &ServiceName,
        name: &SetName,
        wanted: &BackendSet,
        old: Option<SetId>,
        dead: &mut Vec<(Family, SetId)>,
        unit: &mut Unit,
    ) -> Option<SetId> {
        let mut say = |text: String| {
            unit.findings.push(Finding {
                service: service.to_string(),
                text: format!("port {:?} {} {:?}: {text}", name.port, name.protocol, name.scope),
            });
        };
        let backends: Vec<Backend> =
            wanted.backends.iter().filter(|b| Family::of(b.address) == name.family).copied().collect();
        if backends.is_empty() {
            dead.extend(old.map(|id| (name.family, id)));
            return None;
        }
        let (kind, kinds_op) = match wanted.affinity {
            None => (0, None),
            Some(timeout) => {
                let (kind, op, shared) = self.kind(timeout);
                if let Some(other) = shared {
                    say(format!(
                        "{KINDS} different affinity timeouts are in use: {timeout:?} is kept for {other:?}; use a \
                         timeout that other Services use"
                    ));
                }
                (kind, op)
            }
        };
        let capacity = SetId::new(kind, 0).capacity();
        if backends.len() > capacity {
            say(format!("{} endpoints: the first {capacity} are used", backends.len()));
        }
        let backends = &backends[..backends.len().min(capacity)];
        unit.switch.extend(kinds_op);

        let key = |id| (name.family, id);
        if let Some(id) = old.filter(|id| id.kind() == kind) {
            let slots = self.sets.get_mut(&key(id)).expect("a set that is bound is there");
            let next = rearranged(slots, backends, kind);
            let changed = slots.backends.len().abs_diff(next.backends.len())
                + pairwise_changes(&slots.backends, &next.backends);
            if changed <= REWRITE {
                update(name.family, id, &slots.backends, &next.backends, &mut unit.switch);
                *slots = Slots { bound: Some((service.clone(), name.clone())), ..next };
                return Some(id);
            }
        }
        dead.extend(old.map(|id| (name.family, id)));
        let Some(id) = self.allocate(kind) else {
            say(format!(
                "no id is left for another set with this affinity: {} sets",
                self.ids[kind as usize].used
            ));
            return None;
        };
        let slots = rearranged(&mut Slots::default(), backends, kind);
        unit.before.extend(slots.elements(name.family, id).map(Op::Add));
        self.sets.insert(key(id), Slots { bound: Some((service.clone(), name.clone())), ..slots });
        Some(id)
    }

    /// The kind for an affinity timeout, an operation if it is a new one, and the timeout that it shares if there are too many.
    fn kind(&mut self, timeout: Duration) -> (u32, Option<Op>, Option<Duration>) {
        let timeout = timeout.max(Duration::from_secs(1));
        let known =
            |mirror: &Mirror, t: Duration| mirror.kinds.iter().position(|k| *k == t).map(|i| i as u32 + 1);
        if let Some(kind) = known(self, timeout) {
            return (kind, None, None);
        }
        if self.kinds.len() < KINDS as usize {
            self.kinds.push(timeout);
            return (self.kinds.len() as u32, Some(Op::Kinds(self.kinds.clone())), None);
        }
        if let Some(free) = (1..=KINDS).find(|kind| self.ids[*kind as usize].used == 0) {
            self.kinds[free as usize - 1] = timeout;
            return (free, Some(Op::Kinds(self.kinds.clone())), None);
        }
        let longer = self.kinds.iter().filter(|k| **k > timeout).min();
        let shared = *longer.or(self.kinds.iter().max()).expect("all kinds are in use");
        (known(self, shared).expect("one of them"), None, Some(shared))
    }

    /// What the kernel shall hold for a frontend.
    fn entry_of(
        &self,
        service: &ServiceName,
        frontend: Frontend,
        wanted: &FrontendPlan,
        sets: &Few<SetName, SetId>,
    ) -> Entry {
        let family = frontend.family();
        let ranges = wanted.source_ranges.as_ref().and_then(|nets| applicable(nets, family));
        let word = |action: &Action| {
            let word = match action {
                Action::Drop => Word::drop(),
                Action::Reject => Word::reject(),
                Action::Balance(name) => match sets.get(name).filter(|_| name.family == family) {
                    Some(id) => Word::spread(*id, self.sets[&(family, *id)].backends.len()),
                    None => Word::reject(),
                },
            };
            word.ranged(ranges.is_some())
        };
        let cluster_ip =
            wanted.kind == FrontendKind::ClusterIp && matches!(frontend, Frontend::Address { .. });
        Entry {
            word: word(&wanted.action),
            inside: wanted.inside.as_ref().map(word),
            owner: Some(service.clone()),
            masquerade: match wanted.masquerade {
                // The addresses of cluster IPs have a rule of their own. No other frontend is planned so; if one is, then
                // masquerading everyone keeps it reachable.
                Masquerade::Outsiders if cluster_ip => None,
                Masquerade::Outsiders | Masquerade::Everyone => Some(false),
                Masquerade::Node => Some(true),
            },
            cluster_ip,
            ranges: ranges.unwrap_or_default(),
        }
    }

    /// Sees to it that there are sets for these prefix lengths.
    fn allow_ranges(&mut self, frontend: Frontend, ranges: &BTreeSet<IpNet>, unit: &mut Unit) {
        let family = frontend.family();
        for net in ranges {
            let place = Element::Range { net: *net, frontend }.place();
            if self.ranges.insert((family, place)) {
                let all = self.ranges.iter().filter(|(f, _)| *f == family).map(|(_, p)| *p).collect();
                unit.switch.push(Op::Ranges { family, new: place, all });
            }
        }
    }

    /// Replaces what the kernel holds for a frontend.
    fn replace(&mut self, frontend: Frontend, entry: Option<Entry>, unit: &mut Unit) {
        let old = self.frontends.get(&frontend);
        if old == entry.as_ref() {
            return;
        }
        let mut was = old.map_or_else(Vec::new, |e| e.elements(frontend));
        let mut is = entry.as_ref().map_or_else(Vec::new, |e| e.elements(frontend));
        was.sort_unstable();
        is.sort_unstable();
        let added = is.iter().filter(|e| was.binary_search(e).is_err());
        unit.switch.extend(added.cloned().map(Op::Add));
        unit.switch.extend(was.into_iter().filter(|e| is.binary_search(e).is_err()).map(Op::Delete));
        if let Frontend::Address { address, .. } = frontend {
            let cluster_ip = |e: Option<&Entry>| e.is_some_and(|e| e.cluster_ip);
            self.count(
                address,
                (old.is_some(), entry.is_some()),
                (cluster_ip(old), cluster_ip(entry.as_ref())),
                unit,
            );
        }
        match entry {
            Some(entry) => self.frontends.insert(frontend, entry),
            None => self.frontends.remove(&frontend),
        };
    }

    /// Counts the uses of an address: `(was, is)` one of a frontend, `(was, is)` one of a cluster IP.
    fn count(&mut self, address: IpAddr, frontend: (bool, bool), cluster_ip: (bool, bool), unit: &mut Unit) {
        let uses = self.vips.entry(address).or_default();
        let old = *uses;
        uses.frontends = uses.frontends + u32::from(frontend.1) - u32::from(frontend.0);
        uses.cluster_ips = uses.cluster_ips + u32::from(cluster_ip.1) - u32::from(cluster_ip.0);
        for (was, is, element) in [
            (old.frontends, uses.frontends, Element::Vip(address)),
            (old.cluster_ips, uses.cluster_ips, Element::ClusterIp(address)),
        ] {
            match (was, is) {
                (0, 1..) => unit.switch.push(Op::Add(element)),
                (1.., 0) => unit.switch.push(Op::Delete(element)),
                _ => {}
            }
        }
        if uses.frontends == 0 {
            self.vips.remove(&address);
        }
    }

    fn free(&mut self, family: Family, id: SetId, unit: &mut Unit) {
        if let Some(slots) = self.sets.remove(&(family, id)) {
            unit.after.extend(slots.elements(family, id).map(Op::Delete));
            self.ids[id.kind() as usize].used -= 1;
        }
    }
}

fn is_udp(frontend: &Frontend) -> bool {
    let (Frontend::Address { protocol, .. } | Frontend::NodePort { protocol, .. }) = frontend;
    *protocol == Protocol::Udp
}

/// The ranges of a family; `None` if they allow everything.
fn applicable(nets: &BTreeSet<IpNet>, family: Family) -> Option<BTreeSet<IpNet>> {
    let mut all = BTreeSet::new();
    for net in nets.iter().filter(|net| Family::of(net.addr()) == family) {
        if net.prefix_len() == 0 {
            return None;
        }
        all.insert(net.trunc());
    }
    Some(all)
}

/// The slots with these backends in them, moving as few as possible. A backend keeps its number.
fn rearranged(slots: &mut Slots, wanted: &[Backend], kind: u32) -> Slots {
    let mut here: HashMap<Backend, bool> = slots.backends.iter().map(|(b, _)| (*b, false)).collect();
    let mut new = Vec::new();
    for backend in wanted {
        match here.get_mut(backend) {
            Some(stays) => *stays = true,
            None => new.push(*backend),
        }
    }
    let mut numbers: Vec<(Backend, u16)> = Vec::with_capacity(new.len());
    for backend in new {
        let number = match kind {
            0 => 0,
            _ => loop {
                let number = slots.number();
                if !numbers.iter().any(|(_, taken)| *taken == number) {
                    break number;
                }
            },
        };
        numbers.push((backend, number));
    }
    let mut new = numbers.into_iter();
    let mut next = slots.backends.clone();
    let holes: Vec<usize> = (0..next.len()).filter(|slot| !here[&next[*slot].0]).collect();
    let mut left = Vec::new();
    for slot in holes {
        match new.next() {
            Some(fresh) => next[slot] = fresh,
            None => left.push(slot),
        }
    }
    next.extend(new);
    // From the highest hole down, so that the last slot never is a hole that is still to be filled.
    for slot in left.into_iter().rev() {
        next.swap_remove(slot);
    }
    Slots { backends: next, next: slots.next, bound: None }
}

fn pairwise_changes(old: &[(Backend, u16)], new: &[(Backend, u16)]) -> usize {
    old.iter().zip(new).filter(|(a, b)| a != b).count()
}

/// The operations from one arrangement of a set to another.
fn update(family: Family, id: SetId, old: &[(Backend, u16)], new: &[(Backend, u16)], ops: &mut Vec<Op>) {
    if id.kind() == 0 {
        for slot in 0..old.len().max(new.len()) {
            let at = |all: &[(Backend, u16)]| {
                all.get(slot).and_then(|(b, n)| slot_elements(family, id, slot, *b, *n).next())
            };
            let (was, is) = (at(old), at(new));
            if was != is {
                ops.extend(was.map(Op::Delete));
                ops.extend(is.map(Op::Add));
            }
        }
        return;
    }
    let all = |slots: &[(Backend, u16)]| -> BTreeSet<Element> {
        slots
            .iter()
            .enumerate()
            .flat_map(|(slot, (backend, number))| slot_elements(family, id, slot, *backend, *number))
            .collect()
    };
    let (was, is) = (all(old), all(new));
    ops.extend(was.difference(&is).cloned().map(Op::Delete));
    ops.extend(is.difference(&was).cloned().map(Op::Add));
}

/// The node's sets for both families, as disjoint intervals in order.
pub(crate) fn node_sets(node: &NodePlan) -> Vec<((Family, NodeSet), Vec<Interval>)> {
    let closed = match node.cluster_ip_from_outside {
        FromOutside::Refuse => node.service_cidrs.clone(),
        FromOutside::Masquerade => BTreeSet::new(),
    };
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        let of = |nets: &BTreeSet<IpNet>| merged(nets.iter().filter(|n| Family::of(n.addr()) == family));
        let addresses = node.node_addresses.iter().filter(|a| Family::of(**a) == family);
        all.push(((family, NodeSet::NodeAddresses), addresses.map(|a| (*a, *a)).collect()));
        all.push(((family, NodeSet::ServiceCidrs), of(&node.service_cidrs)));
        all.push(((family, NodeSet::ClosedCidrs), of(&closed)));
        all.push(((family, NodeSet::Inside), of(&node.inside)));
        all.push(((family, NodeSet::Unmasqueraded), of(&node.unmasqueraded)));
    }
    all
}

/// Disjoint intervals that cover the same addresses.
fn merged<'a>(nets: impl Iterator<Item = &'a IpNet>) -> Vec<Interval> {
    let mut all: Vec<Interval> = nets.map(|net| (net.network(), net.broadcast())).collect();
    all.sort_unstable();
    let mut disjoint: Vec<Interval> = Vec::new();
    for (first, last) in all {
        match disjoint.last_mut() {
            Some((_, end)) if follows(*end).is_none_or(|next| first <= next) => *end = (*end).max(last),
            _ => disjoint.push((first, last)),
        }
    }
    disjoint
}

/// The address after an address, if there is one.
pub(crate) fn follows(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(a) => a.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}
