//! Who owns a frontend that several Services claim, and what a change of that re-plans.

use portolan_plan::planner::{Planner, plan_all};
use portolan_plan::trace::Outcome;
use portolan_plan::trace::SourceSeen::Node;
use portolan_plan::view::*;

use crate::fixture::*;

fn external(name: &str, created: i64, vip: &str, address: &str) -> ServiceView {
    ServiceView { external_ips: vec![ip(address)], ..service(name, created, vip) }
}

fn planner(services: &[&ServiceView]) -> Planner {
    let mut planner = Planner::new(node());
    for service in services {
        planner.set_service((*service).clone());
        planner.set_endpoints(&service.name, endpoints(vec![endpoint(pod_of(service), "there")]));
    }
    let _ = planner.take_change();
    planner
}

/// Each Service of these tests has one endpoint, told by its name.
fn pod_of(service: &ServiceView) -> &'static str {
    match &*service.name.name {
        "a" => "10.1.1.1",
        "b" => "10.1.1.2",
        _ => "10.1.1.3",
    }
}

fn at(planner: &Planner, address: &str, port: u16) -> Outcome {
    trace(planner.plan(), outside(), address, port).outcome
}

#[test]
fn the_older_service_keeps_a_frontend_and_the_younger_gets_a_finding() {
    let old = external("b", 1, "10.96.0.2", EXTERNAL);
    let young = external("a", 2, "10.96.0.1", EXTERNAL);
    for order in [[&old, &young], [&young, &old]] {
        let planner = planner(&order);
        assert_eq!(at(&planner, EXTERNAL, 80), to(&[pod_of(&old)], Node));
        let found: Vec<_> = planner.findings().map(|f| f.to_string()).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("service default/a: spec.externalIPs: ") && found[0].contains("default/b"),
            "{found:?}"
        );
    }
}

#[test]
fn of_two_services_of_one_age_the_first_by_name_keeps_it() {
    let (a, b) = (external("a", 1, "10.96.0.1", EXTERNAL), external("b", 1, "10.96.0.2", EXTERNAL));
    assert_eq!(at(&planner(&[&b, &a]), EXTERNAL, 80), to(&[pod_of(&a)], Node));
}

#[test]
fn when_the_owner_goes_the_next_takes_over_in_the_same_change() {
    let (a, b) = (external("a", 1, "10.96.0.1", EXTERNAL), external("b", 2, "10.96.0.2", EXTERNAL));
    let mut planner = planner(&[&a, &b]);
    planner.remove_service(&a.name);
    let change = planner.take_change();
    assert_eq!(change.services.keys().collect::<Vec<_>>(), [&a.name, &b.name]);
    assert_eq!(at(&planner, EXTERNAL, 80), to(&[pod_of(&b)], Node));
    assert_eq!(planner.findings().count(), 0);
}

#[test]
fn a_service_made_again_is_the_younger_from_then_on() {
    let (a, b) = (external("a", 1, "10.96.0.1", EXTERNAL), external("b", 2, "10.96.0.2", EXTERNAL));
    let mut planner = planner(&[&a, &b]);
    planner.set_service(ServiceView { created: 3, ..a });
    let _ = planner.take_change();
    assert_eq!(at(&planner, EXTERNAL, 80), to(&[pod_of(&b)], Node));
}

#[test]
fn services_may_share_an_address_at_different_ports() {
    let a = external("a", 1, "10.96.0.1", EXTERNAL);
    let mut b = external("b", 2, "10.96.0.2", EXTERNAL);
    b.ports[0].port = 81;
    let planner = planner(&[&a, &b]);
    assert_eq!(at(&planner, EXTERNAL, 80), to(&[pod_of(&a)], Node));
    assert_eq!(at(&planner, EXTERNAL, 81), to(&[pod_of(&b)], Node));
    assert_eq!(planner.findings().count(), 0);
}

