//! From a request to a connection that speaks WebSocket or SPDY.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use portolan_stream::websocket::{self, Message, Side};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::endpoint::{Body, parameters, text};
use crate::forward::{self, Target};
use crate::protocol::{PodDir, read_json};
use crate::remote::{self, Asked};
use crate::worker::PodName;
use crate::{channels, sandbox, spdy, tunnel};

/// The SPDY protocols that a client can speak.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const WEBSOCKET_PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");
const WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// Port-forward in SPDY's streams, and those in a WebSocket (KEP-4006).
const FORWARD: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Port-forward in a WebSocket's own channels.
const FORWARD_CHANNELS: &str = "v4.channel.k8s.io";

/// What a client wants to speak.
enum Wish {
    WebSocket { key: String },
    Spdy,
}

/// The words of a header that holds a list, in one line or in several.
fn words(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(|word| word.trim().to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

fn wish(headers: &HeaderMap) -> Option<Wish> {
    let has =
        |name: &HeaderName, word: &str| words(headers, name).iter().any(|one| one.eq_ignore_ascii_case(word));
    if !has(&CONNECTION, "upgrade") {
        return None;
    }
    if has(&UPGRADE, "websocket") {
        let key = headers.get(&WEBSOCKET_KEY)?.to_str().ok()?.to_owned();
        return Some(Wish::WebSocket { key });
    }
    has(&UPGRADE, "SPDY/3.1").then_some(Wish::Spdy)
}

/// The first of the client's protocols that we speak.
fn common<'a>(client: &[String], ours: &[&'a str]) -> Option<&'a str> {
    client.iter().find_map(|wanted| ours.iter().find(|own| *own == wanted)).copied()
}

fn switch(upgrade: &'static str, more: &[(HeaderName, &str)]) -> Response<Body> {
    let mut response = Response::new(Empty::<Bytes>::new().map_err(|never| match never {}).boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
    for (name, value) in more {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

fn switch_to_websocket(key: &str, protocol: &str) -> Response<Body> {
    let accept = websocket::accept(key);
    let mut more = vec![(WEBSOCKET_ACCEPT, accept.as_str())];
    if !protocol.is_empty() {
        more.push((WEBSOCKET_PROTOCOL, protocol));
    }
    switch("websocket", &more)
}

/// A SPDY client must name a protocol, and get one that it has named (a kubelet's texts).
fn spdy_protocol<'a>(headers: &HeaderMap, ours: &[&'a str]) -> Result<&'a str, Response<Body>> {
    let client = words(headers, &STREAM_PROTOCOL);
    if client.is_empty() {
        let message = format!(
            "unable to upgrade: header X-Stream-Protocol-Version does not exist in request with {} headers",
            headers.keys_len()
        );
        return Err(text(StatusCode::BAD_REQUEST, message));
    }
    common(&client, ours).ok_or_else(|| {
        let message = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            client.join(" "),
            ours.join(" ")
        );
        let mut response = text(StatusCode::FORBIDDEN, message);
        for protocol in ours {
            if let Ok(value) = HeaderValue::from_str(protocol) {
                response.headers_mut().append("x-accepted-stream-protocol-versions", value);
            }
        }
        response
    })
}

async fn connection(upgrade: OnUpgrade) -> Option<TokioIo<Upgraded>> {
    upgrade.await.inspect_err(|error| tracing::debug!(%error, "upgrading")).ok().map(TokioIo::new)
}

