//! The audit log: who did what, and what came of it, one line of JSON a stage (`audit.k8s.io/v1 Event`, level Metadata).
//!
//! Lines go to a thread that writes them. A request waits for a place in its queue, but not for long: then the line is
//! lost, and the loss is counted and told.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response};
use jiff::Timestamp;
use portolan_api::{Status, meta};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::attributes::Attributes;
use crate::auth::Identity;
use crate::body::ServerBody;
use crate::http::Caller;
use crate::random;

/// Lines that may wait to be written.
const QUEUE: usize = 10_000;
/// How long a request waits for a place in the queue.
const PATIENCE: Duration = Duration::from_millis(100);
/// The longest identifier that a client may bring, as in kube-apiserver (`maxAuditIDLength`).
const LONGEST_ID: usize = 64;

/// Where the audit log is kept, and how much of it.
#[derive(Clone, Debug)]
pub struct AuditLog {
    /// The file that is written.
    pub path: PathBuf,
    /// Beyond so many bytes the file is put aside as `PATH.1`, and what was there before as `PATH.2`, and so on.
    pub max_bytes: u64,
    /// So many files are kept aside.
    pub keep: usize,
}

impl AuditLog {
    /// A log of files of 100 MB, ten of them beside the one that is written.
    pub fn at(path: impl Into<PathBuf>) -> AuditLog {
        AuditLog { path: path.into(), max_bytes: 100_000_000, keep: 10 }
    }
}

/// The way to the file.
#[derive(Clone)]
pub(crate) struct Log {
    lines: mpsc::Sender<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

impl Log {
    /// Opens the file, so that a path that can't be is told at once, and starts the thread that writes.
    pub(crate) fn open(config: &AuditLog) -> std::io::Result<Log> {
        let mut file = Rotating::open(config)?;
        let (lines, mut waiting) = mpsc::channel::<Vec<u8>>(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = lost.clone();
        std::thread::Builder::new().name("audit-log".into()).spawn(move || {
            while let Some(line) = waiting.blocking_recv() {
                if let Err(error) = file.write(&line) {
                    tracing::error!(%error, "writing the audit log");
                }
                let lost = counter.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::error!(
                        lost,
                        "the audit log can't be written as fast as requests come: lines are lost"
                    );
                }
            }
        })?;
        Ok(Log { lines, lost })
    }

