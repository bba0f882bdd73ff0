//! A node joins by hand: a machine that the lab knows nothing of, the public verb, and what becomes of it when it dies.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, Patch, PatchParams};
use portolan_sys::link::{LinkEnd, Links, Route};
use portolan_sys::namespace;
use serde_json::json;

use crate::harness::{Lab, PORTOLAN, block_on, text, until};
use crate::lab::leftovers::{Traces, links};
use crate::load::{Load, Outcome};

const ROLE: &str = "PORTOLAN_TEST_MACHINE";
const NAME: &str = "by-hand";
const ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 80, 0, 50)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, 0x50))];
const NODE_PORT: u16 = 30163;

/// Not a promise but a role, played inside of a lab: a machine on its local network that the lab knows nothing of. Does
/// nothing unless the binary was started for it.
#[test]
fn the_machines_role() {
    let Some(dir) = std::env::var_os(ROLE).map(PathBuf::from) else { return };
    let netns = namespace::new_netns().expect("a network namespace");
    let lan = std::fs::File::open(dir.join("netns/lan")).expect("the local network");
    let mut outside = Links::open_in(lan.as_fd()).expect("its links");
    let inner = LinkEnd::named("eth0").mac([0x02, 0x50, 0, 0, 0, 50]).in_netns(netns.as_fd());
    outside.add_veth(&LinkEnd::named(NAME), &inner).expect("a cable");
    let (port, bridge) = (outside.index(NAME).expect("its end"), outside.index("lan0").expect("the bridge"));
    outside.set_master(port, Some(bridge)).expect("plugged in");
    outside.set_up(port, true).expect("up");

    namespace::in_netns(netns.as_fd(), || std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0"))
        .expect("entered")
        .expect("addresses that can be used at once");
    let mut inside = Links::open_in(netns.as_fd()).expect("the machine's links");
    inside.set_up(1, true).expect("loopback");
    let eth0 = inside.index("eth0").expect("eth0");
    inside.set_up(eth0, true).expect("eth0 up");
    let gateways: [IpAddr; 2] = [[10, 80, 0, 1].into(), Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, 1).into()];
    for (address, gateway) in ADDRESSES.into_iter().zip(gateways) {
        inside.add_address(eth0, address, if address.is_ipv4() { 24 } else { 64 }).expect("an address");
        inside.add_route(&Route::default_via(gateway).on(eth0)).expect("a route");
    }
    // A name for the namespace that outlives this process, as the lab's own machines have.
    let file = namespace_file(&dir);
    std::fs::File::create(&file).expect("a file");
    let this = PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd()));
    namespace::bind_mount(&this, &file).expect("the namespace's name");
}

fn namespace_file(dir: &Path) -> PathBuf {
    dir.join("netns").join(NAME)
}

/// A machine on a lab's local network, made by the test.
struct Machine<'l> {
    lab: &'l Lab,
    dir: PathBuf,
}

impl<'l> Machine<'l> {
    fn make(lab: &'l Lab) -> Machine<'l> {
        let dir = lab.kubeconfig().parent().expect("the lab's directory").to_owned();
        let mut role = lab.at("server");
        role.arg("env").arg(format!("{ROLE}={}", dir.display()));
        role.arg(std::env::current_exe().expect("the test binary's path"));
        role.args(["--exact", "node::the_machines_role", "--nocapture"]);
        let output = role.output().expect("the role");
        assert!(output.status.success(), "{}", text(&output));
        Machine { lab, dir }
    }

    /// A command that runs what is added to it on the machine.
    fn at(&self) -> Command {
        let mut command = self.lab.at("server");
        command.arg("nsenter").arg(format!("--net={}", namespace_file(&self.dir).display())).arg("--");
        command
    }

    /// `portolan node` as one types it.
    fn arguments(&self, token: &str) -> Vec<String> {
        let addresses = ADDRESSES.map(|a| a.to_string()).join(",");
        let data = self.dir.join("nodes").join(NAME).display().to_string();
        let words =
            [PORTOLAN, "node", "--server", "https://10.80.0.2:6443", "--token", token, "--name", NAME];
        let more = ["--data-dir", &data, "--node-ip", &addresses, "--interface", "eth0"];
        words.into_iter().chain(more).map(str::to_owned).collect()
    }

    /// Starts the node. What it says is for `lab logs`, as of the lab's own machines.
    fn join(&self, token: &str) -> Joined<'_> {
        let mut command = self.at();
        let log = self.dir.join("log").join(NAME).with_extension("log");
        command.args(["sh", "-c", &format!("exec \"$0\" \"$@\" 2>>{}", log.display())]);
        command.args(self.arguments(token)).stdin(Stdio::null()).stdout(Stdio::null());
        Joined { machine: self, child: command.spawn().expect("the node") }
    }

    /// Starts the node, which must end by itself, and says what it said.
    fn refused(&self, token: &str) -> String {
        let mut command = self.at();
        // A node that goes on trying would hold the test up for good.
        command.args(["timeout", "20"]).args(self.arguments(token)).stdin(Stdio::null());
        let output: Output = command.output().expect("the node");
        assert_eq!(output.status.code(), Some(1), "a node with a wrong token: {}", text(&output));
        text(&output)
    }

