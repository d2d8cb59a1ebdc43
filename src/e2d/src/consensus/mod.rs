//! Raft and its log: one thread, one write and one flush a turn.
//!
//! ```text
//!  proposals, reads, ticks ──► inbox ──► step ──► ready ──► WAL (one write, one flush) ──► apply
//!                                ▲                                                           │
//!                                └── the next batch collects while the disk works            └─► answers
//! ```
//!
//! The thread owns raft's state and the WAL. Each turn takes everything that has come in, steps it, and performs what
//! raft wants done in the one order that is written in [`ready`]. While it waits for the disk the next batch collects,
//! so a batch is as large as the load needs, and a flush costs the same for all of it.
//!
//! It is not the apply path (`crate::apply`) and knows nothing of what entries mean.

mod inbox;
mod node;
mod pending;
mod raft_log;
mod ready;

pub use inbox::Inbox;
pub use node::{Failed, From, Parts, Settings, Started, start};
pub use pending::Pending;

use crate::apply::Answered;
use e2d_core::ids::{LogIndex, MemberId, Term};
use e2d_core::mvcc::request::{Command, Request};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// What the thread is asked to do.
pub enum Input {
    /// Put an entry into the log.
    Propose {
        /// The encoded command.
        data: Vec<u8>,
        /// Its id among the pending ones, to be told if it cannot be proposed.
        id: u64,
        /// Drop it unless this member leads in this term.
        only_in: Option<Term>,
    },
    /// Find the index up to which a linearizable read has to wait.
    ReadIndex(oneshot::Sender<Result<LogIndex, Unavailable>>),
    /// A new leader's first entry was applied here.
    FirstOfTermApplied,
    /// The tables have everything up to this entry.
    Flushed(LogIndex),
    /// Answer, to show that turns are taken.
    AreYouThere(oneshot::Sender<()>),
    /// Stop after what was asked before.
    Stop,
}

/// Why a request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Nobody leads, or nobody is known to.
    #[error("no leader")]
    NoLeader,
    /// The leader changed meanwhile.
    #[error("leader changed")]
    LeaderChanged,
    /// Too much is waiting already.
    #[error("too many requests")]
    TooManyRequests,
    /// The answer did not come in time. The request may still be carried out.
    #[error("timed out")]
    Timeout,
    /// The process stops.
    #[error("server stopped")]
    Stopped,
}

/// More committed entries than this may not wait to be applied, as in etcd.
const MAX_UNAPPLIED: u64 = 5000;

/// More proposals than this may not wait to be written.
const MAX_WAITING: usize = 16 * 1024;

/// What everybody may know about consensus at any time.
#[derive(Default)]
pub struct State {
    term: AtomicU64,
    leader: AtomicU64,
    committed: AtomicU64,
    leader_changes: AtomicU64,
    /// This member leads, is the only voter, and has applied an entry of its term: then nothing can have been
    /// acknowledged that it has not applied, and a read needs nobody else.
    alone: AtomicBool,
}

impl State {
    /// The current term.
    pub fn term(&self) -> Term {
        Term(self.term.load(Ordering::Acquire))
    }

    /// Who leads, if that is known.
    pub fn leader(&self) -> Option<MemberId> {
        Some(MemberId(self.leader.load(Ordering::Acquire))).filter(|leader| leader.0 != 0)
    }

    /// Whether a member leads in a term, as far as is known.
    pub fn leads_in(&self, member: MemberId, term: Term) -> bool {
        self.leader() == Some(member) && self.term() == term
    }

    /// The last entry known to be committed.
    pub fn committed(&self) -> LogIndex {
        LogIndex(self.committed.load(Ordering::Acquire))
    }

    /// How often the leader changed since the start, the first election included.
    pub fn leader_changes(&self) -> u64 {
        self.leader_changes.load(Ordering::Relaxed)
    }
}

