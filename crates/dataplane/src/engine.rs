//! The shell: a plan into the kernel's tables, and back.

use std::io;
use std::time::{Duration, Instant};

use portolan_plan::model::{Frontend, Plan, PlanChange};
use portolan_sys::netlink::errno;
use portolan_sys::nft::{Batch, CounterInfo, Nftables};

use crate::encode::{self, FAMILIES};
use crate::mirror::Mirror;
use crate::read::{self, Reading, Unfit};
use crate::ruleset;
use crate::unit::{Finding, Op, Packer, Unit};

/// How an [`Engine`] works.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of the two tables (families `ip` and `ip6`).
    pub table: String,
    /// The most bytes of one batch; what the socket allows sets a further limit (in a user namespace about
    /// `2 * net.core.wmem_max`).
    pub batch_limit: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { table: "portolan".into(), batch_limit: 8 << 20 }
    }
}

/// What a change did.
#[must_use]
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Transactions committed.
    pub batches: usize,
    /// Elements added and removed.
    pub elements: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// Time spent deciding and encoding.
    pub encode: Duration,
    /// Time spent in the kernel.
    pub kernel: Duration,
    /// UDP frontends that adopted tables had and the plan doesn't have: they went while nobody looked, and connection
    /// tracking still carries their flows. What changes from plan to plan, the planner says.
    pub stray_udp: Vec<Frontend>,
    /// What of the plan is carried otherwise than asked, because of a limit.
    pub findings: Vec<Finding>,
    /// Why tables were built anew, if they were.
    pub rebuilt: Option<String>,
}

/// What the tables' counters say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets to a cluster IP from outside, refused.
    pub from_outside: u64,
    /// Packets to an address of the Service ranges that no Service has.
    pub unallocated: u64,
    /// Packets to a port that a Service's address doesn't have, which would have gone back where they came from.
    pub bounced: u64,
    /// Connections to a frontend with backends that found none: always zero.
    pub missed: u64,
}

/// Why an engine failed. The kernel holds what it held before the batch that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a batch, or the socket failed.
    #[error("nf_tables: {0}")]
    Kernel(#[from] io::Error),
    /// One Service's change is larger than the socket takes at once.
    #[error("a batch of {bytes} bytes is more than the socket takes ({limit}): raise net.core.wmem_max")]
    TooLarge {
        /// The batch.
        bytes: usize,
        /// What the socket takes.
        limit: usize,
    },
    /// `apply` before a first successful `sync`, or after a failure: call `sync` with the whole plan.
    #[error(
        "the engine has not been given a whole plan since it was opened or since its last failure: sync first"
    )]
    NotSynced,
}

/// The nftables engine of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Engine {
    table: String,
    limit: usize,
    kernel: Nftables,
    state: State,
    /// The namespace's generation after our last commit: if it is another one now, somebody else committed something.
    generation: u32,
}

/// What is known of the kernel's state.
#[derive(Debug)]
enum State {
    /// Nothing: it is to be read first.
    Unread,
    /// All of it.
    Known(Box<Mirror>),
}

/// The most that the tables' fixed part takes of a batch.
pub(crate) const FIXED_SIZE: usize = 160 * 1024;

impl Engine {
    /// Opens the engine in the calling thread's network namespace. Nothing is written before [`Engine::sync`], which adopts
    /// tables of this version's shape with all they hold and replaces others.
    pub fn open(options: Options) -> Result<Engine, Error> {
        let kernel = Nftables::open(options.batch_limit)?;
        let limit = kernel.limit()?.min(options.batch_limit);
        Ok(Engine { table: options.table, limit, kernel, state: State::Unread, generation: 0 })
    }

    /// The most bytes of a batch, as the socket grants them.
    pub fn batch_limit(&self) -> usize {
        self.limit
    }

