//! Real connections through the tables, from everywhere to each kind of frontend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portolan_dataplane::{Forget, forget_udp};
use portolan_plan::model::Protocol::{Tcp, Udp};
use portolan_plan::model::*;
use portolan_plan::planner::StaleUdp;
use portolan_plan::service::UdpBackends;
use portolan_sys::conntrack::{Conntrack, SentTo, UDP};
use portolan_sys::nft;

use super::plans::*;
use super::world::*;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Addresses of a family.
struct Addresses {
    family: Family,
    vip: IpAddr,
    balancer: IpAddr,
    unallocated: IpAddr,
}

fn addresses(family: Family) -> Addresses {
    let (vip, balancer, unallocated) = match family {
        Family::V4 => ("10.96.0.10", "203.0.113.7", "10.96.7.7"),
        Family::V6 => ("fd00:96::a", "2001:db8:7::7", "fd00:96::77"),
    };
    Addresses { family, vip: ip(vip), balancer: ip(balancer), unallocated: ip(unallocated) }
}

pub fn node_plan() -> NodePlan {
    NodePlan {
        node_addresses: FAMILIES.map(|f| node(f, 0)).into(),
        service_cidrs: nets(&["10.96.0.0/16", "fd00:96::/112"]),
        inside: nets(&["10.244.1.8/29", "10.244.1.0/29", "fd00:244:1::10/124"]),
        unmasqueraded: nets(&["10.244.0.0/22", "fd00:244:1::10/124", "fd00:244:2::/64"]),
        local_pods: FAMILIES.into_iter().flat_map(|f| [pod(f, 0), pod(f, 1)]).collect(),
        cluster_ip_from_outside: FromOutside::Refuse,
    }
}

/// A Service port with all kinds of frontends on port 80 (node port 30080), to these backends.
fn part(
    a: &Addresses,
    protocol: Protocol,
    cluster: &[IpAddr],
    local: &[IpAddr],
    policy_local: bool,
) -> ServicePlan {
    let mut part = ServicePlan::default();
    let mut action = |scope, all: &[IpAddr]| {
        let name = set_name(protocol, a.family, scope);
        let backends = all.iter().map(|address| Backend { address: *address, port: PORT });
        if all.is_empty() {
            return if cluster.is_empty() { Action::Reject } else { Action::Drop };
        }
        part.sets.insert(name.clone(), set(backends, None));
        Action::Balance(name)
    };
    let everywhere = action(Scope::Cluster, cluster);
    let outside = if policy_local { action(Scope::Local, local) } else { everywhere.clone() };
    let vip = Frontend::Address { address: a.vip, protocol, port: 80 };
    part.frontends.insert(vip, does(FrontendKind::ClusterIp, everywhere.clone()));
    for (frontend, kind) in [
        (Frontend::Address { address: a.balancer, protocol, port: 80 }, FrontendKind::LoadBalancer),
        (Frontend::NodePort { family: a.family, protocol, port: 30_080 }, FrontendKind::NodePort),
    ] {
        let mut plan = does(kind, outside.clone());
        if policy_local {
            plan.inside = Some(everywhere.clone());
            plan.masquerade = Masquerade::Node;
        }
        part.frontends.insert(frontend, plan);
    }
    part
}

pub fn plan_of(parts: impl IntoIterator<Item = ServicePlan>) -> Plan {
    let mut plan = Plan { node: node_plan(), ..Plan::default() };
    for (number, part) in parts.into_iter().enumerate() {
        plan.services.insert(ServiceName::new("test", &format!("s{number}")), Arc::new(part));
    }
    plan
}

/// Each protocol and family, with a plan of one Service port for each.
fn each(test: impl Fn(&Addresses, Protocol)) {
    for family in FAMILIES {
        for protocol in [Tcp, Udp] {
            test(&addresses(family), protocol);
        }
    }
}

