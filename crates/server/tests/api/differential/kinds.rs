//! The kinds that requests are drawn for.

use serde_json::{Value, json};

use super::dice::Dice;
use super::{others, pods, rest, services};

/// Fields, how likely each is touched, and values for it.
pub type Fields = Vec<Field>;

#[derive(Clone)]
pub struct Field {
    pub weight: usize,
    pub place: String,
    pub values: Vec<Value>,
}

pub fn field(weight: usize, place: impl Into<String>, values: Value) -> Field {
    let place = place.into();
    let Value::Array(values) = values else { panic!("{place}: the values are a list") };
    Field { weight, place, values }
}

pub fn name_of_63() -> String {
    "n".repeat(63)
}

/// A kind.
pub struct Spec {
    pub plural: &'static str,
    pub prefix: &'static str,
    pub namespaced: bool,
    pub status: bool,
    /// A valid object of this name.
    pub draw: fn(&mut Dice, &str) -> Value,
    pub fields: fn() -> Fields,
    pub status_fields: fn() -> Fields,
    /// Field selectors beyond the usual ones.
    pub selectors: &'static [&'static str],
}

impl Spec {
    /// Whether servers make this object themselves, or the test does: one of no name that requests give.
    pub fn is_given(&self, name: &str) -> bool {
        let numbered = |prefix: &str| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
        };
        let made = ["made-", "x", "Bad_"]
            .iter()
            .any(|base| name.strip_prefix(base).is_some_and(|rest| rest.len() == 5));
        if self.plural == "serviceaccounts" {
            return name == "default";
        }
        !(self.namespaced || numbered("a") || numbered("192.0.2.") || made || ODD_NAMES.contains(&name))
    }

    /// The name of a number.
    pub fn name(&self, number: usize) -> String {
        if self.plural == "ipaddresses" { format!("192.0.2.{number}") } else { format!("a{number}") }
    }

    /// Where objects are made: what bounds others has a namespace of its own.
    pub fn namespace(&self, usual: &'static str) -> &'static str {
        match self.plural {
            "resourcequotas" | "limitranges" => "bounds",
            _ if self.namespaced => usual,
            _ => "",
        }
    }
}

fn none() -> Fields {
    Vec::new()
}

const CORE: &str = "/api/v1";
const APPS: &str = "/apis/apps/v1";

pub static SERVICES: Spec = Spec {
    plural: "services",
    prefix: CORE,
    namespaced: true,
    status: true,
    draw: services::draw,
    fields: services::fields,
    status_fields: services::status_fields,
    selectors: &["spec.type=NodePort", "spec.clusterIP=None", "spec.bogus=1"],
};

/// The others, with their shares of the requests.
static SOME: [(usize, Spec); 12] = [
    (
        14,
        Spec {
            plural: "endpointslices",
            prefix: "/apis/discovery.k8s.io/v1",
            namespaced: true,
            status: false,
            draw: others::slice,
            fields: others::slice_fields,
            status_fields: none,
            selectors: &[],
        },
    ),
    (
        10,
        Spec {
            plural: "endpoints",
            prefix: CORE,
            namespaced: true,
            status: false,
            draw: others::endpoints,
            fields: others::endpoints_fields,
            status_fields: none,
            selectors: &[],
        },
    ),
    (
        14,
        Spec {
            plural: "pods",
            prefix: CORE,
            namespaced: true,
            status: true,
            draw: pods::pod,
            fields: pods::pod_fields,
            status_fields: pods::pod_status_fields,
            selectors: &[
                "spec.nodeName=n1",
                "status.phase=Pending",
                "status.phase!=Pending",
                "spec.restartPolicy=Always",
                "status.podIP=",
            ],
        },
    ),
    (
        10,
        Spec {
            plural: "deployments",
            prefix: APPS,
            namespaced: true,
            status: true,
            draw: pods::deployment,
            fields: pods::deployment_fields,
            status_fields: pods::deployment_status_fields,
            selectors: &["spec.replicas=1"],
        },
    ),
    (
        8,
        Spec {
            plural: "replicasets",
            prefix: APPS,
            namespaced: true,
            status: true,
            draw: pods::replicaset,
            fields: pods::replicaset_fields,
            status_fields: pods::replicaset_status_fields,
            selectors: &["status.replicas=0"],
        },
    ),
    (
        6,
        Spec {
            plural: "namespaces",
            prefix: CORE,
            namespaced: false,
            status: true,
            draw: others::namespace,
            fields: others::namespace_fields,
            status_fields: others::namespace_status_fields,
            selectors: &["status.phase=Active"],
        },
    ),
    (
        8,
        Spec {
            plural: "nodes",
            prefix: CORE,
            namespaced: false,
            status: true,
            draw: others::node,
            fields: others::node_fields,
            status_fields: others::node_status_fields,
            selectors: &["spec.unschedulable=true", "spec.unschedulable=false"],
        },
    ),
    (
        8,
        Spec {
            plural: "configmaps",
            prefix: CORE,
            namespaced: true,
            status: false,
            draw: others::configmap,
            fields: others::configmap_fields,
            status_fields: none,
            selectors: &[],
        },
    ),
    (
        8,
        Spec {
            plural: "secrets",
            prefix: CORE,
            namespaced: true,
            status: false,
            draw: others::secret,
            fields: others::secret_fields,
            status_fields: none,
            selectors: &["type=Opaque"],
        },
    ),
    (
        5,
        Spec {
            plural: "serviceaccounts",
            prefix: CORE,
            namespaced: true,
            status: false,
            draw: others::account,
            fields: others::account_fields,
            status_fields: none,
            selectors: &[],
        },
    ),
    (
        6,
        Spec {
            plural: "leases",
            prefix: "/apis/coordination.k8s.io/v1",
            namespaced: true,
            status: false,
            draw: others::lease,
            fields: others::lease_fields,
            status_fields: none,
            selectors: &[],
        },
    ),
    (
        8,
        Spec {
            plural: "events",
            prefix: CORE,
            namespaced: true,
            status: false,
            draw: others::event,
            fields: others::event_fields,
            status_fields: none,
            selectors: &[
                "involvedObject.kind=Pod",
                "reason=Started",
                "type!=Normal",
                "involvedObject.name=x,involvedObject.uid=",
            ],
        },
    ),
];

