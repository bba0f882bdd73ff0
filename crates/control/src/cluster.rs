//! All caches, the client, and the writes: what a reconcile observes and how it acts.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, ReplicationController, ResourceQuota, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher::Event;
use kube::{Client, Resource, ResourceExt};
use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Config;
use crate::cache::{Cache, Change, ObjectKey};
use crate::garbage::Graph;
use crate::kinds::Kinds;
use crate::load_balancer::Addresses;
use crate::nodes::Nodes;
use crate::queue::Queue;
use crate::recorder::Recorder;
use crate::slices::Triggers;
use crate::wake::Wake;

/// A kind that is watched.
pub(crate) trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// Where its objects are kept.
    fn cache(caches: &Caches) -> &RwLock<Cache<Self>>;
    /// The API of one namespace, or of the cluster for kinds without one.
    fn api(client: Client, namespace: &str) -> Api<Self>;
    /// The API of all namespaces.
    fn everywhere(client: Client) -> Api<Self>;
    /// Which of them are watched.
    fn namespace() -> Option<&'static str> {
        None
    }
    /// What to look at after a change.
    fn wakes(cluster: &Cluster, change: &Change<Self>) -> Vec<Wake>;
}

/// Every cache.
#[derive(Debug, Default)]
pub(crate) struct Caches {
    pub pods: RwLock<Cache<Pod>>,
    pub services: RwLock<Cache<Service>>,
    pub slices: RwLock<Cache<EndpointSlice>>,
    pub endpoints: RwLock<Cache<Endpoints>>,
    pub nodes: RwLock<Cache<Node>>,
    pub leases: RwLock<Cache<Lease>>,
    pub namespaces: RwLock<Cache<Namespace>>,
    pub replica_sets: RwLock<Cache<ReplicaSet>>,
    pub deployments: RwLock<Cache<Deployment>>,
    pub service_accounts: RwLock<Cache<ServiceAccount>>,
    pub config_maps: RwLock<Cache<ConfigMap>>,
    pub cluster_roles: RwLock<Cache<ClusterRole>>,
    pub replication_controllers: RwLock<Cache<ReplicationController>>,
    pub stateful_sets: RwLock<Cache<StatefulSet>>,
    pub daemon_sets: RwLock<Cache<DaemonSet>>,
    pub revisions: RwLock<Cache<ControllerRevision>>,
    pub jobs: RwLock<Cache<Job>>,
    pub cron_jobs: RwLock<Cache<CronJob>>,
    pub budgets: RwLock<Cache<PodDisruptionBudget>>,
    pub quotas: RwLock<Cache<ResourceQuota>>,
    pub addresses: RwLock<Cache<IPAddress>>,
    pub service_cidrs: RwLock<Cache<ServiceCIDR>>,
}

/// What every controller works with.
pub(crate) struct Cluster {
    pub client: Client,
    pub config: Config,
    pub caches: Caches,
    pub queue: Queue<Wake>,
    pub recorder: Recorder,
    pub nodes: Nodes,
    pub addresses: Addresses,
    pub garbage: Graph,
    pub kinds: Kinds,
    pub slice_triggers: Triggers,
    pub endpoints_triggers: Triggers,
}

/// Why a reconcile did not finish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("{0}")]
    Invalid(String),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

// === impl ===

impl Cluster {
    pub fn get<K: Kind>(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        K::cache(&self.caches).read().get(namespace, name)
    }

    pub fn find<K: Kind>(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.get(&key.namespace, &key.name)
    }

    /// The objects of one namespace that `wanted` likes.
    pub fn select<K: Kind>(&self, namespace: &str, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        K::cache(&self.caches)
            .read()
            .in_namespace(namespace)
            .filter(|object| wanted(object))
            .cloned()
            .collect()
    }

    /// The objects of all namespaces that `wanted` likes.
    pub fn all<K: Kind>(&self, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        K::cache(&self.caches).read().all().filter(|object| wanted(object)).cloned().collect()
    }

    /// Takes in an event of the watch and wakes whom it concerns.
    pub fn observe<K: Kind>(&self, event: Event<K>) {
        let changes = K::cache(&self.caches).write().observe(event);
        for change in &changes {
            self.tell(change);
        }
    }

