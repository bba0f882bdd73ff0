//! `hostPort`, as clients at every place see it: outside, on the node, in another pod, in the pod itself.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use portolan_sys::link::{LinkEnd, Links, Route};
use portolan_sys::namespace::{in_netns, netns_of, new_netns};
use serde_json::{Value, json};

use crate::tests::echo;
use crate::world::{NODE_ADDRESSES, World, client, http, tcp, udp};

/// An echo server behind ports of the node.
fn door(ports: &Value) -> Value {
    let mut spec = echo("echo-abrupt");
    spec["containers"][0]["ports"] = ports.clone();
    spec
}

fn web() -> Value {
    door(&json!([
        {"containerPort": 80, "hostPort": 8080},
        {"containerPort": 53, "hostPort": 5353, "protocol": "UDP"}
    ]))
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Who answers at a port, as a client in the network namespace of a pod sees it; nobody is an error.
async fn from_pod(world: &World, key: &str, at: IpAddr, port: u16) -> std::io::Result<String> {
    let netns = netns_of(world.pid(key) as u32)?;
    client(move || {
        in_netns(netns.as_fd(), || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                // The client's own threads would be elsewhere.
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let connect = tokio::net::TcpStream::connect((at, port));
                let mut stream = tokio::time::timeout(Duration::from_secs(2), connect).await??;
                stream.write_all(b"hello\n").await?;
                stream.shutdown().await?;
                let mut answer = String::new();
                tokio::time::timeout(Duration::from_secs(2), stream.read_to_string(&mut answer)).await??;
                Ok(answer)
            })
        })?
    })
    .await
}

pub async fn a_nodes_port_leads_to_the_pod_that_has_it() {
    let world = World::new().await;
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{switch}"), "1").expect("the node forwards");
    }
    // Somebody outside, on a network of their own with the node.
    let outside = new_netns().expect("a namespace");
    let mut node = Links::open().expect("a netlink socket");
    let peer = LinkEnd::named("eth0").in_netns(outside.as_fd());
    node.add_veth(&LinkEnd::named("out"), &peer).expect("a veth pair");
    let mut there = Links::open_in(outside.as_fd()).expect("a netlink socket");
    let (near, far) = (node.index("out").expect("the link"), there.index("eth0").expect("the link"));
    node.add_address(near, address("198.51.100.1"), 24).expect("an address");
    there.add_address(far, address("198.51.100.2"), 24).expect("an address");
    node.set_up(near, true).expect("it comes up");
    there.set_up(far, true).expect("it comes up");
    there.add_route(&Route::default_via(address("198.51.100.1")).on(far)).expect("a route");

    let key = world.create("door", web());
    let addresses = world.ready(&key).await;
    let other = world.create("other", echo("echo"));
    world.ready(&other).await;
    let at: Vec<IpAddr> = NODE_ADDRESSES.iter().map(|text| address(text)).collect();
    for at in at.iter().copied().chain([address("127.0.0.1"), address("198.51.100.1")]) {
        let body = http(at, 8080, "/some/path").await.expect("the node's port answers");
        assert!(body.starts_with("hostname: door\n"), "{at}: {body}");
        let line = udp(at, 5353).await.expect("over UDP, too");
        assert!(line.starts_with("door "), "{at}: {line}");
        // Its own port alone, its own protocol alone.
        assert!(tcp(at, 5353, "hello").await.is_err(), "{at}");
        assert!(tcp(at, 80, "hello").await.is_err(), "{at}");
    }
    let refused = tcp(address("::1"), 8080, "hello").await.expect_err("nobody is there");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
    // A pod may go by the node, to another and to itself.
    for at in &at {
        for from in [&other, &key] {
            let line = from_pod(&world, from, *at, 8080).await.expect("pods reach the node's port");
            assert!(line.starts_with("door "), "{from} {at}: {line}");
        }
    }
    // From outside the pod sees who asks.
    let seen = in_netns(outside.as_fd(), || {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect("192.0.2.1:8080").expect("a connection");
        stream.write_all(b"hello\n").expect("written");
        stream.shutdown(std::net::Shutdown::Write).expect("closed");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    })
    .expect("in the namespace");
    assert!(seen.starts_with("door 198.51.100.2"), "{seen}");
    assert_eq!(addresses.len(), 2);
}

pub async fn a_nodes_port_outlives_the_nodes_process_and_ends_with_the_pod() {
    let mut world = World::new().await;
    let key = world.create("door", web());
    world.ready(&key).await;
    let at = address(NODE_ADDRESSES[0]);
    // One sender of datagrams, who never learns of any of this.
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect((at, 5353)).expect("connected");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time");
    let ask = || {
        let begun = Instant::now();
        loop {
            let mut answer = [0; 512];
            if socket.send(b"hello").is_ok()
                && let Ok(length) = socket.recv(&mut answer)
            {
                return String::from_utf8_lossy(&answer[..length]).into_owned();
            }
            assert!(begun.elapsed() < Duration::from_secs(15), "somebody answers");
        }
    };
    assert!(ask().starts_with("door "));
    world.kill_agent();
    assert!(http(at, 8080, "/").await.expect("it answers").starts_with("hostname: door\n"));
    world.start_agent();
    // Somebody else's pod with the same port, put here by hand: the first keeps it.
    let second = world.create("second", web());
    world.ready(&second).await;
    assert!(http(at, 8080, "/").await.expect("it answers").starts_with("hostname: door\n"));
    assert!(ask().starts_with("door "));
    // Somebody takes our tables away.
    let flushed = std::process::Command::new("nft").args(["flush", "ruleset"]).status();
    if flushed.is_ok_and(|status| status.success()) {
        let begun = Instant::now();
        while !http(at, 8080, "/").await.is_ok_and(|body| body.starts_with("hostname: door\n")) {
            assert!(begun.elapsed() < Duration::from_secs(15), "the tables are put back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    } else {
        println!("nft is not on this machine: tables are not flushed");
    }
    // The first goes, the second has the port, also for who went on sending.
    world.api.delete(&key, Some(0));
    let begun = Instant::now();
    while !ask().starts_with("second ") {
        assert!(begun.elapsed() < Duration::from_secs(15), "the datagrams go to the second");
    }
    assert!(http(at, 8080, "/").await.expect("it answers").starts_with("hostname: second\n"));
    // At a grace of nothing the object goes first, the pod soon after.
    world.api.delete(&second, Some(0));
    let begun = Instant::now();
    while tcp(at, 8080, "hello").await.is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(15), "nobody answers any longer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn one_port_of_two_addresses_leads_to_two_pods() {
    let world = World::new().await;
    let port = |ip: &str, protocol: &str| {
        door(&json!([{"containerPort": 80, "hostPort": 54323, "hostIP": ip, "protocol": protocol}]))
    };
    let [four, six] = NODE_ADDRESSES;
    for (name, spec) in [
        ("local", port("127.0.0.1", "TCP")),
        ("tcp", port(four, "TCP")),
        ("udp", port(four, "UDP")),
        ("six", port(six, "TCP")),
    ] {
        let key = world.create(name, spec);
        world.ready(&key).await;
    }
    for (at, expected) in [("127.0.0.1", "local"), (four, "tcp"), (six, "six")] {
        let body = http(address(at), 54323, "/").await.expect("it answers");
        assert!(body.starts_with(&format!("hostname: {expected}\n")), "{at}: {body}");
    }
    assert!(udp(address(four), 54323).await.expect("it answers").starts_with("udp "));
    assert!(udp(address(six), 54323).await.is_err());
}
