//! gRPC as far as etcd needs it: one message of five bytes' frame after another in HTTP/2 bodies (gRPC over HTTP2, "Length-Prefixed-
//! Message"), and a status in the trailers.
//!
//! Written by hand on hyper, which is here anyway: a gRPC library and its code generator would cost more to compile than the rest of
//! this crate, and what it adds, balancing, interceptors, reflection, has no use here.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::{Error, Result};

/// How long connecting to one endpoint may take.
const CONNECT: Duration = Duration::from_secs(2);
/// How long one call may take before the connection is thought dead.
const CALL: Duration = Duration::from_secs(5);
/// How long a call is tried anew where that can't do harm.
const PATIENCE: Duration = Duration::from_secs(8);
/// The time between attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// A silent connection is asked this often whether it lives, and given so long to answer. etcd takes more than one question in
/// five seconds for abuse (`--grpc-keepalive-min-time`).
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(4));
/// Flow control of HTTP/2: a stream and a connection may have so much on the way.
const WINDOW: u32 = 4 << 20;

/// Files for TLS.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The authority that signed etcd's certificate, PEM.
    pub authority: Option<PathBuf>,
    /// Our certificate and its key, PEM, if etcd asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

struct Endpoint {
    host: String,
    port: u16,
    tls: bool,
}

/// The status of a call that failed.
#[derive(Debug)]
pub struct Failure {
    pub code: u32,
    pub message: String,
}

/// gRPC's `UNAVAILABLE`: not now, not here.
const UNAVAILABLE: u32 = 14;

/// What goes up: one message, or as many as a channel brings.
pub enum Upload {
    Once(Option<Bytes>),
    Stream(mpsc::Receiver<Bytes>),
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Upload::Once(message) => Poll::Ready(message.take().map(|message| Ok(Frame::data(message)))),
            Upload::Stream(messages) => {
                messages.poll_recv(cx).map(|message| message.map(|message| Ok(Frame::data(message))))
            }
        }
    }
}

type Sender = SendRequest<Upload>;

/// Ways to an etcd: its endpoints, and the connection in use.
pub struct Channel {
    endpoints: Vec<Endpoint>,
    tls: Option<tokio_rustls::TlsConnector>,
    current: Mutex<Option<Sender>>,
    next: AtomicUsize,
}

fn frame(message: &Bytes) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 5);
    out.put_u8(0); // not compressed
    out.put_u32(message.len() as u32);
    out.put_slice(message);
    out.freeze()
}

fn invalid(text: impl Into<String>) -> Error {
    Error::Invalid(text.into())
}

fn endpoint(url: &str) -> Result<Endpoint> {
    let uri: http::Uri =
        url.parse().map_err(|_| invalid(format!("{url:?} is no URL: write http://HOST:PORT")))?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(invalid(format!("{url:?}: write http://HOST:PORT or https://HOST:PORT"))),
    };
    let host = uri.host().ok_or_else(|| invalid(format!("{url:?} names no host")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Endpoint { host, port: uri.port_u16().unwrap_or(2379), tls })
}

fn connector(tls: &Tls) -> Result<tokio_rustls::TlsConnector> {
    let Some(authority) = &tls.authority else {
        return Err(invalid("https needs the authority that signed etcd's certificate"));
    };
    let read =
        |path: &PathBuf, error: &dyn std::fmt::Display| invalid(format!("{}: {error}", path.display()));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority).map_err(|e| read(authority, &e))? {
        let certificate = certificate.map_err(|e| read(authority, &e))?;
        roots.add(certificate).map_err(|e| read(authority, &e))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain: std::result::Result<Vec<_>, _> =
                CertificateDer::pem_file_iter(certificate).map_err(|e| read(certificate, &e))?.collect();
            let chain = chain.map_err(|e| read(certificate, &e))?;
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| read(key, &e))?;
            builder.with_client_auth_cert(chain, key_der).map_err(|e| read(key, &e))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config).into())
}

