//! The tables' fixed part: the same chains and rules for ever, whatever the plan.
//!
//! A packet that begins a connection goes through it like this; every other packet meets one test and leaves.
//!
//! ```text
//! prerouting / output   for an address of ours?         vips, node-addresses
//!   resolve             whose frontend: the word        nodeports, frontends, then the same for inside
//!   balance             source ranges, a random slot    ranges-N, classes, slots
//!     sticky            the one remembered, or a slot   clients, tokens, endpoints
//!     second            once more, if a commit came in between (see diff.rs)
//!     last              and again, or drop, or refuse
//! settle                remember the choice, give the priority back
//! postrouting / source  masquerade, from the connection's original destination
//! ```

use portolan_sys::nft::{
    ChainHook, DynsetOp, Expression, Family, Field, Hook, SetDeclaration, SetFlags, Verdict,
};

use crate::element::Place;
use crate::rule::{Load, Rule, state, status};
use crate::unit::NodeSet;
use crate::word::{CLASS, CLASS_DROP, CLASS_REJECT, EXPONENTS, KIND, PLAIN_SET, RANGED, STICKY_SET, TOKEN};

/// Packets to a cluster IP from outside, refused.
pub const COUNTER_OUTSIDE: &str = "cluster-ip-from-outside";
/// Packets to an address of the Service ranges that no Service has.
pub const COUNTER_UNALLOCATED: &str = "unallocated";
/// Packets to an address of a Service at a port that it doesn't have, which would have been sent back where they came from.
pub const COUNTER_BOUNCED: &str = "bounced";
/// Connections to a frontend with backends that found none. Always zero, or the update protocol is wrong.
pub const COUNTER_MISSED: &str = "missed";
/// The chain whose rules remember clients: one for each affinity timeout.
pub const CHAIN_REMEMBER: &str = "remember";
/// The chain whose rules look up source ranges: one for each prefix length.
pub const CHAIN_RANGES: &str = "check-range";
/// The chain that looks again, at what the frontend says by then, before it drops.
pub const CHAIN_RANGES_AGAIN: &str = "check-range-again";
/// The map of remembered clients.
pub const CLIENTS: &str = "clients";

/// How often a slot is drawn before the lower half is taken, which has no hole: then a backend of the lower half is preferred
/// by less than 0.4 %.
const TRIES: usize = 8;
/// Clients remembered at once. When it is full, further ones are not remembered; their traffic flows.
const CLIENTS_MAX: u32 = 1 << 20;

/// A chain with its rules.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where it hooks in, if it does.
    pub hook: Option<ChainHook>,
    /// Its rules.
    pub rules: Vec<Vec<Expression>>,
}

/// A verdict map with its elements.
#[derive(Clone, Debug)]
pub struct Classes {
    /// Its declaration.
    pub set: SetDeclaration,
    /// Class and verdict.
    pub elements: Vec<(u32, Verdict)>,
}

/// The fixed part of one family's table.
#[derive(Clone, Debug)]
pub struct Ruleset {
    /// Sets and maps.
    pub sets: Vec<SetDeclaration>,
    /// Verdict maps.
    pub classes: Vec<Classes>,
    /// Named counters.
    pub counters: Vec<&'static str>,
    /// Chains, each after those that it calls; base chains last.
    pub chains: Vec<Chain>,
}

/// The kernel's family.
pub fn family(family: portolan_plan::model::Family) -> Family {
    match family {
        portolan_plan::model::Family::V4 => Family::Ip,
        portolan_plan::model::Family::V6 => Family::Ip6,
    }
}

/// The name of a set of the node.
pub fn node_set(set: NodeSet) -> &'static str {
    match set {
        NodeSet::NodeAddresses => "node-addresses",
        NodeSet::ServiceCidrs => "service-cidrs",
        NodeSet::ClosedCidrs => "closed-cidrs",
        NodeSet::Inside => "inside",
        NodeSet::Unmasqueraded => "unmasqueraded",
    }
}

/// All sets of the node.
pub const NODE_SETS: [NodeSet; 5] = [
    NodeSet::NodeAddresses,
    NodeSet::ServiceCidrs,
    NodeSet::ClosedCidrs,
    NodeSet::Inside,
    NodeSet::Unmasqueraded,
];

/// Where an empty nat chain sits so that the kernel keeps its nat hooks: after ours, whose decisions it never sees.
pub const HOLD: ChainHook = ChainHook { kind: "nat", hook: Hook::Prerouting, priority: 100 };

