//! Label selectors: a grammar of requirements, each on one label.

use std::fmt;

use serde_json::{Map, Value};

use super::SelectorError;
use crate::fielderror::{FieldError, aggregate, quote};
use crate::meta;
use crate::walk;

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The label has this value.
    Equals,
    /// The label is absent or has another value.
    NotEquals,
    /// The label is one of the values.
    In,
    /// The label is absent or none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label is a whole number above the value.
    GreaterThan,
    /// The label is a whole number below the value.
    LessThan,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what, sorted and each once.
    pub values: Vec<String>,
}

impl Requirement {
    fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Self {
        values.sort();
        values.dedup();
        Self { key: key.to_owned(), operator, values }
    }

    /// Whether an object with these labels meets the requirement.
    pub fn matches(&self, labels: &Map<String, Value>) -> bool {
        let have = labels.get(&self.key).and_then(Value::as_str);
        let listed = || have.is_some_and(|v| self.values.iter().any(|w| w == v));
        let number = |text: &str| text.parse::<i64>().ok();
        let compare = |holds: fn(i64, i64) -> bool| match (
            have.and_then(number),
            self.values.first().and_then(|v| number(v)),
        ) {
            (Some(a), Some(b)) => holds(a, b),
            _ => false,
        };
        match self.operator {
            Operator::Equals | Operator::In => listed(),
            Operator::NotEquals | Operator::NotIn => !listed(),
            Operator::Exists => have.is_some(),
            Operator::DoesNotExist => have.is_none(),
            Operator::GreaterThan => compare(|a, b| a > b),
            Operator::LessThan => compare(|a, b| a < b),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// All of its requirements must hold; with none it selects everything, unless it is [`LabelSelector::nothing`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Selects no object: what an absent selector object means.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Parses `a=b,c in (d,e),!f`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let requirements = Parser::new(text).all().map_err(SelectorError)?;
        Ok(Self::of(requirements))
    }

    fn of(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Self { requirements, nothing: false }
    }

    /// From a `LabelSelector` object: `matchLabels` and `matchExpressions`. An absent one (null) selects nothing, an
    /// empty one everything.
    pub fn from_object(object: &Value) -> Result<Self, SelectorError> {
        if object.is_null() {
            return Ok(Self::nothing());
        }
        let mut all = requirements_of_map(walk::map(object, "matchLabels"));
        for expression in walk::list(object, "matchExpressions") {
            let operator = match walk::text(expression, "operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!(
                        "{} is not a valid label selector operator",
                        quote(other)
                    )));
                }
            };
            let values =
                walk::list(expression, "values").iter().filter_map(Value::as_str).map(String::from).collect();
            all.push(Requirement::new(walk::text(expression, "key"), operator, values));
        }
        Ok(Self::of(all))
    }

    /// From a map of labels that must all be there, as a Service's `spec.selector`. Null selects nothing.
    pub fn from_map(map: &Value) -> Self {
        match map.as_object() {
            Some(map) => Self::of(requirements_of_map(map)),
            None => Self::nothing(),
        }
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Its requirements, by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether an object with these labels is selected.
    pub fn matches(&self, labels: &Map<String, Value>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }
}

