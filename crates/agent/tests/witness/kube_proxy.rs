//! The real kube-proxy, given the same objects, sends the same flows to the same places.
//!
//! `PORTOLAN_KUBE_PROXY` names the program (1.36, its nftables mode). Where ours differs on purpose, the reason is one of
//! [`DIFFERENCES`], and docs/reference/differences.md has it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use portolan_plan::model::*;
use portolan_plan::planner::{Views, plan_all};
use portolan_plan::trace::Verdict;
use serde_json::json;

use crate::api::FakeApi;
use crate::draw::{Cluster, Dice, Drawn, Flows, NODE, Taste};
use crate::flows::{Run, Tally, round, views, wanted, wires};

const PROMISE: &str = "kube-proxy sends the same flows to the same places";

/// Where ours differs from kube-proxy 1.36, and why.
const RANGES: &str = "a family without a source range is closed";
const OWNERSHIP: &str = "an external address has one owner";
const REFUSED: &str = "external addresses that are not to be given";
/// All of them. A test compares them with the document.
pub const DIFFERENCES: [&str; 3] = [RANGES, OWNERSHIP, REFUSED];

/// A kube-proxy that runs until it is dropped.
struct KubeProxy {
    child: Child,
    dir: PathBuf,
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl KubeProxy {
    /// Starts it in the namespace of the calling thread and waits until the kernel has what the API says.
    fn start(program: &Path, api: &str, cluster: &Cluster) -> KubeProxy {
        let dir = std::env::temp_dir().join(format!("portolan-kube-proxy-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": api}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]});
        let ranges: Vec<String> = match &cluster.settings.node_ports {
            wanted if wanted.primary => vec!["primary".into()],
            wanted => wanted.ranges.iter().map(ToString::to_string).collect(),
        };
        let config = json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "nftables", "hostnameOverride": NODE, "nodePortAddresses": ranges,
            "detectLocalMode": "NodeCIDR", "bindAddress": "0.0.0.0",
            "nftables": {"masqueradeAll": cluster.settings.masquerade_all, "minSyncPeriod": "10ms", "syncPeriod": "30s"},
            "conntrack": {"maxPerCore": 0, "min": 0},
            "clientConnection": {"kubeconfig": dir.join("kubeconfig"), "contentType": "application/json",
                "acceptContentTypes": "application/json"}});
        std::fs::write(dir.join("kubeconfig"), kubeconfig.to_string()).expect("written");
        std::fs::write(dir.join("config"), config.to_string()).expect("written");
        let log = std::fs::File::create(dir.join("log")).expect("a log");
        let child = Command::new(program)
            .arg("--config")
            .arg(dir.join("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("kube-proxy starts");
        let mut proxy = KubeProxy { child, dir };
        proxy.wait();
        proxy
    }

    /// Until `/healthz` says that both families are in the kernel.
    fn wait(&mut self) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = TcpStream::connect(("127.0.0.1", 10256)).and_then(|mut stream| {
                stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                Ok(text)
            });
            let synced = |text: &str| {
                let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
                let status: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
                ["IPv4", "IPv6"].iter().all(|f| {
                    let at = status["status"][f]["lastUpdated"].as_str().unwrap_or("0001");
                    !at.starts_with("0001") && status["status"][f]["healthy"] == true
                })
            };
            if answer.is_ok_and(|text| synced(&text)) && has_table("ip") && has_table("ip6") {
                return;
            }
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > until {
                let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                panic!("kube-proxy isn't ready, {ended:?}: {log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn has_table(family: &str) -> bool {
    let listed = Command::new("nft").args(["list", "chain", family, "kube-proxy", "services"]).output();
    listed.is_ok_and(|o| o.status.success())
}

fn remove_tables() {
    for family in ["ip", "ip6"] {
        let _ = Command::new("nft")
            .args(["delete", "table", family, "kube-proxy"])
            .stderr(Stdio::null())
            .status();
    }
}

/// Serves an API on a socket of the calling thread's namespace; gives its URL.
fn serve(api: FakeApi, runtime: &tokio::runtime::Runtime) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    listener.set_nonblocking(true).expect("non-blocking");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        while let Ok((stream, _)) = listener.accept().await {
            let api = api.clone();
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let api = api.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                    let mut response = api.answer(http::Request::from_parts(parts, Body::from(body))).await;
                    let json = http::HeaderValue::from_static("application/json");
                    response.headers_mut().insert("content-type", json);
                    Ok::<_, std::convert::Infallible>(response)
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    url
}

/// Why kube-proxy may do otherwise with a flow.
fn excused(plan: &Plan, views: &Views, drawn: &Drawn) -> Option<&'static str> {
    let (destination, port) = (drawn.flow.destination, drawn.flow.port);
    let frontend = Frontend::Address { address: destination, protocol: drawn.flow.protocol, port };
    let wants = |external: &&std::sync::Arc<portolan_plan::view::ServiceView>| {
        external.external_ips.contains(&destination)
    };
    let owned = plan.services.values().any(|p| p.frontends.contains_key(&frontend));
    let claimants = views.services.values().filter(wants).count();
    let empty = |ranges: &Option<std::collections::BTreeSet<ipnet::IpNet>>| {
        ranges.as_ref().is_some_and(|r| r.is_empty())
    };
    if plan.services.values().any(|p| p.frontends.get(&frontend).is_some_and(|f| empty(&f.source_ranges))) {
        return Some(RANGES);
    }
    let is_cluster_ip = views.services.values().any(|s| s.cluster_ips.contains(&destination));
    if claimants > 1 || claimants == 1 && is_cluster_ip {
        return Some(OWNERSHIP);
    }
    (claimants == 1 && !owned).then_some(REFUSED)
}

#[test]
fn kube_proxy_sends_the_same_flows_to_the_same_places() {
    let Some(program) = std::env::var_os("PORTOLAN_KUBE_PROXY").map(PathBuf::from) else {
        return portolan_sys::trial::skipped(PROMISE, "PORTOLAN_KUBE_PROXY names no kube-proxy 1.36");
    };
    if Command::new("nft").arg("--version").output().is_err() {
        return portolan_sys::trial::skipped(PROMISE, "kube-proxy needs the nft program");
    }
    wires(PROMISE, |wires| {
        let seed = wanted("PORTOLAN_SEED", 20_261_128);
        let total = wanted("PORTOLAN_PROXY_FLOWS", 1_000) as usize;
        let (mut dice, mut flows, mut tally) = (Dice(seed), Flows::new(), Tally::default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        while tally.flows < total {
            let cluster = Cluster::draw(&mut dice, Taste { as_kube_proxy: true });
            let views = views(&cluster);
            let (plan, _) = plan_all(views.clone());
            let api = FakeApi::default();
            api.put("nodes", cluster.node.clone());
            cluster.services.iter().for_each(|s| api.put("services", s.clone()));
            cluster.slices.iter().for_each(|s| api.put("endpointslices", s.clone()));
            let proxy =
                wires.world.router.run(|| KubeProxy::start(&program, &serve(api, &runtime), &cluster));
            let may_differ = |drawn: &Drawn, _: &Verdict| excused(&plan, &views, drawn);
            let mut run = Run { flows: &mut flows, dice: &mut dice, tally: &mut tally };
            round(wires, (&cluster, &plan, &views), &mut run, &may_differ);
            drop(proxy);
            wires.world.router.run(remove_tables);
        }
        tally.print("kube-proxy", seed);
        for reason in DIFFERENCES {
            println!("{:>8}  differs: {reason}", tally.counts.get(reason).copied().unwrap_or(0));
        }
        tally.assert_none_differs();
        let ours_alone = ["A6.17 a node port on localhost"];
        // A short run has too few clusters to try them all.
        tally.assert_each_row_was_tried(if total >= 5_000 { 20 } else { 0 }, &ours_alone);
    });
}
