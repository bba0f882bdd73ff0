//! Allocation as a pure function: which addresses and ports a Service takes and gives back.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::Value;

use crate::fielderror::FieldError;

/// What a cluster hands out to Services.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// The ranges of ClusterIPs, the primary family first; at most one per family.
    pub cidrs: Vec<IpNet>,
    /// The range of NodePorts, of which health check ports are drawn too.
    pub node_ports: RangeInclusive<u16>,
}

/// What one Service holds and no other may.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// An address.
    ClusterIp(IpAddr),
    /// A port on every node. One number may be shared by the protocols of one Service.
    NodePort {
        /// The number.
        port: u16,
        /// `TCP`, `UDP` or `SCTP`.
        protocol: String,
    },
    /// A port on every node that answers whether it has local endpoints (TCP).
    HealthCheckNodePort(u16),
}

/// What changes hands with a write: the store applies both with the object in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Allocation {
    /// Claims that the Service did not hold before.
    pub take: Vec<Claim>,
    /// Claims that the Service holds no longer.
    pub release: Vec<Claim>,
}

/// Why nothing was allocated.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// The client asked for what it cannot have: 422.
    Invalid(Vec<FieldError>),
    /// Nothing is left to give: 500.
    Internal(String),
}

/// Fills in the addresses and ports of a Service that is prepared (`prepare_create`, `prepare_update`) and not yet
/// checked, and says which claims change hands. `taken` asks whether another Service holds a claim; for a NodePort it is
/// asked for each protocol. `random` draws a number below its argument. A dry run takes nothing.
pub fn allocate(
    new: &mut Value,
    old: Option<&Value>,
    config: &ServiceConfig,
    dry_run: bool,
    taken: &dyn Fn(&Claim) -> bool,
    random: &mut dyn FnMut(u64) -> u64,
) -> Result<Allocation, Refusal> {
    let _ = (new, old, config, dry_run, taken, random);
    Ok(Allocation::default())
}

/// What a stored Service holds.
pub fn claims(service: &Value) -> Vec<Claim> {
    let _ = service;
    Vec::new()
}

/// What a deleted Service gives back.
pub fn release(old: &Value) -> Vec<Claim> {
    claims(old)
}
