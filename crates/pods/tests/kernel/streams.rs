//! Exec, attach and port-forward, asked of the node as the API server does.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use portolan_stream::spdy::{self, Frame};
use portolan_stream::websocket::{self, Message, Side};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::tests::{echo, shell};
use crate::tls;
use crate::world::{TOKEN, World, processes};

type Connection = TlsStream<TcpStream>;

/// Sends the head of a request; gives the answer's status and head, and the connection behind it.
async fn ask(world: &World, method: &str, path: &str, headers: &str) -> (u16, String, Connection) {
    let node = world.api.get("nodes//node-1").expect("the node");
    let fingerprint = node["metadata"]["annotations"]["portolan.dev/serving-cert-sha256"].as_str();
    let address = "192.0.2.1:10250".parse().expect("an address");
    let mut connection =
        tls::connect(address, fingerprint.expect("a fingerprint")).await.expect("the node answers");
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {TOKEN}\r\n{headers}\r\n");
    connection.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(connection.read_u8().await.expect("an answer"));
    }
    let answer = String::from_utf8(answer).expect("text");
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (code, answer.to_ascii_lowercase(), connection)
}

/// A client's WebSocket.
struct Socket {
    connection: Connection,
    decoder: websocket::Decoder,
}

async fn websocket(world: &World, path: &str, protocol: &str) -> Socket {
    let headers = format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
    );
    let (code, head, connection) = ask(world, "GET", path, &headers).await;
    assert_eq!(code, 101, "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    assert!(head.contains(&format!("sec-websocket-protocol: {}", protocol.to_ascii_lowercase())), "{head}");
    Socket { connection, decoder: websocket::Decoder::new(Side::Client) }
}

/// All that came until the end.
#[derive(Default)]
struct Heard {
    stdout: String,
    stderr: String,
    status: Value,
}

impl Socket {
    async fn send(&mut self, message: Message) {
        let mut bytes = BytesMut::new();
        websocket::encode(&message, Some([1, 2, 3, 4]), &mut bytes);
        self.connection.write_all(&bytes).await.expect("sent");
    }

    async fn say(&mut self, channel: u8, text: &str) {
        self.send(Message::Binary([&[channel][..], text.as_bytes()].concat().into())).await;
    }

    async fn next(&mut self) -> Option<Message> {
        let mut buffer = vec![0; 4096];
        loop {
            if let Some(message) = self.decoder.next_message().expect("a WebSocket's frames") {
                return Some(message);
            }
            let read = tokio::time::timeout(Duration::from_secs(20), self.connection.read(&mut buffer));
            match read.await.expect("something within 20 s") {
                Ok(0) | Err(_) => return None,
                Ok(length) => self.decoder.push(&buffer[..length]),
            }
        }
    }

    async fn until(&mut self, enough: impl Fn(&Heard) -> bool) -> Heard {
        let mut heard = Heard::default();
        while !enough(&heard) {
            let Some(Message::Binary(payload)) = self.next().await else { break };
            let text = String::from_utf8_lossy(&payload[1..]).into_owned();
            match payload[0] {
                1 => heard.stdout += &text,
                2 => heard.stderr += &text,
                3 if !text.is_empty() => heard.status = serde_json::from_str(&text).expect("a Status"),
                _ => {}
            }
        }
        heard
    }
}

/// A query for a shell's script.
fn script(text: &str) -> String {
    let text: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
    format!("command=%2Fbin%2Fsh&command=-c&command={text}")
}

async fn running(world: &World, name: &str) {
    world.create(name, shell("exec tail -f /dev/null"));
    world.ready(&format!("pods/default/{name}")).await;
}

const TYPE_AND_EXIT: &str = "cat; echo err >&2; hostname; exit 102";

pub async fn a_program_run_in_a_container_has_streams_of_its_own_without_root() {
    a_program_run_in_a_container_has_streams_of_its_own().await;
}

