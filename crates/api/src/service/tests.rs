//! What a Service promises, rule by rule, on the way that the server walks: prepare, allocate, check.

use std::cell::RefCell;
use std::collections::HashSet;

use serde_json::{Value, json};

use super::{Allocation, Claim, Refusal, ServiceConfig, allocate, release};
use crate::kind::find;
use crate::patch;

/// A cluster that remembers which claims are held.
struct Cluster {
    config: ServiceConfig,
    held: RefCell<HashSet<String>>,
}

fn cluster(cidrs: &[&str]) -> Cluster {
    let cidrs: Vec<ipnet::IpNet> = cidrs.iter().map(|c| c.parse().unwrap()).collect();
    Cluster {
        config: ServiceConfig { ready: cidrs.clone(), cidrs, node_ports: 30000..=32767 },
        held: RefCell::default(),
    }
}

impl Cluster {
    fn keep(&self, allocation: &Allocation) {
        let mut held = self.held.borrow_mut();
        for claim in &allocation.release {
            assert!(held.remove(&claim.key()), "released what nobody held: {claim:?}");
        }
        for claim in &allocation.take {
            assert!(held.insert(claim.key()), "took what was held: {claim:?}");
        }
    }

    fn allocate(&self, new: &mut Value, old: Option<&Value>) -> Result<Allocation, String> {
        let own: Vec<String> = old.map(release).unwrap_or_default().iter().map(Claim::key).collect();
        let taken = |c: &Claim| self.held.borrow().contains(&c.key()) && !own.contains(&c.key());
        allocate(new, old, &self.config, false, &taken, &mut |_| 0).map_err(|refusal| match refusal {
            Refusal::Invalid(errors) => texts(&errors),
            Refusal::Internal(text) | Refusal::Unexpected(text) => format!("500 {text}"),
        })
    }

    fn create(&self, mut service: Value) -> Result<Value, String> {
        let kind = find("", "v1", "services").unwrap();
        crate::walk::default(&mut service, "metadata.name", "x");
        crate::walk::default(&mut service, "metadata.namespace", "default");
        kind.prepare_create(&mut service);
        let allocation = self.allocate(&mut service, None)?;
        let errors = kind.check_create(&service);
        if !errors.is_empty() {
            return Err(texts(&errors));
        }
        self.keep(&allocation);
        Ok(service)
    }

    fn update(&self, old: &Value, mut new: Value) -> Result<Value, String> {
        let kind = find("", "v1", "services").unwrap();
        kind.prepare_update(&mut new, old);
        let allocation = self.allocate(&mut new, Some(old))?;
        let errors = kind.check_update(&new, old);
        if !errors.is_empty() {
            return Err(texts(&errors));
        }
        self.keep(&allocation);
        Ok(new)
    }

    fn patch(&self, old: &Value, change: Value) -> Result<Value, String> {
        let mut new = old.clone();
        patch::merge(&mut new, &change).unwrap();
        self.update(old, new)
    }
}

fn texts(errors: &[crate::FieldError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn v4() -> Cluster {
    cluster(&["10.96.0.0/16"])
}

fn dual() -> Cluster {
    cluster(&["10.96.0.0/16", "fd00::/112"])
}

fn service(spec: Value) -> Value {
    let mut out = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {
        "selector": {"a": "b"}, "ports": [{"port": 80}]}});
    patch::merge(&mut out, &json!({"spec": spec})).unwrap();
    out
}

