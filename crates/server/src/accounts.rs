//! Service accounts' tokens: made on request, believed as long as what they are bound to is there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use portolan_api::fielderror::{FieldError, quote};
use portolan_api::{Kind, Status, meta, walk};
use serde_json::{Value, json};

use crate::auth::{ACCOUNT, Identity, account_groups, account_of};
use crate::config::Config;
use crate::http::{Answer, Call, json as respond, typed};
use crate::jwt::{LEEWAY_S, Signer, Token};
use crate::nodes;
use crate::rbac::quoted;
use crate::read::object_key;
use crate::server::Server;
use crate::{attributes, random};

/// Who issues the tokens that lie in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
/// The type of Secrets that hold a service account's token.
const TOKEN_SECRET: &str = "kubernetes.io/service-account-token";
/// The annotations of such Secrets.
const SECRET_ACCOUNT: &str = "kubernetes.io/service-account.name";
const SECRET_ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// The label of a Secret whose token is no longer good.
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// The least life of a token (`MinTokenAgeSec`).
const SHORTEST_S: i64 = 600;
const LONGEST_S: i64 = 1 << 32;
/// A pod's own token asks for this odd life; it gets a year, and a warning when the hour has passed: old clients that
/// never read the file again go on (`WarnOnlyBoundTokenExpirationSeconds`, `--service-account-extend-token-expiration`).
const EXTENDED_S: i64 = 3607;
const YEAR_S: i64 = 365 * 24 * 3600;

/// What tokens are made and checked with.
pub(crate) struct Accounts {
    signer: Signer,
    issuer: String,
    /// For whom tokens are, if nobody says otherwise.
    audiences: Vec<String>,
    authority: Option<String>,
}

impl Accounts {
    pub(crate) fn new(config: &Config) -> anyhow::Result<Accounts> {
        let signer = match &config.signing_key {
            Some(pkcs8) => Signer::new(pkcs8)?,
            None => Signer::ephemeral()?,
        };
        let issuer = config.issuer.clone();
        Ok(Accounts {
            signer,
            audiences: vec![issuer.clone()],
            issuer,
            authority: config.authority_pem.clone(),
        })
    }

    /// The audiences of this API.
    pub(crate) fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// `/openid/v1/jwks`.
    pub(crate) fn key_set(&self) -> http::Response<crate::body::ServerBody> {
        published("application/jwk-set+json", &self.signer.key_set())
    }

