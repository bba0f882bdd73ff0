//! Watching: a body that grows with the cache's events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::{HeaderValue, Response, header};
use jiff::Timestamp;
use portolan_api::{FieldError, Kind, Status};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::ServerBody;
use crate::cache::{Cache, Cursor, Event};
use crate::http::{Answer, Call, store_status};
use crate::negotiate::Form;
use crate::object::{Object, Selection};
use crate::random;
use crate::server::Server;
use crate::table::{self, Include};

/// Bookmarks come about as often as kube-apiserver's (`bookmarkFrequency`).
const BOOKMARKS: Duration = Duration::from_secs(60);
/// A watch without `timeoutSeconds` ends after this and up to as much again (`--min-request-timeout`): clients come back,
/// and not all at once.
const SHORTEST_S: u64 = 1800;
/// How many events are read from the cache at a time.
const BATCH: usize = 256;
/// How much is put together before it is handed to the connection.
const CHUNK: usize = 64 << 10;
/// The annotation of the bookmark that ends the initial events (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What one watcher needs to turn events into lines.
struct Lines {
    kind: Kind,
    form: Form,
    include: Include,
    /// The columns, until they have been sent once.
    columns: Option<Value>,
}

struct Watcher {
    cache: Arc<Cache>,
    seen: tokio::sync::watch::Receiver<u64>,
    cursor: Cursor,
    scope: String,
    selection: Selection,
    lines: Lines,
    /// Objects of the initial state that are still to be sent.
    initial: VecDeque<Arc<Object>>,
    /// The bookmark that ends the initial state.
    initial_end: Option<u64>,
    bookmarks: bool,
    next_bookmark: Instant,
    /// The revision up to which everything was sent.
    revision: u64,
    end: Instant,
    drain: CancellationToken,
    over: bool,
}

impl Server {
    /// GET of a collection with `watch=true`.
    pub(crate) async fn watch(&self, call: &Call) -> Answer {
        let selection = call.selection()?;
        let revision = call.revision()?;
        let bookmarks = call.query.flag("allowWatchBookmarks");
        let initial_events = match call.query.get("sendInitialEvents") {
            None => None,
            Some(_) if call.query.get("resourceVersionMatch") != Some("NotOlderThan") => {
                let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                let error = FieldError::forbidden("resourceVersionMatch", why);
                return Err(Status::invalid_options("ListOptions", &[error]));
            }
            Some(_) => Some(call.query.flag("sendInitialEvents")),
        };
        let timeout = match call.query.get("timeoutSeconds").map(str::parse::<u64>) {
            None => SHORTEST_S + random::below(SHORTEST_S),
            Some(Ok(0)) => SHORTEST_S + random::below(SHORTEST_S),
            Some(Ok(seconds)) => seconds.min(24 * 3600),
            Some(Err(_)) => return Err(Status::bad_request("timeoutSeconds: must be a whole number")),
        };

        let scope = call.narrow(&selection);
        // No revision, or `0`, begins with the present state; so does `sendInitialEvents=true` with any revision. A list
        // is as fresh as a get; a watch from nothing is so too (consistent reads).
        let from_state = initial_events.unwrap_or(revision.is_none_or(|revision| revision == 0));
        let cache = loop {
            let status = match self.fresh(&call.kind, revision).await {
                Ok(cache) => break cache,
                Err(status) => status,
            };
            let Some(wanted) = revision.filter(|_| status.code == 504) else { return Err(status) };
            // A cache that is behind, because the server has just begun, is waited for. A revision that the store never
            // reached is one of another history (a data directory that was begun anew): waiting for it would be waiting for
            // ever, listing anew helps.
            let current = self.store.revision().await.map_err(store_status)?.0;
            if wanted > current {
                return Ok(self.refused_watch(call, &Status::too_old(wanted, current)));
            }
        };
        let seen = cache.subscribe();
        let (mut initial, mut initial_end) = (VecDeque::new(), None);
        let (start, cursor) = if from_state {
            let kind = &call.kind;
            let snapshot = cache.snapshot(&scope, |object| selection.matches(object, kind));
            initial = snapshot.objects.into();
            initial_end = (initial_events == Some(true) && bookmarks).then_some(snapshot.revision);
            (snapshot.revision, snapshot.cursor)
        } else {
            let start = match revision {
                Some(revision) if revision > 0 => revision,
                _ => cache.revision(),
            };
            match cache.after(start) {
                Ok(cursor) => (start, cursor),
                Err(gone) => return Ok(self.refused_watch(call, &Status::too_old(start, gone.oldest))),
            }
        };
        let now = Instant::now();
        let columns = matches!(call.form, Form::Table(_)).then(|| table::columns(&call.kind));
        let watcher = Watcher {
            cache,
            seen,
            cursor,
            scope,
            selection,
            lines: Lines { kind: call.kind.clone(), form: call.form, include: call.include(), columns },
            initial,
            initial_end,
            bookmarks,
            next_bookmark: now + BOOKMARKS,
            revision: start,
            end: now + Duration::from_secs(timeout),
            drain: call.caller.drain.clone(),
            over: false,
        };
        let chunks = futures_util::stream::unfold(watcher, |mut watcher| async move {
            let chunk = watcher.chunk().await?;
            Some((Ok(chunk), watcher))
        });
        Ok(begin(ServerBody::stream(chunks.boxed())))
    }

    /// A watch that is too late: 200 and one ERROR event, as kube-apiserver answers. Watchers (kube's among them) list
    /// anew when an event says 410, and some only repeat themselves when the HTTP status does.
    fn refused_watch(&self, call: &Call, status: &Status) -> Response<ServerBody> {
        let lines =
            Lines { kind: call.kind.clone(), form: call.form, include: call.include(), columns: None };
        let mut out = BytesMut::new();
        lines.error(&mut out, status);
        begin(ServerBody::whole(out.freeze()))
    }
}

