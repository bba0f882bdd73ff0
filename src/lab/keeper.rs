//! `lab up`: the process outside of the lab that has it made, tells how far it is, and takes it away.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use portolan_sys::namespace::{self, Child, Namespaces};
use portolan_sys::process;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use super::apply::{self, Document};
use super::bring_up::{self, Serving, Signs};
use super::protocol::{self, Order, Report, Request};
use super::state::{self, Labs, Phase, ProcessName, Record, State};
use super::topology::{Topology, Wish};
use super::{init, preflight};
use crate::cli::lab::Up;

/// The exit status where the machine lacks something.
const INCAPABLE: u8 = 3;
/// How long `lab down` waits for a process to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Tells the front process that the keeper ended without an answer.
const NO_ANSWER: u8 = 1;

/// What is to be made, and what to do with it then.
struct Plan {
    topology: Topology,
    documents: Vec<Document>,
    options: Up,
    began: Instant,
}

/// `lab up`.
pub fn up(options: Up) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let topology = Topology::plan(Wish {
        name: options.named.name.clone(),
        nodes: options.nodes,
        families: options.ip_families.clone(),
        service_cidrs: options.service_cidr.clone(),
        pool: options.pool.clone(),
    })
    .map_err(anyhow::Error::msg)?;
    // What can be wrong with the manifests' form is found out before anything is made.
    let documents = apply::read(&options.filename)?;
    if let Some(missing) = preflight::check().context("trying what this machine can do")? {
        eprintln!(
            "error: this machine lacks {}: {}\nremedy: {}",
            missing.what, missing.reason, missing.remedy
        );
        return Ok(ExitCode::from(INCAPABLE));
    }
    let plan = Plan { topology, documents, options, began };
    if !plan.options.detach {
        return keep(plan, None).map(ExitCode::from);
    }

    let (mut front, back) = UnixStream::pair()?;
    let mut plan = Some(plan);
    let keeper = namespace::fork(|| {
        let mut run = || {
            // Away from the terminal and its signals.
            rustix::process::setsid()?;
            keep(plan.take().context("planned")?, Some(back.try_clone()?))
        };
        let status = run().unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            1
        });
        // Whoever still waits in front learns it here.
        let _ = (&back).write_all(&[status]);
        i32::from(status)
    })?;
    drop(back);
    let mut status = [NO_ANSWER];
    if front.read_exact(&mut status).is_err() {
        eprintln!("error: the lab's keeper (process {}) ended unexpectedly", keeper.pid);
    }
    Ok(ExitCode::from(status[0]))
}

/// Makes a lab and keeps it until it is told to end; returns the exit status.
fn keep(plan: Plan, front: Option<UnixStream>) -> anyhow::Result<u8> {
    let labs = Labs::open()?;
    let dir = labs.dir_of(&plan.topology.name);
    let record = labs.claim(State {
        phase: Phase::Starting,
        topology: plan.topology.clone(),
        keeper: ProcessName::of(std::process::id())?,
        init: None,
        api: None,
        kubeconfig: state::kubeconfig_in(&dir),
        published: Vec::new(),
        processes: Vec::new(),
    })?;
    let (ours, theirs) = UnixStream::pair()?;
    let init = match start_init(theirs) {
        Ok(init) => init,
        Err(error) => {
            record.remove();
            return Err(error.context("starting the lab's first process"));
        }
    };
    let mut keeper = Keeper { record, signs: Signs::default(), began: plan.began };
    let result = keeper.run(plan, &init, ours, front);
    keeper.end(&init);
    result
}

