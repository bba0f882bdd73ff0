//! The kinds that CustomResourceDefinitions name: known by the store's watch, so that every server over a store serves the
//! same; established with the names that nobody else has; and gone after their objects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use portolan_api::custom::{Custom, names};
use portolan_api::kinds::definition::CUSTOM_RESOURCE_DEFINITION as DEFINITION;
use portolan_api::{Kind, Status, meta, walk};
use portolan_store::{Change, Error, Range, Revision, Store, WatchBatch};
use serde_json::Value;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cache::{Cache, prefix};
use crate::delete::Options;
use crate::follow::{self, Follower};
use crate::http::store_status;
use crate::object::stored;
use crate::openapi::Documents;
use crate::server::{Server, base};
use crate::write::{Part, Subject};

/// How long a request waits until what was defined before it is known.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long what failed is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// What is defined.
pub(crate) struct Definitions {
    prefix: String,
    store: Arc<dyn Store>,
    close: CancellationToken,
    state: RwLock<State>,
    revision: watch::Sender<u64>,
    /// Counts changes of definitions.
    news: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    all: BTreeMap<Arc<str>, Definition>,
    /// What is made of all of them for clients, until one changes.
    documents: Arc<OnceLock<Documents>>,
    revision: u64,
}

/// A definition, and what it serves.
struct Definition {
    value: Value,
    served: Vec<Arc<Served>>,
}

/// A version that is served.
struct Served {
    custom: Arc<Custom>,
    established: bool,
    /// Opened when somebody lists or watches.
    cache: OnceCell<Arc<Cache>>,
    close: CancellationToken,
    _end: DropGuard,
}

impl Definition {
    fn new(value: Value, old: Option<Definition>, close: &CancellationToken) -> Definition {
        if let Some(old) = old
            && alike(&old.value, &value)
        {
            return Definition { value, served: old.served };
        }
        let established = names::is(&value, "Established");
        let all =
            if established || names::is(&value, "NamesAccepted") { Custom::all(&value) } else { Vec::new() };
        let served = all.into_iter().map(|custom| {
            let close = close.child_token();
            let end = close.clone().drop_guard();
            let custom = Arc::new(custom);
            Arc::new(Served { custom, established, cache: OnceCell::new(), close, _end: end })
        });
        Definition { served: served.collect(), value }
    }
}

/// Whether two states of a definition serve the same.
fn alike(old: &Value, new: &Value) -> bool {
    let parts = ["metadata.uid", "spec", "status.acceptedNames"];
    let conditions = ["Established", "NamesAccepted", "Terminating"];
    parts.iter().all(|part| walk::at(old, part) == walk::at(new, part))
        && conditions.iter().all(|condition| names::is(old, condition) == names::is(new, condition))
}

