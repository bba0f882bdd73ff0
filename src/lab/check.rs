//! What every place should see of every Service: rows of expectations, and what becomes of them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::probe::{Answer, Search, Seen};
use super::sight::{Endpoint, PodSight, PortSight, ServiceSight};
use super::state::Published;
use super::table;
use super::topology::{IpFamily, Topology, Transport};

/// A place to connect from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A pod, by its `namespace/name`.
    Pod(String),
    /// A machine of the lab: a node or the client.
    Machine(String),
    /// This machine.
    Here,
}

/// What a trial should see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Answers by these alone; each of `every` at least once.
    Hostnames {
        /// Who must answer.
        every: BTreeSet<String>,
        /// Who may answer.
        among: BTreeSet<String>,
    },
    /// Answers by one of these, always the same.
    One(BTreeSet<String>),
    /// Somebody accepts.
    Accepted,
    /// Refused at once: there is no endpoint.
    Refused,
    /// No connection: silence or a refusal.
    Nothing,
}

/// Connections from one place to one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// From where.
    pub from: Place,
    /// What tells it from the others of its row: the node that it is from or goes to.
    pub label: String,
    /// To where.
    pub target: SocketAddr,
    /// What should be seen.
    pub expected: Expected,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The Service.
    pub service: String,
    /// The port, as kubectl writes it.
    pub port: String,
    /// Which of its addresses.
    pub kind: &'static str,
    /// The family.
    pub family: IpFamily,
    /// The protocol.
    pub protocol: Transport,
    /// From what sort of place.
    pub from: &'static str,
    /// In words, what should be seen.
    pub expects: &'static str,
    /// The trials, or why there are none.
    pub trials: Result<Vec<Trial>, &'static str>,
}

/// All that rows are made from.
#[derive(Debug)]
pub struct Grounds<'a> {
    /// The lab.
    pub topology: &'a Topology,
    /// Its published ports.
    pub published: &'a [Published],
    /// Its Services.
    pub services: &'a [ServiceSight],
    /// All pods by `namespace/name`.
    pub pods: &'a BTreeMap<String, PodSight>,
    /// A pod on each node, by node, that is no Service's backend.
    pub bystanders: &'a BTreeMap<String, PodSight>,
}

const SAME: &str = "pod on the same node";
const OTHER: &str = "pod on another node";
const ITSELF: &str = "pod reaching itself";
const POD: &str = "pod";
const NODE: &str = "node";
const CLIENT: &str = "outside client";
const HERE: &str = "this machine";

/// Every row of every Service.
pub fn rows(grounds: &Grounds<'_>) -> Vec<Row> {
    let mut all = Vec::new();
    for service in grounds.services {
        for port in &service.ports {
            let Some(protocol) = port.protocol else { continue };
            for family in service.families() {
                let set = Frontends { grounds, service, port, protocol, family };
                set.rows(&mut all);
            }
        }
    }
    for row in &mut all {
        // Silence would be no news of a program that may have nothing to say.
        let unheard = |trials: &Vec<Trial>| trials.iter().any(|t| t.expected == Expected::Accepted);
        if row.protocol == Transport::Udp && row.trials.as_ref().is_ok_and(unheard) {
            row.trials = Err("only `echo` is known to answer any datagram");
        }
    }
    all
}

/// The frontends of one port of one Service in one family.
struct Frontends<'a> {
    grounds: &'a Grounds<'a>,
    service: &'a ServiceSight,
    port: &'a PortSight,
    protocol: Transport,
    family: IpFamily,
}

/// The address that a place on this node connects to.
type Inside = Box<dyn Fn(&str) -> Option<SocketAddr>>;

/// One frontend: how it is reached, and who is let in.
struct Frontend {
    kind: &'static str,
    /// The address that a place on this node connects to.
    inside: Inside,
    /// The addresses that the client connects to, by node; with an empty name where it is everybody's.
    outside: Vec<(String, SocketAddr)>,
    /// Inside, only backends on the node itself.
    local_inside: bool,
    /// Whether outsiders have no business here.
    closed_outside: bool,
}

