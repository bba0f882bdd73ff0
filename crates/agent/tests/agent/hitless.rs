//! Connections live through whatever befalls the agent or its tables: a thousand streams and two hundred UDP flows.

use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portolan_sys::link::{LinkEnd, Links, Route};
use portolan_sys::{namespace, trial};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use crate::api::FakeApi;
use crate::forwarding::{node, service, slice};
use crate::kernel::start_with;

const ROLE: &str = "PORTOLAN_TEST_AGENT";
const STREAMS: usize = 1000;
const FLOWS: usize = 200;
/// How often each asks.
const EVERY: Duration = Duration::from_millis(200);
/// A stream that waits longer is broken.
const LIMIT: Duration = Duration::from_secs(10);
pub const PODS: [&str; 2] = ["10.1.0.5", "10.1.0.6"];
pub const CLUSTER_IP: &str = "10.96.0.1";
const NODE: &str = "192.0.2.10";
const NODE_PORT: u16 = 30_080;
const PORT: u16 = 80;

pub fn api() -> FakeApi {
    let api = FakeApi::default();
    api.put("nodes", node());
    for (name, protocol) in [("web", "TCP"), ("dns", "UDP")] {
        let mut service = service(name, CLUSTER_IP);
        service["spec"]["ports"][0]["protocol"] = json!(protocol);
        service["spec"]["ports"][0]["nodePort"] = json!(NODE_PORT);
        let mut slice = slice(&format!("{name}-1"), name, &PODS);
        slice["ports"][0]["protocol"] = json!(protocol);
        api.put("services", service);
        api.put("endpointslices", slice);
    }
    api
}

/// Not a promise but a role: does nothing unless the binary was started as an agent. Ends when its input does.
#[test]
fn the_agents_role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let ended = CancellationToken::new();
    let told = ended.clone();
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        told.cancel();
    });
    if role != "1" {
        return runtime.block_on(crate::take_over::play(&role, ended));
    }
    runtime.block_on(async {
        let mut agent = start_with(&api(), Duration::from_secs(3600));
        agent.commits(0).await;
        println!("\nsynced");
        let stop = agent.shutdown.clone();
        let mut repairs = 0;
        loop {
            tokio::select! {
                () = ended.cancelled() => break,
                status = agent.status.wait_for(|s| s.repairs > repairs) => {
                    let status = status.expect("it runs");
                    repairs = status.repairs;
                    println!("repaired: {}", status.last_disturbance.as_ref().expect("a cause").text);
                }
            }
        }
        stop.cancel();
        agent.task.await.expect("no panic").expect("a clean end");
    });
}

/// An agent in a process of its own.
pub struct Agent {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Agent {
    /// Starts one in a namespace and waits until it forwards.
    fn start(host: &OwnedFd) -> Agent {
        let agent = Agent::play(host, "1");
        agent.says("synced");
        agent
    }

    /// Starts one in a namespace in a role.
    pub fn play(host: &OwnedFd, role: &str) -> Agent {
        let program = std::env::current_exe().expect("this program");
        let mut child = namespace::in_netns(host.as_fd(), || {
            Command::new(program)
                .args(["hitless::the_agents_role", "--exact", "--nocapture"])
                .env(ROLE, role)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
        })
        .expect("the namespace can be entered")
        .expect("an agent");
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Agent { input: child.stdin.take(), child, lines }
    }

    /// Waits until it says something that contains this.
    pub fn says(&self, what: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(30)).expect("the agent speaks");
            if line.contains(what) {
                return line;
            }
        }
    }

    pub fn stop(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().expect("reaped").success());
    }

    fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }
}

