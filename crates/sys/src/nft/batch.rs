//! A transaction under construction.

use super::*;
use crate::netlink::{CREATE, EXCLUSIVE, Message, Messages};

/// A hook of a base chain. Base chains of family `ip` and `ip6` have these numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive.
    Prerouting,
    /// Packets for this machine.
    Input,
    /// Packets passing through.
    Forward,
    /// Packets of this machine.
    Output,
    /// Packets that leave.
    Postrouting,
}

impl Hook {
    /// `NF_INET_…`.
    pub fn number(self) -> u32 {
        match self {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Output => 3,
            Hook::Postrouting => 4,
        }
    }
}

/// What makes a chain a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainHook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// Where.
    pub hook: Hook,
    /// When, among the chains there.
    pub priority: i32,
}

/// One element to add to a set or to take from it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data<'a> {
    None,
    Value(&'a [u8]),
    Verdict(&'a Verdict),
}

/// A list of elements still open at the end of the batch.
#[derive(Debug)]
struct OpenList {
    family: Family,
    table: String,
    set: String,
    add: bool,
    at: usize,
}

/// A transaction: operations in order, all or none.
#[derive(Debug)]
pub struct Batch {
    message: Message,
    sequence: u32,
    list: Option<OpenList>,
    elements: usize,
    next_set_id: u32,
}

/// Where a list of elements is closed: its length field ends at 65,535 and an element is far below 1 KiB.
const LIST_LIMIT: usize = 60 * 1024;

/// `NFTA_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

impl Default for Batch {
    fn default() -> Batch {
        Batch::new()
    }
}

impl Batch {
    /// An empty transaction.
    pub fn new() -> Batch {
        let mut batch =
            Batch { message: Message::empty(), sequence: 0, list: None, elements: 0, next_set_id: 1 };
        batch.begin(BATCH_BEGIN, 0, 0, SUBSYSTEM);
        batch
    }

    /// Bytes so far, without the end mark.
    pub fn len(&self) -> usize {
        self.message.len()
    }

    /// Whether there is no operation.
    pub fn is_empty(&self) -> bool {
        self.sequence == 1
    }

    /// How many elements are added and deleted.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Makes a table, or leaves it as it is.
    pub fn add_table(&mut self, family: Family, table: &str, comment: &str) {
        self.begin(NEWTABLE, CREATE, family.number(), 0);
        self.message.str(1, table).u32be(2, 0).bytes(6, &comment_userdata(comment));
    }

    /// Makes a table that belongs to the committing socket (`NFT_TABLE_F_OWNER`, Linux 5.12): it ends with the socket, and nobody
    /// else can change it, nor flush it with the whole ruleset.
    pub fn add_owned_table(&mut self, family: Family, table: &str, comment: &str) {
        const OWNER: u32 = 2;
        self.begin(NEWTABLE, CREATE, family.number(), 0);
        self.message.str(1, table).u32be(2, OWNER).bytes(6, &comment_userdata(comment));
    }

    /// Deletes a table with all that is in it.
    pub fn delete_table(&mut self, family: Family, table: &str) {
        self.begin(DELTABLE, 0, family.number(), 0);
        self.message.str(1, table);
    }

    /// Makes a chain.
    pub fn add_chain(&mut self, family: Family, table: &str, chain: &str, hook: Option<ChainHook>) {
        self.begin(NEWCHAIN, CREATE, family.number(), 0);
        self.message.str(1, table).str(3, chain);
        if let Some(hook) = hook {
            self.message.nest(4, |m| {
                m.u32be(1, hook.hook.number()).u32be(2, hook.priority as u32);
            });
            // NF_ACCEPT
            self.message.u32be(5, 1).str(7, hook.kind);
        }
    }

    /// Deletes a chain with its rules; no rule of another chain may lead there.
    pub fn delete_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.begin(DELCHAIN, 0, family.number(), 0);
        self.message.str(1, table).str(3, chain);
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, family: Family, table: &str, chain: &str) {
        self.begin(DELRULE, 0, family.number(), 0);
        self.message.str(1, table).str(2, chain);
    }

    /// Deletes one rule by its handle.
    pub fn delete_rule(&mut self, family: Family, table: &str, chain: &str, handle: u64) {
        self.begin(DELRULE, 0, family.number(), 0);
        self.message.str(1, table).str(2, chain).u64be(3, handle);
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, family: Family, table: &str, chain: &str, expressions: &[Expression]) {
        self.begin(NEWRULE, CREATE | crate::netlink::APPEND, family.number(), 0);
        self.message.str(1, table).str(2, chain).nest(4, |m| {
            for expression in expressions {
                expression.write(m);
            }
        });
    }

    /// Declares a set or a map and returns its number within this batch (rules name anonymous sets by it).
    pub fn add_set(&mut self, family: Family, table: &str, set: &SetDeclaration) -> u32 {
        let id = self.next_set_id;
        self.next_set_id += 1;
        self.begin(NEWSET, CREATE, family.number(), 0);
        let m = &mut self.message;
        m.str(1, table).str(2, &set.name).u32be(3, set.flags.0);
        m.u32be(4, set.key_type()).u32be(5, set.key_length());
        if !set.data.is_empty() {
            m.u32be(6, set.data_type()).u32be(7, set.data_length());
        }
        if set.size > 0 {
            m.nest(9, |m| {
                m.u32be(1, set.size);
            });
        }
        m.u32be(10, id).bytes(13, &set.userdata());
        id
    }

    /// Makes a named counter.
    pub fn add_counter(&mut self, family: Family, table: &str, name: &str) {
        self.begin(NEWOBJ, CREATE, family.number(), 0);
        // NFT_OBJECT_COUNTER
        self.message.str(1, table).str(2, name).u32be(3, 1).nest(4, |m| {
            m.u64be(1, 0).u64be(2, 0);
        });
    }

    /// Deletes a named counter.
    pub fn delete_counter(&mut self, family: Family, table: &str, name: &str) {
        self.begin(DELOBJ, 0, family.number(), 0);
        // NFT_OBJECT_COUNTER
        self.message.str(1, table).str(2, name).u32be(3, 1);
    }

    /// Deletes all elements of a set.
    pub fn flush_set(&mut self, family: Family, table: &str, set: &str) {
        self.begin(DELSETELEM, 0, family.number(), 0);
        self.message.str(1, table).str(2, set);
    }

    /// Adds an element; with data to a map. Its key must not be there with other data.
    pub fn add_element(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        key: &[u8],
        data: Option<&[u8]>,
        userdata: Option<&[u8]>,
    ) {
        let data = data.map_or(Data::None, Data::Value);
        self.element(family, (table, set, 0), true, key, 0, data, userdata);
    }

    /// Adds an interval: from its first key up to, not including, `end` (`None`: to the last key there is).
    pub fn add_interval(&mut self, family: Family, table: &str, set: &str, first: &[u8], end: Option<&[u8]>) {
        self.element(family, (table, set, 0), true, first, 0, Data::None, None);
        if let Some(end) = end {
            self.element(family, (table, set, 0), true, end, INTERVAL_END, Data::None, None);
        }
    }

    /// Adds an element of a verdict map, or of an anonymous set by its number in this batch.
    pub fn add_verdict(
        &mut self,
        family: Family,
        table: &str,
        set: (&str, u32),
        key: &[u8],
        verdict: &Verdict,
    ) {
        self.element(family, (table, set.0, set.1), true, key, 0, Data::Verdict(verdict), None);
    }

    /// Adds an element of an anonymous set by the set's number in this batch.
    pub fn add_anonymous(&mut self, family: Family, table: &str, set: (&str, u32), key: &[u8]) {
        self.element(family, (table, set.0, set.1), true, key, 0, Data::None, None);
    }

    /// Deletes an element, which must be there.
    pub fn delete_element(&mut self, family: Family, table: &str, set: &str, key: &[u8]) {
        self.element(family, (table, set, 0), false, key, 0, Data::None, None);
    }

    /// The bytes to send, with the sequence numbers of the first and of the last operation, which is acknowledged. Without an
    /// end mark the kernel checks them and drops them.
    pub(super) fn finish(&mut self, base: u32, commit: bool) -> (Message, u32, u32) {
        self.close();
        self.message.add_flags(crate::netlink::ACK);
        let last = self.sequence - 1;
        if commit {
            self.begin(BATCH_END, 0, 0, SUBSYSTEM);
        }
        let mut message = std::mem::take(&mut self.message);
        message.rebase_sequences(base);
        (message, base, base + last)
    }

    #[allow(clippy::too_many_arguments)] // the parts of one element
    fn element(
        &mut self,
        family: Family,
        (table, set, id): (&str, &str, u32),
        add: bool,
        key: &[u8],
        flags: u32,
        data: Data<'_>,
        userdata: Option<&[u8]>,
    ) {
        let open = self.list.as_ref().is_some_and(|l| {
            l.add == add
                && id == 0
                && l.family == family
                && l.set == set
                && l.table == table
                && self.message.len() - l.at < LIST_LIMIT
        });
        if !open {
            let (kind, flags) = if add { (NEWSETELEM, CREATE | EXCLUSIVE) } else { (DELSETELEM, 0) };
            self.begin(kind, flags, family.number(), 0);
            self.message.str(1, table).str(2, set);
            if id != 0 {
                self.message.u32be(4, id);
            }
            let at = self.message.open(3);
            self.list = Some(OpenList { family, table: table.into(), set: set.into(), add, at });
        }
        self.elements += 1;
        let m = &mut self.message;
        let element = m.open(1);
        let nest = m.open(1);
        m.bytes(1, key);
        m.close(nest);
        if flags != 0 {
            m.u32be(3, flags);
        }
        match data {
            Data::None => {}
            Data::Value(value) => {
                let nest = m.open(2);
                m.bytes(1, value);
                m.close(nest);
            }
            Data::Verdict(verdict) => {
                let nest = m.open(2);
                verdict.write(m);
                m.close(nest);
            }
        }
        if let Some(userdata) = userdata {
            m.bytes(6, userdata);
        }
        m.close(element);
    }

    /// Closes the open list of elements and begins a message.
    fn begin(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        self.close();
        self.message.next(kind, flags).sequence(self.sequence).raw(&general(family, resource));
        self.sequence += 1;
    }

    fn close(&mut self) {
        if let Some(list) = self.list.take() {
            self.message.close(list.at);
        }
    }
}

/// Says in words which operation of a batch has a sequence number.
pub(super) fn describe(batch: &[u8], sequence: u32) -> String {
    let Some(message) = Messages::new(batch).find(|m| m.sequence == sequence) else {
        return "an operation".into();
    };
    let what = match message.kind {
        BATCH_BEGIN | BATCH_END => return "the batch as a whole".into(),
        NEWTABLE => "adding table",
        DELTABLE => "deleting table",
        NEWCHAIN => "adding chain",
        DELCHAIN => "deleting chain",
        NEWRULE => "adding a rule to",
        DELRULE => "flushing chain",
        NEWSET => "adding set",
        NEWSETELEM => "adding elements to",
        DELSETELEM => "deleting elements of",
        NEWOBJ => "adding counter",
        _ => "an operation on",
    };
    let name = |kind| message.attributes(4).find(kind).map(|a| a.str()).unwrap_or_default();
    match message.kind {
        NEWCHAIN | DELCHAIN => format!("{what} {} {}", name(1), name(3)),
        NEWTABLE | DELTABLE => format!("{what} {}", name(1)),
        _ => format!("{what} {} {}", name(1), name(2)),
    }
}
