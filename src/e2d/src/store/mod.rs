//! The store of record for applied state: LMDB below, memtables above.
//!
//! ```text
//!  apply ──► active memtable ──(freeze)──► frozen memtable ──(flush thread: one commit)──► LMDB
//!                 ▲                              ▲                                          ▲
//!                 └────────────── a reader merges all three at one revision ───────────────┘
//! ```
//!
//! The WAL has everything that is not in LMDB yet; the index up to which LMDB has it all is in the same transaction as
//! the data. A commit makes its pages durable before the page that names them is written (`NOMETASYNC`): a power cut
//! may undo the last commit, which the WAL replays, and cannot tear one.
//!
//! This module is not the rules: what a write means is `e2d_core::mvcc`.

mod flush;
mod keys;
mod tables;

pub use flush::{FlushSettings, Flusher};
pub use tables::Snapshot;

use crate::store::tables::Databases;
use e2d_core::alarm::{Alarm, Alarms};
use e2d_core::ids::{ClusterId, LogIndex, MemberId, Revision, Term};
use e2d_core::lease::{Lessor, Settings as LessorSettings};
use e2d_core::mvcc::change::Change;
use e2d_core::mvcc::fences::Fences;
use e2d_core::mvcc::machine;
use e2d_core::mvcc::memtable::{Layers, Memtable, Published, Table};
use e2d_core::mvcc::view::{StoreError, View};
use heed::{EnvFlags, EnvOpenOptions, WithoutTls};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// The map is sparse: it costs address space and nothing else, so it is never resized. The quota is ours.
const MAP_BYTES: usize = 1 << 40;

/// Values up to this size are kept beside their keys as well, so that lists read one table in order.
const INLINE_VALUE_BYTES: usize = 1024;

/// One reader slot for each transaction that is open at a time: a worker or a helper thread has one.
const MAX_READERS: u32 = 1024;

/// What the store says about itself, and about whom it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member whose store this is.
    pub member: MemberId,
}

/// How far the log is in the tables.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct AppliedState {
    /// The last entry that was applied.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// Who votes, encoded as raft's `ConfState`.
    pub conf_state: bytes::Bytes,
}

/// What a start needs to know.
pub struct Loaded {
    /// The store.
    pub store: Store,
    /// Where the log has to go on.
    pub applied: AppliedState,
    /// The revisions.
    pub published: Published,
    /// The leases with their keys.
    pub lessor: Lessor,
    /// The alarms.
    pub alarms: Alarms,
    /// Rows of [`Table::Members`].
    pub members: Vec<(MemberId, bytes::Bytes)>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

pub(crate) struct Inner {
    path: PathBuf,
    env: heed::Env<WithoutTls>,
    databases: Databases,
    layers: RwLock<Layers>,
    /// Written by the apply thread alone, after what it announces is in the layers.
    revision: AtomicU64,
    /// The compacted revision plus one, or 0.
    compacted: AtomicU64,
    /// Bytes of all records in the tables.
    record_bytes: AtomicU64,
    /// Everything before this was swept by compactions.
    swept: AtomicU64,
    /// Kept by the apply thread; readers look for moments.
    fences: Mutex<Fences>,
}

impl Store {
    /// Opens the store in `path`, creating it for `identity` if there is none.
    pub fn open(path: &Path, identity: Identity, lessor: LessorSettings) -> Result<Loaded, StoreError> {
        std::fs::create_dir_all(path).map_err(|error| StoreError::Io {
            doing: "creating the store directory",
            cause: format!("{}: {error}", path.display()),
        })?;
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(MAP_BYTES).max_readers(MAX_READERS).max_dbs(16);
        // Safety: the directory is locked for this process before anything in it is opened, the file is on a local
        // disk, and nothing else maps it. Without NO_SYNC these flags keep the integrity of the file.
        #[allow(unsafe_code)]
        let env = unsafe {
            options.flags(EnvFlags::NO_META_SYNC | EnvFlags::NO_READ_AHEAD | EnvFlags::NO_MEM_INIT);
            options.open(path)
        }
        .map_err(|error| io("opening the store", error))?;
        let databases = Databases::create(&env)?;
        let inner = Inner {
            path: path.to_owned(),
            env,
            databases,
            layers: RwLock::default(),
            revision: AtomicU64::new(Revision::INITIAL.0),
            compacted: AtomicU64::new(0),
            record_bytes: AtomicU64::new(0),
            swept: AtomicU64::new(0),
            fences: Mutex::default(),
        };
        let store = Store(Arc::new(inner));
        store.load(identity, lessor)
    }

