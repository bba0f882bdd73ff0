//! Starting, confining and awaiting processes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, ThreadNameSpaceType, UnshareFlags};

/// The capabilities of Linux, by their names without `CAP_`, in the order of their numbers (capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// None.
    pub const NONE: Capabilities = Capabilities(0);
    /// All that this list knows.
    pub const ALL: Capabilities = Capabilities((1 << CAPABILITIES.len()) - 1);

    /// One, by its name with or without `CAP_`, in any case; `ALL` is all.
    pub fn named(name: &str) -> Option<Capabilities> {
        let name = name.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        if name == "ALL" {
            return Some(Capabilities::ALL);
        }
        CAPABILITIES.iter().position(|known| *known == name).map(|number| Capabilities(1 << number))
    }

    /// Those in either.
    pub fn with(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 | other.0)
    }

    /// Those in `self` that are not in `other`.
    pub fn without(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & !other.0)
    }

    /// Whether all of `other` are in `self`.
    pub fn contains(self, other: Capabilities) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Gives up all capabilities but `keep` for good: bounding, ambient, inheritable, permitted and effective.
///
/// Those in `keep` that the process doesn't have stay absent.
pub fn confine_capabilities(keep: Capabilities) -> io::Result<()> {
    // Capabilities that a newer kernel knows and this list does not are given up too: the kernel says EINVAL for
    // numbers it does not know, which ends the walk.
    for number in 0..64 {
        let one = Capabilities(1 << number);
        if keep.contains(one) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(one.0)) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let have = rustix::thread::capabilities(None)?;
    let kept = CapabilitySet::from_bits_retain(have.permitted.bits() & keep.0);
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    Ok(())
}

/// Forks. `None` in the child, the child's id in the parent.
///
/// The caller must have one thread: in a child of a process with several, locks that another thread held stay locked.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the child of a process with one thread is an exact copy of it; nothing is shared but open files.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child)),
    }
}

/// Lets the calling thread run before all ordinary ones whenever it has something to do (`SCHED_RR`, the lowest priority);
/// the threads and processes that it starts are ordinary again. Needs `CAP_SYS_NICE`.
pub fn run_first() -> io::Result<()> {
    // SAFETY: an all-zero sched_param is valid; on some systems it has more fields than this one.
    let mut parameter: libc::sched_param = unsafe { std::mem::zeroed() };
    parameter.sched_priority = 1;
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is the calling thread, and the kernel only reads the parameter, which outlives the call.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forks into a PID namespace and a mount namespace of its own: the child is process 1 of the former, so that the kernel
/// kills all its descendants when it ends. `None` in the child; its id and a pidfd in the parent. One thread, as [`fork`].
pub fn fork_isolated() -> io::Result<Option<(Pid, OwnedFd)>> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: an all-zero clone_args is valid; each field is an integer.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_PIDFD) as u64;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without a stack and without CLONE_VM clone3 behaves as fork does; `pidfd` outlives the call.
    let child = unsafe {
        libc::syscall(libc::SYS_clone3, &raw const arguments, std::mem::size_of::<libc::clone_args>())
    };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        child => {
            // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let child = Pid::from_raw(child as i32).expect("a child's id is positive");
            Ok(Some((child, pidfd)))
        }
    }
}

/// Ends the process at once: no destructors, no handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any integer and doesn't return.
    unsafe { libc::_exit(code) }
}

/// Namespaces to leave for new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unshare {
    /// Network.
    pub net: bool,
    /// Host name.
    pub uts: bool,
    /// Mounts.
    pub mount: bool,
    /// System V IPC and POSIX message queues.
    pub ipc: bool,
    /// Processes: takes effect for the next child, which becomes process 1.
    pub pid: bool,
}

/// Moves the calling thread into new namespaces.
pub fn unshare(what: Unshare) -> io::Result<()> {
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWNET, what.net);
    flags.set(UnshareFlags::NEWUTS, what.uts);
    flags.set(UnshareFlags::NEWNS, what.mount);
    flags.set(UnshareFlags::NEWIPC, what.ipc);
    flags.set(UnshareFlags::NEWPID, what.pid);
    // SAFETY: the danger is in UnshareFlags::FILES, which is never among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }?;
    Ok(())
}

