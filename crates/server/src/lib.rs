//! The only writer of the store; holds the protocol and no control loop.
//!
//! Absent on purpose: controllers (they are clients like any other), and state: memory here is a cache of the store, fed
//! by the store's own watch, and a second server over the same store would answer alike.

mod config; // what a server is told at its start
mod serve;
mod server; // the server, and the in-process client's way in // the same over TLS

mod auth; // who asks
mod http; // one request, from its head to its answer
mod negotiate; // in which form the answer goes back
mod options; // what else stands in it
mod path; // what a URL asks for

mod discovery; // what there is
mod health; // whether we are well
mod openapi; // how it is written

mod apply; // server-side apply, and who a write is counted for
mod connect; // exec, attach, port-forward: passed on to nodes
mod delete; // deleting, at once or in time
mod log; // pods' logs, fetched from nodes
mod proxy; // HTTP to pods, Services and nodes, passed through
mod read; // get and list
mod subresource; // scale, binding, eviction, finalize
mod watch; // a body that grows with events
mod write; // create, update, patch

mod body; // what goes back: whole or streamed
mod squeeze; // large answers, made smaller
mod table;
mod yaml; // bodies in YAML // what of an object kubectl prints

mod bootstrap; // what every cluster has
mod cache; // a kind's objects in memory, and the recent past
mod claims; // the addresses and ports that Services hold
mod compact; // forgetting old history
mod expire; // forgetting old Events
mod follow; // the store's watch, taken up again when it breaks
mod object; // one object in memory
mod random; // names, identifiers, spread

pub mod kubeconfig; // the file for kubectl
mod pin; // TLS towards a known certificate
pub mod pki; // the authority, certificates, tokens

pub use auth::Identity;
pub use body::{ServerBody, StreamError};
pub use config::{Config, Error, NodePorts, Result, Version};
pub use log::{LogRequest, NodeLogs, PinnedNodeLogs};
pub use serve::serve;
pub use server::{InProcess, Server};
