//! Filling a store before it is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use e2d_api::etcdserverpb::request_op::Request;
use e2d_api::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest};

use super::keys::{Keys, Random, Values};
use crate::connection::Connection;
use crate::measure::Running;

/// etcd refuses more than 128 operations in a transaction by default.
const PUTS_PER_TXN: usize = 100;

/// Puts all `keys`, a hundred per transaction, and checks that the store then counts them.
pub(crate) async fn in_batches(
    connection: &Connection,
    keys: &Keys,
    values: &Values,
) -> Result<()> {
    let mut random = Random::new(2);
    let mut kv = connection.kv();
    for first in (0..keys.len()).step_by(PUTS_PER_TXN) {
        let put = |index| {
            let put = PutRequest {
                key: keys.key(index),
                value: values.any(&mut random),
                ..Default::default()
            };
            RequestOp {
                request: Some(Request::RequestPut(put)),
            }
        };
        let success = (first..keys.len().min(first + PUTS_PER_TXN))
            .map(put)
            .collect();
        let txn = TxnRequest {
            success,
            ..Default::default()
        };
        kv.txn(txn)
            .await
            .with_context(|| format!("filling the store from key {first}"))?;
    }
    check(connection, keys).await
}

/// Puts all `keys`, one per request, by `clients` clients.
///
/// A server that keeps recent requests in memory then keeps as many as its users would see, not a hundred times as
/// many bytes.
pub(crate) async fn one_by_one(
    connections: &[Connection],
    clients: usize,
    keys: &Arc<Keys>,
    values: &Values,
) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let tasks = connections
        .iter()
        .cycle()
        .take(clients)
        .enumerate()
        .map(|(client, connection)| {
            let (keys, values, next, mut kv) = (
                Arc::clone(keys),
                values.clone(),
                Arc::clone(&next),
                connection.kv(),
            );
            async move {
                let mut random = Random::new(client as u64);
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= keys.len() {
                        return Ok(());
                    }
                    let put = PutRequest {
                        key: keys.key(index),
                        value: values.any(&mut random),
                        ..Default::default()
                    };
                    kv.put(put)
                        .await
                        .with_context(|| format!("filling the store with key {index}"))?;
                }
            }
        });
    Running::start(tasks).join().await?;
    check(&connections[0], keys).await
}

/// Whether the store counts exactly `keys` below their prefix.
pub(crate) async fn check(connection: &Connection, keys: &Keys) -> Result<()> {
    let request = RangeRequest {
        key: keys.prefix(),
        range_end: keys.end(),
        count_only: true,
        ..Default::default()
    };
    let count = connection
        .kv()
        .range(request)
        .await
        .context("counting the keys of the store")?
        .into_inner()
        .count;
    ensure!(
        count == keys.len() as i64,
        "the store counts {count} keys, expected {}",
        keys.len()
    );
    Ok(())
}
