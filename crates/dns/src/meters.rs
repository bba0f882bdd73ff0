//! What is counted, and the page of it that Prometheus reads: CoreDNS's names where they mean the same here.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crate::message::Rcode;
use crate::zone::Zone;

const RCODES: [(Rcode, &str); 7] = [
    (Rcode::NoError, "NOERROR"),
    (Rcode::FormErr, "FORMERR"),
    (Rcode::ServFail, "SERVFAIL"),
    (Rcode::NxDomain, "NXDOMAIN"),
    (Rcode::NotImp, "NOTIMP"),
    (Rcode::Refused, "REFUSED"),
    (Rcode::BadVers, "BADVERS"),
];

/// The content type of the page.
pub const CONTENT: &str = "text/plain; version=0.0.4; charset=utf-8";

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
        let mut page = String::new();
        let mut head = |name: &str, kind: &str, help: &str, values: &[(String, u64)]| {
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in values {
                let _ = match labels.is_empty() {
                    true => writeln!(page, "{name} {value}"),
                    false => writeln!(page, "{name}{{{labels}}} {value}"),
                };
            }
        };
        let one = |value: u64| [(String::new(), value)];
        let requests = ["udp", "tcp"].iter().zip(&self.requests);
        let requests: Vec<_> = requests.map(|(p, n)| (format!("proto=\"{p}\""), n.load(Relaxed))).collect();
        head("coredns_dns_requests_total", "counter", "Questions, by protocol.", &requests);
        let responses = RCODES.iter().filter(|(code, _)| (*code as usize) < 16);
        let responses: Vec<_> = responses
            .map(|(code, name)| (format!("rcode=\"{name}\""), self.responses[*code as usize].load(Relaxed)))
            .collect();
        head(
            "coredns_dns_responses_total",
            "counter",
            "Answers, by what became of the question.",
            &responses,
        );
        let help = "Packets that are no questions and were not answered.";
        head("portolan_dns_ignored_packets_total", "counter", help, &one(self.ignored.load(Relaxed)));
        let help = "Answers that were known from upstreams already.";
        head("coredns_cache_hits_total", "counter", help, &one(self.hits.load(Relaxed)));
        let help = "Questions that upstreams were to be asked for.";
        head("coredns_cache_misses_total", "counter", help, &one(self.misses.load(Relaxed)));
        let help = "Answers of upstreams that are kept.";
        head("coredns_cache_entries", "gauge", help, &one(self.kept.load(Relaxed) as u64));
        let help = "Times that an upstream gave no answer.";
        head(
            "portolan_dns_upstream_failures_total",
            "counter",
            help,
            &one(self.upstream_failures.load(Relaxed)),
        );
        let help = "Questions that no upstream answered.";
        head("portolan_dns_unanswered_total", "counter", help, &one(self.unanswered.load(Relaxed)));
        let (services, endpoints) = zone.size();
        head("portolan_dns_services", "gauge", "Services that are known.", &one(services as u64));
        head("portolan_dns_endpoints", "gauge", "Ready endpoints that are known.", &one(endpoints as u64));
        let help = "Whether everything has been listed once.";
        head("portolan_dns_synced", "gauge", help, &one(u64::from(zone.synced())));
        page
    }
}
