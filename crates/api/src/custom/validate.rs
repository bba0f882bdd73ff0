//! Values against an OpenAPI schema, judged and worded as kube-openapi's validator does (`pkg/validation/validate`).

use std::collections::HashMap;

use regex::Regex;
use serde_json::{Map, Value};

use super::formats;
use crate::fielderror::{ErrorKind, FieldError, quote};
use crate::walk;

/// The expressions of a schema, compiled once; none for one that can't be.
#[derive(Debug, Default)]
pub struct Patterns(HashMap<String, Option<Regex>>);

impl Patterns {
    /// Those of a schema.
    pub fn of(schema: &Value) -> Patterns {
        fn gather(value: &Value, all: &mut Patterns) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(text)) = map.get("pattern") {
                        all.0.entry(text.clone()).or_insert_with(|| Regex::new(text).ok());
                    }
                    map.values().for_each(|part| gather(part, all));
                }
                Value::Array(items) => items.iter().for_each(|part| gather(part, all)),
                _ => {}
            }
        }
        let mut all = Patterns::default();
        gather(schema, &mut all);
        all
    }

    fn matches(&self, pattern: &str, text: &str) -> bool {
        match self.0.get(pattern) {
            Some(Some(regex)) => regex.is_match(text),
            Some(None) => false,
            None => Regex::new(pattern).is_ok_and(|regex| regex.is_match(text)),
        }
    }
}

/// What is wrong with a value, under a path; empty for a whole object.
pub fn validate(schema: &Value, value: &Value, patterns: &Patterns, path: &str) -> Vec<FieldError> {
    Validator { patterns }.schema(schema, value, None, "").errors(path)
}

/// The same of a change: parts that are as they were are excused (`CRDValidationRatcheting`).
pub fn validate_update(
    schema: &Value,
    value: &Value,
    old: &Value,
    patterns: &Patterns,
    path: &str,
) -> Vec<FieldError> {
    Validator { patterns }.correlated(schema, value, Some(old), "").errors(path)
}

/// A finding; without a place it is about the whole.
#[derive(Clone)]
struct Finding {
    place: Option<String>,
    kind: ErrorKind,
    value: Option<Value>,
    /// What is said of it, and by what it is told from others.
    text: String,
    detail: String,
}

#[derive(Default)]
struct Outcome {
    findings: Vec<Finding>,
    /// How many checks were good: of alternatives that all fail, that with the most is told about.
    good: usize,
}

impl Outcome {
    fn add(&mut self, finding: Finding) {
        if !self.findings.iter().any(|known| known.text == finding.text) {
            self.findings.push(finding);
        }
    }

    fn merge(&mut self, other: Outcome) {
        other.findings.into_iter().for_each(|finding| self.add(finding));
        self.good += other.good;
    }

    fn errors(self, path: &str) -> Vec<FieldError> {
        let whole = || if path.is_empty() { "<nil>".to_owned() } else { path.to_owned() };
        let place = |place: Option<String>| match place.as_deref().map(|p| p.strip_prefix('.').unwrap_or(p)) {
            None | Some("") => whole(),
            Some(place) if path.is_empty() => place.to_owned(),
            Some(place) => format!("{path}.{place}"),
        };
        let error =
            |f: Finding| FieldError { kind: f.kind, path: place(f.place), value: f.value, detail: f.detail };
        self.findings.into_iter().map(error).collect()
    }
}

fn at(place: &str, kind: ErrorKind, value: Option<Value>, text: String, detail: String) -> Finding {
    Finding { place: Some(place.to_owned()), kind, value, text, detail }
}

fn invalid(place: &str, value: impl Into<Value>, text: String) -> Finding {
    at(place, ErrorKind::Invalid, Some(value.into()), text.clone(), text)
}

fn about_all(text: String) -> Finding {
    Finding {
        place: None,
        kind: ErrorKind::Invalid,
        value: Some("".into()),
        text: text.clone(),
        detail: text,
    }
}

