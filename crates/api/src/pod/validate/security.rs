//! The rules of what a pod and its containers are allowed.

use serde_json::{Value, json};

use super::volumes::descending;
use super::{Errors, every_container, has, maybe, subdomain};
use crate::fielderror::FieldError;
use crate::walk;

/// The rule of numbers of users and groups.
fn number(errors: &mut Errors, value: &Value, path: String) {
    if let Some(n) = value.as_i64().filter(|n| !(0..=i64::from(i32::MAX)).contains(n)) {
        errors.push(FieldError::invalid(path, n, "must be between 0 and 2147483647, inclusive"));
    }
}

/// What holds for the whole pod.
pub(super) fn of_pod(errors: &mut Errors, spec: &Value, at: &str) {
    let Some(context) = walk::at(spec, "securityContext") else { return };
    let at = format!("{at}.securityContext");
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        number(errors, context.get(field).unwrap_or(&Value::Null), format!("{at}.{field}"));
    }
    for (i, group) in walk::list(context, "supplementalGroups").iter().enumerate() {
        number(errors, group, format!("{at}.supplementalGroups[{i}]"));
    }
    let on = |field: &str| walk::flag(spec, field) == Some(true);
    if on("shareProcessNamespace") && on("hostPID") {
        let text = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(format!("{at}.shareProcessNamespace"), true, text));
    }
    sysctls(errors, spec, &format!("{at}.sysctls"));
    maybe(errors, context, &at, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    seccomp(errors, context, &at);
    windows_options(errors, context, &at);
    app_armor(errors, context, &at);
    maybe(errors, context, &at, "supplementalGroupsPolicy", &["Merge", "Strict"]);
    maybe(errors, context, &at, "seLinuxChangePolicy", &["Recursive"]);
}

/// `net.ipv4.ip_forward`, or the same with slashes.
fn is_sysctl(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let b = part.as_bytes();
            !b.is_empty() && b.iter().all(|b| inner(*b)) && edge(b[0]) && edge(b[b.len() - 1])
        })
}

/// What a pod of the host's own namespace may not set.
fn namespace_of(name: &str) -> &'static str {
    let name = name.replace('/', ".");
    let begins = |all: &[&str]| all.iter().any(|prefix| name.starts_with(prefix));
    match () {
        () if name == "kernel.sem" || begins(&["kernel.shm", "kernel.msg", "fs.mqueue."]) => "hostIPC",
        () if begins(&["net."]) => "hostNetwork",
        () => "",
    }
}

