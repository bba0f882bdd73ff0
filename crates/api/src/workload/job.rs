//! Jobs and CronJobs: pods that come to an end.

use serde_json::{Map, Value, json};

use super::{not_negative, selected, unselected};
use crate::cron::Schedule;
use crate::fielderror::FieldError;
use crate::selector::{LabelSelector, validate_object};
use crate::{meta, pod, walk};

/// The labels by which a Job knows its pods: by name and by UID, each under its older name too.
const NAMES: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
const UIDS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];

fn default_spec(spec: &mut Value) {
    let _ = walk::map_mut(spec, "template.spec");
    if let Some(pod_spec) = walk::at_mut(spec, "template.spec") {
        pod::default_spec(pod_spec);
    }
    if walk::at(spec, "completions").is_none() && walk::at(spec, "parallelism").is_none() {
        walk::set(spec, "completions", 1);
    }
    walk::default(spec, "parallelism", 1);
    let per_index = walk::at(spec, "backoffLimitPerIndex").is_some();
    walk::default(spec, "backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
    if walk::at(spec, "completionMode").is_none() {
        walk::set(spec, "completionMode", "NonIndexed");
    }
    walk::default(spec, "suspend", false);
    let policy = walk::at(spec, "podFailurePolicy").is_some();
    walk::default(spec, "podReplacementPolicy", if policy { "Failed" } else { "TerminatingOrFailed" });
    // The list is written also when it is empty; as what it is in Go then.
    if walk::at(spec, "podFailurePolicy").is_some() && walk::list(spec, "podFailurePolicy.rules").is_empty() {
        walk::set(spec, "podFailurePolicy.rules", Value::Null);
    }
    for rule in walk::list_mut(spec, "podFailurePolicy.rules") {
        for pattern in walk::list_mut(rule, "onPodConditions") {
            walk::default(pattern, "status", "True");
        }
    }
}

/// Fills in what the client left out of a Job (pkg/apis/batch/v1/defaults.go).
pub fn default_job(object: &mut Value) {
    let labels = walk::map(object, "spec.template.metadata.labels").clone();
    if !labels.is_empty() && meta::labels(object).is_empty() {
        walk::set(object, "metadata.labels", labels);
    }
    let _ = walk::map_mut(object, "spec");
    if let Some(spec) = walk::at_mut(object, "spec") {
        default_spec(spec);
        walk::default(spec, "manualSelector", false);
    }
}

/// A new Job selects pods by its own UID, which its template therefore carries.
pub fn prepare_create_job(object: &mut Value) {
    walk::set(object, "status", json!({}));
    if walk::flag(object, "spec.manualSelector") == Some(true) {
        return;
    }
    let (name, uid) = (meta::name(object).to_owned(), meta::uid(object).to_owned());
    let own = meta::labels(object);
    // A Job without labels of its own has its template's, those that are generated too.
    let shared = own.is_empty() || own == walk::map(object, "spec.template.metadata.labels");
    if let Some(labels) = walk::map_mut(object, "spec.template.metadata.labels") {
        for key in NAMES {
            labels.entry(key).or_insert_with(|| name.clone().into());
        }
        for key in UIDS {
            labels.entry(key).or_insert_with(|| uid.clone().into());
        }
    }
    if let Some(chosen) = walk::map_mut(object, "spec.selector.matchLabels") {
        chosen.entry(UIDS[1]).or_insert_with(|| uid.into());
    }
    if shared && let Some(labels) = walk::at(object, "spec.template.metadata.labels").cloned() {
        walk::set(object, "metadata.labels", labels);
    }
}

/// Whether a Job's own labels are only those that were made for its template. They show in it from the first reading on, and
/// nobody checks them.
pub(crate) fn has_made_labels(object: &Value) -> bool {
    meta::labels(object).keys().all(|key| NAMES.contains(&key.as_str()) || UIDS.contains(&key.as_str()))
}

/// Warns of a new Job, and of one that has changed: of its template, and of more indexes than can be kept in mind.
pub(crate) fn job_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    warnings_at(new, old, "spec")
}

/// The same of a CronJob, and of a time zone in the wrong place.
pub(crate) fn cron_job_warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut out = warnings_at(new, old, "spec.jobTemplate.spec");
    if old.is_some() && walk::text(new, "spec.schedule").contains("TZ") {
        out.push(
            "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see \
             https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                .into(),
        );
    }
    out
}

