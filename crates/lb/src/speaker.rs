//! The thread that listens, answers and takes over: a thin shell around `membership` and `elect`.
//!
//! A thread of its own and `poll`, not a task: an answer to ARP must not wait behind anything else of the process.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use portolan_sys::link::Links;
use portolan_sys::packet::{self, ETHERTYPE_ARP, ETHERTYPE_IPV6, PacketSocket};

use crate::elect::announcer;
use crate::frame::{self, Mac, Question};
use crate::heartbeat::{LONGEST, Seal};
use crate::membership::{DEAD_AFTER, HEARTBEAT_INTERVAL, Heartbeat, Membership};

/// UDP port of heartbeats.
pub const HEARTBEAT_PORT: u16 = 7472;

/// Who comes, or whose link is back, hears first who is there: else it would take every address for a moment. All living
/// nodes are heard in this time, if no more than one heartbeat of each is lost.
const LISTEN: Duration = Duration::from_millis(220);

/// Gratuitous announcements after a take-over are repeated at these times: the first may be lost on a busy switch, and a
/// host that was just asking may cache the previous announcer's answer a moment later.
const REPEAT_AFTER: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(150), Duration::from_millis(600), Duration::from_millis(2000)];

/// How the speaker is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// The link on which addresses are announced.
    pub interface: String,
    /// The secret shared by the nodes' speakers.
    pub secret: Vec<u8>,
}

/// What the cluster wants of its speakers, as this node last heard from the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The other nodes, and where their speakers listen.
    pub peers: BTreeMap<String, IpAddr>,
    /// Load-balancer addresses, each with the nodes that may announce it.
    pub addresses: BTreeMap<IpAddr, BTreeSet<String>>,
}

/// The addresses that this node announces at a moment: pure.
pub fn ours(node: &str, wanted: &Wanted, alive: impl Fn(&str) -> bool) -> BTreeSet<IpAddr> {
    let announces = |(address, eligible): (&IpAddr, &BTreeSet<String>)| {
        let candidates = eligible.iter().map(String::as_str).filter(|n| *n == node || alive(n));
        (announcer(*address, candidates) == Some(node)).then_some(*address)
    };
    wanted.addresses.iter().filter_map(announces).collect()
}

/// A running speaker. Dropping it tells the others that this node leaves, and stops answering.
#[derive(Debug)]
pub struct Speaker {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wanted: Mutex<Arc<Wanted>>,
    announced: Mutex<BTreeSet<IpAddr>>,
    stop: AtomicBool,
    wake: UnixDatagram,
}

impl Speaker {
    /// Starts the thread, in the caller's network namespace.
    pub fn start(config: Config) -> io::Result<Speaker> {
        let (wake, woken) = UnixDatagram::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            wanted: Mutex::default(),
            announced: Mutex::default(),
            stop: AtomicBool::new(false),
            wake,
        });
        let mut run = Run::open(config, woken)?;
        let with = shared.clone();
        let thread = std::thread::Builder::new().name("lb-speaker".into()).spawn(move || {
            // A machine that is busy is not dead: a heartbeat that waits half a second for a processor moves addresses, and
            // with them every connection through them. The thread does little, and what it does can't wait.
            if let Err(error) = portolan_sys::process::run_first() {
                tracing::debug!(%error, "heartbeats wait for a processor as everything else does");
            }
            run.run(&with);
        })?;
        Ok(Speaker { shared, thread: Some(thread) })
    }

    /// Says what the cluster wants now.
    pub fn want(&self, wanted: Wanted) {
        *self.shared.wanted.lock() = Arc::new(wanted);
        self.wake();
    }

    /// The addresses that this node announces now.
    pub fn announced(&self) -> BTreeSet<IpAddr> {
        self.shared.announced.lock().clone()
    }

    fn wake(&self) {
        // A full buffer means that the thread is about to wake anyhow.
        let _ = self.shared.wake.send(&[0]);
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Run {
    config: Config,
    seal: Seal,
    incarnation: u64,
    sequence: u64,
    woken: UnixDatagram,
    beats: Vec<UdpSocket>,
    groups: Option<UdpSocket>,
    links: Links,
    link: Link,
    membership: Membership,
    announced: BTreeSet<IpAddr>,
    /// Gratuitous announcements still to be sent.
    due: BTreeSet<(Instant, IpAddr)>,
    alive_before: BTreeSet<String>,
    /// Until then this node announces nothing, and says so.
    listens_until: Instant,
    /// When the thread last looked around.
    looked: Instant,
}

struct Link {
    index: u32,
    mac: Mac,
    carrier: bool,
    arp: PacketSocket,
    ndp: PacketSocket,
}

impl Link {
    fn open(links: &mut Links, interface: &str) -> io::Result<Link> {
        let link = links.link(interface)?;
        let mac: Mac = link.mac.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("link {interface} has no Ethernet address to announce"),
            )
        })?;
        Ok(Link {
            index: link.index,
            mac,
            carrier: link.carrier,
            arp: PacketSocket::open(link.index, ETHERTYPE_ARP, frame::ARP_REQUESTS)?,
            ndp: PacketSocket::open(link.index, ETHERTYPE_IPV6, frame::SOLICITATIONS)?,
        })
    }
}

