//! A cluster without machines: a server in memory, the controllers, and kubelets that say what real ones would.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Event, Namespace, Node, Pod, ReplicationController, ResourceQuota, Service,
    ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Resource, ResourceExt};
use portolan_control::Config;
use portolan_server::{Identity, Server};
use portolan_store::embedded::Embedded;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a test waits for what should take milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// The cluster. Everything ends with it.
pub struct Lab {
    pub client: Client,
    pub server: Arc<Server>,
    stop: CancellationToken,
    config: Config,
    controllers: Option<JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Lab {
    /// A cluster with these settings and a namespace `n`; nodes come by [`Lab::node`].
    pub async fn new(config: Config) -> Lab {
        let server_config = portolan_server::Config::new(vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd00:96::/112".parse().unwrap(),
        ]);
        let server = Server::open(server_config, Embedded::in_memory()).await.expect("a server");
        let client = Client::new(server.service(Identity::admin()), "default");
        let stop = CancellationToken::new();
        let mut lab =
            Lab { client: client.clone(), server, stop, config, controllers: None, tasks: Vec::new() };
        lab.start();
        lab.tasks.push(tokio::spawn(kubelets(client)));
        lab.create::<Namespace>("", json!({ "metadata": { "name": "n" } })).await;
        lab
    }

    fn start(&mut self) {
        let identity = Identity::new("system:portolan:control", &["system:masters"]);
        let client = Client::new(self.server.service(identity), "default");
        let (config, stop) = (self.config.clone(), self.stop.child_token());
        self.controllers = Some(tokio::spawn(async move {
            portolan_control::run(client, config, stop).await.expect("the controllers run");
        }));
    }

    /// Ends the controllers and starts them anew; the cluster goes on.
    pub async fn restart(&mut self) {
        self.end_controllers().await;
        self.start();
    }

    /// Ends the controllers.
    pub async fn end_controllers(&mut self) {
        self.stop.cancel();
        if let Some(controllers) = self.controllers.take() {
            controllers.await.expect("the controllers end when told to");
        }
        self.stop = CancellationToken::new();
    }

    pub async fn with_nodes(config: Config, count: usize) -> Lab {
        let mut lab = Lab::new(config).await;
        for at in 1..=count {
            lab.node(&format!("node-{at}"), true).await;
        }
        lab
    }