#[test]
fn a_plain_manifest_gets_the_defaults_and_an_address() {
    let made = v4().create(service(json!({}))).unwrap();
    assert_eq!(
        made["spec"],
        json!({
            "selector": {"a": "b"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            "sessionAffinity": "None", "type": "ClusterIP", "internalTrafficPolicy": "Cluster",
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
            "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
        })
    );
    assert_eq!(made["status"], json!({"loadBalancer": {}}));
}

#[test]
fn the_missions_node_port_service_is_kept_word_for_word() {
    let cluster = v4();
    let made = cluster
        .create(service(
            json!({"type": "NodePort", "ports": [{"port": 8080, "targetPort": 80, "nodePort": 30163}]}),
        ))
        .unwrap();
    assert_eq!(
        made["spec"]["ports"],
        json!([{"port": 8080, "targetPort": 80, "nodePort": 30163, "protocol": "TCP"}])
    );
    assert_eq!(made["spec"]["externalTrafficPolicy"], "Cluster");
    assert!(cluster.held.borrow().contains("nodeports/30163"));
}

#[test]
fn each_rule_of_a_new_service_has_its_path_and_text() {
    let rows: Vec<(Value, &str)> = vec![
        (json!({"ports": null}), "spec.ports: Required value"),
        (
            json!({"ports": [{"port": 70000}]}),
            "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive; \
             spec.ports[0].targetPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 70000}]}),
            "spec.ports[0].nodePort: Invalid value: 70000: provided port is not in the valid range. \
             The range of valid ports is 30000-32767",
        ),
        (
            json!({"ports": [{"port": 80}, {"port": 81}]}),
            "spec.ports[0].name: Required value; spec.ports[1].name: Required value",
        ),
        (
            json!({"ports": [{"name": "a", "port": 80}, {"name": "a", "port": 81}]}),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            "spec.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            json!({"ports": [{"port": 80, "targetPort": "no_good"}]}),
            "spec.ports[0].targetPort: Invalid value: \"no_good\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (
            json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]}),
            "spec.ports[1]: Duplicate value: {\"Name\":\"\",\"Protocol\":\"TCP\",\"AppProtocol\":null,\"Port\":80,\"TargetPort\":0,\"NodePort\":0}",
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None"}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.0.9"}),
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
        ),
        (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
        (
            json!({"type": "Magic"}),
            "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30080}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]}),
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"externalTrafficPolicy": "Local"}),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ),
        (
            json!({"type": "NodePort", "healthCheckNodePort": 30001}),
            "spec.healthCheckNodePort: Invalid value: 30001: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            json!({"clusterIPs": ["10.96.0.9"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.9\"]: must be empty when `clusterIP` is not specified",
        ),
        (
            json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.8"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.8\"]: first value must match `clusterIP`",
        ),
        (
            json!({"clusterIP": "None", "clusterIPs": ["None", "10.96.0.8"]}),
            "spec.clusterIPs: Invalid value: [\"None\",\"10.96.0.8\"]: 'None' must be the first and only value",
        ),
        (
            json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "10.96.0.8"], "ipFamilyPolicy": "PreferDualStack"}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.9\",\"10.96.0.8\"]: may specify no more than one IP for each IP family",
        ),
        (
            json!({"clusterIP": "10.96.0.9", "ipFamilies": ["IPv6"]}),
            "spec.clusterIPs[0]: Invalid value: \"10.96.0.9\": expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
        (
            json!({"clusterIP": "10.97.0.9"}),
            "spec.clusterIPs: Invalid value: [\"10.97.0.9\"]: failed to allocate IP 10.97.0.9: the provided network does not match \
             the current range",
        ),
        (
            json!({"ipFamilies": ["IPv6"]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            json!({"clusterIP": "fd00::9"}),
            "spec.clusterIPs[0]: Invalid value: [\"fd00::9\"]: IPv6 is not configured on this cluster",
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified",
        ),
        (
            json!({"loadBalancerClass": "a/b"}),
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"externalIPs": ["127.0.0.1"]}),
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            json!({"trafficDistribution": "Near"}),
            "spec.trafficDistribution: Unsupported value: \"Near\": supported values: \"PreferClose\", \"PreferSameZone\", \"PreferSameNode\"",
        ),
        (
            json!({"internalTrafficPolicy": "Far"}),
            "spec.internalTrafficPolicy: Unsupported value: \"Far\": supported values: \"Cluster\", \"Local\"",
        ),
    ];
    for (spec, text) in rows {
        assert_eq!(v4().create(service(spec.clone())).unwrap_err(), text, "{spec}");
    }
}

