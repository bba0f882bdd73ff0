//! Writes numbers as Prometheus reads them; the names are its users'.
//!
//! Absent on purpose: a registry, and anything that runs by itself. Who has numbers keeps them, and writes a page when asked.

mod page; // the text
mod process; // what this process uses

pub use page::{Histogram, Page, labels};
pub use process::Process;

/// The content type of a page.
pub const CONTENT: &str = "text/plain; version=0.0.4; charset=utf-8";
