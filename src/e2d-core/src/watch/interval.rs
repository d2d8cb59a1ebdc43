//! Which of many ranges hold a key.
//!
//! A treap ordered by where ranges start, in which every node knows the range of its subtree that ends last: a lookup
//! leaves out whole subtrees that end before the key, and everything that starts after it. Cutting the key space into
//! segments instead would be simpler and answer faster, but ten thousand ranges that overlap each other would take
//! the square of that in memory, and clients choose the ranges.

use crate::mvcc::range::{KeyRange, RangeEnd};
use bytes::Bytes;
use slab::Slab;
use std::cmp::Ordering;

const NONE: usize = usize::MAX;

/// Spans of keys, no two of them equal, each with a number. Single keys do not belong in here.
#[derive(Debug)]
pub(super) struct IntervalTree {
    nodes: Slab<Node>,
    root: usize,
    /// State of the generator that draws priorities. Always the same draw, so that runs repeat; only the shape of
    /// the tree depends on it, never an answer.
    draw: u64,
}

#[derive(Debug)]
struct Node {
    range: KeyRange,
    value: usize,
    priority: u64,
    left: usize,
    right: usize,
    /// The node of this subtree that ends last.
    longest: usize,
}

impl Default for IntervalTree {
    fn default() -> IntervalTree {
        IntervalTree { nodes: Slab::new(), root: NONE, draw: 0 }
    }
}

impl IntervalTree {
    /// The number of exactly this range.
    pub(super) fn get(&self, range: &KeyRange) -> Option<usize> {
        let mut at = self.root;
        while at != NONE {
            let node = &self.nodes[at];
            at = match order(range, &node.range) {
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
                Ordering::Equal => return Some(node.value),
            };
        }
        None
    }

    /// Adds a range that is not in the tree.
    pub(super) fn insert(&mut self, range: KeyRange, value: usize) {
        self.draw = self.draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let priority = mix(self.draw);
        let node = self.nodes.insert(Node { range, value, priority, left: NONE, right: NONE, longest: NONE });
        self.nodes[node].longest = node;
        self.root = self.insert_below(self.root, node);
    }

    /// Removes exactly this range, if it is there.
    pub(super) fn remove(&mut self, range: &KeyRange) {
        self.root = self.remove_below(self.root, range);
    }

    /// Appends the numbers of all ranges that hold `key`, in the order of the ranges.
    pub(super) fn stab(&self, key: &[u8], out: &mut Vec<usize>) {
        self.stab_below(self.root, key, out);
    }

    fn stab_below(&self, mut at: usize, key: &[u8], out: &mut Vec<usize>) {
        while at != NONE {
            let node = &self.nodes[at];
            if !ends_after(&self.nodes[node.longest].range.end, key) {
                return;
            }
            self.stab_below(node.left, key, out);
            if *node.range.start > *key {
                return;
            }
            if ends_after(&node.range.end, key) {
                out.push(node.value);
            }
            at = node.right;
        }
    }

    fn insert_below(&mut self, at: usize, node: usize) -> usize {
        if at == NONE {
            return node;
        }
        if self.nodes[node].priority > self.nodes[at].priority {
            let (left, right) = self.split(at, node);
            self.nodes[node].left = left;
            self.nodes[node].right = right;
            self.measure(node);
            return node;
        }
        if order(&self.nodes[node].range, &self.nodes[at].range) == Ordering::Less {
            self.nodes[at].left = self.insert_below(self.nodes[at].left, node);
        } else {
            self.nodes[at].right = self.insert_below(self.nodes[at].right, node);
        }
        self.measure(at);
        at
    }

    fn remove_below(&mut self, at: usize, range: &KeyRange) -> usize {
        if at == NONE {
            return NONE;
        }
        match order(range, &self.nodes[at].range) {
            Ordering::Less => self.nodes[at].left = self.remove_below(self.nodes[at].left, range),
            Ordering::Greater => self.nodes[at].right = self.remove_below(self.nodes[at].right, range),
            Ordering::Equal => {
                let node = self.nodes.remove(at);
                return self.merge(node.left, node.right);
            }
        }
        self.measure(at);
        at
    }