impl Run {
    fn open(config: Config, woken: UnixDatagram) -> io::Result<Run> {
        let mut links = Links::open()?;
        let link = Link::open(&mut links, &config.interface)?;
        let mut beats = vec![UdpSocket::bind((Ipv4Addr::UNSPECIFIED, HEARTBEAT_PORT))?];
        // Without IPv6 in the kernel there is nothing to announce there either.
        let any6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, HEARTBEAT_PORT));
        let groups = match packet::udp6_only(any6) {
            Ok(socket) => {
                let groups = socket.try_clone()?;
                beats.push(socket);
                Some(groups)
            }
            Err(error) => {
                tracing::info!(%error, "no IPv6 on this node: IPv6 addresses are not announced");
                None
            }
        };
        for socket in &beats {
            socket.set_nonblocking(true)?;
        }
        let incarnation = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        Ok(Run {
            seal: Seal::new(&config.secret),
            config,
            incarnation,
            sequence: 0,
            woken,
            beats,
            groups,
            links,
            link,
            membership: Membership::default(),
            announced: BTreeSet::new(),
            due: BTreeSet::new(),
            alive_before: BTreeSet::new(),
            listens_until: Instant::now() + LISTEN,
            looked: Instant::now(),
        })
    }

    fn run(&mut self, shared: &Shared) {
        let mut next_beat = Instant::now();
        loop {
            let now = Instant::now();
            if shared.stop.load(Ordering::Relaxed) {
                let wanted = shared.wanted.lock().clone();
                self.send_heartbeats(&wanted, true);
                return;
            }
            if now.saturating_duration_since(self.looked) > DEAD_AFTER {
                // Whoever stood still for so long has been taken for dead: what is his after all he has to say again.
                self.announced.clear();
            }
            self.looked = now;
            let wanted = shared.wanted.lock().clone();
            if now >= next_beat {
                self.watch_link();
                self.send_heartbeats(&wanted, self.listens() || !self.link.carrier);
                next_beat = now + HEARTBEAT_INTERVAL;
                if self.listens() {
                    next_beat = next_beat.min(self.listens_until);
                }
            }
            self.hear();
            self.decide(&wanted, shared);
            self.send_due();
            self.answer();
            let until = [Some(next_beat), self.membership.next_death(now), self.due.first().map(|d| d.0)];
            let until = until.into_iter().flatten().min().unwrap_or(next_beat);
            let mut fds = vec![self.woken.as_fd(), self.link.arp.as_fd(), self.link.ndp.as_fd()];
            fds.extend(self.beats.iter().map(AsFd::as_fd));
            if let Err(error) = packet::wait_readable(&fds, until.saturating_duration_since(Instant::now())) {
                tracing::error!(%error, "the speaker cannot wait for packets");
                std::thread::sleep(HEARTBEAT_INTERVAL);
            }
            let mut bytes = [0; 8];
            while self.woken.recv(&mut bytes).is_ok() {}
        }
    }

    fn listens(&self) -> bool {
        Instant::now() < self.listens_until
    }

    fn send_heartbeats(&mut self, wanted: &Wanted, leaving: bool) {
        self.sequence += 1;
        let beat = Heartbeat {
            node: self.config.node.clone(),
            incarnation: self.incarnation,
            sequence: self.sequence,
            leaving,
        };
        let bytes = self.seal.encode(&beat);
        let anew = Instant::now() < self.listens_until + HEARTBEAT_INTERVAL;
        for address in wanted.peers.values() {
            if anew {
                // Whom the kernel asked for in vain while the link, or the switch behind it, let nothing through, it asks
                // for again only after a second (RETRANS_TIMER, RFC 4861 section 10; Linux does so for ARP): so long our
                // heartbeats would wait, and two would announce. Most peers have no such entry, which is no error.
                let _ = self.links.delete_neighbour(self.link.index, *address);
            }
            let socket = if address.is_ipv4() { self.beats.first() } else { self.beats.get(1) };
            if let Some(socket) = socket {
                // A heartbeat that can't be sent is a heartbeat not heard: the others' clocks do the rest.
                let _ = socket.send_to(&bytes, (*address, HEARTBEAT_PORT));
            }
        }
    }

    /// Follows the link: its carrier, and its replacement by another of the same name.
    fn watch_link(&mut self) {
        let Ok(found) = self.links.link(&self.config.interface) else {
            self.link.carrier = false;
            return;
        };
        if found.carrier != self.link.carrier {
            tracing::info!(
                interface = self.config.interface,
                carrier = found.carrier,
                "the link's carrier changed"
            );
            self.link.carrier = found.carrier;
            self.listens_until = Instant::now() + LISTEN;
        }
        if found.index != self.link.index
            && let Ok(link) = Link::open(&mut self.links, &self.config.interface)
        {
            self.link = link;
            self.announced.clear();
        }
    }

    fn hear(&mut self) {
        let now = Instant::now();
        let mut bytes = [0; LONGEST + 1];
        for socket in &self.beats {
            while let Ok((n, _)) = socket.recv_from(&mut bytes) {
                if let Some(beat) = self.seal.decode(&bytes[..n])
                    && beat.node != self.config.node
                {
                    self.membership.heard(&beat, now);
                }
            }
        }
    }

    fn decide(&mut self, wanted: &Wanted, shared: &Shared) {
        let now = Instant::now();
        self.membership.keep(|name| wanted.peers.contains_key(name));
        let alive: BTreeSet<String> =
            wanted.peers.keys().filter(|n| self.membership.alive(n, now)).cloned().collect();
        // Without a carrier nobody hears us: somebody else announces, and we must not when the link is back before we have
        // heard who.
        let announced = match self.link.carrier && !self.listens() {
            true => ours(&self.config.node, wanted, |n| alive.contains(n)),
            false => BTreeSet::new(),
        };
        let news = alive != self.alive_before;
        for address in &announced {
            let taken_over = !self.announced.contains(address);
            if taken_over {
                self.join(*address, true);
                tracing::info!(%address, "announcing");
            }
            // When a node comes back it may have answered for an address of ours for a moment: say again whose it is.
            if taken_over || news {
                self.due.extend(REPEAT_AFTER.iter().map(|after| (now + *after, *address)));
            }
        }
        for address in self.announced.difference(&announced) {
            tracing::info!(%address, "no longer announcing");
            self.join(*address, false);
        }
        self.due.retain(|(_, address)| announced.contains(address));
        if announced != self.announced {
            *shared.announced.lock() = announced.clone();
            self.announced = announced;
        }
        self.alive_before = alive;
    }

    fn join(&self, address: IpAddr, join: bool) {
        if let (IpAddr::V6(address), Some(socket)) = (address, &self.groups) {
            let group = frame::solicited_node(address);
            // Two addresses may share a group: leaving it for one while the other is announced would deafen us.
            let shared = |a: &IpAddr| matches!(a, IpAddr::V6(b) if *b != address && frame::solicited_node(*b) == group);
            if !join && self.announced.iter().any(shared) {
                return;
            }
            if let Err(error) = packet::multicast_group(socket.as_fd(), self.link.index, group, join)
                && join
                && error.raw_os_error() != Some(libc::EADDRINUSE)
            {
                tracing::warn!(%error, %address, "cannot listen to neighbour solicitations");
            }
        }
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        while let Some((at, address)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            for bytes in frame::gratuitous(self.link.mac, address) {
                let socket = if address.is_ipv4() { &self.link.arp } else { &self.link.ndp };
                if let Err(error) = socket.send(&bytes) {
                    tracing::debug!(%error, %address, "a gratuitous announcement was not sent");
                }
            }
        }
    }

    fn answer(&mut self) {
        let mut buffer = [0; 1600];
        let readers: [(&PacketSocket, Reader); 2] =
            [(&self.link.arp, frame::read_arp), (&self.link.ndp, frame::read_solicitation)];
        for (socket, read) in readers {
            // A link that is down is an error here; its carrier is watched elsewhere.
            while let Ok(Some(bytes)) = socket.receive(&mut buffer) {
                if let Some(question) = read(bytes)
                    && self.announced.contains(&question.target)
                    && let Some(reply) = frame::answer(self.link.mac, &question)
                    && let Err(error) = socket.send(&reply)
                {
                    tracing::debug!(%error, "an answer was not sent");
                }
            }
        }
    }
}

