//! What a container sees of the file system: put together in its own mount namespace, then entered for good.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use portolan_sys::mount::{MountAttributes, restrict_mount};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    unmount,
};

use crate::protocol::{Launch, Mount, Root};

/// Device nodes that are borrowed from the node: a user namespace can't make its own (mknod(2)).
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Files of /proc that tell or change too much of the machine; /dev/null is put over them.
const MASKED: [&str; 6] = ["kcore", "keys", "latency_stats", "timer_list", "sched_debug", "kmsg"];
/// Parts of /proc that are made read-only: they change the machine, not the container.
const READ_ONLY: [&str; 6] = ["bus", "fs", "irq", "sys", "sysrq-trigger", "driver"];

/// An error with what was being done.
fn failed<E: Into<io::Error>>(doing: impl std::fmt::Display) -> impl FnOnce(E) -> io::Error {
    move |error| {
        let error: io::Error = error.into();
        io::Error::new(error.kind(), format!("{doing}: {error}"))
    }
}

/// Builds the container's root on the directory `place` and moves into it. Nothing of the old root stays reachable.
///
/// The caller is alone in its mount namespace.
pub(crate) fn enter(place: &Path, launch: &Launch) -> io::Result<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("make mounts private"))?;
    let privileged = launch.confinement.privileged;
    match &launch.root {
        Root::Empty => tmpfs(place, c"size=64k,mode=0755", false)?,
        Root::Image { directory, read_only } => {
            let writable = !read_only && layer(directory, place, launch)?;
            if !writable {
                mount_bind_recursive(directory, place)
                    .map_err(failed(format_args!("mount the image's directory {}", directory.display())))?;
            }
            furnish(place, launch, writable)?;
        }
        Root::Host => {
            mount_bind_recursive("/", place).map_err(failed("mount the machine's root"))?;
            furnish(place, launch, false)?;
        }
    }
    if launch.root == Root::Empty {
        restrict_mount(
            place,
            MountAttributes { read_only: true, no_suid: true, no_dev: true, no_exec: true },
            false,
        )
        .map_err(failed("make the root read-only"))?;
    } else if !privileged {
        mask_proc(&place.join("proc"));
    }
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, and is taken off.
    std::env::set_current_dir(place)?;
    rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(failed("leave the old root"))?;
    std::env::set_current_dir("/")
}

fn tmpfs(target: &Path, options: &CStr, executable: bool) -> io::Result<()> {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::NOEXEC, !executable);
    mount("tmpfs", target, "tmpfs", flags, options)
        .map_err(failed(format_args!("mount a tmpfs on {}", target.display())))
}

/// Puts an image's directory on `place` under a layer that takes what the container writes: on the node's disk, or in memory
/// where the file system of the pod's directory can't carry one (an overlay can't lie on an overlay). False where that can't
/// be: a kernel without overlays, or in a user namespace a directory with mounts of the machine below it. The root is
/// read-only then.
fn layer(directory: &Path, place: &Path, launch: &Launch) -> io::Result<bool> {
    let all = place.with_file_name("layers").join(&launch.name);
    // What an earlier run of the container wrote is gone with it.
    match fs::remove_dir_all(&all) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove what an earlier run wrote")(error));
        }
        _ => {}
    }
    fs::create_dir_all(&all).map_err(failed("make the container's layer"))?;
    if overlay(directory, place, &all).is_ok() {
        return Ok(true);
    }
    Ok(mount("tmpfs", &all, "tmpfs", MountFlags::NODEV, c"mode=0755").is_ok()
        && overlay(directory, place, &all).is_ok())
}

