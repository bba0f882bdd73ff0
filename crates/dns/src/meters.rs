//! What is counted, and the page of it that Prometheus reads: CoreDNS's names where they mean the same here.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use portolan_metrics::{Page, Process, labels};

use crate::message::Rcode;
use crate::zone::Zone;

/// As the header has them: BADVERS is told by its upper bits, and counts as NOERROR.
const RCODES: [(Rcode, &str); 6] = [
    (Rcode::NoError, "NOERROR"),
    (Rcode::FormErr, "FORMERR"),
    (Rcode::ServFail, "SERVFAIL"),
    (Rcode::NxDomain, "NXDOMAIN"),
    (Rcode::NotImp, "NOTIMP"),
    (Rcode::Refused, "REFUSED"),
];

/// Counters.
#[derive(Debug, Default)]
pub struct Meters {
    /// Questions over UDP, and over TCP.
    requests: [AtomicU64; 2],
    responses: [AtomicU64; 16],
    ignored: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    kept: AtomicUsize,
    upstream_failures: AtomicU64,
    unanswered: AtomicU64,
}

impl Meters {
    pub(crate) fn asked(&self, tcp: bool) {
        self.requests[usize::from(tcp)].fetch_add(1, Relaxed);
    }

    /// Of the header that goes out: the code's lower four bits.
    pub(crate) fn answered(&self, rcode: u8) {
        self.responses[usize::from(rcode & 0x0f)].fetch_add(1, Relaxed);
    }

    pub(crate) fn ignored(&self) {
        self.ignored.fetch_add(1, Relaxed);
    }

    pub(crate) fn cache(&self, hit: bool) {
        if hit { &self.hits } else { &self.misses }.fetch_add(1, Relaxed);
    }

    pub(crate) fn kept(&self, entries: usize) {
        self.kept.store(entries, Relaxed);
    }

    pub(crate) fn upstream_failed(&self) {
        self.upstream_failures.fetch_add(1, Relaxed);
    }

    pub(crate) fn nobody_answered(&self) {
        self.unanswered.fetch_add(1, Relaxed);
    }

    /// The page.
    pub fn page(&self, zone: &Zone) -> String {
        let mut page = Page::default();
        let name = "coredns_dns_requests_total";
        page.head(name, "counter", "Questions, by protocol.");
        for (protocol, count) in ["udp", "tcp"].iter().zip(&self.requests) {
            page.value(name, &labels(&[("proto", protocol)]), count.load(Relaxed));
        }
        let name = "coredns_dns_responses_total";
        page.head(name, "counter", "Answers, by what became of the question.");
        for (code, text) in RCODES {
            page.value(name, &labels(&[("rcode", text)]), self.responses[code as usize].load(Relaxed));
        }
        let mut total = |name: &str, help: &str, count: &AtomicU64| {
            page.one(name, "counter", help, count.load(Relaxed));
        };
        let help = "Packets that are no questions and were not answered.";
        total("portolan_dns_ignored_packets_total", help, &self.ignored);
        total("coredns_cache_hits_total", "Answers of upstreams that were known already.", &self.hits);
        total("coredns_cache_misses_total", "Questions that upstreams were to be asked.", &self.misses);
        let help = "Times that an upstream gave no answer.";
        total("portolan_dns_upstream_failures_total", help, &self.upstream_failures);
        total("portolan_dns_unanswered_total", "Questions that no upstream answered.", &self.unanswered);
        let help = "Answers of upstreams that are kept.";
        page.one("coredns_cache_entries", "gauge", help, self.kept.load(Relaxed));
        let (services, endpoints) = zone.size();
        page.one("portolan_dns_services", "gauge", "Services that are known.", services);
        page.one("portolan_dns_endpoints", "gauge", "Ready endpoints that are known.", endpoints);
        let help = "Whether everything has been listed once.";
        page.one("portolan_dns_synced", "gauge", help, u8::from(zone.synced()));
        if let Some(process) = Process::now() {
            process.write(&mut page);
        }
        page.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::zone::Options;

    #[test]
    fn every_name_on_the_page_is_in_the_docs() {
        let docs = include_str!("../../../docs/reference/dns.md");
        let meters = Meters::default();
        meters.asked(true);
        let page = meters.page(&Zone::new(Options::new(Name::ROOT)));
        assert!(page.contains("coredns_dns_requests_total{proto=\"tcp\"} 1\n"), "{page}");
        for name in page.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()) {
            assert!(docs.contains(&format!("`{name}")), "docs/reference/dns.md doesn't name {name}");
        }
    }
}
