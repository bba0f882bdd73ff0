//! What a cluster's names stand for: held so that a change of one object costs what that object is, whatever the cluster's size.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::name::{Name, label};

/// The Service that stands for this name server, where there is one: clients know it by this name.
pub const KUBE_DNS: (&str, &str) = ("kube-system", "kube-dns");

/// A Service, as its two labels are on the wire: the name, then the namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub Arc<[u8]>);

impl Key {
    /// Of a namespace and a name; `None` if one of them can't be in a domain name.
    pub fn new(namespace: &str, name: &str) -> Option<Key> {
        Some(Key([label(name)?, label(namespace)?].concat().into()))
    }
}

impl std::borrow::Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// A slice by namespace and name.
pub type SliceKey = (Arc<str>, Arc<str>);

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// Its name in lower case; empty if it has none.
    pub name: Box<str>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: &'static str,
    /// Its number; `None` stands for all, or for none.
    pub number: Option<u16>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceView {
    /// It has addresses of its own.
    ClusterIp {
        /// The addresses, one of each family.
        addresses: Vec<IpAddr>,
        /// Its ports.
        ports: Vec<PortView>,
    },
    /// Its name stands for its endpoints.
    Headless,
    /// Its name is another name for this one, in lower case; `None` if that is no name.
    External(Option<Box<Name>>),
}

/// An endpoint that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// Its address.
    pub address: IpAddr,
    /// Its label as it is on the wire: the host name that it was given, or else its address.
    pub label: Box<[u8]>,
}

/// A slice: the endpoints of a Service that are ready, and their ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceView {
    /// The Service.
    pub service: Key,
    /// The endpoints.
    pub endpoints: Vec<EndpointView>,
    /// The ports.
    pub ports: Vec<PortView>,
}

/// What there is to know of a Service.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// The Service itself; its slices may be here before it, and after it.
    pub service: Option<ServiceView>,
    /// Its slices by name.
    pub slices: BTreeMap<Arc<str>, SliceView>,
}

/// Whose address one is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holder {
    /// A Service's own.
    Service(Key),
    /// That of an endpoint in a slice of a Service.
    Endpoint(Key, Arc<str>),
}

/// Whether pods have names made of their addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNames {
    /// No.
    Disabled,
    /// Whatever address the name says is answered, in each namespace that exists: no pod needs to be watched for it.
    #[default]
    Insecure,
}

/// What a zone is told, apart from objects.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster's domain.
    pub domain: Name,
    /// Whether pods have names.
    pub pods: PodNames,
    /// For how many seconds answers hold.
    pub ttl: u32,
    /// The name server's own addresses, for a cluster that has no Service for it.
    pub own: Vec<IpAddr>,
}

impl Options {
    /// The usual values of a domain.
    pub fn new(domain: Name) -> Options {
        Options { domain: domain.lower(), pods: PodNames::default(), ttl: 5, own: Vec::new() }
    }
}

/// The names of a cluster.
#[derive(Debug)]
pub struct Zone {
    pub(crate) options: Options,
    namespaces: HashSet<Box<[u8]>>,
    services: HashMap<Key, Entry>,
    slices: HashMap<SliceKey, Key>,
    reverse: HashMap<IpAddr, BTreeSet<Holder>>,
    synced: bool,
    /// Goes up with each change.
    pub(crate) serial: u32,
}

impl Zone {
    /// Nothing yet.
    pub fn new(options: Options) -> Zone {
        Zone {
            options,
            namespaces: HashSet::new(),
            services: HashMap::new(),
            slices: HashMap::new(),
            reverse: HashMap::new(),
            synced: false,
            serial: 1,
        }
    }

    /// Everything has been listed once: from now on what isn't here doesn't exist.
    pub fn set_synced(&mut self) {
        self.synced = true;
    }

    /// Whether everything has been listed once.
    pub fn synced(&self) -> bool {
        self.synced
    }

    /// How many Services and endpoints there are, for who counts.
    pub fn size(&self) -> (usize, usize) {
        let endpoints = |e: &Entry| e.slices.values().map(|s| s.endpoints.len()).sum::<usize>();
        (
            self.services.values().filter(|e| e.service.is_some()).count(),
            self.services.values().map(endpoints).sum(),
        )
    }

    /// A namespace is there, or is gone.
    pub fn set_namespace(&mut self, name: &str, present: bool) {
        let changed = match present {
            true => self.namespaces.insert(name.as_bytes().into()),
            false => self.namespaces.remove(name.as_bytes()),
        };
        self.serial = self.serial.wrapping_add(u32::from(changed));
    }

