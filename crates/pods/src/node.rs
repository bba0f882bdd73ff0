//! The node in the API: its Node object and its lease.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};

use crate::{Config, SERVING_CERT_ANNOTATION};

/// As many pods as a node offers to run.
const PODS: u32 = 110;
/// How long a heartbeat in a condition may be old before it is renewed; the lease is what tells that the node lives.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// The machine as its Node object describes it.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    cpus: usize,
    memory_kib: u64,
    info: NodeSystemInfo,
}

fn first_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

/// `GOARCH`, which is what `kubernetes.io/arch` holds.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Machine {
    /// Reads what there is to know.
    pub fn read() -> Machine {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let memory_kib = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let version = format!("v1.36.0+portolan-{}", env!("CARGO_PKG_VERSION"));
        let machine_id = first_line("/etc/machine-id");
        let info = NodeSystemInfo {
            architecture: architecture().to_owned(),
            boot_id: first_line("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: format!("portolan://{}", env!("CARGO_PKG_VERSION")),
            kernel_version: first_line("/proc/sys/kernel/osrelease"),
            kube_proxy_version: String::new(),
            kubelet_version: version,
            system_uuid: machine_id.clone(),
            machine_id,
            operating_system: "linux".to_owned(),
            os_image: pretty.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned()),
            ..NodeSystemInfo::default()
        };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Machine { cpus, memory_kib, info }
    }
}

/// Sets a condition, and keeps its times where nothing has changed and the heartbeat is young.
fn condition(
    conditions: &mut Vec<NodeCondition>,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let index = conditions.iter().position(|condition| condition.type_ == kind).unwrap_or_else(|| {
        conditions.push(NodeCondition { type_: kind.to_owned(), ..NodeCondition::default() });
        conditions.len() - 1
    });
    let condition = &mut conditions[index];
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let changed = condition.status != value;
    if changed {
        condition.last_transition_time = Some(Time(now));
    }
    let beat = condition.last_heartbeat_time.as_ref().map(|time| time.0);
    if changed || beat.is_none_or(|beat| now.duration_since(beat).unsigned_abs() >= HEARTBEAT) {
        condition.last_heartbeat_time = Some(Time(now));
    }
    value.clone_into(&mut condition.status);
    condition.reason = Some(reason.to_owned());
    condition.message = Some(message.to_owned());
}

/// The labels that the node sets.
pub(crate) fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    labels.insert("kubernetes.io/hostname".to_owned(), config.node_name.clone());
    labels.insert("kubernetes.io/os".to_owned(), "linux".to_owned());
    labels.insert("kubernetes.io/arch".to_owned(), architecture().to_owned());
    labels
}

/// The status that the Node object should have, given the one that it has.
pub(crate) fn status(config: &Config, machine: &Machine, now: NodeStatus, time: Timestamp) -> NodeStatus {
    let mut status = now;
    let address = |kind: &str, address: String| NodeAddress { address, type_: kind.to_owned() };
    let mut addresses: Vec<NodeAddress> =
        config.node_addresses.iter().map(|ip| address("InternalIP", ip.to_string())).collect();
    addresses.push(address("Hostname", config.node_name.clone()));
    status.addresses = Some(addresses);
    let quantities = BTreeMap::from([
        ("cpu".to_owned(), Quantity(machine.cpus.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Ki", machine.memory_kib))),
        ("pods".to_owned(), Quantity(PODS.to_string())),
    ]);
    status.capacity = Some(quantities.clone());
    status.allocatable = Some(quantities);
    status.daemon_endpoints = Some(NodeDaemonEndpoints {
        kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.log_port) }),
    });
    status.node_info = Some(machine.info.clone());
    let conditions = status.conditions.get_or_insert_default();
    for (kind, reason, message) in [
        ("MemoryPressure", "KubeletHasSufficientMemory", "the node doesn't limit memory"),
        ("DiskPressure", "KubeletHasNoDiskPressure", "the node doesn't limit storage"),
        ("PIDPressure", "KubeletHasSufficientPID", "the node doesn't limit processes"),
    ] {
        condition(conditions, kind, "False", reason, message, time);
    }
    condition(conditions, "Ready", "True", "KubeletReady", "portolan runs pods here", time);
    status
}

