//! What waits for the consensus thread.

use super::Input;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// A queue that is emptied as a whole: one lock for a batch, and a wake-up only when the thread sleeps. Its length is
/// bounded by those who put something in.
#[derive(Default)]
pub struct Inbox {
    state: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    inputs: Vec<Input>,
    asleep: bool,
}

impl Inbox {
    /// Adds one.
    pub fn push(&self, input: Input) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.inputs.push(input);
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.arrived.notify_one();
        }
    }

    /// Takes everything, in order; waits for something until `deadline`. `into` is empty and gives its memory back for
    /// the next batch.
    pub fn drain(&self, deadline: Instant, into: &mut Vec<Input>) {
        debug_assert!(into.is_empty());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if !state.inputs.is_empty() {
                std::mem::swap(&mut state.inputs, into);
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state.asleep = true;
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.asleep = false;
        }
    }
}
