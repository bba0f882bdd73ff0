//! Forgets Events that nobody has repeated for an hour.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portolan_api::walk;
use portolan_store::{Compare, Op, Revision, Store, Txn};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, prefix};

/// How long an Event lives after it was last seen: kube-apiserver's `--event-ttl`.
const LIFE: SignedDuration = SignedDuration::from_hours(1);
/// How often is looked.
const ROUND: Duration = Duration::from_secs(300);

/// Deletes old Events; runs until closed.
pub(crate) async fn run(events: Arc<Cache>, store: Arc<dyn Store>, close: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = close.cancelled() => return,
        }
        let Ok(limit) = Timestamp::now().checked_sub(LIFE) else { continue };
        for event in events.snapshot(&prefix(&events.kind), |_| true).objects {
            if last_seen(&event.value()).is_none_or(|seen| seen >= limit) {
                continue;
            }
            // Only as it was seen: one that was repeated meanwhile lives on.
            let compares = vec![Compare::ModRevision(event.key.clone(), Revision(event.revision))];
            let txn = Txn { compares, ops: vec![Op::Delete(event.key.clone())] };
            if let Err(error) = store.txn(txn).await {
                tracing::warn!(%error, "forgetting old events");
                break;
            }
        }
    }
}

/// The latest of the times that an Event carries.
fn last_seen(event: &Value) -> Option<Timestamp> {
    let fields = [
        "lastTimestamp",
        "series.lastObservedTime",
        "eventTime",
        "firstTimestamp",
        "metadata.creationTimestamp",
    ];
    fields.iter().filter_map(|field| walk::text(event, field).parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_as_old_as_its_last_repetition() {
        let event = json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "lastTimestamp": "2026-01-01T02:00:00Z", "eventTime": null,
        });
        assert_eq!(last_seen(&event), "2026-01-01T02:00:00Z".parse().ok());
        assert_eq!(last_seen(&json!({})), None);
    }
}
