//! A question against the zone: pure. What is said is what CoreDNS says, but where docs/reference/dns.md says otherwise.

use std::net::{IpAddr, Ipv6Addr};

use crate::message::{Composer, Data, IN, Query, Rcode, Records, Section, kind};
use crate::name::{Name, labels};
use crate::zone::{Entry, Holder, KUBE_DNS, Key, PodNames, PortView, ServiceView, Zone, label_address};

/// The version of the names' schema (kubernetes/dns, docs/specification.md §2.2), and for how many seconds it holds.
const SCHEMA: (&str, u32) = ("1.1.0", 28800);
/// How many aliases are followed.
const CHAIN: usize = 10;

/// A record to be written.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its name.
    pub owner: Name,
    /// Its data.
    pub data: Data<'static>,
    /// For how many seconds it holds.
    pub ttl: u32,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What became of the question.
    pub rcode: Rcode,
    /// Whether it comes from who is in charge of the name.
    pub authoritative: bool,
    /// What was asked for.
    pub answers: Vec<Record>,
    /// The start of the zone where the answer is "no"; it says for how long that holds.
    pub authority: Option<Record>,
    /// What may be asked for next.
    pub additional: Vec<Record>,
    /// A name of others that the answer ends in: what it stands for belongs to the answer, too.
    pub chase: Option<Name>,
}

/// What is said to a question.
#[derive(Clone, Debug)]
pub enum Said {
    /// This.
    Answer(Answer),
    /// The name is for others to say; this where there are none to ask.
    Elsewhere(Answer),
}

/// What is said to a question, from the zone alone.
pub fn answer(zone: &Zone, query: &Query) -> Said {
    if query.edns.is_some_and(|edns| edns.version > 0) {
        return Said::Answer(plain(Rcode::BadVers));
    }
    if query.class != IN {
        return Said::Answer(plain(Rcode::Refused));
    }
    let ours = query.lower.before(&zone.options.domain);
    let reverse = ours.is_none().then(|| Reverse::of(query)).flatten();
    if ours.is_none() && reverse.is_none() {
        return Said::Elsewhere(plain(Rcode::Refused));
    }
    if matches!(query.kind, kind::AXFR | kind::IXFR) {
        return Said::Answer(plain(Rcode::Refused));
    }
    if !zone.synced() {
        return Said::Answer(plain(Rcode::ServFail));
    }
    match (ours, reverse) {
        (Some(prefix), _) => {
            let domain = query.name.end(zone.options.domain.wire().len());
            Said::Answer(In { zone, query, domain }.answer(prefix))
        }
        (None, Some(reverse)) => reverse.answer(zone, query),
        (None, None) => Said::Elsewhere(plain(Rcode::Refused)),
    }
}

/// No records.
pub fn plain(rcode: Rcode) -> Answer {
    Answer {
        rcode,
        authoritative: false,
        answers: Vec::new(),
        authority: None,
        additional: Vec::new(),
        chase: None,
    }
}

/// What a name stands for.
enum Found<'z> {
    /// There is no such name, nor one below it.
    Nothing,
    /// There is, or there is one below it, but it has no records.
    Name,
    /// These addresses.
    Addresses(Vec<IpAddr>),
    /// Ports of a Service: at which addresses, by which names.
    Ports(Ports<'z>),
    /// Another name.
    Alias(&'z Name),
    /// The schema's version.
    Schema,
    /// The zone itself.
    Apex,
}

/// Ports of a Service.
struct Ports<'z> {
    key: &'z Key,
    /// The label of who has the port, empty for the Service itself; the address, the port.
    all: Vec<(&'z [u8], IpAddr, Option<u16>)>,
}

/// What a name says that it wants of a Service.
struct Wanted<'n> {
    endpoint: &'n [u8],
    port: &'n [u8],
    protocol: &'n [u8],
}

impl Wanted<'_> {
    fn port(&self, port: &PortView) -> bool {
        let fits = |wanted: &[u8], has: &str| wanted.is_empty() || wanted == has.as_bytes();
        fits(self.port, &port.name) && fits(self.protocol, port.protocol)
    }
}

