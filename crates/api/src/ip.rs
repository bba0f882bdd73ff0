//! Addresses and ranges as Kubernetes reads them in fields that are older than strict parsing.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::fielderror::{FieldError, quote};

/// A family of addresses, by its name in the API.
pub fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Parses as Go's old parser did: leading zeros in IPv4 are decimal. Says whether there were any.
fn sloppy(text: &str) -> Option<(IpAddr, bool)> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some((ip, false));
    }
    let mut octets = [0u8; 4];
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() != 4 {
        return None;
    }
    for (octet, part) in octets.iter_mut().zip(parts) {
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or(if part.bytes().all(|b| b == b'0') { Ok(0) } else { Err(()) })
            .ok()?;
    }
    Some((IpAddr::V4(Ipv4Addr::from(octets)), true))
}

fn decimal(text: &str) -> Option<u8> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// The address that a field holds, however it is written.
pub fn parse(text: &str) -> Option<IpAddr> {
    sloppy(text).map(|(ip, _)| ip)
}

/// What is wrong with an address in a field; values that are stored already (`had`) are left alone.
pub fn faults(path: &str, text: &str, had: &[&str]) -> Vec<FieldError> {
    if had.contains(&text) {
        return Vec::new();
    }
    match sloppy(text) {
        None => vec![FieldError::invalid(
            path,
            text,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        )],
        Some((_, true)) => vec![FieldError::invalid(path, text, "must not have leading 0s")],
        Some((ip, _)) if mapped(ip) => {
            vec![FieldError::invalid(path, text, "must not be an IPv4-mapped IPv6 address")]
        }
        Some(_) => Vec::new(),
    }
}

/// What is wrong with a range in a field; values that are stored already (`had`) are left alone.
pub fn range_faults(path: &str, text: &str, had: &[&str]) -> Vec<FieldError> {
    if had.contains(&text) {
        return Vec::new();
    }
    let bad = || {
        vec![FieldError::invalid(
            path,
            text,
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        )]
    };
    let Some((address, length)) = text.split_once('/') else { return bad() };
    let (Some((ip, zeros)), Some(bits)) = (sloppy(address), decimal(length)) else { return bad() };
    let Ok(net) = IpNet::new(ip, bits) else { return bad() };
    if zeros || (length.len() > 1 && length.starts_with('0')) {
        return vec![FieldError::invalid(path, text, "must not have leading 0s in IP or prefix length")];
    }
    if mapped(ip) {
        return vec![FieldError::invalid(path, text, "must not have an IPv4-mapped IPv6 address")];
    }
    if net.trunc() != net {
        return vec![FieldError::invalid(path, text, "must not have bits set beyond the prefix length")];
    }
    Vec::new()
}

/// What is wrong with an address in a field that knows only the canonical spelling (apimachinery `IsValidIP`).
pub fn canonical_faults(path: &str, text: &str) -> Vec<FieldError> {
    let mut errors = faults(path, text, &[]);
    if let (true, Some(ip)) = (errors.is_empty(), parse(text))
        && ip.to_string() != text
    {
        let canonical = quote(&ip.to_string());
        errors.push(FieldError::invalid(path, text, format!("must be in canonical form ({canonical})")));
    }
    errors
}

/// The same for a range (apimachinery `IsValidCIDR`).
pub fn canonical_range_faults(path: &str, text: &str) -> Vec<FieldError> {
    let mut errors = range_faults(path, text, &[]);
    if let (true, Ok(net)) = (errors.is_empty(), text.parse::<IpNet>())
        && net.to_string() != text
    {
        let canonical = quote(&net.to_string());
        errors.push(FieldError::invalid(path, text, format!("must be in canonical form ({canonical})")));
    }
    errors
}

/// A warning for an address that is not written in its one canonical way.
pub fn warnings(path: &str, text: &str) -> Vec<String> {
    match sloppy(text) {
        None => Vec::new(),
        Some((ip, odd)) if odd || mapped(ip) => {
            let canonical = match ip {
                IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
                v4 => v4,
            };
            vec![format!(
                "{path}: non-standard IP address {} is invalid: use {}",
                quote(text),
                quote(&canonical.to_string())
            )]
        }
        Some((ip, _)) if ip.is_ipv6() && ip.to_string() != text => vec![format!(
            "{path}: IPv6 address {} should be in RFC 5952 canonical format ({})",
            quote(text),
            quote(&ip.to_string())
        )],
        Some(_) => Vec::new(),
    }
}

