//! Writing a pod's status: the newest one, one request at a time, until the object has it.

use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Map, Value, json};

const RETRY: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);

type Answer = Result<Pod, kube::Error>;
type Request = Pin<Box<dyn Future<Output = Option<Answer>> + Send>>;

/// Writes one pod's status.
pub(crate) struct Reporter {
    api: Api<Pod>,
    name: String,
    uid: Option<String>,
    /// The object as an answer showed it, which may be newer than the watch.
    answered: Option<Pod>,
    request: Option<Request>,
    retry: Option<Timestamp>,
}

fn revision(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// The change from one status to another as a JSON merge patch (RFC 7396): what is gone is null.
pub(crate) fn change(from: &PodStatus, to: &PodStatus) -> Option<Value> {
    let object = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    };
    let (from, to) = (object(from), object(to));
    let mut change = Map::new();
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        change.insert(key.clone(), Value::Null);
    }
    for (key, value) in to {
        if from.get(&key) != Some(&value) {
            change.insert(key, value);
        }
    }
    (!change.is_empty()).then_some(Value::Object(change))
}

impl Reporter {
    pub fn new(client: Client, pod: &Pod) -> Reporter {
        let api = Api::namespaced(client, pod.metadata.namespace.as_deref().unwrap_or_default());
        let name = pod.metadata.name.clone().unwrap_or_default();
        Reporter { api, name, uid: pod.metadata.uid.clone(), answered: None, request: None, retry: None }
    }

    /// When a failed request is due again.
    pub fn retry(&self) -> Option<Timestamp> {
        self.retry
    }

    fn newest<'a>(&'a self, pod: &'a Pod) -> &'a Pod {
        match &self.answered {
            Some(answered) if revision(answered) > revision(pod) => answered,
            _ => pod,
        }
    }

    fn prepare(&self, pod: &Pod, status: impl FnOnce(&Pod) -> PodStatus) -> Option<Request> {
        let base = self.newest(pod);
        let wanted = status(base);
        let existing = base.status.clone().unwrap_or_default();
        let change = change(&existing, &wanted)?;
        // With the revision: conditions are one list, and others write conditions, too.
        let metadata = json!({"uid": self.uid, "resourceVersion": base.metadata.resource_version});
        let body = json!({"metadata": metadata, "status": change});
        let (api, name) = (self.api.clone(), self.name.clone());
        Some(Box::pin(async move {
            let request = async {
                match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(body)).await {
                    // Somebody else was quicker: look at what is there now.
                    Err(kube::Error::Api(answer)) if answer.code == 409 => api.get(&name).await,
                    other => other,
                }
            };
            tokio::time::timeout(PATIENCE, request).await.ok()
        }))
    }

    /// Begins to write the status if the object doesn't have it and nothing is being written.
    pub fn report(&mut self, pod: &Pod, status: impl FnOnce(&Pod) -> PodStatus) {
        if self.request.is_some() || self.retry.is_some_and(|retry| retry > Timestamp::now()) {
            return;
        }
        self.retry = None;
        self.request = self.prepare(pod, status);
    }

    /// Writes the status and waits for the answer, whatever it is.
    pub async fn report_now(&mut self, pod: &Pod, status: impl Fn(&Pod) -> PodStatus) {
        if self.request.is_some() {
            self.progress().await;
        }
        for _ in 0..3 {
            match self.prepare(pod, &status) {
                Some(request) => {
                    self.request = Some(request);
                    self.progress().await;
                }
                None => return,
            }
        }
    }

    /// Waits for the answer to what is being written; forever if nothing is.
    pub async fn progress(&mut self) {
        let Some(request) = &mut self.request else { return std::future::pending().await };
        let answer = request.await;
        self.request = None;
        match answer {
            Some(Ok(pod)) => {
                if pod.metadata.uid == self.uid {
                    self.answered = Some(pod);
                }
                return;
            }
            // The pod is gone; the watch will say so.
            Some(Err(kube::Error::Api(answer))) if answer.code == 404 => {}
            Some(Err(error)) => tracing::warn!(pod = %self.name, %error, "a status was not written"),
            None => tracing::warn!(pod = %self.name, "a status was not written: the API doesn't answer"),
        }
        self.retry = Timestamp::now().checked_add(RETRY).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_holds_what_is_different_and_nulls_what_is_gone() {
        let from =
            PodStatus { phase: Some("Pending".into()), message: Some("m".into()), ..PodStatus::default() };
        let to = PodStatus {
            phase: Some("Running".into()),
            pod_ip: Some("10.1.0.1".into()),
            ..PodStatus::default()
        };
        let expected = json!({"message": null, "phase": "Running", "podIP": "10.1.0.1"});
        assert_eq!(change(&from, &to), Some(expected));
        assert_eq!(change(&to, &to), None);
    }
}
