//! Server-side apply, and who a write is counted for.

use http::StatusCode;
use jiff::Timestamp;
use portolan_api::ownership::{self, Author};
use portolan_api::{Kind, Status, meta, walk};
use serde_json::Value;

use crate::http::{Answer, Call};
use crate::options::MANAGER;
use crate::server::Server;
use crate::write::Part;
use crate::yaml;

/// The media type of an apply.
pub(crate) const MEDIA: &str = "application/apply-patch+yaml";

/// Whose fields the fields of a written object become.
#[derive(Clone, Copy)]
pub(crate) enum Owners<'a> {
    /// Nobody's: what is stored stays.
    Kept,
    /// Those of whoever changes them.
    Counted(Author<'a>),
    /// As the object says already.
    Made,
}

impl Owners<'_> {
    /// Writes into `new` who owns its fields. `new` is defaulted for it, as what is stored is.
    pub(crate) fn settle(self, kind: &Kind, new: &mut Value, old: &Value) {
        let (Owners::Counted(author), Some(of)) = (self, ownership::type_of(kind)) else { return };
        // Defaulting drops an empty list; here it says that the owners shall be forgotten.
        let said = walk::remove(new, "metadata.managedFields");
        kind.default(new);
        if let Some(said) = said {
            walk::set(new, "metadata.managedFields", said);
        }
        ownership::update(new, old, kind, &of, author);
    }
}

/// Who this server is where it writes by itself.
pub(crate) fn ourselves(now: &str) -> Author<'_> {
    Author { manager: "kube-apiserver", subresource: "", now }
}

impl Call {
    /// Who writes: `fieldManager`, or what the client calls itself in `User-Agent`, up to its version.
    pub(crate) fn author<'a>(&'a self, now: &'a str) -> Author<'a> {
        let asked = self.query.get("fieldManager").unwrap_or_default();
        let agent = self.agent.split('/').next().unwrap_or_default();
        // The parts of this process say no agent; whom they act for says which they are.
        let part = || self.user.user.strip_prefix("system:");
        let manager = match (asked, agent) {
            ("", "") => part().unwrap_or_default(),
            ("", agent) => agent,
            (asked, _) => asked,
        };
        let end =
            manager.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MANAGER).last();
        let manager = manager.get(..end.unwrap_or_default()).unwrap_or_default();
        Author { manager, subresource: self.path.subresource.as_deref().unwrap_or_default(), now }
    }

    /// The configuration that is to be applied.
    fn configuration(&self) -> Result<(Value, Vec<String>), Status> {
        let undecodable = |error: String| {
            Status::bad_request(format!("error decoding YAML: error converting YAML to JSON: yaml: {error}"))
        };
        let (config, complaints) = yaml::read(&self.body).map_err(undecodable)?;
        let warnings = match self.query.get("fieldValidation") {
            Some("Strict") if !complaints.is_empty() => {
                let why = complaints.join(", ");
                return Err(Status::bad_request(format!("error strict decoding YAML: {why}")));
            }
            Some("Ignore") => Vec::new(),
            _ => complaints,
        };
        if !config.is_object() {
            return Err(Status::bad_request("error decoding YAML: the configuration is not an object"));
        }
        if walk::size(&config, walk::DEPTH).is_none() {
            return Err(Status::bad_request(format!(
                "error decoding YAML: the object is nested more than {} levels deep",
                walk::DEPTH
            )));
        }
        let (version, word) = (walk::text(&config, "apiVersion"), walk::text(&config, "kind"));
        if (version, word) != (&*self.kind.api_version(), self.kind.kind()) {
            let said = ownership::group_version_kind(version, word);
            return Err(Status::bad_request(format!("invalid object type: {said}")));
        }
        let name = meta::name(&config);
        if !name.is_empty() && name != self.name() {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                self.name()
            )));
        }
        let claimed = meta::namespace(&config);
        if let Some(namespace) = self.path.namespace.as_deref()
            && !claimed.is_empty()
            && claimed != namespace
        {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Ok((config, warnings))
    }
}

impl Server {
    /// PATCH by apply: of an object or of its status.
    pub(crate) async fn apply(&self, call: &Call, part: Part) -> Answer {
        let dry_run = call.writing()?;
        let (config, mut warnings) = call.configuration()?;
        let kind = &call.kind;
        let of = ownership::type_of(kind).ok_or_else(|| Status::unsupported_media_type(&[]))?;
        let now = meta::rfc3339(Timestamp::now());
        let force = call.query.flag("force");
        let author = call.author(&now);
        // Who is overtaken by a deletion or a creation looks again.
        for _ in 0..4 {
            let before = parking_lot::Mutex::new(Value::Null);
            let make = |old: &Value| {
                old.clone_into(&mut before.lock());
                let new = ownership::apply(&config, old, kind, &of, author, force)?;
                self.guard(call, Some(&new), Some(old))?;
                Ok(new)
            };
            match self.modify_as(call.subject(), part, dry_run, Owners::Made, make).await {
                Err(status) if status.code == 404 && part == Part::Main => {
                    let mut object = ownership::apply(&config, &Value::Null, kind, &of, author, force)?;
                    walk::set(&mut object, "metadata.name", call.name());
                    self.may_create(call).await?;
                    self.guard(call, Some(&object), None)?;
                    let namespace = call.path.namespace.as_deref();
                    match self.create_object_as(kind, namespace, object, dry_run, Owners::Made).await {
                        Err(status) if status.reason == "AlreadyExists" => {}
                        made => {
                            let (object, more) = made?;
                            warnings.extend(more);
                            return call.written(StatusCode::CREATED, object, &warnings);
                        }
                    }
                }
                changed => {
                    let object = changed?;
                    if part == Part::Main {
                        warnings.extend(kind.warnings(&object, Some(&before.into_inner())));
                    }
                    return call.written(StatusCode::OK, object, &warnings);
                }
            }
        }
        Err(Status::modified(kind, call.name()))
    }
}