/// A warning for a range that is not written in its one canonical way.
pub fn range_warnings(path: &str, text: &str) -> Vec<String> {
    let canonical = text.parse::<IpNet>().ok().filter(|net| net.addr().is_ipv6()).map(|net| net.to_string());
    let odd = canonical.filter(|canonical| canonical != text).map(|canonical| {
        let (text, canonical) = (quote(text), quote(&canonical));
        format!("{path}: IPv6 CIDR value {text} should be in RFC 5952 canonical format ({canonical})")
    });
    odd.into_iter().collect()
}

/// What is wrong with an address as the end of a connection from elsewhere.
pub fn special_faults(path: &str, text: &str) -> Vec<FieldError> {
    let Some(ip) = parse(text) else {
        return vec![FieldError::invalid(path, text, "must be a valid IP address")];
    };
    let (unspecified, loopback, link_local, multicast) = match ip {
        IpAddr::V4(v4) => {
            (v4.is_unspecified(), v4.is_loopback(), v4.is_link_local(), v4.octets()[..3] == [224, 0, 0])
        }
        IpAddr::V6(v6) => (
            v6.is_unspecified(),
            v6.is_loopback(),
            v6.segments()[0] & 0xffc0 == 0xfe80,
            v6.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    let mut out = Vec::new();
    let mut say = |bad: bool, rule: String| {
        if bad {
            out.push(FieldError::invalid(path, text, rule));
        }
    };
    say(unspecified, format!("may not be unspecified ({text})"));
    say(loopback, "may not be in the loopback range (127.0.0.0/8, ::1/128)".into());
    say(link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".into());
    say(multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_spelling_unless_it_is_stored_already() {
        let texts = |text: &str| faults("p", text, &[]).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(texts("10.0.0.1").is_empty());
        assert!(texts("2001:db8::1").is_empty());
        assert_eq!(texts("010.0.0.1"), ["p: Invalid value: \"010.0.0.1\": must not have leading 0s"]);
        assert_eq!(
            texts("::ffff:1.2.3.4"),
            ["p: Invalid value: \"::ffff:1.2.3.4\": must not be an IPv4-mapped IPv6 address"]
        );
        assert_eq!(
            texts("1.2.3"),
            ["p: Invalid value: \"1.2.3\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]
        );
        assert!(faults("p", "010.0.0.1", &["010.0.0.1"]).is_empty());
        assert_eq!(parse("010.000.0.1"), Some("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn a_range_has_no_bits_beyond_its_prefix() {
        let texts =
            |text: &str| range_faults("p", text, &[]).into_iter().map(|e| e.detail).collect::<Vec<_>>();
        assert!(texts("10.0.0.0/8").is_empty());
        assert!(texts("::/0").is_empty());
        assert_eq!(texts("10.0.0.1/8"), ["must not have bits set beyond the prefix length"]);
        assert_eq!(texts("10.0.0.0/08"), ["must not have leading 0s in IP or prefix length"]);
        assert_eq!(texts("10.0.0.0"), ["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"]);
    }

    #[test]
    fn addresses_that_lead_nowhere_are_named() {
        for (text, part) in [
            ("0.0.0.0", "unspecified (0.0.0.0)"),
            ("::", "unspecified (::)"),
            ("127.1.2.3", "loopback range"),
            ("::1", "loopback range"),
            ("169.254.1.1", "link-local range"),
            ("fe80::1", "link-local range"),
            ("224.0.0.5", "link-local multicast"),
            ("ff02::1", "link-local multicast"),
        ] {
            let found = special_faults("p", text);
            assert_eq!(found.len(), 1, "{text}");
            assert!(found[0].detail.contains(part), "{text}: {}", found[0].detail);
        }
        assert!(special_faults("p", "192.0.2.1").is_empty());
    }

    #[test]
    fn odd_spellings_are_warned_about() {
        assert_eq!(
            warnings("p", "2001:DB8::1"),
            ["p: IPv6 address \"2001:DB8::1\" should be in RFC 5952 canonical format (\"2001:db8::1\")"]
        );
        assert_eq!(
            warnings("p", "010.0.0.1"),
            ["p: non-standard IP address \"010.0.0.1\" is invalid: use \"10.0.0.1\""]
        );
    }
}
