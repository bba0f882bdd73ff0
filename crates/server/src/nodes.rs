//! What a node may do: its own things, and what the pods bound to it refer to (Kubernetes' node authorizer).

mod graph;
mod restriction;

use std::sync::{Arc, OnceLock};

use portolan_api::fielderror::quote;
use portolan_store::{Error, Store};
use tokio_util::sync::CancellationToken;

use crate::attributes::Attributes;
use crate::auth::Identity;
use crate::authorize::Decision;
use crate::rbac::Rule;
use graph::Graph;
use graph::{Kind, Reference};
pub(crate) use restriction::{Write, confine};

/// The group of nodes.
const NODES: &str = "system:nodes";
/// How a node's user begins; its name follows.
const NODE: &str = "system:node:";
/// Where nodes keep their leases.
const LEASES: &str = "kube-node-lease";

/// The name of the node that a user is; none for who is no node (Kubernetes' `NodeIdentity`).
pub(crate) fn node_of(user: &Identity) -> Option<&str> {
    user.user.strip_prefix(NODE).filter(|_| user.is_in(NODES))
}

/// Decides on nodes' requests by an index of pods and what they refer to.
pub(crate) struct Nodes {
    graph: Arc<Graph>,
    /// What any node may do with what isn't divided among nodes: the rules of the role `system:node`.
    rules: OnceLock<Vec<Rule>>,
}

fn no(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion(reason.into())
}

fn yes() -> Decision {
    Decision::Allow(String::new())
}

impl Nodes {
    /// Reads all pods and follows.
    pub(crate) async fn open(store: Arc<dyn Store>, close: CancellationToken) -> Result<Nodes, Error> {
        Ok(Nodes { graph: Graph::open(store, close).await?, rules: OnceLock::new() })
    }

    /// Waits until the index has seen a revision; goes on without when it takes too long.
    pub(crate) async fn reach(&self, revision: u64) {
        self.graph.reach(revision).await;
    }

    /// Whether a node may do this.
    pub(crate) fn decide(&self, user: &Identity, request: &Attributes) -> Decision {
        let Some(node) = node_of(user) else { return no("") };
        if node.is_empty() {
            return no(format!("unknown node for user {}", quote(&user.user)));
        }
        if request.of_resource {
            let kind = match (request.group.as_str(), request.resource.as_str()) {
                ("", "secrets") => return self.read(node, Kind::Secret, request),
                ("", "configmaps") => return self.read(node, Kind::ConfigMap, request),
                ("", "persistentvolumeclaims") => Some(Kind::Claim),
                ("", "serviceaccounts") => return self.account(node, request),
                ("", "nodes") => return own_node(node, request),
                ("", "pods") => return self.pod(node, request),
                ("coordination.k8s.io", "leases") => return lease(node, request),
                _ => None,
            };
            if let Some(kind) = kind {
                return self.get(node, kind, request);
            }
        }
        let rules = self.rules.get_or_init(crate::rbac::node_rules);
        if rules.iter().any(|rule| rule.allows(request)) { yes() } else { no("") }
    }

    fn related(&self, node: &str, kind: Kind, request: &Attributes) -> Decision {
        let object = Reference { kind, namespace: request.namespace.clone(), name: request.name.clone() };
        if request.name.is_empty() {
            no("No Object name found")
        } else if self.graph.related(node, &object) {
            yes()
        } else {
            no(format!("no relationship found between node '{node}' and this object"))
        }
    }

    fn read(&self, node: &str, kind: Kind, request: &Attributes) -> Decision {
        if !matches!(request.verb.as_str(), "get" | "list" | "watch") {
            return no("can only read resources of this type");
        }
        if !request.subresource.is_empty() {
            return no("cannot read subresource");
        }
        if request.namespace.is_empty() {
            return no("can only read namespaced object of this type");
        }
        self.related(node, kind, request)
    }

    fn get(&self, node: &str, kind: Kind, request: &Attributes) -> Decision {
        if request.verb != "get" {
            return no("can only get individual resources of this type");
        }
        if !request.subresource.is_empty() {
            return no("cannot get subresource");
        }
        self.related(node, kind, request)
    }

    fn account(&self, node: &str, request: &Attributes) -> Decision {
        if request.verb == "get" && request.subresource.is_empty() {
            return self.read(node, Kind::Account, request);
        }
        if request.verb != "create" || request.name.is_empty() {
            return no("can only create tokens for individual service accounts");
        }
        if request.subresource != "token" {
            return no("can only create token subresource of serviceaccount");
        }
        self.related(node, Kind::Account, request)
    }

    fn pod(&self, node: &str, request: &Attributes) -> Decision {
        match (request.subresource.as_str(), request.verb.as_str()) {
            ("", "get") => self.get(node, Kind::Pod, request),
            ("", "list" | "watch") if request.demands("spec.nodeName", node) => yes(),
            ("", "list" | "watch") if !request.name.is_empty() => self.related(node, Kind::Pod, request),
            ("", "list" | "watch") => no("can only list/watch pods with spec.nodeName field selector"),
            // Which pods, the restriction of writes says: it sees the object.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => yes(),
            _ => no(""),
        }
    }
}

fn own_node(node: &str, request: &Attributes) -> Decision {
    match (request.subresource.as_str(), request.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => yes(),
        ("", "get" | "list" | "watch") => match request.name.as_str() {
            name if name == node => yes(),
            "" => no(format!("node '{node}' cannot read all nodes, only its own Node object")),
            name => no(format!("node '{node}' cannot read '{name}', only its own Node object")),
        },
        _ => no(""),
    }
}

fn lease(node: &str, request: &Attributes) -> Decision {
    if !matches!(request.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return no("can only get, create, update, patch, or delete a node lease");
    }
    if request.namespace != LEASES {
        return no(format!("can only access leases in the {} system namespace", quote(LEASES)));
    }
    if request.verb != "create" && request.name != node {
        return no("can only access node lease with the same name as the requesting node");
    }
    yes()
}
