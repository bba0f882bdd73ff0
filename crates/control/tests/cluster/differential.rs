//! The real controllers, on the real API server, make the same of the same.
//!
//! `PORTOLAN_KUBE_APISERVER`, `PORTOLAN_KUBE_CONTROLLER_MANAGER` and `PORTOLAN_ETCD` name the programs; `PORTOLAN_CHANGES` is the
//! number of changes, and `PORTOLAN_SEED` what they are drawn from. After each change both clusters are waited for until they
//! say the same; how often each slice was written on the way is compared at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use portolan_control::Config;
use portolan_server::{Identity, Server};
use portolan_store::embedded::Embedded;
use serde_json::{Value, json};
use tokio::process::Child;
use tokio_util::sync::CancellationToken;

use crate::normal::Names;
use crate::parted::{self, State, parted};
use crate::peer::{Peer, Programs, flag, free_port, spawn};

const PROMISE: &str = "the real controllers make the same of the same";
const CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];
const PORTS: (u16, u16) = (30000, 32767);
/// How long two clusters may take to agree; on a busy machine much longer than they need.
const PATIENCE: Duration = Duration::from_secs(60);
/// So many differences are looked for at most.
const ENOUGH: usize = 8;

/// What is compared.
const KINDS: [(&str, &str, &str); 14] = [
    ("discovery.k8s.io", "v1", "EndpointSlice"),
    ("", "v1", "Endpoints"),
    ("", "v1", "Pod"),
    ("", "v1", "Event"),
    ("", "v1", "ServiceAccount"),
    ("", "v1", "ResourceQuota"),
    ("", "v1", "ReplicationController"),
    ("apps", "v1", "Deployment"),
    ("apps", "v1", "ReplicaSet"),
    ("apps", "v1", "StatefulSet"),
    ("apps", "v1", "DaemonSet"),
    ("apps", "v1", "ControllerRevision"),
    ("batch", "v1", "Job"),
    ("policy", "v1", "PodDisruptionBudget"),
];

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Random numbers that a seed repeats (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A change that both clusters are asked for.
#[derive(Clone, Debug)]
enum Change {
    Create(&'static str, Value),
    Patch(&'static str, String, Value),
    Status(&'static str, String, Value),
    Delete(&'static str, String),
    /// The kubelet's last word.
    Gone(String),
}

fn resource(kind: &str) -> ApiResource {
    let group = match kind {
        "EndpointSlice" => "discovery.k8s.io",
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "ControllerRevision" => "apps",
        "Job" | "CronJob" => "batch",
        "PodDisruptionBudget" => "policy",
        _ => "",
    };
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind))
}

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let resource = resource(kind);
    if kind == "Node" {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), "n", &resource)
    }
}

/// One cluster: its client, and how often each of its slices was written.
struct Side {
    client: Client,
    writes: Arc<Mutex<BTreeMap<String, usize>>>,
    names: Mutex<Names>,
}

impl Side {
    fn new(client: Client) -> Side {
        Side { client, writes: Arc::default(), names: Mutex::default() }
    }

    /// Counts the writes of a kind from now on.
    fn count(&self, kind: &'static str) {
        let (api, writes) = (api(&self.client, kind), self.writes.clone());
        tokio::spawn(async move {
            let Ok(stream) = api.watch(&WatchParams::default().timeout(290), "0").await else { return };
            let mut stream = std::pin::pin!(stream);
            while let Some(Ok(event)) = stream.next().await {
                let (what, object) = match event {
                    WatchEvent::Added(object) => ("made", object),
                    WatchEvent::Modified(object) => ("changed", object),
                    WatchEvent::Deleted(object) => ("deleted", object),
                    _ => continue,
                };
                let base = object.metadata.generate_name.clone().unwrap_or_else(|| object.name_any());
                *writes.lock().entry(format!("{kind} {base} {what}")).or_default() += 1;
            }
        });
    }

