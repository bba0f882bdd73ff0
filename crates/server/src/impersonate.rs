//! Acting as somebody else: the `Impersonate-*` headers, and who may set them to what.
//!
//! Besides the verb `impersonate` there are, since Kubernetes 1.35, verbs that bind the right to one kind of user and to
//! the verb of the request (KEP-5284): both are asked, the narrower first, and the first refusal is the one that is told.

use std::collections::BTreeMap;

use http::HeaderMap;
use portolan_api::Status;
use portolan_api::fielderror::quote;

use crate::attributes::Attributes;
use crate::auth::{ANONYMOUS, AUTHENTICATED, Identity, MASTERS, UNAUTHENTICATED, account_groups, account_of};
use crate::authorize::Decision;
use crate::path::decode;
use crate::server::Server;

/// Where a service account's token keeps the name of its pod's node.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Whom the headers ask for; none if they ask for nobody.
fn wanted(headers: &HeaderMap) -> Result<Option<Identity>, Status> {
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .unwrap_or_default()
    };
    let all =
        |name: &str| headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
            extra.entry(decode(key, false)).or_default().extend(all(name.as_str()));
        }
    }
    let user = Identity {
        user: text("impersonate-user"),
        uid: text("impersonate-uid"),
        groups: all("impersonate-group").collect(),
        extra,
    };
    if !user.user.is_empty() {
        return Ok(Some(user));
    }
    if user == Identity::default() {
        return Ok(None);
    }
    // The text is that of Go's `%#v`, which Kubernetes gives.
    let groups = if user.groups.is_empty() {
        "[]string(nil)".to_owned()
    } else {
        format!("[]string{{{}}}", user.groups.iter().map(|g| quote(g)).collect::<Vec<_>>().join(", "))
    };
    let extra = if user.extra.is_empty() {
        "map[string][]string(nil)".to_owned()
    } else {
        let of = |(key, values): (&String, &Vec<String>)| {
            let values: Vec<String> = values.iter().map(|v| quote(v)).collect();
            format!("{}:[]string{{{}}}", quote(key), values.join(", "))
        };
        format!("map[string][]string{{{}}}", user.extra.iter().map(of).collect::<Vec<_>>().join(", "))
    };
    Err(Status::bad_request(format!(
        "requested &user.DefaultInfo{{Name:\"\", UID:{}, Groups:{groups}, Extra:{extra}}} without impersonating a user name",
        quote(&user.uid)
    )))
}

/// The ways to impersonate that fit, the narrowest first; the empty one is the old way.
fn modes(requestor: &Identity, wanted: &Identity) -> Vec<&'static str> {
    let bare = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
    let node = wanted.user.strip_prefix("system:node:");
    let account = account_of(&wanted.user);
    let mut modes = Vec::new();
    if let Some(node) = node.filter(|node| bare && !node.is_empty()) {
        let own = requestor
            .extra
            .get(NODE_NAME)
            .is_some_and(|names| matches!(names.as_slice(), [name] if name == node));
        if own && account_of(&requestor.user).is_some() {
            modes.push("associated-node");
        }
        modes.push("arbitrary-node");
    }
    if account.is_some() && bare {
        modes.push("serviceaccount");
    }
    if node.is_none() && account.is_none() {
        modes.push("user-info");
    }
    modes.push("");
    modes
}

