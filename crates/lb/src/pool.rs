//! Load-balancer addresses: who has which. An address is never given twice nor taken from its owner.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// Addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

/// Why a text is not a range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not an address, a range or a prefix.
    #[error(
        "{0:?} is not a range of addresses; write FIRST-LAST (192.0.2.10-192.0.2.20), a prefix (192.0.2.0/28) or one address"
    )]
    Malformed(String),
    /// The ends are of two families.
    #[error("{0:?} begins in one family and ends in the other; give one range for each")]
    MixedFamilies(String),
    /// The last address lies before the first.
    #[error("{0:?} ends before it begins; write the lower address first")]
    Backwards(String),
}

/// Why an owner gets no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no range of this family.
    #[error("the pool has no {0} addresses; add a range of that family to the pool (--pool)")]
    NoRange(&'static str),
    /// Every address is taken.
    #[error(
        "all {count} {family} addresses of the pool are in use; add a range (--pool) or delete a Service of type LoadBalancer"
    )]
    Exhausted {
        /// The family.
        family: &'static str,
        /// How many addresses there are.
        count: u128,
    },
    /// The requested address is not in the pool.
    #[error(
        "the requested address {0} is not in the pool; request one of its addresses or add a range (--pool)"
    )]
    Outside(IpAddr),
    /// The requested address belongs to another owner.
    #[error("the requested address {address} is in use by {owner}; request another, or none")]
    Taken {
        /// The address.
        address: IpAddr,
        /// Who has it.
        owner: String,
    },
}

/// The addresses and their owners.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    ranges: Vec<Range>,
    owners: BTreeMap<IpAddr, String>,
}

// === impl ===

impl Range {
    /// Whether the address is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && (self.first..=self.last).contains(&address)
    }

    /// How many addresses there are.
    pub fn count(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    fn is_ipv6(&self) -> bool {
        self.first.is_ipv6()
    }
}

