//! Messages on the wire (RFC 1035 §4, RFC 6891): questions read, answers composed, what others answered looked through.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::name::Name;

/// Types of records.
pub mod kind {
    /// An IPv4 address.
    pub const A: u16 = 1;
    /// A name server.
    pub const NS: u16 = 2;
    /// The name that this one stands for.
    pub const CNAME: u16 = 5;
    /// The start of a zone.
    pub const SOA: u16 = 6;
    /// The name of an address.
    pub const PTR: u16 = 12;
    /// Text.
    pub const TXT: u16 = 16;
    /// An IPv6 address (RFC 3596).
    pub const AAAA: u16 = 28;
    /// A port of a service (RFC 2782).
    pub const SRV: u16 = 33;
    /// EDNS (RFC 6891).
    pub const OPT: u16 = 41;
    /// A part of a zone (RFC 1995).
    pub const IXFR: u16 = 251;
    /// A whole zone (RFC 5936).
    pub const AXFR: u16 = 252;
}

/// The class of the internet.
pub const IN: u16 = 1;
/// The octets of a header.
pub const HEADER: usize = 12;
/// The most octets of an answer over UDP to who doesn't say otherwise (RFC 1035 §4.2.1).
pub const SMALL: usize = 512;
/// The most octets that we send over UDP: no more fits an IPv6 packet that need not be cut (www.dnsflagday.net/2020).
pub const UDP_LIMIT: usize = 1232;
/// The most octets over TCP.
pub const TCP_LIMIT: usize = 65535;

const QR: u8 = 0x80;
const AA: u8 = 0x04;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const RA: u8 = 0x80;
const CD: u8 = 0x10;

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rcode {
    /// It is answered, if only with nothing.
    NoError = 0,
    /// It can't be read.
    FormErr = 1,
    /// We can't say now.
    ServFail = 2,
    /// There is no such name, nor one below it.
    NxDomain = 3,
    /// It is of a kind that we don't do.
    NotImp = 4,
    /// It is not for us.
    Refused = 5,
    /// It is of a later EDNS.
    BadVers = 16,
}

/// What a client says of itself by EDNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest datagram that it takes.
    pub size: u16,
    /// The version of EDNS.
    pub version: u8,
    /// Whether it wants signatures.
    pub dnssec_ok: bool,
}

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Its number, which the answer repeats.
    pub id: u16,
    /// Whether others are to be asked.
    pub recursion: bool,
    /// Whether answers are wanted unchecked.
    pub unchecked: bool,
    /// The name in the case in which it was asked.
    pub name: Name,
    /// The same in lower case.
    pub lower: Name,
    /// The type of record.
    pub kind: u16,
    /// The class.
    pub class: u16,
    /// What the client says of itself.
    pub edns: Option<Edns>,
}

/// What a packet is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A question.
    Query(Box<Query>),
    /// A question that is answered with this header alone.
    Bad([u8; HEADER]),
    /// Nothing that may be answered: two servers would answer each other for ever.
    Ignored,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Reads a packet.
pub fn read(packet: &[u8]) -> Packet {
    let Some(header) = packet.first_chunk::<HEADER>() else { return Packet::Ignored };
    if header[2] & QR != 0 {
        return Packet::Ignored;
    }
    let bad = |rcode: Rcode| {
        let (id, flags) = ([header[0], header[1]], header[2] & 0x79 | QR);
        Packet::Bad([id[0], id[1], flags, rcode as u8, 0, 0, 0, 0, 0, 0, 0, 0])
    };
    if header[2] & 0x78 != 0 {
        return bad(Rcode::NotImp);
    }
    match query(packet, header) {
        Some(query) => Packet::Query(Box::new(query)),
        None => bad(Rcode::FormErr),
    }
}

