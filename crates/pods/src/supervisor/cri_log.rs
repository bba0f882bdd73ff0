//! A container's output as the log files that Kubernetes' tools know: `TIME stdout F line`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// Longer lines are cut into parts tagged `P`, as other runtimes do.
const LONGEST_LINE: usize = 16 * 1024;

/// One of a container's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One line, or a part of one, in the format of the log files.
pub(crate) fn format_line(now: Timestamp, stream: Stream, whole: bool, line: &[u8]) -> Vec<u8> {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let mut text = format!("{now:.9} {stream} {} ", if whole { 'F' } else { 'P' }).into_bytes();
    text.extend_from_slice(line);
    text.push(b'\n');
    text
}

/// Cuts what is complete off a stream's buffer: whole lines, and parts of lines that grow too long. At the end of the
/// stream the rest, too.
pub(crate) fn cut(buffer: &mut Vec<u8>, end: bool) -> Vec<(bool, Vec<u8>)> {
    let mut lines = Vec::new();
    let mut start = 0;
    loop {
        let rest = &buffer[start..];
        let limit = rest.len().min(LONGEST_LINE);
        if let Some(length) = rest[..limit].iter().position(|byte| *byte == b'\n') {
            lines.push((true, rest[..length].to_vec()));
            start += length + 1;
        } else if rest.len() > LONGEST_LINE {
            lines.push((false, rest[..LONGEST_LINE].to_vec()));
            start += LONGEST_LINE;
        } else {
            break;
        }
    }
    buffer.drain(..start);
    if end && !buffer.is_empty() {
        lines.push((true, std::mem::take(buffer)));
    }
    lines
}

/// A log file that is put aside as `.1` when it has grown too large: at most twice `limit` bytes are kept.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl LogFile {
    /// Opens a log for appending.
    pub fn open(path: &Path, limit: u64) -> io::Result<LogFile> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, size, limit })
    }

    /// Appends one entry. A full disk loses the entry, never the container.
    pub fn append(&mut self, entry: &[u8]) {
        if self.size + entry.len() as u64 > self.limit && self.size > 0 {
            let mut aside = self.path.as_os_str().to_owned();
            aside.push(".1");
            if std::fs::rename(&self.path, aside).is_ok()
                && let Ok(file) = OpenOptions::new().create(true).append(true).open(&self.path)
            {
                self.file = file;
                self.size = 0;
            }
        }
        if self.file.write_all(entry).is_ok() {
            self.size += entry.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_carries_time_stream_and_tag() {
        let time: Timestamp = "2026-01-02T03:04:05.000000006Z".parse().expect("a timestamp");
        let line = format_line(time, Stream::Stdout, true, b"hello");
        assert_eq!(String::from_utf8_lossy(&line), "2026-01-02T03:04:05.000000006Z stdout F hello\n");
        let line = format_line(time, Stream::Stderr, false, b"");
        assert_eq!(String::from_utf8_lossy(&line), "2026-01-02T03:04:05.000000006Z stderr P \n");
    }

    #[test]
    fn lines_are_cut_where_they_end_or_grow_too_long() {
        let mut buffer = b"a\n\nbc".to_vec();
        assert_eq!(cut(&mut buffer, false), [(true, b"a".to_vec()), (true, Vec::new())]);
        assert_eq!(buffer, b"bc");
        assert_eq!(cut(&mut buffer, true), [(true, b"bc".to_vec())]);
        assert!(cut(&mut buffer, true).is_empty());

        let mut buffer = vec![b'x'; LONGEST_LINE + 1];
        buffer.push(b'\n');
        assert_eq!(cut(&mut buffer, false), [(false, vec![b'x'; LONGEST_LINE]), (true, b"x".to_vec())]);
    }

    #[test]
    fn a_log_never_grows_beyond_twice_its_limit() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("0.log");
        let mut log = LogFile::open(&path, 100).expect("a log");
        for _ in 0..50 {
            log.append(&[b'x'; 30]);
        }
        let aside = directory.path().join("0.log.1");
        assert_eq!(std::fs::metadata(&path).expect("the log").len(), 60);
        assert_eq!(std::fs::metadata(aside).expect("the log put aside").len(), 90);
    }
}
