//! What this machine knows of a lab: one directory with `state.json` and the kubeconfig, nothing else.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use portolan_sys::namespace;
use serde::{Deserialize, Serialize};

use super::topology::{Publish, Topology, Transport};

const STATE: &str = "state.json";
const KUBECONFIG: &str = "kubeconfig";

/// A process by its number and the time it started, which no other process shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessName {
    /// Its id, as this machine counts.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

impl ProcessName {
    /// Names a running process.
    pub fn of(pid: u32) -> io::Result<ProcessName> {
        Ok(ProcessName { pid, started: namespace::start_time(pid)? })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        namespace::start_time(self.pid).is_ok_and(|started| started == self.started)
    }
}

/// How far a lab has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It is being made.
    Starting,
    /// All that was asked for is there.
    Up,
}

/// A port published on 127.0.0.1, or the reason why it isn't.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// Which.
    #[serde(flatten)]
    pub publish: Publish,
    /// The Service whose NodePort it is, as `namespace/name`; none where it was asked for by --publish.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// Why it isn't published.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
}

impl Published {
    /// What there is to say where a NodePort is not published.
    pub fn said_of_problem(&self) -> Option<String> {
        let (problem, service) = (self.problem.as_ref()?, self.service.as_ref()?);
        let port = self.publish.port;
        let udp = if self.publish.protocol == Transport::Udp { "/udp" } else { "" };
        Some(format!(
            "NodePort {port} of {service} is not published here: {problem}; choose another number by --publish HOSTPORT:{port}{udp}"
        ))
    }
}

/// A process that the lab's init keeps running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supervised {
    /// The machine it runs on.
    pub machine: String,
    /// Its own name: that of the machine, or one for a part that runs beside it.
    #[serde(default)]
    pub name: String,
    /// Its id inside of the lab; none while it is down.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
}

/// A lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// How far it has come.
    pub phase: Phase,
    /// What it consists of.
    pub topology: Topology,
    /// The process that made it and takes it away.
    pub keeper: ProcessName,
    /// Its first process, with whose end the kernel ends all others.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub init: Option<ProcessName>,
    /// Where the API answers on this machine.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub api: Option<SocketAddr>,
    /// The file that lets kubectl in.
    pub kubeconfig: PathBuf,
    /// Published ports.
    #[serde(default)]
    pub published: Vec<Published>,
    /// What its init keeps running.
    #[serde(default)]
    pub processes: Vec<Supervised>,
}

impl State {
    /// Whether anything of it still runs.
    pub fn is_alive(&self) -> bool {
        self.keeper.is_alive() || self.init.is_some_and(|init| init.is_alive())
    }
}

/// The directory that holds this user's labs.
#[derive(Clone, Debug)]
pub struct Labs {
    dir: PathBuf,
}

impl Labs {
    /// `/run/portolan/labs` for root; else in `$XDG_RUNTIME_DIR` or the home directory's cache. Where none of these can be
    /// written to, a directory of the user's own in the one for temporary files.
    pub fn open() -> anyhow::Result<Labs> {
        let (uid, _) = namespace::effective_ids();
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let mut candidates = Vec::new();
        match uid {
            0 => candidates.push(PathBuf::from("/run/portolan")),
            _ => {
                candidates.extend(set("XDG_RUNTIME_DIR").map(|dir| dir.join("portolan")));
                candidates.extend(set("HOME").map(|dir| dir.join(".cache/portolan")));
            }
        }
        candidates.push(std::env::temp_dir().join(format!("portolan-{uid}")));
        let mut problems = Vec::new();
        for dir in candidates {
            match private_dir(&dir, uid) {
                Ok(()) => return Ok(Labs { dir: dir.join("labs") }),
                Err(error) => problems.push(format!("{}: {error}", dir.display())),
            }
        }
        bail!(
            "no directory to keep a lab's state in ({}); set TMPDIR to a directory that you can write to",
            problems.join("; ")
        )
    }

