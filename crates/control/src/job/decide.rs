//! What a Job does about the pods it sees.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::{INDEX, is_tracked};
use crate::pods;

/// The first pause after a pod has failed; each further failure doubles it.
const PAUSE_S: i64 = 10;
const LONGEST_PAUSE_S: i64 = 600;

/// What to do.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct Decision {
    /// Pods that are counted: their finalizer goes.
    pub release: Vec<Arc<Pod>>,
    pub delete: Vec<Arc<Pod>>,
    /// One pod each, with its index.
    pub create: Vec<Option<i32>>,
    pub status: Option<JobStatus>,
    /// What an event tells: reason and message.
    pub news: Vec<(&'static str, String)>,
    pub again: Option<Duration>,
    /// The Job has ended, and after this time it goes.
    pub expires: Option<Duration>,
}

fn holds(status: &JobStatus, kind: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True")
}

fn condition(kind: &str, yes: bool, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: if yes { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

fn index(pod: &Pod) -> Option<i32> {
    pod.annotations().get(INDEX)?.parse().ok()
}

fn uid(pod: &Pod) -> String {
    pod.uid().unwrap_or_default()
}

/// Whether a pod has ended badly: a pod that is deleted before its good end counts as failed.
fn has_failed(pod: &Pod) -> bool {
    pods::phase(pod) == "Failed" || (pods::is_terminating(pod) && pods::phase(pod) != "Succeeded")
}

/// Decides. `pods` are those that the Job owns.
pub(crate) fn decide(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Some(spec) = &job.spec else { return decision };
    let old = job.status.clone().unwrap_or_default();
    let finished = holds(&old, "Complete") || holds(&old, "Failed");
    if finished {
        decision.release = pods.iter().filter(|pod| is_tracked(pod)).cloned().collect();
        decision.delete = pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        if decision.release.is_empty() && decision.delete.is_empty() {
            decision.expires = expiry(spec, &old, now);
        }
        return decision;
    }
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let mut status = old.clone();
    count(&mut decision, &mut status, pods, indexed);
    let suspended = spec.suspend == Some(true);
    let active: Vec<&Arc<Pod>> = pods.iter().filter(|pod| pods::is_active(pod)).collect();
    let pending = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let waiting = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
    let of = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
    let succeeded = status.succeeded.unwrap_or(0) + of(waiting(&pending.succeeded));
    let failed = status.failed.unwrap_or(0) + of(waiting(&pending.failed));
    if status.start_time.is_none() && !suspended {
        status.start_time = Some(Time(now));
    }
    status.active = Some(of(active.len())).filter(|n| *n > 0);
    status.ready = Some(of(active.iter().filter(|pod| pods::is_ready(pod)).count()));
    let terminating = pods.iter().filter(|pod| pods::is_terminating(pod) && !pods::is_terminal(pod)).count();
    status.terminating = Some(of(terminating));

    let failure = failure(spec, &status, failed, now);
    let enough = match spec.completions {
        Some(wanted) => succeeded >= wanted,
        None => succeeded > 0 && active.is_empty(),
    };
    let failing = failure.is_some() || holds(&old, "FailureTarget");
    if failing || enough {
        decision.delete = active.iter().map(|pod| Arc::clone(pod)).collect();
    }
    if let Some((reason, message)) = failure
        && !holds(&status, "FailureTarget")
    {
        let all = status.conditions.get_or_insert_default();
        all.push(condition("FailureTarget", true, reason, message, now));
        decision.news.push((reason, message.to_owned()));
    }
    let text = "Reached expected number of succeeded pods";
    if enough && !failing && !holds(&status, "SuccessCriteriaMet") {
        let all = status.conditions.get_or_insert_default();
        all.push(condition("SuccessCriteriaMet", true, "CompletionsReached", text, now));
    }
    // The last word is said when every pod has ended and is counted.
    let quiet = active.is_empty() && terminating == 0 && pending == UncountedTerminatedPods::default();
    if quiet && (failing || enough) {
        status.active = None;
        status.ready = Some(0);
        let first = status.conditions.iter().flatten().find(|c| c.type_ == "FailureTarget").cloned();
        let all = status.conditions.get_or_insert_default();
        match first {
            Some(why) => all.push(JobCondition { type_: "Failed".into(), ..why }),
            None => {
                all.push(condition("Complete", true, "CompletionsReached", text, now));
                status.completion_time = Some(Time(now));
                decision.news.push(("Completed", "Job completed".into()));
            }
        }
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods::default());
    } else if !failing && !enough {
        if suspended {
            decision.delete = active.iter().map(|pod| Arc::clone(pod)).collect();
        } else {
            scale(&mut decision, spec, &status, pods, &active, succeeded, failed, now);
        }
        suspend(&mut status, suspended, now);
        decision.again = decision.again.or_else(|| deadline(spec, &status, now));
    }
    decision.status = (Some(&status) != job.status.as_ref()).then_some(status);
    decision
}

/// Counts pods that have ended, in three steps that may be broken off between any two: into the list, the finalizer off,
/// out of the list and into the number.
fn count(decision: &mut Decision, status: &mut JobStatus, pods: &[Arc<Pod>], indexed: bool) {
    let mut list = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let tracked = |wanted: &String| pods.iter().find(|pod| uid(pod) == *wanted && is_tracked(pod));
    let mut settle = |uids: &mut Option<Vec<String>>| {
        let (held, counted): (Vec<String>, Vec<String>) =
            uids.take().unwrap_or_default().into_iter().partition(|uid| tracked(uid).is_some());
        decision.release.extend(held.iter().filter_map(|uid| tracked(uid).cloned()));
        *uids = (!held.is_empty()).then_some(held);
        i32::try_from(counted.len()).unwrap_or(i32::MAX)
    };
    let (succeeded, failed) = (settle(&mut list.succeeded), settle(&mut list.failed));
    if succeeded > 0 {
        status.succeeded = Some(status.succeeded.unwrap_or(0) + succeeded);
    }
    if failed > 0 {
        status.failed = Some(status.failed.unwrap_or(0) + failed);
    }
    let mut done = parse(status.completed_indexes.as_deref().unwrap_or(""));
    for pod in pods.iter().filter(|pod| is_tracked(pod)) {
        let uid = uid(pod);
        let known = list.succeeded.iter().chain(&list.failed).flatten().any(|known| *known == uid);
        if known {
            continue;
        }
        if pods::phase(pod) == "Succeeded" {
            // Of two good ends of one index, one counts.
            let fresh = !indexed || index(pod).is_some_and(|index| done.insert(index));
            if fresh {
                list.succeeded.get_or_insert_default().push(uid);
            } else {
                decision.release.push(pod.clone());
            }
        } else if has_failed(pod) {
            list.failed.get_or_insert_default().push(uid);
        }
    }
    if indexed {
        status.completed_indexes = Some(text(&done)).filter(|text| !text.is_empty());
    }
    status.uncounted_terminated_pods = Some(list);
}

/// Why the Job fails, if it does.
fn failure(
    spec: &JobSpec,
    status: &JobStatus,
    failed: i32,
    now: Timestamp,
) -> Option<(&'static str, &'static str)> {
    if failed > spec.backoff_limit.unwrap_or(6) {
        return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    let since = status.start_time.as_ref().map(|start| now.as_second() - start.0.as_second())?;
    (spec.active_deadline_seconds.is_some_and(|limit| since >= limit) && spec.suspend != Some(true))
        .then_some(("DeadlineExceeded", "Job was active longer than specified deadline"))
}

fn seconds(n: i64) -> Duration {
    Duration::from_secs(n.max(1).unsigned_abs())
}

fn deadline(spec: &JobSpec, status: &JobStatus, now: Timestamp) -> Option<Duration> {
    let start = status.start_time.as_ref()?.0.as_second();
    Some(seconds(start + spec.active_deadline_seconds? - now.as_second()))
}

/// When the last pod that failed did so.
fn last_failure(pods: &[Arc<Pod>]) -> Option<i64> {
    let ended = |pod: &Arc<Pod>| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        let ends =
            statuses.iter().filter_map(|s| s.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
        ends.map(|time| time.0.as_second()).max()
    };
    let created = |pod: &Arc<Pod>| pod.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    pods.iter().filter(|pod| has_failed(pod)).filter_map(|pod| ended(pod).or_else(|| created(pod))).max()
}

#[allow(clippy::too_many_arguments)]
fn scale(
    decision: &mut Decision,
    spec: &JobSpec,
    status: &JobStatus,
    pods: &[Arc<Pod>],
    active: &[&Arc<Pod>],
    succeeded: i32,
    failed: i32,
    now: Timestamp,
) {
    let of = |n: i32| usize::try_from(n).unwrap_or(0);
    let parallelism = of(spec.parallelism.unwrap_or(1));
    let wanted = match spec.completions {
        Some(all) => parallelism.min(of(all - succeeded)),
        None if succeeded > 0 => active.len(),
        None => parallelism,
    };
    if active.len() > wanted {
        // The youngest have done the least.
        let mut all: Vec<Arc<Pod>> = active.iter().map(|pod| Arc::clone(pod)).collect();
        all.sort_by_key(|pod| std::cmp::Reverse((pod.metadata.creation_timestamp.clone(), pod.name_any())));
        all.truncate(active.len() - wanted);
        decision.delete = all;
        return;
    }
    let missing = wanted - active.len();
    if missing == 0 {
        return;
    }
    if failed > 0
        && let Some(last) = last_failure(pods)
    {
        let doubled = PAUSE_S.saturating_mul(1 << (failed - 1).clamp(0, 6)).min(LONGEST_PAUSE_S);
        let left = last + doubled - now.as_second();
        if left > 0 {
            decision.again = Some(seconds(left));
            return;
        }
    }
    if spec.completion_mode.as_deref() == Some("Indexed") {
        let mut busy = parse(status.completed_indexes.as_deref().unwrap_or(""));
        busy.extend(active.iter().filter_map(|pod| index(pod)));
        let free = (0..spec.completions.unwrap_or(0)).filter(|index| !busy.contains(index));
        decision.create = free.take(missing).map(Some).collect();
    } else {
        decision.create = vec![None; missing];
    }
}

fn suspend(status: &mut JobStatus, suspended: bool, now: Timestamp) {
    let had = holds(status, "Suspended");
    if had == suspended {
        return;
    }
    let all = status.conditions.get_or_insert_default();
    all.retain(|c| c.type_ != "Suspended");
    let (reason, text) =
        if suspended { ("JobSuspended", "Job suspended") } else { ("JobResumed", "Job resumed") };
    all.push(condition("Suspended", suspended, reason, text, now));
    status.start_time = (!suspended).then_some(Time(now));
}

fn expiry(spec: &JobSpec, status: &JobStatus, now: Timestamp) -> Option<Duration> {
    let ttl = i64::from(spec.ttl_seconds_after_finished?);
    let ends = status.conditions.iter().flatten();
    let end = ends.filter(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    let end = end.filter_map(|c| c.last_transition_time.as_ref()).map(|time| time.0.as_second()).min()?;
    let left = end + ttl - now.as_second();
    Some(if left > 0 { seconds(left) } else { Duration::ZERO })
}

/// Indexes as `1,3-5`.
fn text(indexes: &BTreeSet<i32>) -> String {
    let mut parts: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => parts.push((*index, *index)),
        }
    }
    let shown = parts.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    shown.collect::<Vec<_>>().join(",")
}

fn parse(text: &str) -> BTreeSet<i32> {
    let ranges = text.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn job(spec: Value, status: Value) -> Job {
        let mut object =
            json!({"metadata": {"name": "j", "uid": "j"}, "spec": {"template": {}}, "status": status});
        pods::overlay(&mut object["spec"], spec);
        serde_json::from_value(object).expect("a job")
    }

    fn pod(name: &str, phase: &str, tracked: bool) -> Arc<Pod> {
        let finalizers = if tracked { json!([super::super::FINALIZER]) } else { json!([]) };
        let object = json!({"metadata": {"name": name, "uid": name, "finalizers": finalizers,
            "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {INDEX: name.trim_start_matches('p')}},
            "status": {"phase": phase}});
        Arc::new(serde_json::from_value(object).expect("a pod"))
    }

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("a time")
    }

    #[test]
    fn a_pod_is_counted_once_in_steps_that_may_be_broken_off() {
        let one = job(json!({"completions": 1, "parallelism": 1}), json!({}));
        let ended = decide(&one, &[pod("p0", "Succeeded", true)], now());
        let status = ended.status.expect("a change");
        assert_eq!(
            status.uncounted_terminated_pods.clone().unwrap_or_default().succeeded,
            Some(vec!["p0".into()])
        );
        assert_eq!((status.succeeded, ended.create.len(), ended.release.len()), (None, 0, 0));
        let listed = Job { status: Some(status), ..one };
        let second = decide(&listed, &[pod("p0", "Succeeded", true)], now());
        assert_eq!(second.release.len(), 1);
        let third = decide(&listed, &[pod("p0", "Succeeded", false)], now());
        let status = third.status.expect("a change");
        assert_eq!(status.succeeded, Some(1));
        assert!(holds(&status, "Complete") && holds(&status, "SuccessCriteriaMet"));
        assert!(status.completion_time.is_some());
    }

    #[test]
    fn no_more_pods_run_than_are_needed_and_each_index_has_one() {
        let spec = json!({"completions": 5, "parallelism": 3, "completionMode": "Indexed"});
        let fresh = decide(&job(spec.clone(), json!({})), &[], now());
        assert_eq!(fresh.create, [Some(0), Some(1), Some(2)]);
        let later = job(spec, json!({"succeeded": 3, "completedIndexes": "0-1,4"}));
        let later = decide(&later, &[pod("p2", "Running", true)], now());
        assert_eq!(later.create, [Some(3)]);
    }

    #[test]
    fn too_many_failures_end_a_job() {
        let spec = json!({"completions": 1, "parallelism": 1, "backoffLimit": 0});
        let failing = decide(&job(spec.clone(), json!({})), &[pod("p0", "Failed", true)], now());
        let status = failing.status.expect("a change");
        assert!(holds(&status, "FailureTarget") && !holds(&status, "Failed"));
        assert!(failing.create.is_empty());
        let ended = decide(
            &Job { status: Some(status), ..job(spec, json!({})) },
            &[pod("p0", "Failed", false)],
            now(),
        );
        let status = ended.status.expect("a change");
        assert!(holds(&status, "Failed"));
        assert_eq!(status.failed, Some(1));
    }

    #[test]
    fn a_suspended_job_runs_nothing_and_a_finished_one_goes_when_its_time_is_over() {
        let spec = json!({"completions": 1, "parallelism": 1, "suspend": true});
        let held = decide(&job(spec, json!({})), &[pod("p0", "Running", true)], now());
        assert_eq!((held.delete.len(), held.create.len()), (1, 0));
        assert!(holds(&held.status.expect("a change"), "Suspended"));
        let done = json!({"conditions": [{"type": "Complete", "status": "True",
            "lastTransitionTime": "2026-01-01T00:59:00Z"}]});
        let spec = |ttl: i32| json!({"completions": 1, "ttlSecondsAfterFinished": ttl});
        assert_eq!(decide(&job(spec(30), done.clone()), &[], now()).expires, Some(Duration::ZERO));
        assert_eq!(decide(&job(spec(90), done), &[], now()).expires, Some(Duration::from_secs(30)));
    }

    #[test]
    fn indexes_are_written_in_ranges() {
        let set: BTreeSet<i32> = [0, 1, 2, 4, 6, 7].into();
        assert_eq!(text(&set), "0-2,4,6,7");
        assert_eq!(parse("0-2,4,6,7"), set);
    }
}
