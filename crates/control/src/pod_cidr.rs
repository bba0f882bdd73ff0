//! A part of the cluster's ranges for each node: which one is free, decided from what all nodes have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Why ranges cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Two ranges of one family.
    #[error("clusterCIDRs: {first} and {second} are of one family; give at most one range a family")]
    SameFamily {
        /// One.
        first: IpNet,
        /// The other.
        second: IpNet,
    },
    /// A node's prefix that does not fit into its range.
    #[error("the node prefix /{prefix} does not fit into the cluster range {range}; it must lie between /{} and /{}", range.prefix_len(), range.max_prefix_len())]
    Prefix {
        /// The range.
        range: IpNet,
        /// The prefix length.
        prefix: u8,
    },
    /// Every part is taken.
    #[error("the cluster range {range} has no /{prefix} left; give a larger range or remove nodes")]
    Exhausted {
        /// The range.
        range: IpNet,
        /// The prefix length.
        prefix: u8,
    },
}

/// Whether the ranges can be used at all.
pub fn check(ranges: &[IpNet], v4: u8, v6: u8) -> Result<(), Error> {
    for (at, range) in ranges.iter().enumerate() {
        if let Some(first) = ranges[..at].iter().find(|other| same_family(other, range)) {
            return Err(Error::SameFamily { first: *first, second: *range });
        }
        let prefix = prefix_of(range, v4, v6);
        if prefix < range.prefix_len() || prefix > range.max_prefix_len() {
            return Err(Error::Prefix { range: *range, prefix });
        }
    }
    Ok(())
}

/// What a node that has `own` should have, when other nodes have `taken`: what it has, and for each range of a family
/// in which it has nothing the first part that overlaps nobody's. Ranges keep their order.
pub fn assign(ranges: &[IpNet], v4: u8, v6: u8, own: &[IpNet], taken: &[IpNet]) -> Result<Vec<IpNet>, Error> {
    if !own.is_empty() && ranges.iter().all(|range| own.iter().any(|net| same_family(net, range))) {
        return Ok(own.to_vec());
    }
    let mut assigned = Vec::new();
    for range in ranges {
        match own.iter().find(|net| same_family(net, range)) {
            Some(net) => assigned.push(*net),
            None => assigned.push(first_free(range, prefix_of(range, v4, v6), taken)?),
        }
    }
    Ok(assigned)
}

fn prefix_of(range: &IpNet, v4: u8, v6: u8) -> u8 {
    match range {
        IpNet::V4(_) => v4,
        IpNet::V6(_) => v6,
    }
}

fn same_family(one: &IpNet, other: &IpNet) -> bool {
    one.addr().is_ipv4() == other.addr().is_ipv4()
}

fn first_free(range: &IpNet, prefix: u8, taken: &[IpNet]) -> Result<IpNet, Error> {
    let exhausted = Error::Exhausted { range: *range, prefix };
    let mut taken: Vec<&IpNet> = taken.iter().filter(|net| same_family(net, range)).collect();
    taken.sort();
    let (mut at, last) = (number(range.network()), number(range.broadcast()));
    let size = 1u128.checked_shl(u32::from(range.max_prefix_len() - prefix)).unwrap_or(0);
    loop {
        let Some(end) = at.checked_add(size.wrapping_sub(1)).filter(|end| *end <= last) else {
            return Err(exhausted);
        };
        // In sorted order one pass is enough, but nodes may have brought ranges of any size: skip behind whatever
        // overlaps, and look again.
        match taken
            .iter()
            .filter(|net| number(net.network()) <= end && number(net.broadcast()) >= at)
            .map(|net| number(net.broadcast()))
            .max()
        {
            None => return net(range, at, prefix).ok_or(exhausted),
            Some(behind) => {
                let Some(next) = behind.checked_add(1) else { return Err(exhausted) };
                let rest = if size == 0 { 0 } else { next % size };
                at = if rest == 0 { next } else { next - rest + size };
            }
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn net(range: &IpNet, at: u128, prefix: u8) -> Option<IpNet> {
    match range {
        IpNet::V4(_) => {
            let address = Ipv4Addr::from_bits(u32::try_from(at).ok()?);
            Ipv4Net::new(address, prefix).ok().map(IpNet::V4)
        }
        IpNet::V6(_) => Ipv6Net::new(Ipv6Addr::from_bits(at), prefix).ok().map(IpNet::V6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|net| net.parse().expect("a range")).collect()
    }

    #[test]
    fn each_node_gets_the_first_free_part_of_each_family() {
        for (own, taken, expected) in [
            ("", "", "10.1.0.0/24 fd00:1::/64"),
            ("", "10.1.0.0/24 fd00:1::/64", "10.1.1.0/24 fd00:1:0:1::/64"),
            ("", "10.1.1.0/24 fd00:1::/64", "10.1.0.0/24 fd00:1:0:1::/64"),
            ("10.1.7.0/24", "", "10.1.7.0/24 fd00:1::/64"),
            ("10.9.7.0/24 fd99::/64", "", "10.9.7.0/24 fd99::/64"),
            ("", "10.1.0.0/25", "10.1.1.0/24 fd00:1::/64"),
            ("", "10.1.0.0/23", "10.1.2.0/24 fd00:1::/64"),
        ] {
            let given = assign(&nets("10.1.0.0/16 fd00:1::/48"), 24, 64, &nets(own), &nets(taken));
            assert_eq!(given, Ok(nets(expected)), "own {own:?}, taken {taken:?}");
        }
    }

    #[test]
    fn a_full_range_is_an_error_that_names_it() {
        let full = assign(&nets("10.1.0.0/24"), 25, 64, &[], &nets("10.1.0.0/25 10.1.0.128/25"));
        assert_eq!(full, Err(Error::Exhausted { range: nets("10.1.0.0/24")[0], prefix: 25 }));
    }

    #[test]
    fn ranges_that_cannot_work_are_refused() {
        assert!(check(&nets("10.1.0.0/16 fd00::/48"), 24, 64).is_ok());
        assert!(matches!(check(&nets("10.1.0.0/16 10.2.0.0/16"), 24, 64), Err(Error::SameFamily { .. })));
        assert!(matches!(check(&nets("10.1.0.0/26"), 24, 64), Err(Error::Prefix { .. })));
    }

    proptest! {
        #[test]
        fn no_part_is_given_twice(leaving in proptest::collection::vec(0usize..8, 0..40)) {
            let range = nets("10.1.0.0/20 fd00::/60");
            let mut nodes: Vec<Vec<IpNet>> = Vec::new();
            for leave in leaving {
                let taken: Vec<IpNet> = nodes.iter().flatten().copied().collect();
                match assign(&range, 24, 64, &[], &taken) {
                    Ok(given) => {
                        for net in &given {
                            prop_assert!(taken.iter().all(|other| !same_family(net, other)
                                || !(net.contains(other) || other.contains(net))));
                        }
                        nodes.push(given);
                    }
                    Err(_) => prop_assert_eq!(nodes.len(), 16),
                }
                if leave > 3 && !nodes.is_empty() {
                    let at = leave % nodes.len();
                    nodes.swap_remove(at);
                }
            }
        }
    }
}
