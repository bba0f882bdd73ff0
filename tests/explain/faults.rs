//! The corpus: faults as users make them, each with the cause that must be named first.

use serde_json::{Value, json};

use super::{Ask, Fault, Step};

/// The container that all begin with.
fn container() -> Value {
    json!({"name": "web", "image": "echo", "ports": [
        {"name": "http", "containerPort": 80}, {"name": "datagram", "containerPort": 80, "protocol": "UDP"}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 1}})
}

/// Two pods, with these fields laid over their spec.
fn deployment(replicas: u32, over: Value) -> Value {
    let mut spec = json!({"containers": [container()]});
    for (key, value) in over.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": spec}}})
}

/// A deployment whose container has these fields instead.
fn with_container(over: Value) -> Value {
    let mut container = container();
    for (key, value) in over.as_object().into_iter().flatten() {
        container[key] = value.clone();
    }
    deployment(1, json!({"containers": [container]}))
}

/// A Service of this type, with these fields laid over its spec.
fn service(name: &str, type_: &str, over: Value) -> Value {
    let mut spec = json!({"type": type_, "ipFamilyPolicy": "PreferDualStack", "selector": {"app": "web"}, "ports": [
        {"name": "http", "port": 80, "targetPort": "http"},
        {"name": "datagram", "port": 80, "protocol": "UDP", "targetPort": "datagram"}]});
    for (key, value) in over.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn web() -> Vec<Value> {
    vec![deployment(2, json!({})), service("web", "NodePort", json!({}))]
}

/// Pods on one node only.
fn on(node: &str) -> Value {
    json!({"nodeSelector": {"kubernetes.io/hostname": node}})
}

fn ask(of: &str) -> Ask {
    Ask { on: None, of: of.into() }
}

fn ask_on(node: &'static str, of: &str) -> Ask {
    Ask { on: Some(node), of: of.into() }
}

/// A change of the Service `web` that makes the fault, and the one that heals it.
fn changed(name: &'static str, reason: &'static str, says: &'static str, bad: Value, good: Value) -> Fault {
    let patch = |spec| vec![Step::Patch("Service", "web", json!({ "spec": spec }))];
    Fault {
        name,
        reason,
        says,
        given: web(),
        inject: patch(bad),
        ask: ask("service/web"),
        heal: patch(good),
        then: None,
    }
}

/// Pods that never were as they should, until their container or their spec is put right.
fn born(name: &'static str, reason: &'static str, says: &'static str, bad: Value) -> Fault {
    let good = deployment(1, json!({}));
    Fault {
        name,
        reason,
        says,
        given: vec![bad, service("web", "NodePort", json!({}))],
        inject: vec![],
        ask: ask("service/web"),
        heal: vec![
            Step::Delete("Deployment", "web"),
            Step::Create({
                // A merge would keep what was wrong: another Deployment takes the place.
                let mut other = good;
                other["metadata"]["name"] = json!("web-again");
                other["spec"]["selector"]["matchLabels"] = json!({"app": "web", "again": "yes"});
                other["spec"]["template"]["metadata"]["labels"] = json!({"app": "web", "again": "yes"});
                other
            }),
        ],
        then: None,
    }
}

/// A question that is the fault itself, and the one that was meant.
fn asked(name: &'static str, reason: &'static str, says: &'static str, wrong: &str, right: &str) -> Fault {
    Fault {
        name,
        reason,
        says,
        given: web(),
        inject: vec![],
        ask: ask(wrong),
        heal: vec![],
        then: Some(ask(right)),
    }
}

fn slice(port: &str, ready: bool) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "bare-1", "labels": {"kubernetes.io/service-name": "bare"}},
        "ports": [{"name": port, "port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.80.0.100"], "conditions": {"ready": ready}}]})
}

fn bare() -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bare"},
        "spec": {"ports": [{"name": "http", "port": 80}]}})
}

