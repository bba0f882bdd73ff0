//! Bodies in YAML, read to the JSON that says the same.

use serde_json::{Map, Value};

/// The value of a document, and what stands in it twice. Nothing is an empty object.
pub(crate) fn read(body: &[u8]) -> Result<(Value, Vec<String>), String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let strict = serde_saphyr::options! { legacy_octal_numbers: true };
    let (value, complaints) = match serde_saphyr::from_str_with_options::<Value>(text, strict) {
        Ok(value) => (value, Vec::new()),
        Err(error) => {
            let lenient = serde_saphyr::options! {
                legacy_octal_numbers: true,
                duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
            };
            let value =
                serde_saphyr::from_str_with_options(text, lenient).map_err(|error| first_line(&error))?;
            (value, vec![twice(&first_line(&error))])
        }
    };
    Ok((if value.is_null() { Value::Object(Map::new()) } else { value }, complaints))
}

/// A key that stands there twice, in the words of Go's YAML.
fn twice(text: &str) -> String {
    let parts = text.split_once("duplicate mapping key: ").map(|(line, rest)| (line, rest.split(',').next()));
    match parts {
        Some((line, Some(key))) => {
            let line = if line.is_empty() { "line 1: " } else { line };
            format!("{line}key {key:?} already set in map")
        }
        _ => text.to_owned(),
    }
}

/// What is wrong, without the picture of where: `line 3: did not find expected key`, and without the line if it is the first.
fn first_line(error: &serde_saphyr::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    match line.strip_prefix("line ").and_then(|rest| rest.split_once(": ")) {
        Some((place, what)) => match place.split(' ').next() {
            Some("1") | None => what.to_owned(),
            Some(number) => format!("line {number}: {what}"),
        },
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_says_what_json_would() {
        let (value, complaints) = read(b"a: 1\nb: [x, \"1\"]\nc: 0644\nd: null\n").unwrap();
        assert_eq!(value, json!({"a": 1, "b": ["x", "1"], "c": 420, "d": null}));
        assert!(complaints.is_empty());
        assert_eq!(read(b"").unwrap().0, json!({}));
        let (value, complaints) = read(b"a: 1\na: 2\n").unwrap();
        assert_eq!((value, complaints.len()), (json!({"a": 2}), 1));
        assert_eq!(read(b"a: b: c").unwrap_err(), "mapping values are not allowed in this context");
    }
}