    async fn write(&self, line: Vec<u8>) {
        if self.lines.send_timeout(line, PATIENCE).await.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn write_now(&self, line: Vec<u8>) {
        if self.lines.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A file that is put aside when it has grown large.
struct Rotating {
    config: AuditLog,
    file: std::fs::File,
    size: u64,
}

impl Rotating {
    fn open(config: &AuditLog) -> std::io::Result<Rotating> {
        let (file, size) = append(&config.path)?;
        Ok(Rotating { config: config.clone(), file, size })
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        if self.size > 0 && self.size + line.len() as u64 > self.config.max_bytes {
            let aside = |n: usize| {
                let mut name = self.config.path.clone().into_os_string();
                name.push(format!(".{n}"));
                PathBuf::from(name)
            };
            for n in (1..self.config.keep).rev() {
                let _ = std::fs::rename(aside(n), aside(n + 1));
            }
            if self.config.keep > 0 {
                std::fs::rename(&self.config.path, aside(1))?;
            } else {
                std::fs::remove_file(&self.config.path)?;
            }
            (self.file, self.size) = append(&self.config.path)?;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(())
    }
}

fn append(path: &Path) -> std::io::Result<(std::fs::File, u64)> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// What is told of one request.
#[derive(Clone)]
pub(crate) struct Record {
    /// Its identifier, which the answer carries, too.
    pub id: String,
    uri: String,
    address: Option<std::net::IpAddr>,
    forwarded: Option<String>,
    agent: Option<String>,
    received: Timestamp,
    /// What is asked for; known once it is known who asks.
    pub request: Option<Attributes>,
    user: Option<Identity>,
    impersonated: Option<Identity>,
    annotations: Map<String, Value>,
    refusal: Option<Value>,
}

impl Record {
    /// Begins with what stands in the request's head.
    pub(crate) fn begin(caller: &Caller, uri: &http::Uri, headers: &HeaderMap) -> Record {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let brought = text("audit-id").filter(|id| !id.is_empty() && id.len() <= LONGEST_ID);
        Record {
            id: brought.unwrap_or_else(random::uuid),
            uri: uri.path_and_query().map_or_else(|| uri.path().to_owned(), ToString::to_string),
            address: caller.address,
            forwarded: text("x-forwarded-for"),
            agent: text("user-agent"),
            received: Timestamp::now(),
            request: None,
            user: None,
            impersonated: None,
            annotations: Map::new(),
            refusal: None,
        }
    }

    /// Who asks for what.
    pub(crate) fn asked(&mut self, user: &Identity, request: &Attributes) {
        self.user = Some(user.clone());
        self.request = Some(request.clone());
    }

    /// In whose name.
    pub(crate) fn acts_as(&mut self, user: &Identity) {
        self.impersonated = Some(user.clone());
    }

    /// Whether it was allowed, and why.
    pub(crate) fn decided(&mut self, decision: &str, reason: &str) {
        self.annotations.insert("authorization.k8s.io/decision".into(), decision.into());
        self.annotations.insert("authorization.k8s.io/reason".into(), reason.into());
    }

    /// That it was refused, and how.
    pub(crate) fn refused(&mut self, status: &Status) {
        self.refusal = Some(status.to_value());
    }

    fn line(&self, stage: &str, code: Option<u16>) -> Vec<u8> {
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata",
            "auditID": self.id, "stage": stage, "requestURI": self.uri,
        });
        let verb = self.request.as_ref().map_or("", |request| request.verb.as_str());
        event["verb"] = verb.into();
        event["user"] = self.user.as_ref().map_or_else(|| json!({}), Identity::to_value);
        if let Some(user) = &self.impersonated {
            event["impersonatedUser"] = user.to_value();
        }
        // As kube-apiserver: whoever forwarded says from whom, and the connection has the last word.
        let forwarded = self.forwarded.as_deref().unwrap_or_default().split(',').map(str::trim);
        let mut sources: Vec<String> =
            forwarded.filter(|ip| ip.parse::<std::net::IpAddr>().is_ok()).map(str::to_owned).collect();
        sources.extend(self.address.map(|ip| ip.to_string()).filter(|ip| sources.last() != Some(ip)));
        event["sourceIPs"] = sources.into();
        if let Some(agent) = &self.agent {
            event["userAgent"] = agent.as_str().into();
        }
        if let Some(request) = self.request.as_ref().filter(|request| request.of_resource) {
            let fields = [
                ("resource", &request.resource),
                ("namespace", &request.namespace),
                ("name", &request.name),
                ("apiGroup", &request.group),
                ("apiVersion", &request.version),
                ("subresource", &request.subresource),
            ];
            let fields = fields.into_iter().filter(|(_, text)| !text.is_empty());
            let fields = fields.map(|(key, text)| (key.to_owned(), Value::from(text.as_str())));
            event["objectRef"] = fields.collect::<Map<String, Value>>().into();
        }
        if let Some(code) = code {
            let mut status = json!({"metadata": {}});
            for field in ["status", "message", "reason", "details"] {
                if let Some(value) = self.refusal.as_ref().and_then(|refusal| refusal.get(field)) {
                    status[field] = value.clone();
                }
            }
            status["code"] = code.into();
            event["responseStatus"] = status;
        }
        event["requestReceivedTimestamp"] = meta::rfc3339_micro(self.received).into();
        event["stageTimestamp"] = meta::rfc3339_micro(Timestamp::now()).into();
        if !self.annotations.is_empty() {
            event["annotations"] = self.annotations.clone().into();
        }
        let mut line = event.to_string().into_bytes();
        line.push(b'\n');
        line
    }

    /// Tells that the request has come.
    pub(crate) async fn received(&self, log: Option<&Log>) {
        if let Some(log) = log {
            log.write(self.line("RequestReceived", None)).await;
        }
    }

    /// Tells what came of it; of a stream that it begins and, when it has ended, that it did.
    pub(crate) async fn answered(
        self,
        log: Option<&Log>,
        mut response: Response<ServerBody>,
    ) -> Response<ServerBody> {
        if let Ok(id) = HeaderValue::from_str(&self.id) {
            response.headers_mut().insert("audit-id", id);
        }
        let Some(log) = log else { return response };
        let code = response.status().as_u16();
        if !response.body().is_stream() {
            log.write(self.line("ResponseComplete", Some(code))).await;
            return response;
        }
        log.write(self.line("ResponseStarted", Some(code))).await;
        let end = End { record: self, log: log.clone(), code };
        response.map(|body| body.with_end(Box::new(end)))
    }
}

/// Tells of a stream's end when it is dropped.
struct End {
    record: Record,
    log: Log,
    code: u16,
}

impl Drop for End {
    fn drop(&mut self) {
        self.log.write_now(self.record.line("ResponseComplete", Some(self.code)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_grown_is_put_aside_and_the_oldest_is_dropped() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = AuditLog { max_bytes: 10, keep: 2, ..AuditLog::at(dir.path().join("audit.log")) };
        let mut file = Rotating::open(&config).expect("a file");
        for line in ["aaaaaa\n", "bbbbbb\n", "cccccc\n", "dddddd\n"] {
            file.write(line.as_bytes()).expect("written");
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        assert_eq!(
            (read("audit.log"), read("audit.log.1"), read("audit.log.2"), read("audit.log.3")),
            ("dddddd\n".into(), "cccccc\n".into(), "bbbbbb\n".into(), String::new())
        );
        let again = Rotating::open(&config).expect("a file");
        assert_eq!(again.size, 7, "what is there counts");
    }
}
