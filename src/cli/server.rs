//! `portolan server`: the API server on its store, with the controllers as its clients in the same process.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use ipnet::IpNet;
use portolan_server::kubeconfig::Kubeconfig;
use portolan_server::{Identity, Server, pki};
use portolan_store::embedded::{Embedded, Options};
use portolan_store::etcd::{self, Etcd};
use tokio_util::sync::CancellationToken;

/// Run the control plane: API server, store and controllers.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where objects, keys and tokens are kept; made if it isn't there.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where objects are kept: `file`, in DIR, or `etcd=URL[,URL]`, an etcd that other servers may use too.
    #[arg(long, value_name = "STORE", default_value = "file")]
    store: Store,
    /// The authority that signed etcd's certificate, PEM.
    #[arg(long, value_name = "FILE")]
    etcd_cafile: Option<PathBuf>,
    /// Our certificate for etcd, PEM.
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile")]
    etcd_certfile: Option<PathBuf>,
    /// The key of that certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    etcd_keyfile: Option<PathBuf>,
    /// Addresses to listen on.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6443")]
    listen: Vec<SocketAddr>,
    /// Addresses at which pods and nodes reach this server, one of each family; by default those of --listen.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    advertise_address: Vec<IpAddr>,
    /// More names or addresses for the serving certificate.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    san: Vec<String>,
    /// Where to write the administrator's kubeconfig; by default DIR/kubeconfig.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The server's URL in that kubeconfig; by default made from the first of --listen.
    #[arg(long, value_name = "URL")]
    kubeconfig_server: Option<String>,
    /// The cluster's name in that kubeconfig.
    #[arg(long, value_name = "NAME", default_value = "portolan")]
    cluster_name: String,
    /// Ranges of ClusterIPs, one of each family; the first is the primary family.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.96.0.0/16,fd00:10:96::/112")]
    service_cidr: Vec<IpNet>,
    /// Ranges from which each node gets its pods' addresses, one of each family.
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.244.0.0/16,fd00:10:244::/56"
    )]
    cluster_cidr: Vec<IpNet>,
    /// Where to tell of each request, as lines of audit.k8s.io/v1 Events; a file of 100 MB is put aside, ten are kept.
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// Addresses for Services of type LoadBalancer: `FIRST-LAST` or a CIDR.
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    pool: Vec<portolan_lb::pool::Range>,
}

/// Where objects are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Store {
    File,
    Etcd(Vec<String>),
}

impl std::str::FromStr for Store {
    type Err = String;

    fn from_str(text: &str) -> Result<Store, String> {
        match text.split_once('=') {
            None if text == "file" => Ok(Store::File),
            Some(("etcd", urls)) if !urls.is_empty() => {
                Ok(Store::Etcd(urls.split(',').map(str::to_owned).collect()))
            }
            _ => Err("write `file`, or `etcd=http://HOST:2379`".into()),
        }
    }
}

impl Args {
    async fn open_store(&self) -> anyhow::Result<Arc<dyn portolan_store::Store>> {
        match &self.store {
            Store::File => {
                let path = self.data_dir.join("store.redb");
                Ok(Embedded::open(&path, Options::default()).context("opening the store")?)
            }
            Store::Etcd(urls) => {
                let identity = self.etcd_certfile.clone().zip(self.etcd_keyfile.clone());
                let tls = etcd::Tls { authority: self.etcd_cafile.clone(), identity };
                let options = etcd::Options { tls, ..etcd::Options::new(urls.clone()) };
                Ok(Etcd::open(options).await.context("--store")?)
            }
        }
    }
}

