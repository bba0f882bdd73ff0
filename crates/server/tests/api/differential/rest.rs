//! Kinds whose objects are those that `each.rs` asks about one by one: here with fields spoilt by the dice.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::dice::Dice;
use super::kinds::{Field, Fields, Spec, field};
use super::pods;

/// The first object of each kind, by its group and its name in paths.
static OBJECTS: LazyLock<HashMap<String, Value>> = LazyLock::new(|| {
    let rows: Vec<Value> = serde_json::from_str(include_str!("../kinds.json")).expect("a list");
    let mut all = HashMap::new();
    for row in rows {
        let plural = row["path"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let text = row["object"].to_string().replace("\"default\"", "\"one\"");
        let object: Value = serde_json::from_str(&text).expect("an object");
        all.entry(plural.to_owned()).or_insert(object);
    }
    all
});

fn sample(plural: &str, name: &str) -> Value {
    let mut object = OBJECTS[plural].clone();
    object["metadata"]["name"] = name.into();
    object
}

/// Values for each field of a kind's object: taken away, emptied, of another type, out of range.
fn spoilt(plural: &str) -> Fields {
    let mut out = Vec::new();
    places(&OBJECTS[plural], "", &mut out);
    out
}

fn places(value: &Value, at: &str, out: &mut Fields) {
    let here = |out: &mut Fields, values: Value| out.push(field(2, at, values));
    match value {
        Value::Object(map) => {
            if !at.is_empty() {
                here(out, json!([{}, null, [], "x"]));
            }
            for (key, inner) in map {
                // Of pods there is more to say, and of metadata it is said.
                if at.is_empty() && matches!(key.as_str(), "apiVersion" | "kind" | "metadata")
                    || key == "containers"
                {
                    continue;
                }
                places(inner, &format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), out);
            }
        }
        Value::Array(items) => {
            here(out, json!([[], null, [{}], ["x"], [items[0], items[0]]]));
            for (index, inner) in items.iter().enumerate() {
                places(inner, &format!("{at}/{index}"), out);
            }
        }
        Value::String(_) => here(out, json!(["", "Not Valid!", "x", "a.example.com/b", 7, null])),
        Value::Number(_) => here(out, json!([0, -1, 1, 70_000, 2_000_000_000, "x", null])),
        Value::Bool(_) => here(out, json!([true, false, "x", null])),
        Value::Null => {}
    }
}

/// Beside what is spoilt, fields that the object doesn't have.
fn with(plural: &str, more: Fields) -> Fields {
    let mut all = spoilt(plural);
    all.extend(more);
    all
}

fn of_template(plural: &str, at: &str, more: Fields) -> Fields {
    let mut all = with(plural, more);
    // As often one of its own as one of its pods'.
    let own: usize = all.iter().map(|field| field.weight).sum();
    let pods = pods::spec_fields(&format!("{at}/spec"));
    let theirs: usize = pods.iter().map(|field| field.weight).sum();
    let times = (own / theirs.max(1)).max(1);
    all.extend(pods.into_iter().map(|field| Field { weight: field.weight * times, ..field }));
    all.push(field(2, format!("{at}/metadata/annotations"), json!([{"a": "b"}, {"bad key!": "x"}, null])));
    all.push(field(2, format!("{at}/spec"), json!([null, {}])));
    all
}

fn draw_template(plural: &str, at: &str, name: &str, dice: &mut Dice) -> Value {
    let mut object = sample(plural, name);
    let policy = object.pointer(&format!("{at}/spec/restartPolicy")).cloned();
    let mut spec = pods::pod_spec(dice);
    if let Some(policy) = policy {
        spec["restartPolicy"] = policy;
    }
    super::pointer::set(&mut object, &format!("{at}/spec"), spec);
    object
}

/// Numbers that a controller reports.
fn counts(fields: &[&str]) -> Fields {
    fields.iter().map(|name| field(2, format!("/status/{name}"), json!([0, 1, 3, -1, null]))).collect()
}

