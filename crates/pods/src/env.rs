//! A container's environment: Service variables, references and `$(VAR)` expansion.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, Service};

/// What a ConfigMap or a Secret holds, by key.
pub(crate) type Values = BTreeMap<String, Vec<u8>>;

/// As a text, for a variable.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// What the environment is made from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources<'a> {
    /// Services of the pod's namespace, and default/kubernetes.
    pub services: Vec<&'a Service>,
    /// ConfigMaps of the pod's namespace that the container names, as far as they exist.
    pub config_maps: BTreeMap<String, Values>,
    /// Secrets, likewise.
    pub secrets: BTreeMap<String, Values>,
    /// Tokens of the pod's service account, by audience and lifetime in seconds.
    pub tokens: BTreeMap<(String, i64), String>,
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
    /// The node's.
    pub host_ips: Vec<IpAddr>,
}

/// The variables of Services: `WEB_SERVICE_HOST` and so on, of those with a cluster IP, by name.
pub(crate) fn service_variables(services: &[&Service]) -> Vec<(String, String)> {
    let mut services: Vec<_> = services.to_vec();
    services.sort_by_key(|service| (&service.metadata.name, &service.metadata.namespace));
    let mut variables = Vec::new();
    for service in services {
        let (Some(name), Some(spec)) = (&service.metadata.name, &service.spec) else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
            continue;
        };
        let Some(ports) = spec.ports.as_ref().filter(|ports| !ports.is_empty()) else { continue };
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let shout = |text: &str| text.to_uppercase().replace('-', "_");
        let name = shout(name);
        variables.push((format!("{name}_SERVICE_HOST"), ip.to_owned()));
        variables.push((format!("{name}_SERVICE_PORT"), ports[0].port.to_string()));
        for port in ports {
            if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                variables.push((format!("{name}_SERVICE_PORT_{}", shout(port_name)), port.port.to_string()));
            }
        }
        for (index, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                variables.push((format!("{name}_PORT"), url.clone()));
            }
            let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
            variables.push((prefix.clone(), url));
            variables.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
            variables.push((format!("{prefix}_PORT"), port.port.to_string()));
            variables.push((format!("{prefix}_ADDR"), ip.to_owned()));
        }
    }
    variables
}

/// `$(NAME)` where NAME is known, `$$` as `$`; everything else as it stands.
pub(crate) fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match known.get(name) {
                Some(value) => result.push_str(value),
                None => {
                    result.push_str("$(");
                    result.push_str(name);
                    result.push(')');
                }
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result + rest
}

/// The value of a `fieldRef`.
pub(crate) fn field(pod: &Pod, path: &str, sources: &Sources<'_>) -> Result<String, String> {
    let join = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    let all = |map: &Option<BTreeMap<String, String>>| {
        let lines = map.iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
        lines.collect::<Vec<_>>().join("\n")
    };
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(format!("fieldRef.fieldPath: {path:?} is not supported")),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => all(&metadata.labels),
        "metadata.annotations" => all(&metadata.annotations),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default()
        }
        "status.podIP" => first(&sources.pod_ips),
        "status.podIPs" => join(&sources.pod_ips),
        "status.hostIP" => first(&sources.host_ips),
        "status.hostIPs" => join(&sources.host_ips),
        _ => return Err(format!("fieldRef.fieldPath: {path:?} is not supported")),
    })
}