fn warnings_at(new: &Value, old: Option<&Value>, at: &str) -> Vec<String> {
    if old.is_some_and(|old| meta::generation(old) == meta::generation(new)) {
        return Vec::new();
    }
    let mut out = if old.is_none() { pod::name_warnings(new) } else { Vec::new() };
    let of = |field: &str| walk::int(new, &format!("{at}.{field}")).unwrap_or(0);
    let indexed = walk::text(new, &format!("{at}.completionMode")) == "Indexed";
    if indexed && of("completions") > 100_000 && of("parallelism") > 10_000 {
        out.push(format!(
            "{at}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes \
             might not be able to track completedIndexes when a big number of indexes fail"
        ));
    }
    let template = format!("{at}.template");
    let said = walk::at(new, &template).unwrap_or(&Value::Null);
    out.extend(pod::template_warnings(said, &template));
    out
}

/// What is wrong with a Job.
pub fn validate_job(object: &Value) -> Vec<FieldError> {
    let mut errors = generated_selector(object);
    errors.extend(validate_spec(object, "spec", true));
    if walk::text(object, "spec.completionMode") == "Indexed"
        && let Some(completions) = walk::int(object, "spec.completions").filter(|n| *n > 0)
    {
        let name = meta::name(object);
        let host = format!("{name}-{}", completions - 1);
        if !meta::label_faults(&host).is_empty() {
            let text = format!("will not able to create pod with invalid DNS label: {host}");
            errors.push(FieldError::invalid("metadata.name", name, text));
        }
    }
    errors
}

/// Checks that what was to be generated is as it would have been.
fn generated_selector(object: &Value) -> Vec<FieldError> {
    const METADATA: &str = "spec.template.metadata";
    let mut errors = Vec::new();
    let Some(selector) = walk::at(object, "spec.selector") else { return errors };
    if walk::flag(object, "spec.manualSelector") == Some(true) {
        return errors;
    }
    let (name, uid) = (meta::name(object), meta::uid(object));
    if uid.is_empty() {
        errors.push(FieldError::required("metadata.uid", ""));
    }
    let labels = walk::map(object, "spec.template.metadata.labels");
    let mut expected = Map::new();
    for (key, value) in [(UIDS[0], uid), (NAMES[0], name), (UIDS[1], uid), (NAMES[1], name)] {
        expected.insert(key.into(), value.into());
        match labels.get(key).and_then(Value::as_str) {
            None => {
                errors.push(FieldError::required(
                    format!("{METADATA}.labels[{key}]"),
                    format!("must be '{value}'"),
                ));
            }
            Some(found) if found != value => {
                let path = format!("{METADATA}.labels[{key}]");
                let shown =
                    walk::at(object, METADATA).and_then(|m| m.get("labels")).cloned().unwrap_or_default();
                errors.push(FieldError::invalid(path, shown, format!("must be '{value}'")));
            }
            Some(_) => {}
        }
    }
    let sound = validate_object(selector, "").is_empty();
    if sound && LabelSelector::from_object(selector).is_ok_and(|chosen| !chosen.matches(&expected)) {
        let text = "`selector` not auto-generated";
        errors.push(FieldError::invalid("spec.selector", selector.clone(), text));
    }
    errors
}

