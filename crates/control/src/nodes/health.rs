//! What a node's silence means, and how long a pod bears a taint.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::{Tolerance, tolerance};

/// The taint of a node that says it is not ready.
pub(super) const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The taint of a node that says nothing.
pub(super) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// What to do about a node.
#[derive(Debug, Default, PartialEq)]
#[must_use]
pub(super) struct Verdict {
    /// It has been silent for too long: its pods do not count as ready.
    pub silent: bool,
    /// Conditions to write.
    pub conditions: Option<Vec<NodeCondition>>,
    /// Taints to write.
    pub taints: Option<Vec<Taint>>,
    /// When time alone will change the verdict.
    pub again: Option<Duration>,
}

/// Judges a node whose heartbeat has been the same for `silence`.
pub(super) fn judge(node: &Node, silence: Duration, grace: Duration, now: Timestamp) -> Verdict {
    let mut verdict = Verdict { silent: silence >= grace, ..Verdict::default() };
    let conditions = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .map_or_else(|| "False".to_owned(), |condition| condition.status.clone());
    if verdict.silent {
        let mut changed = conditions;
        let known = changed.iter_mut().find(|condition| condition.type_ == "Ready");
        let (reason, message) = match known {
            Some(_) => ("NodeStatusUnknown", "Node stopped renewing its lease."),
            None => ("NodeStatusNeverUpdated", "Node never posted its status."),
        };
        let condition = match known {
            Some(condition) => condition,
            None => {
                changed.push(NodeCondition { type_: "Ready".to_owned(), ..NodeCondition::default() });
                let last = changed.len() - 1;
                &mut changed[last]
            }
        };
        if condition.status != "Unknown" {
            condition.status = "Unknown".to_owned();
            condition.reason = Some(reason.to_owned());
            condition.message = Some(message.to_owned());
            condition.last_transition_time = Some(Time(now));
            verdict.conditions = Some(changed);
        }
        ready = "Unknown".to_owned();
    } else {
        // A little later than the grace, so that the next look is not too early by a rounding.
        verdict.again = Some(grace - silence + Duration::from_millis(5));
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    verdict.taints = wanted_taints(&taints, &ready, now);
    verdict
}

/// The taints of a node with this readiness, if they are others than it has.
fn wanted_taints(taints: &[Taint], ready: &str, now: Timestamp) -> Option<Vec<Taint>> {
    let key = match ready {
        "True" => None,
        "Unknown" => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    };
    let ours = |taint: &Taint| taint.key == NOT_READY || taint.key == UNREACHABLE;
    let mut wanted: Vec<Taint> =
        taints.iter().filter(|taint| !ours(taint) || Some(taint.key.as_str()) == key).cloned().collect();
    for effect in ["NoSchedule", "NoExecute"] {
        if let Some(key) = key
            && !wanted.iter().any(|taint| taint.key == key && taint.effect == effect)
        {
            wanted.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: (effect == "NoExecute").then_some(Time(now)),
            });
        }
    }
    (wanted != taints).then_some(wanted)
}

/// How long the pod may still stay in spite of the taint; `None` for ever.
pub(super) fn time_left(pod: &Pod, taint: &Taint, default: Duration, now: Timestamp) -> Option<Duration> {
    let seconds = match tolerance(pod, taint) {
        Tolerance::Forever => return None,
        Tolerance::Seconds(seconds) => Duration::from_secs(seconds.unsigned_abs()),
        // What admission adds in Kubernetes to every pod that says nothing about these two.
        Tolerance::No if taint.key == NOT_READY || taint.key == UNREACHABLE => default,
        Tolerance::No => Duration::ZERO,
    };
    let since = taint.time_added.as_ref().map_or(now, |time| time.0);
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO);
    Some(seconds.saturating_sub(passed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const GRACE: Duration = Duration::from_secs(6);

    fn node(ready: &str, taints: Value) -> Node {
        let conditions =
            if ready.is_empty() { json!([]) } else { json!([{ "type": "Ready", "status": ready }]) };
        serde_json::from_value(
            json!({ "spec": { "taints": taints }, "status": { "conditions": conditions } }),
        )
        .expect("a node")
    }

    fn keys(taints: &Option<Vec<Taint>>) -> Option<Vec<String>> {
        taints.as_ref().map(|taints| taints.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect())
    }

    #[test]
    fn silence_makes_a_node_unknown_and_tainted_and_its_return_removes_both() {
        let now = Timestamp::now();
        let own = json!({ "key": "mine", "effect": "NoSchedule" });
        let unreachable = [format!("{UNREACHABLE}:NoSchedule"), format!("{UNREACHABLE}:NoExecute")];
        let not_ready = [format!("{NOT_READY}:NoSchedule"), format!("{NOT_READY}:NoExecute")];
        // A healthy node.
        let verdict = judge(&node("True", json!([own])), Duration::from_secs(2), GRACE, now);
        assert!(!verdict.silent && verdict.conditions.is_none() && verdict.taints.is_none());
        assert!(verdict.again.is_some_and(|again| again >= Duration::from_secs(4)));
        // It falls silent.
        let verdict = judge(&node("True", json!([own])), GRACE, GRACE, now);
        assert!(verdict.silent && verdict.again.is_none());
        assert_eq!(verdict.conditions.as_ref().map(|c| c[0].status.as_str()), Some("Unknown"));
        let expected: Vec<String> = ["mine:NoSchedule".to_owned()].into_iter().chain(unreachable).collect();
        assert_eq!(keys(&verdict.taints), Some(expected));
        // It stays silent: nothing more to write.
        let silent = node("Unknown", serde_json::to_value(&verdict.taints).expect("json"));
        let still = judge(&silent, GRACE * 2, GRACE, now);
        assert!(still.silent && still.conditions.is_none() && still.taints.is_none());
        // It is back.
        let back = node("True", serde_json::to_value(&verdict.taints).expect("json"));
        let verdict = judge(&back, Duration::ZERO, GRACE, now);
        assert_eq!(keys(&verdict.taints), Some(vec!["mine:NoSchedule".to_owned()]));
        // A new node is not ready before it says so.
        let verdict = judge(&node("", json!([])), Duration::ZERO, GRACE, now);
        assert_eq!(keys(&verdict.taints), Some(not_ready.to_vec()));
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates() {
        let now: Timestamp = "2026-01-01T00:01:40Z".parse().expect("a time");
        let taint = |key: &str| -> Taint {
            serde_json::from_value(
                json!({ "key": key, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z" }),
            )
            .expect("a taint")
        };
        for (tolerations, key, left) in [
            (json!([]), UNREACHABLE, Some(200)),
            (json!([]), "other", Some(0)),
            (json!([{ "operator": "Exists" }]), "other", None),
            (
                json!([{ "key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 120 }]),
                UNREACHABLE,
                Some(20),
            ),
            (
                json!([{ "key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 30 }]),
                UNREACHABLE,
                Some(0),
            ),
        ] {
            let pod: Pod = serde_json::from_value(json!({
                "spec": { "containers": [], "tolerations": tolerations } }))
            .expect("a pod");
            let got = time_left(&pod, &taint(key), Duration::from_secs(300), now);
            assert_eq!(got, left.map(Duration::from_secs), "{tolerations} against {key}");
        }
    }
}