    async fn apply(&self, change: &Change) {
        let fine = |result: Result<(), kube::Error>| match result {
            Ok(()) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => panic!("{change:?}: {error}"),
        };
        match change {
            Change::Create(kind, object) => {
                let object: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
                // What is there isn't asked for again: kube-apiserver charges a quota for it all the same, until the quota's
                // controller counts anew after minutes.
                let there = api(&self.client, kind).get_opt(&object.name_any()).await;
                if there.expect("an answer").is_some() {
                    return;
                }
                let made = api(&self.client, kind).create(&PostParams::default(), &object).await;
                fine(made.map(drop));
            }
            Change::Patch(kind, name, patch) => {
                let patch = Patch::Merge(patch);
                let done = api(&self.client, kind).patch(name, &PatchParams::default(), &patch).await;
                fine(done.map(drop));
            }
            Change::Status(kind, name, patch) => {
                let patch = Patch::Merge(patch);
                let done = api(&self.client, kind).patch_status(name, &PatchParams::default(), &patch).await;
                fine(done.map(drop));
            }
            Change::Delete(kind, name) => {
                let done = api(&self.client, kind).delete(name, &DeleteParams::default()).await;
                fine(done.map(drop));
            }
            Change::Gone(name) => {
                let now = DeleteParams::default().grace_period(0);
                fine(api(&self.client, "Pod").delete(name, &now).await.map(drop));
            }
        }
    }

    /// Kubelets' work on the pods that controllers have made: they run, and when they are to go they do.
    async fn run_pods(&self) {
        let pods = api(&self.client, "Pod").list(&ListParams::default()).await.expect("pods").items;
        for (at, pod) in pods.iter().enumerate().filter(|(_, pod)| !pod.owner_references().is_empty()) {
            let name = pod.name_any();
            if pod.metadata.deletion_timestamp.is_some() {
                self.apply(&Change::Gone(name)).await;
            } else if pod.data["status"]["podIP"].is_null() {
                let status = running(&format!("10.7.{}.{}", at / 250, at % 250 + 1), true);
                self.apply(&Change::Status("Pod", name, status)).await;
            } else if pod.owner_references()[0].kind == "Job" && pod.data["status"]["phase"] == "Running" {
                let ended = json!({"status": {"phase": "Succeeded"}});
                self.apply(&Change::Status("Pod", name, ended)).await;
            }
        }
    }

    /// All that is compared, normalised and in order.
    async fn state(&self) -> State {
        let mut all = Vec::new();
        for (_, _, kind) in KINDS {
            let listed = api(&self.client, kind).list(&ListParams::default()).await.expect("a list");
            for object in listed.items {
                let mut object = serde_json::to_value(object).expect("an object");
                object["kind"] = kind.into();
                all.push(object);
            }
        }
        // Services aren't made by controllers: only referred to.
        let mut named = all.clone();
        let services = api(&self.client, "Service").list(&ListParams::default()).await.expect("a list");
        for service in services.items {
            let mut service = serde_json::to_value(service).expect("an object");
            service["kind"] = "Service".into();
            named.push(service);
        }
        let mut names = self.names.lock();
        names.learn(&named);
        let mut state = State::new();
        for object in &all {
            let mut object = sorted(&names.normal(object));
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            simplify(&kind, &mut object);
            state.entry(kind).or_default().push(object.to_string());
        }
        state.values_mut().for_each(|list| list.sort());
        state
    }
}

/// What says nothing of controllers.
fn simplify(kind: &str, object: &mut Value) {
    let mut drop = |path: &str| {
        if let Some((parent, last)) = path.rsplit_once('/')
            && let Some(Value::Object(map)) = object.pointer_mut(parent)
        {
            map.shift_remove(last);
        }
    };
    match kind {
        "Event" => {
            // How often within a moment is a matter of how fast, and the name is made of the time.
            drop("/count");
            drop("/metadata/name");
            drop("/metadata/uid");
        }
        // It counts writes, which are compared in all.
        "EndpointSlice" => drop("/metadata/generation"),
        _ => {}
    }
    // In Kubernetes the order is one of hashes, identifiers among what is hashed.
    for list in ["endpoints", "subsets"] {
        if let Some(Value::Array(items)) = object.get_mut(list) {
            items.iter_mut().for_each(|item| {
                if let Some(Value::Array(ports)) = item.get_mut("ports") {
                    ports.sort_by_key(ToString::to_string);
                }
            });
            items.sort_by_key(ToString::to_string);
        }
    }
    if let Some(Value::Array(conditions)) = object.pointer_mut("/status/conditions") {
        conditions.sort_by_key(ToString::to_string);
    }
}

