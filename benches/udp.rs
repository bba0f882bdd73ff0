//! What it costs to forget UDP flows whose backend is gone, among many that are to stay.
//!
//! `cargo bench --bench udp [-- FLOWS]` (100,000 where none is given) makes that many flows to a hundred frontends by real
//! packets, then forgets those of one frontend, of eight, and of all. Works in network namespaces of its own; asserts no time.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use portolan_dataplane::{Engine, Forget, Options, forget_udp};
use portolan_plan::model::*;
use portolan_plan::planner::StaleUdp;
use portolan_sys::conntrack::{Conntrack, SentTo, UDP};
use portolan_sys::link::{LinkEnd, Links, Route};
use portolan_sys::namespace;
use portolan_sys::nft::Family as Table;

const FRONTENDS: usize = 100;
const BACKEND: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 5));

fn vip(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 96, 1, number as u8))
}

fn plan() -> Plan {
    let name =
        SetName { port: "".into(), protocol: Protocol::Udp, family: Family::V4, scope: Scope::Cluster };
    let mut plan = Plan::default();
    for number in 0..FRONTENDS {
        let mut part = ServicePlan::default();
        // A port of its own: no two flows may look alike to the backend, which leaves each of its ports 64,512 masqueraded ones.
        let backends = BTreeSet::from([Backend { address: BACKEND, port: 1000 + number as u16 }]);
        part.sets.insert(name.clone(), BackendSet { backends, affinity: None });
        part.frontends.insert(
            Frontend::Address { address: vip(number), protocol: Protocol::Udp, port: 53 },
            FrontendPlan {
                kind: FrontendKind::ClusterIp,
                action: Action::Balance(name.clone()),
                inside: None,
                masquerade: Masquerade::Outsiders,
                source_ranges: None,
            },
        );
        plan.services.insert(ServiceName::new("bench", &format!("s{number}")), Arc::new(part));
    }
    plan
}

fn count() -> usize {
    let mut flows = 0;
    let to = SentTo::default();
    Conntrack::open()
        .and_then(|mut c| c.list(Table::Ip, UDP, to, |_| flows += 1))
        .expect("the connection table");
    flows
}

/// Sends one datagram to each frontend from as many ports as it takes.
fn fill(flows: usize) {
    for port in 0..flows.div_ceil(FRONTENDS) {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 2000 + port as u16)).expect("a port");
        for number in 0..FRONTENDS {
            // "Refused" is what was heard of an earlier one.
            let _ =
                socket.send_to(b"x", (vip(number), 53)).or_else(|_| socket.send_to(b"x", (vip(number), 53)));
        }
    }
}

fn main() {
    let flows = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(100_000);
    let (node, pod) = match namespace::new_netns().and_then(|node| Ok((node, namespace::new_netns()?))) {
        Ok(both) => both,
        Err(error) => return println!("skipped: udp: no network namespace: {error}"),
    };
    namespace::in_netns(pod.as_fd(), || std::fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0"))
        .expect("a namespace")
        .expect("a setting");
    namespace::in_netns(node.as_fd(), || {
        let mut links = Links::open().expect("links");
        links
            .add_veth(&LinkEnd::named("v0"), &LinkEnd::named("eth0").in_netns(pod.as_fd()))
            .expect("a cable");
        let mut there = Links::open_in(pod.as_fd()).expect("links");
        let (here, eth0) = (links.index("v0").expect("v0"), there.index("eth0").expect("eth0"));
        links.add_address(here, IpAddr::from([10, 1, 0, 1]), 24).expect("an address");
        links.set_up(here, true).expect("up");
        there.add_address(eth0, BACKEND, 24).expect("an address");
        there.set_up(eth0, true).expect("up");
        links.add_route(&Route::to(IpAddr::from([10, 96, 0, 0]), 16).on(here)).expect("a route");
        let mut engine = Engine::open(Options::default()).expect("an engine");
        let _ = engine.sync(&plan()).expect("a sync");
        fill(flows);
        assert_eq!(count(), flows.next_multiple_of(FRONTENDS), "every flow is in the connection table");
        println!("{:<22} {:>8} {:>10} {:>10}", "FRONTENDS", "FLOWS", "FORGOTTEN", "TIME");
        for frontends in [1, 8, FRONTENDS - 9] {
            let before = count();
            let first = if frontends == 1 {
                0
            } else if frontends == 8 {
                1
            } else {
                9
            };
            let keep: StaleUdp = (first..first + frontends)
                .map(|n| Frontend::Address { address: vip(n), protocol: Protocol::Udp, port: 53 })
                .map(|f| (f, Arc::default()))
                .collect();
            let started = Instant::now();
            let forgotten = forget_udp(&keep, &BTreeSet::new(), Forget::All).expect("forgotten");
            println!("{frontends:<22} {before:>8} {forgotten:>10} {:>10.1?}", started.elapsed());
            assert_eq!(count(), before - forgotten, "nobody else's");
        }
    })
    .expect("a namespace");
}
