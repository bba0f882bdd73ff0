//! What the node's process and a pod's supervisor say to each other, and the files in a pod's directory.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// `order.json`: what the supervisor is to make; written before it is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The host name in the pod, unless it shares the node's network and name.
    pub hostname: String,
    /// `spec.hostNetwork`.
    pub host_network: bool,
}

/// `sandbox.json`: how to find a running pod. Others may read it: `pid` is process 1 of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    /// Process 1 of the pod as the node's PID namespace numbers it.
    pub pid: i32,
    /// When that process started (field 22 of `/proc/PID/stat`), so that another process with its number isn't taken for it.
    pub starttime: u64,
    /// The boot in which it started (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// Whether the pod uses the node's network namespace.
    #[serde(rename = "hostNetwork")]
    pub host_network: bool,
}

/// What a container runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Program {
    /// The built-in echo server.
    Echo(EchoOrder),
    /// A program of the container's root.
    Exec(Vec<String>),
}

/// What the built-in echo server is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EchoOrder {
    /// Ports for TCP.
    pub tcp: Vec<u16>,
    /// Ports for UDP.
    pub udp: Vec<u16>,
    /// The pod's addresses: UDP answers leave from the one that was asked.
    pub addresses: Vec<IpAddr>,
    /// Whether SIGTERM ends it at once, instead of after clients have stopped coming.
    pub abrupt: bool,
    /// Seconds after SIGTERM at which it will be killed.
    pub grace: u64,
}

/// What a container's root is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Root {
    /// Nothing at all.
    Empty,
    /// A directory, under a layer of the container's own that it may write to.
    Image {
        /// The directory.
        directory: PathBuf,
        /// Without that layer (`readOnlyRootFilesystem`).
        read_only: bool,
    },
    /// The machine's root, read-only.
    Host,
}

/// A file or directory of the node made visible in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// Where it is on the node.
    pub source: PathBuf,
    /// Where the container sees it.
    pub target: PathBuf,
    /// Whether the container can't write to it.
    pub read_only: bool,
    /// Whether the container does without it when its root has no such place.
    pub optional: bool,
}

/// What a container may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// Everything that the supervisor may.
    pub privileged: bool,
    /// Capabilities on top of the default.
    pub add: Vec<String>,
    /// Capabilities taken from the default.
    pub drop: Vec<String>,
    /// `runAsUser`.
    pub user: Option<u32>,
    /// `runAsGroup`.
    pub group: Option<u32>,
    /// `fsGroup` and `supplementalGroups`.
    pub groups: Vec<u32>,
}

/// One start of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// The container's name.
    pub name: String,
    /// Unique for this start.
    pub id: String,
    /// How many times the container was started before.
    pub attempt: u32,
    /// How many of those were restarts in a row after short runs: what the back-off grows with.
    pub streak: u32,
    /// The image's name, as resolved.
    pub image: String,
    /// What to run.
    pub program: Program,
    /// In what root.
    pub root: Root,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub directory: PathBuf,
    /// More mounts, parents before children.
    pub mounts: Vec<Mount>,
    /// What it may do.
    pub confinement: Confinement,
    /// What its standard streams are.
    #[serde(default)]
    pub console: Console,
    /// Whether it can leave a message about its end ([`PodDir::last_words`]), and where one comes from if it hasn't.
    #[serde(default)]
    pub last_words: Option<LastWords>,
}

/// `terminationMessagePolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LastWords {
    /// `File`: only what it left.
    File,
    /// `FallbackToLogsOnError`: after an error, what it wrote last.
    OrLogs,
}

/// What a container's standard streams are: `stdin`, `stdinOnce` and `tty`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Console {
    /// Standard input is kept for those who attach; without it there is none.
    pub stdin: bool,
    /// Standard input ends with the first who attaches to it.
    pub once: bool,
    /// All three are one terminal.
    pub terminal: bool,
}

/// How one run of a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exit {
    /// Which run.
    pub id: String,
    /// The exit status; 128 + the signal's number if a signal ended it.
    pub code: i32,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
    /// When it started.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// Why it could not be started, if it could not.
    pub failure: Option<String>,
    /// What it said of its end.
    #[serde(default)]
    pub last_words: Option<String>,
}

/// Whether a container runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RunState {
    /// It runs since then.
    Running(Timestamp),
    /// It ended.
    Exited(Exit),
}

/// `containers/NAME.json`: what is known of a container. Written at each change, before anybody is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Which run this is.
    pub id: String,
    /// How many times the container was started before this run.
    pub attempt: u32,
    /// As in [`Launch`].
    pub streak: u32,
    /// As in [`Launch`].
    pub image: String,
    /// This run.
    pub state: RunState,
    /// The run before.
    pub previous: Option<Exit>,
}

