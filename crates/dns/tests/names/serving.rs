//! A server with sockets on the loopback address: UDP and TCP, upstreams, the end.

use std::net::SocketAddr;
use std::time::Duration;

use portolan_dns::message::{Edns, Packet, Query, ask, head, read};
use portolan_dns::name::Name;
use portolan_dns::zone::Options;
use portolan_dns::{Config, Server};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::fixture::*;

/// The machine may be slow.
const PATIENCE: Duration = Duration::from_secs(30);

struct Running {
    at: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn start(forward: Vec<SocketAddr>, fill: impl FnOnce(&mut portolan_dns::zone::Zone)) -> Running {
    let config = Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        forward,
        zone: Options::new(Name::parse("cluster.local").unwrap()),
        sockets: 2,
    };
    let server = Server::bind(config).expect("ports");
    fill(&mut server.zone().write());
    let (at, stop) = (server.addresses().next().expect("one"), CancellationToken::new());
    let task = tokio::spawn(server.run(stop.clone()));
    Running { at, stop, task }
}

fn usual_zone(zone: &mut portolan_dns::zone::Zone) {
    *zone = crate::fixture::zone(&usual());
}

async fn over_udp(at: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(at).await.unwrap();
    socket.send(packet).await.unwrap();
    let mut buffer = vec![0; 65536];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("in time").unwrap();
    buffer.truncate(length);
    buffer
}

async fn over_tcp(stream: &mut TcpStream, packet: &[u8]) -> Vec<u8> {
    stream.write_u16(packet.len() as u16).await.unwrap();
    stream.write_all(packet).await.unwrap();
    let length = timeout(PATIENCE, stream.read_u16()).await.expect("in time").unwrap();
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

/// An upstream that answers every question with this, and counts them.
async fn upstream(answer: impl Fn(&Query, bool) -> Vec<u8> + Send + Sync + 'static) -> (SocketAddr, Count) {
    let answer = std::sync::Arc::new(answer);
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(at).await.unwrap();
    let count = Count::default();
    let counted = count.clone();
    let by_tcp = answer.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            let Packet::Query(query) = read(&buffer[..length]) else { continue };
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            udp.send_to(&answer(&query, false), from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut packet = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut packet).await.unwrap();
            let Packet::Query(query) = read(&packet) else { continue };
            let answer = by_tcp(&query, true);
            stream.write_u16(answer.len() as u16).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    (at, count)
}

type Count = std::sync::Arc<std::sync::atomic::AtomicUsize>;

/// What an upstream says: so many addresses; cut off if it is over UDP and more than ten.
fn addresses(query: &Query, tcp: bool, many: u8) -> Vec<u8> {
    use portolan_dns::message::{Composer, Data, Rcode, Section};
    let mut out = Vec::new();
    let mut composer = Composer::answer(&mut out, query, if tcp { 65535 } else { 512 });
    for number in 0..many {
        composer.record(Section::Answer, &query.name, 60, &Data::A([192, 0, 2, number].into()));
    }
    composer.finish(Rcode::NoError, false, true);
    out
}

#[tokio::test]
async fn the_cluster_is_answered_over_udp_and_tcp() {
    let server = start(Vec::new(), usual_zone);
    let packet = ask(&query("web.default.svc.cluster.local", "A"), 4711);
    let answer = over_udp(server.at, &packet).await;
    assert_eq!(text(&answer), "NOERROR\nweb.default.svc.cluster.local. 5 A 10.96.0.80");
    assert_eq!(head(&answer).unwrap().id, 4711);
    let mut stream = TcpStream::connect(server.at).await.unwrap();
    // More than one question on a connection.
    for _ in 0..2 {
        assert_eq!(text(&over_tcp(&mut stream, &packet).await), text(&answer));
    }
    // Datagrams of every kind are survived, and answered with what they are.
    assert_eq!(head(&over_udp(server.at, &packet[..20]).await).unwrap().rcode, 1);
    let mut other = packet.clone();
    other[2] = 0x28; // an update
    assert_eq!(head(&over_udp(server.at, &other).await).unwrap().rcode, 4);
}

#[tokio::test]
async fn an_answer_too_long_for_a_datagram_comes_whole_over_tcp() {
    let server = start(Vec::new(), |zone| {
        usual_zone(zone);
        let endpoints: Vec<_> = (0..200).map(|n| json!({"addresses": [format!("10.244.2.{n}")]})).collect();
        put(zone, slice("db", "many", endpoints.into(), json!([])));
    });
    let small = Query { edns: None, ..query("db.default.svc.cluster.local", "A") };
    let answer = over_udp(server.at, &ask(&small, 1)).await;
    assert!(head(&answer).unwrap().truncated && answer.len() <= 512);
    let large = Query { edns: Some(Edns { size: 65535, version: 0, dnssec_ok: false }), ..small };
    assert!(over_udp(server.at, &ask(&large, 1)).await.len() <= 1232);
    let mut stream = TcpStream::connect(server.at).await.unwrap();
    let whole = over_tcp(&mut stream, &ask(&small, 1)).await;
    assert!(!head(&whole).unwrap().truncated);
    assert_eq!(sections(&whole).len(), 202);
}

#[tokio::test]
async fn others_names_are_asked_of_upstreams_and_kept() {
    let (at, count) = upstream(|query, tcp| addresses(query, tcp, 2)).await;
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // The first is nobody; the next one is asked, and then stays the first.
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let server = start(vec![nobody, at], usual_zone);
    drop(silent);
    for name in ["www.example.com", "WWW.example.com"] {
        let answer = over_udp(server.at, &ask(&query(name, "A"), 99)).await;
        assert!(
            text(&answer).starts_with(&format!("NOERROR\n{name}. 60 A 192.0.2.0\n")),
            "{}",
            text(&answer)
        );
        assert_eq!(head(&answer).unwrap().id, 99);
    }
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 1, "the second was known");
}

