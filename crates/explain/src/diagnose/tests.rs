//! Each kind of cause from the least evidence that shows it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_dataplane::Reading;
use portolan_plan::model::{FromOutside, ServiceName};
use portolan_plan::view::{ExternalIps, NodePortAddresses};
use portolan_sys::conntrack::{Flow, Tuple};
use portolan_sys::nft::{SurveyedChain, SurveyedTable};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::Evidence;
use crate::cause::Kind::*;
use crate::imagine::from_manifests;
use crate::kernel::{NodeKernel, RouteSeen};
use crate::question::{FlowAsked, Place, Question, Target};
use crate::situation::Told;

fn of<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("an object")
}

fn ranges() -> Vec<IpNet> {
    vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()]
}

fn service(over: Value) -> Value {
    let mut spec = json!({"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080}]});
    for (k, v) in over.as_object().into_iter().flatten() {
        spec[k] = v.clone();
    }
    json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": spec})
}

fn pod(name: &str, node: &str, ip: &str) -> Value {
    json!({"kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]}})
}

/// A Service with a pod on each of two nodes, seen from node-1's kernel, which has all of it.
fn healthy(over: Value) -> Evidence {
    let values = vec![service(over), pod("a", "node-1", "10.244.1.5"), pod("b", "node-2", "10.244.2.5")];
    let (objects, _) = from_manifests(values, &ranges(), "default").expect("manifests");
    let told = Told {
        service_cidrs: ranges(),
        cluster_ip_from_outside: FromOutside::Refuse,
        node_ports: NodePortAddresses::primary(),
        external_ips: ExternalIps::Any,
    };
    let about = About::Service(ServiceName::new("shop", "web"));
    let question = Question { about, node: None };
    let mut evidence = Evidence {
        question,
        objects,
        told,
        kernel: None,
        probes: None,
        assumed: vec![],
        now: Some("2026-01-01T00:10:00Z".parse().unwrap()),
    };
    let reading = Reading::of(&Situation::of(&evidence).expect("a situation").pictures["node-1"].plan);
    evidence.kernel = Some(NodeKernel {
        node: "node-1".into(),
        reading: Some(reading),
        settings: BTreeMap::from([("net.ipv4.ip_forward", "1".to_owned())]),
        conntrack: Some((10, 1000)),
        ..NodeKernel::default()
    });
    evidence
}

fn flow(evidence: &mut Evidence, from: Place, to: &str, port: u16) {
    let (to, _) = Target::parse(to, "shop").expect("a target");
    let asked =
        FlowAsked { from, to, port: Some(port), protocol: portolan_plan::model::Protocol::Tcp, family: None };
    evidence.question.about = About::Flow(asked);
}

fn kinds(evidence: &Evidence) -> Vec<Kind> {
    diagnose(&Situation::of(evidence).expect("a situation")).into_iter().map(|c| c.kind).collect()
}

/// The healthy Service with other pods, all of whom have this status and these fields.
fn with_pods(change: impl Fn(&mut Value)) -> Evidence {
    let mut evidence = healthy(json!({}));
    evidence.kernel = None;
    evidence.objects.slices.clear();
    for pod in &mut evidence.objects.pods {
        let mut value = serde_json::to_value(&**pod).expect("JSON");
        change(&mut value);
        *pod = Arc::new(of(value));
    }
    evidence
}

fn unready(state: Value) -> Evidence {
    with_pods(|pod| {
        pod["status"]["conditions"] = json!([{"type": "Ready", "status": "False"}]);
        pod["status"]["containerStatuses"] = json!([{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 3, "state": state}]);
    })
}

#[track_caller]
fn first(evidence: &Evidence, kind: Kind, says: &str) {
    let all = diagnose(&Situation::of(evidence).expect("a situation"));
    let cause = all.first().unwrap_or_else(|| panic!("no cause; expected {kind}"));
    assert_eq!(cause.kind, kind, "{all:#?}");
    assert!(cause.text.contains(says), "{says:?} in {cause:?}");
    assert!(!cause.object.is_empty() && !cause.field.is_empty(), "{cause:?}");
    assert!(kind.is_note() || !cause.remedy.is_empty(), "{cause:?}");
}

#[test]
fn a_healthy_service_has_no_cause_whoever_asks() {
    assert_eq!(kinds(&healthy(json!({}))), []);
    for (from, to, port) in [
        (Place::Node("node-1".into()), "service/web", 80),
        (Place::Pod { namespace: "shop".into(), name: "a".into() }, "service/web", 80),
        (Place::Outside, "service/web", 80),
        (Place::Outside, "node:node-1", 30080),
        (Place::Node("node-1".into()), "10.244.2.5", 8080),
    ] {
        let mut evidence = healthy(json!({}));
        flow(&mut evidence, from.clone(), to, port);
        assert_eq!(kinds(&evidence), [], "{from} to {to}");
    }
}

#[test]
fn each_way_in_which_a_service_is_not_what_the_client_takes_it_for_is_named() {
    let mut evidence = healthy(json!({}));
    evidence.question.about = About::Service(ServiceName::new("shop", "wbe"));
    first(&evidence, NoSuchService, "no Service of this name");
    evidence.question.about = About::Service(ServiceName::new("shop", "webs"));
    first(&evidence, NoSuchService, "there is web");
    evidence.question.about = About::Service(ServiceName::new("default", "web"));
    first(&evidence, NoSuchService, "namespace shop has one");

    let mut evidence = healthy(json!({}));
    evidence.objects.services[0].metadata.labels = Some([(PROXY_NAME.to_owned(), "other".to_owned())].into());
    first(&evidence, OtherProxy, "other");
    first(
        &healthy_less(json!({"type": "ExternalName", "externalName": "example.org"})),
        ExternalName,
        "example.org",
    );
    let mut evidence = healthy_less(json!({"clusterIP": "None", "clusterIPs": ["None"]}));
    assert_eq!(kinds(&evidence), [Kind::Finding], "healthy, and without an address");
    flow(&mut evidence, Place::Node("node-1".into()), "service/web", 80);
    first(&evidence, Headless, "no address");
    let nobody = json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": {"app": "wbe"}});
    first(&healthy_less(nobody), SelectorMatchesNothing, "2 pods have app=web");

    let node = || Place::Node("node-1".into());
    for (from, to, port, kind, says) in [
        (node(), "10.96.0.7", 81, UndefinedPort, "no port 81"),
        (node(), "10.96.0.7", 30080, NodePortAtService, "here the port is 80"),
        (node(), "10.96.0.8", 80, NobodysAddress, "no Service has it"),
        (Place::Outside, "node:node-1", 80, ServicePortAtNode, "node port 30080"),
        (Place::Outside, "node:node-1", 31000, NobodysAddress, "node port"),
        (Place::Outside, "10.96.0.7", 80, ClusterIpFromOutside, "inside of the cluster"),
    ] {
        let mut evidence = healthy(json!({}));
        flow(&mut evidence, from, to, port);
        first(&evidence, kind, says);
    }
    let mut evidence =
        healthy(json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}]}));
    flow(&mut evidence, node(), "service/web", 53);
    first(&evidence, ProtocolMismatch, "is UDP");
    let mut evidence = healthy(json!({}));
    flow(&mut evidence, node(), "service/web", 80);
    if let About::Flow(asked) = &mut evidence.question.about {
        asked.family = Some(Family::V6);
    }
    first(&evidence, WrongFamily, "asks for IPv6");
    let mut evidence = healthy(json!({}));
    evidence.told.node_ports =
        NodePortAddresses { ranges: vec!["192.0.2.99/32".parse().unwrap()], ..NodePortAddresses::default() };
    flow(&mut evidence, Place::Outside, "node:node-1", 30080);
    first(&evidence, NotANodePortAddress, "not on 192.0.2.11");
}

