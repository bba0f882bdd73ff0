//! Pods' logs: asked of the node that runs the pod, and passed through.

use std::net::IpAddr;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http_body_util::BodyExt as _;

use crate::body::StreamError;

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
        let connect = async {
            let stream = tokio::net::TcpStream::connect(at).await?;
            let config = crate::pin::client(Some(request.certificate))?;
            let name = rustls_pki_types::ServerName::from(request.address);
            let tls = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
            let io = hyper_util::rt::TokioIo::new(tls);
            anyhow::Ok(hyper::client::conn::http1::handshake::<_, http_body_util::Empty<Bytes>>(io).await?)
        };
        let (mut sender, connection) = tokio::time::timeout(std::time::Duration::from_secs(10), connect)
            .await
            .map_err(|_| unreachable(&"no connection within 10 s"))?
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
            let text = http_body_util::Limited::new(body, 64 * 1024).collect().await.map(|all| all.to_bytes());
            let text = text.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).unwrap_or_default();
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
