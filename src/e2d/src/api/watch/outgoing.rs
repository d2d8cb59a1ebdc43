//! The queue between the hub's thread and the task that sends a stream's messages.

use e2d_core::watch::Response;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tonic::Status;

/// A sender takes this much at once, so that it does not lock for every message.
const TAKE_RESPONSES: usize = 32;
const TAKE_BYTES: usize = 64 << 10;

/// A client may have this many requests that the hub has not looked at. Its next one is read after that.
const MAX_REQUESTS: usize = 64;

/// One stream's queue. The hub bounds what is in it.
#[derive(Debug)]
pub(super) struct Outgoing {
    /// The client wants the stream to end when there is no leader.
    pub(super) needs_leader: bool,
    low_responses: usize,
    low_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Response>,
    queued_bytes: usize,
    taken: Taken,
    /// The hub waits for the queue to become half empty.
    hub_waits: bool,
    /// Requests that the hub has not looked at.
    requests: usize,
    end: Option<Status>,
    waker: Option<Waker>,
}

/// Messages that the sender took since the hub asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) responses: usize,
    pub(super) bytes: usize,
}

/// What a sender finds.
pub(super) enum Next {
    /// Messages were added to its own queue. `tell_hub`: the hub waits for that.
    Responses { tell_hub: bool },
    /// The stream is over.
    End(Status),
}

impl Outgoing {
    pub(super) fn new(needs_leader: bool, max_responses: usize, max_bytes: usize) -> Outgoing {
        Outgoing { needs_leader, low_responses: max_responses / 2, low_bytes: max_bytes / 2, state: Mutex::default() }
    }

    /// Adds messages, wakes the sender, and gives what it took meanwhile.
    pub(super) fn push(&self, responses: impl Iterator<Item = Response>) -> Taken {
        let mut state = self.lock();
        for response in responses {
            state.queued_bytes += response.size();
            state.queue.push_back(response);
        }
        let (taken, waker) = (std::mem::take(&mut state.taken), state.waker.take());
        drop(state);
        wake(waker);
        taken
    }

    /// Gives what the sender took to `account`, which says whether it waits for more to be taken. The sender cannot
    /// take anything in between, so it knows of that in time.
    pub(super) fn account(&self, account: impl FnOnce(Taken) -> bool) {
        let mut state = self.lock();
        let taken = std::mem::take(&mut state.taken);
        state.hub_waits = account(taken);
    }

    /// The hub has looked at `count` requests.
    pub(super) fn handled(&self, count: usize) {
        let mut state = self.lock();
        let full = state.requests >= MAX_REQUESTS;
        state.requests -= count;
        let waker = if full { state.waker.take() } else { None };
        drop(state);
        wake(waker);
    }

    /// A request is about to be handed to the hub.
    pub(super) fn request(&self) {
        self.lock().requests += 1;
    }

    /// Whether the next request may be read. If not, the sender is woken when it may, after [`Outgoing::poll_take`]
    /// found nothing.
    pub(super) fn may_request(&self) -> bool {
        self.lock().requests < MAX_REQUESTS
    }

    /// Ends the stream. What is queued is not sent.
    pub(super) fn end(&self, status: Status) {
        let mut state = self.lock();
        state.end.get_or_insert(status);
        let waker = state.waker.take();
        drop(state);
        wake(waker);
    }

    /// Moves some messages to `out`.
    pub(super) fn poll_take(&self, cx: &mut Context<'_>, out: &mut VecDeque<Response>) -> Poll<Next> {
        let mut state = self.lock();
        if let Some(status) = &state.end {
            return Poll::Ready(Next::End(status.clone()));
        }
        let (mut responses, mut bytes) = (0, 0);
        while responses < TAKE_RESPONSES && bytes < TAKE_BYTES {
            let Some(response) = state.queue.pop_front() else { break };
            responses += 1;
            bytes += response.size();
            out.push_back(response);
        }
        if responses == 0 {
            if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        state.queued_bytes -= bytes;
        state.taken.responses += responses;
        state.taken.bytes += bytes;
        let low = state.queue.len() <= self.low_responses && state.queued_bytes <= self.low_bytes;
        let tell_hub = state.hub_waits && (low || state.queue.is_empty());
        if tell_hub {
            state.hub_waits = false;
        }
        if state.queue.is_empty() {
            // The memory of a burst is not kept for ever, once for each of thousands of streams.
            state.queue.shrink_to(TAKE_RESPONSES);
        }
        Poll::Ready(Next::Responses { tell_hub })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
