//! What extends an API server elsewhere, kept as data: APIServices are not proxied to, webhooks are not called, admission
//! policies are not evaluated.

use serde_json::{Value, json};

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{Column, Entry, Kind, Strategy, keep_all_but_status, keep_status};
use crate::meta::{self, NameRule};
use crate::{duration, walk};

const CATEGORY: &[&str] = &["api-extensions"];

/// The entry of APIService.
pub static API_SERVICE: Kind = Kind::Listed(&Entry {
    namespaced: false,
    categories: CATEGORY,
    subresources: &["status"],
    names: NameRule::PathSegment,
    strategy: Strategy {
        default: |o| {
            if walk::at(o, "spec.service").is_some() {
                walk::default(o, "spec.service.port", 443);
            }
        },
        prepare_create: |o| {
            walk::set(o, "status", json!({}));
            // What is served here is there from the start.
            if walk::at(o, "spec.service").is_none() {
                let now = meta::rfc3339(jiff::Timestamp::now());
                let local = json!([{
                    "type": "Available", "status": "True", "lastTransitionTime": now,
                    "reason": "Local", "message": "Local APIServices are always available",
                }]);
                walk::set(o, "status.conditions", local);
            }
        },
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate: validate_service,
        validate_update: |new, _| validate_service(new),
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Service", "string", "The service that answers."),
        Column::new("Available", "string", "Whether it does."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let service = walk::at(o, "spec.service").map_or_else(
            || "Local".to_owned(),
            |s| format!("{}/{}", walk::text(s, "namespace"), walk::text(s, "name")),
        );
        let available = walk::list(o, "status.conditions")
            .iter()
            .find(|c| walk::text(c, "type") == "Available")
            .map_or_else(
                || "Unknown".to_owned(),
                |c| match (walk::text(c, "status"), walk::text(c, "reason")) {
                    ("True", _) => "True".into(),
                    (status, "") => status.into(),
                    (status, reason) => format!("{status} ({reason})"),
                },
            );
        vec![meta::name(o).into(), service.into(), available.into(), duration::age(o, now).into()]
    },
    ..Entry::of(
        "apiregistration.k8s.io",
        "v1",
        ("APIService", "APIServiceList"),
        ("apiservices", "apiservice"),
    )
});

fn validate_service(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (group, version) = (walk::text(object, "spec.group"), walk::text(object, "spec.version"));
    let (name, wanted) = (meta::name(object), format!("{version}.{group}"));
    if name != wanted {
        let text = format!("must be `spec.version+\".\"+spec.group`: \"{wanted}\"");
        errors.push(FieldError::invalid("metadata.name", name, text));
    }
    if group.is_empty() && version != "v1" {
        let text = "only v1 may have an empty group and it better be legacy kube";
        errors.push(FieldError::required("spec.group", text));
    } else if !group.is_empty() {
        errors.extend(meta::findings("spec.group", group, meta::subdomain_faults(group)));
    }
    errors.extend(meta::findings("spec.version", version, meta::dns_1035_faults(version)));
    for (field, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let n = walk::int(object, &format!("spec.{field}")).unwrap_or(0);
        if !(1..=max).contains(&n) {
            let text = format!("must be positive and less than {max}");
            errors.push(FieldError::invalid(format!("spec.{field}"), n, text));
        }
    }
    let Some(service) = walk::at(object, "spec.service") else {
        if walk::flag(object, "spec.insecureSkipTLSVerify") == Some(true) {
            let text = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", true, text));
        }
        return errors;
    };
    for field in ["namespace", "name"] {
        if walk::text(service, field).is_empty() {
            errors.push(FieldError::required(format!("spec.service.{field}"), ""));
        }
    }
    errors
}

const WEBHOOK_COLUMNS: &[Column] = &[
    Column::object_name(),
    Column::new("Webhooks", "integer", "How many webhooks it registers."),
    Column::new("Age", "string", AGE),
];

fn webhook_cells(o: &Value, now: jiff::Timestamp) -> Vec<Value> {
    vec![meta::name(o).into(), walk::list(o, "webhooks").len().into(), duration::age(o, now).into()]
}

fn default_webhooks(object: &mut Value) {
    for hook in walk::list_mut(object, "webhooks") {
        walk::default(hook, "failurePolicy", "Fail");
        walk::default(hook, "matchPolicy", "Equivalent");
        walk::default(hook, "namespaceSelector", json!({}));
        walk::default(hook, "objectSelector", json!({}));
        walk::default(hook, "timeoutSeconds", 10);
        if walk::at(hook, "clientConfig.service").is_some() {
            walk::default(hook, "clientConfig.service.port", 443);
        }
        for rule in walk::list_mut(hook, "rules") {
            walk::default(rule, "scope", "*");
        }
    }
}

fn default_mutating(object: &mut Value) {
    default_webhooks(object);
    for hook in walk::list_mut(object, "webhooks") {
        walk::default(hook, "reinvocationPolicy", "Never");
    }
}

fn uncalled(_: &Value, _: Option<&Value>) -> Vec<String> {
    vec!["webhooks and admission policies are stored here and never called".into()]
}

const GROUP: &str = "admissionregistration.k8s.io";

/// The entry of MutatingWebhookConfiguration.
pub static MUTATING_WEBHOOK_CONFIGURATION: Kind = Kind::Listed(&Entry {
    namespaced: false,
    categories: CATEGORY,
    generation: true,
    strategy: Strategy { default: default_mutating, warnings: uncalled, ..Strategy::PLAIN },
    columns: WEBHOOK_COLUMNS,
    cells: webhook_cells,
    ..Entry::of(
        GROUP,
        "v1",
        ("MutatingWebhookConfiguration", "MutatingWebhookConfigurationList"),
        ("mutatingwebhookconfigurations", "mutatingwebhookconfiguration"),
    )
});

/// The entry of ValidatingWebhookConfiguration.
pub static VALIDATING_WEBHOOK_CONFIGURATION: Kind = Kind::Listed(&Entry {
    namespaced: false,
    categories: CATEGORY,
    generation: true,
    strategy: Strategy { default: default_webhooks, warnings: uncalled, ..Strategy::PLAIN },
    columns: WEBHOOK_COLUMNS,
    cells: webhook_cells,
    ..Entry::of(
        GROUP,
        "v1",
        ("ValidatingWebhookConfiguration", "ValidatingWebhookConfigurationList"),
        ("validatingwebhookconfigurations", "validatingwebhookconfiguration"),
    )
});