/// Makes the Node object if there is none, and brings its labels and annotation to what they should be.
pub(crate) async fn register(
    client: &Client,
    config: &Config,
    fingerprint: &str,
) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let annotations = BTreeMap::from([(SERVING_CERT_ANNOTATION.to_owned(), fingerprint.to_owned())]);
    if api.get_opt(&config.node_name).await?.is_none() {
        let node = Node {
            metadata: ObjectMeta {
                name: Some(config.node_name.clone()),
                labels: Some(labels(config)),
                annotations: Some(annotations.clone()),
                ..ObjectMeta::default()
            },
            ..Node::default()
        };
        match api.create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other?),
        }
    }
    let change = serde_json::json!({"metadata": {"labels": labels(config), "annotations": annotations}});
    api.patch(&config.node_name, &PatchParams::default(), &Patch::Merge(change)).await
}

/// Writes the Node's status, if it is not what it should be.
pub(crate) async fn refresh(
    client: &Client,
    config: &Config,
    machine: &Machine,
    node: &Node,
) -> Result<(), kube::Error> {
    let existing = node.status.clone().unwrap_or_default();
    let wanted = status(config, machine, existing.clone(), Timestamp::now());
    if wanted == existing {
        return Ok(());
    }
    let api: Api<Node> = Api::all(client.clone());
    let change = serde_json::json!({"status": wanted});
    api.patch_status(&config.node_name, &PatchParams::default(), &Patch::Merge(change)).await.map(drop)
}

/// Renews the node's lease for as long as it runs: the sign of life that the control plane watches.
pub(crate) async fn keep_lease(client: Client, config: Config, uid: String) {
    let api: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let name = config.node_name.clone();
    let interval =
        Duration::from_secs(u64::from(config.lease_seconds.max(4)) / 4).min(Duration::from_secs(2));
    loop {
        let spec = LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(i32::from(config.lease_seconds)),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        };
        let renewed = async {
            let change = serde_json::json!({"spec": &spec});
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(change)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    let owner = OwnerReference {
                        api_version: "v1".to_owned(),
                        kind: "Node".to_owned(),
                        name: name.clone(),
                        uid: uid.clone(),
                        ..OwnerReference::default()
                    };
                    let metadata = ObjectMeta {
                        name: Some(name.clone()),
                        namespace: Some("kube-node-lease".to_owned()),
                        owner_references: Some(vec![owner]),
                        ..ObjectMeta::default()
                    };
                    api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec.clone()) }).await
                }
                other => other,
            }
        };
        match tokio::time::timeout(interval * 2, renewed).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the node's lease was not renewed"),
            Err(_) => tracing::warn!("the node's lease was not renewed: the API doesn't answer"),
        }
        tokio::time::sleep(interval).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let address = "192.0.2.1".parse().expect("an address");
        Config::new("n1", vec![address], std::path::Path::new("/tmp"))
    }

    #[test]
    fn a_status_that_is_as_it_should_be_is_not_written_again() {
        let (config, machine) = (config(), Machine::read());
        let time = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).expect("a time");
        let first = status(&config, &machine, NodeStatus::default(), time(0));
        assert_eq!(status(&config, &machine, first.clone(), time(30)), first);
        assert_ne!(status(&config, &machine, first.clone(), time(60)), first);
        let conditions = first.conditions.expect("conditions");
        assert!(conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"));
    }

    #[test]
    fn a_node_that_was_given_up_says_that_it_is_ready_again() {
        let (config, machine) = (config(), Machine::read());
        let lost =
            NodeCondition { type_: "Ready".into(), status: "Unknown".into(), ..NodeCondition::default() };
        let foreign =
            NodeCondition { type_: "Foreign".into(), status: "True".into(), ..NodeCondition::default() };
        let before = NodeStatus { conditions: Some(vec![lost, foreign.clone()]), ..NodeStatus::default() };
        let after = status(&config, &machine, before, Timestamp::now());
        let conditions = after.conditions.expect("conditions");
        assert!(conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"));
        assert!(conditions.contains(&foreign));
    }
}
