//! What slices a Service should have: cases from Kubernetes' rules, and properties.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn service(extra: Value) -> Service {
    let mut value = json!({
        "metadata": { "name": "web", "namespace": "n", "uid": "service", "labels": { "team": "a" },
            "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"], "selector": { "app": "web" },
            "ports": [{ "name": "web", "port": 80, "targetPort": "http", "protocol": "TCP" }] },
    });
    pods::overlay(&mut value, extra);
    serde_json::from_value(value).expect("a Service")
}

fn pod(number: u32, extra: Value) -> Arc<Pod> {
    let mut value = json!({
        "metadata": { "name": format!("p{number}"), "namespace": "n", "uid": format!("u{number}"), "labels": { "app": "web" } },
        "spec": { "nodeName": "node-1", "containers": [
            { "name": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
        "status": { "phase": "Running", "podIP": format!("10.1.0.{number}"),
            "podIPs": [{ "ip": format!("10.1.0.{number}") }, { "ip": format!("fd00::{number:x}") }],
            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z" }] },
    });
    pods::overlay(&mut value, extra);
    Arc::new(serde_json::from_value(value).expect("a pod"))
}

fn node(name: &str) -> Option<Arc<Node>> {
    (name != "unknown").then(|| {
        Arc::new(
            serde_json::from_value(json!({ "metadata": { "name": name, "labels": { ZONE: "z1" } } }))
                .expect("a node"),
        )
    })
}

/// What the API holds after the changes.
fn apply(existing: &[Arc<EndpointSlice>], changes: &Changes) -> Vec<Arc<EndpointSlice>> {
    let mut slices: Vec<Arc<EndpointSlice>> = existing
        .iter()
        .filter(|slice| !changes.delete.iter().any(|gone| gone.name_any() == slice.name_any()))
        .cloned()
        .collect();
    for update in &changes.update {
        let slot = slices.iter_mut().find(|slice| slice.name_any() == update.name_any());
        *slot.expect("an update of what is there") = Arc::new(update.clone());
    }
    for create in &changes.create {
        let mut slice = create.clone();
        let number =
            (0..).find(|n| slices.iter().all(|s| s.name_any() != format!("web-{n}"))).expect("a number");
        slice.metadata.name = Some(format!("web-{number}"));
        slices.push(Arc::new(slice));
    }
    slices
}

fn first(service: &Service, pods: &[Arc<Pod>]) -> Vec<Arc<EndpointSlice>> {
    apply(&[], &desired_slices(service, pods, &node, &Shares::new(), &[], 100))
}

fn counts(changes: &Changes) -> (usize, usize, usize) {
    (changes.create.len(), changes.update.len(), changes.delete.len())
}

fn addresses(slices: &[Arc<EndpointSlice>]) -> Vec<String> {
    let mut all: Vec<String> = slices
        .iter()
        .flat_map(|slice| slice.endpoints.iter().flatten())
        .flat_map(|endpoint| endpoint.addresses.clone())
        .collect();
    all.sort();
    all
}

#[test]
fn an_endpoint_tells_all_that_its_pod_and_node_tell() {
    let pods = [pod(1, json!({ "spec": { "hostname": "h", "subdomain": "web" } }))];
    let slices = first(&service(json!({})), &pods);
    let slice = serde_json::to_value(slices[0].as_ref()).expect("json");
    assert_eq!(
        slice["endpoints"],
        json!([{
            "addresses": ["10.1.0.1"],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "hostname": "h",
            "nodeName": "node-1",
            "zone": "z1",
            "targetRef": { "kind": "Pod", "namespace": "n", "name": "p1", "uid": "u1" },
        }])
    );
    assert_eq!(slice["ports"], json!([{ "name": "web", "port": 8080, "protocol": "TCP" }]));
    assert_eq!(slice["metadata"]["labels"], json!({ "team": "a", SERVICE_NAME: "web", MANAGED_BY: MANAGER }));
    assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], "service");
}

#[test]
fn conditions_follow_readiness_and_deletion() {
    let unready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    let going = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:09Z" } });
    let publish = json!({ "spec": { "publishNotReadyAddresses": true } });
    for (extra, patch, expected) in [
        (json!({}), json!({}), Some((true, true, false))),
        (json!({}), unready.clone(), Some((false, false, false))),
        (json!({}), going.clone(), Some((false, true, true))),
        (publish.clone(), unready, Some((true, false, false))),
        (publish.clone(), going, Some((true, true, true))),
        (json!({}), json!({ "status": { "phase": "Succeeded" } }), None),
        (json!({}), json!({ "status": { "podIP": null, "podIPs": null } }), None),
        (json!({}), json!({ "spec": { "nodeName": "unknown" } }), None),
        (publish, json!({ "spec": { "nodeName": "unknown" } }), Some((true, true, false))),
    ] {
        let slices = first(&service(extra.clone()), &[pod(1, patch.clone())]);
        let got = slices[0].endpoints.as_deref().unwrap_or_default().first().map(|endpoint| {
            let conditions = endpoint.conditions.clone().expect("conditions");
            (
                conditions.ready == Some(true),
                conditions.serving == Some(true),
                conditions.terminating == Some(true),
            )
        });
        assert_eq!(got, expected, "{extra} {patch}");
    }
}

#[test]
fn each_family_and_each_set_of_ports_has_slices_of_its_own() {
    let dual = service(json!({ "spec": { "ipFamilies": ["IPv4", "IPv6"] } }));
    let other = json!({ "spec": { "containers": [
        { "name": "c", "ports": [{ "name": "http", "containerPort": 9090 }] }] } });
    let sidecar = json!({ "spec": { "containers": [{ "name": "c" }], "initContainers": [
        { "name": "s", "restartPolicy": "Always", "ports": [{ "name": "http", "containerPort": 7070 }] }] } });
    let none = json!({ "spec": { "containers": [{ "name": "c" }] } });
    let pods = [pod(1, json!({})), pod(2, other), pod(3, sidecar), pod(4, none), pod(5, json!({}))];
    let slices = first(&dual, &pods);
    let mut shapes: Vec<(String, Vec<i32>, usize)> = slices
        .iter()
        .map(|slice| {
            let ports = slice.ports.iter().flatten().filter_map(|port| port.port).collect();
            (slice.address_type.clone(), ports, slice.endpoints.as_deref().unwrap_or_default().len())
        })
        .collect();
    shapes.sort();
    let of = |family: &str| {
        [(vec![], 1), (vec![7070], 1), (vec![8080], 2), (vec![9090], 1)]
            .map(|(ports, n)| (family.to_owned(), ports, n))
    };
    assert_eq!(shapes, [of("IPv4"), of("IPv6")].concat());
}

#[test]
fn a_service_without_endpoints_has_one_empty_slice() {
    let web = service(json!({}));
    let empty = first(&web, &[]);
    assert_eq!((empty.len(), addresses(&empty).len()), (1, 0));
    assert_eq!(
        counts(&desired_slices(&web, &[], &node, &Shares::new(), &empty, 100)),
        (0, 0, 0),
        "and keeps it"
    );
    let filled = desired_slices(&web, &[pod(1, json!({}))], &node, &Shares::new(), &empty, 100);
    assert_eq!(counts(&filled), (0, 1, 0), "the empty slice is filled");
    let filled = apply(&empty, &filled);
    assert_eq!(
        counts(&desired_slices(&web, &[], &node, &Shares::new(), &filled, 100)),
        (0, 1, 0),
        "and emptied again"
    );
}

#[test]
fn a_change_of_one_endpoint_writes_one_slice() {
    let web = service(json!({}));
    let pods: Vec<_> = (1..=25).map(|n| pod(n, json!({}))).collect();
    let slices = apply(&[], &desired_slices(&web, &pods, &node, &Shares::new(), &[], 10));
    let sizes = |slices: &[Arc<EndpointSlice>]| {
        let mut sizes: Vec<_> =
            slices.iter().map(|s| s.endpoints.as_deref().unwrap_or_default().len()).collect();
        sizes.sort();
        sizes
    };
    assert_eq!(sizes(&slices), [5, 10, 10]);
    assert_eq!(counts(&desired_slices(&web, &pods, &node, &Shares::new(), &slices, 10)), (0, 0, 0));
    let mut changed = pods.clone();
    changed[3] = pod(4, json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } }));
    assert_eq!(counts(&desired_slices(&web, &changed, &node, &Shares::new(), &slices, 10)), (0, 1, 0));
    let mut more = pods.clone();
    more.push(pod(26, json!({})));
    assert_eq!(counts(&desired_slices(&web, &more, &node, &Shares::new(), &slices, 10)), (0, 1, 0));
    let replaced: Vec<_> = pods[1..].iter().cloned().chain([pod(27, json!({}))]).collect();
    let changes = desired_slices(&web, &replaced, &node, &Shares::new(), &slices, 10);
    assert_eq!(counts(&changes), (0, 1, 0), "the slice that lost one takes the new one");
    let fewer = desired_slices(&web, &pods[..20], &node, &Shares::new(), &slices, 10);
    assert_eq!(counts(&fewer), (0, 0, 1));
}

