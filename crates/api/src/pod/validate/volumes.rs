//! The rules of volumes.

use serde_json::Value;

use super::{Errors, has, label, quantity};
use crate::fielderror::FieldError;
use crate::{meta, selector, walk};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const SECOND: &str = "may not specify more than 1 volume type";
const PARTITION: &str = "must be between 1 and 255, inclusive";
const LUN: &str = "must be between 0 and 255, inclusive";

/// Each source: its field, the field that the text of a second one names, and the one that its own rules name.
const SOURCES: [(&str, &str, &str); 30] = [
    ("emptyDir", "emptyDir", "emptyDir"),
    ("hostPath", "hostPath", "hostPath"),
    ("gitRepo", "gitRepo", "gitRepo"),
    ("gcePersistentDisk", "gcePersistentDisk", "persistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore", "awsElasticBlockStore"),
    ("secret", "secret", "secret"),
    ("nfs", "nfs", "nfs"),
    ("iscsi", "iscsi", "iscsi"),
    ("glusterfs", "glusterfs", "glusterfs"),
    ("flocker", "flocker", "flocker"),
    ("persistentVolumeClaim", "persistentVolumeClaim", "persistentVolumeClaim"),
    ("rbd", "rbd", "rbd"),
    ("cinder", "cinder", "cinder"),
    ("cephfs", "cephFS", "cephfs"),
    ("quobyte", "quobyte", "quobyte"),
    ("downwardAPI", "downwarAPI", "downwardAPI"),
    ("fc", "fc", "fc"),
    ("flexVolume", "flexVolume", "flexVolume"),
    ("configMap", "configMap", "configMap"),
    ("azureFile", "azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk", "azureDisk"),
    ("storageos", "storageos", "storageos"),
    ("projected", "projected", "projected"),
    ("scaleIO", "scaleIO", "scaleIO"),
    ("csi", "csi", "csi"),
    ("ephemeral", "ephemeral", "ephemeral"),
    ("image", "image", "image"),
];

/// Finds fault with volumes; gives those without any, by their names.
pub(super) fn rules<'a>(
    errors: &mut Errors,
    spec: &'a Value,
    pod: Option<&str>,
    at: &str,
) -> Vec<(&'a str, &'a Value)> {
    let mut good: Vec<(&str, &Value)> = Vec::new();
    let all = walk::list(spec, "volumes");
    let made: Vec<String> = match pod.filter(|name| !name.is_empty()) {
        Some(pod) => all
            .iter()
            .filter(|volume| has(volume, "ephemeral"))
            .map(|volume| format!("{pod}-{}", walk::text(volume, "name")))
            .collect(),
        None => Vec::new(),
    };
    for (i, volume) in all.iter().enumerate() {
        let path = format!("{at}[{i}]");
        let name = walk::text(volume, "name");
        let mut own = Vec::new();
        source(&mut own, volume, pod, &path);
        let of_name = format!("{path}.name");
        if name.is_empty() {
            own.push(FieldError::required(&of_name, ""));
        } else {
            label(&mut own, &of_name, name);
        }
        if good.iter().any(|(other, _)| *other == name) {
            own.push(FieldError::duplicate(of_name, name));
        }
        if own.is_empty() {
            good.push((name, volume));
        }
        errors.extend(own);
        let claim = walk::text(volume, "persistentVolumeClaim.claimName");
        if has(volume, "persistentVolumeClaim") && made.iter().any(|made| made == claim) {
            errors.push(FieldError::invalid(
                format!("{path}.persistentVolumeClaim.claimName"),
                claim,
                "must not reference a PVC that gets created for an ephemeral volume",
            ));
        }
    }
    good
}