/// How the rest of the process speaks with consensus. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    member: MemberId,
    inbox: Arc<Inbox>,
    pending: Arc<Pending>,
    state: Arc<State>,
    applied: watch::Receiver<LogIndex>,
    timeout: Duration,
}

impl Handle {
    /// This member.
    pub fn member(&self) -> MemberId {
        self.member
    }

    /// What is known about consensus.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether this member leads.
    pub fn leads(&self) -> bool {
        self.state.leader() == Some(self.member)
    }

    /// The last entry that was applied here.
    pub fn applied(&self) -> LogIndex {
        *self.applied.borrow()
    }

    /// How long a request may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How many proposals wait for their answer.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// Puts a request through the log and waits until it is applied here.
    pub async fn propose(&self, request: Request) -> Result<Answered, Unavailable> {
        self.propose_bound(request, None).await
    }

    /// The same, but without effect unless this member leads in `only_in` when its turn comes.
    pub async fn propose_in(&self, request: Request, only_in: Term) -> Result<Answered, Unavailable> {
        self.propose_bound(request, Some(only_in)).await
    }

    async fn propose_bound(&self, request: Request, only_in: Option<Term>) -> Result<Answered, Unavailable> {
        let unapplied = self.state.committed().0.saturating_sub(self.applied().0);
        if unapplied > MAX_UNAPPLIED || self.pending.len() >= MAX_WAITING {
            return Err(Unavailable::TooManyRequests);
        }
        let (waiter, answer) = oneshot::channel();
        let id = self.pending.add(waiter);
        // However this ends, dropped by a client that went away included, nobody waits for the answer any more.
        let _forget = pending::Forget { pending: &self.pending, id };
        let data = Command { origin: self.member, id, request }.encode();
        self.inbox.push(Input::Propose { data, id, only_in });
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Unavailable::Stopped),
            Err(_) => Err(Unavailable::Timeout),
        }
    }

    /// Returns when everything that was acknowledged before the call is applied here.
    pub async fn linearize(&self) -> Result<(), Unavailable> {
        if self.state.alone.load(Ordering::Acquire) {
            return Ok(());
        }
        tokio::time::timeout(self.timeout, self.linearize_by_quorum()).await.unwrap_or(Err(Unavailable::Timeout))
    }

    async fn linearize_by_quorum(&self) -> Result<(), Unavailable> {
        /// A round may be lost on the way to the other members.
        const RETRY: Duration = Duration::from_millis(500);
        let index = loop {
            let (waiter, index) = oneshot::channel();
            self.inbox.push(Input::ReadIndex(waiter));
            match tokio::time::timeout(RETRY, index).await {
                Ok(Ok(Ok(index))) => break index,
                Ok(Ok(Err(Unavailable::LeaderChanged))) => return Err(Unavailable::LeaderChanged),
                // No leader yet: one may appear within the time-out.
                Ok(Ok(Err(_))) => tokio::time::sleep(Duration::from_millis(10)).await,
                Ok(Err(_)) => return Err(Unavailable::Stopped),
                Err(_) => {}
            }
        };
        self.wait_applied(index).await
    }

    /// Returns when an entry is applied here.
    pub async fn wait_applied(&self, index: LogIndex) -> Result<(), Unavailable> {
        let mut applied = self.applied.clone();
        applied.wait_for(|applied| *applied >= index).await.map(drop).map_err(|_| Unavailable::Stopped)
    }

    /// Whether the thread takes its turns: it answers within `patience`, whatever the answer.
    pub async fn is_alive(&self, patience: Duration) -> bool {
        let (waiter, answer) = oneshot::channel();
        self.inbox.push(Input::AreYouThere(waiter));
        matches!(tokio::time::timeout(patience, answer).await, Ok(Ok(())))
    }

    /// Tells consensus what the tables have.
    pub fn flushed(&self, index: LogIndex) {
        self.inbox.push(Input::Flushed(index));
    }

    /// Asks the thread to stop.
    pub fn stop(&self) {
        self.inbox.push(Input::Stop);
    }
}