#[test]
fn slices_of_another_service_or_family_go() {
    let web = service(json!({}));
    let mut slices = first(&web, &[pod(1, json!({}))]);
    let reborn = service(json!({ "metadata": { "uid": "reborn" } }));
    assert_eq!(
        counts(&desired_slices(&reborn, &[pod(1, json!({}))], &node, &Shares::new(), &slices, 100)),
        (1, 0, 1)
    );
    let six = service(json!({ "spec": { "ipFamilies": ["IPv6"] } }));
    assert_eq!(
        counts(&desired_slices(&six, &[pod(1, json!({}))], &node, &Shares::new(), &slices, 100)),
        (1, 0, 1)
    );
    let renamed = service(json!({ "metadata": { "labels": { "team": "b" } } }));
    let changes = desired_slices(&renamed, &[pod(1, json!({}))], &node, &Shares::new(), &slices, 100);
    assert_eq!(counts(&changes), (0, 1, 0), "new labels are copied");
    slices = apply(&slices, &changes);
    let headless =
        service(json!({ "metadata": { "labels": { "team": "b" } }, "spec": { "clusterIP": "None" } }));
    let changes = desired_slices(&headless, &[pod(1, json!({}))], &node, &Shares::new(), &slices, 100);
    assert_eq!(changes.update[0].labels().get(HEADLESS).map(String::as_str), Some(""));
}

