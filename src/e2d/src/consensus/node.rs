//! The thread.

use super::inbox::Inbox;
use super::pending::Pending;
use super::raft_log::RaftLog;
use super::{Handle, Input, State, Unavailable};
use crate::apply::ApplyQueue;
use crate::metrics;
use crate::wal::{Batch, LogAfter, SnapshotMark, Wal, WalError};
use e2d_core::ids::{LogIndex, MemberId, Term};
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType};
use raft::{Config, RawNode, ReadOnlyOption, ReadState, StateRole};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// What consensus is told once.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// This member.
    pub member: MemberId,
    /// The time between two ticks.
    pub heartbeat: Duration,
    /// The time without a leader after which a member stands for election.
    pub election: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// Entries behind the last mark before the log is shortened.
    pub snapshot_entries: u64,
    /// Entries that stay in the log for members that are a little behind.
    pub catchup_entries: u64,
    /// Where the numbers of read rounds start; random.
    pub first_round: u64,
}

/// Why the thread ended.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The log cannot be written or read.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// Raft refuses.
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    /// An entry cannot be read.
    #[error("log entry {index} cannot be read: {cause}")]
    Entry {
        /// Which.
        index: u64,
        /// Why.
        cause: prost::DecodeError,
    },
}

impl Failed {
    pub(super) fn log(index: u64, cause: prost::DecodeError) -> Failed {
        Failed::Entry { index, cause }
    }
}

/// Somebody who waits for the index that a linearizable read has to wait for.
type Reader = oneshot::Sender<Result<LogIndex, Unavailable>>;

pub(super) struct Node {
    pub(super) raft: RawNode<RaftLog>,
    pub(super) wal: Wal,
    pub(super) apply: Arc<ApplyQueue>,
    /// The last entry that was handed to apply.
    pub(super) handed: LogIndex,
    settings: Settings,
    inbox: Arc<Inbox>,
    pending: Arc<Pending>,
    state: Arc<State>,
    applied: watch::Receiver<LogIndex>,
    /// Reads that wait for their round, by the number of the round.
    reads: VecDeque<(u64, Vec<Reader>)>,
    /// Rounds are never repeated: an answer to an older one, late on the network, must not count for a newer one.
    next_round: u64,
    flushed: LogIndex,
    wal_metrics: metrics::Wal,
    demoted: Box<dyn Fn() + Send>,
}

/// A running consensus thread.
pub struct Started {
    /// How to speak with it.
    pub handle: Handle,
    /// Ends with the thread.
    pub thread: std::thread::JoinHandle<()>,
}

/// What [`start`] starts from.
pub struct From {
    /// The log.
    pub wal: Wal,
    /// The last hard state in it.
    pub hard_state: HardState,
    /// Who votes.
    pub conf_state: ConfState,
    /// The last entry that the tables have.
    pub applied: (LogIndex, Term),
}

/// What consensus shares with others.
pub struct Parts {
    /// What it is asked.
    pub inbox: Arc<Inbox>,
    /// Who waits for answers.
    pub pending: Arc<Pending>,
    /// What everybody may know.
    pub state: Arc<State>,
    /// Where committed entries go.
    pub apply: Arc<ApplyQueue>,
    /// What was applied of them.
    pub applied: watch::Receiver<LogIndex>,
    /// What is counted of the log.
    pub wal_metrics: metrics::Wal,
    /// This member no longer leads.
    pub demoted: Box<dyn Fn() + Send>,
}

