//! What is wrong with an object, for its owner to read: never a reason to stop planning the others.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::model::ServiceName;

/// The object that a finding or a reason speaks of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// A Service.
    Service(ServiceName),
    /// The EndpointSlices of a Service.
    Endpoints(ServiceName),
    /// A node.
    Node(Arc<str>),
    /// What the node's agent was told.
    Config,
}

/// Something in an object that can't be done, or not as its author may expect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Finding {
    /// The object.
    pub object: Object,
    /// The field, as in `spec.externalIPs[0]`.
    pub field: Cow<'static, str>,
    /// What is wrong, and the remedy.
    pub text: String,
}

impl Finding {
    /// A finding on a Service.
    pub fn service(name: &ServiceName, field: impl Into<Cow<'static, str>>, text: String) -> Finding {
        Finding { object: Object::Service(name.clone()), field: field.into(), text }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Service(name) => write!(f, "service {name}"),
            Object::Endpoints(name) => write!(f, "endpointslices of {name}"),
            Object::Node(name) => write!(f, "node {name}"),
            Object::Config => f.write_str("configuration of the node"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.text)
    }
}
