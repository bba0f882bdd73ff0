//! What stands in a query beside selectors: checked before anything else, in Kubernetes' words (apimachinery
//! `apis/meta/v1/validation` and `apis/meta/internalversion/validation`).

use portolan_api::{FieldError, Status};
use serde_json::json;

use crate::apply;
use crate::http::Call;

/// The most bytes of a manager's name (`FieldManagerMaxLength`).
pub(crate) const LONGEST: usize = 128;

impl Call {
    /// Checks the options of a request for an object or a collection.
    pub(crate) fn check_options(&self, verb: &str) -> Result<(), Status> {
        let (options, errors) = match verb {
            "POST" => ("CreateOptions", self.write_errors(false)),
            "PUT" => ("UpdateOptions", self.write_errors(false)),
            "PATCH" => ("PatchOptions", self.write_errors(true)),
            "DELETE" => ("DeleteOptions", self.delete_errors()),
            _ if self.path.name.is_none() => {
                self.numbers(&["limit", "timeoutSeconds"])?;
                (
                    "ListOptions",
                    if self.query.flag("watch") { self.watch_errors() } else { self.list_errors() },
                )
            }
            _ => return Ok(()),
        };
        if verb == "DELETE" {
            self.numbers(&["gracePeriodSeconds"])?;
        }
        if errors.is_empty() { Ok(()) } else { Err(Status::invalid_options(options, &errors)) }
    }

    /// Whole numbers, as Go reads them.
    fn numbers(&self, names: &[&str]) -> Result<(), Status> {
        match names.iter().filter_map(|name| self.query.get(name)).find(|text| text.parse::<i64>().is_err()) {
            None => Ok(()),
            Some(text) => {
                Err(Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
            }
        }
    }

    fn dry_run_errors(&self) -> Vec<FieldError> {
        let values: Vec<&str> = self.query.all("dryRun").filter(|value| !value.is_empty()).collect();
        if values.iter().all(|value| *value == "All") {
            return Vec::new();
        }
        vec![FieldError::not_supported("dryRun", json!(values), &["All"])]
    }

    fn write_errors(&self, patches: bool) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let manager = self.query.get("fieldManager").unwrap_or_default();
        let applies = self.media == apply::MEDIA;
        if patches && applies && manager.is_empty() {
            errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        }
        if patches && !applies && self.query.get("force").is_some() {
            errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
        }
        if manager.len() > LONGEST {
            errors.push(FieldError::too_long("fieldManager", LONGEST));
        }
        for (at, c) in manager.char_indices().filter(|(_, c)| c.is_control()) {
            let why = format!("invalid character U+{:04X} (at position {at})", c as u32);
            errors.push(FieldError::invalid("fieldManager", manager, why));
        }
        errors.extend(self.dry_run_errors());
        let validation = self.query.get("fieldValidation").unwrap_or_default();
        let known = ["", "Ignore", "Strict", "Warn"];
        if !known.contains(&validation) {
            errors.push(FieldError::not_supported("fieldValidation", validation, &known));
        }
        errors
    }

    fn delete_errors(&self) -> Vec<FieldError> {
        let mut errors: Vec<FieldError> =
            self.query.get("propagationPolicy").and_then(policy_error).into_iter().collect();
        errors.extend(self.dry_run_errors());
        errors
    }

    fn list_errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let forbidden = |why: &str| FieldError::forbidden("resourceVersionMatch", why);
        if let Some(policy) = self.query.get("resourceVersionMatch") {
            if self.query.get("resourceVersion").is_none() {
                errors
                    .push(forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"));
            }
            if self.query.get("continue").is_some() {
                errors.push(forbidden("resourceVersionMatch is forbidden when continue is provided"));
            }
            let known = ["Exact", "NotOlderThan", ""];
            if !known.contains(&policy) {
                errors.push(FieldError::not_supported("resourceVersionMatch", policy, &known));
            }
            if (policy, self.query.get("resourceVersion")) == ("Exact", Some("0")) {
                errors
                    .push(forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
            }
        }
        if self.query.get("sendInitialEvents").is_some() {
            errors
                .push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        errors
    }

    fn watch_errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let forbidden = |why: &str| FieldError::forbidden("resourceVersionMatch", why);
        let policy = self.query.get("resourceVersionMatch");
        let initial = self.query.get("sendInitialEvents").is_some();
        if initial && policy != Some("NotOlderThan") {
            errors.push(forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
        }
        if let Some(policy) = policy {
            if !initial {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                errors.push(forbidden(why));
            }
            if policy != "NotOlderThan" {
                errors.push(FieldError::not_supported("resourceVersionMatch", policy, &["NotOlderThan"]));
            }
            if self.query.get("continue").is_some() {
                errors.push(forbidden("resourceVersionMatch is forbidden when continue is provided"));
            }
        }
        errors
    }
}

/// What is wrong with a `propagationPolicy`.
pub(crate) fn policy_error(policy: &str) -> Option<FieldError> {
    let known = ["Foreground", "Background", "Orphan"];
    let shown = ["Foreground", "Background", "Orphan", "nil"];
    (!known.contains(&policy)).then(|| FieldError::not_supported("propagationPolicy", policy, &shown))
}
