//! `/metrics`: what the server counts of its own work, under kube-apiserver's names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};
use parking_lot::Mutex;
use portolan_metrics::{Histogram, Page, Process, labels};

use crate::attributes::Attributes;
use crate::body::ServerBody;
use crate::http::typed;
use crate::server::Server;

/// kube-apiserver's bounds of `apiserver_request_duration_seconds` (apiserver's endpoints/metrics).
const BOUNDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

/// What a request was, as far as it is told apart. What is no resource of ours has no name here: whoever asks for things that
/// aren't there must not fill the server's memory with their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Sort {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    dry_run: bool,
}

/// What has been answered.
#[derive(Debug, Default)]
struct Readings {
    answers: BTreeMap<(Sort, u16), u64>,
    durations: BTreeMap<Sort, Histogram>,
    /// Requests under way: those that only read, those that write.
    inflight: [u64; 2],
    /// Streams under way.
    streams: BTreeMap<Sort, u64>,
}

/// The server's meters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meters(Arc<Mutex<Readings>>);

/// One request on its way; it no longer counts as under way when this is dropped.
pub(crate) struct Under {
    meters: Meters,
    writes: bool,
}

/// A stream that goes on after its answer has begun.
struct Stream {
    meters: Meters,
    sort: Sort,
}

impl Sort {
    fn of(request: &Attributes, known: bool, dry_run: bool) -> Sort {
        let lasts = matches!(request.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy");
        let verb = match request.verb.as_str() {
            _ if lasts => "CONNECT",
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" | "post" => "POST",
            "update" | "put" => "PUT",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "other",
        };
        if !known {
            return Sort { verb, dry_run, ..Sort::default() };
        }
        let scope = if !request.name.is_empty() || verb == "POST" {
            "resource"
        } else if request.namespace.is_empty() {
            "cluster"
        } else {
            "namespace"
        };
        Sort {
            verb,
            group: request.group.clone(),
            version: request.version.clone(),
            resource: request.resource.clone(),
            subresource: request.subresource.clone(),
            scope,
            dry_run,
        }
    }

    fn labels(&self) -> String {
        labels(&[
            ("component", "apiserver"),
            ("dry_run", if self.dry_run { "All" } else { "" }),
            ("group", &self.group),
            ("resource", &self.resource),
            ("scope", self.scope),
            ("subresource", &self.subresource),
            ("verb", self.verb),
            ("version", &self.version),
        ])
    }
}

impl Meters {
    /// A request has come.
    pub(crate) fn begin(&self, writes: bool) -> Under {
        self.0.lock().inflight[usize::from(writes)] += 1;
        Under { meters: self.clone(), writes }
    }

