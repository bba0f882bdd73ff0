//! What a lab needs of the machine, tried in a child that is thrown away before anything is made.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use portolan_sys::link::{LinkEnd, Links};
use portolan_sys::namespace::{self, Namespaces};
use portolan_sys::netlink::{self, Message, Socket};

/// Something that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What.
    pub what: &'static str,
    /// What the kernel said.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

/// The steps of the trial, in their order; each needs those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    User,
    Pid,
    Mount,
    Net,
    Uts,
    Proc,
    Tmpfs,
    Veth,
    Bridge,
    NfTables,
}

const STEPS: [Step; 10] = [
    Step::User,
    Step::Pid,
    Step::Mount,
    Step::Net,
    Step::Uts,
    Step::Proc,
    Step::Tmpfs,
    Step::Veth,
    Step::Bridge,
    Step::NfTables,
];

impl Step {
    fn what(self) -> &'static str {
        match self {
            Step::User => "user namespaces",
            Step::Pid => "PID namespaces",
            Step::Mount => "mount namespaces",
            Step::Net => "network namespaces",
            Step::Uts => "UTS namespaces (host names)",
            Step::Proc => "mounting a fresh /proc",
            Step::Tmpfs => "mounting a tmpfs",
            Step::Veth => "veth links",
            Step::Bridge => "bridges",
            Step::NfTables => "nf_tables",
        }
    }

    /// The namespaces that the step makes, and the sysctl that limits their number.
    fn namespaces(self) -> Option<(Namespaces, &'static str)> {
        match self {
            Step::User => Some((Namespaces::USER, "user.max_user_namespaces")),
            Step::Pid => Some((Namespaces::PID, "user.max_pid_namespaces")),
            Step::Mount => Some((Namespaces::MOUNT, "user.max_mnt_namespaces")),
            Step::Net => Some((Namespaces::NET, "user.max_net_namespaces")),
            Step::Uts => Some((Namespaces::UTS, "user.max_uts_namespaces")),
            _ => None,
        }
    }
}

/// What this machine says of itself, as far as a remedy depends on it.
#[derive(Clone, Debug, Default)]
struct Machine {
    /// No user namespace is needed.
    administrator: bool,
    /// Root without the capabilities of root: a container.
    contained: bool,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1.
    apparmor: bool,
    /// `kernel.unprivileged_userns_clone` is 0.
    no_userns_clone: bool,
    /// The sysctls among `user.max_…_namespaces` that are 0.
    zero_limits: Vec<&'static str>,
}

impl Machine {
    fn look() -> Machine {
        let read = |name: &str| {
            fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")))
                .map(|t| t.trim().to_owned())
                .ok()
        };
        let administrator = namespace::is_administrator();
        Machine {
            administrator,
            contained: namespace::effective_ids().0 == 0 && !administrator,
            apparmor: read("kernel.apparmor_restrict_unprivileged_userns").as_deref() == Some("1"),
            no_userns_clone: read("kernel.unprivileged_userns_clone").as_deref() == Some("0"),
            zero_limits: STEPS
                .iter()
                .filter_map(|step| step.namespaces())
                .map(|(_, limit)| limit)
                .filter(|limit| read(limit).as_deref() == Some("0"))
                .collect(),
        }
    }
}

/// Tries everything; the first thing that is missing, if any.
pub fn check() -> io::Result<Option<Missing>> {
    let machine = Machine::look();
    let (mut reader, writer) = io::pipe()?;
    let child = namespace::fork(|| {
        drop(attempt(machine.administrator, writer));
        0
    })?;
    let mut said = String::new();
    reader.read_to_string(&mut said)?;
    child.wait()?;
    Ok(read(&said).map(|(step, reason)| Missing {
        what: step.what(),
        remedy: remedy(step, &machine),
        reason,
    }))
}

/// The child's words: `INDEX message` where a step failed, `ok` where all went well.
fn read(said: &str) -> Option<(Step, String)> {
    if said == "ok" {
        return None;
    }
    let (index, reason) = said.split_once(' ').unwrap_or(("0", "the trial was killed"));
    let step = index.parse().ok().and_then(|index: usize| STEPS.get(index)).copied().unwrap_or(Step::User);
    Some((step, reason.to_owned()))
}

fn attempt(administrator: bool, mut writer: io::PipeWriter) -> io::Result<()> {
    let ids = namespace::effective_ids();
    let mut failed = None;
    for (index, step) in STEPS.into_iter().enumerate() {
        if step == Step::User && administrator {
            continue;
        }
        if step == Step::Proc {
            // Only a process born in the PID namespace can mount its /proc.
            let mut rest = writer.try_clone()?;
            return namespace::fork(move || {
                drop(rest.write_all(finish(index).as_bytes()));
                0
            })?
            .wait()
            .map(drop);
        }
        if let Err(error) = perform(step, ids) {
            failed = Some(format!("{index} {error}"));
            break;
        }
    }
    writer.write_all(failed.as_deref().unwrap_or("ok").as_bytes())
}

