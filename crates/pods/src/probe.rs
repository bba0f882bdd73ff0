//! Probes: asking a container how it is, and counting the answers.

mod grpc; // asking by the gRPC health protocol
mod http; // asking by HTTP, plain or over TLS

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

pub(crate) use http::http_get;

use crate::sandbox::Control;

/// Which of a container's probes, or its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Startup,
    Readiness,
    Liveness,
    /// Of the hook after the start only a failure is told.
    PostStart,
}

/// What a probe has found out, once its thresholds are passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The container.
    pub container: String,
    /// Which run of it.
    pub id: String,
    /// Which probe.
    pub kind: Kind,
    /// Whether the container is well.
    pub well: bool,
    /// The last answer, for the event; `None` if it was good.
    pub complaint: Option<String>,
}

/// Counts answers: so many alike in a row change the opinion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gauge {
    opinion: bool,
    success_threshold: i32,
    failure_threshold: i32,
    in_a_row: i32,
    last: Option<bool>,
}

impl Gauge {
    /// Begins with an opinion.
    pub fn new(probe: &Probe, opinion: bool) -> Gauge {
        Gauge {
            opinion,
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            in_a_row: 0,
            last: None,
        }
    }

    /// Takes an answer; the opinion, whenever the answers suffice for one.
    pub fn count(&mut self, well: bool) -> Option<bool> {
        self.in_a_row = if self.last == Some(well) { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(well);
        let threshold = if well { self.success_threshold } else { self.failure_threshold };
        if self.in_a_row < threshold {
            return None;
        }
        self.opinion = well;
        Some(well)
    }
}

/// A container's probes and how to reach it.
#[derive(Clone)]
pub(crate) struct Patient {
    pub container: Container,
    pub id: String,
    pub address: IpAddr,
    pub control: Control,
    /// What is known from before, as after a restart of the node's process.
    pub started: bool,
    pub ready: bool,
}

/// Probes a container until the task is dropped. Each verdict goes to `tell`.
pub(crate) async fn attend(patient: Patient, tell: mpsc::UnboundedSender<Verdict>) {
    let container = &patient.container;
    if let Some(probe) = container.startup_probe.as_ref().filter(|_| !patient.started) {
        examine(&patient, probe, Kind::Startup, false, &tell).await;
    }
    let readiness = async {
        if let Some(probe) = &container.readiness_probe {
            examine(&patient, probe, Kind::Readiness, patient.ready, &tell).await;
        }
    };
    let liveness = async {
        if let Some(probe) = &container.liveness_probe {
            examine(&patient, probe, Kind::Liveness, true, &tell).await;
        }
    };
    tokio::join!(readiness, liveness);
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
}

/// Asks again and again. A startup probe is over with its first verdict.
async fn examine(
    patient: &Patient,
    probe: &Probe,
    kind: Kind,
    opinion: bool,
    tell: &mpsc::UnboundedSender<Verdict>,
) {
    // A server needs a moment before it listens. Until it has answered well once, ask sooner than the period says, so that
    // a pod isn't unready for a period because of the first millisecond.
    const FIRST: Duration = Duration::from_millis(50);
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let mut gauge = Gauge::new(probe, opinion);
    let mut eager = (kind == Kind::Readiness && !opinion).then_some(FIRST);
    loop {
        let answer = match tokio::time::timeout(timeout, ask(patient, probe, timeout)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", timeout.as_secs())),
        };
        let well = answer.is_ok();
        let verdict = |well, complaint| Verdict {
            container: patient.container.name.clone(),
            id: patient.id.clone(),
            kind,
            well,
            complaint,
        };
        if well {
            eager = None;
        }
        match (gauge.count(well), answer) {
            // While it was never ready there is nothing to say about a container that isn't.
            (Some(false), Err(_)) if eager.is_some() => {}
            (Some(well), answer) => {
                if tell.send(verdict(well, answer.err())).is_err() || kind == Kind::Startup && well {
                    return;
                }
            }
            (None, _) => {}
        }
        match &mut eager {
            Some(soon) if *soon < period => {
                tokio::time::sleep(*soon).await;
                *soon *= 2;
                if *soon >= period {
                    eager = None;
                }
            }
            _ => tokio::time::sleep(period).await,
        }
    }
}

/// A port by number or by the name that the container gives it.
pub(crate) fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0);
    number.ok_or_else(|| format!("the probe's port {port:?} is no port of the container"))
}

fn target(host: Option<&String>, address: IpAddr, port: u16) -> Result<SocketAddr, String> {
    let address = match host.filter(|host| !host.is_empty()) {
        Some(host) => host.parse().map_err(|_| format!("the probe's host {host:?} is not an IP address"))?,
        None => address,
    };
    Ok(SocketAddr::new(address, port))
}

async fn connect(target: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(target).await.map_err(|error| format!("connect to {target}: {error}"))
}

/// One probe.
async fn ask(patient: &Patient, probe: &Probe, timeout: Duration) -> Result<(), String> {
    if let Some(get) = &probe.http_get {
        return http_get(get, &patient.container, patient.address).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let target = target(tcp.host.as_ref(), patient.address, port(&patient.container, &tcp.port)?)?;
        return connect(target).await.map(drop);
    }
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        let (code, output) = patient.control.exec(&patient.container.name, command, timeout).await?;
        return match code {
            Some(0) => Ok(()),
            Some(code) => Err(format!("the command ended with status {code}: {}", output.trim())),
            None => Err(format!("the command could not be run: {}", output.trim())),
        };
    }
    if let Some(action) = &probe.grpc {
        let port = port(&patient.container, &IntOrString::Int(action.port))?;
        let service = action.service.as_deref().unwrap_or_default();
        return grpc::check(SocketAddr::new(patient.address, port), service).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opinion_changes_only_after_enough_answers_in_a_row() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut gauge = Gauge::new(&probe, false);
        let answers = [
            (true, None),
            (false, None),
            (true, None),
            (true, Some(true)),
            (false, None),
            (false, None),
            (true, None),
            (false, None),
            (false, None),
            (false, Some(false)),
            (false, Some(false)),
        ];
        for (index, (well, opinion)) in answers.into_iter().enumerate() {
            assert_eq!(gauge.count(well), opinion, "answer {index}");
        }
    }

    #[test]
    fn a_probes_port_may_be_named() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "ports": [{"name": "http", "containerPort": 8080}]
        }))
        .expect("a container");
        assert_eq!(port(&container, &IntOrString::String("http".into())), Ok(8080));
        assert_eq!(port(&container, &IntOrString::Int(81)), Ok(81));
        for bad in [IntOrString::Int(0), IntOrString::Int(70000), IntOrString::String("none".into())] {
            assert!(port(&container, &bad).is_err(), "{bad:?}");
        }
    }
}
