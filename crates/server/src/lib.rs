//! The only writer of the store; holds the protocol and no control loop.
//!
//! Absent on purpose: controllers (they are clients like any other), and state: memory here is a cache of the store, fed
//! by the store's own watch, and a second server over the same store would answer alike.

mod config; // what a server is told at its start
mod server; // the server, and the in-process client's way in
mod serve; // the same over TLS

mod auth; // who asks
mod body; // what goes back
mod path; // what a URL asks for

mod log; // pods' logs, fetched from nodes

pub mod kubeconfig; // the file for kubectl
mod pin; // TLS towards a known certificate
pub mod pki; // the authority, certificates, tokens

pub use auth::Identity;
pub use body::ServerBody;
pub use config::{Config, Error, NodePorts, Result, Version};
pub use log::{LogRequest, NodeLogs, PinnedNodeLogs};
pub use serve::serve;
pub use server::{InProcess, Server};
