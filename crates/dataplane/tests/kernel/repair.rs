//! Tables that somebody changed: put right in place, and what lives through it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use portolan_dataplane::Reading;
use portolan_plan::model::{Backend, Family, Plan, Protocol, ServiceName};
use portolan_sys::nft::{Batch, Expression, Family as Kernel, Heard, Monitor, Nftables, Verdict};
use portolan_sys::packet;

use super::adopt::{alone, engine};
use super::plans::*;
use super::world::*;

/// Somebody else, with a socket of their own.
fn damage(act: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::new();
    act(&mut batch);
    Nftables::open(64 * 1024).expect("a socket").commit(batch).expect("a commit");
}

/// How many clients are remembered.
fn remembered(family: Kernel) -> usize {
    let mut clients = 0;
    let mut nft = Nftables::open(4096).expect("a socket");
    nft.elements(family, "portolan", "clients", |_| clients += 1).expect("a map");
    clients
}

/// Has both tables remember a client, as a packet would.
fn remember() {
    damage(|batch| {
        batch.add_element(
            Kernel::Ip,
            "portolan",
            "clients",
            &[0, 0, 0, 16, 192, 0, 2, 9],
            Some(&[1, 0, 0, 16]),
            None,
        );
        let mut key = vec![0, 0, 0, 16];
        key.extend([0xfd; 16]);
        batch.add_element(Kernel::Ip6, "portolan", "clients", &key, Some(&[1, 0, 0, 16]), None);
    });
}

type Damage = fn(&mut Batch);

#[test]
fn what_was_not_damaged_stays_with_all_it_remembers() {
    alone("what was not damaged stays with all it remembers", || {
        let plan = everything();
        let damages: [(&str, Damage, usize); 8] = [
            ("rules flushed", |b| b.flush_chain(Kernel::Ip, "portolan", "balance"), 1),
            ("ranges flushed", |b| b.flush_chain(Kernel::Ip, "portolan", "check-range"), 1),
            ("timeouts flushed", |b| b.flush_chain(Kernel::Ip, "portolan", "remember"), 1),
            ("a rule more", |b| b.add_rule(Kernel::Ip, "portolan", "settle", &[]), 1),
            ("no way in", |b| b.delete_chain(Kernel::Ip, "portolan", "prerouting"), 1),
            ("verdicts flushed", |b| b.flush_set(Kernel::Ip, "portolan", "classes"), 1),
            ("slots flushed", |b| b.flush_set(Kernel::Ip, "portolan", "slots"), 1),
            ("no table", |b| b.delete_table(Kernel::Ip, "portolan"), 0),
        ];
        for (what, act, left) in damages {
            // By the engine that wrote the tables, and by one that finds them so.
            for restarted in [false, true] {
                let mut running = engine();
                let _ = running.sync(&plan).expect("a sync");
                remember();
                damage(act);
                if restarted {
                    running = engine();
                }
                let applied = running.sync(&plan).expect("a sync");
                // A plan is written after what was found is put right.
                let batches = 1 + usize::from(restarted && left == 0);
                assert_eq!(applied.batches, batches, "{what}: {applied:?}");
                assert!(restarted || !applied.damage.is_empty(), "{what}");
                assert_eq!(
                    running.read().expect("a reading"),
                    Reading::of(&plan),
                    "{what}, restarted: {restarted}"
                );
                assert_eq!(remembered(Kernel::Ip), left, "{what}");
                assert_eq!(remembered(Kernel::Ip6), 1, "{what}: the other family");
                let again = running.sync(&plan).expect("a sync");
                assert_eq!((again.batches, again.damage), (0, vec![]), "{what}");
                running.remove().expect("removed");
            }
        }
    });
}

