//! The Jobs of a CronJob, each at its time: observe, decide, write.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::DeleteParams;
use portolan_api::cron::Schedule;

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Error, Result, is};
use crate::owned::owner_of;
use crate::queue::Done;
use crate::recorder::Severity;
use crate::wake::controller;

const SOURCE: &str = "cronjob-controller";
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// So many missed times are looked through; of more, the last one found runs.
const MISSED: usize = 1000;

/// What to do.
#[derive(Debug, Default)]
struct Decision {
    /// The time whose Job is to be made now.
    run: Option<Timestamp>,
    /// Jobs that give way to it, or that history has no room for.
    delete: Vec<Arc<Job>>,
    active: Vec<ObjectReference>,
    succeeded: Option<Time>,
    again: Option<Duration>,
}

fn end(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.iter().flatten();
    let mut ends =
        conditions.filter(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    ends.next().map(|c| c.type_.as_str())
}

/// The last time that has passed since `since`, and the next that will.
fn times(
    schedule: &Schedule,
    zone: &TimeZone,
    since: Timestamp,
    now: Timestamp,
) -> (Option<Timestamp>, Option<Timestamp>) {
    let (mut last, mut at) = (None, since);
    for _ in 0..MISSED {
        match schedule.next(at, zone) {
            Some(next) if next <= now => {
                last = Some(next);
                at = next;
            }
            next => return (last, next),
        }
    }
    (last, schedule.next(now, zone))
}

fn decide(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let spec = &cron.spec;
    let mut sorted = jobs.to_vec();
    sorted.sort_by_key(|job| (job.metadata.creation_timestamp.clone(), job.name_any()));
    for (kind, limit) in
        [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)]
    {
        let ended: Vec<_> = sorted.iter().filter(|job| end(job) == Some(kind)).cloned().collect();
        let keep = limit.map_or(ended.len(), |limit| usize::try_from(limit).unwrap_or(0));
        decision.delete.extend(ended.iter().take(ended.len().saturating_sub(keep)).cloned());
    }
    let active: Vec<_> = sorted.iter().filter(|job| end(job).is_none()).cloned().collect();
    decision.active = active.iter().map(|job| reference(job)).collect();
    let completed = sorted.iter().filter(|job| end(job) == Some("Complete"));
    decision.succeeded = completed.filter_map(|job| job.status.as_ref()?.completion_time.clone()).max();
    if cron.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
        return decision;
    }
    let Ok(schedule) = Schedule::parse(&spec.schedule) else { return decision };
    let zone = spec.time_zone.as_deref().and_then(|zone| TimeZone::get(zone).ok()).unwrap_or(TimeZone::UTC);
    let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let last = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref()).map(|time| time.0);
    let mut since = last.unwrap_or(created);
    if let Some(limit) = spec.starting_deadline_seconds {
        since = since.max(Timestamp::from_second(now.as_second() - limit).unwrap_or(since));
    }
    let (due, next) = times(&schedule, &zone, since, now);
    decision.again =
        next.map(|next| Duration::from_secs((next.as_second() - now.as_second()).max(1).unsigned_abs()));
    let Some(due) = due else { return decision };
    match spec.concurrency_policy.as_deref() {
        // What is due waits for the end of what runs.
        Some("Forbid") if !active.is_empty() => {}
        Some("Replace") => {
            decision.delete.extend(active);
            decision.active.clear();
            decision.run = Some(due);
        }
        _ => decision.run = Some(due),
    }
    decision
}

fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".into()),
        kind: Some("Job".into()),
        name: job.metadata.name.clone(),
        namespace: job.metadata.namespace.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// The Job of a time; its name says which, so that none is made twice.