/// Starts the lab's init in namespaces of its own. This process has one thread still.
fn start_init(socket: UnixStream) -> anyhow::Result<Child> {
    let administrator = namespace::is_administrator();
    let mut kinds = Namespaces::PID | Namespaces::MOUNT;
    if !administrator {
        kinds = kinds | Namespaces::USER;
    }
    let (mut wait, go) = io::pipe()?;
    let mut go = Some(go);
    let child = namespace::clone_into(kinds, || {
        // Our copy of the writing end: without it the pipe ends when the keeper does.
        drop(go.take());
        if !matches!(wait.read(&mut [0]), Ok(1)) || namespace::inherit(socket.as_fd()).is_err() {
            return 1;
        }
        let error = Command::new("/proc/self/exe")
            .arg0("portolan")
            .arg(init::VERB)
            .arg(socket.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .exec();
        eprintln!("error: {error}");
        1
    })?;
    let started = || -> io::Result<()> {
        if !administrator {
            let (uid, gid) = namespace::effective_ids();
            namespace::map_root(child.pid, uid, gid)?;
        }
        go.as_mut().map_or(Ok(()), |go| go.write_all(&[1]))
    }();
    if let Err(error) = started {
        drop(go);
        let _ = child.wait();
        return Err(error.into());
    }
    Ok(child)
}

struct Keeper {
    record: Record,
    signs: Signs,
    began: Instant,
}

impl Keeper {
    fn run(
        &mut self,
        plan: Plan,
        init: &Child,
        socket: UnixStream,
        front: Option<UnixStream>,
    ) -> anyhow::Result<u8> {
        let process = ProcessName::of(init.pid).context("the lab's first process ended at once")?;
        self.record.update(|state| state.init = Some(process))?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let result = runtime.block_on(self.follow(plan, socket, front));
        runtime.shutdown_background();
        result
    }

    async fn follow(
        &mut self,
        plan: Plan,
        socket: UnixStream,
        front: Option<UnixStream>,
    ) -> anyhow::Result<u8> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut front = front.map(Front::new).transpose()?;
        let (mut reader, mut writer) = protocol::split(socket)?;
        let options = &plan.options;
        writer
            .send(&Request::Make(Box::new(Order {
                topology: plan.topology.clone(),
                publish: options.publish.clone(),
                images: options.image.clone(),
                allow_host_image: options.allow_host_image,
                dir: self.record.dir().to_owned(),
            })))
            .await;

        let signs = self.signs.clone();
        let began = self.began;
        let mut making =
            std::pin::pin!(bring_up::run(&plan.topology, &plan.documents, signs, &mut writer, move |text| {
                tell(began, &text)
            }));
        let mut made = false;
        let mut checking: Option<tokio::process::Child> = None;
        loop {
            tokio::select! {
                report = reader.next::<Report>() => match report {
                    Some(report) => self.note(report)?,
                    None => bail!("the lab's first process ended"),
                },
                done = &mut making, if !made => {
                    made = true;
                    let found = done?;
                    self.record.update(|state| state.phase = Phase::Up)?;
                    tell(self.began, "up");
                    if options.check {
                        checking = Some(self.check()?);
                        continue;
                    }
                    self.say_how(&found, options.detach);
                    if let Some(front) = front.take() {
                        front.leave()?;
                    }
                },
                status = ended(&mut checking), if checking.is_some() => {
                    let status = status?;
                    return Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1));
                },
                () = gone(&mut front), if front.is_some() => return Ok(1),
                _ = interrupt.recv() => return Ok(self.interrupted(made, options, 130)),
                _ = terminate.recv() => return Ok(self.interrupted(made, options, 143)),
                _ = hangup.recv() => return Ok(self.interrupted(made, options, 129)),
            }
        }
    }

    /// A lab that was up has done its duty when it is told to end; one that wasn't, or whose check wasn't over, hasn't.
    fn interrupted(&self, made: bool, options: &Up, status: u8) -> u8 {
        tell(self.began, "ending the lab");
        if made && !options.check { 0 } else { status }
    }

    fn note(&mut self, report: Report) -> anyhow::Result<()> {
        match report {
            Report::Progress(text) => tell(self.began, &text),
            Report::Serving { api, kubeconfig } => {
                self.record.write_kubeconfig(&kubeconfig)?;
                self.record.update(|state| state.api = Some(api))?;
                tell(self.began, &format!("the API answers on https://{api}"));
                self.signs.serving.send_replace(Some(Serving { kubeconfig }));
            }
            Report::Published(published) => {
                for port in published.iter().filter(|port| !self.record.state().published.contains(port)) {
                    if let Some(words) = port.said_of_problem() {
                        tell(self.began, &words);
                    }
                }
                self.record.update(|state| state.published = published.clone())?;
                self.signs.published.send_replace(published);
            }
            Report::Processes(processes) => self.record.update(|state| state.processes = processes)?,
            Report::Ended { machine, status, log } => {
                // Once up, what is started again is a matter of `lab status`.
                if self.record.state().phase == Phase::Starting {
                    tell(
                        self.began,
                        &format!("{machine} ended with status {status} and is started again:\n{log}"),
                    );
                }
            }
            Report::Answered => self.signs.answered.notify_one(),
            Report::Failed(problem) => bail!(problem),
        }
        Ok(())
    }

    /// Tries every Service, in a process of its own that can enter the lab.
    fn check(&self) -> anyhow::Result<tokio::process::Child> {
        tokio::process::Command::new("/proc/self/exe")
            .arg0("portolan")
            .args(["lab", "check", "--name", &self.record.state().topology.name])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("starting the check")
    }

    /// What to type next.
    fn say_how(&self, found: &bring_up::Found, detached: bool) {
        let state = self.record.state();
        let program = std::env::args().next().unwrap_or_else(|| "portolan".into());
        let name = match state.topology.name.as_str() {
            "lab" => String::new(),
            name => format!(" --name {name}"),
        };
        let mut text = format!("export KUBECONFIG={}\n", state.kubeconfig.display());
        match (state.published.iter().find(|p| found.answers(p)), found.load_balancer) {
            (Some(port), _) => text.push_str(&format!("curl http://127.0.0.1:{}/\n", port.publish.host_port)),
            (None, Some(address)) => {
                text.push_str(&format!("{program} lab exec{name} client -- curl http://{address}/\n"));
            }
            (None, None) => {}
        }
        text.push_str(&format!("{program} lab down{name}\n"));
        // Nobody may be listening.
        let _ = io::stdout().write_all(text.as_bytes());
        if !detached {
            let _ = writeln!(io::stderr(), "Ctrl-C ends the lab.");
        }
    }

    /// Ends everything: the kernel ends what init has started, and init is waited for until all of that is gone.
    fn end(self, init: &Child) {
        if let Ok(handle) = namespace::pidfd(init.pid) {
            let _ = process::signal(handle.as_fd(), libc::SIGKILL);
        }
        let _ = init.wait();
        self.record.remove();
    }
}