/// The rules of a Job's specification at `at`; within a CronJob nobody has made the selector yet.
fn validate_spec(object: &Value, at: &str, selects: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = |field: &str| format!("{at}.{field}");
    let int = |field: &str| walk::int(object, &path(field));
    let has = |field: &str| walk::at(object, &path(field)).is_some();
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        not_negative(&mut errors, object, &path(field));
    }
    if has("maxFailedIndexes") && !has("backoffLimitPerIndex") {
        let text = "when maxFailedIndexes is specified";
        errors.push(FieldError::required(path("backoffLimitPerIndex"), text));
    }
    if let Some(manager) = walk::at(object, &path("managedBy")).and_then(Value::as_str) {
        errors.extend(meta::domain_prefixed_path_faults(&path("managedBy"), manager));
        if manager.len() > 63 {
            errors.push(FieldError::too_long(path("managedBy"), 63));
        }
    }
    let mode = walk::text(object, &path("completionMode"));
    match mode {
        "Indexed" => indexed(&mut errors, object, at),
        "" | "NonIndexed" if mode == "NonIndexed" || !has("completionMode") => {
            for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
                if let Some(n) = int(field) {
                    errors.push(FieldError::invalid(path(field), n, "requires indexed completion mode"));
                }
            }
        }
        other => {
            errors.push(FieldError::not_supported(path("completionMode"), other, &["NonIndexed", "Indexed"]))
        }
    }
    if has("podFailurePolicy") {
        failure_policy(&mut errors, object, at);
    }
    if let Some(policy) = walk::at(object, &path("successPolicy")) {
        let rules = walk::list(policy, "rules");
        if mode != "Indexed" {
            let text = "requires indexed completion mode";
            errors.push(FieldError::invalid(path("successPolicy"), policy.clone(), text));
        } else if rules.is_empty() {
            let text = "at least one rules must be specified when the successPolicy is specified";
            errors.push(FieldError::required(path("successPolicy.rules"), text));
        }
        for (i, rule) in rules.iter().enumerate().filter(|_| mode == "Indexed") {
            let path = format!("{at}.successPolicy.rules[{i}]");
            if walk::at(rule, "succeededCount").is_none() && walk::at(rule, "succeededIndexes").is_none() {
                let text = "at least one of succeededCount or succeededIndexes must be specified";
                errors.push(FieldError::required(&path, text));
            }
            if let (Some(count), Some(all)) = (walk::int(rule, "succeededCount"), int("completions"))
                && count > all
            {
                let text =
                    format!("must be less than or equal to {all} (the number of specified completions)");
                errors.push(FieldError::invalid(format!("{path}.succeededCount"), count, text));
            }
        }
    }
    let replacement = walk::text(object, &path("podReplacementPolicy"));
    let allowed: &[&str] =
        if has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    if !replacement.is_empty() && !allowed.contains(&replacement) {
        errors.push(FieldError::not_supported(path("podReplacementPolicy"), replacement, allowed));
    }
    let empty = json!({});
    let template = walk::at(object, &path("template")).unwrap_or(&empty);
    errors.extend(pod::validate_template(template, &path("template")));
    let restart = path("template.spec.restartPolicy");
    match walk::text(template, "spec.restartPolicy") {
        "" | "Always" => {
            errors.push(FieldError::required(restart, "valid values: \"OnFailure\", \"Never\""));
        }
        "Never" => {}
        "OnFailure" if has("podFailurePolicy") => {
            let text = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(FieldError::invalid(restart, "OnFailure", text));
        }
        "OnFailure" => {}
        other => errors.push(FieldError::not_supported(restart, other, &["OnFailure", "Never"])),
    }
    if !selects {
        return errors;
    }
    match walk::at(object, &path("selector")) {
        // No selector matches no labels.
        None => {
            errors.push(FieldError::required(path("selector"), ""));
            errors.push(unselected(template));
        }
        Some(selector) => {
            let faults = validate_object(selector, &path("selector"));
            let chosen = LabelSelector::from_object(selector).ok().filter(|_| faults.is_empty());
            errors.extend(faults);
            selected(&mut errors, template, chosen.as_ref());
        }
    }
    errors
}

fn indexed(errors: &mut Vec<FieldError>, object: &Value, at: &str) {
    let path = |field: &str| format!("{at}.{field}");
    let int = |field: &str| walk::int(object, &path(field));
    let completions = int("completions");
    if completions.is_none() {
        errors.push(FieldError::required(path("completions"), "when completion mode is Indexed"));
    }
    let mut bound = |field: &str, max: i64, tail: &str| {
        if let Some(n) = int(field).filter(|n| *n > max) {
            let text = format!("must be less than or equal to {max}{tail}");
            errors.push(FieldError::invalid(path(field), n, text));
        }
    };
    bound("parallelism", 100_000, " when completion mode is Indexed");
    if let (Some(all), Some(failed)) = (completions, int("maxFailedIndexes"))
        && failed > all
    {
        let text = "must be less than or equal to completions";
        errors.push(FieldError::invalid(path("maxFailedIndexes"), failed, text));
    }
    let mut bound = |field: &str, max: i64, tail: &str| {
        if let Some(n) = int(field).filter(|n| *n > max) {
            let text = format!("must be less than or equal to {max}{tail}");
            errors.push(FieldError::invalid(path(field), n, text));
        }
    };
    bound("maxFailedIndexes", 100_000, "");
    if completions.is_some_and(|n| n > 100_000) && int("backoffLimitPerIndex").is_some() {
        let tail = " when completions are above 100000 and used with backoff limit per index";
        bound("parallelism", 10_000, tail);
        bound("maxFailedIndexes", 10_000, tail);
        if int("maxFailedIndexes").is_none() {
            let text = "must be specified when completions is above 100000";
            errors.push(FieldError::required(path("maxFailedIndexes"), text));
        }
    }
}

