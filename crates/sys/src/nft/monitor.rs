//! What is committed to nf_tables, what it touched of one table, and whose commit it was.
//!
//! The kernel tells the group `NFNLGRP_NFTABLES` of each object that a transaction adds or deletes, and closes with
//! `NFT_MSG_NEWGEN`, which names the process. While anybody listens it builds a message of a page for each element of each
//! transaction in the namespace (`nf_tables_setelem_notify`, freed once sent), also of our own: [`Membership`] leaves the
//! group for as long as that costs more than it tells.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::*;
use crate::netlink::{NETFILTER, Received, Socket, errno};

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
/// Room for bursts. Ordinary users get what `net.core.rmem_max` grants; beyond it, messages are lost, which is told.
const RECEIVE_BUFFER: usize = 4 << 20;
/// How many different things of one transaction are told apart: enough for a sentence.
const TOLD_APART: usize = 64;

/// Hears of the commits in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    table: String,
    /// Of the transaction that is being told: the port of its socket, and what it touched.
    port: u32,
    touched: Vec<Touch>,
}

/// One thing that a monitor hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A transaction was committed.
    Committed(Transaction),
    /// Messages were lost: nobody knows what was committed.
    Lost,
}

/// A transaction of somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The generation that it began.
    pub generation: u32,
    /// The netlink port of the socket that it came by ([`Nftables::port`]).
    pub port: u32,
    /// The process, as the machine's first PID namespace counts.
    pub process: u32,
    /// The process's name, as in `/proc/PID/comm`.
    pub program: String,
    /// What it touched of the table that is watched.
    pub touched: Vec<Touch>,
}

/// What a transaction did to one part of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The table's family.
    pub family: Family,
    /// Added or changed; else deleted.
    pub added: bool,
    /// What it is.
    pub part: Part,
    /// The chain or set that it is or is in.
    pub name: String,
    /// How many of them.
    pub count: usize,
}

/// A part of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The table as a whole.
    Table,
    /// A chain.
    Chain,
    /// A rule of a chain.
    Rule,
    /// A set or a map.
    Set,
    /// An element of a set or of a map.
    Element,
    /// A named object, such as a counter.
    Object,
}

/// The place of a monitor in the group, to be left for a while and taken again, from any thread.
#[derive(Debug)]
pub struct Membership(Socket);

impl Membership {
    /// Leaves the group.
    pub fn leave(&self) -> io::Result<()> {
        self.0.unsubscribe(GROUP)
    }

    /// Joins it again.
    pub fn join(&self) -> io::Result<()> {
        self.0.subscribe(GROUP)
    }
}

impl Monitor {
    /// Hears from now on. Of what transactions touch, it notes what is in tables of this name.
    pub fn open(table: &str) -> io::Result<Monitor> {
        let socket = Socket::open(NETFILTER)?;
        socket.receive_buffer(RECEIVE_BUFFER)?;
        socket.subscribe(GROUP)?;
        Ok(Monitor { socket, table: table.into(), port: 0, touched: Vec::new() })
    }

    /// Its place in the group.
    pub fn membership(&self) -> io::Result<Membership> {
        Ok(Membership(self.socket.duplicate()?))
    }

