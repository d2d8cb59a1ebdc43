//! When history is compacted without anybody asking: etcd's two modes, on etcd's schedule.
//!
//! ```text
//!  periodic, T = 1 h    sample  0    6   12  …   54   60 ────────► compact to what was current at 0
//!                                                     120 ───────► compact to what was current at 54
//!  revision, N = 1000   every 5 min ─────────────────────────────► compact to the current revision less 1000
//! ```
//!
//! Every member samples, and only the leader compacts, so that a new leader need not wait for a whole period.
//!
//! Whether a compaction took place is read from the store at the next turn, and not reported: a proposal that got lost
//! and one that was refused look alike, and one that was overtaken by somebody else's compaction needs no retry.

use crate::ids::{Revision, Tick};
use std::collections::VecDeque;
use std::num::NonZeroU64;

/// In the mode by revision, how often history is looked at, in milliseconds.
const REVISION_INTERVAL_MILLIS: u64 = 5 * 60 * 1000;
/// In the periodic mode, the longest time between two compactions, in milliseconds.
const LONGEST_INTERVAL_MILLIS: u64 = 60 * 60 * 1000;
/// In the periodic mode, how many samples are taken between two compactions.
const SAMPLES: u64 = 10;

/// What to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// History of the last so many milliseconds, and up to a tenth of it or 6 minutes more.
    Period(NonZeroU64),
    /// So many revisions before the current one, and those of up to 5 minutes more.
    Revisions(NonZeroU64),
}

/// What the compactor looks at.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// The current revision of the store.
    pub current: Revision,
    /// Where history begins; `None` when it was never compacted.
    pub compacted: Option<Revision>,
    /// Whether this member leads, so that it may compact.
    pub leading: bool,
}

/// Decides when to compact, and to which revision.
#[derive(Debug)]
pub struct Compactor {
    schedule: Schedule,
    next_at: Tick,
    /// What was last asked for, and when; until the next turn tells whether it took place.
    asked: Option<(Revision, Tick)>,
    /// What was last asked for successfully, or found to be compacted already.
    done: Option<Revision>,
}

#[derive(Debug)]
enum Schedule {
    Periodic(Periodic),
    Revisions(NonZeroU64),
}

#[derive(Debug)]
struct Periodic {
    sample_millis: u64,
    /// What was current, the oldest first: one sample for every interval of the period, and one.
    samples: VecDeque<Revision>,
    most_samples: usize,
    /// When a compaction last succeeded, or the start.
    since: Tick,
    /// How long after that the next one is: the whole period for the first, at most an hour for the others.
    wait_millis: u64,
    interval_millis: u64,
}

impl Compactor {
    /// Starts counting at `now`, when `current` is the revision of the store.
    pub fn new(retention: Retention, now: Tick, current: Revision) -> Compactor {
        let (schedule, first_millis) = match retention {
            Retention::Revisions(revisions) => (Schedule::Revisions(revisions), REVISION_INTERVAL_MILLIS),
            Retention::Period(period) => {
                let interval_millis = period.get().min(LONGEST_INTERVAL_MILLIS);
                let sample_millis = (interval_millis / SAMPLES).max(1);
                let periodic = Periodic {
                    sample_millis,
                    samples: VecDeque::from([current]),
                    // A period that has more samples than memory has places cannot pass.
                    most_samples: usize::try_from(period.get() / sample_millis).unwrap_or(usize::MAX).saturating_add(1),
                    since: now,
                    wait_millis: period.get(),
                    interval_millis,
                };
                (Schedule::Periodic(periodic), sample_millis)
            }
        };
        Compactor { schedule, next_at: now.plus_millis(first_millis), asked: None, done: None }
    }

    /// When [`Compactor::turn`] next has something to do. A late or spurious turn is harmless.
    pub fn next_deadline(&self) -> Tick {
        self.next_at
    }

    /// Looks at the store, and gives the revision to compact to, if it is time. When that has not come about by the
    /// next turn, it is tried again then.
    pub fn turn(&mut self, now: Tick, view: View) -> Option<Revision> {
        if now < self.next_at {
            return None;
        }
        let is_compacted = |revision| view.compacted.is_some_and(|compacted| compacted >= revision);
        if let Some((revision, at)) = self.asked.take()
            && is_compacted(revision)
        {
            self.succeed(revision, at);
        }
        // Counted from now and not from when the turn should have been, so that a late one is not made up for.
        let target = match &mut self.schedule {
            Schedule::Revisions(revisions) => {
                self.next_at = now.plus_millis(REVISION_INTERVAL_MILLIS);
                view.current.0.checked_sub(revisions.get()).filter(|&target| target > 0).map(Revision)
            }
            Schedule::Periodic(periodic) => {
                self.next_at = now.plus_millis(periodic.sample_millis);
                periodic.sample(now, view.current)
            }
        };
        let target = target.filter(|&target| view.leading && self.done != Some(target))?;
        if let Schedule::Periodic(periodic) = &mut self.schedule {
            periodic.wait_millis = periodic.interval_millis;
        }
        if is_compacted(target) {
            self.succeed(target, now);
            return None;
        }
        self.asked = Some((target, now));
        Some(target)
    }

    fn succeed(&mut self, revision: Revision, at: Tick) {
        self.done = Some(revision);
        if let Schedule::Periodic(periodic) = &mut self.schedule {
            periodic.since = at;
        }
    }
}

impl Periodic {
    /// Takes a sample, and gives the oldest one before that when it is time to compact.
    fn sample(&mut self, now: Tick, current: Revision) -> Option<Revision> {
        let oldest = self.samples.front().copied();
        self.samples.push_back(current);
        if self.samples.len() > self.most_samples {
            self.samples.pop_front();
        }
        oldest.filter(|_| now.millis_since(self.since) >= self.wait_millis)
    }
}

#[cfg(test)]
mod tests;
