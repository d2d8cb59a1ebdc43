//! From etcd's messages to requests, with every check that needs no state; and from results back to messages.

use bytes::Bytes;
use e2d_api::errors::{self, Known};
use e2d_api::etcdserverpb::{self as pb, compare, range_request, request_op, response_op};
use e2d_api::mvccpb;
use e2d_core::ids::{LeaseId, Revision};
use e2d_core::mvcc::codec::MAX_TXN_DEPTH;
use e2d_core::mvcc::range::{KeyRange, RangeEnd};
use e2d_core::mvcc::record::Record;
use e2d_core::mvcc::request::*;
use std::collections::BTreeSet;

/// What a request may have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Operations in a transaction.
    pub max_txn_ops: usize,
    /// Bytes of a request.
    pub max_request_bytes: usize,
}

/// On the wire 0 means the newest revision; so does a negative one outside of transactions.
pub(crate) fn plain_range(request: pb::RangeRequest) -> Result<RangeQuery, Known> {
    let revision = u64::try_from(request.revision).ok().filter(|revision| *revision > 0).map(Revision);
    range(request, revision)
}

/// Inside a transaction a negative revision is one that was compacted.
fn range_op(request: pb::RangeRequest) -> Result<RangeQuery, Known> {
    let revision = match request.revision {
        0 => None,
        revision => Some(Revision(u64::try_from(revision).unwrap_or(0))),
    };
    range(request, revision)
}

fn range(request: pb::RangeRequest, revision: Option<Revision>) -> Result<RangeQuery, Known> {
    if request.key.is_empty() {
        return Err(errors::KEY_NOT_PROVIDED);
    }
    let order = range_request::SortOrder::try_from(request.sort_order).map_err(|_| errors::INVALID_SORT_OPTION)?;
    let target = range_request::SortTarget::try_from(request.sort_target).map_err(|_| errors::INVALID_SORT_OPTION)?;
    // A bound of 0 is none; below it nothing, or everything, is outside.
    let bound = |number: i64| (number != 0).then(|| Revision(u64::try_from(number).unwrap_or(0)));
    Ok(RangeQuery {
        range: KeyRange::from_wire(request.key, request.range_end),
        limit: u64::try_from(request.limit).ok().filter(|limit| *limit > 0),
        revision,
        order: Order {
            by: match target {
                range_request::SortTarget::Key => OrderBy::Key,
                range_request::SortTarget::Version => OrderBy::Version,
                range_request::SortTarget::Create => OrderBy::Created,
                range_request::SortTarget::Mod => OrderBy::Modified,
                range_request::SortTarget::Value => OrderBy::Value,
            },
            descending: order == range_request::SortOrder::Descend,
            unspecified: order == range_request::SortOrder::None,
        },
        keys_only: request.keys_only,
        count_only: request.count_only,
        filter: RevisionFilter {
            min_modified: bound(request.min_mod_revision),
            max_modified: bound(request.max_mod_revision),
            min_created: bound(request.min_create_revision),
            max_created: bound(request.max_create_revision),
        },
    })
}

/// Checks and converts a put.
pub(crate) fn put(request: pb::PutRequest) -> Result<Put, Known> {
    if request.key.is_empty() {
        return Err(errors::KEY_NOT_PROVIDED);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(errors::VALUE_PROVIDED);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(errors::LEASE_PROVIDED);
    }
    Ok(Put {
        key: request.key,
        value: (!request.ignore_value).then_some(request.value),
        lease: if request.ignore_lease {
            LeaseChange::Keep
        } else {
            LeaseChange::Set((request.lease != 0).then_some(LeaseId(request.lease)))
        },
        prev_kv: request.prev_kv,
    })
}

/// Checks and converts a deletion.
pub(crate) fn delete_range(request: pb::DeleteRangeRequest) -> Result<DeleteRange, Known> {
    if request.key.is_empty() {
        return Err(errors::KEY_NOT_PROVIDED);
    }
    Ok(DeleteRange { range: KeyRange::from_wire(request.key, request.range_end), prev_kv: request.prev_kv })
}

