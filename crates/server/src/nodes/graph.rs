//! Which node has which pods, and what these refer to: an index that follows the store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use portolan_api::{meta, walk};
use portolan_store::{Change, Error, Range, Revision, Store, WatchBatch};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::follow::{self, Follower};

const PREFIX: &str = "/registry/core/pods/";
/// The annotation of pods that a node runs by its own file: they bring no rights (Kubernetes' graph passes them over).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The kinds that a pod can bring a node the right to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Pod,
    Secret,
    ConfigMap,
    Account,
    Claim,
}

/// An object that a pod refers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

/// What a pod refers to, itself included. A pod that is bound to no node brings nobody anything.
fn references(pod: &Value) -> Vec<Reference> {
    let namespace = meta::namespace(pod);
    let reference = |kind, name: &str| Reference { kind, namespace: namespace.into(), name: name.into() };
    let mut out = vec![reference(Kind::Pod, meta::name(pod))];
    if meta::annotation(pod, MIRROR).is_some() {
        return out;
    }
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            out.push(reference(kind, name));
        }
    };
    add(Kind::Account, walk::text(pod, "spec.serviceAccountName"));
    for secret in walk::list(pod, "spec.imagePullSecrets") {
        add(Kind::Secret, walk::text(secret, "name"));
    }
    for field in ["spec.initContainers", "spec.containers", "spec.ephemeralContainers"] {
        for container in walk::list(pod, field) {
            for source in walk::list(container, "envFrom") {
                add(Kind::Secret, walk::text(source, "secretRef.name"));
                add(Kind::ConfigMap, walk::text(source, "configMapRef.name"));
            }
            for variable in walk::list(container, "env") {
                add(Kind::Secret, walk::text(variable, "valueFrom.secretKeyRef.name"));
                add(Kind::ConfigMap, walk::text(variable, "valueFrom.configMapKeyRef.name"));
            }
        }
    }
    for volume in walk::list(pod, "spec.volumes") {
        // Every kind of volume that names a secret (Kubernetes' `VisitPodSecretNames`).
        for path in [
            "secret.secretName",
            "azureFile.secretName",
            "cephfs.secretRef.name",
            "cinder.secretRef.name",
            "csi.nodePublishSecretRef.name",
            "flexVolume.secretRef.name",
            "iscsi.secretRef.name",
            "rbd.secretRef.name",
            "scaleIO.secretRef.name",
            "storageos.secretRef.name",
        ] {
            add(Kind::Secret, walk::text(volume, path));
        }
        add(Kind::ConfigMap, walk::text(volume, "configMap.name"));
        add(Kind::Claim, walk::text(volume, "persistentVolumeClaim.claimName"));
        for source in walk::list(volume, "projected.sources") {
            add(Kind::Secret, walk::text(source, "secret.name"));
            add(Kind::ConfigMap, walk::text(source, "configMap.name"));
        }
    }
    out
}

#[derive(Default)]
struct State {
    /// Each pod's node and references, by the pod's key.
    pods: HashMap<Arc<str>, (String, Vec<Reference>)>,
    /// How many pods of a node refer to an object.
    counts: HashMap<String, HashMap<Reference, usize>>,
}

impl State {
    fn put(&mut self, key: &Arc<str>, pod: &Value) {
        self.remove(key);
        let node = walk::text(pod, "spec.nodeName");
        if node.is_empty() {
            return;
        }
        let references = references(pod);
        let counts = self.counts.entry(node.to_owned()).or_default();
        for reference in &references {
            *counts.entry(reference.clone()).or_default() += 1;
        }
        self.pods.insert(key.clone(), (node.to_owned(), references));
    }

    fn remove(&mut self, key: &str) {
        let Some((node, references)) = self.pods.remove(key) else { return };
        let Some(counts) = self.counts.get_mut(&node) else { return };
        for reference in references {
            if let Some(count) = counts.get_mut(&reference) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&reference);
                }
            }
        }
        if counts.is_empty() {
            self.counts.remove(&node);
        }
    }
}

/// Pods, as the store has them.
pub(crate) struct Graph {
    state: RwLock<State>,
    revision: tokio::sync::watch::Sender<u64>,
}