/// A type and a format of JSON, as Go's values have them.
fn sort(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::Number(number) if number.is_i64() => ("integer", "int64"),
        Value::Number(_) => ("number", "float64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    }
}

/// The types that a schema allows; none if any.
fn types(schema: &Value) -> Vec<&str> {
    if walk::flag(schema, "x-kubernetes-int-or-string") == Some(true) {
        return vec!["integer", "string"];
    }
    Some(walk::text(schema, "type")).into_iter().filter(|word| !word.is_empty()).collect()
}

/// The format of a schema, if it is one that its type can have (`StripUnsupportedFormatsPostProcessorForVersion`).
fn format<'s>(schema: &'s Value, types: &[&str]) -> &'s str {
    let format = walk::text(schema, "format");
    let known = match types {
        [word] => formats::is_supported(word, format),
        _ => formats::is_supported("", format),
    };
    if known { format } else { "" }
}

/// A number as Go's `%v` has it.
pub(super) fn go_number(number: f64) -> String {
    if number == 0.0 || (1e-4..1e21).contains(&number.abs()) {
        return format!("{number}");
    }
    let text = format!("{number:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

fn is_whole(number: f64) -> bool {
    number.is_finite() && number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_991.0
}

/// Whether two values are the same: numbers by what they count.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

struct Validator<'p> {
    patterns: &'p Patterns,
}

impl Validator<'_> {
    /// A part of an object that may be excused by what it was.
    fn correlated(&self, schema: &Value, value: &Value, old: Option<&Value>, path: &str) -> Outcome {
        let outcome = self.schema(schema, value, old, path);
        match old {
            Some(old) if !outcome.findings.is_empty() && old == value => {
                Outcome { findings: Vec::new(), good: outcome.good }
            }
            _ => outcome,
        }
    }

    fn schema(&self, schema: &Value, value: &Value, old: Option<&Value>, path: &str) -> Outcome {
        let mut out = Outcome::default();
        let types = types(schema);
        let format = format(schema, &types);
        if value.is_null() {
            out.merge(of_type(schema, &types, format, value, path));
            out.merge(of_words(schema, value, path));
            return out;
        }
        if !types.is_empty() || !format.is_empty() {
            out.merge(of_type(schema, &types, format, value, path));
            out.good += 1;
        }
        out.merge(self.junctors(schema, value, old, path));
        out.good += 1;
        match value {
            Value::String(text) => {
                out.merge(self.text(schema, text, path));
                out.good += 1;
                if formats::is_known(format) {
                    if !formats::holds(format, text) {
                        let why = format!("{path} in body must be of type {format}: {}", quote(text));
                        out.add(at(path, ErrorKind::TypeInvalid, Some(value.clone()), why.clone(), why));
                    }
                    out.good += 1;
                }
            }
            Value::Number(_) => {
                out.merge(number(schema, value, &types, format, path));
                out.good += 1;
            }
            Value::Array(items) => {
                out.merge(self.list(schema, items, old, path));
                out.good += 1;
            }
            _ => {}
        }
        out.merge(of_words(schema, value, path));
        out.good += 1;
        if let Value::Object(map) = value {
            out.merge(self.object(schema, map, old, path));
            out.good += 1;
        }
        out.good += 1;
        out
    }

    fn junctors(&self, schema: &Value, value: &Value, old: Option<&Value>, path: &str) -> Outcome {
        let mut out = Outcome::default();
        let any = walk::list(schema, "anyOf");
        if !any.is_empty() {
            let mut best: Option<Outcome> = None;
            for one in any {
                let outcome = self.schema(one, value, old, path);
                if outcome.findings.is_empty() {
                    best = Some(outcome);
                    break;
                }
                if best.as_ref().is_none_or(|best| outcome.good > best.good) {
                    best = Some(outcome);
                }
            }
            let failed = best.as_ref().is_some_and(|best| !best.findings.is_empty());
            if failed {
                out.add(about_all(format!("{} must validate at least one schema (anyOf)", quote(path))));
            }
            out.merge(best.unwrap_or_default());
        }
        let one_of = walk::list(schema, "oneOf");
        if !one_of.is_empty() {
            let (mut best, mut first): (Option<Outcome>, Option<Outcome>) = (None, None);
            let mut valid = 0;
            for one in one_of {
                let outcome = self.schema(one, value, old, path);
                if outcome.findings.is_empty() {
                    valid += 1;
                    best = None;
                    first.get_or_insert(outcome);
                } else if valid == 0 && best.as_ref().is_none_or(|best| outcome.good > best.good) {
                    best = Some(outcome);
                }
            }
            if valid == 1 {
                out.merge(first.unwrap_or_default());
            } else {
                let how = match valid {
                    0 => "Found none valid".to_owned(),
                    n => format!("Found {n} valid alternatives"),
                };
                let path = quote(path);
                out.add(about_all(format!("{path} must validate one and only one schema (oneOf). {how}")));
                out.merge(best.unwrap_or_default());
            }
        }
        let all = walk::list(schema, "allOf");
        if !all.is_empty() {
            let mut valid = 0;
            for one in all {
                let outcome = self.schema(one, value, old, path);
                valid += usize::from(outcome.findings.is_empty());
                out.merge(outcome);
            }
            if valid != all.len() {
                let how = if valid == 0 { ". None validated" } else { "" };
                out.add(about_all(format!("{} must validate all the schemas (allOf){how}", quote(path))));
            }
        }
        if let Some(not) = walk::at(schema, "not")
            && self.schema(not, value, old, path).findings.is_empty()
        {
            out.add(about_all(format!("{} must not validate the schema (not)", quote(path))));
        }
        out.good += 1;
        out
    }

    fn text(&self, schema: &Value, text: &str, path: &str) -> Outcome {
        let mut out = Outcome::default();
        let length = text.chars().count() as i64;
        let pattern = walk::text(schema, "pattern");
        if let Some(max) = walk::int(schema, "maxLength").filter(|max| length > *max) {
            let why = format!("{path} in body should be at most {max} chars long");
            let said = format!("may not be more than {max} bytes");
            out.add(at(path, ErrorKind::TooLong, None, why, said));
        } else if let Some(min) = walk::int(schema, "minLength").filter(|min| length < *min) {
            out.add(invalid(path, text, format!("{path} in body should be at least {min} chars long")));
        } else if !pattern.is_empty() && !self.patterns.matches(pattern, text) {
            out.add(invalid(path, text, format!("{path} in body should match '{pattern}'")));
        }
        out
    }

    fn list(&self, schema: &Value, items: &[Value], old: Option<&Value>, path: &str) -> Outcome {
        let mut out = Outcome::default();
        if let Some(of) = walk::at(schema, "items").filter(|of| of.is_object()) {
            let before = old.and_then(Value::as_array).filter(|_| is_keyed(schema));
            for (index, item) in items.iter().enumerate() {
                let path = format!("{path}[{index}]");
                let old = before.and_then(|before| before.iter().find(|old| same_key(schema, old, item)));
                out.merge(match old {
                    Some(old) => self.correlated(of, item, Some(old), &path),
                    None => self.schema(of, item, None, &path),
                });
            }
        }
        let size = items.len() as i64;
        if let Some(min) = walk::int(schema, "minItems").filter(|min| size < *min) {
            out.add(invalid(path, size, format!("{path} in body should have at least {min} items")));
        }
        if let Some(max) = walk::int(schema, "maxItems").filter(|max| size > *max) {
            out.add(too_many(path, size, max, "items"));
        }
        let unique = walk::flag(schema, "uniqueItems") == Some(true);
        if unique && items.iter().enumerate().any(|(i, a)| items[..i].iter().any(|b| a == b)) {
            out.add(invalid(path, "", format!("{path} in body shouldn't contain duplicates")));
        }
        out.good += 1;
        out
    }

    fn object(&self, schema: &Value, map: &Map<String, Value>, old: Option<&Value>, path: &str) -> Outcome {
        let mut out = Outcome::default();
        let size = map.len() as i64;
        if let Some(min) = walk::int(schema, "minProperties").filter(|min| size < *min) {
            out.add(invalid(path, size, format!("{path} in body should have at least {min} properties")));
        }
        if let Some(max) = walk::int(schema, "maxProperties").filter(|max| size > *max) {
            out.add(too_many(path, size, max, "properties"));
        }
        let properties = walk::map(schema, "properties");
        // A map that is owned whole has no parts that were there before.
        let before = old.filter(|_| walk::text(schema, "x-kubernetes-map-type") != "atomic");
        let child = |name: &str, of: &Value, value: &Value, place: &str| {
            let root = path.is_empty() && matches!(name, "kind" | "apiVersion");
            match before.and_then(|old| old.get(name)).filter(|_| !root) {
                Some(old) => self.correlated(of, value, Some(old), place),
                None => self.schema(of, value, None, place),
            }
        };
        match walk::at(schema, "additionalProperties") {
            Some(Value::Bool(false)) => {
                for name in map.keys().filter(|name| !properties.contains_key(*name)) {
                    let why = format!("{path}.{name} in body is a forbidden property");
                    out.add(invalid(path, name.as_str(), why));
                }
            }
            Some(of @ Value::Object(_)) => {
                for (name, value) in map.iter().filter(|(name, _)| !properties.contains_key(*name)) {
                    out.merge(child(name, of, value, &format!("{path}.{name}")));
                }
            }
            _ => {}
        }
        for (name, of) in properties {
            let Some(value) = map.get(name) else { continue };
            let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            out.merge(child(name, of, value, &place));
        }
        for name in walk::list(schema, "required").iter().filter_map(Value::as_str) {
            if !map.contains_key(name) {
                let place = format!("{path}.{name}");
                let why = format!("{place} in body is required");
                out.add(at(&place, ErrorKind::Required, None, why, String::new()));
            }
        }
        out
    }
}

