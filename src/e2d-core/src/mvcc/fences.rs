//! How many keys there are between any two, without walking over them.
//!
//! ```text
//!   ""        b/17       b/93       k           t/5
//!   ├── 311 ──┼── 480 ───┼── 260 ───┼── 502 ────┼── 12 ──►      fences: where a section starts, and its keys
//!        [b/05 ─────────────────────────── m)                   counted: the rest of 311, 480 + 260, a part of 502
//! ```
//!
//! Every answer to a range names the number of all its keys, however few it shows, so a page of a large list would
//! cost as much as the whole list. The fences are kept by whoever applies, at one revision, and are rows of the store
//! beside the keys, so that a start reads a thousandth of the keys and not all of them. Only the sections at both ends
//! of a range are walked.

use crate::ids::Revision;
use crate::mvcc::range::{KeyRange, RangeEnd};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// A section with more keys is split.
const LARGE: u64 = 512;

/// A fence is a beginning of a key, no longer than this: it need not be a key itself.
const LONGEST: usize = 200;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fences {
    /// Where each section starts, and how many keys it has. The first starts at the empty key.
    sections: BTreeMap<Bytes, u64>,
    /// What changed since it was last taken.
    changed: BTreeSet<Bytes>,
    total: u64,
    /// As of when.
    revision: Revision,
}

impl Default for Fences {
    fn default() -> Fences {
        Fences::load(Revision::INITIAL, [])
    }
}

/// What a count still needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Keys of whole sections.
    pub whole: u64,
    /// The parts of the range whose keys have to be counted one by one.
    pub parts: Vec<KeyRange>,
    /// The revision at which all this is so.
    pub revision: Revision,
}

impl Fences {
    /// The rows that the store kept.
    pub fn load(revision: Revision, rows: impl IntoIterator<Item = (Bytes, u64)>) -> Fences {
        let mut sections: BTreeMap<Bytes, u64> = rows.into_iter().collect();
        sections.entry(Bytes::new()).or_insert(0);
        let total = sections.values().sum();
        Fences { sections, changed: BTreeSet::new(), total, revision }
    }

    /// How many keys there are.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The revision that it speaks of.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// From here on it speaks of this revision.
    pub fn advance(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// A key began to exist. Says so when its section is large and should be split.
    pub fn created(&mut self, key: &[u8]) -> Option<KeyRange> {
        self.total += 1;
        let (start, count) = self.section_of(key);
        *count += 1;
        let large = *count > LARGE && count.is_multiple_of(LARGE / 4);
        self.changed.insert(start.clone());
        large.then(|| self.range_of(&start))
    }

    /// A key ceased to exist.
    pub fn deleted(&mut self, key: &[u8]) {
        self.total = self.total.saturating_sub(1);
        let (start, count) = self.section_of(key);
        *count = count.saturating_sub(1);
        // An empty section joins the one before it.
        if *count == 0 && !start.is_empty() {
            self.sections.remove(&start);
        }
        self.changed.insert(start);
    }

    /// Splits a section, whose keys at this fence's revision are given in order.
    pub fn split(&mut self, section: &KeyRange, keys: &[Bytes]) {
        let Some(middle) = keys.get(keys.len() / 2) else { return };
        let fence = Bytes::copy_from_slice(&middle[..middle.len().min(LONGEST)]);
        let below = keys.partition_point(|key| *key < fence) as u64;
        let Some(count) = self.sections.get_mut(&section.start) else { return };
        // Keys that all begin alike for long cannot be told apart by a fence; their section stays large.
        if fence <= section.start || below == 0 || *count != keys.len() as u64 {
            return;
        }
        *count = below;
        self.changed.insert(section.start.clone());
        self.changed.insert(fence.clone());
        self.sections.insert(fence, keys.len() as u64 - below);
    }

    /// What changed since the last call: where a section starts and its count, or `None` if it is no more.
    pub fn take_changed(&mut self) -> Vec<(Bytes, Option<u64>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|start| (start.clone(), self.sections.get(&start).copied())).collect()
    }

    /// What is needed to count the keys of a range.
    pub fn count(&self, range: &KeyRange) -> Count {
        let mut count = Count { whole: 0, parts: Vec::new(), revision: self.revision };
        if range.is_empty() {
            return count;
        }
        if range.is_single() {
            count.parts.push(range.clone());
            return count;
        }
        let first = self.sections.range::<[u8], _>((Bound::Unbounded, Bound::Included(&range.start[..]))).next_back();
        let from = first.map_or(&[][..], |(start, _)| &start[..]);
        let mut sections = self.sections.range::<[u8], _>((Bound::Included(from), Bound::Unbounded)).peekable();
        while let Some((start, keys)) = sections.next() {
            let next = sections.peek().map(|(next, _)| (*next).clone());
            if let RangeEnd::Before(end) = &range.end
                && start >= end
            {
                break;
            }
            let from_its_start = *range.start <= **start;
            let to_its_end = match (&range.end, &next) {
                (RangeEnd::Unbounded, _) => true,
                (RangeEnd::Before(end), Some(next)) => next <= end,
                (_, None) | (RangeEnd::Single, _) => false,
            };
            if from_its_start && to_its_end {
                count.whole += keys;
                continue;
            }
            let begin = if from_its_start { start.clone() } else { range.start.clone() };
            let end = match next {
                Some(next) if to_its_end => RangeEnd::Before(next),
                _ => range.end.clone(),
            };
            count.parts.push(KeyRange { start: begin, end });
        }
        count
    }

