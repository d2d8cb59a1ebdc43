//! Watchers by what they watch: those of one key, those of one range.

use super::interval::IntervalTree;
use crate::mvcc::range::KeyRange;
use bytes::Bytes;
use slab::Slab;
use std::collections::BTreeMap;

/// Groups of watchers. All watchers of a group watch exactly the same key or range.
#[derive(Debug, Default)]
pub(super) struct Index {
    groups: Slab<Vec<usize>>,
    keys: BTreeMap<Bytes, usize>,
    spans: IntervalTree,
}

impl Index {
    /// Adds a watcher to the group of its range, and says which that is.
    pub(super) fn insert(&mut self, range: &KeyRange, watcher: usize) -> usize {
        let group = match self.find(range) {
            Some(group) => group,
            None => {
                let group = self.groups.insert(Vec::new());
                if range.is_single() {
                    self.keys.insert(range.start.clone(), group);
                } else {
                    self.spans.insert(range.clone(), group);
                }
                group
            }
        };
        let members = &mut self.groups[group];
        if let Err(place) = members.binary_search(&watcher) {
            members.insert(place, watcher);
        }
        group
    }

    /// Takes a watcher out of the group of its range.
    pub(super) fn remove(&mut self, range: &KeyRange, watcher: usize) {
        let Some(group) = self.find(range) else { return };
        let members = &mut self.groups[group];
        if let Ok(place) = members.binary_search(&watcher) {
            members.remove(place);
        }
        if members.is_empty() {
            self.groups.remove(group);
            if range.is_single() {
                self.keys.remove(&range.start);
            } else {
                self.spans.remove(range);
            }
        }
    }

    /// Appends the groups whose range holds `key`: always in the same order for the same groups.
    pub(super) fn stab(&self, key: &[u8], out: &mut Vec<usize>) {
        out.extend(self.keys.get(key));
        self.spans.stab(key, out);
    }

    /// The watchers of a group, in ascending order.
    pub(super) fn members(&self, group: usize) -> &[usize] {
        &self.groups[group]
    }

    fn find(&self, range: &KeyRange) -> Option<usize> {
        if range.is_single() { self.keys.get(&range.start).copied() } else { self.spans.get(range) }
    }
}