    /// A request was answered, or its stream has begun.
    pub(crate) fn answered(
        &self,
        request: &Attributes,
        known: bool,
        dry_run: bool,
        took: Duration,
        response: Response<ServerBody>,
    ) -> Response<ServerBody> {
        let sort = Sort::of(request, known, dry_run);
        let stream = response.body().is_stream();
        let mut readings = self.0.lock();
        *readings.answers.entry((sort.clone(), response.status().as_u16())).or_default() += 1;
        if !stream {
            readings.durations.entry(sort).or_default().observe(BOUNDS, took);
            return response;
        }
        *readings.streams.entry(sort.clone()).or_default() += 1;
        drop(readings);
        let stream = Stream { meters: self.clone(), sort };
        response.map(|body| body.with_end(Box::new(stream)))
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.meters.0.lock().inflight[usize::from(self.writes)] -= 1;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(count) = self.meters.0.lock().streams.get_mut(&self.sort) {
            *count -= 1;
        }
    }
}

/// The page.
pub(crate) fn answer(server: &Server) -> Response<ServerBody> {
    let mut page = Page::default();
    write(&mut page, &server.meters.0.lock());
    let name = "apiserver_storage_objects";
    page.head(name, "gauge", "Objects that are stored, by resource.");
    for (kind, count) in server.counts() {
        page.value(name, &labels(&[("resource", &kind.resource())]), count);
    }
    let version = &server.config.version;
    let name = "kubernetes_build_info";
    page.head(name, "gauge", "Which Kubernetes the server speaks for.");
    let about = [
        ("git_version", version.git_version.as_str()),
        ("major", version.major.as_str()),
        ("minor", version.minor.as_str()),
        ("platform", &format!("linux/{}", std::env::consts::ARCH)),
    ];
    page.value(name, &labels(&about), 1);
    if let Some(process) = Process::now() {
        process.write(&mut page);
    }
    typed(StatusCode::OK, portolan_metrics::CONTENT, page.text())
}

fn write(page: &mut Page, readings: &Readings) {
    let name = "apiserver_request_total";
    page.head(name, "counter", "Requests answered, by verb, resource and HTTP status.");
    for ((sort, code), count) in &readings.answers {
        page.value(name, &format!("code=\"{code}\",{}", sort.labels()), count);
    }
    let name = "apiserver_request_duration_seconds";
    page.head(name, "histogram", "Time from a request to its answer; without what goes on, as watches do.");
    for (sort, histogram) in &readings.durations {
        page.histogram(name, &sort.labels(), histogram);
    }
    let name = "apiserver_current_inflight_requests";
    page.head(name, "gauge", "Requests under way.");
    for (kind, count) in ["readOnly", "mutating"].into_iter().zip(readings.inflight) {
        page.value(name, &labels(&[("request_kind", kind)]), count);
    }
    let name = "apiserver_longrunning_requests";
    page.head(name, "gauge", "Watches and other requests that go on.");
    for (sort, count) in &readings.streams {
        page.value(name, &sort.labels(), count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(meters: &Meters) -> String {
        let mut page = Page::default();
        write(&mut page, &meters.0.lock());
        page.text()
    }

    #[test]
    fn what_is_not_there_has_no_name_on_the_page() {
        let meters = Meters::default();
        let request = |resource: &str| Attributes {
            verb: "list".into(),
            of_resource: true,
            version: "v1".into(),
            namespace: "shop".into(),
            resource: resource.into(),
            ..Attributes::default()
        };
        let response = || typed(StatusCode::OK, "text/plain", "");
        meters.answered(&request("pods"), true, false, Duration::from_millis(4), response());
        meters.answered(&request("surprises"), false, false, Duration::from_millis(6), response());
        let page = page(&meters);
        let pods = "component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"pods\",scope=\"namespace\",subresource=\"\",\
                    verb=\"LIST\",version=\"v1\"";
        for line in [
            format!("apiserver_request_total{{code=\"200\",{pods}}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{{pods},le=\"0.005\"}} 1"),
            format!("apiserver_request_duration_seconds_count{{{pods}}} 1"),
        ] {
            assert!(page.lines().any(|have| have == line), "no line {line} in\n{page}");
        }
        assert!(!page.contains("surprises"), "{page}");
    }

    #[test]
    fn what_goes_on_counts_until_it_ends() {
        let meters = Meters::default();
        let request = Attributes { verb: "watch".into(), of_resource: true, ..Attributes::default() };
        let stream = ServerBody::stream(Box::pin(futures_util::stream::pending()));
        let under = meters.begin(false);
        let response = meters.answered(&request, true, false, Duration::ZERO, Response::new(stream));
        let line = |count| format!("verb=\"WATCH\",version=\"\"}} {count}");
        let streams =
            |page: &str| page.lines().filter(|l| l.starts_with("apiserver_longrunning")).collect::<String>();
        assert!(streams(&page(&meters)).ends_with(&line(1)));
        assert!(page(&meters).contains("{request_kind=\"readOnly\"} 1"));
        drop((response, under));
        assert!(streams(&page(&meters)).ends_with(&line(0)));
        assert!(page(&meters).contains("{request_kind=\"readOnly\"} 0"));
    }
}