fn all_parts(make: impl Fn(&Addresses, Protocol) -> ServicePlan) -> Plan {
    plan_of(FAMILIES.into_iter().flat_map(|f| [Tcp, Udp].map(|p| make(&addresses(f), p))))
}

#[test]
fn every_kind_of_frontend_answers_from_everywhere() {
    world("every kind of frontend answers from everywhere", |w| {
        let far = |f| -> Vec<IpAddr> { (0..3).map(|i| far_pod(f, i)).collect() };
        let mut engine = w.engine();
        let _ = engine.sync(&all_parts(|a, p| part(a, p, &far(a.family), &[], false))).expect("a sync");
        each(|a, protocol| {
            let f = a.family;
            let at_node = node(f, 0);
            let masqueraded = node(f, 2);
            for (from, own, address, port, source) in [
                // A pod keeps its address to a cluster IP, the node's own connections get that of the way out.
                (&w.pods[0], "pod", a.vip, 80, pod(f, 0)),
                (&w.router, "node", a.vip, 80, masqueraded),
                (&w.client, "client", a.balancer, 80, masqueraded),
                (&w.pods[0], "pod", a.balancer, 80, masqueraded),
                (&w.router, "node", a.balancer, 80, masqueraded),
                (&w.client, "client", at_node, 30_080, masqueraded),
                (&w.pods[0], "pod", at_node, 30_080, masqueraded),
                (&w.router, "node", at_node, 30_080, masqueraded),
            ] {
                match from.ask(protocol, address, port, false) {
                    Outcome::Answer { server, client } => {
                        assert!(far(f).contains(&server), "{server}");
                        assert_eq!(client, source, "{protocol} from {own} to {address}:{port}");
                    }
                    other => panic!("{protocol} from {own} to {address}:{port}: {other:?}"),
                }
            }
            // A node port is one on the chosen addresses only.
            let other = w.pods[0].ask(protocol, node(f, 2), 30_080, false);
            assert_eq!(other, Outcome::Refused, "{protocol} to a node address that was not chosen");
        });
        assert_eq!(engine.counters().expect("counters"), portolan_dataplane::Counters::default());
    });
}

#[test]
fn all_backends_are_reached_also_when_their_number_is_no_power_of_two() {
    world("all backends are reached", |w| {
        let far = |f| -> Vec<IpAddr> { (0..5).map(|i| far_pod(f, i)).collect() };
        let mut engine = w.engine();
        let _ = engine.sync(&all_parts(|a, p| part(a, p, &far(a.family), &[], false))).expect("a sync");
        each(|a, protocol| {
            let mut seen = BTreeSet::new();
            // The chance that a right spread misses one of five in 150 draws is 5 * 0.8^150 = 1.4e-14.
            for _ in 0..150 {
                match w.pods[0].ask(protocol, a.vip, 80, false) {
                    Outcome::Answer { server, .. } => seen.insert(server),
                    other => panic!("{other:?}"),
                };
                if seen.len() == 5 {
                    break;
                }
            }
            assert_eq!(seen, far(a.family).into_iter().collect());
        });
    });
}

#[test]
fn a_cluster_ip_answers_no_one_outside_and_counts_them() {
    world("a cluster IP answers no one outside and counts them", |w| {
        let mut engine = w.engine();
        let mut plan = all_parts(|a, p| part(a, p, &[far_pod(a.family, 0)], &[], false));
        let _ = engine.sync(&plan).expect("a sync");
        let mut before = 0;
        each(|a, protocol| {
            assert_eq!(w.client.ask(protocol, a.vip, 80, true), Outcome::Silence);
            assert_eq!(w.far.ask(protocol, a.vip, 80, true), Outcome::Silence, "another node");
        });
        let counted = engine.counters().expect("counters").from_outside;
        assert!(counted >= 8, "{counted}");
        before += counted;
        plan.node.cluster_ip_from_outside = FromOutside::Masquerade;
        let change = PlanChange { node: Some(plan.node.clone()), ..PlanChange::default() };
        let _ = engine.apply(&change).expect("a change");
        each(|a, protocol| {
            let answer = w.client.ask(protocol, a.vip, 80, false);
            let expected = Outcome::Answer { server: far_pod(a.family, 0), client: node(a.family, 2) };
            assert_eq!(answer, expected, "masqueraded when allowed");
        });
        assert_eq!(engine.counters().expect("counters").from_outside, before);
    });
}

