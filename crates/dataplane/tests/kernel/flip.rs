//! The number of backends changes at full rate under a flood of new connections, and none misses.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use portolan_plan::model::Protocol::Udp;
use portolan_plan::model::*;
use portolan_sys::link::Links;
use portolan_sys::packet::PacketSocket;

use super::plans::*;
use super::world::*;

/// How long, and how many connections: the connection table takes no more than `nf_conntrack_max`.
const TIME: Duration = Duration::from_secs(4);
const FLOWS: usize = 200_000;

fn service(vip: &str, backends: usize, affinity: Option<u64>) -> Arc<ServicePlan> {
    let name = set_name(Udp, Family::V4, Scope::Cluster);
    let mut part = ServicePlan::default();
    let mut plan = does(FrontendKind::LoadBalancer, Action::Balance(name.clone()));
    plan.masquerade = Masquerade::Node;
    part.frontends.insert(address(vip, Udp, 53), plan);
    // Nobody has these addresses: the other node gets the packets and says nothing.
    let backends = (0..backends).map(|i| backend(&format!("10.244.2.{}", 100 + i), 53));
    part.sets.insert(name, set(backends, affinity));
    Arc::new(part)
}

/// A UDP datagram from a source of its own, as an Ethernet frame.
pub fn frame(number: usize, to: [u8; 6], vip: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(46);
    frame.extend(to);
    frame.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    let source = [192, 0, 2, 50 + (number % 100) as u8];
    let mut header = vec![0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0];
    header.extend(source);
    header.extend(vip.octets());
    let sum: u32 = header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    let port = 1024 + ((number / 100) % 64_000) as u16;
    frame.extend(port.to_be_bytes());
    frame.extend(53u16.to_be_bytes());
    // Without a checksum.
    frame.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

fn received(host: &Host) -> usize {
    host.run(|| {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").expect("link statistics");
        let line = text.lines().find_map(|l| l.trim().strip_prefix("eth0:")).expect("eth0").to_owned();
        line.split_whitespace().nth(1).expect("packets").parse().expect("a number")
    })
}

/// A few bits that look random.
fn scramble(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

#[test]
fn no_new_connection_misses_while_backends_come_and_go_at_full_rate() {
    world("no new connection misses while backends come and go at full rate", |w| {
        w.router.sysctl("net/netfilter/nf_conntrack_udp_timeout", "1").expect("a setting");
        let mut engine = w.engine();
        let mut plan = Plan::default();
        let names = [("plain", "203.0.113.1", None), ("sticky", "203.0.113.2", Some(600))];
        for (name, vip, affinity) in names {
            plan.services.insert(ServiceName::new("flip", name), service(vip, 40, affinity));
        }
        let _ = engine.sync(&plan).expect("a sync");
        let mac = w.router.run(|| Links::open()?.link("out")).expect("a link").mac.expect("an address");
        let socket = w
            .client
            .run(|| PacketSocket::open(Links::open()?.index("eth0")?, 0x88b5, &[]))
            .expect("a packet socket");
        let before = received(&w.far);
        let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
        let mut changes = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                let vips = names.map(|(_, vip, _)| vip.parse().expect("an address"));
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) && number < FLOWS {
                    if socket.send(&frame(number, mac, vips[number & 1])).is_ok() {
                        number += 1;
                        sent.store(number, Ordering::Relaxed);
                    }
                }
            });
            let mut random = 7;
            let started = Instant::now();
            while started.elapsed() < TIME && sent.load(Ordering::Relaxed) < FLOWS {
                let (name, vip, affinity) = names[changes & 1];
                let count = 1 + scramble(&mut random) % 40;
                let mut change = PlanChange::default();
                change.services.insert(ServiceName::new("flip", name), Some(service(vip, count, affinity)));
                let _ = engine.apply(&change).expect("a change");
                changes += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        let sent = sent.load(Ordering::Relaxed);
        let forwarded = received(&w.far) - before;
        println!("{changes} changes, {sent} new connections, {forwarded} forwarded");
        let counters = engine.counters().expect("counters");
        assert_eq!(counters.missed, 0, "of {sent} connections in {changes} changes");
        assert!(
            forwarded >= sent,
            "{} of {sent} connections in {changes} changes went elsewhere",
            sent - forwarded
        );
        assert!(sent > 1000 && changes > 100, "{sent} connections, {changes} changes prove nothing");
    });
}

/// The same packets with a table that is wrong on purpose, so that the test above can fail.
#[test]
fn the_flood_sees_a_frontend_whose_slots_are_gone() {
    world("the flood sees a frontend whose slots are gone", |w| {
        let mut engine = w.engine();
        let mut plan = Plan::default();
        plan.services.insert(ServiceName::new("flip", "plain"), service("203.0.113.1", 3, None));
        let _ = engine.sync(&plan).expect("a sync");
        let emptied = w.router.run(|| {
            std::process::Command::new("nft").args(["flush", "map", "ip", "portolan", "slots"]).status()
        });
        if !emptied.is_ok_and(|status| status.success()) {
            portolan_sys::trial::skipped("the flood sees a frontend whose slots are gone", "no nft");
            return;
        }
        let vip = IpAddr::from([203, 0, 113, 1]);
        // Not translated, it would go back to where it came from, which is refused.
        assert_eq!(w.client.ask(Udp, vip, 53, false), Outcome::Refused);
        assert_eq!(engine.counters().expect("counters").missed, 1);
    });
}
