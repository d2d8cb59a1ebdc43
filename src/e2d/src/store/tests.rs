use super::*;
use e2d_core::mvcc::machine::{EntryContext, Machine};
use e2d_core::mvcc::range::KeyRange;
use e2d_core::mvcc::record::RecordRef;
use e2d_core::mvcc::request::*;
use e2d_core::mvcc::view::Tables;
use prometheus::{Histogram, HistogramOpts};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::time::Duration;

const WHO: Identity = Identity { cluster: ClusterId(7), member: MemberId(9) };

fn open(path: &Path) -> Loaded {
    Store::open(path, WHO, LessorSettings { retry_millis: 1000, checkpoint_interval_millis: None }).unwrap()
}

/// A store with a machine and a flush thread, as the daemon runs them.
struct Node {
    store: Store,
    machine: Machine,
    flusher: Flusher,
    index: u64,
}

impl Node {
    fn start(path: &Path) -> Node {
        let loaded = open(path);
        let settings = FlushSettings { compaction_batch: 7, compaction_pause: Duration::from_millis(1) };
        let histogram = Histogram::with_opts(HistogramOpts::new("commit", "commit")).unwrap();
        let flusher = loaded.store.start_flusher(settings, histogram, |error| panic!("{error}")).unwrap();
        let machine = Machine::new(loaded.published, Arc::new(Mutex::new(loaded.lessor)), loaded.alarms);
        Node { store: loaded.store, machine, flusher, index: loaded.applied.index.0 }
    }

    fn apply(&mut self, request: Request) -> Answer {
        self.index += 1;
        let mut changes = Vec::new();
        let layers = self.store.layers();
        let snapshot = self.store.snapshot();
        let answer = self.machine.apply(&View::new(layers, &snapshot), request, EntryContext::default(), &mut changes).unwrap();
        self.store.publish(self.machine.published(), &changes).unwrap();
        answer
    }

    fn flush(&mut self) {
        let index = LogIndex(self.index);
        let applied = AppliedState { index, term: Term(1), conf_state: bytes::Bytes::new() };
        let mut flushed = self.flusher.flushed();
        while !self.store.freeze(&applied, self.machine.published().revision) {
            std::thread::yield_now();
        }
        self.flusher.flush();
        while *flushed.borrow_and_update() < index {
            std::thread::yield_now();
        }
    }

    fn wait_swept(&self, revision: u64) {
        let swept = self.flusher.swept();
        self.flusher.compact();
        while swept.borrow().0 < revision {
            std::thread::yield_now();
        }
    }

    fn put(&mut self, key: impl AsRef<[u8]>, value: &[u8]) {
        let put = Put {
            key: bytes::Bytes::copy_from_slice(key.as_ref()),
            value: Some(bytes::Bytes::copy_from_slice(value)),
            lease: LeaseChange::Set(None),
            prev_kv: false,
        };
        self.apply(Request::Put(put)).outcome.unwrap();
    }

    fn delete(&mut self, key: &[u8]) {
        let range = KeyRange::single(bytes::Bytes::copy_from_slice(key));
        self.apply(Request::DeleteRange(DeleteRange { range, prev_kv: false })).outcome.unwrap();
    }

    fn all(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.store
            .read(|view, published| {
                let mut all = BTreeMap::new();
                view.scan(&KeyRange::all(), published.revision, &mut |found| {
                    let record = found.as_ref();
                    all.insert(record.key().to_vec(), record.value().to_vec());
                    ControlFlow::Continue(())
                })?;
                Ok(all)
            })
            .unwrap()
    }
}

#[test]
fn what_was_flushed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path());
    node.put("a", b"1");
    node.put("large", &[7; 5000]);
    node.flush();
    node.put("lost", b"the log has it");
    drop(node);
    let node = Node::start(dir.path());
    assert_eq!((node.index, node.store.published().revision, node.store.keys()), (2, Revision(3), 2));
    assert_eq!(node.all(), BTreeMap::from([(b"a".to_vec(), b"1".to_vec()), (b"large".to_vec(), vec![7; 5000])]));
}

#[test]
fn leases_alarms_and_compaction_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path());
    let lease = e2d_core::ids::LeaseId(-5);
    node.apply(Request::LeaseGrant { id: lease, ttl_seconds: 60 }).outcome.unwrap();
    let put = Put {
        key: "k".into(),
        value: Some("v".into()),
        lease: LeaseChange::Set(Some(lease)),
        prev_kv: false,
    };
    node.apply(Request::Put(put)).outcome.unwrap();
    let alarm = Alarm { member: MemberId(9), kind: e2d_core::alarm::AlarmKind::NoSpace };
    node.apply(Request::AlarmActivate(alarm)).outcome.unwrap();
    node.apply(Request::Compact(Some(Revision(2)))).outcome.unwrap();
    node.flush();
    drop(node);
    let loaded = open(dir.path());
    assert_eq!(loaded.published.compacted, Some(Revision(2)));
    assert_eq!(loaded.alarms.get(None).collect::<Vec<_>>(), [alarm]);
    assert_eq!(loaded.lessor.row(lease).unwrap().granted_seconds, 60);
    assert_eq!(loaded.lessor.keys(lease).collect::<Vec<_>>(), [b"k"]);
}

