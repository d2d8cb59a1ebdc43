//! The one place where a committed request changes the key space.
//!
//! Every replica applies the same requests in the same order and must come to the same bytes. A request is checked
//! first, reading only; then it is written, which does not refuse. A refusal is a result that every replica computes
//! alike; a [`StoreError`] is this machine's trouble and ends the process.

use crate::alarm::{self, AlarmKind, Alarms};
use crate::ids::{At, LeaseId, LogIndex, Revision, Term, Tick};
use crate::lease::{Lessor, Life, Row};
use crate::mvcc::change::Change;
use crate::mvcc::memtable::{Published, Table};
use crate::mvcc::record::{NewEvent, Put as NewPut, Record};
use crate::mvcc::request::*;
use crate::mvcc::view::{Found, StoreError, Tables, View};
use bytes::{BufMut, Bytes, BytesMut};
use std::cmp::Ordering;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

/// The log entry that a request came in.
#[derive(Clone, Copy, Debug, Default)]
pub struct EntryContext {
    /// Where it is.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// Leases start to run now, on a leader; on other members it has no effect.
    pub now: Tick,
}

/// The state that applying needs beside the tables.
pub struct Machine {
    published: Published,
    /// Shared with whoever renews leases and looks at their time; both hold it for moments.
    leases: Arc<Mutex<Lessor>>,
    alarms: Alarms,
}

impl Machine {
    /// Goes on from what the durable tables hold.
    pub fn new(published: Published, leases: Arc<Mutex<Lessor>>, alarms: Alarms) -> Machine {
        Machine { published, leases, alarms }
    }

    /// What readers may see.
    pub fn published(&self) -> Published {
        self.published
    }

    /// The alarms.
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    fn leases(&self) -> MutexGuard<'_, Lessor> {
        self.leases.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Applies one request. Read it top to bottom.
    ///
    /// `changes` receives the events, for the watchers. The caller publishes the revision of the answer once this
    /// returns, and not before.
    pub fn apply<T: Tables>(
        &mut self,
        view: &View<'_, T>,
        request: Request,
        entry: EntryContext,
        changes: &mut Vec<Change>,
    ) -> Result<Answer, StoreError> {
        let outcome = match self.check(view, &request)? {
            Ok(path) => {
                let mut writer = Writer::new(self, view, entry, changes);
                let response = writer.write(request, &path)?;
                if writer.events > 0 {
                    self.published.revision = self.published.revision.next();
                }
                Ok(response)
            }
            Err(rejected) => Err(rejected),
        };
        Ok(Answer { revision: self.published.revision, outcome })
    }

    /// Reads, and may refuse. Gives the way that a transaction takes; other requests have none.
    fn check<T: Tables>(&self, view: &View<'_, T>, request: &Request) -> Result<Result<Path, Rejected>, StoreError> {
        if let Err(rejected) = self.check_alarms(request) {
            return Ok(Err(rejected));
        }
        let checked = match request {
            // etcd looks at the lease first, and inside a transaction at the key.
            Request::Put(put) => match self.check_lease(put) {
                Ok(()) => self.check_kept(view, put)?,
                refused => refused,
            },
            Request::Txn(txn) => return self.check_txn(view, txn),
            Request::Compact(revision) => self.check_compact(*revision),
            Request::LeaseGrant { id, .. } if self.leases().exists(*id) => Err(Rejected::LeaseExists(*id)),
            Request::LeaseRevoke(id) if !self.leases().exists(*id) => Err(Rejected::LeaseNotFound(*id)),
            _ => Ok(()),
        };
        Ok(checked.map(|()| Path::default()))
    }

