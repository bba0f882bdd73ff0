//! The cluster's name servers: one on each node, and the Service `kube-dns` that pods know them by.
//!
//! They are ordinary clients with a credential of their own, good for no more than they read.

use std::net::IpAddr;

use anyhow::Context;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use kube::config::{AuthInfo, Kubeconfig};
use serde_json::{Value, json};

use super::topology::{IpFamily, Topology};
use super::{apply, cluster};

/// The port of questions.
pub const PORT: u16 = 53;
/// The port of metrics.
pub const METRICS_PORT: u16 = 9153;

/// The names that programs look for.
const NAME: &str = "kube-dns";
const NAMESPACE: &str = "kube-system";
/// What a name server may read.
const ROLE: &str = "portolan:dns";
/// How long a lab's credential is good, in seconds: a year, as a node's.
const LIFE: i64 = 365 * 24 * 3600;

/// Makes the name servers' objects, with the administrator's kubeconfig; returns their own kubeconfig.
pub async fn install(topology: &Topology, kubeconfig: &str) -> anyhow::Result<String> {
    let client = cluster::connect(kubeconfig).await?;
    let documents: Vec<_> = objects(topology)
        .into_iter()
        .map(|object| apply::document("the lab's name servers", object))
        .collect::<Result<_, _>>()?;
    apply::apply(&client, &documents, |_| {}).await?;

    let accounts: Api<ServiceAccount> = Api::namespaced(client, NAMESPACE);
    let spec = TokenRequestSpec { expiration_seconds: Some(LIFE), ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let answer = accounts.create_token_request(NAME, &PostParams::default(), &request).await?;
    let token = answer.status.and_then(|status| status.token).context("the answer has no token")?;
    let mut own = Kubeconfig::from_yaml(kubeconfig).context("the kubeconfig")?;
    for user in &mut own.auth_infos {
        user.auth_info = Some(AuthInfo { token: Some(token.clone().into()), ..AuthInfo::default() });
    }
    Ok(serde_saphyr::to_string(&own)?)
}

fn objects(topology: &Topology) -> Vec<Value> {
    let labels =
        json!({"k8s-app": NAME, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"});
    let addresses: Vec<String> = topology.cluster_dns().iter().map(IpAddr::to_string).collect();
    let families: Vec<String> = topology.families.iter().map(IpFamily::to_string).collect();
    let policy = if families.len() == 1 { "SingleStack" } else { "RequireDualStack" };
    let reads = json!(["list", "watch"]);
    let mut objects = vec![
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": ROLE},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "namespaces"], "verbs": reads},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": reads},
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": ROLE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLE},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
        }),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
            "spec": {
                "clusterIP": addresses[0], "clusterIPs": addresses,
                "ipFamilies": families, "ipFamilyPolicy": policy,
                // A question never leaves its node.
                "trafficDistribution": "PreferSameNode",
                "ports": [
                    {"name": "dns", "protocol": "UDP", "port": PORT},
                    {"name": "dns-tcp", "protocol": "TCP", "port": PORT},
                    {"name": "metrics", "protocol": "TCP", "port": METRICS_PORT},
                ],
            },
        }),
    ];
    // The name servers are no pods, so nobody else writes their slices; each node is served by its own.
    for family in &topology.families {
        let endpoints: Vec<Value> = topology
            .nodes
            .iter()
            .filter_map(|node| {
                Some(json!({
                    "addresses": [node.address(*family)?], "nodeName": node.name,
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "hints": {"forNodes": [{"name": node.name}]},
                }))
            })
            .collect();
        let mut labels = labels.clone();
        labels["kubernetes.io/service-name"] = NAME.into();
        labels["endpointslice.kubernetes.io/managed-by"] = "portolan-lab".into();
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{NAME}-{}", family.to_string().to_lowercase()),
                "namespace": NAMESPACE, "labels": labels,
            },
            "addressType": family.to_string(),
            "endpoints": endpoints,
            "ports": [
                {"name": "dns", "protocol": "UDP", "port": PORT},
                {"name": "dns-tcp", "protocol": "TCP", "port": PORT},
                {"name": "metrics", "protocol": "TCP", "port": METRICS_PORT},
            ],
        }));
    }
    objects
}