impl Frontends<'_> {
    fn rows(&self, all: &mut Vec<Row>) {
        let of_family = |addresses: &[IpAddr]| -> Vec<SocketAddr> {
            let ours = addresses.iter().filter(|a| IpFamily::of(**a) == self.family);
            ours.map(|a| SocketAddr::new(*a, self.port.port)).collect()
        };
        for target in of_family(&self.service.cluster_ips) {
            let frontend = Frontend {
                kind: "ClusterIP",
                inside: Box::new(move |_| Some(target)),
                outside: vec![(String::new(), target)],
                local_inside: self.service.internal_local,
                closed_outside: true,
            };
            self.inside(&frontend, all);
            self.outside(&frontend, all);
            all.push(self.row(&frontend, HERE, "", Err("a ClusterIP is not published")));
        }
        if let Some(number) = self.port.node_port {
            let nodes: BTreeMap<String, SocketAddr> = self
                .grounds
                .topology
                .nodes
                .iter()
                .filter_map(|node| {
                    Some((node.name.clone(), SocketAddr::new(node.address(self.family)?, number)))
                })
                .collect();
            let outside = nodes.clone().into_iter().collect();
            let frontend = Frontend {
                kind: "NodePort",
                inside: Box::new(move |node| nodes.get(node).copied()),
                outside,
                local_inside: false,
                closed_outside: false,
            };
            self.inside(&frontend, all);
            self.outside(&frontend, all);
            self.here(&frontend, number, all);
        }
        for (kind, addresses) in
            [("LoadBalancer", &self.service.load_balancers), ("ExternalIP", &self.service.external_ips)]
        {
            for target in of_family(addresses) {
                let frontend = Frontend {
                    kind,
                    inside: Box::new(move |_| Some(target)),
                    outside: vec![(String::new(), target)],
                    local_inside: false,
                    closed_outside: false,
                };
                self.inside(&frontend, all);
                match kind {
                    "LoadBalancer" => self.outside(&frontend, all),
                    _ => all.push(self.row(
                        &frontend,
                        CLIENT,
                        "",
                        Err("nobody here routes external addresses"),
                    )),
                }
                all.push(self.row(&frontend, HERE, "", Err("the lab's network doesn't reach this machine")));
            }
        }
    }

    fn row(
        &self,
        frontend: &Frontend,
        from: &'static str,
        expects: &'static str,
        trials: Result<Vec<Trial>, &'static str>,
    ) -> Row {
        Row {
            service: self.service.name.clone(),
            port: self.port.text.clone(),
            kind: frontend.kind,
            family: self.family,
            protocol: self.protocol,
            from,
            expects,
            trials,
        }
    }

    /// From pods and nodes.
    fn inside(&self, frontend: &Frontend, all: &mut Vec<Row>) {
        let endpoints = self.endpoints();
        let mut trials: BTreeMap<&'static str, Vec<Trial>> = BTreeMap::new();
        let mut words: BTreeMap<&'static str, &'static str> = BTreeMap::new();
        for node in &self.grounds.topology.nodes {
            let Some(target) = (frontend.inside)(&node.name) else { continue };
            let bystander = self.grounds.bystanders.get(&node.name);
            let mut add = |from, words_: &'static str, place: Place, expected| {
                words.insert(from, words_);
                trials.entry(from).or_default().push(Trial {
                    from: place,
                    label: node.name.clone(),
                    target,
                    expected,
                });
            };
            let reachable: Vec<&Endpoint> = match frontend.local_inside {
                true => endpoints.iter().copied().filter(|e| e.node.as_deref() == Some(&node.name)).collect(),
                false => endpoints.clone(),
            };
            let pod =
                Place::Pod(bystander.map_or_else(|| format!("a pod on {}", node.name), |p| p.name.clone()));
            let machine = Place::Machine(node.name.clone());
            let pod_source =
                bystander.and_then(|p| p.addresses.iter().copied().find(|a| IpFamily::of(*a) == self.family));

            if endpoints.is_empty() || reachable.is_empty() {
                let (expected, text) = match endpoints.is_empty() {
                    true => (Expected::Refused, "refused: no endpoints"),
                    false => (Expected::Nothing, "nothing: no endpoint on the node"),
                };
                add(POD, text, pod, expected.clone());
                add(NODE, text, machine, expected);
                continue;
            }
            let names = self.hostnames(&reachable);
            match (&names, self.admits(frontend, pod_source)) {
                (_, false) => add(POD, "nothing: not in the source ranges", pod, Expected::Nothing),
                (None, true) => add(POD, "accepted", pod, Expected::Accepted),
                (Some(names), true) if self.service.affinity => {
                    add(POD, "always one backend", pod, Expected::One(names.clone()));
                }
                (Some(names), true) => {
                    let local = |e: &&Endpoint| e.node.as_deref() == Some(node.name.as_str());
                    let (near, far): (Vec<&Endpoint>, Vec<&Endpoint>) =
                        reachable.iter().copied().partition(local);
                    for (from, text, some) in [
                        (SAME, "each backend of the node", near),
                        (OTHER, "each backend of other nodes", far),
                    ] {
                        if let Some(every) = self.hostnames(&some).filter(|every| !every.is_empty()) {
                            add(from, text, pod.clone(), Expected::Hostnames { every, among: names.clone() });
                        }
                    }
                }
            }
            match (names, self.admits(frontend, node.address(self.family))) {
                (_, false) => add(NODE, "nothing: not in the source ranges", machine, Expected::Nothing),
                (None, true) => add(NODE, "accepted", machine, Expected::Accepted),
                (Some(names), true) => add(NODE, self.all_words(), machine, self.all(names)),
            }
        }
        for from in [SAME, OTHER, POD] {
            if let Some(trials) = trials.remove(from) {
                all.push(self.row(frontend, from, words[from], Ok(trials)));
            }
        }
        self.itself(frontend, &endpoints, all);
        if let Some(trials) = trials.remove(NODE) {
            all.push(self.row(frontend, NODE, words[NODE], Ok(trials)));
        }
    }

    /// From each backend to itself, by way of the Service.
    fn itself(&self, frontend: &Frontend, endpoints: &[&Endpoint], all: &mut Vec<Row>) {
        let Some(among) = self.hostnames(endpoints) else { return };
        let mut trials = Vec::new();
        for endpoint in endpoints {
            let Some(pod) = endpoint.pod.as_ref().and_then(|name| self.grounds.pods.get(name)) else {
                continue;
            };
            let Some(target) = (frontend.inside)(&pod.node) else { continue };
            // A pod on its node's network is the node; one that affinity sends elsewhere never reaches itself.
            if pod.host_network || self.service.affinity || !self.admits(frontend, Some(endpoint.address)) {
                continue;
            }
            let expected =
                Expected::Hostnames { every: BTreeSet::from([pod.hostname.clone()]), among: among.clone() };
            trials.push(Trial {
                from: Place::Pod(pod.name.clone()),
                label: pod.node.clone(),
                target,
                expected,
            });
        }
        if !trials.is_empty() {
            all.push(self.row(frontend, ITSELF, "itself", Ok(trials)));
        }
    }

    /// From the client.
    fn outside(&self, frontend: &Frontend, all: &mut Vec<Row>) {
        let endpoints = self.endpoints();
        let client = &self.grounds.topology.client;
        let admitted = self.admits(frontend, client.address(self.family));
        let mut words = "";
        let mut trials = Vec::new();
        for (node, target) in &frontend.outside {
            let local: Vec<&Endpoint> =
                endpoints.iter().copied().filter(|e| e.node.as_deref() == Some(node)).collect();
            let (expected, text) = match () {
                () if frontend.closed_outside => (Expected::Nothing, "nothing: closed to outsiders"),
                () if endpoints.is_empty() => (Expected::Refused, "refused: no endpoints"),
                () if !admitted => (Expected::Nothing, "nothing: not in the source ranges"),
                () if self.service.external_local && !node.is_empty() => match self.hostnames(&local) {
                    Some(names) if names.is_empty() => {
                        (Expected::Nothing, "the node's own backends, or nothing")
                    }
                    Some(names) => (self.all(names), "the node's own backends, or nothing"),
                    None => (Expected::Accepted, "accepted"),
                },
                () => match self.hostnames(&endpoints) {
                    // Who announces the address decides whose own backends these are.
                    Some(among) if self.service.external_local => (
                        Expected::Hostnames { every: BTreeSet::new(), among },
                        "the announcer's own backends",
                    ),
                    Some(names) => (self.all(names), self.all_words()),
                    None => (Expected::Accepted, "accepted"),
                },
            };
            words = text;
            trials.push(Trial {
                from: Place::Machine(client.name.clone()),
                label: node.clone(),
                target: *target,
                expected,
            });
        }
        all.push(self.row(frontend, CLIENT, words, Ok(trials)));
    }

    /// From this machine, through a published port.
    fn here(&self, frontend: &Frontend, number: u16, all: &mut Vec<Row>) {
        let published =
            self.grounds.published.iter().find(|p| {
                p.publish.port == number && p.publish.protocol == self.protocol && p.problem.is_none()
            });
        let Some(published) = published else {
            return all.push(self.row(frontend, HERE, "", Err("not published: the port is in use here")));
        };
        if self.service.families().next() != Some(self.family) {
            return all.push(self.row(frontend, HERE, "", Err("published for the Service's first family")));
        }
        let endpoints = self.endpoints();
        let (expected, words) = match self.hostnames(&endpoints) {
            // The forwarder has accepted before it knows; it resets, and can't say more of a datagram than nothing.
            _ if endpoints.is_empty() => (Expected::Nothing, "nothing: no endpoints"),
            Some(among) if self.service.external_local => {
                (Expected::Hostnames { every: BTreeSet::new(), among }, "some node's own backends")
            }
            Some(names) => (self.all(names), self.all_words()),
            None => (Expected::Accepted, "accepted"),
        };
        let target = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), published.publish.host_port);
        let trial = Trial { from: Place::Here, label: String::new(), target, expected };
        all.push(self.row(frontend, HERE, words, Ok(vec![trial])));
    }

    fn endpoints(&self) -> Vec<&Endpoint> {
        self.port.endpoints.iter().filter(|e| IpFamily::of(e.address) == self.family).collect()
    }

    /// The host names of endpoints; `None` if one of them doesn't tell.
    fn hostnames(&self, endpoints: &[&Endpoint]) -> Option<BTreeSet<String>> {
        endpoints
            .iter()
            .map(|endpoint| {
                let pod = self.grounds.pods.get(endpoint.pod.as_ref()?)?;
                pod.echo.then(|| pod.hostname.clone())
            })
            .collect()
    }

    /// All of these answer; with affinity only one of them.
    fn all(&self, names: BTreeSet<String>) -> Expected {
        match self.service.affinity {
            true => Expected::One(names),
            false => Expected::Hostnames { every: names.clone(), among: names },
        }
    }

    fn all_words(&self) -> &'static str {
        if self.service.affinity { "always one backend" } else { "every backend" }
    }

    fn admits(&self, frontend: &Frontend, source: Option<IpAddr>) -> bool {
        frontend.kind != "LoadBalancer"
            || self.service.source_ranges.is_empty()
            || source
                .is_none_or(|source| self.service.source_ranges.iter().any(|range| range.contains(&source)))
    }
}