/// All kinds but Services, with their shares of the requests.
pub fn others() -> impl Iterator<Item = (usize, &'static Spec)> {
    SOME.iter().chain(&rest::REST).map(|(weight, kind)| (*weight, kind))
}

/// Values for the fields of every object's metadata.
pub fn meta_fields() -> Fields {
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "00000000-0000-0000-0000-000000000001"});
    let with = |key: &str, value: Value| {
        let mut owner = owner.clone();
        owner[key] = value;
        owner
    };
    vec![
        field(
            4,
            "/metadata/labels",
            json!([{"app": "web"}, {"bad key!": "x"}, {"a": "bad value!"}, {"a": name_of_63() + "x"}, {"example.com/a": "b"}, {"/a": "b"},
            {"EXAMPLE.com/a": "b"}, {"a/b/c": "d"}, {"": "x"}, null, {"a": ""}, {"-a": "-b"}, {"a": 1}]),
        ),
        field(
            3,
            "/metadata/annotations",
            json!([{"note": "any text!"}, {"bad key!": "x"}, {"Example.com/A": "b"}, {"a/b/c": "d"}, {"": "x"}, null, {"a": 1}]),
        ),
        field(
            2,
            "/metadata/finalizers",
            json!([
                ["example.com/hold"],
                ["bad"],
                ["a/b", "a/b"],
                ["bad name/x"],
                [""],
                [],
                null,
                ["kubernetes"],
                ["orphan"],
                ["foregroundDeletion", "orphan"]
            ]),
        ),
        field(
            3,
            "/metadata/ownerReferences",
            json!([[owner], [with("uid", "".into())], [with("name", "".into())], [with("kind", "".into())], [with("apiVersion", "".into())],
            [with("apiVersion", "a/b/c".into())], [with("controller", true.into()), with("controller", true.into())], [with("blockOwnerDeletion", true.into())],
            [{"apiVersion": "v1", "kind": "Event", "name": "x", "uid": "00000000-0000-0000-0000-000000000002"}], []]),
        ),
        field(1, "/metadata/namespace", json!(["two", "", "elsewhere"])),
        field(1, "/metadata/resourceVersion", json!(["", "0", "1", "x", 5])),
        field(1, "/metadata/uid", json!(["", "00000000-0000-0000-0000-000000000003", "x"])),
        field(1, "/metadata/creationTimestamp", json!([null, "2020-01-01T00:00:00Z", "yesterday"])),
        field(1, "/metadata/deletionTimestamp", json!([null, "2020-01-01T00:00:00Z"])),
        field(1, "/metadata/generation", json!([7, -1, null])),
        field(1, "/metadata/generateName", json!(["", "x-", "Bad_"])),
        field(1, "/metadata/bogus", json!([1])),
        field(1, "/apiVersion", json!(["v1", "v2", ""])),
        field(1, "/kind", json!(["Bogus", "", 1])),
        field(1, "/bogus", json!([1, {"a": 1}])),
    ]
}

/// Names beyond those that requests come back to.
pub const ODD_NAMES: [&str; 8] = [
    "Upper",
    "under_score",
    "dot.ted",
    "-dash",
    "1digit",
    "",
    "a..b",
    "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnx",
];
