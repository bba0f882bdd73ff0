//! Which ReplicaSet is a deployment's newest, what a new one is called, and the number it bears.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::ResourceExt;

/// The label that tells the pods of one template from those of another.
pub(super) const HASH: &str = "pod-template-hash";
/// The annotation with the number of a template in the deployment's history.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// The annotation with earlier numbers of the same template.
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The annotation with the deployment's size when the set was last scaled.
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The annotation with the largest total that was allowed then.
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";

/// Letters and digits that make no word and no number (the alphabet of Kubernetes' generated names).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A name for the template: the same for the same template, another after `collisions` more collisions.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let mut text = serde_json::to_vec(&without_hash(template)).unwrap_or_default();
    if collisions > 0 {
        text.extend_from_slice(&collisions.to_le_bytes());
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, &text);
    digest.as_ref()[..10]
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH);
    }
    template
}

/// The set that has the deployment's template: the oldest one, if there are several.
pub(super) fn newest(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Option<Arc<ReplicaSet>> {
    let template = &deployment.spec.as_ref()?.template;
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let name = format!("{}-{}", deployment.name_any(), hash(template, collisions));
    let wanted = without_hash(template);
    sets.iter()
        .filter(|set| {
            // The name is that of the template as it reads today; the template itself stays equal when the meaning of
            // the hash changes between versions.
            let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            own.is_some_and(|own| without_hash(own) == wanted) || (set.name_any() == name && own.is_some())
        })
        .min_by_key(|set| (set.metadata.creation_timestamp.clone(), set.name_any()))
        .cloned()
}

/// The set's number; 0 without one.
pub(super) fn revision(annotations: &BTreeMap<String, String>) -> i64 {
    annotations.get(REVISION).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The annotations of the newest set: the deployment's, and the number behind all older ones.
pub(super) fn annotations(
    deployment: &Deployment,
    newest: Option<&ReplicaSet>,
    old: &[Arc<ReplicaSet>],
) -> BTreeMap<String, String> {
    let mut wanted: BTreeMap<String, String> = deployment
        .annotations()
        .iter()
        .filter(|(name, _)| {
            ![
                "kubectl.kubernetes.io/last-applied-configuration",
                "deprecated.deployment.rollback.to",
                REVISION,
                REVISION_HISTORY,
                DESIRED_REPLICAS,
                MAX_REPLICAS,
            ]
            .contains(&name.as_str())
        })
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let next = old.iter().map(|set| revision(set.annotations())).max().unwrap_or(0) + 1;
    let current = newest.map_or(0, |set| revision(set.annotations()));
    let number = current.max(next);
    wanted.insert(REVISION.to_owned(), number.to_string());
    if let Some(set) = newest {
        let history = set.annotations().get(REVISION_HISTORY).cloned();
        let history = if current > 0 && number != current {
            // Rolled back to: its former number joins the history.
            Some(
                history
                    .filter(|h| !h.is_empty())
                    .map_or_else(|| current.to_string(), |h| format!("{h},{current}")),
            )
        } else {
            history
        };
        if let Some(history) = history {
            wanted.insert(REVISION_HISTORY.to_owned(), history);
        }
    }
    wanted
}
