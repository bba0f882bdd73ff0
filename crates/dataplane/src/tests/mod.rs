//! The law and the safety of its steps, over a simulated kernel.

mod history; // any history of plans
mod plans; // plans at random
mod simulated; // a kernel that takes batches, and packets through it