impl FromStr for Range {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Range, ParseError> {
        let malformed = || ParseError::Malformed(text.to_owned());
        let address = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| malformed());
        let (first, last) = if let Some((first, last)) = text.split_once('-') {
            (address(first)?, address(last)?)
        } else if text.contains('/') {
            let net: IpNet = text.trim().parse().map_err(|_| malformed())?;
            (net.network(), net.broadcast())
        } else {
            (address(text)?, address(text)?)
        };
        if first.is_ipv4() != last.is_ipv4() {
            return Err(ParseError::MixedFamilies(text.to_owned()));
        }
        if last < first {
            return Err(ParseError::Backwards(text.to_owned()));
        }
        Ok(Range { first, last })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Pool {
    /// A pool in which nothing is given yet.
    pub fn new(ranges: Vec<Range>) -> Pool {
        Pool { ranges, owners: BTreeMap::new() }
    }

    /// Whether there is no range at all.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The owner's addresses, IPv4 first.
    pub fn of(&self, owner: &str) -> Vec<IpAddr> {
        self.owners.iter().filter(|(_, other)| *other == owner).map(|(address, _)| *address).collect()
    }

    /// Gives the owner this address, or says why not. Asking again for one's own is fine.
    pub fn claim(&mut self, owner: &str, address: IpAddr) -> Result<(), Refusal> {
        if !self.ranges.iter().any(|range| range.contains(address)) {
            return Err(Refusal::Outside(address));
        }
        match self.owners.get(&address) {
            Some(other) if other != owner => Err(Refusal::Taken { address, owner: other.clone() }),
            _ => {
                self.owners.insert(address, owner.to_owned());
                Ok(())
            }
        }
    }

    /// Gives the owner an address of the family: the requested one; else the one it has; else the first free one.
    pub fn assign(&mut self, owner: &str, ipv6: bool, requested: Option<IpAddr>) -> Result<IpAddr, Refusal> {
        let held = self.of(owner).into_iter().find(|address| address.is_ipv6() == ipv6);
        if let Some(wanted) = requested {
            self.claim(owner, wanted)?;
            if let Some(held) = held.filter(|held| *held != wanted) {
                self.owners.remove(&held);
            }
            return Ok(wanted);
        }
        if let Some(held) = held {
            return Ok(held);
        }
        let family = if ipv6 { "IPv6" } else { "IPv4" };
        let mut count = 0u128;
        for range in self.ranges.iter().filter(|range| range.is_ipv6() == ipv6) {
            count = count.saturating_add(range.count());
            if let Some(address) = self.first_free(range) {
                self.owners.insert(address, owner.to_owned());
                return Ok(address);
            }
        }
        Err(if count == 0 { Refusal::NoRange(family) } else { Refusal::Exhausted { family, count } })
    }

    /// Takes back what the owner has of a family; which address it was.
    pub fn release_family(&mut self, owner: &str, ipv6: bool) -> Option<IpAddr> {
        let held = self.of(owner).into_iter().find(|address| address.is_ipv6() == ipv6)?;
        self.owners.remove(&held);
        Some(held)
    }

    /// Takes back all that the owner has.
    pub fn release(&mut self, owner: &str) -> Vec<IpAddr> {
        let held = self.of(owner);
        for address in &held {
            self.owners.remove(address);
        }
        held
    }

    fn first_free(&self, range: &Range) -> Option<IpAddr> {
        let mut next = number(range.first);
        // Owners are in the order of their addresses: the first gap is free.
        for taken in self.owners.range(range.first..=range.last).map(|(address, _)| number(*address)) {
            if taken != next {
                break;
            }
            next = next.checked_add(1)?;
        }
        (next <= number(range.last)).then(|| from_number(next, range.is_ipv6()))
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn from_number(number: u128, ipv6: bool) -> IpAddr {
    if ipv6 {
        IpAddr::V6(Ipv6Addr::from_bits(number))
    } else {
        IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(ranges: &str) -> Pool {
        Pool::new(ranges.split_whitespace().map(|range| range.parse().expect("a range")).collect())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn ranges_are_read_as_people_write_them() {
        for (text, expected) in [
            ("192.0.2.10-192.0.2.12", Ok(3)),
            ("192.0.2.0/29", Ok(8)),
            ("192.0.2.7", Ok(1)),
            ("fd00::10-fd00::1f", Ok(16)),
            ("fd00::/64", Ok(1 << 64)),
            ("192.0.2.10-fd00::1", Err(ParseError::MixedFamilies("192.0.2.10-fd00::1".into()))),
            ("192.0.2.10-192.0.2.9", Err(ParseError::Backwards("192.0.2.10-192.0.2.9".into()))),
            ("some", Err(ParseError::Malformed("some".into()))),
            ("192.0.2.0/33", Err(ParseError::Malformed("192.0.2.0/33".into()))),
        ] {
            assert_eq!(text.parse::<Range>().map(|range| range.count()), expected, "{text}");
        }
    }

    #[test]
    fn an_owner_keeps_its_address_and_the_next_gets_the_next() {
        let mut pool = pool("192.0.2.10-192.0.2.11 fd00::10-fd00::11");
        assert_eq!(pool.assign("a", false, None), Ok(ip("192.0.2.10")));
        assert_eq!(pool.assign("b", false, None), Ok(ip("192.0.2.11")));
        assert_eq!(pool.assign("a", false, None), Ok(ip("192.0.2.10")));
        assert_eq!(pool.assign("a", true, None), Ok(ip("fd00::10")));
        assert_eq!(pool.assign("c", false, None), Err(Refusal::Exhausted { family: "IPv4", count: 2 }));
        assert_eq!(pool.release("a"), [ip("192.0.2.10"), ip("fd00::10")]);
        assert_eq!(pool.assign("c", false, None), Ok(ip("192.0.2.10")));
    }

    #[test]
    fn a_request_is_granted_or_refused_by_name() {
        let mut pool = pool("192.0.2.10-192.0.2.12");
        assert_eq!(pool.assign("a", false, Some(ip("192.0.2.12"))), Ok(ip("192.0.2.12")));
        let taken = Refusal::Taken { address: ip("192.0.2.12"), owner: "a".into() };
        assert_eq!(pool.assign("b", false, Some(ip("192.0.2.12"))), Err(taken));
        assert_eq!(pool.assign("b", false, Some(ip("192.0.2.99"))), Err(Refusal::Outside(ip("192.0.2.99"))));
        assert_eq!(pool.assign("a", false, Some(ip("192.0.2.10"))), Ok(ip("192.0.2.10")));
        assert_eq!(pool.of("a"), [ip("192.0.2.10")], "the former address is free again");
        assert_eq!(pool.assign("c", true, None), Err(Refusal::NoRange("IPv6")));
    }

    proptest! {
        #[test]
        fn no_address_has_two_owners(steps in proptest::collection::vec((0u8..6, 0u8..3, 0u8..12), 1..80)) {
            let mut pool = pool("192.0.2.8-192.0.2.12");
            let mut held: BTreeMap<String, IpAddr> = BTreeMap::new();
            for (owner, what, wish) in steps {
                let owner = format!("o{owner}");
                let wish = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 4 + wish));
                match what {
                    0 => {
                        pool.release(&owner);
                        held.remove(&owner);
                    }
                    what => {
                        if let Ok(address) = pool.assign(&owner, false, (what == 2).then_some(wish)) {
                            held.insert(owner, address);
                        }
                    }
                }
                for (owner, address) in &held {
                    prop_assert_eq!(pool.of(owner), vec![*address]);
                }
                let mut addresses: Vec<_> = held.values().collect();
                addresses.sort();
                addresses.dedup();
                prop_assert_eq!(addresses.len(), held.len());
            }
        }
    }
}
