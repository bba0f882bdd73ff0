//! The witness: what the kernel says of its tables, asked of it and heard from it by sockets of the bench's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use portolan_sys::netlink::{NETFILTER, Received, Socket};
use portolan_sys::nft::{Family, Nftables};

use crate::api::Api;

const TABLE: &str = "portolan";
/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_…`
const NEW_ELEMENT: u16 = 10 << 8 | 12;
const DELETED_ELEMENT: u16 = 10 << 8 | 14;
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// Two messages of a page for each change: all of a minute, should nobody find the time to read.
const BUFFER: usize = 1 << 30;

/// Asks the kernel.
pub struct Kernel(Nftables);

impl Kernel {
    pub fn open() -> Kernel {
        Kernel(Nftables::open(64 * 1024).expect("a socket"))
    }

    /// Whether packets meet the tables, which they do from the last transaction of a first load on.
    pub fn hooked(&mut self) -> bool {
        let chains = self.0.chains(Family::Ip, TABLE).expect("the chains");
        chains.iter().any(|chain| chain.hook.as_ref().is_some_and(|hook| hook.kind == "nat"))
    }

    /// How many Services' frontends are there.
    pub fn frontends(&mut self, services: usize) -> usize {
        let key = |service| {
            let [a, b, c, d] = Api::vip(service).octets();
            vec![[a, b, c, d, 6, 0, 0, 0, 0, 80, 0, 0]]
        };
        let mut there = 0;
        let asked = (0..services).map(key);
        self.0.elements_at(Family::Ip, TABLE, "frontends", asked, |_| there += 1).expect("the frontends");
        there
    }

    /// How many backends are there, where the kernel counts them.
    pub fn backends(&mut self) -> Option<usize> {
        let sets = self.0.sets(Family::Ip, TABLE).expect("the sets");
        sets.iter().find(|set| set.name == "slots")?.count.map(|count| count as usize)
    }

    /// The number of transactions so far.
    pub fn generation(&mut self) -> u32 {
        self.0.generation().expect("the generation")
    }
}

/// Hears of every commit and notes when each change's address came. Ends when it is dropped.
pub struct Listener {
    thread: Option<JoinHandle<()>>,
    heard: Arc<Heard>,
}

/// What was heard.
pub struct Heard {
    stop: AtomicBool,
    /// When each change came, in nanoseconds after the epoch; 0 if it didn't yet.
    arrived: Vec<AtomicU64>,
    pub changes: AtomicUsize,
    pub added: AtomicUsize,
    pub deleted: AtomicUsize,
    pub commits: AtomicUsize,
}

impl Listener {
    /// Listens in the calling thread's network namespace.
    pub fn start(api: Arc<Api>, changes: usize, epoch: Instant) -> Listener {
        let mut socket = Socket::open(NETFILTER).expect("a socket");
        socket.receive_buffer(BUFFER).expect("a buffer");
        socket.subscribe(GROUP).expect("a place in the group");
        let heard = Arc::new(Heard {
            stop: AtomicBool::new(false),
            arrived: (0..changes).map(|_| AtomicU64::new(0)).collect(),
            changes: AtomicUsize::new(0),
            added: AtomicUsize::new(0),
            deleted: AtomicUsize::new(0),
            commits: AtomicUsize::new(0),
        });
        let noted = heard.clone();
        let thread = thread::spawn(move || {
            while !noted.stop.load(Ordering::Relaxed) {
                if socket.wait(20).expect("a wait") {
                    // An error says that messages were lost: then nothing can be said.
                    while socket.try_receive(|message| noted.note(&message, &api, epoch)).expect("messages") {
                    }
                }
            }
        });
        Listener { thread: Some(thread), heard }
    }

    pub fn heard(&self) -> &Heard {
        &self.heard
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.heard.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the listener heard everything");
        }
    }
}

impl Heard {
    /// When a change came.
    pub fn arrived(&self, change: usize) -> Option<Duration> {
        Some(self.arrived[change].load(Ordering::Acquire)).filter(|at| *at > 0).map(Duration::from_nanos)
    }

    fn note(&self, message: &Received<'_>, api: &Api, epoch: Instant) {
        let count = match message.kind {
            NEW_ELEMENT => &self.added,
            DELETED_ELEMENT => &self.deleted,
            NEW_GENERATION => {
                self.commits.fetch_add(1, Ordering::Relaxed);
                return;
            }
            _ => return,
        };
        let attributes = message.attributes(4);
        if attributes.find(1).is_none_or(|table| table.str() != TABLE) {
            return;
        }
        let at = epoch.elapsed().as_nanos() as u64;
        for element in attributes.find(3).into_iter().flat_map(|list| list.inside()) {
            count.fetch_add(1, Ordering::Relaxed);
            // NFTA_SET_ELEM_DATA, NFTA_DATA_VALUE: a backend's address and port.
            let data = element.inside().find(2).and_then(|data| data.inside().find(1));
            let address = data.and_then(|data| data.value.first_chunk::<4>());
            if message.kind == NEW_ELEMENT
                && let Some(change) = address.and_then(|address| api.change_of(*address))
                && self.arrived[change].compare_exchange(0, at, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                self.changes.fetch_add(1, Ordering::Release);
            }
        }
    }
}

/// Has loopback's link up, on which the API answers.
pub fn raise_loopback() {
    let mut links = portolan_sys::link::Links::open().expect("links");
    let lo = links.index("lo").expect("loopback");
    links.set_up(lo, true).expect("up");
}
