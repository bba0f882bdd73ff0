//! `/metrics`: who may read it, and that it says what happened.

use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::support::*;

/// The value of the sample that has this name and all of these labels.
fn sample(page: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let lines = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    let line = lines.into_iter().find(|line| labels.iter().all(|label| line.contains(label)))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[tokio::test]
async fn the_server_counts_what_it_answers() {
    let server = server().await;
    let object = configmap("a", &json!({}), &json!({}));
    for code in [StatusCode::CREATED, StatusCode::CONFLICT] {
        assert_eq!(post(&server, &core("configmaps"), &object).await.code, code);
    }
    let watch = Watch::open(&server, &format!("{}?watch=1", core("configmaps"))).await;
    assert_eq!(get(&server, "/apis/example.com/v1/unheard-of").await.code, StatusCode::NOT_FOUND);

    let page = get(&server, "/metrics").await;
    assert_eq!(page.code, StatusCode::OK);
    assert_eq!(page.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let page = page.text;
    for (name, labels, value) in [
        ("apiserver_request_total", &["code=\"201\"", "resource=\"configmaps\"", "verb=\"POST\""][..], 1.0),
        ("apiserver_request_total", &["code=\"409\"", "resource=\"configmaps\"", "verb=\"POST\""], 1.0),
        ("apiserver_request_total", &["code=\"200\"", "resource=\"configmaps\"", "verb=\"WATCH\""], 1.0),
        ("apiserver_request_total", &["code=\"404\"", "resource=\"\"", "verb=\"LIST\""], 1.0),
        ("apiserver_request_duration_seconds_count", &["resource=\"configmaps\"", "verb=\"POST\""], 2.0),
        ("apiserver_longrunning_requests", &["resource=\"configmaps\"", "verb=\"WATCH\""], 1.0),
        ("apiserver_current_inflight_requests", &["readOnly"], 1.0),
        ("apiserver_storage_objects", &["{resource=\"configmaps\"}"], 1.0),
        ("kubernetes_build_info", &["git_version=\"v1."], 1.0),
    ] {
        assert_eq!(sample(&page, name, labels), Some(value), "{name} {labels:?} in\n{page}");
    }
    assert!(!page.contains("unheard-of"), "{page}");
    assert!(sample(&page, "process_resident_memory_bytes", &[]).is_some_and(|bytes| bytes > 0.0));

    drop(watch);
    let page = get(&server, "/metrics").await.text;
    assert_eq!(
        sample(&page, "apiserver_longrunning_requests", &["resource=\"configmaps\"", "verb=\"WATCH\""]),
        Some(0.0)
    );

    let docs = include_str!("../../../../docs/reference/server.md");
    for name in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        assert!(docs.contains(&format!("| `{name}` |")), "docs/reference/server.md lacks a row for {name}");
    }
}

#[tokio::test]
async fn metrics_are_for_those_who_may_read_them() {
    let server = server().await;
    let request =
        || Request::builder().method(Method::GET).uri("/metrics").body(Full::default()).expect("a request");
    let refused = send_by(server.stranger(), request()).await;
    assert_eq!(refused.code, StatusCode::FORBIDDEN);
    assert_eq!(refused.body["message"], "forbidden: User \"system:anonymous\" cannot get path \"/metrics\"");
    // What a monitor is bound to (`system:monitoring`).
    let mut monitor = request();
    monitor.headers_mut().insert("impersonate-user", "prometheus".parse().expect("a name"));
    monitor.headers_mut().insert("impersonate-group", "system:monitoring".parse().expect("a name"));
    assert_eq!(send(&server, monitor).await.code, StatusCode::OK);
}