/// Runs the control plane until `stop`.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.data_dir).with_context(|| format!("making {}", args.data_dir.display()))?;
    let first = *args.listen.first().context("--listen: at least one address is needed")?;
    let mut advertise = args.advertise_address.clone();
    if advertise.is_empty() {
        advertise.extend(args.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()));
        anyhow::ensure!(
            !advertise.is_empty(),
            "--advertise-address: needed when --listen names no address of its own"
        );
    }

    let authority = Arc::new(pki::Authority::open(&args.data_dir.join("pki"))?);
    let (admin, node) = (authority.admin_token()?, authority.node_token()?);
    let mut names = pki::usual_names(&advertise);
    names.extend(args.san.iter().cloned());
    names.extend(
        args.listen.iter().map(|l| l.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()),
    );
    if let Some(service) = args.service_cidr.iter().map(|cidr| cidr.hosts().next()).next().flatten() {
        names.push(service.to_string());
    }
    names.sort();
    names.dedup();
    let tls = authority.serving(&names)?;

    let mut config = portolan_server::Config::new(args.service_cidr.clone());
    config.advertise_addresses = advertise;
    config.advertise_port = first.port();
    config.node_log_token = crate::secret::log_token(&node);
    config.tokens = vec![
        (admin.clone(), Identity::admin()),
        // Who joins is nobody's node yet: all that this token is good for is to ask for a node's certificate.
        (node.clone(), Identity::new("system:bootstrap:portolan", &["system:bootstrappers:portolan"])),
    ];
    config.accounts_of_pods = true;
    config.audit_log = args.audit_log.as_ref().map(portolan_server::AuditLog::at);
    config.client_authority = Some(authority.certificate_der().clone());
    config.authority_pem = Some(authority.certificate_pem().to_owned());
    config.signing_key = Some(authority.signing_key()?);
    config.node_authority = Some(authority.clone());

    // Bind before anything else can fail late: who gets the port serves.
    let mut listeners = Vec::new();
    for address in &args.listen {
        let listener = tokio::net::TcpListener::bind(address).await;
        listeners.push(listener.with_context(|| format!("--listen {address}"))?);
    }

    let store = args.open_store().await?;
    let server = Server::open(config, store).await.context("opening the API server")?;

    let url = args.kubeconfig_server.unwrap_or_else(|| {
        let host = if first.ip().is_unspecified() { "127.0.0.1".to_owned() } else { bracketed(first.ip()) };
        format!("https://{host}:{}", first.port())
    });
    let kubeconfig = Kubeconfig {
        name: &args.cluster_name,
        server: &url,
        authority_pem: authority.certificate_pem(),
        token: &admin,
    };
    kubeconfig.write(&args.kubeconfig.unwrap_or_else(|| args.data_dir.join("kubeconfig")))?;
    pki::write_atomically(&args.data_dir.join("node-token"), node.as_bytes(), 0o600)?;

    let controllers = {
        let service = server.service(Identity::new("system:kube-controller-manager", &["system:masters"]));
        let client = kube::Client::new(service, "default");
        let config = portolan_control::Config {
            cluster_cidrs: args.cluster_cidr,
            pool: args.pool,
            ca_pem: Some(authority.certificate_pem().to_owned()),
            ..portolan_control::Config::default()
        };
        // A file has one server, an etcd may have several.
        let alone = args.store == Store::File;
        let (stop, identity) = (stop.clone(), identity()?);
        async move {
            match alone {
                true => portolan_control::run(client, config, stop).await,
                false => portolan_control::run_elected(client, config, identity, stop).await,
            }
        }
    };

    let mut serving = tokio::task::JoinSet::new();
    for listener in listeners {
        let (server, tls, stop) = (server.clone(), tls.clone(), stop.clone());
        tracing::info!(address = %listener.local_addr()?, "serving the Kubernetes API");
        serving.spawn(
            async move { portolan_server::serve(server, listener, tls, stop.cancelled_owned()).await },
        );
    }
    let ended = async {
        while let Some(done) = serving.join_next().await {
            done??;
        }
        anyhow::Ok(())
    };
    let controlled = async {
        // The controllers end only when asked to; a cluster without them would rot in silence.
        let result = controllers.await.context("the controllers failed");
        stop.cancel();
        result
    };
    let result = tokio::try_join!(ended, controlled).map(|_| ());
    server.close();
    result
}

/// A name that no other server has: of this machine, and of this start.
fn identity() -> anyhow::Result<String> {
    let unique = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("drawing an identity")?;
    Ok(format!("{}_{}", rustix::system::uname().nodename().to_string_lossy(), unique.trim()))
}

fn bracketed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}
