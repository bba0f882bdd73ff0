//! How far each ReplicaSet of a deployment is scaled: never below the least available, never above the surge.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::revision::{DESIRED_REPLICAS, MAX_REPLICAS};

/// The numbers of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// How many pods are wanted.
    pub replicas: i32,
    /// How many more there may be.
    pub surge: i32,
    /// How many fewer may be available.
    pub unavailable: i32,
}

/// One ReplicaSet, as the arithmetic sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// What it is asked for.
    pub replicas: i32,
    /// How many of these are available.
    pub available: i32,
}

impl Bounds {
    pub fn of(deployment: &Deployment) -> Bounds {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1).max(0);
        let strategy = spec.and_then(|spec| spec.strategy.as_ref());
        if recreates(deployment) {
            return Bounds { replicas, surge: 0, unavailable: replicas };
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".to_owned());
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref()).unwrap_or(&quarter);
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&quarter);
        Bounds::new(replicas, share(surge, replicas, true), share(unavailable, replicas, false))
    }

    fn new(replicas: i32, surge: i32, unavailable: i32) -> Bounds {
        // With neither, nothing could ever move (validation refuses 0 and 0, but percentages may round to it).
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Bounds { replicas, surge, unavailable: unavailable.min(replicas) }
    }

    /// The most pods there may be.
    pub fn most(&self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }

    fn least_available(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

/// Whether all old pods go before the first new one comes.
pub(super) fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate"))
}

/// A number, or a share of another.
pub(crate) fn share(value: &IntOrString, of: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let exact = percent.clamp(0, 10_000) * i64::from(of);
            let rounded = if up { (exact + 99) / 100 } else { exact / 100 };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// The newest set's next size, when it has `new` and the others have `old`.
pub(super) fn grow(bounds: Bounds, new: i32, old: i32) -> i32 {
    if new >= bounds.replicas {
        return bounds.replicas;
    }
    let room = bounds.most().saturating_sub(new.saturating_add(old)).max(0);
    new + room.min(bounds.replicas - new)
}

/// The old sets' next sizes, oldest first: those that do not answer go first, then as many as may be missing.
pub(super) fn shrink(bounds: Bounds, new: Size, old: &[Size]) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|size| size.replicas).collect();
    let total: i32 = new.replicas + sizes.iter().sum::<i32>();
    // New pods that are not available yet are missing already.
    let starting = new.replicas - new.available.min(new.replicas);
    let mut budget = total - bounds.least_available() - starting;
    if budget <= 0 {
        return sizes;
    }
    for (size, old) in sizes.iter_mut().zip(old) {
        let cut = (old.replicas - old.available.min(old.replicas)).min(budget).max(0);
        *size -= cut;
        budget -= cut;
    }
    let available: i32 =
        new.available.min(new.replicas) + old.iter().map(|old| old.available.min(old.replicas)).sum::<i32>();
    let mut budget = budget.min(available - bounds.least_available());
    for size in &mut sizes {
        let cut = (*size).min(budget).max(0);
        *size -= cut;
        budget -= cut;
    }
    sizes
}