fn query(packet: &[u8], header: &[u8; HEADER]) -> Option<Query> {
    // One question, nothing answered yet, and no more than EDNS and a signature: as others take them.
    let counts = [4, 6, 8, 10].map(|at| u16_at(header, at).unwrap_or(u16::MAX));
    if counts[0] != 1 || counts[1] > 1 || counts[2] > 1 || counts[3] > 2 {
        return None;
    }
    let (name, at) = Name::read(packet, HEADER)?;
    let mut query = Query {
        id: u16_at(header, 0)?,
        recursion: header[2] & RD != 0,
        unchecked: header[3] & CD != 0,
        name,
        lower: name.lower(),
        kind: u16_at(packet, at)?,
        class: u16_at(packet, at + 2)?,
        edns: None,
    };
    for record in Records::of(packet)? {
        let record = record?;
        if record.kind != kind::OPT {
            continue;
        }
        if query.edns.is_some() || record.owner != Name::ROOT || record.section != Section::Additional {
            return None;
        }
        query.edns = Some(Edns {
            size: record.class,
            version: (record.ttl >> 16) as u8,
            dnssec_ok: record.ttl & 0x8000 != 0,
        });
    }
    Some(query)
}

/// A part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// What was asked for.
    Answer,
    /// Who is in charge of it, and for how long a "no" holds.
    Authority,
    /// What may be asked for next.
    Additional,
}

/// A record of a message.
#[derive(Clone, Debug)]
pub struct RecordAt {
    /// Where it belongs.
    pub section: Section,
    /// Its name.
    pub owner: Name,
    /// Its type.
    pub kind: u16,
    /// Its class.
    pub class: u16,
    /// For how many seconds it holds.
    pub ttl: u32,
    /// Where the message says that.
    pub ttl_at: usize,
    /// Where its data is.
    pub data: std::ops::Range<usize>,
}

/// The records of a message, in order; `None` in place of one that can't be read, and then no more.
pub struct Records<'m> {
    message: &'m [u8],
    at: usize,
    left: [u16; 3],
}

impl<'m> Records<'m> {
    /// Those behind the questions; `None` if these can't be read.
    pub fn of(message: &'m [u8]) -> Option<Records<'m>> {
        let left = [u16_at(message, 6)?, u16_at(message, 8)?, u16_at(message, 10)?];
        let mut at = HEADER;
        for _ in 0..u16_at(message, 4)? {
            at = Name::read(message, at)?.1 + 4;
        }
        (at <= message.len()).then_some(Records { message, at, left })
    }

    fn record(&mut self, section: Section) -> Option<RecordAt> {
        let (owner, at) = Name::read(self.message, self.at)?;
        let from = at + 10;
        let data = from..from + usize::from(u16_at(self.message, at + 8)?);
        self.message.get(data.clone())?;
        self.at = data.end;
        Some(RecordAt {
            section,
            owner,
            kind: u16_at(self.message, at)?,
            class: u16_at(self.message, at + 2)?,
            ttl: u32_at(self.message, at + 4)?,
            ttl_at: at + 4,
            data,
        })
    }
}

impl Iterator for Records<'_> {
    type Item = Option<RecordAt>;

    fn next(&mut self) -> Option<Option<RecordAt>> {
        let index = self.left.iter().position(|left| *left > 0)?;
        self.left[index] -= 1;
        let record = self.record([Section::Answer, Section::Authority, Section::Additional][index]);
        if record.is_none() {
            self.left = [0; 3];
        }
        Some(record)
    }
}

/// What of a message's header there is to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub id: u16,
    /// Whether it is an answer.
    pub response: bool,
    /// Whether something was left out.
    pub truncated: bool,
    /// The lower four bits of what became of the question.
    pub rcode: u8,
}

/// The header of a message; `None` if it is too short for one.
pub fn head(message: &[u8]) -> Option<Head> {
    let header = message.first_chunk::<HEADER>()?;
    Some(Head {
        id: u16_at(header, 0)?,
        response: header[2] & QR != 0,
        truncated: header[2] & TC != 0,
        rcode: header[3] & 0x0f,
    })
}

