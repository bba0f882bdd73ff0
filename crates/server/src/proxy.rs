//! `proxy`: HTTP to pods, Services' pods and nodes, passed through.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use portolan_api::{Status, meta, walk};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::body::{ServerBody, StreamError};
use crate::connect::{Duplex, Passing, is_of_upgrade, travels, upgrade, wants_upgrade};
use crate::http::Answer;
use crate::links;
use crate::log::{self, LogRequest};
use crate::read::object_key;
use crate::server::Server;

/// How long a connection may take to come about, as kube-apiserver's dialer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest page whose links are rewritten: it is held whole for that.
const LARGEST_PAGE: usize = 16 << 20;

/// Headers of a backend that would speak for us (`corsRemovingTransport`).
const CORS: [&str; 4] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];

/// `[SCHEME:]NAME[:PORT]`, where a scheme comes only with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id<'a> {
    https: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Id<'a> {
    fn parse(text: &'a str) -> Option<Id<'a>> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => return None,
        };
        (!name.is_empty() && matches!(scheme, "" | "http" | "https")).then_some(Id {
            https: scheme == "https",
            name,
            port,
        })
    }
}

/// Where a request goes.
#[derive(Clone, Debug)]
enum Backend {
    /// A port of a pod or node, over TLS or not.
    Port { at: SocketAddr, https: bool },
    /// What a node serves itself, with our credentials.
    Node(LogRequest),
}

impl Backend {
    fn authority(&self) -> String {
        match self {
            // A URL names the port only where it isn't the scheme's own.
            Backend::Port { at, https } if at.port() == if *https { 443 } else { 80 } => match at.ip() {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            },
            Backend::Port { at, .. } => at.to_string(),
            Backend::Node(node) => SocketAddr::new(node.address, node.port).to_string(),
        }
    }

    async fn dial(&self) -> Result<Box<dyn Duplex>, String> {
        let (at, https) = match self {
            Backend::Node(node) => return log::dial(node).await.map_err(|error| format!("{error:#}")),
            Backend::Port { at, https } => (*at, *https),
        };
        let connect = async {
            let stream = TcpStream::connect(at)
                .await
                .map_err(|error| format!("dial tcp {at}: connect: {}", lower(&error)))?;
            let _ = stream.set_nodelay(true);
            if !https {
                return Ok(Box::new(stream) as Box<dyn Duplex>);
            }
            // Pods' certificates are nobody's business but theirs: kube-apiserver doesn't check them either.
            let config = crate::pin::client(None).map_err(|error| error.to_string())?;
            let name = rustls_pki_types::ServerName::from(at.ip());
            let tls = tokio_rustls::TlsConnector::from(config).connect(name, stream).await;
            Ok(Box::new(tls.map_err(|error| error.to_string())?) as Box<dyn Duplex>)
        };
        let timed = tokio::time::timeout(PATIENCE, connect).await;
        timed.unwrap_or_else(|_| Err(format!("dial tcp {at}: i/o timeout")))
    }
}