/// A rule that needs connection tracking, and does nothing.
pub fn tracking() -> Vec<Expression> {
    Rule::new(Family::Ip).ct_state(state::NEW).build()
}

/// The declaration of a place's set.
pub fn declaration(family: Family, place: Place) -> SetDeclaration {
    use Field::*;
    let (source, destination) = (Source(family), Destination(family));
    let (key, data): (Vec<Field>, Vec<Field>) = match place {
        Place::Frontends | Place::FrontendsInside => (vec![destination, Protocol, Port], vec![Priority]),
        Place::NodePorts | Place::NodePortsInside => (vec![Protocol, Port], vec![Priority]),
        Place::Slots => (vec![Priority, Random], vec![destination, Port]),
        Place::Tokens => (vec![Priority, Random], vec![Priority]),
        Place::Endpoints => (vec![Priority], vec![destination, Port]),
        Place::Vips | Place::ClusterIps => (vec![destination], vec![]),
        Place::Masquerade | Place::MasqueradeNode => (vec![destination, Protocol, Port], vec![]),
        Place::MasqueradeNodePorts | Place::MasqueradeNodeNodePorts => (vec![Protocol, Port], vec![]),
        Place::Hairpin => (vec![source, destination], vec![]),
        Place::Ranges(_) => (vec![source, destination, Protocol, Port], vec![]),
        Place::RangesNodePorts(_) => (vec![source, Protocol, Port], vec![]),
    };
    let flags = if data.is_empty() { SetFlags::default() } else { SetFlags::MAP };
    SetDeclaration { name: place.name().into_owned(), flags, key, data, size: 0 }
}

/// The declaration of a set of the node.
pub fn node_declaration(family: Family, set: NodeSet) -> SetDeclaration {
    let (key, flags) = match set {
        NodeSet::NodeAddresses => (Field::Destination(family), SetFlags::default()),
        NodeSet::ServiceCidrs | NodeSet::ClosedCidrs => (Field::Destination(family), SetFlags::INTERVAL),
        NodeSet::Inside | NodeSet::Unmasqueraded => (Field::Source(family), SetFlags::INTERVAL),
    };
    SetDeclaration { name: node_set(set).into(), flags, key: vec![key], data: vec![], size: 0 }
}

/// The declaration of the map of remembered clients.
pub fn clients(family: Family) -> SetDeclaration {
    SetDeclaration {
        name: CLIENTS.into(),
        flags: SetFlags::MAP.with(SetFlags::TIMEOUT).with(SetFlags::DYNAMIC),
        key: vec![Field::Priority, Field::Source(family)],
        data: vec![Field::Priority],
        size: CLIENTS_MAX,
    }
}

