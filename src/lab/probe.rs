//! Real connections by ordinary sockets: who answers, or how it is refused.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::topology::Transport;

/// A connection that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(1);

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This host name was in the answer.
    Hostname(String),
    /// It was accepted by somebody who didn't say his name.
    Accepted,
    /// Reset, or "port unreachable".
    Refused,
    /// Nothing came.
    Silence,
    /// There is no way there.
    Unreachable,
    /// No connection could be tried, or it failed in a way that tells nothing of the network.
    Error(String),
}

/// What was seen by connecting again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The host names that answered.
    pub hostnames: BTreeSet<String>,
    /// The answer that wasn't a host name, and ended the sampling.
    pub other: Option<Answer>,
}

/// What to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// Where to connect to.
    pub target: SocketAddr,
    /// By which protocol.
    pub protocol: Transport,
    /// Whether the answer is read: without it a TCP connection that is accepted is enough.
    pub listen: bool,
    /// Connect until these have answered …
    pub until: BTreeSet<String>,
    /// … or so often.
    pub most: usize,
}

/// Connects from the calling thread's network namespace until everyone looked for has answered, a connection fails, or it
/// has been often enough.
pub fn search(search: &Search) -> Seen {
    let mut seen = Seen::default();
    for _ in 0..search.most.max(1) {
        match connect(search.target, search.protocol, search.listen) {
            Answer::Hostname(name) => {
                seen.hostnames.insert(name);
                if search.until.is_subset(&seen.hostnames) {
                    break;
                }
            }
            other => {
                seen.other = Some(other);
                break;
            }
        }
    }
    seen
}

/// One connection, from a new port: a new choice of backend.
fn connect(target: SocketAddr, protocol: Transport, listen: bool) -> Answer {
    let result = match protocol {
        Transport::Tcp => tcp(target, listen),
        Transport::Udp => udp(target),
    };
    result.unwrap_or_else(|error| match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Answer::Refused,
        // A reject in the output path is EPERM to a sender of datagrams, and the port-unreachable comes after it.
        ErrorKind::PermissionDenied if protocol == Transport::Udp => Answer::Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Answer::Silence,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Answer::Unreachable,
        _ => Answer::Error(error.to_string()),
    })
}

fn tcp(target: SocketAddr, listen: bool) -> io::Result<Answer> {
    let deadline = Instant::now() + LIMIT;
    let mut stream = TcpStream::connect_timeout(&target, LIMIT)?;
    if !listen {
        return Ok(Answer::Accepted);
    }
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let (mut heard, mut part) = (Vec::new(), [0; 4096]);
    while heard.len() < 65536 {
        let left = deadline.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut part)? {
            0 => break,
            length => heard.extend_from_slice(&part[..length]),
        }
    }
    let text = String::from_utf8_lossy(&heard);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    // `echo` begins its answer with a line `hostname: NAME`.
    match body.lines().next().and_then(|line| line.strip_prefix("hostname:")) {
        Some(name) => Ok(Answer::Hostname(name.trim().to_owned())),
        None => Ok(Answer::Accepted),
    }
}

fn udp(target: SocketAddr) -> io::Result<Answer> {
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send(b"who answers?\n")?;
    let mut heard = [0; 65536];
    let length = socket.recv(&mut heard)?;
    // `echo` answers a datagram with `NAME PEER`.
    match String::from_utf8_lossy(&heard[..length]).split_whitespace().next() {
        Some(name) => Ok(Answer::Hostname(name.to_owned())),
        None => Ok(Answer::Accepted),
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Answer::Hostname(name) => f.write_str(name),
            Answer::Accepted => f.write_str("accepted"),
            Answer::Refused => f.write_str("refused"),
            Answer::Silence => f.write_str("no answer"),
            Answer::Unreachable => f.write_str("unreachable"),
            Answer::Error(error) => f.write_str(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn look(target: SocketAddr, protocol: Transport) -> Seen {
        search(&Search { target, protocol, listen: true, until: BTreeSet::from(["a".into()]), most: 3 })
    }

    #[test]
    fn the_answers_first_line_names_who_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let target = listener.local_addr().expect("its address");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            let _ = stream.read(&mut [0; 1024])?;
            stream.write_all(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nhostname: a\npeer: b\n")
        });
        assert_eq!(
            look(target, Transport::Tcp),
            Seen { hostnames: BTreeSet::from(["a".into()]), other: None }
        );
        server.join().expect("no panic").expect("served");
    }

    #[test]
    fn a_refusal_is_told_from_silence() {
        let closed =
            TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port that was free");
        assert_eq!(look(closed, Transport::Tcp).other, Some(Answer::Refused));
        let closed =
            UdpSocket::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port that was free");
        assert_eq!(look(closed, Transport::Udp).other, Some(Answer::Refused));
        let silent = UdpSocket::bind("127.0.0.1:0").expect("a socket that says nothing");
        let target = silent.local_addr().expect("its address");
        assert_eq!(look(target, Transport::Udp).other, Some(Answer::Silence));
    }
}
