//! Events about objects: written beside the reconciles, repeated ones counted.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use tokio::sync::mpsc;

/// At most so many different events are remembered for counting; then counting begins anew.
const REMEMBERED: usize = 4096;

/// Takes events; it never waits.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    events: mpsc::Sender<Note>,
}

/// Whether an event tells of normal operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

/// What happened to which object.
#[derive(Clone, Debug)]
pub(crate) struct Note {
    about: ObjectReference,
    source: &'static str,
    severity: Severity,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// The object's uid, the severity, the reason and the message.
type Sameness = (Option<String>, Severity, &'static str, String);

// === impl ===

impl Recorder {
    pub fn new() -> (Recorder, mpsc::Receiver<Note>) {
        let (events, receiver) = mpsc::channel(1024);
        (Recorder { events }, receiver)
    }

    /// Notes what the controller `source` did to `object`.
    pub fn note<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        source: &'static str,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let about = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            namespace: object.namespace(),
            name: Some(object.name_any()),
            uid: object.uid(),
            resource_version: object.resource_version(),
            field_path: None,
        };
        let note = Note { about, source, severity, reason, message: message.into(), at: Timestamp::now() };
        // Events are best effort (as in Kubernetes): when nobody can write them, the work goes on without.
        if self.events.try_send(note).is_err() {
            tracing::debug!("an event was dropped");
        }
    }
}

/// Writes the events that the recorder takes, for ever.
pub(crate) async fn write(client: Client, mut events: mpsc::Receiver<Note>) {
    // By what makes two events the same one: the name under which it was written, and how often it happened.
    let mut known: HashMap<Sameness, (String, i32)> = HashMap::new();
    let mut serial: u32 = 0;
    while let Some(note) = events.recv().await {
        // Events about objects without a namespace live in the default namespace.
        let namespace = note.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let identity = (note.about.uid.clone(), note.severity, note.reason, note.message.clone());
        if let Some((name, count)) = known.get_mut(&identity) {
            *count += 1;
            let patch = serde_json::json!({ "count": *count, "lastTimestamp": Time(note.at) });
            if api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
                continue;
            }
            // It has expired or was deleted: begin anew.
            known.remove(&identity);
        }
        serial = serial.wrapping_add(1);
        let event = note.event(&namespace, serial);
        match api.create(&PostParams::default(), &event).await {
            Ok(event) => {
                if known.len() >= REMEMBERED {
                    known.clear();
                }
                known.insert(identity, (event.name_any(), 1));
            }
            Err(error) => tracing::debug!(reason = note.reason, %error, "an event could not be written"),
        }
    }
}

impl Note {
    fn event(&self, namespace: &str, serial: u32) -> Event {
        let mut event = Event {
            involved_object: self.about.clone(),
            reason: Some(self.reason.to_owned()),
            message: Some(self.message.clone()),
            type_: Some(if self.severity == Severity::Normal { "Normal" } else { "Warning" }.to_owned()),
            count: Some(1),
            first_timestamp: Some(Time(self.at)),
            last_timestamp: Some(Time(self.at)),
            source: Some(EventSource { component: Some(self.source.to_owned()), host: None }),
            reporting_component: Some(self.source.to_owned()),
            ..Event::default()
        };
        event.metadata.namespace = Some(namespace.to_owned());
        // Unique per process by the serial and across restarts by the time.
        let name = self.about.name.as_deref().unwrap_or_default();
        event.metadata.name = Some(format!("{name}.{:x}{serial:04x}", self.at.as_nanosecond()));
        event
    }
}
