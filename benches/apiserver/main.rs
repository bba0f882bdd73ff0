//! Our API server beside kube-apiserver on etcd: the same work for each, one after the other, in one run.
//!
//! `cargo bench --bench apiserver [-- OBJECTS [SERVICES]]`, with `PORTOLAN_KUBE_APISERVER` and `PORTOLAN_ETCD` naming the programs and
//! `PORTOLAN` another binary of ours. Each writes through to the disk.

mod client; // one HTTP connection

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;

use client::Connection;
use portolan_peers::{ApiServer, Etcd, Usage};

/// Who writes at the same time.
const WRITERS: usize = 8;
/// Who watches at the same time, and how many of them share a connection, as the informers of a program do.
const WATCHES: usize = 1000;
const TOGETHER: usize = 50;
/// Changes that all watches hear of.
const CHANGES: usize = 200;

/// A server and what is below it.
struct Subject {
    server: ApiServer,
    etcd: Option<Etcd>,
    _dir: tempfile::TempDir,
}

impl Subject {
    fn usage(&self) -> Usage {
        let etcd = self.etcd.as_ref().map(|etcd| etcd.process.usage()).unwrap_or_default();
        self.server.process.usage() + etcd
    }
}

/// The two.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Ours,
    Kubernetes,
}

/// Where the programs are.
struct Programs {
    ours: PathBuf,
    apiserver: PathBuf,
    etcd: PathBuf,
}

impl Programs {
    /// Starts one with an empty store; the time until it is ready.
    async fn start(&self, whose: Whose) -> (Subject, Duration) {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on a disk");
        let began = Instant::now();
        let mut subject = match whose {
            Whose::Ours => {
                Subject { server: ApiServer::portolan(&self.ours, dir.path(), None), etcd: None, _dir: dir }
            }
            Whose::Kubernetes => {
                let etcd = Etcd::start(&self.etcd, dir.path());
                let server = ApiServer::kubernetes(&self.apiserver, dir.path(), &etcd);
                Subject { server, etcd: Some(etcd), _dir: dir }
            }
        };
        subject.server.ready("/api/v1/namespaces/default").await;
        (subject, began.elapsed())
    }
}

/// How much there is of it.
#[derive(Clone, Copy)]
struct Size {
    /// ConfigMaps, which are written, listed and watched.
    objects: usize,
    /// Services, each with an EndpointSlice, for the memory that they take.
    services: usize,
}

/// What was measured of one.
#[derive(Default)]
struct Figures(Vec<(String, f64, Better)>);

/// Which of two figures is the better one.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    More,
    Less,
}

impl Figures {
    fn more(&mut self, what: impl Into<String>, figure: f64) {
        let what = what.into();
        println!("  {what}: {figure:.3}");
        self.0.push((what, figure, Better::More));
    }

    fn less(&mut self, what: impl Into<String>, figure: f64) {
        let what = what.into();
        println!("  {what}: {figure:.3}");
        self.0.push((what, figure, Better::Less));
    }
}

fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::MAX, f64::from)
}

fn megabytes(bytes: u64) -> f64 {
    count(usize::try_from(bytes / 1024).unwrap_or_default()) / 1024.0
}

/// A ConfigMap of about a kilobyte.
fn configmap(name: &str, version: usize) -> String {
    let fill = "x".repeat(800);
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","labels":{{"app":"bench"}}}},"data":{{"version":"{version}","fill":"{fill}"}}}}"#
    )
}

fn service(n: usize) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"s{n}","labels":{{"app":"bench"}}}},"spec":{{"ports":[{{"name":"http","port":80,"targetPort":8080}}]}}}}"#
    )
}

