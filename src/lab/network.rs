//! Makes the network of a topology: a namespace a machine, cables, a bridge, addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use portolan_sys::link::{LinkEnd, Links, Route};
use portolan_sys::namespace::{self, Namespaces};

use super::nodeports::PodRoute;
use super::topology::{Machine, Topology, prefix};

/// The name of a machine's link.
pub const LINK: &str = "eth0";
const BRIDGE: &str = "lan0";

/// The network namespaces of a lab by the names of its machines.
#[derive(Debug)]
pub struct Network {
    namespaces: BTreeMap<String, OwnedFd>,
    /// The links of the server's namespace.
    server: Links,
    /// The routes to pods that the server has.
    routes: BTreeSet<PodRoute>,
}

impl Network {
    /// Makes it. Each namespace shows as a file in `dir` (see [`file()`]), in this mount namespace alone.
    pub fn make(topology: &Topology, dir: &Path) -> anyhow::Result<Network> {
        let mut namespaces = BTreeMap::new();
        let router = make_namespace(&topology.lan, dir, true)?;
        let mut lan = Links::open_in(router.as_fd())?;
        lan.add_bridge(&LinkEnd::named(BRIDGE).mac(topology.lan.mac)).context("making a bridge")?;
        let bridge = lan.index(BRIDGE)?;
        lan.set_up(bridge, true)?;
        for address in &topology.lan.addresses {
            lan.add_address(bridge, *address, prefix(*address))
                .with_context(|| format!("adding {address}"))?;
        }
        for machine in topology.machines() {
            let netns = make_namespace(machine, dir, false)?;
            plug_in(machine, netns.as_fd(), &mut lan, bridge)
                .with_context(|| format!("connecting {}", machine.name))?;
            namespaces.insert(machine.name.clone(), netns);
        }
        namespaces.insert(topology.lan.name.clone(), router);
        let server = namespaces.get(&topology.server.name).context("a server")?;
        let server = Links::open_in(server.as_fd())?;
        Ok(Network { namespaces, server, routes: BTreeSet::new() })
    }

    /// Lets the server's machine know where pods are, so that its answers to them find back. The router doesn't: that
    /// would hide a route that is missing on a node.
    pub fn route(&mut self, wanted: BTreeSet<PodRoute>) -> std::io::Result<()> {
        let route = |(range, via): &PodRoute| Route::to(range.network(), range.prefix_len()).via(*via);
        for gone in self.routes.difference(&wanted) {
            self.server.delete_route(&route(gone))?;
        }
        for new in wanted.difference(&self.routes) {
            self.server.replace_route(&route(new))?;
        }
        self.routes = wanted;
        Ok(())
    }

    /// The namespace of a machine.
    pub fn of(&self, machine: &str) -> anyhow::Result<BorrowedFd<'_>> {
        self.namespaces.get(machine).map(AsFd::as_fd).with_context(|| format!("no machine {machine}"))
    }
}

/// The file that stands for a machine's network namespace.
pub fn file(dir: &Path, machine: &str) -> PathBuf {
    dir.join("netns").join(machine)
}

fn make_namespace(machine: &Machine, dir: &Path, router: bool) -> anyhow::Result<OwnedFd> {
    let netns = namespace::on_thread(|| {
        namespace::unshare(Namespaces::NET)?;
        // Addresses are unique by construction: waiting a second for a proof would only cost that second.
        set("ipv6/conf/all/accept_dad", "0")?;
        set("ipv6/conf/default/accept_dad", "0")?;
        set("ipv6/conf/default/accept_ra", "0")?;
        // A node that forwards to another on the same network would tell the sender of a shorter way. That helps nobody
        // here, and such a redirect empties the sender's allowance for "port unreachable" (ip_rt_send_redirect() and
        // inet_peer_xrlim_allow() share it): a datagram that is refused would look like one that is lost.
        set("ipv4/conf/all/send_redirects", "0")?;
        set("ipv4/conf/default/send_redirects", "0")?;
        if router {
            set("ipv4/ip_forward", "1")?;
            set("ipv6/conf/all/forwarding", "1")?;
        }
        namespace::current_netns()
    })
    .with_context(|| format!("making the network namespace of {}", machine.name))?;
    Links::open_in(netns.as_fd())?.set_up(1, true).context("setting the loopback link up")?;

    let file = file(dir, &machine.name);
    fs::create_dir_all(file.parent().unwrap_or(dir))?;
    fs::File::create(&file)?;
    namespace::bind_mount(&PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd())), &file)
        .with_context(|| format!("mounting {}", file.display()))?;
    Ok(netns)
}

/// Sets a sysctl of the calling thread's network namespace. A kernel without IPv6 has none of its own.
fn set(name: &str, value: &str) -> std::io::Result<()> {
    match fs::write(format!("/proc/sys/net/{name}"), value) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn plug_in(machine: &Machine, netns: BorrowedFd<'_>, lan: &mut Links, bridge: u32) -> anyhow::Result<()> {
    lan.add_veth(&LinkEnd::named(&machine.name), &LinkEnd::named(LINK).mac(machine.mac).in_netns(netns))?;
    let port = lan.index(&machine.name)?;
    lan.set_master(port, Some(bridge))?;
    lan.set_up(port, true)?;
    let mut inside = Links::open_in(netns)?;
    let link = inside.index(LINK)?;
    inside.set_up(link, true)?;
    for address in &machine.addresses {
        inside.add_address(link, *address, prefix(*address)).with_context(|| format!("adding {address}"))?;
    }
    for gateway in &machine.gateways {
        inside
            .add_route(&Route::default_via(*gateway).on(link))
            .with_context(|| format!("adding the route via {gateway}"))?;
    }
    Ok(())
}
