//! What the two sides of an exec or attach session say to each other, over WebSocket or over SPDY's streams.

use bytes::{BufMut, Bytes, BytesMut};
use portolan_stream::websocket::{self, Message, Side};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::remote::Streams;
use crate::spdy;

/// How many pieces may wait for somebody slow.
const BEHIND: usize = 32;
/// How long a client may take to open its streams, as a kubelet's `streamCreationTimeout`.
pub(crate) const CREATION: std::time::Duration = std::time::Duration::from_secs(30);

/// From the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// Bytes for standard input.
    Bytes(Bytes),
    /// No more of them.
    End,
    /// The client's terminal has this size.
    Resize {
        /// Height in characters.
        rows: u16,
        /// Width in characters.
        columns: u16,
    },
}

/// To the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// How it ended, as a `Status`; the last.
    Status(Value),
    /// The answer to a WebSocket's ping, or its close.
    Raw(Message),
}

/// Both directions. When `input` ends, the client is gone.
#[derive(Debug)]
pub(crate) struct Channels {
    pub input: mpsc::Receiver<Input>,
    pub output: mpsc::Sender<Output>,
}

/// The channels of the WebSocket protocols (KEP-4006 has 255).
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// One of the WebSocket protocols of exec and attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Protocol {
    /// As in `Sec-WebSocket-Protocol`.
    pub name: &'static str,
    /// Whether the end of a stream can be told.
    closes: bool,
    /// Whether the result is a `Status`, and not only a text if it is an error.
    status: bool,
    /// Whether payloads are text: a digit and base64.
    base64: bool,
}

impl Protocol {
    const fn new(name: &'static str, closes: bool, status: bool, base64: bool) -> Protocol {
        Protocol { name, closes, status, base64 }
    }
}

/// All of them.
pub(crate) const PROTOCOLS: [Protocol; 6] = [
    Protocol::new("v5.channel.k8s.io", true, true, false),
    Protocol::new("v4.channel.k8s.io", false, true, false),
    Protocol::new("v4.base64.channel.k8s.io", false, true, true),
    Protocol::new("base64.channel.k8s.io", false, false, true),
    Protocol::new("channel.k8s.io", false, false, false),
    Protocol::new("", false, false, false),
];

/// What a message's payload says; `None` if it says nothing that we know.
fn understand(protocol: Protocol, payload: &Bytes) -> Option<Input> {
    let channel = *payload.first()?;
    if protocol.closes && channel == CLOSE {
        return (payload.get(1) == Some(&STDIN)).then_some(Input::End);
    }
    let (channel, bytes) = if protocol.base64 {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD.decode(&payload[1..]).ok()?;
        (channel.wrapping_sub(b'0'), bytes.into())
    } else {
        (channel, payload.slice(1..))
    };
    match channel {
        STDIN => Some(Input::Bytes(bytes)),
        RESIZE => resize(&bytes),
        _ => None,
    }
}

/// `{"Width":80,"Height":24}`.
pub(crate) fn resize(bytes: &[u8]) -> Option<Input> {
    let size: Value = serde_json::from_slice(bytes).ok()?;
    let number = |name| size.get(name).and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok());
    Some(Input::Resize { rows: number("Height")?, columns: number("Width")? })
}

/// A message on a channel.
fn say(protocol: Protocol, channel: u8, bytes: &[u8]) -> Message {
    if protocol.base64 {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        return Message::Text(format!("{channel}{text}").into());
    }
    let mut payload = BytesMut::with_capacity(1 + bytes.len());
    payload.put_u8(channel);
    payload.extend_from_slice(bytes);
    Message::Binary(payload.freeze())
}

/// The result as older protocols tell it: a text, and that only of an error.
fn text_of(status: &Value) -> Option<String> {
    let failed = status["status"] != "Success";
    failed.then(|| status["message"].as_str().unwrap_or_default().to_owned())
}

