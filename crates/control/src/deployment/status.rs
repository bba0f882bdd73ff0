//! What a deployment says of itself.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::rollout::Bounds;

/// Everything runs as it was asked for.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let replicas = Bounds::of(deployment).replicas;
    status.updated_replicas.unwrap_or(0) == replicas
        && status.replicas.unwrap_or(0) == replicas
        && status.available_replicas.unwrap_or(0) == replicas
        && status.observed_generation >= deployment.metadata.generation
}

/// The status that these sets mean, and when time alone will change it.
pub(super) fn status(
    deployment: &Deployment,
    newest: Option<&ReplicaSet>,
    created: Option<&str>,
    sets: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let bounds = Bounds::of(deployment);
    let old = deployment.status.clone().unwrap_or_default();
    let sum = |of: &dyn Fn(&ReplicaSet) -> i32| sets.iter().map(|set| of(set)).sum::<i32>();
    let status_of = |set: &ReplicaSet| set.status.clone().unwrap_or_default();
    let available = sum(&|set| status_of(set).available_replicas.unwrap_or(0));
    let asked = sum(&|set| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0));
    // A set that was seen to and doesn't tell leaves the sum unknown (`GetTerminatingReplicaCountForReplicaSets`).
    let told = |set: &&Arc<ReplicaSet>| status_of(set).observed_generation.unwrap_or(0) != 0;
    let terminating = sets.iter().filter(told).map(|set| status_of(set).terminating_replicas);
    let mut status = DeploymentStatus {
        replicas: Some(sum(&|set| status_of(set).replicas)),
        updated_replicas: Some(newest.map_or(0, |set| status_of(set).replicas)),
        ready_replicas: Some(sum(&|set| status_of(set).ready_replicas.unwrap_or(0))),
        available_replicas: Some(available),
        unavailable_replicas: Some((asked - available).max(0)),
        observed_generation: deployment.metadata.generation,
        collision_count: old.collision_count,
        conditions: old.conditions.clone(),
        terminating_replicas: terminating.sum(),
    };
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let enough = available >= bounds.replicas - bounds.unavailable;
    set(
        &mut conditions,
        "Available",
        if enough { "True" } else { "False" },
        if enough { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" },
        if enough {
            "Deployment has minimum availability.".to_owned()
        } else {
            "Deployment does not have minimum availability.".to_owned()
        },
        now,
        false,
    );
    let again = progress(deployment, newest, created, &old, &status, &mut conditions, now);
    status.conditions = Some(conditions);
    (status, again)
}

fn progress(
    deployment: &Deployment,
    newest: Option<&ReplicaSet>,
    created: Option<&str>,
    old: &DeploymentStatus,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Option<Duration> {
    const PROGRESSING: &str = "Progressing";
    let spec = deployment.spec.as_ref()?;
    if spec.paused.unwrap_or(false) {
        let message = "Deployment is paused".to_owned();
        set(conditions, PROGRESSING, "Unknown", "DeploymentPaused", message, now, false);
        return None;
    }
    if let Some(name) = created {
        let message = format!("Created new replica set \"{name}\"");
        set(conditions, PROGRESSING, "True", "NewReplicaSetCreated", message, now, true);
    }
    let name = newest.map(|set| set.name_any()).or_else(|| created.map(str::to_owned))?;
    let current = conditions.iter().find(|condition| condition.type_ == PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|condition| condition.reason.as_deref()).unwrap_or_default();
    if reason == "DeploymentPaused" {
        let message = "Deployment is resumed".to_owned();
        set(conditions, PROGRESSING, "Unknown", "DeploymentResumed", message, now, true);
    }
    if is_complete(deployment, status) {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        set(conditions, PROGRESSING, "True", "NewReplicaSetAvailable", message, now, false);
        return None;
    }
    let number = |value: Option<i32>| value.unwrap_or(0);
    let progressed = number(status.updated_replicas) > number(old.updated_replicas)
        || number(status.replicas) - number(status.updated_replicas)
            < number(old.replicas) - number(old.updated_replicas)
        || number(status.ready_replicas) > number(old.ready_replicas)
        || number(status.available_replicas) > number(old.available_replicas);
    if progressed || (current.is_none() && created.is_none()) {
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        set(conditions, PROGRESSING, "True", "ReplicaSetUpdated", message, now, true);
    }
    let limit = i64::from(spec.progress_deadline_seconds.unwrap_or(600));
    let condition = conditions.iter().find(|condition| condition.type_ == PROGRESSING)?;
    // A rollout that had ended is not late when pods are lost afterwards.
    let reason = condition.reason.as_deref().unwrap_or_default();
    if reason == "NewReplicaSetAvailable"
        || reason == "ProgressDeadlineExceeded"
        || limit == i64::from(i32::MAX)
    {
        return None;
    }
    let since = condition.last_update_time.as_ref().map_or(now, |time| time.0);
    let left = since.as_second() + limit - now.as_second();
    if left > 0 {
        return Some(Duration::from_secs(left.unsigned_abs()));
    }
    let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
    set(conditions, PROGRESSING, "False", "ProgressDeadlineExceeded", message, now, false);
    None
}

/// Sets a condition; `touch` renews the time of its update even if nothing else changes.
fn set(
    conditions: &mut Vec<DeploymentCondition>,
    name: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
    touch: bool,
) {
    let old = conditions.iter_mut().find(|condition| condition.type_ == name);
    let fresh = |since: Option<Time>| DeploymentCondition {
        last_transition_time: since.or(Some(Time(now))),
        last_update_time: Some(Time(now)),
        message: Some(message.clone()),
        reason: Some(reason.to_owned()),
        status: status.to_owned(),
        type_: name.to_owned(),
    };
    match old {
        None => conditions.push(fresh(None)),
        Some(old) if old.status == status && old.reason.as_deref() == Some(reason) && !touch => {
            if old.message.as_deref() != Some(&message) {
                old.message = Some(message);
            }
        }
        Some(old) => {
            let since = old.last_transition_time.clone().filter(|_| old.status == status);
            *old = fresh(since);
        }
    }
}
