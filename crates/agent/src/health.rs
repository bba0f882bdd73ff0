//! Health-check ports: by asking them, a load balancer learns on which nodes a Service has endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use portolan_plan::model::ServiceName;
use portolan_plan::service::HealthCheck;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::events::Recorder;
use crate::port::{self, Answer, JSON};

/// What may be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The Services that have such a port.
    pub checks: BTreeMap<ServiceName, HealthCheck>,
    /// The kernel follows the plan.
    pub forwarding: bool,
    /// The addresses on which NodePorts answer.
    pub addresses: BTreeSet<IpAddr>,
}

/// How long until a port that is taken is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Whether a change waits for the kernel for too long, beside what [`Health`] says.
pub(crate) type Stuck = Arc<dyn Fn() -> bool + Send + Sync>;

/// A port, and the address on which it is asked; all of them if there is none.
type At = (u16, Option<IpAddr>);

/// Answers on the ports of `health` for as long as its sender lives: on all addresses if `everywhere`, or else on those on
/// which NodePorts answer.
pub(crate) async fn serve(
    mut health: watch::Receiver<Health>,
    everywhere: bool,
    stuck: Stuck,
    recorder: Recorder,
) {
    let mut ports: BTreeMap<At, JoinSet<()>> = BTreeMap::new(); // a set ends its tasks when it is dropped
    loop {
        let wanted = places(&health.borrow_and_update(), everywhere);
        ports.retain(|at, _| wanted.contains(at));
        for at in wanted {
            ports.entry(at).or_insert_with(|| {
                let mut tasks = JoinSet::new();
                tasks.spawn(listen(at, health.clone(), stuck.clone(), recorder.clone()));
                tasks
            });
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

fn places(health: &Health, everywhere: bool) -> BTreeSet<At> {
    let addresses: Vec<_> = match everywhere {
        true => vec![None],
        false => health.addresses.iter().map(|a| Some(*a)).collect(),
    };
    health.checks.values().flat_map(|c| addresses.iter().map(|address| (c.port, *address))).collect()
}

async fn listen((port, address): At, health: watch::Receiver<Health>, stuck: Stuck, recorder: Recorder) {
    let at = SocketAddr::new(address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), port);
    let mut told = None;
    let failed = |error: std::io::Error| {
        let error = error.to_string();
        if told.as_ref() == Some(&error) {
            return;
        }
        let service = asked(port, &health.borrow()).map(|(service, _)| service.clone());
        tracing::warn!(%at, %error, "a healthCheckNodePort can't be opened, so load balancers will not send \
            this node the Service's traffic; free the port (`ss -ltnp`)");
        if let Some(service) = service {
            let node = recorder.node();
            let message = format!(
                "node {node} failed to start healthcheck \"{service}\" on port {port}: {at}: {error}"
            );
            recorder.of_service(&service, "FailedToStartServiceHealthcheck", message);
        }
        told = Some(error);
    };
    let listener = port::open(at, RETRY, failed).await;
    port::serve(listener, move |_| answer(port, &health.borrow(), stuck())).await;
}

/// The Service that is asked about on a port.
fn asked(port: u16, health: &Health) -> Option<(&ServiceName, &HealthCheck)> {
    health.checks.iter().find(|(_, c)| c.port == port)
}

/// The answer on a port, whatever is asked: its form is what load balancers know from kube-proxy
/// (pkg/proxy/healthcheck/service_health.go).
fn answer(port: u16, health: &Health, stuck: bool) -> Answer {
    let Some((service, check)) = asked(port, health) else {
        return port::answer(StatusCode::SERVICE_UNAVAILABLE, JSON, "");
    };
    let (local, healthy) = (check.local_ready, health.forwarding && !stuck);
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {local},\n\t\
         \"serviceProxyHealthy\": {healthy}\n}}",
        service.namespace, service.name
    );
    let code = if local > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = port::answer(code, JSON, body);
    response.headers_mut().insert("x-load-balancing-endpoint-weight", HeaderValue::from(local));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::port::tests::get;

    fn health(local_ready: usize, forwarding: bool) -> Health {
        let check = HealthCheck { port: 32000, local_ready };
        let checks = [(ServiceName::new("default", "web"), check)].into();
        Health { checks, forwarding, addresses: BTreeSet::new() }
    }

    #[test]
    fn a_node_is_healthy_for_a_service_with_ready_endpoints_while_the_kernel_follows() {
        let status = |local, forwarding| answer(32000, &health(local, forwarding), false).status().as_u16();
        assert_eq!(status(1, true), 200);
        assert_eq!(status(0, true), 503);
        assert_eq!(status(1, false), 503);
        assert_eq!(
            answer(32000, &health(1, true), true).status().as_u16(),
            503,
            "a change waits for too long"
        );
        assert_eq!(answer(32001, &health(1, true), false).status().as_u16(), 503);
    }

    #[tokio::test]
    async fn the_answer_has_the_form_that_load_balancers_know() {
        let response = answer(32000, &health(2, true), false);
        assert_eq!(response.headers()["x-load-balancing-endpoint-weight"], "2");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\
             \"serviceProxyHealthy\": true\n}"
        );
    }

    #[test]
    fn a_port_is_asked_where_node_ports_answer() {
        let mut health = health(1, true);
        assert_eq!(places(&health, true), [(32000, None)].into());
        assert_eq!(places(&health, false), BTreeSet::new(), "the node's addresses aren't known yet");
        let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        health.addresses = [v4, v6].into();
        assert_eq!(places(&health, false), [(32000, Some(v4)), (32000, Some(v6))].into());
    }

    /// Any free port; freed just before it is wanted.
    async fn free() -> u16 {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
    }

    fn on_loopback(port: u16) -> Health {
        let mut wanted = health(1, true);
        wanted.checks.values_mut().for_each(|c| c.port = port);
        wanted.addresses = ["127.0.0.1".parse().unwrap()].into();
        wanted
    }

    #[tokio::test]
    async fn a_port_is_open_for_as_long_as_a_service_has_it() {
        for everywhere in [true, false] {
            let port = free().await;
            let (sender, receiver) = watch::channel(on_loopback(port));
            let serving =
                tokio::spawn(serve(receiver, everywhere, Arc::new(|| false), Recorder::new("here").0));
            let asked = async {
                let (head, _) = get(([127, 0, 0, 1], port).into(), "/healthz").await;
                assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
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

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_of_at_the_service() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, receiver) = watch::channel(on_loopback(taken.local_addr().unwrap().port()));
        let (recorder, mut events) = Recorder::new("here");
        let serving = tokio::spawn(serve(receiver, false, Arc::new(|| false), recorder));
        let event =
            tokio::time::timeout(Duration::from_secs(20), events.recv()).await.expect("in time").unwrap();
        assert_eq!(event.reason.as_deref(), Some("FailedToStartServiceHealthcheck"));
        assert_eq!(event.involved_object.name.as_deref(), Some("web"));
        let message = event.message.unwrap_or_default();
        assert!(
            message.starts_with("node here failed to start healthcheck \"default/web\" on port "),
            "{message}"
        );
        drop(sender);
        serving.await.unwrap();
    }
}
