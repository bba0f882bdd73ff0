//! The agent: three watches, and the thread that forwards what they say.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use portolan_dataplane::Options;
use portolan_plan::model::FromOutside;
use portolan_plan::view::{NodePortAddresses, NodeView};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::dataplane::Dataplane;
use crate::forward::{Arrived, Forwarder, Status};
use crate::from_kube::{self, Names};
use crate::health::{self, Health};
use crate::kernel::Kernel;
use crate::lock::Lock;
use crate::observed::{Observed, Said, Update};
use crate::sysctl;

/// What an agent is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of the Node object it runs on.
    pub node_name: String,
    /// The ranges of cluster IPs.
    pub service_cidrs: Vec<IpNet>,
    /// The ranges of this node's pods; those of the Node object if empty.
    pub pod_cidrs: Vec<IpNet>,
    /// On which addresses NodePorts answer.
    pub node_port_addresses: NodePortAddresses,
    /// What becomes of connections to a ClusterIP from outside.
    pub cluster_ip_from_outside: FromOutside,
    /// Masquerade all connections to ClusterIPs, those of pods too.
    pub masquerade_all: bool,
    /// Whether to set the kernel settings that forwarding needs (`docs/reference/sysctls.md`).
    pub set_sysctls: bool,
    /// How often to see whether somebody took the tables away, to put them back.
    pub check_every: Duration,
    /// How the nftables engine works.
    pub engine: Options,
}

impl Config {
    /// The defaults for a node.
    pub fn new(node_name: impl Into<String>) -> Config {
        Config {
            node_name: node_name.into(),
            service_cidrs: Vec::new(),
            pod_cidrs: Vec::new(),
            node_port_addresses: NodePortAddresses::Primary,
            cluster_ip_from_outside: FromOutside::Refuse,
            masquerade_all: false,
            set_sysctls: true,
            check_every: Duration::from_secs(30), // as kube-proxy's syncPeriod
            engine: Options::default(),
        }
    }

    fn node_view(&self) -> NodeView {
        NodeView {
            node_ports: self.node_port_addresses.clone(),
            pod_cidrs: self.pod_cidrs.iter().copied().collect(),
            service_cidrs: self.service_cidrs.iter().copied().collect(),
            cluster_ip_from_outside: self.cluster_ip_from_outside,
            masquerade_all: self.masquerade_all,
            ..NodeView::named(&self.node_name)
        }
    }
}

/// Runs an agent on the network namespace of the calling thread until `shutdown`. Forwarding stays in place after it.
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    Agent::new(client, config).run(shutdown).await
}

/// An agent that is about to run.
pub struct Agent {
    client: kube::Client,
    config: Config,
    status: watch::Sender<Status>,
}

impl Agent {
    /// An agent for the cluster that the client reaches.
    pub fn new(client: kube::Client, config: Config) -> Agent {
        Agent { client, config, status: watch::Sender::default() }
    }

