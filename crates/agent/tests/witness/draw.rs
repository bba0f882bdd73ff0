//! Draws clusters, as API objects, and flows to them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portolan_plan::model::{Family, FromOutside, Protocol};
use portolan_plan::trace::{Flow, Origin};
use portolan_plan::view::NodePortAddresses;
use serde_json::{Value, json};

use crate::world::{self, FAR_PODS};

/// Random numbers that a seed repeats (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True in so many of a hundred.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

/// How the node is told to treat Services.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node_ports: NodePortAddresses,
    pub from_outside: FromOutside,
    pub masquerade_all: bool,
}

/// A cluster.
pub struct Cluster {
    pub settings: Settings,
    pub node: Value,
    pub services: Vec<Value>,
    pub slices: Vec<Value>,
}

/// What a cluster may have.
#[derive(Clone, Copy, Debug)]
pub struct Taste {
    /// Only what kube-proxy 1.36 has too.
    pub as_kube_proxy: bool,
}

/// The label of Services that another proxy carries.
pub const ANOTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
pub const NODE: &str = "here";
pub const FAR_NODE: &str = "there";
const ZONES: [&str; 2] = ["a", "b"];
const SERVICES: usize = 14;
const PORTS: [u16; 4] = [80, 443, 8053, 9000];
/// One that pods listen on, and one that they refuse.
const TARGETS: [u16; 2] = [8080, 8081];
/// A source port is used once for each address, so that no flow is taken for another.
pub const FIRST_SOURCE_PORT: u16 = 1100;

fn cluster_ip(family: Family, number: usize) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, 10 + number as u8).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10 + number as u16).into(),
    }
}

fn balancer(family: Family, number: usize) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, number as u8).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, number as u16).into(),
    }
}

/// Few of them, so that some are claimed twice.
fn external(family: Family, dice: &mut Dice) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 18, 0, 1 + dice.below(30) as u8).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 8, 0, 0, 0, 0, 1 + dice.below(30) as u16).into(),
    }
}

/// A range that one of the outside client's addresses is in, or none is.
fn source_range(family: Family, dice: &mut Dice) -> &'static str {
    match family {
        Family::V4 => dice.pick(&[
            "192.0.2.96/28",
            "192.0.2.0/24",
            "192.0.2.96/27",
            "192.0.2.101/32",
            "172.31.0.0/16",
            "172.31.7.0/24",
            "10.244.1.0/24",
            "192.0.2.1/32",
        ]),
        Family::V6 => dice.pick(&[
            "2001:db8:1::100/124",
            "2001:db8:1::/64",
            "2001:db8::/32",
            "2001:db8:1::101/128",
            "2001:db8:31::/48",
            "fd00:244:1::/64",
            "2001:db8:1::1/128",
        ]),
    }
}

fn text(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// The Node object.
fn node(dice: &mut Dice) -> Value {
    let addresses: Vec<Value> = [Family::V4, Family::V6]
        .into_iter()
        .flat_map(|f| [world::node(f, 0), world::node(f, 2)])
        .map(|a| json!({"type": "InternalIP", "address": a.to_string()}))
        .collect();
    let mut labels = json!({"kubernetes.io/hostname": NODE});
    if dice.percent(85) {
        labels["topology.kubernetes.io/zone"] = json!("a");
    }
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": NODE, "uid": "node-here", "labels": labels},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"]},
        "status": {"addresses": addresses}})
}

impl Cluster {
    pub fn draw(dice: &mut Dice, taste: Taste) -> Cluster {
        let settings = Settings {
            node_ports: node_ports(dice, taste),
            from_outside: match taste.as_kube_proxy || dice.percent(40) {
                true => FromOutside::Masquerade,
                false => FromOutside::Refuse,
            },
            masquerade_all: dice.percent(15),
        };
        let mut cluster = Cluster { settings, node: node(dice), services: Vec::new(), slices: Vec::new() };
        for number in 0..SERVICES {
            cluster.draw_service(number, dice);
        }
        cluster
    }

