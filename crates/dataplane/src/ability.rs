//! What a kernel must have for the tables, and what may be missing at a price.

use std::io;

use portolan_sys::conntrack::{Conntrack, SentTo, UDP};
use portolan_sys::netlink::errno;
use portolan_sys::nft::{Batch, Expression, Family, Nftables, Register, masquerade_fully_random};

use crate::encode::FAMILIES;
use crate::rule::Rule;
use crate::ruleset::{self, HOLD};
use crate::unit::NodeSet;

/// Something that the running kernel doesn't have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What the kernel would do.
    pub part: &'static str,
    /// The build option that it comes with.
    pub option: &'static str,
    /// What doesn't work without it; `None`: nothing does.
    pub cost: Option<&'static str>,
}

/// The oldest Linux that the tables are written for. Nothing looks at the version: what is missing is found by trying.
pub const OLDEST: &str = "5.14";

/// What every rule needs, each with a transaction that only a kernel that has it takes.
type Part = (&'static str, &'static str, fn(&mut Batch, Family));

const TABLE: &str = "portolan-try";
const CHAIN: &str = "try";

const PARTS: [Part; 10] = [
    ("tables of IPv4 and IPv6", "CONFIG_NF_TABLES_IPV4, CONFIG_NF_TABLES_IPV6", |_, _| {}),
    ("chains that translate", "CONFIG_NFT_NAT", |batch, family| {
        batch.add_chain(family, TABLE, "translation", Some(HOLD));
    }),
    ("destinations translated", "CONFIG_NFT_NAT", |batch, family| {
        let (address, port) = (Register(0), Register(4));
        let length = if family == Family::Ip { 4 } else { 16 };
        let load = |to, length| Expression::Immediate { to, value: vec![0; length] };
        let dnat = Expression::Dnat { family: family.number(), address, port };
        batch.add_rule(family, TABLE, CHAIN, &[load(address, length), load(port, 2), dnat]);
    }),
    ("sources translated", "CONFIG_NFT_MASQ", |batch, family| {
        let flags = masquerade_fully_random();
        batch.add_rule(family, TABLE, CHAIN, &[Expression::Masquerade { flags }]);
    }),
    ("the state of connections", "CONFIG_NFT_CT", |batch, family| {
        batch.add_rule(family, TABLE, CHAIN, &ruleset::tracking());
    }),
    ("random numbers", "CONFIG_NFT_NUMGEN", |batch, family| {
        batch.add_rule(family, TABLE, CHAIN, &[Expression::Random { modulus: 2, to: Register(0) }]);
    }),
    ("the type of an address", "CONFIG_NFT_FIB_IPV4, CONFIG_NFT_FIB_IPV6", |batch, family| {
        batch.add_rule(family, TABLE, CHAIN, &[Expression::SourceType { to: Register(0) }]);
    }),
    ("refusals", "CONFIG_NFT_REJECT", |batch, family| {
        batch.add_rule(family, TABLE, CHAIN, &Rule::new(family).unreachable().build());
    }),
    ("sets of ranges", "CONFIG_NF_TABLES", |batch, family| {
        batch.add_set(family, TABLE, &ruleset::node_declaration(family, NodeSet::Inside));
    }),
    ("sets that rules change", "CONFIG_NF_TABLES", |batch, family| {
        batch.add_set(family, TABLE, &ruleset::clients(family));
        let minute = std::time::Duration::from_secs(60);
        batch.add_rule(family, TABLE, CHAIN, &ruleset::remember_rule(family, 1, minute));
    }),
];