/// Faults that need nothing but their own namespace.
pub fn of_objects() -> Vec<Fault> {
    let both = |http: Value| json!({"ports": [http, {"name": "datagram", "port": 80, "protocol": "UDP", "targetPort": "datagram"}]});
    let good_ports = || both(json!({"name": "http", "port": 80, "targetPort": "http"}));
    let mut faults = vec![
        Fault {
            inject: vec![Step::Delete("Service", "web")],
            heal: vec![Step::Create(service("web", "NodePort", json!({})))],
            ..changed("gone", "NoSuchService", "no Service of this name", json!({}), json!({}))
        },
        asked("misspelt", "NoSuchService", "there is web", "service/wev", "service/web"),
        asked(
            "elsewhere",
            "NoSuchService",
            "namespace elsewhere has one",
            "service/default/web",
            "service/elsewhere/web",
        ),
        changed(
            "selector-typo",
            "SelectorMatchesNothing",
            "2 pods have app=web",
            json!({"selector": {"app": "wbe"}}),
            json!({"selector": {"app": "web"}}),
        ),
        changed(
            "selector-more",
            "SelectorMatchesNothing",
            "app=web,tier=front",
            json!({"selector": {"tier": "front"}}),
            json!({"selector": {"tier": null}}),
        ),
        Fault {
            inject: vec![Step::Patch("Deployment", "web", json!({"spec": {"replicas": 0}}))],
            heal: vec![Step::Patch("Deployment", "web", json!({"spec": {"replicas": 1}}))],
            ..changed("scaled-to-zero", "ScaledToZero", "0 replicas", json!({}), json!({}))
        },
        changed(
            "target-name",
            "TargetPortMissing",
            "http (80/TCP)",
            both(json!({"name": "http", "port": 80, "targetPort": "htpp"})),
            good_ports(),
        ),
        changed(
            "target-protocol",
            "TargetPortMissing",
            "is a UDP port",
            both(json!({"name": "http", "port": 80, "targetPort": "datagram"})),
            good_ports(),
        ),
        Fault {
            ask: ask_on("node-1", "service/web --probe"),
            ..changed(
                "target-number",
                "BackendRefuses",
                "no container declares port 8081",
                both(json!({"name": "http", "port": 80, "targetPort": 8081})),
                good_ports(),
            )
        },
        Fault {
            ask: ask("--from node:node-1 --to service/web --port 80"),
            ..changed(
                "port-moved",
                "UndefinedPort",
                "no port 80",
                json!({"ports": [{"name": "http", "port": 8080, "targetPort": "http"}]}),
                good_ports(),
            )
        },
        Fault {
            ask: ask("--from node:node-1 --to service/web --port 80"),
            ..changed(
                "protocol",
                "ProtocolMismatch",
                "is UDP",
                json!({"ports": [{"name": "datagram", "port": 80, "protocol": "UDP", "targetPort": "datagram"}]}),
                good_ports(),
            )
        },
        Fault {
            ask: ask("--from outside --to service/web --port 80"),
            ..changed(
                "cluster-ip-outside",
                "ClusterIpFromOutside",
                "inside of the cluster only",
                json!({"type": "ClusterIP"}),
                json!({"type": "NodePort"}),
            )
        },
        asked(
            "node-port-inside",
            "NodePortAtService",
            "here the port is 80",
            "--from node:node-1 --to {clusterip} --port {nodeport}",
            "--from node:node-1 --to {clusterip} --port 80",
        ),
        asked(
            "port-at-node",
            "ServicePortAtNode",
            "its node port",
            "--from outside --to node:node-2 --port 80",
            "--from outside --to node:node-2 --port {nodeport}",
        ),
        asked(
            "nobodys",
            "NobodysAddress",
            "no Service has it",
            "--from node:node-1 --to 10.96.255.77:80",
            "--from node:node-1 --to service/web --port 80",
        ),
        asked(
            "udp-at-node",
            "NobodysAddress",
            "node port",
            "--from outside --to node:node-2 --port 29999",
            "--from outside --to node:node-2 --port {nodeport}",
        ),
        Fault {
            given: vec![
                deployment(1, json!({})),
                service("web", "ClusterIP", json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]})),
            ],
            inject: vec![],
            ask: ask("--from node:node-1 --to service/web --port 80 --family ipv6"),
            heal: vec![Step::Patch(
                "Service",
                "web",
                json!({"spec": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"]}}),
            )],
            ..changed("single-stack", "WrongFamily", "IPv6", json!({}), json!({}))
        },
        Fault {
            given: vec![
                deployment(1, json!({})),
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
                "spec": {"type": "ExternalName", "externalName": "example.org"}}),
            ],
            inject: vec![],
            heal: vec![Step::Delete("Service", "web"), Step::Create(service("web", "ClusterIP", json!({})))],
            ..changed("alias", "ExternalName", "example.org", json!({}), json!({}))
        },
        Fault {
            given: vec![deployment(1, json!({})), service("web", "ClusterIP", json!({"clusterIP": "None"}))],
            inject: vec![],
            ask: ask("--from node:node-2 --to service/web --port 80"),
            heal: vec![Step::Delete("Service", "web"), Step::Create(service("web", "ClusterIP", json!({})))],
            ..changed("headless", "Headless", "no address", json!({}), json!({}))
        },
        Fault {
            given: vec![deployment(1, on("node-1")), service("web", "ClusterIP", json!({}))],
            ask: ask("--from node:node-2 --to service/web --port 80"),
            ..changed(
                "internal-local",
                "InternalPolicyLocal",
                "node-1 has",
                json!({"internalTrafficPolicy": "Local"}),
                json!({"internalTrafficPolicy": "Cluster"}),
            )
        },
        Fault {
            given: vec![deployment(1, on("node-1")), service("web", "NodePort", json!({}))],
            ask: ask("--from outside --to node:node-2 --port {nodeport}"),
            ..changed(
                "external-local",
                "ExternalPolicyLocal",
                "node-1 has",
                json!({"externalTrafficPolicy": "Local"}),
                json!({"externalTrafficPolicy": "Cluster"}),
            )
        },
        Fault {
            inject: vec![Step::Patch(
                "Service",
                "web",
                json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}}}),
            )],
            heal: vec![Step::Patch(
                "Service",
                "web",
                json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": null}}}),
            )],
            ..changed("other-proxy", "OtherProxy", "other", json!({}), json!({}))
        },
        changed(
            "external-ip-inside",
            "AddressRefused",
            "range of cluster IPs",
            json!({"externalIPs": ["10.96.0.200"]}),
            json!({"externalIPs": null}),
        ),
        Fault {
            given: vec![
                deployment(1, json!({})),
                service("web", "ClusterIP", json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]})),
            ],
            ..changed(
                "external-ip-family",
                "AddressRefused",
                "198.51.100.9 is IPv4",
                json!({"externalIPs": ["198.51.100.9"]}),
                json!({"externalIPs": null}),
            )
        },
        Fault {
            given: [vec![service("first", "ClusterIP", json!({"externalIPs": ["198.51.100.77"]}))], web()]
                .concat(),
            ..changed(
                "external-ip-taken",
                "FrontendClash",
                "belongs to service external-ip-taken/first",
                json!({"externalIPs": ["198.51.100.77"]}),
                json!({"externalIPs": null}),
            )
        },
        Fault {
            given: vec![deployment(1, json!({})), bare()],
            inject: vec![],
            ask: ask("service/bare"),
            heal: vec![Step::Create(slice("http", true))],
            ..changed("no-selector", "NoSelector", "no selector", json!({}), json!({}))
        },
        Fault {
            given: vec![bare(), slice("https", true)],
            inject: vec![],
            ask: ask("service/bare"),
            heal: vec![Step::Patch(
                "EndpointSlice",
                "bare-1",
                json!({"ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}),
            )],
            ..changed("slice-port", "SlicePortsDiffer", "\"https\"", json!({}), json!({}))
        },
        Fault {
            given: vec![bare(), slice("http", false)],
            inject: vec![],
            ask: ask("service/bare"),
            heal: vec![Step::Patch(
                "EndpointSlice",
                "bare-1",
                json!({"endpoints": [{"addresses": ["10.80.0.100"], "conditions": {"ready": true}}]}),
            )],
            ..changed("slice-unready", "SlicesNotReady", "no endpoint is ready", json!({}), json!({}))
        },
        Fault {
            given: vec![service("web", "ClusterIP", json!({}))],
            inject: vec![],
            heal: vec![Step::Create(deployment(1, json!({})))],
            ..changed(
                "no-pods",
                "SelectorMatchesNothing",
                "no pod in namespace no-pods at all",
                json!({}),
                json!({}),
            )
        },
        born("image", "ImageUnavailable", "nosuch", with_container(json!({"image": "nosuch"}))),
        born(
            "crash",
            "CrashLoop",
            "status 1",
            with_container(json!({"image": "host", "command": ["/bin/false"]})),
        ),
        born(
            "exits",
            "CrashLoop",
            "status 0",
            with_container(json!({"image": "host", "command": ["/bin/true"]})),
        ),
        born(
            "no-config",
            "ContainerRefused",
            "settings",
            with_container(json!({"envFrom": [{"configMapRef": {"name": "settings"}}]})),
        ),
        born(
            "probe",
            "ProbeFails",
            "Readiness probe failed",
            with_container(json!({"readinessProbe": {"tcpSocket": {"port": 81}, "periodSeconds": 1}})),
        ),
        born(
            "startup-probe",
            "ProbeFails",
            "startup probe",
            with_container(
                json!({"startupProbe": {"tcpSocket": {"port": 81}, "periodSeconds": 1, "failureThreshold": 1000}}),
            ),
        ),
        born(
            "unschedulable",
            "NotScheduled",
            "node",
            deployment(1, json!({"nodeSelector": {"disk": "ssd"}})),
        ),
        born("pinned", "NotScheduled", "node", deployment(1, on("node-9"))),
        born(
            "gate",
            "ReadinessGate",
            "example.org/ready",
            deployment(1, json!({"readinessGates": [{"conditionType": "example.org/ready"}]})),
        ),
    ];
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "once", "labels": {"app": "web"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "host", "command": ["/bin/true"]}]}});
    faults.push(Fault {
        given: vec![pod.clone(), service("web", "ClusterIP", json!({}))],
        inject: vec![],
        heal: vec![Step::Create(deployment(1, json!({})))],
        ..changed("ended", "Ended", "Succeeded", json!({}), json!({}))
    });
    pod["metadata"]["finalizers"] = json!(["example.org/hold"]);
    pod["spec"] = json!({"containers": [container()], "terminationGracePeriodSeconds": 1});
    faults.push(Fault {
        given: vec![pod, service("web", "ClusterIP", json!({}))],
        inject: vec![Step::Delete("Pod", "once")],
        heal: vec![
            Step::Patch("Pod", "once", json!({"metadata": {"finalizers": null}})),
            Step::Create(deployment(1, json!({}))),
        ],
        ..changed("terminating", "Terminating", "being deleted", json!({}), json!({}))
    });
    faults
}

