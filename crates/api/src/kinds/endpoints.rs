//! Endpoints and EndpointSlices.

use serde_json::Value;

use super::AGE;
use crate::kind::{Column, Entry, Kind, Strategy};
use crate::meta::{self, NameRule};
use crate::{duration, endpoint, walk};

/// The entry of Endpoints.
pub static ENDPOINTS: Kind = Kind::Listed(&Entry {
    group: "",
    version: "v1",
    kind: "Endpoints",
    list_kind: "EndpointsList",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    categories: &[],
    namespaced: true,
    subresources: &[],
    generation: false,
    names: NameRule::Subdomain,
    conversion: None,
    strategy: Strategy {
        default: endpoint::default_endpoints,
        validate: endpoint::validate_endpoints,
        validate_update: |new, _| {
            let mut errors = meta::validate_base(new, NameRule::Subdomain);
            errors.extend(endpoint::validate_endpoints(new));
            errors
        },
        warnings: |new, _| endpoint::endpoints_warnings(new),
        ..Strategy::PLAIN
    },
    fields: &[],
    columns: &[
        Column::object_name(),
        Column::new("Endpoints", "string", "The addresses and ports that implement the service."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| vec![meta::name(o).into(), addresses(o).into(), duration::age(o, now).into()],
});

/// The entry of EndpointSlice.
pub static ENDPOINT_SLICE: Kind = Kind::Listed(&Entry {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    list_kind: "EndpointSliceList",
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    namespaced: true,
    subresources: &[],
    generation: true,
    names: NameRule::Subdomain,
    conversion: None,
    strategy: Strategy {
        default: endpoint::default_slice,
        prepare_create: endpoint::prepare_slice,
        prepare_update: endpoint::prepare_slice_update,
        validate: endpoint::validate_slice,
        validate_update: endpoint::validate_slice_update,
        warnings: |new, old| {
            let mut out = endpoint::slice_warnings(new);
            // What can't be changed is said once.
            out.retain(|text| old.is_none() || !text.starts_with("spec.addressType"));
            out
        },
        ..Strategy::PLAIN
    },
    fields: &[],
    columns: &[
        Column::object_name(),
        Column::new("AddressType", "string", "The type of address that all endpoints of the slice have."),
        Column::new("Ports", "string", "The ports that each endpoint of the slice serves."),
        Column::new("Endpoints", "string", "The addresses of the endpoints."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let ports =
            walk::list(o, "ports").iter().map(|p| match (walk::int(p, "port"), walk::text(p, "name")) {
                (Some(number), _) => number.to_string(),
                (None, name) => name.to_owned(),
            });
        let all = walk::list(o, "endpoints").iter().flat_map(|e| walk::list(e, "addresses"));
        let addresses = all.filter_map(Value::as_str).map(String::from);
        let or_unset = |text: String| if text.is_empty() { "<unset>".to_owned() } else { text };
        vec![
            meta::name(o).into(),
            walk::text(o, "addressType").into(),
            or_unset(three(ports)).into(),
            or_unset(three(addresses)).into(),
            duration::age(o, now).into(),
        ]
    },
});

/// The first three, and how many more.
fn three(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    let shown = all.iter().take(3).cloned().collect::<Vec<_>>().join(",");
    if all.len() > 3 { format!("{shown} + {} more...", all.len() - 3) } else { shown }
}

fn addresses(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in walk::list(object, "subsets") {
        let ips = || walk::list(subset, "addresses").iter().map(|a| walk::text(a, "ip"));
        let ports = walk::list(subset, "ports");
        if ports.is_empty() {
            all.extend(ips().map(String::from));
        }
        for port in ports {
            let number = walk::int(port, "port").unwrap_or(0);
            all.extend(ips().map(|ip| {
                if ip.contains(':') { format!("[{ip}]:{number}") } else { format!("{ip}:{number}") }
            }));
        }
    }
    if all.is_empty() { "<none>".into() } else { three(all.into_iter()) }
}
