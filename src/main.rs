//! The binary: parse, build, run, drain.

use std::process::ExitCode;

mod cli; // the verbs, one file each
mod explain; // how an answer reads
mod lab; // a cluster of network namespaces on this machine
mod secret; // what a server and its nodes derive from the token they share

fn main() -> ExitCode {
    // Hidden verbs clone and unshare, which only a single-threaded process may do: before any thread exists.
    if let Some(code) = cli::hidden() {
        return code;
    }
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
