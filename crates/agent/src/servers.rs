//! The agent's own ports: health for load balancers and kubelets, metrics for dashboards, as kube-proxy has them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use portolan_dataplane::Counters;
use serde_json::Value;
use tokio::sync::watch;

use crate::events::{Recorder, Severity};
use crate::meters::Meters;
use crate::metrics;
use crate::port::{self, Answer, JSON, TEXT};
use crate::proxy_health::{self, Pulse};

/// Where the agent answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Servers {
    /// `/healthz` and `/livez`; nowhere if it isn't given.
    pub healthz: Option<SocketAddr>,
    /// `/metrics`, `/configz`, `/proxyMode` and `/healthz`; nowhere if it isn't given.
    pub metrics: Option<SocketAddr>,
    /// A port that can't be opened ends the agent. Otherwise it is tried again, and forwarding goes on.
    pub hard_fail: bool,
}

/// The addresses that were opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Of [`Servers::healthz`].
    pub healthz: Option<SocketAddr>,
    /// Of [`Servers::metrics`].
    pub metrics: Option<SocketAddr>,
}

/// The port of `/healthz` where none is given (kube-proxy's pkg/cluster/ports).
pub const HEALTHZ_PORT: u16 = 10256;
/// The port of `/metrics` where none is given.
pub const METRICS_PORT: u16 = 10249;

impl Servers {
    /// Where kube-proxy answers by default: health on all addresses, metrics on the machine itself.
    pub fn usual() -> Servers {
        Servers {
            healthz: Some(SocketAddr::from(([0, 0, 0, 0], HEALTHZ_PORT))),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], METRICS_PORT))),
            hard_fail: false,
        }
    }
}

/// An address to answer on, given as ADDRESS:PORT, or as ADDRESS alone for the usual port.
///
/// # Errors
///
/// What is wrong with it, and what would be right.
pub fn bind_address(text: &str, port: u16) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    text.parse().map_err(|_| {
        format!("{text:?} is not ADDRESS:PORT; write an IP address and a port, such as 0.0.0.0:{port}")
    })
}

/// What the ports show.
pub(crate) struct Shown {
    pub meters: Arc<Meters>,
    /// Whether the node is to get traffic.
    pub eligible: watch::Receiver<bool>,
    /// For how long a change may wait for the kernel.
    pub limit: Duration,
    /// The configuration in effect, as a KubeProxyConfiguration.
    pub config: Value,
    /// Reads the kernel's counters.
    pub counters: Option<ReadCounters>,
}

/// Reads the kernel's counters; `None` if they can't be read.
pub(crate) type ReadCounters = Box<dyn Fn() -> Option<Counters> + Send + Sync>;

/// How long until a port that is taken is tried again (as in kube-proxy's cmd/kube-proxy/app/server.go).
const RETRY: Duration = Duration::from_secs(5);

/// Answers on the ports for as long as it is polled.
///
/// # Errors
///
/// A port can't be opened and that is to be the end.
pub(crate) async fn run(
    servers: Servers,
    shown: Shown,
    recorder: Recorder,
    opened: watch::Sender<Opened>,
) -> anyhow::Result<()> {
    let shown = Arc::new(shown);
    let hard_fail = servers.hard_fail;
    let one =
        async |port: Option<Port>, answer: fn(&Shown, &str) -> Answer, note: fn(&mut Opened, SocketAddr)| {
            let Some(port) = port else { return std::future::pending().await };
            let listener = port.open(hard_fail, &recorder).await?;
            let at = listener.local_addr()?;
            opened.send_modify(|opened| note(opened, at));
            let shown = shown.clone();
            port::serve(listener, move |request| answer(&shown, request.uri().path())).await;
            anyhow::Ok(())
        };
    let port = |at: Option<SocketAddr>, field, reason| at.map(|at| Port { at, field, reason });
    let healthz = port(servers.healthz, "healthzBindAddress", "FailedToStartProxierHealthcheck");
    let metrics = port(servers.metrics, "metricsBindAddress", "FailedToStartMetricServer");
    tokio::try_join!(
        one(healthz, Shown::healthz, |opened, at| opened.healthz = Some(at)),
        one(metrics, Shown::metrics, |opened, at| opened.metrics = Some(at)),
    )
    .map(|_| ())
}