    /// A Service as it is now, or is no more.
    pub fn set_service(&mut self, key: &Key, service: Option<ServiceView>) {
        if service.is_none() && !self.services.contains_key(key) {
            return;
        }
        let entry = self.services.entry(key.clone()).or_default();
        if entry.service == service {
            return;
        }
        let before = std::mem::replace(&mut entry.service, service);
        let addresses = |service: &Option<ServiceView>| match service {
            Some(ServiceView::ClusterIp { addresses, .. }) => addresses.clone(),
            _ => Vec::new(),
        };
        let (old, new) = (addresses(&before), addresses(&entry.service));
        self.forget_if_empty(key);
        for address in old {
            self.release(address, &Holder::Service(key.clone()));
        }
        for address in new {
            self.reverse.entry(address).or_default().insert(Holder::Service(key.clone()));
        }
        self.serial = self.serial.wrapping_add(1);
    }

    /// A slice as it is now, or is no more.
    pub fn set_slice(&mut self, slice: &SliceKey, view: Option<SliceView>) {
        let was = self.slices.get(slice).cloned();
        let before = was.as_ref().and_then(|key| self.services.get_mut(key)?.slices.remove(&slice.1));
        if before.is_none() && view.is_none() {
            return;
        }
        if before != view {
            self.serial = self.serial.wrapping_add(1);
        }
        for (key, before) in was.iter().zip(before) {
            let holder = Holder::Endpoint(key.clone(), slice.1.clone());
            for endpoint in &before.endpoints {
                self.release(endpoint.address, &holder);
            }
        }
        match view {
            Some(view) => {
                let holder = Holder::Endpoint(view.service.clone(), slice.1.clone());
                for endpoint in &view.endpoints {
                    self.reverse.entry(endpoint.address).or_default().insert(holder.clone());
                }
                self.slices.insert(slice.clone(), view.service.clone());
                self.services.entry(view.service.clone()).or_default().slices.insert(slice.1.clone(), view);
            }
            None => drop(self.slices.remove(slice)),
        }
        if let Some(key) = was {
            self.forget_if_empty(&key);
        }
    }

    fn release(&mut self, address: IpAddr, holder: &Holder) {
        if let Some(holders) = self.reverse.get_mut(&address) {
            holders.remove(holder);
            if holders.is_empty() {
                self.reverse.remove(&address);
            }
        }
    }

    fn forget_if_empty(&mut self, key: &Key) {
        if self.services.get(key).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.services.remove(key);
        }
    }

    /// Whether a namespace is there.
    pub(crate) fn has_namespace(&self, name: &[u8]) -> bool {
        self.namespaces.contains(name)
    }

    /// What is known of a Service, by its two labels on the wire in lower case.
    pub(crate) fn service(&self, key: &[u8]) -> Option<(&Key, &Entry)> {
        self.services.get_key_value(key)
    }

    /// Whose address it is.
    pub(crate) fn holders(&self, address: IpAddr) -> impl Iterator<Item = &Holder> {
        self.reverse.get(&address).into_iter().flatten()
    }
}

/// An endpoint's label where it was given no host name: its address with hyphens.
pub fn address_label(address: IpAddr) -> Box<[u8]> {
    let text = match address {
        IpAddr::V4(ip) => ip.to_string().replace('.', "-"),
        IpAddr::V6(ip) => {
            let text = ip.to_string().replace(':', "-");
            // A label may not end with a hyphen.
            if text.ends_with('-') { text + "0" } else { text }
        }
    };
    label(&text).unwrap_or_default()
}

/// The address that a pod's label stands for, in lower case: `10-1-0-7`, `fd00--7`.
pub fn label_address(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    if text.matches('-').count() == 3
        && !text.contains("--")
        && let Ok(address) = text.replace('-', ".").parse()
    {
        return Some(IpAddr::V4(address));
    }
    text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_label_and_back() {
        for (address, text) in [("10.1.0.7", "10-1-0-7"), ("fd00::7", "fd00--7"), ("fd00::", "fd00--0")] {
            let address: IpAddr = address.parse().unwrap();
            let label = address_label(address);
            assert_eq!(&label[1..], text.as_bytes());
            assert_eq!(label_address(&label[1..]), Some(address));
        }
        for bad in ["", "web", "10-1-0", "10-1-0-300", "1-2-3-4-5"] {
            assert_eq!(label_address(bad.as_bytes()), None, "{bad}");
        }
    }
}
