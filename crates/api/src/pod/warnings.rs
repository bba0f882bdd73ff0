//! What a pod or a template says that is out of date, or means something else than it seems to
//! (pkg/api/pod/warnings.go).

use serde_json::Value;

use crate::fielderror::quote;
use crate::quantity::Quantity;
use crate::{ip, meta, walk};

/// What labels of nodes are called now.
const OLD_LABELS: [(&str, &str); 8] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
    ("node-role.kubernetes.io/master", "use \"node-role.kubernetes.io/control-plane\" instead"),
];

const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

const OLD_VOLUMES: [(&str, &str, &str); 9] = [
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

fn old_label(key: &str) -> Option<&'static str> {
    OLD_LABELS.iter().find(|(old, _)| *old == key).map(|(_, text)| *text)
}

/// Warns of a new pod; of a changed one nobody is warned.
pub fn warnings(pod: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() {
        return Vec::new();
    }
    let mut out = Vec::new();
    let faults = meta::label_faults(meta::name(pod));
    if !faults.is_empty() {
        out.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is \
             recommended: [{}]",
            faults.join(" ")
        ));
    }
    old_app_armor(&mut out, pod, "metadata.annotations", true);
    of_spec(&mut out, pod, "");
    out
}

/// Warns of addresses in a pod's status.
pub fn status_warnings(pod: &Value) -> Vec<String> {
    let of = |field: &str| -> Vec<String> {
        let all = walk::list(pod, &format!("status.{field}")).iter().enumerate();
        all.flat_map(|(i, each)| ip::warnings(&format!("status.{field}[{i}].ip"), walk::text(each, "ip")))
            .collect()
    };
    [of("podIPs"), of("hostIPs")].concat()
}

/// Warns of a name that pods' names begin with.
pub fn name_warnings(object: &Value) -> Vec<String> {
    let faults = meta::label_faults(meta::name(object));
    if faults.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is \
         recommended: [{}]",
        faults.join(" ")
    )]
}

/// Warns of a template at `at`.
pub fn template_warnings(template: &Value, at: &str) -> Vec<String> {
    let mut out = Vec::new();
    of_spec(&mut out, template, at);
    out
}

/// The field of an annotation of AppArmor.
pub(super) fn app_armor_profile(note: &str) -> Option<Value> {
    match note {
        "unconfined" => Some(serde_json::json!({"type": "Unconfined"})),
        "runtime/default" => Some(serde_json::json!({"type": "RuntimeDefault"})),
        _ => {
            let name =
                note.strip_prefix("localhost/").filter(|name| !name.is_empty() && name.trim() == *name)?;
            Some(serde_json::json!({"type": "Localhost", "localhostProfile": name}))
        }
    }
}

/// Notes of AppArmor that a field says better. A pod's fields follow its notes, so that a pod's note is old if it says other
/// than the pod as a whole.
fn old_app_armor(out: &mut Vec<String>, object: &Value, at: &str, is_pod: bool) {
    const KEY: &str = "container.apparmor.security.beta.kubernetes.io/";
    const PROFILE: &str = "securityContext.appArmorProfile";
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let notes = walk::map(object, "metadata.annotations");
    if is_pod && walk::text(spec, "os.name") == "windows" {
        return;
    }
    for (_, container) in super::validate::every_container(spec, "") {
        let key = format!("{KEY}{}", walk::text(container, "name"));
        let Some(note) = notes.get(&key).and_then(Value::as_str) else { continue };
        let (own, pods) = (walk::at(container, PROFILE), walk::at(spec, PROFILE));
        let said = app_armor_profile(note);
        let stale = match is_pod {
            true => said.is_none() || (own == said.as_ref() && own != pods),
            false => own.is_none() && (pods.is_none() || pods != said.as_ref()),
        };
        if stale {
            out.push(format!(
                "{at}[{key}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"
            ));
        }
    }
}

