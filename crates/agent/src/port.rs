//! An HTTP port of the node: opened, tried again while it is taken, answered.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What is answered.
pub type Answer = Response<Full<Bytes>>;

/// A client that hasn't asked by then is dropped.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many clients wait for their turn.
const QUEUE: i32 = 1024;
/// A client that has not taken its answer by then is dropped.
const AT_MOST: Duration = Duration::from_secs(30);
/// How many clients are answered at once: who opens more waits, so that the node's descriptors stay for its pods.
const CLIENTS: usize = 256;

/// Listens there. The unspecified address of either family means all addresses of both, as Go's `net.Listen` has it, or of
/// IPv4 alone where the kernel has no IPv6.
pub async fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    if !at.ip().is_unspecified() {
        return TcpListener::bind(at).await;
    }
    let port = at.port();
    match bind_both(port) {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => TcpListener::bind(("0.0.0.0", port)).await,
        bound => bound,
    }
}

/// Listens on all addresses of both families, whatever `net.ipv6.bindv6only` says.
fn bind_both(port: u16) -> io::Result<TcpListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None)?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    rustix::net::listen(&socket, QUEUE)?;
    TcpListener::from_std(socket.into())
}

/// Listens there as soon as it can be done, and tells of each time that it can't.
pub async fn open(at: SocketAddr, pause: Duration, mut failed: impl FnMut(io::Error)) -> TcpListener {
    loop {
        match bind(at).await {
            Ok(listener) => return listener,
            Err(error) => failed(error),
        }
        tokio::time::sleep(pause).await;
    }
}

/// Answers whoever connects, for as long as it is polled.
pub async fn serve<F>(listener: TcpListener, answer: F)
where
    F: Fn(&Request<Incoming>) -> Answer + Clone + Send + Sync + 'static,
{
    let mut connections = JoinSet::new(); // a set ends its tasks when it is dropped
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CLIENTS => match accepted {
                Ok((stream, _)) => {
                    let answer = answer.clone();
                    connections.spawn(async move {
                        let answers = hyper::service::service_fn(move |request| {
                            let answer = answer(&request);
                            async move { Ok::<_, Infallible>(answer) }
                        });
                        let connection = hyper::server::conn::http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(PATIENCE)
                            // A probe asks once; who asks on and on without reading must not keep others out.
                            .keep_alive(false)
                            .serve_connection(TokioIo::new(stream), answers);
                        let _ = tokio::time::timeout(AT_MOST, connection).await; // the client hung up: nothing to do
                    });
                }
                // Out of descriptors: those that are open must end first.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// An answer of this kind of content.
pub fn answer(status: StatusCode, content: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// JSON, as an answer's content.
pub const JSON: &str = "application/json";
/// Text, as an answer's content.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// The answer where nothing is.
pub fn not_found() -> Answer {
    answer(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What a port answers to `GET path`, once it is open: the head, and the body.
    pub(crate) async fn get(at: SocketAddr, path: &str) -> (String, String) {
        let mut stream = loop {
            match tokio::net::TcpStream::connect(at).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        (head.to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_opened_once_it_is_free() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = taken.local_addr().unwrap();
        let mut taken = Some(taken);
        let mut failures = 0;
        let opened = open(at, Duration::from_millis(1), |error| {
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            failures += 1;
            if failures == 3 {
                taken = None;
            }
        });
        let opened = tokio::time::timeout(Duration::from_secs(20), opened).await.expect("opened");
        assert_eq!(opened.local_addr().unwrap(), at);
        assert!(failures >= 3);
    }

    #[tokio::test]
    async fn the_unspecified_address_of_ipv4_is_all_addresses_of_both_families() {
        let listener = bind("0.0.0.0:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        if listener.local_addr().unwrap().is_ipv4() {
            return portolan_sys::trial::skipped("the unspecified address is both families", "no IPv6");
        }
        let serving = tokio::spawn(serve(listener, |_| answer(StatusCode::OK, TEXT, "ok")));
        for address in ["127.0.0.1", "::1"] {
            let (head, body) = get(SocketAddr::new(address.parse().unwrap(), port), "/").await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert_eq!(body, "ok");
        }
        serving.abort();
    }
}
