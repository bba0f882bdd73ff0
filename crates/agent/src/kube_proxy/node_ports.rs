//! `nodePortAddresses`: on which of the node's addresses NodePorts answer.
//!
//! CIDRs or `primary` in Kubernetes 1.36; 1.37 adds the keywords `localhost` and `all`, and lets all of them stand together
//! (KEP-6032).

use ipnet::IpNet;
use portolan_plan::view::NodePortAddresses;

/// What a list names, and what is wrong at which of its places. An empty list names every address.
pub fn named(texts: &[&str]) -> (NodePortAddresses, Vec<(usize, String)>) {
    let (mut addresses, mut problems) = (NodePortAddresses::default(), Vec::new());
    for (i, text) in texts.iter().enumerate() {
        match *text {
            "primary" => addresses.primary = true,
            "localhost" => addresses.localhost = true,
            "all" => addresses.all = true,
            text => match text.parse::<IpNet>() {
                Ok(range) => addresses.ranges.push(range.trunc()),
                Err(_) => {
                    let remedy = "write a range such as 192.0.2.0/24, or primary, localhost or all";
                    problems.push((i, format!("{text:?} is not a valid CIDR; {remedy}")));
                }
            },
        }
    }
    (addresses, problems)
}

/// The list that names these.
pub fn list(addresses: &NodePortAddresses) -> Vec<String> {
    let NodePortAddresses { primary, localhost, all, ranges } = addresses;
    let words = [(*primary, "primary"), (*localhost, "localhost"), (*all, "all")];
    let words = words.into_iter().filter(|(named, _)| *named).map(|(_, word)| word.to_owned());
    words.chain(ranges.iter().map(ToString::to_string)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_ranges_are_understood_together() {
        for texts in [
            &["primary"][..],
            &["all"],
            &["192.0.2.0/24", "2001:db8::/32"],
            &["primary", "localhost"],
            &["localhost", "192.0.2.0/24"],
        ] {
            let (addresses, problems) = named(texts);
            assert_eq!(problems, []);
            assert_eq!(list(&addresses), texts);
        }
        assert_eq!(named(&["primary"]).0, NodePortAddresses::primary());
        assert_eq!(list(&named(&["192.0.2.7/24"]).0), ["192.0.2.0/24"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let (_, problems) = named(&["192.0.2.0/24", "primary", "192.0.2.1", "none"]);
        let places: Vec<_> = problems.iter().map(|(i, _)| *i).collect();
        assert_eq!(places, [2, 3]);
        assert!(problems[0].1.contains("\"192.0.2.1\" is not a valid CIDR"), "{problems:?}");
    }
}