/// A question in the cluster's zone.
struct In<'z, 'q> {
    zone: &'z Zone,
    query: &'q Query,
    /// The zone's name in the case in which it was asked.
    domain: Name,
}

impl<'z> In<'z, '_> {
    fn answer(&self, prefix: &[u8]) -> Answer {
        let mut answer = plain(Rcode::NoError);
        answer.authoritative = true;
        match self.find(prefix) {
            Found::Nothing => answer.rcode = Rcode::NxDomain,
            Found::Name => {}
            Found::Addresses(addresses) => self.addresses(&mut answer, self.query.name, addresses),
            Found::Ports(ports) if self.query.kind == kind::SRV => self.services(&mut answer, &ports),
            Found::Ports(ports) => {
                let addresses = ports.all.iter().map(|(_, address, _)| *address).collect();
                self.addresses(&mut answer, self.query.name, addresses);
            }
            Found::Alias(target) => self.alias(&mut answer, target),
            Found::Schema if self.query.kind == kind::TXT => {
                let data = Data::Txt(SCHEMA.0);
                answer.answers.push(Record { owner: self.query.name, data, ttl: SCHEMA.1 });
            }
            Found::Schema => {}
            Found::Apex => self.apex(&mut answer),
        }
        if answer.answers.is_empty() {
            answer.authority = Some(self.soa());
        }
        answer
    }

    /// What is before the zone's own labels, looked up.
    fn find(&self, prefix: &[u8]) -> Found<'z> {
        let zone = self.zone;
        // A sixth label is one too many: that there is one is all there is to know.
        let mut found: [&[u8]; 6] = [&[]; 6];
        let count = labels(prefix).count();
        for (place, label) in found.iter_mut().zip(labels(prefix).skip(count.saturating_sub(6))) {
            *place = label;
        }
        let parts = &mut found[..count.min(6)];
        parts.reverse();
        let kinds = parts.first().copied();
        match parts {
            [] => return Found::Apex,
            [b"dns-version"] => return Found::Schema,
            [b"dns"] | [b"svc"] | [b"pod"] => return Found::Name,
            [b"dns", b"ns"] => return Found::Addresses(self.own().1),
            [b"svc" | b"pod", namespace, ..] if zone.has_namespace(namespace) => {}
            _ => return Found::Nothing,
        }
        let (wanted, service) = match (kinds, &parts[2..]) {
            (_, []) => return Found::Name,
            (Some(b"pod"), [pod]) => {
                return match label_address(pod).filter(|_| zone.options.pods == PodNames::Insecure) {
                    Some(address) => Found::Addresses(vec![address]),
                    None => Found::Nothing,
                };
            }
            (Some(b"pod"), _) => return Found::Nothing,
            (_, [service]) => (Wanted { endpoint: b"", port: b"", protocol: b"" }, service),
            (_, [service, endpoint]) => (Wanted { endpoint, port: b"", protocol: b"" }, service),
            (_, [service, protocol, port]) => {
                let bare = |label: &'_ [u8]| -> usize { usize::from(label.first() == Some(&b'_')) };
                let (port, protocol) = (&port[bare(port)..], &protocol[bare(protocol)..]);
                (Wanted { endpoint: b"", port, protocol }, service)
            }
            _ => return Found::Nothing,
        };
        // The labels of a Service and its namespace stand together, as in its key.
        let mut key = [0; 128];
        let mut end = 0;
        for label in [service, parts[1]] {
            key[end] = label.len() as u8;
            key[end + 1..=end + label.len()].copy_from_slice(label);
            end += label.len() + 1;
        }
        match zone.service(&key[..end]) {
            Some((key, entry)) => self.service(key, entry, &wanted),
            None => Found::Nothing,
        }
    }

    fn service(&self, key: &'z Key, entry: &'z Entry, wanted: &Wanted<'_>) -> Found<'z> {
        let bare = wanted.endpoint.is_empty() && wanted.port.is_empty() && wanted.protocol.is_empty();
        let mut all = Vec::new();
        match &entry.service {
            None => {}
            Some(ServiceView::External(Some(target))) if bare => return Found::Alias(target),
            Some(ServiceView::External(_)) => {}
            Some(ServiceView::ClusterIp { addresses, ports }) if wanted.endpoint.is_empty() => {
                for port in ports.iter().filter(|port| wanted.port(port)) {
                    all.extend(addresses.iter().map(|address| (&b""[..], *address, port.number)));
                }
            }
            Some(ServiceView::ClusterIp { .. } | ServiceView::Headless) => {
                let named =
                    |label: &[u8]| wanted.endpoint.is_empty() || label.get(1..) == Some(wanted.endpoint);
                for slice in entry.slices.values() {
                    for endpoint in slice.endpoints.iter().filter(|e| named(&e.label)) {
                        let has = |port| (&*endpoint.label, endpoint.address, port);
                        let fitting = slice.ports.iter().filter(|port| wanted.port(port));
                        all.extend(fitting.map(|port| has(port.number)));
                        // Without ports it is still an endpoint, but of no port in particular.
                        if slice.ports.is_empty() && wanted.port.is_empty() && wanted.protocol.is_empty() {
                            all.push(has(None));
                        }
                    }
                }
            }
        }
        if all.is_empty() { Found::Nothing } else { Found::Ports(Ports { key, all }) }
    }

    /// Adds addresses of the family asked for, each once, beginning with another one for each question.
    fn addresses(&self, answer: &mut Answer, owner: Name, mut addresses: Vec<IpAddr>) {
        match self.query.kind {
            kind::A => addresses.retain(IpAddr::is_ipv4),
            kind::AAAA => addresses.retain(IpAddr::is_ipv6),
            _ => return,
        }
        addresses.sort_unstable();
        addresses.dedup();
        if !addresses.is_empty() {
            let turn = usize::from(self.query.id) % addresses.len();
            addresses.rotate_left(turn);
        }
        answer.answers.extend(addresses.into_iter().map(|address| self.address(owner, address)));
    }

    fn address(&self, owner: Name, address: IpAddr) -> Record {
        let data = match address {
            IpAddr::V4(ip) => Data::A(ip),
            IpAddr::V6(ip) => Data::Aaaa(ip),
        };
        Record { owner, data, ttl: self.zone.options.ttl }
    }

    /// Adds the ports, each with the name and the addresses of who has it.
    fn services(&self, answer: &mut Answer, ports: &Ports<'_>) {
        // All weigh the same; together they are to weigh 100, and each at least 1.
        let weight = (100 / ports.all.len()).max(1) as u16;
        let (mut targets, mut addresses) = (Vec::new(), Vec::new());
        for (label, address, port) in &ports.all {
            targets.extend(port.map(|port| (*label, port)));
            if port.is_some() {
                addresses.push((*label, *address));
            }
        }
        targets.sort_unstable();
        targets.dedup();
        addresses.sort_unstable();
        addresses.dedup();
        let name = |label: &[u8]| Name::of(&[label, &ports.key.0, b"\x03svc"], self.domain.wire());
        let ttl = self.zone.options.ttl;
        for (label, port) in targets {
            let Some(target) = name(label) else { continue };
            answer.answers.push(Record {
                owner: self.query.name,
                data: Data::Srv(weight, port, target),
                ttl,
            });
        }
        for (label, address) in addresses {
            answer.additional.extend(name(label).map(|owner| self.address(owner, address)));
        }
    }

    /// Follows a name that stands for another.
    fn alias(&self, answer: &mut Answer, target: &'z Name) {
        let ttl = self.zone.options.ttl;
        let alias = |owner, target: &Name| Record { owner, data: Data::Name(kind::CNAME, *target), ttl };
        match self.query.kind {
            kind::CNAME => answer.answers.push(alias(self.query.name, target)),
            kind::A | kind::AAAA => {
                let (mut owner, mut target) = (self.query.name, target);
                while answer.answers.len() < CHAIN {
                    answer.answers.push(alias(owner, target));
                    owner = *target;
                    let Some(prefix) = target.before(&self.zone.options.domain) else {
                        answer.chase = Some(*target);
                        return;
                    };
                    match self.find(prefix) {
                        Found::Alias(next) => target = next,
                        Found::Ports(ports) => {
                            let before = answer.answers.len();
                            let addresses = ports.all.iter().map(|(_, address, _)| *address).collect();
                            self.addresses(answer, owner, addresses);
                            if answer.answers.len() > before {
                                return;
                            }
                            break;
                        }
                        Found::Addresses(addresses) => {
                            let before = answer.answers.len();
                            self.addresses(answer, owner, addresses);
                            if answer.answers.len() > before {
                                return;
                            }
                            break;
                        }
                        _ => break,
                    }
                }
                // It leads nowhere, or round in a circle.
                answer.answers.clear();
            }
            _ => {}
        }
    }

    /// The name server's own name and addresses.
    fn own(&self) -> (Option<Name>, Vec<IpAddr>) {
        let options = &self.zone.options;
        let service = Key::new(KUBE_DNS.0, KUBE_DNS.1).and_then(|key| self.zone.service(&key.0));
        match service {
            Some((key, Entry { service: Some(ServiceView::ClusterIp { addresses, .. }), .. })) => {
                (Name::of(&[&key.0, b"\x03svc"], self.domain.wire()), addresses.clone())
            }
            _ => (server_name(self.domain.wire()), options.own.clone()),
        }
    }

    fn apex(&self, answer: &mut Answer) {
        let (name, addresses) = self.own();
        match (self.query.kind, name) {
            (kind::SOA, _) => answer.answers.push(self.soa()),
            (kind::NS, Some(name)) if !addresses.is_empty() => {
                let data = Data::Name(kind::NS, name);
                answer.answers.push(Record { owner: self.query.name, data, ttl: self.zone.options.ttl });
                answer.additional.extend(addresses.into_iter().map(|address| self.address(name, address)));
            }
            _ => {}
        }
    }

    fn soa(&self) -> Record {
        soa(self.zone, self.domain)
    }
}

