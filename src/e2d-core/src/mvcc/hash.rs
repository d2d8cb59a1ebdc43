//! A hash of the key space that is equal on all members which hold the same.
//!
//! It covers every event that is still readable at the compacted revision, up to the revision that is asked for, in
//! order. Whether a compaction has removed the others yet makes no difference: events that it will remove are left
//! out, so members may be asked at any time.

use crate::ids::{At, Revision};
use crate::mvcc::memtable::Published;
use crate::mvcc::record::RecordRef;
use crate::mvcc::view::{StoreError, Tables, View};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash {
    /// CRC-32C.
    pub value: u32,
    /// Up to which revision.
    pub revision: Revision,
    /// From which one on.
    pub compacted: Option<Revision>,
}

impl Hash {
    /// Hashes the events up to `revision`, which is readable. Compactions have removed what they can before `swept`.
    pub fn of<T: Tables>(
        view: &View<'_, T>,
        published: Published,
        swept: Revision,
        revision: Revision,
    ) -> Result<Hash, StoreError> {
        let compacted = published.compacted.unwrap_or_default();
        // What the events up to the compaction made superfluous and no sweep has removed.
        let mut superseded = BTreeSet::new();
        view.events(swept, &mut |event| {
            if event.at.main > compacted {
                return ControlFlow::Break(());
            }
            superseded.extend(event.previous);
            ControlFlow::Continue(())
        })?;
        let mut value = crc32c::crc32c(b"key");
        view.events(Revision(0), &mut |event| {
            if event.at.main > revision {
                return ControlFlow::Break(());
            }
            if event.at.main > compacted || (!event.is_tombstone() && !superseded.contains(&event.at)) {
                value = add(value, event);
            }
            ControlFlow::Continue(())
        })?;
        Ok(Hash { value, revision, compacted: published.compacted })
    }
}

/// A deletion at the compacted revision is left out: whether it is there depends on the compaction before.
fn add(value: u32, event: &RecordRef<'_>) -> u32 {
    let place: [u8; At::LEN] = event.at.to_bytes();
    let value = crc32c::crc32c_append(value, &place);
    let value = crc32c::crc32c_append(value, &[u8::from(event.is_tombstone())]);
    crc32c::crc32c_append(value, event.key_value())
}