impl Record {
    /// Notes that the container is gone because process 1 of the pod is, if it was running.
    pub fn end_with_sandbox(&mut self, now: Timestamp) {
        if let RunState::Running(started) = self.state {
            // The kernel kills what is left of a PID namespace by SIGKILL: 128 + 9 (pid_namespaces(7)).
            self.state = RunState::Exited(Exit {
                id: self.id.clone(),
                code: 137,
                signal: Some(9),
                started,
                finished: now,
                failure: None,
                last_words: None,
            });
        }
    }
}

/// What the node's process asks for. One line of JSON each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Start a container, unless this very start has happened already.
    Start(Box<Launch>),
    /// End a container: SIGTERM now, SIGKILL after the grace.
    Stop {
        /// The container.
        name: String,
        /// The run that is meant.
        id: String,
        /// Milliseconds until SIGKILL.
        grace: u64,
    },
    /// Run a program in a running container.
    Exec {
        /// Comes back with the result.
        token: u64,
        /// The container.
        name: String,
        /// The program and its arguments.
        command: Vec<String>,
        /// Milliseconds until it is killed.
        timeout: u64,
    },
    /// Run a program in a running container, or follow the container itself, with three descriptors that come with this
    /// line: standard input, output and error. It ends with the connection that asked.
    Session {
        /// Comes back with the result.
        token: u64,
        /// The container.
        name: String,
        /// The program and its arguments; without one the container's own streams are meant.
        command: Option<Vec<String>>,
        /// Whether the descriptors are a terminal, which the program is to control.
        terminal: bool,
    },
    /// The size of the terminal of a container that this session follows.
    Resize {
        /// The session.
        token: u64,
        /// Its height in characters.
        rows: u16,
        /// Its width in characters.
        columns: u16,
    },
}

/// What the supervisor answers. One line of JSON each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// All containers as they are now: after connecting, and after each change.
    Containers(BTreeMap<String, Record>),
    /// A program of [`Request::Exec`] or a [`Request::Session`] has ended. Only who asked is told.
    Executed {
        /// Which one.
        token: u64,
        /// Its exit status; `None` if it could not be started or took too long.
        code: Option<i32>,
        /// What it wrote, cut short; of a session, why it could not begin.
        output: String,
    },
}

/// The files of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodDir(pub PathBuf);

impl PodDir {
    /// `order.json`.
    pub fn order(&self) -> PathBuf {
        self.0.join("order.json")
    }
    /// `sandbox.json`.
    pub fn sandbox(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }
    /// `network.json`: the addresses that the pod owns.
    pub fn network(&self) -> PathBuf {
        self.0.join("network.json")
    }
    /// `pod.json`: namespace and name.
    pub fn pod(&self) -> PathBuf {
        self.0.join("pod.json")
    }
    /// `containers/NAME.json`.
    pub fn record(&self, container: &str) -> PathBuf {
        self.0.join("containers").join(format!("{container}.json"))
    }
    /// Directory of a container's logs.
    pub fn logs(&self, container: &str) -> PathBuf {
        self.0.join("logs").join(container)
    }
    /// The log of one run of a container.
    pub fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.logs(container).join(format!("{attempt}.log"))
    }
    /// What the node prepares for the containers: `/etc/hosts` and the like.
    pub fn etc(&self, file: &str) -> PathBuf {
        self.0.join("etc").join(file)
    }
    /// Where a container leaves a message about its end.
    pub fn last_words(&self, container: &str) -> PathBuf {
        self.0.join("last-words").join(container)
    }
    /// A volume's directory.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.0.join("volumes").join(name)
    }

    /// All container records on disk. What can't be read is left out.
    pub fn records(&self) -> BTreeMap<String, Record> {
        let mut records = BTreeMap::new();
        let Ok(entries) = std::fs::read_dir(self.0.join("containers")) else { return records };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            if let Ok(Some(record)) = read_json::<Record>(&path) {
                records.insert(name.to_owned(), record);
            }
        }
        records
    }
}

/// The socket's name in a pod's directory.
pub(crate) const SOCKET: &str = "control";

/// Where containers are put together, in a pod's directory.
pub(crate) const ROOT: &str = "root";

/// Replaces a file in one step: a reader sees the old or the new, whoever is killed in between.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, path)
}

/// [`write_atomically`] of a value as JSON.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_atomically(path, &serde_json::to_vec(value)?)
}

/// A value from a JSON file; `None` if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(serde_json::from_slice(&content)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// When the process started, in clock ticks since boot (proc(5): field 22 of `/proc/PID/stat`); `None` if it is gone.
pub(crate) fn starttime(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may contain anything: count from the last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Names this boot of the machine.
pub(crate) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let own = std::process::id() as i32;
        assert!(starttime(own).is_some_and(|ticks| ticks > 0));
        assert_eq!(starttime(own), starttime(own));
        assert_eq!(starttime(0), None);
    }
}
