//! One connection to an API server, with as little between it and the socket as can be: the client runs on the same
//! processors as the servers that are measured.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

use portolan_peers::ApiServer;

/// A connection.
pub struct Connection {
    sender: Sender,
    host: String,
    token: String,
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Many(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// Opens it: for one request at a time, or for many streams.
    pub async fn open(server: &ApiServer, many: bool) -> Connection {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut roots = rustls::RootCertStore::empty();
        for authority in server.authorities() {
            roots.add(authority.into()).expect("an authority");
        }
        let mut config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![if many { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let host = server.url.trim_start_matches("https://").to_owned();
        let stream = tokio::net::TcpStream::connect(&host).await.expect("a connection");
        stream.set_nodelay(true).expect("no delay");
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let io = TokioIo::new(connector.connect(name, stream).await.expect("TLS"));
        let sender = if many {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
            tokio::spawn(connection);
            Sender::Many(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.expect("HTTP/1.1");
            tokio::spawn(connection);
            Sender::One(sender)
        };
        Connection { sender, host, token: server.token.clone() }
    }

    fn request(&self, method: &str, path: &str, body: String) -> Request<Full<Bytes>> {
        let url = format!("https://{}{path}", self.host);
        let uri = if matches!(self.sender, Sender::Many(_)) { url.as_str() } else { path };
        Request::builder()
            .method(method)
            .uri(uri)
            .header(header::HOST, &self.host)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(body.into()))
            .expect("a request")
    }

    /// Sends a request, and reads its answer whole.
    pub async fn send(&mut self, method: &str, path: &str, body: String) -> (u16, Bytes) {
        let request = self.request(method, path, body);
        let response = match &mut self.sender {
            Sender::One(sender) => {
                sender.ready().await.expect("the connection lives");
                sender.send_request(request).await
            }
            Sender::Many(sender) => sender.send_request(request).await,
        };
        let response = response.expect("an answer");
        let code = response.status().as_u16();
        (code, response.into_body().collect().await.expect("a whole answer").to_bytes())
    }

    /// Opens a watch as one stream of many.
    pub async fn watch(&self, path: &str) -> Watch {
        let request = self.request("GET", path, String::new());
        let Sender::Many(sender) = &self.sender else { panic!("a connection of many streams is needed") };
        let response = sender.clone().send_request(request).await.expect("an answer");
        assert_eq!(response.status(), 200, "{path}");
        Watch { body: response.into_body() }
    }
}

/// A watch that is open.
pub struct Watch {
    body: Incoming,
}

impl Watch {
    /// Waits for events; how many came. Each is a line.
    pub async fn next(&mut self) -> usize {
        loop {
            let frame = self.body.frame().await.expect("the watch goes on").expect("a frame");
            let lines = frame.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
            if lines > 0 {
                return lines;
            }
        }
    }
}
