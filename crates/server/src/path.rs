//! What a request's path and query ask for: the grammar of the Kubernetes API's URLs.

/// A path, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/`: the list of what there is.
    Index,
    /// `/version`.
    Version,
    /// `/healthz`, `/livez`, `/readyz`, or one check below them.
    Health(String),
    /// `/metrics`: what the server counts.
    Metrics,
    /// `/api`.
    LegacyApi,
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group(String),
    /// `/api/v1` or `/apis/GROUP/VERSION`.
    Resources {
        /// The API group; empty for the core.
        group: String,
        /// Its version.
        version: String,
    },
    /// `/openapi/v2`.
    OpenApiV2,
    /// `/openapi/v3`.
    OpenApiV3,
    /// `/openapi/v3/apis/GROUP/VERSION`, the part behind `/openapi/v3/`.
    OpenApiV3Group(String),
    /// `/openid/v1/jwks`: the keys that sign service accounts' tokens.
    KeySet,
    /// `/.well-known/openid-configuration`: where they are.
    OpenIdConfiguration,
    /// `/portolan/node-certificate`: a node's way to its credential.
    NodeCertificate,
    /// An object, a collection or a subresource.
    Object(ObjectPath),
    /// Nothing that we know.
    Unknown,
}

/// A path below a group and version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObjectPath {
    /// The API group; empty for the core.
    pub group: String,
    /// Its version.
    pub version: String,
    /// The namespace, if the path names one.
    pub namespace: Option<String>,
    /// The resource's plural.
    pub plural: String,
    /// The object's name; without it the path is a collection.
    pub name: Option<String>,
    /// The subresource.
    pub subresource: Option<String>,
    /// What follows the subresource (a proxied path).
    pub rest: Vec<String>,
}

/// Understands a path (without its query).
pub(crate) fn parse(path: &str) -> Target {
    let parts = segments(path);
    let words: Vec<&str> = parts.iter().map(String::as_str).collect();
    // No name holds a slash; an encoded one would reach into other keys of the store. What follows a subresource is none of
    // our names: the path of a proxied request.
    let names = if words.first() == Some(&"api") { 7 } else { 8 };
    if words.iter().take(names).any(|word| word.contains(['/', '\0'])) {
        return Target::Unknown;
    }
    match words.as_slice() {
        [] => Target::Index,
        ["version"] => Target::Version,
        ["healthz" | "livez" | "readyz", ..] => Target::Health(words.join("/")),
        ["metrics"] => Target::Metrics,
        ["api"] => Target::LegacyApi,
        ["apis"] => Target::Groups,
        ["apis", group] => Target::Group((*group).into()),
        ["api", version] => Target::Resources { group: String::new(), version: (*version).into() },
        ["apis", group, version] => Target::Resources { group: (*group).into(), version: (*version).into() },
        ["openapi", "v2"] => Target::OpenApiV2,
        ["openapi", "v3"] => Target::OpenApiV3,
        ["openapi", "v3", rest @ ..] => Target::OpenApiV3Group(rest.join("/")),
        ["openid", "v1", "jwks"] => Target::KeySet,
        [".well-known", "openid-configuration"] => Target::OpenIdConfiguration,
        ["portolan", "node-certificate"] => Target::NodeCertificate,
        ["api", version, rest @ ..] => Target::Object(object("", version, rest)),
        ["apis", group, version, rest @ ..] => Target::Object(object(group, version, rest)),
        _ => Target::Unknown,
    }
}

/// The parts of a path between its slashes, decoded.
pub(crate) fn segments(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty()).map(|part| decode(part, false)).collect()
}

