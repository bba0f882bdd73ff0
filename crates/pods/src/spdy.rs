//! A SPDY connection that a client has opened, and its streams.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use portolan_stream::spdy::{self, CANCEL, Frame, Headers, PROTOCOL_ERROR};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// How many frames of one stream may wait to be read; then the connection waits. Clients have no flow control (Go's
/// spdystream ignores SPDY's), hence the whole connection does.
const BEHIND: usize = 256;
/// How many frames may wait to be written.
const UNSENT: usize = 64;
/// More streams at a time than anybody needs.
const MOST_STREAMS: usize = 10_000;

/// The connection.
#[derive(Debug)]
pub(crate) struct Connection {
    streams: mpsc::Receiver<Stream>,
    frames: mpsc::Sender<Frame>,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    id: u32,
    headers: Headers,
    data: mpsc::Receiver<Data>,
    frames: mpsc::Sender<Frame>,
}

/// What comes on a stream.
#[derive(Debug)]
enum Data {
    Bytes(Bytes),
    /// The client sends nothing more on it.
    End,
    /// The client has given the whole stream up.
    Reset,
}

/// What a stream's reader finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes.
    Bytes(Bytes),
    /// No more of them; the other direction may go on.
    End,
    /// Both directions are over: the client has given the stream up, or is gone.
    Reset,
}

impl Connection {
    /// Speaks SPDY on a connection that has been upgraded.
    pub fn open<C>(connection: C) -> Connection
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(connection);
        let (frames, unsent) = mpsc::channel(UNSENT);
        let (accepted, streams) = mpsc::channel(UNSENT);
        tokio::spawn(hear(read, frames.clone(), accepted));
        tokio::spawn(say(write, unsent));
        Connection { streams, frames }
    }

    /// The next stream that the client opens; `None` when it is gone.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Says goodbye once everything is sent, and closes.
    pub async fn close(self) {
        let _ = self.frames.send(Frame::GoAway { last: 0, status: 0 }).await;
    }
}

impl Stream {
    /// The stream's number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// A header that the client opened it with; its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        spdy::header(&self.headers, name)
    }

    /// The next bytes; `None` at the end, however it came.
    pub async fn receive(&mut self) -> Option<Bytes> {
        match self.next().await {
            Received::Bytes(bytes) => Some(bytes),
            Received::End | Received::Reset => None,
        }
    }

    /// What comes next.
    pub async fn next(&mut self) -> Received {
        match self.data.recv().await {
            Some(Data::Bytes(bytes)) => Received::Bytes(bytes),
            Some(Data::End) => Received::End,
            Some(Data::Reset) | None => Received::Reset,
        }
    }

    /// The way to the client, for another task than the one that reads.
    pub fn sender(&self) -> Sender {
        Sender { id: self.id, frames: self.frames.clone() }
    }

    /// Sends bytes; to a client that is gone, nothing.
    pub async fn send(&mut self, data: Bytes) {
        self.sender().send(data).await;
    }

    /// Nothing more will be sent.
    pub async fn finish(&self) {
        self.sender().finish().await;
    }

    /// Gives the whole stream up. If the way is full it is not said, and the client finds out at the end.
    pub fn reset(&self) {
        let _ = self.frames.try_send(Frame::Reset { stream: self.id, status: CANCEL });
    }
}

/// The way to the client on one stream.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    id: u32,
    frames: mpsc::Sender<Frame>,
}

impl Sender {
    /// Sends bytes. `false` if the client is gone.
    pub async fn send(&self, data: Bytes) -> bool {
        self.frames.send(Frame::Data { stream: self.id, fin: false, data }).await.is_ok()
    }

    /// Nothing more will be sent.
    pub async fn finish(&self) {
        let _ = self.frames.send(Frame::Data { stream: self.id, fin: true, data: Bytes::new() }).await;
    }

    /// Gives the whole stream up.
    pub async fn reset(&self) {
        let _ = self.frames.send(Frame::Reset { stream: self.id, status: CANCEL }).await;
    }
}

async fn hear<R: AsyncRead + Unpin>(
    mut read: R,
    frames: mpsc::Sender<Frame>,
    accepted: mpsc::Sender<Stream>,
) {
    let mut decoder = spdy::Decoder::default();
    let mut buffer = vec![0; 32 * 1024];
    let mut open: HashMap<u32, mpsc::Sender<Data>> = HashMap::new();
    loop {
        let frame = match decoder.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => match read.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    decoder.push(&buffer[..length]);
                    continue;
                }
            },
            Err(error) => {
                tracing::debug!(%error, "a SPDY connection");
                let _ = frames.send(Frame::GoAway { last: 0, status: PROTOCOL_ERROR }).await;
                return;
            }
        };
        match frame {
            Frame::SynStream { stream: id, fin, headers } => {
                open.retain(|_, data| !data.is_closed());
                // The client's streams are odd, and none is opened twice (section 2.3.2).
                if id % 2 == 0 || open.contains_key(&id) || open.len() >= MOST_STREAMS {
                    let _ = frames.send(Frame::Reset { stream: id, status: PROTOCOL_ERROR }).await;
                    continue;
                }
                let (data, received) = mpsc::channel(BEHIND);
                if fin {
                    let _ = data.try_send(Data::End);
                }
                // Also after its end a stream may be given up.
                open.insert(id, data);
                let _ =
                    frames.send(Frame::SynReply { stream: id, fin: false, headers: Headers::new() }).await;
                let stream = Stream { id, headers, data: received, frames: frames.clone() };
                if accepted.send(stream).await.is_err() {
                    return;
                }
            }
            Frame::Data { stream, fin, data } => {
                if let Some(waiting) = open.get(&stream) {
                    // Who doesn't read it any more doesn't want it.
                    if !data.is_empty() {
                        let _ = waiting.send(Data::Bytes(data)).await;
                    }
                    if fin {
                        let _ = waiting.send(Data::End).await;
                    }
                }
            }
            Frame::Reset { stream, .. } => {
                if let Some(waiting) = open.remove(&stream) {
                    let _ = waiting.send(Data::Reset).await;
                }
            }
            // Ours are even, and we send none (section 2.6.5).
            Frame::Ping(id) if id % 2 == 1 => drop(frames.send(Frame::Ping(id)).await),
            Frame::GoAway { .. } => return,
            Frame::Ping(_)
            | Frame::SynReply { .. }
            | Frame::Headers { .. }
            | Frame::WindowUpdate { .. }
            | Frame::Settings => {}
        }
    }
}

async fn say<W: AsyncWrite + Unpin>(mut write: W, mut unsent: mpsc::Receiver<Frame>) {
    let mut encoder = spdy::Encoder::default();
    let mut bytes = BytesMut::new();
    let mut over = false;
    while !over {
        let Some(frame) = unsent.recv().await else { break };
        over = matches!(frame, Frame::GoAway { .. });
        encoder.encode(&frame, &mut bytes);
        if write.write_all_buf(&mut bytes).await.is_err() || write.flush().await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}
