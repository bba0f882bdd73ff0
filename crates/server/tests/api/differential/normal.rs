//! What two servers can't agree on - times, identifiers, versions, what they hand out by dice - is given the same name on both
//! sides. What is handed out gets a name by its order in the life of the object that holds it, for as long as it is held, so that
//! keeping and sharing still show.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::Value;

use super::step::{Doing, Outcome, Step};
use super::world::Shape;

/// The names that one server's objects have been given.
pub struct Memory {
    shape: Shape,
    ranges: Vec<IpNet>,
    objects: HashMap<String, Held>,
}

/// What has been drawn for one object.
#[derive(Default)]
struct Held {
    names: HashMap<String, String>,
    /// What has been met since the object was last seen whole.
    met: HashSet<String>,
    given: HashMap<&'static str, usize>,
}

impl Memory {
    pub fn new(shape: Shape) -> Memory {
        let ranges = shape.cidrs.iter().map(|cidr| cidr.parse().expect("a range")).collect();
        Memory { shape, ranges, objects: HashMap::new() }
    }

    /// What an object holds means nothing once it is gone.
    pub fn forget(&mut self, object: &str) {
        self.objects.remove(object);
    }

    /// The name of an address or a port that the server has drawn; none for what requests name.
    fn name(&mut self, object: &str, word: &str) -> Option<String> {
        let drawn = if let Ok(port) = word.parse::<u16>() {
            // Requests name ports of the lower band alone, servers draw from the upper one first (KEP-3668).
            let first = if self.shape.by_name { 30086 } else { self.shape.ports.0 };
            (first..=self.shape.ports.1).contains(&port).then_some("port")
        } else {
            let address: IpAddr = word.parse().ok()?;
            let range = self.ranges.iter().find(|range| range.contains(&address))?;
            let offset = match (address, range.network()) {
                (IpAddr::V4(ip), IpAddr::V4(base)) => u128::from(u32::from(ip) - u32::from(base)),
                (IpAddr::V6(ip), IpAddr::V6(base)) => u128::from(ip) - u128::from(base),
                _ => return None,
            };
            // The same of addresses (KEP-3070); the first is the server's own, the last is nobody's.
            let last = (1_u128 << (range.max_prefix_len() - range.prefix_len())) - 1;
            let first = if self.shape.by_name { 256 } else { 2 };
            (offset >= first && offset < last).then_some(if address.is_ipv4() { "ipv4" } else { "ipv6" })
        }?;
        let held = self.objects.entry(object.to_owned()).or_default();
        held.met.insert(word.to_owned());
        if let Some(name) = held.names.get(word) {
            return Some(name.clone());
        }
        // No name comes back: the dice may draw on one side what was given back before, and something new on the other.
        let given = held.given.entry(drawn).or_default();
        *given += 1;
        let name = format!("<{drawn} {given}>");
        held.names.insert(word.to_owned(), name.clone());
        Some(name)
    }

    /// What an object holds will be seen whole.
    fn begin(&mut self, object: &str) {
        if let Some(held) = self.objects.get_mut(object) {
            held.met.clear();
        }
    }

    /// It has been seen: what wasn't there is held no longer.
    fn end(&mut self, object: &str) {
        if let Some(held) = self.objects.get_mut(object) {
            let met = std::mem::take(&mut held.met);
            held.names.retain(|word, _| met.contains(word));
        }
    }
}

/// Renames what differs by nature in an answer.
pub fn normal(step: &Step, outcome: &mut Outcome, memory: &mut Memory) {
    let own = step.key();
    if outcome.body["columnDefinitions"].is_array() {
        table(&mut outcome.body);
    }
    let generated = match &step.doing {
        Doing::Create(body) if body["metadata"]["name"].as_str().is_none_or(str::is_empty) => {
            body["metadata"]["generateName"].as_str().filter(|base| !base.is_empty()).map(str::to_owned)
        }
        _ => None,
    };
    if let Some(base) = generated {
        unnamed(&mut outcome.body, &base);
    }
    // Roles that servers make themselves are compared elsewhere.
    if step.kind.prefix.contains("rbac") && !step.kind.namespaced {
        let theirs = |item: &Value| {
            let meta =
                if item["object"].is_object() { &item["object"]["metadata"] } else { &item["metadata"] };
            step.kind.is_given(meta["name"].as_str().unwrap_or_default())
        };
        if let Some(Value::Object(meta)) = outcome.body.get_mut("metadata") {
            meta.shift_remove("remainingItemCount");
        }
        for list in ["items", "rows"] {
            if let Some(Value::Array(items)) = outcome.body.get_mut(list) {
                items.retain(|item| !theirs(item));
            }
        }
    }
    if outcome.code == 201 && matches!(step.doing, Doing::Create(_) | Doing::Update { .. }) {
        // Its life begins.
        memory.forget(&own);
    }
    walk(&mut outcome.body, "", step, &own, memory);
    for list in ["items", "rows"] {
        if let Some(Value::Array(items)) = outcome.body.get_mut(list) {
            shuffled(items);
        }
    }
    for warning in &mut outcome.warnings {
        *warning = text(warning, &own, memory);
    }
    let gone = matches!(step.doing, Doing::Delete(_)) && matches!(outcome.code, 200 | 404);
    if gone && outcome.body["metadata"]["deletionTimestamp"].is_null() {
        memory.objects.remove(&own);
    }
}

