//! Files, and what an agent makes of them.

use super::*;

/// What kubeadm 1.32 puts into the ConfigMap kube-proxy of a new cluster.
const KUBEADM: &str = include_str!("kubeadm.yaml");

fn of(fields: &str) -> String {
    format!("apiVersion: {API_VERSION}\nkind: {KIND}\nmode: nftables\n{fields}\n")
}

fn accepted(fields: &str) -> (File, Vec<String>) {
    let (file, warnings) = read(&of(fields)).unwrap_or_else(|errors| panic!("{fields}: {errors:?}"));
    (file, warnings.iter().map(ToString::to_string).collect())
}

fn refused(fields: &str) -> Vec<String> {
    read(&of(fields)).expect_err(fields).iter().map(ToString::to_string).collect()
}

fn config(fields: &str) -> Config {
    let mut config = Config::new("here");
    accepted(fields).0.apply(&mut config);
    config
}

#[test]
fn the_file_of_kubeadm_is_accepted_with_one_warning_of_its_mode() {
    let (file, warnings) = read(KUBEADM).expect("accepted");
    let warnings: Vec<_> = warnings.iter().map(|w| w.field.as_str()).collect();
    assert_eq!(warnings, ["mode"]);
    assert_eq!(file.kubeconfig.as_deref(), Some("/var/lib/kube-proxy/kubeconfig.conf".as_ref()));
    assert_eq!(file.cluster_cidrs, ["10.244.0.0/16".parse::<IpNet>().unwrap()]);
    assert_eq!(file.servers, Servers::usual());
    assert_eq!(file.conntrack, Conntrack::default());
    let open = (&file.node_name, &file.node_ports, file.masquerade_all, file.sync_period);
    assert_eq!(open, (&None, &None, false, None));
}

#[test]
fn an_empty_file_is_what_kube_proxy_does_by_default() {
    let (file, warnings) = accepted("");
    assert_eq!(warnings, [""; 0]);
    assert_eq!(File { given: Map::new(), ..file }, File { servers: Servers::usual(), ..File::default() });
}

#[test]
fn json_is_accepted_too() {
    let text = format!(
        r#"{{"apiVersion": "{API_VERSION}", "kind": "{KIND}", "mode": "nftables", "hostnameOverride": " N1 "}}"#
    );
    let (file, warnings) = read(&text).expect("accepted");
    assert_eq!((file.node_name.as_deref(), warnings), (Some("n1"), vec![]));
}

#[test]
fn the_family_of_the_bind_address_decides_where_the_ports_are() {
    let servers = |fields: &str| {
        let Servers { healthz, metrics, .. } = accepted(fields).0.servers;
        [healthz, metrics].map(|a| a.unwrap().to_string())
    };
    assert_eq!(servers("bindAddress: 0.0.0.0"), ["0.0.0.0:10256", "127.0.0.1:10249"]);
    assert_eq!(servers("bindAddress: '::'"), ["[::]:10256", "[::1]:10249"]);
    assert_eq!(
        servers("bindAddress: '::'\nhealthzBindAddress: 192.0.2.1\nmetricsBindAddress: 0.0.0.0:9"),
        ["192.0.2.1:10256", "0.0.0.0:9"]
    );
    assert!(
        accepted("bindAddress: 192.0.2.1").1[0]
            .starts_with("bindAddress: of 192.0.2.1 only the family counts")
    );
}

#[test]
fn pods_are_known_by_the_range_of_the_cluster_or_of_the_node() {
    let ranges = |fields: &str| {
        let (file, warnings) = accepted(fields);
        (file.cluster_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), warnings.join(" "))
    };
    let dual = "clusterCIDR: 10.244.0.0/16,fd00::/48";
    assert_eq!(ranges(dual), ("10.244.0.0/16 fd00::/48".into(), String::new()));
    assert_eq!(ranges(&format!("{dual}\ndetectLocalMode: ClusterCIDR")).0, "10.244.0.0/16 fd00::/48");
    assert_eq!(ranges(&format!("{dual}\ndetectLocalMode: NodeCIDR")), (String::new(), String::new()));
    let (none, warning) = ranges(&format!("{dual}\ndetectLocalMode: BridgeInterface"));
    assert_eq!(none, "");
    assert!(warning.starts_with("detectLocalMode: BridgeInterface is not supported"), "{warning}");
}

