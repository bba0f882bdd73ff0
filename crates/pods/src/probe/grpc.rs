//! The gRPC health protocol (`grpc.health.v1.Health/Check`): one call, with a message of one field each way.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinSet;

use super::connect;

/// `HealthCheckRequest { service }`, in a frame: not compressed, so long, the message.
fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        varint(&mut message, service.len());
        message.extend(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    frame
}

fn varint(to: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// `HealthCheckResponse.status` in a frame. A field that isn't there is zero.
fn status(frame: &[u8]) -> Option<u8> {
    match frame.get(5..)? {
        [] => Some(0),
        [0x08, number, ..] => Some(*number),
        _ => None,
    }
}

/// Whether the service says that it serves.
pub(super) async fn check(target: SocketAddr, service: &str) -> Result<(), String> {
    let failed = |error: hyper::Error| format!("{target}: {error}");
    let stream = connect(target).await?;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(failed)?;
    // It ends with this call, whoever drops that.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let request = Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "portolan-probe")
        .body(Full::new(Bytes::from(request(service))))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let head = response.headers().clone();
    let body = response.into_body().collect().await.map_err(failed)?;
    // A refusal that has no message says so in its head.
    let trailers = body.trailers().cloned().unwrap_or_default();
    let said = |name: &str| {
        let value = trailers.get(name).or_else(|| head.get(name));
        value.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    match said("grpc-status").as_str() {
        "0" => {}
        "12" => {
            return Err(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                    .to_owned(),
            );
        }
        code => return Err(format!("error: health rpc failed: status {code}: {}", said("grpc-message"))),
    }
    match status(&body.to_bytes()) {
        Some(1) => Ok(()),
        Some(0) => Err("service unhealthy (responded with \"UNKNOWN\")".to_owned()),
        Some(2) => Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
        other => Err(format!("service unhealthy (responded with {other:?})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_health_protocol() {
        assert_eq!(request(""), [0, 0, 0, 0, 0]);
        assert_eq!(request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = request(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 2]);
        assert_eq!(status(&[0, 0, 0, 0, 2, 0x08, 1]), Some(1));
        assert_eq!(status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(status(&[0, 0]), None);
    }
}
