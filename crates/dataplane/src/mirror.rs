//! What the kernel holds, in our terms: frontends and their words, sets and their slots.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use portolan_plan::few::Few;
use portolan_plan::model::{Backend, Family, Frontend, ServiceName, ServicePlan, SetName};

use crate::element::{Element, Place};
use crate::read::Found;
use crate::unit::{Interval, NodeSet, Op};
use crate::word::{KINDS, SetId, Word};

/// The kernel's state as this engine left it, or as it was read.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    pub(crate) frontends: HashMap<Frontend, Entry>,
    pub(crate) sets: HashMap<(Family, SetId), Slots>,
    pub(crate) vips: HashMap<IpAddr, Uses>,
    pub(crate) hairpin: BTreeSet<IpAddr>,
    pub(crate) node: BTreeMap<(Family, NodeSet), Vec<Interval>>,
    pub(crate) kinds: Vec<Duration>,
    pub(crate) ranges: BTreeSet<(Family, Place)>,
    pub(crate) services: HashMap<ServiceName, Service>,
    /// For each kind: the id to try next, and how many are in use.
    pub(crate) ids: [Ids; KINDS as usize + 1],
    /// Not everything here belongs to a Service of `services`.
    pub(crate) adopted: bool,
}

/// What the kernel holds for one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub word: Word,
    pub inside: Option<Word>,
    pub owner: Option<ServiceName>,
    /// Masqueraded: `Some(true)` only from this node, `Some(false)` from anywhere.
    pub masquerade: Option<bool>,
    pub cluster_ip: bool,
    pub ranges: BTreeSet<IpNet>,
}

/// What the kernel holds for one set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    /// By slot: the backend, and its number in a sticky set.
    pub backends: Vec<(Backend, u16)>,
    /// The number to give to the next backend of a sticky set: the one that was free for longest.
    pub next: u16,
    /// Whose set it is; unknown after reading the kernel.
    pub bound: Option<(ServiceName, SetName)>,
}

/// How often an address is used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Uses {
    pub frontends: u32,
    pub cluster_ips: u32,
}

/// What this engine was told about a Service.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub plan: Arc<ServicePlan>,
    pub sets: Few<SetName, SetId>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ids {
    next: u32,
    pub used: u32,
}

impl Slots {
    /// The set's elements.
    pub fn elements(&self, family: Family, set: SetId) -> impl Iterator<Item = Element> + '_ {
        self.backends
            .iter()
            .enumerate()
            .flat_map(move |(slot, (backend, number))| slot_elements(family, set, slot, *backend, *number))
    }

    /// A number that no backend of the set has.
    pub fn number(&mut self) -> u16 {
        loop {
            let number = self.next;
            self.next = (number + 1) & crate::word::NUMBER as u16;
            if !self.backends.iter().any(|(_, taken)| *taken == number) {
                return number;
            }
        }
    }
}

/// The elements of one slot: in a sticky set also the endpoint, which is the same whatever the slot.
pub(crate) fn slot_elements(
    family: Family,
    set: SetId,
    slot: usize,
    backend: Backend,
    number: u16,
) -> impl Iterator<Item = Element> {
    let slot = slot as u32;
    let (first, second) = if set.kind() == 0 {
        (Element::Slot { set, slot, backend }, None)
    } else {
        let token = set.token(number);
        (Element::Token { family, set, slot, token }, Some(Element::Endpoint { token, backend }))
    };
    std::iter::once(first).chain(second)
}

impl Entry {
    /// The frontend's own elements.
    pub fn elements(&self, frontend: Frontend) -> Vec<Element> {
        let mut all = Vec::with_capacity(2);
        let owner = || self.owner.clone();
        all.push(Element::Frontend { frontend, inside: false, word: self.word, owner: owner() });
        if let Some(word) = self.inside {
            all.push(Element::Frontend { frontend, inside: true, word, owner: owner() });
        }
        if let Some(node) = self.masquerade {
            all.push(Element::Masquerade { frontend, node });
        }
        all.extend(self.ranges.iter().map(|net| Element::Range { net: *net, frontend }));
        all
    }
}

