//! Reading: one object from the store, many from the cache.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use http::StatusCode;
use jiff::Timestamp;
use portolan_api::{FieldSelector, Kind, LabelSelector, Status, meta};
use portolan_store::{Range, Revision};
use serde_json::{Value, json};

use crate::cache::{Cache, prefix};
use crate::http::{Answer, Call, json as respond, store_status, typed};
use crate::negotiate::Form;
use crate::object::{Object, Selection, stored};
use crate::options;
use crate::server::Server;
use crate::table::{self, Include};

/// How long a read waits for the cache to reach a revision, as kube-apiserver's watch cache does (`blockTimeout`).
const PATIENCE: Duration = Duration::from_secs(3);
/// How many keys a page of an older snapshot is read by.
const CHUNK: usize = 500;

/// Objects at one revision, and where the next page begins.
pub(crate) struct Page {
    pub revision: u64,
    pub objects: Vec<Arc<Object>>,
    pub next: Option<String>,
    pub remaining: Option<usize>,
}

impl Call {
    /// The key of the object in the path.
    pub(crate) fn key(&self) -> String {
        object_key(&self.kind, self.path.namespace.as_deref(), self.name())
    }

    /// The prefix of all keys in the path's collection.
    pub(crate) fn scope(&self) -> String {
        match &self.path.namespace {
            Some(namespace) => format!("{}{namespace}/", prefix(&self.kind)),
            None => prefix(&self.kind),
        }
    }

    /// What is asked for by labels and fields.
    pub(crate) fn selection(&self) -> Result<Selection, Status> {
        let mut selection = Selection::default();
        if let Some(text) = self.query.get("labelSelector") {
            selection.labels =
                LabelSelector::parse(text).map_err(|error| Status::bad_request(error.to_string()))?;
        }
        if let Some(text) = self.query.get("fieldSelector") {
            selection.fields = FieldSelector::parse(text, &self.kind)
                .map_err(|error| Status::bad_request(error.to_string()))?;
        }
        Ok(selection)
    }

    /// The prefix of keys that can match at all: one key, if the selection names it.
    pub(crate) fn narrow(&self, selection: &Selection) -> String {
        let scope = self.scope();
        let namespace = self.path.namespace.as_deref().or(selection.fields.requires("metadata.namespace"));
        match (selection.fields.requires("metadata.name"), namespace) {
            (Some(name), Some(namespace)) if self.kind.namespaced() => {
                object_key(&self.kind, Some(namespace), name)
            }
            (Some(name), _) if !self.kind.namespaced() => object_key(&self.kind, None, name),
            (None, Some(namespace)) if self.kind.namespaced() => {
                format!("{}{namespace}/", prefix(&self.kind))
            }
            _ => scope,
        }
    }

    /// A revision parameter; none if absent.
    pub(crate) fn revision(&self) -> Result<Option<u64>, Status> {
        let Some(text) = self.query.get("resourceVersion") else { return Ok(None) };
        let revision = text.parse().map_err(|_| {
            // Go's words for what is no number.
            Status::bad_request(format!(
                "invalid resource version: resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: \
                 invalid syntax"
            ))
        })?;
        Ok(Some(revision))
    }

    /// Which object a table's rows carry.
    pub(crate) fn include(&self) -> Include {
        Include::parse(self.query.get("includeObject"))
    }

    /// One object in the form that the client takes.
    pub(crate) fn show(&self, object: Value) -> Value {
        match self.form {
            Form::Plain => object,
            Form::Metadata(meta) => table::metadata(meta, &object),
            Form::Table(form) => {
                let about = match meta::resource_version(&object) {
                    "" => json!({}),
                    version => json!({"resourceVersion": version}),
                };
                let row = table::row(form, &self.kind, &object, self.include(), Timestamp::now());
                table::table(form, Some(table::columns(&self.kind)), about, vec![row])
            }
        }
    }
}

/// The key of an object.
pub(crate) fn object_key(kind: &Kind, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{}{namespace}/{name}", prefix(kind)),
        None => format!("{}{name}", prefix(kind)),
    }
}

impl Server {
    /// The stored object behind a key, and its revision.
    pub(crate) async fn stored(
        &self,
        kind: &Kind,
        key: &str,
        name: &str,
    ) -> Result<(Value, Revision), Status> {
        let (entry, _) = self.store.get(key).await.map_err(store_status)?;
        let entry = entry.ok_or_else(|| Status::not_found(kind, name))?;
        let value = stored(kind, &entry.value, entry.mod_revision.0)
            .ok_or_else(|| Status::internal(format!("{key} holds something that is no object")))?;
        Ok((value, entry.mod_revision))
    }