impl Definitions {
    /// Reads what is defined and follows.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        close: CancellationToken,
    ) -> Result<Arc<Definitions>, Error> {
        let definitions = Arc::new(Definitions {
            prefix: prefix(&DEFINITION),
            store: store.clone(),
            close: close.clone(),
            state: RwLock::default(),
            revision: watch::Sender::new(0),
            news: watch::Sender::new(0),
        });
        definitions.load(&*store).await?;
        follow::start(definitions.clone(), store, close);
        Ok(definitions)
    }

    /// Waits until everything is known that was acknowledged before.
    pub(crate) async fn catch_up(&self) -> Result<(), Status> {
        self.reach(self.store.revision().await.map_err(store_status)?.0).await
    }

    /// Waits until everything up to a revision is known.
    pub(crate) async fn reach(&self, wanted: u64) -> Result<(), Status> {
        let mut seen = self.revision.subscribe();
        let reached = seen.wait_for(|seen| *seen >= wanted);
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Status::too_large_resource_version(wanted, self.seen().0)),
        }
    }

    fn served(&self) -> Vec<Arc<Served>> {
        self.state.read().all.values().flat_map(|definition| definition.served.iter().cloned()).collect()
    }

    fn look(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Served>> {
        let is = |kind: &Kind| (kind.group(), kind.version(), kind.plural()) == (group, version, plural);
        self.served().into_iter().find(|served| is(&Kind::Custom(served.custom.clone())))
    }

    /// The kind behind a path.
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Kind> {
        self.look(group, version, plural).map(|served| Kind::Custom(served.custom.clone()))
    }

    /// How many objects there are, as far as anybody has asked.
    pub(crate) fn count(&self, group: &str, version: &str, plural: &str) -> Option<usize> {
        self.look(group, version, plural)?.cache.get().map(|cache| cache.len())
    }

    /// All kinds that are established: group by group, the newest version first.
    pub(crate) fn established(&self) -> Vec<Kind> {
        let served = self.served().into_iter().filter(|served| served.established);
        let mut all: Vec<Kind> = served.map(|served| Kind::Custom(served.custom.clone())).collect();
        all.sort_by(|a, b| {
            let newest = |kind: &Kind| std::cmp::Reverse(portolan_api::custom::precedence(kind.version()));
            (a.group(), newest(a), a.plural()).cmp(&(b.group(), newest(b), b.plural()))
        });
        all
    }

    /// The documents about them.
    pub(crate) fn documents(&self) -> Arc<OnceLock<Documents>> {
        self.state.read().documents.clone()
    }

    /// The cache of a kind.
    pub(crate) async fn cache(&self, custom: &Arc<Custom>) -> Result<Arc<Cache>, Status> {
        let same = |served: &Arc<Served>| Arc::ptr_eq(&served.custom, custom);
        let kind = Kind::Custom(custom.clone());
        let found = self.served().into_iter().find(same);
        // Whoever holds a kind that has changed meanwhile goes on with the newer one.
        let found = found.or_else(|| self.look(kind.group(), kind.version(), kind.plural()));
        let served = found.ok_or_else(Status::no_such_path)?;
        let open = || async {
            let base = base(&*self.store).await.map_err(|error| Status::internal(error.to_string()))?;
            let kind = Kind::Custom(served.custom.clone());
            Cache::open(&kind, self.store.clone(), base, served.close.clone()).await.map_err(store_status)
        };
        served.cache.get_or_try_init(open).await.cloned()
    }

    /// The definitions as they are known.
    fn values(&self) -> Vec<Value> {
        self.state.read().all.values().map(|definition| definition.value.clone()).collect()
    }

    /// Makes news of what failed, after a pause.
    fn look_again(self: &Arc<Self>) {
        let definitions = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            if let Some(definitions) = definitions.upgrade() {
                definitions.news.send_modify(|count| *count += 1);
            }
        });
    }

    fn passed(&self, revision: u64, any: bool) {
        self.revision.send_if_modified(|seen| std::mem::replace(seen, (*seen).max(revision)) < revision);
        if any {
            self.news.send_modify(|count| *count += 1);
        }
    }
}

#[async_trait::async_trait]
impl Follower for Definitions {
    fn prefix(&self) -> &str {
        &self.prefix
    }

    fn seen(&self) -> Revision {
        Revision(self.state.read().revision)
    }

    fn apply(&self, batch: WatchBatch) {
        let any = !batch.changes.is_empty();
        let mut state = self.state.write();
        for change in batch.changes {
            match change {
                Change::Put { entry, .. } => {
                    let Some(value) = stored(&DEFINITION, &entry.value, entry.mod_revision.0) else {
                        tracing::error!(key = %entry.key, "the store holds something that is no definition");
                        continue;
                    };
                    let old = state.all.remove(&entry.key);
                    state.all.insert(entry.key, Definition::new(value, old, &self.close));
                }
                Change::Delete { key, .. } => drop(state.all.remove(&key)),
            }
        }
        if any {
            state.documents = Arc::default();
        }
        state.revision = state.revision.max(batch.revision.0);
        drop(state);
        self.passed(batch.revision.0, any);
    }

    async fn load(&self, store: &dyn Store) -> Result<(), Error> {
        let result = store.range(Range::prefix(&self.prefix)).await?;
        let mut state = self.state.write();
        let mut old = std::mem::take(&mut state.all);
        for entry in result.entries {
            if let Some(value) = stored(&DEFINITION, &entry.value, entry.mod_revision.0) {
                let before = old.remove(&entry.key);
                state.all.insert(entry.key, Definition::new(value, before, &self.close));
            }
        }
        state.documents = Arc::default();
        state.revision = result.revision.0;
        drop(state);
        self.passed(result.revision.0, true);
        Ok(())
    }
}

/// Sees to it in the background that definitions get their names, and that those that go are gone in the end: also those
/// that another server has taken in, or that were going when this one began.
pub(crate) fn keep(server: &Arc<Server>, close: CancellationToken) {
    let (weak, mut news) = (Arc::downgrade(server), server.definitions.news.subscribe());
    news.mark_changed();
    let keep = async move {
        let going: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        while news.changed().await.is_ok() {
            let Some(server) = weak.upgrade() else { return };
            if let Err(status) = server.settle_definitions().await {
                tracing::warn!(status.message, "giving definitions their names; again soon");
                server.definitions.look_again();
            }
            for value in server.definitions.values() {
                let uid = meta::uid(&value).to_owned();
                if is_going(&value) && going.lock().insert(uid.clone()) {
                    let (server, going) = (server.clone(), going.clone());
                    tokio::spawn(async move {
                        let removed = server.remove_defined(&value).await;
                        going.lock().remove(&uid);
                        if let Err(status) = removed {
                            tracing::warn!(status.message, "removing what a definition defines; again soon");
                            server.definitions.look_again();
                        }
                    });
                }
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = keep => {}
            () = close.cancelled() => {}
        }
    });
}

