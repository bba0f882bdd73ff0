//! The agent: three watches, and the thread that forwards what they say.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use portolan_dataplane::{Engine, Options};
use portolan_heard::Heard;
use portolan_plan::model::FromOutside;
use portolan_plan::view::{ExternalIps, NodePortAddresses, NodeView};
use portolan_sys::nft::Nftables;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::beside::shadow::Shadow;
use crate::beside::{Compared, Role, read, take_over};
use crate::dataplane::Dataplane;
use crate::events::{self, Recorder, Severity};
use crate::forward::{Arrived, Forwarder, Status};
use crate::from_kube::{self, Names};
use crate::health::{self, Health};
use crate::kernel::Kernel;
use crate::kube_proxy;
use crate::localhost;
use crate::lock::Lock;
use crate::meters::Meters;
use crate::observed::{Observed, Said, Update};
use crate::proxy_health::Eligibility;
use crate::servers::{self, Opened, ReadCounters, Servers, Shown};
use crate::sysctl::{self, Conntrack, LOCALHOST, SETTINGS};

/// What an agent is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name of the Node object it runs on.
    pub node_name: String,
    /// The ranges of cluster IPs.
    pub service_cidrs: Vec<IpNet>,
    /// Whether to go by the API's ServiceCIDR objects instead, where it has any.
    pub watch_service_cidrs: bool,
    /// The ranges of this node's pods; those of the Node object if empty.
    pub pod_cidrs: Vec<IpNet>,
    /// On which addresses NodePorts answer.
    pub node_port_addresses: NodePortAddresses,
    /// Which external IPs are captured.
    pub external_ips: ExternalIps,
    /// What becomes of connections to a ClusterIP from outside.
    pub cluster_ip_from_outside: FromOutside,
    /// Masquerade all connections to ClusterIPs, those of pods too.
    pub masquerade_all: bool,
    /// Whether to set the kernel settings that forwarding needs (`docs/reference/sysctls.md`).
    pub set_sysctls: bool,
    /// How often to see whether somebody took the tables away, to put them back.
    pub check_every: Duration,
    /// How connections are to be tracked, where that was asked for.
    pub conntrack: Conntrack,
    /// Where the agent answers questions about itself.
    pub servers: Servers,
    /// What it is to a kube-proxy on the same node.
    pub role: Role,
    /// The fields of the KubeProxyConfiguration that this comes from, for `/configz`.
    pub from_file: serde_json::Map<String, serde_json::Value>,
    /// How the nftables engine works.
    pub engine: Options,
}

impl Config {
    /// The defaults for a node; it answers on no port.
    pub fn new(node_name: impl Into<String>) -> Config {
        Config {
            node_name: node_name.into(),
            service_cidrs: Vec::new(),
            watch_service_cidrs: false,
            pod_cidrs: Vec::new(),
            node_port_addresses: NodePortAddresses::primary(),
            external_ips: ExternalIps::Any,
            cluster_ip_from_outside: FromOutside::Refuse,
            masquerade_all: false,
            set_sysctls: true,
            check_every: Duration::from_secs(30), // as kube-proxy's syncPeriod
            conntrack: Conntrack::default(),
            servers: Servers::default(),
            role: Role::default(),
            from_file: serde_json::Map::new(),
            engine: Options::default(),
        }
    }

