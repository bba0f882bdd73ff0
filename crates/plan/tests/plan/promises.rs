//! One test for each row of what a node promises of a Service.

use std::time::Duration;

use portolan_plan::model::*;
use portolan_plan::planner::{Planner, plan_all};
use portolan_plan::service::plan_service;
use portolan_plan::trace::Outcome::{Drop, NotAService, Reject};
use portolan_plan::trace::SourceSeen::{Kept, KeptUnlessItself, Node};
use portolan_plan::trace::{Flow, Origin, Outcome};
use portolan_plan::view::*;

use crate::fixture::*;

/// Where a flow to the cluster IP goes.
fn cluster_ip(plan: &Plan, from: Origin) -> Outcome {
    trace(plan, from, VIP, 80).outcome
}

const EXTERNALS: [(&str, u16); 3] = [(EXTERNAL, 80), (BALANCER, 80), (NODE, NODE_PORT)];

#[test]
fn usable_is_ready_and_otherwise_serving_while_terminating_for_each_set_by_itself() {
    type Case<'a> = (&'a str, Vec<EndpointView>, &'a [&'a str], Outcome);
    let cases: Vec<Case<'_>> = vec![
        (
            "ready wins over terminating in both sets",
            vec![
                endpoint(POD_HERE, "here"),
                terminating("10.1.0.6", "here"),
                terminating(POD_THERE, "there"),
            ],
            &[POD_HERE],
            to(&[POD_HERE], Kept),
        ),
        (
            "the local set falls back though the cluster set has a ready endpoint",
            vec![terminating(POD_HERE, "here"), endpoint(POD_THERE, "there")],
            &[POD_THERE],
            to(&[POD_HERE], Kept),
        ),
        (
            "both fall back",
            vec![terminating(POD_HERE, "here"), terminating(POD_THERE, "there")],
            &[POD_HERE, POD_THERE],
            to(&[POD_HERE], Kept),
        ),
        (
            "not ready, or terminating and no longer serving, is never usable",
            vec![
                not_ready(POD_HERE, "here"),
                EndpointView { serving: false, ..terminating("10.1.0.6", "here") },
                endpoint(POD_THERE, "there"),
            ],
            &[POD_THERE],
            Drop,
        ),
    ];
    for (what, list, cluster, local) in cases {
        let view = ServiceView { external_policy: TrafficPolicy::Local, ..web() };
        let plan = plan(view, endpoints(list));
        assert_eq!(cluster_ip(&plan, pod()), to(cluster, Kept), "{what}: cluster set");
        assert_eq!(trace(&plan, outside(), BALANCER, 80).outcome, local, "{what}: local set");
    }
}

#[test]
fn hints_count_only_if_all_ready_endpoints_have_them_and_one_is_meant_for_here() {
    let (a, b, c) = ("10.1.0.5", "10.1.1.5", "10.1.2.5");
    let cases = [
        ("zones", vec![hinted(a, "x", &["a"], &[]), hinted(b, "y", &["b"], &[])], vec![a]),
        ("one lacks a zone", vec![hinted(a, "x", &["a"], &[]), endpoint(b, "y")], vec![a, b]),
        ("none for this zone", vec![hinted(a, "x", &["c"], &[]), hinted(b, "y", &["b"], &[])], vec![a, b]),
        (
            "nodes before zones",
            vec![
                hinted(a, "here", &["a"], &["here"]),
                hinted(b, "y", &["a"], &["y"]),
                hinted(c, "z", &["b"], &["z"]),
            ],
            vec![a],
        ),
        (
            "no node hint for me: zones",
            vec![
                hinted(a, "x", &["a"], &["x"]),
                hinted(b, "y", &["a"], &["y"]),
                hinted(c, "z", &["b"], &["z"]),
            ],
            vec![a, b],
        ),
        (
            "an endpoint that isn't ready has no say",
            vec![hinted(a, "x", &["a"], &[]), hinted(b, "y", &["b"], &[]), not_ready(c, "z")],
            vec![a],
        ),
    ];
    for (what, list, expected) in cases {
        let plan = plan(web(), endpoints(list));
        assert_eq!(cluster_ip(&plan, pod()), to(&expected, Kept), "{what}");
    }
    // A node that doesn't know its zone has no zone to prefer.
    let view = views(
        vec![(web(), endpoints(vec![hinted(a, "x", &["a"], &[]), hinted(b, "y", &["b"], &[])]))],
        NodeView { zone: None, ..node() },
    );
    assert_eq!(cluster_ip(&plan_all(view).0, pod()), to(&[a, b], Kept));
}

