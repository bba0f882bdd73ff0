//! The lab: started, used, killed, and nothing left.

mod check; // `lab check` tells the truth of what is broken
pub mod leftovers; // whatever is killed, nothing stays
mod lifetime; // up, down, two at a time, not at all
mod use_of; // exec, published ports, lists