/// Exec and attach.
pub(crate) fn serve_remote(mut request: Request<Incoming>, asked: Asked) -> Response<Body> {
    let streams = match asked.streams {
        Ok(streams) => streams,
        Err(problem) => return text(StatusCode::BAD_REQUEST, problem),
    };
    if let Some(problem) = asked.impossible() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, problem);
    }
    let upgrade = hyper::upgrade::on(&mut request);
    match wish(request.headers()) {
        Some(Wish::WebSocket { key }) => {
            let mut client = words(request.headers(), &WEBSOCKET_PROTOCOL);
            if client.is_empty() {
                client.push(String::new());
            }
            let found = client
                .iter()
                .find_map(|wanted| channels::PROTOCOLS.into_iter().find(|known| known.name == *wanted));
            let Some(protocol) = found else {
                return text(
                    StatusCode::FORBIDDEN,
                    format!("requested protocol(s) are not supported: {client:?}"),
                );
            };
            tokio::spawn(async move {
                if let Some(connection) = connection(upgrade).await {
                    let channels = channels::over_websocket(connection, protocol, streams);
                    remote::run(asked, streams, channels).await;
                }
            });
            switch_to_websocket(&key, protocol.name)
        }
        Some(Wish::Spdy) => {
            let protocol = match spdy_protocol(request.headers(), &channels::SPDY_PROTOCOLS) {
                Ok(protocol) => protocol,
                Err(response) => return response,
            };
            tokio::spawn(async move {
                let Some(connection) = connection(upgrade).await else { return };
                let connection = spdy::Connection::open(connection);
                if let Some(channels) = channels::over_spdy(connection, protocol, streams).await {
                    remote::run(asked, streams, channels).await;
                }
            });
            switch("SPDY/3.1", &[(STREAM_PROTOCOL, protocol)])
        }
        None => text(StatusCode::BAD_REQUEST, "Upgrade request required"),
    }
}

/// Port-forward.
pub(crate) fn serve_forward(
    mut request: Request<Incoming>,
    dir: PodDir,
    pod: &str,
    query: &str,
) -> Response<Body> {
    if sandbox::find(&dir).is_none() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("pod not found ({pod:?})"));
    }
    let uid = read_json::<PodName>(&dir.pod()).ok().flatten().map(|name| name.uid).unwrap_or_default();
    let target = Target { dir, pod: pod.to_owned(), uid };
    let upgrade = hyper::upgrade::on(&mut request);
    match wish(request.headers()) {
        Some(Wish::WebSocket { key }) => {
            let client = words(request.headers(), &WEBSOCKET_PROTOCOL);
            match common(&client, &[TUNNEL, FORWARD_CHANNELS]) {
                Some(TUNNEL) => {
                    tokio::spawn(async move {
                        if let Some(connection) = connection(upgrade).await {
                            let inner = tunnel::open(connection);
                            forward::over_spdy(spdy::Connection::open(inner), target).await;
                        }
                    });
                    switch_to_websocket(&key, TUNNEL)
                }
                Some(other) => {
                    let ports = match ports(query) {
                        Ok(ports) => ports,
                        Err(problem) => return text(StatusCode::BAD_REQUEST, problem),
                    };
                    tokio::spawn(async move {
                        if let Some(connection) = connection(upgrade).await {
                            forward_channels(connection, target, ports).await;
                        }
                    });
                    switch_to_websocket(&key, other)
                }
                None => text(
                    StatusCode::FORBIDDEN,
                    format!("requested protocol(s) are not supported: {client:?}"),
                ),
            }
        }
        Some(Wish::Spdy) => {
            let protocol = match spdy_protocol(request.headers(), &[FORWARD]) {
                Ok(protocol) => protocol,
                Err(response) => return response,
            };
            tokio::spawn(async move {
                if let Some(connection) = connection(upgrade).await {
                    forward::over_spdy(spdy::Connection::open(connection), target).await;
                }
            });
            switch("SPDY/3.1", &[(STREAM_PROTOCOL, protocol)])
        }
        None => text(StatusCode::BAD_REQUEST, "Upgrade request required"),
    }
}

/// The ports named in a query, which has them one by one or in a list.
fn ports(query: &str) -> Result<Vec<u16>, String> {
    let all = parameters(query, "port");
    let words = all.iter().flat_map(|value| value.split(',')).filter(|word| !word.is_empty());
    let ports = words.map(|word| match word.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        Ok(_) => Err(format!("port {word:?} must be > 0")),
        Err(_) => Err(format!("unable to parse {word:?} as a port")),
    });
    let ports: Vec<u16> = ports.collect::<Result<_, _>>()?;
    match ports.len() {
        0 => Err("query parameter \"port\" is required".to_owned()),
        // A channel's number is a byte, and each port has two.
        1..=127 => Ok(ports),
        _ => Err("too many ports".to_owned()),
    }
}

