//! Of several servers on one store, one runs the controllers: the holder of a Lease.
//!
//! How old the holder's last sign of life is, each candidate measures with its own clock, from when it saw the Lease change:
//! the clocks of machines need not agree (as client-go's leader election does).

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::Config;

/// Where the Lease is.
const NAMESPACE: &str = "kube-system";
const NAME: &str = "portolan-controllers";

/// A holder who was silent for so long has lost it.
const LEASE: Duration = Duration::from_secs(6);
/// A holder who could not renew it for so long gives up: earlier than others may take it, so that never two decide.
const DEADLINE: Duration = Duration::from_secs(4);
/// How often the holder renews it and the others look.
const PERIOD: Duration = Duration::from_secs(1);

/// What a candidate does about the Lease that it sees.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nobody has made it yet.
    Create,
    /// It is ours, or nobody's, or its holder was silent for too long.
    Hold,
    /// Somebody else has it.
    Wait,
}

fn decide(lease: Option<&LeaseSpec>, unchanged_for: Duration, candidate: &str) -> Step {
    let Some(lease) = lease else { return Step::Create };
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    let lasts = u64::try_from(lease.lease_duration_seconds.unwrap_or_default()).unwrap_or_default();
    match holder.is_empty() || holder == candidate || unchanged_for >= Duration::from_secs(lasts) {
        true => Step::Hold,
        false => Step::Wait,
    }
}

/// The Lease as its new holder, or the old one, writes it.
fn held(before: Option<&LeaseSpec>, candidate: &str, now: jiff::Timestamp) -> LeaseSpec {
    let ours = before.filter(|lease| lease.holder_identity.as_deref() == Some(candidate));
    let transitions = before.and_then(|lease| lease.lease_transitions).unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(candidate.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
        acquire_time: ours.and_then(|lease| lease.acquire_time.clone()).or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if ours.is_some() || before.is_none() {
            transitions
        } else {
            transitions + 1
        }),
        ..LeaseSpec::default()
    }
}

/// The Lease as its holder leaves it for whoever comes.
fn released(before: LeaseSpec) -> LeaseSpec {
    LeaseSpec { holder_identity: None, lease_duration_seconds: Some(1), ..before }
}

struct Candidate {
    api: Api<Lease>,
    identity: String,
    /// The Lease as it was seen last, and since when it is so.
    seen: Option<(LeaseSpec, Instant)>,
}

impl Candidate {
    /// Looks, and takes or renews the Lease if that may be. Whether it is ours then.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let lease = self.api.get_opt(NAME).await?;
        let spec = lease.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        if self.seen.as_ref().map(|(seen, _)| seen) != spec.as_ref() {
            self.seen = spec.clone().map(|spec| (spec, Instant::now()));
        }
        let age = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let step = decide(spec.as_ref(), age, &self.identity);
        if step == Step::Wait {
            return Ok(false);
        }
        let new = held(spec.as_ref(), &self.identity, jiff::Timestamp::now());
        let params = PostParams::default();
        let written = match lease {
            None => {
                let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
                self.api.create(&params, &Lease { metadata, spec: Some(new) }).await
            }
            // Its resourceVersion makes sure that nobody was faster.
            Some(lease) => self.api.replace(NAME, &params, &Lease { spec: Some(new), ..lease }).await,
        };
        match written {
            Ok(lease) => {
                self.seen = Some((lease.spec.unwrap_or_default(), Instant::now()));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until the Lease is ours.
    async fn acquire(&mut self) {
        let mut told = false;
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) if !told => {
                    let holder = self.seen.as_ref().and_then(|(lease, _)| lease.holder_identity.as_deref());
                    tracing::info!(holder, "another server runs the controllers; this one stands by");
                    told = true;
                }
                Ok(false) => {}
                Err(error) => tracing::debug!(%error, "looking who runs the controllers"),
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    /// Renews the Lease for as long as that works.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(PERIOD).await;
            let left = DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::debug!(%error, "renewing the Lease"),
                Err(_) => return,
            }
        }
    }

    /// Leaves the Lease to others. Who can't leaves it to time.
    async fn release(&mut self) {
        let Ok(Some(lease)) = self.api.get_opt(NAME).await else { return };
        let Some(spec) = lease.spec.clone().filter(|l| l.holder_identity.as_ref() == Some(&self.identity))
        else {
            return;
        };
        let lease = Lease { spec: Some(released(spec)), ..lease };
        if let Err(error) = self.api.replace(NAME, &PostParams::default(), &lease).await {
            tracing::debug!(%error, "leaving the Lease");
        }
    }
}

/// Runs every controller until `shutdown`, whenever this candidate is the one among several who does. `identity` names it
/// and no other.
pub async fn run_elected(
    client: Client,
    config: Config,
    identity: String,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut candidate = Candidate { api: Api::namespaced(client.clone(), NAMESPACE), identity, seen: None };
    loop {
        tokio::select! {
            () = candidate.acquire() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        tracing::info!(identity = candidate.identity, "this server runs the controllers");
        let term = shutdown.child_token();
        let mut controllers = std::pin::pin!(crate::run(client.clone(), config.clone(), term.clone()));
        tokio::select! {
            ended = &mut controllers => {
                ended?;
                candidate.release().await;
                return Ok(());
            }
            () = candidate.keep() => {
                tracing::warn!("the Lease is lost: another server may run the controllers now");
                term.cancel();
                controllers.await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, seconds: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(seconds),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_changes_hands_only_when_its_holder_was_silent_for_as_long_as_it_says() {
        let seconds = Duration::from_secs;
        assert_eq!(decide(None, seconds(0), "a"), Step::Create);
        assert_eq!(decide(Some(&lease("a", 6)), seconds(0), "a"), Step::Hold);
        assert_eq!(decide(Some(&lease("b", 6)), seconds(5), "a"), Step::Wait);
        assert_eq!(decide(Some(&lease("b", 6)), seconds(6), "a"), Step::Hold);
        assert_eq!(decide(Some(&lease("b", 60)), seconds(6), "a"), Step::Wait);
        assert_eq!(decide(Some(&released(lease("b", 6))), seconds(0), "a"), Step::Hold);
    }

    #[test]
    fn a_holder_gives_up_before_another_can_begin() {
        // Controllers that are told to end may take two seconds more for what they have begun.
        assert!(DEADLINE + Duration::from_secs(2) <= LEASE);
        assert!(PERIOD * 3 < DEADLINE, "one lost request costs nobody the Lease");
    }

    #[test]
    fn transitions_are_counted_and_a_term_keeps_its_beginning() {
        let [one, two] = [1, 2].map(|second| jiff::Timestamp::from_second(second).expect("a time"));
        let first = held(None, "a", one);
        assert_eq!((first.lease_transitions, &first.acquire_time), (Some(0), &Some(MicroTime(one))));
        let renewed = held(Some(&first), "a", two);
        assert_eq!((renewed.lease_transitions, &renewed.acquire_time), (Some(0), &Some(MicroTime(one))));
        assert_eq!(renewed.renew_time, Some(MicroTime(two)));
        let taken = held(Some(&renewed), "b", two);
        assert_eq!((taken.lease_transitions, &taken.acquire_time), (Some(1), &Some(MicroTime(two))));
    }
}
