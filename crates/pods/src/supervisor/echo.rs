//! The built-in image `echo`: says who answers, over HTTP, TCP and UDP, and leaves only when clients have stopped coming.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use portolan_sys::process::Signals;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::protocol::EchoOrder;

/// A draining server leaves when no new client has come for so long: longer than the news of its leaving takes to reach
/// every node, and than UDP flows that were in use at that time are still led here.
const QUIET: Duration = Duration::from_millis(2500);
/// A client that has connected is waited for so long before it has sent anything.
const PATIENCE: Duration = Duration::from_secs(1);
/// An idle connection is closed after this time.
const IDLE: Duration = Duration::from_secs(60);
/// The rest of what a client sends is read for so long after the answer, so that the close is not a reset.
const LINGER: Duration = Duration::from_secs(1);
/// After its answer a client is left so long to close first. Who closes first keeps the connection's ports from being used
/// again for a minute (RFC 9293, TIME-WAIT); at the client that is harmless, because it picks its ports itself. Here, new
/// connections from behind one translated address would be refused for it.
const COURTESY: Duration = Duration::from_millis(20);
const MOST_CONNECTIONS: usize = 4096;
const LONGEST_REQUEST: usize = 64 * 1024;
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"];

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// Too few to tell.
    More,
    /// Not HTTP.
    Raw,
    /// A request of `length` bytes with its body.
    Request { method: String, path: String, protocol: String, keep: bool, length: usize },
}

/// Tells what a client has said.
fn understand(bytes: &[u8]) -> Heard {
    let could_be_http = METHODS.iter().any(|method| {
        let start = format!("{method} ");
        let known = bytes.len().min(start.len());
        bytes[..known] == start.as_bytes()[..known]
    });
    if !could_be_http {
        return Heard::Raw;
    }
    let first_line = bytes.iter().position(|byte| *byte == b'\n');
    let line = String::from_utf8_lossy(&bytes[..first_line.unwrap_or(bytes.len())]).trim_end().to_owned();
    let mut words = line.split(' ');
    let (method, path, protocol) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    if first_line.is_some() && !protocol.starts_with("HTTP/1.") {
        return Heard::Raw;
    }
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > LONGEST_REQUEST { Heard::Raw } else { Heard::More };
    };
    let mut keep = protocol != "HTTP/1.0";
    let mut body = 0;
    for header in String::from_utf8_lossy(&bytes[..head]).lines().skip(1) {
        let Some((name, value)) = header.split_once(':') else { continue };
        let value = value.trim().to_ascii_lowercase();
        match name.to_ascii_lowercase().as_str() {
            "connection" if value.contains("close") => keep = false,
            "connection" if value.contains("keep-alive") => keep = true,
            "content-length" => body = value.parse().unwrap_or(0),
            // The end of such a body isn't looked for: answer, and end with the connection.
            "transfer-encoding" => keep = false,
            _ => {}
        }
    }
    let length = head + 4 + body;
    if body > LONGEST_REQUEST {
        keep = false;
    } else if bytes.len() < length {
        return Heard::More;
    }
    Heard::Request {
        method: method.to_owned(),
        path: path.to_owned(),
        protocol: protocol.to_owned(),
        keep,
        length: length.min(bytes.len()),
    }
}

/// The answer's text.
fn describe(hostname: &str, peer: SocketAddr, local: SocketAddr, path: &str, protocol: &str) -> String {
    format!("hostname: {hostname}\npeer: {peer}\nlocal: {local}\npath: {path}\nprotocol: {protocol}\n")
}

/// An IPv4 address as such, even where a socket of both families shows it as ::ffff:a.b.c.d.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Listening,
    Answering { then_close: bool },
    Parting,
    Lingering,
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    heard: Vec<u8>,
    answer: Vec<u8>,
    phase: Phase,
    since: Instant,
    /// Whether anything was received yet.
    spoke: bool,
}

/// Who was served.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    /// A client, not a probe.
    client: bool,
    /// A probe, which heard that the server isn't ready because it drains.
    refused: bool,
}

impl Connection {
    fn wants(&self) -> PollFlags {
        match self.phase {
            Phase::Answering { .. } => PollFlags::OUT,
            Phase::Listening | Phase::Parting | Phase::Lingering => PollFlags::IN,
        }
    }

    fn expires(&self) -> Instant {
        self.since + if self.phase == Phase::Lingering { LINGER } else { IDLE }
    }

