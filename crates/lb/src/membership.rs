//! Which nodes are heard on the wire, as a pure state machine over heartbeats and time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time between two heartbeats of a node.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(100);
/// A node not heard for this long is taken for dead: five lost heartbeats in a row, so that the take-over stays under a
/// second and a busy machine's hiccup isn't mistaken for a death.
pub const DEAD_AFTER: Duration = Duration::from_millis(550);

/// What one heartbeat says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who sends it.
    pub node: String,
    /// Start of the sender's process, in nanoseconds since 1970: a restarted node counts anew.
    pub incarnation: u64,
    /// Grows with each heartbeat of an incarnation: a replayed heartbeat isn't counted.
    pub sequence: u64,
    /// The sender announces nothing, since it is about to stop, or has just come and still listens: others take over at once.
    pub leaving: bool,
}

#[derive(Debug)]
struct Peer {
    incarnation: u64,
    sequence: u64,
    heard: Instant,
    leaving: bool,
}

/// What this node has heard of the others.
#[derive(Debug, Default)]
pub struct Membership {
    peers: BTreeMap<String, Peer>,
}

impl Membership {
    /// Counts a heartbeat; says whether it was news (not a replay).
    pub fn heard(&mut self, beat: &Heartbeat, now: Instant) -> bool {
        match self.peers.get(&beat.node) {
            Some(peer) if (peer.incarnation, peer.sequence) >= (beat.incarnation, beat.sequence) => false,
            _ => {
                let peer = Peer {
                    incarnation: beat.incarnation,
                    sequence: beat.sequence,
                    heard: now,
                    leaving: beat.leaving,
                };
                self.peers.insert(beat.node.clone(), peer);
                true
            }
        }
    }

    /// Is this other node alive?
    pub fn alive(&self, node: &str, now: Instant) -> bool {
        self.peers
            .get(node)
            .is_some_and(|p| !p.leaving && now.saturating_duration_since(p.heard) < DEAD_AFTER)
    }

    /// Forgets nodes that the cluster no longer has.
    pub fn keep(&mut self, known: impl Fn(&str) -> bool) {
        self.peers.retain(|name, _| known(name));
    }

    /// When the next living node would be taken for dead, if nothing more is heard of it.
    pub fn next_death(&self, now: Instant) -> Option<Instant> {
        self.peers.values().filter(|p| !p.leaving).map(|p| p.heard + DEAD_AFTER).filter(|t| *t > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(sequence: u64) -> Heartbeat {
        Heartbeat { node: "b".into(), incarnation: 7, sequence, leaving: false }
    }

    #[test]
    fn a_silent_node_is_dead_in_under_a_second_and_a_heard_one_is_not() {
        let mut m = Membership::default();
        let t0 = Instant::now();
        assert!(!m.alive("b", t0));
        assert!(m.heard(&beat(1), t0));
        assert!(m.alive("b", t0 + DEAD_AFTER - Duration::from_millis(1)));
        assert_eq!(m.next_death(t0), Some(t0 + DEAD_AFTER));
        assert!(!m.alive("b", t0 + DEAD_AFTER));
        assert!(DEAD_AFTER < Duration::from_millis(900));
    }

    #[test]
    fn a_replayed_heartbeat_revives_nobody() {
        let mut m = Membership::default();
        let t0 = Instant::now();
        assert!(m.heard(&beat(5), t0));
        let later = t0 + DEAD_AFTER;
        assert!(!m.heard(&beat(5), later));
        assert!(!m.heard(&beat(4), later));
        assert!(!m.alive("b", later));
        let restarted = Heartbeat { incarnation: 8, ..beat(1) };
        assert!(m.heard(&restarted, later));
        assert!(m.alive("b", later));
    }

    #[test]
    fn a_node_that_says_it_leaves_is_gone_at_once() {
        let mut m = Membership::default();
        let t0 = Instant::now();
        assert!(m.heard(&beat(1), t0));
        assert!(m.heard(&Heartbeat { leaving: true, ..beat(2) }, t0));
        assert!(!m.alive("b", t0));
    }
}