fn server_name(domain: &[u8]) -> Option<Name> {
    Name::of(&[b"\x02ns\x03dns"], domain)
}

/// The start of a zone.
fn soa(zone: &Zone, owner: Name) -> Record {
    let under = |label: &[u8]| Name::of(&[label], owner.wire()).unwrap_or(owner);
    let data = Data::Soa(
        server_name(owner.wire()).unwrap_or(owner),
        under(b"\x0ahostmaster"),
        zone.serial,
        zone.options.ttl,
    );
    Record { owner, data, ttl: zone.options.ttl.min(300) }
}

/// A name below in-addr.arpa or ip6.arpa.
struct Reverse {
    arpa: Name,
    address: Option<IpAddr>,
}

impl Reverse {
    fn of(query: &Query) -> Option<Reverse> {
        let (four, six) = (Name::parse("in-addr.arpa")?, Name::parse("ip6.arpa")?);
        let arpa = |arpa: Name| query.name.end(arpa.wire().len());
        if let Some(prefix) = query.lower.before(&four) {
            return Some(Reverse { arpa: arpa(four), address: ipv4(prefix) });
        }
        let prefix = query.lower.before(&six)?;
        Some(Reverse { arpa: arpa(six), address: ipv6(prefix) })
    }

    fn answer(&self, zone: &Zone, query: &Query) -> Said {
        let mut answer = plain(Rcode::NoError);
        answer.authoritative = true;
        let names = self.address.map(|address| names(zone, address)).unwrap_or_default();
        let ttl = zone.options.ttl;
        if query.kind == kind::PTR {
            let record = |name| Record { owner: query.name, data: Data::Name(kind::PTR, name), ttl };
            answer.answers.extend(names.iter().copied().map(record));
        }
        if answer.answers.is_empty() {
            answer.authority = Some(soa(zone, self.arpa));
        }
        if names.is_empty() {
            answer.rcode = Rcode::NxDomain;
            return Said::Elsewhere(answer);
        }
        Said::Answer(answer)
    }
}