/// The one question of a message: name, type, class, and where it ends.
pub fn question(message: &[u8]) -> Option<(Name, u16, u16, usize)> {
    if u16_at(message, 4)? != 1 {
        return None;
    }
    let (name, at) = Name::read(message, HEADER)?;
    Some((name, u16_at(message, at)?, u16_at(message, at + 2)?, at + 4))
}

/// The data of a record that is to be written.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "on the stack while an answer is written: a box would be slower"
)]
pub enum Data<'a> {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// A name, for the types NS, CNAME and PTR.
    Name(u16, Name),
    /// A port of a service: weight, port, and where.
    Srv(u16, u16, Name),
    /// Text of at most 255 octets.
    Txt(&'a str),
    /// The start of a zone: its name server, its mailbox, its number, and for how long a "no" holds.
    Soa(Name, Name, u32, u32),
}

impl Data<'_> {
    fn kind(&self) -> u16 {
        match self {
            Data::A(_) => kind::A,
            Data::Aaaa(_) => kind::AAAA,
            Data::Name(kind, _) => *kind,
            Data::Srv(..) => kind::SRV,
            Data::Txt(_) => kind::TXT,
            Data::Soa(..) => kind::SOA,
        }
    }
}

/// How many names are remembered to point back to.
const REMEMBERED: usize = 32;

/// An answer that is being written.
#[derive(Debug)]
pub struct Composer<'b> {
    out: &'b mut Vec<u8>,
    /// Where names begin, to point back to.
    names: [u16; REMEMBERED],
    known: usize,
    limit: usize,
    counts: [u16; 3],
    truncated: bool,
    edns: bool,
    flags: [u8; 2],
}

