//! The subresources with rules of their own: scale, approval, binding, eviction, finalize.

use http::StatusCode;
use jiff::Timestamp;
use portolan_api::kinds::certificate;
use portolan_api::kinds::disruption::POD_DISRUPTION_BUDGET;
use portolan_api::{Kind, LabelSelector, Status, meta, patch, scale, schema, strict, walk};
use portolan_store::Range;
use serde_json::{Value, json};

use crate::apply::Owners;
use crate::cache::prefix;
use crate::delete::Options;
use crate::http::{Answer, Call, json as respond, store_status};
use crate::object::stored;
use crate::server::Server;
use crate::write::{Part, Subject, check_identity, patch_status};

impl Server {
    /// GET of a scale.
    pub(crate) async fn get_scale(&self, call: &Call) -> Answer {
        let (object, _) = self.stored(&call.kind, &call.key(), call.name()).await?;
        Ok(respond(StatusCode::OK, &scale_of(call, &object)?))
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
            (_, "application/merge-patch+json") => Change::Merge(body),
            // A Scale has no lists to merge: strategic and plain merge are the same.
            (_, "application/strategic-merge-patch+json") if call.kind.custom().is_none() => {
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
            let mut wanted = scale_of(call, old)?;
            match &change {
                Change::Replace(body) => wanted = body.clone(),
                Change::Merge(body) => patch::merge(&mut wanted, body).map_err(patch_status)?,
                Change::Json(body) => patch::json(&mut wanted, body).map_err(patch_status)?,
            }
            let of = schema::of("autoscaling/v1", "Scale");
            if let Some(why) = of.and_then(|of| strict::check(&wanted, &of).misfit) {
                return Err(match &change {
                    Change::Replace(_) => Status::undecodable(&call.kind, &why),
                    _ => Status::invalid_patch(wanted.to_string(), &why),
                });
            }
            check_identity(&call.kind, call.name(), &wanted, old)?;
            let mut new = old.clone();
            if let Some(custom) = call.kind.custom() {
                custom.apply_scale(&mut new, walk::int(&wanted, "spec.replicas").unwrap_or(0));
                return Ok(new);
            }
            scale::apply_scale(&mut new, &wanted)
                .map_err(|errors| Status::invalid(&call.kind, call.name(), &errors))?;
            Ok(new)
        };
        // An owner by way of the scale has no time in Kubernetes (managedfields `ScaleHandler.ToParent`).
        let owners = Owners::Counted(call.author(""));
        let object = self.modify_as(call.subject(), Part::Main, call.writing()?, owners, make).await?;
        Ok(respond(StatusCode::OK, &scale_of(call, &object)?))
    }

    /// PUT or PATCH of a certificate request's `approval`: of all of it, the conditions change.
    pub(crate) async fn approve(&self, call: &Call) -> Answer {
        let body = if call.method == http::Method::PUT { Some(call.json()?) } else { None };
        let patch = if body.is_none() { Some(call.patch()?) } else { None };
        let (kind, name) = (&call.kind, call.name());
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
        let now = meta::rfc3339(Timestamp::now());
        let owners = Owners::Counted(call.author(&now));
        let object = self.modify_as(call.subject(), Part::Exact, call.writing()?, owners, make).await?;
        call.written(StatusCode::OK, object, &[])
    }