    fn tell<K: Kind>(&self, change: &Change<K>) {
        for wake in K::wakes(self, change) {
            self.queue.push(wake);
        }
        for wake in crate::garbage::wakes(self, change) {
            self.queue.push(wake);
        }
        // What is made is charged where it is made; what goes, or ends, frees its place.
        let frees =
            change.new.is_none() || (change.old.is_some() && matches!(&*K::kind(&()), "Pod" | "Service"));
        if let Some(namespace) = change.last().and_then(|object| object.namespace()).filter(|_| frees) {
            for quota in crate::quota::wakes(self, &namespace) {
                self.queue.push(Wake::Quota(quota));
            }
        }
    }

    fn absorb<K: Kind>(&self, object: K) -> Arc<K> {
        let object = Arc::new(object);
        let change = K::cache(&self.caches).write().absorb(object.clone());
        if let Some(change) = change {
            self.tell(&change);
        }
        object
    }

    /// Remembers what must have become true of the object without a read.
    pub fn assume<K: Kind>(&self, object: K) {
        let change = K::cache(&self.caches).write().assume(Arc::new(object));
        if let Some(change) = change {
            self.tell(&change);
        }
    }

    fn gone<K: Kind>(&self, key: &ObjectKey, uid: &str) {
        let change = K::cache(&self.caches).write().forget(key, uid);
        if let Some(change) = change {
            self.tell(&change);
        }
    }

    pub async fn create<K: Kind>(&self, object: &K) -> Result<Arc<K>> {
        let api = K::api(self.client.clone(), object.meta().namespace.as_deref().unwrap_or_default());
        Ok(self.absorb(api.create(&PostParams::default(), object).await?))
    }

    /// Replaces the object; it fails if somebody else has changed it since it was read.
    pub async fn replace<K: Kind>(&self, object: &K) -> Result<Arc<K>> {
        let key = ObjectKey::of(object);
        let api = K::api(self.client.clone(), &key.namespace);
        match api.replace(&key.name, &PostParams::default(), object).await {
            Ok(object) => Ok(self.absorb(object)),
            Err(error) => Err(self.missing(object, error)),
        }
    }

    /// Replaces the object's status; it fails if somebody else has changed the object since it was read.
    pub async fn replace_status<K: Kind>(&self, object: &K) -> Result<Arc<K>> {
        let key = ObjectKey::of(object);
        let api = K::api(self.client.clone(), &key.namespace);
        match api.replace_subresource("status", &key.name, &PostParams::default(), object).await {
            Ok(object) => Ok(self.absorb(object)),
            Err(error) => Err(self.missing(object, error)),
        }
    }

    /// A merge patch of the object as it was read: it fails if somebody else has changed it since.
    pub async fn patch<K: Kind>(&self, object: &K, patch: serde_json::Value) -> Result<Arc<K>> {
        self.patch_part(object, None, patch).await
    }

    /// A merge patch of the object's status, under the same condition.
    pub async fn patch_status<K: Kind>(&self, object: &K, patch: serde_json::Value) -> Result<Arc<K>> {
        self.patch_part(object, Some("status"), patch).await
    }

    async fn patch_part<K: Kind>(
        &self,
        object: &K,
        part: Option<&str>,
        mut patch: serde_json::Value,
    ) -> Result<Arc<K>> {
        // Both make the patch conditional: what was decided from this state must not fall on another.
        patch["metadata"]["uid"] = object.uid().into();
        patch["metadata"]["resourceVersion"] = object.resource_version().into();
        let key = ObjectKey::of(object);
        let api = K::api(self.client.clone(), &key.namespace);
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        let answer = match part {
            Some(part) => api.patch_subresource(part, &key.name, &params, &patch).await,
            None => api.patch(&key.name, &params, &patch).await,
        };
        match answer {
            Ok(object) => Ok(self.absorb(object)),
            Err(error) => Err(self.missing(object, error)),
        }
    }

