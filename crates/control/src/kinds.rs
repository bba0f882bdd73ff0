//! The kinds that the API has, found once.

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
    found: tokio::sync::OnceCell<Vec<KnownKind>>,
}

// === impl ===

impl Kinds {
    /// The kinds; asked for until the first answer.
    pub async fn get(&self, client: &Client) -> Result<&[KnownKind], Error> {
        let found = self
            .found
            .get_or_try_init(|| async {
                let discovery = Discovery::new(client.clone()).run().await?;
                let found = discovery.groups().flat_map(|group| group.recommended_resources());
                Ok::<_, Error>(
                    found
                        .map(|(resource, capabilities)| KnownKind {
                            resource,
                            namespaced: capabilities.scope == Scope::Namespaced,
                            verbs: capabilities.operations,
                        })
                        .collect(),
                )
            })
            .await?;
        Ok(found)
    }

    /// The kind that an owner reference names, in whatever version of its group.
    pub async fn find(&self, client: &Client, version: &str, kind: &str) -> Result<Option<KnownKind>, Error> {
        let group = version.rsplit_once('/').map_or("", |(group, _)| group);
        let mut found = self.get(client).await?.iter();
        Ok(found.find(|known| known.resource.kind == kind && known.resource.group == group).cloned())
    }
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
