//! A pod's supervisor: process 1 of the pod, single-threaded, which starts containers, keeps their logs and their records.

mod attachment;
mod client;
mod container;
mod cri_log;
mod echo;
mod execution;
mod last_words;
mod root;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portolan_sys::process::{Signals, Unshare, fork, fork_isolated, signal, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::protocol::{
    Console, Exit, Launch, Order, PodDir, ROOT, Record, Report, Request, RunState, SOCKET, Sandbox, boot,
    read_json, starttime, write_json,
};
use attachment::Attachment;
use client::{Client, STREAMS};
use cri_log::{LogFile, Stream};
use execution::Execution;

/// A container's log is put aside at this size; one older part is kept.
const LOG_LIMIT: u64 = 10 << 20;

/// See [`crate::pod_main`].
pub(crate) fn main(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(directory) = args.next() else {
        eprintln!("__pod: needs a pod's directory; it is not for use by hand");
        return ExitCode::from(2);
    };
    match begin(PathBuf::from(directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("__pod: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the pod's namespaces and its process 1, and writes where it is. The pod goes on when this returns.
fn begin(directory: PathBuf) -> io::Result<()> {
    let directory = fs::canonicalize(directory)?;
    // The socket's name is relative: an absolute one may be longer than a socket's address can be (108 bytes).
    std::env::set_current_dir(&directory)?;
    let dir = PodDir(directory);
    // Held for as long as the pod's process 1 lives: a node's process that was killed while it started one can't make a
    // second of the same pod.
    let lock = fs::File::create(dir.0.join("lock"))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| io::Error::other("the pod has a supervisor already"))?;
    let order: Order = read_json(&dir.order())?.ok_or_else(|| io::Error::other("there is no order.json"))?;
    for path in [dir.0.join("containers"), dir.0.join("logs"), dir.0.join(ROOT)] {
        root::make_place(&path)?;
    }
    let _ = fs::remove_file(SOCKET);
    let listener = UnixListener::bind(SOCKET)?;
    listener.set_nonblocking(true)?;
    let _ = rustix::process::setsid();
    let own = !order.host_network;
    unshare(Unshare { net: own, uts: own, mount: true, ipc: true, pid: true })?;
    // Mounts that the node removes later go here, too; none that are made here show up there.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    if own {
        rustix::system::sethostname(order.hostname.as_bytes())?;
    }
    let signals = Signals::block(&[Signal::CHILD, Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT])?;
    let Some(child) = fork()? else {
        let _ = rustix::thread::set_name(c"portolan-pod");
        let mut supervisor = Supervisor::new(dir, lock, signals, listener);
        loop {
            if let Err(error) = supervisor.turn() {
                eprintln!("{error}");
            }
        }
    };
    let written = starttime(child.as_raw_pid())
        .ok_or_else(|| io::Error::other("the pod's process 1 ended at once"))
        .and_then(|starttime| {
            let sandbox = Sandbox {
                pid: child.as_raw_pid(),
                starttime,
                boot: boot(),
                host_network: order.host_network,
            };
            write_json(&dir.sandbox(), &sandbox)
        });
    if written.is_err() {
        let _ = rustix::process::kill_process(child, Signal::KILL);
    }
    written
}

/// The way from one of a container's streams to its log.
struct Pump {
    stream: Stream,
    pipe: OwnedFd,
    buffer: Vec<u8>,
    open: bool,
}

impl Pump {
    /// Reads what is there. Closes at the end of the stream.
    fn read(&mut self, log: &mut LogFile, attachments: &mut [Attachment]) {
        let mut buffer = [0; 16 * 1024];
        while self.open {
            match rustix::io::read(&self.pipe, &mut buffer[..]) {
                Ok(0) => self.open = false,
                Ok(read) => {
                    for attachment in attachments.iter_mut() {
                        attachment.show(self.stream, &buffer[..read]);
                    }
                    self.buffer.extend_from_slice(&buffer[..read]);
                    self.write(log, false);
                    if read < buffer.len() {
                        return;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                // So a terminal says that nobody has it open any more (tty_ioctl(4) has no word on it; n_tty does so).
                Err(rustix::io::Errno::IO) => self.open = false,
                Err(_) => return,
            }
        }
        self.write(log, true);
    }

    fn write(&mut self, log: &mut LogFile, end: bool) {
        let now = Timestamp::now();
        for (whole, line) in cri_log::cut(&mut self.buffer, end) {
            log.append(&cri_log::format_line(now, self.stream, whole, &line));
        }
    }
}

/// A container that runs.
struct Running {
    launch: Launch,
    pid: Pid,
    pidfd: OwnedFd,
    started: Timestamp,
    log: LogFile,
    pumps: Vec<Pump>,
    /// The way to its standard input.
    input: Option<OwnedFd>,
    attachments: Vec<Attachment>,
    kill_at: Option<Instant>,
    failure: Option<String>,
}

impl Running {
    /// Moves what the container and those attached to it say to each other.
    fn turn(&mut self) {
        for pump in self.pumps.iter_mut().filter(|pump| pump.open) {
            pump.read(&mut self.log, &mut self.attachments);
        }
        let mut ended = false;
        for attachment in &mut self.attachments {
            ended |= attachment.turn(self.input.as_ref());
        }
        if ended && self.launch.console.once && !self.launch.console.terminal {
            self.input = None;
        }
    }
}

struct Supervisor {
    dir: PodDir,
    /// Never read; it says that this pod is taken.
    _lock: fs::File,
    signals: Signals,
    listener: UnixListener,
    clients: Vec<Client>,
    clients_so_far: u64,
    records: BTreeMap<String, Record>,
    running: BTreeMap<String, Running>,
    executions: Vec<Execution>,
}

impl Supervisor {
    fn new(dir: PodDir, lock: fs::File, signals: Signals, listener: UnixListener) -> Supervisor {
        // Records of an earlier sandbox of this pod. Whatever they say is running ended with it.
        let now = Timestamp::now();
        let mut records = dir.records();
        for record in records.values_mut() {
            record.end_with_sandbox(now);
        }
        Supervisor {
            dir,
            _lock: lock,
            signals,
            listener,
            clients: Vec::new(),
            clients_so_far: 0,
            records,
            running: BTreeMap::new(),
            executions: Vec::new(),
        }
    }

    /// Waits for something to happen, and does what follows.
    fn turn(&mut self) -> io::Result<()> {
        self.wait()?;
        while self.signals.take()?.is_some() {}
        self.running.values_mut().for_each(Running::turn);
        self.executions.iter_mut().for_each(Execution::read);
        self.reap();
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true)?;
            self.clients_so_far += 1;
            let mut client = Client::new(self.clients_so_far, stream);
            client.tell(&Report::Containers(self.records.clone()));
            self.clients.push(client);
        }
        let (mut requests, mut gone) = (Vec::new(), Vec::new());
        self.clients.retain_mut(|client| match client.requests() {
            Some(more) => {
                requests.extend(more.into_iter().map(|(request, brings)| (client.id, request, brings)));
                true
            }
            None => {
                gone.push(client.id);
                false
            }
        });
        for (client, request, brings) in requests {
            self.obey(client, request, brings);
        }
        self.forget(&gone);
        self.kill_overdue();
        let mut gone = Vec::new();
        self.clients.retain_mut(|client| {
            let there = client.flush();
            if !there {
                gone.push(client.id);
            }
            there
        });
        self.forget(&gone);
        Ok(())
    }

    /// Ends what was going on for clients that are gone: nobody will take the result.
    fn forget(&mut self, clients: &[u64]) {
        for execution in self.executions.iter_mut().filter(|one| clients.contains(&one.owner)) {
            // A probe or a hook of a node's process that was killed may come to its own end.
            if execution.kill_at.is_none() {
                execution.kill();
            }
        }
        for running in self.running.values_mut() {
            let before = running.attachments.len();
            running.attachments.retain(|one| !clients.contains(&one.owner));
            let console = running.launch.console;
            if running.attachments.len() < before && console.once && !console.terminal {
                running.input = None;
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        let mut all = vec![(self.signals.as_fd(), PollFlags::IN), (self.listener.as_fd(), PollFlags::IN)];
        for client in &self.clients {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, client.has_output());
            all.push((client.as_fd(), flags));
        }
        for running in self.running.values() {
            for pump in running.pumps.iter().filter(|pump| pump.open) {
                all.push((pump.pipe.as_fd(), PollFlags::IN));
            }
            for attachment in &running.attachments {
                attachment.interest(running.input.as_ref(), &mut all);
            }
        }
        for output in self.executions.iter().filter_map(|execution| execution.output.as_ref()) {
            all.push((output.as_fd(), PollFlags::IN));
        }
        let overdue = self.running.values().filter_map(|running| running.kill_at);
        let overdue = overdue.chain(self.executions.iter().filter_map(|one| one.kill_at)).min();
        let timeout = overdue.map(|instant| {
            let left = instant.saturating_duration_since(Instant::now());
            // A millisecond more, so that it is really over then.
            Timespec::try_from(left + Duration::from_millis(1))
                .unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })
        });
        let mut all: Vec<PollFd<'_>> =
            all.into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)).collect();
        match poll(&mut all, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes note of every child that has ended.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let name =
                self.running.iter().find(|(_, running)| running.pid == pid).map(|(name, _)| name.clone());
            if let Some(name) = name {
                self.ended(&name, status);
            } else if let Some(index) = self.executions.iter().position(|execution| execution.waiter == pid) {
                let execution = self.executions.swap_remove(index);
                let (owner, token) = (execution.owner, execution.token);
                let (code, output) = execution.end(status.exit_status());
                self.answer(owner, &Report::Executed { token, code, output });
            }
        }
    }

