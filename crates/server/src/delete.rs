//! Deleting: at once, after a grace, or when the last finalizer has gone.

use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;
use portolan_api::custom::names;
use portolan_api::fielderror::FieldError;
use portolan_api::kinds::definition::CUSTOM_RESOURCE_DEFINITION;
use portolan_api::kinds::namespace;
use portolan_api::kinds::pod::POD;
use portolan_api::{Kind, Status, meta, walk};
use portolan_store::{Compare, Op, Revision, Txn};
use serde_json::{Value, json};

use crate::claims;
use crate::http::{Answer, Call, json as respond, warn};
use crate::object::{Selection, bare};
use crate::options::{self, dry_run_errors};
use crate::read::{Page, object_key, render};
use crate::server::Server;
use crate::write::{Subject, is_service};

/// The garbage collector's finalizers (apimachinery `FinalizerOrphanDependents`, `FinalizerDeleteDependents`).
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// How an object shall go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    grace_s: Option<i64>,
    policy: Option<Policy>,
    uid: Option<String>,
    version: Option<String>,
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Background,
    Foreground,
    Orphan,
}

impl Options {
    /// From the body, else from the query.
    fn read(call: &Call) -> Result<Options, Status> {
        let body = if call.body.is_empty() { json!({}) } else { call.read(("v1", "DeleteOptions"))? };
        let mut options = Options::from_value(&body)?;
        // A body is all that is heeded then, also when it says nothing.
        if !call.body.is_empty() {
            return Ok(options);
        }
        if options.grace_s.is_none() {
            let text = call.query.get("gracePeriodSeconds");
            let parsed = text.map(str::parse).transpose();
            options.grace_s =
                parsed.map_err(|_| Status::bad_request("gracePeriodSeconds: must be a whole number"))?;
        }
        if options.policy.is_none() {
            options.policy =
                policy(call.query.get("propagationPolicy")).map_err(|error| refused(&[error]))?;
        }
        if options.policy.is_none() && call.query.flag("orphanDependents") {
            options.policy = Some(Policy::Orphan);
        }
        let dry: Vec<&str> = call.query.all("dryRun").filter(|value| !value.is_empty()).collect();
        if let Some(error) = dry_run_errors(&dry) {
            return Err(refused(&[error]));
        }
        options.dry_run |= !dry.is_empty();
        Ok(options)
    }

    /// What comes as a surprise.
    fn warnings(&self, kind: &Kind) -> Vec<String> {
        let surprises = kind.group() == "batch" && kind.kind() == "Job" && self.policy.is_none();
        let text = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them \
                    or set propagationPolicy=Orphan to suppress this warning";
        surprises.then(|| text.to_owned()).into_iter().collect()
    }

    /// Whether nothing may be deleted.
    pub(crate) fn dry_run(&self) -> bool {
        self.dry_run
    }

    /// From a `DeleteOptions` object.
    pub(crate) fn from_value(body: &Value) -> Result<Options, Status> {
        let text = |path| Some(walk::text(body, path).to_owned()).filter(|text| !text.is_empty());
        let asked = walk::at(body, "propagationPolicy").and_then(Value::as_str);
        let orphan = walk::flag(body, "orphanDependents");
        let mut errors = Vec::new();
        if let (Some(asked), Some(_)) = (asked, orphan) {
            let why = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid("propagationPolicy", asked, why));
        }
        let dry: Vec<&str> = walk::list(body, "dryRun").iter().filter_map(Value::as_str).collect();
        let mut chosen = policy(asked).map_err(|error| errors.push(error)).unwrap_or_default();
        errors.extend(dry_run_errors(&dry));
        if !errors.is_empty() {
            return Err(refused(&errors));
        }
        // The older way to say it.
        if let (None, Some(orphan)) = (chosen, orphan) {
            chosen = Some(if orphan { Policy::Orphan } else { Policy::Background });
        }
        Ok(Options {
            grace_s: walk::int(body, "gracePeriodSeconds"),
            policy: chosen,
            uid: text("preconditions.uid"),
            version: text("preconditions.resourceVersion"),
            dry_run: !dry.is_empty(),
        })
    }
}

fn refused(errors: &[FieldError]) -> Status {
    Status::invalid_options("DeleteOptions", errors)
}

fn policy(text: Option<&str>) -> Result<Option<Policy>, FieldError> {
    match text {
        None => Ok(None),
        Some("Background") => Ok(Some(Policy::Background)),
        Some("Foreground") => Ok(Some(Policy::Foreground)),
        Some("Orphan") => Ok(Some(Policy::Orphan)),
        Some(other) => {
            let known = ["Foreground", "Background", "Orphan", "nil"];
            Err(FieldError::not_supported("propagationPolicy", other, &known))
        }
    }
}

