//! Plans at random: few addresses, few names, so that histories meet often.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use portolan_plan::model::*;
use proptest::prelude::*;

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Recipe {
    frontends: Vec<Option<FrontendRecipe>>,
    sets: Vec<(u64, u8)>,
    node: u8,
}

#[derive(Clone, Debug)]
struct FrontendRecipe {
    owner: usize,
    action: u8,
    inside: u8,
    masquerade: u8,
    ranges: u8,
}

const OWNERS: usize = 3;
/// Sets of an owner: cluster and local, for each family.
const SETS: usize = 4;

/// All frontends that there may be.
pub fn frontends() -> Vec<Frontend> {
    let mut all = Vec::new();
    for family in [Family::V4, Family::V6] {
        let base = if family == Family::V4 { "10.96.0." } else { "fd00::" };
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for address in ["1", "2"] {
                let address = format!("{base}{address}").parse().expect("an address");
                all.push(Frontend::Address { address, protocol, port: 80 });
            }
            all.push(Frontend::NodePort { family, protocol, port: 30_000 });
        }
    }
    all
}

fn backend_mask() -> impl Strategy<Value = u64> {
    // Mostly few, sometimes many, sometimes none.
    prop_oneof![
        any::<u64>(),
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(a, b, c)| a & b & c),
        Just(0)
    ]
}

/// A recipe.
pub fn recipe() -> impl Strategy<Value = Recipe> {
    let frontend = (0..OWNERS, 0..6u8, 0..8u8, 0..3u8, 0..6u8).prop_map(
        |(owner, action, inside, masquerade, ranges)| FrontendRecipe {
            owner,
            action,
            inside,
            masquerade,
            ranges,
        },
    );
    (
        prop::collection::vec(prop::option::of(frontend), frontends().len()),
        prop::collection::vec((backend_mask(), any::<u8>()), OWNERS * SETS),
        any::<u8>(),
    )
        .prop_map(|(frontends, sets, node)| Recipe { frontends, sets, node })
}

/// Some timeouts: more than there are kinds, so that some are shared only where the test wants it.
fn affinity(code: u8) -> Option<Duration> {
    (!code.is_multiple_of(3)).then(|| Duration::from_secs(u64::from(code % 7) + 1))
}

impl Recipe {
    /// The plan.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan { node: node(self.node), ..Plan::default() };
        let mut parts = vec![ServicePlan::default(); OWNERS];
        for (frontend, recipe) in frontends().into_iter().zip(&self.frontends) {
            let Some(recipe) = recipe else { continue };
            let part = &mut parts[recipe.owner];
            let mut action = |code: u8| match code {
                0 => Action::Drop,
                1 => Action::Reject,
                _ => {
                    let scope = if code.is_multiple_of(2) { Scope::Cluster } else { Scope::Local };
                    self.balance(part, recipe.owner, frontend.family(), scope)
                }
            };
            let outside = action(recipe.action);
            let inside = (recipe.inside < 6).then(|| action(recipe.inside));
            let kind = match frontend {
                Frontend::NodePort { .. } => FrontendKind::NodePort,
                Frontend::Address { .. } if recipe.masquerade == 0 => FrontendKind::ClusterIp,
                Frontend::Address { .. } => FrontendKind::LoadBalancer,
            };
            let masquerade = [Masquerade::Outsiders, Masquerade::Everyone, Masquerade::Node]
                [usize::from(recipe.masquerade)];
            let source_ranges = ranges(recipe.ranges);
            part.frontends
                .insert(frontend, FrontendPlan { kind, action: outside, inside, masquerade, source_ranges });
        }
        for (owner, part) in parts.into_iter().enumerate() {
            if !part.frontends.is_empty() {
                plan.services.insert(ServiceName::new("ns", &owner.to_string()), Arc::new(part));
            }
        }
        plan
    }

    fn balance(&self, part: &mut ServicePlan, owner: usize, family: Family, scope: Scope) -> Action {
        let number =
            owner * SETS + usize::from(family == Family::V6) * 2 + usize::from(scope == Scope::Local);
        let (mask, code) = self.sets[number];
        let backends: BTreeSet<Backend> = (0..40u16)
            .filter(|i| mask >> i & 1 == 1)
            .map(|i| {
                let address: IpAddr = match family {
                    Family::V4 => format!("10.{owner}.0.{i}"),
                    Family::V6 => format!("fd01:{owner}::{i:x}"),
                }
                .parse()
                .expect("an address");
                Backend { address, port: 8080 + (i & 1) }
            })
            .collect();
        if backends.is_empty() {
            return Action::Reject;
        }
        let name = SetName { port: "".into(), protocol: Protocol::Tcp, family, scope };
        part.sets.insert(name.clone(), BackendSet { backends, affinity: affinity(code) });
        Action::Balance(name)
    }
}

fn ranges(code: u8) -> Option<BTreeSet<ipnet::IpNet>> {
    let all: &[&str] = match code {
        0 => &["192.0.2.0/24", "198.51.100.7/24"],
        1 => &["2001:db8::/32", "192.0.2.1/32"],
        2 => &["0.0.0.0/0"],
        3 => &[],
        _ => return None,
    };
    Some(all.iter().map(|net| net.parse().expect("a range")).collect())
}

fn node(code: u8) -> NodePlan {
    let has = |bit: u8| code >> bit & 1 == 1;
    let nets = |all: &[&str]| all.iter().map(|net| net.parse().expect("a range")).collect();
    NodePlan {
        node_addresses: if has(0) { ["192.0.2.9".parse().expect("an address")].into() } else { [].into() },
        service_cidrs: if has(1) { nets(&["10.96.0.0/16", "fd00::/64"]) } else { nets(&["10.96.0.0/17"]) },
        inside: if has(2) { nets(&["10.0.0.0/24", "10.0.1.0/24"]) } else { nets(&[]) },
        unmasqueraded: if has(3) { nets(&["10.0.0.0/8", "255.0.0.0/8"]) } else { nets(&[]) },
        local_pods: (0..code % 4).map(|i| IpAddr::from([10, 0, 0, i])).collect(),
        cluster_ip_from_outside: if has(4) { FromOutside::Refuse } else { FromOutside::Masquerade },
    }
}
