//! What can be wrong, in the order in which it is named: each cause with its object, field, text and remedy.

use std::fmt;

use serde::Serialize;

/// What kind of cause it is. The order is the order of precedence: what stands before explains what stands after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    // --- The Service is not what the client takes it for ---
    /// There is no such Service.
    NoSuchService,
    /// No Service has the address.
    NobodysAddress,
    /// Somebody else's proxy carries it.
    OtherProxy,
    /// An alias for a name outside: no address.
    ExternalName,
    /// Headless: no address.
    Headless,
    /// It has no address of the family.
    WrongFamily,
    /// The port exists with another protocol.
    ProtocolMismatch,
    /// A node port used at an address of the Service.
    NodePortAtService,
    /// A port of the Service used at an address of a node.
    ServicePortAtNode,
    /// It has no such port.
    UndefinedPort,
    /// The address is the node's, but node ports don't answer on it.
    NotANodePortAddress,
    /// The load balancer wants the traffic itself.
    IpModeProxy,

    // --- Nobody is there to answer ---
    /// No selector, and nobody wrote slices.
    NoSelector,
    /// What the selector would match has no replicas.
    ScaledToZero,
    /// The selector matches no pod.
    SelectorMatchesNothing,
    /// Pods wait for a node.
    NotScheduled,
    /// The pods' node is gone or silent.
    NodeOfPodsDown,
    /// The image can't be had.
    ImageUnavailable,
    /// A container can't be started.
    ContainerRefused,
    /// A container ends again and again.
    CrashLoop,
    /// A probe says no.
    ProbeFails,
    /// A readiness gate is shut.
    ReadinessGate,
    /// The pods are about to start.
    Starting,
    /// The pods have no address.
    NoPodAddress,
    /// The pods have ended.
    Ended,
    /// The pods are being deleted.
    Terminating,
    /// Not ready, for a reason that isn't known here.
    NotReady,
    /// The named targetPort is in no pod.
    TargetPortMissing,
    /// The pods have no address of the family.
    PodsLackFamily,
    /// Nobody has written slices.
    SlicesMissing,
    /// The slices are not what the pods are.
    SlicesStale,
    /// The slices have the port under another name or protocol.
    SlicePortsDiffer,
    /// Who writes the slices says that nobody is ready.
    SlicesNotReady,

    // --- This client, here, is not let in ---
    /// A ClusterIP, from outside.
    ClusterIpFromOutside,
    /// The source ranges leave the client out.
    SourceRanges,
    /// internalTrafficPolicy Local, and no local endpoint.
    InternalPolicyLocal,
    /// externalTrafficPolicy Local, and no local endpoint.
    ExternalPolicyLocal,

    // --- The Service lacks an address that it asks for ---
    /// A class that nobody here serves.
    LoadBalancerClass,
    /// The pool has no free address.
    PoolExhausted,
    /// The pool has no address of the family.
    PoolLacksFamily,
    /// The address asked for is not in the pool.
    AddressOutsidePool,
    /// The address asked for is another Service's.
    AddressTaken,
    /// No address yet.
    LoadBalancerPending,
    /// Another Service owns what it claims.
    FrontendClash,
    /// An address that is not captured: none at all, or external and not to be had.
    AddressRefused,

    // --- The node doesn't do what it should ---
    /// The tables are not in the kernel.
    TableMissing,
    /// The tables hold something else than the plan.
    TableDrift,
    /// The kernel doesn't forward.
    ForwardingOff,
    /// No route to a backend.
    RouteMissing,
    /// Another table drops it.
    FirewallDrops,
    /// The connection table is full.
    ConntrackFull,
    /// UDP flows still go to a backend that is gone.
    StaleFlow,
    /// The node doesn't say that it is ready.
    NodeNotReady,
    /// The node has not been heard of for a while.
    NodeSilent,
    /// The node has no range for its pods.
    NoPodCidr,

    // --- The backend doesn't answer ---
    /// Nobody listens on the port.
    BackendRefuses,
    /// Nothing comes back.
    BackendSilent,
    /// The backends answer and the Service doesn't, for a reason that isn't known here.
    Unexplained,

    // --- Worth knowing, and no reason not to answer ---
    /// No container declares the targetPort.
    TargetPortUndeclared,
    /// Some pods are not ready.
    SomeNotReady,
    /// Clients of some nodes are dropped by a Local policy.
    LocalOnSomeNodes,
    /// Topology hints leave endpoints out.
    HintsLeaveOut,
    /// Only terminating endpoints are left.
    OnlyTerminating,
    /// The client is kept at one backend.
    Affinity,
    /// NetworkPolicies select the pods.
    NetworkPolicies,
    /// Another table may drop it.
    FirewallMayDrop,
    /// Something else about the object.
    Finding,
}

