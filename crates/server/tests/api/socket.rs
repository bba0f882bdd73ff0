//! The server over TLS, as kubectl meets it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{ListParams, PostParams, WatchEvent, WatchParams};
use portolan_server::kubeconfig::Kubeconfig;
use portolan_server::{Identity, Server, pki, serve};
use portolan_store::embedded::Embedded;
use tokio::sync::oneshot;

use crate::support::*;

/// A server on a loopback port.
struct Listening {
    server: Arc<Server>,
    authority: pki::Authority,
    address: SocketAddr,
    kubeconfig: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    done: tokio::task::JoinHandle<portolan_server::Result<()>>,
    _dir: tempfile::TempDir,
}

impl Listening {
    async fn start() -> Listening {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = pki::Authority::open(dir.path()).expect("an authority");
        let tls = authority.serving(&pki::usual_names(&[])).expect("a certificate");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut config = config();
        config.tokens.push((
            "join".into(),
            Identity::new("system:bootstrap:portolan", &["system:bootstrappers:portolan"]),
        ));
        config.client_authority = Some(authority.certificate_der().clone());
        let again = pki::Authority::open(dir.path()).expect("the same authority");
        config.node_authority = Some(Arc::new(again));
        let server = Server::open(config, Embedded::in_memory()).await.expect("the server opens");
        let (stop, stopped) = oneshot::channel();
        let done = tokio::spawn(serve(server.clone(), listener, tls, async {
            let _ = stopped.await;
        }));
        let kubeconfig = dir.path().join("kubeconfig");
        let file = Kubeconfig {
            name: "test",
            server: &format!("https://{address}"),
            authority_pem: authority.certificate_pem(),
            token: "letmein",
        };
        file.write(&kubeconfig).expect("a kubeconfig");
        Listening { server, authority, address, kubeconfig, stop: Some(stop), done, _dir: dir }
    }

    async fn client(&self, token: &str) -> kube::Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = kube::Config::new(format!("https://{}", self.address).parse().expect("a URL"));
        config.root_cert = Some(vec![self.authority.certificate_der().to_vec()]);
        if !token.is_empty() {
            config.auth_info.token = Some(token.to_owned().into());
        }
        kube::Client::try_from(config).expect("a client")
    }
}

#[tokio::test]
async fn a_token_lets_in_and_anonymous_sees_only_health_and_version() {
    let listening = Listening::start().await;
    let admin: Api<Namespace> = Api::all(listening.client("letmein").await);
    assert_eq!(admin.list(&ListParams::default()).await.expect("a list").items.len(), 4);
    let refused = async |client: &kube::Client| match Api::<Namespace>::all(client.clone())
        .list(&ListParams::default())
        .await
    {
        Err(kube::Error::Api(status)) => (status.code, status.message),
        other => panic!("{other:?}"),
    };
    let nobody = listening.client("").await;
    let why = "namespaces is forbidden: User \"system:anonymous\" cannot list resource \"namespaces\" in API group \"\" \
               at the cluster scope";
    assert_eq!(refused(&nobody).await, (403, why.to_owned()));
    assert_eq!(nobody.apiserver_version().await.expect("a version").git_version, "v1.36.0+portolan");
    let health = http::Request::get("/readyz?verbose").body(Vec::new()).expect("a request");
    assert!(nobody.request_text(health).await.expect("health").contains("[+]store ok"));

    // Who shows something wrong is refused even that.
    let wrong = listening.client("wrong").await;
    assert_eq!(refused(&wrong).await, (401, "Unauthorized".to_owned()));
    assert!(wrong.apiserver_version().await.is_err());
}

#[tokio::test]
async fn a_certificate_of_the_clusters_authority_says_who_asks() {
    let listening = Listening::start().await;
    let whoami = async |authority: &pki::Authority| {
        let (key, request) = pki::certificate_request().expect("a key");
        let certificate = authority.node_certificate("n1", &request).expect("a certificate");
        let base64 = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
        let mut config = kube::Config::new(format!("https://{}", listening.address).parse().expect("a URL"));
        config.root_cert = Some(vec![listening.authority.certificate_der().to_vec()]);
        config.auth_info.client_certificate_data = Some(base64(certificate));
        config.auth_info.client_key_data = Some(base64(key).into());
        let client = kube::Client::try_from(config).expect("a client");
        let review = Api::<SelfSubjectReview>::all(client);
        review.create(&PostParams::default(), &SelfSubjectReview::default()).await
    };
    let review = whoami(&listening.authority).await.expect("an answer");
    let user = review.status.and_then(|status| status.user_info).expect("a user");
    assert_eq!(user.username.as_deref(), Some("system:node:n1"));
    assert_eq!(user.groups, Some(vec!["system:nodes".to_owned(), "system:authenticated".to_owned()]));
    let dir = tempfile::tempdir().expect("a directory");
    let stranger = pki::Authority::open(dir.path()).expect("another authority");
    let refused = whoami(&stranger).await.expect_err("another authority's certificate");
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 401), "{refused}");
}