fn source(errors: &mut Errors, volume: &Value, pod: Option<&str>, at: &str) {
    let mut found = false;
    for (field, named, own) in SOURCES {
        let Some(source) = walk::at(volume, field) else { continue };
        if found {
            errors.push(FieldError::forbidden(format!("{at}.{named}"), SECOND));
        } else {
            of_kind(errors, source, field, &format!("{at}.{own}"));
            if field == "ephemeral" {
                claim_of_pod(errors, volume, pod, at);
            }
        }
        if field == "iscsi" && has(source, "initiatorName") {
            let name = walk::text(volume, "name");
            if name.len() + 1 + walk::text(source, "targetPortal").len() > 64 {
                errors.push(FieldError::invalid(
                    format!("{at}.name"),
                    name,
                    "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                     iscsi.initiatorName is specified.",
                ));
            }
        }
        found = true;
    }
    if !found {
        errors.push(FieldError::required(at, "must specify a volume type"));
    }
}

fn claim_of_pod(errors: &mut Errors, volume: &Value, pod: Option<&str>, at: &str) {
    let name = walk::text(volume, "name");
    let Some(pod) = pod.filter(|pod| !pod.is_empty() && !name.is_empty()) else { return };
    let claim = format!("{pod}-{name}");
    for fault in meta::subdomain_faults(&claim) {
        errors.push(FieldError::invalid(
            format!("{at}.name"),
            name,
            format!("PVC name \"{claim}\": {fault}"),
        ));
    }
}

/// Finds fault with texts that have to be there.
fn needed(errors: &mut Errors, source: &Value, at: &str, fields: &[&str]) {
    for field in fields {
        if walk::text(source, field).is_empty() {
            errors.push(FieldError::required(format!("{at}.{field}"), ""));
        }
    }
}

fn mode(errors: &mut Errors, value: &Value, at: &str, field: &str) {
    if let Some(n) = walk::int(value, field).filter(|n| !(0..=0o777).contains(n)) {
        errors.push(FieldError::invalid(format!("{at}.{field}"), n, MODE));
    }
}

fn partition(errors: &mut Errors, value: &Value, at: &str) {
    if let Some(n) = walk::int(value, "partition").filter(|n| !(0..=255).contains(n)) {
        errors.push(FieldError::invalid(format!("{at}.partition"), n, PARTITION));
    }
}

/// Finds fault with a path that leads upwards.
pub(super) fn no_backsteps(errors: &mut Errors, path: &str, text: &str) {
    if text.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, text, "must not contain '..'"));
    }
}

/// Finds fault with a path that isn't below where it begins.
pub(super) fn descending(errors: &mut Errors, path: &str, text: &str) {
    if text.starts_with('/') {
        errors.push(FieldError::invalid(path, text, "must be a relative path"));
    }
    no_backsteps(errors, path, text);
}

fn unreserved(errors: &mut Errors, path: &str, text: &str) {
    descending(errors, path, text);
    if text.starts_with("..") && !text.starts_with("../") {
        errors.push(FieldError::invalid(path, text, "must not start with '..'"));
    }
}

