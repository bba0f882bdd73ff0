//! Answers that are not objects: `Status`, with the texts and reasons that clients match on.

use serde_json::{Map, Value, json};

use crate::fielderror::{FieldError, aggregate, quote};
use crate::kind::Kind;

/// A `v1 Status` that says no (or, for a finished deletion, yes).
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// The machine's word: `NotFound`.
    pub reason: &'static str,
    /// The human's sentence.
    pub message: String,
    /// `name`, `group`, `kind`, `uid`, `causes`, `retryAfterSeconds`; empty if none.
    pub details: Map<String, Value>,
    /// What goes into `Warning:` headers beside it.
    pub warnings: Vec<String>,
    /// The `continue` token with which a list goes on in spite of it; empty if none.
    pub resume: String,
}

fn details(name: &str, group: &str, kind: &str) -> Map<String, Value> {
    let mut map = Map::new();
    for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
        if !value.is_empty() {
            map.insert(key.into(), value.into());
        }
    }
    map
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Map::new(),
            warnings: Vec::new(),
            resume: String::new(),
        }
    }

    fn about(self, kind: &Kind, name: &str) -> Self {
        Self { details: details(name, kind.group(), kind.plural()), ..self }
    }

    /// The same, with warnings before its own.
    pub fn warned(mut self, warnings: &[String]) -> Self {
        self.warnings.splice(0..0, warnings.iter().cloned());
        self
    }

    fn causes(mut self, causes: Vec<Value>) -> Self {
        if !causes.is_empty() {
            self.details.insert("causes".into(), causes.into());
        }
        self
    }

    /// 404: `services "x" not found`.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} {} not found", kind.resource(), quote(name))).about(kind, name)
    }

    /// 404 for a path that names nothing.
    pub fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 409: `services "x" already exists`.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {} already exists", kind.resource(), quote(name)))
            .about(kind, name)
    }

    /// 409 with the reason in the caller's words.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {}: {why}", kind.resource(), quote(name));
        Self::new(409, "Conflict", message).about(kind, name)
    }

    /// 409 because `resourceVersion` is not the stored one.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    /// 409 because no name could be made that is free.
    pub fn no_unique_name(kind: &Kind, name: &str) -> Self {
        let mut status = Self::already_exists(kind, name);
        status.message.push_str(", the server was not able to generate a unique name for the object");
        status.details.insert("retryAfterSeconds".into(), 1.into());
        status
    }

    /// The same refusal, of an object that is on its way out.
    pub fn on_its_way_out(self) -> Self {
        Self { message: format!("object is being deleted: {}", self.message), ..self }
    }

    /// 409 because the UID that the client expects is not the stored one.
    pub fn uid_precondition(kind: &Kind, name: &str, expected: &str, stored: &str) -> Self {
        let why =
            format!("Precondition failed: UID in precondition: {expected}, UID in object meta: {stored}");
        Self::conflict(kind, name, &why)
    }

    /// 409 because a deletion is meant for another object of the name. It names the kind where others name the resource
    /// (apiserver registry/rest/delete.go).
    pub fn uid_to_delete(kind: &Kind, name: &str, expected: &str, stored: &str) -> Self {
        Self::precondition_of_deletion(
            kind,
            name,
            format!(
                "the UID in the precondition ({expected}) does not match the UID in record ({stored}). The object might have \
                 been deleted and then recreated"
            ),
        )
    }

    /// 409 because a deletion is meant for another version of the object.
    pub fn version_to_delete(kind: &Kind, name: &str, expected: &str, stored: &str) -> Self {
        Self::precondition_of_deletion(
            kind,
            name,
            format!(
                "the ResourceVersion in the precondition ({expected}) does not match the ResourceVersion in record \
                 ({stored}). The object might have been modified"
            ),
        )
    }

    fn precondition_of_deletion(kind: &Kind, name: &str, why: String) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {}: {why}", kind.qualified(), quote(name));
        Self { details: details(name, kind.group(), kind.kind()), ..Self::new(409, "Conflict", message) }
    }

    /// 422: `Service "x" is invalid: spec.ports: Required value`.
    pub fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        let message = format!("{} {} is invalid: {}", kind.qualified(), quote(name), aggregate(errors));
        let mut status = Self::new(422, "Invalid", message);
        status.details = details(name, kind.group(), kind.kind());
        status.causes(errors.iter().map(FieldError::cause).collect())
    }

    /// A refusal without a machine's word.
    pub fn plain(code: u16, message: impl Into<String>) -> Self {
        Self::new(code, "", message)
    }

    /// 422 because of the parameters of a request: `CreateOptions`, `DeleteOptions`, `ListOptions` …
    pub fn invalid_options(options: &str, errors: &[FieldError]) -> Self {
        let message = format!("{options}.meta.k8s.io \"\" is invalid: {}", aggregate(errors));
        let status =
            Self { details: details("", "meta.k8s.io", options), ..Self::new(422, "Invalid", message) };
        status.causes(errors.iter().map(FieldError::cause).collect())
    }

    /// 422 because what a patch leaves does not fit the kind. `patched` is what is shown.
    pub fn invalid_patch(patched: impl Into<Value>, why: &str) -> Self {
        let error = FieldError::invalid("patch", patched, why);
        Self::new(422, "Invalid", format!(" \"\" is invalid: {error}")).causes(vec![error.cause()])
    }

    /// 422 because an update must say which version it is based on. It names the resource where others name the kind.
    pub fn version_needed(kind: &Kind, name: &str) -> Self {
        let error = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
        let message = format!("{} {} is invalid: {error}", kind.resource(), quote(name));
        let status = Self {
            details: details(name, kind.group(), kind.plural()),
            ..Self::new(422, "Invalid", message)
        };
        status.causes(vec![error.cause()])
    }

    /// 422 because a JSON patch cannot be applied. Kubernetes doesn't say why.
    pub fn unprocessable() -> Self {
        Self::new(422, "Invalid", "the server rejected our request due to an error in our request")
    }

    /// 500 with no reason, for what Kubernetes' server doesn't expect.
    pub fn unexpected(message: impl Into<String>) -> Self {
        Self::plain(500, message)
    }

    /// 400 in the caller's words.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 400 because the body does not fit the kind.
    pub fn undecodable(kind: &Kind, why: &str) -> Self {
        let message = format!(
            "{} in version {} cannot be handled as a {}: {why}",
            kind.kind(),
            quote(kind.version()),
            kind.kind()
        );
        Self::bad_request(message)
    }

    /// 400 because the body says that it is something else.
    pub fn another_kind(kind: &Kind, name: &str, version: &str) -> Self {
        Self::bad_request(format!(
            "{name} in version {} cannot be handled as a {}: no kind {} is registered for version {} under this path",
            quote(version.rsplit('/').next().unwrap_or_default()),
            kind.kind(),
            quote(name),
            quote(version)
        ))
    }

    /// 400 because of fields that the kind does not have or that stand there twice, under `fieldValidation=Strict`.
    pub fn strict_decoding(kind: &Kind, complaints: &[String]) -> Self {
        Self::undecodable(kind, &strict_decoding_error(complaints))
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: `services "x" is forbidden: …`.
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", kind.resource())
        } else {
            format!("{} {} is forbidden: {why}", kind.resource(), quote(name))
        };
        Self::new(403, "Forbidden", message).about(kind, name)
    }

    /// 403 because the namespace is on its way out, with the cause that controllers look for.
    pub fn namespace_terminating(kind: &Kind, name: &str, namespace: &str) -> Self {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let cause = json!({
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        });
        Self::forbidden(kind, name, &why).causes(vec![cause])
    }

    /// 405.
    pub fn method_not_allowed(kind: &Kind, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind {}", quote(&kind.resource()));
        Self::new(405, "MethodNotAllowed", message).about(kind, "")
    }

    /// 405 for a path that is no kind's.
    pub fn method_not_supported() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// 406: no media type that the client accepts.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(406, "NotAcceptable", message)
    }

    /// 415: a body in a media type that is not understood.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 410: the revision asked for is no longer kept.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 410 for a watch or list from a revision that compaction has passed.
    pub fn too_old(asked: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    /// 410 for a `continue` token that compaction has passed, with one that leads through the rest of the list as it is now.
    pub fn continue_expired(resume: String) -> Self {
        let status = Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
             without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
             results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, \
             or deleted between the time the first chunk was returned and now may show up in the list.",
        );
        Self { resume, ..status }
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 429: come back in `seconds`.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        let mut status = Self::new(429, "TooManyRequests", message);
        status.details.insert("retryAfterSeconds".into(), seconds.into());
        status
    }

    /// 500: `Internal error occurred: …`.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let cause = json!({"message": why.to_string()});
        Self::new(500, "InternalError", format!("Internal error occurred: {why}")).causes(vec![cause])
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504: the server did not finish in time.
    pub fn timeout(message: impl std::fmt::Display) -> Self {
        Self::new(504, "Timeout", format!("Timeout: {message}"))
    }

    /// 504: the server waits for something and asks to be asked again in `seconds`.
    pub fn server_timeout(kind: &Kind, verb: &str, seconds: u32) -> Self {
        let message = format!(
            "The {verb} operation against {} could not be completed at this time, please try again.",
            kind.resource()
        );
        let mut status = Self::new(500, "ServerTimeout", message).about(kind, verb);
        if seconds > 0 {
            status.details.insert("retryAfterSeconds".into(), seconds.into());
        }
        status
    }

    /// 504: a watch asked for a revision that has not come yet.
    pub fn too_large_resource_version(asked: u64, current: u64) -> Self {
        let mut status = Self::new(
            504,
            "Timeout",
            format!("Timeout: Too large resource version: {asked}, current: {current}"),
        );
        status.details.insert("retryAfterSeconds".into(), 1.into());
        status.causes(vec![
            json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}),
        ])
    }

    /// The object on the wire.
    pub fn to_value(&self) -> Value {
        let mut out = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        });
        if !self.resume.is_empty() {
            out["metadata"]["continue"] = self.resume.as_str().into();
        }
        if let Some(map) = out.as_object_mut() {
            if !self.reason.is_empty() {
                map.insert("reason".into(), self.reason.into());
            }
            // Kubernetes leaves them empty where it knows no resource, and out where it never has any; a refusal about a bare
            // path says that it has nothing to say of any object (apimachinery's `NewForbidden`).
            if !self.details.is_empty() || matches!(self.code, 415 | 422) || self.reason == "Forbidden" {
                map.insert("details".into(), Value::Object(self.details.clone()));
            }
            map.insert("code".into(), self.code.into());
        }
        out
    }

    /// The answer to a deletion that is done and leaves no object to show.
    pub fn deleted(kind: &Kind, name: &str, uid: &str) -> Value {
        let mut about = details(name, kind.group(), kind.plural());
        if !uid.is_empty() {
            about.insert("uid".into(), uid.into());
        }
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": about})
    }
}