#[test]
fn what_leads_nowhere_is_refused_or_dropped() {
    world("what leads nowhere is refused or dropped", |w| {
        let mut engine = w.engine();
        let none = all_parts(|a, p| part(a, p, &[], &[], false));
        let _ = engine.sync(&none).expect("a sync");
        each(|a, protocol| {
            let at_node = node(a.family, 0);
            for (from, own) in [(&w.pods[0], false), (&w.router, true)] {
                let sent = |outcome| if own && protocol == Udp { Outcome::NotSent } else { outcome };
                for (address, port) in [(a.vip, 80), (a.balancer, 80), (at_node, 30_080), (a.vip, 81)] {
                    let seen = from.ask(protocol, address, port, false);
                    assert_eq!(seen, sent(Outcome::Refused), "{protocol} to {address}:{port}");
                }
                let seen = from.ask(protocol, a.unallocated, 80, true);
                assert_eq!(seen, sent(Outcome::Silence), "{protocol} to nobody");
            }
            assert_eq!(w.client.ask(protocol, a.balancer, 80, false), Outcome::Refused);
            assert_eq!(w.client.ask(protocol, at_node, 30_080, false), Outcome::Refused);
        });
        assert!(engine.counters().expect("counters").unallocated >= 8);
        let elsewhere = all_parts(|a, p| part(a, p, &[far_pod(a.family, 0)], &[], true));
        let _ = engine.sync(&elsewhere).expect("a sync");
        each(|a, protocol| {
            let at_node = node(a.family, 0);
            for (address, port) in [(a.balancer, 80), (at_node, 30_080)] {
                assert_eq!(
                    w.client.ask(protocol, address, port, true),
                    Outcome::Silence,
                    "no local endpoint"
                );
                let inside = w.pods[0].ask(protocol, address, port, false);
                let expected = Outcome::Answer { server: far_pod(a.family, 0), client: pod(a.family, 0) };
                assert_eq!(inside, expected, "from inside the cluster's endpoints are used");
            }
        });
    });
}