/// Without a kernel: what follows from the objects alone.
fn healthy_less(over: Value) -> Evidence {
    Evidence { kernel: None, ..healthy(over) }
}

#[test]
fn each_reason_for_which_nobody_is_there_is_named() {
    first(&healthy_less(json!({"selector": null})), NoSelector, "no selector");
    first(&healthy_less(json!({"selector": {"app": "wbe"}})), SelectorMatchesNothing, "2 pods have app=web");
    first(&healthy_less(json!({"selector": {"ap": "web"}})), SelectorMatchesNothing, "2 pods have app=web");
    first(
        &healthy_less(json!({"selector": {"app": "web", "tier": "x"}})),
        SelectorMatchesNothing,
        "no pod of namespace shop",
    );
    let mut evidence = with_pods(|_| {});
    evidence.objects.pods.clear();
    first(&evidence, SelectorMatchesNothing, "no pod in namespace shop at all");
    evidence.objects.deployments = vec![of(json!({"metadata": {"name": "web", "namespace": "shop"},
        "spec": {"replicas": 0, "selector": {}, "template": {"metadata": {"labels": {"app": "web"}}}}}))];
    first(&evidence, ScaledToZero, "0 replicas");
    evidence.objects.deployments[0].spec.as_mut().unwrap().replicas = Some(2);
    first(&evidence, Starting, "should have 2 replicas");
    evidence.objects.deployments.clear();
    let scaled = |kind: &str| {
        json!({"kind": kind, "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"replicas": 0, "serviceName": "", "selector": {}, "template": {"metadata": {"labels": {"app": "web"}}}}})
    };
    evidence.objects.replicasets = vec![of(scaled("ReplicaSet"))];
    first(&evidence, ScaledToZero, "the ReplicaSet");
    evidence.objects.replicasets[0].metadata.owner_references =
        Some(vec![of(json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u"}))]);
    first(&evidence, SelectorMatchesNothing, "at all");
    evidence.objects.statefulsets = vec![of(scaled("StatefulSet"))];
    first(&evidence, ScaledToZero, "the StatefulSet");

    first(
        &with_pods(|pod| {
            pod["spec"]["nodeName"] = Value::Null;
            pod["status"] = json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes fit"}]});
        }),
        NotScheduled,
        "0/2 nodes fit",
    );
    let waiting = |reason: &str| unready(json!({"waiting": {"reason": reason, "message": "because"}}));
    first(&waiting("ErrImagePull"), ImageUnavailable, "because");
    first(&waiting("CreateContainerConfigError"), ContainerRefused, "because");
    first(&waiting("CrashLoopBackOff"), CrashLoop, "because");
    first(&waiting("ContainerCreating"), Starting, "ContainerCreating");
    first(&unready(json!({"terminated": {"exitCode": 7}})), CrashLoop, "3 times, with status 7");
    let mut evidence = unready(json!({"running": {}}));
    first(&evidence, ProbeFails, "hasn't succeeded");
    evidence.objects.events =
        vec![of(json!({"metadata": {}, "reason": "Unhealthy", "message": "Readiness probe failed: 404",
        "involvedObject": {"kind": "Pod", "namespace": "shop", "name": "a"}}))];
    first(&evidence, ProbeFails, "404");
    let not_ready = |reason: &str, change: fn(&mut Value)| {
        let reason = reason.to_owned();
        with_pods(move |pod| {
            pod["status"]["conditions"] =
                json!([{"type": "Ready", "status": "False", "reason": reason, "message": "because"}]);
            change(pod);
        })
    };
    first(&not_ready("ReadinessGatesNotReady", |_| {}), ReadinessGate, "because");
    first(&not_ready("Whatever", |_| {}), NotReady, "because");
    let no_address = |pod: &mut Value| {
        pod["status"]["podIP"] = Value::Null;
        pod["status"]["podIPs"] = Value::Null;
        pod["status"]["containerStatuses"] = json!([{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}}]);
    };
    first(&not_ready("Whatever", no_address), NoPodAddress, "has no address");
    first(
        &not_ready("Whatever", |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")),
        Terminating,
        "deleted",
    );
    first(&not_ready("Whatever", |pod| pod["status"]["phase"] = json!("Failed")), Ended, "Failed");
    let mut evidence = not_ready("Whatever", |_| {});
    for node in &mut evidence.objects.nodes {
        Arc::make_mut(node).status.as_mut().unwrap().conditions = None;
    }
    first(&evidence, NodeOfPodsDown, "not ready");
    let mut evidence = not_ready("Whatever", |_| {});
    evidence.objects.nodes.retain(|n| n.name_any() != "node-1");
    evidence.objects.pods.retain(|p| p.name_any() == "a");
    first(&evidence, NodeOfPodsDown, "not there any more");
}

#[test]
fn each_fault_between_ready_pods_and_their_endpoints_is_named() {
    let named = |target: &str| json!({"ports": [{"name": "http", "port": 80, "targetPort": target, "nodePort": 30080}]});
    first(&healthy_less(named("htpp")), TargetPortMissing, "http (8080/TCP)");
    first(&healthy_less(named("htpp")), TargetPortMissing, "\"htpp\"");
    let datagram = json!({"ports": [{"name": "http", "port": 80, "protocol": "UDP", "targetPort": "http"}]});
    let cause = diagnose(&Situation::of(&healthy_less(datagram)).expect("a situation")).remove(0);
    assert_eq!(cause.kind, TargetPortMissing);
    assert!(cause.remedy.starts_with("set protocol: TCP"), "{cause:?}");
    let mut evidence = healthy_less(json!({}));
    evidence.objects.slices.clear();
    first(&evidence, SlicesMissing, "no IPv4 EndpointSlice");
    let mut evidence = healthy_less(json!({}));
    for slice in &mut evidence.objects.slices {
        slice.endpoints = Some(vec![]);
    }
    first(&evidence, SlicesStale, "out of date");
    let mut evidence = healthy_less(json!({}));
    let (slice, gone) = (&mut evidence.objects.slices[0], "10.244.1.77".to_owned());
    slice.endpoints.as_mut().unwrap()[0].addresses = vec![gone];
    first(&evidence, SlicesStale, "10.244.1.77 is an endpoint");
    let mut evidence = healthy_less(json!({}));
    evidence.objects.slices[0].ports.as_mut().unwrap()[0].name = Some("https".into());
    first(&evidence, SlicePortsDiffer, "\"https\"");
    let mut evidence = healthy_less(json!({"selector": null}));
    evidence.objects.slices = vec![of(json!({"addressType": "IPv4",
        "metadata": {"name": "s", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "port": 80}], "endpoints": [{"addresses": ["10.9.0.1"], "conditions": {"ready": false}}]}))];
    first(&evidence, SlicesNotReady, "no endpoint is ready");
    let dual = json!({"clusterIPs": ["10.96.0.7", "fd00:10:96::7"], "ipFamilies": ["IPv4", "IPv6"]});
    first(&healthy_less(dual), PodsLackFamily, "no ready pod has an IPv6 address");
}

#[test]
fn policies_and_ranges_that_leave_a_client_out_are_named() {
    for (field, kind, from, to, port) in [
        ("internalTrafficPolicy", InternalPolicyLocal, Place::Node("node-2".into()), "service/web", 80),
        ("externalTrafficPolicy", ExternalPolicyLocal, Place::Outside, "node:node-2", 30080),
    ] {
        let mut evidence = healthy(json!({ field: "Local" }));
        evidence.objects.slices[0]
            .endpoints
            .as_mut()
            .unwrap()
            .retain(|e| e.node_name.as_deref() == Some("node-1"));
        evidence.objects.pods.retain(|p| p.name_any() == "a");
        let whole = kinds(&evidence);
        assert!(whole.contains(&LocalOnSomeNodes), "{whole:?}");
        flow(&mut evidence, from, to, port);
        first(&evidence, kind, "node-1 has");
    }
    let balanced = |ranges: &str| {
        let mut evidence =
            healthy_less(json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [ranges]}));
        evidence.objects.services[0].status =
            Some(of(json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}})));
        flow(&mut evidence, Place::Address("198.51.100.7".parse().unwrap()), "service/web", 80);
        evidence
    };
    assert_eq!(kinds(&balanced("198.51.100.0/24")), []);
    first(&balanced("192.0.2.0/24"), SourceRanges, "in none of 192.0.2.0/24");
    first(&balanced("2001:db8::/32"), SourceRanges, "no IPv4 range");
}

