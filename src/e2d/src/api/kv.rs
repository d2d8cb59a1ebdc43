//! The KV service.

use super::{Api, convert, generated, status, wire};
use crate::store::Snapshot;
use bytes::Bytes;
use e2d_api::errors;
use e2d_api::etcdserverpb as pb;
use e2d_core::ids::Revision;
use e2d_core::mvcc::fences::Count;
use e2d_core::mvcc::machine::read_only_txn;
use e2d_core::mvcc::range::KeyRange;
use e2d_core::mvcc::request::{
    OrderBy, RangeQuery, Rejected, Request as Change, Response as Changed, RevisionFilter,
};
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
    at: Revision,
    limit: u64,
    /// Nothing behind the limit matters.
    stop_at_limit: bool,
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

    /// Counts and keys in their own order: walked in pieces, and no further than the answer needs.
    async fn answer_in_pieces(&self, query: RangeQuery) -> Result<wire::RangeResponse, Status> {
        loop {
            // The newest state is read at the revision that its numbers of keys are known for.
            let counted = (!query.range.is_single()).then(|| self.store.fences().count(&query.range));
            let published = self.store.published();
            let current = counted.as_ref().map_or(published.revision, |counted| counted.revision.max(published.revision));
            let readable = Published { revision: current, ..published };
            readable.check(query.revision).map_err(|rejected| status::rejected(&rejected))?;
            let at = match (query.revision, &counted) {
                (Some(at), _) => at,
                (None, Some(counted)) => counted.revision,
                (None, None) => current,
            };
            match self.walk(&query, counted, at).await {
                // A compaction went past the revision between two pieces. Who asked for the newest gets a newer.
                Err(Stopped::Overtaken(_)) if query.revision.is_none() => continue,
                Err(Stopped::Overtaken(rejected)) => return Err(status::rejected(&rejected)),
                Err(Stopped::Failed(error)) => return Err(status::damaged(&error)),
                Ok(walk) => return Ok(self.range_response(current, walk.kvs, walk.more, walk.count)),
            }
        }
    }

    async fn walk(&self, query: &RangeQuery, counted: Option<Count>, at: Revision) -> Result<Walk, Stopped> {
        let limit = if query.count_only { 0 } else { query.limit.unwrap_or(u64::MAX) };
        let mut walk = Walk { at, limit, stop_at_limit: false, kvs: Vec::new(), taken: 0, count: 0, more: false };
        // Without a filter the number of keys says whether there are more; so the walk ends where the answer does.
        let counted = match counted {
            Some(counted) if query.filter == RevisionFilter::default() && limit != u64::MAX => {
                self.count_back(counted, &query.range, at)?
            }
            _ => None,
        };
        let Some((counted, change)) = counted else {
            self.walk_over(&mut walk, query, query.range.clone()).await?;
            return Ok(walk);
        };
        walk.stop_at_limit = true;
        if limit > 0 {
            self.walk_over(&mut walk, query, query.range.clone()).await?;
        }
        let shown = walk.taken;
        let mut count = Walk { at: counted.revision, limit: 0, stop_at_limit: false, kvs: Vec::new(), taken: 0, count: 0, more: false };
        for part in counted.parts {
            self.walk_over(&mut count, query, part).await?;
        }
        walk.count = (counted.whole + count.count).saturating_add_signed(change);
        walk.more = limit > 0 && walk.count > shown;
        Ok(walk)
    }

    /// What has to be added to the number of keys now to have the number at an older revision: every event since then
    /// says what it did. `None` when there were too many.
    fn count_back(&self, counted: Count, range: &KeyRange, at: Revision) -> Result<Option<(Count, i64)>, Stopped> {
        const MOST_REVISIONS: u64 = 4096;
        if at == counted.revision {
            return Ok(Some((counted, 0)));
        }
        if at > counted.revision || counted.revision.0 - at.0 > MOST_REVISIONS {
            return Ok(None);
        }
        let change = self
            .store
            .read(|view, published| {
                if let Err(rejected) = published.check(Some(at)) {
                    return Ok(Err(rejected));
                }
                let mut change = 0;
                view.events(at.next(), &mut |event| {
                    if event.at.main > counted.revision {
                        return ControlFlow::Break(());
                    }
                    if range.contains(event.key()) {
                        change += if event.is_tombstone() { 1 } else if event.version == 1 { -1 } else { 0 };
                    }
                    ControlFlow::Continue(())
                })?;
                Ok(Ok(change))
            })
            .map_err(Stopped::Failed)?
            .map_err(Stopped::Overtaken)?;
        Ok(Some((counted, change)))
    }

    async fn walk_over(&self, walk: &mut Walk, query: &RangeQuery, range: KeyRange) -> Result<(), Stopped> {
        let mut rest = Some(range);
        while let Some(range) = rest.take() {
            let before = (walk.kvs.len(), walk.taken, walk.count, walk.more);
            let next = self
                .store
                .read(|view, published| {
                    // It may run again.
                    walk.kvs.truncate(before.0);
                    (walk.taken, walk.count, walk.more) = (before.1, before.2, before.3);
                    match published.compacted {
                        Some(compacted) if walk.at < compacted => {
                            Ok(Err(Rejected::Compacted { wanted: walk.at, compacted }))
                        }
                        _ => walk.piece(view, query, &range).map(Ok),
                    }
                })
                .map_err(Stopped::Failed)?
                .map_err(Stopped::Overtaken)?;
            if next.is_some() {
                tokio::task::yield_now().await;
            }
            rest = next;
        }
        Ok(())
    }
}

/// Why a walk did not come to its end.
enum Stopped {
    /// Its revision was compacted meanwhile.
    Overtaken(Rejected),
    /// The store cannot be read.
    Failed(StoreError),
}

impl Walk {
    /// One piece; gives what is left.
    fn piece(
        &mut self,
        view: &View<'_, Snapshot<'_>>,
        query: &RangeQuery,
        range: &KeyRange,
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
            if query.filter.admits(&record) {
                if self.taken < self.limit {
                    self.taken += 1;
                    wire::put_key_value(&record, query.keys_only, &mut self.kvs);
                } else {
                    self.more = !query.count_only;
                }
            }
            if self.stop_at_limit && self.taken >= self.limit {
                return ControlFlow::Break(());
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