    fn node_view(&self) -> NodeView {
        NodeView {
            node_ports: self.node_port_addresses.clone(),
            external_ips: self.external_ips.clone(),
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
    opened: watch::Sender<Opened>,
    compared: watch::Sender<Compared>,
    counters: Option<ReadCounters>,
}

impl Agent {
    /// An agent for the cluster that the client reaches.
    pub fn new(client: kube::Client, config: Config) -> Agent {
        Agent {
            client,
            config,
            status: watch::Sender::default(),
            opened: watch::Sender::default(),
            compared: watch::Sender::default(),
            counters: None,
        }
    }

    /// How it fares, for as long as it runs.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// The addresses of its ports, as they are opened.
    pub fn opened(&self) -> watch::Receiver<Opened> {
        self.opened.subscribe()
    }

    /// What it sees of kube-proxy's tables, as a shadow.
    pub fn compared(&self) -> watch::Receiver<Compared> {
        self.compared.subscribe()
    }

    /// Runs with the nftables engine, in the network namespace of the calling thread; an error where another agent does. As a
    /// shadow it runs beside whoever forwards.
    pub async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        if self.config.role == Role::Shadow {
            let compared = self.compared.clone();
            return self
                .run_with(move || Shadow::open(compared).context("opening nf_tables"), shutdown)
                .await;
        }
        let lock = tokio::select! {
            lock = Lock::take(&self.config.engine.table, &self.config.node_name) => lock?,
            () = shutdown.cancelled() => return Ok(()),
        };
        if self.config.set_sysctls {
            for warning in sysctl::set_all(SETTINGS.to_vec()) {
                tracing::warn!("{warning}");
            }
        }
        let localhost = self.config.node_port_addresses.has_localhost();
        let localhost = localhost_node_ports(localhost, self.config.set_sysctls, self.status());
        self.counters = counters(&self.config.engine);
        let options = self.config.engine.clone();
        let conntrack = track(self.config.conntrack.clone(), self.status());
        let beside_kube_proxy = self.beside_kube_proxy()?;
        let forwarding =
            self.run_with(move || Kernel::open(options).context("opening the nftables engine"), shutdown);
        tokio::pin!(forwarding);
        let beside = async {
            tokio::join!(conntrack, localhost, beside_kube_proxy, lock.serve()); // the last for ever
        };
        tokio::select! {
            ended = &mut forwarding => ended,
            () = beside => Ok(()),
        }
    }

    /// Sees to what kube-proxy has in the kernel, or says that it is there.
    fn beside_kube_proxy(&self) -> anyhow::Result<impl Future<Output = ()> + use<>> {
        let mut nft = Nftables::open(8 << 20).context("opening nf_tables")?;
        let (servers, role) = (self.config.servers.clone(), self.config.role);
        let (status, opened) = (self.status(), self.opened());
        if role == Role::Instead
            && let Ok(Some(mode)) = read::present(&mut nft)
        {
            tracing::warn!(
                "kube-proxy's tables are here ({mode} mode), and what it says of a packet may come before what we say: begin with \
                 --take-over, or run `kube-proxy --cleanup`"
            );
        }
        Ok(async move {
            if role == Role::TakeOver {
                take_over::run(nft, servers, status, opened).await;
            }
        })
    }

    /// Runs with any dataplane; it is opened in the thread that will use it.
    pub async fn run_with<D: Dataplane>(
        self,
        open: impl FnOnce() -> anyhow::Result<D> + Send + 'static,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let Agent { client, config, status, opened, compared: _, counters } = self;
        let (sender, updates) = mpsc::channel();
        // The dataplane tells into the same channel, but only for as long as there is an agent.
        let sender = Arc::new(sender);
        let teller = Arc::downgrade(&sender);
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (health, asked) = watch::channel(Health::default());
        let meters = Arc::new(Meters::default());
        let mut observed = Observed::new(config.node_view());
        if config.watch_service_cidrs {
            observed = observed.with_service_cidrs();
        }
        let check_every = config.check_every;
        let all_addresses = config.node_port_addresses != NodePortAddresses::primary();
        let measured = meters.clone();
        // A thread of its own, and not the runtime's pool: it lives as long as the agent, and begins in the network
        // namespace of its creator.
        let thread = std::thread::Builder::new().name("forward".into()).spawn(move || match open() {
            Ok(plane) => {
                let _ = begun.send(Ok(()));
                let addresses = all_addresses.then_some(local_addresses as fn() -> _);
                Forwarder::new(plane, observed, status, health, measured, addresses, check_every).run(
                    &updates,
                    Box::new(move |told| {
                        if let Some(sender) = teller.upgrade() {
                            let _ = sender.send(Arrived::Told(told)); // nobody forwards any more
                        }
                    }),
                );
            }
            Err(error) => {
                let _ = begun.send(Err(error));
            }
        })?;
        has_begun.await.context("the forwarding thread ended early")??;

        let (recorder, waiting) = Recorder::new(&config.node_name);
        recorder.of_node(Severity::Normal, "Starting", "");
        // A future and not a task: it runs while this does. It never ends before the recorders.
        let looks_only = config.role == Role::Shadow;
        let mut events = std::pin::pin!(unless(looks_only, events::write(client.clone(), waiting)));
        let limit = 2 * check_every; // as kube-proxy has it (cmd/kube-proxy/app/server.go)
        let (eligible, is_eligible) = watch::channel(true);
        let stuck = {
            let meters = meters.clone();
            Arc::new(move || !meters.look(|r| r.healthy(limit)))
        };
        let shown = Shown {
            meters: meters.clone(),
            eligible: is_eligible,
            limit,
            config: kube_proxy::in_effect(&config),
            counters,
        };
        let everywhere = config.node_port_addresses.all;
        // The ports of health checks are the proxy's whose node it is.
        let checks = unless(looks_only, health::serve(asked, everywhere, stuck, recorder.clone()));
        let servers = servers::run(config.servers.clone(), shown, recorder, opened);
        let outcome = tokio::select! {
            () = watch_all(client, &config, Outlet { updates: sender, meters }, eligible) => Ok(()), // the forwarding thread is gone
            () = checks => Ok(()), // likewise
            failed = servers => failed.context("opening the agent's ports"),
            () = &mut events => Ok(()),
            () = shutdown.cancelled() => Ok(()),
        };
        if outcome.is_err() {
            // The last event says why.
            let _ = tokio::time::timeout(LAST_WORDS, events).await;
        }
        let ended = tokio::task::spawn_blocking(move || thread.join()).await?;
        outcome?;
        match ended {
            Ok(()) if shutdown.is_cancelled() => Ok(()),
            Ok(()) => anyhow::bail!("the forwarding thread ended early"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// The future, unless it is not to be: then it never ends.
async fn unless<T>(not: bool, future: impl Future<Output = T>) -> T {
    match not {
        true => std::future::pending().await,
        false => future.await,
    }
}

/// How long the end waits for an event that says why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Sets how connections are tracked, as far as was asked. Where connection tracking isn't loaded its settings aren't there
/// before our tables are, which load it.
async fn track(conntrack: Conntrack, mut status: watch::Receiver<Status>) {
    let settings = conntrack.settings(sysctl::cores());
    let mut failed = sysctl::set_all(settings);
    if failed.iter().any(|f| f.error.kind() == std::io::ErrorKind::NotFound) {
        if status.wait_for(|s| s.synced).await.is_err() {
            return;
        }
        failed = sysctl::set_all(failed.into_iter().map(|f| f.setting).collect());
    }
    for warning in failed {
        tracing::warn!("{warning}");
    }
}

/// Sees to what NodePorts on localhost need beside the tables, where they are wanted: once the tables are there, since these
/// guard the machine against everybody else whom the setting would let in. Gives back nothing before it is dropped.
async fn localhost_node_ports(wanted: bool, set_sysctls: bool, mut status: watch::Receiver<Status>) {
    if !wanted || status.wait_for(|s| s.synced).await.is_err() {
        return;
    }
    if set_sysctls {
        for warning in sysctl::set_all(LOCALHOST.to_vec()) {
            tracing::warn!("{warning}");
        }
    }
    match localhost::Routes::keep() {
        Ok(_routes) => std::future::pending().await,
        Err(error) => tracing::warn!(%error, "no routes to ::1 can be made, so NodePorts don't answer there"),
    }
}

/// Reads the counters of our tables by a socket of its own, in the network namespace of the calling thread.
fn counters(options: &Options) -> Option<ReadCounters> {
    let options = Options { batch_limit: 64 * 1024, ..options.clone() };
    match Engine::open(options) {
        Ok(engine) => {
            let engine = Mutex::new(engine);
            Some(Box::new(move || engine.lock().unwrap_or_else(PoisonError::into_inner).counters().ok()))
        }
        Err(error) => {
            tracing::warn!(%error, "the counters of dropped packets are not shown");
            None
        }
    }
}

/// Follows all kinds that the plan is made of, until nobody listens.
async fn watch_all(client: kube::Client, config: &Config, outlet: Outlet, eligible: watch::Sender<bool>) {
    let services = watch_config().labels(from_kube::SERVICE_SELECTOR);
    let slices = watch_config().labels(from_kube::SLICE_SELECTOR);
    let node = watch_config().fields(&format!("metadata.name={}", config.node_name));
    let started = SystemTime::now();
    let mut names = Names::default();
    let mut eligibility = Eligibility::default();
    let service_cidrs = async {
        match config.watch_service_cidrs {
            true => {
                let cidrs = Api::<Heard<ServiceCIDR>>::all(client.clone());
                // It sends this where the API has no such kind, or keeps it to itself: an empty list.
                let none = || Update::ServiceCidr(Said::End);
                let trim = |event: Event<Heard<ServiceCIDR>>| {
                    (Update::ServiceCidr(said(event, |o| from_kube::service_cidr(&o))), None)
                };
                follow(cidrs, watch_config(), &outlet, trim, Some(none)).await;
            }
            false => std::future::pending().await,
        }
    };
    let services = follow(
        Api::<Heard<Service>>::all(client.clone()),
        services,
        &outlet,
        |event| (Update::Service(said(event, |o| from_kube::service(&o))), None),
        None,
    );
    let slices = follow(
        Api::<Heard<EndpointSlice>>::all(client.clone()),
        slices,
        &outlet,
        |event| {
            let trigger = match &event {
                // What happened before we ran says nothing of us.
                Event::Apply(slice) => from_kube::trigger(&slice.0).filter(|at| *at >= started),
                _ => None,
            };
            (Update::Slice(said(event, |o| from_kube::slice(&o, &mut names))), trigger)
        },
        None,
    );
    let node = follow(
        Api::<Heard<Node>>::all(client.clone()),
        node,
        &outlet,
        |event| {
            let now = eligibility.note(of_object(&event));
            eligible.send_if_modified(|was| std::mem::replace(was, now) != now);
            (Update::Node(said(event, |o| from_kube::node(&o))), None)
        },
        None,
    );
    tokio::select! {
        () = services => {}
        () = slices => {}
        () = node => {}
        () = service_cidrs => {}
    }
}

/// Where updates go.
struct Outlet {
    updates: Arc<Sender<Arrived>>,
    meters: Arc<Meters>,
}

impl Outlet {
    /// Sends an update on; an error if nobody listens.
    fn send(&self, update: Update, trigger: Option<SystemTime>) -> Result<(), ()> {
        let at = Instant::now();
        self.meters.arrived(&update, at);
        self.updates.send(Arrived::Update { at, update: Box::new(update), trigger }).map_err(drop)
    }
}

fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

/// Sends on what a watch says, trimmed to what planning needs, until nobody listens. A watch that breaks goes on where it
/// was, or begins anew where that is too late.
///
/// `none` is what to send where the API doesn't have the kind, which is then asked for again now and then.
async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    outlet: &Outlet,
    mut trim: impl FnMut(Event<K>) -> (Update, Option<SystemTime>),
    none: Option<fn() -> Update>,
) where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let mut pause = PAUSE;
    // Once there was a whole list, a refusal is one that passes: what was known stays.
    let mut listed = false;
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    loop {
        let mut events = std::pin::pin!(watcher(api.clone(), config.clone()));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    // The beginning of a list is said before the server is asked for it.
                    if !matches!(event, Event::Init) {
                        pause = PAUSE;
                    }
                    listed |= matches!(event, Event::InitDone);
                    let (update, trigger) = trim(event);
                    if outlet.send(update, trigger).is_err() {
                        return;
                    }
                }
                Err(error) if none.is_some() && is_not_served(&error) => {
                    tracing::debug!(%kind, %error, "the API doesn't have the kind");
                    if none.filter(|_| !listed).is_some_and(|none| outlet.send(none(), None).is_err()) {
                        return;
                    }
                    tokio::time::sleep(jittered(PAUSE_UNSERVED)).await;
                }
                Err(error) => {
                    let too_late = is_too_late(&error);
                    let error = format!("{:#}", anyhow::Error::new(error));
                    tracing::warn!(%kind, error, ?pause, "the watch broke");
                    tokio::time::sleep(jittered(pause)).await;
                    pause = PAUSE_AT_MOST.min(pause * 2);
                    if too_late {
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
/// A server that doesn't have a kind may be replaced by one that has.
const PAUSE_UNSERVED: Duration = Duration::from_secs(60);
/// A watch is begun again after this long, where it was; so a peer that vanished without a word is noticed in a minute
/// and not in five, which is what clients usually ask for.
const WATCH_SECONDS: u32 = 60;

/// A watch refused as too old with the HTTP status, instead of an event in its stream: kube's watcher would ask the same
/// again for ever.
fn is_too_late(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

/// A kind that the API doesn't have, or that this client may not see.
fn is_not_served(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if matches!(status.code, 403 | 404))
}

/// Half to all of it, so that the nodes of a cluster don't all come back at once.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1000;
    pause / 2 + pause / 2 * random as u32 / 1000
}

fn said<K, T>(event: Event<Heard<K>>, trim: impl FnOnce(K) -> T) -> Said<T>
where
    Heard<K>: kube::Resource,
{
    match event {
        Event::Init => Said::Begin,
        Event::InitDone => Said::End,
        Event::InitApply(object) | Event::Apply(object) => {
            Said::Present(from_kube::key(kube::Resource::meta(&object)), trim(object.0))
        }
        Event::Delete(object) => Said::Absent(from_kube::key(kube::Resource::meta(&object))),
    }
}

/// What the event says of the object, without its trimming.
fn of_object<K>(event: &Event<Heard<K>>) -> Said<&K>
where
    Heard<K>: kube::Resource,
{
    match event {
        Event::Init => Said::Begin,
        Event::InitDone => Said::End,
        Event::InitApply(object) | Event::Apply(object) => {
            Said::Present(from_kube::key(kube::Resource::meta(object)), &object.0)
        }
        Event::Delete(object) => Said::Absent(from_kube::key(kube::Resource::meta(object))),
    }
}

/// The machine's addresses of global scope; `None` if they can't be read: those that were known stay.
fn local_addresses() -> Option<BTreeSet<IpAddr>> {
    const GLOBAL: u8 = 0; // RT_SCOPE_UNIVERSE, rtnetlink(7)
    match portolan_sys::link::Links::open().and_then(|mut links| links.addresses()) {
        Ok(addresses) => {
            Some(addresses.into_iter().filter(|a| a.scope == GLOBAL).map(|a| a.address).collect())
        }
        Err(error) => {
            tracing::warn!(%error, "the machine's addresses can't be read; NodePorts answer on those known before");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_away_is_asked_less_and_less_often() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let away = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Err::<http::Response<kube::client::Body>, _>(std::io::Error::other("away")))
        });
        let (updates, _listens) = mpsc::channel();
        let outlet = Outlet { updates: Arc::new(updates), meters: Arc::default() };
        let nodes = Api::<Heard<Node>>::all(kube::Client::new(away, "default"));
        let trim = |event: Event<Heard<Node>>| (Update::Node(said(event, |o| from_kube::node(&o))), None);
        let following = follow(nodes, watch_config(), &outlet, trim, None);
        let minute = tokio::time::timeout(Duration::from_secs(60), following).await;
        assert!(minute.is_err(), "it goes on");
        let asked = asked.load(Ordering::Relaxed);
        // Pauses of half to all of 0.1, 0.2, 0.4, … and then 5 seconds.
        assert!((15..=35).contains(&asked), "asked {asked} times in a minute");
    }
}
