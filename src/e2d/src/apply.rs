//! The apply path: committed entries, in order, into the key space.
//!
//! One thread. It reads a batch from consensus, applies every entry, publishes the revision, and only then answers
//! clients and tells watchers: nobody hears of a change that a reader could miss. What applying means is
//! `e2d_core::mvcc::machine`.

use crate::clock::ticks_since;
use crate::consensus::{Inbox, Input, Pending, State};
use crate::metrics::{ApplyOp, Metrics};
use crate::store::{AppliedState, Flusher, Store};
use bytes::Bytes;
use e2d_core::alarm::Alarm;
use e2d_core::ids::{LogIndex, MemberId, Term, Tick};
use e2d_core::lease::Lessor;
use e2d_core::mvcc::change::Change;
use e2d_core::mvcc::codec::BadCommand;
use e2d_core::mvcc::machine::{EntryContext, Machine};
use e2d_core::mvcc::request::{Answer, Command, Request, Response};
use e2d_core::mvcc::view::{StoreError, View};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A committed entry.
pub struct Committed {
    /// Where it is in the log.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// The command in it; `None` for a leader's first entry and for a change of configuration.
    pub command: Option<Bytes>,
    /// The configuration from this entry on, where it changes.
    pub conf_state: Option<Bytes>,
}

/// The answer to a request, and the entry that it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// The entry.
    pub index: LogIndex,
    /// The answer.
    pub answer: Answer,
}

/// Who wants to hear of changes. Called on the apply thread: it must only take note.
pub trait Changes: Send {
    /// All changes of a batch, in order; every revision is whole.
    fn publish(&self, changes: Vec<Change>);
}

/// Committed entries on their way from consensus to apply.
#[derive(Default)]
pub struct ApplyQueue {
    state: Mutex<Queue>,
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    entries: Vec<Committed>,
    asleep: bool,
    closed: bool,
}

impl ApplyQueue {
    /// Adds entries. Their number is bounded by consensus, which refuses proposals when too many wait.
    pub fn push(&self, entries: Vec<Committed>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.entries.is_empty() {
            state.entries = entries;
        } else {
            state.entries.extend(entries);
        }
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.arrived.notify_one();
        }
    }

    /// Nothing more will come.
    pub fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.arrived.notify_all();
    }

    /// Everything that waits; nothing when `deadline` passes first; `None` once it is closed and empty.
    fn take(&self, deadline: Option<Instant>) -> Option<Vec<Committed>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if !state.entries.is_empty() {
                return Some(std::mem::take(&mut state.entries));
            }
            if state.closed {
                return None;
            }
            state.asleep = true;
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => {
                    state.asleep = false;
                    return Some(Vec::new());
                }
                Some(left) => self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.asleep = false;
        }
    }
}

/// When what was applied is committed to the tables.
#[derive(Clone, Copy, Debug)]
pub struct FlushPolicy {
    /// So long after the first change that is not in the tables.
    pub after: Duration,
    /// As soon as the memtable has so many bytes.
    pub bytes: usize,
    /// Applying waits for the disk when it has so many.
    pub bytes_at_most: usize,
}

impl Default for FlushPolicy {
    fn default() -> FlushPolicy {
        FlushPolicy { after: Duration::from_millis(100), bytes: 8 << 20, bytes_at_most: 32 << 20 }
    }
}

/// The apply thread's belongings.
pub struct Applier {
    /// This member.
    pub member: MemberId,
    /// Where the entries come from.
    pub queue: Arc<ApplyQueue>,
    /// The rules.
    pub machine: Machine,
    /// What they are applied to.
    pub store: Store,
    /// What commits them.
    pub flusher: Arc<Flusher>,
    /// When.
    pub flush: FlushPolicy,
    /// How far the log is applied.
    pub applied: AppliedState,
    /// Who hears of it.
    pub announce: watch::Sender<LogIndex>,
    /// Who waits for answers.
    pub pending: Arc<Pending>,
    /// Consensus, which wants to know when a term's first entry is applied.
    pub inbox: Arc<Inbox>,
    /// Who leads.
    pub state: Arc<State>,
    /// The leases, which a leader counts.
    pub lessor: Arc<Mutex<Lessor>>,
    /// The alarms, for those who only look.
    pub alarms: Arc<Mutex<Vec<Alarm>>>,
    /// Who hears of changes.
    pub changes: Box<dyn Changes>,
    /// The start of the process' time.
    pub started: Instant,
    /// What a new leader adds to every lease: holders could not reach a leader for that long.
    pub election_millis: u64,
    /// An entry that takes longer is warned about.
    pub warn_after: Duration,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Why applying ended.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An entry makes no sense.
    #[error("log entry {index}: {cause}")]
    Entry {
        /// Which.
        index: LogIndex,
        /// Why.
        cause: BadCommand,
    },
}

