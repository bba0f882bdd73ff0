//! A node with two pods, a client outside and another node's pods, each in a network namespace.

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

use portolan_dataplane::{Engine, Options};
use portolan_plan::model::{Family, Protocol};
use portolan_sys::link::{LinkEnd, Links, Route};
use portolan_sys::{namespace, trial};

/// How long to wait for an answer that isn't to come.
const SILENCE: Duration = Duration::from_millis(300);
/// How long to wait for an answer that is to come.
const PATIENCE: Duration = Duration::from_secs(3);
/// An address.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The port that all pods listen on.
pub const PORT: u16 = 8080;

/// What became of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A server answered: its address, and the address that it saw.
    Answer {
        /// Who.
        server: IpAddr,
        /// From whom, as it saw it.
        client: IpAddr,
    },
    /// Refused at once.
    Refused,
    /// The datagram of the node's own was refused or dropped while it was being sent: the sender sees EPERM for either.
    NotSent,
    /// Nothing came.
    Silence,
}

/// A network namespace.
#[derive(Debug)]
pub struct Host {
    netns: OwnedFd,
}

/// All of them.
#[derive(Debug)]
pub struct World {
    /// The node.
    pub router: Host,
    /// Outside.
    pub client: Host,
    /// Local pods.
    pub pods: [Host; 2],
    /// Another node with its pods.
    pub far: Host,
}

/// The address of the local pod of this number.
pub fn pod(family: Family, number: usize) -> IpAddr {
    match family {
        Family::V4 => ip(&format!("10.244.1.{}", 11 + number)),
        Family::V6 => ip(&format!("fd00:244:1::{:x}", 0x11 + number)),
    }
}

/// The address of the other node's pod of this number.
pub fn far_pod(family: Family, number: usize) -> IpAddr {
    match family {
        Family::V4 => ip(&format!("10.244.2.{}", 1 + number)),
        Family::V6 => ip(&format!("fd00:244:2::{:x}", 1 + number)),
    }
}

/// An address of the node: towards the client, the pods, the other node.
pub fn node(family: Family, towards: usize) -> IpAddr {
    let all = match family {
        Family::V4 => ["192.0.2.1", "10.244.1.1", "198.51.100.1"],
        Family::V6 => ["2001:db8:1::1", "fd00:244:1::1", "2001:db8:2::1"],
    };
    ip(all[towards])
}

/// The client's address.
pub fn client(family: Family) -> IpAddr {
    match family {
        Family::V4 => ip("192.0.2.100"),
        Family::V6 => ip("2001:db8:1::100"),
    }
}

/// How many pods the other node has.
pub const FAR_PODS: usize = 8;

impl Host {
    fn new() -> io::Result<Host> {
        let host = Host { netns: namespace::new_netns()? };
        let mut links = Links::open_in(host.netns.as_fd())?;
        links.set_up(1, true)?;
        host.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        host.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
        Ok(host)
    }

