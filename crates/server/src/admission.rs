//! What new objects get, or are refused for, because of others: priorities and tolerations of pods,
//! limits and quotas of a namespace.

use portolan_api::kinds::class::PRIORITY_CLASS;
use portolan_api::kinds::quota::{LIMIT_RANGE, RESOURCE_QUOTA};
use portolan_api::{Kind, Status, limits, meta, quota, walk};
use portolan_store::{Compare, Op, Range, Txn};
use serde_json::{Value, json};

use crate::cache::prefix;
use crate::http::store_status;
use crate::object::{bare, stored};
use crate::server::Server;

/// How long a pod stays on a node that is lost, if it says nothing (plugin/pkg/admission/defaulttolerationseconds).
const PATIENCE_S: i64 = 300;
const LOST: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

impl Server {
    /// Fills in what a new pod gets from the cluster it is made in.
    pub(crate) fn admit_new(&self, kind: &Kind, new: &mut Value) -> Result<(), Status> {
        if !is_pod(kind) || walk::at(new, "spec").is_none() {
            return Ok(());
        }
        for range in self.limit_ranges(new) {
            limits::apply(&range, new);
        }
        self.prioritize(kind, new)?;
        tolerate(new);
        Ok(())
    }

    /// The LimitRanges of an object's namespace.
    fn limit_ranges(&self, object: &Value) -> Vec<Value> {
        let scope = format!("{}{}/", prefix(&LIMIT_RANGE), meta::namespace(object));
        self.cache(&LIMIT_RANGE)
            .snapshot(&scope, |_| true)
            .objects
            .iter()
            .map(|range| range.value())
            .collect()
    }

    /// The number behind the pod's class (plugin/pkg/admission/priority).
    fn prioritize(&self, kind: &Kind, new: &mut Value) -> Result<(), Status> {
        let forbid = |why: String| Status::forbidden(kind, meta::name(new), &why);
        let classes = self.cache(&PRIORITY_CLASS).snapshot("", |_| true).objects;
        let mut name = walk::text(new, "spec.priorityClassName").to_owned();
        let class = if name.is_empty() {
            let all = classes.iter().map(|class| class.value());
            let default = all.filter(|class| walk::flag(class, "globalDefault") == Some(true));
            // Of several that say they are the default, the smallest value is it.
            default.min_by_key(|class| walk::int(class, "value").unwrap_or(0))
        } else {
            let found = classes.iter().find(|class| class.name() == name).map(|class| class.value());
            Some(found.ok_or_else(|| forbid(format!("no PriorityClass with name {name} was found")))?)
        };
        let (mut priority, mut policy) = (0, "PreemptLowerPriority".to_owned());
        if let Some(class) = &class {
            name = meta::name(class).to_owned();
            priority = walk::int(class, "value").unwrap_or(0);
            policy = walk::text(class, "preemptionPolicy").to_owned();
        }
        if let Some(n) = walk::int(new, "spec.priority").filter(|n| *n != priority) {
            return Err(forbid(format!(
                "the integer value of priority ({n}) must not be provided in pod spec; priority admission controller \
                 computed {priority} from the given PriorityClass name"
            )));
        }
        if !name.is_empty() {
            walk::set(new, "spec.priorityClassName", name);
        }
        walk::set(new, "spec.priority", priority);
        walk::default(new, "spec.preemptionPolicy", policy);
        Ok(())
    }

    /// Charges the namespace's quotas for a new object, or for what a changed one uses more, in the transaction that
    /// writes it: two that come at once don't both get the last place.
    pub(crate) async fn charge(
        &self,
        kind: &Kind,
        new: &Value,
        old: Option<&Value>,
        dry_run: bool,
        txn: &mut Txn,
    ) -> Result<(), Status> {
        // Events are never counted; a change of anything but a Service uses nothing more.
        let changes = (kind.group(), kind.plural()) == ("", "services");
        if !kind.namespaced() || kind.plural() == "events" || (old.is_some() && !changes) {
            return Ok(());
        }
        if old.is_none()
            && kind.group().is_empty()
            && matches!(kind.plural(), "pods" | "persistentvolumeclaims")
        {
            for range in self.limit_ranges(new) {
                if let Some(why) = limits::refusal(&range, kind.plural(), new) {
                    return Err(Status::forbidden(kind, meta::name(new), &why));
                }
            }
        }
        let scope = format!("{}{}/", prefix(&RESOURCE_QUOTA), meta::namespace(new));
        if self.cache(&RESOURCE_QUOTA).snapshot(&scope, |_| true).objects.is_empty() {
            return Ok(());
        }
        let entries = self.store.range(Range::prefix(&scope)).await.map_err(store_status)?.entries;
        for entry in entries {
            let Some(bound) = stored(&RESOURCE_QUOTA, &entry.value, entry.mod_revision.0) else { continue };
            let charged = quota::charge(&bound, kind.group(), kind.plural(), new, old)
                .map_err(|why| Status::forbidden(kind, meta::name(new), &why))?;
            if let (Some(charged), false) = (charged, dry_run) {
                txn.compares.push(Compare::ModRevision(entry.key.clone(), entry.mod_revision));
                txn.ops.push(Op::Put(entry.key, bare(&RESOURCE_QUOTA, &charged)));
            }
        }
        Ok(())
    }
}

fn is_pod(kind: &Kind) -> bool {
    kind.group().is_empty() && kind.kind() == "Pod"
}

/// A node that is lost keeps its pods for a while.
fn tolerate(pod: &mut Value) {
    let mut all = walk::list(pod, "spec.tolerations").to_vec();
    for key in LOST {
        let known = |toleration: &Value| {
            let (name, effect) = (walk::text(toleration, "key"), walk::text(toleration, "effect"));
            (name == key || name.is_empty()) && matches!(effect, "NoExecute" | "")
        };
        if !all.iter().any(known) {
            all.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": PATIENCE_S,
            }));
        }
    }
    walk::set(pod, "spec.tolerations", all);
}
