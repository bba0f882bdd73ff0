//! What the agent asks of a dataplane: the least it needs, so that a test can stand in for a kernel.

use portolan_dataplane::{Applied, Forget};
use portolan_plan::model::{Plan, PlanChange};
use portolan_plan::planner::StaleUdp;

/// Carries plans.
pub trait Dataplane {
    /// Makes the kernel equal to a whole plan, whatever it holds.
    fn sync(&mut self, plan: &Plan) -> anyhow::Result<Applied>;

    /// Makes the kernel follow a change of the plan that it has.
    fn apply(&mut self, change: &PlanChange) -> anyhow::Result<Applied>;

    /// Forgets UDP flows to these frontends, but for those to the backends given with each. Gives how many.
    fn forget_udp(&mut self, plan: &Plan, stale: &StaleUdp, which: Forget) -> anyhow::Result<usize>;

    /// Begins to listen for what others do to what was put into the kernel; `tell` is called from another thread.
    fn watch(&mut self, tell: Box<dyn Fn(Told) + Send>) -> anyhow::Result<()>;

    /// What others did to it, in words, if there are signs of it. Asked now and then, in case nothing was told: it has to be
    /// cheap.
    fn disturbed(&mut self) -> anyhow::Result<Option<String>>;
}

/// What a dataplane tells of others, unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Somebody did this to what was put there: who and what, in words.
    Disturbed(String),
    /// There was too much to hear all of it.
    Unheard,
}
