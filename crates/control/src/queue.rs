//! Wake-ups: each waits once, none runs twice at the same time, failures are tried again with growing pauses.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The pause after the first failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What became of a wake-up's work.
#[derive(Debug)]
#[must_use]
pub(crate) enum Done {
    /// Nothing to do until something changes.
    Settled,
    /// Time alone will change the decision: look again then.
    Again(Duration),
    /// It failed: look again after a pause.
    Failed,
}

/// A queue of wake-ups.
#[derive(Debug)]
pub(crate) struct Queue<W> {
    state: Mutex<State<W>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<W> {
    ready: VecDeque<W>,
    waiting: HashSet<W>,
    running: HashSet<W>,
    /// Pushed while running: to be looked at once more.
    dirty: HashSet<W>,
    later: BTreeSet<(Instant, W)>,
    alarms: HashMap<W, Instant>,
    failures: HashMap<W, u32>,
}

impl<W: Clone + Eq + Hash + Ord> Queue<W> {
    pub fn new() -> Queue<W> {
        Queue {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                waiting: HashSet::new(),
                running: HashSet::new(),
                dirty: HashSet::new(),
                later: BTreeSet::new(),
                alarms: HashMap::new(),
                failures: HashMap::new(),
            }),
            changed: Notify::new(),
        }
    }

    /// Look at `wake` as soon as possible.
    pub fn push(&self, wake: W) {
        self.state.lock().push(wake);
        self.changed.notify_one();
    }

    /// The next wake-up; it counts as running until [`Queue::done`]. One caller at a time.
    pub async fn next(&self) -> W {
        loop {
            let alarm = {
                let mut state = self.state.lock();
                state.ring(Instant::now());
                if let Some(wake) = state.take() {
                    return wake;
                }
                state.later.first().map(|(at, _)| *at)
            };
            match alarm {
                Some(at) => {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    /// The work of `wake` has ended.
    pub fn done(&self, wake: &W, done: Done) {
        self.state.lock().done(wake, done, Instant::now());
        self.changed.notify_one();
    }
}

impl<W: Clone + Eq + Hash + Ord> State<W> {
    fn push(&mut self, wake: W) {
        if self.running.contains(&wake) {
            self.dirty.insert(wake);
        } else if self.waiting.insert(wake.clone()) {
            self.ready.push_back(wake);
        }
    }

    fn take(&mut self) -> Option<W> {
        let wake = self.ready.pop_front()?;
        self.waiting.remove(&wake);
        self.running.insert(wake.clone());
        Some(wake)
    }

    fn ring(&mut self, now: Instant) {
        while let Some((at, _)) = self.later.first()
            && *at <= now
            && let Some((_, wake)) = self.later.pop_first()
        {
            self.alarms.remove(&wake);
            self.push(wake);
        }
    }

    fn done(&mut self, wake: &W, done: Done, now: Instant) {
        self.running.remove(wake);
        let pause = match done {
            Done::Settled => {
                self.failures.remove(wake);
                None
            }
            Done::Again(pause) => {
                self.failures.remove(wake);
                Some(pause)
            }
            Done::Failed => {
                let failures = self.failures.entry(wake.clone()).or_insert(0);
                let pause = FIRST_PAUSE.saturating_mul(1 << (*failures).min(16)).min(LONGEST_PAUSE);
                *failures += 1;
                Some(pause)
            }
        };
        if let Some(old) = self.alarms.remove(wake) {
            self.later.remove(&(old, wake.clone()));
        }
        if let Some(pause) = pause {
            let at = now + pause;
            self.alarms.insert(wake.clone(), at);
            self.later.insert((at, wake.clone()));
        }
        if self.dirty.remove(wake) {
            self.push(wake.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wake_up_waits_once_and_never_runs_beside_itself() {
        let queue = Queue::new();
        queue.push("a");
        queue.push("a");
        queue.push("b");
        assert_eq!(queue.next().await, "a");
        queue.push("a"); // while it runs
        assert_eq!(queue.next().await, "b");
        queue.done(&"b", Done::Settled);
        let waiting = tokio::time::timeout(Duration::from_millis(20), queue.next()).await;
        assert!(waiting.is_err(), "ran beside itself: {waiting:?}");
        queue.done(&"a", Done::Settled);
        assert_eq!(queue.next().await, "a");
        queue.done(&"a", Done::Settled);
    }

    #[test]
    fn pauses_grow_and_a_success_resets_them() {
        let mut state = Queue::new().state.into_inner();
        let now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..3 {
            state.push("a");
            state.take();
            state.done(&"a", Done::Failed, now);
            pauses.push(state.alarms["a"] - now);
        }
        assert_eq!(pauses, [10, 20, 40].map(Duration::from_millis));
        state.ring(now + Duration::from_secs(1));
        state.take();
        state.done(&"a", Done::Settled, now);
        assert!(state.alarms.is_empty() && state.failures.is_empty() && state.later.is_empty());
    }
}
