//! `portolan agent`: the node agent alone, in kube-proxy's place on somebody's Kubernetes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use kube::config::{KubeConfigOptions, Kubeconfig};
use portolan_agent::Agent;
use portolan_agent::beside::{Role, hand_back};
use portolan_agent::kube_proxy::{self, File, node_ports, period};
use portolan_agent::lock::Lock;
use portolan_agent::servers::{HEALTHZ_PORT, METRICS_PORT, Servers, bind_address};
use portolan_agent::sysctl::Conntrack;
use portolan_plan::view::{ExternalIps, NodePortAddresses};
use tokio_util::sync::CancellationToken;

mod beside; // what a shadow says at the end

/// Run the node agent alone, in kube-proxy's place on somebody's Kubernetes. What a flag says goes before the file.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How to reach the API server; by default as a pod reaches its own.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The name of this machine's Node object; by default the machine's.
    #[arg(long, value_name = "NAME", alias = "hostname-override")]
    node_name: Option<String>,
    /// A KubeProxyConfiguration, YAML or JSON.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ranges of the pods; by default those of the Node object.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    cluster_cidr: Vec<IpNet>,
    /// Ranges of ClusterIPs; by default those of the ServiceCIDR objects.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    service_cidr: Vec<IpNet>,
    #[command(flatten)]
    addresses: AddressArgs,
    /// What becomes of connections to a ClusterIP that start neither on this node nor in one of its pods.
    #[arg(long, value_enum, default_value_t = FromOutside::Masquerade)]
    cluster_ip_from_outside: FromOutside,
    /// Masquerade every connection to a ClusterIP, those of pods too.
    #[arg(long)]
    masquerade_all: bool,
    /// Remove the agent's tables from this machine, and end. Do it when no agent runs: one would put them back.
    #[arg(long)]
    cleanup: bool,
    #[command(flatten)]
    beside: BesideArgs,
    #[command(flatten)]
    servers: ServerArgs,
    #[command(flatten)]
    conntrack: ConntrackArgs,
}

/// How a node passes from kube-proxy to the agent and back.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Beside kube-proxy")]
struct BesideArgs {
    /// Remove what kube-proxy left in the kernel, once our tables are in place and it has ended.
    #[arg(long, conflicts_with = "cleanup")]
    take_over: bool,
    /// Only compare what the agent would do with what kube-proxy does on this node; touch nothing.
    #[arg(long, conflicts_with_all = ["cleanup", "take_over"])]
    shadow: bool,
    /// Remove the agent's tables once kube-proxy runs and carries all that they do; then go on as a shadow.
    #[arg(long, conflicts_with_all = ["cleanup", "take_over", "shadow"])]
    hand_back: bool,
    /// End when that is done: --shadow with what differs (exit code 1 if anything does), --hand-back without going on.
    #[arg(long)]
    once: bool,
}

/// What becomes of connections to a ClusterIP from outside.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub enum FromOutside {
    /// Dropped, and counted.
    Refuse,
    /// Forwarded with this node's address as source, as kube-proxy does.
    Masquerade,
}

/// Which addresses Services may have on the node.
#[derive(clap::Args, Debug)]
pub struct AddressArgs {
    /// On which of the node's addresses NodePorts answer: ranges, `primary` (the default), `localhost`, `all`, together.
    #[arg(long, value_name = "CIDR|WORD", value_delimiter = ',')]
    nodeport_addresses: Vec<String>,
    /// Which of the addresses in spec.externalIPs are captured: `any` (the default), `none`, or those in ranges.
    #[arg(long, value_name = "any|none|CIDR", value_delimiter = ',')]
    external_ips: Vec<String>,
}

/// Where an agent answers questions about itself.
#[derive(clap::Args, Debug)]
pub struct ServerArgs {
    /// Where to answer /healthz and /livez; "" for nowhere [default: 0.0.0.0:10256]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = healthz)]
    healthz_bind_address: Option<Bind>,
    /// Where to answer /metrics, /configz and /proxyMode; "" for nowhere [default: 127.0.0.1:10249]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = metrics)]
    metrics_bind_address: Option<Bind>,
    /// End if one of these ports can't be opened, instead of trying again.
    #[arg(long)]
    bind_address_hard_fail: bool,
}

