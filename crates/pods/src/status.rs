//! A pod's `status`, as a pure function of the object and of what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::decide::{End, SandboxState, Wanted, end};
use crate::image::Images;
use crate::protocol::{Exit, Record, RunState};

/// Why a container doesn't run, in the words that Kubernetes uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// `ErrImagePull`, `CreateContainerConfigError`, …
    pub reason: String,
    /// What the user can do.
    pub message: String,
}

/// What a status is made from, besides the object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// What is wanted.
    pub wanted: Wanted,
    /// The pod's process 1.
    pub sandbox: SandboxState,
    /// The containers as far as they were ever started.
    pub records: BTreeMap<String, Record>,
    /// Containers that have started, by their startup probe.
    pub started: BTreeSet<String>,
    /// Containers that are ready, by their readiness probe.
    pub ready: BTreeSet<String>,
    /// Why containers can't be started.
    pub waiting: BTreeMap<String, Waiting>,
    /// Until when containers wait for their next start.
    pub backing_off: BTreeMap<String, Timestamp>,
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
    /// The node's.
    pub host_ips: Vec<IpAddr>,
    /// Nothing of the pod is left: it will never run again, whatever its policy says.
    pub finished: bool,
}

fn terminated(exit: &Exit) -> ContainerStateTerminated {
    let reason = match exit {
        Exit { failure: Some(_), .. } => "StartError",
        Exit { code: 0, .. } => "Completed",
        _ => "Error",
    };
    ContainerStateTerminated {
        container_id: Some(format!("portolan://{}", exit.id)),
        exit_code: exit.code,
        finished_at: Some(Time(exit.finished)),
        message: exit.failure.clone().or_else(|| exit.last_words.clone()),
        reason: Some(reason.to_owned()),
        signal: exit.signal,
        started_at: Some(Time(exit.started)),
    }
}

/// Timestamps of the API have whole seconds; comparing with finer ones would never find two equal.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn container_status(container: &Container, facts: &Facts, initialized: bool) -> ContainerStatus {
    let name = &container.name;
    let record = facts.records.get(name);
    let mut status = ContainerStatus {
        name: name.clone(),
        image: container.image.clone().unwrap_or_default(),
        ..ContainerStatus::default()
    };
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    };
    let of_exit = |exit: &Exit| {
        let mut terminated = terminated(exit);
        for time in [&mut terminated.started_at, &mut terminated.finished_at].into_iter().flatten() {
            time.0 = whole_seconds(time.0);
        }
        ContainerState { terminated: Some(terminated), ..ContainerState::default() }
    };
    if let Some(record) = record {
        status.restart_count = record.attempt as i32;
        status.container_id = Some(format!("portolan://{}", record.id));
        status.image_id = Images::id(&record.image);
        status.last_state = record.previous.as_ref().map(of_exit);
    }
    status.started = Some(false);
    status.state = Some(match record.map(|record| &record.state) {
        Some(RunState::Running(since)) => {
            status.started = Some(facts.started.contains(name));
            status.ready = facts.ready.contains(name);
            let started_at = Some(Time(whole_seconds(*since)));
            ContainerState {
                running: Some(ContainerStateRunning { started_at }),
                ..ContainerState::default()
            }
        }
        Some(RunState::Exited(exit)) => {
            if let Some(until) = facts.backing_off.get(name).filter(|_| !facts.finished) {
                status.last_state = Some(of_exit(exit));
                let seconds = until.duration_since(exit.finished).as_secs();
                let message = format!("back-off {seconds}s restarting failed container={name}");
                waiting("CrashLoopBackOff", Some(message))
            } else if let Some(problem) = facts.waiting.get(name).filter(|_| !facts.finished) {
                status.last_state = Some(of_exit(exit));
                waiting(&problem.reason, Some(problem.message.clone()))
            } else {
                of_exit(exit)
            }
        }
        None => match facts.waiting.get(name) {
            Some(problem) => waiting(&problem.reason, Some(problem.message.clone())),
            None if initialized => waiting("ContainerCreating", None),
            None => waiting("PodInitializing", None),
        },
    });
    status
}

