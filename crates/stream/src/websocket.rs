//! WebSocket (RFC 6455): frames to messages and back.

use base64::Engine as _;
use bytes::{Buf, Bytes, BytesMut};

/// The longest message that is taken. Kubernetes' clients send pieces of 32 KiB.
pub const LONGEST: usize = 16 << 20;

/// What RFC 6455 section 1.3 appends to a client's key.
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The value of `Sec-WebSocket-Accept` for a client's `Sec-WebSocket-Key` (RFC 6455 section 4.2.2).
pub fn accept(key: &str) -> String {
    let digest = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{}{KEY_SUFFIX}", key.trim()).as_bytes(),
    );
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// What one side says to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Bytes.
    Binary(Bytes),
    /// UTF-8, which is not checked here.
    Text(Bytes),
    /// To be answered by a pong with the same bytes.
    Ping(Bytes),
    /// The answer to a ping.
    Pong(Bytes),
    /// The end, with its status code and reason (section 7.4).
    Close(Option<(u16, String)>),
}

/// Why bytes are no WebSocket. The connection can only be closed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A reserved bit or opcode, a control frame in parts or too long, a continuation of nothing.
    #[error("a WebSocket frame breaks the protocol")]
    Protocol,
    /// Clients mask what they send, servers don't (section 5.1).
    #[error("a WebSocket frame is masked that must not be, or the reverse")]
    Mask,
    /// See [`LONGEST`].
    #[error("a WebSocket message is longer than {LONGEST} bytes")]
    TooLong,
}

/// Which side this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Reads masked frames and writes plain ones.
    Server,
    /// Reads plain frames and writes masked ones.
    Client,
}

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Bytes that came in, cut into messages.
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    buffer: BytesMut,
    /// A message whose last frame hasn't come yet: its opcode and what there is of it.
    begun: Option<(u8, BytesMut)>,
}

impl Decoder {
    /// For what this side receives.
    pub fn new(side: Side) -> Decoder {
        Decoder { side, buffer: BytesMut::new(), begun: None }
    }

    /// Takes in bytes as they come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if it is here.
    pub fn next_message(&mut self) -> Result<Option<Message>, Error> {
        while let Some((last, opcode, payload)) = self.frame()? {
            match (opcode, self.begun.take()) {
                (CLOSE | PING | PONG, begun) => {
                    self.begun = begun;
                    return control(opcode, payload).map(Some);
                }
                (TEXT | BINARY, None) if last => return Ok(Some(data(opcode, payload.freeze()))),
                (TEXT | BINARY, None) => self.begun = Some((opcode, payload)),
                (CONTINUATION, Some((opcode, mut whole))) => {
                    if whole.len() + payload.len() > LONGEST {
                        return Err(Error::TooLong);
                    }
                    whole.extend_from_slice(&payload);
                    if last {
                        return Ok(Some(data(opcode, whole.freeze())));
                    }
                    self.begun = Some((opcode, whole));
                }
                _ => return Err(Error::Protocol),
            }
        }
        Ok(None)
    }

    /// The next frame (section 5.2), unmasked: whether it ends a message, its opcode, its payload.
    fn frame(&mut self) -> Result<Option<(bool, u8, BytesMut)>, Error> {
        let [first, second, ..] = self.buffer[..] else { return Ok(None) };
        let (last, reserved, opcode) = (first & 0x80 != 0, first & 0x70, first & 0x0f);
        if reserved != 0 || opcode >= CLOSE && !last {
            return Err(Error::Protocol);
        }
        let masked = second & 0x80 != 0;
        if masked != (self.side == Side::Server) {
            return Err(Error::Mask);
        }
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let head = 2 + extended + if masked { 4 } else { 0 };
        if self.buffer.len() < head {
            return Ok(None);
        }
        let length = match extended {
            0 => u64::from(second & 0x7f),
            _ => self.buffer[2..2 + extended].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        if opcode >= CLOSE && length > 125 {
            return Err(Error::Protocol);
        }
        let length =
            usize::try_from(length).ok().filter(|length| *length <= LONGEST).ok_or(Error::TooLong)?;
        if self.buffer.len() < head + length {
            return Ok(None);
        }
        let mask = masked.then(|| [0, 1, 2, 3].map(|i| self.buffer[2 + extended + i]));
        self.buffer.advance(head);
        let mut payload = self.buffer.split_to(length);
        if let Some(mask) = mask {
            apply(mask, &mut payload);
        }
        Ok(Some((last, opcode, payload)))
    }
}

fn apply(mask: [u8; 4], payload: &mut [u8]) {
    for (byte, key) in payload.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= key;
    }
}

fn data(opcode: u8, payload: Bytes) -> Message {
    if opcode == TEXT { Message::Text(payload) } else { Message::Binary(payload) }
}

fn control(opcode: u8, mut payload: BytesMut) -> Result<Message, Error> {
    Ok(match opcode {
        PING => Message::Ping(payload.freeze()),
        PONG => Message::Pong(payload.freeze()),
        _ if payload.is_empty() => Message::Close(None),
        _ if payload.len() == 1 => return Err(Error::Protocol),
        _ => {
            let code = payload.get_u16();
            Message::Close(Some((code, String::from_utf8_lossy(&payload).into_owned())))
        }
    })
}

/// Appends a message in one frame. A client gives the mask, which should be random; a server gives none.
pub fn encode(message: &Message, mask: Option<[u8; 4]>, out: &mut BytesMut) {
    let close;
    let (opcode, payload): (u8, &[u8]) = match message {
        Message::Binary(bytes) => (BINARY, bytes),
        Message::Text(bytes) => (TEXT, bytes),
        Message::Ping(bytes) => (PING, bytes),
        Message::Pong(bytes) => (PONG, bytes),
        Message::Close(None) => (CLOSE, &[]),
        Message::Close(Some((code, reason))) => {
            // A control frame's payload has at most 125 bytes (section 5.5), and its text is whole UTF-8.
            let mut end = reason.len().min(123);
            while !reason.is_char_boundary(end) {
                end -= 1;
            }
            close = [&code.to_be_bytes(), &reason.as_bytes()[..end]].concat();
            (CLOSE, &close)
        }
    };
    out.extend_from_slice(&[0x80 | opcode]);
    let flag = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        length @ 0..=125 => out.extend_from_slice(&[flag | length as u8]),
        length @ 126..=0xffff => {
            out.extend_from_slice(&[flag | 126]);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.extend_from_slice(&[flag | 127]);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        out.extend_from_slice(&mask);
    }
    let begin = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply(mask, &mut out[begin..]);
    }
}