    fn section_of(&mut self, key: &[u8]) -> (Bytes, &mut u64) {
        let section = self.sections.range_mut::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        let (start, count) = section.unwrap_or_else(|| unreachable!("the first section starts at the empty key"));
        (start.clone(), count)
    }

    fn range_of(&self, start: &Bytes) -> KeyRange {
        let next = self.sections.range::<[u8], _>((Bound::Excluded(&start[..]), Bound::Unbounded)).next();
        let end = next.map_or(RangeEnd::Unbounded, |(next, _)| RangeEnd::Before(next.clone()));
        KeyRange { start: start.clone(), end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Applies a change as the owner of the fences does, with the keys themselves at hand.
    fn change(fences: &mut Fences, keys: &mut BTreeSet<Bytes>, key: Bytes, create: bool) {
        if create && keys.insert(key.clone()) {
            if let Some(section) = fences.created(&key) {
                let inside: Vec<_> = keys.iter().filter(|key| section.contains(key)).cloned().collect();
                fences.split(&section, &inside);
            }
        } else if !create && keys.remove(&key) {
            fences.deleted(&key);
        }
    }

    fn counted(fences: &Fences, keys: &BTreeSet<Bytes>, range: &KeyRange) -> u64 {
        let count = fences.count(range);
        count.whole + keys.iter().filter(|key| count.parts.iter().any(|part| part.contains(key))).count() as u64
    }

    #[test]
    fn a_large_store_is_counted_by_looking_at_two_sections() {
        let (mut fences, mut keys) = (Fences::default(), BTreeSet::new());
        for number in 0..20_000u64 {
            // Not in order.
            let key = format!("registry/{:06}", number * 7919 % 20_000);
            change(&mut fences, &mut keys, key.into(), true);
        }
        let range = KeyRange::from_wire("registry/000777".into(), "registry/015000".into());
        let count = fences.count(&range);
        assert_eq!(counted(&fences, &keys, &range), 15_000 - 777);
        let looked_at = keys.iter().filter(|key| count.parts.iter().any(|part| part.contains(key))).count();
        // A section is looked at for a split after every quarter more.
        assert!(looked_at <= 2 * (LARGE + LARGE / 4) as usize, "{looked_at} keys looked at");
        assert!(fences.sections.len() <= 20_000 / (LARGE as usize / 4));
        assert_eq!(fences.total(), 20_000);
    }

    #[test]
    fn the_rows_are_enough_to_go_on() {
        let (mut fences, mut keys) = (Fences::default(), BTreeSet::new());
        let mut rows = BTreeMap::new();
        for number in 0..5000u64 {
            change(&mut fences, &mut keys, format!("k{number:05}").into(), true);
            if number % 3 == 0 {
                change(&mut fences, &mut keys, format!("k{:05}", number / 2).into(), false);
            }
            if number % 100 == 0 {
                for (start, count) in fences.take_changed() {
                    match count {
                        Some(count) => rows.insert(start, count),
                        None => rows.remove(&start),
                    };
                }
                let loaded = Fences::load(fences.revision(), rows.clone());
                assert_eq!((&loaded.sections, loaded.total), (&fences.sections, fences.total));
            }
        }
    }

    #[test]
    fn keys_that_begin_alike_for_long_stay_in_one_section() {
        let (mut fences, mut keys) = (Fences::default(), BTreeSet::new());
        for number in 0..2000 {
            change(&mut fences, &mut keys, format!("{}{number}", "x".repeat(300)).into(), true);
        }
        assert_eq!(counted(&fences, &keys, &KeyRange::all()), 2000);
        assert!(fences.sections.len() <= 2);
    }

    proptest! {
        #[test]
        fn counts_are_those_of_the_keys(
            changes in prop::collection::vec((prop::collection::vec(0u8..4, 1..6), any::<bool>()), 0..3000),
            start in prop::collection::vec(0u8..4, 1..6),
            end in prop::collection::vec(0u8..4, 0..6),
        ) {
            let (mut fences, mut keys) = (Fences::default(), BTreeSet::new());
            for (key, create) in changes {
                change(&mut fences, &mut keys, Bytes::from(key), create);
            }
            for range in [KeyRange::from_wire(start.into(), end.into()), KeyRange::all()] {
                let expected = keys.iter().filter(|key| range.contains(key)).count() as u64;
                prop_assert_eq!(counted(&fences, &keys, &range), expected);
            }
            prop_assert_eq!(fences.total(), keys.len() as u64);
        }
    }
}
