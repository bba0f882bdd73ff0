//! The table of types against what is known of some of them, and against the kinds that are served.

use super::*;
use crate::KINDS;
use serde_json::json;

fn field(of: &str, name: &str) -> Field {
    find(of).unwrap().get().field(name).unwrap_or_else(|| panic!("{of} has no {name}")).clone()
}

#[test]
fn every_kind_that_is_served_has_a_type() {
    for kind in KINDS {
        assert!(of_kind(kind).is_some(), "{} {}", kind.api_version(), kind.kind());
    }
}

#[test]
fn every_type_that_a_field_names_is_in_the_table() {
    fn known(shape: &Shape) -> bool {
        match shape {
            Shape::Any => false,
            Shape::List(inner) | Shape::Map(inner) => known(inner),
            _ => true,
        }
    }
    for r#type in all() {
        for field in &r#type.fields {
            assert!(known(&field.shape), "{}.{}", r#type.name, field.name);
        }
    }
    assert!(all().len() > 500);
}

#[test]
fn lists_are_keyed_and_patched_as_kubernetes_says() {
    let ports = field("core/v1.ServiceSpec", "ports");
    assert_eq!(ports.number, 1);
    assert_eq!(ports.listing, Listing::Map(vec!["port".into(), "protocol".into()]));
    assert_eq!(ports.patch, Some(Patch { merge: true, key: "port".into(), ..Patch::default() }));
    assert_eq!(field("core/v1.ServicePort", "protocol").default, Some(json!("TCP")));
    assert_eq!(field("core/v1.ServiceSpec", "selector").listing, Listing::Atomic);
    assert_eq!(field("meta/v1.ObjectMeta", "finalizers").listing, Listing::Set);
    let strategy = field("apps/v1.DeploymentSpec", "strategy").patch;
    assert_eq!(strategy, Some(Patch { retain_keys: true, ..Patch::default() }));
    assert_eq!(find("core/v1.LocalObjectReference").unwrap().get().listing, Listing::Atomic);
}

#[test]
fn the_fields_of_an_embedded_type_stand_in_its_place() {
    let volume = find("core/v1.Volume").unwrap();
    assert!(volume.get().field("configMap").is_some());
    assert!(volume.get().flat().iter().all(|field| !field.name.is_empty()));
    // Embedded twice: a volume's secret names its Secret by an own field, a key selector by that of its reference.
    assert!(field("core/v1.SecretKeySelector", "name").omit_empty);
}

#[test]
fn types_have_the_names_that_openapi_gives_them() {
    let name = |of_version: &str, kind: &str| of(of_version, kind).unwrap().get().openapi_name();
    assert_eq!(name("v1", "Service"), "io.k8s.api.core.v1.Service");
    assert_eq!(name("rbac.authorization.k8s.io/v1", "Role"), "io.k8s.api.rbac.v1.Role");
    assert_eq!(name("apps/v1", "DeleteOptions"), "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
    assert_eq!(
        name("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition"
    );
}

#[test]
fn a_structural_schema_is_a_type() {
    let own = of_custom(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "pools": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}}));
    let Shape::Object(spec) = &own.get().field("spec").unwrap().shape else { panic!() };
    assert_eq!(spec.get().field("pools").unwrap().listing, Listing::Map(vec!["name".into()]));
    let Shape::Object(free) = &spec.get().field("free").unwrap().shape else { panic!() };
    assert!(free.get().open);
    assert!(own.get().field("metadata").is_some());
}

#[test]
fn a_condition_that_came_without_a_time_gets_one() {
    let dated = |api_version: &str, kind: &str, condition: Value| {
        let mut object = json!({"status": {"conditions": [condition]}});
        go::date_conditions(&mut object, of(api_version, kind).unwrap().get(), "2026-01-01T00:00:00Z");
        object["status"]["conditions"][0]["lastTransitionTime"].clone()
    };
    assert_eq!(dated("v1", "Service", json!({"type": "a"})), "2026-01-01T00:00:00Z");
    assert_eq!(dated("v1", "Service", json!({"lastTransitionTime": null})), "2026-01-01T00:00:00Z");
    let said = "2020-02-02T00:00:00Z";
    assert_eq!(dated("v1", "Service", json!({"lastTransitionTime": said})), said);
    // Those of pods may be without.
    assert_eq!(dated("v1", "Pod", json!({"type": "Ready"})), Value::Null);
}
