//! Ports of the nodes on this machine's loopback address: plain forwarders, whose far side is the lab's client.
//!
//! These are the only processes of ours that packets of a Service pass through.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use portolan_sys::namespace;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use super::state::Published;
use super::topology::{Publish, Transport};

/// How long a node may take to answer before the next is asked. The network is one bridge in this machine.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long a UDP flow is remembered after its last datagram.
const IDLE: Duration = Duration::from_secs(60);

/// A network namespace to connect from.
#[derive(Clone, Debug)]
pub struct Origin(Arc<OwnedFd>);

impl Origin {
    /// This one.
    pub fn new(netns: OwnedFd) -> Origin {
        Origin(Arc::new(netns))
    }

    /// Connects: the socket is made in the namespace and stays there.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let new = || if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        namespace::in_netns(self.0.as_fd(), new)??.connect(to).await
    }

    fn datagrams(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = namespace::in_netns(self.0.as_fd(), || {
            let socket = std::net::UdpSocket::bind((any, 0))?;
            socket.connect(to)?;
            socket.set_nonblocking(true)?;
            io::Result::Ok(socket)
        })??;
        UdpSocket::from_std(socket)
    }
}

/// Where a forwarder leads: one of several addresses, in the order in which they are tried.
#[derive(Debug)]
struct Targets {
    origin: Origin,
    addresses: Vec<SocketAddr>,
    /// The one that answered last.
    last: AtomicUsize,
}

impl Targets {
    async fn connect(&self) -> Option<TcpStream> {
        let first = self.last.load(Ordering::Relaxed);
        for step in 0..self.addresses.len() {
            let index = (first + step) % self.addresses.len();
            if let Ok(Ok(stream)) =
                tokio::time::timeout(PATIENCE, self.origin.connect(self.addresses[index])).await
            {
                self.last.store(index, Ordering::Relaxed);
                return Some(stream);
            }
        }
        None
    }
}

/// Listens on 127.0.0.1.
pub async fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await
}

/// Forwards TCP connections until it is aborted. Where nobody answers the connection is reset, as it would be there.
pub fn forward_tcp(listener: TcpListener, origin: Origin, addresses: Vec<SocketAddr>) -> JoinHandle<()> {
    let targets = Arc::new(Targets { origin, addresses, last: AtomicUsize::new(0) });
    tokio::spawn(async move {
        // Owned by this task: whoever aborts the forwarder ends its connections too.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((near, _)) => {
                        let targets = targets.clone();
                        connections.spawn(async move { carry(near, &targets).await });
                    }
                    // Out of descriptors, most likely: those in use come back.
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
    })
}

async fn carry(mut near: TcpStream, targets: &Targets) {
    match targets.connect().await {
        Some(mut far) => {
            let _ = near.set_nodelay(true);
            let _ = far.set_nodelay(true);
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
        None => {
            let _ = near.set_zero_linger();
        }
    }
}

/// Forwards datagrams until it is aborted: a flow a sender, so that answers find back.
fn forward_udp(near: UdpSocket, origin: Origin, addresses: Vec<SocketAddr>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let near = Arc::new(near);
        let mut flows: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        // Owned by this task, as the port is: both are free when it is aborted.
        let mut answers = tokio::task::JoinSet::new();
        let mut buffer = vec![0; 65536];
        loop {
            let (length, from) = tokio::select! {
                Some(Ok(ended)) = answers.join_next() => {
                    flows.remove(&ended);
                    continue;
                }
                received = near.recv_from(&mut buffer) => match received {
                    Ok(received) => received,
                    Err(_) => continue,
                },
            };
            let far = match flows.get(&from) {
                Some(far) => far.clone(),
                None => {
                    let Some(far) = addresses.iter().find_map(|to| origin.datagrams(*to).ok()) else {
                        continue;
                    };
                    let far = Arc::new(far);
                    answers.spawn(answer(far.clone(), near.clone(), from));
                    flows.insert(from, far.clone());
                    far
                }
            };
            let _ = far.send(&buffer[..length]).await;
        }
    })
}

async fn answer(far: Arc<UdpSocket>, near: Arc<UdpSocket>, to: SocketAddr) -> SocketAddr {
    let mut buffer = vec![0; 65536];
    // An error ends the flow (a port unreachable, most likely); the next datagram begins another.
    while let Ok(Ok(length)) = tokio::time::timeout(IDLE, far.recv(&mut buffer)).await {
        let _ = near.send_to(&buffer[..length], to).await;
    }
    to
}

/// The forwarders that are there.
#[derive(Debug)]
pub struct Publisher {
    origin: Origin,
    /// The nodes' addresses, the primary family first.
    nodes: Vec<IpAddr>,
    running: BTreeMap<Publish, (Published, Option<JoinHandle<()>>)>,
}

/// A port to publish, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub publish: Publish,
    /// The Service whose NodePort it is.
    pub service: Option<String>,
    /// Of which families the nodes' addresses are to be: those of the Service.
    pub families: Vec<super::topology::IpFamily>,
}

impl Publisher {
    /// None yet.
    pub fn new(origin: Origin, nodes: Vec<IpAddr>) -> Publisher {
        Publisher { origin, nodes, running: BTreeMap::new() }
    }

    /// Publishes one port; what comes of it is kept in [`Publisher::list`].
    pub async fn add(&mut self, wanted: Wanted) -> io::Result<()> {
        let publish = wanted.publish;
        let addresses: Vec<SocketAddr> = wanted
            .families
            .iter()
            .flat_map(|family| self.nodes.iter().filter(|a| super::topology::IpFamily::of(**a) == *family))
            .map(|address| SocketAddr::new(*address, publish.port))
            .collect();
        let here = (Ipv4Addr::LOCALHOST, publish.host_port);
        let started = match publish.protocol {
            Transport::Tcp => {
                TcpListener::bind(here).await.map(|l| forward_tcp(l, self.origin.clone(), addresses))
            }
            Transport::Udp => {
                UdpSocket::bind(here).await.map(|s| forward_udp(s, self.origin.clone(), addresses))
            }
        };
        let problem = started.as_ref().err().map(|error| match error.kind() {
            io::ErrorKind::AddrInUse => format!("127.0.0.1:{} is in use", publish.host_port),
            _ => error.to_string(),
        });
        let result = match &started {
            Ok(_) => Ok(()),
            Err(error) => Err(io::Error::from(error.kind())),
        };
        let published = Published { publish, service: wanted.service, problem };
        self.running.insert(publish, (published, started.ok()));
        result
    }

    /// Makes the NodePorts that are published those wanted; returns whether anything changed. Ports asked for by
    /// --publish stay as they are.
    pub async fn follow(&mut self, wanted: Vec<Wanted>) -> bool {
        let gone: Vec<Publish> = self
            .running
            .iter()
            .filter(|(publish, (published, _))| {
                published.service.is_some()
                    && !wanted.iter().any(|w| w.publish == **publish && w.service == published.service)
            })
            .map(|(publish, _)| *publish)
            .collect();
        let mut changed = !gone.is_empty();
        for publish in gone {
            if let Some((_, Some(task))) = self.running.remove(&publish) {
                task.abort();
                // The port is free once the task is gone.
                let _ = task.await;
            }
        }
        for wanted in wanted {
            if !self.running.contains_key(&wanted.publish) {
                // A number that is taken is no failure of the lab; the list says so.
                let _ = self.add(wanted).await;
                changed = true;
            }
        }
        changed
    }

    /// The ports and what became of them.
    pub fn list(&self) -> Vec<Published> {
        self.running.values().map(|(published, _)| published.clone()).collect()
    }
}
