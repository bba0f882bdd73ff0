//! `portolan explain` and `portolan trace`: why a Service answers or doesn't, and where a connection goes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use ipnet::IpNet;
use kube::config::{KubeConfigOptions, Kubeconfig};
use portolan_explain::gather::{self, Looks, default_ranges};
use portolan_explain::question::{About, FlowAsked, Place, Question, Target, service_name};
use portolan_explain::report::{Report, examine};
use portolan_explain::situation::Told;
use portolan_explain::{Evidence, imagine};
use portolan_plan::model::{Family, FromOutside, Protocol};
use portolan_plan::view::NodePortAddresses;

use super::lab::Output;

/// Say why a Service answers or doesn't, and where a connection goes.
///
/// Exit status 0: it answers; 1: a cause was found; 2: can't
/// tell. Run on a node as root, it looks into that node's kernel too. It changes nothing.
#[derive(clap::Args, Debug)]
pub struct Explain {
    #[command(flatten)]
    subject: Subject,
    /// The kubeconfig; by default KUBECONFIG, ~/.kube/config, or what a pod is given.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The API server, if another than the kubeconfig's.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Connect by TCP from here to the backends, to see whether somebody listens, and on a node to the Service itself.
    #[arg(long)]
    probe: bool,
    #[command(flatten)]
    told: NodeOptions,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Say where a connection would go, or why a Service would not answer, from manifests alone: no cluster, no privilege.
///
/// Exit status as that of explain.
#[derive(clap::Args, Debug)]
pub struct Trace {
    /// Manifests: Services, workloads, pods, nodes, EndpointSlices. Files, directories, or `-`.
    #[arg(short, long = "filename", value_name = "FILE|DIR", required = true)]
    filename: Vec<PathBuf>,
    #[command(flatten)]
    subject: Subject,
    #[command(flatten)]
    told: NodeOptions,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// A Service, or a connection.
#[derive(clap::Args, Debug)]
struct Subject {
    /// The Service: service/NAME, or NAME. Without it, --from and --to say which connection is meant.
    #[arg(value_name = "SERVICE", conflicts_with_all = ["from", "to", "port", "protocol", "family"])]
    service: Option<String>,
    /// The namespace of what is named without one.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Where it starts: pod:NAMESPACE/NAME, node:NAME, an address, or outside.
    #[arg(long, value_name = "PLACE", requires = "to")]
    from: Option<String>,
    /// Where it is sent: service/NAME, NAMESPACE/NAME, node:NAME, or an address, each also with :PORT.
    #[arg(long, value_name = "TARGET", requires = "from")]
    to: Option<String>,
    /// The port it is sent to.
    #[arg(long, value_name = "PORT", requires = "to", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Its protocol [default: tcp].
    #[arg(long, value_enum, value_name = "PROTOCOL", requires = "to", ignore_case = true)]
    protocol: Option<Transport>,
    /// Its family, where the target has both.
    #[arg(long, value_enum, value_name = "FAMILY", requires = "to", ignore_case = true)]
    family: Option<IpFamily>,
    /// The node that decides, where it could be any.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
}

/// What the nodes were told.
#[derive(clap::Args, Debug)]
struct NodeOptions {
    /// Ranges of ClusterIPs, as the nodes have them [default: the kernel's, else 10.96.0.0/16,fd00:10:96::/112].
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    service_cidr: Option<Vec<IpNet>>,
    /// What becomes of connections to a ClusterIP from outside, as the nodes were told [default: the kernel's, else
    /// refuse on nodes of `portolan node`, and masquerade on others].
    #[arg(long, value_enum)]
    cluster_ip_from_outside: Option<super::agent::FromOutside>,
    #[command(flatten)]
    addresses: super::agent::AddressArgs,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Transport {
    Tcp,
    Udp,
    Sctp,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum IpFamily {
    Ipv4,
    Ipv6,
}

/// The exit status that says that a question can't be answered.
const CANT_TELL: u8 = 2;
/// How long the API server may take to say anything at all.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before a look again, where what was seen may be a moment between two writes.
const SETTLING: Duration = Duration::from_millis(700);

impl Subject {
    /// The question, with what is named without a namespace in `default`.
    fn question(&self, default: &str) -> anyhow::Result<Question> {
        let namespace = self.namespace.as_deref().unwrap_or(default);
        let about = match (&self.service, self.flow(namespace)?) {
            (Some(name), _) => About::Service(service_name(name, namespace).map_err(anyhow::Error::msg)?),
            (None, Some(flow)) => About::Flow(flow),
            (None, None) => anyhow::bail!("name a Service, or a connection by --from and --to"),
        };
        Ok(Question { about, node: self.node.clone() })
    }

    fn flow(&self, namespace: &str) -> anyhow::Result<Option<FlowAsked>> {
        let (Some(from), Some(to)) = (&self.from, &self.to) else { return Ok(None) };
        let (to, port) = Target::parse(to, namespace).map_err(|e| anyhow!("--to {to}: {e}"))?;
        Ok(Some(FlowAsked {
            from: Place::parse(from, namespace).map_err(|e| anyhow!("--from {from}: {e}"))?,
            to,
            port: self.port.or(port),
            protocol: match self.protocol {
                None | Some(Transport::Tcp) => Protocol::Tcp,
                Some(Transport::Udp) => Protocol::Udp,
                Some(Transport::Sctp) => Protocol::Sctp,
            },
            family: self.family.map(|family| match family {
                IpFamily::Ipv4 => Family::V4,
                IpFamily::Ipv6 => Family::V6,
            }),
        }))
    }
}

impl NodeOptions {
    fn told_from_outside(&self) -> Option<FromOutside> {
        self.cluster_ip_from_outside.map(Into::into)
    }
}

/// Runs `explain`.
pub fn explain(args: Explain) -> anyhow::Result<ExitCode> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    finish(args.output, runtime.block_on(answer(&args)))
}

async fn answer(args: &Explain) -> anyhow::Result<Report> {
    let mut config = match &args.kubeconfig {
        Some(path) => {
            let file =
                Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        None => {
            readable(std::env::var_os("KUBECONFIG"))?;
            kube::Config::infer()
                .await
                .map_err(|e| anyhow!("no cluster is named: give --kubeconfig, or set KUBECONFIG ({e})"))?
        }
    };
    if let Some(server) = &args.server {
        config.cluster_url = url(server)?;
    }
    let question = args.subject.question(&config.default_namespace)?;
    let server = config.cluster_url.clone();
    let client = kube::Client::try_from(config)?;
    // What it says is of no interest, and it may well refuse: only silence is an answer here.
    if tokio::time::timeout(PATIENCE, client.apiserver_version()).await.is_err() {
        anyhow::bail!("the API server {server} didn't answer within {} s", PATIENCE.as_secs());
    }
    let looks = Looks {
        probe: args.probe,
        service_cidrs: args.told.service_cidr.clone(),
        cluster_ip_from_outside: args.told.told_from_outside(),
        node_ports: args.told.addresses.node_ports()?,
        external_ips: args.told.addresses.external_ips()?,
    };
    let look = async || -> anyhow::Result<Report> {
        // The innermost error says what happened; those around it say it again.
        let evidence = gather::evidence(&client, &question, &looks).await;
        let evidence =
            evidence.map_err(|e| anyhow!("asking the API server {server}: {e}: {}", e.root_cause()))?;
        Ok(examine(&evidence)?)
    };
    let report = look().await?;
    if !report.causes.iter().any(|cause| cause.kind.may_pass()) {
        return Ok(report);
    }
    // Objects are read one after another, and the kernel follows a moment later: what lasts is a cause.
    tokio::time::sleep(SETTLING).await;
    look().await
}

/// The files that KUBECONFIG names must be readable; those that aren't there are passed over, as kubectl does.
fn readable(paths: Option<OsString>) -> anyhow::Result<()> {
    for path in paths.iter().flat_map(std::env::split_paths).filter(|p| !p.as_os_str().is_empty()) {
        match std::fs::File::open(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                anyhow::bail!("KUBECONFIG: {}: {error}", path.display());
            }
            _ => {}
        }
    }
    Ok(())
}

fn url(text: &str) -> anyhow::Result<http::Uri> {
    let wrong = || anyhow!("--server {text}: write https://HOST:PORT");
    let url: http::Uri = text.parse().map_err(|_| wrong())?;
    let known =
        matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some_and(|h| !h.is_empty());
    if known { Ok(url) } else { Err(wrong()) }
}

/// Runs `trace`.
pub fn trace(args: Trace) -> anyhow::Result<ExitCode> {
    let told = Told {
        service_cidrs: args.told.service_cidr.clone().unwrap_or_else(default_ranges),
        cluster_ip_from_outside: args.told.told_from_outside().unwrap_or_default(),
        node_ports: args.told.addresses.node_ports()?.unwrap_or_else(NodePortAddresses::primary),
        external_ips: args.told.addresses.external_ips()?.unwrap_or_default(),
    };
    let report = (|| {
        let namespace = args.subject.namespace.as_deref().unwrap_or("default");
        let question = args.subject.question(namespace)?;
        let documents = crate::lab::apply::read(&args.filename)?;
        let values = documents.into_iter().map(|document| document.value).collect();
        let (objects, assumed) = imagine::from_manifests(values, &told.service_cidrs, namespace)?;
        let evidence = Evidence { question, objects, told, kernel: None, probes: None, assumed, now: None };
        Ok(examine(&evidence)?)
    })();
    finish(args.output, report)
}

fn finish(output: Output, report: anyhow::Result<Report>) -> anyhow::Result<ExitCode> {
    match report {
        Ok(report) => {
            let code = if report.answers { ExitCode::SUCCESS } else { ExitCode::from(1) };
            crate::lab::show(output, &report, crate::explain::text)?;
            Ok(code)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(ExitCode::from(CANT_TELL))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Alone {
        #[command(flatten)]
        subject: Subject,
    }

    #[test]
    fn what_belongs_to_a_connection_is_refused_beside_a_service() {
        for option in [["--port", "80"], ["--protocol", "udp"], ["--family", "ipv6"]] {
            let of = |rest: &[&str]| Alone::try_parse_from([&["x"], rest, &option].concat());
            assert!(of(&["web"]).is_err(), "{option:?}");
            assert!(of(&[]).is_err(), "{option:?}");
            assert!(of(&["--from", "outside", "--to", "svc/web"]).is_ok(), "{option:?}");
        }
        assert!(Alone::try_parse_from(["x", "web"]).is_ok());
    }

    #[test]
    fn a_server_is_named_by_a_whole_url() {
        for wrong in ["notaurl", "ftp://host", "/path", "https://", "10.0.0.1:6443"] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
        assert_eq!(url("https://10.0.0.1:6443").expect("a URL").port_u16(), Some(6443));
    }

    #[test]
    fn an_unreadable_kubeconfig_is_named_and_a_missing_one_is_passed_over() {
        assert!(readable(Some("/nowhere/config".into())).is_ok());
        let error = readable(Some("/nowhere/config:/dev/null/config".into())).expect_err("not a directory");
        assert!(error.to_string().starts_with("KUBECONFIG: /dev/null/config: "), "{error}");
    }
}