/// The names of an address: the Service whose own it is, or else all endpoints that have it.
fn names(zone: &Zone, address: IpAddr) -> Vec<Name> {
    let domain = zone.options.domain.wire();
    let mut names = Vec::new();
    for holder in zone.holders(address) {
        match holder {
            Holder::Service(key) => return Name::of(&[&key.0, b"\x03svc"], domain).into_iter().collect(),
            Holder::Endpoint(key, slice) => {
                let slice = zone.service(&key.0).and_then(|(_, entry)| entry.slices.get(slice));
                let endpoints = slice.map(|s| s.endpoints.as_slice()).unwrap_or_default();
                for endpoint in endpoints.iter().filter(|e| e.address == address) {
                    names.extend(Name::of(&[&endpoint.label, &key.0, b"\x03svc"], domain));
                }
            }
        }
    }
    names.sort_unstable_by(|a, b| a.wire().cmp(b.wire()));
    names.dedup();
    names
}

fn ipv4(prefix: &[u8]) -> Option<IpAddr> {
    let mut octets = [0; 4];
    let mut count = 0;
    for label in labels(prefix) {
        // Only the one way to write a number names the address.
        let text = std::str::from_utf8(label).ok().filter(|t| *t == "0" || !t.starts_with(['0', '+']))?;
        *octets.get_mut(3_usize.checked_sub(count)?)? = text.parse().ok()?;
        count += 1;
    }
    (count == 4).then(|| octets.into())
}