    /// How it fares, for as long as it runs.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Runs with the nftables engine, in the network namespace of the calling thread; an error where another agent does.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let lock = tokio::select! {
            lock = Lock::take(&self.config.engine.table, &self.config.node_name) => lock?,
            () = shutdown.cancelled() => return Ok(()),
        };
        if self.config.set_sysctls {
            for warning in sysctl::set_all() {
                tracing::warn!("{warning}");
            }
        }
        let options = self.config.engine.clone();
        let open = move || Kernel::open(options).context("opening the nftables engine");
        tokio::select! {
            ended = self.run_with(open, shutdown) => ended,
            () = lock.serve() => Ok(()), // for ever
        }
    }

    /// Runs with any dataplane; it is opened in the thread that will use it.
    pub async fn run_with<D: Dataplane>(
        self,
        open: impl FnOnce() -> anyhow::Result<D> + Send + 'static,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let Agent { client, config, status } = self;
        let (sender, updates) = mpsc::channel();
        // The dataplane tells into the same channel, but only for as long as there is an agent.
        let sender = Arc::new(sender);
        let teller = Arc::downgrade(&sender);
        let (opened, is_open) = tokio::sync::oneshot::channel();
        let (health, asked) = watch::channel(Health::default());
        let observed = Observed::new(config.node_view());
        let check_every = config.check_every;
        let all_addresses = config.node_port_addresses != NodePortAddresses::Primary;
        // A thread of its own, and not the runtime's pool: it lives as long as the agent, and begins in the network
        // namespace of its creator.
        let thread = std::thread::Builder::new().name("forward".into()).spawn(move || match open() {
            Ok(plane) => {
                let _ = opened.send(Ok(()));
                let addresses = all_addresses.then_some(local_addresses as fn() -> _);
                Forwarder::new(plane, observed, status, health, addresses, check_every).run(
                    &updates,
                    Box::new(move |told| {
                        if let Some(sender) = teller.upgrade() {
                            let _ = sender.send(Arrived::Told(told)); // nobody forwards any more
                        }
                    }),
                );
            }
            Err(error) => {
                let _ = opened.send(Err(error));
            }
        })?;
        is_open.await.context("the forwarding thread ended early")??;

        let services = watch_config().labels(from_kube::SERVICE_SELECTOR);
        let slices = watch_config().labels(from_kube::SLICE_SELECTOR);
        let node = watch_config().fields(&format!("metadata.name={}", config.node_name));
        let mut names = Names::default();
        let watches = async {
            tokio::join!(
                follow(Api::<Service>::all(client.clone()), services, &sender, |event| {
                    Update::Service(said(event, |o| &o.metadata, |o| from_kube::service(&o)))
                }),
                follow(Api::<EndpointSlice>::all(client.clone()), slices, &sender, |event| {
                    Update::Slice(said(event, |o| &o.metadata, |o| from_kube::slice(&o, &mut names)))
                }),
                follow(Api::<Node>::all(client.clone()), node, &sender, |event| {
                    Update::Node(said(event, |o| &o.metadata, |o| from_kube::node(&o)))
                }),
            )
        };
        tokio::select! {
            _ = watches => {} // the forwarding thread is gone
            () = health::serve(asked) => {} // likewise
            () = shutdown.cancelled() => {}
        }
        drop(sender);
        let ended = tokio::task::spawn_blocking(move || thread.join()).await?;
        match ended {
            Ok(()) if shutdown.is_cancelled() => Ok(()),
            Ok(()) => anyhow::bail!("the forwarding thread ended early"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

/// Sends on what a watch says, trimmed to what planning needs, until nobody listens. A watch that breaks goes on where it
/// was, or begins anew where that is too late.
async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    updates: &Sender<Arrived>,
    mut trim: impl FnMut(Event<K>) -> Update,
) where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let mut pause = PAUSE;
    loop {
        let mut events = std::pin::pin!(watcher(api.clone(), config.clone()));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    pause = PAUSE;
                    let arrived = Arrived::Update { at: Instant::now(), update: Box::new(trim(event)) };
                    if updates.send(arrived).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&K::DynamicType::default()), %error, ?pause, "the watch broke");
                    tokio::time::sleep(jittered(pause)).await;
                    pause = PAUSE_AT_MOST.min(pause * 2);
                    if is_too_late(&error) {
                        break;
                    }
                }
            }
        }
    }
}

/// The pause after a watch broke first; it doubles until one works.
const PAUSE: Duration = Duration::from_millis(100);
/// A server that was away is found again this soon: the node goes on forwarding to endpoints that may be gone.
const PAUSE_AT_MOST: Duration = Duration::from_secs(5);
/// A watch is begun again after this long, where it was; so a peer that vanished without a word is noticed in a minute
/// and not in five, which is what clients usually ask for.
const WATCH_SECONDS: u32 = 60;

/// A watch refused as too old with the HTTP status, instead of an event in its stream: kube's watcher would ask the same
/// again for ever.
fn is_too_late(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// Half to all of it, so that the nodes of a cluster don't all come back at once.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1000;
    pause / 2 + pause / 2 * random as u32 / 1000
}

fn said<K, T>(
    event: Event<K>,
    metadata: impl Fn(&K) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    trim: impl FnOnce(K) -> T,
) -> Said<T> {
    match event {
        Event::Init => Said::Begin,
        Event::InitDone => Said::End,
        Event::InitApply(object) | Event::Apply(object) => {
            Said::Present(from_kube::key(metadata(&object)), trim(object))
        }
        Event::Delete(object) => Said::Absent(from_kube::key(metadata(&object))),
    }
}

/// The machine's addresses of global scope.
fn local_addresses() -> BTreeSet<IpAddr> {
    const GLOBAL: u8 = 0; // RT_SCOPE_UNIVERSE, rtnetlink(7)
    match portolan_sys::link::Links::open().and_then(|mut links| links.addresses()) {
        Ok(addresses) => addresses.into_iter().filter(|a| a.scope == GLOBAL).map(|a| a.address).collect(),
        Err(error) => {
            tracing::warn!(%error, "the machine's addresses can't be read; NodePorts answer on the Node object's");
            BTreeSet::new()
        }
    }
}
