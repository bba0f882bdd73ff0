//! etcd as the engine: revisions, compares and history are etcd's own.
//!
//! One watch of everything feeds the ring that watchers read from, so that a thousand watchers are one stream to etcd, and every
//! watcher hears of every revision. Who is behind the ring reads from etcd's history until it has caught up. Keys of others in the
//! same etcd are seen and belong to no range that anybody asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ring::{Changes, Ring};
use crate::schema::Replay;
use crate::watch::History;
use crate::{
    Change, Entry, Error, Range, RangeResult, Result, Revision, Store, Txn, TxnOutcome, WatchBatch,
    WatchStream,
};

mod grpc;
mod message;
#[cfg(test)]
mod tests;

pub use grpc::Tls;
use grpc::{Channel, Failure, Stream};
use message::{Concluded, Ranged, Watched};

/// Where etcd is, and how much is kept beside it.
#[derive(Clone, Debug)]
pub struct Options {
    /// `http://HOST:PORT` or `https://HOST:PORT` of each member.
    pub endpoints: Vec<String>,
    /// Files for TLS.
    pub tls: Tls,
    /// So many of the newest revisions stay in memory for watchers; who is further behind reads from etcd.
    pub watch_buffer: usize,
    /// And no more of them than this many bytes.
    pub watch_buffer_bytes: usize,
}

impl Options {
    /// The usual settings for these endpoints.
    pub fn new(endpoints: Vec<String>) -> Options {
        Options { endpoints, tls: Tls::default(), watch_buffer: 16 << 10, watch_buffer_bytes: 16 << 20 }
    }
}

/// As many entries are read at a time, so that an answer stays small.
const PAGE: usize = 1000;
/// A watcher that catches up takes so many revisions of history at a time.
const REPLAY: usize = 4096;
/// While it waits to hear that it has caught up, it asks so often: etcd answers only once it has sent everything.
const ASK: Duration = Duration::from_millis(20);
/// The time between attempts to watch again.
const PAUSE: Duration = Duration::from_millis(100);
/// All keys: etcd takes the end `\0` for "no end".
const ALL: (&[u8], &[u8]) = (b"\0", b"\0");

struct Shared {
    channel: Channel,
    ring: Ring,
    /// The highest revision that was forgotten here. Others may have forgotten more.
    floor: AtomicU64,
}

/// A store in an etcd, which others may use at the same time.
pub struct Etcd {
    shared: Arc<Shared>,
    tail: tokio::task::JoinHandle<()>,
}

impl Etcd {
    /// Connects, and begins to follow.
    pub async fn open(options: Options) -> Result<Arc<Etcd>> {
        let channel = Channel::new(&options.endpoints, &options.tls)?;
        let revision = revision(&channel).await?;
        let ring = Ring::new(revision, options.watch_buffer, options.watch_buffer_bytes);
        let shared = Arc::new(Shared { channel, ring, floor: AtomicU64::new(0) });
        let tail = tokio::spawn(follow(shared.clone()));
        Ok(Arc::new(Etcd { shared, tail }))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.tail.abort();
        self.shared.ring.close();
    }
}

/// The newest revision that a majority has.
async fn revision(channel: &Channel) -> Result<u64> {
    let answer = channel.call("KV/Range", &message::range(b"\0", b"", 0, 0, true), true).await?;
    Ok(Ranged::read(answer.map_err(failed)?)?.revision)
}

fn failed(failure: Failure) -> Error {
    let text = failure.message;
    if text.contains("too many operations in txn request") {
        return Error::Invalid(format!("{text}: start etcd with a larger --max-txn-ops"));
    }
    Error::Engine(text)
}

/// Feeds the ring, for ever.
async fn follow(shared: Arc<Shared>) {
    loop {
        let error = match tail(&shared).await {
            Err(Error::Compacted { .. }) => {
                // We were away for longer than history is kept. Watchers that are behind now are told by etcd itself.
                match revision(&shared.channel).await {
                    Ok(revision) => {
                        tracing::warn!(revision, "history was forgotten while etcd could not be reached");
                        shared.ring.begin_again(revision);
                        continue;
                    }
                    Err(error) => error,
                }
            }
            Err(error) => error,
            Ok(never) => match never {},
        };
        tracing::warn!(%error, "following etcd");
        tokio::time::sleep(PAUSE).await;
    }
}

