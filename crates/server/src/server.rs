//! The server: what it holds, and one request through it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use portolan_api::service::ServiceConfig;
use portolan_api::{KINDS, Kind, Status};
use portolan_store::{Range, Revision, Store};
use tokio_util::sync::CancellationToken;

use crate::accounts::Accounts;
use crate::auth::{Identity, Tokens};
use crate::body::{ServerBody, StreamError};
use crate::cache::{Cache, Seen};
use crate::certificate::Peer;
use crate::claims::Claims;
use crate::config::{Config, Error, Result};
use crate::definitions::{self, Definitions};
use crate::feed::Feed;
use crate::follow;
use crate::http::Caller;
use crate::inflight::Inflight;
use crate::metrics::Meters;
use crate::nodes::Nodes;
use crate::{audit, bootstrap, compact, expire, rbac};

/// The Kubernetes API over a store.
pub struct Server {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) claims: Arc<Claims>,
    pub(crate) services: ServiceConfig,
    caches: Vec<Arc<Cache>>,
    namespaces: &'static Kind,
    pub(crate) definitions: Arc<Definitions>,
    pub(crate) tokens: Tokens,
    pub(crate) accounts: Accounts,
    pub(crate) rbac: Arc<rbac::Index>,
    pub(crate) nodes: Nodes,
    pub(crate) audit: Option<audit::Log>,
    pub(crate) inflight: Inflight,
    pub(crate) meters: Meters,
    close: CancellationToken,
}

/// How long the caches may take at the start to replay what the store remembers, before requests are taken all the same.
const REPLAY: Duration = Duration::from_secs(30);
/// So many revisions of the past are replayed at most: four times what a cache keeps of one kind.
const REPLAYED: u64 = 32_768;

impl Server {
    /// Opens a server over a store: fills its caches and makes the objects that every cluster has.
    pub async fn open(config: Config, store: Arc<dyn Store>) -> Result<Arc<Server>> {
        let namespaces = portolan_api::find("", "v1", "namespaces").ok_or_else(|| Error::Bootstrap {
            what: "namespaces".into(),
            why: "the kind is not served".into(),
        })?;
        let close = CancellationToken::new();
        let stop = close.clone().drop_guard();
        let base = base(&*store).await?;
        let seen = Arc::<Seen>::default();
        let mut caches = Vec::with_capacity(KINDS.len());
        for kind in KINDS {
            caches.push(Cache::read(kind, &*store, base, seen.clone(), close.clone()).await?);
        }
        follow::start(Arc::new(Feed::new(caches.clone(), seen)), store.clone(), close.clone());
        // Who asks in the meantime would be told to come back later.
        let newest = store.revision().await?.0;
        for cache in &caches {
            if !cache.reach(newest, REPLAY).await {
                tracing::warn!(kind = cache.kind.kind(), "the cache is still behind the store");
                break;
            }
        }
        let definitions = Definitions::open(store.clone(), close.clone()).await?;
        let claims = Claims::open(store.clone(), close.clone()).await?;
        let rbac = rbac::Index::open(store.clone(), close.clone()).await?;
        let nodes = Nodes::open(store.clone(), close.clone()).await?;
        let accounts = Accounts::new(&config)
            .map_err(|error| Error::Config { field: "signing_key", problem: error.to_string() })?;
        let audit = config.audit_log.as_ref().map(audit::Log::open).transpose().map_err(|error| {
            let path =
                config.audit_log.as_ref().map(|log| log.path.display().to_string()).unwrap_or_default();
            Error::Config { field: "audit_log", problem: format!("opening {path}: {error}") }
        })?;
        let services = ServiceConfig {
            cidrs: config.service_cidrs.clone(),
            ready: Vec::new(),
            node_ports: config.node_ports.first..=config.node_ports.last,
        };
        if let Some(events) = caches.iter().find(|cache| cache.kind.kind() == "Event") {
            tokio::spawn(expire::run(events.clone(), store.clone(), close.clone()));
        }
        let tokens = Tokens::new(config.tokens.iter().cloned());
        tokio::spawn(compact::run(store.clone(), config.history, close.clone()));
        let server = Arc::new(Server {
            config,
            store,
            claims,
            services,
            caches,
            namespaces,
            definitions,
            tokens,
            accounts,
            rbac,
            nodes,
            audit,
            inflight: Inflight::default(),
            meters: Meters::default(),
            close,
        });
        bootstrap::run(&server).await?;
        definitions::keep(&server, server.close.clone());
        stop.disarm();
        Ok(server)
    }

