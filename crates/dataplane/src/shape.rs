//! Compares the tables' fixed part, as the kernel holds it, with what this version writes.
//!
//! Rules are compared as they were written, expression by expression: a rule that somebody replaced by another is noticed.
//! What others add beside ours (chains, sets) is let alone, since no rule of ours leads there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use portolan_plan::model::Family;
use portolan_sys::netlink::errno;
use portolan_sys::nft::{ChainHook, ChainInfo, Expression, Nftables, SetDeclaration};

use crate::element::Place;
use crate::encode::PROTOCOLS_WITH_PORTS;
use crate::rule::ANONYMOUS;
use crate::ruleset::{self, CHAIN_REMEMBER, Chain, Ruleset};

/// One family's fixed part, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// There is no table.
    Absent,
    /// The table is of another version, or changed so that it is to be made anew; the text says how.
    Other(String),
    /// It is this version's, but for some damage that can be put right in place.
    Ours(Damage),
}

/// What differs from what this version writes. Empty if nothing does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Sets and maps that are missing.
    pub sets: BTreeSet<String>,
    /// Named counters that are missing.
    pub counters: BTreeSet<String>,
    /// Verdict maps that are missing or hold something else.
    pub classes: BTreeSet<String>,
    /// Chains that are missing; base chains too.
    pub chains: BTreeSet<String>,
    /// Base chains that sit elsewhere, or whose policy isn't ours.
    pub misplaced: BTreeSet<String>,
    /// Chains whose rules differ.
    pub rules: BTreeSet<String>,
    /// Elements that this version would never write: place and key.
    pub strange: Vec<(Place, Vec<u8>)>,
}

/// The parts of the shape that a plan changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variable {
    /// The sets of source ranges.
    pub ranges: BTreeSet<Place>,
    /// The affinity timeouts, as the family's rules have them.
    pub kinds: Vec<Duration>,
    /// How many elements sets have, where the kernel says so.
    pub counts: BTreeMap<String, u32>,
}

impl Damage {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Damage::default()
    }

    /// What differs, in words, in the `family`'s table.
    pub fn texts(&self, family: Family) -> Vec<String> {
        let family = ruleset::family(family).name();
        let mut texts = Vec::new();
        let mut say = |names: &BTreeSet<String>, what: &str, how: &str| {
            texts.extend(names.iter().map(|name| format!("{what} {family} {name} {how}")));
        };
        say(&self.chains, "chain", "was missing");
        say(&self.misplaced, "chain", "was hooked in elsewhere or had another policy");
        say(&self.rules, "chain", "had other rules");
        say(&self.sets, "set", "was missing");
        say(&self.counters, "counter", "was missing");
        say(&self.classes, "map", "held something else");
        let strange: BTreeSet<String> = self.strange.iter().map(|(p, _)| p.name().into_owned()).collect();
        say(&strange, "set", "held what isn't ours");
        texts
    }
}

/// Reads a family's shape. `ranges` says which sets of source ranges there ought to be; where that isn't known, those are taken
/// that are there.
pub fn read(
    kernel: &mut Nftables,
    table: &str,
    family: Family,
    ranges: Option<&BTreeSet<Place>>,
) -> io::Result<(Shape, Variable)> {
    let other = |text: String| Ok((Shape::Other(text), Variable::default()));
    let kernel_family = ruleset::family(family);
    let Some(info) = kernel.table(kernel_family, table)? else {
        return Ok((Shape::Absent, Variable::default()));
    };
    let title = format!("table {} {table}", kernel_family.name());
    if info.comment.as_deref() != Some(&crate::encode::shape(family)) {
        return other(format!("{title} had another shape"));
    }
    if info.dormant {
        return other(format!("{title} was dormant"));
    }
    let sets: BTreeMap<String, _> =
        kernel.sets(kernel_family, table)?.into_iter().map(|s| (s.name.clone(), s)).collect();
    let fits = |wanted: &SetDeclaration| {
        sets.get(&wanted.name).is_none_or(|is| {
            (is.flags, is.key_length, is.data_length)
                == (wanted.flags, wanted.key_length(), wanted.data_length())
        })
    };
    let present: BTreeSet<Place> = sets.keys().filter_map(|name| Place::of_ranges(name)).collect();
    let ranges = ranges.unwrap_or(&present);
    let places: Vec<Place> = ranges.iter().copied().collect();

    let wanted = Ruleset::new(kernel_family);
    let declared: Vec<SetDeclaration> = wanted
        .sets
        .iter()
        .cloned()
        .chain(places.iter().map(|place| ruleset::declaration(kernel_family, *place)))
        .collect();
    if let Some(misfit) =
        declared.iter().chain(wanted.classes.iter().map(|c| &c.set)).find(|declared| !fits(declared))
    {
        return other(format!("{title} had another set {}", misfit.name));
    }
    let mut damage = Damage::default();
    damage.sets.extend(declared.into_iter().map(|s| s.name).filter(|name| !sets.contains_key(name)));
    for counter in &wanted.counters {
        match kernel.counter(kernel_family, table, counter) {
            Ok(_) => {}
            Err(error) if errno(&error) == Some(libc::ENOENT) => {
                damage.counters.insert((*counter).to_owned());
            }
            Err(error) => return Err(error),
        }
    }
    for classes in &wanted.classes {
        let mut wanted: Vec<_> = classes
            .elements
            .iter()
            .map(|(class, v)| (class.to_ne_bytes().to_vec(), Some(v.clone())))
            .collect();
        let mut held = elements(kernel, family, table, &classes.set.name, |e| (e.key.to_vec(), e.verdict))?;
        wanted.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        held.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        if held != wanted {
            damage.classes.insert(classes.set.name.clone());
        }
    }

    let chains: BTreeMap<String, ChainInfo> =
        kernel.chains(kernel_family, table)?.into_iter().map(|c| (c.name.clone(), c)).collect();
    let mut rules: BTreeMap<String, Vec<Vec<Expression>>> = BTreeMap::new();
    for rule in kernel.rules(kernel_family, table)? {
        rules.entry(rule.chain).or_default().push(rule.expressions);
    }
    let mut variable = Variable {
        ranges: ranges.clone(),
        kinds: Vec::new(),
        counts: sets.values().filter_map(|s| Some((s.name.clone(), s.count?))).collect(),
    };
    for chain in &wanted.chains {
        match chains.get(&chain.name) {
            None => {
                damage.chains.insert(chain.name.clone());
                continue;
            }
            Some(info) if !sits(info, chain.hook) && chain.hook.is_none() => {
                return other(format!("{title} had a base chain {}", chain.name));
            }
            Some(info) if !sits(info, chain.hook) => {
                damage.misplaced.insert(chain.name.clone());
                continue;
            }
            Some(_) => {}
        }
        let held = rules.remove(&chain.name).unwrap_or_default();
        let same = if chain.name == CHAIN_REMEMBER {
            variable.kinds = kinds(kernel_family, &held).unwrap_or_default();
            variable.kinds.len() == held.len()
        } else {
            let wanted = rules_of(chain, kernel_family, &places);
            alike(kernel, table, family, &held, &wanted)?
        };
        if !same {
            damage.rules.insert(chain.name.clone());
        }
    }
    Ok((Shape::Ours(damage), variable))
}