/// Objects of a list that have drawn their names stand in the order of the dice: they are put into one of their own.
fn shuffled(items: &mut [Value]) {
    let drawn = |item: &Value| {
        let meta = if item["object"].is_object() { &item["object"]["metadata"] } else { &item["metadata"] };
        let name = meta["name"].as_str().unwrap_or_default();
        ["x", "x-"].iter().any(|base| {
            name.len() == base.len() + 5
                && name
                    .strip_prefix(base)
                    .is_some_and(|end| end.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b)))
        })
    };
    let places: Vec<usize> = (0..items.len()).filter(|place| drawn(&items[*place])).collect();
    let mut taken: Vec<Value> = places.iter().map(|place| items[*place].take()).collect();
    for item in &mut taken {
        unnamed(item, "x");
        unnamed(item, "x-");
    }
    taken.sort_by_key(Value::to_string);
    for (place, item) in places.into_iter().zip(taken) {
        items[place] = item;
    }
}

/// Names that were made from a base, without what the dice made of it. In a text, names stand between quotation marks.
fn unnamed(value: &mut Value, base: &str) {
    match value {
        Value::String(text) => {
            let mut out = String::new();
            for (index, part) in text.split('"').enumerate() {
                if index > 0 {
                    out.push('"');
                }
                let made = part.len() == base.len() + 5 && part.starts_with(base);
                out += if made { base } else { part };
                out += if made { "<random>" } else { "" };
            }
            *text = out;
        }
        Value::Array(items) => items.iter_mut().for_each(|item| unnamed(item, base)),
        Value::Object(map) => map.values_mut().for_each(|value| unnamed(value, base)),
        _ => {}
    }
}

/// The texts that explain columns are ours, and ages are of the moment.
fn table(body: &mut Value) {
    let ages: Vec<usize> = body["columnDefinitions"]
        .as_array_mut()
        .into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, column)| {
            column.as_object_mut()?.shift_remove("description");
            matches!(column["name"].as_str(), Some("Age" | "Last Seen" | "First Seen")).then_some(index)
        })
        .collect();
    for row in body["rows"].as_array_mut().into_iter().flatten() {
        for age in &ages {
            if row["cells"][*age].is_string() {
                row["cells"][*age] = "<age>".into();
            }
        }
    }
}

fn walk(value: &mut Value, key: &str, step: &Step, object: &str, memory: &mut Memory) {
    match value {
        Value::Object(map) => {
            // In a list each item has a life of its own.
            let mut inner = object.to_owned();
            if let Some(meta) = map.get("metadata").and_then(Value::as_object)
                && let Some(name) = meta.get("name").and_then(Value::as_str)
            {
                let namespace = meta.get("namespace").and_then(Value::as_str).unwrap_or_default();
                inner = format!("{}/{namespace}/{name}", step.kind.plural);
            }
            // Who owns which field is compared by tests of its own.
            map.shift_remove("managedFields");
            // A row of a table has the metadata alone.
            let whole = map.contains_key("metadata") && map.contains_key("spec");
            if whole {
                memory.begin(&inner);
            }
            for (key, value) in map {
                walk(value, key, step, &inner, memory);
            }
            if whole {
                memory.end(&inner);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| walk(item, key, step, object, memory)),
        Value::String(word) => {
            *word = match key {
                "uid" if is_uid(word) => "<uid>".into(),
                "resourceVersion" if word.parse::<u64>().is_ok_and(|version| version > 0) => {
                    "<version>".into()
                }
                "continue" => "<continue>".into(),
                _ => text(word, object, memory),
            };
        }
        Value::Number(number) => {
            if matches!(key, "nodePort" | "healthCheckNodePort")
                && let Some(name) = memory.name(object, &number.to_string())
            {
                *value = name.into();
            }
        }
        _ => {}
    }
}

/// Identifiers that requests name begin with zeros.
fn is_uid(word: &str) -> bool {
    word.len() == 36
        && !word.starts_with("00000000")
        && word.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

fn text(words: &str, object: &str, memory: &mut Memory) -> String {
    let part_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-');
    let mut out = String::new();
    let mut rest = words;
    while !rest.is_empty() {
        let end = rest.find(|c| !part_of_word(c)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        let bare = word.trim_end_matches([':', '.']);
        match renamed(bare, &out, object, memory) {
            Some(name) => {
                out += &name;
                out += &word[bare.len()..];
            }
            None => out += word,
        }
        let gap = behind.find(part_of_word).unwrap_or(behind.len());
        out += &behind[..gap];
        rest = &behind[gap..];
    }
    out
}

fn renamed(word: &str, before: &str, object: &str, memory: &mut Memory) -> Option<String> {
    if word.is_empty() {
        return None;
    }
    if let Some(name) = memory.name(object, word) {
        return Some(name);
    }
    // The volume that every pod gets.
    if let Some(made) = word.strip_prefix("kube-api-access-").filter(|made| made.len() == 5) {
        let _ = made;
        return Some("kube-api-access-<random>".into());
    }
    if is_uid(word) {
        return Some("<uid>".into());
    }
    if before.ends_with("ResourceVersion in object meta: ")
        || before.ends_with("current: ")
        || before.ends_with("ResourceVersion in record (")
    {
        return Some("<version>".into());
    }
    // Go shows a map so.
    if let Some(name) = word.strip_prefix("nodePort:").and_then(|port| memory.name(object, port)) {
        return Some(format!("nodePort:{name}"));
    }
    // A column shows `port:nodePort/protocol`.
    if let Some((port, node)) = word.split_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && let Some(name) = memory.name(object, node)
    {
        return Some(format!("{port}:{name}"));
    }
    let time: Timestamp = word.parse().ok()?;
    let age = Timestamp::now().duration_since(time);
    (age.unsigned_abs() < std::time::Duration::from_secs(3600)).then(|| "<now>".into())
}
