//! What a store of many keys costs: size, memory, start-up, and how long puts wait for a snapshot, a compaction or a
//! defragmentation.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use e2d_api::etcdserverpb::{
    CompactionRequest, DefragmentRequest, RangeRequest, SnapshotRequest, StatusRequest,
};
use hdrhistogram::Histogram;

use crate::connection::Connection;
use crate::load::keys::{Keys, Values};
use crate::load::{Cell, Load, PREFIX, fill, unary};
use crate::measure::{
    self, Attribution, Bound, Gate, MEASURED, Running, STOP, Tally, quantile_ms, worst_ms,
};
use crate::process::Memory;
use crate::report::Comparison;
use crate::server::{Server, Spec};

const MIB: f64 = 1_048_576.0;
/// Clients that fill a store; enough to make batches.
const FILLERS: usize = 512;
const FILLER_CONNECTIONS: usize = 32;

/// A measurement of stores.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    pub(crate) keys: usize,
    pub(crate) rounds: usize,
    /// Clients that put while something else goes on, and their connections.
    pub(crate) writers: usize,
    pub(crate) connections: usize,
    pub(crate) warm_up: Duration,
    /// How long puts are measured before something else goes on.
    pub(crate) before: Duration,
}

/// The servers with a data directory each, and what is put into them.
struct Stores<'a> {
    specs: &'a [Spec],
    data: &'a Path,
    options: Options,
    keys: Arc<Keys>,
    values: Values,
}

impl<'a> Stores<'a> {
    fn new(specs: &'a [Spec], data: &'a Path, options: Options) -> Self {
        Self {
            specs,
            data,
            options,
            keys: Arc::new(Keys::new(PREFIX, options.keys)),
            values: Values::new(),
        }
    }

    fn directory(&self, index: usize) -> PathBuf {
        self.data.join(format!("store-{index}"))
    }

    async fn start(&self, index: usize) -> Result<Server> {
        Server::start(&self.specs[index], &self.directory(index)).await
    }

    /// Puts every key once.
    async fn fill(&self, server: &mut Server) -> Result<()> {
        let filled = async {
            let connections = Connection::open_many(server.address(), FILLER_CONNECTIONS).await?;
            fill::one_by_one(&connections, FILLERS, &self.keys, &self.values).await
        };
        filled.await.map_err(|error| server.blame(error))
    }

    /// Clients that put existing keys until the gate stops, with `phases` measured phases.
    async fn writers(
        &self,
        server: &Server,
        gate: &Arc<Gate>,
        phases: usize,
    ) -> Result<Running<Tally>> {
        let connections = Connection::open_many(server.address(), self.options.connections).await?;
        let cell = Cell {
            load: Load::Put,
            clients: self.options.writers,
            connections: self.options.connections,
            writers: 0,
            number: 0,
            keys: &self.keys,
            values: &self.values,
        };
        let clients = unary::clients(&cell, &connections).await?;
        Ok(measure::clients(
            gate,
            phases,
            Attribution::Overlap,
            clients,
        ))
    }
}

/// Size on disk, memory and start-up time with many keys and with none.
pub(crate) async fn million(
    specs: &[Spec],
    data: &Path,
    options: Options,
    report: &mut Comparison,
) -> Result<()> {
    let stores = Stores::new(specs, data, options);
    for round in 0..options.rounds {
        for (index, spec) in specs.iter().enumerate() {
            eprintln!(
                "{}: start with an empty directory, round {}",
                spec.name,
                round + 1
            );
            let mut server = Server::spawn(spec, &data.join(format!("empty-{index}-{round}")))?;
            let started = server.first_range(&stores.keys.key(0)).await?;
            report.add(
                index,
                "empty: start to first Range, ms",
                started.as_secs_f64() * 1e3,
            );
            memory(report, index, "empty", server.process().memory()?);
            server.stop().await?;
        }
    }
    for (index, spec) in specs.iter().enumerate() {
        eprintln!("{}: putting {} keys", spec.name, options.keys);
        let mut server = stores.start(index).await?;
        let (before, began) = (server.process().usage()?, Instant::now());
        stores.fill(&mut server).await?;
        let (elapsed, charge) = (began.elapsed(), server.process().usage()?.since(&before));
        report.add(
            index,
            "filling: puts/s",
            options.keys as f64 / elapsed.as_secs_f64(),
        );
        report.add(
            index,
            "filling: CPU µs/put",
            charge.cpu.as_secs_f64() * 1e6 / options.keys as f64,
        );
        report.add(
            index,
            "filling: written B/put",
            charge.write_bytes as f64 / options.keys as f64,
        );
        memory(report, index, "filled", server.process().memory()?);
        let connection = Connection::open(server.address()).await?;
        let status = connection
            .maintenance()
            .status(StatusRequest {})
            .await
            .context("Status")?
            .into_inner();
        report.add(index, "filled: dbSize, MiB", status.db_size as f64 / MIB);
        server.stop().await?;
        report.add(
            index,
            "stopped: data directory on disk, MiB",
            allocated(&stores.directory(index))? as f64 / MIB,
        );
    }
    for round in 0..options.rounds {
        for (index, spec) in specs.iter().enumerate() {
            eprintln!(
                "{}: start with {} keys, round {}",
                spec.name,
                options.keys,
                round + 1
            );
            let mut server = Server::spawn(spec, &stores.directory(index))?;
            let started = server
                .first_range(&stores.keys.key(options.keys / 2))
                .await?;
            report.add(
                index,
                "filled: start to first Range, ms",
                started.as_secs_f64() * 1e3,
            );
            memory(report, index, "started again", server.process().memory()?);
            fill::check(&Connection::open(server.address()).await?, &stores.keys).await?;
            server.stop().await?;
        }
    }
    Ok(())
}

