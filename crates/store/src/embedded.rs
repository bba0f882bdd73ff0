//! The engine in the process: one file, one writer, any number of readers.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redb::StorageBackend;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::engine::{self, Engine, Medium};
use crate::ring::Ring;
use crate::schema::{Replay, Snapshot};
use crate::watch::History;
use crate::writer::{Command, Writer};
use crate::{Entry, Error, Range, RangeResult, Result, Revision, Store, Txn, TxnOutcome, WatchStream};

/// How much an [`Embedded`] store may use of what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for pages of the file.
    pub cache_bytes: usize,
    /// So many of the newest revisions stay in memory for watchers; who is further behind reads from the file.
    pub watch_buffer: usize,
    /// And no more of them than this many bytes.
    pub watch_buffer_bytes: usize,
    /// So many requests may wait for the writer; further ones wait in their callers.
    pub queue: usize,
    /// At most so many transactions share one commit.
    pub group: usize,
    /// After a compaction, so many changes are cleared away at a time; writers wait no longer than that.
    pub sweep_rows: usize,
    /// After an error of the disk, the time between attempts to open the file again.
    pub retry_after: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            cache_bytes: 64 << 20,
            watch_buffer: 16 << 10,
            watch_buffer_bytes: 16 << 20,
            queue: 1024,
            group: 512,
            sweep_rows: 1024,
            retry_after: Duration::from_millis(250),
        }
    }
}

/// What writer, readers and watchers share.
pub(crate) struct Shared {
    pub engine: Engine,
    pub ring: Ring,
    /// Tells the writer that a reader met an error.
    pub trouble: Notify,
}

impl Shared {
    /// Reads one moment of history on a blocking thread, as a page may have to come from the disk.
    pub async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self, Snapshot) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = self.clone();
        let work = move || shared.engine.read(|snapshot| read(&shared, snapshot));
        let result = tokio::task::spawn_blocking(work).await;
        let result = result.unwrap_or_else(|error| Err(Error::Engine(error.to_string())));
        if let Err(Error::Engine(_)) = &result {
            self.trouble.notify_one();
        }
        result
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
        self.read(move |_, snapshot| snapshot.replay(&start, &end, after, newest)).await
    }
}

/// A store in one file of this process, which no other process may open meanwhile.
///
/// When it is dropped, the file is closed soon after, by the writer's thread; [`Embedded::close`] waits for that.
pub struct Embedded {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Embedded {
    /// Opens the file, or makes it. This blocks on the disk, longer after a crash: everything is then checked.
    pub fn open(path: &Path, options: Options) -> Result<Arc<Embedded>> {
        Embedded::open_medium(engine::file(path), options)
    }

    /// A store over something else than a file. `backend` gives a backend of the same storage each time it is called: once
    /// now, and again after each I/O error, when the one before has been closed.
    pub fn open_backend<B: StorageBackend>(
        backend: impl Fn() -> io::Result<B> + Send + Sync + 'static,
        options: Options,
    ) -> Result<Arc<Embedded>> {
        Embedded::open_medium(Box::new(move || Ok(Box::new(backend()?) as Box<dyn StorageBackend>)), options)
    }

    /// A store that is gone when it is dropped, for tests.
    pub fn in_memory() -> Arc<Embedded> {
        Embedded::open_backend(|| Ok(redb::backends::InMemoryBackend::new()), Options::default())
            .expect("memory does not fail")
    }

    fn open_medium(medium: Medium, options: Options) -> Result<Arc<Embedded>> {
        let (engine, marks) = Engine::open(medium, options.cache_bytes)?;
        let ring = Ring::new(marks.revision, options.watch_buffer, options.watch_buffer_bytes);
        let shared = Arc::new(Shared { engine, ring, trouble: Notify::new() });
        let (commands, queue) = mpsc::channel(options.queue.max(1));
        Writer::spawn(shared.clone(), queue, options, marks)?;
        Ok(Arc::new(Embedded { shared, commands }))
    }

    /// Carries out what was asked before, closes the file and returns when it is closed. Everything asked later, and every
    /// watch that has delivered all, is told [`Error::Closed`].
    pub async fn close(&self) {
        // An error says that the writer is gone already.
        let _ = self.commands.send(Command::Close).await;
        let mut standing = self.shared.ring.subscribe();
        let _ = standing.wait_for(|standing| standing.closed).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }

    /// Reads one moment of history; `read` is given the newest revision of it that may be known. An unacknowledged commit
    /// may be in the database too, and stays unseen.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot, u64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.shared
            .read(move |shared, snapshot| {
                // Asked after the snapshot was taken: what was acknowledged before the call is in both.
                let newest = shared.ring.standing().revision.0.min(snapshot.marks.revision);
                read(&snapshot, newest)
            })
            .await
    }
}