    /// Deletes this very object; that it is gone already is fine.
    pub async fn delete<K: Kind>(&self, object: &K, mut params: DeleteParams) -> Result<()> {
        let key = ObjectKey::of(object);
        let uid = object.uid().unwrap_or_default();
        params.preconditions = Some(Preconditions { uid: Some(uid.clone()), resource_version: None });
        let api = K::api(self.client.clone(), &key.namespace);
        match api.delete(&key.name, &params).await {
            Ok(answer) => match answer.left() {
                // Still there: it waits for its grace or its finalizers. An answer without a pending deletion is
                // the last state of an object that is gone.
                Some(object) if pending(&object) => {
                    self.absorb(object);
                }
                _ => self.gone::<K>(&key, &uid),
            },
            Err(error) if is(&error, 404) => self.gone::<K>(&key, &uid),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether the object still exists and is not being deleted, as the API itself says. Before something is adopted the
    /// cache is not enough: an object that was orphaned by its owner's deletion must not be caught again by that owner.
    pub async fn stays<K: Kind>(&self, object: &K) -> Result<bool> {
        let key = ObjectKey::of(object);
        let live = K::api(self.client.clone(), &key.namespace).get_opt(&key.name).await?;
        Ok(live.is_some_and(|live| live.uid() == object.uid() && live.meta().deletion_timestamp.is_none()))
    }

    fn missing<K: Kind>(&self, object: &K, error: kube::Error) -> Error {
        if is(&error, 404) {
            self.gone::<K>(&ObjectKey::of(object), &object.uid().unwrap_or_default());
        }
        error.into()
    }
}

/// Whether a deleted object still waits for something.
fn pending<K: Resource>(object: &K) -> bool {
    let meta = object.meta();
    meta.deletion_timestamp.is_some()
        && (meta.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty())
            || meta.deletion_grace_period_seconds.is_some_and(|grace| grace > 0))
}

/// Whether the API answered with this code.
pub(crate) fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// Whether the write was refused because its namespace is being emptied (the cause that kube-apiserver gives).
fn ends_with_namespace(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

impl Error {
    /// Whether somebody else was faster (changed it, removed it, is ending its namespace): look again, quietly.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Error::Api(error) if is(error, 409) || is(error, 404) || ends_with_namespace(error))
    }
}

macro_rules! kind {
    ($kind:ty, $field:ident, namespaced, $wakes:path $(, $namespace:expr)?) => {
        impl Kind for $kind {
            fn api(client: Client, namespace: &str) -> Api<Self> {
                Api::namespaced(client, namespace)
            }
            kind!(@rest $field, $wakes);
            $(fn namespace() -> Option<&'static str> {
                Some($namespace)
            })?
        }
    };
    ($kind:ty, $field:ident, cluster, $wakes:path) => {
        impl Kind for $kind {
            fn api(client: Client, _: &str) -> Api<Self> {
                Api::all(client)
            }
            kind!(@rest $field, $wakes);
        }
    };
    (@rest $field:ident, $wakes:path) => {
        fn cache(caches: &Caches) -> &RwLock<Cache<Self>> {
            &caches.$field
        }
        fn everywhere(client: Client) -> Api<Self> {
            Api::all(client)
        }
        fn wakes(cluster: &Cluster, change: &Change<Self>) -> Vec<Wake> {
            $wakes(cluster, change)
        }
    };
}

kind!(Pod, pods, namespaced, crate::wake::pod);
kind!(Service, services, namespaced, crate::wake::service);
kind!(EndpointSlice, slices, namespaced, crate::wake::slice);
kind!(Endpoints, endpoints, namespaced, crate::wake::endpoints);
kind!(Node, nodes, cluster, crate::wake::node);
kind!(Lease, leases, namespaced, crate::wake::lease, "kube-node-lease");
kind!(Namespace, namespaces, cluster, crate::wake::namespace);
kind!(ReplicaSet, replica_sets, namespaced, crate::wake::replica_set);
kind!(Deployment, deployments, namespaced, crate::wake::deployment);
kind!(ServiceAccount, service_accounts, namespaced, crate::wake::service_account);
kind!(ConfigMap, config_maps, namespaced, crate::wake::config_map);
kind!(ClusterRole, cluster_roles, cluster, crate::wake::cluster_role);
kind!(ReplicationController, replication_controllers, namespaced, crate::wake::replication_controller);
kind!(StatefulSet, stateful_sets, namespaced, crate::wake::stateful_set);
kind!(DaemonSet, daemon_sets, namespaced, crate::wake::daemon_set);
kind!(ControllerRevision, revisions, namespaced, crate::wake::revision);
kind!(Job, jobs, namespaced, crate::wake::job);
kind!(CronJob, cron_jobs, namespaced, crate::wake::cron_job);
kind!(PodDisruptionBudget, budgets, namespaced, crate::wake::budget);
kind!(ResourceQuota, quotas, namespaced, crate::wake::quota);
kind!(IPAddress, addresses, cluster, crate::wake::address);
kind!(ServiceCIDR, service_cidrs, cluster, crate::wake::service_cidr);