fn conditions() -> Fields {
    let one = json!({"type": "A", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2024-01-01T00:00:00Z"});
    vec![field(
        2,
        "/status/conditions",
        json!([[one], [{"type": "", "status": "Maybe"}], [one, one], [], null]),
    )]
}

fn reported(fields: &[&str]) -> Fields {
    let mut all = counts(fields);
    all.extend(conditions());
    all.push(field(1, "/metadata/labels", json!([{"a": "b"}, {"bad key!": "x"}])));
    all
}

fn none() -> Fields {
    Vec::new()
}

const REPLICAS: [&str; 5] =
    ["replicas", "readyReplicas", "availableReplicas", "observedGeneration", "fullyLabeledReplicas"];

/// A kind without a status.
const fn plain(
    plural: &'static str,
    prefix: &'static str,
    draw: fn(&mut Dice, &str) -> Value,
    fields: fn() -> Fields,
) -> Spec {
    Spec {
        plural,
        prefix,
        namespaced: true,
        status: false,
        draw,
        fields,
        status_fields: none,
        selectors: &[],
    }
}

const APPS: &str = "/apis/apps/v1";
const BATCH: &str = "/apis/batch/v1";
const NETWORKING: &str = "/apis/networking.k8s.io/v1";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
const TEMPLATE: &str = "/spec/template";
const JOB: &str = "/spec/jobTemplate/spec";
const SELECTORS: [&str; 2] = ["metadata.name=a1", "status.bogus=1"];

fn selectors() -> Value {
    json!([{}, null, {"matchLabels": {"a": "b"}}, {"matchLabels": {"bad key!": "x"}}, {"matchExpressions": [{"key": "app", "operator": "Exists"}]},
        {"matchExpressions": [{"key": "app", "operator": "Bogus"}]}, {"matchExpressions": [{"key": "app", "operator": "In", "values": []}]}])
}

fn job_fields(at: &str) -> Fields {
    let here = |weight, name: &str, values| field(weight, format!("{at}/{name}"), values);
    let number = |name: &str| here(2, name, json!([0, -1, 3, null, "x"]));
    let mut all: Fields = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ]
    .into_iter()
    .map(number)
    .collect();
    all.extend([
        here(3, "completionMode", json!(["Indexed", "NonIndexed", "Bogus", ""])),
        here(2, "suspend", json!([true, false, null])),
        here(2, "manualSelector", json!([true, false])),
        here(2, "selector", selectors()),
        here(2, "podReplacementPolicy", json!(["Failed", "TerminatingOrFailed", "Bogus"])),
        here(1, "managedBy", json!(["example.com/x", "bogus", ""])),
        here(2, "podFailurePolicy", json!([{"rules": []}, {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}}]}, {"rules": [{"action": "Bogus"}]}, {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]}])),
        here(2, "successPolicy", json!([{"rules": []}, {"rules": [{"succeededCount": 1}]}, {"rules": [{"succeededIndexes": "0-1"}]}, {"rules": [{}]}])),
        here(2, "template/metadata/labels", json!([{"a": "b"}, {"bad key!": "x"}, null])),
    ]);
    all
}

