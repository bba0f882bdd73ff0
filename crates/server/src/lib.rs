//! The only writer of the store; holds the protocol and no control loop.
//!
//! What looks like one is a part of the protocol: a CustomResourceDefinition is established by whoever serves it, and its
//! objects are removed by whoever no longer will (apiextensions-apiserver does the same inside kube-apiserver).
//!
//! Absent on purpose: controllers (they are clients like any other), and state: memory here is a cache of the store, fed
//! by the store's own watch, and a second server over the same store would answer alike.

mod config; // what a server is told at its start
mod serve; // the same over TLS
mod server; // the server, and the in-process client's way in

mod accounts; // service accounts' tokens
mod attributes; // what a request would do
mod audit; // who did what
mod auth; // who asks
mod authorize; // who may
mod certificate; // who asks by certificate
mod guard; // writes that their author may not make
mod http; // one request, from its head to its answer
mod impersonate; // asking as somebody else
mod inflight; // how much at once
mod jwt; // signed tokens
mod negotiate; // in which form the answer goes back
mod nodes; // what a node may
mod options; // what a request says beside its body
mod path; // what a URL asks for
mod rbac; // what roles allow
mod review; // questions about all that

mod discovery; // what there is
mod health; // whether we are well
mod metrics; // what we count
mod openapi; // how it is written

mod apply; // server-side apply, and who a write is counted for
mod connect; // exec, attach, port-forward: passed on to nodes
mod delete; // deleting, at once or in time
mod links; // those of a page that came through a proxy
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

mod admission; // what new objects get, or are refused for, because of others
mod bootstrap; // what every cluster has
mod cache; // a kind's objects in memory, and the recent past
mod claims; // the addresses and ports that Services hold
mod compact; // forgetting old history
mod definitions; // the kinds that clients define
mod expire; // forgetting old Events
mod feed; // one watch of the store for all caches
mod follow; // the store's watch, taken up again when it breaks
mod object; // one object in memory
mod random; // names, identifiers, spread

pub mod kubeconfig; // the file for kubectl
mod pin; // TLS towards a known certificate
pub mod pki; // the authority, certificates, tokens

pub use audit::AuditLog;
pub use auth::Identity;
pub use body::{ServerBody, StreamError};
pub use config::{Config, Error, NodePorts, Result, Version};
pub use log::{LogRequest, NodeLogs, PinnedNodeLogs};
pub use serve::serve;
pub use server::{InProcess, Server};
