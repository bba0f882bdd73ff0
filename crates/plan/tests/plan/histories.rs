//! Whatever the history, the plan is the plan of the final state.

use std::collections::BTreeMap;
use std::time::Duration;

use portolan_plan::model::*;
use portolan_plan::planner::{Planner, Views, plan_all};
use portolan_plan::trace::{Flow, Origin, Outcome};
use portolan_plan::view::*;
use proptest::prelude::*;

use crate::fixture::*;
use crate::promises::assert_well_formed;

#[derive(Clone, Debug)]
enum Event {
    Service(ServiceView),
    Gone(ServiceName),
    /// The same Service, made again at another time.
    Again(ServiceName, i64),
    Endpoints(ServiceName, EndpointsView),
    Node(NodeView),
    Take,
}

fn name() -> impl Strategy<Value = ServiceName> {
    (0..5u8).prop_map(|i| ServiceName::new("default", &format!("s{i}")))
}

/// Few addresses, so that clashes of every kind are frequent: cluster IPs in and out of the ranges, node addresses.
fn address() -> impl Strategy<Value = std::net::IpAddr> {
    prop::sample::select(vec![
        "10.96.0.1",
        "10.96.0.2",
        "172.30.0.1",
        "172.30.0.2",
        "198.51.100.1",
        NODE,
        "192.0.2.11",
        "fd00:96::1",
        "2001:db8::77",
        "2001:db8::10",
        "127.0.0.1",
    ])
    .prop_map(ip)
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop::sample::select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local])
}

fn port() -> impl Strategy<Value = PortView> {
    let protocol = prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]);
    let port = || prop::sample::select(vec![80u16, 443, 30000]);
    (prop::sample::select(vec!["http", "alt"]), protocol, port(), prop::option::of(port())).prop_map(
        |(name, protocol, port, node_port)| PortView { name: name.into(), protocol, port, node_port },
    )
}

fn service_view() -> impl Strategy<Value = ServiceView> {
    let addresses = || prop::collection::vec(address(), 0..4);
    let ingress = (address(), prop::bool::weighted(0.2)).prop_map(|(ip, proxy)| IngressView { ip, proxy });
    let ranges = prop::sample::select(vec!["203.0.113.0/24", "0.0.0.0/0", "192.0.2.0/24", "2001:db8::/32"]);
    let ranges = prop::collection::vec(ranges.prop_map(|s| s.parse().unwrap()), 0..3);
    (
        (name(), 0..3i64, addresses(), addresses(), prop::collection::vec(ingress, 0..2)),
        (prop::collection::vec(port(), 0..3), policy(), policy()),
        (prop::option::of(Just(Duration::from_secs(60))), prop::option::of(ranges)),
    )
        .prop_map(
            |(
                (name, created, cluster_ips, external_ips, load_balancer),
                (ports, external, internal),
                rest,
            )| {
                ServiceView {
                    name,
                    created,
                    cluster_ips,
                    external_ips,
                    load_balancer,
                    ports,
                    external_policy: external,
                    internal_policy: internal,
                    affinity: rest.0,
                    source_ranges: rest.1,
                    health_check_node_port: None,
                }
            },
        )
}

fn endpoint_view() -> impl Strategy<Value = EndpointView> {
    let node = prop::option::of(prop::sample::select(vec!["here", "there"]));
    let zone = prop::option::of(prop::sample::select(vec!["a", "b"]));
    (1..6u8, node, any::<(bool, bool, bool)>(), zone).prop_map(
        |(i, node, (ready, serving, terminating), zone)| {
            let plain = match zone {
                Some(zone) => hinted(&format!("10.1.0.{i}"), "-", &[zone], &[]),
                None => endpoint(&format!("10.1.0.{i}"), "-"),
            };
            EndpointView { node: node.map(Into::into), ready, serving, terminating, ..plain }
        },
    )
}

fn endpoints_view() -> impl Strategy<Value = EndpointsView> {
    let one = (
        prop::collection::vec(endpoint_view(), 0..4),
        prop::sample::select(vec!["http", "alt"]),
        any::<bool>(),
    );
    let one = one.prop_map(|(list, name, udp)| {
        let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
        SliceView {
            ports: vec![SlicePort { name: name.into(), protocol, port: 8080 }],
            family: Family::V4,
            endpoints: list,
        }
    });
    prop::collection::vec(one, 0..3).prop_map(slices)
}

