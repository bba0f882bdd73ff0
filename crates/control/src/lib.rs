//! Sees the cluster through `kube::Client` alone; each reconcile is `desired(observed)`, pure, then apply.
//!
//! Each kind is watched once into a cache that also takes in the answers to our own writes, so a decision never
//! runs behind what this process has already done. A change of an object becomes wake-ups, a closed set; a wake-up
//! names one thing to look at, and looking twice is harmless.
//!
//! Absent on purpose: the store and the server (these are ordinary clients), periodic resyncs (they would hide a missed
//! wake-up).

mod addresses; // ServiceCIDRs and IPAddresses
mod aggregation; // ClusterRoles that collect the rules of others
mod budget; // PodDisruptionBudgets
mod cache; // one kind's objects, as the watch and our own writes tell them
mod cluster; // all caches, the client, and the writes
mod cron; // Jobs at their times
mod daemon; // one pod a node
mod deployment; // rolling updates: decide; then the shell
mod driver; // run(): watch, wake, reconcile
mod endpoints; // the legacy Endpoints of a Service
mod garbage; // dependents whose owners are gone
mod job; // pods that come to an end
mod kinds; // the kinds that the API has
mod leader; // one of several servers
mod load_balancer; // addresses for Services of type LoadBalancer
mod mirror; // EndpointSlices of Endpoints that somebody writes
mod namespaces; // what a namespace has, and how it ends
mod nodes; // readiness by lease, taints, pod CIDRs, pods of lost nodes
mod owned; // what controllers that own pods share
mod queue; // wake-ups: each once, with back-off
mod quota; // what a namespace uses
mod recorder; // Events, with counts
mod replicaset; // as many pods as asked for
mod replication; // the older form of a ReplicaSet
mod scheduler; // a node for each pod
mod slices; // EndpointSlices of a Service
mod stateful; // pods with names of their own
mod wake; // the closed set of wake-ups, and what change causes which

pub mod pod_cidr; // a part of the cluster's ranges for each node: pure
pub mod pods; // small questions about a pod that several controllers ask: pure

use std::time::Duration;

use ipnet::IpNet;

pub use driver::run;
pub use leader::run_elected;
pub use slices::{SERVICE_NAME, Shares, desired_slices, pod_ip, resolve, shares};

/// What the controllers need to know about the cluster besides what its API tells.
#[derive(Clone, Debug)]
pub struct Config {
    /// The ranges from which each node gets its `spec.podCIDRs`, at most one a family; empty: nodes bring their own.
    pub cluster_cidrs: Vec<IpNet>,
    /// The length of a node's prefix in the IPv4 range.
    pub node_prefix_v4: u8,
    /// The length of a node's prefix in the IPv6 range.
    pub node_prefix_v6: u8,
    /// The certificate authority that each namespace's `kube-root-ca.crt` shows.
    pub ca_pem: Option<String>,
    /// A node whose lease has not been renewed for so long is unreachable. (kube-controller-manager: 40 s.)
    pub lease_grace: Duration,
    /// How long a pod without its own toleration stays bound to a node that is unreachable or not ready.
    pub toleration: Duration,
    /// The addresses that Services of type LoadBalancer may get.
    pub pool: Vec<portolan_lb::pool::Range>,
    /// At most so many endpoints are put into one EndpointSlice.
    pub max_endpoints_per_slice: usize,
    /// At most so many reconciles run at once.
    pub workers: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            cluster_cidrs: Vec::new(),
            node_prefix_v4: 24,
            node_prefix_v6: 64,
            ca_pem: None,
            lease_grace: Duration::from_secs(6),
            // The seconds that admission gives every pod for both taints in Kubernetes (DefaultTolerationSeconds).
            toleration: Duration::from_secs(300),
            pool: Vec::new(),
            // The default of kube-controller-manager's --max-endpoints-per-slice.
            max_endpoints_per_slice: 100,
            workers: 16,
        }
    }
}
