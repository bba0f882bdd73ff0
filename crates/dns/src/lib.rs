//! An answer is a function of the zone and the question; before the first sync it is SERVFAIL, never NXDOMAIN.
//!
//! Absent on purpose: zone transfers, DNSSEC, zone files, other clusters' zones; any write to the API. HTTP is its caller's.

// Modules in the order in which a newcomer reads them.
pub mod answer; // a question against the zone: pure
mod cache; // what upstreams said, for as long as they said it holds
pub mod forward; // names of others: relayed to upstreams
pub mod from_kube; // API objects to the zone's views
pub mod message; // questions read, answers composed
pub mod meters; // what is counted, and the page of it
pub mod name; // domain names as they are on the wire
pub mod resolv_conf; // the machine's name servers
pub mod server; // UDP and TCP
pub mod watch;
pub mod zone; // what a cluster's names stand for // the API's objects into the zone

pub use server::{Config, Server};
