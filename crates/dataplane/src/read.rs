//! From the kernel back to a plan's terms.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use portolan_plan::model::{
    Action, Backend, Family, Frontend, FrontendKind, Masquerade, Plan, ServiceName, ServicePlan,
};
use portolan_sys::nft::Nftables;

use crate::diff::node_sets;
use crate::element::{Element, Place, Short};
use crate::encode::FAMILIES;
use crate::mirror::{Contents, Entry, Mirror};
use crate::ruleset::{self, CHAIN_REMEMBER, NODE_SETS};
use crate::shape::{self, Damage, Shape, Variable, elements};
use crate::unit::{Interval, NodeSet};
use crate::word::{Outcome, SetId, Word};

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

/// What was read of both tables.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// What they hold, of the families whose table is ours.
    pub contents: Contents,
    /// Families whose table is to be made anew: why, if there is one.
    pub build: BTreeMap<Family, Option<String>>,
    /// What is to be put right in place.
    pub damage: BTreeMap<Family, Damage>,
    /// How many elements sets have, where the kernel says so.
    pub counts: BTreeMap<(Family, String), u32>,
    /// The rules that remember clients are not, in both tables, those for `contents.kinds`.
    pub remember: bool,
}

impl Found {
    /// Whether the fixed part is as this version writes it.
    pub fn is_whole(&self) -> bool {
        self.build.is_empty() && self.damage.is_empty() && !self.remember
    }
}

/// Reads both tables' fixed part. `known` is what this engine left there, if it did. `anew`: a table that is damaged is to be
/// made anew, because it could not be put right in place.
pub fn shapes(kernel: &mut Nftables, table: &str, known: Option<&Mirror>, anew: bool) -> io::Result<Found> {
    let mut found = Found::default();
    let mut kinds: Vec<Vec<Duration>> = Vec::new();
    for family in FAMILIES {
        let ranges: Option<BTreeSet<Place>> =
            known.map(|m| m.ranges.iter().filter(|(f, _)| *f == family).map(|(_, place)| *place).collect());
        let (mut shape, mut variable) = shape::read(kernel, table, family, ranges.as_ref())?;
        if let Shape::Ours(damage) = &shape
            && anew
            && !damage.is_empty()
        {
            let what = damage.texts(family).join(", ");
            shape = Shape::Other(format!("{what}, and could not be put right in place"));
            variable = Variable::default();
        }
        match shape {
            Shape::Absent => drop(found.build.insert(family, None)),
            Shape::Other(text) => drop(found.build.insert(family, Some(text))),
            Shape::Ours(damage) => {
                found.contents.ranges.extend(variable.ranges.into_iter().map(|place| (family, place)));
                if !damage.is_empty() {
                    found.damage.insert(family, damage);
                }
            }
        }
        kinds.push(variable.kinds);
        found.counts.extend(variable.counts.into_iter().map(|(name, count)| ((family, name), count)));
    }
    // Where the families differ, the one that knows more is believed; numbers stand in the words of sticky sets.
    found.contents.kinds = match known {
        Some(mirror) => mirror.kinds.clone(),
        None => kinds.iter().max_by_key(|k| k.len()).cloned().unwrap_or_default(),
    };
    found.remember = kinds.iter().any(|k| *k != found.contents.kinds)
        || found
            .damage
            .values()
            .any(|d| d.rules.contains(CHAIN_REMEMBER) || d.chains.contains(CHAIN_REMEMBER));
    Ok(found)
}

/// Reads both tables. Nobody else is expected to change them, so each set is read for itself.
pub fn tables(kernel: &mut Nftables, table: &str, known: Option<&Mirror>, anew: bool) -> io::Result<Found> {
    let mut found = shapes(kernel, table, known, anew)?;
    for family in FAMILIES {
        if found.build.contains_key(&family) {
            continue;
        }
        let contents = &mut found.contents;
        let ranges: Vec<Place> =
            contents.ranges.iter().filter(|(f, _)| *f == family).map(|(_, place)| *place).collect();
        for place in Place::FIXED.into_iter().chain(ranges) {
            let count = found.counts.get(&(family, place.name().into_owned())).copied();
            let few = count.is_none_or(|count| count < MANY);
            let by_key = match few {
                true => None,
                false => elements_by_key(kernel, family, table, place, &contents.elements)?,
            };
            if let Some(read) = by_key.filter(|read| Some(read.len() as u32) == count) {
                contents.elements.extend(read);
                continue;
            }
            let read = elements(kernel, family, table, &place.name(), |e| {
                Element::read(family, place, e.key, e.data, e.comment).ok_or_else(|| e.key.to_vec())
            })?;
            for element in read {
                match element {
                    Ok(element) => contents.elements.push(element),
                    Err(key) => found.damage.entry(family).or_default().strange.push((place, key)),
                }
            }
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
    Ok(found)
}

/// A set of more elements is read by key where it can be. The kernel walks a hash set from its beginning for each 32 KiB of a
/// dump (nft_rhash_walk), so that a dump of a million elements takes a minute and one of ten thousand a few milliseconds.
const MANY: u32 = 20_000;

/// The elements of a large set, by the keys that what was read of the family before leads to. `None` where they can't be read
/// like this. Whoever asks has to compare how many there are with how many there ought to be: what nothing leads to isn't
/// found.
fn elements_by_key(
    kernel: &mut Nftables,
    family: Family,
    table: &str,
    place: Place,
    known: &[Element],
) -> io::Result<Option<Vec<Element>>> {
    let sticky = match place {
        Place::Slots => false,
        Place::Tokens | Place::Endpoints => true,
        _ => return Ok(None),
    };
    let known = known.iter().filter(|element| element.family() == family);
    let groups: Vec<Vec<Short>> = if place == Place::Endpoints {
        let tokens: BTreeSet<Word> = known
            .filter_map(|element| match element {
                Element::Token { token, .. } => Some(*token),
                _ => None,
            })
            .collect();
        let any = Backend { address: Ipv4Addr::UNSPECIFIED.into(), port: 0 };
        tokens.into_iter().map(|token| vec![Element::Endpoint { token, backend: any }.key()]).collect()
    } else {
        let mut sets: BTreeMap<SetId, u32> = BTreeMap::new();
        for element in known {
            if let Element::Frontend { word, .. } = element
                && let Outcome::Spread { set, exponent } = word.outcome()
                && sticky == (set.kind() > 0)
            {
                let most = sets.entry(set).or_default();
                *most = exponent.max(*most);
            }
        }
        // Slots are filled from 0 on: the first that is missing ends the set.
        let key = |set, slot| Element::Token { family, set, slot, token: Word(0) }.key();
        sets.into_iter()
            .map(|(set, exponent)| (0..1u32 << exponent).map(|slot| key(set, slot)).collect())
            .collect()
    };
    let before = kernel.generation()?;
    let mut all = Some(Vec::new());
    let read = kernel.elements_at(ruleset::family(family), table, &place.name(), groups, |e| {
        match (&mut all, Element::read(family, place, e.key, e.data, e.comment)) {
            (Some(all), Some(element)) => all.push(element),
            _ => all = None,
        }
    });
    // What can't be read by key is read by a dump, which tells its own errors.
    Ok(all.filter(|_| read.is_ok()).filter(|_| kernel.generation().is_ok_and(|after| after == before)))
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
