//! Who owns which field of an object: what `metadata.managedFields` says, and what server-side apply makes of it.
//!
//! The meaning is that of kube-apiserver's field manager (apimachinery `util/managedfields`) over structured-merge-diff v6:
//! an update takes the fields that it changes; an apply owns what its configuration names, takes away what it no longer
//! names and nobody else owns, and conflicts with whoever owns a field that it would change.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::fieldset::{Element, Set, path_text};
use crate::kind::Kind;
use crate::schema::{TypeRef, go};
use crate::status::Status;
use crate::{meta, walk};

mod entries;
mod typed;

use entries::{Entries, Entry};
use typed::Place;

/// How many who only update are remembered one by one (`DefaultMaxUpdateManagers`).
const UPDATERS: usize = 10;
/// Who applied before any owner was known.
const BEFORE: &str = "before-first-apply";
/// Those who updated long ago, together.
const ANCIENT: &str = "ancient-changes";
/// What `kubectl apply` without `--server-side` keeps of its configuration.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Who writes, by which door.
#[derive(Clone, Copy, Debug)]
pub struct Author<'a> {
    /// `fieldManager`, or the first part of the client's user agent.
    pub manager: &'a str,
    /// `status`, `scale`, …; empty for the object itself.
    pub subresource: &'a str,
    /// Now, as it is written.
    pub now: &'a str,
}

/// The type of an object: its kind's, or that of a custom resource.
pub fn type_of(kind: &Kind) -> Option<TypeRef> {
    kind.schema()
}

/// The fields that a write through this door can't change (`GetResetFields` of the strategies in pkg/registry).
fn reset(kind: &Kind, subresource: &str) -> Set {
    let mut set = Set::default();
    match subresource {
        "" if kind.has("status") => set.insert(&["status"]),
        "status" => {
            set.insert(&["spec"]);
            if kind.custom().is_some() {
                set.insert(&["metadata"]);
            }
            match kind.kind() {
                "Pod" => {
                    set.insert(&["metadata", "deletionTimestamp"]);
                    set.insert(&["metadata", "ownerReferences"]);
                }
                "Deployment" => set.insert(&["metadata", "labels"]),
                "ServiceCIDR"
                | "VolumeAttachment"
                | "FlowSchema"
                | "PriorityLevelConfiguration"
                | "ValidatingAdmissionPolicy" => set.insert(&["metadata"]),
                _ => {}
            }
        }
        _ => {}
    }
    set
}

/// The fields that nobody owns.
fn nobodys() -> Set {
    let mut set = Set::default();
    for name in ["apiVersion", "kind", "metadata"] {
        set.insert(&[name]);
    }
    for name in [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ] {
        set.insert(&["metadata", name]);
    }
    set
}

/// An object as its type has it, without its `managedFields`.
fn bare(object: &Value, of: &TypeRef) -> Value {
    let mut object = object.clone();
    walk::remove(&mut object, "metadata.managedFields");
    match &object {
        Value::Object(map) => Value::Object(go::typed_fields(map, of.get())),
        _ => go::empty(of.get()),
    }
}

/// Writes into `new`, the object as an update or a creation would have it, who owns its fields now. `old` is the stored
/// object, null if there is none.
pub fn update(new: &mut Value, old: &Value, kind: &Kind, of: &TypeRef, author: Author<'_>) {
    let entries = if author.subresource.is_empty() {
        match walk::at(new, "metadata.managedFields").and_then(Value::as_array) {
            Some(list) if list.is_empty() || (list.len() == 1 && list[0] == json!({})) => Entries::default(),
            // What can't be read, or says nothing, is what a client without a notion of it sends: nothing changes.
            Some(list) => Entries::read(list)
                .filter(|entries| !entries.0.is_empty())
                .unwrap_or_else(|| Entries::stored(old)),
            None => Entries::stored(old),
        }
    } else {
        Entries::stored(old)
    };
    walk::remove(new, "metadata.managedFields");
    // An object whose owners were never counted, or were reset, stays so until somebody applies.
    if entries.0.is_empty() && !meta::uid(old).is_empty() {
        return;
    }
    let entries = updated(entries, &bare(old, of), &bare(new, of), kind, of, author);
    entries.write(new);
}