    /// Makes the kernel equal to a whole plan, whatever it holds. Tables of this shape are adopted: what is right in them stays
    /// as it is, so a restart of the caller doesn't touch a connection.
    pub fn sync(&mut self, plan: &Plan) -> Result<Applied, Error> {
        let started = Instant::now();
        let mut applied = Applied::default();
        let known = matches!(self.state, State::Known(_)) && self.kernel.generation()? == self.generation;
        let state = std::mem::replace(&mut self.state, State::Unread);
        let mut build = None;
        let mut repairs = Vec::new();
        let mut mirror = match state {
            State::Known(mirror) if known => mirror,
            _ => match read::contents(&mut self.kernel, &self.table)? {
                Ok(contents) => {
                    let (mirror, ops) = Mirror::adopt(contents);
                    repairs = ops;
                    Box::new(mirror)
                }
                Err(unfit) => {
                    build = Some(unfit);
                    Box::default()
                }
            },
        };
        let mut writer = Writer::new(&self.table, self.limit, &mut self.kernel);
        if let Some(unfit) = build {
            writer.build()?;
            if let Unfit::Other(text) = unfit {
                applied.rebuilt = Some(text);
            }
        }
        let mut packer = Packer::new(writer.room());
        // A batch of their own: what they add may be deleted by the plan, and a batch deletes first.
        packer.push(Unit { switch: repairs, ..Unit::default() }, &mut |ops| writer.commit(&ops))?;
        packer.flush(&mut |ops| writer.commit(&ops))?;
        mirror.whole(plan, &mut |unit| {
            note(&mut applied, &unit);
            packer.push(unit, &mut |ops| writer.commit(&ops))
        })?;
        packer.flush(&mut |ops| writer.commit(&ops))?;
        let sent = writer.finish()?;
        self.done(started, mirror, sent, applied)
    }

    /// Makes the kernel follow a change, at a cost that depends on the change alone.
    pub fn apply(&mut self, change: &PlanChange) -> Result<Applied, Error> {
        let started = Instant::now();
        let mut applied = Applied::default();
        let State::Known(mut mirror) = std::mem::replace(&mut self.state, State::Unread) else {
            return Err(Error::NotSynced);
        };
        let mut writer = Writer::new(&self.table, self.limit, &mut self.kernel);
        let mut packer = Packer::new(writer.room());
        mirror.change(change, &mut |unit| {
            note(&mut applied, &unit);
            packer.push(unit, &mut |ops| writer.commit(&ops))
        })?;
        packer.flush(&mut |ops| writer.commit(&ops))?;
        let sent = writer.finish()?;
        let before = self.generation;
        let applied = self.done(started, mirror, sent, applied)?;
        // Each transaction is one generation. If there were more, then somebody else's: the next sync has to look.
        if self.generation.wrapping_sub(before) as usize != applied.batches {
            self.generation = before;
        }
        Ok(applied)
    }

    fn done(
        &mut self,
        started: Instant,
        mirror: Box<Mirror>,
        sent: Sent,
        mut applied: Applied,
    ) -> Result<Applied, Error> {
        applied.batches = sent.batches;
        applied.elements = sent.elements;
        applied.bytes = sent.bytes;
        applied.kernel = sent.time;
        applied.encode = started.elapsed().saturating_sub(sent.time);
        self.generation = self.kernel.generation()?;
        self.state = State::Known(mirror);
        Ok(applied)
    }

    /// Reads the kernel.
    pub fn read(&mut self) -> Result<Reading, Error> {
        Ok(match read::contents(&mut self.kernel, &self.table)? {
            Ok(contents) => Mirror::adopt(contents).0.reading(),
            Err(_) => Reading::default(),
        })
    }

