//! From an API that answers to a cluster that is ready: nodes, manifests, and Services that really answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::apply::{self, Document};
use super::cluster::{self, Objects};
use super::nodeports;
use super::protocol::{Request, Writer};
use super::state::Published;
use super::topology::{IpFamily, Topology, Transport};

/// How long each condition may take. The machine may be slow, and a mistake in a manifest must end somewhere.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the tables may take once all objects are there.
const SETTLING: Duration = Duration::from_secs(10);

/// The API answers.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The text of the kubeconfig.
    pub kubeconfig: String,
}

/// What the lab's init lets be known.
#[derive(Clone, Debug)]
pub struct Signs {
    /// The API answers.
    pub serving: Arc<watch::Sender<Option<Serving>>>,
    /// The published ports.
    pub published: Arc<watch::Sender<Vec<Published>>>,
    /// What was awaited has answered.
    pub answered: Arc<Notify>,
}

/// What can be tried.
#[derive(Debug, Default)]
pub struct Found {
    /// The Services with endpoints.
    ready: BTreeSet<String>,
    /// An address of a load balancer with endpoints, with its port.
    pub load_balancer: Option<SocketAddr>,
}

impl Found {
    /// Whether somebody answers behind a published port, over TCP.
    pub fn answers(&self, port: &Published) -> bool {
        port.problem.is_none()
            && port.publish.protocol == Transport::Tcp
            && port.service.as_ref().is_some_and(|service| self.ready.contains(service))
    }
}

/// Waits and applies until all is there that was asked for.
pub async fn run(
    topology: &Topology,
    documents: &[Document],
    signs: Signs,
    writer: &mut Writer,
    tell: impl Fn(String),
) -> anyhow::Result<Found> {
    let mut serving = signs.serving.subscribe();
    let serving = serving.wait_for(Option::is_some).await?.clone().context("serving")?;
    let client = cluster::connect(&serving.kubeconfig).await?;
    // Nodes first: pods that are spread before all nodes are ready end up on few of them.
    if timeout(PATIENCE, nodes_ready(&client, topology.nodes.len())).await.is_err() {
        bail!("the nodes are not ready after {PATIENCE:?}; `portolan lab logs node-1` may say why");
    }
    tell(format!("{} nodes ready", topology.nodes.len()));
    apply::apply(&client, documents, &tell).await?;
    let waited = timeout(PATIENCE, async {
        apply::deployments_available(&client, &tell).await;
        apply::services_addressed(&client).await
    });
    let Ok(services) = waited.await else {
        bail!("not there after {PATIENCE:?}:\n{}", apply::missing(&client).await.join("\n"));
    };

    let ready = match timeout(SETTLING, with_endpoints(&client, &services)).await {
        Ok(ready) => ready?,
        Err(_) => bail!("ready pods have no endpoints after {SETTLING:?}"),
    };
    let ready_services: Vec<&Service> =
        services.iter().filter(|s| ready.contains(&cluster::key(*s))).collect();
    published(&signs, &services).await;
    let awaited = frontends(topology, &ready_services);
    writer.send(&Request::Await(awaited.clone())).await;
    if timeout(SETTLING, signs.answered.notified()).await.is_err() {
        tell(format!("not all of these answer after {SETTLING:?}: {awaited:?}"));
    }
    let load_balancer = ready_services.iter().find_map(|service| {
        let port = first_tcp_port(service)?;
        Some(SocketAddr::new(*load_balancer_addresses(service).first()?, port))
    });
    Ok(Found { ready, load_balancer })
}

async fn nodes_ready(client: &Client, count: usize) {
    cluster::until(Api::<Node>::all(client.clone()), |nodes: &Objects<Node>| {
        let ready = nodes.values().filter(|node| {
            let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
            conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
        });
        (ready.count() >= count).then_some(())
    })
    .await
}

