//! The kernel as a dataplane: the nftables engine, who listens for what others do to its tables, the connection table beside it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use portolan_dataplane::{Applied, Engine, Forget, Lack, OLDEST, Options, lacks};
use portolan_plan::model::{Plan, PlanChange};
use portolan_plan::planner::StaleUdp;
use portolan_sys::nft::{Heard, Monitor};
use portolan_sys::packet;

use crate::dataplane::{Dataplane, Told};

/// The kernel, in one network namespace.
pub struct Kernel {
    engine: Engine,
    table: String,
    listener: Option<Listener>,
}

/// The thread that listens. It ends when this is dropped.
struct Listener {
    thread: Option<JoinHandle<()>>,
    /// Closed to end it.
    stop: Option<UnixStream>,
}

impl Kernel {
    /// The kernel in the network namespace of the calling thread. What it lacks is told; without what all forwarding needs,
    /// that is an error.
    pub fn open(options: Options) -> anyhow::Result<Kernel> {
        let (at_a_price, needed): (Vec<Lack>, Vec<Lack>) =
            lacks().context("asking what the kernel has")?.into_iter().partition(|lack| lack.cost.is_some());
        if !needed.is_empty() {
            let needed: Vec<String> = needed.iter().map(|l| format!("{} ({})", l.part, l.option)).collect();
            anyhow::bail!(
                "this kernel can't forward: it has no {}; load what is missing, or use Linux {OLDEST} or newer with these options",
                needed.join(", nor ")
            );
        }
        for Lack { part, option, cost } in at_a_price {
            tracing::warn!(option, "the kernel has no {part}: {}", cost.unwrap_or_default());
        }
        let table = options.table.clone();
        let mut engine = Engine::open(options)?;
        if let Err(error) = engine.hold_translation() {
            tracing::info!(%error, "should somebody delete the tables, connections may break until they are put back");
        }
        Ok(Kernel { table, engine, listener: None })
    }
}

impl Dataplane for Kernel {
    fn sync(&mut self, plan: &Plan) -> anyhow::Result<Applied> {
        Ok(self.engine.sync(plan)?)
    }

    fn apply(&mut self, change: &PlanChange) -> anyhow::Result<Applied> {
        Ok(self.engine.apply(change)?)
    }

    fn forget_udp(&mut self, plan: &Plan, stale: &StaleUdp, which: Forget) -> anyhow::Result<usize> {
        Ok(portolan_dataplane::forget_udp(stale, &plan.node.node_addresses, which)?)
    }

    /// Others commit often (container engines, firewalls, another proxy), so a generation that has moved is no reason to read
    /// the tables again. The kernel says of each commit what it touched: what touches a table of ours is told, and what
    /// doesn't costs this thread the reading of a few messages. Asking for the generation several times a second instead
    /// would notice a change as soon, but neither whose it was nor whether it concerned us.
    fn watch(&mut self, tell: Box<dyn Fn(Told) + Send>) -> anyhow::Result<()> {
        let mut monitor = Monitor::open(&self.table)?;
        self.engine.hush(monitor.membership()?);
        let (stop, stopped) = UnixStream::pair()?;
        let (own, table) = (self.engine.port(), self.table.clone());
        let thread = std::thread::Builder::new().name("nft-monitor".into()).spawn(move || {
            let stopped = OwnedFd::from(stopped);
            loop {
                let ready = match packet::wait_readable(&[monitor.as_fd(), stopped.as_fd()], LONG) {
                    Ok(ready) => ready,
                    Err(error) => {
                        return tracing::warn!(%error, "nobody listens for commits to nf_tables any more");
                    }
                };
                if ready[1] {
                    return;
                }
                let heard = monitor.hear(|heard| match heard {
                    Heard::Lost => tell(Told::Unheard),
                    Heard::Committed(commit) if commit.port == own || commit.touched.is_empty() => {}
                    Heard::Committed(commit) => {
                        tell(Told::Disturbed(format!("{commit} {}", commit.deeds(&table))));
                    }
                });
                if let Err(error) = heard {
                    return tracing::warn!(%error, "nobody listens for commits to nf_tables any more");
                }
            }
        })?;
        self.listener = Some(Listener { thread: Some(thread), stop: Some(stop) });
        Ok(())
    }

    fn disturbed(&mut self) -> anyhow::Result<Option<String>> {
        Ok(self.engine.inspect()?)
    }
}

/// As long as it likes: what it waits for includes its end.
const LONG: Duration = Duration::from_secs(3600);

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there was printed there
        }
    }
}
