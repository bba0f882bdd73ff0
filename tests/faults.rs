//! On somebody's Kubernetes: whatever goes wrong around it, the agent forwards on, and follows again without being started again.
//!
//! The API is the real kube-apiserver's on a real etcd, in the node's network namespace; the witnesses are a client outside, through
//! a NodePort, and the node itself, through a ClusterIP. After each fault the Service gets another endpoint, and both must end up
//! there. `PORTOLAN_SERVICES` says how many Services are deleted at once (300), `PORTOLAN_AWAY` for how many seconds etcd is away (8).

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use portolan_peers::{ApiServer, Etcd, Process};
use portolan_plan::model::{Family, Protocol};
use portolan_sys::conntrack::{Conntrack, Flow, SentTo, UDP};
use portolan_sys::netlink::{CREATE, Message, NETFILTER, Socket};
use portolan_sys::nft;
use serde_json::{Value, json};

use crate::harness::{PORTOLAN, block_on, until};
use crate::stage::{FAR_PODS, Outcome, World, far_pod, ip, node, world};

const PROMISE: &str = "the agent follows again after each fault around it";
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const NODE_PORT: u16 = 30163;

fn setting(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn from<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object")
}

/// The agent, what it follows, and who sees what it does.
struct Rig<'w> {
    world: &'w World,
    dir: PathBuf,
    etcd: Etcd,
    api: ApiServer,
    client: kube::Client,
    agent: Process,
    /// The ClusterIPs of the Service, and the pod of the other node that it leads to.
    vips: Vec<IpAddr>,
    pod: usize,
}

