//! From the kernel back to a plan's terms.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use portolan_plan::model::{
    Action, Backend, Family, Frontend, FrontendKind, Masquerade, Plan, ServiceName, ServicePlan,
};
use portolan_sys::nft::{ElementInfo, Nftables};

use crate::diff::node_sets;
use crate::element::{Element, Place};
use crate::encode::FAMILIES;
use crate::mirror::{Contents, Entry, Mirror};
use crate::ruleset::{self, CHAIN_REMEMBER, NODE_SETS, Ruleset};
use crate::unit::{Interval, NodeSet};
use crate::word::{Outcome, Word};

/// What the kernel does, in a plan's terms; a plan has one too ([`Reading::of`]), and after `sync` they are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Each frontend.
    pub frontends: BTreeMap<Frontend, FrontendReading>,
    /// Addresses on which node ports answer.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The node's ranges of addresses, by the name of the kernel's set, as disjoint intervals.
    pub intervals: BTreeMap<(Family, &'static str), Vec<(IpAddr, IpAddr)>>,
    /// Pods on this node.
    pub local_pods: BTreeSet<IpAddr>,
}

/// What the kernel does with one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendReading {
    /// Whose it is.
    pub owner: Option<ServiceName>,
    /// For connections from anywhere.
    pub action: ActionReading,
    /// For connections from inside, where that differs.
    pub inside: Option<ActionReading>,
    /// Source masquerade.
    pub masquerade: Masquerade,
    /// Sources that may connect, if not all.
    pub source_ranges: Option<BTreeSet<IpNet>>,
}

/// What the kernel does with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ActionReading {
    /// Nothing: the packet goes on as if there were no frontend.
    Nothing,
    /// Dropped.
    Drop,
    /// Refused.
    Reject,
    /// Spread over these.
    Balance {
        /// The backends.
        backends: BTreeSet<Backend>,
        /// For how long a client is remembered.
        affinity: Option<Duration>,
    },
}

impl Reading {
    /// What a plan asks for.
    pub fn of(plan: &Plan) -> Reading {
        let mut reading = Reading { local_pods: plan.node.local_pods.clone(), ..Reading::default() };
        reading.node(node_sets(&plan.node));
        for (name, part) in &plan.services {
            for (frontend, wanted) in &part.frontends {
                let cluster_ip =
                    wanted.kind == FrontendKind::ClusterIp && matches!(frontend, Frontend::Address { .. });
                let family = frontend.family();
                let ranges = wanted.source_ranges.as_ref().map(|nets| {
                    let of_family = nets.iter().filter(|n| Family::of(n.addr()) == family);
                    of_family.map(IpNet::trunc).collect::<BTreeSet<_>>()
                });
                reading.frontends.insert(
                    *frontend,
                    FrontendReading {
                        owner: Some(name.clone()),
                        action: ActionReading::of(&wanted.action, part, family),
                        inside: wanted.inside.as_ref().map(|a| ActionReading::of(a, part, family)),
                        masquerade: match wanted.masquerade {
                            Masquerade::Outsiders if !cluster_ip => Masquerade::Everyone,
                            other => other,
                        },
                        source_ranges: ranges.filter(|nets| !nets.iter().any(|n| n.prefix_len() == 0)),
                    },
                );
            }
        }
        reading
    }

    fn node(&mut self, sets: Vec<((Family, NodeSet), Vec<Interval>)>) {
        for ((family, set), intervals) in sets {
            if set == NodeSet::NodeAddresses {
                self.node_addresses.extend(intervals.iter().map(|(address, _)| *address));
            } else {
                self.intervals.insert((family, ruleset::node_set(set)), intervals);
            }
        }
    }
}

impl ActionReading {
    fn of(action: &Action, part: &ServicePlan, family: Family) -> ActionReading {
        match action {
            Action::Drop => ActionReading::Drop,
            Action::Reject => ActionReading::Reject,
            Action::Balance(name) => match part.sets.get(name).filter(|_| name.family == family) {
                Some(set) if !set.backends.is_empty() => ActionReading::Balance {
                    backends: set.backends.clone(),
                    affinity: set.affinity.map(|t| t.max(Duration::from_secs(1))),
                },
                _ => ActionReading::Reject,
            },
        }
    }
}

