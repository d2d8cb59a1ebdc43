//! The thread that drives the hub.
//!
//! Applying must not wait for watchers, and catching up reads the disk, so the hub is neither on the thread that
//! applies nor on one that serves clients. It takes whatever came since it last looked as one batch, and wakes each
//! stream at most once for it.

use super::outgoing::{Outgoing, Taken};
use crate::clock::ticks_since;
use e2d_api::errors;
use e2d_core::ids::{Revision, Tick};
use e2d_core::mvcc::change::Change;
use e2d_core::watch::{Counts, History, Hub, Limits, NewWatch, Refusal, StreamId, WatchId};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tonic::Status;

/// After so many revisions the messages are handed out even if more wait.
const REVISIONS_AT_ONCE: usize = 64;

/// Hands changes and requests to the hub's thread. Cheap to clone.
#[derive(Clone)]
pub struct WatchHandle {
    inbox: Arc<Inbox>,
}

/// The hub's thread.
#[derive(Debug)]
pub struct WatchThread<E> {
    thread: JoinHandle<Result<(), E>>,
}

struct Inbox {
    limits: Limits,
    max_bytes: usize,
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    changes: VecDeque<(Revision, Vec<Change>)>,
    bytes: usize,
    /// Changes were left out: history has them.
    overflowed: bool,
    requests: Vec<(u64, Request)>,
    opened: u64,
    /// The thread sleeps and has to be woken.
    asleep: bool,
    /// Streams are refused with this.
    closed: Option<Status>,
    counts: Counts,
}

/// What a stream wants from the hub.
pub(super) enum Request {
    Open(Arc<Outgoing>),
    Create(NewWatch),
    Refuse(Refusal),
    Cancel(WatchId),
    AskProgress,
    /// Messages were taken, and the hub waits for that.
    Taken,
    Close,
    /// Not of a stream: end those that need a leader.
    LeaderLost,
}

/// Starts the hub over a store. `max_ring_bytes` bounds the changes that were applied and not told: when the hub is
/// that far behind, it reads them from history. `failed` is called, on the hub's thread, if history cannot be read;
/// all streams have ended then.
///
/// # Errors
/// The thread could not be started.
pub fn start<H>(
    history: H,
    limits: Limits,
    max_ring_bytes: usize,
    failed: impl FnOnce(&H::Error) + Send + 'static,
) -> io::Result<(WatchHandle, WatchThread<H::Error>)>
where
    H: History + Send + 'static,
    H::Error: Send + 'static,
{
    let inbox = Arc::new(Inbox {
        limits: limits.clone(),
        max_bytes: max_ring_bytes,
        state: Mutex::default(),
        arrived: Condvar::new(),
    });
    let handle = WatchHandle { inbox: inbox.clone() };
    let thread = std::thread::Builder::new().name("e2d-watch".into()).spawn(move || {
        let mut driver = Driver {
            hub: Hub::new(limits, history.bounds().0),
            history,
            inbox,
            started: Instant::now(),
            streams: BTreeMap::new(),
            outgoing: Vec::new(),
            accounts: Vec::new(),
        };
        let result = driver.run();
        if let Err(error) = &result {
            driver.end_all(&errors::STOPPED.into());
            failed(error);
        }
        result
    })?;
    Ok((handle, WatchThread { thread }))
}