    /// PUT of a namespace's `finalize`: its content is gone, the last finalizers may go.
    pub(crate) async fn finalize(&self, call: &Call) -> Answer {
        let body = call.json()?;
        let make = |old: &Value| {
            check_identity(&call.kind, call.name(), &body, old)?;
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
        let (kind, name) = (&call.kind, call.name());
        let target = walk::text(&body, "target.kind");
        if !matches!(target, "" | "Node") {
            return Err(Status::bad_request("target.kind: Unsupported value: supported values: \"Node\""));
        }
        let node = walk::text(&body, "target.name");
        if node.is_empty() {
            return Err(Status::bad_request("target.name: Required value"));
        }
        let places = self.topology(node).await?;
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
            // What the pod says of its place already stays.
            let labels = walk::map(&body, "metadata.labels").clone().into_iter();
            for (key, value) in places.iter().cloned().chain(labels) {
                if let Some(labels) = walk::map_mut(&mut new, "metadata.labels") {
                    labels.entry(key).or_insert(value);
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

    /// POST of a pod's `eviction`: a deletion that a disruption budget may refuse (registry/core/pod/storage/eviction.go).
    pub(crate) async fn evict(&self, call: &Call) -> Answer {
        let body = call.read(("policy/v1", "Eviction"))?;
        self.guard(call, Some(&body), None)?;
        let none = json!({});
        let options = Options::from_value(walk::at(&body, "deleteOptions").unwrap_or(&none))?;
        let dry_run = options.dry_run() || call.writing()?;
        let (pod, _) = self.stored(&call.kind, &call.key(), call.name()).await?;
        self.disrupt(&pod, dry_run).await?;
        // Which of the two it became, the evictor doesn't ask.
        let _ = self.delete_object(call.subject(), &options).await?;
        Ok(respond(StatusCode::CREATED, &success(StatusCode::CREATED)))
    }

    /// Takes one disruption from the budget that covers a pod; refuses if there is none left.
    async fn disrupt(&self, pod: &Value, dry_run: bool) -> Result<(), Status> {
        let kind: &Kind = &POD_DISRUPTION_BUDGET;
        let phase = walk::text(pod, "status.phase");
        if meta::deletion_timestamp(pod).is_some() || matches!(phase, "Succeeded" | "Failed" | "Pending") {
            return Ok(());
        }
        let scope = format!("{}{}/", prefix(kind), meta::namespace(pod));
        let entries = self.store.range(Range::prefix(&scope)).await.map_err(store_status)?.entries;
        let budgets = entries.iter().filter_map(|e| stored(kind, &e.value, e.mod_revision.0));
        let mut budgets: Vec<Value> = budgets
            .filter(|budget| {
                let selector = walk::at(budget, "spec.selector").unwrap_or(&Value::Null);
                LabelSelector::from_object(selector).is_ok_and(|s| s.matches(meta::labels(pod)))
            })
            .collect();
        if budgets.len() > 1 {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
        let Some(budget) = budgets.pop() else { return Ok(()) };
        let ready = walk::list(pod, "status.conditions")
            .iter()
            .any(|c| walk::text(c, "type") == "Ready" && walk::text(c, "status") == "True");
        let status = |field: &str| walk::int(&budget, &format!("status.{field}")).unwrap_or(0);
        if !ready {
            let healthy =
                status("currentHealthy") >= status("desiredHealthy") && status("desiredHealthy") > 0;
            if healthy || walk::text(&budget, "spec.unhealthyPodEvictionPolicy") == "AlwaysAllow" {
                return Ok(());
            }
        }
        let (name, pod) = (meta::name(&budget), meta::name(pod));
        let (needs, has) = (status("desiredHealthy"), status("currentHealthy"));
        if status("observedGeneration") < meta::generation(&budget) {
            let why = format!("The disruption budget {name} is still being processed by the server.");
            return Err(too_many(10, why));
        }
        if status("disruptionsAllowed") == 0 {
            let why = if has <= needs {
                format!("The disruption budget {name} needs {needs} healthy pods and has {has} currently")
            } else {
                format!("The disruption budget {name} does not allow evicting pods currently")
            };
            return Err(too_many(0, why));
        }
        let make = |old: &Value| {
            let left = walk::int(old, "status.disruptionsAllowed").unwrap_or(0) - 1;
            if left < 0 {
                return Err(Status::modified(kind, name));
            }
            let mut new = old.clone();
            walk::set(&mut new, "status.disruptionsAllowed", left);
            if let Some(pods) = walk::map_mut(&mut new, "status.disruptedPods") {
                pods.insert(pod.into(), meta::rfc3339(Timestamp::now()).into());
            }
            if left == 0 {
                let last = meta::rfc3339(Timestamp::now());
                for condition in walk::list_mut(&mut new, "status.conditions") {
                    if walk::text(condition, "type") == "DisruptionAllowed" {
                        walk::set(condition, "status", "False");
                        walk::set(condition, "reason", "InsufficientPods");
                        walk::set(condition, "lastTransitionTime", last.clone());
                    }
                }
            }
            Ok(new)
        };
        let subject = Subject { kind, namespace: Some(meta::namespace(&budget)), name };
        self.modify(subject, Part::Status, dry_run, make).await.map(drop)
    }
}

/// The refusal of an eviction, as `kubectl drain` knows it.
fn too_many(retry_s: u64, why: String) -> Status {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut status = Status { code: 429, reason: "TooManyRequests", ..Status::bad_request(message) };
    if retry_s > 0 {
        status.details.insert("retryAfterSeconds".into(), retry_s.into());
    }
    let cause = json!({"reason": "DisruptionBudget", "message": why});
    status.details.insert("causes".into(), json!([cause]));
    status
}

/// The Scale of an object.
fn scale_of(call: &Call, object: &Value) -> Result<Value, Status> {
    match call.kind.custom() {
        Some(custom) => custom.to_scale(object).map_err(Status::internal),
        None => Ok(scale::to_scale(object)),
    }
}

fn success(code: StatusCode) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16()})
}