impl Channel {
    pub fn new(urls: &[String], tls: &Tls) -> Result<Channel> {
        let endpoints = urls.iter().map(|url| endpoint(url)).collect::<Result<Vec<_>>>()?;
        if endpoints.is_empty() {
            return Err(invalid("no endpoint of etcd is named"));
        }
        let tls = if endpoints.iter().any(|endpoint| endpoint.tls) { Some(connector(tls)?) } else { None };
        Ok(Channel { endpoints, tls, current: Mutex::default(), next: AtomicUsize::new(0) })
    }

    /// A new connection, to the next of the endpoints.
    pub async fn connect(&self) -> Result<Sender> {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.endpoints.len();
        let endpoint = &self.endpoints[at];
        let name = format!("etcd at {}:{}", endpoint.host, endpoint.port);
        let connecting = self.connect_to(endpoint);
        match timeout(CONNECT, connecting).await {
            Ok(Ok(sender)) => Ok(sender),
            Ok(Err(error)) => Err(Error::Engine(format!("{name}: {error}"))),
            Err(_) => Err(Error::Engine(format!("{name} doesn't answer"))),
        }
    }

    async fn connect_to(&self, endpoint: &Endpoint) -> Outcome<Sender> {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            Some(connector) if endpoint.tls => {
                let name = ServerName::try_from(endpoint.host.clone())?;
                handshake(TokioIo::new(connector.connect(name, stream).await?)).await
            }
            _ => handshake(TokioIo::new(stream)).await,
        }
    }

    async fn sender(&self) -> Result<Sender> {
        let held = self.current.lock().clone().filter(|sender| !sender.is_closed());
        if let Some(sender) = held {
            return Ok(sender);
        }
        let sender = self.connect().await?;
        *self.current.lock() = Some(sender.clone());
        Ok(sender)
    }

    fn give_up(&self) {
        *self.current.lock() = None;
    }

    /// One message there, one back. What only reads may be asked again elsewhere when the connection is lost; of a write nobody
    /// knows then whether it happened, and the error says so.
    pub async fn call(
        &self,
        method: &'static str,
        message: &Bytes,
        only_reads: bool,
    ) -> Result<std::result::Result<Bytes, Failure>> {
        let until = Instant::now() + PATIENCE;
        loop {
            let (error, sent) = match self.sender().await {
                Err(error) => (error, false),
                Ok(mut sender) => {
                    let request = request(method, Upload::Once(Some(frame(message))));
                    match timeout(CALL, unary(&mut sender, request)).await {
                        Ok(Ok(Err(failure))) if failure.code == UNAVAILABLE && only_reads => {
                            (Error::Engine(failure.message), true)
                        }
                        Ok(Ok(answer)) => return Ok(answer),
                        Ok(Err((error, sent))) => (error, sent),
                        Err(_) => (Error::Engine("etcd doesn't answer".into()), true),
                    }
                }
            };
            self.give_up();
            if sent && !only_reads {
                let Error::Engine(why) = error else { return Err(error) };
                return Err(Error::Engine(format!("{why}; whether it was written is not known")));
            }
            if Instant::now() + PAUSE > until {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A stream of messages both ways, on the connection in use.
    pub async fn stream(&self, method: &'static str, first: &Bytes) -> Result<Stream> {
        let until = Instant::now() + PATIENCE;
        loop {
            let opened = match self.sender().await {
                Ok(sender) => open(sender, method, first).await,
                Err(error) => Err(error),
            };
            match opened {
                Err(error) if Instant::now() + PAUSE > until => return Err(error),
                Err(_) => self.give_up(),
                opened => return opened,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The same on a connection of its own: nobody who reads slowly beside it can hold it up.
    pub async fn lone_stream(&self, method: &'static str, first: &Bytes) -> Result<Stream> {
        open(self.connect().await?, method, first).await
    }
}

/// Errors of any kind, only to be shown.
type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

async fn handshake<T>(io: T) -> Outcome<Sender>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(io)
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to etcd");
        }
    });
    Ok(sender)
}

fn request(method: &'static str, upload: Upload) -> Request<Upload> {
    Request::post(format!("http://etcd/etcdserverpb.{method}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        // A member that has lost its leader is to say so, instead of being silent.
        .header("hasleader", "true")
        .body(upload)
        .expect("a request of constants")
}

/// A lost connection, and whether the request may have gone out on it.
type Lost = (Error, bool);

async fn unary(
    sender: &mut Sender,
    request: Request<Upload>,
) -> std::result::Result<std::result::Result<Bytes, Failure>, Lost> {
    let lost = |error: hyper::Error| (Error::Engine(format!("the connection to etcd: {error}")), true);
    sender.ready().await.map_err(|error| (lost(error).0, false))?;
    let response = sender.send_request(request).await.map_err(|error| {
        // hyper calls canceled what it has not begun to send.
        let sent = !error.is_canceled();
        (lost(error).0, sent)
    })?;
    let (head, body) = response.into_parts();
    if let Some(failure) = failure(&head.headers) {
        return Ok(Err(failure));
    }
    let whole = body.collect().await.map_err(lost)?;
    let failed = whole.trailers().map(failure);
    match failed {
        // A body without a status was cut.
        None => return Err((Error::Engine("etcd broke off its answer".into()), true)),
        Some(Some(failure)) => return Ok(Err(failure)),
        Some(None) => {}
    }
    let mut bytes = whole.to_bytes();
    if bytes.len() < 5 || bytes[0] != 0 {
        return Err((Error::Engine("etcd's answer is no gRPC message".into()), true));
    }
    bytes.advance(5);
    Ok(Ok(bytes))
}

/// A status that isn't OK.
fn failure(headers: &HeaderMap) -> Option<Failure> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status")?.parse().unwrap_or(2);
    let message = text("grpc-message").unwrap_or_default().replace("%25", "%");
    (code != 0).then_some(Failure { code, message })
}

async fn open(mut sender: Sender, method: &'static str, first: &Bytes) -> Result<Stream> {
    let lost = |error: hyper::Error| Error::Engine(format!("the connection to etcd: {error}"));
    let (up, messages) = mpsc::channel(8);
    // The channel is empty and open.
    let _ = up.try_send(frame(first));
    let opening = async {
        sender.ready().await.map_err(lost)?;
        sender.send_request(request(method, Upload::Stream(messages))).await.map_err(lost)
    };
    let response =
        timeout(CALL, opening).await.map_err(|_| Error::Engine("etcd doesn't answer".into()))??;
    let (head, down) = response.into_parts();
    if let Some(failure) = failure(&head.headers) {
        return Err(Error::Engine(failure.message));
    }
    Ok(Stream { up, down, pending: BytesMut::new() })
}

/// Messages both ways. Dropped, it is over.
pub struct Stream {
    up: mpsc::Sender<Bytes>,
    down: Incoming,
    pending: BytesMut,
}

impl Stream {
    /// Sends a message, unless so many wait that another would say nothing new.
    pub fn send(&self, message: &Bytes) {
        let _ = self.up.try_send(frame(message));
    }

    /// The next message. An error is the end.
    pub async fn next(&mut self) -> Result<Bytes> {
        loop {
            if self.pending.len() >= 5 {
                let length =
                    u32::from_be_bytes([self.pending[1], self.pending[2], self.pending[3], self.pending[4]]);
                let length = length as usize;
                if self.pending.len() >= 5 + length {
                    self.pending.advance(5);
                    return Ok(self.pending.split_to(length).freeze());
                }
            }
            match self.down.frame().await {
                None => return Err(Error::Engine("etcd ended the stream".into())),
                Some(Err(error)) => return Err(Error::Engine(format!("the connection to etcd: {error}"))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.pending.extend_from_slice(&data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        let why = failure(&trailers).map_or_else(String::new, |failure| failure.message);
                        return Err(Error::Engine(format!("etcd ended the stream: {why}")));
                    }
                },
            }
        }
    }
}
