//! How history lies in redb: a log in the order of revisions, an index in the order of keys, and three numbers.
//!
//! Values lie in the log only; whoever lists walks the small index and fetches the values it needs. Each row of the log
//! names the row that it superseded. So a replay finds "what stood there before" by one lookup, and compaction visits
//! each row once in its life: when the floor passes a row, the row before it has become garbage.

use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use crate::{Change, Compare, Entry, Error, Op, RangeResult, Result, Revision, WatchBatch};

type LogKey = (u64, &'static str);
type IndexKey = (&'static str, u64);

/// `(revision, key)` to what happened: see [`Row`].
const LOG: TableDefinition<'static, LogKey, &'static [u8]> = TableDefinition::new("log");
/// `(key, revision)` to the revision which created the key; `0` says that the key was removed at this revision.
const INDEX: TableDefinition<'static, IndexKey, u64> = TableDefinition::new("index");
const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");

const FORMAT: &str = "format";
const REVISION: &str = "revision";
const COMPACTED: &str = "compacted";
const SWEPT: &str = "swept";

/// The layout described in this file. A store of another layout is refused, never guessed at.
const THIS_FORMAT: u64 = 1;

/// Any failure of redb, as ours.
pub(crate) fn engine(error: impl Into<redb::Error>) -> Error {
    Error::Engine(error.into().to_string())
}

/// The three numbers that say where history is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// The newest revision.
    pub revision: u64,
    /// The floor: reads and watches below it are refused.
    pub compacted: u64,
    /// Garbage has been removed up to and including this revision; never above `compacted`.
    pub swept: u64,
}

/// A row of the log: `previous` and `create` in little-endian, then the value.
struct Row<'a> {
    /// Revision of the row which this one superseded; `0` if the key did not exist.
    previous: u64,
    /// Revision of the put that made the key exist; `0` in a row that says "removed".
    create: u64,
    value: &'a [u8],
}

impl<'a> Row<'a> {
    const HEADER: usize = 16;

    fn parse(bytes: &'a [u8]) -> Result<Row<'a>> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        match (number(0), number(8), bytes.get(Row::HEADER..)) {
            (Some(previous), Some(create), Some(value)) => Ok(Row { previous, create, value }),
            _ => Err(Error::Engine("a row of the log is shorter than its header".into())),
        }
    }

    fn bytes(previous: u64, create: u64, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Row::HEADER + value.len());
        bytes.extend_from_slice(&previous.to_le_bytes());
        bytes.extend_from_slice(&create.to_le_bytes());
        bytes.extend_from_slice(value);
        bytes
    }

    fn entry(&self, key: &str, revision: u64) -> Entry {
        Entry {
            key: key.into(),
            value: Bytes::copy_from_slice(self.value),
            create_revision: Revision(self.create),
            mod_revision: Revision(revision),
        }
    }
}

fn read_marks(meta: &impl ReadableTable<&'static str, u64>) -> Result<Marks> {
    let number = |name| Ok(meta.get(name).map_err(engine)?.map_or(0, |guard| guard.value()));
    Ok(Marks { revision: number(REVISION)?, compacted: number(COMPACTED)?, swept: number(SWEPT)? })
}

/// The entry of `key` in the row of the log at `revision`.
fn entry_of_row(
    log: &impl ReadableTable<LogKey, &'static [u8]>,
    key: &str,
    revision: u64,
) -> Result<Option<Entry>> {
    let Some(guard) = log.get((revision, key)).map_err(engine)? else { return Ok(None) };
    let row = Row::parse(guard.value())?;
    Ok((row.create != 0).then(|| row.entry(key, revision)))
}

/// `key` as it stood at revision `at`.
fn newest_at(
    log: &impl ReadableTable<LogKey, &'static [u8]>,
    index: &impl ReadableTable<IndexKey, u64>,
    key: &str,
    at: u64,
) -> Result<Option<Entry>> {
    let mut versions = index.range((key, 0)..=(key, at)).map_err(engine)?;
    let Some(last) = versions.next_back() else { return Ok(None) };
    let (at_key, create) = last.map_err(engine)?;
    if create.value() == 0 {
        return Ok(None);
    }
    let revision = at_key.value().1;
    let entry = entry_of_row(log, key, revision)?;
    entry.map(Some).ok_or_else(|| no_row(key, revision))
}

fn no_row(key: &str, revision: u64) -> Error {
    Error::Engine(format!("the index names {key:?} at revision {revision}, the log does not have it"))
}

/// History as one moment sees it.
pub(crate) struct Snapshot {
    log: redb::ReadOnlyTable<LogKey, &'static [u8]>,
    index: redb::ReadOnlyTable<IndexKey, u64>,
    /// Where history was when the snapshot was taken.
    pub marks: Marks,
}

/// A part of history for a watcher.
pub(crate) struct Replay {
    /// The revisions with changes in the watched range.
    pub batches: Vec<WatchBatch>,
    /// Everything up to and including this revision has been looked at.
    pub upto: u64,
}

/// How much of history is read in one go, so that a replay of everything neither fills memory nor holds a snapshot long.
const REPLAY_ROWS: usize = 4096;
const REPLAY_BYTES: usize = 1 << 20;