/// Port-forward in a WebSocket's channels.
async fn forward_channels(connection: TokioIo<Upgraded>, target: Target, ports: Vec<u16>) {
    let (mut read, mut write) = tokio::io::split(connection);
    let (heard, input) = mpsc::channel::<(u8, Bytes)>(64);
    let (output, mut said) = mpsc::channel::<(u8, Bytes)>(64);
    let (answer, mut answers) = mpsc::channel::<Message>(8);
    tokio::spawn(async move {
        let mut decoder = websocket::Decoder::new(Side::Server);
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match decoder.next_message() {
                Ok(Some(Message::Binary(payload))) if !payload.is_empty() => {
                    if heard.send((payload[0], payload.slice(1..))).await.is_err() {
                        return;
                    }
                }
                Ok(Some(Message::Ping(payload))) => drop(answer.send(Message::Pong(payload)).await),
                Ok(Some(close @ Message::Close(_))) => return drop(answer.send(close).await),
                Ok(Some(_)) => {}
                Err(error) => {
                    return drop(answer.send(Message::Close(Some((1002, error.to_string())))).await);
                }
                Ok(None) => match read.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(length) => decoder.push(&buffer[..length]),
                },
            }
        }
    });
    tokio::spawn(forward::over_channels(target, ports, input, output));
    let mut bytes = BytesMut::new();
    let mut over = false;
    while !over {
        let message = tokio::select! {
            Some(answer) = answers.recv() => answer,
            piece = said.recv() => match piece {
                Some((channel, piece)) => {
                    let mut payload = BytesMut::with_capacity(1 + piece.len());
                    payload.put_u8(channel);
                    payload.extend_from_slice(&piece);
                    Message::Binary(payload.freeze())
                }
                None => Message::Close(Some((1000, String::new()))),
            },
        };
        over = matches!(message, Message::Close(_));
        websocket::encode(&message, None, &mut bytes);
        if write.write_all_buf(&mut bytes).await.is_err() || write.flush().await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_client_says_what_it_speaks_in_any_case() {
        let spdy = headers(&[("connection", "keep-alive, upgrade"), ("upgrade", "spdy/3.1")]);
        assert!(matches!(wish(&spdy), Some(Wish::Spdy)));
        let socket = [("connection", "Upgrade"), ("upgrade", "WebSocket"), ("sec-websocket-key", "k")];
        assert!(matches!(wish(&headers(&socket)), Some(Wish::WebSocket { .. })));
        assert!(wish(&headers(&socket[..2])).is_none(), "a WebSocket needs a key");
        assert!(
            wish(&headers(&[("upgrade", "SPDY/3.1")])).is_none(),
            "an upgrade is a matter of this connection"
        );
    }

    #[test]
    fn the_client_s_first_choice_that_we_speak_is_taken() {
        let asked = headers(&[
            ("x-stream-protocol-version", "v9.x"),
            ("x-stream-protocol-version", "v4.channel.k8s.io, v3.channel.k8s.io"),
        ]);
        assert_eq!(spdy_protocol(&asked, &channels::SPDY_PROTOCOLS).ok(), Some("v4.channel.k8s.io"));
        let refused = spdy_protocol(&asked, &[FORWARD]).expect_err("nothing in common");
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        let silent = spdy_protocol(&headers(&[]), &[FORWARD]).expect_err("nothing asked");
        assert_eq!(silent.status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn ports_are_listed_or_repeated() {
        assert_eq!(ports("port=80&port=443,53"), Ok(vec![80, 443, 53]));
        assert!(ports("port=0").is_err_and(|text| text.contains("must be > 0")));
        assert!(ports("port=http").is_err() && ports("").is_err());
    }
}
