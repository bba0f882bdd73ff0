//! `portolan agent` beside kube-proxy in nftables mode: the same cluster for each, one after the other, in one run.
//!
//! `cargo bench --bench peers [-- SERVICES ENDPOINTS]... [CHANGES=20] [SECONDS=5]`, with `PORTOLAN_KUBE_PROXY` naming kube-proxy and
//! `PORTOLAN` another binary of ours; 10,000 x 10 and 44,125 x 1 where no size is given. Needs root, nft and ip. The witness is a
//! client: all endpoints are addresses of one network namespace, where a server tells whoever connects at which of them.

#[path = "../churn/api.rs"]
#[allow(dead_code)] // what the other bench asks of it
mod api;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use portolan_peers::{KubeProxy, Process, Usage};
use portolan_sys::namespace;
use serde_json::json;

use crate::api::{Api, NODE, Size};

/// How long anything may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long a connection is waited for: one to nowhere is not answered at all.
const CONNECT: Duration = Duration::from_millis(100);
/// So many Services are asked before the tables count as whole: the first, the last, and some between.
const ASKED: usize = 20;
/// So many Services are reached through a port of the node, too.
const NODE_PORTS: usize = 1000;
/// A process that used no processor time for so long has nothing to do.
const IDLE: Duration = Duration::from_millis(500);

/// The node's address, as the API has it.
const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Whose turn it is.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Portolan,
    KubeProxy,
}

/// A node, the endpoints, and a client, each a network namespace.
struct World {
    node: OwnedFd,
    endpoints: OwnedFd,
    client: OwnedFd,
}

/// What was measured.
struct Row {
    start: Duration,
    start_cpu: f64,
    memory: u64,
    /// From each change to the first connection that it takes.
    changes: Vec<Duration>,
    change_cpu: f64,
    cluster_ips: Load,
    node_ports: Load,
}

/// Connections to one frontend after the other.
struct Load {
    /// A second.
    rate: f64,
    /// How long each took, in order.
    latencies: Vec<Duration>,
}

fn inside<T: Send>(host: &OwnedFd, f: impl FnOnce() -> T + Send) -> T {
    namespace::in_netns(host.as_fd(), f).expect("the namespace can be entered")
}

fn sh(host: &OwnedFd, script: &str) {
    let done = inside(host, || Command::new("sh").args(["-ec", script]).status()).expect("a shell");
    assert!(done.success(), "{script}");
}

impl World {
    fn new() -> std::io::Result<World> {
        let new = namespace::new_netns;
        let world = World { node: new()?, endpoints: new()?, client: new()? };
        let mut links = portolan_sys::link::Links::open_in(world.node.as_fd())?;
        for (link, host) in [("endpoints", &world.endpoints), ("client", &world.client)] {
            use portolan_sys::link::LinkEnd;
            links.add_veth(&LinkEnd::named(link), &LinkEnd::named("eth0").in_netns(host.as_fd()))?;
        }
        sh(
            &world.node,
            "ip link set lo up; ip addr add 192.0.2.1/24 dev client; ip link set client up
             ip addr add 198.51.100.1/24 dev endpoints; ip link set endpoints up
             ip route add 16.0.0.0/8 via 198.51.100.2; ip route add 32.0.0.0/8 via 198.51.100.2
             echo 1 >/proc/sys/net/ipv4/ip_forward",
        );
        sh(
            &world.endpoints,
            "ip link set lo up; ip addr add 198.51.100.2/24 dev eth0; ip link set eth0 up; ip route add default via 198.51.100.1
             ip route add local 16.0.0.0/8 dev lo; ip route add local 32.0.0.0/8 dev lo",
        );
        sh(
            &world.client,
            "ip link set lo up; ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up; ip route add default via 192.0.2.1
             echo '1024 65535' >/proc/sys/net/ipv4/ip_local_port_range; echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse",
        );
        Ok(world)
    }

    /// Whoever connects to an endpoint is told its address, and is done.
    fn serve(&self) {
        let listener = inside(&self.endpoints, || TcpListener::bind("0.0.0.0:8080")).expect("a listener");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                if let Ok(SocketAddr::V4(at)) = stream.local_addr() {
                    let _ = stream.write_all(&at.ip().octets()); // the client may be gone
                }
            }
        });
    }
}

