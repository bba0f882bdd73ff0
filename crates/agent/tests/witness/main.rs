//! Whatever the cluster, a flow goes where the plan says, and where the real kube-proxy sends it.

#[path = "../agent/api.rs"]
#[allow(dead_code)]
mod api;
mod defects;
mod draw;
mod flows;
mod invalid;
mod judge;
mod kube_proxy;
#[path = "../../../dataplane/tests/kernel/world.rs"]
#[allow(dead_code)]
mod stage;
mod wire;
mod world;
