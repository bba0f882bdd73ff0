//! A pod's processes, addresses and files are gone when the pod is.
//!
//! Absent on purpose: cgroups, image pulls and a container runtime of somebody else. A pod is a tree of processes below
//! one supervisor, which is process 1 of the pod's PID namespace: whoever kills it lets the kernel remove the rest.
//! Nothing of a pod depends on the process that called [`run`]: it may be killed and started again at any time.

// What a pod needs and what it means: pure.
mod address; // which address a pod gets
mod decide; // what to do next for a pod
mod env; // a container's environment
mod hook; // what a manifest wants done after a start and before an end
mod image; // what an image's name means here
mod status;
mod tokens; // tokens of pods' service accounts // a pod's status

// Pods on this node.
mod files; // hosts, resolv.conf, volumes
mod host_ports; // ports of the node that lead to pods
mod launch; // from a manifest to an order for a supervisor
mod network; // a pod's cable
mod probe; // asking a container how it is
mod protocol; // what a supervisor is told and tells, and a pod's files
mod sandbox; // the node's side of a supervisor
mod supervisor; // process 1 of a pod
mod worker; // the task that looks after one pod

// What others may ask of the node's pods.
mod channels; // what an exec session's two sides say to each other
mod descriptor; // pipes and terminals without waiting
mod endpoint; // the server, as a kubelet's
mod forward; // port-forward
mod log_files; // the files that it is in
mod logs; // what containers wrote
mod remote; // exec and attach
mod spdy; // a SPDY connection and its streams
mod tunnel; // WebSocket as a plain stream of bytes
mod upgrade; // from a request to a connection

// The node.
mod events; // what happened to a pod, for people
mod node; // the Node object and the lease
mod report; // writing a pod's status
mod routes; // the way to other nodes' pods
mod runtime; // all pods of the node

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

/// The Node's annotation with the SHA-256 of the log endpoint's certificate (DER, in hexadecimal).
pub const SERVING_CERT_ANNOTATION: &str = "portolan.dev/serving-cert-sha256";

/// What the pod runtime of one node needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node object's name.
    pub node_name: String,
    /// The node's addresses as others reach them: `status.addresses`, type InternalIP. The first is `status.hostIP`.
    pub node_addresses: Vec<IpAddr>,
    /// Where the node keeps its state; pods are below `pods/`.
    pub data_dir: PathBuf,
    /// Images: name to a directory that becomes the container's read-only root.
    pub images: BTreeMap<String, PathBuf>,
    /// Whether the image `host` (this machine's root, read-only) may be used.
    pub allow_host_image: bool,
    /// The token that the log endpoint wants.
    pub log_token: String,
    /// The log endpoint's port; Kubernetes' usual one is 10250.
    pub log_port: u16,
    /// More labels of the Node object, such as `topology.kubernetes.io/zone`.
    pub labels: BTreeMap<String, String>,
    /// The name servers of the cluster; pods look names up there.
    pub cluster_dns: Vec<IpAddr>,
    /// The domain of the cluster's names.
    pub cluster_domain: String,
    /// How long the node counts as alive after its last sign of life, in seconds: `leaseDurationSeconds`.
    pub lease_seconds: u16,
    /// How to start a pod's supervisor: a program and its first arguments. It must end up in [`pod_main`].
    pub supervisor: (PathBuf, Vec<OsString>),
}

impl Config {
    /// A configuration with the usual values for everything but the node's name, addresses and directory.
    pub fn new(node_name: &str, node_addresses: Vec<IpAddr>, data_dir: &Path) -> Config {
        Config {
            node_name: node_name.to_owned(),
            node_addresses,
            data_dir: data_dir.to_owned(),
            images: BTreeMap::new(),
            allow_host_image: false,
            log_token: String::new(),
            log_port: 10250,
            labels: BTreeMap::new(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            lease_seconds: 8,
            supervisor: (PathBuf::from("/proc/self/exe"), vec![OsString::from("__pod")]),
        }
    }
}

/// Runs the pods of one node until `shutdown`, and leaves them running then: the next call takes them over.
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    runtime::run(client, config, shutdown).await
}

/// The entry of the hidden verb `__pod`: a pod's supervisor. `args` are those after the verb.
///
/// Call it from `main` before any thread is started: it forks.
pub fn pod_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    supervisor::main(args)
}

/// Kills all pods below `data_dir` and removes what they leave. Call it in the node's network namespace.
pub fn teardown(data_dir: &Path) -> std::io::Result<()> {
    runtime::teardown(data_dir)
}