impl Snapshot {
    pub fn take(txn: &ReadTransaction) -> Result<Snapshot> {
        let meta = txn.open_table(META).map_err(engine)?;
        Ok(Snapshot {
            log: txn.open_table(LOG).map_err(engine)?,
            index: txn.open_table(INDEX).map_err(engine)?,
            marks: read_marks(&meta)?,
        })
    }

    /// How many rows the log and the index have.
    #[cfg(test)]
    pub fn rows(&self) -> (u64, u64) {
        use redb::ReadableTableMetadata;
        (self.log.len().unwrap(), self.index.len().unwrap())
    }

    pub fn get(&self, key: &str, at: u64) -> Result<Option<Entry>> {
        newest_at(&self.log, &self.index, key, at)
    }

    pub fn range(&self, start: &str, end: &str, limit: usize, at: u64) -> Result<RangeResult> {
        let mut result = RangeResult { entries: Vec::new(), revision: Revision(at), more: false };
        // One more than asked for, to know whether there are more.
        let wanted = if limit == 0 { usize::MAX } else { limit.saturating_add(1) };
        let mut standing = self.standing(start, end, wanted, at)?;
        if limit != 0 && standing.len() > limit {
            standing.truncate(limit);
            result.more = true;
        }
        result.entries.reserve(standing.len());
        for (key, revision) in standing {
            let entry = entry_of_row(&self.log, &key, revision)?;
            result.entries.push(entry.ok_or_else(|| no_row(&key, revision))?);
        }
        Ok(result)
    }

    /// The first `wanted` keys of `[start, end)` that existed at revision `at`, and when each was last put before.
    fn standing(&self, start: &str, end: &str, wanted: usize, at: u64) -> Result<Vec<(Arc<str>, u64)>> {
        let mut standing: Vec<(Arc<str>, u64)> = Vec::new();
        if start >= end {
            return Ok(standing);
        }
        // The key whose versions the cursor passes, and its newest version yet; `None` when that says "removed".
        let mut under: Option<(Arc<str>, Option<u64>)> = None;
        for version in self.index.range((start, 0)..(end, 0)).map_err(engine)? {
            let (at_key, create) = version.map_err(engine)?;
            let (key, revision) = at_key.value();
            if revision > at {
                continue;
            }
            let newest = (create.value() != 0).then_some(revision);
            match &mut under {
                Some((same, before)) if **same == *key => *before = newest,
                _ => {
                    if let Some((key, Some(revision))) = under.replace((key.into(), newest)) {
                        standing.push((key, revision));
                        if standing.len() == wanted {
                            return Ok(standing);
                        }
                    }
                }
            }
        }
        if let Some((key, Some(revision))) = under {
            standing.push((key, revision));
        }
        Ok(standing)
    }

    /// The changes in `[start, end)` at revisions in `(after, upto]`, or as many of the first of them as are read in one go.
    pub fn replay(&self, start: &str, end: &str, after: u64, upto: u64) -> Result<Replay> {
        if after < self.marks.compacted {
            return Err(Error::Compacted { asked: after, oldest: self.marks.compacted });
        }
        let mut replay = Replay { batches: Vec::new(), upto };
        let (mut rows, mut bytes) = (0, 0);
        let span = (after + 1, "")..(upto + 1, "");
        let mut last = after;
        for row in self.log.range::<(u64, &str)>(span).map_err(engine)? {
            let (at_key, value) = row.map_err(engine)?;
            let (revision, key) = at_key.value();
            // Stop only between two revisions: all changes of one go out in one batch.
            if revision != last && (rows >= REPLAY_ROWS || bytes >= REPLAY_BYTES) {
                replay.upto = last;
                break;
            }
            last = revision;
            rows += 1;
            if key < start || key >= end {
                continue;
            }
            let row = Row::parse(value.value())?;
            bytes += row.value.len();
            let previous = match row.previous {
                0 => None,
                previous => entry_of_row(&self.log, key, previous)?,
            };
            let change = match row.create {
                0 => Change::Delete { key: key.into(), previous },
                _ => Change::Put { entry: row.entry(key, revision), previous },
            };
            match replay.batches.last_mut() {
                Some(batch) if batch.revision.0 == revision => batch.changes.push(change),
                _ => replay.batches.push(WatchBatch { revision: Revision(revision), changes: vec![change] }),
            }
        }
        Ok(replay)
    }
}

/// History, open for writing. Nothing of it is visible before the transaction is committed.
pub(crate) struct Draft<'txn> {
    log: Table<'txn, LogKey, &'static [u8]>,
    index: Table<'txn, IndexKey, u64>,
    meta: Table<'txn, &'static str, u64>,
}

