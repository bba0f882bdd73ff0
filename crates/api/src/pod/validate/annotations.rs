//! The rules of annotations that mean something in a pod.

use serde_json::{Map, Value};

use super::{Errors, every_container, tolerations, volumes};
use crate::fielderror::FieldError;
use crate::walk;

const MIRROR: &str = "kubernetes.io/config.mirror";
const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
/// Of which container, behind it.
pub(super) const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

fn text<'a>(annotations: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    annotations.get(key).and_then(Value::as_str)
}

/// Whether a text is a number of 32 bits as Kubernetes writes one: without a plus, without zeros before it.
fn is_cost(text: &str) -> bool {
    let plain = text.starts_with('-') || text == "0" || text.starts_with(|c: char| ('1'..='9').contains(&c));
    plain && text.parse::<i32>().is_ok()
}

/// What is wrong with annotations at `at`.
pub(super) fn rules(errors: &mut Errors, annotations: &Map<String, Value>, spec: &Value, at: &str) {
    if let Some(mirror) = text(annotations, MIRROR)
        && walk::text(spec, "nodeName").is_empty()
    {
        let text = "must set spec.nodeName if mirror pod annotation is set";
        errors.push(FieldError::invalid(format!("{at}[{MIRROR}]"), mirror, text));
    }
    if let Some(all) = text(annotations, TOLERATIONS).filter(|all| !all.is_empty()) {
        match serde_json::from_str::<Value>(all) {
            Ok(all) => {
                let all = all.as_array().map_or(&[][..], Vec::as_slice);
                errors.extend(tolerations(all, &format!("{at}.{TOLERATIONS}")));
            }
            Err(error) => errors.push(FieldError::invalid(at, TOLERATIONS, error.to_string())),
        }
    }
    if let Some(cost) = text(annotations, COST).filter(|cost| !is_cost(cost)) {
        errors.push(FieldError::invalid(format!("{at}[{COST}]"), cost, "must be a 32bit integer"));
    }
    if let Some(profile) = text(annotations, SECCOMP) {
        seccomp(errors, profile, &format!("{at}.{SECCOMP}"));
    }
    for (key, value) in annotations {
        let value = value.as_str().unwrap_or("");
        if key.starts_with(SECCOMP_CONTAINER) {
            seccomp(errors, value, &format!("{at}.{key}"));
        }
        let Some(container) = key.strip_prefix(APP_ARMOR) else { continue };
        if !every_container(spec, "").iter().any(|(_, known)| walk::text(known, "name") == container) {
            errors.push(FieldError::invalid(format!("{at}[{key}]"), container, "container not found"));
        }
        if !matches!(value, "" | "runtime/default" | "unconfined") && !value.starts_with("localhost/") {
            let text = format!("invalid AppArmor profile name: {}", crate::fielderror::quote(value));
            errors.push(FieldError::invalid(format!("{at}[{key}]"), value, text));
        }
    }
}

fn seccomp(errors: &mut Errors, profile: &str, path: &str) {
    if let Some(file) = profile.strip_prefix("localhost/") {
        volumes::descending(errors, path, file);
    } else if !matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
        errors.push(FieldError::invalid(path, profile, "must be a valid seccomp profile"));
    }
}

/// Where an annotation and a field say the same, they have to agree.
pub(super) fn match_fields(errors: &mut Errors, annotations: &Map<String, Value>, spec: &Value, at: &str) {
    const KIND: &str = "seccomp type in annotation and field must match";
    const FILE: &str = "seccomp profile in annotation and field must match";
    let mut agree = |note: &str, profile: &Value, path: String, texts: [&str; 2]| {
        let kind = walk::text(profile, "type");
        let same = match kind {
            "Unconfined" => note == "unconfined",
            "RuntimeDefault" => note == "runtime/default" || (texts[0] == KIND && note == "docker/default"),
            "Localhost" => note.starts_with("localhost/"),
            _ => true,
        };
        let file = note.strip_prefix("localhost/").unwrap_or("");
        if !same {
            errors.push(FieldError::forbidden(format!("{path}.type"), texts[0]));
        } else if kind == "Localhost" && file != walk::text(profile, "localhostProfile") {
            errors.push(FieldError::forbidden(format!("{path}.localhostProfile"), texts[1]));
        }
    };
    const OF_POD: &str = "securityContext.seccompProfile";
    if let (Some(profile), Some(note)) = (walk::at(spec, OF_POD), text(annotations, SECCOMP)) {
        agree(note, profile, format!("{at}.{OF_POD}"), [KIND, FILE]);
    }
    let containers = every_container(spec, at);
    for (path, container) in &containers {
        let key = format!("{SECCOMP_CONTAINER}{}", walk::text(container, "name"));
        if let (Some(profile), Some(note)) = (walk::at(container, OF_POD), text(annotations, &key)) {
            agree(note, profile, format!("{path}.{OF_POD}"), [KIND, FILE]);
        }
    }
    if walk::text(spec, "os.name") == "windows" {
        return;
    }
    const ARMOR: &str = "securityContext.appArmorProfile";
    let texts = [
        "apparmor type in annotation and field must match",
        "apparmor profile in annotation and field must match",
    ];
    for (path, container) in &containers {
        let key = format!("{APP_ARMOR}{}", walk::text(container, "name"));
        let profile = walk::at(container, ARMOR).or_else(|| walk::at(spec, ARMOR));
        if let (Some(profile), Some(note)) = (profile, text(annotations, &key)) {
            agree(note, profile, format!("{path}.{ARMOR}"), texts);
        }
    }
}

/// What annotations of a pod may not change to (`ValidatePodSpecificAnnotationUpdates`).
pub(super) fn changes(errors: &mut Errors, new: &Value, old: &Value, at: &str) {
    let (now, before) = (walk::map(new, "metadata.annotations"), walk::map(old, "metadata.annotations"));
    for (key, value) in before.iter().filter(|(key, value)| now.get(*key) != Some(value)) {
        let _ = value;
        for (mine, text) in [
            (key.starts_with(APP_ARMOR), "may not remove or update AppArmor annotations"),
            (key == MIRROR, "may not remove or update mirror pod annotation"),
        ] {
            if mine {
                errors.push(FieldError::forbidden(format!("{at}[{key}]"), text));
            }
        }
    }
    for key in now.keys().filter(|key| !before.contains_key(*key)) {
        for (mine, text) in [
            (key.starts_with(APP_ARMOR), "may not add AppArmor annotations"),
            (key == MIRROR, "may not add mirror pod annotation"),
        ] {
            if mine {
                errors.push(FieldError::forbidden(format!("{at}[{key}]"), text));
            }
        }
    }
    rules(errors, now, new.get("spec").unwrap_or(&Value::Null), at);
}