#[test]
fn what_can_not_be_put_right_in_place_is_made_anew() {
    alone("what can not be put right in place is made anew", || {
        let plan = everything();
        let damages: [(&str, Damage); 2] = [
            // The rule that counts can't be written again before its counter.
            ("a counter gone", |b| {
                b.flush_chain(Kernel::Ip, "portolan", "prerouting");
                b.delete_counter(Kernel::Ip, "portolan", "cluster-ip-from-outside");
            }),
            // A chain of ours that somebody else's jumps to can't be deleted.
            ("a base chain replaced and in use", |b| {
                b.delete_chain(Kernel::Ip, "portolan", "postrouting");
                b.add_chain(Kernel::Ip, "portolan", "postrouting", None);
                b.add_chain(Kernel::Ip, "portolan", "theirs", None);
                let jump = Expression::Verdict(Verdict::Jump("postrouting".into()));
                b.add_rule(Kernel::Ip, "portolan", "theirs", &[jump]);
            }),
        ];
        for (what, act) in damages {
            for restarted in [false, true] {
                let mut running = engine();
                let _ = running.sync(&plan).expect("a sync");
                damage(act);
                if restarted {
                    running = engine();
                }
                // At the second try at the latest.
                let _ = running.sync(&plan).or_else(|_| running.sync(&plan)).expect(what);
                assert_eq!(
                    running.read().expect("a reading"),
                    Reading::of(&plan),
                    "{what}, restarted: {restarted}"
                );
                let again = running.sync(&plan).expect("a sync");
                assert_eq!((again.batches, again.damage), (0, vec![]), "{what}");
                running.remove().expect("removed");
            }
        }
    });
}

#[test]
fn a_commit_is_told_with_its_author_and_what_it_touched_of_the_table() {
    alone("a commit is told with its author and what it touched of the table", || {
        let mut engine = engine();
        let _ = engine.sync(&everything()).expect("a sync");
        let mut monitor = Monitor::open("portolan").expect("a monitor");
        let _ = engine.sync(&Plan::default()).expect("a sync");
        damage(|batch| {
            batch.add_table(Kernel::Ip, "firewall", "");
            batch.add_chain(Kernel::Ip, "firewall", "portolan", None);
        });
        damage(|batch| batch.flush_chain(Kernel::Ip6, "portolan", "resolve"));
        damage(|batch| batch.delete_table(Kernel::Ip, "portolan"));
        let mut commits = Vec::new();
        while commits.len() < 4 {
            let ready = packet::wait_readable(&[std::os::fd::AsFd::as_fd(&monitor)], Duration::from_secs(10));
            assert_eq!(ready.expect("a wait"), [true], "{commits:?}");
            monitor.hear(|heard| commits.push(heard)).expect("heard");
        }
        let commits = commits.into_iter().map(|heard| match heard {
            Heard::Committed(commit) => commit,
            Heard::Lost => panic!("lost"),
        });
        let [own, other, flushed, deleted] = commits.collect::<Vec<_>>().try_into().expect("four");
        assert_eq!(own.port, engine.port());
        assert!(other.port != own.port && other.touched.is_empty(), "{other:?}");
        assert_eq!(other.generation, own.generation + 1);
        assert_eq!(flushed.deeds("portolan"), "deleted 3 rules of chain ip6 portolan resolve");
        assert_eq!(deleted.deeds("portolan"), "deleted table ip portolan");
        assert!(deleted.process > 0 && !deleted.program.is_empty(), "{deleted:?}");
    });
}

