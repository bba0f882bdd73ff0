//! Who asks: identities, and the credentials that stand in a request.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use http::{HeaderMap, header};
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value};

/// The group of everybody whose credentials are known (apiserver's `user.AllAuthenticated`).
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// The group of who shows no credentials.
pub(crate) const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The name of who shows no credentials.
pub(crate) const ANONYMOUS: &str = "system:anonymous";
/// The group that may do everything, whatever roles say.
pub(crate) const MASTERS: &str = "system:masters";
/// How the names of service accounts begin; `NAMESPACE:NAME` follows.
pub(crate) const ACCOUNT: &str = "system:serviceaccount:";

/// A user, as the server sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user's name, as in `system:node:node-1`.
    pub user: String,
    /// What tells users of one name apart over time; empty if nothing does.
    pub uid: String,
    /// The groups that the user is in.
    pub groups: Vec<String>,
    /// What else is known, such as the pod that a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Identity {
    /// A user in some groups.
    pub fn new(user: impl Into<String>, groups: &[&str]) -> Identity {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Identity { user: user.into(), groups, ..Identity::default() }
    }

    /// Somebody who may do everything.
    pub fn admin() -> Identity {
        Identity::new("kubernetes-admin", &[MASTERS, AUTHENTICATED])
    }

    /// A node, by its name.
    pub fn node(name: &str) -> Identity {
        Identity::new(format!("system:node:{name}"), &["system:nodes", AUTHENTICATED])
    }

    /// Who shows no credentials.
    pub fn anonymous() -> Identity {
        Identity::new(ANONYMOUS, &[UNAUTHENTICATED])
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|have| have == group)
    }

    /// The same user, in the group of those whose credentials are known.
    pub(crate) fn authenticated(mut self) -> Identity {
        if self.user != ANONYMOUS && !self.is_in(AUTHENTICATED) && !self.is_in(UNAUTHENTICATED) {
            self.groups.push(AUTHENTICATED.into());
        }
        self
    }

    /// `authentication.k8s.io/v1 UserInfo`.
    pub(crate) fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in [("username", &self.user), ("uid", &self.uid)] {
            if !text.is_empty() {
                out.insert(key.into(), text.as_str().into());
            }
        }
        if !self.groups.is_empty() {
            out.insert("groups".into(), self.groups.clone().into());
        }
        if !self.extra.is_empty() {
            out.insert("extra".into(), serde_json::json!(self.extra));
        }
        out.into()
    }
}

/// The service account's namespace and name in a user's name (apiserver's `SplitUsername`).
pub(crate) fn account_of(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(ACCOUNT)?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// The groups of a service account (apiserver's `MakeGroupNames`).
pub(crate) fn account_groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]
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

    /// The identity behind a token.
    pub(crate) fn identify(&self, token: &str) -> Option<Identity> {
        self.0.get(&fingerprint(token.as_bytes())).cloned()
    }
}

/// The bearer token in a request's headers: what stands behind `Authorization: Bearer`, or what a browser puts among the
/// subprotocols of a WebSocket, where it can set no other header (apiserver's `bearertoken` and `websocket` authenticators).
pub(crate) fn bearer(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(authorization) = text(header::AUTHORIZATION) {
        // The scheme's case doesn't matter (RFC 9110 section 11.1).
        let mut parts = authorization.trim().splitn(3, ' ');
        if let (Some(scheme), Some(token)) = (parts.next(), parts.next())
            && scheme.eq_ignore_ascii_case("bearer")
            && !token.is_empty()
        {
            return Some(token.to_owned());
        }
    }
    let protocols = text(header::SEC_WEBSOCKET_PROTOCOL)?.split(',').map(str::trim);
    let encoded = protocols.filter_map(|protocol| protocol.strip_prefix(WEBSOCKET_PROTOCOL)).next()?;
    let decoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(decoded).ok().filter(|token| !token.is_empty())
}

/// The subprotocol that carries a token.
const WEBSOCKET_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

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
        assert_eq!(tokens.identify("secret"), Some(Identity::admin()));
        assert_eq!(tokens.identify("other"), None);
        let token = |name: http::HeaderName, value: &str| {
            bearer(&HeaderMap::from_iter([(name, http::HeaderValue::from_str(value).expect("a header"))]))
        };
        for (value, expected) in [
            ("Bearer secret", Some("secret")),
            (" bearer secret trailing", Some("secret")),
            ("bearer  secret", None),
            ("Basic secret", None),
            ("secret", None),
        ] {
            assert_eq!(token(header::AUTHORIZATION, value).as_deref(), expected, "{value:?}");
        }
        let protocols = "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.c2VjcmV0";
        assert_eq!(token(header::SEC_WEBSOCKET_PROTOCOL, protocols).as_deref(), Some("secret"));
    }

    #[test]
    fn a_service_account_is_read_from_its_users_name() {
        assert_eq!(account_of("system:serviceaccount:default:web"), Some(("default", "web")));
        for other in [
            "system:serviceaccount:default",
            "system:serviceaccount::web",
            "web",
            "system:serviceaccount:a:b:c",
        ] {
            assert_eq!(account_of(other), None, "{other}");
        }
    }
}