    fn draw_service(&mut self, number: usize, dice: &mut Dice) {
        let name = format!("s{number}");
        let mut families = dice.pick(&[vec![Family::V4], vec![Family::V6], vec![Family::V4, Family::V6]]);
        if dice.percent(20) {
            families.reverse();
        }
        let kind = dice.pick(&["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"]);
        let headless = kind == "ClusterIP" && dice.percent(8);
        let mut ports = Vec::new();
        for (i, port) in PORTS.iter().take(1 + dice.below(3)).enumerate() {
            let protocol = dice.pick(&["TCP", "TCP", "UDP", "UDP", "SCTP"]);
            let mut entry = json!({"name": format!("p{i}"), "protocol": protocol, "port": port, "targetPort": TARGETS[0]});
            if kind != "ClusterIP" && dice.percent(90) {
                entry["nodePort"] = json!(30_000 + number * 10 + i);
            }
            ports.push(entry);
        }
        let ips: Vec<String> = match headless {
            true => vec!["None".into()],
            false => families.iter().map(|f| cluster_ip(*f, number).to_string()).collect(),
        };
        let local = |dice: &mut Dice| if dice.percent(35) { "Local" } else { "Cluster" };
        let mut spec = json!({
            "type": kind, "clusterIP": ips[0], "clusterIPs": ips, "ports": ports,
            "ipFamilies": families.iter().map(|f| text(*f)).collect::<Vec<_>>(),
            "ipFamilyPolicy": if families.len() == 2 { "RequireDualStack" } else { "SingleStack" },
            "internalTrafficPolicy": local(dice), "sessionAffinity": "None",
        });
        if dice.percent(30) {
            let seconds = dice.pick(&[600, 3600, 10800]);
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
        }
        if !headless && dice.percent(35) {
            let family = dice.pick(&families);
            let address = match dice.below(20) {
                0 => cluster_ip(family, dice.below(SERVICES)), // somebody's, maybe
                1 => world::pod(family, 0),
                _ => external(family, dice),
            };
            spec["externalIPs"] = json!([address.to_string()]);
        }
        if kind != "ClusterIP" || spec.get("externalIPs").is_some() {
            spec["externalTrafficPolicy"] = json!(if dice.percent(45) { "Local" } else { "Cluster" });
        }
        let mut status = json!({"loadBalancer": {}});
        if kind == "LoadBalancer" {
            spec["allocateLoadBalancerNodePorts"] = json!(true);
            let ingress: Vec<Value> = families
                .iter()
                .map(|f| json!({"ip": balancer(*f, 1 + number).to_string(), "ipMode": if dice.percent(15) { "Proxy" } else { "VIP" }}))
                .collect();
            status = json!({"loadBalancer": {"ingress": ingress}});
            if dice.percent(55) {
                let mut ranges: Vec<&str> = Vec::new();
                let both = vec![Family::V4, Family::V6];
                for family in dice.pick(&[vec![Family::V4], vec![Family::V6], both.clone(), both]) {
                    ranges.extend((0..1 + dice.below(2)).map(|_| source_range(family, dice)));
                    if dice.percent(10) {
                        ranges.push(if family == Family::V4 { "0.0.0.0/0" } else { "::/0" });
                    }
                }
                spec["loadBalancerSourceRanges"] = json!(ranges);
            }
        }
        let mut labels = json!({"app": name});
        if dice.percent(5) {
            labels[ANOTHER_PROXY] = json!("somebody-else");
        }
        let created = format!("2026-01-01T00:{:02}:00Z", dice.below(60));
        self.services.push(json!({"kind": "Service", "apiVersion": "v1",
            "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}"), "labels": labels, "creationTimestamp": created},
            "spec": spec, "status": status}));
        for family in families {
            self.draw_slices(&name, family, &ports, &labels, headless, dice);
        }
    }

    /// The slices of one Service and family: often one, sometimes two that share endpoints.
    fn draw_slices(
        &mut self,
        name: &str,
        family: Family,
        ports: &[Value],
        labels: &Value,
        headless: bool,
        dice: &mut Dice,
    ) {
        let how_many = dice.pick(&[0, 1, 1, 2, 2, 3, 4, 6]);
        // All ready, or a Service whose pods all go, or anything.
        let mood = dice.below(4);
        let hinted = dice.pick(&["", "", "zones", "nodes", "some"]);
        let mut endpoints: Vec<Value> = Vec::new();
        for _ in 0..how_many {
            let here = dice.percent(35);
            let address = match here {
                true => world::pod(family, dice.below(2)),
                false => world::far_pod(family, dice.below(FAR_PODS)),
            };
            if endpoints.iter().any(|e| e["addresses"][0] == address.to_string()) {
                continue;
            }
            let state = match mood {
                0 | 1 => 0,
                2 => 1 + dice.below(2),
                _ => dice.below(4),
            };
            let (ready, serving, terminating) =
                [(true, true, false), (false, true, true), (false, false, true), (false, false, false)]
                    [state];
            let mut endpoint = json!({"addresses": [address.to_string()], "nodeName": if here { NODE } else { FAR_NODE },
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
            let zone = ZONES[usize::from(!here && dice.percent(60))];
            let node = if dice.percent(70) == here { NODE } else { FAR_NODE };
            match hinted {
                "zones" => endpoint["hints"] = json!({"forZones": [{"name": zone}]}),
                "nodes" => {
                    endpoint["hints"] = json!({"forZones": [{"name": zone}], "forNodes": [{"name": node}]})
                }
                "some" if dice.percent(50) => endpoint["hints"] = json!({"forZones": [{"name": zone}]}),
                _ => {}
            }
            endpoints.push(endpoint);
        }
        let mut halves = vec![endpoints.clone()];
        if endpoints.len() > 1 && dice.percent(30) {
            let (first, second) = endpoints.split_at(endpoints.len() / 2);
            halves = vec![first.to_vec(), second.to_vec()];
            if dice.percent(50) {
                // On its way from one slice to the other: in both, and in one of them already terminating.
                let mut twin = first[0].clone();
                twin["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
                halves[1].push(twin);
            }
        }
        for (i, endpoints) in halves.into_iter().enumerate() {
            let mut slice_ports = Vec::new();
            for port in ports {
                // A named port of the pods may differ from one slice to the other, or be missing.
                let target = TARGETS[usize::from(dice.percent(30))];
                if !dice.percent(6) {
                    slice_ports
                        .push(json!({"name": port["name"], "protocol": port["protocol"], "port": target}));
                }
            }
            let slice = format!("{name}-{}-{i}", text(family).to_lowercase());
            let mut labels = labels.clone();
            labels["kubernetes.io/service-name"] = json!(name);
            if headless {
                labels["service.kubernetes.io/headless"] = json!("");
            }
            self.slices.push(json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"namespace": "default", "name": slice, "uid": format!("uid-{slice}"), "labels": labels},
                "addressType": text(family), "endpoints": endpoints, "ports": slice_ports}));
        }
    }
}

