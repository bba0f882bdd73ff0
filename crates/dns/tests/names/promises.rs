//! Each row of the specification (kubernetes/dns, docs/specification.md), and what clients count on besides.

use portolan_dns::message::{Packet, Query, UDP_LIMIT, ask, head, read};
use portolan_dns::name::Name;
use portolan_dns::zone::{Options, PodNames, Zone};
use serde_json::json;

use crate::fixture::*;

const SOA: &str = "\n! cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 5";

/// Asks each question, in full where no `.` ends it, and compares.
fn table(zone: &Zone, rows: &[(&str, &str, &str)]) {
    for (name, kind, wanted) in rows {
        let full = match name.strip_suffix('.') {
            Some(full) => full.to_owned(),
            None => format!("{name}.cluster.local"),
        };
        let wanted = match *wanted {
            "NXDOMAIN" | "NOERROR" => format!("{wanted}{SOA}"),
            wanted => wanted.trim().lines().map(str::trim).collect::<Vec<_>>().join("\n"),
        };
        assert_eq!(said(zone, &full, kind), wanted, "{full} {kind}");
    }
}

#[test]
fn a_service_with_addresses_has_records_of_each_family() {
    table(
        &zone(&usual()),
        &[
            ("web.default.svc", "A", "NOERROR\nweb.default.svc.cluster.local. 5 A 10.96.0.80"),
            ("web.default.svc", "AAAA", "NOERROR\nweb.default.svc.cluster.local. 5 AAAA fd00:10:96::80"),
            ("four.default.svc", "AAAA", "NOERROR"),
            ("web.default.svc", "CNAME", "NOERROR"),
            ("web.default.svc", "TXT", "NOERROR"),
            ("web.default.svc", "HTTPS", "NOERROR"),
            ("web.default.svc", "ANY", "NOERROR"),
            ("pending.default.svc", "A", "NXDOMAIN"),
            ("no.default.svc", "A", "NXDOMAIN"),
            ("no.default.svc", "TXT", "NXDOMAIN"),
            ("web.other.svc", "A", "NXDOMAIN"),
        ],
    );
}

#[test]
fn a_named_port_has_a_record_that_says_where() {
    table(
        &zone(&usual()),
        &[
            (
                "_http._tcp.web.default.svc",
                "SRV",
                "NOERROR
                 _http._tcp.web.default.svc.cluster.local. 5 SRV 0 50 80 web.default.svc.cluster.local.
                 + web.default.svc.cluster.local. 5 A 10.96.0.80
                 + web.default.svc.cluster.local. 5 AAAA fd00:10:96::80",
            ),
            (
                "_http._tcp.db.default.svc",
                "SRV",
                "NOERROR
                 _http._tcp.db.default.svc.cluster.local. 5 SRV 0 33 8080 10-244-1-6.db.default.svc.cluster.local.
                 _http._tcp.db.default.svc.cluster.local. 5 SRV 0 33 8080 db-0.db.default.svc.cluster.local.
                 + 10-244-1-6.db.default.svc.cluster.local. 5 A 10.244.1.6
                 + db-0.db.default.svc.cluster.local. 5 A 10.244.1.5
                 + db-0.db.default.svc.cluster.local. 5 AAAA fd00:10:244::5",
            ),
            (
                "web.default.svc",
                "SRV",
                "NOERROR
                 web.default.svc.cluster.local. 5 SRV 0 25 53 web.default.svc.cluster.local.
                 web.default.svc.cluster.local. 5 SRV 0 25 80 web.default.svc.cluster.local.
                 + web.default.svc.cluster.local. 5 A 10.96.0.80
                 + web.default.svc.cluster.local. 5 AAAA fd00:10:96::80",
            ),
            ("_dns._udp.web.default.svc", "A", "NOERROR\n_dns._udp.web.default.svc.cluster.local. 5 A 10.96.0.80"),
            ("_dns._tcp.web.default.svc", "SRV", "NXDOMAIN"),
            ("_ftp._tcp.db.default.svc", "SRV", "NXDOMAIN"),
            ("_http._tcp.alias.default.svc", "SRV", "NXDOMAIN"),
            ("portless.default.svc", "SRV", "NOERROR"),
            ("a._http._tcp.web.default.svc", "SRV", "NXDOMAIN"),
        ],
    );
}

