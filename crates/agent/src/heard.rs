//! Objects as the agent hears them: without the conditions of their status.
//!
//! Nothing here reads those, and the API takes what their generated type refuses: a condition whose `lastTransitionTime` nobody set is
//! written as null (Kubernetes' own end-to-end tests write one). With the whole type, one such Service broke the list and the watch
//! of all.

use k8s_openapi::api::core::v1::{LoadBalancerStatus, Service, ServiceStatus};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{Metadata, Resource};
use serde::{Deserialize, Deserializer};

/// An object that was read in part.
#[derive(Clone, Debug)]
pub(crate) struct Heard<K>(pub K);

#[derive(Deserialize)]
struct Fields<P, T> {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<P>,
    status: Option<T>,
}

#[derive(Deserialize)]
struct ServiceStatusFields {
    #[serde(rename = "loadBalancer")]
    load_balancer: Option<LoadBalancerStatus>,
}

impl<'de> Deserialize<'de> for Heard<Service> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Fields { metadata, spec, status } = Fields::<_, ServiceStatusFields>::deserialize(deserializer)?;
        let status = status.map(|s| ServiceStatus { load_balancer: s.load_balancer, conditions: None });
        Ok(Heard(Service { metadata, spec, status }))
    }
}

impl<'de> Deserialize<'de> for Heard<ServiceCIDR> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Fields { metadata, spec, .. } = Fields::<_, serde::de::IgnoredAny>::deserialize(deserializer)?;
        Ok(Heard(ServiceCIDR { metadata, spec, status: None }))
    }
}

impl<K: Resource> Resource for Heard<K> {
    const API_VERSION: &'static str = K::API_VERSION;
    const GROUP: &'static str = K::GROUP;
    const KIND: &'static str = K::KIND;
    const VERSION: &'static str = K::VERSION;
    const URL_PATH_SEGMENT: &'static str = K::URL_PATH_SEGMENT;
    type Scope = K::Scope;
}

impl<K: Metadata<Ty = ObjectMeta>> Metadata for Heard<K> {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        self.0.metadata()
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        self.0.metadata_mut()
    }
}

#[cfg(test)]
mod tests {
    use kube::core::WatchEvent;

    use super::*;

    #[test]
    fn a_condition_without_a_time_stops_nobody() {
        let event = serde_json::json!({"type": "MODIFIED", "object": {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]},
            "status": {
                "conditions": [{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "", "lastTransitionTime": null}],
                "loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]},
            },
        }});
        let WatchEvent::Modified(Heard(service)) = serde_json::from_value(event).expect("an event") else {
            panic!("another event")
        };
        let service: Service = service;
        assert_eq!(service.metadata.name.as_deref(), Some("web"));
        assert_eq!(service.spec.and_then(|spec| spec.cluster_ip).as_deref(), Some("10.96.0.7"));
        let ingress = service.status.and_then(|s| s.load_balancer?.ingress).expect("its addresses");
        assert_eq!(ingress[0].ip.as_deref(), Some("203.0.113.1"));
    }
}