fn node_ports(dice: &mut Dice, taste: Taste) -> NodePortAddresses {
    let ranges = |list: &[&str]| NodePortAddresses {
        ranges: list.iter().map(|r| r.parse().expect("a range")).collect(),
        ..NodePortAddresses::default()
    };
    match dice.below(if taste.as_kube_proxy { 4 } else { 7 }) {
        0 | 1 => NodePortAddresses::primary(),
        2 => ranges(&["198.51.100.0/24", "2001:db8:2::/64"]),
        3 => ranges(&["0.0.0.0/0", "::/0"]),
        4 => NodePortAddresses { all: true, ..NodePortAddresses::default() },
        5 => NodePortAddresses { localhost: true, ..NodePortAddresses::primary() },
        _ => NodePortAddresses { localhost: true, ..ranges(&["198.51.100.0/24"]) },
    }
}

/// Draws flows, each with ports that no other has.
pub struct Flows {
    next_port: BTreeMap<IpAddr, u16>,
    number: u32,
}

/// A flow, its number and its source.
#[derive(Clone, Copy, Debug)]
pub struct Drawn {
    pub flow: Flow,
    /// It goes to an address of a Service that another proxy carries.
    pub foreign: bool,
    pub source: SocketAddr,
    pub number: u32,
}

impl Flows {
    pub fn new() -> Flows {
        Flows { next_port: BTreeMap::new(), number: 0 }
    }

