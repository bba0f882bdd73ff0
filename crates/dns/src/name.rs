//! Domain names as they are on the wire: labels with their lengths before them, an empty one at the end (RFC 1035 §3.1).

use std::fmt;

/// The most octets of a name (RFC 1035 §2.3.4).
pub const LONGEST: usize = 255;
/// The most octets of a label.
pub const LONGEST_LABEL: usize = 63;

/// A whole name.
#[derive(Clone, Copy)]
pub struct Name {
    octets: [u8; LONGEST],
    length: u8,
}

impl Name {
    /// The root.
    pub const ROOT: Name = Name { octets: [0; LONGEST], length: 1 };

    /// The name at `at` in a message, its pointers followed; and where it ends there. `None` if it is malformed.
    pub fn read(message: &[u8], at: usize) -> Option<(Name, usize)> {
        let mut name = Name { octets: [0; LONGEST], length: 0 };
        let (mut at, mut end, mut before) = (at, None, at);
        loop {
            let length = *message.get(at)?;
            match length {
                0 => {
                    name.push(&[0])?;
                    return Some((name, end.unwrap_or(at + 1)));
                }
                1..=63 => {
                    name.push(message.get(at..=at + usize::from(length))?)?;
                    at += usize::from(length) + 1;
                }
                0xc0.. => {
                    let target = usize::from(length & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
                    end.get_or_insert(at + 2);
                    // A pointer is to a prior occurrence (§4.1.4): always further back, so that it ends.
                    if target >= before {
                        return None;
                    }
                    (at, before) = (target, target);
                }
                _ => return None,
            }
        }
    }

    /// A name from its text, with or without a dot at its end. `None` if it has an empty or too long label, or is too long.
    pub fn parse(text: &str) -> Option<Name> {
        let mut name = Name { octets: [0; LONGEST], length: 0 };
        let text = text.strip_suffix('.').unwrap_or(text);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            name.push_label(label.as_bytes())?;
        }
        name.push(&[0])?;
        Some(name)
    }

    /// A name of these labels, or of labels that are on the wire already, before another name. `None` if it is too long.
    pub fn of(parts: &[&[u8]], then: &[u8]) -> Option<Name> {
        let mut name = Name { octets: [0; LONGEST], length: 0 };
        for part in parts {
            name.push(part)?;
        }
        name.push(then)?;
        Some(name)
    }

    fn push(&mut self, octets: &[u8]) -> Option<()> {
        let (from, to) = (usize::from(self.length), usize::from(self.length) + octets.len());
        self.octets.get_mut(from..to)?.copy_from_slice(octets);
        self.length = to as u8;
        Some(())
    }

    fn push_label(&mut self, label: &[u8]) -> Option<()> {
        if label.is_empty() || label.len() > LONGEST_LABEL {
            return None;
        }
        self.push(&[label.len() as u8])?;
        self.push(label)
    }

    /// The octets on the wire.
    pub fn wire(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }

    /// The same name in lower case. Lengths of labels are below 64 and no letters.
    pub fn lower(mut self) -> Name {
        self.octets[..usize::from(self.length)].make_ascii_lowercase();
        self
    }

    /// What is before `suffix`, a name in the same case, if this name is that one or below it.
    pub fn before(&self, suffix: &Name) -> Option<&[u8]> {
        let rest = self.wire().strip_suffix(suffix.wire())?;
        // The same octets may be the end of a longer label: only where a label begins is it the suffix.
        let mut at = 0;
        while at < rest.len() {
            at += usize::from(rest[at]) + 1;
        }
        (at == rest.len()).then_some(rest)
    }

    /// Its last so many octets, which begin where a label begins.
    pub fn end(&self, octets: usize) -> Name {
        Name::of(&[], &self.wire()[self.wire().len().saturating_sub(octets)..]).unwrap_or(Name::ROOT)
    }

    /// Its labels without the empty one, the leftmost first.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        labels(self.wire())
    }
}

/// The labels in a piece of a name.
pub fn labels(mut wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&length, rest) = wire.split_first()?;
        let (label, rest) = rest.split_at_checked(usize::from(length))?;
        wire = rest;
        (!label.is_empty()).then_some(label)
    })
}

/// A label as it is on the wire; `None` if it is empty or too long.
pub fn label(text: &str) -> Option<Box<[u8]>> {
    let mut wire = Vec::with_capacity(text.len() + 1);
    wire.push(u8::try_from(text.len()).ok().filter(|n| (1..=LONGEST_LABEL).contains(&usize::from(*n)))?);
    wire.extend(text.bytes().map(|b| b.to_ascii_lowercase()));
    Some(wire.into())
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        self.wire() == other.wire()
    }
}

impl Eq for Name {}

impl std::hash::Hash for Name {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.wire().hash(state);
    }
}

/// The text of a name as zone files have it (RFC 1035 §5.1).
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.length <= 1 {
            return f.write_str(".");
        }
        for label in self.labels() {
            for &octet in label {
                match octet {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(octet))?,
                    b'!'..=b'~' => write!(f, "{}", char::from(octet))?,
                    _ => write!(f, "\\{octet:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_through_its_pointers_and_a_loop_is_refused() {
        let message = b"\x03web\x00\x01a\xc0\x00\xc0\x05\xc0\x0b";
        assert_eq!(Name::read(message, 0).map(|(n, end)| (n.to_string(), end)), Some(("web.".into(), 5)));
        assert_eq!(Name::read(message, 5).map(|(n, end)| (n.to_string(), end)), Some(("a.web.".into(), 9)));
        assert_eq!(Name::read(message, 9).map(|(n, end)| (n.to_string(), end)), Some(("a.web.".into(), 11)));
        assert_eq!(Name::read(message, 11), None, "it points at itself");
        assert_eq!(Name::read(b"\x05web", 0), None, "cut off");
        assert_eq!(Name::read(b"\x80web\x00", 0), None, "a kind of label that isn't");
        let long = [
            &b"\x3f"[..],
            &[b'a'; 63],
            b"\x3f",
            &[b'a'; 63],
            b"\x3f",
            &[b'a'; 63],
            b"\x3f",
            &[b'a'; 63],
            b"\0",
        ];
        assert_eq!(Name::read(&long.concat(), 0), None, "257 octets");
    }

    #[test]
    fn a_suffix_begins_where_a_label_begins() {
        let zone = Name::parse("cluster.local").unwrap();
        let before = |text| Name::parse(text).unwrap().before(&zone).map(|b| labels(b).count());
        assert_eq!(before("cluster.local."), Some(0));
        assert_eq!(before("web.default.svc.cluster.local"), Some(3));
        assert_eq!(before("local"), None);
        // The label `x\x07cluster` ends with the octets of the zone.
        let tricky = Name::of(&[b"\x09x\x07cluster\x05local\x00"], &[]).unwrap();
        assert_eq!(tricky.before(&zone), None);
    }

    #[test]
    fn a_label_that_can_not_be_is_none() {
        assert_eq!(label("Web").as_deref(), Some(&b"\x03web"[..]));
        assert_eq!(label(""), None);
        assert_eq!(label(&"a".repeat(64)), None);
        assert_eq!(Name::parse("a..b"), None);
        assert_eq!(Name::parse("."), Some(Name::ROOT));
    }
}
