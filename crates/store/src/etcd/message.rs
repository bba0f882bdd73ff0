//! The few messages of etcd's API that are needed, as bytes of protobuf: field numbers are those of etcd's `rpc.proto` and
//! `kv.proto`, API version 3. Unknown fields are passed over.

use bytes::{Buf, Bytes};

use crate::{Change, Compare, Entry, Error, Op, Result, Revision, Txn};

/// A message that is being written.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A number; zero is left out, as it is what absence means.
    fn number(mut self, field: u32, value: u64) -> Writer {
        if value != 0 {
            self.varint(u64::from(field << 3));
            self.varint(value);
        }
        self
    }

    fn bytes(mut self, field: u32, value: &[u8]) -> Writer {
        self.varint(u64::from(field << 3 | 2));
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn message(self, field: u32, value: Writer) -> Writer {
        self.bytes(field, &value.0)
    }

    fn done(self) -> Bytes {
        self.0.into()
    }
}

/// The value of a field.
enum Value {
    Number(u64),
    Bytes(Bytes),
}

fn malformed() -> Error {
    Error::Engine("etcd sent something that is no protobuf".into())
}

fn varint(from: &mut Bytes) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        if !from.has_remaining() {
            return Err(malformed());
        }
        let byte = from.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(malformed())
}

/// Calls back for each field of a message.
fn fields(mut from: Bytes, mut each: impl FnMut(u32, Value) -> Result<()>) -> Result<()> {
    while from.has_remaining() {
        let tag = varint(&mut from)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut from)?),
            2 => {
                let length = usize::try_from(varint(&mut from)?).map_err(|_| malformed())?;
                if length > from.len() {
                    return Err(malformed());
                }
                Value::Bytes(from.split_to(length))
            }
            // Fixed sizes don't occur in these messages, but a newer etcd may have them.
            1 if from.len() >= 8 => {
                from.advance(8);
                continue;
            }
            5 if from.len() >= 4 => {
                from.advance(4);
                continue;
            }
            _ => return Err(malformed()),
        };
        each((tag >> 3) as u32, value)?;
    }
    Ok(())
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `RangeRequest`.
pub fn range(key: &[u8], end: &[u8], limit: usize, revision: u64, count_only: bool) -> Bytes {
    range_request(key, end, limit, revision, count_only).done()
}

fn range_request(key: &[u8], end: &[u8], limit: usize, revision: u64, count_only: bool) -> Writer {
    let mut out = Writer::default().bytes(1, key);
    if !end.is_empty() {
        out = out.bytes(2, end);
    }
    out.number(3, limit as u64).number(4, revision).number(9, u64::from(count_only))
}

/// `TxnRequest`: if a condition doesn't hold, each compared key is read.
pub fn txn(txn: &Txn) -> Bytes {
    // Results: equal 0, greater 1. Targets: creation 1, modification 2.
    let compare = |result, target, key: &str, field: u32, revision: u64| {
        let out = Writer::default().number(1, result).number(2, target).bytes(3, key.as_bytes());
        // The member of a oneof is written also when it is zero.
        let mut out = out;
        out.varint(u64::from(field << 3));
        out.varint(revision);
        out
    };
    let mut out = Writer::default();
    for one in &txn.compares {
        out = match one {
            Compare::Absent(key) => out.message(1, compare(0, 1, key, 5, 0)),
            Compare::ModRevision(key, revision) => {
                let out = out.message(1, compare(0, 2, key, 6, revision.0));
                // To etcd, what doesn't exist was modified at zero.
                out.message(1, compare(1, 1, key, 5, 0))
            }
        };
    }
    for op in &txn.ops {
        let request = match op {
            Op::Put(key, value) => {
                Writer::default().message(2, Writer::default().bytes(1, key.as_bytes()).bytes(2, value))
            }
            Op::Delete(key) => Writer::default().message(3, Writer::default().bytes(1, key.as_bytes())),
        };
        out = out.message(2, request);
    }
    for one in &txn.compares {
        let read = range_request(one.key().as_bytes(), &[], 0, 0, false);
        out = out.message(3, Writer::default().message(1, read));
    }
    out.done()
}

/// `CompactionRequest`.
pub fn compact(revision: u64) -> Bytes {
    Writer::default().number(1, revision).done()
}

/// `WatchRequest` with a `WatchCreateRequest`: from a revision on, with what stood there before, in pieces if it is large.
pub fn watch(start: &[u8], end: &[u8], from: u64) -> Bytes {
    let create = Writer::default().bytes(1, start).bytes(2, end).number(3, from);
    let create = create.number(4, 1).number(6, 1).number(8, 1);
    Writer::default().message(1, create).done()
}

/// `WatchRequest` with a `WatchProgressRequest`: how far has this stream been sent everything?
pub fn progress() -> Bytes {
    Writer::default().message(3, Writer::default()).done()
}

/// `KeyValue`.
fn entry(from: Bytes) -> Result<Entry> {
    let (mut key, mut value) = (Bytes::new(), Bytes::new());
    let (mut created, mut modified) = (0, 0);
    fields(from, |field, found| {
        match (field, found) {
            (1, Value::Bytes(bytes)) => key = bytes,
            (2, Value::Number(number)) => created = number,
            (3, Value::Number(number)) => modified = number,
            (5, Value::Bytes(bytes)) => value = bytes,
            _ => {}
        }
        Ok(())
    })?;
    Ok(Entry {
        key: text(&key).into(),
        // A slice would keep the whole message it came in alive.
        value: Bytes::copy_from_slice(&value),
        create_revision: Revision(created),
        mod_revision: Revision(modified),
    })
}

