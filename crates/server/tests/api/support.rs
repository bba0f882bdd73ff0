//! A server over a store in memory, and ways to talk to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use portolan_server::{Config, Identity, InProcess, Server, ServerBody};
use portolan_store::Store;
use portolan_store::embedded::Embedded;
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// The usual settings of a test.
pub fn config() -> Config {
    let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().expect("a range"));
    let mut config = Config::new(cidrs.to_vec());
    config.advertise_addresses = vec!["192.0.2.10".parse().expect("an address")];
    config.tokens = vec![("letmein".into(), Identity::admin())];
    config
}

/// A server over an empty store.
pub async fn server() -> Arc<Server> {
    over(Embedded::in_memory()).await
}

/// A server over this store.
pub async fn over(store: Arc<dyn Store>) -> Arc<Server> {
    Server::open(config(), store).await.expect("the server opens")
}

/// A kube client without a socket.
pub fn client(server: &Arc<Server>) -> kube::Client {
    kube::Client::new(server.service(Identity::admin()), "default")
}

/// A typed API in the namespace `default`.
pub fn configmaps(server: &Arc<Server>) -> Api<ConfigMap> {
    Api::namespaced(client(server), "default")
}

/// An answer, read whole.
pub struct Answer {
    pub code: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Value,
    pub text: String,
}

/// One request, as it would stand on the wire.
pub async fn call(server: &Arc<Server>, method: Method, path: &str, media: &str, body: &Value) -> Answer {
    let bytes = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, media);
    send(server, request.body(Full::new(bytes)).expect("a request")).await
}

/// One request that is built already.
pub async fn send(server: &Arc<Server>, request: Request<Full<Bytes>>) -> Answer {
    send_by(server.service(Identity::admin()), request).await
}

/// The same by somebody.
pub async fn send_by(service: InProcess, request: Request<Full<Bytes>>) -> Answer {
    let response = service.oneshot(request).await.expect("infallible");
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.expect("a whole body").to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let body = serde_json::from_slice(&bytes).unwrap_or_default();
    Answer { code: head.status, headers: head.headers, body, text }
}

/// GET.
pub async fn get(server: &Arc<Server>, path: &str) -> Answer {
    call(server, Method::GET, path, "", &Value::Null).await
}

/// POST of JSON.
pub async fn post(server: &Arc<Server>, path: &str, body: &Value) -> Answer {
    call(server, Method::POST, path, "application/json", body).await
}

/// PUT of JSON.
pub async fn put(server: &Arc<Server>, path: &str, body: &Value) -> Answer {
    call(server, Method::PUT, path, "application/json", body).await
}

/// PATCH.
pub async fn patch(server: &Arc<Server>, path: &str, way: &str, body: &Value) -> Answer {
    call(server, Method::PATCH, path, &format!("application/{way}-patch+json"), body).await
}

/// DELETE.
pub async fn delete(server: &Arc<Server>, path: &str, options: &Value) -> Answer {
    call(server, Method::DELETE, path, "application/json", options).await
}

/// A ConfigMap.
pub fn configmap(name: &str, labels: &Value, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": data})
}

/// A pod of one container.
pub fn pod(name: &str, node: &str) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "web", "image": "echo"}]},
    });
    if !node.is_empty() {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

/// A Service with one port.
pub fn service(name: &str, r#type: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"type": r#type, "selector": {"app": name}, "ports": [{"port": 80}]},
    })
}

/// The path of a collection of core objects in `default`.
pub fn core(plural: &str) -> String {
    format!("/api/v1/namespaces/default/{plural}")
}

/// A watch that is open.
pub struct Watch {
    body: ServerBody,
    pending: Vec<u8>,
}

impl Watch {
    /// Opens a watch.
    pub async fn open(server: &Arc<Server>, path: &str) -> Watch {
        Watch::open_as(server, path, "application/json").await
    }

    /// Opens a watch in some form.
    pub async fn open_as(server: &Arc<Server>, path: &str, accept: &str) -> Watch {
        let request = Request::get(path).header(header::ACCEPT, accept).body(Full::<Bytes>::default());
        let response = server.service(Identity::admin()).oneshot(request.expect("a request")).await;
        let response = response.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK, "watching {path}");
        Watch { body: response.into_body(), pending: Vec::new() }
    }

    /// The next event; none when the watch has ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("an event is a line of JSON"));
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame()).await;
            match frame.expect("the watch says something within 10 s") {
                Some(frame) => {
                    self.pending.extend_from_slice(&frame.expect("a frame").into_data().expect("data"))
                }
                None => return None,
            }
        }
    }

    /// The next event as `TYPE name`.
    pub async fn brief(&mut self) -> String {
        let event = self.next().await.expect("an event");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        format!("{} {}", text(&event["type"]), text(&event["object"]["metadata"]["name"])).trim().to_owned()
    }
}

/// The resource version of an object or a list.
pub fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
}
