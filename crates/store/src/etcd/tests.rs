//! A real etcd behind the engine: the same promises, and what happens when etcd or the way to it fails.
//!
//! `PORTOLAN_ETCD` names the program.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::{Etcd, Options};
use crate::{Compare, Error, Op, Range, Revision, Store, Txn, TxnOutcome, WatchStream, conformance};

const PROMISE: &str = "etcd as the engine keeps every promise";

/// The program, or none, said aloud.
fn program() -> Option<PathBuf> {
    let program = std::env::var_os("PORTOLAN_ETCD").map(PathBuf::from);
    if program.is_none() {
        // Past the harness, which swallows what passing tests print.
        let _ = writeln!(std::io::stderr(), "skipped: {PROMISE}: PORTOLAN_ETCD names no program");
    }
    program
}

/// An etcd of one member, until it is dropped.
struct Member {
    program: PathBuf,
    dir: tempfile::TempDir,
    ports: [u16; 2],
    child: Child,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

fn spawn(program: &Path, dir: &Path, ports: [u16; 2]) -> Child {
    let [client, peer] = ports.map(|port| format!("http://127.0.0.1:{port}"));
    Command::new(program)
        .args(["--data-dir".into(), dir.join("data").display().to_string()])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.join("log")).expect("a log"))
        .kill_on_drop(true)
        .spawn()
        .expect("etcd starts")
}

impl Member {
    async fn start(program: PathBuf) -> Member {
        let dir = tempfile::tempdir().expect("a directory");
        let ports = [free_port(), free_port()];
        let child = spawn(&program, dir.path(), ports);
        Member { program, dir, ports, child }
    }

    /// Ends it by SIGKILL, at whatever it is doing.
    async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Starts it again on what it had written.
    fn start_again(&mut self) {
        self.child = spawn(&self.program, self.dir.path(), self.ports);
    }

    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.ports[0]).into()
    }

    async fn store(&self) -> Arc<Etcd> {
        open(self.address()).await
    }
}

async fn open(address: SocketAddr) -> Arc<Etcd> {
    Etcd::open(Options::new(vec![format!("http://{address}")])).await.expect("etcd answers")
}

async fn put(store: &Etcd, key: &str, value: impl ToString) -> Result<Revision, Error> {
    let ops = vec![Op::Put(key.into(), value.to_string().into())];
    match store.txn(Txn { compares: Vec::new(), ops }).await? {
        TxnOutcome::Committed(revision) => Ok(revision),
        refused => panic!("nothing was compared: {refused:?}"),
    }
}

async fn watch_all(store: &Etcd, after: Revision) -> WatchStream {
    let range = Range::prefix("/k/");
    store.watch(&range.start, &range.end, after).await.expect("watchable")
}

