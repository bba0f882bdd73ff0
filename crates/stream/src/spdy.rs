//! SPDY/3.1: frames, and their headers' compression (draft-mbelshe-httpbis-spdy-00).

use bytes::{Buf, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

mod dictionary;

/// The version in each control frame.
const VERSION: u16 = 3;
/// The largest payload of a control frame, and the largest block of headers, compressed or not. Ours have some hundred bytes.
const LARGEST_CONTROL: usize = 64 << 10;
/// The most bytes in one data frame: its length has 24 bits (section 2.2.2).
pub const LARGEST_DATA: usize = (1 << 24) - 1;

/// Names, in lower case, and values, in order.
pub type Headers = Vec<(String, String)>;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// The stream; odd ones are opened by the client.
        stream: u32,
        /// Whether the opener sends nothing more on it.
        fin: bool,
        /// What the stream is for.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// The stream.
        stream: u32,
        /// Whether the acceptor sends nothing on it.
        fin: bool,
        /// Whatever there is to say.
        headers: Headers,
    },
    /// Bytes of a stream.
    Data {
        /// The stream.
        stream: u32,
        /// Whether these are the last bytes.
        fin: bool,
        /// The bytes.
        data: Bytes,
    },
    /// Ends a stream both ways, at once.
    Reset {
        /// The stream.
        stream: u32,
        /// Why; see [`CANCEL`] and its like.
        status: u32,
    },
    /// To be sent back as it is, if the other side made it up.
    Ping(u32),
    /// Says that no more streams are accepted.
    GoAway {
        /// The last stream that was accepted.
        last: u32,
        /// Why: 0 is no error.
        status: u32,
    },
    /// More headers of a stream.
    Headers {
        /// The stream.
        stream: u32,
        /// Whether its sender sends nothing more on it.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// How much more may be sent on a stream. Nobody here keeps account.
    WindowUpdate {
        /// The stream.
        stream: u32,
        /// So many bytes more.
        delta: u32,
    },
    /// Settings; none of them matters to us.
    Settings,
}

/// Status of a reset: the stream can't be.
pub const PROTOCOL_ERROR: u32 = 1;
/// Status of a reset: the stream is refused before anything was done.
pub const REFUSED_STREAM: u32 = 3;
/// Status of a reset: nobody wants the rest.
pub const CANCEL: u32 = 5;

/// Why bytes are no SPDY. The connection can only be closed then: the headers' compression has lost its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A frame of another version or type, or too short or long for its type.
    #[error("a SPDY frame breaks the protocol")]
    Protocol,
    /// Headers that don't decompress, or don't hold what they announce.
    #[error("a SPDY frame's headers make no sense")]
    Headers,
}

/// Bytes that came in, cut into frames.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    inflate: Decompress,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { buffer: BytesMut::new(), inflate: Decompress::new(true) }
    }
}

impl Decoder {
    /// Takes in bytes as they come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is here.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        if self.buffer.len() < 8 {
            return Ok(None);
        }
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| self.buffer[at + i]));
        let (first, second) = (word(0), word(4));
        let (flags, length) = ((second >> 24) as u8, (second & 0xff_ffff) as usize);
        let control = first & 0x8000_0000 != 0;
        if control && length > LARGEST_CONTROL {
            return Err(Error::Protocol);
        }
        if self.buffer.len() < 8 + length {
            return Ok(None);
        }
        self.buffer.advance(8);
        let mut payload = self.buffer.split_to(length).freeze();
        let fin = flags & 1 != 0;
        if !control {
            return Ok(Some(Frame::Data { stream: first, fin, data: payload }));
        }
        if (first >> 16) as u16 & 0x7fff != VERSION {
            return Err(Error::Protocol);
        }
        let mut number = || {
            if payload.len() < 4 {
                return Err(Error::Protocol);
            }
            Ok(payload.get_u32())
        };
        let stream = 0x7fff_ffff;
        let frame = match first & 0xffff {
            1 => {
                let stream = number()? & stream;
                // The associated stream, then priority and slot: of no use without server push.
                number()?;
                if payload.len() < 2 {
                    return Err(Error::Protocol);
                }
                payload.advance(2);
                Frame::SynStream { stream, fin, headers: self.headers(&payload)? }
            }
            2 => {
                let stream = number()? & stream;
                Frame::SynReply { stream, fin, headers: self.headers(&payload)? }
            }
            3 => Frame::Reset { stream: number()? & stream, status: number()? },
            4 => Frame::Settings,
            6 => Frame::Ping(number()?),
            7 => Frame::GoAway { last: number()? & stream, status: number()? },
            8 => {
                let stream = number()? & stream;
                Frame::Headers { stream, fin, headers: self.headers(&payload)? }
            }
            9 => Frame::WindowUpdate { stream: number()? & stream, delta: number()? },
            _ => return Err(Error::Protocol),
        };
        Ok(Some(frame))
    }

    fn headers(&mut self, compressed: &[u8]) -> Result<Headers, Error> {
        parse_headers(&self.inflate(compressed)?).ok_or(Error::Headers)
    }

    /// Decompresses the next part of the one stream that all blocks of headers of a connection make up.
    fn inflate(&mut self, mut compressed: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::with_capacity(1024);
        loop {
            if out.len() > LARGEST_CONTROL {
                return Err(Error::Headers);
            }
            if out.len() == out.capacity() {
                out.reserve(1024);
            }
            let (before, had) = (self.inflate.total_in(), out.len());
            let result = self.inflate.decompress_vec(compressed, &mut out, FlushDecompress::Sync);
            compressed = &compressed[(self.inflate.total_in() - before) as usize..];
            match result {
                Ok(Status::StreamEnd) => return Err(Error::Headers),
                Ok(_) if compressed.is_empty() && out.len() < out.capacity() => return Ok(out),
                // Neither bytes taken nor bytes given: it will not go on.
                Ok(_) if self.inflate.total_in() == before && out.len() == had => return Err(Error::Headers),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary::dictionary()).map_err(|_| Error::Headers)?;
                }
                Err(_) => return Err(Error::Headers),
            }
        }
    }
}

