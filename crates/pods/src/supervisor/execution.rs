//! Programs run in a container that runs already: for probes and hooks, and for those who ask by `kubectl exec`.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use portolan_sys::process::{
    arrange_descriptors, close_descriptors, enter_isolation, exit_now, fork, write_all,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions};

use super::container;
use crate::protocol::Launch;

/// What is kept of the output of a program run on request.
const OUTPUT_LIMIT: usize = 8 << 10;

/// A program that runs.
pub(super) struct Execution {
    /// The client that asked.
    pub owner: u64,
    /// What it calls the program.
    pub token: u64,
    /// Where its output comes from; nobody reads that of a session here.
    pub output: Option<OwnedFd>,
    /// When it will be killed.
    pub kill_at: Option<Instant>,
    /// Its parent, which is our child.
    pub waiter: Pid,
    /// The program, the first of its group.
    pub program: Pid,
    /// What it wrote so far, cut short.
    pub kept: Vec<u8>,
    /// Whether we killed it.
    pub killed: bool,
}

impl Execution {
    /// Reads what is there.
    pub fn read(&mut self) {
        let Some(output) = &self.output else { return };
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(output, &mut buffer[..]) {
                Ok(0) => break,
                Ok(read) => {
                    let room = OUTPUT_LIMIT.saturating_sub(self.kept.len());
                    self.kept.extend_from_slice(&buffer[..read.min(room)]);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
        // At the end of a pipe there is always something to read: nothing. Don't ask again.
        self.output = None;
    }

    /// Kills the program and the group that it leads.
    pub fn kill(&mut self) {
        let _ = rustix::process::kill_process_group(self.program, Signal::KILL);
        let _ = rustix::process::kill_process(self.program, Signal::KILL);
        self.killed = true;
        self.kill_at = None;
    }

    /// Its exit status, unless it took too long, and its output.
    pub fn end(mut self, status: Option<i32>) -> (Option<i32>, String) {
        self.read();
        (status.filter(|_| !self.killed), String::from_utf8_lossy(&self.kept).into_owned())
    }
}

/// Starts a program in the container that `process` is the first of. An error says why it could not be started.
pub(super) fn start(
    process: BorrowedFd<'_>,
    launch: &Launch,
    command: &[String],
    standard: [BorrowedFd<'_>; 3],
    terminal: bool,
) -> io::Result<Execution> {
    let (news, news_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let Some(waiter) = fork()? else {
        wait_for(process, launch, command, standard, news_end.as_fd(), terminal)
    };
    drop(news_end);
    // The other end closes when the program has been started, or a reason was given why it can't be.
    let mut said = Vec::new();
    File::from(news).read_to_end(&mut said)?;
    let (number, reason) = said.split_first_chunk::<4>().unwrap_or((&[0; 4], &said));
    if !reason.is_empty() {
        return Err(io::Error::other(String::from_utf8_lossy(reason).into_owned()));
    }
    let program = Pid::from_raw(i32::from_ne_bytes(*number))
        .ok_or_else(|| io::Error::other("the program could not be started"))?;
    Ok(Execution {
        owner: 0,
        token: 0,
        output: None,
        kill_at: None,
        waiter,
        program,
        kept: Vec::new(),
        killed: false,
    })
}

/// In a child of the supervisor: enters the container, starts the program there, waits for it and ends as it does. A process
/// that enters a PID namespace isn't in it, only its children are; hence two.
fn wait_for(
    process: BorrowedFd<'_>,
    launch: &Launch,
    command: &[String],
    standard: [BorrowedFd<'_>; 3],
    news: BorrowedFd<'_>,
    terminal: bool,
) -> ! {
    let failed = |news: BorrowedFd<'_>, error: io::Error| -> ! {
        write_all(news, &0i32.to_ne_bytes());
        write_all(news, error.to_string().as_bytes());
        exit_now(container::NOT_STARTED)
    };
    if let Err(error) = enter_isolation(process) {
        failed(news, error);
    }
    // Whatever else the supervisor has open is none of this process's business, and would stay open with it.
    let Ok(news) = arrange_descriptors(standard, news) else { exit_now(container::NOT_STARTED) };
    let program = match fork() {
        Ok(Some(program)) => program,
        Ok(None) => {
            use rustix::stdio::{stderr, stdin, stdout};
            container::become_guest(launch, command, [stdin(), stdout(), stderr()], news.as_fd(), terminal)
        }
        Err(error) => failed(news.as_fd(), error),
    };
    write_all(news.as_fd(), &program.as_raw_pid().to_ne_bytes());
    std::mem::forget(news);
    // The program's streams end with the program.
    close_descriptors();
    let status = loop {
        match rustix::process::waitpid(Some(program), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            ended => break ended.ok().flatten().map(|(_, status)| status),
        }
    };
    let code =
        status.and_then(|status| status.exit_status().or(status.terminating_signal().map(|n| 128 + n)));
    exit_now(code.unwrap_or(126))
}
