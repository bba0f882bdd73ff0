//! Randomness for names, addresses, identifiers and spread: all from the kernel's generator.

use ring::rand::{SecureRandom as _, SystemRandom};

fn fill(bytes: &mut [u8]) {
    // getrandom(2) doesn't fail once the machine has booted; a repeated name is found by the store anyway.
    let _ = SystemRandom::new().fill(bytes);
}

/// A number below `bound` (0 if that is 0). The bias of the remainder is below 2^-32 for the bounds here.
pub(crate) fn below(bound: u64) -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes).checked_rem(bound).unwrap_or(0)
}

/// A random UUID (RFC 9562, version 4).
pub(crate) fn uuid() -> String {
    let mut bytes = [0; 16];
    fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = crate::auth::hex(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
