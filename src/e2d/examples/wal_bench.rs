//! What the raft log costs on the disk of this machine: `cargo run --release --example wal_bench -- DIR`.
//!
//! Variants run in turns within one round, so that a busy moment of the machine meets all of them. Figures for the
//! choice are in `docs/decisions/0001-wal.md`.

#![allow(clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2d::disk::{Disk, DiskFile, RealDisk};
use e2d::wal::{Batch, Identity, Options, SnapshotMark, Wal};
use raft::eraftpb::Entry;

const ME: Identity = Identity {
    cluster_id: 1,
    node_id: 1,
};
const ENTRY_BYTES: usize = 256;
const ROUNDS: usize = 3;
const TURN: Duration = Duration::from_millis(600);

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).context("usage: wal_bench DIR")?;
    let dir = Path::new(&dir).join("wal-bench");
    std::fs::create_dir_all(&dir)?;
    let done = appends(&dir)
        .and_then(|()| cpu(&dir))
        .and_then(|()| reading(&dir));
    std::fs::remove_dir_all(&dir)?;
    done
}

/// A log that gives up what it can after every append, so that segments are recycled from the second on.
struct Writer {
    wal: Wal,
    entries: Vec<Entry>,
    next: u64,
}

impl Writer {
    fn new(disk: Arc<dyn Disk>, dir: &Path, options: Options, batch: usize) -> Result<Writer> {
        let entry = Entry {
            term: 1,
            data: vec![7; ENTRY_BYTES].into(),
            ..Entry::default()
        };
        Ok(Writer {
            wal: Wal::create(disk, dir, ME, options)?,
            entries: vec![entry; batch],
            next: 1,
        })
    }

    fn append(&mut self) -> Result<()> {
        for entry in &mut self.entries {
            entry.index = self.next;
            self.next += 1;
        }
        self.wal.append(&Batch {
            entries: &self.entries,
            ..Batch::default()
        })?;
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        let mark = SnapshotMark {
            index: self.next - 1,
            term: 1,
            ..SnapshotMark::default()
        };
        self.wal.append(&Batch {
            snapshot: Some(&mark),
            ..Batch::default()
        })?;
        self.wal.release(mark.index)?;
        Ok(())
    }
}

fn appends(dir: &Path) -> Result<()> {
    let options = Options::default();
    let variants = [
        ("first use, 4 KiB, nothing ahead", 4096, 0, false),
        ("first use, 4 KiB, 256 KiB ahead", 4096, 256 << 10, false),
        ("first use, 4 KiB, 1 MiB ahead", 4096, 1 << 20, false),
        ("first use, 512 B, 256 KiB ahead", 512, 256 << 10, false),
        ("recycled, 4 KiB", 4096, 0, true),
        ("recycled, 512 B", 512, 0, true),
    ];
    for batch in [1, 16, 64, 512] {
        let mut latencies = vec![Vec::new(); variants.len()];
        for round in 0..ROUNDS {
            for (i, (_, block_bytes, zero_ahead_bytes, recycled)) in variants.iter().enumerate() {
                let options = Options {
                    block_bytes: *block_bytes,
                    zero_ahead_bytes: *zero_ahead_bytes,
                    ..options.clone()
                };
                let dir = dir.join(format!("{batch}-{round}-{i}"));
                let mut writer = Writer::new(Arc::new(RealDisk), &dir, options, batch)?;
                if *recycled {
                    // Through two segments in large batches, and into the third, which is the first one again.
                    let mut large = writer.entries.clone();
                    large.resize(8192, writer.entries[0].clone());
                    std::mem::swap(&mut writer.entries, &mut large);
                    for _ in 0..60 {
                        writer.append()?;
                        writer.release()?;
                    }
                    writer.entries = large;
                }
                let start = Instant::now();
                while start.elapsed() < TURN {
                    let at = Instant::now();
                    writer.append()?;
                    latencies[i].push(at.elapsed());
                }
                drop(writer);
                std::fs::remove_dir_all(&dir)?;
            }
        }
        for ((name, ..), latencies) in variants.iter().zip(&mut latencies) {
            latencies.sort_unstable();
            let p = |percent: usize| latencies[latencies.len() * percent / 100].as_micros();
            let mean = latencies.iter().sum::<Duration>() / latencies.len() as u32;
            let rate = batch as f64 / mean.as_secs_f64();
            println!(
                "batch {batch:3}  {name:32}  p50 {:5} us  p99 {:6} us  {rate:8.0} entries/s",
                p(50),
                p(99)
            );
        }
    }
    Ok(())
}

/// A file that takes everything and keeps nothing.
#[derive(Debug)]
struct Hole(u64);

impl DiskFile for Hole {
    fn pread(&self, _: &mut [u8], _: u64) -> std::io::Result<usize> {
        Ok(0)
    }
    fn pwrite(&self, buf: &[u8], _: u64) -> std::io::Result<usize> {
        Ok(buf.len())
    }
    fn fdatasync(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn fallocate(&self, _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn size(&self) -> std::io::Result<u64> {
        Ok(self.0)
    }
    fn forget_cached(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Holes;

impl Disk for Holes {
    fn create_dir(&self, _: &Path) -> std::io::Result<()> {
        Ok(())
    }
    fn list(&self, _: &Path) -> std::io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn create(&self, _: &Path) -> std::io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(Hole(64 << 20)))
    }
    fn open(&self, _: &Path) -> std::io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(Hole(64 << 20)))
    }
    fn rename(&self, _: &Path, _: &Path) -> std::io::Result<()> {
        Ok(())
    }
    fn unlink(&self, _: &Path) -> std::io::Result<()> {
        Ok(())
    }
    fn fsync_dir(&self, _: &Path) -> std::io::Result<()> {
        Ok(())
    }
}

/// Our own part: a disk that costs nothing.
fn cpu(dir: &Path) -> Result<()> {
    for batch in [1, 16, 64, 512] {
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let options = Options {
                zero_ahead_bytes: 0,
                ..Options::default()
            };
            let mut writer = Writer::new(Arc::new(Holes), dir, options, batch)?;
            let start = Instant::now();
            for i in 0..200_000 / batch {
                writer.append()?;
                if i % 1000 == 999 {
                    writer.release()?;
                }
            }
            best = best.min(start.elapsed().as_secs_f64() / writer.next as f64);
        }
        println!(
            "batch {batch:3}  without a disk: {:.0} ns an entry",
            best * 1e9
        );
    }
    Ok(())
}

fn reading(dir: &Path) -> Result<()> {
    let dir = dir.join("reading");
    let mut writer = Writer::new(Arc::new(RealDisk), &dir, Options::default(), 64)?;
    for _ in 0..10_000 {
        writer.append()?;
    }
    let last = writer.next - 1;
    drop(writer);
    let options = Options {
        recover_bytes: 0,
        ..Options::default()
    };
    let start = Instant::now();
    let (wal, _) = Wal::open(Arc::new(RealDisk), &dir, ME, options)?;
    println!("opening {last} entries: {} ms", start.elapsed().as_millis());
    let reader = wal.reader();
    let start = Instant::now();
    let mut next = 1;
    while next <= last {
        next += reader.entries(next, last + 1, 1 << 20)?.len() as u64;
    }
    let each = start.elapsed().as_nanos() / u128::from(last);
    println!("reading them, 1 MiB at a time: {each} ns an entry");
    let start = Instant::now();
    for i in 0..10_000 {
        reader.entries(i * 50 + 1, i * 50 + 2, 0)?;
    }
    println!("reading one: {} ns", start.elapsed().as_nanos() / 10_000);
    Ok(())
}