    /// Reads and writes as far as it goes without waiting; `false` when the connection is done.
    fn turn(&mut self, now: Instant, hostname: &str, draining: bool, served: &mut Served) -> bool {
        if self.phase == Phase::Parting && now >= self.since + COURTESY {
            let _ = self.stream.shutdown(Shutdown::Write);
            self.since = now;
            self.phase = Phase::Lingering;
        }
        loop {
            match self.step(hostname, draining, served) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }

    /// One read or write; `false` when the connection is done.
    fn step(&mut self, hostname: &str, draining: bool, served: &mut Served) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        match self.phase {
            Phase::Parting | Phase::Lingering => Ok(self.stream.read(&mut buffer)? > 0),
            Phase::Answering { then_close } => {
                let written = self.stream.write(&self.answer)?;
                self.answer.drain(..written);
                if self.answer.is_empty() {
                    self.since = Instant::now();
                    self.phase = if then_close { Phase::Parting } else { Phase::Listening };
                    if !then_close {
                        self.respond(hostname, draining, served);
                    }
                }
                Ok(true)
            }
            Phase::Listening => {
                let read = self.stream.read(&mut buffer)?;
                if read == 0 {
                    if self.spoke {
                        return Ok(false);
                    }
                    // Somebody who only listens, as `nc -N` does with no input.
                    self.answer_raw(hostname);
                    return Ok(true);
                }
                self.spoke = true;
                self.since = Instant::now();
                self.heard.extend_from_slice(&buffer[..read]);
                self.respond(hostname, draining, served);
                Ok(true)
            }
        }
    }

    fn answer_raw(&mut self, hostname: &str) {
        self.answer = format!("{hostname} {}\n", self.peer).into_bytes();
        self.phase = Phase::Answering { then_close: true };
    }

    /// Answers what has been heard, if it is complete.
    fn respond(&mut self, hostname: &str, draining: bool, served: &mut Served) {
        if self.heard.is_empty() {
            return;
        }
        match understand(&self.heard) {
            Heard::More => {}
            Heard::Raw => {
                served.client = true;
                self.heard.clear();
                self.answer_raw(hostname);
            }
            Heard::Request { method, path, protocol, keep, length } => {
                self.heard.drain(..length);
                let (status, body) = match path.as_str() {
                    // Not ready any more, so not serving: only then are UDP flows that conntrack still leads here
                    // taken elsewhere (EndpointSlice's `serving`), and it can become quiet.
                    "/readyz" if draining => {
                        served.refused = true;
                        ("503 Service Unavailable", "draining\n".to_owned())
                    }
                    "/readyz" | "/healthz" => ("200 OK", "ok\n".to_owned()),
                    path => {
                        served.client = true;
                        ("200 OK", describe(hostname, self.peer, self.local, path, &protocol))
                    }
                };
                let keep = keep && !draining;
                let connection = if keep { "keep-alive" } else { "close" };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
                    body.len()
                );
                self.answer = head.into_bytes();
                if method != "HEAD" {
                    self.answer.extend_from_slice(body.as_bytes());
                }
                self.phase = Phase::Answering { then_close: !keep };
            }
        }
    }
}

