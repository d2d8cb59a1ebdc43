//! What the log should be, as plain lists, and work that is done to both.

use proptest::prelude::*;
use raft::eraftpb::{ConfState, Entry, HardState};

use crate::disk::Rng;
use crate::wal::{Batch, LogAfter, Recovered, SnapshotMark, Wal, WalError};

/// An entry whose data follows from its index and term.
pub(super) fn entry(index: u64, term: u64, data_bytes: usize) -> Entry {
    let word = Rng::new((index << 16) | term).next_u64().to_le_bytes();
    let mut data = word.repeat(data_bytes.div_ceil(word.len()));
    data.truncate(data_bytes);
    Entry {
        index,
        term,
        data: data.into(),
        ..Entry::default()
    }
}

pub(super) fn hard_state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit }
}

pub(super) fn conf_state() -> ConfState {
    ConfState::from(([1, 2, 3], [4]))
}

pub(super) fn at(index: u64, term: u64) -> SnapshotMark {
    SnapshotMark {
        index,
        term,
        conf_state: conf_state(),
        log: LogAfter::Kept,
    }
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Model {
    /// All entries that may still be there; the first has index `base + 1`.
    entries: Vec<Entry>,
    base: u64,
    pub(super) hard_state: HardState,
    mark: SnapshotMark,
}

/// One thing that is done to the log. Numbers are brought into the range that makes sense when it is done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Op {
    /// Entries, `back` below the end, with the hard state if `commit` says so.
    Append {
        back: u64,
        sizes: Vec<usize>,
        new_term: bool,
        commit: Option<u64>,
    },
    /// A commit index alone.
    Commit(u64),
    /// A term and a vote.
    Vote(u64),
    /// A mark below the commit index.
    Mark(u64),
    /// A snapshot beyond the commit index, and entries behind it.
    Install {
        ahead: u64,
        entries: usize,
    },
    Release(u64),
    Seal,
    Reopen,
}

impl Op {
    pub(super) fn any() -> impl Strategy<Value = Op> {
        any::<u64>().prop_map(|seed| Op::random(&mut Rng::new(seed)))
    }

    pub(super) fn random(rng: &mut Rng) -> Op {
        match rng.below(16) {
            0..=6 => Op::Append {
                back: if rng.one_in(4) { rng.below(6) } else { 0 },
                sizes: (0..rng.below(4) + 1)
                    .map(|_| match rng.below(8) {
                        0 => rng.below(3000) as usize,
                        1..=3 => rng.below(400) as usize,
                        // Sizes that repeat, so that frames lie where earlier ones lay.
                        _ => 200,
                    })
                    .collect(),
                new_term: rng.one_in(3),
                commit: rng.one_in(2).then(|| rng.below(8)),
            },
            7 | 8 => Op::Commit(rng.below(10)),
            9 => Op::Vote(rng.below(3)),
            10 | 11 => Op::Mark(rng.below(10)),
            12 if rng.one_in(3) => Op::Install {
                ahead: rng.below(5),
                entries: rng.below(3) as usize,
            },
            12 | 13 => Op::Release(rng.below(20)),
            14 => Op::Seal,
            _ => Op::Reopen,
        }
    }

    /// Does it to the log, and to the model if the log says that it is done. `Reopen` is the caller's.
    pub(super) fn perform(&self, wal: &mut Wal, model: &mut Model) -> Result<(), WalError> {
        let mut next = model.clone();
        self.apply(&mut next, wal)?;
        *model = next;
        Ok(())
    }

    /// What the log is when this is done.
    pub(super) fn outcome(&self, model: &Model) -> Model {
        let mut next = model.clone();
        // Cannot fail: nothing is written.
        let _ = self.apply(&mut next, &mut Nowhere);
        next
    }

