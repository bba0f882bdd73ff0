//! Goes round all places of a lab and tries every Service from each: the shell around [`check`].

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use portolan_sys::namespace;

use super::check::{self, Grounds, Place, Row, Trial, Verdict};
use super::probe::{self, Answer, Seen};
use super::sight::{self, PodSight};
use super::state::State;
use super::topology::Transport;
use super::{cluster, enter, init, network};

/// The hidden verb.
pub const VERB: &str = "__lab-check";

/// How long the cluster may take until it is as the objects say. What counts is the state that it settles in: a row that
/// fails is tried again until this time is over.
const SETTLING: Duration = Duration::from_secs(5);
/// How long the check's own pods may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections at a time.
const WORKERS: usize = 16;

/// `lab check`: enters the lab and tries everything.
pub fn enter(state: &State) -> anyhow::Result<ExitCode> {
    let state_text = serde_json::to_string(state)?;
    enter::own(state, VERB, &[OsStr::new(&state_text)])
}

/// Runs inside of the lab, in this machine's own network namespace; the argument is the lab's state.
pub fn main(state: Option<&str>) -> ExitCode {
    let run = || {
        let state: State = serde_json::from_str(state.context("this verb is for the lab alone")?)?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(go_round(&state))
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn go_round(state: &State) -> anyhow::Result<bool> {
    let dir = state.kubeconfig.parent().context("the lab's directory")?;
    let kubeconfig =
        std::fs::read_to_string(init::server_kubeconfig(dir)).context("reading the kubeconfig")?;
    let client = cluster::connect(&kubeconfig).await?;

    let namespace = Api::<Namespace>::all(client.clone())
        .create(
            &PostParams::default(),
            &serde_json::from_value(serde_json::json!({
                "metadata": {"generateName": "portolan-check-"},
            }))?,
        )
        .await
        .context("making a namespace for the check's own pods")?
        .name_any();
    let result = try_all(state, dir, &client, &namespace).await;
    // The pods go with it; nobody needs to wait for that.
    let deleted = Api::<Namespace>::all(client).delete(&namespace, &DeleteParams::default()).await;
    if let Err(error) = deleted {
        eprintln!("warning: the namespace {namespace} stays: {error}");
    }
    result
}

async fn try_all(state: &State, dir: &Path, client: &Client, namespace: &str) -> anyhow::Result<bool> {
    let began = Instant::now();
    let bystanders = bystanders(state, client, namespace).await?;
    let all = ListParams::default();
    let services = Api::<Service>::all(client.clone()).list(&all).await?;
    let slices = Api::<EndpointSlice>::all(client.clone()).list(&all).await?;
    let pods = sight::pods(&Api::<Pod>::all(client.clone()).list(&all).await?.items);
    let rows = check::rows(&Grounds {
        topology: &state.topology,
        published: &state.published,
        services: &sight::services(&services.items, &slices.items),
        pods: &pods,
        bystanders: &bystanders,
    });
    let places = Places { dir: dir.to_owned(), pods };
    let seen = connect_until_settled(&rows, &places);

    print!("{}", check::render(&rows, &seen));
    let count = |wanted: Verdict| {
        rows.iter().zip(&seen).filter(|(row, seen)| check::verdict(row, seen) == wanted).count()
    };
    let (fine, different, untried) =
        (count(Verdict::AsExpected), count(Verdict::Different), count(Verdict::Untried));
    println!(
        "\n{fine} rows as expected, {different} different, {untried} not to be tried (-), in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    Ok(different == 0 && fine > 0)
}

/// A pod on each node that is no Service's backend: what connects from it never meets itself. A node on which none comes
/// up has rows that fail.
async fn bystanders(
    state: &State,
    client: &Client,
    namespace: &str,
) -> anyhow::Result<BTreeMap<String, PodSight>> {
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    for node in &state.topology.nodes {
        let pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": format!("on-{}", node.name)},
            "spec": {
                "nodeName": node.name,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "bystander", "image": "echo"}],
            },
        }))?;
        api.create(&PostParams::default(), &pod)
            .await
            .with_context(|| format!("making a pod on {}", node.name))?;
    }
    let wanted = state.topology.nodes.len();
    let mut there = BTreeMap::new();
    let all = cluster::until(api, |pods| {
        let pods: Vec<Pod> = pods.values().cloned().collect();
        there = sight::pods(&pods).into_values().map(|pod| (pod.node.clone(), pod)).collect();
        (there.len() == wanted).then_some(())
    });
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        eprintln!(
            "warning: only {} of {wanted} pods to connect from are there after {PATIENCE:?}",
            there.len()
        );
    }
    Ok(there)
}

