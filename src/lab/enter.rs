//! Runs a command inside of a lab: in its user, mount and PID namespaces, and on one of its machines.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use portolan_sys::namespace::{self, Namespaces, ProcessNamespaces};

use super::state::{Labs, State};
use super::{init, network};

/// Runs a command on a machine of a lab and returns its exit status. Without a machine it runs in this machine's own
/// network namespace, otherwise inside.
pub fn run(state: &State, machine: Option<&str>, command: &mut Command) -> anyhow::Result<ExitCode> {
    if let Some(name) = machine
        && state.topology.machine(name).is_none()
    {
        let known: Vec<&str> = state.topology.machines().map(|m| m.name.as_str()).collect();
        bail!("no machine {name} in lab {}: there are {}", state.topology.name, known.join(", "));
    }
    let init = state.init.filter(|init| init.is_alive()).context("the lab is not up yet")?;
    let dir = Labs::open()?.dir_of(&state.topology.name);
    let here = std::env::current_dir();
    ProcessNamespaces::of(init.pid)
        .and_then(|namespaces| namespaces.enter())
        .with_context(|| format!("entering the lab {}", state.topology.name))?;
    // Entering a mount namespace leads to its root.
    if let Ok(here) = here {
        let _ = std::env::set_current_dir(here);
    }
    if let Some(name) = machine {
        let netns = std::fs::File::open(network::file(&dir, name))
            .with_context(|| format!("{name} isn't there yet"))?;
        namespace::enter(netns.as_fd(), Namespaces::NET)?;
        namespace::unshare(Namespaces::UTS)?;
        namespace::set_hostname(name)?;
    }
    // Only a child is born in the PID namespace.
    let parent = namespace::pidfd(std::process::id())?;
    let child = namespace::fork(|| {
        // One who ends between the fork and this call is noticed by his handle.
        let orphan = namespace::die_with_parent()
            .and_then(|()| namespace::wait_readable(parent.as_fd(), Duration::ZERO))
            .unwrap_or(true);
        if orphan {
            return 1;
        }
        let error = command.exec();
        eprintln!("error: {}: {error}", command.get_program().display());
        if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }
    })?;
    // The terminal's interrupts go to the child too, and it decides.
    namespace::ignore_terminal_signals()?;
    let status = child.wait()?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(1)))
}

/// `lab exec`.
pub fn exec(state: &State, machine: &str, command: &[OsString]) -> anyhow::Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no command given")?;
    let mut command = Command::new(program);
    let dir = Labs::open()?.dir_of(&state.topology.name);
    command
        .args(arguments)
        .env("HOSTNAME", machine)
        .env("PORTOLAN_LAB", &state.topology.name)
        .env("KUBECONFIG", init::kubeconfig_inside(&dir));
    run(state, Some(machine), &mut command)
}

/// Runs this program's own hidden verb inside.
pub fn own(state: &State, verb: &str, arguments: &[&OsStr]) -> anyhow::Result<ExitCode> {
    // Opened here: inside, `/proc/self/exe` would do as well, but a path might not be there.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("portolan").arg(verb).args(arguments);
    run(state, None, &mut command)
}