/// Starts the thread. `failed` is called on it if it cannot go on.
pub fn start(
    settings: Settings,
    from: From,
    parts: Parts,
    logger: &slog::Logger,
    failed: impl FnOnce(Failed) + Send + 'static,
) -> Result<Started, Failed> {
    let Parts { inbox, pending, state, apply, applied, wal_metrics, demoted } = parts;
    let ticks = (settings.election.as_millis() / settings.heartbeat.as_millis().max(1)).max(2) as usize;
    let config = Config {
        id: settings.member.0,
        election_tick: ticks,
        heartbeat_tick: 1,
        applied: from.applied.0.0,
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: 256,
        check_quorum: true,
        pre_vote: true,
        read_only_option: ReadOnlyOption::Safe,
        batch_append: true,
        max_committed_size_per_ready: 16 << 20,
        ..Config::default()
    };
    let mut hard_state = from.hard_state;
    // A commit index that changed alone was not written. What is applied was committed.
    hard_state.commit = hard_state.commit.max(from.applied.0.0);
    hard_state.term = hard_state.term.max(from.applied.1.0);
    let mark = from.wal.reader().snapshot();
    let log = RaftLog::new(hard_state, from.conf_state, mark, from.wal.reader());
    let mut node = Node {
        raft: RawNode::new(&config, log, logger)?,
        wal: from.wal,
        apply,
        handed: from.applied.0,
        settings,
        inbox: inbox.clone(),
        pending: pending.clone(),
        state: state.clone(),
        applied: applied.clone(),
        reads: VecDeque::new(),
        next_round: settings.first_round >> 1,
        flushed: from.applied.0,
        wal_metrics,
        demoted,
    };
    if node.is_only_voter() {
        // Nobody else can lead, so there is no reason to wait for an election time-out.
        node.raft.campaign()?;
    }
    node.publish();
    let thread = std::thread::Builder::new()
        .name("consensus".into())
        .spawn(move || {
            if let Err(error) = node.run() {
                failed(error);
            }
        })
        .map_err(|error| Failed::Raft(error.into()))?;
    let handle = Handle { member: settings.member, inbox, pending, state, applied, timeout: settings.request_timeout };
    Ok(Started { handle, thread })
}

/// Whoever gave up waiting is not told.
fn refuse(reads: Vec<Reader>, why: Unavailable) {
    for read in reads {
        let _ = read.send(Err(why));
    }
}

