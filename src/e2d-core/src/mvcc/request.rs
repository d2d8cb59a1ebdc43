//! What can be asked of the key space, and what it answers.
//!
//! A request that changes something travels through the raft log in the form of [`Command`]; every replica decodes
//! and applies the same bytes. Static checks (sizes, duplicate keys, unknown options) happen before that, in the API.

use crate::alarm::{Alarm, AlarmKind};
use crate::ids::{LeaseId, MemberId, Revision, Term};
use crate::lease::Life;
use crate::mvcc::range::KeyRange;
use crate::mvcc::record::Record;
use bytes::Bytes;

/// A request in the log: who proposed it, so that the answer finds its way, and what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// The member that took the request from a client.
    pub origin: MemberId,
    /// Unique among the proposals of one process, so that an answer meets its question. A restarted process starts
    /// at another random number.
    pub id: u64,
    /// The request.
    pub request: Request,
}

/// What every replica does alike.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Write one key.
    Put(Put),
    /// Delete keys.
    DeleteRange(DeleteRange),
    /// Compare, then do one list of operations or the other.
    Txn(Txn),
    /// Forget history before a revision. `None` stands for a negative number, which is always too old.
    Compact(Option<Revision>),
    /// Create a lease.
    LeaseGrant {
        /// Chosen by the client or by the member that proposed it.
        id: LeaseId,
        /// Seconds, within the permitted range.
        ttl_seconds: u64,
    },
    /// End a lease and delete its keys.
    LeaseRevoke(LeaseId),
    /// End a lease whose time is up, and delete its keys. Without effect when the entry has another term than the one
    /// in which it was decided: a later leader may have renewed the lease.
    LeaseExpire {
        /// Which life of which lease.
        life: Life,
        /// The term of the leader that decided it.
        decided_in: Term,
    },
    /// Write down how long leases have left, so that a new leader does not extend them in full. Bound to its term as
    /// an expiry is.
    LeaseCheckpoint {
        /// Which leases.
        leases: Vec<LeaseRemaining>,
        /// The term of the leader that decided it.
        decided_in: Term,
    },
    /// Raise an alarm.
    AlarmActivate(Alarm),
    /// End an alarm.
    AlarmDeactivate(Alarm),
    /// List the alarms, or those of one kind.
    AlarmGet(Option<AlarmKind>),
    /// Publish what a member is called and where clients reach it.
    MemberPublish {
        /// Which member.
        member: MemberId,
        /// Its name.
        name: String,
        /// Where clients reach it.
        client_urls: Vec<String>,
    },
}

/// The time that a lease has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRemaining {
    /// Which life of which lease.
    pub life: Life,
    /// Seconds, or 0 to forget what was written down before.
    pub seconds: u64,
}

/// Write one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Put {
    /// The key; never empty.
    pub key: Bytes,
    /// The new value, or `None` to keep the present one.
    pub value: Option<Bytes>,
    /// What becomes of the key's lease.
    pub lease: LeaseChange,
    /// Whether the answer holds the record that was replaced.
    pub prev_kv: bool,
}

/// What a put does to the lease of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// The key keeps the lease that it has.
    Keep,
    /// The key is attached to this lease, or to none.
    Set(Option<LeaseId>),
}

/// Delete keys.
#[derive(Clone, Debug, PartialEq)]
pub struct DeleteRange {
    /// Which keys.
    pub range: KeyRange,
    /// Whether the answer holds the records that were deleted.
    pub prev_kv: bool,
}

/// Read keys.
#[derive(Clone, Debug, PartialEq)]
pub struct RangeQuery {
    /// Which keys.
    pub range: KeyRange,
    /// At most so many records.
    pub limit: Option<u64>,
    /// The state at this revision, or the newest. Revision 0 is before all others and always compacted.
    pub revision: Option<Revision>,
    /// The order of the records.
    pub order: Order,
    /// Leave values out.
    pub keys_only: bool,
    /// Answer with the number of keys alone.
    pub count_only: bool,
    /// Bounds on the records' revisions.
    pub filter: RevisionFilter,
}

/// The order of records in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Order {
    /// What is compared. Records that are equal in it stay in the order of their keys.
    pub by: OrderBy,
    /// Largest first.
    pub descending: bool,
    /// No order was asked for. With a target other than the key etcd then sorts only the first `limit + 1` records
    /// in the order of their keys; clients see that, so it is kept.
    pub unspecified: bool,
}

/// What records are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum OrderBy {
    #[default]
    Key,
    Version,
    Created,
    Modified,
    Value,
}