fn of_type(schema: &Value, types: &[&str], format: &str, value: &Value, path: &str) -> Outcome {
    let mut out = Outcome { good: 1, ..Outcome::default() };
    let refuse = |wanted: &str, found: &str| {
        let why = match found {
            // Of what has no name nothing is shown.
            "" => format!("{path} in body must be of type {wanted}: \"\""),
            found => format!("{path} in body must be of type {wanted}: {}", quote(found)),
        };
        let finding = at(path, ErrorKind::TypeInvalid, Some(found.into()), why.clone(), why);
        Outcome { findings: vec![finding], good: 0 }
    };
    let (sort, its_format) = sort(value);
    if value.is_null() {
        let nullable = walk::flag(schema, "nullable") == Some(true);
        return if types.is_empty() || nullable { out } else { refuse(&types.join(","), "null") };
    }
    let has = |word: &str| types.contains(&word);
    let float_int = sort == "number" && value.as_f64().is_some_and(is_whole) && has("integer");
    let int_float = sort == "integer" && has("number");
    let listed = matches!(value, Value::String(_) | Value::Array(_));
    let fits = has(sort) || float_int || int_float;
    if !format.is_empty() {
        let numeric = has("number") || has("integer");
        match listed {
            false if !fits && its_format != format => return refuse(format, its_format),
            true if !numeric => return out,
            _ => {}
        }
    }
    if !fits {
        return refuse(&types.join(","), sort);
    }
    out.good = 1;
    out
}

