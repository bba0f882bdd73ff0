//! The thread that forwards: takes what the watches say, plans it, and has the kernel follow, in this order.
//!
//! Whatever arrives while the kernel is busy is planned together afterwards, so a burst costs few transactions and a
//! single change waits for nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use portolan_dataplane::Applied;
use portolan_plan::finding::Finding;
use portolan_plan::planner::StaleUdp;
use tokio::sync::watch;

use crate::dataplane::Dataplane;
use crate::health::Health;
use crate::meters::Meters;
use crate::observed::{Observed, Update};

/// How the agent fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The kernel has the plan of all that was listed.
    pub synced: bool,
    /// When the kernel last followed.
    pub last_sync: Option<SystemTime>,
    /// From the arrival of the oldest event in the last transaction to its commit.
    pub last_latency: Option<Duration>,
    /// Services that own a frontend on this node.
    pub services: usize,
    /// Endpoint slices known.
    pub slices: usize,
    /// Commits so far.
    pub commits: u64,
    /// Commits that failed, one after another; 0 when all is well.
    pub failures: u32,
    /// The last failure, while it lasts.
    pub error: Option<String>,
    /// What is wrong with objects.
    pub findings: Vec<Finding>,
}

/// An update and when it arrived.
pub(crate) struct Arrived {
    pub at: Instant,
    pub update: Update,
    /// When the change in the cluster happened that it follows, if it is known.
    pub trigger: Option<SystemTime>,
}

/// How many updates are noted before the kernel follows, at most: endless updates must not put it off endlessly.
const BURST: usize = 20_000;
/// How long a node is waited for that has no ranges for its pods yet.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause after a first failure; it doubles with each further one.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_AT_MOST: Duration = Duration::from_secs(30);

pub(crate) struct Forwarder<D> {
    plane: D,
    observed: Observed,
    status: watch::Sender<Status>,
    health: watch::Sender<Health>,
    meters: Arc<Meters>,
    /// The machine's addresses, where they matter.
    addresses: Option<fn() -> BTreeSet<std::net::IpAddr>>,
    /// The kernel has the planner's plan as of its last change.
    in_step: bool,
    /// The first plan was made.
    begun: bool,
    begin_by: Option<Instant>,
    check_every: Duration,
    check_at: Instant,
    retry_at: Option<Instant>,
    stale_udp: StaleUdp,
    /// When the oldest update that the kernel doesn't have arrived.
    oldest: Option<Instant>,
    told: BTreeSet<Finding>,
}

impl<D: Dataplane> Forwarder<D> {
    pub fn new(
        plane: D,
        observed: Observed,
        status: watch::Sender<Status>,
        health: watch::Sender<Health>,
        meters: Arc<Meters>,
        addresses: Option<fn() -> BTreeSet<std::net::IpAddr>>,
        check_every: Duration,
    ) -> Forwarder<D> {
        Forwarder {
            plane,
            observed,
            status,
            health,
            meters,
            addresses,
            in_step: false,
            begun: false,
            begin_by: None,
            check_every,
            check_at: Instant::now() + check_every,
            retry_at: None,
            stale_udp: StaleUdp::new(),
            oldest: None,
            told: BTreeSet::new(),
        }
    }

