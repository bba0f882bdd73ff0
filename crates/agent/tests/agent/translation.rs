//! What an object becomes as a view.

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use portolan_agent::from_kube::{self, Names};
use portolan_plan::view::*;
use serde_json::{Value, json};

fn service(spec: Value, rest: Value) -> (Option<ServiceView>, Vec<String>) {
    let mut object = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": spec});
    object.as_object_mut().unwrap().extend(rest.as_object().cloned().unwrap_or_default());
    let service: Service = serde_json::from_value(object).unwrap();
    let (view, findings) = from_kube::service(&service);
    (view, findings.iter().map(|f| f.field.to_string()).collect())
}

fn slice(mut object: Value) -> Option<SliceView> {
    object["metadata"] =
        json!({"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}});
    let slice: EndpointSlice = serde_json::from_value(object).unwrap();
    from_kube::slice(&slice, &mut Names::default()).map(|(_, view)| view)
}

#[test]
fn headless_services_and_aliases_are_none_of_a_nodes_business() {
    assert!(service(json!({"clusterIP": "None"}), json!({})).0.is_none());
    assert!(service(json!({"clusterIP": ""}), json!({})).0.is_none());
    assert!(service(json!({}), json!({})).0.is_none());
    assert!(service(json!({"type": "ExternalName", "externalName": "x.example"}), json!({})).0.is_none());
    assert!(service(json!({"clusterIP": "10.96.0.1"}), json!({})).0.is_some());
}

#[test]
fn absent_conditions_mean_ready_serving_and_not_terminating() {
    let of = |conditions: Value| {
        let endpoint = json!({"addresses": ["10.1.0.1"], "conditions": conditions});
        let view = slice(json!({"addressType": "IPv4", "endpoints": [endpoint], "ports": []})).unwrap();
        let e = &view.endpoints[0];
        (e.ready, e.serving, e.terminating)
    };
    assert_eq!(of(Value::Null), (true, true, false));
    assert_eq!(of(json!({})), (true, true, false));
    assert_eq!(of(json!({"ready": false})), (false, true, false));
    assert_eq!(of(json!({"ready": false, "serving": true, "terminating": true})), (false, true, true));
}

#[test]
fn only_the_first_address_counts_and_only_of_the_slices_family() {
    let endpoints =
        json!([{"addresses": ["10.1.0.1", "10.1.0.2"]}, {"addresses": ["fd00::1"]}, {"addresses": ["x"]}]);
    let view = slice(json!({"addressType": "IPv4", "endpoints": endpoints, "ports": []})).unwrap();
    assert_eq!(view.endpoints.iter().map(|e| e.address.to_string()).collect::<Vec<_>>(), ["10.1.0.1"]);
    assert!(slice(json!({"addressType": "FQDN", "endpoints": []})).is_none());
}

#[test]
fn ports_without_a_number_are_skipped_and_without_a_protocol_are_tcp() {
    let ports = json!([{"name": "a"}, {"name": "b", "port": 0}, {"port": 80}, {"name": "c", "port": 1, "protocol": "X"}]);
    let view = slice(json!({"addressType": "IPv4", "endpoints": [], "ports": ports})).unwrap();
    assert_eq!(view.ports.len(), 1);
    assert_eq!((&*view.ports[0].name, view.ports[0].port), ("", 80));
}

#[test]
fn names_that_many_endpoints_share_are_held_once() {
    let endpoint = |i: u8| json!({"addresses": [format!("10.1.0.{i}")], "nodeName": "n", "hints": {"forZones": [{"name": "a"}]}});
    let view =
        slice(json!({"addressType": "IPv4", "endpoints": [endpoint(1), endpoint(2)], "ports": []})).unwrap();
    let [a, b] = &view.endpoints[..] else { panic!() };
    assert!(std::sync::Arc::ptr_eq(a.node.as_ref().unwrap(), b.node.as_ref().unwrap()));
    assert!(std::sync::Arc::ptr_eq(a.hints.as_ref().unwrap(), b.hints.as_ref().unwrap()));
}

#[test]
fn a_load_balancers_addresses_count_only_while_the_service_has_that_type() {
    let status = json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "198.51.100.2", "ipMode": "VIP"}, {"ip": "198.51.100.3", "ipMode": "Proxy"}, {"hostname": "lb.example"},
        {"ip": "198.51.100.4"}]}}});
    let view = service(json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1"}), status.clone()).0.unwrap();
    let proxies: Vec<bool> = view.load_balancer.iter().map(|i| i.proxy).collect();
    assert_eq!(proxies, [false, true, false]);
    let view = service(json!({"type": "ClusterIP", "clusterIP": "10.96.0.1"}), status).0.unwrap();
    assert!(view.load_balancer.is_empty());
}

