//! stub
use std::process::ExitCode;
use super::{enter, state::State};
pub const VERB: &str = "__lab-check";
pub fn main(_: Option<&str>) -> ExitCode { ExitCode::SUCCESS }
pub fn enter(state: &State) -> anyhow::Result<ExitCode> { enter::own(state, VERB, &[]) }