/// One watch of everything, from where the ring ends, until it breaks.
async fn tail(shared: &Shared) -> Result<std::convert::Infallible> {
    let after = shared.ring.standing().revision.0;
    let request = message::watch(ALL.0, ALL.1, first(after));
    let mut stream = shared.channel.lone_stream("Watch/Watch", &request).await?;
    let mut gathered = Gathered::new(after);
    loop {
        let watched = gathered.take(&mut stream, after).await?;
        if watched {
            let revisions = gathered.batches.drain(..);
            shared.ring.publish(revisions.map(|(revision, changes)| Changes { revision, changes }).collect());
        }
    }
}

/// Where a watch begins that is to see what came after a revision. At that revision itself, which is then passed over: so etcd
/// refuses exactly what lies below its compaction.
fn first(after: u64) -> u64 {
    after.max(1)
}

/// What a watch has brought and nobody has taken yet.
struct Gathered {
    /// Everything up to here has been brought.
    position: u64,
    batches: Vec<(u64, Vec<Change>)>,
    /// Of the last revision more may come.
    partial: bool,
}

impl Gathered {
    fn new(after: u64) -> Gathered {
        Gathered { position: after, batches: Vec::new(), partial: false }
    }

    /// Takes in the next message; whether whole revisions can be taken out.
    async fn take(&mut self, stream: &mut Stream, after: u64) -> Result<bool> {
        let watched = Watched::read(stream.next().await?)?;
        if watched.compacted > 0 {
            return Err(Error::Compacted { asked: after, oldest: watched.compacted });
        }
        if watched.canceled {
            return Err(Error::Engine(format!("etcd ended a watch: {}", watched.reason)));
        }
        if watched.is_progress() {
            self.position = self.position.max(watched.revision);
        }
        self.partial = watched.fragment;
        for (revision, change) in watched.changes {
            // What was brought before, by this watch or by the one before it, isn't brought again.
            let again =
                revision <= self.position && self.batches.last().is_none_or(|(last, _)| *last != revision);
            if again {
                continue;
            }
            match self.batches.last_mut() {
                Some((last, changes)) if *last == revision => changes.push(change),
                _ => self.batches.push((revision, vec![change])),
            }
        }
        if self.partial {
            return Ok(false);
        }
        for (revision, changes) in &mut self.batches {
            changes.sort_by(|a, b| a.key().cmp(b.key()));
            self.position = self.position.max(*revision);
        }
        Ok(true)
    }
}

#[async_trait::async_trait]
impl History for Shared {
    fn ring(&self) -> &Ring {
        &self.ring
    }

    async fn replay(
        self: Arc<Self>,
        start: Arc<str>,
        end: Arc<str>,
        after: u64,
        newest: u64,
    ) -> Result<Replay> {
        let request = message::watch(start.as_bytes(), end.as_bytes(), first(after));
        let mut stream = self.channel.stream("Watch/Watch", &request).await?;
        let mut gathered = Gathered::new(after);
        let mut ask = tokio::time::interval(ASK);
        loop {
            tokio::select! {
                taken = gathered.take(&mut stream, after) => {
                    if !taken? {
                        continue;
                    }
                }
                _ = ask.tick() => {
                    stream.send(&message::progress());
                    continue;
                }
            }
            if gathered.position >= newest || gathered.batches.len() >= REPLAY {
                let batches = gathered.batches.into_iter();
                let batches =
                    batches.map(|(revision, changes)| WatchBatch { revision: Revision(revision), changes });
                return Ok(Replay { batches: batches.collect(), upto: gathered.position });
            }
        }
    }
}

impl Etcd {
    /// Reads a page of a range.
    async fn page(&self, start: &str, end: &str, limit: usize, revision: u64) -> Result<Ranged> {
        let request = message::range(start.as_bytes(), end.as_bytes(), limit, revision, false);
        match self.shared.channel.call("KV/Range", &request, true).await? {
            Ok(answer) => Ranged::read(answer),
            Err(failure) => Err(self.explain(failure, revision).await),
        }
    }

