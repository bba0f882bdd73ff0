//! One node: its process, which may be killed and started again, and what a client on it sees.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use portolan_sys::link::{LinkEnd, Links};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api::Api;

pub const NODE: &str = "node-1";
pub const NODE_ADDRESSES: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
pub const TOKEN: &str = "secret-of-the-log-endpoint";

/// The node's process: `--agent URL DIRECTORY`.
pub fn agent(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let (Some(url), Some(directory)) = (args.next(), args.next()) else { return ExitCode::from(2) };
    let url: http::Uri = url.to_str().and_then(|url| url.parse().ok()).expect("a URL");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("tokio");
    let ran = runtime.block_on(async {
        let client = kube::Client::try_from(kube::Config::new(url)).expect("a client");
        let addresses = NODE_ADDRESSES.iter().map(|address| address.parse().expect("an address")).collect();
        let mut config = portolan_pods::Config::new(NODE, addresses, Path::new(&directory));
        config.allow_host_image = true;
        config.images.insert("machine".to_owned(), PathBuf::from("/"));
        config.images.insert("programs".to_owned(), PathBuf::from("/usr"));
        config.log_token = TOKEN.to_owned();
        portolan_pods::run(client, config, CancellationToken::new()).await
    });
    if let Err(error) = ran {
        eprintln!("agent: {error:#}");
    }
    ExitCode::FAILURE
}

/// The world of one test.
pub struct World {
    pub api: Api,
    pub data: PathBuf,
    url: String,
    agent: Option<Child>,
}

impl World {
    /// A node with addresses, ranges and a running process.
    pub async fn new() -> World {
        let mut links = Links::open().expect("a netlink socket");
        let lo = links.index("lo").expect("lo");
        links.set_up(lo, true).expect("lo comes up");
        // The node's own link: a cable whose other end nobody uses.
        links.add_veth(&LinkEnd::named("lan"), &LinkEnd::named("lan-peer")).expect("a veth pair");
        for name in ["lan", "lan-peer"] {
            let index = links.index(name).expect("the link");
            links.set_up(index, true).expect("it comes up");
        }
        let lan = links.index("lan").expect("the link");
        for (address, prefix) in NODE_ADDRESSES.into_iter().zip([24, 64]) {
            links
                .add_address(lan, address.parse().expect("an address"), prefix)
                .expect("an address is added");
        }
        let (api, url) = Api::start().await;
        api.put(
            "nodes//node-1",
            json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
                "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]}
            }),
        );
        let mut world = World { api, data: PathBuf::from("/tmp/node"), url, agent: None };
        world.start_agent();
        world
    }

    pub fn start_agent(&mut self) {
        let agent = Command::new("/proc/self/exe").arg("--agent").arg(&self.url).arg(&self.data).spawn();
        self.agent = Some(agent.expect("the node's process starts"));
    }

    /// `kill -9` of the node's process.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("it runs");
        agent.kill().expect("it is killed");
        agent.wait().expect("it ends");
    }

    /// Creates a pod on this node; returns its key.
    pub fn create(&self, name: &str, spec: Value) -> String {
        let key = format!("pods/default/{name}");
        let mut spec = spec;
        spec["nodeName"] = json!(NODE);
        let metadata = json!({"name": name, "namespace": "default", "labels": {"app": name}});
        self.api.put(&key, json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}));
        key
    }

    /// Waits until a pod is ready; its addresses.
    pub async fn ready(&self, key: &str) -> Vec<IpAddr> {
        let pod = self.api.until(&format!("{key} is ready"), 20, |api| api.get(key).filter(is_ready)).await;
        let ips = pod["status"]["podIPs"].as_array().expect("addresses");
        ips.iter().map(|ip| ip["ip"].as_str().and_then(|ip| ip.parse().ok()).expect("an address")).collect()
    }

    /// A pod's directory on the node.
    pub fn dir(&self, key: &str) -> PathBuf {
        let pod = self.api.get(key).expect("the pod");
        self.data.join("pods").join(pod["metadata"]["uid"].as_str().expect("a uid"))
    }

    /// A pod's process 1.
    pub fn pid(&self, key: &str) -> i32 {
        let sandbox = std::fs::read(self.dir(key).join("sandbox.json")).expect("sandbox.json");
        let sandbox: Value = serde_json::from_slice(&sandbox).expect("JSON");
        sandbox["pid"].as_i64().and_then(|pid| pid.try_into().ok()).expect("a pid")
    }

    /// Messages of the events of a reason.
    pub fn events(&self, reason: &str) -> Vec<String> {
        let events = self.api.all("events/").into_iter().filter(|event| event["reason"] == reason);
        events.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

pub fn condition(pod: &Value, kind: &str) -> Option<bool> {
    let conditions = pod["status"]["conditions"].as_array()?;
    Some(conditions.iter().find(|condition| condition["type"] == kind)?["status"] == "True")
}

pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == Some(true)
}

/// The names of the links of pods.
pub fn pod_links() -> Vec<String> {
    let links = Links::open().and_then(|mut links| links.links()).expect("links");
    links.into_iter().map(|link| link.name).filter(|name| name.starts_with("pt")).collect()
}

/// All processes but this one and its threads.
pub fn processes() -> Vec<String> {
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").expect("/proc");
    let names = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.parse::<u32>().ok()?;
        let status = std::fs::read_to_string(format!("/proc/{name}/stat")).ok()?;
        let (before, after) = status.rsplit_once(')')?;
        (name != own && !after.starts_with(" Z"))
            .then(|| before.split_once('(').map(|(_, comm)| comm.to_owned()))?
    });
    names.collect()
}

/// A client on a thread of its own; how it went.
pub async fn client<T: Send + 'static>(
    act: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(act).await.expect("the client doesn't panic")
}

const PATIENCE: Duration = Duration::from_secs(1);

/// Sends a text over TCP and reads until the other side closes.
pub async fn tcp(address: IpAddr, port: u16, text: &'static str) -> std::io::Result<String> {
    client(move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(text.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
    .await
}

/// GET over HTTP; the body.
pub async fn http(address: IpAddr, port: u16, path: &'static str) -> std::io::Result<String> {
    let request: &'static str = match path {
        "/" => "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        _ => "GET /some/path HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    };
    let answer = tcp(address, port, request).await?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// One datagram there and one back.
pub async fn udp(address: IpAddr, port: u16) -> std::io::Result<String> {
    client(move || {
        let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((address, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"hello")?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    })
    .await
}
