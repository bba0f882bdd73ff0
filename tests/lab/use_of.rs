//! A lab in use: commands on its machines, ports on this machine, what its verbs show.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use super::leftovers::status;
use crate::harness::{Lab, text};

#[test]
fn a_command_runs_on_the_machine_named_with_its_status_input_and_output() {
    let promise = "a command runs on the machine named with its status, input and output";
    let Some(lab) = Lab::up(promise, "exec", &["--nodes", "2"]) else { return };
    assert_eq!(lab.run_at("client", &["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(lab.run_at("client", &["sh", "-c", "kill -9 $$"]).status.code(), Some(128 + 9));
    assert_eq!(lab.run_at("client", &["/no/such/program"]).status.code(), Some(127));
    let out = |place, program: &[&str]| {
        let output = lab.run_at(place, program);
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(out("node-2", &["cat", "/proc/sys/kernel/hostname"]), "node-2\n");
    assert!(out("node-2", &["cat", "/proc/net/fib_trie"]).contains("10.80.0.12"));
    assert!(out("client", &["cat", "/proc/1/cmdline"]).contains("__lab-init"), "processes are the lab's");
    assert_ne!(lab.run_at("node-9", &["true"]).status.code(), Some(0));

    let mut child =
        lab.at("client").arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("exec");
    child.stdin.take().expect("its input").write_all(b"through a pipe").expect("written");
    let output = child.wait_with_output().expect("its output");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "through a pipe");
}

fn get(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn ports_are_published_on_this_machine_and_nowhere_else() {
    let promise = "ports are published on this machine and nowhere else";
    // A port that was free a moment ago, and one that is not.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let publish = format!("{free}:30163");
    let more = ["--nodes", "2", "-f", "examples", "--publish", &publish];
    let Some(lab) = Lab::up(promise, "publish", &more) else { return };
    let answer = get(free).expect("an answer");
    assert!(answer.contains("hostname: echo-hostname-"), "{answer}");
    // The far side of the connection is the lab's client, by way of a node.
    assert!(answer.contains("peer: 10.80.0."), "{answer}");

    let state = status(&lab.name);
    let published = state["published"].as_array().expect("a list");
    let datagrams = published
        .iter()
        .find(|p| p["protocol"] == "UDP" && p["problem"].is_null())
        .and_then(|p| p["hostPort"].as_u64())
        .expect("a UDP NodePort");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    socket.connect(("127.0.0.1", datagrams as u16)).expect("connected");
    socket.send(b"?").expect("sent");
    let mut heard = [0; 512];
    let length = socket.recv(&mut heard).expect("an answer");
    assert!(heard[..length].starts_with(b"echo-hostname-"));

    // Nothing but loopback listens.
    let mine: Vec<u16> = published.iter().filter_map(|p| p["hostPort"].as_u64()).map(|p| p as u16).collect();
    let elsewhere = std::fs::read_to_string("/proc/net/tcp").expect("sockets");
    for line in elsewhere.lines().skip(1) {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        let Some((address, port)) = local.split_once(':') else { continue };
        let listens = state == "0A" && u16::from_str_radix(port, 16).is_ok_and(|p| mine.contains(&p));
        assert!(!listens || address == "0100007F", "{line}");
    }
}

#[test]
fn a_published_port_that_is_taken_is_an_error_and_a_node_port_that_is_taken_is_told() {
    let promise = "a port that is taken is told";
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address: SocketAddr = taken.local_addr().expect("its address");
    let publish = format!("{}:30163", address.port());
    let name = format!("taken-{}", std::process::id());
    let output = std::process::Command::new(crate::harness::PORTOLAN)
        .args(["lab", "up", "--nodes", "1", "--detach", "--name", &name, "--publish", &publish])
        .output()
        .expect("running portolan");
    if output.status.code() == Some(3) {
        portolan_sys::trial::skipped(promise, "the machine can't run a lab");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains(&format!("--publish: listening on {address}")), "{}", text(&output));

    // Taken by us, or by somebody else before.
    let _taken = TcpListener::bind("127.0.0.1:31907");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("service.yaml");
    let service = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken"}, "spec":
        {"type": "NodePort", "ports": [{"port": 80, "nodePort": 31907}]}}"#;
    std::fs::write(&file, service).expect("a file");
    let output = std::process::Command::new(crate::harness::PORTOLAN)
        .args(["lab", "up", "--nodes", "1", "--detach", "--name", &name, "-f"])
        .arg(&file)
        .output()
        .expect("running portolan");
    let lab = Lab::named(name);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let told = "NodePort 31907 of default/taken is not published here: 127.0.0.1:31907 is in use";
    assert!(text(&output).contains(told), "{}", text(&output));
    drop(lab);
}
