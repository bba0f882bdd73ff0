//! What a server is told at its start, and what can go wrong then.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls_pki_types::CertificateDer;

use crate::audit::AuditLog;
use crate::auth::Identity;
use crate::log::{NodeLogs, PinnedNodeLogs};
use crate::pki::Authority;

/// The ports that Services of type NodePort draw from, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePorts {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl Default for NodePorts {
    /// Kubernetes' range, 30000 to 32767.
    fn default() -> NodePorts {
        NodePorts { first: 30000, last: 32767 }
    }
}

/// What `/version` says.
#[derive(Clone, Debug)]
pub struct Version {
    /// The major number, as text.
    pub major: String,
    /// The minor number, as text.
    pub minor: String,
    /// The whole version.
    pub git_version: String,
}

impl Default for Version {
    fn default() -> Version {
        Version { major: "1".into(), minor: "36".into(), git_version: "v1.36.0+portolan".into() }
    }
}

/// A server's settings.
#[derive(Clone)]
pub struct Config {
    /// The ranges that ClusterIPs are drawn from: one, or one of each family; the first is the primary family.
    pub service_cidrs: Vec<IpNet>,
    /// The range that NodePorts are drawn from.
    pub node_ports: NodePorts,
    /// Addresses at which pods and nodes reach this server: the endpoints of the Service `kubernetes`.
    pub advertise_addresses: Vec<IpAddr>,
    /// The port at these addresses.
    pub advertise_port: u16,
    /// Bearer tokens and who they stand for.
    pub tokens: Vec<(String, Identity)>,
    /// Whose client certificates are believed; none: nobody's.
    pub client_authority: Option<CertificateDer<'static>>,
    /// The authority's certificate as PEM, for Secrets that hold a service account's token.
    pub authority_pem: Option<String>,
    /// The P-256 key, in PKCS #8, that signs service accounts' tokens; without one there is a fresh one at each start, and
    /// tokens end with the process.
    pub signing_key: Option<Vec<u8>>,
    /// What these tokens name as their issuer and, unless they were asked for somebody else, their audience.
    pub issuer: String,
    /// Signs nodes' certificates; without it no node can get one.
    pub node_authority: Option<Arc<Authority>>,
    /// Where requests are told of; none: nowhere.
    pub audit_log: Option<AuditLog>,
    /// What `/version` says.
    pub version: Version,
    /// The bearer token that nodes expect from us when we ask for logs.
    pub node_log_token: String,
    /// How logs are fetched from a node.
    pub node_logs: Arc<dyn NodeLogs>,
    /// Whether pods get an account and its token if they name none (kube-apiserver's admission plugin ServiceAccount). It
    /// wants a controller that makes the account `default` in each namespace.
    pub accounts_of_pods: bool,
    /// How long past revisions can be listed and watched from; older history is forgotten.
    pub history: Duration,
}

impl Config {
    /// Settings for these Service ranges; all else as usual, and nobody let in yet.
    pub fn new(service_cidrs: Vec<IpNet>) -> Config {
        Config {
            service_cidrs,
            node_ports: NodePorts::default(),
            advertise_addresses: Vec::new(),
            advertise_port: 6443,
            tokens: Vec::new(),
            client_authority: None,
            authority_pem: None,
            signing_key: None,
            // As kubeadm sets it.
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            node_authority: None,
            audit_log: None,
            version: Version::default(),
            node_log_token: String::new(),
            node_logs: Arc::new(PinnedNodeLogs),
            accounts_of_pods: false,
            history: Duration::from_secs(300),
        }
    }
}

/// Why a server couldn't be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting can't be.
    #[error("{field}: {problem}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The store said no.
    #[error(transparent)]
    Store(#[from] portolan_store::Error),
    /// An object that has to exist couldn't be made.
    #[error("bootstrapping {what}: {why}")]
    Bootstrap {
        /// The object.
        what: String,
        /// The answer to creating it.
        why: String,
    },
    /// The listening socket failed.
    #[error("accepting connections: {0}")]
    Accept(#[from] std::io::Error),
}

/// The result of opening or serving.
pub type Result<T> = std::result::Result<T, Error>;
