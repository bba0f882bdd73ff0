//! The thread that forwards: takes what the watches say, plans it, and has the kernel follow, in this order.
//!
//! Whatever arrives while the kernel is busy is planned together afterwards, so a burst costs few transactions and a
//! single change waits for nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use portolan_dataplane::{Applied, Forget};
use portolan_plan::finding::Finding;
use portolan_plan::model::Frontend;
use portolan_plan::planner::StaleUdp;
use portolan_plan::service::UdpBackends;
use tokio::sync::watch;

use crate::dataplane::{Dataplane, Told};
use crate::health::Health;
use crate::later_looks::LaterLooks;
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
    /// How often the kernel's tables were put right after somebody else had changed them.
    pub repairs: u64,
    /// The last time that they were.
    pub last_disturbance: Option<Disturbance>,
}

/// Somebody else changed the kernel's tables, and they were put right.
///
/// Connections that were translated stay so: connection tracking remembers where each one goes. What the tables themselves
/// remember, the clients of Services with session affinity and the counters, is lost only with the table that is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// When they were right again.
    pub at: SystemTime,
    /// Who did what, such as "nft (pid 123) deleted table ip portolan".
    pub text: String,
}

/// What arrives at the thread.
pub(crate) enum Arrived {
    /// A watch said something.
    Update {
        at: Instant,
        update: Box<Update>,
        /// When the change in the cluster happened that it follows, if it is known.
        trigger: Option<SystemTime>,
    },
    /// The dataplane told of others.
    Told(Told),
}

/// How many updates are noted before the kernel follows, at most: endless updates must not put it off endlessly.
const BURST: usize = 20_000;
/// How long a node is waited for that has no ranges for its pods yet.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause after a first failure; it doubles with each further one.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_AT_MOST: Duration = Duration::from_secs(30);

/// A disturbance so soon after the last repair is taken for part of a fight.
const CALM: Duration = Duration::from_secs(10);
/// So many repairs in a row are made at once: a firewall's reload may well take several transactions.
const AT_ONCE: u32 = 3;
/// The longest pause between repairs; longer than this nobody's fight may keep the tables wrong.
const FIGHT_AT_MOST: Duration = Duration::from_secs(5);
/// When too much was committed to hear all of it, everything is read again, but not oftener than this.
const UNHEARD_EVERY: Duration = Duration::from_secs(10);

/// That the tables are to be looked at, and put right.
struct Look {
    at: Instant,
    /// Who did what, where it is known.
    cause: Option<String>,
}

/// How long to wait before the next repair, when somebody undoes each.
#[derive(Clone, Copy, Debug, Default)]
struct Fight {
    /// The last repair, and how many there were with less than [`CALM`] between them.
    last: Option<(Instant, u32)>,
}

impl Fight {
    fn repaired(&mut self, now: Instant) {
        let row = self.last.filter(|(at, _)| now - *at < CALM).map_or(0, |(_, row)| row);
        self.last = Some((now, row + 1));
    }

    /// The pause before the next repair.
    fn pause(&self, now: Instant) -> Duration {
        match self.last {
            Some((at, row)) if now - at < CALM && row >= AT_ONCE => {
                FIGHT_AT_MOST.min(RETRY * 2u32.saturating_pow((row - AT_ONCE).min(16)))
            }
            _ => Duration::ZERO,
        }
    }
}