    /// Runs a function inside.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        namespace::in_netns(self.netns.as_fd(), f).expect("the namespace can be entered")
    }

    /// Sets a kernel setting of the namespace.
    pub fn sysctl(&self, name: &str, value: &str) -> io::Result<()> {
        self.run(|| fs::write(format!("/proc/sys/{name}"), value))
    }

    /// Gives a link an address and the node's address on it; routes the rest there.
    fn attach(&self, router: &Host, name: &str, own: [IpAddr; 2], gateways: [IpAddr; 2]) -> io::Result<()> {
        let mut there = Links::open_in(router.netns.as_fd())?;
        let mut here = Links::open_in(self.netns.as_fd())?;
        there.add_veth(&LinkEnd::named(name), &LinkEnd::named("eth0").in_netns(self.netns.as_fd()))?;
        let (inner, outer) = (here.index("eth0")?, there.index(name)?);
        here.set_up(inner, true)?;
        there.set_up(outer, true)?;
        for (own, gateway) in own.into_iter().zip(gateways) {
            let full = if own.is_ipv4() { 32 } else { 128 };
            here.add_address(inner, own, full)?;
            there.add_address(outer, gateway, full)?;
            here.add_route(&Route::to(gateway, full).on(inner))?;
            here.add_route(&Route::default_via(gateway).on(inner))?;
            there.add_route(&Route::to(own, full).on(outer))?;
        }
        Ok(())
    }

    /// Answers each connection and each datagram to an address with who asked.
    pub fn serve(&self, address: IpAddr, port: u16) {
        let at = SocketAddr::new(address, port);
        let (tcp, udp) = self
            .run(|| io::Result::Ok((TcpListener::bind(at)?, UdpSocket::bind(at)?)))
            .expect("the pod can listen");
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let peer = stream.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
                let _ = io::Write::write_all(&mut &stream, format!("{address} {peer}").as_bytes());
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{address} {}", peer.ip()).as_bytes(), peer);
            }
        });
    }

    /// Opens a connection and says what became of it. `quiet`: silence is what is expected.
    pub fn ask(&self, protocol: Protocol, address: IpAddr, port: u16, quiet: bool) -> Outcome {
        let patience = if quiet { SILENCE } else { PATIENCE };
        let at = SocketAddr::new(address, port);
        let answer = self.run(|| match protocol {
            Protocol::Tcp => ask_tcp(at, patience),
            _ => ask_udp(at, patience),
        });
        match answer {
            Ok(text) => {
                let (server, client) = text.split_once(' ').expect("two addresses");
                Outcome::Answer { server: ip(server), client: ip(client) }
            }
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionRefused => Outcome::Refused,
                io::ErrorKind::PermissionDenied => Outcome::NotSent,
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Outcome::Silence,
                _ => panic!("{protocol} to {at}: {error}"),
            },
        }
    }
}

fn ask_tcp(at: SocketAddr, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ask_udp(at: SocketAddr, patience: Duration) -> io::Result<String> {
    let any: SocketAddr = if at.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(at)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"who am I?")?;
    let mut buffer = [0; 128];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

impl World {
    /// Makes it. An error says what this machine lacks.
    pub fn new() -> io::Result<World> {
        let world = World {
            router: Host::new()?,
            client: Host::new()?,
            pods: [Host::new()?, Host::new()?],
            far: Host::new()?,
        };
        world.router.sysctl("net/ipv4/ip_forward", "1")?;
        world.router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let both = |address: &dyn Fn(Family) -> IpAddr| [address(Family::V4), address(Family::V6)];
        let nodes = |towards| both(&|family| node(family, towards));
        world.client.attach(&world.router, "out", both(&client), nodes(0))?;
        for (number, host) in world.pods.iter().enumerate() {
            host.attach(&world.router, &format!("pod{number}"), both(&|f| pod(f, number)), nodes(1))?;
        }
        let other = [ip("198.51.100.10"), ip("2001:db8:2::10")];
        world.far.attach(&world.router, "far", other, nodes(2))?;
        let mut links = Links::open_in(world.router.netns.as_fd())?;
        let (far, out) = (links.index("far")?, links.index("out")?);
        let mut far_links = Links::open_in(world.far.netns.as_fd())?;
        for (family, via) in [Family::V4, Family::V6].into_iter().zip(other) {
            let prefix = if family == Family::V4 { 24 } else { 64 };
            let network = match family {
                Family::V4 => ip("10.244.2.0"),
                Family::V6 => ip("fd00:244:2::"),
            };
            links.add_route(&Route::to(network, prefix).via(via).on(far))?;
            // The node needs some route to a cluster IP before it can choose a source address.
            links.add_route(&Route::default_via(client(family)).on(out))?;
            let full = if family == Family::V4 { 32 } else { 128 };
            for number in 0..FAR_PODS {
                far_links.add_address(1, far_pod(family, number), full)?;
            }
        }
        for family in [Family::V4, Family::V6] {
            for (number, host) in world.pods.iter().enumerate() {
                host.serve(pod(family, number), PORT);
            }
            for number in 0..FAR_PODS {
                world.far.serve(far_pod(family, number), PORT);
            }
        }
        Ok(world)
    }

    /// An engine on the node.
    pub fn engine(&self) -> Engine {
        self.router.run(|| Engine::open(Options::default())).expect("an engine")
    }
}

/// Runs a test in a world; says so where there can't be one.
pub fn world(promise: &str, test: impl FnOnce(&World)) {
    if !trial::goes_on(promise) {
        return;
    }
    match World::new() {
        Ok(world) => test(&world),
        Err(error) => portolan_sys::trial::skipped(promise, &format!("network namespaces: {error}")),
    }
}