/// Keys in order.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            keys.into_iter().map(|key| (key.clone(), sorted(&map[key]))).collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

fn running(address: &str, ready: bool) -> Value {
    let status = if ready { "True" } else { "False" };
    json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": "2024-01-01T00:00:00Z"}]}})
}

fn pod(name: &str, app: &str, dice: &mut Dice) -> Value {
    // One that is on its way out stays so: that it no longer counts after a time would be noticed when something else changes.
    let mut spec = json!({"nodeName": dice.pick(&["n1", "n2", "n3"]), "terminationGracePeriodSeconds": 3600,
        "containers": [{"name": "c", "image": "echo:1", "ports": [{"name": "http", "containerPort": dice.pick(&[8080, 9090])}]}]});
    if dice.percent(20) {
        spec["hostname"] = name.into();
        spec["subdomain"] = app.into();
    }
    json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": spec})
}

fn service(name: &str, dice: &mut Dice) -> Value {
    let mut spec = json!({"selector": {"app": name},
        "ports": [{"name": "web", "port": 80, "targetPort": dice.pick(&[json!("http"), json!(8080)])}]});
    match dice.below(6) {
        0 => spec["clusterIP"] = "None".into(),
        1 => spec["ipFamilyPolicy"] = "PreferDualStack".into(),
        2 => spec["publishNotReadyAddresses"] = true.into(),
        3 => spec["trafficDistribution"] = dice.pick(&["PreferSameZone", "PreferSameNode"]).into(),
        4 => spec["type"] = "NodePort".into(),
        _ => {}
    }
    json!({"metadata": {"name": name, "labels": {"team": "a"}}, "spec": spec})
}

fn template(app: &str) -> Value {
    // Nobody schedules them: where they would run is no matter here.
    json!({"metadata": {"labels": {"app": app}},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "c", "image": "echo:1"}]}})
}

const APPS: [&str; 3] = ["a", "b", "c"];

/// The next change.
fn draw(dice: &mut Dice) -> Change {
    let app = dice.pick(&APPS);
    let name = format!("{app}-{}", dice.below(3));
    let address = format!("10.1.{}.{}", name.as_bytes()[0], name.as_bytes()[2]);
    match dice.below(106) {
        0..15 => Change::Create("Service", service(app, dice)),
        15..20 => Change::Delete("Service", app.into()),
        20..28 => {
            let patch = dice.pick(&[
                json!({"spec": {"trafficDistribution": "PreferSameZone"}}),
                json!({"spec": {"trafficDistribution": null}}),
                json!({"spec": {"publishNotReadyAddresses": true}}),
                json!({"spec": {"publishNotReadyAddresses": null}}),
                json!({"metadata": {"labels": {"team": "b"}}}),
                json!({"spec": {"selector": {"app": "c"}}}),
                json!({"spec": {"ports": [{"name": "web", "port": 80, "targetPort": 9090}, {"name": "more", "port": 81}]}}),
            ]);
            Change::Patch("Service", app.into(), patch)
        }
        28..46 => Change::Create("Pod", pod(&name, app, dice)),
        46..66 => Change::Status("Pod", name, running(&address, dice.percent(75))),
        66..72 => Change::Delete("Pod", name),
        72..78 => Change::Gone(name),
        78..80 => Change::Patch("Pod", name, json!({"metadata": {"labels": {"app": dice.pick(&APPS)}}})),
        80..83 => Change::Create(
            "Endpoints",
            json!({"metadata": {"name": "by-hand"},
            "subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}], "notReadyAddresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 80}]}]}),
        ),
        83..85 => Change::Create(
            "Service",
            json!({"metadata": {"name": "by-hand"}, "spec": {"ports": [{"port": 80}]}}),
        ),
        85..87 => Change::Patch(
            "Endpoints",
            "by-hand".into(),
            json!({"subsets": [{"addresses": [{"ip": "192.0.2.9"}], "ports": [{"port": 81, "name": "x"}]}]}),
        ),
        87..88 => Change::Delete("Endpoints", "by-hand".into()),
        88..90 => Change::Create(
            "Deployment",
            json!({"metadata": {"name": "d"}, "spec": {"replicas": dice.below(3),
            "selector": {"matchLabels": {"app": "d"}}, "template": template("d")}}),
        ),
        90..92 => Change::Patch("Deployment", "d".into(), json!({"spec": {"replicas": dice.below(4)}})),
        92..93 => Change::Patch(
            "Deployment",
            "d".into(),
            json!({"spec": {"template": {"metadata": {"annotations": {"at": dice.below(3).to_string()}}}}}),
        ),
        93..94 => Change::Create(
            "StatefulSet",
            json!({"metadata": {"name": "s"}, "spec": {"replicas": 2, "serviceName": "s",
            "selector": {"matchLabels": {"app": "s"}}, "template": template("s")}}),
        ),
        94..95 => Change::Patch("StatefulSet", "s".into(), json!({"spec": {"replicas": dice.below(4)}})),
        95..96 => Change::Create(
            "ReplicationController",
            json!({"metadata": {"name": "r"}, "spec": {"replicas": 1, "template": template("r")}}),
        ),
        96..97 => Change::Create(
            "PodDisruptionBudget",
            json!({"metadata": {"name": "p"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "d"}}}}),
        ),
        97..98 => Change::Create(
            "ResourceQuota",
            json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "50", "services": "20"}}}),
        ),
        98..99 => {
            let mut template = template("j");
            template["spec"]["restartPolicy"] = "Never".into();
            Change::Create("Job", json!({"metadata": {"name": "j"}, "spec": {"template": template}}))
        }
        99..100 => Change::Delete("Deployment", "d".into()),
        100..102 => Change::Create(
            "DaemonSet",
            json!({"metadata": {"name": "e"}, "spec": {"selector": {"matchLabels": {"app": "e"}}, "template": template("e")}}),
        ),
        102..104 => Change::Patch(
            dice.pick(&["DaemonSet", "StatefulSet"]),
            dice.pick(&["e", "s"]).into(),
            json!({"spec": {"template": {"metadata": {"annotations": {"at": dice.below(3).to_string()}}}}}),
        ),
        _ => {
            let (kind, name) = dice.pick(&[
                ("DaemonSet", "e"),
                ("StatefulSet", "s"),
                ("Job", "j"),
                ("ReplicationController", "r"),
                ("PodDisruptionBudget", "p"),
                ("ResourceQuota", "q"),
            ]);
            Change::Delete(kind, name.into())
        }
    }
}

