//! Makes the kernel equal to a plan in one transaction and can read it back; decides nothing.
//!
//! Absent on purpose: Kubernetes, files, the network of anybody but the calling thread's namespace, and any opinion
//! about where a connection should go.

// In the order in which a newcomer reads them.
mod diff; // from there to a plan: pure
mod element; // what a plan consists of in the kernel
mod encode; // operations as messages
mod engine;
mod mirror; // what the kernel holds, in our terms
mod read; // from the kernel back to a plan's terms
mod rule; // building rules
mod ruleset; // the tables' fixed part
mod udp;
mod unit; // operations, and which of them belong together
mod word; // 32 bits that carry a decision from rule to rule // the shell: sockets, batches, time // flows that outlive their backend

pub use engine::{Applied, Counters, Engine, Error, Options};
pub use read::{ActionReading, FrontendReading, Reading};
pub use udp::forget_udp;
pub use unit::{Finding, StaleUdp};
