//! Makes the kernel equal to a plan in one transaction and can read it back; decides nothing.
//!
//! Absent on purpose: Kubernetes, files, the network of anybody but the calling thread's namespace, and any opinion
//! about where a connection should go.

mod engine; // the shell: sockets, batches, time

pub use engine::{Applied, Engine, Error, Finding, Options, StaleUdp};