/// Faults of load balancers: there is one pool.
pub fn of_the_pool() -> Vec<Fault> {
    let balanced = |over: Value| vec![deployment(1, json!({})), service("web", "LoadBalancer", over)];
    let asks =
        |address: &str| json!({"metadata": {"annotations": {"portolan.dev/load-balancer-ips": address}}});
    let other = |over: Value| service("other", "LoadBalancer", over);
    let four: Vec<Value> =
        (1..=4).map(|i| service(&format!("other-{i}"), "LoadBalancer", json!({}))).collect();
    let foreign = || json!({"loadBalancerClass": "example.org/cloud"});
    let ingress = |mode: &str| {
        json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "203.0.113.5", "ipMode": mode}, {"ip": "2001:db8::5", "ipMode": mode}]}}})
    };
    vec![
        Fault {
            given: balanced(json!({})),
            ask: ask("--from 10.80.0.100 --to service/web --port 80"),
            ..changed(
                "ranges",
                "SourceRanges",
                "10.80.0.100 is in none of 192.0.2.0/24",
                json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]}),
                json!({"loadBalancerSourceRanges": null}),
            )
        },
        Fault {
            given: balanced(json!({})),
            ask: ask("--from fd00:80::100 --to {lb6} --port 80"),
            ..changed(
                "ranges-family",
                "SourceRanges",
                "no IPv6 range",
                json!({"loadBalancerSourceRanges": ["10.80.0.0/24"]}),
                json!({"loadBalancerSourceRanges": null}),
            )
        },
        Fault {
            given: balanced(foreign()),
            inject: vec![],
            heal: vec![
                Step::Delete("Service", "web"),
                Step::Create(service("web", "LoadBalancer", json!({}))),
            ],
            ..changed("class", "LoadBalancerClass", "example.org/cloud", json!({}), json!({}))
        },
        Fault {
            given: balanced(foreign()),
            inject: vec![Step::PatchStatus("Service", "web", ingress("Proxy"))],
            heal: vec![Step::PatchStatus("Service", "web", ingress("VIP"))],
            then: Some(ask("--from node:node-1 --to {clusterip} --port 80")),
            ..changed("proxy", "IpModeProxy", "203.0.113.5", json!({}), json!({}))
        },
        Fault {
            given: [four, balanced(json!({}))].concat(),
            inject: vec![],
            heal: vec![Step::Delete("Service", "other-1")],
            ..changed("exhausted", "PoolExhausted", "addresses of the pool are in use", json!({}), json!({}))
        },
        Fault {
            given: balanced(json!({})),
            inject: vec![Step::Patch("Service", "web", asks("10.80.0.99"))],
            heal: vec![Step::Patch("Service", "web", json!({"metadata": {"annotations": null}}))],
            ..changed(
                "not-in-pool",
                "AddressOutsidePool",
                "10.80.0.99 is not in the pool",
                json!({}),
                json!({}),
            )
        },
        Fault {
            given: [vec![other(json!({"loadBalancerIP": "10.80.0.203"}))], balanced(json!({}))].concat(),
            inject: vec![Step::Patch("Service", "web", json!({"spec": {"loadBalancerIP": "10.80.0.203"}}))],
            heal: vec![Step::Patch("Service", "web", json!({"spec": {"loadBalancerIP": null}}))],
            ..changed("taken", "AddressTaken", "service taken/other's", json!({}), json!({}))
        },
    ]
}