/// Speaks WebSocket on a connection that has been upgraded.
pub(crate) fn over_websocket<C>(connection: C, protocol: Protocol, wanted: Streams) -> Channels
where
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut read, mut write) = tokio::io::split(connection);
    let (heard, input) = mpsc::channel(BEHIND);
    let (output, mut said) = mpsc::channel::<Output>(BEHIND);
    let answer = output.clone();
    tokio::spawn(async move {
        let mut decoder = websocket::Decoder::new(Side::Server);
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match decoder.next_message() {
                Ok(Some(Message::Binary(payload) | Message::Text(payload))) => {
                    if let Some(input) = understand(protocol, &payload)
                        && heard.send(input).await.is_err()
                    {
                        return;
                    }
                }
                Ok(Some(Message::Ping(payload))) => {
                    let _ = answer.send(Output::Raw(Message::Pong(payload))).await;
                }
                Ok(Some(Message::Pong(_))) => {}
                Ok(Some(close @ Message::Close(_))) => {
                    let _ = answer.send(Output::Raw(close)).await;
                    return;
                }
                Err(error) => {
                    // 1002: a protocol error (RFC 6455 section 7.4.1).
                    let close = Message::Close(Some((1002, error.to_string())));
                    let _ = answer.send(Output::Raw(close)).await;
                    return;
                }
                Ok(None) => match read.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(length) => decoder.push(&buffer[..length]),
                },
            }
        }
    });
    tokio::spawn(async move {
        let mut bytes = BytesMut::new();
        // Nothing on the first channel tells the client that it goes on from here, as a kubelet does.
        let first = if wanted.stdout {
            STDOUT
        } else if wanted.stderr {
            STDERR
        } else {
            ERROR
        };
        websocket::encode(&say(protocol, first, &[]), None, &mut bytes);
        let mut over = false;
        loop {
            if write.write_all_buf(&mut bytes).await.is_err() || write.flush().await.is_err() {
                return;
            }
            if over {
                let _ = write.shutdown().await;
                return;
            }
            match said.recv().await {
                Some(Output::Stdout(data)) => {
                    websocket::encode(&say(protocol, STDOUT, &data), None, &mut bytes);
                }
                Some(Output::Stderr(data)) => {
                    websocket::encode(&say(protocol, STDERR, &data), None, &mut bytes);
                }
                Some(Output::Status(status)) => {
                    let text = if protocol.status { Some(status.to_string()) } else { text_of(&status) };
                    if let Some(text) = text {
                        websocket::encode(&say(protocol, ERROR, text.as_bytes()), None, &mut bytes);
                    }
                    // 1000: it was done.
                    websocket::encode(&Message::Close(Some((1000, String::new()))), None, &mut bytes);
                    over = true;
                }
                Some(Output::Raw(message)) => {
                    over = matches!(message, Message::Close(_));
                    websocket::encode(&message, None, &mut bytes);
                }
                None => over = true,
            }
        }
    });
    Channels { input, output }
}

