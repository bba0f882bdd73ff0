//! A function: same input, same plan, byte for byte; no I/O, no clock, no randomness, no Kubernetes types.
//!
//! Absent on purpose: slots, set ids and the order of anything in the kernel; those belong to `dataplane`.

pub mod model; // what a plan is made of: the output
