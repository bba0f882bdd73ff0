//! Speakers on a network of the test's own: a host resolves an address, its announcer is cut off, and the host follows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use portolan_lb::elect::announcer;
use portolan_lb::speaker::{Config, Speaker, Wanted};
use portolan_sys::link::{LinkEnd, Links};
use portolan_sys::namespace::{in_netns, new_netns};

const VIPS: [&str; 2] = ["10.80.0.200", "fd00:80::200"];

struct Host {
    netns: OwnedFd,
    mac: String,
}

/// A bridge with three nodes and a client on it; port `n` of the bridge is called `p<n>`.
struct Lan {
    bridge: OwnedFd,
    nodes: BTreeMap<String, Host>,
    client: Host,
}

fn lan() -> std::io::Result<Lan> {
    let bridge = new_netns()?;
    let mut links = Links::open_in(bridge.as_fd())?;
    links.add_bridge(&LinkEnd::named("lan"))?;
    let lan = links.index("lan")?;
    links.set_up(lan, true)?;
    let mut host = |n: u8| -> std::io::Result<Host> {
        let netns = new_netns()?;
        let mac = [2, 0, 0, 0, 0, n];
        let port = format!("p{n}");
        links.add_veth(&LinkEnd::named(&port), &LinkEnd::named("eth0").mac(mac).in_netns(netns.as_fd()))?;
        let port = links.index(&port)?;
        links.set_master(port, Some(lan))?;
        links.set_up(port, true)?;
        let mut inside = Links::open_in(netns.as_fd())?;
        let eth0 = inside.index("eth0")?;
        inside.set_up(eth0, true)?;
        inside.add_address(eth0, IpAddr::from([10, 80, 0, n]), 24)?;
        inside.add_address(eth0, format!("fd00:80::{n}").parse().expect("an address"), 64)?;
        Ok(Host { netns, mac: format!("02:00:00:00:00:{n:02x}") })
    };
    let nodes =
        (11..14).map(|n| Ok((format!("node-{}", n - 10), host(n)?))).collect::<std::io::Result<_>>()?;
    let client = host(100)?;
    Ok(Lan { bridge, nodes, client })
}

impl Lan {
    fn set_port(&self, node: &str, up: bool) {
        let n = 10 + node.trim_start_matches("node-").parse::<u8>().expect("a number");
        let mut links = Links::open_in(self.bridge.as_fd()).expect("netlink");
        let port = links.index(&format!("p{n}")).expect("the port");
        links.set_up(port, up).expect("setting the port");
    }

    /// The MAC address that the client's kernel has for `vip` after sending something there.
    fn seen(&self, vip: &str) -> Option<String> {
        let vip = vip.to_owned();
        in_netns(self.client.netns.as_fd(), move || {
            let any = if vip.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            let _ = socket.connect((vip.as_str(), 9)).and_then(|()| socket.send(b"?"));
            let output = Command::new("ip").args(["neigh", "show", &vip]).output().expect("ip neigh");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.split_once("lladdr ").and_then(|(_, rest)| rest.split_whitespace().next().map(str::to_owned))
        })
        .expect("entering the client")
    }

    fn node_of(&self, mac: &str) -> Option<&str> {
        self.nodes.iter().find(|(_, host)| host.mac == mac).map(|(name, _)| name.as_str())
    }

    /// Waits until the client's kernel has the address of a node that `right` accepts.
    fn until(&self, vip: &str, right: impl Fn(&str) -> bool) -> (String, Duration) {
        let began = Instant::now();
        loop {
            let seen = self.seen(vip);
            if let Some(node) = seen.as_deref().and_then(|mac| self.node_of(mac))
                && right(node)
            {
                return (node.to_owned(), began.elapsed());
            }
            assert!(began.elapsed() < Duration::from_secs(10), "{vip}: the client still has {seen:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_host_follows_when_the_announcer_is_cut_off_and_one_node_announces_when_it_is_back() {
    const PROMISE: &str = "a host follows when the announcer is cut off";
    if Command::new("ip").arg("-V").output().is_err() {
        portolan_sys::trial::skipped(PROMISE, "no program `ip` to read the client's neighbours");
        return;
    }
    if !portolan_sys::trial::goes_on(PROMISE) {
        return;
    }
    let lan = match lan() {
        Ok(lan) => lan,
        Err(error) => {
            portolan_sys::trial::skipped(PROMISE, &format!("no bridge: {error}"));
            return;
        }
    };
    let everyone: BTreeSet<String> = lan.nodes.keys().cloned().collect();
    let start = |name: &str| {
        let config = Config { node: name.to_owned(), interface: "eth0".into(), secret: b"shared".to_vec() };
        let speaker = in_netns(lan.nodes[name].netns.as_fd(), || Speaker::start(config));
        let speaker = speaker.expect("the namespace").expect("a speaker");
        let peers = lan.nodes.keys().filter(|n| *n != name).map(|n| {
            let n10 = 10 + n.trim_start_matches("node-").parse::<u8>().expect("a number");
            (n.clone(), IpAddr::from([10, 80, 0, n10]))
        });
        let addresses = VIPS.iter().map(|vip| (vip.parse().expect("an address"), everyone.clone()));
        speaker.want(Wanted { peers: peers.collect(), addresses: addresses.collect() });
        speaker
    };
    let mut speakers: BTreeMap<&str, Speaker> =
        lan.nodes.keys().map(|name| (name.as_str(), start(name))).collect();
    let announcers = |vip: &str| -> Vec<&str> {
        let vip: IpAddr = vip.parse().expect("an address");
        speakers.iter().filter(|(_, s)| s.announced().contains(&vip)).map(|(n, _)| *n).collect()
    };
    // The first one who spoke may have announced all for a moment: who does in the end is known.
    let settled = |vip: &str| {
        let names = lan.nodes.keys().map(String::as_str);
        let right = announcer(vip.parse().expect("an address"), names).expect("a node");
        let began = Instant::now();
        while announcers(vip) != [right] {
            assert!(began.elapsed() < Duration::from_secs(10), "{vip} is announced by {:?}", announcers(vip));
            std::thread::sleep(Duration::from_millis(10));
        }
        right.to_owned()
    };
    for vip in VIPS {
        let first = settled(vip);
        let (seen, _) = lan.until(vip, |node| node == first);
        assert_eq!(seen, first);
        lan.set_port(&first, false);
        let (second, after) = lan.until(vip, |node| node != first);
        println!("{vip}: cut off {first}, the client follows to {second} after {} ms", after.as_millis());
        lan.set_port(&first, true);
        // All are back, so the first one is, and nobody beside it.
        settled(vip);
        lan.until(vip, |node| node == first);
    }
    // One who comes hears first who is there, and takes nothing that is another's.
    let announced = |speakers: &BTreeMap<&str, Speaker>, name: &str| speakers[name].announced();
    for name in lan.nodes.keys() {
        let before = announced(&speakers, name);
        drop(speakers.remove(name.as_str()));
        speakers.insert(name, start(name));
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(600) {
            let now = announced(&speakers, name);
            assert!(now.is_subset(&before), "{name} took {now:?}, its own are {before:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
        while announced(&speakers, name) != before {
            assert!(began.elapsed() < Duration::from_secs(10), "{name} does not take its own back");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