/// One of the ports, for those who wonder why it isn't open.
struct Port {
    at: SocketAddr,
    field: &'static str,
    reason: &'static str,
}

impl Port {
    async fn open(&self, hard_fail: bool, recorder: &Recorder) -> anyhow::Result<tokio::net::TcpListener> {
        if hard_fail {
            return port::bind(self.at).await.map_err(|error| {
                recorder.of_node(Severity::Warning, self.reason, format!("{self}: {error}"));
                anyhow::Error::new(error).context(self.to_string())
            });
        }
        let mut told = None;
        let failed = |error: std::io::Error| {
            let error = error.to_string();
            if told.as_ref() != Some(&error) {
                tracing::warn!(%error, again_in = ?RETRY, "{self}");
                recorder.of_node(Severity::Warning, self.reason, format!("{self}: {error}"));
                told = Some(error);
            }
        };
        Ok(port::open(self.at, RETRY, failed).await)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Port { at, field, .. } = self;
        write!(f, "{at} can't be opened; free it (`ss -ltnp`) or set {field} to another")
    }
}

impl Shown {
    fn healthz(&self, path: &str) -> Answer {
        let eligible = match path {
            "/healthz" => Some(*self.eligible.borrow()),
            "/livez" => None,
            _ => return port::not_found(),
        };
        let pulse = self.meters.look(|r| Pulse { last_sync: r.last_sync, healthy: r.healthy(self.limit) });
        let (code, body) = proxy_health::report(pulse, eligible, SystemTime::now());
        self.meters.answered(eligible.is_some(), code.as_u16());
        port::answer(code, JSON, body)
    }

