//! A lab for a test: up, used by the machine's own programs, and down however the test ends.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::map::root;

/// The program under test.
pub const PORTOLAN: &str = env!("CARGO_BIN_EXE_portolan");

/// How long a condition may take before a test gives up: generous, since CI's machines are small and busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running lab, taken down when dropped.
pub struct Lab {
    pub name: String,
    ended: bool,
    _turn: Turn,
}

/// How many labs are up in this process, or that one is up alone.
static TURNS: (Mutex<Turns>, Condvar) = (Mutex::new(Turns { beside: 0, alone: false }), Condvar::new());

struct Turns {
    beside: usize,
    alone: bool,
}

/// The right to have a lab up: beside others, or alone. Tests that hold connections to a time limit want to be alone,
/// since two cores shared with another test's load can make a connection late that nothing is wrong with.
struct Turn {
    alone: bool,
}

impl Turn {
    fn take(alone: bool) -> Turn {
        let (turns, changed) = &TURNS;
        let held = turns.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |t: &mut Turns| t.alone || alone && t.beside > 0;
        let mut held = changed.wait_while(held, busy).unwrap_or_else(PoisonError::into_inner);
        match alone {
            true => held.alone = true,
            false => held.beside += 1,
        }
        Turn { alone }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (turns, changed) = &TURNS;
        let mut held = turns.lock().unwrap_or_else(PoisonError::into_inner);
        match self.alone {
            true => held.alone = false,
            false => held.beside -= 1,
        }
        changed.notify_all();
    }
}

impl Lab {
    /// As [`Lab::up`], while no other lab of this process is up.
    pub fn up_alone(promise: &str, name: &str, more: &[&str]) -> Option<Lab> {
        Lab::up_in(Turn::take(true), promise, name, more)
    }

    /// Brings a lab up, detached. `None`, said aloud, where the machine can't: `promise` is then not tested.
    pub fn up(promise: &str, name: &str, more: &[&str]) -> Option<Lab> {
        Lab::up_in(Turn::take(false), promise, name, more)
    }

    /// A lab that the test has brought up by itself.
    pub fn named(name: String) -> Lab {
        Lab { name, ended: false, _turn: Turn::take(false) }
    }

    /// The test has ended the lab in its own way: there is nothing to take down.
    pub fn has_ended(mut self) {
        self.ended = true;
    }

    fn up_in(turn: Turn, promise: &str, name: &str, more: &[&str]) -> Option<Lab> {
        let name = format!("{name}-{}", std::process::id());
        let output = Command::new(PORTOLAN)
            .args(["lab", "up", "--name", &name, "--detach"])
            .args(more)
            .current_dir(root())
            .output()
            .expect("running portolan");
        if output.status.code() == Some(3) {
            let why = String::from_utf8_lossy(&output.stderr);
            portolan_sys::trial::skipped(
                promise,
                why.lines().next().unwrap_or("the machine can't run a lab"),
            );
            return None;
        }
        let lab = Lab { name, ended: false, _turn: turn };
        assert!(output.status.success(), "lab up: {}", text(&output));
        Some(lab)
    }

    /// A command that runs what is added to it at a place of the lab.
    pub fn at(&self, place: &str) -> Command {
        let mut command = Command::new(PORTOLAN);
        command.args(["lab", "exec", "--name", &self.name, place, "--"]);
        command
    }

    /// Runs a program at a place and gives what it printed.
    pub fn run_at(&self, place: &str, program: &[&str]) -> Output {
        self.at(place).args(program).output().expect("running portolan lab exec")
    }

    /// A verb of `portolan lab`, for this lab.
    pub fn verb(&self, verb: &str, more: &[&str]) -> Output {
        Command::new(PORTOLAN)
            .args(["lab", verb, "--name", &self.name])
            .args(more)
            .output()
            .expect("running portolan lab")
    }

    /// The path of the lab's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        let output = self.verb("kubeconfig", &[]);
        assert!(output.status.success(), "{}", text(&output));
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    }

    /// A client of the lab's API server, through its socket.
    pub async fn client(&self) -> kube::Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let file = kube::config::Kubeconfig::read_from(self.kubeconfig()).expect("a kubeconfig");
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await.expect("a configuration");
        kube::Client::try_from(config).expect("a client")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let output = self.verb("down", &[]);
        if !output.status.success() {
            eprintln!("lab down: {}", text(&output));
        }
    }
}

/// Everything that a program printed.
pub fn text(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits until the condition gives something, asking again shortly after each no; the `Err` says what is still missing.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(missing) if began.elapsed() > PATIENCE => panic!("{what}: {missing}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A runtime for the asynchronous part of a test.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}
