//! One request through the server: who asks, for what, by which verb; and the answer's head.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use parking_lot::Mutex;
use portolan_api::kinds::definition::CUSTOM_RESOURCE_DEFINITION;
use portolan_api::schema::TypeRef;
use portolan_api::{Kind, Status, protobuf, strict};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::attributes::Attributes;
use crate::audit::Record;
use crate::auth::{Identity, MASTERS, fingerprint, hex};
use crate::authorize::Decision;
use crate::body::{ServerBody, StreamError};
use crate::certificate::Peer;
use crate::connect::{self, Passing};
use crate::inflight::{self, Seats, TooMany};
use crate::negotiate::{self, Form};
use crate::options::{self, Writing};
use crate::path::{self, ObjectPath, Query, Target};
use crate::server::Server;
use crate::{discovery, health, metrics, openapi, squeeze, yaml};

/// The largest body that is read, as in kube-apiserver (`MaxRequestBodyBytes`).
const BODY_LIMIT: usize = 3 << 20;
/// How much of a body that nobody wanted is read, and how long (net/http's `maxPostHandlerReadBytes`).
const UNREAD: (usize, Duration) = (256 << 10, Duration::from_secs(1));

/// Who sends a request, and until when an answer may go on.
#[derive(Clone)]
pub(crate) struct Caller {
    /// Who it is, as far as the connection tells.
    pub peer: Peer,
    /// From where; none from within the process.
    pub address: Option<IpAddr>,
    /// Cancelled when the listener drains: watches then end.
    pub drain: CancellationToken,
}

/// A request for an object or a collection, read whole.
pub(crate) struct Call {
    pub caller: Caller,
    /// In whose name it is answered.
    pub user: Identity,
    pub method: Method,
    pub path: ObjectPath,
    pub kind: Kind,
    pub query: Query,
    pub form: Form,
    /// The body's media type, without parameters.
    pub media: String,
    /// What the client calls itself.
    pub agent: String,
    pub body: Bytes,
}

/// What a handler gives back.
pub(crate) type Answer = Result<Response<ServerBody>, Status>;

impl Call {
    /// Checks the parameters of a write; whether nothing may be written.
    pub(crate) fn writing(&self) -> Result<bool, Status> {
        let writing = match (&self.method, self.media.as_str()) {
            (&Method::POST, _) => Writing::Create,
            (&Method::PATCH, media) if media.starts_with("application/apply-patch") => Writing::Apply,
            (&Method::PATCH, _) => Writing::Patch,
            _ => Writing::Update,
        };
        options::writing(&self.query, writing)
    }

    /// The name in the path.
    pub(crate) fn name(&self) -> &str {
        self.path.name.as_deref().unwrap_or_default()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Result<Value, Status> {
        self.read((&self.kind.api_version(), self.kind.kind()))
    }

    /// The body as JSON: an object that, where it doesn't say what it is, is of this `apiVersion` and `kind`.
    pub(crate) fn read(&self, expected: (&str, &str)) -> Result<Value, Status> {
        Ok(self.decode(expected, None)?.0)
    }

    /// The body as an object of this path's kind, and what strict decoding has against it.
    pub(crate) fn read_strictly(&self) -> Result<(Value, Vec<String>), Status> {
        // What a custom kind doesn't know is found when all of it is there.
        let of = self.kind.schema().filter(|_| self.kind.custom().is_none());
        self.decode((&self.kind.api_version(), self.kind.kind()), of.as_ref())
    }

    /// A body that doesn't say of which kind it is, where nothing else says it.
    pub(crate) fn kindless(&self) -> Status {
        let text = String::from_utf8_lossy(&self.body);
        let start: String = text.chars().take(30).collect();
        let kind = self.kind.kind();
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): Object 'Kind' is missing in '{text}' ({start} ...)"
        ))
    }

    /// A body of which not even the kind can be read, shown as kube-apiserver shows it: as text if it is like JSON, else in
    /// hexadecimal digits.
    fn unrecognized(&self, why: &str) -> Status {
        let shown = match self.body.first() {
            None => "<empty>".to_owned(),
            Some(b'{') => String::from_utf8_lossy(&self.body[..self.body.len().min(1024)]).into_owned(),
            Some(_) => hex(&self.body[..self.body.len().min(1024)]),
        };
        let kind = self.kind.kind();
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): {why} ({shown})"
        ))
    }

    fn decode(&self, expected: (&str, &str), of: Option<&TypeRef>) -> Result<(Value, Vec<String>), Status> {
        match self.media.as_str() {
            "application/json" | "" => strict::read(&self.body, of).map_err(|why| {
                self.unrecognized(&format!("couldn't get version/kind; json parse error: {why}"))
            }),
            "application/yaml" => {
                let (value, mut complaints) =
                    yaml::read(&self.body).map_err(|why| self.unrecognized(&format!("yaml: {why}")))?;
                // What it lacks of JSON's strictness is who stands where: fields, and not lines.
                let text = serde_json::to_vec(&value).unwrap_or_default();
                let (value, more) = strict::read(&text, of).map_err(Status::bad_request)?;
                complaints.extend(more);
                Ok((value, complaints))
            }
            protobuf::MEDIA => protobuf::decode(&self.body, expected)
                .map(|object| (object, Vec::new()))
                .map_err(|error| Status::bad_request(error.to_string())),
            _ => Err(Status::unsupported_media_type(&[
                "application/json",
                "application/yaml",
                protobuf::MEDIA,
            ])),
        }
    }
}

