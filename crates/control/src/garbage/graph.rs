//! Who owns whom, and what is to be done about one object.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PropagationPolicy;
use parking_lot::Mutex;

/// The finalizer of an object that waits until its dependents are gone.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object whose dependents are to stay.
pub(super) const ORPHAN: &str = "orphan";

/// One object, as far as ownership goes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub version: String,
    pub owners: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub going: bool,
}

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// It exists.
    Present,
    /// It exists, but waits only for its dependents to go.
    Waiting,
    /// It does not exist.
    Absent,
}

/// What to do about an object.
#[derive(Clone, Debug)]
#[must_use]
pub(super) enum Decision {
    Nothing,
    Delete(PropagationPolicy),
    /// Forget these owners: others keep the object.
    DropOwners(Vec<String>),
    /// No dependent blocks the object any more.
    ReleaseForeground,
    /// Take these dependents from the object, then let it go.
    Orphan(Vec<Entry>),
    /// Look at the dependents first.
    Wake(Vec<String>),
}

/// Every object that is owned, owns, or could.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<String, Entry>,
    dependents: BTreeMap<String, BTreeSet<String>>,
}

// === impl ===

impl Entry {
    pub fn of(meta: &ObjectMeta, api_version: &str, kind: &str) -> Option<Entry> {
        Some(Entry {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
            version: meta.resource_version.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            going: meta.deletion_timestamp.is_some(),
        })
    }

    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|name| name == finalizer)
    }

    pub fn waits_for_dependents(&self) -> bool {
        self.going && self.has(FOREGROUND)
    }

    fn waits_to_orphan(&self) -> bool {
        self.going && self.has(ORPHAN)
    }
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<Entry> {
        self.state.lock().entries.get(uid).cloned()
    }

    /// The known objects that name this one as an owner.
    pub fn dependents(&self, uid: &str) -> Vec<Entry> {
        let state = self.state.lock();
        let uids = state.dependents.get(uid);
        uids.into_iter().flatten().filter_map(|uid| state.entries.get(uid).cloned()).collect()
    }

    /// Takes in what became of an object; whom to look at.
    pub fn observe(&self, old: Option<Entry>, new: Option<Entry>) -> BTreeSet<String> {
        self.state.lock().observe(old, new)
    }
}

impl State {
    fn observe(&mut self, old: Option<Entry>, new: Option<Entry>) -> BTreeSet<String> {
        let mut wakes = BTreeSet::new();
        let replaced = match (&old, &new) {
            (Some(old), Some(new)) => old.uid != new.uid,
            (Some(_), None) => true,
            _ => false,
        };
        if let Some(old) = old {
            let kept: &[OwnerReference] = new.as_ref().map_or(&[], |new| &new.owners);
            for owner in old.owners.iter().filter(|owner| replaced || !kept.contains(owner)) {
                if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                    dependents.remove(&old.uid);
                    if dependents.is_empty() {
                        self.dependents.remove(&owner.uid);
                    }
                }
                // It may have waited for this one.
                if self.entries.get(&owner.uid).is_some_and(Entry::waits_for_dependents) {
                    wakes.insert(owner.uid.clone());
                }
            }
            if replaced {
                self.entries.remove(&old.uid);
                wakes.extend(self.dependents.get(&old.uid).into_iter().flatten().cloned());
            }
        }
        let Some(new) = new else { return wakes };
        for owner in &new.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(new.uid.clone());
            if self.entries.get(&owner.uid).is_none_or(Entry::waits_for_dependents) {
                wakes.insert(new.uid.clone());
            }
        }
        if new.waits_for_dependents() || new.waits_to_orphan() {
            wakes.insert(new.uid.clone());
        }
        self.entries.insert(new.uid.clone(), new);
        wakes
    }
}

