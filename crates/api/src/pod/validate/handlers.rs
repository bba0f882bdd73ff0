//! The rules of what is called in a container: probes, and hooks of its life.

use serde_json::Value;

use super::{Around, Errors, not_negative};
use crate::fielderror::FieldError;
use crate::{meta, walk};

const PROBE: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
const HOOK: [&str; 4] = ["exec", "httpGet", "tcpSocket", "sleep"];

/// The hooks and probes of a container that goes on running.
pub(super) fn of_container(errors: &mut Errors, container: &Value, around: &Around<'_>, at: &str) {
    for hook in ["postStart", "preStop"] {
        if let Some(value) = walk::at(container, &format!("lifecycle.{hook}")) {
            handler(errors, value, &HOOK, around.grace, &format!("{at}.lifecycle.{hook}"));
        }
    }
    if let Some(signal) = walk::at(container, "lifecycle.stopSignal").and_then(Value::as_str) {
        stop_signal(errors, signal, around.os, &format!("{at}.lifecycle.stopSignal"));
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(value) = walk::at(container, kind) else { continue };
        let path = format!("{at}.{kind}");
        probe(errors, value, around.grace, &path);
        let grace = format!("{path}.terminationGracePeriodSeconds");
        if kind == "readinessProbe" {
            if let Some(n) = walk::int(value, "terminationGracePeriodSeconds") {
                errors.push(FieldError::invalid(grace, n, "must not be set for readinessProbes"));
            }
        } else {
            let successes = walk::int(value, "successThreshold").unwrap_or(0);
            if successes != 1 {
                errors.push(FieldError::invalid(format!("{path}.successThreshold"), successes, "must be 1"));
            }
        }
    }
}

fn probe(errors: &mut Errors, probe: &Value, grace: Option<i64>, at: &str) {
    handler(errors, probe, &PROBE, grace, at);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        not_negative(errors, probe, at, field);
    }
    if let Some(n) = walk::int(probe, "terminationGracePeriodSeconds").filter(|n| *n <= 0) {
        let path = format!("{at}.terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(path, n, "must be greater than 0"));
    }
}

fn handler(errors: &mut Errors, value: &Value, kinds: &[&str], grace: Option<i64>, at: &str) {
    let mut found = false;
    for kind in kinds {
        let Some(action) = walk::at(value, kind) else { continue };
        let path = format!("{at}.{kind}");
        if found {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        found = true;
        match *kind {
            "exec" => {
                if walk::list(action, "command").is_empty() {
                    errors.push(FieldError::required(format!("{path}.command"), ""));
                }
            }
            "httpGet" => http(errors, action, &path),
            "sleep" => {
                let seconds = walk::int(action, "seconds").unwrap_or(0);
                if let Some(grace) = grace.filter(|grace| seconds < 0 || seconds > *grace) {
                    let text =
                        format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    errors.push(FieldError::invalid(path, seconds, text));
                }
            }
            _ => port(errors, action, &path),
        }
    }
    if !found {
        errors.push(FieldError::required(at, "must specify a handler type"));
    }
}

fn http(errors: &mut Errors, get: &Value, at: &str) {
    if walk::text(get, "path").is_empty() {
        errors.push(FieldError::required(format!("{at}.path"), ""));
    }
    port(errors, get, at);
    let scheme = walk::text(get, "scheme");
    if !["HTTP", "HTTPS"].contains(&scheme) {
        errors.push(FieldError::not_supported(format!("{at}.scheme"), scheme, &["HTTP", "HTTPS"]));
    }
    for header in walk::list(get, "httpHeaders") {
        let name = walk::text(header, "name");
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let text = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex \
                        used for validation is '[-A-Za-z0-9]+')";
            errors.push(FieldError::invalid(format!("{at}.httpHeaders"), name, text));
        }
    }
}

fn port(errors: &mut Errors, action: &Value, at: &str) {
    let path = format!("{at}.port");
    match walk::at(action, "port") {
        Some(Value::String(name)) => errors.extend(meta::findings(&path, name, meta::port_name_faults(name))),
        other => {
            let number = other.and_then(Value::as_i64).unwrap_or(0);
            if !meta::is_port(number) {
                errors.push(FieldError::invalid(path, number, meta::PORT_TEXT));
            }
        }
    }
}

fn stop_signal(errors: &mut Errors, signal: &str, os: Option<&str>, path: &str) {
    match os {
        None => {
            let text = "may not be set for containers with empty `spec.os.name`";
            errors.push(FieldError::forbidden(path, text));
        }
        Some("windows") if !["SIGKILL", "SIGTERM"].contains(&signal) => {
            errors.push(FieldError::not_supported(path, signal, &["SIGKILL", "SIGTERM"]));
        }
        Some("linux") => {
            let all = signals();
            if !all.iter().any(|known| known == signal) {
                let all: Vec<&str> = all.iter().map(String::as_str).collect();
                errors.push(FieldError::not_supported(path, signal, &all));
            }
        }
        Some(_) => {}
    }
}

/// The signals of Linux, in the order of their names.
fn signals() -> Vec<String> {
    let plain = "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT STOP SYS TERM \
                 TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX";
    let mut all: Vec<String> = plain.split_whitespace().map(|name| format!("SIG{name}")).collect();
    all.extend((1..=15).map(|n| format!("SIGRTMIN+{n}")));
    all.extend((1..=14).map(|n| format!("SIGRTMAX-{n}")));
    all.sort();
    all
}