/// kube-controller-manager over the peer.
fn controllers(program: &std::path::Path, peer: &Peer, dir: &std::path::Path) -> Child {
    let chosen = "endpointslice-controller,endpoints-controller,endpointslice-mirroring-controller,namespace-controller,\
                  garbage-collector-controller,serviceaccount-controller,root-ca-certificate-publisher-controller,\
                  replicaset-controller,deployment-controller,statefulset-controller,daemonset-controller,job-controller,\
                  cronjob-controller,disruption-controller,resourcequota-controller,replicationcontroller-controller,\
                  service-cidr-controller";
    let args = [
        flag("kubeconfig", &peer.at("admin.conf")),
        flag("controllers", chosen),
        flag("leader-elect", "false"),
        flag("bind-address", "127.0.0.1"),
        flag("secure-port", &free_port().to_string()),
        flag("cert-dir", &dir.display().to_string()),
        flag("authentication-skip-lookup", "true"),
        flag("service-account-private-key-file", &peer.at("tls.key")),
        flag("root-ca-file", &peer.at("tls.crt")),
        flag("service-cluster-ip-range", &CIDRS.join(",")),
        flag("kube-api-qps", "1000"),
        flag("kube-api-burst", "1000"),
    ];
    spawn(program, dir, "controllers.log", &args)
}

