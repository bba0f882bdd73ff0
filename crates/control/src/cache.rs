//! One kind's objects, as its watch and the answers to our own writes tell them.
//!
//! Resource versions of one kind are decimal and grow with each write (promised since Kubernetes 1.35, KEP-5504), so the
//! later of two states of an object is known. That lets the answer to a write enter the cache at once: a reconcile never
//! misses what an earlier one has done, and nothing has to be "expected".

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

/// Names an object of a known kind; `namespace` is empty for kinds without one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

/// What became of one object.
#[derive(Debug)]
pub(crate) struct Change<K> {
    pub old: Option<Arc<K>>,
    pub new: Option<Arc<K>>,
}

/// The objects of one kind.
#[derive(Debug)]
pub(crate) struct Cache<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    /// The newest resource version that the watch has delivered: what is not newer, the cache has already seen.
    seen: u64,
    /// Objects that we know to be deleted before their watch says so.
    gone: HashSet<String>,
    /// What a list has brought so far.
    listing: Option<BTreeMap<ObjectKey, Arc<K>>>,
    synced: bool,
}

// === impl ===

impl ObjectKey {
    pub fn new(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub fn of<K: Resource>(object: &K) -> ObjectKey {
        ObjectKey {
            namespace: object.meta().namespace.clone().unwrap_or_default(),
            name: object.meta().name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl<K> Default for Cache<K> {
    fn default() -> Cache<K> {
        Cache { objects: BTreeMap::new(), seen: 0, gone: HashSet::new(), listing: None, synced: false }
    }
}

impl<K: Resource> Cache<K> {
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.objects.get(&ObjectKey::new(namespace, name)).cloned()
    }

    pub fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<K>> {
        let first = ObjectKey::new(namespace, "");
        self.objects
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, object)| object)
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values()
    }

    pub fn synced(&self) -> bool {
        self.synced
    }

    /// Takes in what the watch says.
    pub fn observe(&mut self, event: Event<K>) -> Vec<Change<K>> {
        match event {
            Event::Apply(object) => {
                self.seen = self.seen.max(version(&object));
                if object.uid().is_some_and(|uid| self.gone.contains(&uid)) {
                    return Vec::new();
                }
                self.put(Arc::new(object)).into_iter().collect()
            }
            Event::Delete(object) => {
                self.seen = self.seen.max(version(&object));
                self.gone.remove(&object.uid().unwrap_or_default());
                let key = ObjectKey::of(&object);
                // A successor of the same name may be known already; it stays.
                let stale = self.objects.get(&key).is_some_and(|known| {
                    known.uid() == object.uid() || version(known.as_ref()) <= version(&object)
                });
                if !stale {
                    return Vec::new();
                }
                vec![Change { old: self.objects.remove(&key), new: None }]
            }
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                let listing = self.listing.get_or_insert_default();
                listing.insert(ObjectKey::of(&object), Arc::new(object));
                Vec::new()
            }
            Event::InitDone => {
                self.synced = true;
                let listed = self.listing.take().unwrap_or_default();
                let newest = listed.values().map(|object| version(object.as_ref())).max().unwrap_or(0);
                self.seen = self.seen.max(newest);
                self.gone.clear();
                let missing: Vec<ObjectKey> = self
                    .objects
                    .iter()
                    .filter(|(key, known)| !listed.contains_key(*key) && version(known.as_ref()) <= self.seen)
                    .map(|(key, _)| key.clone())
                    .collect();
                let mut changes: Vec<Change<K>> = missing
                    .into_iter()
                    .map(|key| Change { old: self.objects.remove(&key), new: None })
                    .collect();
                changes.extend(listed.into_values().filter_map(|object| self.put(object)));
                changes
            }
        }
    }

    /// Takes in the answer to one of our own writes, unless the watch is already past it.
    pub fn absorb(&mut self, object: Arc<K>) -> Option<Change<K>> {
        let uid = object.uid().unwrap_or_default();
        if version(object.as_ref()) <= self.seen || self.gone.contains(&uid) {
            return None;
        }
        self.put(object)
    }