/// Decides about `entry`, whose owners are in these states, in the order of its references.
pub(super) fn decide(entry: &Entry, owners: &[Owner], dependents: &[Entry]) -> Decision {
    if entry.waits_to_orphan() {
        return Decision::Orphan(dependents.to_vec());
    }
    if entry.waits_for_dependents() {
        let blocks = |dependent: &&Entry| {
            let reference = dependent.owners.iter().find(|owner| owner.uid == entry.uid);
            reference.is_some_and(|owner| owner.block_owner_deletion == Some(true))
        };
        if dependents.iter().any(|dependent| blocks(&dependent)) {
            let going = dependents.iter().filter(|dependent| !dependent.going);
            return Decision::Wake(going.map(|dependent| dependent.uid.clone()).collect());
        }
        return Decision::ReleaseForeground;
    }
    if entry.going || owners.is_empty() {
        return Decision::Nothing;
    }
    let lost = |state: &Owner| *state != Owner::Present;
    if !owners.iter().any(lost) {
        return Decision::Nothing;
    }
    if owners.contains(&Owner::Present) {
        let uids = entry.owners.iter().zip(owners).filter(|(_, state)| lost(state));
        return Decision::DropOwners(uids.map(|(owner, _)| owner.uid.clone()).collect());
    }
    // An owner waits for this one, which has dependents of its own: they go before it.
    if owners.contains(&Owner::Waiting) && !dependents.is_empty() {
        return Decision::Delete(PropagationPolicy::Foreground);
    }
    Decision::Delete(if entry.has(ORPHAN) {
        PropagationPolicy::Orphan
    } else if entry.has(FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(uid: &str, owners: &[&str], finalizers: &[&str], going: bool) -> Entry {
        Entry {
            api_version: "v1".into(),
            kind: "Thing".into(),
            namespace: "n".into(),
            name: uid.into(),
            uid: uid.into(),
            version: "1".into(),
            owners: owners
                .iter()
                .map(|owner| OwnerReference {
                    uid: (*owner).into(),
                    block_owner_deletion: Some(true),
                    ..OwnerReference::default()
                })
                .collect(),
            finalizers: finalizers.iter().map(|name| (*name).into()).collect(),
            going,
        }
    }

    fn text(decision: Decision) -> String {
        match decision {
            Decision::Orphan(dependents) => {
                format!("orphan {:?}", dependents.iter().map(|e| e.uid.as_str()).collect::<Vec<_>>())
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn an_object_goes_when_all_of_its_owners_are_gone() {
        use Owner::{Absent, Present, Waiting};
        let child = entry("c", &["a", "b"], &[], false);
        let grandchild = entry("g", &["c"], &[], false);
        for (owners, dependents, expected) in [
            (vec![Present, Present], vec![], "Nothing"),
            (vec![Present, Absent], vec![], "DropOwners([\"b\"])"),
            (vec![Waiting, Present], vec![], "DropOwners([\"a\"])"),
            (vec![Absent, Absent], vec![], "Delete(Background)"),
            (vec![Absent, Absent], vec![grandchild.clone()], "Delete(Background)"),
            (vec![Waiting, Absent], vec![grandchild.clone()], "Delete(Foreground)"),
            (vec![Waiting, Waiting], vec![], "Delete(Background)"),
        ] {
            assert_eq!(text(decide(&child, &owners, &dependents)), expected, "{owners:?}");
        }
    }

    #[test]
    fn an_owner_in_the_foreground_waits_for_those_that_block_it() {
        let owner = entry("a", &[], &[FOREGROUND], true);
        let child = entry("c", &["a"], &[], false);
        assert_eq!(text(decide(&owner, &[], std::slice::from_ref(&child))), "Wake([\"c\"])");
        let mut going = child.clone();
        going.going = true;
        assert_eq!(text(decide(&owner, &[], &[going])), "Wake([])");
        let mut loose = child.clone();
        loose.owners[0].block_owner_deletion = None;
        assert_eq!(text(decide(&owner, &[], &[loose])), "ReleaseForeground");
        assert_eq!(text(decide(&owner, &[], &[])), "ReleaseForeground");
        let orphaning = entry("a", &[], &[ORPHAN], true);
        assert_eq!(text(decide(&orphaning, &[], &[child])), "orphan [\"c\"]");
    }

    #[test]
    fn whoever_a_change_concerns_is_looked_at() {
        let mut state = State::default();
        let wakes = |wakes: BTreeSet<String>| wakes.into_iter().collect::<Vec<_>>();
        let (owner, child) = (entry("a", &[], &[], false), entry("c", &["a"], &[], false));
        assert_eq!(wakes(state.observe(None, Some(child.clone()))), ["c"], "its owner is not known yet");
        assert!(wakes(state.observe(None, Some(owner.clone()))).is_empty());
        assert!(wakes(state.observe(Some(child.clone()), Some(child.clone()))).is_empty());
        assert_eq!(wakes(state.observe(Some(owner.clone()), None)), ["c"]);
        let waiting = entry("a", &[], &[FOREGROUND], true);
        assert_eq!(wakes(state.observe(Some(owner), Some(waiting))), ["a"]);
        assert_eq!(wakes(state.observe(Some(child), None)), ["a"]);
        assert!(state.dependents.is_empty());
    }
}
