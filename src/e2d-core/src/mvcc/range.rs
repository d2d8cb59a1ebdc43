//! The keys that a request speaks of.

use bytes::Bytes;
use std::ops::Bound;

/// A range as the ordered maps of the standard library take it.
pub type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// A single key, or all keys from one to before another, or all keys from one on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key.
    pub start: Bytes,
    /// Where it ends.
    pub end: RangeEnd,
}

/// The end of a [`KeyRange`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RangeEnd {
    /// The range is its start alone.
    Single,
    /// All keys from the start to before this one. A range whose end is not after its start is empty.
    Before(Bytes),
    /// All keys from the start on.
    Unbounded,
}

impl KeyRange {
    /// etcd's pair: an empty `range_end` means the key alone, a single zero byte means every key from `key` on.
    pub fn from_wire(key: Bytes, range_end: Bytes) -> KeyRange {
        let end = match &range_end[..] {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            _ => RangeEnd::Before(range_end),
        };
        KeyRange { start: key, end }
    }

    /// The pair that [`KeyRange::from_wire`] reads.
    pub fn to_wire(&self) -> (Bytes, Bytes) {
        let end = match &self.end {
            RangeEnd::Single => Bytes::new(),
            RangeEnd::Before(end) => end.clone(),
            RangeEnd::Unbounded => Bytes::from_static(&[0]),
        };
        (self.start.clone(), end)
    }

    /// One key.
    pub fn single(key: Bytes) -> KeyRange {
        KeyRange { start: key, end: RangeEnd::Single }
    }

    /// Every key there is.
    pub fn all() -> KeyRange {
        KeyRange { start: Bytes::new(), end: RangeEnd::Unbounded }
    }

    /// Whether this is one key rather than a span of them.
    pub fn is_single(&self) -> bool {
        self.end == RangeEnd::Single
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if *end <= self.start)
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => self.start == key,
            RangeEnd::Before(end) => *self.start <= *key && *key < **end,
            RangeEnd::Unbounded => *self.start <= *key,
        }
    }

    /// Whether some key could be in both.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        if self.is_empty() || other.is_empty() {
            return false;
        }
        self.reaches(&other.start) && other.reaches(&self.start)
    }

    /// Whether the range ends after `key`, or at it.
    fn reaches(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => *key <= *self.start,
            RangeEnd::Before(end) => *key < **end,
            RangeEnd::Unbounded => true,
        }
    }

    /// The same range for the ordered maps of the standard library. Empty ranges, on which those maps panic, give
    /// `None`.
    pub fn bounds(&self) -> Option<Bounds<'_>> {
        if self.is_empty() {
            return None;
        }
        Some(match &self.end {
            RangeEnd::Single => (Bound::Included(&self.start), Bound::Included(&self.start)),
            RangeEnd::Before(end) => (Bound::Included(&self.start), Bound::Excluded(end)),
            RangeEnd::Unbounded => (Bound::Included(&self.start), Bound::Unbounded),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static str, end: &'static str) -> KeyRange {
        KeyRange::from_wire(Bytes::from_static(key.as_bytes()), Bytes::from_static(end.as_bytes()))
    }

    #[test]
    fn a_range_holds_what_etcd_says_it_holds() {
        assert!(range("a", "").contains(b"a") && !range("a", "").contains(b"b"));
        assert!(range("a", "c").contains(b"a") && range("a", "c").contains(b"bzz"));
        assert!(!range("a", "c").contains(b"c") && !range("b", "c").contains(b"a"));
        assert!(range("a", "\0").contains(b"zzz") && !range("b", "\0").contains(b"a"));
        assert!(range("\0", "\0").contains(b"\0") && range("\0", "\0").contains(b"a"));
        assert!(range("c", "a").is_empty() && range("a", "a").is_empty() && !range("a", "").is_empty());
    }

    #[test]
    fn overlap_is_symmetric_and_agrees_with_membership() {
        let ranges = [
            range("a", ""),
            range("b", ""),
            range("a", "b"),
            range("a", "c"),
            range("b", "d"),
            range("c", "d"),
            range("b", "\0"),
            range("d", "\0"),
            range("c", "a"),
            range("bb", ""),
            range("a\0", "b"),
        ];
        let keys: Vec<&[u8]> = vec![b"a", b"a\0", b"a\x01", b"b", b"bb", b"c", b"cc", b"d", b"e", b"zz"];
        for left in &ranges {
            for right in &ranges {
                let shared = keys.iter().any(|key| left.contains(key) && right.contains(key));
                assert_eq!(left.overlaps(right), shared, "{left:?} {right:?}");
                assert_eq!(left.overlaps(right), right.overlaps(left));
            }
        }
    }

    #[test]
    fn the_wire_form_comes_back() {
        for pair in [("a", ""), ("a", "b"), ("a", "\0"), ("\0", "\0")] {
            let (key, end) = range(pair.0, pair.1).to_wire();
            assert_eq!((&key[..], &end[..]), (pair.0.as_bytes(), pair.1.as_bytes()));
        }
    }
}
