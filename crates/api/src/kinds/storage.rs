//! What volumes are made by, and volumes themselves, kept as data: no volume is provisioned, bound or attached here.

use serde_json::{Value, json};

use super::AGE;
use crate::fielderror::FieldError;
use crate::kind::{
    Column, Entry, Kind, Strategy, keep_all_but_status, keep_all_but_status_itself, keep_status,
};
use crate::quantity::Quantity;
use crate::selector::validate_object;
use crate::{duration, meta, walk};

const GROUP: &str = "storage.k8s.io";

/// The entry of StorageClass.
pub static STORAGE_CLASS: Kind = Kind::Listed(&Entry {
    namespaced: false,
    short_names: &["sc"],
    strategy: Strategy {
        default: |o| {
            walk::default(o, "reclaimPolicy", "Delete");
            walk::default(o, "volumeBindingMode", "Immediate");
        },
        validate: |o| {
            let mut errors = Vec::new();
            if walk::text(o, "provisioner").is_empty() {
                errors.push(FieldError::required("provisioner", ""));
            }
            one_of(&mut errors, o, "reclaimPolicy", &["Delete", "Retain"]);
            one_of(&mut errors, o, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]);
            errors
        },
        validate_update: |new, old| {
            fixed(new, old, &["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"])
        },
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Provisioner", "string", "Who makes volumes of this class."),
        Column::new("ReclaimPolicy", "string", "What becomes of a volume that nobody claims any more."),
        Column::new("VolumeBindingMode", "string", "When a volume is bound to its claim."),
        Column::new("AllowVolumeExpansion", "string", "Whether volumes may grow."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let mut name = meta::name(o).to_owned();
        if meta::annotation(o, "storageclass.kubernetes.io/is-default-class") == Some("true") {
            name.push_str(" (default)");
        }
        vec![
            name.into(),
            walk::text(o, "provisioner").into(),
            walk::text(o, "reclaimPolicy").into(),
            walk::text(o, "volumeBindingMode").into(),
            walk::flag(o, "allowVolumeExpansion").unwrap_or(false).into(),
            duration::age(o, now).into(),
        ]
    },
    ..Entry::of(GROUP, "v1", ("StorageClass", "StorageClassList"), ("storageclasses", "storageclass"))
});

