//! Everybody's chains and rules in a network namespace, whatever table they are in: to be read, never changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::table::name;
use super::*;
use crate::netlink::{Message, Reply};

/// A table of anybody, with its chains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SurveyedTable {
    /// `NFPROTO_…`: 1 is `inet`, 2 `ip`, 10 `ip6`; others never see routed packets alone.
    pub family: u8,
    /// Its name.
    pub name: String,
    /// Its chains by name.
    pub chains: BTreeMap<String, SurveyedChain>,
    /// The sets, by name, that its rules look single values up in.
    pub sets: BTreeMap<String, SurveyedSet>,
}

/// A set of anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SurveyedSet {
    /// Its elements are bounds of intervals.
    pub intervals: bool,
    /// The elements' keys, and whether each is the first value after an interval.
    pub elements: Vec<(Vec<u8>, bool)>,
}

/// A chain of anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SurveyedChain {
    /// Hook number and priority of a base chain.
    pub hook: Option<(u32, i32)>,
    /// A base chain that drops what no rule decides.
    pub drops: bool,
    /// What each rule is made of, in order.
    pub rules: Vec<Vec<Expression>>,
}

impl Nftables {
    /// All tables of all families.
    pub fn survey(&mut self) -> io::Result<Vec<SurveyedTable>> {
        let mut tables: BTreeMap<(u8, String), SurveyedTable> = BTreeMap::new();
        let mut chains = Vec::new();
        self.dump_everything(GETCHAIN, |family, message| {
            let attributes = message.attributes(4);
            let hook = attributes.find(4).map(|hook| {
                let number = |kind| hook.inside().find(kind).map_or(0, |a| a.u32be());
                (number(1), number(2) as i32)
            });
            // NFTA_CHAIN_POLICY holds a verdict: NF_DROP is 0.
            let drops = attributes.find(5).is_some_and(|policy| policy.u32be() == 0);
            let chain = SurveyedChain { hook, drops, rules: Vec::new() };
            chains.push(((family, name(attributes, 1)), name(attributes, 3), chain));
        })?;
        for ((family, table), name, chain) in chains {
            let entry = tables.entry((family, table.clone())).or_insert_with(|| SurveyedTable {
                family,
                name: table,
                ..SurveyedTable::default()
            });
            entry.chains.insert(name, chain);
        }
        let mut rules = Vec::new();
        self.dump_everything(GETRULE, |family, message| {
            let attributes = message.attributes(4);
            let expressions = attributes.find(4).map_or_else(Vec::new, |list| {
                list.inside().map(|element| Expression::read(element.inside())).collect()
            });
            rules.push(((family, name(attributes, 1)), name(attributes, 2), expressions));
        })?;
        for (table, chain, rule) in rules {
            if let Some(chain) = tables.get_mut(&table).and_then(|t| t.chains.get_mut(&chain)) {
                chain.rules.push(rule);
            }
        }
        let mut tables: Vec<SurveyedTable> = tables.into_values().collect();
        for table in &mut tables {
            let rules = table.chains.values().flat_map(|chain| &chain.rules).flatten();
            let looked_up = rules.filter_map(|expression| match expression {
                Expression::Lookup { set, .. } => Some(set.clone()),
                _ => None,
            });
            let names: BTreeSet<String> = looked_up.collect();
            for name in names {
                if let Some(set) = self.surveyed_set(table.family, &table.name, &name)? {
                    table.sets.insert(name, set);
                }
            }
        }
        Ok(tables)
    }

    /// A set's elements; none where a key is of several fields with ranges, or somebody changed the set meanwhile.
    fn surveyed_set(&mut self, family: u8, table: &str, name: &str) -> io::Result<Option<SurveyedSet>> {
        let mut request = Message::new(GETSETELEM, 0);
        request.raw(&general(family, 0)).str(1, table).str(2, name);
        let Ok(replies) = self.dump_replies(&mut request) else { return Ok(None) };
        let mut set = SurveyedSet::default();
        for reply in replies {
            for element in reply.attributes(4).find(3).into_iter().flat_map(|list| list.inside()) {
                let inside = element.inside();
                // NFTA_SET_ELEM_KEY_END
                let whole = inside.find(10).is_none();
                let Some(key) = inside.find(1).and_then(|v| v.inside().find(1)).filter(|_| whole) else {
                    return Ok(None);
                };
                let ends = inside.find(3).is_some_and(|f| f.u32be() & 1 != 0);
                set.intervals |= ends;
                set.elements.push((key.value.to_vec(), ends));
            }
        }
        Ok(Some(set))
    }

    /// A dump without a family is one of all families (nf_tables_api.c).
    fn dump_everything(&mut self, kind: u16, mut each: impl FnMut(u8, &Reply)) -> io::Result<()> {
        for reply in self.dump_replies(Message::new(kind, 0).raw(&general(0, 0)))? {
            each(reply.payload.first().copied().unwrap_or_default(), &reply);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::{Batch, ChainHook, Hook, PayloadBase, Register, Verdict};
    use super::*;
    use crate::namespace;

    #[test]
    fn a_table_of_somebody_else_reads_back_with_its_hooks_and_rules() {
        if !crate::trial::goes_on("a table of somebody else reads back with its hooks and rules") {
            return;
        }
        let netns = namespace::new_netns().expect("a namespace");
        let mut nft = namespace::in_netns(netns.as_fd(), || Nftables::open(64 * 1024))
            .expect("there")
            .expect("a socket");
        let register = Register(0);
        let rule = vec![
            Expression::Payload { base: PayloadBase::Transport, offset: 2, length: 2, to: register },
            Expression::Compare { register, equal: true, value: 80u16.to_be_bytes().to_vec() },
            Expression::Verdict(Verdict::Drop),
        ];
        let mut batch = Batch::new();
        batch.add_table(Family::Ip, "fw", "");
        batch.add_chain(
            Family::Ip,
            "fw",
            "passing",
            Some(ChainHook { kind: "filter", hook: Hook::Forward, priority: 7 }),
        );
        batch.add_rule(Family::Ip, "fw", "passing", &rule);
        nft.commit(batch).expect("a table");
        let tables = nft.survey().expect("a survey");
        let [table] = &tables[..] else { panic!("{tables:?}") };
        assert_eq!((table.family, table.name.as_str()), (2, "fw"));
        let chain = &table.chains["passing"];
        assert_eq!((chain.hook, chain.drops), (Some((2, 7)), false));
        assert_eq!(chain.rules, [rule]);
    }
}
