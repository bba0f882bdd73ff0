//! What the agent measures of its own work. The forwarding thread writes it, the ports read it ([`crate::metrics`]).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use portolan_dataplane::Applied;
use portolan_metrics::Histogram;
use portolan_plan::model::{Action, FrontendKind, PlanChange, ServiceName};

use crate::observed::Update;

/// Counters, histograms and timestamps, shared by the agent's parts.
#[derive(Debug, Default)]
pub struct Meters {
    readings: Mutex<Readings>,
}

/// What the meters show.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readings {
    /// Changes of Services.
    pub services: Changes,
    /// Changes of endpoint slices.
    pub slices: Changes,
    /// Changes of whatever else the plan depends on.
    pub others: Changes,
    /// When a change last arrived.
    pub last_queued: Option<SystemTime>,
    /// Since when at least one change is not in the kernel.
    oldest: Option<Instant>,
    /// When the kernel last had all that was known.
    pub last_sync: Option<SystemTime>,
    /// The kernel refused the last plan.
    refused: bool,
    /// Plans that the kernel refused.
    pub failures: u64,
    /// Times that a whole plan took, and that a change took.
    pub full: Histogram,
    pub partial: Histogram,
    /// From the change in the cluster that a slice names, to its commit here.
    pub network_programming: Histogram,
    /// From the arrival of the oldest change of a commit, to the commit.
    pub arrival: Histogram,
    /// Changes in the cluster whose slices the kernel doesn't have yet.
    triggers: Vec<SystemTime>,
    /// Times that the connection table was looked through, and the flows that were forgotten.
    pub conntrack: Histogram,
    pub flows: u64,
    /// Which Services with a policy Local have endpoints, but none here: for traffic inside of the cluster, and from outside.
    no_local: BTreeMap<ServiceName, NoLocal>,
    /// What was sent to the kernel, and the time that it and we took.
    pub elements: u64,
    pub batches: u64,
    pub bytes: u64,
    pub kernel: Duration,
    pub encode: Duration,
    /// How often tables that somebody changed were put back.
    pub repairs: u64,
    /// Answers given by status code.
    pub healthz: BTreeMap<u16, u64>,
    pub livez: BTreeMap<u16, u64>,
}

/// How far changes have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// They arrived.
    pub arrived: u64,
    /// The forwarding thread took them.
    taken: u64,
    /// The kernel has them.
    done: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct NoLocal {
    internal: bool,
    external: bool,
}

/// Powers of two from a millisecond to 16 seconds, and for what is faster here, from 16 microseconds. The bounds from a
/// millisecond on are those of kube-proxy (pkg/proxy/metrics).
pub(crate) const SYNC_BOUNDS: &[f64] = &[
    0.000_015_625,
    0.000_031_25,
    0.000_062_5,
    0.000_125,
    0.000_25,
    0.000_5,
    0.001,
    0.002,
    0.004,
    0.008,
    0.016,
    0.032,
    0.064,
    0.128,
    0.256,
    0.512,
    1.024,
    2.048,
    4.096,
    8.192,
    16.384,
];

/// From 5 milliseconds to five minutes: kube-proxy's bounds thinned out, and finer ones below its first.
pub(crate) const PROGRAMMING_BOUNDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.125, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0,
    180.0, 300.0,
];

// === impl ===