    /// Takes in what we know to become true of the object without having read it (a binding's node).
    pub fn assume(&mut self, object: Arc<K>) -> Option<Change<K>> {
        let key = ObjectKey::of(object.as_ref());
        let known = self.objects.get(&key)?;
        if known.uid() != object.uid() || version(known.as_ref()) > version(object.as_ref()) {
            return None;
        }
        let old = self.objects.insert(key, object.clone());
        Some(Change { old, new: Some(object) })
    }

    /// Takes in that the object with this uid does not exist any more.
    pub fn forget(&mut self, key: &ObjectKey, uid: &str) -> Option<Change<K>> {
        if self.objects.get(key)?.uid().as_deref() != Some(uid) {
            return None;
        }
        self.gone.insert(uid.to_owned());
        Some(Change { old: self.objects.remove(key), new: None })
    }

    fn put(&mut self, object: Arc<K>) -> Option<Change<K>> {
        let key = ObjectKey::of(object.as_ref());
        if let Some(known) = self.objects.get(&key)
            && version(known.as_ref()) >= version(object.as_ref())
        {
            return None;
        }
        let old = self.objects.insert(key, object.clone());
        Some(Change { old, new: Some(object) })
    }
}

impl<K> Change<K> {
    /// The object as it was and as it is, whichever there are.
    pub fn both(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }

    /// The newest state that is known.
    pub fn last(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

/// The object's place in the order of its kind.
pub(crate) fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(name: &str, uid: &str, version: u64) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("n".into());
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(uid.into());
        pod.metadata.resource_version = Some(version.to_string());
        pod
    }

    fn names(cache: &Cache<Pod>) -> Vec<String> {
        cache.all().map(|pod| format!("{}@{}", pod.name_any(), version(pod.as_ref()))).collect()
    }

    #[test]
    fn an_own_write_is_seen_at_once_and_an_older_event_does_not_undo_it() {
        let mut cache = Cache::default();
        cache.observe(Event::Apply(pod("a", "1", 5)));
        assert!(cache.absorb(Arc::new(pod("a", "1", 8))).is_some());
        assert!(cache.observe(Event::Apply(pod("a", "1", 7))).is_empty());
        assert_eq!(names(&cache), ["a@8"]);
        assert!(cache.observe(Event::Apply(pod("a", "1", 8))).is_empty(), "a change is told once");
    }

    #[test]
    fn an_answer_that_arrives_after_the_deletion_does_not_bring_the_object_back() {
        let mut cache = Cache::default();
        cache.observe(Event::Apply(pod("a", "1", 5)));
        cache.observe(Event::Delete(pod("a", "1", 7)));
        assert!(cache.absorb(Arc::new(pod("a", "1", 5))).is_none());
        assert!(names(&cache).is_empty());
    }

    #[test]
    fn a_deleted_object_stays_gone_while_the_watch_is_behind() {
        let mut cache = Cache::default();
        cache.observe(Event::Apply(pod("a", "1", 5)));
        assert!(cache.forget(&ObjectKey::new("n", "a"), "1").is_some());
        assert!(cache.observe(Event::Apply(pod("a", "1", 6))).is_empty());
        assert!(cache.observe(Event::Delete(pod("a", "1", 7))).is_empty());
        assert!(names(&cache).is_empty());
        cache.observe(Event::Apply(pod("a", "2", 8)));
        assert_eq!(names(&cache), ["a@8"]);
    }

    #[test]
    fn a_successor_of_the_same_name_survives_the_late_news_of_the_deletion() {
        let mut cache = Cache::default();
        cache.observe(Event::Apply(pod("a", "1", 5)));
        cache.absorb(Arc::new(pod("a", "2", 9)));
        assert!(cache.observe(Event::Delete(pod("a", "1", 7))).is_empty());
        assert_eq!(names(&cache), ["a@9"]);
    }

    #[test]
    fn a_new_list_removes_what_it_does_not_name() {
        let mut cache = Cache::default();
        for event in [Event::Init, Event::InitApply(pod("a", "1", 5)), Event::InitApply(pod("b", "2", 6))] {
            assert!(cache.observe(event).is_empty());
        }
        assert_eq!(cache.observe(Event::InitDone).len(), 2);
        for event in [Event::Init, Event::InitApply(pod("b", "2", 6)), Event::InitApply(pod("c", "3", 9))] {
            cache.observe(event);
        }
        assert_eq!(cache.observe(Event::InitDone).len(), 2);
        assert_eq!(names(&cache), ["b@6", "c@9"]);
    }
}
