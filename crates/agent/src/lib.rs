//! Level-triggered: restart, replay and missed events all end in the same state.
//!
//! Absent on purpose: any choice of where traffic goes (that is `plan`), and any write to the API.

pub mod agent; // watches, and the thread that forwards
pub mod dataplane; // what the agent asks of a dataplane
pub mod forward; // the thread: views, plan, kernel, in order
pub mod from_kube; // API objects to views
pub mod health; // the ports by which load balancers ask for endpoints
pub mod kernel; // the kernel as a dataplane
pub mod lock; // one agent for each network namespace
pub mod observed; // what the watches said so far
pub mod sysctl; // the kernel settings that forwarding needs

pub use agent::{Agent, Config, run};
pub use forward::{Disturbance, Status};
