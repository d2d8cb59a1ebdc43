//! What went wrong, in the words of etcd.

use crate::consensus::Unavailable;
use e2d_api::errors::{self, Known};
use e2d_core::mvcc::request::Rejected;
use e2d_core::mvcc::view::StoreError;
use tonic::{Code, Status};

/// A request that every replica refuses.
pub(crate) fn rejected(rejected: &Rejected) -> Status {
    let known: Known = match rejected {
        Rejected::Compacted { .. } => errors::COMPACTED,
        Rejected::FutureRevision { .. } => errors::FUTURE_REVISION,
        Rejected::KeyNotFound => errors::KEY_NOT_FOUND,
        Rejected::LeaseNotFound(_) => errors::LEASE_NOT_FOUND,
        Rejected::LeaseExists(_) => errors::LEASE_EXISTS,
        Rejected::NoSpace => errors::NO_SPACE,
        Rejected::Corrupt => errors::CORRUPT,
        Rejected::MemberNotFound(_) => errors::MEMBER_NOT_FOUND,
    };
    known.into()
}

/// A request that goes through the log and got no answer.
pub(crate) fn not_written(why: Unavailable) -> Status {
    match why {
        Unavailable::NoLeader | Unavailable::Timeout => errors::DEADLINE_EXCEEDED.into(),
        Unavailable::LeaderChanged => errors::LEADER_CHANGED.into(),
        // The code is etcd's: its table of codes lacks this error where it arises.
        Unavailable::TooManyRequests => Status::new(Code::Unknown, errors::TOO_MANY_REQUESTS.text),
        Unavailable::Stopped => errors::STOPPED.into(),
    }
}

/// A linearizable read that found no quorum.
pub(crate) fn not_read(why: Unavailable) -> Status {
    match why {
        Unavailable::NoLeader | Unavailable::Timeout => errors::TIMEOUT.into(),
        Unavailable::LeaderChanged => errors::LEADER_CHANGED.into(),
        Unavailable::TooManyRequests => errors::TOO_MANY_REQUESTS.into(),
        Unavailable::Stopped => errors::STOPPED.into(),
    }
}

/// The store cannot be read as it should be. Clients learn that data is damaged; where, is for the operator.
pub(crate) fn damaged(error: &StoreError) -> Status {
    tracing::error!(%error, "a read found the store damaged");
    errors::CORRUPT.into()
}
