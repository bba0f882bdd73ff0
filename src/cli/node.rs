//! `portolan node`: forwarding, pods and announcements of one node, each an ordinary client of the API.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use ipnet::IpNet;
use portolan_server::pki::{self, NodeToken};
use tokio_util::sync::CancellationToken;

/// Run a node: forwarding, pods, and the announcement of load-balancer addresses.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The API server.
    #[arg(long, value_name = "URL")]
    server: String,
    /// The token to join with, from the server's DIR/node-token.
    #[arg(long, value_name = "TOKEN", env = "PORTOLAN_NODE_TOKEN", hide_env_values = true)]
    token: String,
    /// The node's name; by default the machine's.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where the node keeps its pods.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/portolan/node")]
    data_dir: PathBuf,
    /// The node's addresses, one of each family; by default the address with which it reaches the server.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// The link that faces the network; by default the one that has the first of --node-ip.
    #[arg(long, value_name = "LINK")]
    interface: Option<String>,
    /// Ranges of ClusterIPs, as the server has them.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.96.0.0/16,fd00:10:96::/112")]
    service_cidr: Vec<IpNet>,
    /// What becomes of connections to a ClusterIP that start neither on this node nor in one of its pods.
    #[arg(long, value_enum, default_value_t = FromOutside::Refuse)]
    cluster_ip_from_outside: FromOutside,
    /// A directory to serve as an image's root, read-only.
    #[arg(long, value_name = "NAME=DIR", value_parser = image)]
    image: Vec<(String, PathBuf)>,
    /// Allow the image `host`: this machine's root, read-only, for every pod that asks for it.
    #[arg(long)]
    allow_host_image: bool,
    /// A label of the Node object, such as topology.kubernetes.io/zone=a.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// The port of the node's log endpoint.
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    log_port: u16,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub enum FromOutside {
    /// Dropped, and counted.
    Refuse,
    /// Forwarded with this node's address as source, as kube-proxy does.
    Masquerade,
}

impl From<FromOutside> for portolan_plan::model::FromOutside {
    fn from(said: FromOutside) -> portolan_plan::model::FromOutside {
        match said {
            FromOutside::Refuse => portolan_plan::model::FromOutside::Refuse,
            FromOutside::Masquerade => portolan_plan::model::FromOutside::Masquerade,
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn image(text: &str) -> Result<(String, PathBuf), String> {
    let (name, dir) = text.split_once('=').ok_or("expected NAME=DIR")?;
    let dir = PathBuf::from(dir);
    match dir.is_dir() {
        true => Ok((name.to_owned(), dir)),
        false => Err(format!("{} is not a directory", dir.display())),
    }
}

/// Runs the node until `stop`. Forwarding and pods stay as they are then: the next run takes them over.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let url: http::Uri = args.server.parse().with_context(|| format!("--server {}", args.server))?;
    let host = url.host().context("--server: the URL names no host")?.to_owned();
    let address = format!("{host}:{}", url.port_u16().unwrap_or(443));
    let token: NodeToken = args.token.parse().context("--token")?;
    let authority = reach(&address, &token, &stop).await?;
    let Some(authority) = authority else { return Ok(()) };

    let mut node_ip = args.node_ip.clone();
    if node_ip.is_empty() {
        let towards =
            tokio::net::TcpStream::connect(&address).await.with_context(|| format!("reaching {address}"))?;
        node_ip.push(towards.local_addr()?.ip());
    }
    let first = node_ip[0];
    let interface = match args.interface {
        Some(name) => Some(name),
        None => portolan_sys::link::holding(first).context("listing the links' addresses")?,
    };
    let name = match args.name {
        Some(name) => name,
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_lowercase(),
    };

    let mut config = kube::Config::new(args.server.parse()?);
    config.root_cert = Some(vec![authority.to_vec()]);
    config.auth_info.token = Some(token.bearer.clone().into());
    let client = kube::Client::try_from(config)?;

    admitted(&client, &name).await?;

    let mut pods = portolan_pods::Config::new(&name, node_ip.clone(), &args.data_dir);
    pods.images = args.image.into_iter().collect::<BTreeMap<_, _>>();
    pods.allow_host_image = args.allow_host_image;
    pods.log_token = crate::secret::log_token(&args.token);
    pods.log_port = args.log_port;
    pods.labels = args.label.into_iter().collect();

    let mut agent = portolan_agent::Config::new(&name);
    agent.service_cidrs = args.service_cidr;
    agent.cluster_ip_from_outside = args.cluster_ip_from_outside.into();

    let speaker = async {
        let Some(interface) = interface else {
            tracing::warn!(address = %first, "no link has this address: load-balancer addresses are not announced; name the link with --interface");
            stop.cancelled().await;
            return Ok(());
        };
        let secret = crate::secret::heartbeat_key(&args.token);
        let config = portolan_lb::speaker::Config { node: name.clone(), interface, secret };
        portolan_lb::watch::run(client.clone(), config, stop.clone())
            .await
            .context("announcing load-balancer addresses")
    };
    let agent = async {
        portolan_agent::run(client.clone(), agent, stop.clone()).await.context("programming the kernel")
    };
    let pods = async { portolan_pods::run(client.clone(), pods, stop.clone()).await.context("running pods") };
    // One part that fails ends the process with its reason: half a node would hide it.
    tokio::try_join!(agent, pods, speaker).map(|_| ())
}

/// An error if the server doesn't know the token. It would not learn it later, and each part would ask for ever. Any other
/// answer, and none, is for the parts, which keep trying.
async fn admitted(client: &kube::Client, name: &str) -> anyhow::Result<()> {
    let nodes: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(client.clone());
    match tokio::time::timeout(std::time::Duration::from_secs(5), nodes.get_opt(name)).await {
        Ok(Err(kube::Error::Api(status))) if status.code == 401 => {
            anyhow::bail!(
                "--token: the server doesn't know this token; the one to join with is in its --data-dir, in the file node-token"
            )
        }
        _ => Ok(()),
    }
}

/// The server's authority, as soon as the server can be reached; `None` when asked to stop before.
async fn reach(
    address: &str,
    token: &NodeToken,
    stop: &CancellationToken,
) -> anyhow::Result<Option<rustls::pki_types::CertificateDer<'static>>> {
    let mut told = false;
    loop {
        match tokio::time::timeout(
            std::time::Duration::from_secs(5),
            pki::fetch_authority(address, &token.authority),
        )
        .await
        {
            Ok(Ok(authority)) => return Ok(Some(authority)),
            // A server that shows another authority will not change its mind.
            Ok(Err(error)) if error.downcast_ref::<std::io::Error>().is_none() && !is_io(&error) => {
                return Err(error.context("--token"));
            }
            Ok(Err(error)) if !told => {
                tracing::info!(%error, address, "waiting for the server");
                told = true;
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {}
        }
    }
}

fn is_io(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<std::io::Error>())
}