/// Sizes after the deployment's own size has changed in the middle of a rollout: each set in proportion, the largest
/// takes what rounding leaves. `None` when the size has not changed since the sets were last scaled.
pub(super) fn proportional(bounds: Bounds, sets: &[Arc<ReplicaSet>]) -> Option<Vec<i32>> {
    let size = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let resized = sets.iter().any(|set| {
        let desired: Option<i32> = set.annotations().get(DESIRED_REPLICAS).and_then(|text| text.parse().ok());
        size(set) > 0 && desired.is_some_and(|desired| desired != bounds.replicas)
    });
    if !resized {
        return None;
    }
    let mut sizes: Vec<i32> = sets.iter().map(|set| size(set)).collect();
    let total: i32 = sizes.iter().sum();
    let allowed = if bounds.replicas > 0 { bounds.most() } else { 0 };
    let mut rest = allowed - total;
    if rest == 0 || total == 0 {
        return Some(sizes);
    }
    let change = rest;
    // Largest first, so that rounding favours them.
    let mut order: Vec<usize> = (0..sizes.len()).filter(|at| sizes[*at] > 0).collect();
    order.sort_by_key(|at| std::cmp::Reverse(sizes[*at]));
    for at in &order {
        // In proportion to what the deployment could have when the set was last scaled.
        let most: i64 = sets[*at]
            .annotations()
            .get(MAX_REPLICAS)
            .and_then(|text| text.parse().ok())
            .filter(|most| *most > 0)
            .unwrap_or(i64::from(total));
        let exact = i64::from(sizes[*at]) * i64::from(allowed);
        let part = (exact + most / 2) / most - i64::from(sizes[*at]);
        let part = i32::try_from(part).unwrap_or(0);
        let part = if change > 0 { part.clamp(0, rest) } else { part.clamp(rest.max(-sizes[*at]), 0) };
        sizes[*at] += part;
        rest -= part;
    }
    if let Some(first) = order.first() {
        sizes[*first] = (sizes[*first] + rest).max(0);
    }
    Some(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percentages_round_in_favour_of_availability() {
        let text = |text: &str| IntOrString::String(text.to_owned());
        assert_eq!(share(&text("25%"), 3, true), 1);
        assert_eq!(share(&text("25%"), 3, false), 0);
        assert_eq!(share(&text("100%"), 3, false), 3);
        assert_eq!(share(&IntOrString::Int(2), 3, false), 2);
        assert_eq!(Bounds::new(3, 0, 0), Bounds { replicas: 3, surge: 0, unavailable: 1 });
    }

    #[test]
    fn a_rollout_of_three_with_one_surge_goes_step_by_step() {
        let bounds = Bounds::new(3, 1, 0);
        assert_eq!(grow(bounds, 0, 3), 1);
        let size = |replicas, available| Size { replicas, available };
        assert_eq!(shrink(bounds, size(1, 0), &[size(3, 3)]), [3], "nothing goes before something has come");
        assert_eq!(shrink(bounds, size(1, 1), &[size(3, 3)]), [2]);
        assert_eq!(grow(bounds, 1, 2), 2);
        assert_eq!(
            shrink(bounds, size(1, 0), &[size(3, 1)]),
            [3],
            "old ones may be dead, but there is no budget"
        );
        assert_eq!(shrink(Bounds::new(3, 1, 1), size(1, 0), &[size(3, 1)]), [2]);
    }

    #[test]
    fn a_new_size_in_the_middle_of_a_rollout_is_shared_in_proportion() {
        let set = |replicas: i32| -> Arc<ReplicaSet> {
            let set = serde_json::json!({
                "metadata": { "annotations": { DESIRED_REPLICAS: "10", MAX_REPLICAS: "13" } },
                "spec": { "replicas": replicas, "selector": {} },
            });
            Arc::new(serde_json::from_value(set).expect("a ReplicaSet"))
        };
        // From 10 to 15 with a surge of 3: the example of Kubernetes' documentation on proportional scaling.
        assert_eq!(proportional(Bounds::new(15, 3, 2), &[set(8), set(5)]), Some(vec![11, 7]));
        assert_eq!(proportional(Bounds::new(10, 3, 2), &[set(8), set(5)]), None, "nothing has changed");
        assert_eq!(proportional(Bounds::new(0, 3, 0), &[set(8), set(5)]), Some(vec![0, 0]));
        let shrunk = proportional(Bounds::new(5, 1, 1), &[set(8), set(5)]).expect("sizes");
        assert_eq!(shrunk.iter().sum::<i32>(), 6);
    }

    proptest! {
        #[test]
        fn a_rollout_keeps_its_bounds_and_ends(
            replicas in 0i32..12,
            surge in 0i32..4,
            unavailable in 0i32..4,
            split in 0i32..13,
            readiness in proptest::collection::vec(0i32..4, 1..60),
        ) {
            let bounds = Bounds::new(replicas, surge, unavailable);
            let first = split.min(replicas);
            // Everything is available when it begins.
            let mut old = [Size { replicas: first, available: first },
                           Size { replicas: replicas - first, available: replicas - first }];
            let mut new = Size { replicas: 0, available: 0 };
            let total = |new: &Size, old: &[Size; 2]| new.replicas + old[0].replicas + old[1].replicas;
            let available = |new: &Size, old: &[Size; 2]| new.available + old[0].available + old[1].available;
            let mut ready = readiness.into_iter().chain(std::iter::repeat(12));
            for _ in 0..200 {
                new.replicas = grow(bounds, new.replicas, old[0].replicas + old[1].replicas);
                prop_assert!(total(&new, &old) <= bounds.most());
                let sizes = shrink(bounds, new, &old);
                for (old, size) in old.iter_mut().zip(sizes) {
                    prop_assert!(size <= old.replicas && size >= 0);
                    // The ReplicaSet deletes those that are not available first.
                    old.available = old.available.min(size);
                    old.replicas = size;
                }
                prop_assert!(available(&new, &old) >= bounds.replicas - bounds.unavailable);
                new.available = (new.available + ready.next().unwrap_or(0)).min(new.replicas);
            }
            prop_assert_eq!((new.replicas, total(&new, &old)), (replicas, replicas));
        }
    }
}
