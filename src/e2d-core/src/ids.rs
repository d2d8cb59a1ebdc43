//! Numbers that must not be swapped, each with what it counts.
//!
//! On the wire a revision of 0 means "latest" and a lease of 0 means "none". In here these are `Option`s; the raw
//! numbers live in generated protobuf and in the row codecs alone.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $format, ")"), self.0)
            }
        }
    };
}

number! {
    /// Counts the changes of the key space: one for each applied request that changed at least one key. A store
    /// that was never written to is at 1. Never goes back.
    Revision(u64), "{}"
}
number! {
    /// Position in the raft log. 0 is before the first entry.
    LogIndex(u64), "{}"
}
number! {
    /// Raft term. 0 is before the first election.
    Term(u64), "{}"
}
number! {
    /// A member, for its whole life: random, persistent, never an address and never reused. Never 0.
    MemberId(u64), "{:x}"
}
number! {
    /// A cluster: random, chosen once when it forms. Never 0.
    ClusterId(u64), "{:x}"
}
number! {
    /// A lease. Clients may choose any number but 0, negative ones included.
    LeaseId(i64), "{:016x}"
}
number! {
    /// Milliseconds since an arbitrary start, monotonic, the same start for the life of a process. The only time
    /// that the rules know.
    Tick(u64), "{}ms"
}

impl Revision {
    /// The revision of a store that was never written to.
    pub const INITIAL: Revision = Revision(1);

    /// The revision after this one.
    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }
}

impl Tick {
    /// This moment, `millis` later.
    pub fn plus_millis(self, millis: u64) -> Tick {
        Tick(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` until this moment; 0 when it is not earlier.
    pub fn millis_since(self, earlier: Tick) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Where an event stands in history: the revision of its request, and its place among the events of that request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct At {
    /// The revision that the whole request has.
    pub main: Revision,
    /// Counts the events of one request from 0.
    pub sub: u32,
}

impl At {
    /// The first possible place of a revision.
    pub fn start_of(main: Revision) -> At {
        At { main, sub: 0 }
    }

    /// The next possible place.
    pub fn after(self) -> At {
        At { main: self.main, sub: self.sub.saturating_add(1) }
    }

    /// The length of [`At::to_bytes`].
    pub const LEN: usize = 12;

    /// Big-endian, so that bytes sort as places do.
    pub fn to_bytes(self) -> [u8; At::LEN] {
        let mut bytes = [0; At::LEN];
        bytes[..8].copy_from_slice(&self.main.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sub.to_be_bytes());
        bytes
    }

    /// Reads what [`At::to_bytes`] wrote; `None` when the length is another.
    pub fn from_bytes(bytes: &[u8]) -> Option<At> {
        let (main, sub) = bytes.split_at_checked(8)?;
        Some(At {
            main: Revision(u64::from_be_bytes(main.try_into().ok()?)),
            sub: u32::from_be_bytes(sub.try_into().ok()?),
        })
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main.0, self.sub)
    }
}

impl fmt::Debug for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "At({self})")
    }
}
