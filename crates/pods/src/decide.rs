//! What to do next for a pod: a pure function of what is wanted and what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::protocol::{Exit, Record, RunState};

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Restart {
    /// Whatever happens.
    #[default]
    Always,
    /// After an exit status other than 0.
    OnFailure,
    /// Not at all.
    Never,
}

/// An init container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Init {
    /// Its name.
    pub name: String,
    /// `restartPolicy: Always`: it stays, and the next starts once it has started.
    pub sidecar: bool,
}

/// What the API wants of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The restart policy.
    pub restart: Restart,
    /// Containers that run to their end, one after the other, before the others.
    pub init: Vec<Init>,
    /// The containers.
    pub containers: Vec<String>,
    /// `terminationGracePeriodSeconds`.
    pub grace: Duration,
    /// The pod is to go: by then its containers are killed.
    pub deleted: Option<Timestamp>,
}

/// The pod's process 1 and namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SandboxState {
    /// There is none.
    #[default]
    Absent,
    /// It is there, with its network.
    Ready,
    /// It was there and has died.
    Dead,
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// The pod's process 1.
    pub sandbox: SandboxState,
    /// The containers as far as they were ever started.
    pub records: BTreeMap<String, Record>,
    /// Containers whose startup probe has succeeded, or that have none and run.
    pub started: BTreeSet<String>,
    /// Runs (by id) whose liveness or startup probe has failed.
    pub unhealthy: BTreeSet<String>,
    /// Runs (by id) that were told to end.
    pub stopping: BTreeSet<String>,
    /// Containers that can't be started now (no image, no such ConfigMap), and when to try again.
    pub blocked: BTreeMap<String, Timestamp>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make the pod's process 1 and network.
    MakeSandbox,
    /// Kill what is left of the pod's processes and remove its network.
    RemoveSandbox,
    /// Start a container.
    Start {
        /// The container.
        name: String,
        /// How many times it was started before.
        attempt: u32,
        /// Restarts in a row after short runs, this one included.
        streak: u32,
    },
    /// End a container.
    Stop {
        /// The container.
        name: String,
        /// Which run.
        id: String,
        /// How long it may take.
        grace: Duration,
        /// Whether the pod goes, or only this run.
        for_good: bool,
    },
    /// Nothing runs any more: forget the pod, and remove the object.
    Finish,
}

/// What to do next, and when to ask again at the latest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Decision {
    /// To be done now, in this order.
    pub actions: Vec<Action>,
    /// Something is due then.
    pub wake: Option<Timestamp>,
    /// Containers that wait for their next start, and until when.
    pub backing_off: BTreeMap<String, Timestamp>,
}

/// The first wait between two starts of a container that keeps ending, in seconds; it doubles each time.
const FIRST_WAIT: i64 = 10;
/// The longest.
const LONGEST_WAIT: i64 = 300;
/// A container that ran for so long starts afresh: twice the longest wait, as elsewhere.
const LONG_RUN: SignedDuration = SignedDuration::from_secs(2 * LONGEST_WAIT);

/// How long after its end a container is started again, when it was restarted `streak` times in a row before.
pub(crate) fn wait(streak: u32) -> SignedDuration {
    match streak {
        0 => SignedDuration::ZERO,
        _ => SignedDuration::from_secs((FIRST_WAIT << (streak - 1).min(10)).min(LONGEST_WAIT)),
    }
}

/// Restarts in a row, as they count after this end.
fn streak(record: &Record, exit: &Exit) -> u32 {
    if exit.finished.duration_since(exit.started) >= LONG_RUN { 0 } else { record.streak }
}

fn restarts(policy: Restart, exit: &Exit) -> bool {
    match policy {
        Restart::Always => true,
        Restart::OnFailure => exit.code != 0,
        Restart::Never => false,
    }
}

/// How all has ended, once nothing will be started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Every container ended well.
    Succeeded,
    /// At least one did not.
    Failed,
}

/// Whether the pod's work is over for good.
pub(crate) fn end(wanted: &Wanted, records: &BTreeMap<String, Record>) -> Option<End> {
    let exit = |name: &String| match records.get(name).map(|record| &record.state) {
        Some(RunState::Exited(exit)) => Some(exit),
        _ => None,
    };
    if wanted.restart == Restart::Never {
        let failed = wanted.init.iter().filter(|init| !init.sidecar).filter_map(|init| exit(&init.name));
        if failed.into_iter().any(|exit| exit.code != 0) {
            return Some(End::Failed);
        }
    }
    let exits: Option<Vec<&Exit>> = wanted.containers.iter().map(exit).collect();
    let exits = exits?;
    if exits.is_empty() || exits.iter().any(|exit| restarts(wanted.restart, exit)) {
        return None;
    }
    Some(if exits.iter().all(|exit| exit.code == 0) { End::Succeeded } else { End::Failed })
}

