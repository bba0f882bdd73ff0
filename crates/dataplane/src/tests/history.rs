//! Any history of plans ends in the last one, and no packet misses on the way.

use std::collections::{BTreeMap, BTreeSet};

use portolan_plan::model::{Backend, Family, Frontend, Plan, PlanChange, ServiceName};
use proptest::prelude::*;

use super::plans::{Recipe, frontends, recipe};
use super::simulated::{End, Kernel, Packet, source};
use crate::element::Element;
use crate::mirror::Mirror;
use crate::read::{ActionReading, Reading};
use crate::unit::{Op, Packer, Unit};
use crate::word::{SetId, Word};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// The plan changes, and the engine is told what changed.
    Change(Recipe),
    /// The plan changes, and the engine is told all of it.
    Whole(Recipe),
    /// The engine starts anew: it knows only what the kernel holds.
    Restart(Recipe),
    /// Somebody else had a hand in our tables, and then the engine starts anew.
    Damage(Recipe, Vec<usize>, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let damage = (recipe(), prop::collection::vec(any::<usize>(), 0..4), prop::collection::vec(0..8u8, 0..4));
    prop_oneof![
        3 => recipe().prop_map(Step::Change),
        1 => recipe().prop_map(Step::Whole),
        1 => recipe().prop_map(Step::Restart),
        1 => damage.prop_map(|(recipe, gone, added)| Step::Damage(recipe, gone, added)),
    ]
}

fn between(old: &Plan, new: &Plan) -> PlanChange {
    let mut change =
        PlanChange { node: (old.node != new.node).then(|| new.node.clone()), ..PlanChange::default() };
    for name in old.services.keys().filter(|name| !new.services.contains_key(*name)) {
        change.services.insert(name.clone(), None);
    }
    for (name, part) in &new.services {
        if old.services.get(name) != Some(part) {
            change.services.insert(name.clone(), Some(part.clone()));
        }
    }
    change
}

/// Where a frontend leads from outside and from inside, in a plan.
fn leads(plan: &Plan) -> BTreeMap<(Frontend, bool), BTreeSet<Backend>> {
    let mut all = BTreeMap::new();
    for (frontend, reading) in Reading::of(plan).frontends {
        let source = source(frontend.family());
        if reading.source_ranges.is_some_and(|nets| !nets.iter().any(|net| net.contains(&source))) {
            continue;
        }
        for inside in [false, true] {
            let action = if inside { reading.inside.as_ref() } else { None }.unwrap_or(&reading.action);
            if let ActionReading::Balance { backends, .. } = action {
                all.insert((frontend, inside), backends.clone());
            }
        }
    }
    all
}

/// The backends, in any of the plans, of the Services to which a frontend belongs in any of them.
fn backends_of_owners(frontend: Frontend, plans: [&Plan; 2]) -> BTreeSet<Backend> {
    let owners: BTreeSet<&ServiceName> = plans
        .iter()
        .flat_map(|plan| plan.services.iter().filter(|(_, part)| part.frontends.contains_key(&frontend)))
        .map(|(name, _)| name)
        .collect();
    let parts = plans.iter().flat_map(|plan| owners.iter().filter_map(|owner| plan.services.get(*owner)));
    parts.flat_map(|part| part.sets.values()).flat_map(|set| &set.backends).copied().collect()
}

/// Sends every packet that can be, with the commit between any two of its lookups.
fn nobody_misses(before: &Kernel, after: &Kernel, old: &Plan, new: &Plan) -> Result<(), TestCaseError> {
    let plans = [old, new];
    let (old, new) = (leads(old), leads(new));
    for frontend in frontends() {
        for inside in [false, true] {
            if !old.contains_key(&(frontend, inside)) || !new.contains_key(&(frontend, inside)) {
                continue;
            }
            // In the very moment of a change a packet from inside may be taken for one from outside, or end at a new backend of
            // the Service to which the frontend belonged until then; but never anywhere else.
            let theirs = backends_of_owners(frontend, plans);
            // So many lookups at most: two to resolve, one for ranges, nine draws of two or four, and once more.
            for lookups in 0..=84 {
                match Packet::new(before, after, lookups, frontend, inside).end() {
                    End::At(backend) => prop_assert!(
                        theirs.contains(&backend),
                        "{frontend:?} (inside: {inside}) led to {backend:?}, none of {theirs:?}, after {lookups} lookups"
                    ),
                    end => prop_assert!(
                        false,
                        "{frontend:?} (inside: {inside}) ended in {end:?} after {lookups} lookups before the commit"
                    ),
                }
            }
        }
    }
    Ok(())
}

