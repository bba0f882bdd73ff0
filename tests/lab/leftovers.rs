//! Whatever process of a lab is killed, nothing stays: no process, no mount, no file, nothing in the machine's network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Lab, PORTOLAN, text};
use crate::map::root;

/// A running lab as this machine sees it.
pub struct Traces {
    /// Its init's PID namespace.
    namespace: PathBuf,
    /// Its directory.
    dir: PathBuf,
    /// The process outside.
    pub keeper: u32,
    /// The first process inside.
    pub init: u32,
    /// Every process of it, pods' too, and when it started.
    processes: Vec<(u32, Option<String>)>,
    /// The links of the machine's own network namespace before.
    links: BTreeSet<String>,
}

/// The processes that descend from a lab's init, pods' in PID namespaces of their own among them, and those that have
/// entered its PID namespace; with their command lines.
fn processes_of(init: u32, namespace: &Path) -> Vec<(u32, String)> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        // Gone meanwhile, perhaps.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parents.insert(pid, parent.unwrap_or(0));
    }
    let descends = |mut pid: u32| loop {
        match parents.get(&pid) {
            _ if pid == init => return true,
            Some(parent) => pid = *parent,
            None => return false,
        }
    };
    let inside = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|n| n == namespace);
    let line = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    parents
        .keys()
        .filter(|pid| parents.contains_key(&init) && descends(**pid) || inside(**pid))
        .map(|pid| (*pid, String::from_utf8_lossy(&line(*pid)).replace('\0', " ")))
        .collect()
}

/// When a process started, which together with its number names it.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19).map(str::to_owned)
}

/// The links of the machine's own network namespace.
pub fn links() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/net/dev").expect("links");
    text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

impl Traces {
    /// Of a lab that is up.
    pub fn of(name: &str, links: BTreeSet<String>) -> Traces {
        let state = status(name);
        let number = |pointer: &str| state.pointer(pointer).and_then(Value::as_u64).expect("a pid") as u32;
        let init = number("/init/pid");
        let kubeconfig = state["kubeconfig"].as_str().expect("a path");
        let namespace = fs::read_link(format!("/proc/{init}/ns/pid")).expect("init's PID namespace");
        let processes = processes_of(init, &namespace).into_iter().map(|(pid, _)| (pid, started(pid)));
        Traces {
            processes: processes.collect(),
            namespace,
            dir: Path::new(kubeconfig).parent().expect("a directory").to_owned(),
            keeper: number("/keeper/pid"),
            init,
            links,
        }
    }

    /// A process of the lab whose command line contains this.
    pub fn process(&self, part: &str) -> u32 {
        let all = processes_of(self.init, &self.namespace);
        let found = all.iter().find(|(_, line)| line.contains(part));
        found.unwrap_or_else(|| panic!("no process {part:?} among {all:?}")).0
    }

    /// Waits until nothing is left, and fails if something stays.
    pub fn vanish(&self) {
        eventually("everything of the lab is gone", || {
            let processes = processes_of(self.init, &self.namespace);
            if !processes.is_empty() {
                return Err(format!("processes {processes:?}"));
            }
            if let Some(stays) =
                self.processes.iter().find(|(pid, began)| began.is_some() && started(*pid) == *began)
            {
                return Err(format!("process {stays:?}"));
            }
            if Path::new(&format!("/proc/{}", self.keeper)).exists() && !is_zombie(self.keeper) {
                return Err(format!("the keeper {}", self.keeper));
            }
            if self.dir.exists() {
                return Err(format!("{} with {:?}", self.dir.display(), fs::read_dir(&self.dir)));
            }
            Ok(())
        });
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mounts.contains(&*self.dir.to_string_lossy()), "a mount stays: {mounts}");
        assert_eq!(links(), self.links, "links of the machine's own network");
    }
}

fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

