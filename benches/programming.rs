//! What it costs to put Services into the kernel: all of them, and one change.
//!
//! `cargo bench --bench programming [-- SERVICES ENDPOINTS]...` prints a row for each pair (10,000 x 10 and
//! 100,000 x 10 where none is given), and then the same with somebody who listens to the commits, as the agent does.
//! Works in a network namespace of its own; asserts no time.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use portolan_dataplane::{Applied, Engine, Options};
use portolan_plan::model::*;
use portolan_sys::nft::{Heard, Monitor};
use portolan_sys::{namespace, packet};

/// How often one endpoint changes.
const CHANGES: usize = 4000;

fn set_name() -> SetName {
    SetName { port: "".into(), protocol: Protocol::Tcp, family: Family::V4, scope: Scope::Cluster }
}

/// A Service with a cluster IP and so many endpoints.
fn part(number: usize, endpoints: usize) -> Arc<ServicePlan> {
    let mut part = ServicePlan::default();
    let address = IpAddr::V4(Ipv4Addr::from(0x0a60_0000 + number as u32));
    let base = (number * 64) as u32;
    let backends: BTreeSet<Backend> = (0..endpoints as u32)
        .map(|i| Backend { address: IpAddr::V4(Ipv4Addr::from(0x1000_0000 + base + i)), port: 8080 })
        .collect();
    part.sets.insert(set_name(), BackendSet { backends, affinity: None });
    part.frontends.insert(
        Frontend::Address { address, protocol: Protocol::Tcp, port: 80 },
        FrontendPlan {
            kind: FrontendKind::ClusterIp,
            action: Action::Balance(set_name()),
            inside: None,
            masquerade: Masquerade::Outsiders,
            source_ranges: None,
        },
    );
    Arc::new(part)
}

fn name(number: usize) -> ServiceName {
    ServiceName::new("bench", &format!("service-{number}"))
}

fn rss() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = pages.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    pages * 4096
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// Hears commits until it is told to stop; gives how many.
fn listen(mut monitor: Monitor, stop: &AtomicBool) -> usize {
    let mut commits = 0;
    while !stop.load(Ordering::Relaxed) {
        let _ = packet::wait_readable(&[monitor.as_fd()], Duration::from_millis(10)).expect("a wait");
        monitor.hear(|heard| commits += usize::from(heard != Heard::Lost)).expect("to hear");
    }
    commits
}

struct Row {
    listener: Listener,
    services: usize,
    endpoints: usize,
    load: Applied,
    memory: usize,
    adopt: Duration,
    whole: Vec<Duration>,
    kernel: Vec<Duration>,
}

/// Who else hears of the commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listener {
    None,
    /// One that leaves for as long as a large batch is committed.
    Polite,
    /// One that hears everything.
    Constant,
}

fn measure(services: usize, endpoints: usize, listener: Listener) -> Row {
    let (stop, monitor) = (AtomicBool::new(false), Monitor::open("portolan").expect("a monitor"));
    let membership = monitor.membership().expect("a membership");
    std::thread::scope(|scope| {
        match listener {
            Listener::None => membership.leave().expect("left"),
            _ => drop(scope.spawn(|| listen(monitor, &stop))),
        }
        let mut engine = Engine::open(Options::default()).expect("an engine");
        if listener == Listener::Polite {
            engine.hush(membership);
        }
        let row = load_and_change(services, endpoints, listener, engine);
        stop.store(true, Ordering::Relaxed);
        row
    })
}

fn load_and_change(services: usize, endpoints: usize, listener: Listener, mut engine: Engine) -> Row {
    let mut plan = Plan::default();
    for number in 0..services {
        plan.services.insert(name(number), part(number, endpoints));
    }
    let before = rss();
    let load = engine.sync(&plan).expect("a load");
    let memory = rss().saturating_sub(before);
    let (mut whole, mut kernel) = (Vec::new(), Vec::new());
    for round in 0..CHANGES {
        // Away from the last power of two, as most changes are; there and back.
        let number = (round / 2).wrapping_mul(7919) % services;
        let count = if round % 2 == 0 { endpoints + 1 } else { endpoints };
        let mut change = PlanChange::default();
        change.services.insert(name(number), Some(part(number, count)));
        let started = Instant::now();
        let applied = engine.apply(&change).expect("a change");
        whole.push(started.elapsed());
        assert_eq!(applied.batches, 1, "one transaction a change");
        kernel.push(applied.kernel);
    }
    whole.sort_unstable();
    kernel.sort_unstable();
    let mut second = Engine::open(Options::default()).expect("an engine");
    let started = Instant::now();
    let applied = second.sync(&plan).expect("an adoption");
    let adopt = started.elapsed();
    assert_eq!(applied.elements, 0, "an adoption that changes something");
    engine.remove().expect("removed");
    Row { listener, services, endpoints, load, memory, adopt, whole, kernel }
}

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let mut sizes: Vec<(usize, usize)> = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    if sizes.is_empty() {
        sizes = vec![(10_000, 10), (100_000, 10)];
    }
    let netns = match namespace::new_netns() {
        Ok(netns) => netns,
        Err(error) => return println!("skipped: programming: no network namespace: {error}"),
    };
    println!(
        "{:>8} {:>9} {:>4} {:>10} {:>10} {:>8} {:>8} {:>8} {:>10} | {:>10} {:>10} {:>10} {:>10} {:>10}",
        "listener",
        "services",
        "each",
        "encode",
        "kernel",
        "MB sent",
        "batches",
        "MB RSS",
        "adopt",
        "change p50",
        "p99",
        "max",
        "kernel p50",
        "p99"
    );
    let listeners = [Listener::None, Listener::Polite, Listener::Constant];
    for (listener, (services, endpoints)) in
        listeners.into_iter().flat_map(|l| sizes.iter().map(move |s| (l, *s)))
    {
        let row = namespace::in_netns(netns.as_fd(), || measure(services, endpoints, listener));
        let row = row.expect("a namespace");
        let mega = |bytes: usize| format!("{:.1}", bytes as f64 / 1e6);
        let time = |duration: Duration| format!("{duration:.1?}");
        println!(
            "{:>8} {:>9} {:>4} {:>10} {:>10} {:>8} {:>8} {:>8} {:>10} | {:>10} {:>10} {:>10} {:>10} {:>10}",
            format!("{:?}", row.listener).to_lowercase(),
            row.services,
            row.endpoints,
            time(row.load.encode),
            time(row.load.kernel),
            mega(row.load.bytes),
            row.load.batches,
            mega(row.memory),
            time(row.adopt),
            time(percentile(&row.whole, 50)),
            time(percentile(&row.whole, 99)),
            time(percentile(&row.whole, 100)),
            time(percentile(&row.kernel, 50)),
            time(percentile(&row.kernel, 99)),
        );
    }
}