/// Bounds on the revisions of the records of an answer; `None` is no bound. They do not change its count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct RevisionFilter {
    pub min_modified: Option<Revision>,
    pub max_modified: Option<Revision>,
    pub min_created: Option<Revision>,
    pub max_created: Option<Revision>,
}

/// Compare, then do one list of operations or the other.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Txn {
    /// All must hold on the state before the transaction.
    pub compare: Vec<Compare>,
    /// Done when they hold.
    pub success: Vec<Op>,
    /// Done when one does not.
    pub failure: Vec<Op>,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Op {
    Range(RangeQuery),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

/// A condition on one key, or on every key of a range.
#[derive(Clone, Debug, PartialEq)]
pub struct Compare {
    /// Which keys. A range without keys counts as one missing key.
    pub range: KeyRange,
    /// How the key's property relates to the operand.
    pub relation: Relation,
    /// The property and the operand.
    pub operand: Operand,
}

/// How the left side relates to the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Relation {
    Equal,
    Greater,
    Less,
    NotEqual,
    /// A number that etcd does not know; such a comparison holds.
    Unknown,
}

/// The property that is compared, and with what. Numbers are as clients sent them: a missing key's are 0.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Operand {
    Version(i64),
    Created(i64),
    Modified(i64),
    /// Never holds on a missing key.
    Value(Bytes),
    Lease(i64),
    /// A number that etcd does not know: as if 0 were compared with 0.
    Unknown,
}

/// What a request gave, and the revision of the store right after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The current revision of the store after the request.
    pub revision: Revision,
    /// What it gave.
    pub outcome: Result<Response, Rejected>,
}

/// The result of a request that was not refused.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Response {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact,
    LeaseGrant {
        id: LeaseId,
        ttl_seconds: u64,
    },
    LeaseRevoke,
    LeaseExpire,
    LeaseCheckpoint,
    /// The alarms that were raised, ended or listed.
    Alarms(Vec<Alarm>),
    MemberPublish,
}

/// The result of a [`Put`].
#[derive(Clone, Debug, PartialEq)]
pub struct PutResponse {
    /// The record that was replaced, if it was asked for and there was one.
    pub previous: Option<Record>,
}

/// The result of a [`DeleteRange`].
#[derive(Clone, Debug, PartialEq)]
pub struct DeleteRangeResponse {
    /// How many keys were deleted.
    pub deleted: u64,
    /// Their last records, if asked for, in the order of the keys.
    pub previous: Vec<Record>,
}

/// The result of a [`RangeQuery`].
#[derive(Clone, Debug, PartialEq, Default)]
pub struct RangeResponse {
    /// The records.
    pub records: Vec<Record>,
    /// Whether the limit cut the answer.
    pub more: bool,
    /// How many keys the range has, whatever limit and filter say.
    pub count: u64,
    /// The records are to be shown without their values.
    pub keys_only: bool,
}

/// The result of a [`Txn`].
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TxnResponse {
    /// Whether all comparisons held.
    pub succeeded: bool,
    /// One result for each operation.
    pub results: Vec<OpResponse>,
}

/// The result of one operation of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct OpResponse {
    /// The revision as this operation saw it: one more once the transaction has changed something.
    pub revision: Revision,
    /// What it gave.
    pub response: OpResult,
}

/// What one operation of a transaction gave.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum OpResult {
    Range(RangeResponse),
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
}

/// A request that every replica refuses alike. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// History up to there is gone.
    #[error("revision {wanted} was compacted")]
    Compacted {
        /// The revision asked for.
        wanted: Revision,
        /// What is still readable.
        compacted: Revision,
    },
    /// There is no such revision yet.
    #[error("revision {wanted} is in the future of {current}")]
    FutureRevision {
        /// The revision asked for.
        wanted: Revision,
        /// The newest one.
        current: Revision,
    },
    /// A put keeps the value or lease of a key that does not exist.
    #[error("the key whose value or lease is to be kept does not exist")]
    KeyNotFound,
    /// There is no such lease.
    #[error("lease {0} does not exist")]
    LeaseNotFound(LeaseId),
    /// The id is taken.
    #[error("lease {0} exists already")]
    LeaseExists(LeaseId),
    /// An alarm says that a member is out of space.
    #[error("the space alarm is on")]
    NoSpace,
    /// An alarm says that a member's data is corrupt.
    #[error("the corruption alarm is on")]
    Corrupt,
    /// There is no such member.
    #[error("member {0} does not exist")]
    MemberNotFound(MemberId),
}
