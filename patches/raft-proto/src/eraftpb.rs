//! The messages of raft-rs 0.7.0. Tags and types are its `eraftpb.proto`; prost's derive does the rest.
//!
//! prost gives every enum field `x()` and `set_x()`; the accessors below are the further names that raft-rs uses, in
//! the form of rust-protobuf: `get_x`, `set_x`, `mut_x`, `take_x`, and `has_x` for a message in a message.

use bytes::Bytes;

/// What an entry carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum EntryType {
    /// Bytes of the application, or nothing: the entry of a new leader.
    EntryNormal = 0,
    /// A [`ConfChange`].
    EntryConfChange = 1,
    /// A [`ConfChangeV2`].
    EntryConfChangeV2 = 2,
}

/// What a message says. `MsgHup`, `MsgBeat`, `MsgUnreachable`, `MsgSnapStatus` and `MsgCheckQuorum` are local: a node
/// says them to itself, and refuses them from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum MessageType {
    MsgHup = 0,
    MsgBeat = 1,
    MsgPropose = 2,
    MsgAppend = 3,
    MsgAppendResponse = 4,
    MsgRequestVote = 5,
    MsgRequestVoteResponse = 6,
    MsgSnapshot = 7,
    MsgHeartbeat = 8,
    MsgHeartbeatResponse = 9,
    MsgUnreachable = 10,
    MsgSnapStatus = 11,
    MsgCheckQuorum = 12,
    MsgTransferLeader = 13,
    MsgTimeoutNow = 14,
    MsgReadIndex = 15,
    MsgReadIndexResp = 16,
    MsgRequestPreVote = 17,
    MsgRequestPreVoteResponse = 18,
}

/// How a configuration change goes through a joint configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfChangeTransition {
    /// Only if more than one member changes; left by raft.
    Auto = 0,
    /// Always; left by raft.
    Implicit = 1,
    /// Always; left when the application proposes it.
    Explicit = 2,
}

/// What happens to a member. `AddLearnerNode` is 3 in etcd's raft, where 2 is something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfChangeType {
    /// It becomes a voter.
    AddNode = 0,
    /// It is no member any more.
    RemoveNode = 1,
    /// It becomes a learner.
    AddLearnerNode = 2,
}

/// One entry of the log.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Entry {
    /// An [`EntryType`].
    #[prost(enumeration = "EntryType", tag = "1")]
    pub entry_type: i32,
    /// The term it was proposed in.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Its place in the log; the first is 1.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// What is to be applied.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    /// What the proposer wants to find beside it.
    #[prost(bytes = "bytes", tag = "6")]
    pub context: Bytes,
    /// Unused; kept for the wire.
    #[prost(bool, tag = "5")]
    pub sync_log: bool,
}

/// Where a snapshot stands.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SnapshotMetadata {
    /// The configuration at `index`.
    #[prost(message, optional, tag = "1")]
    pub conf_state: Option<ConfState>,
    /// The last index that the snapshot contains.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// The term of that index.
    #[prost(uint64, tag = "3")]
    pub term: u64,
}

/// A state that takes the place of the log up to an index.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Snapshot {
    /// Bytes of the application.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// Where it stands.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SnapshotMetadata>,
}

/// What one node says to another. Which fields mean something depends on `msg_type`.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Message {
    /// A [`MessageType`].
    #[prost(enumeration = "MessageType", tag = "1")]
    pub msg_type: i32,
    /// The receiver's raft id.
    #[prost(uint64, tag = "2")]
    pub to: u64,
    /// The sender's raft id.
    #[prost(uint64, tag = "3")]
    pub from: u64,
    /// The sender's term; 0 in local messages and in forwarded proposals.
    #[prost(uint64, tag = "4")]
    pub term: u64,
    /// The term of the entry at `index`.
    #[prost(uint64, tag = "5")]
    pub log_term: u64,
    /// The entry before `entries`, or the one that an answer is about.
    #[prost(uint64, tag = "6")]
    pub index: u64,
    /// Entries to append, to propose, or the context of a read.
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<Entry>,
    /// The sender's commit index, as far as the receiver may know it.
    #[prost(uint64, tag = "8")]
    pub commit: u64,
    /// The term of the entry at `commit`.
    #[prost(uint64, tag = "15")]
    pub commit_term: u64,
    /// The snapshot of a `MsgSnapshot`.
    #[prost(message, optional, tag = "9")]
    pub snapshot: Option<Snapshot>,
    /// The index from which a follower asks for a snapshot; 0 for none.
    #[prost(uint64, tag = "13")]
    pub request_snapshot: u64,
    /// Whether the answer is no.
    #[prost(bool, tag = "10")]
    pub reject: bool,
    /// Where the leader should try next.
    #[prost(uint64, tag = "11")]
    pub reject_hint: u64,
    /// The context of a read, or the kind of a campaign.
    #[prost(bytes = "bytes", tag = "12")]
    pub context: Bytes,
    /// The priority as versions before 0.7 read it.
    #[prost(uint64, tag = "14")]
    pub deprecated_priority: u64,
    /// The candidate's priority.
    #[prost(int64, tag = "16")]
    pub priority: i64,
}

