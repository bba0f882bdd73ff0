//! Forgets history that nobody may ask for any more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use portolan_store::{Revision, Store};
use tokio_util::sync::CancellationToken;

/// Keeps about `history` of the past; runs until closed.
pub(crate) async fn run(store: Arc<dyn Store>, history: Duration, close: CancellationToken) {
    // Revisions carry no time: samples of where the store was tell which are old enough.
    let step = (history / 5).max(Duration::from_millis(10));
    let mut samples: VecDeque<Revision> = VecDeque::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(step) => {}
            () = close.cancelled() => return,
        }
        match store.revision().await {
            Ok(revision) => samples.push_back(revision),
            Err(error) => tracing::warn!(%error, "asking the store for its revision"),
        }
        if samples.len() <= 5 {
            continue;
        }
        if let Some(revision) = samples.pop_front().filter(|revision| revision.0 > 0)
            && let Err(error) = store.compact(revision).await
        {
            tracing::warn!(%error, "compacting the store");
        }
    }
}