fn of_kind(errors: &mut Errors, source: &Value, kind: &str, at: &str) {
    match kind {
        "emptyDir" if walk::at(source, "sizeLimit").is_some_and(|limit| quantity(limit).is_negative()) => {
            let text = "SizeLimit field must be a valid resource quantity";
            errors.push(FieldError::forbidden(format!("{at}.sizeLimit"), text));
        }
        "hostPath" => host_path(errors, source, at),
        "gitRepo" => {
            needed(errors, source, at, &["repository"]);
            descending(errors, &format!("{at}.directory"), walk::text(source, "directory"));
        }
        "gcePersistentDisk" => {
            needed(errors, source, at, &["pdName"]);
            partition(errors, source, at);
        }
        "awsElasticBlockStore" => {
            needed(errors, source, at, &["volumeID"]);
            partition(errors, source, at);
        }
        "secret" => {
            needed(errors, source, at, &["secretName"]);
            mode(errors, source, at, "defaultMode");
            items(errors, source, at);
        }
        "configMap" => {
            needed(errors, source, at, &["name"]);
            mode(errors, source, at, "defaultMode");
            items(errors, source, at);
        }
        "nfs" => {
            needed(errors, source, at, &["server", "path"]);
            let path = walk::text(source, "path");
            if !path.starts_with('/') {
                errors.push(FieldError::invalid(format!("{at}.path"), path, "must be an absolute path"));
            }
        }
        "iscsi" => iscsi(errors, source, at),
        "glusterfs" => needed(errors, source, at, &["endpoints", "path"]),
        "flocker" => flocker(errors, source, at),
        "persistentVolumeClaim" => needed(errors, source, at, &["claimName"]),
        "rbd" | "cephfs" => {
            if walk::list(source, "monitors").is_empty() {
                errors.push(FieldError::required(format!("{at}.monitors"), ""));
            }
            if kind == "rbd" {
                needed(errors, source, at, &["image"]);
            }
        }
        "cinder" => {
            needed(errors, source, at, &["volumeID"]);
            if has(source, "secretRef") {
                needed(errors, source, at, &["secretRef.name"]);
            }
        }
        "quobyte" => quobyte(errors, source, at),
        "downwardAPI" => {
            mode(errors, source, at, "defaultMode");
            for file in walk::list(source, "items") {
                downward_file(errors, file, at);
            }
        }
        "fc" => fibre_channel(errors, source, at),
        "flexVolume" => {
            needed(errors, source, at, &["driver"]);
            for key in walk::map(source, "options").keys() {
                let namespace = key.split('/').next().unwrap_or("");
                let normal = format!(".{namespace}");
                if [".kubernetes.io", ".k8s.io"].iter().any(|reserved| normal.ends_with(reserved)) {
                    errors.push(FieldError::invalid(
                        format!("{at}.options[{key}]"),
                        key.as_str(),
                        "kubernetes.io and k8s.io namespaces are reserved",
                    ));
                }
            }
        }
        "azureFile" => needed(errors, source, at, &["secretName", "shareName"]),
        "vsphereVolume" => needed(errors, source, at, &["volumePath"]),
        "photonPersistentDisk" => needed(errors, source, at, &["pdID"]),
        "portworxVolume" => needed(errors, source, at, &["volumeID"]),
        "azureDisk" => azure_disk(errors, source, at),
        "storageos" => {
            for field in ["volumeName", "volumeNamespace"] {
                let (path, name) = (format!("{at}.{field}"), walk::text(source, field));
                if !name.is_empty() {
                    label(errors, &path, name);
                } else if field == "volumeName" {
                    errors.push(FieldError::required(path, ""));
                }
            }
            if has(source, "secretRef") {
                needed(errors, source, at, &["secretRef.name"]);
            }
        }
        "scaleIO" => needed(errors, source, at, &["gateway", "system", "volumeName"]),
        "projected" => {
            mode(errors, source, at, "defaultMode");
            projected(errors, source, at);
        }
        "csi" => {
            driver(errors, &format!("{at}.driver"), walk::text(source, "driver"));
            if has(source, "nodePublishSecretRef") {
                let name = walk::text(source, "nodePublishSecretRef.name");
                if name.is_empty() {
                    errors.push(FieldError::required(format!("{at}.nodePublishSecretRef.name"), ""));
                } else {
                    super::subdomain(errors, &format!("{at}.name"), name);
                }
            }
        }
        "ephemeral" => match walk::at(source, "volumeClaimTemplate") {
            None => errors.push(FieldError::required(format!("{at}.volumeClaimTemplate"), "")),
            Some(template) => {
                let path = format!("{at}.volumeClaimTemplate");
                let labels = walk::map(template, "metadata.labels");
                errors.extend(meta::validate_labels(labels, &format!("{path}.metadata.labels")));
                let notes = walk::map(template, "metadata.annotations");
                errors.extend(meta::validate_annotations(notes, &format!("{path}.metadata.annotations")));
                errors.extend(crate::kinds::storage::claim_spec_faults(
                    template.get("spec").unwrap_or(&Value::Null),
                    &format!("{path}.spec"),
                ));
            }
        },
        "image" => {
            let policies = ["Always", "IfNotPresent", "Never"];
            if walk::text(source, "reference").is_empty() {
                errors.push(FieldError::required(format!("{at}.reference"), ""));
            }
            super::word(errors, source, at, "pullPolicy", &policies);
        }
        _ => {}
    }
}

