//! Two agents in one network namespace: the second is refused, and takes over when the first is gone.

use std::io::BufRead as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use portolan_agent::lock::Lock;

use crate::kernel::{dns, on_node, start};

const ROLE: &str = "PORTOLAN_TEST_HOLDER";

/// Not a promise but a role: does nothing unless the binary was started as a holder.
#[test]
fn the_holders_role() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let lock = Lock::take("portolan", "node-7").await.expect("the lock");
        println!("\nheld");
        lock.serve().await;
    });
}

/// Another process that holds the lock in the calling thread's network namespace.
fn holder() -> Child {
    let program = std::env::current_exe().expect("this program");
    let mut child = Command::new(program)
        .args(["lock::the_holders_role", "--exact", "--nocapture"])
        .env(ROLE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("a holder");
    let lines = std::io::BufReader::new(child.stdout.as_mut().expect("a pipe")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "held"), "the holder has ended");
    child
}

#[test]
fn a_second_agent_is_refused_and_told_of_the_first() {
    on_node("a second agent is refused and told of the first", async || {
        let mut child = holder();
        let refused = Lock::take_within(Duration::from_millis(200), "portolan", "node-8").await;
        let text = refused.expect_err("a second one").to_string();
        for part in [format!("pid {}", child.id()), "node node-7".into(), "stop it first".into()] {
            assert!(text.contains(&part), "{text}");
        }
        Lock::take_within(Duration::ZERO, "another", "node-8").await.expect("another table's lock");

        // One that is killed leaves nothing behind, and those who wait go on at once.
        let waiting = tokio::spawn(Lock::take_within(Duration::from_secs(30), "portolan", "node-8"));
        tokio::task::yield_now().await;
        child.kill().expect("killed");
        child.wait().expect("reaped");
        let began = std::time::Instant::now();
        waiting.await.expect("no panic").expect("the lock");
        assert!(began.elapsed() < Duration::from_secs(20), "it waited to the end of its patience");
    });
}

#[test]
fn an_agent_holds_the_lock_for_as_long_as_it_runs() {
    on_node("an agent holds the lock for as long as it runs", async || {
        let api = dns(&[]);
        let mut agent = start(&api);
        agent.commits(0).await;
        let second = start(&api);
        let error = second.task.await.expect("no panic").expect_err("a second agent");
        let own = format!("pid {}, node here", std::process::id());
        assert!(format!("{error:#}").contains(&own), "{error:#}");
        agent.shutdown.cancel();
        agent.task.await.expect("no panic").expect("a clean end");
        start(&api).commits(0).await;
    });
}
