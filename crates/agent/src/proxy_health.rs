//! What `/healthz` and `/livez` say: whether the kernel follows, and whether the node is to get traffic.
//!
//! The form and the codes are those of kube-proxy (pkg/proxy/healthcheck/proxy_health.go, KEP-3836), since load balancers
//! and kubelets ask.

use std::time::SystemTime;

use http::StatusCode;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::observed::Said;

/// The taint of a node that the cluster autoscaler is about to delete: load balancers are to drain it.
const GOING: &str = "ToBeDeletedByClusterAutoscaler";

/// How forwarding fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pulse {
    /// When the kernel last had all that was known; `None` before the first time.
    pub last_sync: Option<SystemTime>,
    /// The kernel follows.
    pub healthy: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

#[derive(Serialize)]
struct Status {
    #[serde(rename = "IPv4")]
    v4: Family,
    #[serde(rename = "IPv6")]
    v6: Family,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Family {
    last_updated: String,
    healthy: bool,
}

/// The answer: of `/healthz` if it is said whether the node is eligible, of `/livez` otherwise.
pub(crate) fn report(pulse: Pulse, eligible: Option<bool>, now: SystemTime) -> (StatusCode, String) {
    let Pulse { last_sync, healthy } = pulse;
    let good = healthy && eligible.unwrap_or(true);
    let family = |at: SystemTime| Family { last_updated: time(Some(at)), healthy };
    let report = Report {
        // A recent time when all is well, even if nothing has changed for long: so old clients expect it.
        last_updated: time(if good { Some(now) } else { last_sync }),
        current_time: time(Some(now)),
        node_eligible: eligible,
        healthy,
        // One table serves each family, and one transaction both.
        status: last_sync.map(|at| Status { v4: family(at), v6: family(at) }),
    };
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, serde_json::to_string(&report).expect("strings and booleans"))
}

/// As Go prints a time; its zero where there is none.
fn time(at: Option<SystemTime>) -> String {
    match at.and_then(|at| Timestamp::try_from(at).ok()) {
        Some(at) => at.to_string(),
        None => "0001-01-01T00:00:00Z".to_owned(),
    }
}

/// Whether the node is to get traffic, from what the watch of its object says. It is until that says otherwise, as with kube-proxy:
/// an agent that starts while the API is away forwards as the one before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eligibility {
    /// The object as last seen.
    eligible: bool,
    /// The list under way has it.
    listed: bool,
}

impl Default for Eligibility {
    fn default() -> Eligibility {
        Eligibility { eligible: true, listed: false }
    }
}

impl Eligibility {
    /// Notes what was said; gives whether the node is eligible now. One that doesn't exist is not.
    pub fn note(&mut self, said: Said<&Node>) -> bool {
        match said {
            Said::Begin => self.listed = false,
            Said::Present(_, node) => *self = Eligibility { eligible: stays(node), listed: true },
            Said::Absent(_) => self.eligible = false,
            Said::End => self.eligible &= self.listed,
        }
        self.eligible
    }
}

/// It is neither being deleted nor about to be.
fn stays(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    node.metadata.deletion_timestamp.is_none() && taints.iter().all(|taint| taint.key != GOING)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::from_kube::Key;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000 + seconds)
    }

    #[test]
    fn healthz_has_the_form_that_load_balancers_know() {
        let pulse = Pulse { last_sync: Some(at(0)), healthy: true };
        let (code, body) = report(pulse, Some(true), at(5));
        assert_eq!(code, 200);
        assert_eq!(
            body,
            r#"{"lastUpdated":"2026-09-21T14:13:25Z","currentTime":"2026-09-21T14:13:25Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"2026-09-21T14:13:20Z","healthy":true},"IPv6":{"lastUpdated":"2026-09-21T14:13:20Z","healthy":true}}}"#
        );
    }

    #[test]
    fn livez_does_not_speak_of_the_node_and_healthz_answers_for_it() {
        let pulse = Pulse { last_sync: Some(at(0)), healthy: true };
        let (code, body) = report(pulse, None, at(5));
        assert_eq!(code, 200);
        assert!(!body.contains("nodeEligible"), "{body}");
        let (code, body) = report(pulse, Some(false), at(5));
        assert_eq!(code, 503);
        assert!(body.starts_with(r#"{"lastUpdated":"2026-09-21T14:13:20Z""#), "{body}");
        assert!(body.contains(r#""nodeEligible":false,"healthy":true"#), "{body}");
    }

    #[test]
    fn a_kernel_that_does_not_follow_is_unhealthy_in_both_and_a_start_is_not() {
        let stuck = Pulse { last_sync: Some(at(0)), healthy: false };
        for eligible in [None, Some(true)] {
            let (code, body) = report(stuck, eligible, at(5));
            assert_eq!(code, 503);
            assert!(
                body.contains(r#""IPv6":{"lastUpdated":"2026-09-21T14:13:20Z","healthy":false}"#),
                "{body}"
            );
        }
        let start = Pulse { last_sync: None, healthy: true };
        let (code, body) = report(start, None, at(5));
        assert_eq!(code, 200);
        assert!(!body.contains("status"), "{body}");
        let (_, body) = report(start, Some(false), at(5));
        assert!(body.contains(r#""lastUpdated":"0001-01-01T00:00:00Z""#), "{body}");
    }

    #[test]
    fn a_node_is_eligible_while_it_exists_and_nobody_is_about_to_delete_it() {
        let key = || Key { namespace: "".into(), name: "here".into() };
        let node = |value| serde_json::from_value::<Node>(value).expect("a node");
        let good = node(json!({"metadata": {"name": "here"}}));
        let ending = node(json!({"metadata": {"name": "here", "deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        let going = node(json!({"metadata": {"name": "here"}, "spec": {"taints": [
            {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}, {"key": GOING, "effect": "NoSchedule"}]}}));
        let mut eligibility = Eligibility::default();
        assert!(eligibility.note(Said::Begin), "nothing says otherwise yet");
        assert!(eligibility.note(Said::Present(key(), &good)));
        assert!(eligibility.note(Said::End));
        for bad in [&ending, &going] {
            assert!(!eligibility.note(Said::Present(key(), bad)));
            assert!(eligibility.note(Said::Present(key(), &good)));
        }
        assert!(!eligibility.note(Said::Absent(key())));
        assert!(eligibility.note(Said::Present(key(), &good)));
        assert!(eligibility.note(Said::Begin), "a new list is not yet news");
        assert!(!eligibility.note(Said::End), "it was deleted while the watch was broken");
    }
}