fn requirements_of_map(map: &Map<String, Value>) -> Vec<Requirement> {
    map.iter()
        .map(|(k, v)| Requirement::new(k, Operator::Equals, vec![v.as_str().unwrap_or("").to_owned()]))
        .collect()
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

/// What is wrong with a `LabelSelector` object.
pub fn validate(selector: &Value, path: &str) -> Vec<FieldError> {
    let labels = format!("{path}.matchLabels");
    let mut errors = meta::validate_labels(walk::map(selector, "matchLabels"), &labels);
    for (i, expression) in walk::list(selector, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = walk::list(expression, "values");
        match walk::text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                format!("{path}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = walk::text(expression, "key");
        errors.extend(meta::findings(&format!("{path}.key"), key, meta::qualified_faults(key)));
        for (j, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or("");
            errors.extend(meta::findings(
                &format!("{path}.values[{j}]"),
                value,
                meta::label_value_faults(value),
            ));
        }
    }
    errors
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Sign(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Self::Word(w) => w,
            Self::Sign(s) => s,
            Self::End => "",
        }
    }
}

fn scan(text: &str) -> Vec<Token> {
    const SIGNS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if rest.is_empty() {
            out.push(Token::End);
            return out;
        }
        if let Some(sign) = SIGNS.iter().find(|s| rest.starts_with(**s)) {
            out.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
            continue;
        }
        let end = rest.find([' ', '\t', '\r', '\n', '=', '!', '(', ')', ',', '>', '<']).unwrap_or(rest.len());
        out.push(Token::Word(rest[..end].to_owned()));
        rest = &rest[end..];
    }
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
}