#[tokio::test]
async fn what_an_upstream_cut_is_asked_again_over_tcp() {
    let (at, _) = upstream(|query, tcp| addresses(query, tcp, 100)).await;
    let server = start(vec![at], usual_zone);
    let packet = ask(&query("many.example.com", "A"), 5);
    let mut stream = TcpStream::connect(server.at).await.unwrap();
    let whole = over_tcp(&mut stream, &packet).await;
    assert_eq!(text(&whole).lines().count(), 101);
    let cut = over_udp(server.at, &packet).await;
    assert!(head(&cut).unwrap().truncated && cut.len() <= 1232);
}

#[tokio::test]
async fn an_alias_ends_with_what_upstreams_say() {
    let (at, _) = upstream(|query, tcp| addresses(query, tcp, 1)).await;
    let server = start(vec![at], usual_zone);
    let answer = over_udp(server.at, &ask(&query("alias.default.svc.cluster.local", "A"), 5)).await;
    assert_eq!(
        text(&answer),
        "NOERROR\nalias.default.svc.cluster.local. 5 CNAME foo.example.com.\nfoo.example.com. 5 A 192.0.2.0"
    );
}

#[tokio::test]
async fn where_no_upstream_answers_it_is_servfail() {
    let server = start(vec![SocketAddr::from(([127, 0, 0, 1], 1))], usual_zone);
    let answer = over_udp(server.at, &ask(&query("www.example.com", "A"), 5)).await;
    assert_eq!(text(&answer), "SERVFAIL");
}

#[tokio::test]
async fn an_answer_to_another_question_is_not_believed() {
    let (at, _) = upstream(|query, tcp| {
        let mut answer = addresses(query, tcp, 1);
        answer[13] ^= 1; // another name
        answer
    })
    .await;
    let server = start(vec![at], usual_zone);
    let answer = over_udp(server.at, &ask(&query("www.example.com", "A"), 5)).await;
    assert_eq!(text(&answer), "SERVFAIL");
}

#[tokio::test]
async fn the_end_leaves_nothing_unanswered() {
    let server = start(Vec::new(), usual_zone);
    let mut idle = TcpStream::connect(server.at).await.unwrap();
    let packet = ask(&query("web.default.svc.cluster.local", "A"), 1);
    over_tcp(&mut idle, &packet).await;
    server.stop.cancel();
    timeout(PATIENCE, server.task).await.expect("in time").expect("no panic");
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0, "the connection is closed");
    // The port is free at once.
    let again = UdpSocket::bind(server.at).await;
    assert!(again.is_ok(), "{again:?}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let zone = Options::new(Name::parse("cluster.local").unwrap());
    let config = Config { listen: vec![at], forward: Vec::new(), zone, sockets: 1 };
    let error = Server::bind(config).expect_err("taken").to_string();
    assert!(error.starts_with(&at.to_string()), "{error}");
}
