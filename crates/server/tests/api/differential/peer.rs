//! The real kube-apiserver on the real etcd, on loopback ports of their own, until they are dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use tokio::process::{Child, Command};

/// Where the programs are; none where the variables are not set.
pub struct Programs {
    apiserver: PathBuf,
    etcd: PathBuf,
}

impl Programs {
    pub fn find() -> Option<Programs> {
        let path = |name| std::env::var_os(name).map(PathBuf::from);
        Some(Programs { apiserver: path("PORTOLAN_KUBE_APISERVER")?, etcd: path("PORTOLAN_ETCD")? })
    }
}

/// An etcd of one member, until it is dropped.
pub struct Member {
    port: u16,
    child: Child,
    dir: tempfile::TempDir,
}

impl Member {
    /// Starts it; it may take a moment until it answers.
    pub fn start(program: &Path) -> Member {
        let dir = tempfile::tempdir().expect("a directory");
        let (port, peer) = (free_port(), free_port());
        let (url, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let child = spawn(
            program,
            dir.path(),
            "log",
            &[
                flag("data-dir", &dir.path().join("data").display().to_string()),
                flag("listen-client-urls", &url),
                flag("advertise-client-urls", &url),
                flag("listen-peer-urls", &peer),
                flag("initial-advertise-peer-urls", &peer),
                flag("initial-cluster", &format!("default={peer}")),
                // Nothing here outlives the test.
                "--unsafe-no-fsync".into(),
            ],
        );
        Member { port, child, dir }
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

pub fn flag(name: &str, value: &str) -> String {
    format!("--{name}={value}")
}

/// A running API server. Its processes end with it.
pub struct Peer {
    pub client: kube::Client,
    apiserver: Child,
    etcd: Member,
    dir: tempfile::TempDir,
}

const TOKEN: &str = "letmein";

pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

pub fn spawn(program: &Path, dir: &Path, log: &str, args: &[String]) -> Child {
    let log = std::fs::File::create(dir.join(log)).expect("a log");
    Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("starting {}: {error}", program.display()))
}

impl Peer {
    /// Starts both and waits until the API server can do everything.
    pub async fn start(programs: &Programs, cidrs: &[&str], ports: (u16, u16)) -> Peer {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name).display().to_string();
        let port = free_port();

        let key = KeyPair::generate().expect("a key");
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names).expect("names").self_signed(&key).expect("signed");
        for (name, text) in [
            ("tls.crt", certificate.pem()),
            ("tls.key", key.serialize_pem()),
            ("accounts.pub", key.public_key_pem()),
            ("tokens.csv", format!("{TOKEN},kubernetes-admin,1,\"system:masters\"\n")),
            ("admin.conf", kubeconfig(port, &at("tls.crt"))),
        ] {
            std::fs::write(at(name), text).expect("written");
        }

        let etcd = Member::start(&programs.etcd);
        let apiserver = spawn(
            &programs.apiserver,
            dir.path(),
            "apiserver.log",
            &[
                flag("etcd-servers", &etcd.url()),
                flag("bind-address", "127.0.0.1"),
                flag("secure-port", &port.to_string()),
                flag("advertise-address", "192.0.2.10"),
                flag("service-cluster-ip-range", &cidrs.join(",")),
                flag("service-node-port-range", &format!("{}-{}", ports.0, ports.1)),
                flag("tls-cert-file", &at("tls.crt")),
                flag("tls-private-key-file", &at("tls.key")),
                flag("token-auth-file", &at("tokens.csv")),
                flag("authorization-mode", "RBAC"),
                flag("service-account-key-file", &at("accounts.pub")),
                flag("service-account-signing-key-file", &at("tls.key")),
                flag("service-account-issuer", "https://kubernetes.default.svc"),
                flag("allow-privileged", "true"),
            ],
        );

        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = kube::Config::new(format!("https://127.0.0.1:{port}").parse().expect("a URL"));
        config.root_cert = Some(vec![certificate.der().to_vec()]);
        config.auth_info.token = Some(TOKEN.to_owned().into());
        let client = kube::Client::try_from(config).expect("a client");
        let mut peer = Peer { client, apiserver, etcd, dir };
        let until = Instant::now() + Duration::from_secs(90);
        while !ready(&peer.client).await {
            let ended =
                [&mut peer.apiserver, &mut peer.etcd.child].map(|child| child.try_wait().ok().flatten());
            if ended.iter().any(Option::is_some) || Instant::now() > until {
                let log = std::fs::read_to_string(peer.at("apiserver.log")).unwrap_or_default();
                panic!("kube-apiserver isn't ready, {ended:?}:\n{}\n{log}", peer.etcd.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        peer
    }

    /// A file of the server's: `tls.crt`, `tls.key` (which signs accounts' tokens, too), `admin.conf`, `apiserver.log`.
    pub fn at(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

/// How another program comes to the server.
fn kubeconfig(port: u16, certificate: &str) -> String {
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "peer",
        "clusters": [{"name": "peer",
            "cluster": {"server": format!("https://127.0.0.1:{port}"), "certificate-authority": certificate}}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "peer", "context": {"cluster": "peer", "user": "admin"}}],
    });
    text.to_string()
}

/// Whether everything has started, and the addresses of Services can be handed out.
async fn ready(client: &kube::Client) -> bool {
    let get = |path: &str| http::Request::get(path).body(Vec::new()).expect("a request");
    let text = |path: &'static str| client.request_text(get(path));
    text("/readyz").await.is_ok()
        && text("/api/v1/namespaces/default/services/kubernetes").await.is_ok()
        && text("/apis/networking.k8s.io/v1/servicecidrs/kubernetes")
            .await
            .is_ok_and(|cidr| cidr.contains("\"type\":\"Ready\",\"status\":\"True\""))
}