#[test]
fn hints_never_apply_to_the_local_set_nor_to_terminating_endpoints() {
    let view = ServiceView { external_policy: TrafficPolicy::Local, ..web() };
    let list = vec![hinted(POD_HERE, "here", &["b"], &[]), hinted(POD_THERE, "there", &["a"], &[])];
    let local = plan(view.clone(), endpoints(list));
    assert_eq!(cluster_ip(&local, pod()), to(&[POD_THERE], Kept));
    assert_eq!(trace(&local, outside(), BALANCER, 80).outcome, to(&[POD_HERE], Kept));

    let fading = |e: EndpointView| EndpointView { ready: false, terminating: true, ..e };
    let list =
        vec![fading(hinted(POD_HERE, "here", &["b"], &[])), fading(hinted(POD_THERE, "there", &["a"], &[]))];
    assert_eq!(cluster_ip(&plan(view, endpoints(list)), pod()), to(&[POD_HERE, POD_THERE], Kept));
}

#[test]
fn of_an_endpoint_in_two_slices_the_entry_that_is_not_terminating_wins_in_either_order() {
    let (old, new) = (slice(vec![terminating(POD_HERE, "here")]), slice(vec![endpoint(POD_HERE, "here")]));
    for order in [[old.clone(), new.clone()], [new, old]] {
        assert_eq!(cluster_ip(&plan(web(), slices(order)), pod()), to(&[POD_HERE], Kept));
    }
}

#[test]
fn a_local_policy_drops_when_endpoints_are_elsewhere_and_rejects_when_there_are_none() {
    let view =
        ServiceView { external_policy: TrafficPolicy::Local, internal_policy: TrafficPolicy::Local, ..web() };
    let elsewhere = plan(view.clone(), endpoints(vec![endpoint(POD_THERE, "there")]));
    let nowhere = plan(view, endpoints(vec![not_ready(POD_HERE, "here")]));
    for from in [pod(), on_node()] {
        assert_eq!(cluster_ip(&elsewhere, from), Drop);
        assert_eq!(cluster_ip(&nowhere, from), Reject);
    }
    for (address, port) in EXTERNALS {
        assert_eq!(trace(&elsewhere, outside(), address, port).outcome, Drop, "{address}");
        assert_eq!(trace(&nowhere, outside(), address, port).outcome, Reject, "{address}");
    }
}

#[test]
fn no_endpoint_is_a_refusal_from_everywhere_for_every_kind_of_address() {
    let plan = plan(web(), EndpointsView::default());
    for from in [pod(), on_node(), outside()] {
        for (address, port) in EXTERNALS {
            assert_eq!(trace(&plan, from, address, port).outcome, Reject, "{from:?} to {address}");
        }
    }
    assert_eq!(cluster_ip(&plan, pod()), Reject);
    assert_eq!(cluster_ip(&plan, on_node()), Reject);
}

#[test]
fn internal_policy_local_keeps_to_endpoints_of_this_node() {
    let plan = plan(ServiceView { internal_policy: TrafficPolicy::Local, ..web() }, here_and_there());
    assert_eq!(cluster_ip(&plan, pod()), to(&[POD_HERE], Kept));
    assert_eq!(trace(&plan, outside(), BALANCER, 80).outcome, to(&[POD_HERE, POD_THERE], Node));
}

#[test]
fn external_policy_local_keeps_the_source_from_outside_and_lets_inside_use_the_whole_cluster() {
    let plan = plan(ServiceView { external_policy: TrafficPolicy::Local, ..web() }, here_and_there());
    for (address, port) in EXTERNALS {
        assert_eq!(trace(&plan, outside(), address, port).outcome, to(&[POD_HERE], Kept));
        assert_eq!(trace(&plan, pod(), address, port).outcome, to(&[POD_HERE, POD_THERE], Kept));
        assert_eq!(trace(&plan, on_node(), address, port).outcome, to(&[POD_HERE, POD_THERE], Node));
    }
}

