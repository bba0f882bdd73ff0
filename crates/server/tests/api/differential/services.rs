//! Services: valid ones, and values for their fields that may be valid or not.

use serde_json::{Value, json};

use super::dice::Dice;
use super::kinds::{Fields, field, name_of_63};

/// A valid Service.
pub fn draw(dice: &mut Dice, name: &str) -> Value {
    let mut ports = vec![json!({"name": "web", "port": 80})];
    if dice.percent(30) {
        ports.push(json!({"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"}));
    }
    if dice.percent(15) {
        ports.push(json!({"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": "dns"}));
    }
    if ports.len() == 1 && dice.percent(50) {
        ports = vec![json!({"port": dice.pick(&[80, 443, 8080])})];
    }
    let mut spec = json!({"ports": ports});
    if dice.percent(80) {
        spec["selector"] = json!({"app": name});
    }
    match dice.weigh(&[
        (35, "ClusterIP"),
        (15, "None"),
        (18, "NodePort"),
        (24, "LoadBalancer"),
        (8, "ExternalName"),
    ]) {
        "None" => spec["clusterIP"] = "None".into(),
        "ExternalName" => {
            spec["type"] = "ExternalName".into();
            spec["externalName"] = "db.example.com".into();
            if dice.percent(50) {
                spec.as_object_mut().expect("an object").shift_remove("ports");
            }
        }
        kind => {
            if kind != "ClusterIP" || dice.percent(30) {
                spec["type"] = kind.into();
            }
            if kind == "LoadBalancer" && dice.percent(50) {
                spec["externalTrafficPolicy"] = "Local".into();
            }
            if dice.percent(35) {
                spec["ipFamilyPolicy"] =
                    dice.pick(&["PreferDualStack", "RequireDualStack", "SingleStack"]).into();
            }
            if dice.percent(10) {
                spec["sessionAffinity"] = "ClientIP".into();
            }
            if dice.percent(10) {
                spec["clusterIP"] = format!("10.96.0.{}", 20 + dice.below(30)).into();
            }
        }
    }
    let mut service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    if dice.percent(30) {
        service["metadata"]["labels"] = json!({"app": dice.pick(&["web", "db"]), "tier": "front"});
    }
    if dice.percent(6) {
        service["metadata"]["finalizers"] = json!(["example.com/hold"]);
    }
    if dice.percent(10) {
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    }
    service
}

fn port(name: &str, port: i64) -> Value {
    json!({"name": name, "port": port})
}