impl Server {
    /// Answers one request.
    pub(crate) async fn answer<B>(
        self: &Arc<Self>,
        caller: Caller,
        request: Request<B>,
    ) -> Response<ServerBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<StreamError>,
    {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let begun = Instant::now();
        let under = self.meters.begin(!matches!(method, Method::GET | Method::HEAD));
        let squeezed = squeeze::accepted(request.headers());
        let mut record = Record::begin(&caller, &uri, request.headers());
        let (head, body) = request.into_parts();
        let (version, mut body) = (head.version, Some(body));
        let response = self.route(caller, head, &mut body, &mut record).await.unwrap_or_else(|status| {
            record.refused(&status);
            refuse(status)
        });
        // Who is refused before their body was read keeps the connection, if it was small: Go's server does so, and a
        // client that is still sending would otherwise see a broken connection instead of the answer.
        if let Some(rest) = body.filter(|body| version < http::Version::HTTP_2 && !body.is_end_stream()) {
            let rest = Box::pin(Limited::new(rest, UNREAD.0).collect());
            let _ = tokio::time::timeout(UNREAD.1, rest).await;
        }
        let response = if squeezed { squeeze::whole(response) } else { response };
        tracing::debug!(%method, %uri, code = response.status().as_u16(), "answered");
        let response = match &record.request {
            Some(request) => {
                let known = portolan_api::review::find(&request.group, &request.version, &request.resource)
                    .or_else(|| portolan_api::find(&request.group, &request.version, &request.resource))
                    .is_some_and(|kind| request.subresource.is_empty() || kind.has(&request.subresource));
                let dry_run = Query::parse(uri.query().unwrap_or_default()).has("dryRun");
                self.meters.answered(request, known, dry_run, begun.elapsed(), response)
            }
            None => response,
        };
        drop(under);
        record.answered(self.audit.as_ref(), response).await
    }