    /// What etcd says of a revision that can't be had, with what can.
    async fn explain(&self, failure: Failure, asked: u64) -> Error {
        if failure.message.contains("has been compacted") {
            // Where history begins, only a watch is told.
            let oldest = self.oldest(asked).await.unwrap_or(asked + 1);
            return Error::Compacted { asked, oldest };
        }
        if failure.message.contains("is a future revision") {
            return match revision(&self.shared.channel).await {
                Ok(current) => Error::Future { asked, current },
                Err(error) => error,
            };
        }
        failed(failure)
    }

    /// Where history begins, if not at `from`.
    async fn oldest(&self, from: u64) -> Result<u64> {
        let request = message::watch(b"\0", b"\x01", first(from));
        let mut stream = self.shared.channel.stream("Watch/Watch", &request).await?;
        loop {
            let watched = Watched::read(stream.next().await?)?;
            if watched.compacted > 0 {
                return Ok(watched.compacted);
            }
            if watched.canceled || !watched.created {
                return Ok(from);
            }
            stream.send(&message::progress());
        }
    }
}

#[async_trait::async_trait]
impl Store for Etcd {
    async fn revision(&self) -> Result<Revision> {
        revision(&self.shared.channel).await.map(Revision)
    }

    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision)> {
        let mut page = self.page(key, "", 0, 0).await?;
        Ok((page.entries.pop(), Revision(page.revision)))
    }

    async fn range(&self, range: Range) -> Result<RangeResult> {
        let asked = range.revision.map_or(0, |revision| revision.0);
        let empty = range.start >= range.end;
        let (mut start, mut entries, mut at) = (range.start.to_string(), Vec::new(), asked);
        loop {
            let left = if range.limit == 0 { PAGE } else { PAGE.min(range.limit - entries.len()) };
            // Nothing lies between bounds that have changed places; but whether the revision can be had is to be said.
            let page = match empty {
                true => self.page("\0", "", 1, at).await?,
                false => self.page(&start, &range.end, left, at).await?,
            };
            if at == 0 {
                at = page.revision;
            }
            if empty {
                return Ok(RangeResult { entries, revision: Revision(at), more: false });
            }
            entries.extend(page.entries);
            let full = range.limit > 0 && entries.len() >= range.limit;
            match entries.last() {
                Some(last) if page.more && !full => start = format!("{}\0", last.key),
                _ => return Ok(RangeResult { entries, revision: Revision(at), more: page.more }),
            }
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome> {
        txn.check()?;
        let answer = self.shared.channel.call("KV/Txn", &message::txn(&txn), false).await?.map_err(failed)?;
        let concluded = Concluded::read(answer)?;
        let revision = Revision(concluded.revision);
        match concluded.succeeded {
            true => Ok(TxnOutcome::Committed(revision)),
            false => Ok(TxnOutcome::Refused { current: concluded.current, revision }),
        }
    }

    async fn watch(&self, start: &str, end: &str, after: Revision) -> Result<WatchStream> {
        let floor = self.shared.floor.load(Ordering::Relaxed);
        if after.0 < floor {
            return Err(Error::Compacted { asked: after.0, oldest: floor });
        }
        if after > self.shared.ring.standing().revision {
            // The ring may be a moment behind.
            let current = revision(&self.shared.channel).await?;
            if after.0 > current {
                return Err(Error::Future { asked: after.0, current });
            }
        }
        Ok(crate::watch::watch(self.shared.clone(), start, end, after))
    }

    async fn compact(&self, floor: Revision) -> Result<()> {
        match self.shared.channel.call("KV/Compact", &message::compact(floor.0), true).await? {
            Ok(_) => {}
            // What has been forgotten already stays so.
            Err(failure) if failure.message.contains("has been compacted") => {}
            Err(failure) => return Err(self.explain(failure, floor.0).await),
        }
        self.shared.floor.fetch_max(floor.0, Ordering::Relaxed);
        Ok(())
    }
}