#[test]
fn external_policy_cluster_masquerades_everyone() {
    let plan = plan(web(), here_and_there());
    for from in [pod(), on_node(), outside()] {
        for (address, port) in EXTERNALS {
            assert_eq!(trace(&plan, from, address, port).outcome, to(&[POD_HERE, POD_THERE], Node));
        }
    }
}

#[test]
fn a_cluster_ip_is_closed_to_outside_unless_told_otherwise_and_then_masqueraded() {
    let refuse = plan(web(), here_and_there());
    assert_eq!(cluster_ip(&refuse, outside()), Drop);
    assert_eq!(cluster_ip(&refuse, Origin::Pod(ip("10.1.1.77"))), Drop, "a pod of another node");

    let open = NodeView { cluster_ip_from_outside: FromOutside::Masquerade, ..node() };
    let open = plan_all(views(vec![(web(), here_and_there())], open)).0;
    assert_eq!(cluster_ip(&open, outside()), to(&[POD_HERE, POD_THERE], Node));
    assert_eq!(cluster_ip(&open, pod()), to(&[POD_HERE, POD_THERE], Kept));
    assert_eq!(cluster_ip(&open, on_node()), to(&[POD_HERE, POD_THERE], Node));
}

#[test]
fn masquerade_all_hides_pods_too() {
    let view = NodeView { masquerade_all: true, ..node() };
    let plan = plan_all(views(vec![(web(), here_and_there())], view)).0;
    assert_eq!(cluster_ip(&plan, pod()), to(&[POD_HERE, POD_THERE], Node));
}

#[test]
fn a_node_that_does_not_know_its_pods_does_not_shut_them_out() {
    let view = NodeView { pod_cidrs: Default::default(), ..node() };
    let (plan, findings) = plan_all(views(vec![(web(), here_and_there())], view));
    assert_eq!(cluster_ip(&plan, pod()), to(&[POD_HERE, POD_THERE], Node));
    assert!(findings.iter().any(|f| f.field == "spec.podCIDRs"), "{findings:?}");
}

#[test]
fn a_pod_that_reaches_itself_sees_the_node_as_source() {
    let plan = plan(web(), here_and_there());
    assert_eq!(cluster_ip(&plan, Origin::Pod(ip(POD_HERE))), to(&[POD_HERE, POD_THERE], KeptUnlessItself));
}

#[test]
fn an_unallocated_cluster_ip_is_dropped_and_an_undefined_port_of_an_allocated_one_rejected() {
    let plan = plan(web(), here_and_there());
    for from in [pod(), on_node()] {
        assert_eq!(trace(&plan, from, "10.96.0.99", 80).outcome, Drop);
        assert_eq!(trace(&plan, from, VIP, 81).outcome, Reject);
    }
    assert_eq!(trace(&plan, pod(), EXTERNAL, 81).outcome, NotAService);
    assert_eq!(trace(&plan, pod(), POD_THERE, 8080).outcome, NotAService);
}

#[test]
fn the_protocol_is_part_of_a_frontend() {
    let mut view = web();
    view.ports.push(PortView {
        name: "dns".into(),
        protocol: Protocol::Udp,
        port: 80,
        node_port: Some(NODE_PORT),
    });
    let mut udp = slice(vec![endpoint(POD_THERE, "there")]);
    udp.ports = vec![SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53 }];
    let plan = plan(view, slices([slice(vec![endpoint(POD_HERE, "here")]), udp]));
    let flow = Flow { from: pod(), destination: ip(VIP), protocol: Protocol::Udp, port: 80 };
    let Outcome::Forward { set, .. } = plan.trace(&flow).outcome else { panic!("{}", plan.trace(&flow)) };
    assert_eq!(set.into_iter().collect::<Vec<_>>(), [Backend { address: ip(POD_THERE), port: 53 }]);
    assert_eq!(cluster_ip(&plan, pod()), to(&[POD_HERE], Kept));
    assert_eq!(plan.trace(&Flow { protocol: Protocol::Sctp, ..flow }).outcome, Reject);
}