/// The rules of a chain, given the sets of source ranges.
pub fn rules_of(chain: &Chain, family: portolan_sys::nft::Family, ranges: &[Place]) -> Vec<Vec<Expression>> {
    let variable = ruleset::range_rules(family, ranges).into_iter().find(|(name, _)| *name == chain.name);
    variable.map_or_else(|| chain.rules.clone(), |(_, rules)| rules)
}

fn sits(is: &ChainInfo, wanted: Option<ChainHook>) -> bool {
    match (&is.hook, wanted) {
        (None, None) => true,
        (Some(is), Some(wanted)) => {
            is.accepts
                && (is.kind.as_str(), is.hook, is.priority)
                    == (wanted.kind, wanted.hook.number(), wanted.priority)
        }
        _ => false,
    }
}

/// The affinity timeouts that these rules remember clients for; `None` if they aren't such rules.
fn kinds(family: portolan_sys::nft::Family, rules: &[Vec<Expression>]) -> Option<Vec<Duration>> {
    let read = (1u32..).zip(rules).map(|(kind, rule)| {
        let (_, timeout) = ruleset::read_remember_rule(rule)?;
        let timeout = Duration::from_millis(timeout);
        (ruleset::remember_rule(family, kind, timeout) == *rule).then_some(timeout)
    });
    read.collect()
}

/// Whether rules are those that were written. The kernel gives an anonymous set a name of its own.
fn alike(
    kernel: &mut Nftables,
    table: &str,
    family: Family,
    held: &[Vec<Expression>],
    wanted: &[Vec<Expression>],
) -> io::Result<bool> {
    if held.len() != wanted.len() || held.iter().zip(wanted).any(|(h, w)| h.len() != w.len()) {
        return Ok(false);
    }
    for (held, wanted) in held.iter().flatten().zip(wanted.iter().flatten()) {
        let same = match (held, wanted) {
            (
                Expression::Lookup { set, key, inverted, .. },
                Expression::Lookup { set: pattern, key: wanted_key, inverted: wanted_inverted, .. },
            ) if pattern == ANONYMOUS => {
                (key, inverted) == (wanted_key, wanted_inverted)
                    && set.starts_with("__set")
                    && has_the_protocols_with_ports(kernel, table, family, set)?
            }
            _ => held == wanted,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn has_the_protocols_with_ports(
    kernel: &mut Nftables,
    table: &str,
    family: Family,
    set: &str,
) -> io::Result<bool> {
    let mut held = elements(kernel, family, table, set, |e| e.key.first().copied())?;
    held.sort_unstable();
    Ok(held == PROTOCOLS_WITH_PORTS.map(Some))
}

/// How often a set is read again because somebody committed something meanwhile.
const ATTEMPTS: usize = 100;

/// The elements of a set, read in one piece; none if it isn't there.
pub fn elements<T>(
    kernel: &mut Nftables,
    family: Family,
    table: &str,
    set: &str,
    read: impl Fn(portolan_sys::nft::ElementInfo<'_>) -> T,
) -> io::Result<Vec<T>> {
    let mut attempts = 0;
    loop {
        let mut all = Vec::new();
        match kernel.elements(ruleset::family(family), table, set, |e| all.push(read(e))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && attempts < ATTEMPTS => attempts += 1,
            Err(error) if portolan_sys::netlink::errno(&error) == Some(libc::ENOENT) => return Ok(Vec::new()),
            other => return other.map(|()| all),
        }
    }
}
