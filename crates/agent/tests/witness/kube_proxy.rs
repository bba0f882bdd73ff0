//! The real kube-proxy, given the same objects, sends the same flows to the same places.
//!
//! `PORTOLAN_KUBE_PROXY` names the program (1.36, its nftables mode). Where ours differs on purpose, the reason is one of
//! [`DIFFERENCES`], and docs/reference/differences.md has it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use portolan_peers::KubeProxy;
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
struct Proxy {
    _proxy: KubeProxy,
    dir: PathBuf,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Starts it in the namespace of the calling thread and waits until the kernel has what the API says.
fn start(program: &Path, api: &str, cluster: &Cluster) -> Proxy {
    let dir = std::env::temp_dir().join(format!("portolan-kube-proxy-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let ranges: Vec<String> = match &cluster.settings.node_ports {
        wanted if wanted.primary => vec!["primary".into()],
        wanted => wanted.ranges.iter().map(ToString::to_string).collect(),
    };
    let config = json!({"mode": "nftables", "hostnameOverride": NODE, "nodePortAddresses": ranges,
        "nftables": {"masqueradeAll": cluster.settings.masquerade_all, "minSyncPeriod": "10ms", "syncPeriod": "30s"}});
    let ready = || has_table("ip") && has_table("ip6");
    Proxy { _proxy: KubeProxy::start(program, &dir, api, config, ready), dir }
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
            let proxy = wires.world.router.run(|| start(&program, &api.serve(runtime.handle()), &cluster));
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
