//! What the agent promises, against an API in memory and a dataplane that remembers.

mod api;
mod forwarding;
mod healing;
mod histories;
mod hitless;
mod kernel;
mod lock;
mod plane;
mod servers;
mod take_over;
mod translation;
