//! Containers' logs: `GET /containerLogs/NAMESPACE/POD/CONTAINER`.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use crate::Config;
use crate::endpoint::{Body, find_pod, text, unescape};
use crate::protocol::{PodDir, Record, RunState, read_json};
use crate::runtime::Waiting;

/// How often a followed log is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);
const CHUNK: usize = 32 * 1024;

/// What of a log is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    limit: Option<usize>,
}

impl Query {
    /// From a URL's query. An error names the parameter.
    pub fn parse(query: &str, now: Timestamp) -> Result<Query, String> {
        let mut result = Query::default();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = unescape(value);
            let flag = || matches!(value.as_str(), "true" | "1" | "t" | "T" | "TRUE" | "True");
            let bad = || format!("{name}: {value:?} makes no sense here");
            match name {
                "follow" => result.follow = flag(),
                "previous" => result.previous = flag(),
                "timestamps" => result.timestamps = flag(),
                // A negative number is all lines.
                "tailLines" => result.tail = usize::try_from(value.parse::<i64>().map_err(|_| bad())?).ok(),
                "limitBytes" => result.limit = Some(value.parse().map_err(|_| bad())?),
                "sinceSeconds" => {
                    let seconds = value.parse::<i64>().map_err(|_| bad())?;
                    result.since = now.checked_sub(SignedDuration::from_secs(seconds)).ok();
                }
                "sinceTime" => result.since = Some(value.parse().map_err(|_| bad())?),
                _ => {}
            }
        }
        Ok(result)
    }
}

/// The log of one run of a container.
pub(crate) fn container_logs(
    config: &Config,
    waiting: &Waiting,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let plain = |name: &str| {
        !name.is_empty() && !name.contains(['/', '.']) || name.contains('.') && name != ".." && name != "."
    };
    if !plain(container) {
        return text(StatusCode::BAD_REQUEST, format!("container {container:?} has no valid name"));
    }
    let Some(dir) = find_pod(config, namespace, pod) else {
        return text(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist"));
    };
    let Ok(Some(record)) = read_json::<Record>(&dir.record(container)) else {
        let uid = dir.0.file_name().and_then(|uid| uid.to_str()).unwrap_or_default();
        let reason = waiting.lock().get(&(uid.to_owned(), container.to_owned())).cloned();
        return text(StatusCode::BAD_REQUEST, waits(container, pod, reason.as_deref()));
    };
    let attempt = if query.previous {
        match record.attempt.checked_sub(1) {
            Some(attempt) => attempt,
            None => {
                let message = format!("previous terminated container {container:?} in pod {pod:?} not found");
                return text(StatusCode::BAD_REQUEST, message);
            }
        }
    } else {
        record.attempt
    };
    let reader = LogReader { dir, container: container.to_owned(), attempt, query: query.clone() };
    let (chunks, received) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || reader.send(&chunks));
    let frames = stream::unfold(received, |mut received: mpsc::Receiver<Bytes>| async move {
        let chunk = received.recv().await?;
        Some((Ok::<_, io::Error>(Frame::data(chunk)), received))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    response
}

/// Why there is no log yet, in a kubelet's words.
fn waits(container: &str, pod: &str, reason: Option<&str>) -> String {
    let reason = match reason {
        Some("ErrImagePull") => "image can't be pulled",
        Some("ImagePullBackOff") => "trying and failing to pull image",
        Some(other) => other,
        None => "ContainerCreating",
    };
    format!("container {container:?} in pod {pod:?} is waiting to start: {reason}")
}

/// Reads one run's log.
struct LogReader {
    dir: PodDir,
    container: String,
    attempt: u32,
    query: Query,
}

/// One line of a log file taken apart: when, whether the line is whole, what.
fn take_apart(line: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, _stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    Some((time, tag == b"F", text))
}

/// Whether a line was written at `since` or later.
fn recent(time: &[u8], since: Option<Timestamp>) -> bool {
    let Some(since) = since else { return true };
    std::str::from_utf8(time)
        .ok()
        .and_then(|time| time.parse::<Timestamp>().ok())
        .is_none_or(|time| time >= since)
}

/// The lines of a log file as the reader wants them: prefixes off, parts joined.
fn render(lines: &[u8], query: &Query) -> Vec<u8> {
    let mut result = Vec::new();
    let mut begins = true;
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Some((time, whole, text)) = take_apart(line) else { continue };
        if !recent(time, query.since) {
            continue;
        }
        if query.timestamps && begins {
            result.extend_from_slice(time);
            result.push(b' ');
        }
        result.extend_from_slice(text);
        begins = whole;
        if whole {
            result.push(b'\n');
        }
    }
    result
}

/// The last lines of a text of whole lines.
fn tail(text: &[u8], lines: usize) -> &[u8] {
    if lines == 0 {
        return &[];
    }
    let ends = text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    // The end of the line before the first one wanted; the text's last byte ends the last line.
    ends.skip(lines).map(|(index, _)| &text[index + 1..]).next().unwrap_or(text)
}

impl LogReader {
    /// Sends everything, and with `follow` what comes later until the container has ended.
    fn send(self, chunks: &mpsc::Sender<Bytes>) {
        let path = self.dir.log(&self.container, self.attempt);
        let mut left = self.query.limit.unwrap_or(usize::MAX);
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        let mut raw = std::fs::read(PathBuf::from(old)).unwrap_or_default();
        let Ok(mut file) = std::fs::File::open(&path) else { return };
        if file.read_to_end(&mut raw).is_err() {
            return;
        }
        // What follows the last line's end is being written just now.
        let complete = raw.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        let mut pending = raw.split_off(complete);
        let rendered = render(&raw, &self.query);
        drop(raw);
        let shown = self.query.tail.map_or(&rendered[..], |lines| tail(&rendered, lines));
        if !give(chunks, shown, &mut left) || !self.query.follow {
            return;
        }
        loop {
            // Asked before reading: what was written before the end is read after it.
            let over = self.ended() || chunks.is_closed();
            let mut more = Vec::new();
            if file.read_to_end(&mut more).is_err() {
                return;
            }
            pending.append(&mut more);
            let complete = pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            let rest = pending.split_off(complete);
            let rendered = render(&pending, &self.query);
            pending = rest;
            if !give(chunks, &rendered, &mut left) || over {
                return;
            }
            // Put aside for having grown too large: what is left of it has been read, go on with the new one.
            if let Ok(new) = std::fs::File::open(&path)
                && !is_same_file(&file, &new)
            {
                file = new;
                continue;
            }
            std::thread::sleep(FOLLOW_INTERVAL);
        }
    }

    fn ended(&self) -> bool {
        match read_json::<Record>(&self.dir.record(&self.container)) {
            Ok(Some(record)) => record.attempt != self.attempt || matches!(record.state, RunState::Exited(_)),
            _ => true,
        }
    }
}

fn is_same_file(one: &std::fs::File, other: &std::fs::File) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => one.ino() == other.ino() && one.dev() == other.dev(),
        _ => true,
    }
}