    async fn route<B>(
        self: &Arc<Self>,
        caller: Caller,
        head: http::request::Parts,
        unread: &mut Option<B>,
        record: &mut Record,
    ) -> Answer
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<StreamError>,
    {
        let target = path::parse(head.uri.path());
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let accept = text(header::ACCEPT);

        let request = Attributes::of(&head.method, head.uri.path(), &query);
        let user = self.authenticate(&caller.peer, &head.headers).await?;
        record.asked(&user, &request);
        record.received(self.audit.as_ref()).await;
        let user = match self.impersonate(&user, &head.headers, &request).await? {
            Some(other) => {
                record.acts_as(&other);
                other
            }
            None => user,
        };
        let _seats = match self.seats(&caller, &user, &request).await {
            Ok(seats) => seats,
            Err(refusal) => return Ok(refusal.response()),
        };
        match self.authorize(&user, &request).await? {
            Decision::Allow(reason) => record.decided("allow", &reason),
            Decision::NoOpinion(reason) => {
                record.decided("forbid", &reason);
                return Err(request.forbidden(&user.user, &reason));
            }
        }

        let mut body = || unread.take().ok_or_else(|| Status::internal("the body was read twice"));
        match &target {
            Target::Version => return Ok(json(StatusCode::OK, &self.version())),
            Target::Metrics => return Ok(metrics::answer(self)),
            Target::Health(check) => return Ok(health::answer(self, check, &query).await),
            Target::KeySet => return Ok(self.accounts.key_set()),
            Target::OpenIdConfiguration => return Ok(self.accounts.discovery(&self.config)),
            Target::NodeCertificate => return self.node_certificate(&user, &head.method, body()?).await,
            _ => {}
        }
        let path = match target {
            Target::Object(path) => path,
            other => {
                if head.method != Method::GET && head.method != Method::HEAD {
                    return Err(Status::method_not_supported());
                }
                return match other {
                    Target::OpenApiV2 | Target::OpenApiV3 | Target::OpenApiV3Group(_) => {
                        openapi::answer(self, &other, &query, &head.headers).await
                    }
                    other => discovery::answer(&other, &head.headers, &self.config, &self.kinds().await),
                };
            }
        };
        let (group, version, plural) = (&path.group, &path.version, &path.plural);
        let review = portolan_api::review::find(group, version, plural);
        let kind = match review {
            Some(review) => Some(review.clone()),
            None => self.kind(group, version, plural).await?,
        };
        let kind = kind.ok_or_else(Status::no_such_path)?;
        if path.namespace.is_some() && !kind.namespaced() {
            return Err(Status::no_such_path());
        }
        // What becomes a connection isn't read here.
        if let Some(subresource) = &path.subresource
            && connect::passes(subresource)
            && kind.has(subresource)
        {
            // A WebSocket begins with GET; whoever may only read shall not get a shell by it (Kubernetes 1.35,
            // `AuthorizePodWebsocketUpgradeCreatePermission`).
            if subresource != "proxy" {
                self.permit(&user, &Attributes { verb: "create".into(), ..request }).await?;
            }
            let body = Mutex::new(body()?.map_err(Into::into).boxed_unsync());
            return self.pass(Passing { caller, kind, path, query, head, body }).await;
        }
        let form = negotiate::form(accept)?;
        let media = negotiate::essence(text(header::CONTENT_TYPE));
        let agent = text(header::USER_AGENT).unwrap_or_default().to_owned();
        let body = whole(body()?).await?;
        let call = Call { caller, user, method: head.method, path, kind, query, form, media, agent, body };
        if review.is_none() {
            return self.dispatch(call).await;
        }
        // A review is made, and that is all that can be done with it.
        let nameable = call.path.namespace.is_some() || !call.kind.namespaced();
        match call.method {
            Method::POST if nameable && call.path.name.is_none() => self.review(&call).await,
            _ => Err(Status::method_not_supported()),
        }
    }

    /// Seats for a request, unless it lasts, or comes from within, or from the privileged group: who mends a cluster must
    /// get through.
    async fn seats(
        &self,
        caller: &Caller,
        user: &Identity,
        request: &Attributes,
    ) -> Result<Option<Seats>, TooMany> {
        let lasts = request.verb == "watch"
            || matches!(request.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy");
        if lasts || matches!(caller.peer, Peer::InProcess(_)) || user.is_in(MASTERS) {
            return Ok(None);
        }
        let writes = !matches!(request.verb.as_str(), "get" | "list");
        let count = || match portolan_api::find(&request.group, &request.version, &request.resource) {
            Some(kind) => Some(self.cache(kind).len()),
            None => self.definitions.count(&request.group, &request.version, &request.resource),
        };
        let listed = request.verb == "list" && request.name.is_empty();
        let seats = Some(()).filter(|()| listed).and_then(|()| count()).map_or(1, inflight::seats);
        self.inflight.admit(&user.user, writes, seats).await.map(Some)
    }

    async fn dispatch(self: &Arc<Self>, call: Call) -> Answer {
        let retiring = match call.kind.custom() {
            Some(custom) => custom.deprecation().map(str::to_owned),
            None if call.kind.group().is_empty() && call.kind.kind() == "Endpoints" => {
                Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".to_owned())
            }
            None => None,
        };
        let defines = call.kind == CUSTOM_RESOURCE_DEFINITION && call.method != Method::GET;
        let mut answer = self.dispatch_to(call).await;
        if defines && answer.is_ok() {
            // What is defined is served when the answer says so.
            if let Err(status) = self.settle_definitions().await {
                answer = Err(status);
            }
        }
        let Some(retiring) = retiring else { return answer };
        // A patch of a sort that isn't known is turned away before anybody looks what it is about.
        if matches!(&answer, Err(status) if status.code == 415) {
            return answer;
        }
        // Said with every other answer, before all else (apiserver endpoints/installer.go, deprecated APIs).
        let mut response = answer.unwrap_or_else(refuse);
        let headers = response.headers_mut();
        let others: Vec<HeaderValue> = headers.get_all(header::WARNING).iter().cloned().collect();
        headers.remove(header::WARNING);
        let mut response = warn(response, &[retiring]);
        for other in others {
            response.headers_mut().append(header::WARNING, other);
        }
        Ok(response)
    }

    async fn dispatch_to(self: &Arc<Self>, call: Call) -> Answer {
        let method = call.method.clone();
        let verb = match method {
            Method::GET | Method::HEAD => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            _ => return Err(Status::method_not_supported()),
        };
        if verb != "GET" {
            self.prepare_guard(&call).await?;
        }
        if let Some(subresource) = call.path.subresource.clone() {
            if !call.kind.has(&subresource) || !call.path.rest.is_empty() {
                return Err(match call.kind.custom() {
                    Some(_) => Status::not_found(&call.kind, call.name()),
                    None => Status::no_such_path(),
                });
            }
            return match (verb, subresource.as_str()) {
                ("GET", "status" | "approval") => self.get(&call).await,
                ("PUT" | "PATCH", "approval") => self.approve(&call).await,
                ("PUT", "status") => self.update_status(&call).await,
                ("PATCH", "status") => self.patch_status(&call).await,
                ("GET", "scale") => self.get_scale(&call).await,
                ("PUT" | "PATCH", "scale") => self.write_scale(&call).await,
                ("GET", "log") => self.log(&call).await,
                ("PUT", "finalize") => self.finalize(&call).await,
                ("POST", "token") => self.token(&call).await,
                ("POST", "binding") => self.bind(&call).await,
                ("POST", "eviction") => self.evict(&call).await,
                _ => Err(Status::method_not_supported()),
            };
        }
        // A namespaced object has a namespace in its path; only reads go across all.
        let nameable = call.path.namespace.is_some() || !call.kind.namespaced();
        match (verb, call.path.name.is_some()) {
            ("GET", true) if nameable => self.get(&call).await,
            ("GET", false) if call.query.flag("watch") => self.watch(&call).await,
            ("GET", false) => self.list(&call).await,
            ("POST", false) if nameable => self.create(&call).await,
            ("PUT", true) if nameable => self.update(&call).await,
            ("PATCH", true) if nameable => self.patch(&call).await,
            ("DELETE", true) if nameable => self.delete(&call).await,
            ("DELETE", false) => self.delete_collection(&call).await,
            _ if !nameable => Err(Status::no_such_path()),
            _ => Err(Status::method_not_supported()),
        }
    }

    fn version(&self) -> Value {
        let version = &self.config.version;
        serde_json::json!({
            "major": version.major, "minor": version.minor, "gitVersion": version.git_version,
            "gitCommit": "", "gitTreeState": "", "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", std::env::consts::ARCH),
        })
    }
}

