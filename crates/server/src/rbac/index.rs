//! Who is bound to which roles: an index that follows the store, so that a decision reads no list.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use portolan_api::fielderror::quote;
use portolan_api::walk;
use portolan_store::{Change, Error, Range, Revision, Store, WatchBatch};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Rule;
use crate::attributes::Attributes;
use crate::auth::{ACCOUNT, Identity};
use crate::authorize::Decision;
use crate::follow::{self, Follower};

/// All four kinds lie below it.
const PREFIX: &str = "/registry/rbac.authorization.k8s.io/";

/// What a binding refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub kind: String,
    pub name: String,
}

impl RoleRef {
    /// A binding's `roleRef`.
    pub(crate) fn of(binding: &Value) -> RoleRef {
        let text = |path| walk::text(binding, path).to_owned();
        RoleRef { kind: text("roleRef.kind"), name: text("roleRef.name") }
    }
}

/// Who is meant by a subject. A service account is a user of its own name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

struct Binding {
    role: RoleRef,
    /// Each subject, and how a reason names it.
    subjects: Vec<(Subject, String)>,
}

impl Binding {
    fn of(object: &Value, namespace: &str) -> Binding {
        let subject = |subject: &Value| {
            let (kind, name) = (walk::text(subject, "kind"), walk::text(subject, "name").to_owned());
            let named = format!("{kind} {}", quote(&name));
            match kind {
                "User" => Some((Subject::User(name), named)),
                "Group" => Some((Subject::Group(name), named)),
                "ServiceAccount" => {
                    // One without a namespace is of the binding's; of a ClusterRoleBinding it is nobody.
                    let own = walk::text(subject, "namespace");
                    let of = if own.is_empty() { namespace } else { own };
                    let named = format!("{kind} {}", quote(&format!("{name}/{of}")));
                    (!of.is_empty()).then(|| (Subject::User(format!("{ACCOUNT}{of}:{name}")), named))
                }
                _ => None,
            }
        };
        let subjects = walk::list(object, "subjects").iter().filter_map(subject).collect();
        Binding { role: RoleRef::of(object), subjects }
    }
}

/// Roles and bindings by what a decision asks for. The empty namespace is the cluster.
#[derive(Default)]
struct State {
    roles: HashMap<(String, String), Arc<[Rule]>>,
    bindings: HashMap<(String, String), Binding>,
    /// The names of the bindings of a namespace that name a subject.
    bound: HashMap<(String, Subject), BTreeSet<String>>,
}

/// Where a rule comes from.
struct Source<'a> {
    namespace: &'a str,
    name: &'a str,
    binding: &'a Binding,
    subject: &'a str,
}

impl Source<'_> {
    /// As a reason names it.
    fn describe(&self) -> String {
        let RoleRef { kind, name } = &self.binding.role;
        let (word, binding) = match self.namespace {
            "" => ("ClusterRoleBinding", self.name.to_owned()),
            namespace => ("RoleBinding", format!("{}/{namespace}", self.name)),
        };
        format!("{word} {} of {kind} {} to {}", quote(&binding), quote(name), self.subject)
    }
}

impl State {
    fn put(&mut self, key: &str, object: &Value) {
        let Some((plural, namespace, name)) = parts(key) else { return };
        let at = (namespace.to_owned(), name.to_owned());
        match plural {
            "roles" | "clusterroles" => {
                self.roles.insert(at, Rule::all(object).into());
            }
            "rolebindings" | "clusterrolebindings" => {
                self.unbind(&at);
                let binding = Binding::of(object, namespace);
                for (subject, _) in &binding.subjects {
                    let key = (namespace.to_owned(), subject.clone());
                    self.bound.entry(key).or_default().insert(name.to_owned());
                }
                self.bindings.insert(at, binding);
            }
            _ => {}
        }
    }

    fn remove(&mut self, key: &str) {
        let Some((plural, namespace, name)) = parts(key) else { return };
        let at = (namespace.to_owned(), name.to_owned());
        match plural {
            "roles" | "clusterroles" => {
                self.roles.remove(&at);
            }
            _ => self.unbind(&at),
        }
    }

    fn unbind(&mut self, at: &(String, String)) {
        let Some(binding) = self.bindings.remove(at) else { return };
        for (subject, _) in binding.subjects {
            let key = (at.0.clone(), subject);
            if let Some(names) = self.bound.get_mut(&key) {
                names.remove(&at.1);
                if names.is_empty() {
                    self.bound.remove(&key);
                }
            }
        }
    }