fn object(group: &str, version: &str, rest: &[&str]) -> ObjectPath {
    // `namespaces/NAME/status` and `/finalize` are subresources of the namespace; any other third word is a collection
    // inside it (apiserver's RequestInfoFactory, `namespaceSubresources`).
    let (namespace, rest) = match rest {
        ["namespaces", namespace, inner @ ..]
            if !inner.is_empty() && !matches!(inner[0], "status" | "finalize") =>
        {
            (Some((*namespace).to_owned()), inner)
        }
        other => (None, other),
    };
    let mut words = rest.iter().map(|word| (*word).to_owned());
    ObjectPath {
        group: group.into(),
        version: version.into(),
        namespace,
        plural: words.next().unwrap_or_default(),
        name: words.next(),
        subresource: words.next(),
        rest: words.collect(),
    }
}

/// The parameters behind `?`, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Understands what stands behind `?`.
    pub(crate) fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name, true), decode(value, true))
        });
        Query(pairs.collect())
    }

    /// The first value of a parameter, unless it is empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// Whether the parameter stands there at all, with or without a value.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// All values of a parameter.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Go's `strconv.ParseBool`, which client-go's parameters are read with; what is absent is false.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }

    /// A truth value of an options object, such as `PodLogOptions`: all but `0` and `false` is true (apimachinery's
    /// `Convert_Slice_string_To_bool`).
    pub(crate) fn option(&self, name: &str) -> bool {
        let first = self.0.iter().find(|(key, _)| key == name);
        first.is_some_and(|(_, value)| value != "0" && !value.eq_ignore_ascii_case("false"))
    }
}

/// Undoes percent encoding (RFC 3986 section 2.1); bytes that aren't UTF-8 are replaced.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let hex = |b: u8| char::from(b).to_digit(16);
        match (byte, tail) {
            (b'%', &[high, low, ..]) if hex(high).is_some() && hex(low).is_some() => {
                bytes.push((hex(high).unwrap_or(0) * 16 + hex(low).unwrap_or(0)) as u8);
                rest = &tail[2..];
            }
            (b'+', _) if plus_is_space => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Percent-encodes a value for a query.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object_of(path: &str) -> ObjectPath {
        match parse(path) {
            Target::Object(object) => object,
            other => panic!("{path} is {other:?}"),
        }
    }

    #[test]
    fn paths_name_objects_as_kubernetes_does() {
        let pod = object_of("/api/v1/namespaces/default/pods/web-1/log");
        assert_eq!(pod.namespace.as_deref(), Some("default"));
        assert_eq!((pod.plural.as_str(), pod.name.as_deref()), ("pods", Some("web-1")));
        assert_eq!(pod.subresource.as_deref(), Some("log"));

        let namespace = object_of("/api/v1/namespaces/kube-system");
        assert_eq!(
            (namespace.plural.as_str(), namespace.name.as_deref()),
            ("namespaces", Some("kube-system"))
        );
        assert_eq!(namespace.namespace, None);

        let finalize = object_of("/api/v1/namespaces/x/finalize");
        assert_eq!(
            (finalize.plural.as_str(), finalize.subresource.as_deref()),
            ("namespaces", Some("finalize"))
        );

        let all = object_of("/apis/apps/v1/deployments");
        assert_eq!((all.group.as_str(), all.plural.as_str(), all.name), ("apps", "deployments", None));
        assert_eq!(parse("/apis/apps/v1"), Target::Resources { group: "apps".into(), version: "v1".into() });
        assert_eq!(parse("/api/v1/namespaces/a%2Fb/pods"), Target::Unknown);
        assert_eq!(parse("/openapi/v3/apis/apps/v1"), Target::OpenApiV3Group("apis/apps/v1".into()));
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=app%3Dweb%2Ctier+in+(a)&watch=true&limit=&verbose");
        assert_eq!(query.get("labelSelector"), Some("app=web,tier in (a)"));
        assert!(query.flag("watch"));
        assert_eq!(query.get("limit"), None);
        assert!(query.has("verbose"));
        assert_eq!(Query::parse(&format!("q={}", encode("a b/ü"))).get("q"), Some("a b/ü"));
    }
}
