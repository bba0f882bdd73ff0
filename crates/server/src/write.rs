//! Writing: create, update, patch. Each is a pure change of one object, then a compare-and-swap.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;
use portolan_api::patch::{self, PatchError};
use portolan_api::service::{self, Refusal};
use portolan_api::status::strict_decoding_error;
use portolan_api::{FieldError, Kind, Status, meta, ownership, schema, strict, walk};
use portolan_store::{Compare, Op, Revision, Txn, TxnOutcome};
use serde_json::Value;

use crate::apply::{self, Owners, ourselves};
use crate::delete::{removal, vanishes};
use crate::http::{Answer, Call, json as respond, store_status, warn};
use crate::object::{bare, stored};
use crate::read::object_key;
use crate::server::Server;
use crate::{claims, random};

/// How often a write begins again because another one was faster. Every round means that somebody else got through.
const ROUNDS: usize = 64;
/// How many names are tried for `generateName`, as in kube-apiserver (`maxNameGenerationCreateAttempts`).
const NAMES: usize = 8;

/// Which part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but the status.
    Main,
    /// The status.
    Status,
    /// Exactly what the change changes: subresources whose rules are their own.
    Exact,
}

/// An object that is to be changed.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub kind: &'static Kind,
    pub namespace: Option<&'a str>,
    pub name: &'a str,
}

impl Subject<'_> {
    pub(crate) fn key(&self) -> Arc<str> {
        object_key(self.kind, self.namespace, self.name).into()
    }
}

/// How a patch is laid over an object.
#[derive(Clone, Copy)]
enum Way {
    Merge,
    Json,
    Strategic,
}

/// A patch as it came.
pub(crate) struct Patch {
    way: Way,
    value: Value,
    /// What stands in it twice.
    complaints: Vec<String>,
    kind: &'static Kind,
}

impl Patch {
    /// What becomes of an object under it.
    pub(crate) fn lay_over(&self, old: &Value) -> Result<Value, Status> {
        let mut new = old.clone();
        match self.way {
            Way::Merge => patch::merge(&mut new, &self.value),
            Way::Json => patch::json(&mut new, &self.value),
            Way::Strategic => patch::strategic(&mut new, &self.value, self.kind),
        }
        .map_err(patch_status)?;
        Ok(new)
    }

    /// What a refusal shows: the patch, or what it has made.
    fn shown(&self, made: &Value) -> String {
        match self.way {
            Way::Strategic => strict::go_map(&self.value),
            Way::Merge | Way::Json => made.to_string(),
        }
    }
}

/// Drops the fields that a kind doesn't have, as they would be dropped by a server with structs.
fn prune(kind: &Kind, object: &mut Value) {
    if let (Some(of), Some(map)) = (schema::of_kind(kind), object.as_object_mut()) {
        schema::go::prune_fields(map, of.get());
    }
}

fn unknown_field(path: &str) -> String {
    format!("unknown field {path:?}")
}

