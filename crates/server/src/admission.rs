//! What new objects get, or are refused for, because of others: accounts, priorities and tolerations of pods, classes of
//! Ingresses, limits and quotas of a namespace.

use std::time::Duration;

use portolan_api::kinds::class::PRIORITY_CLASS;
use portolan_api::kinds::config::SERVICE_ACCOUNT;
use portolan_api::kinds::ingress::INGRESS_CLASS;
use portolan_api::kinds::node::NODE;
use portolan_api::kinds::quota::{LIMIT_RANGE, RESOURCE_QUOTA};
use portolan_api::{Kind, Status, limits, meta, quota, walk};
use portolan_store::{Compare, Op, Range, Txn};
use serde_json::{Value, json};

use crate::cache::prefix;
use crate::http::store_status;
use crate::object::{bare, stored};
use crate::random;
use crate::read::object_key;
use crate::server::Server;

/// How long a pod stays on a node that is lost, if it says nothing (plugin/pkg/admission/defaulttolerationseconds).
const PATIENCE_S: i64 = 300;
const LOST: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

impl Server {
    /// Fills in what a new object gets from the cluster it is made in; `shown` is its name in refusals.
    pub(crate) async fn admit_new(&self, kind: &Kind, new: &mut Value, shown: &str) -> Result<(), Status> {
        if (kind.group(), kind.kind()) == ("networking.k8s.io", "Ingress") {
            self.classify(new);
        }
        if !is_pod(kind) || walk::at(new, "spec").is_none() {
            return Ok(());
        }
        for range in self.limit_ranges(new) {
            limits::apply(&range, new);
        }
        if self.config.accounts_of_pods {
            self.identify(kind, new, shown).await?;
        }
        self.prioritize(kind, new, shown)?;
        tolerate(new);
        let node = walk::text(new, "spec.nodeName").to_owned();
        if !node.is_empty() {
            for (key, value) in self.topology(&node).await? {
                if let Some(labels) = walk::map_mut(new, "metadata.labels") {
                    labels.insert(key, value);
                }
            }
        }
        Ok(())
    }

