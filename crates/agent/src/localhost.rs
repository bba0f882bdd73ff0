//! NodePorts on 127.0.0.1 and ::1: what the kernel needs for them beside the tables.
//!
//! A connection to a loopback address is translated where it leaves, and masqueraded, so its answers come in by some link,
//! addressed to the loopback address once they are translated back. IPv4 takes them for martians unless `route_localnet` is
//! set ([`crate::sysctl::LOCALHOST`]); the tables refuse everyone else who would make use of it (CVE-2020-8558). IPv6 finds the route to ::1 by the link that
//! the packet came in by alone (`rt6_need_strict` in net/ipv6/route.c), so each link gets one of its own. It opens nothing:
//! the kernel drops packets to ::1 from other links before any translation (`ip6_rcv_core`).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use portolan_sys::link::{Links, Route, RouteKind, TABLE_LOCAL};
use portolan_sys::netlink::{ROUTE, Socket, errno};

/// `RTNLGRP_LINK`
const GROUP_LINK: u32 = 1;
/// How often the thread looks whether it is to end.
const TICK_MS: i32 = 500;
/// The routes' metrics are this and the link's index: the kernel wants them to differ, and its own, on `lo`, to come first.
const METRIC: u32 = 1 << 16;

/// Keeps a route to ::1 on every link, those that come later too, until it is dropped. The routes stay: they go with their
/// links, and forwarding outlives the agent.
#[derive(Debug)]
pub struct Routes {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Routes {
    /// Begins in the network namespace of the calling thread.
    pub fn keep() -> io::Result<Routes> {
        let mut events = Socket::open(ROUTE)?;
        // Before the first look: a link that comes between the two is then seen twice, not never.
        events.subscribe(GROUP_LINK)?;
        let mut links = Links::open()?;
        let mut routed = BTreeSet::new();
        route_all(&mut links, &mut routed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("localhost".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match events.wait(TICK_MS) {
                    Ok(false) => continue,
                    // Events that were lost are no loss: an event only says "look".
                    Ok(true) => while events.try_receive(|_| {}).unwrap_or(true) {},
                    Err(error) => return tracing::warn!(%error, "links are no longer watched; NodePorts on ::1 may not answer"),
                }
                if let Err(error) = route_all(&mut links, &mut routed) {
                    tracing::warn!(%error, "a route to ::1 is missing, so NodePorts there may not answer");
                }
            }
        })?;
        Ok(Routes { stop, thread: Some(thread) })
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Gives each link that is up its route. The kernel removes the routes of a link that goes down.
fn route_all(links: &mut Links, routed: &mut BTreeSet<u32>) -> io::Result<()> {
    const LOOPBACK: u32 = 8; // IFF_LOOPBACK
    let up: BTreeSet<u32> =
        links.links()?.iter().filter(|l| l.is_up() && l.flags & LOOPBACK == 0).map(|l| l.index).collect();
    routed.retain(|link| up.contains(link));
    for link in up {
        if !routed.insert(link) {
            continue;
        }
        let route = Route {
            table: TABLE_LOCAL,
            metric: Some(METRIC + link),
            ..Route::to(IpAddr::V6(Ipv6Addr::LOCALHOST), 128).on(link).kind(RouteKind::Local)
        };
        if let Err(error) = links.add_route(&route) {
            match errno(&error) {
                // There already; or the link has no IPv6, or is gone.
                Some(
                    libc::EEXIST
                    | libc::EACCES
                    | libc::ENODEV
                    | libc::EINVAL
                    | libc::EAFNOSUPPORT
                    | libc::EOPNOTSUPP,
                ) => {}
                _ => {
                    routed.remove(&link);
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