/// Sets a condition, and keeps the time of its last change where it doesn't change.
fn condition(
    status: &mut PodStatus,
    kind: &str,
    value: bool,
    reason: Option<(&str, String)>,
    now: Timestamp,
) {
    let value = if value { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let index = conditions.iter().position(|condition| condition.type_ == kind).unwrap_or_else(|| {
        conditions.push(PodCondition { type_: kind.to_owned(), ..PodCondition::default() });
        conditions.len() - 1
    });
    let condition = &mut conditions[index];
    if condition.status != value {
        value.clone_into(&mut condition.status);
        condition.last_transition_time = Some(Time(whole_seconds(now)));
    }
    let (reason, message) =
        reason.map_or((None, None), |(reason, message)| (Some(reason.to_owned()), Some(message)));
    condition.reason = reason;
    condition.message = message;
}

/// The status that the object should have. What others put there (other conditions, the QoS class) stays.
pub(crate) fn status(pod: &Pod, facts: &Facts, now: Timestamp) -> PodStatus {
    let mut status = pod.status.clone().unwrap_or_default();
    let Some(spec) = &pod.spec else { return status };
    let end = end(&facts.wanted, &facts.records);
    let main = &spec.containers;
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let sidecar = |name: &str| facts.wanted.init.iter().any(|one| one.name == name && one.sidecar);
    let exit_of = |container: &Container| match facts.records.get(&container.name).map(|record| &record.state)
    {
        Some(RunState::Exited(exit)) => Some(exit),
        _ => None,
    };
    let pending: Vec<&str> = init
        .iter()
        .filter(|container| {
            if sidecar(&container.name) {
                !facts.started.contains(&container.name)
            } else {
                exit_of(container).is_none_or(|exit| exit.code != 0)
            }
        })
        .map(|container| container.name.as_str())
        .collect();
    let ever_ran = main.iter().any(|container| facts.records.contains_key(&container.name));
    let initialized = pending.is_empty() || ever_ran;
    let phase = match end {
        Some(End::Succeeded) => "Succeeded",
        Some(End::Failed) => "Failed",
        // A deleted pod whose containers have ended is over, even where its policy would restart them.
        None if facts.finished && !ever_ran => "Failed",
        None if facts.finished => {
            if main.iter().all(|container| exit_of(container).is_some_and(|exit| exit.code == 0)) {
                "Succeeded"
            } else {
                "Failed"
            }
        }
        None if main.iter().all(|container| facts.records.contains_key(&container.name)) => "Running",
        None => "Pending",
    };
    status.phase = Some(phase.to_owned());
    status.start_time = status.start_time.or_else(|| Some(Time(whole_seconds(now))));
    status.observed_generation = pod.metadata.generation.or(status.observed_generation);
    status.host_ip = facts.host_ips.first().map(IpAddr::to_string);
    let host_ips: Vec<HostIP> = facts.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect();
    status.host_ips = Some(host_ips).filter(|ips| !ips.is_empty());
    if !facts.pod_ips.is_empty() {
        status.pod_ip = facts.pod_ips.first().map(IpAddr::to_string);
        status.pod_ips = Some(facts.pod_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect());
    }
    let statuses = |containers: &[Container], initialized: bool| {
        let all = containers.iter().map(|container| container_status(container, facts, initialized));
        all.collect::<Vec<_>>()
    };
    let mut of_init = statuses(init, true);
    for (one, container) in of_init.iter_mut().zip(init) {
        // An init container is ready when it has done its work.
        if !sidecar(&container.name) {
            one.ready = exit_of(container).is_some_and(|exit| exit.code == 0);
        }
        if !facts.records.contains_key(&container.name) && pending.first() != Some(&container.name.as_str()) {
            let state = ContainerStateWaiting { reason: Some("PodInitializing".to_owned()), message: None };
            one.state = Some(ContainerState { waiting: Some(state), ..ContainerState::default() });
        }
    }
    status.init_container_statuses = Some(of_init).filter(|all| !all.is_empty());
    let of_main = statuses(main, initialized);
    let unready: Vec<&str> = of_main.iter().filter(|one| !one.ready).map(|one| one.name.as_str()).collect();
    let names = |names: &[&str]| format!("[{}]", names.join(" "));
    let not_ready = match end {
        Some(End::Succeeded) => Some(("PodCompleted", String::new())),
        Some(End::Failed) => Some(("PodFailed", String::new())),
        None if !unready.is_empty() => {
            Some(("ContainersNotReady", format!("containers with unready status: {}", names(&unready))))
        }
        None => None,
    };
    status.container_statuses = Some(of_main);
    let not_initialized = (!initialized).then(|| {
        ("ContainersNotInitialized", format!("containers with incomplete status: {}", names(&pending)))
    });
    let held_by_gate = spec.readiness_gates.iter().flatten().find(|gate| {
        let met =
            |condition: &PodCondition| condition.type_ == gate.condition_type && condition.status == "True";
        !status.conditions.iter().flatten().any(met)
    });
    let gate_reason = held_by_gate.map(|gate| {
        let message = format!(
            "corresponding condition of pod readiness gate \"{}\" does not exist or is not \"True\"",
            gate.condition_type
        );
        ("ReadinessGatesNotReady", message)
    });
    condition(&mut status, "PodReadyToStartContainers", facts.sandbox == SandboxState::Ready, None, now);
    condition(&mut status, "Initialized", initialized, not_initialized, now);
    let containers_ready = not_ready.is_none();
    condition(&mut status, "ContainersReady", containers_ready, not_ready.clone(), now);
    condition(
        &mut status,
        "Ready",
        containers_ready && gate_reason.is_none(),
        not_ready.or(gate_reason),
        now,
    );
    if !status.conditions.iter().flatten().any(|condition| condition.type_ == "PodScheduled") {
        condition(&mut status, "PodScheduled", true, None, now);
    }
    for condition in status.conditions.iter_mut().flatten() {
        if condition.message.as_deref() == Some("") {
            condition.message = None;
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).expect("a time")
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1"},
            "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "echo"}]},
            "status": {"qosClass": "BestEffort", "conditions": [{"type": "Custom", "status": "False"}]}
        }))
        .expect("a Pod")
    }

    fn facts(state: Option<RunState>, ready: bool) -> Facts {
        let record = |state| Record {
            id: "u1-a-1".into(),
            attempt: 1,
            streak: 1,
            image: "echo".into(),
            state,
            previous: None,
        };
        Facts {
            wanted: Wanted { containers: vec!["a".into()], ..Wanted::default() },
            sandbox: SandboxState::Ready,
            records: state.into_iter().map(|state| ("a".to_owned(), record(state))).collect(),
            started: BTreeSet::from(["a".to_owned()]),
            ready: ready.then(|| "a".to_owned()).into_iter().collect(),
            pod_ips: vec!["10.1.0.1".parse().expect("an address"), "fd00::1".parse().expect("an address")],
            host_ips: vec!["192.0.2.1".parse().expect("an address")],
            ..Facts::default()
        }
    }

    fn condition_of(status: &PodStatus, kind: &str) -> (String, Option<String>) {
        let conditions = status.conditions.as_ref().expect("conditions");
        let one = conditions.iter().find(|one| one.type_ == kind).expect("the condition");
        (one.status.clone(), one.reason.clone())
    }

    #[test]
    fn a_running_and_ready_pod_says_so_and_keeps_what_others_wrote() {
        let status = status(&pod(), &facts(Some(RunState::Running(at(0))), true), at(5));
        assert_eq!(status.phase.as_deref(), Some("Running"));
        assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
        assert_eq!(status.pod_ip.as_deref(), Some("10.1.0.1"));
        assert_eq!(status.pod_ips.as_ref().map(Vec::len), Some(2));
        assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
        for kind in ["Ready", "ContainersReady", "Initialized", "PodScheduled"] {
            assert_eq!(condition_of(&status, kind), ("True".to_owned(), None), "{kind}");
        }
        assert_eq!(condition_of(&status, "Custom").0, "False");
        let one = &status.container_statuses.as_ref().expect("statuses")[0];
        assert_eq!((one.ready, one.started, one.restart_count), (true, Some(true), 1));
        assert_eq!(one.container_id.as_deref(), Some("portolan://u1-a-1"));
    }

    #[test]
    fn nothing_changes_when_nothing_has_changed() {
        let mut pod = pod();
        let facts = facts(Some(RunState::Running(at(0))), true);
        pod.status = Some(status(&pod, &facts, at(5)));
        assert_eq!(Some(status(&pod, &facts, at(77))), pod.status);
    }

    #[test]
    fn each_state_of_a_container_has_its_phase_and_reason() {
        let exit = |code| {
            RunState::Exited(Exit {
                id: "u1-a-1".into(),
                code,
                signal: None,
                started: at(0),
                finished: at(1),
                failure: None,
                last_words: None,
            })
        };
        let mut crash = facts(Some(exit(1)), false);
        crash.backing_off.insert("a".into(), at(21));
        let mut image = facts(None, false);
        let problem = Waiting { reason: "ErrImagePull".into(), message: "no such image".into() };
        image.waiting.insert("a".into(), problem);
        let mut never = facts(Some(exit(0)), false);
        never.wanted.restart = crate::decide::Restart::Never;
        let mut failed = facts(Some(exit(3)), false);
        failed.wanted.restart = crate::decide::Restart::Never;
        for (facts, phase, waiting, ready) in [
            (facts(None, false), "Pending", Some("ContainerCreating"), "ContainersNotReady"),
            (crash, "Running", Some("CrashLoopBackOff"), "ContainersNotReady"),
            (image, "Pending", Some("ErrImagePull"), "ContainersNotReady"),
            (never, "Succeeded", None, "PodCompleted"),
            (failed, "Failed", None, "PodFailed"),
        ] {
            let status = status(&pod(), &facts, at(5));
            assert_eq!(status.phase.as_deref(), Some(phase), "{waiting:?}");
            let one = &status.container_statuses.as_ref().expect("statuses")[0];
            let reason = one
                .state
                .as_ref()
                .and_then(|state| state.waiting.as_ref())
                .and_then(|one| one.reason.clone());
            assert_eq!(reason.as_deref(), waiting, "{phase}");
            assert_eq!(condition_of(&status, "Ready"), ("False".to_owned(), Some(ready.to_owned())));
        }
    }

    #[test]
    fn a_readiness_gate_holds_a_pod_back_until_its_condition_is_true() {
        let mut pod = pod();
        let gate = json!([{"conditionType": "Custom"}]);
        let spec = pod.spec.as_mut().expect("a spec");
        spec.readiness_gates = serde_json::from_value(gate).expect("gates");
        let facts = facts(Some(RunState::Running(at(0))), true);
        let held = status(&pod, &facts, at(5));
        assert_eq!(condition_of(&held, "Ready").0, "False");
        assert_eq!(condition_of(&held, "ContainersReady").0, "True");
        let conditions =
            pod.status.as_mut().and_then(|status| status.conditions.as_mut()).expect("conditions");
        conditions[0].status = "True".into();
        assert_eq!(condition_of(&status(&pod, &facts, at(5)), "Ready").0, "True");
    }
}
