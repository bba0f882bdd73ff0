//! Pods and what makes them: valid objects, and values for their fields that may be valid or not.

use serde_json::{Value, json};

use super::dice::Dice;
use super::kinds::{Field, Fields, field, name_of_63};

fn pod_spec(dice: &mut Dice) -> Value {
    let mut container =
        json!({"name": "web", "image": dice.pick(&["echo", "echo:1", "r.example.com/echo:latest"])});
    if dice.percent(50) {
        container["ports"] = json!([{"containerPort": 80, "name": "http"}]);
    }
    if dice.percent(30) {
        container["env"] = json!([{"name": "A", "value": "b"}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    }
    if dice.percent(30) {
        container["readinessProbe"] = json!({"httpGet": {"port": 80}});
    }
    if dice.percent(20) {
        container["resources"] = json!({"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}});
    }
    let mut spec = json!({"containers": [container]});
    if dice.percent(20) {
        spec["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    }
    if dice.percent(20) {
        spec["initContainers"] = json!([{"name": "init", "image": "echo"}]);
    }
    spec
}

pub fn pod(dice: &mut Dice, name: &str) -> Value {
    let mut spec = pod_spec(dice);
    if dice.percent(40) {
        spec["nodeName"] = "n1".into();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}}, "spec": spec})
}

pub fn deployment(dice: &mut Dice, name: &str) -> Value {
    let mut spec = json!({"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": pod_spec(dice)}});
    if dice.percent(50) {
        spec["replicas"] = dice.below(4).into();
    }
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec})
}

pub fn replicaset(dice: &mut Dice, name: &str) -> Value {
    let mut object = deployment(dice, name);
    object["kind"] = "ReplicaSet".into();
    object
}

