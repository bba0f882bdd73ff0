//! Operations as a batch of nf_tables messages.

use portolan_plan::model::Family;
use portolan_sys::nft::{Batch, Expression, Field, SetDeclaration, SetFlags, comment_userdata};

use crate::diff::follows;
use crate::element::{Element, Place};
use crate::rule::ANONYMOUS;
use crate::ruleset::{self, CHAIN_REMEMBER, Chain, Ruleset};
use crate::shape::{Damage, rules_of};
use crate::unit::{NodeSet, Op};

/// Both families, in the order in which they are written.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The transport protocols whose headers begin with ports: TCP, UDP, SCTP.
pub const PROTOCOLS_WITH_PORTS: [u8; 3] = [6, 17, 132];

/// Changes when the meaning of what the tables hold changes in a way that the rules' text doesn't show.
const VERSION: u32 = 1;

/// Adds a family's table, its sets and its chains, but no base chain: no packet meets them yet.
pub fn foundation(batch: &mut Batch, table: &str, family: Family) {
    let comment = shape(family);
    let family = ruleset::family(family);
    let rules = Ruleset::new(family);
    batch.add_table(family, table, &comment);
    for counter in &rules.counters {
        batch.add_counter(family, table, counter);
    }
    for set in &rules.sets {
        batch.add_set(family, table, set);
    }
    for classes in &rules.classes {
        batch.add_set(family, table, &classes.set);
    }
    for chain in rules.chains.iter().filter(|c| c.hook.is_none()) {
        batch.add_chain(family, table, &chain.name, None);
    }
    for classes in &rules.classes {
        for (class, verdict) in &classes.elements {
            batch.add_verdict(family, table, (&classes.set.name, 0), &class.to_ne_bytes(), verdict);
        }
    }
    for chain in rules.chains.iter().filter(|c| c.hook.is_none()) {
        add_rules(batch, table, family, chain);
    }
}

/// Adds a family's base chains: all, or those of a damaged table that are missing or misplaced.
pub fn hooks(batch: &mut Batch, table: &str, family: Family, damage: Option<&Damage>) {
    let family = ruleset::family(family);
    for chain in Ruleset::new(family).chains.iter().filter(|c| c.hook.is_some()) {
        let misplaced = damage.is_some_and(|d| d.misplaced.contains(&chain.name));
        if misplaced {
            batch.delete_chain(family, table, &chain.name);
        }
        if misplaced || damage.is_none_or(|d| d.chains.contains(&chain.name)) {
            batch.add_chain(family, table, &chain.name, chain.hook);
            add_rules(batch, table, family, chain);
        }
    }
}

/// Puts a family's fixed part right in place, but for what [`hooks`] does. What is whole stays, and with it what it counted and
/// remembered.
pub fn repair(batch: &mut Batch, table: &str, family: Family, damage: &Damage, ranges: &[Place]) {
    let family = ruleset::family(family);
    let rules = Ruleset::new(family);
    let ranged = ranges.iter().map(|place| ruleset::declaration(family, *place));
    for set in rules.sets.iter().cloned().chain(ranged).filter(|s| damage.sets.contains(&s.name)) {
        batch.add_set(family, table, &set);
    }
    for (place, key) in &damage.strange {
        batch.delete_element(family, table, &place.name(), key);
    }
    for counter in rules.counters.iter().filter(|name| damage.counters.contains(**name)) {
        batch.add_counter(family, table, counter);
    }
    let inner = |chain: &&Chain| chain.hook.is_none();
    for chain in rules.chains.iter().filter(inner).filter(|c| damage.chains.contains(&c.name)) {
        batch.add_chain(family, table, &chain.name, None);
    }
    for classes in rules.classes.iter().filter(|c| damage.classes.contains(&c.set.name)) {
        // Leaves it as it is where it is there.
        batch.add_set(family, table, &classes.set);
        batch.flush_set(family, table, &classes.set.name);
        for (class, verdict) in &classes.elements {
            batch.add_verdict(family, table, (&classes.set.name, 0), &class.to_ne_bytes(), verdict);
        }
    }
    for chain in &rules.chains {
        let anew = damage.rules.contains(&chain.name);
        if anew {
            batch.flush_chain(family, table, &chain.name);
        }
        // Those that remember clients are written for both families together.
        if chain.name != CHAIN_REMEMBER
            && (anew || chain.hook.is_none() && damage.chains.contains(&chain.name))
        {
            for rule in rules_of(chain, family, ranges) {
                add_rule(batch, table, family, &chain.name, &rule);
            }
        }
    }
}

fn add_rules(batch: &mut Batch, table: &str, family: portolan_sys::nft::Family, chain: &Chain) {
    for rule in &chain.rules {
        add_rule(batch, table, family, &chain.name, rule);
    }
}