#[tokio::test]
async fn the_join_token_is_good_for_a_nodes_certificate_and_nothing_else() {
    let listening = Listening::start().await;
    let client = listening.client("join").await;
    let refused =
        Api::<Namespace>::all(client.clone()).list(&ListParams::default()).await.expect_err("refused");
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");
    let (_, request) = pki::certificate_request().expect("a key");
    let ask = |client: kube::Client, name: &str, request: &str| {
        let body = serde_json::json!({"name": name, "request": request}).to_string();
        let request =
            http::Request::post("/portolan/node-certificate").body(body.into_bytes()).expect("a request");
        async move { client.request::<serde_json::Value>(request).await }
    };
    let answer = ask(client.clone(), "n1", &request).await.expect("a certificate");
    assert!(answer["certificate"].as_str().is_some_and(|pem| pem.starts_with("-----BEGIN CERTIFICATE")));
    for (name, request) in [("n1", "nonsense"), ("../n1", request.as_str()), ("", request.as_str())] {
        let refused = ask(client.clone(), name, request).await.expect_err("refused");
        assert!(matches!(&refused, kube::Error::Api(status) if status.code == 400), "{refused}");
    }
    let node = kube::Client::new(listening.server.service(Identity::node("n1")), "default");
    assert!(ask(node.clone(), "n1", &request).await.is_ok(), "a node renews its own");
    let other = ask(node, "n2", &request).await.expect_err("another's");
    assert!(matches!(&other, kube::Error::Api(status) if status.code == 403), "{other}");
}

#[tokio::test]
async fn watches_end_when_the_listener_drains() {
    use futures_util::StreamExt as _;
    let mut listening = Listening::start().await;
    let api: Api<ConfigMap> = Api::namespaced(listening.client("letmein").await, "default");
    let mut stream = api.watch(&WatchParams::default(), "0").await.expect("a watch").boxed();
    post(
        &listening.server,
        &core("configmaps"),
        &configmap("a", &serde_json::json!({}), &serde_json::json!({})),
    )
    .await;
    let first = stream.next().await.expect("an event").expect("no error");
    assert!(matches!(first, WatchEvent::Added(_)));
    listening.stop.take().expect("not stopped yet").send(()).expect("somebody serves");
    // Either a last bookmark or the end; never silence.
    while let Some(event) = stream.next().await {
        assert!(matches!(event.expect("no error"), WatchEvent::Bookmark(_)));
    }
    drop((stream, api));
    listening.done.await.expect("joined").expect("served");
}

#[tokio::test]
async fn a_node_finds_the_authority_by_the_hash_in_its_token() {
    let listening = Listening::start().await;
    let token: pki::NodeToken =
        listening.authority.node_token().expect("a token").parse().expect("well-formed");
    let address = listening.address.to_string();
    let found = pki::fetch_authority(&address, &token.authority).await.expect("found");
    assert_eq!(&found, listening.authority.certificate_der());
    assert!(pki::fetch_authority(&address, &[0; 32]).await.is_err());
    assert!("no-hash".parse::<pki::NodeToken>().is_err());
}