#[test]
fn each_reason_for_which_an_address_is_missing_is_named() {
    let pending = |over: Value, said: &str| {
        let mut all = json!({"type": "LoadBalancer"});
        for (k, v) in over.as_object().into_iter().flatten() {
            all[k] = v.clone();
        }
        let mut evidence = healthy_less(all);
        evidence.objects.services[0].status = None;
        evidence.objects.events = vec![of(json!({"metadata": {}, "reason": "SyncLoadBalancerFailed",
            "message": format!("Error syncing load balancer: {said}"),
            "involvedObject": {"kind": "Service", "namespace": "shop", "name": "web"}}))];
        evidence
    };
    first(
        &pending(json!({"loadBalancerClass": "example.org/cloud"}), ""),
        LoadBalancerClass,
        "example.org/cloud",
    );
    for (refusal, kind) in [
        (portolan_lb::pool::Refusal::Exhausted { family: "IPv4", count: 3 }, PoolExhausted),
        (portolan_lb::pool::Refusal::NoRange("IPv4"), PoolLacksFamily),
        (portolan_lb::pool::Refusal::Outside("10.0.0.1".parse().unwrap()), AddressOutsidePool),
        (
            portolan_lb::pool::Refusal::Taken { address: "10.0.0.1".parse().unwrap(), owner: "a/b".into() },
            AddressTaken,
        ),
    ] {
        first(&pending(json!({}), &refusal.to_string()), kind, "pool".get(..0).unwrap_or_default());
    }
    first(&pending(json!({}), ""), LoadBalancerPending, "no controller");
    let mut evidence = healthy_less(json!({"type": "LoadBalancer"}));
    evidence.objects.services[0].status =
        Some(of(json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9", "ipMode": "Proxy"}]}})));
    first(&evidence, IpModeProxy, "203.0.113.9");
    flow(&mut evidence, Place::Outside, "service/web", 80);
    first(&evidence, IpModeProxy, "203.0.113.9");
    first(&healthy_less(json!({"externalIPs": ["10.96.0.99"]})), AddressRefused, "range of cluster IPs");
    let mut evidence = healthy_less(json!({"externalIPs": ["203.0.113.50"]}));
    let mut other = evidence.objects.services[0].clone();
    other.metadata.name = Some("older".into());
    let spec = other.spec.as_mut().unwrap();
    (spec.cluster_ip, spec.cluster_ips) = (Some("10.96.0.8".into()), Some(vec!["10.96.0.8".into()]));
    spec.ports.as_mut().unwrap()[0].node_port = None;
    evidence.objects.services.push(other);
    first(&evidence, FrontendClash, "belongs to service shop/older");
}

#[test]
fn a_flow_that_another_service_gets_does_not_answer() {
    let mut evidence = healthy_less(json!({"externalIPs": ["203.0.113.50"]}));
    let mut other = evidence.objects.services[0].clone();
    other.metadata.name = Some("older".into());
    let spec = other.spec.as_mut().unwrap();
    (spec.cluster_ip, spec.cluster_ips) = (Some("10.96.0.8".into()), Some(vec!["10.96.0.8".into()]));
    spec.ports.as_mut().unwrap()[0].node_port = None;
    evidence.objects.services.push(other);
    let mut slice = evidence.objects.slices[0].clone();
    slice.metadata.name = Some("older-0".into());
    slice.metadata.labels = Some([(portolan_control::SERVICE_NAME.to_owned(), "older".to_owned())].into());
    evidence.objects.slices.push(slice);
    flow(&mut evidence, Place::Outside, "service/web", 80);
    first(&evidence, FrontendClash, "belongs to service shop/older");
    flow(&mut evidence, Place::Outside, "203.0.113.50", 80);
    assert_eq!(kinds(&evidence), [], "who asks for the address means whoever has it");
    flow(&mut evidence, Place::Outside, "203.0.113.50", 82);
    first(&evidence, UndefinedPort, "82");
}

#[test]
fn a_service_with_nothing_to_connect_to_does_not_answer() {
    first(&healthy_less(json!({"ports": []})), UndefinedPort, "no ports");
    first(
        &healthy_less(json!({"ports": [{"name": "http", "port": 99999, "targetPort": "http"}]})),
        UndefinedPort,
        "99999",
    );
    first(&healthy_less(json!({"clusterIP": "banana", "clusterIPs": ["banana"]})), AddressRefused, "banana");
}

#[test]
fn a_question_is_not_bent_to_fit() {
    let mut evidence = healthy_less(json!({}));
    flow(&mut evidence, Place::Pod { namespace: "shop".into(), name: "a".into() }, "service/web", 80);
    evidence.question.node = Some("node-2".into());
    let refused = Situation::of(&evidence).expect_err("the pod is on another node").0;
    assert!(refused.contains("on node node-1"), "{refused}");
    evidence.question.node = None;
    if let About::Flow(asked) = &mut evidence.question.about {
        (asked.port, asked.protocol) = (None, portolan_plan::model::Protocol::Udp);
    }
    first(&evidence, ProtocolMismatch, "is TCP");
}

#[test]
fn a_selector_is_corrected_as_a_whole_and_never_to_a_strangers_pods() {
    let remedy = |over: Value| {
        let evidence = healthy_less(over);
        diagnose(&Situation::of(&evidence).expect("a situation")).remove(0).remedy
    };
    let stranger = remedy(json!({"selector": {"app": "postgres"}}));
    assert!(!stranger.contains("set the selector"), "{stranger}");
    assert!(stranger.contains("doesn't reach into another"), "{stranger}");
    assert!(remedy(json!({"selector": {"app": "wbe"}})).contains("set the selector to app=web,"));
    let mut evidence = healthy_less(json!({"selector": {"app": "web", "tier": "frnot"}}));
    for pod in &mut evidence.objects.pods {
        Arc::make_mut(pod).metadata.labels.as_mut().unwrap().insert("tier".into(), "front".into());
    }
    let cause = diagnose(&Situation::of(&evidence).expect("a situation")).remove(0);
    assert!(cause.remedy.contains("set the selector to app=web,tier=front,"), "{cause:?}");
}

#[test]
fn what_outsiders_get_at_a_cluster_ip_is_told_as_nodes_were_told() {
    let mut evidence = healthy_less(json!({"type": "ClusterIP"}));
    let row = |evidence: &Evidence| crate::report::examine(evidence).expect("a report").frontends.remove(0);
    let closed = row(&evidence);
    assert_eq!((&*closed.action, &*closed.inside), ("dropped: ClusterIP", "2 backends"));
    evidence.told.cluster_ip_from_outside = FromOutside::Masquerade;
    let open = row(&evidence);
    assert_eq!((&*open.action, &*open.inside), ("2 backends", ""));
}

#[test]
fn what_the_kernel_does_otherwise_than_the_plan_is_named() {
    let kernel = |change: &dyn Fn(&mut NodeKernel)| {
        let mut evidence = healthy(json!({}));
        change(evidence.kernel.as_mut().unwrap());
        evidence
    };
    first(&kernel(&|k| k.reading = None), TableMissing, "not in the kernel");
    first(&kernel(&|k| (k.reading, k.emptied) = (None, true)), TableMissing, "in the kernel, and empty");
    let lacking = kernel(&|k| {
        k.reading.as_mut().unwrap().frontends.pop_first();
    });
    first(&lacking, TableDrift, "the kernel has no");
    let mut old = healthy(json!({}));
    old.objects.slices[0].endpoints.as_mut().unwrap().pop();
    old.objects.pods.retain(|p| p.name_any() == "a");
    first(&old, TableDrift, "still has 10.244.2.5:8080");
    first(&kernel(&|k| drop(k.settings.insert("net.ipv4.ip_forward", "0".into()))), ForwardingOff, "IPv4");
    let address: IpAddr = "10.244.2.5".parse().unwrap();
    let refused = kernel(&|k| drop(k.routes.insert(address, RouteSeen::Refused("no route".into()))));
    first(&refused, RouteMissing, "no way to the backend 10.244.2.5");
    let default = kernel(&|k| drop(k.routes.insert(address, RouteSeen::Default)));
    assert_eq!(kinds(&default), [], "elsewhere the network may know the way");
    let wall = kernel(&|k| {
        let chain = SurveyedChain { hook: Some((2, 0)), drops: true, rules: vec![] };
        let chains = [("forward".to_owned(), chain)].into();
        k.tables = vec![SurveyedTable { family: 1, name: "fw".into(), chains, ..SurveyedTable::default() }];
    });
    first(&wall, FirewallDrops, "policy is drop");
    let other = kernel(&|k| {
        k.reading = None;
        k.tables = vec![SurveyedTable { family: 2, name: "kube-proxy".into(), ..SurveyedTable::default() }];
    });
    assert_eq!(kinds(&other), [Kind::Finding], "kube-proxy forwards on this node");
    let legacy = kernel(&|k| k.legacy = ["filter".to_owned()].into());
    assert_eq!(kinds(&legacy), [FirewallMayDrop]);
    first(&kernel(&|k| k.conntrack = Some((999, 1000))), ConntrackFull, "999 of at most 1000");

    let mut stale = healthy(
        json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53, "nodePort": 30053}]}),
    );
    let tuple = |source: &str, source_port, destination: &str, destination_port| Tuple {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        source_port,
        destination_port,
    };
    let udp = |backend: &str| Flow {
        protocol: 17,
        original: tuple("10.244.1.9", 4444, "10.96.0.7", 53),
        reply: tuple(backend, 53, "10.244.1.9", 4444),
        id: 1,
        zone: 0,
        status: 1 << 5,
    };
    stale.kernel.as_mut().unwrap().udp = vec![udp("10.244.1.5")];
    assert_eq!(kinds(&stale).first().copied().filter(|k| !k.is_note()), None);
    stale.kernel.as_mut().unwrap().udp.push(udp("10.244.1.99"));
    first(&stale, StaleFlow, "10.244.1.99:53");
}