fn overlay(directory: &Path, place: &Path, layer: &Path) -> io::Result<()> {
    let (upper, work) = (layer.join("upper"), layer.join("work"));
    for path in [&upper, &work] {
        fs::create_dir_all(path)?;
    }
    let quoted = |path: &Path| {
        let text = path.to_str().ok_or_else(|| io::Error::other("a path that is not UTF-8"))?;
        Ok::<_, io::Error>(text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,"))
    };
    let options =
        format!("lowerdir={},upperdir={},workdir={}", quoted(directory)?, quoted(&upper)?, quoted(&work)?);
    // In a user namespace an overlay keeps its notes in `user.` attributes (Linux 5.11, Documentation/filesystems/overlayfs.rst).
    let on = |options: String| {
        let options = std::ffi::CString::new(options)?;
        mount("overlay", place, "overlay", MountFlags::NODEV, options.as_c_str()).map_err(io::Error::from)
    };
    on(format!("{options},userxattr")).or_else(|_| on(options))
}

/// Everything on top of a root that is a directory of the machine.
fn furnish(place: &Path, launch: &Launch, writable: bool) -> io::Result<()> {
    if writable {
        for (name, mode) in [("proc", 0o755), ("sys", 0o755), ("dev", 0o755), ("tmp", 0o1777)] {
            let path = place.join(name);
            if !path.exists() {
                fs::create_dir(&path).map_err(failed(format_args!("make /{name}")))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
        }
    } else {
        let attributes = MountAttributes { read_only: true, no_dev: true, ..Default::default() };
        restrict_mount(place, attributes, true).map_err(failed("make the root read-only"))?;
    }
    let there = |name: &str| Some(place.join(name)).filter(|path| path.is_dir());
    if let Some(proc) = there("proc") {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", &proc, "proc", flags, None::<&CStr>).map_err(failed("mount /proc"))?;
    }
    if launch.root != Root::Host
        && let Some(sys) = there("sys")
    {
        // Without the right to the network namespace (a host-network pod in a user namespace) there is no /sys.
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
        let _ = mount("sysfs", &sys, "sysfs", flags, None::<&CStr>);
    }
    if let Some(dev) = there("dev") {
        devices(&dev, launch)?;
    }
    for (name, options) in [("tmp", c"mode=1777"), ("run", c"mode=0755,size=16m")] {
        if !writable && let Some(path) = there(name) {
            tmpfs(&path, options, true)?;
        }
    }
    if launch.root == Root::Host
        && let Some(path) = there("var/tmp")
    {
        tmpfs(&path, c"mode=1777", true)?;
    }
    for wanted in &launch.mounts {
        bind(place, wanted)?;
    }
    Ok(())
}

/// /dev: a few devices, terminals of its own, memory to share, and places for what else is mounted there.
fn devices(dev: &Path, launch: &Launch) -> io::Result<()> {
    tmpfs(dev, c"mode=0755,size=64k", false)?;
    for name in DEVICES {
        let target = dev.join(name);
        fs::write(&target, b"")?;
        mount_bind(Path::new("/dev").join(name), &target)
            .map_err(failed(format_args!("lend /dev/{name}")))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name))?;
    }
    let terminals = dev.join("pts");
    fs::create_dir(&terminals)?;
    let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
    // Terminals belong to group 5 (`tty`) by custom; in a user namespace there is no such group.
    let mounted = [c"newinstance,ptmxmode=0666,mode=0620,gid=5", c"newinstance,ptmxmode=0666,mode=0620"]
        .into_iter()
        .any(|options| mount("devpts", &terminals, "devpts", flags, options).is_ok());
    if mounted {
        symlink("pts/ptmx", dev.join("ptmx"))?;
    }
    for wanted in &launch.mounts {
        // What leads out of /dev again is for `bind` to follow.
        let normal =
            |path: &Path| path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if let Some(below) = wanted.target.strip_prefix("/dev").ok().filter(|below| normal(below)) {
            prepare(&dev.join(below), wanted.source.is_dir())?;
        }
    }
    let memory = dev.join("shm");
    fs::create_dir(&memory)?;
    tmpfs(&memory, c"mode=1777,size=64m", false)?;
    restrict_mount(dev, MountAttributes { read_only: true, ..Default::default() }, false)
        .map_err(failed("make /dev read-only"))
}

/// Makes a place for a mount, where the file system below lets us: on a tmpfs such as /tmp or /run.
fn prepare(target: &Path, directory: bool) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    if directory {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(target, b"")
}

/// One volume or file of the node.
fn bind(place: &Path, wanted: &Mount) -> io::Result<()> {
    let inside: PathBuf =
        wanted.target.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect();
    let target = follow(place, &inside);
    if let Err(error) = prepare(&target, wanted.source.is_dir()) {
        if wanted.optional {
            return Ok(());
        }
        return Err(io::Error::new(
            error.kind(),
            format!(
                "mountPath {}: the image's root is read-only and has no such path ({error}); create it in the image, \
                 or mount below /tmp or /run",
                wanted.target.display()
            ),
        ));
    }
    mount_bind_recursive(&wanted.source, &target).map_err(failed(format_args!(
        "mount {} on {}",
        wanted.source.display(),
        wanted.target.display()
    )))?;
    let attributes =
        MountAttributes { read_only: wanted.read_only, no_suid: true, no_dev: true, ..Default::default() };
    restrict_mount(&target, attributes, true)
        .map_err(failed(format_args!("restrict {}", wanted.target.display())))
}

/// A path in the container's root with symbolic links followed inside of that root: `/etc/resolv.conf` of many machines
/// is a link to an absolute path, which must not lead out of the root.
fn follow(place: &Path, inside: &Path) -> PathBuf {
    let mut pending: Vec<_> = inside.components().rev().map(|part| part.as_os_str().to_owned()).collect();
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(part) = pending.pop() {
        if part == ".." {
            done.pop();
            continue;
        }
        match fs::read_link(place.join(&done).join(&part)) {
            Ok(link) if links < 40 => {
                links += 1;
                if link.is_absolute() {
                    done = PathBuf::new();
                }
                let parts = link.components().rev().filter(|part| {
                    matches!(part, std::path::Component::Normal(_) | std::path::Component::ParentDir)
                });
                pending.extend(parts.map(|part| part.as_os_str().to_owned()));
            }
            _ => done.push(part),
        }
    }
    place.join(done)
}

/// Hides what /proc shows of the machine. What a kernel doesn't have needs no hiding.
fn mask_proc(proc: &Path) {
    for name in MASKED {
        let path = proc.join(name);
        if path.exists() {
            let _ = mount_bind("/dev/null", &path);
        }
    }
    for name in READ_ONLY {
        let path = proc.join(name);
        if path.exists() && mount_bind(&path, &path).is_ok() {
            let _ = restrict_mount(&path, MountAttributes { read_only: true, ..Default::default() }, false);
        }
    }
}

/// Makes what the supervisor needs in the pod's directory, readable by programs that run as other users.
pub(crate) fn make_place(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_an_image_never_leads_out_of_it() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path();
        fs::create_dir_all(root.join("run/x")).expect("directories");
        fs::create_dir(root.join("etc")).expect("a directory");
        symlink("/run/x/resolv.conf", root.join("etc/resolv.conf")).expect("a link");
        symlink("../../../../etc/passwd", root.join("etc/up")).expect("a link");
        symlink("loop", root.join("etc/loop")).expect("a link");
        assert_eq!(follow(root, Path::new("etc/resolv.conf")), root.join("run/x/resolv.conf"));
        assert_eq!(follow(root, Path::new("etc/up")), root.join("etc/passwd"));
        assert_eq!(follow(root, Path::new("etc/loop")), root.join("etc/loop"));
        assert_eq!(follow(root, Path::new("new/file")), root.join("new/file"));
    }
}