#[test]
fn a_named_target_port_may_differ_from_endpoint_to_endpoint() {
    let other = SliceView {
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 9090 }],
        ..slice(vec![endpoint(POD_THERE, "there")])
    };
    let plan = plan(web(), slices([slice(vec![endpoint(POD_HERE, "here")]), other]));
    let Outcome::Forward { set, .. } = cluster_ip(&plan, pod()) else { panic!("not forwarded") };
    let expected =
        [Backend { address: ip(POD_HERE), port: 8080 }, Backend { address: ip(POD_THERE), port: 9090 }];
    assert_eq!(set.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn affinity_belongs_to_the_port_and_so_to_all_its_addresses() {
    let plan = plan(ServiceView { affinity: Some(Duration::from_secs(10800)), ..web() }, here_and_there());
    let part = &plan.services[&web().name];
    assert_eq!(part.sets.len(), 1, "one set for all frontends: {part:?}");
    for (address, port) in EXTERNALS {
        assert_eq!(
            trace(&plan, outside(), address, port).outcome,
            sticky(to(&[POD_HERE, POD_THERE], Node), 10800)
        );
    }
}

#[test]
fn source_ranges_hold_on_load_balancer_addresses_only() {
    let view = ServiceView { source_ranges: Some(vec!["203.0.113.0/24".parse().unwrap()]), ..web() };
    let plan = plan(view, here_and_there());
    let stranger = Origin::Outside(ip("198.18.0.1"));
    assert_eq!(trace(&plan, outside(), BALANCER, 80).outcome, to(&[POD_HERE, POD_THERE], Node));
    for from in [stranger, pod(), on_node()] {
        assert_eq!(trace(&plan, from, BALANCER, 80).outcome, Drop, "{from:?}");
        assert_eq!(trace(&plan, from, EXTERNAL, 80).outcome, to(&[POD_HERE, POD_THERE], Node));
        assert_eq!(trace(&plan, from, NODE, NODE_PORT).outcome, to(&[POD_HERE, POD_THERE], Node));
    }
    assert_eq!(cluster_ip(&plan, pod()), to(&[POD_HERE, POD_THERE], Kept));
}

#[test]
fn a_family_without_a_source_range_is_closed_and_says_so() {
    let (v6, v6_pod) = ("2001:db8:ffff::1", "fd00:1::5");
    let mut view = ServiceView { source_ranges: Some(vec!["0.0.0.0/0".parse().unwrap()]), ..web() };
    view.cluster_ips.push(ip("fd00:96::20"));
    view.load_balancer.push(IngressView { ip: ip(v6), proxy: false });
    let list = slices([slice(vec![endpoint(POD_HERE, "here")]), slice(vec![endpoint(v6_pod, "here")])]);
    let (plan, findings) = plan_all(views(vec![(view.clone(), list.clone())], node()));
    assert_eq!(
        trace(&plan, outside(), BALANCER, 80).outcome,
        to(&[POD_HERE], Node),
        "0.0.0.0/0 means everyone"
    );
    let client = Origin::Outside(ip("2001:db8:1::1"));
    assert_eq!(trace(&plan, client, v6, 80).outcome, Drop);
    assert!(findings.iter().any(|f| f.field == "spec.loadBalancerSourceRanges"), "{findings:?}");

    view.source_ranges.as_mut().unwrap().push("2001:db8:1::/48".parse().unwrap());
    let (plan, findings) = plan_all(views(vec![(view, list)], node()));
    assert_eq!(trace(&plan, client, v6, 80).outcome, to(&[v6_pod], Node));
    assert_eq!(findings, []);
}

#[test]
fn malformed_source_ranges_let_nobody_in() {
    let plan = plan(ServiceView { source_ranges: Some(vec![]), ..web() }, here_and_there());
    assert_eq!(trace(&plan, outside(), BALANCER, 80).outcome, Drop);
}

#[test]
fn a_node_that_is_let_in_may_come_from_the_balancers_own_address() {
    let ranges = |r: &str| Some(vec![r.parse().unwrap()]);
    let from = Origin::Node(ip(BALANCER));
    let with = plan(ServiceView { source_ranges: ranges("192.0.2.0/24"), ..web() }, here_and_there());
    assert_eq!(trace(&with, from, BALANCER, 80).outcome, to(&[POD_HERE, POD_THERE], Node));
    let without = plan(ServiceView { source_ranges: ranges("203.0.113.0/24"), ..web() }, here_and_there());
    assert_eq!(trace(&without, from, BALANCER, 80).outcome, Drop);
}

#[test]
fn an_address_in_mode_proxy_is_left_to_the_load_balancer() {
    let view = ServiceView { load_balancer: vec![IngressView { ip: ip(BALANCER), proxy: true }], ..web() };
    assert_eq!(trace(&plan(view, here_and_there()), pod(), BALANCER, 80).outcome, NotAService);
}

#[test]
fn node_ports_answer_on_the_primary_address_unless_told_otherwise() {
    let loopback = "127.0.0.1";
    let extra = "198.18.0.10";
    let answers = |node_ports| {
        let view = NodeView { local_addresses: [ip(loopback), ip(extra)].into(), node_ports, ..node() };
        plan_all(views(vec![], view)).0.node.node_addresses.iter().map(|a| a.to_string()).collect::<Vec<_>>()
    };
    let all = [NODE, "192.0.2.11", extra, "2001:db8::10"];
    let primary = NodePortAddresses::primary();
    let localhost = NodePortAddresses { localhost: true, ..primary.clone() };
    assert_eq!(answers(localhost), [loopback, NODE, "::1", "2001:db8::10"]);
    assert_eq!(answers(NodePortAddresses::primary()), [NODE, "2001:db8::10"]);
    assert_eq!(answers(NodePortAddresses { all: true, ..Default::default() }), all);
    let ranges = |list: &[&str]| NodePortAddresses {
        ranges: list.iter().map(|s| s.parse().unwrap()).collect(),
        ..Default::default()
    };
    assert_eq!(answers(ranges(&["0.0.0.0/0", "::/0"])), all);
    assert_eq!(
        answers(ranges(&["127.0.0.0/8", "192.0.2.11/32"])),
        [loopback, "192.0.2.11", "::1", "2001:db8::10"]
    );
    let with_primary = NodePortAddresses { primary: true, ..ranges(&["198.18.0.0/16"]) };
    assert_eq!(answers(with_primary), [NODE, extra, "2001:db8::10"]);
    assert_eq!(
        answers(ranges(&["198.18.0.0/16"])),
        [extra, "2001:db8::10"],
        "a family without a range means all of it"
    );
}

#[test]
fn a_node_port_is_closed_on_addresses_that_were_not_chosen() {
    assert_eq!(
        trace(&plan(web(), here_and_there()), outside(), "192.0.2.11", NODE_PORT).outcome,
        NotAService
    );
}

#[test]
fn a_dual_stack_service_has_its_node_port_in_both_families() {
    let mut view = web();
    view.cluster_ips.push(ip("fd00:96::20"));
    let list = slices([slice(vec![endpoint(POD_HERE, "here")]), slice(vec![endpoint("fd00:1::5", "here")])]);
    let plan = plan(view, list);
    let client = Origin::Outside(ip("2001:db8:1::1"));
    assert_eq!(trace(&plan, client, "2001:db8::10", NODE_PORT).outcome, to(&["fd00:1::5"], Node));
    assert_eq!(trace(&plan, outside(), NODE, NODE_PORT).outcome, to(&[POD_HERE], Node));
}

#[test]
fn an_external_address_in_the_cluster_ips_range_is_refused_with_a_finding() {
    let view = ServiceView { external_ips: vec![ip("10.96.0.99")], ..web() };
    let found = findings(view.clone(), here_and_there(), node());
    assert!(found.iter().any(|f| f.contains("spec.externalIPs[0]") && f.contains("10.96.0.99")), "{found:?}");
    assert_eq!(trace(&plan(view, here_and_there()), pod(), "10.96.0.99", 80).outcome, Drop);
}

#[test]
fn addresses_that_nobody_can_reach_or_of_another_family_are_refused_with_a_finding() {
    for address in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "2001:db8::77"] {
        let view = ServiceView { external_ips: vec![ip(address)], ..web() };
        let found = findings(view.clone(), here_and_there(), node());
        assert!(found.iter().any(|f| f.contains(address)), "{address}: {found:?}");
        assert_eq!(trace(&plan(view, here_and_there()), on_node(), address, 80).outcome, NotAService);
    }
}

