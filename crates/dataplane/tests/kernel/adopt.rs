//! What the tables hold, read back, adopted, printed.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::process::Command;

use portolan_dataplane::{Engine, Options, Reading};
use portolan_plan::model::{Frontend, Plan, PlanChange, Protocol};
use portolan_sys::{namespace, trial};

use super::plans::{backend, everything, simple};

/// Runs something in a network namespace of its own; says so where there can't be one.
pub fn alone(promise: &str, test: impl FnOnce() + Send) {
    if trial::goes_on(promise) {
        let netns = namespace::new_netns().expect("a namespace");
        namespace::in_netns(netns.as_fd(), test).expect("the namespace can be entered");
    }
}

/// An engine with the usual options.
pub fn engine() -> Engine {
    Engine::open(Options::default()).expect("an engine")
}

/// What nft prints; `None` where there is no nft.
fn listing() -> Option<String> {
    let output = Command::new("nft").args(["list", "ruleset"]).output().ok()?;
    assert!(
        output.status.success(),
        "nft list ruleset: {} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).expect("nft prints text"))
}

#[test]
fn a_plan_reads_back_from_the_kernel() {
    alone("a plan reads back from the kernel", || {
        let plan = everything();
        let mut engine = engine();
        let applied = engine.sync(&plan).expect("a sync");
        assert_eq!(applied.batches, 1);
        assert_eq!(applied.findings, []);
        let reading = engine.read().expect("a reading");
        assert_eq!(reading, Reading::of(&plan));
        engine.remove().expect("removed");
        assert_eq!(engine.read().expect("nothing"), Reading::default());
    });
}

#[test]
fn a_restart_with_the_same_plan_touches_nothing() {
    alone("a restart with the same plan touches nothing", || {
        let plan = everything();
        let _ = engine().sync(&plan).expect("a sync");
        let before = listing();
        let applied = engine().sync(&plan).expect("a sync after a restart");
        assert_eq!((applied.batches, applied.elements, applied.rebuilt), (0, 0, None));
        assert_eq!(applied.stray_udp, []);
        assert_eq!(listing(), before);
    });
}

#[test]
fn udp_frontends_that_went_while_nobody_looked_are_named() {
    alone("UDP frontends that went while nobody looked are named", || {
        let _ = engine().sync(&everything()).expect("a sync");
        let nothing = Plan { node: everything().node, ..Plan::default() };
        let applied = engine().sync(&nothing).expect("a sync after a restart");
        let udp = |frontend: &Frontend| {
            let (Frontend::Address { protocol, .. } | Frontend::NodePort { protocol, .. }) = frontend;
            *protocol == Protocol::Udp
        };
        let gone: BTreeSet<Frontend> = everything()
            .services
            .values()
            .flat_map(|p| p.frontends.keys())
            .filter(|f| udp(f))
            .copied()
            .collect();
        assert!(!gone.is_empty());
        assert_eq!(applied.stray_udp.into_iter().collect::<BTreeSet<_>>(), gone);
    });
}

#[test]
fn nft_prints_the_tables_and_reads_them_again() {
    alone("nft prints the tables and reads them again", || {
        let _ = engine().sync(&everything()).expect("a sync");
        let Some(text) = listing() else {
            portolan_sys::trial::skipped("nft prints the tables and reads them again", "no nft");
            return;
        };
        for line in [
            "10.96.0.10 . tcp . 80 comment \"default/s80-tcp-v4\" : 0:",
            "meta priority set ip daddr . meta l4proto . th dport map @frontends",
            "dnat ip to meta priority & ffff:ffc0 . numgen random mod 8 map @slots",
            "update @clients { meta priority & ffff:c000 . ip saddr timeout 3h : meta priority }",
            "ip saddr & 255.255.255.0 . ip daddr . meta l4proto . th dport @ranges-24 return",
            "counter name \"cluster-ip-from-outside\" drop",
            "ip6 daddr @closed-cidrs ip6 saddr != @inside",
        ] {
            assert!(text.contains(line), "not printed: {line}\n{text}");
        }
        let file = tempfile();
        std::fs::write(&file, &text).expect("a file");
        let run = |args: &[&str]| {
            let output = Command::new("nft").args(args).output().expect("nft runs");
            assert!(output.status.success(), "nft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run(&["flush", "ruleset"]);
        run(&["-f", file.to_str().expect("a path")]);
        let again = listing().expect("nft was there");
        std::fs::remove_file(&file).expect("the file goes");
        assert!(text == again, "printed, read and printed again, the ruleset differs");
    });
}

fn tempfile() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("portolan-nft-{}", std::process::id()))
}

#[test]
fn whatever_was_there_becomes_the_plan() {
    alone("whatever was there becomes the plan", || {
        let plan = everything();
        let nft = |text: &str| {
            Command::new("nft").arg(text).output().ok().map(|o| assert!(o.status.success(), "{text}: {o:?}"))
        };
        let mut running = engine();
        let _ = running.sync(&Plan::default()).expect("an empty plan");
        let _ = running.sync(&plan).expect("a sync");
        for damage in [
            "delete table ip6 portolan",
            "flush chain ip portolan balance",
            "delete element ip portolan vips { 10.96.0.10 }",
            "add element ip portolan vips { 192.0.2.77 }",
            "add element ip portolan slots { 0:4000 . 1 : 192.0.2.9 . 80 }",
            "flush map ip portolan frontends",
            "flush map ip6 portolan endpoints",
            "add element ip portolan inside { 172.16.0.0/12 }",
        ] {
            if nft(damage).is_none() {
                portolan_sys::trial::skipped("whatever was there becomes the plan", "no nft");
                return;
            }
            let applied = running.sync(&plan).expect("a sync");
            assert_ne!(applied.batches, 0, "{damage}");
            assert_eq!(running.read().expect("a reading"), Reading::of(&plan), "{damage}");
        }
    });
}

#[test]
fn a_change_costs_what_changes() {
    alone("a change costs what changes", || {
        use portolan_plan::model::Protocol::Tcp;
        let mut plan = everything();
        let name = portolan_plan::model::ServiceName::new("default", "mine");
        let pods: Vec<_> = (1..=5).map(|i| backend(&format!("10.244.1.{i}"), 80)).collect();
        let mut engine = engine();
        assert!(matches!(engine.apply(&PlanChange::default()), Err(portolan_dataplane::Error::NotSynced)));
        plan.services.insert(name.clone(), simple("10.96.1.1", Tcp, 80, &pods[..4]));
        let _ = engine.sync(&plan).expect("a sync");
        // Of five pods: one more slot, and the frontend of a larger class.
        for (count, elements) in [(5, 3), (4, 3), (3, 1), (4, 1), (1, 5), (0, 3), (4, 6)] {
            let mut change = PlanChange::default();
            change.services.insert(name.clone(), Some(simple("10.96.1.1", Tcp, 80, &pods[..count])));
            let applied = engine.apply(&change).expect("a change");
            assert_eq!((applied.batches, applied.elements), (1, elements), "to {count} pods");
            plan.apply(&change);
            assert_eq!(engine.read().expect("a reading"), Reading::of(&plan));
        }
    });
}
