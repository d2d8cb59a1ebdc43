//! raft-rs' messages, written out for the prost release that the rest of e2d uses.
//!
//! raft 0.7.0 is built against this crate in the place of the published `raft-proto` 0.7.0. The wire format is the
//! same, field for field (`tests/wire.rs` holds the bytes). What differs:
//!
//! - Nothing is generated at build time, so no `protoc`.
//! - Entry data, contexts and snapshot data are [`bytes::Bytes`]: an entry that goes from a request to the log and to
//!   three peers is one allocation.
//! - An enum number that this version does not know reads as the enum's default instead of a panic. For
//!   [`eraftpb::MessageType`] that is `MsgHup`, which `RawNode::step` refuses as a local message. For entries and
//!   configuration changes the default is an ordinary one, so whoever takes messages from the network asks
//!   [`eraftpb::Message::unknown_enum`] first.

mod change;
pub mod eraftpb;

pub use change::{new_conf_change_single, parse_conf_change, stringify_conf_change, ConfChangeI};

/// The names most users of raft want.
pub mod prelude {
    pub use crate::eraftpb::{
        ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2,
        ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    };
}

/// Conversions.
pub mod util {
    use crate::eraftpb::ConfState;

    /// `(voters, learners)` is a configuration that is not joint.
    impl<V, L> From<(V, L)> for ConfState
    where
        V: IntoIterator<Item = u64>,
        L: IntoIterator<Item = u64>,
    {
        fn from((voters, learners): (V, L)) -> Self {
            ConfState {
                voters: voters.into_iter().collect(),
                learners: learners.into_iter().collect(),
                ..ConfState::default()
            }
        }
    }
}

/// Whether both name the same configuration. The lists are sets: raft-rs fills them from hash sets, in any order.
#[must_use]
pub fn conf_state_eq(a: &eraftpb::ConfState, b: &eraftpb::ConfState) -> bool {
    fn same_set(a: &[u64], b: &[u64]) -> bool {
        a == b || (a.iter().all(|id| b.contains(id)) && b.iter().all(|id| a.contains(id)))
    }
    a.auto_leave == b.auto_leave
        && same_set(&a.voters, &b.voters)
        && same_set(&a.learners, &b.learners)
        && same_set(&a.voters_outgoing, &b.voters_outgoing)
        && same_set(&a.learners_next, &b.learners_next)
}
