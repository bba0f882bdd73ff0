//! Addresses for Services of type LoadBalancer: observe, decide, write.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};
use kube::ResourceExt;
use parking_lot::Mutex;
use serde_json::json;

use crate::cache::ObjectKey;
use crate::cluster::{Cluster, Result};
use crate::queue::Done;
use crate::recorder::Severity;
use crate::wake::Wake;
use portolan_lb::CLASS;
use portolan_lb::pool::{Pool, Range, Refusal};

/// The component in events.
const SOURCE: &str = "service-controller";
/// The finalizer that keeps the Service until its addresses are given back.
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// The annotation that asks for addresses: one a family, separated by commas.
const REQUEST: &str = "portolan.dev/load-balancer-ips";

/// The pool of the cluster.
#[derive(Debug)]
pub(crate) struct Addresses {
    pool: Mutex<Pool>,
}

// === impl ===

impl Addresses {
    pub fn new(ranges: Vec<Range>) -> Addresses {
        Addresses { pool: Mutex::new(Pool::new(ranges)) }
    }
}

/// Places the Services that have addresses before any that wants one: the oldest first, if two claim the same.
pub(crate) fn restore(cluster: &Cluster) {
    let mut services = cluster
        .all::<Service>(|service| !is_foreign(service) && (is_ours(service) || has_finalizer(service)));
    services.sort_by_key(|service| (service.metadata.creation_timestamp.clone(), service.uid()));
    let mut pool = cluster.addresses.pool.lock();
    for service in services {
        let owner = ObjectKey::of(service.as_ref()).to_string();
        for address in announced(&service) {
            if let Err(refusal) = pool.claim(&owner, address) {
                tracing::warn!(service = %owner, %refusal, "an address could not be kept");
            }
        }
    }
}

pub(crate) async fn reconcile(cluster: &Cluster, key: &ObjectKey) -> Result<Done> {
    let owner = key.to_string();
    let Some(service) = cluster.find::<Service>(key) else {
        release(cluster, &owner);
        return Ok(Done::Settled);
    };
    if is_foreign(&service) {
        // Another controller's; it may use the same finalizer.
        release(cluster, &owner);
        return Ok(Done::Settled);
    }
    let going = service.metadata.deletion_timestamp.is_some();
    if going || !is_ours(&service) {
        return clean_up(cluster, &service, &owner).await;
    }
    let mut service = service;
    if !has_finalizer(&service) {
        // Before the first address: a Service must not vanish with one in its hands.
        let mut finalizers = service.finalizers().to_vec();
        finalizers.push(FINALIZER.to_owned());
        cluster.recorder.note(
            service.as_ref(),
            SOURCE,
            Severity::Normal,
            "EnsuringLoadBalancer",
            "Ensuring load balancer",
        );
        service =
            cluster.patch(service.as_ref(), json!({ "metadata": { "finalizers": finalizers } })).await?;
    }
    let (given, freed, refusals) = choose(&mut cluster.addresses.pool.lock(), &service, &owner);
    if freed {
        wake_others(cluster, key);
    }
    for refusal in &refusals {
        let message = format!("Error syncing load balancer: {refusal}");
        cluster.recorder.note(service.as_ref(), SOURCE, Severity::Warning, "SyncLoadBalancerFailed", message);
    }
    let wanted: Vec<LoadBalancerIngress> = given.iter().map(|address| ingress(*address)).collect();
    if current(&service) != wanted.as_slice() {
        let patch = json!({ "status": { "loadBalancer": { "ingress": wanted } } });
        let service = cluster.patch_status(service.as_ref(), patch).await?;
        if refusals.is_empty() {
            cluster.recorder.note(
                service.as_ref(),
                SOURCE,
                Severity::Normal,
                "EnsuredLoadBalancer",
                "Ensured load balancer",
            );
        }
    }
    // A refusal ends when an address is freed, or when the Service changes: both wake us.
    Ok(Done::Settled)
}

/// Takes back the addresses, says so in the status, and lets the Service go.
async fn clean_up(cluster: &Cluster, service: &Service, owner: &str) -> Result<Done> {
    if !has_finalizer(service) {
        release(cluster, owner);
        return Ok(Done::Settled);
    }
    let note = |reason: &'static str, message: &'static str| {
        cluster.recorder.note(service, SOURCE, Severity::Normal, reason, message);
    };
    note("DeletingLoadBalancer", "Deleting load balancer");
    let mut service = service.clone();
    if !current(&service).is_empty() {
        // First nobody announces it any more, then it may be given to another.
        let patch = json!({ "status": { "loadBalancer": { "ingress": null } } });
        service = Service::clone(cluster.patch_status(&service, patch).await?.as_ref());
    }
    let finalizers: Vec<&String> = service.finalizers().iter().filter(|name| *name != FINALIZER).collect();
    cluster.patch(&service, json!({ "metadata": { "finalizers": finalizers } })).await?;
    release(cluster, owner);
    note("DeletedLoadBalancer", "Deleted load balancer");
    Ok(Done::Settled)
}

fn release(cluster: &Cluster, owner: &str) {
    let freed = cluster.addresses.pool.lock().release(owner);
    if !freed.is_empty() {
        wake_others(cluster, &ObjectKey::new("", ""));
    }
}

/// An address has become free: whoever waits for one may have it.
fn wake_others(cluster: &Cluster, except: &ObjectKey) {
    for service in cluster.all::<Service>(is_ours) {
        let key = ObjectKey::of(service.as_ref());
        if key != *except && current(&service).len() < families(&service).len() {
            cluster.queue.push(Wake::LoadBalancer(key));
        }
    }
}

