//! `portolan node`: forwarding, pods and announcements of one node, each an ordinary client of the API.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use base64::Engine as _;
use ipnet::IpNet;
use portolan_server::pki::{self, NodeToken};
use tokio_util::sync::CancellationToken;

use super::agent::{AddressArgs, FromOutside, ServerArgs, hostname};

/// A node asks for another certificate when it has had one for so long: they are good for a year.
const RENEWAL: std::time::Duration = std::time::Duration::from_secs(300 * 24 * 3600);

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
    /// Ranges of ClusterIPs, for a server that doesn't tell them by ServiceCIDR objects.
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
    /// Where pods look names up, as the address of the Service kube-dns; without it they know no name server.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    cluster_dns: Vec<IpAddr>,
    /// The domain of the cluster's names.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = super::dns::domain)]
    cluster_domain: portolan_dns::name::Name,
    #[command(flatten)]
    addresses: AddressArgs,
    #[command(flatten)]
    servers: ServerArgs,
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
        None => hostname()?,
    };

    let mut server = kube::Config::new(args.server.parse()?);
    server.root_cert = Some(vec![authority.to_vec()]);

    let mut pods = portolan_pods::Config::new(&name, node_ip.clone(), &args.data_dir);
    pods.images = args.image.into_iter().collect::<BTreeMap<_, _>>();
    pods.allow_host_image = args.allow_host_image;
    pods.log_token = crate::secret::log_token(&args.token);
    pods.log_port = args.log_port;
    pods.labels = args.label.into_iter().collect();
    pods.cluster_dns = args.cluster_dns;
    pods.cluster_domain = args.cluster_domain.to_string().trim_end_matches('.').to_owned();

    let mut agent = portolan_agent::Config::new(&name);
    agent.service_cidrs = args.service_cidr;
    agent.watch_service_cidrs = true;
    agent.cluster_ip_from_outside = args.cluster_ip_from_outside.into();
    args.addresses.apply(&mut agent)?;
    agent.servers = args.servers.over(portolan_agent::Servers::usual());

    let speaker = portolan_lb::speaker::Config {
        node: name.clone(),
        interface: interface.clone().unwrap_or_default(),
        secret: crate::secret::heartbeat_key(&args.token),
    };
    if interface.is_none() {
        tracing::warn!(address = %first, "no link has this address: load-balancer addresses are not announced; name the link with --interface");
    }

    loop {
        let Some(client) = join(&server, &token.bearer, &name, &stop).await? else { return Ok(()) };
        // When the certificate has grown old the parts begin anew with another one; what they made stays meanwhile.
        let round = stop.child_token();
        let renewal = {
            let round = round.clone();
            tokio::spawn(async move {
                tokio::time::sleep(RENEWAL).await;
                round.cancel();
            })
        };
        let announcing = async {
            if interface.is_none() {
                round.cancelled().await;
                return Ok(());
            }
            portolan_lb::watch::run(client.clone(), speaker.clone(), round.clone())
                .await
                .context("announcing load-balancer addresses")
        };
        let agent = async {
            portolan_agent::run(client.clone(), agent.clone(), round.clone())
                .await
                .context("programming the kernel")
        };
        let pods = async {
            portolan_pods::run(client.clone(), pods.clone(), round.clone()).await.context("running pods")
        };
        // One part that fails ends the process with its reason: half a node would hide it.
        let ended = tokio::try_join!(agent, pods, announcing).map(|_| ());
        renewal.abort();
        ended?;
        if stop.is_cancelled() {
            return Ok(());
        }
    }
}

/// A client with a credential of this node's own: a certificate for a fresh key, which the token is good to ask for.
/// `None` when asked to stop before the server answered; an error if it doesn't know the token, for it would not learn it
/// later.
async fn join(
    server: &kube::Config,
    token: &str,
    name: &str,
    stop: &CancellationToken,
) -> anyhow::Result<Option<kube::Client>> {
    let mut asking = server.clone();
    asking.auth_info.token = Some(token.to_owned().into());
    let asking = kube::Client::try_from(asking)?;
    let (key, request) = pki::certificate_request()?;
    let body = serde_json::json!({"name": name, "request": request}).to_string();
    let certificate = loop {
        let request = http::Request::post("/portolan/node-certificate")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.clone().into_bytes())?;
        let answer = asking.request::<serde_json::Value>(request);
        match tokio::time::timeout(std::time::Duration::from_secs(5), answer).await {
            Ok(Ok(answer)) => {
                break answer["certificate"]
                    .as_str()
                    .context("the server's answer has no certificate")?
                    .to_owned();
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 401 => {
                anyhow::bail!(
                    "--token: the server doesn't know this token; the one to join with is in its --data-dir, in the file node-token"
                )
            }
            Ok(Err(kube::Error::Api(status))) if status.code < 500 && status.code != 429 => {
                anyhow::bail!("the server gives node {name} no certificate: {}", status.message)
            }
            Ok(Err(error)) => tracing::info!(%error, "asking for a certificate"),
            Err(_) => tracing::info!("asking for a certificate: no answer"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {}
        }
    };
    let mut own = server.clone();
    let base64 = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
    own.auth_info.client_certificate_data = Some(base64(certificate));
    own.auth_info.client_key_data = Some(base64(key).into());
    Ok(Some(kube::Client::try_from(own)?))
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
