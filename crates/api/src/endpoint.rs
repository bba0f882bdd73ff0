//! What Endpoints and EndpointSlices mean: where a Service's traffic may end.

use serde_json::Value;

use crate::fielderror::FieldError;
use crate::{ip, meta, walk};

/// Limits of an EndpointSlice (pkg/apis/discovery/validation). The API's documentation says 100 ports; the code says this.
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20000;
const MAX_HINTS: usize = 8;

/// Fills in what a client left out of Endpoints.
pub fn default_endpoints(object: &mut Value) {
    for subset in walk::list_mut(object, "subsets") {
        for port in walk::list_mut(subset, "ports") {
            walk::default(port, "protocol", "TCP");
        }
    }
}

/// What is wrong with Endpoints.
pub fn validate_endpoints(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (i, subset) in walk::list(object, "subsets").iter().enumerate() {
        let path = format!("subsets[{i}]");
        let (ready, waiting) = (walk::list(subset, "addresses"), walk::list(subset, "notReadyAddresses"));
        if ready.is_empty() && waiting.is_empty() {
            errors.push(FieldError::required(&path, "must specify `addresses` or `notReadyAddresses`"));
        }
        for (list, field) in [(ready, "addresses"), (waiting, "notReadyAddresses")] {
            for (j, address) in list.iter().enumerate() {
                let path = format!("{path}.{field}[{j}]");
                let ip = walk::text(address, "ip");
                let place = format!("{path}.ip");
                errors.extend(ip::faults(&place, ip, &[]));
                let host = walk::text(address, "hostname");
                if !host.is_empty() {
                    errors.extend(meta::findings(
                        &format!("{path}.hostname"),
                        host,
                        meta::label_faults(host),
                    ));
                }
                if let Some(node) = walk::at(address, "nodeName").and_then(Value::as_str) {
                    errors.extend(meta::findings(
                        &format!("{path}.nodeName"),
                        node,
                        meta::subdomain_faults(node),
                    ));
                }
                // What is no address at all is said twice, in Kubernetes too.
                if ip::parse(ip).is_none() {
                    errors.push(FieldError::invalid(place, ip, "must be a valid IP address"));
                } else {
                    errors.extend(ip::special_faults(&place, ip));
                }
            }
        }
        let ports = walk::list(subset, "ports");
        for (j, port) in ports.iter().enumerate() {
            let path = |field: &str| format!("{path}.ports[{j}].{field}");
            let name = walk::text(port, "name");
            if !name.is_empty() {
                errors.extend(meta::findings(&path("name"), name, meta::label_faults(name)));
            } else if ports.len() > 1 {
                errors.push(FieldError::required(path("name"), ""));
            }
            let number = walk::int(port, "port").unwrap_or(0);
            if !meta::is_port(number) {
                errors.push(FieldError::invalid(path("port"), number, meta::PORT_TEXT));
            }
            protocol(&mut errors, port, path("protocol"));
            app_protocol(&mut errors, port, path("appProtocol"));
        }
    }
    errors
}

fn address_rules(errors: &mut Vec<FieldError>, text: &str, path: &str) {
    let faults = ip::faults(path, text, &[]);
    if faults.is_empty() {
        errors.extend(ip::special_faults(path, text));
    } else {
        errors.extend(faults);
    }
}

fn protocol(errors: &mut Vec<FieldError>, port: &Value, path: String) {
    match walk::text(port, "protocol") {
        "" => errors.push(FieldError::required(path, "")),
        "TCP" | "UDP" | "SCTP" => {}
        other => errors.push(FieldError::not_supported(path, other, &["SCTP", "TCP", "UDP"])),
    }
}

fn app_protocol(errors: &mut Vec<FieldError>, port: &Value, path: String) {
    // A pointer in Kubernetes: the empty text is something, and no name.
    if let Some(text) = walk::at(port, "appProtocol").and_then(Value::as_str) {
        errors.extend(meta::findings(&path, text, meta::qualified_faults(text)));
    }
}

