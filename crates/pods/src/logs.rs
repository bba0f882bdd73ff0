//! The log endpoint: `GET /containerLogs/NAMESPACE/POD/CONTAINER` over HTTPS, for the API server.

use std::convert::Infallible;
use std::io::{self, Read};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use ring::digest;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::Config;
use crate::protocol::{PodDir, Record, RunState, read_json, write_atomically};
use crate::runtime::pods_on_disk;
use crate::worker::PodName;

/// How often a followed log is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);
const CHUNK: usize = 32 * 1024;

type Body = BoxBody<Bytes, io::Error>;

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
                    "listen on TCP port {} for logs: {error}; another port: log_port",
                    config.log_port
                )
            })?,
        };
        Ok(Endpoint { listener, acceptor: TlsAcceptor::from(Arc::new(tls)) })
    }

    /// Answers until dropped.
    pub async fn serve(self, config: Config) {
        let config = Arc::new(config);
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
                    async move { Ok::<_, Infallible>(answer(&config, &request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let _ = connection.await;
            });
        }
    }
}

fn text(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    let body =
        Full::new(Bytes::from(message.into() + "\n")).map_err(|never: Infallible| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

/// What of a log is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    limit: Option<usize>,
}

impl Query {
    /// From a URL's query. An error names the parameter.
    pub fn parse(query: &str, now: Timestamp) -> Result<Query, String> {
        let mut result = Query::default();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = unescape(value);
            let flag = || matches!(value.as_str(), "true" | "1" | "t" | "T" | "TRUE" | "True");
            let bad = || format!("{name}: {value:?} makes no sense here");
            match name {
                "follow" => result.follow = flag(),
                "previous" => result.previous = flag(),
                "timestamps" => result.timestamps = flag(),
                // A negative number is all lines.
                "tailLines" => result.tail = usize::try_from(value.parse::<i64>().map_err(|_| bad())?).ok(),
                "limitBytes" => result.limit = Some(value.parse().map_err(|_| bad())?),
                "sinceSeconds" => {
                    let seconds = value.parse::<i64>().map_err(|_| bad())?;
                    result.since = now.checked_sub(SignedDuration::from_secs(seconds)).ok();
                }
                "sinceTime" => result.since = Some(value.parse().map_err(|_| bad())?),
                _ => {}
            }
        }
        Ok(result)
    }
}

