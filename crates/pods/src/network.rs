//! A pod's cable: a veth pair with routes to exactly its addresses, and no bridge.
//!
//! On a bridge a reply between two pods of one node would go straight from one to the other, past the translation that
//! the request went through. Here every packet of a pod passes through the node's routing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;

use portolan_sys::link::{LinkEnd, Links, Route};
use portolan_sys::namespace::{in_netns, netns_of};
use ring::digest;

/// What every pod takes for its router. Nobody has these addresses: the neighbour entry answers for them.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The name of the pod's end.
const POD_LINK: &str = "eth0";
/// What the names of the node's ends begin with.
const PREFIX: &str = "pt";

/// The node's end of a pod's cable, by the pod's uid: 13 of the 15 characters that a name can have.
pub(crate) fn link_name(uid: &str) -> String {
    let mut name = PREFIX.to_owned();
    for byte in fingerprint(uid).iter().take(6) {
        name.push_str(&format!("{byte:02x}"));
    }
    name.truncate(13);
    name
}

/// Whether a link's name is one that [`link_name`] makes.
pub(crate) fn is_pod_link(name: &str) -> bool {
    name.len() == 13
        && name.strip_prefix(PREFIX).is_some_and(|hash| hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn fingerprint(uid: &str) -> Vec<u8> {
    digest::digest(&digest::SHA256, uid.as_bytes()).as_ref().to_vec()
}

/// A hardware address of the kind that nobody hands out: locally administered, unicast.
fn mac(uid: &str, end: u8) -> [u8; 6] {
    let hash = fingerprint(uid);
    [0x02 | end << 2, hash[0], hash[1], hash[2], hash[3], hash[4]]
}

fn gateway(address: &IpAddr) -> IpAddr {
    if address.is_ipv4() { GATEWAY_V4.into() } else { GATEWAY_V6.into() }
}

fn width(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn context<T>(result: io::Result<T>, doing: &str) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{doing}: {error}")))
}

/// Sets a switch below `/proc/sys/net` in the calling thread's network namespace. What the kernel doesn't have is not set.
pub(crate) fn set_switch(path: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net").join(path);
    match std::fs::read_to_string(&path) {
        Ok(now) if now.trim() == value => Ok(()),
        Ok(_) => context(std::fs::write(&path, value), &format!("write {value} to {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lays the cable between the calling thread's network namespace and that of a pod's process. An old one is replaced.
pub(crate) fn connect(uid: &str, pid: i32, addresses: &[IpAddr]) -> io::Result<()> {
    let name = link_name(uid);
    let netns = context(netns_of(pid as u32), "open the pod's network namespace")?;
    let mut node = Links::open()?;
    remove(&mut node, &name)?;
    let end = LinkEnd::named(&name).mac(mac(uid, 0));
    let peer = LinkEnd::named(POD_LINK).mac(mac(uid, 1)).in_netns(netns.as_fd());
    context(node.add_veth(&end, &peer), "make the veth pair")?;
    let node_link = node.index(&name)?;
    let six = addresses.iter().any(IpAddr::is_ipv6);

    // The pod's side.
    if six {
        context(in_netns(netns.as_fd(), prepare_ipv6)?, "prepare IPv6 in the pod")?;
    }
    let mut pod = Links::open_in(netns.as_fd())?;
    let loopback = pod.index("lo")?;
    pod.set_up(loopback, true)?;
    let pod_link = pod.index(POD_LINK)?;
    pod.set_up(pod_link, true)?;
    for address in addresses {
        context(pod.add_address(pod_link, *address, width(address)), "give the pod its address")?;
        let gateway = gateway(address);
        context(pod.replace_neighbour(pod_link, gateway, mac(uid, 0)), "name the pod's router")?;
        context(
            pod.replace_route(&Route::default_via(gateway).on(pod_link).onlink()),
            "give the pod its default route",
        )?;
    }

    // The node's side.
    if six {
        // A machine may start links without IPv6; and nobody in a pod is to tell the node where its routers are.
        set_switch(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
        set_switch(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    }
    node.set_up(node_link, true)?;
    for address in addresses {
        context(node.replace_neighbour(node_link, *address, mac(uid, 1)), "name the pod's hardware address")?;
        context(node.replace_route(&Route::to(*address, width(address)).on(node_link)), "route to the pod")?;
    }
    Ok(())
}

/// Lets answers of a pod reach who asked at 127.0.0.1. The node's tables keep everybody else away from there.
pub(crate) fn answer_localhost(uid: &str) -> io::Result<()> {
    set_switch(&format!("ipv4/conf/{}/route_localnet", link_name(uid)), "1")
}

/// In the pod's network namespace.
fn prepare_ipv6() -> io::Result<()> {
    // Which of the three counts depends on when the link came up: set all.
    for scope in ["all", "default", POD_LINK, "lo"] {
        set_switch(&format!("ipv6/conf/{scope}/disable_ipv6"), "0")?;
    }
    for scope in ["default", POD_LINK] {
        set_switch(&format!("ipv6/conf/{scope}/accept_ra"), "0")?;
    }
    Ok(())
}

/// Whether a pod's cable is there and leads to all of its addresses.
pub(crate) fn connected(uid: &str, addresses: &[IpAddr]) -> io::Result<bool> {
    let mut node = Links::open()?;
    let name = link_name(uid);
    let Some(link) = node.links()?.into_iter().find(|link| link.name == name) else { return Ok(false) };
    let routes = node.routes()?;
    let routed = |address: &IpAddr| {
        routes.iter().any(|route| {
            route.destination == *address && route.prefix == width(address) && route.link == Some(link.index)
        })
    };
    Ok(link.is_up() && addresses.iter().all(routed))
}

fn remove(node: &mut Links, name: &str) -> io::Result<()> {
    match node.index(name) {
        Ok(link) => match node.delete(link) {
            // The kernel removes it by itself when the pod's namespace goes, maybe just now.
            Err(error) if portolan_sys::netlink::errno(&error) != Some(libc::ENODEV) => Err(error),
            _ => Ok(()),
        },
        Err(_) => Ok(()),
    }
}

/// Takes a pod's cable away, if it is there.
pub(crate) fn disconnect(uid: &str) -> io::Result<()> {
    remove(&mut Links::open()?, &link_name(uid))
}

/// Takes away all cables but those of the pods named.
pub(crate) fn disconnect_all_but(uids: &[String]) -> io::Result<()> {
    let keep: Vec<String> = uids.iter().map(|uid| link_name(uid)).collect();
    let mut node = Links::open()?;
    for link in node.links()? {
        let ours = is_pod_link(&link.name) && link.kind.as_deref() == Some("veth");
        if ours && !keep.contains(&link.name) {
            remove(&mut node, &link.name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_link_has_a_name_of_its_own_that_is_known_as_ours() {
        let (one, other) = (link_name("uid-1"), link_name("uid-2"));
        assert_ne!(one, other);
        assert!(one.len() < 16 && is_pod_link(&one), "{one}");
        for name in ["eth0", "pt", "ptp0", "ptzzzzzzzzzzz", "veth1234567890"] {
            assert!(!is_pod_link(name), "{name}");
        }
    }

    #[test]
    fn hardware_addresses_are_local_and_unicast() {
        for end in [0, 1] {
            let mac = mac("uid-1", end);
            assert_eq!(mac[0] & 0b11, 0b10, "{mac:?}");
        }
        assert_ne!(mac("uid-1", 0), mac("uid-1", 1));
    }
}
