//! Netlink sockets, attributes and acknowledgements.
//!
//! A [`Message`] is bytes with lengths patched in, a [`Socket`] sends it and turns the kernel's answer into an
//! `io::Result` that carries the kernel's own words (extended acknowledgements).

#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `NETLINK_ROUTE`: links, addresses, routes, neighbours.
pub const ROUTE: i32 = libc::NETLINK_ROUTE;
/// `NETLINK_NETFILTER`: nf_tables, connection tracking.
pub const NETFILTER: i32 = libc::NETLINK_NETFILTER;

/// `NLM_F_REQUEST`.
pub const REQUEST: u16 = 0x1;
/// `NLM_F_MULTI`.
pub const MULTI: u16 = 0x2;
/// `NLM_F_ACK`.
pub const ACK: u16 = 0x4;
/// `NLM_F_ECHO`.
pub const ECHO: u16 = 0x8;
/// `NLM_F_DUMP_INTR`: the dump saw a change half-way and has to be asked for again.
pub const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLM_F_DUMP`.
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`, of a request that makes something.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`, of a request that makes something.
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`, of a request that makes something.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`, of a request that makes something.
pub const APPEND: u16 = 0x800;

/// `NLMSG_ERROR`.
pub const KIND_ERROR: u16 = 2;
/// `NLMSG_DONE`.
pub const KIND_DONE: u16 = 3;

const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
/// `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// What one `recv` may bring: the kernel never makes a larger skb for a dump (32 KiB) or an acknowledgement.
const RECEIVE: usize = 256 * 1024;

// === Messages ===

/// One or several netlink messages under construction, with nested attributes.
///
/// ```
/// # use portolan_sys::netlink::Message;
/// let mut message = Message::new(16, 0);
/// message.raw(&[0; 16]); // the fixed header of the message's kind, say ifinfomsg
/// message.str(3, "lo").nest(18, |m| {
///     m.str(1, "veth");
/// });
/// ```
#[derive(Clone, Debug, Default)]
pub struct Message {
    bytes: Vec<u8>,
    start: usize,
    overflow: bool,
}

impl Message {
    /// A buffer without a message yet; [`Message::next`] begins the first.
    pub fn empty() -> Message {
        Message::default()
    }

    /// Begins a message; `NLM_F_REQUEST` is always set.
    pub fn new(kind: u16, flags: u16) -> Message {
        let mut message = Message::empty();
        message.next(kind, flags);
        message
    }

    /// Begins a further message in the same buffer.
    pub fn next(&mut self, kind: u16, flags: u16) -> &mut Message {
        self.start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.patch();
        self
    }

