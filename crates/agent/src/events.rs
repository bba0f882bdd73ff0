//! Events about the node and its Services. Nobody waits for one to be written, and none is worth an error.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use portolan_plan::model::ServiceName;
use tokio::sync::mpsc;

/// Who the events are from.
const COMPONENT: &str = "portolan-agent";
/// How many events wait to be written; what comes on top is dropped.
const WAITING: usize = 64;
/// How often an event is tried, and the pause between: an agent often starts before its API server (as in client-go's
/// tools/events).
const TRIES: usize = 12;
const PAUSE: Duration = Duration::from_secs(10);

/// Takes events.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    node: String,
    events: mpsc::Sender<Event>,
}

/// Whether an event tells of normal operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

impl Recorder {
    /// A recorder for a node; what it takes is written by [`write`].
    pub fn new(node: &str) -> (Recorder, mpsc::Receiver<Event>) {
        let (events, waiting) = mpsc::channel(WAITING);
        (Recorder { node: node.to_owned(), events }, waiting)
    }

    /// The name of the node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Something happened to the node.
    pub fn of_node(&self, severity: Severity, reason: &'static str, message: impl Into<String>) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(self.node.clone()),
            // `kubectl describe node` looks for the name in this place, since that is what kubelets write there.
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        };
        self.record(about, severity, reason, message.into());
    }

    /// Something happened to a Service on this node.
    pub fn of_service(&self, service: &ServiceName, reason: &'static str, message: impl Into<String>) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(service.namespace.to_string()),
            name: Some(service.name.to_string()),
            ..ObjectReference::default()
        };
        self.record(about, Severity::Warning, reason, message.into());
    }

    fn record(&self, about: ObjectReference, severity: Severity, reason: &'static str, message: String) {
        if self
            .events
            .try_send(event(about, &self.node, severity, reason, message, Timestamp::now()))
            .is_err()
        {
            tracing::debug!(reason, "an event was dropped");
        }
    }
}

fn event(
    about: ObjectReference,
    node: &str,
    severity: Severity,
    reason: &'static str,
    message: String,
    at: Timestamp,
) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", about.name.as_deref().unwrap_or_default(), at.as_nanosecond())),
            // Events about objects without a namespace live in the default namespace.
            namespace: Some(about.namespace.clone().unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        involved_object: about,
        reason: Some(reason.to_owned()),
        message: Some(message),
        type_: Some(format!("{severity:?}")),
        count: Some(1),
        first_timestamp: Some(Time(at)),
        last_timestamp: Some(Time(at)),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

/// Writes the events that recorders take, in their order, for as long as there are recorders.
pub(crate) async fn write(client: kube::Client, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        for left in (0..TRIES).rev() {
            match api.create(&PostParams::default(), &event).await {
                Ok(_) => break,
                // It was understood and refused: it would be again. A conflict is our own earlier try.
                Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                    tracing::debug!(reason = event.reason, %status, "an event was refused");
                    break;
                }
                Err(error) => {
                    tracing::debug!(reason = event.reason, %error, left, "an event was not written");
                    if left > 0 {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_about_a_node_is_found_by_those_who_describe_it() {
        let (recorder, mut waiting) = Recorder::new("n1");
        recorder.of_node(Severity::Normal, "Starting", "");
        let event = waiting.try_recv().expect("an event");
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.involved_object.uid.as_deref(), Some("n1"));
        assert_eq!(event.type_.as_deref(), Some("Normal"));
    }

    #[test]
    fn a_recorder_never_waits() {
        let (recorder, waiting) = Recorder::new("n1");
        for _ in 0..2 * WAITING {
            recorder.of_service(&ServiceName::new("default", "web"), "FailedToStartServiceHealthcheck", "");
        }
        assert_eq!(waiting.len(), WAITING);
    }
}
