//! What nobody reads can't break a watch: objects are read as far as a node needs them, and never written back.
//!
//! Two reasons. The API takes what the generated types refuse: a condition whose `lastTransitionTime` nobody set is written as null
//! (Kubernetes' own end-to-end tests write one), and with the whole type one such Service broke the list and the watch of all. And
//! most of what a large cluster sends is of no use to a node: who wrote which field, which pod an endpoint is, the images of a
//! node. It is never allocated.
//!
//! Absent on purpose: types of our own. A [`Heard`] holds the generated type, so that whoever reads it reads Kubernetes' names.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    LoadBalancerStatus, Node, NodeAddress, NodeSpec, NodeStatus, Service, ServiceSpec, ServiceStatus,
};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice,
};
use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::{Metadata, Resource};
use serde::de::{Deserialize, Deserializer};

/// An object that was read in part.
#[derive(Clone, Debug)]
pub struct Heard<K>(pub K);

/// `metadata` without `managedFields`, `ownerReferences` and `finalizers`.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl From<Meta> for ObjectMeta {
    fn from(meta: Meta) -> ObjectMeta {
        ObjectMeta {
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            resource_version: meta.resource_version,
            creation_timestamp: meta.creation_timestamp,
            deletion_timestamp: meta.deletion_timestamp,
            labels: meta.labels,
            annotations: meta.annotations,
            ..ObjectMeta::default()
        }
    }
}

impl<'de> Deserialize<'de> for Heard<Service> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Fields {
            #[serde(default)]
            metadata: Meta,
            spec: Option<ServiceSpec>,
            status: Option<Status>,
        }
        #[derive(serde::Deserialize)]
        struct Status {
            #[serde(rename = "loadBalancer")]
            load_balancer: Option<LoadBalancerStatus>,
        }
        let Fields { metadata, spec, status } = Fields::deserialize(deserializer)?;
        let status = status.map(|s| ServiceStatus { load_balancer: s.load_balancer, conditions: None });
        Ok(Heard(Service { metadata: metadata.into(), spec, status }))
    }
}

impl<'de> Deserialize<'de> for Heard<ServiceCIDR> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Fields {
            #[serde(default)]
            metadata: Meta,
            spec: Option<ServiceCIDRSpec>,
        }
        let Fields { metadata, spec } = Fields::deserialize(deserializer)?;
        Ok(Heard(ServiceCIDR { metadata: metadata.into(), spec, status: None }))
    }
}

impl<'de> Deserialize<'de> for Heard<Node> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Fields {
            #[serde(default)]
            metadata: Meta,
            spec: Option<NodeSpec>,
            status: Option<Status>,
        }
        #[derive(serde::Deserialize)]
        struct Status {
            addresses: Option<Vec<NodeAddress>>,
        }
        let Fields { metadata, spec, status } = Fields::deserialize(deserializer)?;
        let status = status.map(|s| NodeStatus { addresses: s.addresses, ..NodeStatus::default() });
        Ok(Heard(Node { metadata: metadata.into(), spec, status }))
    }
}

