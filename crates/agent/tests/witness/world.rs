//! The world that flows are sent through: packets put in at their origin, and taken out wherever they arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use portolan_plan::model::{Backend, Family, Protocol};
use portolan_plan::trace::Origin;
use portolan_sys::link::Links;
use portolan_sys::packet::{PacketSocket, wait_readable};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::draw::Drawn;
pub use crate::stage::{FAR_PODS, far_pod, node, pod};
use crate::stage::{Host, World, client, ip};
use crate::wire::{self, First, Seen, What};

/// All addresses of the outside client.
pub fn outsiders(family: Family) -> [IpAddr; 4] {
    match family {
        Family::V4 => [client(family), ip("192.0.2.101"), ip("192.0.2.140"), ip("172.31.7.7")],
        Family::V6 => [client(family), ip("2001:db8:1::101"), ip("2001:db8:1::140"), ip("2001:db8:31::7")],
    }
}

/// The other node's own address.
pub fn far_node(family: Family) -> IpAddr {
    match family {
        Family::V4 => ip("198.51.100.10"),
        Family::V6 => ip("2001:db8:2::10"),
    }
}

/// What became of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// Where its first packet arrived, and the source that it had there.
    pub arrived: Option<(Backend, IpAddr)>,
    /// It was answered as if by the address that it was sent to.
    pub answered: bool,
    /// It was refused, with nobody having got it.
    pub refused: bool,
}

/// `ETH_P_ALL`
const ALL: u16 = 3;
/// How long a packet that is to come is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many are sent before the ears are emptied, which hold some 200 packets.
const AT_ONCE: usize = 8;
/// Where the last packet of a round is sent: a port that nobody listens on, at a pod that answers "unreachable".
const FENCE_PORT: u16 = 9;

/// The world, with an ear in each place where a packet may arrive.
pub struct Wires {
    pub world: World,
    ears: Vec<(Ear, PacketSocket)>,
    senders: BTreeMap<Place, [OwnedFd; 2]>,
    fences: u32,
}

/// A place that packets arrive at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ear {
    /// Where pods are.
    Pods,
    /// Where clients are and no pods.
    Client,
    /// The node, where forwarded packets pass through as well.
    Node,
}

/// A place that packets are sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Node,
    Client,
    Far,
    Pod(usize),
}

impl Place {
    fn of(origin: Origin) -> Place {
        let source = origin.address();
        let family = Family::of(source);
        match origin {
            Origin::Node(_) => Place::Node,
            Origin::Pod(_) => Place::Pod(usize::from(source == pod(family, 1))),
            Origin::Outside(_) if outsiders(family).contains(&source) => Place::Client,
            Origin::Outside(_) => Place::Far,
        }
    }

    fn host(self, world: &World) -> &Host {
        match self {
            Place::Node => &world.router,
            Place::Client => &world.client,
            Place::Far => &world.far,
            Place::Pod(number) => &world.pods[number],
        }
    }
}