fn host_path(errors: &mut Errors, source: &Value, at: &str) {
    let path = walk::text(source, "path");
    if path.is_empty() {
        errors.push(FieldError::required(format!("{at}.path"), ""));
        return;
    }
    no_backsteps(errors, &format!("{at}.path"), path);
    let kinds =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    super::maybe(errors, source, at, "type", &kinds);
}

fn items(errors: &mut Errors, source: &Value, at: &str) {
    for (i, item) in walk::list(source, "items").iter().enumerate() {
        key_to_path(errors, item, &format!("{at}.items[{i}]"));
    }
}

fn key_to_path(errors: &mut Errors, item: &Value, at: &str) {
    needed(errors, item, at, &["key", "path"]);
    unreserved(errors, &format!("{at}.path"), walk::text(item, "path"));
    mode(errors, item, at, "mode");
}

const DOWNWARD: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

fn downward_file(errors: &mut Errors, file: &Value, at: &str) {
    needed(errors, file, at, &["path"]);
    unreserved(errors, &format!("{at}.path"), walk::text(file, "path"));
    match (walk::at(file, "fieldRef"), walk::at(file, "resourceFieldRef")) {
        (Some(field), resource) => {
            super::containers::field_reference(errors, field, &DOWNWARD, &format!("{at}.fieldRef"));
            if resource.is_some() {
                let text = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(FieldError::invalid(at, "resource", text));
            }
        }
        (None, Some(resource)) => {
            super::containers::resource_reference(errors, resource, &format!("{at}.resourceFieldRef"), true);
        }
        (None, None) => {
            errors.push(FieldError::required(at, "one of fieldRef and resourceFieldRef is required"));
        }
    }
    mode(errors, file, at, "mode");
}

fn projected(errors: &mut Errors, volume: &Value, at: &str) {
    let mut paths: Vec<String> = Vec::new();
    let mut taken = |errors: &mut Errors, path: &str, shown: &str| {
        if paths.iter().any(|other| other == path) {
            errors.push(FieldError::invalid(at, shown, "conflicting duplicate paths"));
        } else {
            paths.push(path.to_owned());
        }
    };
    for (i, source) in walk::list(volume, "sources").iter().enumerate() {
        let here = format!("{at}.sources[{i}]");
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            let Some(source) = walk::at(source, kind) else { continue };
            count += 1;
            needed(errors, source, &format!("{here}.{kind}"), &["name"]);
            for (j, item) in walk::list(source, "items").iter().enumerate() {
                key_to_path(errors, item, &format!("{here}.{kind}.items[{j}]"));
                let path = walk::text(item, "path");
                if !path.is_empty() {
                    taken(errors, path, walk::text(source, "name"));
                }
            }
        }
        if let Some(source) = walk::at(source, "downwardAPI") {
            count += 1;
            for file in walk::list(source, "items") {
                downward_file(errors, file, &format!("{here}.downwardAPI"));
                let path = walk::text(file, "path");
                if !path.is_empty() {
                    taken(errors, path, path);
                }
            }
        }
        if let Some(token) = walk::at(source, "serviceAccountToken") {
            count += 1;
            let seconds = walk::int(token, "expirationSeconds").unwrap_or(0);
            let path = format!("{here}.serviceAccountToken.expirationSeconds");
            if seconds < 600 {
                let text = "may not specify a duration less than 10 minutes";
                errors.push(FieldError::invalid(&path, seconds, text));
            }
            if seconds > 1 << 32 {
                let text = "may not specify a duration larger than 2^32 seconds";
                errors.push(FieldError::invalid(&path, seconds, text));
            }
            let file = walk::text(token, "path");
            if file.is_empty() {
                errors.push(FieldError::required(format!("{at}.path"), ""));
            } else {
                unreserved(errors, &format!("{at}.path"), file);
            }
        }
        if let Some(bundle) = walk::at(source, "clusterTrustBundle") {
            count += 1;
            trust_bundle(errors, bundle, &format!("{here}.clusterTrustBundle"));
            let path = walk::text(bundle, "path");
            taken(errors, path, path);
        }
        if count > 1 {
            errors.push(FieldError::forbidden(here, "may not specify more than 1 volume type per source"));
        }
    }
}