/// Who owns what after an update from `old` to `new`.
fn updated(
    mut entries: Entries,
    old: &Value,
    new: &Value,
    kind: &Kind,
    of: &TypeRef,
    author: Author<'_>,
) -> Entries {
    let place = Place::root(of.get());
    let reset = reset(kind, author.subresource);
    let mut changed = typed::compare(place, old, new);
    changed.filter(&reset);
    let taken = changed.modified.union(&changed.added);
    for entry in entries.0.values_mut() {
        entry.fields = entry.fields.difference(&taken).difference(&changed.removed);
    }
    entries.0.retain(|_, entry| !entry.fields.is_empty());
    let mine = taken.without(&reset).difference(&nobodys());
    if !mine.is_empty() {
        let entry = Entry::new(author.manager, "Update", &kind.api_version(), author.subresource);
        let entry = entries.0.entry(entry.identity()).or_insert(entry);
        entry.fields = entry.fields.union(&mine);
        entry.api_version = kind.api_version();
        entry.time = author.now.into();
    }
    entries.cap();
    entries
}

/// What an apply makes of `old` (null if there is none): the merged object with its new owners, or the conflict.
pub fn apply(
    config: &Value,
    old: &Value,
    kind: &Kind,
    of: &TypeRef,
    author: Author<'_>,
    force: bool,
) -> Result<Value, Status> {
    if walk::at(config, "metadata.managedFields").is_some() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let place = Place::root(of.get());
    typed::check(place, config).map_err(|why| untypable(kind, config, &why))?;
    let mut entries = Entries::stored(old);
    let live = match old {
        Value::Null => {
            let mut empty = bare(old, of);
            walk::set(&mut empty, "apiVersion", kind.api_version());
            walk::set(&mut empty, "kind", kind.kind());
            empty
        }
        _ => bare(old, of),
    };
    if entries.0.is_empty() {
        let before = Author { manager: BEFORE, ..author };
        entries = updated(entries, &bare(&Value::Null, of), &live, kind, of, before);
    }
    let attempt = |force| applied(config, &live, entries.clone(), kind, of, author, force);
    let outcome = match attempt(force) {
        Err(Refused::Conflicts(conflicts)) if author.manager == "kubectl" => {
            // What it applied itself by the older way, and nobody changed since, is no conflict.
            let Some(own) = last_applied(&live, kind, of) else { return Err(conflict(&conflicts)) };
            let rest: Vec<_> = conflicts.into_iter().filter(|(_, path)| !own.has(path)).collect();
            if rest.is_empty() { attempt(true) } else { Err(Refused::Conflicts(rest)) }
        }
        outcome => outcome,
    };
    let (mut merged, entries) = outcome.map_err(|refused| match refused {
        Refused::Conflicts(conflicts) => conflict(&conflicts),
        Refused::Malformed(why) => Status::internal(format!("failed to merge config: {why}")),
    })?;
    if author.manager == "kubectl"
        && meta::annotation(&merged, LAST_APPLIED).is_some_and(|text| !text.is_empty())
    {
        let mut said = config.clone();
        if let Some(annotations) =
            walk::at_mut(&mut said, "metadata.annotations").and_then(Value::as_object_mut)
        {
            annotations.shift_remove(LAST_APPLIED);
        }
        if let Some(annotations) = walk::map_mut(&mut merged, "metadata.annotations") {
            annotations.insert(LAST_APPLIED.into(), format!("{}\n", sorted(&said)).into());
        }
    }
    entries.write(&mut merged);
    Ok(merged)
}

