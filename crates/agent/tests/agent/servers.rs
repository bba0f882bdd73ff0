//! What the agent answers on its ports, and the events it writes.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use portolan_agent::{Config, Servers};
use portolan_plan::model::Plan;
use portolan_plan::view::NodePortAddresses;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::api::FakeApi;
use crate::forwarding::{Running, config, node, service, slice, start_as, web};
use crate::plane::FakePlane;

/// What was answered: the status code, and the body.
pub async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).await.expect("open");
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.split(' ').nth(1).expect("a code").parse().expect("a number"), body.to_owned())
}

/// Asks until the answer is as wanted.
pub async fn until(what: &str, at: SocketAddr, path: &str, wanted: impl Fn(u16, &str) -> bool) -> String {
    let asked = async {
        loop {
            let (code, body) = get(at, path).await;
            if wanted(code, &body) {
                return body;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asked)
        .await
        .unwrap_or_else(|_| panic!("never came: {what}"))
}

fn with_ports() -> Config {
    let any = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    Config { servers: Servers { healthz: any, metrics: any, hard_fail: false }, ..config() }
}

async fn started(api: FakeApi) -> (Running, SocketAddr, SocketAddr) {
    let mut running = start_as(with_ports(), api, FakePlane::default());
    let opened =
        running.opened.wait_for(|o| o.healthz.is_some() && o.metrics.is_some()).await.expect("ports").clone();
    running.status.wait_for(|s| s.synced).await.expect("a first plan");
    (running, opened.healthz.unwrap(), opened.metrics.unwrap())
}

#[tokio::test]
async fn healthz_follows_the_node_object_and_livez_does_not() {
    let (running, healthz, _) = started(web()).await;
    let body = until("a good node", healthz, "/healthz", |code, _| code == 200).await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&json!(true), &json!(true)));
    assert!(body["status"]["IPv6"]["lastUpdated"].is_string(), "{body}");

    let mut going = node();
    going["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
    running.api.put("nodes", going);
    until("a node that is about to go", healthz, "/healthz", |code, _| code == 503).await;
    assert_eq!(get(healthz, "/livez").await.0, 200);
    running.api.put("nodes", node());
    until("a node that stays", healthz, "/healthz", |code, _| code == 200).await;
    running.api.delete("nodes", "", "here");
    until("a node that is gone", healthz, "/healthz", |code, _| code == 503).await;
    running.stop().await;
}

#[tokio::test]
async fn a_kernel_that_refuses_is_unhealthy_until_it_follows() {
    let (running, healthz, metrics) = started(web()).await;
    running.plane.fail_next(3);
    running.api.put("endpointslices", slice("web-1", "web", &["10.1.1.2"]));
    until("the refusal", healthz, "/livez", |code, _| code == 503).await;
    until("the kernel follows", healthz, "/livez", |code, _| code == 200).await;
    let (_, page) = get(metrics, "/metrics").await;
    assert!(
        page.contains("\nkubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 3\n"),
        "{page}"
    );
    running.stop().await;
}

#[tokio::test]
async fn changes_are_counted_until_the_kernel_has_them_and_timed_from_their_cause() {
    let (running, _, metrics) = started(web()).await;
    let mut changed = slice("web-1", "web", &["10.1.1.2"]);
    let now = Timestamp::try_from(SystemTime::now()).expect("a time");
    changed["metadata"]["annotations"] =
        json!({"endpoints.kubernetes.io/last-change-trigger-time": now.to_string()});
    running.api.put("endpointslices", changed);
    let timed = |_, body: &str| {
        body.contains("\nkubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1\n")
    };
    let page = until("the slice", metrics, "/metrics", timed).await;
    for line in [
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 2",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        "kubeproxy_sync_proxy_rules_service_changes_total 1",
        "kubeproxy_sync_proxy_rules_service_changes_pending 0",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "no line {line:?} in\n{page}");
    }
    running.stop().await;
}

#[tokio::test]
async fn services_without_an_endpoint_here_are_counted_by_policy() {
    let api = web();
    let mut local = service("web", "10.96.0.1");
    local["spec"]["internalTrafficPolicy"] = json!("Local");
    api.put("services", local);
    let (running, _, metrics) = started(api).await;
    let (_, page) = get(metrics, "/metrics").await;
    let line = |policy: &str, n: u32| {
        format!("\nkubeproxy_sync_proxy_rules_no_local_endpoints_total{{traffic_policy=\"{policy}\"}} {n}\n")
    };
    assert!(page.contains(&line("internal", 1)) && page.contains(&line("external", 0)), "{page}");
    running.stop().await;
}

#[tokio::test]
async fn the_configuration_in_effect_is_shown() {
    let (running, healthz, metrics) = started(web()).await;
    let (code, body) = get(metrics, "/configz").await;
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let config = &body["kubeproxy.config.k8s.io"];
    assert_eq!(
        (code, &config["hostnameOverride"], &config["mode"]),
        (200, &json!("here"), &json!("nftables"))
    );
    assert_ne!(healthz, metrics);
    running.stop().await;
}

