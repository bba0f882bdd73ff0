//! The one writer: takes what waits, evaluates it in order, makes it durable together, and only then answers.
//!
//! It is a thread of its own, because it spends its life in fsync.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::embedded::{Options, Shared};
use crate::engine::Commit;
use crate::ring::Changes;
use crate::schema::{Draft, Marks};
use crate::{Error, Op, Result, Revision, Txn, TxnOutcome};

/// A request to the writer, and where the answer goes.
pub(crate) enum Command {
    Txn(Txn, oneshot::Sender<Result<TxnOutcome>>),
    Compact(u64, oneshot::Sender<Result<()>>),
    Close,
}

/// What a group has come to. None of it may be known before it is durable.
struct Drafted {
    marks: Marks,
    outcomes: Vec<TxnOutcome>,
    revisions: Vec<Changes>,
}

/// One durable commit's worth of requests.
#[derive(Default)]
struct Group {
    txns: Vec<(Txn, oneshot::Sender<Result<TxnOutcome>>)>,
    /// The highest floor asked for, and who waits for it.
    floor: Option<u64>,
    floors: Vec<oneshot::Sender<Result<()>>>,
    bytes: usize,
    close: bool,
}

/// A group takes no more when it has so many bytes of values: the commit would take long, and all wait for it.
const GROUP_BYTES: usize = 4 << 20;

/// Why the writer does something.
enum Woken {
    Command(Command),
    /// Nobody waits, and there is garbage.
    Sweep,
    /// It is time to open the database again.
    Retry,
    /// A reader met an error.
    Trouble,
    /// The store has been dropped.
    Abandoned,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    options: Options,
    /// As they are on the disk.
    marks: Marks,
    /// The database is closed after an error, and will be opened again then.
    down_until: Option<Instant>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        // However the thread ends: nobody waits for a writer that is gone. The database is closed here, because closing
        // writes, and nobody else may block on that.
        self.shared.engine.close();
        self.shared.ring.close();
    }
}

