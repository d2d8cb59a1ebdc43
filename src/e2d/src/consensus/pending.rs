//! The proposals whose answers somebody waits for.

use super::Unavailable;
use crate::apply::Answered;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Where an answer goes.
pub(super) type Waiter = oneshot::Sender<Result<Answered, Unavailable>>;

/// See the module. Ids start at a random number, so that the entries of an earlier process do not answer the questions
/// of this one.
pub struct Pending {
    waiting: Mutex<Table>,
}

struct Table {
    next: u64,
    waiters: HashMap<u64, Waiter>,
}

impl Pending {
    /// Nobody waits.
    pub fn new(first_id: u64) -> Pending {
        Pending { waiting: Mutex::new(Table { next: first_id, waiters: HashMap::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, waiter: Waiter) -> u64 {
        let mut table = self.lock();
        let id = table.next;
        table.next = table.next.wrapping_add(1);
        table.waiters.insert(id, waiter);
        id
    }

    /// Takes the waiters of these ids, `None` where nobody waits, with one lock.
    pub fn take(&self, ids: impl Iterator<Item = u64>) -> Vec<Option<Waiter>> {
        let mut table = self.lock();
        ids.map(|id| table.waiters.remove(&id)).collect()
    }

    /// Tells one waiter that it gets no answer.
    pub fn refuse(&self, id: u64, why: Unavailable) {
        let waiter = self.lock().waiters.remove(&id);
        if let Some(waiter) = waiter {
            let _ = waiter.send(Err(why));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lock().waiters.len()
    }
}

/// Forgets a waiter when it is dropped.
pub(super) struct Forget<'a> {
    pub(super) pending: &'a Pending,
    pub(super) id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.pending.lock().waiters.remove(&self.id);
    }
}
