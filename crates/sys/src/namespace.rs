//! Making and entering namespaces.
//!
//! Network and UTS namespaces belong to a thread, so they are entered on threads made for it. User, mount and PID
//! namespaces want a process with one thread, and are made and entered before a program starts its others.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;
use std::{mem, ptr, thread};

use rustix::io::FdFlags;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};

use crate::process;

/// Which namespaces to make: a sum of the constants below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces(i32);

impl Namespaces {
    /// User namespace.
    pub const USER: Namespaces = Namespaces(libc::CLONE_NEWUSER);
    /// PID namespace: of the children to come, not of the caller.
    pub const PID: Namespaces = Namespaces(libc::CLONE_NEWPID);
    /// Mount namespace.
    pub const MOUNT: Namespaces = Namespaces(libc::CLONE_NEWNS);
    /// Network namespace.
    pub const NET: Namespaces = Namespaces(libc::CLONE_NEWNET);
    /// Host name.
    pub const UTS: Namespaces = Namespaces(libc::CLONE_NEWUTS);
    /// System V IPC and message queues.
    pub const IPC: Namespaces = Namespaces(libc::CLONE_NEWIPC);
    /// Control groups.
    pub const CGROUP: Namespaces = Namespaces(libc::CLONE_NEWCGROUP);
    /// None.
    pub const NONE: Namespaces = Namespaces(0);

    /// The `CLONE_NEW…` bits.
    pub fn bits(self) -> i32 {
        self.0
    }
}

impl std::ops::BitOr for Namespaces {
    type Output = Namespaces;

