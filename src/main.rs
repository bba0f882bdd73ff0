//! The binary: parse, build, run, drain.
fn main() {}