/// What became of a deletion.
pub(crate) enum Deleted {
    /// The object is gone; this is what it was.
    Gone(Value),
    /// The object will go; this is what it is now.
    Going(Value),
}

/// Whether an object that is written like this is gone with it: it is being deleted, its grace is over, nobody holds it.
pub(crate) fn vanishes(kind: &Kind, object: &Value) -> bool {
    meta::deletion_timestamp(object).is_some()
        && walk::int(object, "metadata.deletionGracePeriodSeconds").unwrap_or(0) == 0
        && meta::finalizers(object).is_empty()
        && !held_by_content(kind, object)
}

/// A namespace stays until its content is gone: its finalizers are in `spec` (removed through `/finalize`).
fn held_by_content(kind: &Kind, object: &Value) -> bool {
    kind.kind() == "Namespace" && !walk::list(object, "spec.finalizers").is_empty()
}

/// The transaction that removes a stored object and what is kept beside it.
pub(crate) fn removal(kind: &Kind, key: &Arc<str>, old: &Value, revision: Revision) -> Txn {
    let mut ops = vec![Op::Delete(key.clone())];
    if is_service(kind) {
        ops.extend(claims::held(old).into_iter().map(Op::Delete));
        // The Endpoints of the same name go with the Service (registry/core/service/storage `DeleteEndpoints`).
        if let Some(endpoints) = portolan_api::find("", "v1", "endpoints") {
            let key = object_key(endpoints, Some(meta::namespace(old)), meta::name(old));
            ops.push(Op::Delete(key.into()));
        }
    }
    Txn { compares: vec![Compare::ModRevision(key.clone(), revision)], ops }
}

/// How long an object may take to go.
fn grace_s(kind: &Kind, object: &Value, asked: Option<i64>) -> i64 {
    if kind.kind() != "Pod" {
        return 0;
    }
    // A pod that runs nowhere, or no longer, has nothing to shut down (registry/core/pod/strategy.go CheckGracefulDelete).
    let settled = matches!(walk::text(object, "status.phase"), "Succeeded" | "Failed");
    if walk::text(object, "spec.nodeName").is_empty() || settled {
        return 0;
    }
    let grace = asked.or_else(|| walk::int(object, "spec.terminationGracePeriodSeconds")).unwrap_or(30);
    if grace < 0 { 1 } else { grace }
}

impl Server {
    /// DELETE of an object.
    pub(crate) async fn delete(&self, call: &Call) -> Answer {
        let options = Options::read(call)?;
        let kind = &call.kind;
        self.guard(call, None, None)?;
        let warnings = options.warnings(kind);
        let deleted = self.delete_object(call.subject(), &options).await;
        let answer = match deleted.map_err(|status| status.warned(&warnings))? {
            Deleted::Going(object) => respond(StatusCode::OK, &call.show(object)),
            Deleted::Gone(object) if returns_object(kind) => respond(StatusCode::OK, &call.show(object)),
            Deleted::Gone(object) => {
                respond(StatusCode::OK, &Status::deleted(kind, call.name(), meta::uid(&object)))
            }
        };
        Ok(warn(answer, &warnings))
    }