/// The rules of the two chains that look up source ranges, for these sets. What no rule lets pass is dropped, unless the
/// frontend or its ranges changed while the packet was under way.
pub fn range_rules(family: Family, places: &[Place]) -> [(&'static str, Vec<Vec<Expression>>); 2] {
    let rule = || Rule::new(family);
    let again = vec![rule().jump("again"), rule().priority_has(RANGED, false).back()];
    [(CHAIN_RANGES, vec![], rule().goto(CHAIN_RANGES_AGAIN)), (CHAIN_RANGES_AGAIN, again, rule().drop())].map(
        |(name, first, last)| {
            let rules = first.into_iter().chain(lookups(family, places)).chain([last]);
            (name, rules.map(Rule::build).collect())
        },
    )
}

fn lookups(family: Family, places: &[Place]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for place in places {
        let name = place.name();
        let rule = Rule::new(family);
        rules.push(match place {
            Place::Ranges(length) => rule
                .within(&[Load::SourceNet(*length), Load::Destination, Load::Protocol, Load::Port], &name)
                .back(),
            Place::RangesNodePorts(length) => {
                rule.within(&[Load::SourceNet(*length), Load::Protocol, Load::Port], &name).back()
            }
            _ => continue,
        });
    }
    rules
}

/// The rule that remembers a client for a kind's timeout.
pub fn remember_rule(family: Family, kind: u32, timeout: std::time::Duration) -> Vec<Expression> {
    let milliseconds = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    Rule::new(family)
        .priority_is(KIND, kind << 28)
        .remember(&[Load::PriorityBits(STICKY_SET), Load::Source], CLIENTS, DynsetOp::Update, milliseconds)
        .build()
}

/// What [`remember_rule`] says: kind and timeout in milliseconds.
pub fn read_remember_rule(rule: &[Expression]) -> Option<(u32, u64)> {
    let kind = rule.iter().find_map(|e| match e {
        Expression::Compare { value, .. } => {
            Some(u32::from_ne_bytes(value.as_slice().try_into().ok()?) >> 28)
        }
        _ => None,
    })?;
    let timeout = rule.iter().find_map(|e| match e {
        Expression::Dynset { timeout_ms, .. } => Some(*timeout_ms),
        _ => None,
    })?;
    Some((kind, timeout))
}

/// A verdict map from classes to chains: `prefix` and the exponent, less `half`; and what to do with drop and reject.
fn classes(name: &str, prefix: &str, half: u32, refusals: Option<(Verdict, Verdict)>) -> Classes {
    let mut elements: Vec<(u32, Verdict)> = EXPONENTS
        .filter(|exponent| *exponent >= half)
        .map(|exponent| (exponent + 1, Verdict::Jump(format!("{prefix}{}", exponent - half))))
        .collect();
    if let Some((drop, reject)) = refusals {
        elements.push((CLASS_DROP, drop));
        elements.push((CLASS_REJECT, reject));
    }
    let set = SetDeclaration {
        name: name.into(),
        flags: SetFlags::MAP,
        key: vec![Field::Priority],
        data: vec![Field::Verdict],
        size: 0,
    };
    Classes { set, elements }
}

impl Ruleset {
    /// The fixed part of a family's table.
    pub fn new(family: Family) -> Ruleset {
        let mut sets: Vec<SetDeclaration> =
            Place::FIXED.into_iter().map(|place| declaration(family, place)).collect();
        sets.extend(NODE_SETS.into_iter().map(|set| node_declaration(family, set)));
        sets.push(clients(family));
        // A packet that meets a commit between its lookup as anyone and its lookup as one from inside may have taken the one's
        // refusal for the other's: no refusal is believed before it was looked up again.
        let again = || Verdict::Goto("last".into());
        let classes = vec![
            classes("classes", "p", 0, Some((again(), again()))),
            classes("last-classes", "p", 0, Some((Verdict::Drop, Verdict::Goto("refuse".into())))),
            classes("half-classes", "p", 1, None),
            classes("sticky-classes", "s", 0, None),
            classes("sticky-half-classes", "s", 1, None),
        ];
        let mut chains = decision_chains(family);
        chains.extend(source_chains(family));
        chains.extend(base_chains(family));
        Ruleset {
            sets,
            classes,
            counters: vec![COUNTER_OUTSIDE, COUNTER_UNALLOCATED, COUNTER_BOUNCED, COUNTER_MISSED],
            chains,
        }
    }
}

fn chain(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.into(), hook: None, rules: rules.into_iter().map(Rule::build).collect() }
}