    /// What the tables' counters say, of both families together.
    pub fn counters(&mut self) -> Result<Counters, Error> {
        let mut all = Counters::default();
        for family in FAMILIES.map(ruleset::family) {
            let mut read = |name| -> io::Result<u64> {
                match self.kernel.counter(family, &self.table, name) {
                    Ok(CounterInfo { packets, .. }) => Ok(packets),
                    Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(0),
                    Err(error) => Err(error),
                }
            };
            all.from_outside += read(ruleset::COUNTER_OUTSIDE)?;
            all.unallocated += read(ruleset::COUNTER_UNALLOCATED)?;
            all.bounced += read(ruleset::COUNTER_BOUNCED)?;
            all.missed += read(ruleset::COUNTER_MISSED)?;
        }
        Ok(all)
    }

    /// Removes the tables, if they are there.
    pub fn remove(&mut self) -> Result<(), Error> {
        self.state = State::Unread;
        let mut batch = Batch::new();
        delete(&mut self.kernel, &self.table, &mut batch)?;
        self.kernel.commit(batch)?;
        Ok(())
    }
}

/// Deletes the tables that there are.
fn delete(kernel: &mut Nftables, table: &str, batch: &mut Batch) -> io::Result<()> {
    for family in FAMILIES.map(ruleset::family) {
        if kernel.table(family, table)?.is_some() {
            batch.delete_table(family, table);
        }
    }
    Ok(())
}

fn note(applied: &mut Applied, unit: &Unit) {
    applied.stray_udp.extend(&unit.stray_udp);
    applied.findings.extend(unit.findings.iter().cloned());
}

/// Writes batches. On a first load the fixed part goes with the first batch and the base chains with the last: no packet meets
/// tables that are half full, and tables that fit one batch replace others in one transaction.
struct Writer<'a> {
    table: &'a str,
    limit: usize,
    kernel: &'a mut Nftables,
    first_load: bool,
    /// What goes before the first batch's operations.
    prefix: Option<Batch>,
    /// The batch to send when it is known whether it is the last.
    pending: Option<Batch>,
    sent: Sent,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    batches: usize,
    elements: usize,
    bytes: usize,
    time: Duration,
}

impl<'a> Writer<'a> {
    fn new(table: &'a str, limit: usize, kernel: &'a mut Nftables) -> Writer<'a> {
        Writer { table, limit, kernel, first_load: false, prefix: None, pending: None, sent: Sent::default() }
    }

    /// How much the packer may put into a batch.
    fn room(&self) -> usize {
        // Each list of elements has a head: one for each set, and one more for each 60 KiB.
        let heads = 8 * 1024 + self.limit / 256;
        let fixed = if self.first_load { FIXED_SIZE } else { 0 };
        self.limit.saturating_sub(heads + fixed)
    }

    /// Puts the deletion of old tables and the fixed part of new ones before all else.
    fn build(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new();
        delete(self.kernel, self.table, &mut batch)?;
        for family in FAMILIES {
            encode::foundation(&mut batch, self.table, family);
        }
        self.first_load = true;
        self.prefix = Some(batch);
        Ok(())
    }

    fn commit(&mut self, ops: &[Op]) -> Result<(), Error> {
        let mut batch = self.prefix.take().unwrap_or_default();
        encode::operations(&mut batch, self.table, ops);
        match self.pending.replace(batch) {
            Some(previous) => self.send(previous),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<Sent, Error> {
        let mut last = self.pending.take().or(self.prefix.take()).unwrap_or_default();
        if self.first_load {
            for family in FAMILIES {
                encode::hooks(&mut last, self.table, family);
            }
        }
        self.send(last)?;
        Ok(self.sent)
    }

    fn send(&mut self, batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, elements, started) = (batch.len(), batch.elements(), Instant::now());
        let sent = match self.kernel.commit(batch) {
            Ok(sent) => sent,
            Err(error) if errno(&error) == Some(libc::EMSGSIZE) => {
                return Err(Error::TooLarge { bytes, limit: self.limit });
            }
            Err(error) => return Err(error.into()),
        };
        self.sent.time += started.elapsed();
        self.sent.batches += 1;
        self.sent.elements += elements;
        self.sent.bytes += sent;
        Ok(())
    }
}
