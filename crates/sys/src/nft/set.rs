//! Declarations of sets and maps, with keys typed as nft types them.

use super::Family;

/// `NFT_SET_…` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetFlags(pub u32);

impl SetFlags {
    /// Belongs to one rule and goes with it.
    pub const ANONYMOUS: SetFlags = SetFlags(1);
    /// Its elements don't change.
    pub const CONSTANT: SetFlags = SetFlags(2);
    /// Its elements are the bounds of intervals.
    pub const INTERVAL: SetFlags = SetFlags(4);
    /// Has data.
    pub const MAP: SetFlags = SetFlags(8);
    /// Its elements may time out.
    pub const TIMEOUT: SetFlags = SetFlags(16);
    /// Rules change it.
    pub const DYNAMIC: SetFlags = SetFlags(32);

    /// Both.
    pub const fn with(self, other: SetFlags) -> SetFlags {
        SetFlags(self.0 | other.0)
    }

    /// Whether all of the other's flags are set.
    pub fn has(self, other: SetFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One field of a key or of data, as the expression that nft prints for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `ip saddr` or `ip6 saddr`
    Source(Family),
    /// `ip daddr` or `ip6 daddr`
    Destination(Family),
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    Port,
    /// `meta priority`
    Priority,
    /// `numgen random mod 2`
    Random,
    /// A verdict (data only).
    Verdict,
}

/// A set or a map to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetDeclaration {
    /// Its name; an anonymous set's is a pattern such as `__set%d`.
    pub name: String,
    /// Flags.
    pub flags: SetFlags,
    /// The fields of the key.
    pub key: Vec<Field>,
    /// The fields of the data of a map.
    pub data: Vec<Field>,
    /// At most so many elements; 0 for no limit.
    pub size: u32,
}

/// The kinds of expression and header in nft's userdata (`enum expr_types`, `enum proto_desc_id` of nft).
const EXPR_VERDICT: u32 = 1;
const EXPR_PAYLOAD: u32 = 7;
const EXPR_META: u32 = 9;
const EXPR_CONCAT: u32 = 13;
const EXPR_NUMGEN: u32 = 23;
const PROTO_TH: u32 = 11;
const PROTO_IP: u32 = 12;
const PROTO_IP6: u32 = 13;

/// `NFT_DATA_VERDICT`.
const DATA_VERDICT: u32 = 0xffff_ff00;

impl Field {
    /// Its length in bytes, before padding.
    pub fn length(self) -> usize {
        match self {
            Field::Source(Family::Ip) | Field::Destination(Family::Ip) => 4,
            Field::Source(Family::Ip6) | Field::Destination(Family::Ip6) => 16,
            Field::Protocol => 1,
            Field::Port => 2,
            Field::Priority | Field::Random => 4,
            Field::Verdict => 16,
        }
    }

    /// nft's number of the type, of which nft packs six bits per field into a concatenation's.
    fn datatype(self) -> u32 {
        match self {
            Field::Source(Family::Ip) | Field::Destination(Family::Ip) => 7,
            Field::Source(Family::Ip6) | Field::Destination(Family::Ip6) => 8,
            Field::Protocol => 12,
            Field::Port => 13,
            Field::Priority => 23,
            Field::Random => 4,
            Field::Verdict => DATA_VERDICT,
        }
    }

    /// nft's byte order: 1 host, 2 network, 0 none.
    fn byte_order(self) -> u32 {
        match self {
            Field::Priority | Field::Random => 1,
            Field::Verdict => 0,
            _ => 2,
        }
    }

    /// What nft writes so that it can print the expression again.
    fn userdata(self) -> Vec<u8> {
        let (kind, body) = match self {
            Field::Source(family) => (EXPR_PAYLOAD, payload(family_header(family), source_index(family))),
            Field::Destination(family) => {
                (EXPR_PAYLOAD, payload(family_header(family), source_index(family) + 1))
            }
            Field::Port => (EXPR_PAYLOAD, payload(PROTO_TH, 2)),
            Field::Protocol => (EXPR_META, word(0, 16)),
            Field::Priority => (EXPR_META, word(0, 2)),
            Field::Random => (EXPR_NUMGEN, [word(0, 1), word(1, 2), word(2, 0)].concat()),
            Field::Verdict => (EXPR_VERDICT, Vec::new()),
        };
        expression(kind, &body)
    }
}

fn family_header(family: Family) -> u32 {
    match family {
        Family::Ip => PROTO_IP,
        Family::Ip6 => PROTO_IP6,
    }
}

/// The index of the source address among nft's header fields.
fn source_index(family: Family) -> u32 {
    match family {
        Family::Ip => 11,
        Family::Ip6 => 8,
    }
}

/// One type-length-value of nft's userdata.
fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    debug_assert!(value.len() < 256);
    [&[kind, value.len() as u8], value].concat()
}

/// One of 32 bits in host order.
fn word(kind: u8, value: u32) -> Vec<u8> {
    tlv(kind, &value.to_ne_bytes())
}

fn payload(header: u32, field: u32) -> Vec<u8> {
    [word(0, header), word(1, field)].concat()
}

fn expression(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut all = word(0, kind);
    if !body.is_empty() || kind == EXPR_VERDICT {
        all.extend(tlv(1, body));
    }
    all
}