impl<'b> Composer<'b> {
    /// Begins an answer to a question, of at most so many octets.
    pub fn answer(out: &'b mut Vec<u8>, query: &Query, limit: usize) -> Composer<'b> {
        out.clear();
        out.extend(query.id.to_be_bytes());
        let flags = [QR | if query.recursion { RD } else { 0 }, if query.unchecked { CD } else { 0 }];
        out.extend([flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, 0]);
        let edns = query.edns.is_some();
        let mut composer = Composer {
            out,
            names: [0; REMEMBERED],
            known: 0,
            // The room for our EDNS is set aside.
            limit: if edns { limit - OPT.len() } else { limit },
            counts: [0; 3],
            truncated: false,
            edns,
            flags,
        };
        composer.name(query.name.wire());
        composer.out.extend(query.kind.to_be_bytes());
        composer.out.extend(query.class.to_be_bytes());
        composer
    }

    /// Writes a name, pointing back to the longest end of it that was written before (RFC 1035 §4.1.4).
    fn name(&mut self, name: &[u8]) {
        let (mut at, whole) = (0, self.known);
        while name[at] != 0 {
            // What this name itself adds is not yet whole.
            let known = &self.names[..whole];
            if let Some(before) =
                known.iter().find(|before| same(self.out, usize::from(**before), &name[at..]))
            {
                let pointer = 0xc000 | *before;
                self.out.extend(pointer.to_be_bytes());
                return;
            }
            if let Ok(here) = u16::try_from(self.out.len())
                && here < 0x4000
                && self.known < REMEMBERED
            {
                self.names[self.known] = here;
                self.known += 1;
            }
            let next = at + usize::from(name[at]) + 1;
            self.out.extend(&name[at..next]);
            at = next;
        }
        self.out.push(0);
    }

    /// Adds a record, if there is room for it.
    pub fn record(&mut self, section: Section, owner: &Name, ttl: u32, data: &Data<'_>) {
        if self.truncated {
            return;
        }
        let (before, known) = (self.out.len(), self.known);
        self.name(owner.wire());
        self.out.extend(data.kind().to_be_bytes());
        self.out.extend(IN.to_be_bytes());
        self.out.extend(ttl.to_be_bytes());
        let length_at = self.out.len();
        self.out.extend([0, 0]);
        match data {
            Data::A(address) => self.out.extend(address.octets()),
            Data::Aaaa(address) => self.out.extend(address.octets()),
            Data::Name(_, name) => self.name(name.wire()),
            Data::Srv(weight, port, target) => {
                for number in [0, *weight, *port] {
                    self.out.extend(number.to_be_bytes());
                }
                // RFC 2782 wants the target whole; everybody reads pointers there, and the answer is half as long.
                self.name(target.wire());
            }
            Data::Txt(text) => {
                self.out.push(text.len() as u8);
                self.out.extend(text.as_bytes());
            }
            Data::Soa(server, mailbox, serial, minimum) => {
                self.name(server.wire());
                self.name(mailbox.wire());
                // Nobody transfers the zone: refresh, retry and expiry are as CoreDNS has them.
                for number in [*serial, 7200, 1800, 86400, *minimum] {
                    self.out.extend(number.to_be_bytes());
                }
            }
        }
        let length = (self.out.len() - length_at - 2) as u16;
        self.out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        if self.out.len() > self.limit {
            self.out.truncate(before);
            self.known = known;
            // What is additional may be left out without a word (RFC 2181 §9).
            self.truncated = section != Section::Additional;
            return;
        }
        self.counts[section as usize] += 1;
    }

    /// Ends the answer.
    pub fn finish(self, rcode: Rcode, authoritative: bool, recursion_available: bool) {
        let mut counts = self.counts;
        if self.edns {
            self.out.extend(OPT);
            let extended = self.out.len() - OPT.len() + 5;
            self.out[extended] = (rcode as u8) >> 4;
            counts[Section::Additional as usize] += 1;
        }
        self.out[2] =
            self.flags[0] | if authoritative { AA } else { 0 } | if self.truncated { TC } else { 0 };
        self.out[3] = self.flags[1] | if recursion_available { RA } else { 0 } | rcode as u8 & 0x0f;
        for (at, count) in [6, 8, 10].into_iter().zip(counts) {
            self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
    }
}

/// Our EDNS: the root, OPT, the size that we take, nothing else.
const OPT: [u8; 11] = [0, 0, kind::OPT as u8, (UDP_LIMIT >> 8) as u8, UDP_LIMIT as u8, 0, 0, 0, 0, 0, 0];

/// Whether the name at `at`, which we wrote ourselves, is this one, in this case.
fn same(out: &[u8], mut at: usize, mut name: &[u8]) -> bool {
    loop {
        let length = usize::from(out[at]);
        if length >= 0xc0 {
            at = (length & 0x3f) << 8 | usize::from(out[at + 1]);
            continue;
        }
        if out[at..=at + length] != name[..=length.min(name.len() - 1)] {
            return false;
        }
        if length == 0 {
            return true;
        }
        (at, name) = (at + length + 1, &name[length + 1..]);
    }
}

/// A question of our own for another server.
pub fn ask(query: &Query, id: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend(id.to_be_bytes());
    out.extend([if query.recursion { RD } else { 0 }, if query.unchecked { CD } else { 0 }]);
    out.extend([0, 1, 0, 0, 0, 0, 0, u8::from(query.edns.is_some())]);
    out.extend(query.name.wire());
    out.extend(query.kind.to_be_bytes());
    out.extend(query.class.to_be_bytes());
    if let Some(edns) = query.edns {
        out.extend(OPT);
        let flags = out.len() - OPT.len() + 7;
        out[flags] = if edns.dnssec_ok { 0x80 } else { 0 };
    }
    out
}

/// What another server answered, as the answer to this question: with its number and the case in which it was asked, cut to
/// the limit.
pub fn relay(out: &mut Vec<u8>, answer: &[u8], query: &Query, limit: usize) {
    out.clear();
    let end = HEADER + query.name.wire().len() + 4;
    let cut = answer.len() > limit;
    out.extend_from_slice(if cut { &answer[..end] } else { answer });
    out[..2].copy_from_slice(&query.id.to_be_bytes());
    out[HEADER..HEADER + query.name.wire().len()].copy_from_slice(query.name.wire());
    if cut {
        out[2] |= TC;
        out[6..12].fill(0);
        if query.edns.is_some() {
            out[11] = 1;
            out.extend(OPT);
        }
    }
}