impl<E> WatchThread<E> {
    /// Waits for the thread to end, which it does after [`WatchHandle::stop`].
    ///
    /// # Errors
    /// What reading history failed with.
    pub fn join(self) -> Result<(), E> {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl WatchHandle {
    /// Tells of an applied revision. Called in order of revisions, after the changes can be read from history. Never
    /// waits: what does not fit is left to history.
    pub fn publish(&self, revision: Revision, changes: Vec<Change>) {
        let bytes = changes.iter().map(weight).sum::<usize>();
        let mut state = self.inbox.lock();
        if state.overflowed || state.closed.is_some() {
            return;
        }
        if state.bytes + bytes > self.inbox.max_bytes {
            state.overflowed = true;
        } else {
            state.bytes += bytes;
            state.changes.push_back((revision, changes));
        }
        self.inbox.wake(state);
    }

    /// The store was replaced by a newer one, whose changes are in history and were not published.
    pub fn missed(&self) {
        let mut state = self.inbox.lock();
        state.overflowed = true;
        self.inbox.wake(state);
    }

    /// Ends the streams whose client wants that while there is no leader. To be called when that has lasted for three
    /// election timeouts.
    pub fn leader_lost(&self) {
        let mut state = self.inbox.lock();
        state.requests.push((0, Request::LeaderLost));
        self.inbox.wake(state);
    }

    /// Ends all streams and the thread. New streams are refused.
    pub fn stop(&self) {
        let mut state = self.inbox.lock();
        state.closed.get_or_insert_with(|| Status::from(errors::STOPPED));
        self.inbox.wake(state);
    }

    /// How many of what there was after the last batch.
    pub fn counts(&self) -> Counts {
        self.inbox.lock().counts
    }

    /// Opens a stream.
    pub(super) fn open(&self, needs_leader: bool) -> Result<(u64, Arc<Outgoing>), Status> {
        let limits = &self.inbox.limits;
        let outgoing = Arc::new(Outgoing::new(needs_leader, limits.stream_responses, limits.stream_bytes));
        let mut state = self.inbox.lock();
        if let Some(status) = &state.closed {
            return Err(status.clone());
        }
        state.opened += 1;
        let stream = state.opened;
        state.requests.push((stream, Request::Open(outgoing.clone())));
        self.inbox.wake(state);
        Ok((stream, outgoing))
    }

    pub(super) fn request(&self, stream: u64, request: Request) {
        let mut state = self.inbox.lock();
        if state.closed.is_none() {
            state.requests.push((stream, request));
            self.inbox.wake(state);
        }
    }
}

impl fmt::Debug for WatchHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchHandle").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

/// Bytes that a change keeps in memory.
fn weight(change: &Change) -> usize {
    change.record.bytes().len() + change.previous.as_ref().map_or(0, |previous| previous.bytes().len()) + 64
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread if it sleeps. Waking it costs a system call, so that is not done for nothing.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.arrived.notify_one();
        }
    }