#[test]
fn a_store_of_somebody_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let other = Identity { member: MemberId(10), ..WHO };
    let settings = LessorSettings { retry_millis: 1000, checkpoint_interval_millis: None };
    let error = Store::open(dir.path(), other, settings).err().unwrap().to_string();
    assert!(error.contains("member is Some(9), expected a"), "{error}");
}

/// Keys of every length around the pieces that long keys are cut into, many sharing their beginnings.
fn awkward_keys() -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    for stem in [&b"a"[..], b"b", b"\0", b"\xff"] {
        for length in [1, 2, 479, 480, 481, 482, 511, 512, 959, 960, 961, 1440, 1441, 4000] {
            for end in [&b""[..], b"\0", b"x", b"\xff"] {
                let mut key: Vec<u8> = stem.iter().copied().cycle().take(length).collect();
                key.extend_from_slice(end);
                keys.push(key);
            }
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

#[test]
fn keys_of_any_length_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path());
    let keys = awkward_keys();
    for (number, key) in keys.iter().enumerate().rev() {
        node.put(key, number.to_string().as_bytes());
    }
    node.flush();
    let expected: BTreeMap<_, _> = keys.iter().enumerate().map(|(n, key)| (key.clone(), n.to_string().into_bytes())).collect();
    assert_eq!(node.all(), expected);

    let snapshot = node.store.snapshot();
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(snapshot.head(key).unwrap().unwrap().value(), number.to_string().as_bytes());
        let mut missing = key.clone();
        missing.push(b'q');
        assert!(snapshot.head(&missing).unwrap().is_none());
        // From here on, and up to somewhere else.
        for to in [number + 1, number + 5, keys.len() / 2, keys.len() - 1] {
            let Some(end) = keys.get(to) else { continue };
            let range = KeyRange::from_wire(key.clone().into(), end.clone().into());
            let mut found = Vec::new();
            snapshot
                .scan_heads(&range, &mut |record: RecordRef<'_>| {
                    found.push(record.key().to_vec());
                    Ok(ControlFlow::Continue(()))
                })
                .unwrap();
            let expected: Vec<_> = keys.iter().filter(|key| range.contains(key)).cloned().collect();
            assert_eq!(found, expected, "{number} to {to}");
        }
    }
}

#[test]
fn deleted_keys_of_any_length_leave_no_rows_once_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path());
    let keys = awkward_keys();
    for key in &keys {
        node.put(key, b"v");
    }
    node.flush();
    for key in &keys {
        node.delete(key);
    }
    node.put("last", b"");
    let revision = node.machine.published().revision;
    node.apply(Request::Compact(Some(revision))).outcome.unwrap();
    node.flush();
    node.wait_swept(revision.0);
    let txn = node.store.0.env.read_txn().unwrap();
    let databases = &node.store.0.databases;
    assert_eq!(databases.keys.keys.len(&txn).unwrap(), 1);
    assert_eq!(databases.keys.long_keys.len(&txn).unwrap(), 1, "the node counter alone");
    assert_eq!(databases.history.len(&txn).unwrap(), 1);
    let left = databases.history.first(&txn).unwrap().unwrap().1.len() as u64;
    assert_eq!(node.store.record_bytes(), left);
}

#[test]
fn a_sweep_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path());
    for round in 0..500 {
        node.put(format!("k{}", round % 3), b"v");
    }
    let revision = node.machine.published().revision;
    node.apply(Request::Compact(Some(revision))).outcome.unwrap();
    node.flush();
    // Wherever the sweep is now, it ends in another life.
    drop(node);
    let node = Node::start(dir.path());
    node.wait_swept(revision.0);
    let txn = node.store.0.env.read_txn().unwrap();
    assert_eq!(node.store.0.databases.history.len(&txn).unwrap(), 3);
    assert_eq!(node.all().len(), 3);
}

#[test]
fn every_flipped_byte_in_a_row_is_an_error_and_never_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path());
    node.put("key", b"value");
    node.flush();
    let row = {
        let txn = node.store.0.env.read_txn().unwrap();
        node.store.0.databases.keys.keys.get(&txn, b"key").unwrap().unwrap().to_vec()
    };
    for byte in 0..row.len() {
        let mut damaged = row.clone();
        damaged[byte] ^= 0x10;
        let mut txn = node.store.0.env.write_txn().unwrap();
        node.store.0.databases.keys.keys.put(&mut txn, b"key", &damaged).unwrap();
        txn.commit().unwrap();
        let result = node.store.snapshot().head(b"key").map(drop);
        assert!(matches!(result, Err(StoreError::Damaged { .. } | StoreError::Inconsistent { .. })), "byte {byte}");
    }
}