#[test]
fn an_address_of_the_node_is_captured_as_kubernetes_does_but_the_owner_is_told() {
    let view = ServiceView { external_ips: vec![ip(NODE)], ..web() };
    assert_eq!(findings(view.clone(), here_and_there(), node()).len(), 1);
    assert_eq!(
        trace(&plan(view, here_and_there()), outside(), NODE, 80).outcome,
        to(&[POD_HERE, POD_THERE], Node)
    );
}

#[test]
fn a_cluster_ip_outside_of_the_known_ranges_is_as_closed_as_the_others() {
    let view = ServiceView { cluster_ips: vec![ip("172.30.0.1")], ..web() };
    let (plan, findings) = plan_all(views(vec![(view, here_and_there())], node()));
    assert_eq!(trace(&plan, outside(), "172.30.0.1", 80).outcome, Drop);
    assert_eq!(trace(&plan, pod(), "172.30.0.1", 80).outcome, to(&[POD_HERE, POD_THERE], Kept));
    assert_eq!(findings.len(), 1, "{findings:?}");
}

#[test]
fn the_ranges_of_cluster_ips_do_not_overlap() {
    let service_cidrs =
        ["10.96.0.0/16", "10.96.1.0/24", "10.96.7.7/12"].iter().map(|s| s.parse().unwrap()).collect();
    let plan = plan_all(views(vec![], NodeView { service_cidrs, ..node() })).0;
    assert_eq!(plan.node.service_cidrs, ["10.96.0.0/12".parse().unwrap()].into());
}