impl Graph {
    /// Reads all pods and follows.
    pub(crate) async fn open(store: Arc<dyn Store>, close: CancellationToken) -> Result<Arc<Graph>, Error> {
        let graph = Graph { state: RwLock::default(), revision: tokio::sync::watch::Sender::new(0) };
        let graph = Arc::new(graph);
        graph.load(&*store).await?;
        follow::start(graph.clone(), store, close);
        Ok(graph)
    }

    /// Waits until the index has seen a revision; goes on without when it takes too long.
    pub(crate) async fn reach(&self, revision: u64) {
        let mut seen = self.revision.subscribe();
        let _ = tokio::time::timeout(Duration::from_secs(3), seen.wait_for(|seen| *seen >= revision)).await;
    }

    /// Whether a pod on the node refers to an object, or is it.
    pub(crate) fn related(&self, node: &str, object: &Reference) -> bool {
        self.state.read().counts.get(node).is_some_and(|counts| counts.contains_key(object))
    }
}

fn object(value: &Bytes) -> Value {
    serde_json::from_slice(value).unwrap_or_default()
}

#[async_trait::async_trait]
impl Follower for Graph {
    fn prefix(&self) -> &str {
        PREFIX
    }

    fn seen(&self) -> Revision {
        Revision(*self.revision.borrow())
    }

    fn apply(&self, batch: WatchBatch) {
        let changes: Vec<_> = batch
            .changes
            .into_iter()
            .map(|change| match change {
                Change::Put { entry, .. } => (entry.key.clone(), Some(object(&entry.value))),
                Change::Delete { key, .. } => (key, None),
            })
            .collect();
        let mut state = self.state.write();
        for (key, pod) in changes {
            match pod {
                Some(pod) => state.put(&key, &pod),
                None => state.remove(&key),
            }
        }
        drop(state);
        self.revision.send_replace(batch.revision.0);
    }

    async fn load(&self, store: &dyn Store) -> Result<(), Error> {
        let result = store.range(Range::prefix(PREFIX)).await?;
        let mut state = State::default();
        for entry in &result.entries {
            state.put(&entry.key, &object(&entry.value));
        }
        *self.state.write() = state;
        self.revision.send_replace(result.revision.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, secret: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "n"},
            "spec": {
                "nodeName": node, "serviceAccountName": "web",
                "containers": [{"envFrom": [{"configMapRef": {"name": "settings"}}]}],
                "volumes": [{"secret": {"secretName": secret}}, {"projected": {"sources": [{"configMap": {"name": "ca"}}]}}],
            },
        })
    }

    #[test]
    fn a_node_is_related_to_what_its_pods_name_for_as_long_as_they_are_there() {
        let graph = Graph { state: RwLock::default(), revision: tokio::sync::watch::Sender::new(0) };
        let related = |node: &str, kind, name: &str| {
            graph.related(node, &Reference { kind, namespace: "n".into(), name: name.into() })
        };
        graph.state.write().put(&"a".into(), &pod("a", "n1", "s"));
        graph.state.write().put(&"b".into(), &pod("b", "n1", "t"));
        graph.state.write().put(&"c".into(), &pod("c", "", "u"));
        for (kind, name) in [
            (Kind::Secret, "s"),
            (Kind::Secret, "t"),
            (Kind::ConfigMap, "settings"),
            (Kind::ConfigMap, "ca"),
            (Kind::Account, "web"),
            (Kind::Pod, "a"),
        ] {
            assert!(related("n1", kind, name), "{kind:?} {name}");
            assert!(!related("n2", kind, name), "{kind:?} {name}");
        }
        assert!(!related("", Kind::Secret, "u") && !related("n1", Kind::ConfigMap, "s"));
        graph.state.write().remove("a");
        assert!(!related("n1", Kind::Secret, "s"), "its only pod is gone");
        assert!(related("n1", Kind::ConfigMap, "settings"), "another pod has it still");
        graph.state.write().put(&"b".into(), &pod("b", "n2", "t"));
        assert!(graph.state.read().counts.keys().eq(["n2"]));
    }
}