/// A block of headers (section 2.6.10): how many, then each name and value after its length. `None` if it isn't one.
fn parse_headers(mut block: &[u8]) -> Option<Headers> {
    fn number(block: &mut &[u8]) -> Option<usize> {
        let (head, rest) = block.split_first_chunk::<4>()?;
        *block = rest;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    }
    fn text(block: &mut &[u8]) -> Option<String> {
        let length = number(block)?;
        let text = block.get(..length)?;
        *block = &block[length..];
        Some(String::from_utf8_lossy(text).into_owned())
    }
    let count = number(&mut block)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        headers.push((text(&mut block)?, text(&mut block)?));
    }
    block.is_empty().then_some(headers)
}

/// The first value of a header, whose name is in lower case.
pub fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Frames to bytes.
#[derive(Debug)]
pub struct Encoder {
    deflate: Compress,
}

impl Default for Encoder {
    fn default() -> Encoder {
        let mut deflate = Compress::new(Compression::default(), true);
        // A fresh compressor takes any dictionary.
        let _ = deflate.set_dictionary(&dictionary::dictionary());
        Encoder { deflate }
    }
}

impl Encoder {
    /// Appends a frame. Longer data than [`LARGEST_DATA`] becomes several frames.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        let flag = |fin: bool| u8::from(fin);
        let pair = |a: u32, b: u32| [a.to_be_bytes(), b.to_be_bytes()].concat();
        match frame {
            Frame::Data { stream, fin, data } => {
                let mut rest = &data[..];
                loop {
                    let (piece, more) = rest.split_at(rest.len().min(LARGEST_DATA));
                    let last = more.is_empty();
                    out.extend_from_slice(&stream.to_be_bytes());
                    let length = u32::from(flag(*fin && last)) << 24 | piece.len() as u32;
                    out.extend_from_slice(&length.to_be_bytes());
                    out.extend_from_slice(piece);
                    if last {
                        return;
                    }
                    rest = more;
                }
            }
            Frame::SynStream { stream, fin, headers } => {
                let mut payload = pair(*stream, 0);
                payload.extend_from_slice(&[0, 0]);
                self.headers(headers, &mut payload);
                control(1, flag(*fin), &payload, out);
            }
            Frame::SynReply { stream, fin, headers } => {
                let mut payload = stream.to_be_bytes().to_vec();
                self.headers(headers, &mut payload);
                control(2, flag(*fin), &payload, out);
            }
            Frame::Headers { stream, fin, headers } => {
                let mut payload = stream.to_be_bytes().to_vec();
                self.headers(headers, &mut payload);
                control(8, flag(*fin), &payload, out);
            }
            Frame::Reset { stream, status } => control(3, 0, &pair(*stream, *status), out),
            Frame::Settings => control(4, 0, &0u32.to_be_bytes(), out),
            Frame::Ping(id) => control(6, 0, &id.to_be_bytes(), out),
            Frame::GoAway { last, status } => control(7, 0, &pair(*last, *status), out),
            Frame::WindowUpdate { stream, delta } => control(9, 0, &pair(*stream, *delta), out),
        }
    }

    fn headers(&mut self, headers: &Headers, out: &mut Vec<u8>) {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        let mut rest = &block[..];
        loop {
            out.reserve(256);
            let before = self.deflate.total_in();
            // With room in memory and a valid state there is nothing that can fail (zlib.h, deflate).
            if self.deflate.compress_vec(rest, out, FlushCompress::Sync).is_err() {
                return;
            }
            rest = &rest[(self.deflate.total_in() - before) as usize..];
            // A flush is complete when it leaves room (zlib.h, deflate).
            if rest.is_empty() && out.len() < out.capacity() {
                return;
            }
        }
    }
}

fn control(kind: u32, flags: u8, payload: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(&(0x8000_0000 | u32::from(VERSION) << 16 | kind).to_be_bytes());
    out.extend_from_slice(&(u32::from(flags) << 24 | payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
}
