//! Clients that open new connections at a place in a lab, without a retry, and count what happened.
//!
//! The test binary runs itself there (`portolan lab exec PLACE -- THIS_BINARY`), so that the connections are made by
//! ordinary sockets of an ordinary process in that place.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const ROLE: &str = "PORTOLAN_TEST_LOAD";
/// So many clients at once.
const CLIENTS: usize = 20;
/// A connection that isn't answered in this time has failed.
const LIMIT: Duration = Duration::from_secs(1);
/// Each client waits so long between two connections: about 200 a second for each target, so that neither the client's ports
/// nor the masquerade's run out in the course of a test.
const PAUSE: Duration = Duration::from_millis(100);
/// However the test ends, clients end.
const LONGEST: Duration = Duration::from_secs(120);

/// Clients at work.
pub struct Load {
    child: Child,
    what: String,
}

/// What the clients saw.
#[derive(Debug)]
pub struct Outcome {
    pub what: String,
    pub attempts: u64,
    pub failures: u64,
    pub by_host: BTreeMap<String, u64>,
    pub reasons: Vec<String>,
}

impl Load {
    /// Starts clients of `protocol` (`tcp` or `udp`) to `target`, by a command that runs its arguments at some place.
    pub fn start(mut at: Command, protocol: &str, target: SocketAddr) -> Load {
        let this = std::env::current_exe().expect("the test binary's path");
        at.args(["env", &format!("{ROLE}={protocol} {target}")]).arg(this);
        at.args(["--exact", "load::the_clients_role", "--nocapture", "--test-threads=1"]);
        let child = at.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the clients' process");
        Load { child, what: format!("{protocol} {target}") }
    }

    /// Stops the clients and says what they saw.
    pub fn stop(mut self) -> Outcome {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output().expect("the clients' output");
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find_map(|l| Some(&l[l.find("{\"attempts\"")?..]));
        let line = line.unwrap_or_else(|| panic!("{}: the clients said nothing: {text}", self.what));
        let value: Value = serde_json::from_str(line).expect("the clients' JSON");
        let by_host = value["by_host"].as_object().expect("hosts").iter();
        Outcome {
            what: self.what,
            attempts: value["attempts"].as_u64().expect("a number"),
            failures: value["failures"].as_u64().expect("a number"),
            by_host: by_host.map(|(k, v)| (k.clone(), v.as_u64().expect("a number"))).collect(),
            reasons: value["reasons"].as_array().expect("a list").iter().map(|r| r.to_string()).collect(),
        }
    }
}

/// Not a promise but a role: does nothing unless the binary was started as a client.
#[test]
fn the_clients_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let (protocol, target) = role.split_once(' ').expect("protocol and target");
    let target: SocketAddr = target.parse().expect("an address");
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(Mutex::new(Outcome {
        what: String::new(),
        attempts: 0,
        failures: 0,
        by_host: BTreeMap::new(),
        reasons: Vec::new(),
    }));
    let ask = if protocol == "udp" { ask_udp } else { ask_tcp };
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (stop, seen) = (stop.clone(), seen.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) && began.elapsed() < LONGEST {
                    let answer = ask(target);
                    let mut seen = seen.lock().expect("no client panics");
                    seen.attempts += 1;
                    match answer {
                        Ok(host) => *seen.by_host.entry(host).or_default() += 1,
                        Err(why) => {
                            seen.failures += 1;
                            if seen.reasons.len() < 10 {
                                let at = began.elapsed().as_millis();
                                seen.reasons.push(format!("after {at} ms: {why}"));
                            }
                        }
                    }
                    drop(seen);
                    std::thread::sleep(PAUSE);
                }
            })
        })
        .collect();
    // The end of standard input ends the load: also when the test that wants it dies.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("no client panics");
    }
    let seen = seen.lock().expect("no client panics");
    let report = json!({"attempts": seen.attempts, "failures": seen.failures,
        "by_host": seen.by_host, "reasons": seen.reasons});
    println!("\n{report}");
}

fn ask_tcp(target: SocketAddr) -> Result<String, String> {
    let said = |step: &'static str| move |e: std::io::Error| format!("{step}: {e}");
    let mut stream = TcpStream::connect_timeout(&target, LIMIT).map_err(said("connect"))?;
    stream.set_read_timeout(Some(LIMIT)).map_err(said("timeout"))?;
    stream
        .write_all(format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n").as_bytes())
        .map_err(said("write"))?;
    // The client closes first, as most do: the port that waits for stray segments (TIME_WAIT) is then its own, and no
    // later connection that a masquerade gives the same port meets it in the pod.
    let mut heard = Vec::new();
    let (head, body) = loop {
        if let Some(answer) = whole(&heard) {
            break answer;
        }
        let mut bytes = [0; 2048];
        match stream.read(&mut bytes).map_err(said("read"))? {
            0 => return Err(format!("half an answer: {:?}", String::from_utf8_lossy(&heard))),
            n => heard.extend(&bytes[..n]),
        }
    };
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("answered {:?}", head.lines().next()));
    }
    host(&body)
}

/// Head and body of an HTTP answer, once all of it was heard.
fn whole(heard: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(heard);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok())?;
    (body.len() >= length).then(|| (head.to_owned(), body.to_owned()))
}

fn ask_udp(target: SocketAddr) -> Result<String, String> {
    let said = |step: &'static str| move |e: std::io::Error| format!("{step}: {e}");
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).map_err(said("bind"))?;
    socket.connect(target).map_err(said("connect"))?;
    socket.set_read_timeout(Some(LIMIT)).map_err(said("timeout"))?;
    socket.send(b"who is there?").map_err(said("send"))?;
    let mut bytes = [0; 2048];
    let n = socket.recv(&mut bytes).map_err(said("receive"))?;
    host(&String::from_utf8_lossy(&bytes[..n]))
}

/// The first word of an answer that isn't a label: the backend's hostname.
fn host(text: &str) -> Result<String, String> {
    let first = text.lines().next().unwrap_or_default();
    let word = first.split_whitespace().find(|w| !w.ends_with(':'));
    word.map(str::to_owned).ok_or_else(|| format!("an answer without a hostname: {text:?}"))
}