/// Waits until both say the same; gives what differs where they don't.
async fn agree(real: &Side, ours: &Side, known: &mut BTreeSet<String>) -> Option<String> {
    let begun = Instant::now();
    loop {
        tokio::join!(real.run_pods(), ours.run_pods());
        let (a, b) = tokio::join!(real.state(), ours.state());
        let (of_real, of_ours) = (parted(&a, &b, known), parted(&b, &a, known));
        if of_real.is_empty() && of_ours.is_empty() {
            return None;
        }
        if begun.elapsed() > PATIENCE {
            let lines = parted::fields(&of_real, &of_ours);
            known.extend(of_real.into_iter().chain(of_ours).map(|(_, text)| text));
            return Some(lines.iter().map(|line| format!("    {line}\n")).collect());
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

#[tokio::test]
async fn the_real_controllers_make_the_same_of_the_same() {
    let program = std::env::var_os("PORTOLAN_KUBE_CONTROLLER_MANAGER").map(std::path::PathBuf::from);
    let (Some(programs), Some(program)) = (Programs::find(), program) else {
        return say(&format!(
            "skipped: {PROMISE}: PORTOLAN_KUBE_APISERVER, PORTOLAN_KUBE_CONTROLLER_MANAGER and PORTOLAN_ETCD name no programs"
        ));
    };
    let (seed, changes) = (number("PORTOLAN_SEED", 1), number("PORTOLAN_CHANGES", 40));
    let peer = Peer::start(&programs, &CIDRS, PORTS).await;
    let dir = tempfile::tempdir().expect("a directory");
    let _controllers = controllers(&program, &peer, dir.path());

    let mut config =
        portolan_server::Config::new(CIDRS.iter().map(|cidr| cidr.parse().expect("a range")).collect());
    config.accounts_of_pods = true;
    let server = Server::open(config, Embedded::in_memory()).await.expect("a server");
    let stop = CancellationToken::new();
    let client =
        Client::new(server.service(Identity::new("system:portolan:control", &["system:masters"])), "default");
    // Nobody renews the nodes' leases here.
    let control = Config {
        lease_grace: Duration::from_secs(3600),
        ca_pem: Some("a certificate".into()),
        ..Config::default()
    };
    let ended = stop.clone();
    let running = tokio::spawn(async move { portolan_control::run(client, control, ended).await });

    let real = Side::new(peer.client.clone());
    let ours = Side::new(Client::new(server.service(Identity::admin()), "default"));
    let namespace: Namespace =
        serde_json::from_value(json!({"metadata": {"name": "n"}})).expect("a namespace");
    for side in [&real, &ours] {
        for (name, zone) in [("n1", "z1"), ("n2", "z2"), ("n3", "z2")] {
            let node = json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": name}}});
            side.apply(&Change::Create("Node", node)).await;
            let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
            side.apply(&Change::Status("Node", name.into(), ready)).await;
            // What kube-apiserver gives each new node, and a controller that isn't here takes away.
            side.apply(&Change::Patch("Node", name.into(), json!({"spec": {"taints": null}}))).await;
        }
        Api::all(side.client.clone()).create(&PostParams::default(), &namespace).await.expect("a namespace");
        side.count("EndpointSlice");
        side.count("Endpoints");
    }
    let mut different = Vec::new();
    let mut known = BTreeSet::new();
    let first = agree(&real, &ours, &mut known).await;
    different.extend(first.map(|text| format!("in a new namespace\n{text}")));
    let mut dice = Dice(seed);
    let mut done = Vec::new();
    for at in 0..changes {
        let change = draw(&mut dice);
        tokio::join!(real.apply(&change), ours.apply(&change));
        done.push(format!("{change:?}"));
        if let Some(difference) = agree(&real, &ours, &mut known).await {
            let last = done[done.len().saturating_sub(6)..].join("\n    ");
            different.push(format!("change {at} of seed {seed}, after\n    {last}\n{difference}"));
            if different.len() >= ENOUGH {
                break;
            }
        }
    }
    let (of_real, of_ours) = (real.writes.lock().clone(), ours.writes.lock().clone());
    let sum = |writes: &BTreeMap<String, usize>| writes.values().sum::<usize>();
    say(&format!(
        "controllers: seed {seed}, {} changes; {} writes of slices and Endpoints by the real ones, {} by ours",
        done.len(),
        sum(&of_real),
        sum(&of_ours)
    ));
    for (what, count) in &of_ours {
        let theirs = of_real.get(what).copied().unwrap_or(0);
        if *count > theirs {
            say(&format!("  {what}: {theirs} times by the real ones, {count} by ours"));
        }
    }
    // A few depend on what was seen together.
    if sum(&of_ours) > sum(&of_real) + sum(&of_real) / 10 + 2 {
        different.push("ours write slices and Endpoints more often".to_owned());
    }
    stop.cancel();
    let _ = running.await;
    server.close();
    different.iter().for_each(|text| say(text));
    assert!(different.is_empty(), "seed {seed}: the clusters differ");
}
