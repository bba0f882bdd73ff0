//! Knows what objects mean, never where they are kept or who asks: no async, no I/O.
//!
//! Absent on purpose: typed structs as the model. Objects are `serde_json::Value`, so that a field this version does not
//! know survives a read and a write; the table of types ([`schema`]) says what may come in.
//!
//! The way of a write through this crate, as the server walks it:
//!
//! - create: [`Kind::read`], then [`Kind::prepare_create`], for a Service [`service::allocate`], then
//!   [`Kind::check_create`];
//! - update and patch: the same with [`Kind::prepare_update`] and [`Kind::check_update`], which know the stored object;
//! - `/status`: [`Kind::prepare_status_update`] and [`Kind::check_status_update`].

pub mod cron;
pub mod custom;
pub mod duration;
pub mod endpoint;
pub mod fielderror;
pub mod fieldset;
pub mod ip;
pub mod kind;
pub mod kinds;
pub mod limits;
pub mod meta;
pub mod ownership;
pub mod patch;
pub mod pod;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod review;
pub mod scale;
pub mod schema;
pub mod selector;
pub mod service;
pub mod status;
pub mod strict;
pub mod walk;
pub mod workload;

pub use custom::Custom;
pub use fielderror::{ErrorKind, FieldError};
pub use kind::{Column, Entry, KINDS, Kind, Strategy, find, find_kind};
pub use selector::{FieldSelector, LabelSelector};
pub use status::Status;