    /// GET of one object.
    pub(crate) async fn get(&self, call: &Call) -> Answer {
        let (object, _) = self.stored(&call.kind, &call.key(), call.name()).await?;
        Ok(respond(StatusCode::OK, &call.show(object)))
    }

    /// GET of a collection.
    pub(crate) async fn list(&self, call: &Call) -> Answer {
        // What can't be read is said first.
        options::numbers(&call.query)?;
        LabelSelector::parse(call.query.get("labelSelector").unwrap_or_default())
            .map_err(|error| Status::bad_request(error.to_string()))?;
        let selected = call.selection();
        if let Err(status) = &selected
            && status.message.starts_with("invalid selector")
        {
            return Err(status.clone());
        }
        options::listing(&call.query)?;
        let page = self.page(call, &selected?).await?;
        Ok(render(call, &page))
    }

    /// The objects that a list asks for.
    pub(crate) async fn page(&self, call: &Call, selection: &Selection) -> Result<Page, Status> {
        let limit = call.query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(0_i64);
        let revision = call.revision()?;
        // What the cache has now is given whole (`computeListLimit`).
        let limit = if revision == Some(0) { 0 } else { usize::try_from(limit).unwrap_or(0) };
        let policy = call.query.get("resourceVersionMatch");
        if let Some(token) = call.query.get("continue") {
            if revision.is_some_and(|revision| revision != 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (snapshot, start) = Token::read(token, call)?;
            let revision = match snapshot {
                Some(revision) => revision,
                None => self.store.revision().await.map_err(store_status)?.0,
            };
            let page = self.old_page(call, selection, revision, start.clone(), limit).await;
            return page.map_err(|status| match status.code {
                410 => Status::continue_expired(Token::write(None, &start)),
                _ => status,
            });
        }
        // A page of a list says `Exact` without a word (`ValidateListOptions`, the legacy case).
        let page = policy.is_none() && limit > 0 && selection.fields.requires("metadata.name").is_none();
        if let Some(revision) = revision.filter(|revision| *revision > 0 && (policy == Some("Exact") || page))
        {
            return self.old_page(call, selection, revision, call.narrow(selection), limit).await;
        }
        // All other combinations have been looked at.
        let cache = self.fresh(&call.kind, revision).await?;
        let kind = &call.kind;
        let (mut taken, mut behind) = (0, 0);
        let snapshot = cache.snapshot(&call.narrow(selection), |object| {
            if limit > 0 && taken == limit {
                behind += 1;
                return false;
            }
            let fits = selection.matches(object, kind);
            taken += usize::from(fits);
            fits
        });
        let (objects, mut next, mut remaining) = (snapshot.objects, None, None);
        // Whether what follows fits is not looked at, as in kube-apiserver: the next page may be empty.
        if behind > 0 {
            // The rest is only known when nothing is filtered out (the API's `remainingItemCount`).
            remaining = selection.is_empty().then_some(behind);
            next =
                objects.last().map(|last| Token::write(Some(snapshot.revision), &format!("{}\0", last.key)));
        }
        Ok(Page { revision: snapshot.revision, objects, next, remaining })
    }

    /// The cache of a kind, once it is as new as the client wants: `0` takes what there is, nothing means the newest.
    pub(crate) async fn fresh(&self, kind: &Kind, revision: Option<u64>) -> Result<Arc<Cache>, Status> {
        let wanted = match revision {
            Some(0) => return self.cache_of(kind).await,
            Some(revision) => revision,
            None => self.store.revision().await.map_err(store_status)?.0,
        };
        if revision.is_none() && kind.custom().is_some() {
            // Who has seen the end of a definition sees the end of its objects.
            self.definitions.reach(wanted).await?;
        }
        let mut cache = self.cache_of(kind).await?;
        loop {
            tokio::select! {
                biased;
                reached = cache.reach(wanted, PATIENCE) => {
                    return match reached {
                        true => Ok(cache),
                        false => Err(Status::too_large_resource_version(wanted, cache.revision())),
                    };
                }
                // Its definition is gone, or has changed and has another cache: only that one gets there.
                () = cache.closed() => {
                    let next = self.cache_of(kind).await?;
                    if Arc::ptr_eq(&next, &cache) {
                        return Err(Status::unavailable("the server is shutting down"));
                    }
                    cache = next;
                }
            }
        }
    }

    /// A page of the objects as they were at a revision, from the store's history.
    async fn old_page(
        &self,
        call: &Call,
        selection: &Selection,
        revision: u64,
        mut start: String,
        limit: usize,
    ) -> Result<Page, Status> {
        let end = Range::prefix(&call.scope()).end;
        let mut objects: Vec<Arc<Object>> = Vec::new();
        loop {
            let chunk = if limit == 0 { 0 } else { CHUNK.max(limit + 1) };
            let range = Range {
                start: start.as_str().into(),
                end: end.clone(),
                limit: chunk,
                revision: Some(Revision(revision)),
            };
            let result = self.store.range(range).await.map_err(store_status)?;
            for entry in &result.entries {
                let Some(object) = Object::decode(&call.kind, &entry.key, &entry.value, entry.mod_revision.0)
                else {
                    continue;
                };
                if limit > 0 && objects.len() == limit {
                    let next =
                        objects.last().map(|last| Token::write(Some(revision), &format!("{}\0", last.key)));
                    return Ok(Page { revision, objects, next, remaining: None });
                }
                if selection.matches(&object, &call.kind) {
                    objects.push(Arc::new(object));
                }
            }
            match result.entries.last() {
                Some(last) if result.more => start = format!("{}\0", last.key),
                _ => return Ok(Page { revision, objects, next: None, remaining: None }),
            }
        }
    }
}

/// A page in the form that the client takes.
pub(crate) fn render(call: &Call, page: &Page) -> http::Response<crate::body::ServerBody> {
    let mut about = json!({"resourceVersion": page.revision.to_string()});
    // Lists of custom objects say it also when nothing follows, and of each object what it is.
    let custom = call.kind.custom().is_some() && call.form == Form::Plain;
    if custom {
        about["continue"] = "".into();
    }
    if let Some(next) = &page.next {
        about["continue"] = next.as_str().into();
    }
    if let Some(remaining) = page.remaining {
        about["remainingItemCount"] = remaining.into();
    }
    match call.form {
        Form::Plain => {
            // The objects are text already: joined, not parsed and written again.
            let size = page.objects.iter().map(|object| object.bytes.len() + 1).sum::<usize>();
            let mut out = Vec::with_capacity(size + 256);
            let head = json!({"kind": call.kind.list_kind(), "apiVersion": call.kind.api_version(), "metadata": about});
            let head = head.to_string();
            out.extend_from_slice(&head.as_bytes()[..head.len() - 1]);
            out.extend_from_slice(b",\"items\":[");
            for (i, object) in page.objects.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                match custom {
                    true => out.extend_from_slice(&object.bytes),
                    false => object.write_item(&mut out),
                }
            }
            out.extend_from_slice(b"]}");
            typed(StatusCode::OK, "application/json", out)
        }
        Form::Metadata(meta) => {
            let items: Vec<_> =
                page.objects.iter().map(|object| table::metadata(meta, &object.value())).collect();
            let list = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": meta.api_version(), "metadata": about, "items": items,
            });
            respond(StatusCode::OK, &list)
        }
        Form::Table(meta) => {
            let (include, now) = (call.include(), Timestamp::now());
            let rows = page
                .objects
                .iter()
                .map(|object| table::row(meta, &call.kind, &object.value(), include, now))
                .collect();
            respond(StatusCode::OK, &table::table(meta, Some(table::columns(&call.kind)), about, rows))
        }
    }
}

/// The `continue` token: the snapshot's revision, none for whatever is newest when it comes back, and the key that comes next.
struct Token;

impl Token {
    fn write(revision: Option<u64>, start: &str) -> String {
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .encode(json!({"rv": revision, "start": start}).to_string())
    }

    fn read(token: &str, call: &Call) -> Result<(Option<u64>, String), Status> {
        let parsed = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(token)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
            .and_then(|value| {
                let revision = Some(&value["rv"]).filter(|rv| rv.is_null() || rv.is_u64())?;
                Some((revision.as_u64(), value["start"].as_str()?.to_owned()))
            })
            // The token comes back from a client: it must not lead out of the collection that was asked for.
            .filter(|(_, start)| start.starts_with(&call.scope()));
        parsed.ok_or_else(|| {
            Status::bad_request(
                "invalid continue token: continue key is not valid: it is not from a list of this collection",
            )
        })
    }
}