impl Mirror {
    /// What this state does, in a plan's terms.
    pub fn reading(&self) -> Reading {
        let mut reading = Reading { local_pods: self.hairpin.clone(), ..Reading::default() };
        let sets = FAMILIES.into_iter().flat_map(|family| NODE_SETS.map(|set| (family, set)));
        reading.node(sets.map(|key| (key, self.node.get(&key).cloned().unwrap_or_default())).collect());
        for (frontend, entry) in &self.frontends {
            reading.frontends.insert(*frontend, self.frontend_reading(frontend, entry));
        }
        reading
    }

    fn frontend_reading(&self, frontend: &Frontend, entry: &Entry) -> FrontendReading {
        let family = frontend.family();
        FrontendReading {
            owner: entry.owner.clone(),
            action: self.action_reading(family, entry.word),
            inside: entry.inside.map(|word| self.action_reading(family, word)),
            masquerade: match entry.masquerade {
                Some(true) => Masquerade::Node,
                Some(false) => Masquerade::Everyone,
                None => Masquerade::Outsiders,
            },
            source_ranges: entry.word.is_ranged().then(|| entry.ranges.clone()),
        }
    }

    fn action_reading(&self, family: Family, word: Word) -> ActionReading {
        match word.outcome() {
            Outcome::Nothing => ActionReading::Nothing,
            Outcome::Drop => ActionReading::Drop,
            Outcome::Reject => ActionReading::Reject,
            Outcome::Spread { set, .. } => ActionReading::Balance {
                backends: self
                    .backends(family, word)
                    .map(|slots| slots.backends.iter().map(|(backend, _)| *backend).collect())
                    .unwrap_or_default(),
                affinity: match set.kind() {
                    0 => None,
                    kind => self.kinds.get(kind as usize - 1).copied(),
                },
            },
        }
    }
}

/// What is wrong with a table of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// There is none.
    Absent,
    /// It has another version's shape, or somebody changed it.
    Other(String),
}

/// How often a set is read again because somebody committed something meanwhile.
const ATTEMPTS: usize = 100;

/// Reads both tables, if they are whole and of this version's shape. Nobody else changes them, so each set is read for itself.
pub fn contents(kernel: &mut Nftables, table: &str) -> io::Result<Result<Contents, Unfit>> {
    let mut contents = Contents::default();
    for family in FAMILIES {
        if let Err(unfit) = shape(kernel, table, family, &mut contents)? {
            return Ok(Err(unfit));
        }
    }
    let mut strange = None;
    for family in FAMILIES {
        let ranges: Vec<Place> =
            contents.ranges.iter().filter(|(f, _)| *f == family).map(|(_, place)| *place).collect();
        for place in Place::FIXED.into_iter().chain(ranges) {
            let read: Vec<Option<Element>> = elements(kernel, family, table, &place.name(), |e| {
                Element::read(family, place, e.key, e.data, e.comment)
            })?;
            if read.iter().any(Option::is_none) {
                strange = Some(place);
            }
            contents.elements.extend(read.into_iter().flatten());
        }
        for set in NODE_SETS {
            let bounds = elements(kernel, family, table, ruleset::node_set(set), |e| {
                let address = match family {
                    Family::V4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(e.key).ok()?)),
                    Family::V6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(e.key).ok()?)),
                };
                Some((address, e.interval_end))
            })?;
            let bounds = bounds.into_iter().flatten().collect();
            contents.node.insert((family, set), intervals(set, bounds, family));
        }
    }
    Ok(match strange {
        Some(place) => Err(Unfit::Other(format!("an element of {} isn't ours", place.name()))),
        None => Ok(contents),
    })
}