    /// Appends bytes as they are (a fixed header), padded to four.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Message {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self.patch();
        self
    }

    /// An attribute of bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Message {
        let length = value.len() + 4;
        self.overflow |= length > usize::from(u16::MAX);
        self.bytes.extend_from_slice(&(length as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self.patch();
        self
    }

    /// An attribute without a value.
    pub fn flag(&mut self, kind: u16) -> &mut Message {
        self.bytes(kind, &[])
    }

    /// A byte.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Message {
        self.bytes(kind, &[value])
    }

    /// 16 bits in host order.
    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Message {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// 16 bits in network order.
    pub fn u16be(&mut self, kind: u16, value: u16) -> &mut Message {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// 32 bits in host order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Message {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// 32 bits in network order.
    pub fn u32be(&mut self, kind: u16, value: u32) -> &mut Message {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// 64 bits in host order.
    pub fn u64(&mut self, kind: u16, value: u64) -> &mut Message {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// 64 bits in network order.
    pub fn u64be(&mut self, kind: u16, value: u64) -> &mut Message {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string, zero-terminated as the kernel wants it.
    pub fn str(&mut self, kind: u16, value: &str) -> &mut Message {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// An attribute made of attributes.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Message)) -> &mut Message {
        let at = self.open(kind);
        inside(self);
        self.close(at);
        self
    }

    /// Opens a nested attribute; what it returns goes to [`Message::close`].
    pub fn open(&mut self, kind: u16) -> usize {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        at
    }

    /// Closes a nested attribute.
    pub fn close(&mut self, at: usize) {
        let length = self.bytes.len() - at;
        self.overflow |= length > usize::from(u16::MAX);
        self.bytes[at..at + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        self.patch();
    }

    /// All the bytes so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes there are so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether an attribute grew beyond the 64 KiB that its length field can say. Such a message is refused by `send`.
    pub fn overflowed(&self) -> bool {
        self.overflow
    }

    /// Sets the sequence number of the last message.
    pub fn sequence(&mut self, sequence: u32) -> &mut Message {
        let at = self.start + 8;
        self.bytes[at..at + 4].copy_from_slice(&sequence.to_ne_bytes());
        self
    }

    /// Adds flags to the last message.
    pub fn add_flags(&mut self, flags: u16) -> &mut Message {
        let at = self.start + 6;
        let now = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | flags;
        self.bytes[at..at + 2].copy_from_slice(&now.to_ne_bytes());
        self
    }

    /// Adds a number to the sequence number of every message.
    pub fn rebase_sequences(&mut self, by: u32) {
        let mut at = 0;
        while let Some(head) = self.bytes.get_mut(at..at + HEADER) {
            let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let now = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]).wrapping_add(by);
            head[8..12].copy_from_slice(&now.to_ne_bytes());
            at += length.next_multiple_of(4).max(HEADER);
        }
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    fn patch(&mut self) {
        let length = (self.bytes.len() - self.start) as u32;
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// An attribute as read.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    /// Its type, without the flags.
    pub kind: u16,
    /// Its value, without padding.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The first byte.
    pub fn u8(&self) -> u8 {
        self.value.first().copied().unwrap_or(0)
    }

    /// 16 bits in host order; zero if there are fewer.
    pub fn u16(&self) -> u16 {
        self.array().map_or(0, u16::from_ne_bytes)
    }

    /// 16 bits in network order; zero if there are fewer.
    pub fn u16be(&self) -> u16 {
        self.array().map_or(0, u16::from_be_bytes)
    }

    /// 32 bits in host order; zero if there are fewer.
    pub fn u32(&self) -> u32 {
        self.array().map_or(0, u32::from_ne_bytes)
    }

    /// 32 bits in network order; zero if there are fewer.
    pub fn u32be(&self) -> u32 {
        self.array().map_or(0, u32::from_be_bytes)
    }

    /// 64 bits in network order; zero if there are fewer.
    pub fn u64be(&self) -> u64 {
        self.array().map_or(0, u64::from_be_bytes)
    }

    /// The string up to its zero; bytes that are not UTF-8 are replaced.
    pub fn str(&self) -> String {
        let end = self.value.iter().position(|b| *b == 0).unwrap_or(self.value.len());
        String::from_utf8_lossy(&self.value[..end]).into_owned()
    }

    /// The attributes inside.
    pub fn inside(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    fn array<const N: usize>(&self) -> Option<[u8; N]> {
        self.value.get(..N)?.try_into().ok()
    }
}

/// Iterates over attributes; stops at the first malformed one.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    bytes: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Over the attributes in these bytes (after the fixed header of the message's kind).
    pub fn new(bytes: &'a [u8]) -> Attributes<'a> {
        Attributes { bytes }
    }

    /// The first attribute of this type.
    pub fn find(self, kind: u16) -> Option<Attribute<'a>> {
        let mut all = self;
        all.by_ref().find(|a| a.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let head = self.bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & KIND_MASK;
        let value = self.bytes.get(4..length.max(4))?;
        if length < 4 {
            return None;
        }
        self.bytes = self.bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Attribute { kind, value })
    }
}

/// A message as received.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// `nlmsg_pid`: the netlink port of the socket whose request this answers, or whose doing it tells of.
    pub port: u32,
    /// Everything after the header.
    pub payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// The attributes after a fixed header of so many bytes.
    pub fn attributes(&self, fixed: usize) -> Attributes<'a> {
        Attributes::new(self.payload.get(fixed..).unwrap_or(&[]))
    }
}

/// A message as received, owned.
#[derive(Clone, Debug)]
pub struct Reply {
    /// `nlmsg_type`.
    pub kind: u16,
    /// Everything after the header.
    pub payload: Vec<u8>,
}

impl Reply {
    /// The attributes after a fixed header of so many bytes.
    pub fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes::new(self.payload.get(fixed..).unwrap_or(&[]))
    }
}

/// Iterates over the messages of one datagram.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a> {
    bytes: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Over the messages in these bytes.
    pub fn new(bytes: &'a [u8]) -> Messages<'a> {
        Messages { bytes }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Received<'a>;

    fn next(&mut self) -> Option<Received<'a>> {
        let head = self.bytes.get(..HEADER)?;
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = word(0) as usize;
        if length < HEADER {
            return None;
        }
        let payload = self.bytes.get(HEADER..length)?;
        self.bytes = self.bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Received {
            kind: u16::from_ne_bytes([head[4], head[5]]),
            flags: u16::from_ne_bytes([head[6], head[7]]),
            sequence: word(8),
            port: word(12),
            payload,
        })
    }
}

// === Errors ===

/// What the kernel answered to a request that it refused, with its explanation where it gave one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error number, positive.
    pub errno: i32,
    /// The kernel's text (`NLMSGERR_ATTR_MSG`).
    pub text: Option<String>,
    /// Where in the request the offending attribute begins (`NLMSGERR_ATTR_OFFS`).
    pub offset: Option<u32>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        if let Some(text) = &self.text {
            write!(f, ": {text}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        let plain = io::Error::from_raw_os_error(refusal.errno);
        match refusal.text {
            // A plain error keeps `raw_os_error`.
            None => plain,
            Some(_) => io::Error::new(plain.kind(), refusal),
        }
    }
}

/// The error number of an error of this module, whether or not the kernel added words.
pub fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| error.get_ref()?.downcast_ref::<Refusal>().map(|r| r.errno))
}

