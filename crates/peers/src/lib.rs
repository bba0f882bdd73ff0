//! Each server, ours or Kubernetes' own, is a child process that is gone with its handle.
//!
//! For tests and benches alone. Absent on purpose: what a test expects of a server, and the choice of programs.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(90);

/// `USER_HZ`, which is 100 on every architecture that we run on.
const TICKS: f64 = 100.0;

/// A free port that no other test is given, in this process or another. It is below those that the kernel gives to clients: a
/// client that calls a port of theirs while nobody listens there may be given the same port for its own end, and is then
/// connected with itself.
pub fn free_port() -> u16 {
    // A name in the same network namespace, which goes with this process.
    static TAKEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    for port in 20_000..32_000_u16 {
        let name = SocketAddr::from_abstract_name(format!("portolan-peers-{port}")).expect("a short name");
        let Ok(taken) = UnixListener::bind_addr(&name) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            TAKEN.lock().unwrap_or_else(PoisonError::into_inner).push(taken);
            return port;
        }
    }
    panic!("all ports from 20000 to 32000 are taken")
}

/// A process that runs, and what it is started again with.
pub struct Process {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Child,
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Seconds of processor time: its own, the kernel's for it, and that of programs that it ran to their end.
    pub cpu: f64,
    /// Bytes of memory that are its own: resident, and neither mapped from a file nor shared.
    pub memory: u64,
}

impl std::ops::Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage { cpu: self.cpu + other.cpu, memory: self.memory + other.memory }
    }
}

impl Process {
    /// Starts a program whose words go to a file.
    pub fn start(program: &Path, arguments: Vec<String>, log: PathBuf) -> Process {
        let child = spawn(program, &arguments, &log);
        Process { program: program.to_owned(), arguments, log, child }
    }

    /// Ends it as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }

    /// Starts it again, after its end.
    pub fn restart(&mut self) {
        self.child = spawn(&self.program, &self.arguments, &self.log);
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it can be asked").is_some()
    }

    /// Stops it as `kill -STOP` does, or lets it go on.
    pub fn pause(&self, pause: bool) {
        let signal = if pause { "-STOP" } else { "-CONT" };
        let id = self.child.id().to_string();
        let done = Command::new("kill").args([signal, &id]).status().expect("kill runs");
        assert!(done.success(), "kill {signal} {id}");
    }

    /// What it has used since it was started.
    pub fn usage(&self) -> Usage {
        let read =
            |name| std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).expect("/proc");
        let (stat, status) = (read("stat"), read("status"));
        // proc_pid_stat(5): fields 14 to 17; the second, the name, ends at the last parenthesis.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
        let ticks: u64 = fields[11..15].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
        let size = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a size");
        let memory = size.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024;
        Usage { cpu: ticks as f64 / TICKS, memory }
    }

    /// Why it doesn't answer, with the end of what it has said.
    fn silent(&mut self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(20)..].join("\n");
        format!("{} doesn't answer ({:?}):\n{end}", self.program.display(), self.child.try_wait())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(program: &Path, arguments: &[String], log: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("starting {}: {error}", program.display()))
}

/// etcd, which writes through to the disk.
pub struct Etcd {
    /// The process.
    pub process: Process,
    /// Where clients reach it.
    pub url: String,
}

impl Etcd {
    /// Starts a member that is a cluster of its own, with its data below this folder.
    pub fn start(program: &Path, dir: &Path) -> Etcd {
        let [client, peer] = [free_port(), free_port()].map(|port| format!("http://127.0.0.1:{port}"));
        let arguments = vec![
            format!("--data-dir={}", dir.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--quota-backend-bytes=8589934592".into(),
        ];
        let process = Process::start(program, arguments, dir.join("etcd.log"));
        Etcd { process, url: client }
    }
}

/// kube-proxy, with a plain API to follow.
pub struct KubeProxy {
    /// The process.
    pub process: Process,
}

impl KubeProxy {
    /// Starts it in the network namespace of the calling thread, for an API at a URL that asks for no credentials, with what
    /// it needs below this folder; and waits until `/healthz` says that both families are in the kernel, and `ready` agrees.
    /// `config` are fields of its configuration.
    pub fn start(
        program: &Path,
        dir: &Path,
        api: &str,
        config: serde_json::Value,
        ready: impl Fn() -> bool,
    ) -> KubeProxy {
        let kubeconfig = serde_json::json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": api}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]});
        let mut whole = serde_json::json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "detectLocalMode": "NodeCIDR", "bindAddress": "0.0.0.0", "conntrack": {"maxPerCore": 0, "min": 0},
            "clientConnection": {"kubeconfig": dir.join("kubeconfig"), "contentType": "application/json",
                "acceptContentTypes": "application/json"}});
        if let (Some(whole), serde_json::Value::Object(given)) = (whole.as_object_mut(), config) {
            whole.extend(given);
        }
        for (name, value) in [("kubeconfig", kubeconfig), ("config", whole)] {
            std::fs::write(dir.join(name), value.to_string()).expect("written");
        }
        let arguments = vec!["--config".into(), dir.join("config").display().to_string()];
        let mut process = Process::start(program, arguments, dir.join("kube-proxy.log"));
        let began = Instant::now();
        while !(is_synced() && ready()) {
            let ended = process.has_ended();
            assert!(!ended && began.elapsed() < PATIENCE, "{}", process.silent());
            std::thread::sleep(Duration::from_millis(20));
        }
        KubeProxy { process }
    }
}

