//! `nodePortAddresses`: on which of the node's addresses NodePorts answer.
//!
//! CIDRs or `primary` in Kubernetes 1.36; 1.37 adds the keywords `localhost` and `all` (KEP-6032).

use std::collections::BTreeSet;

use ipnet::IpNet;
use portolan_plan::view::NodePortAddresses;

use crate::agent::Config;

/// A word in place of ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodePortKeyword {
    /// The first address of each family.
    Primary,
    /// The loopback addresses.
    Localhost,
    /// Every address but loopback.
    All,
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePorts {
    /// The keywords.
    pub keywords: BTreeSet<NodePortKeyword>,
    /// The ranges.
    pub ranges: Vec<IpNet>,
}

const KEYWORDS: [(&str, NodePortKeyword); 3] = [
    ("primary", NodePortKeyword::Primary),
    ("localhost", NodePortKeyword::Localhost),
    ("all", NodePortKeyword::All),
];

impl NodePorts {
    /// Those of a list, and what is wrong at which of its places.
    pub fn of(texts: &[&str]) -> (NodePorts, Vec<(usize, String)>) {
        let (mut ports, mut problems) = (NodePorts::default(), Vec::new());
        for (i, text) in texts.iter().enumerate() {
            if let Some((_, keyword)) = KEYWORDS.iter().find(|(name, _)| name == text) {
                ports.keywords.insert(*keyword);
            } else if let Ok(range) = text.parse::<IpNet>() {
                ports.ranges.push(range.trunc());
            } else {
                let remedy = "write a range such as 192.0.2.0/24, or primary, localhost or all";
                problems.push((i, format!("{text:?} is not a valid CIDR; {remedy}")));
            }
        }
        let primary = texts.iter().position(|t| *t == "primary");
        if let Some(i) = primary.filter(|_| !ports.ranges.is_empty()) {
            problems.push((i, "can't use both 'primary' and CIDRs; remove one".to_owned()));
        }
        (ports, problems)
    }

    /// The node's primary addresses.
    pub fn primary() -> NodePorts {
        NodePorts { keywords: [NodePortKeyword::Primary].into(), ranges: Vec::new() }
    }

    /// The loopback addresses too.
    pub fn localhost(&mut self) {
        self.keywords.insert(NodePortKeyword::Localhost);
    }

    /// Tells an agent. The only place where the keywords become what the plan knows.
    pub fn apply(&self, config: &mut Config) {
        let has = |keyword| self.keywords.contains(&keyword);
        config.localhost_node_ports = has(NodePortKeyword::Localhost);
        config.node_port_addresses = if has(NodePortKeyword::All) {
            NodePortAddresses::All
        } else if !self.ranges.is_empty() {
            NodePortAddresses::Ranges(self.ranges.clone())
        } else if has(NodePortKeyword::Localhost) && !has(NodePortKeyword::Primary) {
            // Nowhere else: NodePorts never answer on loopback by a range.
            NodePortAddresses::Ranges(vec![IpNet::from(loopback_v4()), IpNet::from(loopback_v6())])
        } else {
            NodePortAddresses::Primary
        };
    }

    /// The list that says what an agent was told.
    pub fn in_effect(config: &Config) -> Vec<String> {
        let mut list = match &config.node_port_addresses {
            NodePortAddresses::Primary => vec!["primary".to_owned()],
            NodePortAddresses::All => vec!["all".to_owned()],
            NodePortAddresses::Ranges(ranges) => ranges.iter().map(ToString::to_string).collect(),
        };
        if config.localhost_node_ports {
            list.push("localhost".to_owned());
        }
        list
    }
}

fn loopback_v4() -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert([127, 0, 0, 0].into(), 8)
}

fn loopback_v6() -> ipnet::Ipv6Net {
    ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(texts: &[&str]) -> (NodePortAddresses, bool) {
        let (ports, problems) = NodePorts::of(texts);
        assert_eq!(problems, []);
        let mut config = Config::new("here");
        ports.apply(&mut config);
        (config.node_port_addresses, config.localhost_node_ports)
    }

    #[test]
    fn words_and_ranges_are_understood() {
        let ranges =
            |texts: &[&str]| NodePortAddresses::Ranges(texts.iter().map(|t| t.parse().unwrap()).collect());
        assert_eq!(told(&["primary"]), (NodePortAddresses::Primary, false));
        assert_eq!(told(&["all"]), (NodePortAddresses::All, false));
        assert_eq!(
            told(&["192.0.2.0/24", "2001:db8::/32"]),
            (ranges(&["192.0.2.0/24", "2001:db8::/32"]), false)
        );
        assert_eq!(told(&["primary", "localhost"]), (NodePortAddresses::Primary, true));
        assert_eq!(told(&["192.0.2.7/24", "localhost"]), (ranges(&["192.0.2.0/24"]), true));
        assert_eq!(told(&["localhost"]), (ranges(&["127.0.0.0/8", "::1/128"]), true), "and nowhere else");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let (_, problems) = NodePorts::of(&["192.0.2.0/24", "primary", "192.0.2.1", "none"]);
        let places: Vec<_> = problems.iter().map(|(i, _)| *i).collect();
        assert_eq!(places, [2, 3, 1]);
        assert!(problems[0].1.contains("\"192.0.2.1\" is not a valid CIDR"), "{problems:?}");
        assert!(problems[2].1.contains("can't use both 'primary' and CIDRs"), "{problems:?}");
    }
}
