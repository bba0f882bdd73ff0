//! How lists and maps of each kind merge under a strategic merge patch: facts of the Kubernetes API (the `patchStrategy`
//! and `patchMergeKey` tags of k8s.io/api), as a table.

/// How a field merges. What no table names merges as Kubernetes does by default: objects field by field, lists whole.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// An object whose fields have rules of their own.
    Map(&'static Shape),
    /// A list of objects that are the same if this field is.
    List(&'static str, &'static Shape),
    /// A list of texts that is a set.
    Set,
}

/// The fields of an object that have rules.
#[derive(Debug)]
pub struct Shape(pub &'static [(&'static str, Rule)]);

impl Shape {
    /// The rule of a field.
    pub fn rule(&self, field: &str) -> Option<Rule> {
        self.0.iter().find(|(name, _)| *name == field).map(|(_, rule)| *rule)
    }
}

/// An object without rules.
pub static PLAIN: Shape = Shape(&[]);

static META: Shape = Shape(&[("ownerReferences", Rule::List("uid", &PLAIN)), ("finalizers", Rule::Set)]);

static CONDITIONS: Shape = Shape(&[("conditions", Rule::List("type", &PLAIN))]);

static CONTAINER: Shape = Shape(&[
    ("ports", Rule::List("containerPort", &PLAIN)),
    ("env", Rule::List("name", &PLAIN)),
    ("volumeMounts", Rule::List("mountPath", &PLAIN)),
    ("volumeDevices", Rule::List("devicePath", &PLAIN)),
]);

static POD_SPEC: Shape = Shape(&[
    ("volumes", Rule::List("name", &PLAIN)),
    ("initContainers", Rule::List("name", &CONTAINER)),
    ("containers", Rule::List("name", &CONTAINER)),
    ("ephemeralContainers", Rule::List("name", &CONTAINER)),
    ("imagePullSecrets", Rule::List("name", &PLAIN)),
    ("hostAliases", Rule::List("ip", &PLAIN)),
    ("topologySpreadConstraints", Rule::List("topologyKey", &PLAIN)),
    ("schedulingGates", Rule::List("name", &PLAIN)),
    ("resourceClaims", Rule::List("name", &PLAIN)),
]);

static POD_STATUS: Shape = Shape(&[
    ("conditions", Rule::List("type", &PLAIN)),
    ("hostIPs", Rule::List("ip", &PLAIN)),
    ("podIPs", Rule::List("ip", &PLAIN)),
    ("resourceClaimStatuses", Rule::List("name", &PLAIN)),
]);

static POD: Shape = Shape(&[
    ("metadata", Rule::Map(&META)),
    ("spec", Rule::Map(&POD_SPEC)),
    ("status", Rule::Map(&POD_STATUS)),
]);

static TEMPLATE: Shape = Shape(&[("metadata", Rule::Map(&META)), ("spec", Rule::Map(&POD_SPEC))]);

static WORKLOAD_SPEC: Shape = Shape(&[("template", Rule::Map(&TEMPLATE))]);

static WORKLOAD: Shape = Shape(&[
    ("metadata", Rule::Map(&META)),
    ("spec", Rule::Map(&WORKLOAD_SPEC)),
    ("status", Rule::Map(&CONDITIONS)),
]);

// By `port` alone, although TCP/53 and UDP/53 are two ports of one Service: Kubernetes cannot tell them apart here either.
static SERVICE_SPEC: Shape = Shape(&[("ports", Rule::List("port", &PLAIN))]);

static SERVICE: Shape = Shape(&[
    ("metadata", Rule::Map(&META)),
    ("spec", Rule::Map(&SERVICE_SPEC)),
    ("status", Rule::Map(&CONDITIONS)),
]);

static NODE_SPEC: Shape = Shape(&[("podCIDRs", Rule::Set)]);

static NODE_STATUS: Shape =
    Shape(&[("conditions", Rule::List("type", &PLAIN)), ("addresses", Rule::List("type", &PLAIN))]);

static NODE: Shape = Shape(&[
    ("metadata", Rule::Map(&META)),
    ("spec", Rule::Map(&NODE_SPEC)),
    ("status", Rule::Map(&NODE_STATUS)),
]);

static NAMESPACE: Shape = Shape(&[("metadata", Rule::Map(&META)), ("status", Rule::Map(&CONDITIONS))]);

static SERVICE_ACCOUNT: Shape =
    Shape(&[("metadata", Rule::Map(&META)), ("secrets", Rule::List("name", &PLAIN))]);

static OTHER: Shape = Shape(&[("metadata", Rule::Map(&META))]);

/// The rules of a kind.
pub fn shape(kind: &str) -> &'static Shape {
    match kind {
        "Pod" => &POD,
        "Deployment" | "ReplicaSet" => &WORKLOAD,
        "Service" => &SERVICE,
        "Node" => &NODE,
        "Namespace" => &NAMESPACE,
        "ServiceAccount" => &SERVICE_ACCOUNT,
        _ => &OTHER,
    }
}
