//! The floors: what the least possible server and the least possible commit cost on this machine.
//!
//! The floor server answers Put and Range with constant answers, from the same generated code that a tonic server has
//! to use. It is a process of its own, so that the same client code and the same accounts measure it.
//! The disk floor is a file that is written before the measurement; one write and one fdatasync per commit.

use std::io::{Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use e2d_api::etcdserverpb::kv_server::{Kv, KvServer};
use e2d_api::etcdserverpb::maintenance_server::{Maintenance, MaintenanceServer};
use e2d_api::etcdserverpb::{
    AlarmRequest, AlarmResponse, CompactionRequest, CompactionResponse, DefragmentRequest,
    DefragmentResponse, DeleteRangeRequest, DeleteRangeResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse, TxnRequest, TxnResponse,
};
use e2d_api::mvccpb::KeyValue;
use hdrhistogram::Histogram;
use serde::Serialize;
use tonic::{Request, Response, Status};

use crate::load::keys::VALUE_BYTES;
use crate::measure::quantile_ms;

/// The hidden subcommand that runs [`serve`].
pub(crate) const SUBCOMMAND: &str = "floor-server";

/// Answers Put, single-key Range and Status until the process is ended.
pub(crate) async fn serve(address: SocketAddr) -> Result<()> {
    let floor = Floor {
        value: Bytes::from(vec![b'v'; VALUE_BYTES]),
    };
    tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .add_service(KvServer::new(floor.clone()))
        .add_service(MaintenanceServer::new(floor))
        .serve(address)
        .await
        .with_context(|| format!("serving the floor on {address}"))
}

/// The address in the `--listen-client-urls http://IP:PORT` among etcd's flags.
pub(crate) fn address(flags: &[String]) -> Result<SocketAddr> {
    let mut after = flags
        .iter()
        .skip_while(|flag| *flag != "--listen-client-urls")
        .skip(1);
    let url = after
        .next()
        .ok_or_else(|| anyhow!("expected --listen-client-urls URL, found {flags:?}"))?;
    let address = url
        .strip_prefix("http://")
        .ok_or_else(|| anyhow!("expected http://IP:PORT, found {url:?}"))?;
    address
        .parse()
        .with_context(|| format!("expected http://IP:PORT, found {url:?}"))
}

#[derive(Debug, Clone)]
struct Floor {
    value: Bytes,
}

impl Floor {
    const HEADER: ResponseHeader = ResponseHeader {
        cluster_id: 1,
        member_id: 1,
        revision: 2,
        raft_term: 1,
    };

    fn refuse<T>(what: &str) -> Result<Response<T>, Status> {
        Err(Status::unimplemented(format!(
            "the floor server answers no {what}"
        )))
    }
}

#[tonic::async_trait]
impl Kv for Floor {
    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Ok(Response::new(PutResponse {
            header: Some(Self::HEADER),
            prev_kv: None,
        }))
    }

    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        if !request.range_end.is_empty() {
            return Self::refuse("Range of more than one key");
        }
        let value = self.value.clone();
        let kv = KeyValue {
            key: request.key,
            create_revision: 2,
            mod_revision: 2,
            version: 1,
            value,
            lease: 0,
        };
        Ok(Response::new(RangeResponse {
            header: Some(Self::HEADER),
            kvs: vec![kv],
            more: false,
            count: 1,
        }))
    }

    async fn delete_range(
        &self,
        _: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Self::refuse("DeleteRange")
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Self::refuse("Txn")
    }

    async fn compact(
        &self,
        _: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        Self::refuse("Compact")
    }
}

