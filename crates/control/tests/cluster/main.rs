//! The controllers against an API server in the same process, with nodes and kubelets that only pretend.

mod lab; // a cluster without machines

mod addresses; // load balancers
mod garbage; // owners and namespaces
mod leader; // who of several runs them
mod nodes; // leases, ranges, taints
mod rollout; // deployments
mod services; // slices and Endpoints
mod workloads; // the other workloads, and what bounds pods
