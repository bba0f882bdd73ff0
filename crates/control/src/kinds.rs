//! The kinds that the API has: found once, and again when clients have defined others.

use std::sync::Arc;

use kube::api::{Api, DynamicObject};
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Client, Error};

/// One kind.
#[derive(Clone, Debug)]
pub(crate) struct KnownKind {
    pub resource: ApiResource,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

/// All kinds, each in the version that the API recommends.
#[derive(Debug, Default)]
pub(crate) struct Kinds {
    found: tokio::sync::Mutex<Option<Arc<Vec<KnownKind>>>>,
}

// === impl ===

impl Kinds {
    /// The kinds; asked for until the first answer.
    pub async fn get(&self, client: &Client) -> Result<Arc<Vec<KnownKind>>, Error> {
        let mut found = self.found.lock().await;
        match &*found {
            Some(known) => Ok(known.clone()),
            None => Ok(found.insert(discover(client).await?).clone()),
        }
    }

    /// The kinds as they are now.
    pub async fn fresh(&self, client: &Client) -> Result<Arc<Vec<KnownKind>>, Error> {
        let known = discover(client).await?;
        Ok(self.found.lock().await.insert(known).clone())
    }

    /// The kind that an owner reference names, in whatever version of its group.
    pub async fn find(&self, client: &Client, version: &str, kind: &str) -> Result<Option<KnownKind>, Error> {
        let group = version.rsplit_once('/').map_or("", |(group, _)| group);
        let find = |known: &[KnownKind]| {
            let is = |known: &&KnownKind| known.resource.kind == kind && known.resource.group == group;
            known.iter().find(is).cloned()
        };
        match find(&self.get(client).await?) {
            // No kind is added to a group without a dot.
            None if group.contains('.') => Ok(find(&self.fresh(client).await?)),
            found => Ok(found),
        }
    }
}

async fn discover(client: &Client) -> Result<Arc<Vec<KnownKind>>, Error> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let found = discovery.groups().flat_map(|group| group.recommended_resources());
    let known = found.map(|(resource, capabilities)| KnownKind {
        resource,
        namespaced: capabilities.scope == Scope::Namespaced,
        verbs: capabilities.operations,
    });
    Ok(Arc::new(known.collect()))
}

impl KnownKind {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    pub fn can_be_followed(&self) -> bool {
        self.can(verbs::LIST) && self.can(verbs::WATCH)
    }

    /// Its API, in a namespace if it has such.
    pub fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }
}
