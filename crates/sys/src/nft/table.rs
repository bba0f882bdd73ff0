//! The socket: commit a batch, dump what is there.

use std::io;

use super::batch::describe;
use super::*;
use crate::netlink::{
    ACK, Attributes, KIND_ERROR, Message, NETFILTER, Received, Refusal, Reply, Socket, acknowledgement, errno,
};

/// A netlink socket to nf_tables of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Nftables {
    socket: Socket,
    port: u32,
}

/// A table as dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its comment.
    pub comment: Option<String>,
    /// Its base chains see no packet (`NFT_TABLE_F_DORMANT`).
    pub dormant: bool,
}

/// A chain as dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its name.
    pub name: String,
    /// What makes it a base chain, if it is one.
    pub hook: Option<HookInfo>,
}

/// What makes a chain a base chain, as dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookInfo {
    /// `nat`, `filter` or `route`.
    pub kind: String,
    /// `NF_INET_…`.
    pub hook: u32,
    /// When, among the chains there.
    pub priority: i32,
    /// Whether a packet that meets no verdict goes on.
    pub accepts: bool,
}

/// A rule as dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// The chain that it is in.
    pub chain: String,
    /// Its handle.
    pub handle: u64,
    /// What it is made of.
    pub expressions: Vec<Expression>,
}

/// A set as dumped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetInfo {
    /// Its name.
    pub name: String,
    /// Its flags.
    pub flags: SetFlags,
    /// The length of its keys.
    pub key_length: u32,
    /// The length of its data.
    pub data_length: u32,
    /// How many elements it has, where the kernel says so (`NFTA_SET_COUNT`).
    pub count: Option<u32>,
}

/// An element as dumped.
#[derive(Clone, Debug)]
pub struct ElementInfo<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its data.
    pub data: Option<&'a [u8]>,
    /// Its verdict, of an element of a verdict map.
    pub verdict: Option<Verdict>,
    /// Whether it ends an interval.
    pub interval_end: bool,
    /// Its comment.
    pub comment: Option<&'a str>,
}

/// A named counter as dumped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterInfo {
    /// Packets counted.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// `NFT_TABLE_F_DORMANT`
const DORMANT: u32 = 1;
/// `NF_ACCEPT`
const ACCEPT: u32 = 1;

/// What a base chain's batch may take: the kernel's errors for thousands of operations must fit.
const RECEIVE_BUFFER: usize = 4 << 20;

impl Nftables {
    /// Opens a socket for batches of up to so many bytes; [`Nftables::limit`] says what was granted.
    pub fn open(batch: usize) -> io::Result<Nftables> {
        let socket = Socket::open(NETFILTER)?;
        socket.send_buffer(batch)?;
        socket.receive_buffer(RECEIVE_BUFFER)?;
        let mut nftables = Nftables { socket, port: 0 };
        nftables.generation()?;
        Ok(nftables)
    }

    /// The socket's netlink port: in [`Transaction::port`] it tells our commits from others'.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The most bytes of one batch: in a user namespace this is about `2 * net.core.wmem_max`.
    pub fn limit(&self) -> io::Result<usize> {
        self.socket.send_limit()
    }

    /// Commits a transaction and returns how many bytes were sent. An error says that nothing of it was done, except
    /// `ENOBUFS`, after which nobody knows.
    pub fn commit(&mut self, batch: Batch) -> io::Result<usize> {
        self.transact(batch, true)
    }

    /// Has the kernel check a transaction and drop it: an error says why it would not be taken.
    pub fn check(&mut self, batch: Batch) -> io::Result<()> {
        self.transact(batch, false).map(drop)
    }