/// The elements of a set, read in one piece.
fn elements<T>(
    kernel: &mut Nftables,
    family: Family,
    table: &str,
    set: &str,
    read: impl Fn(ElementInfo<'_>) -> T,
) -> io::Result<Vec<T>> {
    let mut attempts = 0;
    loop {
        let mut all = Vec::new();
        match kernel.elements(ruleset::family(family), table, set, |e| all.push(read(e))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && attempts < ATTEMPTS => attempts += 1,
            other => return other.map(|()| all),
        }
    }
}

/// Compares a table's fixed part with what this version writes, and reads its variable rules.
fn shape(
    kernel: &mut Nftables,
    table: &str,
    family: Family,
    contents: &mut Contents,
) -> io::Result<Result<(), Unfit>> {
    let other = |text: String| Ok(Err(Unfit::Other(text)));
    let kernel_family = ruleset::family(family);
    let Some(info) = kernel.table(kernel_family, table)? else {
        return Ok(Err(Unfit::Absent));
    };
    if info.comment.as_deref() != Some(&crate::encode::shape(family)) {
        return other(format!("table {} {table} has another shape", kernel_family.name()));
    }
    let wanted = Ruleset::new(kernel_family);
    let chains: BTreeMap<String, bool> =
        kernel.chains(kernel_family, table)?.into_iter().map(|c| (c.name, c.hook.is_some())).collect();
    let sets: BTreeSet<String> = kernel.sets(kernel_family, table)?.into_iter().map(|s| s.name).collect();
    for name in &sets {
        contents.ranges.extend(Place::of_ranges(name).map(|place| (family, place)));
    }
    let mut rules: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for rule in kernel.rules(kernel_family, table)? {
        rules.entry(rule.chain).or_default().push(rule.expressions);
    }
    for chain in &wanted.chains {
        if chains.get(&chain.name) != Some(&chain.hook.is_some()) {
            return other(format!("chain {} is missing", chain.name));
        }
        let rules = rules.get(&chain.name).map_or(&[][..], Vec::as_slice);
        let count = match chain.name.as_str() {
            CHAIN_REMEMBER => rules.len(),
            ruleset::CHAIN_RANGES | ruleset::CHAIN_RANGES_AGAIN => {
                chain.rules.len() + contents.ranges.iter().filter(|(f, _)| *f == family).count()
            }
            _ => chain.rules.len(),
        };
        if rules.len() != count {
            return other(format!("chain {} has {} rules, not {count}", chain.name, rules.len()));
        }
        if chain.name == CHAIN_REMEMBER {
            let kinds: Vec<Duration> = (1u32..)
                .zip(rules)
                .map_while(|(kind, rule)| {
                    let (read, timeout) = ruleset::read_remember_rule(rule)?;
                    (read == kind).then(|| Duration::from_millis(timeout))
                })
                .collect();
            if kinds.len() != rules.len() || (family == Family::V6 && kinds != contents.kinds) {
                return other("the rules that remember clients differ".into());
            }
            contents.kinds = kinds;
        }
    }
    let missing = wanted.sets.iter().map(|s| &s.name).find(|name| !sets.contains(*name));
    if let Some(name) = missing {
        return other(format!("set {name} is missing"));
    }
    Ok(Ok(()))
}

/// Pairs the bounds of intervals as the kernel keeps them: a beginning, and the address after the end.
fn intervals(set: NodeSet, mut bounds: Vec<(IpAddr, bool)>, family: Family) -> Vec<Interval> {
    bounds.sort_unstable();
    if set == NodeSet::NodeAddresses {
        return bounds.into_iter().map(|(address, _)| (address, address)).collect();
    }
    let mut all = Vec::new();
    let mut open: Option<IpAddr> = None;
    for (address, end) in bounds {
        match (end, open) {
            (true, Some(first)) => {
                all.push((first, before(address)));
                open = None;
            }
            (false, _) => open = Some(address),
            (true, None) => {}
        }
    }
    let highest = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::BROADCAST),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
    };
    all.extend(open.map(|first| (first, highest)));
    all
}

fn before(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(a) => IpAddr::V4(a.to_bits().saturating_sub(1).into()),
        IpAddr::V6(a) => IpAddr::V6(a.to_bits().saturating_sub(1).into()),
    }
}