#[test]
fn a_cluster_ip_is_not_taken_over_by_an_older_services_external_address_at_any_port() {
    // Outside of the known ranges, where the range alone would not tell.
    let thief = external("a", 1, "10.96.0.1", "172.30.0.1");
    let mut other_port = external("b", 1, "10.96.0.2", "172.30.0.1");
    other_port.ports[0].port = 8443;
    let mut planner = planner(&[&thief, &other_port]);
    assert_eq!(at(&planner, "172.30.0.1", 80), to(&[pod_of(&thief)], Node));

    let owner = service("c", 9, "172.30.0.1");
    planner.set_service(owner.clone());
    planner.set_endpoints(&owner.name, endpoints(vec![endpoint(pod_of(&owner), "there")]));
    let _ = planner.take_change();
    assert_eq!(
        trace(planner.plan(), pod(), "172.30.0.1", 80).outcome,
        to(&["10.1.1.3"], portolan_plan::trace::SourceSeen::Kept)
    );
    assert_eq!(trace(planner.plan(), pod(), "172.30.0.1", 8443).outcome, Outcome::Reject);
    let refused = planner.findings().filter(|f| f.field == "spec.externalIPs").count();
    assert_eq!(refused, 2, "{:?}", planner.findings().collect::<Vec<_>>());

    planner.remove_service(&owner.name);
    let _ = planner.take_change();
    assert_eq!(at(&planner, "172.30.0.1", 8443), to(&[pod_of(&other_port)], Node));
}

#[test]
fn a_node_port_goes_before_an_external_address_of_the_node_at_the_same_port() {
    let mut a = external("a", 1, "10.96.0.1", NODE);
    a.ports[0].port = 30000;
    let mut b = service("b", 2, "10.96.0.2");
    b.ports[0].node_port = Some(30000);
    let mut planner = planner(&[&a, &b]);
    assert_eq!(at(&planner, NODE, 30000), to(&[pod_of(&b)], Node));
    planner.remove_service(&b.name);
    let _ = planner.take_change();
    assert_eq!(at(&planner, NODE, 30000), to(&[pod_of(&a)], Node));
    planner.set_service(b.clone());
    let _ = planner.take_change();
    assert_eq!(at(&planner, NODE, 30000), to(&[pod_of(&b)], Node));
}

#[test]
fn a_change_re_plans_only_the_services_that_share_a_claim() {
    let a = external("a", 1, "10.96.0.1", EXTERNAL);
    let b = external("b", 2, "10.96.0.2", EXTERNAL);
    let c = external("c", 3, "10.96.0.3", BALANCER);
    let mut planner = planner(&[&a, &b, &c]);
    let untouched = planner.plan().services[&c.name].clone();
    planner.set_endpoints(&a.name, endpoints(vec![endpoint("10.1.1.9", "there")]));
    let change = planner.take_change();
    assert_eq!(change.services.keys().collect::<Vec<_>>(), [&a.name]);
    assert!(change.node.is_none());
    assert!(std::sync::Arc::ptr_eq(&untouched, &planner.plan().services[&c.name]));
}

#[test]
fn what_changes_nothing_makes_no_change() {
    let a = external("a", 1, "10.96.0.1", EXTERNAL);
    let mut planner = planner(&[&a]);
    planner.set_service(a.clone());
    planner.set_node(node());
    assert!(!planner.is_dirty());
    planner.set_endpoints(
        &a.name,
        endpoints(vec![endpoint(pod_of(&a), "there"), not_ready("10.1.1.8", "there")]),
    );
    assert!(planner.is_dirty());
    assert!(planner.take_change().is_empty());
}

#[test]
fn a_bad_service_does_not_stop_the_others() {
    let mut bad = external("a", 1, "10.96.0.1", "127.0.0.1");
    bad.ports.clear();
    let good = external("b", 2, "10.96.0.2", EXTERNAL);
    let all = |s: &ServiceView| (s.clone(), endpoints(vec![endpoint(pod_of(s), "there")]));
    let (plan, findings) = plan_all(views(vec![all(&bad), all(&good)], node()));
    assert_eq!(trace(&plan, outside(), EXTERNAL, 80).outcome, to(&[pod_of(&good)], Node));
    assert_eq!(findings.len(), 1);
    assert!(!plan.services.contains_key(&bad.name));
}
