//! The shell: a plan into the kernel's tables, and back.

use std::io;
use std::time::{Duration, Instant};

use portolan_plan::model::{Family, Frontend, Plan, PlanChange};
use portolan_sys::netlink::errno;
use portolan_sys::nft::{Batch, CounterInfo, Membership, Nftables};

use crate::encode::{self, FAMILIES};
use crate::mirror::Mirror;
use crate::read::{self, Found, Reading};
use crate::ruleset;
use crate::shape::Damage;
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
    /// Why tables of another shape were built anew, if they were.
    pub rebuilt: Option<String>,
    /// What somebody had done to the tables, as it was found and put right; empty if nothing. Of tables that another
    /// engine left, only the fixed part is spoken of.
    pub damage: Vec<String>,
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
    /// The namespace's generation for which the state is known: if it is another one now, somebody else committed something.
    generation: u32,
    /// The generation in which the fixed part was last seen whole.
    inspected: Option<u32>,
    /// Where others' commits are listened for, if they are.
    membership: Option<Membership>,
    /// While nobody listened, somebody else committed something.
    unheard: bool,
    /// The last sync failed at tables that were damaged: they are made anew, which needs nothing of what somebody left there.
    anew: bool,
}

/// What is known of the kernel's state.
#[derive(Debug)]
enum State {
    /// Nothing: it is to be read first.
    Unread,
    /// All of it.
    Known(Box<Mirror>),
}

/// A batch of more elements is committed without a listener. With one, the kernel makes a message of a page for each element
/// and keeps them all until the commit is done: for a full batch that is hundreds of megabytes.
const LOUD: usize = 256;

/// The most that the tables' fixed part takes of a batch.
pub(crate) const FIXED_SIZE: usize = 160 * 1024;

impl Engine {
    /// Opens the engine in the calling thread's network namespace. Nothing is written before [`Engine::sync`], which adopts
    /// tables of this version's shape with all they hold and replaces others.
    pub fn open(options: Options) -> Result<Engine, Error> {
        let kernel = Nftables::open(options.batch_limit)?;
        let limit = kernel.limit()?.min(options.batch_limit);
        Ok(Engine {
            table: options.table,
            limit,
            kernel,
            state: State::Unread,
            generation: 0,
            inspected: None,
            membership: None,
            unheard: false,
            anew: false,
        })
    }

    /// The netlink port of the engine's commits: a [`portolan_sys::nft::Monitor`] tells them from others' by it.
    pub fn port(&self) -> u32 {
        self.kernel.port()
    }

    /// Leaves a monitor's group while large batches are committed. Whether somebody else committed something just then is seen
    /// from the generation, and [`Engine::inspect`] says so.
    pub fn hush(&mut self, membership: Membership) {
        self.membership = Some(membership);
    }

    /// Sees to it that connections which are translated stay so when somebody deletes the tables, until they are put back.
    ///
    /// With its last nat chain the kernel gives up its nat hooks in the namespace (nf_nat_unregister_fn), and with the last
    /// rule that needs it, connection tracking (nf_ct_netns_put). Then packets of live connections pass untranslated, and
    /// whoever gets one answers with a reset. So each family has a second table, with an empty nat chain and a rule that no
    /// packet meets. It belongs to the engine's socket: it ends with the process, and `nft flush ruleset` passes it over.
    pub fn hold_translation(&mut self) -> Result<(), Error> {
        let mut batch = Batch::new();
        let table = format!("{}-hold", self.table);
        for family in FAMILIES.map(ruleset::family) {
            batch.add_owned_table(family, &table, "keeps translated connections translated");
            batch.add_chain(family, &table, "tracking", None);
            batch.add_rule(family, &table, "tracking", &ruleset::tracking());
            batch.add_chain(family, &table, "translation", Some(ruleset::HOLD));
        }
        self.kernel.commit(batch)?;
        Ok(())
    }

