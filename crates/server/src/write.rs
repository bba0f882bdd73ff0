//! Writing: create, update, patch. Each is a pure change of one object, then a compare-and-swap.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;
use portolan_api::fielderror::{FieldError, go_value};
use portolan_api::kinds::service_cidr;
use portolan_api::patch::{self, PatchError};
use portolan_api::service::{self, Refusal};
use portolan_api::{Kind, Status, meta, ownership, protobuf, schema, status, strict, walk};
use portolan_store::{Compare, Entry, Op, Range, Revision, Txn, TxnOutcome};
use serde_json::Value;

use crate::apply::{self, Owners, ourselves};
use crate::cache::prefix;
use crate::delete::{removal, vanishes};
use crate::http::{Answer, Call, json as respond, store_status, warn};
use crate::object::{bare, stored};
use crate::read::object_key;
use crate::server::Server;
use crate::{claims, random};

/// How often a write begins again because another one was faster. Every round means that somebody else got through.
const ROUNDS: usize = 64;
/// How custom objects are patched.
const CUSTOM_PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
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
    pub kind: &'a Kind,
    pub namespace: Option<&'a str>,
    pub name: &'a str,
}

impl Subject<'_> {
    pub(crate) fn key(&self) -> Arc<str> {
        object_key(self.kind, self.namespace, self.name).into()
    }
}

