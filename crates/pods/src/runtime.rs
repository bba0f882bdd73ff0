//! The pods of one node: who watches what, and which task looks after which pod.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::Client;
use kube::api::Api;
use kube::runtime::reflector::{self, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use parking_lot::Mutex;
use portolan_heard::Heard;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::address::Pool;
use crate::events::Recorder;
use crate::host_ports::{self, HostPorts};
use crate::image::Images;
use crate::protocol::{PodDir, read_json};
use crate::tokens::Tokens;
use crate::worker::{Network, Outcome, PodName, Worker};
use crate::{Config, endpoint, network, node, routes, sandbox};

/// How often routes are compared with the kernel's: a link that was cut and joined again has lost its own.
const ROUTES_INTERVAL: Duration = Duration::from_secs(2);

/// How long a watch waits before it asks again: a server that was killed is back within seconds, and so are we.
struct Patience(Duration);

fn patience() -> Patience {
    Patience(Duration::ZERO)
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0 = (self.0 * 2).clamp(Duration::from_millis(100), Duration::from_secs(2));
        Some(self.0)
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0 = Duration::ZERO;
    }
}

/// What all pods of a node share.
pub(crate) struct Runtime {
    pub client: Client,
    pub config: Config,
    pub images: Images,
    pub pool: Mutex<Pool>,
    pub host_ports: HostPorts,
    pub services: Store<Heard<Service>>,
    pub recorder: Recorder,
    pub tokens: Tokens,
    /// What containers wait for that can't be started: the reason, by the pod's uid and the container's name.
    pub waiting: Waiting,
}

/// See [`Runtime::waiting`].
pub(crate) type Waiting = Arc<Mutex<BTreeMap<(String, String), String>>>;

/// Where a node keeps its pods.
fn pods_dir(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("pods")
}