/// Sends in pieces, up to what the reader wants. `false` when there is nobody to send to, or it has enough.
fn give(chunks: &mpsc::Sender<Bytes>, text: &[u8], left: &mut usize) -> bool {
    for piece in text[..text.len().min(*left)].chunks(CHUNK) {
        *left -= piece.len();
        if chunks.blocking_send(Bytes::copy_from_slice(piece)).is_err() {
            return false;
        }
    }
    *left > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"2026-01-01T00:00:01.000000000Z stdout F one\n\
        2026-01-01T00:00:02.000000000Z stderr P tw\n\
        2026-01-01T00:00:03.000000000Z stderr F o\n\
        2026-01-01T00:00:04.000000000Z stdout F \n";

    fn query(text: &str) -> Query {
        Query::parse(text, "2026-01-01T00:00:05Z".parse().expect("a time")).expect("a query")
    }

    fn shown(text: &str) -> String {
        let query = query(text);
        let rendered = render(LOG, &query);
        let shown = query.tail.map_or(&rendered[..], |lines| tail(&rendered, lines));
        String::from_utf8_lossy(shown).into_owned()
    }

    #[test]
    fn a_reader_sees_what_the_container_wrote() {
        for (text, expected) in [
            ("", "one\ntwo\n\n"),
            ("tailLines=2", "two\n\n"),
            ("tailLines=0", ""),
            ("tailLines=9", "one\ntwo\n\n"),
            ("tailLines=-1", "one\ntwo\n\n"),
            ("sinceSeconds=1", "\n"),
            ("sinceTime=2026-01-01T00%3A00%3A04Z", "\n"),
            (
                "timestamps=true&tailLines=2",
                "2026-01-01T00:00:02.000000000Z two\n2026-01-01T00:00:04.000000000Z \n",
            ),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn what_a_container_waits_for_is_said_in_a_kubelets_words() {
        let said = |reason| waits("c", "p", reason);
        let begins = "container \"c\" in pod \"p\" is waiting to start: ";
        assert_eq!(said(None), format!("{begins}ContainerCreating"));
        assert_eq!(said(Some("ErrImagePull")), format!("{begins}image can't be pulled"));
        assert_eq!(said(Some("ImagePullBackOff")), format!("{begins}trying and failing to pull image"));
        assert_eq!(said(Some("CreateContainerConfigError")), format!("{begins}CreateContainerConfigError"));
    }

    #[test]
    fn a_query_that_makes_no_sense_is_named() {
        let now = Timestamp::now();
        assert!(Query::parse("tailLines=x", now).is_err_and(|error| error.contains("tailLines")));
        assert!(Query::parse("sinceTime=yesterday", now).is_err_and(|error| error.contains("sinceTime")));
        assert!(Query::parse("pretty=true&follow=true", now).is_ok_and(|query| query.follow));
    }
}