fn failure_policy(errors: &mut Vec<FieldError>, object: &Value, at: &str) {
    const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
    let rules = walk::list(object, &format!("{at}.podFailurePolicy.rules"));
    if rules.len() > 20 {
        errors.push(FieldError::too_many(format!("{at}.podFailurePolicy.rules"), rules.len(), 20));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{at}.podFailurePolicy.rules[{i}]");
        match walk::text(rule, "action") {
            "" => errors.push(FieldError::required(
                format!("{path}.action"),
                "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]",
            )),
            "FailIndex" if walk::at(object, &format!("{at}.backoffLimitPerIndex")).is_none() => {
                let text = "requires the backoffLimitPerIndex to be set";
                errors.push(FieldError::invalid(format!("{path}.action"), "FailIndex", text));
            }
            action if !ACTIONS.contains(&action) => {
                errors.push(FieldError::not_supported(format!("{path}.action"), action, &ACTIONS));
            }
            _ => {}
        }
        let codes = walk::at(rule, "onExitCodes");
        if let Some(codes) = codes {
            match walk::text(codes, "operator") {
                "" => errors.push(FieldError::required(
                    format!("{path}.onExitCodes.operator"),
                    "valid values: [\"In\" \"NotIn\"]",
                )),
                "In" | "NotIn" => {}
                other => errors.push(FieldError::not_supported(
                    format!("{path}.onExitCodes.operator"),
                    other,
                    &["In", "NotIn"],
                )),
            }
            let values = walk::list(codes, "values");
            let at_values = format!("{path}.onExitCodes.values");
            if values.is_empty() {
                let text = "at least one value is required";
                errors.push(FieldError::invalid(&at_values, Value::Null, text));
            }
            for (j, value) in values.iter().enumerate() {
                if value == 0 && walk::text(codes, "operator") == "In" {
                    let text = "must not be 0 for the In operator";
                    errors.push(FieldError::invalid(format!("{at_values}[{j}]"), 0, text));
                }
                if values[..j].contains(value) {
                    errors.push(FieldError::duplicate(format!("{at_values}[{j}]"), value.clone()));
                }
            }
            if !values.is_sorted_by_key(|v| v.as_i64()) {
                errors.push(FieldError::invalid(&at_values, values.to_vec(), "must be ordered"));
            }
        }
        let text = match (codes.is_some(), !walk::list(rule, "onPodConditions").is_empty()) {
            (true, true) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, false) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => continue,
        };
        let mut found = FieldError::forbidden(&path, text);
        found.kind = crate::ErrorKind::Invalid;
        errors.push(found);
    }
}

/// What is wrong with a changed Job: its pods are alike, so little of it may change.
pub fn validate_job_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate_job(new);
    let was = |field: &str| walk::at(old, &format!("spec.{field}"));
    let is = |field: &str| walk::at(new, &format!("spec.{field}"));
    let mut fixed = |field: &str| {
        if is(field) != was(field) {
            let value = is(field).cloned().unwrap_or_default();
            errors.push(FieldError::invalid(format!("spec.{field}"), value, "field is immutable"));
        }
    };
    // The number of indexes may change if as many run at once (elastic indexed Jobs).
    let elastic = walk::text(new, "spec.completionMode") == "Indexed"
        && is("completions").is_some()
        && is("completions") == is("parallelism")
        && was("completions") == was("parallelism");
    if !elastic {
        fixed("completions");
    }
    fixed("selector");
    // A Job that is suspended and was never started may still be told where its pods go.
    let suspended = was("suspend") == Some(&Value::Bool(true));
    let movable = suspended && walk::at(old, "status.startTime").is_none();
    let bare = |object: &Value| {
        let mut template = walk::at(object, "spec.template").cloned().unwrap_or_default();
        if movable {
            for path in [
                "metadata",
                "spec.affinity.nodeAffinity",
                "spec.nodeSelector",
                "spec.tolerations",
                "spec.schedulingGates",
            ] {
                walk::remove(&mut template, path);
            }
            if walk::map(&template, "spec.affinity").is_empty() {
                walk::remove(&mut template, "spec.affinity");
            }
            for list in ["spec.containers", "spec.initContainers"] {
                walk::list_mut(&mut template, list).iter_mut().for_each(|container| {
                    walk::remove(container, "resources");
                });
            }
        }
        template
    };
    if bare(new) != bare(old) {
        fixed("template");
    }
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        fixed(field);
    }
    errors
}