    fn load(self, identity: Identity, settings: LessorSettings) -> Result<Loaded, StoreError> {
        let inner = &*self.0;
        inner.databases.check_identity(&inner.env, identity)?;
        let txn = inner.env.read_txn().map_err(|error| io("reading the store", error))?;
        let databases = &inner.databases;
        let number = |name: &[u8]| databases.meta_number(&txn, name);
        let published = Published {
            revision: number(tables::REVISION)?.map_or(Revision::INITIAL, Revision),
            compacted: number(machine::COMPACTED)?.map(Revision),
        };
        let applied = AppliedState {
            index: LogIndex(number(tables::APPLIED_INDEX)?.unwrap_or(0)),
            term: Term(number(tables::APPLIED_TERM)?.unwrap_or(0)),
            conf_state: databases.meta(&txn, tables::CONF_STATE)?.map(bytes::Bytes::copy_from_slice).unwrap_or_default(),
        };
        inner.record_bytes.store(number(tables::RECORD_BYTES)?.unwrap_or(0), Ordering::Relaxed);
        inner.swept.store(number(tables::SWEPT)?.unwrap_or(0), Ordering::Relaxed);
        inner.revision.store(published.revision.0, Ordering::Release);
        inner.compacted.store(published.compacted.map_or(0, |compacted| compacted.0 + 1), Ordering::Release);

        let mut leases = Vec::new();
        databases.each_row(&txn, Table::Leases, &mut |key, row| {
            leases.extend(Some(machine::parse_lease_row(key, row).ok_or("neither lease nor times")?));
            Ok(())
        })?;
        let mut lessor = Lessor::load(settings, leases);
        databases.each_row(&txn, Table::Attachments, &mut |key, row| {
            let lease = machine::attachment_lease(key).ok_or("no lease in its key")?;
            lessor.attach(lease, row).map_err(|_| "attached to a lease that does not exist")
        })?;
        let mut alarms = Alarms::default();
        databases.each_row(&txn, Table::Alarms, &mut |key, _| {
            alarms.activate(Alarm::from_bytes(key).ok_or("not an alarm")?);
            Ok(())
        })?;
        let mut members = Vec::new();
        databases.each_row(&txn, Table::Members, &mut |key, row| {
            let id = key.try_into().map(u64::from_be_bytes).map_err(|_| "not a member id")?;
            members.push((MemberId(id), bytes::Bytes::copy_from_slice(row)));
            Ok(())
        })?;
        let mut sections = Vec::new();
        databases.each_row(&txn, Table::Fences, &mut |key, row| {
            let count = row.try_into().map(u64::from_be_bytes).map_err(|_| "not a number of keys")?;
            sections.push((bytes::Bytes::copy_from_slice(key.get(1..).ok_or("no start")?), count));
            Ok(())
        })?;
        *inner.fences.lock().unwrap_or_else(PoisonError::into_inner) = Fences::load(published.revision, sections);
        drop(txn);
        Ok(Loaded { applied, published, lessor, alarms, members, store: self })
    }

    /// The memtables as they are at this moment.
    pub fn layers(&self) -> Layers {
        self.0.layers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The tables as of their last commit. For a consistent [`View`] take the layers first.
    pub fn snapshot(&self) -> Snapshot<'_> {
        Snapshot::new(&self.0.env, &self.0.databases)
    }

    /// The newest revision that readers may see, and what was compacted.
    pub fn published(&self) -> Published {
        let revision = Revision(self.0.revision.load(Ordering::Acquire));
        let compacted = self.0.compacted.load(Ordering::Acquire).checked_sub(1).map(Revision);
        Published { revision, compacted }
    }

    /// Reads at one revision. `read` gets the view and what was published when it started; its result counts only if
    /// no compaction overtook it, else it runs again, and is told so by `published`.
    ///
    /// No transaction lives longer than `read`, which must not wait for anything.
    pub fn read<R>(
        &self,
        mut read: impl FnMut(&View<'_, Snapshot<'_>>, Published) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        loop {
            let published = self.published();
            let snapshot;
            let result = {
                let layers = self.layers();
                snapshot = self.snapshot();
                read(&View::new(layers, &snapshot), published)?
            };
            // The sweep starts after the compaction is published. So when it is still the same now, nothing that was
            // readable at the start is gone.
            if self.published().compacted == published.compacted {
                return Ok(result);
            }
        }
    }

    /// The numbers of keys.
    pub(crate) fn fences(&self) -> MutexGuard<'_, Fences> {
        self.0.fences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many keys there are.
    pub fn keys(&self) -> u64 {
        self.fences().total()
    }

    /// Lets readers see what was applied. For the apply thread alone.
    pub fn publish(&self, published: Published, changes: &[Change]) -> Result<(), StoreError> {
        let mut large = Vec::new();
        {
            // Under the lock, so that whoever counts at a revision cannot then read an older one.
            let mut fences = self.fences();
            for change in changes {
                let record = change.record.as_ref();
                if record.is_tombstone() {
                    fences.deleted(record.key());
                } else if record.version == 1 {
                    large.extend(fences.created(record.key()));
                }
            }
            fences.advance(published.revision);
            // The compaction first: who sees the new revision must not miss it.
            self.0.compacted.store(published.compacted.map_or(0, |compacted| compacted.0 + 1), Ordering::Release);
            self.0.revision.store(published.revision.0, Ordering::Release);
        }
        for section in large {
            let snapshot;
            let layers = self.layers();
            snapshot = self.snapshot();
            let mut keys = Vec::new();
            View::new(layers, &snapshot).scan(&section, published.revision, &mut |found| {
                keys.push(bytes::Bytes::copy_from_slice(found.as_ref().key()));
                ControlFlow::Continue(())
            })?;
            self.fences().split(&section, &keys);
        }
        Ok(())
    }

    /// Bytes of all records, in tables and memtables: what the quota is held against.
    pub fn record_bytes(&self) -> u64 {
        let layers = self.layers();
        self.0.record_bytes.load(Ordering::Relaxed) + layers.iter().map(Memtable::record_bytes).sum::<u64>()
    }

    /// Compactions have removed what they can before this revision.
    pub fn swept(&self) -> Revision {
        Revision(self.0.swept.load(Ordering::Acquire))
    }

    /// Bytes of the database file that are in use, and of the file as a whole.
    pub fn file_bytes(&self) -> Result<(u64, u64), StoreError> {
        self.0.databases.file_bytes(&self.0.env)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

/// A database error as the rules know it.
pub(crate) fn io(doing: &'static str, error: heed::Error) -> StoreError {
    if let heed::Error::Io(error) = &error
        && error.kind() == std::io::ErrorKind::StorageFull
    {
        return StoreError::DiskFull { doing };
    }
    StoreError::Io { doing, cause: error.to_string() }
}

#[cfg(test)]
mod tests;