#[test]
fn a_headless_service_stands_for_its_ready_endpoints() {
    table(
        &zone(&usual()),
        &[
            (
                "db.default.svc",
                "A",
                "NOERROR\ndb.default.svc.cluster.local. 5 A 10.244.1.5\ndb.default.svc.cluster.local. 5 A 10.244.1.6",
            ),
            ("db.default.svc", "AAAA", "NOERROR\ndb.default.svc.cluster.local. 5 AAAA fd00:10:244::5"),
            ("db-0.db.default.svc", "A", "NOERROR\ndb-0.db.default.svc.cluster.local. 5 A 10.244.1.5"),
            (
                "10-244-1-6.db.default.svc",
                "A",
                "NOERROR\n10-244-1-6.db.default.svc.cluster.local. 5 A 10.244.1.6",
            ),
            // It has a name already, and one that isn't ready has none.
            ("10-244-1-5.db.default.svc", "A", "NXDOMAIN"),
            ("db-2.db.default.svc", "A", "NXDOMAIN"),
            ("empty.default.svc", "A", "NXDOMAIN"),
            ("portless.default.svc", "A", "NOERROR\nportless.default.svc.cluster.local. 5 A 10.244.1.11"),
            // Endpoints of a Service with addresses have names, too.
            (
                "10-244-1-9.web.default.svc",
                "A",
                "NOERROR\n10-244-1-9.web.default.svc.cluster.local. 5 A 10.244.1.9",
            ),
        ],
    );
}

#[test]
fn an_address_has_the_name_of_its_service_or_of_its_endpoints() {
    let arpa = |name: &str| format!("NXDOMAIN\n! {name}. 5 SOA ns.dns.{name}. hostmaster.{name}. 5");
    table(
        &zone(&usual()),
        &[
            (
                "80.0.96.10.in-addr.arpa.",
                "PTR",
                "NOERROR\n80.0.96.10.in-addr.arpa. 5 PTR web.default.svc.cluster.local.",
            ),
            (
                "5.1.244.10.in-addr.arpa.",
                "PTR",
                "NOERROR\n5.1.244.10.in-addr.arpa. 5 PTR db-0.db.default.svc.cluster.local.",
            ),
            (
                "6.1.244.10.in-addr.arpa.",
                "PTR",
                "NOERROR\n6.1.244.10.in-addr.arpa. 5 PTR 10-244-1-6.db.default.svc.cluster.local.",
            ),
            (
                "0.8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.",
                "PTR",
                "NOERROR\n0.8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa. 5 PTR web.default.svc.cluster.local.",
            ),
            ("7.1.244.10.in-addr.arpa.", "PTR", &arpa("in-addr.arpa")),
            ("244.10.in-addr.arpa.", "PTR", &arpa("in-addr.arpa")),
            ("080.0.96.10.in-addr.arpa.", "PTR", &arpa("in-addr.arpa")),
            ("1.80.0.96.10.in-addr.arpa.", "PTR", &arpa("in-addr.arpa")),
            ("d.f.ip6.arpa.", "PTR", &arpa("ip6.arpa")),
        ],
    );
}

#[test]
fn an_alias_is_followed_within_the_cluster() {
    table(
        &zone(&usual()),
        &[
            (
                "alias.default.svc",
                "CNAME",
                "NOERROR\nalias.default.svc.cluster.local. 5 CNAME foo.example.com.",
            ),
            // Nobody to ask for what it stands for.
            ("alias.default.svc", "A", "NOERROR\nalias.default.svc.cluster.local. 5 CNAME foo.example.com."),
            ("alias.default.svc", "SRV", "NOERROR"),
            ("alias.default.svc", "TXT", "NOERROR"),
            (
                "twice.default.svc",
                "A",
                "NOERROR
                 twice.default.svc.cluster.local. 5 CNAME inner.default.svc.cluster.local.
                 inner.default.svc.cluster.local. 5 CNAME web.default.svc.cluster.local.
                 web.default.svc.cluster.local. 5 A 10.96.0.80",
            ),
            ("narrow.default.svc", "AAAA", "NOERROR"),
            ("round.default.svc", "A", "NOERROR"),
            ("itself.default.svc", "A", "NOERROR"),
            ("nowhere.default.svc", "A", "NOERROR"),
            ("digits.default.svc", "A", "NXDOMAIN"),
            ("x.alias.default.svc", "A", "NXDOMAIN"),
        ],
    );
}

#[test]
fn a_pod_has_a_name_made_of_its_address() {
    let mut objects = zone(&usual());
    table(
        &objects,
        &[
            ("10-244-1-5.default.pod", "A", "NOERROR\n10-244-1-5.default.pod.cluster.local. 5 A 10.244.1.5"),
            (
                "fd00-10-244--5.default.pod",
                "AAAA",
                "NOERROR\nfd00-10-244--5.default.pod.cluster.local. 5 AAAA fd00:10:244::5",
            ),
            ("10-244-1-5.default.pod", "AAAA", "NOERROR"),
            ("10-244-1-5.other.pod", "A", "NXDOMAIN"),
            ("web.default.pod", "A", "NXDOMAIN"),
            ("x.10-244-1-5.default.pod", "A", "NXDOMAIN"),
        ],
    );
    let options = Options { pods: PodNames::Disabled, ..Options::new(Name::parse("cluster.local").unwrap()) };
    objects = Zone::new(options);
    objects.set_namespace("default", true);
    objects.set_synced();
    table(&objects, &[("10-244-1-5.default.pod", "A", "NXDOMAIN"), ("default.pod", "A", "NOERROR")]);
}