/// An address to listen on, or none.
#[derive(Clone, Copy, Debug)]
struct Bind(Option<SocketAddr>);

/// Connection tracking, by kube-proxy's names. What isn't given stays as the machine has it.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Connection tracking (as the machine is set, unless given)")]
struct ConntrackArgs {
    /// The size of the connection table for each processor.
    #[arg(long, value_name = "N")]
    conntrack_max_per_core: Option<u32>,
    /// The least size of the connection table.
    #[arg(long, value_name = "N")]
    conntrack_min: Option<u32>,
    /// The time after which an idle TCP connection is forgotten.
    #[arg(long, value_name = "TIME", value_parser = period::parse)]
    conntrack_tcp_timeout_established: Option<Duration>,
    /// The same once the far side has closed it.
    #[arg(long, value_name = "TIME", value_parser = period::parse)]
    conntrack_tcp_timeout_close_wait: Option<Duration>,
    /// Packets outside of a TCP connection's window count as part of it.
    #[arg(long)]
    conntrack_tcp_be_liberal: bool,
    /// The time after which a UDP flow without an answer is forgotten.
    #[arg(long, value_name = "TIME", value_parser = period::parse)]
    conntrack_udp_timeout: Option<Duration>,
    /// The same for one with answers.
    #[arg(long, value_name = "TIME", value_parser = period::parse)]
    conntrack_udp_timeout_stream: Option<Duration>,
}

// === impl ===

impl From<FromOutside> for portolan_plan::model::FromOutside {
    fn from(from: FromOutside) -> Self {
        match from {
            FromOutside::Refuse => portolan_plan::model::FromOutside::Refuse,
            FromOutside::Masquerade => portolan_plan::model::FromOutside::Masquerade,
        }
    }
}

fn healthz(text: &str) -> Result<Bind, String> {
    bind(text, HEALTHZ_PORT)
}

fn metrics(text: &str) -> Result<Bind, String> {
    bind(text, METRICS_PORT)
}

fn bind(text: &str, port: u16) -> Result<Bind, String> {
    if text.is_empty() { Ok(Bind(None)) } else { bind_address(text, port).map(|at| Bind(Some(at))) }
}

impl AddressArgs {
    /// Where NodePorts answer, if a flag says so.
    pub fn node_ports(&self) -> anyhow::Result<Option<NodePortAddresses>> {
        let texts: Vec<&str> = self.nodeport_addresses.iter().map(String::as_str).collect();
        let (ports, problems) = node_ports::named(&texts);
        match problems.into_iter().next() {
            Some((_, problem)) => anyhow::bail!("--nodeport-addresses: {problem}"),
            None => Ok((!texts.is_empty()).then_some(ports)),
        }
    }

    /// Which external IPs are captured, if a flag says so.
    pub fn external_ips(&self) -> anyhow::Result<Option<ExternalIps>> {
        let range = |text: &String| {
            text.parse::<IpNet>().with_context(|| {
                format!(
                    "--external-ips: {text:?} is not a range; write ranges such as 192.0.2.0/24, or any or none alone"
                )
            })
        };
        Ok(match self.external_ips.as_slice() {
            [] => None,
            [word] if word == "any" => Some(ExternalIps::Any),
            [word] if word == "none" => Some(ExternalIps::None),
            texts => Some(ExternalIps::Within(texts.iter().map(range).collect::<Result<_, _>>()?)),
        })
    }

    /// Tells an agent what the flags say.
    pub fn apply(&self, agent: &mut portolan_agent::Config) -> anyhow::Result<()> {
        if let Some(ports) = self.node_ports()? {
            agent.node_port_addresses = ports;
        }
        if let Some(external_ips) = self.external_ips()? {
            agent.external_ips = external_ips;
        }
        Ok(())
    }
}

impl ServerArgs {
    /// What the flags say, over what was said otherwise.
    pub fn over(&self, mut servers: Servers) -> Servers {
        if let Some(Bind(at)) = self.healthz_bind_address {
            servers.healthz = at;
        }
        if let Some(Bind(at)) = self.metrics_bind_address {
            servers.metrics = at;
        }
        servers.hard_fail |= self.bind_address_hard_fail;
        servers
    }
}

