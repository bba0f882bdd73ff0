//! Lets a test that makes namespaces run for an ordinary user too: as root of a user namespace of its own.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};

use crate::namespace::{self, Namespaces};

/// Set in a test's process that is root of a user namespace: whoever can't make namespaces there can't make them at all.
const INSIDE: &str = "PORTOLAN_TEST_INSIDE";

/// Says aloud that a promise isn't tested on this machine. Past the harness, which swallows what passing tests print.
pub fn skipped(promise: &str, reason: &str) {
    let _ = writeln!(io::stderr(), "skipped: {promise}: {reason}");
}

/// Whether a test can go on here because it can make network namespaces.
///
/// Where only root of a user namespace can, this program is started again there for this test alone, and the answer is
/// no: the test has passed. The answer is no as well where nobody can make them, which is said aloud: the promise is
/// then not tested.
///
/// # Panics
///
/// Where the test fails in the user namespace.
pub fn goes_on(promise: &str) -> bool {
    let Err(error) = namespace::new_netns() else { return true };
    let skip = |reason: &dyn std::fmt::Display| skipped(promise, &format!("no network namespace: {reason}"));
    let thread = std::thread::current();
    // Tests run on threads that bear their names.
    let name = thread.name().filter(|name| *name != "main");
    let (None, Some(name), Ok(program)) = (std::env::var_os(INSIDE), name, std::env::current_exe()) else {
        skip(&error);
        return false;
    };
    let mut command = Command::new(program);
    command.args([name, "--exact", "--nocapture"]).env(INSIDE, "1");
    match as_root_of_its_own(&mut command).output() {
        Err(error) => skip(&error),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            for line in said.lines().filter_map(|line| words_of(line, name)) {
                println!("{line}");
            }
            let _ = io::stderr().write_all(&output.stderr);
            assert!(output.status.success(), "{name} failed in a user namespace: {}", output.status);
            assert!(said.contains("test result: ok. 1 passed"), "{name} did not run in a user namespace");
        }
    }
    false
}

/// What a test itself said in a line of its program's output: the harness's own words would be read as another run's.
fn words_of<'a>(line: &'a str, test: &str) -> Option<&'a str> {
    let after_name = line.strip_prefix("test ").and_then(|l| l.strip_prefix(test)?.strip_prefix(" ... "));
    let words = after_name.unwrap_or(line);
    let harness = matches!(words, "" | "ok" | "running 1 test") || words.starts_with("test result: ");
    (!harness).then_some(words)
}

/// Lets a command run as root of a new user namespace: the caller's user and group, and no others, under the number 0.
pub fn as_root_of_its_own(command: &mut Command) -> &mut Command {
    let (uid, gid) = namespace::effective_ids();
    let (uids, gids) = (format!("0 {uid} 1"), format!("0 {gid} 1"));
    let enter = move || {
        namespace::unshare(Namespaces::USER)?;
        // An ordinary user may map its group only once `setgroups` is denied (user_namespaces(7)).
        write(c"/proc/self/setgroups", b"deny")?;
        write(c"/proc/self/uid_map", uids.as_bytes())?;
        write(c"/proc/self/gid_map", gids.as_bytes())
    };
    // SAFETY: between fork and exec the function makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(enter) }
}

fn write(path: &CStr, text: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    // The kernel takes a map in one write or not at all.
    rustix::io::write(&file, text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_heard_wherever_the_harness_puts_it() {
        for line in ["skipped: a: b", "test x::a ... skipped: a: b"] {
            assert_eq!(words_of(line, "x::a"), Some("skipped: a: b"));
        }
        for line in ["", "running 1 test", "test x::a ... ok", "test result: ok. 1 passed; 0 failed"] {
            assert_eq!(words_of(line, "x::a"), None);
        }
    }
}
