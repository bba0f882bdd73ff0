//! What a container says of its own end: a file that it may write (`terminationMessagePath`), or the end of its log.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::protocol::{LastWords, Launch, PodDir};

/// The longest message, and the most of a log, in bytes and lines: a kubelet's.
const LONGEST: u64 = 4096;
const LONGEST_OF_LOG: usize = 2048;
const MOST_LINES: usize = 80;

/// An empty file for the next run, which whoever it runs as may write.
pub(super) fn prepare(dir: &PodDir, container: &str) -> io::Result<()> {
    let path = dir.last_words(container);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&path, b"")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
}

/// The message of a run that has ended.
pub(super) fn read(dir: &PodDir, launch: &Launch, code: i32) -> Option<String> {
    let from = launch.last_words?;
    let mut left = Vec::new();
    // The container may have put anything in its place, but for it this is the mount, and here it is the file.
    if let Ok(file) = fs::File::open(dir.last_words(&launch.name)) {
        let _ = file.take(LONGEST).read_to_end(&mut left);
    }
    if left.is_empty() && from == LastWords::OrLogs && code != 0 {
        left = end_of_log(&dir.log(&launch.name, launch.attempt)).unwrap_or_default();
    }
    Some(String::from_utf8_lossy(&left).into_owned()).filter(|text| !text.is_empty())
}

/// The last lines of a log, without times.
fn end_of_log(path: &Path) -> io::Result<Vec<u8>> {
    /// Each line of the log has a head of `TIME STREAM TAG`, some 42 bytes.
    const ENOUGH: u64 = (LONGEST_OF_LOG + MOST_LINES * 64) as u64;
    let mut file = fs::File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(ENOUGH)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let mut lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    if size > ENOUGH && !lines.is_empty() {
        lines.remove(0);
    }
    let said = |line: &[u8]| line.splitn(4, |byte| *byte == b' ').nth(3).unwrap_or_default().to_vec();
    let mut end: Vec<u8> =
        lines[lines.len().saturating_sub(MOST_LINES)..].iter().flat_map(|line| said(line)).collect();
    Ok(end.split_off(end.len().saturating_sub(LONGEST_OF_LOG)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_its_last_lines_without_their_times() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let line = |number: usize| format!("2026-01-01T00:00:00.000000000Z stderr F line {number} of many\n");
        let all: String = (0..5000).map(line).collect();
        fs::write(file.path(), all).expect("written");
        let end = String::from_utf8(end_of_log(file.path()).expect("read")).expect("text");
        assert!(end.ends_with("line 4998 of many\nline 4999 of many\n"), "{end}");
        assert!(end.len() <= LONGEST_OF_LOG && end.lines().count() <= MOST_LINES);
        fs::write(file.path(), "2026-01-01T00:00:00.000000000Z stdout F one\n").expect("written");
        assert_eq!(end_of_log(file.path()).expect("read"), b"one\n");
    }
}