#[test]
fn nodes_that_do_not_follow_are_named() {
    let mut evidence = healthy_less(json!({}));
    evidence.objects.nodes.clear();
    first(&evidence, NodeNotReady, "there is no node");
    let mut evidence = healthy_less(json!({}));
    flow(&mut evidence, Place::Node("node-1".into()), "service/web", 80);
    evidence.objects.leases = vec![of(json!({"metadata": {"name": "node-1"},
        "spec": {"leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z"}}))];
    first(&evidence, NodeSilent, "600 s ago");
    Arc::make_mut(&mut evidence.objects.nodes[0]).status.as_mut().unwrap().conditions = None;
    first(&evidence, NodeNotReady, "node-1");
    let mut evidence = healthy_less(json!({}));
    flow(&mut evidence, Place::Node("node-1".into()), "service/web", 80);
    let spec = Arc::make_mut(&mut evidence.objects.nodes[0]).spec.as_mut().unwrap();
    (spec.pod_cidr, spec.pod_cidrs) = (None, None);
    first(&evidence, NoPodCidr, "no range");
}

#[test]
fn backends_that_do_not_answer_are_named_and_what_is_only_worth_knowing_is_a_note() {
    let mut evidence =
        healthy(json!({"ports": [{"name": "http", "port": 80, "targetPort": 9999, "nodePort": 30080}]}));
    assert_eq!(kinds(&evidence), [TargetPortUndeclared]);
    let probe = |to: &str, through, outcome| Probe { to: to.parse().unwrap(), through, outcome };
    let backend = |outcome| probe("10.244.1.5:9999", false, outcome);
    evidence.probes = Some(vec![backend(Came::Refused), probe("10.96.0.7:80", true, Came::Refused)]);
    first(&evidence, BackendRefuses, "1 of 1 backends refuse connections: nobody listens on 10.244.1.5:9999");
    evidence.probes = Some(vec![backend(Came::Silent)]);
    first(&evidence, BackendSilent, "10.244.1.5:9999");
    evidence.probes = Some(vec![backend(Came::Accepted), probe("10.96.0.7:80", true, Came::Accepted)]);
    assert_eq!(kinds(&evidence), [TargetPortUndeclared]);
    evidence.probes = Some(vec![backend(Came::Accepted), probe("10.96.0.7:80", true, Came::Silent)]);
    first(&evidence, Unexplained, "10.96.0.7:80 isn't answered");

    let mut evidence = healthy(json!({"sessionAffinity": "ClientIP"}));
    evidence.objects.policies = vec![of(json!({"metadata": {"name": "p", "namespace": "shop"}}))];
    flow(&mut evidence, Place::Node("node-1".into()), "service/web", 80);
    assert_eq!(kinds(&evidence), [Affinity, NetworkPolicies]);
    let mut evidence = healthy_less(json!({}));
    for endpoint in evidence.objects.slices[0].endpoints.iter_mut().flatten() {
        let node = endpoint.node_name.clone().unwrap_or_default();
        endpoint.hints = Some(of(json!({"forNodes": [{"name": node}]})));
    }
    assert_eq!(kinds(&evidence), [HintsLeaveOut, HintsLeaveOut]);
}
