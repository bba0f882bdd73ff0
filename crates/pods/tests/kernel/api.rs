//! As much of an API server as a node needs: objects in memory, lists, watches, merge patches, deletion with grace.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

type Body = BoxBody<Bytes, Infallible>;

#[derive(Default)]
struct State {
    /// `pods/NAMESPACE/NAME` to the object.
    objects: BTreeMap<String, Value>,
    /// Everything that ever happened: the revision is the index plus one.
    history: Vec<(String, &'static str, Value)>,
}

impl State {
    fn put(&mut self, key: &str, mut object: Value) -> Value {
        let kind = if self.objects.contains_key(key) { "MODIFIED" } else { "ADDED" };
        object["metadata"]["resourceVersion"] = json!((self.history.len() + 1).to_string());
        self.history.push((key.to_owned(), kind, object.clone()));
        self.objects.insert(key.to_owned(), object.clone());
        object
    }

    fn remove(&mut self, key: &str) -> Option<Value> {
        let mut object = self.objects.remove(key)?;
        object["metadata"]["resourceVersion"] = json!((self.history.len() + 1).to_string());
        self.history.push((key.to_owned(), "DELETED", object.clone()));
        Some(object)
    }
}

/// The server.
#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<usize>,
}

/// RFC 7396.
fn merge(target: &mut Value, patch: Value) {
    match patch {
        Value::Object(patch) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (key, value) in patch {
                if value.is_null() {
                    if let Some(object) = target.as_object_mut() {
                        object.remove(&key);
                    }
                } else {
                    merge(&mut target[&key], value);
                }
            }
        }
        other => *target = other,
    }
}