/// Values for the fields of the main resource.
pub fn fields() -> Fields {
    vec![
        field(
            9,
            "/spec/type",
            json!([
                "ClusterIP",
                "NodePort",
                "LoadBalancer",
                "ExternalName",
                "NodePort",
                "LoadBalancer",
                "Bogus",
                ""
            ]),
        ),
        field(
            6,
            "/spec/clusterIP",
            json!([
                "None",
                "",
                "10.96.0.20",
                "10.96.0.21",
                "10.96.0.22",
                "10.97.0.1",
                "fd00:96::20",
                "bogus",
                "10.96.0.0",
                "10.96.255.255",
                "10.096.0.20",
                "::ffff:10.96.0.9",
                "10.96.0.1",
                "FD00:96::21",
                "10.96.0.10 "
            ]),
        ),
        field(
            7,
            "/spec/clusterIPs",
            json!([
                ["None"],
                [],
                ["10.96.0.20"],
                ["10.96.0.22", "fd00:96::22"],
                ["fd00:96::23", "10.96.0.23"],
                ["10.96.0.20", "10.96.0.21"],
                ["None", "10.96.0.20"],
                ["10.96.0.20", "fd00:96::22", "10.96.0.24"],
                ["bogus"],
                ["10.97.0.1"],
                ["10.96.0.25", "fd01::1"],
                ["10.96.0.26", "None"],
                [""],
                ["10.96.0.27", ""]
            ]),
        ),
        field(
            7,
            "/spec/ipFamilies",
            json!([
                ["IPv4"],
                ["IPv6"],
                ["IPv4", "IPv6"],
                ["IPv6", "IPv4"],
                ["IPv4", "IPv4"],
                ["IPv5"],
                [],
                ["IPv4", "IPv6", "IPv4"],
                ["IPv6", "IPv6"]
            ]),
        ),
        field(
            7,
            "/spec/ipFamilyPolicy",
            json!([
                "SingleStack",
                "PreferDualStack",
                "RequireDualStack",
                "SingleStack",
                "RequireDualStack",
                "Bogus",
                ""
            ]),
        ),
        field(
            5,
            "/spec/ports",
            json!([[], [{"port": 80}], [port("a", 80), {"name": "b", "port": 81, "protocol": "UDP"}], [{"port": 80}, {"port": 81}],
            [port("a", 80), port("a", 81)], [port("a", 80), port("b", 80)], [{"name": "a", "port": 53, "nodePort": 30011}, {"name": "b", "port": 53, "protocol": "UDP", "nodePort": 30011}],
            [{"name": "a", "port": 53, "nodePort": 30012}, {"name": "b", "port": 54, "nodePort": 30012}], [{"name": "a", "port": 53}, {"name": "b", "port": 53, "protocol": "UDP"}], null]),
        ),
        field(3, "/spec/ports/0/port", json!([80, 0, -1, 65535, 65536, 443, "80", 80.5])),
        field(3, "/spec/ports/0/protocol", json!(["TCP", "UDP", "SCTP", "HTTP", "tcp", ""])),
        field(
            3,
            "/spec/ports/0/targetPort",
            json!([
                8080,
                "http",
                0,
                "",
                70000,
                "a_b",
                "UPPER",
                "1234",
                -1,
                "toolongportname-abc",
                "a--b",
                "-a"
            ]),
        ),
        field(3, "/spec/ports/0/name", json!(["http", "", "Bad_Name", "a.b", name_of_63() + "x", "dns"])),
        field(
            2,
            "/spec/ports/0/appProtocol",
            json!([
                "kubernetes.io/h2c",
                "bad value",
                "a/b/c",
                "",
                "http",
                "/x",
                "mycompany.com/my-custom-protocol"
            ]),
        ),
        field(
            5,
            "/spec/ports/0/nodePort",
            json!([30001, 30002, 30003, 30004, 30005, 30006, 0, 99, 40000, -1, 30011]),
        ),
        field(
            3,
            "/spec/ports/1",
            json!([port("x", 81), {"name": "x", "port": 81, "nodePort": 30007}, {"port": 81}, {"name": "web", "port": 82}, {"name": "y", "port": 80}, {"name": "y", "port": 80, "protocol": "SCTP"}]),
        ),
        field(
            2,
            "/spec/selector",
            json!([{}, {"a": "b"}, {"bad key!": "x"}, {"a": "bad value!"}, null, {"": "x"}, {"a/b/c": "x"}]),
        ),
        field(
            5,
            "/spec/externalIPs",
            json!([
                ["203.0.113.1"],
                ["127.0.0.1"],
                ["0.0.0.0"],
                ["169.254.1.1"],
                ["224.0.0.1"],
                ["bogus"],
                ["2001:db8::1"],
                ["010.1.1.1"],
                [],
                ["fe80::1"],
                ["::1"],
                ["::"],
                ["ff02::1"],
                ["203.0.113.1", "203.0.113.1"],
                ["::ffff:1.2.3.4"],
                [""]
            ]),
        ),
        field(3, "/spec/sessionAffinity", json!(["None", "ClientIP", "Bogus", ""])),
        field(
            3,
            "/spec/sessionAffinityConfig",
            json!([{"clientIP": {"timeoutSeconds": 0}}, {}, {"clientIP": {}}, {"clientIP": {"timeoutSeconds": 86400}},
            {"clientIP": {"timeoutSeconds": 86401}}, {"clientIP": {"timeoutSeconds": -1}}, {"clientIP": {"timeoutSeconds": 10}}, null]),
        ),
        field(2, "/spec/loadBalancerIP", json!(["192.0.2.1", "bogus", "010.0.0.1", ""])),
        field(
            4,
            "/spec/loadBalancerSourceRanges",
            json!([
                ["10.0.0.0/8"],
                [" 10.0.0.0/8 "],
                ["10.0.0.1/8"],
                ["bogus"],
                ["10.0.0.0/33"],
                ["2001:db8::/32"],
                [],
                ["10.0.0.0/08"],
                ["10.0.0.0"],
                [""],
                ["::ffff:1.2.3.0/120"],
                ["10.0.0.0/8", "bogus"]
            ]),
        ),
        field(
            2,
            "/metadata/annotations/service.beta.kubernetes.io~1load-balancer-source-ranges",
            json!(["10.0.0.0/8, 192.168.0.0/16", "bogus", "", " ", "10.0.0.0/8"]),
        ),
        field(
            3,
            "/spec/externalName",
            json!(["example.com", "example.com.", "Bad_Name", "EXAMPLE.com", "1.2.3.4", "", "a..b", "."]),
        ),
        field(5, "/spec/externalTrafficPolicy", json!(["Cluster", "Local", "Local", "Bogus", ""])),
        field(3, "/spec/internalTrafficPolicy", json!(["Cluster", "Local", "Bogus", ""])),
        field(5, "/spec/healthCheckNodePort", json!([30020, 30021, 30022, 0, 99, -1, 40000, 30001])),
        field(1, "/spec/publishNotReadyAddresses", json!([true, false, "yes"])),
        field(2, "/spec/allocateLoadBalancerNodePorts", json!([true, false, null, "x"])),
        field(
            4,
            "/spec/loadBalancerClass",
            json!(["example.com/x", "bad class", "", "internal-vip", "example.com/y", null]),
        ),
        field(
            3,
            "/spec/trafficDistribution",
            json!(["PreferClose", "PreferSameZone", "PreferSameNode", "Bogus", ""]),
        ),
        field(
            3,
            "/metadata/annotations",
            json!([{"service.kubernetes.io/topology-mode": "Auto"}, {"service.kubernetes.io/topology-aware-hints": "auto"},
            {"service.kubernetes.io/topology-mode": "Auto", "service.kubernetes.io/topology-aware-hints": "Disabled"},
            {"service.kubernetes.io/topology-mode": "Auto", "service.kubernetes.io/topology-aware-hints": "Auto"}, {"bad key": "x"}]),
        ),
        field(1, "/spec/bogus", json!([1, null])),
        field(1, "/spec/ports/0/targetport", json!([80])),
        field(1, "/status/loadBalancer/ingress", json!([[{"ip": "192.0.2.1"}]])),
        field(1, "/spec", json!([null, {}, "x", []])),
    ]
}

