//! Nobody gives away by a role what they don't hold, unless they may `escalate` or `bind`.

use portolan_api::fielderror::quote;
use portolan_api::{Kind, Status, walk};
use serde_json::Value;

use super::{GROUP, Index, RoleRef, Rule, compacted, missing, quoted};
use crate::attributes::{Attributes, forbidden};
use crate::auth::{Identity, MASTERS};
use crate::authorize::Decision;

/// Everything there is.
fn full_authority() -> [Rule; 2] {
    let star = || vec!["*".to_owned()];
    [
        Rule { groups: star(), resources: star(), verbs: star(), ..Rule::default() },
        Rule { urls: star(), verbs: star(), ..Rule::default() },
    ]
}

/// A write of a role or a binding.
pub(crate) struct Grant<'a> {
    pub user: &'a Identity,
    pub kind: &'a Kind,
    /// Empty for the cluster's kinds.
    pub namespace: &'a str,
    pub name: &'a str,
    /// What it shall be.
    pub new: &'a Value,
    /// What it is; none if it is made.
    pub old: Option<&'a Value>,
}

impl Index {
    /// Refuses a write of a role or binding that gives its author's subjects more than the author has (Kubernetes'
    /// `policybased` storages). `decide` is the whole authorizer.
    pub(crate) fn confine(
        &self,
        grant: &Grant<'_>,
        decide: impl Fn(&Attributes) -> Decision,
    ) -> Result<(), Status> {
        let Grant { user, kind, namespace, name, new, old } = *grant;
        if kind.group() != GROUP || user.is_in(MASTERS) || old.is_some_and(|old| only_metadata(new, old)) {
            return Ok(());
        }
        let may = |verb: &str, resource: &str, name: &str| {
            let request = Attributes {
                verb: verb.into(),
                of_resource: true,
                group: GROUP.into(),
                version: "*".into(),
                resource: resource.into(),
                name: name.into(),
                namespace: namespace.into(),
                ..Attributes::default()
            };
            matches!(decide(&request), Decision::Allow(_))
        };
        let refuse = |why: &str| Err(forbidden(GROUP, kind.plural(), name, why));
        let (held, errors) = self.rules_for(user, namespace);
        // What isn't there is named by the kind that is written, though it is a role.
        let named = |error: &String| match error.split_once('.') {
            Some(("role" | "clusterrole", rest)) => format!("{}.{rest}", kind.plural()),
            _ => error.clone(),
        };
        let errors: Vec<String> = errors.iter().map(named).collect();
        if kind.plural().ends_with("roles") {
            // At creation the request names nothing.
            let asked = if old.is_some() { name } else { "" };
            if may("escalate", kind.plural(), asked) {
                return Ok(());
            }
            if let Some(why) = excess(user, &held, &Rule::all(new), &errors) {
                return refuse(&why);
            }
            let aggregates =
                |role: &Value| !walk::list(role, "aggregationRule.clusterRoleSelectors").is_empty();
            let aggregates = aggregates(new) || old.is_some_and(aggregates);
            if aggregates && !missing(&held, &full_authority()).is_empty() {
                return refuse("must have cluster-admin privileges to use the aggregationRule");
            }
            return Ok(());
        }
        let role = RoleRef::of(new);
        let plural = match role.kind.as_str() {
            "Role" => "roles",
            "ClusterRole" => "clusterroles",
            // What it refers to instead is for the object's check to complain of.
            _ => return Ok(()),
        };
        if may("bind", plural, &role.name) {
            return Ok(());
        }
        // Kubernetes names the binding's kind here, though it is the role that isn't there.
        let rules = self.rules_of(&role, namespace).ok_or_else(|| Status::not_found(kind, &role.name))?;
        match excess(user, &held, &rules, &errors) {
            Some(why) => refuse(&why),
            None => Ok(()),
        }
    }
}

/// A change that the garbage collector may make: references and finalizers (Kubernetes' `IsOnlyMutatingGCFields`).
fn only_metadata(new: &Value, old: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion", "selfLink"] {
            walk::remove(&mut object, &format!("metadata.{field}"));
        }
        object
    };
    bare(new) == bare(old)
}

/// What a grant gives that its author doesn't hold, as a sentence.
fn excess(user: &Identity, held: &[Rule], wanted: &[Rule], errors: &[String]) -> Option<String> {
    let lacking = missing(held, wanted);
    if lacking.is_empty() {
        return None;
    }
    let mut lines: Vec<String> = compacted(lacking).iter().map(Rule::compact).collect();
    lines.sort();
    lines.dedup();
    let mut text = format!(
        "user {} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        quote(&user.user),
        quoted(&user.groups),
        lines.join("\n")
    );
    if !errors.is_empty() {
        text += &format!("; resolution errors: [{}]", super::index::aggregate(errors));
    }
    Some(text)
}
