//! The forms in which documents and bodies travel: strictness, compression, hashes, OpenAPI.

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use portolan_server::Identity;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::support::*;

async fn post_text(
    server: &std::sync::Arc<portolan_server::Server>,
    query: &str,
    media: &str,
    text: &str,
) -> Answer {
    let request = Request::post(format!("{}?{query}", core("configmaps"))).header("content-type", media);
    send(server, request.body(Full::new(text.to_owned().into())).expect("a request")).await
}

#[tokio::test]
async fn fields_that_are_unknown_or_twice_are_refused_warned_of_or_ignored() {
    let server = server().await;
    let text = r#"{"metadata": {"name": "a"}, "data": {"k": "1", "k": "2"}, "foo": 1}"#;
    let strict = post_text(&server, "fieldValidation=Strict", "application/json", text).await;
    assert_eq!(strict.code, StatusCode::BAD_REQUEST);
    assert_eq!(
        strict.body["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: duplicate field \"data.k\", \
         unknown field \"foo\""
    );
    let ignored = post_text(&server, "fieldValidation=Ignore&dryRun=All", "application/json", text).await;
    assert_eq!((ignored.code, ignored.headers.get("warning")), (StatusCode::CREATED, None));
    let warned = post_text(&server, "", "application/json", text).await;
    let warnings: Vec<&str> =
        warned.headers.get_all("warning").iter().filter_map(|w| w.to_str().ok()).collect();
    assert_eq!(
        warnings,
        [r#"299 - "duplicate field \"data.k\"""#, r#"299 - "unknown field \"foo\"""#],
        "{}",
        warned.text
    );
    assert_eq!(warned.body["data"]["k"], "2");
    let wrong = post_text(&server, "fieldValidation=Sometimes", "application/json", text).await;
    assert_eq!(wrong.code, StatusCode::UNPROCESSABLE_ENTITY, "{}", wrong.text);
    let misfit = post_text(&server, "", "application/json", r#"{"metadata": {"name": 1}}"#).await;
    assert_eq!(
        misfit.body["message"],
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal number into Go struct field \
         ObjectMeta.metadata.name of type string"
    );
    let yaml = post_text(&server, "", "application/yaml", "metadata:\n  name: why\ndata: {a: b}\n").await;
    assert_eq!(yaml.body["data"], json!({"a": "b"}), "{}", yaml.text);
    let path = format!("{}?fieldValidation=Strict", core("configmaps/why"));
    let patched =
        patch(&server, &path, "strategic-merge", &json!({"data": {"a": "c"}, "foo": {"b": 1}})).await;
    assert_eq!(patched.code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        patched.body["message"],
        " \"\" is invalid: patch: Invalid value: \"map[data:map[a:c] foo:map[b:1]]\": strict decoding error: unknown field \
         \"foo\""
    );
}

#[tokio::test]
async fn large_answers_are_compressed_for_those_who_take_it() {
    let server = server().await;
    let made =
        post(&server, &core("configmaps"), &configmap("big", &json!({}), &json!({"k": "x".repeat(200_000)})))
            .await;
    assert_eq!(made.code, StatusCode::CREATED);
    let ask = async |path: String, accepts: &str| {
        let request =
            Request::get(path).header("accept-encoding", accepts).body(Full::<bytes::Bytes>::default());
        let service = server.service(Identity::admin());
        let response = service.oneshot(request.expect("a request")).await.expect("infallible");
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        (head.headers.get("content-encoding").map(|value| value.as_bytes().to_vec()), bytes)
    };
    let (encoding, bytes) = ask(core("configmaps/big"), "gzip").await;
    assert_eq!(encoding.as_deref(), Some(&b"gzip"[..]));
    assert!(bytes.len() < 20_000 && bytes.starts_with(&[0x1f, 0x8b]), "{} bytes", bytes.len());
    assert_eq!(ask(core("configmaps/big"), "identity").await.0, None);
    assert_eq!(ask(core("configmaps?limit=1&labelSelector=a%3Db"), "gzip").await.0, None);
}

#[tokio::test]
async fn documents_are_kept_by_their_hash() {
    let server = server().await;
    let index = get(&server, "/openapi/v3").await;
    let url = index.body["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("a URL").to_owned();
    let document = get(&server, &url).await;
    assert_eq!(document.headers["cache-control"], "public, immutable");
    let schemas = &document.body["components"]["schemas"];
    assert_eq!(
        schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
    );
    let moved = get(&server, "/openapi/v3/apis/apps/v1?hash=OLD").await;
    assert_eq!(
        (moved.code, moved.headers["location"].to_str().ok()),
        (StatusCode::MOVED_PERMANENTLY, Some(&*url))
    );
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    // What client-go asks for, by its old and its new name.
    let protobuf =
        ["2.v1.0", "2@v1.0"].map(|v| format!("application/com.github.proto-openapi.spec.v{v}+protobuf"));
    for (path, accept) in [
        (&*url, "application/json"),
        ("/apis", aggregated),
        ("/openapi/v2", "*/*"),
        ("/openapi/v2", &*protobuf[0]),
        ("/openapi/v2", &*protobuf[1]),
    ] {
        let ask = |tag: Option<http::HeaderValue>| {
            let mut request = Request::builder().method(Method::GET).uri(path).header("accept", accept);
            if let Some(tag) = tag {
                request = request.header("if-none-match", tag);
            }
            send(&server, request.body(Full::<bytes::Bytes>::default()).expect("a request"))
        };
        let first = ask(None).await;
        assert_eq!(first.code, StatusCode::OK, "{path}");
        if path == "/openapi/v2" {
            let written = if accept == "*/*" { "application/json" } else { &*protobuf[0] };
            assert_eq!(first.headers["content-type"].to_str().ok(), Some(written));
        }
        let again = ask(first.headers.get("etag").cloned()).await;
        assert_eq!((again.code, again.text.as_str()), (StatusCode::NOT_MODIFIED, ""), "{path}");
    }
    let swagger: Value = get(&server, "/openapi/v2").await.body;
    assert!(swagger["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
}
