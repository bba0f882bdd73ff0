//! What the agent asks of a dataplane: the least it needs, so that a test can stand in for a kernel.

use portolan_dataplane::Applied;
use portolan_plan::model::{Plan, PlanChange};
use portolan_plan::planner::StaleUdp;

/// Carries plans.
pub trait Dataplane {
    /// Makes the kernel equal to a whole plan, whatever it holds.
    fn sync(&mut self, plan: &Plan) -> anyhow::Result<Applied>;

    /// Makes the kernel follow a change of the plan that it has.
    fn apply(&mut self, change: &PlanChange) -> anyhow::Result<Applied>;

    /// Forgets UDP flows to these frontends, but for those to the backends given with each. Gives how many.
    fn forget_udp(&mut self, plan: &Plan, stale: &StaleUdp) -> anyhow::Result<usize>;

    /// Whether somebody took from the kernel what was put there. Asked now and then, so it has to be cheap.
    fn disturbed(&mut self) -> anyhow::Result<bool>;
}
