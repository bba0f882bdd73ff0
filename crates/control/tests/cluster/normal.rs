//! What two clusters can't agree on - names, identifiers, times, hashes - gets the same name in both.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Replacements of texts, the longest first.
#[derive(Default)]
pub struct Names(Vec<(String, String)>);

impl Names {
    /// Learns the names that the servers and controllers have made up; what was learnt before is not forgotten, since events
    /// speak of what is gone.
    pub fn learn(&mut self, objects: &[Value]) {
        let mut names = Vec::new();
        for object in objects {
            let meta = &object["metadata"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            // Hashes by what they are hashes of: the revision of a template.
            let revision = match object["kind"].as_str() {
                Some("ReplicaSet") => text(&meta["annotations"]["deployment.kubernetes.io/revision"]),
                Some("ControllerRevision") => object["revision"].to_string(),
                _ => String::new(),
            };
            for key in ["pod-template-hash", "controller-revision-hash", "controller.kubernetes.io/hash"] {
                let hash = text(&meta["labels"][key]);
                if !hash.is_empty() && !revision.is_empty() {
                    let whole = text(&meta["name"]);
                    names.push((
                        hash.rsplit('-').next().unwrap_or_default().to_owned(),
                        format!("<hash {revision}>"),
                    ));
                    if object["kind"] == "ControllerRevision" {
                        let hash = whole.rsplit('-').next().unwrap_or_default().to_owned();
                        names.push((hash, format!("<hash {revision}>")));
                    }
                }
            }
            let (name, base) = (text(&meta["name"]), text(&meta["generateName"]));
            // A name may be of another's making although a base is given: a StatefulSet's pods.
            if !base.is_empty() && name.strip_prefix(&base).is_some_and(is_random) {
                names.push((name, format!("{base}<random>")));
            }
            let uid = text(&meta["uid"]);
            if !uid.is_empty() {
                // Whose it is shows where it is referred to.
                let name = text(&meta["name"]);
                let name =
                    name.strip_prefix(&base).filter(|end| is_random(end)).map_or(name.as_str(), |_| &base);
                names.push((uid, format!("<uid of {} {name}>", text(&object["kind"]))));
            }
        }
        let known: HashSet<&String> = names.iter().map(|(text, _)| text).collect();
        self.0.retain(|(text, _)| !known.contains(text));
        self.0.extend(names);
        self.0.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        self.0.dedup();
    }

    fn renamed(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (from, to) in &self.0 {
            if out.contains(from.as_str()) {
                out = out.replace(from, to);
            }
        }
        // Names that were seen in a text only: what they end with is the dice's.
        let words: Vec<String> = out.split(' ').map(random_end).collect();
        addresses(&words.join(" "))
    }

    /// The object with these names, and without what is the server's own.
    pub fn normal(&self, object: &Value) -> Value {
        let mut object = object.clone();
        self.walk(&mut object);
        object
    }

    fn walk(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for own in ["managedFields", "resourceVersion", "selfLink"] {
                    map.shift_remove(own);
                }
                // Go writes some fields that aren't there as null.
                map.retain(|_, value| !value.is_null());
                let renamed: Map<String, Value> = std::mem::take(map)
                    .into_iter()
                    .map(|(key, mut value)| {
                        self.walk(&mut value);
                        if key == "uid" && value.as_str().is_some_and(|text| !text.starts_with("<uid ")) {
                            value = "<uid of what is gone>".into();
                        }
                        (self.renamed(&key), value)
                    })
                    .collect();
                *map = renamed;
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.walk(item)),
            Value::String(text) => {
                *text = if text.parse::<jiff::Timestamp>().is_ok() {
                    "<time>".into()
                } else {
                    self.renamed(text)
                };
            }
            _ => {}
        }
    }
}

/// Whether this is what the dice make of a `generateName`.
fn is_random(end: &str) -> bool {
    end.len() == 5 && end.chars().all(|c| "bcdfghjklmnpqrstvwxz2456789".contains(c))
}

/// A word that ends with five letters of the dice's, without them.
fn random_end(word: &str) -> String {
    let bare = word.trim_end_matches([',', '.', ':', '"']);
    match bare.rsplit_once('-').filter(|(_, end)| is_random(end)) {
        Some((base, _)) => format!("{base}-<random>{}", &word[bare.len()..]),
        None => word.to_owned(),
    }
}

/// Addresses of pods whose names the dice made.
fn addresses(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("10.7.") {
        out += &rest[..at];
        let end =
            rest[at..].find(|c: char| !c.is_ascii_digit() && c != '.').map_or(rest.len(), |end| at + end);
        out += "<ip>";
        rest = &rest[end..];
    }
    out + rest
}
