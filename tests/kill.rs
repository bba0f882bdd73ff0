//! The API server, or the etcd below it, is killed at any moment while clients write and watch: no answered write is lost,
//! and who watches on from where they were sees each change once, in order.
//!
//! `PORTOLAN_KILLS` says how often for each engine (10), `PORTOLAN_SEED` when; `PORTOLAN` names another binary.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use tokio::task::JoinSet;

use crate::harness::{PORTOLAN, block_on};
use portolan_peers::{ApiServer, Etcd};

/// Who writes at the same time, and how many objects each has.
const WRITERS: usize = 8;
const KEYS: usize = 3;
/// Who watches.
const WATCHERS: usize = 3;
/// How long a part of the test may wait for another: a condition that doesn't come.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a client asked for.
#[derive(Clone, Debug)]
struct Asked {
    /// The number that the object is to have; `None` if it is to go.
    number: Option<u64>,
    /// The version that the answer gave it: `None` if there was no answer, and `Some(0)` if the answer said none.
    answered: Option<u64>,
}

/// What a watcher heard of an object: the number it has, or `None` of one that went; and the version.
type Heard = (Option<u64>, u64);

/// What is the same for everybody.
struct World {
    client: kube::Client,
    ending: AtomicBool,
    answered: AtomicU64,
    unanswered: AtomicU64,
    reconnected: AtomicU64,
}

impl World {
    fn objects(&self) -> Api<ConfigMap> {
        Api::default_namespaced(self.client.clone())
    }

    /// Waits until there is an answer.
    async fn back<T, F>(&self, what: &str, mut ask: impl FnMut() -> F) -> T
    where
        F: Future<Output = kube::Result<T>> + Send,
    {
        let asking = async {
            loop {
                match ask().await {
                    Ok(answer) => return answer,
                    Err(error) => {
                        assert!(is_outage(&error), "{what}: {error:?}");
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            }
        };
        let answer = tokio::time::timeout(PATIENCE, asking).await;
        answer.unwrap_or_else(|_| panic!("{what}: no answer in {PATIENCE:?}"))
    }
}

/// Whether an error says that nobody is there, or that the server can't reach its store.
fn is_outage(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500 || status.code == 429,
        _ => true,
    }
}

fn object(name: &str, number: u64) -> ConfigMap {
    let data = BTreeMap::from([("number".to_owned(), number.to_string())]);
    ConfigMap {
        metadata: kube::api::ObjectMeta { name: Some(name.into()), ..Default::default() },
        data: Some(data),
        ..Default::default()
    }
}

fn number(object: &ConfigMap) -> u64 {
    let text = object.data.as_ref().and_then(|data| data.get("number"));
    text.and_then(|text| text.parse().ok()).expect("a number")
}

fn version(object: &ConfigMap) -> u64 {
    object.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).expect("a version")
}

/// Makes, changes and removes its objects, and remembers what was answered.
async fn write(world: Arc<World>, writer: usize) -> BTreeMap<String, Vec<Asked>> {
    let api = world.objects();
    let mut all: BTreeMap<String, Vec<Asked>> = BTreeMap::new();
    let mut there = [false; KEYS];
    for round in 1u64.. {
        if world.ending.load(Ordering::SeqCst) {
            return all;
        }
        let key = usize::try_from(round).expect("small") % KEYS;
        let name = format!("w{writer}-{key}");
        let gone = there[key] && round % 11 < 3;
        let answer = match (gone, there[key]) {
            (true, _) => api.delete(&name, &DeleteParams::default()).await.map(|_| 0),
            (_, true) => {
                api.replace(&name, &PostParams::default(), &object(&name, round)).await.map(|o| version(&o))
            }
            _ => api.create(&PostParams::default(), &object(&name, round)).await.map(|o| version(&o)),
        };
        let asked = all.entry(name.clone()).or_default();
        match answer {
            Ok(version) => {
                world.answered.fetch_add(1, Ordering::Relaxed);
                asked.push(Asked { number: (!gone).then_some(round), answered: Some(version) });
                there[key] = !gone;
            }
            Err(error) => {
                assert!(is_outage(&error), "{name}: {error:?}");
                world.unanswered.fetch_add(1, Ordering::Relaxed);
                let look = || {
                    let (api, name) = (api.clone(), name.clone());
                    async move { api.get_opt(&name).await }
                };
                let now = world.back(&name, look).await;
                there[key] = now.is_some();
                // Deletions can't be told apart: one that didn't happen is forgotten.
                match (gone, now.is_some()) {
                    (true, true) => {}
                    (true, false) => asked.push(Asked { number: None, answered: Some(0) }),
                    (false, _) => asked.push(Asked { number: Some(round), answered: None }),
                }
            }
        }
    }
    unreachable!("rounds don't end")
}

