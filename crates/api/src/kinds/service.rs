//! Services.

use serde_json::Value;

use super::AGE;
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status};
use crate::meta::{self, NameRule};
use crate::{duration, service, walk};

/// The entry of Service.
pub static SERVICE: Kind = Kind::Listed(&Entry {
    group: "",
    version: "v1",
    kind: "Service",
    list_kind: "ServiceList",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    namespaced: true,
    subresources: &["proxy", "status"],
    generation: false,
    // RFC 1123 since 1.36 (RelaxedServiceNameValidation): a name may begin with a digit.
    names: NameRule::Label,
    conversion: None,
    strategy: Strategy {
        default: service::default,
        prepare_create: service::prepare_create,
        prepare_update: service::prepare_update,
        prepare_status_update: keep_all_but_status,
        validate: service::validate,
        validate_update: service::validate_update,
        validate_status_update: service::validate_status_update,
        warnings: |new, _| service::warnings(new),
        status_warnings: service::status_warnings,
    },
    fields: &[
        ("spec.clusterIP", |o| walk::text(o, "spec.clusterIP").to_owned()),
        ("spec.type", |o| walk::text(o, "spec.type").to_owned()),
    ],
    columns: &[
        Column::object_name(),
        Column::new("Type", "string", "Type determines how the Service is exposed."),
        Column::new("Cluster-IP", "string", "The address of the Service inside the cluster."),
        Column::new("External-IP", "string", "The addresses of the Service outside the cluster."),
        Column::new("Port(s)", "string", "The ports that the Service exposes."),
        Column::new("Age", "string", AGE),
        Column::wide("Selector", "string", "The labels of the pods that the Service forwards to."),
    ],
    cells,
});

fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
    let ports = walk::list(object, "spec.ports").iter().map(port).collect::<Vec<_>>().join(",");
    let cluster_ip = walk::text(object, "spec.clusterIP");
    vec![
        meta::name(object).into(),
        service::type_of(object).into(),
        or_none(cluster_ip.to_owned()).into(),
        external(object).into(),
        or_none(ports).into(),
        duration::age(object, now).into(),
        super::label_text(walk::map(object, "spec.selector")).into(),
    ]
}

fn port(port: &Value) -> String {
    let number = walk::int(port, "port").unwrap_or(0);
    let protocol = walk::text(port, "protocol");
    match walk::int(port, "nodePort").unwrap_or(0) {
        0 => format!("{number}/{protocol}"),
        node => format!("{number}:{node}/{protocol}"),
    }
}

fn external(object: &Value) -> String {
    let texts = |path: &str| -> Vec<String> {
        walk::list(object, path).iter().filter_map(Value::as_str).map(String::from).collect()
    };
    let own = texts("spec.externalIPs");
    match service::type_of(object) {
        "ClusterIP" | "NodePort" if own.is_empty() => "<none>".into(),
        "ClusterIP" | "NodePort" => own.join(","),
        "LoadBalancer" => {
            let mut all: Vec<String> = Vec::new();
            for ingress in walk::list(object, "status.loadBalancer.ingress") {
                let (ip, host) = (walk::text(ingress, "ip"), walk::text(ingress, "hostname"));
                let shown = if ip.is_empty() { host } else { ip };
                if !shown.is_empty() && !all.iter().any(|a| a == shown) {
                    all.push(shown.to_owned());
                }
            }
            all.sort();
            all.extend(own);
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        "ExternalName" => walk::text(object, "spec.externalName").into(),
        _ => "<unknown>".into(),
    }
}