pub async fn a_program_run_in_a_container_has_streams_of_its_own() {
    let world = World::new().await;
    running(&world, "web").await;
    let path = format!("/exec/default/web/sh?input=1&output=1&error=1&{}", script(TYPE_AND_EXIT));
    let mut socket = websocket(&world, &path, "v5.channel.k8s.io").await;
    socket.say(0, "typed\n").await;
    socket.send(Message::Binary(Bytes::from_static(&[255, 0]))).await;
    let heard = socket.until(|_| false).await;
    assert_eq!((heard.stdout.as_str(), heard.stderr.as_str()), ("typed\nweb\n", "err\n"));
    assert_eq!(heard.status["reason"], "NonZeroExitCode");
    assert_eq!(heard.status["details"]["causes"], json!([{"reason": "ExitCode", "message": "102"}]));

    // More at a time than fits into any buffer, and none of it mixed up.
    let many = (0..8).map(|number| {
        let world = &world;
        async move {
            let text = format!("yes {number} | head -c 300000 | tail -c 10000");
            let path = format!("/exec/default/web/sh?output=1&error=1&{}", script(&text));
            let heard = websocket(world, &path, "v4.channel.k8s.io").await.until(|_| false).await;
            assert_eq!(heard.stdout, format!("{number}\n").repeat(5000));
            assert_eq!(heard.status["status"], "Success");
        }
    });
    futures_util::future::join_all(many).await;
}

/// A client's SPDY connection.
struct Spdy<C> {
    connection: C,
    encoder: spdy::Encoder,
    decoder: spdy::Decoder,
    ended: std::collections::BTreeMap<u32, bool>,
    data: std::collections::BTreeMap<u32, Vec<u8>>,
}

impl<C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Spdy<C> {
    fn over(connection: C) -> Spdy<C> {
        let (encoder, decoder) = (spdy::Encoder::default(), spdy::Decoder::default());
        Spdy { connection, encoder, decoder, ended: Default::default(), data: Default::default() }
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes);
        self.connection.write_all(&bytes).await.expect("sent");
    }

    async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.send(Frame::SynStream { stream, fin: false, headers }).await;
    }

    async fn say(&mut self, stream: u32, text: &'static str, fin: bool) {
        self.send(Frame::Data { stream, fin, data: text.into() }).await;
    }

    /// Reads until all of these streams have ended; what came on them, and whether each ended by a reset.
    async fn until_ended(&mut self, streams: &[u32]) -> Vec<(String, bool)> {
        let mut buffer = vec![0; 4096];
        while !streams.iter().all(|stream| self.ended.contains_key(stream)) {
            match self.decoder.next_frame().expect("SPDY frames") {
                Some(Frame::Data { stream, fin, data }) => {
                    self.data.entry(stream).or_default().extend_from_slice(&data);
                    if fin {
                        self.ended.entry(stream).or_insert(false);
                    }
                }
                Some(Frame::Reset { stream, .. }) => drop(self.ended.entry(stream).or_insert(true)),
                Some(Frame::SynReply { .. } | Frame::GoAway { .. } | Frame::Ping(7)) => {}
                Some(other) => panic!("{other:?}"),
                None => {
                    let read =
                        tokio::time::timeout(Duration::from_secs(20), self.connection.read(&mut buffer));
                    let length = read.await.expect("something within 20 s").expect("read");
                    assert_ne!(length, 0, "the connection ends before {streams:?}");
                    self.decoder.push(&buffer[..length]);
                }
            }
        }
        let text = |stream| {
            String::from_utf8_lossy(self.data.get(stream).map_or(&[][..], Vec::as_slice)).into_owned()
        };
        streams.iter().map(|stream| (text(stream), self.ended[stream])).collect()
    }
}

async fn spdy(world: &World, path: &str, protocol: &str) -> Spdy<Connection> {
    let headers = format!(
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n"
    );
    let (code, head, connection) = ask(world, "POST", path, &headers).await;
    assert_eq!(code, 101, "{head}");
    assert!(head.contains(&format!("x-stream-protocol-version: {protocol}")), "{head}");
    Spdy::over(connection)
}

pub async fn a_program_runs_over_spdy_as_well() {
    let world = World::new().await;
    running(&world, "web").await;
    let path = format!("/exec/default/web/sh?input=1&output=1&error=1&{}", script(TYPE_AND_EXIT));
    let mut client = spdy(&world, &path, "v4.channel.k8s.io").await;
    client.send(Frame::Ping(7)).await;
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open(stream, &[("streamtype", kind)]).await;
    }
    client.say(3, "typed\n", true).await;
    let ended = client.until_ended(&[1, 5, 7]).await;
    assert_eq!(ended[1..], [("typed\nweb\n".to_owned(), false), ("err\n".to_owned(), false)]);
    let status: Value = serde_json::from_str(&ended[0].0).expect("a Status");
    assert_eq!(status["details"]["causes"][0]["message"], "102");

    // The oldest protocol says only what went wrong, in words.
    let path = format!("/exec/default/web/sh?output=1&{}", script("echo out; exit 3"));
    let mut client = spdy(&world, &path, "channel.k8s.io").await;
    client.open(1, &[("streamtype", "error")]).await;
    client.open(3, &[("streamtype", "stdout")]).await;
    let ended = client.until_ended(&[1, 3]).await;
    assert_eq!(ended[0].0, "command terminated with non-zero exit code: exit status 3");
    assert_eq!(ended[1].0, "out\n");
}