impl Writer {
    pub fn spawn(
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        options: Options,
        marks: Marks,
    ) -> Result<()> {
        // Only to wait for a command or for a time, whichever is first; blocking it harms nobody.
        let clock = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| Error::Engine(error.to_string()))?;
        let writer = Writer { shared, commands, options, marks, down_until: None };
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(&clock))
            .map_err(|error| Error::Engine(error.to_string()))?;
        Ok(())
    }

    fn run(mut self, clock: &tokio::runtime::Runtime) {
        loop {
            let mut group = Group::default();
            match clock.block_on(self.wait()) {
                Woken::Command(command) => {
                    self.admit(command, &mut group);
                    self.drain(&mut group);
                }
                Woken::Sweep => {}
                Woken::Retry => self.reopen(),
                Woken::Trouble => self.probe(),
                Woken::Abandoned => return,
            }
            let close = group.close;
            self.carry_out(group);
            if close {
                return;
            }
        }
    }

    async fn wait(&mut self) -> Woken {
        let down = self.down_until;
        let garbage = self.marks.swept < self.marks.compacted && down.is_none();
        let shared = self.shared.clone();
        tokio::select! {
            // In this order: the clock, or a stream of requests would keep a closed database closed; and whoever waits to
            // write goes before the garbage.
            biased;
            () = async { tokio::time::sleep_until(down.expect("guarded")).await }, if down.is_some() => Woken::Retry,
            () = shared.trouble.notified(), if down.is_none() => Woken::Trouble,
            command = self.commands.recv() => command.map_or(Woken::Abandoned, Woken::Command),
            () = std::future::ready(()), if garbage => Woken::Sweep,
        }
    }

    fn drain(&mut self, group: &mut Group) {
        while group.txns.len() < self.options.group && group.bytes < GROUP_BYTES && !group.close {
            match self.commands.try_recv() {
                Ok(command) => self.admit(command, group),
                Err(_) => break,
            }
        }
    }

    fn admit(&self, command: Command, group: &mut Group) {
        match command {
            Command::Txn(txn, answer) => {
                for op in &txn.ops {
                    if let Op::Put(_, value) = op {
                        group.bytes += value.len();
                    }
                }
                group.txns.push((txn, answer));
            }
            // Against what is acknowledged, not against what this group will bring: nobody has seen that yet, and should
            // the commit fail, the floor must not lie above what remains.
            Command::Compact(floor, answer) if floor > self.marks.revision => {
                let _ = answer.send(Err(Error::Future { asked: floor, current: self.marks.revision }));
            }
            Command::Compact(floor, answer) => {
                group.floor = group.floor.max(Some(floor));
                group.floors.push(answer);
            }
            Command::Close => group.close = true,
        }
    }

    fn carry_out(&mut self, group: Group) {
        let marks = self.marks;
        let rows = self.options.sweep_rows.max(1);
        let drafted = self.shared.engine.write(|draft| {
            let drafted = draft_group(draft, marks, &group, rows)?;
            let commit = if drafted.marks == marks { Commit::Nothing } else { Commit::Durably };
            Ok((drafted, commit))
        });
        match drafted {
            Ok(drafted) => {
                self.marks = drafted.marks;
                // First the changes, then the answers: who has an answer finds its change in a watch and in a read.
                self.shared.ring.publish(drafted.revisions);
                for ((_, answer), outcome) in group.txns.into_iter().zip(drafted.outcomes) {
                    // Who asked may have gone away.
                    let _ = answer.send(Ok(outcome));
                }
                for answer in group.floors {
                    let _ = answer.send(Ok(()));
                }
            }
            Err(error) => {
                // Opened again first: who asks again at once after the answer finds the database open, if it can be.
                if self.down_until.is_none() {
                    tracing::error!(%error, "a commit failed; opening the database again");
                    self.reopen();
                }
                for (_, answer) in group.txns {
                    let _ = answer.send(Err(error.clone()));
                }
                for answer in group.floors {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// After an I/O error of a reader redb refuses everybody. A commit of nothing tells whether it does.
    fn probe(&mut self) {
        let marks = self.marks;
        let probed = self.shared.engine.write(|draft| {
            draft.set_marks(marks)?;
            Ok(((), Commit::Durably))
        });
        if let Err(error) = probed {
            tracing::error!(%error, "the database can't be read; opening it again");
            self.reopen();
        }
    }

    fn reopen(&mut self) {
        match self.shared.engine.reopen(self.marks.revision) {
            Ok(marks) => {
                tracing::info!(revision = marks.revision, "the database is open again");
                self.marks = marks;
                self.down_until = None;
            }
            Err(error) => {
                tracing::error!(%error, "the database can't be opened; trying again");
                self.down_until = Some(Instant::now() + self.options.retry_after);
            }
        }
    }
}

/// Evaluates a group in order, each transaction against what the earlier ones left. An error spoils the whole group.
fn draft_group(draft: &mut Draft<'_>, mut marks: Marks, group: &Group, sweep_rows: usize) -> Result<Drafted> {
    let mut outcomes = Vec::with_capacity(group.txns.len());
    let mut revisions = Vec::with_capacity(group.txns.len());
    let before = marks;
    for (txn, _) in &group.txns {
        let (hold, current) = draft.compare(&txn.compares)?;
        if !hold {
            outcomes.push(TxnOutcome::Refused { current, revision: Revision(marks.revision) });
            continue;
        }
        let changes = draft.apply(&txn.ops, marks.revision + 1)?;
        if !changes.is_empty() {
            marks.revision += 1;
            revisions.push(Changes { revision: marks.revision, changes });
        }
        outcomes.push(TxnOutcome::Committed(Revision(marks.revision)));
    }
    marks.compacted = marks.compacted.max(group.floor.unwrap_or(0));
    if marks.swept < marks.compacted {
        marks.swept = draft.sweep(marks, sweep_rows)?;
    }
    if marks != before {
        draft.set_marks(marks)?;
    }
    Ok(Drafted { marks, outcomes, revisions })
}
