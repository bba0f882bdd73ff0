//! Which form of an answer a client takes: the `Accept` header, understood.

use portolan_api::Status;

/// The form of an object or a list on the wire. All are JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is.
    Plain,
    /// `Table`: what `kubectl get` prints.
    Table(Meta),
    /// `PartialObjectMetadata`.
    Metadata(Meta),
}

/// The version of `meta.k8s.io` that a client asks for: the kinds are the same in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meta {
    V1,
    V1Beta1,
}

impl Meta {
    /// `apiVersion` of what is in it.
    pub(crate) fn api_version(self) -> &'static str {
        match self {
            Meta::V1 => "meta.k8s.io/v1",
            Meta::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// One media range of an `Accept` header (RFC 9110 section 12.5.1), without its weight: client-go lists in the order of
/// its preference and sends no weights.
struct Media<'a> {
    essence: &'a str,
    params: Vec<(&'a str, &'a str)>,
}

impl Media<'_> {
    fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    fn is_json(&self) -> bool {
        matches!(self.essence, "application/json" | "application/*" | "*/*")
    }
}

fn ranges(accept: &str) -> impl Iterator<Item = Media<'_>> {
    accept.split(',').map(str::trim).filter(|range| !range.is_empty()).map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default();
        Media { essence, params: parts.filter_map(|part| part.split_once('=')).collect() }
    })
}

/// The first form of the list that we can give. No header accepts anything (RFC 9110).
pub(crate) fn form(accept: Option<&str>) -> Result<Form, Status> {
    let Some(accept) = accept else { return Ok(Form::Plain) };
    for media in ranges(accept).filter(Media::is_json) {
        let meta = match (media.param("g"), media.param("v")) {
            (Some("meta.k8s.io"), Some("v1")) => Some(Meta::V1),
            (Some("meta.k8s.io"), Some("v1beta1")) => Some(Meta::V1Beta1),
            _ => None,
        };
        match (media.param("as"), meta) {
            (None, _) => return Ok(Form::Plain),
            (Some("Table"), Some(meta)) => return Ok(Form::Table(meta)),
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some(meta)) => {
                return Ok(Form::Metadata(meta));
            }
            _ => {}
        }
    }
    Err(Status::not_acceptable(&["application/json", "application/json;as=Table;v=v1;g=meta.k8s.io"]))
}

/// Whether aggregated discovery is preferred over the plain documents, and is offered to us in a version we speak.
pub(crate) fn aggregated_discovery(accept: Option<&str>) -> bool {
    for media in ranges(accept.unwrap_or_default()).filter(Media::is_json) {
        match (media.param("as"), media.param("g"), media.param("v")) {
            (None, ..) => return false,
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => return true,
            _ => {}
        }
    }
    false
}

/// A `Content-Type` without its parameters, in lower case.
pub(crate) fn essence(content_type: Option<&str>) -> String {
    content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_we_speak_is_taken() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,\
                       application/json";
        for (accept, form_of_it) in [
            (None, Some(Form::Plain)),
            (Some("*/*"), Some(Form::Plain)),
            (Some("application/json, */*"), Some(Form::Plain)),
            (Some(kubectl), Some(Form::Table(Meta::V1))),
            (Some("application/json;as=Table;v=v1beta1;g=meta.k8s.io"), Some(Form::Table(Meta::V1Beta1))),
            (Some("application/vnd.kubernetes.protobuf,application/json"), Some(Form::Plain)),
            (
                Some("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
                Some(Form::Metadata(Meta::V1)),
            ),
            (Some("application/json;as=Table;v=v9;g=meta.k8s.io, application/json"), Some(Form::Plain)),
            (Some("application/vnd.kubernetes.protobuf"), None),
        ] {
            assert_eq!(form(accept).ok(), form_of_it, "{accept:?}");
        }
    }

    #[test]
    fn aggregated_discovery_is_given_when_it_is_asked_for_first() {
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                       application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert!(aggregated_discovery(Some(kubectl)));
        assert!(!aggregated_discovery(Some("application/json")));
        assert!(!aggregated_discovery(None));
    }
}