#[tokio::test]
async fn the_node_is_told_of_a_start_and_of_a_port_that_is_taken_while_forwarding_goes_on() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let servers = Servers { metrics: taken.local_addr().ok(), ..Servers::default() };
    let mut running = start_as(Config { servers, ..config() }, web(), FakePlane::default());
    for reason in ["Starting", "FailedToStartMetricServer"] {
        let written = running.api.created("events", |event| event["reason"] == reason);
        let event = tokio::time::timeout(Duration::from_secs(20), written).await.expect(reason);
        assert_eq!(event["involvedObject"]["kind"], "Node");
        assert_eq!(event["involvedObject"]["name"], "here");
    }
    running.status.wait_for(|s| s.synced).await.expect("a first plan");
    running.stop().await;
}

#[tokio::test]
async fn a_taken_port_ends_the_agent_where_that_was_asked_for_and_the_node_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let servers = Servers { healthz: taken.local_addr().ok(), hard_fail: true, ..Servers::default() };
    let running = start_as(Config { servers, ..config() }, web(), FakePlane::default());
    let ended = tokio::time::timeout(Duration::from_secs(20), running.task).await.expect("it ends").unwrap();
    let error = format!("{:#}", ended.unwrap_err());
    assert!(error.contains("healthzBindAddress"), "{error}");
    running.api.created("events", |event| event["reason"] == "FailedToStartProxierHealthcheck").await;
}

#[tokio::test]
async fn an_api_that_takes_no_events_is_no_reason_to_wait() {
    let api = web();
    api.unserve(&["events"]);
    let (running, healthz, _) = started(api).await;
    until("a good node", healthz, "/healthz", |code, _| code == 200).await;
    running.stop().await;
}

fn ranges(plan: &Plan) -> Vec<String> {
    plan.node.service_cidrs.iter().map(ToString::to_string).collect()
}

fn service_cidr(name: &str, ranges: &[&str]) -> Value {
    json!({"metadata": {"name": name}, "spec": {"cidrs": ranges}})
}

#[tokio::test]
async fn the_ranges_of_cluster_ips_are_those_of_the_api_as_they_come_and_go() {
    let api = web();
    api.put("servicecidrs", service_cidr("kubernetes", &["10.96.0.0/20", "fd00:96::/112"]));
    let running = start_as(Config { watch_service_cidrs: true, ..config() }, api, FakePlane::default());
    let held = running.plane.until("the first plan", |h| h.syncs == 1).await;
    assert_eq!(ranges(&held.plan), ["10.96.0.0/20", "fd00:96::/112"], "from the first plan on");
    running.api.put("servicecidrs", service_cidr("more", &["10.200.0.0/24"]));
    running
        .plane
        .until("another range", |h| ranges(&h.plan) == ["10.96.0.0/20", "10.200.0.0/24", "fd00:96::/112"])
        .await;
    running.api.hold(&["servicecidrs"]);
    running.api.break_watches();
    running.api.delete("servicecidrs", "", "more");
    running.api.hold(&[]);
    running.plane.until("one range less", |h| ranges(&h.plan) == ["10.96.0.0/20", "fd00:96::/112"]).await;
    running.stop().await;
}

#[tokio::test]
async fn where_the_api_has_no_ranges_those_count_that_the_agent_was_told() {
    for served in [true, false] {
        let api = web();
        if !served {
            api.unserve(&["servicecidrs"]);
        }
        let running = start_as(Config { watch_service_cidrs: true, ..config() }, api, FakePlane::default());
        let held = running.plane.until("the first plan", |h| h.syncs == 1).await;
        assert_eq!(ranges(&held.plan), ["10.96.0.0/16"]);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_health_check_port_answers_for_ready_endpoints_and_not_for_those_that_end() {
    // Any free port; freed just before it is wanted.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let api = web();
    let mut local = service("web", "10.96.0.1");
    local["spec"]["type"] = json!("LoadBalancer");
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    local["spec"]["healthCheckNodePort"] = json!(port);
    api.put("services", local);
    let endpoint = |conditions: Value| {
        let mut slice = slice("web-1", "web", &["10.1.0.5"]);
        slice["endpoints"][0]["nodeName"] = json!("here");
        slice["endpoints"][0]["conditions"] = conditions;
        slice
    };
    api.put("endpointslices", endpoint(json!({"ready": true})));
    let config = Config {
        node_port_addresses: NodePortAddresses { all: true, ..NodePortAddresses::default() },
        ..config()
    };
    let running = start_as(config, api, FakePlane::default());
    let open = async {
        while TcpStream::connect(at).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), open).await.expect("the port opens");
    until("a ready endpoint", at, "/", |code, body| code == 200 && body.contains("\"localEndpoints\": 1"))
        .await;
    running
        .api
        .put("endpointslices", endpoint(json!({"ready": false, "serving": true, "terminating": true})));
    until("an endpoint that ends", at, "/", |code, body| {
        code == 503 && body.contains("\"localEndpoints\": 0")
    })
    .await;
    running.stop().await;
}