    /// Gives what can be heard without waiting to `each`; [`AsFd`] is readable when there is something.
    pub fn hear(&mut self, mut each: impl FnMut(Heard)) -> io::Result<()> {
        let Monitor { socket, table, port, touched } = self;
        loop {
            let received = socket.try_receive(|message| {
                // What is left of one that was not heard to its end.
                if *port != message.port {
                    *port = message.port;
                    touched.clear();
                }
                if message.kind == NEWGEN {
                    each(Heard::Committed(transaction(&message, std::mem::take(touched))));
                } else {
                    note(touched, &message, table);
                }
            });
            match received {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if errno(&error) == Some(libc::ENOBUFS) => {
                    touched.clear();
                    each(Heard::Lost);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn transaction(message: &Received<'_>, touched: Vec<Touch>) -> Transaction {
    let attributes = message.attributes(4);
    let number = |kind| attributes.find(kind).map_or(0, |a| a.u32be());
    Transaction {
        generation: number(1),
        port: message.port,
        process: number(2),
        program: attributes.find(3).map_or_else(String::new, |a| a.str()),
        touched,
    }
}

/// Notes a message about a part of the table.
fn note(touched: &mut Vec<Touch>, message: &Received<'_>, table: &str) {
    let family = match message.payload.first() {
        Some(2) => Family::Ip,
        Some(10) => Family::Ip6,
        _ => return,
    };
    // Each kind of object names its table in attribute 1 and itself, or what it is in, in the one given here.
    let (added, part, named) = match message.kind {
        NEWTABLE => (true, Part::Table, 1),
        DELTABLE => (false, Part::Table, 1),
        NEWCHAIN => (true, Part::Chain, 3),
        DELCHAIN => (false, Part::Chain, 3),
        NEWRULE => (true, Part::Rule, 2),
        DELRULE => (false, Part::Rule, 2),
        NEWSET => (true, Part::Set, 2),
        DELSET => (false, Part::Set, 2),
        NEWSETELEM => (true, Part::Element, 2),
        DELSETELEM => (false, Part::Element, 2),
        NEWOBJ => (true, Part::Object, 2),
        DELOBJ => (false, Part::Object, 2),
        _ => return,
    };
    let attributes = message.attributes(4);
    let text = |kind| attributes.find(kind).map(|a| a.value.strip_suffix(&[0]).unwrap_or(a.value));
    if text(1) != Some(table.as_bytes()) {
        return;
    }
    let name = text(named).unwrap_or_default();
    let same =
        |t: &Touch| t.family == family && t.added == added && t.part == part && t.name.as_bytes() == name;
    if let Some(known) = touched.iter().position(same) {
        touched[known].count += 1;
    } else if touched.len() < TOLD_APART || part == Part::Table {
        let name = String::from_utf8_lossy(name).into_owned();
        touched.push(Touch { family, added, part, name, count: 1 });
    }
}

impl Transaction {
    /// What it did to the table of this name, in words.
    pub fn deeds(&self, table: &str) -> String {
        let gone =
            |family| self.touched.iter().any(|t| t.part == Part::Table && !t.added && t.family == family);
        // A table's parts are told as deleted before it; they say no more than it does.
        let told = self.touched.iter().filter(|t| t.part == Part::Table || !gone(t.family));
        let told: Vec<String> = told.map(|t| t.text(table)).collect();
        const SAID: usize = 3;
        match told.len().saturating_sub(SAID) {
            0 => told.join(", "),
            more => format!("{} and {more} more", told[..SAID].join(", ")),
        }
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.program.as_str() {
            "" => write!(f, "somebody"),
            program => write!(f, "{program} (pid {})", self.process),
        }
    }
}

impl Touch {
    fn text(&self, table: &str) -> String {
        let (verb, of) = if self.added { ("added", "to") } else { ("deleted", "of") };
        let (family, name) = (self.family.name(), &self.name);
        let counted = |one: &str, many: &str| match self.count {
            1 => one.to_owned(),
            count => format!("{count} {many}"),
        };
        match self.part {
            Part::Table => format!("{} table {family} {table}", if self.added { "changed" } else { verb }),
            Part::Chain => format!("{verb} chain {family} {table} {name}"),
            Part::Set => format!("{verb} set {family} {table} {name}"),
            Part::Object => format!("{verb} object {family} {table} {name}"),
            Part::Rule => format!("{verb} {} {of} chain {family} {table} {name}", counted("a rule", "rules")),
            Part::Element => {
                format!("{verb} {} {of} {family} {table} {name}", counted("an element", "elements"))
            }
        }
    }
}
