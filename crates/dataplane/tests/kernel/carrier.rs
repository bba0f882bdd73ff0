//! The packet's priority carries the decision from rule to rule and is given back; and 127.0.0.1 is guarded.

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;

use portolan_plan::model::Protocol::{Tcp, Udp};
use portolan_plan::model::*;
use portolan_sys::conntrack::{Conntrack, SentTo, UDP};
use portolan_sys::link::Links;
use portolan_sys::packet::PacketSocket;

use super::flip::frame;
use super::packets::{node_plan, plan_of};
use super::plans::*;
use super::world::*;

/// Gives commands to nft on the node; `false` where there is no nft.
fn nft(w: &World, text: &str) -> bool {
    let output = w.router.run(|| Command::new("nft").arg(text).output());
    output.is_ok_and(|output| {
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        true
    })
}

/// How many packets a named counter of the table `probe` has seen.
fn counted(w: &World, counter: &str) -> u64 {
    let mut kernel = w.router.run(|| portolan_sys::nft::Nftables::open(4096)).expect("a socket");
    kernel.counter(portolan_sys::nft::Family::Ip, "probe", counter).expect("a counter").packets
}

fn to(vip: &str, address: IpAddr, port: u16) -> Plan {
    let mut part = ServicePlan::default();
    for protocol in [Tcp, Udp] {
        let one = simple(vip, protocol, 80, &[Backend { address, port }]);
        part.sets.extend(one.sets.clone());
        part.frontends.extend(one.frontends.clone());
    }
    plan_of([part])
}

#[test]
fn the_priority_is_given_back_and_kept_in_later_packets_without_an_answer() {
    const PROMISE: &str = "the priority is given back";
    world(PROMISE, |w| {
        // At an equal priority the chain made first comes after the one made later: ours.
        let probe = "table ip probe {
            counter carried {}
            counter leaked {}
            counter kept {}
            chain stamp {
                type filter hook output priority -150
                udp dport 80 meta priority set 0:7
            }
            chain midway {
                type filter hook prerouting priority -100
                meta priority & 0:1f != none counter name carried
            }
            chain later {
                type filter hook prerouting priority -98
                meta priority != none counter name leaked
            }
            chain ours {
                type filter hook output priority -98
                meta priority 0:7 counter name kept
                meta priority != none meta priority != 0:7 counter name leaked
            }
        }";
        if !nft(w, probe) {
            return portolan_sys::trial::skipped(PROMISE, "no nft");
        }
        let mut engine = w.engine();
        let _ = engine.sync(&to("10.96.0.10", pod(Family::V4, 1), PORT)).expect("a sync");
        for protocol in [Tcp, Udp] {
            let answer = w.pods[0].ask(protocol, ip("10.96.0.10"), 80, false);
            assert!(matches!(answer, Outcome::Answer { .. }), "{answer:?}");
        }
        assert_eq!(counted(w, "carried"), 2, "one for each connection: the probe sees it");
        // Nobody answers here; three packets of one flow, which all are in state new.
        let _ = engine.sync(&to("10.96.0.10", ip("10.244.2.200"), 9)).expect("a sync");
        let socket = w.router.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        for _ in 0..3 {
            socket.send_to(b"anyone?", "10.96.0.10:80").expect("sent");
        }
        assert_eq!(counted(w, "leaked"), 0);
        assert_eq!(counted(w, "kept"), 2, "all but the first packet");
    });
}

#[test]
fn nobody_on_the_wire_reaches_a_node_port_of_the_loopback_address() {
    world("nobody on the wire reaches a node port of the loopback address", |w| {
        w.router.sysctl("net/ipv4/conf/all/route_localnet", "1").expect("a setting");
        let mut engine = w.engine();
        let name = set_name(Udp, Family::V4, Scope::Cluster);
        let mut part = ServicePlan::default();
        part.sets.insert(name.clone(), set([Backend { address: far_pod(Family::V4, 0), port: PORT }], None));
        let frontend = Frontend::NodePort { family: Family::V4, protocol: Udp, port: 53 };
        part.frontends.insert(frontend, does(FrontendKind::NodePort, Action::Balance(name)));
        let mut plan = Plan { node: node_plan(), ..Plan::default() };
        plan.node.node_addresses.insert(ip("127.0.0.1"));
        plan.services.insert(ServiceName::new("test", "local"), Arc::new(part));
        let _ = engine.sync(&plan).expect("a sync");
        let own = w.router.ask(Udp, ip("127.0.0.1"), 53, false);
        let expected = Outcome::Answer { server: far_pod(Family::V4, 0), client: node(Family::V4, 2) };
        assert_eq!(own, expected, "the node itself does");
        let mac = w.router.run(|| Links::open()?.link("out")).expect("a link").mac.expect("an address");
        let socket = w
            .client
            .run(|| PacketSocket::open(Links::open()?.index("eth0")?, 0x88b5, &[]))
            .expect("a packet socket");
        for (number, destination) in [[127, 0, 0, 1], [192, 0, 2, 1]].into_iter().enumerate() {
            socket.send(&frame(number, mac, destination.into())).expect("sent");
        }
        let mut seen = Vec::new();
        let mut kernel = w.router.run(Conntrack::open).expect("a socket");
        kernel
            .list(portolan_sys::nft::Family::Ip, UDP, SentTo::default(), |flow| {
                if flow.original.source != ip("127.0.0.1") {
                    seen.push(flow.original.destination);
                }
            })
            .expect("a list");
        assert_eq!(seen, [ip("192.0.2.1")], "only the one to the node's own address");
    });
}