impl<'de> Deserialize<'de> for Heard<EndpointSlice> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        struct Fields {
            #[serde(default)]
            metadata: Meta,
            #[serde(default, rename = "addressType")]
            address_type: String,
            endpoints: Option<Vec<EndpointFields>>,
            ports: Option<Vec<EndpointPort>>,
        }
        /// Without `targetRef` and `deprecatedTopology`.
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct EndpointFields {
            addresses: Option<Vec<String>>,
            conditions: Option<EndpointConditions>,
            hints: Option<EndpointHints>,
            hostname: Option<String>,
            node_name: Option<String>,
            zone: Option<String>,
        }
        let Fields { metadata, address_type, endpoints, ports } = Fields::deserialize(deserializer)?;
        let endpoints = endpoints.map(|all| {
            let endpoint = |e: EndpointFields| Endpoint {
                addresses: e.addresses.unwrap_or_default(),
                conditions: e.conditions,
                hints: e.hints,
                hostname: e.hostname,
                node_name: e.node_name,
                zone: e.zone,
                ..Endpoint::default()
            };
            all.into_iter().map(endpoint).collect()
        });
        Ok(Heard(EndpointSlice { metadata: metadata.into(), address_type, endpoints, ports }))
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
    use serde_json::{Value, from_value, json};

    use super::*;

    /// What every object of a cluster has, and nobody here reads.
    fn metadata(name: &str) -> Value {
        json!({"name": name, "namespace": "default", "uid": "u", "resourceVersion": "7", "generation": 3,
            "creationTimestamp": "2026-01-02T03:04:05Z", "deletionTimestamp": null,
            "labels": {"kubernetes.io/service-name": "web"}, "annotations": {"a": "b"},
            "managedFields": [{"manager": "kubectl", "time": null}],
            "ownerReferences": [{"kind": "Service"}], "finalizers": ["a.b/c"]})
    }

    fn read_metadata(name: &str) -> ObjectMeta {
        let mut value = metadata(name);
        for key in ["managedFields", "ownerReferences", "finalizers", "generation"] {
            value.as_object_mut().expect("an object").remove(key);
        }
        from_value(value).expect("metadata")
    }

    #[test]
    fn a_condition_without_a_time_stops_nobody() {
        let event = json!({"type": "MODIFIED", "object": {
            "apiVersion": "v1", "kind": "Service", "metadata": metadata("web"),
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 80}]},
            "status": {
                "conditions": [{"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "", "lastTransitionTime": null}],
                "loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]},
            },
        }});
        let WatchEvent::Modified(Heard(service)) = from_value(event).expect("an event") else {
            panic!("another event")
        };
        let service: Service = service;
        assert_eq!(service.metadata, read_metadata("web"));
        assert_eq!(service.spec.and_then(|spec| spec.cluster_ip).as_deref(), Some("10.96.0.7"));
        let ingress = service.status.and_then(|s| s.load_balancer?.ingress).expect("its addresses");
        assert_eq!(ingress[0].ip.as_deref(), Some("203.0.113.1"));
    }

    #[test]
    fn of_a_slice_all_is_heard_but_which_pod_an_endpoint_is() {
        let endpoint = json!({"addresses": ["10.1.1.1"], "conditions": {"ready": true, "serving": null},
            "hints": {"forZones": [{"name": "a"}]}, "hostname": "h", "nodeName": "n", "zone": "a"});
        let slice = |extra: Value, metadata: Value| {
            let mut endpoint = endpoint.clone();
            endpoint
                .as_object_mut()
                .expect("an object")
                .extend(extra.as_object().cloned().unwrap_or_default());
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
                "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "appProtocol": "http"}], "endpoints": [endpoint]})
        };
        let said =
            slice(json!({"targetRef": {"kind": 5}, "deprecatedTopology": {"x": "y"}}), metadata("web-1"));
        let Heard(heard): Heard<EndpointSlice> = from_value(said).expect("a slice");
        let mut whole: EndpointSlice =
            from_value(slice(json!({}), metadata("web-1"))).expect("the whole type");
        whole.metadata = read_metadata("web-1");
        assert_eq!(heard, whole);
        let nothing: Heard<EndpointSlice> = from_value(
            json!({"metadata": {"name": "e"}, "addressType": "IPv6", "endpoints": null, "ports": null}),
        )
        .expect("an empty slice");
        assert_eq!((nothing.0.endpoints, nothing.0.ports), (None, None));
    }

    #[test]
    fn of_a_node_its_spec_and_its_addresses_are_heard() {
        let spec = json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"], "unschedulable": true,
            "taints": [{"key": "k", "effect": "NoSchedule"}]});
        let addresses = json!([{"type": "InternalIP", "address": "192.0.2.1"}]);
        let said = json!({"metadata": metadata("n"), "spec": spec, "status": {"addresses": addresses,
            "images": [{"names": null, "sizeBytes": -1}], "conditions": [{"type": "Ready", "lastHeartbeatTime": ""}]}});
        let Heard(heard): Heard<Node> = from_value(said).expect("a node");
        let whole: Node =
            from_value(json!({"metadata": {}, "spec": spec, "status": {"addresses": addresses}}))
                .expect("the whole type");
        assert_eq!(heard, Node { metadata: read_metadata("n"), ..whole });
    }
}
