//! Probes that speak TLS and gRPC, and what else of a manifest only shows in a running container.

use std::convert::Infallible;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portolan_sys::namespace::{in_netns, netns_of};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::tests::{echo, shell};
use crate::world::{World, is_ready};

/// A port of a pod where the test itself listens.
async fn listen(world: &World, key: &str, port: u16) -> TcpListener {
    let running = |api: &crate::api::Api| {
        api.get(key).filter(|pod| !pod["status"]["containerStatuses"][0]["state"]["running"].is_null())
    };
    world.api.until("the container runs", 20, running).await;
    let netns = netns_of(world.pid(key) as u32).expect("the pod's namespace");
    let listener =
        in_netns(netns.as_fd(), || std::net::TcpListener::bind(("::", port))).expect("in the namespace");
    let listener = listener.expect("a listener");
    listener.set_nonblocking(true).expect("without waiting");
    TcpListener::from_std(listener).expect("a listener of tokio's")
}

fn probed(probe: Value) -> Value {
    let mut spec = echo("echo-abrupt");
    let mut probe = probe;
    probe["periodSeconds"] = json!(1);
    probe["failureThreshold"] = json!(1);
    probe["timeoutSeconds"] = json!(5);
    spec["containers"][0]["readinessProbe"] = probe;
    spec
}

pub async fn a_probe_by_https_takes_the_pods_own_certificate() {
    let world = World::new().await;
    let key =
        world.create("tls", probed(json!({"httpGet": {"path": "/readyz", "port": 8443, "scheme": "HTTPS"}})));
    let listener = listen(&world, &key, 8443).await;
    let own = rcgen::generate_simple_self_signed(["anything".to_owned()]).expect("a certificate");
    let secret = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], secret)
            .expect("a server");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let answer = |request: Request<Incoming>| async move {
                let code = if request.uri().path() == "/readyz" { 200 } else { 404 };
                Response::builder().status(code).body(Full::new(Bytes::new()))
            };
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        }
    });
    world.ready(&key).await;
}

pub async fn a_probe_by_grpc_asks_for_its_service() {
    let world = World::new().await;
    let key = world.create("grpc", probed(json!({"grpc": {"port": 5000, "service": "shop"}})));
    let listener = listen(&world, &key, 5000).await;
    // grpc.health.v1.HealthCheckResponse.ServingStatus: 1 serves, 2 doesn't.
    let status = Arc::new(AtomicU8::new(1));
    let said = status.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let said = said.clone();
            let answer = move |request: Request<Incoming>| {
                let said = said.load(Ordering::Relaxed);
                async move {
                    let path = request.uri().path().to_owned();
                    let asked =
                        request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                    let known =
                        path == "/grpc.health.v1.Health/Check" && asked[..] == *b"\0\0\0\0\x06\x0a\x04shop";
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static(if known { "0" } else { "5" }));
                    let frames = [
                        Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0, 0, 0, 0, 2, 0x08, said]))),
                        Ok(Frame::trailers(trailers)),
                    ];
                    let body = StreamBody::new(futures_util::stream::iter(frames));
                    Response::builder().header("content-type", "application/grpc").body(body)
                }
            };
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
    world.ready(&key).await;
    status.store(2, Ordering::Relaxed);
    world.api.until("it isn't ready any more", 20, |api| api.get(&key).filter(|pod| !is_ready(pod))).await;
    let complaint = world.api.until("an event says so", 5, |_| world.events("Unhealthy").pop()).await;
    assert!(complaint.contains("service unhealthy (responded with \"NOT_SERVING\")"), "{complaint}");
}

pub async fn what_a_container_says_of_its_end_is_in_its_status() {
    let world = World::new().await;
    let ended = async |key: &str| {
        let ended = |api: &crate::api::Api| {
            let pod = api.get(key)?;
            let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            (!state.is_null()).then(|| state.clone())
        };
        world.api.until("it has ended", 20, ended).await
    };
    let once = |script: &str, policy: &str| {
        let mut spec = shell(script);
        spec["restartPolicy"] = json!("Never");
        spec["containers"][0]["terminationMessagePolicy"] = json!(policy);
        spec
    };
    let said = world.create("said", once("echo by file; printf bye >/dev/termination-log; exit 3", "File"));
    assert_eq!(ended(&said).await["message"], "bye");
    let logged = world.create("logged", once("echo the cause; exit 3", "FallbackToLogsOnError"));
    assert_eq!(ended(&logged).await["message"], "the cause\n");
    let well = world.create("well", once("echo nothing", "FallbackToLogsOnError"));
    assert_eq!(ended(&well).await["message"], Value::Null);
}

pub async fn a_volume_is_its_pods_group_and_terminals_can_be_made() {
    let world = World::new().await;
    world.api.put(
        "configmaps/default/c",
        json!({"metadata": {"name": "c", "namespace": "default"}, "data": {"k": "v"}}),
    );
    let script = "exec 3<>/dev/ptmx; ls /dev/pts; touch /tmp/scratch/new; \
                  stat -c '%g %a' /tmp/scratch /tmp/scratch/new /tmp/c /tmp/c/k; cat /tmp/c/k; echo; sleep 1000";
    let mut spec = shell(script);
    spec["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000});
    spec["volumes"] = json!([
        {"name": "scratch", "emptyDir": {}},
        {"name": "c", "configMap": {"name": "c", "defaultMode": 0o400}}
    ]);
    spec["containers"][0]["volumeMounts"] =
        json!([{"name": "scratch", "mountPath": "/tmp/scratch"}, {"name": "c", "mountPath": "/tmp/c"}]);
    let key = world.create("group", spec);
    let groups = std::fs::read_to_string("/proc/self/gid_map").expect("the groups that there are");
    if !groups
        .split_ascii_whitespace()
        .nth(2)
        .is_some_and(|count| count.parse::<u64>().is_ok_and(|count| count > 2000))
    {
        // A user's node has one group.
        let said = |api: &crate::api::Api| {
            let pod = api.get(&key)?;
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().map(str::to_owned)
        };
        let said = world.api.until("it says so", 20, said).await;
        assert!(said.starts_with("securityContext.fsGroup: volume "), "{said}");
        return;
    }
    world.ready(&key).await;
    let log = world.dir(&key).join("logs/sh/0.log");
    let begun = Instant::now();
    let lines = loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<String> =
            text.lines().filter_map(|line| line.splitn(4, ' ').nth(3).map(str::to_owned)).collect();
        if lines.last().is_some_and(|line| line == "v") {
            break lines;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "the container looks: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(lines, ["0", "ptmx", "2000 2777", "2000 644", "2000 2755", "2000 440", "v"]);
}