impl Meters {
    fn readings(&self) -> MutexGuard<'_, Readings> {
        // Numbers: a thread that panicked left none of them worse than late.
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the readings.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&Readings) -> T) -> T {
        at(&self.readings())
    }

    /// A watch said something, which goes to the forwarding thread.
    pub(crate) fn arrived(&self, update: &Update, at: Instant) {
        let mut readings = self.readings();
        if readings.changes(update).is_some_and(|changes| {
            changes.arrived += 1;
            true
        }) {
            readings.oldest.get_or_insert(at);
            readings.last_queued = Some(SystemTime::now());
        }
    }

    /// The forwarding thread took it. `trigger` is the change in the cluster that it follows, if it is known.
    pub(crate) fn taken(&self, update: &Update, trigger: Option<SystemTime>) {
        let mut readings = self.readings();
        if let Some(changes) = readings.changes(update) {
            changes.taken += 1;
        }
        // While the kernel refuses everything they would pile up; the oldest tell enough.
        if let Some(trigger) = trigger.filter(|_| readings.triggers.len() < 10_000) {
            readings.triggers.push(trigger);
        }
    }

    /// This is what changed in the plan.
    pub(crate) fn planned(&self, change: &PlanChange) {
        let mut readings = self.readings();
        for (name, plan) in &change.services {
            let mut none = NoLocal::default();
            for frontend in plan.iter().flat_map(|p| p.frontends.values()) {
                if frontend.action == Action::Drop {
                    match frontend.kind {
                        FrontendKind::ClusterIp => none.internal = true,
                        _ => none.external = true,
                    }
                }
            }
            match none == NoLocal::default() {
                true => drop(readings.no_local.remove(name)),
                false => drop(readings.no_local.insert(name.clone(), none)),
            }
        }
    }

    /// The kernel took a whole plan, or a change.
    pub(crate) fn committed(&self, whole: bool, took: Duration, applied: &Applied) {
        let mut readings = self.readings();
        let histogram = if whole { &mut readings.full } else { &mut readings.partial };
        histogram.observe(SYNC_BOUNDS, took);
        readings.elements += applied.elements as u64;
        readings.batches += applied.batches as u64;
        readings.bytes += applied.bytes as u64;
        readings.kernel += applied.kernel;
        readings.encode += applied.encode;
    }

    /// The kernel has all that was taken, `since` the oldest of it arrived.
    pub(crate) fn done(&self, since: Option<Duration>) {
        let mut guard = self.readings();
        let readings = &mut *guard;
        for changes in [&mut readings.services, &mut readings.slices, &mut readings.others] {
            changes.done = changes.taken;
        }
        let pending =
            [readings.services, readings.slices, readings.others].iter().any(|changes| changes.pending() > 0);
        // What waits still arrived while the kernel was busy.
        readings.oldest = pending.then(Instant::now);
        readings.refused = false;
        let now = SystemTime::now();
        readings.last_sync = Some(now);
        if let Some(since) = since {
            readings.arrival.observe(SYNC_BOUNDS, since);
        }
        for trigger in readings.triggers.drain(..) {
            // Another machine's clock may be ahead.
            let took = now.duration_since(trigger).unwrap_or_default();
            readings.network_programming.observe(PROGRAMMING_BOUNDS, took);
        }
    }

    /// The kernel refused.
    pub(crate) fn refused(&self) {
        let mut readings = self.readings();
        readings.refused = true;
        readings.failures += 1;
    }

    /// Somebody had changed the tables, and they are right again.
    pub(crate) fn repaired(&self) {
        self.readings().repairs += 1;
    }

    /// The connection table was looked through.
    pub(crate) fn conntrack(&self, took: Duration, forgotten: usize) {
        let mut readings = self.readings();
        readings.conntrack.observe(SYNC_BOUNDS, took);
        readings.flows += forgotten as u64;
    }

    /// An answer was given on `/healthz`, or on `/livez`.
    pub(crate) fn answered(&self, healthz: bool, code: u16) {
        let mut readings = self.readings();
        let answers = if healthz { &mut readings.healthz } else { &mut readings.livez };
        *answers.entry(code).or_default() += 1;
    }
}

impl Readings {
    /// The changes of this update's kind; `None` for the begin and end of a list, which are no change.
    fn changes(&mut self, update: &Update) -> Option<&mut Changes> {
        match update {
            Update::Service(said) => said.is_change().then_some(&mut self.services),
            Update::Slice(said) => said.is_change().then_some(&mut self.slices),
            Update::Node(said) => said.is_change().then_some(&mut self.others),
            Update::ServiceCidr(said) => said.is_change().then_some(&mut self.others),
        }
    }

    /// Whether the kernel follows: it took the last plan, and nothing waits for longer than `limit`.
    pub fn healthy(&self, limit: Duration) -> bool {
        !self.refused && self.oldest.is_none_or(|at| at.elapsed() < limit)
    }

    /// How many Services have a policy Local and endpoints, but none here: for traffic inside, and from outside.
    pub fn no_local(&self) -> (usize, usize) {
        let count = |of: fn(&NoLocal) -> bool| self.no_local.values().filter(|n| of(n)).count();
        (count(|n| n.internal), count(|n| n.external))
    }
}