/// Fills in what a client left out of an EndpointSlice.
pub fn default_slice(object: &mut Value) {
    for port in walk::list_mut(object, "ports") {
        if walk::at(port, "name").is_none() {
            walk::set(port, "name", "");
        }
        if walk::at(port, "protocol").is_none() {
            walk::set(port, "protocol", "TCP");
        }
    }
    // The lists are written even when they are empty; as what they are in Go then.
    for field in ["endpoints", "ports"] {
        if walk::list(object, field).is_empty() {
            walk::set(object, field, Value::Null);
        }
    }
}

/// Drops the topology that v1 no longer writes (`dropTopologyOnV1`); whether there was any. Whoever had a node's name there has
/// it in a field of its own by now.
fn drop_topology(object: &mut Value) -> bool {
    let mut had = false;
    for endpoint in walk::list_mut(object, "endpoints") {
        had |= !walk::map(endpoint, "deprecatedTopology").is_empty();
        walk::remove(endpoint, "deprecatedTopology");
    }
    had
}

/// Prepares a new slice.
pub fn prepare_slice(object: &mut Value) {
    drop_topology(object);
}

/// Prepares a changed one: what is dropped then was a change all the same.
pub fn prepare_slice_update(new: &mut Value, old: &Value) {
    if drop_topology(new) {
        meta::set_generation(new, Some(meta::generation(old) + 1));
    }
}

/// Addresses of Endpoints that are not written in their one canonical way.
pub fn endpoints_warnings(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    for (i, subset) in walk::list(object, "subsets").iter().enumerate() {
        for field in ["addresses", "notReadyAddresses"] {
            for (j, address) in walk::list(subset, field).iter().enumerate() {
                let path = format!("subsets[{i}].{field}[{j}].ip");
                out.extend(ip::warnings(&path, walk::text(address, "ip")));
            }
        }
    }
    out
}

/// What is wrong with an EndpointSlice.
pub fn validate_slice(object: &Value) -> Vec<FieldError> {
    slice_rules(object, None)
}

/// What is wrong with a changed EndpointSlice. Endpoints that are all as they were are not looked at again.
pub fn validate_slice_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::validate_base(new, meta::NameRule::Subdomain);
    errors.extend(slice_rules(new, Some(walk::list(old, "endpoints"))));
    let kind = walk::text(new, "addressType");
    if kind != walk::text(old, "addressType") {
        errors.push(FieldError::invalid("addressType", kind, "field is immutable"));
    }
    errors
}

fn slice_rules(object: &Value, had: Option<&[Value]>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = walk::text(object, "addressType");
    match kind {
        "" => errors.push(FieldError::required("addressType", "")),
        "IPv4" | "IPv6" | "FQDN" => {}
        other => errors.push(FieldError::not_supported("addressType", other, &["FQDN", "IPv4", "IPv6"])),
    }
    let mut ports = walk::list(object, "ports");
    if ports.len() > MAX_PORTS {
        errors.push(FieldError::too_many("ports", ports.len(), MAX_PORTS));
        ports = &[];
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = |field: &str| format!("ports[{i}].{field}");
        let name = walk::text(port, "name");
        if !name.is_empty() {
            errors.extend(meta::findings(&path("name"), name, meta::label_faults(name)));
        }
        if names.contains(&name) {
            errors.push(FieldError::duplicate(path("name"), name));
        }
        names.push(name);
        if let Some(found) = walk::at(port, "protocol").and_then(Value::as_str)
            && !["SCTP", "TCP", "UDP"].contains(&found)
        {
            errors.push(FieldError::not_supported(path("protocol"), found, &["SCTP", "TCP", "UDP"]));
        }
        app_protocol(&mut errors, port, path("appProtocol"));
    }
    let endpoints = walk::list(object, "endpoints");
    if had == Some(endpoints) {
        return errors;
    }
    if endpoints.len() > MAX_ENDPOINTS {
        errors.push(FieldError::too_many("endpoints", endpoints.len(), MAX_ENDPOINTS));
        return errors;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        endpoint_rules(&mut errors, endpoint, &format!("endpoints[{i}]"), kind);
    }
    errors
}

