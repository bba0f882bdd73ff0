//! NodePorts on 127.0.0.1 and ::1: what the kernel needs for them beside the tables.
//!
//! A connection to a loopback address is translated where it leaves, and masqueraded, so its answers come in by some link,
//! addressed to the loopback address once they are translated back. IPv4 takes them for martians unless `route_localnet` is
//! set ([`crate::sysctl::LOCALHOST`]); the tables refuse everyone else who would make use of it (CVE-2020-8558). IPv6 finds the route to ::1 by the link that
//! the packet came in by alone (`rt6_need_strict` in net/ipv6/route.c), so each link gets one of its own. It opens nothing:
//! the kernel drops packets to ::1 from other links before any translation (`ip6_rcv_core`).

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portolan_sys::link::{Links, Route, RouteKind, TABLE_LOCAL};
use portolan_sys::netlink::{ROUTE, Socket, errno};

/// `RTNLGRP_LINK`, and `RTNLGRP_IPV6_IFADDR`: a link whose IPv6 was disabled gets an address when it no longer is.
const GROUPS: [u32; 2] = [1, 9];
/// How often the thread looks whether it is to end.
const TICK_MS: i32 = 500;
/// How often it looks without having heard of anything: a link that went down and up again at once has lost its route.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The routes' metrics are this and the link's index: the kernel wants them to differ, and its own, on `lo`, to come first.
const METRIC: u32 = 1 << 16;

/// Keeps a route to ::1 on every link, those that come later too, until it is dropped. The routes stay then, since forwarding
/// outlives the agent; they go with their links, or by [`remove`].
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
        for group in GROUPS {
            events.subscribe(group)?;
        }
        let mut links = Links::open()?;
        route_all(&mut links)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("localhost".into()).spawn(move || {
            let mut looked = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let heard = events.wait(TICK_MS).unwrap_or(false);
                if !heard && looked.elapsed() < LOOK_EVERY {
                    continue;
                }
                // Events that were lost are no loss: an event only says "look".
                while matches!(events.try_receive(|_| {}), Ok(true)) {}
                looked = Instant::now();
                if let Err(error) = route_all(&mut links) {
                    tracing::warn!(%error, "links can't be listed, so NodePorts on ::1 may not answer");
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

fn route(link: u32) -> Route {
    Route {
        table: TABLE_LOCAL,
        metric: Some(METRIC + link),
        ..Route::to(IpAddr::V6(Ipv6Addr::LOCALHOST), 128).on(link).kind(RouteKind::Local)
    }
}

/// Gives each link that is up its route. An error if the links can't be listed; a link that takes no route is only told of.
fn route_all(links: &mut Links) -> io::Result<()> {
    const LOOPBACK: u32 = 8; // IFF_LOOPBACK
    for link in links.links()?.into_iter().filter(|l| l.is_up() && l.flags & LOOPBACK == 0) {
        match links.add_route(&route(link.index)) {
            Ok(()) => {}
            Err(error) => match errno(&error) {
                // There already; or the link has no IPv6, or is gone or down by now.
                Some(libc::EEXIST | libc::EACCES | libc::EINVAL | libc::ENODEV | libc::ENETDOWN) => {}
                _ => tracing::debug!(%error, link = link.name, "no route to ::1"),
            },
        }
    }
    Ok(())
}

/// Removes the routes from all links of the calling thread's network namespace.
pub fn remove() -> io::Result<()> {
    let mut links = Links::open()?;
    for link in links.links()? {
        links.delete_route(&route(link.index))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use portolan_sys::link::LinkEnd;
    use portolan_sys::{namespace, trial};

    use super::*;

    #[test]
    fn every_link_has_a_route_to_localhost_those_that_come_later_too() {
        if !trial::goes_on("every link has a route to localhost, those that come later too") {
            return;
        }
        let netns = namespace::new_netns().expect("a namespace");
        let run = || {
            let mut links = Links::open().expect("links");
            let mut cable = |a: &str, b: &str| {
                links.add_veth(&LinkEnd::named(a), &LinkEnd::named(b)).expect("a cable");
                for end in [a, b] {
                    let index = links.index(end).expect("the end");
                    links.set_up(index, true).expect("up");
                }
            };
            let is_there = |link: &str| {
                let routes = std::fs::read_to_string("/proc/thread-self/net/ipv6_route").expect("the routes");
                let to_localhost =
                    routes.lines().filter(|l| l.starts_with("00000000000000000000000000000001 80 "));
                to_localhost.filter(|l| l.ends_with(&format!(" {link}"))).count() == 1
            };
            cable("a0", "a1");
            let kept = Routes::keep().expect("routes");
            assert!(is_there("a0") && is_there("a1"));
            cable("b0", "b1");
            let until = Instant::now() + Duration::from_secs(20);
            while !is_there("b0") || !is_there("b1") {
                assert!(Instant::now() < until, "the later link has none");
                std::thread::yield_now();
            }
            drop(kept);
            remove().expect("removed");
            assert!(["a0", "a1", "b0", "b1"].iter().all(|link| !is_there(link)));
        };
        namespace::in_netns(std::os::fd::AsFd::as_fd(&netns), run).expect("the namespace can be entered");
    }
}
