//! The lab's cluster seen through its API: a client, and conditions awaited on watched objects.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::Context;
use futures_util::StreamExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

/// A client with what a kubeconfig says.
pub async fn connect(kubeconfig: &str) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).context("the kubeconfig")?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Objects by `namespace/name`; without a namespace by name alone.
pub type Objects<K> = BTreeMap<String, K>;

/// The key of an object in [`Objects`].
pub fn key<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// Watches all objects and shows them, whole, after each change, until `decide` gives an answer.
pub async fn until<K, T>(api: Api<K>, mut decide: impl FnMut(&Objects<K>) -> Option<T>) -> T
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    loop {
        let mut objects = Objects::new();
        let mut listing = Objects::new();
        let mut events = std::pin::pin!(watcher::watcher(api.clone(), watcher::Config::default()));
        while let Some(event) = events.next().await {
            match event {
                // What is there is known, whole, only at the end of a list.
                Ok(Event::Init) => {
                    listing.clear();
                    continue;
                }
                Ok(Event::InitApply(object)) => {
                    listing.insert(key(&object), object);
                    continue;
                }
                Ok(Event::InitDone) => objects = std::mem::take(&mut listing),
                Ok(Event::Apply(object)) => {
                    objects.insert(key(&object), object);
                }
                Ok(Event::Delete(object)) => {
                    objects.remove(&key(&object));
                }
                // The server is away: in a lab it is back in a moment, and the watcher goes on where it was.
                Err(error) => {
                    tracing::debug!(%error, "watching");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            }
            if let Some(answer) = decide(&objects) {
                return answer;
            }
        }
    }
}
