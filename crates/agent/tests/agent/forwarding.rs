//! From objects in the API to what a dataplane is told.

use std::net::IpAddr;

use portolan_agent::servers::Opened;
use portolan_agent::{Agent, Config, Status};
use portolan_plan::model::{Backend, FromOutside, Frontend, Plan, Protocol};
use portolan_plan::trace::{Flow, Origin, Outcome};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::FakeApi;
use crate::plane::{FakePlane, Held};

pub struct Running {
    pub api: FakeApi,
    pub plane: FakePlane,
    pub status: watch::Receiver<Status>,
    pub opened: watch::Receiver<Opened>,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<anyhow::Result<()>>,
}

pub fn config() -> Config {
    Config { service_cidrs: vec!["10.96.0.0/16".parse().unwrap()], ..Config::new("here") }
}

fn start(api: FakeApi, plane: FakePlane) -> Running {
    start_as(config(), api, plane)
}

pub fn start_as(config: Config, api: FakeApi, plane: FakePlane) -> Running {
    let agent = Agent::new(api.client(), config);
    let (status, opened) = (agent.status(), agent.opened());
    let shutdown = CancellationToken::new();
    let kernel = plane.clone();
    let task = tokio::spawn(agent.run_with(move || Ok(kernel), shutdown.clone()));
    Running { api, plane, status, opened, shutdown, task }
}

impl Running {
    pub async fn stop(self) -> Held {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        self.plane.now()
    }
}

