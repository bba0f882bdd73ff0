//! The subresources with rules of their own: scale, approval, binding, eviction, finalize.

use http::StatusCode;
use jiff::Timestamp;
use portolan_api::kinds::certificate;
use portolan_api::{Status, meta, patch, scale, walk};
use serde_json::{Value, json};

use crate::apply::Owners;
use crate::delete::Options;
use crate::http::{Answer, Call, json as respond};
use crate::server::Server;
use crate::write::{Part, check_identity, patch_status};

impl Server {
    /// GET of a scale.
    pub(crate) async fn get_scale(&self, call: &Call) -> Answer {
        let (object, _) = self.stored(call.kind, &call.key(), call.name()).await?;
        Ok(respond(StatusCode::OK, &scale::to_scale(&object)))
    }

    /// PUT or PATCH of a scale.
    pub(crate) async fn write_scale(&self, call: &Call) -> Answer {
        enum Change {
            Replace(Value),
            Merge(Value),
            Json(Value),
        }
        let body: Value = if call.method == http::Method::PUT {
            call.read(("autoscaling/v1", "Scale"))?
        } else {
            serde_json::from_slice(&call.body)
                .map_err(|error| Status::bad_request(format!("the patch is not valid JSON: {error}")))?
        };
        let change = match (call.method == http::Method::PUT, call.media.as_str()) {
            (true, _) => Change::Replace(body),
            // A Scale has no lists to merge: strategic and plain merge are the same.
            (_, "application/merge-patch+json" | "application/strategic-merge-patch+json") => {
                Change::Merge(body)
            }
            (_, "application/json-patch+json") => Change::Json(body),
            _ => {
                return Err(Status::unsupported_media_type(&[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                ]));
            }
        };
        let make = |old: &Value| {
            let mut wanted = scale::to_scale(old);
            match &change {
                Change::Replace(body) => wanted = body.clone(),
                Change::Merge(body) => patch::merge(&mut wanted, body).map_err(patch_status)?,
                Change::Json(body) => patch::json(&mut wanted, body).map_err(patch_status)?,
            }
            check_identity(call.kind, call.name(), &wanted, old)?;
            let mut new = old.clone();
            scale::apply_scale(&mut new, &wanted)
                .map_err(|errors| Status::invalid(call.kind, call.name(), &errors))?;
            Ok(new)
        };
        // An owner by way of the scale has no time in Kubernetes (managedfields `ScaleHandler.ToParent`).
        let owners = Owners::Counted(call.author(""));
        let object = self.modify_as(call.subject(), Part::Main, call.writing()?, owners, make).await?;
        Ok(respond(StatusCode::OK, &scale::to_scale(&object)))
    }

    /// PUT or PATCH of a certificate request's `approval`: of all of it, the conditions change.
    pub(crate) async fn approve(&self, call: &Call) -> Answer {
        let body = if call.method == http::Method::PUT { Some(call.json()?) } else { None };
        let patch = if body.is_none() { Some(call.patch()?) } else { None };
        let (kind, name) = (call.kind, call.name());
        let make = |old: &Value| {
            let mut new = match (&body, &patch) {
                (Some(body), _) => body.clone(),
                (None, Some(patch)) => patch(old)?,
                (None, None) => old.clone(),
            };
            check_identity(kind, name, &new, old)?;
            kind.default(&mut new);
            meta::keep_system_fields(&mut new, old);
            certificate::prepare_approval(&mut new, old);
            let mut errors = meta::validate_update(&new, old);
            errors.extend(certificate::validate_approval(&new, old));
            if errors.is_empty() { Ok(new) } else { Err(Status::invalid(kind, name, &errors)) }
        };
        let object = self.modify(call.subject(), Part::Exact, call.writing()?, make).await?;
        call.written(StatusCode::OK, object, &[])
    }

    /// PUT of a namespace's `finalize`: its content is gone, the last finalizers may go.
    pub(crate) async fn finalize(&self, call: &Call) -> Answer {
        let body = call.json()?;
        let make = |old: &Value| {
            check_identity(call.kind, call.name(), &body, old)?;
            let mut new = old.clone();
            match walk::at(&body, "spec.finalizers") {
                Some(finalizers) => walk::set(&mut new, "spec.finalizers", finalizers.clone()),
                None => {
                    walk::remove(&mut new, "spec.finalizers");
                }
            }
            Ok(new)
        };
        let now = meta::rfc3339(Timestamp::now());
        let owners = Owners::Counted(call.author(&now));
        let object = self.modify_as(call.subject(), Part::Exact, call.writing()?, owners, make).await?;
        call.written(StatusCode::OK, object, &[])
    }

    /// POST of a pod's `binding`: the scheduler's word.
    pub(crate) async fn bind(&self, call: &Call) -> Answer {
        let body = call.read(("v1", "Binding"))?;
        let (kind, name) = (call.kind, call.name());
        let target = walk::text(&body, "target.kind");
        if !matches!(target, "" | "Node") {
            return Err(Status::bad_request("target.kind: Unsupported value: supported values: \"Node\""));
        }
        let node = walk::text(&body, "target.name");
        if node.is_empty() {
            return Err(Status::bad_request("target.name: Required value"));
        }
        let make = |old: &Value| {
            check_identity(kind, name, &body, old)?;
            if meta::deletion_timestamp(old).is_some() {
                let why = format!("pod {name} is being deleted, cannot be assigned to a host");
                return Err(Status::conflict(kind, name, &why));
            }
            let bound = walk::text(old, "spec.nodeName");
            if !bound.is_empty() {
                let why = format!("pod {name} is already assigned to node {bound:?}");
                return Err(Status::conflict(kind, name, &why));
            }
            let mut new = old.clone();
            walk::set(&mut new, "spec.nodeName", node);
            for (key, value) in walk::map(&body, "metadata.annotations") {
                if let Some(annotations) = walk::map_mut(&mut new, "metadata.annotations") {
                    annotations.insert(key.clone(), value.clone());
                }
            }
            let now = meta::rfc3339(Timestamp::now());
            let mut conditions = walk::list(&new, "status.conditions").to_vec();
            conditions.retain(|condition| walk::text(condition, "type") != "PodScheduled");
            conditions.push(json!({
                "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
            }));
            walk::set(&mut new, "status.conditions", conditions);
            Ok(new)
        };
        self.modify(call.subject(), Part::Exact, call.writing()?, make).await?;
        Ok(respond(StatusCode::CREATED, &success(StatusCode::CREATED)))
    }

    /// POST of a pod's `eviction`. No disruption budgets here yet: it is a deletion.
    pub(crate) async fn evict(&self, call: &Call) -> Answer {
        let body = call.read(("policy/v1", "Eviction"))?;
        self.guard(call, Some(&body), None)?;
        let none = json!({});
        let options = Options::from_value(walk::at(&body, "deleteOptions").unwrap_or(&none))?;
        // Which of the two it became, the evictor doesn't ask.
        let _ = self.delete_object(call.subject(), &options).await?;
        Ok(respond(StatusCode::CREATED, &success(StatusCode::CREATED)))
    }
}

fn success(code: StatusCode) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16()})
}