    fn transact(&mut self, mut batch: Batch, commit: bool) -> io::Result<usize> {
        if batch.is_empty() {
            return Ok(0);
        }
        let mut attempts = 0;
        let (mut message, mut first, mut last) = batch.finish(self.socket.next_sequence(), commit);
        self.socket.skip_sequences(last - first + 2);
        if message.overflowed() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a netlink attribute is longer than 64 KiB",
            ));
        }
        loop {
            self.socket.send(message.as_bytes())?;
            let refusal = match self.verdict(first, last)? {
                None => return Ok(message.len()),
                Some(refusal) => refusal,
            };
            // Nothing was done: a module was being loaded, the generation moved under us, a signal came.
            let again = matches!(refusal.1.errno, libc::EAGAIN | libc::ERESTART | libc::EINTR);
            attempts += 1;
            if !again || attempts == 8 {
                let text = describe(message.as_bytes(), refusal.0);
                let refusal = Refusal {
                    text: Some(match refusal.1.text {
                        Some(kernel) => format!("{text}: {kernel}"),
                        None => text,
                    }),
                    ..refusal.1
                };
                return Err(refusal.into());
            }
            let base = self.socket.next_sequence();
            message.rebase_sequences(base.wrapping_sub(first));
            self.socket.skip_sequences(last - first + 2);
            (first, last) = (base, base + last - first);
        }
    }

    /// Reads answers up to the last operation's; the first refusal, if any.
    fn verdict(&mut self, first: u32, last: u32) -> io::Result<Option<(u32, Refusal)>> {
        let mut refused: Option<(u32, Refusal)> = None;
        let mut done = false;
        while !done {
            self.socket.receive(|message| {
                if message.kind != KIND_ERROR || !(first..=last + 1).contains(&message.sequence) {
                    return;
                }
                if let Err(refusal) = acknowledgement(&message) {
                    refused.get_or_insert((message.sequence, refusal));
                }
                // An answer to the beginning or to the end is one to the whole.
                done |= message.sequence == first || message.sequence >= last;
            })?;
        }
        Ok(refused)
    }

    /// The generation: changes with each transaction of anybody in this namespace.
    pub fn generation(&mut self) -> io::Result<u32> {
        let (mut generation, mut port) = (0, self.port);
        self.socket.query(Message::new(GETGEN, 0).raw(&general(0, 0)), |message| {
            generation = message.attributes(4).find(1).map_or(0, |a| a.u32be());
            port = message.port;
        })?;
        self.port = port;
        Ok(generation)
    }

    /// The table of this name, if there is one.
    pub fn table(&mut self, family: Family, name: &str) -> io::Result<Option<TableInfo>> {
        let mut found = None;
        let mut request = Message::new(GETTABLE, 0);
        request.raw(&general(family.number(), 0)).str(1, name);
        let answer = self.socket.query(&mut request, |message| {
            let comment =
                message.attributes(4).find(6).and_then(|u| read_comment(u.value).map(str::to_owned));
            let flags = message.attributes(4).find(2).map_or(0, |a| a.u32be());
            found = Some(TableInfo { family, name: name.to_owned(), comment, dormant: flags & DORMANT != 0 });
        });
        absent(answer).map(|_| found)
    }

    /// The chains of a table.
    pub fn chains(&mut self, family: Family, table: &str) -> io::Result<Vec<ChainInfo>> {
        self.list(GETCHAIN, family, table, |attributes| {
            let hook = attributes.find(4).map(|hook| {
                let number = |kind| hook.inside().find(kind).map_or(0, |a| a.u32be());
                HookInfo {
                    kind: name(attributes, 7),
                    hook: number(1),
                    priority: number(2) as i32,
                    accepts: attributes.find(5).is_none_or(|policy| policy.u32be() == ACCEPT),
                }
            });
            ChainInfo { name: name(attributes, 3), hook }
        })
    }

    /// The rules of a table, in order within each chain.
    pub fn rules(&mut self, family: Family, table: &str) -> io::Result<Vec<RuleInfo>> {
        self.list(GETRULE, family, table, |attributes| RuleInfo {
            chain: name(attributes, 2),
            handle: attributes.find(3).map_or(0, |a| a.u64be()),
            expressions: attributes.find(4).map_or_else(Vec::new, |list| {
                list.inside().map(|element| Expression::read(element.inside())).collect()
            }),
        })
    }

    /// The sets and maps of a table.
    pub fn sets(&mut self, family: Family, table: &str) -> io::Result<Vec<SetInfo>> {
        self.list(GETSET, family, table, |attributes| {
            let number = |kind| attributes.find(kind).map_or(0, |a| a.u32be());
            SetInfo {
                name: name(attributes, 2),
                flags: SetFlags(number(3)),
                key_length: number(5),
                data_length: number(7),
                count: attributes.find(20).map(|a| a.u32be()),
            }
        })
    }

    /// A named counter.
    pub fn counter(&mut self, family: Family, table: &str, counter: &str) -> io::Result<CounterInfo> {
        let mut info = CounterInfo::default();
        let mut request = Message::new(GETOBJ, 0);
        request.raw(&general(family.number(), 0)).str(1, table).str(2, counter).u32be(3, 1);
        self.socket.query(&mut request, |message| {
            if let Some(data) = message.attributes(4).find(4) {
                let number = |kind| data.inside().find(kind).map_or(0, |a| a.u64be());
                info = CounterInfo { packets: number(2), bytes: number(1) };
            }
        })?;
        Ok(info)
    }

    /// Gives each element of a set to `each`. The kernel walks a hash set from its beginning for every 32 KiB of the answer:
    /// this is for thousands of elements, slow for a million; [`Nftables::elements_at`] isn't. An error of kind `Interrupted`
    /// asks to begin again.
    pub fn elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        mut each: impl FnMut(ElementInfo<'_>),
    ) -> io::Result<()> {
        let mut request = Message::new(GETSETELEM, 0);
        request.raw(&general(family.number(), 0)).str(1, table).str(2, set);
        self.socket.dump(&mut request, |message| {
            read_elements(&message, &mut each);
        })
    }

    /// Asks for elements by their keys, and gives those that are there to `each`. A group of keys is answered up to the first
    /// that isn't there. The cost is that of the elements asked for, however large the set is.
    pub fn elements_at<K: AsRef<[u8]>>(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
        groups: impl IntoIterator<Item = Vec<K>>,
        mut each: impl FnMut(ElementInfo<'_>),
    ) -> io::Result<()> {
        let mut groups = groups.into_iter().peekable();
        while groups.peek().is_some() {
            let mut request = Message::empty();
            let (mut last, mut asked) = (0, 0);
            while asked < ASKED
                && let Some(keys) = groups.next()
            {
                asked += keys.len();
                for keys in keys.chunks(ASKED) {
                    last = self.socket.next_sequence();
                    request.next(GETSETELEM, ACK).sequence(last).raw(&general(family.number(), 0));
                    request.str(1, table).str(2, set).nest(3, |m| {
                        for key in keys {
                            m.nest(1, |m| {
                                m.nest(1, |m| {
                                    m.bytes(1, key.as_ref());
                                });
                            });
                        }
                    });
                }
            }
            self.socket.send(request.as_bytes())?;
            let (mut done, mut failed) = (asked == 0, None);
            while !done {
                self.socket.receive(|message| match message.kind {
                    KIND_ERROR => {
                        match acknowledgement(&message) {
                            Err(refusal) if refusal.errno != libc::ENOENT => failed = Some(refusal),
                            _ => {}
                        }
                        done |= message.sequence == last;
                    }
                    _ => read_elements(&message, &mut each),
                })?;
            }
            if let Some(refusal) = failed {
                return Err(refusal.into());
            }
        }
        Ok(())
    }

    /// A dump as owned messages, consistent.
    pub(super) fn dump_replies(&mut self, request: &mut Message) -> io::Result<Vec<Reply>> {
        self.socket.dump_all(request)
    }

    fn list<T>(
        &mut self,
        kind: u16,
        family: Family,
        table: &str,
        read: impl Fn(Attributes<'_>) -> T,
    ) -> io::Result<Vec<T>> {
        loop {
            let mut all = Vec::new();
            let mut request = Message::new(kind, 0);
            request.raw(&general(family.number(), 0)).str(1, table);
            let answer = self.socket.dump(&mut request, |message: Received<'_>| {
                let attributes = message.attributes(4);
                // Older kernels don't filter dumps of chains and sets by table.
                if name(attributes, 1) == table {
                    all.push(read(attributes));
                }
            });
            match answer {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if errno(&error) == Some(libc::ENOENT) => return Ok(Vec::new()),
                other => return other.map(|()| all),
            }
        }
    }
}

/// How many elements are asked for at once: each is answered by a message, and all must fit the buffer that an ordinary user
/// is granted.
const ASKED: usize = 128;

/// Gives each element of a message to `each`.
fn read_elements(message: &Received<'_>, each: &mut impl FnMut(ElementInfo<'_>)) {
    for element in message.attributes(4).find(3).into_iter().flat_map(|list| list.inside()) {
        let inside = element.inside();
        let value = |kind| inside.find(kind).and_then(|v| v.inside().find(1)).map(|v| v.value);
        let Some(key) = value(1) else { continue };
        each(ElementInfo {
            key,
            data: value(2),
            verdict: inside.find(2).and_then(|v| Verdict::read(v.inside())),
            interval_end: inside.find(3).is_some_and(|f| f.u32be() & 1 != 0),
            comment: inside.find(6).and_then(|u| read_comment(u.value)),
        });
    }
}

pub(super) fn name(attributes: Attributes<'_>, kind: u16) -> String {
    attributes.find(kind).map_or_else(String::new, |a| a.str())
}

/// `ENOENT` is an answer.
fn absent(answer: io::Result<()>) -> io::Result<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