    /// Whether there is a reason to [`Engine::sync`]: commits that nobody heard of, or a fixed part that isn't whole; in words.
    /// Cheap: elements are not read, and nothing is where nobody has committed anything since the last time.
    pub fn inspect(&mut self) -> Result<Option<String>, Error> {
        if self.unheard {
            return Ok(Some("somebody committed something during a large load".into()));
        }
        let generation = self.kernel.generation()?;
        if self.inspected == Some(generation) {
            return Ok(None);
        }
        let known = match &self.state {
            State::Known(mirror) => Some(&**mirror),
            State::Unread => None,
        };
        let table = &self.table;
        let found = steadily(&mut self.kernel, |kernel| read::shapes(kernel, table, known, false))?;
        if !found.is_whole() {
            return Ok(Some(texts(&found, &self.table).join(", ")));
        }
        self.inspected = Some(generation);
        Ok(None)
    }

    /// The most bytes of a batch, as the socket grants them.
    pub fn batch_limit(&self) -> usize {
        self.limit
    }

    /// Makes the kernel equal to a whole plan, whatever it holds. Tables of this shape are adopted: what is right in them stays
    /// as it is, so a restart of the caller doesn't touch a connection.
    pub fn sync(&mut self, plan: &Plan) -> Result<Applied, Error> {
        let mut damaged = false;
        let result = self.sync_noting(plan, &mut damaged);
        self.anew = result.is_err() && (damaged || self.anew);
        result
    }

    /// The same; says on the way whether there was damage to put right in place.
    fn sync_noting(&mut self, plan: &Plan, damaged: &mut bool) -> Result<Applied, Error> {
        let started = Instant::now();
        let mut applied = Applied::default();
        let before = self.kernel.generation()?;
        let known = match std::mem::replace(&mut self.state, State::Unread) {
            State::Known(mirror) if before == self.generation && !self.unheard => Ok(mirror),
            State::Known(mirror) => Err(Some(mirror)),
            State::Unread => Err(None),
        };
        self.unheard = false;
        let mut found = Found::default();
        let mut put_right = Vec::new();
        let mut mirror = match known {
            Ok(mirror) => mirror,
            Err(Some(mirror)) => {
                let (table, anew) = (&self.table, self.anew);
                found =
                    steadily(&mut self.kernel, |kernel| read::tables(kernel, table, Some(&mirror), anew))?;
                put_right = mirror.restore(&found);
                applied.damage = texts(&found, &self.table);
                applied.damage.extend(lost_and_strange(&put_right));
                mirror
            }
            Err(None) => {
                let (table, anew) = (&self.table, self.anew);
                found = steadily(&mut self.kernel, |kernel| read::tables(kernel, table, None, anew))?;
                applied.damage =
                    found.damage.iter().flat_map(|(family, damage)| damage.texts(*family)).collect();
                let contents = std::mem::take(&mut found.contents);
                found.contents.ranges.clone_from(&contents.ranges);
                let (mirror, ops) = Mirror::adopt(contents);
                put_right = ops;
                if found.remember {
                    put_right.insert(0, Op::Kinds(mirror.kinds.clone()));
                }
                Box::new(mirror)
            }
        };
        *damaged = !found.damage.is_empty();
        applied.rebuilt = found.build.values().flatten().next().cloned();
        let mut writer = Writer::new(&self.table, self.limit, &mut self.kernel, self.membership.as_ref());
        writer.put_right(found)?;
        let mut packer = Packer::new(writer.room());
        // A batch of their own: what they add may be deleted by the plan, and a batch deletes first.
        packer.push(Unit { before: put_right, ..Unit::default() }, &mut |ops| writer.commit(&ops))?;
        packer.flush(&mut |ops| writer.commit(&ops))?;
        mirror.whole(plan, &mut |unit| {
            note(&mut applied, &unit);
            packer.push(unit, &mut |ops| writer.commit(&ops))
        })?;
        packer.flush(&mut |ops| writer.commit(&ops))?;
        let sent = writer.finish()?;
        self.done(started, before, mirror, sent, applied)
    }