/// Reads an `NLMSG_ERROR` or an `NLMSG_DONE`: `Ok` for an acknowledgement.
pub fn acknowledgement(message: &Received<'_>) -> Result<(), Refusal> {
    const CAPPED: u16 = 0x100;
    const WITH_ATTRIBUTES: u16 = 0x200;
    let code = message
        .payload
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, |b: [u8; 4]| i32::from_ne_bytes(b));
    if code >= 0 {
        return Ok(());
    }
    let mut refusal = Refusal { errno: -code, text: None, offset: None };
    if message.flags & WITH_ATTRIBUTES != 0 {
        // An error quotes the request's header, and its whole body unless capped; a "done" quotes nothing.
        let quoted = match (message.kind, message.flags & CAPPED) {
            (KIND_DONE, _) => 0,
            (_, 0) => message
                .payload
                .get(4..8)
                .map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]).next_multiple_of(4) as usize),
            _ => HEADER,
        };
        for attribute in message.attributes(4 + quoted) {
            match attribute.kind {
                1 => refusal.text = Some(attribute.str()),
                2 => refusal.offset = Some(attribute.u32()),
                _ => {}
            }
        }
    }
    Err(refusal)
}

// === Sockets ===

/// A netlink socket of the calling thread's network namespace.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket of a protocol ([`ROUTE`], [`NETFILTER`]) with extended and capped acknowledgements.
    pub fn open(protocol: i32) -> io::Result<Socket> {
        // SAFETY: no pointer is passed; the result is checked before it is used.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: sockaddr_nl is plain data, for which all zeroes is a value: "the kernel chooses the port".
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        // SAFETY: the address outlives the call and its length is its size.
        let bound = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = Socket { fd, sequence: 1, buffer: Vec::new() };
        socket.option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
        socket.option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        Ok(socket)
    }

    /// Asks for a send buffer of so many bytes, beyond `net.core.wmem_max` where we are allowed to, and returns how large
    /// a message may be. The kernel doubles what it is asked for (socket(7)), and a netlink message must fit it whole.
    pub fn send_buffer(&self, bytes: usize) -> io::Result<usize> {
        let wanted = i32::try_from(bytes / 2 + 4096).unwrap_or(i32::MAX / 2);
        // SO_SNDBUFFORCE wants CAP_NET_ADMIN in the first user namespace.
        if self.option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, wanted).is_err() {
            self.option(libc::SOL_SOCKET, libc::SO_SNDBUF, wanted)?;
        }
        self.send_limit()
    }

    /// How large a message may be (`SO_SNDBUF` less the kernel's own 32 bytes).
    pub fn send_limit(&self) -> io::Result<usize> {
        Ok((self.get_option(libc::SOL_SOCKET, libc::SO_SNDBUF)? as usize).saturating_sub(32))
    }

    /// Asks for a receive buffer of so many bytes, beyond `net.core.rmem_max` where we are allowed to.
    pub fn receive_buffer(&self, bytes: usize) -> io::Result<()> {
        let wanted = i32::try_from(bytes / 2).unwrap_or(i32::MAX / 2);
        if self.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, wanted).is_err() {
            self.option(libc::SOL_SOCKET, libc::SO_RCVBUF, wanted)?;
        }
        Ok(())
    }

    /// Joins a multicast group (`RTNLGRP_…`, `NFNLGRP_…`); its messages come from [`Socket::receive`].
    pub fn subscribe(&self, group: u32) -> io::Result<()> {
        self.option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group as i32)
    }

    /// Leaves a multicast group; what is waiting already still comes.
    pub fn unsubscribe(&self, group: u32) -> io::Result<()> {
        self.option(libc::SOL_NETLINK, libc::NETLINK_DROP_MEMBERSHIP, group as i32)
    }

    /// A second handle of the same socket.
    pub fn duplicate(&self) -> io::Result<Socket> {
        Ok(Socket { fd: self.fd.try_clone()?, sequence: self.sequence, buffer: Vec::new() })
    }

    /// Asks the kernel to check the header of dumps and to filter by it (`NETLINK_GET_STRICT_CHK`).
    pub fn strict(&self) -> io::Result<()> {
        self.option(libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, 1)
    }

    /// A request that makes, changes or removes something: waits for the acknowledgement.
    pub fn request(&mut self, message: &mut Message) -> io::Result<()> {
        message.add_flags(ACK);
        self.exchange(message, &mut |_| {})
    }

    /// A request for one thing: gives the kernel's replies to `each` and waits for the acknowledgement.
    pub fn query(&mut self, message: &mut Message, mut each: impl FnMut(Received<'_>)) -> io::Result<()> {
        message.add_flags(ACK);
        self.exchange(message, &mut each)
    }

    /// A dump: gives each message to `each`. An error of kind `Interrupted` says that the kernel's state changed
    /// meanwhile and what was given is not a consistent whole: ask again.
    pub fn dump(&mut self, message: &mut Message, mut each: impl FnMut(Received<'_>)) -> io::Result<()> {
        message.add_flags(DUMP);
        self.exchange(message, &mut each)
    }

    /// A dump as owned messages, asked for again while the kernel says that it was interrupted.
    pub fn dump_all(&mut self, message: &mut Message) -> io::Result<Vec<Reply>> {
        loop {
            let mut all = Vec::new();
            match self.dump(message, |m| all.push(Reply { kind: m.kind, payload: m.payload.to_vec() })) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => return other.map(|()| all),
            }
        }
    }

    /// Sends bytes as they are, whole or not at all.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        loop {
            // SAFETY: the slice outlives the call.
            let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Waits for one datagram and gives its messages to `each`. `ENOBUFS` says that messages were lost.
    pub fn receive(&mut self, mut each: impl FnMut(Received<'_>)) -> io::Result<()> {
        let length = self.receive_raw(0)?;
        Messages::new(&self.buffer[..length]).for_each(&mut each);
        Ok(())
    }

    /// Like [`Socket::receive`], but returns `false` at once where nothing is waiting.
    pub fn try_receive(&mut self, mut each: impl FnMut(Received<'_>)) -> io::Result<bool> {
        match self.receive_raw(libc::MSG_DONTWAIT) {
            Ok(length) => {
                Messages::new(&self.buffer[..length]).for_each(&mut each);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until something can be received, at most so many milliseconds (negative: for ever).
    pub fn wait(&self, milliseconds: i32) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which outlives the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        match ready {
            0.. => Ok(ready > 0),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(error),
            },
        }
    }

    /// The next sequence number. They begin again before they could wrap within a batch.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = if self.sequence > u32::MAX / 2 { 1 } else { self.sequence + 1 };
        self.sequence
    }

    /// Leaves out sequence numbers that a batch uses.
    pub fn skip_sequences(&mut self, count: u32) {
        self.sequence = self.sequence.wrapping_add(count);
    }

    fn exchange(&mut self, message: &mut Message, each: &mut dyn FnMut(Received<'_>)) -> io::Result<()> {
        if message.overflowed() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a netlink attribute is longer than 64 KiB",
            ));
        }
        let sequence = self.next_sequence();
        message.sequence(sequence);
        self.send(message.as_bytes())?;
        let mut interrupted = false;
        loop {
            let length = self.receive_raw(0)?;
            for received in Messages::new(&self.buffer[..length]) {
                if received.sequence != sequence {
                    continue;
                }
                interrupted |= received.flags & DUMP_INTERRUPTED != 0;
                match received.kind {
                    KIND_ERROR | KIND_DONE => {
                        acknowledgement(&received)?;
                        if interrupted {
                            return Err(io::Error::new(
                                io::ErrorKind::Interrupted,
                                "the kernel's state changed during the dump",
                            ));
                        }
                        return Ok(());
                    }
                    _ => each(received),
                }
            }
        }
    }

    fn receive_raw(&mut self, flags: i32) -> io::Result<usize> {
        self.buffer.resize(RECEIVE, 0);
        loop {
            // SAFETY: the buffer is as long as said and outlives the call.
            let length = unsafe {
                libc::recv(self.fd.as_raw_fd(), self.buffer.as_mut_ptr().cast(), self.buffer.len(), flags)
            };
            if let Ok(length) = usize::try_from(length) {
                return Ok(length);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn option(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        // SAFETY: the value is an int that outlives the call, and its size is given.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                mem::size_of::<i32>() as libc::socklen_t,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn get_option(&self, level: i32, name: i32) -> io::Result<i32> {
        let mut value = 0i32;
        let mut length = mem::size_of::<i32>() as libc::socklen_t;
        // SAFETY: value and length outlive the call, and the length is the value's size.
        let result = unsafe {
            libc::getsockopt(self.fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_read_back_as_written() {
        let mut message = Message::new(16, CREATE);
        message.raw(&[7; 4]).str(1, "lo").nest(2, |m| {
            m.u8(1, 9).u16be(2, 80).u32(3, 0xdead_beef).u64be(4, 1 << 40);
        });
        let received = Messages::new(message.as_bytes()).next().expect("one message");
        assert_eq!((received.kind, received.flags), (16, CREATE | REQUEST));
        let attributes: Vec<_> = received.attributes(4).collect();
        assert_eq!(attributes[0].str(), "lo");
        let inside: Vec<_> = attributes[1].inside().collect();
        assert_eq!((inside[0].u8(), inside[1].u16be()), (9, 80));
        assert_eq!((inside[2].u32(), inside[3].u64be()), (0xdead_beef, 1 << 40));
    }

    #[test]
    fn malformed_bytes_end_the_iteration() {
        assert!(Attributes::new(&[3, 0, 1, 0, 9, 9, 9, 9]).next().is_none());
        assert!(Attributes::new(&[200, 0, 1, 0]).next().is_none());
        assert!(Messages::new(&[1; 20]).next().is_none());
        assert!(Messages::new(&[0; 16]).next().is_none());
    }

    #[test]
    fn an_attribute_beyond_its_length_field_is_refused() {
        let mut message = Message::new(16, 0);
        message.bytes(1, &vec![0; 70_000]);
        let mut socket = Socket::open(ROUTE).expect("a netlink socket");
        let error = socket.request(&mut message).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_loopback_link_is_in_a_dump_and_a_wrong_index_is_an_error() {
        const GETLINK: u16 = 18;
        let mut socket = Socket::open(ROUTE).expect("a netlink socket");
        let links = socket.dump_all(Message::new(GETLINK, 0).raw(&[0; 16])).expect("a dump of links");
        assert!(links.iter().any(|l| l.attributes(16).find(3).is_some_and(|name| name.str() == "lo")));
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let error = socket.request(Message::new(GETLINK, 0).raw(&header)).expect_err("no such link");
        assert_eq!(errno(&error), Some(libc::ENODEV));
    }
}