impl Applier {
    /// Runs until the queue is closed and empty, then commits what is left.
    pub fn run(mut self) -> Result<(), Failed> {
        let mut flush_at: Option<Instant> = None;
        while let Some(batch) = self.queue.take(flush_at) {
            if !batch.is_empty() {
                self.apply_batch(batch)?;
                flush_at = flush_at.or_else(|| Some(Instant::now() + self.flush.after));
            }
            let bytes = self.store.layers().active.bytes();
            if flush_at.is_some_and(|at| Instant::now() >= at) || bytes >= self.flush.bytes {
                if self.freeze() {
                    flush_at = None;
                } else if bytes >= self.flush.bytes_at_most {
                    self.wait_for_flush();
                } else {
                    // The disk is busy with the one before. Look again soon, or when something comes in.
                    flush_at = Some(Instant::now() + Duration::from_millis(5));
                }
            }
        }
        while !self.store.layers().active.is_empty() || self.store.layers().frozen.is_some() {
            self.freeze();
            self.wait_for_flush();
        }
        Ok(())
    }

    fn freeze(&mut self) -> bool {
        let frozen = self.store.freeze(&self.applied, self.machine.published().revision);
        if frozen {
            self.flusher.flush();
        }
        frozen
    }

    fn wait_for_flush(&self) {
        while self.store.layers().frozen.is_some() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn apply_batch(&mut self, batch: Vec<Committed>) -> Result<(), Failed> {
        let mut began = Instant::now();
        let mut changes = Vec::new();
        let mut answers = Vec::with_capacity(batch.len());
        let mut first_of_term = None;
        let mut alarms_changed = false;
        let compacted = self.machine.published().compacted;
        {
            let layers = self.store.layers();
            let snapshot = self.store.snapshot();
            let view = View::new(layers, &snapshot);
            for entry in batch {
                assert_eq!(entry.index.0, self.applied.index.0 + 1, "the log has a hole");
                match entry.command {
                    Some(bytes) => {
                        let command =
                            Command::decode(bytes).map_err(|cause| Failed::Entry { index: entry.index, cause })?;
                        let context = EntryContext { index: entry.index, term: entry.term, now: self.now() };
                        let op = op_of(&command.request);
                        let answer = self.machine.apply(&view, command.request, context, &mut changes)?;
                        let ended = Instant::now();
                        let took = ended.duration_since(began);
                        let seconds = took.as_secs_f64();
                        if took > self.warn_after {
                            self.metrics.server.slow_apply.inc();
                            tracing::warn!(
                                index = entry.index.0,
                                request = ?op,
                                milliseconds = took.as_millis() as u64,
                                expected_milliseconds = self.warn_after.as_millis() as u64,
                                "applying an entry took long"
                            );
                        }
                        self.metrics.server.apply_seconds(op, answer.outcome.is_ok()).observe(seconds);
                        began = ended;
                        alarms_changed |= matches!(answer.outcome, Ok(Response::Alarms(_)));
                        if command.origin == self.member {
                            answers.push((command.id, Answered { index: entry.index, answer }));
                        }
                    }
                    None if entry.conf_state.is_none() => first_of_term = Some(entry.term),
                    None => {}
                }
                self.applied.index = entry.index;
                self.applied.term = entry.term;
                if let Some(conf_state) = entry.conf_state {
                    self.applied.conf_state = conf_state;
                }
            }
        }
        if alarms_changed {
            *self.alarms.lock().unwrap_or_else(PoisonError::into_inner) = self.machine.alarms().get(None).collect();
        }
        if let Some(term) = first_of_term
            && self.state.leads_in(self.member, term)
        {
            // Everything that former leaders committed is applied now.
            let mut lessor = self.lessor.lock().unwrap_or_else(PoisonError::into_inner);
            lessor.promote(self.now(), self.election_millis);
        }
        // Readers first, then those who would read because of what they hear.
        let published = self.machine.published();
        self.store.publish(published, &changes)?;
        let _ = self.announce.send_replace(self.applied.index);
        if !changes.is_empty() {
            self.metrics.mvcc.events.inc_by(changes.len() as u64);
            self.changes.publish(changes);
        }
        if published.compacted != compacted {
            self.flusher.compact();
        }
        let waiters = self.pending.take(answers.iter().map(|(id, _)| *id));
        for ((_, answer), waiter) in answers.into_iter().zip(waiters) {
            if let Some(waiter) = waiter {
                // Whoever gave up waiting is not told.
                let _ = waiter.send(Ok(answer));
            }
        }
        if first_of_term.is_some() {
            self.inbox.push(Input::FirstOfTermApplied);
        }
        Ok(())
    }

    fn now(&self) -> Tick {
        ticks_since(self.started)
    }
}

/// The name that etcd's metrics have for a request.
fn op_of(request: &Request) -> ApplyOp {
    match request {
        Request::Put(_) => ApplyOp::Put,
        Request::DeleteRange(_) => ApplyOp::DeleteRange,
        Request::Txn(_) => ApplyOp::Txn,
        Request::Compact(_) => ApplyOp::Compaction,
        Request::LeaseGrant { .. } => ApplyOp::LeaseGrant,
        Request::LeaseRevoke(_) | Request::LeaseExpire { .. } => ApplyOp::LeaseRevoke,
        Request::LeaseCheckpoint { .. } => ApplyOp::LeaseCheckpoint,
        Request::AlarmActivate(_) | Request::AlarmDeactivate(_) | Request::AlarmGet(_) => ApplyOp::Alarm,
        Request::MemberPublish { .. } => ApplyOp::ClusterMemberAttrSet,
    }
}