/// Hears of everything from a version on, through every outage, until the last object comes.
async fn watch(world: Arc<World>, from: String, last: &'static str) -> Vec<(String, Heard)> {
    let api = world.objects();
    let (mut heard, mut at) = (Vec::new(), from);
    loop {
        let stream = api.watch(&WatchParams::default().timeout(290), &at).await;
        let mut stream = match stream {
            Ok(stream) => stream.boxed(),
            Err(error) => {
                assert!(is_outage(&error), "watching on from {at}: {error:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
        };
        world.reconnected.fetch_add(1, Ordering::Relaxed);
        while let Some(event) = stream.next().await {
            let (object, gone) = match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => (object, false),
                Ok(WatchEvent::Deleted(object)) => (object, true),
                Ok(WatchEvent::Bookmark(bookmark)) => {
                    at = bookmark.metadata.resource_version;
                    continue;
                }
                Ok(WatchEvent::Error(status)) => {
                    assert!(status.code >= 500, "watching on from {at}: {status:?}");
                    break;
                }
                Err(_) => break, // the connection ended
            };
            let name = object.metadata.name.clone().unwrap_or_default();
            let version = version(&object);
            at = version.to_string();
            if name == last {
                return heard;
            }
            if name.starts_with('w') {
                heard.push((name, ((!gone).then(|| number(&object)), version)));
            }
        }
    }
}

/// Holds what was heard of one object against what was asked.
fn compare(name: &str, asked: &[Asked], heard: &[Heard]) {
    let mut next = asked.iter();
    for (number, version) in heard {
        let met = next.find(|ask| {
            let same = ask.number == *number;
            assert!(
                same || ask.answered.is_none(),
                "{name}: {ask:?} was answered, then {number:?} was heard"
            );
            same
        });
        let Some(met) = met else {
            panic!("{name}: {number:?} at {version} was never asked for, or is heard again")
        };
        if let Some(answered) = met.answered.filter(|answered| *answered != 0) {
            assert_eq!(answered, *version, "{name}: {number:?}");
        }
    }
    if let Some(lost) = next.find(|ask| ask.answered.is_some()) {
        panic!("{name}: {lost:?} was answered, and never heard of");
    }
}

/// Numbers that look random, and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: a number")))
}