/// Whether a kube-proxy in this network namespace says that both families are in the kernel.
fn is_synced() -> bool {
    use std::io::{Read as _, Write as _};
    let answer = std::net::TcpStream::connect(("127.0.0.1", 10256)).and_then(|mut stream| {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    let Ok(text) = answer else { return false };
    let body = text.split("\r\n\r\n").nth(1).unwrap_or_default();
    let status: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    ["IPv4", "IPv6"].iter().all(|family| {
        let status = &status["status"][family];
        let at = status["lastUpdated"].as_str().unwrap_or("0001");
        !at.starts_with("0001") && status["healthy"] == true
    })
}

/// An API server, and how to reach it.
pub struct ApiServer {
    /// The process.
    pub process: Process,
    /// Where clients reach it.
    pub url: String,
    /// The authority that signed its certificate, PEM.
    pub authority: PathBuf,
    /// The administrator's token.
    pub token: String,
}

impl ApiServer {
    /// Ours, with its data below this folder; on an etcd if there is one.
    pub fn portolan(program: &Path, dir: &Path, etcd: Option<&Etcd>) -> ApiServer {
        let port = free_port();
        let mut arguments = vec![
            "server".into(),
            format!("--data-dir={}", dir.display()),
            format!("--listen=127.0.0.1:{port}"),
        ];
        arguments.extend(etcd.map(|etcd| format!("--store=etcd={}", etcd.url)));
        let mut process = Process::start(program, arguments, dir.join("portolan.log"));
        let kubeconfig = dir.join("kubeconfig");
        let began = Instant::now();
        let token = loop {
            let text = std::fs::read_to_string(&kubeconfig).unwrap_or_default();
            let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            if let Some(token) = config.pointer("/users/0/user/token").and_then(|token| token.as_str()) {
                break token.to_owned();
            }
            assert!(began.elapsed() < PATIENCE, "{}", process.silent());
            std::thread::sleep(Duration::from_millis(5));
        };
        let url = format!("https://127.0.0.1:{port}");
        ApiServer { process, url, authority: dir.join("pki/ca.crt"), token }
    }

    /// kube-apiserver, with what it needs below this folder.
    pub fn kubernetes(program: &Path, dir: &Path, etcd: &Etcd) -> ApiServer {
        let port = free_port();
        let at = |name: &str| dir.join(name).display().to_string();
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = vec!["127.0.0.1".to_owned()];
        let certificate =
            rcgen::CertificateParams::new(names).expect("names").self_signed(&key).expect("signed");
        let token = "letmein".to_owned();
        for (name, text) in [
            ("tls.crt", certificate.pem()),
            ("tls.key", key.serialize_pem()),
            ("accounts.pub", key.public_key_pem()),
            ("tokens.csv", format!("{token},kubernetes-admin,1,\"system:masters\"\n")),
        ] {
            std::fs::write(at(name), text).expect("written");
        }
        let arguments = vec![
            format!("--etcd-servers={}", etcd.url),
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={port}"),
            "--advertise-address=192.0.2.10".into(),
            "--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112".into(),
            format!("--tls-cert-file={}", at("tls.crt")),
            format!("--tls-private-key-file={}", at("tls.key")),
            format!("--token-auth-file={}", at("tokens.csv")),
            "--authorization-mode=Node,RBAC".into(),
            format!("--service-account-key-file={}", at("accounts.pub")),
            format!("--service-account-signing-key-file={}", at("tls.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
        ];
        let process = Process::start(program, arguments, dir.join("apiserver.log"));
        ApiServer {
            process,
            url: format!("https://127.0.0.1:{port}"),
            authority: at("tls.crt").into(),
            token,
        }
    }

    /// A client of it, on its socket.
    pub fn client(&self) -> kube::Client {
        kube::Client::try_from(self.config()).expect("a client")
    }

    fn config(&self) -> kube::Config {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = kube::Config::new(self.url.parse().expect("a URL"));
        config.root_cert = Some(self.authorities());
        config.auth_info.token = Some(self.token.clone().into());
        config
    }

    /// The authorities of its certificate, DER.
    pub fn authorities(&self) -> Vec<Vec<u8>> {
        use rustls::pki_types::pem::PemObject as _;
        let all = rustls::pki_types::CertificateDer::pem_file_iter(&self.authority).expect("a certificate");
        all.map(|one| one.expect("a certificate").to_vec()).collect()
    }

    /// Waits until it is ready, and for this path besides.
    pub async fn ready(&mut self, path: &str) {
        let client = self.client();
        let get = |path: &str| http::Request::get(path).body(Vec::new()).expect("a request");
        let began = Instant::now();
        for path in ["/readyz", path] {
            while client.request_text(get(path)).await.is_err() {
                assert!(began.elapsed() < PATIENCE, "{}", self.process.silent());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}