impl Mirror {
    /// All elements that this state consists of.
    pub fn elements(&self) -> Vec<Element> {
        let mut all: Vec<Element> = Vec::new();
        for (frontend, entry) in &self.frontends {
            all.extend(entry.elements(*frontend));
        }
        for ((family, set), slots) in &self.sets {
            all.extend(slots.elements(*family, *set));
        }
        for (address, uses) in &self.vips {
            all.push(Element::Vip(*address));
            if uses.cluster_ips > 0 {
                all.push(Element::ClusterIp(*address));
            }
        }
        all.extend(self.hairpin.iter().copied().map(Element::Hairpin));
        all
    }

    /// Makes sense of what the kernel holds. What doesn't fit is returned as operations that make the kernel equal to the
    /// mirror: elements that lead nowhere, and such as are missing.
    pub fn adopt(read: Contents) -> (Mirror, Vec<Op>) {
        let mut mirror = Mirror {
            node: read.node,
            kinds: read.kinds,
            ranges: read.ranges,
            adopted: true,
            ..Mirror::default()
        };
        let mut plain: BTreeMap<(Family, SetId), BTreeMap<u32, Backend>> = BTreeMap::new();
        let mut tokens: BTreeMap<(Family, SetId), BTreeMap<u32, Word>> = BTreeMap::new();
        let mut endpoints: HashMap<(Family, Word), Backend> = HashMap::new();
        let mut cluster_ips = BTreeSet::new();
        for element in &read.elements {
            match element {
                Element::Frontend { frontend, inside: false, word, owner } => {
                    mirror.entry(*frontend).word = *word;
                    mirror.entry(*frontend).owner = owner.clone();
                }
                Element::Slot { set, slot, backend } => {
                    plain.entry((Family::of(backend.address), *set)).or_default().insert(*slot, *backend);
                }
                Element::Token { family, set, slot, token } => {
                    tokens.entry((*family, *set)).or_default().insert(*slot, *token);
                }
                Element::Endpoint { token, backend } => {
                    endpoints.insert((Family::of(backend.address), *token), *backend);
                }
                Element::ClusterIp(address) => {
                    cluster_ips.insert(*address);
                }
                Element::Hairpin(address) => {
                    mirror.hairpin.insert(*address);
                }
                _ => {}
            }
        }
        for element in &read.elements {
            match element {
                Element::Frontend { frontend, inside: true, word, .. } => {
                    if let Some(entry) = mirror.frontends.get_mut(frontend) {
                        entry.inside = Some(*word);
                    }
                }
                Element::Masquerade { frontend, node } => {
                    if let Some(entry) = mirror.frontends.get_mut(frontend) {
                        // From anywhere includes from here.
                        entry.masquerade = Some(*node && entry.masquerade != Some(false));
                    }
                }
                Element::Range { net, frontend } => {
                    if let Some(entry) = mirror.frontends.get_mut(frontend) {
                        entry.ranges.insert(*net);
                    }
                }
                _ => {}
            }
        }
        for (frontend, entry) in &mut mirror.frontends {
            if let Frontend::Address { address, .. } = frontend {
                // Which of an address's frontends made it a cluster IP isn't written down; the first sync says it again.
                entry.cluster_ip = cluster_ips.contains(address);
                let uses = mirror.vips.entry(*address).or_default();
                uses.frontends += 1;
                uses.cluster_ips += u32::from(entry.cluster_ip);
            }
        }
        for (key, slots) in plain {
            let backends: Vec<_> =
                (0u32..).map_while(|slot| slots.get(&slot).map(|backend| (*backend, 0))).collect();
            mirror.adopt_set(key, backends);
        }
        for (key, slots) in tokens {
            let backends: Vec<_> = (0u32..)
                .map_while(|slot| {
                    let token = slots.get(&slot)?;
                    let (set, number) = token.as_token()?;
                    let backend = endpoints.get(&(key.0, *token))?;
                    (set == key.1).then_some((*backend, number))
                })
                .collect();
            mirror.adopt_set(key, backends);
        }
        let wanted: BTreeSet<Element> = mirror.elements().into_iter().collect();
        let mut repairs: Vec<Op> =
            read.elements.iter().filter(|e| !wanted.contains(e)).cloned().map(Op::Delete).collect();
        let there: BTreeSet<Element> = read.elements.into_iter().collect();
        repairs.extend(wanted.into_iter().filter(|e| !there.contains(e)).map(Op::Add));
        (mirror, repairs)
    }