    /// A flow to somewhere in the cluster, usually to something that answers.
    pub fn draw(&mut self, cluster: &Cluster, dice: &mut Dice) -> Drawn {
        let family = dice.pick(&[Family::V4, Family::V6]);
        let service = &cluster.services[dice.below(cluster.services.len())];
        let spec = &service["spec"];
        let port = dice.pick(spec["ports"].as_array().expect("ports"));
        let mut protocol = match port["protocol"].as_str() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        let mut number = port["port"].as_u64().expect("a port") as u16;
        let of = |list: &Value, field: Option<&str>| -> Vec<IpAddr> {
            let entries = list.as_array().into_iter().flatten();
            let texts = entries.filter_map(|e| field.map_or(Some(e), |f| e.get(f)).and_then(Value::as_str));
            texts.filter_map(|t| t.parse().ok()).filter(|a| Family::of(*a) == family).collect()
        };
        let mut candidates = of(&spec["clusterIPs"], None);
        // More likely than the cluster IP, since more is said of them.
        candidates.extend(of(&spec["externalIPs"], None).repeat(2));
        candidates.extend(of(&service["status"]["loadBalancer"]["ingress"], Some("ip")).repeat(6));
        let node_port = port["nodePort"].as_u64().map(|p| p as u16);
        let mut at_localhost = false;
        let destination = match dice.below(100) {
            0..3 => cluster_ip(family, SERVICES + dice.below(20)), // nobody's
            3..6 if family == Family::V4 => balancer(family, 100),
            6..9 => world::far_pod(family, dice.below(FAR_PODS)), // no Service at all
            9..11 => {
                number = dice.pick(&[9, 31_999]);
                world::node(family, 0)
            }
            11..40 if node_port.is_some() => {
                number = node_port.expect("a node port");
                at_localhost = cluster.settings.node_ports.has_localhost() && dice.percent(40);
                match (at_localhost, family) {
                    (true, Family::V4) => Ipv4Addr::LOCALHOST.into(),
                    (true, Family::V6) => Ipv6Addr::LOCALHOST.into(),
                    _ => world::node(family, dice.pick(&[0, 0, 2])),
                }
            }
            _ if candidates.is_empty() => cluster_ip(family, dice.below(SERVICES)),
            _ => dice.pick(&candidates),
        };
        match dice.below(100) {
            0..5 => number = 7, // a port that no Service has
            5..8 => protocol = dice.pick(&[Protocol::Tcp, Protocol::Udp]),
            _ => {}
        }
        let from = match dice.below(100) {
            _ if at_localhost => Origin::Node(destination),
            0..45 => Origin::Outside(dice.pick(&world::outsiders(family))),
            45..50 => Origin::Outside(world::far_pod(family, dice.below(FAR_PODS))),
            50..54 => Origin::Outside(world::far_node(family)),
            54..82 => Origin::Pod(world::pod(family, dice.below(2))),
            _ => Origin::Node(world::node(family, dice.pick(&[0, 0, 2]))),
        };
        let labels = &service["metadata"]["labels"];
        let foreign = labels.get(ANOTHER_PROXY).is_some() && candidates.contains(&destination);
        Drawn { foreign, ..self.of(Flow { from, destination, protocol, port: number }) }
    }

    /// This flow.
    pub fn of(&mut self, flow: Flow) -> Drawn {
        let address = flow.from.address();
        let next = self.next_port.entry(address).or_insert(FIRST_SOURCE_PORT);
        let source = SocketAddr::new(address, *next);
        // Below the range that masquerading and the kernel's own sockets use.
        *next = if *next >= 32_000 { FIRST_SOURCE_PORT } else { *next + 1 };
        self.number += 1;
        Drawn { flow, foreign: false, source, number: self.number }
    }
}
