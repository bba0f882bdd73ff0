//! Watch, wake, reconcile: the loop around every controller.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
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
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Config;
use crate::cluster::{Caches, Cluster, Kind, Result};
use crate::queue::{Done, Queue};
use crate::recorder::Recorder;
use crate::wake::Wake;

/// The pause before a broken watch is begun again.
const WATCH_PAUSE: Duration = Duration::from_millis(200);

/// Runs every controller until `shutdown`, as an ordinary client of the API behind `client`.
///
/// Nothing is decided before every kind has been read once. What fails is tried again; an error is returned only for
/// a configuration that cannot work.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    crate::pod_cidr::check(&config.cluster_cidrs, config.node_prefix_v4, config.node_prefix_v6)?;
    let (recorder, events) = Recorder::new();
    let cluster = Arc::new(Cluster {
        addresses: crate::load_balancer::Addresses::new(config.pool.clone()),
        client: client.clone(),
        config,
        caches: Caches::default(),
        queue: Queue::new(),
        recorder,
        nodes: crate::nodes::Nodes::default(),
        garbage: crate::garbage::Graph::default(),
        kinds: crate::kinds::Kinds::default(),
        slice_triggers: crate::slices::Triggers::default(),
        endpoints_triggers: crate::slices::Triggers::default(),
    });
    let mut watches = JoinSet::new();
    watch::<Namespace>(&mut watches, &cluster);
    watch::<Node>(&mut watches, &cluster);
    watch::<Lease>(&mut watches, &cluster);
    watch::<Service>(&mut watches, &cluster);
    watch::<Pod>(&mut watches, &cluster);
    watch::<EndpointSlice>(&mut watches, &cluster);
    watch::<Endpoints>(&mut watches, &cluster);
    watch::<ReplicaSet>(&mut watches, &cluster);
    watch::<Deployment>(&mut watches, &cluster);
    watch::<ServiceAccount>(&mut watches, &cluster);
    watch::<ConfigMap>(&mut watches, &cluster);
    watch::<ClusterRole>(&mut watches, &cluster);
    watch::<ReplicationController>(&mut watches, &cluster);
    watch::<StatefulSet>(&mut watches, &cluster);
    watch::<DaemonSet>(&mut watches, &cluster);
    watch::<ControllerRevision>(&mut watches, &cluster);
    watch::<Job>(&mut watches, &cluster);
    watch::<CronJob>(&mut watches, &cluster);
    watch::<PodDisruptionBudget>(&mut watches, &cluster);
    watch::<ResourceQuota>(&mut watches, &cluster);
    watch::<IPAddress>(&mut watches, &cluster);
    watch::<ServiceCIDR>(&mut watches, &cluster);
    watches.spawn(crate::garbage::follow_other_kinds(cluster.clone()));
    watches.spawn(crate::recorder::write(client, events));
    tokio::select! {
        () = synced(&cluster) => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    crate::load_balancer::restore(&cluster);
    reconcile_all(&cluster, shutdown).await;
    watches.shutdown().await;
    Ok(())
}

/// Follows one kind for ever.
fn watch<K: Kind>(tasks: &mut JoinSet<()>, cluster: &Arc<Cluster>) {
    let cluster = cluster.clone();
    tasks.spawn(async move {
        let api: Api<K> = match K::namespace() {
            Some(namespace) => K::api(cluster.client.clone(), namespace),
            None => K::everywhere(cluster.client.clone()),
        };
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => cluster.observe(event),
                Err(error) => {
                    tracing::debug!(kind = %K::kind(&()), %error, "the watch broke; it begins again");
                    tokio::time::sleep(WATCH_PAUSE).await;
                }
            }
        }
    });
}

