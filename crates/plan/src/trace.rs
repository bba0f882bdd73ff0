//! Where a flow would go, and which object and field decided it: evaluates a plan and never asks an encoder.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::finding::Object;
use crate::model::*;

/// Where a flow starts, and its source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// In a pod: it comes in by a link. Whether it counts as inside is decided by its address, as in the kernel.
    Pod(IpAddr),
    /// In the node's own network namespace.
    Node(IpAddr),
    /// Elsewhere: it comes in by a link.
    Outside(IpAddr),
}

/// A new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Where it starts.
    pub from: Origin,
    /// The address it is sent to.
    pub destination: IpAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port it is sent to.
    pub port: u16,
}

/// What becomes of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Verdict {
    /// The outcome.
    pub outcome: Outcome,
    /// Why, in the order of the decisions.
    pub because: Vec<Reason>,
}

/// The outcome of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To one of these backends.
    Forward {
        /// The backends, each as likely as another.
        set: BTreeSet<Backend>,
        /// The source address that the backend sees.
        source_seen: SourceSeen,
        /// How long the same source keeps its backend.
        affinity: Option<Duration>,
    },
    /// Silently dropped.
    Drop,
    /// Refused: RST for TCP, ICMP port unreachable for others.
    Reject,
    /// Not the business of any Service: routed as if there were no plan.
    NotAService,
}

/// The source address that a backend sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceSeen {
    /// The client's.
    Kept,
    /// An address of this node.
    Node,
    /// The client's, but an address of this node at the backend that is the client itself.
    KeptUnlessItself,
}

/// A step of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The object that decided.
    pub object: Object,
    /// Its field.
    pub field: Cow<'static, str>,
    /// What follows from it.
    pub text: String,
}

impl Origin {
    /// The source address.
    pub fn address(self) -> IpAddr {
        match self {
            Origin::Pod(a) | Origin::Node(a) | Origin::Outside(a) => a,
        }
    }
}