/// Percent-encoding and `+` of a query's value.
fn unescape(text: &str) -> String {
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

async fn answer(config: &Config, request: &Request<Incoming>) -> Response<Body> {
    let authorization =
        request.headers().get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let expected = format!("Bearer {}", config.log_token);
    if config.log_token.is_empty() || !same(authorization, expected.as_bytes()) {
        return text(StatusCode::UNAUTHORIZED, "Unauthorized");
    }
    let path: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
    match path.as_slice() {
        ["healthz"] => text(StatusCode::OK, "ok"),
        ["containerLogs", namespace, pod, container] => {
            let query = Query::parse(request.uri().query().unwrap_or_default(), Timestamp::now());
            match query {
                Ok(query) => container_logs(config, namespace, pod, container, &query),
                Err(error) => text(StatusCode::BAD_REQUEST, error),
            }
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// The directory of a pod by its name. Of several, the one that was made last: a pod may come back under its name while
/// the old one is still ending.
fn find_pod(config: &Config, namespace: &str, name: &str) -> Option<PodDir> {
    let pods = pods_on_disk(&config.data_dir).ok()?;
    let named = pods.into_values().filter(|dir| {
        let known = read_json::<PodName>(&dir.pod()).ok().flatten();
        known.is_some_and(|known| known.namespace == namespace && known.name == name)
    });
    named.max_by_key(|dir| std::fs::metadata(dir.pod()).and_then(|metadata| metadata.modified()).ok())
}

fn container_logs(
    config: &Config,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let plain = |name: &str| {
        !name.is_empty() && !name.contains(['/', '.']) || name.contains('.') && name != ".." && name != "."
    };
    if !plain(container) {
        return text(StatusCode::BAD_REQUEST, format!("container {container:?} has no valid name"));
    }
    let Some(dir) = find_pod(config, namespace, pod) else {
        return text(StatusCode::NOT_FOUND, format!("pod {namespace}/{pod} is not on this node"));
    };
    let Ok(Some(record)) = read_json::<Record>(&dir.record(container)) else {
        return text(
            StatusCode::BAD_REQUEST,
            format!("container {container:?} in pod {pod:?} is waiting to start: ContainerCreating"),
        );
    };
    let attempt = if query.previous {
        match record.attempt.checked_sub(1) {
            Some(attempt) => attempt,
            None => {
                let message = format!("previous terminated container {container:?} in pod {pod:?} not found");
                return text(StatusCode::BAD_REQUEST, message);
            }
        }
    } else {
        record.attempt
    };
    let reader = LogReader { dir, container: container.to_owned(), attempt, query: query.clone() };
    let (chunks, received) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || reader.send(&chunks));
    let frames = stream::unfold(received, |mut received: mpsc::Receiver<Bytes>| async move {
        let chunk = received.recv().await?;
        Some((Ok::<_, io::Error>(Frame::data(chunk)), received))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

/// Reads one run's log.
struct LogReader {
    dir: PodDir,
    container: String,
    attempt: u32,
    query: Query,
}

/// One line of a log file taken apart: when, whether the line is whole, what.
fn take_apart(line: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, _stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some((time, tag == b"F", text))
}

/// Whether a line was written at `since` or later.
fn recent(time: &[u8], since: Option<Timestamp>) -> bool {
    let Some(since) = since else { return true };
    std::str::from_utf8(time)
        .ok()
        .and_then(|time| time.parse::<Timestamp>().ok())
        .is_none_or(|time| time >= since)
}

/// The lines of a log file as the reader wants them: prefixes off, parts joined.
fn render(lines: &[u8], query: &Query) -> Vec<u8> {
    let mut result = Vec::new();
    let mut begins = true;
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Some((time, whole, text)) = take_apart(line) else { continue };
        if !recent(time, query.since) {
            continue;
        }
        if query.timestamps && begins {
            result.extend_from_slice(time);
            result.push(b' ');
        }
        result.extend_from_slice(text);
        begins = whole;
        if whole {
            result.push(b'\n');
        }
    }
    result
}

/// The last lines of a text of whole lines.
fn tail(text: &[u8], lines: usize) -> &[u8] {
    if lines == 0 {
        return &[];
    }
    let ends = text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    // The end of the line before the first one wanted; the text's last byte ends the last line.
    ends.skip(lines).map(|(index, _)| &text[index + 1..]).next().unwrap_or(text)
}

impl LogReader {
    /// Sends everything, and with `follow` what comes later until the container has ended.
    fn send(self, chunks: &mpsc::Sender<Bytes>) {
        let path = self.dir.log(&self.container, self.attempt);
        let mut left = self.query.limit.unwrap_or(usize::MAX);
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        let mut raw = std::fs::read(PathBuf::from(old)).unwrap_or_default();
        let Ok(mut file) = std::fs::File::open(&path) else { return };
        if file.read_to_end(&mut raw).is_err() {
            return;
        }
        // What follows the last line's end is being written just now.
        let complete = raw.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let mut pending = raw.split_off(complete);
        let rendered = render(&raw, &self.query);
        drop(raw);
        let shown = self.query.tail.map_or(&rendered[..], |lines| tail(&rendered, lines));
        if !give(chunks, shown, &mut left) || !self.query.follow {
            return;
        }
        loop {
            // Asked before reading: what was written before the end is read after it.
            let over = self.ended() || chunks.is_closed();
            let mut more = Vec::new();
            if file.read_to_end(&mut more).is_err() {
                return;
            }
            pending.append(&mut more);
            let complete = pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            let rest = pending.split_off(complete);
            let rendered = render(&pending, &self.query);
            pending = rest;
            if !give(chunks, &rendered, &mut left) || over {
                return;
            }
            // Put aside for having grown too large: what is left of it has been read, go on with the new one.
            if let Ok(new) = std::fs::File::open(&path)
                && !is_same_file(&file, &new)
            {
                file = new;
                continue;
            }
            std::thread::sleep(FOLLOW_INTERVAL);
        }
    }

    fn ended(&self) -> bool {
        match read_json::<Record>(&self.dir.record(&self.container)) {
            Ok(Some(record)) => record.attempt != self.attempt || matches!(record.state, RunState::Exited(_)),
            _ => true,
        }
    }
}

fn is_same_file(one: &std::fs::File, other: &std::fs::File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => one.ino() == other.ino() && one.dev() == other.dev(),
        _ => true,
    }
}

/// Sends in pieces, up to what the reader wants. `false` when there is nobody to send to, or it has enough.
fn give(chunks: &mpsc::Sender<Bytes>, text: &[u8], left: &mut usize) -> bool {
    for piece in text[..text.len().min(*left)].chunks(CHUNK) {
        *left -= piece.len();
        if chunks.blocking_send(Bytes::copy_from_slice(piece)).is_err() {
            return false;
        }
    }
    *left > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"2026-01-01T00:00:01.000000000Z stdout F one\n\
        2026-01-01T00:00:02.000000000Z stderr P tw\n\
        2026-01-01T00:00:03.000000000Z stderr F o\n\
        2026-01-01T00:00:04.000000000Z stdout F \n";

    fn query(text: &str) -> Query {
        Query::parse(text, "2026-01-01T00:00:05Z".parse().expect("a time")).expect("a query")
    }

    fn shown(text: &str) -> String {
        let query = query(text);
        let rendered = render(LOG, &query);
        let shown = query.tail.map_or(&rendered[..], |lines| tail(&rendered, lines));
        String::from_utf8_lossy(shown).into_owned()
    }

    #[test]
    fn a_reader_sees_what_the_container_wrote() {
        for (text, expected) in [
            ("", "one\ntwo\n\n"),
            ("tailLines=2", "two\n\n"),
            ("tailLines=0", ""),
            ("tailLines=9", "one\ntwo\n\n"),
            ("tailLines=-1", "one\ntwo\n\n"),
            ("sinceSeconds=1", "\n"),
            ("sinceTime=2026-01-01T00%3A00%3A04Z", "\n"),
            (
                "timestamps=true&tailLines=2",
                "2026-01-01T00:00:02.000000000Z two\n2026-01-01T00:00:04.000000000Z \n",
            ),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn a_query_that_makes_no_sense_is_named() {
        let now = Timestamp::now();
        assert!(Query::parse("tailLines=x", now).is_err_and(|error| error.contains("tailLines")));
        assert!(Query::parse("sinceTime=yesterday", now).is_err_and(|error| error.contains("sinceTime")));
        assert!(Query::parse("pretty=true&follow=true", now).is_ok_and(|query| query.follow));
    }

    #[test]
    fn a_token_is_right_only_as_a_whole() {
        assert!(same(b"Bearer x", b"Bearer x"));
        assert!(!same(b"Bearer x", b"Bearer xy"));
        assert!(!same(b"Bearer x", b"Bearer y"));
    }
}
