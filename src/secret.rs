//! What a server and its nodes derive from the token they share, so that a node needs one secret and no more.

use ring::hmac;

/// The bearer token with which the server asks a node for logs.
pub fn log_token(node_token: &str) -> String {
    derive(node_token, "portolan/pod-logs").iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The key that seals the heartbeats between the nodes' speakers.
pub fn heartbeat_key(node_token: &str) -> Vec<u8> {
    derive(node_token, "portolan/lb-heartbeat")
}

/// One secret per purpose: knowing one tells nothing of the others, nor of the token.
fn derive(token: &str, purpose: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, token.trim().as_bytes()), purpose.as_bytes())
        .as_ref()
        .to_vec()
}

#[cfg(test)]
mod tests {
    #[test]
    fn purposes_and_tokens_have_secrets_of_their_own() {
        assert_eq!(super::log_token("a\n"), super::log_token("a"));
        assert_ne!(super::log_token("a"), super::log_token("b"));
        let logs = super::log_token("a");
        let beats: String = super::heartbeat_key("a").iter().map(|b| format!("{b:02x}")).collect();
        assert_ne!(logs, beats);
    }
}
