//! An address is never given twice nor taken from a healthy owner; who announces is computed alike on every node.
//!
//! Absent on purpose: a leader, and any agreement protocol. Each node hears the others' heartbeats on the network that
//! the addresses live on, and all compute the same announcer from the same facts.

// Modules in the order in which a newcomer reads them.
pub mod elect; // who announces an address: pure
pub mod frame; // ARP and NDP: questions and answers as bytes
pub mod heartbeat; // heartbeats as bytes
pub mod membership; // which nodes are heard: pure
pub mod pool; // which address a Service gets: pure
pub mod speaker; // the thread that listens, answers and takes over
pub mod watch; // from the API's objects to what a speaker wants

/// The class of load balancer that Portolan serves on a local network, beside no class at all.
pub const CLASS: &str = "portolan.dev/l2";
