//! `/healthz`, `/livez`, `/readyz`.

use http::{Response, StatusCode};

use crate::body::ServerBody;
use crate::http::typed;
use crate::path::Query;
use crate::server::Server;

/// Answers a health question: `ok`, or with `?verbose` (and always on failure) a line for each check.
pub(crate) async fn answer(server: &Server, path: &str, query: &Query) -> Response<ServerBody> {
    let (probe, only) = path.split_once('/').map_or((path, None), |(probe, check)| (probe, Some(check)));
    let mut checks = vec![("ping", true)];
    if probe != "livez" {
        // A server that lost its store is alive (a restart wouldn't help) and not ready.
        checks.push(("store", server.store.revision().await.is_ok()));
    }
    if let Some(only) = only {
        checks.retain(|(name, _)| *name == only);
        if checks.is_empty() {
            return typed(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n");
        }
    }
    let well = checks.iter().all(|(_, well)| *well);
    let code = if well { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    if well && !query.has("verbose") {
        return typed(code, "text/plain; charset=utf-8", "ok");
    }
    let mut text = String::new();
    for (name, well) in checks {
        text += &if well { format!("[+]{name} ok\n") } else { format!("[-]{name} failed\n") };
    }
    text += &format!("{probe} check {}\n", if well { "passed" } else { "failed" });
    typed(code, "text/plain; charset=utf-8", text)
}