/// Adds a rule, and before it the anonymous set that it names, if it does.
fn add_rule(
    batch: &mut Batch,
    table: &str,
    family: portolan_sys::nft::Family,
    chain: &str,
    rule: &[Expression],
) {
    let mut rule = rule.to_vec();
    for expression in &mut rule {
        if let Expression::Lookup { set, id, .. } = expression
            && set == ANONYMOUS
        {
            let declaration = SetDeclaration {
                name: ANONYMOUS.into(),
                flags: SetFlags::ANONYMOUS.with(SetFlags::CONSTANT),
                key: vec![Field::Protocol],
                data: vec![],
                size: 3,
            };
            *id = batch.add_set(family, table, &declaration);
            for protocol in PROTOCOLS_WITH_PORTS {
                batch.add_anonymous(family, table, (ANONYMOUS, *id), &[protocol]);
            }
        }
    }
    batch.add_rule(family, table, chain, &rule);
}

/// Says which shape a table has: a table with another one isn't adopted.
pub fn shape(family: Family) -> String {
    let rules = Ruleset::new(ruleset::family(family));
    let text = format!("{VERSION} {rules:?}");
    // FNV-1a, 64 bits.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("portolan shape {hash:016x}")
}

/// Adds operations: first what makes room, then deletions, then the node's sets, then additions, each set's together.
pub fn operations(batch: &mut Batch, table: &str, ops: &[Op]) {
    let mut deletions: Vec<&Element> = Vec::new();
    let mut additions: Vec<&Element> = Vec::new();
    let mut structure: Vec<&Op> = Vec::new();
    for op in ops {
        match op {
            Op::Delete(element) => deletions.push(element),
            Op::Add(element) => additions.push(element),
            other => structure.push(other),
        }
    }
    for op in structure {
        match op {
            Op::Kinds(kinds) => {
                for family in FAMILIES.map(ruleset::family) {
                    batch.flush_chain(family, table, CHAIN_REMEMBER);
                    for (kind, timeout) in (1u32..).zip(kinds) {
                        let rule = ruleset::remember_rule(family, kind, *timeout);
                        batch.add_rule(family, table, CHAIN_REMEMBER, &rule);
                    }
                }
            }
            Op::Ranges { family, new, all } => {
                let family = ruleset::family(*family);
                batch.add_set(family, table, &ruleset::declaration(family, *new));
                for (chain, rules) in ruleset::range_rules(family, all) {
                    batch.flush_chain(family, table, chain);
                    for rule in rules {
                        batch.add_rule(family, table, chain, &rule);
                    }
                }
            }
            Op::Node(family, set, intervals) => node(batch, table, *family, *set, intervals),
            Op::Delete(_) | Op::Add(_) => {}
        }
    }
    for ((family, place), element) in buckets(deletions) {
        batch.delete_element(ruleset::family(family), table, &place.name(), element.key().as_bytes());
    }
    for ((family, place), element) in buckets(additions) {
        let comment = match element {
            Element::Frontend { owner: Some(owner), .. } => Some(comment_userdata(&owner.to_string())),
            _ => None,
        };
        let (key, data) = (element.key(), element.data());
        let data = data.as_ref().map(|d| d.as_bytes());
        let family = ruleset::family(family);
        batch.add_element(family, table, &place.name(), key.as_bytes(), data, comment.as_deref());
    }
}

fn node(batch: &mut Batch, table: &str, family: Family, set: NodeSet, intervals: &[crate::unit::Interval]) {
    let bytes = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(a) => a.octets().to_vec(),
        std::net::IpAddr::V6(a) => a.octets().to_vec(),
    };
    let (family, name) = (ruleset::family(family), ruleset::node_set(set));
    batch.flush_set(family, table, name);
    for (first, last) in intervals {
        if set == NodeSet::NodeAddresses {
            batch.add_element(family, table, name, &bytes(*first), None, None);
        } else {
            let end = follows(*last).map(bytes);
            batch.add_interval(family, table, name, &bytes(*first), end.as_deref());
        }
    }
}

/// Elements with their sets, each set's together.
fn buckets(elements: Vec<&Element>) -> Vec<((Family, Place), &Element)> {
    let mut keyed: Vec<_> = elements.into_iter().map(|e| ((e.family(), e.place()), e)).collect();
    keyed.sort_by_key(|(place, _)| *place);
    keyed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fixed_part_leaves_room_in_the_smallest_batch() {
        let mut batch = Batch::new();
        for family in FAMILIES {
            batch.delete_table(ruleset::family(family), "portolan");
            foundation(&mut batch, "portolan", family);
            hooks(&mut batch, "portolan", family, None);
        }
        assert!(batch.len() < crate::engine::FIXED_SIZE, "{} bytes", batch.len());
    }
}
