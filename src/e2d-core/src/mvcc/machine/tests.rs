//! The machine over tables in memory, held against a model that keeps every state it ever had.

use super::*;
use crate::alarm::Alarm;
use crate::ids::MemberId;
use crate::lease::Settings;
use crate::mvcc::memtable::{Layers, Memtable, Sink};
use crate::mvcc::range::KeyRange;
use crate::mvcc::record::RecordRef;
use crate::mvcc::sweep;
use std::collections::BTreeMap;

/// Durable tables in memory: rows are bytes, so that they take the same way as on disk.
#[derive(Default, Clone)]
struct MemoryTables {
    keys: BTreeMap<Vec<u8>, Vec<u8>>,
    history: BTreeMap<At, Vec<u8>>,
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
    /// Values longer than this stay in the history.
    inline: usize,
}

impl MemoryTables {
    fn parse(row: &[u8]) -> RecordRef<'_> {
        RecordRef::parse(row).unwrap()
    }
}

impl Tables for MemoryTables {
    fn head(&self, key: &[u8]) -> Result<Option<RecordRef<'_>>, StoreError> {
        Ok(self.keys.get(key).map(|row| Self::parse(row)))
    }

    fn scan_heads(
        &self,
        range: &KeyRange,
        visit: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        let Some(bounds) = range.bounds() else { return Ok(()) };
        for row in self.keys.range::<[u8], _>(bounds).map(|(_, row)| row) {
            if visit(Self::parse(row))?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn event(&self, at: At) -> Result<Option<RecordRef<'_>>, StoreError> {
        Ok(self.history.get(&at).map(|row| Self::parse(row)))
    }

    fn scan_events(
        &self,
        from: At,
        visit: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        for row in self.history.range(from..).map(|(_, row)| row) {
            if visit(Self::parse(row))?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Sink for MemoryTables {
    type Error = ();

    fn head(&mut self, record: &Record) -> Result<(), ()> {
        let mut row = Vec::new();
        record.as_ref().head_row(self.inline, &mut row);
        self.keys.insert(record.key().to_vec(), row);
        Ok(())
    }

    fn event(&mut self, at: At, record: &Record) -> Result<(), ()> {
        self.history.insert(at, record.bytes().to_vec());
        Ok(())
    }

    fn row(&mut self, table: Table, key: &[u8], value: Option<&[u8]>) -> Result<(), ()> {
        match value {
            Some(value) => self.rows.insert((table, key.to_vec()), value.to_vec()),
            None => self.rows.remove(&(table, key.to_vec())),
        };
        Ok(())
    }
}

/// A machine with its layers and tables, as the daemon holds them.
struct Node {
    machine: Machine,
    layers: Layers,
    tables: MemoryTables,
    changes: Vec<Change>,
    swept_from: Revision,
    /// Bytes of the records in the tables.
    size: u64,
}

impl Node {
    fn new(inline: usize) -> Node {
        let leases =
            Arc::new(Mutex::new(Lessor::new(Settings { retry_millis: 1000, checkpoint_interval_millis: None })));
        let published = Published { revision: Revision::INITIAL, compacted: None };
        Node {
            machine: Machine::new(published, leases, Alarms::default()),
            layers: Layers::default(),
            tables: MemoryTables { inline, ..MemoryTables::default() },
            changes: Vec::new(),
            swept_from: Revision(0),
            size: 0,
        }
    }

    fn apply(&mut self, request: Request) -> Answer {
        let view = View::new(self.layers.clone(), &self.tables);
        self.machine.apply(&view, request, EntryContext::default(), &mut self.changes).unwrap()
    }

    fn ok(&mut self, request: Request) -> Response {
        self.apply(request).outcome.unwrap()
    }

    fn revision(&self) -> u64 {
        self.machine.published().revision.0
    }

    fn freeze(&mut self) {
        assert!(self.layers.frozen.is_none());
        self.layers = Layers { frozen: Some(self.layers.active.clone()), active: Arc::new(Memtable::default()) };
    }

    fn commit(&mut self) {
        if let Some(frozen) = self.layers.frozen.take() {
            self.size += frozen.record_bytes();
            frozen.drain_into(&mut self.tables).unwrap();
        }
    }

    /// Removes what compaction allows, up to `max` events, from the committed tables.
    fn sweep(&mut self, max: usize) {
        let Some(compacted) = self.machine.published().compacted else { return };
        let mut done = Vec::new();
        self.tables
            .scan_events(At::start_of(self.swept_from), &mut |event| {
                let Some(removal) = sweep::removal(&event, compacted) else { return Ok(ControlFlow::Break(())) };
                if done.len() >= max {
                    return Ok(ControlFlow::Break(()));
                }
                done.push((event.at, event.key().to_vec(), removal));
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        for (at, key, removal) in done {
            let mut gone = 0;
            if let Some(superseded) = removal.superseded {
                gone += self.tables.history.remove(&superseded).map_or(0, |row| row.len());
            }
            if removal.itself {
                gone += self.tables.history.remove(&at).map_or(0, |row| row.len());
                if self.tables.keys.get(&key).is_some_and(|row| MemoryTables::parse(row).at == at) {
                    self.tables.keys.remove(&key);
                }
            }
            self.size -= gone as u64;
            self.swept_from = at.main;
        }
    }

    fn range(&self, query: &RangeQuery) -> Result<RangeResponse, Rejected> {
        let published = self.machine.published();
        published.check(query.revision)?;
        Ok(View::new(self.layers.clone(), &self.tables).range(query, published.revision).unwrap())
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> Put {
    Put { key: bytes(key), value: Some(bytes(value)), lease: LeaseChange::Set(None), prev_kv: true }
}

fn leased(key: &str, lease: i64) -> Put {
    Put { lease: LeaseChange::Set(Some(LeaseId(lease))), ..put(key, "v") }
}

fn delete(key: &str, end: &str) -> DeleteRange {
    DeleteRange { range: KeyRange::from_wire(bytes(key), bytes(end)), prev_kv: true }
}

fn query(key: &str, end: &str) -> RangeQuery {
    RangeQuery {
        range: KeyRange::from_wire(bytes(key), bytes(end)),
        limit: None,
        revision: None,
        order: Order { by: OrderBy::Key, descending: false, unspecified: true },
        keys_only: false,
        count_only: false,
        filter: RevisionFilter::default(),
    }
}

fn keys_of(response: &RangeResponse) -> Vec<String> {
    response.records.iter().map(|record| String::from_utf8_lossy(&record.key()).into_owned()).collect()
}

#[test]
fn a_fresh_store_is_at_one_and_its_first_write_makes_two() {
    let mut node = Node::new(1024);
    assert_eq!(node.revision(), 1);
    node.ok(Request::Put(put("a", "1")));
    assert_eq!(node.revision(), 2);
}

#[test]
fn what_changes_nothing_has_no_revision() {
    let mut node = Node::new(1024);
    node.ok(Request::DeleteRange(delete("a", "z")));
    node.ok(Request::Txn(Txn { success: vec![Op::DeleteRange(delete("a", ""))], ..Txn::default() }));
    node.ok(Request::LeaseGrant { id: LeaseId(1), ttl_seconds: 5 });
    node.ok(Request::LeaseRevoke(LeaseId(1)));
    assert_eq!(node.revision(), 1);
    assert!(node.changes.is_empty());
}

#[test]
fn a_transaction_is_one_revision_and_its_reads_see_its_writes() {
    let mut node = Node::new(1024);
    node.ok(Request::Put(put("gone", "1")));
    let Response::Txn(txn) = node.ok(Request::Txn(Txn {
        compare: vec![],
        success: vec![
            Op::Range(query("a", "z")),
            Op::Put(put("a", "1")),
            Op::Range(query("a", "z")),
            Op::DeleteRange(delete("gone", "")),
            Op::Put(put("b", "2")),
            Op::Range(query("a", "z")),
        ],
        failure: vec![],
    })) else {
        panic!()
    };
    let seen: Vec<_> = txn
        .results
        .iter()
        .filter_map(|result| match &result.response {
            OpResult::Range(range) => Some((result.revision.0, keys_of(range).join(" "))),
            _ => None,
        })
        .collect();
    assert_eq!(seen, [(2, "gone".into()), (3, "a gone".into()), (3, "a b".to_string())]);
    assert_eq!(node.revision(), 3);
    let places: Vec<_> = node.changes.iter().map(|change| change.record.as_ref().at.to_string()).collect();
    assert_eq!(places, ["2.0", "3.0", "3.1", "3.2"]);
}

#[test]
fn comparisons_speak_of_the_state_before_the_transaction_at_every_depth() {
    let mut node = Node::new(1024);
    let exists = |key: &str| Compare {
        range: KeyRange::single(bytes(key)),
        relation: Relation::Greater,
        operand: Operand::Version(0),
    };
    let inner = Txn {
        compare: vec![exists("a")],
        success: vec![Op::Put(put("b", "inner saw the outer write"))],
        failure: vec![Op::Put(put("b", "before"))],
    };
    node.ok(Request::Txn(Txn { success: vec![Op::Put(put("a", "1")), Op::Txn(inner)], ..Txn::default() }));
    assert_eq!(&node.range(&query("b", "")).unwrap().records[0].value()[..], b"before");
}

#[test]
fn a_refused_operation_leaves_nothing_of_its_transaction() {
    let mut node = Node::new(1024);
    node.ok(Request::Put(put("a", "1")));
    for refused in [
        Op::Put(leased("x", 9)),
        Op::Put(Put { value: None, ..put("missing", "") }),
        Op::Range(RangeQuery { revision: Some(Revision(99)), ..query("a", "") }),
        Op::Range(RangeQuery { revision: Some(Revision(0)), ..query("a", "") }),
    ] {
        let txn = Txn { success: vec![Op::Put(put("b", "2")), refused], ..Txn::default() };
        assert!(node.apply(Request::Txn(txn)).outcome.is_err());
        assert_eq!(node.revision(), 2);
        assert_eq!(keys_of(&node.range(&query("\0", "\0")).unwrap()), ["a"]);
    }
}

#[test]
fn revoking_a_lease_deletes_its_keys_in_order_in_one_revision() {
    let mut node = Node::new(1024);
    node.ok(Request::LeaseGrant { id: LeaseId(7), ttl_seconds: 5 });
    for key in ["c", "a", "b", "moved", "freed", "deleted"] {
        node.ok(Request::Put(leased(key, 7)));
    }
    node.ok(Request::LeaseGrant { id: LeaseId(8), ttl_seconds: 5 });
    node.ok(Request::Put(leased("moved", 8)));
    node.ok(Request::Put(put("freed", "")));
    node.ok(Request::DeleteRange(delete("deleted", "")));
    let kept = Put { lease: LeaseChange::Keep, ..put("a", "again") };
    node.ok(Request::Put(kept));
    node.changes.clear();
    let before = node.revision();
    node.ok(Request::LeaseRevoke(LeaseId(7)));
    assert_eq!(node.revision(), before + 1);
    let deleted: Vec<_> = node.changes.iter().map(|change| change.record.key()).collect();
    assert_eq!(deleted, ["a", "b", "c"]);
    assert_eq!(node.apply(Request::LeaseRevoke(LeaseId(7))).outcome, Err(Rejected::LeaseNotFound(LeaseId(7))));
}

#[test]
fn the_rows_of_leases_are_what_a_restart_needs() {
    let mut node = Node::new(1024);
    node.ok(Request::LeaseGrant { id: LeaseId(-3), ttl_seconds: 5 });
    node.ok(Request::Put(leased("a", -3)));
    node.ok(Request::Put(leased("b", -3)));
    node.ok(Request::DeleteRange(delete("a", "")));
    node.freeze();
    node.commit();
    let leases: Vec<_> = node.tables.rows.iter().filter(|((table, _), _)| *table == Table::Leases).collect();
    let row = parse_lease_row(&leases[0].0.1, leases[0].1).unwrap();
    assert_eq!((leases.len(), row.life.id, row.granted_seconds), (1, LeaseId(-3), 5));
    let attached: Vec<_> = node
        .tables
        .rows
        .iter()
        .filter(|((table, _), _)| *table == Table::Attachments)
        .map(|((_, key), value)| (attachment_lease(key).unwrap(), value.clone()))
        .collect();
    assert_eq!(attached, [(LeaseId(-3), b"b".to_vec())]);
}

#[test]
fn alarms_refuse_what_they_should_and_nothing_else() {
    let mut node = Node::new(1024);
    node.ok(Request::LeaseGrant { id: LeaseId(1), ttl_seconds: 5 });
    node.ok(Request::Put(put("a", "1")));
    let alarm = Alarm { member: MemberId(5), kind: AlarmKind::NoSpace };
    node.ok(Request::AlarmActivate(alarm));
    let put_in_the_branch_not_taken = Txn { failure: vec![Op::Put(put("b", ""))], ..Txn::default() };
    for refused in [
        Request::Put(put("b", "")),
        Request::Txn(put_in_the_branch_not_taken),
        Request::LeaseGrant { id: LeaseId(2), ttl_seconds: 5 },
    ] {
        assert_eq!(node.apply(refused).outcome, Err(Rejected::NoSpace));
    }
    node.ok(Request::Txn(Txn { success: vec![Op::DeleteRange(delete("a", ""))], ..Txn::default() }));
    node.ok(Request::Compact(Some(Revision(2))));
    node.ok(Request::LeaseRevoke(LeaseId(1)));
    assert_eq!(node.ok(Request::AlarmDeactivate(alarm)), Response::Alarms(vec![alarm]));
    assert_eq!(node.ok(Request::AlarmDeactivate(alarm)), Response::Alarms(vec![]));
    node.ok(Request::Put(put("b", "")));

    node.ok(Request::AlarmActivate(Alarm { member: MemberId(5), kind: AlarmKind::Corrupt }));
    assert_eq!(node.apply(Request::DeleteRange(delete("b", ""))).outcome, Err(Rejected::Corrupt));
    assert_eq!(node.apply(Request::Put(put("b", ""))).outcome, Err(Rejected::Corrupt));
}

#[test]
fn compaction_refuses_what_etcd_refuses() {
    let mut node = Node::new(1024);
    for value in ["1", "2", "3"] {
        node.ok(Request::Put(put("a", value)));
    }
    assert!(matches!(node.apply(Request::Compact(None)).outcome, Err(Rejected::Compacted { .. })));
    assert!(matches!(node.apply(Request::Compact(Some(Revision(5)))).outcome, Err(Rejected::FutureRevision { .. })));
    node.ok(Request::Compact(Some(Revision(0))));
    assert!(matches!(node.apply(Request::Compact(Some(Revision(0)))).outcome, Err(Rejected::Compacted { .. })));
    node.ok(Request::Compact(Some(Revision(3))));
    assert!(matches!(node.apply(Request::Compact(Some(Revision(3)))).outcome, Err(Rejected::Compacted { .. })));
    assert!(node.range(&RangeQuery { revision: Some(Revision(2)), ..query("a", "") }).is_err());
    let at_compacted = node.range(&RangeQuery { revision: Some(Revision(3)), ..query("a", "") }).unwrap();
    assert_eq!(&at_compacted.records[0].value()[..], b"2");
}

/// etcd#18089, etcd#19179: the deletion at the compacted revision is still told.
#[test]
fn etcd_19179_a_deletion_at_the_compacted_revision_stays_in_history() {
    let mut node = Node::new(1024);
    node.ok(Request::Put(put("a", "1")));
    node.ok(Request::DeleteRange(delete("a", "")));
    node.ok(Request::Put(put("b", "1")));
    node.ok(Request::Compact(Some(Revision(3))));
    node.freeze();
    node.commit();
    node.sweep(usize::MAX);
    let mut out = Vec::new();
    View::new(node.layers.clone(), &node.tables)
        .changes(Revision(3), node.machine.published(), 1 << 20, true, &mut out)
        .unwrap();
    let told: Vec<_> =
        out.iter().map(|change| (change.record.as_ref().at.main.0, change.record.as_ref().is_tombstone())).collect();
    assert_eq!(told, [(3, true), (4, false)]);
    // The next compaction takes it away, with the key's row.
    node.ok(Request::Compact(Some(Revision(4))));
    node.sweep(usize::MAX);
    assert_eq!(node.tables.keys.keys().collect::<Vec<_>>(), [b"b"]);
    assert_eq!(node.tables.history.keys().map(|at| at.main.0).collect::<Vec<_>>(), [4]);
}

/// A small deterministic generator; the seed is all that a failure needs.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    }
}

/// Every state that ever was, and every event.
#[derive(Default)]
struct Model {
    states: Vec<BTreeMap<String, (String, u64, u64, u64)>>,
    events: Vec<(u64, String, Option<String>)>,
}

impl Model {
    fn write(&mut self, writes: &[(String, Option<String>)]) {
        let mut state = self.states.last().unwrap().clone();
        let revision = self.states.len() as u64;
        let mut any = false;
        for (key, value) in writes {
            match value {
                Some(value) => {
                    let entry = state.entry(key.clone()).or_insert((String::new(), revision, 0, 0));
                    *entry = (value.clone(), entry.1, revision, entry.3 + 1);
                }
                None => {
                    if state.remove(key).is_none() {
                        continue;
                    }
                }
            }
            any = true;
            self.events.push((revision, key.clone(), value.clone()));
        }
        if any {
            self.states.push(state);
        }
    }
}

fn run_model(seed: u64, steps: usize) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut node = Node::new(if seed.is_multiple_of(2) { 1024 } else { 6 });
    let mut model = Model::default();
    model.states.extend([BTreeMap::new(), BTreeMap::new()]);
    let mut keys: Vec<String> = (0..12).map(|n| format!("k{n:x}")).collect();
    keys.push(format!("k{}", "y".repeat(600)));
    let mut compacted = 0u64;
    for step in 0..steps {
        let key = keys[dice.roll(keys.len() as u64) as usize].clone();
        let value = format!("value {step} {}", "x".repeat(dice.roll(10) as usize));
        match dice.roll(20) {
            0..=7 => {
                node.ok(Request::Put(put(&key, &value)));
                model.write(&[(key, Some(value))]);
            }
            8..=9 => {
                node.ok(Request::DeleteRange(delete(&key, "")));
                model.write(&[(key, None)]);
            }
            10 => {
                let end = keys[dice.roll(12) as usize].clone();
                let range = KeyRange::from_wire(bytes(&key), bytes(&end));
                let hit: Vec<_> =
                    model.states.last().unwrap().keys().filter(|key| range.contains(key.as_bytes())).cloned().collect();
                node.ok(Request::DeleteRange(delete(&key, &end)));
                model.write(&hit.into_iter().map(|key| (key, None)).collect::<Vec<_>>());
            }
            11..=12 => {
                let other = keys[dice.roll(12) as usize].clone();
                if other != key {
                    let success = vec![Op::Put(put(&key, &value)), Op::DeleteRange(delete(&other, ""))];
                    node.ok(Request::Txn(Txn { success, ..Txn::default() }));
                    model.write(&[(key, Some(value)), (other, None)]);
                }
            }
            13..=14 if node.layers.frozen.is_none() => node.freeze(),
            15..=16 => node.commit(),
            17 => {
                let to = dice.roll(node.revision() + 1);
                if node.apply(Request::Compact(Some(Revision(to)))).outcome.is_ok() {
                    compacted = to;
                }
            }
            _ => node.sweep(dice.roll(9) as usize),
        }
        assert_eq!(node.revision(), model.states.len() as u64 - 1, "seed {seed} step {step}");

        // Any readable revision reads as it was.
        let at = compacted.max(1) + dice.roll(node.revision() - compacted.max(1) + 1);
        let asked = RangeQuery { revision: Some(Revision(at)), ..query("\0", "\0") };
        let found: Vec<_> = node
            .range(&asked)
            .unwrap()
            .records
            .iter()
            .map(|record| {
                let fields = record.as_ref();
                let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                (text(record.key()), (text(record.value()), fields.created.main.0, fields.at.main.0, fields.version))
            })
            .collect();
        let expected: Vec<_> = model.states[at as usize].clone().into_iter().collect();
        assert_eq!(found, expected, "seed {seed} step {step} revision {at}");

        // History from any permitted revision is told whole and in order.
        let from = compacted.max(1) + dice.roll(node.revision() + 1 - compacted.max(1) + 1);
        let (mut told, mut next) = (Vec::new(), Revision(from));
        let view = View::new(node.layers.clone(), &node.tables);
        while next <= node.machine.published().revision {
            let mut piece = Vec::new();
            let after =
                view.changes(next, node.machine.published(), dice.roll(400) as usize, true, &mut piece).unwrap();
            assert!(after > next, "seed {seed} step {step}: no progress from {next}");
            assert!(
                piece
                    .iter()
                    .all(|change| change.record.as_ref().at.main >= next && change.record.as_ref().at.main < after)
            );
            told.extend(piece);
            next = after;
        }
        let told: Vec<_> = told
            .iter()
            .map(|change| {
                let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
                let fields = change.record.as_ref();
                if let Some(previous) = &change.previous {
                    let before = &model.states[fields.at.main.0 as usize - 1];
                    assert_eq!(previous.value(), before[&text(change.record.key())].0.as_bytes());
                }
                let value = (!fields.is_tombstone()).then(|| text(change.record.value()));
                (fields.at.main.0, text(change.record.key()), value)
            })
            .collect();
        let expected: Vec<_> = model.events.iter().filter(|(revision, ..)| *revision >= from).cloned().collect();
        assert_eq!(told, expected, "seed {seed} step {step} from {from}");
    }
    // Once everything is swept, what is counted is what is there.
    while node.layers.frozen.is_some() || !node.layers.active.is_empty() {
        node.commit();
        node.freeze();
        node.commit();
    }
    node.sweep(usize::MAX);
    let held: usize = node.tables.history.values().map(Vec::len).sum();
    assert_eq!(node.size, held as u64, "seed {seed}");
}

#[test]
fn every_readable_revision_reads_as_it_was() {
    for seed in 0..200 {
        run_model(seed, 150);
    }
}

#[test]
fn the_previous_value_is_that_before_the_whole_transaction() {
    let mut node = Node::new(1024);
    node.ok(Request::Put(put("a", "old")));
    node.changes.clear();
    let ops = vec![Op::Put(put("a", "mid")), Op::DeleteRange(delete("a", "\0")), Op::Put(put("b", "new"))];
    node.ok(Request::Txn(Txn { success: ops, ..Txn::default() }));
    let text = |change: &Change| {
        change.previous.as_ref().map(|previous| String::from_utf8_lossy(&previous.value()).into_owned())
    };
    let told: Vec<_> = node.changes.iter().map(text).collect();
    assert_eq!(told, [Some("old".into()), Some("old".into()), None]);
    for committed in [false, true] {
        if committed {
            node.freeze();
            node.commit();
        }
        let mut read = Vec::new();
        let view = View::new(node.layers.clone(), &node.tables);
        view.changes(Revision(3), node.machine.published(), 1 << 20, true, &mut read).unwrap();
        assert_eq!(read.iter().map(text).collect::<Vec<_>>(), told);
    }
}
