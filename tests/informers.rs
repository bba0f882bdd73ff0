//! Informers, of client-go and of kube-rs, follow a cluster that changes all the time: each lists once, hears of everything, and
//! has in the end what the API has.
//!
//! `PORTOLAN_INFORMERS` says for how many seconds (20); `PORTOLAN` names another binary. client-go's are a program that
//! `PORTOLAN_INFORMER` names (`.ci/peers` builds it): it follows ConfigMaps, Services and EndpointSlices until its standard
//! input ends, and then prints `list KIND COUNT`, `watch KIND COUNT` and `object KIND NAME RESOURCEVERSION`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt as _;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use serde_json::json;

use crate::harness::{PORTOLAN, block_on, until};
use portolan_peers::ApiServer;

/// Changes a second.
const RATE: u32 = 50;

/// What somebody has: of each kind its objects' names with their versions.
type State = BTreeMap<String, BTreeSet<(String, String)>>;

fn kinds() -> Vec<ApiResource> {
    vec![
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<EndpointSlice>(&()),
    ]
}

fn seen(object: &impl kube::ResourceExt) -> (String, String) {
    (object.name_any(), object.resource_version().unwrap_or_default())
}

/// kube-rs's informer of a kind.
struct Informer {
    kind: ApiResource,
    task: tokio::task::JoinHandle<()>,
    state: std::sync::Arc<std::sync::Mutex<(BTreeMap<String, String>, u32)>>,
}

impl Informer {
    fn start(client: &kube::Client, kind: ApiResource) -> Informer {
        let api: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &kind);
        let state: std::sync::Arc<std::sync::Mutex<(BTreeMap<String, String>, u32)>> = Default::default();
        let ours = state.clone();
        let task = tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher::watcher(api, watcher::Config::default()));
            while let Some(event) = events.next().await {
                let mut state = ours.lock().expect("nobody panicked");
                match event {
                    Ok(Event::Init) => *state = (BTreeMap::new(), state.1 + 1),
                    Ok(Event::InitApply(object) | Event::Apply(object)) => {
                        let (name, version) = seen(&object);
                        state.0.insert(name, version);
                    }
                    Ok(Event::Delete(object)) => {
                        state.0.remove(&object.name_any());
                    }
                    Ok(Event::InitDone) => {}
                    Err(error) => panic!("an informer hears of an error: {error}"),
                }
            }
        });
        Informer { kind, task, state }
    }

    fn has(&self) -> BTreeSet<(String, String)> {
        self.state.lock().expect("nobody panicked").0.clone().into_iter().collect()
    }
}

/// What the API has.
async fn truth(client: &kube::Client) -> State {
    let mut state = State::new();
    for kind in kinds() {
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::default_namespaced_with(client.clone(), &kind);
        let list = api.list(&ListParams::default()).await.expect("a list");
        state.insert(kind.plural.clone(), list.items.iter().map(seen).collect());
    }
    state
}

/// Makes, changes and removes objects for so long.
async fn churn(client: &kube::Client, lasts: Duration) -> u32 {
    let (maps, services): (Api<ConfigMap>, Api<Service>) =
        (Api::default_namespaced(client.clone()), Api::default_namespaced(client.clone()));
    let (began, mut changes) = (Instant::now(), 0);
    let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
    while began.elapsed() < lasts {
        tick.tick().await;
        let name = format!("c{}", changes % 200);
        match changes % 400 {
            // A Service comes and goes; the controllers make its slices.
            n if n % 40 == 7 => {
                let web = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}], "selector": {"app": "x"}}});
                let web: Service = serde_json::from_value(web).expect("a Service");
                services.create(&PostParams::default(), &web).await.expect("created");
            }
            n if n % 40 == 8 => {
                let name = format!("c{}", (changes - 1) % 200);
                services.delete(&name, &Default::default()).await.expect("deleted");
            }
            n if n % 40 == 9 => {
                let gone = maps.delete(&name, &Default::default()).await;
                assert!(gone.is_ok() || matches!(&gone, Err(kube::Error::Api(status)) if status.code == 404));
            }
            _ => {
                let change =
                    json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"n": changes.to_string()}});
                let params = PatchParams::apply("informers").force();
                maps.patch(&name, &params, &Patch::Apply(&change)).await.expect("applied");
            }
        }
        changes += 1;
    }
    changes
}

/// What client-go's informers printed: how often each kind was listed, and what they have.
fn parse(printed: &str) -> (BTreeMap<String, u32>, State) {
    let (mut lists, mut state) = (BTreeMap::new(), State::new());
    for line in printed.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["list", kind, count] => drop(lists.insert(kind.to_owned(), count.parse().expect("a number"))),
            ["object", kind, name, version] => {
                state.entry(kind.to_owned()).or_default().insert((name.to_owned(), version.to_owned()));
            }
            _ => {}
        }
    }
    (lists, state)
}

async fn follow(client_go: Option<PathBuf>) {
    let lasts = std::env::var("PORTOLAN_INFORMERS").map_or(20, |text| text.parse().expect("seconds"));
    let dir = tempfile::tempdir().expect("a folder");
    let program = std::env::var_os("PORTOLAN").map_or_else(|| PORTOLAN.into(), PathBuf::from);
    let mut server = ApiServer::portolan(&program, dir.path(), None);
    server.ready("/api/v1/namespaces/default/services/kubernetes").await;
    let client = server.client();
    let informers: Vec<Informer> = kinds().into_iter().map(|kind| Informer::start(&client, kind)).collect();
    let mut child = client_go.map(|program| {
        Command::new(program)
            .arg(dir.path().join("kubeconfig"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("client-go's informers")
    });

    let changes = churn(&client, Duration::from_secs(lasts)).await;
    let truth = until("the controllers to be quiet", async || {
        let one = truth(&client).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if truth(&client).await == one { Ok(one) } else { Err("objects still change".into()) }
    })
    .await;
    for informer in &informers {
        until("an informer of kube-rs", async || {
            let (has, wanted) = (informer.has(), &truth[&informer.kind.plural]);
            if has == *wanted { Ok(()) } else { Err(format!("{has:?} is not {wanted:?}")) }
        })
        .await;
        assert!(!informer.task.is_finished(), "it follows on");
        let lists = informer.state.lock().expect("nobody panicked").1;
        assert_eq!(lists, 1, "{} was listed so often", informer.kind.plural);
        informer.task.abort();
    }
    if let Some(child) = &mut child {
        drop(child.stdin.take());
    }
    let lists = child.map(|child| {
        let output = child.wait_with_output().expect("its end");
        let (lists, state) = parse(&String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", output.status);
        for (kind, objects) in &truth {
            assert_eq!(state.get(kind).unwrap_or(&BTreeSet::new()), objects, "client-go's {kind}");
            assert_eq!(lists.get(kind), Some(&1), "client-go listed {kind} so often");
        }
        lists.values().sum::<u32>()
    });
    let _ = writeln!(
        std::io::stderr(),
        "{changes} changes in {lasts} s: {} kinds, listed once each by kube-rs, {} by client-go; all have what the API has",
        informers.len(),
        lists.map_or_else(|| "not followed".to_owned(), |lists| format!("{lists} lists")),
    );
}

#[test]
fn informers_list_once_and_hear_of_everything() {
    let client_go = std::env::var_os("PORTOLAN_INFORMER").map(PathBuf::from);
    if client_go.is_none() {
        portolan_sys::trial::skipped("client-go's informers list once", "PORTOLAN_INFORMER names no program");
    }
    block_on(follow(client_go));
}