#[test]
fn a_live_connection_stays_translated_while_the_tables_are_gone() {
    world("a live connection stays translated while the tables are gone", |w| {
        let listener = w.far.run(|| TcpListener::bind((far_pod(Family::V4, 0), 9000))).expect("a listener");
        let mut plan = Plan::default();
        plan.node.node_addresses.insert(node(Family::V4, 0));
        let mut part = (*simple("203.0.113.9", Protocol::Tcp, 9000, &[backend("10.244.2.1", 9000)])).clone();
        let port = portolan_plan::model::Frontend::NodePort {
            family: Family::V4,
            protocol: Protocol::Tcp,
            port: 30_900,
        };
        let mut frontend = part.frontends.values().next().expect("one").clone();
        frontend.kind = portolan_plan::model::FrontendKind::NodePort;
        frontend.masquerade = portolan_plan::model::Masquerade::Everyone;
        part.frontends.insert(port, frontend);
        plan.services.insert(ServiceName::new("default", "held"), part.into());
        let mut engine = w.engine();
        let _ = engine.sync(&plan).expect("a sync");
        engine.hold_translation().expect("a kernel that knows owners of tables");

        let at = SocketAddr::new(node(Family::V4, 0), 30_900);
        let mut client = w.client.run(|| TcpStream::connect(at)).expect("a connection");
        let (mut server, _) = listener.accept().expect("a connection");
        let mut exchange = |what: &str| {
            for stream in [&client, &server] {
                stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            }
            let mut byte = [0];
            client
                .write_all(b"?")
                .and_then(|()| server.read_exact(&mut byte))
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            server
                .write_all(b"!")
                .and_then(|()| client.read_exact(&mut byte))
                .unwrap_or_else(|e| panic!("{what}: {e}"));
        };
        exchange("at first");
        w.router.run(|| {
            damage(|batch| {
                batch.delete_table(Kernel::Ip, "portolan");
                batch.delete_table(Kernel::Ip6, "portolan");
            })
        });
        exchange("without tables");
        let _ = engine.sync(&plan).expect("a sync");
        exchange("with new tables");
        drop(engine);
        let held =
            w.router.run(|| Nftables::open(4096)?.table(Kernel::Ip, "portolan-hold")).expect("an answer");
        assert_eq!(held, None, "it ends with the engine");
    });
}

/// Sets of this size are not dumped, but asked for by key.
#[test]
fn large_sets_are_adopted_as_they_are_and_without_what_nothing_leads_to() {
    alone("large sets are adopted as they are and without what nothing leads to", || {
        let mut plan = Plan::default();
        for (number, (backends, affinity)) in
            [(25_000u32, None), (7_000, Some(60)), (7_000, Some(60)), (7_000, Some(60))]
                .into_iter()
                .enumerate()
        {
            let vip = format!("10.96.7.{number}");
            let pods =
                (0..backends).map(|i| Backend { address: Ipv4Addr::from(0x0af4_0000 + i).into(), port: 80 });
            let mut part = (*simple(&vip, Protocol::Tcp, 80, &[backend("10.244.0.1", 80)])).clone();
            for set in part.sets.values_mut() {
                set.backends = pods.clone().collect();
                set.affinity = affinity.map(Duration::from_secs);
            }
            plan.services.insert(ServiceName::new("default", &format!("large-{number}")), part.into());
        }
        let _ = engine().sync(&plan).expect("a load");
        let applied = engine().sync(&plan).expect("an adoption");
        assert_eq!((applied.batches, applied.elements), (0, 0));

        let slot = |set: u32, slot: u32| [set.to_ne_bytes(), slot.to_ne_bytes()].concat();
        let nowhere = [192, 0, 2, 1, 0, 80, 0, 0];
        let nobodys = slot(0x7fff << 6, 0);
        damage(|batch| batch.add_element(Kernel::Ip, "portolan", "slots", &nobodys, Some(&nowhere), None));
        let applied = engine().sync(&plan).expect("an adoption");
        assert_eq!((applied.batches, applied.elements), (1, 1), "the slot that nobody has is gone");

        damage(|batch| batch.delete_element(Kernel::Ip, "portolan", "slots", &slot(0, 7)));
        let mut last = engine();
        let applied = last.sync(&plan).expect("an adoption");
        assert_ne!(applied.batches, 0, "a slot was missing");
        assert_eq!(last.read().expect("a reading"), Reading::of(&plan));
    });
}