/// Waits until every Service whose selector matches a ready pod has endpoints; returns all that have.
async fn with_endpoints(client: &Client, services: &[Service]) -> anyhow::Result<BTreeSet<String>> {
    let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await?;
    let wanted: BTreeSet<String> = services
        .iter()
        .filter(|service| {
            let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
            selector.is_some_and(|selector| {
                !selector.is_empty()
                    && pods.iter().any(|pod| {
                        let labels = pod.metadata.labels.as_ref();
                        pod.metadata.namespace == service.metadata.namespace
                            && is_ready(pod)
                            && selector.iter().all(|(k, v)| labels.is_some_and(|l| l.get(k) == Some(v)))
                    })
            })
        })
        .map(cluster::key)
        .collect();
    let ready = cluster::until(Api::<EndpointSlice>::all(client.clone()), |slices| {
        let ready: BTreeSet<String> = slices.values().filter_map(ready_service).collect();
        wanted.is_subset(&ready).then_some(ready)
    })
    .await;
    Ok(ready)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The Service of a slice that has a ready endpoint.
fn ready_service(slice: &EndpointSlice) -> Option<String> {
    let ready = |c: &k8s_openapi::api::discovery::v1::EndpointConditions| c.ready.unwrap_or(true);
    let any = slice.endpoints.iter().flatten().any(|e| e.conditions.as_ref().is_none_or(ready));
    let name = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
    any.then(|| format!("{}/{name}", slice.metadata.namespace.as_deref().unwrap_or_default()))
}

/// Waits until each NodePort is published, or it is known why not.
async fn published(signs: &Signs, services: &[Service]) {
    let wanted: Vec<u16> = services
        .iter()
        .flat_map(|s| s.spec.iter().flat_map(|spec| spec.ports.iter().flatten()))
        .filter(|port| port.protocol.as_deref() != Some("SCTP"))
        .filter_map(|port| u16::try_from(port.node_port?).ok().filter(|p| *p != 0))
        .collect();
    let mut list = signs.published.subscribe();
    let all = list.wait_for(|list| wanted.iter().all(|port| list.iter().any(|p| p.publish.port == *port)));
    let _ = timeout(SETTLING, all).await;
}

fn first_tcp_port(service: &Service) -> Option<u16> {
    let ports = service.spec.as_ref()?.ports.as_deref()?;
    let tcp = ports.iter().find(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP")?;
    u16::try_from(tcp.port).ok()
}

/// The addresses that load balancers gave a Service.
pub fn load_balancer_addresses(service: &Service) -> Vec<IpAddr> {
    let ingress = service
        .status
        .as_ref()
        .and_then(|s| s.load_balancer.as_ref())
        .and_then(|l| l.ingress.as_deref())
        .unwrap_or_default();
    ingress.iter().filter_map(|i| i.ip.as_deref()?.parse().ok()).collect()
}

/// Where the client can connect over TCP as soon as the nodes' tables are as the objects say: NodePorts of every node,
/// and load balancers. Policies that keep some clients out are left aside.
fn frontends(topology: &Topology, services: &[&Service]) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let closed = spec.external_traffic_policy.as_deref() == Some("Local")
            || spec.load_balancer_source_ranges.as_ref().is_some_and(|r| !r.is_empty());
        if closed {
            continue;
        }
        let families = nodeports::families(spec.ip_families.as_deref().unwrap_or_default());
        for port in spec.ports.iter().flatten().filter(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP") {
            if let Some(number) = port.node_port.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0) {
                let nodes = topology.nodes.iter().flat_map(|node| &node.addresses);
                let nodes = nodes.filter(|address| families.contains(&IpFamily::of(**address)));
                all.extend(nodes.map(|address| SocketAddr::new(*address, number)));
            }
            let Ok(number) = u16::try_from(port.port) else { continue };
            all.extend(load_balancer_addresses(service).into_iter().map(|ip| SocketAddr::new(ip, number)));
        }
    }
    all
}
