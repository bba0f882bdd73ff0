//! LimitRanges: what containers and pods of a namespace get if they say nothing, and what they may say.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fielderror::FieldError;
use crate::quantity::Quantity;
use crate::{meta, quota, walk};

mod admit;

pub use admit::{apply, refusal};

/// Fills in what the client left out: limits come from the maximum, requests from limits or the minimum
/// (`SetDefaults_LimitRangeItem`).
pub fn default(object: &mut Value) {
    if walk::list(object, "spec.limits").is_empty() {
        walk::set(object, "spec.limits", Value::Null);
    }
    for item in walk::list_mut(object, "spec.limits") {
        if let Some(map) = item.as_object_mut() {
            map.retain(|_, part| part.as_object().is_none_or(|map| !map.is_empty()));
        }
        if walk::text(item, "type") != "Container" {
            continue;
        }
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            for (key, value) in walk::map(item, from).clone() {
                if let Some(map) = walk::map_mut(item, to) {
                    map.entry(key).or_insert(value);
                }
            }
        }
    }
}

/// What is wrong with a LimitRange.
pub fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut types: Vec<&str> = Vec::new();
    for (i, item) in walk::list(object, "spec.limits").iter().enumerate() {
        let at = format!("spec.limits[{i}]");
        let kind = walk::text(item, "type");
        let faults = meta::findings(&format!("{at}.type"), kind, meta::qualified_faults(kind));
        if faults.is_empty()
            && !kind.contains('/')
            && !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim")
        {
            let text = "must be a standard limit type or fully qualified";
            errors.push(FieldError::invalid(format!("{at}.type"), kind, text));
        }
        errors.extend(faults);
        if types.contains(&kind) {
            errors.push(FieldError::duplicate(format!("{at}.type"), kind));
        }
        types.push(kind);
        validate_item(&mut errors, item, &at, kind);
    }
    errors
}

fn validate_item(errors: &mut Vec<FieldError>, item: &Value, at: &str, kind: &str) {
    let mut keys: BTreeSet<&str> = BTreeSet::new();
    for part in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        let map = walk::map(item, part);
        if kind == "Pod" && part.starts_with("default") {
            if !map.is_empty() {
                let text = "may not be specified when `type` is 'Pod'";
                errors.push(FieldError::forbidden(format!("{at}.{part}"), text));
            }
            continue;
        }
        for key in map.keys() {
            errors.extend(quota::resource_name_faults(
                key,
                &format!("{at}.{part}[{key}]"),
                matches!(kind, "Pod" | "Container"),
            ));
            keys.insert(key);
        }
    }
    if kind == "PersistentVolumeClaim"
        && !["min", "max"].iter().any(|part| walk::map(item, part).contains_key("storage"))
    {
        let text = "either minimum or maximum storage value is required, but neither was provided";
        errors.push(FieldError::required(format!("{at}.limits"), text));
    }
    for key in keys {
        let of = |part: &str| quota::amount(walk::map(item, part).get(key)?);
        let (min, max) = (of("min"), of("max"));
        let (limit, request) = (of("default"), of("defaultRequest"));
        let mut compare = |low: Option<Quantity>,
                           high: Option<Quantity>,
                           path: &str,
                           shown: Option<Quantity>,
                           low_name: &str,
                           high_name: &str| {
            if let (Some(low), Some(high), Some(shown)) = (low, high, shown)
                && low > high
            {
                let text = format!("{low_name} value {low} is greater than {high_name} value {high}");
                errors.push(FieldError::invalid(format!("{at}.{path}[{key}]"), shown.to_string(), text));
            }
        };
        compare(min, max, "min", min, "min", "max");
        compare(min, request, "defaultRequest", request, "min", "default request");
        compare(request, max, "defaultRequest", request, "default request", "max");
        compare(request, limit, "defaultRequest", request, "default request", "default limit");
        compare(min, limit, "default", min, "min", "default");
        compare(limit, max, "default", max, "default", "max");
        if let Some(ratio) = of("maxLimitRequestRatio") {
            let path = format!("{at}.maxLimitRequestRatio[{key}]");
            if ratio < Quantity::whole(1) {
                let text = format!("ratio {ratio} is less than 1");
                errors.push(FieldError::invalid(&path, ratio.to_string(), text));
            }
            if let (Some(min), Some(max)) = (min, max)
                && !min.is_zero()
                && ratio.ratio(Quantity::whole(1)) > max.ratio(min)
            {
                let text = format!("ratio {ratio} is greater than max/min = {:.6}", max.ratio(min));
                errors.push(FieldError::invalid(path, ratio.to_string(), text));
            }
        }
    }
}
