//! Deployments and ReplicaSets.

use serde_json::Value;

use super::AGE;
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status, keep_meta, keep_status};
use crate::meta::{self, NameRule};
use crate::{duration, walk, workload};

/// A Deployment's labels are not for `/status` (registry/apps/deployment/strategy.go).
fn keep_all_but_status_and_labels(new: &mut Value, old: &Value) {
    keep_all_but_status(new, old);
    keep_meta(new, old, "labels");
}

/// The entry of Deployment.
pub static DEPLOYMENT: Kind = Kind::Listed(&Entry {
    group: "apps",
    version: "v1",
    kind: "Deployment",
    list_kind: "DeploymentList",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status", "scale"],
    generation: true,
    names: NameRule::Subdomain,
    conversion: None,
    strategy: Strategy {
        default: workload::default_deployment,
        prepare_create: workload::prepare_create_deployment,
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status_and_labels,
        validate: workload::validate_deployment,
        validate_update: workload::validate_deployment_update,
        validate_status_update: workload::validate_deployment_status,
        warnings: workload::name_and_template_warnings,
        ..Strategy::PLAIN
    },
    fields: &[],
    columns: &[
        Column::object_name(),
        Column::new("Ready", "string", "Number of the pod with ready state"),
        Column::new("Up-to-date", "string", "Number of pods that are of the latest template."),
        Column::new("Available", "string", "Number of pods that are ready for long enough."),
        Column::new("Age", "string", AGE),
        Column::wide("Containers", "string", "Names of each container in the template."),
        Column::wide("Images", "string", "Images referenced by each container in the template."),
        Column::wide("Selector", "string", "The labels of the pods that belong to the deployment."),
    ],
    cells: |o, now| {
        let number = |path: &str| walk::int(o, path).unwrap_or(0);
        let mut cells = vec![
            meta::name(o).into(),
            format!("{}/{}", number("status.readyReplicas"), number("spec.replicas")).into(),
            number("status.updatedReplicas").into(),
            number("status.availableReplicas").into(),
            duration::age(o, now).into(),
        ];
        cells.extend(template(o));
        cells
    },
});

/// The entry of ReplicaSet.
pub static REPLICA_SET: Kind = Kind::Listed(&Entry {
    group: "apps",
    version: "v1",
    kind: "ReplicaSet",
    list_kind: "ReplicaSetList",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    namespaced: true,
    subresources: &["status", "scale"],
    generation: true,
    names: NameRule::Subdomain,
    conversion: None,
    strategy: Strategy {
        default: workload::default_replica_set,
        prepare_create: workload::prepare_create_replica_set,
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate: workload::validate_replica_set,
        validate_update: workload::validate_replica_set_update,
        validate_status_update: workload::validate_replicas_status,
        warnings: workload::name_and_template_warnings,
        ..Strategy::PLAIN
    },
    fields: &[],
    columns: &[
        Column::object_name(),
        Column::new("Desired", "integer", "Number of pods that are wanted."),
        Column::new("Current", "integer", "Number of pods that are there."),
        Column::new("Ready", "integer", "Number of pods that are ready."),
        Column::new("Age", "string", AGE),
        Column::wide("Containers", "string", "Names of each container in the template."),
        Column::wide("Images", "string", "Images referenced by each container in the template."),
        Column::wide("Selector", "string", "The labels of the pods that belong to the set."),
    ],
    cells: |o, now| {
        let number = |path: &str| walk::int(o, path).unwrap_or(0);
        let mut cells = vec![
            meta::name(o).into(),
            number("spec.replicas").into(),
            number("status.replicas").into(),
            number("status.readyReplicas").into(),
            duration::age(o, now).into(),
        ];
        cells.extend(template(o));
        cells
    },
});

fn template(object: &Value) -> Vec<Value> {
    let [names, images] = super::containers(object, "spec.template.spec");
    vec![names, images, super::selector_text(walk::at(object, "spec.selector"))]
}