#[test]
fn names_above_others_exist_and_the_zone_says_who_it_is() {
    let mut all = usual();
    table(
        &zone(&all),
        &[
            ("cluster.local.", "A", "NOERROR"),
            (
                "cluster.local.",
                "SOA",
                "NOERROR\ncluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 5",
            ),
            ("cluster.local.", "AXFR", "REFUSED"),
            ("svc", "A", "NOERROR"),
            ("pod", "TXT", "NOERROR"),
            ("default.svc", "A", "NOERROR"),
            ("other.svc", "A", "NXDOMAIN"),
            ("other", "A", "NXDOMAIN"),
            ("dns-version", "TXT", "NOERROR\ndns-version.cluster.local. 28800 TXT 1.1.0"),
            ("dns-version", "A", "NOERROR"),
            ("local.", "A", "REFUSED"),
            ("www.example.com.", "A", "REFUSED"),
        ],
    );
    all.push(json!({"kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 53}]}}));
    table(
        &zone(&all),
        &[
            (
                "cluster.local.",
                "NS",
                "NOERROR
                 cluster.local. 5 NS kube-dns.kube-system.svc.cluster.local.
                 + kube-dns.kube-system.svc.cluster.local. 5 A 10.96.0.10",
            ),
            ("ns.dns", "A", "NOERROR\nns.dns.cluster.local. 5 A 10.96.0.10"),
        ],
    );
}

#[test]
fn before_the_first_sync_it_is_servfail_and_never_nxdomain() {
    let mut zone = Zone::new(Options::new(Name::parse("cluster.local").unwrap()));
    zone.set_namespace("default", true);
    put(&mut zone, usual()[0].clone());
    for name in ["web.default.svc", "no.default.svc", "x", "default.svc"] {
        assert_eq!(said(&zone, &format!("{name}.cluster.local"), "A"), "SERVFAIL");
    }
    assert_eq!(said(&zone, "80.0.96.10.in-addr.arpa", "PTR"), "SERVFAIL");
    assert_eq!(said(&zone, "www.example.com", "A"), "REFUSED", "others' names don't wait for the cluster's");
    zone.set_synced();
    assert!(said(&zone, "web.default.svc.cluster.local", "A").ends_with("A 10.96.0.80"));
}

#[test]
fn the_case_of_a_name_does_not_count_and_is_kept() {
    let zone = zone(&usual());
    let text = said(&zone, "WeB.deFAULT.Svc.Cluster.LOCAL", "A");
    assert_eq!(text, "NOERROR\nWeB.deFAULT.Svc.Cluster.LOCAL. 5 A 10.96.0.80");
    let text = said(&zone, "No.default.svc.Cluster.LOCAL", "A");
    assert!(text.starts_with("NXDOMAIN\n! Cluster.LOCAL. 5 SOA ns.dns.Cluster.LOCAL."), "{text}");
}

#[test]
fn questions_take_turns_among_the_addresses() {
    let zone = zone(&usual());
    let first = |id| {
        let out = wire(&zone, &Query { id, ..query("db.default.svc.cluster.local", "A") });
        let record = portolan_dns::message::Records::of(&out).unwrap().next().unwrap().unwrap();
        out[record.data].to_vec()
    };
    assert_ne!(first(0), first(1));
    assert_eq!(first(0), first(2));
}

#[test]
fn an_answer_that_is_too_long_says_so_and_holds_what_fits() {
    let endpoints: Vec<_> = (0..200).map(|n| json!({"addresses": [format!("10.244.2.{n}")]})).collect();
    let mut zone = zone(&usual());
    let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    put(&mut zone, slice("db", "db-many", endpoints.into(), ports));
    let edns = query("db.default.svc.cluster.local", "A");
    let out = wire(&zone, &edns);
    assert!(
        head(&out).unwrap().truncated && out.len() <= UDP_LIMIT && out.len() > UDP_LIMIT - 16,
        "{}",
        out.len()
    );
    assert_eq!(sections(&out).len(), (UDP_LIMIT - 12 - 34 - 11) / 16 + 1);
    // What is additional is left out without a word, where only that is too much.
    let srv = query("db-0.db.default.svc.cluster.local", "SRV");
    assert!(!head(&wire(&zone, &srv)).unwrap().truncated);
}

#[test]
fn a_later_edns_and_another_class_are_refused() {
    let zone = zone(&usual());
    let mut packet = ask(&query("web.default.svc.cluster.local", "A"), 7);
    let at = packet.len() - 5;
    packet[at] = 1; // the version
    let Packet::Query(later) = read(&packet) else { panic!("a question") };
    let out = wire(&zone, &later);
    assert_eq!((head(&out).unwrap().rcode, out[out.len() - 6]), (0, 1), "BADVERS is 16");
    let chaos = Query { class: 3, ..query("web.default.svc.cluster.local", "A") };
    assert_eq!(head(&wire(&zone, &chaos)).unwrap().rcode, 5);
}