fn endpoint_rules(errors: &mut Vec<FieldError>, endpoint: &Value, at: &str, kind: &str) {
    let path = format!("{at}.addresses");
    let addresses = walk::list(endpoint, "addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(&path, "must contain at least 1 address"));
    } else if addresses.len() > MAX_ADDRESSES {
        errors.push(FieldError::too_many(&path, addresses.len(), MAX_ADDRESSES));
    }
    for (i, address) in addresses.iter().enumerate() {
        let text = address.as_str().unwrap_or("");
        let place = format!("{path}[{i}]");
        match (kind, ip::parse(text)) {
            ("FQDN", _) => errors.extend(meta::findings(&place, text, meta::subdomain_faults(text))),
            ("IPv4", Some(found)) if found.is_ipv6() && ip::faults(&place, text, &[]).is_empty() => {
                errors.push(FieldError::invalid(&path, text, "must be an IPv4 address"));
                errors.extend(ip::special_faults(&place, text));
            }
            ("IPv6", Some(found)) if found.is_ipv4() && ip::faults(&place, text, &[]).is_empty() => {
                errors.push(FieldError::invalid(&path, text, "must be an IPv6 address"));
                errors.extend(ip::special_faults(&place, text));
            }
            ("IPv6", Some(found))
                if found.to_string() != text && ip::faults(&place, text, &[]).is_empty() =>
            {
                let rule =
                    format!("must be in canonical form ({})", crate::fielderror::quote(&found.to_string()));
                errors.push(FieldError::invalid(&place, text, rule));
            }
            ("IPv4" | "IPv6", _) => address_rules(errors, text, &place),
            _ => {}
        }
    }
    for (field, rule) in
        [("nodeName", meta::subdomain_faults as fn(&str) -> Vec<String>), ("hostname", meta::label_faults)]
    {
        // Pointers in Kubernetes: the empty text is something, and no name.
        if let Some(text) = walk::at(endpoint, field).and_then(Value::as_str) {
            errors.extend(meta::findings(&format!("{at}.{field}"), text, rule(text)));
        }
    }
    for (field, rule) in [
        ("forZones", meta::label_value_faults as fn(&str) -> Vec<String>),
        ("forNodes", meta::subdomain_faults),
    ] {
        let path = format!("{at}.hints.{field}");
        let hints = walk::list(endpoint, &format!("hints.{field}"));
        if hints.len() > MAX_HINTS {
            errors.push(FieldError::too_many(&path, hints.len(), MAX_HINTS));
            return;
        }
        let mut names: Vec<&str> = Vec::new();
        for (i, hint) in hints.iter().enumerate() {
            let name = walk::text(hint, "name");
            let path = format!("{path}[{i}].name");
            if names.contains(&name) {
                errors.push(FieldError::duplicate(&path, name));
            }
            errors.extend(meta::findings(&path, name, rule(name)));
            names.push(name);
        }
    }
}