    /// The directory of a lab of this name.
    pub fn dir_of(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Takes a name for a new lab, once: of two who try, one gets an error. What a dead lab has left is removed.
    pub fn claim(&self, state: State) -> anyhow::Result<Record> {
        let dir = self.dir_of(&state.topology.name);
        let record = Record { dir: dir.clone(), state };
        // The directory appears under its name with its state in it.
        let beside = self.dir.join(format!(".{}.{}", record.state.topology.name, std::process::id()));
        for _ in 0..100 {
            make_private(&beside)?;
            write_private(&beside.join(STATE), &serde_json::to_vec_pretty(&record.state)?)?;
            match fs::rename(&beside, &dir) {
                Ok(()) => return Ok(record),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(_) if dir.is_dir() => {}
                Err(error) => return Err(error).with_context(|| format!("making {}", dir.display())),
            }
            let _ = fs::remove_dir_all(&beside);
            if let Some(other) = self.find(&record.state.topology.name)? {
                let name = &other.topology.name;
                bail!(
                    "a lab named {name} is up already (process {}); end it with `portolan lab down --name {name}`, or choose another --name",
                    other.keeper.pid
                );
            }
        }
        bail!("{} can't be made", dir.display())
    }

    /// The living lab of this name. A dead one's directory is removed.
    pub fn find(&self, name: &str) -> anyhow::Result<Option<State>> {
        let dir = self.dir_of(name);
        let text = match fs::read(dir.join(STATE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Half removed: an empty directory, or a kubeconfig of a lab that ended meanwhile.
                remove(&dir);
                return Ok(None);
            }
            other => other.with_context(|| format!("reading {}", dir.join(STATE).display()))?,
        };
        match serde_json::from_slice::<State>(&text) {
            Ok(state) if state.is_alive() => Ok(Some(state)),
            Ok(_) => {
                remove(&dir);
                Ok(None)
            }
            Err(error) => bail!(
                "{}: {error}: made by another version? End that lab, or remove the file",
                dir.join(STATE).display()
            ),
        }
    }

    /// The living lab of this name, or an error that says what to do.
    pub fn expect(&self, name: &str) -> anyhow::Result<State> {
        self.find(name)?
            .with_context(|| format!("no lab named {name} is up; `portolan lab list` shows those that are"))
    }

    /// All living labs by name. What dead ones have left is removed.
    pub fn list(&self) -> anyhow::Result<Vec<State>> {
        let mut all = Vec::new();
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
            other => other.with_context(|| format!("reading {}", self.dir.display()))?,
        };
        for entry in entries {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            match name.strip_prefix('.').and_then(|rest| rest.rsplit_once('.')) {
                // One who died while he made a directory.
                Some((_, pid)) if pid.parse().is_ok_and(|pid| namespace::start_time(pid).is_err()) => {
                    remove(&self.dir.join(&name));
                }
                Some(_) => {}
                None => all.extend(self.find(&name)?),
            }
        }
        all.sort_by(|a, b| a.topology.name.cmp(&b.topology.name));
        Ok(all)
    }
}

/// A lab's state on disk, kept by one process.
#[derive(Debug)]
pub struct Record {
    dir: PathBuf,
    state: State,
}

impl Record {
    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Changes the state, whole or not at all.
    pub fn update(&mut self, change: impl FnOnce(&mut State)) -> anyhow::Result<()> {
        let before = self.state.clone();
        change(&mut self.state);
        if self.state == before {
            return Ok(());
        }
        write_private(&self.dir.join(STATE), &serde_json::to_vec_pretty(&self.state)?)
    }

    /// Writes the kubeconfig.
    pub fn write_kubeconfig(&self, text: &str) -> anyhow::Result<()> {
        write_private(&self.state.kubeconfig, text.as_bytes())
    }

    /// Removes the directory.
    pub fn remove(self) {
        remove(&self.dir);
    }
}

/// The path of a lab's kubeconfig in its directory.
pub fn kubeconfig_in(dir: &Path) -> PathBuf {
    dir.join(KUBECONFIG)
}

/// Removes a lab's directory, and those above it that were made for labs and are empty now.
pub fn remove(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
    for above in dir.ancestors().skip(1).take(2) {
        // Not empty: others' labs.
        if fs::remove_dir(above).is_err() {
            break;
        }
    }
}

/// A directory that belongs to this user alone.
fn private_dir(dir: &Path, uid: u32) -> io::Result<()> {
    make_private(dir)?;
    let metadata = fs::symlink_metadata(dir)?;
    if !metadata.is_dir() || metadata.uid() != uid {
        return Err(io::Error::other("belongs to somebody else"));
    }
    // Not made for writing to: say so now rather than after the lab is made.
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).map_err(io::Error::from)
}

fn make_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Writes a file beside, then puts it in place: whoever reads finds the old or the new one, whole.
fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let beside = path.with_extension("new");
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        fs::rename(&beside, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}