impl Call {
    /// The object in the path.
    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject { kind: &self.kind, namespace: self.path.namespace.as_deref(), name: self.name() }
    }

    /// Checks that a body is of this path's kind and namespace and has no field that the kind doesn't know; what is
    /// tolerated goes to `warnings`. `complaints` are what reading the body has found already. `refuse` says what a body that doesn't fit the kind is to the client.
    fn admit(
        &self,
        object: &mut Value,
        refuse: &dyn Fn(&Value, &str) -> Status,
        complaints: &[String],
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let kind = &self.kind;
        if !object.is_object() {
            return Err(refuse(object, "the body is not a JSON object"));
        }
        if walk::size(object, walk::DEPTH).is_none() {
            let why = format!("the object is nested more than {} levels deep", walk::DEPTH);
            return Err(refuse(&Value::Null, &why));
        }
        let decoded = kind.read(object);
        // Empty is the same as left out.
        for field in ["apiVersion", "kind"] {
            if walk::text(object, field).is_empty() && object[field].is_string() {
                walk::remove(object, field);
            }
        }
        let (version, name) = (object["apiVersion"].as_str(), object["kind"].as_str());
        let refuse_kind = |name: &str, version: &str| {
            let status = Status::another_kind(kind, name, version);
            if self.method == http::Method::PATCH { refuse(object, &status.message) } else { status }
        };
        if kind.custom().is_some() && self.method != http::Method::PATCH {
            if name.is_none() {
                return Err(self.kindless());
            }
            let version = version.unwrap_or_default();
            if version != kind.api_version() {
                return Err(Status::bad_request(format!(
                    "the API version in the data ({version}) does not match the expected API version ({})",
                    kind.api_version()
                )));
            }
        }
        // A strategic merge knows by itself what it merges.
        let said = self.media != "application/strategic-merge-patch+json";
        if let Some(version) =
            version.filter(|_| said).filter(|version| !version.is_empty() && *version != kind.api_version())
        {
            return Err(refuse_kind(name.unwrap_or(kind.kind()), version));
        }
        let patched = !said;
        // A custom kind's own rules say what else an object may not be.
        let said = said && kind.custom().is_none();
        if let Some(name) = name.filter(|_| said).filter(|name| !name.is_empty() && *name != kind.kind()) {
            return Err(refuse_kind(name, &kind.api_version()));
        }
        if patched {
            walk::set(object, "apiVersion", kind.api_version());
            walk::set(object, "kind", kind.kind());
        }
        let strictness = self.query.get("fieldValidation").unwrap_or("Warn");
        let mut unknown = decoded.map_err(|why| refuse(object, &why))?;
        if self.method == http::Method::PATCH && kind.custom().is_none() {
            // What a patch makes is a map of Go's by then, and is read or told in the order of its keys.
            unknown.sort();
        }
        if let Some(of) = kind.schema() {
            schema::go::date_conditions(object, of.get(), &meta::rfc3339(Timestamp::now()));
        }
        // Of a body that was read by its type, reading has found what is unknown too, in the order of the text.
        let mut said = complaints.to_vec();
        let read = kind.custom().is_none() && self.method != http::Method::PATCH;
        if !read || self.media == protobuf::MEDIA {
            said.extend(unknown.iter().map(|field| format!("unknown field {field:?}")));
        }
        if !said.is_empty() {
            match strictness {
                "Strict" => {
                    // Of YAML, what stands there twice is named by its line, and as a fault of YAML.
                    let yaml = |text: &String| match text.starts_with("line ") {
                        true => format!("yaml: unmarshal errors:\n  {text}"),
                        false => text.clone(),
                    };
                    let said: Vec<String> = said.iter().map(yaml).collect();
                    return Err(refuse(object, &status::strict_decoding_error(&said)));
                }
                "Ignore" => {}
                _ => warnings.extend(said),
            }
        }
        if let Some(namespace) = self.path.namespace.as_deref() {
            let claimed = meta::namespace(object);
            if !claimed.is_empty() && claimed != namespace {
                return Err(Status::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
        }
        let twice = meta::dedup_owners(object);
        if !twice.is_empty() {
            // Patches are looked at once only, behind admission.
            let when =
                if self.method == http::Method::PATCH { " after mutating admission happens" } else { "" };
            warnings.push(format!(
                ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and \
                 may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
                twice.join(", ")
            ));
        }
        Ok(())
    }

    /// The body of a POST or a PUT.
    fn object(&self, warnings: &mut Vec<String>) -> Result<Value, Status> {
        let (mut object, complaints) = self.read_strictly()?;
        if object.is_null() {
            object = Value::Object(serde_json::Map::new());
        }
        self.admit(&mut object, &|_, why| Status::undecodable(&self.kind, why), &complaints, warnings)?;
        Ok(object)
    }

    /// The same for a PUT: the name must be the path's.
    fn replaced(&self, warnings: &mut Vec<String>) -> Result<Value, Status> {
        let object = self.object(warnings)?;
        self.check_name(&object)?;
        Ok(object)
    }

    /// Checks that an object has the name in the path.
    fn check_name(&self, object: &Value) -> Result<(), Status> {
        match meta::name(object) {
            "" => Err(Status::bad_request(format!(
                "the name of the object ({} based on URL) was undeterminable: name must be provided",
                self.name()
            ))),
            name if name != self.name() => Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.name()
            ))),
            _ => Ok(()),
        }
    }

    /// The body as a patch: a function of the object that it patches.
    pub(crate) fn patch(&self) -> Result<impl Fn(&Value) -> Result<Value, Status> + use<>, Status> {
        #[derive(Clone, Copy)]
        enum Way {
            Merge,
            Json,
            Strategic,
        }
        let way = match self.media.as_str() {
            "application/merge-patch+json" => Way::Merge,
            "application/json-patch+json" => Way::Json,
            "application/strategic-merge-patch+json" => Way::Strategic,
            _ if self.kind.custom().is_some() => {
                return Err(Status::unsupported_media_type(&CUSTOM_PATCHES));
            }
            _ => {
                // The words of the router before Kubernetes' handlers.
                let message = "415: Unsupported Media Type".into();
                return Err(Status { message, ..Status::unsupported_media_type(&[]) });
            }
        };
        let patch: Result<Value, Status> = serde_json::from_slice(&self.body)
            .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")));
        if matches!(way, Way::Strategic) && self.kind.custom().is_some() {
            return Err(Status::unsupported_media_type(&CUSTOM_PATCHES));
        }
        let kind = self.kind.clone();
        let lenient = self.query.get("fieldValidation") == Some("Ignore");
        Ok(move |old: &Value| {
            // That there is nothing to patch is said first.
            let patch = patch.as_ref().map_err(Clone::clone)?;
            let mut new = old.clone();
            match way {
                // Where nothing is checked, a list takes the object's place, and isn't one (`jsonpatch.MergePatch`).
                Way::Merge if lenient && patch.is_array() => {
                    new = patch::unnulled(patch);
                    Ok(())
                }
                Way::Merge if patch.is_null() || lenient && !patch.is_object() => {
                    Err(Status::bad_request("Invalid JSON Patch"))
                }
                Way::Merge => patch::merge(&mut new, patch).map_err(|error| match error {
                    PatchError::Malformed(why) => Status::bad_request(format!("error decoding patch: {why}")),
                    error => patch_status(error),
                }),
                Way::Json => patch::json(&mut new, patch).map_err(|error| match error {
                    PatchError::Malformed(why) => Status::bad_request(format!("error decoding patch: {why}")),
                    PatchError::Unapplicable(_) => Status::unprocessable(),
                    PatchError::Unexpected(why) => Status::unexpected(why),
                }),
                Way::Strategic => patch::strategic(&mut new, patch, &kind).map_err(patch_status),
            }?;
            Ok(new)
        })
    }

    /// The answer to a write.
    pub(crate) fn written(&self, code: StatusCode, object: Value, warnings: &[String]) -> Answer {
        Ok(warn(respond(code, &self.show(object)), warnings))
    }
}