    /// A ready node; `alive` ones renew their lease until [`Heart::stop`].
    pub async fn node(&mut self, name: &str, alive: bool) -> Heart {
        self.create::<Node>(
            "",
            json!({ "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } } }),
        )
        .await;
        self.ready(name).await;
        let heart = Heart(CancellationToken::new());
        if alive {
            self.tasks.push(tokio::spawn(beat(self.client.clone(), name.to_owned(), heart.0.clone())));
        }
        self.trusted(name).await;
        heart
    }

    /// A silent node renews its lease again and says that it is ready.
    pub async fn revive(&mut self, name: &str) {
        let heart = CancellationToken::new();
        self.tasks.push(tokio::spawn(beat(self.client.clone(), name.to_owned(), heart)));
        self.trusted(name).await;
    }

    /// Waits until the controllers have taken their taints from a node that says it is ready: pods may come.
    async fn trusted(&self, name: &str) {
        eventually("its node to be trusted", || async {
            let node = self.get::<Node>("", name).await?;
            let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
            if !taints.is_empty() {
                self.ready(name).await;
            }
            taints.is_empty().then_some(())
        })
        .await;
    }

    /// The node says that it is ready, as a kubelet does when it has come back.
    pub async fn ready(&self, name: &str) {
        let status = json!({ "status": { "conditions": [
            { "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "" }] } });
        let api: Api<Node> = Api::all(self.client.clone());
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
            .expect("the node's status");
    }

    /// The API of a kind in one namespace, or of the cluster when that is empty.
    pub fn api<K: Reach>(&self, namespace: &str) -> Api<K> {
        K::reach(self.client.clone(), namespace)
    }

    pub async fn create<K>(&self, namespace: &str, object: Value) -> K
    where
        K: Reach + Serialize,
    {
        let object: K = serde_json::from_value(object).expect("a well-formed object");
        self.api::<K>(namespace).create(&PostParams::default(), &object).await.expect("created")
    }

    pub async fn patch<K>(&self, namespace: &str, name: &str, patch: Value) -> K
    where
        K: Reach,
    {
        let api = self.api::<K>(namespace);
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.expect("patched")
    }

    pub async fn get<K>(&self, namespace: &str, name: &str) -> Option<K>
    where
        K: Reach,
    {
        self.api::<K>(namespace).get_opt(name).await.expect("an answer")
    }

    pub async fn list<K>(&self, namespace: &str) -> Vec<K>
    where
        K: Reach,
    {
        self.api::<K>(namespace).list(&ListParams::default()).await.expect("a list").items
    }

    pub async fn delete<K>(&self, namespace: &str, name: &str, params: DeleteParams)
    where
        K: Reach,
    {
        let _ = self.api::<K>(namespace).delete(name, &params).await.expect("deleted");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop.cancel();
        self.server.close();
        for task in self.tasks.iter().chain(&self.controllers) {
            task.abort();
        }
    }
}

/// A node's heartbeat; it stops when told to.
pub struct Heart(CancellationToken);

impl Heart {
    pub fn stop(&self) {
        self.0.cancel();
    }
}

async fn beat(client: Client, name: String, stop: CancellationToken) {
    let api: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let mut every = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = stop.cancelled() => return,
        }
        let now = k8s_openapi::jiff::Timestamp::now();
        let renewed = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(now);
        let spec = json!({ "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": renewed });
        let patch = Patch::Merge(json!({ "spec": spec }));
        if api.patch(&name, &PatchParams::default(), &patch).await.is_err() {
            let lease = json!({ "metadata": { "name": name }, "spec": spec });
            let lease = serde_json::from_value(lease).expect("a lease");
            let _ = api.create(&PostParams::default(), &lease).await;
        }
    }
}

/// A kind whose API the tests use.
pub trait Reach: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug {
    fn reach(client: Client, namespace: &str) -> Api<Self>;
}

macro_rules! reach {
    ($make:expr, $($kind:ty),*) => {
        $(impl Reach for $kind {
            fn reach(client: Client, namespace: &str) -> Api<Self> {
                let make: fn(Client, &str) -> Api<Self> = $make;
                make(client, namespace)
            }
        })*
    };
}

reach!(|client, _| Api::all(client), Namespace, Node, IPAddress, ServiceCIDR);
reach!(
    Api::namespaced,
    Pod,
    Service,
    ServiceAccount,
    ConfigMap,
    Endpoints,
    EndpointSlice,
    Event,
    Deployment,
    ReplicaSet,
    Lease,
    ReplicationController,
    StatefulSet,
    DaemonSet,
    ControllerRevision,
    Job,
    CronJob,
    PodDisruptionBudget,
    ResourceQuota
);

/// Waits until `look` finds something.
pub async fn eventually<T, F, L>(what: &str, mut look: L) -> T
where
    L: FnMut() -> F,
    F: Future<Output = Option<T>>,
{
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
}

/// All kubelets: pods that are bound run and are ready; pods that are being deleted end.
async fn kubelets(client: Client) {
    let serial = Arc::new(AtomicU32::new(2));
    let all: Api<Pod> = Api::all(client.clone());
    let mut events = std::pin::pin!(watcher(all, watcher::Config::default()));
    while let Some(event) = events.next().await {
        if let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event {
            tokio::spawn(kubelet(client.clone(), pod, serial.clone()));
        }
    }
}

async fn kubelet(client: Client, pod: Pod, serial: Arc<AtomicU32>) {
    let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|n| !n.is_empty())
    else {
        return;
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    if pod.metadata.deletion_timestamp.is_some() {
        let _ = api.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
        return;
    }
    let started = pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some());
    // The annotation lets a test hold a pod back.
    if started || pod.annotations().contains_key("lab/stuck") {
        return;
    }
    let number = serial.fetch_add(1, Ordering::Relaxed);
    let last = node.rsplit('-').next().unwrap_or("1").to_owned();
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(k8s_openapi::jiff::Timestamp::now());
    let (v4, v6) = (format!("10.1.{last}.{number}"), format!("fd00:1:0:{last}::{number:x}"));
    let mut conditions = serde_json::to_value(pod.status.as_ref().and_then(|s| s.conditions.clone()))
        .ok()
        .and_then(|conditions| conditions.as_array().cloned())
        .unwrap_or_default();
    conditions.push(json!({ "type": "Ready", "status": "True", "lastTransitionTime": now }));
    let status = json!({ "status": {
        "phase": "Running", "podIP": v4, "podIPs": [{ "ip": v4 }, { "ip": v6 }], "conditions": conditions } });
    let _ = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status)).await;
}

/// A Deployment of `app: NAME` with pods that listen on the named port `http`.
pub fn deployment(name: &str, replicas: i32, strategy: Value) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "strategy": strategy,
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "main", "image": "echo:1",
                    "ports": [{ "name": "http", "containerPort": 8080 }] }] },
            },
        },
    })
}
