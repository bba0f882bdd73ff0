//! Who announces an address: a pure choice that every node computes alike.

use std::net::IpAddr;

/// The node among `candidates` that announces `address`: the one with the highest score of (node, address), so that a
/// node that goes moves only its own addresses (rendezvous hashing), and no node needs to ask another.
pub fn announcer<'n>(address: IpAddr, candidates: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // The name breaks ties, so that the order of the candidates never matters.
    candidates.into_iter().max_by_key(|node| (score(node, address), *node))
}

/// FNV-1a over the node's name and the address, then the 64-bit finalizer of MurmurHash3, without which names that
/// differ in their last letter score alike. Part of the protocol between nodes: it must never change within a cluster.
fn score(node: &str, address: IpAddr) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |byte: u8| {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
    };
    node.bytes().for_each(&mut add);
    add(0);
    match address {
        IpAddr::V4(a) => a.octets().into_iter().for_each(&mut add),
        IpAddr::V6(a) => a.octets().into_iter().for_each(&mut add),
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_choice_is_part_of_the_protocol_and_does_not_change() {
        let nodes = ["node-1", "node-2", "node-3"];
        let chosen: Vec<_> = (200..206)
            .map(|i| announcer(IpAddr::from([10, 80, 0, i]), nodes).expect("three candidates"))
            .collect();
        assert_eq!(chosen, GOLDEN);
        assert_eq!(announcer(IpAddr::from([10, 80, 0, 200]), []), None);
    }

    const GOLDEN: [&str; 6] = ["node-3", "node-3", "node-2", "node-2", "node-1", "node-2"];

    proptest! {
        #[test]
        fn every_node_chooses_alike_whatever_the_order(mut nodes in proptest::collection::hash_set("[a-z0-9-]{1,12}", 1..8)
            .prop_map(|s| s.into_iter().collect::<Vec<_>>()), a in any::<u32>()) {
            let address = IpAddr::from(a.to_be_bytes());
            let one = announcer(address, nodes.iter().map(String::as_str)).map(str::to_owned);
            nodes.reverse();
            let other = announcer(address, nodes.iter().map(String::as_str)).map(str::to_owned);
            prop_assert_eq!(one, other);
        }

        #[test]
        fn a_node_that_goes_moves_only_its_own_addresses(nodes in proptest::collection::hash_set("[a-z0-9-]{1,12}", 2..8)
            .prop_map(|s| s.into_iter().collect::<Vec<_>>()), a in any::<u128>()) {
            let address = IpAddr::from(a.to_be_bytes());
            let before = announcer(address, nodes.iter().map(String::as_str)).expect("candidates");
            let after = announcer(address, nodes[1..].iter().map(String::as_str)).expect("candidates");
            prop_assert!(before == nodes[0] || before == after);
        }
    }
}
