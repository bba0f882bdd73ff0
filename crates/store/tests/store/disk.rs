//! A disk in memory that fails on command: it forgets what was not synced, fills up, or fails to sync.

use std::io;
use std::sync::{Arc, Mutex};

use portolan_store::embedded::{Embedded, Options};
use redb::StorageBackend;

/// Numbers that look random and come again with the seed (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How the disk fails, once its patience is at an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No power: nothing works, and what was not synced is a matter of chance.
    PowerLoss,
    /// `ENOSPC` for what grows the file, the rest works.
    Full,
    /// Writes fail, reads work.
    Writes,
    /// Syncs fail, though all has reached the disk.
    SyncsThatLand,
    /// Syncs fail, and only some of what was written has reached the disk (what Linux may do after an error).
    SyncsThatLose,
    /// Nothing works; no power is lost.
    Everything,
}

enum Pending {
    Len(u64),
    Bytes(u64, Vec<u8>),
}

struct State {
    /// What readers see.
    now: Vec<u8>,
    /// What a sync has confirmed.
    durable: Vec<u8>,
    /// What happened since, in order.
    pending: Vec<Pending>,
    /// After so many further writes the fault begins.
    patience: Option<(u64, Fault)>,
    fault: Option<Fault>,
    dice: Dice,
    /// Counts the times the machine was started; a backend of an earlier time is dead.
    boot: u64,
}

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<State>>);

const SECTOR: usize = 512;

impl State {
    fn apply(image: &mut Vec<u8>, pending: &Pending) {
        match pending {
            Pending::Len(len) => image.resize(*len as usize, 0),
            Pending::Bytes(at, bytes) => {
                let at = (*at as usize).min(image.len());
                let fits = bytes.len().min(image.len() - at);
                image[at..at + fits].copy_from_slice(&bytes[..fits]);
            }
        }
    }

    /// Forgets some of what was not synced: all, none, or any subset of it, down to single sectors.
    fn forget(&mut self) {
        let mut image = self.durable.clone();
        let kept_in_8 = self.dice.below(9);
        let tears = self.dice.one_in(2);
        for pending in std::mem::take(&mut self.pending) {
            match &pending {
                Pending::Bytes(at, bytes) if tears => {
                    for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                        if self.dice.below(8) < kept_in_8 {
                            let at = at + (n * SECTOR) as u64;
                            State::apply(&mut image, &Pending::Bytes(at, sector.to_vec()));
                        }
                    }
                }
                _ => {
                    if self.dice.below(8) < kept_in_8 {
                        State::apply(&mut image, &pending);
                    }
                }
            }
        }
        self.now = image.clone();
        self.durable = image;
    }

    fn check(&mut self, boot: u64, operation: Operation) -> io::Result<()> {
        if boot != self.boot {
            return Err(io::Error::other("the machine was switched off"));
        }
        if operation != Operation::Read
            && let Some((left, fault)) = &mut self.patience
        {
            if *left == 0 {
                self.fault = Some(*fault);
                self.patience = None;
            } else {
                *left -= 1;
            }
        }
        let fails = match self.fault {
            None => false,
            Some(Fault::PowerLoss | Fault::Everything) => true,
            Some(Fault::Full) => operation == Operation::Grow,
            Some(Fault::Writes) => operation != Operation::Read,
            Some(Fault::SyncsThatLand) => operation == Operation::Sync,
            Some(Fault::SyncsThatLose) => {
                if operation == Operation::Sync {
                    self.forget();
                }
                operation == Operation::Sync
            }
        };
        match (fails, self.fault) {
            (true, Some(Fault::Full)) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            (true, fault) => Err(io::Error::other(format!("{fault:?}"))),
            (false, _) => Ok(()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Grow,
    Sync,
}

impl Disk {
    pub fn new(seed: u64) -> Disk {
        Disk(Arc::new(Mutex::new(State {
            now: Vec::new(),
            durable: Vec::new(),
            pending: Vec::new(),
            patience: None,
            fault: None,
            dice: Dice(seed),
            boot: 0,
        })))
    }

    /// Opens a store on this disk.
    pub fn open(&self, options: Options) -> portolan_store::Result<Arc<Embedded>> {
        let disk = self.clone();
        let boot = self.0.lock().unwrap().boot;
        Embedded::open_backend(move || Ok(Attached { disk: disk.clone(), boot }), options)
    }

    /// After `writes` more writes the disk fails.
    pub fn fail_after(&self, writes: u64, fault: Fault) {
        self.0.lock().unwrap().patience = Some((writes, fault));
    }

    /// The disk fails at once.
    pub fn fail(&self, fault: Fault) {
        self.0.lock().unwrap().fault = Some(fault);
    }

    /// The disk works again.
    pub fn heal(&self) {
        let mut state = self.0.lock().unwrap();
        state.patience = None;
        state.fault = None;
    }

    /// Cuts the power, unless that has happened, and switches the machine on again. Stores opened before are dead.
    pub fn power_cycle(&self) {
        let mut state = self.0.lock().unwrap();
        state.forget();
        state.boot += 1;
        state.patience = None;
        state.fault = None;
    }
}

struct Attached {
    disk: Disk,
    boot: u64,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Attached")
    }
}

impl StorageBackend for Attached {
    fn len(&self) -> io::Result<u64> {
        let mut state = self.disk.0.lock().unwrap();
        state.check(self.boot, Operation::Read)?;
        Ok(state.now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        state.check(self.boot, Operation::Read)?;
        let offset = offset as usize;
        let bytes = state.now.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        let grows = len > state.now.len() as u64;
        state.check(self.boot, if grows { Operation::Grow } else { Operation::Write })?;
        state.now.resize(len as usize, 0);
        state.pending.push(Pending::Len(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        state.check(self.boot, Operation::Sync)?;
        let State { durable, pending, .. } = &mut *state;
        for pending in pending.drain(..) {
            State::apply(durable, &pending);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        state.check(self.boot, Operation::Write)?;
        let pending = Pending::Bytes(offset, data.to_vec());
        State::apply(&mut state.now, &pending);
        state.pending.push(pending);
        Ok(())
    }
}
