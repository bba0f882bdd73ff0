//! What upstreams said, for as long as they said it holds; bounded. The clock is the caller's.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::message::{Query, Rcode, Records, Section, head, kind};
use crate::name::Name;

/// The longest that a "yes" and a "no" are kept, whatever was said of them.
const AT_MOST: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(1800));

/// Answers of upstreams.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: HashMap<Box<[u8]>, Entry>,
    capacity: usize,
}

#[derive(Debug)]
struct Entry {
    message: Vec<u8>,
    /// Where the message says for how long a record holds.
    ttls: Vec<usize>,
    since: Instant,
    holds: Duration,
}

impl Cache {
    /// Nothing yet, and never more than so many answers.
    pub fn new(capacity: usize) -> Cache {
        Cache { entries: HashMap::new(), capacity }
    }

    /// What was answered to this question, with the times that are left, if that still holds.
    pub fn get(&self, query: &Query, now: Instant) -> Option<Vec<u8>> {
        let entry = self.entries.get(&*key(query))?;
        let age = now.saturating_duration_since(entry.since);
        if age >= entry.holds {
            return None;
        }
        let mut message = entry.message.clone();
        for &at in &entry.ttls {
            if let Some(ttl) = message.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
                let left = u32::from_be_bytes(*ttl).saturating_sub(age.as_secs() as u32);
                *ttl = left.to_be_bytes();
            }
        }
        Some(message)
    }

    /// Keeps an answer, if it says for how long it holds.
    pub fn put(&mut self, query: &Query, message: &[u8], now: Instant) {
        let Some((holds, ttls)) = lifetime(message) else { return };
        if self.entries.len() >= self.capacity {
            self.entries.retain(|_, entry| now.saturating_duration_since(entry.since) < entry.holds);
        }
        if self.entries.len() >= self.capacity {
            // Which ones go is as good as drawn: the order of a hash table is nobody's to choose.
            let (mut spared, limit) = (0, self.capacity - self.capacity / 8 - 1);
            self.entries.retain(|_, _| {
                spared += 1;
                spared <= limit
            });
        }
        self.entries.insert(key(query), Entry { message: message.to_vec(), ttls, since: now, holds });
    }

    /// How many answers are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

/// What makes two questions the same one: all but their numbers, and the case of the name.
fn key(query: &Query) -> Box<[u8]> {
    let mut key = query.lower.wire().to_vec();
    key.extend(query.kind.to_be_bytes());
    key.extend(query.class.to_be_bytes());
    let edns = query.edns.map_or(0, |edns| if edns.dnssec_ok { 2 } else { 1 });
    key.push(edns << 2 | u8::from(query.unchecked) << 1 | u8::from(query.recursion));
    key.into()
}

/// For how long an answer holds, and where it says so. A "no" holds as long as the zone's start says (RFC 2308 §5).
fn lifetime(message: &[u8]) -> Option<(Duration, Vec<usize>)> {
    let head = head(message)?;
    let known = head.rcode == Rcode::NoError as u8 || head.rcode == Rcode::NxDomain as u8;
    if head.truncated || !known {
        return None;
    }
    let (mut least, mut ttls, mut answered, mut denied) = (u32::MAX, Vec::new(), false, None);
    for record in Records::of(message)? {
        let record = record?;
        if record.kind == kind::OPT {
            continue;
        }
        least = least.min(record.ttl);
        ttls.push(record.ttl_at);
        answered |= record.section == Section::Answer && record.kind != kind::CNAME;
        if record.section == Section::Authority && record.kind == kind::SOA {
            let (_, at) = Name::read(message, record.data.start)?;
            let (_, at) = Name::read(message, at)?;
            let minimum = message.get(at + 16..at + 20)?.try_into().ok()?;
            denied = Some(u32::from_be_bytes(minimum));
        }
    }
    let holds = match (head.rcode == Rcode::NoError as u8 && answered, denied) {
        (true, _) => Duration::from_secs(least.into()).min(AT_MOST.0),
        (false, Some(minimum)) => Duration::from_secs(least.min(minimum).into()).min(AT_MOST.1),
        (false, None) => return None,
    };
    (!holds.is_zero()).then_some((holds, ttls))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::message::{Composer, Data, Packet, UDP_LIMIT, ask, read};

    fn query(name: &str) -> Query {
        let mut query = Query {
            id: 1,
            recursion: true,
            unchecked: false,
            name: Name::parse(name).unwrap(),
            lower: Name::parse(name).unwrap().lower(),
            kind: kind::A,
            class: 1,
            edns: None,
        };
        // By way of the wire, as all questions come.
        if let Packet::Query(read) = read(&ask(&query, 7)) {
            query = *read;
        }
        query
    }

    fn yes(query: &Query, ttl: u32) -> Vec<u8> {
        let mut out = Vec::new();
        let mut composer = Composer::answer(&mut out, query, UDP_LIMIT);
        composer.record(Section::Answer, &query.name, ttl, &Data::A(Ipv4Addr::LOCALHOST));
        composer.finish(Rcode::NoError, false, true);
        out
    }

    fn ttl(message: &[u8]) -> u32 {
        Records::of(message).unwrap().next().unwrap().unwrap().ttl
    }

    #[test]
    fn an_answer_is_kept_for_as_long_as_it_holds_and_says_what_is_left() {
        let (mut cache, now) = (Cache::new(10), Instant::now());
        let asked = query("Example.org");
        cache.put(&asked, &yes(&asked, 30), now);
        let later = cache.get(&query("example.ORG"), now + Duration::from_secs(10)).expect("kept");
        assert_eq!(ttl(&later), 20);
        assert_eq!(cache.get(&asked, now + Duration::from_secs(30)), None);
        let other = Query { kind: kind::AAAA, ..asked };
        assert_eq!(cache.get(&other, now), None);
    }

    #[test]
    fn a_no_holds_as_long_as_the_zone_says_and_a_failure_not_at_all() {
        let (mut cache, now) = (Cache::new(10), Instant::now());
        let asked = query("no.example.org");
        let mut out = Vec::new();
        let mut composer = Composer::answer(&mut out, &asked, UDP_LIMIT);
        let soa = Data::Soa(asked.name, asked.name, 1, 15);
        composer.record(Section::Authority, &asked.name, 600, &soa);
        composer.finish(Rcode::NxDomain, false, true);
        cache.put(&asked, &out, now);
        assert!(cache.get(&asked, now + Duration::from_secs(14)).is_some());
        assert!(cache.get(&asked, now + Duration::from_secs(15)).is_none());

        let failed = query("failed.example.org");
        Composer::answer(&mut out, &failed, UDP_LIMIT).finish(Rcode::ServFail, false, true);
        cache.put(&failed, &out, now);
        assert_eq!(cache.get(&failed, now), None);
    }

    #[test]
    fn it_never_grows_past_its_bound() {
        let (mut cache, now) = (Cache::new(64), Instant::now());
        for number in 0..1000 {
            let asked = query(&format!("n{number}.example.org"));
            cache.put(&asked, &yes(&asked, 30), now);
            assert!(cache.len() <= 64);
            assert!(cache.get(&asked, now).is_some(), "the newest is there");
        }
    }
}
