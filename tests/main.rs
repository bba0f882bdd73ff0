//! One integration binary for the whole program.

mod lab; // the lab: started, used, killed, and nothing left
mod map; // ARCHITECTURE.md tells the truth
mod tidy; // rules worth stating
