//! Events: what happened to a pod, for those who ask `kubectl describe`.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use tokio::sync::mpsc;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

struct Occurrence {
    pod: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Takes events and writes them to the API in their order, as long as it answers. Nobody waits for it.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    occurrences: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// Starts a recorder that speaks for a node.
    pub fn start(client: Client, node: String) -> Recorder {
        let (occurrences, mut incoming) = mpsc::channel::<Occurrence>(256);
        tokio::spawn(async move {
            let mut written = HashMap::new();
            while let Some(occurrence) = incoming.recv().await {
                write(&client, &node, &mut written, occurrence).await;
            }
        });
        Recorder { occurrences }
    }

    /// Something happened to a pod, or to one container of it.
    pub fn record(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let of = |name: &str| {
            let init = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
            let list =
                if init.into_iter().any(|one| one.name == name) { "initContainers" } else { "containers" };
            format!("spec.{list}{{{name}}}")
        };
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: container.map(of),
        };
        let message = message.into();
        // Events are a courtesy: when the API is slow, some are lost, and nothing waits.
        let _ =
            self.occurrences.try_send(Occurrence { pod, severity, reason, message, at: Timestamp::now() });
    }
}

/// The object's name and how often it has happened.
type Written = HashMap<(Option<String>, &'static str, String), (String, i32)>;

async fn write(client: &Client, node: &str, written: &mut Written, occurrence: Occurrence) {
    let Occurrence { pod, severity, reason, message, at } = occurrence;
    let (Some(namespace), Some(name)) = (pod.namespace.clone(), pod.name.clone()) else { return };
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    if written.len() > 4096 {
        written.clear();
    }
    let key = (pod.uid.clone(), reason, format!("{:?} {message}", pod.field_path));
    if let Some((event, count)) = written.get_mut(&key) {
        *count += 1;
        let change = serde_json::json!({"count": *count, "lastTimestamp": Time(at)});
        if api.patch(event, &PatchParams::default(), &Patch::Merge(change)).await.is_ok() {
            return;
        }
    }
    let event = Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", at.as_nanosecond())),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: pod,
        reason: Some(reason.to_owned()),
        message: Some(message),
        type_: Some(format!("{severity:?}")),
        source: Some(EventSource { component: Some("portolan".to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some("portolan".to_owned()),
        reporting_instance: Some(node.to_owned()),
        first_timestamp: Some(Time(at)),
        last_timestamp: Some(Time(at)),
        count: Some(1),
        ..Event::default()
    };
    match api.create(&PostParams::default(), &event).await {
        Ok(created) => drop(written.insert(key, (created.metadata.name.unwrap_or_default(), 1))),
        Err(error) => tracing::debug!(%error, reason, "an event was not written"),
    }
}
