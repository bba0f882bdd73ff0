//! Where our server differs on purpose, and why.

use super::step::Step;
use super::world::{Answers, Difference};

/// All reasons. A test compares them with the document.
pub const DIFFERENCES: [&str; 0] = [];

/// The reason for a difference, if it is on purpose.
pub fn reason(_step: &Step, _answers: &Answers, _difference: &Difference) -> Option<&'static str> {
    None
}