/// A request's body, read whole.
pub(crate) async fn whole<B>(body: B) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Send,
    B::Error: Into<StreamError>,
{
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Status::too_large(format!("Request entity too large: limit is {BODY_LIMIT}")))
        }
        Err(error) => Err(Status::bad_request(format!("reading the request's body: {error}"))),
    }
}

/// A JSON answer.
pub(crate) fn json(code: StatusCode, value: &Value) -> Response<ServerBody> {
    typed(code, "application/json", serde_json::to_vec(value).unwrap_or_default())
}

/// What an answer is known by to those who keep it: its hash.
pub(crate) fn tag(body: &[u8]) -> String {
    hex(&fingerprint(body)).to_uppercase()
}

/// The answer to a client that has this version already (RFC 9110 section 13.1.2).
pub(crate) fn not_modified(headers: &HeaderMap, tag: &str) -> Option<Response<ServerBody>> {
    let known = headers.get(header::IF_NONE_MATCH)?.to_str().ok()?;
    known.split(',').any(|known| known.trim().trim_matches('"') == tag).then(|| {
        let mut response = Response::new(ServerBody::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    })
}

/// An answer of some media type.
pub(crate) fn typed(code: StatusCode, media: &'static str, body: impl Into<Bytes>) -> Response<ServerBody> {
    let mut response = Response::new(ServerBody::whole(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    // Answers are of this moment and of this user.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// Adds `Warning: 299 - "text"` headers (RFC 7234 section 5.5), which kubectl prints.
pub(crate) fn warn(mut response: Response<ServerBody>, warnings: &[String]) -> Response<ServerBody> {
    for warning in warnings {
        let text: String = warning.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{text}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

/// A refusal on the wire.
pub(crate) fn refuse(status: Status) -> Response<ServerBody> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if code == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::warn!(message = status.message, "internal error");
    }
    let mut response = json(code, &status.to_value());
    let retry = status.details.get("retryAfterSeconds").and_then(Value::as_u64);
    if let Some(seconds) = retry {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    if code == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    warn(response, &status.warnings)
}

/// What a store's error is to a client.
pub(crate) fn store_status(error: portolan_store::Error) -> Status {
    use portolan_store::Error;
    match error {
        Error::Compacted { asked, oldest } => Status::too_old(asked, oldest),
        Error::Future { asked, current } => Status::too_large_resource_version(asked, current),
        Error::Closed => Status::unavailable("the server is shutting down"),
        error => Status::internal(error),
    }
}