/// What others are bound by, who may what, and who runs how many pods when.
pub static REST: [(usize, Spec); 22] = [
    (
        6,
        Spec {
            status: true,
            status_fields: || {
                reported(&[
                    "replicas",
                    "readyReplicas",
                    "currentReplicas",
                    "updatedReplicas",
                    "availableReplicas",
                    "observedGeneration",
                    "collisionCount",
                ])
            },
            ..plain(
                "statefulsets",
                APPS,
                |dice, name| draw_template("statefulsets", TEMPLATE, name, dice),
                || {
                    of_template(
                        "statefulsets",
                        TEMPLATE,
                        vec![
                            field(3, "/spec/replicas", json!([0, -1, 3, null, "x"])),
                            field(3, "/spec/selector", selectors()),
                            field(
                                3,
                                "/spec/updateStrategy",
                                json!([{"type": "OnDelete"}, {"type": "Bogus"}, {"type": "RollingUpdate"}, {"type": "RollingUpdate", "rollingUpdate": {"partition": -1}}, {"type": "OnDelete", "rollingUpdate": {"partition": 1}}, {"rollingUpdate": {"partition": 2, "maxUnavailable": 2}}]),
                            ),
                            field(
                                2,
                                "/spec/podManagementPolicy",
                                json!(["Parallel", "Bogus", "OrderedReady"]),
                            ),
                            field(
                                2,
                                "/spec/persistentVolumeClaimRetentionPolicy",
                                json!([{"whenDeleted": "Delete"}, {"whenScaled": "Bogus"}, {}]),
                            ),
                            field(2, "/spec/ordinals", json!([{"start": 3}, {"start": -1}])),
                            field(2, "/spec/minReadySeconds", json!([0, -1, 5])),
                            field(2, "/spec/revisionHistoryLimit", json!([0, -1, 5])),
                        ],
                    )
                },
            )
        },
    ),
    (
        6,
        Spec {
            status: true,
            status_fields: || {
                reported(&[
                    "currentNumberScheduled",
                    "numberMisscheduled",
                    "desiredNumberScheduled",
                    "numberReady",
                    "observedGeneration",
                    "updatedNumberScheduled",
                    "numberAvailable",
                    "numberUnavailable",
                    "collisionCount",
                ])
            },
            ..plain(
                "daemonsets",
                APPS,
                |dice, name| draw_template("daemonsets", TEMPLATE, name, dice),
                || {
                    of_template(
                        "daemonsets",
                        TEMPLATE,
                        vec![
                            field(3, "/spec/selector", selectors()),
                            field(
                                3,
                                "/spec/updateStrategy",
                                json!([{"type": "OnDelete"}, {"type": "Bogus"}, {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}, {"rollingUpdate": {"maxUnavailable": "10%", "maxSurge": 1}}, {"rollingUpdate": {"maxUnavailable": "101%"}}, {"rollingUpdate": {"maxSurge": "x"}}, {"rollingUpdate": {"maxUnavailable": -1}}]),
                            ),
                            field(2, "/spec/minReadySeconds", json!([0, -1, 5])),
                            field(2, "/spec/revisionHistoryLimit", json!([0, -1, 5])),
                        ],
                    )
                },
            )
        },
    ),
    (
        6,
        Spec {
            status: true,
            status_fields: || reported(&["active", "succeeded", "failed", "ready", "terminating"]),
            selectors: &["status.successful=0"],
            ..plain(
                "jobs",
                BATCH,
                |dice, name| draw_template("jobs", TEMPLATE, name, dice),
                || of_template("jobs", TEMPLATE, job_fields("/spec")),
            )
        },
    ),
    (
        6,
        Spec {
            status: true,
            status_fields: || {
                vec![
                    field(1, "/status/lastScheduleTime", json!(["2024-01-01T00:00:00Z", null])),
                    field(1, "/status/active", json!([[{"kind": "Job", "name": "x"}], []])),
                ]
            },
            ..plain(
                "cronjobs",
                BATCH,
                |dice, name| draw_template("cronjobs", "/spec/jobTemplate/spec/template", name, dice),
                || {
                    let mut more = job_fields(JOB);
                    more.extend([
                        field(
                            3,
                            "/spec/schedule",
                            json!(["* * * * *", "bogus", "@hourly", "TZ=UTC * * * * *", "60 * * * *", ""]),
                        ),
                        field(3, "/spec/timeZone", json!(["Etc/UTC", "Bogus/Zone", "", "Local"])),
                        field(3, "/spec/concurrencyPolicy", json!(["Allow", "Forbid", "Replace", "Bogus"])),
                        field(2, "/spec/startingDeadlineSeconds", json!([0, -1, 5])),
                        field(2, "/spec/successfulJobsHistoryLimit", json!([0, -1, 5])),
                        field(2, "/spec/failedJobsHistoryLimit", json!([0, -1, 5])),
                        field(1, "/spec/jobTemplate/metadata/labels", json!([{"a": "b"}, {"bad key!": "x"}])),
                    ]);
                    of_template("cronjobs", "/spec/jobTemplate/spec/template", more)
                },
            )
        },
    ),
    (
        5,
        Spec {
            status: true,
            status_fields: || reported(&REPLICAS),
            selectors: &["status.replicas=0"],
            ..plain(
                "replicationcontrollers",
                "/api/v1",
                |dice, name| draw_template("replicationcontrollers", TEMPLATE, name, dice),
                || {
                    of_template(
                        "replicationcontrollers",
                        TEMPLATE,
                        vec![
                            field(3, "/spec/replicas", json!([0, -1, 3, null, "x"])),
                            field(
                                3,
                                "/spec/selector",
                                json!([{"app": "a"}, {"a": "b"}, {}, null, {"bad key!": "x"}]),
                            ),
                            field(2, "/spec/minReadySeconds", json!([0, -1, 5])),
                            field(
                                2,
                                "/spec/template/metadata/labels",
                                json!([{"a": "b"}, {"bad key!": "x"}, null]),
                            ),
                        ],
                    )
                },
            )
        },
    ),
    (
        3,
        plain(
            "podtemplates",
            "/api/v1",
            |dice, name| draw_template("podtemplates", "/template", name, dice),
            || of_template("podtemplates", "/template", none()),
        ),
    ),
    (
        2,
        plain(
            "controllerrevisions",
            APPS,
            |_, name| sample("controllerrevisions", name),
            || spoilt("controllerrevisions"),
        ),
    ),
    (
        4,
        Spec {
            status: true,
            status_fields: || {
                reported(&[
                    "disruptionsAllowed",
                    "currentHealthy",
                    "desiredHealthy",
                    "expectedPods",
                    "observedGeneration",
                ])
            },
            ..plain(
                "poddisruptionbudgets",
                "/apis/policy/v1",
                |_, name| sample("poddisruptionbudgets", name),
                || {
                    with(
                        "poddisruptionbudgets",
                        vec![
                            field(3, "/spec/minAvailable", json!([1, -1, "50%", "x", "101%", null])),
                            field(3, "/spec/maxUnavailable", json!([1, -1, "50%", "x", "101%", null])),
                            field(
                                3,
                                "/spec/unhealthyPodEvictionPolicy",
                                json!(["AlwaysAllow", "IfHealthyBudget", "Bogus"]),
                            ),
                            field(3, "/spec/selector", selectors()),
                        ],
                    )
                },
            )
        },
    ),
    (
        4,
        Spec {
            status: true,
            status_fields: || reported(&["currentReplicas", "desiredReplicas"]),
            ..plain(
                "horizontalpodautoscalers",
                "/apis/autoscaling/v2",
                |_, name| sample("horizontalpodautoscalers", name),
                || {
                    with(
                        "horizontalpodautoscalers",
                        vec![
                            field(3, "/spec/minReplicas", json!([0, 1, 9, -1, null])),
                            field(3, "/spec/maxReplicas", json!([0, 1, 9, -1])),
                            field(
                                3,
                                "/spec/metrics",
                                json!([[], [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}], [{"type": "Bogus"}], [{"type": "Resource"}], [{"type": "Resource", "resource": {"name": "", "target": {"type": "Value"}}}],
                [{"type": "Pods", "pods": {"metric": {"name": "x"}, "target": {"type": "AverageValue", "averageValue": "1"}}}], [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 0}}}]]),
                            ),
                            field(
                                3,
                                "/spec/behavior",
                                json!([{}, {"scaleUp": {"stabilizationWindowSeconds": -1}}, {"scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 10}]}}, {"scaleUp": {"policies": [{"type": "Bogus", "value": 0, "periodSeconds": 0}]}}, {"scaleUp": {"selectPolicy": "Bogus"}}]),
                            ),
                        ],
                    )
                },
            )
        },
    ),
    (
        4,
        Spec {
            status: true,
            status_fields: || {
                vec![field(
                    2,
                    "/status/loadBalancer/ingress",
                    json!([[{"ip": "192.0.2.1"}], [{"ip": "bogus"}], [{"hostname": "Bad_"}], [{"hostname": "a.example"}], [], [{}]]),
                )]
            },
            ..plain(
                "ingresses",
                NETWORKING,
                |_, name| sample("ingresses", name),
                || {
                    with(
                        "ingresses",
                        vec![
                            field(
                                3,
                                "/spec/defaultBackend",
                                json!([{"service": {"name": "web", "port": {"number": 80}}}, {}, {"service": {"name": "", "port": {}}}, {"resource": {"kind": "X", "name": "y"}}, {"service": {"name": "web", "port": {"number": 80, "name": "x"}}}]),
                            ),
                            field(
                                3,
                                "/spec/rules/0/http/paths/0/pathType",
                                json!(["Exact", "ImplementationSpecific", "Bogus", null]),
                            ),
                            field(
                                3,
                                "/spec/rules/0/http/paths/0/path",
                                json!(["x", "/a//b", "/a/../b", "", "/%2f", "/ok"]),
                            ),
                            field(
                                3,
                                "/spec/rules/0/host",
                                json!(["*.example.com", "*", "1.2.3.4", "Bad_", "a.*.b"]),
                            ),
                            field(2, "/spec/ingressClassName", json!(["Bad_", "", "none"])),
                            field(2, "/metadata/annotations", json!([{"kubernetes.io/ingress.class": "x"}])),
                        ],
                    )
                },
            )
        },
    ),
    (
        2,
        Spec {
            namespaced: false,
            ..plain(
                "ingressclasses",
                NETWORKING,
                |_, name| sample("ingressclasses", name),
                || {
                    with(
                        "ingressclasses",
                        vec![
                            field(3, "/spec/parameters/scope", json!(["Cluster", "Namespace", "Bogus"])),
                            field(3, "/spec/parameters/namespace", json!(["x", "", "Bad_"])),
                        ],
                    )
                },
            )
        },
    ),
    (
        4,
        plain(
            "networkpolicies",
            NETWORKING,
            |_, name| sample("networkpolicies", name),
            || {
                with(
                    "networkpolicies",
                    vec![
                        field(
                            3,
                            "/spec/policyTypes",
                            json!([
                                ["Ingress"],
                                ["Egress", "Ingress"],
                                ["Bogus"],
                                [],
                                ["Ingress", "Ingress"]
                            ]),
                        ),
                        field(
                            3,
                            "/spec/ingress",
                            json!([[{}], [{"from": [{"podSelector": {}}]}], [{"from": [{}]}], [{"from": [{"ipBlock": {"cidr": "bogus"}, "podSelector": {}}]}], [{"ports": [{"port": "http", "endPort": 5}]}], [{"ports": [{"port": 80, "endPort": 90, "protocol": "Bogus"}]}], [{"ports": [{"port": 90, "endPort": 80}]}]]),
                        ),
                        field(2, "/spec/podSelector", selectors()),
                    ],
                )
            },
        ),
    ),
    (
        3,
        plain(
            "roles",
            RBAC,
            |_, name| sample("roles", name),
            || {
                with(
                    "roles",
                    vec![field(
                        2,
                        "/rules/0",
                        json!([{"verbs": []}, {"verbs": ["get"], "nonResourceURLs": ["/x"]}, {"verbs": ["get"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["x"]}]),
                    )],
                )
            },
        ),
    ),
    (
        3,
        Spec {
            namespaced: false,
            ..plain(
                "clusterroles",
                RBAC,
                |_, name| sample("clusterroles", name),
                || {
                    with(
                        "clusterroles",
                        vec![field(
                            2,
                            "/aggregationRule",
                            json!([{"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}, {"clusterRoleSelectors": []}, {"clusterRoleSelectors": [{"matchLabels": {"bad key!": "b"}}]}]),
                        )],
                    )
                },
            )
        },
    ),
    (
        3,
        plain(
            "rolebindings",
            RBAC,
            |_, name| sample("rolebindings", name),
            || {
                with(
                    "rolebindings",
                    vec![
                        field(
                            3,
                            "/subjects/0",
                            json!([{"kind": "Bogus", "name": "x"}, {"kind": "Group", "name": "g"}, {"kind": "ServiceAccount", "name": "Bad_"}, {"kind": "User", "name": "u", "apiGroup": "bogus"}]),
                        ),
                        field(
                            3,
                            "/roleRef",
                            json!([{"kind": "ClusterRole", "name": "x"}, {"kind": "Bogus", "name": "x"}, {"kind": "Role", "name": ""}]),
                        ),
                    ],
                )
            },
        ),
    ),
    (
        3,
        Spec {
            namespaced: false,
            ..plain(
                "clusterrolebindings",
                RBAC,
                |_, name| sample("clusterrolebindings", name),
                || {
                    with(
                        "clusterrolebindings",
                        vec![field(
                            3,
                            "/roleRef",
                            json!([{"kind": "Role", "name": "x"}, {"kind": "ClusterRole", "name": "other"}]),
                        )],
                    )
                },
            )
        },
    ),
    (
        3,
        Spec {
            namespaced: false,
            status: true,
            status_fields: conditions,
            ..plain(
                "servicecidrs",
                NETWORKING,
                |_, name| sample("servicecidrs", name),
                || {
                    with(
                        "servicecidrs",
                        vec![field(
                            6,
                            "/spec/cidrs",
                            json!([
                                ["10.98.0.0/24", "fd00:98::/112"],
                                ["10.98.0.1/24"],
                                ["bogus"],
                                ["10.98.0.0/24", "10.99.0.0/24"],
                                ["fd00:98::/112"],
                                ["FD00:98::/112"],
                                ["fd00:98::/48"],
                                [""]
                            ]),
                        )],
                    )
                },
            )
        },
    ),
    (
        3,
        Spec {
            namespaced: false,
            ..plain(
                "ipaddresses",
                NETWORKING,
                |_, name| sample("ipaddresses", name),
                || {
                    with(
                        "ipaddresses",
                        vec![field(
                            3,
                            "/spec/parentRef",
                            json!([{"resource": "services", "name": "x"}, {"group": "Bad_", "resource": "services", "name": "x"}, {}]),
                        )],
                    )
                },
            )
        },
    ),
    (
        2,
        Spec {
            namespaced: false,
            ..plain(
                "priorityclasses",
                "/apis/scheduling.k8s.io/v1",
                |_, name| sample("priorityclasses", name),
                || {
                    with(
                        "priorityclasses",
                        vec![
                            field(2, "/preemptionPolicy", json!(["Never", "Bogus", "PreemptLowerPriority"])),
                            field(2, "/value", json!([5, 2_000_000_001, -5])),
                            field(1, "/description", json!(["x", ""])),
                        ],
                    )
                },
            )
        },
    ),
    (
        2,
        Spec {
            namespaced: false,
            ..plain(
                "runtimeclasses",
                "/apis/node.k8s.io/v1",
                |_, name| sample("runtimeclasses", name),
                || {
                    with(
                        "runtimeclasses",
                        vec![
                            field(
                                2,
                                "/overhead",
                                json!([{"podFixed": {"cpu": "1m"}}, {"podFixed": {"cpu": "-1"}}, {"podFixed": {"bogus": "1"}}]),
                            ),
                            field(
                                2,
                                "/scheduling",
                                json!([{"nodeSelector": {"a": "b"}}, {"nodeSelector": {"bad key!": "b"}}, {"tolerations": [{"key": "bad key!"}]}]),
                            ),
                        ],
                    )
                },
            )
        },
    ),
    (
        4,
        Spec {
            status: true,
            status_fields: || {
                vec![
                    field(
                        2,
                        "/status/hard",
                        json!([{"pods": "5"}, {"pods": "-1"}, {"bogus": "1"}, {"pods": "1.5"}]),
                    ),
                    field(2, "/status/used", json!([{"pods": "5"}, {"cpu": "-1"}, {}])),
                ]
            },
            ..plain(
                "resourcequotas",
                "/api/v1",
                |_, name| sample("resourcequotas", name),
                || {
                    with(
                        "resourcequotas",
                        vec![
                            field(
                                3,
                                "/spec/hard",
                                json!([{"pods": "1"}, {"bogus": "1"}, {"cpu": "-1"}, {"example.com/gpu": "1"}, {"requests.example.com/gpu": "1.5"}, {"services.loadbalancers": "2"}, {"count/deployments.apps": "2"}, {"bad name!": "1"}]),
                            ),
                            field(
                                3,
                                "/spec/scopes",
                                json!([
                                    ["Terminating"],
                                    ["NotTerminating", "Terminating"],
                                    ["BestEffort"],
                                    ["Bogus"],
                                    ["BestEffort", "NotBestEffort"]
                                ]),
                            ),
                            field(
                                3,
                                "/spec/scopeSelector",
                                json!([{"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["x"]}]}, {"matchExpressions": [{"scopeName": "Bogus", "operator": "In"}]}, {"matchExpressions": [{"scopeName": "Terminating", "operator": "In", "values": ["x"]}]}, {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "Bogus"}]}]),
                            ),
                        ],
                    )
                },
            )
        },
    ),
    (
        4,
        Spec {
            selectors: &SELECTORS,
            ..plain(
                "limitranges",
                "/api/v1",
                |_, name| sample("limitranges", name),
                || {
                    with(
                        "limitranges",
                        vec![
                            field(
                                3,
                                "/spec/limits/0/type",
                                json!(["Pod", "PersistentVolumeClaim", "Bogus", "example.com/x"]),
                            ),
                            field(
                                3,
                                "/spec/limits/0/default",
                                json!([{"cpu": "1"}, {"cpu": "5"}, {"cpu": "10m"}, {"bogus": "1"}]),
                            ),
                            field(
                                3,
                                "/spec/limits/0/max",
                                json!([{"cpu": "50m"}, {"memory": "1Gi"}, {"cpu": "-1"}]),
                            ),
                            field(
                                3,
                                "/spec/limits/0/maxLimitRequestRatio",
                                json!([{"cpu": "2"}, {"cpu": "0.5"}, {"cpu": "100"}]),
                            ),
                            field(2, "/spec/limits/0/bogus", json!([1])),
                        ],
                    )
                },
            )
        },
    ),
];