/// Kills as often as is asked for, on our own engine or on etcd, and compares.
async fn torment(etcd: Option<PathBuf>) {
    let (kills, seed) = (setting("PORTOLAN_KILLS", 10), setting("PORTOLAN_SEED", 1));
    let dir = tempfile::tempdir().expect("a folder");
    let mut etcd = etcd.map(|program| Etcd::start(&program, dir.path()));
    let program = std::env::var_os("PORTOLAN").map_or_else(|| PORTOLAN.into(), PathBuf::from);
    let mut server = ApiServer::portolan(&program, dir.path(), etcd.as_ref());
    server.ready("/api/v1/namespaces/default").await;

    let world = Arc::new(World {
        client: server.client(),
        ending: AtomicBool::new(false),
        answered: AtomicU64::new(0),
        unanswered: AtomicU64::new(0),
        reconnected: AtomicU64::new(0),
    });
    let list = world.objects().list(&ListParams::default()).await.expect("a list");
    let from = list.metadata.resource_version.expect("its version");
    let (mut writers, mut watchers) = (JoinSet::new(), JoinSet::new());
    for writer in 0..WRITERS {
        writers.spawn(write(world.clone(), writer));
    }
    for _ in 0..WATCHERS {
        watchers.spawn(watch(world.clone(), from.clone(), "last"));
    }

    let mut dice = Dice(seed);
    for kill in 1..=kills {
        // Most are killed under load, some while they start.
        let before = world.answered.load(Ordering::Relaxed);
        if dice.below(5) > 0 {
            let more = 1 + dice.below(200);
            let until = std::time::Instant::now() + PATIENCE;
            while world.answered.load(Ordering::Relaxed) < before + more {
                assert!(std::time::Instant::now() < until, "nothing is written after {kill} kills");
                assert!(writers.try_join_next().is_none_or(|ended| ended.is_ok()), "a writer has failed");
                assert!(watchers.try_join_next().is_none_or(|ended| ended.is_ok()), "a watcher has failed");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        } else {
            tokio::time::sleep(Duration::from_millis(dice.below(150))).await;
        }
        match &mut etcd {
            Some(etcd) if dice.below(2) == 0 => {
                etcd.process.kill();
                etcd.process.restart();
            }
            _ => {
                server.process.kill();
                server.process.restart();
            }
        }
        if kill % 100 == 0 {
            let _ = writeln!(
                std::io::stderr(),
                "{kill} kills, {} answered",
                world.answered.load(Ordering::Relaxed)
            );
        }
    }

    world.ending.store(true, Ordering::SeqCst);
    let mut asked: BTreeMap<String, Vec<Asked>> = BTreeMap::new();
    while let Some(writer) = writers.join_next().await {
        asked.extend(writer.expect("a writer"));
    }
    let last = || {
        let api = world.objects();
        async move { api.create(&PostParams::default(), &object("last", 0)).await }
    };
    world.back("the last object", last).await;
    let all: Vec<_> =
        tokio::time::timeout(PATIENCE, watchers.join_all()).await.expect("watchers hear of the last");
    for heard in &all {
        let versions: Vec<u64> = heard.iter().map(|(_, (_, version))| *version).collect();
        assert!(versions.is_sorted_by(|one, next| one < next), "versions grow");
        assert!(*heard == all[0], "all watchers hear the same");
    }
    let mut heard: BTreeMap<String, Vec<Heard>> = BTreeMap::new();
    for (name, what) in &all[0] {
        heard.entry(name.clone()).or_default().push(*what);
    }
    for (name, asked) in &asked {
        compare(name, asked, heard.get(name).map_or(&[], Vec::as_slice));
    }
    // And the list is where the changes lead.
    let list = world.objects().list(&ListParams::default()).await.expect("a list");
    let listed = list.items.iter().filter(|o| o.metadata.name.as_deref().is_some_and(|n| n.starts_with('w')));
    let listed: BTreeMap<String, Heard> = listed
        .map(|o| (o.metadata.name.clone().unwrap_or_default(), (Some(number(o)), version(o))))
        .collect();
    heard.retain(|_, what| what.last().is_some_and(|(number, _)| number.is_some()));
    let led: BTreeMap<String, Heard> =
        heard.iter().filter_map(|(name, what)| Some((name.clone(), *what.last()?))).collect();
    assert_eq!(listed, led);
    let _ = writeln!(
        std::io::stderr(),
        "{} on {}: {kills} kills (seed {seed}), {} writes answered, {} without an answer, {} changes heard by each of \
         {WATCHERS} watchers, who began {} times; none lost, none twice",
        program.display(),
        if etcd.is_some() { "etcd" } else { "its own engine" },
        world.answered.load(Ordering::Relaxed),
        world.unanswered.load(Ordering::Relaxed),
        all[0].len(),
        world.reconnected.load(Ordering::Relaxed),
    );
}

#[test]
fn whenever_the_server_is_killed_no_answered_write_is_lost_and_no_change_is_missed_or_repeated() {
    block_on(torment(None));
}

#[test]
fn whenever_the_server_or_its_etcd_is_killed_no_answered_write_is_lost_and_no_change_is_missed_or_repeated() {
    match std::env::var_os("PORTOLAN_ETCD") {
        Some(program) => block_on(torment(Some(program.into()))),
        None => portolan_sys::trial::skipped(
            "no write is lost whenever the server or its etcd is killed",
            "PORTOLAN_ETCD names no program",
        ),
    }
}
