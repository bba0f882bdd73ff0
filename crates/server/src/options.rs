//! What a request says beside its body: the parameters of writes and lists, and the same refusals of them as in Kubernetes
//! (apimachinery `pkg/apis/meta/v1/validation`, `pkg/apis/meta/internalversion/validation`).

use portolan_api::Status;
use portolan_api::fielderror::FieldError;
use serde_json::json;

use crate::path::Query;

/// The most bytes of a field manager's name (`FieldManagerMaxLength`).
pub(crate) const MANAGER: usize = 128;

/// Which options a write's parameters are: their texts name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    Create,
    Update,
    Patch,
    Apply,
}

/// Checks the parameters of a write; whether nothing may be written.
pub(crate) fn writing(query: &Query, writing: Writing) -> Result<bool, Status> {
    let mut errors = Vec::new();
    let manager = query.get("fieldManager").unwrap_or_default();
    match writing {
        Writing::Apply if manager.is_empty() => {
            errors.push(FieldError::required("fieldManager", "is required for apply patch"));
        }
        Writing::Patch if query.get("force").is_some() => {
            errors.push(FieldError::forbidden("force", "may not be specified for non-apply patch"));
        }
        _ => {}
    }
    if manager.len() > MANAGER {
        errors.push(FieldError::too_long("fieldManager", MANAGER));
    }
    for (at, c) in manager.char_indices().filter(|(_, c)| c.is_control()) {
        let why = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
        errors.push(FieldError::invalid("fieldManager", manager, why));
    }
    let dry_run = dry_run(query, &mut errors);
    let validation = query.get("fieldValidation").unwrap_or_default();
    if !matches!(validation, "" | "Ignore" | "Strict" | "Warn") {
        let known = ["", "Ignore", "Strict", "Warn"];
        errors.push(FieldError::not_supported("fieldValidation", validation, &known));
    }
    let options = match writing {
        Writing::Create => "CreateOptions",
        Writing::Update => "UpdateOptions",
        Writing::Patch | Writing::Apply => "PatchOptions",
    };
    if errors.is_empty() { Ok(dry_run) } else { Err(Status::invalid_options(options, &errors)) }
}

/// `dryRun` may be `All` or absent.
fn dry_run(query: &Query, errors: &mut Vec<FieldError>) -> bool {
    let values: Vec<&str> = query.all("dryRun").filter(|value| !value.is_empty()).collect();
    errors.extend(dry_run_errors(&values));
    !values.is_empty()
}

/// What is wrong with the values of `dryRun`.
pub(crate) fn dry_run_errors(values: &[&str]) -> Option<FieldError> {
    let known = values.iter().all(|value| *value == "All");
    (!known).then(|| FieldError::not_supported("dryRun", json!(values), &["All"]))
}

/// Whether the numbers among a list's parameters are numbers.
pub(crate) fn numbers(query: &Query) -> Result<(), Status> {
    match query.get("limit").filter(|text| text.parse::<i64>().is_err()) {
        // Go's words for what is no number.
        Some(text) => Err(Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        None => Ok(()),
    }
}

/// What is wrong with the parameters of a list (not of a watch).
pub(crate) fn listing(query: &Query) -> Result<(), Status> {
    let mut errors = Vec::new();
    let field = "resourceVersionMatch";
    if let Some(policy) = query.get(field) {
        let mut forbid = |why: &str| errors.push(FieldError::forbidden(field, why));
        if query.get("resourceVersion").is_none() {
            forbid("resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if query.get("continue").is_some() {
            forbid("resourceVersionMatch is forbidden when continue is provided");
        }
        if !matches!(policy, "Exact" | "NotOlderThan") {
            errors.push(FieldError::not_supported(field, policy, &["Exact", "NotOlderThan", ""]));
        }
        if policy == "Exact" && query.get("resourceVersion") == Some("0") {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            errors.push(FieldError::forbidden(field, why));
        }
    }
    if query.get("sendInitialEvents").is_some() {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_options("ListOptions", &errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_refused_in_kubernetes_words() {
        let said = |options, query: &str| writing(&Query::parse(query), options).expect_err(query).message;
        assert_eq!(
            said(Writing::Create, "dryRun=Some"),
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"Some\"]: supported values: \"All\""
        );
        assert_eq!(
            said(Writing::Update, "fieldValidation=x"),
            "UpdateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"x\": supported values: \"\", \
             \"Ignore\", \"Strict\", \"Warn\""
        );
        assert!(
            said(Writing::Apply, "").ends_with("fieldManager: Required value: is required for apply patch")
        );
        assert!(said(Writing::Patch, "force=true").ends_with("may not be specified for non-apply patch"));
        assert_eq!(writing(&Query::parse("dryRun=All&fieldManager=me"), Writing::Create), Ok(true));
        assert_eq!(writing(&Query::parse("fieldValidation=Strict"), Writing::Patch), Ok(false));

        let said = |query: &str| listing(&Query::parse(query)).expect_err(query).message;
        assert!(said("resourceVersionMatch=Exact&resourceVersion=0").contains("\"exact\" is forbidden"));
        assert!(said("resourceVersionMatch=Exact").contains("unless resourceVersion is provided"));
        assert_eq!(listing(&Query::parse("resourceVersionMatch=Exact&resourceVersion=7")), Ok(()));
    }
}
