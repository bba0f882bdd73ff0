//! What the embedded engine promises, against a model and against machines that fail.

mod disk;
mod full_disk;
mod history;
mod kill;
mod model;
mod power_loss;