/// Both families where there are two, else IPv4.
fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A socket for each address, so that an answer leaves from the address that was asked.
fn receive(port: u16, addresses: &[IpAddr]) -> io::Result<Vec<UdpSocket>> {
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut sockets = Vec::new();
    for address in addresses.iter().chain(&loopback) {
        match UdpSocket::bind((*address, port)) {
            Ok(socket) => {
                socket.set_nonblocking(true)?;
                sockets.push(socket);
            }
            // A family that the pod doesn't have.
            Err(error) if address.is_loopback() && error.kind() != io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

/// The server, listening.
pub(crate) struct Server {
    signals: Signals,
    hostname: String,
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    connections: Vec<Connection>,
}

struct Drain {
    /// When the last client was served, or the first probe refused: until then nobody could know that it doesn't serve.
    last_client: Instant,
    refused: bool,
    end: Instant,
}

impl Server {
    /// Listens on every port.
    pub(crate) fn open(order: &EchoOrder) -> Result<Server, String> {
        let signals =
            Signals::block(&[Signal::TERM, Signal::INT]).map_err(|error| format!("signals: {error}"))?;
        let mut tcp = Vec::new();
        for port in order.tcp.iter().collect::<BTreeSet<_>>() {
            tcp.push(listen(*port).map_err(|error| format!("listen on TCP port {port}: {error}"))?);
        }
        let mut udp = Vec::new();
        for port in order.udp.iter().collect::<BTreeSet<_>>() {
            let sockets = receive(*port, &order.addresses);
            udp.extend(sockets.map_err(|error| format!("listen on UDP port {port}: {error}"))?);
        }
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        println!("{hostname} answers on TCP {:?} and UDP {:?}", order.tcp, order.udp);
        Ok(Server { signals, hostname, tcp, udp, connections: Vec::new() })
    }

    /// Serves until SIGTERM, and then as the order says. Returns the exit status.
    pub(crate) fn serve(mut self, order: &EchoOrder) -> i32 {
        match self.run(order) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("echo: {error}");
                1
            }
        }
    }

    fn run(&mut self, order: &EchoOrder) -> io::Result<()> {
        let mut drain: Option<Drain> = None;
        loop {
            self.wait(drain.is_some())?;
            let now = Instant::now();
            while self.signals.take()?.is_some() {
                if order.abrupt {
                    return Ok(());
                }
                if drain.is_none() {
                    println!("draining");
                    let grace = Duration::from_secs(order.grace);
                    let margin = Duration::from_secs(1).min(grace / 4);
                    drain = Some(Drain { last_client: now, refused: false, end: now + grace - margin });
                }
            }
            let served = self.turn(now, drain.is_some());
            if let Some(drain) = &mut drain {
                if served.client || served.refused && !drain.refused {
                    drain.last_client = now;
                }
                drain.refused |= served.refused;
                let busy = self.connections.iter().any(|connection| match connection.phase {
                    Phase::Listening => {
                        !connection.heard.is_empty() || !connection.spoke && now < connection.since + PATIENCE
                    }
                    Phase::Answering { .. } => true,
                    Phase::Parting | Phase::Lingering => false,
                });
                if now >= drain.end || now >= drain.last_client + QUIET && !busy {
                    println!("drained");
                    return Ok(());
                }
            }
        }
    }

    /// Waits until there is something to do.
    fn wait(&self, draining: bool) -> io::Result<()> {
        let mut all: Vec<(BorrowedFd<'_>, PollFlags)> = vec![(self.signals.as_fd(), PollFlags::IN)];
        if self.connections.len() < MOST_CONNECTIONS {
            all.extend(self.tcp.iter().map(|listener| (listener.as_fd(), PollFlags::IN)));
        }
        all.extend(self.udp.iter().map(|socket| (socket.as_fd(), PollFlags::IN)));
        all.extend(self.connections.iter().map(|connection| (connection.stream.as_fd(), connection.wants())));
        let mut all: Vec<PollFd<'_>> =
            all.into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        let parting = self.connections.iter().any(|connection| connection.phase == Phase::Parting);
        let timeout = if parting {
            // A client that waits for the end of the connection isn't kept waiting for long.
            Some(Timespec { tv_sec: 0, tv_nsec: 5_000_000 })
        } else if draining {
            Some(Timespec { tv_sec: 0, tv_nsec: 100_000_000 })
        } else if self.connections.is_empty() {
            None
        } else {
            Some(Timespec { tv_sec: 1, tv_nsec: 0 })
        };
        match poll(&mut all, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Everything that can be done without waiting.
    fn turn(&mut self, now: Instant, draining: bool) -> Served {
        let mut served = Served::default();
        for listener in &self.tcp {
            while self.connections.len() < MOST_CONNECTIONS
                && let Ok((stream, peer)) = listener.accept()
            {
                let (Ok(local), Ok(())) = (stream.local_addr(), stream.set_nonblocking(true)) else {
                    continue;
                };
                let _ = stream.set_nodelay(true);
                self.connections.push(Connection {
                    stream,
                    peer: plain(peer),
                    local: plain(local),
                    heard: Vec::new(),
                    answer: Vec::new(),
                    phase: Phase::Listening,
                    since: now,
                    spoke: false,
                });
            }
        }
        let mut datagram = [0; 2048];
        for socket in &self.udp {
            // An error here is an ICMP answer to an earlier datagram: nothing to do about it.
            while let Ok((_, peer)) = socket.recv_from(&mut datagram) {
                served.client = true;
                let _ = socket.send_to(format!("{} {peer}\n", self.hostname).as_bytes(), peer);
            }
        }
        let hostname = &self.hostname;
        self.connections.retain_mut(|connection| {
            connection.turn(now, hostname, draining, &mut served) && now < connection.expires()
        });
        served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &str, protocol: &str, keep: bool, length: usize) -> Heard {
        Heard::Request { method: method.into(), path: path.into(), protocol: protocol.into(), keep, length }
    }

    #[test]
    fn http_is_told_from_anything_else_by_its_first_line() {
        for (bytes, expected) in [
            ("", Heard::More),
            ("GE", Heard::More),
            ("GET / HTTP/1.1\r\n", Heard::More),
            ("GET / HTTP/1.1\r\n\r\n", request("GET", "/", "HTTP/1.1", true, 18)),
            ("GET /x?y HTTP/1.0\r\n\r\nGET", request("GET", "/x?y", "HTTP/1.0", false, 21)),
            ("HEAD / HTTP/1.1\r\nConnection: Close\r\n\r\n", request("HEAD", "/", "HTTP/1.1", false, 38)),
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nh", Heard::More),
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", request("POST", "/", "HTTP/1.1", true, 40)),
            ("hello", Heard::Raw),
            ("PING", Heard::Raw),
            ("GET your gun\n", Heard::Raw),
            ("\0\u{1}", Heard::Raw),
        ] {
            assert_eq!(understand(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn an_answer_names_host_and_addresses_one_a_line() {
        let peer = plain("[::ffff:10.0.0.1]:4444".parse().expect("an address"));
        let local = "[fd00::1]:80".parse().expect("an address");
        assert_eq!(
            describe("echo-1", peer, local, "/a", "HTTP/1.1"),
            "hostname: echo-1\npeer: 10.0.0.1:4444\nlocal: [fd00::1]:80\npath: /a\nprotocol: HTTP/1.1\n"
        );
    }
}
