//! One request, as it is drawn: the same for both servers, whatever each has given to its objects.

use std::fmt;

use http::{Method, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};

use super::kinds::Spec;
use super::pointer;

/// A change of one field.
#[derive(Clone, Debug)]
pub enum Edit {
    Set(String, Value),
    Remove(String),
}

impl Edit {
    pub fn apply(&self, object: &mut Value) {
        match self {
            Edit::Set(place, value) => pointer::set(object, place, value.clone()),
            Edit::Remove(place) => pointer::remove(object, place),
        }
    }
}

/// Which resource version an update names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Current,
    None,
    Stale,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Doing {
    Create(Value),
    /// What is there (or else `fallback`), with some changes, is put back.
    Update {
        edits: Vec<Edit>,
        fallback: Value,
        version: Version,
    },
    Patch {
        way: &'static str,
        body: Value,
    },
    Delete(Value),
    DeleteAll,
    Get,
    List,
}

/// A request.
#[derive(Clone)]
pub struct Step {
    pub kind: &'static Spec,
    pub namespace: &'static str,
    pub name: String,
    pub subresource: &'static str,
    pub doing: Doing,
    pub query: Vec<(&'static str, String)>,
    pub table: bool,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub code: u16,
    pub media: String,
    pub warnings: Vec<String>,
    pub body: Value,
    /// The object's name as the server made it.
    pub made: String,
}

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

impl Step {
    pub fn key(&self) -> String {
        format!("{}/{}/{}", self.kind.plural, self.namespace, self.name)
    }

    fn path(&self) -> String {
        let mut path = self.kind.prefix.to_owned();
        if self.kind.namespaced && !self.namespace.is_empty() {
            path += &format!("/namespaces/{}", self.namespace);
        }
        path += &format!("/{}", self.kind.plural);
        if !matches!(self.doing, Doing::Create(_) | Doing::List | Doing::DeleteAll) {
            path += &format!("/{}", self.name);
            if !self.subresource.is_empty() {
                path += &format!("/{}", self.subresource);
            }
        }
        path
    }

