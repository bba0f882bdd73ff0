//! Pods.

use serde_json::Value;

use super::AGE;
use crate::kind::{Column, Entry, Kind, Strategy, keep_status};
use crate::meta::{self, NameRule};
use crate::{duration, pod, walk};

/// The entry of Pod.
pub static POD: Kind = Kind::Listed(&Entry {
    group: "",
    version: "v1",
    kind: "Pod",
    list_kind: "PodList",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    namespaced: true,
    subresources: &["attach", "binding", "eviction", "exec", "log", "portforward", "proxy", "status"],
    generation: true,
    names: NameRule::Subdomain,
    conversion: None,
    strategy: Strategy {
        default: pod::default,
        prepare_create: pod::prepare_create,
        prepare_update: keep_status,
        prepare_status_update: pod::prepare_status_update,
        validate: pod::validate_new,
        validate_update: pod::validate_change,
        validate_status_update: pod::validate_status,
        warnings: pod::warnings,
        status_warnings: pod::status_warnings,
    },
    fields: &[
        ("spec.nodeName", |o| walk::text(o, "spec.nodeName").to_owned()),
        ("spec.restartPolicy", |o| walk::text(o, "spec.restartPolicy").to_owned()),
        ("spec.schedulerName", |o| walk::text(o, "spec.schedulerName").to_owned()),
        ("spec.serviceAccountName", |o| walk::text(o, "spec.serviceAccountName").to_owned()),
        ("spec.hostNetwork", |o| walk::flag(o, "spec.hostNetwork").unwrap_or(false).to_string()),
        ("status.phase", |o| walk::text(o, "status.phase").to_owned()),
        ("status.podIP", |o| walk::text(o, "status.podIP").to_owned()),
        ("status.nominatedNodeName", |o| walk::text(o, "status.nominatedNodeName").to_owned()),
    ],
    columns: &[
        Column::object_name(),
        Column::new("Ready", "string", "The aggregate readiness state of this pod for accepting traffic."),
        Column::new("Status", "string", "The aggregate status of the containers in this pod."),
        Column::new(
            "Restarts",
            "string",
            "The number of times the containers in this pod have been restarted and when the last container in this pod has \
             restarted.",
        ),
        Column::new("Age", "string", AGE),
        Column::wide("IP", "string", "The primary address of the pod."),
        Column::wide("Node", "string", "The node that the pod is bound to."),
        Column::wide("Nominated Node", "string", "The node that is kept free for the pod."),
        Column::wide("Readiness Gates", "string", "How many of the further conditions of readiness hold."),
    ],
    cells,
});

fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let summary = pod::summary(object, now);
    let or_none = |text: &str| Value::from(if text.is_empty() { "<none>" } else { text });
    let ip = walk::list(object, "status.podIPs")
        .first()
        .map_or(walk::text(object, "status.podIP"), |ip| walk::text(ip, "ip"));
    let gates = walk::list(object, "spec.readinessGates");
    let holding = gates
        .iter()
        .filter(|gate| {
            walk::list(object, "status.conditions").iter().any(|c| {
                walk::text(c, "type") == walk::text(gate, "conditionType")
                    && walk::text(c, "status") == "True"
            })
        })
        .count();
    let gates = if gates.is_empty() { "<none>".to_owned() } else { format!("{holding}/{}", gates.len()) };
    vec![
        meta::name(object).into(),
        summary.ready.into(),
        summary.status.into(),
        summary.restarts.into(),
        duration::age(object, now).into(),
        or_none(ip),
        or_none(walk::text(object, "spec.nodeName")),
        or_none(walk::text(object, "status.nominatedNodeName")),
        gates.into(),
    ]
}
