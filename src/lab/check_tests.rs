//! Tests of the expectations.

use super::*;
use crate::lab::topology::Wish;

fn topology() -> Topology {
    let families = vec![IpFamily::IPv4, IpFamily::IPv6];
    Topology::plan(Wish { name: "t".into(), nodes: 3, families, service_cidrs: vec![], pool: vec![] })
        .expect("a topology")
}

fn pod(name: &str, node: &str, address: &str) -> (String, PodSight) {
    let sight = PodSight {
        name: format!("default/{name}"),
        uid: name.into(),
        node: node.into(),
        hostname: name.into(),
        addresses: vec![address.parse().expect("an address")],
        echo: true,
        host_network: false,
    };
    (sight.name.clone(), sight)
}

struct World {
    topology: Topology,
    published: Vec<Published>,
    service: ServiceSight,
    pods: BTreeMap<String, PodSight>,
    bystanders: BTreeMap<String, PodSight>,
}

impl World {
    /// Two backends, on node-1 and node-2, of a Service with all kinds of addresses, in IPv4.
    fn new() -> World {
        let pods =
            BTreeMap::from([pod("echo-a", "node-1", "10.244.0.9"), pod("echo-b", "node-2", "10.244.1.9")]);
        let endpoint = |p: &PodSight| Endpoint {
            address: p.addresses[0],
            node: Some(p.node.clone()),
            pod: Some(p.name.clone()),
        };
        let service = ServiceSight {
            name: "default/web".into(),
            cluster_ips: vec!["10.96.0.8".parse().expect("an address")],
            load_balancers: vec!["10.80.0.200".parse().expect("an address")],
            ports: vec![PortSight {
                port: 80,
                node_port: Some(30080),
                protocol: Some(Transport::Tcp),
                text: "80/TCP".into(),
                endpoints: pods.values().map(endpoint).collect(),
            }],
            ..ServiceSight::default()
        };
        let bystanders = [1, 2, 3]
            .map(|n| (format!("node-{n}"), pod(&format!("x-{n}"), &format!("node-{n}"), "10.244.9.9").1));
        World {
            topology: topology(),
            published: vec![],
            service,
            pods,
            bystanders: BTreeMap::from(bystanders),
        }
    }

    fn rows(&self) -> Vec<Row> {
        rows(&Grounds {
            topology: &self.topology,
            published: &self.published,
            services: std::slice::from_ref(&self.service),
            pods: &self.pods,
            bystanders: &self.bystanders,
        })
    }