fn node_view() -> impl Strategy<Value = NodeView> {
    (any::<[bool; 5]>(), prop::option::of(prop::sample::select(vec!["a", "b"]))).prop_map(|(b, zone)| {
        NodeView {
            zone: zone.map(Into::into),
            addresses: if b[0] { node().addresses } else { vec![ip("192.0.2.11")] },
            node_ports: if b[1] {
                NodePortAddresses { all: true, ..Default::default() }
            } else {
                NodePortAddresses::primary()
            },
            service_cidrs: if b[2] { node().service_cidrs } else { Default::default() },
            pod_cidrs: if b[3] { node().pod_cidrs } else { Default::default() },
            masquerade_all: b[4],
            ..node()
        }
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => service_view().prop_map(Event::Service),
        2 => name().prop_map(Event::Gone),
        2 => (name(), 0..3i64).prop_map(|(n, created)| Event::Again(n, created)),
        4 => (name(), endpoints_view()).prop_map(|(n, e)| Event::Endpoints(n, e)),
        1 => node_view().prop_map(Event::Node),
        3 => Just(Event::Take),
    ]
}

/// Who owns what, decided without any index: by looking at all claims again for each frontend.
fn owners(views: &Views, plan: &Plan) -> BTreeMap<Frontend, ServiceName> {
    let none = EndpointsView::default();
    let claims: Vec<_> = views
        .services
        .values()
        .flat_map(|s| {
            let endpoints = views.endpoints.get(&s.name).unwrap_or(&none);
            let (claims, _) = portolan_plan::service::plan_service(s, endpoints, &views.node);
            let claim = |(f, p): (&Frontend, &FrontendPlan)| (*f, p.kind, s.created, s.name.clone());
            claims.wanted.frontends.iter().map(claim).collect::<Vec<_>>()
        })
        .collect();
    let barred = |frontend: Frontend, kind: FrontendKind, name: &ServiceName| {
        let Frontend::Address { address, protocol, port } = frontend else { return false };
        let owned = claims.iter().any(|(f, k, _, n)| {
            *k == FrontendKind::ClusterIp
                && n != name
                && matches!(f, Frontend::Address { address: a, .. } if *a == address)
        });
        let node_port = Frontend::NodePort { family: frontend.family(), protocol, port };
        kind != FrontendKind::ClusterIp && owned
            || plan.node.node_addresses.contains(&address) && claims.iter().any(|(f, ..)| *f == node_port)
    };
    let mut owners: BTreeMap<Frontend, (bool, i64, ServiceName)> = BTreeMap::new();
    for (frontend, kind, created, name) in &claims {
        if barred(*frontend, *kind, name) {
            continue;
        }
        let rank = (*kind != FrontendKind::ClusterIp, *created, name.clone());
        owners.entry(*frontend).and_modify(|o| *o = o.clone().min(rank.clone())).or_insert(rank);
    }
    owners.into_iter().map(|(f, (_, _, name))| (f, name)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_in_the_plan_of_its_final_state(events in prop::collection::vec(event(), 1..60)) {
        let mut planner = Planner::new(node());
        let mut told = Plan::default();
        for event in events {
            match event {
                Event::Service(view) => planner.set_service(view),
                Event::Gone(name) => planner.remove_service(&name),
                Event::Again(name, created) => {
                    if let Some(view) = planner.views().services.get(&name) {
                        let view = ServiceView { created, ..ServiceView::clone(view) };
                        planner.set_service(view);
                    }
                }
                Event::Endpoints(name, view) => planner.set_endpoints(&name, view),
                Event::Node(view) => planner.set_node(view),
                Event::Take => told.apply(&planner.take_change()),
            }
        }
        told.apply(&planner.take_change());
        let (fresh, findings) = plan_all(planner.views().clone());

        prop_assert_eq!(&told, planner.plan(), "the changes add up to the plan");
        prop_assert_eq!(format!("{fresh:?}"), format!("{told:?}"), "byte for byte");
        prop_assert_eq!(planner.findings().cloned().collect::<Vec<_>>(), findings);
        let owned: BTreeMap<Frontend, ServiceName> = fresh
            .services
            .iter()
            .flat_map(|(name, part)| part.frontends.keys().map(|f| (*f, name.clone())))
            .collect();
        prop_assert_eq!(owned.len(), fresh.services.values().map(|p| p.frontends.len()).sum::<usize>(), "one owner each");
        prop_assert_eq!(owned, owners(planner.views(), &fresh));
        for part in fresh.services.values() {
            assert_well_formed(part);
        }
    }

    #[test]
    fn a_verdict_forwards_only_to_usable_endpoints_of_a_service_that_has_the_address(
        services in prop::collection::vec((service_view(), endpoints_view()), 0..4),
        view in node_view(),
        from in 0..3usize,
        destination in address(),
        port in prop::sample::select(vec![80u16, 443, 30000]),
    ) {
        let views = views(services, view);
        let (plan, _) = plan_all(views.clone());
        let from = [pod(), on_node(), outside()][from];
        let flow = Flow { from, destination, protocol: Protocol::Tcp, port };
        let verdict = plan.trace(&flow);
        prop_assert!(!verdict.because.is_empty());
        if let Outcome::Forward { set, .. } = &verdict.outcome {
            prop_assert!(!set.is_empty());
            let usable = |b: &Backend| views.endpoints.values().flat_map(|e| e.slices.values()).any(|s| {
                s.endpoints.iter().any(|e| e.address == b.address && (e.ready || e.serving && e.terminating))
            });
            prop_assert!(set.iter().all(usable), "{verdict}");
        }
        let cluster_ip = views.node.service_cidrs.iter().any(|r| r.contains(&destination));
        if cluster_ip && matches!(from, Origin::Outside(_)) && !views.node.pod_cidrs.is_empty() {
            prop_assert_eq!(verdict.outcome, Outcome::Drop);
        }
    }
}
