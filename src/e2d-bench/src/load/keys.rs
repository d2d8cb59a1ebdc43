//! Keys and values, made before the measurement: a key of an operation is a slice, not an allocation.

use std::fmt::Write;

use bytes::Bytes;

/// Size of every value, the one that other published figures use.
pub(crate) const VALUE_BYTES: usize = 256;

/// Keys that exist: `prefix` and eight digits each.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    block: Bytes,
    width: usize,
    prefix: Bytes,
    end: Bytes,
}

impl Keys {
    /// The keys `0..count` below `prefix`.
    pub(crate) fn new(prefix: &'static str, count: usize) -> Self {
        let width = prefix.len() + 8;
        let mut block = String::with_capacity(width * count);
        for index in 0..count {
            push_key(&mut block, prefix, index);
        }
        Self {
            block: block.into(),
            width,
            prefix: prefix.into(),
            end: prefix_end(prefix),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.block.len() / self.width
    }

    /// Panics if `index` is not below [`Keys::len`].
    pub(crate) fn key(&self, index: usize) -> Bytes {
        self.block
            .slice(index * self.width..(index + 1) * self.width)
    }

    /// The index of a key of this set.
    pub(crate) fn index(&self, key: &[u8]) -> Option<usize> {
        let digits = std::str::from_utf8(key.strip_prefix(&self.prefix[..])?).ok()?;
        digits.parse().ok().filter(|index| *index < self.len())
    }

    pub(crate) fn prefix(&self) -> Bytes {
        self.prefix.clone()
    }

    /// The end of the range that holds exactly the keys with the prefix.
    pub(crate) fn end(&self) -> Bytes {
        self.end.clone()
    }
}

fn push_key(block: &mut String, prefix: &str, index: usize) {
    write!(block, "{prefix}{index:08}").expect("writing to a string cannot fail");
}

/// The smallest key above all keys with the prefix. The prefixes here end with `/`, never with 0xff.
pub(crate) fn prefix_end(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// Keys that no one has used, formatted a thousand at a time.
#[derive(Debug)]
pub(crate) struct FreshKeys {
    prefix: String,
    next: usize,
    block: Bytes,
}

impl FreshKeys {
    const AT_ONCE: usize = 1024;

    /// No two clients, and no two measurements on one store, may have the same `prefix`.
    pub(crate) fn new(prefix: String) -> Self {
        Self {
            prefix,
            next: 0,
            block: Bytes::new(),
        }
    }

    pub(crate) fn take(&mut self) -> Bytes {
        let width = self.prefix.len() + 8;
        if self.block.is_empty() {
            let mut block = String::with_capacity(width * Self::AT_ONCE);
            for index in self.next..self.next + Self::AT_ONCE {
                push_key(&mut block, &self.prefix, index);
            }
            self.next += Self::AT_ONCE;
            self.block = block.into();
        }
        self.block.split_to(width)
    }
}

/// Values of [`VALUE_BYTES`] that differ from each other and do not compress.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    block: Bytes,
}

impl Values {
    const OFFSETS: usize = 4096;

    pub(crate) fn new() -> Self {
        let mut random = Random::new(1);
        let block: Vec<u8> = (0..Self::OFFSETS + VALUE_BYTES)
            .map(|_| random.next() as u8)
            .collect();
        Self {
            block: block.into(),
        }
    }

    pub(crate) fn any(&self, random: &mut Random) -> Bytes {
        let offset = random.below(Self::OFFSETS);
        self.block.slice(offset..offset + VALUE_BYTES)
    }
}

/// A reproducible generator (splitmix64); nothing here needs more of it than speed and an even spread.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly below `bound`, which must not be zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn keys_know_their_index_and_lie_in_the_range() {
        let keys = Keys::new("/a/", 100);
        assert_eq!(keys.len(), 100);
        assert_eq!(&keys.key(42)[..], b"/a/00000042");
        for index in 0..keys.len() {
            let key = keys.key(index);
            assert_eq!(keys.index(&key), Some(index));
            assert!(keys.prefix() <= key && key < keys.end());
        }
        assert_eq!(keys.index(b"/a/00000100"), None);
        assert_eq!(keys.index(b"/b/00000001"), None);
    }

    #[test]
    fn fresh_keys_never_repeat() {
        let mut fresh = FreshKeys::new("/new/7/".into());
        let taken: BTreeSet<Bytes> = (0..3000).map(|_| fresh.take()).collect();
        assert_eq!(taken.len(), 3000);
        assert!(
            taken
                .iter()
                .all(|key| key.starts_with(b"/new/7/") && key.len() == 15)
        );
    }

    #[test]
    fn values_have_the_size_and_differ() {
        let (values, mut random) = (Values::new(), Random::new(9));
        let seen: BTreeSet<Bytes> = (0..100).map(|_| values.any(&mut random)).collect();
        assert!(seen.len() > 90);
        assert!(seen.iter().all(|value| value.len() == VALUE_BYTES));
    }

    #[test]
    fn random_numbers_stay_below_the_bound_and_reach_all_of_it() {
        let mut random = Random::new(3);
        let seen: BTreeSet<usize> = (0..1000).map(|_| random.below(10)).collect();
        assert_eq!(seen, (0..10).collect());
    }
}