impl Server {
    /// POST to a collection.
    pub(crate) async fn create(&self, call: &Call) -> Answer {
        let dry_run = call.writing()?;
        let mut warnings = Vec::new();
        let object = call.object(&mut warnings);
        let mut object = object.map_err(|status| status.warned(&warnings))?;
        if call.kind.has("approval") {
            portolan_api::kinds::certificate::requested_by(&mut object, &call.user.user, &call.user.groups);
        }
        self.guard(call, Some(&object), None)?;
        let now = meta::rfc3339(Timestamp::now());
        let (namespace, owners) = (call.path.namespace.as_deref(), Owners::Counted(call.author(&now)));
        let made = self.create_object_as(&call.kind, namespace, object, dry_run, owners).await;
        let (object, more) = made.map_err(|status| status.warned(&warnings))?;
        warnings.extend(more);
        call.written(StatusCode::CREATED, object, &warnings)
    }

    /// Makes an object of our own.
    pub(crate) async fn create_object(
        &self,
        kind: &Kind,
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
        kind: &Kind,
        namespace: Option<&str>,
        object: Value,
        dry_run: bool,
        owners: Owners<'_>,
    ) -> Result<(Value, Vec<String>), Status> {
        let generated = meta::name(&object).is_empty();
        let (mut names, mut rounds) = (0, 0);
        if kind.custom().is_some_and(|custom| custom.is_terminating()) {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(Status::forbidden(kind, meta::name(&object), why));
        }
        loop {
            let mut new = object.clone();
            meta::generate_name(&mut new, &mut random::below);
            meta::fill_system_fields(&mut new, namespace, &random::uuid(), Timestamp::now());
            if kind.kind() == "LimitRange" && kind.group().is_empty() && meta::name(&new).is_empty() {
                // It may do without a name.
                walk::set(&mut new, "metadata.name", random::uuid().to_string());
            }
            let name = meta::name(&new).to_owned();
            let key: Arc<str> = object_key(kind, namespace, &name).into();
            let mut txn = Txn { compares: vec![Compare::Absent(key.clone())], ops: Vec::new() };
            if let Some(namespace) = namespace {
                // The namespace as it is now is a condition of the write: none slips into one that is being emptied.
                txn.compares.push(self.open_namespace(kind, &name, namespace).await?);
            }
            owners.settle(kind, &mut new, &Value::Null);
            kind.default(&mut new);
            let base = walk::text(&object, "metadata.generateName");
            let known_as = match (generated, base) {
                (false, _) => &name,
                (true, "") => "Unknown",
                (true, base) => base,
            };
            self.admit_new(kind, &mut new, known_as).await?;
            kind.prepare_create(&mut new);
            self.fill_token(kind, &mut new).await?;
            self.allocate(kind, &mut new, None, dry_run, &mut txn).await?;
            let errors = kind.check_create(&new);
            if !errors.is_empty() {
                return Err(invalid(kind, &new, &name, &errors));
            }
            if let Some(custom) = kind.custom() {
                new = custom.through_store(new);
            }
            self.charge(kind, &new, None, dry_run, &mut txn).await?;
            let warnings = kind.warnings(&new, None);
            if dry_run {
                let (entry, _) = self.store.get(&key).await.map_err(store_status)?;
                return match entry {
                    Some(entry) => Err(exists(kind, &new, &entry).warned(&warnings)),
                    None => {
                        // What was never written has no version but the one that it came with.
                        let version = meta::resource_version(&object);
                        if !version.is_empty() {
                            walk::set(&mut new, "metadata.resourceVersion", version);
                        }
                        Ok((new, warnings))
                    }
                };
            }
            // Text that is no number counts as none, as in Kubernetes.
            if meta::resource_version(&object).parse::<u64>().is_ok_and(|version| version != 0) {
                let message = "resourceVersion should not be set on objects to be created";
                return Err(Status::unexpected(message).warned(&warnings));
            }
            txn.ops.push(Op::Put(key, bare(kind, &new)));
            match self.store.txn(txn).await.map_err(store_status)? {
                TxnOutcome::Committed(revision) => {
                    meta::set_resource_version(&mut new, revision.0);
                    return Ok((new, warnings));
                }
                TxnOutcome::Refused { current, .. } if current.first().is_some_and(Option::is_some) => {
                    names += 1;
                    if let Some(Some(entry)) = current.first()
                        && (!generated || names >= NAMES)
                    {
                        return Err(exists(kind, &new, entry).warned(&warnings));
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
        // To a new Service even what one of its name holds is taken.
        let whose = if old.is_some() { owner.as_str() } else { "" };
        let nameless = meta::name(new).is_empty();
        let taken = |claim: &service::Claim| match claim {
            service::Claim::ClusterIp(_) if nameless => false,
            _ => self.claims.taken(claim, whose),
        };
        let (services, ranges) = self.ready_ranges().await?;
        let outcome = service::allocate(new, old, &services, dry_run, &taken, &mut random::below);
        if nameless && walk::text(new, "spec.type") != "ExternalName" && !service::is_headless(new) {
            // Nothing is given to a Service without a name, which is refused, but what its addresses can't be is said first.
            return match outcome {
                Err(Refusal::Invalid(errors))
                    if !errors.iter().all(|e| e.path.starts_with("spec.ports[")) =>
                {
                    Err(Status::invalid(kind, "", &errors))
                }
                _ => Ok(()),
            };
        }
        let _changes_hands = outcome.map_err(|refusal| match refusal {
            Refusal::Invalid(errors) => Status::invalid(kind, meta::name(new), &errors),
            Refusal::Internal(why) => Status::internal(why),
            Refusal::Unexpected(why) => Status::unexpected(why),
        })?;
        if nameless {
            return Ok(());
        }
        // The difference of what is held says the same by keys: ports that share a number share a claim.
        let (before, after) = (old.map(claims::held).unwrap_or_default(), claims::held(new));
        let (before, after): (BTreeSet<_>, BTreeSet<_>) = (before, after);
        for key in after.difference(&before) {
            txn.compares.push(Compare::Absent(key.clone()));
            txn.ops.push(Op::Put(key.clone(), claims::value(key, new)));
        }
        if after.difference(&before).next().is_some() {
            // No address comes from a range that is going.
            txn.compares.extend(ranges);
        }
        txn.ops.extend(before.difference(&after).map(|key| Op::Delete(key.clone())));
        Ok(())
    }

    /// The ranges that give addresses now, and the conditions that they still do.
    async fn ready_ranges(&self) -> Result<(service::ServiceConfig, Vec<Compare>), Status> {
        let kind: &Kind = &service_cidr::SERVICE_CIDR;
        let entries = self.store.range(Range::prefix(&prefix(kind))).await.map_err(store_status)?.entries;
        let (mut services, mut compares) = (self.services.clone(), Vec::new());
        for entry in entries {
            let Some(object) = stored(kind, &entry.value, entry.mod_revision.0) else { continue };
            if service_cidr::is_ready(&object) {
                services.ready.extend(service_cidr::ranges(&object));
                compares.push(Compare::ModRevision(entry.key, entry.mod_revision));
            }
        }
        Ok((services, compares))
    }

    /// PUT of an object.
    pub(crate) async fn update(&self, call: &Call) -> Answer {
        let dry_run = call.writing()?;
        let mut warnings = Vec::new();
        let body = call.replaced(&mut warnings);
        let mut body = body.map_err(|status| status.warned(&warnings))?;
        let now = meta::rfc3339(Timestamp::now());
        let owners = Owners::Counted(call.author(&now));
        let before = parking_lot::Mutex::new(Value::Null);
        let make = |old: &Value| {
            old.clone_into(&mut before.lock());
            self.replacement(call, &body, old)
        };
        let changed = self.modify_as(call.subject(), Part::Main, dry_run, owners, make).await;
        match changed {
            Err(status) if status.code == 404 && creates(&call.kind, &body) => {
                walk::set(&mut body, "metadata.name", call.name());
                // Which version it was has no meaning here; what isn't written keeps it.
                if !dry_run {
                    meta::clear_resource_version(&mut body);
                }
                self.may_create(call).await?;
                self.guard(call, Some(&body), None)?;
                let namespace = call.path.namespace.as_deref();
                let made = self.create_object_as(&call.kind, namespace, body, dry_run, owners).await;
                let (object, more) = made.map_err(|status| status.warned(&warnings))?;
                warnings.extend(more);
                call.written(StatusCode::CREATED, object, &warnings)
            }
            Err(status) if status.code == 404 && makes(&call.kind) => {
                // It is meant for another than the one that isn't there.
                Err(Status::uid_precondition(&call.kind, call.name(), meta::uid(&body), ""))
            }
            changed => {
                let object = changed.map_err(|status| status.warned(&warnings))?;
                warnings.extend(call.kind.warnings(&object, Some(&before.into_inner())));
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
        let dry_run = call.writing()?;
        let mut warnings = Vec::new();
        let body = call.replaced(&mut warnings)?;
        let now = meta::rfc3339(Timestamp::now());
        let owners = Owners::Counted(call.author(&now));
        let make = |old: &Value| self.replacement(call, &body, old);
        let changed = self.modify_as(call.subject(), Part::Status, dry_run, owners, make).await;
        let object = changed.map_err(|status| status.warned(&warnings))?;
        warnings.extend(call.kind.status_warnings(&object));
        call.written(StatusCode::OK, object, &warnings)
    }

    /// PATCH of an object's status.
    pub(crate) async fn patch_status(&self, call: &Call) -> Answer {
        self.patch_part(call, Part::Status).await
    }

    /// A body in the place of what is there, if it is meant for that object and its author may.
    fn replacement(&self, call: &Call, body: &Value, old: &Value) -> Result<Value, Status> {
        check_uid(&call.kind, call.name(), body, old)?;
        self.guard(call, Some(body), Some(old))?;
        Ok(body.clone())
    }

    async fn patch_part(&self, call: &Call, part: Part) -> Answer {
        if call.media == apply::MEDIA {
            return self.apply(call, part).await;
        }
        let patch = call.patch()?;
        // What stands in it twice.
        let twice = strict::read(&call.body, None).map(|(_, twice)| twice).unwrap_or_default();
        let dry_run = call.writing()?;
        let strategic = call.media == "application/strategic-merge-patch+json";
        let warnings = parking_lot::Mutex::new(Vec::new());
        let before = parking_lot::Mutex::new(Value::Null);
        let make = |old: &Value| {
            old.clone_into(&mut before.lock());
            let mut new = patch(old)?;
            let mut found = Vec::new();
            let refuse = |new: &Value, why: &str| match strategic {
                true => {
                    let patch: Value = serde_json::from_slice(&call.body).unwrap_or_default();
                    Status::invalid_patch(go_value(&patch), why)
                }
                false => Status::invalid_patch(new.to_string(), why),
            };
            let admitted = call.admit(&mut new, &refuse, &twice, &mut found);
            // A refusal is told with them.
            *warnings.lock() = found;
            admitted?;
            call.check_name(&new)?;
            self.guard(call, Some(&new), Some(old))?;
            Ok(new)
        };
        let now = meta::rfc3339(Timestamp::now());
        let owners = Owners::Counted(call.author(&now));
        let changed = self.modify_as(call.subject(), part, dry_run, owners, make).await;
        let mut warnings = warnings.into_inner();
        let object = changed.map_err(|status| status.warned(&warnings))?;
        match part {
            Part::Main => warnings.extend(call.kind.warnings(&object, Some(&before.into_inner()))),
            _ => warnings.extend(call.kind.status_warnings(&object)),
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
            check_version(kind, name, &new, &old)?;
            // Version 0 is none (`AllowUnconditionalUpdate`).
            let unseen = matches!(meta::resource_version(&new), "" | "0");
            if part != Part::Exact && unseen && !updates_unseen(kind) {
                return Err(Status::version_needed(kind, name));
            }
            owners.settle(kind, &mut new, &old);
            let mut txn =
                Txn { compares: vec![Compare::ModRevision(key.clone(), revision)], ops: Vec::new() };
            let errors = match part {
                Part::Main => {
                    kind.default(&mut new);
                    self.admit_change(kind, &mut new, &old);
                    kind.prepare_update(&mut new, &old);
                    self.fill_token(kind, &mut new).await?;
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
                return Err(invalid(kind, &new, name, &errors));
            }
            if let Some(custom) = kind.custom() {
                new = custom.through_store(new);
            }
            if part == Part::Main {
                self.charge(kind, &new, Some(&old), dry_run, &mut txn).await?;
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

/// The refusal of an object. A custom one may say that it is of another kind, and is then called by that.
fn invalid(kind: &Kind, object: &Value, name: &str, errors: &[FieldError]) -> Status {
    let mut status = Status::invalid(kind, name, errors);
    let said = walk::text(object, "kind");
    if kind.custom().is_some() && !said.is_empty() && said != kind.kind() {
        status.message = status.message.replacen(kind.kind(), said, 1);
        status.details.insert("kind".into(), said.into());
    }
    status
}

/// The object that was to be made is there.
fn exists(kind: &Kind, new: &Value, entry: &Entry) -> Status {
    let name = meta::name(new);
    let there = stored(kind, &entry.value, entry.mod_revision.0).unwrap_or_default();
    let status = match walk::text(new, "metadata.generateName") {
        "" => Status::already_exists(kind, name),
        _ => Status::no_unique_name(kind, name),
    };
    if meta::deletion_timestamp(&there).is_some() { status.on_its_way_out() } else { status }
}

/// Whether this is the kind whose objects claim addresses and ports.
pub(crate) fn is_service(kind: &Kind) -> bool {
    kind.group().is_empty() && kind.kind() == "Service"
}

/// Whether a PUT of what isn't there makes it (`AllowCreateOnUpdate` of the strategies in kube-apiserver).
fn makes(kind: &Kind) -> bool {
    let by_kind =
        matches!(kind.kind(), "Service" | "Endpoints" | "Lease" | "Event" | "LimitRange" | "RuntimeClass");
    by_kind || kind.group() == "rbac.authorization.k8s.io"
}

/// Not one that is meant for a certain object that was there.
fn creates(kind: &Kind, body: &Value) -> bool {
    makes(kind) && meta::uid(body).is_empty()
}

/// Whether an update may leave out the version that it is based on (`AllowUnconditionalUpdate` of the strategies).
fn updates_unseen(kind: &Kind) -> bool {
    match kind.group() {
        _ if kind.custom().is_some() => false,
        "apiextensions.k8s.io"
        | "policy"
        | "coordination.k8s.io"
        | "node.k8s.io"
        | "admissionregistration.k8s.io" => false,
        "storage.k8s.io" => {
            !matches!(kind.kind(), "CSIDriver" | "CSINode" | "CSIStorageCapacity" | "VolumeAttachment")
        }
        _ => true,
    }
}

/// A write that names a version or a UID is meant for that very object.
pub(crate) fn check_identity(kind: &Kind, name: &str, new: &Value, old: &Value) -> Result<(), Status> {
    check_uid(kind, name, new, old)?;
    check_version(kind, name, new, old)
}

/// The UID alone. A patch that changes it meets a rule of metadata instead.
fn check_uid(kind: &Kind, name: &str, new: &Value, old: &Value) -> Result<(), Status> {
    let (uid, stored) = (meta::uid(new), meta::uid(old));
    if !uid.is_empty() && uid != stored {
        return Err(Status::uid_precondition(kind, name, uid, stored));
    }
    Ok(())
}

fn check_version(kind: &Kind, name: &str, new: &Value, old: &Value) -> Result<(), Status> {
    let version = meta::resource_version(new);
    if !version.is_empty() && version.parse::<u64>().is_err() {
        return Err(Status::unexpected(format!("strconv.ParseUint: parsing {version:?}: invalid syntax")));
    }
    if !matches!(version, "" | "0") && version != meta::resource_version(old) {
        return Err(Status::modified(kind, name));
    }
    Ok(())
}

/// What a patch's failure is to a client.
pub(crate) fn patch_status(error: PatchError) -> Status {
    match error {
        PatchError::Malformed(why) => Status::bad_request(why),
        PatchError::Unexpected(why) => Status::unexpected(why),
        PatchError::Unapplicable(why) => Status { code: 422, reason: "Invalid", ..Status::bad_request(why) },
    }
}