/// Where a Service is reached inside the cluster.
fn cluster_ip(service: usize) -> SocketAddr {
    SocketAddr::from((Api::vip(service), 80))
}

/// Connects to a frontend, from the namespace of the calling thread; gives the endpoint that answered.
fn ask(at: SocketAddr) -> Option<Ipv4Addr> {
    let mut stream = TcpStream::connect_timeout(&at, CONNECT).ok()?;
    stream.set_read_timeout(Some(CONNECT)).ok()?;
    let mut octets = [0; 4];
    stream.read_exact(&mut octets).ok()?;
    Some(Ipv4Addr::from(octets))
}

/// The process, once the client can reach what it asks for.
fn start(
    whose: Whose,
    world: &World,
    api: SocketAddr,
    dir: &Path,
    whole: &(dyn Fn() -> bool + Sync),
) -> Process {
    let url = format!("http://{api}");
    inside(&world.node, || match whose {
        Whose::KubeProxy => {
            let program = PathBuf::from(std::env::var_os("PORTOLAN_KUBE_PROXY").expect("the program"));
            // The bench's API lists and watches, as older clients ask for.
            let config = json!({"mode": "nftables", "hostnameOverride": NODE, "featureGates": {"WatchListClient": false}});
            KubeProxy::start(&program, dir, &url, config, || inside(&world.client, whole)).process
        }
        Whose::Portolan => {
            let program =
                std::env::var_os("PORTOLAN").unwrap_or_else(|| env!("CARGO_BIN_EXE_portolan").into());
            let kubeconfig = dir.join("kubeconfig");
            let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "k", "cluster": {"server": url}}], "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]});
            std::fs::write(&kubeconfig, config.to_string()).expect("written");
            let arguments = ["agent", "--node-name", NODE, "--kubeconfig"].map(str::to_owned);
            let arguments = arguments.into_iter().chain([kubeconfig.display().to_string()]).collect();
            let process = Process::start(Path::new(&program), arguments, dir.join("agent.log"));
            let began = Instant::now();
            while !inside(&world.client, whole) {
                assert!(began.elapsed() < PATIENCE, "the tables are not whole; {}", dir.display());
                std::thread::sleep(Duration::from_millis(5));
            }
            process
        }
    })
}

/// What it has used once it has nothing to do any more.
fn idle(process: &Process) -> Usage {
    let mut before = process.usage();
    loop {
        std::thread::sleep(IDLE);
        let now = process.usage();
        if now.cpu - before.cpu < 0.02 {
            return now;
        }
        before = now;
    }
}

fn measure(whose: Whose, size: Size, changes: usize, seconds: u64) -> Row {
    let world = World::new().expect("network namespaces");
    world.serve();
    let dir = tempfile::tempdir().expect("a directory");
    let api = Api::new(size, changes, Instant::now());
    let at = inside(&world.node, || api.serve()).expect("the API");
    let frontends: Vec<SocketAddr> = (0..size.services).map(cluster_ip).collect();
    let node_ports: Vec<SocketAddr> = (0..size.services)
        .filter_map(|service| Some(SocketAddr::from((NODE_ADDRESS, size.node_port(service)?))))
        .collect();
    let some_of =
        |all: &[SocketAddr]| (0..ASKED).all(|n| ask(all[(all.len() - 1) * n / (ASKED - 1)]).is_some());
    let whole = || some_of(&frontends) && some_of(&node_ports);
    let began = Instant::now();
    let process = start(whose, &world, at, dir.path(), &whole);
    let start = began.elapsed();
    let started = idle(&process);

    let mut times = Vec::new();
    for _ in 0..changes {
        let (began, change) = (Instant::now(), api.change());
        inside(&world.client, || {
            while ask(cluster_ip(api.service(change)))
                .is_none_or(|at| api.change_of(at.octets()) != Some(change))
            {
                assert!(began.elapsed() < PATIENCE, "change {change} never took a connection");
            }
        });
        times.push(began.elapsed());
    }
    let changed = idle(&process);
    times.sort_unstable();

    let [cluster_ips, node_ports] =
        [frontends, node_ports].map(|all| load(&world, &all, Duration::from_secs(seconds)));
    drop(process);
    api.close(at);
    Row {
        start,
        start_cpu: started.cpu,
        memory: started.memory,
        changes: times,
        change_cpu: (changed.cpu - started.cpu) / changes as f64,
        cluster_ips,
        node_ports,
    }
}

