use super::*;
use proptest::prelude::*;

fn at(main: u64, sub: u32) -> At {
    At { main: Revision(main), sub }
}

fn put<'a>(place: At, key: &'a [u8], value: &'a [u8], before: Option<RecordRef<'a>>) -> Record {
    Record::encode(NewEvent { at: place, key, put: Some(Put { value, lease: None }), before })
}

#[test]
fn the_stored_key_value_is_the_message_that_clients_decode() {
    let record = Record::encode(NewEvent {
        at: at(300, 2),
        key: b"k",
        put: Some(Put { value: b"v", lease: Some(LeaseId(-1)) }),
        before: None,
    });
    // key=1 create=2 mod=3 version=4 value=5 lease=6, as mvccpb.KeyValue numbers them.
    let mut expected = vec![0x0a, 1, b'k', 0x10, 0xac, 2, 0x18, 0xac, 2, 0x20, 1, 0x2a, 1, b'v', 0x30];
    expected.extend([0xff; 9]);
    expected.push(1);
    assert_eq!(record.key_value(), expected);
    assert_eq!(record.as_ref().lease, Some(LeaseId(-1)));
}

#[test]
fn a_deletion_has_only_key_and_revision() {
    let created = put(at(2, 0), b"k", b"v", None);
    let deleted = Record::encode(NewEvent { at: at(3, 1), key: b"k", put: None, before: Some(created.as_ref()) });
    assert_eq!(&deleted.key_value()[..], [0x0a, 1, b'k', 0x18, 3]);
    let deleted = deleted.as_ref();
    assert!(deleted.is_tombstone());
    assert_eq!((deleted.at, deleted.previous, deleted.version), (at(3, 1), Some(at(2, 0)), 0));
}

#[test]
fn version_and_creation_follow_the_life_of_a_key() {
    let first = put(at(2, 3), b"k", b"a", None);
    let second = put(at(5, 0), b"k", b"b", Some(first.as_ref()));
    assert_eq!((second.as_ref().created, second.as_ref().version), (at(2, 3), 2));
    let gone = Record::encode(NewEvent { at: at(6, 0), key: b"k", put: None, before: Some(second.as_ref()) });
    let again = put(at(9, 1), b"k", b"c", Some(gone.as_ref()));
    let again = again.as_ref();
    assert_eq!((again.created, again.version, again.previous), (at(9, 1), 1, Some(at(6, 0))));
}

#[test]
fn a_long_history_is_crossed_in_strides() {
    let mut history = vec![put(at(2, 0), b"k", b"", None)];
    for revision in 3..10_000 {
        let before = history.last().unwrap().clone();
        history.push(put(at(revision, 0), b"k", b"", Some(before.as_ref())));
    }
    for wanted in [2, 3, 65, 66, 67, 130, 4_999, 9_998] {
        let mut steps = 0;
        let mut here = history.last().unwrap().as_ref();
        while here.at.main > Revision(wanted) {
            let next = here.towards(Revision(wanted)).unwrap();
            here = history[next.main.0 as usize - 2].as_ref();
            steps += 1;
        }
        assert_eq!(here.at, at(wanted, 0));
        assert!(steps <= 10_000 / 64 + 2 * 64, "{steps} steps to revision {wanted}");
    }
}

#[test]
fn a_large_value_is_left_to_the_history_table() {
    let record = Record::encode(NewEvent {
        at: at(7, 0),
        key: b"key",
        put: Some(Put { value: &[9; 2000], lease: Some(LeaseId(5)) }),
        before: None,
    });
    let (mut small, mut row) = (Vec::new(), Vec::new());
    record.as_ref().head_row(2000, &mut small);
    assert_eq!(small, record.bytes()[..]);
    record.as_ref().head_row(1999, &mut row);
    assert!(row.len() < 60);
    let row = RecordRef::parse(&row).unwrap();
    assert!(row.is_by_reference() && row.value().is_empty());
    let whole = record.as_ref();
    assert_eq!((row.at, row.key(), row.lease, row.version), (whole.at, whole.key(), whole.lease, whole.version));
    let mut stripped = Vec::new();
    whole.key_value_without_value(&mut stripped);
    assert_eq!(stripped, row.key_value());
}

#[test]
fn every_flipped_bit_is_noticed() {
    let record = put(at(1 << 40, 7), b"some key", b"some value", None);
    for bit in 0..record.bytes().len() * 8 {
        let mut bytes = record.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(RecordRef::parse(&bytes).is_err(), "bit {bit}");
    }
    for cut in 0..record.bytes().len() {
        assert!(RecordRef::parse(&record.bytes()[..cut]).is_err(), "cut at {cut}");
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_read_back(
        key in prop::collection::vec(any::<u8>(), 1..700),
        value in prop::collection::vec(any::<u8>(), 0..3000),
        main in 1u64..u64::MAX / 4, sub in any::<u32>(), lease in any::<i64>(),
    ) {
        let lease = (lease != 0).then_some(LeaseId(lease));
        let record = Record::encode(NewEvent { at: at(main, sub), key: &key, put: Some(Put { value: &value, lease }), before: None });
        let read = Record::from_bytes(record.bytes().clone()).unwrap();
        prop_assert_eq!(&read.key()[..], &key[..]);
        prop_assert_eq!(&read.value()[..], &value[..]);
        prop_assert_eq!(read.as_ref().at, at(main, sub));
        prop_assert_eq!(read.as_ref().lease, lease);
    }

    #[test]
    fn garbage_never_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = RecordRef::parse(&bytes);
        if bytes.len() >= CRC {
            // With a fitting checksum the parser itself is reached.
            let crc = crc32c::crc32c(&bytes[CRC..]);
            bytes[..CRC].copy_from_slice(&crc.to_le_bytes());
            if let Ok(record) = RecordRef::parse(&bytes) {
                let _ = (record.key(), record.value(), record.key_value());
                record.head_row(0, &mut Vec::new());
                record.key_value_without_value(&mut Vec::new());
            }
        }
    }
}