/// The revision in a `ResponseHeader`.
fn header(from: Bytes) -> Result<u64> {
    let mut revision = 0;
    fields(from, |field, found| {
        if let (3, Value::Number(number)) = (field, found) {
            revision = number;
        }
        Ok(())
    })?;
    Ok(revision)
}

/// `RangeResponse`.
#[derive(Debug, Default)]
pub struct Ranged {
    pub revision: u64,
    pub entries: Vec<Entry>,
    pub more: bool,
}

impl Ranged {
    pub fn read(from: Bytes) -> Result<Ranged> {
        let mut out = Ranged::default();
        fields(from, |field, found| {
            match (field, found) {
                (1, Value::Bytes(bytes)) => out.revision = header(bytes)?,
                (2, Value::Bytes(bytes)) => out.entries.push(entry(bytes)?),
                (3, Value::Number(number)) => out.more = number != 0,
                _ => {}
            }
            Ok(())
        })?;
        Ok(out)
    }
}

/// `TxnResponse`.
#[derive(Debug, Default)]
pub struct Concluded {
    pub revision: u64,
    pub succeeded: bool,
    /// Of a refused transaction: what stood at each compared key.
    pub current: Vec<Option<Entry>>,
}

impl Concluded {
    pub fn read(from: Bytes) -> Result<Concluded> {
        let mut out = Concluded::default();
        fields(from, |field, found| {
            match (field, found) {
                (1, Value::Bytes(bytes)) => out.revision = header(bytes)?,
                (2, Value::Number(number)) => out.succeeded = number != 0,
                (3, Value::Bytes(bytes)) => fields(bytes, |field, found| {
                    if let (1, Value::Bytes(bytes)) = (field, found) {
                        out.current.push(Ranged::read(bytes)?.entries.pop());
                    }
                    Ok(())
                })?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(out)
    }
}

/// `WatchResponse`.
#[derive(Debug, Default)]
pub struct Watched {
    pub revision: u64,
    pub created: bool,
    pub canceled: bool,
    /// Of a canceled watch that began too early: the oldest revision there is.
    pub compacted: u64,
    pub reason: String,
    /// More of the same revisions follow.
    pub fragment: bool,
    /// With the revision of each.
    pub changes: Vec<(u64, Change)>,
}

impl Watched {
    pub fn read(from: Bytes) -> Result<Watched> {
        let mut out = Watched::default();
        fields(from, |field, found| {
            match (field, found) {
                (1, Value::Bytes(bytes)) => out.revision = header(bytes)?,
                (3, Value::Number(number)) => out.created = number != 0,
                (4, Value::Number(number)) => out.canceled = number != 0,
                (5, Value::Number(number)) => out.compacted = number,
                (6, Value::Bytes(bytes)) => out.reason = text(&bytes),
                (7, Value::Number(number)) => out.fragment = number != 0,
                (11, Value::Bytes(bytes)) => out.changes.push(change(bytes)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// Whether this says only how far everything has been sent.
    pub fn is_progress(&self) -> bool {
        self.changes.is_empty() && !self.created && !self.canceled && !self.fragment
    }
}

/// `Event`.
fn change(from: Bytes) -> Result<(u64, Change)> {
    let (mut deleted, mut now, mut previous) = (false, None, None);
    fields(from, |field, found| {
        match (field, found) {
            (1, Value::Number(number)) => deleted = number == 1,
            (2, Value::Bytes(bytes)) => now = Some(entry(bytes)?),
            (3, Value::Bytes(bytes)) => previous = Some(entry(bytes)?),
            _ => {}
        }
        Ok(())
    })?;
    let now = now.ok_or_else(malformed)?;
    let revision = now.mod_revision.0;
    let change = match deleted {
        true => Change::Delete { key: now.key, previous },
        false => Change::Put { entry: now, previous },
    };
    Ok((revision, change))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_written_as_etcd_reads_them() {
        // By hand: field 1 "a", field 3 limit 2, field 4 revision 300.
        assert_eq!(range(b"a", b"", 2, 300, false), &b"\x0a\x01a\x18\x02\x20\xac\x02"[..]);
        let txn = txn(&Txn {
            compares: vec![Compare::Absent("k".into())],
            ops: vec![Op::Put("k".into(), "v".into()), Op::Delete("x".into())],
        });
        let expected: &[u8] = b"\x0a\x07\x10\x01\x1a\x01k\x28\x00\x12\x08\x12\x06\x0a\x01k\x12\x01v\x12\x05\x1a\x03\x0a\x01x\x1a\x05\x0a\x03\x0a\x01k";
        assert_eq!(txn, expected);
        assert_eq!(progress(), &b"\x1a\x00"[..]);
    }

    #[test]
    fn what_is_cut_short_or_strange_is_an_error_and_what_is_new_is_passed_over() {
        // A header with revision 7, and a field that nobody knows.
        let ranged = Ranged::read(Bytes::from_static(b"\x0a\x02\x18\x07\xfa\x07\x03new")).unwrap();
        assert_eq!((ranged.revision, ranged.more), (7, false));
        for bad in [&b"\x0a\x09\x18"[..], b"\x18", b"\x0b", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert!(matches!(Ranged::read(Bytes::from_static(bad)), Err(Error::Engine(_))), "{bad:?}");
        }
    }
}