    fn rules(&self, role: &RoleRef, namespace: &str) -> Result<Arc<[Rule]>, String> {
        let (namespace, word) = match role.kind.as_str() {
            "Role" => (namespace, "role"),
            "ClusterRole" => ("", "clusterrole"),
            other => return Err(format!("unsupported role reference kind: {}", quote(other))),
        };
        let found = self.roles.get(&(namespace.to_owned(), role.name.clone()));
        found.cloned().ok_or_else(|| format!("{word}.{} {} not found", super::GROUP, quote(&role.name)))
    }

    /// Shows each rule that holds for a user in a namespace (or the cluster) until `visit` has seen enough; what couldn't
    /// be resolved goes to `errors`.
    fn visit<'a>(
        &'a self,
        user: &Identity,
        namespace: &'a str,
        errors: &mut Vec<String>,
        mut visit: impl FnMut(&Source<'a>, &Rule) -> bool,
    ) {
        let scopes = if namespace.is_empty() { &[""][..] } else { &["", namespace][..] };
        for scope in scopes.iter().copied() {
            // A binding that names the user and a group of theirs speaks once, for the first of its subjects.
            let subjects = std::iter::once(Subject::User(user.user.clone()))
                .chain(user.groups.iter().cloned().map(Subject::Group));
            let names: BTreeSet<&String> = subjects
                .filter_map(|subject| self.bound.get(&(scope.to_owned(), subject)))
                .flatten()
                .collect();
            for name in names {
                let Some(binding) = self.bindings.get(&(scope.to_owned(), name.clone())) else { continue };
                let applies = |subject: &Subject| match subject {
                    Subject::User(name) => *name == user.user,
                    Subject::Group(name) => user.is_in(name),
                };
                let Some((_, subject)) = binding.subjects.iter().find(|(subject, _)| applies(subject)) else {
                    continue;
                };
                match self.rules(&binding.role, scope) {
                    Ok(rules) => {
                        let source = Source { namespace: scope, name, binding, subject };
                        if rules.iter().any(|rule| visit(&source, rule)) {
                            return;
                        }
                    }
                    Err(error) => errors.push(error),
                }
            }
        }
    }
}

/// Plural, namespace (empty for the cluster's kinds) and name of a key.
fn parts(key: &str) -> Option<(&str, &str, &str)> {
    let mut parts = key.strip_prefix(PREFIX)?.split('/');
    match (parts.next()?, parts.next()?, parts.next()) {
        (plural, name, None) => Some((plural, "", name)),
        (plural, namespace, Some(name)) => Some((plural, namespace, name)),
    }
}

/// `a`, or `[a, b]`, each once (apimachinery's `Aggregate`).
pub(crate) fn aggregate(errors: &[String]) -> String {
    let mut once: Vec<&str> = Vec::new();
    for error in errors {
        if !once.contains(&error.as_str()) {
            once.push(error);
        }
    }
    match once.as_slice() {
        [one] => (*one).to_owned(),
        several => format!("[{}]", several.join(", ")),
    }
}

/// Roles and bindings, as the store has them.
pub(crate) struct Index {
    state: RwLock<State>,
    revision: tokio::sync::watch::Sender<u64>,
}

impl Index {
    /// Reads all roles and bindings and follows.
    pub(crate) async fn open(store: Arc<dyn Store>, close: CancellationToken) -> Result<Arc<Index>, Error> {
        let index = Index { state: RwLock::default(), revision: tokio::sync::watch::Sender::new(0) };
        let index = Arc::new(index);
        index.load(&*store).await?;
        follow::start(index.clone(), store, close);
        Ok(index)
    }

    /// Waits until the index has seen a revision; goes on without when it takes too long.
    pub(crate) async fn reach(&self, revision: u64) {
        let mut seen = self.revision.subscribe();
        let _ = tokio::time::timeout(Duration::from_secs(3), seen.wait_for(|seen| *seen >= revision)).await;
    }

    /// Whether some role of the user allows a request, and which; or what couldn't be resolved.
    pub(crate) fn decide(&self, user: &Identity, request: &Attributes) -> Decision {
        let state = self.state.read();
        let (mut errors, mut allowed) = (Vec::new(), None);
        state.visit(user, &request.namespace, &mut errors, |source, rule| {
            if rule.allows(request) {
                allowed = Some(format!("RBAC: allowed by {}", source.describe()));
            }
            allowed.is_some()
        });
        match allowed {
            Some(reason) => Decision::Allow(reason),
            None if errors.is_empty() => Decision::NoOpinion(String::new()),
            None => Decision::NoOpinion(format!("RBAC: {}", aggregate(&errors))),
        }
    }