/// `strict decoding error: unknown field "spec.foo", duplicate field "spec.bar"`; each complaint is a warning under
/// `fieldValidation=Warn`.
pub fn strict_decoding_error(complaints: &[String]) -> String {
    format!("strict decoding error: {}", complaints.join(", "))
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::find;

    #[test]
    fn texts_are_those_that_clients_match_on() {
        let services = find("", "v1", "services").unwrap();
        let deployments = find("apps", "v1", "deployments").unwrap();
        let rows = [
            (Status::not_found(services, "x"), 404, "NotFound", "services \"x\" not found"),
            (Status::not_found(deployments, "x"), 404, "NotFound", "deployments.apps \"x\" not found"),
            (Status::already_exists(services, "x"), 409, "AlreadyExists", "services \"x\" already exists"),
            (
                Status::modified(services, "x"),
                409,
                "Conflict",
                "Operation cannot be fulfilled on services \"x\": the object has been modified; please apply your changes to \
                 the latest version and try again",
            ),
            (
                Status::invalid(services, "x", &[FieldError::required("spec.ports", "")]),
                422,
                "Invalid",
                "Service \"x\" is invalid: spec.ports: Required value",
            ),
            (
                Status::invalid(
                    deployments,
                    "x",
                    &[FieldError::required("a", ""), FieldError::required("b", "")],
                ),
                422,
                "Invalid",
                "Deployment.apps \"x\" is invalid: [a: Required value, b: Required value]",
            ),
            (
                Status::strict_decoding(services, &["unknown field \"spec.foo\"".into()]),
                400,
                "BadRequest",
                "Service in version \"v1\" cannot be handled as a Service: strict decoding error: unknown field \"spec.foo\"",
            ),
            (Status::unauthorized(), 401, "Unauthorized", "Unauthorized"),
            (
                Status::namespace_terminating(services, "x", "ns"),
                403,
                "Forbidden",
                "services \"x\" is forbidden: unable to create new content in namespace ns because it is being terminated",
            ),
            (Status::too_old(5, 9), 410, "Expired", "too old resource version: 5 (9)"),
            (Status::internal("boom"), 500, "InternalError", "Internal error occurred: boom"),
        ];
        for (status, code, reason, message) in rows {
            assert_eq!((status.code, status.reason, status.message.as_str()), (code, reason, message));
        }
    }

    #[test]
    fn a_status_carries_its_causes() {
        let services = find("", "v1", "services").unwrap();
        let status = Status::invalid(services, "x", &[FieldError::invalid("spec.ports[0].port", 0, "no")]);
        assert_eq!(
            status.to_value(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "Service \"x\" is invalid: spec.ports[0].port: Invalid value: 0: no", "reason": "Invalid",
                "details": {"name": "x", "kind": "Service", "causes": [
                    {"reason": "FieldValueInvalid", "message": "Invalid value: 0: no", "field": "spec.ports[0].port"}]},
                "code": 422,
            })
        );
        let terminating = Status::namespace_terminating(services, "x", "ns").to_value();
        assert_eq!(terminating["details"]["causes"][0]["reason"], "NamespaceTerminating");
    }
}