/// One cause.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Cause {
    /// What kind of cause it is.
    #[serde(rename = "reason")]
    pub kind: Kind,
    /// The object that it lies in, as `service default/web`.
    pub object: String,
    /// Its field.
    pub field: String,
    /// What is so.
    pub text: String,
    /// What to do about it; empty where nothing need be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: &[Kind] = &[
        Kind::NoSuchService,
        Kind::NobodysAddress,
        Kind::OtherProxy,
        Kind::ExternalName,
        Kind::Headless,
        Kind::WrongFamily,
        Kind::ProtocolMismatch,
        Kind::NodePortAtService,
        Kind::ServicePortAtNode,
        Kind::UndefinedPort,
        Kind::NotANodePortAddress,
        Kind::IpModeProxy,
        Kind::NoSelector,
        Kind::ScaledToZero,
        Kind::SelectorMatchesNothing,
        Kind::NotScheduled,
        Kind::NodeOfPodsDown,
        Kind::ImageUnavailable,
        Kind::ContainerRefused,
        Kind::CrashLoop,
        Kind::ProbeFails,
        Kind::ReadinessGate,
        Kind::Starting,
        Kind::NoPodAddress,
        Kind::Ended,
        Kind::Terminating,
        Kind::NotReady,
        Kind::TargetPortMissing,
        Kind::PodsLackFamily,
        Kind::SlicesMissing,
        Kind::SlicesStale,
        Kind::SlicePortsDiffer,
        Kind::SlicesNotReady,
        Kind::ClusterIpFromOutside,
        Kind::SourceRanges,
        Kind::InternalPolicyLocal,
        Kind::ExternalPolicyLocal,
        Kind::LoadBalancerClass,
        Kind::PoolExhausted,
        Kind::PoolLacksFamily,
        Kind::AddressOutsidePool,
        Kind::AddressTaken,
        Kind::LoadBalancerPending,
        Kind::FrontendClash,
        Kind::AddressRefused,
        Kind::TableMissing,
        Kind::TableDrift,
        Kind::ForwardingOff,
        Kind::RouteMissing,
        Kind::FirewallDrops,
        Kind::ConntrackFull,
        Kind::StaleFlow,
        Kind::NodeNotReady,
        Kind::NodeSilent,
        Kind::NoPodCidr,
        Kind::BackendRefuses,
        Kind::BackendSilent,
        Kind::Unexplained,
        Kind::TargetPortUndeclared,
        Kind::SomeNotReady,
        Kind::LocalOnSomeNodes,
        Kind::HintsLeaveOut,
        Kind::OnlyTerminating,
        Kind::Affinity,
        Kind::NetworkPolicies,
        Kind::FirewallMayDrop,
        Kind::Finding,
    ];

    /// Whether it is no reason not to answer, only worth knowing.
    pub fn is_note(self) -> bool {
        self >= Kind::TargetPortUndeclared
    }

    /// Whether it may be a moment between two writes, so that one should look again before believing it.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            Kind::SlicesMissing
                | Kind::SlicesStale
                | Kind::TableMissing
                | Kind::TableDrift
                | Kind::StaleFlow
                | Kind::LoadBalancerPending
                | Kind::RouteMissing
        )
    }
}

impl Cause {
    /// A cause.
    pub fn new(
        kind: Kind,
        object: impl Into<String>,
        field: impl Into<String>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Cause {
        Cause { kind, object: object.into(), field: field.into(), text: text.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_in_the_guide() {
        assert_eq!(Kind::ALL.len(), Kind::Finding as usize + 1, "Kind::ALL lacks one");
        assert!(Kind::ALL.is_sorted());
        let guide = include_str!("../../../docs/guides/explain.md");
        let missing: Vec<&Kind> =
            Kind::ALL.iter().filter(|k| !guide.contains(&format!("| `{k}` |"))).collect();
        assert!(missing.is_empty(), "docs/guides/explain.md lacks a row for {missing:?}");
    }
}