#[test]
fn keys_and_tokens_are_made_once_and_for_the_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let first = pki::Authority::open(dir.path()).expect("made");
    let (admin, node) = (first.admin_token().expect("made"), first.node_token().expect("made"));
    let second = pki::Authority::open(dir.path()).expect("read");
    assert_eq!(second.fingerprint(), first.fingerprint());
    assert_eq!((second.admin_token().expect("read"), second.node_token().expect("read")), (admin, node));
    for secret in ["ca.key", "admin.token", "node.token"] {
        let mode = std::fs::metadata(dir.path().join(secret)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
}

/// The kubectls to test with: those named by `$KUBECTL` (several as in `$PATH`), else the first on the path.
fn kubectls() -> Vec<PathBuf> {
    if let Some(paths) = std::env::var_os("KUBECTL") {
        return std::env::split_paths(&paths).collect();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("kubectl"))
        .filter(|file| file.is_file())
        .take(1)
        .collect()
}

/// Runs kubectl; its output, or what it complained of.
async fn run(kubectl: &Path, listening: &Listening, args: &[&str], input: &str) -> Result<String, String> {
    use tokio::io::AsyncWriteExt as _;
    let mut child = tokio::process::Command::new(kubectl)
        .arg("--kubeconfig")
        .arg(&listening.kubeconfig)
        .arg("--cache-dir")
        .arg(listening.kubeconfig.with_file_name("cache"))
        .args(args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("kubectl starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).await.expect("kubectl reads");
    drop(stdin);
    let output = child.wait_with_output().await.expect("kubectl ends");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

const MANIFEST: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, labels: {app: echo}}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec: {containers: [{name: echo, image: echo, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  selector: {app: echo}
  ports: [{port: 8080, targetPort: 80, nodePort: 30163}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_shows_changes_and_deletes() {
    let kubectls = kubectls();
    if kubectls.is_empty() {
        use std::io::Write;
        // Past the harness, which swallows what passing tests print.
        let said =
            "skipped: kubectl applies, shows, changes and deletes: no kubectl on the PATH, nor in KUBECTL";
        let _ = writeln!(std::io::stderr(), "{said}");
    }
    for kubectl in kubectls {
        exercise(&kubectl, &Listening::start().await).await;
    }
}

async fn exercise(kubectl: &Path, listening: &Listening) {
    let rows: &[(&[&str], &str, &str)] = &[
        (&["apply", "-f", "-"], MANIFEST, "deployment.apps/echo created\nservice/echo created\n"),
        (&["apply", "-f", "-"], MANIFEST, "deployment.apps/echo unchanged\nservice/echo unchanged\n"),
        (&["get", "svc", "echo", "-o", "jsonpath={.spec.ports[0].nodePort}"], "", "30163"),
        (&["get", "svc,deploy", "-o", "wide"], "", "30163/TCP"),
        (&["get", "svc", "-A", "-o", "name"], "", "service/kubernetes"),
        (&["get", "svc", "-l", "component=apiserver"], "", "10.96.0.1"),
        (&["describe", "svc", "echo"], "", "NodePort:                 <unset>  30163/TCP"),
        (&["scale", "deploy", "echo", "--replicas=3"], "", "deployment.apps/echo scaled"),
        (&["get", "deploy", "echo", "-o", "jsonpath={.spec.replicas}"], "", "3"),
        (&["patch", "svc", "echo", "-p", "{\"spec\":{\"sessionAffinity\":\"ClientIP\"}}"], "", "patched"),
        (&["label", "svc", "echo", "tier=front"], "", "service/echo labeled"),
        (&["annotate", "svc", "echo", "note=hello"], "", "annotated"),
        (&["get", "svc", "-l", "tier=front", "-o", "name"], "", "service/echo"),
        (&["set", "image", "deploy/echo", "echo=echo:2"], "", "image updated"),
        (&["wait", "svc/echo", "--for=jsonpath={.spec.type}=NodePort", "--timeout=5s"], "", "condition met"),
        (&["api-resources", "-o", "name"], "", "deployments.apps"),
        (&["api-resources", "-o", "name"], "", "selfsubjectaccessreviews.authorization.k8s.io"),
        (&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"], "", "kubernetes-admin"),
        (&["auth", "can-i", "delete", "deployments.apps", "--subresource=scale"], "", "yes"),
        (&["create", "serviceaccount", "web"], "", "serviceaccount/web created"),
        (&["create", "token", "web", "--duration=20m", "--audience=vault"], "", "eyJ"),
        (
            &["create", "role", "pods", "--verb=get,list", "--resource=pods,pods/log"],
            "",
            "role.rbac.authorization.k8s.io/pods created",
        ),
        (
            &["create", "rolebinding", "web", "--role=pods", "--serviceaccount=default:web"],
            "",
            "rolebinding.rbac.authorization.k8s.io/web created",
        ),
        (&["auth", "can-i", "get", "pods/log", "--as=system:serviceaccount:default:web"], "", "yes"),
        (&["auth", "can-i", "--list", "--as=system:serviceaccount:default:web"], "", "pods/log"),
        (&["get", "pods", "--as=system:serviceaccount:default:web"], "", ""),
        (&["version"], "", "Server Version: v1.36.0+portolan"),
        (&["delete", "svc", "echo", "--timeout=10s"], "", "service \"echo\" deleted"),
        (&["delete", "deploy", "echo", "--timeout=10s"], "", "deployment.apps \"echo\" deleted"),
    ];
    for (args, input, expected) in rows {
        let answer = run(kubectl, listening, args, input).await;
        let answer = answer.unwrap_or_else(|complaint| panic!("kubectl {args:?} failed: {complaint}"));
        assert!(answer.contains(expected), "kubectl {args:?} said: {answer}");
    }
    let typo = MANIFEST.replace("targetPort: 80", "targetport: 80");
    let complaint = run(kubectl, listening, &["apply", "-f", "-"], &typo).await.expect_err("a typo");
    assert!(complaint.contains("unknown field \"spec.ports[0].targetport\""), "{complaint}");
    let web = "--as=system:serviceaccount:default:web";
    let complaint = run(kubectl, listening, &["get", "secrets", web], "").await.expect_err("no such right");
    let why = "Error from server (Forbidden): secrets is forbidden: User \"system:serviceaccount:default:web\" cannot list \
               resource \"secrets\" in API group \"\" in the namespace \"default\"";
    assert_eq!(complaint.trim(), why);
    let range = MANIFEST.replace("30163", "99");
    let complaint = run(kubectl, listening, &["apply", "-f", "-"], &range).await.expect_err("a wrong port");
    assert!(
        complaint
            .contains("spec.ports[0].nodePort: Invalid value: 99: provided port is not in the valid range"),
        "{complaint}"
    );
}