#[async_trait::async_trait]
impl Store for Embedded {
    async fn revision(&self) -> Result<Revision> {
        match self.shared.ring.standing() {
            standing if standing.closed => Err(Error::Closed),
            standing => Ok(standing.revision),
        }
    }

    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision)> {
        let key: Arc<str> = key.into();
        self.read(move |snapshot, newest| Ok((snapshot.get(&key, newest)?, Revision(newest)))).await
    }

    async fn range(&self, range: Range) -> Result<RangeResult> {
        self.read(move |snapshot, newest| {
            let at = range.revision.map_or(newest, |revision| revision.0);
            if at > newest {
                return Err(Error::Future { asked: at, current: newest });
            }
            if at < snapshot.marks.compacted {
                return Err(Error::Compacted { asked: at, oldest: snapshot.marks.compacted });
            }
            snapshot.range(&range.start, &range.end, range.limit, at)
        })
        .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome> {
        txn.check()?;
        self.ask(|answer| Command::Txn(txn, answer)).await
    }

    async fn watch(&self, start: &str, end: &str, after: Revision) -> Result<WatchStream> {
        let (compacted, newest) =
            self.read(move |snapshot, newest| Ok((snapshot.marks.compacted, newest))).await?;
        if after.0 > newest {
            return Err(Error::Future { asked: after.0, current: newest });
        }
        if after.0 < compacted {
            return Err(Error::Compacted { asked: after.0, oldest: compacted });
        }
        Ok(crate::watch::watch(self.shared.clone(), start, end, after))
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.ask(|answer| Command::Compact(revision.0, answer)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_embedded_engine_keeps_every_promise() {
        crate::conformance::check(|| async { Embedded::in_memory() as Arc<dyn Store> }).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_promises_hold_with_hardly_any_memory_too() {
        let tight = Options {
            cache_bytes: 0,
            watch_buffer: 2,
            watch_buffer_bytes: 10_000,
            queue: 1,
            group: 2,
            sweep_rows: 1,
            ..Options::default()
        };
        let open = || async {
            let memory = || Ok(redb::backends::InMemoryBackend::new());
            Embedded::open_backend(memory, tight.clone()).unwrap() as Arc<dyn Store>
        };
        crate::conformance::check(open).await;
    }

    #[tokio::test]
    async fn a_file_is_its_owners_only_and_keeps_history_when_closed() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = Embedded::open(&path, Options::default()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Embedded::open(&path, Options::default()), Err(Error::Engine(_))), "one at a time");
        let put = |value: &'static str| Txn {
            compares: vec![],
            ops: vec![crate::Op::Put("k".into(), value.into())],
        };
        for value in ["1", "2", "3"] {
            let _ = store.txn(put(value)).await.unwrap();
        }
        store.compact(Revision(2)).await.unwrap();
        store.close().await;
        assert_eq!(store.txn(put("4")).await, Err(Error::Closed));
        assert_eq!(store.get("k").await, Err(Error::Closed));
        assert_eq!(store.revision().await, Err(Error::Closed));

        let store = Embedded::open(&path, Options::default()).unwrap();
        assert_eq!(store.revision().await, Ok(Revision(3)));
        let at = |revision| Range { revision: Some(Revision(revision)), ..Range::prefix("k") };
        assert_eq!(store.range(at(1)).await, Err(Error::Compacted { asked: 1, oldest: 2 }));
        assert_eq!(store.range(at(2)).await.unwrap().entries[0].value, "2");
        assert_eq!(store.txn(put("4")).await, Ok(TxnOutcome::Committed(Revision(4))));
        store.close().await;
    }

    #[tokio::test]
    async fn compaction_clears_away_what_nobody_can_read() {
        let store = Embedded::open_backend(
            || Ok(redb::backends::InMemoryBackend::new()),
            Options { sweep_rows: 7, ..Options::default() },
        )
        .unwrap();
        let key = |n: u32| -> Arc<str> { format!("/k/{}", n % 10).into() };
        for n in 0..100 {
            let ops = vec![match n % 25 {
                24 => crate::Op::Delete(key(n)),
                _ => crate::Op::Put(key(n), "v".into()),
            }];
            let _ = store.txn(Txn { compares: vec![], ops }).await.unwrap();
        }
        let newest = store.revision().await.unwrap();
        store.compact(newest).await.unwrap();
        let standing = store.range(Range::prefix("/")).await.unwrap().entries.len() as u64;
        let (marks, rows) = loop {
            // The writer sweeps by itself, while nobody writes.
            let look = |snapshot: &Snapshot, _| Ok((snapshot.marks, snapshot.rows()));
            let (marks, rows) = store.read(look).await.unwrap();
            if marks.swept == marks.compacted {
                break (marks, rows);
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(marks.compacted, newest.0);
        assert_eq!(rows, (standing, standing), "one row for each key that exists");
    }

    #[tokio::test]
    async fn a_dropped_store_gives_up_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let store = Embedded::open(&path, Options::default()).unwrap();
        let mut closed = store.shared.ring.subscribe();
        drop(store);
        closed.wait_for(|standing| standing.closed).await.unwrap();
        Embedded::open(&path, Options::default()).unwrap().close().await;
    }

    #[tokio::test]
    async fn a_half_made_file_begins_anew_and_a_strange_one_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        // As redb leaves it between giving the file its length and writing the magic number.
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        Embedded::open(&path, Options::default()).unwrap().close().await;
        let mut strange = vec![0; 1 << 20];
        strange[500_000] = 1;
        std::fs::write(&path, &strange).unwrap();
        assert!(matches!(Embedded::open(&path, Options::default()), Err(Error::Engine(_))));
        assert_eq!(std::fs::read(&path).unwrap(), strange);
    }
}
