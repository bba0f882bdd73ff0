//! Power is lost at any moment: what was answered and what was watched is there afterwards, and stays true.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use portolan_store::embedded::{Embedded, Options};
use portolan_store::{Error, Op, Revision, Store};

use crate::disk::{Dice, Disk, Fault};
use crate::history::{ALL, Promised, asked, happened, write};

/// The number of seeds in the ordinary run; `PORTOLAN_STORE_SEEDS=1000..2000` runs others.
const SEEDS: std::ops::Range<u64> = 0..100;

fn seeds() -> std::ops::Range<u64> {
    let Ok(asked) = std::env::var("PORTOLAN_STORE_SEEDS") else { return SEEDS };
    let (start, end) = asked.split_once("..").expect("PORTOLAN_STORE_SEEDS=from..to");
    start.parse().expect("a number")..end.parse().expect("a number")
}

fn options() -> Options {
    Options {
        cache_bytes: 1 << 20,
        watch_buffer: 8,
        group: 4,
        sweep_rows: 8,
        retry_after: Duration::from_millis(1),
        ..Options::default()
    }
}

/// Writes until the disk fails; notes what it was told.
async fn writer(store: Arc<Embedded>, promised: Arc<Mutex<Promised>>, mut dice: Dice, name: String) {
    for n in 0.. {
        let keys = 1 + dice.below(3);
        let first = dice.below(10);
        let ops: Vec<Op> = (first..first + keys)
            .map(|key| {
                let size = if dice.one_in(20) { 20_000 } else { dice.below(600) };
                let mut value = format!("{name} {n} {key} ").into_bytes();
                value.resize(value.len() + size as usize, b'x');
                Op::Put(format!("/k/{key}").into(), value.into())
            })
            .collect();
        let happened = asked(&ops);
        match write(&store, ops).await {
            Ok(revision) => promised.lock().unwrap().told(revision, happened),
            Err(Error::Engine(_)) => return,
            Err(error) => panic!("{error}"),
        }
        if dice.one_in(30) {
            let floor = promised.lock().unwrap().newest().saturating_sub(dice.below(20));
            // Before the call: it may happen and not be answered.
            {
                let mut promised = promised.lock().unwrap();
                promised.floor = promised.floor.max(floor);
            }
            match store.compact(Revision(floor)).await {
                Ok(()) => {}
                Err(Error::Engine(_)) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Watches until the disk fails; notes what it was told.
async fn watcher(store: Arc<Embedded>, promised: Arc<Mutex<Promised>>) {
    let Ok(after) = store.revision().await else { return };
    let Ok(mut watch) = store.watch(ALL.0, ALL.1, after).await else { return };
    while let Some(Ok(batch)) = watch.next().await {
        if !batch.changes.is_empty() {
            promised.lock().unwrap().told(batch.revision, happened(&batch.changes));
        }
    }
}

async fn lose_power_again_and_again(seed: u64) {
    let mut dice = Dice(seed);
    let disk = Disk::new(dice.roll());
    let promised = Arc::new(Mutex::new(Promised::default()));
    for round in 0..4 {
        // Rarely early, so that losing power while the file is made or repaired happens too.
        let patience = if dice.one_in(4) { dice.below(30) } else { dice.below(1500) };
        disk.fail_after(patience, Fault::PowerLoss);
        // The disk may fail already here.
        if let Ok(store) = disk.open(options()) {
            let told = promised.lock().unwrap().newest();
            assert!(store.revision().await.unwrap().0 >= told);
            let watching = [0, 1].map(|_| tokio::spawn(watcher(store.clone(), promised.clone())));
            let writing: Vec<_> = (0..4)
                .map(|n| {
                    let dice = Dice(dice.roll());
                    tokio::spawn(writer(store.clone(), promised.clone(), dice, format!("{round}.{n}")))
                })
                .collect();
            for writer in writing {
                writer.await.unwrap();
            }
            for watcher in watching {
                watcher.abort();
                let _ = watcher.await;
            }
        }
        disk.power_cycle();
        let store = disk.open(options()).expect("the disk works again");
        let promised = promised.lock().unwrap().clone();
        promised.check(&store).await;
        if dice.one_in(2) {
            // Or else it is killed in the state that repair left.
            store.close().await;
        }
        disk.power_cycle();
    }
}

#[test]
fn what_was_answered_or_watched_survives_a_loss_of_power() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for seed in seeds() {
        let run = runtime.spawn(lose_power_again_and_again(seed));
        if let Err(error) = runtime.block_on(run) {
            panic!("PORTOLAN_STORE_SEEDS={seed}..{}: {error}", seed + 1);
        }
    }
}
