//! The power goes, at any moment, and comes back, any number of times.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::disk::{Disk, DiskFile};

/// Works until the power goes, and returns the log as it was acknowledged, and as it would be with what was under way.
fn work(rng: &mut Rng, mut wal: Wal, model: &mut Model, ops: u64) -> Option<Model> {
    for _ in 0..ops {
        let op = Op::random(rng);
        let outcome = op.outcome(model);
        match op.perform(&mut wal, model) {
            Ok(()) => {}
            Err(WalError::Io { .. }) => {
                assert!(matches!(wal.seal(), Err(WalError::Poisoned { .. })));
                return Some(outcome);
            }
            Err(e) => panic!("{e}"),
        }
    }
    None
}

/// The log that is opened is one of these two; the model becomes it.
fn check(wal: &Wal, recovered: &Recovered, model: &mut Model, under_way: Option<Model>) {
    if let Some(under_way) = under_way
        && !model.is(wal, recovered)
    {
        *model = under_way;
    }
    model.assert_recovered(wal, recovered);
    // What was learned again may be less than what was acknowledged only in the commit index, which may be late.
    model.hard_state = recovered.hard_state;
}

/// A life with several power cuts. `wrap` stands between the log and the disk.
fn live(seed: u64, wrap: impl Fn(PowerCutDisk) -> Arc<dyn Disk>) {
    let mut rng = Rng::new(seed);
    let mut disk = PowerCutDisk::new();
    let mut model = Model::default();
    let mut under_way = None;
    let mut made = false;
    for _ in 0..4 {
        // Most cuts come while there is work; some while the log is opened or made.
        let changes = if rng.one_in(4) { 8 } else { 60 };
        disk.cut_at(disk.changes() + rng.below(changes));
        let wal = if made || Wal::exists(&disk, dir()).unwrap() {
            match Wal::open(wrap(disk.clone()), dir(), ME, small()) {
                Ok((wal, recovered)) => {
                    check(&wal, &recovered, &mut model, under_way.take());
                    Some(wal)
                }
                Err(WalError::Io { .. }) => None,
                Err(e) => panic!("{e}"),
            }
        } else {
            match Wal::create_salted(wrap(disk.clone()), dir(), ME, small(), seed) {
                Ok(wal) => Some(wal),
                Err(WalError::Io { .. }) => None,
                Err(e) => panic!("{e}"),
            }
        };
        if let Some(wal) = wal {
            made = true;
            under_way = work(&mut rng, wal, &mut model, 40);
        }
        disk = if rng.one_in(4) { disk.after_kill() } else { disk.after_cut(rng.next_u64()) };
    }
    if made {
        let (wal, recovered) = Wal::open(wrap(disk), dir(), ME, small()).unwrap();
        check(&wal, &recovered, &mut model, under_way);
    }
}

#[test]
fn nothing_acknowledged_is_lost_over_power_cuts() {
    for seed in 0..3000 {
        let lived = std::panic::catch_unwind(|| live(seed, |disk| Arc::new(disk)));
        assert!(lived.is_ok(), "seed {seed}");
    }
}

#[test]
fn a_cut_within_every_single_call_leaves_a_whole_log() {
    // One piece of work that makes, fills, releases and recycles segments.
    let whole = PowerCutDisk::new();
    let run = |disk: &PowerCutDisk| {
        let mut rng = Rng::new(5);
        let mut model = Model::default();
        let wal = Wal::create_salted(Arc::new(disk.clone()), dir(), ME, small(), 7).ok()?;
        let under_way = work(&mut rng, wal, &mut model, 120);
        Some((model, under_way))
    };
    run(&whole).unwrap();
    assert!(whole.changes() > 200, "{}", whole.changes());
    for at in 0..whole.changes() {
        let disk = PowerCutDisk::new();
        disk.cut_at(at);
        let ran = run(&disk);
        for seed in 0..8 {
            let after = disk.after_cut(seed);
            match &ran {
                Some((model, under_way)) => {
                    let (wal, recovered) = open(&after).unwrap();
                    check(&wal, &recovered, &mut model.clone(), under_way.clone());
                }
                // It was never made, or just so: then it is empty.
                None => {
                    if Wal::exists(&after, dir()).unwrap() {
                        let (wal, recovered) = open(&after).unwrap();
                        check(&wal, &recovered, &mut Model::default(), None);
                    } else {
                        drop(create(&after));
                    }
                }
            }
        }
    }
}

/// Forgets every n-th sync.
#[derive(Debug)]
struct Forgetful {
    disk: PowerCutDisk,
    syncs: Arc<AtomicU64>,
    every: u64,
    names: bool,
}

#[derive(Debug)]
struct ForgetfulFile {
    file: Box<dyn DiskFile>,
    syncs: Arc<AtomicU64>,
    every: u64,
}