/// A transaction, and whether every read in it may be answered by this member alone.
pub(crate) struct CheckedTxn {
    pub(crate) txn: Txn,
    pub(crate) serializable: bool,
}

/// Checks and converts a transaction.
pub(crate) fn txn(request: pb::TxnRequest, limits: Limits) -> Result<CheckedTxn, Known> {
    let mut serializable = true;
    let txn = txn_within(request, limits.max_txn_ops as i64, 0, &mut serializable)?;
    Writes::of(&txn.success)?;
    Writes::of(&txn.failure)?;
    Ok(CheckedTxn { txn, serializable })
}

fn txn_within(request: pb::TxnRequest, budget: i64, depth: usize, serializable: &mut bool) -> Result<Txn, Known> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len()) as i64;
    if ops > budget || depth > MAX_TXN_DEPTH {
        return Err(errors::TOO_MANY_OPS);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(errors::KEY_NOT_PROVIDED);
    }
    let mut convert = |ops_of: Vec<pb::RequestOp>| -> Result<Vec<Op>, Known> {
        ops_of
            .into_iter()
            .map(|op| match op.request {
                Some(request_op::Request::RequestRange(request)) => {
                    *serializable &= request.serializable;
                    range_op(request).map(Op::Range)
                }
                Some(request_op::Request::RequestPut(request)) => put(request).map(Op::Put),
                Some(request_op::Request::RequestDeleteRange(request)) => delete_range(request).map(Op::DeleteRange),
                Some(request_op::Request::RequestTxn(request)) => {
                    txn_within(request, budget - ops, depth + 1, serializable).map(Op::Txn)
                }
                None => Err(errors::KEY_NOT_FOUND),
            })
            .collect()
    };
    Ok(Txn {
        success: convert(request.success)?,
        failure: convert(request.failure)?,
        compare: request.compare.into_iter().map(compare).collect(),
    })
}

fn compare(compare: pb::Compare) -> Compare {
    let relation = match compare::CompareResult::try_from(compare.result) {
        Ok(compare::CompareResult::Equal) => Relation::Equal,
        Ok(compare::CompareResult::Greater) => Relation::Greater,
        Ok(compare::CompareResult::Less) => Relation::Less,
        Ok(compare::CompareResult::NotEqual) => Relation::NotEqual,
        Err(_) => Relation::Unknown,
    };
    // The operand of another kind than the target counts as not set, which is 0.
    let union = compare.target_union;
    let operand = match compare::CompareTarget::try_from(compare.target) {
        Ok(compare::CompareTarget::Version) => Operand::Version(match union {
            Some(compare::TargetUnion::Version(number)) => number,
            _ => 0,
        }),
        Ok(compare::CompareTarget::Create) => Operand::Created(match union {
            Some(compare::TargetUnion::CreateRevision(number)) => number,
            _ => 0,
        }),
        Ok(compare::CompareTarget::Mod) => Operand::Modified(match union {
            Some(compare::TargetUnion::ModRevision(number)) => number,
            _ => 0,
        }),
        Ok(compare::CompareTarget::Lease) => Operand::Lease(match union {
            Some(compare::TargetUnion::Lease(number)) => number,
            _ => 0,
        }),
        Ok(compare::CompareTarget::Value) => Operand::Value(match union {
            Some(compare::TargetUnion::Value(value)) => value,
            _ => Bytes::new(),
        }),
        Err(_) => Operand::Unknown,
    };
    Compare { range: KeyRange::from_wire(compare.key, compare.range_end), relation, operand }
}

/// The keys that a list of operations may write, to find keys that are written twice.
struct Writes<'a> {
    puts: BTreeSet<&'a Bytes>,
    deletes: Vec<&'a KeyRange>,
}