fn memory(report: &mut Comparison, index: usize, when: &str, memory: Memory) {
    report.add(
        index,
        &format!("{when}: anonymous memory, MiB"),
        memory.anonymous as f64 / MIB,
    );
    report.add(
        index,
        &format!("{when}: resident memory, MiB"),
        memory.resident as f64 / MIB,
    );
}

/// Bytes that the files below `directory` occupy, holes left out and preallocated blocks included.
fn allocated(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in
        std::fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?
    {
        let entry = entry.with_context(|| format!("listing {}", directory.display()))?;
        let metadata = entry
            .metadata()
            .with_context(|| format!("reading the size of {}", entry.path().display()))?;
        // st_blocks counts units of 512 bytes on every file system.
        sum += if metadata.is_dir() {
            allocated(&entry.path())?
        } else {
            metadata.blocks() * 512
        };
    }
    Ok(sum)
}

/// The time of a snapshot over the API while clients put, and what the puts notice.
pub(crate) async fn snapshot(
    specs: &[Spec],
    data: &Path,
    options: Options,
    report: &mut Comparison,
) -> Result<()> {
    let stores = Stores::new(specs, data, options);
    for (index, spec) in specs.iter().enumerate() {
        eprintln!("{}: putting {} keys", spec.name, options.keys);
        let mut server = stores.start(index).await?;
        stores.fill(&mut server).await?;
        server.stop().await?;
    }
    for round in 0..options.rounds {
        for (index, spec) in specs.iter().enumerate() {
            eprintln!("{}: snapshot, round {}", spec.name, round + 1);
            let mut server = stores.start(index).await?;
            let done = snapshot_once(&stores, &server, index, report).await;
            done.map_err(|error| server.blame(error))?;
            server.stop().await?;
        }
    }
    Ok(())
}

async fn snapshot_once(
    stores: &Stores<'_>,
    server: &Server,
    index: usize,
    report: &mut Comparison,
) -> Result<()> {
    const SNAPSHOT: usize = 2;
    let gate = Gate::new(Bound::Time(stores.options.before));
    let mut writers = stores.writers(server, &gate, 2).await?;
    let connection = Connection::open(server.address()).await?;
    let work = async {
        tokio::time::sleep(stores.options.warm_up).await;
        gate.enter(MEASURED);
        tokio::time::sleep(stores.options.before).await;
        let (before, began) = (server.process().usage()?, Instant::now());
        gate.enter(SNAPSHOT);
        let bytes = save(&connection).await?;
        gate.enter(STOP);
        Ok((
            bytes,
            began.elapsed(),
            server.process().usage()?.since(&before),
        ))
    };
    let (bytes, elapsed, charge) = writers.beside(work).await?;
    let latencies = measure::merge(writers.join().await?)?;
    report.add(index, "snapshot: s", elapsed.as_secs_f64());
    report.add(index, "snapshot: MiB", bytes as f64 / MIB);
    report.add(
        index,
        "snapshot: MiB/s",
        bytes as f64 / MIB / elapsed.as_secs_f64(),
    );
    report.add(index, "snapshot and puts: CPU s", charge.cpu.as_secs_f64());
    puts(
        report,
        index,
        "before",
        &latencies[0],
        stores.options.before,
    );
    puts(report, index, "during the snapshot", &latencies[1], elapsed);
    Ok(())
}

/// Reads a snapshot to its end and drops it; what a receiver's disk would add is not the server's cost.
async fn save(connection: &Connection) -> Result<u64> {
    let answer = connection
        .maintenance()
        .snapshot(SnapshotRequest {})
        .await
        .context("Snapshot")?;
    let mut stream = answer.into_inner();
    let (mut bytes, mut remaining) = (0, None);
    while let Some(part) = stream
        .message()
        .await
        .with_context(|| format!("Snapshot after {bytes} bytes"))?
    {
        bytes += part.blob.len() as u64;
        remaining = Some(part.remaining_bytes);
    }
    ensure!(
        remaining == Some(0),
        "the snapshot ended after {bytes} bytes with {remaining:?} remaining"
    );
    Ok(bytes)
}

