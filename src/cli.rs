//! The verbs, one file each. Nothing here decides anything: arguments become a configuration, and parts are composed.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

mod agent; // `portolan agent`
mod dns; // `portolan dns`
mod explain; // `portolan explain`, `portolan trace`
pub mod lab; // `portolan lab …`
mod node; // `portolan node`
mod server; // `portolan server`

/// Kubernetes Services, whole, in one binary.
#[derive(Parser)]
#[command(name = "portolan", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
enum Verb {
    /// Run the control plane: API server, store and controllers.
    Server(server::Args),
    /// Run a node: forwarding, pods, and the announcement of load-balancer addresses.
    Node(node::Args),
    /// Run the node agent alone, in kube-proxy's place on somebody's Kubernetes.
    Agent(agent::Args),
    Dns(dns::Args),
    Explain(Box<explain::Explain>),
    Trace(Box<explain::Trace>),
    /// Run a cluster of network namespaces on this machine.
    Lab(lab::LabCommand),
}

/// Runs a hidden verb, if the first argument is one.
pub fn hidden() -> Option<ExitCode> {
    let mut args = std::env::args_os();
    let _program = args.next();
    let verb = args.next()?;
    match verb.to_str()? {
        "__pod" => Some(portolan_pods::pod_main(args)),
        verb => crate::lab::hidden(verb, args),
    }
}

/// Parses the arguments and runs the verb.
pub fn run() -> anyhow::Result<ExitCode> {
    match Cli::parse().verb {
        Verb::Server(args) => serve(|stop| server::run(args, stop)),
        Verb::Node(args) => serve(|stop| node::run(args, stop)),
        Verb::Agent(args) => {
            // Watches decode objects on the runtime's threads, and what stays of them is the forwarding thread's.
            portolan_sys::process::share_heap();
            serve(|stop| agent::run(args, stop))
        }
        Verb::Dns(args) => {
            // As above: what a watch decodes is kept by the zone.
            portolan_sys::process::share_heap();
            serve(|stop| dns::run(args, stop))
        }
        Verb::Explain(args) => explain::explain(*args),
        Verb::Trace(args) => explain::trace(*args),
        Verb::Lab(command) => crate::lab::run(command),
    }
}

/// Runs something long until it ends, or until SIGTERM or SIGINT asks it to.
fn serve<F>(run: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<()>>,
{
    log();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let stop = CancellationToken::new();
    let result = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let asked = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
            asked.cancel();
        });
        run(stop.clone()).await
    });
    // Blocking reads that nobody waits for any more must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result.map(|()| ExitCode::SUCCESS)
}

/// Log lines go to standard error; `PORTOLAN_LOG` filters them as `RUST_LOG` does elsewhere.
fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PORTOLAN_LOG").unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new("info,kube=warn,kube_runtime=warn,hyper=warn")
    });
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
