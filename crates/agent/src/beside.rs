//! Beside kube-proxy: what it has in the kernel, whether it runs, and how a node passes from one to the other.
//!
//! A connection goes on as it was translated when it began: connection tracking remembers that, and no table is asked again. So
//! taking a node over is to have our tables in place, to wait until the other proxy has ended, and to remove what it left; new
//! connections ask our chains first, because at equal priority the kernel asks the one that came last. Handing back is the same
//! with the parts exchanged.

pub mod compare; // a plan and what kube-proxy carries: where they differ
pub mod hand_back; // from us to kube-proxy
pub mod read; // its tables, and their end
pub mod running; // whether it runs
pub mod shadow; // a dataplane that only compares
pub mod take_over; // from kube-proxy to us
pub mod trace; // from its rules to what it carries

pub use hand_back::remove;
pub use read::Mode;
pub use shadow::Compared;

/// What an agent is to kube-proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// In its place; what it left in the kernel is not touched.
    #[default]
    Instead,
    /// In its place, and what it left goes when it has ended.
    TakeOver,
    /// It only compares what it would do with what kube-proxy does, and touches nothing.
    Shadow,
}
