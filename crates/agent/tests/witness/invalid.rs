//! Packets of no connection do no harm: what conntrack takes for invalid is neither sent on nor answered.

use std::net::SocketAddr;

use portolan_plan::model::{Family, Frontend, Protocol};
use portolan_plan::planner::plan_all;

use crate::draw::{Cluster, Dice, Taste};
use crate::flows::{views, wires};
use crate::wire::{First, Seen, What, packet, packet_with};
use crate::world::{Wires, outsiders, pod};

/// SYN and FIN at once: no connection begins or goes on like that (tcp_valid_flags in nf_conntrack_proto_tcp.c).
const INVALID: u8 = 2 | 1;

#[test]
fn a_packet_that_is_invalid_leaves_no_pod_and_gets_no_answer_from_a_cluster_ip() {
    wires("a packet that is invalid leaves no pod and gets no answer from a cluster IP", |wires| {
        let cluster = Cluster::draw(&mut Dice(1), Taste { as_kube_proxy: true });
        let (plan, _) = plan_all(views(&cluster));
        let _ = wires.world.engine().sync(&plan).expect("a sync");
        for family in [Family::V4, Family::V6] {
            let first = |destination: SocketAddr, number| First {
                source: SocketAddr::new(pod(family, 0), 8080),
                destination,
                protocol: Protocol::Tcp,
                number,
            };
            let arrives = |wires: &mut Wires, first: &First, bytes: &[u8]| {
                let is_it = |seen: &Seen| seen.what == What::First(Protocol::Tcp, first.number);
                wires.overhear(first, bytes).iter().any(is_it)
            };
            let to_client = first(SocketAddr::new(outsiders(family)[0], 4000), 7);
            assert!(arrives(wires, &to_client, &packet(&to_client)), "{family}: the wire works");
            assert!(
                !arrives(wires, &to_client, &packet_with(&to_client, INVALID)),
                "{family}: the client would answer an address that it has no connection to"
            );
            let is_cluster_ip = |f: &&Frontend| {
                matches!(f, Frontend::Address { address, protocol: Protocol::Tcp, .. }
                if Family::of(*address) == family && plan.node.service_cidrs.iter().any(|r| r.contains(address)))
            };
            let frontend = plan.services.values().flat_map(|p| p.frontends.keys()).find(is_cluster_ip);
            let Some(Frontend::Address { address, port, .. }) = frontend else {
                panic!("no cluster IP with a TCP port")
            };
            let to_vip = first(SocketAddr::new(*address, *port), 9);
            // Dropped and not refused: out of its window, such a packet may still bear the numbers of a connection that lives.
            let heard = wires.overhear(&to_vip, &packet_with(&to_vip, INVALID));
            assert!(heard.iter().all(|seen| seen.source != to_vip.destination), "{family}: {heard:?}");
            assert!(
                !heard.iter().any(|seen| seen.what == What::First(Protocol::Tcp, 9)),
                "{family}: {heard:?}"
            );
        }
    });
}