/// What to do next.
pub(crate) fn decide(wanted: &Wanted, observed: &Observed, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    if let Some(deadline) = wanted.deleted {
        let left = Duration::try_from(deadline.duration_since(now)).unwrap_or(Duration::ZERO);
        decision.stop_all(observed, left, true);
        if running(observed).next().is_none() {
            if observed.sandbox != SandboxState::Absent {
                decision.actions.push(Action::RemoveSandbox);
            }
            decision.actions.push(Action::Finish);
        }
        return decision;
    }
    if end(wanted, &observed.records).is_some() {
        // What still runs are sidecars, or nothing.
        decision.stop_all(observed, wanted.grace, true);
        if running(observed).next().is_none() && observed.sandbox != SandboxState::Absent {
            decision.actions.push(Action::RemoveSandbox);
        }
        return decision;
    }
    match observed.sandbox {
        SandboxState::Dead => {
            decision.actions.push(Action::RemoveSandbox);
            return decision;
        }
        SandboxState::Absent => {
            decision.actions.push(Action::MakeSandbox);
            return decision;
        }
        SandboxState::Ready => {}
    }
    for init in &wanted.init {
        let done = match observed.records.get(&init.name).map(|record| &record.state) {
            Some(RunState::Running(_)) => {
                decision.heal(&init.name, wanted, observed);
                init.sidecar && observed.started.contains(&init.name)
            }
            Some(RunState::Exited(exit)) if !init.sidecar && exit.code == 0 => true,
            _ => {
                let policy = if init.sidecar || wanted.restart == Restart::Always {
                    Restart::Always
                } else {
                    wanted.restart
                };
                decision.bring_up(&init.name, policy, observed, now);
                // A sidecar that had started once doesn't hold the others up while it is started again.
                init.sidecar && observed.records.get(&init.name).is_some_and(|record| record.attempt > 0)
            }
        };
        if !done {
            return decision;
        }
    }
    for name in &wanted.containers {
        match observed.records.get(name).map(|record| &record.state) {
            Some(RunState::Running(_)) => decision.heal(name, wanted, observed),
            _ => decision.bring_up(name, wanted.restart, observed, now),
        }
    }
    decision
}

fn running(observed: &Observed) -> impl Iterator<Item = (&String, &Record)> {
    observed.records.iter().filter(|(_, record)| matches!(record.state, RunState::Running(_)))
}

impl Decision {
    fn stop_all(&mut self, observed: &Observed, grace: Duration, for_good: bool) {
        for (name, record) in running(observed) {
            // Said again when the time left has become shorter, as after `delete --grace-period`: the supervisor keeps
            // the earlier of two deadlines, so the worker passes it on whenever the object changes.
            if !observed.stopping.contains(&record.id) {
                self.actions.push(Action::Stop {
                    name: name.clone(),
                    id: record.id.clone(),
                    grace,
                    for_good,
                });
            }
        }
    }

    /// Ends a run whose probes say that it doesn't work any more.
    fn heal(&mut self, name: &str, wanted: &Wanted, observed: &Observed) {
        let Some(record) = observed.records.get(name) else { return };
        if observed.unhealthy.contains(&record.id) && !observed.stopping.contains(&record.id) {
            self.actions.push(Action::Stop {
                name: name.to_owned(),
                id: record.id.clone(),
                grace: wanted.grace,
                for_good: false,
            });
        }
    }

    /// Starts a container that doesn't run, if and when it should.
    fn bring_up(&mut self, name: &str, policy: Restart, observed: &Observed, now: Timestamp) {
        let mut due = observed.blocked.get(name).copied().unwrap_or(Timestamp::MIN);
        let start = match observed.records.get(name) {
            None => Action::Start { name: name.to_owned(), attempt: 0, streak: 0 },
            Some(record) => {
                let RunState::Exited(exit) = &record.state else { return };
                if !restarts(policy, exit) {
                    return;
                }
                let streak = streak(record, exit);
                let again = exit.finished.checked_add(wait(streak)).unwrap_or(Timestamp::MAX);
                if again > now {
                    self.backing_off.insert(name.to_owned(), again);
                }
                due = due.max(again);
                Action::Start { name: name.to_owned(), attempt: record.attempt + 1, streak: streak + 1 }
            }
        };
        if due <= now {
            self.actions.push(start);
        } else {
            self.wake = Some(self.wake.map_or(due, |wake| wake.min(due)));
        }
    }
}