#[test]
fn topology_annotations_must_agree() {
    let mut object = service(json!({}));
    object["metadata"]["annotations"] = json!({
        "service.kubernetes.io/topology-mode": "Auto", "service.kubernetes.io/topology-aware-hints": "Disabled"});
    assert_eq!(
        v4().create(object).unwrap_err(),
        "metadata.annotations[service.kubernetes.io/topology-mode]: Invalid value: \"Auto\": must match \
         annotations[service.kubernetes.io/topology-aware-hints] when both are specified"
    );
}

#[test]
fn what_another_service_holds_is_refused() {
    let cluster = v4();
    cluster
        .create(service(
            json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [{"port": 80, "nodePort": 30080}]}),
        ))
        .unwrap();
    assert_eq!(
        cluster.create(service(json!({"clusterIP": "10.96.0.9"}))).unwrap_err(),
        "spec.clusterIPs: Invalid value: [\"10.96.0.9\"]: failed to allocate IP 10.96.0.9: provided IP is already allocated"
    );
    for protocol in ["TCP", "UDP"] {
        assert_eq!(
            cluster
                .create(service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080, "protocol": protocol}]})))
                .unwrap_err(),
            "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
        );
    }
}

#[test]
fn a_full_range_is_the_servers_fault() {
    let mut cluster = cluster(&["10.0.0.0/30"]);
    cluster.config.node_ports = 30000..=30001;
    let node_port = || service(json!({"type": "NodePort"}));
    cluster.create(node_port()).unwrap();
    cluster.create(node_port()).unwrap();
    assert_eq!(
        cluster.create(node_port()).unwrap_err(),
        "500 failed to allocate a serviceIP for Service \"x\": range is full"
    );
    cluster.config.cidrs = vec!["10.1.0.0/24".parse().unwrap()];
    cluster.config.ready = cluster.config.cidrs.clone();
    assert_eq!(cluster.create(node_port()).unwrap_err(), "500 failed to allocate a nodePort: range is full");
}

#[test]
fn one_port_on_two_protocols_shares_its_node_port() {
    let cluster = v4();
    let made = cluster
        .create(service(json!({"type": "NodePort", "ports": [
            {"name": "a", "port": 53, "protocol": "TCP"}, {"name": "b", "port": 53, "protocol": "UDP"}, {"name": "c", "port": 80}]})))
        .unwrap();
    let ports = made["spec"]["ports"].as_array().unwrap();
    assert_eq!(ports[0]["nodePort"], ports[1]["nodePort"]);
    assert_ne!(ports[0]["nodePort"], ports[2]["nodePort"]);
    // Giving up one protocol gives up nothing: the number is still used.
    let fewer = cluster
        .update(&made, {
            let mut new = made.clone();
            new["spec"]["ports"].as_array_mut().unwrap().remove(1);
            new
        })
        .unwrap();
    assert!(cluster.held.borrow().contains(&format!("nodeports/{}", fewer["spec"]["ports"][0]["nodePort"])));
}

#[test]
fn reapplying_a_manifest_keeps_what_was_allocated() {
    let cluster = v4();
    let manifest = service(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}));
    let made = cluster.create(manifest.clone()).unwrap();
    let again = cluster.update(&made, manifest).unwrap();
    assert_eq!(again["spec"], made["spec"]);
    assert!(made["spec"]["healthCheckNodePort"].as_i64().unwrap() >= 30000);
    assert_ne!(made["spec"]["healthCheckNodePort"], made["spec"]["ports"][0]["nodePort"]);
}

