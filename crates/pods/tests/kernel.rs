//! Pods as the kernel sees them.
fn main() -> std::process::ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|verb| verb == "__pod") {
        return portolan_pods::pod_main(args);
    }
    std::process::ExitCode::SUCCESS
}
