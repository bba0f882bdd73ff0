//! JSON Web Tokens of service accounts (RFC 7515, 7519): signed with ES256, checked, and the key published.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::auth::fingerprint;

/// What stands before the 65 bytes of a P-256 point in a SubjectPublicKeyInfo (RFC 5480): the key id is the digest of the
/// whole, as in Kubernetes (`keyIDFromPublicKey`).
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// How far clocks may be apart (go-jose's `DefaultLeeway`).
pub(crate) const LEEWAY_S: i64 = 60;

/// A key that signs tokens.
pub(crate) struct Signer {
    pair: EcdsaKeyPair,
    id: String,
}

impl Signer {
    /// From a P-256 private key in PKCS #8.
    pub(crate) fn new(pkcs8: &[u8]) -> anyhow::Result<Signer> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new())
            .map_err(|error| anyhow::anyhow!("the key for tokens is no P-256 key in PKCS #8: {error}"))?;
        let spki = [&SPKI[..], pair.public_key().as_ref()].concat();
        let id = BASE64URL.encode(fingerprint(&spki));
        Ok(Signer { pair, id })
    }

    /// A fresh key that lives as long as the process.
    pub(crate) fn ephemeral() -> anyhow::Result<Signer> {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("no randomness to be had"))?;
        Signer::new(pkcs8.as_ref())
    }

    /// The token that says this.
    pub(crate) fn sign(&self, claims: &Value) -> anyhow::Result<String> {
        let head = json!({"alg": "ES256", "kid": self.id});
        let text = format!("{}.{}", BASE64URL.encode(head.to_string()), BASE64URL.encode(claims.to_string()));
        let signature = self
            .pair
            .sign(&SystemRandom::new(), text.as_bytes())
            .map_err(|_| anyhow::anyhow!("no randomness to be had"))?;
        Ok(format!("{text}.{}", BASE64URL.encode(signature.as_ref())))
    }

    /// Whether the token was signed with this key.
    fn signed(&self, token: &Token<'_>) -> bool {
        let key = ring::signature::UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key());
        key.verify(token.signed.as_bytes(), &token.signature).is_ok()
    }

    /// The public key as a JSON Web Key Set (RFC 7517).
    pub(crate) fn key_set(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": BASE64URL.encode(&point[1..33]), "y": BASE64URL.encode(&point[33..65]),
        }]})
    }

    /// The claims of a token that this key signed. The texts are those that a TokenReview shows.
    pub(crate) fn check(&self, token: &Token<'_>) -> Result<(), String> {
        if token.key_id.as_deref().is_some_and(|id| !id.is_empty() && id != self.id) {
            return Err("invalid signature, no keys found".into());
        }
        if token.algorithm != "ES256" || !self.signed(token) {
            return Err("go-jose/go-jose: error in cryptographic primitive".into());
        }
        Ok(())
    }
}

/// A token, taken apart; nothing of it is proved.
pub(crate) struct Token<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    algorithm: String,
    key_id: Option<String>,
    /// What it says.
    pub claims: Value,
}

impl<'a> Token<'a> {
    /// Takes a token apart; none if it is no JSON Web Token.
    pub(crate) fn parse(token: &'a str) -> Option<Token<'a>> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.').filter(|(_, claims)| !claims.contains('.'))?;
        let value = |part: &str| serde_json::from_slice::<Value>(&BASE64URL.decode(part).ok()?).ok();
        let head = value(head)?;
        let claims = value(claims).filter(Value::is_object)?;
        Some(Token {
            signed,
            signature: BASE64URL.decode(signature).ok()?,
            algorithm: head["alg"].as_str()?.to_owned(),
            key_id: head["kid"].as_str().map(str::to_owned),
            claims,
        })
    }

    /// Who says that they issued it.
    pub(crate) fn issuer(&self) -> &str {
        self.claims["iss"].as_str().unwrap_or_default()
    }

    /// For whom it is: one name or several (RFC 7519 section 4.1.3).
    pub(crate) fn audiences(&self) -> Vec<String> {
        match &self.claims["aud"] {
            Value::String(one) => vec![one.clone()],
            Value::Array(several) => several.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether its time has come and not passed, in seconds of the epoch.
    pub(crate) fn timely(&self, now_s: i64) -> Result<(), String> {
        let time = |name: &str| self.claims[name].as_f64().map(|seconds| seconds as i64);
        if time("nbf").is_some_and(|start| now_s + LEEWAY_S < start) {
            return Err("service account token is not valid yet".into());
        }
        if time("exp").is_some_and(|end| now_s - LEEWAY_S > end) {
            return Err("service account token has expired".into());
        }
        if time("iat").is_some_and(|issued| now_s + LEEWAY_S < issued) {
            return Err("service account token is issued in the future".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &Value) -> (Signer, String) {
        let signer = Signer::ephemeral().expect("a key");
        let token = signer.sign(claims).expect("signed");
        (signer, token)
    }

    #[test]
    fn only_what_the_key_signed_is_believed() {
        let (signer, text) = token(&json!({"iss": "here", "aud": "one"}));
        let parsed = Token::parse(&text).expect("a token");
        assert_eq!((parsed.issuer(), parsed.audiences()), ("here", vec!["one".to_owned()]));
        assert_eq!(signer.check(&parsed), Ok(()));

        let (stranger, _) = token(&json!({}));
        assert!(stranger.check(&parsed).is_err_and(|why| why.contains("no keys found")));

        // The same head and signature over other claims, and an algorithm that needs no key.
        let parts: Vec<&str> = text.split('.').collect();
        let claims = BASE64URL.encode(json!({"iss": "here", "aud": "two"}).to_string());
        let forged = format!("{}.{claims}.{}", parts[0], parts[2]);
        assert!(signer.check(&Token::parse(&forged).expect("a token")).is_err());
        let none = BASE64URL.encode(json!({"alg": "none"}).to_string());
        let forged = format!("{none}.{}.", parts[1]);
        assert!(signer.check(&Token::parse(&forged).expect("a token")).is_err());
        assert!(Token::parse("a.b").is_none() && Token::parse("secret").is_none());
    }

    #[test]
    fn a_token_has_its_time() {
        let (_, text) = token(&json!({"nbf": 1000, "iat": 1000, "exp": 2000}));
        let token = Token::parse(&text).expect("a token");
        let rows = [
            (1000, None),
            (2000 + LEEWAY_S, None),
            (2001 + LEEWAY_S, Some("expired")),
            (939, Some("not valid yet")),
        ];
        for (now, why) in rows {
            let said = token.timely(now).err().unwrap_or_default();
            assert!(why.map_or(said.is_empty(), |why| said.contains(why)), "{now}: {said}");
        }
    }

    #[test]
    fn the_published_key_is_a_point_of_the_curve() {
        let key = Signer::ephemeral().expect("a key").key_set();
        let key = &key["keys"][0];
        assert_eq!((key["kty"].as_str(), key["crv"].as_str()), (Some("EC"), Some("P-256")));
        for coordinate in ["x", "y"] {
            assert_eq!(BASE64URL.decode(key[coordinate].as_str().expect("text")).expect("base64").len(), 32);
        }
    }
}