#[test]
fn a_plan_holds_no_set_that_no_frontend_uses_and_no_empty_one() {
    for external_policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
        for internal_policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            let view = ServiceView { external_policy, internal_policy, ..web() };
            for list in
                [here_and_there(), endpoints(vec![endpoint(POD_THERE, "there")]), EndpointsView::default()]
            {
                let (claims, _) = plan_service(&view, &list, &node());
                assert_well_formed(&claims.wanted);
            }
        }
    }
}

pub fn assert_well_formed(part: &ServicePlan) {
    let used: std::collections::BTreeSet<_> = part.frontends.values().flat_map(FrontendPlan::sets).collect();
    assert!(
        used.iter().all(|name| part.sets.contains_key(name)),
        "a frontend names a set that is not there: {part:?}"
    );
    assert!(part.sets.keys().all(|name| used.contains(name)), "a set is not used: {part:?}");
    assert!(part.sets.values().all(|set| !set.backends.is_empty()), "a set is empty: {part:?}");
}

#[test]
fn local_pods_are_the_endpoints_of_this_node() {
    let mut planner = Planner::new(node());
    planner.set_service(web());
    planner.set_endpoints(&web().name, here_and_there());
    let change = planner.take_change();
    assert_eq!(change.node.unwrap().local_pods, [ip(POD_HERE)].into());
    planner.set_endpoints(&web().name, EndpointsView::default());
    assert_eq!(planner.take_change().node.unwrap().local_pods, [].into());
}