/// Waits until every kind has been read once.
async fn synced(cluster: &Cluster) {
    while !cluster.caches.synced() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn reconcile_all(cluster: &Arc<Cluster>, shutdown: CancellationToken) {
    let mut running = JoinSet::new();
    loop {
        let wake = tokio::select! {
            wake = cluster.queue.next(), if running.len() < cluster.config.workers.max(1) => wake,
            Some(_) = running.join_next() => continue,
            () = shutdown.cancelled() => break,
        };
        let cluster = cluster.clone();
        running.spawn(async move {
            // A defect in one object's reconcile must not stop the others.
            let result = std::panic::AssertUnwindSafe(reconcile(&cluster, &wake)).catch_unwind().await;
            let done = match result {
                Ok(Ok(done)) => done,
                Ok(Err(error)) if error.is_conflict() => {
                    tracing::debug!(?wake, %error, "somebody else was faster");
                    Done::Failed
                }
                Ok(Err(error)) => {
                    tracing::warn!(?wake, %error, "a reconcile failed; it will be tried again");
                    Done::Failed
                }
                Err(_) => {
                    tracing::error!(?wake, "a reconcile panicked; it will be tried again");
                    Done::Failed
                }
            };
            cluster.queue.done(&wake, done);
        });
    }
    // What has begun may end: each step is a complete write.
    let _ =
        tokio::time::timeout(Duration::from_secs(2), async { while running.join_next().await.is_some() {} })
            .await;
}

async fn reconcile(cluster: &Cluster, wake: &Wake) -> Result<Done> {
    match wake {
        Wake::Slices(service) => crate::slices::reconcile(cluster, service).await,
        Wake::Endpoints(service) => crate::endpoints::reconcile(cluster, service).await,
        Wake::LoadBalancer(service) => crate::load_balancer::reconcile(cluster, service).await,
        Wake::Deployment(deployment) => crate::deployment::reconcile(cluster, deployment).await,
        Wake::ReplicaSet(set) => crate::replicaset::reconcile(cluster, set).await,
        Wake::Replication(rc) => crate::replication::reconcile(cluster, rc).await,
        Wake::StatefulSet(set) => crate::stateful::reconcile(cluster, set).await,
        Wake::DaemonSet(set) => crate::daemon::reconcile(cluster, set).await,
        Wake::Job(job) => crate::job::reconcile(cluster, job).await,
        Wake::CronJob(cron) => crate::cron::reconcile(cluster, cron).await,
        Wake::Budget(budget) => crate::budget::reconcile(cluster, budget).await,
        Wake::Quota(quota) => crate::quota::reconcile(cluster, quota).await,
        Wake::Mirror(service) => crate::mirror::reconcile(cluster, service).await,
        Wake::Address(address) => crate::addresses::reconcile_address(cluster, address).await,
        Wake::ServiceCidr(name) => crate::addresses::reconcile_range(cluster, name).await,
        Wake::Schedule => crate::scheduler::reconcile(cluster).await,
        Wake::Node(node) => crate::nodes::reconcile(cluster, node).await,
        Wake::Namespace(namespace) => crate::namespaces::reconcile(cluster, namespace).await,
        Wake::Aggregation => crate::aggregation::reconcile(cluster).await,
        Wake::Garbage(uid) => crate::garbage::reconcile(cluster, uid).await,
    }
}

// === impl ===

impl Caches {
    fn synced(&self) -> bool {
        self.pods.read().synced()
            && self.services.read().synced()
            && self.slices.read().synced()
            && self.endpoints.read().synced()
            && self.nodes.read().synced()
            && self.leases.read().synced()
            && self.namespaces.read().synced()
            && self.replica_sets.read().synced()
            && self.deployments.read().synced()
            && self.service_accounts.read().synced()
            && self.config_maps.read().synced()
            && self.cluster_roles.read().synced()
            && self.replication_controllers.read().synced()
            && self.stateful_sets.read().synced()
            && self.daemon_sets.read().synced()
            && self.revisions.read().synced()
            && self.jobs.read().synced()
            && self.cron_jobs.read().synced()
            && self.budgets.read().synced()
            && self.quotas.read().synced()
            && self.addresses.read().synced()
            && self.service_cidrs.read().synced()
    }
}