fn puts(
    report: &mut Comparison,
    index: usize,
    when: &str,
    latencies: &Histogram<u64>,
    time: Duration,
) {
    report.add(
        index,
        &format!("puts {when}: puts/s"),
        latencies.len() as f64 / time.as_secs_f64(),
    );
    report.add(
        index,
        &format!("puts {when}: p50 ms"),
        quantile_ms(latencies, 0.5),
    );
    report.add(
        index,
        &format!("puts {when}: p99 ms"),
        quantile_ms(latencies, 0.99),
    );
    report.add(
        index,
        &format!("puts {when}: worst ms"),
        worst_ms(latencies),
    );
}

/// How long puts wait while the history of many overwritten keys is compacted, and then the file defragmented.
pub(crate) async fn stall(
    specs: &[Spec],
    data: &Path,
    options: Options,
    overwrites: usize,
    report: &mut Comparison,
) -> Result<()> {
    let stores = Stores::new(specs, data, options);
    for round in 0..options.rounds {
        for (index, spec) in specs.iter().enumerate() {
            eprintln!(
                "{}: putting {} keys {overwrites} times, round {}",
                spec.name,
                options.keys,
                round + 1
            );
            let mut server = stores.start(index).await?;
            for _ in 0..overwrites {
                stores.fill(&mut server).await?;
            }
            eprintln!(
                "{}: compacting and defragmenting, round {}",
                spec.name,
                round + 1
            );
            let done = stall_once(&stores, &server, index, report).await;
            done.map_err(|error| server.blame(error))?;
            server.stop().await?;
        }
    }
    Ok(())
}

async fn stall_once(
    stores: &Stores<'_>,
    server: &Server,
    index: usize,
    report: &mut Comparison,
) -> Result<()> {
    const COMPACTION: usize = 2;
    const DEFRAGMENTATION: usize = 3;
    let gate = Gate::new(Bound::Time(stores.options.before));
    let mut writers = stores.writers(server, &gate, 3).await?;
    let connection = Connection::open(server.address()).await?;
    let work = async {
        let revision = revision(&connection, &stores.keys).await?;
        tokio::time::sleep(stores.options.warm_up).await;
        gate.enter(MEASURED);
        tokio::time::sleep(stores.options.before).await;
        let began = Instant::now();
        gate.enter(COMPACTION);
        let compaction = CompactionRequest {
            revision,
            physical: true,
        };
        connection
            .kv()
            .compact(compaction)
            .await
            .with_context(|| format!("Compact at {revision}"))?;
        let compacting = began.elapsed();
        gate.enter(DEFRAGMENTATION);
        connection
            .maintenance()
            .defragment(DefragmentRequest {})
            .await
            .context("Defragment")?;
        let defragmenting = began.elapsed() - compacting;
        gate.enter(STOP);
        Ok((compacting, defragmenting))
    };
    let (compacting, defragmenting) = writers.beside(work).await?;
    let latencies = measure::merge(writers.join().await?)?;
    report.add(index, "physical compaction: s", compacting.as_secs_f64());
    report.add(index, "defragmentation: s", defragmenting.as_secs_f64());
    puts(
        report,
        index,
        "before",
        &latencies[0],
        stores.options.before,
    );
    puts(
        report,
        index,
        "during the compaction",
        &latencies[1],
        compacting,
    );
    puts(
        report,
        index,
        "during the defragmentation",
        &latencies[2],
        defragmenting,
    );
    fill::check(&connection, &stores.keys).await
}

/// The revision of the store.
async fn revision(connection: &Connection, keys: &Keys) -> Result<i64> {
    let request = RangeRequest {
        key: keys.key(0),
        limit: 1,
        ..Default::default()
    };
    let answer = connection
        .kv()
        .range(request)
        .await
        .context("asking for the revision")?
        .into_inner();
    Ok(answer
        .header
        .ok_or_else(|| anyhow!("Range was answered without a header"))?
        .revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocated_bytes_leave_out_holes_and_count_subdirectories() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("member")).unwrap();
        std::fs::write(directory.path().join("member/db"), vec![1; 100_000]).unwrap();
        let sparse = std::fs::File::create(directory.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        sparse.sync_all().unwrap();
        std::fs::File::open(directory.path().join("member/db"))
            .unwrap()
            .sync_all()
            .unwrap();
        let found = allocated(directory.path()).unwrap();
        assert!((100_000..1 << 20).contains(&found), "{found}");
        assert!(allocated(Path::new("/nonexistent")).is_err());
    }
}