impl Call {
    /// The object in the path.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject { kind: self.kind, namespace: self.path.namespace.as_deref(), name: self.name() }
    }

    /// The body as an object of this path's kind and namespace; what strict decoding has against it and is tolerated goes to
    /// `warnings`.
    fn object(&self, warnings: &mut Vec<String>) -> Result<Value, Status> {
        let kind = self.kind;
        let (mut object, complaints) = self.read_strictly()?;
        if object.is_null() {
            object = Value::Object(serde_json::Map::new());
        }
        self.foreign(&object)?;
        self.admit(&object).map_err(|why| Status::undecodable(kind, &why))?;
        if let Some(namespace) = self.path.namespace.as_deref() {
            let claimed = meta::namespace(&object);
            if !claimed.is_empty() && claimed != namespace {
                return Err(Status::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
        }
        let unknown = kind.decode(&object).map_err(|why| Status::undecodable(kind, &why))?;
        // Kinds without a row in the table of types are known by their structs alone.
        let complaints = match schema::of_kind(kind) {
            Some(_) => complaints,
            None => complaints.into_iter().chain(unknown.iter().map(|path| unknown_field(path))).collect(),
        };
        if !complaints.is_empty() {
            match self.query.get("fieldValidation") {
                Some("Strict") => {
                    // Of YAML, what stands there twice is named by its line, and as a fault of YAML.
                    let yaml = |text: &String| match text.starts_with("line ") {
                        true => format!("yaml: unmarshal errors:\n  {text}"),
                        false => text.clone(),
                    };
                    let complaints: Vec<String> = complaints.iter().map(yaml).collect();
                    return Err(Status::strict_decoding(kind, &complaints));
                }
                Some("Ignore") => {}
                _ => warnings.extend(complaints),
            }
            prune(kind, &mut object);
        }
        Ok(object)
    }

    /// The same for what a patch has made. `complaints` are those about the patch itself; unknown fields that `old` had are no
    /// news.
    fn admit_patched(&self, patch: &Patch, new: &mut Value, old: &Value) -> Result<Vec<String>, Status> {
        let kind = self.kind;
        let shown = patch.shown(new);
        let unfit = |why: &str| Status::invalid_patch(&shown, why);
        self.admit(new).map_err(|why| unfit(&why))?;
        if meta::name(new) != self.name() {
            return Err(Status::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                meta::name(new),
                self.name()
            )));
        }
        if let uid = meta::uid(new)
            && !uid.is_empty()
            && uid != meta::uid(old)
        {
            let error = FieldError::invalid("metadata.uid", uid, "field is immutable");
            return Err(Status::invalid(kind, self.name(), &[error]));
        }
        let mut unknown = kind.decode(new).map_err(|why| unfit(&why))?;
        if !unknown.is_empty() {
            let before = kind.decode(old).unwrap_or_default();
            unknown.retain(|field| !before.contains(field));
        }
        let mut complaints = patch.complaints.clone();
        complaints.extend(unknown.iter().map(|path| unknown_field(path)));
        if !unknown.is_empty() {
            prune(kind, new);
        }
        match self.query.get("fieldValidation") {
            _ if complaints.is_empty() => Ok(complaints),
            Some("Strict") => Err(unfit(&strict_decoding_error(&complaints))),
            Some("Ignore") => Ok(Vec::new()),
            _ => Ok(complaints),
        }
    }

    /// Checks that an object is of this path's kind, and what must be so whatever its kind; says why it isn't.
    fn admit(&self, object: &Value) -> Result<(), String> {
        let kind = self.kind;
        if !object.is_object() {
            return Err("the body is not a JSON object".into());
        }
        if walk::size(object, walk::DEPTH).is_none() {
            return Err(format!("the object is nested more than {} levels deep", walk::DEPTH));
        }
        let own = kind.api_version();
        let text = |name| Some(walk::text(object, name)).filter(|text| !text.is_empty());
        let (version, word) = (text("apiVersion").unwrap_or(&own), text("kind").unwrap_or(kind.kind));
        if schema::of_kind(kind).is_some() && schema::of(version, word).is_none() {
            // The place is that of the scheme in Kubernetes' source; clients see it in this text.
            return Err(format!(
                "no kind {word:?} is registered for version {version:?} in scheme \"pkg/runtime/scheme.go:111\""
            ));
        }
        if version != own || word != kind.kind {
            return Err(format!("{version} {word} is not {own} {}", kind.kind));
        }
        let wrong = schema::of_kind(kind).and_then(|of| strict::mismatch(object, &of));
        wrong.map_or(Ok(()), Err)
    }

    /// Whether the body says that it is something else than this path's kind: what is known, and not wanted here.
    fn foreign(&self, object: &Value) -> Result<(), Status> {
        let kind = self.kind;
        let (version, word) = (walk::text(object, "apiVersion"), walk::text(object, "kind"));
        let known = |version: &str, word: &str| schema::of(version, word).is_some();
        if !version.is_empty() && version != kind.api_version() && (word.is_empty() || known(version, word)) {
            return Err(Status::bad_request(format!(
                "the API version in the data ({version}) does not match the expected API version ({})",
                kind.api_version()
            )));
        }
        if !word.is_empty() && word != kind.kind && known(&kind.api_version(), word) {
            let internal = |word: &str| {
                let group = kind.group.split('.').next().unwrap_or_default();
                format!("{}.{word}", if group.is_empty() { "core" } else { group })
            };
            return Err(Status::bad_request(format!(
                "{word} in version {:?} cannot be handled as a {}: converting ({}.{word}) to ({}): unknown conversion",
                kind.version,
                kind.kind,
                kind.version,
                internal(kind.kind)
            )));
        }
        Ok(())
    }

    /// The body of a PUT: the name must be the path's.
    fn replacement(&self, warnings: &mut Vec<String>) -> Result<Value, Status> {
        let object = self.object(warnings)?;
        let name = meta::name(&object);
        if !name.is_empty() && name != self.name() {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.name()
            )));
        }
        Ok(object)
    }

    /// The body as a patch.
    pub(crate) fn patch(&self) -> Result<Patch, Status> {
        let way = match self.media.as_str() {
            "application/merge-patch+json" => Way::Merge,
            "application/json-patch+json" => Way::Json,
            "application/strategic-merge-patch+json" => Way::Strategic,
            _ => {
                return Err(Status::unsupported_media_type(&[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                    apply::MEDIA,
                ]));
            }
        };
        let about = if matches!(way, Way::Strategic) { "" } else { "error decoding patch: " };
        let refuse = |why: &str| Status::bad_request(format!("{about}{why}"));
        let (value, complaints) = strict::read(&self.body, None).map_err(|why| refuse(&why))?;
        match (way, &value) {
            (Way::Json, Value::Array(_)) | (Way::Merge | Way::Strategic, Value::Object(_) | Value::Null) => {}
            (way, other) => {
                let wanted = if matches!(way, Way::Json) {
                    "[]handlers.jsonPatchOp"
                } else {
                    "map[string]interface {}"
                };
                let found = strict::word(other);
                return Err(refuse(&format!(
                    "json: cannot unmarshal {found} into Go value of type {wanted}"
                )));
            }
        }
        let value = if value.is_null() { serde_json::json!({}) } else { value };
        Ok(Patch { way, value, complaints, kind: self.kind })
    }

    /// The answer to a write.
    pub(crate) fn written(&self, code: StatusCode, object: Value, warnings: &[String]) -> Answer {
        Ok(warn(respond(code, &self.show(object)), warnings))
    }
}

