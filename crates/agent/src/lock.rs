//! One agent for each network namespace and table: a lock that ends with its holder, however that ends.
//!
//! It is an abstract Unix socket, whose names the kernel keeps for each network namespace by itself (unix(7)): a holder in
//! another container on the same network is met, one on another network isn't, no file is left behind, and nobody needs to be
//! root. Whoever connects is told who holds it, and hears the end of the connection when the holder is gone.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::time::Duration;

use anyhow::Context as _;
use portolan_sys::namespace;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, timeout_at};

/// How long an agent that is about to end is waited for: a restart or an upgrade may start the new one first.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many of those that wait are remembered, so that they hear of the end. More than this many hear of it by mistake, and
/// ask again.
const WAITING: usize = 16;

/// The right to be the agent; given back when dropped.
#[derive(Debug)]
pub struct Lock {
    /// `None` where somebody else has taken the name who can't be an agent.
    listener: Option<UnixListener>,
    node: String,
}

impl Lock {
    /// Takes the lock for a table in the network namespace of the calling thread, waiting a few seconds for a holder that is
    /// ending. The error names the holder.
    pub async fn take(table: &str, node: &str) -> anyhow::Result<Lock> {
        Lock::take_within(PATIENCE, table, node).await
    }

    /// The same, for another patience.
    pub async fn take_within(patience: Duration, table: &str, node: &str) -> anyhow::Result<Lock> {
        let until = Instant::now() + patience;
        let mut told = false;
        loop {
            match bind(table) {
                Ok(listener) => return Ok(Lock { listener: Some(listener), node: node.to_owned() }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context("locking the network namespace for this agent"),
            }
            let mut stream = match connect(table) {
                Ok(stream) => stream,
                // Gone in between, not yet listening, or with more who wait than it answers.
                Err(error) if is_deaf(&error) && Instant::now() < until => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
                // An agent listens as soon as it has the name, and answers: this is none, and must not keep one from starting.
                Err(error) if is_deaf(&error) => {
                    tracing::warn!(
                        "somebody has the name @{} who answers nobody, and so hides whether another agent runs; find them by \
                         `ss -xlp`",
                        name(table)
                    );
                    return Ok(Lock { listener: None, node: node.to_owned() });
                }
                Err(error) => return Err(error).context("asking who is the agent in this network namespace"),
            };
            let credentials = stream.peer_cred()?;
            let own = namespace::effective_ids().0;
            if ![0, own].contains(&credentials.uid()) {
                tracing::warn!(
                    uid = credentials.uid(),
                    pid = credentials.pid(),
                    "an ordinary user's process has the name @{} and so hides whether another agent runs; end it",
                    name(table)
                );
                return Ok(Lock { listener: None, node: node.to_owned() });
            }
            let mut line = String::new();
            let asked =
                timeout_at(until, BufReader::new((&mut stream).take(1024)).read_line(&mut line)).await;
            let said = line.trim();
            let holder = match (asked, said, credentials.pid()) {
                (Ok(Ok(_)), said, _) if !said.is_empty() => said.to_owned(),
                // It ends, or it is stopped.
                (_, _, Some(pid)) => format!("pid {pid}"),
                _ => "a process".to_owned(),
            };
            if !told {
                tracing::warn!(
                    ?patience,
                    "another agent ({holder}) forwards here; if it is ending, it is waited for"
                );
                told = true;
            }
            // Nothing more is said; the read ends when the holder does.
            let ended = timeout_at(until, stream.read(&mut [0; 1])).await.is_ok();
            if !ended || Instant::now() >= until {
                anyhow::bail!(
                    "another agent ({holder}) forwards in this network namespace with the table {table}: stop it first"
                );
            }
        }
    }

    /// Tells whoever asks who holds the lock, for ever.
    pub async fn serve(&self) {
        let Some(listener) = &self.listener else { return std::future::pending().await };
        let program = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
        let line = format!("{}, pid {}, node {}\n", program.trim(), std::process::id(), self.node);
        let mut waiting = std::collections::VecDeque::new();
        loop {
            match listener.accept().await {
                Ok((mut stream, _)) => {
                    // A line fits into any socket's buffer.
                    if stream.write_all(line.as_bytes()).await.is_ok() {
                        waiting.push_back(stream);
                    }
                    if waiting.len() > WAITING {
                        waiting.pop_front();
                    }
                }
                // Out of descriptors: those that wait give back theirs.
                Err(_) => {
                    waiting.clear();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

fn name(table: &str) -> String {
    format!("portolan-agent/{table}")
}

fn bind(table: &str) -> io::Result<UnixListener> {
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name(table))?;
    let listener = std::os::unix::net::UnixListener::bind_addr(&address)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Never waits: whoever has the name may have filled the queue of those who connect.
fn connect(table: &str) -> io::Result<UnixStream> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name(table).as_bytes())?)?;
    UnixStream::from_std(socket.into())
}

/// Nobody listens there, or nobody takes who comes.
fn is_deaf(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock)
}