impl ConntrackArgs {
    fn over(&self, conntrack: &Conntrack) -> Conntrack {
        Conntrack {
            max_per_core: self.conntrack_max_per_core.or(conntrack.max_per_core),
            min: self.conntrack_min.or(conntrack.min),
            tcp_established: self.conntrack_tcp_timeout_established.or(conntrack.tcp_established),
            tcp_close_wait: self.conntrack_tcp_timeout_close_wait.or(conntrack.tcp_close_wait),
            tcp_be_liberal: self.conntrack_tcp_be_liberal || conntrack.tcp_be_liberal,
            udp: self.conntrack_udp_timeout.or(conntrack.udp),
            udp_stream: self.conntrack_udp_timeout_stream.or(conntrack.udp_stream),
        }
    }
}

impl Args {
    /// What an agent is told by the file and the flags.
    fn agent(&self, file: &File) -> anyhow::Result<portolan_agent::Config> {
        let name = self.node_name.clone().or_else(|| file.node_name.clone());
        let mut agent = portolan_agent::Config::new(name.map_or_else(hostname, Ok)?);
        agent.servers = Servers::usual();
        if self.config.is_some() {
            file.apply(&mut agent);
        }
        agent.servers = self.servers.over(agent.servers);
        agent.conntrack = self.conntrack.over(&agent.conntrack);
        agent.masquerade_all |= self.masquerade_all;
        agent.cluster_ip_from_outside = self.cluster_ip_from_outside.into();
        agent.service_cidrs.clone_from(&self.service_cidr);
        agent.watch_service_cidrs = self.service_cidr.is_empty();
        if !self.cluster_cidr.is_empty() {
            agent.pod_cidrs.clone_from(&self.cluster_cidr);
        }
        self.addresses.apply(&mut agent)?;
        if self.beside.shadow || self.beside.hand_back {
            agent.role = Role::Shadow;
            agent.check_every = SHADOW_EVERY;
        } else if self.beside.take_over {
            agent.role = Role::TakeOver;
        }
        Ok(agent)
    }
}

/// Runs the agent until `stop`. Forwarding stays as it is then.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    if args.cleanup {
        return cleanup().await.context("--cleanup (it needs root, or CAP_NET_ADMIN)");
    }
    let file = match &args.config {
        Some(path) => read(path)?,
        None => File::default(),
    };
    if args.beside.once && !args.beside.shadow && !args.beside.hand_back {
        anyhow::bail!("--once: it goes with --shadow or --hand-back");
    }
    let mut config = args.agent(&file)?;
    let kubeconfig = args.kubeconfig.or(file.kubeconfig);
    let client = client(kubeconfig.as_deref()).await?;
    tracing::info!(node = config.node_name, servers = ?config.servers, "the agent begins");
    if config.role != Role::Shadow {
        return portolan_agent::run(client, config, stop).await;
    }
    // The ports are kube-proxy's as long as it has the node.
    let servers = std::mem::take(&mut config.servers);
    let (node, engine) = (config.node_name.clone(), config.engine.clone());
    let agent = Agent::new(client, config);
    let compared = agent.compared();
    let task = async {
        if args.beside.hand_back {
            hand_back::run(engine, servers, &node, compared.clone()).await.context("--hand-back")?;
        }
        match (args.beside.once, args.beside.hand_back) {
            (true, true) => Ok(()),
            (true, false) => beside::once(compared).await,
            (false, _) => std::future::pending().await,
        }
    };
    tokio::select! {
        ended = agent.run(stop.clone()) => ended,
        done = task => {
            stop.cancel();
            done
        }
    }
}

/// How often a shadow looks.
const SHADOW_EVERY: Duration = Duration::from_secs(2);

