//! Who asks: bearer tokens and the identities behind them.

use std::collections::HashMap;

use ring::digest::{SHA256, digest};

/// A user, as the server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name, as in `system:node:node-1`.
    pub user: String,
    /// The groups that the user is in.
    pub groups: Vec<String>,
}

impl Identity {
    /// A user in some groups.
    pub fn new(user: impl Into<String>, groups: &[&str]) -> Identity {
        Identity { user: user.into(), groups: groups.iter().map(|group| (*group).to_owned()).collect() }
    }

    /// Somebody who may do everything.
    pub fn admin() -> Identity {
        Identity::new("kubernetes-admin", &["system:masters", "system:authenticated"])
    }
}

/// Tokens by their digests, so that neither a map's probe nor a comparison takes a time that depends on a secret.
#[derive(Clone, Default)]
pub(crate) struct Tokens(HashMap<[u8; 32], Identity>);

impl Tokens {
    pub(crate) fn new(tokens: impl IntoIterator<Item = (String, Identity)>) -> Tokens {
        Tokens(
            tokens.into_iter().map(|(token, identity)| (fingerprint(token.as_bytes()), identity)).collect(),
        )
    }

    /// The identity behind an `Authorization` header.
    pub(crate) fn identify(&self, authorization: &str) -> Option<Identity> {
        // The scheme's case doesn't matter (RFC 9110 section 11.1).
        let (scheme, token) = authorization.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        self.0.get(&fingerprint(token.trim().as_bytes())).cloned()
    }
}

/// SHA-256.
pub(crate) fn fingerprint(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// 32 bytes from hexadecimal; colons between bytes, as openssl prints them, are allowed.
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks(2).map(|pair| pair.iter().fold(0, |sum, digit| sum << 4 | digit)).collect();
    <[u8; 32]>::try_from(bytes).ok().filter(|_| digits.len() == 64)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_bearer_token_identifies() {
        let tokens = Tokens::new([("secret".to_owned(), Identity::admin())]);
        assert_eq!(tokens.identify("Bearer secret"), Some(Identity::admin()));
        assert_eq!(tokens.identify("bearer  secret"), Some(Identity::admin()));
        assert_eq!(tokens.identify("Bearer other"), None);
        assert_eq!(tokens.identify("Basic secret"), None);
        assert_eq!(tokens.identify("secret"), None);
    }
}