fn trust_bundle(errors: &mut Errors, bundle: &Value, at: &str) {
    let selector = walk::at(bundle, "labelSelector");
    match (has(bundle, "name"), has(bundle, "signerName")) {
        (true, true) => {
            errors.push(FieldError::invalid(
                at,
                bundle.clone(),
                "only one of name and signerName may be used",
            ));
        }
        (true, false) => {
            let name = walk::text(bundle, "name");
            if name.is_empty() {
                errors.push(FieldError::required(format!("{at}.name"), "must be a valid object name"));
            }
            for fault in meta::subdomain_faults(name) {
                let text = format!("not a valid clustertrustbundlename: {fault}");
                errors.push(FieldError::invalid(format!("{at}.name"), name, text));
            }
            if let Some(selector) = selector {
                let text = "labelSelector must be unset if name is specified";
                errors.push(FieldError::invalid(format!("{at}.labelSelector"), selector.clone(), text));
            }
        }
        (false, true) => {
            if walk::text(bundle, "signerName").is_empty() {
                errors.push(FieldError::required(format!("{at}.signerName"), "must be a valid signer name"));
            }
            if let Some(selector) = selector {
                errors.extend(selector::validate_object(selector, &format!("{at}.labelSelector")));
            }
        }
        (false, false) => {
            errors.push(FieldError::required(at, "either name or signerName must be specified"))
        }
    }
    let path = walk::text(bundle, "path");
    if path.is_empty() {
        errors.push(FieldError::required(format!("{at}.path"), ""));
    }
    unreserved(errors, &format!("{at}.path"), path);
}

fn iscsi(errors: &mut Errors, source: &Value, at: &str) {
    needed(errors, source, at, &["targetPortal"]);
    let name = walk::text(source, "iqn");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{at}.iqn"), ""));
    } else {
        initiator(errors, &format!("{at}.iqn"), name);
    }
    if let Some(lun) = walk::int(source, "lun").filter(|lun| !(0..=255).contains(lun)) {
        errors.push(FieldError::invalid(format!("{at}.lun"), lun, LUN));
    }
    let authenticates =
        ["chapAuthDiscovery", "chapAuthSession"].iter().any(|f| walk::flag(source, f) == Some(true));
    if authenticates && !has(source, "secretRef") {
        errors.push(FieldError::required(format!("{at}.secretRef"), ""));
    }
    if let Some(name) = walk::at(source, "initiatorName").and_then(Value::as_str) {
        initiator(errors, &format!("{at}.initiatorname"), name);
    }
}

/// A name of iSCSI: `iqn.2001-04.com.example:storage`, `eui.` and 16 digits, `naa.` and 16 or 32.
fn initiator(errors: &mut Errors, path: &str, name: &str) {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let good = if name.starts_with("iqn") {
        let mut parts = name.strip_prefix("iqn.").unwrap_or("").splitn(2, '.');
        let (date, rest) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let dated = date.len() == 7
            && date.as_bytes()[4] == b'-'
            && date.bytes().enumerate().all(|(i, b)| i == 4 || b.is_ascii_digit());
        let rest = rest.split(':').next().unwrap_or("");
        dated && !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
    } else if let Some(digits) = name.strip_prefix("eui") {
        digits.strip_prefix('.').is_some_and(|digits| digits.len() == 16 && hex(digits))
    } else if let Some(digits) = name.strip_prefix("naa") {
        digits.strip_prefix('.').is_some_and(|digits| matches!(digits.len(), 16 | 32) && hex(digits))
    } else {
        let text = "must be valid format starting with iqn, eui, or naa";
        errors.push(FieldError::invalid(path, name, text));
        return;
    };
    if !good {
        errors.push(FieldError::invalid(path, name, "must be valid format"));
    }
}

