//! A cluster of network namespaces on this machine: a topology as a value → machines → teardown.
//!
//! It only makes namespaces and starts the public verbs `portolan server` and `portolan node`, which know nothing of it.
//! A lab is one tree of processes under an init of its own PID and mount namespaces (and, for an ordinary user, a user
//! namespace): when that init ends, the kernel ends the rest.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use crate::cli::lab::{LabCommand, LabVerb, Output};

pub mod topology; // machines, addresses, ranges: a value

pub mod apply; // manifests: read, then applied
mod bring_up; // from an API that answers to Services that answer
mod check; // what every place should see of every Service, and a table of it: pure
mod cluster; // the cluster through its API
mod dns; // the cluster's name servers
mod enter; // running a command inside
mod init; // the first process inside
mod keeper; // `lab up`, the process outside
mod network; // namespaces, cables, addresses
mod nodeports; // which NodePorts to publish
mod preflight; // what the machine has to have
mod probe; // real connections from real places
mod protocol; // what keeper and init tell each other
mod publish; // forwarders on 127.0.0.1
mod rounds; // goes round all places and tries all Services
mod sight; // what a check has to know of a cluster
mod state; // what is known of a lab outside
pub mod table; // aligned columns

use state::{Labs, Phase, State};

/// Runs a hidden verb, if it is one of the lab's.
pub fn hidden(verb: &str, mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    match verb {
        init::VERB => Some(init::main(args.next().as_deref().and_then(|a| a.to_str()))),
        rounds::VERB => Some(rounds::main(args.next().as_deref().and_then(|a| a.to_str()))),
        _ => None,
    }
}

/// Runs a verb of `portolan lab`. Called before the process has a second thread: most of them clone or enter namespaces.
pub fn run(command: LabCommand) -> anyhow::Result<ExitCode> {
    match command.verb {
        LabVerb::Up(options) => keeper::up(*options),
        LabVerb::Down(named) => keeper::down(&named.name),
        LabVerb::List(list) => {
            let labs = Labs::open()?.list()?;
            show(list.output, &labs, |labs| listing(labs))
        }
        LabVerb::Status(status) => {
            let state = Labs::open()?.expect(&status.named.name)?;
            show(status.output, &state, details)
        }
        LabVerb::Exec(exec) => {
            enter::exec(&Labs::open()?.expect(&exec.named.name)?, &exec.machine, &exec.command)
        }
        LabVerb::Kubeconfig(named) => {
            println!("{}", Labs::open()?.expect(&named.name)?.kubeconfig.display());
            Ok(ExitCode::SUCCESS)
        }
        LabVerb::Check(named) => rounds::enter(&Labs::open()?.expect(&named.name)?),
        LabVerb::Logs(logs) => {
            let labs = Labs::open()?;
            let state = labs.expect(&logs.named.name)?;
            let init = state.init.context("the lab is not up yet")?;
            // The lab's files show only in its own mount namespace, which its init has as root.
            let inside = init::log_file(&labs.dir_of(&logs.named.name), &logs.machine);
            let path = format!("/proc/{}/root{}", init.pid, inside.display());
            let mut file = std::fs::File::open(&path).with_context(|| {
                format!(
                    "no log of {}: expected server, init, a node's name, or dns- with a node's name",
                    logs.machine
                )
            })?;
            std::io::copy(&mut file, &mut std::io::stdout())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Prints a value in the form asked for.
pub fn show<T: Serialize>(
    output: Output,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<ExitCode> {
    let text = match output {
        Output::Table => table(value),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
        Output::Yaml => serde_saphyr::to_string(value)?,
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads has seen enough: `| head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        written => written.context("writing to standard output")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn listing(labs: &[State]) -> String {
    if labs.is_empty() {
        return "No labs are up.\n".into();
    }
    let rows: Vec<Vec<String>> = labs
        .iter()
        .map(|state| {
            vec![
                state.topology.name.clone(),
                phase(state.phase).into(),
                state.topology.nodes.len().to_string(),
                state.topology.families.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                state.api.map_or("<none>".into(), |api| format!("https://{api}")),
            ]
        })
        .collect();
    table::render(&["NAME", "STATUS", "NODES", "IP-FAMILIES", "API"], &rows)
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "Starting",
        Phase::Up => "Up",
    }
}

fn details(state: &State) -> String {
    let none = || "<none>".to_owned();
    let pid = |p: &state::Supervised| p.pid.map_or("down".into(), |pid| pid.to_string());
    let machines: Vec<Vec<String>> = state
        .topology
        .machines()
        .map(|machine| {
            let process = state.processes.iter().find(|p| p.name == machine.name);
            vec![
                machine.name.clone(),
                machine.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
                process.map_or(none(), pid),
                process.map_or(none(), |p| p.restarts.to_string()),
            ]
        })
        .collect();
    let beside: Vec<Vec<String>> = state
        .processes
        .iter()
        .filter(|process| process.name != process.machine)
        .map(|process| {
            vec![process.name.clone(), process.machine.clone(), pid(process), process.restarts.to_string()]
        })
        .collect();
    let mut text = listing(std::slice::from_ref(state));
    text.push('\n');
    text.push_str(&table::render(&["MACHINE", "ADDRESSES", "PID", "RESTARTS"], &machines));
    if !beside.is_empty() {
        text.push('\n');
        text.push_str(&table::render(&["BESIDE", "MACHINE", "PID", "RESTARTS"], &beside));
    }
    if !state.published.is_empty() {
        let ports: Vec<Vec<String>> = state
            .published
            .iter()
            .map(|p| {
                vec![
                    format!("127.0.0.1:{}", p.publish.host_port),
                    format!("{}/{}", p.publish.port, p.publish.protocol),
                    p.service.clone().unwrap_or_else(none),
                    p.problem.clone().unwrap_or_else(|| "Published".into()),
                ]
            })
            .collect();
        text.push('\n');
        text.push_str(&table::render(&["HERE", "NODEPORT", "SERVICE", "STATUS"], &ports));
    }
    text
}
