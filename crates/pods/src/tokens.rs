//! Tokens of pods' service accounts, asked of the API and kept until they grow old.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;

/// Of which pod, for whom, for how many seconds.
type Wish = (String, String, i64);

/// The tokens.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<Wish, Kept>>);

#[derive(Clone, Debug)]
struct Kept {
    token: String,
    /// From then on a new one is asked for.
    old: Timestamp,
    expires: Timestamp,
}

/// A token is renewed when a fifth of its life is left, or a day is over (a kubelet's rule).
fn grows_old(now: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(now);
    now + (life * 4 / 5).min(SignedDuration::from_hours(24))
}

impl Tokens {
    /// A token for a pod; the last one if it is good still.
    pub async fn get(
        &self,
        client: &kube::Client,
        pod: &Pod,
        audience: &str,
        seconds: i64,
    ) -> Result<String, String> {
        let now = Timestamp::now();
        let (uid, name) =
            (pod.metadata.uid.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default());
        let wish = (uid.clone(), audience.to_owned(), seconds);
        let kept = {
            let mut all = self.0.lock();
            // Those of pods that are gone go with their lives.
            all.retain(|_, kept| kept.expires > now);
            all.get(&wish).cloned()
        };
        if let Some(kept) = kept.as_ref().filter(|kept| kept.old > now) {
            return Ok(kept.token.clone());
        }
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let account = account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audience.to_owned()).filter(|one| !one.is_empty()).map(|one| vec![one]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(name),
                    uid: Some(uid),
                }),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
        let parameters = PostParams::default();
        let asked = api.create_token_request(&account, &parameters, &request);
        let answer = match tokio::time::timeout(Duration::from_secs(5), asked).await {
            Ok(Ok(answer)) => {
                let given =
                    answer.status.and_then(|status| Some((status.token?, status.expiration_timestamp?.0)));
                given.ok_or_else(|| "the API gave no token".to_owned())
            }
            Ok(Err(kube::Error::Api(refusal))) => Err(refusal.message.clone()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API doesn't answer".to_owned()),
        };
        match (answer, kept) {
            (Ok((token, expires)), _) => {
                let fresh = Kept { token: token.clone(), old: grows_old(now, expires), expires };
                self.0.lock().insert(wish, fresh);
                Ok(token)
            }
            // The old one is good a little longer.
            (Err(_), Some(kept)) => Ok(kept.token),
            (Err(problem), None) => Err(format!("token of service account {account:?}: {problem}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_long_before_it_expires() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let after = |expires: SignedDuration| grows_old(now, now + expires).duration_since(now);
        assert_eq!(after(SignedDuration::from_mins(60)), SignedDuration::from_mins(48));
        assert_eq!(after(SignedDuration::from_hours(1000)), SignedDuration::from_hours(24));
    }
}