#[test]
fn a_udp_flow_goes_on_while_its_backend_serves_and_is_stale_after() {
    let mut view = service("dns", 1, VIP);
    view.ports = vec![PortView { name: "http".into(), protocol: Protocol::Udp, port: 53, node_port: None }];
    let frontend = Frontend::Address { address: ip(VIP), protocol: Protocol::Udp, port: 53 };
    let mut planner = Planner::new(node());
    planner.set_service(view.clone());
    // What is stale after these are its endpoints.
    let mut after = |list: Option<Vec<EndpointView>>| {
        match list {
            Some(list) => {
                let mut slice = slice(list);
                slice.ports[0].protocol = Protocol::Udp;
                planner.set_endpoints(&view.name, slices([slice]));
            }
            None => planner.remove_service(&view.name),
        }
        let _ = planner.take_change();
        let keep = planner.take_stale_udp().remove(&frontend)?;
        Some(keep.serving.iter().map(|b| b.address.to_string()).collect::<Vec<_>>())
    };
    let (here, there) = (|| endpoint(POD_HERE, "here"), || endpoint(POD_THERE, "there"));
    let keep = |list: &[&str]| Some(list.iter().map(|s| s.to_string()).collect::<Vec<_>>());
    assert_eq!(
        after(Some(vec![here(), there()])),
        keep(&[POD_HERE, POD_THERE]),
        "flows may be older than the Service"
    );
    assert_eq!(after(Some(vec![here(), terminating(POD_THERE, "there")])), None, "it drains");
    assert_eq!(after(Some(vec![here()])), keep(&[POD_HERE]), "it is gone");
    assert_eq!(after(Some(vec![not_ready(POD_HERE, "here")])), keep(&[]), "none serves");
    assert_eq!(after(Some(vec![])), keep(&[]), "and now there is none that could still owe an answer");
    assert_eq!(after(Some(vec![here()])), None);
    assert_eq!(after(None), keep(&[]), "the Service is gone");
}

#[test]
fn a_health_check_counts_ready_endpoints_of_this_node_each_address_once() {
    let mut view = ServiceView { health_check_node_port: Some(32000), ..web() };
    view.ports.push(PortView { name: "alt".into(), protocol: Protocol::Tcp, port: 81, node_port: None });
    let mut both_ports = slice(vec![
        endpoint(POD_HERE, "here"),
        endpoint(POD_THERE, "there"),
        terminating("10.1.0.6", "here"),
        not_ready("10.1.0.7", "here"),
    ]);
    both_ports.ports.push(SlicePort { name: "alt".into(), protocol: Protocol::Tcp, port: 8081 });
    let mut planner = Planner::new(node());
    planner.set_service(view.clone());
    // The same pod in its other family.
    let other_family = slice(vec![endpoint("fd00:1::5", "here")]);
    planner.set_endpoints(&view.name, slices([both_ports, other_family]));
    let _ = planner.take_change();
    let check = planner.health_checks()[&view.name];
    assert_eq!((check.port, check.local_ready), (32000, 1));
    planner.set_service(ServiceView { health_check_node_port: None, ..view });
    let _ = planner.take_change();
    assert!(planner.health_checks().is_empty());
}

#[test]
fn loopback_is_for_the_node_itself() {
    let node_ports = NodePortAddresses { localhost: true, ..NodePortAddresses::primary() };
    let list = endpoints(vec![endpoint(POD_THERE, "there")]);
    let plan = plan_all(views(vec![(web(), list)], NodeView { node_ports, ..node() })).0;
    let own = Origin::Node(ip("127.0.0.1"));
    assert_eq!(trace(&plan, own, "127.0.0.1", NODE_PORT).outcome, to(&[POD_THERE], Node));
    assert_eq!(trace(&plan, outside(), "127.0.0.1", NODE_PORT).outcome, Drop);
}

#[test]
fn external_ips_are_captured_where_the_nodes_owner_allows_them() {
    let outcome = |external_ips, address: &str| {
        let view = ServiceView { external_ips: vec![ip(address)], load_balancer: vec![], ..web() };
        let (plan, findings) =
            plan_all(views(vec![(view, here_and_there())], NodeView { external_ips, ..node() }));
        let told = findings.iter().any(|f| f.field == "spec.externalIPs[0]");
        (trace(&plan, outside(), address, 80).outcome != NotAService, told)
    };
    let within = || ExternalIps::Within(vec!["198.51.100.0/24".parse().unwrap()]);
    assert_eq!(outcome(ExternalIps::Any, EXTERNAL), (true, false));
    assert_eq!(outcome(ExternalIps::Any, POD_HERE), (false, true), "a pod's address");
    assert_eq!(outcome(within(), EXTERNAL), (true, false));
    assert_eq!(outcome(within(), "203.0.113.80"), (false, true));
    assert_eq!(outcome(ExternalIps::None, EXTERNAL), (false, true));
}
