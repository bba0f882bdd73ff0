//! Operations, and the units of them that are never torn apart.

use std::net::IpAddr;
use std::time::Duration;

use portolan_plan::model::{Family, Frontend};

use crate::element::{Element, Place};

/// A set that belongs to the node and is replaced as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeSet {
    /// Addresses on which node ports answer.
    NodeAddresses,
    /// Ranges of cluster IPs.
    ServiceCidrs,
    /// Those of them that refuse connections from outside: all or none.
    ClosedCidrs,
    /// Sources that count as inside.
    Inside,
    /// Sources whose connections to cluster IPs keep their address.
    Unmasqueraded,
}

/// From the first address to the last, both included.
pub type Interval = (IpAddr, IpAddr);

/// One operation on the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Deletes an element, which is there.
    Delete(Element),
    /// Adds an element, whose key is not there.
    Add(Element),
    /// Replaces a set of the node.
    Node(Family, NodeSet, Vec<Interval>),
    /// Replaces the affinity timeouts: kind 1, 2, and so on.
    Kinds(Vec<Duration>),
    /// Makes a set of source ranges; all those that there will be then.
    Ranges {
        /// Whose table.
        family: Family,
        /// The new one.
        new: Place,
        /// All.
        all: Vec<Place>,
    },
}

/// Operations that belong together, usually those of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// Additions that nothing in the kernel leads to yet: may be committed earlier, in pieces.
    pub before: Vec<Op>,
    /// What changes the way of packets: one transaction.
    pub switch: Vec<Op>,
    /// Deletions of what nothing leads to any more: may be committed later, in pieces.
    pub after: Vec<Op>,
    /// UDP frontends that the kernel had and no plan that we know of.
    pub stray_udp: Vec<Frontend>,
    /// What is carried otherwise than asked.
    pub findings: Vec<Finding>,
}

/// A part of the plan that is carried otherwise than asked, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The Service (`namespace/name`).
    pub service: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl Op {
    /// At most so many bytes of a batch.
    pub fn size(&self) -> usize {
        match self {
            Op::Delete(element) | Op::Add(element) => element.size(),
            Op::Node(_, _, intervals) => 128 + intervals.len() * 80,
            Op::Kinds(kinds) => 128 + kinds.len() * 1200,
            Op::Ranges { all, .. } => 1024 + all.len() * 900,
        }
    }
}

impl Unit {
    /// At most so many bytes of a batch.
    pub fn size(&self) -> usize {
        [&self.before, &self.switch, &self.after].into_iter().flatten().map(Op::size).sum()
    }
}

/// Fills batches with units.
#[derive(Debug)]
pub struct Packer {
    limit: usize,
    ops: Vec<Op>,
    size: usize,
}

impl Packer {
    /// For batches of at most so many bytes.
    pub fn new(limit: usize) -> Packer {
        Packer { limit, ops: Vec::new(), size: 0 }
    }

    /// Takes a unit and gives each batch that is full to `commit`. Only a unit that is too large for a batch is divided, into
    /// what goes before its switch, the switch, and what goes after.
    pub fn push<E>(&mut self, unit: Unit, commit: &mut dyn FnMut(Vec<Op>) -> Result<(), E>) -> Result<(), E> {
        let size = unit.size();
        if self.size + size > self.limit && !self.ops.is_empty() {
            self.flush(commit)?;
        }
        if size <= self.limit {
            self.size += size;
            self.ops.extend(unit.before);
            self.ops.extend(unit.switch);
            self.ops.extend(unit.after);
            return Ok(());
        }
        self.pieces(unit.before, commit)?;
        let switch: usize = unit.switch.iter().map(Op::size).sum();
        if self.size + switch > self.limit && !self.ops.is_empty() {
            self.flush(commit)?;
        }
        self.size += switch;
        self.ops.extend(unit.switch);
        self.pieces(unit.after, commit)
    }

    /// Gives what is left to `commit`.
    pub fn flush<E>(&mut self, commit: &mut dyn FnMut(Vec<Op>) -> Result<(), E>) -> Result<(), E> {
        self.size = 0;
        match std::mem::take(&mut self.ops) {
            ops if ops.is_empty() => Ok(()),
            ops => commit(ops),
        }
    }

    fn pieces<E>(&mut self, ops: Vec<Op>, commit: &mut dyn FnMut(Vec<Op>) -> Result<(), E>) -> Result<(), E> {
        for op in ops {
            let size = op.size();
            if self.size + size > self.limit && !self.ops.is_empty() {
                self.flush(commit)?;
            }
            self.size += size;
            self.ops.push(op);
        }
        Ok(())
    }
}
