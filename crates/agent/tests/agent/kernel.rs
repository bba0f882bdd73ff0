//! The agent on a kernel: a node and a pod as two network namespaces that the test makes.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use portolan_agent::servers::Opened;
use portolan_agent::sysctl::Conntrack;
use portolan_agent::{Agent, Config, Servers, Status};
use portolan_dataplane::{Engine, Options};
use portolan_sys::link::{LinkEnd, Links, Route};
use portolan_sys::{namespace, trial};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::FakeApi;
use crate::forwarding::{node, service, slice};
use crate::servers::until;

pub const VIP: &str = "10.96.0.1";
pub const PODS: [&str; 2] = ["10.1.0.5", "10.1.0.6"];

/// Joins a node's namespace, which is the calling thread's, with a pod's. The pod answers UDP on port 8080 of each of its
/// addresses with that address.
pub fn cable() -> io::Result<Vec<UdpSocket>> {
    let ip = |s: &str| s.parse::<IpAddr>().expect("an address");
    let pod = namespace::new_netns()?;
    let mut links = Links::open()?;
    links.add_veth(&LinkEnd::named("pod0"), &LinkEnd::named("eth0").in_netns(pod.as_fd()))?;
    let loopback = links.index("lo")?;
    links.set_up(loopback, true)?;
    let here = links.index("pod0")?;
    links.add_address(here, ip("10.1.0.1"), 24)?;
    links.set_up(here, true)?;
    // The kernel looks for a route before it translates.
    links.add_route(&Route::to(ip("10.96.0.0"), 16).on(here))?;
    namespace::in_netns(pod.as_fd(), || {
        let mut links = Links::open()?;
        let eth0 = links.index("eth0")?;
        for address in PODS {
            links.add_address(eth0, ip(address), 24)?;
        }
        links.set_up(eth0, true)?;
        PODS.iter().map(|address| UdpSocket::bind((*address, 8080))).collect()
    })?
}

/// Answers each datagram with the address it came to, until the socket times out for want of any.
pub fn answer(sockets: Vec<UdpSocket>) {
    for socket in sockets {
        std::thread::spawn(move || {
            let own = socket.local_addr().expect("bound").ip().to_string();
            let mut buffer = [0; 64];
            socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(own.as_bytes(), from);
            }
        });
    }
}

pub fn ask(client: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    let asked = client.send(b"who").and_then(|_| client.recv(&mut buffer));
    match asked {
        Ok(n) => String::from_utf8_lossy(&buffer[..n]).into_owned(),
        Err(error) => error.to_string(),
    }
}

pub fn udp(mut object: Value) -> Value {
    for at in ["/spec/ports/0/protocol", "/ports/0/protocol"] {
        if let Some(protocol) = object.pointer_mut(at) {
            *protocol = json!("UDP");
        }
    }
    object
}

/// Runs a test as a node, in a network namespace of its own.
pub fn on_node(promise: &str, test: impl AsyncFnOnce() + Send) {
    if !trial::goes_on(promise) {
        return;
    }
    let netns = namespace::new_netns().expect("a namespace");
    let ran = namespace::in_netns(netns.as_fd(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), test()).await.expect("in time")
        });
    });
    ran.expect("the namespace can be entered");
}