/// Finds the network namespaces of places.
struct Places {
    dir: PathBuf,
    pods: BTreeMap<String, PodSight>,
}

impl Places {
    /// The network namespace of a place; `None` for this machine's own.
    fn netns(&self, place: &Place) -> anyhow::Result<Option<OwnedFd>> {
        match place {
            Place::Here => Ok(None),
            Place::Machine(name) => {
                let file = network::file(&self.dir, name);
                Ok(Some(File::open(&file).with_context(|| format!("opening {}", file.display()))?.into()))
            }
            Place::Pod(name) => {
                let pod = self.pods.get(name).with_context(|| format!("{name} is not there"))?;
                let file =
                    init::node_dir(&self.dir, &pod.node).join("pods").join(&pod.uid).join("sandbox.json");
                let text = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
                let sandbox: serde_json::Value = serde_json::from_slice(&text)?;
                let pid = sandbox["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("a pid")?;
                Ok(Some(namespace::netns_of(pid).with_context(|| format!("entering {name}"))?))
            }
        }
    }

    /// Makes a trial's connections.
    fn perform(&self, trial: &Trial, protocol: Transport) -> Seen {
        let search = trial.search(protocol);
        let run = || -> anyhow::Result<Seen> {
            match self.netns(&trial.from)? {
                None => Ok(probe::search(&search)),
                Some(netns) => Ok(namespace::in_netns(netns.as_fd(), || probe::search(&search))?),
            }
        };
        run().unwrap_or_else(|error| Seen {
            other: Some(Answer::Error(format!("not tried: {error:#}"))),
            ..Seen::default()
        })
    }
}

/// Makes all connections; those that don't give what is expected again until the cluster must have settled.
fn connect_until_settled(rows: &[Row], places: &Places) -> Vec<Vec<Seen>> {
    let deadline = Instant::now() + SETTLING;
    let count = |row: &Row| row.trials.as_ref().map_or(0, Vec::len);
    let mut seen: Vec<Vec<Seen>> = rows.iter().map(|row| vec![Seen::default(); count(row)]).collect();
    let mut open: Vec<(usize, usize)> =
        rows.iter().enumerate().flat_map(|(r, row)| (0..count(row)).map(move |t| (r, t))).collect();
    loop {
        for ((r, t), result) in connect(rows, &open, places) {
            seen[r][t] = result;
        }
        open.retain(|(r, t)| rows[*r].trials.as_ref().is_ok_and(|trials| !trials[*t].holds(&seen[*r][*t])));
        if open.is_empty() || Instant::now() > deadline {
            return seen;
        }
    }
}

fn connect(rows: &[Row], which: &[(usize, usize)], places: &Places) -> Vec<((usize, usize), Seen)> {
    let queue: Mutex<VecDeque<(usize, usize)>> = Mutex::new(which.iter().copied().collect());
    let results = Mutex::new(Vec::with_capacity(which.len()));
    let next = || queue.lock().unwrap_or_else(|e| e.into_inner()).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(which.len()) {
            scope.spawn(|| {
                while let Some((r, t)) = next() {
                    let Ok(trials) = &rows[r].trials else { continue };
                    let seen = places.perform(&trials[t], rows[r].protocol);
                    results.lock().unwrap_or_else(|e| e.into_inner()).push(((r, t), seen));
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(|e| e.into_inner())
}
