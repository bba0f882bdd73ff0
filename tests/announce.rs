//! One node answers for a load balancer's address, and when it falls silent another one does, soon, and never both for long.
//!
//! A witness on the local network asks for the addresses every 50 ms by ARP and NDP, under a hardware address of its own, so
//! that the answers teach the lab's client nothing: what the client learns, it learns as any host does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use portolan_sys::link::Links;
use portolan_sys::packet::{self, ETHERTYPE_ARP, ETHERTYPE_IPV6, PacketSocket};
use serde_json::{Value, json};

use crate::harness::{Lab, block_on, text, until};
use crate::lab::leftovers::status;

const WITNESS: &str = "PORTOLAN_TEST_WITNESS";
const CABLE: &str = "PORTOLAN_TEST_CABLE";

/// The witness asks so often.
const PROBE: Duration = Duration::from_millis(50);
/// Answers of two nodes that lie closer together than this are answers to one question.
const TOGETHER: Duration = Duration::from_millis(110);
/// The aim is under a second; a busy machine of CI gets more time, and what it took is printed.
const TAKE_OVER: Duration = Duration::from_secs(5);
/// Two nodes never answer for longer.
const OVERLAP: Duration = Duration::from_secs(1);
/// However the test ends, roles end.
const LONGEST: Duration = Duration::from_secs(180);

type Mac = [u8; 6];
const WITNESS_MAC: Mac = [0x02, 0x77, 0, 0, 0, 1];
const WITNESS_V4: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 77);
const WITNESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, 0x77);

/// Time since 1970, which two processes count alike.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970")
}

