//! Objects, questions, and how an answer reads.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use portolan_dns::answer::{Said, answer, compose};
use portolan_dns::from_kube;
use portolan_dns::message::{
    Edns, Packet, Query, Records, Section, UDP_LIMIT, ask, head, kind, question, read,
};
use portolan_dns::name::Name;
use portolan_dns::zone::{Options, Zone};
use serde_json::{Value, json};

/// A zone of nothing, whose lists are complete.
pub fn empty() -> Zone {
    let mut zone = Zone::new(Options::new(Name::parse("cluster.local").unwrap()));
    for name in ["default", "kube-system"] {
        zone.set_namespace(name, true);
    }
    zone.set_synced();
    zone
}

/// Puts an object into a zone.
pub fn put(zone: &mut Zone, object: Value) {
    if object["kind"] == "Service" {
        let service: Service = serde_json::from_value(object).expect("a Service");
        let key = from_kube::key(&service.metadata).expect("a name");
        zone.set_service(&key, from_kube::service(&service));
    } else {
        let slice: EndpointSlice = serde_json::from_value(object).expect("an EndpointSlice");
        zone.set_slice(&from_kube::slice_key(&slice.metadata), from_kube::slice(&slice));
    }
}

/// A Service of `default`.
pub fn service(name: &str, spec: Value) -> Value {
    json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name, "namespace": "default"}, "spec": spec})
}

/// A slice of a Service of `default`.
pub fn slice(service: &str, name: &str, endpoints: Value, ports: Value) -> Value {
    let first = endpoints[0]["addresses"][0].as_str().unwrap_or("10.0.0.1");
    let family = if first.contains(':') { "IPv6" } else { "IPv4" };
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": family,
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": ports,
    })
}