impl Parser {
    fn new(text: &str) -> Self {
        Self { tokens: scan(text), next: 0 }
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.next).unwrap_or(&Token::End)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn all(&mut self) -> Result<Vec<Requirement>, String> {
        let mut out = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Sign("!") => {
                    out.push(self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?);
                    match self.take() {
                        Token::End => return Ok(out),
                        Token::Sign(",") => {
                            if !matches!(self.peek(), Token::Word(_) | Token::Sign("!")) {
                                return Err(format!(
                                    "found '{}', expected: identifier after ','",
                                    self.peek().text()
                                ));
                            }
                        }
                        other => {
                            return Err(format!(
                                "found '{}', expected: ',' or 'end of string'",
                                other.text()
                            ));
                        }
                    }
                }
                Token::End => return Ok(out),
                other => {
                    return Err(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        other.text()
                    ));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = *self.peek() == Token::Sign("!");
        if absent {
            self.take();
        }
        let key = match self.take() {
            Token::Word(word) => word,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        let faults = meta::qualified_faults(&key);
        if !faults.is_empty() {
            return Err(FieldError::invalid("<nil>", key, faults.join("; ")).to_string());
        }
        if absent {
            return Ok(Requirement::new(&key, Operator::DoesNotExist, Vec::new()));
        }
        if matches!(self.peek(), Token::End | Token::Sign(",")) {
            return Ok(Requirement::new(&key, Operator::Exists, Vec::new()));
        }
        let operator = match self.take() {
            Token::Sign("=" | "==") => Operator::Equals,
            Token::Sign("!=") => Operator::NotEquals,
            Token::Sign(">") => Operator::GreaterThan,
            Token::Sign("<") => Operator::LessThan,
            Token::Word(w) if w == "in" => Operator::In,
            Token::Word(w) if w == "notin" => Operator::NotIn,
            other => {
                return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text()));
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact()?],
        };
        let mut errors = Vec::new();
        for (i, value) in values.iter().enumerate() {
            if matches!(operator, Operator::GreaterThan | Operator::LessThan) && value.parse::<i64>().is_err()
            {
                let text = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(FieldError::invalid(format!("values[{i}]"), value.as_str(), text));
            }
            let faults = meta::label_value_faults(value);
            if !faults.is_empty() {
                errors.push(FieldError::invalid(
                    format!("values[{i}][{key}]"),
                    value.as_str(),
                    faults.join("; "),
                ));
            }
        }
        if !errors.is_empty() {
            return Err(aggregate(&errors));
        }
        Ok(Requirement::new(&key, operator, values))
    }

    fn exact(&mut self) -> Result<String, String> {
        match self.peek().clone() {
            Token::End | Token::Sign(",") => Ok(String::new()),
            Token::Word(word) => {
                self.take();
                Ok(word)
            }
            Token::Sign(other) => Err(format!("found '{other}', expected: identifier")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        match self.take() {
            Token::Sign("(") => {}
            other => return Err(format!("found '{}' expected: '('", other.text())),
        }
        let mut out = Vec::new();
        loop {
            // A comma or the bracket where a value is due stands for the empty value.
            match self.peek().clone() {
                Token::Word(word) => {
                    self.take();
                    out.push(word);
                }
                Token::Sign("," | ")") => out.push(String::new()),
                other => return Err(format!("found '{}', expected: ',', ')' or identifier", other.text())),
            }
            match self.take() {
                Token::Sign(",") => {}
                Token::Sign(")") => return Ok(out),
                other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn matches(selector: &str, labels: Value) -> bool {
        LabelSelector::parse(selector).unwrap().matches(labels.as_object().unwrap())
    }

    #[test]
    fn each_operator_selects_what_kubernetes_says() {
        let web = || json!({"app": "web", "n": "5", "empty": ""});
        let rows = [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web", true),
            ("app!=web", false),
            ("app=db", false),
            ("other!=web", true),
            ("app in (web, db)", true),
            ("app in (db)", false),
            ("app notin (db)", true),
            ("other notin (db)", true),
            ("app notin (web)", false),
            ("app", true),
            ("!app", false),
            ("! other", true),
            ("other", false),
            ("app,n", true),
            ("app,!n", false),
            ("n>4", true),
            ("n<5", false),
            ("app>4", false),
            ("empty=", true),
            ("empty in ()", true),
            ("empty in (,x)", true),
            ("in in (in)", false),
        ];
        for (selector, want) in rows {
            assert_eq!(matches(selector, web()), want, "{selector}");
        }
    }

    #[test]
    fn a_malformed_selector_says_what_was_found() {
        let rows = [
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a=b,", "found '', expected: identifier after ','"),
            ("=b", "found '=', expected: !, identifier, or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
        ];
        for (selector, text) in rows {
            assert_eq!(LabelSelector::parse(selector).unwrap_err().to_string(), text, "{selector}");
        }
        assert!(LabelSelector::parse("a=b/c").is_err());
        assert!(LabelSelector::parse("-a").is_err());
    }

    #[test]
    fn an_absent_selector_selects_nothing_and_an_empty_one_everything() {
        let none = Map::new();
        assert!(!LabelSelector::from_object(&Value::Null).unwrap().matches(&none));
        assert!(LabelSelector::from_object(&json!({})).unwrap().matches(&none));
        assert!(!LabelSelector::from_map(&Value::Null).matches(&none));
    }

    #[test]
    fn a_selector_object_prints_as_a_query() {
        let object = json!({
            "matchLabels": {"b": "2", "a": "1"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "d", "operator": "Exists"}],
        });
        assert_eq!(LabelSelector::from_object(&object).unwrap().to_string(), "a=1,b=2,c in (x,y),d");
    }

    #[test]
    fn a_bad_selector_object_names_the_field() {
        let object =
            json!({"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "b", "operator": "Like"}]});
        let texts: Vec<String> = validate(&object, "spec.selector").iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                "spec.selector.matchExpressions[1].operator: Invalid value: \"Like\": not a valid selector operator",
            ]
        );
    }

    fn requirement() -> impl Strategy<Value = String> {
        let key = "[a-z]([a-z0-9.-]{0,4}[a-z0-9])?";
        let value = "[A-Za-z0-9]{0,3}";
        prop_oneof![
            (key, value).prop_map(|(k, v)| format!("{k}={v}")),
            (key, value).prop_map(|(k, v)| format!("{k}!={v}")),
            (key, proptest::collection::vec(value, 1..4))
                .prop_map(|(k, v)| format!("{k} in ({})", v.join(", "))),
            (key, proptest::collection::vec(value, 1..4))
                .prop_map(|(k, v)| format!("{k} notin ({})", v.join(","))),
            key.prop_map(|k| k.to_string()),
            key.prop_map(|k| format!("!{k}")),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_printed_parses_to_the_same_selector(parts in proptest::collection::vec(requirement(), 0..5)) {
            let selector = LabelSelector::parse(&parts.join(",")).unwrap();
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = LabelSelector::parse(&text);
        }
    }
}