/// What a node must remember over a restart, besides its log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct HardState {
    /// The highest term it has seen.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// Whom it voted for in that term; 0 for nobody.
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    /// The highest index it knows to be committed.
    #[prost(uint64, tag = "3")]
    pub commit: u64,
}

/// Who is a member. The lists are sets.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfState {
    /// The voters, or the incoming ones of a joint configuration.
    #[prost(uint64, repeated, tag = "1")]
    pub voters: Vec<u64>,
    /// The members without a vote.
    #[prost(uint64, repeated, tag = "2")]
    pub learners: Vec<u64>,
    /// The outgoing voters; empty unless the configuration is joint.
    #[prost(uint64, repeated, tag = "3")]
    pub voters_outgoing: Vec<u64>,
    /// Outgoing voters that become learners when the joint configuration is left.
    #[prost(uint64, repeated, tag = "4")]
    pub learners_next: Vec<u64>,
    /// Whether raft leaves the joint configuration by itself.
    #[prost(bool, tag = "5")]
    pub auto_leave: bool,
}

/// A change of one member, in the old form.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfChange {
    /// A [`ConfChangeType`].
    #[prost(enumeration = "ConfChangeType", tag = "2")]
    pub change_type: i32,
    /// The member.
    #[prost(uint64, tag = "3")]
    pub node_id: u64,
    /// What the proposer wants to find beside it.
    #[prost(bytes = "bytes", tag = "4")]
    pub context: Bytes,
    /// A number of the application.
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

/// A change of one member, as a part of a [`ConfChangeV2`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfChangeSingle {
    /// A [`ConfChangeType`].
    #[prost(enumeration = "ConfChangeType", tag = "1")]
    pub change_type: i32,
    /// The member.
    #[prost(uint64, tag = "2")]
    pub node_id: u64,
}

/// A change of any number of members at once; an empty one leaves a joint configuration.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfChangeV2 {
    /// A [`ConfChangeTransition`].
    #[prost(enumeration = "ConfChangeTransition", tag = "1")]
    pub transition: i32,
    /// The changes.
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<ConfChangeSingle>,
    /// What the proposer wants to find beside it.
    #[prost(bytes = "bytes", tag = "3")]
    pub context: Bytes,
}

/// Names in the form of rust-protobuf, by the kind of the field.
macro_rules! accessors {
    ($message:ty { $($kind:ident $field:ident: $type:ty => $($name:ident)+;)+ }) => {
        #[allow(missing_docs)]
        impl $message {
            $(accessors!(@$kind $field: $type => $($name)+);)+
        }
    };
    (@number $field:ident: $type:ty => $get:ident $set:ident) => {
        #[inline]
        pub fn $get(&self) -> $type {
            self.$field
        }
        #[inline]
        pub fn $set(&mut self, v: $type) {
            self.$field = v;
        }
    };
    // prost writes the setter.
    (@enumeration $field:ident: $type:ty => $get:ident) => {
        #[inline]
        pub fn $get(&self) -> $type {
            <$type>::try_from(self.$field).unwrap_or_default()
        }
    };
    (@bytes $field:ident: $type:ty => $get:ident $set:ident $mut:ident $take:ident) => {
        #[inline]
        pub fn $get(&self) -> &[u8] {
            &self.$field
        }
        #[inline]
        pub fn $set(&mut self, v: $type) {
            self.$field = v;
        }
        #[inline]
        pub fn $mut(&mut self) -> &mut $type {
            &mut self.$field
        }
        #[inline]
        pub fn $take(&mut self) -> $type {
            std::mem::take(&mut self.$field)
        }
    };
    (@list $field:ident: $type:ty => $get:ident $set:ident $mut:ident $take:ident) => {
        #[inline]
        pub fn $get(&self) -> &[$type] {
            &self.$field
        }
        #[inline]
        pub fn $set(&mut self, v: Vec<$type>) {
            self.$field = v;
        }
        #[inline]
        pub fn $mut(&mut self) -> &mut Vec<$type> {
            &mut self.$field
        }
        #[inline]
        pub fn $take(&mut self) -> Vec<$type> {
            std::mem::take(&mut self.$field)
        }
    };
    (@message $field:ident: $type:ty => $has:ident $get:ident $set:ident $mut:ident $take:ident) => {
        #[inline]
        pub fn $has(&self) -> bool {
            self.$field.is_some()
        }
        /// The message, or an empty one.
        #[inline]
        pub fn $get(&self) -> &$type {
            self.$field.as_ref().unwrap_or_else(|| <$type>::empty())
        }
        #[inline]
        pub fn $set(&mut self, v: $type) {
            self.$field = Some(v);
        }
        #[inline]
        pub fn $mut(&mut self) -> &mut $type {
            self.$field.get_or_insert_with(Default::default)
        }
        #[inline]
        pub fn $take(&mut self) -> $type {
            self.$field.take().unwrap_or_default()
        }
    };
}