    fn check_alarms(&self, request: &Request) -> Result<(), Rejected> {
        let change = match request {
            Request::Put(_) | Request::LeaseGrant { .. } => alarm::Change::Stores,
            Request::Txn(txn) if txn.puts() => alarm::Change::Stores,
            Request::DeleteRange(_)
            | Request::Txn(_)
            | Request::Compact(_)
            | Request::LeaseRevoke(_)
            | Request::LeaseExpire { .. } => alarm::Change::Frees,
            Request::LeaseCheckpoint { .. }
            | Request::AlarmActivate(_)
            | Request::AlarmDeactivate(_)
            | Request::AlarmGet(_)
            | Request::MemberPublish { .. } => return Ok(()),
        };
        match self.alarms.forbids(change) {
            None => Ok(()),
            Some(AlarmKind::NoSpace) => Err(Rejected::NoSpace),
            Some(AlarmKind::Corrupt) => Err(Rejected::Corrupt),
        }
    }

    fn check_kept<T: Tables>(&self, view: &View<'_, T>, put: &Put) -> Result<Result<(), Rejected>, StoreError> {
        let keeps = put.value.is_none() || put.lease == LeaseChange::Keep;
        if keeps && view.get(&put.key, self.published.revision)?.is_none() {
            return Ok(Err(Rejected::KeyNotFound));
        }
        Ok(Ok(()))
    }

    fn check_lease(&self, put: &Put) -> Result<(), Rejected> {
        match put.lease {
            LeaseChange::Set(Some(lease)) if !self.leases().exists(lease) => Err(Rejected::LeaseNotFound(lease)),
            _ => Ok(()),
        }
    }

    /// Decides which operations will run, and checks them: what is compared is the state before the transaction, at
    /// every depth.
    fn check_txn<T: Tables>(&self, view: &View<'_, T>, txn: &Txn) -> Result<Result<Path, Rejected>, StoreError> {
        let mut path = Path { succeeded: holds(view, &txn.compare, self.published.revision)?, nested: Vec::new() };
        for op in if path.succeeded { &txn.success } else { &txn.failure } {
            let checked = match op {
                Op::Range(query) => self.published.check(query.revision),
                Op::Put(put) => self.check_kept(view, put)?.and_then(|()| self.check_lease(put)),
                Op::Txn(txn) => self.check_txn(view, txn)?.map(|nested| path.nested.push(nested)),
                Op::DeleteRange(_) => Ok(()),
            };
            if let Err(rejected) = checked {
                return Ok(Err(rejected));
            }
        }
        Ok(Ok(path))
    }

    fn check_compact(&self, revision: Option<Revision>) -> Result<(), Rejected> {
        let Published { revision: current, compacted } = self.published;
        match revision {
            Some(wanted) if wanted > current => Err(Rejected::FutureRevision { wanted, current }),
            Some(wanted) if compacted.is_none_or(|compacted| wanted > compacted) => Ok(()),
            wanted => Err(Rejected::Compacted {
                wanted: wanted.unwrap_or_default(),
                compacted: compacted.unwrap_or_default(),
            }),
        }
    }
}