/// From a packet to a backend.
fn decision_chains(family: Family) -> Vec<Chain> {
    let rule = || Rule::new(family);
    let class = Load::PriorityBits(CLASS);
    let frontend = [Load::Destination, Load::Protocol, Load::Port];
    let node_port = [Load::Protocol, Load::Port];
    let at_node = || rule().within(&[Load::Destination], "node-addresses");
    let mut chains = vec![
        chain("refuse", vec![rule().protocol(6).reset(), rule().unreachable()]),
        // A frontend's own address comes after the node's ports: what is said of one address is said of it alone.
        chain(
            "resolve",
            vec![
                rule().priority_clear(),
                at_node().priority_from(&node_port, "nodeports"),
                rule().priority_from(&frontend, "frontends"),
            ],
        ),
        chain(
            "resolve-inside",
            vec![
                rule().priority_clear(),
                at_node().priority_from(&node_port, "nodeports"),
                at_node().priority_from(&node_port, "nodeports-inside"),
                rule().priority_from(&frontend, "frontends"),
                rule().priority_from(&frontend, "frontends-inside"),
            ],
        ),
        chain(
            "again",
            vec![
                rule().within(&[Load::Source], "inside").goto("resolve-inside"),
                rule().local_source().goto("resolve-inside"),
                rule().goto("resolve"),
            ],
        ),
    ];
    for exponent in EXPONENTS {
        let random = Load::Random(1 << exponent);
        chains.push(chain(
            &format!("p{exponent}"),
            vec![rule().with_ports().dnat(&[Load::PriorityBits(PLAIN_SET), random], "slots")],
        ));
        chains.push(chain(
            &format!("s{exponent}"),
            vec![
                rule().priority_from(&[Load::PriorityBits(STICKY_SET), random], "tokens"),
                rule().with_ports().dnat(&[Load::Priority], "endpoints"),
                // The endpoint went between the two lookups.
                rule().priority_has(TOKEN, true).jump("again"),
            ],
        ));
    }
    let draw = |classes: &str, half: &str| -> Vec<Rule> {
        let mut rules = vec![rule().verdict_from(&[class], classes); TRIES];
        rules.push(rule().verdict_from(&[class], half));
        rules
    };
    let end = || {
        vec![
            rule().priority_has(CLASS, true).count(COUNTER_MISSED),
            rule().within(&[Load::Destination], "cluster-ips").goto("refuse"),
        ]
    };
    // One more look at what the frontend says by now, and what follows if it finds nothing.
    let look = |name: &str, classes: &str, end: &dyn Fn() -> Vec<Rule>| {
        let sticky = format!("{name}-sticky");
        let begin = vec![rule().jump("again"), rule().priority_has(KIND, true).goto(&sticky)];
        [
            chain(&sticky, [draw("sticky-classes", "sticky-half-classes"), end()].concat()),
            chain(name, [begin, draw(classes, "half-classes"), end()].concat()),
        ]
    };
    chains.extend(look("last", "last-classes", &end));
    // A processor may be taken away from a packet between its two lookups, and a commit come in, more than once.
    chains.extend(look("second", "classes", &|| vec![rule().goto("last")]));
    let client = [Load::PriorityBits(STICKY_SET), Load::Source];
    chains.push(chain(
        "forget",
        vec![rule().remember(&client, CLIENTS, DynsetOp::Delete, 0), rule().goto("second")],
    ));
    chains.push(chain(
        "sticky",
        [
            vec![
                rule().priority_from(&client, CLIENTS),
                rule().with_ports().dnat(&[Load::Priority], "endpoints"),
                // `update` never replaces what is remembered: a memory of a dead endpoint has to go first.
                rule().priority_has(TOKEN, true).goto("forget"),
            ],
            draw("sticky-classes", "sticky-half-classes"),
            vec![rule().goto("second")],
        ]
        .concat(),
    ));
    for (name, rules) in range_rules(family, &[]).into_iter().rev() {
        chains.push(Chain { name: name.into(), hook: None, rules });
    }
    chains.push(chain("undefined", vec![rule().within(&[Load::Destination], "cluster-ips").goto("refuse")]));
    chains.push(chain(
        "balance",
        [
            vec![
                rule().priority_has(CLASS, false).goto("undefined"),
                rule().priority_has(RANGED, true).jump(CHAIN_RANGES),
                rule().priority_has(KIND, true).goto("sticky"),
            ],
            draw("classes", "half-classes"),
            vec![rule().goto("second")],
        ]
        .concat(),
    ));
    chains.push(chain("from-node", vec![rule().jump("resolve-inside"), rule().goto("balance")]));
    chains.push(chain(
        "from-network",
        vec![
            rule().within(&[Load::Source], "inside").goto("from-node"),
            rule().jump("resolve"),
            rule().goto("balance"),
        ],
    ));
    chains.push(chain(CHAIN_REMEMBER, vec![]));
    // The priority is ours only in the packet that makes the connection, which isn't confirmed yet. Later packets of a UDP flow
    // without an answer are in state new as well, and keep the priority that their sender gave them.
    chains.push(chain(
        "settle",
        vec![
            rule().ct_state(state::ESTABLISHED | state::RELATED).back(),
            // Packets of no connection skip the nat chains. To refuse them would answer a packet outside of the window with a
            // reset and kill a live connection: they are dropped.
            rule().ct_state(state::INVALID | state::NEW).within(&[Load::Destination], "service-cidrs").drop(),
            rule().ct_status(status::CONFIRMED, true).back(),
            rule().ct_status(status::DNAT, true).priority_has(KIND, true).jump(CHAIN_REMEMBER),
            rule().within(&[Load::OriginalDestination], "vips").priority_clear(),
            rule().within(&[Load::OriginalDestination], "node-addresses").priority_clear(),
        ],
    ));
    chains
}

