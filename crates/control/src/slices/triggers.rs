//! When the change was made that has endpoints written, as Kubernetes' controllers tell it (k8s.io/endpointslice,
//! `TriggerTimeTracker`): what was seen of a Service and its pods is held against what was seen when it was last looked at.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use parking_lot::Mutex;

use crate::cache::ObjectKey;
use crate::pods;

/// What one controller has seen of Services.
#[derive(Debug, Default)]
pub(crate) struct Triggers(Mutex<HashMap<ObjectKey, Seen>>);

#[derive(Debug, Default)]
struct Seen {
    made: Option<Timestamp>,
    /// By the pods' names, when each became ready or unready.
    pods: HashMap<String, Timestamp>,
}

impl Triggers {
    /// Looks at a Service: the earliest of what has changed since the last look, or its making at the first; none if nothing
    /// that has a time has changed.
    pub fn look(&self, key: &ObjectKey, service: &Service, members: &[Arc<Pod>]) -> Option<Timestamp> {
        let made = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let turned = |pod: &Arc<Pod>| {
            let time = pods::condition(pod, "Ready")?.last_transition_time.as_ref()?.0;
            Some((pod.name_any(), time))
        };
        let now = Seen { made, pods: members.iter().filter_map(turned).collect() };
        let mut seen = self.0.lock();
        let Some(before) = seen.get(key) else {
            seen.insert(key.clone(), now);
            return made;
        };
        let pods = now.pods.iter().filter(|(name, time)| Some(*time) > before.pods.get(*name));
        let service = now.made.iter().filter(|time| Some(*time) > before.made.as_ref());
        let earliest = pods.map(|(_, time)| time).chain(service).min().copied();
        seen.insert(key.clone(), now);
        earliest
    }

    /// The Service is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_earliest_change_since_the_last_look_is_told() {
        let service: Service = serde_json::from_value(
            json!({"metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"}}),
        )
        .expect("a service");
        let pod = |name: &str, at: &str| -> Arc<Pod> {
            let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": at});
            let pod = json!({"metadata": {"name": name}, "status": {"conditions": [ready]}});
            Arc::new(serde_json::from_value(pod).expect("a pod"))
        };
        let (key, triggers) = (ObjectKey { namespace: "n".into(), name: "web".into() }, Triggers::default());
        let look = |pods: &[Arc<Pod>]| triggers.look(&key, &service, pods).map(|time| time.to_string());
        let (early, late) = ("2026-01-01T00:00:05Z", "2026-01-01T00:00:09Z");
        assert_eq!(look(&[pod("a", late)]).as_deref(), Some("2026-01-01T00:00:00Z"), "the first look");
        assert_eq!(look(&[pod("a", late)]), None, "nothing has changed");
        assert_eq!(look(&[pod("b", early), pod("c", late)]).as_deref(), Some(early), "two are new");
        assert_eq!(look(&[pod("c", late)]), None, "one that goes leaves no time");
        triggers.forget(&key);
        assert_eq!(look(&[pod("c", late)]).as_deref(), Some("2026-01-01T00:00:00Z"), "the first look again");
    }
}