/// Plans a step, packs and commits it, and holds it to the law.
fn take(
    mirror: &mut Mirror,
    kernel: &mut Kernel,
    limit: usize,
    old: Option<&Plan>,
    new: &Plan,
    step: impl FnOnce(&mut Mirror, &mut dyn FnMut(Unit) -> Result<(), TestCaseError>) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    let mut packer = Packer::new(limit);
    let mut commit = |ops: Vec<Op>| {
        let before = kernel.clone();
        kernel.commit(&ops).map_err(|text| TestCaseError::fail(format!("the kernel refuses: {text}")))?;
        match old {
            Some(old) => nobody_misses(&before, kernel, old, new),
            None => Ok(()),
        }
    };
    step(mirror, &mut |unit| packer.push(unit, &mut commit))?;
    packer.flush(&mut commit)?;
    let (adopted, repairs) = Mirror::adopt(kernel.contents());
    prop_assert_eq!(repairs, vec![]);
    prop_assert_eq!(adopted.reading(), Reading::of(new));
    prop_assert_eq!(mirror.reading(), Reading::of(new));
    Ok(())
}

/// Something that leads nowhere.
fn litter(code: u8) -> Element {
    let backend = Backend { address: "10.9.9.9".parse().expect("an address"), port: 9 };
    match code {
        0 => Element::Slot { set: SetId::new(0, 77), slot: 0, backend },
        1 => Element::Slot { set: SetId::new(0, 77), slot: 5, backend },
        2 => Element::Endpoint { token: SetId::new(1, 7).token(3), backend },
        3 => Element::Token {
            family: Family::V4,
            set: SetId::new(1, 7),
            slot: 0,
            token: SetId::new(1, 8).token(3),
        },
        4 => Element::Vip("10.96.9.9".parse().expect("an address")),
        5 => Element::Masquerade { frontend: frontends()[0], node: false },
        6 => Element::Frontend {
            frontend: frontends()[0],
            inside: true,
            word: Word::spread(SetId::new(0, 77), 1),
            owner: None,
        },
        _ => Element::ClusterIp("fd00::99".parse().expect("an address")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_reads_back_as_the_last_plan_and_no_packet_misses(
        steps in prop::collection::vec(step(), 1..6),
        limit in prop_oneof![Just(1usize << 20), 200..4000usize],
    ) {
        let mut mirror = Mirror::default();
        let mut kernel = Kernel::default();
        let mut plan = Plan::default();
        for step in steps {
            match step {
                Step::Change(recipe) => {
                    let new = recipe.plan();
                    let change = between(&plan, &new);
                    take(&mut mirror, &mut kernel, limit, Some(&plan), &new, |m, emit| m.change(&change, emit))?;
                    plan = new;
                }
                Step::Whole(recipe) => {
                    let new = recipe.plan();
                    take(&mut mirror, &mut kernel, limit, Some(&plan), &new, |m, emit| m.whole(&new, emit))?;
                    plan = new;
                }
                Step::Restart(recipe) => {
                    let (adopted, repairs) = Mirror::adopt(kernel.contents());
                    prop_assert_eq!(repairs, vec![]);
                    mirror = adopted;
                    let before = kernel.clone();
                    take(&mut mirror, &mut kernel, limit, Some(&plan), &plan, |m, emit| m.whole(&plan, emit))?;
                    prop_assert_eq!(&before, &kernel, "the same plan after a restart changes nothing");
                    mirror = Mirror::adopt(kernel.contents()).0;
                    let new = recipe.plan();
                    take(&mut mirror, &mut kernel, limit, Some(&plan), &new, |m, emit| m.whole(&new, emit))?;
                    plan = new;
                }
                Step::Damage(recipe, gone, added) => {
                    gone.into_iter().for_each(|number| kernel.damage(number));
                    added.into_iter().for_each(|code| kernel.litter(litter(code)));
                    let (adopted, repairs) = Mirror::adopt(kernel.contents());
                    mirror = adopted;
                    let new = recipe.plan();
                    let repaired = kernel.commit(&repairs);
                    prop_assert!(repaired.is_ok(), "{repaired:?}");
                    take(&mut mirror, &mut kernel, limit, None, &new, |m, emit| m.whole(&new, emit))?;
                    plan = new;
                }
            }
        }
    }
}
