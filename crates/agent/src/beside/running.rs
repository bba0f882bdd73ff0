//! Whether kube-proxy runs in this network namespace.
//!
//! A process of this name is a sure sign, but a container sees only its own processes, unless it was given the host's. So its
//! ports are asked, too: as long as somebody else answers where we are to, it is there.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use crate::servers::{Opened, Servers};

/// How long a port on this machine has to answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// Why it is taken to run; none if it isn't. `servers` are the ports that are to be ours and `opened` those that are.
/// Blocks for a moment.
pub fn sign(servers: &Servers, opened: &Opened) -> Option<String> {
    if let Some(process) = process() {
        return Some(format!("process {process} is kube-proxy"));
    }
    let somebody =
        theirs(servers, opened).into_iter().find(|at| TcpStream::connect_timeout(at, PATIENCE).is_ok());
    somebody.map(|at| format!("somebody answers at {at}, which is kube-proxy's"))
}

/// The addresses at which kube-proxy would answer, but for those at which we do.
fn theirs(servers: &Servers, opened: &Opened) -> BTreeSet<SocketAddr> {
    let usual = Servers::usual();
    let pairs = [
        (servers.healthz.or(usual.healthz), opened.healthz),
        (servers.metrics.or(usual.metrics), opened.metrics),
    ];
    let theirs = pairs.into_iter().filter(|(_, ours)| ours.is_none()).filter_map(|(at, _)| at);
    theirs.map(|at| SocketAddr::new(reachable(at.ip()), at.port())).collect()
}

/// An address at which this machine reaches what listens on all of them.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// A kube-proxy in our network namespace, as far as processes can be seen.
fn process() -> Option<u32> {
    let namespace = |of: &str| std::fs::metadata(format!("/proc/{of}/ns/net")).map(|file| file.ino()).ok();
    let ours = namespace("thread-self")?;
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // A name is cut off at fifteen bytes.
        name.trim_end() == "kube-proxy" && namespace(&pid.to_string()) == Some(ours)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_kube_proxys_is_asked_unless_it_is_ours() {
        let at = |text: &str| Some(text.parse::<SocketAddr>().expect("an address"));
        let usual = Servers::usual();
        let asked = |opened| theirs(&usual, &opened).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(asked(Opened::default()), ["127.0.0.1:10249", "127.0.0.1:10256"]);
        assert_eq!(asked(Opened { healthz: at("0.0.0.0:10256"), metrics: None }), ["127.0.0.1:10249"]);
        assert!(asked(Opened { healthz: at("0.0.0.0:10256"), metrics: at("127.0.0.1:10249") }).is_empty());
        // Who answers nowhere asks where it would be by default.
        assert_eq!(theirs(&Servers::default(), &Opened::default()).len(), 2);
    }
}
