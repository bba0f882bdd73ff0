//! Writes that their author may not make though the verb is theirs: a role that gives more than its author has, and
//! objects that are none of a node's business.

use portolan_api::{Status, find, meta};
use serde_json::Value;

use crate::attributes::Attributes;
use crate::http::{Call, store_status};
use crate::read::object_key;
use crate::server::Server;
use crate::{nodes, rbac};

impl Server {
    /// Waits until memory knows what was acknowledged before a write that is to be guarded: who was just allowed to bind a
    /// role is not refused because memory lags by a moment. Other writes don't wait.
    pub(crate) async fn prepare_guard(&self, call: &Call) -> Result<(), Status> {
        let of_roles = call.kind.group() == rbac::GROUP;
        if !of_roles && nodes::node_of(&call.user).is_none() {
            return Ok(());
        }
        let revision = self.store.revision().await.map_err(store_status)?.0;
        self.rbac.reach(revision).await;
        if !of_roles && call.kind.custom().is_none() {
            self.fresh(&call.kind, Some(revision)).await?;
        }
        Ok(())
    }

    /// Refuses an update that would make an object if its author may not create one (apiserver's `withAuthorization`).
    pub(crate) async fn may_create(&self, call: &Call) -> Result<(), Status> {
        let request = Attributes {
            verb: "create".into(),
            of_resource: true,
            group: call.kind.group().into(),
            version: call.kind.version().into(),
            namespace: call.path.namespace.clone().unwrap_or_default(),
            resource: call.kind.plural().into(),
            name: call.name().into(),
            ..Attributes::default()
        };
        self.permit(&call.user, &request).await.map(drop)
    }

    /// Refuses such a write. `new` is what the object (or, of a subresource, its body) shall be, none for a deletion; `old` is
    /// what it is, none if it is made.
    pub(crate) fn guard(&self, call: &Call, new: Option<&Value>, old: Option<&Value>) -> Result<(), Status> {
        let (user, kind) = (&call.user, &call.kind);
        let named = new.map_or("", meta::name);
        let name = if call.name().is_empty() { named } else { call.name() };
        if let (Some(new), None) = (new, call.path.subresource.as_deref()) {
            let namespace = call.path.namespace.as_deref().unwrap_or_default();
            let grant = rbac::Grant { user, kind, namespace, name, new, old };
            self.rbac.confine(&grant, |request| self.decide(user, request))?;
        }
        let Some(node) = nodes::node_of(user) else { return Ok(()) };
        let subresource = call.path.subresource.as_deref().unwrap_or_default();
        // What is deleted, and whose subresource is made, nobody has read yet.
        let known = || {
            // No node has a say in custom kinds.
            if kind.custom().is_some() {
                return None;
            }
            let key = object_key(kind, call.path.namespace.as_deref(), call.name());
            self.cache(kind).get(&key).map(|object| object.value())
        };
        let kept = if new.is_none() || subresource == "eviction" { known() } else { None };
        let node_uid =
            find("", "v1", "nodes").and_then(|nodes| self.cache(nodes).get(&object_key(nodes, None, node)));
        let node_uid = node_uid.map(|node| meta::uid(&node.value()).to_owned()).unwrap_or_default();
        let write = nodes::Write {
            group: kind.group(),
            resource: kind.plural(),
            subresource,
            name,
            new,
            old: old.or(kept.as_ref()),
            pod: None,
            node_uid: &node_uid,
        };
        nodes::confine(user, &write)
    }
}