#[test]
fn a_type_that_needs_less_gives_back_the_rest() {
    let cluster = v4();
    let made =
        cluster.create(service(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}))).unwrap();
    let node_port = cluster.patch(&made, json!({"spec": {"type": "NodePort"}})).unwrap();
    assert_eq!(node_port["spec"].get("healthCheckNodePort"), None);
    assert_eq!(node_port["spec"].get("allocateLoadBalancerNodePorts"), None);
    assert_eq!(node_port["spec"]["ports"], made["spec"]["ports"]);
    let inner = cluster.patch(&node_port, json!({"spec": {"type": "ClusterIP"}})).unwrap();
    assert_eq!(inner["spec"]["ports"][0].get("nodePort"), None);
    assert_eq!(inner["spec"].get("externalTrafficPolicy"), None);
    assert_eq!(cluster.held.borrow().len(), 1);
    let name =
        cluster.patch(&inner, json!({"spec": {"type": "ExternalName", "externalName": "a.b"}})).unwrap();
    assert_eq!(name["spec"].get("clusterIP"), None);
    assert_eq!(name["spec"].get("ipFamilies"), None);
    assert_eq!(name["spec"]["selector"], json!({"a": "b"}));
    assert!(cluster.held.borrow().is_empty());
    let back = cluster.patch(&name, json!({"spec": {"type": "ClusterIP", "externalName": null}})).unwrap();
    assert_eq!(back["spec"]["clusterIP"], "10.96.1.1");
}

#[test]
fn an_address_never_changes() {
    let cluster = dual();
    let made = cluster.create(service(json!({}))).unwrap();
    assert_eq!(
        cluster.patch(&made, json!({"spec": {"clusterIP": "10.96.0.77"}})).unwrap_err(),
        "spec.clusterIPs[0]: Invalid value: [\"10.96.0.77\"]: may not change once set"
    );
    assert_eq!(
        cluster.patch(&made, json!({"spec": {"clusterIP": "None"}})).unwrap_err(),
        "spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set"
    );
    assert_eq!(
        cluster.patch(&made, json!({"spec": {"ipFamilies": ["IPv6"]}})).unwrap_err(),
        "spec.clusterIPs[0]: Invalid value: \"10.96.1.1\": expected an IPv6 value as indicated by `ipFamilies[0]`"
    );
}

#[test]
fn a_second_family_comes_and_goes_by_policy() {
    let cluster = dual();
    let made = cluster.create(service(json!({}))).unwrap();
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
    let both = cluster.patch(&made, json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}})).unwrap();
    assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(both["spec"]["clusterIPs"], json!(["10.96.1.1", "fd00::101"]));
    assert_eq!(
        cluster.patch(&both, json!({"spec": {"clusterIPs": ["10.96.1.1"]}})).unwrap_err(),
        "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary cluster IP"
    );
    assert_eq!(
        cluster.patch(&both, json!({"spec": {"ipFamilies": ["IPv4"]}})).unwrap_err(),
        "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary IP family"
    );
    let one = cluster.patch(&both, json!({"spec": {"ipFamilyPolicy": "SingleStack"}})).unwrap();
    assert_eq!(one["spec"]["clusterIPs"], json!(["10.96.1.1"]));
    assert_eq!(cluster.held.borrow().len(), 1);
}

#[test]
fn the_first_family_asked_for_is_the_primary() {
    let made = dual()
        .create(service(json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]})))
        .unwrap();
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv6", "IPv4"]));
    assert_eq!(made["spec"]["clusterIP"], "fd00::101");
    let given = dual().create(service(json!({"clusterIP": "fd00::9"}))).unwrap();
    assert_eq!(given["spec"]["ipFamilies"], json!(["IPv6"]));
}

#[test]
fn headless_takes_no_address_and_without_selector_any_family() {
    let cluster = v4();
    let made =
        cluster.create(service(json!({"clusterIP": "None", "selector": null, "ports": null}))).unwrap();
    assert_eq!(made["spec"]["clusterIPs"], json!(["None"]));
    assert_eq!(made["spec"]["ipFamilyPolicy"], "RequireDualStack");
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    let chosen = cluster.create(service(json!({"clusterIP": "None"}))).unwrap();
    assert_eq!(chosen["spec"]["ipFamilies"], json!(["IPv4"]));
    assert!(cluster.held.borrow().is_empty());
}

#[test]
fn a_preference_is_not_acted_on_when_only_the_cluster_changed() {
    let before = v4();
    let made = before.create(service(json!({"ipFamilyPolicy": "PreferDualStack"}))).unwrap();
    assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
    let after = dual();
    after.held.borrow_mut().extend(before.held.borrow().iter().cloned());
    let same = after.patch(&made, json!({"metadata": {"labels": {"a": "b"}}})).unwrap();
    assert_eq!(same["spec"], made["spec"]);
}

