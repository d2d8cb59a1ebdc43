//! The KV service.

use super::{Api, convert, generated, status, wire};
use crate::store::Snapshot;
use bytes::Bytes;
use e2d_api::errors;
use e2d_api::etcdserverpb as pb;
use e2d_core::ids::Revision;
use e2d_core::mvcc::machine::read_only_txn;
use e2d_core::mvcc::range::KeyRange;
use e2d_core::mvcc::request::{OrderBy, RangeQuery, Rejected, Request as Change, Response as Changed};
use e2d_core::mvcc::view::{Published, StoreError, View};
use std::ops::ControlFlow;
use tonic::{Request, Response, Status};

/// A walk is cut into pieces of so many keys or bytes, so that none holds a transaction or a worker for long.
const PIECE_KEYS: u64 = 4096;
const PIECE_BYTES: usize = 2 << 20;

/// What an event costs in the store beside key and value.
const RECORD_OVERHEAD: usize = 64;

#[tonic::async_trait]
impl generated::kv_server::Kv for Api {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Result<Response<wire::RangeResponse>, Status> {
        let request = request.into_inner();
        let serializable = request.serializable;
        let query = convert::plain_range(request)?;
        if !serializable {
            self.consensus.linearize().await.map_err(status::not_read)?;
        }
        self.answer_range(query).await.map(Response::new)
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        let put = convert::put(request.into_inner())?;
        let bytes = put.key.len() + put.value.as_ref().map_or(0, Bytes::len);
        self.check_size(bytes)?;
        self.check_quota(bytes + RECORD_OVERHEAD).await?;
        match self.propose(Change::Put(put)).await? {
            (Changed::Put(put), revision) => Ok(Response::new(convert::put_response(self.header(revision), put))),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        let delete = convert::delete_range(request.into_inner())?;
        let (key, end) = delete.range.to_wire();
        self.check_size(key.len() + end.len())?;
        match self.propose(Change::DeleteRange(delete)).await? {
            (Changed::DeleteRange(deleted), revision) => {
                Ok(Response::new(convert::delete_response(self.header(revision), deleted)))
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        let request = request.into_inner();
        let bytes = prost::Message::encoded_len(&request);
        let checked = convert::txn(request, self.limits)?;
        if checked.txn.is_read_only() {
            if !checked.serializable {
                self.consensus.linearize().await.map_err(status::not_read)?;
            }
            let (outcome, revision) = self
                .store
                .read(|view, published| Ok((read_only_txn(view, &checked.txn, published)?, published.revision)))
                .map_err(|error| status::damaged(&error))?;
            let response = outcome.map_err(|rejected| status::rejected(&rejected))?;
            return Ok(Response::new(convert::txn_response(self.header(revision), response)));
        }
        self.check_size(bytes)?;
        if checked.txn.puts() {
            self.check_quota(bytes + RECORD_OVERHEAD).await?;
        }
        match self.propose(Change::Txn(checked.txn)).await? {
            (Changed::Txn(txn), revision) => Ok(Response::new(convert::txn_response(self.header(revision), txn))),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn compact(
        &self,
        request: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        let request = request.into_inner();
        let revision = u64::try_from(request.revision).ok().map(Revision);
        let (_, current) = self.propose(Change::Compact(revision)).await?;
        if let (true, Some(revision)) = (request.physical, revision) {
            let mut swept = self.swept.clone();
            swept.wait_for(|swept| *swept >= revision).await.map_err(|_| Status::from(errors::STOPPED))?;
        }
        Ok(Response::new(pb::CompactionResponse { header: self.header(current) }))
    }
}

fn unexpected(response: &Changed) -> Status {
    unreachable!("the machine answers a request in kind, and gave {response:?}")
}

/// A walk over a range that is done in pieces.
struct Walk {
    query: RangeQuery,
    at: Revision,
    kvs: Vec<u8>,
    taken: u64,
    count: u64,
    more: bool,
}

impl Api {
    fn check_size(&self, bytes: usize) -> Result<(), Status> {
        // etcd counts the whole proposal, which has a few bytes of its own.
        const PROPOSAL_OVERHEAD: usize = 16;
        if bytes + PROPOSAL_OVERHEAD > self.limits.max_request_bytes {
            return Err(errors::REQUEST_TOO_LARGE.into());
        }
        Ok(())
    }

    pub(super) async fn answer_range(&self, query: RangeQuery) -> Result<wire::RangeResponse, Status> {
        if query.count_only || (query.order.by == OrderBy::Key && !query.order.descending) {
            return self.answer_in_pieces(query).await;
        }
        // To sort, everything is needed at once.
        let store = self.store.clone();
        let (read, current) = tokio::task::spawn_blocking(move || {
            store.read(|view, published| Ok((read_sorted(view, published, &query)?, published.revision)))
        })
        .await
        .map_err(|_| Status::from(errors::STOPPED))?
        .map_err(|error| status::damaged(&error))?;
        let (kvs, count, more) = read.map_err(|rejected| status::rejected(&rejected))?;
        Ok(self.range_response(current, kvs, more, count))
    }

    fn range_response(&self, revision: Revision, kvs: Vec<u8>, more: bool, count: u64) -> wire::RangeResponse {
        wire::RangeResponse { header: self.wire_header(), revision, kvs: kvs.into(), more, count }
    }

    pub(crate) fn wire_header(&self) -> wire::Header {
        wire::Header { cluster: self.cluster, member: self.consensus.member(), term: self.consensus.state().term() }
    }

    async fn answer_in_pieces(&self, query: RangeQuery) -> Result<wire::RangeResponse, Status> {
        let limit = query.limit.unwrap_or(u64::MAX);
        let wanted = query.revision;
        loop {
            let start = query.range.clone();
            let mut walk =
                Walk { query: query.clone(), at: Revision(0), kvs: Vec::new(), taken: 0, count: 0, more: false };
            let mut rest = Some(start);
            let mut current = Revision(0);
            let mut overtaken = false;
            let mut first = true;
            while let Some(range) = rest.take() {
                if !first {
                    tokio::task::yield_now().await;
                }
                let (before, fixed) = ((walk.kvs.len(), walk.taken, walk.count, walk.more), walk.at);
                let piece = self
                    .store
                    .read(|view, published| {
                        (walk.taken, walk.count, walk.more) = (before.1, before.2, before.3);
                        walk.kvs.truncate(before.0);
                        if first {
                            current = published.revision;
                            walk.at = wanted.unwrap_or(current);
                            if let Err(rejected) = published.check(wanted) {
                                return Ok(Err(rejected));
                            }
                        } else if let Err(rejected) = published.check(Some(fixed)) {
                            return Ok(Err(rejected));
                        }
                        walk.piece(view, &range, limit).map(Ok)
                    })
                    .map_err(|error| status::damaged(&error))?;
                first = false;
                match piece {
                    Ok(next) => rest = next,
                    // A compaction went past the revision between two pieces. Who asked for the newest gets a newer.
                    Err(Rejected::Compacted { .. }) if wanted.is_none() => {
                        overtaken = true;
                        break;
                    }
                    Err(rejected) => return Err(status::rejected(&rejected)),
                }
            }
            if !overtaken {
                return Ok(self.range_response(current, walk.kvs, walk.more, walk.count));
            }
        }
    }
}

impl Walk {
    /// One piece; gives what is left.
    fn piece(
        &mut self,
        view: &View<'_, Snapshot<'_>>,
        range: &KeyRange,
        limit: u64,
    ) -> Result<Option<KeyRange>, StoreError> {
        let (stop_count, stop_bytes) = (self.count + PIECE_KEYS, self.kvs.len() + PIECE_BYTES);
        let mut rest = None;
        view.scan(range, self.at, &mut |found| {
            let record = found.as_ref();
            if self.count >= stop_count || self.kvs.len() >= stop_bytes {
                rest = Some(Bytes::copy_from_slice(record.key()));
                return ControlFlow::Break(());
            }
            self.count += 1;
            if !self.query.count_only && self.query.filter.admits(&record) {
                if self.taken < limit {
                    self.taken += 1;
                    wire::put_key_value(&record, self.query.keys_only, &mut self.kvs);
                } else {
                    self.more = true;
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(rest.map(|start| KeyRange { start, end: range.end.clone() }))
    }
}

type Read = Result<(Vec<u8>, u64, bool), Rejected>;

fn read_sorted(view: &View<'_, Snapshot<'_>>, published: Published, query: &RangeQuery) -> Result<Read, StoreError> {
    if let Err(rejected) = published.check(query.revision) {
        return Ok(Err(rejected));
    }
    let mut kvs = Vec::new();
    let summary = view.range_into(query, published.revision, &mut |found| {
        wire::put_key_value(&found.as_ref(), query.keys_only, &mut kvs);
    })?;
    Ok(Ok((kvs, summary.count, summary.more)))
}

