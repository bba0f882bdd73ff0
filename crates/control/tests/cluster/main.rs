//! The controllers against an API server in the same process, with nodes and kubelets that only pretend.

mod lab; // a cluster without machines

mod addresses; // load balancers
mod differential; // the real controllers, asked the same
mod garbage; // owners and namespaces
mod leader; // who of several runs them
mod nodes; // leases, ranges, taints
mod normal; // what two clusters can't agree on
mod parted; // what differs
#[path = "../../../server/tests/api/differential/peer.rs"]
mod peer; // the real API server
mod rollout; // deployments
mod services; // slices and Endpoints
mod workloads; // the other workloads, and what bounds pods
