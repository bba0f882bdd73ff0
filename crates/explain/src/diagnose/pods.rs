//! Why a pod isn't ready: the first thing on its way from its creation to its readiness that hasn't happened.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use portolan_control::pods::{condition, is_terminal, is_terminating, node_name, phase};

use crate::cause::{Cause, Kind};
use crate::objects::*;
use crate::situation::Situation;

/// A container that ended badly so long ago is no reason any more.
const RECENT_SECONDS: i64 = 300;

/// The pod, as causes name it.
pub fn object(pod: &Pod) -> String {
    format!("pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// Why none of several pods is ready: what keeps the one that has come least far, and how many it keeps.
pub fn why_none_ready(s: &Situation<'_>, pods: &[Arc<Pod>]) -> Option<Cause> {
    let mut all: Vec<Cause> = pods.iter().map(|pod| why(s, pod)).collect();
    // Those that are on their way out, or have ended, say least of why nobody answers.
    all.sort_by_key(|c| c.kind);
    let mut first = all.first()?.clone();
    let alike = all.iter().filter(|c| c.kind == first.kind).count();
    if pods.len() > 1 {
        let others = match alike {
            n if n == pods.len() => format!("so are all {n} pods"),
            n => format!("{n} of {} pods are so, and none is ready", pods.len()),
        };
        first.text = format!("{} ({others})", first.text);
    }
    Some(first)
}

/// Why a pod isn't ready.
pub fn why(s: &Situation<'_>, pod: &Pod) -> Cause {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let describe = format!("kubectl describe pod {name} -n {namespace}");
    let logs = format!("kubectl logs {name} -n {namespace} --previous");
    let cause =
        |kind, field: &str, text: String, remedy: String| Cause::new(kind, object(pod), field, text, remedy);
    if is_terminating(pod) {
        return cause(
            Kind::Terminating,
            "metadata.deletionTimestamp",
            "the pod is being deleted".into(),
            "wait for its successor, or see why there is none: kubectl get deployments,replicasets".into(),
        );
    }
    if is_terminal(pod) {
        let reason =
            pod.status.as_ref().and_then(|s| s.reason.clone()).map_or(String::new(), |r| format!(": {r}"));
        return cause(
            Kind::Ended,
            "status.phase",
            format!("{}{reason}: the pod has ended and will not run again", phase(pod)),
            "run it under a Deployment, or with restartPolicy: Always".into(),
        );
    }
    let Some(node) = node_name(pod) else {
        let said = condition(pod, "PodScheduled").and_then(|c| c.message.clone());
        let said = said
            .or_else(|| s.evidence.objects.event(pod, &["FailedScheduling"]).and_then(|e| e.message.clone()));
        return cause(
            Kind::NotScheduled,
            "spec.nodeName",
            format!(
                "no node was found for the pod: {}",
                said.as_deref().unwrap_or("no scheduler has looked at it yet")
            ),
            "make room on a node, or change what the pod asks for (resources, nodeSelector, tolerations)"
                .into(),
        );
    };
    match s.evidence.objects.node(node) {
        None if !s.evidence.objects.nodes.is_empty() => {
            return cause(
                Kind::NodeOfPodsDown,
                "spec.nodeName",
                format!("its node {node} is not there any more"),
                format!("bring {node} back, or delete the pod so that it runs elsewhere"),
            );
        }
        Some(found) if !is_node_ready(found) => {
            let mut down = super::node::not_ready(found);
            down.kind = Kind::NodeOfPodsDown;
            down.text = format!("{}, and {} is on it", down.text, object(pod));
            return down;
        }
        _ => {}
    }
    let none = Vec::new();
    let status = pod.status.as_ref();
    let init = status.and_then(|s| s.init_container_statuses.as_ref()).unwrap_or(&none);
    let main = status.and_then(|s| s.container_statuses.as_ref()).unwrap_or(&none);
    for container in init.iter().chain(main).filter(|c| !c.ready) {
        if let Some((kind, field, text)) = held(s, container) {
            let remedy = match kind {
                Kind::CrashLoop => logs,
                Kind::ImageUnavailable => {
                    "correct spec.containers[].image, or make that image available".into()
                }
                _ => describe,
            };
            return cause(kind, &field, text, remedy);
        }
    }
    if pod_addresses(pod).is_empty() {
        return match main.is_empty() || phase(pod) == "Pending" {
            true => {
                cause(Kind::Starting, "status.phase", format!("node {node} hasn't started it yet"), describe)
            }
            false => cause(
                Kind::NoPodAddress,
                "status.podIP",
                "its containers run, and it has no address: the node's network isn't set up".into(),
                describe,
            ),
        };
    }
    let started = main.iter().all(|c| c.started != Some(false));
    let probed = s.evidence.objects.event(pod, &["Unhealthy"]).and_then(|e| e.message.clone());
    if let Some(message) = probed {
        let field = if message.starts_with("Readiness") {
            "spec.containers[].readinessProbe"
        } else if message.starts_with("Startup") {
            "spec.containers[].startupProbe"
        } else {
            "spec.containers[].livenessProbe"
        };
        return cause(
            Kind::ProbeFails,
            field,
            message.trim().to_owned(),
            "correct the probe (path, port, scheme), or what the program answers to it".into(),
        );
    }
    let ready = condition(pod, "Ready");
    let reason = ready.and_then(|c| c.reason.as_deref()).unwrap_or_default();
    if reason == "ReadinessGatesNotReady" {
        let message = ready.and_then(|c| c.message.clone()).unwrap_or_default();
        return cause(
            Kind::ReadinessGate,
            "spec.readinessGates",
            message,
            "see to who sets that condition".into(),
        );
    }
    if main.iter().any(|c| !c.ready) {
        let probe = |get: fn(&k8s_openapi::api::core::v1::Container) -> bool| {
            pod.spec.as_ref().is_some_and(|s| s.containers.iter().any(get))
        };
        let (field, which) = match () {
            () if !started && probe(|c| c.startup_probe.is_some()) => {
                ("spec.containers[].startupProbe", "startup probe")
            }
            () if probe(|c| c.readiness_probe.is_some()) => {
                ("spec.containers[].readinessProbe", "readiness probe")
            }
            () => ("status.containerStatuses[].ready", "start"),
        };
        return cause(
            Kind::ProbeFails,
            field,
            format!("it runs, and its {which} hasn't succeeded yet"),
            describe,
        );
    }
    let message = ready.and_then(|c| c.message.clone()).unwrap_or_else(|| "nobody has said why".into());
    cause(Kind::NotReady, "status.conditions[Ready]", format!("it is not ready: {message}"), describe)
}

/// Why a container isn't ready, as far as its state tells.
fn held(s: &Situation<'_>, container: &ContainerStatus) -> Option<(Kind, String, String)> {
    let name = &container.name;
    let field = |rest: &str| format!("status.containerStatuses[{name}].{rest}");
    let last = container.last_state.as_ref().and_then(|l| l.terminated.as_ref());
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or("waiting");
        let message = waiting.message.as_deref().map_or(String::new(), |m| format!(": {m}"));
        let kind = match reason {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable" => Kind::ImageUnavailable,
            "CrashLoopBackOff" => Kind::CrashLoop,
            "CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError"
            | "PreCreateHookError"
            | "PostStartHookError" => Kind::ContainerRefused,
            _ => Kind::Starting,
        };
        let ended = match (kind, last) {
            (Kind::CrashLoop, Some(last)) => {
                format!(" (it ended with {})", exit(last.exit_code, last.message.as_deref()))
            }
            _ => String::new(),
        };
        let image = if kind == Kind::ImageUnavailable {
            format!(" of image {:?}", container.image)
        } else {
            String::new()
        };
        return Some((
            kind,
            field("state.waiting"),
            format!("container {name}{image}: {reason}{message}{ended}"),
        ));
    }
    let ended = state.terminated.as_ref().or_else(|| {
        let now = s.evidence.now?;
        let recent = |t: &&k8s_openapi::api::core::v1::ContainerStateTerminated| {
            t.exit_code != 0
                && t.finished_at.as_ref().is_some_and(|f| now.as_second() - f.0.as_second() < RECENT_SECONDS)
        };
        last.filter(recent).filter(|_| container.restart_count > 0)
    })?;
    let code = exit(ended.exit_code, ended.message.as_deref());
    let times = match container.restart_count {
        0 => String::new(),
        1 => " once".to_owned(),
        n => format!(" {n} times"),
    };
    Some((
        Kind::CrashLoop,
        field("state.terminated"),
        format!("container {name} has ended{times}, with {code}"),
    ))
}

fn exit(code: i32, message: Option<&str>) -> String {
    match message {
        Some(message) => format!("status {code}: {}", message.trim()),
        None => format!("status {code}"),
    }
}
