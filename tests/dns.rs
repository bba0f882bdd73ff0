//! The cluster's names as programs see them: `dig` in pods, on nodes and against the real CoreDNS beside ours.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};

use crate::harness::{Lab, block_on, text, until};

/// A Service of each kind, endpoints that nobody stands behind, and a pod with the machine's programs.
const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { ipFamilyPolicy: RequireDualStack, clusterIPs: [ 10.96.0.80, "fd00:10:96::80" ], clusterIP: 10.96.0.80,
        ports: [ { name: http, port: 80 }, { name: dns, port: 53, protocol: UDP } ] }
---
apiVersion: v1
kind: Service
metadata: { name: db }
spec: { clusterIP: None, ports: [ { name: http, port: 80 } ] }
---
apiVersion: v1
kind: Service
metadata: { name: portless }
spec: { clusterIP: None }
---
apiVersion: v1
kind: Service
metadata: { name: empty }
spec: { clusterIP: None, ports: [ { name: http, port: 80 } ] }
---
apiVersion: v1
kind: Service
metadata: { name: alias }
spec: { type: ExternalName, externalName: foo.example.com }
---
apiVersion: v1
kind: Service
metadata: { name: inner }
spec: { type: ExternalName, externalName: web.default.svc.cluster.local }
---
apiVersion: v1
kind: Service
metadata: { name: round }
spec: { type: ExternalName, externalName: round.default.svc.cluster.local }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: db-4, labels: { kubernetes.io/service-name: db } }
addressType: IPv4
ports: [ { name: http, port: 8080 } ]
endpoints:
- { addresses: [ 192.0.2.5 ], hostname: db-0 }
- { addresses: [ 192.0.2.6 ] }
- { addresses: [ 192.0.2.7 ], hostname: db-2, conditions: { ready: false } }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: db-6, labels: { kubernetes.io/service-name: db } }
addressType: IPv6
ports: [ { name: http, port: 8080 } ]
endpoints: [ { addresses: [ "2001:db8::5" ], hostname: db-0 }, { addresses: [ "2001:db8:1::" ] } ]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: portless-4, labels: { kubernetes.io/service-name: portless } }
addressType: IPv4
ports: []
endpoints: [ { addresses: [ 192.0.2.11 ] } ]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-4, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
ports: [ { name: http, port: 8080 }, { name: dns, port: 5353, protocol: UDP } ]
endpoints: [ { addresses: [ 192.0.2.9 ] } ]
"#;

const MANY: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: many }
spec: { clusterIP: None }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: many-4, labels: { kubernetes.io/service-name: many } }
addressType: IPv4
ports: []
endpoints:
"#;