fn slice(n: usize) -> String {
    let endpoints: Vec<String> = (0..10)
        .map(|e| {
            format!(
                r#"{{"addresses":["10.{}.{}.{}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"nodeName":"node-{e}","targetRef":{{"kind":"Pod","namespace":"default","name":"web-{n}-{e}"}}}}"#,
                n / 250 % 250,
                n % 250,
                e + 1
            )
        })
        .collect();
    format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"s{n}-x","labels":{{"kubernetes.io/service-name":"s{n}"}}}},"addressType":"IPv4","ports":[{{"name":"http","port":8080,"protocol":"TCP"}}],"endpoints":[{}]}}"#,
        endpoints.join(",")
    )
}

/// Sends bodies to a collection by several clients; each answer must be 201.
async fn create(server: &ApiServer, path: &'static str, bodies: usize, body: fn(usize) -> String) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (next, mut connection) = (next.clone(), Connection::open(server, false).await);
        writers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= bodies {
                    break;
                }
                let (code, text) = connection.send("POST", path, body(n)).await;
                assert_eq!(code, 201, "{}", String::from_utf8_lossy(&text));
            }
        });
    }
    writers.join_all().await;
}

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
const CHANGED: &str = "/api/v1/namespaces/default/configmaps/changed";

/// One change after the other, each when all have heard of the one before: how long until the last has.
async fn fan_out(subject: &Subject, figures: &mut Figures) {
    let heard = Arc::new((AtomicUsize::new(0), Notify::new()));
    let mut writer = Connection::open(&subject.server, false).await;
    let (code, made) = writer.send("POST", CONFIGMAPS, configmap("changed", 0)).await;
    assert_eq!(code, 201, "{}", String::from_utf8_lossy(&made));
    let made: serde_json::Value = serde_json::from_slice(&made).expect("JSON");
    let version = made["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
    let mut watches = JoinSet::new();
    for _ in 0..WATCHES / TOGETHER {
        let connection = Connection::open(&subject.server, true).await;
        for _ in 0..TOGETHER {
            let path = format!("{CONFIGMAPS}?watch=true&resourceVersion={version}&timeoutSeconds=1800");
            let (heard, mut stream) = (heard.clone(), connection.watch(&path).await);
            watches.spawn(async move {
                loop {
                    let events = stream.next().await;
                    if heard.0.fetch_add(events, Ordering::SeqCst) % WATCHES + events >= WATCHES {
                        heard.1.notify_one();
                    }
                }
            });
        }
    }
    let before = subject.usage();
    let mut times = Vec::with_capacity(CHANGES);
    for change in 1..=CHANGES {
        let began = Instant::now();
        let (code, text) = writer.send("PUT", CHANGED, configmap("changed", change)).await;
        assert_eq!(code, 200, "{}", String::from_utf8_lossy(&text));
        while heard.0.load(Ordering::SeqCst) < change * WATCHES {
            let waited = tokio::time::timeout(Duration::from_secs(30), heard.1.notified()).await;
            assert!(
                waited.is_ok(),
                "{} of {} events were heard",
                heard.0.load(Ordering::SeqCst),
                change * WATCHES
            );
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    let used = subject.usage().cpu - before.cpu;
    times.sort_by(f64::total_cmp);
    figures.less("a change until 1,000 watches have it: p50, ms", times[CHANGES / 2]);
    figures.less("a change until 1,000 watches have it: p99, ms", times[CHANGES * 99 / 100]);
    figures.less("a change to 1,000 watches: CPU, ms", used * 1000.0 / count(CHANGES));
    watches.shutdown().await;
}

async fn measure(programs: &Programs, whose: Whose, size: Size) -> Figures {
    let Size { objects, services } = size;
    println!("{whose:?}");
    let mut figures = Figures::default();
    let (subject, started) = programs.start(whose).await;
    figures.less("start until ready, s", started.as_secs_f64());
    figures.less("memory when empty, MB", megabytes(subject.usage().memory));

    create(&subject.server, "/api/v1/namespaces/default/services", services, service).await;
    create(&subject.server, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", services, slice)
        .await;
    figures
        .less(format!("memory with {services} Services and slices, MB"), megabytes(subject.usage().memory));
    drop(subject);

    let (subject, _) = programs.start(whose).await;
    let (began, before) = (Instant::now(), subject.usage());
    create(&subject.server, CONFIGMAPS, objects, |n| configmap(&format!("c{n}"), n)).await;
    let (took, used) = (began.elapsed(), subject.usage().cpu - before.cpu);
    figures.more("writes by 8 clients, per second", count(objects) / took.as_secs_f64());
    figures.more("writes by 8 clients, per CPU second", count(objects) / used);

    let mut reader = Connection::open(&subject.server, false).await;
    let (began, before) = (Instant::now(), subject.usage());
    let (code, list) = reader.send("GET", &format!("{CONFIGMAPS}?resourceVersion=0"), String::new()).await;
    assert_eq!((code, memchr_count(&list)), (200, objects + 1));
    figures.less("list of all at once, s", began.elapsed().as_secs_f64());
    figures.less("list of all at once: CPU, s", subject.usage().cpu - before.cpu);
    drop(list);
    let (began, before, mut next, mut seen) = (Instant::now(), subject.usage(), String::new(), 0);
    loop {
        let (code, page) =
            reader.send("GET", &format!("{CONFIGMAPS}?limit=500&continue={next}"), String::new()).await;
        assert_eq!(code, 200);
        seen += memchr_count(&page);
        next = token(&page);
        if next.is_empty() {
            break;
        }
    }
    assert_eq!(seen, objects + 1);
    figures.less("list of all in pages of 500, s", began.elapsed().as_secs_f64());
    figures.less("list of all in pages of 500: CPU, s", subject.usage().cpu - before.cpu);

    fan_out(&subject, &mut figures).await;
    figures.less("memory at the end, MB", megabytes(subject.usage().memory));
    figures
}

/// How many objects a list has: each has a UID, and nothing else has.
fn memchr_count(list: &[u8]) -> usize {
    list.windows(7).filter(|window| window == b"\"uid\":\"").count()
}

/// The token of the next page. It stands in the list's own metadata, before the items.
fn token(page: &[u8]) -> String {
    let head = String::from_utf8_lossy(&page[..page.len().min(2000)]).into_owned();
    let head = head.split("\"items\"").next().unwrap_or_default();
    let rest = head.split("\"continue\":\"").nth(1).unwrap_or_default();
    rest.split('"').next().unwrap_or_default().to_owned()
}

fn program(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| Path::new(path).exists())
}

#[tokio::main]
async fn main() {
    // `cargo test --benches` calls this too: it is no test.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let mut numbers = std::env::args().filter_map(|argument| argument.parse().ok());
    let (objects, services) = (numbers.next().unwrap_or(100_000), numbers.next().unwrap_or(10_000));
    let size = Size { objects, services };
    let (Some(apiserver), Some(etcd)) = (program("PORTOLAN_KUBE_APISERVER"), program("PORTOLAN_ETCD")) else {
        println!(
            "PORTOLAN_KUBE_APISERVER and PORTOLAN_ETCD must name the programs (.ci/peers DIR builds them)"
        );
        return;
    };
    let ours = program("PORTOLAN").unwrap_or_else(|| env!("CARGO_BIN_EXE_portolan").into());
    let programs = Programs { ours, apiserver, etcd };
    let kubernetes = measure(&programs, Whose::Kubernetes, size).await;
    let ours = measure(&programs, Whose::Ours, size).await;
    println!(
        "\n{:<52} {:>12} {:>16} {:>8}",
        format!("{objects} objects"),
        "portolan",
        "kube-apiserver",
        "better"
    );
    for ((what, ours, better), (_, theirs, _)) in ours.0.iter().zip(&kubernetes.0) {
        let ratio = if *better == Better::More { ours / theirs } else { theirs / ours };
        println!("{what:<52} {ours:>12.2} {theirs:>16.2} {ratio:>7.1}x");
    }
}