impl Trial {
    /// How often, and until when, to connect.
    pub fn search(&self, protocol: Transport) -> Search {
        let (until, most) = match &self.expected {
            // That one of n has not been seen in 30 n + 20 even draws happens once in 10^13 times.
            Expected::Hostnames { every, among } if !every.is_empty() => {
                (every.clone(), 30 * among.len() + 20)
            }
            // Nobody in particular: a few connections tell whether others answer too. No host is called "".
            Expected::Hostnames { .. } | Expected::One(_) => (BTreeSet::from([String::new()]), 5),
            _ => (BTreeSet::new(), 1),
        };
        let listen = protocol == Transport::Udp || self.expected != Expected::Accepted;
        Search { target: self.target, protocol, listen, until, most }
    }

    /// Whether what was seen is what was expected.
    pub fn holds(&self, seen: &Seen) -> bool {
        match (&self.expected, &seen.other) {
            (Expected::Hostnames { every, among }, None) => {
                every.is_subset(&seen.hostnames)
                    && seen.hostnames.is_subset(among)
                    && !seen.hostnames.is_empty()
            }
            (Expected::One(among), None) => seen.hostnames.len() == 1 && seen.hostnames.is_subset(among),
            (Expected::Accepted, Some(Answer::Accepted)) => true,
            (Expected::Accepted, None) => true,
            (Expected::Refused, Some(Answer::Refused)) => true,
            (Expected::Nothing, Some(Answer::Refused | Answer::Silence | Answer::Unreachable)) => true,
            _ => false,
        }
    }
}