fn forget(syncs: &AtomicU64, every: u64) -> bool {
    syncs.fetch_add(1, Ordering::Relaxed) % every == every - 1
}

impl Forgetful {
    fn wrap(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        if self.names {
            return file;
        }
        Box::new(ForgetfulFile { file, syncs: Arc::clone(&self.syncs), every: self.every })
    }
}

impl Disk for Forgetful {
    fn create_dir(&self, dir: &Path) -> std::io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn list(&self, dir: &Path) -> std::io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create(&self, path: &Path) -> std::io::Result<Box<dyn DiskFile>> {
        Ok(self.wrap(self.disk.create(path)?))
    }
    fn open(&self, path: &Path) -> std::io::Result<Box<dyn DiskFile>> {
        Ok(self.wrap(self.disk.open(path)?))
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.disk.rename(from, to)
    }
    fn unlink(&self, path: &Path) -> std::io::Result<()> {
        self.disk.unlink(path)
    }
    fn fsync_dir(&self, dir: &Path) -> std::io::Result<()> {
        if self.names && forget(&self.syncs, self.every) {
            return Ok(());
        }
        self.disk.fsync_dir(dir)
    }
}

impl DiskFile for ForgetfulFile {
    fn pread(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
        self.file.pread(buf, offset)
    }
    fn pwrite(&self, buf: &[u8], offset: u64) -> std::io::Result<usize> {
        self.file.pwrite(buf, offset)
    }
    fn fdatasync(&self) -> std::io::Result<()> {
        if forget(&self.syncs, self.every) {
            return Ok(());
        }
        self.file.fdatasync()
    }
    fn fallocate(&self, len: u64) -> std::io::Result<()> {
        self.file.fallocate(len)
    }
    fn size(&self) -> std::io::Result<u64> {
        self.file.size()
    }
    fn forget_cached(&self) -> std::io::Result<()> {
        self.file.forget_cached()
    }
}

#[test]
fn these_tests_notice_a_sync_that_was_left_out() {
    for names in [false, true] {
        let caught = (0..400).find(|seed| {
            let life = AssertUnwindSafe(|| {
                live(*seed, |disk| {
                    Arc::new(Forgetful { disk, syncs: Arc::new(AtomicU64::new(*seed)), every: 5, names })
                });
            });
            std::panic::catch_unwind(life).is_err()
        });
        assert!(caught.is_some(), "names: {names}");
    }
}

#[test]
fn records_of_a_frame_that_was_lost_do_not_complete_the_one_written_in_its_place() {
    let block = 512;
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    append(&mut wal, &entries(1..2, 1, 10));
    let path = wal.last.path.clone();
    let offset = wal.offset as usize;
    let before = disk.contents(&path);

    // Two entries fill a frame of two blocks and more; of the first attempt only the end reaches the disk.
    append(&mut wal, &entries(2..4, 2, 600));
    let first = disk.contents(&path);
    let mut left = before.clone();
    left[offset + block..].copy_from_slice(&first[offset + block..]);
    let disk = PowerCutDisk::new();
    disk.create_dir(dir()).unwrap();
    disk.set_contents(&path, left.clone());

    // Of the second attempt only the beginning does. Nothing was erased in between: a kernel may have kept the zeros.
    let mut wal = open(&disk).unwrap().0;
    append(&mut wal, &entries(2..4, 3, 600));
    let second = disk.contents(&path);
    for torn_at in (block..4 * block).step_by(block) {
        let mut mixed = left.clone();
        mixed[offset..offset + torn_at].copy_from_slice(&second[offset..offset + torn_at]);
        let disk = PowerCutDisk::new();
        disk.create_dir(dir()).unwrap();
        disk.set_contents(&path, mixed);
        let (_, recovered) = open(&disk).unwrap();
        let whole = offset + torn_at >= offset + 3 * block;
        assert_eq!(
            recovered.entries.len(),
            if whole { 3 } else { 1 },
            "torn at {torn_at}"
        );
        assert!(recovered.entries.iter().all(|e| e.term != 2));
    }
}

#[test]
fn what_a_killed_process_wrote_is_made_durable_before_it_is_believed() {
    let disk = PowerCutDisk::new();
    let mut wal = create(&disk);
    append(&mut wal, &entries(1..2, 1, 10));
    // The process dies between its write and its sync.
    disk.cut_at(disk.changes() + 1);
    let batch = entries(2..3, 1, 10);
    let written = wal.append(&Batch { entries: &batch, ..Batch::default() });
    assert!(written.is_err());
    let disk = disk.after_kill();
    let (wal, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.entries.len(), 2);
    drop(wal);
    for seed in 0..50 {
        assert_eq!(open(&disk.after_cut(seed)).unwrap().1.entries.len(), 2);
    }
}
