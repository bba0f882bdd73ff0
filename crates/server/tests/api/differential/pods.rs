//! Pods and what makes them: valid objects, and values for their fields that may be valid or not.

use serde_json::{Value, json};

use super::dice::Dice;
use super::kinds::{Field, Fields, field, name_of_63};

pub fn pod_spec(dice: &mut Dice) -> Value {
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

/// Values for the fields of a pod's specification at a place.
pub fn spec_fields(at: &str) -> Fields {
    let moved = |field: Field| Field { place: format!("{at}{}", &field.place["/spec".len()..]), ..field };
    let all = spec_fields!("/spec");
    all.into_iter().chain(more_spec_fields()).map(moved).collect()
}

fn more_spec_fields() -> Fields {
    let probe = json!({"tcpSocket": {"port": 80}});
    let with = |key: &str, value: Value| {
        let mut probe = probe.clone();
        probe[key] = value;
        probe
    };
    let projected = |sources: Value| json!([{"name": "v", "projected": {"sources": sources}}]);
    let affine =
        |kind: &str, term: Value| json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
    let spread = |key: &str, value: Value| {
        let mut rule = json!({"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"a": "b"}}});
        rule[key] = value;
        json!([rule])
    };
    vec![
        field(
            1,
            "/spec/containers/0/envFrom",
            json!([[{"configMapRef": {"name": "x"}}], [{"secretRef": {"name": ""}}], [{}], [{"prefix": "A=", "configMapRef": {"name": "Bad_"}}],
            [{"configMapRef": {"name": "x"}, "secretRef": {"name": "x"}}], [{"prefix": "p_", "configMapRef": {"name": "x-"}}]]),
        ),
        field(
            1,
            "/spec/containers/0/env",
            json!([[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}], [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['bad key!']"}}}],
            [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.host"}}}], [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}], [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP['x']"}}}],
            [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "", "apiVersion": "v2"}}}], [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name", "apiVersion": "v2"}}}],
            [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}}], [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}}}],
            [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}}], [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "3Mi"}}}], [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "bogus"}}}],
            [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k"}}}], [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "", "key": "..k"}}}],
            [{"name": "A", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "f", "key": "K"}}}], [{"name": "A", "valueFrom": {"fileKeyRef": {"volumeName": "none", "path": "../f", "key": ""}}}],
            [{"name": "A", "value": "x"}, {"name": "A", "value": "$(A)y"}], [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}, "secretKeyRef": {"name": "x", "key": "k"}}}], [{"name": "a\u{1}"}]]),
        ),
        field(
            1,
            "/spec/containers/0/ports",
            json!([[{"containerPort": 80}, {"containerPort": 80}], [{"containerPort": 80, "hostIP": "192.0.2.1"}], [{"containerPort": 80, "hostPort": 81}, {"containerPort": 80}], [{"containerPort": 80, "hostPort": 81, "hostIP": "192.0.2.1"}, {"containerPort": 80, "hostPort": 81}]]),
        ),
        field(
            1,
            "/spec/containers/0/volumeDevices",
            json!([[{"name": "v", "devicePath": "/d"}], [{"name": "none", "devicePath": ""}], [{"name": "v", "devicePath": "/../d"}, {"name": "v", "devicePath": "/d"}]]),
        ),
        field(
            1,
            "/spec/containers/0/volumeMounts",
            json!([[{"name": "v", "mountPath": "/v", "subPath": "../x"}], [{"name": "v", "mountPath": "/v", "subPath": "x", "subPathExpr": "$(X)"}], [{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}], [{"name": "v", "mountPath": "/v", "mountPropagation": "Bogus"}],
            [{"name": "v", "mountPath": "/v", "recursiveReadOnly": "Enabled"}], [{"name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "IfPossible"}], [{"name": "v", "mountPath": "/v", "recursiveReadOnly": "Bogus"}], [{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/v"}]]),
        ),
        field(
            1,
            "/spec/containers/0/resizePolicy",
            json!([[{"resourceName": "cpu", "restartPolicy": "NotRequired"}], [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}, {"resourceName": "cpu", "restartPolicy": "NotRequired"}], [{"resourceName": "disk", "restartPolicy": "Bogus"}], [{}]]),
        ),
        field(1, "/spec/containers/0/restartPolicy", json!(["Always", "Never", "Bogus"])),
        field(
            1,
            "/spec/containers/0/restartPolicyRules",
            json!([[{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}], [{"action": "Bogus"}], [{"action": "Restart", "exitCodes": {"operator": "Bogus"}}]]),
        ),
        field(
            1,
            "/spec/containers/0/startupProbe",
            json!([probe, with("successThreshold", 3.into()), with("failureThreshold", (-1).into()), with("timeoutSeconds", 0.into()), {"exec": {}}, {"grpc": {"port": 0}}, {"grpc": {"port": 80, "service": "x"}}]),
        ),
        field(
            1,
            "/spec/containers/0/livenessProbe",
            json!([{"httpGet": {"port": "bad_name", "path": "x", "host": "h"}}, {"httpGet": {"port": 80, "httpHeaders": [{"name": "X-A", "value": "b"}]}}, {"httpGet": {"port": 80, "httpHeaders": [{"name": "bad name", "value": "b"}]}}, {"tcpSocket": {"port": 70000}}]),
        ),
        field(
            1,
            "/spec/containers/0/lifecycle",
            json!([{"postStart": {"sleep": {"seconds": 5}}}, {"preStop": {"sleep": {"seconds": 0}}}, {"preStop": {"sleep": {"seconds": 100}}}, {"postStart": {"httpGet": {"port": 80}}, "preStop": {"tcpSocket": {"port": "x"}}}, {"stopSignal": "SIGTERM"}, {"preStop": {"exec": {"command": ["a"]}, "httpGet": {"port": 1}}}]),
        ),
        field(
            1,
            "/spec/containers/0/securityContext",
            json!([{"allowPrivilegeEscalation": false, "privileged": true}, {"allowPrivilegeEscalation": false, "capabilities": {"add": ["CAP_SYS_ADMIN"]}}, {"procMount": "Unmasked"}, {"runAsGroup": 2147483648_u64}, {"seccompProfile": {"type": "RuntimeDefault"}},
            {"seccompProfile": {"type": "Localhost"}}, {"seccompProfile": {"type": "Bogus", "localhostProfile": "x"}}, {"seccompProfile": {"type": "Localhost", "localhostProfile": "../x"}}, {"appArmorProfile": {"type": "Localhost"}}, {"appArmorProfile": {"type": "Unconfined", "localhostProfile": "x"}}, {"appArmorProfile": {"type": "Localhost", "localhostProfile": " x"}}, {"appArmorProfile": {}},
            {"windowsOptions": {"runAsUserName": ""}}, {"windowsOptions": {"runAsUserName": "a\\b\\c"}}, {"windowsOptions": {"gmsaCredentialSpecName": "Bad_"}}, {"windowsOptions": {"hostProcess": true}}, {"readOnlyRootFilesystem": true, "runAsNonRoot": true}]),
        ),
        field(
            1,
            "/spec/containers/0/resources",
            json!([{"limits": {"hugepages-2Mi": "4Mi"}}, {"limits": {"hugepages-2Mi": "3Mi", "cpu": "1"}}, {"limits": {"cpu": "1", "hugepages-2Mi": "4Mi"}, "requests": {"hugepages-2Mi": "2Mi"}}, {"limits": {"pods": "1"}}, {"limits": {"requests.example.com/x": "1"}}, {"limits": {"example.com/gpu": "1.5"}},
            {"limits": {"memory": "1.5"}}, {"limits": {"cpu": "0.0001"}}, {"requests": {"bad name!": "1"}}, {"claims": [{"name": "none"}]}, {"limits": {"cpu": 1}}, {"limits": {"memory": "100m"}, "requests": {"ephemeral-storage": "1Gi"}}]),
        ),
        field(
            1,
            "/spec/resources",
            json!([{"limits": {"cpu": "1"}}, {"requests": {"cpu": "10m"}}, {"limits": {"example.com/gpu": "1"}}, {"claims": [{"name": "x"}]}, {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}]),
        ),
        field(
            1,
            "/spec/initContainers",
            json!([[{"name": "i", "image": "x", "lifecycle": {"preStop": {"exec": {"command": ["a"]}}}}], [{"name": "i", "image": "x", "restartPolicy": "Always", "livenessProbe": {"tcpSocket": {"port": 1}, "successThreshold": 2}}], [{"name": "i", "image": "x"}, {"name": "i", "image": ""}], [{"name": "i", "image": "x", "ports": [{"containerPort": 80, "name": "http"}]}], [{"name": "i", "image": "x", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}], [{}]]),
        ),
        field(
            1,
            "/spec/volumes",
            json!([[{"name": "v", "emptyDir": {"sizeLimit": "-1"}}], [{"name": "v", "emptyDir": {"sizeLimit": "1Gi", "medium": "Memory"}}], [{"name": "v", "hostPath": {"path": "/a/../b", "type": "Bogus"}}], [{"name": "v", "hostPath": {"path": "/a", "type": "Directory"}}], [{"name": "v", "secret": {}}], [{"name": "v", "secret": {"secretName": "x", "defaultMode": 512, "items": [{"key": "", "path": "../a", "mode": -1}]}}],
            [{"name": "v", "configMap": {"name": "x", "items": [{"key": "k", "path": "a"}, {"key": "l", "path": "a/b"}]}}], [{"name": "v", "configMap": {"name": "x", "items": [{"key": "k", "path": "/a"}]}}], [{"name": "v", "nfs": {"server": "", "path": "x"}}], [{"name": "v", "persistentVolumeClaim": {"claimName": ""}}], [{"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}}],
            [{"name": "v", "gitRepo": {"repository": "x", "directory": "/x"}}], [{"name": "v", "downwardAPI": {"items": [{"path": "", "fieldRef": {"fieldPath": "spec.nodeName"}}]}}], [{"name": "v", "downwardAPI": {"items": [{"path": "a"}]}}], [{"name": "v", "downwardAPI": {"items": [{"path": "a", "resourceFieldRef": {"resource": "limits.cpu"}}]}}],
            [{"name": "v", "csi": {"driver": "Bad_Driver"}}], [{"name": "v", "csi": {"driver": ""}}], [{"name": "v", "ephemeral": {}}], [{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}], [{"name": "v", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["Bogus"]}}}}],
            [{"name": "v", "image": {"reference": "echo:1"}}], [{"name": "v", "image": {"reference": "", "pullPolicy": "Bogus"}}], [{"name": "v", "iscsi": {"targetPortal": "p", "iqn": "bogus", "lun": 256}}], [{"name": "v", "iscsi": {"targetPortal": "p", "iqn": "iqn.2001-04.com.example:x", "lun": 0}}], [{"name": "v", "fc": {}}], [{"name": "v", "rbd": {"monitors": [], "image": ""}}],
            [{"name": "v", "azureDisk": {"diskName": "", "diskURI": "x", "kind": "Managed"}}], [{"name": "v", "glusterfs": {"endpoints": "", "path": ""}}], [{"name": "", "emptyDir": {}}]]),
        ),
        field(
            1,
            "/spec/volumes",
            json!([
                projected(json!([{"serviceAccountToken": {"path": "", "expirationSeconds": 5}}])),
                projected(json!([{}])),
                projected(
                    json!([{"secret": {"name": ""}}, {"configMap": {"name": "x", "items": [{"key": "a", "path": "p"}]}}, {"secret": {"name": "s", "items": [{"key": "a", "path": "p"}]}}])
                ),
                projected(json!([{"secret": {"name": "a"}, "configMap": {"name": "b"}}])),
                projected(
                    json!([{"downwardAPI": {"items": [{"path": "a", "fieldRef": {"fieldPath": "metadata.bogus"}}]}}])
                ),
                projected(json!([{"clusterTrustBundle": {"path": "x"}}]))
            ]),
        ),
        field(
            1,
            "/spec/dnsConfig",
            json!([{"searches": ["a.b.", ".", "_x.y"]}, {"nameservers": ["1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4"]}, {"nameservers": ["010.1.1.1"]}, {"nameservers": ["FD00::1"]}]),
        ),
        field(
            1,
            "/spec/tolerations",
            json!([[{"key": "a", "value": "bad value!"}], [{"key": "a", "operator": "Lt", "value": "1"}], [{}], [{"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 1}], [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]]),
        ),
        field(
            1,
            "/spec/affinity",
            json!([affine("podAffinity", json!({"topologyKey": "z", "labelSelector": {"matchLabels": {"bad key!": "b"}}, "namespaces": ["Bad_"]})), affine("podAffinity", json!({"topologyKey": "bad key!"})), affine("podAffinity", json!({"topologyKey": "z", "matchLabelKeys": ["app"]})),
            affine("podAntiAffinity", json!({"topologyKey": "z", "labelSelector": {"matchLabels": {"a": "b"}}, "matchLabelKeys": ["app"], "mismatchLabelKeys": ["app"]})), affine("podAffinity", json!({"topologyKey": "z", "labelSelector": {"matchLabels": {"a": "b"}}, "matchLabelKeys": ["app", "missing"]})),
            {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 101, "podAffinityTerm": {"topologyKey": "z"}}]}},
            {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {"matchExpressions": [{"key": "beta.kubernetes.io/os", "operator": "In", "values": ["bad value!"]}]}}]}},
            {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a", "b"]}]}]}}}, {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [{"key": "bogus", "operator": "Bogus"}]}, {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1", "2"]}]}]}}},
            {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]}}}]),
        ),
        field(
            1,
            "/spec/topologySpreadConstraints",
            json!([spread("minDomains", 0.into()), spread("whenUnsatisfiable", "ScheduleAnyway".into()), spread("nodeAffinityPolicy", "Bogus".into()), spread("matchLabelKeys", json!(["app"])), spread("matchLabelKeys", json!(["bad key!"])), spread("labelSelector", json!({"matchExpressions": [{"key": "a", "operator": "Bogus"}]})), spread("topologyKey", "beta.kubernetes.io/os".into()),
            [{"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2, "labelSelector": {}}, {"maxSkew": 2, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}]]),
        ),
        field(
            1,
            "/spec/securityContext",
            json!([{"supplementalGroups": [-1, 5]}, {"fsGroupChangePolicy": "Bogus"}, {"fsGroupChangePolicy": "Always"}, {"sysctls": [{"name": "net.ipv4.x", "value": "1"}, {"name": "Bad", "value": "1"}, {"name": ""}]}, {"seccompProfile": {"type": "Unconfined"}}, {"supplementalGroupsPolicy": "Bogus"}, {"seLinuxChangePolicy": "Bogus"}, {"windowsOptions": {"hostProcess": true}}, {"appArmorProfile": {"type": "RuntimeDefault"}}, {}]),
        ),
        field(1, "/spec/hostUsers", json!([true, false])),
        field(1, "/spec/hostPID", json!([true, false])),
        field(1, "/spec/shareProcessNamespace", json!([true, false])),
        field(1, "/spec/hostnameOverride", json!(["h", "Bad_", ""])),
        field(1, "/spec/setHostnameAsFQDN", json!([true, false])),
        field(1, "/spec/imagePullSecrets", json!([[{"name": "x"}, {"name": "x"}], [{"name": ""}], [{}]])),
        field(
            1,
            "/spec/resourceClaims",
            json!([[{"name": "x"}], [{"name": "x", "resourceClaimName": "c"}], [{"name": "Bad_", "resourceClaimTemplateName": "Bad_"}], [{"name": "x", "resourceClaimName": "c"}, {"name": "x", "resourceClaimName": "c"}]]),
        ),
        field(1, "/spec/nodeSelector", json!([{"beta.kubernetes.io/os": "linux"}])),
        field(1, "/spec/overhead", json!([{"cpu": "-1"}])),
        field(1, "/spec/priority", json!([5])),
        field(1, "/spec/hostAliases", json!([[{"ip": "1.2.3.4"}, {"ip": "1.2.3.4", "hostnames": ["a"]}]])),
    ]
}

pub fn pod_fields() -> Fields {
    let mut fields: Vec<Field> = spec_fields("/spec");
    fields.push(field(
        2,
        "/metadata/annotations",
        json!([{"kubernetes.io/config.mirror": "x"}, {"controller.kubernetes.io/pod-deletion-cost": "5"}, {"controller.kubernetes.io/pod-deletion-cost": "+5"}, {"seccomp.security.alpha.kubernetes.io/pod": "bogus"}, {"seccomp.security.alpha.kubernetes.io/pod": "runtime/default"},
            {"container.apparmor.security.beta.kubernetes.io/web": "runtime/default"}, {"container.apparmor.security.beta.kubernetes.io/none": "bogus"}, {"container.seccomp.security.alpha.kubernetes.io/web": "unconfined"}, {"scheduler.alpha.kubernetes.io/critical-pod": ""}]),
    ));
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
    let mut fields: Vec<Field> = spec_fields("/spec/template/spec");
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
                field.place.as_str(),
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
                field.place.as_str(),
                "/status/unavailableReplicas" | "/status/updatedReplicas" | "/status/collisionCount"
            )
        })
        .collect();
    fields.push(field(2, "/status/fullyLabeledReplicas", json!([0, 1, 3, -1])));
    fields
}