/// What the API wants of the pod.
pub(crate) fn wanted(pod: &Pod, gone: bool, first_seen_deleted: Option<Timestamp>, now: Timestamp) -> Wanted {
    let Some(spec) = &pod.spec else { return Wanted::default() };
    let seconds = |value: Option<i64>, default: u64| {
        value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default)
    };
    let restart = match spec.restart_policy.as_deref() {
        Some("Never") => Restart::Never,
        Some("OnFailure") => Restart::OnFailure,
        _ => Restart::Always,
    };
    let init = spec.init_containers.iter().flatten().map(|container| Init {
        name: container.name.clone(),
        sidecar: container.restart_policy.as_deref() == Some("Always"),
    });
    let deleted = if gone {
        Some(now)
    } else {
        pod.metadata.deletion_timestamp.as_ref().map(|stamp| {
            // The API's times have whole seconds, rounded down: without the second more a short grace would be none.
            // And clocks differ: never longer than the grace since this node has seen it.
            let grace = seconds(pod.metadata.deletion_grace_period_seconds, 30) as i64;
            let by_stamp = stamp.0.checked_add(SignedDuration::from_secs(1)).unwrap_or(Timestamp::MAX);
            let seen = first_seen_deleted.unwrap_or(now);
            by_stamp.min(seen.checked_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX))
        })
    };
    Wanted {
        restart,
        init: init.collect(),
        containers: spec.containers.iter().map(|container| container.name.clone()).collect(),
        grace: Duration::from_secs(seconds(spec.termination_grace_period_seconds, 30)),
        deleted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).expect("a time")
    }

    fn exit(code: i32, started: i64, finished: i64) -> Exit {
        Exit {
            id: "a-0".into(),
            code,
            signal: None,
            started: at(started),
            finished: at(finished),
            failure: None,
            last_words: None,
        }
    }

    fn record(streak: u32, state: RunState) -> Record {
        Record { id: "a-0".into(), attempt: streak, streak, image: "echo".into(), state, previous: None }
    }

    fn wanted(restart: Restart) -> Wanted {
        Wanted { restart, containers: vec!["a".into()], grace: Duration::from_secs(30), ..Wanted::default() }
    }

    fn ready(records: &[(&str, Record)]) -> Observed {
        Observed {
            sandbox: SandboxState::Ready,
            records: records.iter().map(|(name, record)| ((*name).to_owned(), record.clone())).collect(),
            ..Observed::default()
        }
    }

    fn start(name: &str, attempt: u32, streak: u32) -> Action {
        Action::Start { name: name.into(), attempt, streak }
    }

    #[test]
    fn a_new_pod_gets_a_sandbox_and_then_its_containers() {
        let wanted = wanted(Restart::Always);
        assert_eq!(decide(&wanted, &Observed::default(), at(0)).actions, [Action::MakeSandbox]);
        assert_eq!(decide(&wanted, &ready(&[]), at(0)).actions, [start("a", 0, 0)]);
        let runs = ready(&[("a", record(0, RunState::Running(at(0))))]);
        assert_eq!(decide(&wanted, &runs, at(1)), Decision::default());
    }

    #[test]
    fn the_restart_policy_says_which_ends_are_final() {
        for (policy, code, restarted, ended) in [
            (Restart::Always, 0, true, None),
            (Restart::Always, 1, true, None),
            (Restart::OnFailure, 0, false, Some(End::Succeeded)),
            (Restart::OnFailure, 1, true, None),
            (Restart::Never, 0, false, Some(End::Succeeded)),
            (Restart::Never, 1, false, Some(End::Failed)),
        ] {
            let observed = ready(&[("a", record(0, RunState::Exited(exit(code, 0, 1))))]);
            let decision = decide(&wanted(policy), &observed, at(1));
            let expected = if restarted { start("a", 1, 1) } else { Action::RemoveSandbox };
            assert_eq!(decision.actions, [expected], "{policy:?} {code}");
            assert_eq!(end(&wanted(policy), &observed.records), ended, "{policy:?} {code}");
        }
    }

    #[test]
    fn a_container_that_keeps_ending_is_started_ever_more_rarely() {
        for (streak, seconds) in [(0, 0), (1, 10), (2, 20), (3, 40), (5, 160), (6, 300), (60, 300)] {
            assert_eq!(wait(streak), SignedDuration::from_secs(seconds), "{streak}");
        }
        let observed = ready(&[("a", record(2, RunState::Exited(exit(1, 0, 5))))]);
        let early = decide(&wanted(Restart::Always), &observed, at(24));
        assert_eq!(early.actions, []);
        assert_eq!(early.wake, Some(at(25)));
        assert_eq!(early.backing_off, BTreeMap::from([("a".to_owned(), at(25))]));
        let due = decide(&wanted(Restart::Always), &observed, at(25));
        assert_eq!(due.actions, [start("a", 3, 3)]);
        let long = ready(&[("a", record(5, RunState::Exited(exit(1, 0, 600))))]);
        assert_eq!(decide(&wanted(Restart::Always), &long, at(600)).actions, [start("a", 6, 1)]);
    }

    #[test]
    fn a_blocked_container_waits_without_a_back_off_of_its_own() {
        let mut observed = ready(&[]);
        observed.blocked.insert("a".into(), at(9));
        let decision = decide(&wanted(Restart::Always), &observed, at(8));
        assert_eq!((decision.actions, decision.wake), (vec![], Some(at(9))));
        assert_eq!(decide(&wanted(Restart::Always), &observed, at(9)).actions, [start("a", 0, 0)]);
    }

    #[test]
    fn a_deleted_pod_stops_once_and_finishes_when_nothing_runs() {
        let mut wanted = wanted(Restart::Always);
        wanted.deleted = Some(at(30));
        let mut observed = ready(&[("a", record(0, RunState::Running(at(0))))]);
        let stop = Action::Stop {
            name: "a".into(),
            id: "a-0".into(),
            grace: Duration::from_secs(25),
            for_good: true,
        };
        assert_eq!(decide(&wanted, &observed, at(5)).actions, [stop]);
        observed.stopping.insert("a-0".into());
        assert_eq!(decide(&wanted, &observed, at(6)), Decision::default());
        let ended = ready(&[("a", record(0, RunState::Exited(exit(0, 0, 6))))]);
        assert_eq!(decide(&wanted, &ended, at(6)).actions, [Action::RemoveSandbox, Action::Finish]);
        assert_eq!(decide(&wanted, &Observed::default(), at(6)).actions, [Action::Finish]);
    }

    #[test]
    fn a_dead_sandbox_is_removed_and_made_again() {
        let mut observed = ready(&[("a", record(0, RunState::Exited(exit(137, 0, 1))))]);
        observed.sandbox = SandboxState::Dead;
        assert_eq!(decide(&wanted(Restart::Always), &observed, at(1)).actions, [Action::RemoveSandbox]);
        observed.sandbox = SandboxState::Absent;
        assert_eq!(decide(&wanted(Restart::Always), &observed, at(1)).actions, [Action::MakeSandbox]);
        // A pod that may not be started again has failed.
        assert_eq!(decide(&wanted(Restart::Never), &observed, at(1)), Decision::default());
        assert_eq!(end(&wanted(Restart::Never), &observed.records), Some(End::Failed));
    }

    #[test]
    fn an_unhealthy_container_is_stopped_and_then_started_again() {
        let mut observed = ready(&[("a", record(0, RunState::Running(at(0))))]);
        observed.unhealthy.insert("a-0".into());
        let stop = Action::Stop {
            name: "a".into(),
            id: "a-0".into(),
            grace: Duration::from_secs(30),
            for_good: false,
        };
        assert_eq!(decide(&wanted(Restart::Always), &observed, at(5)).actions, [stop]);
        observed.stopping.insert("a-0".into());
        assert_eq!(decide(&wanted(Restart::Always), &observed, at(5)).actions, []);
    }

    #[test]
    fn init_containers_end_one_after_the_other_and_sidecars_stay() {
        let mut wanted = wanted(Restart::Never);
        wanted.init =
            vec![Init { name: "i".into(), sidecar: false }, Init { name: "s".into(), sidecar: true }];
        let run = |state| record(0, state);
        let done = RunState::Exited(exit(0, 0, 1));
        assert_eq!(decide(&wanted, &ready(&[]), at(0)).actions, [start("i", 0, 0)]);
        let first = ready(&[("i", run(RunState::Running(at(0))))]);
        assert_eq!(decide(&wanted, &first, at(0)).actions, []);
        let second = ready(&[("i", run(done.clone()))]);
        assert_eq!(decide(&wanted, &second, at(1)).actions, [start("s", 0, 0)]);
        let mut third = ready(&[("i", run(done.clone())), ("s", run(RunState::Running(at(1))))]);
        assert_eq!(decide(&wanted, &third, at(1)).actions, []);
        third.started.insert("s".into());
        assert_eq!(decide(&wanted, &third, at(1)).actions, [start("a", 0, 0)]);
        let failed = ready(&[("i", run(RunState::Exited(exit(1, 0, 1))))]);
        assert_eq!(end(&wanted, &failed.records), Some(End::Failed));
        assert_eq!(decide(&wanted, &failed, at(1)).actions, [Action::RemoveSandbox]);
    }
}
