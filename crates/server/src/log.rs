//! Pods' logs: asked of the node that runs the pod, and passed through.

use std::net::IpAddr;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use portolan_api::fielderror::{self, FieldError};
use portolan_api::{Status, meta, walk};
use serde_json::Value;

use crate::body::{ServerBody, StreamError};
use crate::connect::Duplex;
use crate::http::{Answer, Call};
use crate::path::encode;
use crate::read::object_key;
use crate::server::Server;

/// The parameters that are passed on to the node.
const FLAGS: [&str; 3] = ["follow", "previous", "timestamps"];
const VALUES: [&str; 4] = ["tailLines", "sinceSeconds", "sinceTime", "limitBytes"];
/// The annotation in which a node announces SHA-256 of its serving certificate, in hexadecimal.
pub(crate) const CERTIFICATE: &str = "portolan.dev/serving-cert-sha256";

/// What is asked of a node.
#[derive(Clone, Debug)]
pub struct LogRequest {
    /// The node's InternalIP.
    pub address: IpAddr,
    /// The node's `status.daemonEndpoints.kubeletEndpoint.Port`.
    pub port: u16,
    /// SHA-256 of the DER of the node's serving certificate, from its annotation.
    pub certificate: [u8; 32],
    /// The bearer token that the node expects.
    pub token: String,
    /// Path and query, as in `/containerLogs/default/web-1/web?follow=true`.
    pub path: String,
}

/// Fetches logs from nodes.
#[async_trait::async_trait]
pub trait NodeLogs: Send + Sync + 'static {
    /// The log's bytes as they come; `Err` is a status code and the reason.
    async fn fetch(
        &self,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, StreamError>>, (http::StatusCode, String)>;
}

/// Fetches over HTTPS, trusting the one certificate that the node announced.
#[derive(Clone, Copy, Debug, Default)]
pub struct PinnedNodeLogs;

#[async_trait::async_trait]
impl NodeLogs for PinnedNodeLogs {
    async fn fetch(
        &self,
        request: LogRequest,
    ) -> Result<BoxStream<'static, Result<Bytes, StreamError>>, (http::StatusCode, String)> {
        let at = std::net::SocketAddr::new(request.address, request.port);
        let unreachable = |error: &dyn std::fmt::Display| {
            let url = format!("https://{at}{}", request.path);
            (http::StatusCode::INTERNAL_SERVER_ERROR, format!("Get \"{url}\": {error}"))
        };
        let io = hyper_util::rt::TokioIo::new(dial(&request).await.map_err(|error| unreachable(&error))?);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, http_body_util::Empty<Bytes>>(io)
                .await
                .map_err(|error| unreachable(&error))?;
        // Ends with the body, or when the body is dropped.
        tokio::spawn(connection);
        let message = http::Request::get(&request.path)
            .header(http::header::HOST, at.to_string())
            .header(http::header::AUTHORIZATION, format!("Bearer {}", request.token))
            .body(http_body_util::Empty::new())
            .map_err(|error| unreachable(&error))?;
        let answer = sender.send_request(message).await.map_err(|error| unreachable(&error))?;
        let (head, body) = answer.into_parts();
        if !head.status.is_success() {
            let text =
                http_body_util::Limited::new(body, 64 * 1024).collect().await.map(|all| all.to_bytes());
            let text =
                text.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).unwrap_or_default();
            return Err((head.status, text));
        }
        let stream = body.into_data_stream().map(move |chunk| {
            // The sender lives as long as the stream, else hyper would take the connection for unused.
            let _keep = &sender;
            chunk.map_err(StreamError::from)
        });
        Ok(stream.boxed())
    }
}

/// Connects to a node, and makes sure that it is the one.
pub(crate) async fn dial(node: &LogRequest) -> anyhow::Result<Box<dyn Duplex>> {
    let connect = async {
        let stream = tokio::net::TcpStream::connect((node.address, node.port)).await?;
        // What is typed goes out by itself.
        let _ = stream.set_nodelay(true);
        let config = crate::pin::client(Some(node.certificate))?;
        let name = rustls_pki_types::ServerName::from(node.address);
        let tls = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
        anyhow::Ok(Box::new(tls) as Box<dyn Duplex>)
    };
    let timed = tokio::time::timeout(std::time::Duration::from_secs(10), connect).await;
    timed.map_err(|_| anyhow::anyhow!("no connection within 10 s"))?
}

impl Server {
    /// GET of a pod's `log`.
    pub(crate) async fn log(&self, call: &Call) -> Answer {
        let (pod, _) = self.stored(&call.kind, &call.key(), call.name()).await?;
        let container = container(&pod, call.query.get("container"))?;
        let options = log_options(call)?;
        let node = walk::text(&pod, "spec.nodeName");
        if node.is_empty() {
            // A pod that runs nowhere has said nothing yet (registry/core/pod/strategy.go LogLocation).
            return Ok(plain(ServerBody::empty()));
        }
        let kind = portolan_api::find("", "v1", "nodes").ok_or_else(Status::no_such_path)?;
        let (node, _) = self.stored(kind, &object_key(kind, None, node), node).await?;
        let namespace = meta::namespace(&pod);
        let path = format!("/containerLogs/{namespace}/{}/{container}{options}", meta::name(&pod));
        let request = locate(&node, path, &self.config.node_log_token)?;
        let stream = self
            .config
            .node_logs
            .fetch(request)
            .await
            .map_err(|(code, text)| refusal(call.name(), code, text))?;
        let until = call.caller.drain.clone().cancelled_owned();
        Ok(plain(ServerBody::stream(stream.take_until(until).boxed())))
    }
}