/// Whether all comparisons hold at a revision.
fn holds<T: Tables>(view: &View<'_, T>, compares: &[Compare], at: Revision) -> Result<bool, StoreError> {
    for compare in compares {
        let (mut any, mut all) = (false, true);
        view.scan(&compare.range, at, &mut |found| {
            any = true;
            all = compare.holds(Some(found.as_ref()));
            if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if !(if any { all } else { compare.holds(None) }) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A transaction that changes nothing, answered at a revision without going through the log.
pub fn read_only_txn<T: Tables>(
    view: &View<'_, T>,
    txn: &Txn,
    published: Published,
) -> Result<Result<TxnResponse, Rejected>, StoreError> {
    let succeeded = holds(view, &txn.compare, published.revision)?;
    let mut results = Vec::new();
    for op in if succeeded { &txn.success } else { &txn.failure } {
        let response = match op {
            Op::Range(query) => {
                if let Err(rejected) = published.check(query.revision) {
                    return Ok(Err(rejected));
                }
                OpResult::Range(view.range(query, published.revision)?)
            }
            Op::Txn(txn) => match read_only_txn(view, txn, published)? {
                Ok(response) => OpResult::Txn(response),
                Err(rejected) => return Ok(Err(rejected)),
            },
            Op::Put(_) | Op::DeleteRange(_) => unreachable!("the caller has seen that the transaction only reads"),
        };
        results.push(OpResponse { revision: published.revision, response });
    }
    Ok(Ok(TxnResponse { succeeded, results }))
}

/// Writes one request that was checked. All its events have the same revision.
struct Writer<'a, 't, T> {
    machine: &'a mut Machine,
    view: &'a View<'t, T>,
    entry: EntryContext,
    changes: &'a mut Vec<Change>,
    before: Revision,
    /// How many were written.
    events: u32,
}

impl<'a, 't, T: Tables> Writer<'a, 't, T> {
    fn new(machine: &'a mut Machine, view: &'a View<'t, T>, entry: EntryContext, changes: &'a mut Vec<Change>) -> Self {
        let before = machine.published.revision;
        Writer { machine, view, entry, changes, before, events: 0 }
    }

    fn write(&mut self, request: Request, path: &Path) -> Result<Response, StoreError> {
        Ok(match request {
            Request::Put(put) => Response::Put(self.put(&put)?),
            Request::DeleteRange(delete) => Response::DeleteRange(self.delete_range(&delete)?),
            Request::Txn(txn) => Response::Txn(self.txn(&txn, path)?),
            Request::Compact(revision) => {
                let revision = revision.unwrap_or_default();
                self.machine.published.compacted = Some(revision);
                self.row(Table::Meta, COMPACTED, Some(Bytes::copy_from_slice(&revision.0.to_be_bytes())));
                Response::Compact
            }
            Request::LeaseGrant { id, ttl_seconds } => {
                let granted = self.machine.leases().grant(id, ttl_seconds, self.entry.index, self.entry.now);
                debug_assert!(granted.is_ok(), "checked before");
                self.lease_row(id);
                Response::LeaseGrant { id, ttl_seconds }
            }
            Request::LeaseRevoke(id) => {
                let keys = self.machine.leases().revoke(id).unwrap_or_default();
                self.end_lease(id, &keys)?;
                Response::LeaseRevoke
            }
            Request::LeaseExpire { life, decided_in } => {
                if decided_in == self.entry.term {
                    let keys = self.machine.leases().expire(life);
                    if let Ok(keys) = keys {
                        self.end_lease(life.id, &keys)?;
                    }
                }
                Response::LeaseExpire
            }
            Request::LeaseCheckpoint { leases, decided_in } => {
                for lease in leases.into_iter().filter(|_| decided_in == self.entry.term) {
                    let changed = self.machine.leases().checkpoint(lease.life, NonZeroU64::new(lease.seconds));
                    if changed {
                        self.lease_row(lease.life.id);
                    }
                }
                Response::LeaseCheckpoint
            }
            Request::AlarmActivate(alarm) => {
                self.machine.alarms.activate(alarm);
                self.row(Table::Alarms, &alarm.to_bytes(), Some(Bytes::new()));
                Response::Alarms(vec![alarm])
            }
            Request::AlarmDeactivate(alarm) => {
                let ended = self.machine.alarms.deactivate(alarm);
                self.row(Table::Alarms, &alarm.to_bytes(), None);
                Response::Alarms(if ended { vec![alarm] } else { vec![] })
            }
            Request::AlarmGet(kind) => Response::Alarms(self.machine.alarms.get(kind).collect()),
            Request::MemberPublish { .. } => Response::MemberPublish,
        })
    }

    fn row(&self, table: Table, key: &[u8], value: Option<Bytes>) {
        self.view.layers().active.put_row(table, Bytes::copy_from_slice(key), value);
    }

    fn end_lease(&mut self, id: LeaseId, keys: &[Bytes]) -> Result<(), StoreError> {
        for key in keys {
            self.delete(key)?;
        }
        self.lease_row(id);
        Ok(())
    }

    /// Writes down what the lessor knows of a lease, or that there is no such lease.
    fn lease_row(&self, id: LeaseId) {
        let row = self.machine.leases().row(id).map(lease_row);
        self.row(Table::Leases, &id.0.to_be_bytes(), row);
    }

    /// The revision as an operation sees it at this point.
    fn seen(&self) -> Revision {
        if self.events > 0 { self.before.next() } else { self.before }
    }

    fn place(&self) -> At {
        At { main: self.before.next(), sub: self.events }
    }

    fn put(&mut self, put: &Put) -> Result<PutResponse, StoreError> {
        let head = self.view.head(&put.key)?;
        let live = head.as_ref().map(Found::as_ref).filter(|head| !head.is_tombstone());
        let had = live.and_then(|head| head.lease);
        let lease = match put.lease {
            LeaseChange::Keep => had,
            LeaseChange::Set(lease) => lease,
        };
        let value = match &put.value {
            Some(value) => &value[..],
            None => live.map_or(&[][..], |head| head.value()),
        };
        let record = Record::encode(NewEvent {
            at: self.place(),
            key: &put.key,
            put: Some(NewPut { value, lease }),
            before: head.as_ref().map(Found::as_ref),
        });
        if had != lease {
            self.detach(had, &put.key, live.map(|head| head.created));
            self.attach(lease, &put.key, record.as_ref().created);
        }
        let previous = head.map(Found::into_record).filter(|head| !head.as_ref().is_tombstone());
        self.push(record, previous.clone())?;
        Ok(PutResponse { previous: if put.prev_kv { previous } else { None } })
    }

    fn delete_range(&mut self, delete: &DeleteRange) -> Result<DeleteRangeResponse, StoreError> {
        let mut found = Vec::new();
        self.view.scan(&delete.range, self.seen(), &mut |record| {
            found.push(record.into_record());
            ControlFlow::Continue(())
        })?;
        for record in &found {
            self.push_tombstone(record)?;
        }
        let deleted = found.len() as u64;
        Ok(DeleteRangeResponse { deleted, previous: if delete.prev_kv { found } else { Vec::new() } })
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        let head = self.view.head(key)?.map(Found::into_record);
        if let Some(head) = head.filter(|head| !head.as_ref().is_tombstone()) {
            self.push_tombstone(&head)?;
        }
        Ok(())
    }

    fn push_tombstone(&mut self, live: &Record) -> Result<(), StoreError> {
        let head = live.as_ref();
        self.detach(head.lease, head.key(), Some(head.created));
        let record = Record::encode(NewEvent { at: self.place(), key: head.key(), put: None, before: Some(head) });
        self.push(record, Some(live.clone()))
    }

    fn push(&mut self, record: Record, replaced: Option<Record>) -> Result<(), StoreError> {
        // Watchers are told what the key was before the whole request, which may write it more than once.
        let previous = match replaced {
            Some(replaced) if replaced.as_ref().at.main > self.before => {
                self.view.get(record.as_ref().key(), self.before)?.map(Found::into_record)
            }
            replaced => replaced,
        };
        self.events += 1;
        self.view.layers().active.push(record.clone());
        self.changes.push(Change { record, previous });
        Ok(())
    }

    fn attach(&mut self, lease: Option<LeaseId>, key: &Bytes, created: At) {
        let Some(lease) = lease else { return };
        self.row(Table::Attachments, &attachment_key(lease, created), Some(Bytes::copy_from_slice(key)));
        let attached = self.machine.leases().attach(lease, key);
        debug_assert!(attached.is_ok(), "checked before");
    }

    fn detach(&mut self, lease: Option<LeaseId>, key: &[u8], created: Option<At>) {
        if let (Some(lease), Some(created)) = (lease, created) {
            self.row(Table::Attachments, &attachment_key(lease, created), None);
            self.machine.leases().detach(lease, key);
        }
    }

    fn txn(&mut self, txn: &Txn, path: &Path) -> Result<TxnResponse, StoreError> {
        let mut nested = path.nested.iter();
        let mut results = Vec::new();
        for op in if path.succeeded { &txn.success } else { &txn.failure } {
            let response = match op {
                Op::Range(query) => OpResult::Range(self.view.range(query, self.seen())?),
                Op::Put(put) => OpResult::Put(self.put(put)?),
                Op::DeleteRange(delete) => OpResult::DeleteRange(self.delete_range(delete)?),
                Op::Txn(txn) => {
                    let path = nested.next().unwrap_or_else(|| unreachable!("one path for each nested transaction"));
                    OpResult::Txn(self.txn(txn, path)?)
                }
            };
            results.push(OpResponse { revision: self.seen(), response });
        }
        Ok(TxnResponse { succeeded: path.succeeded, results })
    }
}

/// Which branch each transaction takes, decided before anything is written.
#[derive(Default)]
struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Txn {
    /// Whether it has a put in any branch.
    pub fn puts(&self) -> bool {
        self.any_op(&|op| matches!(op, Op::Put(_)))
    }

    /// Whether no branch can change anything.
    pub fn is_read_only(&self) -> bool {
        !self.any_op(&|op| matches!(op, Op::Put(_) | Op::DeleteRange(_)))
    }

    fn any_op(&self, test: &dyn Fn(&Op) -> bool) -> bool {
        self.success.iter().chain(&self.failure).any(|op| test(op) || matches!(op, Op::Txn(txn) if txn.any_op(test)))
    }
}

impl Compare {
    fn holds(&self, record: Option<crate::mvcc::record::RecordRef<'_>>) -> bool {
        let number = |of: fn(&crate::mvcc::record::RecordRef<'_>) -> i64| record.as_ref().map_or(0, of);
        let ordering = match &self.operand {
            Operand::Version(operand) => number(|record| record.version as i64).cmp(operand),
            Operand::Created(operand) => number(|record| record.created.main.0 as i64).cmp(operand),
            Operand::Modified(operand) => number(|record| record.at.main.0 as i64).cmp(operand),
            Operand::Lease(operand) => number(|record| record.lease.map_or(0, |lease| lease.0)).cmp(operand),
            Operand::Value(operand) => match record {
                Some(record) => record.value().cmp(operand),
                None => return false,
            },
            Operand::Unknown => Ordering::Equal,
        };
        match self.relation {
            Relation::Equal => ordering.is_eq(),
            Relation::Greater => ordering.is_gt(),
            Relation::Less => ordering.is_lt(),
            Relation::NotEqual => ordering.is_ne(),
            Relation::Unknown => true,
        }
    }
}

/// The row of [`Table::Meta`] that has the compacted revision, big-endian.
pub const COMPACTED: &[u8] = b"compacted";

/// The key of a row of [`Table::Attachments`]: the lease, and where the key was created, which no other key shares.
fn attachment_key(lease: LeaseId, created: At) -> [u8; 8 + At::LEN] {
    let mut key = [0; 8 + At::LEN];
    key[..8].copy_from_slice(&lease.0.to_be_bytes());
    key[8..].copy_from_slice(&created.to_bytes());
    key
}

/// The lease of a row of [`Table::Attachments`].
pub fn attachment_lease(key: &[u8]) -> Option<LeaseId> {
    Some(LeaseId(i64::from_be_bytes(*key.first_chunk()?)))
}

/// The row of [`Table::Leases`]: the entry that granted it, granted seconds and, if it was ever written down, remaining
/// seconds (else 0).
fn lease_row(lease: Row) -> Bytes {
    let mut row = BytesMut::with_capacity(24);
    row.put_u64(lease.life.granted_at.0);
    row.put_u64(lease.granted_seconds);
    row.put_u64(lease.checkpoint_seconds.map_or(0, NonZeroU64::get));
    row.freeze()
}

/// Reads a row of [`Table::Leases`].
pub fn parse_lease_row(key: &[u8], row: &[u8]) -> Option<Row> {
    let number = |at: usize| row.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
    Some(Row {
        life: Life { id: LeaseId(i64::from_be_bytes(key.try_into().ok()?)), granted_at: LogIndex(number(0)?) },
        granted_seconds: number(8)?,
        checkpoint_seconds: NonZeroU64::new(number(16)?),
    })
}

#[cfg(test)]
mod tests;