#[tonic::async_trait]
impl Maintenance for Floor {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse {
            header: Some(Self::HEADER),
            leader: 1,
            ..Default::default()
        }))
    }

    async fn alarm(&self, _: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        Self::refuse("Alarm")
    }

    async fn defragment(
        &self,
        _: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        Self::refuse("Defragment")
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Self::refuse("Hash")
    }

    async fn hash_kv(&self, _: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        Self::refuse("HashKV")
    }

    type SnapshotStream = tokio_stream::Empty<Result<SnapshotResponse, Status>>;

    async fn snapshot(
        &self,
        _: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Self::refuse("Snapshot")
    }

    async fn move_leader(
        &self,
        _: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        Self::refuse("MoveLeader")
    }

    async fn downgrade(
        &self,
        _: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        Self::refuse("Downgrade")
    }
}

/// What the disk does with one batch per flush.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Disk {
    /// Puts that one flush makes durable.
    pub(crate) batch_puts: usize,
    pub(crate) batch_bytes: usize,
    pub(crate) flushes_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// If every flush carried a whole batch.
    pub(crate) puts_per_second: f64,
}

/// The file is longer than what one measurement writes in most cases; if not, it starts again at the beginning.
const DISK_FILE_BYTES: u64 = 64 << 20;
/// What a log needs for a put besides key and value: framing, checksum, term, index.
const LOG_OVERHEAD_BYTES: usize = 64;

/// Writes batches of `batch_puts` puts to a prefilled file in `directory`, one fdatasync after each, for `time`.
pub(crate) fn disk(directory: &Path, batch_puts: usize, time: Duration) -> Result<Disk> {
    let path = directory.join("disk-floor");
    let measured = (|| {
        let mut file = std::fs::File::create(&path)?;
        let block = vec![0xa5u8; 1 << 20];
        for _ in 0..DISK_FILE_BYTES / block.len() as u64 {
            file.write_all(&block)?;
        }
        file.sync_all()?;
        file.seek(SeekFrom::Start(0))?;
        let batch = vec![0x5au8; batch_puts * (VALUE_BYTES + LOG_OVERHEAD_BYTES)];
        // Constants within the range that the type allows.
        let mut latencies =
            Histogram::<u64>::new_with_bounds(1, 60_000_000, 2).map_err(std::io::Error::other)?;
        let mut offset = 0;
        let began = Instant::now();
        while began.elapsed() < time {
            let flush_began = Instant::now();
            file.write_all_at(&batch, offset)?;
            file.sync_data()?;
            latencies.saturating_record((flush_began.elapsed().as_micros() as u64).max(1));
            offset += batch.len() as u64;
            if offset + batch.len() as u64 > DISK_FILE_BYTES {
                offset = 0;
            }
        }
        let flushes_per_second = latencies.len() as f64 / began.elapsed().as_secs_f64();
        Ok::<_, std::io::Error>(Disk {
            batch_puts,
            batch_bytes: batch.len(),
            flushes_per_second,
            p50_ms: quantile_ms(&latencies, 0.5),
            p99_ms: quantile_ms(&latencies, 0.99),
            puts_per_second: flushes_per_second * batch_puts as f64,
        })
    })();
    measured.with_context(|| format!("measuring the disk with {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_taken_from_the_client_url() {
        let found = |flags: &str| address(&flags.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let right = found("--name n --listen-client-urls http://127.0.0.1:2379 --data-dir d");
        assert_eq!(right.unwrap(), "127.0.0.1:2379".parse().unwrap());
        for url in [
            "",
            " 127.0.0.1:2379",
            " https://127.0.0.1:2379",
            " http://localhost",
        ] {
            assert!(
                found(&format!("--listen-client-urls{url}")).is_err(),
                "{url:?}"
            );
        }
    }

    #[test]
    fn the_disk_floor_writes_whole_batches() {
        let directory = tempfile::tempdir().unwrap();
        let disk = disk(directory.path(), 64, Duration::from_millis(20)).unwrap();
        assert_eq!(disk.batch_bytes, 64 * 320);
        assert!(disk.flushes_per_second > 0.0);
        assert!((disk.puts_per_second / disk.flushes_per_second - 64.0).abs() < 1e-9);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = disk(Path::new("/nonexistent"), 1, Duration::ZERO)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/disk-floor"), "{error}");
    }
}
