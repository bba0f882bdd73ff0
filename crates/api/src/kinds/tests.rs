//! What the table of kinds promises, and what kubectl shows of each.

use serde_json::{Value, json};

use super::KINDS;
use crate::kind::{Kind, find, find_kind};
use crate::patch::merge;
use crate::scale::{apply_scale, to_scale};

fn kind(plural: &str) -> &'static Kind {
    KINDS.iter().copied().find(|k| k.plural() == plural).unwrap()
}

/// A row as kubectl prints it: the cells, those of `-o wide` after a bar.
fn row(plural: &str, object: Value) -> String {
    let kind = kind(plural);
    let now = "2026-01-01T00:10:00Z".parse().unwrap();
    let mut object = object;
    merge(&mut object, &json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}})).unwrap();
    let cells = kind.cells(&object, now);
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), String::from);
    let pick = |wide: bool| {
        let chosen = kind.columns().iter().zip(&cells).filter(|(c, _)| (c.priority > 0) == wide);
        chosen.map(|(_, v)| text(v)).collect::<Vec<_>>().join(" ")
    };
    format!("{} | {}", pick(false), pick(true)).trim_end_matches([' ', '|']).to_owned()
}

#[test]
fn every_kind_has_a_cell_for_each_column_whatever_the_object() {
    for kind in KINDS {
        for object in [json!({}), json!({"spec": 1, "status": [], "metadata": {"name": 3}, "subsets": [1]})] {
            let cells = kind.cells(&object, jiff::Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), kind.columns().len(), "{}", kind.kind());
        }
    }
}

#[test]
fn no_malformed_object_makes_a_kind_panic() {
    let parts =
        [json!(null), json!(1), json!("x"), json!([]), json!([1, null, {}]), json!({}), json!({"a": null})];
    for kind in KINDS {
        for part in &parts {
            for field in
                ["metadata", "spec", "status", "subsets", "endpoints", "ports", "data", "involvedObject"]
            {
                let mut object = json!({field: part, "metadata": {"name": "x"}});
                object[field] = part.clone();
                let _ = kind.read(&mut object.clone());
                let old = object.clone();
                kind.prepare_create(&mut object);
                let _ = kind.check_create(&object);
                let mut new = object.clone();
                kind.prepare_update(&mut new, &old);
                let _ = kind.check_update(&new, &old);
                kind.prepare_status_update(&mut new, &old);
                let _ = kind.check_status_update(&new, &old);
                let _ = kind.warnings(&new, None);
                assert_eq!(kind.selectable(&new).len(), kind.fields().len());
            }
        }
    }
    for part in parts {
        for spec in ["ports", "clusterIPs", "ipFamilies", "selector", "template", "containers", "clusterIP"] {
            for kind in KINDS {
                let mut object = json!({"spec": {spec: part}});
                let old = object.clone();
                kind.prepare_create(&mut object);
                let _ = kind.check_create(&object);
                kind.prepare_update(&mut object, &old);
                let _ = kind.check_update(&object, &old);
            }
        }
    }
}

#[test]
fn through_status_metadata_changes_but_where_kubernetes_resets_it() {
    let old = json!({"metadata": {"name": "a", "labels": {"a": "b"}, "generation": 1}, "spec": {"x": 1}});
    let new = json!({"metadata": {"name": "a", "annotations": {"": "x"}, "finalizers": ["e.org/f"]}, "spec": {"x": 2}});
    for (plural, kept) in
        [("servicecidrs", true), ("volumeattachments", true), ("services", false), ("namespaces", false)]
    {
        let mut made = new.clone();
        kind(plural).prepare_status_update(&mut made, &old);
        assert_eq!(made["spec"], old["spec"], "{plural}");
        assert_eq!(made["metadata"] == old["metadata"], kept, "{plural}: {}", made["metadata"]);
    }
}