#[test]
fn node_ports_answer_where_the_file_says() {
    let told = |fields| {
        let config = config(fields);
        super::node_ports::list(&config.node_port_addresses)
    };
    assert_eq!(told(""), ["primary"]);
    assert_eq!(told("nodePortAddresses: [all]"), ["all"]);
    assert_eq!(told("nodePortAddresses: [primary, localhost]"), ["primary", "localhost"]);
    assert_eq!(told("iptables: {localhostNodePorts: true}"), ["primary", "localhost"]);
    assert_eq!(told("iptables: {localhostNodePorts: false}"), ["primary"]);
    assert_eq!(told("nodePortAddresses: [192.0.2.0/24]"), ["192.0.2.0/24"]);
    let gate = config("featureGates: {AllowServiceExternalIPs: false}");
    assert_eq!(gate.external_ips, portolan_plan::view::ExternalIps::None);
}

#[test]
fn either_mode_may_ask_for_masquerade_and_times() {
    assert!(config("nftables: {masqueradeAll: true}").masquerade_all);
    assert!(config("iptables: {masqueradeAll: true}").masquerade_all);
    let every = |fields| config(fields).check_every.as_secs();
    assert_eq!(every(""), 30);
    assert_eq!(every("iptables: {syncPeriod: 10s}"), 10);
    assert_eq!(every("nftables: {syncPeriod: 1m}\niptables: {syncPeriod: 10s}"), 60);
    assert_eq!(every("ipvs: {syncPeriod: 10s}"), 30, "of another mode");
    assert_eq!(every("nftables: {syncPeriod: 1ns}"), 1);
    assert!(
        accepted("nftables: {syncPeriod: 1ns}").1[0].starts_with("nftables.syncPeriod: less than a second")
    );
}

#[test]
fn connection_tracking_is_what_the_file_gives_and_no_more() {
    let asked = config(
        "conntrack: {maxPerCore: 0, min: 1, tcpCloseWaitTimeout: 1h, tcpBeLiberal: true, udpTimeout: 0s}",
    )
    .conntrack;
    let wanted = Conntrack {
        max_per_core: Some(0),
        min: Some(1),
        tcp_close_wait: Some(Duration::from_secs(3600)),
        tcp_be_liberal: true,
        ..Conntrack::default()
    };
    assert_eq!(asked, wanted);
}

#[test]
fn what_has_no_effect_is_named_in_one_warning() {
    let (_, warnings) = accepted(
        "featureGates: {A: true}\nclientConnection: {qps: 5, burst: 0}\nipvs: {scheduler: rr}\nlogging: {verbosity: 2}\noomScoreAdj: -999",
    );
    assert_eq!(
        warnings,
        ["featureGates, clientConnection.qps, ipvs.scheduler, logging, oomScoreAdj have no effect here"]
    );
    assert_eq!(accepted("enableProfiling: true").1, ["enableProfiling has no effect here"]);
}

#[test]
fn unknown_fields_are_each_named_and_ignored() {
    let (_, warnings) =
        accepted("nodePortAdresses: [all]\nnftables: {masqueradeBits: 1}\nresourceContainer: /x");
    let named: Vec<_> = warnings.iter().map(|w| w.split(':').next().unwrap()).collect();
    assert_eq!(named, ["nodePortAdresses", "nftables.masqueradeBits", "resourceContainer"]);
}

#[test]
fn a_field_that_is_given_twice_counts_as_last_given() {
    let (file, warnings) = accepted("hostnameOverride: a\nhostnameOverride: b");
    assert_eq!(file.node_name.as_deref(), Some("b"));
    assert!(warnings[0].starts_with("a field is given twice"), "{warnings:?}");
}

#[test]
fn any_mode_of_linux_is_accepted_and_the_warning_says_what_is_different() {
    for mode in ["''", "iptables", "ipvs"] {
        let text = of("").replace("mode: nftables", &format!("mode: {mode}"));
        let (_, warnings) = read(&text).expect(mode);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].to_string().contains("nodePortAddresses: [all]"), "{warnings:?}");
    }
    assert!(read(&of("").replace("nftables", "kernelspace")).is_err());
}

