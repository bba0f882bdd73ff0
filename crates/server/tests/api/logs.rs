//! Pods' logs, passed through from a node.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::StatusCode;
use portolan_server::{LogRequest, NodeLogs, PinnedNodeLogs, Server, StreamError};
use portolan_store::embedded::Embedded;
use serde_json::json;

use crate::support::*;

/// A node that says what it was asked.
struct Parrot;

#[async_trait::async_trait]
impl NodeLogs for Parrot {
    async fn fetch(
        &self,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, StreamError>>, (StatusCode, String)> {
        if request.path.contains("/waiting/") {
            let text = "container \"web\" in pod \"waiting\" is waiting to start: ContainerCreating";
            return Err((StatusCode::BAD_REQUEST, text.into()));
        }
        let lines = [format!("{}:{} {}\n", request.address, request.port, request.path), "second\n".into()];
        Ok(futures_util::stream::iter(lines.map(|line| Ok(line.into()))).boxed())
    }
}

/// A server that knows of a node.
pub async fn with_node(logs: Arc<dyn NodeLogs>, address: &str, port: u16, certificate: &str) -> Arc<Server> {
    let mut config = config();
    config.node_logs = logs;
    config.node_log_token = "node-log-secret".into();
    let server = Server::open(config, Embedded::in_memory()).await.expect("the server opens");
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n1", "annotations": {"portolan.dev/serving-cert-sha256": certificate}},
    });
    assert_eq!(post(&server, "/api/v1/nodes", &node).await.code, 201);
    let status = json!({"status": {
        "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    assert_eq!(patch(&server, "/api/v1/nodes/n1/status", "merge", &status).await.code, 200);
    server
}

#[tokio::test]
async fn a_log_is_asked_of_the_pod_s_node_with_the_client_s_options() {
    let server = with_node(Arc::new(Parrot), "192.0.2.7", 10250, &"ab".repeat(32)).await;
    post(&server, &core("pods"), &pod("p", "n1")).await;
    let log = get(&server, &core("pods/p/log?tailLines=5&follow=true&pretty=true")).await;
    assert_eq!(log.text, "192.0.2.7:10250 /containerLogs/default/p/web?follow=true&tailLines=5\nsecond\n");
    assert_eq!(log.headers["content-type"], "text/plain");
    post(&server, &core("pods"), &pod("idle", "")).await;
    let idle = get(&server, &core("pods/idle/log")).await;
    assert_eq!((idle.code.as_u16(), idle.text.as_str()), (200, ""));
    post(&server, &core("pods"), &pod("waiting", "n1")).await;
    let waiting = get(&server, &core("pods/waiting/log")).await;
    assert_eq!(waiting.code, 400);
    assert!(waiting.text.contains("is waiting to start"), "{}", waiting.text);
}

#[tokio::test]
async fn a_container_must_be_named_where_there_are_several() {
    let server = with_node(Arc::new(Parrot), "192.0.2.7", 10250, &"ab".repeat(32)).await;
    let mut two = pod("two", "n1");
    two["spec"]["initContainers"] = json!([{"name": "first", "image": "echo"}]);
    two["spec"]["containers"] = json!([{"name": "a", "image": "echo"}, {"name": "b", "image": "echo"}]);
    assert_eq!(post(&server, &core("pods"), &two).await.code, 201);
    for (query, text) in [
        ("", "a container name must be specified for pod two, choose one of: [first a b]"),
        ("?container=c", "container c is not valid for pod two"),
    ] {
        let refused = get(&server, &core(&format!("pods/two/log{query}"))).await;
        assert_eq!((refused.code.as_u16(), refused.body["message"].as_str()), (400, Some(text)));
    }
    assert_eq!(get(&server, &core("pods/two/log?container=b")).await.code, 200);
    for (query, text) in [
        (
            "tailLines=-1",
            "PodLogOptions \"two\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "limitBytes=0",
            "PodLogOptions \"two\" is invalid: limitBytes: Invalid value: 0: must be greater than 0",
        ),
        (
            "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z",
            "PodLogOptions \"two\" is invalid: : Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified",
        ),
    ] {
        let refused = get(&server, &core(&format!("pods/two/log?container=b&{query}"))).await;
        assert_eq!((refused.code.as_u16(), refused.body["message"].as_str()), (422, Some(text)));
    }
}

/// A TLS set-up with a certificate of its own, and the SHA-256 by which a node would announce it.
pub fn node_tls() -> (tokio_rustls::TlsAcceptor, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["whoever".into()]).expect("names");
    let certificate = params.self_signed(&key).expect("a certificate").der().clone();
    let digest = ring::digest::digest(&ring::digest::SHA256, &certificate);
    let hash: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate],
            rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .expect("a TLS set-up");
    (tokio_rustls::TlsAcceptor::from(Arc::new(tls)), hash)
}

#[tokio::test]
async fn a_node_over_tls_is_known_by_its_certificate() {
    use hyper_util::rt::TokioIo;
    let (acceptor, hash) = node_tls();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let answer = |request: http::Request<hyper::body::Incoming>| async move {
                let token =
                    request.headers()[http::header::AUTHORIZATION].to_str().unwrap_or_default().to_owned();
                let text = format!("{token} {}\n", request.uri());
                Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::new(
                    Bytes::from(text),
                )))
            };
            let service = hyper::service::service_fn(answer);
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });

    let server = with_node(Arc::new(PinnedNodeLogs), "127.0.0.1", port, &hash).await;
    post(&server, &core("pods"), &pod("p", "n1")).await;
    let log = get(&server, &core("pods/p/log")).await;
    assert_eq!(log.text, "Bearer node-log-secret /containerLogs/default/p/web\n");

    let wrong = with_node(Arc::new(PinnedNodeLogs), "127.0.0.1", port, &"00".repeat(32)).await;
    post(&wrong, &core("pods"), &pod("p", "n1")).await;
    let refused = get(&wrong, &core("pods/p/log")).await;
    assert_eq!(refused.code, 500);
    assert!(refused.text.contains("isn't the one that was announced"), "{}", refused.text);
}