/// A node, its pods, a pod that is a client, and a client outside; each a network namespace.
pub struct World {
    pub node: OwnedFd,
    pods: OwnedFd,
    pub inside: OwnedFd,
    outside: OwnedFd,
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

impl World {
    pub fn new() -> io::Result<World> {
        let new = namespace::new_netns;
        let world = World { node: new()?, pods: new()?, inside: new()?, outside: new()? };
        let mut here = Links::open_in(world.node.as_fd())?;
        here.set_up(1, true)?;
        for (link, host, gateway, length, addresses) in [
            ("pods", &world.pods, "10.1.0.1", 25, &PODS[..]),
            ("inside", &world.inside, "10.1.0.129", 25, &["10.1.0.200"]),
            ("out", &world.outside, NODE, 24, &["192.0.2.100"]),
        ] {
            here.add_veth(&LinkEnd::named(link), &LinkEnd::named("eth0").in_netns(host.as_fd()))?;
            let outer = here.index(link)?;
            here.add_address(outer, ip(gateway), length)?;
            here.set_up(outer, true)?;
            let mut there = Links::open_in(host.as_fd())?;
            let inner = there.index("eth0")?;
            for address in addresses {
                there.add_address(inner, ip(address), length)?;
            }
            there.set_up(inner, true)?;
            there.add_route(&Route::default_via(ip(gateway)).on(inner))?;
        }
        let out = here.index("out")?;
        here.add_route(&Route::default_via(ip("192.0.2.100")).on(out))?;
        Ok(world)
    }

