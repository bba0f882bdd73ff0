//! The next writes of a deployment. Each step is safe by itself; what it changes causes the next one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::revision::{self, DESIRED_REPLICAS, HASH, MAX_REPLICAS, REVISION};
use super::rollout::{self, Bounds, Size, recreates};
use super::status;
use crate::pods;
use crate::wake::controller;

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Make the set of a new template.
    Create(Box<ReplicaSet>),
    /// Give the set this size and these annotations.
    Scale { set: Arc<ReplicaSet>, replicas: i32, annotations: BTreeMap<String, String> },
    /// Give the deployment these annotations.
    Annotate(BTreeMap<String, String>),
    /// Remove a set that is older than the history is long.
    Delete(Arc<ReplicaSet>),
}

/// What to do now.
#[derive(Debug, Default)]
#[must_use]
pub(super) struct Step {
    pub actions: Vec<Action>,
    /// The status, if it is another than the deployment has.
    pub status: Option<DeploymentStatus>,
    /// When time alone will change the decision.
    pub again: Option<Duration>,
}

/// Decides. `sets` are the deployment's ReplicaSets, `pods` theirs.
pub(super) fn step(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> Step {
    let mut step = Step::default();
    let newest = revision::newest(deployment, sets);
    let mut old: Vec<Arc<ReplicaSet>> = sets
        .iter()
        .filter(|set| newest.as_ref().is_none_or(|newest| newest.uid() != set.uid()))
        .cloned()
        .collect();
    old.sort_by_key(|set| (set.metadata.creation_timestamp.clone(), set.name_any()));
    let mut created = None;
    if deployment.metadata.deletion_timestamp.is_none() {
        let paused = deployment.spec.as_ref().is_some_and(|spec| spec.paused.unwrap_or(false));
        if !resize(deployment, newest.as_ref(), &old, &mut step) && !paused {
            if recreates(deployment) {
                recreate(deployment, newest.as_ref(), &old, pods, &mut step);
            } else {
                roll(deployment, newest.as_ref(), &old, &mut step);
            }
        }
        created = step.actions.iter().find_map(|action| match action {
            Action::Create(set) => Some(set.name_any()),
            _ => None,
        });
    }
    let (wanted, again) = status::status(deployment, newest.as_deref(), created.as_deref(), sets, now);
    if step.actions.is_empty() && deployment.metadata.deletion_timestamp.is_none() {
        clean_up(deployment, &wanted, &old, &mut step);
    }
    step.again = again;
    if deployment.status.as_ref() != Some(&wanted) && !same(deployment.status.as_ref(), &wanted) {
        step.status = Some(wanted);
    }
    step
}

/// Absent numbers and zeros are the same status.
fn same(old: Option<&DeploymentStatus>, new: &DeploymentStatus) -> bool {
    let Some(old) = old else { return false };
    let numbers = |status: &DeploymentStatus| {
        [
            status.replicas,
            status.updated_replicas,
            status.ready_replicas,
            status.available_replicas,
            status.unavailable_replicas,
        ]
        .map(|number| number.unwrap_or(0))
    };
    numbers(old) == numbers(new)
        && old.observed_generation == new.observed_generation
        && old.conditions == new.conditions
}

fn size(set: &ReplicaSet) -> Size {
    Size {
        replicas: set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        available: set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0),
    }
}

/// How many pods the set has or will have. One that has just been scaled down still has those that it was to lose: room
/// that is promised is not room yet. (Kubernetes counts what is asked for, and exceeds the surge for moments.)
fn present(set: &ReplicaSet) -> i32 {
    let has = set.status.as_ref().map_or(0, |status| status.replicas);
    size(set).replicas.max(has)
}

/// What each scaled set remembers of the deployment's size.
fn memory(bounds: Bounds) -> BTreeMap<String, String> {
    BTreeMap::from([
        (DESIRED_REPLICAS.to_owned(), bounds.replicas.to_string()),
        (MAX_REPLICAS.to_owned(), bounds.most().to_string()),
    ])
}

/// Adds a write for the set, if it changes anything.
fn scale(
    step: &mut Step,
    set: &Arc<ReplicaSet>,
    replicas: i32,
    mut annotations: BTreeMap<String, String>,
) -> bool {
    annotations.retain(|name, value| set.annotations().get(name) != Some(value));
    let changes = replicas != size(set).replicas || !annotations.is_empty();
    if changes {
        step.actions.push(Action::Scale { set: set.clone(), replicas, annotations });
    }
    changes
}

