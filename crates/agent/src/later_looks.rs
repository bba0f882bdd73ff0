//! When stale UDP flows are looked for again.
//!
//! The first look, right after the commit that made them stale, gives the flows to a backend that leaves a second to live. What
//! is left a second later had a packet meanwhile: of a client that goes on and on, or of one that was given the port of an earlier
//! one and asked once. The second look does the same again, after which hardly any of the latter kind is left, and the last one
//! forgets what remains. Flows whose first packet was decided by the old tables, but had not reached the connection table at the
//! first look, are met by the others.

use std::time::{Duration, Instant};

use portolan_plan::planner::StaleUdp;

/// After this time at least, and twice that at most, comes the second look, and after the same time again the last: a flow that
/// was given a second to live has ended by then, if it had no packet.
const GRACE: Duration = Duration::from_millis(1100);

/// The frontends whose flows are to be looked at again, with the backends that they had at the first look. However often they
/// change, there is a look in each [`GRACE`] at most.
#[derive(Debug, Default)]
pub(crate) struct LaterLooks {
    at: Option<Instant>,
    /// Looked at once, too lately for the look that comes next.
    fresh: StaleUdp,
    second: StaleUdp,
    last: StaleUdp,
}

/// What to look at now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    pub second: StaleUdp,
    pub last: StaleUdp,
}

impl LaterLooks {
    /// Flows to these were looked at, for the first time.
    pub fn after(&mut self, now: Instant, stale: StaleUdp) {
        self.fresh.extend(stale);
        self.plan(now);
    }

    /// When the next look is due, if there is one.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// What to look at now; nothing before its time.
    pub fn take(&mut self, now: Instant) -> Option<Due> {
        self.at.filter(|at| *at <= now)?;
        let last = std::mem::replace(&mut self.last, self.second.clone());
        let due = Due { second: std::mem::take(&mut self.second), last };
        self.at = None;
        self.plan(now);
        Some(due)
    }

    fn plan(&mut self, now: Instant) {
        if self.at.is_none() {
            self.second = std::mem::take(&mut self.fresh);
            let some = !self.second.is_empty() || !self.last.is_empty();
            self.at = some.then_some(now + GRACE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use portolan_plan::model::{Backend, Family, Frontend, Protocol};
    use portolan_plan::service::UdpBackends;

    use super::*;

    fn frontend(port: u16) -> Frontend {
        Frontend::NodePort { family: Family::V4, protocol: Protocol::Udp, port }
    }

    fn stale(port: u16, serving: &[Backend]) -> StaleUdp {
        let serving = serving.iter().copied().collect();
        [(frontend(port), Arc::new(UdpBackends { serving, ..UdpBackends::default() }))].into()
    }

    #[test]
    fn every_frontend_is_looked_at_twice_more_each_after_its_grace_and_seldom() {
        let begin = Instant::now();
        let mut looks = LaterLooks::default();
        let mut times: Vec<Instant> = Vec::new();
        let (mut second, mut last) = (BTreeMap::new(), BTreeMap::new());
        // One change in each millisecond, and then none.
        for ms in 0..10_000 {
            let now = begin + Duration::from_millis(ms);
            if let Some(port) = u16::try_from(ms).ok().filter(|port| *port < 5000) {
                looks.after(now, stale(port, &[]));
            }
            if let Some(due) = looks.take(now) {
                times.push(now);
                let twice = due.second.into_keys().filter_map(|f| second.insert(f, now)).count()
                    + due.last.into_keys().filter_map(|f| last.insert(f, now)).count();
                assert_eq!(twice, 0);
            }
        }
        assert_eq!(looks.at(), None);
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= GRACE), "{times:?}");
        for port in 0..5000 {
            let first = begin + Duration::from_millis(u64::from(port));
            let (second, last) = (second[&frontend(port)], last[&frontend(port)]);
            for waited in [second - first, last - second] {
                assert!(waited >= GRACE && waited <= 2 * GRACE, "{port}: {waited:?}");
            }
        }
    }

    #[test]
    fn a_look_knows_which_backends_served_at_the_first_one_though_they_changed_since() {
        let [a, b] = [1, 2].map(|n| Backend { address: [10, 0, 0, n].into(), port: 80 });
        let begin = Instant::now();
        let mut looks = LaterLooks::default();
        looks.after(begin, stale(1, &[a, b]));
        let next = begin + GRACE;
        assert_eq!(looks.take(next).map(|due| due.second), Some(stale(1, &[a, b])));
        // One millisecond before the last look: what that leaves alone has two looks of its own to come.
        looks.after(next + GRACE - Duration::from_millis(1), stale(1, &[a]));
        let due = looks.take(next + GRACE).expect("the last look");
        assert_eq!(due, Due { second: StaleUdp::new(), last: stale(1, &[a, b]) });
        assert_eq!(looks.take(next + 2 * GRACE).map(|due| due.second), Some(stale(1, &[a])));
        assert_eq!(looks.take(next + 3 * GRACE).map(|due| due.last), Some(stale(1, &[a])));
        assert_eq!(looks.at(), None);
    }
}