fn term(out: &mut Vec<String>, term: &Value, values: bool, at: &str) {
    for (i, rule) in walk::list(term, "matchExpressions").iter().enumerate() {
        let path = format!("{at}.matchExpressions[{i}]");
        let key = walk::text(rule, "key");
        if let Some(text) = old_label(key) {
            out.push(format!("{path}.key: {key} is {text}"));
        }
        for (j, value) in walk::list(rule, "values").iter().enumerate().filter(|_| values) {
            let value = value.as_str().unwrap_or("");
            for fault in meta::label_value_faults(value) {
                out.push(format!("{path}.values[{j}]: {value} is invalid, {fault}"));
            }
        }
    }
}

/// Warns of an amount that isn't whole.
fn fraction(out: &mut Vec<String>, amounts: &Value, name: &str, at: &str) {
    let amount = amounts.get(name).and_then(Value::as_str).and_then(Quantity::parse);
    if let Some(amount) = amount.filter(|amount| !amount.is_whole()) {
        out.push(format!("{at}[{name}]: fractional byte value \"{amount}\" is invalid, must be an integer"));
    }
}

fn of_spec(out: &mut Vec<String>, object: &Value, prefix: &str) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let dot = if prefix.is_empty() { "" } else { "." };
    let (at, notes_at) = (format!("{prefix}{dot}spec"), format!("{prefix}{dot}metadata.annotations"));
    for key in walk::map(spec, "nodeSelector").keys() {
        if let Some(text) = old_label(key) {
            out.push(format!("{at}.nodeSelector[{key}]: {text}"));
        }
    }
    let nodes = format!("{at}.affinity.nodeAffinity");
    let terms = walk::list(spec, &format!("affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms"));
    for (i, each) in terms.iter().enumerate() {
        term(out, each, false, &format!("{nodes}.{REQUIRED}.nodeSelectorTerms[{i}]"));
    }
    for (i, each) in walk::list(spec, &format!("affinity.nodeAffinity.{PREFERRED}")).iter().enumerate() {
        let preference = each.get("preference").unwrap_or(&Value::Null);
        term(out, preference, true, &format!("{nodes}.{PREFERRED}[{i}].preference"));
    }
    const NO_POD: &str = "a null labelSelector results in matching no pod";
    for (i, rule) in walk::list(spec, "topologySpreadConstraints").iter().enumerate() {
        let path = format!("{at}.topologySpreadConstraints[{i}]");
        let key = walk::text(rule, "topologyKey");
        if let Some(text) = old_label(key) {
            out.push(format!("{path}.topologyKey: {key} is {text}"));
        }
        if walk::at(rule, "labelSelector").is_none() {
            out.push(format!("{path}.labelSelector: {NO_POD}"));
        }
    }
    let notes = walk::map(object, "metadata.annotations");
    for (key, text) in OLD_ANNOTATIONS.iter().filter(|(key, _)| notes.contains_key(*key)) {
        out.push(format!("{notes_at}[{key}]: {text}"));
    }
    for (i, volume) in walk::list(spec, "volumes").iter().enumerate() {
        for (field, named, text) in OLD_VOLUMES.iter().filter(|(field, ..)| walk::at(volume, field).is_some())
        {
            let _ = field;
            out.push(format!("{at}.volumes[{i}].{named}: {text}"));
        }
        if let Some(claim) = walk::at(volume, "ephemeral.volumeClaimTemplate.spec") {
            let path = format!("{at}.volumes[{i}].ephemeral.volumeClaimTemplate.spec");
            out.extend(claim_warnings(claim, &path));
        }
    }
    overlaps(out, spec);
    twice(out, spec, &at);
    let overhead = walk::at(spec, "overhead").unwrap_or(&Value::Null);
    for name in ["memory", "ephemeral-storage"] {
        fraction(out, overhead, name, &format!("{at}.overhead"));
    }
    const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
    let old = |key: &str| {
        format!("{notes_at}[{key}]: non-functional in v1.27+; use the \"seccompProfile\" field instead")
    };
    if walk::at(spec, "securityContext.seccompProfile").is_none() && notes.contains_key(SECCOMP) {
        out.push(old(SECCOMP));
    }
    if !prefix.is_empty() {
        old_app_armor(out, object, &notes_at, false);
    }
    for (path, container) in super::validate::every_container(spec, &at) {
        let key = format!("container.seccomp.security.alpha.kubernetes.io/{}", walk::text(container, "name"));
        if walk::at(container, "securityContext.seccompProfile").is_none() && notes.contains_key(&key) {
            out.push(old(&key));
        }
        for name in ["memory", "ephemeral-storage"] {
            for part in ["limits", "requests"] {
                let amounts = walk::at(container, &format!("resources.{part}")).unwrap_or(&Value::Null);
                fraction(out, amounts, name, &format!("{path}.resources.{part}"));
            }
        }
        hidden_variables(out, container, &path);
    }
    ports(out, spec, &at);
    if walk::int(spec, "terminationGracePeriodSeconds").is_some_and(|n| n < 0) {
        out.push(format!(
            "{at}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        for (list, inner) in [(REQUIRED, ""), (PREFERRED, "podAffinityTerm.")] {
            for (i, each) in walk::list(spec, &format!("affinity.{kind}.{list}")).iter().enumerate() {
                if walk::at(each, &format!("{inner}labelSelector")).is_none() {
                    out.push(format!("{at}.affinity.{kind}.{list}[{i}].{inner}labelSelector: {NO_POD}"));
                }
            }
        }
    }
    for (i, server) in walk::list(spec, "dnsConfig.nameservers").iter().enumerate() {
        let path = format!("{at}.dnsConfig.nameservers[{i}]");
        out.extend(ip::warnings(&path, server.as_str().unwrap_or("")));
    }
    for (i, alias) in walk::list(spec, "hostAliases").iter().enumerate() {
        out.extend(ip::warnings(&format!("{at}.hostAliases[{i}].ip"), walk::text(alias, "ip")));
    }
}