/// After a change of the deployment's own size the sets are resized before anything else. True if it did so.
fn resize(
    deployment: &Deployment,
    newest: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    step: &mut Step,
) -> bool {
    let bounds = Bounds::of(deployment);
    let paused = deployment.spec.as_ref().is_some_and(|spec| spec.paused.unwrap_or(false));
    let all: Vec<Arc<ReplicaSet>> = old.iter().chain(newest).cloned().collect();
    let active: Vec<Arc<ReplicaSet>> = all.iter().filter(|set| size(set).replicas > 0).cloned().collect();
    let Some(mut sizes) = rollout::proportional(bounds, &active) else {
        // A paused deployment that has nothing running still follows its size.
        if paused
            && active.is_empty()
            && let Some(set) = newest
        {
            return scale(step, set, bounds.replicas, memory(bounds));
        }
        return false;
    };
    if active.len() == 1 {
        sizes = vec![bounds.replicas];
    } else if recreates(deployment) {
        return false;
    }
    let mut acted = false;
    for (set, replicas) in active.iter().zip(sizes) {
        acted |= scale(step, set, replicas, memory(bounds));
    }
    acted
}

fn roll(deployment: &Deployment, newest: Option<&Arc<ReplicaSet>>, old: &[Arc<ReplicaSet>], step: &mut Step) {
    let bounds = Bounds::of(deployment);
    let there: i32 = old.iter().map(|set| present(set)).sum();
    let Some(newest) = newest else {
        let replicas = rollout::grow(bounds, 0, there);
        return create(deployment, old, replicas, step);
    };
    let mut annotations = revision::annotations(deployment, Some(newest), old);
    number(deployment, &annotations, step);
    annotations.extend(memory(bounds));
    let new = size(newest);
    if scale(step, newest, rollout::grow(bounds, new.replicas, there), annotations) {
        return;
    }
    let sizes: Vec<Size> = old.iter().map(|set| size(set)).collect();
    for (set, replicas) in old.iter().zip(rollout::shrink(bounds, new, &sizes)) {
        if replicas != size(set).replicas {
            scale(step, set, replicas, memory(bounds));
        }
    }
}

fn recreate(
    deployment: &Deployment,
    newest: Option<&Arc<ReplicaSet>>,
    old: &[Arc<ReplicaSet>],
    pods: &[Arc<Pod>],
    step: &mut Step,
) {
    let bounds = Bounds::of(deployment);
    for set in old.iter().filter(|set| size(set).replicas > 0) {
        scale(step, set, 0, memory(bounds));
    }
    let running = pods.iter().any(|pod| {
        !pods::is_terminal(pod)
            && controller(pod.as_ref())
                .is_some_and(|owner| old.iter().any(|set| set.uid().as_ref() == Some(&owner.uid)))
    });
    if !step.actions.is_empty() || running {
        return;
    }
    let Some(newest) = newest else { return create(deployment, old, bounds.replicas, step) };
    let mut annotations = revision::annotations(deployment, Some(newest), old);
    number(deployment, &annotations, step);
    annotations.extend(memory(bounds));
    scale(step, newest, bounds.replicas, annotations);
}

/// The deployment bears the number of its newest set.
fn number(deployment: &Deployment, annotations: &BTreeMap<String, String>, step: &mut Step) {
    let wanted = annotations.get(REVISION);
    if deployment.annotations().get(REVISION) != wanted
        && let Some(wanted) = wanted
    {
        step.actions.push(Action::Annotate(BTreeMap::from([(REVISION.to_owned(), wanted.clone())])));
    }
}

fn create(deployment: &Deployment, old: &[Arc<ReplicaSet>], replicas: i32, step: &mut Step) {
    let Some(spec) = &deployment.spec else { return };
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let hash = revision::hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().insert(HASH.to_owned(), hash.clone());
    let labels = meta.labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash.clone());
    let mut annotations = revision::annotations(deployment, None, old);
    annotations.extend(memory(Bounds::of(deployment)));
    number(deployment, &annotations, step);
    let set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels,
            annotations: Some(annotations),
            owner_references: Some(vec![super::owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: Some(replicas),
            selector,
            template: Some(template),
        }),
        status: None,
    };
    // First the set: a number without a set would be skipped by the next one.
    step.actions.insert(0, Action::Create(Box::new(set)));
}

/// Sets behind the history's length go, the oldest revision first, when the rollout is done.
fn clean_up(deployment: &Deployment, status: &DeploymentStatus, old: &[Arc<ReplicaSet>], step: &mut Step) {
    if !status::is_complete(deployment, status) {
        return;
    }
    let limit = deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
    let mut empty: Vec<&Arc<ReplicaSet>> = old
        .iter()
        .filter(|set| {
            size(set).replicas == 0
                && set.status.as_ref().is_none_or(|status| status.replicas == 0)
                && set.status.as_ref().and_then(|status| status.observed_generation)
                    >= set.metadata.generation
                && set.metadata.deletion_timestamp.is_none()
        })
        .collect();
    empty.sort_by_key(|set| revision::revision(set.annotations()));
    let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0)).min(empty.len());
    step.actions.extend(empty.into_iter().take(excess).map(|set| Action::Delete(set.clone())));
}
