//! Questions that are asked by making an object: who is this token, who am I, may somebody do this, what may I do.

use std::collections::BTreeMap;

use http::StatusCode;
use jiff::Timestamp;
use portolan_api::fielderror::{FieldError, aggregate};
use portolan_api::{Status, meta, walk};
use serde_json::{Map, Value, json};

use crate::attributes::Attributes;
use crate::auth::Identity;
use crate::authorize::Decision;
use crate::http::{Answer, Call, json as respond};
use crate::nodes::node_of;
use crate::rbac::Rule;
use crate::server::Server;

impl Server {
    /// POST of a review: it is answered and not kept.
    pub(crate) async fn review(&self, call: &Call) -> Answer {
        let mut body = call.json()?;
        let kind = &call.kind;
        if !body.is_object() {
            return Err(Status::undecodable(kind, "the body is not a JSON object"));
        }
        kind.read(&mut body).map_err(|why| Status::undecodable(kind, &why))?;
        let review = match kind.kind() {
            "TokenReview" => self.review_token(&mut body).await?,
            "SelfSubjectReview" => {
                let status = json!({"userInfo": call.user.to_value()});
                let now = meta::rfc3339(Timestamp::now());
                json!({"metadata": {"creationTimestamp": now}, "status": status})
            }
            "SelfSubjectRulesReview" => self.review_rules(call, &body).await?,
            _ => self.review_access(call, &mut body).await?,
        };
        let mut answer = json!({"kind": kind.kind(), "apiVersion": kind.api_version()});
        for field in ["metadata", "spec", "status"] {
            if let Some(value) = review.get(field) {
                answer[field] = value.clone();
            }
        }
        Ok(respond(StatusCode::CREATED, &answer))
    }

    async fn review_token(&self, body: &mut Value) -> Result<Value, Status> {
        let token = walk::text(body, "spec.token").to_owned();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let asked = walk::list(body, "spec.audiences").iter().filter_map(Value::as_str);
        let mut audiences: Vec<String> = asked.map(str::to_owned).collect();
        if audiences.is_empty() {
            audiences = self.accounts.audiences().to_vec();
        }
        let status = match self.prove(&token, &audiences).await {
            Ok((user, audiences)) => {
                json!({"authenticated": true, "user": user.to_value(), "audiences": audiences})
            }
            Err(why) => json!({"user": {}, "error": why}),
        };
        Ok(json!({"metadata": metadata(body), "spec": body["spec"], "status": status}))
    }

    /// SubjectAccessReview, of anybody, of oneself, or within a namespace.
    async fn review_access(&self, call: &Call, body: &mut Value) -> Result<Value, Status> {
        let local = call.kind.kind() == "LocalSubjectAccessReview";
        let own = call.kind.kind() == "SelfSubjectAccessReview";
        if let (true, Some(namespace)) = (local, call.path.namespace.as_deref())
            && meta::namespace(body).is_empty()
        {
            walk::set(body, "metadata.namespace", namespace);
        }
        let errors = check_access(body, own, local);
        if !errors.is_empty() {
            // Kubernetes leaves the kind's name out here.
            let mut status = Status::invalid(&call.kind, "", &errors);
            status.details.shift_remove("kind");
            status.message = format!(".{} \"\" is invalid: {}", call.kind.group(), aggregate(&errors));
            return Err(status);
        }
        let user = if own { call.user.clone() } else { subject(body) };
        let status = match self.authorize(&user, &wanted(body)).await? {
            Decision::Allow(reason) => with_reason(true, reason),
            Decision::NoOpinion(reason) => with_reason(false, reason),
        };
        Ok(json!({"metadata": metadata(body), "spec": body["spec"], "status": status}))
    }

    async fn review_rules(&self, call: &Call, body: &Value) -> Result<Value, Status> {
        let namespace = walk::text(body, "spec.namespace");
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let revision = self.store.revision().await.map_err(crate::http::store_status)?;
        self.rbac.reach(revision.0).await;
        let (rules, mut errors) = self.rbac.rules_for(&call.user, namespace);
        let incomplete = node_of(&call.user).is_some();
        if incomplete {
            errors.insert(0, "node authorizer does not support user rule resolution".into());
        }
        let of = |paths: bool| -> Vec<Value> {
            let wanted =
                rules.iter().filter(|rule| !if paths { &rule.urls } else { &rule.resources }.is_empty());
            let strip = |rule: &Rule| match paths {
                true => Rule { verbs: rule.verbs.clone(), urls: rule.urls.clone(), ..Rule::default() },
                false => Rule { urls: Vec::new(), ..rule.clone() },
            };
            wanted.map(|rule| strip(rule).to_value()).collect()
        };
        let mut status =
            json!({"resourceRules": of(false), "nonResourceRules": of(true), "incomplete": incomplete});
        if !errors.is_empty() {
            status["evaluationError"] = errors.join(", ").into();
        }
        Ok(json!({"metadata": {}, "spec": {}, "status": status}))
    }
}