/// What is wrong with what the Job controller reports.
pub fn validate_job_status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        not_negative(&mut errors, new, &format!("status.{field}"));
    }
    let holds = |object: &Value, name: &str| {
        walk::list(object, "status.conditions")
            .iter()
            .any(|c| walk::text(c, "type") == name && walk::text(c, "status") == "True")
    };
    let int = |object: &Value, field: &str| walk::int(object, &format!("status.{field}")).unwrap_or(0);
    let at = |object: &Value, field: &str| walk::at(object, &format!("status.{field}")).cloned();
    let mut conditions = |wrong: bool, text: &str| {
        if wrong {
            let mut found = FieldError::forbidden("status.conditions", text);
            found.kind = crate::ErrorKind::Invalid;
            errors.push(found);
        }
    };
    let (complete, failed) = (holds(new, "Complete"), holds(new, "Failed"));
    conditions(complete && failed, "cannot set Complete=True and Failed=true conditions");
    conditions(
        complete && holds(new, "FailureTarget"),
        "cannot set Complete=True and FailureTarget=true conditions",
    );
    conditions(
        failed && !holds(new, "FailureTarget"),
        "cannot set Failed=True condition without the FailureTarget=true condition",
    );
    conditions(
        complete && !holds(new, "SuccessCriteriaMet"),
        "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
    );
    for name in ["Failed", "Complete", "FailureTarget"] {
        let lost = holds(old, name) && !holds(new, name);
        conditions(lost, &format!("cannot disable the terminal {name}=True condition"));
    }
    let done = complete || failed;
    let end = at(new, "completionTime");
    if let (Some(end), false) = (&end, complete) {
        let text = "cannot set completionTime when there is no Complete=True condition";
        errors.push(FieldError::invalid("status.completionTime", end.clone(), text));
    }
    if end.is_none() && complete {
        let text = "completionTime is required for Complete jobs";
        errors.push(FieldError::required("status.completionTime", text));
    }
    if done && int(new, "active") > 0 {
        let text = "active>0 is invalid for finished job";
        errors.push(FieldError::invalid("status.active", int(new, "active"), text));
    }
    if done && at(new, "startTime").is_none() {
        errors.push(FieldError::required("status.startTime", "startTime is required for finished job"));
    }
    if walk::int(new, "status.ready").is_some_and(|ready| ready > int(new, "active")) {
        let text = "cannot set more ready pods than active";
        errors.push(FieldError::invalid("status.ready", int(new, "ready"), text));
    }
    for field in ["failed", "succeeded"] {
        if int(new, field) < int(old, field) {
            let text = format!("cannot decrease the {field} counter");
            errors.push(FieldError::invalid(format!("status.{field}"), int(new, field), text));
        }
    }
    if let (Some(now), Some(before)) = (&end, at(old, "completionTime"))
        && *now != before
    {
        errors.push(FieldError::invalid("status.completionTime", now.clone(), "field is immutable"));
    }
    if let Some(before) = at(old, "startTime")
        && at(new, "startTime").as_ref() != Some(&before)
        && walk::flag(new, "spec.suspend") != Some(true)
    {
        let text = "field is immutable for unsuspended job once set";
        let now = at(new, "startTime").unwrap_or_default();
        errors.push(FieldError::invalid("status.startTime", now, text));
    }
    errors
}

