//! What the apply path tells watchers.

use crate::mvcc::record::Record;

/// One applied event.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The event.
    pub record: Record,
    /// The put that it replaced or deleted, if there was one and it is still known.
    pub previous: Option<Record>,
}