    /// The operations that make the kernel equal to this state again, whatever somebody did to it. What families that are
    /// made anew held is missing whole.
    pub(crate) fn restore(&self, found: &Found) -> Vec<Op> {
        let mut ops = Vec::new();
        for ((family, set), intervals) in &self.node {
            let held = found.contents.node.get(&(*family, *set));
            if held.map_or(&[][..], Vec::as_slice) != intervals.as_slice() {
                ops.push(Op::Node(*family, *set, intervals.clone()));
            }
        }
        if found.remember {
            ops.push(Op::Kinds(self.kinds.clone()));
        }
        for family in found.build.keys() {
            let mut all = Vec::new();
            for (_, place) in self.ranges.iter().filter(|(f, _)| f == family) {
                all.push(*place);
                ops.push(Op::Ranges { family: *family, new: *place, all: all.clone() });
            }
        }
        let mut wanted = self.elements();
        let mut held: Vec<&Element> = found.contents.elements.iter().collect();
        wanted.sort_unstable();
        held.sort_unstable();
        let strange = held.iter().filter(|e| wanted.binary_search(e).is_err());
        ops.extend(strange.map(|e| Op::Delete((*e).clone())));
        // What leads to others comes after them.
        let leads = |e: &Element| {
            !matches!(e, Element::Slot { .. } | Element::Token { .. } | Element::Endpoint { .. })
        };
        let (later, first): (Vec<Element>, Vec<Element>) =
            wanted.into_iter().filter(|e| held.binary_search(&e).is_err()).partition(leads);
        ops.extend(first.into_iter().chain(later).map(Op::Add));
        ops
    }

    fn adopt_set(&mut self, (family, set): (Family, SetId), backends: Vec<(Backend, u16)>) {
        // The same backend twice, or two backends under one number, is nothing that we write.
        let addresses: BTreeSet<Backend> = backends.iter().map(|(backend, _)| *backend).collect();
        let numbers: BTreeSet<u16> = backends.iter().map(|(_, number)| *number).collect();
        let sane = addresses.len() == backends.len() && (set.kind() == 0 || numbers.len() == backends.len());
        if backends.is_empty() || !sane || set.kind() as usize > self.kinds.len() {
            return;
        }
        let next = backends.iter().map(|(_, number)| number + 1).max().unwrap_or(0);
        let next = next & crate::word::NUMBER as u16;
        self.sets.insert((family, set), Slots { backends, next, bound: None });
        let kind = set.kind();
        let ids = &mut self.ids[kind as usize];
        ids.used += 1;
        let id = if kind == 0 { set.0 >> 6 } else { (set.0 & !crate::word::KIND) >> 14 };
        ids.next = ids.next.max((id + 1) % SetId::ids(kind));
    }

    fn entry(&mut self, frontend: Frontend) -> &mut Entry {
        self.frontends.entry(frontend).or_insert_with(|| Entry {
            word: Word(0),
            inside: None,
            owner: None,
            masquerade: None,
            cluster_ip: false,
            ranges: BTreeSet::new(),
        })
    }

    /// An id that no set has; `None` if the kind has no more.
    pub(crate) fn allocate(&mut self, kind: u32) -> Option<SetId> {
        let ids = &mut self.ids[kind as usize];
        // Ids are one sequence for both families.
        if ids.used >= SetId::ids(kind) {
            return None;
        }
        loop {
            let set = SetId::new(kind, ids.next);
            ids.next = (ids.next + 1) % SetId::ids(kind);
            let taken = |family| self.sets.contains_key(&(family, set));
            if !taken(Family::V4) && !taken(Family::V6) {
                ids.used += 1;
                return Some(set);
            }
        }
    }

    /// The backends to which a word leads.
    pub(crate) fn backends(&self, family: Family, word: Word) -> Option<&Slots> {
        match word.outcome() {
            crate::word::Outcome::Spread { set, .. } => self.sets.get(&(family, set)),
            _ => None,
        }
    }
}

/// What was read from the kernel.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The elements of the places that change.
    pub elements: Vec<Element>,
    /// The sets of the node.
    pub node: BTreeMap<(Family, NodeSet), Vec<Interval>>,
    /// The affinity timeouts.
    pub kinds: Vec<Duration>,
    /// The sets of source ranges.
    pub ranges: BTreeSet<(Family, Place)>,
}
