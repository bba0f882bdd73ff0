//! The log files of all pods of the node, to look at: `GET /logs/`, laid out like `/var/log` of other nodes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Full};

use crate::Config;
use crate::endpoint::{Body, text};
use crate::protocol::read_json;
use crate::runtime::pods_on_disk;
use crate::worker::PodName;

/// The pods' directories of logs by the name that a kubelet gives them: `NAMESPACE_NAME_UID`.
fn directories(config: &Config) -> BTreeMap<String, PathBuf> {
    let pods = pods_on_disk(&config.data_dir).unwrap_or_default();
    let named = pods.into_values().filter_map(|dir| {
        let PodName { namespace, name, uid } = read_json(&dir.pod()).ok()??;
        Some((format!("{namespace}_{name}_{uid}"), dir.0.join("logs")))
    });
    named.collect()
}

/// What is in a directory; directories with a slash.
fn entries(directory: &PathBuf) -> Vec<String> {
    let all = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = all
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(if entry.file_type().ok()?.is_dir() { name + "/" } else { name })
        })
        .collect();
    names.sort();
    names
}

fn page(names: impl IntoIterator<Item = String>) -> Response<Body> {
    let lines: String = names.into_iter().map(|name| format!("<a href=\"{name}\">{name}</a>\n")).collect();
    answer("text/html; charset=utf-8", format!("<pre>\n{lines}</pre>\n").into())
}

fn answer(media: &'static str, content: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(content).map_err(|never| match never {}).boxed());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media));
    response
}

/// A directory as a page of links, or a file.
pub(crate) fn show(config: &Config, path: &[&str]) -> Response<Body> {
    let missing = || text(StatusCode::NOT_FOUND, "404 page not found");
    // Names are looked up in what is there, never joined to a path: none leads out of the pods' logs.
    match path {
        [] => page(["pods/".to_owned()]),
        ["pods"] => page(directories(config).into_keys().map(|name| name + "/")),
        ["pods", pod, rest @ ..] => {
            let Some(mut place) = directories(config).remove(*pod) else { return missing() };
            for part in rest {
                let known = entries(&place);
                if !known.iter().any(|name| name.trim_end_matches('/') == *part) {
                    return missing();
                }
                place.push(part);
            }
            if place.is_dir() {
                return page(entries(&place));
            }
            match std::fs::read(&place) {
                Ok(content) => answer("text/plain; charset=utf-8", content.into()),
                Err(_) => missing(),
            }
        }
        _ => missing(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_logs_of_pods_are_shown() {
        let directory = tempfile::tempdir().expect("a directory");
        let config = Config::new("n", Vec::new(), directory.path());
        let pod = directory.path().join("pods/u-1");
        std::fs::create_dir_all(pod.join("logs/web")).expect("directories");
        std::fs::write(pod.join("logs/web/0.log"), "a line\n").expect("a log");
        std::fs::write(pod.join("order.json"), "{}").expect("a file");
        std::fs::write(pod.join("pod.json"), r#"{"namespace": "shop", "name": "web", "uid": "u-1"}"#)
            .expect("a name");
        let code = |path: &[&str]| show(&config, path).status().as_u16();
        assert_eq!(directories(&config).into_keys().collect::<Vec<_>>(), ["shop_web_u-1"]);
        for path in [
            &[][..],
            &["pods"],
            &["pods", "shop_web_u-1"],
            &["pods", "shop_web_u-1", "web"],
            &["pods", "shop_web_u-1", "web", "0.log"],
        ] {
            assert_eq!(code(path), 200, "{path:?}");
        }
        for path in [
            &["etc"][..],
            &["pods", "other"],
            &["pods", "shop_web_u-1", "..", "order.json"],
            &["pods", "shop_web_u-1", "web", "0.log", "x"],
        ] {
            assert_eq!(code(path), 404, "{path:?}");
        }
    }
}
