//! Evidence from the kernel: what the network namespace that we run in holds. Only read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use anyhow::Context as _;
use portolan_agent::sysctl::SETTINGS;
use portolan_dataplane::{Engine, Options, Reading};
use portolan_sys::conntrack::{Conntrack, Flow, SentTo, TRANSLATED, UDP};
use portolan_sys::link::{Links, RouteKind};
use portolan_sys::nft::{Family, Nftables, SurveyedTable};

/// What the kernel of a node holds.
#[derive(Clone, Debug, Default)]
pub struct NodeKernel {
    /// The node.
    pub node: String,
    /// Our tables; none if they aren't there, or aren't ours any more.
    pub reading: Option<Reading>,
    /// One of our tables is there, and has no rules.
    pub emptied: bool,
    /// The settings that forwarding needs, as they are.
    pub settings: BTreeMap<&'static str, String>,
    /// How many connections are tracked, and how many may be.
    pub conntrack: Option<(u64, u64)>,
    /// By which way addresses are reached.
    pub routes: BTreeMap<IpAddr, RouteSeen>,
    /// UDP flows whose destination was translated.
    pub udp: Vec<Flow>,
    /// Everybody else's tables.
    pub tables: Vec<SurveyedTable>,
    /// The names of its links.
    pub links: BTreeSet<String>,
    /// Tables of the older iptables, whose rules nf_tables doesn't show.
    pub legacy: BTreeSet<String>,
}

impl NodeKernel {
    /// Who else forwards Services on this node, by the names that its tables and chains are known by.
    pub fn other_proxy(&self) -> Option<&'static str> {
        let chains = || self.tables.iter().flat_map(|t| t.chains.keys());
        match () {
            () if self.tables.iter().any(|t| t.name == KUBE_PROXY) => Some("kube-proxy"),
            () if chains().any(|c| c == "KUBE-SERVICES") => Some("kube-proxy"),
            () if chains().any(|c| c.starts_with("CILIUM_")) => Some("Cilium"),
            () => None,
        }
    }
}

pub use portolan_agent::beside::read::TABLE as KUBE_PROXY;

/// By which way an address is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteSeen {
    /// By a route for it.
    Route,
    /// By the default route.
    Default,
    /// Not at all, and why.
    Refused(String),
}

/// The addresses of the network namespace that we run in: by them it is known which node this is.
pub fn own_addresses() -> BTreeSet<IpAddr> {
    let all = Links::open().and_then(|mut links| links.addresses());
    all.unwrap_or_default().into_iter().map(|a| a.address).filter(|a| !a.is_loopback()).collect()
}

/// Reads the kernel, which needs the privilege to see its tables (CAP_NET_ADMIN).
pub fn read(node: &str) -> anyhow::Result<NodeKernel> {
    let options = Options::default();
    let table = options.table.clone();
    let mut nft = Nftables::open(64 * 1024).context("opening nf_tables")?;
    let tables = nft.survey().context("reading the tables")?;
    let ours = |t: &SurveyedTable| t.name == table && matches!(t.family, 2 | 10);
    let reading = match tables.iter().filter(|t| ours(t)).count() {
        0 => None,
        _ => {
            let read = Engine::open(options)?.read()?;
            // What isn't of our shape reads as nothing at all.
            (read != Reading::default()).then_some(read)
        }
    };
    let value = |name: &str| {
        std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")))
            .ok()
            .map(|t| t.trim().to_owned())
    };
    let settings = SETTINGS.iter().filter_map(|s| Some((s.name, value(s.name)?))).collect();
    let number = |name: &str| value(name).and_then(|v| v.parse().ok());
    let conntrack = number("net.netfilter.nf_conntrack_count").zip(number("net.netfilter.nf_conntrack_max"));
    Ok(NodeKernel {
        node: node.to_owned(),
        emptied: reading.is_none() && is_emptied(tables.iter().filter(|t| ours(t))),
        reading,
        settings,
        conntrack,
        routes: BTreeMap::new(),
        udp: translated_udp().unwrap_or_default(),
        tables: tables.into_iter().filter(|t| !ours(t)).collect(),
        links: Links::open()?.links()?.into_iter().map(|link| link.name).collect(),
        legacy: legacy(),
    })
}

/// Whether one of the tables is there without any rule, as after `nft flush table`.
fn is_emptied<'t>(mut ours: impl Iterator<Item = &'t SurveyedTable>) -> bool {
    ours.any(|table| table.chains.values().all(|chain| chain.rules.is_empty()))
}

/// The tables of the older iptables in this network namespace (net/netfilter/x_tables.c makes these files).
fn legacy() -> BTreeSet<String> {
    let files = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];
    let texts = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Asks the kernel for the ways to these addresses.
pub fn routes(addresses: impl IntoIterator<Item = IpAddr>) -> io::Result<BTreeMap<IpAddr, RouteSeen>> {
    let mut links = Links::open()?;
    let mut seen = BTreeMap::new();
    for address in addresses {
        let way = match links.route_to(address) {
            Ok(Some(route)) => match (route.kind, route.prefix) {
                (RouteKind::Blackhole, _) => RouteSeen::Refused("a blackhole route".into()),
                (RouteKind::Unreachable, _) => RouteSeen::Refused("a route of type unreachable".into()),
                (RouteKind::Prohibit, _) => RouteSeen::Refused("a route of type prohibit".into()),
                (_, 0) => RouteSeen::Default,
                _ => RouteSeen::Route,
            },
            Ok(None) => RouteSeen::Refused("no route".into()),
            Err(error) => RouteSeen::Refused(error.to_string()),
        };
        seen.insert(address, way);
    }
    Ok(seen)
}

fn translated_udp() -> io::Result<Vec<Flow>> {
    let mut conntrack = Conntrack::open()?;
    let mut flows = Vec::new();
    for family in [Family::Ip, Family::Ip6] {
        conntrack.list(family, UDP, SentTo::default(), |flow| {
            if flow.status & TRANSLATED != 0 {
                flows.push(*flow);
            }
        })?;
    }
    Ok(flows)
}

#[cfg(test)]
mod tests {
    use portolan_sys::nft::SurveyedChain;

    use super::*;

    #[test]
    fn a_table_is_emptied_only_if_it_is_there_and_has_no_rule() {
        let with = |rules: usize| {
            let rules = (0..rules).map(|_| Default::default()).collect();
            let chains = [("nat".to_owned(), SurveyedChain { rules, ..SurveyedChain::default() })].into();
            SurveyedTable { chains, ..SurveyedTable::default() }
        };
        assert!(!is_emptied([].iter()));
        assert!(is_emptied([with(0), with(1)].iter()), "that of one family is enough");
        assert!(!is_emptied([with(1)].iter()), "the other one is deleted, and this one is as it was");
    }
}