/// The objects that most tests ask about.
pub fn usual() -> Vec<Value> {
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let targets = json!([{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    vec![
        service(
            "web",
            json!({"clusterIP": "10.96.0.80", "clusterIPs": ["10.96.0.80", "fd00:10:96::80"], "ports": ports}),
        ),
        service("four", json!({"clusterIP": "10.96.0.4", "ports": [{"port": 80}]})),
        service("db", json!({"clusterIP": "None", "ports": ports})),
        service("empty", json!({"clusterIP": "None", "ports": ports})),
        service("portless", json!({"clusterIP": "None"})),
        service("pending", json!({"ports": ports})),
        service("alias", json!({"type": "ExternalName", "externalName": "Foo.Example.com"})),
        service("inner", json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"})),
        service("twice", json!({"type": "ExternalName", "externalName": "inner.default.svc.cluster.local."})),
        service("narrow", json!({"type": "ExternalName", "externalName": "four.default.svc.cluster.local"})),
        service("round", json!({"type": "ExternalName", "externalName": "about.default.svc.cluster.local"})),
        service("about", json!({"type": "ExternalName", "externalName": "round.default.svc.cluster.local"})),
        service(
            "itself",
            json!({"type": "ExternalName", "externalName": "itself.default.svc.cluster.local"}),
        ),
        service("nowhere", json!({"type": "ExternalName", "externalName": "no.default.svc.cluster.local"})),
        service("digits", json!({"type": "ExternalName", "externalName": "192.0.2.7"})),
        slice(
            "db",
            "db-4",
            json!([
                {"addresses": ["10.244.1.5"], "hostname": "db-0"},
                {"addresses": ["10.244.1.6"], "conditions": {"ready": true}},
                {"addresses": ["10.244.1.7"], "hostname": "db-2", "conditions": {"ready": false}},
            ]),
            targets.clone(),
        ),
        slice("db", "db-6", json!([{"addresses": ["fd00:10:244::5"], "hostname": "db-0"}]), targets.clone()),
        slice("web", "web-4", json!([{"addresses": ["10.244.1.9"]}]), targets),
        slice(
            "empty",
            "empty-4",
            json!([{"addresses": ["10.244.1.8"], "conditions": {"ready": false}}]),
            json!([]),
        ),
        slice("portless", "portless-4", json!([{"addresses": ["10.244.1.11"]}]), json!([])),
    ]
}

/// A zone of these objects.
pub fn zone(objects: &[Value]) -> Zone {
    let mut zone = empty();
    for object in objects {
        put(&mut zone, object.clone());
    }
    zone
}

/// A type by its name.
pub fn type_of(name: &str) -> u16 {
    match name {
        "A" => kind::A,
        "NS" => kind::NS,
        "CNAME" => kind::CNAME,
        "SOA" => kind::SOA,
        "PTR" => kind::PTR,
        "MX" => 15,
        "TXT" => kind::TXT,
        "AAAA" => kind::AAAA,
        "SRV" => kind::SRV,
        "HTTPS" => 65,
        "AXFR" => kind::AXFR,
        "ANY" => 255,
        other => panic!("no type {other}"),
    }
}

/// A question by way of the wire.
pub fn query(name: &str, kind: &str) -> Query {
    let name = Name::parse(name).expect("a name");
    let query = Query {
        id: 0,
        recursion: true,
        unchecked: false,
        name,
        lower: name.lower(),
        kind: type_of(kind),
        class: 1,
        edns: Some(Edns { size: 1232, version: 0, dnssec_ok: false }),
    };
    match read(&ask(&query, 0)) {
        Packet::Query(read) => *read,
        other => panic!("{other:?}"),
    }
}

/// What is said to a question, on the wire.
pub fn wire(zone: &Zone, query: &Query) -> Vec<u8> {
    let (Said::Answer(answer) | Said::Elsewhere(answer)) = answer(zone, query);
    let mut out = Vec::new();
    compose(&mut out, query, &answer, None, UDP_LIMIT, false);
    out
}

/// What is said to a question, as text.
pub fn said(zone: &Zone, name: &str, kind: &str) -> String {
    text(&wire(zone, &query(name, kind)))
}

/// An answer as text: the code, then a line for each record, each section's sorted but for aliases.
pub fn text(message: &[u8]) -> String {
    const CODES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
    let head = head(message).expect("a header");
    let mut lines =
        vec![CODES[usize::from(head.rcode)].to_owned() + if head.truncated { " truncated" } else { "" }];
    let mut sections = [const { Vec::new() }; 3];
    for record in Records::of(message).expect("a question") {
        let record = record.expect("a record");
        if record.kind == kind::OPT {
            continue;
        }
        let mark = ["", "! ", "+ "][record.section as usize];
        let data = data(message, record.kind, record.data.clone());
        sections[record.section as usize].push(format!("{mark}{} {} {data}", record.owner, record.ttl));
    }
    assert!(question(message).is_some());
    let aliases = |line: &String| !line.contains(" CNAME ");
    for section in &mut sections {
        let from = section.iter().take_while(|line| !aliases(line)).count();
        section[from..].sort();
        lines.append(section);
    }
    lines.join("\n")
}

fn data(message: &[u8], kind: u16, range: std::ops::Range<usize>) -> String {
    let number = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    let name = |at: usize| Name::read(message, at).expect("a name");
    let (at, data) = (range.start, &message[range]);
    match kind {
        kind::A => format!("A {}", std::net::Ipv4Addr::from(<[u8; 4]>::try_from(data).unwrap())),
        kind::AAAA => format!("AAAA {}", std::net::Ipv6Addr::from(<[u8; 16]>::try_from(data).unwrap())),
        kind::NS => format!("NS {}", name(at).0),
        kind::CNAME => format!("CNAME {}", name(at).0),
        kind::PTR => format!("PTR {}", name(at).0),
        kind::SRV => format!("SRV {} {} {} {}", number(at), number(at + 2), number(at + 4), name(at + 6).0),
        kind::TXT => format!("TXT {}", String::from_utf8_lossy(&data[1..])),
        kind::SOA => {
            let (server, at) = name(at);
            let (mailbox, at) = name(at);
            let minimum = u32::from(number(at + 16)) << 16 | u32::from(number(at + 18));
            format!("SOA {server} {mailbox} {minimum}")
        }
        other => format!("TYPE{other}"),
    }
}

/// The sections that an answer has.
pub fn sections(message: &[u8]) -> Vec<Section> {
    Records::of(message).expect("a question").map(|record| record.expect("a record").section).collect()
}
