//! Health-check ports: by asking them, a load balancer learns on which nodes a Service has endpoints.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::{TokioIo, TokioTimer};
use portolan_plan::model::ServiceName;
use portolan_plan::service::HealthCheck;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What may be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The Services that have such a port.
    pub checks: BTreeMap<ServiceName, HealthCheck>,
    /// The kernel follows the plan.
    pub forwarding: bool,
}

/// How long until a port that is taken is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// A probe that hasn't asked by then is dropped.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers on the ports of `health` for as long as its sender lives.
pub(crate) async fn serve(mut health: watch::Receiver<Health>) {
    let mut ports: BTreeMap<u16, JoinSet<()>> = BTreeMap::new(); // a set ends its tasks when it is dropped
    loop {
        let wanted: BTreeMap<u16, ServiceName> =
            health.borrow_and_update().checks.iter().rev().map(|(s, c)| (c.port, s.clone())).collect();
        ports.retain(|port, _| wanted.contains_key(port));
        for port in wanted.into_keys() {
            ports.entry(port).or_insert_with(|| {
                let mut tasks = JoinSet::new();
                tasks.spawn(listen(port, health.clone()));
                tasks
            });
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

async fn listen(port: u16, health: watch::Receiver<Health>) {
    let listener = loop {
        match bind(port).await {
            Ok(listener) => break listener,
            Err(error) => {
                tracing::warn!(port, %error, "a healthCheckNodePort can't be opened, so load balancers will not send \
                    this node the Service's traffic; free the port (`ss -ltnp`)");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let health = health.clone();
                    connections.spawn(async move {
                        let answers = hyper::service::service_fn(move |_| {
                            let answer = answer(port, &health.borrow());
                            async move { Ok::<_, Infallible>(answer) }
                        });
                        let _ = hyper::server::conn::http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(PATIENCE)
                            .serve_connection(TokioIo::new(stream), answers)
                            .await; // the prober hung up: nothing to do
                    });
                }
                // Out of descriptors: those that are open must end first.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// On all addresses of both families, or of IPv4 alone where the kernel has no IPv6.
async fn bind(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(("::", port)).await {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            TcpListener::bind(("0.0.0.0", port)).await
        }
        bound => bound,
    }
}

/// The answer on a port, whatever is asked: its form is what load balancers know from kube-proxy
/// (pkg/proxy/healthcheck/service_health.go).
fn answer(port: u16, health: &Health) -> Response<Full<Bytes>> {
    let Some((service, check)) = health.checks.iter().find(|(_, c)| c.port == port) else {
        let mut gone = Response::new(Full::default());
        *gone.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return gone;
    };
    let local = check.local_ready;
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {local},\n\t\
         \"serviceProxyHealthy\": {}\n}}",
        service.namespace, service.name, health.forwarding
    );
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = match local > 0 && health.forwarding {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    headers.insert("x-load-balancing-endpoint-weight", http::HeaderValue::from(local));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn health(local_ready: usize, forwarding: bool) -> Health {
        let check = HealthCheck { port: 32000, local_ready };
        Health { checks: [(ServiceName::new("default", "web"), check)].into(), forwarding }
    }

    #[test]
    fn a_node_is_healthy_for_a_service_with_ready_endpoints_while_the_kernel_follows() {
        let status = |local, forwarding| answer(32000, &health(local, forwarding)).status().as_u16();
        assert_eq!(status(1, true), 200);
        assert_eq!(status(0, true), 503);
        assert_eq!(status(1, false), 503);
        assert_eq!(answer(32001, &health(1, true)).status().as_u16(), 503);
    }

    #[tokio::test]
    async fn the_answer_has_the_form_that_load_balancers_know() {
        let response = answer(32000, &health(2, true));
        assert_eq!(response.headers()["x-load-balancing-endpoint-weight"], "2");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\
             \"serviceProxyHealthy\": true\n}"
        );
    }

    #[tokio::test]
    async fn a_port_is_open_for_as_long_as_a_service_has_it() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        // Any free port; freed just before it is wanted.
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let mut wanted = health(1, true);
        wanted.checks.values_mut().for_each(|c| c.port = port);
        let (sender, receiver) = watch::channel(wanted);
        let serving = tokio::spawn(serve(receiver));
        let asked = async {
            let mut stream = loop {
                match tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            sender.send_replace(Health::default());
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), asked)
            .await
            .expect("the port opens, answers and closes");
        drop(sender);
        serving.await.unwrap();
    }
}
