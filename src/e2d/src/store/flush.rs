//! The thread that moves what was applied into the tables, and compacts them.
//!
//! It alone writes to LMDB. A commit takes a whole frozen memtable, so that the tables are always the state after one
//! log entry, whose index is in the same transaction.

use super::tables::{APPLIED_INDEX, APPLIED_TERM, CONF_STATE, RECORD_BYTES, REVISION, SWEPT, scan_events};
use super::{AppliedState, Inner, Store, io};
use e2d_core::ids::{At, LogIndex, Revision};
use e2d_core::mvcc::machine;
use e2d_core::mvcc::memtable::{Layers, Memtable, Sink, Table};
use e2d_core::mvcc::record::Record;
use e2d_core::mvcc::sweep;
use e2d_core::mvcc::view::StoreError;
use heed::{PutFlags, RwTxn};
use prometheus::Histogram;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How a compaction shares the disk with everybody else.
#[derive(Clone, Copy, Debug)]
pub struct FlushSettings {
    /// Events looked at in one transaction.
    pub compaction_batch: usize,
    /// The pause between two of them.
    pub compaction_pause: Duration,
}

/// A running flush thread. Dropping it stops the thread after what it is doing.
pub struct Flusher {
    orders: Sender<Order>,
    thread: Option<std::thread::JoinHandle<()>>,
    flushed: watch::Receiver<LogIndex>,
    swept: watch::Receiver<Revision>,
}

enum Order {
    Flush,
    Compact,
    Stop,
}

impl Store {
    /// Sets the active memtable aside to be committed, with the state of the log that it ends at. Says whether it did:
    /// while another one is being committed it does not.
    pub(crate) fn freeze(&self, applied: &AppliedState, revision: Revision) -> bool {
        let mut layers = self.0.layers.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if layers.frozen.is_some() {
            return false;
        }
        let number = |number: u64| Some(bytes::Bytes::copy_from_slice(&number.to_be_bytes()));
        let active = &layers.active;
        active.put_row(Table::Meta, APPLIED_INDEX, number(applied.index.0));
        active.put_row(Table::Meta, APPLIED_TERM, number(applied.term.0));
        active.put_row(Table::Meta, REVISION, number(revision.0));
        active.put_row(Table::Meta, CONF_STATE, Some(applied.conf_state.clone()));
        for (start, count) in self.fences().take_changed() {
            let mut key = vec![1];
            key.extend_from_slice(&start);
            active.put_row(Table::Fences, key, count.and_then(number));
        }
        *layers = Layers { frozen: Some(layers.active.clone()), active: Arc::default() };
        true
    }

    /// Starts the flush thread. `fatal` hears of the first error; after it the thread does nothing more.
    pub fn start_flusher(
        &self,
        settings: FlushSettings,
        commit_seconds: Histogram,
        fatal: impl FnOnce(StoreError) + Send + 'static,
    ) -> std::io::Result<Flusher> {
        let (orders, inbox) = channel();
        let (flushed_sender, flushed) = watch::channel(LogIndex(0));
        let (swept_sender, swept) = watch::channel(Revision(self.0.swept.load(Ordering::Relaxed)));
        let worker = Worker {
            store: self.clone(),
            settings,
            inbox,
            commit_seconds,
            flushed: flushed_sender,
            swept: swept_sender,
        };
        let thread = std::thread::Builder::new().name("flush".into()).spawn(move || {
            if let Err(error) = worker.run() {
                fatal(error);
            }
        })?;
        Ok(Flusher { orders, thread: Some(thread), flushed, swept })
    }
}

impl Flusher {
    /// There is a frozen memtable.
    pub fn flush(&self) {
        // Sending fails only when the thread ended, and then `fatal` was called.
        let _ = self.orders.send(Order::Flush);
    }

    /// There is a new compacted revision.
    pub fn compact(&self) {
        let _ = self.orders.send(Order::Compact);
    }

    /// The last log entry whose effect is durable in the tables.
    pub fn flushed(&self) -> watch::Receiver<LogIndex> {
        self.flushed.clone()
    }