fn new_job(cron: &CronJob, at: Timestamp) -> Job {
    let template = cron.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", cron.name_any(), at.as_second() / 60)),
            namespace: cron.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner_of(cron)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    let Some(cron) = cluster.find::<CronJob>(key) else { return Ok(Done::Settled) };
    let uid = cron.uid();
    let jobs = cluster.select::<Job>(&key.namespace, |job| {
        controller(job).is_some_and(|owner| Some(&owner.uid) == uid.as_ref())
    });
    let mut decision = decide(&cron, &jobs, Timestamp::now());
    for job in &decision.delete {
        cluster.delete(job.as_ref(), DeleteParams::background()).await?;
        let message = format!("Deleted job {}", job.name_any());
        cluster.recorder.note(cron.as_ref(), SOURCE, Severity::Normal, "SuccessfulDelete", message);
    }
    let old = cron.status.clone().unwrap_or_default();
    let mut last = old.last_schedule_time.clone();
    if let Some(at) = decision.run {
        match cluster.create(&new_job(&cron, at)).await {
            Ok(job) => {
                let message = format!("Created job {}", job.name_any());
                cluster.recorder.note(cron.as_ref(), SOURCE, Severity::Normal, "SuccessfulCreate", message);
                decision.active.push(reference(&job));
            }
            Err(Error::Api(error)) if is(&error, 409) => {}
            Err(error) => return Err(error),
        }
        last = Some(Time(at));
    }
    let status = CronJobStatus {
        active: (!decision.active.is_empty()).then_some(decision.active),
        last_schedule_time: last,
        last_successful_time: decision.succeeded.or(old.last_successful_time.clone()),
    };
    // The version of a running Job is no news.
    let bare = |status: &CronJobStatus| {
        let active = status.active.iter().flatten().map(|r| r.uid.clone()).collect::<Vec<_>>();
        (active, status.last_schedule_time.clone(), status.last_successful_time.clone())
    };
    if bare(&status) != bare(&old) {
        let mut changed = CronJob::clone(&cron);
        changed.status = Some(status);
        cluster.replace_status(&changed).await?;
    }
    Ok(decision.again.map_or(Done::Settled, Done::Again))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cron(spec: Value, status: Value) -> CronJob {
        let mut object = json!({"metadata": {"name": "c", "uid": "c", "creationTimestamp": "2026-01-01T00:00:30Z"},
            "spec": {"schedule": "*/5 * * * *", "jobTemplate": {}, "successfulJobsHistoryLimit": 1,
                "failedJobsHistoryLimit": 1}, "status": status});
        crate::pods::overlay(&mut object["spec"], spec);
        serde_json::from_value(object).expect("a cron job")
    }

    fn job(name: &str, end: &str) -> Arc<Job> {
        let conditions = if end.is_empty() { json!([]) } else { json!([{"type": end, "status": "True"}]) };
        let object = json!({"metadata": {"name": name, "uid": name}, "status": {"conditions": conditions}});
        Arc::new(serde_json::from_value(object).expect("a job"))
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_job_runs_at_its_time_and_the_next_is_waited_for() {
        let early = decide(&cron(json!({}), json!({})), &[], at("2026-01-01T00:04:00Z"));
        assert_eq!((early.run, early.again), (None, Some(Duration::from_secs(60))));
        let due = decide(&cron(json!({}), json!({})), &[], at("2026-01-01T00:05:01Z"));
        assert_eq!(due.run, Some(at("2026-01-01T00:05:00Z")));
        let done = cron(json!({}), json!({"lastScheduleTime": "2026-01-01T00:05:00Z"}));
        assert_eq!(decide(&done, &[], at("2026-01-01T00:05:02Z")).run, None);
        let missed = decide(&cron(json!({}), json!({})), &[], at("2026-01-01T03:00:10Z"));
        assert_eq!(missed.run, Some(at("2026-01-01T03:00:00Z")), "of many missed ones the last runs");
        assert_eq!(
            decide(&cron(json!({"suspend": true}), json!({})), &[], at("2026-01-01T00:05:01Z")).run,
            None
        );
    }

    #[test]
    fn jobs_that_run_at_once_are_allowed_forbidden_or_replaced() {
        let now = at("2026-01-01T00:05:01Z");
        let of = |policy: &str| {
            decide(&cron(json!({"concurrencyPolicy": policy}), json!({})), &[job("a", "")], now)
        };
        assert!(of("Allow").run.is_some() && of("Allow").delete.is_empty());
        assert!(of("Forbid").run.is_none());
        assert!(of("Replace").run.is_some() && of("Replace").delete.len() == 1);
    }

    #[test]
    fn history_keeps_the_newest() {
        let jobs = [job("a", "Complete"), job("b", "Complete"), job("c", "Failed")];
        let decision = decide(&cron(json!({}), json!({})), &jobs, at("2026-01-01T00:01:00Z"));
        assert_eq!(decision.delete.iter().map(|job| job.name_any()).collect::<Vec<_>>(), ["a"]);
    }
}
