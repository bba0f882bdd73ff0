//! Whatever the watches went through, the views are those of the last complete list.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portolan_agent::from_kube::Key;
use portolan_agent::observed::{Observed, Said, Update};
use portolan_plan::model::{Family, Protocol, ServiceName};
use portolan_plan::planner::plan_all;
use portolan_plan::view::*;
use proptest::prelude::*;

/// What happens to the API, and to the watch of slices or Services.
#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<u8>),
    Slice(u8, Option<(u8, u8)>),
    /// The watches break: what happens until they are listed again goes unseen.
    Break,
    Relist,
    /// The agent looks.
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..3u8, prop::option::of(0..3u8)).prop_map(|(n, s)| Step::Service(n, s)),
        6 => (0..4u8, prop::option::of((0..3u8, 0..5u8))).prop_map(|(n, s)| Step::Slice(n, s)),
        1 => Just(Step::Break),
        1 => Just(Step::Relist),
        2 => Just(Step::Look),
    ];
    prop::collection::vec(step, 0..40)
}

fn key(kind: &str, i: u8) -> Key {
    Key { namespace: "default".into(), name: format!("{kind}{i}").into() }
}

fn service_name(i: u8) -> ServiceName {
    ServiceName::new("default", &format!("s{i}"))
}

/// Variant 0 is headless.
fn service(i: u8, variant: u8) -> Option<ServiceView> {
    (variant != 0).then(|| ServiceView {
        name: service_name(i),
        created: variant.into(),
        cluster_ips: vec![IpAddr::from([10, 96, 0, i + 1])],
        external_ips: vec![IpAddr::from([198, 51, 100, variant])],
        load_balancer: vec![],
        ports: vec![PortView { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        affinity: None,
        source_ranges: None,
        health_check_node_port: None,
    })
}

fn slice(variant: u8) -> SliceView {
    let endpoint = |i| EndpointView {
        address: IpAddr::from([10, 1, 0, i]),
        node: None,
        ready: true,
        serving: true,
        terminating: false,
        hints: None,
    };
    SliceView {
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..variant).map(endpoint).collect(),
    }
}

#[derive(Default)]
struct Api {
    services: BTreeMap<u8, u8>,
    slices: BTreeMap<u8, (u8, u8)>,
}

impl Api {
    fn list(&self, observed: &mut Observed) {
        observed.note(Update::Service(Said::Begin));
        for (&i, &v) in &self.services {
            observed.note(Update::Service(Said::Present(key("s", i), (service(i, v), vec![]))));
        }
        observed.note(Update::Service(Said::End));
        observed.note(Update::Slice(Said::Begin));
        for (&i, &(s, v)) in &self.slices {
            observed.note(Update::Slice(Said::Present(key("e", i), Some((service_name(s), slice(v))))));
        }
        observed.note(Update::Slice(Said::End));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn restarts_replays_and_missed_events_all_end_in_the_same_state(steps in steps()) {
        let mut api = Api::default();
        let mut observed = Observed::new(NodeView::named("here"));
        observed.note(Update::Node(Said::Begin));
        observed.note(Update::Node(Said::End));
        let mut broken = true;
        for step in steps {
            match step {
                Step::Service(i, to) => {
                    match to {
                        Some(v) => api.services.insert(i, v),
                        None => api.services.remove(&i),
                    };
                    if !broken {
                        observed.note(Update::Service(match to {
                            Some(v) => Said::Present(key("s", i), (service(i, v), vec![])),
                            None => Said::Absent(key("s", i)),
                        }));
                    }
                }
                Step::Slice(i, to) => {
                    match to {
                        Some(to) => api.slices.insert(i, to),
                        None => api.slices.remove(&i),
                    };
                    if !broken {
                        observed.note(Update::Slice(match to {
                            Some((s, v)) => Said::Present(key("e", i), Some((service_name(s), slice(v)))),
                            None => Said::Absent(key("e", i)),
                        }));
                    }
                }
                Step::Break => broken = true,
                Step::Relist => {
                    api.list(&mut observed);
                    broken = false;
                }
                Step::Look => {
                    let _ = observed.planner().take_change();
                }
            }
        }
        api.list(&mut observed);
        prop_assert!(observed.synced());
        let _ = observed.planner().take_change();

        let mut fresh = Observed::new(NodeView::named("here"));
        fresh.note(Update::Node(Said::Begin));
        fresh.note(Update::Node(Said::End));
        api.list(&mut fresh);
        let (plan, findings) = plan_all(fresh.planner().views().clone());
        prop_assert_eq!(observed.planner().views(), fresh.planner().views());
        prop_assert_eq!(observed.planner().plan(), &plan);
        prop_assert_eq!(observed.findings().cloned().collect::<Vec<_>>(), findings);
    }
}
