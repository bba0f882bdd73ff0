//! A node passes from the real kube-proxy to the agent and back, with a thousand streams and two hundred UDP flows on it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use portolan_agent::beside::{Role, hand_back};
use portolan_agent::{Agent, Config, Servers};
use portolan_peers::KubeProxy;
use portolan_sys::{namespace, trial};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::api::FakeApi;
use crate::forwarding::{service, slice};
use crate::hitless::{self, Crowd, PODS, World};

const PROMISE: &str = "a node passes from kube-proxy to the agent and back with all its connections";
/// A Service that nobody keeps a connection to.
const LATE: &str = "10.96.0.9";
/// Chains of others in iptables' tables, which stay.
const OTHERS: [(&str, &str); 3] =
    [("mangle", "KUBE-KUBELET-CANARY"), ("filter", "KUBE-FIREWALL"), ("nat", "CNI-HOSTPORT-DNAT")];

/// An agent in a role, given as `ROLE URL`, in a process of its own.
pub async fn play(role: &str, ended: CancellationToken) {
    let (role, url) = role.split_once(' ').expect("a role and a URL");
    let client = kube::Client::try_from(kube::Config::new(url.parse().expect("a URL"))).expect("a client");
    let mut config = Config {
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a range")],
        cluster_ip_from_outside: portolan_plan::model::FromOutside::Masquerade,
        servers: Servers::usual(),
        role: if role == "take-over" { Role::TakeOver } else { Role::Shadow },
        check_every: Duration::from_millis(200),
        ..Config::new("here")
    };
    if role != "take-over" {
        config.servers = Servers::default();
    }
    let engine = config.engine.clone();
    let agent = Agent::new(client, config);
    let (mut status, mut compared, stop) = (agent.status(), agent.compared(), CancellationToken::new());
    let running = tokio::spawn(agent.run(stop.clone()));
    match role {
        "take-over" => drop(status.wait_for(|status| status.synced).await.expect("it runs")),
        "shadow" => {
            let settled = compared.wait_for(|compared| compared.at.is_some() && compared.settled);
            let settled = settled.await.expect("it runs").clone();
            println!("\ncompared: {} frontends, {:?}", settled.frontends, settled.differences);
        }
        _ => hand_back::run(engine, Servers::usual(), "here", compared).await.expect("handed back"),
    }
    println!("\ndone: {role}");
    ended.cancelled().await;
    stop.cancel();
    running.await.expect("no panic").expect("a clean end");
}

