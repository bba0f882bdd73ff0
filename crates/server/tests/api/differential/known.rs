//! Where our server differs on purpose, and why.

use serde_json::Value;

use super::step::Step;
use super::world::{Answers, Difference};

const WORDS: &str = "words for what can't be decoded";
const ONCE: &str = "a cause is named once";
const UNNAMED: &str = "a Service without a name is told so";
const KEYS: &str = "the store's keys are nobody's business";
const STATUS: &str = "a status makes no object";
/// All reasons. A test compares them with the document.
pub const DIFFERENCES: [&str; 5] = [WORDS, ONCE, UNNAMED, KEYS, STATUS];

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
    if step.subresource == "status" && answers.ours.code == 404 && matches!(answers.real.code, 201 | 422) {
        return Some(STATUS);
    }
    let follows = at.starts_with(".body.details") || at == ".body.message";
    if follows && answers.real.code == answers.ours.code && real["reason"] == ours["reason"] {
        let undecodable = [
            "cannot be handled as a ".to_owned(),
            " \"\" is invalid: patch: Invalid value: ".into(),
            "error decoding patch: ".into(),
        ];
        // Go's words for a number or a text in a place that wants something else.
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
        if step.name.is_empty() && real_said.contains("spec.parentRef.name: Required value") {
            return Some(UNNAMED);
        }
    }
    None
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
