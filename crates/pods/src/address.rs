//! Which address a pod gets: one of each family of the node's ranges, never one that is in use.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The node's ranges and who has which address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool {
    ranges: Vec<IpNet>,
    owners: BTreeMap<String, Vec<IpAddr>>,
    /// The address given last in each range: the search goes on behind it, so that an address rests before it returns.
    last: BTreeMap<IpNet, IpAddr>,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// The first free address of a range behind `after`, around the end. Neither the range's own address nor, for IPv4, the
/// last one: some software takes them for the network and for everybody.
fn choose(range: IpNet, used: &BTreeSet<IpAddr>, after: Option<IpAddr>) -> Option<IpAddr> {
    let (network, broadcast) = (number(range.network()), number(range.broadcast()));
    let (mut first, mut last) = (network, broadcast);
    if broadcast - network > 2 {
        first += 1;
        if range.addr().is_ipv4() {
            last -= 1;
        }
    }
    let begin =
        after.map(number).filter(|after| (first..last).contains(after)).map_or(first, |after| after + 1);
    // At most one more than are used need be looked at.
    let candidates = (begin..=last).chain(first..begin).take(used.len() + 1);
    candidates.map(|number| address(number, range.addr())).find(|address| !used.contains(address))
}

impl Pool {
    /// Takes note of addresses that a pod has had since before this process started.
    pub fn claim(&mut self, pod: &str, addresses: Vec<IpAddr>) {
        self.owners.insert(pod.to_owned(), addresses);
    }

    /// `spec.podCIDRs`. Addresses given before stay with their pods.
    pub fn set_ranges(&mut self, ranges: Vec<IpNet>) {
        self.ranges = ranges;
    }

    /// The ranges.
    pub fn ranges(&self) -> &[IpNet] {
        &self.ranges
    }

    /// A pod's addresses: those that it has, or new ones, one of each range. An error says which range is exhausted.
    pub fn give(&mut self, pod: &str) -> Result<Vec<IpAddr>, String> {
        if let Some(addresses) = self.owners.get(pod) {
            return Ok(addresses.clone());
        }
        if self.ranges.is_empty() {
            return Err("the node has no spec.podCIDRs yet".to_owned());
        }
        let used: BTreeSet<IpAddr> = self.owners.values().flatten().copied().collect();
        let mut given = Vec::new();
        for range in &self.ranges {
            let chosen = choose(*range, &used, self.last.get(range).copied())
                .ok_or_else(|| format!("all addresses of {range} are in use by pods of this node"))?;
            given.push((*range, chosen));
        }
        self.last.extend(given.iter().copied());
        let addresses: Vec<IpAddr> = given.into_iter().map(|(_, address)| address).collect();
        self.owners.insert(pod.to_owned(), addresses.clone());
        Ok(addresses)
    }

    /// Nothing of the pod is left that could use its addresses.
    pub fn release(&mut self, pod: &str) {
        self.owners.remove(pod);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(ranges: &[&str]) -> Pool {
        let mut pool = Pool::default();
        pool.set_ranges(ranges.iter().map(|range| range.parse().expect("a range")).collect());
        pool
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn a_pod_gets_one_address_of_each_family_and_keeps_it() {
        let mut pool = pool(&["10.1.2.0/24", "fd00:1::/64"]);
        assert_eq!(pool.give("a"), Ok(addresses(&["10.1.2.1", "fd00:1::1"])));
        assert_eq!(pool.give("b"), Ok(addresses(&["10.1.2.2", "fd00:1::2"])));
        assert_eq!(pool.give("a"), Ok(addresses(&["10.1.2.1", "fd00:1::1"])));
    }

    #[test]
    fn an_address_in_use_is_never_given_and_a_free_one_rests_first() {
        let mut pool = pool(&["10.1.2.0/29"]);
        pool.claim("old", addresses(&["10.1.2.2"]));
        assert_eq!(pool.give("a"), Ok(addresses(&["10.1.2.1"])));
        pool.release("a");
        assert_eq!(pool.give("b"), Ok(addresses(&["10.1.2.3"])));
        for (pod, expected) in [("c", "10.1.2.4"), ("d", "10.1.2.5"), ("e", "10.1.2.6"), ("f", "10.1.2.1")] {
            assert_eq!(pool.give(pod), Ok(addresses(&[expected])), "{pod}");
        }
        assert!(pool.give("g").is_err_and(|text| text.contains("10.1.2.0/29")));
        pool.release("d");
        assert_eq!(pool.give("g"), Ok(addresses(&["10.1.2.5"])));
    }

    #[test]
    fn without_ranges_nothing_is_given() {
        assert!(Pool::default().give("a").is_err());
    }
}
