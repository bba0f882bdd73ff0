//! What the plan promises, row by row, and for any history.

mod clashes;
mod fixture;
mod histories;
mod promises;
mod traces;
