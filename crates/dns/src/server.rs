//! UDP and TCP: what comes in is read, answered from the zone, or asked of upstreams; the answer leaves from the address asked.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::answer::{self, Answer, Said};
use crate::forward::Forwarder;
use crate::message::{self, Packet, Query, Rcode, SMALL, TCP_LIMIT, UDP_LIMIT};
use crate::meters::Meters;
use crate::zone::{Options, Zone};

/// A connection on which nothing is asked for so long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// How many connections are served at a time: who opens more waits.
const CONNECTIONS: usize = 512;
/// How long what is under way may take when the server ends.
const DRAIN: Duration = Duration::from_secs(2);
/// How much may wait in a socket: a burst of as many questions as pods start at once.
const QUEUE: usize = 1 << 20;

/// What a server is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens, over UDP and over TCP.
    pub listen: Vec<SocketAddr>,
    /// Whom it asks for names of others, in this order.
    pub forward: Vec<SocketAddr>,
    /// The zone.
    pub zone: Options,
    /// How many sockets share the datagrams of each address.
    pub sockets: usize,
}

/// What all tasks share.
#[derive(Debug)]
struct Shared {
    zone: Arc<RwLock<Zone>>,
    forwarder: Option<Forwarder>,
    meters: Arc<Meters>,
}

/// The tasks under way: when the last of them has ended, nobody holds the other end any more.
#[derive(Clone, Debug)]
struct Tasks(mpsc::Sender<Infallible>);

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let held = self.0.clone();
        tokio::spawn(async move {
            task.await;
            drop(held);
        });
    }
}

/// A server that has its ports.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Server {
    /// Opens the ports. Needs a Tokio runtime.
    ///
    /// # Errors
    ///
    /// A port can't be opened; the error names its address.
    pub fn bind(config: Config) -> io::Result<Server> {
        let meters = Arc::new(Meters::default());
        let forwarder = (!config.forward.is_empty()).then(|| Forwarder::new(config.forward, meters.clone()));
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for at in config.listen {
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{at}: {error}"));
            // TCP first: it is refused where another server has the port, while datagrams would be shared with it.
            let listener = listen(at).map_err(named)?;
            let at = listener.local_addr()?;
            for _ in 0..config.sockets.max(1) {
                udp.push(datagrams(at).map_err(named)?);
            }
            tcp.push(listener);
        }
        let zone = Arc::new(RwLock::new(Zone::new(config.zone)));
        Ok(Server { shared: Arc::new(Shared { zone, forwarder, meters }), udp, tcp })
    }

    /// Where it listens.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok())
    }

    /// The zone that it answers from.
    pub fn zone(&self) -> Arc<RwLock<Zone>> {
        self.shared.zone.clone()
    }

    /// What it counts.
    pub fn meters(&self) -> Arc<Meters> {
        self.shared.meters.clone()
    }

    /// Answers until `stop`, and then what was asked by then.
    pub async fn run(self, stop: CancellationToken) {
        let (held, mut ended) = mpsc::channel(1);
        let tasks = Tasks(held);
        for socket in self.udp {
            let (shared, socket, stop) = (self.shared.clone(), Arc::new(socket), stop.clone());
            let asking = tasks.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = serve_udp(shared, socket, asking) => {}
                }
            });
        }
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        for listener in self.tcp {
            let (shared, stop, room) = (self.shared.clone(), stop.clone(), room.clone());
            let connections = tasks.clone();
            tasks.spawn(async move {
                let told = stop.clone();
                tokio::select! {
                    () = told.cancelled() => {}
                    () = serve_tcp(shared, listener, room, connections, stop) => {}
                }
            });
        }
        stop.cancelled().await;
        drop(tasks);
        let _ = timeout(DRAIN, ended.recv()).await;
    }
}

fn family(at: SocketAddr) -> AddressFamily {
    if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// Listens there, on that family alone.
fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family(at), SocketType::STREAM, flags, None)?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, 1024)?;
    TcpListener::from_std(socket.into())
}

/// One of the sockets that share the datagrams of an address.
fn datagrams(at: SocketAddr) -> io::Result<UdpSocket> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family(at), SocketType::DGRAM, flags, None)?;
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sockopt::set_socket_reuseport(&socket, true)?;
    // The kernel gives what it may.
    let _ = sockopt::set_socket_recv_buffer_size(&socket, QUEUE);
    portolan_sys::datagram::tell_destination(socket.as_fd(), at.is_ipv6())?;
    rustix::net::bind(&socket, &at)?;
    UdpSocket::from_std(socket.into())
}

/// What is to be done about a packet.
enum Step {
    /// The answer is written.
    Send,
    /// Nothing.
    Ignore,
    /// Others are to be asked first.
    Ask(Box<(Query, Answer)>),
}