/// Removes what an agent leaves behind.
async fn cleanup() -> anyhow::Result<()> {
    let options = portolan_dataplane::Options::default();
    // An agent that runs would put all of it back.
    let _lock = Lock::take_within(Duration::from_secs(1), &options.table, "--cleanup").await?;
    portolan_agent::beside::remove(options)?;
    tracing::info!("the agent's tables and routes are removed");
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<File> {
    let named = || format!("--config {}", path.display());
    let text = std::fs::read_to_string(path).with_context(named)?;
    match kube_proxy::read(&text) {
        Ok((file, warnings)) => {
            for warning in warnings {
                tracing::warn!("{}: {warning}", named());
            }
            Ok(file)
        }
        Err(problems) => {
            let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
            anyhow::bail!("{}: {}", named(), all.join("\n  "))
        }
    }
}

/// A client with what a kubeconfig says, or else as a pod reaches its own API server.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<kube::Client> {
    let config = match kubeconfig {
        Some(path) => {
            let named = || format!("--kubeconfig {}", path.display());
            let file = Kubeconfig::read_from(path).with_context(named)?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(named)?
        }
        None => kube::Config::incluster().context(
            "--kubeconfig: not given (nor clientConnection.kubeconfig in an agent's --config), and this is no pod with a service account",
        )?,
    };
    Ok(kube::Client::try_from(config)?)
}

/// The machine's name, as kubelets register it.
pub fn hostname() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the machine's name")?;
    Ok(name.trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn told(flags: &[&str], file: &str) -> portolan_agent::Config {
        let mut args = Command::parse_from(["agent"].iter().chain(flags)).args;
        let mut read = File::default();
        if !file.is_empty() {
            args.config = Some("given".into());
            let text = format!(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{file}\n"
            );
            read = kube_proxy::read(&text).expect("a good file").0;
        }
        args.agent(&read).expect("good flags")
    }

    #[test]
    fn without_flags_the_agent_does_as_kube_proxy() {
        let config = told(&[], "");
        assert_eq!(config.servers, Servers::usual());
        assert_eq!(config.cluster_ip_from_outside, portolan_plan::model::FromOutside::Masquerade);
        assert_eq!(config.node_name, hostname().unwrap());
        assert!(config.watch_service_cidrs && config.service_cidrs.is_empty());
    }

    #[test]
    fn what_an_agent_is_to_kube_proxy_is_said_by_one_flag_at_most() {
        assert_eq!(told(&[], "").role, Role::Instead);
        assert_eq!(told(&["--take-over"], "").role, Role::TakeOver);
        for looks_only in ["--shadow", "--hand-back"] {
            assert_eq!(told(&[looks_only, "--once"], "").role, Role::Shadow);
        }
        for two in [["--take-over", "--shadow"], ["--hand-back", "--shadow"], ["--take-over", "--cleanup"]] {
            let refused = Command::try_parse_from(["agent"].iter().chain(&two)).expect_err("a conflict");
            assert_eq!(refused.kind(), clap::error::ErrorKind::ArgumentConflict);
        }
    }

    #[test]
    fn a_flag_goes_before_the_file() {
        let file = "hostnameOverride: a\nmetricsBindAddress: 0.0.0.0:1\nclusterCIDR: 10.1.0.0/16\nnodePortAddresses: [all]\n\
            conntrack: {min: 1, tcpCloseWaitTimeout: 1m}";
        let from_file = told(&[], file);
        assert_eq!((from_file.node_name.as_str(), from_file.conntrack.min), ("a", Some(1)));
        assert_eq!(from_file.pod_cidrs, ["10.1.0.0/16".parse::<IpNet>().unwrap()]);
        let flags = [
            "--node-name=b",
            "--metrics-bind-address=",
            "--healthz-bind-address=127.0.0.1",
            "--cluster-cidr=10.2.0.0/16",
            "--nodeport-addresses=primary,localhost",
            "--conntrack-tcp-timeout-close-wait=1h",
            "--service-cidr=10.96.0.0/12",
        ];
        let config = told(&flags, file);
        assert_eq!(config.node_name, "b");
        assert_eq!(config.servers.metrics, None);
        assert_eq!(config.servers.healthz, Some("127.0.0.1:10256".parse().unwrap()));
        assert_eq!(config.pod_cidrs, ["10.2.0.0/16".parse::<IpNet>().unwrap()]);
        assert_eq!(node_ports::list(&config.node_port_addresses), ["primary", "localhost"]);
        assert!(!config.watch_service_cidrs);
        assert_eq!(config.conntrack.tcp_close_wait, Some(Duration::from_secs(3600)));
        assert_eq!(config.conntrack.min, Some(1));
    }
}