/// A row's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// As expected.
    AsExpected,
    /// Not.
    Different,
    /// Not tried.
    Untried,
}

/// What became of a row whose trials have seen this.
pub fn verdict(row: &Row, seen: &[Seen]) -> Verdict {
    match &row.trials {
        Err(_) => Verdict::Untried,
        Ok(trials) if trials.len() == seen.len() && trials.iter().zip(seen).all(|(t, s)| t.holds(s)) => {
            Verdict::AsExpected
        }
        Ok(_) => Verdict::Different,
    }
}

/// The whole table.
pub fn render(rows: &[Row], seen: &[Vec<Seen>]) -> String {
    let lines: Vec<Vec<String>> = rows
        .iter()
        .zip(seen)
        .map(|(row, seen)| {
            let verdict = verdict(row, seen);
            let (expected, text) = match &row.trials {
                Err(reason) => ("-".to_owned(), (*reason).to_owned()),
                Ok(trials) => (row.expects.to_owned(), summary(trials, seen, verdict == Verdict::Different)),
            };
            vec![
                row.service.clone(),
                row.port.clone(),
                row.kind.to_owned(),
                row.family.to_string(),
                row.from.to_owned(),
                match verdict {
                    Verdict::AsExpected => "ok",
                    Verdict::Different => "FAIL",
                    Verdict::Untried => "-",
                }
                .to_owned(),
                expected,
                text,
            ]
        })
        .collect();
    table::render(&["SERVICE", "PORT", "TYPE", "FAMILY", "FROM", "RESULT", "EXPECTED", "SEEN"], &lines)
}