/// What has to be allowed so that one may be impersonated by another in some mode, and who it then is.
fn demands(
    wanted: &Identity,
    mode: &str,
    request: &Attributes,
) -> Result<(Vec<Attributes>, Identity), Status> {
    let constrained = !mode.is_empty();
    let verb = if constrained { format!("impersonate:{mode}") } else { "impersonate".to_owned() };
    let ask = |group: &str, resource: &str, name: &str| Attributes {
        verb: verb.clone(),
        of_resource: true,
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        name: name.into(),
        ..Attributes::default()
    };
    const AUTHENTICATION: &str = "authentication.k8s.io";
    let group = if constrained { AUTHENTICATION } else { "" };
    let (mut asked, mut user) = (Vec::new(), wanted.clone());
    if constrained {
        asked.push(Attributes { verb: format!("impersonate-on:{mode}:{}", request.verb), ..request.clone() });
    }
    let node = wanted.user.strip_prefix("system:node:").filter(|_| constrained);
    match (account_of(&wanted.user), node) {
        (Some((namespace, name)), _) => {
            asked.push(Attributes { namespace: namespace.into(), ..ask(group, "serviceaccounts", name) });
            if wanted.groups.is_empty() {
                user.groups = account_groups(namespace);
            }
        }
        (None, Some(node)) => {
            // Decided once for all nodes: a right to impersonate one's own node can't name it.
            asked.push(ask(group, "nodes", if mode == "associated-node" { "*" } else { node }));
            user.groups = vec!["system:nodes".into()];
        }
        (None, None) => asked.push(ask(group, "users", &wanted.user)),
    }
    if !wanted.uid.is_empty() {
        asked.push(ask(AUTHENTICATION, "uids", &wanted.uid));
    }
    for name in &wanted.groups {
        if constrained && (name.is_empty() || name == MASTERS) {
            let why = match name.as_str() {
                "" => "impersonating the empty string group is not allowed",
                _ => "impersonating the system:masters group is not allowed",
            };
            return Err(ask(group, "groups", name).forbidden("", why));
        }
        asked.push(ask(group, "groups", name));
    }
    for (key, values) in &wanted.extra {
        for value in values {
            asked.push(Attributes { subresource: key.clone(), ..ask(AUTHENTICATION, "userextras", value) });
        }
    }
    // Who is impersonated is known, unless the name or a group says otherwise.
    if user.user == ANONYMOUS {
        if !user.is_in(UNAUTHENTICATED) {
            user.groups.push(UNAUTHENTICATED.into());
        }
    } else if !user.is_in(UNAUTHENTICATED) && !user.is_in(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    Ok((asked, user))
}

impl Server {
    /// Whom a request is to be answered as, if it asks for somebody else.
    pub(crate) async fn impersonate(
        &self,
        requestor: &Identity,
        headers: &HeaderMap,
        request: &Attributes,
    ) -> Result<Option<Identity>, Status> {
        let Some(wanted) = wanted(headers)? else { return Ok(None) };
        let mut first = None;
        for mode in modes(requestor, &wanted) {
            match self.impersonate_by(requestor, &wanted, mode, request).await {
                Ok(user) => return Ok(Some(user)),
                Err(refusal) => first = first.or(Some(refusal)),
            }
        }
        Err(first.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
    }

    async fn impersonate_by(
        &self,
        requestor: &Identity,
        wanted: &Identity,
        mode: &str,
        request: &Attributes,
    ) -> Result<Identity, Status> {
        let (asked, user) = demands(wanted, mode, request)?;
        for attributes in asked {
            match self.authorize(requestor, &attributes).await? {
                Decision::Allow(_) => {}
                Decision::NoOpinion(reason) => return Err(attributes.forbidden(&requestor.user, &reason)),
            }
        }
        Ok(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (http::HeaderName::from_static(name), value.parse().expect("a header's value"))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn headers_name_a_user_or_nothing() {
        let user = wanted(&headers(&[
            ("impersonate-user", "bob"),
            ("impersonate-group", "a"),
            ("impersonate-extra-example.com%2fteam", "x"),
        ]));
        let user = user.expect("well-formed").expect("somebody");
        assert_eq!((user.user.as_str(), user.groups), ("bob", vec!["a".to_owned()]));
        assert_eq!(user.extra, BTreeMap::from([("example.com/team".to_owned(), vec!["x".to_owned()])]));
        assert_eq!(wanted(&headers(&[])), Ok(None));
        let refused =
            wanted(&headers(&[("impersonate-group", "bob")])).expect_err("nobody to put in the group");
        assert_eq!(
            refused.message,
            "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"bob\"}, Extra:map[string][]string(nil)} \
             without impersonating a user name"
        );
    }

    #[test]
    fn each_thing_that_is_taken_on_is_asked_for() {
        let wanted = Identity { uid: "7".into(), ..Identity::new("bob", &["ops"]) };
        let request = Attributes {
            verb: "list".into(),
            of_resource: true,
            resource: "pods".into(),
            ..Attributes::default()
        };
        let brief = |mode: &str| -> Vec<String> {
            let (asked, _) = demands(&wanted, mode, &request).expect("nothing that is never allowed");
            asked.iter().map(|a| format!("{} {}.{} {}", a.verb, a.resource, a.group, a.name)).collect()
        };
        assert_eq!(
            brief(""),
            ["impersonate users. bob", "impersonate uids.authentication.k8s.io 7", "impersonate groups. ops"]
        );
        assert_eq!(brief("user-info")[0], "impersonate-on:user-info:list pods. ");
        let masters = Identity::new("bob", &[MASTERS]);
        assert!(demands(&masters, "user-info", &request).is_err());
        assert_eq!(modes(&Identity::default(), &wanted), ["user-info", ""]);
        let account = Identity::new("system:serviceaccount:n:web", &[]);
        assert_eq!(modes(&Identity::default(), &account), ["serviceaccount", ""]);
        let (_, user) = demands(&account, "", &request).expect("nothing that is never allowed");
        assert_eq!(
            user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:n", "system:authenticated"]
        );
    }
}