    fn bitor(self, other: Namespaces) -> Namespaces {
        Namespaces(self.0 | other.0)
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

// === Entering ===

/// Runs a function on a thread of its own inside a network namespace; the caller's stays as it is. Sockets and
/// processes that it makes keep the namespace.
pub fn in_netns<T: Send>(netns: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(|| {
        enter(netns, Namespaces::NET)?;
        Ok(f())
    })
}

/// Runs a function on a thread of its own that has left nothing of the caller's behind but what it unshares.
pub fn on_thread<T: Send>(f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, f)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `setns(2)`: the calling thread enters a namespace.
pub fn enter(namespace: BorrowedFd<'_>, kinds: Namespaces) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::setns(namespace.as_raw_fd(), kinds.bits()) }).map(drop)
}

/// `unshare(2)`: the calling thread leaves its namespaces for new ones.
pub fn unshare(kinds: Namespaces) -> io::Result<()> {
    // SAFETY: no pointer is passed; file descriptors are not unshared.
    check(unsafe { libc::unshare(kinds.bits()) }).map(drop)
}

/// The network namespace of the calling thread.
pub fn current_netns() -> io::Result<OwnedFd> {
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
}

/// The network namespace of a process.
pub fn netns_of(pid: u32) -> io::Result<OwnedFd> {
    File::open(format!("/proc/{pid}/ns/net")).map(OwnedFd::from)
}

/// A new network namespace, its loopback link still down. It lives as long as the descriptor, a process or a socket in it.
pub fn new_netns() -> io::Result<OwnedFd> {
    on_thread(|| {
        unshare(Namespaces::NET)?;
        current_netns()
    })
}

/// Sets the host name of the calling thread's UTS namespace.
pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

/// The namespaces that make up the world of a process: what there is to see, and what may be done.
#[derive(Debug)]
pub struct ProcessNamespaces {
    files: Vec<(File, Namespaces)>,
}

impl ProcessNamespaces {
    /// Opens the user (where it differs from ours), mount and PID namespaces of a process. Entering the user namespace
    /// comes first: it brings the capabilities that the others ask for.
    pub fn of(pid: u32) -> io::Result<ProcessNamespaces> {
        let mut files = Vec::new();
        let ours = fs::metadata("/proc/self/ns/user")?;
        let user = File::open(format!("/proc/{pid}/ns/user"))?;
        if !same_file(&ours, &user.metadata()?) {
            files.push((user, Namespaces::USER));
        }
        for (name, kind) in [("pid", Namespaces::PID), ("mnt", Namespaces::MOUNT)] {
            files.push((File::open(format!("/proc/{pid}/ns/{name}"))?, kind));
        }
        Ok(ProcessNamespaces { files })
    }

    /// Enters them. The process must have one thread. Children are born in the PID namespace; the caller is not in it.
    pub fn enter(&self) -> io::Result<()> {
        use std::os::fd::AsFd;
        for (file, kind) in &self.files {
            enter(file.as_fd(), *kind)?;
        }
        Ok(())
    }
}

fn same_file(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

// === Making ===

/// A child made by [`fork`] or [`clone_into`].
#[derive(Debug)]
#[must_use]
pub struct Child {
    /// Its process id, as the parent sees it.
    pub pid: u32,
}

impl Child {
    /// Waits for its end and returns its exit status, 128 + the signal's number where a signal ended it.
    pub fn wait(&self) -> io::Result<i32> {
        let pid = Pid::from_raw(self.pid as i32);
        let ended = rustix::io::retry_on_intr(|| rustix::process::waitpid(pid, WaitOptions::empty()))?;
        Ok(ended.map_or(1, |(_, status)| exit_status(status)))
    }
}

/// A status as a shell tells it.
fn exit_status(status: WaitStatus) -> i32 {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(1)
}

/// Forks a process that has one thread: the child runs the function and exits with what it returns. With more threads
/// the child could meet locks that nobody will ever release, so that is refused.
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<Child> {
    single_threaded()?;
    match process::fork()? {
        None => exit_with(child),
        Some(pid) => Ok(Child { pid: pid.as_raw_nonzero().get() as u32 }),
    }
}

/// Like [`fork`], but the child is born in new namespaces; the first process of a PID namespace is its init. The child
/// should soon `exec`: the C library still believes it to have its parent's thread id.
pub fn clone_into(kinds: Namespaces, child: impl FnOnce() -> i32) -> io::Result<Child> {
    single_threaded()?;
    let flags = libc::c_long::from(kinds.bits() | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack this is fork(2) plus namespaces: the child goes on on a copy of the
    // stack; the process has one thread, hence the child finds every lock free. Flags come first everywhere but on s390.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone, flags, ptr::null::<u8>(), ptr::null::<u8>(), ptr::null::<u8>(), 0)
    };
    match pid {
        0 => exit_with(child),
        pid if pid > 0 => Ok(Child { pid: pid as u32 }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn exit_with(child: impl FnOnce() -> i32) -> ! {
    process::exit_now(std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101))
}

fn single_threaded() -> io::Result<()> {
    match fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(1) => Ok(()),
        Ok(n) => Err(io::Error::other(format!("a process of {n} threads can't be forked safely"))),
        // Whoever has entered another mount namespace is not in its `/proc`, and had one thread to do that (setns(2)).
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Gives the user namespace of a process its identity maps: uid 0 and gid 0 inside are these outside. An ordinary user
/// may map only its own ids and only once `setgroups` is denied (user_namespaces(7)).
pub fn map_root(pid: u32, uid: u32, gid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    fs::write(format!("/proc/{pid}/uid_map"), format!("0 {uid} 1"))?;
    fs::write(format!("/proc/{pid}/gid_map"), format!("0 {gid} 1"))
}

/// The effective user and group of this process.
pub fn effective_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Whether this process has the capabilities that namespaces, mounts and links ask for without a user namespace.
pub fn is_administrator() -> bool {
    const ADMIN: u64 = (1 << 21) | (1 << 12); // CAP_SYS_ADMIN, CAP_NET_ADMIN
    let effective = fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    effective.is_some_and(|caps| caps & ADMIN == ADMIN) && effective_ids().0 == 0
}

/// The calling process is killed when its parent ends.
pub fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

// === Mounts ===

/// Cuts this mount namespace off: nothing mounted here shows elsewhere, nor the reverse.
pub fn make_mounts_private() -> io::Result<()> {
    use rustix::mount::MountPropagationFlags as Flags;
    Ok(rustix::mount::mount_change("/", Flags::REC | Flags::PRIVATE)?)
}

/// Mounts a `/proc` of this process's own PID namespace.
pub fn mount_proc(target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount("proc", target, "proc", HARMLESS | MountFlags::NOEXEC, None)?)
}

/// Mounts an empty memory file system; `options` as in mount(8), such as `mode=0700`.
pub fn mount_tmpfs(target: &Path, options: &CStr) -> io::Result<()> {
    Ok(rustix::mount::mount("tmpfs", target, "tmpfs", HARMLESS, Some(options))?)
}

/// Makes a file or directory visible at a second place, together with what is mounted below it.
pub fn bind_mount(source: &Path, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind_recursive(source, target)?)
}

/// Takes a mount away now, whoever still uses it.
pub fn unmount(target: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(target, UnmountFlags::DETACH)?)
}

const HARMLESS: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);

// === Processes ===

/// A reaped child, ours or an orphan that fell to us: its process id and its exit status.
pub fn reap_any() -> io::Result<Option<(u32, i32)>> {
    match rustix::process::wait(WaitOptions::NOHANG) {
        Ok(ended) => Ok(ended.map(|(pid, status)| (pid.as_raw_nonzero().get() as u32, exit_status(status)))),
        Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A handle on a process that can't come to mean another one (`pidfd_open(2)`).
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// When a process started, in clock ticks since boot: with its id this names it for good. One that has ended but was not
/// waited for counts as gone.
pub fn start_time(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, the name, may hold spaces and parentheses; its last one ends it.
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    if matches!(fields.next(), Some("Z" | "X") | None) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    fields.nth(18).and_then(|ticks| ticks.parse().ok()).ok_or_else(|| io::Error::other("no start time"))
}

/// Waits until a descriptor is readable, which a pidfd is once its process has ended; `false` if it took longer.
pub fn wait_readable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    Ok(crate::packet::wait_readable(&[fd], limit)? == [true])
}

/// Lets a descriptor survive `exec`.
pub fn inherit(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::io::fcntl_setfd(fd, FdFlags::empty())?)
}

/// Takes ownership of a descriptor that was inherited by its number, and closes it at the next `exec`. The number must
/// have been handed over to the caller alone.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed. It fails where the number is not open.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and its number was handed over to this call's caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lets the calling process ignore the terminal's interrupts, as one does who waits for a child that gets them too.
pub fn ignore_terminal_signals() -> io::Result<()> {
    for number in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: sigaction is plain data, for which all zeroes is a value, and outlives the call; the handler is no
        // function of ours.
        check(unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = libc::SIG_IGN;
            libc::sigaction(number, &raw const action, ptr::null_mut())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_function_runs_in_the_namespace_named_and_its_caller_stays() {
        if !crate::trial::goes_on("a function runs in the namespace named and its caller stays") {
            return;
        }
        let netns = new_netns().expect("a namespace");
        let inode = |fd: OwnedFd| {
            use std::os::unix::fs::MetadataExt;
            File::from(fd).metadata().map(|m| m.ino()).expect("a namespace")
        };
        let here = inode(current_netns().expect("ours"));
        let there = in_netns(netns.as_fd(), || current_netns().map(inode)).expect("entered").expect("theirs");
        assert_eq!(inode(netns), there);
        assert_ne!(here, there);
        assert_eq!(inode(current_netns().expect("ours still")), here);
    }

    #[test]
    fn a_process_of_several_threads_is_not_forked() {
        // The test harness has its own thread besides this one.
        assert!(fork(|| 0).is_err());
    }

    #[test]
    fn a_process_is_named_by_its_id_and_start() {
        let ours = start_time(std::process::id()).expect("we run");
        assert_eq!(start_time(std::process::id()).expect("we still run"), ours);
        assert!(start_time(u32::MAX / 2).is_err());
        let handle = pidfd(std::process::id()).expect("a handle");
        assert!(!wait_readable(handle.as_fd(), Duration::ZERO).expect("polled"), "we have not ended");
    }
}