#[test]
fn the_local_policy_keeps_the_source() {
    world("the local policy keeps the source", |w| {
        let mut engine = w.engine();
        let plan = all_parts(|a, p| part(a, p, &[far_pod(a.family, 0)], &[pod(a.family, 1)], true));
        let _ = engine.sync(&plan).expect("a sync");
        each(|a, protocol| {
            let at_node = node(a.family, 0);
            for (address, port) in [(a.balancer, 80), (at_node, 30_080)] {
                let outside = w.client.ask(protocol, address, port, false);
                let expected = Outcome::Answer { server: pod(a.family, 1), client: client(a.family) };
                assert_eq!(outside, expected, "{protocol} {address}:{port}");
                let own = w.router.ask(protocol, address, port, false);
                let expected = Outcome::Answer { server: far_pod(a.family, 0), client: node(a.family, 2) };
                assert_eq!(own, expected, "{protocol} {address}:{port} from the node");
            }
        });
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    world("a pod reaches itself through its Service", |w| {
        let mut engine = w.engine();
        let plan = all_parts(|a, p| part(a, p, &[pod(a.family, 0)], &[pod(a.family, 0)], true));
        let _ = engine.sync(&plan).expect("a sync");
        each(|a, protocol| {
            for (address, port) in [(a.vip, 80), (a.balancer, 80), (node(a.family, 0), 30_080)] {
                let seen = w.pods[0].ask(protocol, address, port, false);
                let expected = Outcome::Answer { server: pod(a.family, 0), client: node(a.family, 1) };
                assert_eq!(seen, expected, "{protocol} {address}:{port}");
            }
            let neighbour = w.pods[1].ask(protocol, a.vip, 80, false);
            let expected = Outcome::Answer { server: pod(a.family, 0), client: pod(a.family, 1) };
            assert_eq!(neighbour, expected, "between two pods the source stays");
        });
    });
}

#[test]
fn source_ranges_close_what_they_do_not_name() {
    world("source ranges close what they do not name", |w| {
        let mut engine = w.engine();
        let ranged = |ranges: &[&str]| {
            all_parts(|a, p| {
                let mut part = part(a, p, &[far_pod(a.family, 0)], &[], false);
                for (frontend, plan) in &mut part.frontends {
                    let vip = matches!(frontend, Frontend::Address { address, .. } if *address == a.vip);
                    plan.source_ranges = (!vip).then(|| nets(ranges));
                }
                part
            })
        };
        let opened = |w: &World, a: &Addresses, protocol, open: bool| {
            for (address, port) in [(a.balancer, 80), (node(a.family, 0), 30_080)] {
                match w.client.ask(protocol, address, port, !open) {
                    Outcome::Answer { .. } => assert!(open, "{protocol} {address}:{port} is to be closed"),
                    other => assert!(!open, "{protocol} {address}:{port} is to be open: {other:?}"),
                }
            }
            assert_ne!(
                w.pods[0].ask(protocol, a.vip, 80, false),
                Outcome::Silence,
                "the cluster IP has no ranges"
            );
        };
        let v4_only = ["203.0.113.0/24", "192.0.2.96/27"];
        let _ = engine.sync(&ranged(&v4_only)).expect("a sync");
        each(|a, protocol| opened(w, a, protocol, a.family == Family::V4));
        let _ = engine.sync(&ranged(&["203.0.113.0/24", "2001:db8:1::100/128"])).expect("a sync");
        each(|a, protocol| opened(w, a, protocol, a.family == Family::V6));
        let _ = engine.sync(&ranged(&["0.0.0.0/0", "::/0"])).expect("a sync");
        each(|a, protocol| opened(w, a, protocol, true));
    });
}

#[test]
fn a_client_stays_with_its_backend_for_as_long_as_there_is_one() {
    world("a client stays with its backend", |w| {
        let mut engine = w.engine();
        let sticky = |backends: &BTreeMap<Family, Vec<IpAddr>>| {
            all_parts(|a, p| {
                let mut part = part(a, p, &backends[&a.family], &[], false);
                part.sets.values_mut().for_each(|set| set.affinity = Some(Duration::from_secs(600)));
                part
            })
        };
        let mut backends: BTreeMap<Family, Vec<IpAddr>> =
            FAMILIES.into_iter().map(|f| (f, (0..6).map(|i| far_pod(f, i)).collect())).collect();
        let _ = engine.sync(&sticky(&backends)).expect("a sync");
        let server = |from: &Host, a: &Addresses, protocol, address, port| match from
            .ask(protocol, address, port, false)
        {
            Outcome::Answer { server, .. } => server,
            other => panic!("{protocol} to {address}:{port} {:?}: {other:?}", a.family),
        };
        let stays = |w: &World, from: &Host, a: &Addresses, protocol| {
            let first = server(from, a, protocol, a.balancer, 80);
            for _ in 0..4 {
                assert_eq!(server(from, a, protocol, a.balancer, 80), first);
                assert_eq!(server(from, a, protocol, node(a.family, 0), 30_080), first, "by each frontend");
            }
            let _ = w;
            first
        };
        let mut chosen: BTreeMap<(Family, Protocol), IpAddr> = BTreeMap::new();
        for family in FAMILIES {
            for protocol in [Tcp, Udp] {
                let a = addresses(family);
                chosen.insert((family, protocol), stays(w, &w.client, &a, protocol));
                let pod = server(&w.pods[0], &a, protocol, a.vip, 80);
                for _ in 0..4 {
                    assert_eq!(server(&w.pods[0], &a, protocol, a.vip, 80), pod);
                }
            }
        }
        // A restart in between forgets nothing.
        engine = w.engine();
        let applied = engine.sync(&sticky(&backends)).expect("a sync");
        assert_eq!(applied.elements, 0);
        // One that was chosen goes: its clients go to one other, the rest stays.
        let gone = chosen[&(Family::V4, Tcp)];
        backends.get_mut(&Family::V4).expect("there").retain(|b| *b != gone);
        let _ = engine.sync(&sticky(&backends)).expect("a sync");
        for ((family, protocol), before) in chosen {
            let now = stays(w, &w.client, &addresses(family), protocol);
            assert_eq!(now == before, before != gone, "{family:?} {protocol}: {before} then {now}");
        }
        assert_eq!(engine.counters().expect("counters").missed, 0);
    });
}

#[test]
fn udp_flows_to_a_removed_backend_are_forgotten_and_no_others() {
    world("UDP flows to a removed backend are forgotten", |w| {
        use std::net::UdpSocket;
        let mut engine = w.engine();
        for family in FAMILIES {
            let a = addresses(family);
            let (old, new) = (far_pod(family, 0), far_pod(family, 1));
            let plan = |b| plan_of([part(&a, Udp, &[b], &[], false)]);
            let _ = engine.sync(&plan(old)).expect("a sync");
            let frontends = [std::net::SocketAddr::new(a.balancer, 80), (node(family, 0), 30_080).into()];
            let sockets = frontends.map(|at| {
                let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = w.client.run(|| UdpSocket::bind(any)).expect("a socket");
                socket.connect(at).expect("a destination");
                socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
                socket
            });
            let who = |socket: &UdpSocket| {
                let mut buffer = [0; 128];
                socket.send(b"who").expect("sent");
                let length = socket.recv(&mut buffer).expect("an answer");
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                ip(text.split(' ').next().expect("an address"))
            };
            assert_eq!(sockets.each_ref().map(who), [old, old]);
            let _ = engine.sync(&plan(new)).expect("a sync");
            assert_eq!(sockets.each_ref().map(who), [old, old], "known flows go on");
            let serving = [Backend { address: new, port: PORT }].into();
            let serving = Arc::new(UdpBackends { serving, ..UdpBackends::default() });
            let keep: StaleUdp = plan(new)
                .services
                .values()
                .flat_map(|part| part.frontends.keys())
                .map(|frontend| (*frontend, serving.clone()))
                .collect();
            assert_eq!(keep.len(), 3, "{keep:?}");
            let addresses = node_plan().node_addresses;
            let forgotten = w.router.run(|| forget_udp(&keep, &addresses, Forget::All)).expect("forgotten");
            assert_eq!(forgotten, 2);
            assert_eq!(sockets.each_ref().map(who), [new, new], "and are decided anew");
            assert_eq!(w.router.run(|| forget_udp(&keep, &addresses, Forget::All)).expect("nothing"), 0);
        }
    });
}

/// Waits until connection tracking has no UDP flow to an address.
fn flows_end(family: Family, address: IpAddr) {
    let mut kernel = Conntrack::open().expect("the connection table");
    let to = SentTo { address: Some(address), port: Some(80) };
    let late = Instant::now() + Duration::from_secs(5);
    loop {
        let mut flows = Vec::new();
        let family = if family == Family::V4 { nft::Family::Ip } else { nft::Family::Ip6 };
        kernel.list(family, UDP, to, |flow| flows.push(*flow)).expect("a list");
        if flows.is_empty() {
            return;
        }
        assert!(Instant::now() < late, "{flows:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_backend_that_is_removed_while_it_works_on_an_answer_gets_it_through() {
    world("an answer that is owed reaches its client", |w| {
        use std::net::{SocketAddr, UdpSocket};
        let mut engine = w.engine();
        for family in FAMILIES {
            let a = addresses(family);
            let slow = if family == Family::V4 { ip("198.51.100.10") } else { ip("2001:db8:2::10") };
            let plan = |b| plan_of([part(&a, Udp, &[b], &[], false)]);
            let _ = engine.sync(&plan(slow)).expect("a sync");
            let (server, client) = w
                .far
                .run(|| UdpSocket::bind(SocketAddr::new(slow, PORT)))
                .and_then(|server| {
                    let any = if slow.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    Ok((server, w.client.run(|| UdpSocket::bind(any))?))
                })
                .expect("sockets");
            for socket in [&server, &client] {
                socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
            }
            client.connect(SocketAddr::new(a.balancer, 80)).expect("a destination");
            client.send(b"question").expect("sent");
            let mut buffer = [0; 16];
            let (_, asker) = server.recv_from(&mut buffer).expect("the question");
            let _ = engine.sync(&plan(far_pod(family, 0))).expect("a sync");
            let frontend = Frontend::Address { address: a.balancer, protocol: Udp, port: 80 };
            let forget = |which, leaving: &[IpAddr]| {
                let leaving =
                    leaving.iter().map(|address| Backend { address: *address, port: PORT }).collect();
                let backends = UdpBackends { leaving, ..UdpBackends::default() };
                let stale: StaleUdp = [(frontend, Arc::new(backends))].into();
                w.router.run(|| forget_udp(&stale, &node_plan().node_addresses, which)).expect("forgotten")
            };
            let mut answer = |said: &[u8]| {
                let _ = server.send_to(said, asker).expect("sent");
                let length = client.recv(&mut buffer).expect("the answer");
                assert_eq!(&buffer[..length], said);
            };
            for said in ["answer", "and more"] {
                assert_eq!(forget(Forget::Unused, &[slow]), 1, "given a second");
                answer(said.as_bytes());
            }
            // The answer gave the flow its usual life again.
            let elsewhere = |said: &str| {
                let mut buffer = [0; 16];
                client.send(said.as_bytes()).expect("sent");
                let length = client.recv(&mut buffer).expect("another's answer");
                assert!(buffer[..length].starts_with(far_pod(family, 0).to_string().as_bytes()), "{said}");
            };
            assert_eq!(forget(Forget::All, &[slow]), 1);
            elsewhere("in use to the last");
            let _ = engine.sync(&plan(slow)).expect("a sync");
            assert_eq!(forget(Forget::Unused, &[]), 1, "from one that is gone no answer will come");
            // Idle for its last second, it is gone by itself.
            client.send(b"question").expect("sent");
            let _ = server.recv_from(&mut [0; 16]).expect("the question, at the slow one again");
            let _ = engine.sync(&plan(far_pod(family, 0))).expect("a sync");
            assert_eq!(forget(Forget::Unused, &[slow]), 1);
            w.router.run(|| flows_end(family, a.balancer));
            elsewhere("unused");
        }
    });
}

#[test]
fn an_address_of_its_own_comes_before_a_node_port() {
    world("an address of its own comes before a node port", |w| {
        let mut engine = w.engine();
        // An external address that is the node's own, with the same port as a node port of the local policy.
        let plan = plan_of(FAMILIES.into_iter().flat_map(|family| {
            let a = addresses(family);
            let mut external = ServicePlan::default();
            let name = set_name(Tcp, family, Scope::Cluster);
            let backends = [Backend { address: far_pod(family, 1), port: PORT }];
            external.sets.insert(name.clone(), set(backends, None));
            let frontend = Frontend::Address { address: node(family, 0), protocol: Tcp, port: 30_080 };
            external.frontends.insert(frontend, does(FrontendKind::ExternalIp, Action::Balance(name)));
            [part(&a, Tcp, &[far_pod(family, 0)], &[], true), external]
        }));
        let _ = engine.sync(&plan).expect("a sync");
        for family in FAMILIES {
            for from in [&w.client, &w.pods[0], &w.router] {
                let seen = from.ask(Tcp, node(family, 0), 30_080, false);
                let expected = Outcome::Answer { server: far_pod(family, 1), client: node(family, 2) };
                assert_eq!(seen, expected);
            }
        }
    });
}

#[test]
fn a_port_that_a_balancer_does_not_have_is_refused_where_it_would_go_in_circles() {
    world("a port that a balancer does not have is refused where it would go in circles", |w| {
        let mut engine = w.engine();
        let _ =
            engine.sync(&all_parts(|a, p| part(a, p, &[far_pod(a.family, 0)], &[], false))).expect("a sync");
        each(|a, protocol| {
            // The node's way to the balancer's address leads back to the client, which would send it here again.
            assert_eq!(
                w.client.ask(protocol, a.balancer, 81, false),
                Outcome::Refused,
                "{protocol} {}",
                a.balancer
            );
            // From elsewhere it is only sent on, as if there were no Service: here into the void.
            assert_eq!(w.pods[0].ask(protocol, a.balancer, 81, true), Outcome::Silence);
            assert_eq!(
                w.pods[0].ask(protocol, node(a.family, 0), 81, false),
                Outcome::Refused,
                "by the node itself"
            );
        });
        assert!(engine.counters().expect("counters").bounced >= 4);
    });
}

#[test]
fn each_services_own_timeout_counts_for_its_clients_and_use_renews_it() {
    world("each Service's own timeout counts for its clients", |w| {
        let mut engine = w.engine();
        let timeouts = [(Family::V4, 2), (Family::V6, 3600)];
        let plan = all_parts(|a, p| {
            let backends: Vec<IpAddr> = (0..6).map(|i| far_pod(a.family, i)).collect();
            let mut part = part(a, p, &backends, &[], false);
            let seconds = timeouts.iter().find(|(f, _)| *f == a.family).expect("both").1;
            part.sets.values_mut().for_each(|set| set.affinity = Some(Duration::from_secs(seconds)));
            part
        });
        let _ = engine.sync(&plan).expect("a sync");
        let server = |family| match w.client.ask(Tcp, addresses(family).balancer, 80, false) {
            Outcome::Answer { server, .. } => server,
            other => panic!("{other:?}"),
        };
        let chosen = FAMILIES.map(server);
        // Used more often than it runs out, for longer than it lasts: the same all the time.
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            assert_eq!(FAMILIES.map(server), chosen, "after {:?}", began.elapsed());
        }
        // Not used, the memory goes, and with it the bond: the one that comes anew is drawn anew.
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while remembered(w, "ip") > 0 {
            assert!(std::time::Instant::now() < until, "the memory of 2 s stays");
            std::thread::yield_now();
        }
        assert_eq!(remembered(w, "ip6"), 1, "that of an hour stays");
        assert_eq!(server(Family::V6), chosen[1]);
        // Switched off and on while it runs, as a Service may be.
        let off = all_parts(|a, p| {
            let backends: Vec<IpAddr> = (0..6).map(|i| far_pod(a.family, i)).collect();
            part(a, p, &backends, &[], false)
        });
        let _ = engine.sync(&off).expect("a sync");
        let seen: BTreeSet<IpAddr> = (0..60).map(|_| server(Family::V6)).collect();
        assert!(seen.len() > 1, "without affinity all are drawn: {seen:?}");
        let _ = engine.sync(&plan).expect("a sync");
        let again = server(Family::V6);
        assert!((0..10).all(|_| server(Family::V6) == again));
    });
}

/// How many clients the table of a family remembers, as nft counts them.
fn remembered(w: &World, family: &str) -> usize {
    let listed = w.router.run(|| {
        std::process::Command::new("nft").args(["list", "map", family, "portolan", "clients"]).output()
    });
    let Ok(listed) = listed else { return 0 };
    String::from_utf8_lossy(&listed.stdout).matches("expires").count()
}