impl<'a> Writes<'a> {
    /// Fails where etcd does: a key is put twice, or put and deleted, whichever branch would run. The branches of one
    /// nested transaction exclude each other and may share keys.
    fn of(ops: &'a [Op]) -> Result<Writes<'a>, Known> {
        let deletes = ops.iter().filter_map(|op| if let Op::DeleteRange(delete) = op { Some(&delete.range) } else { None });
        let mut all = Writes { puts: BTreeSet::new(), deletes: deletes.collect() };
        for op in ops {
            let Op::Txn(txn) = op else { continue };
            let (success, failure) = (Writes::of(&txn.success)?, Writes::of(&txn.failure)?);
            for key in &success.puts {
                all.put(key)?;
            }
            for key in &failure.puts {
                if success.puts.contains(key) {
                    continue;
                }
                all.put(key)?;
            }
            all.deletes.extend(success.deletes);
            all.deletes.extend(failure.deletes);
        }
        for op in ops {
            if let Op::Put(put) = op {
                all.put(&put.key)?;
            }
        }
        Ok(all)
    }

    fn put(&mut self, key: &'a Bytes) -> Result<(), Known> {
        // etcd reads the end of an unbounded range as a key here, before which nothing is, so that such a deletion
        // overlaps no put. Clients may rely on it, and the operations have an order.
        let deleted = |range: &&KeyRange| range.end != RangeEnd::Unbounded && range.contains(key);
        if self.deletes.iter().any(deleted) || !self.puts.insert(key) {
            return Err(errors::DUPLICATE_KEY);
        }
        Ok(())
    }
}

/// A record as clients see it.
pub(crate) fn key_value(record: &Record) -> mvccpb::KeyValue {
    let fields = record.as_ref();
    mvccpb::KeyValue {
        key: record.key(),
        create_revision: fields.created.main.0 as i64,
        mod_revision: fields.at.main.0 as i64,
        version: fields.version as i64,
        value: record.value(),
        lease: fields.lease.map_or(0, |lease| lease.0),
    }
}

/// The header of a response inside a transaction has a revision and nothing else.
fn inner_header(revision: Revision) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision: revision.0 as i64, ..pb::ResponseHeader::default() })
}

pub(crate) fn put_response(header: Option<pb::ResponseHeader>, response: PutResponse) -> pb::PutResponse {
    pb::PutResponse { header, prev_kv: response.previous.as_ref().map(key_value) }
}

pub(crate) fn delete_response(
    header: Option<pb::ResponseHeader>,
    response: DeleteRangeResponse,
) -> pb::DeleteRangeResponse {
    pb::DeleteRangeResponse {
        header,
        deleted: response.deleted as i64,
        prev_kvs: response.previous.iter().map(key_value).collect(),
    }
}

pub(crate) fn txn_response(header: Option<pb::ResponseHeader>, response: TxnResponse) -> pb::TxnResponse {
    let responses = response.results.into_iter().map(|result| {
        let header = inner_header(result.revision);
        let response = match result.response {
            OpResult::Range(range) => response_op::Response::ResponseRange(pb::RangeResponse {
                header,
                more: range.more,
                count: range.count as i64,
                kvs: range
                    .records
                    .iter()
                    .map(|record| {
                        let kv = key_value(record);
                        if range.keys_only { mvccpb::KeyValue { value: Bytes::new(), ..kv } } else { kv }
                    })
                    .collect(),
            }),
            OpResult::Put(put) => response_op::Response::ResponsePut(put_response(header, put)),
            OpResult::DeleteRange(delete) => {
                response_op::Response::ResponseDeleteRange(delete_response(header, delete))
            }
            // A nested transaction's own header is empty.
            OpResult::Txn(txn) => {
                response_op::Response::ResponseTxn(txn_response(Some(pb::ResponseHeader::default()), txn))
            }
        };
        pb::ResponseOp { response: Some(response) }
    });
    pb::TxnResponse { header, succeeded: response.succeeded, responses: responses.collect() }
}