    fn metrics(&self, path: &str) -> Answer {
        let ok = |content, body: String| port::answer(StatusCode::OK, content, body);
        match path {
            "/metrics" => {
                let counters = self.counters.as_ref().and_then(|read| read());
                ok(
                    portolan_metrics::CONTENT,
                    metrics::page(&self.meters, counters, portolan_metrics::Process::now()),
                )
            }
            "/healthz" => ok(TEXT, "ok".to_owned()),
            "/proxyMode" => ok(TEXT, "nftables".to_owned()),
            "/configz" => {
                let config = serde_json::json!({ "kubeproxy.config.k8s.io": self.config });
                ok(JSON, config.to_string())
            }
            _ => port::not_found(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;
    use crate::port::tests::get;

    fn anywhere() -> Option<SocketAddr> {
        Some("127.0.0.1:0".parse().expect("an address"))
    }

    /// The node may get traffic or not, as the sender says.
    fn shown() -> (Shown, watch::Sender<bool>) {
        let (eligible, asked) = watch::channel(true);
        let shown = Shown {
            meters: Arc::default(),
            eligible: asked,
            limit: Duration::from_secs(60),
            config: json!({"mode": "nftables"}),
            counters: Some(Box::new(|| Some(Counters { unallocated: 3, ..Counters::default() }))),
        };
        (shown, eligible)
    }

    async fn started(
        servers: Servers,
        shown: Shown,
    ) -> (Opened, tokio::task::JoinHandle<anyhow::Result<()>>) {
        let (opened, mut open) = watch::channel(Opened::default());
        let (recorder, _) = Recorder::new("here");
        let task = tokio::spawn(run(servers, shown, recorder, opened));
        let both = open.wait_for(|o| o.healthz.is_some() && o.metrics.is_some());
        let open = tokio::time::timeout(Duration::from_secs(20), both)
            .await
            .expect("in time")
            .expect("open")
            .clone();
        (open, task)
    }

    #[tokio::test]
    async fn the_ports_answer_as_those_of_kube_proxy() {
        let (shown, eligible) = shown();
        let meters = shown.meters.clone();
        let servers = Servers { healthz: anywhere(), metrics: anywhere(), hard_fail: false };
        let (open, task) = started(servers, shown).await;
        let (healthz, metrics) = (open.healthz.unwrap(), open.metrics.unwrap());

        let (head, body) = get(healthz, "/healthz").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("content-type: application/json\r\n"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff\r\n"), "{head}");
        assert!(body.contains("\"nodeEligible\":true"), "{body}");
        eligible.send_replace(false);
        assert!(get(healthz, "/healthz").await.0.starts_with("HTTP/1.1 503 "));
        assert!(get(healthz, "/livez").await.0.starts_with("HTTP/1.1 200 "));
        meters.refused();
        assert!(get(healthz, "/livez").await.0.starts_with("HTTP/1.1 503 "));
        assert!(get(healthz, "/").await.0.starts_with("HTTP/1.1 404 "));

        let (head, body) = get(metrics, "/metrics").await;
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(body.contains("\nkubeproxy_proxy_healthz_total{code=\"503\"} 1\n"), "{body}");
        assert!(body.contains("\nportolan_dropped_packets_total{reason=\"unallocated\"} 3\n"), "{body}");
        assert_eq!(get(metrics, "/healthz").await.1, "ok");
        let (head, body) = get(metrics, "/proxyMode").await;
        assert!(head.contains("content-type: text/plain; charset=utf-8\r\n"), "{head}");
        assert_eq!(body, "nftables");
        assert_eq!(get(metrics, "/configz").await.1, r#"{"kubeproxy.config.k8s.io":{"mode":"nftables"}}"#);
        assert!(get(metrics, "/debug/pprof/").await.0.starts_with("HTTP/1.1 404 "));
        task.abort();
    }

    #[tokio::test]
    async fn a_taken_port_is_told_of_and_the_other_port_answers() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let servers = Servers { healthz: taken.local_addr().ok(), metrics: anywhere(), hard_fail: false };
        let (opened, mut open) = watch::channel(Opened::default());
        let (recorder, mut events) = Recorder::new("here");
        let task = tokio::spawn(run(servers, shown().0, recorder, opened));
        let told = tokio::time::timeout(Duration::from_secs(20), events.recv()).await.expect("in time");
        assert_eq!(told.expect("an event").reason.as_deref(), Some("FailedToStartProxierHealthcheck"));
        let metrics = open.wait_for(|o| o.metrics.is_some()).await.expect("open").metrics.unwrap();
        assert_eq!(get(metrics, "/healthz").await.1, "ok");
        task.abort();
    }

    #[tokio::test]
    async fn a_taken_port_is_the_end_where_that_was_asked_for() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let servers = Servers { healthz: None, metrics: taken.local_addr().ok(), hard_fail: true };
        let (recorder, mut events) = Recorder::new("here");
        let error = run(servers, shown().0, recorder, watch::Sender::default()).await.unwrap_err();
        assert!(format!("{error:#}").contains("set metricsBindAddress to another"), "{error:#}");
        let event = events.try_recv().expect("an event");
        assert_eq!(event.reason.as_deref(), Some("FailedToStartMetricServer"));
    }

    #[test]
    fn an_address_may_lack_its_port() {
        let given = |text| bind_address(text, 10256).map(|a| a.to_string());
        assert_eq!(given("0.0.0.0:1"), Ok("0.0.0.0:1".to_owned()));
        assert_eq!(given("192.0.2.1"), Ok("192.0.2.1:10256".to_owned()));
        assert_eq!(given("::"), Ok("[::]:10256".to_owned()));
        assert_eq!(given("[::1]"), Ok("[::1]:10256".to_owned()));
        assert_eq!(given("[::1]:80"), Ok("[::1]:80".to_owned()));
        assert!(given("localhost:80").unwrap_err().contains("such as 0.0.0.0:10256"));
    }
}