impl Api {
    /// Starts it on a port of the loopback address.
    pub async fn start() -> (Api, String) {
        let api = Api { state: Arc::default(), changed: watch::Sender::new(0) };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let server = api.clone();
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let api = server.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let api = api.clone();
                        async move { Ok::<_, Infallible>(api.answer(request).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        (api, url)
    }

    /// Creates or replaces an object.
    pub fn put(&self, key: &str, mut object: Value) {
        let uid = format!("{:08x}-0000-4000-8000-{:012x}", key.len(), self.state.lock().history.len());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(uid);
        }
        self.state.lock().put(key, object);
        self.tell();
    }

    /// Removes an object as if it had never been.
    pub fn forget(&self, key: &str) {
        self.state.lock().remove(key);
        self.tell();
    }

    /// An object as it is now.
    pub fn get(&self, key: &str) -> Option<Value> {
        self.state.lock().objects.get(key).cloned()
    }

    /// Every state that an object has had.
    pub fn history(&self, key: &str) -> Vec<Value> {
        let state = self.state.lock();
        state
            .history
            .iter()
            .filter(|(changed, _, _)| changed == key)
            .map(|(_, _, object)| object.clone())
            .collect()
    }

    /// All objects whose key begins so.
    pub fn all(&self, prefix: &str) -> Vec<Value> {
        let state = self.state.lock();
        state
            .objects
            .iter()
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Asks for an object's deletion, as `kubectl delete` does.
    pub fn delete(&self, key: &str, grace: Option<i64>) {
        let mut state = self.state.lock();
        let Some(mut object) = state.objects.get(key).cloned() else { return };
        let grace = grace.or(object["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
        if grace == 0 {
            state.remove(key);
        } else {
            let end = jiff::Timestamp::now() + Duration::from_secs(grace.unsigned_abs());
            object["metadata"]["deletionTimestamp"] = json!(format!("{end:.0}"));
            object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            state.put(key, object);
        }
        drop(state);
        self.tell();
    }

    /// Waits until a question about the objects has an answer; panics with `what` after `seconds`.
    pub async fn until<T>(&self, what: &str, seconds: u64, question: impl Fn(&Api) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        let answer = async {
            loop {
                changed.borrow_and_update();
                if let Some(answer) = question(self) {
                    return answer;
                }
                changed.changed().await.expect("the API outlives its users");
            }
        };
        match tokio::time::timeout(Duration::from_secs(seconds), answer).await {
            Ok(answer) => answer,
            Err(_) => panic!("not within {seconds} s: {what}; pods: {:#?}", self.all("pods/")),
        }
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        // /api/v1/… or /apis/GROUP/VERSION/…, then namespaces/NS/ or not, then KIND[/NAME[/status]].
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        parts.drain(..if parts[0] == "api" { 2 } else { 3 });
        let namespace = if parts.first() == Some(&"namespaces") && parts.len() > 2 {
            parts.drain(..2).nth(1).unwrap_or_default()
        } else {
            ""
        };
        let kind = parts[0];
        let key = |name: &str| format!("{kind}/{namespace}/{name}");
        match (method, parts.get(1)) {
            (Method::GET, None) if query.contains("watch=") => self.watch(kind, &query),
            (Method::GET, None) => {
                let state = self.state.lock();
                let prefix = format!("{kind}/");
                let items: Vec<&Value> = state
                    .objects
                    .iter()
                    .filter(|(key, _)| key.starts_with(&prefix))
                    .map(|(_, object)| object)
                    .collect();
                let metadata = json!({"resourceVersion": state.history.len().to_string()});
                respond(
                    200,
                    &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}),
                )
            }
            (Method::GET, Some(name)) => match self.get(&key(name)) {
                Some(object) => respond(200, &object),
                None => refuse(404, "NotFound"),
            },
            (Method::POST, None) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                if self.get(&key(&name)).is_some() {
                    return refuse(409, "AlreadyExists");
                }
                self.put(&key(&name), body);
                respond(201, &self.get(&key(&name)).unwrap_or_default())
            }
            (Method::PATCH, Some(name)) => {
                let Some(mut object) = self.get(&key(name)) else { return refuse(404, "NotFound") };
                let mut patch = body;
                for field in ["uid", "resourceVersion"] {
                    let wanted = patch["metadata"][field].take();
                    if !wanted.is_null() && wanted != object["metadata"][field] {
                        return refuse(409, "Conflict");
                    }
                    if let Some(metadata) = patch["metadata"].as_object_mut() {
                        metadata.remove(field);
                    }
                }
                if patch["metadata"].is_null()
                    && let Some(patch) = patch.as_object_mut()
                {
                    patch.remove("metadata");
                }
                if parts.get(2) == Some(&"status") {
                    merge(&mut object["status"], patch["status"].take());
                } else {
                    merge(&mut object, patch);
                }
                let object = self.state.lock().put(&key(name), object);
                self.tell();
                respond(200, &object)
            }
            (Method::DELETE, Some(name)) => {
                let Some(object) = self.get(&key(name)) else { return refuse(404, "NotFound") };
                let uid = &body["preconditions"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return refuse(409, "Conflict");
                }
                self.delete(&key(name), body["gracePeriodSeconds"].as_i64());
                respond(200, &object)
            }
            _ => refuse(405, "MethodNotAllowed"),
        }
    }

    fn watch(&self, kind: &str, query: &str) -> Response<Body> {
        let version = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let next = version.and_then(|version| version.parse().ok()).unwrap_or(0usize);
        let (api, prefix, changed) = (self.clone(), format!("{kind}/"), self.changed.subscribe());
        let frames = stream::unfold((next, changed), move |(mut next, mut changed)| {
            let (api, prefix) = (api.clone(), prefix.clone());
            async move {
                loop {
                    changed.borrow_and_update();
                    let mut lines = Vec::new();
                    {
                        let state = api.state.lock();
                        for (key, kind, object) in state.history.iter().skip(next) {
                            if key.starts_with(&prefix) {
                                lines
                                    .extend(json!({"type": kind, "object": object}).to_string().into_bytes());
                                lines.push(b'\n');
                            }
                        }
                        next = state.history.len();
                    }
                    if !lines.is_empty() {
                        return Some((Ok(Frame::data(Bytes::from(lines))), (next, changed)));
                    }
                    if changed.changed().await.is_err() {
                        return None;
                    }
                }
            }
        });
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
        response
    }
}

fn respond(code: u16, value: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(value.to_string())).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).expect("a status");
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

fn refuse(code: u16, reason: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "code": code,
        "message": reason
    });
    respond(code, &status)
}
