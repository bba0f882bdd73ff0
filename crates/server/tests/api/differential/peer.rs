//! The real kube-apiserver on the real etcd, on loopback ports of their own, until they are dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use tokio::process::{Child, Command};

use super::world::Shape;

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

/// A running API server. Its processes end with it.
pub struct Peer {
    pub client: kube::Client,
    _processes: [Child; 2],
    _dir: tempfile::TempDir,
}

const TOKEN: &str = "letmein";

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn spawn(program: &Path, dir: &Path, log: &str, args: &[String]) -> Child {
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
    pub async fn start(programs: &Programs, shape: &Shape) -> Peer {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name).display().to_string();
        let (etcd_port, etcd_peer, port) = (free_port(), free_port(), free_port());

        let key = KeyPair::generate().expect("a key");
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let certificate = CertificateParams::new(names).expect("names").self_signed(&key).expect("signed");
        for (name, text) in [
            ("tls.crt", certificate.pem()),
            ("tls.key", key.serialize_pem()),
            ("accounts.pub", key.public_key_pem()),
            ("tokens.csv", format!("{TOKEN},kubernetes-admin,1,\"system:masters\"\n")),
        ] {
            std::fs::write(at(name), text).expect("written");
        }

        let flag = |name: &str, value: &str| format!("--{name}={value}");
        let url = format!("http://127.0.0.1:{etcd_port}");
        let peer_url = format!("http://127.0.0.1:{etcd_peer}");
        let etcd = spawn(
            &programs.etcd,
            dir.path(),
            "etcd.log",
            &[
                flag("data-dir", &at("etcd")),
                flag("listen-client-urls", &url),
                flag("advertise-client-urls", &url),
                flag("listen-peer-urls", &peer_url),
                flag("initial-advertise-peer-urls", &peer_url),
                flag("initial-cluster", &format!("default={peer_url}")),
                // Nothing here outlives the test.
                "--unsafe-no-fsync".into(),
            ],
        );
        let apiserver = spawn(
            &programs.apiserver,
            dir.path(),
            "apiserver.log",
            &[
                flag("etcd-servers", &url),
                flag("bind-address", "127.0.0.1"),
                flag("secure-port", &port.to_string()),
                flag("advertise-address", "192.0.2.10"),
                flag("service-cluster-ip-range", &shape.cidrs.join(",")),
                flag("service-node-port-range", &format!("{}-{}", shape.ports.0, shape.ports.1)),
                flag("tls-cert-file", &at("tls.crt")),
                flag("tls-private-key-file", &at("tls.key")),
                flag("token-auth-file", &at("tokens.csv")),
                flag("authorization-mode", "RBAC"),
                flag("service-account-key-file", &at("accounts.pub")),
                flag("service-account-signing-key-file", &at("tls.key")),
                flag("service-account-issuer", "https://kubernetes.default.svc"),
                flag("allow-privileged", "true"),
                // It wants a controller that makes the account `default` first.
                flag("disable-admission-plugins", "ServiceAccount"),
            ],
        );
        let mut processes = [etcd, apiserver];

        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = kube::Config::new(format!("https://127.0.0.1:{port}").parse().expect("a URL"));
        config.root_cert = Some(vec![certificate.der().to_vec()]);
        config.auth_info.token = Some(TOKEN.to_owned().into());
        let client = kube::Client::try_from(config).expect("a client");
        let until = Instant::now() + Duration::from_secs(90);
        while !ready(&client).await {
            let ended = processes.iter_mut().find_map(|child| child.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > until {
                let log = |name| std::fs::read_to_string(at(name)).unwrap_or_default();
                panic!(
                    "kube-apiserver isn't ready, {ended:?}:\n{}\n{}",
                    log("etcd.log"),
                    log("apiserver.log")
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Peer { client, _processes: processes, _dir: dir }
    }
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