impl Server {
    /// POST to a collection.
    pub(crate) async fn create(&self, call: &Call) -> Answer {
        let dry_run = call.dry_run()?;
        let mut warnings = Vec::new();
        let mut object = call.object(&mut warnings)?;
        if let (true, Some(who)) = (call.kind.has("approval"), &call.caller.identity) {
            portolan_api::kinds::certificate::requested_by(&mut object, &who.user, &who.groups);
        }
        let now = meta::rfc3339(Timestamp::now());
        let (namespace, owners) = (call.path.namespace.as_deref(), Owners::Counted(call.author(&now)));
        let (object, more) = self.create_object_as(call.kind, namespace, object, dry_run, owners).await?;
        warnings.extend(more);
        call.written(StatusCode::CREATED, object, &warnings)
    }

    /// Makes an object of our own.
    pub(crate) async fn create_object(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        object: Value,
        dry_run: bool,
    ) -> Result<(Value, Vec<String>), Status> {
        let now = meta::rfc3339(Timestamp::now());
        self.create_object_as(kind, namespace, object, dry_run, Owners::Counted(ourselves(&now))).await
    }

    /// Makes an object, and gives it back as it was stored, with warnings.
    pub(crate) async fn create_object_as(
        &self,
        kind: &'static Kind,
        namespace: Option<&str>,
        object: Value,
        dry_run: bool,
        owners: Owners<'_>,
    ) -> Result<(Value, Vec<String>), Status> {
        if !matches!(meta::resource_version(&object), "" | "0") {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let generated = meta::name(&object).is_empty();
        let (mut names, mut rounds) = (0, 0);
        loop {
            let mut new = object.clone();
            meta::generate_name(&mut new, &mut random::below);
            meta::fill_system_fields(&mut new, namespace, &random::uuid(), Timestamp::now());
            let name = meta::name(&new).to_owned();
            let key: Arc<str> = object_key(kind, namespace, &name).into();
            let mut txn = Txn { compares: vec![Compare::Absent(key.clone())], ops: Vec::new() };
            if let Some(namespace) = namespace {
                // The namespace as it is now is a condition of the write: none slips into one that is being emptied.
                txn.compares.push(self.open_namespace(kind, &name, namespace).await?);
            }
            owners.settle(kind, &mut new, &Value::Null);
            kind.prepare_create(&mut new);
            self.allocate(kind, &mut new, None, dry_run, &mut txn).await?;
            let errors = kind.check_create(&new);
            if !errors.is_empty() {
                return Err(Status::invalid(kind, &name, &errors));
            }
            let warnings = kind.warnings(&new);
            if dry_run {
                let (entry, _) = self.store.get(&key).await.map_err(store_status)?;
                return match entry {
                    Some(_) => Err(Status::already_exists(kind, &name)),
                    None => Ok((new, warnings)),
                };
            }
            txn.ops.push(Op::Put(key, bare(kind, &new)));
            match self.store.txn(txn).await.map_err(store_status)? {
                TxnOutcome::Committed(revision) => {
                    meta::set_resource_version(&mut new, revision.0);
                    return Ok((new, warnings));
                }
                TxnOutcome::Refused { current, .. } if current.first().is_some_and(Option::is_some) => {
                    names += 1;
                    if !generated || names >= NAMES {
                        return Err(Status::already_exists(kind, &name));
                    }
                }
                // The namespace changed, or another Service was faster: look again.
                TxnOutcome::Refused { .. } => {
                    rounds += 1;
                    if rounds >= ROUNDS {
                        return Err(Status::server_timeout(kind, "create", 1));
                    }
                }
            }
        }
    }

    /// The condition that a namespace is still as it is; a refusal if nothing may be made in it.
    async fn open_namespace(&self, kind: &Kind, name: &str, namespace: &str) -> Result<Compare, Status> {
        let namespaces = self.namespaces();
        let key = object_key(namespaces, None, namespace);
        let (entry, _) = self.store.get(&key).await.map_err(store_status)?;
        let entry = entry.ok_or_else(|| Status::not_found(namespaces, namespace))?;
        let object = stored(namespaces, &entry.value, entry.mod_revision.0).unwrap_or_default();
        if meta::deletion_timestamp(&object).is_some() {
            return Err(Status::namespace_terminating(kind, name, namespace));
        }
        Ok(Compare::ModRevision(entry.key, entry.mod_revision))
    }

    /// Gives a Service its addresses and ports, and adds to the transaction what changes hands. A no-op for other kinds.
    async fn allocate(
        &self,
        kind: &Kind,
        new: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
        txn: &mut Txn,
    ) -> Result<(), Status> {
        if !is_service(kind) {
            return Ok(());
        }
        // What was acknowledged before this request counts as taken: wait until the index knows it.
        self.claims.reach(self.store.revision().await.map_err(store_status)?.0).await;
        let owner = format!("{}/{}", meta::namespace(new), meta::name(new));
        let taken = |claim: &service::Claim| self.claims.taken(claim, &owner);
        let outcome = service::allocate(new, old, &self.services, dry_run, &taken, &mut random::below);
        let _changes_hands = outcome.map_err(|refusal| match refusal {
            Refusal::Invalid(errors) => Status::invalid(kind, meta::name(new), &errors),
            Refusal::Internal(why) => Status::internal(why),
        })?;
        // The difference of what is held says the same by keys: ports that share a number share a claim.
        let (before, after) = (old.map(claims::held).unwrap_or_default(), claims::held(new));
        let (before, after): (BTreeSet<_>, BTreeSet<_>) = (before, after);
        for key in after.difference(&before) {
            txn.compares.push(Compare::Absent(key.clone()));
            txn.ops.push(Op::Put(key.clone(), claims::value(&owner)));
        }
        txn.ops.extend(before.difference(&after).map(|key| Op::Delete(key.clone())));
        Ok(())
    }

    /// PUT of an object.
    pub(crate) async fn update(&self, call: &Call) -> Answer {
        let dry_run = call.dry_run()?;
        let mut warnings = Vec::new();
        let mut body = call.replacement(&mut warnings)?;
        let now = meta::rfc3339(Timestamp::now());
        let owners = Owners::Counted(call.author(&now));
        let changed = self.modify_as(call.subject(), Part::Main, dry_run, owners, |_| Ok(body.clone())).await;
        match changed {
            Err(status) if status.code == 404 && creates(call.kind, &body) => {
                walk::set(&mut body, "metadata.name", call.name());
                let namespace = call.path.namespace.as_deref();
                let (object, more) =
                    self.create_object_as(call.kind, namespace, body, dry_run, owners).await?;
                warnings.extend(more);
                call.written(StatusCode::CREATED, object, &warnings)
            }
            changed => {
                let object = changed?;
                warnings.extend(call.kind.warnings(&object));
                call.written(StatusCode::OK, object, &warnings)
            }
        }
    }

    /// PATCH of an object.
    pub(crate) async fn patch(&self, call: &Call) -> Answer {
        self.patch_part(call, Part::Main).await
    }

    /// PUT of an object's status.
    pub(crate) async fn update_status(&self, call: &Call) -> Answer {
        let mut warnings = Vec::new();
        let body = call.replacement(&mut warnings)?;
        let now = meta::rfc3339(Timestamp::now());
        let owners = Owners::Counted(call.author(&now));
        let make = |_: &Value| Ok(body.clone());
        let object = self.modify_as(call.subject(), Part::Status, call.dry_run()?, owners, make).await?;
        call.written(StatusCode::OK, object, &warnings)
    }

    /// PATCH of an object's status.
    pub(crate) async fn patch_status(&self, call: &Call) -> Answer {
        self.patch_part(call, Part::Status).await
    }

    async fn patch_part(&self, call: &Call, part: Part) -> Answer {
        if call.media == apply::MEDIA {
            return self.apply(call, part).await;
        }
        let patch = call.patch()?;
        let warnings = parking_lot::Mutex::new(Vec::new());
        let make = |old: &Value| {
            let mut new = patch.lay_over(old)?;
            *warnings.lock() = call.admit_patched(&patch, &mut new, old)?;
            Ok(new)
        };
        let now = meta::rfc3339(Timestamp::now());
        let owners = Owners::Counted(call.author(&now));
        let object = self.modify_as(call.subject(), part, call.dry_run()?, owners, make).await?;
        let mut warnings = warnings.into_inner();
        if part == Part::Main {
            warnings.extend(call.kind.warnings(&object));
        }
        call.written(StatusCode::OK, object, &warnings)
    }

    /// Changes a stored object; who owns its fields stays as it is.
    pub(crate) async fn modify(
        &self,
        subject: Subject<'_>,
        part: Part,
        dry_run: bool,
        make: impl Fn(&Value) -> Result<Value, Status>,
    ) -> Result<Value, Status> {
        self.modify_as(subject, part, dry_run, Owners::Kept, make).await
    }

    /// Changes a stored object: `make` says what becomes of it, and is asked again when another write was faster. A
    /// resource version that `make` puts in (or leaves) must be the stored one; that it leaves the old one is no demand,
    /// since it is asked anew with the newer object. What changes nothing isn't written.
    pub(crate) async fn modify_as(
        &self,
        subject: Subject<'_>,
        part: Part,
        dry_run: bool,
        owners: Owners<'_>,
        make: impl Fn(&Value) -> Result<Value, Status>,
    ) -> Result<Value, Status> {
        let Subject { kind, name, .. } = subject;
        let key = subject.key();
        for _ in 0..ROUNDS {
            let (old, revision) = self.stored(kind, &key, name).await?;
            let mut new = make(&old)?;
            check_identity(kind, name, &new, &old)?;
            owners.settle(kind, &mut new, &old);
            let mut txn =
                Txn { compares: vec![Compare::ModRevision(key.clone(), revision)], ops: Vec::new() };
            let errors = match part {
                Part::Main => {
                    kind.prepare_update(&mut new, &old);
                    self.allocate(kind, &mut new, Some(&old), dry_run, &mut txn).await?;
                    kind.count_generation(&mut new, &old);
                    kind.check_update(&new, &old)
                }
                Part::Status => {
                    kind.prepare_status_update(&mut new, &old);
                    kind.check_status_update(&new, &old)
                }
                Part::Exact => Vec::new(),
            };
            if !errors.is_empty() {
                return Err(Status::invalid(kind, name, &errors));
            }
            meta::set_resource_version(&mut new, revision.0);
            ownership::keep_times(&mut new, &old);
            if new == old || dry_run {
                return Ok(new);
            }
            if vanishes(kind, &new) {
                txn = removal(kind, &key, &old, revision);
            } else {
                txn.ops.push(Op::Put(key.clone(), bare(kind, &new)));
            }
            if let Some(Revision(revision)) = self.commit(txn).await? {
                meta::set_resource_version(&mut new, revision);
                return Ok(new);
            }
        }
        Err(Status::modified(kind, name))
    }

    /// Commits a transaction; none if a condition didn't hold.
    pub(crate) async fn commit(&self, txn: Txn) -> Result<Option<Revision>, Status> {
        match self.store.txn(txn).await.map_err(store_status)? {
            TxnOutcome::Committed(revision) => Ok(Some(revision)),
            TxnOutcome::Refused { .. } => Ok(None),
        }
    }
}

/// Whether this is the kind whose objects claim addresses and ports.
pub(crate) fn is_service(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.kind == "Service"
}

/// Whether a PUT of what isn't there makes it (`AllowCreateOnUpdate` of the strategies in kube-apiserver). Not one that
/// is meant for an object that was there.
fn creates(kind: &Kind, body: &Value) -> bool {
    let by_kind =
        matches!(kind.kind, "Service" | "Endpoints" | "Lease" | "Event" | "LimitRange" | "RuntimeClass");
    (by_kind || kind.group == "rbac.authorization.k8s.io")
        && meta::uid(body).is_empty()
        && matches!(meta::resource_version(body), "" | "0")
}

/// A write that names a version or a UID is meant for that very object.
pub(crate) fn check_identity(kind: &Kind, name: &str, new: &Value, old: &Value) -> Result<(), Status> {
    let version = meta::resource_version(new);
    if !matches!(version, "" | "0") && version != meta::resource_version(old) {
        return Err(Status::modified(kind, name));
    }
    let (uid, stored) = (meta::uid(new), meta::uid(old));
    if !uid.is_empty() && uid != stored {
        return Err(Status::uid_precondition(kind, name, uid, stored));
    }
    Ok(())
}

/// What a patch's failure is to a client.
pub(crate) fn patch_status(error: PatchError) -> Status {
    match error {
        PatchError::Malformed(why) => Status::bad_request(why),
        PatchError::Unapplicable(_) => Status::rejected(),
        PatchError::Broken(why) => Status::plain(500, why),
    }
}
