//! What a Service means before any node forwards for it: defaults, rules, and which addresses and ports it claims.

mod allocate;

pub use allocate::{Allocation, Claim, Refusal, ServiceConfig, allocate, claims, release};