fn with_reason(allowed: bool, reason: String) -> Value {
    let mut status = json!({"allowed": allowed});
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    status
}

/// The metadata that a review is answered with: what it came with, without nulls.
fn metadata(body: &Value) -> Value {
    let kept = walk::map(body, "metadata").iter().filter(|(_, value)| !value.is_null());
    kept.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>().into()
}

/// What is wrong with a question about access (Kubernetes' `authorization/validation`).
fn check_access(body: &Value, own: bool, local: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let attributes = walk::at(body, "spec.resourceAttributes").filter(|value| !value.is_null());
    let path = walk::at(body, "spec.nonResourceAttributes").filter(|value| !value.is_null());
    match (attributes, path) {
        (Some(_), Some(path)) => {
            let value = json!({"Path": walk::text(path, "path"), "Verb": walk::text(path, "verb")});
            let why = "cannot be specified in combination with resourceAttributes";
            errors.push(FieldError::invalid("spec.nonResourceAttributes", value, why));
        }
        (None, None) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            errors.push(FieldError::invalid("spec.resourceAttributes", Value::Null, why));
        }
        _ => {}
    }
    if !own && walk::text(body, "spec.user").is_empty() && walk::list(body, "spec.groups").is_empty() {
        errors.push(FieldError::invalid("spec.user", "", "at least one of user or group must be specified"));
    }
    let mut about = metadata(body);
    if let Some(about) = about.as_object_mut() {
        about.shift_remove("managedFields");
        if local {
            about.shift_remove("namespace");
        }
        if !about.is_empty() {
            let why = if local { "must be empty except for namespace" } else { "must be empty" };
            errors.push(FieldError::invalid("metadata", Value::Object(about.clone()), why));
        }
    }
    if local {
        let namespace = attributes.map_or("", |attributes| walk::text(attributes, "namespace"));
        if attributes.is_some() && namespace != meta::namespace(body) {
            let field = "spec.resourceAttributes.namespace";
            errors.push(FieldError::invalid(field, namespace, "must match metadata.namespace"));
        }
        if let Some(path) = path {
            let value = json!({"Path": walk::text(path, "path"), "Verb": walk::text(path, "verb")});
            errors.push(FieldError::invalid(
                "spec.nonResourceAttributes",
                value,
                "disallowed on this kind of request",
            ));
        }
    }
    errors
}

/// The user that a question is about.
fn subject(body: &Value) -> Identity {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let extra = walk::map(body, "spec.extra").iter();
    Identity {
        user: walk::text(body, "spec.user").to_owned(),
        uid: walk::text(body, "spec.uid").to_owned(),
        groups: walk::at(body, "spec.groups").map(texts).unwrap_or_default(),
        extra: extra
            .map(|(key, values)| (key.to_ascii_lowercase(), texts(values)))
            .collect::<BTreeMap<_, _>>(),
    }
}

/// The request that a question is about.
fn wanted(body: &Value) -> Attributes {
    let text = |path: &str| walk::text(body, &format!("spec.{path}")).to_owned();
    let resource = |field: &str| text(&format!("resourceAttributes.{field}"));
    if walk::at(body, "spec.resourceAttributes").is_none_or(Value::is_null) {
        let (verb, path) = (text("nonResourceAttributes.verb"), text("nonResourceAttributes.path"));
        return Attributes { verb, path, ..Attributes::default() };
    }
    let requirements = walk::list(body, "spec.resourceAttributes.fieldSelector.requirements");
    let exact = requirements.iter().filter_map(|requirement| match walk::list(requirement, "values") {
        [value] if walk::text(requirement, "operator") == "In" => {
            Some((walk::text(requirement, "key").to_owned(), value.as_str().unwrap_or_default().to_owned()))
        }
        _ => None,
    });
    let raw = resource("fieldSelector.rawSelector");
    let fields = if raw.is_empty() { exact.collect() } else { crate::attributes::exact_terms(&raw) };
    let version = Some(resource("version")).filter(|version| !version.is_empty());
    Attributes {
        verb: resource("verb"),
        path: String::new(),
        of_resource: true,
        group: resource("group"),
        version: version.unwrap_or_else(|| "*".into()),
        namespace: resource("namespace"),
        resource: resource("resource"),
        subresource: resource("subresource"),
        name: resource("name"),
        fields,
    }
}