/// Whether a definition waits for its objects to go.
fn is_going(definition: &Value) -> bool {
    meta::deletion_timestamp(definition).is_some() && meta::finalizers(definition).contains(&names::CLEANUP)
}

impl Server {
    /// Gives each definition the names that it may have, and waits until what follows from it is served.
    pub(crate) async fn settle_definitions(&self) -> Result<(), Status> {
        self.definitions.catch_up().await?;
        for value in self.definitions.values() {
            if !names::is_unsettled(&value) || meta::deletion_timestamp(&value).is_some() {
                continue;
            }
            let make = |old: &Value| {
                let (group, name) = (walk::text(old, "spec.group"), meta::name(old));
                let mut others = self.definitions.values();
                others.retain(|other| walk::text(other, "spec.group") == group && meta::name(other) != name);
                Ok(names::accept(old, &others, &meta::rfc3339(Timestamp::now())))
            };
            self.change_definition(meta::name(&value), make).await?;
            // The next one's names depend on this one's.
            self.definitions.catch_up().await?;
        }
        Ok(())
    }

    /// Changes a definition in our own right; that it is gone is as good.
    async fn change_definition(
        &self,
        name: &str,
        make: impl Fn(&Value) -> Result<Value, Status>,
    ) -> Result<(), Status> {
        let subject = Subject { kind: &DEFINITION, namespace: None, name };
        match self.modify(subject, Part::Exact, false, make).await {
            Err(status) if status.code != 404 => Err(status),
            _ => Ok(()),
        }
    }

    /// Removes all objects of a definition that is going, and lets it go when the last one has.
    async fn remove_defined(&self, definition: &Value) -> Result<(), Status> {
        let name = meta::name(definition);
        let ended = |reason: &'static str, message: &'static str| {
            move |old: &Value| {
                let mut new = old.clone();
                names::set(
                    &mut new,
                    ["Terminating", "False", reason, message],
                    &meta::rfc3339(Timestamp::now()),
                );
                let mut finalizers = walk::list(old, "metadata.finalizers").to_vec();
                finalizers.retain(|finalizer| *finalizer != *names::CLEANUP);
                walk::set(&mut new, "metadata.finalizers", finalizers);
                Ok(new)
            }
        };
        let Some(custom) =
            Custom::all(definition).into_iter().next().filter(|_| names::is(definition, "Established"))
        else {
            return self
                .change_definition(name, ended("NeverEstablished", "resource was never established"))
                .await;
        };
        let begun = |old: &Value| {
            let mut new = old.clone();
            let why = "CustomResource deletion is in progress";
            let now = meta::rfc3339(Timestamp::now());
            names::set(&mut new, ["Terminating", "True", "InstanceDeletionInProgress", why], &now);
            Ok(new)
        };
        self.change_definition(name, begun).await?;
        let kind = Kind::Custom(Arc::new(custom));
        let close = CancellationToken::new();
        let _end = close.clone().drop_guard();
        // A cache of its own: that of the clients may come and go with changes of the definition.
        let cache = Cache::open(&kind, self.store.clone(), None, close).await.map_err(store_status)?;
        let mut news = cache.subscribe();
        loop {
            news.mark_unchanged();
            let objects = cache.snapshot("", |_| true).objects;
            if objects.is_empty() {
                // As the store has it, and not as memory does.
                let left =
                    self.store.range(Range::prefix(&prefix(&kind))).await.map_err(store_status)?.entries;
                if left.is_empty() {
                    break;
                }
            }
            for object in objects {
                if meta::deletion_timestamp(&object.value()).is_some() {
                    continue;
                }
                let namespace = Some(object.namespace(&kind)).filter(|namespace| !namespace.is_empty());
                let subject = Subject { kind: &kind, namespace, name: object.name() };
                match self.delete_object(subject, &Options::default()).await {
                    Err(status) if status.code != 404 => return Err(status),
                    _ => {}
                }
            }
            if news.changed().await.is_err() {
                return Ok(());
            }
        }
        self.change_definition(name, ended("InstanceDeletionCompleted", "removed all instances")).await
    }
}
