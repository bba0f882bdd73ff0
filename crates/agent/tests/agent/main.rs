//! What the agent promises, against an API in memory and a dataplane that remembers.

mod api;
mod forwarding;
mod histories;
mod kernel;
mod plane;
mod servers;
mod translation;