impl Node {
    /// Writes a batch, and counts what it took.
    pub(super) fn write(&mut self, entries: &[Entry], hard_state: Option<&HardState>) -> Result<(), Failed> {
        if entries.is_empty() && hard_state.is_none() {
            return Ok(());
        }
        let began = Instant::now();
        self.wal.append(&Batch { snapshot: None, entries, hard_state })?;
        if !entries.is_empty() {
            self.wal_metrics.fsync_seconds.observe(began.elapsed().as_secs_f64());
            self.wal_metrics.batch_entries.observe(entries.len() as f64);
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), Failed> {
        let mut next_tick = Instant::now() + self.settings.heartbeat;
        let mut inputs = Vec::new();
        loop {
            if !self.raft.has_ready() {
                self.inbox.drain(next_tick, &mut inputs);
            }
            let now = Instant::now();
            if now >= next_tick {
                self.raft.tick();
                // After a pause of the whole machine one tick counts for all that were missed: time that nobody could
                // use must not look like time in which the others were silent.
                next_tick = (next_tick + self.settings.heartbeat).max(now);
                if inputs.is_empty() {
                    // Idle: protect the last batch against damage that would look like a torn write.
                    self.wal.seal()?;
                }
            }
            if self.step(&mut inputs)? {
                return self.wal.seal().map_err(Failed::from);
            }
            while self.raft.has_ready() {
                let ready = self.raft.ready();
                if ready.ss().is_some() {
                    self.leadership_changed();
                }
                self.perform(ready)?;
            }
            self.raft.advance_apply_to(self.applied.borrow().0.max(self.raft.raft.raft_log.applied));
            self.publish();
        }
    }

    /// Takes in a batch. Says whether it asks to stop.
    fn step(&mut self, inputs: &mut Vec<Input>) -> Result<bool, Failed> {
        let mut entries = Vec::new();
        let mut ids = Vec::new();
        let mut reads = Vec::new();
        let mut stop = false;
        let leads = self.raft.raft.state == StateRole::Leader;
        for input in inputs.drain(..) {
            match input {
                Input::Propose { id, only_in, .. }
                    if !leads || only_in.is_some_and(|term| term.0 != self.raft.raft.term) =>
                {
                    self.pending.refuse(id, Unavailable::NoLeader);
                }
                Input::Propose { data, id, .. } => {
                    entries.push(Entry { data: data.into(), ..Entry::default() });
                    ids.push(id);
                }
                Input::ReadIndex(waiter) => reads.push(waiter),
                // Nothing to do but to look again, at the end of the turn, at what is applied.
                Input::FirstOfTermApplied => {}
                Input::Flushed(index) => self.flushed = self.flushed.max(index),
                Input::AreYouThere(waiter) => {
                    let _ = waiter.send(());
                }
                Input::Stop => stop = true,
            }
        }
        if !entries.is_empty() {
            let mut message = Message::default();
            message.set_msg_type(MessageType::MsgPropose);
            message.from = self.settings.member.0;
            message.entries = entries;
            match self.raft.raft.step(message) {
                Ok(()) => {}
                Err(raft::Error::ProposalDropped) => {
                    ids.into_iter().for_each(|id| self.pending.refuse(id, Unavailable::NoLeader));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if !reads.is_empty() {
            self.start_round(reads);
        }
        self.shorten_log()?;
        Ok(stop)
    }

    /// One round of heartbeats for all reads that wait.
    fn start_round(&mut self, reads: Vec<Reader>) {
        let knows_leader = self.raft.raft.leader_id != 0;
        // A leader that has committed nothing in its term yet does not know what is committed.
        let can_answer = self.raft.raft.state != StateRole::Leader || self.raft.raft.commit_to_current_term();
        if !knows_leader || !can_answer {
            refuse(reads, Unavailable::NoLeader);
            return;
        }
        let round = self.next_round;
        self.next_round += 1;
        let mut context = Vec::with_capacity(24);
        context.extend_from_slice(&self.settings.member.0.to_be_bytes());
        context.extend_from_slice(&self.settings.first_round.to_be_bytes());
        context.extend_from_slice(&round.to_be_bytes());
        self.reads.push_back((round, reads));
        self.raft.read_index(context);
    }

    pub(super) fn answer_reads(&mut self, states: Vec<ReadState>) {
        for state in states {
            let round = state.request_ctx.get(16..24).and_then(|round| round.try_into().ok()).map(u64::from_be_bytes);
            while let Some((first, _)) = self.reads.front() {
                if round.is_none_or(|round| *first > round) {
                    break;
                }
                // A later round answers the earlier ones too: it started after them.
                for read in self.reads.pop_front().map(|(_, reads)| reads).unwrap_or_default() {
                    let _ = read.send(Ok(LogIndex(state.index)));
                }
            }
        }
    }

    fn leadership_changed(&mut self) {
        self.state.alone.store(false, Ordering::Release);
        // Before anything of the new term is handed to apply, which looks at it.
        self.publish();
        if self.raft.raft.state != StateRole::Leader {
            (self.demoted)();
        }
        self.state.leader_changes.fetch_add(1, Ordering::Relaxed);
        for (_, reads) in self.reads.drain(..) {
            refuse(reads, Unavailable::LeaderChanged);
        }
    }

    fn is_only_voter(&self) -> bool {
        let voters = self.raft.store().conf_state();
        voters.voters == [self.settings.member.0] && voters.voters_outgoing.is_empty()
    }

    pub(super) fn change_configuration(&mut self, change: &impl raft_proto::ConfChangeI) -> Result<ConfState, Failed> {
        // From here on others may have a say.
        self.state.alone.store(false, Ordering::Release);
        let conf_state = self.raft.apply_conf_change(change)?;
        self.raft.mut_store().set_conf_state(conf_state.clone());
        Ok(conf_state)
    }

    /// Gives up entries that the tables have, once there are enough of them to be worth a write.
    fn shorten_log(&mut self) -> Result<(), Failed> {
        let mark = self.raft.store().mark().index;
        let target = self.flushed.0.saturating_sub(self.settings.catchup_entries);
        if target < mark + self.settings.snapshot_entries {
            return Ok(());
        }
        let term = raft::Storage::term(self.raft.store(), target)?;
        let conf_state = self.raft.store().conf_state().clone();
        let mark = SnapshotMark { index: target, term, conf_state, log: LogAfter::Kept };
        self.wal.append(&Batch { snapshot: Some(&mark), entries: &[], hard_state: None })?;
        self.raft.mut_store().compact(mark);
        let released = self.wal.release(target)?;
        tracing::debug!(upto = target, segments = released, "shortened the log");
        Ok(())
    }

    fn publish(&mut self) {
        let raft = &self.raft.raft;
        self.state.term.store(raft.term, Ordering::Release);
        self.state.leader.store(raft.leader_id, Ordering::Release);
        self.state.committed.store(raft.raft_log.committed, Ordering::Release);
        if raft.state == StateRole::Leader && self.is_only_voter() && !self.state.alone.load(Ordering::Relaxed) {
            // Everything up to an entry of this term is applied: nothing acknowledged is missing.
            let applied = self.applied.borrow().0;
            let current = raft::Storage::term(self.raft.store(), applied).is_ok_and(|term| term == raft.term);
            self.state.alone.store(current, Ordering::Release);
        }
    }
}