    /// The labels of a node that its pods get (plugin/pkg/admission/podtopologylabels).
    pub(crate) async fn topology(&self, node: &str) -> Result<Vec<(String, Value)>, Status> {
        const PLACES: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];
        let (entry, _) = self.store.get(&object_key(&NODE, None, node)).await.map_err(store_status)?;
        let node =
            entry.and_then(|entry| stored(&NODE, &entry.value, entry.mod_revision.0)).unwrap_or_default();
        let labels = meta::labels(&node).iter().filter(|(key, _)| PLACES.contains(&key.as_str()));
        Ok(labels.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    /// Fills in what a changed object keeps of what it has got.
    pub(crate) fn admit_change(&self, kind: &Kind, new: &mut Value, old: &Value) {
        if !is_pod(kind) || walk::at(new, "spec").is_none() {
            return;
        }
        for field in ["spec.priority", "spec.preemptionPolicy"] {
            if let (None, Some(had)) = (walk::at(new, field), walk::at(old, field)) {
                walk::set(new, field, had.clone());
            }
        }
        tolerate(new);
    }

    /// Whose pod it is: an account that is there, with its token where it may be wanted (plugin/pkg/admission/serviceaccount).
    async fn identify(&self, kind: &Kind, new: &mut Value, shown: &str) -> Result<(), Status> {
        let forbid = |why: String| Status::forbidden(kind, shown, &why);
        if meta::annotation(new, MIRROR).is_some() {
            return match mirror_fault(new) {
                Some(why) => Err(forbid(why.to_owned())),
                None => Ok(()),
            };
        }
        walk::default(new, "spec.serviceAccountName", DEFAULT);
        let name = walk::text(new, "spec.serviceAccountName").to_owned();
        walk::set(new, "spec.serviceAccount", name.as_str());
        let namespace = meta::namespace(new).to_owned();
        let account = self.account(&namespace, &name).await?.ok_or_else(|| {
            let missing = format!("serviceaccount \"{name}\" not found");
            forbid(format!("error looking up service account {namespace}/{name}: {missing}"))
        })?;
        const FIELD: &str = "automountServiceAccountToken";
        let own = walk::flag(new, &format!("spec.{FIELD}"));
        if own.or_else(|| walk::flag(&account, FIELD)).unwrap_or(true) {
            mount_token(new);
        }
        let secrets = walk::list(&account, "imagePullSecrets");
        if walk::list(new, "spec.imagePullSecrets").is_empty() && !secrets.is_empty() {
            walk::set(new, "spec.imagePullSecrets", secrets.to_vec());
        }
        Ok(())
    }

    /// An account. That of the name `default` is made by a controller once the namespace is: it is waited for.
    async fn account(&self, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
        let key = object_key(&SERVICE_ACCOUNT, Some(namespace), name);
        let until = tokio::time::Instant::now() + ACCOUNT_WAIT;
        loop {
            let (entry, _) = self.store.get(&key).await.map_err(store_status)?;
            let found = entry.and_then(|entry| stored(&SERVICE_ACCOUNT, &entry.value, entry.mod_revision.0));
            if found.is_some() || name != DEFAULT || tokio::time::Instant::now() >= until {
                return Ok(found);
            }
            tokio::time::sleep(ACCOUNT_LOOK).await;
        }
    }

    /// The class of an Ingress that names none is the one that says it is the default, the newest of several
    /// (plugin/pkg/admission/network/defaultingressclass).
    fn classify(&self, new: &mut Value) {
        const CLASS: &str = "spec.ingressClassName";
        if walk::at(new, CLASS).is_some() || meta::annotation(new, "kubernetes.io/ingress.class").is_some() {
            return;
        }
        let classes = self.cache(&INGRESS_CLASS).snapshot("", |_| true).objects;
        let classes = classes.iter().map(|class| class.value()).filter(|class| {
            meta::annotation(class, "ingressclass.kubernetes.io/is-default-class") == Some("true")
        });
        let born = |class: &Value| {
            let time = walk::text(class, "metadata.creationTimestamp").to_owned();
            (std::cmp::Reverse(time), meta::name(class).to_owned())
        };
        if let Some(class) = classes.min_by_key(born) {
            walk::set(new, CLASS, meta::name(&class));
        }
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
    fn prioritize(&self, kind: &Kind, new: &mut Value, shown: &str) -> Result<(), Status> {
        let forbid = |why: String| Status::forbidden(kind, shown, &why);
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
        let asked = walk::text(new, "spec.preemptionPolicy");
        if !asked.is_empty() && asked != policy {
            return Err(forbid(format!(
                "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission controller \
                 computed {policy} from the given PriorityClass name"
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

/// A pod that a node shows of its own accord.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The account of those that name none.
const DEFAULT: &str = "default";
/// Where programs look for their token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long the account `default` is waited for, and how often it is looked for.
const ACCOUNT_WAIT: Duration = Duration::from_secs(2);
const ACCOUNT_LOOK: Duration = Duration::from_millis(50);
/// An hour, and a bit by which programs that don't read their token again are known.
const TOKEN_S: i64 = 3607;

/// What a pod that a node shows may not ask for.
fn mirror_fault(pod: &Value) -> Option<&'static str> {
    if !walk::text(pod, "spec.serviceAccountName").is_empty() {
        return Some("a mirror pod may not reference service accounts");
    }
    let volumes = walk::list(pod, "spec.volumes");
    let sources = || volumes.iter().flat_map(|volume| walk::list(volume, "projected.sources"));
    let containers = ["initContainers", "containers", "ephemeralContainers"];
    let reads =
        containers.iter().flat_map(|list| walk::list(pod, &format!("spec.{list}"))).any(|container| {
            walk::list(container, "env").iter().any(|env| walk::at(env, "valueFrom.secretKeyRef").is_some())
                || walk::list(container, "envFrom").iter().any(|from| walk::at(from, "secretRef").is_some())
        });
    let secret = reads
        || !walk::list(pod, "spec.imagePullSecrets").is_empty()
        || volumes.iter().any(|volume| walk::at(volume, "secret").is_some())
        || sources().any(|source| walk::at(source, "secret").is_some());
    if secret {
        return Some("a mirror pod may not reference secrets");
    }
    let token = sources().any(|source| walk::at(source, "serviceAccountToken").is_some());
    token.then_some("a mirror pod may not use ServiceAccountToken volume projections")
}

/// Gives containers their token, the authority that the server shows, and the name of their namespace.
fn mount_token(pod: &mut Value) {
    const PREFIX: &str = "kube-api-access-";
    let mut volumes = walk::list(pod, "spec.volumes").to_vec();
    let there = volumes.iter().map(|volume| walk::text(volume, "name")).find(|name| name.starts_with(PREFIX));
    let there = there.map(str::to_owned);
    let name = there.clone().unwrap_or_else(|| {
        let mut named = json!({"metadata": {"generateName": PREFIX}});
        meta::generate_name(&mut named, &mut random::below);
        meta::name(&named).to_owned()
    });
    let mut mounted = false;
    for list in ["spec.initContainers", "spec.containers"] {
        for container in walk::list_mut(pod, list) {
            let mut mounts = walk::list(container, "volumeMounts").to_vec();
            if mounts.iter().any(|mount| walk::text(mount, "mountPath") == TOKEN_PATH) {
                continue;
            }
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
            walk::set(container, "volumeMounts", mounts);
            mounted = true;
        }
    }
    if there.is_none() && mounted {
        volumes.push(json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_S, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace",
                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
        walk::set(pod, "spec.volumes", volumes);
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
