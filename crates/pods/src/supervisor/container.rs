//! A container's first process: from the fork to the program.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use portolan_sys::process::{
    Capabilities, arrange_descriptors, become_user, confine_capabilities, exit_now, limit_resources,
};
use portolan_sys::seccomp::restrict_system_calls;
use rustix::process::Signal;

use super::{echo, root};
use crate::protocol::{Confinement, Launch, Program, Root};

/// What a container may do unless its manifest says otherwise: be root among its own files and on low ports. Other
/// runtimes also allow MKNOD, NET_RAW, SETFCAP, SYS_CHROOT and AUDIT_WRITE, which few need and attacks like.
const DEFAULT: [&str; 9] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE"];
/// The limit of open files.
const OPEN_FILES: u64 = 1 << 20;
/// The exit status of a container that could not be started.
pub(crate) const NOT_STARTED: i32 = 128;

/// The capabilities that a container ends up with. Names that nobody knows are an error, which names them.
pub(crate) fn capabilities(confinement: &Confinement) -> Result<Capabilities, String> {
    let named = |name: &String| {
        Capabilities::named(name)
            .ok_or_else(|| format!("securityContext.capabilities: {name:?} is not a capability"))
    };
    let mut keep = Capabilities::NONE;
    for name in DEFAULT {
        keep = keep.with(Capabilities::named(name).expect("the default names capabilities"));
    }
    // Dropping comes first, so that `drop: [ALL], add: [X]` leaves X.
    for name in &confinement.drop {
        keep = keep.without(named(name)?);
    }
    for name in &confinement.add {
        keep = keep.with(named(name)?);
    }
    Ok(keep)
}

/// Takes away what a container may not do. The last step before its program.
fn confine(confinement: &Confinement) -> io::Result<()> {
    limit_resources(OPEN_FILES)?;
    let identity = || become_user(confinement.user, confinement.group, &confinement.groups);
    let explain = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!(
                "securityContext: can't become user {:?}, group {:?} ({error}); without root this node has only user 0",
                confinement.user, confinement.group
            ),
        )
    };
    if confinement.privileged {
        return identity().map_err(explain);
    }
    let keep = capabilities(confinement).map_err(io::Error::other)?;
    let mut until_changed = keep;
    for name in ["SETUID", "SETGID", "SETPCAP"] {
        until_changed = until_changed.with(Capabilities::named(name).expect("a capability"));
    }
    confine_capabilities(until_changed)?;
    identity().map_err(explain)?;
    if confinement.user.unwrap_or(0) == 0 {
        confine_capabilities(keep)?;
    }
    restrict_system_calls()
}

fn command(argv: &[String], env: &[(String, String)], terminal: bool) -> io::Error {
    let Some((program, arguments)) = argv.split_first() else {
        return io::Error::new(
            io::ErrorKind::InvalidInput,
            "the container has no command and its image no default",
        );
    };
    let mut command = Command::new(OsStr::new(program));
    command.args(arguments).env_clear();
    if terminal {
        // As other runtimes do; the manifest's own comes after it.
        command.env("TERM", "xterm");
    }
    let error = command.envs(env.iter().cloned()).exec();
    if error.kind() == io::ErrorKind::NotFound && !program.contains('/') {
        return io::Error::new(
            error.kind(),
            format!("exec: {program:?}: executable file not found in $PATH"),
        );
    }
    io::Error::new(error.kind(), format!("exec: {program:?}: {error}"))
}

fn change_directory(directory: &Path) -> io::Result<()> {
    std::env::set_current_dir(directory)
        .map_err(|error| io::Error::new(error.kind(), format!("workingDir {}: {error}", directory.display())))
}

/// Ends this process as one that could not become the container's; the supervisor reads why.
fn give_up(failure: OwnedFd, error: &io::Error) -> ! {
    let _ = File::from(failure).write_all(error.to_string().as_bytes());
    exit_now(NOT_STARTED)
}

/// Becomes the container. Called in the new process 1 of the container's PID namespace.
pub(crate) fn become_container(
    place: &Path,
    launch: &Launch,
    standard: [BorrowedFd<'_>; 3],
    failure: BorrowedFd<'_>,
) -> ! {
    let Ok(failure) = arrange_descriptors(standard, failure) else { exit_now(NOT_STARTED) };
    let ready = begin_session(launch.console.terminal)
        .and_then(|()| root::enter(place, launch))
        .and_then(|()| confine(&launch.confinement));
    if let Err(error) = ready {
        give_up(failure, &error);
    }
    match &launch.program {
        Program::Echo(order) => {
            let _ = rustix::thread::set_name(c"echo");
            match echo::Server::open(order) {
                Ok(server) => {
                    // It listens: only now does it count as started.
                    drop(failure);
                    exit_now(server.serve(order))
                }
                Err(error) => give_up(failure, &io::Error::other(error)),
            }
        }
        Program::Exec(argv) => {
            let error = match change_directory(&launch.directory) {
                Ok(()) => command(argv, &launch.env, launch.console.terminal),
                Err(error) => error,
            };
            give_up(failure, &error)
        }
    }
}

/// A session of its own, and with it the right to be killed as a group, and to control standard input if it is a terminal.
fn begin_session(terminal: bool) -> io::Result<()> {
    rustix::process::setsid()?;
    if terminal {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    Ok(())
}

/// Becomes another program in a running container, whose namespaces have been entered.
pub(crate) fn become_guest(
    launch: &Launch,
    argv: &[String],
    standard: [BorrowedFd<'_>; 3],
    failure: BorrowedFd<'_>,
    terminal: bool,
) -> ! {
    let Ok(failure) = arrange_descriptors(standard, failure) else { exit_now(NOT_STARTED) };
    if launch.root == Root::Empty {
        let text = format!(
            "image {:?} is built in and has no programs: to run some, use an image of --image NAME=DIR, or \"host\"",
            launch.image
        );
        give_up(failure, &io::Error::other(text));
    }
    let ready = begin_session(terminal)
        .and_then(|()| confine(&launch.confinement))
        .and_then(|()| change_directory(&launch.directory))
        // When who waits for it is killed, so is the program. A change of user forgets it (PR_SET_PDEATHSIG(2const)), so it
        // comes last.
        .and_then(|()| Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?));
    let error = match ready {
        Ok(()) => command(argv, &launch.env, terminal),
        Err(error) => error,
    };
    give_up(failure, &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_follow_the_manifest_from_a_small_default() {
        let set = |add: &[&str], drop: &[&str]| {
            let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            capabilities(&Confinement { add: strings(add), drop: strings(drop), ..Confinement::default() })
        };
        let one = |name| Capabilities::named(name).expect("a capability");
        let default = set(&[], &[]).expect("the default");
        assert!(default.contains(one("NET_BIND_SERVICE")));
        for dangerous in ["SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE", "MKNOD", "SYS_MODULE"] {
            assert!(!default.contains(one(dangerous)), "{dangerous}");
        }
        assert_eq!(set(&["NET_RAW"], &["ALL"]), Ok(one("NET_RAW")));
        assert_eq!(set(&[], &["cap_chown"]), Ok(default.without(one("CHOWN"))));
        assert!(set(&["EVERYTHING"], &[]).is_err_and(|error| error.contains("EVERYTHING")));
    }
}