/// Faults in the kernel of a node, or of its agent.
pub fn of_the_kernel() -> Vec<Fault> {
    let run = |command: &str| vec![Step::Run("node-1", command.to_owned())];
    let here = || ask_on("node-1", "service/web");
    let fault = |name, reason, says, inject, heal| Fault {
        inject,
        heal,
        ask: here(),
        ..changed(name, reason, says, json!({}), json!({}))
    };
    let chain = |rules: &str| {
        format!(
            "nft 'table inet wall {{ chain way {{ type filter hook forward priority 5; policy accept; {rules} }}; }}'"
        )
    };
    vec![
        fault(
            "forward-v4",
            "ForwardingOff",
            "IPv4",
            run("sysctl -qw net.ipv4.ip_forward=0"),
            run("sysctl -qw net.ipv4.ip_forward=1"),
        ),
        fault(
            "forward-v6",
            "ForwardingOff",
            "IPv6",
            run("sysctl -qw net.ipv6.conf.all.forwarding=0"),
            run("sysctl -qw net.ipv6.conf.all.forwarding=1"),
        ),
        fault(
            "route",
            "RouteMissing",
            "no way to the backend 10.244.",
            run("ip rule add pref 10 to 10.244.0.0/16 unreachable"),
            run("ip rule del pref 10"),
        ),
        fault(
            "wall-port",
            "FirewallDrops",
            "its rule 1 drops it",
            run(&chain("tcp dport 80 drop;")),
            run("nft delete table inet wall"),
        ),
        fault(
            "wall-set",
            "FirewallDrops",
            "its rule 2 drops it",
            run(&chain("iifname \"nosuch\" accept; tcp dport { 80, 443 } drop;")),
            run("nft delete table inet wall"),
        ),
        fault(
            "wall-reject",
            "FirewallDrops",
            "refuses it",
            run(&chain("ct state established accept; ip daddr 10.244.0.0/16 reject;")),
            run("nft delete table inet wall"),
        ),
        fault(
            "wall-policy",
            "FirewallDrops",
            "its policy is drop",
            run(
                "nft 'table inet wall { chain way { type filter hook forward priority 5; policy drop; ct state established accept; }; }'",
            ),
            run("nft delete table inet wall"),
        ),
        fault(
            "wall-early",
            "FirewallDrops",
            "prerouting",
            run(
                "nft 'table ip wall { chain raw { type filter hook prerouting priority -300; ip daddr {clusterip} drop; }; }'",
            ),
            run("nft delete table ip wall"),
        ),
        Fault {
            ask: ask_on("node-1", "service/web --probe"),
            // A place that is not looked at: what the node itself receives.
            ..fault(
                "unknown",
                "Unexplained",
                "nothing that is looked at explains it",
                run(
                    "nft 'table ip odd { chain answers { type filter hook input priority -300; tcp sport 80 ct original daddr {clusterip} drop; }; }'",
                ),
                run("nft delete table ip odd"),
            )
        },
        // An agent at work forgets such a flow with the next change of the Service, or a second after it.
        Fault {
            inject: vec![
                Step::Signal("node-1", "STOP"),
                Step::Run(
                    "node-1",
                    "conntrack -I -p udp -s 10.80.0.100 -d {clusterip} --sport 4444 --dport 80 -t 300 --dst-nat 10.244.9.9:80"
                        .into(),
                ),
            ],
            heal: vec![
                Step::Run("node-1", "conntrack -D -p udp --orig-dst {clusterip}".into()),
                Step::Signal("node-1", "CONT"),
            ],
            ..fault("stale-flow", "StaleFlow", "10.244.9.9:80", vec![], vec![])
        },
        Fault {
            inject: vec![
                Step::Signal("node-1", "STOP"),
                Step::Run("node-1", "nft delete table ip portolan".into()),
            ],
            heal: vec![Step::Signal("node-1", "KILL")],
            ..fault("table", "TableMissing", "not in the kernel", vec![], vec![])
        },
        Fault {
            inject: vec![
                Step::Signal("node-1", "STOP"),
                Step::Run("node-1", "nft flush table ip portolan".into()),
            ],
            heal: vec![Step::Signal("node-1", "KILL")],
            ..fault("table-flushed", "TableMissing", "and empty", vec![], vec![])
        },
        Fault {
            given: vec![deployment(1, on("node-2")), service("web", "NodePort", json!({}))],
            inject: vec![
                Step::Signal("node-1", "STOP"),
                Step::Patch("Deployment", "web", json!({"spec": {"replicas": 3}})),
            ],
            heal: vec![Step::Signal("node-1", "CONT")],
            ..fault("drift", "TableDrift", "lacks", vec![], vec![])
        },
        Fault {
            given: vec![deployment(1, on("node-3")), service("web", "NodePort", json!({}))],
            inject: vec![Step::Signal("node-3", "STOP")],
            heal: vec![Step::Signal("node-3", "CONT")],
            ask: ask("service/web"),
            ..fault("node-down", "NodeOfPodsDown", "node node-3 is not ready", vec![], vec![])
        },
        Fault {
            given: vec![deployment(1, on("node-1")), service("web", "NodePort", json!({}))],
            inject: vec![Step::Signal("node-3", "STOP")],
            heal: vec![Step::Signal("node-3", "CONT")],
            ask: ask("--from node:node-3 --to service/web --port 80"),
            ..fault("client-node-down", "NodeNotReady", "node node-3 is not ready", vec![], vec![])
        },
    ]
}
