//! What one applied event is to whoever has to be told of it.

use super::record::Record;

/// One applied event. All changes of one revision are handed over together, in the order of `record`'s place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The event.
    pub record: Record,
    /// What the key was before the revision of the event, for watchers that ask for the previous key-value.
    pub previous: Option<Record>,
}