    /// Each pod answers each line and each datagram with its address.
    pub async fn serve(&self) -> io::Result<()> {
        for pod in PODS {
            let (tcp, udp) = namespace::in_netns(self.pods.as_fd(), || {
                io::Result::Ok((TcpListener::bind((pod, 8080))?, UdpSocket::bind((pod, 8080))?))
            })??;
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            let (tcp, udp) = (tokio::net::TcpListener::from_std(tcp)?, tokio::net::UdpSocket::from_std(udp)?);
            tokio::spawn(async move {
                while let Ok((stream, _)) = tcp.accept().await {
                    tokio::spawn(async move {
                        let mut stream = tokio::io::BufReader::new(stream);
                        let mut line = String::new();
                        while stream.read_line(&mut line).await.is_ok_and(|n| n > 0) {
                            line.clear();
                            if stream.write_all(format!("{pod}\n").as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    });
                }
            });
            tokio::spawn(async move {
                let mut buffer = [0; 64];
                while let Ok((_, from)) = udp.recv_from(&mut buffer).await {
                    let _ = udp.send_to(pod.as_bytes(), from).await;
                }
            });
        }
        Ok(())
    }

    /// Where the client of a number is, and whom it asks.
    fn client(&self, number: usize) -> (&OwnedFd, SocketAddr) {
        match number % 2 {
            0 => (&self.inside, SocketAddr::new(ip(CLUSTER_IP), PORT)),
            _ => (&self.outside, SocketAddr::new(ip(NODE), NODE_PORT)),
        }
    }
}

/// What the clients have seen.
#[derive(Default)]
pub struct Seen {
    stop: AtomicBool,
    /// How many answers each has had.
    rounds: Vec<AtomicU64>,
    /// The longest wait for an answer, in milliseconds.
    longest: AtomicU64,
    lost: AtomicU64,
    broken: Mutex<Vec<String>>,
    moved: Mutex<Vec<String>>,
}

impl Seen {
    fn answered(&self, number: usize, home: &mut String, by: &str, began: Instant) {
        if home.is_empty() {
            by.clone_into(home);
        } else if home != by {
            self.moved.lock().push(format!("{number}: from {home} to {by}"));
            by.clone_into(home);
        }
        self.longest.fetch_max(began.elapsed().as_millis() as u64, Ordering::Relaxed);
        self.rounds[number].fetch_add(1, Ordering::Relaxed);
    }

    async fn stream(self: Arc<Seen>, number: usize, stream: tokio::net::TcpStream) {
        let mut stream = tokio::io::BufReader::new(stream);
        let mut home = String::new();
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let mut line = String::new();
            let exchange = async {
                stream.write_all(b"who?\n").await?;
                stream.read_line(&mut line).await
            };
            let broken = match tokio::time::timeout(LIMIT, exchange).await {
                Ok(Ok(1..)) => None,
                Ok(Ok(0)) => Some("closed".to_owned()),
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no answer".to_owned()),
            };
            if let Some(how) = broken {
                self.broken.lock().push(format!("stream {number}: {how}"));
                self.rounds[number].store(u64::MAX / 2, Ordering::Relaxed);
                return;
            }
            self.answered(number, &mut home, line.trim(), began);
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn flow(self: Arc<Seen>, number: usize, socket: tokio::net::UdpSocket) {
        let mut home = String::new();
        while !self.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let mut buffer = [0; 64];
            let exchange = async {
                socket.send(b"who?").await?;
                socket.recv(&mut buffer).await
            };
            match tokio::time::timeout(Duration::from_secs(1), exchange).await {
                Ok(Ok(length)) => {
                    let by = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    self.answered(number, &mut home, &by, began);
                }
                // A datagram may be lost, as ever; the flow goes on.
                _ => drop(self.lost.fetch_add(1, Ordering::Relaxed)),
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Waits until everybody has had two more answers, the second of which was asked for after now.
    pub async fn two_rounds(&self) {
        let before: Vec<u64> = self.rounds.iter().map(|r| r.load(Ordering::Relaxed)).collect();
        let behind =
            || self.rounds.iter().zip(&before).filter(|(now, then)| now.load(Ordering::Relaxed) < **then + 2);
        while behind().count() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Gives a table the comment of another build's, in one transaction, as if that had loaded it.
fn of_another_build(host: &OwnedFd) -> bool {
    namespace::in_netns(host.as_fd(), || {
        let Ok(output) = Command::new("nft").args(["list", "table", "ip", "portolan"]).output() else {
            return false;
        };
        let text = String::from_utf8(output.stdout).expect("nft prints text");
        assert!(text.contains("portolan shape "), "{text}");
        let text = format!("delete table ip portolan\n{}", text.replace("portolan shape ", "another shape "));
        let file = std::env::temp_dir().join(format!("portolan-shape-{}", std::process::id()));
        std::fs::write(&file, text).expect("a file");
        let loaded = Command::new("nft").arg("-f").arg(&file).output().expect("nft runs");
        std::fs::remove_file(&file).expect("the file goes");
        assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
        true
    })
    .expect("the namespace can be entered")
}

fn nft(host: &OwnedFd, command: &str) -> bool {
    let output = namespace::in_netns(host.as_fd(), || Command::new("nft").arg(command).output());
    match output.expect("the namespace can be entered") {
        Ok(output) => {
            assert!(output.status.success(), "nft {command}: {}", String::from_utf8_lossy(&output.stderr));
            true
        }
        Err(_) => false,
    }
}

const PROMISE: &str =
    "no connection is reset or moved when the agent is restarted, killed, upgraded or its tables are flushed";

#[test]
fn no_connection_is_reset_or_moved_when_the_agent_is_restarted_killed_upgraded_or_its_tables_are_flushed() {
    if !trial::goes_on(PROMISE) {
        return;
    }
    let world = match World::new() {
        Ok(world) => world,
        Err(error) => return trial::skipped(PROMISE, &format!("network namespaces: {error}")),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(through_it_all(world));
}

/// Everybody who asks, and what they have seen.
pub struct Crowd {
    pub seen: Arc<Seen>,
    clients: Vec<tokio::task::JoinHandle<()>>,
    bad: Vec<String>,
}

impl Crowd {
    /// A thousand streams and two hundred flows, once each has been answered twice.
    pub async fn gather(world: &World) -> Crowd {
        let rounds = (0..STREAMS + FLOWS).map(|_| AtomicU64::new(0)).collect();
        let seen = Arc::new(Seen { rounds, ..Seen::default() });
        let mut clients = Vec::new();
        for number in 0..STREAMS {
            let (host, at) = world.client(number);
            let stream = namespace::in_netns(host.as_fd(), || TcpStream::connect_timeout(&at, LIMIT));
            let stream =
                stream.expect("the namespace can be entered").unwrap_or_else(|e| panic!("to {at}: {e}"));
            stream.set_nonblocking(true).expect("an option");
            let stream = tokio::net::TcpStream::from_std(stream).expect("a stream");
            clients.push(tokio::spawn(seen.clone().stream(number, stream)));
        }
        for number in STREAMS..STREAMS + FLOWS {
            let (host, at) = world.client(number);
            let socket = namespace::in_netns(host.as_fd(), || {
                UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect(at).map(|()| socket))
            });
            let socket = socket.expect("the namespace can be entered").expect("a route");
            socket.set_nonblocking(true).expect("an option");
            let socket = tokio::net::UdpSocket::from_std(socket).expect("a socket");
            clients.push(tokio::spawn(seen.clone().flow(number, socket)));
        }
        seen.two_rounds().await;
        println!(
            "{:<44} {:>6} {:>6} {:>6} {:>12}",
            "WHAT HAPPENED", "RESET", "MOVED", "LOST", "LONGEST WAIT"
        );
        Crowd { seen, clients, bad: Vec::new() }
    }

    /// Begins to count anew.
    pub fn begin(&self) {
        self.seen.longest.store(0, Ordering::Relaxed);
        self.seen.lost.store(0, Ordering::Relaxed);
    }

    /// Waits until everybody was answered after what happened, and prints what it cost.
    pub async fn end(&mut self, what: &str) {
        let seen = &self.seen;
        seen.two_rounds().await;
        let (broken, moved) =
            (std::mem::take(&mut *seen.broken.lock()), std::mem::take(&mut *seen.moved.lock()));
        let wait = Duration::from_millis(seen.longest.load(Ordering::Relaxed));
        let lost = seen.lost.load(Ordering::Relaxed);
        println!("{what:<44} {:>6} {:>6} {lost:>6} {wait:>12.1?}", broken.len(), moved.len());
        self.bad.extend(broken.into_iter().chain(moved).map(|how| format!("{what}: {how}")));
    }

    /// Sends everybody home; none may have been reset or moved.
    pub async fn part(self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("no panic");
        }
        let bad = self.bad;
        assert!(bad.is_empty(), "{} of {}: {:#?}", bad.len(), STREAMS + FLOWS, &bad[..bad.len().min(20)]);
    }
}

async fn through_it_all(world: World) {
    world.serve().await.expect("the pods listen");
    let mut agent = Agent::start(&world.node);
    let mut crowd = Crowd::gather(&world).await;
    let mut skipped = false;
    for what in [
        "nothing",
        "restart",
        "kill -9",
        "upgrade",
        "flush ruleset",
        "delete table ip portolan",
        "flush map ip portolan slots",
    ] {
        crowd.begin();
        match what {
            "nothing" => {}
            "restart" => {
                agent.stop();
                crowd.seen.two_rounds().await;
                agent = Agent::start(&world.node);
            }
            "kill -9" => {
                agent.kill();
                crowd.seen.two_rounds().await;
                agent = Agent::start(&world.node);
            }
            "upgrade" => {
                agent.stop();
                skipped |= !of_another_build(&world.node);
                agent = Agent::start(&world.node);
            }
            command if nft(&world.node, command) => {
                let line = agent.says("repaired: ");
                assert!(line.contains("nft (pid "), "{line}");
            }
            _ => skipped = true,
        }
        crowd.end(what).await;
    }
    crowd.part().await;
    agent.stop();
    if skipped {
        trial::skipped(PROMISE, "no nft, so only the restarts were tried");
    }
}