/// The Service's addresses, whether any became free, and what was refused.
fn choose(pool: &mut Pool, service: &Service, owner: &str) -> (Vec<IpAddr>, bool, Vec<Refusal>) {
    let (mut given, mut freed, mut refusals) = (Vec::new(), false, Vec::new());
    let (requests, families) = (requests(service), families(service));
    for ipv6 in [false, true] {
        if !families.contains(&ipv6) {
            freed |= pool.release_family(owner, ipv6).is_some();
        }
    }
    // An address that the status shows and nobody else has stays.
    for address in announced(service) {
        if pool.of(owner).iter().all(|held| held.is_ipv6() != address.is_ipv6())
            && families.contains(&address.is_ipv6())
        {
            let _ = pool.claim(owner, address);
        }
    }
    for ipv6 in families {
        let before = pool.of(owner).into_iter().find(|held| held.is_ipv6() == ipv6);
        let request = requests.iter().copied().find(|address| address.is_ipv6() == ipv6);
        match pool.assign(owner, ipv6, request) {
            Ok(address) => {
                freed |= before.is_some_and(|before| before != address);
                given.push(address);
            }
            Err(refusal) => {
                // What it has it keeps: a wish that cannot be granted takes nothing away.
                given.extend(before);
                refusals.push(refusal);
            }
        }
    }
    (given, freed, refusals)
}

fn is_load_balancer(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"))
}

fn is_foreign(service: &Service) -> bool {
    let class = service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref());
    is_load_balancer(service) && class.is_some_and(|class| class != CLASS)
}

fn is_ours(service: &Service) -> bool {
    is_load_balancer(service) && !is_foreign(service)
}

fn has_finalizer(service: &Service) -> bool {
    service.finalizers().iter().any(|name| name == FINALIZER)
}

fn current(service: &Service) -> &[LoadBalancerIngress] {
    service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|status| status.ingress.as_deref())
        .unwrap_or_default()
}

fn announced(service: &Service) -> Vec<IpAddr> {
    current(service).iter().filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect()
}

fn ingress(address: IpAddr) -> LoadBalancerIngress {
    LoadBalancerIngress {
        hostname: None,
        ip: Some(address.to_string()),
        ip_mode: Some("VIP".to_owned()),
        ports: None,
    }
}

/// The families that the Service wants addresses of; `true` is IPv6.
fn families(service: &Service) -> Vec<bool> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    if listed.is_empty() { vec![false] } else { listed.iter().map(|family| family == "IPv6").collect() }
}

/// The addresses that the Service asks for: the annotation's, else `spec.loadBalancerIP`.
fn requests(service: &Service) -> Vec<IpAddr> {
    let field = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_ref());
    let text = service.annotations().get(REQUEST).or(field).map(String::as_str).unwrap_or_default();
    text.split(',').filter_map(|address| address.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: serde_json::Value, annotations: serde_json::Value, ingress: &[&str]) -> Service {
        let ingress: Vec<_> = ingress.iter().map(|ip| json!({ "ip": ip })).collect();
        serde_json::from_value(json!({
            "metadata": { "name": "s", "namespace": "n", "annotations": annotations },
            "spec": spec,
            "status": { "loadBalancer": { "ingress": ingress } },
        }))
        .expect("a Service")
    }

    fn pool() -> Pool {
        Pool::new(
            ["192.0.2.1-192.0.2.2", "fd00::1-fd00::2"].map(|range| range.parse().expect("a range")).into(),
        )
    }

    fn texts(addresses: &[IpAddr]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_service_gets_an_address_of_each_of_its_families_in_their_order() {
        let dual = service(json!({ "ipFamilies": ["IPv6", "IPv4"] }), json!({}), &[]);
        let mut pool = pool();
        let (given, freed, refusals) = choose(&mut pool, &dual, "n/s");
        assert_eq!(
            (texts(&given), freed, refusals),
            (vec!["fd00::1".into(), "192.0.2.1".into()], false, vec![])
        );
        let single = service(json!({ "ipFamilies": ["IPv4"] }), json!({}), &["fd00::1", "192.0.2.1"]);
        let (given, freed, _) = choose(&mut pool, &single, "n/s");
        assert_eq!((texts(&given), freed), (vec!["192.0.2.1".into()], true));
    }

    #[test]
    fn a_wish_that_cannot_be_granted_takes_nothing_away() {
        let mut pool = pool();
        pool.claim("n/other", "192.0.2.1".parse().expect("an address")).expect("free");
        let plain = service(json!({ "ipFamilies": ["IPv4"] }), json!({}), &[]);
        assert_eq!(texts(&choose(&mut pool, &plain, "n/s").0), ["192.0.2.2"]);
        let wish = json!({ REQUEST: "192.0.2.1" });
        let wishing = service(json!({ "ipFamilies": ["IPv4"] }), wish, &["192.0.2.2"]);
        let (given, _, refusals) = choose(&mut pool, &wishing, "n/s");
        assert_eq!((texts(&given), refusals.len()), (vec!["192.0.2.2".into()], 1));
        pool.release("n/other");
        let (given, freed, refusals) = choose(&mut pool, &wishing, "n/s");
        assert_eq!((texts(&given), freed, refusals.len()), (vec!["192.0.2.1".into()], true, 0));
    }

    #[test]
    fn the_address_in_the_status_survives_a_restart() {
        let known = service(json!({ "ipFamilies": ["IPv4"] }), json!({}), &["192.0.2.2"]);
        assert_eq!(texts(&choose(&mut pool(), &known, "n/s").0), ["192.0.2.2"]);
    }
}
