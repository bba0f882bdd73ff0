//! The newest changes, in memory, for the watchers that keep up; and the revision that everybody may know of.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Change, Revision};

/// All changes of one revision, in the order of their keys.
#[derive(Debug)]
pub(crate) struct Changes {
    pub revision: u64,
    pub changes: Vec<Change>,
}

impl Changes {
    fn bytes(&self) -> usize {
        // What an entry costs besides its key and value: the struct and two allocations.
        const ENTRY: usize = 160;
        let entry = |entry: &crate::Entry| entry.key.len() + entry.value.len() + ENTRY;
        let change = |change: &Change| match change {
            Change::Put { entry: now, previous } => entry(now) + previous.as_ref().map_or(0, entry),
            Change::Delete { key, previous } => key.len() + previous.as_ref().map_or(0, entry),
        };
        self.changes.iter().map(change).sum()
    }
}

/// Where the store stands, as far as anybody outside the writer may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub revision: Revision,
    pub closed: bool,
}

/// The newest revisions, without gap, and a bell for those who wait for the next.
pub(crate) struct Ring {
    held: Mutex<Held>,
    standing: watch::Sender<Standing>,
    revisions: usize,
    bytes: usize,
}

struct Held {
    /// Without gap, up to the newest durable revision.
    newest: VecDeque<(Arc<Changes>, usize)>,
    bytes: usize,
    /// The newest revision that has left the ring.
    left: u64,
}

/// What the ring says to a watcher at some revision.
pub(crate) enum Next {
    /// The revisions after it, oldest first; none, if it has them all.
    Held(Vec<Arc<Changes>>),
    /// They have left the ring: read them from the engine.
    Left,
}

impl Ring {
    pub fn new(revision: u64, revisions: usize, bytes: usize) -> Ring {
        let standing = Standing { revision: Revision(revision), closed: false };
        Ring {
            held: Mutex::new(Held { newest: VecDeque::new(), bytes: 0, left: revision }),
            standing: watch::Sender::new(standing),
            revisions,
            bytes,
        }
    }

    pub fn standing(&self) -> Standing {
        *self.standing.borrow()
    }

    pub fn subscribe(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Makes revisions known. They are durable, and follow without gap on those made known before.
    pub fn publish(&self, revisions: Vec<Changes>) {
        let Some(newest) = revisions.last().map(|changes| Revision(changes.revision)) else { return };
        {
            let mut held = self.held.lock();
            for changes in revisions {
                let bytes = changes.bytes();
                held.bytes += bytes;
                held.newest.push_back((Arc::new(changes), bytes));
            }
            while held.newest.len() > self.revisions || held.bytes > self.bytes {
                let Some((changes, bytes)) = held.newest.pop_front() else { break };
                held.bytes -= bytes;
                held.left = changes.revision;
            }
        }
        // After the changes: who hears the bell finds them.
        self.standing.send_modify(|standing| standing.revision = newest);
    }

    /// Forgets everything: what lies between the newest revision and this one isn't known here.
    pub fn begin_again(&self, revision: u64) {
        {
            let mut held = self.held.lock();
            *held = Held { newest: VecDeque::new(), bytes: 0, left: revision };
        }
        self.standing.send_modify(|standing| standing.revision = Revision(revision));
    }

    pub fn close(&self) {
        self.standing.send_modify(|standing| standing.closed = true);
    }

    /// At most `most` revisions after `after`.
    pub fn after(&self, after: u64, most: usize) -> Next {
        let held = self.held.lock();
        if after < held.left {
            return Next::Left;
        }
        let skip = held.newest.partition_point(|(changes, _)| changes.revision <= after);
        Next::Held(held.newest.iter().skip(skip).take(most).map(|(changes, _)| changes.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64, value: usize) -> Changes {
        let entry = crate::Entry {
            key: "k".into(),
            value: vec![0; value].into(),
            create_revision: Revision(1),
            mod_revision: Revision(revision),
        };
        Changes { revision, changes: vec![Change::Put { entry, previous: None }] }
    }

    fn revisions(next: Next) -> Option<Vec<u64>> {
        match next {
            Next::Held(held) => Some(held.iter().map(|changes| changes.revision).collect()),
            Next::Left => None,
        }
    }

    #[test]
    fn a_ring_gives_what_follows_or_says_that_it_left() {
        let ring = Ring::new(5, 3, usize::MAX);
        assert_eq!(revisions(ring.after(5, 10)), Some(vec![]));
        assert_eq!(revisions(ring.after(4, 10)), None);
        ring.publish((6..=10).map(|revision| change(revision, 1)).collect());
        assert_eq!(revisions(ring.after(6, 10)), None);
        assert_eq!(revisions(ring.after(7, 10)), Some(vec![8, 9, 10]));
        assert_eq!(revisions(ring.after(7, 2)), Some(vec![8, 9]));
        assert_eq!(revisions(ring.after(10, 2)), Some(vec![]));
        assert_eq!(ring.standing().revision, Revision(10));
    }

    #[test]
    fn a_ring_holds_no_more_bytes_than_allowed() {
        let ring = Ring::new(0, 1000, 10_000);
        ring.publish((1..=20).map(|revision| change(revision, 1000)).collect());
        assert!(ring.held.lock().bytes <= 10_000);
        ring.publish(vec![change(21, 50_000)]);
        assert_eq!(revisions(ring.after(20, 10)), None, "too large to hold: the engine has it");
        assert_eq!(revisions(ring.after(21, 10)), Some(vec![]));
    }
}
