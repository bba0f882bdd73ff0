//! The smaller kinds: valid objects, and values for their fields that may be valid or not.

use serde_json::{Value, json};

use super::dice::Dice;
use super::kinds::{Fields, field, name_of_63};

pub fn slice(dice: &mut Dice, name: &str) -> Value {
    let v6 = dice.percent(25);
    let address = if v6 { "fd00::" } else { "10.244.0." };
    let endpoints: Vec<Value> = (1..=1 + dice.below(3))
        .map(|n| {
            let mut endpoint = json!({"addresses": [format!("{address}{n}")]});
            if dice.percent(60) {
                endpoint["conditions"] = json!({"ready": dice.percent(70)});
            }
            if dice.percent(30) {
                endpoint["nodeName"] = "n1".into();
            }
            endpoint
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": if v6 { "IPv6" } else { "IPv4" }, "endpoints": endpoints, "ports": [{"name": "web", "port": 80}]})
}

pub fn slice_fields() -> Fields {
    let zones: Vec<Value> = (1..=9).map(|n| json!({"name": format!("z{n}")})).collect();
    vec![
        field(4, "/addressType", json!(["IPv4", "IPv6", "FQDN", "Bogus", "", null])),
        field(
            3,
            "/endpoints",
            json!([[], null, [{"addresses": []}], [{}], [{"addresses": ["example.com"]}]]),
        ),
        field(
            6,
            "/endpoints/0/addresses",
            json!([
                ["10.244.0.9"],
                ["bogus"],
                ["fd00::9"],
                ["127.0.0.1"],
                ["0.0.0.0"],
                ["169.254.0.1"],
                ["224.0.0.1"],
                ["::1"],
                ["FD00::1"],
                ["010.1.1.1"],
                ["10.244.0.1", "10.244.0.2"],
                ["a.example.com"],
                ["Bad_Name"],
                [],
                ["::ffff:1.2.3.4"],
                [""]
            ]),
        ),
        field(
            2,
            "/endpoints/0/conditions",
            json!([{"ready": true}, {"serving": true, "terminating": true}, {}, {"ready": "yes"}, {"bogus": true}]),
        ),
        field(2, "/endpoints/0/hostname", json!(["web-0", "Bad_Host", "", "a.b", name_of_63() + "x"])),
        field(2, "/endpoints/0/nodeName", json!(["n2", "Bad_Node", ""])),
        field(1, "/endpoints/0/zone", json!(["a", ""])),
        field(1, "/endpoints/0/targetRef", json!([{"kind": "Pod", "name": "x", "namespace": "one"}, {}])),
        field(
            3,
            "/endpoints/0/hints",
            json!([{"forZones": [{"name": "a"}]}, {"forZones": [{"name": "a"}, {"name": "a"}]}, {"forZones": [{"name": "bad zone!"}]}, {"forZones": [{"name": ""}]},
            {"forNodes": [{"name": "n1"}]}, {"forNodes": [{"name": "n1"}, {"name": "n1"}]}, {"forNodes": [{"name": "Bad_Node"}]},
            {"forZones": zones}]),
        ),
        field(
            2,
            "/endpoints/0/deprecatedTopology",
            json!([{"kubernetes.io/hostname": "n1"}, {"topology.kubernetes.io/zone": "a"}, {"bad key!": "x"}]),
        ),
        field(
            3,
            "/ports",
            json!([[], null, [{"name": "a"}, {"name": "a"}], [{"port": 80}, {"port": 81}], [{"name": "a", "port": 80}, {"name": "b", "port": 0}]]),
        ),
        field(3, "/ports/0/name", json!(["", "http", "Bad_Name", "a.b", null, name_of_63() + "x"])),
        field(2, "/ports/0/port", json!([0, -1, 65536, 80, null, "80"])),
        field(2, "/ports/0/protocol", json!(["TCP", "UDP", "SCTP", "Bogus", "", null])),
        field(2, "/ports/0/appProtocol", json!(["http", "bad value", "", "a/b/c"])),
        field(1, "/ports/0/bogus", json!([1])),
    ]
}

pub fn endpoints(dice: &mut Dice, name: &str) -> Value {
    let addresses: Vec<Value> =
        (1..=1 + dice.below(3)).map(|n| json!({"ip": format!("10.244.0.{n}")})).collect();
    let mut subset = json!({"addresses": addresses, "ports": [{"port": 80}]});
    if dice.percent(30) {
        subset["notReadyAddresses"] = json!([{"ip": "10.244.1.1"}]);
    }
    json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": name}, "subsets": [subset]})
}

pub fn endpoints_fields() -> Fields {
    vec![
        field(
            3,
            "/subsets",
            json!([[], null, [{}], [{"ports": [{"port": 80}]}], [{"addresses": [{"ip": "10.244.0.5"}]}],
            [{"addresses": [{"ip": "10.244.0.5"}], "ports": [{"port": 80}]}, {"addresses": [{"ip": "10.244.0.6"}], "ports": [{"port": 80}]}],
            [{"addresses": [{"ip": "10.244.0.9"}, {"ip": "10.244.0.2"}, {"ip": "10.244.0.9"}], "ports": [{"name": "b", "port": 81}, {"name": "a", "port": 80}]}],
            [{"addresses": [{"ip": "10.244.0.5"}], "notReadyAddresses": [{"ip": "10.244.0.5"}], "ports": [{"port": 80}]}]]),
        ),
        field(
            4,
            "/subsets/0/addresses/0/ip",
            json!([
                "10.244.0.9",
                "bogus",
                "",
                "127.0.0.1",
                "0.0.0.0",
                "169.254.0.1",
                "224.0.0.1",
                "::1",
                "fd00::1",
                "010.1.1.1",
                "FD00::1",
                "fe80::1"
            ]),
        ),
        field(2, "/subsets/0/addresses/0/hostname", json!(["web-0", "Bad_Host", ""])),
        field(2, "/subsets/0/addresses/0/nodeName", json!(["n1", "Bad_Node", ""])),
        field(1, "/subsets/0/addresses/0/targetRef", json!([{"kind": "Pod", "name": "x"}])),
        field(
            3,
            "/subsets/0/ports",
            json!([[], [{"port": 80}, {"port": 81}], [{"name": "a", "port": 80}, {"name": "a", "port": 81}], null]),
        ),
        field(3, "/subsets/0/ports/0/port", json!([0, -1, 65536, 80])),
        field(2, "/subsets/0/ports/0/name", json!(["", "http", "Bad_Name"])),
        field(2, "/subsets/0/ports/0/protocol", json!(["TCP", "UDP", "Bogus", "", null])),
        field(2, "/subsets/0/ports/0/appProtocol", json!(["http", "bad value", ""])),
        field(1, "/metadata/annotations", json!([{"endpoints.kubernetes.io/over-capacity": "truncated"}])),
    ]
}

pub fn namespace(dice: &mut Dice, name: &str) -> Value {
    let mut namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    if dice.percent(30) {
        namespace["metadata"]["labels"] = json!({"team": "a"});
    }
    namespace
}

pub fn namespace_fields() -> Fields {
    vec![
        field(
            3,
            "/spec/finalizers",
            json!([["kubernetes"], [], ["example.com/hold"], ["bad"], null, ["bad name/x"]]),
        ),
        field(2, "/metadata/labels/kubernetes.io~1metadata.name", json!(["other", "", null])),
        field(1, "/status/phase", json!(["Terminating", "Active", "Bogus"])),
        field(1, "/spec/bogus", json!([1])),
    ]
}

pub fn namespace_status_fields() -> Fields {
    vec![
        field(2, "/status/phase", json!(["Active", "Bogus", "", "Terminating"])),
        field(
            2,
            "/status/conditions",
            json!([[{"type": "X", "status": "True"}], [{"type": "", "status": "Maybe"}], [{"type": "X", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z", "reason": "r", "message": "m"}]]),
        ),
        field(1, "/spec/finalizers", json!([[], ["example.com/hold"]])),
    ]
}

pub fn node(dice: &mut Dice, name: &str) -> Value {
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    if dice.percent(50) {
        node["spec"] = json!({"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]});
    }
    if dice.percent(50) {
        node["status"] = json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "capacity": {"cpu": "4", "memory": "8Gi"}});
    }
    node
}

pub fn node_fields() -> Fields {
    vec![
        field(3, "/spec/podCIDR", json!(["10.244.2.0/24", "", "bogus", "10.244.1.0/24", "fd00::/64"])),
        field(
            3,
            "/spec/podCIDRs",
            json!([
                ["10.244.2.0/24"],
                ["10.244.1.0/24", "fd00::/64"],
                ["10.244.1.0/24", "10.244.3.0/24"],
                ["bogus"],
                [],
                ["10.244.1.0/24", "fd00::/64", "fd01::/64"]
            ]),
        ),
        field(
            3,
            "/spec/taints",
            json!([[{"key": "a", "effect": "NoSchedule"}], [{"key": "a", "effect": "Bogus"}], [{"key": "bad key!", "effect": "NoSchedule"}], [{"key": "a"}],
            [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "value": "b", "effect": "NoSchedule"}], [{"key": "a", "value": "bad value!", "effect": "NoExecute"}], []]),
        ),
        field(2, "/spec/unschedulable", json!([true, false, "x"])),
        field(2, "/spec/providerID", json!(["a://1", "a://2", ""])),
        field(1, "/spec/externalID", json!(["x"])),
        field(1, "/spec/configSource", json!([{"configMap": {}}])),
        field(
            2,
            "/status/capacity",
            json!([{"cpu": "bogus"}, {"cpu": "-1"}, {"cpu": "1.5"}, {"memory": "1000Mi"}, {"bad name!": "1"}, {"example.com/gpu": "1"}, {"cpu": "1000m"}]),
        ),
        field(1, "/metadata/annotations/scheduler.alpha.kubernetes.io~1preferAvoidPods", json!(["x"])),
    ]
}

pub fn node_status_fields() -> Fields {
    vec![
        field(
            3,
            "/status/addresses",
            json!([[{"type": "InternalIP", "address": "192.0.2.1"}], [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "192.0.2.1"}], [{"type": "Bogus", "address": ""}], [{}]]),
        ),
        field(
            3,
            "/status/conditions",
            json!([[{"type": "Ready", "status": "True"}], [{"type": "Ready", "status": "Maybe"}], [{"status": "True"}], [{"type": "Ready", "status": "True"}, {"type": "Ready", "status": "False"}]]),
        ),
        field(
            3,
            "/status/capacity",
            json!([{"cpu": "2"}, {"cpu": "bogus"}, {"cpu": "-1"}, {"bad name!": "1"}, {"cpu": "0.5", "memory": "1Ki"}, {"example.com/gpu": "1.5"}, null]),
        ),
        field(2, "/status/allocatable", json!([{"cpu": "1"}, {"cpu": "-1"}])),
        field(
            1,
            "/status/nodeInfo",
            json!([{"kubeletVersion": "v1.36.0", "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "", "containerRuntimeVersion": "", "kubeProxyVersion": "", "operatingSystem": "", "architecture": ""}]),
        ),
        field(
            1,
            "/status/daemonEndpoints",
            json!([{"kubeletEndpoint": {"Port": 10250}}, {"kubeletEndpoint": {"Port": 0}}]),
        ),
        field(1, "/spec/unschedulable", json!([true])),
        field(1, "/metadata/labels", json!([{"a": "b"}, {"bad key!": "x"}])),
    ]
}

pub fn configmap(dice: &mut Dice, name: &str) -> Value {
    let mut map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": "value"}});
    if dice.percent(20) {
        map["binaryData"] = json!({"bin": "AAEC"});
    }
    if dice.percent(15) {
        map["immutable"] = true.into();
    }
    map
}

pub fn configmap_fields() -> Fields {
    vec![
        field(
            4,
            "/data",
            json!([{"a": "b"}, {"bad key!": "x"}, {"a": 1}, {}, null, {"": "x"}, {".": "x"}, {"..": "x"}, {"..a": "x"}, {"a": null}, {"bin": "x"}, "x", {"key": "other"}]),
        ),
        field(
            3,
            "/binaryData",
            json!([{"bin": "AAEC"}, {"bin": "not base64!"}, {"key": "AAEC"}, {"bad key!": "AAEC"}, {"bin": ""}, {}, {"bin": "AAE"}]),
        ),
        field(3, "/immutable", json!([true, false, null, "x"])),
        field(1, "/data/..~1x", json!(["y"])),
    ]
}

pub fn secret(dice: &mut Dice, name: &str) -> Value {
    let mut secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": {"key": "dmFsdWU="}});
    match dice.below(6) {
        0 => {
            secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/basic-auth", "stringData": {"username": "a", "password": "b"}})
        }
        1 => secret["stringData"] = json!({"key": "text"}),
        2 => secret["immutable"] = true.into(),
        3 => secret["type"] = "example.com/own".into(),
        _ => {}
    }
    secret
}

pub fn secret_fields() -> Fields {
    vec![
        field(
            3,
            "/data",
            json!([{"a": "Yg=="}, {"bad key!": "Yg=="}, {"a": "not base64!"}, {}, null, {"a": ""}, {"a": 1}, {"a": null}, {"username": "YQ=="}, {"tls.crt": "YQ==", "tls.key": "YQ=="}, {".dockerconfigjson": "e30="}]),
        ),
        field(2, "/stringData", json!([{"a": "b"}, {"bad key!": "b"}, {}, null, {"key": ""}, {"a": 1}])),
        field(
            4,
            "/type",
            json!([
                "Opaque",
                "",
                "kubernetes.io/tls",
                "kubernetes.io/basic-auth",
                "kubernetes.io/ssh-auth",
                "kubernetes.io/dockercfg",
                "kubernetes.io/dockerconfigjson",
                "kubernetes.io/service-account-token",
                "bootstrap.kubernetes.io/token",
                "example.com/x"
            ]),
        ),
        field(2, "/immutable", json!([true, false, null])),
    ]
}

pub fn account(_: &mut Dice, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
}

pub fn account_fields() -> Fields {
    vec![
        field(
            3,
            "/secrets",
            json!([[{"name": "x"}], [{"name": "x"}, {"name": "x"}], [{}], [{"name": ""}], []]),
        ),
        field(2, "/imagePullSecrets", json!([[{"name": "x"}], [{}], [{"name": "Bad_Name"}]])),
        field(2, "/automountServiceAccountToken", json!([true, false, "x", null])),
    ]
}

pub fn lease(_: &mut Dice, name: &str) -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
        "spec": {"holderIdentity": "a", "leaseDurationSeconds": 40, "renewTime": "2024-01-01T00:00:00.000000Z"}})
}

pub fn lease_fields() -> Fields {
    vec![
        field(3, "/spec/leaseDurationSeconds", json!([0, -1, 40, null, "x", 2147483648_u64])),
        field(2, "/spec/leaseTransitions", json!([0, -1, 3])),
        field(2, "/spec/holderIdentity", json!(["", "b", null])),
        field(
            2,
            "/spec/renewTime",
            json!([
                "2024-01-01T00:00:00Z",
                "2024-01-01T00:00:00.123456789Z",
                "bogus",
                null,
                "2024-01-01T02:00:00.5+02:00"
            ]),
        ),
        field(2, "/spec/acquireTime", json!(["2024-01-01T00:00:00.000000Z", ""])),
        field(2, "/spec/strategy", json!(["OldestEmulationVersion", "bad strategy!", "", "example.com/x"])),
        field(1, "/spec/preferredHolder", json!(["a", ""])),
        field(1, "/spec", json!([null, {}])),
    ]
}

pub fn event(dice: &mut Dice, name: &str) -> Value {
    let mut event = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name},
        "involvedObject": {"kind": "Pod", "name": "x", "namespace": "one"}, "reason": "Started", "message": "hello", "type": "Normal",
        "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": "2024-01-01T00:00:00Z", "count": 1, "source": {"component": "t"}});
    if dice.percent(30) {
        event["involvedObject"] = json!({"kind": "Node", "name": "n1"});
        event["metadata"]["namespace"] = "one".into();
    }
    event
}

pub fn event_fields() -> Fields {
    vec![
        field(
            4,
            "/involvedObject",
            json!([{"kind": "Pod", "name": "x", "namespace": "two"}, {"kind": "Pod", "name": "x"}, {"kind": "Node", "name": "n1", "namespace": "one"}, {}, {"kind": "Bogus", "apiVersion": "v9", "name": "x", "namespace": "one"}]),
        ),
        field(2, "/type", json!(["Warning", "Bogus", ""])),
        field(2, "/reason", json!(["", "r".repeat(200), "Other"])),
        field(2, "/message", json!(["", "m".repeat(2000)])),
        field(2, "/count", json!([0, -1, 5, "x"])),
        field(3, "/eventTime", json!(["2024-01-01T00:00:00.000000Z", null, "bogus"])),
        field(2, "/reportingComponent", json!(["example.com/x", "Bad Component!", ""])),
        field(2, "/reportingInstance", json!(["x", ""])),
        field(2, "/action", json!(["Do", ""])),
        field(1, "/series", json!([{"count": 2, "lastObservedTime": "2024-01-01T00:00:00.000000Z"}, {}])),
        field(1, "/lastTimestamp", json!([null, "bogus"])),
        field(1, "/source", json!([null, {}])),
    ]
}