#[test]
fn a_load_balancer_without_node_ports_gets_none_and_keeps_those_it_has() {
    let cluster = v4();
    let none = cluster
        .create(service(json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false})))
        .unwrap();
    assert_eq!(none["spec"]["ports"][0].get("nodePort"), None);
    let some = cluster.create(service(json!({"type": "LoadBalancer"}))).unwrap();
    let still = cluster.patch(&some, json!({"spec": {"allocateLoadBalancerNodePorts": false}})).unwrap();
    assert_eq!(still["spec"]["ports"], some["spec"]["ports"]);
}

#[test]
fn class_and_health_port_of_a_load_balancer_are_fixed() {
    let cluster = v4();
    let made = cluster
        .create(service(
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerClass": "a.b/c"}),
        ))
        .unwrap();
    assert_eq!(
        cluster.patch(&made, json!({"spec": {"loadBalancerClass": "a.b/d"}})).unwrap_err(),
        "spec.loadBalancerClass: Invalid value: \"a.b/d\": may not change once set"
    );
    assert_eq!(
        cluster.patch(&made, json!({"spec": {"healthCheckNodePort": 31999}})).unwrap_err(),
        "spec.healthCheckNodePort: Forbidden: field is immutable"
    );
}

#[test]
fn a_dry_run_takes_nothing() {
    let cluster = v4();
    let kind = find("", "v1", "services").unwrap();
    let mut new = service(json!({"type": "NodePort"}));
    kind.prepare_create(&mut new);
    let allocation = allocate(&mut new, None, &cluster.config, true, &|_| true, &mut |_| 0).unwrap();
    assert_eq!(allocation, Allocation::default());
    assert_eq!(new["spec"]["clusterIP"], "10.96.0.0");
}

#[test]
fn status_is_written_through_status_alone() {
    let cluster = v4();
    let kind = find("", "v1", "services").unwrap();
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
    let made = cluster.create(service(json!({"type": "LoadBalancer"}))).unwrap();
    let same = cluster.patch(&made, ingress.clone()).unwrap();
    assert_eq!(same["status"], json!({"loadBalancer": {}}));
    let mut new = made.clone();
    patch::merge(&mut new, &ingress).unwrap();
    patch::merge(&mut new, &json!({"spec": {"selector": {"c": "d"}}})).unwrap();
    kind.prepare_status_update(&mut new, &made);
    assert_eq!(new["spec"], made["spec"]);
    assert_eq!(new["status"]["loadBalancer"]["ingress"][0], json!({"ip": "192.0.2.1", "ipMode": "VIP"}));
    assert!(kind.check_status_update(&new, &made).is_empty());
    let gone = cluster.patch(&new, json!({"spec": {"type": "ClusterIP"}})).unwrap();
    assert_eq!(gone["status"], json!({"loadBalancer": {}}));
}