    /// The revision up to which history was swept.
    pub fn swept(&self) -> watch::Receiver<Revision> {
        self.swept.clone()
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    store: Store,
    settings: FlushSettings,
    inbox: Receiver<Order>,
    commit_seconds: Histogram,
    flushed: watch::Sender<LogIndex>,
    swept: watch::Sender<Revision>,
}

impl Worker {
    fn run(self) -> Result<(), StoreError> {
        // A sweep that a stopped process left behind goes on by itself.
        let mut sweeping = true;
        let mut next_sweep = Instant::now();
        loop {
            let order = if sweeping {
                self.inbox.recv_timeout(next_sweep.saturating_duration_since(Instant::now()))
            } else {
                self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match order {
                Ok(Order::Flush) => {
                    self.flush()?;
                    // What is new in the tables may be what a compaction waits for.
                    sweeping = true;
                }
                Ok(Order::Compact) => sweeping = true,
                Err(RecvTimeoutError::Timeout) => {
                    sweeping = self.sweep()?;
                    next_sweep = Instant::now() + self.settings.compaction_pause;
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn commit(&self, txn: RwTxn<'_>) -> Result<(), StoreError> {
        let started = Instant::now();
        txn.commit().map_err(|error| io("committing the store", error))?;
        self.commit_seconds.observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Commits the frozen memtable.
    fn flush(&self) -> Result<(), StoreError> {
        let inner = &*self.store.0;
        let Some(frozen) = self.store.layers().frozen else { return Ok(()) };
        let mut txn = inner.env.write_txn().map_err(|error| io("starting a commit", error))?;
        let applied = write_memtable(inner, &mut txn, &frozen)?;
        let record_bytes = inner.record_bytes.load(Ordering::Relaxed) + frozen.record_bytes();
        inner.databases.put_row(&mut txn, Table::Meta, RECORD_BYTES, Some(&record_bytes.to_be_bytes()))?;
        self.commit(txn)?;

        // Readers that have the frozen memtable keep it; new ones find the same in the tables.
        let mut layers = inner.layers.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        layers.frozen = None;
        inner.record_bytes.store(record_bytes, Ordering::Relaxed);
        drop(layers);
        let _ = self.flushed.send_replace(applied);
        Ok(())
    }

    /// Removes what compaction made superfluous, a batch of it. Says whether there may be more.
    fn sweep(&self) -> Result<bool, StoreError> {
        let inner = &*self.store.0;
        let from = Revision(inner.swept.load(Ordering::Relaxed));
        if self.store.published().compacted.is_none_or(|compacted| from >= compacted) {
            return Ok(false);
        }
        let mut txn = inner.env.write_txn().map_err(|error| io("starting a compaction", error))?;
        // Only what the tables themselves say counts: a compaction that a power cut can still undo removes nothing.
        // All events up to it are then in the tables too.
        let compacted = match inner.databases.meta_number(&txn, machine::COMPACTED)? {
            Some(compacted) if Revision(compacted) > from => Revision(compacted),
            _ => return Ok(false),
        };
        let mut batch = Vec::new();
        let mut complete = true;
        scan_events(&inner.databases.history, &txn, At::start_of(from), &mut |event| {
            let Some(removal) = sweep::removal(&event, compacted) else { return Ok(ControlFlow::Break(())) };
            // A batch ends between revisions, so that the next one can start at a revision.
            if batch.len() >= self.settings.compaction_batch
                && batch.last().is_some_and(|(at, ..): &(At, _, _)| at.main < event.at.main)
            {
                complete = false;
                return Ok(ControlFlow::Break(()));
            }
            let key = if removal.itself { event.key().to_vec() } else { Vec::new() };
            batch.push((event.at, removal, key));
            Ok(ControlFlow::Continue(()))
        })?;
        // The last revision of a batch is looked at again, which does no harm.
        let reached = batch.last().filter(|_| !complete).map_or(compacted, |(at, ..)| at.main);
        let mut removed = 0;
        for (at, removal, key) in batch {
            if let Some(superseded) = removal.superseded {
                removed += remove_event(inner, &mut txn, superseded)?;
            }
            if removal.itself {
                removed += remove_event(inner, &mut txn, at)?;
                inner.databases.keys.delete_if(&mut txn, &key, |head| head.at == at)?;
            }
        }
        let record_bytes = inner.record_bytes.load(Ordering::Relaxed).saturating_sub(removed);
        inner.databases.put_row(&mut txn, Table::Meta, RECORD_BYTES, Some(&record_bytes.to_be_bytes()))?;
        inner.databases.put_row(&mut txn, Table::Meta, SWEPT, Some(&reached.0.to_be_bytes()))?;
        self.commit(txn)?;
        inner.record_bytes.store(record_bytes, Ordering::Relaxed);
        inner.swept.store(reached.0, Ordering::Relaxed);
        let _ = self.swept.send_replace(reached);
        Ok(!complete)
    }
}

/// Writes everything in a memtable; gives the log index that it ends at.
fn write_memtable(inner: &Inner, txn: &mut RwTxn<'_>, frozen: &Memtable) -> Result<LogIndex, StoreError> {
    struct Tables<'a, 'e> {
        inner: &'a Inner,
        txn: &'a mut RwTxn<'e>,
        row: Vec<u8>,
        applied: LogIndex,
    }
    impl Sink for Tables<'_, '_> {
        type Error = StoreError;

        fn head(&mut self, record: &Record) -> Result<(), StoreError> {
            let record = record.as_ref();
            self.row.clear();
            record.head_row(super::INLINE_VALUE_BYTES, &mut self.row);
            self.inner.databases.keys.put(self.txn, record.key(), &self.row)
        }

        fn event(&mut self, at: At, record: &Record) -> Result<(), StoreError> {
            // History only grows at its end, which LMDB fills its pages for.
            let history = &self.inner.databases.history;
            history
                .put_with_flags(self.txn, PutFlags::APPEND, &at.to_bytes(), record.bytes())
                .map_err(|error| io("writing history", error))
        }

        fn row(&mut self, table: Table, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
            if (table, key) == (Table::Meta, APPLIED_INDEX) {
                let number = value.and_then(|value| value.try_into().ok()).map_or(0, u64::from_be_bytes);
                self.applied = LogIndex(number);
            }
            self.inner.databases.put_row(self.txn, table, key, value)
        }
    }
    let mut tables = Tables { inner, txn, row: Vec::new(), applied: LogIndex(0) };
    frozen.drain_into(&mut tables)?;
    Ok(tables.applied)
}

/// Removes an event and gives the bytes that it counted for; 0 when it was gone.
fn remove_event(inner: &Inner, txn: &mut RwTxn<'_>, at: At) -> Result<u64, StoreError> {
    let history = &inner.databases.history;
    let key = at.to_bytes();
    let Some(row) = history.get(txn, &key).map_err(|error| io("compacting history", error))? else { return Ok(0) };
    let bytes = row.len() as u64;
    history.delete(txn, &key).map_err(|error| io("compacting history", error))?;
    Ok(bytes)
}