pub(crate) struct Forwarder<D> {
    plane: D,
    observed: Observed,
    status: watch::Sender<Status>,
    health: watch::Sender<Health>,
    meters: Arc<Meters>,
    /// The machine's addresses, where they matter.
    addresses: Option<fn() -> Option<BTreeSet<std::net::IpAddr>>>,
    /// The kernel has the planner's plan as of its last change.
    in_step: bool,
    /// The first plan was made.
    begun: bool,
    begin_by: Option<Instant>,
    check_every: Duration,
    check_at: Instant,
    look: Option<Look>,
    /// Why the next sync is made, if because of a look.
    cause: Option<Option<String>>,
    fight: Fight,
    unheard_at: Option<Instant>,
    retry_at: Option<Instant>,
    stale_udp: StaleUdp,
    later_looks: LaterLooks,
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
        addresses: Option<fn() -> Option<BTreeSet<std::net::IpAddr>>>,
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
            look: None,
            cause: None,
            fight: Fight::default(),
            unheard_at: None,
            retry_at: None,
            stale_udp: StaleUdp::new(),
            later_looks: LaterLooks::default(),
            oldest: None,
            told: BTreeSet::new(),
        }
    }

    /// Forwards until the sender of updates is gone. Leaves the kernel as it is then. `tell` is given to the dataplane.
    pub fn run(mut self, updates: &Receiver<Arrived>, tell: Box<dyn Fn(Told) + Send>) {
        if let Err(error) = self.plane.watch(tell) {
            let every = self.check_every;
            tracing::warn!(
                error = format!("{error:#}"),
                ?every,
                "what others do to the tables is only seen now and then"
            );
        }
        loop {
            // Out of step, no flow is looked for.
            let later_look = self.later_looks.at().filter(|_| self.in_step);
            let timers =
                [Some(self.check_at), self.retry_at, self.look.as_ref().map(|look| look.at), later_look];
            let until = timers.into_iter().flatten().min().unwrap_or(self.check_at);
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

    fn note(&mut self, arrived: Arrived) {
        let (at, update, trigger) = match arrived {
            Arrived::Update { at, update, trigger } => (at, *update, trigger),
            Arrived::Told(Told::Disturbed(text)) => return self.disturbed(Some(text)),
            Arrived::Told(Told::Unheard) => return self.disturbed(None),
        };
        self.oldest.get_or_insert(at);
        self.meters.taken(&update, trigger);
        if matches!(update, Update::Node(_)) {
            self.look_at_addresses();
        }
        self.observed.note(update);
    }

    /// The machine's addresses, where they matter: they come and go without a word of the API's.
    fn look_at_addresses(&mut self) {
        if let Some(addresses) = self.addresses.and_then(|read| read()) {
            self.observed.local_addresses(addresses);
        }
    }

    /// Somebody changed the tables, or may have. What is noted meanwhile goes on to the kernel.
    fn disturbed(&mut self, cause: Option<String>) {
        if let Some(look) = &mut self.look {
            look.cause = look.cause.take().or(cause);
            return;
        }
        let now = Instant::now();
        let pause = match &cause {
            Some(text) => {
                let pause = self.fight.pause(now);
                if !pause.is_zero() {
                    tracing::warn!(
                        ?pause,
                        "{text}, again and again: the tables are put right after a pause; stop it"
                    );
                }
                pause
            }
            None => self.unheard_at.map_or(Duration::ZERO, |at| UNHEARD_EVERY.saturating_sub(now - at)),
        };
        if cause.is_none() {
            self.unheard_at = Some(now + pause);
        }
        self.look = Some(Look { at: now + pause, cause });
    }

    /// Sees now and then whether the kernel still has what it was given, and whether it is time to look closer.
    fn check(&mut self) {
        if Instant::now() >= self.check_at {
            if self.in_step && self.look.is_none() {
                match self.plane.disturbed() {
                    Ok(None) => {}
                    Ok(Some(text)) => self.disturbed(Some(text)),
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "the tables can't be looked for")
                    }
                }
            }
            self.look_at_addresses();
            self.check_at = Instant::now() + self.check_every;
        }
        if let Some(look) = self.look.take_if(|look| look.at <= Instant::now()) {
            self.in_step = false;
            self.cause = Some(look.cause);
        }
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
                self.report(None, whole);
                return;
            }
            self.plane.apply(&change)
        } else {
            // A change alone would not do: whatever failed before is missing from the kernel too.
            if self.retry_at.is_some_and(|at| at > Instant::now()) {
                return;
            }
            // This is a look, too: a change met the damage before its time had come.
            if let Some(look) = self.look.take() {
                self.cause.get_or_insert(look.cause);
            }
            self.plane.sync(planner.plan())
        };
        match applied {
            Ok(applied) => {
                self.meters.committed(whole, began.elapsed(), &applied);
                self.in_step = true;
                self.retry_at = None;
                self.put_right(&applied);
                // Gone while no agent ran: no plan of ours ever had them.
                for frontend in &applied.stray_udp {
                    self.stale_udp.entry(*frontend).or_default();
                }
                self.forget_udp();
                self.report(Some(applied), whole);
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Says so if tables were put right.
    fn put_right(&mut self, applied: &Applied) {
        let Some(cause) = self.cause.take() else {
            for text in &applied.damage {
                tracing::warn!("{text}; put right");
            }
            return;
        };
        if applied.batches == 0 || cause.is_none() && applied.damage.is_empty() {
            tracing::debug!(?cause, "the tables were touched, and are right");
            return;
        }
        self.fight.repaired(Instant::now());
        self.meters.repaired();
        let found = applied.damage.join(", ");
        let text = cause.unwrap_or_else(|| found.clone());
        tracing::warn!(found, elements = applied.elements, "{text}; the tables are right again");
        self.status.send_modify(|status| {
            status.repairs += 1;
            status.last_disturbance = Some(Disturbance { at: SystemTime::now(), text });
        });
        // A UDP flow that began meanwhile went untranslated, and would go there for as long as its sender goes on.
        for (frontend, backends) in self.observed.planner().udp_backends() {
            self.stale_udp.entry(*frontend).or_insert_with(|| backends.clone());
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

    /// Stale flows to the frontends that changed, and later on those that the first look left.
    fn forget_udp(&mut self) {
        let stale = std::mem::take(&mut self.stale_udp);
        if !stale.is_empty() {
            match self.forget(&stale, Forget::Unused) {
                true => self.later_looks.after(Instant::now(), stale),
                false => self.stale_udp = stale,
            }
        }
        let Some(due) = self.later_looks.take(Instant::now()) else { return };
        let backends = self.observed.planner().udp_backends();
        let now = |f: &Frontend| backends.get(f).cloned().unwrap_or_default();
        let second: StaleUdp = due.second.into_keys().map(|f| (f, now(&f))).collect();
        // What served at the first look and doesn't any more has looks of its own to come.
        let last: StaleUdp = due
            .last
            .into_iter()
            .map(|(f, then)| (f, UdpBackends::that_serve_or_did(&now(&f), &then)))
            .collect();
        for (stale, which) in [(second, Forget::Unused), (last, Forget::All)] {
            if !stale.is_empty() && !self.forget(&stale, which) {
                self.later_looks.after(Instant::now(), stale);
            }
        }
    }

    /// A flow that is not forgotten is not worth a transaction: its failure is told, and tried again.
    fn forget(&mut self, stale: &StaleUdp, which: Forget) -> bool {
        let began = Instant::now();
        match self.plane.forget_udp(self.observed.planner().plan(), stale, which) {
            Ok(flows) => {
                self.meters.conntrack(began.elapsed(), flows);
                if flows > 0 {
                    tracing::info!(flows, frontends = stale.len(), "stale UDP flows forgotten");
                }
                true
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "stale UDP flows stay until the next look");
                false
            }
        }
    }

    fn report(&mut self, applied: Option<Applied>, whole: bool) {
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
            let (elements, batches, kernel) = (applied.elements, applied.batches, applied.kernel);
            // A busy cluster changes a thousand times a second: that is a metric's to tell.
            match whole {
                true => tracing::info!(
                    services,
                    slices,
                    elements,
                    batches,
                    ?kernel,
                    ?latency,
                    "the kernel has the plan"
                ),
                false => tracing::debug!(
                    services,
                    slices,
                    elements,
                    batches,
                    ?kernel,
                    ?latency,
                    "the kernel follows"
                ),
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_undoes_each_repair_is_met_ever_more_slowly_and_forgiven_when_it_is_calm() {
        let mut fight = Fight::default();
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            pauses.push(fight.pause(now));
            now += *pauses.last().expect("pushed");
            fight.repaired(now);
        }
        assert_eq!(pauses[..4], [Duration::ZERO, Duration::ZERO, Duration::ZERO, RETRY]);
        assert!(pauses.is_sorted());
        assert_eq!(pauses.last(), Some(&FIGHT_AT_MOST));
        assert_eq!(fight.pause(now + CALM), Duration::ZERO);
        fight.repaired(now + CALM);
        assert_eq!(fight.pause(now + CALM), Duration::ZERO);
    }
}