/// Warns of what a claim of a volume asks for.
pub fn claim_warnings(spec: &Value, at: &str) -> Vec<String> {
    let mut out = Vec::new();
    for part in ["requests", "limits"] {
        let amounts = walk::at(spec, &format!("resources.{part}")).unwrap_or(&Value::Null);
        fraction(&mut out, amounts, "storage", &format!("{at}.resources.{part}"));
    }
    out
}

/// What is there twice and counts once.
fn twice(out: &mut Vec<String>, spec: &Value, at: &str) {
    for (list, key) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        let mut seen: Vec<&str> = Vec::new();
        for (i, item) in walk::list(spec, list).iter().enumerate() {
            let text = walk::text(item, key);
            if seen.contains(&text) {
                out.push(format!("{at}.{list}[{i}].{key}: duplicate {key} {}", quote(text)));
            }
            seen.push(text);
        }
    }
    for (i, secret) in walk::list(spec, "imagePullSecrets").iter().enumerate() {
        if walk::text(secret, "name").is_empty() {
            out.push(format!("{at}.imagePullSecrets[{i}].name: invalid empty name \"\""));
        }
    }
}

fn hidden_variables(out: &mut Vec<String>, container: &Value, at: &str) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, variable) in walk::list(container, "env").iter().enumerate() {
        let (name, value) = (walk::text(variable, "name"), walk::text(variable, "value"));
        if !seen.contains(&name) {
            seen.push(name);
            continue;
        }
        let former = format!("$({name})");
        if walk::at(variable, "valueFrom").is_some() || value == former || !value.contains(&former) {
            out.push(format!(
                "{at}.env[{i}]: hides previous definition of {}, which may be dropped when using apply",
                quote(name)
            ));
        }
    }
}