fn ipv6(prefix: &[u8]) -> Option<IpAddr> {
    let (mut bits, mut count) = (0_u128, 0);
    for label in labels(prefix) {
        let [digit] = label else { return None };
        let digit = char::from(*digit).to_digit(16)?;
        if count == 32 {
            return None;
        }
        bits |= u128::from(digit) << (4 * count);
        count += 1;
    }
    (count == 32).then(|| Ipv6Addr::from(bits).into())
}

/// Writes an answer. `others` is what others answered about the name that it ends in.
pub fn compose(
    out: &mut Vec<u8>,
    query: &Query,
    answer: &Answer,
    others: Option<&[u8]>,
    limit: usize,
    recursion_available: bool,
) {
    let mut composer = Composer::answer(out, query, limit);
    for record in &answer.answers {
        composer.record(Section::Answer, &record.owner, record.ttl, &record.data);
    }
    let end = answer.answers.last().map_or(0, |record| record.ttl);
    for record in others.and_then(Records::of).into_iter().flatten().map_while(|record| record) {
        let message = others.unwrap_or_default();
        let data = match (record.section, record.kind) {
            (Section::Answer, kind::CNAME) => {
                Name::read(message, record.data.start).map(|(name, _)| Data::Name(kind::CNAME, name))
            }
            (Section::Answer, kind::A) if query.kind == kind::A => {
                <[u8; 4]>::try_from(&message[record.data]).ok().map(|ip| Data::A(ip.into()))
            }
            (Section::Answer, kind::AAAA) if query.kind == kind::AAAA => {
                <[u8; 16]>::try_from(&message[record.data]).ok().map(|ip| Data::Aaaa(ip.into()))
            }
            _ => None,
        };
        if let Some(data) = data {
            composer.record(Section::Answer, &record.owner, record.ttl.min(end), &data);
        }
    }
    if let Some(record) = &answer.authority {
        composer.record(Section::Authority, &record.owner, record.ttl, &record.data);
    }
    for record in &answer.additional {
        composer.record(Section::Additional, &record.owner, record.ttl, &record.data);
    }
    composer.finish(answer.rcode, answer.authoritative, recursion_available);
}
