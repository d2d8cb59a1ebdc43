//! The LMDB databases and the layout of their rows.
//!
//! | database  | key                    | value                                                |
//! |-----------|------------------------|------------------------------------------------------|
//! | keys      | user key, see `keys`   | newest record of the key, without a large value      |
//! | long_keys | see `keys`             | the same for keys that LMDB cannot hold in one piece |
//! | history   | revision u64, sub u32  | record of the event                                  |
//! | others    | as `Table` says        | CRC-32C u32 │ value                                  |
//!
//! Numbers are big-endian. Every record has its own checksum; the rows of the small tables have one in front, over key
//! and value.

use super::keys::KeyTable;
use super::{Identity, io};
use e2d_core::ids::At;
use e2d_core::mvcc::memtable::Table;
use e2d_core::mvcc::range::KeyRange;
use e2d_core::mvcc::record::{BadRecord, RecordRef};
use e2d_core::mvcc::view::{StoreError, Tables};
use heed::types::Bytes as Raw;
use heed::{CommitOrAbort, Database, RoTxn, RwTxn, WithoutTls};
use std::cell::OnceCell;
use std::ops::{Bound, ControlFlow};

type Env = heed::Env<WithoutTls>;

pub(super) const FORMAT: &[u8] = b"format";
pub(super) const CLUSTER: &[u8] = b"cluster";
pub(super) const MEMBER: &[u8] = b"member";
pub(super) const APPLIED_INDEX: &[u8] = b"applied_index";
pub(super) const APPLIED_TERM: &[u8] = b"applied_term";
pub(super) const REVISION: &[u8] = b"revision";
pub(super) const CONF_STATE: &[u8] = b"conf_state";
pub(super) const RECORD_BYTES: &[u8] = b"record_bytes";
pub(super) const SWEPT: &[u8] = b"swept";

/// The layout that this version reads and writes.
const FORMAT_VERSION: u64 = 1;

/// Sees key and value of a row, and says what is wrong with it.
type VisitRow<'v> = dyn FnMut(&[u8], &[u8]) -> Result<(), &'static str> + 'v;

/// All databases of the store.
pub(crate) struct Databases {
    pub(super) keys: KeyTable,
    pub(super) history: Database<'static, Raw, Raw>,
    leases: Database<'static, Raw, Raw>,
    attachments: Database<'static, Raw, Raw>,
    members: Database<'static, Raw, Raw>,
    alarms: Database<'static, Raw, Raw>,
    fences: Database<'static, Raw, Raw>,
    meta: Database<'static, Raw, Raw>,
}

impl Databases {
    pub(super) fn create(env: &Env) -> Result<Databases, StoreError> {
        let txn = env.write_txn().map_err(|error| io("opening the store", error))?;
        let made = env
            .create_databases_and_commit(txn, |opener, txn| {
                let mut create = |name| opener.create_database::<Raw, Raw>(txn, Some(name));
                Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit([
                    create("keys")?,
                    create("long_keys")?,
                    create("history")?,
                    create("leases")?,
                    create("attachments")?,
                    create("members")?,
                    create("alarms")?,
                    create("fences")?,
                    create("meta")?,
                ]))
            })
            .map_err(|error| io("opening the store", error))?;
        let CommitOrAbort::Commit(made) = made else { unreachable!("nothing above aborts") };
        let [keys, long_keys, history, leases, attachments, members, alarms, fences, meta] = made;
        Ok(Databases {
            keys: KeyTable { keys, long_keys },
            history,
            leases,
            attachments,
            members,
            alarms,
            fences,
            meta,
        })
    }

    /// Writes whose store this is into a new one, and refuses one that belongs to somebody else.
    pub(super) fn check_identity(&self, env: &Env, identity: Identity) -> Result<(), StoreError> {
        let mut txn = env.write_txn().map_err(|error| io("opening the store", error))?;
        let expected = [(FORMAT, FORMAT_VERSION), (CLUSTER, identity.cluster.0), (MEMBER, identity.member.0)];
        if self.meta_number(&txn, FORMAT)?.is_none() {
            for (name, number) in expected {
                self.put_row(&mut txn, Table::Meta, name, Some(&number.to_be_bytes()))?;
            }
            return txn.commit().map_err(|error| io("writing the identity of the store", error));
        }
        for (name, expected) in expected {
            let found = self.meta_number(&txn, name)?;
            if found != Some(expected) {
                let name = String::from_utf8_lossy(name);
                return Err(StoreError::Inconsistent {
                    table: "meta",
                    what: format!(
                        "{name} is {found:x?}, expected {expected:x}: this store is from another member, cluster or version"
                    ),
                });
            }
        }
        Ok(())
    }

    fn small(&self, table: Table) -> &Database<'static, Raw, Raw> {
        match table {
            Table::Leases => &self.leases,
            Table::Attachments => &self.attachments,
            Table::Members => &self.members,
            Table::Alarms => &self.alarms,
            Table::Fences => &self.fences,
            Table::Meta => &self.meta,
        }
    }

    pub(super) fn put_row(
        &self,
        txn: &mut RwTxn<'_>,
        table: Table,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let database = self.small(table);
        match value {
            Some(value) => {
                let mut row = Vec::with_capacity(4 + value.len());
                row.extend_from_slice(&row_crc(key, value).to_be_bytes());
                row.extend_from_slice(value);
                database.put(txn, key, &row)
            }
            None => database.delete(txn, key).map(drop),
        }
        .map_err(|error| io("writing a row", error))
    }

    pub(super) fn meta<'t>(&self, txn: &'t RoTxn<'_>, name: &[u8]) -> Result<Option<&'t [u8]>, StoreError> {
        match self.meta.get(txn, name).map_err(|error| io("reading a row", error))? {
            Some(row) => Ok(Some(check_row(Table::Meta, name, row)?)),
            None => Ok(None),
        }
    }

    pub(super) fn meta_number(&self, txn: &RoTxn<'_>, name: &[u8]) -> Result<Option<u64>, StoreError> {
        let Some(value) = self.meta(txn, name)? else { return Ok(None) };
        let number = value.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Inconsistent {
            table: "meta",
            what: format!("{} has {} bytes, expected 8", String::from_utf8_lossy(name), value.len()),
        })?;
        Ok(Some(number))
    }

    pub(super) fn each_row(&self, txn: &RoTxn<'_>, table: Table, visit: &mut VisitRow<'_>) -> Result<(), StoreError> {
        for row in self.small(table).iter(txn).map_err(|error| io("reading a table", error))? {
            let (key, row) = row.map_err(|error| io("reading a table", error))?;
            visit(key, check_row(table, key, row)?).map_err(|what| StoreError::Inconsistent {
                table: name_of(table),
                what: format!("row {}: {what}", hex(key)),
            })?;
        }
        Ok(())
    }

    /// Bytes in use and bytes of the file.
    pub(super) fn file_bytes(&self, env: &Env) -> Result<(u64, u64), StoreError> {
        let txn = env.read_txn().map_err(|error| io("reading the store", error))?;
        let all = [
            self.keys.keys,
            self.keys.long_keys,
            self.history,
            self.leases,
            self.attachments,
            self.members,
            self.alarms,
            self.fences,
            self.meta,
        ];
        let mut used = 0;
        for database in all {
            let stat = database.stat(&txn).map_err(|error| io("reading the store", error))?;
            used += stat.page_size as u64 * (stat.branch_pages + stat.leaf_pages + stat.overflow_pages) as u64;
        }
        let file = env.real_disk_size().map_err(|error| io("reading the store", error))?;
        Ok((used, file))
    }
}