fn plain(body: ServerBody) -> Response<ServerBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// The container that is meant, with Kubernetes' texts where it isn't clear.
pub(crate) fn container(pod: &Value, asked: Option<&str>) -> Result<String, Status> {
    let names = |path| -> Vec<&str> { walk::list(pod, path).iter().map(|c| walk::text(c, "name")).collect() };
    let (usual, init, ephemeral) =
        (names("spec.containers"), names("spec.initContainers"), names("spec.ephemeralContainers"));
    let pod = meta::name(pod);
    match asked {
        Some(name) if [&usual, &init, &ephemeral].iter().any(|names| names.contains(&name)) => {
            Ok(name.to_owned())
        }
        Some(name) => Err(Status::bad_request(format!("container {name} is not valid for pod {pod}"))),
        None => match usual.as_slice() {
            [only] => Ok((*only).to_owned()),
            [] => Err(Status::bad_request(format!("a container name must be specified for pod {pod}"))),
            several => {
                // All that may be chosen, in the order in which they start.
                let all = [init.as_slice(), several, ephemeral.as_slice()].concat().join(" ");
                Err(Status::bad_request(format!(
                    "a container name must be specified for pod {pod}, choose one of: [{all}]"
                )))
            }
        },
    }
}

/// The options as a query, checked.
fn log_options(call: &Call) -> Result<String, Status> {
    let query = &call.query;
    let number = |name: &str| match query.get(name) {
        None => Ok(None),
        Some(text) => text
            .parse::<i64>()
            .map(Some)
            .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
    };
    let mut errors = Vec::new();
    let (tail, limit, seconds) = (number("tailLines")?, number("limitBytes")?, number("sinceSeconds")?);
    if let Some(tail) = tail.filter(|tail| *tail < 0) {
        errors.push(FieldError::invalid("tailLines", tail, "must be greater than or equal to 0"));
    }
    if let Some(limit) = limit.filter(|limit| *limit < 1) {
        errors.push(FieldError::invalid("limitBytes", limit, "must be greater than 0"));
    }
    match seconds {
        Some(_) if query.get("sinceTime").is_some() => {
            let text = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::forbidden("", text));
        }
        Some(seconds) if seconds < 1 => {
            errors.push(FieldError::invalid("sinceSeconds", seconds, "must be greater than 0"));
        }
        _ => {}
    }
    // The gate PodLogsQuerySplitStreams is off in 1.36.
    if query.has("stream") {
        errors.push(FieldError::forbidden("stream", "may not be specified"));
    }
    if !errors.is_empty() {
        let name = call.name();
        let message = format!("PodLogOptions {name:?} is invalid: {}", fielderror::aggregate(&errors));
        let mut status = Status { code: 422, reason: "Invalid", ..Status::bad_request(message) };
        status.details.insert("name".into(), name.into());
        status.details.insert("kind".into(), "PodLogOptions".into());
        status.details.insert("causes".into(), errors.iter().map(FieldError::cause).collect());
        return Err(status);
    }
    let flags = FLAGS.into_iter().filter(|name| query.option(name)).map(|name| format!("{name}=true"));
    let values = VALUES.into_iter().filter_map(|name| Some(format!("{name}={}", encode(query.get(name)?))));
    let query: Vec<String> = flags.chain(values).collect();
    Ok(if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) })
}

/// What a node refuses, as kube-apiserver passes it on (`GenericHttpResponseChecker`).
fn refusal(pod: &str, code: StatusCode, text: String) -> Status {
    match code {
        StatusCode::BAD_REQUEST => Status::bad_request(text),
        StatusCode::INTERNAL_SERVER_ERROR => Status::internal(text),
        _ => {
            let (reason, said) = match code {
                StatusCode::NOT_FOUND => ("NotFound", "the server could not find the requested resource"),
                StatusCode::UNAUTHORIZED => {
                    ("Unauthorized", "the server has asked for the client to provide credentials")
                }
                _ => ("", "the server responded with an error and did not return more information"),
            };
            let message = format!("{said} ( pods/log {pod})");
            let mut status = Status { code: code.as_u16(), reason, ..Status::bad_request(message) };
            status.details.insert("name".into(), pod.into());
            status.details.insert("kind".into(), "pods/log".into());
            if code != StatusCode::NOT_FOUND {
                let cause = serde_json::json!({"reason": "UnexpectedServerResponse", "message": text});
                status.details.insert("causes".into(), vec![cause].into());
            }
            status
        }
    }
}

/// Where a node answers, and the certificate it will show.
pub(crate) fn locate(node: &Value, path: String, token: &str) -> Result<LogRequest, Status> {
    let name = meta::name(node);
    let missing = |what: &str| Status::internal(format!("node {name} has no {what}: is its agent running?"));
    let address = walk::list(node, "status.addresses")
        .iter()
        .find(|address| walk::text(address, "type") == "InternalIP")
        .and_then(|address| walk::text(address, "address").parse().ok())
        .ok_or_else(|| missing("InternalIP"))?;
    let port = walk::int(node, "status.daemonEndpoints.kubeletEndpoint.Port")
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .ok_or_else(|| missing("status.daemonEndpoints.kubeletEndpoint.Port"))?;
    let certificate = meta::annotation(node, CERTIFICATE)
        .and_then(crate::auth::unhex)
        .ok_or_else(|| missing(&format!("annotation {CERTIFICATE}")))?;
    Ok(LogRequest { address, port, certificate, token: token.to_owned(), path })
}