#[test]
fn a_daemon_sets_status_keeps_the_generation_of_its_template() {
    let generation = |text: &str| json!({"deprecated.daemonset.template.generation": text});
    let old = json!({"metadata": {"name": "a", "annotations": generation("3")}, "spec": {}});
    let mut new = json!({"metadata": {"name": "a"}, "spec": {}});
    kind("daemonsets").prepare_status_update(&mut new, &old);
    assert_eq!(new["metadata"]["annotations"], generation("3"));
}

#[test]
fn kinds_are_found_by_path_and_by_what_an_object_says() {
    for kind in KINDS {
        assert!(std::ptr::eq(find(kind.group(), kind.version(), kind.plural()).unwrap(), *kind));
        assert!(std::ptr::eq(find_kind(&kind.api_version(), kind.kind()).unwrap(), *kind));
        assert_eq!(kind.list_kind(), format!("{}List", kind.kind()));
    }
    assert!(find("apps", "v1", "services").is_none());
    assert_eq!(kind("deployments").resource(), "deployments.apps");
    assert_eq!(kind("services").qualified(), "Service");
}

#[test]
fn rows_read_as_kubectl_prints_them() {
    let rows = [
        (
            "services",
            json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "10.0.0.1", "selector": {"b": "2", "a": "1"},
                "ports": [{"port": 8080, "nodePort": 30163, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
            "s NodePort 10.0.0.1 <none> 8080:30163/TCP,53/UDP 10m | a=1,b=2",
        ),
        (
            "services",
            json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1"},
                "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb.example"}]}}}),
            "s LoadBalancer 10.0.0.1 192.0.2.1,lb.example <none> 10m | <none>",
        ),
        (
            "services",
            json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1"}}),
            "s LoadBalancer 10.0.0.1 <pending> <none> 10m | <none>",
        ),
        (
            "services",
            json!({"metadata": {"name": "s"}, "spec": {"type": "ExternalName", "externalName": "a.b"}}),
            "s ExternalName <none> a.b <none> 10m | <none>",
        ),
        (
            "deployments",
            json!({"metadata": {"name": "d"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}},
                "template": {"spec": {"containers": [{"name": "c", "image": "echo"}]}}},
                "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}}),
            "d 2/3 3 1 10m | c echo a=b",
        ),
        (
            "replicasets",
            json!({"metadata": {"name": "r"}, "spec": {"replicas": 3}, "status": {"replicas": 2, "readyReplicas": 1}}),
            "r 3 2 1 10m |   <none>",
        ),
        (
            "nodes",
            json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}}, "spec": {"unschedulable": true},
                "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1"},
                "addresses": [{"type": "InternalIP", "address": "10.9.0.1"}]}}),
            "n Ready,SchedulingDisabled control-plane 10m v1 | 10.9.0.1 <none> <unknown> <unknown> <unknown>",
        ),
        (
            "nodes",
            json!({"metadata": {"name": "n"}}),
            "n Unknown <none> 10m  | <none> <none> <unknown> <unknown> <unknown>",
        ),
        ("namespaces", json!({"metadata": {"name": "n"}, "status": {"phase": "Active"}}), "n Active 10m"),
        (
            "configmaps",
            json!({"metadata": {"name": "c"}, "data": {"a": "1"}, "binaryData": {"b": ""}}),
            "c 2 10m",
        ),
        (
            "secrets",
            json!({"metadata": {"name": "c"}, "type": "Opaque", "data": {"a": "1"}}),
            "c Opaque 1 10m",
        ),
        ("serviceaccounts", json!({"metadata": {"name": "c"}}), "c 10m"),
        ("leases", json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "h"}}), "l h 10m"),
        (
            "endpoints",
            json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}, {"ip": "fd00::1"}, {"ip": "10.0.0.4"}],
                "ports": [{"port": 80}]}]}),
            "e 10.0.0.1:80,10.0.0.2:80,[fd00::1]:80 + 1 more... 10m",
        ),
        (
            "endpointslices",
            json!({"metadata": {"name": "e"}, "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]}),
            "e IPv4 80 10.0.0.1 10m",
        ),
        (
            "endpointslices",
            json!({"metadata": {"name": "e"}, "addressType": "IPv4"}),
            "e IPv4 <unset> <unset> 10m",
        ),
        (
            "events",
            json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "type": "Normal", "reason": "Started",
                "message": "it did\n", "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:09:00Z", "count": 4,
                "source": {"component": "c", "host": "h"}}),
            "60s Normal Started pod/p it did |  c, h 10m 4 e",
        ),
        (
            "pods",
            json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "a"}]},
                "status": {"phase": "Running", "podIPs": [{"ip": "10.1.0.1"}]}}),
            "p 0/1 Running 0 10m | 10.1.0.1 n <none> <none>",
        ),
    ];
    for (plural, object, want) in rows {
        assert_eq!(row(plural, object), want);
    }
}

