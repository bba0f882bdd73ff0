//! When stale UDP flows are looked for a second time.
//!
//! The first look, right after the commit that made them stale, leaves two kinds of flow behind: those whose backend may be about
//! to answer, and those whose first packet was decided by the old tables and had not reached the connection table yet.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use portolan_plan::model::Frontend;

/// After this time at least, and twice that at most: a flow that was in use when it was spared has been idle for a second by
/// then, unless it is in use all the time.
const GRACE: Duration = Duration::from_millis(1100);

/// The frontends whose flows are to be looked at again. However often they change, there is a look in each [`GRACE`] at most.
#[derive(Debug, Default)]
pub(crate) struct SecondLook {
    at: Option<Instant>,
    due: BTreeSet<Frontend>,
    later: BTreeSet<Frontend>,
}

impl SecondLook {
    /// Flows to these were looked at, for the first time.
    pub fn after(&mut self, now: Instant, frontends: impl IntoIterator<Item = Frontend>) {
        let set = if self.at.is_some() { &mut self.later } else { &mut self.due };
        set.extend(frontends);
        if self.at.is_none() && !self.due.is_empty() {
            self.at = Some(now + GRACE);
        }
    }

    /// When the next look is due, if there is one.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// What to look at now; nothing before its time.
    pub fn take(&mut self, now: Instant) -> BTreeSet<Frontend> {
        if self.at.is_none_or(|at| at > now) {
            return BTreeSet::new();
        }
        let due = std::mem::replace(&mut self.due, std::mem::take(&mut self.later));
        self.at = (!self.due.is_empty()).then_some(now + GRACE);
        due
    }
}

#[cfg(test)]
mod tests {
    use portolan_plan::model::{Family, Protocol};

    use super::*;

    fn frontend(port: u16) -> Frontend {
        Frontend::NodePort { family: Family::V4, protocol: Protocol::Udp, port }
    }

    #[test]
    fn every_frontend_is_looked_at_again_after_its_grace_and_seldom() {
        let begin = Instant::now();
        let mut look = SecondLook::default();
        let (mut looks, mut seen) = (0, Vec::new());
        // One change in each millisecond.
        for port in 0..5000 {
            let now = begin + Duration::from_millis(u64::from(port));
            look.after(now, [frontend(port)]);
            let taken = look.take(now);
            looks += usize::from(!taken.is_empty());
            seen.extend(taken.into_iter().map(|f| (f, now)));
        }
        let end = begin + Duration::from_secs(6);
        for now in [end, end + GRACE] {
            seen.extend(look.take(now).into_iter().map(|f| (f, now)));
        }
        assert_eq!(look.at(), None);
        assert!(looks <= 4, "{looks}");
        let found: BTreeSet<Frontend> = seen.iter().map(|(f, _)| *f).collect();
        assert_eq!((seen.len(), found.len()), (5000, 5000));
        for (f, at) in seen {
            let Frontend::NodePort { port, .. } = f else { unreachable!() };
            let waited = at - (begin + Duration::from_millis(u64::from(port)));
            assert!(waited >= GRACE, "{port}: {waited:?}");
            assert!(waited <= 2 * GRACE || port >= 2800, "{port}: {waited:?}");
        }
    }
}
