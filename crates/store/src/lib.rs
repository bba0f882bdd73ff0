//! One total order; a watcher from revision *r* sees each later change once, in order, or is told that it is too late.
//!
//! Absent on purpose: any knowledge of Kubernetes. Keys and values are bytes with names; what they mean is the server's.
//! The trait is shaped so that etcd v3 fits behind it unchanged: revisions are assigned by the engine, compares are
//! evaluated by the engine, and a watch is the engine's own. Memory above this trait is a cache, never the authority.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod embedded;
mod engine;
pub mod etcd;
mod ring;
mod schema;
mod watch;
mod writer;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;

/// The position of a change in the one order of the store. `0` is before every change; the first change is `1` or later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// One key as it stood at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, as in `/registry/services/default/web`.
    pub key: Arc<str>,
    /// The value that was put.
    pub value: Bytes,
    /// Revision of the put that made the key exist.
    pub create_revision: Revision,
    /// Revision of the last put.
    pub mod_revision: Revision,
}

/// A condition on one key, evaluated by the engine inside the transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(Arc<str>),
    /// The key exists and its last put had this revision.
    ModRevision(Arc<str>, Revision),
}

/// One write of a transaction. A key may be written once in a transaction (as in etcd).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Create or replace.
    Put(Arc<str>, Bytes),
    /// Remove; removing what does not exist changes nothing and makes no event.
    Delete(Arc<str>),
}

/// All compares hold and all writes happen at one revision, or nothing happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions; all must hold.
    pub compares: Vec<Compare>,
    /// The writes.
    pub ops: Vec<Op>,
}

impl Op {
    /// The key that is written.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Op::Put(key, _) | Op::Delete(key) => key,
        }
    }
}

impl Compare {
    /// The key that is looked at.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Compare::Absent(key) | Compare::ModRevision(key, _) => key,
        }
    }
}

impl Txn {
    /// Refuses what no engine can do: two writes of one key at one revision (etcd: "duplicate key given in txn request").
    pub fn check(&self) -> Result<()> {
        let mut keys: Vec<&str> = self.ops.iter().map(|op| &**op.key()).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::Invalid(format!(
                "key {:?} is written twice; write each key once in a transaction",
                pair[0]
            ))),
            None => Ok(()),
        }
    }
}

/// What became of a transaction. It is handed out only after the commit is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum TxnOutcome {
    /// The writes happened at this revision. (If no write changed anything, the revision of the store then.)
    Committed(Revision),
    /// A compare failed: for each compare of the transaction, in order, the key's entry as the engine saw it.
    Refused {
        /// The current entry of each compared key.
        current: Vec<Option<Entry>>,
        /// The revision of the store at that moment.
        revision: Revision,
    },
}

/// Keys in `[start, end)`, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// First key of the range.
    pub start: Arc<str>,
    /// First key behind the range.
    pub end: Arc<str>,
    /// At most so many entries; `0` means all.
    pub limit: usize,
    /// The revision to read at; `None` is the newest.
    pub revision: Option<Revision>,
}

impl Range {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &str) -> Range {
        let mut end = prefix.as_bytes().to_vec();
        // Keys are UTF-8 paths; their last byte is never 0xff, so adding one gives the first key behind the prefix.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        let end = String::from_utf8(end).expect("prefixes end in an ASCII character");
        Range { start: prefix.into(), end: end.into(), limit: 0, revision: None }
    }
}

/// The answer to a [`Range`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeResult {
    /// Entries in the order of their keys.
    pub entries: Vec<Entry>,
    /// The revision that was read.
    pub revision: Revision,
    /// There are more keys than `limit` allowed.
    pub more: bool,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was put; `previous` is what it replaced.
    Put {
        /// The entry now.
        entry: Entry,
        /// The entry before, if the key existed (and history still has it).
        previous: Option<Entry>,
    },
    /// The key was removed; `previous` is what stood there.
    Delete {
        /// The key.
        key: Arc<str>,
        /// The entry before (if history still has it).
        previous: Option<Entry>,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Change::Put { entry, .. } => &entry.key,
            Change::Delete { key, .. } => key,
        }
    }
}

/// All changes of one revision within the watched range, or news that there was none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// Every change up to and including this revision has now been delivered.
    pub revision: Revision,
    /// The changes at `revision`, in the order of their keys. Empty: progress only (revisions passed without a change
    /// in the range), sent at least when the watch has caught up and then whenever other keys change.
    pub changes: Vec<Change>,
}

/// When a store says no.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The revision asked for has been compacted away: list again.
    #[error("revision {asked} is too old: history begins at {oldest}")]
    Compacted {
        /// What was asked for.
        asked: u64,
        /// The oldest revision that can still be asked for.
        oldest: u64,
    },
    /// The revision asked for has not happened yet.
    #[error("revision {asked} is in the future: the store is at {current}")]
    Future {
        /// What was asked for.
        asked: u64,
        /// Where the store is.
        current: u64,
    },
    /// The watcher fell behind further than the store buffers: watch again from the last revision seen. (An engine that
    /// holds history lets a slow watcher read on from there instead, and says [`Error::Compacted`] once that is gone.)
    #[error("the watcher fell behind; watch again from the last revision seen")]
    Lagged,
    /// The engine failed (a full disk, a lost connection). The transaction may not have happened; nothing acknowledged is lost.
    #[error("the store failed: {0}")]
    Engine(String),
    /// The request can't be carried out by any engine; see [`Txn::check`].
    #[error("{0}")]
    Invalid(String),
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
}

/// The result of a call to a store.
pub type Result<T> = std::result::Result<T, Error>;

/// A stream of watch batches; after an `Err` it ends.
pub type WatchStream = BoxStream<'static, Result<WatchBatch>>;

/// An engine.
#[async_trait::async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest durable revision.
    async fn revision(&self) -> Result<Revision>;
    /// One key, at its newest.
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision)>;
    /// A range of keys at one revision.
    async fn range(&self, range: Range) -> Result<RangeResult>;
    /// Compare and write.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome>;
    /// Every change in `[start, end)` with a revision greater than `after`, once, in order.
    async fn watch(&self, start: &str, end: &str, after: Revision) -> Result<WatchStream>;
    /// Forget history before `revision`: reads and watches below it say [`Error::Compacted`]. What has been forgotten
    /// already stays so (no error); what has not happened yet is [`Error::Future`]. Space may be given back later.
    async fn compact(&self, revision: Revision) -> Result<()>;
}