pub fn node() -> Value {
    json!({"metadata": {"name": "here", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDRs": ["10.1.0.0/24"]},
        "status": {"addresses": [{"type": "Hostname", "address": "here"}, {"type": "InternalIP", "address": "192.0.2.10"}]}})
}

pub fn service(name: &str, vip: &str) -> Value {
    json!({"metadata": {"namespace": "default", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "NodePort", "clusterIP": vip, "clusterIPs": [vip], "internalTrafficPolicy": "Cluster",
            "externalTrafficPolicy": "Cluster", "selector": {"app": name},
            "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}})
}

pub fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|a| json!({"addresses": [a], "nodeName": "there", "conditions": {"ready": true}}))
        .collect();
    json!({"metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints})
}

/// Where a pod's connection to a cluster IP goes.
pub fn backends(plan: &Plan, vip: &str) -> Vec<String> {
    let flow = Flow {
        from: Origin::Pod("10.1.0.77".parse().unwrap()),
        destination: vip.parse().unwrap(),
        protocol: Protocol::Tcp,
        port: 80,
    };
    match plan.trace(&flow).outcome {
        Outcome::Forward { set, .. } => set.into_iter().map(|b| b.address.to_string()).collect(),
        other => vec![format!("{other:?}")],
    }
}

pub fn web() -> FakeApi {
    let api = FakeApi::default();
    api.put("nodes", node());
    api.put("services", service("web", "10.96.0.1"));
    api.put("endpointslices", slice("web-1", "web", &["10.1.1.1"]));
    api
}

#[tokio::test]
async fn the_kernel_is_told_nothing_before_everything_is_listed() {
    let api = web();
    for kind in ["services", "endpointslices", "nodes"] {
        let plane = FakePlane::default();
        api.hold(&[kind]);
        let lists = api.lists();
        let running = start(api.clone(), plane.clone());
        while api.lists() < lists + 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(plane.now().syncs, 0, "while {kind} are not listed");
        assert!(!running.status.borrow().synced);
        api.hold(&[]);
        let held = plane.until("the first plan", |h| h.syncs == 1).await;
        assert_eq!(backends(&held.plan, "10.96.0.1"), ["10.1.1.1"]);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_node_that_registers_is_never_open_to_outsiders_for_want_of_its_pods_ranges() {
    let api = web();
    api.delete("nodes", "", "here");
    let running = start(api.clone(), FakePlane::default());
    let mut bare = node();
    bare["spec"] = json!({});
    api.put("nodes", bare.clone());
    api.put("nodes", node());
    let held = running.plane.until("the first plan", |h| h.syncs == 1).await;
    let refuses = |h: &Held| h.plan.node.cluster_ip_from_outside == FromOutside::Refuse;
    assert!(refuses(&held) && held.changes.is_empty(), "{held:?}");

    // Nor when its object is made anew.
    bare["status"]["addresses"][1]["address"] = json!("192.0.2.99");
    api.delete("nodes", "", "here");
    api.put("nodes", bare);
    let moved = |h: &Held| h.plan.node.node_addresses == ["192.0.2.99".parse().unwrap()].into();
    let held = running.plane.until("the new node's address", moved).await;
    assert!(refuses(&held), "{held:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_change_of_one_endpoint_changes_one_service() {
    let api = web();
    api.put("services", service("other", "10.96.0.2"));
    let running = start(api, FakePlane::default());
    running.plane.until("the first plan", |h| h.syncs == 1).await;
    running.api.put("endpointslices", slice("web-1", "web", &["10.1.1.1", "10.1.1.2"]));
    let held = running.plane.until("both endpoints", |h| backends(&h.plan, "10.96.0.1").len() == 2).await;
    assert_eq!(held.syncs, 1);
    assert_eq!(held.changes.len(), 1);
    assert_eq!(held.changes[0].services.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn the_slices_of_a_service_are_one_set_and_a_slice_may_move_to_another_service() {
    let running = start(web(), FakePlane::default());
    running.api.put("services", service("other", "10.96.0.2"));
    running.api.put("endpointslices", slice("web-2", "web", &["10.1.1.2"]));
    let both = |h: &Held| backends(&h.plan, "10.96.0.1") == ["10.1.1.1", "10.1.1.2"];
    running.plane.until("two slices", both).await;
    running.api.put("endpointslices", slice("web-2", "other", &["10.1.1.2"]));
    let moved = |h: &Held| {
        backends(&h.plan, "10.96.0.1") == ["10.1.1.1"] && backends(&h.plan, "10.96.0.2") == ["10.1.1.2"]
    };
    running.plane.until("a slice of each", moved).await;
    running.stop().await;
}

#[tokio::test]
async fn what_was_missed_while_a_watch_was_broken_is_caught_up_with() {
    let running = start(web(), FakePlane::default());
    running.api.put("services", service("gone", "10.96.0.2"));
    running.api.put("endpointslices", slice("gone-1", "gone", &["10.1.1.9"]));
    running.plane.until("both Services", |h| backends(&h.plan, "10.96.0.2") == ["10.1.1.9"]).await;

    running.api.hold(&["services", "endpointslices"]);
    running.api.break_watches();
    running.api.delete("services", "default", "gone");
    running.api.delete("endpointslices", "default", "gone-1");
    running.api.put("services", service("new", "10.96.0.3"));
    running.api.put("endpointslices", slice("web-1", "web", &["10.1.1.5"]));
    running.api.hold(&[]);
    let caught_up = |h: &Held| {
        backends(&h.plan, "10.96.0.1") == ["10.1.1.5"]
            && backends(&h.plan, "10.96.0.2") == ["Drop"]
            && backends(&h.plan, "10.96.0.3") == ["Reject"]
    };
    let held = running.plane.until("the state after the break", caught_up).await;
    assert_eq!(held.syncs, 1, "a broken watch is no reason to write everything again");
    running.stop().await;
}

#[tokio::test]
async fn a_plan_that_the_kernel_refused_is_given_again_as_a_whole() {
    let running = start(web(), FakePlane::default());
    running.plane.until("the first plan", |h| h.syncs == 1).await;
    running.plane.fail_next(2);
    running.api.put("endpointslices", slice("web-1", "web", &["10.1.1.2"]));
    let held = running
        .plane
        .until("the plan after failures", |h| backends(&h.plan, "10.96.0.1") == ["10.1.1.2"])
        .await;
    assert_eq!((held.failed, held.syncs), (2, 2));
    let mut status = running.status.clone();
    status.wait_for(|s| s.failures == 0 && s.error.is_none()).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn forwarding_stays_in_place_after_shutdown_and_a_restart_ends_in_the_same_plan() {
    let api = web();
    let running = start(api.clone(), FakePlane::default());
    running.plane.until("the first plan", |h| h.syncs == 1).await;
    let plane = running.plane.clone();
    let held = running.stop().await;
    assert_eq!(backends(&held.plan, "10.96.0.1"), ["10.1.1.1"]);

    let again = start(api, plane);
    let restarted = again.plane.until("the plan of the second run", |h| h.syncs == 2).await;
    assert_eq!(restarted.plan, held.plan);
    again.stop().await;
}

#[tokio::test]
async fn services_of_another_proxy_are_let_alone() {
    let api = web();
    let mut other = service("web", "10.96.0.1");
    other["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "another"});
    api.put("services", other);
    let running = start(api, FakePlane::default());
    let held = running.plane.until("the first plan", |h| h.syncs == 1).await;
    assert!(held.plan.services.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn a_service_that_turns_headless_is_no_longer_forwarded() {
    let running = start(web(), FakePlane::default());
    running.plane.until("the first plan", |h| !h.plan.services.is_empty()).await;
    running.api.put("services", service("web", "None"));
    running.plane.until("no plan", |h| h.plan.services.is_empty()).await;
    running.stop().await;
}

#[tokio::test]
async fn udp_flows_of_an_endpoint_that_is_gone_are_forgotten() {
    let udp = |mut object: Value, field: &str| {
        let ports = if field == "spec" { &mut object["spec"]["ports"] } else { &mut object["ports"] };
        ports[0]["protocol"] = json!("UDP");
        object
    };
    let api = web();
    api.put("services", udp(service("web", "10.96.0.1"), "spec"));
    api.put("endpointslices", udp(slice("web-1", "web", &["10.1.1.1", "10.1.1.2"]), ""));
    let running = start(api, FakePlane::default());
    let address: IpAddr = "10.96.0.1".parse().unwrap();
    let frontend = Frontend::Address { address, protocol: Protocol::Udp, port: 80 };
    let keeps = |h: &Held, wanted: &[&str]| {
        let wanted = wanted.iter().map(|a| Backend { address: a.parse().unwrap(), port: 8080 }).collect();
        // At once, and then those that the first look left.
        [&h.forgotten, &h.forgotten_all]
            .iter()
            .all(|f| f.get(&frontend).is_some_and(|keep| keep.serving == wanted))
    };
    running.plane.until("a clean start", |h| keeps(h, &["10.1.1.1", "10.1.1.2"])).await;
    running.api.put("endpointslices", udp(slice("web-1", "web", &["10.1.1.2"]), ""));
    running.plane.until("the endpoint's flows gone", |h| keeps(h, &["10.1.1.2"])).await;
    running.api.delete("services", "default", "web");
    running.plane.until("the Service's flows gone", |h| keeps(h, &[])).await;
    running.stop().await;
}

#[tokio::test]
async fn a_malformed_service_is_told_and_does_not_stop_the_others() {
    let api = web();
    let mut bad = service("bad", "10.96.0.3");
    bad["spec"]["externalIPs"] = json!(["not an address"]);
    api.put("services", bad);
    let running = start(api, FakePlane::default());
    let mut status = running.status.clone();
    let status = status.wait_for(|s| s.synced).await.unwrap().clone();
    assert_eq!(status.findings.len(), 1, "{:?}", status.findings);
    assert_eq!(status.findings[0].field, "spec.externalIPs[0]");
    assert_eq!(backends(&running.plane.now().plan, "10.96.0.1"), ["10.1.1.1"]);
    running.stop().await;
}