pub struct Running {
    pub status: watch::Receiver<Status>,
    pub opened: watch::Receiver<Opened>,
    pub shutdown: CancellationToken,
    pub task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

pub fn start(api: &FakeApi) -> Running {
    start_with(api, Duration::from_millis(50))
}

/// An agent that looks after its tables so often, if nobody tells it to.
pub fn start_with(api: &FakeApi, check_every: Duration) -> Running {
    let config = Config {
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a range")],
        check_every,
        servers: Servers { metrics: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..Servers::default() },
        ..Config::new("here")
    };
    let agent = Agent::new(api.client(), config);
    let (status, opened, shutdown) = (agent.status(), agent.opened(), CancellationToken::new());
    let task = tokio::spawn(agent.run(shutdown.clone()));
    Running { status, opened, shutdown, task }
}

impl Running {
    pub async fn commits(&mut self, more_than: u64) -> u64 {
        self.status.wait_for(|s| s.synced && s.commits > more_than).await.expect("it runs").commits
    }
}

pub fn dns(pods: &[&str]) -> FakeApi {
    let api = FakeApi::default();
    api.put("nodes", node());
    api.put("services", udp(service("dns", VIP)));
    api.put("endpointslices", udp(slice("dns-1", "dns", pods)));
    api
}

#[test]
fn a_udp_flow_follows_when_its_endpoint_is_replaced_and_forwarding_outlives_the_agent() {
    let promise = "a udp flow follows when its endpoint is replaced and forwarding outlives the agent";
    on_node(promise, async || {
        answer(cable().expect("a node and a pod"));
        let api = dns(&PODS[..1]);
        let mut agent = start(&api);
        let commits = agent.commits(0).await;

        let client = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        client.connect((VIP, 80)).expect("a route");
        assert_eq!(ask(&client), PODS[0]);

        api.put("endpointslices", udp(slice("dns-1", "dns", &PODS[1..])));
        agent.commits(commits).await;
        assert_eq!(ask(&client), PODS[1], "the same socket: its flow was forgotten");

        agent.shutdown.cancel();
        agent.task.await.expect("no panic").expect("a clean end");
        let another = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        another.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        another.connect((VIP, 80)).expect("a route");
        assert_eq!(ask(&another), PODS[1], "without an agent");
    });
}

#[test]
fn a_udp_flow_ends_when_its_service_went_while_no_agent_ran() {
    on_node("a udp flow ends when its service went while no agent ran", async || {
        answer(cable().expect("a node and a pod"));
        let api = dns(&PODS[..1]);
        let mut agent = start(&api);
        agent.commits(0).await;
        let client = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        client.connect((VIP, 80)).expect("a route");
        assert_eq!(ask(&client), PODS[0]);
        agent.shutdown.cancel();
        agent.task.await.expect("no panic").expect("a clean end");

        api.delete("endpointslices", "default", "dns-1");
        api.delete("services", "default", "dns");
        let mut agent = start(&api);
        agent.commits(0).await;
        // The addresses of Services that have none are refused; the old flow would still be answered.
        let answer = ask(&client);
        assert_ne!(answer, PODS[0], "the flow was forgotten");
    });
}

#[test]
fn tables_that_somebody_took_away_are_put_back() {
    on_node("tables that somebody took away are put back", async || {
        answer(cable().expect("a node and a pod"));
        let mut agent = start(&dns(&PODS[..1]));
        let commits = agent.commits(0).await;
        Engine::open(Options::default()).expect("an engine").remove().expect("removed");
        agent.commits(commits).await;
        let client = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        client.connect((VIP, 80)).expect("a route");
        assert_eq!(ask(&client), PODS[0]);
    });
}

#[test]
fn packets_that_the_tables_drop_are_counted_on_the_metrics_page() {
    on_node("packets that the tables drop are counted on the metrics page", async || {
        let _pod = cable().expect("a node and a pod");
        let mut agent = start(&dns(&PODS[..1]));
        agent.commits(0).await;
        let metrics =
            agent.opened.wait_for(|o| o.metrics.is_some()).await.expect("a port").metrics.expect("open");
        let line = |n: u32| format!("portolan_dropped_packets_total{{reason=\"unallocated\"}} {n}\n");
        until("no packet", metrics, "/metrics", |_, page| page.contains(&line(0))).await;
        let client = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        // An address of the range that no Service has. The drop is an error to a sender on the node itself.
        let sent = client.send_to(b"who", ("10.96.0.99", 80)).map_err(|error| error.kind());
        assert_eq!(sent, Err(io::ErrorKind::PermissionDenied));
        until("the packet", metrics, "/metrics", |_, page| page.contains(&line(1))).await;
    });
}

#[test]
fn connections_are_tracked_as_asked_once_the_kernel_can_track_them() {
    let promise = "connections are tracked as asked once the kernel can track them";
    on_node(promise, async || {
        cable().expect("a node and a pod");
        let conntrack = Conntrack { tcp_close_wait: Some(Duration::from_secs(3601)), ..Conntrack::default() };
        let config = Config { conntrack, ..Config::new("here") };
        let shutdown = CancellationToken::new();
        let agent = Agent::new(dns(&PODS[..1]).client(), config);
        let mut status = agent.status();
        let task = tokio::spawn(agent.run(shutdown.clone()));
        status.wait_for(|s| s.synced).await.expect("it runs");
        let setting = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
        if !std::fs::exists(setting).is_ok_and(|there| there) {
            return trial::skipped(promise, "the kernel hides the setting in a user namespace");
        }
        while !std::fs::read_to_string(setting).is_ok_and(|value| value.trim() == "3601") {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
        task.await.expect("no panic").expect("a clean end");
    });
}

#[test]
fn the_settings_that_forwarding_needs_are_made_in_the_nodes_namespace() {
    on_node("the settings that forwarding needs are made in the node's namespace", async || {
        let now = |name: &str| std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")));
        let warnings = portolan_agent::sysctl::set_all(portolan_agent::sysctl::SETTINGS.to_vec());
        for setting in portolan_agent::sysctl::SETTINGS {
            let told = warnings.iter().any(|w| w.setting == *setting);
            let made = now(setting.name).is_ok_and(|v| v.trim() == setting.value);
            assert!(made || told, "{}: neither made nor told", setting.name);
        }
    });
}
