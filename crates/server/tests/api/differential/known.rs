//! Where our server differs on purpose, and why.

use serde_json::Value;

use super::step::{Doing, Step};
use super::world::{Answers, Difference};

const WORDS: &str = "words for what can't be decoded";
const ONCE: &str = "a cause is named once";
const UNNAMED: &str = "a Service without a name is told so";
const KEYS: &str = "the store's keys are nobody's business";
const MERGE: &str = "a patch that can't be merged is the client's fault";
const TIME: &str = "a condition has a time";
const NEW: &str = "a new object isn't being deleted";
const DIGITS: &str = "a time may have any number of digits";
const VERSION: &str = "a patch may take away the version of the API";
const WRAP: &str = "a number that doesn't fit is refused";
const ORDER: &str = "findings about a map's members come in the order of the members";
const EMPTY: &str = "an empty map is the same as none";
const TAINT: &str = "a new node has no taint";
const STATUS: &str = "a status makes no object";
const ROW: &str = "the metadata in a row of a table is the object's own";
const COLUMN: &str = "each cell has a column";
const LIST: &str = "a list is one even when nothing is in it";
const VALUE: &str = "a value is shown as the API writes it";
const CHANGED: &str = "what changed in a pod is named";
const EMPTIED: &str = "what a dry run has emptied looks as if it were stored";
const POLICY: &str = "an alias has no internal traffic policy";
const PORT: &str = "a port of the nodes is one Service's";
/// All reasons. A test compares them with the document.
pub const DIFFERENCES: [&str; 22] = [
    WORDS, ONCE, UNNAMED, KEYS, MERGE, TIME, STATUS, NEW, DIGITS, VERSION, WRAP, ORDER, EMPTY, TAINT,
    CHANGED, ROW, COLUMN, LIST, VALUE, POLICY, PORT, EMPTIED,
];

/// Whether two objects that differ for this reason differ in what is made of them later.
pub fn lasts(reason: &str) -> bool {
    reason == NEW
}

