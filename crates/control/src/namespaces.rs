//! What each namespace has from the start, and how it ends.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::try_join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::discovery::verbs;
use kube::{Client, ResourceExt};

use crate::cluster::{Cluster, Error, Result, is};
use crate::kinds::KnownKind;
use crate::queue::Done;

/// The config map with the certificate authority of the cluster.
pub(crate) const ROOT_CA: &str = "kube-root-ca.crt";
/// What the config map says of itself, as in Kubernetes.
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
     internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes \
     clusters.",
);
/// The finalizer that says that the contents are not removed yet.
const FINALIZER: &str = "kubernetes";
/// When contents of kinds that are not watched are looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

pub(crate) async fn reconcile(cluster: &Cluster, name: &str) -> Result<Done> {
    let Some(namespace) = cluster.get::<Namespace>("", name) else { return Ok(Done::Settled) };
    if namespace.metadata.deletion_timestamp.is_some() {
        return empty(cluster, &namespace).await;
    }
    if cluster.get::<ServiceAccount>(name, "default").is_none() {
        let account = ServiceAccount { metadata: meta(name, "default"), ..ServiceAccount::default() };
        created(cluster.create(&account).await)?;
    }
    let Some(ca) = &cluster.config.ca_pem else { return Ok(Done::Settled) };
    let data = BTreeMap::from([("ca.crt".to_owned(), ca.clone())]);
    match cluster.get::<ConfigMap>(name, ROOT_CA) {
        None => {
            let (annotation, text) = DESCRIPTION;
            let mut metadata = meta(name, ROOT_CA);
            metadata.annotations = Some(BTreeMap::from([(annotation.to_owned(), text.to_owned())]));
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            created(cluster.create(&map).await)?;
        }
        Some(map) if map.data.as_ref() != Some(&data) => {
            let mut map = ConfigMap::clone(&map);
            map.data = Some(data);
            cluster.replace(&map).await?;
        }
        Some(_) => {}
    }
    Ok(Done::Settled)
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() }
}

/// That somebody else has made it already is as good.
fn created<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(Error::Api(error)) if is(&error, 409) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Removes everything inside; then says that it is empty.
async fn empty(cluster: &Cluster, namespace: &Namespace) -> Result<Done> {
    let name = namespace.name_any();
    let open = |namespace: &Namespace| {
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        finalizers.iter().any(|finalizer| finalizer == FINALIZER)
    };
    if !open(namespace) {
        return Ok(Done::Settled);
    }
    // Before it counts as empty, with the kinds as they are: one may have been defined a moment ago.
    for newest in [false, true] {
        let kinds = match newest {
            false => cluster.kinds.get(&cluster.client).await?,
            true => cluster.kinds.fresh(&cluster.client).await?,
        };
        let inside =
            kinds.iter().filter(|kind| kind.namespaced && kind.can(verbs::LIST) && kind.can(verbs::DELETE));
        let left = try_join_all(inside.map(|kind| remove_all(&cluster.client, kind, &name))).await?;
        if left.into_iter().sum::<usize>() > 0 {
            return Ok(Done::Again(LOOK_AGAIN));
        }
    }
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let mut empty = namespace.clone();
    if let Some(finalizers) = empty.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    match api.replace_subresource("finalize", &name, &PostParams::default(), &empty).await {
        Ok(_) => Ok(Done::Settled),
        Err(error) if is(&error, 404) => Ok(Done::Settled),
        // Changed since: its newer state wakes us, but not if it is known already.
        Err(error) => Err(error.into()),
    }
}

/// Deletes what is there of a kind and returns how much is left afterwards.
async fn remove_all(client: &Client, kind: &KnownKind, namespace: &str) -> Result<usize> {
    let api = kind.api(client, namespace);
    let all = ListParams::default();
    let there = match api.list_metadata(&all).await {
        Ok(there) => there.items,
        // The kind itself is gone, and its objects with it.
        Err(error) if is(&error, 404) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    if there.is_empty() {
        return Ok(0);
    }
    if there.iter().any(|object| object.metadata.deletion_timestamp.is_none()) {
        if kind.can(verbs::DELETE_COLLECTION) {
            api.delete_collection(&DeleteParams::background(), &all).await?;
        } else {
            for object in &there {
                match api.delete(&object.name_any(), &DeleteParams::background()).await {
                    Err(error) if !is(&error, 404) => return Err(error.into()),
                    _ => {}
                }
            }
        }
    } else {
        return Ok(there.len());
    }
    Ok(api.list_metadata(&all).await?.items.len())
}
