//! API objects to the zone's views; translates, and never chooses. What can't be in a domain name is left out.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::name::{Name, label};
use crate::zone::{EndpointView, Key, PortView, ServiceView, SliceKey, SliceView, address_label};

/// The label of a slice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service's key.
pub fn key(metadata: &ObjectMeta) -> Option<Key> {
    Key::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?)
}

/// A slice's key.
pub fn slice_key(metadata: &ObjectMeta) -> SliceKey {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    (text(&metadata.namespace), text(&metadata.name))
}

/// A Service; `None` while it has no address yet.
pub fn service(service: &Service) -> Option<ServiceView> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        let target = spec.external_name.as_deref().unwrap_or_default();
        // An address is no name, whatever its digits look like (kubernetes/dns, docs/specification.md §2.5).
        let name =
            if target.is_empty() || target.parse::<IpAddr>().is_ok() { None } else { Name::parse(target) };
        return Some(ServiceView::External(name.map(|name| Box::new(name.lower()))));
    }
    if spec.cluster_ip.as_deref() == Some("None") {
        return Some(ServiceView::Headless);
    }
    let mut texts = spec.cluster_ips.clone().unwrap_or_default();
    if texts.is_empty() {
        texts.extend(spec.cluster_ip.clone());
    }
    let addresses: Vec<IpAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    let ports = spec.ports.iter().flatten();
    let ports = ports.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), Some(p.port))).collect();
    (!addresses.is_empty()).then_some(ServiceView::ClusterIp { addresses, ports })
}

fn port(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<PortView> {
    Some(PortView {
        name: name.unwrap_or_default().to_ascii_lowercase().into(),
        protocol: match protocol {
            None | Some("" | "TCP") => "tcp",
            Some("UDP") => "udp",
            Some("SCTP") => "sctp",
            Some(_) => return None,
        },
        number: number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0),
    })
}

/// A slice; `None` if it belongs to no Service, or is of names instead of addresses.
pub fn slice(slice: &EndpointSlice) -> Option<SliceView> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    let service = Key::new(slice.metadata.namespace.as_deref()?, service)?;
    if slice.address_type == "FQDN" {
        return None;
    }
    let ports = slice.ports.iter().flatten();
    let ports = ports.filter_map(|p| port(p.name.as_deref(), p.protocol.as_deref(), p.port)).collect();
    let mut endpoints = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        // Nothing said means ready (k8s.io/api discovery/v1). Who is published before, is written as ready.
        if endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
            continue;
        }
        let hostname = endpoint.hostname.as_deref().and_then(label);
        for address in endpoint.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
            let label = hostname.clone().unwrap_or_else(|| address_label(address));
            endpoints.push(EndpointView { address, label });
        }
    }
    Some(SliceView { service, endpoints, ports })
}