    fn query(&self) -> String {
        let escape = |text: &str| -> String {
            text.bytes()
                .map(|byte| match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' => {
                        char::from(byte).to_string()
                    }
                    _ => format!("%{byte:02X}"),
                })
                .collect()
        };
        let pairs: Vec<String> =
            self.query.iter().map(|(key, value)| format!("{key}={}", escape(value))).collect();
        if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
    }

    /// Sends it to a server.
    pub async fn send(&self, client: &kube::Client) -> Outcome {
        let (path, query) = (self.path(), self.query());
        let accept = if self.table { TABLE } else { "application/json" };
        let uri = format!("{path}{query}");
        match &self.doing {
            Doing::Create(body) => call(client, Method::POST, &uri, "application/json", accept, body).await,
            Doing::Update { edits, fallback, version } => {
                let plain = path.trim_end_matches("/status");
                let now = call(client, Method::GET, plain, "", "application/json", &Value::Null).await;
                let mut object = if now.code == 200 { now.body } else { fallback.clone() };
                // What a client doesn't send it doesn't mean to change.
                pointer::remove(&mut object, "/metadata/managedFields");
                match version {
                    Version::Current => {}
                    Version::None => pointer::remove(&mut object, "/metadata/resourceVersion"),
                    Version::Stale => pointer::set(&mut object, "/metadata/resourceVersion", "1".into()),
                }
                edits.iter().for_each(|edit| edit.apply(&mut object));
                call(client, Method::PUT, &uri, "application/json", accept, &object).await
            }
            Doing::Patch { way, body } => {
                let media = format!("application/{way}+json");
                call(client, Method::PATCH, &uri, &media, accept, body).await
            }
            Doing::Delete(options) => {
                call(client, Method::DELETE, &uri, "application/json", accept, options).await
            }
            Doing::DeleteAll => {
                call(client, Method::DELETE, &uri, "application/json", accept, &Value::Null).await
            }
            Doing::Get | Doing::List => call(client, Method::GET, &uri, "", accept, &Value::Null).await,
        }
    }

    /// Whether a change is one of a field of this name.
    pub fn touches(&self, field: &str) -> bool {
        match &self.doing {
            Doing::Update { edits, .. } => edits.iter().any(|edit| match edit {
                Edit::Set(place, value) => {
                    place.ends_with(&format!("/{field}")) || value.to_string().contains(&format!("{field:?}"))
                }
                Edit::Remove(place) => place.ends_with(&format!("/{field}")),
            }),
            Doing::Patch { body, .. } => {
                let text = body.to_string();
                text.contains(&format!("{field:?}")) || text.contains(&format!("/{field}\""))
            }
            _ => false,
        }
    }

    /// Every request that asks for less.
    pub fn smaller(&self) -> Vec<Step> {
        let with = |doing: Doing| Step { doing, ..self.clone() };
        let mut out: Vec<Step> = match &self.doing {
            Doing::Create(body) => {
                pointer::smaller(body).into_iter().map(|body| with(Doing::Create(body))).collect()
            }
            Doing::Update { edits, fallback, version } => (0..edits.len())
                .map(|index| {
                    let mut edits = edits.clone();
                    edits.remove(index);
                    with(Doing::Update { edits, fallback: fallback.clone(), version: *version })
                })
                .collect(),
            Doing::Patch { way, body } => {
                pointer::smaller(body).into_iter().map(|body| with(Doing::Patch { way, body })).collect()
            }
            Doing::Delete(options) => {
                pointer::smaller(options).into_iter().map(|options| with(Doing::Delete(options))).collect()
            }
            Doing::DeleteAll | Doing::Get | Doing::List => Vec::new(),
        };
        for index in 0..self.query.len() {
            let mut less = self.clone();
            less.query.remove(index);
            out.push(less);
        }
        out
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target =
            format!("{}{}{}", self.path(), self.query(), if self.table { " (as Table)" } else { "" });
        match &self.doing {
            Doing::Create(body) => write!(f, "POST {target} {body}"),
            Doing::Update { edits, version, fallback } => {
                write!(f, "PUT {target} {version:?} version")?;
                for edit in edits {
                    match edit {
                        Edit::Set(place, value) => write!(f, " {place}={value}")?,
                        Edit::Remove(place) => write!(f, " -{place}")?,
                    }
                }
                write!(f, " (else {fallback})")
            }
            Doing::Patch { way, body } => write!(f, "PATCH {target} {way} {body}"),
            Doing::Delete(options) => write!(f, "DELETE {target} {options}"),
            Doing::DeleteAll => write!(f, "DELETE {target}"),
            Doing::Get | Doing::List => write!(f, "GET {target}"),
        }
    }
}

/// One HTTP request.
pub async fn call(
    client: &kube::Client,
    method: Method,
    uri: &str,
    media: &str,
    accept: &str,
    body: &Value,
) -> Outcome {
    let mut request = http::Request::builder().method(method).uri(uri).header(header::ACCEPT, accept);
    if !media.is_empty() {
        request = request.header(header::CONTENT_TYPE, media);
    }
    let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = request.body(Body::from(bytes)).expect("a request");
    let response = client.send(request).await.unwrap_or_else(|error| panic!("{uri}: {error}"));
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    let body =
        serde_json::from_slice(&bytes).unwrap_or_else(|_| json!({"text": String::from_utf8_lossy(&bytes)}));
    let named = body["rows"][0]["object"]["metadata"]["name"].as_str().or(body["metadata"]["name"].as_str());
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Outcome {
        code: head.status.as_u16(),
        media: head.headers.get(header::CONTENT_TYPE).map(text).unwrap_or_default(),
        warnings: head.headers.get_all(header::WARNING).iter().map(text).collect(),
        made: named.unwrap_or_default().to_owned(),
        body,
    }
}
