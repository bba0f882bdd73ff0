//! Somebody else's hands in the agent's tables: noticed, put right, counted, explained.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use portolan_dataplane::{Engine, Options, Reading};
use portolan_sys::nft::{Batch, Family, Nftables};

use crate::kernel::{PODS, Running, VIP, answer, ask, cable, dns, on_node, start_with};

/// So seldom that only events can be what a test sees.
const NEVER: Duration = Duration::from_secs(3600);

fn reading() -> Reading {
    Engine::open(Options::default()).expect("an engine").read().expect("a reading")
}

fn nft(command: &str) {
    let output = Command::new("nft").arg(command).output().expect("nft runs");
    assert!(output.status.success(), "nft {command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn there_is_nft(promise: &str) -> bool {
    let there = Command::new("nft").arg("--version").output().is_ok();
    if !there {
        portolan_sys::trial::skipped(promise, "no nft");
    }
    there
}

/// The handle of a chain's first rule.
fn handle(chain: &str) -> u64 {
    let rules = Nftables::open(4096).and_then(|mut nft| nft.rules(Family::Ip, "portolan")).expect("rules");
    rules.iter().find(|r| r.chain == chain).expect("a rule").handle
}

fn asks_anew() -> String {
    let client = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    client.connect((VIP, 80)).expect("a route");
    ask(&client)
}

impl Running {
    async fn repaired(&mut self, times: u64) -> String {
        let status = self.status.wait_for(|s| s.repairs >= times).await.expect("it runs");
        assert_eq!(status.repairs, times);
        status.last_disturbance.clone().expect("a repair has a cause").text
    }
}

#[test]
fn whatever_somebody_does_to_the_tables_is_put_right_at_once_and_told_with_who_did_it() {
    let promise = "whatever somebody does to the tables is put right at once and told with who did it";
    on_node(promise, async || {
        if !there_is_nft(promise) {
            return;
        }
        answer(cable().expect("a node and a pod"));
        let api = dns(&PODS[..1]);
        let mut agent = start_with(&api, NEVER);
        agent.commits(0).await;
        let whole = reading();
        assert_ne!(whole, Reading::default());
        let mut repairs = 0;
        let client = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        client.connect((VIP, 80)).expect("a route");
        assert_eq!(ask(&client), PODS[0]);
        let damages = [
            ("delete table ip portolan", "deleted table ip portolan"),
            ("delete table ip6 portolan", "deleted table ip6 portolan"),
            ("flush ruleset", "deleted table ip portolan, deleted table ip6 portolan"),
            ("flush map ip portolan slots", "deleted an element of ip portolan slots"),
            ("flush map ip portolan classes", "deleted 19 elements of ip portolan classes"),
            ("flush set ip portolan service-cidrs", "deleted 2 elements of ip portolan service-cidrs"),
            ("delete element ip portolan vips { 10.96.0.1 }", "deleted an element of ip portolan vips"),
            ("add element ip portolan vips { 192.0.2.7 }", "added an element to ip portolan vips"),
            (
                "add element ip portolan frontends { 192.0.2.7 . icmp . 9 : 7 }",
                "added an element to ip portolan frontends",
            ),
            ("flush chain ip portolan balance", "rules of chain ip portolan balance"),
            ("insert rule ip portolan balance accept", "added a rule to chain ip portolan balance"),
            ("replace rule ip portolan undefined handle", "chain ip portolan undefined"),
            ("delete chain ip portolan prerouting", "deleted chain ip portolan prerouting"),
            ("chain ip portolan input { policy drop ; }", "chain ip portolan input"),
            ("add table ip portolan { flags dormant ; }", "changed table ip portolan"),
        ];
        for (number, (command, deed)) in damages.into_iter().enumerate() {
            // Many in a row are a fight, in which repairs are made after a pause; a new agent knows of none.
            if number % 3 == 2 {
                agent.shutdown.cancel();
                agent.task.await.expect("no panic").expect("a clean end");
                agent = start_with(&api, NEVER);
                agent.commits(0).await;
                repairs = 0;
            }
            let damage = match command.ends_with("handle") {
                true => format!("{command} {} drop", handle("undefined")),
                false => command.to_owned(),
            };
            nft(&damage);
            repairs += 1;
            let text = agent.repaired(repairs).await;
            assert!(text.starts_with("nft (pid ") && text.contains(deed), "{damage}: {text}");
            assert_eq!(reading(), whole, "{damage}");
            assert_eq!(ask(&client), PODS[0], "{damage}: a flow that was there");
            assert_eq!(asks_anew(), PODS[0], "{damage}: a new flow");
        }
    });
}

#[test]
fn what_others_do_in_tables_of_their_own_is_nothing_to_the_agent() {
    on_node("what others do in tables of their own is nothing to the agent", async || {
        cable().expect("a node and a pod");
        let mut agent = start_with(&dns(&PODS[..1]), NEVER);
        let commits = agent.commits(0).await;
        let mut other = Nftables::open(64 * 1024).expect("a socket");
        let mut commit = |act: &dyn Fn(&mut Batch)| {
            let mut batch = Batch::new();
            act(&mut batch);
            other.commit(batch).expect("a commit");
        };
        for _ in 0..500 {
            commit(&|batch| {
                batch.add_table(Family::Ip, "firewall", "");
                batch.add_chain(Family::Ip, "firewall", "portolan", None);
            });
            commit(&|batch| batch.delete_table(Family::Ip, "firewall"));
        }
        // What comes after them is noticed, so they were heard.
        commit(&|batch| batch.flush_set(Family::Ip, "portolan", "vips"));
        agent.repaired(1).await;
        assert_eq!(agent.commits(commits).await, commits + 1);
    });
}

#[test]
fn what_was_missed_is_found_by_the_slow_check() {
    on_node("what was missed is found by the slow check", async || {
        cable().expect("a node and a pod");
        let mut agent = start_with(&dns(&PODS[..1]), Duration::from_millis(20));
        agent.commits(0).await;
        let whole = reading();
        let mut engine = Engine::open(Options::default()).expect("an engine");
        engine.remove().expect("removed");
        let text = agent.repaired(1).await;
        assert!(text.contains("table ip portolan"), "{text}");
        assert_eq!(reading(), whole);
    });
}