fn finish(from: usize) -> String {
    for (index, step) in STEPS.into_iter().enumerate().skip(from) {
        if let Err(error) = perform(step, (0, 0)) {
            return format!("{index} {error}");
        }
    }
    "ok".into()
}

fn perform(step: Step, (uid, gid): (u32, u32)) -> io::Result<()> {
    if let Some((namespaces, _)) = step.namespaces() {
        namespace::unshare(namespaces)?;
    }
    match step {
        Step::User => namespace::map_root(std::process::id(), uid, gid),
        Step::Pid | Step::Net => Ok(()),
        Step::Mount => namespace::make_mounts_private(),
        // An ordinary user may make UTS namespaces; whether the name can be set tells whether root's powers are there.
        Step::Uts => namespace::set_hostname("portolan"),
        Step::Proc => namespace::mount_proc(Path::new("/proc")),
        Step::Tmpfs => namespace::mount_tmpfs(Path::new("/proc"), c"mode=0700"),
        Step::Veth => Links::open()?.add_veth(&LinkEnd::named("veth0"), &LinkEnd::named("veth1")),
        Step::Bridge => Links::open()?.add_bridge(&LinkEnd::named("bridge0")),
        Step::NfTables => make_table(),
    }
}

/// Makes an nf_tables table in one batch (linux/netfilter/nfnetlink.h, nf_tables.h).
fn make_table() -> io::Result<()> {
    const BEGIN: u16 = 0x10;
    const END: u16 = 0x11;
    const NF_TABLES: u16 = 10;
    const NEW_TABLE: u16 = NF_TABLES << 8;
    let header = |family: i32, resource: u16| {
        let resource = resource.to_be_bytes();
        [family as u8, 0, resource[0], resource[1]]
    };
    let mut batch = Message::new(BEGIN, 0);
    batch.raw(&header(libc::AF_UNSPEC, NF_TABLES));
    batch.next(NEW_TABLE, netlink::CREATE | netlink::ACK).sequence(1);
    batch.raw(&header(libc::AF_INET, 0)).str(1, "portolan-trial");
    batch.next(END, 0).sequence(2).raw(&header(libc::AF_UNSPEC, NF_TABLES));
    let mut socket = Socket::open(netlink::NETFILTER)?;
    socket.send(batch.as_bytes())?;
    let mut answer = None;
    while answer.is_none() {
        socket.receive(|message| {
            if message.kind == netlink::KIND_ERROR {
                answer.get_or_insert(netlink::acknowledgement(&message));
            }
        })?;
    }
    answer.unwrap_or(Ok(())).map_err(io::Error::from)
}

fn remedy(step: Step, machine: &Machine) -> String {
    const CONTAINER: &str = "in a container: start it with --privileged, or with --cap-add SYS_ADMIN --cap-add NET_ADMIN \
                             --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined";
    if let Some((_, limit)) = step.namespaces()
        && machine.zero_limits.contains(&limit)
    {
        return format!("allow them: sudo sysctl -w {limit}=10000");
    }
    if !machine.administrator && !machine.contained {
        if machine.no_userns_clone {
            return "allow them to ordinary users: sudo sysctl -w kernel.unprivileged_userns_clone=1; or run as root".into();
        }
        if machine.apparmor && !matches!(step, Step::Proc) {
            return "AppArmor keeps ordinary users from them: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0; or run as root"
                .into();
        }
    }
    match step {
        Step::User => format!("use a kernel with CONFIG_USER_NS, or run as root; {CONTAINER}"),
        Step::Pid | Step::Mount | Step::Net | Step::Uts | Step::Tmpfs => CONTAINER.into(),
        Step::Proc => format!("something hides parts of /proc; {CONTAINER}"),
        Step::Veth => "load the module: sudo modprobe veth".into(),
        Step::Bridge => "load the module: sudo modprobe bridge".into(),
        Step::NfTables => {
            "load the module: sudo modprobe nf_tables (and nft_chain_nat, nf_nat, nf_conntrack)".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_names_the_switch_that_is_off() {
        let user = Machine::default();
        let limited = Machine { zero_limits: vec!["user.max_user_namespaces"], ..user.clone() };
        assert!(remedy(Step::User, &limited).contains("sysctl -w user.max_user_namespaces="));
        let ubuntu = Machine { apparmor: true, ..user.clone() };
        assert!(remedy(Step::Mount, &ubuntu).contains("kernel.apparmor_restrict_unprivileged_userns=0"));
        let debian = Machine { no_userns_clone: true, ..user.clone() };
        assert!(remedy(Step::User, &debian).contains("kernel.unprivileged_userns_clone=1"));
        let docker = Machine { contained: true, apparmor: true, ..user };
        assert!(remedy(Step::Proc, &docker).contains("systempaths=unconfined"));
    }

    #[test]
    fn a_failed_step_is_named_with_the_kernels_reason() {
        assert_eq!(read("ok"), None);
        assert_eq!(read("7 Operation not supported"), Some((Step::Veth, "Operation not supported".into())));
        assert_eq!(read("").map(|(step, _)| step), Some(Step::User));
    }
}