/// What the trials of a row have seen: alike things once, what differs by node.
fn summary(trials: &[Trial], seen: &[Seen], failed: bool) -> String {
    let mut parts: Vec<(Vec<&str>, String)> = Vec::new();
    for (trial, seen) in trials.iter().zip(seen) {
        if failed && trial.holds(seen) {
            continue;
        }
        let mut text = match &trial.expected {
            // Who else of the Service answered on the way is another row's matter.
            Expected::Hostnames { every, among } if !every.is_empty() && !failed => names(
                &seen
                    .hostnames
                    .iter()
                    .filter(|n| every.contains(*n) || !among.contains(*n))
                    .cloned()
                    .collect(),
            ),
            _ => names(&seen.hostnames),
        };
        if let Expected::Hostnames { every, .. } = &trial.expected {
            let missing: BTreeSet<String> = every.difference(&seen.hostnames).cloned().collect();
            if !missing.is_empty() && !text.is_empty() {
                text.push_str(&format!(", never {}", names(&missing)));
            }
        }
        if let Some(other) = &seen.other {
            let comma = if text.is_empty() { "" } else { ", then " };
            text.push_str(&format!("{comma}{other}"));
        }
        match parts.iter_mut().find(|(_, same)| *same == text) {
            Some((labels, _)) => labels.push(&trial.label),
            None => parts.push((vec![&trial.label], text)),
        }
    }
    let all = parts.len() == 1 && !failed;
    let part = |(labels, text): &(Vec<&str>, String)| match labels.join(",") {
        labels if all || labels.is_empty() => text.clone(),
        labels => format!("{labels}: {text}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join("; ")
}

/// Host names, those of one Deployment shortened as a shell would: `echo-{a,b}`.
fn names(all: &BTreeSet<String>) -> String {
    let Some(first) = all.first() else { return String::new() };
    let stem = first.rfind('-').map_or("", |at| &first[..=at]);
    let tails: Option<Vec<&str>> = all.iter().map(|name| name.strip_prefix(stem)).collect();
    match tails {
        Some(tails) if tails.len() > 1 && !stem.is_empty() => format!("{stem}{{{}}}", tails.join(",")),
        _ => all.iter().map(String::as_str).collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
