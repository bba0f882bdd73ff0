//! Pods as the kernel and their clients see them: a node's process, real supervisors, an API in memory.
//!
//! Each test runs as process 1 of namespaces of its own: whatever it leaves, the kernel removes.

mod api;
mod doors;
mod probes;
mod streams;
mod tests;
mod tls;
mod world;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use portolan_sys::namespace::{Namespaces, clone_into, is_administrator, map_root};

/// In which world a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// With the capabilities of this process, if it has any; else as a user.
    Anybody,
    /// As an ordinary user who is root in a user namespace: one user, no more.
    User,
}

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).collect::<Vec<OsString>>().into_iter();
    let first = args.next();
    match first.as_ref().and_then(|first| first.to_str()) {
        Some("__pod") => portolan_pods::pod_main(args),
        Some("--agent") => world::agent(args),
        Some("--test") => {
            tests::run(&args.next().and_then(|name| name.into_string().ok()).unwrap_or_default())
        }
        filter => all(filter.filter(|filter| !filter.starts_with('-')).unwrap_or_default()),
    }
}

/// Runs all tests whose name contains `filter`.
fn all(filter: &str) -> ExitCode {
    let (mut passed, mut failed, mut skipped, mut left_out) = (0, 0, 0, 0);
    for (name, world) in tests::NAMES {
        if !name.contains(filter) {
            left_out += 1;
            continue;
        }
        let title = format!("{name}{}", if *world == As::User { " (as a user)" } else { "" });
        match in_namespaces(name, *world) {
            Ok(0) => {
                println!("test {title} ... ok");
                passed += 1;
            }
            Ok(status) => {
                println!("test {title} ... FAILED (status {status})");
                failed += 1;
            }
            Err(reason) => {
                println!("skipped: {}: {reason}", title.replace('_', " "));
                skipped += 1;
            }
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; {left_out} filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs this program again, as process 1 of new namespaces. An error says why that can't be done here.
fn in_namespaces(name: &str, world: As) -> Result<i32, String> {
    let as_user = world == As::User || !is_administrator();
    let mut kinds = Namespaces::PID | Namespaces::MOUNT | Namespaces::NET | Namespaces::UTS | Namespaces::IPC;
    if as_user {
        kinds = kinds | Namespaces::USER;
    }
    let (mut mapped, mut map_done) = std::io::pipe().map_err(|error| error.to_string())?;
    let (mut ready, ready_end) = std::io::pipe().map_err(|error| error.to_string())?;
    // The parent's copy of `ready_end` goes with the closure.
    let child = clone_into(kinds, move || {
        let mut go = [0];
        if mapped.read_exact(&mut go).is_err() {
            return 1;
        }
        match prepare() {
            Ok(()) => drop(ready_end),
            Err(error) => {
                let _ = (&ready_end).write_all(error.as_bytes());
                return 1;
            }
        }
        let error = Command::new("/proc/self/exe").args(["--test", name]).exec();
        eprintln!("{error}");
        1
    })
    .map_err(|error| format!("namespaces can't be made here: {error}"))?;
    if as_user {
        let (user, group) = portolan_sys::namespace::effective_ids();
        map_root(child.pid, user, group).map_err(|error| format!("a user can't be mapped here: {error}"))?;
    }
    map_done.write_all(b"x").map_err(|error| error.to_string())?;
    let mut problem = String::new();
    let _ = ready.read_to_string(&mut problem);
    let status = child.wait().map_err(|error| error.to_string())?;
    if problem.is_empty() { Ok(status) } else { Err(problem) }
}

/// A /proc and a /tmp of the new world.
fn prepare() -> Result<(), String> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    let none = None::<&std::ffi::CStr>;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|error| format!("mounts can't be made private: {error}"))?;
    mount("proc", "/proc", "proc", MountFlags::empty(), none)
        .map_err(|error| format!("no fresh /proc: {error}"))?;
    mount("tmpfs", "/tmp", "tmpfs", MountFlags::empty(), none).map_err(|error| format!("no tmpfs: {error}"))
}
