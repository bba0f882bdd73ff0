//! Any octets at all: nothing panics, and only questions are answered.

use portolan_dns::answer::{Said, answer, compose};
use portolan_dns::message::{Packet, Records, TCP_LIMIT, UDP_LIMIT, ask, head, read};
use proptest::prelude::*;

use crate::fixture::{query, usual, zone};

/// A question with some of its octets changed.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let names = prop::sample::select(vec![
        "web.default.svc.cluster.local",
        "_http._tcp.db.default.svc.cluster.local",
        "twice.default.svc.cluster.local",
        "80.0.96.10.in-addr.arpa",
        "www.example.com",
        "cluster.local",
    ]);
    let kinds = prop::sample::select(vec!["A", "AAAA", "SRV", "PTR", "SOA", "NS", "TXT", "ANY"]);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (names, kinds, changes, any::<prop::sample::Index>()).prop_map(|(name, kind, changes, cut)| {
        let mut packet = ask(&query(name, kind), 7);
        for (at, octet) in &changes {
            let at = at.index(packet.len());
            packet[at] = *octet;
        }
        if changes.len() == 3 {
            packet.truncate(cut.index(packet.len() + 1));
        }
        packet
    })
}

fn held(packet: &[u8]) {
    let zone = zone(&usual());
    match read(packet) {
        Packet::Query(query) => {
            for limit in [512, UDP_LIMIT, TCP_LIMIT] {
                let (Said::Answer(said) | Said::Elsewhere(said)) = answer(&zone, &query);
                let mut out = Vec::new();
                // The packet itself stands for what an upstream may say.
                compose(&mut out, &query, &said, Some(packet), limit, true);
                let head = head(&out).expect("a header");
                assert!(head.response && head.id == query.id && out.len() <= limit);
                assert!(Records::of(&out).expect("a question").all(|record| record.is_some()));
            }
        }
        Packet::Bad(header) => {
            assert_eq!((header[0], header[1]), (packet[0], packet[1]));
            assert!(header[2] & 0x80 != 0 && packet[2] & 0x80 == 0 && header[3] != 0);
        }
        Packet::Ignored => assert!(packet.len() < 12 || packet[2] & 0x80 != 0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_octets_are_read_without_a_panic(packet in prop::collection::vec(any::<u8>(), 0..600)) {
        held(&packet);
    }

    #[test]
    fn a_damaged_question_is_answered_or_refused_or_passed_over(packet in damaged()) {
        held(&packet);
    }
}

#[test]
fn an_answer_is_never_answered() {
    let mut packet = ask(&query("web.default.svc.cluster.local", "A"), 7);
    packet[2] |= 0x80;
    assert_eq!(read(&packet), Packet::Ignored);
}
