//! Why a Service of type LoadBalancer has no address, or not the one that it asks for.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use portolan_plan::model::Family;

use super::families;
use crate::cause::{Cause, Kind};
use crate::objects::*;
use crate::situation::Situation;

/// The annotation that asks for addresses (`portolan-control`'s load_balancer.rs reads it).
const REQUEST: &str = "portolan.dev/load-balancer-ips";

/// Why the Service lacks an address of its load balancer, if it does and the question is about that.
pub fn missing_address(s: &Situation<'_>, service: &Service, causes: &mut Vec<Cause>) {
    // A flow that found its address doesn't need another.
    if type_of(service) != "LoadBalancer" || s.path.is_some() {
        return;
    }
    let have: Vec<IpAddr> = ingress(service).into_iter().map(|(ip, _)| ip).collect();
    let named = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.as_deref());
    if named.unwrap_or_default().iter().any(|i| i.hostname.as_deref().is_some_and(|h| !h.is_empty())) {
        return; // a load balancer that has a name instead
    }
    let lacking = families(service).into_iter().find(|f| !have.iter().any(|ip| Family::of(*ip) == *f));
    let asked = requests(service).into_iter().find(|(_, ip)| !have.contains(ip));
    let (object, field) = (s.object(), "status.loadBalancer.ingress");
    if lacking.is_some()
        && let Some(class) = &spec(service).load_balancer_class
        && class != portolan_lb::CLASS
    {
        causes.push(Cause::new(
            Kind::LoadBalancerClass,
            object,
            "spec.loadBalancerClass",
            format!(
                "{class:?} is not Portolan's class ({}), and nobody else has given the Service an address",
                portolan_lb::CLASS
            ),
            format!(
                "make the Service anew without a class, or with {}; or see to the controller of {class:?}",
                portolan_lb::CLASS
            ),
        ));
        return;
    }
    if let Some((field, ip)) = &asked {
        let others = s.evidence.objects.services.iter().filter(|o| name_of(o) != name_of(service));
        let owner = others.into_iter().find(|o| ingress(o).iter().any(|(taken, _)| taken == ip));
        if let Some(owner) = owner {
            causes.push(Cause::new(
                Kind::AddressTaken,
                object,
                field.clone(),
                format!("the address {ip} that it asks for is service {}'s", name_of(owner)),
                "ask for another address, or for none",
            ));
            return;
        }
    }
    if lacking.is_none() && asked.is_none() {
        return;
    }
    // The controller's own words, of its last try.
    let event = s.evidence.objects.event(service, &["SyncLoadBalancerFailed", "AllocationFailed"]);
    let said = event.and_then(|e| e.message.as_deref()).unwrap_or_default();
    let said = said.trim_start_matches("Error syncing load balancer: ");
    let (text, remedy) = said.split_once("; ").unwrap_or((said, ""));
    let (kind, field) = match () {
        () if said.contains("is not in the pool") => {
            (Kind::AddressOutsidePool, asked.map_or(field.to_owned(), |(field, _)| field))
        }
        () if said.contains("is in use by") => {
            (Kind::AddressTaken, asked.map_or(field.to_owned(), |(f, _)| f))
        }
        () if said.contains("are in use") => (Kind::PoolExhausted, field.to_owned()),
        () if said.contains("pool has no") => (Kind::PoolLacksFamily, field.to_owned()),
        // Who gives one address and says nothing of the other may be content with it.
        () if lacking.is_none() || !have.is_empty() => return,
        () => (Kind::LoadBalancerPending, field.to_owned()),
    };
    if kind == Kind::LoadBalancerPending {
        let why = if said.is_empty() { "no controller has given it one yet" } else { said };
        causes.push(Cause::new(
            kind,
            object,
            field,
            format!(
                "the Service has no {} address of a load balancer: {why}",
                lacking.map_or(String::new(), |f| f.to_string())
            ),
            "see whether a controller runs that gives addresses: `portolan server` does with --pool",
        ));
        return;
    }
    causes.push(Cause::new(kind, object, field, text, remedy));
}

/// Every address of the load balancer is its own.
pub fn proxied(s: &Situation<'_>, service: &Service, causes: &mut Vec<Cause>) {
    let all = ingress(service);
    if type_of(service) == "LoadBalancer" && !all.is_empty() && all.iter().all(|(_, proxy)| *proxy) {
        causes.push(Cause::new(
            Kind::IpModeProxy,
            s.object(),
            "status.loadBalancer.ingress[].ipMode",
            format!(
                "Proxy: nodes don't capture {}; what is sent there goes to the load balancer itself",
                all[0].0
            ),
            "see to the load balancer, or set ipMode: VIP if nodes are to answer",
        ));
    }
}

/// The addresses that the Service asks for, each with the field that does.
fn requests(service: &Service) -> Vec<(String, IpAddr)> {
    let (field, text) = match service.annotations().get(REQUEST) {
        Some(text) => (format!("metadata.annotations[{REQUEST}]"), text.clone()),
        None => {
            ("spec.loadBalancerIP".to_owned(), spec(service).load_balancer_ip.clone().unwrap_or_default())
        }
    };
    text.split(',').filter_map(|a| Some((field.clone(), a.trim().parse().ok()?))).collect()
}