    /// Forwards until the sender of updates is gone. Leaves the kernel as it is then.
    pub fn run(mut self, updates: &Receiver<Arrived>) {
        loop {
            let until = self.retry_at.map_or(self.check_at, |at| at.min(self.check_at));
            let next = updates.recv_timeout(until.saturating_duration_since(Instant::now()));
            match next {
                Ok(arrived) => {
                    self.note(arrived);
                    updates.try_iter().take(BURST).for_each(|arrived| self.note(arrived));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.check();
            self.follow();
        }
    }

    fn note(&mut self, Arrived { at, update, trigger }: Arrived) {
        self.oldest.get_or_insert(at);
        self.meters.taken(&update, trigger);
        if let (Update::Node(_), Some(addresses)) = (&update, self.addresses) {
            self.observed.local_addresses(addresses());
        }
        self.observed.note(update);
    }

    /// Sees now and then whether the kernel still has what it was given.
    fn check(&mut self) {
        if Instant::now() < self.check_at {
            return;
        }
        if self.in_step {
            match self.plane.disturbed() {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!(
                        "the tables are gone from the kernel (was the ruleset flushed?); they are put back"
                    );
                    self.in_step = false;
                    self.meters.repaired();
                }
                Err(error) => tracing::warn!(error = format!("{error:#}"), "the tables can't be looked for"),
            }
        }
        self.check_at = Instant::now() + self.check_every;
    }

    /// Has the kernel follow what was noted, if it is time.
    fn follow(&mut self) {
        if !self.observed.synced() || !self.furnished() {
            return;
        }
        let planner = self.observed.planner();
        let change = planner.take_change();
        self.meters.planned(&change);
        for (frontend, keep) in planner.take_stale_udp() {
            self.stale_udp.insert(frontend, keep);
        }
        let (began, whole) = (Instant::now(), !self.in_step);
        let applied = if self.in_step {
            if change.is_empty() {
                self.forget_udp();
                self.report(None);
                return;
            }
            self.plane.apply(&change)
        } else {
            // A change alone would not do: whatever failed before is missing from the kernel too.
            if self.retry_at.is_some_and(|at| at > Instant::now()) {
                return;
            }
            self.plane.sync(planner.plan())
        };
        match applied {
            Ok(applied) => {
                self.meters.committed(whole, began.elapsed(), &applied);
                self.in_step = true;
                self.retry_at = None;
                // Gone while no agent ran: no plan of ours ever had them.
                for frontend in &applied.stray_udp {
                    self.stale_udp.entry(*frontend).or_default();
                }
                self.forget_udp();
                self.report(Some(applied));
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Whether to begin. A node that registers is given its pods' ranges a moment later; to plan before that would let
    /// outsiders at its ClusterIPs for as long. A node that is never given any has to be served too, so the wait ends.
    fn furnished(&mut self) -> bool {
        if self.begun {
            return true;
        }
        let until = *self.begin_by.get_or_insert_with(|| Instant::now() + PATIENCE);
        self.begun = self.observed.pods_are_known() || Instant::now() >= until;
        self.retry_at = Some(until).filter(|_| !self.begun);
        self.begun
    }

    fn failed(&mut self, error: &anyhow::Error) {
        self.in_step = false;
        self.meters.refused();
        self.health.send_if_modified(|health| std::mem::replace(&mut health.forwarding, false));
        let mut failures = 0;
        self.status.send_modify(|status| {
            status.failures += 1;
            status.error = Some(format!("{error:#}"));
            failures = status.failures;
        });
        let pause = RETRY_AT_MOST.min(RETRY * 2u32.saturating_pow(failures.min(16) - 1));
        self.retry_at = Some(Instant::now() + pause);
        tracing::error!(
            error = format!("{error:#}"),
            ?pause,
            "the kernel did not take the plan; it will be given it whole"
        );
    }

    /// A flow that is not forgotten is not worth a transaction: its failure is told, and tried again with the next change.
    fn forget_udp(&mut self) {
        if self.stale_udp.is_empty() {
            return;
        }
        let began = Instant::now();
        match self.plane.forget_udp(self.observed.planner().plan(), &self.stale_udp) {
            Ok(flows) => {
                self.meters.conntrack(began.elapsed(), flows);
                if flows > 0 {
                    tracing::info!(flows, frontends = self.stale_udp.len(), "stale UDP flows forgotten");
                }
                self.stale_udp.clear();
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "stale UDP flows stay until the next change")
            }
        }
    }

    fn report(&mut self, applied: Option<Applied>) {
        let now: BTreeSet<Finding> = self.observed.findings().cloned().collect();
        for finding in now.difference(&self.told) {
            tracing::warn!(object = %finding.object, field = %finding.field, "{}", finding.text);
        }
        let latency = self.oldest.take().map(|at| at.elapsed());
        self.meters.done(latency.filter(|_| applied.is_some()));
        let slices = self.observed.slices();
        let services = self.observed.planner().plan().services.len();
        if let Some(applied) = &applied {
            for finding in &applied.findings {
                tracing::warn!(service = finding.service, "{}", finding.text);
            }
            tracing::info!(
                services,
                slices,
                elements = applied.elements,
                batches = applied.batches,
                kernel = ?applied.kernel,
                ?latency,
                "the kernel follows"
            );
        }
        let planner = self.observed.planner();
        let (checks, addresses) = (planner.health_checks(), &planner.plan().node.node_addresses);
        self.health.send_if_modified(|health| {
            let changed = !health.forwarding || health.checks != *checks || health.addresses != *addresses;
            if changed {
                *health = Health { checks: checks.clone(), forwarding: true, addresses: addresses.clone() };
            }
            changed
        });
        self.status.send_modify(|status| {
            status.synced = true;
            status.failures = 0;
            status.error = None;
            status.services = services;
            status.slices = slices;
            if applied.is_some() {
                status.last_sync = Some(SystemTime::now());
                status.last_latency = latency;
                status.commits += 1;
            }
            status.findings = now.iter().cloned().collect();
        });
        self.told = now;
    }
}