/// Runs a program in a namespace; gives what it printed.
fn run(host: &OwnedFd, program: &str, arguments: &[&str]) -> String {
    let output = namespace::in_netns(host.as_fd(), || Command::new(program).args(arguments).output());
    let output = output.expect("the namespace can be entered").expect("it runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether kube-proxy has anything in the kernel, and whether we have.
fn tables(host: &OwnedFd) -> (bool, bool) {
    let all = run(host, "nft", &["list", "ruleset"]);
    let theirs = ["table ip kube-proxy ", "KUBE-S", "KUBE-EXT", "KUBE-POSTROUTING", "KUBE-NODEPORTS"];
    (theirs.iter().any(|name| all.contains(name)), all.contains("table ip portolan "))
}

/// Who answers a new connection.
fn who(host: &OwnedFd, at: &str) -> String {
    let at: SocketAddr = format!("{at}:80").parse().expect("an address");
    namespace::in_netns(host.as_fd(), || {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(10))?;
        stream.write_all(b"who?\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        std::io::Result::Ok(line.trim().to_owned())
    })
    .expect("the namespace can be entered")
    .unwrap_or_else(|error| panic!("to {at}: {error}"))
}

fn start(program: &Path, world: &World, dir: &Path, url: &str, mode: &str) -> KubeProxy {
    let quick = json!({"minSyncPeriod": "10ms", "syncPeriod": "30s"});
    let config =
        json!({"mode": mode, "hostnameOverride": "here", "iptables": quick.clone(), "nftables": quick});
    let ready = || {
        let list = Command::new("nft").args(["list", "ruleset", "ip"]).output().expect("nft runs");
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        // All three Services.
        list.contains(LATE) && list.matches("30080").count() >= 2
    };
    namespace::in_netns(world.node.as_fd(), || KubeProxy::start(program, dir, url, config, ready))
        .expect("the namespace can be entered")
}

#[test]
fn a_node_passes_from_kube_proxy_to_the_agent_and_back_with_all_its_connections() {
    if !trial::goes_on(PROMISE) {
        return;
    }
    let Some(program) = std::env::var_os("PORTOLAN_KUBE_PROXY").map(PathBuf::from) else {
        return trial::skipped(PROMISE, "PORTOLAN_KUBE_PROXY names no kube-proxy 1.36");
    };
    for needed in ["nft", "iptables"] {
        if Command::new(needed).arg("--version").stdout(Stdio::null()).status().is_err() {
            return trial::skipped(PROMISE, &format!("kube-proxy needs the {needed} program"));
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    for mode in ["nftables", "iptables"] {
        let world = match World::new() {
            Ok(world) => world,
            Err(error) => return trial::skipped(PROMISE, &format!("network namespaces: {error}")),
        };
        runtime.block_on(there_and_back(&program, world, mode));
    }
}

async fn there_and_back(program: &Path, world: World, mode: &str) {
    println!("kube-proxy in mode {mode}");
    let dir = std::env::temp_dir().join(format!("portolan-take-over-{}-{mode}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    world.serve().await.expect("the pods listen");
    // As a CNI plugin does.
    run(&world.node, "sh", &["-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]);
    for (table, chain) in OTHERS {
        run(&world.node, "iptables", &["-t", table, "-N", chain]);
    }
    let api = hitless::api();
    api.put("services", service("late", LATE));
    api.put("endpointslices", slice("late-1", "late", &PODS[..1]));
    let handle = tokio::runtime::Handle::current();
    let serve = |api: &FakeApi| namespace::in_netns(world.node.as_fd(), || api.serve(&handle));
    let url = serve(&api).expect("the namespace can be entered");

    let mut proxy = start(program, &world, &dir, &url, mode);
    let mut crowd = Crowd::gather(&world).await;
    let shadow = hitless::Agent::play(&world.node, &format!("shadow {url}"));
    let said = shadow.says("compared: ");
    assert!(said.contains("5 frontends, []"), "not the same as kube-proxy: {said}");
    shadow.stop();
    assert_eq!(tables(&world.node), (true, false), "a shadow writes nothing");
    crowd.end("kube-proxy").await;

    crowd.begin();
    let agent = hitless::Agent::play(&world.node, &format!("take-over {url}"));
    agent.says("done: take-over");
    assert_eq!(tables(&world.node), (true, true), "what a proxy that runs has is left alone");
    // What only we know by now is where new connections go.
    proxy.process.pause(true);
    api.put("endpointslices", slice("late-1", "late", &PODS[1..]));
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while who(&world.inside, LATE) != PODS[1] {
        assert!(std::time::Instant::now() < until, "new connections go by kube-proxy's tables");
    }
    proxy.process.pause(false);
    crowd.end("the agent beside kube-proxy").await;

    crowd.begin();
    proxy.process.kill();
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while tables(&world.node) != (false, true) {
        assert!(std::time::Instant::now() < until, "kube-proxy's tables go when it has ended");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (table, chain) in OTHERS {
        run(&world.node, "iptables", &["-t", table, "-L", chain]);
    }
    crowd.end("kube-proxy has ended, its tables are gone").await;

    crowd.begin();
    agent.stop();
    let back = hitless::Agent::play(&world.node, &format!("hand-back {url}"));
    proxy = start(program, &world, &dir, &url, mode);
    back.says("done: hand-back");
    assert_eq!(tables(&world.node), (true, false), "kube-proxy's tables alone");
    assert_eq!(who(&world.inside, LATE), PODS[1]);
    back.stop();
    crowd.end("handed back").await;
    crowd.part().await;
    proxy.process.kill();
    std::fs::remove_dir_all(&dir).expect("the directory goes");
}