    fn expected(&self, kind: &str, from: &str) -> Vec<(String, Expected)> {
        let rows = self.rows();
        let row = rows.iter().find(|row| row.kind == kind && row.from == from);
        let row = row.unwrap_or_else(|| panic!("no row {kind} from {from}"));
        row.trials
            .as_ref()
            .map_or(vec![], |t| t.iter().map(|t| (t.label.clone(), t.expected.clone())).collect())
    }
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn hostnames(every: &[&str], among: &[&str]) -> Expected {
    Expected::Hostnames { every: set(every), among: set(among) }
}

#[test]
fn each_kind_of_address_has_a_row_for_each_sort_of_place() {
    let rows = World::new().rows();
    for kind in ["ClusterIP", "NodePort", "LoadBalancer"] {
        for from in [SAME, OTHER, ITSELF, NODE, CLIENT, HERE] {
            assert_eq!(
                rows.iter().filter(|r| r.kind == kind && r.from == from).count(),
                1,
                "{kind} from {from}"
            );
        }
    }
}

#[test]
fn a_pod_on_the_same_node_wants_that_nodes_backends_and_another_the_rest() {
    let world = World::new();
    let both = &["echo-a", "echo-b"][..];
    assert_eq!(
        world.expected("ClusterIP", SAME),
        [("node-1".into(), hostnames(&["echo-a"], both)), ("node-2".into(), hostnames(&["echo-b"], both))]
    );
    let other = world.expected("ClusterIP", OTHER);
    assert_eq!(other[2], ("node-3".into(), hostnames(both, both)));
    assert_eq!(world.expected("ClusterIP", ITSELF)[0].1, hostnames(&["echo-a"], both));
}

#[test]
fn a_cluster_ip_is_closed_to_the_client_and_all_else_is_open() {
    let world = World::new();
    let both = &["echo-a", "echo-b"][..];
    assert_eq!(world.expected("ClusterIP", CLIENT)[0].1, Expected::Nothing);
    assert_eq!(world.expected("LoadBalancer", CLIENT)[0].1, hostnames(both, both));
    assert_eq!(world.expected("NodePort", CLIENT).len(), 3, "every node's own address");
}

#[test]
fn without_endpoints_everybody_is_refused() {
    let mut world = World::new();
    world.service.ports[0].endpoints.clear();
    for (kind, from) in
        [("ClusterIP", POD), ("ClusterIP", NODE), ("NodePort", CLIENT), ("LoadBalancer", CLIENT)]
    {
        assert!(
            world.expected(kind, from).iter().all(|(_, e)| *e == Expected::Refused),
            "{kind} from {from}"
        );
    }
    assert_eq!(world.expected("ClusterIP", CLIENT)[0].1, Expected::Nothing);
}

#[test]
fn policies_that_stay_local_leave_nothing_on_nodes_without_backends() {
    let mut world = World::new();
    world.service.external_local = true;
    world.service.internal_local = true;
    let outside = world.expected("NodePort", CLIENT);
    assert_eq!(outside[0].1, hostnames(&["echo-a"], &["echo-a"]));
    assert_eq!(outside[2].1, Expected::Nothing);
    // Inside, a NodePort of policy Local leads everywhere (kubernetes/kubernetes#100925).
    assert_eq!(
        world.expected("NodePort", NODE)[2].1,
        hostnames(&["echo-a", "echo-b"], &["echo-a", "echo-b"])
    );
    assert_eq!(world.expected("ClusterIP", NODE)[2].1, Expected::Nothing);
    assert_eq!(world.expected("LoadBalancer", CLIENT)[0].1, hostnames(&[], &["echo-a", "echo-b"]));
}

#[test]
fn source_ranges_and_affinity_change_what_is_expected() {
    let mut world = World::new();
    world.service.source_ranges = vec!["10.244.0.0/16".parse().expect("a range")];
    assert_eq!(world.expected("LoadBalancer", CLIENT)[0].1, Expected::Nothing);
    assert_ne!(world.expected("NodePort", CLIENT)[0].1, Expected::Nothing);
    world.service.affinity = true;
    assert_eq!(world.expected("NodePort", CLIENT)[0].1, Expected::One(set(&["echo-a", "echo-b"])));
}

#[test]
fn what_is_not_published_is_not_tried_and_never_counts_as_passed() {
    let rows = World::new().rows();
    let here: Vec<&Row> = rows.iter().filter(|row| row.from == HERE).collect();
    assert_eq!(here.len(), 3);
    assert!(here.iter().all(|row| verdict(row, &[]) == Verdict::Untried));
}

#[test]
fn datagrams_are_sent_to_those_alone_who_are_known_to_answer() {
    let mut world = World::new();
    world.service.ports[0].protocol = Some(Transport::Udp);
    assert!(!world.expected("ClusterIP", NODE).is_empty());
    world.pods.values_mut().for_each(|pod| pod.echo = false);
    assert!(world.expected("ClusterIP", NODE).is_empty());
    assert!(!world.expected("ClusterIP", CLIENT).is_empty(), "what must be closed can be tried all the same");
}

#[test]
fn a_trial_holds_only_if_everyone_expected_answered_and_nobody_else() {
    let trial = |expected| Trial {
        from: Place::Here,
        label: String::new(),
        target: "127.0.0.1:1".parse().expect("an address"),
        expected,
    };
    let seen = |names: &[&str], other| Seen { hostnames: set(names), other };
    let both = trial(hostnames(&["a", "b"], &["a", "b"]));
    assert!(both.holds(&seen(&["a", "b"], None)));
    assert!(!both.holds(&seen(&["a"], None)));
    assert!(!both.holds(&seen(&["a", "b", "c"], None)));
    assert!(!both.holds(&seen(&["a", "b"], Some(Answer::Silence))), "a connection failed");
    assert!(!both.holds(&seen(&[], Some(Answer::Accepted))), "somebody who doesn't tell his name");
    let one = trial(Expected::One(set(&["a", "b"])));
    assert!(one.holds(&seen(&["a"], None)) && !one.holds(&seen(&["a", "b"], None)));
    assert!(!trial(Expected::Refused).holds(&seen(&[], Some(Answer::Silence))), "silence is no refusal");
    assert!(trial(Expected::Nothing).holds(&seen(&[], Some(Answer::Silence))));
    assert!(!trial(Expected::Nothing).holds(&seen(&["a"], None)));
    let untried = Some(Answer::Error("not tried".into()));
    assert!(
        !trial(Expected::Nothing).holds(&seen(&[], untried)),
        "who can't try sees nothing, which proves nothing"
    );
}

#[test]
fn a_failed_row_names_its_service_place_and_what_was_seen_instead() {
    let world = World::new();
    let rows: Vec<Row> =
        world.rows().into_iter().filter(|r| r.kind == "ClusterIP" && r.from == NODE).collect();
    let fine = Seen { hostnames: set(&["echo-a", "echo-b"]), other: None };
    let broken = Seen { hostnames: set(&["echo-a"]), other: Some(Answer::Refused) };
    let text = render(&rows, &[vec![fine.clone(), broken, fine]]);
    let line = text.lines().nth(1).expect("a row");
    assert!(line.contains("default/web") && line.contains("node") && line.contains("FAIL"), "{line}");
    assert!(line.ends_with("node-2: echo-a, never echo-b, then refused"), "{line}");
}

#[test]
fn host_names_of_one_deployment_are_written_once() {
    assert_eq!(names(&set(&["echo-5d-a", "echo-5d-b"])), "echo-5d-{a,b}");
    assert_eq!(names(&set(&["echo-5d-a", "web"])), "echo-5d-a,web");
    assert_eq!(names(&set(&["echo-5d-a"])), "echo-5d-a");
}