/// Revisions with changes, once and in order, up to one of them.
async fn revisions(stream: &mut WatchStream, upto: Revision) -> Vec<Revision> {
    let mut seen: Vec<Revision> = Vec::new();
    let mut delivered = Revision(0);
    while delivered < upto {
        let next = tokio::time::timeout(Duration::from_secs(60), stream.next()).await;
        let batch = next.expect("within a minute").expect("a watch goes on").expect("and doesn't fail");
        assert!(batch.revision >= delivered, "{:?} after {delivered:?}", batch.revision);
        if !batch.changes.is_empty() {
            assert!(seen.last().is_none_or(|last| *last < batch.revision), "{batch:?} was delivered already");
            seen.push(batch.revision);
        }
        delivered = batch.revision;
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_every_promise() {
    let Some(program) = program() else { return };
    let member = Member::start(program).await;
    conformance::check(|| async { member.store().await as Arc<dyn Store> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_every_promise_with_hardly_any_memory_too() {
    let Some(program) = program() else { return };
    let member = Member::start(program).await;
    let options = Options {
        watch_buffer: 2,
        watch_buffer_bytes: 10_000,
        ..Options::new(vec![format!("http://{}", member.address())])
    };
    conformance::check(|| async {
        Etcd::open(options.clone()).await.expect("etcd answers") as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_on_one_etcd_see_each_others_writes_and_one_of_two_creators_wins() {
    let Some(program) = program() else { return };
    let member = Member::start(program).await;
    let (one, two) = (member.store().await, member.store().await);
    let start = one.revision().await.expect("readable");
    let mut watches = [watch_all(&one, start).await, watch_all(&two, start).await];
    let mut written = Vec::new();
    for n in 0..20 {
        let key = format!("/k/{n}");
        let create = Txn {
            compares: vec![Compare::Absent(key.as_str().into())],
            ops: vec![Op::Put(key.as_str().into(), "x".into())],
        };
        let (a, b) = tokio::join!(one.txn(create.clone()), two.txn(create));
        let won: Vec<Revision> = [a, b]
            .into_iter()
            .filter_map(|outcome| match outcome.expect("etcd answers") {
                TxnOutcome::Committed(revision) => Some(revision),
                TxnOutcome::Refused { current, .. } => {
                    assert!(current[0].is_some(), "who is refused is shown why");
                    None
                }
            })
            .collect();
        assert_eq!(won.len(), 1);
        written.extend(won);
    }
    for watch in &mut watches {
        assert_eq!(revisions(watch, written[19]).await, written);
    }
    // One of the two ends; the other doesn't notice.
    drop(one);
    let last = put(&two, "/k/last", 1).await.expect("etcd answers");
    assert_eq!(revisions(&mut watches[1], last).await, [last]);
}

/// Writes through a store while `trouble` happens; each acknowledged write must be there afterwards, and a watch sees every
/// change once and in order.
async fn withstands(store: Arc<Etcd>, check: Arc<Etcd>, trouble: impl Future<Output = ()>) {
    let start = check.revision().await.expect("readable");
    let mut stream = watch_all(&store, start).await;
    let (stop, stopped) = watch::channel(false);
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (store, stopped) = (store.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 0.. {
                    if *stopped.borrow() {
                        break;
                    }
                    if let Ok(revision) = put(&store, &format!("/k/{writer}/{n}"), n).await {
                        acknowledged.push((format!("/k/{writer}/{n}"), revision));
                    }
                }
                acknowledged
            })
        })
        .collect();
    trouble.await;
    // It goes on by itself.
    let alive = async { while put(&store, "/k/alive", 1).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(60), alive).await.expect("writes go on within a minute");
    stop.send(true).expect("somebody listens");
    let mut acknowledged = BTreeSet::new();
    for writer in writers {
        for (key, revision) in writer.await.expect("joined") {
            let (entry, _) = check.get(&key).await.expect("readable");
            assert_eq!(entry.map(|entry| entry.mod_revision), Some(revision), "{key} was acknowledged");
            acknowledged.insert(revision);
        }
    }
    let end = put(&check, "/k/end", 1).await.expect("writable");
    let seen = revisions(&mut stream, end).await;
    let mut expected = watch_all(&check, start).await;
    assert_eq!(seen, revisions(&mut expected, end).await, "nothing is skipped and nothing comes twice");
    assert!(acknowledged.is_subset(&seen.into_iter().collect()));
    assert!(acknowledged.len() > 10, "it was busy: {}", acknowledged.len());
}

/// Until so much has been written.
async fn progress(store: &Etcd, revisions: u64) {
    let start = store.revision().await.expect("readable").0;
    while store.revision().await.is_ok_and(|now| now.0 < start + revisions) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_etcd_that_comes_back_has_lost_no_acknowledged_write() {
    let Some(program) = program() else { return };
    let mut member = Member::start(program).await;
    let store = member.store().await;
    let check = store.clone();
    let trouble = async {
        for _ in 0..3 {
            progress(&store, 30).await;
            member.kill().await;
            member.start_again();
        }
        progress(&store, 30).await;
    };
    withstands(check.clone(), check, trouble).await;
}

/// A way to etcd that can be cut.
struct Proxy {
    address: SocketAddr,
    cut: watch::Sender<u32>,
}

impl Proxy {
    async fn start(to: SocketAddr) -> Proxy {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (cut, cuts) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut there) = tokio::net::TcpStream::connect(to).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Proxy { address, cut }
    }

    /// Ends every connection that there is.
    fn cut(&self) {
        self.cut.send_modify(|times| *times += 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_lose_nothing() {
    let Some(program) = program() else { return };
    let member = Member::start(program).await;
    let direct = member.store().await;
    let proxy = Proxy::start(member.address()).await;
    let store = open(proxy.address).await;
    let trouble = async {
        for _ in 0..10 {
            progress(&direct, 20).await;
            proxy.cut();
        }
        progress(&direct, 20).await;
    };
    withstands(store, direct.clone(), trouble).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_behind_what_another_store_forgot_is_told() {
    let Some(program) = program() else { return };
    let member = Member::start(program).await;
    let (one, two) = (member.store().await, member.store().await);
    let first = put(&one, "/k/a", 1).await.expect("writable");
    let mut newest = first;
    for n in 0..20 {
        newest = put(&one, "/k/a", n).await.expect("writable");
    }
    two.compact(newest).await.expect("compacted");
    // A third store knows nothing of it but what etcd says.
    let three = member.store().await;
    let mut late = watch_all(&three, first).await;
    let told = late.next().await.expect("an answer").expect_err("too late");
    assert_eq!(told, Error::Compacted { asked: first.0, oldest: newest.0 });
    let range = Range { revision: Some(first), ..Range::prefix("/k/") };
    assert_eq!(three.range(range).await, Err(Error::Compacted { asked: first.0, oldest: newest.0 }));
    assert_eq!(revisions(&mut watch_all(&three, newest).await, newest).await, []);
}

#[tokio::test]
async fn endpoints_that_cannot_be_are_refused_with_the_remedy() {
    for (url, remedy) in [("127.0.0.1:2379", "write http://HOST:PORT"), ("https://127.0.0.1:1", "authority")]
    {
        let error = Etcd::open(Options::new(vec![url.into()])).await.map(|_| ()).expect_err(url);
        assert!(matches!(&error, Error::Invalid(text) if text.contains(remedy)), "{error}");
    }
}
