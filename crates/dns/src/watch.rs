//! The API's objects into the zone: each watch lists everything, then follows; after a break it lists again, and what isn't
//! there any more is taken out.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use kube::{Api, Client};
use parking_lot::RwLock;
use portolan_heard::Heard;
use serde::de::DeserializeOwned;
use tokio::sync::watch::Sender;

use crate::from_kube;
use crate::zone::Zone;

/// The objects of one kind that are there.
#[derive(Debug)]
struct Listing<K> {
    present: HashSet<K>,
    /// While a list is under way: what it has not named yet.
    unconfirmed: HashSet<K>,
}

impl<K: Clone + Eq + Hash> Listing<K> {
    fn new() -> Listing<K> {
        Listing { present: HashSet::new(), unconfirmed: HashSet::new() }
    }

    /// Notes an event: `put` is called for each object that is there now, and for each that is gone, with `None`. Gives whether
    /// the list is complete with it.
    fn note<T>(
        &mut self,
        event: Event<T>,
        key: impl Fn(&T) -> Option<K>,
        mut put: impl FnMut(&K, Option<&T>),
    ) -> bool {
        match event {
            Event::Init => self.unconfirmed.clone_from(&self.present),
            Event::InitApply(object) | Event::Apply(object) => {
                let Some(key) = key(&object) else { return false };
                self.unconfirmed.remove(&key);
                self.present.insert(key.clone());
                put(&key, Some(&object));
            }
            Event::Delete(object) => {
                let Some(key) = key(&object) else { return false };
                self.unconfirmed.remove(&key);
                self.present.remove(&key);
                put(&key, None);
            }
            Event::InitDone => {
                for key in self.unconfirmed.drain() {
                    self.present.remove(&key);
                    put(&key, None);
                }
                return true;
            }
        }
        false
    }
}

/// Keeps the zone as the API says, for as long as it is polled. `synced` hears when everything has been listed once.
pub async fn follow(client: Client, zone: Arc<RwLock<Zone>>, synced: &Sender<bool>) {
    let listed = parking_lot::Mutex::new([false; 3]);
    let complete = |kind: usize| {
        let mut listed = listed.lock();
        listed[kind] = true;
        if *listed == [true; 3] && !zone.read().synced() {
            zone.write().set_synced();
            synced.send_replace(true);
        }
    };
    let namespaces = one::<Namespace, _>(
        Api::all(client.clone()),
        |namespace| namespace.metadata.name.clone(),
        |name, namespace| zone.write().set_namespace(name, namespace.is_some()),
        || complete(0),
    );
    let services = one::<Heard<Service>, _>(
        Api::all(client.clone()),
        |service| from_kube::key(&service.0.metadata),
        |key, service| zone.write().set_service(key, service.and_then(|s| from_kube::service(&s.0))),
        || complete(1),
    );
    let slices = one::<Heard<EndpointSlice>, _>(
        Api::all(client),
        |slice| Some(from_kube::slice_key(&slice.0.metadata)),
        |key, slice| {
            let view = slice.and_then(|s| from_kube::slice(&s.0));
            zone.write().set_slice(key, view);
        },
        || complete(2),
    );
    tokio::join!(namespaces, services, slices);
}

async fn one<T, K>(
    api: Api<T>,
    key: impl Fn(&T) -> Option<K>,
    mut put: impl FnMut(&K, Option<&T>),
    complete: impl Fn(),
) where
    T: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    K: Clone + Eq + Hash,
{
    let mut listing = Listing::new();
    let mut events = std::pin::pin!(watch(api, watcher::Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if listing.note(event, &key, &mut put) {
                    complete();
                }
            }
            Err(error) => tracing::warn!(%error, "watching {}; trying again", T::plural(&())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_new_list_does_not_name_is_gone() {
        let mut listing = Listing::new();
        let mut there = std::collections::BTreeMap::new();
        let mut note = |event| {
            let mut put = |key: &u8, object: Option<&u8>| match object {
                Some(object) => drop(there.insert(*key, *object)),
                None => drop(there.remove(key)),
            };
            let complete = listing.note(event, |object| Some(*object), &mut put);
            (complete, there.keys().copied().collect::<Vec<u8>>())
        };
        for event in [Event::Init, Event::InitApply(1), Event::InitApply(2)] {
            assert!(!note(event).0);
        }
        assert_eq!(note(Event::InitDone), (true, vec![1, 2]));
        assert_eq!(note(Event::Apply(3)), (false, vec![1, 2, 3]));
        assert_eq!(note(Event::Delete(1)), (false, vec![2, 3]));
        assert_eq!(
            note(Event::Init),
            (false, vec![2, 3]),
            "nothing is taken out before the list is complete"
        );
        assert_eq!(note(Event::InitApply(3)), (false, vec![2, 3]));
        assert_eq!(note(Event::InitDone), (true, vec![3]));
    }
}