fn arp_question(target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(WITNESS_MAC);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(WITNESS_MAC);
    frame.extend(WITNESS_V4.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame.resize(60, 0);
    frame
}

fn solicitation(target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend(target.octets());
    body.extend([1, 1]); // option: source link-layer address, of 8 bytes
    body.extend(WITNESS_MAC);
    // The pseudo-header of RFC 8200 section 8.1, then the message.
    let mut summed = WITNESS_V6.octets().to_vec();
    summed.extend(group.octets());
    summed.extend((body.len() as u32).to_be_bytes());
    summed.extend([0, 0, 0, 58]);
    summed.extend(&body);
    let mut sum: u32 = summed.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    body[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0xff, a, b, c];
    frame.extend(WITNESS_MAC);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((body.len() as u16).to_be_bytes());
    frame.extend([58, 255]);
    frame.extend(WITNESS_V6.octets());
    frame.extend(group.octets());
    frame.extend(body);
    frame
}

/// Which address a frame claims, and for whom; and whether somebody had asked.
fn claim(frame: &[u8]) -> Option<(IpAddr, Mac, bool)> {
    let asked = frame.get(..6)? == WITNESS_MAC;
    match frame.get(12..14)? {
        [0x08, 0x06] => {
            let sender: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
            Some((Ipv4Addr::from(sender).into(), frame.get(22..28)?.try_into().ok()?, asked))
        }
        [0x86, 0xdd] if *frame.get(20)? == 58 && *frame.get(54)? == 136 => {
            let target: [u8; 16] = frame.get(62..78)?.try_into().ok()?;
            Some((Ipv6Addr::from(target).into(), frame.get(80..86)?.try_into().ok()?, asked))
        }
        _ => None,
    }
}

/// Not a promise but a role: asks, listens and connects, and prints what it sees. Does nothing unless started for it.
#[test]
fn the_witness_role() {
    let Ok(targets) = std::env::var(WITNESS) else { return };
    let targets: Vec<IpAddr> = targets.split(' ').map(|t| t.parse().expect("an address")).collect();
    let tell = |value: Value| {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{value}").and_then(|()| out.flush());
    };
    let micros = |at: Duration| at.as_micros() as u64;
    for target in targets.clone() {
        std::thread::spawn(move || {
            loop {
                let at = now();
                let open = connects(SocketAddr::new(target, 80));
                tell(json!({"at": micros(at), "address": target, "open": open}));
                std::thread::sleep(PROBE);
            }
        });
    }
    std::thread::spawn(move || {
        let link = Links::open().expect("netlink").index("eth0").expect("eth0");
        let arp = PacketSocket::open(link, ETHERTYPE_ARP, &[]).expect("a socket");
        let ndp = PacketSocket::open(link, ETHERTYPE_IPV6, &[]).expect("a socket");
        let mut buffer = [0; 2048];
        let mut next = Instant::now();
        loop {
            if Instant::now() >= next {
                for target in &targets {
                    match target {
                        IpAddr::V4(target) => arp.send(&arp_question(*target)).expect("sent"),
                        IpAddr::V6(target) => ndp.send(&solicitation(*target)).expect("sent"),
                    }
                }
                next = Instant::now() + PROBE;
            }
            let rest = next.saturating_duration_since(Instant::now());
            let _ = packet::wait_readable(&[arp.as_fd(), ndp.as_fd()], rest);
            for socket in [&arp, &ndp] {
                while let Ok(Some(frame)) = socket.receive(&mut buffer) {
                    if let Some((address, mac, asked)) = claim(frame)
                        && targets.contains(&address)
                    {
                        tell(json!({"at": micros(now()), "address": address, "mac": mac, "asked": asked}));
                    }
                }
            }
        }
    });
    // The end of standard input ends the role: also when the test that wants it dies.
    std::thread::spawn(|| {
        std::thread::sleep(LONGEST);
        std::process::exit(1);
    });
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(0);
}

fn connects(to: SocketAddr) -> bool {
    let limit = Duration::from_millis(250);
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&to, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

/// Not a promise but a role: pulls a machine's cable out of the lab's switch, or plugs it in again. Does nothing unless the
/// binary was started for it.
#[test]
fn the_cables_role() {
    let Ok(role) = std::env::var(CABLE) else { return };
    let words: Vec<&str> = role.split(' ').collect();
    let [machine, way, dir] = words[..] else { panic!("{role}") };
    let lan = std::fs::File::open(Path::new(dir).join("netns/lan")).expect("the local network");
    let mut links = Links::open_in(lan.as_fd()).expect("its links");
    let port = links.index(machine).expect("the machine's port");
    links.set_up(port, way == "in").expect("set");
}

fn role(lab: &Lab, place: &str, variable: &str, value: &str, test: &str) -> Command {
    let mut command = lab.at(place);
    command.arg("env").arg(format!("{variable}={value}"));
    command.arg(std::env::current_exe().expect("the test binary's path"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command
}

/// A line of the witness.
#[derive(Clone, Debug)]
struct Seen {
    at: Duration,
    address: IpAddr,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    /// This hardware address answered a question for the address.
    Answer(Mac),
    /// It said so unasked.
    Unasked(Mac),
    /// A connection was answered, or not.
    Connection(bool),
}

/// A process that watches the local network.
struct Witness {
    child: Child,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Witness {
    fn start(lab: &Lab, targets: &[IpAddr]) -> Witness {
        let list: Vec<String> = targets.iter().map(IpAddr::to_string).collect();
        let mut command = role(lab, "client", WITNESS, &list.join(" "), "announce::the_witness_role");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the witness");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (out, into) = (child.stdout.take().expect("its output"), seen.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let json = line.find('{').and_then(|at| serde_json::from_str(&line[at..]).ok());
                into.lock().expect("nobody panics").extend(json.and_then(|value| read(&value)));
            }
        });
        Witness { child, seen }
    }

    fn since(&self, from: Duration, address: IpAddr) -> Vec<Seen> {
        let seen = self.seen.lock().expect("nobody panics");
        seen.iter().filter(|s| s.at >= from && s.address == address).cloned().collect()
    }

    /// Who answered since then, without repetitions.
    fn answering(&self, from: Duration, address: IpAddr) -> Vec<Mac> {
        let mut macs: Vec<Mac> = self
            .since(from, address)
            .iter()
            .filter_map(|s| if let What::Answer(mac) = s.what { Some(mac) } else { None })
            .collect();
        macs.sort();
        macs.dedup();
        macs
    }

    /// The one that answers, once there has been no other for a second.
    async fn only(&self, address: IpAddr) -> Mac {
        until(&format!("one node to answer for {address}"), async || {
            let second = now() - Duration::from_secs(1);
            let answers =
                self.since(second, address).iter().filter(|s| matches!(s.what, What::Answer(_))).count();
            match self.answering(second, address)[..] {
                [mac] if answers >= 10 => Ok(mac),
                ref macs => Err(format!("{answers} answers of {macs:x?}")),
            }
        })
        .await
    }

    /// The first thing seen since then that is as wanted, and how long it took.
    async fn first(
        &self,
        what: &str,
        from: Duration,
        address: IpAddr,
        wanted: impl Fn(What) -> bool,
    ) -> (Seen, Duration) {
        let first = until(&format!("{address}: {what}"), async || {
            self.since(from, address)
                .into_iter()
                .find(|s| wanted(s.what))
                .ok_or_else(|| "not seen".to_owned())
        })
        .await;
        let took = first.at - from;
        (first, took)
    }

    /// The longest time for which two answered.
    fn overlap(&self, from: Duration, address: IpAddr) -> Duration {
        let answers = self.since(from, address);
        let answers = answers
            .iter()
            .filter_map(|s| if let What::Answer(mac) = s.what { Some((s.at, mac)) } else { None });
        longest_overlap(&answers.collect::<Vec<_>>())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn read(value: &Value) -> Option<Seen> {
    let what = match value["open"].as_bool() {
        Some(open) => What::Connection(open),
        None => {
            let mac: Mac = serde_json::from_value(value["mac"].clone()).ok()?;
            if value["asked"].as_bool()? { What::Answer(mac) } else { What::Unasked(mac) }
        }
    };
    let at = Duration::from_micros(value["at"].as_u64()?);
    Some(Seen { at, address: value["address"].as_str()?.parse().ok()?, what })
}

/// The longest time from when two answer the same questions until they no longer do.
fn longest_overlap(answers: &[(Duration, Mac)]) -> Duration {
    let mut longest = Duration::ZERO;
    let mut run: Option<(Duration, Duration)> = None;
    for (n, (at, mac)) in answers.iter().enumerate() {
        let other =
            answers[..n].iter().rev().take_while(|(t, _)| *at - *t <= TOGETHER).find(|(_, m)| m != mac);
        let Some((other, _)) = other else { continue };
        let (began, end) = run.get_or_insert((*other, *at));
        if *at - *end > TOGETHER {
            *began = *other;
        }
        *end = *at;
        longest = longest.max(*end - *began);
    }
    longest
}

#[test]
fn an_overlap_is_as_long_as_two_answer() {
    let (a, b) = ([1; 6], [2; 6]);
    let at = |ms: u64, mac: Mac| (Duration::from_millis(ms), mac);
    let alone: Vec<_> = (0..20).map(|n| at(50 * n, a)).collect();
    assert_eq!(longest_overlap(&alone), Duration::ZERO);
    let later = [at(0, a), at(50, a), at(1000, b), at(1050, b)];
    assert_eq!(longest_overlap(&later), Duration::ZERO);
    let both: Vec<_> = (0..40).flat_map(|n| [at(50 * n, a), at(50 * n + 1, b)]).collect();
    assert_eq!(longest_overlap(&both), Duration::from_millis(1951));
}

/// What the lab's client has in its table of neighbours for an IPv4 address.
fn cached(lab: &Lab, address: IpAddr) -> Option<Mac> {
    let output = lab.run_at("client", &["cat", "/proc/net/arp"]);
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = table.lines().find(|l| l.split_whitespace().next() == Some(&address.to_string()))?;
    let bytes = line.split_whitespace().nth(3)?.split(':').map(|b| u8::from_str_radix(b, 16));
    bytes.collect::<Result<Vec<u8>, _>>().ok()?.try_into().ok()
}

struct Nodes {
    lab: Lab,
    dir: String,
    macs: Vec<(Mac, String)>,
}

impl Nodes {
    fn named(&self, mac: Mac) -> &str {
        let found = self.macs.iter().find(|(m, _)| *m == mac);
        &found.unwrap_or_else(|| panic!("{mac:x?} is no node's")).1
    }

    fn signal(&self, node: &str, signal: &str) {
        let state = status(&self.lab.name);
        let processes = state["processes"].as_array().expect("a list");
        let process = processes.iter().find(|p| p["machine"] == node).expect("the node's process");
        let script = format!("kill -{signal} {}", process["pid"]);
        let output = self.lab.run_at("client", &["sh", "-c", &script]);
        assert!(output.status.success(), "{}", text(&output));
    }

    fn cable(&self, node: &str, way: &str) {
        let value = format!("{node} {way} {}", self.dir);
        let output =
            role(&self.lab, "server", CABLE, &value, "announce::the_cables_role").output().expect("the role");
        assert!(output.status.success(), "{}", text(&output));
    }
}

async fn addresses(client: &kube::Client) -> Vec<IpAddr> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    until("addresses of the load balancer", async || {
        let service = services.get("hostname-load-balancer").await.map_err(|e| e.to_string())?;
        let ingress =
            service.status.and_then(|s| s.load_balancer).and_then(|l| l.ingress).unwrap_or_default();
        let addresses: Vec<IpAddr> = ingress.iter().filter_map(|i| i.ip.as_deref()?.parse().ok()).collect();
        if addresses.len() == 2 { Ok(addresses) } else { Err(format!("{addresses:?}")) }
    })
    .await
}

/// Ways for a node to fall silent, and back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Its process is killed; the lab starts another one.
    Killed,
    /// Its process stands still; the kernel forwards, nobody answers.
    Stopped,
    /// Its process lives; nobody hears it.
    Cut,
}

/// One fault of the node that answers for an address, from its beginning until all is well again.
async fn suffer(nodes: &Nodes, witness: &Witness, address: IpAddr, fault: Fault) {
    let before = witness.only(address).await;
    let victim = nodes.named(before).to_owned();
    witness.first("a connection", now(), address, |w| w == What::Connection(true)).await;
    if address.is_ipv4() {
        assert_eq!(cached(&nodes.lab, address), Some(before), "the client's neighbour");
    }
    let from = now();
    match fault {
        Fault::Killed => nodes.signal(&victim, "KILL"),
        Fault::Stopped => nodes.signal(&victim, "STOP"),
        Fault::Cut => nodes.cable(&victim, "out"),
    }
    let silent = now();
    // A killed node may be back before anybody has missed it.
    let other = |w: What| matches!(w, What::Answer(mac) if fault == Fault::Killed || mac != before);
    let (answer, took) = witness.first("an answer of another node", silent, address, other).await;
    let What::Answer(after) = answer.what else { unreachable!("an answer was asked for") };
    let (_, connected) =
        witness.first("a connection", silent, address, |w| w == What::Connection(true)).await;
    println!(
        "{fault:?} {victim}: {address} answered by {} after {} ms; a client that knew the old one connects after {} ms",
        nodes.named(after),
        took.as_millis(),
        connected.as_millis(),
    );
    assert!(took < TAKE_OVER, "{fault:?}: {took:?}");
    assert!(connected < TAKE_OVER, "{fault:?}: {connected:?}");
    if fault != Fault::Killed && address.is_ipv4() {
        until("the client's neighbour to be the new one", async || match cached(&nodes.lab, address) {
            Some(mac) if mac != before => Ok(()),
            other => Err(format!("{other:x?}")),
        })
        .await;
    }
    // Only one, before the fault is mended too.
    let then = witness.only(address).await;
    assert!(fault == Fault::Killed || then != before, "{victim} answers for {address} still");
    let mended = now();
    match fault {
        Fault::Killed => {}
        Fault::Stopped => nodes.signal(&victim, "CONT"),
        Fault::Cut => nodes.cable(&victim, "in"),
    }
    // Who announces is computed alike everywhere: the old one takes its address back.
    let mended = if fault == Fault::Killed { silent } else { mended };
    let (_, back) =
        witness.first("its first announcer", mended, address, |w| w == What::Answer(before)).await;
    assert_eq!(witness.only(address).await, before);
    witness.first("a connection", now(), address, |w| w == What::Connection(true)).await;
    let overlap = witness.overlap(from, address);
    if overlap > Duration::from_millis(250) {
        // Whoever reads this wants to know who said what when.
        for seen in witness.since(from, address) {
            println!("    {:>6} ms {:x?}", (seen.at - from).as_millis(), seen.what);
        }
        println!("    mended at {} ms", (mended - from).as_millis());
    }
    println!(
        "{fault:?} {victim}: {address} back after {} ms; two answered for at most {} ms",
        back.as_millis(),
        overlap.as_millis()
    );
    assert!(overlap < OVERLAP, "{fault:?}: two answered for {overlap:?}");
    if address.is_ipv4() {
        until("the client's neighbour to be the one that answers", async || {
            match cached(&nodes.lab, address) {
                Some(mac) if mac == before => Ok(()),
                other => Err(format!("{other:x?}")),
            }
        })
        .await;
    }
}

#[test]
fn when_an_announcer_falls_silent_another_one_answers_and_never_both_for_long() {
    let promise = "when an announcer falls silent another one answers";
    let Some(lab) = Lab::up_alone(promise, "announce", &["--nodes", "3", "-f", "examples/"]) else { return };
    let state = status(&lab.name);
    let machines = state["topology"]["nodes"].as_array().expect("nodes");
    let macs = machines.iter().map(|m| {
        let mac = serde_json::from_value(m["mac"].clone()).expect("a hardware address");
        (mac, m["name"].as_str().expect("a name").to_owned())
    });
    let dir = lab.kubeconfig().parent().expect("the lab's directory").display().to_string();
    let nodes = Nodes { macs: macs.collect(), dir, lab };
    block_on(async {
        let client = nodes.lab.client().await;
        let addresses = addresses(&client).await;
        let witness = Witness::start(&nodes.lab, &addresses);
        for fault in [Fault::Killed, Fault::Stopped, Fault::Cut] {
            for address in &addresses {
                suffer(&nodes, &witness, *address, fault).await;
            }
        }
    });
}