#[test]
fn what_is_wrong_is_named_with_its_remedy_and_all_at_once() {
    for (fields, wanted) in [
        ("bindAddress: localhost", "bindAddress: \"localhost\" is not an IP address; write 0.0.0.0 or ::"),
        ("healthzBindAddress: x:1", "healthzBindAddress: \"x:1\" is not ADDRESS:PORT"),
        ("metricsBindAddress: 127.0.0.1:0", "metricsBindAddress: \"127.0.0.1:0\" has port 0"),
        (
            "clusterCIDR: 10.244.0.0",
            "clusterCIDR: \"10.244.0.0\" is not a range; write one such as 10.244.0.0/16",
        ),
        (
            "clusterCIDR: '10.1.0.0/16,10.2.0.0/16'",
            "clusterCIDR: \"10.1.0.0/16,10.2.0.0/16\" has two ranges of one family",
        ),
        ("detectLocalMode: Guess", "detectLocalMode: \"Guess\" is not a mode"),
        (
            "nodePortAddresses: [primary, 192.0.2.1]",
            "nodePortAddresses[1]: \"192.0.2.1\" is not a valid CIDR",
        ),
        ("nodePortAddresses: 192.0.2.0/24", "nodePortAddresses: \"192.0.2.0/24\" is not a list of texts"),
        ("nftables: {syncPeriod: 30}", "nftables.syncPeriod: 30 is not a time; write one such as 30s"),
        (
            "iptables: {masqueradeBit: 32}",
            "iptables.masqueradeBit: 32 is not understood; write a number from 0 to 31",
        ),
        ("conntrack: {min: -1}", "conntrack.min: -1 is not understood"),
        ("conntrack: 5", "conntrack: 5 is not an object"),
        ("bindAddressHardFail: 1", "bindAddressHardFail: 1 is not a flag; write true or false"),
    ] {
        let errors = refused(fields);
        assert!(errors[0].starts_with(wanted), "{fields}: {errors:?}");
    }
    assert_eq!(refused("bindAddress: x\nconntrack: {min: a}\nmetricsBindAddress: y").len(), 3);
}

#[test]
fn a_file_that_is_something_else_is_refused() {
    for (text, wanted) in [
        ("", "the file has to hold one KubeProxyConfiguration"),
        ("[1]", "the file has to hold one"),
        ("{", "neither YAML nor JSON"),
        (
            "kind: KubeletConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1",
            "kind: \"KubeletConfiguration\" is not understood",
        ),
        (
            "kind: KubeProxyConfiguration",
            "apiVersion: null is not understood; write kubeproxy.config.k8s.io/v1alpha1",
        ),
    ] {
        let errors = read(text).expect_err(text);
        assert!(errors[0].to_string().starts_with(wanted), "{text}: {errors:?}");
    }
}

#[test]
fn the_configuration_in_effect_can_be_read_again_and_is_the_same() {
    let fields = "hostnameOverride: n1\nbindAddress: '::'\nmetricsBindAddress: 0.0.0.0:9\niptables: {syncPeriod: 10s, masqueradeAll: true}\n\
        clusterCIDR: 10.244.0.0/16\nnodePortAddresses: [192.0.2.0/24, localhost]\nconntrack: {min: 7, udpTimeout: 90s}\nipvs: {scheduler: rr}";
    let mut first = Config::new("n1");
    accepted(fields).0.apply(&mut first);
    let shown = in_effect(&first);
    assert_eq!(shown["mode"], "nftables");
    assert_eq!(shown["nftables"], json!({"masqueradeAll": true, "syncPeriod": "10s"}));
    assert_eq!(shown["conntrack"]["udpTimeout"], "1m30s");
    assert_eq!(shown["ipvs"], json!({"scheduler": "rr"}), "what has no effect is shown as given");
    let (file, _) = read(&shown.to_string()).expect("readable");
    let mut second = Config::new(file.node_name.clone().expect("a name"));
    file.apply(&mut second);
    assert_eq!(in_effect(&second), shown);
}

#[test]
fn every_field_is_in_the_docs_with_what_becomes_of_it() {
    let docs = include_str!("../../../../docs/reference/agent.md");
    for Field { path, taken, .. } in FIELDS {
        let said = match taken {
            Taken::Yes => "yes".to_owned(),
            Taken::Partly(what) => what.to_string(),
            Taken::No(why) => format!("no: {why}"),
        };
        let row = format!("| `{path}` | {said} |");
        assert!(docs.contains(&row), "docs/reference/agent.md lacks this row:\n{row}");
    }
}
