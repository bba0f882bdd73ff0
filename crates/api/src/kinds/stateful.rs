//! StatefulSets, DaemonSets, and the revisions they keep.

use serde_json::Value;

use super::{AGE, containers, selector_text};
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status, keep_status};
use crate::{duration, meta, walk, workload};

/// The entry of StatefulSet.
pub static STATEFUL_SET: Kind = Kind::Listed(&Entry {
    short_names: &["sts"],
    categories: &["all"],
    subresources: &["scale", "status"],
    generation: true,
    names: meta::NameRule::Label,
    strategy: Strategy {
        default: workload::default_stateful_set,
        prepare_create: workload::prepare_create_stateful_set,
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate: workload::validate_stateful_set,
        validate_update: workload::validate_stateful_set_update,
        validate_status_update: workload::validate_stateful_set_status,
        warnings: workload::stateful_set_warnings,
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Ready", "string", "Number of the pod with ready state"),
        Column::new("Age", "string", AGE),
        Column::wide("Containers", "string", "Names of each container in the template."),
        Column::wide("Images", "string", "Images referenced by each container in the template."),
    ],
    cells: |o, now| {
        let number = |path: &str| walk::int(o, path).unwrap_or(0);
        let ready = format!("{}/{}", number("status.readyReplicas"), number("spec.replicas"));
        let [names, images] = containers(o, "spec.template.spec");
        vec![meta::name(o).into(), ready.into(), duration::age(o, now).into(), names, images]
    },
    ..Entry::of("apps", "v1", ("StatefulSet", "StatefulSetList"), ("statefulsets", "statefulset"))
});

/// The entry of DaemonSet.
pub static DAEMON_SET: Kind = Kind::Listed(&Entry {
    short_names: &["ds"],
    categories: &["all"],
    subresources: &["status"],
    generation: true,
    strategy: Strategy {
        default: workload::default_daemon_set,
        prepare_create: workload::prepare_create_daemon_set,
        prepare_update: workload::prepare_update_daemon_set,
        prepare_status_update: workload::prepare_status_of_daemon_set,
        validate: workload::validate_daemon_set,
        validate_update: workload::validate_daemon_set_update,
        validate_status_update: workload::validate_daemon_set_status,
        warnings: workload::daemon_set_warnings,
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Desired", "integer", "Number of nodes that should run a pod."),
        Column::new("Current", "integer", "Number of nodes that should run a pod and have one."),
        Column::new("Ready", "integer", "Number of nodes whose pod is ready."),
        Column::new("Up-to-date", "integer", "Number of nodes whose pod is of the latest template."),
        Column::new("Available", "integer", "Number of nodes whose pod is ready for long enough."),
        Column::new("Node Selector", "string", "The labels of the nodes that are meant."),
        Column::new("Age", "string", AGE),
        Column::wide("Containers", "string", "Names of each container in the template."),
        Column::wide("Images", "string", "Images referenced by each container in the template."),
        Column::wide("Selector", "string", "The labels of the pods that belong to the set."),
    ],
    cells: |o, now| {
        let number = |field: &str| Value::from(walk::int(o, &format!("status.{field}")).unwrap_or(0));
        let [names, images] = containers(o, "spec.template.spec");
        vec![
            meta::name(o).into(),
            number("desiredNumberScheduled"),
            number("currentNumberScheduled"),
            number("numberReady"),
            number("updatedNumberScheduled"),
            number("numberAvailable"),
            super::label_text(walk::map(o, "spec.template.spec.nodeSelector")).into(),
            duration::age(o, now).into(),
            names,
            images,
            selector_text(walk::at(o, "spec.selector")),
        ]
    },
    ..Entry::of("apps", "v1", ("DaemonSet", "DaemonSetList"), ("daemonsets", "daemonset"))
});

/// The entry of ControllerRevision.
pub static CONTROLLER_REVISION: Kind = Kind::Listed(&Entry {
    strategy: Strategy {
        default: |o| walk::default(o, "revision", 0),
        validate: workload::validate_revision,
        validate_update: workload::validate_revision_update,
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Controller", "string", "Controller of the object"),
        Column::new("Revision", "string", "The number of the revision."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let owner = meta::controller_of(o).map_or_else(
            || "<none>".to_owned(),
            |owner| {
                let group = walk::text(owner, "apiVersion").split_once('/').map_or("", |(group, _)| group);
                let kind = walk::text(owner, "kind").to_lowercase();
                let dot = if group.is_empty() { "" } else { "." };
                format!("{kind}{dot}{group}/{}", walk::text(owner, "name"))
            },
        );
        vec![
            meta::name(o).into(),
            owner.into(),
            walk::int(o, "revision").unwrap_or(0).into(),
            duration::age(o, now).into(),
        ]
    },
    ..Entry::of(
        "apps",
        "v1",
        ("ControllerRevision", "ControllerRevisionList"),
        ("controllerrevisions", "controllerrevision"),
    )
});