/// The reason for a difference, if it is on purpose.
pub fn reason(step: &Step, answers: &Answers, difference: &Difference) -> Option<&'static str> {
    let (real, ours) = (&answers.real.body, &answers.ours.body);
    let said = |body: &Value| body["message"].as_str().unwrap_or_default().to_owned();
    let (real_said, ours_said) = (said(real), said(ours));
    let at = difference.place.as_str();
    if at == ".body.details.causes" && once(&difference.real) == once(&difference.ours) {
        return Some(ONCE);
    }
    // Kubernetes makes a Service of whatever is put there, without addresses.
    let making = matches!(answers.real.code, 201 | 422) || real_said.starts_with("namespaces ");
    if step.subresource == "status" && answers.ours.code == 404 && making {
        return Some(STATUS);
    }
    if step.kind.plural == "nodes"
        && tainted(&difference.real)
        && without_taint(&difference.real) == difference.ours
    {
        return Some(TAINT);
    }
    // On the way of a PUT that makes an object, Kubernetes forgets to take it away.
    if difference.place == ".body.metadata.deletionTimestamp" && difference.real == "2020-01-01T00:00:00Z" {
        return Some(NEW);
    }
    if real_said.contains("parsing time \"") && answers.ours.code != answers.real.code {
        return Some(DIGITS);
    }
    let versionless = real_said.contains("was undeterminable: name must be provided")
        || real_said.contains("strict decoding error: unknown field \\\"metadata\\\"")
        || real_said.contains("strict decoding error: unknown field \"metadata\"");
    if versionless && matches!(step.doing, Doing::Patch { .. }) {
        return Some(VERSION);
    }
    let unfit = ours_said.contains("expected i32")
        || ours_said.contains("cannot unmarshal number") && ours_said.ends_with("of type int32");
    if unfit && !real_said.contains("cannot unmarshal") && !real_said.contains("patch:") {
        return Some(WRAP);
    }
    if step.table {
        if step.kind.plural == "daemonsets" && at.contains("object.metadata.annotations") {
            return Some(ROW);
        }
        if step.kind.plural == "ipaddresses" && at.ends_with(".cells") {
            return Some(COLUMN);
        }
    }
    let (empty, list) = (Value::Array(Vec::new()), matches!(step.doing, Doing::List));
    if at == ".body.rows" && step.table && list && difference.real.is_null() && difference.ours == empty {
        return Some(LIST);
    }
    let dry = step.query.iter().any(|(key, value)| *key == "dryRun" && value == "All");
    let emptied = [".body.rules", ".body.spec.limits", ".spec.podFailurePolicy.rules"]
        .iter()
        .any(|list| at.ends_with(list));
    if dry && emptied && difference.real == empty && difference.ours.is_null() {
        return Some(EMPTIED);
    }
    if step.kind.plural == "services" {
        let alias = real["spec"]["type"] == "ExternalName" && ours["spec"]["type"] == "ExternalName";
        let policy = at == ".body.spec.internalTrafficPolicy" && difference.ours.is_null();
        let written = matches!(step.doing, Doing::Delete(_)) || step.subresource == "status";
        if policy && alias && written {
            return Some(POLICY);
        }
        let refused = ours_said.contains("nodePort: Invalid value: ")
            && (ours_said.contains("provided port is already allocated")
                || ours_said.contains("provided port is not in the valid range"));
        let changed = matches!(step.doing, Doing::Update { .. } | Doing::Patch { .. });
        let kept = answers.real.code == 200 || real_said.starts_with("duplicate nodePort: ");
        if refused && changed && kept {
            return Some(PORT);
        }
    }
    // Go walks through a map in another order each time.
    let sorted = |causes: &Value| {
        let mut texts: Vec<String> = once(causes).iter().map(Value::to_string).collect();
        texts.sort();
        texts
    };
    let causes = |body: &Value| cut(&body["details"]["causes"]);
    let (of_real, of_ours) = (causes(real), causes(ours));
    if real["details"]["causes"] != of_real && once(&of_real) == once(&of_ours) {
        return Some(CHANGED);
    }
    let (plain_real, plain_ours) = (plain(&of_real), plain(&of_ours));
    if plain_real != of_real && sorted(&plain_real) == sorted(&plain_ours) {
        return Some(VALUE);
    }
    let unsaid = |causes: &Value| -> Value {
        let text = causes.to_string().replace("value: []", "value: null").replace("value: {}", "value: null");
        serde_json::from_str(&text).expect("still JSON")
    };
    if once(&unsaid(&of_real)) == once(&unsaid(&of_ours)) && of_real != of_ours {
        return Some(EMPTY);
    }
    let (of_real, of_ours) = (sorted(&of_real), sorted(&of_ours));
    if !of_real.is_empty() && of_real == of_ours {
        return Some(ORDER);
    }
    if matches!(step.kind.plural, "configmaps" | "secrets")
        && real_said.contains("binaryData: Forbidden")
        && !ours_said.contains("binaryData: Forbidden")
    {
        return Some(EMPTY);
    }
    let strategic = matches!(&step.doing, Doing::Patch { way: "strategic-merge-patch", .. });
    if strategic && answers.ours.code == 400 && answers.real.code == 500 && real["reason"].is_null() {
        return Some(MERGE);
    }
    if at.ends_with(".lastTransitionTime") && difference.real.is_null() && difference.ours.is_string() {
        return Some(TIME);
    }
    let follows = at.starts_with(".body.details") || at == ".body.message";
    if follows && answers.real.code == answers.ours.code && real["reason"] == ours["reason"] {
        let undecodable = [
            "cannot be handled as a ".to_owned(),
            " \"\" is invalid: patch: Invalid value: ".into(),
            "error decoding patch: ".into(),
        ];
        // Go's words for a number or a text in a place that wants something else.
        let unrecognized = real_said.starts_with("the object provided is unrecognized");
        if unrecognized && ours["reason"] == "BadRequest" {
            return Some(WORDS);
        }
        let of_go =
            real_said.starts_with("json: cannot unmarshal") || real_said.contains("illegal base64 data");
        if of_go && real["reason"] == "BadRequest" {
            return Some(WORDS);
        }
        let alike = |head: &String| real_said.contains(head.as_str()) && ours_said.contains(head.as_str());
        // Fields that aren't known are named alike.
        if undecodable.iter().any(alike)
            && (answers.real.code == 422 || !real_said.contains("strict decoding error"))
        {
            return Some(WORDS);
        }
        if real_said.contains("StorageError: invalid object") && ours_said.contains("Precondition failed") {
            return Some(KEYS);
        }
        let unnamed = step.kind.plural == "services" && step.name.is_empty();
        let ownerless = real_said.contains("failed to allocate IP")
            && real_said.ends_with(" is invalid: spec.parentRef.name: Required value");
        // With two families either may be the first, and another of the addresses be refused here.
        let told = ours_said.contains("metadata.name: Required value: name or generateName is required")
            || ours_said.contains("failed to allocate IP");
        if unnamed && ownerless && told {
            return Some(UNNAMED);
        }
    }
    None
}

const NOT_READY: &str = "node.kubernetes.io/not-ready";

fn tainted(value: &Value) -> bool {
    value.to_string().contains(NOT_READY)
}

/// The same without the taint of new nodes, wherever it stands.
fn without_taint(value: &Value) -> Value {
    let mut value = value.clone();
    let taints = match value.get("taints").is_some() {
        true => value.get_mut("taints"),
        false => Some(&mut value),
    };
    if let Some(Value::Array(taints)) = taints {
        taints.retain(|taint| taint["key"] != NOT_READY);
    }
    let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    if let Value::Object(map) = &mut value {
        map.retain(|_, value| !empty(value));
    }
    if empty(&value) { Value::Null } else { value }
}

/// Causes without the objects that they show: Go shows its structs.
fn plain(causes: &Value) -> Value {
    let mut causes = causes.clone();
    for cause in causes.as_array_mut().into_iter().flatten() {
        let text = cause["message"].as_str().unwrap_or_default().to_owned();
        let Some(begin) = text.find("value: {").map(|at| at + "value: ".len()) else { continue };
        let mut objects = serde_json::Deserializer::from_str(&text[begin..]).into_iter::<Value>();
        if let Some(Ok(_)) = objects.next() {
            let end = begin + objects.byte_offset();
            cause["message"] = format!("{}{{}}{}", &text[..begin], &text[end..]).into();
        }
    }
    causes
}

/// Causes without what follows on further lines: there Go shows what its structs differ in.
fn cut(causes: &Value) -> Value {
    let mut causes = causes.clone();
    for cause in causes.as_array_mut().into_iter().flatten() {
        if let Some((head, _)) = cause["message"].as_str().and_then(|text| text.split_once('\n')) {
            cause["message"] = head.to_owned().into();
        }
    }
    causes
}

fn once(causes: &Value) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    for cause in causes.as_array().into_iter().flatten() {
        if !out.contains(cause) {
            out.push(cause.clone());
        }
    }
    out
}
