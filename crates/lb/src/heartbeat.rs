//! Heartbeats between speakers, as bytes: signed, so that a stranger on the network can neither pose as a node nor keep
//! a dead one alive.
//!
//! `"PTL1" | flags u8 | incarnation u64 | sequence u64 | length u8 | node | HMAC-SHA256 of all before`, big-endian.

use ring::hmac;

use crate::membership::Heartbeat;

const MAGIC: &[u8; 4] = b"PTL1";
const LEAVING: u8 = 1;
const FIXED: usize = 4 + 1 + 8 + 8 + 1;
const TAG: usize = 32;
/// No heartbeat is longer: a node's name has at most 253 characters (RFC 1123).
pub const LONGEST: usize = FIXED + 253 + TAG;

/// Signs and checks heartbeats with a key that all nodes of the cluster share.
#[derive(Clone, Debug)]
pub struct Seal {
    key: hmac::Key,
}

impl Seal {
    /// A seal from the secret that the nodes of a cluster share.
    pub fn new(secret: &[u8]) -> Seal {
        Seal { key: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    /// The bytes of a heartbeat.
    pub fn encode(&self, beat: &Heartbeat) -> Vec<u8> {
        let name = beat.node.as_bytes();
        let mut bytes = Vec::with_capacity(FIXED + name.len() + TAG);
        bytes.extend(MAGIC);
        bytes.push(if beat.leaving { LEAVING } else { 0 });
        bytes.extend(beat.incarnation.to_be_bytes());
        bytes.extend(beat.sequence.to_be_bytes());
        bytes.push(name.len().min(253) as u8);
        bytes.extend(&name[..name.len().min(253)]);
        let tag = hmac::sign(&self.key, &bytes);
        bytes.extend(tag.as_ref());
        bytes
    }

    /// The heartbeat in the bytes, if they are one and the seal is right.
    pub fn decode(&self, bytes: &[u8]) -> Option<Heartbeat> {
        let (signed, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG)?)?;
        hmac::verify(&self.key, signed, tag).ok()?;
        let name = signed.get(FIXED..)?;
        if signed.get(..4)? != MAGIC || name.len() != usize::from(signed[21]) {
            return None;
        }
        Some(Heartbeat {
            node: std::str::from_utf8(name).ok()?.to_owned(),
            leaving: signed[4] & LEAVING != 0,
            incarnation: u64::from_be_bytes(signed[5..13].try_into().ok()?),
            sequence: u64::from_be_bytes(signed[13..21].try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat() -> Heartbeat {
        Heartbeat { node: "node-1".into(), incarnation: 3, sequence: 9, leaving: true }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let seal = Seal::new(b"secret");
        assert_eq!(seal.decode(&seal.encode(&beat())), Some(beat()));
        assert!(seal.encode(&beat()).len() <= LONGEST);
    }

    #[test]
    fn a_changed_or_foreign_heartbeat_is_refused() {
        let seal = Seal::new(b"secret");
        let good = seal.encode(&beat());
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1;
            assert_eq!(seal.decode(&bad), None, "byte {i}");
            assert_eq!(seal.decode(&good[..i]), None, "cut at {i}");
        }
        assert_eq!(Seal::new(b"other").decode(&good), None);
    }
}
