//! What becomes a connection: exec, attach, port-forward and proxies.

use std::sync::Arc;

use portolan_server::{PinnedNodeLogs, Server, pki, serve};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::logs::{node_tls, with_node};
use crate::support::*;

/// Reads the head of a request or an answer.
async fn head(connection: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(connection.read_u8().await.expect("a head"));
    }
    String::from_utf8(text).expect("text")
}

/// A node that takes every upgrade, repeats the head that it was sent, and then whatever it hears, in capitals. It refuses
/// what has `refused` in its path.
async fn node() -> (u16, String) {
    let (acceptor, hash) = node_tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            tokio::spawn(async move {
                let asked = head(&mut stream).await;
                let answer = if asked.contains("refused") {
                    "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\nnot!".into()
                } else {
                    format!(
                        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Own: 1\r\n\r\n{asked}"
                    )
                };
                stream.write_all(answer.as_bytes()).await.expect("answered");
                let mut buffer = [0; 100];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    stream.write_all(&buffer[..length].to_ascii_uppercase()).await.expect("answered");
                }
            });
        }
    });
    (port, hash)
}

/// The server over TLS, and a way in.
async fn over_tls(server: Arc<Server>) -> impl AsyncFn() -> TlsStream<TcpStream> {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = pki::Authority::open(dir.path()).expect("an authority");
    let tls = authority.serving(&pki::usual_names(&[])).expect("a certificate");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(serve(server, listener, tls, std::future::pending()));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate_der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    async move || {
        let stream = TcpStream::connect(address).await.expect("connected");
        let name = rustls_pki_types::ServerName::from(address.ip());
        connector.connect(name, stream).await.expect("TLS")
    }
}

const UPGRADE: &str =
    "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";

#[tokio::test]
async fn an_upgrade_goes_through_to_the_node_that_runs_the_pod() {
    let (port, hash) = node().await;
    let server = with_node(Arc::new(PinnedNodeLogs), "127.0.0.1", port, &hash).await;
    post(&server, &core("pods"), &pod("p", "n1")).await;
    post(&server, &core("pods"), &pod("refused", "n1")).await;
    let connect = over_tls(server).await;
    for (asked, told) in [
        (
            "GET /api/v1/namespaces/default/pods/p/exec?command=sh&command=-c&command=a+%26+b&stdin=true&stdout=true&stderr=true",
            "GET /exec/default/p/web?input=1&output=1&error=1&command=sh&command=-c&command=a%20%26%20b HTTP/1.1",
        ),
        (
            "POST /api/v1/namespaces/default/pods/p/attach?container=web&tty=true&stdout=true&stderr=false",
            "POST /attach/default/p/web?output=1&tty=1 HTTP/1.1",
        ),
        ("POST /api/v1/namespaces/default/pods/p/portforward", "POST /portForward/default/p HTTP/1.1"),
        (
            "GET /api/v1/namespaces/default/pods/p/portforward?ports=80&ports=81",
            "GET /portForward/default/p?port=80%2C81 HTTP/1.1",
        ),
    ] {
        let mut client = connect().await;
        let request =
            format!("{asked} HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer letmein\r\n{UPGRADE}\r\n");
        client.write_all(request.as_bytes()).await.expect("sent");
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("x-own: 1"), "{answer}");
        let repeated = head(&mut client).await;
        assert_eq!(repeated.lines().next(), Some(told));
        assert!(repeated.contains("x-stream-protocol-version: v4.channel.k8s.io"), "{repeated}");
        assert!(repeated.contains("authorization: Bearer node-log-secret"), "{repeated}");
        assert!(!repeated.contains("letmein"), "the client's token is nobody else's business: {repeated}");
        client.write_all(b"hello").await.expect("sent");
        let mut heard = [0; 5];
        client.read_exact(&mut heard).await.expect("an answer");
        assert_eq!(&heard, b"HELLO");
    }

    let mut client = connect().await;
    let path = "/api/v1/namespaces/default/pods/refused/exec?command=ls&stdout=true";
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer letmein\r\n{UPGRADE}\r\n");
    client.write_all(request.as_bytes()).await.expect("sent");
    assert!(head(&mut client).await.starts_with("HTTP/1.1 500"));
    let mut text = [0; 4];
    client.read_exact(&mut text).await.expect("the node's words");
    assert_eq!(&text, b"not!");
}

#[tokio::test]
async fn what_can_not_be_connected_is_said_as_kubernetes_does() {
    let server = with_node(Arc::new(PinnedNodeLogs), "127.0.0.1", 1, &"ab".repeat(32)).await;
    post(&server, &core("pods"), &pod("p", "n1")).await;
    post(&server, &core("pods"), &pod("idle", "")).await;
    post(&server, &core("services"), &service("web", "ClusterIP")).await;
    post(&server, &core("endpoints"), &json!({"metadata": {"name": "web"}})).await;
    for (path, code, said) in [
        ("pods/p/exec?command=ls", 400, "Upgrade request required"),
        ("pods/p/exec?container=x", 400, "container x is not valid for pod p"),
        ("pods/idle/exec?command=ls", 400, "pod idle does not have a host assigned"),
        ("pods/none/attach", 404, "pods \"none\" not found"),
        ("pods/p/portforward/more", 404, "the server could not find the requested resource"),
        ("pods/p/proxy/", 400, "address not allowed"),
        ("pods/a:b:c:d/proxy/", 400, "invalid pod request \"a:b:c:d\""),
        ("services/web/proxy/", 503, "no endpoints available for service \"web\""),
        ("services/web:81/proxy/", 503, "no service port 81 found for service \"web\""),
        ("services/none/proxy/", 404, "endpoints \"none\" not found"),
    ] {
        let refused = get(&server, &core(path)).await;
        assert_eq!((refused.code.as_u16(), refused.body["message"].as_str()), (code, Some(said)), "{path}");
    }
    let moved = get(&server, "/api/v1/nodes/n1/proxy?x=1").await;
    assert_eq!(moved.code, 400, "not to the machine itself");
    let put = delete(&server, &core("pods/p/exec"), &serde_json::Value::Null).await;
    assert_eq!(put.code, 405);
}