/// The process in front of a detached keeper, which waits for one byte.
struct Front(tokio::net::UnixStream);

impl Front {
    fn new(stream: UnixStream) -> io::Result<Front> {
        stream.set_nonblocking(true)?;
        Ok(Front(tokio::net::UnixStream::from_std(stream)?))
    }

    /// All is up: the front process ends, and nothing of its input and output stays in use here.
    fn leave(self) -> anyhow::Result<()> {
        io::stdout().flush()?;
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(null.as_fd())?;
        rustix::stdio::dup2_stdout(null.as_fd())?;
        rustix::stdio::dup2_stderr(null.as_fd())?;
        self.0.try_write(&[0])?;
        Ok(())
    }
}

/// Returns when the front process has ended before it got its answer: nobody wants the lab any more.
async fn gone(front: &mut Option<Front>) {
    if let Some(Front(stream)) = front {
        let _ = stream.readable().await;
    }
}

async fn ended(child: &mut Option<tokio::process::Child>) -> io::Result<std::process::ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

/// A line of progress, with the seconds since the command began.
fn tell(began: Instant, text: &str) {
    // Nobody may be listening, which is no reason to fail.
    let _ = writeln!(io::stderr(), "{:6.2}s  {text}", began.elapsed().as_secs_f64());
}

/// `lab down`: asks the keeper to end the lab, and waits until nothing is left.
pub fn down(name: &str) -> anyhow::Result<ExitCode> {
    let labs = Labs::open()?;
    let state = labs.expect(name)?;
    let mut processes = Vec::new();
    for (name, signal) in [(Some(state.keeper), libc::SIGTERM), (state.init, libc::SIGKILL)] {
        let Some(name) = name else { continue };
        let Ok(handle) = namespace::pidfd(name.pid) else { continue };
        // Alive after the handle was taken: it is the one that is meant.
        if name.is_alive() {
            processes.push((name, handle, signal));
        }
    }
    for (name, handle, signal) in processes {
        if !name.is_alive() {
            continue;
        }
        process::signal(handle.as_fd(), signal).with_context(|| format!("ending process {}", name.pid))?;
        if !namespace::wait_readable(handle.as_fd(), PATIENCE)? {
            process::signal(handle.as_fd(), libc::SIGKILL)?;
            namespace::wait_readable(handle.as_fd(), PATIENCE)?;
        }
    }
    let dir: PathBuf = labs.dir_of(name);
    if dir.exists() {
        state::remove(&dir);
    }
    println!("lab {name} is gone");
    Ok(ExitCode::SUCCESS)
}

impl Default for Signs {
    fn default() -> Signs {
        Signs {
            serving: watch::Sender::new(None).into(),
            published: watch::Sender::new(Vec::new()).into(),
            answered: Notify::new().into(),
        }
    }
}
