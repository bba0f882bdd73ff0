//! The first process of a lab's PID namespace: makes the network, keeps server and nodes running, publishes ports.
//!
//! With its end the kernel ends everything that was started here. It stays in this machine's own network namespace, so
//! that it can listen on its loopback address; it changes nothing there.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use portolan_sys::namespace::{self, Namespaces};
use tokio::sync::mpsc;

use super::dns;
use super::network::{self, Network};
use super::nodeports::{self, PodRoute};
use super::protocol::{self, Order, Report, Request, Writer};
use super::publish::{self, Origin, Publisher, Wanted};
use super::state::{self, Supervised};
use super::topology::{API_PORT, Machine};

/// The hidden verb.
pub const VERB: &str = "__lab-init";

/// A child that lived so long starts again at once; one that didn't waits longer each time.
const SETTLED: Duration = Duration::from_secs(5);
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Runs as init; the argument is the number of the socket to the keeper.
pub fn main(socket: Option<&str>) -> ExitCode {
    let run = || {
        let number = socket.and_then(|n| n.parse().ok()).context("this verb is for the lab alone")?;
        if std::process::id() != 1 {
            bail!("this verb is for the first process of a PID namespace");
        }
        let socket = std::os::unix::net::UnixStream::from(namespace::inherited(number)?);
        // Ctrl-C at the terminal is for the keeper.
        let _ = rustix::process::setsid();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(socket))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(socket: std::os::unix::net::UnixStream) -> anyhow::Result<()> {
    let (mut reader, mut writer) = protocol::split(socket)?;
    let Some(Request::Make(order)) = reader.next().await else { return Ok(()) };
    let (events, mut happened) = mpsc::unbounded_channel();
    let dir = order.dir.clone();

    let forward = events.clone();
    tokio::spawn(async move {
        while let Some(request) = reader.next().await {
            let _ = forward.send(Event::Asked(request));
        }
        let _ = forward.send(Event::Abandoned);
    });

    let result = async {
        let mut lab = Init::make(*order, &mut writer, events).await?;
        while let Some(event) = happened.recv().await {
            if matches!(event, Event::Abandoned) {
                break;
            }
            lab.handle(event, &mut writer).await?;
        }
        anyhow::Ok(())
    }
    .await;
    if let Err(error) = &result {
        writer.send(&Report::Failed(format!("{error:#}"))).await;
        // The keeper removes what there is; only if it can't we do.
        while let Some(event) = happened.recv().await {
            if matches!(event, Event::Abandoned) {
                break;
            }
        }
    }
    clean_up(&dir);
    result
}

/// The keeper is gone: what it would have removed goes with us. The mount comes off first: a directory on which one's own
/// namespace has a mount can't be removed.
fn clean_up(dir: &Path) {
    let _ = namespace::unmount(dir);
    state::remove(dir);
}

/// What can happen to init.
enum Event {
    /// A child, ours or an orphan, has ended.
    Reap,
    /// It is time to start a process again.
    Start(usize),
    /// The server shows these NodePorts.
    NodePorts(Vec<Wanted>),
    /// The nodes have these pods behind them.
    PodRoutes(BTreeSet<PodRoute>),
    /// All that was awaited has answered.
    Answered,
    /// The keeper asks for something.
    Asked(Request),
    /// The keeper is gone.
    Abandoned,
}

struct Process {
    machine: Machine,
    name: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    pid: Option<u32>,
    started: Instant,
    back_off: Duration,
    restarts: u32,
}

struct Init {
    order: Order,
    network: Network,
    processes: Vec<Process>,
    publisher: Publisher,
    client: Origin,
    events: mpsc::UnboundedSender<Event>,
}

impl Init {
    async fn make(
        order: Order,
        writer: &mut Writer,
        events: mpsc::UnboundedSender<Event>,
    ) -> anyhow::Result<Init> {
        prepare_files(&order.dir)?;
        let topology = &order.topology;
        // Ports first: a number that is taken is known before anything is made.
        let api = publish::bind(0).await.context("listening on 127.0.0.1")?;
        let api_address = api.local_addr()?;

        let network = Network::make(topology, &order.dir)?;
        let origin = |name: &str| -> anyhow::Result<Origin> {
            let netns: OwnedFd = network.of(name)?.try_clone_to_owned()?;
            Ok(Origin::new(netns))
        };
        let client = origin(&topology.client.name)?;
        let nodes: Vec<IpAddr> = topology
            .families
            .iter()
            .flat_map(|family| topology.nodes.iter().filter_map(|node| node.address(*family)))
            .collect();
        let mut publisher = Publisher::new(client.clone(), nodes);
        for publish in &order.publish {
            let wanted = Wanted { publish: *publish, service: None, families: topology.families.clone() };
            let port = publish.host_port;
            publisher
                .add(wanted)
                .await
                .with_context(|| format!("--publish: listening on 127.0.0.1:{port}"))?;
        }
        writer
            .send(&Report::Progress(format!(
                "{} machines on one network ({})",
                topology.machines().count(),
                topology
                    .lan
                    .addresses
                    .iter()
                    .map(|a| format!("{a}/{}", super::topology::prefix(*a)))
                    .collect::<Vec<_>>()
                    .join(", ")
            )))
            .await;

        let server = origin(&topology.server.name)?;
        let inside = topology.server.addresses.iter().map(|a| SocketAddr::new(*a, API_PORT)).collect();
        // For the life of the lab: nobody aborts it.
        drop(publish::forward_tcp(api, server, inside));

        let mut lab = Init { network, processes: Vec::new(), publisher, client, events, order };
        lab.watch_children()?;
        let server = lab.order.topology.server.clone();
        lab.add(&server.name.clone(), server, server_arguments(&lab.order, api_address), Vec::new())?;
        let token = lab.appears(&lab.order.dir.join("server/node-token"), writer).await?;
        for node in lab.order.topology.nodes.clone() {
            let token = ("PORTOLAN_NODE_TOKEN".to_owned(), token.trim().to_owned());
            let arguments = node_arguments(&lab.order, &node);
            lab.add(&node.name.clone(), node, arguments, vec![token])?;
        }
        let kubeconfig = lab.appears(&server_kubeconfig(&lab.order.dir), writer).await?;
        let inside = format!("https://{}", bracketed(lab.order.topology.server.addresses[0]));
        let text = kubeconfig.replace(&format!("https://{api_address}"), &inside);
        portolan_server::pki::write_atomically(&kubeconfig_inside(&lab.order.dir), text.as_bytes(), 0o600)?;
        writer.send(&Report::Serving { api: api_address, kubeconfig: kubeconfig.clone() }).await;
        let text =
            dns::install(&lab.order.topology, &kubeconfig).await.context("the name servers' objects")?;
        let text = text.replace(&format!("https://{api_address}"), &inside);
        portolan_server::pki::write_atomically(&dns_kubeconfig(&lab.order.dir), text.as_bytes(), 0o600)?;
        for node in lab.order.topology.nodes.clone() {
            let arguments = dns_arguments(&lab.order, &node);
            lab.add(&format!("dns-{}", node.name), node, arguments, Vec::new())?;
        }
        lab.report(writer).await;

        let events = lab.events.clone();
        tokio::spawn(async move {
            let ports = |wanted| events.send(Event::NodePorts(wanted)).is_ok();
            let routes = |wanted| events.send(Event::PodRoutes(wanted)).is_ok();
            nodeports::follow(&kubeconfig, ports, routes).await;
        });
        Ok(lab)
    }

    async fn handle(&mut self, event: Event, writer: &mut Writer) -> anyhow::Result<()> {
        match event {
            Event::Reap => self.reap(writer).await?,
            Event::Start(index) => {
                self.start(index)?;
                self.report(writer).await;
            }
            Event::NodePorts(wanted) => {
                if self.publisher.follow(wanted).await {
                    writer.send(&Report::Published(self.publisher.list())).await;
                }
            }
            Event::PodRoutes(wanted) => self.network.route(wanted).context("routing to pods")?,
            Event::Asked(Request::Await(addresses)) => {
                let (client, events) = (self.client.clone(), self.events.clone());
                tokio::spawn(async move {
                    for address in addresses {
                        answers(&client, address).await;
                    }
                    let _ = events.send(Event::Answered);
                });
            }
            Event::Answered => writer.send(&Report::Answered).await,
            Event::Asked(Request::Make(_)) | Event::Abandoned => {}
        }
        Ok(())
    }

    /// Every child's end is an event: our own, and those that were orphaned in this PID namespace.
    fn watch_children(&self) -> anyhow::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut child = signal(SignalKind::child())?;
        let events = self.events.clone();
        tokio::spawn(
            async move { while child.recv().await.is_some() && events.send(Event::Reap).is_ok() {} },
        );
        Ok(())
    }

    fn add(
        &mut self,
        name: &str,
        machine: Machine,
        arguments: Vec<String>,
        environment: Vec<(String, String)>,
    ) -> anyhow::Result<()> {
        self.processes.push(Process {
            name: name.to_owned(),
            machine,
            arguments,
            environment,
            pid: None,
            started: Instant::now(),
            back_off: BACK_OFF.0,
            restarts: 0,
        });
        self.start(self.processes.len() - 1)
    }

    fn start(&mut self, index: usize) -> anyhow::Result<()> {
        let process = &mut self.processes[index];
        let (name, machine) = (&process.name, &process.machine.name);
        let log = fs::OpenOptions::new().create(true).append(true).open(log_file(&self.order.dir, name))?;
        // The program that runs now, even if another was put in its place meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("portolan")
            .args(&process.arguments)
            .envs(process.environment.iter().map(|(k, v)| (k, v)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let spawned = namespace::in_netns(self.network.of(machine)?, || {
            namespace::unshare(Namespaces::UTS)?;
            namespace::set_hostname(machine)?;
            command.spawn()
        })?;
        let child = spawned.with_context(|| format!("starting {name}"))?;
        process.pid = Some(child.id());
        process.started = Instant::now();
        Ok(())
    }

    async fn reap(&mut self, writer: &mut Writer) -> anyhow::Result<()> {
        while let Some((pid, status)) = namespace::reap_any()? {
            let Some(index) = self.processes.iter().position(|p| p.pid == Some(pid)) else { continue };
            let process = &mut self.processes[index];
            process.pid = None;
            process.restarts += 1;
            if process.started.elapsed() > SETTLED {
                process.back_off = BACK_OFF.0;
            }
            let delay = process.back_off;
            process.back_off = (delay * 2).min(BACK_OFF.1);
            let machine = process.name.clone();
            let log = tail(&log_file(&self.order.dir, &machine));
            writer.send(&Report::Ended { machine, status, log }).await;
            self.report(writer).await;
            let events = self.events.clone();
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = events.send(Event::Start(index));
            });
        }
        Ok(())
    }

    async fn report(&self, writer: &mut Writer) {
        let all = self.processes.iter().map(|p| Supervised {
            machine: p.machine.name.clone(),
            name: p.name.clone(),
            pid: p.pid,
            restarts: p.restarts,
        });
        writer.send(&Report::Processes(all.collect())).await;
    }

    /// Waits until the server has written a file. A server that ends before has failed.
    async fn appears(&mut self, path: &Path, writer: &mut Writer) -> anyhow::Result<String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match fs::read_to_string(path) {
                Ok(text) if !text.is_empty() => return Ok(text),
                _ => {}
            }
            self.reap(writer).await?;
            if self.processes[0].restarts > 0 {
                bail!("the server ended at its start:\n{}", tail(&log_file(&self.order.dir, "server")));
            }
            if Instant::now() > deadline {
                bail!("the server didn't write {} within 30 s", path.display());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Waits until a TCP connection succeeds.
async fn answers(from: &Origin, to: SocketAddr) {
    loop {
        match tokio::time::timeout(Duration::from_secs(1), from.connect(to)).await {
            Ok(Ok(_)) => return,
            // Refused at once: the tables will change in a moment.
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(_) => {}
        }
    }
}

/// This mount namespace becomes the lab's own: its `/proc`, and on the lab's directory a place for private files.
fn prepare_files(dir: &Path) -> anyhow::Result<()> {
    namespace::make_mounts_private().context("cutting the mount namespace off")?;
    namespace::mount_proc(Path::new("/proc")).context("mounting /proc")?;
    namespace::mount_tmpfs(dir, c"mode=0700")
        .with_context(|| format!("mounting a tmpfs on {}", dir.display()))?;
    for name in ["log", "netns", "server", "nodes"] {
        fs::create_dir(dir.join(name))?;
    }
    let log = fs::File::create(log_file(dir, "init"))?;
    rustix::stdio::dup2_stderr(log.as_fd())?;
    Ok(())
}

/// Where a process of the lab writes what it has to say, inside of the lab.
pub fn log_file(dir: &Path, machine: &str) -> PathBuf {
    dir.join("log").join(format!("{machine}.log"))
}

/// The kubeconfig as the server wrote it, inside of the lab.
pub fn server_kubeconfig(dir: &Path) -> PathBuf {
    dir.join("server/kubeconfig")
}

/// The kubeconfig for programs on the lab's machines, which reach the server on the local network.
pub fn kubeconfig_inside(dir: &Path) -> PathBuf {
    dir.join("kubeconfig.inside")
}

/// The kubeconfig of the name servers, inside of the lab.
fn dns_kubeconfig(dir: &Path) -> PathBuf {
    dir.join("kubeconfig.dns")
}

/// The directory of a node, inside of the lab.
pub fn node_dir(dir: &Path, node: &str) -> PathBuf {
    dir.join("nodes").join(node)
}

/// The end of a log.
fn tail(path: &Path) -> String {
    const LENGTH: u64 = 4096;
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LENGTH)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn joined<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

fn bracketed(address: IpAddr) -> String {
    SocketAddr::new(address, API_PORT).to_string()
}

fn server_arguments(order: &Order, api: SocketAddr) -> Vec<String> {
    let (topology, dir) = (&order.topology, &order.dir);
    let mut arguments = vec!["server".to_owned()];
    let mut add = |option: &str, value: String| arguments.extend([format!("--{option}"), value]);
    add("data-dir", dir.join("server").display().to_string());
    for address in &topology.server.addresses {
        add("listen", bracketed(*address));
    }
    add("advertise-address", joined(&topology.server.addresses));
    add("san", "127.0.0.1,localhost".into());
    add("kubeconfig", server_kubeconfig(dir).display().to_string());
    add("kubeconfig-server", format!("https://{api}"));
    add("cluster-name", format!("portolan-{}", topology.name));
    add("service-cidr", joined(&topology.service_cidrs));
    add("cluster-cidr", joined(&topology.cluster_cidrs));
    add("pool", topology.pool.join(","));
    arguments
}

fn node_arguments(order: &Order, node: &Machine) -> Vec<String> {
    let topology = &order.topology;
    let mut arguments = vec!["node".to_owned()];
    let mut add = |option: &str, value: String| arguments.extend([format!("--{option}"), value]);
    add("server", format!("https://{}", bracketed(topology.server.addresses[0])));
    add("name", node.name.clone());
    add("data-dir", node_dir(&order.dir, &node.name).display().to_string());
    add("node-ip", joined(&node.addresses));
    add("interface", network::LINK.into());
    add("service-cidr", joined(&topology.service_cidrs));
    add("cluster-dns", joined(&topology.cluster_dns()));
    for (name, dir) in &order.images {
        add("image", format!("{name}={}", dir.display()));
    }
    if order.allow_host_image {
        arguments.push("--allow-host-image".into());
    }
    arguments
}

/// A name server answers at its node's addresses. Behind the lab's router there is nobody to ask for other names.
fn dns_arguments(order: &Order, node: &Machine) -> Vec<String> {
    let mut arguments = vec!["dns".to_owned()];
    let mut add = |option: &str, value: String| arguments.extend([format!("--{option}"), value]);
    add("kubeconfig", dns_kubeconfig(&order.dir).display().to_string());
    add("listen", joined(&node.addresses.iter().map(|a| SocketAddr::new(*a, dns::PORT)).collect::<Vec<_>>()));
    add("forward", "none".into());
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::topology::{IpFamily, Topology, Wish};

    #[test]
    fn a_node_is_started_with_its_name_its_addresses_and_the_servers_url() {
        let topology = Topology::plan(Wish {
            name: "t".into(),
            nodes: 2,
            families: vec![IpFamily::IPv6, IpFamily::IPv4],
            service_cidrs: vec![],
            pool: vec![],
        })
        .expect("a topology");
        let order = Order {
            topology,
            publish: vec![],
            images: vec![("tools".into(), "/srv/tools".into())],
            allow_host_image: false,
            dir: "/run/t".into(),
        };
        let arguments = node_arguments(&order, &order.topology.nodes[1]).join(" ");
        assert!(
            arguments.starts_with("node --server https://[fd00:80::2]:6443 --name node-2 "),
            "{arguments}"
        );
        assert!(arguments.contains("--node-ip fd00:80::12,10.80.0.12 --interface eth0"), "{arguments}");
        assert!(arguments.ends_with("--image tools=/srv/tools"), "{arguments}");
        let api = "127.0.0.1:5".parse().expect("an address");
        let arguments = server_arguments(&order, api).join(" ");
        assert!(arguments.contains("--listen [fd00:80::2]:6443 --listen 10.80.0.2:6443"), "{arguments}");
        assert!(arguments.contains("--kubeconfig-server https://127.0.0.1:5"), "{arguments}");
    }
}