#[test]
fn hints_follow_the_wished_distribution() {
    for (extra, ready, expected) in [
        (json!({}), "True", Value::Null),
        (
            json!({ "spec": { "trafficDistribution": "PreferClose" } }),
            "True",
            json!({ "forZones": [{ "name": "z1" }] }),
        ),
        (
            json!({ "spec": { "trafficDistribution": "PreferSameZone" } }),
            "True",
            json!({ "forZones": [{ "name": "z1" }] }),
        ),
        (
            json!({ "spec": { "trafficDistribution": "PreferSameNode" } }),
            "True",
            json!({ "forZones": [{ "name": "z1" }], "forNodes": [{ "name": "node-1" }] }),
        ),
        (json!({ "spec": { "trafficDistribution": "PreferSameNode" } }), "False", Value::Null),
        (
            json!({ "metadata": { "annotations": { topology::ANNOTATIONS[0]: "Auto" } },
                "spec": { "trafficDistribution": "PreferSameZone" } }),
            "True",
            Value::Null,
        ),
    ] {
        let patch = json!({ "status": { "conditions": [{ "type": "Ready", "status": ready }] } });
        let slices = first(&service(extra.clone()), &[pod(1, patch)]);
        let slice = serde_json::to_value(slices[0].as_ref()).expect("json");
        assert_eq!(slice["endpoints"][0]["hints"], expected, "{extra}");
    }
}

#[test]
fn hints_by_size_are_for_all_ready_endpoints_or_for_none() {
    let auto = service(json!({ "metadata": { "annotations": { topology::ANNOTATIONS[0]: "auto" } } }));
    let shares = Shares::from([("z1".to_owned(), 0.5), ("z2".to_owned(), 0.5)]);
    let unready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    let pods = [pod(1, json!({})), pod(2, json!({})), pod(3, unready)];
    let slices = apply(&[], &desired_slices(&auto, &pods, &node, &shares, &[], 100));
    let hints = |slices: &[Arc<EndpointSlice>]| -> Vec<Value> {
        let slice = serde_json::to_value(slices[0].as_ref()).expect("json");
        let endpoints = slice["endpoints"].as_array().expect("endpoints");
        endpoints.iter().map(|endpoint| endpoint["hints"]["forZones"][0]["name"].clone()).collect()
    };
    // All pods are in z1: one is given to z2.
    assert_eq!(hints(&slices), [json!("z1"), json!("z2"), Value::Null]);
    let again = desired_slices(&auto, &pods, &node, &shares, &slices, 100);
    assert_eq!(counts(&again), (0, 0, 0), "and so it stays");
    let fewer = desired_slices(&auto, &pods[1..], &node, &shares, &slices, 100);
    assert_eq!(hints(&apply(&slices, &fewer)), [Value::Null, Value::Null]);
}

proptest! {
    #[test]
    fn whatever_happens_each_endpoint_is_in_one_slice_and_all_is_settled(
        steps in proptest::collection::vec(proptest::collection::btree_set(1u32..40, 0..30), 1..8),
        max in 1usize..8,
    ) {
        let web = service(json!({}));
        let mut slices = Vec::new();
        for numbers in steps {
            let pods: Vec<_> = numbers.iter().map(|n| pod(*n, json!({}))).collect();
            let changes = desired_slices(&web, &pods, &node, &Shares::new(), &slices, max);
            slices = apply(&slices, &changes);
            let mut expected: Vec<_> = numbers.iter().map(|n| format!("10.1.0.{n}")).collect();
            expected.sort();
            prop_assert_eq!(addresses(&slices), expected);
            prop_assert!(!slices.is_empty());
            prop_assert!(slices.iter().all(|s| s.endpoints.as_deref().unwrap_or_default().len() <= max));
            let again = desired_slices(&web, &pods, &node, &Shares::new(), &slices, max);
            prop_assert_eq!(counts(&again), (0, 0, 0));
        }
    }
}
