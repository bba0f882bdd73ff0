//! One object of each of the kinds that aren't drawn: made, shown, and refused when a field is spoilt.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use super::pointer;
use super::step::{Outcome, call};
use super::world::{World, compare};

const JSON: &str = "application/json";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// The objects, and the paths of their collections.
fn rows() -> Vec<(String, Value)> {
    let rows: Vec<Value> = serde_json::from_str(include_str!("../kinds.json")).expect("a list");
    let split = |row: &Value| {
        let path = row["path"].as_str().unwrap_or_default().replace("/default/", "/one/");
        (
            path,
            serde_json::from_str(&row["object"].to_string().replace("\"default\"", "\"one\""))
                .expect("an object"),
        )
    };
    rows.iter().map(split).collect()
}

/// The places of all values within an object, but for those that say what it is.
fn places(value: &Value, at: &str, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let place = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                if at.is_empty() && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                    continue;
                }
                out.insert(place.clone());
                places(value, &place, out);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                places(value, &format!("{at}/{index}"), out);
            }
        }
        _ => {}
    }
}

/// The object with one field taken away, emptied or spoilt; what was done, and the result.
pub fn spoilt(object: &Value) -> Vec<(String, Value)> {
    let mut all = BTreeSet::new();
    places(object, "", &mut all);
    let mut out = Vec::new();
    for place in all {
        let mut less = object.clone();
        pointer::remove(&mut less, &place);
        out.push((format!("without {place}"), less));
        let worse: &[Value] = match object.pointer(&place) {
            Some(Value::String(_)) => &[json!(""), json!("Not Valid!")],
            Some(Value::Number(_)) => &[json!(-1), json!(1_000_000)],
            _ => &[],
        };
        for value in worse {
            let mut spoilt = object.clone();
            pointer::set(&mut spoilt, &place, value.clone());
            out.push((format!("{place} = {value}"), spoilt));
        }
    }
    out
}

/// The groups and kinds of which every spoilt object is tried. The others are kept as data: they are taken as they are.
const HELD: [&str; 10] = [
    "/apps/",
    "/batch/",
    "/autoscaling/",
    "/policy/",
    "/networking.k8s.io/",
    "/rbac.authorization.k8s.io/",
    "/scheduling.k8s.io/",
    "/node.k8s.io/",
    "/resourcequotas",
    "/limitranges",
];

/// Where ours differs on purpose, and why.
const ON_PURPOSE: [(&str, &str); 7] = [
    ("statefulsets x /spec/template/metadata/labels/app", "a cause is named once"),
    ("statefulsets x without /spec/template/metadata/labels/app", "an empty map is the same as none"),
    ("daemonsets x without /spec/template/metadata/labels/app", "an empty map is the same as none"),
    ("daemonsets/x as a table", "the metadata in a row is the object's own"),
    ("ipaddresses/192.0.2.7 as a table", "each cell has a column"),
    ("certificatesigningrequests", "users have no UID"),
    ("apiservices/v1.widgets.example", "nobody looks for what is behind an APIService"),
];

/// What two servers can't agree on gets one name.
pub fn normal(outcome: &mut Outcome) {
    let row = &outcome.body["rows"][0]["object"]["metadata"]["uid"];
    let uid = outcome.body["metadata"]["uid"].as_str().or(row.as_str()).unwrap_or("<none>").to_owned();
    let webhooks = |warning: &String| !warning.contains("stored here and never called");
    outcome.warnings.retain(webhooks);
    fn walk(value: &mut Value, uid: &str) {
        match value {
            Value::Object(map) => {
                for key in ["managedFields", "resourceVersion", "selfLink", "description"] {
                    map.shift_remove(key);
                }
                // Nobody here lets go of a volume, so nobody holds one (docs/reference/differences.md).
                let holds = |held: &Value| held.as_str().is_some_and(|held| held.ends_with("-protection"));
                if map.get("finalizers").and_then(Value::as_array).is_some_and(|all| all.iter().all(holds)) {
                    map.shift_remove("finalizers");
                }
                for (key, value) in map {
                    let time = key.ends_with("Timestamp") || key.ends_with("Time");
                    if time && value.is_string() {
                        *value = "<time>".into();
                    }
                    walk(value, uid);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| walk(item, uid)),
            Value::String(text) => {
                if text.contains(uid) {
                    *text = text.replace(uid, "<uid>");
                }
                // Ages and times in cells.
                if text.parse::<jiff::Timestamp>().is_ok()
                    || text.strip_suffix('s').is_some_and(|n| n.parse::<u32>().is_ok())
                {
                    *text = "<time>".into();
                }
            }
            _ => {}
        }
    }
    walk(&mut outcome.body, &uid);
}

async fn ask(world: &World, method: Method, path: &str, accept: &str, body: &Value) -> Vec<String> {
    let (mut real, mut ours) = tokio::join!(
        call(&world.real, method.clone(), path, JSON, accept, body),
        call(&world.ours, method, path, JSON, accept, body)
    );
    normal(&mut real);
    normal(&mut ours);
    let whole =
        |outcome: &Outcome| json!({"code": outcome.code, "warnings": outcome.warnings, "body": outcome.body});
    let mut found = Vec::new();
    compare("", &whole(&real), &whole(&ours), &mut found);
    let message = found.iter().find(|d| d.place == ".body.message").cloned();
    let shown = message.map_or_else(|| found.into_iter().take(4).collect(), |message| vec![message]);
    shown.iter().map(|d| format!("{}\n      real {}\n      ours {}", d.place, d.real, d.ours)).collect()
}

/// Asks about every object; gives what differs, and how much was asked.
pub async fn differences(world: &World) -> (Vec<String>, usize) {
    let (mut out, mut asked) = (Vec::new(), 0);
    let mut note = |what: String, found: Vec<String>| {
        asked += 1;
        let meant = ON_PURPOSE.iter().any(|(part, _)| what.contains(part));
        if !found.is_empty() && !meant {
            out.push(format!("{what}\n    {}", found.join("\n    ")));
        }
    };
    // Definitions have tests of their own.
    for (path, object) in rows().into_iter().filter(|(path, _)| !path.contains("apiextensions")) {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let held = HELD.iter().any(|part| path.contains(part));
        for (what, object) in spoilt(&object).into_iter().filter(|_| held) {
            let found = ask(world, Method::POST, &format!("{path}?dryRun=All"), JSON, &object).await;
            note(format!("{path} {name} {what}"), found);
        }
        let found = ask(world, Method::POST, &path, JSON, &object).await;
        note(format!("{path} {name} made"), found);
        let one = format!("{path}/{name}");
        let found = ask(world, Method::GET, &one, TABLE, &Value::Null).await;
        note(format!("{one} as a table"), found);
        let change = json!({"metadata": {"labels": {"changed": "yes"}}});
        let patch = call(&world.ours, Method::PATCH, &one, "application/merge-patch+json", JSON, &change);
        let same = call(&world.real, Method::PATCH, &one, "application/merge-patch+json", JSON, &change);
        let (mut ours, mut real) = tokio::join!(patch, same);
        normal(&mut ours);
        normal(&mut real);
        let mut found = Vec::new();
        compare("", &real.body, &ours.body, &mut found);
        let found = found.iter().map(|d| format!("{} real {} ours {}", d.place, d.real, d.ours)).collect();
        note(format!("{one} labelled"), found);
    }
    (out, asked)
}