fn begin(body: ServerBody) -> Response<ServerBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

impl Watcher {
    /// The next piece of the body; none at its end. It is asked for when the connection has room: a client that doesn't
    /// read holds a place in the cache's ring and nothing else, and when the ring has passed that place, it is told so.
    async fn chunk(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let mut out = BytesMut::new();
        while let Some(object) = self.initial.pop_front() {
            self.lines.event(&mut out, "ADDED", &object, None);
            if out.len() >= CHUNK {
                return Some(out.freeze());
            }
        }
        if let Some(revision) = self.initial_end.take() {
            self.lines.bookmark(&mut out, revision, true);
        }
        let mut bookmark_due = false;
        loop {
            // Before the look, so that nothing that comes after it is missed.
            self.seen.mark_unchanged();
            match self.cache.next(&mut self.cursor, BATCH) {
                Ok((events, revision)) => {
                    for event in &events {
                        self.emit(&mut out, event);
                    }
                    self.revision = self.revision.max(revision);
                    if !out.is_empty() {
                        return Some(out.freeze());
                    }
                    if !events.is_empty() {
                        continue;
                    }
                    if bookmark_due {
                        self.lines.bookmark(&mut out, self.revision, false);
                        return Some(out.freeze());
                    }
                }
                Err(gone) => {
                    self.over = true;
                    self.lines.error(&mut out, &Status::too_old(self.revision, gone.oldest));
                    return Some(out.freeze());
                }
            }
            let bookmark = self.next_bookmark;
            tokio::select! {
                changed = self.seen.changed() => if changed.is_err() { return None },
                () = tokio::time::sleep_until(bookmark), if self.bookmarks => {
                    self.next_bookmark = bookmark + BOOKMARKS;
                    bookmark_due = true;
                }
                () = tokio::time::sleep_until(self.end) => return self.last(),
                () = self.drain.cancelled() => return self.last(),
                () = self.cache.closed() => return self.last(),
            }
        }
    }

    /// A watch that ends in order leaves its place behind.
    fn last(&mut self) -> Option<Bytes> {
        self.over = true;
        if !self.bookmarks {
            return None;
        }
        let mut out = BytesMut::new();
        if let Ok((events, revision)) = self.cache.next(&mut self.cursor, BATCH) {
            for event in &events {
                self.emit(&mut out, event);
            }
            self.revision = self.revision.max(revision);
        }
        self.lines.bookmark(&mut out, self.revision, false);
        Some(out.freeze())
    }

    /// What an event is to this watcher: an object that begins to match is added, one that ceases to is deleted.
    fn emit(&mut self, out: &mut BytesMut, event: &Event) {
        if !event.object.key.starts_with(&self.scope) {
            return;
        }
        let kind = &self.lines.kind.clone();
        let matched = event.previous.as_ref().is_some_and(|previous| self.selection.matches(previous, kind));
        let matches = !event.deleted && self.selection.matches(&event.object, kind);
        match (matched, matches) {
            (false, true) => {
                self.lines.event(out, "ADDED", &event.object, event.previous.is_none().then_some(event))
            }
            (true, true) => self.lines.event(out, "MODIFIED", &event.object, Some(event)),
            (true, false) if event.deleted => self.lines.event(out, "DELETED", &event.object, Some(event)),
            (true, false) => {
                // As it last matched, at the revision at which it ceased to (as kube-apiserver does).
                if let Some(previous) = &event.previous {
                    self.lines.event(out, "DELETED", &previous.at(kind, event.revision), None);
                }
            }
            (false, false) => {}
        }
    }
}

impl Lines {
    /// Appends an event. `shared` is the event of the cache whose own type this is: its plain line is made once for all.
    fn event(&mut self, out: &mut BytesMut, r#type: &str, object: &Object, shared: Option<&Event>) {
        match self.form {
            Form::Plain => match shared {
                Some(event) => out.put_slice(event.line.get_or_init(|| plain(r#type, &event.object.bytes))),
                None => out.put_slice(&plain(r#type, &object.bytes)),
            },
            Form::Metadata(meta) => self.line(out, r#type, &table::metadata(meta, &object.value())),
            Form::Table(meta) => {
                let row = table::row(meta, &self.kind, &object.value(), self.include, Timestamp::now());
                let about = json!({"resourceVersion": object.revision.to_string()});
                let table = table::table(meta, self.columns.take(), about, vec![row]);
                self.line(out, r#type, &table);
            }
        }
    }

    fn bookmark(&self, out: &mut BytesMut, revision: u64, initial_end: bool) {
        let mut about = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            about["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object =
            json!({"kind": self.kind.kind(), "apiVersion": self.kind.api_version(), "metadata": about});
        let object = match self.form {
            Form::Plain => object,
            Form::Metadata(meta) => table::metadata(meta, &object),
            Form::Table(meta) => {
                let row = json!({"cells": [], "object": table::metadata(meta, &object)});
                table::table(meta, None, json!({"resourceVersion": revision.to_string()}), vec![row])
            }
        };
        self.line(out, "BOOKMARK", &object);
    }

    fn error(&self, out: &mut BytesMut, status: &Status) {
        self.line(out, "ERROR", &status.to_value());
    }

    fn line(&self, out: &mut BytesMut, r#type: &str, object: &Value) {
        out.put_slice(&plain(r#type, &serde_json::to_vec(object).unwrap_or_default()));
    }
}

fn plain(r#type: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(r#type.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}
