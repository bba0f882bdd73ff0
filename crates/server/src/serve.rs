//! The server over TLS: HTTP/1.1 and HTTP/2 by ALPN, drained when asked to stop.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Result;
use crate::http::Caller;
use crate::server::Server;

/// How long a connection may be silent before HTTP/2 pings it, and how long its answer may take: client-go pings as
/// often (http2 ReadIdleTimeout 30 s, PingTimeout 15 s).
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(15));
/// A TLS handshake that takes longer is given up, so that idle connections don't pile up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests that are under way may take to end after `shutdown`. Watches end at once.
const DRAIN: Duration = Duration::from_secs(10);

/// Accepts connections until `shutdown` completes, then lets the requests under way finish.
pub async fn serve(
    server: Arc<Server>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    let builder = Arc::new(builder);
    let graceful = GracefulShutdown::new();
    let drain = CancellationToken::new();
    let mut shutdown = std::pin::pin!(shutdown);

    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // What accept(2) reports concerns one connection (also a network that went away, or a firewall) or a
                    // shortage that passes when others close; none is a reason to stop serving.
                    tracing::warn!(%error, "accepting a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut shutdown => break,
        };
        // Events are small and single; Nagle's algorithm would hold them back.
        let _ = stream.set_nodelay(true);
        let (acceptor, builder, watcher) = (acceptor.clone(), builder.clone(), graceful.watcher());
        let (server, drain) = (server.clone(), drain.clone());
        tokio::spawn(async move {
            let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake"),
                Err(_) => return tracing::debug!("TLS handshake took too long"),
            };
            let peer = server.peer(stream.get_ref().1.peer_certificates().unwrap_or_default());
            let caller = Caller { peer, address: Some(address.ip()), drain };
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (server, caller) = (server.clone(), caller.clone());
                async move { Ok::<_, Infallible>(server.answer(caller, request).await) }
            });
            let connection =
                builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%error, "connection");
            }
        });
    }

    drop(listener);
    drain.cancel();
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way after {DRAIN:?}; leaving them");
    }
    Ok(())
}