    /// DELETE of a collection.
    pub(crate) async fn delete_collection(&self, call: &Call) -> Answer {
        let options = Options::read(call)?;
        options::numbers(&call.query)?;
        options::listing(&call.query)?;
        let selection: Selection = call.selection()?;
        let page = self.page(call, &selection).await?;
        for object in &page.objects {
            let namespace = Some(object.namespace(&call.kind)).filter(|namespace| !namespace.is_empty());
            let subject = Subject { kind: &call.kind, namespace, name: object.name() };
            match self.delete_object(subject, &options).await {
                Ok(_) => {}
                // Somebody else was faster: gone is gone.
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        Ok(warn(render(call, &Page { next: None, remaining: None, ..page }), &options.warnings(&call.kind)))
    }

    /// Deletes an object, or marks it for deletion.
    pub(crate) async fn delete_object(
        &self,
        subject: Subject<'_>,
        options: &Options,
    ) -> Result<Deleted, Status> {
        let Subject { kind, name, .. } = subject;
        if kind.kind() == "Namespace" && matches!(name, "default" | "kube-system" | "kube-public") {
            return Err(Status::forbidden(kind, name, "this namespace may not be deleted"));
        }
        let key = subject.key();
        loop {
            let (old, revision) = self.stored(kind, &key, name).await?;
            if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != meta::uid(&old)) {
                return Err(Status::uid_to_delete(kind, name, uid, meta::uid(&old)));
            }
            if let Some(version) = options.version.as_deref().filter(|v| *v != meta::resource_version(&old)) {
                return Err(Status::version_to_delete(kind, name, version, meta::resource_version(&old)));
            }
            let mut new = old.clone();
            if *kind == CUSTOM_RESOURCE_DEFINITION {
                mark_definition(&mut new);
            } else {
                // A pod that is on its way out can be told to hurry, and nothing else.
                let left = walk::int(&old, "metadata.deletionGracePeriodSeconds");
                let going = kind.kind() == "Pod" && meta::deletion_timestamp(&old).is_some();
                let pending =
                    left.is_some_and(|left| left != 0 && options.grace_s.is_none_or(|asked| asked >= left));
                if !(going && pending) {
                    // Nothing is an event's (`GarbageCollectionPolicy` Unsupported).
                    // What an object holds itself for comes before what its kind is (`shouldOrphanDependents`).
                    let chosen = meta::finalizers(&old).iter().any(|f| matches!(*f, ORPHAN | FOREGROUND));
                    let policy = options.policy.or_else(|| default_policy(kind).filter(|_| !chosen));
                    hold(&mut new, if kind.kind() == "Event" { Some(Policy::Background) } else { policy });
                }
                match *kind == namespace::NAMESPACE {
                    // What is in a namespace is let go at its own pace.
                    true => namespace::begin_deletion(&mut new, Timestamp::now()),
                    false => {
                        meta::mark_deleted(&mut new, Timestamp::now(), grace_s(kind, &old, options.grace_s))
                    }
                }
            }
            let gone = vanishes(kind, &new);
            // What goes at once was never seen marked, but for pods.
            let last = |new: Value| if *kind == POD { new } else { old.clone() };
            if options.dry_run || (!gone && new == old) {
                return Ok(if gone { Deleted::Gone(last(new)) } else { Deleted::Going(new) });
            }
            let txn = if gone {
                removal(kind, &key, &old, revision)
            } else {
                Txn {
                    compares: vec![Compare::ModRevision(key.clone(), revision)],
                    ops: vec![Op::Put(key.clone(), bare(kind, &new))],
                }
            };
            let Some(Revision(revision)) = self.commit(txn).await? else { continue };
            if gone {
                let mut last = last(new);
                meta::set_resource_version(&mut last, revision);
                return Ok(Deleted::Gone(last));
            }
            meta::set_resource_version(&mut new, revision);
            return Ok(Deleted::Going(new));
        }
    }
}

/// A definition goes after its objects (apiextensions-apiserver registry/customresourcedefinition/etcd.go).
fn mark_definition(definition: &mut Value) {
    if meta::deletion_timestamp(definition).is_some() {
        return;
    }
    let now = meta::rfc3339(Timestamp::now());
    walk::set(definition, "metadata.deletionTimestamp", now.as_str());
    let mut finalizers = walk::list(definition, "metadata.finalizers").to_vec();
    if !finalizers.iter().any(|finalizer| *finalizer == *names::CLEANUP) {
        finalizers.push(names::CLEANUP.into());
    }
    walk::set(definition, "metadata.finalizers", finalizers);
    let why = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    names::set(definition, ["Terminating", "True", "InstanceDeletionPending", why], &now);
}

/// What becomes of the pods of the oldest kinds if nobody says: they stay (`DefaultGarbageCollectionPolicy`).
fn default_policy(kind: &Kind) -> Option<Policy> {
    matches!((kind.group(), kind.kind()), ("", "ReplicationController") | ("batch", "Job"))
        .then_some(Policy::Orphan)
}

/// Sets the garbage collector's finalizers as the policy wants them; without a policy they stay.
fn hold(object: &mut Value, policy: Option<Policy>) {
    let Some(policy) = policy else { return };
    let before = meta::finalizers(object);
    let mut after: Vec<&str> = before.iter().copied().filter(|f| *f != ORPHAN && *f != FOREGROUND).collect();
    match policy {
        Policy::Background => {}
        Policy::Foreground => after.push(FOREGROUND),
        Policy::Orphan => after.push(ORPHAN),
    }
    if after == before {
        return;
    }
    let after: Value = after.into_iter().collect();
    if after.as_array().is_some_and(Vec::is_empty) {
        walk::remove(object, "metadata.finalizers");
    } else {
        walk::set(object, "metadata.finalizers", after);
    }
}

/// Kinds whose deletion answers with the object instead of a Status (`ReturnDeletedObject` in kube-apiserver's storages).
fn returns_object(kind: &Kind) -> bool {
    match kind.group() {
        "" => matches!(
            kind.kind(),
            "Pod"
                | "Service"
                | "ServiceAccount"
                | "Namespace"
                | "ResourceQuota"
                | "PersistentVolume"
                | "PersistentVolumeClaim"
                | "PodTemplate"
        ),
        "storage.k8s.io" => kind.kind() != "CSIStorageCapacity",
        _ => false,
    }
}
