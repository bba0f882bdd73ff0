//! One integration binary for the whole program.

mod agent; // the agent alone, in kube-proxy's place
mod announce; // one node answers for an address, and another one soon after
mod definitions; // kinds that clients define, by kubectl and by Helm
mod deploy; // what is applied to somebody's Kubernetes
mod disruption; // pods and parts die, connections go on
mod dns; // names, as dig sees them, and the real CoreDNS beside ours
mod explain; // faults are injected, and named
mod faults; // what the agent of a real Kubernetes survives
mod harness; // a lab for a test
mod informers; // clients that follow
mod kill; // the server and its etcd are killed while clients write and watch
mod kubectl; // the real kubectl against a lab
mod lab; // the lab: started, used, killed, and nothing left
mod load; // clients that open connections and count
mod map; // ARCHITECTURE.md tells the truth
mod node; // a node joins by hand
mod remote; // kubectl in pods: exec, attach, cp, port-forward, proxy
mod services; // the reference of Services tells the truth
#[path = "../crates/dataplane/tests/kernel/world.rs"]
#[allow(dead_code)]
mod stage; // a node, its pods, and a client outside, each a network namespace
mod tidy; // rules worth stating
