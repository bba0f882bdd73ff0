//! A watcher: a position in the order, which reads on from the ring, or from the engine where the ring no longer reaches.
//!
//! There is one position and two places to read from, never a hand-over between two streams, so nothing can be skipped or
//! seen twice. A slow watcher holds no memory of the store: it only falls out of the ring, and reads on from the engine,
//! until compaction passes it.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::sync::watch;

use crate::ring::{Next, Ring, Standing};
use crate::schema::Replay;
use crate::{Change, Error, Result, Revision, WatchBatch, WatchStream};

/// As many revisions are taken from the ring at once.
const AT_ONCE: usize = 256;

/// The two places.
#[async_trait::async_trait]
pub(crate) trait History: Send + Sync + 'static {
    /// The newest revisions.
    fn ring(&self) -> &Ring;

    /// Some of what came after a revision within a range, or all up to `newest` at least.
    async fn replay(
        self: Arc<Self>,
        start: Arc<str>,
        end: Arc<str>,
        after: u64,
        newest: u64,
    ) -> Result<Replay>;
}

struct Watcher<H> {
    shared: Arc<H>,
    start: Arc<str>,
    end: Arc<str>,
    /// Everything up to here has been delivered or lies in `ready`.
    position: u64,
    /// Whether the watcher has been told that it has caught up.
    caught_up: bool,
    ready: VecDeque<WatchBatch>,
    standing: watch::Receiver<Standing>,
}

pub(crate) fn watch<H: History>(shared: Arc<H>, start: &str, end: &str, after: Revision) -> WatchStream {
    let standing = shared.ring().subscribe();
    let watcher = Watcher {
        shared,
        start: start.into(),
        end: end.into(),
        position: after.0,
        caught_up: false,
        ready: VecDeque::new(),
        standing,
    };
    futures_util::stream::unfold(Some(watcher), |watcher| async move {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(batch) => Some((Ok(batch), Some(watcher))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl<H: History> Watcher<H> {
    async fn next(&mut self) -> Result<WatchBatch> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            let standing = *self.standing.borrow_and_update();
            if self.position < standing.revision.0 {
                self.read_on(standing.revision.0).await?;
            } else if !self.caught_up {
                self.caught_up = true;
                return Ok(WatchBatch { revision: Revision(self.position), changes: Vec::new() });
            } else if standing.closed {
                return Err(Error::Closed);
            } else {
                // The sender lives in `shared`.
                let _ = self.standing.changed().await;
            }
        }
    }

    /// Fills `ready` with what comes after `position`, some of it at least. `newest` is durable.
    async fn read_on(&mut self, newest: u64) -> Result<()> {
        let (batches, upto) = match self.shared.ring().after(self.position, AT_ONCE) {
            Next::Held(held) => {
                let upto = held.last().map_or(self.position, |changes| changes.revision);
                let within = |change: &&Change| {
                    let key = change.key();
                    **key >= *self.start && **key < *self.end
                };
                let batches = held
                    .iter()
                    .map(|held| WatchBatch {
                        revision: Revision(held.revision),
                        changes: held.changes.iter().filter(within).cloned().collect(),
                    })
                    .filter(|batch| !batch.changes.is_empty())
                    .collect();
                (batches, upto)
            }
            Next::Left => {
                let (start, end, after) = (self.start.clone(), self.end.clone(), self.position);
                let replay = self.shared.clone().replay(start, end, after, newest).await?;
                (replay.batches, replay.upto)
            }
        };
        self.ready.extend(batches);
        self.position = upto;
        if self.ready.back().is_none_or(|batch| batch.revision.0 < upto) {
            self.ready.push_back(WatchBatch { revision: Revision(upto), changes: Vec::new() });
        }
        Ok(())
    }
}
