//! Requests that become connections: exec, attach and port-forward, passed on to the node that runs the pod.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use portolan_api::{Kind, Status, meta, walk};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::body::{ServerBody, StreamError};
use crate::http::{Answer, Caller};
use crate::log::{self, LogRequest};
use crate::path::{ObjectPath, Query, encode};
use crate::read::object_key;
use crate::server::Server;

/// The most of a refusal that is read.
const REFUSAL: usize = 64 << 10;

/// A request's body, not yet read.
pub(crate) type Upload = UnsyncBoxBody<Bytes, StreamError>;

/// A request that is passed on instead of answered.
pub(crate) struct Passing {
    pub caller: Caller,
    pub kind: Kind,
    pub path: ObjectPath,
    pub query: Query,
    pub head: Parts,
    /// In a mutex only so that a reference to all of this may be held across waiting.
    pub body: Mutex<Upload>,
}

impl Passing {
    /// The name in the path.
    pub(crate) fn name(&self) -> &str {
        self.path.name.as_deref().unwrap_or_default()
    }

    /// The body, which can be sent on once.
    pub(crate) fn take_body(&mut self) -> Upload {
        let none = Empty::new().map_err(|never: std::convert::Infallible| match never {});
        std::mem::replace(self.body.get_mut(), none.boxed_unsync())
    }

    fn key(&self, name: &str) -> String {
        object_key(&self.kind, self.path.namespace.as_deref(), name)
    }
}

/// Whether a subresource is passed on.
pub(crate) fn passes(subresource: &str) -> bool {
    matches!(subresource, "exec" | "attach" | "portforward" | "proxy")
}

/// What an upgraded connection of a client can be: anything that reads and writes.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

impl Server {
    /// Passes a request on.
    pub(crate) async fn pass(&self, passing: Passing) -> Answer {
        if passing.path.name.is_none() || passing.kind.namespaced() != passing.path.namespace.is_some() {
            return Err(Status::no_such_path());
        }
        match passing.path.subresource.as_deref() {
            Some("proxy") => self.proxy(passing).await,
            Some(_) if !passing.path.rest.is_empty() => Err(Status::no_such_path()),
            Some(what) => {
                let what = what.to_owned();
                self.stream(passing, &what).await
            }
            None => Err(Status::no_such_path()),
        }
    }

    /// The object that a passed request names, or one of its kind.
    pub(crate) async fn named(&self, passing: &Passing, name: &str) -> Result<Value, Status> {
        Ok(self.stored(&passing.kind, &passing.key(name), name).await?.0)
    }

    /// Where a node answers.
    pub(crate) async fn node_at(&self, node: &str, path: String) -> Result<LogRequest, Status> {
        let kind = portolan_api::find("", "v1", "nodes").ok_or_else(Status::no_such_path)?;
        let (node, _) = self.stored(kind, &object_key(kind, None, node), node).await?;
        log::locate(&node, path, &self.config.node_log_token)
    }

    /// exec, attach, portforward: the node speaks with the client itself.
    async fn stream(&self, mut passing: Passing, what: &str) -> Answer {
        if !matches!(passing.head.method, Method::GET | Method::POST) {
            return Err(Status::method_not_supported());
        }
        let pod = self.named(&passing, passing.name()).await?;
        let query = &passing.query;
        let path = if what == "portforward" {
            let ports: Vec<&str> = query.all("ports").collect();
            let ports =
                if ports.is_empty() { String::new() } else { format!("?port={}", encode(&ports.join(","))) };
            format!("/portForward/{}/{}{ports}", meta::namespace(&pod), meta::name(&pod))
        } else {
            let container = log::container(&pod, query.get("container"))?;
            let (namespace, name) = (meta::namespace(&pod), meta::name(&pod));
            format!("/{what}/{namespace}/{name}/{container}?{}", remote_options(what, query))
        };
        let node = walk::text(&pod, "spec.nodeName");
        if node.is_empty() {
            let message = format!("pod {} does not have a host assigned", passing.name());
            return Err(Status::bad_request(message));
        }
        let at = self.node_at(node, path).await?;
        if !wants_upgrade(&passing.head.headers) {
            return Err(Status::bad_request("Upgrade request required"));
        }
        let Some(client) = passing.head.extensions.remove::<OnUpgrade>() else {
            // HTTP/2 has no upgrades (RFC 9113 section 8.6): clients open another connection for it.
            return Err(Status::bad_request("Upgrade request required"));
        };
        let backend = log::dial(&at).await.map_err(|error| unreachable(&error))?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = passing.head.method.clone();
        *request.uri_mut() = at.path.parse().map_err(Status::internal)?;
        for (name, value) in &passing.head.headers {
            if travels(name) || is_of_upgrade(name) {
                request.headers_mut().append(name, value.clone());
            }
        }
        let own = [
            (header::HOST, std::net::SocketAddr::new(at.address, at.port).to_string()),
            (header::AUTHORIZATION, format!("Bearer {}", at.token)),
        ];
        for (name, value) in own {
            request.headers_mut().insert(name, HeaderValue::from_str(&value).map_err(Status::internal)?);
        }
        upgrade(backend, request, client, passing.caller.drain).await
    }
}

