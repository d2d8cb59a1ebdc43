//! What is asked, and what is compared of the answer.

use std::collections::BTreeMap;

use e2d_api::etcdserverpb::response_op::Response as OpResponse;
use e2d_api::etcdserverpb::*;
use e2d_api::mvccpb::Event;
use tonic::{Code, Status};

/// One request, or one move of the watches.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    KeepAlive(LeaseKeepAliveRequest),
    TimeToLive(LeaseTimeToLiveRequest),
    Leases,
    Alarm(AlarmRequest),
    /// The hash is not compared between the sides, but each side must stay with what it said.
    HashKv(HashKvRequest),
    /// Creates a watch and waits for the answer.
    Watch {
        stream: usize,
        create: WatchCreateRequest,
    },
    /// Cancels a watch after its stream has settled, so that what it had been told is certain.
    Cancel {
        stream: usize,
        watch_id: i64,
    },
    /// Asks for progress and goes on. Whether it is granted depends on time, so the answer is only checked to be true.
    Progress {
        stream: usize,
    },
    /// Asks for progress on a stream that is closed to watches, and tells whether it was granted.
    ProgressAlone {
        stream: usize,
    },
    /// Compares all events of all watches so far.
    Settle,
    /// Ends the server, by force or by asking, and starts it again with the same data. The watches are gone then.
    Restart {
        kill: bool,
    },
}

/// What is compared.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Range(RangeResponse),
    Put(PutResponse),
    Delete(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse),
    Grant(LeaseGrantResponse),
    Revoke(LeaseRevokeResponse),
    KeepAlive(LeaseKeepAliveResponse),
    TimeToLive(LeaseTimeToLiveResponse),
    Leases(LeaseLeasesResponse),
    Alarm(AlarmResponse),
    HashKv(HashKvResponse),
    Watches(BTreeMap<(usize, i64), Vec<Said>>),
    Progress(bool),
    Nothing,
    Refused(Code, String),
    /// The side broke a rule that needs no comparison.
    Broken(String),
    /// No answer came in time.
    Silent,
}

/// What a stream said about one watch.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Created(WatchResponse),
    Canceled(WatchResponse),
    Event(Event),
}

impl Answer {
    pub fn of<T: Masked>(answer: Result<T, Status>, wrap: impl FnOnce(T) -> Answer) -> Answer {
        match answer {
            Ok(mut answer) => {
                answer.mask();
                wrap(answer)
            }
            Err(status) => Answer::Refused(status.code(), status.message().to_owned()),
        }
    }

    /// How many events this answer holds.
    pub fn events(&self) -> usize {
        match self {
            Answer::Watches(said) => said
                .values()
                .flatten()
                .filter(|said| matches!(said, Said::Event(_)))
                .count(),
            _ => 0,
        }
    }

    /// The revision in the header of an answer about keys.
    pub fn revision(&self) -> Option<i64> {
        let header = match self {
            Answer::Range(answer) => &answer.header,
            Answer::Put(answer) => &answer.header,
            Answer::Delete(answer) => &answer.header,
            Answer::Txn(answer) => &answer.header,
            Answer::Compact(answer) => &answer.header,
            Answer::Revoke(answer) => &answer.header,
            _ => return None,
        };
        header.as_ref().map(|header| header.revision)
    }
}

/// Removes what two servers cannot agree on: who they are, and how much time has passed.
pub trait Masked {
    fn mask(&mut self);
}

impl Masked for Option<ResponseHeader> {
    /// Whether an id is set is compared, which one it is is not.
    fn mask(&mut self) {
        if let Some(header) = self {
            header.cluster_id = header.cluster_id.min(1);
            header.member_id = header.member_id.min(1);
            header.raft_term = header.raft_term.min(1);
        }
    }
}

macro_rules! only_the_header {
    ($($answer:ty),*) => {$(
        impl Masked for $answer {
            fn mask(&mut self) {
                self.header.mask();
            }
        }
    )*};
}

only_the_header!(
    RangeResponse,
    PutResponse,
    DeleteRangeResponse,
    CompactionResponse,
    LeaseGrantResponse,
    LeaseRevokeResponse,
    LeaseKeepAliveResponse,
    AlarmResponse,
    WatchResponse
);

impl Masked for TxnResponse {
    fn mask(&mut self) {
        self.header.mask();
        for op in &mut self.responses {
            match &mut op.response {
                Some(OpResponse::ResponseRange(answer)) => answer.mask(),
                Some(OpResponse::ResponsePut(answer)) => answer.mask(),
                Some(OpResponse::ResponseDeleteRange(answer)) => answer.mask(),
                Some(OpResponse::ResponseTxn(answer)) => answer.mask(),
                None => {}
            }
        }
    }
}

impl Masked for LeaseTimeToLiveResponse {
    /// The generator grants long leases only, so what remains is the whole but for the duration of the run.
    fn mask(&mut self) {
        self.header.mask();
        if self.ttl > 0 && self.ttl <= self.granted_ttl {
            self.ttl = self.granted_ttl;
        }
        // The order is not promised.
        self.keys.sort();
    }
}

impl Masked for LeaseLeasesResponse {
    /// Ordered by their end, which two leases of one run may share.
    fn mask(&mut self) {
        self.header.mask();
        self.leases.sort_by_key(|lease| lease.id);
    }
}

impl Masked for HashKvResponse {
    /// How the hash is computed is the server's own business, and so is which part of the history it covers.
    fn mask(&mut self) {
        self.header.mask();
        self.hash = 0;
        self.compact_revision = 0;
    }
}
