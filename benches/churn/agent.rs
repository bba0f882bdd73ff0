//! The agent: the real binary in a process of its own, and what the process uses.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::api::NODE;

/// `USER_HZ`, which is 100 on every architecture that we run on.
const TICKS: f64 = 100.0;

/// An agent that runs. It is killed when it is dropped.
pub struct Agent {
    process: Child,
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Seconds of processor time: its own, and the kernel's for it.
    pub cpu: f64,
    /// Bytes that are resident, and the most that ever were.
    pub resident: u64,
    pub peak: u64,
}

impl Agent {
    /// Starts it in the network namespace of the calling thread, for the API at this address. The variable `PORTOLAN` names
    /// another binary, `AGENT_LOG` a file for what it says, which otherwise goes nowhere.
    pub fn start(api: SocketAddr, directory: &std::path::Path) -> Agent {
        let kubeconfig: PathBuf = directory.join("kubeconfig");
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: bench, contexts: [{{name: bench, context: {{cluster: bench, \
             user: bench}}}}], users: [{{name: bench, user: {{}}}}], clusters: [{{name: bench, cluster: {{server: \
             \"http://{api}\"}}}}]}}"
        );
        std::fs::write(&kubeconfig, text).expect("a kubeconfig");
        let log = match std::env::var_os("AGENT_LOG") {
            Some(path) => {
                std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a log").into()
            }
            None => Stdio::null(),
        };
        let process = Command::new(
            std::env::var_os("PORTOLAN").unwrap_or_else(|| env!("CARGO_BIN_EXE_portolan").into()),
        )
        .args(["agent", "--node-name", NODE, "--kubeconfig"])
        .arg(kubeconfig)
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the agent");
        Agent { process }
    }

    /// What it has used so far.
    pub fn usage(&mut self) -> Usage {
        if let Some(status) = self.process.try_wait().expect("its status") {
            panic!("the agent ended: {status}; AGENT_LOG=FILE keeps what it says");
        }
        let read =
            |name| std::fs::read_to_string(format!("/proc/{}/{name}", self.process.id())).expect("/proc");
        let (stat, status) = (read("stat"), read("status"));
        // proc_pid_stat(5): fields 14 and 15; the second, the name, ends at the last parenthesis.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
        let size = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a size");
            line.trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
        };
        Usage { cpu: ticks as f64 / TICKS, resident: size("VmRSS:"), peak: size("VmHWM:") }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill(); // by SIGKILL; it may have ended
        let _ = self.process.wait();
    }
}