impl Wires {
    pub fn new(world: World) -> io::Result<Wires> {
        // Refusals are counted here, so none may be held back; kernels differ in which of these they have.
        for (name, value) in [
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv4/icmp_ratemask", "0"),
            ("net/ipv4/icmp_msgs_per_sec", "1000000"),
            ("net/ipv4/icmp_msgs_burst", "1000000"),
            ("net/ipv6/icmp/ratelimit", "0"),
            ("net/ipv6/icmp/ratemask", "\n"),
        ] {
            for host in [&world.router, &world.far, &world.pods[0], &world.pods[1]] {
                let _ = host.sysctl(name, value);
            }
        }
        world.client.run(|| {
            let mut links = Links::open()?;
            for family in [Family::V4, Family::V6] {
                for address in outsiders(family).into_iter().skip(1) {
                    links.add_address(1, address, if address.is_ipv4() { 32 } else { 128 })?;
                }
            }
            io::Result::Ok(())
        })?;
        let mut ears = Vec::new();
        let mut listen = |host: &Host, ear: Ear, link: Option<&str>| -> io::Result<()> {
            let socket = host.run(|| {
                // No name: all links.
                let index = link.map_or(Ok(0), |name| Links::open()?.index(name))?;
                PacketSocket::open(index, ALL, &[])
            })?;
            ears.push((ear, socket));
            Ok(())
        };
        listen(&world.pods[0], Ear::Pods, Some("eth0"))?;
        listen(&world.pods[1], Ear::Pods, Some("eth0"))?;
        listen(&world.far, Ear::Pods, Some("eth0"))?;
        listen(&world.client, Ear::Client, Some("eth0"))?;
        listen(&world.router, Ear::Node, None)?;
        let mut senders = BTreeMap::new();
        for place in [Place::Node, Place::Client, Place::Far, Place::Pod(0), Place::Pod(1)] {
            let sockets = place.host(&world).run(|| {
                [AddressFamily::INET, AddressFamily::INET6].map(|family| {
                    // IPPROTO_RAW: the caller writes the IP header, for IPv6 too.
                    let raw = NonZeroU32::new(255).map(rustix::net::Protocol::from_raw);
                    rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, raw)
                })
            });
            let [v4, v6] = sockets;
            senders.insert(place, [v4?, v6?]);
        }
        Ok(Wires { world, ears, senders, fences: 0 })
    }

    /// Sends the first packets of flows and says what became of each. `expected`: whether a flow is to arrive or to be
    /// refused; such flows are waited for, the others until whatever was sent after them has arrived.
    pub fn send(&mut self, flows: &[Drawn], expected: &dyn Fn(&Drawn) -> bool) -> Vec<Fate> {
        let mut fates = vec![Fate::default(); flows.len()];
        let by_number: BTreeMap<u32, usize> = flows.iter().enumerate().map(|(i, f)| (f.number, i)).collect();
        let to = |drawn: &Drawn| SocketAddr::new(drawn.flow.destination, drawn.flow.port);
        let by_path: BTreeMap<_, _> =
            flows.iter().enumerate().map(|(i, d)| ((d.flow.protocol, d.source, to(d)), i)).collect();
        // An ear that is full of what was said before hears nothing new.
        self.drain(&by_number, &by_path, &mut fates);
        for few in flows.chunks(AT_ONCE) {
            for drawn in few {
                let place = Place::of(drawn.flow.from);
                self.put(place, drawn.source, to(drawn), drawn.flow.protocol, drawn.number);
            }
            self.drain(&by_number, &by_path, &mut fates);
        }
        let mut fences = BTreeSet::new();
        for place in flows.iter().map(|f| Place::of(f.flow.from)).collect::<BTreeSet<_>>() {
            for family in [Family::V4, Family::V6] {
                fences.insert(self.fence(place, family));
            }
        }
        let until = Instant::now() + PATIENCE;
        loop {
            for (ear, number) in self.drain(&by_number, &by_path, &mut fates) {
                if ear == Ear::Pods {
                    fences.remove(&number);
                }
            }
            let done = |(drawn, fate): (&Drawn, &Fate)| {
                !expected(drawn)
                    || fate.refused
                    || fate.arrived.is_some() && (fate.answered || !is_answered(drawn))
            };
            if fences.is_empty() && flows.iter().zip(&fates).all(done) {
                // What arrived at one ear while another was asked.
                self.drain(&by_number, &by_path, &mut fates);
                return fates;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                assert!(fences.is_empty(), "packets that no table has anything to do with don't arrive");
                return fates;
            }
            let fds: Vec<_> = self.ears.iter().map(|(_, e)| e.as_fd()).collect();
            let _ = wait_readable(&fds, left);
        }
    }

    fn put(
        &self,
        place: Place,
        source: SocketAddr,
        destination: SocketAddr,
        protocol: Protocol,
        number: u32,
    ) {
        self.put_raw(place, destination, &wire::packet(&First { source, destination, protocol, number }));
    }

    fn put_raw(&self, place: Place, destination: SocketAddr, packet: &[u8]) {
        let socket = &self.senders[&place][usize::from(destination.is_ipv6())];
        // A raw socket for IPv6 takes no port.
        let to = SocketAddr::new(destination.ip(), 0);
        // The node's own packets that are dropped or refused: EPERM. Those without a route are nobody's fault here.
        let _ = rustix::net::sendto(socket, packet, SendFlags::empty(), &to);
    }

    /// Sends one packet from a pod and gives all that clients and pods hear of it and its answers.
    pub fn overhear(&mut self, from: &First, packet: &[u8]) -> Vec<Seen> {
        let mut heard = Vec::new();
        self.listen(&mut |_, _| {});
        let place = Place::of(Origin::Pod(from.source.ip()));
        self.put_raw(place, from.destination, packet);
        let family = Family::of(from.destination.ip());
        let mut fences = vec![self.fence(place, family)];
        let until = Instant::now() + PATIENCE;
        while !fences.is_empty() {
            self.listen(&mut |ear, seen| match seen.what {
                What::First(Protocol::Udp, number) if ear == Ear::Pods => fences.retain(|f| *f != number),
                _ if ear != Ear::Node => heard.push(seen),
                _ => {}
            });
            assert!(Instant::now() < until, "a packet that no table has anything to do with doesn't arrive");
        }
        heard
    }

    /// Sends a packet that is to arrive, after all others of its place and family.
    fn fence(&mut self, place: Place, family: Family) -> u32 {
        self.fences += 1;
        let number = u32::MAX - self.fences;
        let source = match place {
            Place::Node => node(family, 0),
            Place::Client => outsiders(family)[0],
            Place::Far => far_node(family),
            Place::Pod(number) => pod(family, number),
        };
        let at = if place == Place::Pod(0) || place == Place::Far { pod(family, 1) } else { pod(family, 0) };
        let port = 33_000 + (self.fences % 10_000) as u16;
        self.put(place, (source, port).into(), (at, FENCE_PORT).into(), Protocol::Udp, number);
        number
    }

    /// Empties the ears.
    fn listen(&self, each: &mut dyn FnMut(Ear, Seen)) {
        let mut buffer = [0; 2048];
        for (ear, socket) in &self.ears {
            while let Ok(Some(frame)) = socket.receive(&mut buffer) {
                if let Some(seen) = frame.get(14..).and_then(wire::read) {
                    each(*ear, seen);
                }
            }
        }
    }

    /// Takes in what has arrived. Gives the numbers of first packets that belong to none of these flows.
    fn drain(
        &self,
        by_number: &BTreeMap<u32, usize>,
        by_path: &BTreeMap<(Protocol, SocketAddr, SocketAddr), usize>,
        fates: &mut [Fate],
    ) -> Vec<(Ear, u32)> {
        let mut others = Vec::new();
        self.listen(&mut |ear, seen| {
            // An answer goes the way back: from where the flow was sent to.
            let back = |protocol| by_path.get(&(protocol, seen.destination, seen.source)).copied();
            match seen.what {
                What::First(_, number) => match by_number.get(&number) {
                    Some(&i) if ear == Ear::Pods => {
                        let at = Backend { address: seen.destination.ip(), port: seen.destination.port() };
                        fates[i].arrived = Some((at, seen.source.ip()));
                    }
                    Some(_) => {}
                    None => others.push((ear, number)),
                },
                What::Answer(protocol) => {
                    if let Some(i) = back(protocol) {
                        fates[i].answered = true;
                    }
                }
                What::Reset => {
                    if let Some(i) = back(Protocol::Tcp) {
                        (fates[i].answered, fates[i].refused) = (true, true);
                    }
                }
                What::Unreachable(protocol, from, to) => {
                    if let Some(&i) = by_path.get(&(protocol, from, to)) {
                        (fates[i].answered, fates[i].refused) = (true, true);
                    }
                }
            }
        });
        // Refused by the backend itself, which is somebody else's decision.
        for fate in fates {
            fate.refused &= fate.arrived.is_none();
        }
        others
    }
}

/// Whether a first packet that has arrived is answered where it can be heard: the node's own ear hears answers before they are
/// translated back, and there is nobody to answer SCTP.
pub fn is_answered(drawn: &Drawn) -> bool {
    !matches!(drawn.flow.from, Origin::Node(_)) && drawn.flow.protocol != Protocol::Sctp
}
