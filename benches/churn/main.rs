//! What the agent costs at scale: its start, endpoints that change all the time, and its start after a crash.
//!
//! `cargo bench --bench churn [-- SERVICES ENDPOINTS]... [RATE=1000] [SECONDS=60]` prints a row for each pair (10,000 x 10
//! and 100,000 x 10 where none is given). The real binary runs as `portolan agent` in a process and a network namespace of its
//! own; this process is the API that it follows, and the witness that asks the kernel, not the agent, what it has. Asserts
//! that every change arrives, and that a start after a crash touches nothing but what changed meanwhile; no time.

mod agent; // the process, and what it uses
mod api; // what it follows
mod kernel; // what it did

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use portolan_sys::namespace;

use crate::agent::{Agent, Usage};
use crate::api::{Api, Size};
use crate::kernel::{Kernel, Listener};

/// How long anything may take before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(600);
/// An agent that used no processor time for so long has nothing to do.
const IDLE: Duration = Duration::from_millis(500);

struct Row {
    start: Duration,
    started: Usage,
    /// Idle, after the start.
    begin: Usage,
    end: Usage,
    /// How long endpoints changed.
    churned: Duration,
    commits: u32,
    /// From the write of each event to the kernel's word, in order of length.
    latencies: Vec<Duration>,
    restart: Duration,
    restarted: Usage,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let named =
        |name: &str| arguments.iter().find_map(|a| a.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
    let (rate, seconds) = (named("RATE").unwrap_or(1000), named("SECONDS").unwrap_or(60));
    let numbers: Vec<usize> = arguments.iter().filter_map(|arg| arg.parse().ok()).collect();
    let mut sizes: Vec<Size> = numbers
        .chunks_exact(2)
        .map(|pair| Size { services: pair[0], endpoints: pair[1], node_ports: 0 })
        .collect();
    if sizes.is_empty() {
        sizes = [10_000, 100_000].map(|services| Size { services, endpoints: 10, node_ports: 0 }).to_vec();
    }
    println!("{rate} changes a second for {seconds} seconds");
    println!(
        "{:>8} {:>4} | {:>8} {:>6} {:>8} {:>8} | {:>8} {:>8} {:>9} {:>9} {:>9} {:>6} {:>8} {:>8} | {:>8} {:>6} {:>8}",
        "services",
        "each",
        "start",
        "cpu",
        "MB RSS",
        "MB peak",
        "changes",
        "commits",
        "p50",
        "p99",
        "max",
        "cpu/s",
        "MB begin",
        "MB end",
        "restart",
        "cpu",
        "MB peak"
    );
    for size in sizes {
        let netns = match namespace::new_netns() {
            Ok(netns) => netns,
            Err(error) => return println!("skipped: churn: no network namespace: {error}"),
        };
        let row = namespace::in_netns(netns.as_fd(), || measure(size, rate, seconds)).expect("a namespace");
        let mega = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
        let time = |duration: Duration| format!("{duration:.2?}");
        let percentile = |percent: usize| time(row.latencies[(row.latencies.len() - 1) * percent / 100]);
        println!(
            "{:>8} {:>4} | {:>8} {:>6.2} {:>8} {:>8} | {:>8} {:>8} {:>9} {:>9} {:>9} {:>6.3} {:>8} {:>8} | {:>8} {:>6.2} {:>8}",
            size.services,
            size.endpoints,
            time(row.start),
            row.started.cpu,
            mega(row.started.resident),
            mega(row.begin.peak),
            row.latencies.len(),
            row.commits,
            percentile(50),
            percentile(99),
            percentile(100),
            (row.end.cpu - row.begin.cpu) / row.churned.as_secs_f64(),
            mega(row.begin.resident),
            mega(row.end.resident),
            time(row.restart),
            row.restarted.cpu,
            mega(row.restarted.peak),
        );
    }
}

fn measure(size: Size, rate: usize, seconds: usize) -> Row {
    kernel::raise_loopback();
    let (epoch, changes) = (Instant::now(), rate * seconds);
    let directory = tempfile::tempdir().expect("a directory");
    let api = Api::new(size, changes + 1, epoch); // one more after the restart
    let at = api.serve().expect("the API");
    let mut kernel = Kernel::open();

    let began = Instant::now();
    let mut agent = Agent::start(at, directory.path());
    await_that(Duration::from_millis(2), || {
        let _ = agent.usage(); // it is there
        kernel.hooked()
    });
    let (start, started) = (began.elapsed(), agent.usage());
    assert_eq!(kernel.frontends(size.services), size.services, "every Service has its frontend");
    if let Some(backends) = kernel.backends() {
        assert_eq!(backends, size.services * size.endpoints, "every endpoint has its slot");
    }
    let begin = idle(&mut agent);

    let listener = Listener::start(api.clone(), changes + 1, epoch);
    let heard = listener.heard();
    let generation = kernel.generation();
    let began = Instant::now();
    for number in 0..changes {
        let due = began + Duration::from_secs(1) * number as u32 / rate as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        assert_eq!(api.change(), number);
    }
    let last = Instant::now();
    while heard.changes.load(Ordering::Acquire) < changes && last.elapsed() < PATIENCE / 20 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let churned = began.elapsed();
    let commits = kernel.generation().wrapping_sub(generation);
    let end = agent.usage();
    let latency = |number| heard.arrived(number)?.checked_sub(api.sent(number)?);
    let mut latencies: Vec<Duration> = (0..changes).filter_map(latency).collect();
    assert_eq!(latencies.len(), changes, "every change arrives in the kernel");
    latencies.sort_unstable();

    drop(agent);
    let (added, deleted) = (heard.added.load(Ordering::Acquire), heard.deleted.load(Ordering::Acquire));
    let last = api.change();
    let began = Instant::now();
    let mut agent = Agent::start(at, directory.path());
    await_that(Duration::from_millis(1), || {
        let _ = agent.usage();
        heard.arrived(last).is_some()
    });
    let restart = began.elapsed();
    let restarted = agent.usage();
    let touched =
        (heard.added.load(Ordering::Acquire) - added, heard.deleted.load(Ordering::Acquire) - deleted);
    let expected = api.elements(last);
    assert_eq!(touched, (expected, expected), "elements added and deleted by a start after one change");
    drop(agent);
    api.close(at);
    Row { start, started, begin, end, churned, commits, latencies, restart, restarted }
}

/// Asks again and again.
fn await_that(every: Duration, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "nothing for {PATIENCE:?}");
        std::thread::sleep(every);
    }
}

/// What an agent has used once it has nothing to do any more.
fn idle(agent: &mut Agent) -> Usage {
    let mut before = agent.usage();
    loop {
        std::thread::sleep(IDLE);
        let now = agent.usage();
        if now.cpu == before.cpu {
            return now;
        }
        before = now;
    }
}