pub fn status(name: &str) -> Value {
    let output = Command::new(PORTOLAN)
        .args(["lab", "status", "--name", name, "-o", "json"])
        .output()
        .expect("running portolan");
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> Result<(), String>) {
    let began = Instant::now();
    while let Err(missing) = holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}: {missing}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn kill(signal: &str, pid: u32) {
    let done = Command::new("kill").args([signal, &pid.to_string()]).status().expect("running kill");
    assert!(done.success(), "kill {signal} {pid}");
}

#[test]
fn a_killed_keeper_or_init_takes_everything_along() {
    for victim in ["keeper", "init"] {
        let before = links();
        let promise = "a killed keeper or init takes everything along";
        let Some(lab) = Lab::up(promise, &format!("kill-{victim}"), &["--nodes", "1", "-f", "examples"])
        else {
            return;
        };
        let traces = Traces::of(&lab.name, before);
        kill("-9", if victim == "keeper" { traces.keeper } else { traces.init });
        traces.vanish();
        lab.has_ended();
    }
}

#[test]
fn what_init_keeps_running_comes_back_and_goes_with_the_lab() {
    let before = links();
    let promise = "what init keeps running comes back and goes with the lab";
    let Some(lab) = Lab::up(promise, "kill-part", &["--nodes", "1", "-f", "examples"]) else { return };
    let traces = Traces::of(&lab.name, before);
    for (part, machine) in [("portolan server ", "server"), ("portolan node ", "node-1")] {
        let victim = traces.process(part);
        kill("-9", victim);
        eventually("a killed process is started again", || {
            let state = status(&lab.name);
            let all = state["processes"].as_array().cloned().unwrap_or_default();
            let process = all.iter().find(|p| p["machine"] == machine).cloned().unwrap_or_default();
            match process["restarts"] == 1 && process["pid"].is_u64() {
                true => Ok(()),
                false => Err(process.to_string()),
            }
        });
    }
    kill("-9", traces.process("__pod"));
    drop(lab);
    traces.vanish();
}

/// `lab up` in the foreground, up.
fn foreground(promise: &str, name: &str) -> Option<Child> {
    let mut child = Command::new(PORTOLAN)
        .args(["lab", "up", "--name", name, "--nodes", "1"])
        .current_dir(root())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("running portolan");
    // What to type next is printed when all is up.
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    if lines.next().is_none() {
        let status = child.wait().expect("its status");
        assert_eq!(status.code(), Some(3), "lab up ended");
        portolan_sys::trial::skipped(promise, "the machine can't run a lab");
        return None;
    }
    // Read on, so that its last words find an end of the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Some(child)
}

#[test]
fn a_lab_in_the_foreground_ends_with_its_process() {
    let promise = "a lab in the foreground ends with its process";
    for (signal, status) in [("-TERM", Some(0)), ("-INT", Some(0)), ("-KILL", None)] {
        let before = links();
        let name = format!("fore{}-{}", signal.to_lowercase(), std::process::id());
        let Some(mut child) = foreground(promise, &name) else { return };
        let traces = Traces::of(&name, before);
        assert_eq!(traces.keeper, child.id());
        kill(signal, child.id());
        assert_eq!(child.wait().expect("its status").code(), status, "{signal}");
        traces.vanish();
    }
}

#[test]
fn what_a_dead_lab_left_is_removed_by_the_next() {
    let before = links();
    let promise = "what a dead lab left is removed by the next";
    let Some(lab) = Lab::up(promise, "stale", &["--nodes", "1"]) else { return };
    let traces = Traces::of(&lab.name, before);
    // Both at once: nobody is left to remove the files.
    kill("-STOP", traces.keeper);
    kill("-STOP", traces.init);
    kill("-9", traces.init);
    kill("-9", traces.keeper);
    eventually("its processes are gone", || match processes_of(traces.init, &traces.namespace) {
        all if all.is_empty() => Ok(()),
        all => Err(format!("{all:?}")),
    });
    // The directory stays until somebody looks at the list, who may be another test by now.
    let name = lab.name.clone();
    lab.has_ended();
    let list = Command::new(PORTOLAN).args(["lab", "list"]).output().expect("running portolan");
    assert!(!text(&list).contains(&name), "{}", text(&list));
    traces.vanish();
}
