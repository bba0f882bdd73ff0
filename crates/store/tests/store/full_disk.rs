//! The disk fails for a while: who was told of an error finds nothing changed, and later everything works again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use portolan_store::embedded::{Embedded, Options};
use portolan_store::{Error, Op, Range, Revision, Store, Txn};

use crate::disk::{Dice, Disk, Fault};
use crate::history::{ALL, Promised, asked, happened, write};

fn options() -> Options {
    Options { cache_bytes: 1 << 20, retry_after: Duration::from_millis(1), ..Options::default() }
}

/// Asks until the engine is open again.
async fn until_it_works<T, F: Future<Output = Result<T, Error>>>(ask: impl Fn() -> F) -> T {
    let works = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(Error::Engine(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), works).await.expect("a healed disk is used again")
}

fn puts(round: u64, dice: &mut Dice) -> Vec<Op> {
    let first = dice.below(20);
    (first..first + 1 + dice.below(3))
        .map(|key| {
            let value = vec![round as u8; 1 + dice.below(60_000) as usize];
            Op::Put(format!("/k/{key}").into(), value.into())
        })
        .collect()
}

/// Many at once, so that they share commits. Returns how many were told of an error.
async fn write_many(store: &Arc<Embedded>, promised: &mut Promised, round: u64, dice: &mut Dice) -> usize {
    let writes = (0..12).map(|_| {
        let ops = puts(round, dice);
        async move { (asked(&ops), write(store, ops).await) }
    });
    let mut errors = 0;
    for (asked, answer) in futures_util::future::join_all(writes).await {
        match answer {
            Ok(revision) => promised.told(revision, asked),
            Err(Error::Engine(_)) => errors += 1,
            Err(error) => panic!("{error}"),
        }
    }
    errors
}

async fn a_disk_that_fails_with(fault: Fault, seed: u64) {
    let mut dice = Dice(seed);
    let disk = Disk::new(dice.roll());
    let store = disk.open(options()).unwrap();
    let mut promised = Promised::default();
    let mut watch = store.watch(ALL.0, ALL.1, Revision(0)).await.unwrap();
    let mut errors = 0;
    for round in 0..12 {
        disk.fail_after(dice.below(60), fault);
        // Until somebody has met the fault.
        for _ in 0..50 {
            let failed = write_many(&store, &mut promised, round, &mut dice).await;
            errors += failed;
            if failed > 0 {
                break;
            }
        }
        // The revision is where the answers left it, whatever the disk has.
        assert_eq!(store.revision().await.unwrap().0, promised.newest());
        disk.heal();
        let range = || store.range(Range::prefix("/"));
        let seen = until_it_works(range).await;
        assert_eq!(seen.revision.0, promised.newest(), "nothing of a failed commit is seen");
        let ops = puts(round, &mut dice);
        let revision = until_it_works(|| write(&store, ops.clone())).await;
        assert_eq!(revision.0, promised.newest() + 1, "no revision is lost");
        promised.told(revision, asked(&ops));
        promised.check(&store).await;
    }
    assert!(errors > 0, "{fault:?} was never met");
    // Who watched all the time has seen what was acknowledged, and nothing else.
    let mut seen = BTreeMap::new();
    while seen.len() < promised.revisions.len() {
        let batch = watch.next().await.unwrap().unwrap();
        if !batch.changes.is_empty() {
            seen.insert(batch.revision.0, happened(&batch.changes));
        }
    }
    assert_eq!(seen, promised.revisions);
    store.close().await;
    let store = disk.open(options()).unwrap();
    promised.check(&store).await;
    assert_eq!(store.revision().await.unwrap().0, promised.newest());
}

async fn for_some_seeds(fault: Fault) {
    for seed in 0..6 {
        a_disk_that_fails_with(fault, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_that_was_answered() {
    for_some_seeds(Fault::Full).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_writes_lose_nothing_that_was_answered() {
    for_some_seeds(Fault::Writes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_failed_but_reached_the_disk_is_not_seen() {
    for_some_seeds(Fault::SyncsThatLand).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_failed_and_lost_writes_loses_nothing_that_was_answered() {
    for_some_seeds(Fault::SyncsThatLose).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_gone_for_a_while_loses_nothing_that_was_answered() {
    for_some_seeds(Fault::Everything).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_can_still_be_read() {
    let disk = Disk::new(7);
    let store = disk.open(options()).unwrap();
    write(&store, vec![Op::Put("/a".into(), "1".into())]).await.unwrap();
    disk.fail_after(0, Fault::Full);
    let large = Txn { compares: vec![], ops: vec![Op::Put("/b".into(), vec![0; 32 << 20].into())] };
    assert!(matches!(store.txn(large).await, Err(Error::Engine(_))));
    // The writer has opened the file again before it answered.
    assert_eq!(store.get("/a").await.unwrap().0.unwrap().value, "1");
    assert_eq!(store.get("/b").await.unwrap().0, None);
    // What fits is written.
    assert_eq!(write(&store, vec![Op::Put("/c".into(), "3".into())]).await, Ok(Revision(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_met_an_error_is_not_the_last_to_read() {
    let disk = Disk::new(8);
    // No cache: each read is one of the disk.
    let store = disk.open(Options { cache_bytes: 0, ..options() }).unwrap();
    write(&store, vec![Op::Put("/a".into(), "1".into())]).await.unwrap();
    disk.fail(Fault::Everything);
    assert!(matches!(store.get("/a").await, Err(Error::Engine(_))));
    disk.heal();
    // Nobody writes: the store heals by itself.
    assert_eq!(until_it_works(|| store.get("/a")).await.0.unwrap().value, "1");
}

const CONFINED: &str = "PORTOLAN_STORE_CONFINED_FILE";

/// The child of the next test. Does nothing in the ordinary run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_confined() {
    let Some(path) = std::env::var_os(CONFINED) else { return };
    let store = Embedded::open(path.as_ref(), options()).unwrap();
    let mut newest = Revision(0);
    let error = loop {
        let key: Arc<str> = format!("/k/{}", newest.0).into();
        match write(&store, vec![Op::Put(key, vec![1; 100_000].into())]).await {
            Ok(revision) => newest = revision,
            Err(error) => break error,
        }
        assert!(newest.0 < 1000, "100 MB fit where only 8 may");
    };
    assert!(matches!(error, Error::Engine(_)), "{error}");
    let (entry, revision) = store.get("/k/0").await.unwrap();
    assert_eq!((entry.unwrap().value.len(), revision), (100_000, newest));

    // Room is made by removing and forgetting.
    let last = newest.0;
    for n in 0..last {
        newest = until_it_works(|| write(&store, vec![Op::Delete(format!("/k/{n}").into())])).await;
    }
    until_it_works(|| store.compact(newest)).await;
    for n in 0..last / 2 {
        let key: Arc<str> = format!("/again/{n}").into();
        until_it_works(|| write(&store, vec![Op::Put(key.clone(), vec![2; 100_000].into())])).await;
    }
    store.close().await;
}

#[test]
fn a_file_that_may_not_grow_can_be_read_and_used_again() {
    let directory = tempfile::tempdir().unwrap();
    // The limit counts blocks of 512 bytes. Its signal would end the process; ignored, the call fails with EFBIG:
    // setrlimit(2).
    let child = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16384; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["full_disk::the_confined", "--exact", "--nocapture"])
        .env(CONFINED, directory.path().join("store"))
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}
