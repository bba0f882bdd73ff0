//! The open database, and how it is opened again after an error.
//!
//! redb refuses all work after an I/O error until it is closed and opened again (`StorageError::PreviousIo`). So the
//! engine keeps the way to open it, and when it comes back makes sure that it stands where the last answer left it.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use redb::backends::FileBackend;
use redb::{BackendError, Database, Durability, ReadableDatabase, StorageBackend, WriteTransaction};

use crate::schema::{Draft, Marks, Snapshot, engine};
use crate::{Error, Result};

/// Opens the medium anew.
pub(crate) type Medium = Box<dyn Fn() -> io::Result<Box<dyn StorageBackend>> + Send + Sync>;

/// The database, or why there is none.
pub(crate) struct Engine {
    medium: Medium,
    cache_bytes: usize,
    // Readers hold it for the time of one read, the writer for the time of one commit; only closing and opening again
    // excludes them. Held by blocking threads, never across an await.
    state: RwLock<State>,
}

enum State {
    Open(Database),
    Down(Error),
}

impl Engine {
    /// Opens the database, makes it if there is none, and says where its history stands.
    pub fn open(medium: Medium, cache_bytes: usize) -> Result<(Engine, Marks)> {
        let engine = Engine { medium, cache_bytes, state: RwLock::new(State::Down(Error::Closed)) };
        let (db, marks) = engine.database(None)?;
        *engine.state.write() = State::Open(db);
        Ok((engine, marks))
    }

    /// Reads one moment of history. Blocks on the disk.
    pub fn read<T>(&self, read: impl FnOnce(Snapshot) -> Result<T>) -> Result<T> {
        match &*self.state.read() {
            State::Open(db) => read(Snapshot::take(&db.begin_read().map_err(self::engine)?)?),
            State::Down(error) => Err(error.clone()),
        }
    }

    /// Lets `write` change history; if it says so, the changes are made durable. Blocks on the disk.
    pub fn write<T>(&self, write: impl FnOnce(&mut Draft<'_>) -> Result<(T, Commit)>) -> Result<T> {
        match &*self.state.read() {
            State::Open(db) => write_durably(db, write),
            State::Down(error) => Err(error.clone()),
        }
    }

    /// Closes the database and opens it again, at `acknowledged`. Until that succeeds, all work is refused.
    pub fn reopen(&self, acknowledged: u64) -> Result<Marks> {
        let mut state = self.state.write();
        // The old one has to be closed first: it holds the lock of the file.
        *state = State::Down(Error::Closed);
        match self.database(Some(acknowledged)) {
            Ok((db, marks)) => {
                *state = State::Open(db);
                Ok(marks)
            }
            Err(error) => {
                *state = State::Down(error.clone());
                Err(error)
            }
        }
    }

    /// Closes for good. Blocks on the disk.
    pub fn close(&self) {
        *self.state.write() = State::Down(Error::Closed);
    }

    fn database(&self, acknowledged: Option<u64>) -> Result<(Database, Marks)> {
        let backend = (self.medium)().map_err(|error| Error::Engine(error.to_string()))?;
        forget_unfinished_creation(&*backend).map_err(|error| Error::Engine(error.to_string()))?;
        let db = Database::builder()
            .set_cache_size(self.cache_bytes)
            .create_with_backend(Boxed(backend))
            .map_err(self::engine)?;
        let marks = write_durably(&db, |draft| {
            let mut marks = draft.marks()?;
            let Some(acknowledged) = acknowledged else { return Ok((marks, Commit::Durably)) };
            if marks.revision < acknowledged {
                return Err(Error::Engine(format!(
                    "the disk has lost writes that it had confirmed: it is at revision {}, {acknowledged} was acknowledged",
                    marks.revision
                )));
            }
            // A commit that failed may have reached the disk all the same. Its transactions were answered with an
            // error; their revisions go to others.
            if marks.revision > acknowledged {
                draft.roll_back(acknowledged)?;
                marks.revision = acknowledged;
            }
            Ok((marks, Commit::Durably))
        })?;
        Ok((db, marks))
    }
}

/// What is to become of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    /// It is written to the disk before anybody hears of it.
    Durably,
    /// It holds no change.
    Nothing,
}

fn write_durably<T>(db: &Database, write: impl FnOnce(&mut Draft<'_>) -> Result<(T, Commit)>) -> Result<T> {
    let mut txn: WriteTransaction = db.begin_write().map_err(engine)?;
    txn.set_durability(Durability::Immediate).map_err(engine)?;
    let mut draft = Draft::open(&txn)?;
    let (value, commit) = write(&mut draft)?;
    drop(draft);
    match commit {
        Commit::Durably => txn.commit().map_err(engine)?,
        Commit::Nothing => txn.abort().map_err(engine)?,
    }
    Ok(value)
}

/// redb gives a new file its length first and its magic number last, and takes what lies between for a file of another
/// kind. Nobody has been told of such a database yet, so it begins anew. Only a file without a single byte in it is taken
/// for that: a file which lost its header is for its owner to see.
fn forget_unfinished_creation(backend: &dyn StorageBackend) -> io::Result<()> {
    /// The first page holds redb's header.
    const PAGE: u64 = 4096;
    /// redb makes a new file of about this length at most.
    const NEW: u64 = 16 << 20;
    const MAGIC: usize = 9;
    let len = backend.len()?;
    if len == 0 || len > NEW {
        return Ok(());
    }
    let mut magic = [0; MAGIC];
    if len >= MAGIC as u64 {
        backend.read(0, &mut magic)?;
    }
    if magic != [0; MAGIC] {
        return Ok(());
    }
    let mut page = [0; PAGE as usize];
    let mut at = PAGE.min(len);
    while at < len {
        let part = &mut page[..PAGE.min(len - at) as usize];
        backend.read(at, part)?;
        if part.iter().any(|byte| *byte != 0) {
            return Ok(());
        }
        at += PAGE;
    }
    let everything = (Bound::Unbounded, Bound::Unbounded);
    match backend.try_lock_range(everything.0, everything.1) {
        // Another process has it, perhaps just making it; redb will say so.
        Ok(false) => Ok(()),
        Ok(true) => {
            backend.set_len(0)?;
            backend.sync_data()?;
            backend.unlock_range(everything.0, everything.1).map_err(io::Error::from)
        }
        Err(BackendError::Unsupported) => {
            backend.set_len(0)?;
            backend.sync_data()
        }
        Err(error) => Err(error.into()),
    }
}

/// The medium that is a file.
pub(crate) fn file(path: &Path) -> Medium {
    let path: PathBuf = path.to_path_buf();
    Box::new(move || {
        let new = !path.exists();
        // Objects can be secrets: the file is its owner's only.
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        if new && let Some(directory) = path.parent() {
            // A new file's name is durable only when its directory is: fsync(2).
            let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
            File::open(directory)?.sync_all()?;
        }
        // After a failed fsync Linux marks pages clean that the disk doesn't have, and a later fsync succeeds without them
        // (<https://lwn.net/Articles/752063/>). What is read from here on shall be what the disk has.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?) as Box<dyn StorageBackend>)
    })
}

type Locked<T> = std::result::Result<T, BackendError>;

/// redb takes a backend by its type; ours is chosen at run time.
#[derive(Debug)]
struct Boxed(Box<dyn StorageBackend>);

impl StorageBackend for Boxed {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.0.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.0.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.0.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.0.query_lock_range(start, end)
    }
}