    /// The processes of this node and of its pods as the lab counts them, with their command lines.
    fn processes(&self, part: &str) -> BTreeMap<u32, String> {
        let list = r#"for p in /proc/[0-9]*; do printf '%s ' "${p#/proc/}"; tr '\0' ' ' <$p/cmdline; echo; done 2>/dev/null"#;
        let output = self.lab.run_at("server", &["sh", "-c", list]);
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = lines.lines().filter_map(|line| line.split_once(' '));
        let ours = lines.filter(|(_, command)| command.contains(part) && !command.contains("nsenter"));
        ours.filter_map(|(pid, command)| Some((pid.parse().ok()?, command.to_owned()))).collect()
    }
}

/// The node's running process.
struct Joined<'m> {
    machine: &'m Machine<'m>,
    child: Child,
}

impl Joined<'_> {
    fn kill(mut self) {
        let nodes = self.machine.processes(&format!(" --name {NAME} "));
        let [pid] = nodes.keys().copied().collect::<Vec<_>>()[..] else { panic!("{nodes:?}") };
        let output = self.machine.lab.run_at("server", &["sh", "-c", &format!("kill -9 {pid}")]);
        assert!(output.status.success(), "{}", text(&output));
        let _ = self.child.wait();
    }
}

async fn node_is(client: &kube::Client, wanted: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    until(&format!("node {NAME} to be Ready={wanted}"), async || {
        let node = nodes.get_opt(NAME).await.map_err(|e| e.to_string())?.ok_or("no such node")?;
        let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
        match conditions.into_iter().find(|c| c.type_ == "Ready") {
            Some(ready) if ready.status == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// When the node last said that it lives.
async fn sign_of_life(client: &kube::Client) -> Timestamp {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let lease = leases.get(NAME).await.expect("the node's lease");
    lease.spec.and_then(|s| s.renew_time).expect("a time").0
}

/// The pods that run on the node joined by hand, as soon as six are available in all.
async fn pods_here(client: &kube::Client) -> Vec<Pod> {
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    until("six pods to be available", async || {
        let status = deployments.get("echo-hostname").await.map_err(|e| e.to_string())?.status;
        match status {
            Some(s) if s.available_replicas == Some(6) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let here = ListParams::default().fields(&format!("spec.nodeName={NAME}"));
    let list = pods.list(&here).await.expect("pods").items;
    assert!(!list.is_empty(), "no pod was given to the node joined by hand");
    list
}

/// What tells that a pod is still the same: its uid, and of each container its id, its restarts and its start.
fn identity(pods: &[Pod]) -> BTreeMap<String, String> {
    pods.iter().map(|pod| (pod.metadata.uid.clone().expect("a uid"), containers(pod))).collect()
}

fn containers(pod: &Pod) -> String {
    let containers = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let containers: Vec<_> = containers
        .iter()
        .map(|c| {
            let running = c.state.as_ref().and_then(|s| s.running.as_ref());
            json!([c.container_id, c.restart_count, running.and_then(|r| r.started_at.as_ref())])
        })
        .collect();
    json!(containers).to_string()
}

fn clean(outcome: &Outcome) {
    println!(
        "{:<34} {:>6} opened {:>4} failed  {:?}",
        outcome.what, outcome.attempts, outcome.failures, outcome.by_host
    );
    assert!(outcome.attempts > 20, "{outcome:?}");
    assert_eq!(outcome.failures, 0, "{outcome:?}");
}

/// What a few connections see now.
async fn a_moment(load: Load) -> Outcome {
    tokio::time::sleep(Duration::from_millis(300)).await;
    load.stop()
}

/// What connections see in a while.
async fn for_a_while(loads: Vec<Load>) -> Vec<Outcome> {
    tokio::time::sleep(Duration::from_secs(2)).await;
    loads.into_iter().map(Load::stop).collect()
}

#[test]
fn a_node_joins_by_hand_is_killed_is_adopted_and_is_given_up() {
    let promise = "a node joins by hand";
    let before = links();
    let Some(lab) = Lab::up_alone(promise, "by-hand", &["--nodes", "1", "-f", "examples/"]) else { return };
    if !lab.run_at("server", &["nsenter", "--version"]).status.success() {
        portolan_sys::trial::skipped(promise, "nsenter(1) is not there");
        return;
    }
    let machine = Machine::make(&lab);
    let token_file = machine.dir.join("server/node-token");
    let token = lab.run_at("server", &["cat", token_file.to_str().expect("a path")]);
    assert!(token.status.success(), "{}", text(&token));
    let token = String::from_utf8(token.stdout).expect("a token").trim().to_owned();
    let (secret, hash) = token.rsplit_once('.').expect("a secret and a hash");

    // No token, another server's, and a forgotten one.
    for wrong in [
        "nonsense".to_owned(),
        format!("{secret}.{}", "0".repeat(hash.len())),
        format!("{}.{hash}", "0".repeat(64)),
    ] {
        let began = Instant::now();
        let said = machine.refused(&wrong);
        println!("after {:?}: {}", began.elapsed(), said.trim());
        assert!(said.contains("error: --token"), "{said}");
        assert!(!said.contains(&wrong), "a token is a secret: {said}");
    }

    let node_port = SocketAddr::new(ADDRESSES[0], NODE_PORT);
    block_on(async {
        let client = lab.client().await;
        let began = Instant::now();
        let node = machine.join(&token);
        node_is(&client, "True").await;
        println!("Ready {:?} after its start", began.elapsed());
        let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
        let six = Patch::Merge(json!({"spec": {"replicas": 6}}));
        deployments.patch("echo-hostname", &PatchParams::default(), &six).await.expect("scaling");
        let pods = pods_here(&client).await;
        println!("{} ready pods {:?} after its start", pods.len(), began.elapsed());
        let here: Vec<String> = pods.iter().filter_map(|p| p.metadata.name.clone()).collect();
        let services: Api<Service> = Api::default_namespaced(client.clone());
        let service = services.get("hostname-cluster-ip").await.expect("the ClusterIP Service");
        let cluster_ips = service.spec.and_then(|s| s.cluster_ips).expect("cluster IPs");
        let cluster_ips: Vec<IpAddr> = cluster_ips.iter().map(|ip| ip.parse().expect("an address")).collect();
        let load = || {
            let mut loads = vec![Load::start(lab.at("client"), "tcp", node_port)];
            for (ip, protocol) in cluster_ips.iter().zip(["tcp", "udp"]) {
                loads.push(Load::start(lab.at("node-1"), protocol, SocketAddr::new(*ip, 80)));
                loads.push(Load::start(machine.at(), protocol, SocketAddr::new(*ip, 80)));
            }
            loads
        };
        // The tables of both nodes know all endpoints a moment after the API does.
        until("all pods to answer on the new node", async || {
            let seen = a_moment(Load::start(lab.at("client"), "tcp", node_port)).await;
            match seen.by_host.len() {
                6 if seen.failures == 0 => Ok(()),
                _ => Err(format!("{seen:?}")),
            }
        })
        .await;
        for outcome in for_a_while(load()).await {
            clean(&outcome);
            for name in &here {
                assert!(outcome.by_host.contains_key(name), "{name} never answered: {outcome:?}");
            }
        }

        // Killed: forwarding is the kernel's, and pods have supervisors of their own.
        let processes: Vec<_> = identity(&pods).keys().map(|uid| machine.processes(uid)).collect();
        assert!(processes.iter().all(|p| !p.is_empty()), "{processes:?}");
        let same = |when: &str| {
            let now: Vec<_> = identity(&pods).keys().map(|uid| machine.processes(uid)).collect();
            assert_eq!(now, processes, "the pods' processes {when}");
        };
        let loads = load();
        node.kill();
        let during = for_a_while(loads).await;
        during.iter().for_each(clean);
        same("while their node is dead");

        // Started again: it takes over what is there.
        let loads = load();
        let dead = sign_of_life(&client).await;
        let node = machine.join(&token);
        until("a new sign of life", async || match sign_of_life(&client).await {
            now if now > dead => Ok(()),
            _ => Err("none since it was killed".to_owned()),
        })
        .await;
        node_is(&client, "True").await;
        for_a_while(loads).await.iter().for_each(clean);
        assert_eq!(identity(&pods_here(&client).await), identity(&pods));
        same("after their node's return");

        // Gone for good: the API notices, and connections go elsewhere, though the kernel there would still forward.
        node.kill();
        let began = Instant::now();
        node_is(&client, "Unknown").await;
        println!("given up {:?} after its end", began.elapsed());
        let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
        until("no endpoint there to be ready", async || {
            let list = slices.list(&ListParams::default()).await.map_err(|e| e.to_string())?.items;
            let there = list.into_iter().flat_map(|s| s.endpoints.unwrap_or_default());
            let there = there.filter(|e| e.node_name.as_deref() == Some(NAME));
            let ready =
                there.filter(|e| e.conditions.as_ref().is_none_or(|c| c.ready != Some(false))).count();
            if ready == 0 { Ok(()) } else { Err(format!("{ready} are ready")) }
        })
        .await;
        println!("no endpoint ready {:?} after its end", began.elapsed());
        let elsewhere = SocketAddr::from(([10, 80, 0, 11], NODE_PORT));
        until("the other node's table to know", async || {
            let seen = a_moment(Load::start(lab.at("client"), "tcp", elsewhere)).await;
            match seen.by_host.keys().find(|name| here.contains(name)) {
                None => Ok(()),
                Some(name) => Err(format!("{name} answered")),
            }
        })
        .await;
        let mut loads = vec![Load::start(lab.at("client"), "tcp", elsewhere)];
        for ip in &cluster_ips {
            loads.push(Load::start(lab.at("node-1"), "tcp", SocketAddr::new(*ip, 80)));
        }
        for outcome in for_a_while(loads).await {
            clean(&outcome);
            assert!(here.iter().all(|name| !outcome.by_host.contains_key(name)), "{outcome:?}");
        }
    });
    let traces = Traces::of(&lab.name, before);
    drop(lab);
    traces.vanish();
}