accessors!(Entry {
    enumeration entry_type: EntryType => get_entry_type;
    number term: u64 => get_term set_term;
    number index: u64 => get_index set_index;
    bytes data: Bytes => get_data set_data mut_data take_data;
    bytes context: Bytes => get_context set_context mut_context take_context;
    number sync_log: bool => get_sync_log set_sync_log;
});

accessors!(SnapshotMetadata {
    message conf_state: ConfState =>
        has_conf_state get_conf_state set_conf_state mut_conf_state take_conf_state;
    number index: u64 => get_index set_index;
    number term: u64 => get_term set_term;
});

accessors!(Snapshot {
    bytes data: Bytes => get_data set_data mut_data take_data;
    message metadata: SnapshotMetadata =>
        has_metadata get_metadata set_metadata mut_metadata take_metadata;
});

accessors!(Message {
    enumeration msg_type: MessageType => get_msg_type;
    number to: u64 => get_to set_to;
    number from: u64 => get_from set_from;
    number term: u64 => get_term set_term;
    number log_term: u64 => get_log_term set_log_term;
    number index: u64 => get_index set_index;
    list entries: Entry => get_entries set_entries mut_entries take_entries;
    number commit: u64 => get_commit set_commit;
    number commit_term: u64 => get_commit_term set_commit_term;
    message snapshot: Snapshot => has_snapshot get_snapshot set_snapshot mut_snapshot take_snapshot;
    number request_snapshot: u64 => get_request_snapshot set_request_snapshot;
    number reject: bool => get_reject set_reject;
    number reject_hint: u64 => get_reject_hint set_reject_hint;
    bytes context: Bytes => get_context set_context mut_context take_context;
    number deprecated_priority: u64 => get_deprecated_priority set_deprecated_priority;
    number priority: i64 => get_priority set_priority;
});

accessors!(HardState {
    number term: u64 => get_term set_term;
    number vote: u64 => get_vote set_vote;
    number commit: u64 => get_commit set_commit;
});

accessors!(ConfState {
    list voters: u64 => get_voters set_voters mut_voters take_voters;
    list learners: u64 => get_learners set_learners mut_learners take_learners;
    list voters_outgoing: u64 =>
        get_voters_outgoing set_voters_outgoing mut_voters_outgoing take_voters_outgoing;
    list learners_next: u64 =>
        get_learners_next set_learners_next mut_learners_next take_learners_next;
    number auto_leave: bool => get_auto_leave set_auto_leave;
});

accessors!(ConfChange {
    enumeration change_type: ConfChangeType => get_change_type;
    number node_id: u64 => get_node_id set_node_id;
    bytes context: Bytes => get_context set_context mut_context take_context;
    number id: u64 => get_id set_id;
});

accessors!(ConfChangeSingle {
    enumeration change_type: ConfChangeType => get_change_type;
    number node_id: u64 => get_node_id set_node_id;
});

accessors!(ConfChangeV2 {
    enumeration transition: ConfChangeTransition => get_transition;
    list changes: ConfChangeSingle => get_changes set_changes mut_changes take_changes;
    bytes context: Bytes => get_context set_context mut_context take_context;
});

impl ConfState {
    fn empty() -> &'static ConfState {
        static EMPTY: ConfState = ConfState {
            voters: Vec::new(),
            learners: Vec::new(),
            voters_outgoing: Vec::new(),
            learners_next: Vec::new(),
            auto_leave: false,
        };
        &EMPTY
    }
}

impl SnapshotMetadata {
    fn empty() -> &'static SnapshotMetadata {
        static EMPTY: SnapshotMetadata = SnapshotMetadata {
            conf_state: None,
            index: 0,
            term: 0,
        };
        &EMPTY
    }
}

impl Snapshot {
    fn empty() -> &'static Snapshot {
        static EMPTY: Snapshot = Snapshot {
            data: Bytes::new(),
            metadata: None,
        };
        &EMPTY
    }

    /// Whether it stands nowhere. Raft starts at index 1, so index 0 is no snapshot.
    pub fn is_empty(&self) -> bool {
        self.get_metadata().index == 0
    }
}

impl Message {
    /// An enum number in the message or its entries that this version does not know, with the name of its field.
    ///
    /// The accessors read such a number as the enum's default, so an entry of an unknown type would be applied as an
    /// ordinary one. A receiver asks before it steps the message.
    pub fn unknown_enum(&self) -> Option<(&'static str, i32)> {
        if !MessageType::is_valid(self.msg_type) {
            return Some(("msg_type", self.msg_type));
        }
        self.entries
            .iter()
            .find(|e| !EntryType::is_valid(e.entry_type))
            .map(|e| ("entry_type", e.entry_type))
    }
}