impl<'w> Rig<'w> {
    async fn start(world: &'w World, dir: &Path, apiserver: &Path, etcd: &Path) -> Rig<'w> {
        let etcd = Etcd::start(etcd, dir);
        let mut api = ApiServer::kubernetes(apiserver, dir, &etcd);
        api.ready("/api/v1/namespaces/default").await;
        let client = api.client();
        let made = PostParams::default();
        let this = json!({"metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"]},
            "status": {"addresses": FAMILIES.map(|family| json!({"type": "InternalIP", "address": node(family, 0)}))}});
        Api::<Node>::all(client.clone()).create(&made, &from(this)).await.expect("the node");
        let ports = [("tcp", "TCP"), ("udp", "UDP")].map(|(name, protocol)| {
            json!({"name": name, "protocol": protocol, "port": 80, "targetPort": 8080, "nodePort": NODE_PORT})
        });
        let service = json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "ipFamilyPolicy": "RequireDualStack",
            "ports": ports}});
        let services: Api<Service> = Api::default_namespaced(client.clone());
        let service = services.create(&made, &from(service)).await.expect("the Service");
        let vips = service.spec.and_then(|spec| spec.cluster_ips).expect("addresses");
        let vips = vips.iter().map(|text| ip(text)).collect();
        for family in FAMILIES {
            let slice = slice("web", family, far_pod(family, 0));
            Api::default_namespaced(client.clone()).create(&made, &slice).await.expect("a slice");
        }
        let agent = agent(dir, &api);
        let mut rig = Rig { world, dir: dir.to_owned(), etcd, api, client, agent, vips, pod: 0 };
        rig.answers("a first answer").await;
        rig
    }

    /// Waits until everybody is answered by the endpoint that the Service has.
    async fn answers(&mut self, what: &str) {
        until(what, async || self.asked()).await;
        assert!(!self.agent.has_ended(), "{what}: the agent has ended");
    }

    /// Asks at each frontend; an error if anybody is answered by another than the Service's endpoint, or not at all.
    fn asked(&self) -> Result<(), String> {
        let World { client, router, .. } = self.world;
        for (family, vip) in FAMILIES.into_iter().zip(&self.vips) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let outside = client.ask(protocol, node(family, 0), NODE_PORT, true);
                let inside = router.ask(protocol, *vip, 80, true);
                for (place, outcome) in [("outside", outside), ("the node", inside)] {
                    let server = far_pod(family, self.pod);
                    if !matches!(&outcome, Outcome::Answer { server: by, .. } if *by == server) {
                        return Err(format!("{protocol} from {place}: {outcome:?} instead of {server}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives the Service another endpoint, without waiting for anybody to notice.
    async fn change(&mut self) {
        self.pod = (self.pod + 1) % FAR_PODS;
        let slices: Api<EndpointSlice> = Api::default_namespaced(self.client.clone());
        for family in FAMILIES {
            let slice = slice("web", family, far_pod(family, self.pod));
            let name = slice.metadata.name.clone().expect("a name");
            let patch = json!({"endpoints": slice.endpoints});
            // An API server that comes back refuses some of what it is asked at first.
            until("a change that is accepted", async || {
                let patched = slices.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
                patched.map(drop).map_err(|error| error.to_string())
            })
            .await;
        }
    }

    /// The fault is over: what changes now reaches the kernel, by the agent that was there before.
    async fn follows(&mut self, fault: &str) {
        let began = Instant::now();
        self.change().await;
        self.answers(fault).await;
        println!("{fault}: followed after {:.1?}", began.elapsed());
    }

    /// Runs a program on the node, which must end well.
    fn on_node(&self, program: &str, arguments: &[&str], input: &[u8]) {
        let output = self.world.router.run(|| {
            let mut child =
                Command::new(program).args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            child.stdin.take().expect("a pipe").write_all(input)?;
            child.wait_with_output()
        });
        let output = output.expect("the program");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
    }
}

fn slice(service: &str, family: Family, address: IpAddr) -> EndpointSlice {
    let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let ports = [("tcp", "TCP"), ("udp", "UDP")]
        .map(|(name, protocol)| json!({"name": name, "protocol": protocol, "port": crate::stage::PORT}));
    from(
        json!({"metadata": {"name": format!("{service}-{}", kind.to_lowercase()), "labels": {"kubernetes.io/service-name": service}},
        "addressType": kind, "ports": ports, "endpoints": [{"addresses": [address], "nodeName": "node-2"}]}),
    )
}

/// The agent as it runs on a node; with a clock that [`jump`] sets, where there is a compiler for that.
fn agent(dir: &Path, api: &ApiServer) -> Process {
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": api.url, "certificate-authority": api.authority}}],
        "users": [{"name": "u", "user": {"token": api.token}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]});
    let path = dir.join("agent.kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).expect("written");
    let mut arguments = Vec::new();
    if let Some(clock) = clock(dir) {
        arguments.push(format!("LD_PRELOAD={}", clock.display()));
        arguments.push(format!("CLOCK_OFFSET={}", dir.join("offset").display()));
    }
    let words = [PORTOLAN, "agent", "--node-name", "node-1", "--kubeconfig"].map(str::to_owned);
    arguments.extend(words);
    arguments.push(path.display().to_string());
    Process::start(Path::new("/usr/bin/env"), arguments, dir.join("agent.log"))
}

/// A library that adds seconds to the time of day; `None` where there is no C compiler.
fn clock(dir: &Path) -> Option<PathBuf> {
    const SOURCE: &str = r#"
        #define _GNU_SOURCE
        #include <fcntl.h>
        #include <stdlib.h>
        #include <sys/mman.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>
        static const volatile long long *offset = MAP_FAILED;
        __attribute__((constructor)) static void find(void) {
            int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
            if (file >= 0) offset = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
        }
        int clock_gettime(clockid_t clock, struct timespec *time) {
            int failed = syscall(SYS_clock_gettime, clock, time);
            if (!failed && clock == CLOCK_REALTIME && offset != MAP_FAILED) time->tv_sec += *offset;
            return failed;
        }"#;
    let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
    std::fs::write(&source, SOURCE).expect("written");
    std::fs::write(dir.join("offset"), [0; 8]).expect("written");
    let done = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    done.is_ok_and(|status| status.success()).then_some(library)
}

/// The agent's time of day is this many seconds off from now on.
fn jump(dir: &Path, seconds: i64) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().write(true).open(dir.join("offset")).expect("the offset");
    file.write_all_at(&seconds.to_ne_bytes(), 0).expect("written");
}

/// Has etcd forget all history before its present revision.
fn compact(etcd: &Etcd, revision: &str) {
    let at = etcd.url.strip_prefix("http://").expect("plain HTTP");
    let body = json!({"revision": revision, "physical": true}).to_string();
    let mut stream = TcpStream::connect(at).expect("etcd");
    let length = body.len();
    write!(stream, "POST /v3/kv/compaction HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
        .expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// How many messages the kernel had to drop for a process that reads netlink's messages about nftables, in the network namespace of
/// the calling thread.
fn dropped() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netlink").expect("/proc");
    let rows = text.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    rows.filter(|row| row.get(1) == Some(&"12")).filter_map(|row| row.get(8)?.parse::<u64>().ok()).sum()
}

/// Fills the connection table of the calling thread's network namespace with flows that no other may push out.
fn fill_connection_table() {
    let most = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").expect("/proc");
    let most: u32 = most.trim().parse().expect("a number");
    let mut socket = Socket::open(NETFILTER).expect("netlink");
    let numbers: Vec<u32> = (0..most).collect();
    for some in numbers.chunks(256) {
        let mut message = Message::empty();
        for number in some {
            message.next(1 << 8, CREATE); // IPCTNL_MSG_CT_NEW
            message.raw(&[2, 0, 0, 0]);
            let (away, here) = ([203, 0, 113, 1], [203, 0, 113, 2]);
            let (high, low) = ((number >> 16) as u16 + 1, *number as u16);
            let mut tuple = |kind, from: [u8; 4], to: [u8; 4], ports: [u16; 2]| {
                message.nest(kind, |m| {
                    m.nest(1, |m| _ = m.bytes(1, &from).bytes(2, &to));
                    m.nest(2, |m| _ = m.u8(1, UDP).u16be(2, ports[0]).u16be(3, ports[1]));
                });
            };
            tuple(1, away, here, [low, high]);
            tuple(2, here, away, [high, low]);
            // IPS_SEEN_REPLY, IPS_ASSURED and IPS_CONFIRMED: one that isn't assured may be pushed out.
            message.u32be(3, 1 << 1 | 1 << 2 | 1 << 3).u32be(7, 600);
            message.sequence(socket.next_sequence());
        }
        socket.send(message.as_bytes()).expect("sent");
        // Refusals alone are answered: of those that find no room any more.
        while socket.try_receive(|_| {}).expect("answers") {}
    }
}

fn empty_connection_table() {
    let mut table = Conntrack::open().expect("the connection table");
    let mut all: Vec<Flow> = Vec::new();
    table.list(nft::Family::Ip, UDP, SentTo::default(), |flow| all.push(*flow)).expect("a list");
    table.delete(&all).expect("deleted");
}

#[test]
fn the_agent_follows_again_after_each_fault_around_it() {
    let program = |name| std::env::var_os(name).map(PathBuf::from);
    let (Some(apiserver), Some(etcd)) = (program("PORTOLAN_KUBE_APISERVER"), program("PORTOLAN_ETCD")) else {
        return portolan_sys::trial::skipped(PROMISE, "no PORTOLAN_KUBE_APISERVER and PORTOLAN_ETCD");
    };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    world(PROMISE, |world| {
        world.router.run(|| {
            block_on(async {
                let mut rig = Rig::start(world, dir.path(), &apiserver, &etcd).await;
                api_server(&mut rig).await;
                history(&mut rig).await;
                etcd_away(&mut rig).await;
                clock_jumps(&mut rig).await;
                tables(&mut rig).await;
                connections(&mut rig).await;
                many_services(&mut rig).await;
            });
        });
    });
}

async fn api_server(rig: &mut Rig<'_>) {
    rig.api.process.kill();
    rig.asked().expect("forwarding without an API server");
    rig.api.process.restart();
    rig.api.ready("/api/v1/namespaces/default").await;
    rig.follows("the API server was killed").await;
}

/// The agent hears nothing for a while, and what it missed can't be told any more.
async fn history(rig: &mut Rig<'_>) {
    rig.agent.pause(true);
    for _ in 0..3 {
        rig.change().await;
    }
    let list = Api::<Service>::all(rig.client.clone()).list(&ListParams::default()).await.expect("a list");
    rig.api.process.kill();
    compact(&rig.etcd, &list.metadata.resource_version.expect("a revision"));
    rig.api.process.restart();
    rig.api.ready("/api/v1/namespaces/default").await;
    rig.agent.pause(false);
    rig.answers("changes in history that was compacted").await;
    rig.follows("history was compacted").await;
}

async fn etcd_away(rig: &mut Rig<'_>) {
    rig.etcd.process.kill();
    let until = Instant::now() + Duration::from_secs(setting("PORTOLAN_AWAY", 8) as u64);
    while Instant::now() < until {
        rig.asked().expect("forwarding without etcd");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    rig.etcd.process.restart();
    rig.follows("etcd was away").await;
}

async fn clock_jumps(rig: &mut Rig<'_>) {
    if !rig.dir.join("clock.so").exists() {
        return portolan_sys::trial::skipped("the agent follows whatever its clock says", "no C compiler");
    }
    const DAY: i64 = 24 * 60 * 60;
    for (seconds, what) in [(DAY, "a day on"), (-DAY, "a day back"), (0, "right again")] {
        jump(&rig.dir, seconds);
        let there = Timestamp::now() + SignedDuration::from_secs(seconds);
        rig.follows(&format!("the clock went {what}")).await;
        let day = there.strftime("%Y-%m-%dT").to_string();
        until("a word from that time", async || {
            let log = std::fs::read_to_string(rig.dir.join("agent.log")).expect("the agent's log");
            let last = log.lines().last().unwrap_or_default().to_owned();
            if last.contains(&day) { Ok(()) } else { Err(format!("{day}: {last}")) }
        })
        .await;
    }
}

async fn tables(rig: &mut Rig<'_>) {
    rig.on_node("nft", &["flush", "ruleset"], b"");
    rig.answers("tables that were flushed").await;
    rig.follows("the tables were flushed").await;

    // More is committed than the agent's socket holds while it isn't looking, and its table goes unheard.
    rig.agent.pause(true);
    let before = dropped();
    rig.on_node("nft", &["delete", "table", "ip", "portolan"], b"");
    let elements: Vec<String> = (0..20_000).map(|n| format!("10.{}.{}.1", n / 256, n % 256)).collect();
    let noise = format!(
        "add table ip noise\nadd set ip noise s {{ type ipv4_addr; }}\nadd element ip noise s {{ {} }}\ndelete table ip noise\n",
        elements.join(", ")
    );
    for _ in 0..200 {
        if dropped() > before {
            break;
        }
        rig.on_node("nft", &["-f", "-"], noise.as_bytes());
    }
    assert!(dropped() > before, "the agent's socket holds all of it");
    rig.agent.pause(false);
    rig.answers("a table that went unheard").await;
    rig.follows("netlink was overrun").await;
}

async fn connections(rig: &mut Rig<'_>) {
    let World { client, router, .. } = rig.world;
    router.run(fill_connection_table);
    let outside = || client.ask(Protocol::Tcp, node(Family::V4, 0), NODE_PORT, true);
    assert_eq!(outside(), Outcome::Silence, "the table is full: the kernel drops new connections");
    rig.change().await;
    router.run(empty_connection_table);
    rig.answers("a change while the connection table was full").await;
    rig.follows("the connection table was full").await;
}

async fn many_services(rig: &mut Rig<'_>) {
    let number = setting("PORTOLAN_SERVICES", 300);
    let client = rig.client.clone();
    let namespace: Namespace = from(json!({"metadata": {"name": "many"}}));
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await.expect("a namespace");
    let services: Api<Service> = Api::namespaced(client.clone(), "many");
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "many");
    let vips: Vec<IpAddr> = stream::iter(0..number)
        .map(async |n| {
            let name = format!("s{n}");
            let service =
                json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "tcp", "port": 80}]}});
            let made = services.create(&PostParams::default(), &from(service)).await.expect("a Service");
            let slice = slice(&name, Family::V4, far_pod(Family::V4, n % FAR_PODS));
            slices.create(&PostParams::default(), &slice).await.expect("a slice");
            ip(&made.spec.and_then(|spec| spec.cluster_ip).expect("an address"))
        })
        .buffered(32)
        .collect()
        .await;
    let all = |wanted: fn(&Outcome) -> bool| {
        let some = vips.iter().step_by(1.max(number / 20)).chain(vips.last());
        let outcomes = some.map(|vip| (vip, rig.world.router.ask(Protocol::Tcp, *vip, 80, true)));
        outcomes
            .into_iter()
            .find(|(_, outcome)| !wanted(outcome))
            .map_or(Ok(()), |other| Err(format!("{other:?}")))
    };
    until("the Services", async || all(|outcome| matches!(outcome, Outcome::Answer { .. }))).await;
    let (delete, everything) = (DeleteParams::default(), ListParams::default());
    services.delete_collection(&delete, &everything).await.expect("deleted");
    slices.delete_collection(&delete, &everything).await.expect("deleted");
    // Nobody has the address any more: packets to it are dropped.
    until("no Service to be left", async || all(|outcome| *outcome == Outcome::Silence)).await;
    rig.follows(&format!("{number} Services were deleted at once")).await;
}
