//! Ten defects, planted one at a time: each must be seen, or the witness is worth nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use portolan_plan::model::*;
use portolan_plan::planner::plan_all;

use crate::draw::{Cluster, Dice, Flows, Taste};
use crate::flows::{Run, Tally, round, views, wires};
use crate::world::Wires;

/// Changes what the kernel is given, while the flows are judged by the right plan.
type Defect = fn(&mut Plan);

const DEFECTS: [(&str, Defect); 11] = [
    ("a slot bound to the wrong port", |plan| {
        sets(plan, |set| {
            set.backends = set.backends.iter().map(|b| Backend { port: b.port ^ 1, ..*b }).collect();
        });
    }),
    ("no masquerade", |plan| {
        frontends(plan, |f| {
            if f.kind != FrontendKind::ClusterIp {
                f.masquerade = Masquerade::Node;
            }
        })
    }),
    ("masquerade where the source is to be kept", |plan| {
        frontends(plan, |f| {
            if f.masquerade == Masquerade::Node {
                f.masquerade = Masquerade::Everyone;
            }
        })
    }),
    ("Local treated as Cluster", |plan| {
        frontends(plan, |f| {
            if let Some(inside) = f.inside.take() {
                f.action = inside;
            }
        })
    }),
    ("no short circuit from inside", |plan| frontends(plan, |f| f.inside = None)),
    ("dropped instead of refused", |plan| {
        frontends(plan, |f| {
            if f.action == Action::Reject {
                f.action = Action::Drop;
            }
        })
    }),
    ("source ranges not looked at", |plan| frontends(plan, |f| f.source_ranges = None)),
    ("affinity forgotten", |plan| sets(plan, |set| set.affinity = None)),
    ("hairpin not masqueraded", |plan| plan.node.local_pods.clear()),
    ("node ports on every address", |plan| plan.node.node_addresses = crate::flows::router_addresses()),
    ("a backend left out", |plan| {
        sets(plan, |set| {
            if set.backends.len() > 1 {
                set.backends.pop_first();
            }
        })
    }),
];

fn parts(plan: &mut Plan, change: impl Fn(&mut ServicePlan)) {
    for part in plan.services.values_mut() {
        change(Arc::make_mut(part));
    }
}

fn frontends(plan: &mut Plan, change: fn(&mut FrontendPlan)) {
    parts(plan, |part| {
        part.frontends.values_mut().for_each(change);
        let used: BTreeSet<SetName> =
            part.frontends.values().flat_map(|f| f.sets().cloned().collect::<Vec<_>>()).collect();
        part.sets.retain(|name, _| used.contains(name));
    });
}

fn sets(plan: &mut Plan, change: fn(&mut BackendSet)) {
    parts(plan, |part| part.sets.values_mut().for_each(change));
}

/// Flows to some clusters, since a defect shows in some only, until one differs.
fn until_seen(wires: &mut Wires, flows: &mut Flows, defect: Defect) -> Tally {
    let (mut dice, mut tally) = (Dice(7), Tally::default());
    let mut engine = wires.world.engine();
    for _ in 0..6 {
        let cluster = Cluster::draw(&mut dice, Taste { as_kube_proxy: false });
        let views = views(&cluster);
        let (plan, _) = plan_all(views.clone());
        let mut wrong = plan.clone();
        defect(&mut wrong);
        let _ = engine.sync(&wrong).expect("a sync");
        let mut run = Run { flows, dice: &mut dice, tally: &mut tally };
        round(wires, (&cluster, &plan, &views), &mut run, &|_, _| None);
        if !tally.differences.is_empty() {
            break;
        }
    }
    tally
}

#[test]
fn each_planted_defect_is_seen() {
    wires("each planted defect is seen", |wires| {
        // One for all: a flow of the same ports would be taken for a known connection.
        let mut flows = Flows::new();
        until_seen(wires, &mut flows, |_| {}).assert_none_differs();
        for (name, defect) in DEFECTS {
            let tally = until_seen(wires, &mut flows, defect);
            println!(
                "{name}: seen after {} flows: {}",
                tally.flows,
                tally.differences.first().map_or("", |d| d)
            );
            assert!(!tally.differences.is_empty(), "not seen: {name}");
        }
    });
}