/// An error of the machine as Go prints it: `connection refused`.
fn lower(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

/// An address that a proxy may go to: nobody reaches the machine itself by way of a pod's status.
fn allowed(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

/// A path split after its `words`-th word: the proxied object's own, and the rest as the client spelt it.
fn split_path(path: &str, words: usize) -> (&str, &str) {
    let mut seen = 0;
    let mut inside = false;
    for (index, byte) in path.bytes().enumerate() {
        if byte == b'/' && inside {
            inside = false;
            seen += 1;
            if seen == words {
                return path.split_at(index);
            }
        } else if byte != b'/' {
            inside = true;
        }
    }
    (path, "")
}

/// Where a redirect of the backend leads a client that came through `prefix`.
fn rewrite(location: &str, prefix: &str, authority: &str, asked: &str) -> String {
    let (host, path) = match location.split_once("://") {
        Some((_, rest)) => {
            let (host, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
            (host, path)
        }
        None => ("", location),
    };
    let elsewhere = !host.is_empty() && host != authority && host != asked;
    if elsewhere || !path.starts_with('/') || path.starts_with("//") {
        return location.to_owned();
    }
    if path.starts_with(prefix) { path.to_owned() } else { format!("{prefix}{path}") }
}

/// Whether links in it are to be found and rewritten. What is compressed passes as it is.
fn is_page(headers: &HeaderMap) -> bool {
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let plain = headers.get(header::CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
    plain && media.split(';').next().unwrap_or_default().trim() == "text/html"
}

/// Passes on what a backend says of its answer.
fn pass_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        let length = *name == header::CONTENT_LENGTH;
        if (travels(name) || length) && !CORS.contains(&name.as_str()) {
            to.append(name, value.clone());
        }
    }
}

impl Server {
    /// One request to what a pod, a Service's pods or a node serve.
    pub(crate) async fn proxy(&self, mut passing: Passing) -> Answer {
        let words = if passing.kind.namespaced() { 7 } else { 5 };
        let whole = passing.head.uri.path().to_owned();
        let (prefix, rest) = split_path(&whole, words);
        let backend = self.backend(&passing).await?;
        let upgrades = wants_upgrade(&passing.head.headers);
        // Relative links would lead astray without the slash.
        if rest.is_empty() && !upgrades && matches!(passing.head.method, Method::GET | Method::HEAD) {
            let query = passing.head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
            let location = HeaderValue::from_str(&format!("{whole}/{query}")).map_err(Status::internal)?;
            let mut response = Response::new(ServerBody::empty());
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            response.headers_mut().insert(header::LOCATION, location);
            return Ok(response);
        }
        let path = if rest.is_empty() { "/" } else { rest };
        let target = match passing.head.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        let uri: Uri = target.parse().map_err(|error| Status::bad_request(format!("{target:?}: {error}")))?;
        let authority = backend.authority();
        // Over HTTP/2 the host is in the URI (`:authority`).
        let asked = match passing.head.headers.get(header::HOST) {
            Some(host) => host.clone(),
            None => {
                HeaderValue::from_str(passing.head.uri.authority().map_or(&authority, |own| own.as_str()))
                    .map_err(Status::internal)?
            }
        };
        let mut request = Request::new(passing.take_body());
        *request.method_mut() = passing.head.method.clone();
        *request.uri_mut() = uri;
        for (name, value) in &passing.head.headers {
            let length = *name == header::CONTENT_LENGTH;
            if travels(name) || length || upgrades && is_of_upgrade(name) {
                request.headers_mut().append(name, value.clone());
            }
        }
        let headers = request.headers_mut();
        headers.insert(header::HOST, asked.clone());
        if let Ok(value) = HeaderValue::from_str(&whole) {
            headers.insert(HeaderName::from_static("x-forwarded-uri"), value);
        }
        if let Backend::Node(node) = &backend {
            let value = HeaderValue::from_str(&format!("Bearer {}", node.token)).map_err(Status::internal)?;
            headers.insert(header::AUTHORIZATION, value);
        }
        if upgrades && let Some(client) = passing.head.extensions.remove::<OnUpgrade>() {
            let connected = backend
                .dial()
                .await
                .map_err(|error| Status::unexpected(format!("error dialing backend: {error}")))?;
            return upgrade(connected, request, client, passing.caller.drain).await;
        }
        let unreachable =
            |error: String| Status::unavailable(format!("error trying to reach service: {error}"));
        let connected = backend.dial().await.map_err(unreachable)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(connected))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        // Ends with the body, or when the body is dropped.
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| unreachable(error.to_string()))?;
        let (mut head, body) = answer.into_parts();
        let asked = asked.to_str().unwrap_or_default();
        let whole = passing.head.method != Method::HEAD && head.headers.get(header::LOCATION).is_none();
        if whole && is_page(&head.headers) {
            let page = Limited::new(body, LARGEST_PAGE).collect().await;
            let page = page.map_err(|error| unreachable(error.to_string()))?.to_bytes();
            let text = String::from_utf8_lossy(&page);
            let text = links::rewrite(&text, |link| rewrite(link, prefix, &authority, asked));
            head.headers.remove(header::CONTENT_LENGTH);
            let mut response = Response::new(ServerBody::whole(text));
            *response.status_mut() = head.status;
            pass_headers(&head.headers, response.headers_mut());
            return Ok(response);
        }
        let stream = body.into_data_stream().map(move |chunk| {
            // The sender lives as long as the stream, else hyper would take the connection for unused.
            let _keep = &sender;
            chunk.map_err(StreamError::from)
        });
        let until = passing.caller.drain.clone().cancelled_owned();
        let mut response = Response::new(ServerBody::stream(stream.take_until(until).boxed()));
        *response.status_mut() = head.status;
        pass_headers(&head.headers, response.headers_mut());
        let location = head.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
        if let Some(location) = location {
            let location = rewrite(location, prefix, &authority, asked);
            let location = HeaderValue::from_str(&location).map_err(Status::internal)?;
            response.headers_mut().insert(header::LOCATION, location);
        }
        Ok(response)
    }

    async fn backend(&self, passing: &Passing) -> Result<Backend, Status> {
        let text = passing.name();
        let singular = passing.kind.singular();
        let id = Id::parse(text)
            .ok_or_else(|| Status::bad_request(format!("invalid {singular} request {text:?}")))?;
        match passing.kind.plural() {
            "pods" => self.pod_backend(passing, id).await,
            "services" => self.service_backend(passing, id, text).await,
            _ => {
                let node = self.node_at(id.name, String::new()).await?;
                if !allowed(node.address) {
                    return Err(Status::bad_request("address not allowed"));
                }
                if id.port.is_empty() || id.port == node.port.to_string() {
                    return Ok(Backend::Node(node));
                }
                Ok(Backend::Port { at: SocketAddr::new(node.address, number(id.port)?), https: id.https })
            }
        }
    }

    async fn pod_backend(&self, passing: &Passing, id: Id<'_>) -> Result<Backend, Status> {
        let pod = self.named(passing, id.name).await?;
        // Without a port, the first that any container names; without any, the scheme's.
        let first = walk::list(&pod, "spec.containers")
            .iter()
            .find_map(|container| walk::list(container, "ports").first())
            .and_then(|port| walk::int(port, "containerPort"));
        let port = match (id.port, first) {
            ("", Some(port)) => u16::try_from(port).unwrap_or_default(),
            ("", None) => {
                if id.https {
                    443
                } else {
                    80
                }
            }
            (port, _) => number(port)?,
        };
        let ip = pod_ips(&pod).next().filter(|ip| allowed(*ip));
        let ip = ip.ok_or_else(|| Status::bad_request("address not allowed"))?;
        Ok(Backend::Port { at: SocketAddr::new(ip, port), https: id.https })
    }

    async fn service_backend(&self, passing: &Passing, id: Id<'_>, text: &str) -> Result<Backend, Status> {
        let mut port = id.port.to_owned();
        if let Ok(number) = id.port.parse::<i64>() {
            let service = self.named(passing, id.name).await?;
            let found =
                walk::list(&service, "spec.ports").iter().find(|p| walk::int(p, "port") == Some(number));
            let found = found.ok_or_else(|| {
                let message = format!("no service port {number} found for service {:?}", id.name);
                Status::unavailable(message)
            })?;
            walk::text(found, "name").clone_into(&mut port);
        }
        let kind = portolan_api::find("", "v1", "endpoints").ok_or_else(Status::no_such_path)?;
        let namespace = passing.path.namespace.as_deref();
        let (endpoints, _) = self.stored(kind, &object_key(kind, namespace, id.name), id.name).await?;
        let mut choices = choices(&endpoints, &port);
        if walk::list(&endpoints, "subsets").is_empty() {
            let message = format!("no endpoints available for service {:?}", id.name);
            return Err(Status::unavailable(message));
        }
        // At random, and only where a pod really is: an Endpoints object may name any address.
        while !choices.is_empty() {
            let choice = choices.swap_remove(crate::random::below(choices.len() as u64) as usize);
            if self.is_pod(&choice).await {
                return Ok(Backend::Port { at: choice.at, https: id.https });
            }
        }
        Err(Status::unavailable(format!("no endpoints available for service {text:?}")))
    }

    async fn is_pod(&self, choice: &Choice) -> bool {
        let Some(kind) = portolan_api::find("", "v1", "pods") else { return false };
        let key = object_key(kind, Some(&choice.namespace), &choice.pod);
        match self.stored(kind, &key, &choice.pod).await {
            Ok((pod, _)) => pod_ips(&pod).any(|ip| ip == choice.at.ip()),
            Err(_) => false,
        }
    }
}

