//! Makes the kernel equal to a plan in one transaction and can read it back; decides nothing.
//!
//! Absent on purpose: Kubernetes, files, the network of anybody but the calling thread's namespace, and any opinion
//! about where a connection should go.
//!
//! In the order in which a newcomer reads them: `word`, 32 bits that carry a decision from rule to rule; `element`, what a
//! plan consists of in the kernel; `ruleset`, the fixed chains that look elements up; `unit`, operations and which of them belong
//! together; `mirror`, what the kernel holds, in our terms; `diff`, from there to a plan; `encode`, `shape` and `read`, to
//! the kernel and back; `engine`, the shell; `udp`, flows that outlive their backend; `ability`, what a
//! kernel must have for all this.

mod ability;
mod diff;
mod element;
mod encode;
mod engine;
mod mirror;
mod read;
mod rule;
mod ruleset;
mod shape;
mod udp;
mod unit;
mod word;

#[cfg(test)]
mod tests;

pub use ability::{Lack, OLDEST, lacks};
pub use engine::{Applied, Counters, Engine, Error, Options};
pub use read::{ActionReading, FrontendReading, Reading};
pub use udp::{Forget, forget_udp};
pub use unit::Finding;