    fn ended(&mut self, name: &str, status: WaitStatus) {
        let Some(mut running) = self.running.remove(name) else { return };
        for pump in &mut running.pumps {
            pump.read(&mut running.log, &mut running.attachments);
            pump.write(&mut running.log, true);
        }
        let signal = status.terminating_signal();
        let code = status.exit_status().or(signal.map(|signal| 128 + signal)).unwrap_or(-1);
        for attachment in &running.attachments {
            let ended = Report::Executed { token: attachment.token, code: Some(code), output: String::new() };
            self.answer(attachment.owner, &ended);
        }
        let last_words = last_words::read(&self.dir, &running.launch, code);
        let exit = Exit {
            id: running.launch.id.clone(),
            code,
            signal,
            started: running.started,
            finished: Timestamp::now(),
            failure: running.failure,
            last_words,
        };
        self.note(&running.launch, RunState::Exited(exit));
    }

    /// Writes down and tells how a container stands.
    fn note(&mut self, launch: &Launch, state: RunState) {
        let previous = match self.records.get(&launch.name) {
            Some(record) if record.id == launch.id => record.previous.clone(),
            Some(Record { state: RunState::Exited(exit), .. }) => Some(exit.clone()),
            Some(record) => record.previous.clone(),
            None => None,
        };
        let record = Record {
            id: launch.id.clone(),
            attempt: launch.attempt,
            streak: launch.streak,
            image: launch.image.clone(),
            state,
            previous,
        };
        if let Err(error) = write_json(&self.dir.record(&launch.name), &record) {
            eprintln!("{}: {error}", launch.name);
        }
        self.records.insert(launch.name.clone(), record);
        self.tell(&Report::Containers(self.records.clone()));
    }

