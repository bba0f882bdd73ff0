//! A filter over system calls for processes that are not trusted with the machine.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// System calls that fail with EPERM: they change the machine, its clock, its kernel or its mounts, look into other
/// processes' kernel objects, or open interfaces with a long record of holes (bpf, io_uring, keyrings, userfaultfd).
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// The flags of clone(2) that make namespaces.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// The bit that marks a call of the x32 ABI on x86-64: the same calls under other numbers.
const X32: libc::c_long = 0x4000_0000;

/// Puts the calling thread, and all that descends from it, under the filter for good. Sets no_new_privs.
pub fn restrict_system_calls() -> io::Result<()> {
    for program in programs().map_err(io::Error::other)? {
        seccompiler::apply_filter(&program).map_err(io::Error::other)?;
    }
    Ok(())
}

fn programs() -> Result<[BpfProgram; 2], Box<dyn std::error::Error + Send + Sync>> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = DENIED
        .iter()
        .flat_map(|number| [*number, *number | X32])
        .map(|number| (number, Vec::new()))
        .collect();
    // clone() may make threads and processes, but no namespaces: one rule for each flag, any of which denies.
    let mut makes_namespace = Vec::new();
    for bit in 0..64 {
        let flag = NEW_NAMESPACES & (1 << bit);
        if flag != 0 {
            let condition =
                SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?;
            makes_namespace.push(SeccompRule::new(vec![condition])?);
        }
    }
    for number in [libc::SYS_clone, libc::SYS_clone | X32] {
        denied.insert(number, makes_namespace.clone());
    }
    let denied = SeccompFilter::new(
        denied,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        architecture,
    )?;
    // clone3 takes its flags in memory, where no filter can look. ENOSYS makes C libraries fall back to clone.
    let absent =
        [libc::SYS_clone3, libc::SYS_clone3 | X32].into_iter().map(|number| (number, Vec::new())).collect();
    let absent = SeccompFilter::new(
        absent,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        architecture,
    )?;
    Ok([denied.try_into()?, absent.try_into()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filtered_thread_can_work_but_neither_mount_nor_make_namespaces() {
        std::thread::spawn(|| {
            restrict_system_calls().expect("the filter can be installed by anyone");
            std::fs::read_to_string("/proc/self/status").expect("files can still be read");
            let refused = rustix::mount::mount_bind("/", "/").expect_err("mount is refused");
            assert_eq!(refused, rustix::io::Errno::PERM);
            let user = crate::process::Unshare { uts: true, ..Default::default() };
            let refused = crate::process::unshare(user).expect_err("unshare is refused");
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
            std::thread::spawn(|| {}).join().expect("threads can still be made");
        })
        .join()
        .expect("the filtered thread ends well");
    }
}