#[test]
fn each_rule_of_a_status_has_its_path_and_text() {
    let kind = find("", "v1", "services").unwrap();
    let balanced = v4().create(service(json!({"type": "LoadBalancer"}))).unwrap();
    let rows = [
        (
            json!({"hostname": "10.0.0.1"}),
            "status.loadBalancer.ingress[0].hostname: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
        ),
        (
            json!({"hostname": "a.b", "ipMode": "VIP"}),
            "status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is not set",
        ),
        (
            json!({"ip": "10.0.0.1"}),
            "status.loadBalancer.ingress[0].ipMode: Required value: must be specified when `ip` is set",
        ),
        (
            json!({"ip": "x", "ipMode": "VIP"}),
            "status.loadBalancer.ingress[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
    ];
    for (ingress, text) in rows {
        let mut new = balanced.clone();
        new["status"] = json!({"loadBalancer": {"ingress": [ingress]}});
        assert_eq!(texts(&kind.check_status_update(&new, &balanced)), text);
    }
    let plain = v4().create(service(json!({}))).unwrap();
    let mut new = plain.clone();
    new["status"] = json!({"loadBalancer": {"ingress": [{"hostname": "a.b"}]}});
    assert_eq!(
        texts(&kind.check_status_update(&new, &plain)),
        "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"
    );
}

#[test]
fn what_has_no_effect_is_warned_about() {
    let kind = find("", "v1", "services").unwrap();
    let mut new = service(
        json!({"clusterIP": "None", "loadBalancerIP": "1.2.3.4", "trafficDistribution": "PreferClose"}),
    );
    kind.prepare_create(&mut new);
    assert_eq!(
        kind.warnings(&new, None),
        [
            "spec.loadBalancerIP is ignored for headless services",
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\""
        ]
    );
}

#[test]
fn unknown_fields_and_wrong_types_are_named_by_path() {
    let kind = find("", "v1", "services").unwrap();
    let object = service(json!({"foo": 1, "ports": [{"port": 80, "bar": 2}]}));
    assert_eq!(kind.read(&mut object.clone()).unwrap(), ["spec.ports[0].bar", "spec.foo"]);
    let wrong = service(json!({"ports": [{"port": "eighty"}]}));
    let text = kind.read(&mut wrong.clone()).unwrap_err();
    assert!(text.contains("ServicePort.spec.ports.port of type int32"), "{text}");
}

mod histories {
    use proptest::prelude::*;

    use super::*;

    fn change() -> impl Strategy<Value = Value> {
        let kind = prop_oneof![
            Just(json!({})),
            Just(json!({"type": "ClusterIP"})),
            Just(json!({"type": "NodePort"})),
            Just(json!({"type": "LoadBalancer"})),
            Just(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"})),
            Just(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"})),
            Just(json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false})),
            Just(json!({"type": "ExternalName", "externalName": "a.b"})),
        ];
        let family = prop_oneof![
            Just(json!({})),
            Just(json!({"ipFamilyPolicy": "SingleStack"})),
            Just(json!({"ipFamilyPolicy": "PreferDualStack"})),
            Just(json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]})),
            Just(json!({"clusterIP": "None"})),
            Just(json!({"clusterIP": "10.96.0.2"})),
        ];
        let port = |number: u64, protocol: &str| json!({"name": format!("{protocol}{number}").to_lowercase(), "port": number, "protocol": protocol});
        let ports = prop_oneof![
            Just(json!({})),
            Just(json!({"ports": [port(1, "TCP")]})),
            Just(json!({"ports": [port(1, "TCP"), port(1, "UDP")]})),
            (30000..30004u64).prop_map(|n| json!({"ports": [{"name": "x", "port": 2, "nodePort": n}]})),
        ];
        (kind, family, ports).prop_map(|(a, b, c)| {
            let mut all = a;
            patch::merge(&mut all, &b).unwrap();
            patch::merge(&mut all, &c).unwrap();
            json!({"spec": all})
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What is held is what the stored Services say, no more and no less, after any history of creations, patches and
        /// deletions, granted or refused.
        #[test]
        fn what_is_held_is_what_services_say(steps in proptest::collection::vec((0..3usize, 0..4u8, change()), 1..24)) {
            let cluster = dual();
            let mut stored: Vec<Option<Value>> = vec![None, None, None];
            for (which, what, change) in steps {
                let name = format!("s{which}");
                match (&stored[which], what) {
                    (Some(old), 0) => {
                        cluster.keep(&Allocation { take: vec![], release: release(old) });
                        stored[which] = None;
                    }
                    (Some(old), _) => {
                        if let Ok(new) = cluster.patch(old, change) {
                            stored[which] = Some(new);
                        }
                    }
                    (None, _) => {
                        let mut new = service(change["spec"].clone());
                        new["metadata"]["name"] = json!(name);
                        stored[which] = cluster.create(new).ok();
                    }
                }
                let said: HashSet<String> = stored.iter().flatten().flat_map(release).map(|c| c.key()).collect();
                prop_assert_eq!(&said, &*cluster.held.borrow());
            }
        }
    }
}