/// What a frame asks, if it asks for an address.
type Reader = fn(&[u8]) -> Option<Question>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_nodes_that_hear_each_other_exactly_one_announces() {
        let nodes = ["a", "b", "c"];
        let eligible: BTreeSet<String> = nodes.iter().map(|n| n.to_string()).collect();
        let addresses = (0..50u8).map(|i| (IpAddr::from([10, 0, 0, i]), eligible.clone())).collect();
        let wanted = Wanted { peers: BTreeMap::new(), addresses };
        for dead in ["", "a", "b", "c"] {
            let mut announced = BTreeMap::new();
            for node in nodes.iter().filter(|n| **n != dead) {
                for address in ours(node, &wanted, |n| n != dead) {
                    assert_eq!(announced.insert(address, node), None, "{address} announced twice");
                }
            }
            assert_eq!(announced.len(), 50);
        }
    }

    #[test]
    fn a_node_that_may_not_announce_does_not() {
        let only_b = BTreeSet::from(["b".to_string()]);
        let wanted = Wanted {
            peers: BTreeMap::new(),
            addresses: BTreeMap::from([(IpAddr::from([10, 0, 0, 1]), only_b)]),
        };
        assert!(ours("a", &wanted, |_| false).is_empty());
        assert_eq!(ours("b", &wanted, |_| false).len(), 1);
    }
}