    /// Divides a subtree into what sorts before the node `pivot` and what sorts after it.
    fn split(&mut self, at: usize, pivot: usize) -> (usize, usize) {
        if at == NONE {
            return (NONE, NONE);
        }
        if order(&self.nodes[at].range, &self.nodes[pivot].range) == Ordering::Less {
            let (left, right) = self.split(self.nodes[at].right, pivot);
            self.nodes[at].right = left;
            self.measure(at);
            (at, right)
        } else {
            let (left, right) = self.split(self.nodes[at].left, pivot);
            self.nodes[at].left = right;
            self.measure(at);
            (left, at)
        }
    }

    /// Joins two subtrees of which the first sorts before the second.
    fn merge(&mut self, left: usize, right: usize) -> usize {
        if left == NONE {
            return right;
        }
        if right == NONE {
            return left;
        }
        let top = if self.nodes[left].priority > self.nodes[right].priority {
            self.nodes[left].right = self.merge(self.nodes[left].right, right);
            left
        } else {
            self.nodes[right].left = self.merge(left, self.nodes[right].left);
            right
        };
        self.measure(top);
        top
    }

    /// Finds anew which range of the subtree ends last, from what its children know.
    fn measure(&mut self, at: usize) {
        let mut longest = at;
        for child in [self.nodes[at].left, self.nodes[at].right] {
            if child != NONE {
                let candidate = self.nodes[child].longest;
                if end_order(&self.nodes[candidate].range.end, &self.nodes[longest].range.end) == Ordering::Greater {
                    longest = candidate;
                }
            }
        }
        self.nodes[at].longest = longest;
    }
}

fn order(left: &KeyRange, right: &KeyRange) -> Ordering {
    left.start.cmp(&right.start).then_with(|| end_order(&left.end, &right.end))
}

fn end_order(left: &RangeEnd, right: &RangeEnd) -> Ordering {
    rank(left).cmp(&rank(right))
}

/// Sorts as ends do: those before a key, by that key, and then no end at all.
fn rank(end: &RangeEnd) -> (bool, Option<&Bytes>) {
    match end {
        RangeEnd::Before(end) => (false, Some(end)),
        RangeEnd::Unbounded => (true, None),
        RangeEnd::Single => unreachable!("a single key is no span"),
    }
}

fn ends_after(end: &RangeEnd, key: &[u8]) -> bool {
    match end {
        RangeEnd::Before(end) => **end > *key,
        RangeEnd::Unbounded => true,
        RangeEnd::Single => unreachable!("a single key is no span"),
    }
}

/// The finisher of splitmix64: spreads a counter over all bits.
pub(super) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, end: Option<u64>) -> KeyRange {
        let key = |number: u64| Bytes::from(format!("{number:04}"));
        KeyRange { start: key(start), end: end.map_or(RangeEnd::Unbounded, |end| RangeEnd::Before(key(end))) }
    }

    #[test]
    fn a_lookup_finds_the_same_ranges_as_looking_at_each() {
        let mut tree = IntervalTree::default();
        let mut all: Vec<(KeyRange, usize)> = vec![];
        let mut random = 7;
        for step in 0..4000 {
            random = mix(random + 1);
            if random % 3 == 0 && !all.is_empty() {
                let (range, value) = all.swap_remove(random as usize / 3 % all.len());
                assert_eq!(tree.get(&range), Some(value));
                tree.remove(&range);
                assert_eq!(tree.get(&range), None);
            } else {
                let (start, length) = (random >> 8 & 1023, random >> 20 & 255);
                let range = span(start, (length != 0).then_some(start + length));
                if tree.get(&range).is_none() {
                    tree.insert(range.clone(), step);
                    all.push((range, step));
                }
            }
            let key = format!("{:04}", random >> 40 & 1023);
            let mut found = vec![];
            tree.stab(key.as_bytes(), &mut found);
            let mut expected: Vec<_> = all.iter().filter(|(range, _)| range.contains(key.as_bytes())).collect();
            expected.sort_by(|left, right| order(&left.0, &right.0));
            assert_eq!(found, expected.iter().map(|(_, value)| *value).collect::<Vec<_>>());
        }
        assert!(all.len() > 500, "the test is about a tree of some size");
    }
}
