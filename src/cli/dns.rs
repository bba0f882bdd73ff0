//! `portolan dns`: the cluster's names, for the lab or in CoreDNS's place on somebody's Kubernetes.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context;
use http::StatusCode;
use portolan_agent::port;
use portolan_agent::servers::bind_address;
use portolan_dns::name::Name;
use portolan_dns::zone::{Options, PodNames};
use portolan_dns::{Config, Server, resolv_conf, watch};
use tokio_util::sync::CancellationToken;

/// Where the port of `/metrics`, `/health` and `/ready` is, if nobody says otherwise.
const METRICS_PORT: u16 = 9153;
/// How long until a port that is taken is tried again.
const RETRY: std::time::Duration = std::time::Duration::from_secs(5);

/// Answer questions for the cluster's names, and relay those for others.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// How to reach the API server; by default as a pod reaches its own.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where to answer, over UDP and TCP.
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',', default_value = "0.0.0.0:53,[::]:53", value_parser = dns_address)]
    listen: Vec<SocketAddr>,
    /// The domain of the cluster's names.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = domain)]
    cluster_domain: Name,
    /// Whom to ask for other names, the first one first: addresses, a file such as /etc/resolv.conf, or `none`.
    #[arg(long, value_name = "ADDRESS|FILE|none", value_delimiter = ',', default_value = "/etc/resolv.conf")]
    forward: Vec<String>,
    /// Whether pods have names made of their addresses, such as 10-244-1-7.default.pod.cluster.local.
    #[arg(long, value_enum, default_value_t = Pods::Insecure)]
    pods: Pods,
    /// For how many seconds answers hold.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=3600))]
    ttl: u32,
    /// Where to answer /metrics, /health and /ready; "" for nowhere.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9153")]
    metrics_bind_address: String,
}

/// Whether pods have names.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Pods {
    /// No.
    Disabled,
    /// Any address that a name says, without looking for the pod.
    Insecure,
}

fn dns_address(text: &str) -> Result<SocketAddr, String> {
    bind_address(text, resolv_conf::PORT)
}

/// A cluster's domain, from its text.
pub fn domain(text: &str) -> Result<Name, String> {
    let name = Name::parse(text).filter(|name| *name != Name::ROOT);
    name.map(|name| name.lower()).ok_or_else(|| {
        format!("{text:?} is no domain; write labels with dots between them, such as cluster.local")
    })
}

impl Args {
    /// Whom to ask for other names.
    fn upstreams(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let mut upstreams = Vec::new();
        for text in &self.forward {
            match text.as_str() {
                "none" if self.forward.len() == 1 => {}
                "none" => anyhow::bail!("--forward: none stands alone; leave it or the others out"),
                path if path.contains('/') => {
                    let text = std::fs::read_to_string(path).with_context(|| format!("--forward {path}"))?;
                    upstreams.extend(resolv_conf::servers(&text));
                }
                text => {
                    upstreams.push(resolv_conf::server(text).map_err(|e| anyhow::anyhow!("--forward: {e}"))?)
                }
            }
        }
        // Asking itself, a server would be busy for ever with one question.
        let (own, others): (Vec<SocketAddr>, Vec<SocketAddr>) =
            upstreams.into_iter().partition(|upstream| self.listen.contains(upstream));
        for address in own {
            tracing::warn!(%address, "--forward: it is this server's own address and is left out");
        }
        if others.is_empty() {
            tracing::info!("nobody to ask for other names: they are refused");
        }
        Ok(others)
    }
}

/// Answers until `stop`.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let mut zone = Options::new(args.cluster_domain);
    zone.ttl = args.ttl;
    zone.pods = match args.pods {
        Pods::Disabled => PodNames::Disabled,
        Pods::Insecure => PodNames::Insecure,
    };
    zone.own =
        args.listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect::<Vec<IpAddr>>();
    let metrics = match args.metrics_bind_address.as_str() {
        "" => None,
        text => Some(
            bind_address(text, METRICS_PORT).map_err(|e| anyhow::anyhow!("--metrics-bind-address: {e}"))?,
        ),
    };
    let config = Config {
        listen: args.listen.clone(),
        forward: args.upstreams()?,
        zone,
        sockets: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let client = super::agent::client(args.kubeconfig.as_deref()).await?;
    let server = Server::bind(config).context("--listen")?;
    let (zone, counted) = (server.zone(), server.meters());
    let addresses: Vec<String> = server.addresses().map(|at| at.to_string()).collect();
    tracing::info!(addresses = addresses.join(", "), "answering questions");

    let synced = tokio::sync::watch::Sender::new(false);
    let mut ready = synced.subscribe();
    let told = async {
        if ready.wait_for(|synced| *synced).await.is_ok() {
            let (services, endpoints) = zone.read().size();
            tracing::info!(services, endpoints, "the cluster's names are known");
        }
        std::future::pending().await
    };
    let shown = async {
        let Some(at) = metrics else { return std::future::pending().await };
        let failed = |error| tracing::warn!(%error, again_in = ?RETRY, "--metrics-bind-address {at}");
        let listener = port::open(at, RETRY, failed).await;
        let (zone, counted) = (zone.clone(), counted.clone());
        port::serve(listener, move |request| {
            let text = |status, body: String| port::answer(status, port::TEXT, body);
            match request.uri().path() {
                "/metrics" => {
                    port::answer(StatusCode::OK, portolan_metrics::CONTENT, counted.page(&zone.read()))
                }
                "/health" => text(StatusCode::OK, "OK".into()),
                "/ready" if zone.read().synced() => text(StatusCode::OK, "OK".into()),
                "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "kubernetes".into()),
                _ => port::not_found(),
            }
        })
        .await;
    };
    tokio::select! {
        () = server.run(stop) => {}
        () = watch::follow(client, zone.clone(), &synced) => {}
        () = told => {}
        () = shown => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn upstreams(flags: &[&str]) -> Result<Vec<String>, String> {
        let args = Command::try_parse_from(["dns"].iter().chain(flags)).map_err(|e| e.to_string())?.args;
        let upstreams = args.upstreams().map_err(|e| format!("{e:#}"))?;
        Ok(upstreams.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn upstreams_are_addresses_or_those_of_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 192.0.2.1\nnameserver 127.0.0.1\n").expect("written");
        let given = format!("--forward=2001:db8::1,{}", file.display());
        let own = "--listen=127.0.0.1:53";
        assert_eq!(upstreams(&[&given, own]), Ok(vec!["[2001:db8::1]:53".into(), "192.0.2.1:53".into()]));
        assert_eq!(upstreams(&["--forward=none"]), Ok(vec![]));
        for (bad, word) in [("none,192.0.2.1", "stands alone"), ("x", "192.0.2.1"), ("/nowhere", "/nowhere")]
        {
            let error = upstreams(&[&format!("--forward={bad}")]).expect_err(bad);
            assert!(error.starts_with("--forward") && error.contains(word), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_flag_is_told() {
        for (bad, word) in [
            ("--cluster-domain=a..b", "such as cluster.local"),
            ("--listen=here", "such as 0.0.0.0:53"),
            ("--ttl=3601", "3600"),
        ] {
            let error = upstreams(&[bad]).expect_err(bad);
            assert!(error.contains(word), "{error}");
        }
    }
}