    /// `/.well-known/openid-configuration`.
    pub(crate) fn discovery(&self, config: &Config) -> http::Response<crate::body::ServerBody> {
        let host = config.advertise_addresses.first().map_or_else(
            || format!("localhost:{}", config.advertise_port),
            |ip| std::net::SocketAddr::new(*ip, config.advertise_port).to_string(),
        );
        let document = json!({
            "issuer": self.issuer,
            "jwks_uri": format!("https://{host}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        });
        published("application/json", &document)
    }
}

fn published(media: &'static str, document: &Value) -> http::Response<crate::body::ServerBody> {
    let mut response = typed(StatusCode::OK, media, document.to_string());
    let an_hour = HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(header::CACHE_CONTROL, an_hour);
    response
}

/// Who a token stands for, and for which of the wanted audiences; `Err` if it stands for nobody, and why.
pub(crate) type Proof = Result<(Identity, Vec<String>), String>;

/// What a token is bound to, as it stands in its claims.
#[derive(Clone, Debug, Default)]
struct Bound {
    name: String,
    uid: String,
}

impl Bound {
    fn of(claims: &Value, what: &str) -> Option<Bound> {
        let bound = claims["kubernetes.io"].get(what)?;
        let text = |field: &str| bound[field].as_str().unwrap_or_default().to_owned();
        Some(Bound { name: text("name"), uid: text("uid") })
    }
}

/// Whether something has been marked for deletion so long ago that its tokens are dead.
fn deleted(object: &Value, now: Timestamp) -> bool {
    let at = meta::deletion_timestamp(object).and_then(|at| at.parse::<Timestamp>().ok());
    at.is_some_and(|at| at.as_second() < now.as_second() - LEEWAY_S)
}

impl Server {
    /// Who a bearer token stands for.
    pub(crate) async fn prove(&self, token: &str, audiences: &[String]) -> Proof {
        const NOBODY: &str = "invalid bearer token";
        if let Some(identity) = self.tokens.identify(token) {
            // Tokens from a file know nothing of audiences: they are for this API.
            let audiences = shared(&self.accounts.audiences, audiences);
            return if audiences.is_empty() {
                Err(NOBODY.into())
            } else {
                Ok((identity.authenticated(), audiences))
            };
        }
        let Some(token) = Token::parse(token).map(|parsed| (parsed, token)) else {
            return Err(NOBODY.into());
        };
        match self.prove_account(&token.0, token.1, audiences).await {
            Ok(Some((identity, audiences))) => Ok((identity.authenticated(), audiences)),
            Ok(None) => Err(NOBODY.into()),
            // Two authenticators have spoken: the tokens' file, and this one.
            Err(why) => Err(format!("[{NOBODY}, {why}]")),
        }
    }

    async fn prove_account(
        &self,
        token: &Token<'_>,
        text: &str,
        wanted: &[String],
    ) -> Result<Option<(Identity, Vec<String>)>, String> {
        let legacy = match token.issuer() {
            LEGACY_ISSUER => true,
            issuer if issuer == self.accounts.issuer => false,
            _ => return Ok(None),
        };
        self.accounts.signer.check(token)?;
        let mut audiences = token.audiences();
        if audiences.is_empty() {
            audiences.clone_from(&self.accounts.audiences);
        }
        let good = shared(&audiences, wanted);
        if good.is_empty() {
            let (has, wanted) = (quoted(&audiences), quoted(wanted));
            return Err(format!("token audiences {has} is invalid for the target audiences {wanted}"));
        }
        let identity =
            if legacy { self.prove_secret(token, text).await? } else { self.prove_bound(token).await? };
        Ok(Some((identity, good)))
    }

    /// A token from a TokenRequest: it dies with what it is bound to.
    async fn prove_bound(&self, token: &Token<'_>) -> Result<Identity, String> {
        let now = Timestamp::now();
        token.timely(now.as_second())?;
        let claims = &token.claims;
        let namespace = claims["kubernetes.io"]["namespace"].as_str().unwrap_or_default();
        let account = Bound::of(claims, "serviceaccount").unwrap_or_default();
        let found = self.recall("serviceaccounts", Some(namespace), &account).await;
        let found = found.ok_or_else(|| format!("serviceaccounts {} not found", quote(&account.name)))?;
        if meta::uid(&found) != account.uid {
            let (stored, claimed) = (meta::uid(&found), &account.uid);
            return Err(format!("service account UID ({stored}) does not match claim ({claimed})"));
        }
        if deleted(&found, now) {
            return Err(format!("service account {namespace}/{} has been deleted", account.name));
        }
        let (pod, secret, node) =
            (Bound::of(claims, "pod"), Bound::of(claims, "secret"), Bound::of(claims, "node"));
        let bounds = [
            ("secrets", "secret", "secret", Some(namespace), &secret),
            ("pods", "Pod", "pod", Some(namespace), &pod),
            // The node of a pod's token is told, not bound to.
            ("nodes", "node", "node", None, if pod.is_some() { &None } else { &node }),
        ];
        for (plural, word, reference, namespace, bound) in bounds {
            let Some(bound) = bound else { continue };
            let gone = || "service account token has been invalidated".to_owned();
            let found = self.recall(plural, namespace, bound).await.ok_or_else(gone)?;
            if meta::uid(&found) != bound.uid {
                let (stored, claimed) = (meta::uid(&found), &bound.uid);
                return Err(format!(
                    "{word} UID ({stored}) does not match service account {reference} ref claim ({claimed})"
                ));
            }
            if deleted(&found, now) {
                return Err(gone());
            }
        }
        let mut identity = account_identity(namespace, &account.name, &account.uid);
        let mut tell = |key: &str, value: String| {
            if !value.is_empty() {
                identity.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
            }
        };
        if let Some(pod) = pod {
            tell("pod-name", pod.name);
            tell("pod-uid", pod.uid);
        }
        if let Some(node) = node {
            tell("node-name", node.name);
            tell("node-uid", node.uid);
        }
        if let Some(id) = claims["jti"].as_str() {
            tell("credential-id", format!("JTI={id}"));
        }
        Ok(identity)
    }

    /// A token that lies in a Secret: it dies with the Secret.
    async fn prove_secret(&self, token: &Token<'_>, text: &str) -> Result<Identity, String> {
        let claim = |name: &str| {
            let name = format!("kubernetes.io/serviceaccount/{name}");
            token.claims[name.as_str()].as_str().unwrap_or_default().to_owned()
        };
        let subject = token.claims["sub"].as_str().unwrap_or_default();
        let (namespace, name, uid) =
            (claim("namespace"), claim("service-account.name"), claim("service-account.uid"));
        let secret_name = claim("secret.name");
        for (what, value) in [
            ("sub", subject),
            ("namespace", &namespace),
            ("secretName", &secret_name),
            ("serviceAccountName", &name),
            ("serviceAccountUID", &uid),
        ] {
            if value.is_empty() {
                return Err(format!("{what} claim is missing"));
            }
        }
        if account_of(subject) != Some((namespace.as_str(), name.as_str())) {
            return Err("sub claim is invalid".into());
        }
        let at = Bound { name: secret_name.clone(), uid: String::new() };
        let secret = self.recall("secrets", Some(&namespace), &at).await;
        let secret = secret.filter(|secret| meta::deletion_timestamp(secret).is_none());
        let secret = secret.ok_or("Token has been invalidated")?;
        // What is compared is public to the one who sent it; only equality of the whole counts.
        if walk::text(&secret, "data.token") != BASE64.encode(text) {
            return Err("Token does not match server's copy".into());
        }
        let at = Bound { name: name.clone(), uid: uid.clone() };
        let account = self.recall("serviceaccounts", Some(&namespace), &at).await;
        let account = account.ok_or_else(|| format!("serviceaccounts {} not found", quote(&name)))?;
        if meta::deletion_timestamp(&account).is_some() {
            return Err(format!("ServiceAccount {namespace}/{name} has been deleted"));
        }
        if meta::uid(&account) != uid {
            return Err(format!("ServiceAccount UID ({}) does not match claim ({uid})", meta::uid(&account)));
        }
        if meta::labels(&secret)
            .get(INVALID_SINCE)
            .and_then(Value::as_str)
            .is_some_and(|since| !since.is_empty())
        {
            return Err(format!(
                "the token in secret {namespace}/{secret_name} for service account {namespace}/{name} has been marked \
                 invalid. Use tokens from the TokenRequest API or manually created secret-based tokens, or remove the \
                 '{INVALID_SINCE}' label from the secret to temporarily allow use of this token"
            ));
        }
        Ok(account_identity(&namespace, &name, &uid))
    }

    /// An object, from memory if it is there with this UID (none given: with any), else from the store: what was just
    /// made is found, and a request costs the store nothing.
    async fn recall(&self, plural: &str, namespace: Option<&str>, wanted: &Bound) -> Option<Value> {
        let kind = portolan_api::find("", "v1", plural)?;
        let key = object_key(kind, namespace, &wanted.name);
        let known = self.cache(kind).get(&key).map(|object| object.value());
        if let Some(known) = known.filter(|known| !wanted.uid.is_empty() && meta::uid(known) == wanted.uid) {
            return Some(known);
        }
        self.stored(kind, &key, &wanted.name).await.ok().map(|(object, _)| object)
    }

    /// POST of a service account's `token`.
    pub(crate) async fn token(&self, call: &Call) -> Answer {
        let kind = portolan_api::review::TOKEN_REQUEST;
        let (name, namespace) = (call.name(), call.path.namespace.as_deref().unwrap_or_default());
        let body = call.read(("authentication.k8s.io/v1", "TokenRequest"))?;
        for (field, here) in [("name", name), ("namespace", namespace)] {
            let claimed = walk::text(&body, &format!("metadata.{field}"));
            if !claimed.is_empty() && claimed != here {
                let why = format!("must match the service account {field} if specified");
                let error = FieldError::invalid(format!("metadata.{field}"), claimed, why);
                return Err(Status::invalid(kind, name, &[error]));
            }
        }
        let (account, _) = self.stored(&call.kind, &call.key(), name).await?;
        let uid = meta::uid(&account);
        let claimed = meta::uid(&body);
        if !claimed.is_empty() && claimed != uid {
            let why = format!(
                "the UID in the token request ({claimed}) does not match the UID of the service account ({uid})"
            );
            return Err(conflict("authentication.k8s.io", "TokenRequest", name, &why));
        }
        let mut audiences: Vec<String> =
            walk::list(&body, "spec.audiences").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let life_s = walk::int(&body, "spec.expirationSeconds").unwrap_or(3600);
        let error = |why: &str| FieldError::invalid("spec.expirationSeconds", life_s, why);
        if life_s < SHORTEST_S {
            let error = error("may not specify a duration less than 10 minutes");
            return Err(Status::invalid(kind, "", &[error]));
        }
        if life_s > LONGEST_S {
            let error = error("may not specify a duration larger than 2^32 seconds");
            return Err(Status::invalid(kind, "", &[error]));
        }
        let reference = walk::at(&body, "spec.boundObjectRef").cloned().unwrap_or_default();
        let found = self.referred(&reference, namespace).await?;
        // What may not be bound to is told to a node in the words of its restriction, which comes first.
        let pod = found.as_ref().filter(|(_, word)| *word == "Pod").map(|(object, _)| object);
        self.confine_node(call, &body, pod)?;
        let bound = match &found {
            Some((object, word)) => self.bound(&reference, object, word, name).await?,
            None => Binding::default(),
        };
        if audiences.is_empty() {
            audiences.clone_from(&self.accounts.audiences);
        }

        let now = Timestamp::now().as_second();
        let ours = audiences.iter().all(|audience| self.accounts.audiences.contains(audience));
        let extended = bound.to_pod && life_s == EXTENDED_S && ours;
        let mut about = json!({"namespace": namespace, "serviceaccount": {"name": name, "uid": uid}});
        for (what, value) in bound.claims {
            about[what] = value;
        }
        if extended {
            about["warnafter"] = (now + life_s).into();
        }
        let claims = json!({
            "aud": audiences,
            "exp": now + if extended { YEAR_S } else { life_s },
            "iat": now,
            "iss": self.accounts.issuer,
            "jti": random::uuid(),
            "kubernetes.io": about,
            "nbf": now,
            "sub": format!("{ACCOUNT}{namespace}:{name}"),
        });
        let token = self.accounts.signer.sign(&claims).map_err(Status::internal)?;
        let time = |second: i64| meta::rfc3339(Timestamp::from_second(second).unwrap_or_default());
        let answer = json!({
            "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": name, "namespace": namespace, "uid": uid, "creationTimestamp": time(now)},
            "spec": {"audiences": audiences, "expirationSeconds": life_s, "boundObjectRef": reference},
            "status": {"token": token, "expirationTimestamp": time(now + life_s)},
        });
        Ok(respond(StatusCode::CREATED, &answer))
    }

    /// The object that a token shall be bound to, and its kind.
    async fn referred(
        &self,
        reference: &Value,
        namespace: &str,
    ) -> Result<Option<(Value, &'static str)>, Status> {
        if reference.is_null() {
            return Ok(None);
        }
        let text = |field| walk::text(reference, field);
        let (version, word, name) = (text("apiVersion"), text("kind"), text("name"));
        let (group, short) = version.split_once('/').unwrap_or(("", version));
        let (word, plural, namespace) = match (group, word) {
            ("", "Pod") => ("Pod", "pods", Some(namespace)),
            ("", "Secret") => ("Secret", "secrets", Some(namespace)),
            ("", "Node") => ("Node", "nodes", None),
            _ => {
                let what = format!("{group}/{short}, Kind={word}");
                return Err(Status::bad_request(format!("cannot bind token to object of type {what}")));
            }
        };
        let kind = portolan_api::find("", "v1", plural).ok_or_else(Status::no_such_path)?;
        let (object, _) = self.stored(kind, &object_key(kind, namespace, name), name).await?;
        Ok(Some((object, word)))
    }

    /// What a token says of the object that it is bound to.
    async fn bound(
        &self,
        reference: &Value,
        object: &Value,
        word: &str,
        account: &str,
    ) -> Result<Binding, Status> {
        let mut binding = Binding::default();
        if word == "Pod" {
            if walk::text(object, "spec.serviceAccountName") != account {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {} to pod running with different serviceaccount name.",
                    quote(account)
                )));
            }
            let node = Bound { name: walk::text(object, "spec.nodeName").into(), uid: String::new() };
            if !node.name.is_empty() {
                // A node that isn't there is still told by its name.
                let mut claim = json!({"name": node.name});
                if let Some(found) = self.recall("nodes", None, &node).await {
                    claim["uid"] = meta::uid(&found).into();
                }
                binding.claims.push(("node", claim));
            }
            binding.to_pod = true;
        }
        let (wanted, uid, name) = (walk::text(reference, "uid"), meta::uid(object), meta::name(object));
        if !wanted.is_empty() && wanted != uid {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have \
                 been deleted and then recreated"
            );
            return Err(conflict("", word, name, &why));
        }
        let claim = match word {
            "Pod" => "pod",
            "Secret" => "secret",
            _ => "node",
        };
        binding.claims.push((claim, json!({"name": name, "uid": uid})));
        Ok(binding)
    }

    /// Whether a node may ask for this token.
    fn confine_node(&self, call: &Call, request: &Value, pod: Option<&Value>) -> Result<(), Status> {
        let write = nodes::Write {
            group: "",
            resource: "serviceaccounts",
            subresource: "token",
            name: call.name(),
            new: Some(request),
            old: None,
            pod,
            node_uid: "",
        };
        nodes::confine(&call.user, &write)
    }

    /// Fills a Secret that is to hold a service account's token: the token, the authority's certificate and the namespace,
    /// as Kubernetes' token controller does a moment later. What is filled already stays.
    pub(crate) async fn fill_token(&self, kind: &Kind, secret: &mut Value) -> Result<(), Status> {
        if (kind.group(), kind.kind()) != ("", "Secret") || walk::text(secret, "type") != TOKEN_SECRET {
            return Ok(());
        }
        let (namespace, name) = (meta::namespace(secret).to_owned(), meta::name(secret).to_owned());
        let Some(account) = meta::annotation(secret, SECRET_ACCOUNT).map(str::to_owned) else {
            return Ok(());
        };
        let at = Bound { name: account.clone(), uid: String::new() };
        let Some(found) = self.recall("serviceaccounts", Some(&namespace), &at).await else { return Ok(()) };
        let uid = meta::uid(&found).to_owned();
        if meta::annotation(secret, SECRET_ACCOUNT_UID).is_some_and(|claimed| claimed != uid) {
            return Ok(());
        }
        if let Some(annotations) = walk::map_mut(secret, "metadata.annotations") {
            annotations.insert(SECRET_ACCOUNT_UID.into(), uid.as_str().into());
        }
        let mut fill = |key: &str, value: String| {
            if let Some(data) = walk::map_mut(secret, "data") {
                data.entry(key).or_insert_with(|| BASE64.encode(value).into());
            }
        };
        let claims = json!({
            "iss": LEGACY_ISSUER,
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": name,
            "kubernetes.io/serviceaccount/service-account.name": account,
            "kubernetes.io/serviceaccount/service-account.uid": uid,
            "sub": format!("{ACCOUNT}{namespace}:{account}"),
        });
        fill("token", self.accounts.signer.sign(&claims).map_err(Status::internal)?);
        fill("namespace", namespace);
        if let Some(authority) = &self.accounts.authority {
            fill("ca.crt", authority.clone());
        }
        Ok(())
    }
}

/// What a token is bound to: its claims, and whether it is a pod.
#[derive(Default)]
struct Binding {
    claims: Vec<(&'static str, Value)>,
    to_pod: bool,
}

fn account_identity(namespace: &str, name: &str, uid: &str) -> Identity {
    Identity {
        user: format!("{ACCOUNT}{namespace}:{name}"),
        uid: uid.to_owned(),
        groups: account_groups(namespace),
        ..Identity::default()
    }
}

/// What of `have` is also in `wanted`, in the order of `have`.
fn shared(have: &[String], wanted: &[String]) -> Vec<String> {
    have.iter().filter(|audience| wanted.contains(audience)).cloned().collect()
}

fn conflict(group: &str, kind: &str, name: &str, why: &str) -> Status {
    let mut status = attributes::forbidden(group, kind, name, why);
    let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
    (status.code, status.reason) = (409, "Conflict");
    status.message = format!("Operation cannot be fulfilled on {qualified} {}: {why}", quote(name));
    status
}