/// More of something than there may be. The detail calls all of them items.
fn too_many(path: &str, size: i64, max: i64, what: &str) -> Finding {
    let why = format!("{path} in body should have at most {max} {what}");
    at(path, ErrorKind::TooMany, Some(size.into()), why, format!("must have at most {max} items"))
}

/// One of the words that are allowed.
fn of_words(schema: &Value, value: &Value, path: &str) -> Outcome {
    let words = walk::list(schema, "enum");
    let mut out = Outcome::default();
    if words.is_empty() || (!value.is_null() && words.iter().any(|word| same(word, value))) {
        return out;
    }
    let texts: Vec<String> =
        words.iter().map(|word| word.as_str().map_or_else(|| word.to_string(), str::to_owned)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let error = FieldError::not_supported(path, value.clone(), &texts);
    let why = format!("{path} in body should be one of [{}]", texts.join(" "));
    out.add(at(path, error.kind, error.value, why, error.detail));
    out
}

fn number(schema: &Value, value: &Value, types: &[&str], format: &str, path: &str) -> Outcome {
    let mut out = Outcome { good: 1, ..Outcome::default() };
    let whole = value.as_i64();
    let amount = value.as_f64().unwrap_or_default();
    let is_integer = types == ["integer"];
    let in_range = |amount: f64, whole: Option<i64>| match (is_integer, format) {
        (true, "int32") => match whole {
            Some(whole) => i32::try_from(whole).is_ok(),
            None => is_whole(amount) && amount.abs() <= f64::from(i32::MAX),
        },
        (true, _) => whole.is_some() || (amount.fract() == 0.0 && amount.abs() < 9.3e18),
        (false, "float") => amount.abs() <= f64::from(f32::MAX),
        _ => true,
    };
    let of = |what: &str| {
        let word = if is_integer { "integer" } else { types.first().copied().unwrap_or_default() };
        match format {
            "" => format!("{what} value must be of type {word} (default format) in {path}"),
            format => format!("{what} value must be of type {word} with format {format} in {path}"),
        }
    };
    if !in_range(amount, whole) {
        out.add(about_all(of("Checked")));
    }
    let bound = |name: &str| walk::at(schema, name).and_then(Value::as_f64);
    let said = |bound: f64| match whole {
        Some(_) => format!("{}", bound as i64),
        None => go_number(bound),
    };
    if let Some(factor) = bound("multipleOf") {
        // Of whole numbers only the whole part of a factor counts, also if that is none.
        let (factor, fits) = match whole {
            Some(whole) => (factor.trunc(), factor as i64 != 0 && whole % (factor as i64) == 0),
            None if factor < 1.0 => (factor, is_whole(1.0 / factor * amount)),
            None => (factor, is_whole(amount / factor)),
        };
        if factor <= 0.0 {
            let why = format!("factor MultipleOf declared for {path} must be positive: {}", said(factor));
            let shown = if whole.is_some() { Value::from(factor as i64) } else { factor.into() };
            out.add(invalid(path, shown, why));
        } else if !fits {
            out.add(invalid(
                path,
                value.clone(),
                format!("{path} in body should be a multiple of {}", said(factor)),
            ));
        }
    }
    let exclusive = |name: &str| walk::flag(schema, name) == Some(true);
    // Of bounds, too, whole numbers are held against the whole part.
    let part = |bound: f64| if whole.is_some() { bound.trunc() } else { bound };
    if let Some(max) = bound("maximum") {
        let strict = exclusive("exclusiveMaximum");
        if !in_range(max, None) {
            out.add(about_all(of("Maximum boundary")));
        }
        let max = part(max);
        if amount > max || (strict && amount >= max) {
            let how = if strict { "less than" } else { "less than or equal to" };
            out.add(invalid(path, value.clone(), format!("{path} in body should be {how} {}", said(max))));
        }
    }
    if let Some(min) = bound("minimum") {
        let strict = exclusive("exclusiveMinimum");
        if !in_range(min, None) {
            out.add(about_all(of("Minimum boundary")));
        }
        let min = part(min);
        if amount < min || (strict && amount <= min) {
            let how = if strict { "greater than" } else { "greater than or equal to" };
            out.add(invalid(path, value.clone(), format!("{path} in body should be {how} {}", said(min))));
        }
    }
    out
}

/// Whether the items of a list are told apart by keys.
fn is_keyed(schema: &Value) -> bool {
    walk::text(schema, "x-kubernetes-list-type") == "map"
}

fn same_key(schema: &Value, a: &Value, b: &Value) -> bool {
    let keys = walk::list(schema, "x-kubernetes-list-map-keys");
    keys.iter().filter_map(Value::as_str).all(|key| a.get(key) == b.get(key))
}