/// The source address of translated connections.
fn source_chains(family: Family) -> Vec<Chain> {
    let rule = || Rule::new(family);
    let mut chains = Vec::new();
    let frontend = [Load::OriginalDestination, Load::Protocol, Load::OriginalPort];
    let node_port = [Load::Protocol, Load::OriginalPort];
    // nft 1.0.6 reads `ct original proto-dst` only where the protocol was compared before: hence three chains.
    for (name, number) in PROTOCOLS {
        let node = [Load::OriginalDestination];
        chains.push(chain(
            name,
            vec![
                rule().protocol(number).within(&frontend, "masq").masquerade(),
                rule()
                    .protocol(number)
                    .within(&node, "node-addresses")
                    .within(&node_port, "masq-nodeports")
                    .masquerade(),
                rule().protocol(number).local_source().within(&frontend, "masq-node").masquerade(),
                rule()
                    .protocol(number)
                    .local_source()
                    .within(&node, "node-addresses")
                    .within(&node_port, "masq-node-nodeports")
                    .masquerade(),
            ],
        ));
    }
    let mut rules = vec![
        rule().within(&[Load::Source, Load::Destination], "hairpin").masquerade(),
        rule()
            .within(&[Load::OriginalDestination], "cluster-ips")
            .without(&[Load::Source], "unmasqueraded")
            .masquerade(),
    ];
    rules.extend(PROTOCOLS.map(|(name, number)| rule().protocol(number).goto(name)));
    chains.push(chain("source", rules));
    chains
}

const PROTOCOLS: [(&str, u8); 3] = [("source-tcp", 6), ("source-udp", 17), ("source-sctp", 132)];

/// Where the tables meet packets.
fn base_chains(family: Family) -> Vec<Chain> {
    let rule = || Rule::new(family);
    let base = |name: &str, kind: &'static str, hook: Hook, priority: i32, rules: Vec<Rule>| Chain {
        hook: Some(ChainHook { kind, hook, priority }),
        ..chain(name, rules)
    };
    // Somebody on the wire must not reach what listens on 127.0.0.1, nor a node port there, once route_localnet is set.
    let martians = || if family == Family::Ip { vec![rule().not_loopback().loopback_net()] } else { vec![] };
    let ours = |next: &str| {
        vec![
            rule().within(&[Load::Destination], "vips").goto(next),
            rule().within(&[Load::Destination], "node-addresses").goto(next),
            rule().within(&[Load::Destination], "service-cidrs").count(COUNTER_UNALLOCATED).drop(),
        ]
    };
    let mut prerouting: Vec<Rule> = martians().into_iter().map(Rule::drop).collect();
    prerouting.push(
        rule()
            .within(&[Load::Destination], "closed-cidrs")
            .without(&[Load::Source], "inside")
            .count(COUNTER_OUTSIDE)
            .drop(),
    );
    prerouting.extend(ours("from-network"));
    let mut chains = vec![
        base(
            "after-prerouting",
            "filter",
            Hook::Prerouting,
            -99,
            vec![
                rule().jump("settle"),
                // An address that the network brings here because a Service has it, at a port that no Service has: the route
                // to it leads back to the network, which would bring it here again (cilium/cilium#14176).
                rule()
                    .ct_state(state::NEW)
                    .ct_status(status::DNAT, false)
                    .within(&[Load::Destination], "vips")
                    .leads_back()
                    .count(COUNTER_BOUNCED)
                    .goto("refuse"),
            ],
        ),
        base("after-output", "filter", Hook::Output, -99, vec![rule().jump("settle")]),
        base(
            "postrouting",
            "nat",
            Hook::Postrouting,
            100,
            vec![rule().ct_status(status::DNAT, true).goto("source")],
        ),
        // A pod's packet that conntrack takes for out of the window would leave untranslated, and be answered by a reset.
        base(
            "forward",
            "filter",
            Hook::Forward,
            0,
            vec![rule().ct_state(state::INVALID).within(&[Load::Source], "inside").drop()],
        ),
    ];
    if family == Family::Ip {
        // Of a packet without a connection there is no status to ask for: two rules.
        let states = [state::INVALID | state::UNTRACKED, state::NEW];
        let rules = states.into_iter().flat_map(|states| {
            martians().into_iter().map(move |rule| {
                let rule = rule.ct_state(states);
                if states == state::NEW { rule.ct_status(status::DNAT, false).drop() } else { rule.drop() }
            })
        });
        let rules = rules.collect();
        chains.push(base("input", "filter", Hook::Input, 0, rules));
    }
    chains.push(base("output", "nat", Hook::Output, -100, ours("from-node")));
    chains.push(base("prerouting", "nat", Hook::Prerouting, -100, prerouting));
    chains
}