fn azure_disk(errors: &mut Errors, source: &Value, at: &str) {
    needed(errors, source, at, &["diskName", "diskURI"]);
    super::maybe(errors, source, at, "cachingMode", &["None", "ReadOnly", "ReadWrite"]);
    super::maybe(errors, source, at, "kind", &["Dedicated", "Managed", "Shared"]);
    let Some(kind) = walk::at(source, "kind").and_then(Value::as_str) else { return };
    let (begin, example) = match kind {
        "Managed" => (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        ),
        _ => ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"),
    };
    let place = walk::text(source, "diskURI");
    if !place.starts_with(begin) {
        errors.push(FieldError::not_supported(format!("{at}.diskURI"), place, &[example]));
    }
}

fn flocker(errors: &mut Errors, source: &Value, at: &str) {
    let (name, uuid) = (walk::text(source, "datasetName"), walk::text(source, "datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        errors.push(FieldError::required(at, "one of datasetName and datasetUUID is required"));
    }
    if !name.is_empty() && !uuid.is_empty() {
        let text = "datasetName and datasetUUID can not be specified simultaneously";
        errors.push(FieldError::invalid(at, "resource", text));
    }
    if name.contains('/') {
        errors.push(FieldError::invalid(format!("{at}.datasetName"), name, "must not contain '/'"));
    }
}

fn quobyte(errors: &mut Errors, source: &Value, at: &str) {
    const TEXT: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = walk::text(source, "registry");
    if registry.is_empty() {
        errors.push(FieldError::required(format!("{at}.registry"), TEXT));
    } else if walk::text(source, "tenant").len() >= 65 {
        let text = "must be a UUID and may not exceed a length of 64 characters";
        errors.push(FieldError::required(format!("{at}.tenant"), text));
    } else {
        for pair in registry.split(',').filter(|pair| pair.matches(':').count() != 1) {
            let _ = pair;
            errors.push(FieldError::invalid(format!("{at}.registry"), registry, TEXT));
        }
    }
    needed(errors, source, at, &["volume"]);
}

fn fibre_channel(errors: &mut Errors, source: &Value, at: &str) {
    let (names, ids) = (walk::list(source, "targetWWNs"), walk::list(source, "wwids"));
    let path = format!("{at}.targetWWNs");
    if names.is_empty() && ids.is_empty() {
        let text = "must specify either targetWWNs or wwids, but not both";
        errors.push(FieldError::required(&path, text));
    }
    if !names.is_empty() && !ids.is_empty() {
        let text = "targetWWNs and wwids can not be specified simultaneously";
        errors.push(FieldError::invalid(&path, names.to_vec(), text));
    }
    if !names.is_empty() {
        match walk::int(source, "lun") {
            None => errors.push(FieldError::required(
                format!("{at}.lun"),
                "lun is required if targetWWNs is specified",
            )),
            Some(lun) if !(0..=255).contains(&lun) => {
                errors.push(FieldError::invalid(format!("{at}.lun"), lun, LUN));
            }
            Some(_) => {}
        }
    }
}

/// Finds fault with the name of a storage driver.
pub(crate) fn driver(errors: &mut Errors, path: &str, name: &str) {
    if name.is_empty() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    if name.len() > 63 {
        errors.push(FieldError::too_long(path, 63));
    }
    errors.extend(meta::findings(path, name, meta::subdomain_faults(&name.to_lowercase())));
}
