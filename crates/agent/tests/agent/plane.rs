//! A dataplane that remembers the plan it was given, and may be told to fail.

use std::sync::Arc;
use std::time::Duration;

use portolan_agent::dataplane::{Dataplane, Told};
use portolan_dataplane::{Applied, Forget};
use portolan_plan::model::{Plan, PlanChange};
use portolan_plan::planner::StaleUdp;
use tokio::sync::watch;

/// What the kernel would hold, and how it came to.
#[derive(Clone, Debug, Default)]
pub struct Held {
    pub plan: Plan,
    pub syncs: usize,
    pub changes: Vec<PlanChange>,
    /// Whose unused flows were forgotten, and whose flows altogether.
    pub forgotten: StaleUdp,
    pub forgotten_all: StaleUdp,
    /// How many of the next calls fail.
    pub fail: usize,
    pub failed: usize,
}

/// A dataplane; clones are the same.
#[derive(Clone, Default)]
pub struct FakePlane {
    held: Arc<watch::Sender<Held>>,
}

impl FakePlane {
    /// Waits until what it holds is as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Held) -> bool) -> Held {
        let mut held = self.held.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(20), held.wait_for(|h| wanted(h))).await;
        match waited {
            Ok(held) => held.unwrap().clone(),
            Err(_) => panic!("never came: {what}; it holds {:#?}", self.held.borrow()),
        }
    }

    pub fn now(&self) -> Held {
        self.held.borrow().clone()
    }

    pub fn fail_next(&self, calls: usize) {
        self.held.send_modify(|h| h.fail = calls);
    }

    fn call(&self, act: impl FnOnce(&mut Held)) -> anyhow::Result<Applied> {
        let mut result = Ok(Applied::default());
        self.held.send_modify(|held| {
            if held.fail > 0 {
                held.fail -= 1;
                held.failed += 1;
                result = Err(anyhow::anyhow!("told to fail"));
            } else {
                act(held);
            }
        });
        result
    }
}

impl Dataplane for FakePlane {
    fn sync(&mut self, plan: &Plan) -> anyhow::Result<Applied> {
        self.call(|held| {
            held.plan = plan.clone();
            held.syncs += 1;
        })
    }

    fn apply(&mut self, change: &PlanChange) -> anyhow::Result<Applied> {
        self.call(|held| {
            held.plan.apply(change);
            held.changes.push(change.clone());
        })
    }

    fn forget_udp(&mut self, _plan: &Plan, stale: &StaleUdp, which: Forget) -> anyhow::Result<usize> {
        self.held.send_modify(|held| match which {
            Forget::Unused => held.forgotten.extend(stale.clone()),
            Forget::All => held.forgotten_all.extend(stale.clone()),
        });
        Ok(stale.len())
    }

    fn watch(&mut self, _tell: Box<dyn Fn(Told) + Send>) -> anyhow::Result<()> {
        Ok(())
    }

    fn disturbed(&mut self) -> anyhow::Result<Option<String>> {
        Ok(None)
    }
}