/// The entry of CSIDriver.
pub static CSI_DRIVER: Kind = Kind::Listed(&Entry {
    namespaced: false,
    strategy: Strategy {
        default: |o| {
            if walk::at(o, "spec").is_some() {
                walk::default(o, "spec.attachRequired", true);
                for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
                    walk::default(o, &format!("spec.{field}"), false);
                }
                walk::default(o, "spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
                walk::default(o, "spec.volumeLifecycleModes", json!(["Persistent"]));
            }
        },
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("AttachRequired", "boolean", "Whether volumes are attached to a node first."),
        Column::new("PodInfoOnMount", "boolean", "Whether the driver is told of the pod."),
        Column::new("StorageCapacity", "boolean", "Whether it says how much room there is."),
        Column::new("TokenRequests", "string", "The audiences of the tokens it is given."),
        Column::new("RequiresRepublish", "boolean", "Whether it is called again and again."),
        Column::new("Modes", "string", "The kinds of volumes it makes."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        let flag = |field: &str, or: bool| Value::from(walk::flag(o, &format!("spec.{field}")).unwrap_or(or));
        let tokens = match walk::at(o, "spec.tokenRequests").and_then(Value::as_array) {
            None => "<unset>".to_owned(),
            Some(all) => all.iter().map(|t| walk::text(t, "audience")).collect::<Vec<_>>().join(","),
        };
        let modes: Vec<&str> =
            walk::list(o, "spec.volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
        vec![
            meta::name(o).into(),
            flag("attachRequired", true),
            flag("podInfoOnMount", false),
            flag("storageCapacity", false),
            tokens.into(),
            flag("requiresRepublish", false),
            if modes.is_empty() { "<none>".into() } else { modes.join(",").into() },
            duration::age(o, now).into(),
        ]
    },
    ..Entry::of(GROUP, "v1", ("CSIDriver", "CSIDriverList"), ("csidrivers", "csidriver"))
});

/// The entry of CSINode.
pub static CSI_NODE: Kind = Kind::Listed(&Entry {
    namespaced: false,
    strategy: Strategy {
        // No driver is null, not an empty list: `drivers` has no `omitempty`.
        default: |o| {
            if walk::at(o, "spec").is_some() && walk::list(o, "spec.drivers").is_empty() {
                walk::set(o, "spec.drivers", Value::Null);
            }
        },
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Drivers", "integer", "How many drivers are on the node."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        vec![meta::name(o).into(), walk::list(o, "spec.drivers").len().into(), duration::age(o, now).into()]
    },
    ..Entry::of(GROUP, "v1", ("CSINode", "CSINodeList"), ("csinodes", "csinode"))
});

/// The entry of CSIStorageCapacity.
pub static CSI_STORAGE_CAPACITY: Kind = Kind::Listed(&Entry {
    namespaced: true,
    ..Entry::of(
        GROUP,
        "v1",
        ("CSIStorageCapacity", "CSIStorageCapacityList"),
        ("csistoragecapacities", "csistoragecapacity"),
    )
});

/// The entry of VolumeAttachment.
pub static VOLUME_ATTACHMENT: Kind = Kind::Listed(&Entry {
    namespaced: false,
    subresources: &["status"],
    strategy: Strategy {
        prepare_create: |o| walk::set(o, "status", json!({"attached": false})),
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status_itself,
        validate_update: |new, old| fixed(new, old, &["spec"]),
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::name("Attacher", "Who attaches it.", 0),
        Column::new("PV", "string", "The volume."),
        Column::new("Node", "string", "The node it is attached to."),
        Column::new("Attached", "boolean", "Whether it is."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        vec![
            meta::name(o).into(),
            walk::text(o, "spec.attacher").into(),
            walk::text(o, "spec.source.persistentVolumeName").into(),
            walk::text(o, "spec.nodeName").into(),
            walk::flag(o, "status.attached").unwrap_or(false).into(),
            duration::age(o, now).into(),
        ]
    },
    ..Entry::of(
        GROUP,
        "v1",
        ("VolumeAttachment", "VolumeAttachmentList"),
        ("volumeattachments", "volumeattachment"),
    )
});

/// The entry of VolumeAttributesClass.
pub static VOLUME_ATTRIBUTES_CLASS: Kind = Kind::Listed(&Entry {
    namespaced: false,
    short_names: &["vac"],
    strategy: Strategy {
        validate_update: |new, old| fixed(new, old, &["driverName", "parameters"]),
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("DriverName", "string", "The driver that knows the class."),
        Column::new("Age", "string", AGE),
    ],
    cells: |o, now| {
        vec![meta::name(o).into(), walk::text(o, "driverName").into(), duration::age(o, now).into()]
    },
    ..Entry::of(
        GROUP,
        "v1",
        ("VolumeAttributesClass", "VolumeAttributesClassList"),
        ("volumeattributesclasses", "volumeattributesclass"),
    )
});

/// The entry of PersistentVolume.
pub static PERSISTENT_VOLUME: Kind = Kind::Listed(&Entry {
    namespaced: false,
    short_names: &["pv"],
    subresources: &["status"],
    strategy: Strategy {
        default: |o| {
            if walk::at(o, "spec").is_some() {
                walk::default(o, "spec.persistentVolumeReclaimPolicy", "Retain");
                walk::default(o, "spec.volumeMode", "Filesystem");
                if let Some(spec) = walk::at_mut(o, "spec") {
                    crate::pod::default_disks(spec);
                }
            }
        },
        prepare_create: |o| {
            let now = meta::rfc3339(jiff::Timestamp::now());
            walk::set(o, "status", json!({"phase": "Pending", "lastPhaseTransitionTime": now}));
        },
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate: |o| {
            let mut errors = access_modes(o);
            if walk::map(o, "spec.capacity").is_empty() {
                errors.push(FieldError::required("spec.capacity", ""));
            }
            errors
        },
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Capacity", "string", "How large it is."),
        Column::new("Access Modes", "string", "Who may use it at once."),
        Column::new("Reclaim Policy", "string", "What becomes of it when nobody claims it any more."),
        Column::new("Status", "string", "Where it is in its life."),
        Column::new("Claim", "string", "Whose it is."),
        Column::new("StorageClass", "string", "StorageClass of the pv"),
        Column::new("VolumeAttributesClass", "string", "VolumeAttributesClass of the pv"),
        Column::new("Reason", "string", "Why it is in this state."),
        Column::new("Age", "string", AGE),
        Column::wide("VolumeMode", "string", "Whether it is a file system or a device."),
    ],
    cells: |o, now| {
        let claim = walk::at(o, "spec.claimRef").map_or_else(String::new, |c| {
            format!("{}/{}", walk::text(c, "namespace"), walk::text(c, "name"))
        });
        let size = walk::map(o, "spec.capacity").get("storage").and_then(Value::as_str).unwrap_or("0");
        vec![
            meta::name(o).into(),
            size.into(),
            modes(o, "spec.accessModes").into(),
            walk::text(o, "spec.persistentVolumeReclaimPolicy").into(),
            phase(o).into(),
            claim.into(),
            walk::text(o, "spec.storageClassName").into(),
            or_unset(o, "spec.volumeAttributesClassName").into(),
            walk::text(o, "status.reason").into(),
            duration::age(o, now).into(),
            or_unset(o, "spec.volumeMode").into(),
        ]
    },
    ..Entry::of(
        "",
        "v1",
        ("PersistentVolume", "PersistentVolumeList"),
        ("persistentvolumes", "persistentvolume"),
    )
});

/// The entry of PersistentVolumeClaim.
pub static PERSISTENT_VOLUME_CLAIM: Kind = Kind::Listed(&Entry {
    short_names: &["pvc"],
    subresources: &["status"],
    strategy: Strategy {
        default: |o| {
            if walk::at(o, "spec").is_some() {
                walk::default(o, "spec.volumeMode", "Filesystem");
            }
        },
        prepare_create: |o| walk::set(o, "status", json!({"phase": "Pending"})),
        prepare_update: keep_status,
        prepare_status_update: keep_all_but_status,
        validate: |o| claim_spec_faults(o.get("spec").unwrap_or(&Value::Null), "spec"),
        validate_update: |new, old| {
            let bare = |o: &Value| {
                let mut spec = o.get("spec").cloned().unwrap_or_default();
                for field in ["resources", "volumeAttributesClassName", "volumeName"] {
                    walk::remove(&mut spec, field);
                }
                spec
            };
            let mut errors = Vec::new();
            let bound = walk::text(old, "spec.volumeName");
            if bare(new) != bare(old) || (!bound.is_empty() && bound != walk::text(new, "spec.volumeName")) {
                errors.push(FieldError::forbidden(
                    "spec",
                    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
                ));
            }
            errors
        },
        ..Strategy::PLAIN
    },
    columns: &[
        Column::object_name(),
        Column::new("Status", "string", "Where it is in its life."),
        Column::new("Volume", "string", "The volume that it has."),
        Column::new("Capacity", "string", "How large that is."),
        Column::new("Access Modes", "string", "Who may use it at once."),
        Column::new("StorageClass", "string", "StorageClass of the pvc"),
        Column::new("VolumeAttributesClass", "string", "VolumeAttributesClass of the pvc"),
        Column::new("Age", "string", AGE),
        Column::wide("VolumeMode", "string", "Whether it is a file system or a device."),
    ],
    cells: |o, now| {
        let volume = walk::text(o, "spec.volumeName");
        let size = walk::map(o, "status.capacity").get("storage").and_then(Value::as_str).unwrap_or("0");
        let (size, access) =
            if volume.is_empty() { ("", String::new()) } else { (size, modes(o, "status.accessModes")) };
        vec![
            meta::name(o).into(),
            phase(o).into(),
            volume.into(),
            size.into(),
            access.into(),
            walk::text(o, "spec.storageClassName").into(),
            or_unset(o, "spec.volumeAttributesClassName").into(),
            duration::age(o, now).into(),
            or_unset(o, "spec.volumeMode").into(),
        ]
    },
    ..Entry::of(
        "",
        "v1",
        ("PersistentVolumeClaim", "PersistentVolumeClaimList"),
        ("persistentvolumeclaims", "persistentvolumeclaim"),
    )
});

const MODES: [(&str, &str); 4] = [
    ("ReadWriteOnce", "RWO"),
    ("ReadOnlyMany", "ROX"),
    ("ReadWriteMany", "RWX"),
    ("ReadWriteOncePod", "RWOP"),
];

fn modes(object: &Value, path: &str) -> String {
    let has = walk::list(object, path);
    let short = MODES.iter().filter(|(mode, _)| has.iter().any(|m| m == mode)).map(|(_, short)| *short);
    short.collect::<Vec<_>>().join(",")
}

fn access_modes(object: &Value) -> Vec<FieldError> {
    const PATH: &str = "spec.accessModes";
    let modes = walk::list(object, PATH);
    if modes.is_empty() {
        return vec![FieldError::required(PATH, "")];
    }
    mode_faults(modes, PATH)
}

/// What is wrong with what a claim asks for (`ValidatePersistentVolumeClaimSpec`).
pub(crate) fn claim_spec_faults(spec: &Value, at: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let modes = walk::list(spec, "accessModes");
    let path = format!("{at}.accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required(&path, "at least 1 access mode is required"));
    }
    if let Some(selector) = walk::at(spec, "selector") {
        errors.extend(validate_object(selector, &format!("{at}.selector")));
    }
    errors.extend(mode_faults(modes, &path));
    let size = format!("{at}.resources[storage]");
    match walk::map(spec, "resources.requests")
        .get("storage")
        .and_then(Value::as_str)
        .and_then(Quantity::parse)
    {
        None => errors.push(FieldError::required(size, "")),
        Some(amount) if amount <= Quantity::ZERO => {
            errors.push(FieldError::invalid(size, amount.to_string(), "must be greater than zero"));
        }
        Some(_) => {}
    }
    let class = |errors: &mut Vec<FieldError>, field: &str| {
        let name = walk::text(spec, field);
        if !name.is_empty() {
            errors.extend(meta::findings(&format!("{at}.{field}"), name, meta::subdomain_faults(name)));
        }
    };
    class(&mut errors, "storageClassName");
    if let Some(mode) = walk::at(spec, "volumeMode").and_then(Value::as_str)
        && !["Block", "Filesystem"].contains(&mode)
    {
        errors.push(FieldError::not_supported(format!("{at}.volumeMode"), mode, &["Block", "Filesystem"]));
    }
    let source = |errors: &mut Vec<FieldError>, field: &str| {
        let Some(source) = walk::at(spec, field) else { return };
        let of = |part: &str| (format!("{at}.{field}.{part}"), walk::text(source, part));
        for part in ["name", "kind"] {
            let (path, text) = of(part);
            if text.is_empty() {
                errors.push(FieldError::required(path, ""));
            }
        }
        let ((_, kind), (path, group)) = (of("kind"), of("apiGroup"));
        if group.is_empty() && kind != "PersistentVolumeClaim" {
            let text = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.push(FieldError::invalid(format!("{at}.{field}"), kind, text));
        }
        if !group.is_empty() {
            errors.extend(meta::findings(&path, group, meta::subdomain_faults(group)));
        }
        let (path, namespace) = of("namespace");
        if !namespace.is_empty() {
            errors.extend(meta::findings(&path, namespace, meta::label_faults(namespace)));
        }
    };
    source(&mut errors, "dataSource");
    source(&mut errors, "dataSourceRef");
    class(&mut errors, "volumeAttributesClassName");
    errors
}

fn mode_faults(modes: &[Value], path: &str) -> Vec<FieldError> {
    let known = |mode: &&Value| MODES.iter().any(|(known, _)| *mode == known);
    let odd = modes.iter().filter(|mode| !known(mode)).map(|mode| {
        let all = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
        FieldError::not_supported(path, mode.clone(), &all)
    });
    let mut errors: Vec<FieldError> = odd.collect();
    let alone = |mode: &&Value| **mode == "ReadWriteOncePod";
    if modes.iter().any(|mode| alone(&mode)) && modes.iter().filter(known).any(|mode| !alone(&mode)) {
        errors.push(FieldError::forbidden(path, "may not use ReadWriteOncePod with other access modes"));
    }
    errors
}

fn phase(object: &Value) -> &str {
    match meta::deletion_timestamp(object) {
        Some(_) => "Terminating",
        None => walk::text(object, "status.phase"),
    }
}

fn or_unset<'a>(object: &'a Value, path: &str) -> &'a str {
    walk::at(object, path).and_then(Value::as_str).unwrap_or("<unset>")
}

fn one_of(errors: &mut Vec<FieldError>, object: &Value, path: &str, allowed: &[&str]) {
    let text = walk::text(object, path);
    if !allowed.contains(&text) {
        errors.push(FieldError::not_supported(path, text, allowed));
    }
}

fn fixed(new: &Value, old: &Value, fields: &[&str]) -> Vec<FieldError> {
    let changed = fields.iter().filter(|field| walk::at(new, field) != walk::at(old, field));
    let say = |field: &&str| {
        let value = walk::at(new, field).cloned().unwrap_or_default();
        FieldError::invalid(*field, value, "field is immutable")
    };
    changed.map(say).collect()
}