    /// Waits for something to arrive, at most for `patience`; for ever without one.
    fn wait(&self, patience: Option<Duration>) -> MutexGuard<'_, State> {
        let until = patience.map(|patience| Instant::now() + patience);
        let mut state = self.lock();
        loop {
            let arrived =
                !state.changes.is_empty() || !state.requests.is_empty() || state.overflowed || state.closed.is_some();
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if arrived || left.is_some_and(|left| left.is_zero()) {
                state.asleep = false;
                return state;
            }
            state.asleep = true;
            state = match left {
                Some(left) => self
                    .arrived
                    .wait_timeout(state, left)
                    .map(|(state, _)| state)
                    .unwrap_or_else(|poisoned| poisoned.into_inner().0),
                None => self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

struct Driver<H> {
    hub: Hub,
    history: H,
    inbox: Arc<Inbox>,
    started: Instant,
    streams: BTreeMap<u64, StreamId>,
    /// By the slot of the stream.
    outgoing: Vec<Option<Arc<Outgoing>>>,
    /// What senders took, noted while messages are handed out.
    accounts: Vec<(StreamId, Taken)>,
}

impl<H: History> Driver<H> {
    fn run(&mut self) -> Result<(), H::Error> {
        let mut more = false;
        loop {
            let patience = match self.hub.next_deadline() {
                _ if more => Some(Duration::ZERO),
                Some(due) => Some(Duration::from_millis(due.millis_since(self.now()))),
                None => None,
            };
            let mut state = self.inbox.wait(patience);
            let changes = std::mem::take(&mut state.changes);
            let requests = std::mem::take(&mut state.requests);
            let overflowed = std::mem::take(&mut state.overflowed);
            state.bytes = 0;
            if let Some(status) = state.closed.clone() {
                drop(state);
                // A stream that was opened just before is only known from its request.
                self.serve(requests);
                self.end_all(&status);
                return Ok(());
            }
            drop(state);

            for (number, (revision, changes)) in (1..).zip(changes) {
                self.hub.publish(revision, &changes);
                if number % REVISIONS_AT_ONCE == 0 {
                    self.deliver();
                }
            }
            if overflowed {
                self.hub.missed(self.history.bounds().0);
            }
            self.serve(requests);
            self.hub.tick(self.now());
            more = self.hub.catch_up(&self.history)?;
            self.deliver();
            more |= self.hub.has_work();
            self.inbox.lock().counts = self.hub.counts();
        }
    }

    fn now(&self) -> Tick {
        ticks_since(self.started)
    }

    fn serve(&mut self, requests: Vec<(u64, Request)>) {
        if requests.is_empty() {
            return;
        }
        // Read after the requests were taken: it covers all that their clients could have been told.
        let bounds = self.history.bounds();
        let mut handled: BTreeMap<usize, usize> = BTreeMap::new();
        for (stream, request) in requests {
            match request {
                Request::Open(outgoing) => {
                    let id = self.hub.open(self.now());
                    if self.outgoing.len() <= id.slot() {
                        self.outgoing.resize(id.slot() + 1, None);
                    }
                    self.outgoing[id.slot()] = Some(outgoing);
                    self.streams.insert(stream, id);
                    continue;
                }
                Request::LeaderLost => {
                    let lost = self.outgoing.iter().flatten().filter(|outgoing| outgoing.needs_leader);
                    lost.for_each(|outgoing| outgoing.end(errors::NO_LEADER.into()));
                    continue;
                }
                _ => {}
            }
            let Some(id) = self.streams.get(&stream).copied() else { continue };
            match request {
                Request::Create(new) => self.hub.create(id, new, bounds),
                Request::Refuse(refusal) => self.hub.refuse(id, refusal, bounds.0),
                Request::Cancel(watch) => self.hub.cancel(id, watch, bounds.0),
                Request::AskProgress => self.hub.ask_progress(id, bounds.0),
                Request::Taken => {
                    self.account(id);
                    continue;
                }
                Request::Close => {
                    self.hub.close(id);
                    self.streams.remove(&stream);
                    self.outgoing[id.slot()] = None;
                    handled.remove(&id.slot());
                    continue;
                }
                Request::Open(_) | Request::LeaderLost => unreachable!("these are not about an open stream"),
            }
            *handled.entry(id.slot()).or_default() += 1;
        }
        for (slot, count) in handled {
            if let Some(outgoing) = &self.outgoing[slot] {
                outgoing.handled(count);
            }
        }
    }

    /// Hands out all messages, and keeps account of what was taken.
    fn deliver(&mut self) {
        let (outgoing, accounts) = (&self.outgoing, &mut self.accounts);
        self.hub.deliver(|id, responses| {
            if let Some(outgoing) = &outgoing[id.slot()] {
                accounts.push((id, outgoing.push(responses)));
            }
        });
        for (id, taken) in self.accounts.drain(..) {
            self.hub.taken(id, taken.responses, taken.bytes);
        }
        let mut blocked = Vec::new();
        while let Some(id) = self.hub.pop_blocked() {
            blocked.push(id);
        }
        if !blocked.is_empty() && self.hub.counts().queued_bytes >= self.inbox.limits.total_bytes {
            // Streams that had nothing new for a while may have sent what still counts as queued.
            let all: Vec<StreamId> = self.streams.values().copied().collect();
            all.into_iter().for_each(|id| self.account(id));
        }
        blocked.into_iter().for_each(|id| self.account(id));
    }

    /// Takes note of what a sender took, and has it say when there is room if that is waited for.
    fn account(&mut self, id: StreamId) {
        if let Some(outgoing) = &self.outgoing[id.slot()] {
            let hub = &mut self.hub;
            outgoing.account(|taken| {
                hub.taken(id, taken.responses, taken.bytes);
                hub.is_blocked(id)
            });
        }
    }

    fn end_all(&mut self, status: &Status) {
        let mut state = self.inbox.lock();
        state.closed.get_or_insert_with(|| status.clone());
        let requests = std::mem::take(&mut state.requests);
        drop(state);
        for (_, request) in requests {
            if let Request::Open(outgoing) = request {
                outgoing.end(status.clone());
            }
        }
        for outgoing in self.outgoing.iter().flatten() {
            outgoing.end(status.clone());
        }
    }
}