/// What has no effect, or not for long.
pub fn slice_warnings(object: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if walk::text(object, "addressType") == "FQDN" {
        out.push("spec.addressType: FQDN endpoints are deprecated".into());
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kind::{Kind, find};
    use crate::patch::merge;

    fn slices() -> &'static Kind {
        find("discovery.k8s.io", "v1", "endpointslices").unwrap()
    }

    fn slice(more: Value) -> Value {
        let mut out = json!({"metadata": {"name": "s", "namespace": "d"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]});
        merge(&mut out, &more).unwrap();
        slices().prepare_create(&mut out);
        out
    }

    fn texts(errors: Vec<FieldError>) -> String {
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn each_rule_of_a_slice_has_its_path_and_text() {
        let many = |n: usize| {
            (0..n)
                .map(|i| json!({"addresses": [format!("10.1.{}.{}", i / 250, i % 250 + 1)]}))
                .collect::<Vec<_>>()
        };
        let rows = [
            (json!({}), String::new()),
            (json!({"addressType": null}), "addressType: Required value".into()),
            (
                json!({"addressType": "IPX"}),
                "addressType: Unsupported value: \"IPX\": supported values: \"FQDN\", \"IPv4\", \"IPv6\"".into(),
            ),
            (
                json!({"endpoints": [{"addresses": []}]}),
                "endpoints[0].addresses: Required value: must contain at least 1 address".into(),
            ),
            (
                json!({"endpoints": [{"addresses": ["fd00::1"]}]}),
                "endpoints[0].addresses: Invalid value: \"fd00::1\": must be an IPv4 address".into(),
            ),
            (
                json!({"endpoints": [{"addresses": ["127.0.0.1"]}]}),
                "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)".into(),
            ),
            (json!({"endpoints": many(1001)}), "endpoints: Too many: 1001: must have at most 1000 items".into()),
            (json!({"endpoints": many(1000)}), String::new()),
            (json!({"ports": [{"port": 1}, {"port": 2}]}), "ports[1].name: Duplicate value: \"\"".into()),
            // The number of a port is not looked at.
            (json!({"ports": [{"port": 70000}]}), String::new()),
            (
                json!({"endpoints": [{"addresses": ["10.0.0.1"], "hints": {"forZones": [{"name": "a"}, {"name": "a"}]}}]}),
                "endpoints[0].hints.forZones[1].name: Duplicate value: \"a\"".into(),
            ),
        ];
        for (more, text) in rows {
            assert_eq!(texts(slices().check_create(&slice(more.clone()))), text, "{more:.120}");
        }
    }

    #[test]
    fn the_generation_counts_content_and_labels_and_not_annotations() {
        let old = slice(json!({}));
        let generation = |change: Value| {
            let mut new = old.clone();
            merge(&mut new, &change).unwrap();
            slices().prepare_update(&mut new, &old);
            new["metadata"]["generation"].as_i64().unwrap()
        };
        assert_eq!(generation(json!({})), 1);
        assert_eq!(generation(json!({"metadata": {"annotations": {"a": "b"}}})), 1);
        assert_eq!(generation(json!({"metadata": {"labels": {"a": "b"}}})), 2);
        assert_eq!(generation(json!({"ports": [{"port": 81}]})), 2);
        let topology = json!([{"addresses": ["10.0.0.1"], "deprecatedTopology": {"a": "b"}}]);
        assert_eq!(generation(json!({"endpoints": topology})), 2, "also what isn't kept");
    }

    #[test]
    fn the_type_of_address_is_fixed_and_stored_endpoints_are_excused() {
        let mut old = slice(json!({}));
        old["endpoints"] = json!([{"addresses": ["127.0.0.1"]}]);
        let mut new = old.clone();
        assert_eq!(texts(slices().check_update(&new, &old)), "");
        new["addressType"] = json!("FQDN");
        assert_eq!(
            texts(slices().check_update(&new, &old)),
            "addressType: Invalid value: \"FQDN\": field is immutable"
        );
    }

    #[test]
    fn a_subset_has_addresses_of_one_kind_or_the_other() {
        let kind = find("", "v1", "endpoints").unwrap();
        let mut object = json!({"metadata": {"name": "s", "namespace": "d"}, "subsets": [{"ports": [{"port": 1}, {"port": 2}]}]});
        kind.prepare_create(&mut object);
        assert_eq!(
            texts(kind.check_create(&object)),
            "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`; \
             subsets[0].ports[0].name: Required value; subsets[0].ports[1].name: Required value"
        );
    }
}