#[test]
fn a_namespace_is_labelled_held_and_let_go() {
    let kind = kind("namespaces");
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let mut object = json!({"metadata": {"name": "x"}});
    kind.prepare_create(&mut object);
    assert_eq!(object["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "x"}));
    assert_eq!(object["spec"], json!({"finalizers": ["kubernetes"]}));
    assert_eq!(object["status"], json!({"phase": "Active"}));
    let mut asked = object.clone();
    merge(&mut asked, &json!({"spec": {"finalizers": []}})).unwrap();
    let mut changed = asked.clone();
    kind.prepare_update(&mut changed, &object);
    assert_eq!(changed["spec"], object["spec"]);
    super::namespace::begin_deletion(&mut object, now);
    assert_eq!(object["status"]["phase"], "Terminating");
    assert!(!super::namespace::may_go(&object));
    super::namespace::finalize(&mut object, &asked);
    assert!(super::namespace::may_go(&object));
}

#[test]
fn what_is_immutable_stays() {
    let kind = kind("configmaps");
    let mut old = json!({"metadata": {"name": "c", "namespace": "d"}, "data": {"a": "1"}, "immutable": true});
    kind.prepare_create(&mut old);
    let mut new = old.clone();
    merge(&mut new, &json!({"data": {"a": "2"}, "immutable": null})).unwrap();
    let texts: Vec<String> = kind.check_update(&new, &old).iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "immutable: Forbidden: field is immutable when `immutable` is set",
            "data: Forbidden: field is immutable when `immutable` is set"
        ]
    );
}

#[test]
fn plain_texts_of_a_secret_become_data() {
    let mut object = json!({"metadata": {"name": "c"}, "stringData": {"a": "hello"}});
    kind("secrets").prepare_create(&mut object);
    assert_eq!(object["data"], json!({"a": "aGVsbG8="}));
    assert_eq!(object.get("stringData"), None);
    assert_eq!(object["type"], "Opaque");
}

#[test]
fn a_scale_shows_and_sets_the_number_of_replicas() {
    let mut object = json!({"metadata": {"name": "d", "namespace": "x", "resourceVersion": "7", "labels": {"a": "b"}},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}});
    assert_eq!(
        to_scale(&object),
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1",
            "metadata": {"name": "d", "namespace": "x", "resourceVersion": "7"},
            "spec": {"replicas": 2}, "status": {"replicas": 1, "selector": "a=b"}})
    );
    apply_scale(&mut object, &json!({"spec": {"replicas": 5}})).unwrap();
    assert_eq!(object["spec"]["replicas"], 5);
    apply_scale(&mut object, &json!({"spec": {}})).unwrap();
    assert_eq!(object["spec"]["replicas"], 0);
    let errors = apply_scale(&mut object, &json!({"spec": {"replicas": -1}})).unwrap_err();
    assert_eq!(errors[0].to_string(), "spec.replicas: Invalid value: -1: must be greater than or equal to 0");
}
