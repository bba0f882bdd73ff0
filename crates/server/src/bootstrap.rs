//! The objects that every cluster has from its first moment on.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_api::kinds::class::SYSTEM_PRIORITIES;
use portolan_api::kinds::service_cidr::SERVICE_CIDR;
use portolan_api::{Kind, Status, find, meta, walk};
use portolan_store::{Compare, Op, Txn};
use serde_json::{Value, json};

use crate::claims;
use crate::config::{Error, Result};
use crate::server::Server;
use crate::write::{Part, Subject};

/// The namespaces that clients count on.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
const KUBERNETES: &str = "kubernetes";

/// Makes what isn't there; of what is there, only the server's own addresses are brought up to date.
pub(crate) async fn run(server: &Server) -> Result<()> {
    for name in NAMESPACES {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        create(server, server.namespaces(), None, object).await?;
    }
    let classes = kind("scheduling.k8s.io", "priorityclasses")?;
    for (name, value, description) in SYSTEM_PRIORITIES {
        let object = json!({"metadata": {"name": name}, "value": value, "description": description});
        create(server, classes, None, object).await?;
    }
    crate::rbac::reconcile(server).await?;
    let config = &server.config;
    let Some(primary) = config.service_cidrs.first() else {
        return Err(Error::Config {
            field: "service_cidrs",
            problem: "at least one range is needed, as in 10.96.0.0/16".into(),
        });
    };
    let first = first_address(primary);
    if !primary.contains(&first) {
        return Err(Error::Config {
            field: "service_cidrs",
            problem: format!("{primary} has no address to give"),
        });
    }
    service_cidr(server).await?;
    let family = if first.is_ipv4() { "IPv4" } else { "IPv6" };
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": KUBERNETES, "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": first.to_string(), "clusterIPs": [first.to_string()],
            "ipFamilyPolicy": "SingleStack", "ipFamilies": [family], "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.advertise_port}],
        },
    });
    create(server, kind("", "services")?, Some("default"), service).await?;

    // Endpoints may not be loopback addresses: a pod would reach itself there (Kubernetes refuses them).
    let usable = |ip: &&IpAddr| ip.is_ipv4() == first.is_ipv4() && !ip.is_loopback();
    let addresses: Vec<String> =
        config.advertise_addresses.iter().filter(usable).map(IpAddr::to_string).collect();
    if addresses.is_empty() {
        tracing::info!("no {family} address to advertise: pods won't reach the API through its Service");
    }
    let endpoints: Vec<Value> =
        addresses.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    let ports = json!([{"name": "https", "port": config.advertise_port, "protocol": "TCP"}]);
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": KUBERNETES, "namespace": "default", "labels": {"kubernetes.io/service-name": KUBERNETES},
        },
        "addressType": family, "endpoints": endpoints, "ports": ports,
    });
    ensure(server, kind("discovery.k8s.io", "endpointslices")?, slice, &["endpoints", "ports"]).await?;

    let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let subsets = if ips.is_empty() { json!([]) } else { json!([{"addresses": ips, "ports": ports}]) };
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": KUBERNETES, "namespace": "default",
            // The slice above is written here; the mirroring controller shall not make a second one.
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": subsets,
    });
    ensure(server, kind("", "endpoints")?, endpoints, &["subsets"]).await
}

/// Makes the ServiceCIDR that the cluster was made with (controlplane/controller/defaultservicecidr): ready at once, for
/// nothing else gives addresses. Addresses that an older version held in its own way become IPAddresses.
async fn service_cidr(server: &Server) -> Result<()> {
    let kind: &Kind = &SERVICE_CIDR;
    let ranges: Vec<String> = server.config.service_cidrs.iter().map(ToString::to_string).collect();
    let object = json!({"metadata": {"name": KUBERNETES}, "spec": {"cidrs": ranges}});
    create(server, kind, None, object).await?;
    let subject = Subject { kind, namespace: None, name: KUBERNETES };
    let make = |old: &Value| {
        let mut new = old.clone();
        if walk::list(old, "spec.cidrs").len() == 1
            && ranges.len() == 2
            && old["spec"]["cidrs"][0] == ranges[0]
        {
            new["spec"]["cidrs"] = json!(ranges);
        }
        Ok(new)
    };
    let grown = server.modify(subject, Part::Main, false, make).await;
    grown.map_err(|status| failed(kind, KUBERNETES, &status))?;
    let make = |old: &Value| {
        let mut new = old.clone();
        let ready = walk::list(old, "status.conditions").iter().any(|c| walk::text(c, "type") == "Ready");
        if !ready && meta::deletion_timestamp(old).is_none() {
            let now = meta::rfc3339(jiff::Timestamp::now());
            new["status"]["conditions"] = json!([{
                "type": "Ready", "status": "True", "lastTransitionTime": now, "reason": "",
                "message": "Kubernetes default Service CIDR is ready",
            }]);
        }
        Ok(new)
    };
    let ready = server.modify(subject, Part::Status, false, make).await;
    ready.map_err(|status| failed(kind, KUBERNETES, &status))?;
    for (old, claim, service) in claims::old_addresses(&*server.store).await? {
        let key = claims::key(&claim);
        let value = claims::value(&key, &service);
        let ops = vec![Op::Delete(old), Op::Put(key.clone(), value)];
        // Somebody else who holds it by now keeps it.
        let _ = server.store.txn(Txn { compares: vec![Compare::Absent(key)], ops }).await?;
    }
    Ok(())
}

/// The address behind the network's own.
fn first_address(cidr: &IpNet) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(ip) => IpAddr::from(u32::from(ip).wrapping_add(1).to_be_bytes()),
        IpAddr::V6(ip) => IpAddr::from(u128::from(ip).wrapping_add(1).to_be_bytes()),
    }
}

fn kind(group: &str, plural: &str) -> Result<&'static Kind> {
    find(group, "v1", plural)
        .ok_or_else(|| Error::Bootstrap { what: plural.into(), why: "the kind is not served".into() })
}

async fn create(server: &Server, kind: &Kind, namespace: Option<&str>, object: Value) -> Result<bool> {
    let name = walk::text(&object, "metadata.name").to_owned();
    match server.create_object(kind, namespace, object, false).await {
        Ok(_) => Ok(true),
        Err(status) if status.reason == "AlreadyExists" => Ok(false),
        // After a change of the ranges the Service keeps the address it has.
        Err(status) if status.code == 422 && exists(server, kind, namespace, &name).await => Ok(false),
        Err(status) => Err(failed(kind, &name, &status)),
    }
}

async fn exists(server: &Server, kind: &Kind, namespace: Option<&str>, name: &str) -> bool {
    server.stored(kind, &Subject { kind, namespace, name }.key(), name).await.is_ok()
}

/// Makes an object in `default`, or gives the one that is there these fields.
async fn ensure(server: &Server, kind: &Kind, object: Value, fields: &[&str]) -> Result<()> {
    if create(server, kind, Some("default"), object.clone()).await? {
        return Ok(());
    }
    let subject = Subject { kind, namespace: Some("default"), name: KUBERNETES };
    let make = |old: &Value| {
        let mut new = old.clone();
        for field in fields {
            new[*field] = object[*field].clone();
        }
        Ok(new)
    };
    let changed = server.modify(subject, Part::Main, false, make).await;
    changed.map(drop).map_err(|status| failed(kind, KUBERNETES, &status))
}

fn failed(kind: &Kind, name: &str, status: &Status) -> Error {
    Error::Bootstrap { what: format!("{} {name}", kind.kind()), why: status.message.clone() }
}