fn ports(out: &mut Vec<String>, spec: &Value, at: &str) {
    struct Port<'a> {
        path: String,
        key: String,
        host: (&'a str, i64),
    }
    let mut all: Vec<Port<'_>> = Vec::new();
    for (path, container) in super::validate::every_container(spec, at) {
        for (i, port) in walk::list(container, "ports").iter().enumerate() {
            let number = |field| walk::int(port, field).unwrap_or(0);
            let (address, host) = (walk::text(port, "hostIP"), number("hostPort"));
            let path = format!("{path}.ports[{i}]");
            let protocol = walk::text(port, "protocol");
            if !address.is_empty() && host == 0 {
                out.push(format!(
                    "{path}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{protocol} \
                     HostIP:{address}}}",
                    walk::text(port, "name"),
                    number("containerPort")
                ));
            }
            let key = format!("{}/{protocol}", number("containerPort"));
            for other in all.iter().filter(|other| other.key == key) {
                let (their_address, their_host) = other.host;
                let what = if (address, host) == other.host {
                    "duplicate"
                } else if host == 0 || their_host == 0 {
                    "overlapping"
                } else if host == their_host && (address.is_empty() != their_address.is_empty()) {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                out.push(format!("{path}: {what} port definition with {}", other.path));
            }
            all.push(Port { path, key, host: (address, host) });
        }
    }
    let mut names: Vec<(&str, String)> = Vec::new();
    for (path, container) in super::validate::every_container(spec, at) {
        for (i, port) in walk::list(container, "ports").iter().enumerate() {
            let (name, path) = (walk::text(port, "name"), format!("{path}.ports[{i}]"));
            if name.is_empty() {
                continue;
            }
            match names.iter().find(|(known, _)| *known == name) {
                Some((_, other)) => out.push(format!(
                    "{path}: duplicate port name {} with {other}, services and probes that select ports by name will use \
                     {other}",
                    quote(name)
                )),
                None => names.push((name, path)),
            }
        }
    }
}

/// A path in a volume, and where it is from.
#[derive(Clone, PartialEq)]
struct Place {
    path: String,
    source: String,
}

impl Place {
    fn new(path: &str, source: &str) -> Place {
        Place { path: path.trim_end_matches('/').to_owned(), source: source.to_owned() }
    }

    fn shown(&self) -> String {
        match self.source.as_str() {
            "" => quote(&self.path),
            source => format!("{} ({source})", quote(&self.path)),
        }
    }

    fn overlaps(&self, other: &Place) -> bool {
        let (a, b) = (format!("{}/", self.path), format!("{}/", other.path));
        !self.path.is_empty() && !other.path.is_empty() && (a.starts_with(&b) || b.starts_with(&a))
    }
}

fn overlaps(out: &mut Vec<String>, spec: &Value) {
    let paths = |source: &Value, from: &str| -> Vec<Place> {
        walk::list(source, "items").iter().map(|item| Place::new(walk::text(item, "path"), from)).collect()
    };
    for volume in walk::list(spec, "volumes") {
        let name = quote(walk::text(volume, "name"));
        let mut check = |places: Vec<Place>, what: &str| {
            for (i, place) in places.iter().enumerate() {
                for other in places[..i].iter().filter(|other| place.overlaps(other)) {
                    let (a, b) = (place.shown(), other.shown());
                    out.push(format!("volume {name} ({what}): overlapping paths: {a} with {b}"));
                }
            }
        };
        for (field, title, key) in [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")] {
            if let Some(source) = walk::at(volume, field) {
                check(paths(source, ""), &format!("{title} {}", quote(walk::text(source, key))));
            }
        }
        if let Some(source) = walk::at(volume, "downwardAPI") {
            check(paths(source, ""), "DownwardAPI");
        }
        let mut all = Vec::new();
        let mut empty = 0;
        for source in walk::list(volume, "projected.sources") {
            if source.as_object().is_none_or(serde_json::Map::is_empty) {
                empty += 1;
            }
            for (field, title) in [("configMap", "ConfigMap"), ("secret", "Secret")] {
                if let Some(source) = walk::at(source, field) {
                    all.extend(paths(source, &format!("{title} {}", quote(walk::text(source, "name")))));
                }
            }
            if let Some(source) = walk::at(source, "downwardAPI") {
                all.extend(paths(source, "DownwardAPI"));
            }
            if let Some(token) = walk::at(source, "serviceAccountToken") {
                all.push(Place::new(walk::text(token, "path"), "ServiceAccountToken"));
            }
        }
        check(all, "Projected");
        out.extend((0..empty).map(|_| format!("volume {name} (Projected) has no sources provided")));
    }
}
