//! Fairness in small: how many requests are under way for one user and for all, so that a client that lists in a loop
//! starves nobody. Watches and other connections that last don't count.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::body::ServerBody;
use crate::http::typed;

/// Seats for reads and for writes of all users: kube-apiserver's `--max-requests-inflight` and
/// `--max-mutating-requests-inflight`.
const ALL: [usize; 2] = [400, 200];
/// The same for one user. What is read is put together by a processor: more at once would only be slower for everybody.
const ONE: [usize; 2] = [32, 32];
/// So many requests of one user may wait.
const WAITING: usize = 200;
/// And so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// A list takes a seat more for so many objects, up to a limit (apiserver's work estimator: `objectsPerSeat`,
/// `maximumSeatsLimit`).
const PER_SEAT: usize = 100;
const SEATS: usize = 10;
/// From so many users on, those who ask for nothing now are forgotten.
const USERS: usize = 1024;

/// One user's requests of one sort.
struct Lane {
    seats: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// The requests that are under way.
pub(crate) struct Inflight {
    all: [Arc<Semaphore>; 2],
    lanes: Mutex<HashMap<(String, bool), Arc<Lane>>>,
}

/// A request's seats; they are free again when this is dropped.
pub(crate) struct Seats {
    _of_user: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// Come back later.
#[derive(Debug)]
pub(crate) struct TooMany;

/// How many seats a list of so many objects takes.
pub(crate) fn seats(objects: usize) -> usize {
    (1 + objects / PER_SEAT).min(SEATS)
}

impl Default for Inflight {
    fn default() -> Inflight {
        Inflight { all: ALL.map(|seats| Arc::new(Semaphore::new(seats))), lanes: Mutex::default() }
    }
}

impl Inflight {
    /// Waits for seats: first among the user's own requests, then among all. Nobody waits long, nor behind many.
    pub(crate) async fn admit(&self, user: &str, writes: bool, seats: usize) -> Result<Seats, TooMany> {
        let lane = {
            let mut lanes = self.lanes.lock();
            if lanes.len() >= USERS {
                lanes
                    .retain(|_, lane| Arc::strong_count(lane) > 1 || lane.seats.available_permits() < ONE[0]);
            }
            let new = || Lane {
                seats: Arc::new(Semaphore::new(ONE[usize::from(writes)])),
                waiting: AtomicUsize::new(0),
            };
            lanes.entry((user.to_owned(), writes)).or_insert_with(|| Arc::new(new())).clone()
        };
        let seats = u32::try_from(seats).unwrap_or(1);
        let of_all = self.all[usize::from(writes)].clone();
        if let Ok(of_user) = lane.seats.clone().try_acquire_many_owned(seats)
            && let Ok(of_all) = of_all.clone().try_acquire_many_owned(seats)
        {
            return Ok(Seats { _of_user: of_user, _of_all: of_all });
        }
        let _place = Place::take(&lane)?;
        let wait = async {
            let of_user = lane.seats.clone().acquire_many_owned(seats).await.map_err(|_| TooMany)?;
            let of_all = of_all.acquire_many_owned(seats).await.map_err(|_| TooMany)?;
            Ok(Seats { _of_user: of_user, _of_all: of_all })
        };
        tokio::time::timeout(PATIENCE, wait).await.map_err(|_| TooMany)?
    }
}

/// A place among those who wait.
struct Place<'a>(&'a Lane);

impl Place<'_> {
    fn take(lane: &Lane) -> Result<Place<'_>, TooMany> {
        let place = Place(lane);
        match lane.waiting.fetch_add(1, Ordering::Relaxed) < WAITING {
            true => Ok(place),
            false => Err(TooMany),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TooMany {
    /// 429 in kube-apiserver's words; client-go waits as long as it says and asks again.
    pub(crate) fn response(&self) -> Response<ServerBody> {
        let text = "Too many requests, please try again later.\n";
        let mut response = typed(StatusCode::TOO_MANY_REQUESTS, "text/plain; charset=utf-8", text);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_user_waits_behind_their_own_requests_and_nobody_elses() {
        let inflight = Arc::new(Inflight::default());
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(inflight.admit("greedy", false, seats(100_000)).await.expect("a seat"));
        }
        assert!(inflight.admit("greedy", false, seats(100_000)).await.is_err(), "no seats within the time");
        assert!(inflight.admit("greedy", false, 1).await.is_ok(), "a small one fits");
        assert!(inflight.admit("greedy", true, 1).await.is_ok(), "writes have seats of their own");
        assert!(inflight.admit("other", false, seats(100_000)).await.is_ok());
        let waiting = tokio::spawn({
            let inflight = inflight.clone();
            async move { inflight.admit("greedy", false, seats(100_000)).await.is_ok() }
        });
        tokio::task::yield_now().await;
        held.pop();
        assert!(waiting.await.expect("no panic"), "a seat that is left is taken");
    }

    #[tokio::test(start_paused = true)]
    async fn behind_too_many_nobody_waits() {
        let inflight = Arc::new(Inflight::default());
        let mut held = Vec::new();
        for _ in 0..ONE[0] {
            held.push(inflight.admit("greedy", false, 1).await.expect("a seat"));
        }
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..WAITING {
            let inflight = inflight.clone();
            waiting.spawn(async move { inflight.admit("greedy", false, 1).await.is_ok() });
        }
        let lane = inflight.lanes.lock()[&("greedy".to_owned(), false)].clone();
        while lane.waiting.load(Ordering::Relaxed) < WAITING {
            tokio::task::yield_now().await;
        }
        let now = tokio::time::Instant::now();
        let refused = inflight.admit("greedy", false, 1).await.err().expect("refused");
        assert_eq!(
            (refused.response().status(), now.elapsed()),
            (StatusCode::TOO_MANY_REQUESTS, Duration::ZERO)
        );
        drop(held);
        while let Some(admitted) = waiting.join_next().await {
            assert!(admitted.expect("no panic"));
        }
    }
}