/// Connects to one frontend after the other for so long.
fn load(world: &World, all: &[SocketAddr], time: Duration) -> Load {
    inside(&world.client, || {
        let (began, mut latencies) = (Instant::now(), Vec::new());
        let mut next = 0;
        while began.elapsed() < time {
            next = (next + 7919) % all.len(); // a prime: neighbours are not asked in a row
            let asked = Instant::now();
            // A port that is used again while the far end still remembers it may cost a second: it counts as long as it took.
            while ask(all[next]).is_none() {
                assert!(asked.elapsed() < PATIENCE, "{} doesn't answer", all[next]);
            }
            latencies.push(asked.elapsed());
        }
        let rate = latencies.len() as f64 / began.elapsed().as_secs_f64();
        latencies.sort_unstable();
        Load { rate, latencies }
    })
}

/// A figure of a row.
type Figure = fn(&Row) -> f64;

/// Of times in order of length, in seconds.
fn percentile(all: &[Duration], percent: usize) -> f64 {
    all[(all.len() - 1) * percent / 100].as_secs_f64()
}

fn size(services: usize, endpoints: usize) -> Size {
    Size { services, endpoints, node_ports: NODE_PORTS.min(services) }
}

fn main() {
    // `cargo test --benches` calls this too: it is no test.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    let named =
        |name: &str| arguments.iter().find_map(|a| a.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
    let (changes, seconds) = (named("CHANGES").unwrap_or(20), named("SECONDS").unwrap_or(5));
    let numbers: Vec<usize> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let mut sizes: Vec<Size> = numbers.chunks_exact(2).map(|pair| size(pair[0], pair[1])).collect();
    if sizes.is_empty() {
        sizes = vec![size(10_000, 10), size(44_125, 1)];
    }
    if std::env::var_os("PORTOLAN_KUBE_PROXY").is_none() {
        println!("PORTOLAN_KUBE_PROXY must name kube-proxy (.ci/peers DIR builds it)");
        return;
    }
    for size in sizes {
        let theirs = measure(Whose::KubeProxy, size, changes, seconds as u64);
        let ours = measure(Whose::Portolan, size, changes, seconds as u64);
        println!(
            "\n{:<54} {:>12} {:>12} {:>9}",
            format!("{} Services of {} endpoints", size.services, size.endpoints),
            "portolan",
            "kube-proxy",
            "better"
        );
        let rows: [(&str, Figure, bool); 12] = [
            ("start until a client reaches all, s", |r| r.start.as_secs_f64(), false),
            ("start: CPU, s", |r| r.start_cpu, false),
            ("memory, MB", |r| r.memory as f64 / 1e6, false),
            ("one change until a connection takes it: p50, ms", |r| percentile(&r.changes, 50) * 1e3, false),
            (
                "one change until a connection takes it: longest, ms",
                |r| percentile(&r.changes, 100) * 1e3,
                false,
            ),
            ("one change: CPU, ms", |r| r.change_cpu * 1e3, false),
            ("ClusterIP: new connections by one client, per second", |r| r.cluster_ips.rate, true),
            (
                "ClusterIP: a new connection: p50, ms",
                |r| percentile(&r.cluster_ips.latencies, 50) * 1e3,
                false,
            ),
            (
                "ClusterIP: a new connection: p99, ms",
                |r| percentile(&r.cluster_ips.latencies, 99) * 1e3,
                false,
            ),
            ("NodePort: new connections by one client, per second", |r| r.node_ports.rate, true),
            ("NodePort: a new connection: p50, ms", |r| percentile(&r.node_ports.latencies, 50) * 1e3, false),
            ("NodePort: a new connection: p99, ms", |r| percentile(&r.node_ports.latencies, 99) * 1e3, false),
        ];
        for (what, figure, more) in rows {
            let (ours, theirs) = (figure(&ours), figure(&theirs));
            let ratio = if more { ours / theirs } else { theirs / ours };
            println!("{what:<54} {ours:>12.2} {theirs:>12.2} {ratio:>8.1}x");
        }
    }
}
