//! Jobs and CronJobs.

use serde_json::Value;

use super::{AGE, containers, selector_text};
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status, keep_status};
use crate::{duration, meta, walk, workload};

/// The entry of Job.
pub static JOB: Kind = Kind::Listed(&Entry {
    categories: &["all"],
    subresources: &["status"],
    generation: true,
    strategy: Strategy {
        default: workload::default_job,
        prepare_create: workload::prepare_create_job,
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate: workload::validate_job,
        validate_update: workload::validate_job_update,
        validate_status_update: workload::validate_job_status,
        warnings: workload::job_warnings,
        ..Strategy::PLAIN
    },
    fields: &[("status.successful", |o| walk::int(o, "status.succeeded").unwrap_or(0).to_string())],
    columns: &[
        Column::object_name(),
        Column::new("Status", "string", "Status of the job."),
        Column::new("Completions", "string", "How many pods came to a good end."),
        Column::new("Duration", "string", "Time required to complete the job."),
        Column::new("Age", "string", AGE),
        Column::wide("Containers", "string", "Names of each container in the template."),
        Column::wide("Images", "string", "Images referenced by each container in the template."),
        Column::wide("Selector", "string", "The labels of the pods that belong to the job."),
    ],
    cells: |o, now| {
        let succeeded = walk::int(o, "status.succeeded").unwrap_or(0);
        let parallelism = walk::int(o, "spec.parallelism").unwrap_or(0);
        let completions = match walk::int(o, "spec.completions") {
            Some(n) => format!("{succeeded}/{n}"),
            None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
            None => format!("{succeeded}/1"),
        };
        let time = |path: &str| walk::text(o, path).parse::<jiff::Timestamp>().ok();
        let took = time("status.startTime").map_or_else(String::new, |start| {
            let end = time("status.completionTime").unwrap_or(now);
            duration::human(end.duration_since(start).as_secs())
        });
        let [names, images] = containers(o, "spec.template.spec");
        vec![
            meta::name(o).into(),
            state(o).into(),
            completions.into(),
            took.into(),
            duration::age(o, now).into(),
            names,
            images,
            selector_text(walk::at(o, "spec.selector")),
        ]
    },
    ..Entry::of("batch", "v1", ("Job", "JobList"), ("jobs", "job"))
});

/// One word for where a Job is.
fn state(object: &Value) -> &'static str {
    let holds = |name: &str| {
        walk::list(object, "status.conditions")
            .iter()
            .any(|c| walk::text(c, "type") == name && walk::text(c, "status") == "True")
    };
    let first = |names: &[&'static str]| names.iter().copied().find(|name| holds(name));
    if let Some(end) = first(&["Complete", "Failed"]) {
        return end;
    }
    if meta::deletion_timestamp(object).is_some() {
        return "Terminating";
    }
    first(&["Suspended", "FailureTarget", "SuccessCriteriaMet"]).unwrap_or("Running")
}

/// The entry of CronJob.
pub static CRON_JOB: Kind = Kind::Listed(&Entry {
    short_names: &["cj"],
    categories: &["all"],
    subresources: &["status"],
    generation: true,
    strategy: Strategy {
        default: workload::default_cron_job,
        prepare_create: workload::prepare_create_cron_job,
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate: workload::validate_cron_job,
        validate_update: workload::validate_cron_job_update,
        warnings: workload::cron_job_warnings,
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Schedule", "string", "When it runs, as cron writes it."),
        Column::new("Timezone", "string", "Whose clock the schedule means."),
        Column::new("Suspend", "boolean", "Whether it runs no more for now."),
        Column::new("Active", "integer", "How many of its jobs are running."),
        Column::new("Last Schedule", "string", "When it last ran."),
        Column::new("Age", "string", AGE),
        Column::wide("Containers", "string", "Names of each container in the template."),
        Column::wide("Images", "string", "Images referenced by each container in the template."),
        Column::wide("Selector", "string", "The labels of the pods that belong to a job."),
    ],
    cells: |o, now| {
        let last = match walk::text(o, "status.lastScheduleTime") {
            "" => "<none>".to_owned(),
            text => duration::since(text, now),
        };
        let suspend = match walk::flag(o, "spec.suspend") {
            None => "<unset>",
            Some(true) => "True",
            Some(false) => "False",
        };
        let zone = walk::at(o, "spec.timeZone").and_then(Value::as_str).unwrap_or("<none>");
        let [names, images] = containers(o, "spec.jobTemplate.spec.template.spec");
        vec![
            meta::name(o).into(),
            walk::text(o, "spec.schedule").into(),
            zone.into(),
            suspend.into(),
            walk::list(o, "status.active").len().into(),
            last.into(),
            duration::age(o, now).into(),
            names,
            images,
            selector_text(walk::at(o, "spec.jobTemplate.spec.selector")),
        ]
    },
    ..Entry::of("batch", "v1", ("CronJob", "CronJobList"), ("cronjobs", "cronjob"))
});