    /// All rules that hold for a user in a namespace, and what couldn't be resolved.
    pub(crate) fn rules_for(&self, user: &Identity, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        self.state.read().visit(user, namespace, &mut errors, |_, rule| {
            rules.push(rule.clone());
            false
        });
        (rules, errors)
    }

    /// The rules of the role that a binding of a namespace refers to.
    pub(crate) fn rules_of(&self, role: &RoleRef, namespace: &str) -> Option<Arc<[Rule]>> {
        self.state.read().rules(role, namespace).ok()
    }
}

fn object(value: &Bytes) -> Value {
    serde_json::from_slice(value).unwrap_or_default()
}

#[async_trait::async_trait]
impl Follower for Index {
    fn prefix(&self) -> &str {
        PREFIX
    }

    fn seen(&self) -> Revision {
        Revision(*self.revision.borrow())
    }

    fn apply(&self, batch: WatchBatch) {
        let mut state = self.state.write();
        for change in batch.changes {
            match change {
                Change::Put { entry, .. } => state.put(&entry.key, &object(&entry.value)),
                Change::Delete { key, .. } => state.remove(&key),
            }
        }
        drop(state);
        self.revision.send_replace(batch.revision.0);
    }

    async fn load(&self, store: &dyn Store) -> Result<(), Error> {
        let result = store.range(Range::prefix(PREFIX)).await?;
        let mut state = State::default();
        for entry in &result.entries {
            state.put(&entry.key, &object(&entry.value));
        }
        *self.state.write() = state;
        self.revision.send_replace(result.revision.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::path::Query;

    fn state(objects: &[(&str, Value)]) -> State {
        let mut state = State::default();
        for (key, object) in objects {
            state.put(&format!("{PREFIX}{key}"), object);
        }
        state
    }

    fn decide(state: State, user: &Identity, url: &str) -> Decision {
        let index = Index { state: RwLock::new(state), revision: tokio::sync::watch::Sender::new(0) };
        index.decide(user, &Attributes::of(&Method::GET, url, &Query::default()))
    }

    fn pods() -> Value {
        json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]})
    }

    fn bind(kind: &str, name: &str, subject: Value) -> Value {
        json!({"roleRef": {"kind": kind, "name": name}, "subjects": [subject]})
    }

    #[test]
    fn a_binding_of_a_namespace_holds_there_alone_and_an_accounts_namespace_is_its_own() {
        let account = json!({"kind": "ServiceAccount", "name": "web"});
        let objects = || {
            state(&[
                ("clusterroles/pods", pods()),
                ("rolebindings/n/b", bind("ClusterRole", "pods", account.clone())),
                ("clusterrolebindings/none", bind("ClusterRole", "pods", account.clone())),
            ])
        };
        let user = Identity::new("system:serviceaccount:n:web", &[]);
        let reason =
            "RBAC: allowed by RoleBinding \"b/n\" of ClusterRole \"pods\" to ServiceAccount \"web/n\"";
        assert_eq!(decide(objects(), &user, "/api/v1/namespaces/n/pods"), Decision::Allow(reason.into()));
        for url in ["/api/v1/namespaces/m/pods", "/api/v1/pods", "/api/v1/namespaces/n/secrets"] {
            assert_eq!(decide(objects(), &user, url), Decision::NoOpinion(String::new()), "{url}");
        }
    }

    #[test]
    fn what_is_unbound_or_gone_allows_no_more() {
        let group = json!({"kind": "Group", "name": "g"});
        let user = Identity::new("u", &["g"]);
        let mut state =
            state(&[("roles/n/r", pods()), ("rolebindings/n/b", bind("Role", "r", group.clone()))]);
        assert!(state.bound.contains_key(&("n".to_owned(), Subject::Group("g".to_owned()))));
        state.remove(&format!("{PREFIX}roles/n/r"));
        let refused = Decision::NoOpinion("RBAC: role.rbac.authorization.k8s.io \"r\" not found".into());
        let url = "/api/v1/namespaces/n/pods";
        assert_eq!(decide(state, &user, url), refused);

        let mut state = self::state(&[("roles/n/r", pods()), ("rolebindings/n/b", bind("Role", "r", group))]);
        state.put(
            &format!("{PREFIX}rolebindings/n/b"),
            &bind("Role", "r", json!({"kind": "User", "name": "v"})),
        );
        assert_eq!(state.bound.len(), 1, "the old subject is forgotten");
        assert_eq!(decide(state, &user, url), Decision::NoOpinion(String::new()));
    }
}