impl Changes {
    /// How many the kernel doesn't have.
    pub fn pending(self) -> u64 {
        self.arrived.saturating_sub(self.done)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use portolan_plan::model::{Family, Frontend, FrontendPlan, Masquerade, Protocol, ServicePlan};

    use super::*;
    use crate::observed::Said;

    const LIMIT: Duration = Duration::from_secs(60);

    fn change() -> Update {
        let name = ServiceName::new("default", "web");
        Update::Slice(Said::Absent(crate::from_kube::Key { namespace: name.namespace, name: name.name }))
    }

    #[test]
    fn a_change_is_pending_until_the_kernel_has_it() {
        let meters = Meters::default();
        let (first, second) = (change(), change());
        meters.arrived(&first, Instant::now());
        meters.taken(&first, None);
        meters.arrived(&second, Instant::now());
        assert_eq!(meters.look(|r| (r.slices.arrived, r.slices.pending())), (2, 2));
        meters.done(None);
        assert_eq!(meters.look(|r| r.slices.pending()), 1, "the second came while the kernel was busy");
        meters.taken(&second, None);
        meters.done(None);
        assert_eq!(meters.look(|r| (r.slices.arrived, r.slices.pending())), (2, 0));
    }

    #[test]
    fn a_change_that_waits_for_too_long_is_unhealthy_even_if_nobody_took_it() {
        let meters = Meters::default();
        assert!(meters.look(|r| r.healthy(LIMIT)), "at the start");
        let Some(long_ago) = Instant::now().checked_sub(2 * LIMIT) else { return };
        meters.arrived(&change(), long_ago);
        assert!(!meters.look(|r| r.healthy(LIMIT)));
        meters.taken(&change(), None);
        meters.done(None);
        assert!(meters.look(|r| r.healthy(LIMIT)));
    }

    #[test]
    fn a_list_that_only_began_is_no_change() {
        let meters = Meters::default();
        meters.arrived(&Update::Service(Said::Begin), Instant::now());
        assert!(meters.look(|r| r.oldest.is_none() && r.services.arrived == 0));
    }

    #[test]
    fn a_kernel_that_refuses_is_unhealthy_until_it_follows() {
        let meters = Meters::default();
        meters.refused();
        assert!(!meters.look(|r| r.healthy(LIMIT)));
        meters.done(None);
        assert!(meters.look(|r| r.healthy(LIMIT) && r.failures == 1));
    }

    #[test]
    fn services_without_local_endpoints_are_counted_by_policy_and_forgotten_when_they_go() {
        let meters = Meters::default();
        let plan = |kind, action| {
            let frontend = Frontend::NodePort { family: Family::V4, protocol: Protocol::Tcp, port: 30080 };
            let what = FrontendPlan {
                kind,
                action,
                inside: None,
                masquerade: Masquerade::Node,
                source_ranges: None,
            };
            Some(Arc::new(ServicePlan { frontends: [(frontend, what)].into(), ..ServicePlan::default() }))
        };
        let tell = |plan| {
            let services = [(ServiceName::new("default", "web"), plan)].into();
            meters.planned(&PlanChange { services, ..PlanChange::default() });
            meters.look(|r| r.no_local())
        };
        assert_eq!(tell(plan(FrontendKind::ClusterIp, Action::Drop)), (1, 0));
        assert_eq!(tell(plan(FrontendKind::NodePort, Action::Drop)), (0, 1));
        assert_eq!(
            tell(plan(FrontendKind::NodePort, Action::Reject)),
            (0, 0),
            "none anywhere is another matter"
        );
        assert_eq!(tell(plan(FrontendKind::NodePort, Action::Drop)), (0, 1));
        assert_eq!(tell(None), (0, 0));
    }

    #[test]
    fn an_observation_is_in_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::default();
        for millis in [1, 2, 3, 100_000] {
            histogram.observe(SYNC_BOUNDS, Duration::from_millis(millis));
        }
        let at = |bound: f64| SYNC_BOUNDS.iter().position(|b| *b == bound).expect("a bound");
        assert_eq!(histogram.counts[at(0.001)], 1);
        assert_eq!(histogram.counts[at(0.002)], 1);
        assert_eq!(histogram.counts[at(0.004)], 1);
        assert_eq!(histogram.counts[SYNC_BOUNDS.len()], 1);
        assert_eq!(histogram.count(), 4);
    }
}
