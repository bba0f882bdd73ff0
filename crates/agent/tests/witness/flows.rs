//! Flows through our table go where the plan says they go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use portolan_agent::from_kube::{self, Names};
use portolan_plan::model::{Frontend, Plan};
use portolan_plan::planner::{Views, plan_all};
use portolan_plan::trace::{Flow, Origin, Outcome, Verdict};
use portolan_plan::view::{EndpointsView, NodeView};
use portolan_sys::trial;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::draw::{ANOTHER_PROXY, Cluster, Dice, Drawn, Flows, NODE, Taste};
use crate::judge::{Counts, Judge, ROWS};
use crate::stage::World;
use crate::world::{self, Wires};

/// Flows to one cluster before the next is drawn.
const FLOWS_EACH: usize = 250;
/// Flows under way at once.
const AT_ONCE: usize = 50;

/// Draws from a set for each of its backends, after which none has been left out, but with a chance of less than 10^-9.
pub const ENOUGH: usize = 25;

/// A number from the environment, to try more than the ordinary run does, or the same again.
pub fn wanted(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

fn typed<T: DeserializeOwned>(object: &Value) -> T {
    serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{e}: {object}"))
}

/// What the agent would make of a cluster's objects.
pub fn views(cluster: &Cluster) -> Views {
    let (seen, _) = from_kube::node(&typed::<Node>(&cluster.node));
    let node = NodeView {
        zone: seen.zone,
        addresses: seen.addresses,
        pod_cidrs: seen.pod_cidrs,
        service_cidrs: ["10.96.0.0/16", "fd00:96::/112"].map(|r| r.parse().expect("a range")).into(),
        node_ports: cluster.settings.node_ports.clone(),
        local_addresses: router_addresses(),
        cluster_ip_from_outside: cluster.settings.from_outside,
        masquerade_all: cluster.settings.masquerade_all,
        ..NodeView::named(NODE)
    };
    let mut views = Views { services: BTreeMap::new(), endpoints: BTreeMap::new(), node };
    // What the watches' selectors leave out.
    let ours = |o: &&Value| o["metadata"]["labels"].get(ANOTHER_PROXY).is_none();
    for service in cluster.services.iter().filter(ours) {
        if let (Some(view), _) = from_kube::service(&typed::<Service>(service)) {
            views.services.insert(view.name.clone(), Arc::new(view));
        }
    }
    let mut names = Names::default();
    let headless = |o: &&Value| o["metadata"]["labels"].get("service.kubernetes.io/headless").is_none();
    for slice in cluster.slices.iter().filter(ours).filter(headless) {
        if let Some((service, view)) = from_kube::slice(&typed::<EndpointSlice>(slice), &mut names) {
            let name = slice["metadata"]["name"].as_str().expect("a name");
            let of: &mut EndpointsView = views.endpoints.entry(service).or_default();
            of.slices.insert(name.into(), Arc::new(view));
        }
    }
    views
}

/// All addresses of the node but loopback.
pub fn router_addresses() -> BTreeSet<std::net::IpAddr> {
    use portolan_plan::model::Family::{V4, V6};
    [V4, V6].into_iter().flat_map(|f| (0..3).map(move |towards| world::node(f, towards))).collect()
}

/// How a round of flows went.
#[derive(Default)]
pub struct Tally {
    pub flows: usize,
    pub counts: Counts,
    pub differences: Vec<String>,
}

impl Tally {
    /// Prints the rows; the seed repeats the run.
    pub fn print(&self, what: &str, seed: u64) {
        println!("{what}: {} flows, seed {seed}", self.flows);
        for row in ROWS {
            println!("{:>8}  {row}", self.counts.get(row).copied().unwrap_or(0));
        }
    }

    pub fn assert_none_differs(&self) {
        let shown = self.differences.iter().take(12).cloned().collect::<Vec<_>>().join("\n");
        assert!(self.differences.is_empty(), "{} differences:\n{shown}", self.differences.len());
    }

    pub fn assert_each_row_was_tried(&self, times: usize, but: &[&str]) {
        let seldom: Vec<_> = ROWS
            .iter()
            .filter(|r| !but.contains(r) && self.counts.get(*r).copied().unwrap_or(0) < times)
            .collect();
        assert!(seldom.is_empty(), "tried less than {times} times: {seldom:?}");
    }
}

/// What goes on from round to round.
pub struct Run<'a> {
    pub flows: &'a mut Flows,
    pub dice: &'a mut Dice,
    pub tally: &'a mut Tally,
}