/// A lab with these objects; `None` where there is none, or no `dig` to ask with.
fn lab(promise: &str, name: &str, objects: &str) -> Option<(Lab, tempfile::TempDir)> {
    if std::process::Command::new("dig").arg("-v").stderr(Stdio::null()).output().is_err() {
        portolan_sys::trial::skipped(promise, "no dig on this machine");
        return None;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("objects.yaml");
    std::fs::write(&file, objects).expect("written");
    let more = ["--nodes", "2", "--allow-host-image", "-f", file.to_str().expect("a path")];
    Some((Lab::up(promise, name, &more)?, dir))
}

/// The first address of a machine of the lab.
fn address(lab: &Lab, machine: &str) -> String {
    let state = lab.verb("status", &["-o", "json"]);
    let state: serde_json::Value = serde_json::from_slice(&state.stdout).expect("a lab's state");
    let topology = &state["topology"];
    let nodes = topology["nodes"].as_array().expect("nodes");
    let found = nodes.iter().chain([&topology["server"]]).find(|m| m["name"] == machine).expect("a machine");
    found["addresses"][0].as_str().expect("an address").to_owned()
}

/// What `dig` prints at a place.
fn dig(lab: &Lab, place: &str, arguments: &str) -> String {
    let words: Vec<&str> = ["dig", "+tries=2", "+time=5"].into_iter().chain(arguments.split(' ')).collect();
    String::from_utf8_lossy(&lab.run_at(place, &words).stdout).into_owned()
}

/// Waits until `dig` prints these lines, in whatever order.
fn digs(lab: &Lab, place: &str, arguments: &str, wanted: &[&str]) {
    let wanted: BTreeSet<String> = wanted.iter().map(ToString::to_string).collect();
    block_on(until(&format!("dig {arguments} at {place}"), async || {
        let said = dig(lab, place, arguments);
        let lines: BTreeSet<String> = said.lines().map(str::to_owned).collect();
        if lines == wanted { Ok(()) } else { Err(said) }
    }));
}

#[test]
fn names_are_answered_at_the_services_address_from_every_node() {
    let many: String = (0..120).map(|n| format!("- {{ addresses: [ 192.0.2.{n} ] }}\n")).collect();
    let objects = format!("{OBJECTS}---{MANY}{many}");
    let Some((lab, _dir)) = lab("programs look names up", "dns", &objects) else { return };
    let other = address(&lab, "node-2");
    for (place, server) in [("node-1", "10.96.0.10"), ("node-2", "fd00:10:96::a"), ("node-1", &other)] {
        let ask =
            |rest: &str, wanted: &[&str]| digs(&lab, place, &format!("@{server} +short {rest}"), wanted);
        ask("web.default.svc.cluster.local A", &["10.96.0.80"]);
        ask("web.default.svc.cluster.local AAAA", &["fd00:10:96::80"]);
        ask("+tcp db.default.svc.cluster.local A", &["192.0.2.5", "192.0.2.6"]);
        ask("db-0.db.default.svc.cluster.local AAAA", &["2001:db8::5"]);
        ask("_http._tcp.web.default.svc.cluster.local SRV", &["0 50 80 web.default.svc.cluster.local."]);
        ask("-x 10.96.0.80", &["web.default.svc.cluster.local."]);
        ask("-x fd00:10:96::80", &["web.default.svc.cluster.local."]);
        ask("alias.default.svc.cluster.local CNAME", &["foo.example.com."]);
        ask("dns-version.cluster.local TXT", &["\"1.1.0\""]);
        ask("kubernetes.default.svc.cluster.local A", &["10.96.0.1"]);
    }
    // More than a datagram holds: said so, and whole over TCP.
    let cut = dig(&lab, "node-1", "@10.96.0.10 +ignore +noedns many.default.svc.cluster.local A");
    assert!(cut.contains(";; flags: qr aa tc rd"), "{cut}");
    let whole = dig(&lab, "node-1", "@10.96.0.10 +noedns many.default.svc.cluster.local A");
    assert!(whole.contains("ANSWER: 120,"), "{whole}");
    let cut = dig(&lab, "node-1", "@10.96.0.10 +ignore +bufsize=4096 many.default.svc.cluster.local A");
    assert!(cut.contains(" tc ") && cut.contains("udp: 1232"), "{cut}");
    let none = dig(&lab, "node-1", "@10.96.0.10 no.default.svc.cluster.local A");
    assert!(none.contains("status: NXDOMAIN") && none.contains("hostmaster.cluster.local."), "{none}");
    let others = dig(&lab, "node-1", "@10.96.0.10 www.example.com A");
    assert!(others.contains("status: REFUSED"), "{others}");
    forgets_nothing(&lab);
}

/// While the API is away a name server goes on; one that starts then knows nothing and says so, until it is back.
fn forgets_nothing(lab: &Lab) {
    let (server, own) = (pid(lab, "portolan server "), address(lab, "node-1"));
    let at = format!("@{own}");
    run(lab, &format!("kill -STOP {server}"));
    digs(lab, "node-1", &format!("{at} +short web.default.svc.cluster.local A"), &["10.96.0.80"]);
    let before = pid(lab, &format!("portolan dns .*{own}:53"));
    run(lab, &format!("kill -KILL {before}"));
    block_on(until("the name server is started again", async || {
        let said = dig(lab, "node-1", &format!("{at} no.default.svc.cluster.local A"));
        if said.contains("status: SERVFAIL") { Ok(()) } else { Err(said) }
    }));
    let ready = lab.run_at(
        "node-1",
        &["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://10.80.0.11:9153/ready"],
    );
    assert_eq!(String::from_utf8_lossy(&ready.stdout), "503", "{}", text(&ready));
    run(lab, &format!("kill -CONT {server}"));
    digs(lab, "node-1", &format!("{at} +short web.default.svc.cluster.local A"), &["10.96.0.80"]);
    let said = dig(lab, "node-1", &format!("{at} no.default.svc.cluster.local A"));
    assert!(said.contains("status: NXDOMAIN"), "{said}");
    let page = lab.run_at("node-1", &["curl", "-s", "http://10.96.0.10:9153/metrics"]);
    let page = String::from_utf8_lossy(&page.stdout);
    assert!(page.contains("coredns_dns_requests_total{proto=\"udp\"} "), "{page}");
}

/// The id, inside of the lab, of the process whose command line this matches.
fn pid(lab: &Lab, pattern: &str) -> String {
    let output = lab.run_at("server", &["pgrep", "-o", "-f", &format!("^{pattern}")]);
    assert!(output.status.success(), "{pattern}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn run(lab: &Lab, command: &str) {
    let output = lab.run_at("server", &["sh", "-c", command]);
    assert!(output.status.success(), "{command}: {}", text(&output));
}

/// The real CoreDNS in the lab, on another port of the server's machine.
struct CoreDns(Child);

impl Drop for CoreDns {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is asked of both. Where CoreDNS says something else on purpose of ours, docs/reference/dns.md says why, and it is
/// not asked here.
fn questions() -> Vec<String> {
    let mut names: Vec<String> = [
        "",
        "svc",
        "pod",
        "default.svc",
        "kube-system.svc",
        "other.svc",
        "default.pod",
        "other",
        "x.other.svc",
        "web.default.svc",
        "WEB.Default.SVC",
        "db.default.svc",
        "portless.default.svc",
        "empty.default.svc",
        "alias.default.svc",
        "inner.default.svc",
        "round.default.svc",
        "no.default.svc",
        "web.other.svc",
        "_http._tcp.web.default.svc",
        "_dns._udp.web.default.svc",
        "_dns._tcp.web.default.svc",
        "http.tcp.web.default.svc",
        "_http._tcp.db.default.svc",
        "_http._tcp.alias.default.svc",
        "_no._tcp.db.default.svc",
        "_http._tcp.portless.default.svc",
        "db-0.db.default.svc",
        "db-2.db.default.svc",
        "192-0-2-6.db.default.svc",
        "192-0-2-5.db.default.svc",
        "2001-db8-1--0.db.default.svc",
        "192-0-2-9.web.default.svc",
        "x.alias.default.svc",
        "a.b.c.db.default.svc",
        "kubernetes.default.svc",
        "kube-dns.kube-system.svc",
        "_dns._udp.kube-dns.kube-system.svc",
    ]
    .iter()
    .map(|name| format!("{name}.cluster.local").trim_start_matches('.').to_owned())
    .collect();
    let kinds = ["A", "AAAA", "SRV", "CNAME", "MX", "HTTPS"];
    let mut questions: Vec<String> =
        names.iter().flat_map(|name| kinds.map(|kind| format!("{name} {kind}"))).collect();
    // Of these, only addresses are asked.
    names = ["10-244-0-9.default.pod", "fd00--9.default.pod", "10-244-0-9.other.pod", "web.default.pod"]
        .map(|name| format!("{name}.cluster.local"))
        .into();
    questions.extend(names.iter().flat_map(|name| ["A", "AAAA"].map(|kind| format!("{name} {kind}"))));
    for name in [
        "web.default.svc",
        "db.default.svc",
        "empty.default.svc",
        "no.default.svc",
        "alias.default.svc",
        "dns-version",
    ] {
        questions.push(format!("{name}.cluster.local TXT"));
    }
    for address in [
        "10.96.0.80",
        "192.0.2.5",
        "192.0.2.6",
        "192.0.2.7",
        "192.0.2.9",
        "203.0.113.1",
        "fd00:10:96::80",
        "2001:db8::5",
        "2001:db8:1::",
    ] {
        questions.push(format!("-x {address}"));
    }
    questions.push("cluster.local SOA".into());
    questions
}

/// The answers of one server to all questions, each as sorted lines without what may differ: numbers, order, EDNS.
fn answers(lab: &Lab, server: &str, questions: &[String], dir: &std::path::Path) -> Vec<String> {
    let file = dir.join("questions");
    std::fs::write(&file, questions.join("\n")).expect("written");
    let arguments =
        format!("@{server} +noall +comments +answer +authority +additional +nostats -f {}", file.display());
    let output = dig(lab, "server", &arguments);
    let mut answers = Vec::new();
    for answer in output.split(";; Got answer:").skip(1) {
        let status =
            answer.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("none");
        let authoritative = answer
            .split("flags: ")
            .nth(1)
            .is_some_and(|rest| rest.split(';').next().unwrap_or("").contains("aa"));
        let mut lines: Vec<String> = answer
            .lines()
            .filter(|line| !line.starts_with(';') && !line.trim().is_empty())
            .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
            // The number of a zone is its server's own.
            .map(|line| match line.split_once(" SOA ") {
                Some((owner, rest)) => {
                    let words: Vec<&str> = rest.split(' ').collect();
                    format!("{owner} SOA {} {} {}", words[0], words[1], words[6])
                }
                None => line,
            })
            .collect();
        lines.sort();
        answers.push(format!("{status}{}\n{}", if authoritative { " aa" } else { "" }, lines.join("\n")));
    }
    answers
}

#[test]
fn the_real_coredns_gives_the_same_answers() {
    let promise = "the real CoreDNS gives the same answers";
    let Some(coredns) = std::env::var_os("PORTOLAN_COREDNS") else {
        return portolan_sys::trial::skipped(promise, "PORTOLAN_COREDNS names none");
    };
    let Some((lab, dir)) = lab(promise, "coredns", OBJECTS) else { return };
    let kubeconfig = dir.path().join("kubeconfig");
    let output =
        lab.run_at("server", &["sh", "-c", &format!("cat \"$KUBECONFIG\" > {}", kubeconfig.display())]);
    assert!(output.status.success(), "{}", text(&output));
    let corefile = dir.path().join("Corefile");
    let (at, own) = (address(&lab, "server"), address(&lab, "node-1"));
    let config = format!(
        ".:1053 {{\n bind {at}\n kubernetes cluster.local in-addr.arpa ip6.arpa {{\n  kubeconfig {}\n  pods insecure\n }}\n}}\n",
        kubeconfig.display()
    );
    std::fs::write(&corefile, config).expect("written");
    let log = std::fs::File::create(dir.path().join("log")).expect("a file");
    let child =
        lab.at("server").arg(&coredns).arg("-conf").arg(&corefile).stdout(Stdio::null()).stderr(log).spawn();
    let _running = CoreDns(child.expect("running CoreDNS"));
    let at = format!("{at} -p 1053");
    digs(&lab, "server", &format!("@{at} +short web.default.svc.cluster.local A"), &["10.96.0.80"]);
    digs(&lab, "server", &format!("@{own} +short web.default.svc.cluster.local A"), &["10.96.0.80"]);

    let questions = questions();
    let theirs = answers(&lab, &at, &questions, dir.path());
    let ours = answers(&lab, &own, &questions, dir.path());
    assert_eq!((theirs.len(), ours.len()), (questions.len(), questions.len()), "an answer to each question");
    let differ = questions.iter().zip(theirs.iter().zip(&ours)).filter(|(_, (theirs, ours))| theirs != ours);
    let told: Vec<String> = differ
        .map(|(question, (theirs, ours))| format!("{question}\nCoreDNS: {theirs}\nours: {ours}"))
        .collect();
    assert!(told.is_empty(), "{} of {} differ:\n{}", told.len(), questions.len(), told.join("\n\n"));
}
