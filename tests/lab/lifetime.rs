//! Labs beside each other, and labs that can't be.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{Lab, PORTOLAN, text};
use crate::map::root;

#[test]
fn two_labs_run_at_once_and_a_name_is_given_once() {
    let promise = "two labs run at once and a name is given once";
    let more = &["--nodes", "1", "-f", "examples"];
    let Some(one) = Lab::up(promise, "one", more) else { return };
    let Some(two) = Lab::up(promise, "two", more) else { return };
    let again = Command::new(PORTOLAN)
        .args(["lab", "up", "--nodes", "1", "--detach", "--name", &one.name])
        .output()
        .expect("running portolan");
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains(&format!("portolan lab down --name {}", one.name)), "{}", text(&again));

    let list = Command::new(PORTOLAN).args(["lab", "list"]).output().expect("running portolan");
    let list = text(&list);
    for lab in [&one, &two] {
        assert!(list.lines().any(|l| l.starts_with(&lab.name) && l.contains(" Up ")), "{list}");
        // Each has a node of this address, and is no other one for that.
        let node = lab.run_at("node-1", &["cat", "/proc/net/fib_trie"]);
        assert!(text(&node).contains("10.80.0.11"), "{}", text(&node));
    }
    let name = one.name.clone();
    drop(one);
    let list = Command::new(PORTOLAN).args(["lab", "list"]).output().expect("running portolan");
    assert!(!text(&list).contains(&name) && text(&list).contains(&two.name), "{}", text(&list));
}

/// `lab up` where root of a user namespace has set a limit of namespaces to zero.
fn limited(limit: &str, then: &str) -> Option<(std::process::Output, Duration)> {
    let script =
        format!("echo 0 > /proc/sys/user/{limit} && exec {then} \"$0\" lab up --name limited --nodes 1");
    let began = Instant::now();
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            &script,
            PORTOLAN,
        ])
        .env("XDG_RUNTIME_DIR", "")
        .current_dir(root())
        .output();
    match output {
        Ok(output) if output.status.code() == Some(3) => Some((output, began.elapsed())),
        Ok(output) if text(&output).contains("unshare:") || text(&output).contains("not found") => {
            portolan_sys::trial::skipped("what is missing is named at once", text(&output).trim());
            None
        }
        Ok(output) => panic!("{}", text(&output)),
        Err(error) => {
            portolan_sys::trial::skipped("what is missing is named at once", &format!("unshare(1): {error}"));
            None
        }
    }
}

#[test]
fn what_is_missing_is_named_at_once() {
    for (limit, what, then) in [
        ("max_net_namespaces", "network namespaces", ""),
        ("max_pid_namespaces", "PID namespaces", ""),
        ("max_user_namespaces", "user namespaces", "setpriv --bounding-set=-all --inh-caps=-all"),
    ] {
        let Some((output, took)) = limited(limit, then) else { return };
        let said = text(&output);
        assert!(said.contains(&format!("this machine lacks {what}: ")), "{said}");
        assert!(said.contains(&format!("sysctl -w user.{limit}=")), "{said}");
        assert!(took < Duration::from_secs(1), "it took {took:?}");
        let list = Command::new(PORTOLAN).args(["lab", "list"]).output().expect("running portolan");
        assert!(!text(&list).contains("limited"), "{}", text(&list));
    }
}

#[test]
fn a_bad_manifest_ends_the_lab_with_kubectls_words() {
    let dir = tempfile::tempdir().expect("a directory");
    let up = |manifest: &str| {
        let file = dir.path().join("bad.yaml");
        std::fs::write(&file, manifest).expect("a file");
        let name = format!("bad-{}", std::process::id());
        let output = Command::new(PORTOLAN)
            .args(["lab", "up", "--nodes", "1", "--detach", "--name", &name, "-f"])
            .arg(&file)
            .output()
            .expect("running portolan");
        let list = Command::new(PORTOLAN).args(["lab", "list"]).output().expect("running portolan");
        assert!(!text(&list).contains(&name), "{}", text(&list));
        output
    };
    let output = up(
        "{kind: Service, apiVersion: v1, metadata: {name: web}, spec: {type: NodePort, ports: [{port: 80, nodePort: 70000}]}}",
    );
    if output.status.code() == Some(3) {
        portolan_sys::trial::skipped(
            "a bad manifest ends the lab with kubectl's words",
            "the machine can't run a lab",
        );
        return;
    }
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output);
    assert!(
        said.contains("The Service \"web\" is invalid: ") && said.contains("spec.ports[0].nodePort: "),
        "{said}"
    );
    // A mistake of form is found before anything is made.
    let said = text(&up("kind: Service\nmetadata: {name: web}\n"));
    assert!(
        said.contains("bad.yaml: apiVersion: required") && !said.contains("machines on one network"),
        "{said}"
    );
}
