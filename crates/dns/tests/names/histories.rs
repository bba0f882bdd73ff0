//! A zone that was changed object by object is the zone made anew of what there is.

use std::collections::BTreeMap;

use portolan_dns::from_kube;
use portolan_dns::zone::{Key, Zone};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixture::{empty, put, said, service, slice, zone};

/// One thing that happens: an object by its name as it is now, or its end.
#[derive(Clone, Debug)]
struct Change {
    name: String,
    object: Option<Value>,
}

fn change() -> impl Strategy<Value = Change> {
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let spec = prop::sample::select(vec![
        json!({"clusterIP": "10.96.0.1", "ports": ports}),
        json!({"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2", "fd00:10:96::2"], "ports": ports}),
        json!({"clusterIP": "None", "ports": ports}),
        json!({"type": "ExternalName", "externalName": "b.default.svc.cluster.local"}),
        json!({"ports": ports}),
    ]);
    let name = prop::sample::select(vec!["a", "b"]);
    let services = (name.clone(), prop::option::weighted(0.8, spec)).prop_map(|(name, spec)| Change {
        name: name.to_owned(),
        object: spec.map(|spec| service(name, spec)),
    });
    let endpoint = (1..5_u8, any::<bool>(), any::<bool>()).prop_map(|(number, named, ready)| {
        let mut endpoint =
            json!({"addresses": [format!("10.244.0.{number}")], "conditions": {"ready": ready}});
        if named {
            endpoint["hostname"] = format!("h-{number}").into();
        }
        endpoint
    });
    let endpoints = prop::collection::vec(endpoint, 1..4);
    let slices = prop::sample::select(vec!["s-1", "s-2", "s-3"]);
    let slices =
        (slices, name, prop::option::weighted(0.8, endpoints)).prop_map(move |(name, service, endpoints)| {
            Change {
                name: name.to_owned(),
                object: endpoints.map(|endpoints| slice(service, name, endpoints.into(), ports.clone())),
            }
        });
    prop_oneof![services, slices]
}

fn apply(zone: &mut Zone, change: &Change) {
    match &change.object {
        Some(object) => put(zone, object.clone()),
        None if change.name.starts_with("s-") => {
            zone.set_slice(&("default".into(), change.name.as_str().into()), None);
        }
        None => zone.set_service(&Key::new("default", &change.name).unwrap(), None),
    }
}

/// All that can be asked of such zones.
fn everything(zone: &Zone) -> BTreeMap<(String, &'static str), String> {
    let mut all = BTreeMap::new();
    let mut ask = |name: String, kind| {
        let text = said(zone, &name, kind);
        // The zone's number tells how it came to be, and is not compared.
        all.insert((name, kind), text);
    };
    for service in ["a", "b"] {
        for kind in ["A", "AAAA", "SRV", "CNAME"] {
            ask(format!("{service}.default.svc.cluster.local"), kind);
            ask(format!("_http._tcp.{service}.default.svc.cluster.local"), kind);
        }
        for number in 1..5 {
            ask(format!("h-{number}.{service}.default.svc.cluster.local"), "A");
            ask(format!("10-244-0-{number}.{service}.default.svc.cluster.local"), "A");
        }
    }
    for address in ["1.0.96.10", "2.0.96.10", "1.0.244.10", "2.0.244.10", "3.0.244.10", "4.0.244.10"] {
        ask(format!("{address}.in-addr.arpa"), "PTR");
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_zone_that_was_changed_is_the_zone_made_anew(changes in prop::collection::vec(change(), 1..25)) {
        let (mut changed, mut there) = (empty(), BTreeMap::new());
        for change in &changes {
            apply(&mut changed, change);
            match &change.object {
                Some(object) => drop(there.insert(change.name.clone(), object.clone())),
                None => drop(there.remove(&change.name)),
            }
        }
        let anew = zone(&there.into_values().collect::<Vec<_>>());
        prop_assert_eq!(everything(&changed), everything(&anew));
        prop_assert_eq!(changed.size(), anew.size());
    }
}

#[test]
fn an_object_that_says_the_same_again_changes_nothing() {
    let mut zone = empty();
    let object = service("a", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    put(&mut zone, object.clone());
    let soa = |zone: &Zone| crate::fixture::wire(zone, &crate::fixture::query("cluster.local", "SOA"));
    let before = soa(&zone);
    put(&mut zone, object);
    assert_eq!(soa(&zone), before);
    assert!(from_kube::service(&Default::default()).is_none());
}