/// What the kernel lacks, found by trying in the calling thread's network namespace. Nothing is changed there: the kernel is
/// given transactions that it checks and drops.
pub fn lacks() -> io::Result<Vec<Lack>> {
    let mut lacks = Vec::new();
    let lack = |part, option, cost| Lack { part, option, cost };
    let mut kernel = match Nftables::open(1 << 20) {
        Ok(kernel) => kernel,
        Err(error) if is_lack(&error) => {
            return Ok(vec![lack("packet filtering by tables", "CONFIG_NF_TABLES", None)]);
        }
        Err(error) => return Err(error),
    };
    for (part, option, fill) in PARTS {
        if !takes(&mut kernel, fill)? {
            lacks.push(lack(part, option, None));
        }
    }
    // No flow was ever sent to port 0.
    let nothing = SentTo { address: None, port: Some(0) };
    match Conntrack::open().and_then(|mut table| table.list(Family::Ip, UDP, nothing, |_| {})) {
        Ok(()) => {}
        Err(error) if is_lack(&error) => lacks.push(lack(
            "a list of connections",
            "CONFIG_NF_CT_NETLINK",
            Some("a UDP flow whose endpoint is gone goes there until its sender pauses"),
        )),
        Err(error) => return Err(error),
    }
    if !std::path::Path::new("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established").exists() {
        lacks.push(lack(
            "connections of SCTP",
            "CONFIG_NF_CT_PROTO_SCTP",
            Some("ports of protocol SCTP are not forwarded"),
        ));
    }
    Ok(lacks)
}

fn takes(kernel: &mut Nftables, fill: fn(&mut Batch, Family)) -> io::Result<bool> {
    for family in FAMILIES.map(ruleset::family) {
        let mut batch = Batch::new();
        batch.add_table(family, TABLE, "never committed");
        batch.add_chain(family, TABLE, CHAIN, None);
        fill(&mut batch, family);
        match kernel.check(batch) {
            Ok(()) => {}
            Err(error) if is_lack(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// `ENOENT` for an expression or a chain type that there isn't, `EOPNOTSUPP` and `EAFNOSUPPORT` for a family or a kind of set,
/// `EINVAL` for a netlink subsystem, `EPROTONOSUPPORT` for netlink without netfilter.
fn is_lack(error: &io::Error) -> bool {
    let lacking = [libc::ENOENT, libc::EOPNOTSUPP, libc::EAFNOSUPPORT, libc::EINVAL, libc::EPROTONOSUPPORT];
    errno(error).is_some_and(|number| lacking.contains(&number))
}

#[cfg(test)]
mod tests {
    use portolan_sys::nft::{ChainHook, Hook};
    use portolan_sys::{namespace, trial};

    use super::*;

    fn in_a_namespace(promise: &str, test: impl FnOnce() + Send) {
        use std::os::fd::AsFd;
        if !trial::goes_on(promise) {
            return;
        }
        match namespace::new_netns() {
            Ok(netns) => namespace::in_netns(netns.as_fd(), test).expect("the namespace can be entered"),
            Err(error) => trial::skipped(promise, &format!("network namespaces: {error}")),
        }
    }

    #[test]
    fn what_a_kernel_lacks_is_found_without_a_trace() {
        in_a_namespace("what a kernel lacks is found without a trace", || {
            let mut kernel = Nftables::open(1 << 20).expect("nf_tables");
            let before = kernel.generation().expect("a generation");
            let lacks = lacks().expect("an answer");
            assert!(lacks.iter().all(|lack| lack.cost.is_some()), "{lacks:?}");
            let none: fn(&mut Batch, Family) = |batch, family| {
                let hook = ChainHook { kind: "nonesuch", hook: Hook::Prerouting, priority: 0 };
                batch.add_chain(family, TABLE, "none", Some(hook));
            };
            assert!(!takes(&mut kernel, none).expect("an answer"));
            assert_eq!(kernel.generation().expect("a generation"), before);
            for family in FAMILIES.map(ruleset::family) {
                assert!(kernel.table(family, TABLE).expect("a look").is_none());
            }
        });
    }

    #[test]
    fn the_reference_names_each_part_of_the_kernel_and_its_option() {
        let text = include_str!("../../../docs/reference/agent.md");
        for (part, option, _) in PARTS {
            let row = text.lines().find(|line| line.starts_with(&format!("| {part} |")));
            let row = row.unwrap_or_else(|| panic!("no row for: {part}"));
            assert!(option.split(", ").all(|o| row.contains(o)), "{row}: {option}");
        }
        assert!(text.contains(&format!("Linux {OLDEST}")));
    }
}