/// The pods that a node has on its disk, by uid.
pub(crate) fn pods_on_disk(data_dir: &Path) -> io::Result<BTreeMap<String, PodDir>> {
    let mut pods = BTreeMap::new();
    let entries = match fs::read_dir(pods_dir(data_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(pods),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if let (true, Ok(uid)) = (entry.file_type()?.is_dir(), entry.file_name().into_string()) {
            pods.insert(uid, PodDir(entry.path()));
        }
    }
    Ok(pods)
}

/// Kills a pod and removes everything of it.
fn remove_pod(uid: &str, dir: &PodDir) -> io::Result<()> {
    if let Some(process) = sandbox::find(dir) {
        sandbox::kill_and_wait(&process.pidfd, sandbox::KILL_PATIENCE)?;
    }
    network::disconnect(uid)?;
    fs::remove_dir_all(&dir.0)
}

/// See [`crate::teardown`].
pub(crate) fn teardown(data_dir: &Path) -> io::Result<()> {
    let mut first_error = Ok(());
    for (uid, dir) in pods_on_disk(data_dir)? {
        if let Err(error) = remove_pod(&uid, &dir) {
            first_error = first_error.and(Err(error));
        }
    }
    network::disconnect_all_but(&[])?;
    host_ports::remove()?;
    // Its own range leads nowhere, and others' ranges to other nodes, only while the node runs.
    routes::apply(&BTreeMap::new())?;
    first_error
}

impl Runtime {
    pub fn dir(&self, uid: &str) -> PodDir {
        PodDir(pods_dir(&self.config.data_dir).join(uid))
    }
}

/// See [`crate::run`].
pub(crate) async fn run(client: Client, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    fs::create_dir_all(pods_dir(&config.data_dir))?;
    // Two that look after the same pods would end each other's.
    let lock = fs::File::create(config.data_dir.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        anyhow::anyhow!(
            "{} is in use by another node; give each its own directory",
            config.data_dir.display()
        )
    })?;
    // A supervisor's first process ends at once and leaves the pod's process 1 to the nearest subreaper.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))?;
    let identity = endpoint::Identity::make(&config)?;
    let endpoint = endpoint::Endpoint::bind(&config, &identity).await?;
    let machine = node::Machine::read();

    let mut pool = Pool::default();
    let mut opened = Vec::new();
    let on_disk = pods_on_disk(&config.data_dir)?;
    for (uid, dir) in &on_disk {
        if let Ok(Some(network)) = read_json::<Network>(&dir.network()) {
            pool.claim(uid, network.addresses);
            opened.push((uid.clone(), network.host_ports));
        }
    }
    let host_ports = HostPorts::new(&config.node_addresses, opened);
    network::disconnect_all_but(&on_disk.keys().cloned().collect::<Vec<_>>())?;

    let (services, writer) = reflector::store();
    let recorder = Recorder::start(client.clone(), config.node_name.clone());
    let images = Images::new(&config.images, config.allow_host_image).map_err(anyhow::Error::msg)?;
    tracing::debug!(images = ?images.names(), "pods of this node can use");
    let runtime = Arc::new(Runtime {
        client: client.clone(),
        config,
        images,
        pool: Mutex::new(pool),
        host_ports,
        services,
        recorder,
        tokens: Tokens::default(),
        waiting: Waiting::default(),
    });

    let mut tasks = JoinSet::new();
    tasks.spawn(endpoint.serve(runtime.config.clone(), runtime.waiting.clone()));
    let all_services = watch_objects(Api::<Heard<Service>>::all(client.clone()), watcher::Config::default());
    tasks.spawn(async move {
        let stream = reflector::reflector(writer, all_services.backoff(patience()));
        stream.for_each(|_| async {}).await;
    });
    let (ranges_known, mut ranges) = watch::channel(false);
    tasks.spawn(keep_node(runtime.clone(), machine, identity.fingerprint.clone(), ranges_known));

    let work = async {
        // Addresses come from the node's ranges, which the control plane gives it.
        let _ = ranges.wait_for(|known| *known).await;
        let synced = tokio::time::timeout(Duration::from_secs(10), runtime.services.wait_until_ready()).await;
        if synced.is_err() {
            tracing::warn!(
                "Services are not known yet; containers that start now don't see them in their environment"
            );
        }
        look_after(runtime.clone(), shutdown.clone()).await;
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
    tasks.shutdown().await;
    Ok(())
}

/// Registers the node, keeps its object, its lease and the routes to other nodes as they should be.
async fn keep_node(
    runtime: Arc<Runtime>,
    machine: node::Machine,
    fingerprint: String,
    ranges_known: watch::Sender<bool>,
) {
    let (client, config) = (&runtime.client, &runtime.config);
    let registered = loop {
        match tokio::time::timeout(Duration::from_secs(10), node::register(client, config, &fingerprint))
            .await
        {
            Ok(Ok(node)) => break node,
            Ok(Err(error)) => tracing::warn!(%error, "the node is not registered yet"),
            Err(_) => tracing::warn!("the node is not registered yet: the API doesn't answer"),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    tracing::info!(node = config.node_name, "registered");
    let uid = registered.metadata.uid.clone().unwrap_or_default();
    let mut lease = JoinSet::new();
    lease.spawn(node::keep_lease(client.clone(), config.clone(), uid));
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    let mut listed: BTreeMap<String, Node> = BTreeMap::new();
    let mut synced = false;
    let stream =
        watch_objects(Api::<Node>::all(client.clone()), watcher::Config::default()).backoff(patience());
    let mut stream = pin!(stream);
    let mut interval = tokio::time::interval(ROUTES_INTERVAL);
    let (mut said, mut host_ports_said) = (Vec::new(), None);
    nodes.insert(config.node_name.clone(), registered);
    loop {
        if let Some(own) = nodes.get(&config.node_name) {
            let ranges = routes::pod_ranges(own);
            if !ranges.is_empty() {
                let mut pool = runtime.pool.lock();
                if pool.ranges() != ranges {
                    tracing::info!(?ranges, "pods get addresses of");
                    pool.set_ranges(ranges);
                }
                drop(pool);
                ranges_known.send_replace(true);
            }
            let refreshed = node::refresh(client, config, &machine, own);
            match tokio::time::timeout(Duration::from_secs(5), refreshed).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the node's status was not written"),
                Err(_) => tracing::warn!("the node's status was not written: the API doesn't answer"),
            }
        } else if synced {
            // Somebody has deleted it: a node that runs says so again.
            let again = node::register(client, config, &fingerprint);
            if let Ok(Ok(own)) = tokio::time::timeout(Duration::from_secs(5), again).await {
                nodes.insert(config.node_name.clone(), own);
                continue;
            }
        }
        let owner = runtime.clone();
        let healed =
            tokio::task::spawn_blocking(move || owner.host_ports.heal().err().map(|error| error.to_string()));
        if let Ok(problem) = healed.await
            && problem != host_ports_said
        {
            if let Some(problem) = &problem {
                tracing::warn!(%problem, "host ports were not compared; tried again every {} s", ROUTES_INTERVAL.as_secs());
            }
            host_ports_said = problem;
        }
        if synced {
            let wanted = routes::wanted(&config.node_name, nodes.values());
            match tokio::task::spawn_blocking(move || routes::apply(&wanted)).await {
                Ok(Ok(problems)) => {
                    if problems != said {
                        for problem in &problems {
                            tracing::warn!("{problem}; tried again every {} s", ROUTES_INTERVAL.as_secs());
                        }
                        said = problems;
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "routes were not compared"),
                Err(error) => tracing::warn!(%error, "routes were not compared"),
            }
        }
        tokio::select! {
            event = stream.next() => match event {
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(node))) => {
                    listed.insert(node.metadata.name.clone().unwrap_or_default(), node);
                }
                Some(Ok(Event::InitDone)) => {
                    nodes = std::mem::take(&mut listed);
                    synced = true;
                }
                Some(Ok(Event::Apply(node))) => {
                    nodes.insert(node.metadata.name.clone().unwrap_or_default(), node);
                }
                Some(Ok(Event::Delete(node))) => {
                    nodes.remove(node.metadata.name.as_deref().unwrap_or_default());
                }
                Some(Err(error)) => tracing::debug!(%error, "watching Nodes"),
                None => return,
            },
            _ = interval.tick() => {}
        }
    }
}

/// Watches the pods of this node and keeps one task for each.
async fn look_after(runtime: Arc<Runtime>, shutdown: CancellationToken) {
    let mut workers: HashMap<String, watch::Sender<Option<Arc<Pod>>>> = HashMap::new();
    let mut tasks: JoinSet<(String, Option<Outcome>)> = JoinSet::new();
    let begin =
        |tasks: &mut JoinSet<(String, Option<Outcome>)>, uid: String, pod: Arc<Pod>, wait: Duration| {
            let (sender, receiver) = watch::channel(Some(pod.clone()));
            let worker = Worker::new(runtime.clone(), pod, receiver, shutdown.clone());
            tasks.spawn(async move {
                tokio::time::sleep(wait).await;
                (uid, AssertUnwindSafe(worker.run()).catch_unwind().await.ok())
            });
            sender
        };
    let fields = format!("spec.nodeName={}", runtime.config.node_name);
    let stream =
        watch_objects(Api::<Pod>::all(runtime.client.clone()), watcher::Config::default().fields(&fields));
    let mut stream = pin!(stream.backoff(patience()));
    let mut listed: Option<HashSet<String>> = None;
    let mut first = true;
    loop {
        tokio::select! {
            event = stream.next() => {
                let mut see = |pod: Pod| {
                    let uid = pod.metadata.uid.clone().unwrap_or_default();
                    let pod = Arc::new(pod);
                    if let Some(worker) = workers.get(&uid) {
                        worker.send_replace(Some(pod));
                    } else if pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&runtime.config.node_name) {
                        let worker = begin(&mut tasks, uid.clone(), pod, Duration::ZERO);
                        workers.insert(uid, worker);
                    }
                };
                match event {
                    Some(Ok(Event::Init)) => listed = Some(HashSet::new()),
                    Some(Ok(Event::InitApply(pod))) => {
                        if let (Some(listed), Some(uid)) = (&mut listed, &pod.metadata.uid) {
                            listed.insert(uid.clone());
                        }
                        see(pod);
                    }
                    Some(Ok(Event::InitDone)) => {
                        let listed = listed.take().unwrap_or_default();
                        for (uid, worker) in &workers {
                            if !listed.contains(uid) {
                                worker.send_replace(None);
                            }
                        }
                        if std::mem::take(&mut first) {
                            remove_orphans(&runtime, &listed).await;
                        }
                    }
                    Some(Ok(Event::Apply(pod))) => see(pod),
                    Some(Ok(Event::Delete(pod))) => {
                        if let Some(worker) = pod.metadata.uid.as_ref().and_then(|uid| workers.get(uid)) {
                            worker.send_replace(None);
                        }
                    }
                    Some(Err(error)) => tracing::debug!(%error, "watching pods"),
                    None => return,
                }
            }
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => match ended {
                Ok((uid, Some(_))) => drop(workers.remove(&uid)),
                // A defect of ours; the pod runs on. Begin again with what was last seen, but not at full speed.
                Ok((uid, None)) => {
                    tracing::error!(uid, "a pod's task failed and begins again");
                    let last = workers.remove(&uid).and_then(|worker| worker.borrow().clone());
                    if let Some(pod) = last {
                        let worker = begin(&mut tasks, uid.clone(), pod, Duration::from_secs(1));
                        workers.insert(uid, worker);
                    }
                }
                Err(error) => tracing::error!(%error, "a pod's task failed"),
            },
            () = shutdown.cancelled() => break,
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Removes pods that are on the disk but no longer in the API.
async fn remove_orphans(runtime: &Arc<Runtime>, known: &HashSet<String>) {
    let orphans = match pods_on_disk(&runtime.config.data_dir) {
        Ok(pods) => pods.into_iter().filter(|(uid, _)| !known.contains(uid)),
        Err(error) => {
            tracing::warn!(%error, "the pods on disk can't be listed");
            return;
        }
    };
    for (uid, dir) in orphans {
        let name = read_json::<PodName>(&dir.pod()).ok().flatten();
        tracing::info!(?name, uid, "is no longer in the API: removed");
        let (own, runtime) = (uid.clone(), runtime.clone());
        tokio::task::spawn_blocking(move || {
            match runtime.host_ports.close(&own).and_then(|()| remove_pod(&own, &dir)) {
                Ok(()) => runtime.pool.lock().release(&own),
                Err(error) => tracing::warn!(%error, uid = own, "was not removed"),
            }
        });
    }
}