/// The tables at one moment: a read transaction that starts when something is read first, so that a read which the
/// memtables answer has none.
pub struct Snapshot<'e> {
    env: &'e Env,
    databases: &'e Databases,
    txn: OnceCell<RoTxn<'e, WithoutTls>>,
}

impl<'e> Snapshot<'e> {
    pub(super) fn new(env: &'e Env, databases: &'e Databases) -> Snapshot<'e> {
        Snapshot { env, databases, txn: OnceCell::new() }
    }

    fn txn(&self) -> Result<&RoTxn<'e, WithoutTls>, StoreError> {
        if let Some(txn) = self.txn.get() {
            return Ok(txn);
        }
        let txn = self.env.read_txn().map_err(|error| io("reading the store", error))?;
        Ok(self.txn.get_or_init(|| txn))
    }
}

impl Tables for Snapshot<'_> {
    fn head(&self, key: &[u8]) -> Result<Option<RecordRef<'_>>, StoreError> {
        self.databases.keys.get(self.txn()?, key)
    }

    fn scan_heads(
        &self,
        range: &KeyRange,
        visit: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        self.databases.keys.scan(self.txn()?, range, visit)
    }

    fn event(&self, at: At) -> Result<Option<RecordRef<'_>>, StoreError> {
        let row =
            self.databases.history.get(self.txn()?, &at.to_bytes()).map_err(|error| io("reading history", error))?;
        row.map(|row| parse_event(at, row)).transpose()
    }

    fn scan_events(
        &self,
        from: At,
        visit: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        scan_events(&self.databases.history, self.txn()?, from, visit)
    }
}

pub(super) fn scan_events(
    history: &Database<'static, Raw, Raw>,
    txn: &RoTxn<'_>,
    from: At,
    visit: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>, StoreError>,
) -> Result<(), StoreError> {
    let from = from.to_bytes();
    let bounds = (Bound::Included(&from[..]), Bound::Unbounded);
    for row in history.range(txn, &bounds).map_err(|error| io("reading history", error))? {
        let (key, row) = row.map_err(|error| io("reading history", error))?;
        let at = At::from_bytes(key).ok_or_else(|| StoreError::Inconsistent {
            table: "history",
            what: format!("row key {} is not a place in history", hex(key)),
        })?;
        if visit(parse_event(at, row)?)?.is_break() {
            break;
        }
    }
    Ok(())
}

fn parse_event(at: At, row: &[u8]) -> Result<RecordRef<'_>, StoreError> {
    let record = RecordRef::parse(row).map_err(|cause| damaged("history", at, cause))?;
    if record.at != at {
        return Err(StoreError::Inconsistent {
            table: "history",
            what: format!("row {at} has the event {}", record.at),
        });
    }
    Ok(record)
}

pub(super) fn damaged(table: &'static str, row: impl std::fmt::Display, cause: BadRecord) -> StoreError {
    StoreError::Damaged { table, row: row.to_string(), cause }
}

fn name_of(table: Table) -> &'static str {
    match table {
        Table::Leases => "leases",
        Table::Attachments => "attachments",
        Table::Members => "members",
        Table::Alarms => "alarms",
        Table::Fences => "fences",
        Table::Meta => "meta",
    }
}

fn row_crc(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

fn check_row<'r>(table: Table, key: &[u8], row: &'r [u8]) -> Result<&'r [u8], StoreError> {
    let bad = |cause| damaged(name_of(table), hex(key), cause);
    let (found, value) = row.split_first_chunk::<4>().ok_or_else(|| bad(BadRecord::Malformed(row.len())))?;
    let (found, computed) = (u32::from_be_bytes(*found), row_crc(key, value));
    if found != computed {
        return Err(bad(BadRecord::Checksum { found, computed }));
    }
    Ok(value)
}

/// Bytes for an error text.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().take(64).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