    /// Makes the kernel follow a change, at a cost that depends on the change alone.
    pub fn apply(&mut self, change: &PlanChange) -> Result<Applied, Error> {
        let started = Instant::now();
        let mut applied = Applied::default();
        let State::Known(mut mirror) = std::mem::replace(&mut self.state, State::Unread) else {
            return Err(Error::NotSynced);
        };
        let mut writer = Writer::new(&self.table, self.limit, &mut self.kernel, self.membership.as_ref());
        let mut packer = Packer::new(writer.room());
        mirror.change(change, &mut |unit| {
            note(&mut applied, &unit);
            packer.push(unit, &mut |ops| writer.commit(&ops))
        })?;
        packer.flush(&mut |ops| writer.commit(&ops))?;
        let sent = writer.finish()?;
        self.done(started, self.generation, mirror, sent, applied)
    }

    fn done(
        &mut self,
        started: Instant,
        before: u32,
        mirror: Box<Mirror>,
        sent: Sent,
        mut applied: Applied,
    ) -> Result<Applied, Error> {
        applied.batches = sent.batches;
        applied.elements = sent.elements;
        applied.bytes = sent.bytes;
        applied.kernel = sent.time;
        applied.encode = started.elapsed().saturating_sub(sent.time);
        // Each transaction begins one generation. If there were more, they were somebody else's: the next sync has to look.
        self.generation = before.wrapping_add(sent.batches as u32);
        self.unheard |= sent.unheard;
        self.state = State::Known(mirror);
        Ok(applied)
    }

    /// Reads the kernel. Tables whose fixed part isn't as this version writes it do nothing that could be told.
    pub fn read(&mut self) -> Result<Reading, Error> {
        let found = read::tables(&mut self.kernel, &self.table, None, false)?;
        Ok(match found.is_whole() {
            true => Mirror::adopt(found.contents).0.reading(),
            false => Reading::default(),
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
        for family in FAMILIES {
            delete(&mut self.kernel, &self.table, family, &mut batch)?;
        }
        self.kernel.commit(batch)?;
        Ok(())
    }
}

/// Reads until what isn't whole was read in one piece: a commit in between, such as the deletion of the table, would else show
/// as damage that was never there. At most so often: somebody may commit without end.
fn steadily(
    kernel: &mut Nftables,
    mut read: impl FnMut(&mut Nftables) -> io::Result<Found>,
) -> io::Result<Found> {
    const ATTEMPTS: usize = 5;
    let mut attempts = 0;
    loop {
        let before = kernel.generation()?;
        let found = read(kernel)?;
        attempts += 1;
        if found.is_whole() || attempts == ATTEMPTS || kernel.generation()? == before {
            return Ok(found);
        }
    }
}

/// Deletes a family's table, if there is one.
fn delete(kernel: &mut Nftables, table: &str, family: Family, batch: &mut Batch) -> io::Result<()> {
    let family = ruleset::family(family);
    if kernel.table(family, table)?.is_some() {
        batch.delete_table(family, table);
    }
    Ok(())
}

fn note(applied: &mut Applied, unit: &Unit) {
    applied.stray_udp.extend(&unit.stray_udp);
    applied.findings.extend(unit.findings.iter().cloned());
}

/// What is wrong with tables that are ours, in words.
fn texts(found: &Found, table: &str) -> Vec<String> {
    let gone = found.build.iter().map(|(family, why)| {
        why.clone().unwrap_or_else(|| format!("table {} {table} was gone", ruleset::family(*family).name()))
    });
    let remember = found.remember.then(|| format!("chain {} had other rules", ruleset::CHAIN_REMEMBER));
    let damage = found.damage.iter().flat_map(|(family, damage)| damage.texts(*family));
    gone.chain(damage).chain(remember.filter(|_| found.build.is_empty())).collect()
}

/// Which elements had to be put back or taken out, in words.
fn lost_and_strange(ops: &[Op]) -> impl Iterator<Item = String> {
    let count = |is: fn(&Op) -> bool| ops.iter().filter(|op| is(op)).count();
    let counts = [
        (count(|op| matches!(op, Op::Add(_))), "missing"),
        (count(|op| matches!(op, Op::Delete(_))), "not ours"),
    ];
    let sets = count(|op| matches!(op, Op::Node(..)));
    let elements = counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, how)| match count {
        1 => format!("an element was {how}"),
        _ => format!("{count} elements were {how}"),
    });
    elements.chain((sets > 0).then(|| format!("{sets} of the node's sets differed")))
}