fn number(port: &str) -> Result<u16, Status> {
    let number = port.parse::<u16>().ok().filter(|port| *port > 0);
    number.ok_or_else(|| Status::unavailable(format!("error trying to reach service: unknown port {port:?}")))
}

fn pod_ips(pod: &Value) -> impl Iterator<Item = IpAddr> {
    let one = Some(walk::text(pod, "status.podIP")).into_iter();
    let all = walk::list(pod, "status.podIPs").iter().map(|ip| walk::text(ip, "ip"));
    one.chain(all).filter_map(|text| text.parse().ok())
}

/// A ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Choice {
    at: SocketAddr,
    namespace: String,
    pod: String,
}

/// The ready endpoints that have a port of this name.
fn choices(endpoints: &Value, port: &str) -> Vec<Choice> {
    let mut all = Vec::new();
    for subset in walk::list(endpoints, "subsets") {
        let ports = walk::list(subset, "ports").iter().filter(|own| walk::text(own, "name") == port);
        let numbers: Vec<u16> =
            ports.filter_map(|own| walk::int(own, "port")).filter_map(|port| port.try_into().ok()).collect();
        for address in walk::list(subset, "addresses") {
            let (Ok(ip), Some(port)) = (walk::text(address, "ip").parse::<IpAddr>(), numbers.first()) else {
                continue;
            };
            if walk::text(address, "targetRef.kind") != "Pod" {
                continue;
            }
            let target = |field| walk::text(address, field).to_owned();
            let namespace = match walk::text(address, "targetRef.namespace") {
                "" => meta::namespace(endpoints).to_owned(),
                own => own.to_owned(),
            };
            all.push(Choice { at: SocketAddr::new(ip, *port), namespace, pod: target("targetRef.name") });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_may_carry_scheme_and_port() {
        let id = |https, name, port| Some(Id { https, name, port });
        assert_eq!(Id::parse("web"), id(false, "web", ""));
        assert_eq!(Id::parse("web:80"), id(false, "web", "80"));
        assert_eq!(Id::parse("https:web:admin"), id(true, "web", "admin"));
        assert_eq!(Id::parse("http:web:"), id(false, "web", ""));
        for wrong in ["", ":80", "ftp:web:21", "a:b:c:d"] {
            assert_eq!(Id::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_proxied_path_is_as_the_client_spelt_it() {
        let split = |path| split_path(path, 7);
        let own = "/api/v1/namespaces/default/pods/web:80/proxy";
        assert_eq!(split(own), (own, ""));
        assert_eq!(split(&format!("{own}/a%2Fb//c/")), (own, "/a%2Fb//c/"));
        assert_eq!(split_path("/api/v1/nodes/n1/proxy/healthz", 5), ("/api/v1/nodes/n1/proxy", "/healthz"));
    }

    #[test]
    fn a_redirect_stays_behind_the_proxy_unless_it_leads_elsewhere() {
        let rewrite = |location| rewrite(location, "/prefix", "10.0.0.1:8080", "api:6443");
        assert_eq!(rewrite("/login/"), "/prefix/login/");
        assert_eq!(rewrite("http://10.0.0.1:8080/login?x=1"), "/prefix/login?x=1");
        assert_eq!(rewrite("https://api:6443/login"), "/prefix/login");
        assert_eq!(rewrite("/prefix/login"), "/prefix/login");
        assert_eq!(rewrite("https://example.org/login"), "https://example.org/login");
        assert_eq!(rewrite("//example.org/login"), "//example.org/login");
        assert_eq!(rewrite("login"), "login");
    }

    #[test]
    fn only_ready_pods_with_the_port_are_chosen() {
        let pod = |ip, name| json!({"ip": ip, "targetRef": {"kind": "Pod", "namespace": "ns", "name": name}});
        let endpoints = json!({"metadata": {"namespace": "ns"}, "subsets": [
            {"addresses": [pod("10.0.0.1", "a"), {"ip": "192.0.2.1"}], "notReadyAddresses": [pod("10.0.0.2", "b")],
             "ports": [{"name": "web", "port": 8080}, {"name": "admin", "port": 9090}]},
            {"addresses": [pod("10.0.0.3", "c")], "ports": [{"name": "admin", "port": 9091}]},
        ]});
        let at = |port| -> Vec<String> {
            choices(&endpoints, port).iter().map(|c| format!("{} {}", c.pod, c.at)).collect()
        };
        assert_eq!(at("web"), ["a 10.0.0.1:8080"]);
        assert_eq!(at("admin"), ["a 10.0.0.1:9090", "c 10.0.0.3:9091"]);
        assert!(at("").is_empty());
    }

    #[test]
    fn nobody_reaches_the_machine_itself_by_a_pods_status() {
        for ip in ["127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "fe80::1"] {
            assert!(!allowed(ip.parse().expect("an address")), "{ip}");
        }
        assert!(allowed("10.0.0.1".parse().expect("an address")));
    }
}