/// Fills in what the client left out of a CronJob.
pub fn default_cron_job(object: &mut Value) {
    walk::default(object, "spec.concurrencyPolicy", "Allow");
    walk::default(object, "spec.suspend", false);
    walk::default(object, "spec.successfulJobsHistoryLimit", 3);
    walk::default(object, "spec.failedJobsHistoryLimit", 1);
    walk::default(object, "spec.jobTemplate.metadata", json!({}));
    walk::default(object, "spec.jobTemplate.spec.template.metadata", json!({}));
    let _ = walk::map_mut(object, "spec.jobTemplate.spec.template.spec");
    // Of a Job within a CronJob only the pods are filled in: SetDefaults_Job is for Jobs alone.
    if let Some(spec) = walk::at_mut(object, "spec.jobTemplate.spec.template.spec") {
        pod::default_spec(spec);
    }
}

/// A new CronJob has run nothing.
pub fn prepare_create_cron_job(object: &mut Value) {
    walk::set(object, "status", json!({}));
}

/// What is wrong with a CronJob.
pub fn validate_cron_job(object: &Value) -> Vec<FieldError> {
    let mut errors = cron_job(object, None);
    let name = meta::name(object);
    // Eleven letters come behind it in the names of its Jobs.
    if name.len() > 52 {
        errors.push(FieldError::invalid("metadata.name", name, "must be no more than 52 characters"));
    }
    errors
}

/// What is wrong with a changed CronJob.
pub fn validate_cron_job_update(new: &Value, old: &Value) -> Vec<FieldError> {
    cron_job(new, Some(old))
}

fn cron_job(object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let schedule = walk::text(object, "spec.schedule");
    let zone = walk::at(object, "spec.timeZone").and_then(Value::as_str);
    if schedule.is_empty() {
        errors.push(FieldError::required("spec.schedule", ""));
    } else {
        if let Err(why) = Schedule::parse(schedule) {
            errors.push(FieldError::invalid("spec.schedule", schedule, why));
        }
        let had = old.is_some_and(|old| walk::text(old, "spec.schedule").contains("TZ"));
        let text = match (schedule.contains("TZ"), had, zone) {
            (true, false, _) => Some("cannot use TZ or CRON_TZ in schedule, use timeZone field instead"),
            (true, true, Some(_)) => Some("cannot use both timeZone field and TZ or CRON_TZ in schedule"),
            _ => None,
        };
        errors.extend(text.map(|text| FieldError::invalid("spec.schedule", schedule, text)));
    }
    not_negative(&mut errors, object, "spec.startingDeadlineSeconds");
    let kept = old.is_some_and(|old| walk::at(old, "spec.timeZone") == walk::at(object, "spec.timeZone"));
    if let Some(zone) = zone.filter(|_| !kept) {
        errors.extend(time_zone(zone));
    }
    match walk::text(object, "spec.concurrencyPolicy") {
        "" => errors.push(FieldError::required("spec.concurrencyPolicy", "")),
        "Allow" | "Forbid" | "Replace" => {}
        other => errors.push(FieldError::not_supported(
            "spec.concurrencyPolicy",
            other,
            &["Allow", "Forbid", "Replace"],
        )),
    }
    const JOB: &str = "spec.jobTemplate.spec";
    errors.extend(validate_spec(object, JOB, false));
    if let Some(selector) = walk::at(object, &format!("{JOB}.selector")) {
        let text = "`selector` will be auto-generated";
        errors.push(FieldError::invalid(format!("{JOB}.selector"), selector.clone(), text));
    }
    if walk::flag(object, &format!("{JOB}.manualSelector")) == Some(true) {
        errors.push(FieldError::not_supported(format!("{JOB}.manualSelector"), true, &["nil", "false"]));
    }
    not_negative(&mut errors, object, "spec.successfulJobsHistoryLimit");
    not_negative(&mut errors, object, "spec.failedJobsHistoryLimit");
    errors
}

fn time_zone(zone: &str) -> Vec<FieldError> {
    const PATH: &str = "spec.timeZone";
    let bad = |text: String| vec![FieldError::invalid(PATH, zone, text)];
    if zone.is_empty() {
        return bad("timeZone must be nil or non-empty string".into());
    }
    let part = |part: &str| {
        (1..=14).contains(&part.len())
            && !matches!(part, "." | "..")
            && !part.starts_with('-')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'+'))
    };
    if !zone.split('/').all(part) {
        return bad(format!("unknown time zone {zone}"));
    }
    if zone.eq_ignore_ascii_case("local") {
        return bad(
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".into()
        );
    }
    if jiff::tz::TimeZone::get(zone).is_err() {
        return bad(format!("unknown time zone {zone}"));
    }
    Vec::new()
}