    fn apply(&self, model: &mut Model, to: &mut impl Target) -> Result<(), WalError> {
        match self {
            Op::Append {
                back,
                sizes,
                new_term,
                commit,
            } => {
                let first = (model.last() + 1)
                    .saturating_sub(*back)
                    .max(model.floor() + 1);
                let before = model.hard_state;
                // A conflict is one because the term differs.
                let new_term = *new_term || first <= model.last();
                model.hard_state.term = (model.hard_state.term + u64::from(new_term)).max(1);
                let term = model.hard_state.term;
                let entries: Vec<Entry> = (first..)
                    .zip(sizes)
                    .map(|(index, bytes)| entry(index, term, *bytes))
                    .collect();
                model.entries.truncate((first - 1 - model.base) as usize);
                model.entries.extend(entries.iter().cloned());
                if let Some(back) = commit {
                    let commit = model.last().saturating_sub(*back);
                    model.hard_state.commit = model.hard_state.commit.max(commit);
                }
                to.append(&Batch {
                    entries: &entries,
                    hard_state: (model.hard_state != before).then_some(&model.hard_state),
                    snapshot: None,
                })
            }
            Op::Commit(ahead) => {
                model.hard_state.commit = (model.hard_state.commit + ahead).min(model.last());
                to.append(&Batch {
                    hard_state: Some(&model.hard_state),
                    ..Batch::default()
                })
            }
            Op::Vote(vote) => {
                model.hard_state.term += 1;
                model.hard_state.vote = *vote;
                to.append(&Batch {
                    hard_state: Some(&model.hard_state),
                    ..Batch::default()
                })
            }
            Op::Mark(back) => {
                let index = model
                    .hard_state
                    .commit
                    .saturating_sub(*back)
                    .max(model.mark.index);
                model.mark = at(index, model.term(index).unwrap());
                to.append(&Batch {
                    snapshot: Some(&model.mark),
                    ..Batch::default()
                })
            }
            Op::Install { ahead, entries } => {
                let index = model.hard_state.commit.max(model.mark.index) + ahead + 1;
                model.hard_state.term += 1;
                model.hard_state.commit = index;
                model.mark = at(index, model.hard_state.term);
                model.base = index;
                model.entries = (index + 1..)
                    .take(*entries)
                    .map(|i| entry(i, model.hard_state.term, 100))
                    .collect();
                to.append(&Batch {
                    snapshot: Some(&SnapshotMark {
                        log: LogAfter::Discarded,
                        ..model.mark.clone()
                    }),
                    entries: &model.entries,
                    hard_state: Some(&model.hard_state),
                })
            }
            Op::Release(back) => to.release(model.mark.index.saturating_sub(*back)),
            Op::Seal => to.seal(),
            Op::Reopen => Ok(()),
        }
    }
}

trait Target {
    fn append(&mut self, batch: &Batch<'_>) -> Result<(), WalError>;
    fn release(&mut self, upto: u64) -> Result<(), WalError>;
    fn seal(&mut self) -> Result<(), WalError>;
}

impl Target for Wal {
    fn append(&mut self, batch: &Batch<'_>) -> Result<(), WalError> {
        Wal::append(self, batch)
    }
    fn release(&mut self, upto: u64) -> Result<(), WalError> {
        Wal::release(self, upto).map(|_| ())
    }
    fn seal(&mut self) -> Result<(), WalError> {
        Wal::seal(self)
    }
}

struct Nowhere;

impl Target for Nowhere {
    fn append(&mut self, _: &Batch<'_>) -> Result<(), WalError> {
        Ok(())
    }
    fn release(&mut self, _: u64) -> Result<(), WalError> {
        Ok(())
    }
    fn seal(&mut self) -> Result<(), WalError> {
        Ok(())
    }
}

impl Model {
    fn last(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// Nothing up to here may be replaced.
    fn floor(&self) -> u64 {
        self.hard_state.commit.max(self.mark.index)
    }

    fn term(&self, index: u64) -> Option<u64> {
        match index.checked_sub(self.base + 1) {
            Some(i) => Some(self.entries.get(i as usize)?.term),
            None if index == self.mark.index => Some(self.mark.term),
            None => None,
        }
    }

    fn from(&self, index: u64) -> &[Entry] {
        &self.entries[(index - 1 - self.base) as usize..]
    }

    /// The log has the model's entries, from the first it still has.
    pub(super) fn assert_same(&self, wal: &Wal) {
        self.assert_same_log(wal);
        assert_eq!(wal.hard_state(), self.hard_state);
    }

    fn assert_same_log(&self, wal: &Wal) {
        let reader = wal.reader();
        let (first, last) = (wal.first_index(), wal.last_index());
        assert_eq!(last, self.last());
        assert!(
            first <= self.mark.index + 1,
            "{first} is the first, mark {}",
            self.mark.index
        );
        assert_eq!(
            reader.entries(first, last + 1, u64::MAX).unwrap(),
            self.from(first)
        );
        for index in first..=last {
            assert_eq!(reader.term(index), self.term(index));
        }
        assert_eq!(reader.snapshot(), self.mark);
        assert_eq!(reader.term(self.mark.index), Some(self.mark.term));
    }

    /// The log that was opened has what the model has; the commit index may be older.
    pub(super) fn assert_recovered(&self, wal: &Wal, recovered: &Recovered) {
        self.assert_same_log(wal);
        assert_eq!(recovered.entries, self.from(self.mark.index + 1));
        assert_eq!(recovered.snapshot, self.mark);
        assert_eq!(recovered.hard_state, wal.hard_state());
        assert!(self.has_hard_state(&recovered.hard_state));
    }

    fn has_hard_state(&self, found: &HardState) -> bool {
        (found.term, found.vote) == (self.hard_state.term, self.hard_state.vote)
            && found.commit <= self.hard_state.commit
    }

    /// Whether the log that was opened is this one, as far as it can be told without reading its entries twice.
    pub(super) fn is(&self, wal: &Wal, recovered: &Recovered) -> bool {
        wal.last_index() == self.last()
            && recovered.snapshot == self.mark
            && self.has_hard_state(&recovered.hard_state)
            && recovered.entries == self.from(self.mark.index + 1)
    }
}
