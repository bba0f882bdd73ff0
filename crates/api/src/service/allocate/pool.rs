//! A space of addresses or ports with two bands: what is drawn comes from the upper one, so that the lower stays free for
//! those who name a value (KEP-3070, KEP-3668).

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// Something that has a place in a space.
pub(super) trait Pick: Sized {
    fn at(number: u128) -> Self;
    fn place(&self) -> u128;
}

impl Pick for u16 {
    fn at(number: u128) -> Self {
        u16::try_from(number).unwrap_or(u16::MAX)
    }
    fn place(&self) -> u128 {
        u128::from(*self)
    }
}

impl Pick for IpAddr {
    // IPv4 lives where it is mapped into IPv6: one number line for both.
    fn at(number: u128) -> Self {
        let v6 = std::net::Ipv6Addr::from(number);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }
    fn place(&self) -> u128 {
        match self {
            IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => u128::from(*v6),
        }
    }
}

/// The usable values, first to last, and how many of the first are not drawn unless the rest is taken.
pub(super) struct Space<T> {
    first: u128,
    last: u128,
    band: u128,
    of: std::marker::PhantomData<T>,
}

fn band(size: u128, share: u128, least: u128, most: u128) -> u128 {
    if size <= least { 0 } else { (size / share).max(least).min(most) }
}

impl Space<IpAddr> {
    pub fn of_addresses(net: IpNet) -> Self {
        let (network, end) = (net.network().place(), net.broadcast().place());
        let size = (end - network).saturating_add(1);
        // IPv4 ends with the broadcast address; IPv6 has none.
        let last = if net.addr().is_ipv4() { end.saturating_sub(1) } else { end };
        Self { first: network + 1, last, band: band(size, 16, 16, 256), of: std::marker::PhantomData }
    }
}

impl Space<u16> {
    pub fn of_ports(range: RangeInclusive<u16>) -> Self {
        let (first, last) = (u128::from(*range.start()), u128::from(*range.end()));
        let size = (last + 1).saturating_sub(first);
        Self { first, last, band: band(size, 32, 16, 128), of: std::marker::PhantomData }
    }
}

impl<T: Pick> Space<T> {
    pub fn contains(&self, value: &T) -> bool {
        (self.first..=self.last).contains(&value.place())
    }

    /// A random free value of the upper band, else of the lower one.
    pub fn pick(&self, free: &dyn Fn(&T) -> bool, random: &mut dyn FnMut(u64) -> u64) -> Option<T> {
        let size = self.last.saturating_add(1).saturating_sub(self.first);
        let band = self.band.min(size);
        Self::search(self.first + band, size - band, free, random)
            .or_else(|| Self::search(self.first, band, free, random))
    }

    fn search(
        first: u128,
        size: u128,
        free: &dyn Fn(&T) -> bool,
        random: &mut dyn FnMut(u64) -> u64,
    ) -> Option<T> {
        if size == 0 {
            return None;
        }
        // 2^64 values are as good as all of a larger range.
        let size = size.min(u128::from(u64::MAX));
        let start = u128::from(random(size as u64)) % size;
        (0..size).map(|i| T::at(first + (start + i) % size)).find(|value| free(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_band_is_drawn_from_last() {
        let rows = [
            ("10.0.0.0/24", "10.0.0.17", 16u128),
            ("10.0.0.0/16", "10.0.1.1", 256),
            ("10.0.0.0/28", "10.0.0.1", 0),
            ("10.0.0.0/27", "10.0.0.17", 16),
            ("fd00::/112", "fd00::101", 256),
        ];
        for (net, first, band) in rows {
            let space = Space::of_addresses(net.parse().unwrap());
            assert_eq!(space.band, band, "{net}");
            assert_eq!(space.pick(&|_| true, &mut |_| 0), Some(first.parse().unwrap()), "{net}");
        }
        let ports = Space::of_ports(30000..=32767);
        assert_eq!(ports.band, 86);
        assert_eq!(ports.pick(&|_| true, &mut |_| 0), Some(30086));
        assert_eq!(ports.pick(&|p| *p < 30086, &mut |_| 0), Some(30000));
    }

    #[test]
    fn every_usable_value_is_given_before_the_space_is_full() {
        let space = Space::of_addresses("10.0.0.0/27".parse().unwrap());
        let mut given: Vec<IpAddr> = Vec::new();
        while let Some(ip) = space.pick(&|ip| !given.contains(ip), &mut |n| n / 2) {
            given.push(ip);
        }
        assert_eq!(given.len(), 30);
        assert!(!given.contains(&"10.0.0.0".parse().unwrap()));
        assert!(!given.contains(&"10.0.0.31".parse().unwrap()));
    }
}