#[test]
fn source_ranges_come_from_the_field_then_from_the_annotation_and_close_when_malformed() {
    let annotated = |ranges: &str| {
        json!({"metadata": {"namespace": "default", "name": "web", "annotations":
            {"service.beta.kubernetes.io/load-balancer-source-ranges": ranges}}})
    };
    let ranges = |field: Value, rest: Value| {
        let spec =
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "loadBalancerSourceRanges": field});
        let (view, findings) = service(spec, rest);
        let ranges = view.unwrap().source_ranges;
        (ranges.map(|r| r.iter().map(|r| r.to_string()).collect::<Vec<_>>()), findings)
    };
    let some = |list: &[&str]| Some(list.iter().map(|s| s.to_string()).collect::<Vec<_>>());
    assert_eq!(ranges(json!(null), json!({})).0, None);
    assert_eq!(ranges(json!([]), annotated("")).0, None);
    assert_eq!(ranges(json!([" 10.0.0.0/8 "]), annotated("192.0.2.0/24")).0, some(&["10.0.0.0/8"]));
    assert_eq!(
        ranges(json!(null), annotated("192.0.2.0/24, 2001:db8::/32")).0,
        some(&["192.0.2.0/24", "2001:db8::/32"])
    );
    assert_eq!(
        ranges(json!(["10.0.0.0"]), json!({})),
        (some(&[]), vec!["spec.loadBalancerSourceRanges[0]".to_owned()])
    );
}

#[test]
fn affinity_has_its_default_timeout() {
    let affinity = |spec: Value| {
        let mut spec = spec;
        spec["clusterIP"] = json!("10.96.0.1");
        service(spec, json!({})).0.unwrap().affinity.map(|d| d.as_secs())
    };
    assert_eq!(affinity(json!({})), None);
    assert_eq!(affinity(json!({"sessionAffinity": "None"})), None);
    assert_eq!(affinity(json!({"sessionAffinity": "ClientIP"})), Some(10800));
    let config = json!({"clientIP": {"timeoutSeconds": 60}});
    assert_eq!(affinity(json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config})), Some(60));
}

#[test]
fn old_spellings_of_addresses_are_understood() {
    let (view, findings) =
        service(json!({"clusterIP": "10.96.000.001", "externalIPs": ["::ffff:192.0.2.1", "x"]}), json!({}));
    let view = view.unwrap();
    assert_eq!(view.cluster_ips, ["10.96.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(view.external_ips, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(findings, ["spec.externalIPs[1]"]);
}

#[test]
fn a_nodes_internal_addresses_come_first() {
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "here"}, "spec": {"podCIDR": "10.1.0.0/24"},
        "status": {"addresses": [{"type": "ExternalIP", "address": "198.51.100.9"}, {"type": "Hostname", "address": "h"},
            {"type": "InternalIP", "address": "192.0.2.10"}, {"type": "InternalIP", "address": "2001:db8::10"}]}}))
    .unwrap();
    let (seen, findings) = from_kube::node(&node);
    let addresses: Vec<_> = seen.addresses.iter().map(|a| a.to_string()).collect();
    assert_eq!(addresses, ["192.0.2.10", "2001:db8::10", "198.51.100.9"]);
    assert_eq!(seen.pod_cidrs.len(), 1);
    assert!(findings.is_empty());
}