impl<'txn> Draft<'txn> {
    /// Opens the tables; in an empty database this makes them.
    pub fn open(txn: &'txn WriteTransaction) -> Result<Draft<'txn>> {
        let mut meta = txn.open_table(META).map_err(engine)?;
        let format = meta.get(FORMAT).map_err(engine)?.map(|guard| guard.value());
        match format {
            None => {
                meta.insert(FORMAT, THIS_FORMAT).map_err(engine)?;
            }
            Some(THIS_FORMAT) => {}
            Some(other) => {
                return Err(Error::Engine(format!(
                    "the file has layout {other}, this program knows {THIS_FORMAT}: use the program that wrote it"
                )));
            }
        }
        Ok(Draft {
            log: txn.open_table(LOG).map_err(engine)?,
            index: txn.open_table(INDEX).map_err(engine)?,
            meta,
        })
    }

    pub fn marks(&self) -> Result<Marks> {
        read_marks(&self.meta)
    }

    pub fn set_marks(&mut self, marks: Marks) -> Result<()> {
        for (name, number) in [(REVISION, marks.revision), (COMPACTED, marks.compacted), (SWEPT, marks.swept)]
        {
            self.meta.insert(name, number).map_err(engine)?;
        }
        Ok(())
    }

    /// Whether all compares hold now, and the entry that each of them saw.
    pub fn compare(&self, compares: &[Compare]) -> Result<(bool, Vec<Option<Entry>>)> {
        let mut hold = true;
        let mut seen = Vec::with_capacity(compares.len());
        for compare in compares {
            let current = newest_at(&self.log, &self.index, compare.key(), u64::MAX)?;
            hold &= match compare {
                Compare::Absent(_) => current.is_none(),
                Compare::ModRevision(_, revision) => {
                    current.as_ref().is_some_and(|entry| entry.mod_revision == *revision)
                }
            };
            seen.push(current);
        }
        Ok((hold, seen))
    }

    /// Writes at `revision`; returns what changed, in the order of keys. Nothing, if only absent keys were removed.
    pub fn apply(&mut self, ops: &[Op], revision: u64) -> Result<Vec<Change>> {
        let mut ops: Vec<&Op> = ops.iter().collect();
        ops.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        let mut changes = Vec::with_capacity(ops.len());
        for op in ops {
            let previous = newest_at(&self.log, &self.index, op.key(), u64::MAX)?;
            let superseded = previous.as_ref().map_or(0, |entry| entry.mod_revision.0);
            match op {
                Op::Put(key, value) => {
                    let create = previous.as_ref().map_or(revision, |entry| entry.create_revision.0);
                    self.append(key, revision, superseded, create, value)?;
                    let entry = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: Revision(create),
                        mod_revision: Revision(revision),
                    };
                    changes.push(Change::Put { entry, previous });
                }
                Op::Delete(_) if previous.is_none() => {}
                Op::Delete(key) => {
                    self.append(key, revision, superseded, 0, &[])?;
                    changes.push(Change::Delete { key: key.clone(), previous });
                }
            }
        }
        Ok(changes)
    }

    fn append(&mut self, key: &str, revision: u64, previous: u64, create: u64, value: &[u8]) -> Result<()> {
        let row = Row::bytes(previous, create, value);
        self.log.insert((revision, key), row.as_slice()).map_err(engine)?;
        self.index.insert((key, revision), create).map_err(engine)?;
        Ok(())
    }

    /// Removes what the floor has made unreachable, about `rows` rows of history on from `marks.swept`; returns how far it
    /// came. Reads at or above the floor see no difference, so the steps may lie any time apart.
    pub fn sweep(&mut self, marks: Marks, rows: usize) -> Result<u64> {
        let mut garbage: Vec<(u64, Arc<str>)> = Vec::new();
        let mut swept = marks.compacted;
        let (mut last, mut seen) = (marks.swept, 0);
        let span = (marks.swept + 1, "")..(marks.compacted + 1, "");
        for row in self.log.range::<(u64, &str)>(span).map_err(engine)? {
            let (at_key, value) = row.map_err(engine)?;
            let (revision, key) = at_key.value();
            // The mark counts whole revisions.
            if revision != last && seen >= rows {
                swept = last;
                break;
            }
            last = revision;
            seen += 1;
            let row = Row::parse(value.value())?;
            let key: Arc<str> = key.into();
            if row.create == 0 {
                garbage.push((revision, key.clone()));
            }
            if row.previous != 0 {
                garbage.push((row.previous, key));
            }
        }
        for (revision, key) in garbage {
            self.log.remove((revision, &*key)).map_err(engine)?;
            self.index.remove((&*key, revision)).map_err(engine)?;
        }
        Ok(swept)
    }

    /// Removes all revisions above `revision`: they were never acknowledged. The floor never lies above an acknowledged
    /// revision, so nothing that these revisions superseded has been swept.
    pub fn roll_back(&mut self, revision: u64) -> Result<()> {
        let mut unacknowledged: Vec<(u64, Arc<str>)> = Vec::new();
        for row in self.log.range::<(u64, &str)>((revision + 1, "")..).map_err(engine)? {
            let (at_key, _) = row.map_err(engine)?;
            let (revision, key) = at_key.value();
            unacknowledged.push((revision, key.into()));
        }
        for (revision, key) in unacknowledged {
            self.log.remove((revision, &*key)).map_err(engine)?;
            self.index.remove((&*key, revision)).map_err(engine)?;
        }
        let marks = self.marks()?;
        self.set_marks(Marks { revision, ..marks })
    }
}