/// The whole environment of a container, in order and without doubles. An error names the variable.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources<'_>,
) -> Result<BTreeMap<String, String>, String> {
    let mut result: BTreeMap<String, String> = service_variables(&sources.services).into_iter().collect();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional, values) = if let Some(reference) = &from.config_map_ref {
            ("ConfigMap", &reference.name, reference.optional, sources.config_maps.get(&reference.name))
        } else if let Some(reference) = &from.secret_ref {
            ("Secret", &reference.name, reference.optional, sources.secrets.get(&reference.name))
        } else {
            continue;
        };
        match values {
            Some(values) => {
                result.extend(values.iter().map(|(key, value)| (format!("{prefix}{key}"), text(value))));
            }
            None if optional.unwrap_or(false) => {}
            None => return Err(format!("envFrom: {kind} {name:?} not found")),
        }
    }
    for variable in container.env.iter().flatten() {
        let name = &variable.name;
        let Some(from) = &variable.value_from else {
            let value = expand(variable.value.as_deref().unwrap_or_default(), &result);
            result.insert(name.clone(), value);
            continue;
        };
        let keyed = |kind: &str, all: &BTreeMap<String, Values>, object: &str, key: &str| {
            let value = all.get(object).and_then(|values| values.get(key)).map(|value| text(value));
            value.ok_or_else(|| format!("env {name}: {kind} {object:?} has no key {key:?}"))
        };
        let (value, optional) = if let Some(reference) = &from.field_ref {
            (
                field(pod, &reference.field_path, sources).map_err(|error| format!("env {name}: {error}")),
                false,
            )
        } else if let Some(reference) = &from.config_map_key_ref {
            let value = keyed("ConfigMap", &sources.config_maps, &reference.name, &reference.key);
            (value, reference.optional.unwrap_or(false))
        } else if let Some(reference) = &from.secret_key_ref {
            let value = keyed("Secret", &sources.secrets, &reference.name, &reference.key);
            (value, reference.optional.unwrap_or(false))
        } else {
            (Err(format!("env {name}: valueFrom names nothing that is supported")), false)
        };
        match value {
            Ok(value) => drop(result.insert(name.clone(), value)),
            Err(_) if optional => {}
            Err(error) => return Err(error),
        }
    }
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    result.entry("PATH".to_owned()).or_insert_with(|| path.to_owned());
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(value: serde_json::Value) -> Service {
        serde_json::from_value(value).expect("a Service")
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web", "a": "b\"c"}},
            "spec": {"nodeName": "n1", "containers": []}
        }))
        .expect("a Pod")
    }

    #[test]
    fn each_service_with_a_cluster_ip_is_in_the_environment() {
        let web = service(json!({
            "metadata": {"name": "my-web"},
            "spec": {"clusterIP": "10.0.0.9", "ports": [
                {"name": "http", "port": 80}, {"name": "dns-udp", "port": 53, "protocol": "UDP"}
            ]}
        }));
        let six = service(json!({
            "metadata": {"name": "six"},
            "spec": {"clusterIP": "fd00::9", "ports": [{"port": 443, "protocol": "TCP"}]}
        }));
        let headless = service(json!({
            "metadata": {"name": "headless"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}
        }));
        let external =
            service(json!({"metadata": {"name": "external"}, "spec": {"externalName": "example.org"}}));
        let variables = service_variables(&[&six, &headless, &web, &external]);
        let expected = [
            ("MY_WEB_SERVICE_HOST", "10.0.0.9"),
            ("MY_WEB_SERVICE_PORT", "80"),
            ("MY_WEB_SERVICE_PORT_HTTP", "80"),
            ("MY_WEB_SERVICE_PORT_DNS_UDP", "53"),
            ("MY_WEB_PORT", "tcp://10.0.0.9:80"),
            ("MY_WEB_PORT_80_TCP", "tcp://10.0.0.9:80"),
            ("MY_WEB_PORT_80_TCP_PROTO", "tcp"),
            ("MY_WEB_PORT_80_TCP_PORT", "80"),
            ("MY_WEB_PORT_80_TCP_ADDR", "10.0.0.9"),
            ("MY_WEB_PORT_53_UDP", "udp://10.0.0.9:53"),
            ("MY_WEB_PORT_53_UDP_PROTO", "udp"),
            ("MY_WEB_PORT_53_UDP_PORT", "53"),
            ("MY_WEB_PORT_53_UDP_ADDR", "10.0.0.9"),
            ("SIX_SERVICE_HOST", "fd00::9"),
            ("SIX_SERVICE_PORT", "443"),
            ("SIX_PORT", "tcp://[fd00::9]:443"),
            ("SIX_PORT_443_TCP", "tcp://[fd00::9]:443"),
            ("SIX_PORT_443_TCP_PROTO", "tcp"),
            ("SIX_PORT_443_TCP_PORT", "443"),
            ("SIX_PORT_443_TCP_ADDR", "fd00::9"),
        ];
        let expected: Vec<_> = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        assert_eq!(variables, expected);
    }

    #[test]
    fn references_expand_only_where_they_are_known() {
        let known = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())]);
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(A)"),
            ("$(C)", "$(C)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
        ] {
            assert_eq!(expand(text, &known), expected, "{text:?}");
        }
    }

    #[test]
    fn fields_of_the_pod_can_be_read() {
        let sources = Sources {
            pod_ips: vec!["10.1.0.1".parse().expect("an address"), "fd00::1".parse().expect("an address")],
            host_ips: vec!["192.0.2.1".parse().expect("an address")],
            ..Sources::default()
        };
        for (path, expected) in [
            ("metadata.name", "web-1"),
            ("metadata.namespace", "shop"),
            ("metadata.uid", "u1"),
            ("metadata.labels['app']", "web"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a=\"b\\\"c\"\napp=\"web\""),
            ("spec.nodeName", "n1"),
            ("status.podIP", "10.1.0.1"),
            ("status.podIPs", "10.1.0.1,fd00::1"),
            ("status.hostIP", "192.0.2.1"),
        ] {
            assert_eq!(field(&pod(), path, &sources).as_deref(), Ok(expected), "{path}");
        }
        assert!(field(&pod(), "spec.surprise", &sources).is_err_and(|error| error.contains("spec.surprise")));
    }

    #[test]
    fn later_variables_win_and_missing_references_are_named() {
        let container = |value| serde_json::from_value::<Container>(value).expect("a container");
        let mut sources = Sources::default();
        sources.config_maps.insert("c".into(), BTreeMap::from([("k".to_owned(), b"v".to_vec())]));
        let good = container(
            json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c"}}], "env": [
                {"name": "A", "value": "$(P_k)"},
                {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
                {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "none", "optional": true}}},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "PATH", "value": "/bin"}
            ]}),
        );
        let expected = BTreeMap::from(
            [("P_k", "v"), ("A", "v"), ("K", "v"), ("N", "n1"), ("PATH", "/bin")]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        assert_eq!(environment(&pod(), &good, &sources), Ok(expected));
        let bad = container(json!({"name": "c", "env": [
            {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k"}}}
        ]}));
        assert_eq!(
            environment(&pod(), &bad, &sources),
            Err("env X: ConfigMap \"none\" has no key \"k\"".to_owned())
        );
    }
}