pub async fn a_program_ends_with_the_client_that_wanted_it() {
    let world = World::new().await;
    running(&world, "web").await;
    let path = format!("/exec/default/web/sh?output=1&{}", script("echo begun; sleep 987; echo never"));
    let mut socket = websocket(&world, &path, "v5.channel.k8s.io").await;
    socket.until(|heard| heard.stdout == "begun\n").await;
    assert!(processes().iter().any(|name| name == "sleep"), "{:?}", processes());
    drop(socket);
    let gone = |_: &crate::api::Api| (!processes().iter().any(|name| name == "sleep")).then_some(());
    world.api.until("the program and what it started are gone", 10, gone).await;
    assert!(processes().iter().any(|name| name == "tail"), "the container goes on");
}

pub async fn a_terminal_has_the_clients_size() {
    let world = World::new().await;
    running(&world, "web").await;
    let text = script("read line; stty size; test -t 0 && test -t 1 && echo terminal $TERM; exit 5");
    let path = format!("/exec/default/web/sh?input=1&output=1&tty=1&{text}");
    let mut socket = websocket(&world, &path, "v5.channel.k8s.io").await;
    socket.say(4, r#"{"Width":77,"Height":33}"#).await;
    socket.say(0, "go\n").await;
    let heard = socket.until(|_| false).await;
    // A terminal shows what is typed, and ends lines as terminals do.
    assert_eq!(heard.stdout, "go\r\n33 77\r\nterminal xterm\r\n");
    assert_eq!(heard.status["details"]["causes"][0]["message"], "5");
}

pub async fn what_can_not_be_run_is_said() {
    let world = World::new().await;
    running(&world, "web").await;
    let mut spec = shell("true");
    spec["restartPolicy"] = json!("Never");
    let key = world.create("ended", spec);
    world
        .api
        .until("it has ended", 10, |api| api.get(&key).filter(|pod| pod["status"]["phase"] == "Succeeded"))
        .await;
    let upgrade =
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    for (path, headers, code, said) in [
        ("/exec/default/ended/sh?output=1&command=ls", upgrade, 500, "container not found (\"sh\")"),
        ("/attach/default/ended/sh?output=1", upgrade, 500, "container sh not found in pod ended_default"),
        ("/exec/default/none/sh?output=1&command=ls", upgrade, 404, "pod does not exist"),
        ("/exec/default/web/no-such-uid/sh?output=1&command=ls", upgrade, 404, "pod does not exist"),
        (
            "/exec/default/web/sh?command=ls",
            upgrade,
            400,
            "you must specify at least 1 of stdin, stdout, stderr",
        ),
        ("/exec/default/web/sh?output=1&command=ls", "", 400, "Upgrade request required"),
        ("/portForward/default/none", upgrade, 404, "pod does not exist"),
        (
            "/portForward/default/web",
            upgrade,
            403,
            "unable to upgrade: unable to negotiate protocol: \
            client supports [v4.channel.k8s.io], server accepts [portforward.k8s.io]",
        ),
    ] {
        let (answered, _, mut connection) =
            ask(&world, "POST", path, &format!("{headers}Content-Length: 0\r\n")).await;
        let mut text = vec![0; said.len()];
        connection.read_exact(&mut text).await.expect("a text");
        assert_eq!((answered, String::from_utf8_lossy(&text).as_ref()), (code, said), "{path}");
    }
    // What turns out only in the container is said in the result.
    let path = "/exec/default/web/sh?output=1&command=no-such-program";
    let heard = websocket(&world, path, "v4.channel.k8s.io").await.until(|_| false).await;
    assert_eq!(heard.status["reason"], "InternalError");
    let message = heard.status["message"].as_str().expect("a message");
    assert!(message.ends_with("exec: \"no-such-program\": executable file not found in $PATH"), "{message}");
}

pub async fn who_attaches_sees_and_types_what_the_container_says_and_hears() {
    let world = World::new().await;
    let mut spec = shell("read line; echo got $line; read line; exit 7");
    spec["containers"][0]["stdin"] = json!(true);
    spec["restartPolicy"] = json!("Never");
    let key = world.create("talks", spec);
    world.ready(&key).await;
    let path = "/attach/default/talks/sh?input=1&output=1&error=1";
    let mut watcher = websocket(&world, "/attach/default/talks/sh?output=1", "v4.channel.k8s.io").await;
    let mut first = websocket(&world, path, "v5.channel.k8s.io").await;
    first.say(0, "one\n").await;
    assert_eq!(first.until(|heard| !heard.stdout.is_empty()).await.stdout, "got one\n");
    // Without `stdinOnce`, the next one types on where the first stopped.
    drop(first);
    let mut second = websocket(&world, path, "v5.channel.k8s.io").await;
    second.say(0, "two\n").await;
    assert_eq!(second.until(|_| false).await.status["status"], "Success");
    assert_eq!(watcher.until(|_| false).await.stdout, "got one\n");
    let ended = |api: &crate::api::Api| {
        let pod = api.get(&key)?;
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"].as_i64()
    };
    assert_eq!(world.api.until("the container ends", 10, ended).await, 7);
}

pub async fn a_pods_ports_are_forwarded_with_their_ends_and_errors() {
    let world = World::new().await;
    let key = world.create("web", echo("echo"));
    world.ready(&key).await;
    let path = "/portForward/default/web";
    let direct = spdy(&world, path, "portforward.k8s.io").await;
    forwards(direct).await;

    // The same in a WebSocket.
    let Socket { mut connection, mut decoder } = websocket(&world, path, "SPDY/3.1+portforward.k8s.io").await;
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let tunnel = tokio::spawn(async move {
        let (mut sent, mut received) = (vec![0; 4096], vec![0; 4096]);
        loop {
            tokio::select! {
                read = far.read(&mut sent) => {
                    let Ok(length @ 1..) = read else { return };
                    let mut bytes = BytesMut::new();
                    let piece = Bytes::copy_from_slice(&sent[..length]);
                    websocket::encode(&Message::Binary(piece), Some([9, 8, 7, 6]), &mut bytes);
                    connection.write_all(&bytes).await.expect("sent");
                }
                read = connection.read(&mut received) => {
                    let Ok(length @ 1..) = read else { return };
                    decoder.push(&received[..length]);
                    while let Some(message) = decoder.next_message().expect("frames") {
                        let Message::Binary(payload) = message else { return };
                        far.write_all(&payload).await.expect("passed on");
                    }
                }
            }
        }
    });
    forwards(Spdy::over(near)).await;
    tunnel.abort();

    // And in a WebSocket's own channels: each begins with its port.
    let mut socket = websocket(&world, &format!("{path}?port=80"), "v4.channel.k8s.io").await;
    for channel in [0, 1] {
        let message = Message::Binary(Bytes::copy_from_slice(&[channel, 80, 0]));
        assert_eq!(socket.next().await, Some(message));
    }
    socket.say(0, "hello\n").await;
    let Some(Message::Binary(answer)) = socket.next().await else { panic!("no answer") };
    assert!(answer.starts_with(b"\0web "), "{answer:?}");
}

/// Several connections at once on one SPDY connection, one of them refused.
async fn forwards<C: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(mut client: Spdy<C>) {
    let open = async |client: &mut Spdy<C>, first: u32, port: &str| {
        let id = first.to_string();
        for (stream, kind) in [(first, "error"), (first + 2, "data")] {
            client.open(stream, &[("streamtype", kind), ("port", port), ("requestid", &id)]).await;
        }
        client.say(first, "", true).await;
    };
    open(&mut client, 1, "80").await;
    open(&mut client, 5, "80").await;
    open(&mut client, 9, "81").await;
    client.say(3, "hello", true).await;
    client.say(7, "hello", true).await;
    let ended = client.until_ended(&[1, 3, 5, 7, 9, 11]).await;
    for (error, data) in [(0, 1), (2, 3)] {
        assert_eq!(ended[error], (String::new(), false));
        assert!(ended[data].0.starts_with("web 127.0.0.1:") && !ended[data].1, "{ended:?}");
    }
    let (said, _) = &ended[4];
    assert!(said.starts_with("error forwarding port 81 to pod web, uid "), "{said}");
    assert!(said.contains("127.0.0.1:81: connect: connection refused"), "{said}");
    assert!(ended[5].1, "what can't be forwarded is reset");
}
