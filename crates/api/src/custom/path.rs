//! Paths into objects in the notation of kubectl's JSONPath, as far as columns and selectable fields use it.

use serde_json::Value;

/// A step of a path.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    /// Everything below.
    Deep,
    /// The items of which a field compares so.
    Where(Vec<Step>, Compare, Value),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Compare {
    Equal,
    Different,
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
    There,
}

/// A path, understood.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Path(Vec<Step>);

impl Path {
    /// Understands a path like `.status.conditions[?(@.type=="Ready")].status`; none if it can't.
    pub fn parse(text: &str) -> Option<Path> {
        let mut steps = Vec::new();
        let mut rest = text.trim();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner.strip_suffix('}')?;
        }
        rest = rest.strip_prefix('$').unwrap_or(rest);
        while !rest.is_empty() {
            if let Some(deeper) = rest.strip_prefix("..") {
                steps.push(Step::Deep);
                rest = field(deeper, &mut steps);
            } else if let Some(after) = rest.strip_prefix('.') {
                rest = field(after, &mut steps);
            } else if let Some(after) = rest.strip_prefix('[') {
                let end = closing(after)?;
                steps.push(bracket(&after[..end])?);
                rest = &after[end + 1..];
            } else {
                return None;
            }
        }
        Some(Path(steps))
    }

    /// What is there.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        find(&self.0, value)
    }
}

/// Reads a name up to the next step.
fn field<'t>(text: &'t str, steps: &mut Vec<Step>) -> &'t str {
    let (mut name, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                name.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '.' | '[' => {
                if !name.is_empty() {
                    steps.push(if name == "*" { Step::All } else { Step::Field(name) });
                }
                return &text[at..];
            }
            c => name.push(c),
        }
    }
    if !name.is_empty() {
        steps.push(if name == "*" { Step::All } else { Step::Field(name) });
    }
    ""
}

/// Where the bracket that is open closes.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(at),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Option<Step> {
    let text = text.trim();
    if text == "*" {
        return Some(Step::All);
    }
    if let Some(name) = quoted(text) {
        return Some(Step::Field(name));
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|text| text.strip_suffix(')')) {
        return filtered(filter);
    }
    let bound = |text: &str| match text.trim() {
        "" => Some(None),
        number => number.parse().ok().map(Some),
    };
    match text.split_once(':') {
        Some((from, to)) => Some(Step::Slice(bound(from)?, bound(to)?)),
        None => text.parse().ok().map(Step::Index),
    }
}

fn quoted(text: &str) -> Option<String> {
    ['\'', '"'].into_iter().find_map(|quote| {
        text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote)).map(str::to_owned)
    })
}

fn filtered(text: &str) -> Option<Step> {
    let operators = [
        ("==", Compare::Equal),
        ("!=", Compare::Different),
        ("<=", Compare::LessOrEqual),
        (">=", Compare::MoreOrEqual),
        ("<", Compare::Less),
        (">", Compare::More),
    ];
    let found = operators.into_iter().find_map(|(sign, compare)| {
        text.split_once(sign).map(|(left, right)| (left.trim(), compare, right.trim()))
    });
    let (left, compare, right) = found.unwrap_or((text.trim(), Compare::There, "null"));
    let Path(steps) = Path::parse(left.strip_prefix('@')?)?;
    let value = match quoted(right) {
        Some(text) => Value::String(text),
        None => serde_json::from_str(right).ok()?,
    };
    Some(Step::Where(steps, compare, value))
}

fn find<'v>(steps: &[Step], value: &'v Value) -> Vec<&'v Value> {
    let Some((step, rest)) = steps.split_first() else { return vec![value] };
    let children = |value: &'v Value| -> Vec<&'v Value> {
        match value {
            Value::Array(items) => items.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        }
    };
    let next: Vec<&Value> = match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Index(index) => {
            let items = value.as_array().map_or(&[][..], Vec::as_slice);
            let at = if *index < 0 { *index + items.len() as i64 } else { *index };
            usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
        }
        Step::Slice(from, to) => {
            let items = value.as_array().map_or(&[][..], Vec::as_slice);
            let place = |bound: i64| if bound < 0 { bound + items.len() as i64 } else { bound };
            let from = usize::try_from(place(from.unwrap_or(0))).unwrap_or(0);
            let to = usize::try_from(place(to.unwrap_or(items.len() as i64))).unwrap_or(0).min(items.len());
            items.get(from..to).unwrap_or_default().iter().collect()
        }
        Step::All => children(value),
        Step::Deep => {
            let mut all = vec![value];
            let mut at = 0;
            while at < all.len() {
                all.extend(children(all[at]));
                at += 1;
            }
            all
        }
        Step::Where(path, compare, wanted) => {
            let holds = |item: &&Value| {
                let found = find(path, item);
                let found = found.first();
                let order = |a: &Value, b: &Value| match (a, b) {
                    (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
                    (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
                    _ => None,
                };
                let ordered = found.and_then(|found| order(found, wanted));
                match compare {
                    Compare::There => found.is_some(),
                    Compare::Equal => found.is_some_and(|found| *found == wanted),
                    Compare::Different => found.is_some_and(|found| *found != wanted),
                    Compare::Less => ordered.is_some_and(std::cmp::Ordering::is_lt),
                    Compare::LessOrEqual => ordered.is_some_and(std::cmp::Ordering::is_le),
                    Compare::More => ordered.is_some_and(std::cmp::Ordering::is_gt),
                    Compare::MoreOrEqual => ordered.is_some_and(std::cmp::Ordering::is_ge),
                }
            };
            value.as_array().map_or(&[][..], Vec::as_slice).iter().filter(holds).collect()
        }
    };
    next.into_iter().flat_map(|value| find(rest, value)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_where_kubectl_goes() {
        let object = json!({
            "spec": {"a.b": 1, "list": [1, 2, 3], "n": {"x": true}},
            "status": {"conditions": [
                {"type": "Synced", "status": "False"}, {"type": "Ready", "status": "True", "n": 3},
            ]},
        });
        let rows = [
            (".spec.list[0]", json!([1])),
            (".spec.list[-1]", json!([3])),
            (".spec.list[1:]", json!([2, 3])),
            (".spec.list[*]", json!([1, 2, 3])),
            (r".spec.a\.b", json!([1])),
            (".spec['a.b']", json!([1])),
            (".spec.n.x", json!([true])),
            (".spec.nothing.x", json!([])),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"])),
            (".status.conditions[?(@.type=='Ready')].status", json!(["True"])),
            (".status.conditions[?(@.n > 2)].type", json!(["Ready"])),
            ("..x", json!([true])),
        ];
        for (text, want) in rows {
            let path = Path::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(json!(path.find(&object)), want, "{text}");
        }
        assert!(Path::parse("spec").is_none() && Path::parse(".spec[").is_none());
    }
}
