//! An API in memory: lists and watches of a few kinds, with a history that can be cut off.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

/// The API. Clones are the same.
#[derive(Clone, Default)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    /// Says the revision at each change, and at each break of the watches.
    bell: watch::Sender<(u64, u64)>,
    /// Kinds whose lists are not answered yet.
    held: watch::Sender<Vec<&'static str>>,
}

#[derive(Default)]
struct State {
    revision: u64,
    /// Watches that began in an earlier epoch end.
    epoch: u64,
    /// Changes up to here are forgotten.
    compacted: u64,
    objects: BTreeMap<(String, String, String), Value>,
    log: Vec<(u64, String, Value)>,
    lists: usize,
    /// Kinds that are not served.
    unserved: Vec<&'static str>,
}

impl FakeApi {
    /// A client of it.
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Serves it on a socket of the calling thread's network namespace; gives its URL.
    pub fn serve(&self, runtime: &tokio::runtime::Handle) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a socket");
        listener.set_nonblocking(true).expect("non-blocking");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let api = self.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let api = api.clone();
                let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let api = api.clone();
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                        let mut response = api.answer(Request::from_parts(parts, Body::from(body))).await;
                        let json = http::HeaderValue::from_static("application/json");
                        response.headers_mut().insert("content-type", json);
                        Ok::<_, Infallible>(response)
                    }
                });
                let stream = hyper_util::rt::TokioIo::new(stream);
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
            }
        });
        url
    }

    /// Leaves lists of these kinds unanswered until it is called again.
    pub fn hold(&self, kinds: &[&'static str]) {
        self.held.send_replace(kinds.to_vec());
    }

    /// Has none of these kinds.
    pub fn unserve(&self, kinds: &[&'static str]) {
        self.state.lock().unserved = kinds.to_vec();
    }

    /// Waits for an object of this kind that was created through a client.
    pub async fn created(&self, plural: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut bell = self.bell.subscribe();
        loop {
            bell.borrow_and_update();
            let found = {
                let state = self.state.lock();
                state.objects.iter().find(|((p, ..), o)| p == plural && wanted(o)).map(|(_, o)| o.clone())
            };
            match found {
                Some(object) => return object,
                None => bell.changed().await.expect("the API goes on"),
            }
        }
    }

    /// Creates or replaces an object.
    pub fn put(&self, plural: &str, object: Value) {
        self.write(plural, object, false);
    }

    /// Deletes an object.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) {
        self.write(plural, json!({"metadata": {"namespace": namespace, "name": name}}), true);
    }

    /// Ends all watches, and forgets the history so that they can't be taken up where they ended.
    pub fn break_watches(&self) {
        let mut state = self.state.lock();
        state.epoch += 1;
        state.revision += 1;
        state.compacted = state.revision;
        state.log.clear();
        self.bell.send_replace((state.revision, state.epoch));
    }

    /// How many lists were answered.
    pub fn lists(&self) -> usize {
        self.state.lock().lists
    }

    fn write(&self, plural: &str, mut object: Value, delete: bool) {
        let mut state = self.state.lock();
        state.revision += 1;
        let revision = state.revision;
        let name = |of: &str| object["metadata"][of].as_str().unwrap_or_default().to_owned();
        let key = (plural.to_owned(), name("namespace"), name("name"));
        let kind = match delete {
            true => {
                object = state.objects.remove(&key).unwrap_or(object);
                "DELETED"
            }
            false if state.objects.contains_key(&key) => "MODIFIED",
            false => "ADDED",
        };
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        if !delete {
            state.objects.insert(key, object.clone());
        }
        state.log.push((revision, plural.to_owned(), json!({"type": kind, "object": object})));
        self.bell.send_replace((revision, state.epoch));
    }

    pub async fn answer(&self, request: Request<Body>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        if self.state.lock().unserved.contains(&plural.as_str()) {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                "reason": "NotFound", "message": "the server could not find the requested resource"});
            let mut response = Response::new(Full::new(Bytes::from(status.to_string())).boxed_unsync());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
        if request.method() == http::Method::POST {
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            self.write(&plural, serde_json::from_slice(&body).expect("an object"), false);
            return Response::new(Full::new(body).boxed_unsync());
        }
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), decoded(v)))
            .collect();
        let selects = Selects {
            absent: selectors(&query, "labelSelector")
                .filter_map(|s| s.strip_prefix('!').map(str::to_owned))
                .collect(),
            name: selectors(&query, "fieldSelector")
                .find_map(|s| s.strip_prefix("metadata.name=").map(str::to_owned)),
        };
        if query.get("watch").is_some_and(|w| w == "true" || w == "1") {
            if query.get("sendInitialEvents").is_some_and(|s| s == "true") {
                return self.watch_list(plural, selects);
            }
            let from = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
            return self.watch(plural, from, selects, String::new());
        }
        let mut held = self.held.subscribe();
        let _ = held.wait_for(|kinds| !kinds.contains(&plural.as_str())).await;
        let mut state = self.state.lock();
        state.lists += 1;
        let items: Vec<_> = state
            .objects
            .iter()
            .filter(|((p, ..), o)| *p == plural && selects.has(o))
            .map(|(_, o)| o)
            .collect();
        let list = json!({"metadata": {"resourceVersion": state.revision.to_string()}, "items": items});
        Response::new(Full::new(Bytes::from(list.to_string())).boxed_unsync())
    }

    /// A watch that begins with all that is there (KEP-3157).
    fn watch_list(&self, plural: String, selects: Selects) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let (revision, mut first) = {
            let state = self.state.lock();
            let there = state.objects.iter().filter(|((p, ..), o)| *p == plural && selects.has(o));
            let events = there.map(|(_, o)| format!("{}\n", json!({"type": "ADDED", "object": o})));
            (state.revision, events.collect::<String>())
        };
        let (kind, version) = match plural.as_str() {
            "services" => ("Service", "v1"),
            "nodes" => ("Node", "v1"),
            "endpointslices" => ("EndpointSlice", "discovery.k8s.io/v1"),
            _ => ("ServiceCIDR", "networking.k8s.io/v1"),
        };
        let metadata = json!({"resourceVersion": revision.to_string(),
            "annotations": {"k8s.io/initial-events-end": "true"}});
        let end = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        first += &format!("{}\n", json!({"type": "BOOKMARK", "object": end}));
        self.watch(plural, revision, selects, first)
    }

    fn watch(
        &self,
        plural: String,
        from: u64,
        selects: Selects,
        first: String,
    ) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        let state = self.state.lock();
        if from < state.compacted {
            let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
                "message": "too old resource version"});
            // Servers say it by an event, but proxies and older ones by the status: both are to be understood.
            let by_status = plural == "services";
            let body = if by_status { gone } else { json!({"type": "ERROR", "object": gone}) };
            let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))).boxed_unsync());
            if by_status {
                *response.status_mut() = StatusCode::GONE;
            }
            return response;
        }
        let watch = (self.clone(), self.bell.subscribe(), from, state.epoch);
        let selects = Arc::new(selects);
        let stream = futures_util::stream::unfold(watch, move |(api, mut bell, from, epoch)| {
            let (plural, selects) = (plural.clone(), selects.clone());
            async move {
                loop {
                    {
                        let state = api.state.lock();
                        if state.epoch != epoch {
                            return None;
                        }
                        let new = state
                            .log
                            .iter()
                            .filter(|(r, p, e)| *r > from && *p == plural && selects.has(&e["object"]));
                        let text: String = new.map(|(_, _, event)| format!("{event}\n")).collect();
                        if !text.is_empty() {
                            let frame = http_body::Frame::data(Bytes::from(text));
                            let revision = state.revision;
                            drop(state);
                            return Some((Ok::<_, Infallible>(frame), (api, bell, revision, epoch)));
                        }
                    }
                    if bell.changed().await.is_err() {
                        return None;
                    }
                }
            }
        });
        let first = (!first.is_empty()).then(|| Ok(http_body::Frame::data(Bytes::from(first))));
        let stream = futures_util::stream::iter(first).chain(stream);
        Response::new(UnsyncBoxBody::new(StreamBody::new(stream.boxed())))
    }
}

struct Selects {
    absent: Vec<String>,
    name: Option<String>,
}

impl Selects {
    fn has(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        self.absent.iter().all(|label| metadata["labels"].get(label).is_none())
            && self.name.as_ref().is_none_or(|name| metadata["name"] == **name)
    }
}

fn selectors<'a>(query: &'a BTreeMap<String, String>, name: &str) -> impl Iterator<Item = &'a str> {
    query.get(name).map(String::as_str).unwrap_or_default().split(',').filter(|s| !s.is_empty())
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(out).unwrap()
}
