//! A pod in one line, as kubectl has always told it.

use jiff::Timestamp;
use serde_json::Value;

use crate::{duration, meta, walk};

/// What `kubectl get pods` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// `1/2`
    pub ready: String,
    /// `Running`, `CrashLoopBackOff`, `Terminating`, `Init:0/1` …
    pub status: String,
    /// `3 (5m ago)`
    pub restarts: String,
}

struct Restarts {
    count: i64,
    last: Option<String>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += walk::int(container, "restartCount").unwrap_or(0);
        let at = walk::text(container, "lastState.terminated.finishedAt");
        // Timestamps of whole seconds in UTC sort as text.
        if !at.is_empty() && self.last.as_deref().is_none_or(|l| l < at) {
            self.last = Some(at.to_owned());
        }
    }
}

fn ending(terminated: &Value, prefix: &str) -> String {
    let reason = walk::text(terminated, "reason");
    let signal = walk::int(terminated, "signal").unwrap_or(0);
    if !reason.is_empty() {
        format!("{prefix}{reason}")
    } else if signal != 0 {
        format!("{prefix}Signal:{signal}")
    } else {
        format!("{prefix}ExitCode:{}", walk::int(terminated, "exitCode").unwrap_or(0))
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    walk::list(pod, "status.conditions").iter().find(|c| walk::text(c, "type") == kind)
}

fn is_true(pod: &Value, kind: &str) -> bool {
    condition(pod, kind).is_some_and(|c| walk::text(c, "status") == "True")
}

/// Sums a pod up.
pub fn summary(pod: &Value, now: Timestamp) -> Summary {
    let inits = walk::list(pod, "spec.initContainers");
    let sidecar = |name: &str| {
        inits.iter().any(|c| walk::text(c, "name") == name && walk::text(c, "restartPolicy") == "Always")
    };
    let total = walk::list(pod, "spec.containers").len()
        + inits.iter().filter(|c| walk::text(c, "restartPolicy") == "Always").count();
    let phase = walk::text(pod, "status.phase");
    let mut status = match walk::text(pod, "status.reason") {
        "" => phase.to_owned(),
        reason => reason.to_owned(),
    };
    if condition(pod, "PodScheduled").is_some_and(|c| walk::text(c, "reason") == "SchedulingGated") {
        status = "SchedulingGated".into();
    }
    let mut ready = 0;
    let mut restarts = Restarts { count: 0, last: None };
    let mut sidecars = Restarts { count: 0, last: None };
    let mut initializing = false;
    for (i, container) in walk::list(pod, "status.initContainerStatuses").iter().enumerate() {
        let beside = sidecar(walk::text(container, "name"));
        restarts.add(container);
        if beside {
            sidecars.add(container);
        }
        let terminated = walk::at(container, "state.terminated");
        let waiting = walk::text(container, "state.waiting.reason");
        if terminated.is_some_and(|t| walk::int(t, "exitCode").unwrap_or(0) == 0) {
            continue;
        }
        if beside && walk::flag(container, "started") == Some(true) {
            ready += usize::from(walk::flag(container, "ready") == Some(true));
            continue;
        }
        status = match terminated {
            Some(t) => ending(t, "Init:"),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", inits.len()),
        };
        initializing = true;
        break;
    }
    if !initializing || is_true(pod, "Initialized") {
        restarts = sidecars;
        let mut running = false;
        // The first container has the last word.
        for container in walk::list(pod, "status.containerStatuses").iter().rev() {
            restarts.add(container);
            let waiting = walk::text(container, "state.waiting.reason");
            if !waiting.is_empty() {
                status = waiting.to_owned();
            } else if let Some(terminated) = walk::at(container, "state.terminated") {
                status = ending(terminated, "");
            } else if walk::flag(container, "ready") == Some(true)
                && walk::at(container, "state.running").is_some()
            {
                running = true;
                ready += 1;
            }
        }
        if status == "Completed" && running {
            status = if is_true(pod, "Ready") { "Running".into() } else { "NotReady".into() };
        }
    }
    if meta::deletion_timestamp(pod).is_some() {
        if walk::text(pod, "status.reason") == "NodeLost" {
            status = "Unknown".into();
        } else if !super::is_finished(pod) {
            status = "Terminating".into();
        }
    }
    let shown = match &restarts.last {
        Some(at) if restarts.count != 0 => format!("{} ({} ago)", restarts.count, duration::since(at, now)),
        _ => restarts.count.to_string(),
    };
    Summary { ready: format!("{ready}/{total}"), status, restarts: shown }
}