/// Values for the fields of the status.
pub fn status_fields() -> Fields {
    let condition = json!({"type": "LoadBalancerPortsError", "status": "True", "reason": "Mixed", "message": "",
        "lastTransitionTime": "2024-01-01T00:00:00Z"});
    let with = |key: &str, value: Value| {
        let mut condition = condition.clone();
        condition[key] = value;
        json!([condition])
    };
    vec![
        field(
            8,
            "/status/loadBalancer/ingress",
            json!([[{"ip": "203.0.113.7"}], [{"ip": "203.0.113.7", "ipMode": "VIP"}], [{"ip": "203.0.113.7", "ipMode": "Proxy"}],
            [{"ip": "203.0.113.7", "ipMode": "Bogus"}], [{"hostname": "lb.example.com"}], [{"hostname": "1.2.3.4"}], [{"hostname": "Bad_Host"}],
            [{"hostname": "lb.example.com", "ipMode": "VIP"}], [{"ip": "bogus"}], [{"ip": "010.1.1.1"}], [{}], [],
            [{"ip": "203.0.113.7", "ports": [{"port": 80, "protocol": "TCP"}]}], [{"ip": "203.0.113.7", "ports": [{"port": 0, "protocol": "X"}]}],
            [{"ip": "203.0.113.7", "ports": [{"port": 80, "protocol": "TCP", "error": "bad error"}]}],
            [{"ip": "203.0.113.7", "ports": [{"port": 80, "protocol": "TCP", "error": "example.com/Reason"}]}], [{"ip": "127.0.0.1"}], [{"ip": "2001:DB8::1"}]]),
        ),
        field(
            5,
            "/status/conditions",
            json!([
                [condition.clone()],
                with("type", "".into()),
                with("status", "Maybe".into()),
                with("reason", "".into()),
                with("reason", "bad reason".into()),
                with("lastTransitionTime", Value::Null),
                with("observedGeneration", (-1).into()),
                with("type", "bad type!".into()),
                [condition.clone(), condition]
            ]),
        ),
        field(1, "/status", json!([null, {}, {"bogus": 1}])),
        field(1, "/spec/type", json!(["NodePort", "Bogus"])),
        field(1, "/metadata/labels", json!([{"a": "b"}, {"bad key!": "x"}, null])),
        field(1, "/metadata/annotations", json!([{"a": "b"}])),
        field(1, "/metadata/finalizers", json!([["example.com/hold"], ["bad"], null])),
    ]
}