/// With the keys of each object in order, as Go writes maps.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let ordered: BTreeMap<&String, &Value> = map.iter().collect();
            Value::Object(ordered.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// A configuration that doesn't fit its type.
fn untypable(kind: &Kind, config: &Value, why: &str) -> Status {
    let (namespace, name) = (meta::namespace(config), meta::name(config));
    let what = group_version_kind(&kind.api_version(), kind.kind());
    Status::plain(500, format!("failed to create typed patch object ({namespace}/{name}; {what}): {why}"))
}

/// As Go's `GroupVersionKind` is written: `apps/v1, Kind=Deployment`, `/v1, Kind=Pod`.
pub fn group_version_kind(api_version: &str, kind: &str) -> String {
    let slash = if api_version.contains('/') { "" } else { "/" };
    format!("{slash}{api_version}, Kind={kind}")
}

enum Refused {
    Conflicts(Vec<(String, Vec<Element>)>),
    Malformed(String),
}

fn applied(
    config: &Value,
    live: &Value,
    mut entries: Entries,
    kind: &Kind,
    of: &TypeRef,
    author: Author<'_>,
    force: bool,
) -> Result<(Value, Entries), Refused> {
    let place = Place::root(of.get());
    let reset = reset(kind, author.subresource);
    let mut merged = typed::merge(place, live, config).map_err(Refused::Malformed)?;
    let version = kind.api_version();
    let mut entry = Entry::new(author.manager, "Apply", &version, author.subresource);
    let identity = entry.identity();
    let last = entries.0.get(&identity).map(|entry| entry.fields.clone());
    entry.fields = typed::fields(place, config).without(&reset);
    entry.time = entries.0.get(&identity).map(|entry| entry.time.clone()).unwrap_or_default();
    entries.0.insert(identity.clone(), entry);
    if let Some(last) = last.filter(|last| !last.is_empty()) {
        merged = prune(place, &merged, &entries, &last);
    }
    let mut changed = typed::compare(place, live, &merged);
    changed.filter(&reset);
    let taken = changed.modified.union(&changed.added);
    let others = || entries.0.iter().filter(|(other, _)| **other != identity);
    if !force {
        let conflicts: Vec<_> = others()
            .flat_map(|(_, entry)| {
                let paths = entry.fields.intersection(&taken).paths();
                paths.into_iter().map(|path| (entry.describe(), path))
            })
            .collect();
        if !conflicts.is_empty() {
            return Err(Refused::Conflicts(conflicts));
        }
    }
    let mut result = Entries::default();
    for (other, entry) in &entries.0 {
        let mut entry = entry.clone();
        if *other != identity {
            entry.fields = entry.fields.difference(&taken).difference(&changed.removed);
        } else {
            entry.fields = entry.fields.difference(&nobodys());
        }
        if !entry.fields.is_empty() {
            result.0.insert(other.clone(), entry);
        }
    }
    // An apply that changes nothing of the object keeps its time; one that is new then has none.
    if merged != *live
        && let Some(entry) = result.0.get_mut(&identity)
    {
        entry.time = author.now.into();
    }
    Ok((merged, result))
}

/// Takes away what was applied last time, isn't now, and nobody else owns.
fn prune(place: Place<'_>, merged: &Value, entries: &Entries, last: &Set) -> Value {
    let named = |set: &Set| typed::named_too(place, set);
    let pruned = typed::remove(place, merged, &named(last));
    // What others own, or this one still does, comes back.
    let owned = entries.0.values().fold(Set::default(), |all, entry| all.union(&entry.fields));
    let all = named(&typed::fields(place, merged));
    let kept = named(&typed::fields(place, &pruned)).union(&named(&owned));
    let pruned = typed::remove(place, merged, &all.difference(&kept));
    // And so does what this one never owned.
    let gone = all.difference(&named(&typed::fields(place, &pruned))).intersection(&named(last));
    typed::remove(place, merged, &gone)
}

/// The fields of the configuration that the older `kubectl apply` wrote down, as far as they are still as it wrote them.
fn last_applied(live: &Value, kind: &Kind, of: &TypeRef) -> Option<Set> {
    let text = meta::annotation(live, LAST_APPLIED).filter(|text| !text.is_empty())?;
    let said: Value = serde_json::from_str(text).ok()?;
    if walk::text(&said, "apiVersion") != kind.api_version() {
        return None;
    }
    let place = Place::root(of.get());
    typed::check(place, &said).ok()?;
    let changed = typed::compare(place, &said, live);
    let fields = typed::fields(place, &said);
    Some(fields.difference(&changed.modified).difference(&changed.added).difference(&changed.removed))
}

/// The answer to an apply that conflicts (`NewConflictError`).
fn conflict(conflicts: &[(String, Vec<Element>)]) -> Status {
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|(who, path)| {
            json!({"reason": "FieldManagerConflict", "message": format!("conflict with {who}"), "field": path_text(path)})
        })
        .collect();
    let message = match conflicts {
        [(who, path)] => format!("Apply failed with 1 conflict: conflict with {who}: {}", path_text(path)),
        _ => {
            let mut by: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for (who, path) in conflicts {
                by.entry(who).or_default().push(format!("- {}", path_text(path)));
            }
            let lines: Vec<String> = by
                .into_iter()
                .map(|(who, paths)| format!("conflicts with {who}:\n{}", paths.join("\n")))
                .collect();
            format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
        }
    };
    let mut details = Map::new();
    details.insert("causes".into(), causes.into());
    Status { code: 409, reason: "Conflict", details, ..Status::bad_request(message) }
}

/// Keeps the times of the stored entries if nothing else has changed: a write that changes nothing is none.
pub fn keep_times(new: &mut Value, old: &Value) {
    let (mine, theirs) =
        (walk::list(new, "metadata.managedFields"), walk::list(old, "metadata.managedFields"));
    let timeless = |entry: &Value| {
        let mut entry = entry.clone();
        walk::remove(&mut entry, "time");
        entry
    };
    if mine == theirs
        || mine.len() != theirs.len()
        || !mine.iter().map(timeless).eq(theirs.iter().map(timeless))
    {
        return;
    }
    let mut kept = new.clone();
    walk::set(&mut kept, "metadata.managedFields", theirs.to_vec());
    if kept == *old {
        *new = kept;
    }
}

#[cfg(test)]
mod tests;
