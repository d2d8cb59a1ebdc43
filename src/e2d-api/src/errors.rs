//! The errors that etcd's clients know, with their codes and texts.
//!
//! Clients recover the typed error by its text, so a text is wire format as much as a field number is. Source: the
//! answers of etcd 3.6.

use tonic::{Code, Status};

/// An error that clients recognise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The gRPC code.
    pub code: Code,
    /// The whole message.
    pub text: &'static str,
}

impl From<Known> for Status {
    fn from(known: Known) -> Status {
        Status::new(known.code, known.text)
    }
}

macro_rules! known {
    ($($name:ident = $code:ident $text:literal;)*) => {
        $(
            #[doc = concat!("`etcdserver: ", $text, "`")]
            pub const $name: Known = Known { code: Code::$code, text: concat!("etcdserver: ", $text) };
        )*
    };
}

known! {
    KEY_NOT_PROVIDED = InvalidArgument "key is not provided";
    KEY_NOT_FOUND = InvalidArgument "key not found";
    VALUE_PROVIDED = InvalidArgument "value is provided";
    LEASE_PROVIDED = InvalidArgument "lease is provided";
    TOO_MANY_OPS = InvalidArgument "too many operations in txn request";
    DUPLICATE_KEY = InvalidArgument "duplicate key given in txn request";
    INVALID_CLIENT_API_VERSION = InvalidArgument "invalid client api version";
    INVALID_SORT_OPTION = InvalidArgument "invalid sort option";
    REQUEST_TOO_LARGE = InvalidArgument "request is too large";
    COMPACTED = OutOfRange "mvcc: required revision has been compacted";
    FUTURE_REVISION = OutOfRange "mvcc: required revision is a future revision";
    NO_SPACE = ResourceExhausted "mvcc: database space exceeded";
    TOO_MANY_REQUESTS = ResourceExhausted "too many requests";
    LEASE_NOT_FOUND = NotFound "requested lease not found";
    LEASE_EXISTS = FailedPrecondition "lease already exists";
    LEASE_TTL_TOO_LARGE = OutOfRange "too large lease TTL";
    MEMBER_NOT_FOUND = NotFound "member not found";
    CORRUPT = DataLoss "corrupt cluster";
    NO_LEADER = Unavailable "no leader";
    LEADER_CHANGED = Unavailable "leader changed";
    STOPPED = Unavailable "server stopped";
    TIMEOUT = Unavailable "request timed out";
    BAD_MEMBER_URLS = InvalidArgument "given member URLs are invalid";
    PEER_URLS_EXIST = FailedPrecondition "Peer URLs already exists";
    NOT_A_LEARNER = FailedPrecondition "can only promote a learner member";
    DOWNGRADE_FORMAT = InvalidArgument "wrong downgrade target version format";
    DOWNGRADE_TARGET = InvalidArgument "invalid downgrade target version";
    NOT_LEADER = FailedPrecondition "not leader";
    BAD_LEADER_TRANSFEREE = FailedPrecondition "bad leader transferee";
    NOT_SUPPORTED_FOR_LEARNER = FailedPrecondition "rpc not supported for learner";
}

/// etcd ends a request that found no quorum in time with the client library's own words.
pub const DEADLINE_EXCEEDED: Known = Known { code: Code::DeadlineExceeded, text: "context deadline exceeded" };
