//! A function: same input, same plan, byte for byte; no I/O, no clock, no randomness, no Kubernetes types.
//!
//! Absent on purpose: slots, set ids and the order of anything in the kernel; those belong to `dataplane`.

pub mod claims; // the second step: clashes between Services
pub mod few; // a map of few entries
pub mod finding; // what is wrong with an object
pub mod model; // what a plan is made of: the output
pub mod planner; // a plan kept up to date, change by change
pub mod service; // the first step: one Service, its endpoints and the node
pub mod trace; // where a flow would go, and why
pub mod view; // what planning needs to know: the input