/// The userdata of the expression that a tuple of fields stands for.
fn tuple(fields: &[Field]) -> Vec<u8> {
    match fields {
        [one] => one.userdata(),
        many => {
            let parts: Vec<u8> =
                many.iter().enumerate().flat_map(|(i, field)| tlv(i as u8, &field.userdata())).collect();
            expression(EXPR_CONCAT, &parts)
        }
    }
}

fn order(fields: &[Field]) -> u32 {
    match fields {
        [one] => one.byte_order(),
        _ => 0,
    }
}

fn datatype(fields: &[Field]) -> u32 {
    match fields {
        [one] => one.datatype(),
        many => many.iter().fold(0, |all, field| all << 6 | field.datatype()),
    }
}

fn length(fields: &[Field]) -> u32 {
    match fields {
        [one] => one.length() as u32,
        many => many.iter().map(|field| field.length().next_multiple_of(4) as u32).sum(),
    }
}

impl SetDeclaration {
    /// The length of a key in bytes.
    pub fn key_length(&self) -> u32 {
        length(&self.key)
    }

    /// The length of an element's data in bytes.
    pub fn data_length(&self) -> u32 {
        length(&self.data)
    }

    pub(super) fn key_type(&self) -> u32 {
        datatype(&self.key)
    }

    pub(super) fn data_type(&self) -> u32 {
        datatype(&self.data)
    }

    /// `NFTNL_UDATA_SET_…`: byte orders and the expressions that type key and data.
    pub(super) fn userdata(&self) -> Vec<u8> {
        let mut all = word(0, order(&self.key));
        if !self.data.is_empty() {
            all.extend(word(1, order(&self.data)));
        }
        if !self.flags.has(SetFlags::ANONYMOUS) {
            all.extend(tlv(3, &tuple(&self.key)));
            if !self.data.is_empty() {
                all.extend(tlv(4, &tuple(&self.data)));
            }
        }
        if !self.data.is_empty() {
            all.extend(word(6, 0));
        }
        all
    }
}

/// The longest comment that nft prints.
const COMMENT_MAX: usize = 127;

/// A comment as userdata of an element, a rule or a table (the number is 0 for each of them).
pub fn comment_userdata(comment: &str) -> Vec<u8> {
    let mut end = comment.len().min(COMMENT_MAX);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = Vec::with_capacity(end + 3);
    bytes.extend_from_slice(&[0, end as u8 + 1]);
    bytes.extend_from_slice(&comment.as_bytes()[..end]);
    bytes.push(0);
    bytes
}

/// The comment in userdata.
pub fn read_comment(userdata: &[u8]) -> Option<&str> {
    let mut rest = userdata;
    while let [kind, length, tail @ ..] = rest {
        let value = tail.get(..usize::from(*length))?;
        if *kind == 0 {
            return std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok();
        }
        rest = &tail[usize::from(*length)..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn declaration(key: &[Field], data: &[Field]) -> SetDeclaration {
        let flags = if data.is_empty() { SetFlags::default() } else { SetFlags::MAP };
        SetDeclaration { name: "x".into(), flags, key: key.into(), data: data.into(), size: 0 }
    }

    // What nft 1.0.6 writes for the same declarations, as read back from the kernel.
    #[test]
    fn typed_keys_are_written_as_nft_writes_them() {
        use Field::*;
        let frontends = declaration(&[Destination(Family::Ip), Protocol, Port], &[Priority]);
        assert_eq!(
            hex(&frontends.userdata()),
            "000400000000010401000000034400040d000000013c0014000407000000010c00040c00000001040c000000010e0004090000\
             0001060004100000000214000407000000010c00040b000000010402000000040e0004090000000106000402000000060400000000"
        );
        assert_eq!((frontends.key_type(), frontends.key_length()), (0x730d, 12));
        assert_eq!((frontends.data_type(), frontends.data_length()), (0x17, 4));
        let slots = declaration(&[Priority, Random], &[Destination(Family::Ip6), Port]);
        assert_eq!(
            hex(&slots.userdata()),
            "000400000000010400000000033400040d000000012c000e0004090000000106000402000000011a00041700000001120004010\
             00000010402000000020400000000043400040d000000012c0014000407000000010c00040d0000000104090000000114000407\
             000000010c00040b000000010402000000060400000000"
        );
        assert_eq!((slots.key_type(), slots.data_type(), slots.data_length()), (0x5c4, 0x20d, 20));
        let nodes = declaration(&[Destination(Family::Ip6)], &[]);
        assert_eq!(hex(&nodes.userdata()), "0004020000000314000407000000010c00040d000000010409000000");
        let pick = declaration(&[Priority], &[Verdict]);
        assert_eq!(
            hex(&pick.userdata()),
            "000401000000010400000000030e000409000000010600040200000004080004010000000100060400000000"
        );
    }

    #[test]
    fn a_comment_reads_back_and_is_cut_at_a_character() {
        assert_eq!(read_comment(&comment_userdata("default/kubernetes")), Some("default/kubernetes"));
        let long = "ä".repeat(100);
        let read = comment_userdata(&long);
        assert_eq!(read_comment(&read).map(str::len), Some(126));
    }
}
