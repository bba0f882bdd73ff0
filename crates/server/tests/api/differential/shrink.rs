//! From a difference to the fewest and smallest requests that show it.

use super::known;
use super::step::Step;
use super::world::World;

/// So many attempts at most: each is a handful of requests.
const ATTEMPTS: usize = 250;

/// The last of these requests is answered differently; gives back fewer and smaller ones of which that is true too. As they were
/// if it isn't true from scratch.
pub async fn shrink(world: &mut World, steps: Vec<Step>) -> Vec<Step> {
    let last = steps[steps.len() - 1].key();
    let own: Vec<Step> = steps.iter().filter(|step| step.key() == last).cloned().collect();
    let mut best = if shows(world, &own).await {
        own
    } else if shows(world, &steps).await {
        steps
    } else {
        return steps;
    };
    let mut attempts = 0;
    // First without earlier requests, the oldest and most at once.
    let mut chunk = best.len() / 2;
    while chunk > 0 {
        let mut from = 0;
        while from + chunk < best.len() && attempts < ATTEMPTS {
            attempts += 1;
            let mut fewer = best.clone();
            fewer.drain(from..from + chunk);
            if shows(world, &fewer).await {
                best = fewer;
            } else {
                from += chunk;
            }
        }
        chunk /= 2;
    }
    // Then smaller ones.
    'again: loop {
        for index in (0..best.len()).rev() {
            for smaller in best[index].smaller() {
                if attempts >= ATTEMPTS {
                    return best;
                }
                attempts += 1;
                let mut steps = best.clone();
                steps[index] = smaller;
                if shows(world, &steps).await {
                    best = steps;
                    continue 'again;
                }
            }
        }
        return best;
    }
}

/// Whether both servers, asked all of this, differ at the end and only there.
async fn shows(world: &mut World, steps: &[Step]) -> bool {
    world.clear(steps[0].kind).await;
    for (index, step) in steps.iter().enumerate() {
        let answers = world.ask(step).await;
        let differ = answers
            .differences()
            .iter()
            .any(|difference| known::reason(step, &answers, difference).is_none());
        if index + 1 == steps.len() {
            return differ;
        }
    }
    false
}