/// The options of exec and attach in the words of a kubelet (`registry/core/pod`, streamParams).
fn remote_options(what: &str, query: &Query) -> String {
    let mut pairs: Vec<String> =
        [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
            .into_iter()
            .filter(|(name, _)| query.option(name))
            .map(|(_, own)| format!("{own}=1"))
            .collect();
    if what == "exec" {
        pairs.extend(query.all("command").map(|word| format!("command={}", encode(word))));
    }
    pairs.join("&")
}

/// Whether a client asks for another protocol on this connection.
pub(crate) fn wants_upgrade(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
}

/// What belongs to the connection with us (RFC 9110 section 7.6.1), or is between the client and us: its credentials.
pub(crate) fn travels(name: &HeaderName) -> bool {
    // Who asked as whom is between the client and us.
    if name.as_str().starts_with("impersonate-") || name.as_str().starts_with("x-remote-") {
        return false;
    }
    let ours = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "authorization",
        "content-length",
    ];
    !ours.contains(&name.as_str()) && !name.as_str().starts_with("impersonate-")
}

/// What makes an upgrade.
pub(crate) fn is_of_upgrade(name: &HeaderName) -> bool {
    matches!(name.as_str(), "connection" | "upgrade")
}

/// A backend that can't be reached, in kube-apiserver's words: a bare error, without a reason.
fn unreachable(error: &dyn std::fmt::Display) -> Status {
    Status { reason: "", ..bare(format!("error dialing backend: {error}")) }
}

fn bare(message: String) -> Status {
    Status { code: 500, message, details: serde_json::Map::new(), ..Status::internal("") }
}

/// Sends a request that asks for an upgrade; if the backend agrees, the client's connection and the backend's become one.
pub(crate) async fn upgrade<B>(
    backend: Box<dyn Duplex>,
    request: Request<B>,
    client: OnUpgrade,
    drain: CancellationToken,
) -> Answer
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StreamError>,
{
    let failed = |error: hyper::Error| bare(format!("error sending request: {error}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(backend)).await.map_err(failed)?;
    tokio::spawn(connection.with_upgrades());
    let mut answer = sender.send_request(request).await.map_err(failed)?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let backend = hyper::upgrade::on(&mut answer);
        let (head, _) = answer.into_parts();
        tokio::spawn(async move {
            match tokio::try_join!(client, backend) {
                Ok((client, backend)) => join(client, backend, drain).await,
                Err(error) => tracing::debug!(%error, "upgrading"),
            }
        });
        let mut response = Response::new(ServerBody::empty());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        return Ok(response);
    }
    if answer.status().as_u16() < 400 {
        return Err(bare(format!("invalid upgrade response: status code {}", answer.status().as_u16())));
    }
    // The backend's refusal as it is: clients read its text.
    let (head, body) = answer.into_parts();
    let text = Limited::new(body, REFUSAL).collect().await.map(|all| all.to_bytes()).unwrap_or_default();
    let mut response = Response::new(ServerBody::whole(text));
    *response.status_mut() = head.status;
    for (name, value) in &head.headers {
        if travels(name) {
            response.headers_mut().append(name, value.clone());
        }
    }
    Ok(response)
}

/// Copies both ways until one side has nothing more to say, as kube-apiserver does, or the server stops.
async fn join(client: Upgraded, backend: Upgraded, drain: CancellationToken) {
    let (mut from_client, mut to_client) = tokio::io::split(TokioIo::new(client));
    let (mut from_backend, mut to_backend) = tokio::io::split(TokioIo::new(backend));
    tokio::select! {
        () = copy(&mut from_client, &mut to_backend) => {}
        () = copy(&mut from_backend, &mut to_client) => {}
        () = drain.cancelled() => {}
    }
    // What was passed on is on its way before both ends hear of the end.
    let _ = tokio::join!(to_client.shutdown(), to_backend.shutdown());
}

/// Like `tokio::io::copy`, but never holds anything back: every piece is flushed through TLS at once.
async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                if to.write_all(&buffer[..length]).await.is_err() || to.flush().await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_told_in_a_kubelets_words() {
        let query = Query::parse(
            "command=sh&command=-c&command=echo+a%26b&container=web&stdin=true&stdout=true&stderr=false",
        );
        assert_eq!(
            remote_options("exec", &query),
            "input=1&output=1&command=sh&command=-c&command=echo%20a%26b"
        );
        assert_eq!(
            remote_options("attach", &Query::parse("tty=true&stdin=1&stdout=")),
            "input=1&output=1&tty=1"
        );
    }

    #[test]
    fn credentials_and_what_concerns_one_connection_stay_here() {
        for (name, goes) in [
            ("authorization", false),
            ("impersonate-user", false),
            ("te", false),
            ("sec-websocket-key", true),
            ("x-stream-protocol-version", true),
            ("accept", true),
        ] {
            assert_eq!(travels(&HeaderName::from_static(name)), goes, "{name}");
        }
    }
}