    fn tell(&mut self, report: &Report) {
        for client in &mut self.clients {
            client.tell(report);
        }
    }

    fn answer(&mut self, owner: u64, report: &Report) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == owner) {
            client.tell(report);
        }
    }

    fn obey(&mut self, client: u64, request: Request, brings: Vec<OwnedFd>) {
        match request {
            Request::Start(launch) => {
                let known = self.records.get(&launch.name).is_some_and(|record| record.id == launch.id);
                if !known && !self.running.contains_key(&launch.name) {
                    self.start(*launch);
                }
            }
            Request::Stop { name, id, grace } => {
                let Some(running) = self.running.get_mut(&name).filter(|running| running.launch.id == id)
                else {
                    return;
                };
                let kill_at = Instant::now() + Duration::from_millis(grace);
                if running.kill_at.is_none() {
                    let _ = signal(running.pidfd.as_fd(), Signal::TERM.as_raw());
                }
                running.kill_at = Some(running.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
            }
            Request::Exec { token, name, command, timeout } => {
                if let Err(error) = self.execute(client, token, &name, &command, timeout) {
                    self.answer(client, &Report::Executed { token, code: None, output: error.to_string() });
                }
            }
            Request::Session { token, name, command, terminal } => {
                if let Err(error) = self.begin_session(client, token, &name, command, terminal, brings) {
                    self.answer(client, &Report::Executed { token, code: None, output: error.to_string() });
                }
            }
            Request::Resize { token, rows, columns } => {
                let followed = self.running.values().find(|running| {
                    running.attachments.iter().any(|one| (one.owner, one.token) == (client, token))
                });
                if let Some(terminal) = followed.filter(|running| running.launch.console.terminal) {
                    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                    if let Some(input) = &terminal.input {
                        let _ = rustix::termios::tcsetwinsize(input, size);
                    }
                }
            }
        }
    }

    fn kill_overdue(&mut self) {
        let now = Instant::now();
        for running in self.running.values_mut().filter(|running| running.kill_at.is_some_and(|at| at <= now))
        {
            let _ = signal(running.pidfd.as_fd(), Signal::KILL.as_raw());
            // Process 1 of the container takes all others with it, and can't refuse. Look again if it takes a while.
            running.kill_at = Some(now + Duration::from_secs(1));
        }
        for execution in self.executions.iter_mut().filter(|one| one.kill_at.is_some_and(|at| at <= now)) {
            execution.kill();
        }
    }

    fn start(&mut self, launch: Launch) {
        let started = Timestamp::now();
        match self.try_start(&launch, started) {
            // What could not be started ends at once; only that is worth telling.
            Ok(()) if self.running.get(&launch.name).is_some_and(|running| running.failure.is_some()) => {}
            Ok(()) => self.note(&launch, RunState::Running(started)),
            Err(error) => {
                let exit = Exit {
                    id: launch.id.clone(),
                    code: container::NOT_STARTED,
                    signal: None,
                    started,
                    finished: Timestamp::now(),
                    failure: Some(error.to_string()),
                    last_words: None,
                };
                self.note(&launch, RunState::Exited(exit));
            }
        }
    }

    fn try_start(&mut self, launch: &Launch, started: Timestamp) -> io::Result<()> {
        let logs = self.dir.logs(&launch.name);
        fs::create_dir_all(&logs)?;
        forget_old_logs(&logs, launch.attempt);
        let log = LogFile::open(&self.dir.log(&launch.name, launch.attempt), LOG_LIMIT)?;
        if launch.last_words.is_some() {
            last_words::prepare(&self.dir, &launch.name)?;
        }
        let (failure, failure_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let Streams { input, outputs, inner } = Streams::open(launch.console)?;
        let Some((pid, pidfd)) = fork_isolated()? else {
            let standard = [inner[0].as_fd(), inner[1].as_fd(), inner[2].as_fd()];
            container::become_container(&self.dir.0.join(ROOT), launch, standard, failure_end.as_fd())
        };
        drop((inner, failure_end));
        // The other end closes when the program has been started, or a reason was given why it can't be.
        let mut reason = String::new();
        fs::File::from(failure).read_to_string(&mut reason)?;
        let pump = |(stream, pipe)| Pump { stream, pipe, buffer: Vec::new(), open: true };
        let running = Running {
            launch: launch.clone(),
            pid,
            pidfd,
            started,
            log,
            pumps: outputs.into_iter().map(pump).collect(),
            input,
            attachments: Vec::new(),
            kill_at: None,
            failure: Some(reason).filter(|reason| !reason.is_empty()),
        };
        self.running.insert(launch.name.clone(), running);
        Ok(())
    }

    fn running(&mut self, name: &str) -> io::Result<&mut Running> {
        self.running
            .get_mut(name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the container doesn't run"))
    }

    fn execute(
        &mut self,
        owner: u64,
        token: u64,
        name: &str,
        command: &[String],
        timeout: u64,
    ) -> io::Result<()> {
        let running = self.running(name)?;
        let nothing = fs::OpenOptions::new().read(true).open("/dev/null")?;
        let (output, output_end) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&output, true)?;
        let standard = [nothing.as_fd(), output_end.as_fd(), output_end.as_fd()];
        let execution = execution::start(running.pidfd.as_fd(), &running.launch, command, standard, false)?;
        let kill_at = Some(Instant::now() + Duration::from_millis(timeout));
        self.executions.push(Execution { owner, token, output: Some(output), kill_at, ..execution });
        Ok(())
    }

    fn begin_session(
        &mut self,
        owner: u64,
        token: u64,
        name: &str,
        command: Option<Vec<String>>,
        terminal: bool,
        brings: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let running = self.running(name)?;
        let Ok(streams) = <[OwnedFd; STREAMS]>::try_from(brings) else {
            return Err(io::Error::other("a session needs three descriptors"));
        };
        let Some(command) = command else {
            running.attachments.push(Attachment::new(owner, token, streams)?);
            return Ok(());
        };
        let standard = [streams[0].as_fd(), streams[1].as_fd(), streams[2].as_fd()];
        let execution =
            execution::start(running.pidfd.as_fd(), &running.launch, &command, standard, terminal)?;
        self.executions.push(Execution { owner, token, ..execution });
        Ok(())
    }
}

/// A container's standard streams: our ends, and its own.
struct Streams {
    input: Option<OwnedFd>,
    outputs: Vec<(Stream, OwnedFd)>,
    inner: [OwnedFd; 3],
}

impl Streams {
    fn open(console: Console) -> io::Result<Streams> {
        if console.terminal {
            let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            rustix::pty::unlockpt(&ours)?;
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags)?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            let input = Some(ours.try_clone()?);
            let inner = [theirs.try_clone()?, theirs.try_clone()?, theirs];
            return Ok(Streams { input, outputs: vec![(Stream::Stdout, ours)], inner });
        }
        let (stdout, stdout_end) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, stderr_end) = pipe_with(PipeFlags::CLOEXEC)?;
        for pipe in [&stdout, &stderr] {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        let (stdin_end, input) = if console.stdin {
            let (stdin_end, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&stdin, true)?;
            (stdin_end, Some(stdin))
        } else {
            (fs::OpenOptions::new().read(true).open("/dev/null")?.into(), None)
        };
        let outputs = vec![(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
        Ok(Streams { input, outputs, inner: [stdin_end, stdout_end, stderr_end] })
    }
}

/// Keeps the logs of the run before this one, for `logs --previous`, and removes older ones.
fn forget_old_logs(logs: &std::path::Path, attempt: u32) {
    let Ok(entries) = fs::read_dir(logs) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let number =
            name.to_str().and_then(|name| name.split('.').next()).and_then(|first| first.parse::<u32>().ok());
        if number.is_some_and(|number| number + 1 < attempt) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