/// The SPDY protocols of exec and attach, by `X-Stream-Protocol-Version`: the best first.
pub(crate) const SPDY_PROTOCOLS: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// Takes the streams that a client opens on a SPDY connection. `None` if it doesn't open those that it announced.
pub(crate) async fn over_spdy(
    mut connection: spdy::Connection,
    protocol: &str,
    wanted: Streams,
) -> Option<Channels> {
    // Sizes of terminals came with the third version, results as `Status` with the fourth.
    let resizes = wanted.terminal && matches!(protocol, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    let with_status = protocol == "v4.channel.k8s.io";
    let (mut stdin, mut stdout, mut stderr, mut error, mut sizes) = (None, None, None, None, None);
    let expected =
        1 + [wanted.stdin, wanted.stdout, wanted.stderr, resizes].iter().filter(|one| **one).count();
    let collect = async {
        for _ in 0..expected {
            let stream = connection.accept().await?;
            match stream.header("streamtype").unwrap_or_default() {
                "stdin" => stdin = Some(stream),
                "stdout" => stdout = Some(stream),
                "stderr" => stderr = Some(stream),
                "error" => error = Some(stream),
                "resize" => sizes = Some(stream),
                _ => stream.reset(),
            }
        }
        Some(())
    };
    tokio::time::timeout(CREATION, collect).await.ok()??;
    let mut error = error?;

    let (heard, input) = mpsc::channel(BEHIND);
    let (output, mut said) = mpsc::channel::<Output>(BEHIND);
    if let Some(mut stdin) = stdin {
        let heard = heard.clone();
        tokio::spawn(async move {
            while let Some(bytes) = stdin.receive().await {
                if heard.send(Input::Bytes(bytes)).await.is_err() {
                    return;
                }
            }
            let _ = heard.send(Input::End).await;
        });
    }
    if let Some(mut sizes) = sizes {
        let heard = heard.clone();
        tokio::spawn(async move {
            let mut text = BytesMut::new();
            while let Some(bytes) = sizes.receive().await {
                text.extend_from_slice(&bytes);
                // One object after another; each ends with its brace.
                while let Some(end) = text.iter().position(|byte| *byte == b'}') {
                    let object = text.split_to(end + 1);
                    if let Some(size) = resize(&object)
                        && heard.send(size).await.is_err()
                    {
                        return;
                    }
                }
            }
        });
    }
    tokio::spawn(async move {
        let mut connection = connection;
        let mut over = false;
        // Held until the connection ends: that is when the client is gone.
        let _heard = heard;
        while !over {
            tokio::select! {
                output = said.recv() => match output {
                    Some(Output::Stdout(data)) => if let Some(stdout) = &mut stdout { stdout.send(data).await },
                    Some(Output::Stderr(data)) => if let Some(stderr) = &mut stderr { stderr.send(data).await },
                    Some(Output::Status(status)) => {
                        let text = if with_status { Some(status.to_string()) } else { text_of(&status) };
                        if let Some(text) = text {
                            error.send(text.into()).await;
                        }
                        over = true;
                    }
                    Some(Output::Raw(_)) => {}
                    None => over = true,
                },
                more = connection.accept() => match more {
                    Some(stream) => stream.reset(),
                    None => return,
                },
            }
        }
        for stream in [stdout, stderr, Some(error)].into_iter().flatten() {
            stream.finish().await;
        }
        connection.close().await;
    });
    Some(Channels { input, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(name: &str, payload: &'static [u8]) -> Option<Input> {
        let protocol = PROTOCOLS.into_iter().find(|protocol| protocol.name == name).expect("a protocol");
        understand(protocol, &Bytes::from_static(payload))
    }

    #[test]
    fn a_channels_first_byte_says_what_it_is() {
        let bytes = |text: &'static str| Some(Input::Bytes(text.into()));
        assert_eq!(heard("v5.channel.k8s.io", b"\0hi"), bytes("hi"));
        assert_eq!(heard("v4.base64.channel.k8s.io", b"0aGk="), bytes("hi"));
        assert_eq!(heard("v5.channel.k8s.io", b"\xff\0"), Some(Input::End));
        assert_eq!(heard("v4.channel.k8s.io", b"\xff\0"), None, "the fourth version can't tell an end");
        let size = Some(Input::Resize { rows: 24, columns: 80 });
        assert_eq!(heard("v4.channel.k8s.io", b"\x04{\"Width\":80,\"Height\":24}"), size);
        assert_eq!(heard("v5.channel.k8s.io", b"\x04{\"Width\":-1}"), None);
        assert_eq!(heard("v5.channel.k8s.io", b"\x01x"), None, "standard output is ours");
        assert_eq!(heard("v5.channel.k8s.io", b""), None);
    }

    #[test]
    fn older_protocols_hear_only_of_errors() {
        assert_eq!(text_of(&serde_json::json!({"status": "Success"})), None);
        let failed = serde_json::json!({"status": "Failure", "message": "no"});
        assert_eq!(text_of(&failed), Some("no".to_owned()));
    }
}