impl Shared {
    /// Answers a packet from the zone, if that can be done.
    fn answer(&self, packet: &[u8], tcp: bool, out: &mut Vec<u8>) -> Step {
        let query = match message::read(packet) {
            Packet::Query(query) => query,
            Packet::Bad(header) => {
                self.meters.asked(tcp);
                out.clear();
                out.extend(header);
                return Step::Send;
            }
            Packet::Ignored => {
                self.meters.ignored();
                return Step::Ignore;
            }
        };
        self.meters.asked(tcp);
        let said = answer::answer(&self.zone.read(), &query);
        let answer = match said {
            Said::Answer(answer) if answer.chase.is_none() || self.forwarder.is_none() => answer,
            Said::Elsewhere(answer) if self.forwarder.is_none() => answer,
            Said::Answer(answer) => return Step::Ask(Box::new((*query, answer))),
            // What upstreams say takes its place.
            Said::Elsewhere(_) => return Step::Ask(Box::new((*query, answer::plain(Rcode::ServFail)))),
        };
        answer::compose(out, &query, &answer, None, limit(&query, tcp), self.forwarder.is_some());
        Step::Send
    }

    /// Answers a question with what upstreams say.
    async fn ask(&self, query: &Query, answer: &Answer, tcp: bool, out: &mut Vec<u8>) {
        let limit = limit(query, tcp);
        let Some(forwarder) = &self.forwarder else { return };
        match answer.chase {
            Some(target) => {
                let asked = Query { name: target, lower: target.lower(), ..*query };
                let others = forwarder.resolve(&asked).await;
                answer::compose(out, query, answer, others.as_deref(), limit, true);
            }
            None => match forwarder.resolve(query).await {
                Some(others) => message::relay(out, &others, query, limit),
                None => answer::compose(out, query, answer, None, limit, true),
            },
        }
    }
}

/// How long an answer may be.
fn limit(query: &Query, tcp: bool) -> usize {
    match query.edns {
        _ if tcp => TCP_LIMIT,
        Some(edns) => usize::from(edns.size).clamp(SMALL, UDP_LIMIT),
        None => SMALL,
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>, asking: Tasks) {
    let (mut buffer, mut out) = (vec![0; 4096], Vec::with_capacity(2 * UDP_LIMIT));
    loop {
        let received = socket
            .async_io(Interest::READABLE, || portolan_sys::datagram::receive(socket.as_fd(), &mut buffer))
            .await;
        let (length, client, asked) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        match shared.answer(&buffer[..length], false, &mut out) {
            Step::Send => send(&shared, &socket, &out, client, asked).await,
            Step::Ignore => {}
            Step::Ask(question) => {
                let (shared, socket) = (shared.clone(), socket.clone());
                asking.spawn(async move {
                    let (query, answer) = *question;
                    let mut out = Vec::new();
                    shared.ask(&query, &answer, false, &mut out).await;
                    send(&shared, &socket, &out, client, asked).await;
                });
            }
        }
    }
}

async fn send(shared: &Shared, socket: &UdpSocket, out: &[u8], client: SocketAddr, from: Option<IpAddr>) {
    let sending = || portolan_sys::datagram::send(socket.as_fd(), out, client, from);
    if let Err(error) = socket.async_io(Interest::WRITABLE, sending).await {
        // The client is gone, or there is no way to it: it asks again if it is still there.
        tracing::debug!(%error, %client, "answering");
    }
    shared.meters.answered(out.get(3).copied().unwrap_or_default());
}

async fn serve_tcp(
    shared: Arc<Shared>,
    listener: TcpListener,
    room: Arc<Semaphore>,
    connections: Tasks,
    stop: CancellationToken,
) {
    while let Ok(permit) = room.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors: those that are open must end first.
            Err(error) => {
                tracing::debug!(%error, "accepting");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, stop) = (shared.clone(), stop.clone());
        connections.spawn(async move {
            let _permit = permit;
            // A client that hangs up has what it wanted, or no longer wants it.
            let _ = connection(&shared, stream, &stop).await;
        });
    }
}

async fn connection(shared: &Shared, mut stream: TcpStream, stop: &CancellationToken) -> io::Result<()> {
    let _ = stream.set_nodelay(true);
    let (mut packet, mut out) = (Vec::new(), Vec::new());
    loop {
        let read = async {
            packet.resize(usize::from(stream.read_u16().await?), 0);
            stream.read_exact(&mut packet).await
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            read = timeout(IDLE, read) => read??,
        };
        match shared.answer(&packet, true, &mut out) {
            Step::Send => {}
            Step::Ignore => return Ok(()),
            Step::Ask(question) => shared.ask(&question.0, &question.1, true, &mut out).await,
        }
        shared.meters.answered(out.get(3).copied().unwrap_or_default());
        let mut framed = Vec::with_capacity(out.len() + 2);
        framed.extend((out.len() as u16).to_be_bytes());
        framed.extend(&out);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