macro_rules! spec_fields {
    ($at:literal) => {
        vec![
            field(2, concat!($at, "/containers"), json!([[], null, [{"name": "a", "image": "x"}, {"name": "a", "image": "x"}], [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]])),
            field(2, concat!($at, "/containers/0/name"), json!(["Bad_Name", "", "a.b", name_of_63() + "x", "other"])),
            field(2, concat!($at, "/containers/0/image"), json!(["", " x", "echo:2", null])),
            field(1, concat!($at, "/containers/0/imagePullPolicy"), json!(["Always", "Never", "Bogus", ""])),
            field(2, concat!($at, "/containers/0/ports"), json!([[{"containerPort": 0}], [{"containerPort": 65536}], [{"containerPort": 80, "protocol": "Bogus"}], [{"containerPort": 80, "name": "Bad_Name"}],
                [{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}], [{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80}], [{"containerPort": 80, "hostPort": 65536}], [{}]])),
            field(2, concat!($at, "/containers/0/env"), json!([[{"name": ""}], [{"name": "A=B"}], [{"name": "a b"}], [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "bogus"}}}], [{"name": "A", "valueFrom": {}}], [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "x", "key": ""}}}], [{"name": "A"}, {"name": "A"}], [{"name": "1a", "value": "x"}]])),
            field(2, concat!($at, "/containers/0/resources"), json!([{"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}, {"requests": {"cpu": "-1"}}, {"limits": {"bogus": "1"}}, {"limits": {"cpu": "bogus"}}, {"limits": {"cpu": "1", "memory": "1Gi"}}, {"limits": {"example.com/gpu": "1"}}, {"requests": {"example.com/gpu": "1"}}])),
            field(2, concat!($at, "/containers/0/readinessProbe"), json!([{}, {"httpGet": {"port": 0}}, {"httpGet": {"port": "http"}}, {"exec": {"command": []}}, {"tcpSocket": {"port": 80}, "httpGet": {"port": 80}}, {"tcpSocket": {"port": 80}, "periodSeconds": -1},
                {"tcpSocket": {"port": 80}, "successThreshold": 2, "initialDelaySeconds": 5}, {"httpGet": {"port": 80, "scheme": "Bogus"}}, {"grpc": {"port": 80}}, {"tcpSocket": {"port": 80}, "terminationGracePeriodSeconds": 1}])),
            field(1, concat!($at, "/containers/0/livenessProbe"), json!([{"tcpSocket": {"port": 80}, "successThreshold": 2}, {"exec": {"command": ["true"]}}, {"tcpSocket": {"port": 80}, "terminationGracePeriodSeconds": 0}])),
            field(1, concat!($at, "/containers/0/lifecycle"), json!([{"preStop": {"exec": {"command": ["true"]}}}, {"preStop": {}}, {"postStart": {"sleep": {"seconds": -1}}}])),
            field(1, concat!($at, "/containers/0/volumeMounts"), json!([[{"name": "v", "mountPath": "/v"}], [{"name": "none", "mountPath": "/v"}], [{"name": "v", "mountPath": ""}], [{"name": "v", "mountPath": "/v", "subPath": "/abs"}]])),
            field(1, concat!($at, "/containers/0/securityContext"), json!([{"privileged": true}, {"capabilities": {"add": ["NET_ADMIN"]}}, {"runAsUser": -1}, {"procMount": "Bogus"}])),
            field(1, concat!($at, "/containers/0/terminationMessagePolicy"), json!(["Bogus", "FallbackToLogsOnError"])),
            field(1, concat!($at, "/containers/0/bogus"), json!([1])),
            field(2, concat!($at, "/initContainers"), json!([[{"name": "web", "image": "x"}], [{"name": "i", "image": "x", "restartPolicy": "Always"}], [{"name": "i", "image": "x", "restartPolicy": "Bogus"}], [{"name": "i", "image": "x", "readinessProbe": {"tcpSocket": {"port": 1}}}]])),
            field(1, concat!($at, "/volumes"), json!([[{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}], [{"name": "Bad_Name", "emptyDir": {}}], [{"name": "v"}], [{"name": "v", "configMap": {"name": "x"}}], [{"name": "v", "configMap": {}}],
                [{"name": "v", "hostPath": {"path": "/x"}}], [{"name": "v", "hostPath": {"path": ""}}], [{"name": "v", "secret": {"secretName": "x"}}], [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}], [{"name": "v", "emptyDir": {"medium": "Bogus"}}],
                [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "x"}}, {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}]])),
            field(2, concat!($at, "/restartPolicy"), json!(["Always", "Never", "OnFailure", "Bogus", ""])),
            field(1, concat!($at, "/dnsPolicy"), json!(["None", "Default", "Bogus", "ClusterFirstWithHostNet"])),
            field(1, concat!($at, "/dnsConfig"), json!([{"nameservers": ["1.1.1.1"]}, {"nameservers": ["bogus"]}, {"searches": ["Bad_Search"]}, {"options": [{"name": "ndots", "value": "2"}]}, {"options": [{"value": "2"}]}])),
            field(1, concat!($at, "/terminationGracePeriodSeconds"), json!([0, -1, 5, "x"])),
            field(1, concat!($at, "/activeDeadlineSeconds"), json!([0, -1, 5])),
            field(1, concat!($at, "/hostNetwork"), json!([true, false])),
            field(1, concat!($at, "/hostname"), json!(["h", "Bad_Host", "a.b"])),
            field(1, concat!($at, "/subdomain"), json!(["s", "Bad_Sub"])),
            field(1, concat!($at, "/nodeSelector"), json!([{"a": "b"}, {"bad key!": "b"}, {"a": "bad value!"}])),
            field(1, concat!($at, "/serviceAccountName"), json!(["default", "Bad_Account", "other"])),
            field(1, concat!($at, "/serviceAccount"), json!(["default"])),
            field(1, concat!($at, "/tolerations"), json!([[{"key": "a", "operator": "Exists"}], [{"operator": "Exists", "value": "x"}], [{"key": "bad key!"}], [{"key": "a", "effect": "Bogus"}], [{"key": "a", "tolerationSeconds": 5}], [{"key": "a", "tolerationSeconds": 5, "effect": "NoExecute"}], [{"operator": "Bogus", "key": "a"}]])),
            field(1, concat!($at, "/affinity"), json!([{"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}, {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": []}]}]}}},
                {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {"matchLabels": {"a": "b"}}, "topologyKey": ""}]}}, {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {"matchLabels": {"a": "b"}}, "topologyKey": "kubernetes.io/hostname"}]}},
                {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "preference": {}}]}}])),
            field(1, concat!($at, "/hostAliases"), json!([[{"ip": "1.2.3.4", "hostnames": ["a"]}], [{"ip": "bogus"}], [{"ip": "1.2.3.4", "hostnames": ["Bad_Host"]}]])),
            field(1, concat!($at, "/readinessGates"), json!([[{"conditionType": "a"}], [{"conditionType": "bad type!"}]])),
            field(1, concat!($at, "/topologySpreadConstraints"), json!([[{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}], [{"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "Bogus"}]])),
            field(1, concat!($at, "/securityContext"), json!([{"runAsUser": 1000}, {"runAsUser": -1}, {"fsGroup": 5}, {"sysctls": [{"name": "a.b", "value": "1"}]}])),
            field(1, concat!($at, "/schedulerName"), json!(["", "x"])),
            field(1, concat!($at, "/priorityClassName"), json!(["none", "system-node-critical"])),
            field(1, concat!($at, "/enableServiceLinks"), json!([false, null])),
            field(1, concat!($at, "/preemptionPolicy"), json!(["Never", "Bogus"])),
            field(1, concat!($at, "/os"), json!([{"name": "linux"}, {"name": "windows"}, {"name": "bogus"}])),
            field(1, concat!($at, "/bogus"), json!([1])),
        ]
    };
}

pub fn pod_fields() -> Fields {
    let mut fields: Vec<Field> = spec_fields!("/spec");
    fields.push(field(3, "/spec/nodeName", json!(["n2", "Bad_Node", "", null])));
    fields.push(field(
        1,
        "/spec/schedulingGates",
        json!([[{"name": "example.com/a"}], [{"name": "bad gate!"}], []]),
    ));
    fields.push(field(1, "/spec/ephemeralContainers", json!([[{"name": "e", "image": "x"}]])));
    fields.push(field(1, "/status/phase", json!(["Running"])));
    fields.push(field(1, "/spec", json!([null, {}])));
    fields
}

pub fn pod_status_fields() -> Fields {
    vec![
        field(3, "/status/phase", json!(["Running", "Succeeded", "Failed", "Bogus", "Pending"])),
        field(
            3,
            "/status/podIPs",
            json!([[{"ip": "10.244.0.5"}], [{"ip": "bogus"}], [{"ip": "10.244.0.5"}, {"ip": "fd00::5"}], [{"ip": "10.244.0.5"}, {"ip": "10.244.0.6"}], [], [{"ip": "10.244.0.5"}, {"ip": "10.244.0.5"}]]),
        ),
        field(3, "/status/podIP", json!(["10.244.0.5", "bogus", "", "10.244.0.6"])),
        field(2, "/status/hostIP", json!(["192.0.2.1", "bogus", ""])),
        field(2, "/status/hostIPs", json!([[{"ip": "192.0.2.1"}], [{"ip": "bogus"}]])),
        field(
            3,
            "/status/conditions",
            json!([[{"type": "Ready", "status": "True"}], [{"type": "Ready", "status": "Maybe"}], [{"type": "bad type!", "status": "True"}], [{"type": "Ready", "status": "True", "observedGeneration": -1}], [{"type": "A", "status": "True"}, {"type": "A", "status": "False"}]]),
        ),
        field(
            2,
            "/status/containerStatuses",
            json!([[{"name": "web", "ready": true, "restartCount": 0, "image": "echo", "imageID": "", "state": {"running": {"startedAt": "2024-01-01T00:00:00Z"}}}], [{"name": "web", "ready": false, "restartCount": 1, "image": "", "imageID": "", "state": {"terminated": {"exitCode": 1}}}], [{}]]),
        ),
        field(1, "/status/nominatedNodeName", json!(["n1", "Bad_Node"])),
        field(1, "/status/qosClass", json!(["Guaranteed", "BestEffort", "Bogus"])),
        field(1, "/status/startTime", json!(["2024-01-01T00:00:00Z", "bogus"])),
        field(1, "/status/reason", json!(["x", ""])),
        field(1, "/spec/nodeName", json!(["n9"])),
        field(1, "/metadata/labels", json!([{"a": "b"}, {"bad key!": "x"}])),
    ]
}

pub fn deployment_fields() -> Fields {
    let mut fields: Vec<Field> = spec_fields!("/spec/template/spec");
    fields.extend([
        field(6, "/spec/replicas", json!([0, -1, 3, null, "x", 1.5])),
        field(6, "/spec/selector", json!([{}, null, {"matchLabels": {"a": "b"}}, {"matchLabels": {"bad key!": "x"}}, {"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {"matchExpressions": [{"key": "app", "operator": "Bogus"}]},
            {"matchExpressions": [{"key": "app", "operator": "In", "values": []}]}, {"matchExpressions": [{"key": "app", "operator": "Exists", "values": ["x"]}]}])),
        field(4, "/spec/template/metadata/labels", json!([{"a": "b"}, null, {"bad key!": "x"}])),
        field(6, "/spec/strategy", json!([{"type": "Recreate"}, {"type": "Bogus"}, {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}, {"rollingUpdate": {"maxSurge": "50%"}},
            {"rollingUpdate": {"maxSurge": "bogus"}}, {"rollingUpdate": {"maxUnavailable": "101%"}}, {"rollingUpdate": {"maxUnavailable": -1}}, {}])),
        field(3, "/spec/minReadySeconds", json!([0, -1, 5, 700])),
        field(3, "/spec/progressDeadlineSeconds", json!([0, -1, 5, 700])),
        field(3, "/spec/revisionHistoryLimit", json!([0, -1, 5])),
        field(2, "/spec/paused", json!([true, false])),
        field(1, "/spec/template/spec/restartPolicy", json!(["Never"])),
        field(1, "/spec/template/spec", json!([null, {}])),
        field(1, "/spec/template", json!([null, {}])),
        field(1, "/spec", json!([null, {}])),
    ]);
    fields
}

pub fn replicaset_fields() -> Fields {
    deployment_fields()
        .into_iter()
        .filter(|field| {
            !matches!(
                field.place,
                "/spec/strategy"
                    | "/spec/paused"
                    | "/spec/progressDeadlineSeconds"
                    | "/spec/revisionHistoryLimit"
            )
        })
        .collect()
}

pub fn deployment_status_fields() -> Fields {
    let counts = |place| field(2, place, json!([0, 1, 3, -1]));
    vec![
        counts("/status/replicas"),
        counts("/status/readyReplicas"),
        counts("/status/availableReplicas"),
        counts("/status/unavailableReplicas"),
        counts("/status/updatedReplicas"),
        field(1, "/status/observedGeneration", json!([1, -1])),
        field(1, "/status/collisionCount", json!([1, -1, 0])),
        field(
            1,
            "/status/conditions",
            json!([[{"type": "Available", "status": "True"}], [{"type": "", "status": "Maybe"}]]),
        ),
        field(1, "/spec/replicas", json!([9])),
    ]
}

pub fn replicaset_status_fields() -> Fields {
    let mut fields: Fields = deployment_status_fields()
        .into_iter()
        .filter(|field| {
            !matches!(
                field.place,
                "/status/unavailableReplicas" | "/status/updatedReplicas" | "/status/collisionCount"
            )
        })
        .collect();
    fields.push(field(2, "/status/fullyLabeledReplicas", json!([0, 1, 3, -1])));
    fields
}