/// Sends flows to a cluster whose plan the kernel has, by whatever means, and compares. `excused` gives the reason where
/// another's table may differ.
pub fn round(
    wires: &mut Wires,
    (cluster, plan, views): (&Cluster, &Plan, &Views),
    run: &mut Run<'_>,
    excused: &dyn Fn(&Drawn, &Verdict) -> Option<&'static str>,
) {
    let Run { flows, dice, tally } = run;
    let mut judge = Judge {
        plan,
        views,
        masquerade_all: cluster.settings.masquerade_all,
        memory: BTreeMap::new(),
        spread: BTreeMap::new(),
        node_addresses: router_addresses(),
    };
    let mut all: Vec<Drawn> = (0..FLOWS_EACH).map(|_| flows.draw(cluster, dice)).collect();
    all.extend(spread(plan, flows, dice));
    for drawn in all.chunks(AT_ONCE) {
        let verdicts: Vec<Verdict> = drawn.iter().map(|d| plan.trace(&d.flow)).collect();
        let by_number: BTreeMap<u32, &Verdict> = drawn.iter().map(|d| d.number).zip(&verdicts).collect();
        let fates = wires.send(drawn, &|d| {
            excused(d, by_number[&d.number]).is_none()
                && matches!(by_number[&d.number].outcome, Outcome::Forward { .. } | Outcome::Reject)
        });
        for ((drawn, verdict), fate) in drawn.iter().zip(&verdicts).zip(&fates) {
            tally.flows += 1;
            for row in judge.rows(drawn, verdict) {
                *tally.counts.entry(row).or_default() += 1;
            }
            if let Err(why) = judge.judge(drawn, verdict, fate) {
                if let Some(reason) = excused(drawn, verdict) {
                    *tally.counts.entry(reason).or_default() += 1;
                    continue;
                }
                let flow = drawn.flow;
                tally.differences.push(format!(
                    "{:?} to {} {}:{} {why}: {fate:?}; {verdict}",
                    flow.from, flow.protocol, flow.destination, flow.port
                ));
            }
        }
    }
    tally.differences.extend(judge.uneven());
}

/// Flows to one set of several backends, enough of them that each backend is drawn.
fn spread(plan: &Plan, flows: &mut Flows, dice: &mut Dice) -> Vec<Drawn> {
    let mut candidates = Vec::new();
    for part in plan.services.values() {
        for (frontend, does) in &part.frontends {
            let Frontend::Address { address, protocol, port } = *frontend else { continue };
            let pod = Origin::Pod(world::pod(frontend.family(), 0));
            let flow = Flow { from: pod, destination: address, protocol, port };
            if let Outcome::Forward { set, affinity: None, .. } = plan.trace(&flow).outcome
                && set.len() > 1
                && does.source_ranges.is_none()
            {
                candidates.push((flow, set.len() * ENOUGH));
            }
        }
    }
    match candidates.is_empty() {
        true => Vec::new(),
        false => {
            let (flow, times) = dice.pick(&candidates);
            (0..times).map(|_| flows.of(flow)).collect()
        }
    }
}

/// Runs a test in a world with wires.
pub fn wires(promise: &str, test: impl FnOnce(&mut Wires)) {
    if !trial::goes_on(promise) {
        return;
    }
    let world = match World::new() {
        Ok(world) => world,
        Err(error) => return trial::skipped(promise, &format!("network namespaces: {error}")),
    };
    let _routes = world.router.run(|| {
        let refused = portolan_agent::sysctl::set_all(portolan_agent::sysctl::LOCALHOST.to_vec());
        assert!(refused.is_empty(), "{refused:?}");
        portolan_agent::localhost::Routes::keep().expect("routes to ::1")
    });
    test(&mut Wires::new(world).expect("wires"));
}

#[test]
fn a_flow_goes_where_the_plan_says() {
    wires("a flow goes where the plan says", |wires| {
        let seed = wanted("PORTOLAN_SEED", 20_261_128);
        let total = wanted("PORTOLAN_FLOWS", 4_000) as usize;
        let (mut dice, mut flows, mut tally) = (Dice(seed), Flows::new(), Tally::default());
        let mut engine = wires.world.engine();
        while tally.flows < total {
            let cluster = Cluster::draw(&mut dice, Taste { as_kube_proxy: false });
            let views = views(&cluster);
            let (plan, _) = plan_all(views.clone());
            let _ = engine.sync(&plan).expect("a sync");
            let mut run = Run { flows: &mut flows, dice: &mut dice, tally: &mut tally };
            round(wires, (&cluster, &plan, &views), &mut run, &|_, _| None);
        }
        tally.print("our table", seed);
        tally.assert_none_differs();
        tally.assert_each_row_was_tried(if total >= 20_000 { 200 } else { 1 }, &[]);
        assert_eq!(engine.counters().expect("counters").missed, 0);
    });
}
