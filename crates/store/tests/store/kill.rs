//! The process is killed at any moment, by SIGKILL: what it had reported as written is in the file.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use futures_util::StreamExt;
use portolan_store::embedded::{Embedded, Options};
use portolan_store::{Op, Revision, Store};

use crate::disk::Dice;
use crate::history::{ALL, Happened, Promised, happened, write};

const FILE: &str = "PORTOLAN_STORE_KILLED_FILE";
const ROUNDS: u64 = 30;

fn options() -> Options {
    Options { sweep_rows: 16, ..Options::default() }
}

/// One line per fact, in one write, so that a line is whole or absent.
fn report(line: String) {
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).expect("the parent listens");
}

/// `TOLD revision key=value key=value`
fn told(revision: Revision, happened: &Happened) -> String {
    let mut line = format!("TOLD {}", revision.0);
    for (key, value) in happened {
        let value = value.as_ref().map_or("-", |value| std::str::from_utf8(value).expect("text"));
        line.push_str(&format!(" {key}={value}"));
    }
    line + "\n"
}

fn parse(line: &str) -> Option<(Revision, Happened)> {
    let mut words = line.strip_prefix("TOLD ")?.split(' ');
    let revision = Revision(words.next()?.parse().ok()?);
    let happened = words
        .map(|word| {
            let (key, value) = word.split_once('=').expect("key=value");
            (key.into(), (value != "-").then(|| value.as_bytes().to_vec()))
        })
        .collect();
    Some((revision, happened))
}

/// The child: writes and watches until it is killed. Does nothing in the ordinary run.
#[test]
fn the_victim() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Embedded::open(path.as_ref(), options()).unwrap();
        let start = store.revision().await.unwrap();
        let mut watch = store.watch(ALL.0, ALL.1, start).await.unwrap();
        tokio::spawn(async move {
            while let Some(batch) = watch.next().await {
                let batch = batch.unwrap();
                if !batch.changes.is_empty() {
                    report(told(batch.revision, &happened(&batch.changes)));
                }
            }
        });
        for writer in 0..8 {
            let store: Arc<Embedded> = store.clone();
            tokio::spawn(async move {
                for n in 0u64.. {
                    let value = format!("{}.{writer}.{n}", std::process::id());
                    let keys = [format!("/k/{writer}"), format!("/shared/{}", n % 5)];
                    let mut what: Happened = keys
                        .iter()
                        .map(|key| (key.as_str().into(), Some(value.clone().into_bytes())))
                        .collect();
                    if n % 7 == 6 {
                        what.insert(keys[0].as_str().into(), None);
                    }
                    let ops = what
                        .iter()
                        .map(|(key, value)| match value {
                            Some(value) => Op::Put(key.clone(), value.clone().into()),
                            None => Op::Delete(key.clone()),
                        })
                        .collect();
                    let revision = write(&store, ops).await.unwrap();
                    report(told(revision, &what));
                    if writer == 0 && n % 20 == 19 {
                        let floor = revision.0.saturating_sub(100);
                        report(format!("FLOOR {floor}\n"));
                        store.compact(Revision(floor)).await.unwrap();
                    }
                }
            });
        }
        std::future::pending::<()>().await;
    });
}

#[test]
fn what_was_reported_survives_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut promised = Promised::default();
    let mut dice = Dice(u64::from(std::process::id()));
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["kill::the_victim", "--exact", "--nocapture", "--test-threads=1"])
            .env(FILE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let before = promised.newest();
        // So many lines, then the axe; the pipe still holds what was reported meanwhile. Some are killed while they open.
        let patience = if round % 5 == 4 { 0 } else { 1 + dice.below(400) };
        let mut lines = 0;
        let mut out = BufReader::new(child.stdout.take().unwrap());
        if patience == 0 {
            std::thread::sleep(std::time::Duration::from_micros(dice.below(20_000)));
            child.kill().unwrap();
        }
        let mut line = String::new();
        while out.read_line(&mut line).unwrap() > 0 {
            if line.ends_with('\n') {
                if let Some(floor) = line.strip_prefix("FLOOR ") {
                    promised.floor = promised.floor.max(floor.trim_end().parse().unwrap());
                }
                if let Some((revision, happened)) = parse(line.trim_end()) {
                    promised.told(revision, happened);
                    lines += 1;
                    if lines == patience {
                        child.kill().unwrap();
                    }
                }
            }
            line.clear();
        }
        let status = child.wait().unwrap();
        assert!(std::os::unix::process::ExitStatusExt::signal(&status) == Some(9), "{status}");
        if patience > 0 {
            assert!(promised.newest() > before, "it wrote something");
        }
        runtime.block_on(async {
            let store = Embedded::open(&path, options()).unwrap();
            promised.check(&store).await;
            store.close().await;
        });
    }
}
