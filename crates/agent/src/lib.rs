//! Level-triggered: restart, replay and missed events all end in the same state.
//!
//! Absent on purpose: any choice of where traffic goes (that is `plan`), and any write to the API but events.

pub mod agent; // watches, and the thread that forwards
pub mod beside; // kube-proxy's tables: compared, taken over, handed back
pub mod dataplane; // what the agent asks of a dataplane
mod events; // events about the node and its Services
pub mod forward; // the thread: views, plan, kernel, in order
pub mod from_kube; // API objects to views
pub mod health; // the ports by which load balancers ask for endpoints
pub mod kernel; // the kernel as a dataplane
pub mod kube_proxy; // kube-proxy's configuration file
mod later_looks; // when stale UDP flows are looked for again
pub mod localhost; // what NodePorts on 127.0.0.1 and ::1 need
pub mod lock; // one agent for each network namespace
mod meters; // what the agent measures of its work
mod metrics; // the page that Prometheus reads
pub mod observed; // what the watches said so far
pub mod port; // an HTTP port: opened, tried again, answered
mod proxy_health; // what /healthz and /livez say
pub mod servers; // the agent's own ports
pub mod sysctl; // the kernel settings that forwarding needs

pub use agent::{Agent, Config, run};
pub use forward::{Disturbance, Status};
pub use servers::Servers;
