//! The name servers that a `resolv.conf` names (resolv.conf(5)).

use std::net::{IpAddr, SocketAddr};

/// The port of name servers.
pub const PORT: u16 = 53;

/// The servers in their order. Scoped addresses can't be asked without their link, and are left out.
pub fn servers(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() == Some("nameserver")
            && let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok())
        {
            servers.push(SocketAddr::new(address, PORT));
        }
    }
    servers
}

/// A server given as `ADDRESS`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
///
/// # Errors
///
/// What is wrong with it, and what would be right.
pub fn server(text: &str) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, PORT));
    }
    text.parse().map_err(|_| {
        format!("{text:?} is no address; write an IP address, if need be with a port, such as 192.0.2.1 or [2001:db8::1]:53")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_from_a_resolv_conf() {
        let text = "# by hand\nsearch lan\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # why\nnameserver fe80::1%eth0\nnameserver\n";
        let found: Vec<_> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn a_server_may_lack_its_port() {
        let given = |text| server(text).map(|s| s.to_string());
        assert_eq!(given("192.0.2.1"), Ok("192.0.2.1:53".into()));
        assert_eq!(given("192.0.2.1:5353"), Ok("192.0.2.1:5353".into()));
        assert_eq!(given("2001:db8::1"), Ok("[2001:db8::1]:53".into()));
        assert_eq!(given("[2001:db8::1]:5353"), Ok("[2001:db8::1]:5353".into()));
        assert!(given("dns.example").unwrap_err().contains("192.0.2.1"));
    }
}
