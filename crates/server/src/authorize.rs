//! Who may: one decision for one request, by all authorizers in turn.

use portolan_api::Status;

use crate::attributes::Attributes;
use crate::auth::{Identity, MASTERS};
use crate::http::store_status;
use crate::server::Server;

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Yes, and why.
    Allow(String),
    /// Not by this authorizer, and perhaps why; if no other one allows it, it is forbidden.
    NoOpinion(String),
}

impl Server {
    /// Whether a user may do this, as far as memory knows: the privileged group, then a node's own things, then roles.
    pub(crate) fn decide(&self, user: &Identity, request: &Attributes) -> Decision {
        if user.is_in(MASTERS) {
            return Decision::Allow(String::new());
        }
        let mut reasons = Vec::new();
        for decision in [self.nodes.decide(user, request), self.rbac.decide(user, request)] {
            match decision {
                Decision::Allow(reason) => return Decision::Allow(reason),
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
            }
        }
        // Kubernetes' union of authorizers joins what each has to say.
        Decision::NoOpinion(reasons.join("\n"))
    }

    /// The same, but a refusal is only given with everything known that was acknowledged before: who was just bound to a
    /// role, or whose pod was just bound, is not turned away because memory lags by a moment.
    pub(crate) async fn authorize(&self, user: &Identity, request: &Attributes) -> Result<Decision, Status> {
        match self.decide(user, request) {
            Decision::NoOpinion(_) => {
                let revision = self.store.revision().await.map_err(store_status)?.0;
                self.rbac.reach(revision).await;
                self.nodes.reach(revision).await;
                Ok(self.decide(user, request))
            }
            allowed => Ok(allowed),
        }
    }

    /// Refuses what the user may not do.
    pub(crate) async fn permit(&self, user: &Identity, request: &Attributes) -> Result<String, Status> {
        match self.authorize(user, request).await? {
            Decision::Allow(reason) => Ok(reason),
            Decision::NoOpinion(reason) => Err(request.forbidden(&user.user, &reason)),
        }
    }
}
