//! What a compaction removes from the tables.
//!
//! After a compaction at revision C the state at C and at every later revision stays readable. So of the events up to
//! C those go that another event up to C came after, and deletions before C. A deletion at C itself stays until the
//! next compaction, because a watcher may still start at C.
//!
//! The sweep walks the events from the last compaction to this one. Each names the event before it of the same key,
//! which it made superfluous, so nothing has to be searched, and the walk can stop and go on anywhere, also in another
//! process.

use crate::ids::{At, Revision};
use crate::mvcc::record::RecordRef;

/// What goes because of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    /// This event, which another one came after. It may be gone already.
    pub superseded: Option<At>,
    /// The event itself, and the key's row if the event is still the newest of the key.
    pub itself: bool,
}

/// What goes because of `event`, at a compaction at `compacted`. `None` when the event is after it, and with it all
/// that follow.
pub fn removal(event: &RecordRef<'_>, compacted: Revision) -> Option<Removal> {
    if event.at.main > compacted {
        return None;
    }
    Some(Removal { superseded: event.previous, itself: event.is_tombstone() && event.at.main < compacted })
}
