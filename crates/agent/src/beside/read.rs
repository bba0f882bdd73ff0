//! Reads what kube-proxy has in the kernel: its own tables in nftables mode, its chains in iptables' tables otherwise.

use std::io;

use portolan_plan::model::Family;
use portolan_sys::nft::{Batch, Expression, Nftables, Verdict};

use super::trace::{Carried, Table, trace};

/// Which of kube-proxy's modes the tables are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Tables of its own.
    Nftables,
    /// Chains in iptables' tables, as iptables-nft keeps them.
    Iptables,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Nftables => "nftables",
            Mode::Iptables => "iptables",
        })
    }
}

/// The table of nftables mode.
pub const TABLE: &str = "kube-proxy";
/// The tables of iptables in which it has chains.
const IPTABLES: [&str; 3] = ["nat", "filter", "mangle"];
/// Its chains there (pkg/proxy/iptables/proxier.go), but for those whose names begin with [`PREFIXES`]. The kubelet's are not
/// among them: KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, and of older ones KUBE-MARK-DROP.
const CHAINS: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-MARK-MASQ",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
];
/// How the names of its chains of a Service or an endpoint begin.
const PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-SEP-", "KUBE-FW-"];

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn is_its_own(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

fn kernel_family(family: Family) -> portolan_sys::nft::Family {
    match family {
        Family::V4 => portolan_sys::nft::Family::Ip,
        Family::V6 => portolan_sys::nft::Family::Ip6,
    }
}

/// Whether it has anything in the kernel, and of which mode. Cheap enough to ask often.
pub fn present(nft: &mut Nftables) -> io::Result<Option<Mode>> {
    for family in FAMILIES.map(kernel_family) {
        if nft.table(family, TABLE)?.is_some() {
            return Ok(Some(Mode::Nftables));
        }
    }
    for family in FAMILIES.map(kernel_family) {
        if nft.table(family, "nat")?.is_some()
            && nft.chains(family, "nat")?.iter().any(|chain| chain.name == "KUBE-SERVICES")
        {
            return Ok(Some(Mode::Iptables));
        }
    }
    Ok(None)
}

/// What it carries.
pub fn carried(nft: &mut Nftables) -> io::Result<Carried> {
    let mut carried = Carried::default();
    for family in FAMILIES {
        let own = table(nft, family, TABLE)?;
        trace(&own, family, |_| true, &mut carried);
        for name in IPTABLES {
            let table = table(nft, family, name)?;
            trace(&table, family, is_its_own, &mut carried);
        }
    }
    Ok(carried)
}

/// A table whole; empty if it isn't there. Read anew if somebody changes it meanwhile.
fn table(nft: &mut Nftables, family: Family, name: &str) -> io::Result<Table> {
    let family = kernel_family(family);
    for _ in 0..TRIES {
        let before = nft.generation()?;
        match read(nft, family, name) {
            Ok(table) if nft.generation()? == before => return Ok(table),
            Ok(_) => {}
            // A set that went meanwhile, or a dump that was interrupted.
            Err(_) if nft.generation()? != before => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!("table {name} changes faster than it can be read"),
    ))
}

const TRIES: usize = 10;

fn read(nft: &mut Nftables, family: portolan_sys::nft::Family, name: &str) -> io::Result<Table> {
    let mut table = Table::default();
    for chain in nft.chains(family, name)? {
        if chain.hook.is_some() {
            table.entrances.push(chain.name.clone());
        }
        table.chains.insert(chain.name, Vec::new());
    }
    let (mut verdicts, mut data) = (Vec::new(), Vec::new());
    for rule in nft.rules(family, name)? {
        for expression in &rule.expressions {
            match expression {
                Expression::VerdictMap { set, .. } => verdicts.push(set.clone()),
                Expression::Map { set, .. } => data.push(set.clone()),
                _ => {}
            }
        }
        table.chains.entry(rule.chain).or_default().push(rule.expressions);
    }
    for map in verdicts {
        let mut elements = Vec::new();
        nft.elements(family, name, &map, |element| {
            elements.extend(element.verdict.map(|verdict| (element.key.to_vec(), verdict)));
        })?;
        table.verdicts.insert(map, elements);
    }
    for map in data {
        let mut elements = Vec::new();
        nft.elements(family, name, &map, |element| elements.extend(element.data.map(<[u8]>::to_vec)))?;
        table.data.insert(map, elements);
    }
    Ok(table)
}

/// Removes all that it has. Connections that it translated stay translated as long as somebody else's nat chains are there.
pub fn remove(nft: &mut Nftables) -> io::Result<()> {
    // What it carries is cut off first, in one transaction for each family; what is cut off goes in as many as it takes.
    for family in FAMILIES.map(kernel_family) {
        let mut cut = Batch::new();
        let mut rest = Vec::new();
        if nft.table(family, TABLE)?.is_some() {
            cut.delete_table(family, TABLE);
        }
        for table in IPTABLES {
            let chains = nft.chains(family, table)?.into_iter().map(|chain| chain.name);
            let own: Vec<String> = chains.filter(|chain| is_its_own(chain)).collect();
            if own.is_empty() {
                continue;
            }
            for rule in nft.rules(family, table)? {
                if !is_its_own(&rule.chain) && rule.expressions.iter().any(leads_to_its_own) {
                    cut.delete_rule(family, table, &rule.chain, rule.handle);
                }
            }
            rest.push((table, own));
        }
        nft.commit(cut)?;
        let limit = nft.limit()? / 2;
        for (table, own) in rest {
            // They lead to one another: none can go before all are empty.
            for delete in [Batch::flush_chain, Batch::delete_chain] {
                let mut batch = Batch::new();
                for chain in &own {
                    delete(&mut batch, family, table, chain);
                    if batch.len() > limit {
                        nft.commit(std::mem::take(&mut batch))?;
                    }
                }
                nft.commit(batch)?;
            }
        }
    }
    Ok(())
}

fn leads_to_its_own(expression: &Expression) -> bool {
    matches!(expression, Expression::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) if is_its_own(chain))
}