/// Enters the PID (for the next child) and mount namespaces of the process behind a pidfd.
pub fn enter_isolation(process: BorrowedFd<'_>) -> io::Result<()> {
    let namespaces = ThreadNameSpaceType::PROCESS_ID | ThreadNameSpaceType::MOUNT;
    rustix::thread::move_into_thread_name_spaces(process, namespaces)?;
    Ok(())
}

/// Signals that are read from a descriptor instead of interrupting.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals for the calling thread and opens a descriptor to read them from.
    pub fn block(signals: &[Signal]) -> io::Result<Signals> {
        // SAFETY: sigset_t is plain data, made valid by sigemptyset; all pointers are to locals.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in signals {
                libc::sigaddset(&mut set, signal.as_raw());
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Signals(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The next pending signal's number, if there is one.
    pub fn take(&self) -> io::Result<Option<i32>> {
        let mut buffer = [0u8; std::mem::size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut buffer[..]) {
            // The number is the first field of signalfd_siginfo, a u32.
            Ok(read) if read >= 4 => {
                Ok(Some(i32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]])))
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends a signal by number to the process behind a pidfd.
pub fn signal(process: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: integers and a null siginfo, which the kernel fills in as kill(2) does.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives a new process its descriptors: 0, 1 and 2 as named, `extra` as 3 (closed on exec), and no others.
///
/// For a child that goes on in this program without exec: whatever else owned a descriptor must not be used again.
pub fn arrange_descriptors(standard: [BorrowedFd<'_>; 3], extra: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // First out of the way of 0 to 3, so that no source is overwritten before it is copied.
    let mut sources = [0; 4];
    for (source, from) in sources.iter_mut().zip(standard.iter().chain([&extra])) {
        // SAFETY: integers only.
        *source = unsafe { libc::fcntl(from.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 16) };
        if *source < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (target, source) in sources.iter().enumerate() {
        let flags = if target == 3 { libc::O_CLOEXEC } else { 0 };
        // SAFETY: integers only; 0 to 3 are ours to give by this function's contract.
        if unsafe { libc::dup3(*source, target as i32, flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: integers only; nothing uses descriptors from 4 on again by this function's contract.
    if unsafe { libc::syscall(libc::SYS_close_range, 4u32, u32::MAX, 0u32) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: 3 is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(3) })
}

/// Closes all descriptors of a process that has nothing more to do with any: it only waits, and ends with [`exit_now`].
pub fn close_descriptors() {
    // SAFETY: integers only; nothing uses a descriptor any more by this function's contract. There is no way to fail: all
    // of these numbers may be closed, open or not (close_range(2)).
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
}

/// Writes everything, if the other side takes it. For a process about to end, which has nobody to tell an error to.
pub fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Becomes another user: supplementary groups, group, user, in this order. Leaves alone what is `None` or empty.
pub fn become_user(user: Option<u32>, group: Option<u32>, groups: &[u32]) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    if !groups.is_empty() || user.is_some_and(|user| user != 0) {
        let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
        rustix::thread::set_thread_groups(&groups)?;
    }
    if let Some(group) = group {
        rustix::thread::set_thread_gid(Gid::from_raw(group))?;
    }
    if let Some(user) = user {
        rustix::thread::set_thread_uid(Uid::from_raw(user))?;
    }
    Ok(())
}

/// Limits what the process may consume by accident: no core files, at most `files` open files.
pub fn limit_resources(files: u64) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    let most = getrlimit(Resource::Nofile).maximum.map_or(files, |maximum| maximum.min(files));
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) })?;
    Ok(())
}

/// Has all threads allocate from one heap, from now on. glibc gives threads heaps of their own (mallopt(3), `M_ARENA_MAX`):
/// what one thread allocates and another one frees then stays with the first. Does nothing with another C library.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointer is passed. It only matters to heaps that are yet to be made.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_known_by_both_spellings() {
        assert_eq!(Capabilities::named("NET_RAW"), Capabilities::named("cap_net_raw"));
        assert_eq!(Capabilities::named("CHOWN"), Some(Capabilities(1)));
        assert_eq!(Capabilities::named("CHECKPOINT_RESTORE"), Some(Capabilities(1 << 40)));
        assert_eq!(Capabilities::named("all"), Some(Capabilities::ALL));
        assert_eq!(Capabilities::named("NET"), None);
    }
}
