//! Services as the name server hears them: without their status.
//!
//! No name hangs on it, and the API takes what its generated type refuses: a condition whose `lastTransitionTime` nobody set is written
//! as null. With the whole type, one such Service broke the list and the watch of all.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::{Deserialize, Deserializer};

/// A Service that was read in part.
#[derive(Clone, Debug)]
pub(crate) struct Heard(pub Service);

impl<'de> Deserialize<'de> for Heard {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Fields<P> {
            #[serde(default)]
            metadata: ObjectMeta,
            spec: Option<P>,
        }
        let Fields { metadata, spec } = Fields::deserialize(deserializer)?;
        Ok(Heard(Service { metadata, spec, status: None }))
    }
}

impl Resource for Heard {
    const API_VERSION: &'static str = Service::API_VERSION;
    const GROUP: &'static str = Service::GROUP;
    const KIND: &'static str = Service::KIND;
    const VERSION: &'static str = Service::VERSION;
    const URL_PATH_SEGMENT: &'static str = Service::URL_PATH_SEGMENT;
    type Scope = <Service as Resource>::Scope;
}

impl Metadata for Heard {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.0.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_without_a_time_stops_nobody() {
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.7"},
            "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "message": "", "lastTransitionTime": null}]},
        });
        let Heard(service) = serde_json::from_value(object).expect("a Service");
        assert_eq!(service.metadata.name.as_deref(), Some("web"));
        assert_eq!(service.spec.and_then(|spec| spec.cluster_ip).as_deref(), Some("10.96.0.7"));
    }
}
