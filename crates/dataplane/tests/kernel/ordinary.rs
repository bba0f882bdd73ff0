//! Small batches, and users who are not root.

use std::os::unix::process::CommandExt;
use std::process::Command;

use portolan_dataplane::{Engine, Options, Reading};
use portolan_plan::model::Protocol::Tcp;
use portolan_plan::model::{Plan, PlanChange, ServiceName};
use portolan_sys::namespace;

use super::adopt::alone;
use super::plans::{backend, everything, simple};

/// What a machine with the usual `net.core.wmem_max` of 212,992 gives somebody in a user namespace.
const USUAL: usize = 2 * 212_992;

fn many(services: usize) -> Plan {
    let mut plan = everything();
    for number in 0..services {
        let (high, low) = (number / 250, number % 250);
        let pods: Vec<_> = (0..10).map(|i| backend(&format!("10.{}.{high}.{low}", 100 + i), 8080)).collect();
        let name = ServiceName::new("many", &format!("service-{number}"));
        plan.services.insert(name, simple(&format!("10.97.{high}.{low}"), Tcp, 80, &pods));
    }
    plan
}

fn with_limit(batch_limit: usize) -> Engine {
    Engine::open(Options { batch_limit, ..Options::default() }).expect("an engine")
}

#[test]
fn a_small_socket_carries_a_large_plan_in_pieces() {
    alone("a small socket carries a large plan in pieces", || {
        let plan = many(2000);
        let mut engine = with_limit(USUAL);
        assert!(engine.batch_limit() <= USUAL);
        let applied = engine.sync(&plan).expect("a sync");
        assert!(applied.batches > 3, "{applied:?}");
        assert_eq!(engine.read().expect("a reading"), Reading::of(&plan));
        let again = with_limit(USUAL).sync(&plan).expect("after a restart");
        assert_eq!(again.elements, 0);
        // One Service, larger than a batch: before, switch, after.
        let pods: Vec<_> =
            (0..20_000).map(|i| backend(&format!("10.200.{}.{}", i / 250, i % 250), 8080)).collect();
        let name = ServiceName::new("many", "service-0");
        let mut plan = plan;
        for count in [20_000, 1, 15_000, 14_000] {
            let mut change = PlanChange::default();
            change.services.insert(name.clone(), Some(simple("10.97.0.0", Tcp, 80, &pods[..count])));
            let applied = engine.apply(&change).expect("a change");
            assert_ne!(applied.batches, 0);
            plan.apply(&change);
            assert_eq!(engine.read().expect("a reading"), Reading::of(&plan), "{count} endpoints");
        }
    });
}

#[test]
fn a_failed_batch_leaves_what_was_there() {
    alone("a failed batch leaves what was there", || {
        let mut engine = with_limit(USUAL);
        let mut plan = everything();
        let _ = engine.sync(&plan).expect("a sync");
        let slots = ["flush", "map", "ip", "portolan", "slots"];
        if !Command::new("nft").args(slots).status().is_ok_and(|s| s.success()) {
            portolan_sys::trial::skipped("a failed batch leaves what was there", "no nft");
            return;
        }
        let damaged = engine.read().expect("a reading");
        let name = ServiceName::new("default", "s80-tcp-v4");
        let mut change = PlanChange::default();
        change.services.insert(name, None);
        let error = engine.apply(&change).expect_err("slots that are gone can't be deleted");
        assert!(error.to_string().contains("deleting elements of portolan slots"), "{error}");
        assert_eq!(engine.read().expect("a reading"), damaged, "all or nothing");
        assert!(matches!(engine.apply(&change), Err(portolan_dataplane::Error::NotSynced)));
        plan.apply(&change);
        let _ = engine.sync(&plan).expect("a sync");
        assert_eq!(engine.read().expect("a reading"), Reading::of(&plan));
    });
}

#[test]
fn a_user_namespace_is_enough() {
    const PROMISE: &str = "a user namespace is enough";
    const INSIDE: &str = "PORTOLAN_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    let exe = std::env::current_exe().expect("this program");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--"]).arg(exe);
    command.args(["adopt::", "ordinary::", "packets::every_kind", "packets::a_client_stays"]);
    command.env(INSIDE, "1");
    if namespace::effective_ids().0 == 0 {
        command.uid(65_534).gid(65_534);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return portolan_sys::trial::skipped(PROMISE, &format!("unshare: {error}")),
    };
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !text.contains("running") {
        return portolan_sys::trial::skipped(PROMISE, &format!("{errors}"));
    }
    assert!(output.status.success(), "{text}\n{errors}");
    assert!(!text.contains(" 0 passed"), "{text}");
}