    /// The kind behind a path. What isn't known is looked for with everything that was acknowledged before.
    pub(crate) async fn kind(
        &self,
        group: &str,
        version: &str,
        plural: &str,
    ) -> std::result::Result<Option<Kind>, Status> {
        if let Some(kind) = portolan_api::find(group, version, plural) {
            return Ok(Some(kind.clone()));
        }
        // No custom kind is of a group without a dot.
        if !group.contains('.') {
            return Ok(None);
        }
        if let Some(kind) = self.definitions.find(group, version, plural) {
            return Ok(Some(kind));
        }
        self.definitions.catch_up().await?;
        Ok(self.definitions.find(group, version, plural))
    }

    /// All kinds that are served, in the order in which they are named.
    pub(crate) async fn kinds(&self) -> Vec<Kind> {
        // Without the store there is still what is known.
        if let Err(status) = self.definitions.catch_up().await {
            tracing::debug!(status.message, "naming the kinds that are known");
        }
        let listed = KINDS.iter().map(|kind| (*kind).clone());
        listed.chain(self.definitions.established()).collect()
    }

    /// The cache of any kind.
    pub(crate) async fn cache_of(&self, kind: &Kind) -> std::result::Result<Arc<Cache>, Status> {
        match kind.custom() {
            None => Ok(self.cache(kind).clone()),
            Some(custom) => self.definitions.cache(custom).await,
        }
    }

    /// The cache of a kind of the table.
    pub(crate) fn cache(&self, kind: &Kind) -> &Arc<Cache> {
        let found = self.caches.iter().find(|cache| cache.kind == *kind);
        found.expect("every kind of the table has a cache from the start")
    }

    /// How many objects of each kind there are.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&Kind, usize)> {
        self.caches.iter().map(|cache| (&cache.kind, cache.len()))
    }

    /// The kind `Namespace`.
    pub(crate) fn namespaces(&self) -> &'static Kind {
        self.namespaces
    }

    /// A client's way in without a socket, under a name of its own: `kube::Client::new(server.service(id), "default")`.
    pub fn service(self: &Arc<Self>, identity: Identity) -> InProcess {
        InProcess {
            server: self.clone(),
            caller: Caller { peer: Peer::InProcess(identity), address: None, drain: self.close.clone() },
        }
    }

    /// The same for somebody who shows credentials in each request, or none.
    pub fn stranger(self: &Arc<Self>) -> InProcess {
        InProcess {
            server: self.clone(),
            caller: Caller { peer: Peer::Unknown, address: None, drain: self.close.clone() },
        }
    }

    /// Ends all watches and the background work. Requests are still answered.
    pub fn close(&self) {
        self.close.cancel();
    }
}

/// Where the caches begin, to replay what came since, so that watchers resume across a restart: the oldest revision that the store
/// still knows. A watcher that is very far behind begins anew instead, so that a start takes no longer for a busy past.
pub(crate) async fn base(store: &dyn Store) -> Result<Option<Revision>> {
    let far = Revision(store.revision().await?.0.saturating_sub(REPLAYED).max(1));
    let first = Range { limit: 1, revision: Some(far), ..Range::prefix("/registry/") };
    match store.range(first).await {
        Ok(_) => Ok(Some(far)),
        Err(portolan_store::Error::Compacted { oldest, .. }) => Ok(Some(Revision(oldest))),
        Err(portolan_store::Error::Future { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close.cancel();
    }
}

/// The server as a `tower` service, for clients in the same process.
#[derive(Clone)]
pub struct InProcess {
    server: Arc<Server>,
    caller: Caller,
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StreamError>,
{
    type Response = Response<ServerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = std::result::Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (server, caller) = (self.server.clone(), self.caller.clone());
        Box::pin(async move { Ok(server.answer(caller, request).await) })
    }
}
