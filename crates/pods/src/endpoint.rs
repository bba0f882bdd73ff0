//! What a node serves over HTTPS, as a kubelet does, for the API server: logs, exec, attach and port-forward.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use ring::digest;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::protocol::{PodDir, read_json, write_atomically};
use crate::runtime::{Waiting, pods_on_disk};
use crate::worker::PodName;
use crate::{Config, log_files, logs, remote, upgrade};

/// The body of an answer.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// The endpoint's certificate. Nobody signs it: its fingerprint is in the Node object, which only the node can write.
pub(crate) struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
    /// SHA-256 of the certificate (DER), in hexadecimal.
    pub fingerprint: String,
}

impl Identity {
    /// The one kept in the node's directory, or a new one: a restart doesn't change the fingerprint.
    pub fn make(config: &Config) -> anyhow::Result<Identity> {
        let (certificate_path, key_path) =
            (config.data_dir.join("serving.crt.der"), config.data_dir.join("serving.key.der"));
        let (certificate, key) = match (std::fs::read(&certificate_path), std::fs::read(&key_path)) {
            (Ok(certificate), Ok(key)) => (certificate, key),
            _ => {
                let mut names: Vec<SanType> =
                    config.node_addresses.iter().map(|address| SanType::IpAddress(*address)).collect();
                if let Ok(name) = config.node_name.as_str().try_into() {
                    names.push(SanType::DnsName(name));
                }
                let mut parameters = CertificateParams::default();
                parameters.subject_alt_names = names;
                parameters.distinguished_name = DistinguishedName::new();
                parameters.distinguished_name.push(DnType::CommonName, config.node_name.as_str());
                let pair = KeyPair::generate()?;
                let certificate = parameters.self_signed(&pair)?.der().to_vec();
                let key = pair.serialize_der();
                write_atomically(&certificate_path, &certificate)?;
                write_atomically(&key_path, &key)?;
                set_private(&key_path)?;
                (certificate, key)
            }
        };
        let hash = digest::digest(&digest::SHA256, &certificate);
        let fingerprint = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Identity { certificate: certificate.into(), key, fingerprint })
    }
}

fn set_private(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

/// The endpoint, listening.
pub(crate) struct Endpoint {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Endpoint {
    pub async fn bind(config: &Config, identity: &Identity) -> anyhow::Result<Endpoint> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key.clone()));
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![identity.certificate.clone()], key)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let any: SocketAddr = (Ipv6Addr::UNSPECIFIED, config.log_port).into();
        let listener = match TcpListener::bind(any).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind(("0.0.0.0", config.log_port)).await.map_err(|error| {
                anyhow::anyhow!(
                    "listen on TCP port {} for logs, exec and port-forward: {error}; another port: log_port",
                    config.log_port
                )
            })?,
        };
        Ok(Endpoint { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) })
    }

    /// Answers until dropped.
    pub async fn serve(self, config: Config, waiting: Waiting) {
        let config = Arc::new((config, waiting));
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (acceptor, config) = (self.acceptor.clone(), config.clone());
            tokio::spawn(async move {
                let handshake = tokio::time::timeout(Duration::from_secs(10), acceptor.accept(stream));
                let Ok(Ok(stream)) = handshake.await else { return };
                let service = hyper::service::service_fn(move |request| {
                    let config = config.clone();
                    async move { Ok::<_, Infallible>(answer(&config.0, &config.1, request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let _ = connection.with_upgrades().await;
            });
        }
    }
}

/// An answer in plain text.
pub(crate) fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    let body =
        Full::new(Bytes::from(message.into() + "\n")).map_err(|never: Infallible| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// Percent-encoding and `+` of a query's value.
pub(crate) fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                let number =
                    std::str::from_utf8(&digits).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                bytes.push(number.unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Compares without telling by its time how much was right.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

async fn answer(config: &Config, waiting: &Waiting, request: Request<Incoming>) -> Response<Body> {
    let authorization =
        request.headers().get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let expected = format!("Bearer {}", config.log_token);
    if config.log_token.is_empty() || !same(authorization, expected.as_bytes()) {
        return text(StatusCode::UNAUTHORIZED, "Unauthorized");
    }
    let uri = request.uri().clone();
    let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let query = uri.query().unwrap_or_default();
    match path.as_slice() {
        ["healthz"] => text(StatusCode::OK, "ok"),
        ["containerLogs", namespace, pod, container] => match logs::Query::parse(query, Timestamp::now()) {
            Ok(query) => logs::container_logs(config, waiting, namespace, pod, container, &query),
            Err(error) => text(StatusCode::BAD_REQUEST, error),
        },
        ["logs", rest @ ..] => log_files::show(config, rest),
        // With the pod's uid, too, as a kubelet takes it.
        [what @ ("exec" | "attach"), namespace, pod, rest @ ..] if matches!(rest.len(), 1 | 2) => {
            let (uid, container) = (rest.first().filter(|_| rest.len() == 2), rest[rest.len() - 1]);
            let Some(dir) = find_pod_of(config, namespace, pod, uid.copied()) else {
                return text(StatusCode::NOT_FOUND, "pod does not exist");
            };
            let command = (*what == "exec").then(|| parameters(query, "command"));
            let asked = remote::Asked {
                dir,
                pod: format!("{pod}_{namespace}"),
                container: container.to_owned(),
                command,
                streams: remote::Streams::parse(query),
            };
            upgrade::serve_remote(request, asked)
        }
        ["portForward", namespace, pod, rest @ ..] if rest.len() <= 1 => {
            match find_pod_of(config, namespace, pod, rest.first().copied()) {
                Some(dir) => upgrade::serve_forward(request, dir, pod, query),
                None => text(StatusCode::NOT_FOUND, "pod does not exist"),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// All values of a parameter.
pub(crate) fn parameters(query: &str, name: &str) -> Vec<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(known, _)| *known == name).map(|(_, value)| unescape(value)).collect()
}

/// The directory of a pod by its name. Of several, the one that was made last: a pod may come back under its name while
/// the old one is still ending.
pub(crate) fn find_pod(config: &Config, namespace: &str, name: &str) -> Option<PodDir> {
    let pods = pods_on_disk(&config.data_dir).ok()?;
    let named = pods.into_values().filter(|dir| {
        let known = read_json::<PodName>(&dir.pod()).ok().flatten();
        known.is_some_and(|known| known.namespace == namespace && known.name == name)
    });
    named.max_by_key(|dir| std::fs::metadata(dir.pod()).and_then(|metadata| metadata.modified()).ok())
}

/// [`find_pod`]; with a uid, only the pod that has it.
fn find_pod_of(config: &Config, namespace: &str, name: &str, uid: Option<&str>) -> Option<PodDir> {
    let dir = find_pod(config, namespace, name)?;
    let own = || read_json::<PodName>(&dir.pod()).ok().flatten();
    let right = uid.is_none_or(|uid| own().is_some_and(|own| own.uid == uid));
    right.then_some(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_right_only_as_a_whole() {
        assert!(same(b"Bearer x", b"Bearer x"));
        assert!(!same(b"Bearer x", b"Bearer xy"));
        assert!(!same(b"Bearer x", b"Bearer y"));
    }
}
