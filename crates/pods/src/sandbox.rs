//! The node's side of a pod's supervisor: starting it, finding it again, talking to it, ending it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use crate::Config;
use crate::protocol::{
    Order, PodDir, Record, Report, Request, SOCKET, Sandbox, boot, read_json, starttime, write_json,
};

/// How long a pod's processes may take to end once they are killed.
pub(crate) const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// A supervisor that runs.
#[derive(Debug)]
pub(crate) struct Process {
    /// What its file says.
    pub sandbox: Sandbox,
    /// The process.
    pub pidfd: OwnedFd,
}

/// Finds a pod's supervisor; `None` if there is none that runs.
pub(crate) fn find(dir: &PodDir) -> Option<Process> {
    let sandbox: Sandbox = read_json(&dir.sandbox()).ok().flatten()?;
    if sandbox.boot != boot() {
        return None;
    }
    // First the descriptor, then the question whether it is the process that was meant: not the other way round.
    let pidfd = pidfd_open(Pid::from_raw(sandbox.pid)?, PidfdFlags::empty()).ok()?;
    (starttime(sandbox.pid) == Some(sandbox.starttime)).then_some(Process { sandbox, pidfd })
}

/// Starts a pod's supervisor and waits until the pod's namespaces are there.
pub(crate) async fn start(config: &Config, dir: &PodDir, order: &Order) -> io::Result<Process> {
    fs::create_dir_all(&dir.0)?;
    write_json(&dir.order(), order)?;
    let log = File::options().create(true).append(true).open(dir.0.join("supervisor.log"))?;
    let (program, arguments) = &config.supervisor;
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .arg(&dir.0)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .await?;
    if !output.success() {
        let said = fs::read_to_string(dir.0.join("supervisor.log")).unwrap_or_default();
        let said = said.lines().last().unwrap_or("it said nothing").to_owned();
        return Err(io::Error::other(format!("the pod's supervisor failed: {said}")));
    }
    find(dir).ok_or_else(|| io::Error::other("the pod's supervisor ended at once"))
}

/// Ends a pod's processes, all of them, and returns when they are gone.
pub(crate) async fn kill(process: OwnedFd) -> io::Result<()> {
    tokio::task::spawn_blocking(move || kill_and_wait(&process, KILL_PATIENCE))
        .await
        .map_err(io::Error::other)?
}

/// [`kill`] for those who don't run on tokio.
pub(crate) fn kill_and_wait(process: &OwnedFd, patience: Duration) -> io::Result<()> {
    send_kill(process)?;
    let timeout = Timespec::try_from(patience).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
    // A pidfd is readable when its process has ended; process 1 of a PID namespace ends after all others.
    let ended = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout))?;
    if ended == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "a pod's process 1 doesn't end"));
    }
    reap(process);
    Ok(())
}

fn send_kill(process: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// If it was our child (a subreaper's), takes note of its end, so that no zombie stays.
fn reap(process: &OwnedFd) {
    let _ = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

/// News from a pod's supervisor.
#[derive(Debug)]
pub(crate) enum News {
    /// The containers as they are now.
    Containers(BTreeMap<String, Record>),
    /// The connection is gone, and most likely the pod.
    Gone,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<(Option<i32>, String)>>>>;

/// A line to a pod's supervisor.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    requests: mpsc::UnboundedSender<Request>,
    waiting: Waiting,
    tokens: Arc<AtomicU64>,
}

impl Control {
    /// Connects. The first news are the containers as they are.
    pub async fn connect(dir: &PodDir, news: mpsc::UnboundedSender<News>) -> io::Result<Control> {
        // A socket's address has at most 108 bytes: name the directory by a descriptor.
        let directory = File::open(&dir.0)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
        let stream = UnixStream::connect(path).await?;
        drop(directory);
        let (requests, mut outgoing) = mpsc::unbounded_channel::<Request>();
        let waiting = Waiting::default();
        let (read, mut write) = stream.into_split();
        tokio::spawn(async move {
            while let Some(request) = outgoing.recv().await {
                let Ok(mut line) = serde_json::to_vec(&request) else { continue };
                line.push(b'\n');
                if write.write_all(&line).await.is_err() {
                    return;
                }
            }
        });
        let answers = waiting.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    Ok(Report::Containers(records)) => {
                        if news.send(News::Containers(records)).is_err() {
                            return;
                        }
                    }
                    Ok(Report::Executed { token, code, output }) => {
                        if let Some(answer) = answers.lock().remove(&token) {
                            let _ = answer.send((code, output));
                        }
                    }
                    Err(error) => tracing::warn!(%error, "a supervisor's report makes no sense"),
                }
            }
            answers.lock().clear();
            let _ = news.send(News::Gone);
        });
        Ok(Control { requests, waiting, tokens: Arc::default() })
    }

    /// Asks for something; what comes of it is in the news.
    pub fn send(&self, request: Request) {
        let _ = self.requests.send(request);
    }

    /// Runs a program in a container: its exit status, if it could be run, and its output.
    pub async fn exec(
        &self,
        container: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<(Option<i32>, String), String> {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().insert(token, answer);
        let timeout = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self.send(Request::Exec { token, name: container.to_owned(), command, timeout });
        answered.await.map_err(|_| "the pod is gone".to_owned())
    }
}

/// A program run for somebody in a container, or somebody who follows a container's own streams. It ends when this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Session {
    read: tokio::io::Lines<BufReader<tokio::net::unix::OwnedReadHalf>>,
    write: tokio::net::unix::OwnedWriteHalf,
}

/// A session has a connection of its own, hence all have one name.
const TOKEN: u64 = 1;

impl Session {
    /// Begins: the streams are standard input, output and error as the program will have them.
    pub async fn begin(
        dir: &PodDir,
        container: &str,
        command: Option<Vec<String>>,
        terminal: bool,
        streams: [OwnedFd; 3],
    ) -> io::Result<Session> {
        let request = Request::Session { token: TOKEN, name: container.to_owned(), command, terminal };
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        let directory = File::open(&dir.0)?;
        let path = format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd());
        let begun = tokio::task::spawn_blocking(move || {
            let stream = std::os::unix::net::UnixStream::connect(path)?;
            drop(directory);
            send_with(&stream, &line, &streams)?;
            stream.set_nonblocking(true)?;
            Ok::<_, io::Error>(stream)
        });
        let stream = UnixStream::from_std(begun.await.map_err(io::Error::other)??)?;
        let (read, write) = stream.into_split();
        Ok(Session { read: BufReader::new(read).lines(), write })
    }

    /// Tells the terminal of the container its size.
    pub async fn resize(&mut self, rows: u16, columns: u16) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Request::Resize { token: TOKEN, rows, columns })?;
        line.push(b'\n');
        self.write.write_all(&line).await
    }

    /// Waits for the end: an exit status, or why there is none. May be dropped and called again.
    pub async fn ended(&mut self) -> Result<i32, String> {
        while let Ok(Some(line)) = self.read.next_line().await {
            if let Ok(Report::Executed { token: TOKEN, code, output }) = serde_json::from_str(&line) {
                return code.ok_or(output);
            }
        }
        // The pod's process 1 has ended, and with it everything in the pod.
        Ok(137)
    }
}

/// Sends a line and descriptors with its first byte.
fn send_with(
    stream: &std::os::unix::net::UnixStream,
    line: &[u8],
    descriptors: &[OwnedFd],
) -> io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("too many descriptors"));
    }
    let sent = sendmsg(stream, &[io::IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?;
    io::Write::write_all(&mut &*stream, &line[sent..])
}