/// Writes batches. On a first load the fixed part goes with the first batch and the base chains with the last: no packet meets
/// tables that are half full, and tables that fit one batch replace others in one transaction.
struct Writer<'a> {
    table: &'a str,
    limit: usize,
    kernel: &'a mut Nftables,
    membership: Option<&'a Membership>,
    /// Families whose base chains, all or (of a damaged table) some, go with the last batch.
    hooks: Vec<(Family, Option<Damage>)>,
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
    /// While the listener was away there were other commits than ours.
    unheard: bool,
}

impl<'a> Writer<'a> {
    fn new(
        table: &'a str,
        limit: usize,
        kernel: &'a mut Nftables,
        membership: Option<&'a Membership>,
    ) -> Writer<'a> {
        Writer {
            table,
            limit,
            kernel,
            membership,
            hooks: Vec::new(),
            prefix: None,
            pending: None,
            sent: Sent::default(),
        }
    }

    /// How much the packer may put into a batch.
    fn room(&self) -> usize {
        // Each list of elements has a head: one for each set, and one more for each 60 KiB.
        let heads = 8 * 1024 + self.limit / 256;
        let fixed = if self.hooks.is_empty() { 0 } else { FIXED_SIZE };
        self.limit.saturating_sub(heads + fixed)
    }

    /// Puts before all else what makes the fixed part whole: of a table that is made anew, the deletion of the old one too.
    /// With a table go the clients that it remembered and what its counters said; what is put right in place keeps both.
    fn put_right(&mut self, found: Found) -> Result<(), Error> {
        if found.build.is_empty() && found.damage.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for family in found.build.into_keys() {
            delete(self.kernel, self.table, family, &mut batch)?;
            encode::foundation(&mut batch, self.table, family);
            self.hooks.push((family, None));
        }
        for (family, damage) in found.damage {
            let ranges = found.contents.ranges.iter().filter(|(f, _)| *f == family).map(|(_, place)| *place);
            encode::repair(&mut batch, self.table, family, &damage, &ranges.collect::<Vec<_>>());
            self.hooks.push((family, Some(damage)));
        }
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
        for (family, damage) in &self.hooks {
            encode::hooks(&mut last, self.table, *family, damage.as_ref());
        }
        self.send(last)?;
        Ok(self.sent)
    }

    fn send(&mut self, batch: Batch) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, elements) = (batch.len(), batch.elements());
        let away = match self.membership.filter(|_| elements > LOUD) {
            Some(membership) => {
                // Before the place in the group is given up: what is committed in between is heard, and counted as well.
                let before = self.kernel.generation()?;
                membership.leave()?;
                Some((membership, before))
            }
            None => None,
        };
        let started = Instant::now();
        let committed = self.kernel.commit(batch);
        let took = started.elapsed();
        if let Some((membership, before)) = away {
            membership.join()?;
            let begun = self.kernel.generation()?.wrapping_sub(before);
            self.sent.unheard |= begun != u32::from(committed.is_ok());
        }
        let sent = match committed {
            Ok(sent) => sent,
            Err(error) if errno(&error) == Some(libc::EMSGSIZE) => {
                return Err(Error::TooLarge { bytes, limit: self.limit });
            }
            Err(error) => return Err(error.into()),
        };
        self.sent.time += took;
        self.sent.batches += 1;
        self.sent.elements += elements;
        self.sent.bytes += sent;
        Ok(())
    }
}
