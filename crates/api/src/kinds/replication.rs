//! ReplicationControllers and PodTemplates, the oldest of the workloads.

use super::{AGE, containers};
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status, keep_status};
use crate::{duration, meta, pod, walk, workload};

/// The entry of ReplicationController.
pub static REPLICATION_CONTROLLER: Kind = Kind::Listed(&Entry {
    short_names: &["rc"],
    categories: &["all"],
    subresources: &["scale", "status"],
    generation: true,
    strategy: Strategy {
        default: workload::default_replication_controller,
        prepare_create: workload::prepare_create_replica_set,
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate: workload::validate_replication_controller,
        validate_update: |new, _| workload::validate_replication_controller(new),
        validate_status_update: workload::validate_replicas_status,
        warnings: |new, old| {
            // Kubernetes looks at what was there before.
            let mut out = if old.is_none() { pod::name_warnings(new) } else { Vec::new() };
            let changed = old.is_none_or(|old| meta::generation(old) != meta::generation(new));
            if let Some(template) = walk::at(old.unwrap_or(new), "spec.template").filter(|_| changed) {
                out.extend(pod::template_warnings(template, "spec.template"));
            }
            out
        },
        ..Strategy::PLAIN
    },
    fields: &[("status.replicas", |o| walk::int(o, "status.replicas").unwrap_or(0).to_string())],
    columns: &[
        Column::object_name(),
        Column::new("Desired", "integer", "Number of pods that are wanted."),
        Column::new("Current", "integer", "Number of pods that are there."),
        Column::new("Ready", "integer", "Number of pods that are ready."),
        Column::new("Age", "string", AGE),
        Column::wide("Containers", "string", "Names of each container in the template."),
        Column::wide("Images", "string", "Images referenced by each container in the template."),
        Column::wide("Selector", "string", "The labels of the pods that belong to the controller."),
    ],
    cells: |o, now| {
        let number = |path: &str| walk::int(o, path).unwrap_or(0);
        let [names, images] = containers(o, "spec.template.spec");
        vec![
            meta::name(o).into(),
            number("spec.replicas").into(),
            number("status.replicas").into(),
            number("status.readyReplicas").into(),
            duration::age(o, now).into(),
            names,
            images,
            super::label_text(walk::map(o, "spec.selector")).into(),
        ]
    },
    ..Entry::of(
        "",
        "v1",
        ("ReplicationController", "ReplicationControllerList"),
        ("replicationcontrollers", "replicationcontroller"),
    )
});

/// The entry of PodTemplate.
pub static POD_TEMPLATE: Kind = Kind::Listed(&Entry {
    generation: true,
    strategy: Strategy {
        default: workload::default_pod_template,
        validate: workload::validate_pod_template,
        validate_update: |new, _| workload::validate_pod_template(new),
        warnings: |new, old| workload::template_warnings(new, old, "template"),
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Containers", "string", "Names of each container in the template."),
        Column::new("Images", "string", "Images referenced by each container in the template."),
        Column::new("Pod Labels", "string", "The labels for the pod template."),
    ],
    cells: |o, _| {
        let [names, images] = containers(o, "template.spec");
        vec![
            meta::name(o).into(),
            names,
            images,
            super::label_text(walk::map(o, "template.metadata.labels")).into(),
        ]
    },
    ..Entry::of("", "v1", ("PodTemplate", "PodTemplateList"), ("podtemplates", "podtemplate"))
});