fn sysctls(errors: &mut Errors, spec: &Value, at: &str) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, sysctl) in walk::list(spec, "securityContext.sysctls").iter().enumerate() {
        let (path, name) = (format!("{at}[{i}].name"), walk::text(sysctl, "name"));
        if name.is_empty() {
            errors.push(FieldError::required(&path, ""));
        } else if !is_sysctl(name) {
            errors.push(FieldError::invalid(
                &path,
                name,
                "must have at most 253 characters and match regex \
                 ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ));
        } else if seen.contains(&name) {
            errors.push(FieldError::duplicate(&path, name));
        }
        let namespace = namespace_of(name);
        if !namespace.is_empty() && walk::flag(spec, namespace) == Some(true) {
            let text = format!("may not be specified when '{namespace}' is true");
            errors.push(FieldError::invalid(&path, name, text));
        }
        seen.push(name);
    }
}

/// What holds for one container.
pub(super) fn of_container(errors: &mut Errors, container: &Value, host_users: bool, at: &str) {
    let Some(context) = walk::at(container, "securityContext") else { return };
    for field in ["runAsUser", "runAsGroup"] {
        number(errors, context.get(field).unwrap_or(&Value::Null), format!("{at}.{field}"));
    }
    maybe(errors, context, at, "procMount", &["Default", "Unmasked"]);
    if host_users && walk::text(context, "procMount") == "Unmasked" {
        let text = "`hostUsers` must be false to use `Unmasked`";
        errors.push(FieldError::invalid(format!("{at}.procMount"), "Unmasked", text));
    }
    seccomp(errors, context, at);
    if walk::flag(context, "allowPrivilegeEscalation") == Some(false) {
        if walk::flag(context, "privileged") == Some(true) {
            let text = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(FieldError::invalid(at, shown(context), text));
        }
        for _ in walk::list(context, "capabilities.add").iter().filter(|c| *c == "CAP_SYS_ADMIN") {
            let text = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(FieldError::invalid(at, shown(context), text));
        }
    }
    windows_options(errors, context, at);
    app_armor(errors, context, at);
}

/// A container's context as the texts of Kubernetes show it: the members of Go's struct.
fn shown(context: &Value) -> Value {
    let of = |field: &str| context.get(field).cloned().unwrap_or_default();
    let part = |field: &str, parts: &[(&str, &str)]| match walk::at(context, field) {
        None => Value::Null,
        Some(inner) => {
            let of =
                |(go, own): &(&str, &str)| ((*go).to_owned(), inner.get(own).cloned().unwrap_or_default());
            Value::Object(parts.iter().map(of).collect())
        }
    };
    let profile = [("Type", "type"), ("LocalhostProfile", "localhostProfile")];
    let linux = [("User", "user"), ("Role", "role"), ("Type", "type"), ("Level", "level")];
    let windows = [
        ("GMSACredentialSpecName", "gmsaCredentialSpecName"),
        ("GMSACredentialSpec", "gmsaCredentialSpec"),
        ("RunAsUserName", "runAsUserName"),
        ("HostProcess", "hostProcess"),
    ];
    json!({
        "Capabilities": part("capabilities", &[("Add", "add"), ("Drop", "drop")]), "Privileged": of("privileged"),
        "SELinuxOptions": part("seLinuxOptions", &linux), "WindowsOptions": part("windowsOptions", &windows),
        "RunAsUser": of("runAsUser"), "RunAsGroup": of("runAsGroup"), "RunAsNonRoot": of("runAsNonRoot"),
        "ReadOnlyRootFilesystem": of("readOnlyRootFilesystem"), "AllowPrivilegeEscalation": of("allowPrivilegeEscalation"),
        "ProcMount": of("procMount"), "SeccompProfile": part("seccompProfile", &profile),
        "AppArmorProfile": part("appArmorProfile", &profile),
    })
}

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

fn seccomp(errors: &mut Errors, context: &Value, at: &str) {
    let Some(profile) = walk::at(context, "seccompProfile") else { return };
    let at = format!("{at}.seccompProfile");
    let kind = walk::text(profile, "type");
    if kind.is_empty() {
        let text = "type is required when seccompProfile is set";
        errors.push(FieldError::required(format!("{at}.type"), text));
    } else if !PROFILES.contains(&kind) {
        errors.push(FieldError::not_supported(format!("{at}.type"), kind, &PROFILES));
    }
    let path = format!("{at}.localhostProfile");
    match (kind, walk::at(profile, "localhostProfile").and_then(Value::as_str)) {
        ("Localhost", None) => {
            errors.push(FieldError::required(path, "must be set when seccomp type is Localhost"));
        }
        ("Localhost", Some(file)) => descending(errors, &path, file),
        (_, Some(file)) => errors.push(FieldError::invalid(
            path,
            json!({"Type": kind, "LocalhostProfile": file}),
            "can only be set when seccomp type is Localhost",
        )),
        _ => {}
    }
}

fn app_armor(errors: &mut Errors, context: &Value, at: &str) {
    const NEEDED: &str = "must be set when AppArmor type is Localhost";
    let Some(profile) = walk::at(context, "appArmorProfile") else { return };
    let at = format!("{at}.appArmorProfile");
    let path = format!("{at}.localhostProfile");
    let name = walk::at(profile, "localhostProfile").and_then(Value::as_str);
    match walk::text(profile, "type") {
        "Localhost" => match name {
            None => errors.push(FieldError::required(path, NEEDED)),
            Some(name) => {
                if name.trim() != name {
                    errors.push(FieldError::invalid(&path, name, "must not be padded with whitespace"));
                } else if name.is_empty() {
                    errors.push(FieldError::required(&path, NEEDED));
                }
                if name.len() > 4095 {
                    errors.push(FieldError::too_long(path, 4095));
                }
            }
        },
        "RuntimeDefault" | "Unconfined" => {
            if let Some(name) = name {
                let text = "can only be set when AppArmor type is Localhost";
                errors.push(FieldError::invalid(path, name, text));
            }
        }
        "" => {
            let text = "type is required when appArmorProfile is set";
            errors.push(FieldError::required(format!("{at}.type"), text));
        }
        kind => errors.push(FieldError::not_supported(format!("{at}.type"), kind, &PROFILES)),
    }
}

fn windows_options(errors: &mut Errors, context: &Value, at: &str) {
    let Some(options) = walk::at(context, "windowsOptions") else { return };
    let at = format!("{at}.windowsOptions");
    if has(options, "gmsaCredentialSpecName") {
        let name = walk::text(options, "gmsaCredentialSpecName");
        subdomain(errors, &format!("{at}.gmsaCredentialSpecName"), name);
    }
    if has(options, "gmsaCredentialSpec") {
        let text = walk::text(options, "gmsaCredentialSpec");
        let path = format!("{at}.gmsaCredentialSpec");
        if text.is_empty() {
            errors.push(FieldError::invalid(path, text, "gmsaCredentialSpec cannot be an empty string"));
        } else if text.len() > 64 * 1024 {
            errors.push(FieldError::invalid(path, text, "gmsaCredentialSpec size must be under 64 KiB"));
        }
    }
    if has(options, "runAsUserName") {
        windows_user(errors, walk::text(options, "runAsUserName"), &format!("{at}.runAsUserName"));
    }
}

fn windows_user(errors: &mut Errors, name: &str, path: &str) {
    let mut say = |text: &str| errors.push(FieldError::invalid(path, name, format!("runAsUserName{text}")));
    if name.is_empty() {
        return say(" cannot be an empty string");
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return say(" cannot contain control characters");
    }
    let parts: Vec<&str> = name.split('\\').collect();
    let (domain, user) = match parts[..] {
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return say(" cannot contain more than one backslash"),
    };
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            say("'s Domain length must be under 256 characters");
        }
        let net_bios = (1..=15).contains(&domain.chars().count())
            && !domain.starts_with('.')
            && !domain.contains(|c| r#"\/:*?"<>|"#.contains(c));
        let dns = domain.split('.').all(|label| {
            let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
            let b = label.as_bytes();
            (1..=63).contains(&b.len())
                && edge(b.first())
                && edge(b.last())
                && b.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        });
        if !net_bios && !dns {
            say("'s Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        say("'s User cannot be empty");
    } else if user.len() > 104 {
        say("'s User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')) {
        say("'s User cannot contain only periods or spaces");
    }
    if user.contains(|c| r#""/\:;|=,+*?<>@[]"#.contains(c)) {
        say(r#"'s User cannot contain the following characters: "/\:;|=,+*?<>@[]"#);
    }
}

/// Containers of Windows that are processes of the host.
pub(super) fn host_processes(errors: &mut Errors, spec: &Value, at: &str) {
    const FIELD: &str = "securityContext.windowsOptions.hostProcess";
    let of_pod = walk::flag(spec, FIELD);
    let (mut all, mut of_host) = (0, 0);
    for (path, container) in every_container(spec, at) {
        all += 1;
        let own = walk::flag(container, FIELD);
        if let (Some(pod), Some(own)) = (of_pod, own)
            && pod != own
        {
            let text = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            errors.push(FieldError::invalid(format!("{path}.{FIELD}"), own, text));
        }
        of_host += i32::from(own.or(of_pod) == Some(true));
    }
    if of_host == 0 {
        return;
    }
    if of_host != all {
        let text =
            "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.push(FieldError::invalid(at, "", text));
    }
    if walk::flag(spec, "hostNetwork") != Some(true) {
        let text = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.push(FieldError::invalid(format!("{at}.hostNetwork"), false, text));
    }
}

/// Where users are the pod's own, namespaces of the host are not to be had.
pub(super) fn own_users(errors: &mut Errors, spec: &Value, at: &str) {
    const TEXT: &str = "when `hostUsers` is false";
    if walk::flag(spec, "hostUsers") != Some(false) {
        return;
    }
    for (field, named) in [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if walk::flag(spec, field) == Some(true) {
            errors.push(FieldError::forbidden(format!("{at}.{named}"), TEXT));
        }
    }
    for (path, container) in every_container(spec, at) {
        if !walk::list(container, "volumeDevices").is_empty() {
            errors.push(FieldError::forbidden(format!("{path}.volumeDevices"), TEXT));
        }
    }
}

const WINDOWS: &str = "cannot be set for a windows pod";
/// What pods of Windows may not set, and the field that is named.
const NOT_WINDOWS: [(&str, &str); 15] = [
    ("securityContext.appArmorProfile", "securityContext.appArmorProfile"),
    ("securityContext.seLinuxOptions", "securityContext.seLinuxOptions"),
    ("hostUsers", "hostUsers"),
    ("hostPID", "hostPID"),
    ("hostIPC", "hostIPC"),
    ("securityContext.seccompProfile", "securityContext.seccompProfile"),
    ("securityContext.fsGroup", "securityContext.fsGroup"),
    ("securityContext.fsGroupChangePolicy", "securityContext.fsGroupChangePolicy"),
    ("securityContext.sysctls", "securityContext.sysctls"),
    ("shareProcessNamespace", "shareProcessNamespace"),
    ("securityContext.runAsUser", "securityContext.runAsUser"),
    ("securityContext.runAsGroup", "securityContext.runAsGroup"),
    ("securityContext.supplementalGroups", "securityContext.supplementalGroups"),
    ("securityContext.supplementalGroupsPolicy", "securityContext.supplementalGroupsPolicy"),
    ("securityContext.seLinuxChangePolicy", "securityContext.seLinuxChangePolicy"),
];
/// The same of their containers.
const NOT_WINDOWS_CONTAINER: [&str; 10] = [
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

/// What depends on the system that a pod is for.
pub(super) fn os(errors: &mut Errors, spec: &Value, at: &str) {
    let Some(os) = walk::at(spec, "os") else { return };
    match walk::text(os, "name") {
        "" => errors.push(FieldError::required(format!("{at}.os.name"), "")),
        "linux" => {
            const OPTIONS: &str = "securityContext.windowsOptions";
            let pod = (at.to_owned(), spec);
            for (path, part) in std::iter::once(pod).chain(every_container(spec, at)) {
                if has(part, OPTIONS) {
                    let text = "windows options cannot be set for a linux pod";
                    errors.push(FieldError::forbidden(format!("{path}.{OPTIONS}"), text));
                }
            }
        }
        "windows" => {
            for (field, named) in NOT_WINDOWS {
                // What is a plain truth value in Go counts only if it is true.
                let plain = matches!(field, "hostPID" | "hostIPC");
                if walk::at(spec, field).is_some_and(|value| !plain || *value == true) {
                    errors.push(FieldError::forbidden(format!("{at}.{named}"), WINDOWS));
                }
            }
            for (path, container) in every_container(spec, at) {
                let Some(context) = walk::at(container, "securityContext") else { continue };
                for field in NOT_WINDOWS_CONTAINER.iter().filter(|field| has(context, field)) {
                    errors.push(FieldError::forbidden(format!("{path}.securityContext.{field}"), WINDOWS));
                }
            }
        }
        name => errors.push(FieldError::not_supported(format!("{at}.os"), name, &["linux", "windows"])),
    }
}
