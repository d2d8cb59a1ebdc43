use super::*;
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn range() -> impl Strategy<Value = KeyRange> {
    (bytes(), bytes()).prop_map(|(key, end)| KeyRange::from_wire(key, end))
}

fn revision() -> impl Strategy<Value = Option<Revision>> {
    prop::option::of(any::<u64>().prop_map(Revision))
}

fn put() -> impl Strategy<Value = Put> {
    let lease = prop_oneof![
        Just(LeaseChange::Keep),
        Just(LeaseChange::Set(None)),
        any::<i64>().prop_map(|lease| LeaseChange::Set(Some(LeaseId(lease)))),
    ];
    (bytes(), prop::option::of(bytes()), lease, any::<bool>()).prop_map(|(key, value, lease, prev_kv)| Put {
        key,
        value,
        lease,
        prev_kv,
    })
}

fn delete() -> impl Strategy<Value = DeleteRange> {
    (range(), any::<bool>()).prop_map(|(range, prev_kv)| DeleteRange { range, prev_kv })
}

fn query() -> impl Strategy<Value = RangeQuery> {
    let by =
        prop::sample::select(vec![OrderBy::Key, OrderBy::Version, OrderBy::Created, OrderBy::Modified, OrderBy::Value]);
    let order = (by, any::<bool>(), any::<bool>()).prop_map(|(by, descending, unspecified)| Order {
        by,
        descending,
        unspecified,
    });
    let filter = (revision(), revision(), revision(), revision()).prop_map(
        |(min_modified, max_modified, min_created, max_created)| RevisionFilter {
            min_modified,
            max_modified,
            min_created,
            max_created,
        },
    );
    (range(), prop::option::of(any::<u64>()), revision(), order, any::<bool>(), any::<bool>(), filter).prop_map(
        |(range, limit, revision, order, keys_only, count_only, filter)| RangeQuery {
            range,
            limit,
            revision,
            order,
            keys_only,
            count_only,
            filter,
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    let relation = prop::sample::select(vec![
        Relation::Equal,
        Relation::Greater,
        Relation::Less,
        Relation::NotEqual,
        Relation::Unknown,
    ]);
    let operand = prop_oneof![
        any::<i64>().prop_map(Operand::Version),
        any::<i64>().prop_map(Operand::Created),
        any::<i64>().prop_map(Operand::Modified),
        any::<i64>().prop_map(Operand::Lease),
        bytes().prop_map(Operand::Value),
        Just(Operand::Unknown),
    ];
    (range(), relation, operand).prop_map(|(range, relation, operand)| Compare { range, relation, operand })
}

fn txn() -> impl Strategy<Value = Txn> {
    let leaf = prop_oneof![query().prop_map(Op::Range), put().prop_map(Op::Put), delete().prop_map(Op::DeleteRange)];
    let op = leaf.prop_recursive(3, 12, 3, |inner| {
        (
            prop::collection::vec(compare(), 0..2),
            prop::collection::vec(inner.clone(), 0..3),
            prop::collection::vec(inner, 0..3),
        )
            .prop_map(|(compare, success, failure)| Op::Txn(Txn { compare, success, failure }))
    });
    let ops = || prop::collection::vec(op.clone(), 0..4);
    (prop::collection::vec(compare(), 0..4), ops(), ops()).prop_map(|(compare, success, failure)| Txn {
        compare,
        success,
        failure,
    })
}

fn alarm() -> impl Strategy<Value = Alarm> {
    (any::<u64>(), any::<bool>()).prop_map(|(member, corrupt)| Alarm {
        member: MemberId(member),
        kind: if corrupt { AlarmKind::Corrupt } else { AlarmKind::NoSpace },
    })
}

fn life() -> impl Strategy<Value = Life> {
    (any::<i64>(), any::<u64>()).prop_map(|(id, index)| Life { id: LeaseId(id), granted_at: LogIndex(index) })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        put().prop_map(Request::Put),
        delete().prop_map(Request::DeleteRange),
        txn().prop_map(Request::Txn),
        revision().prop_map(Request::Compact),
        (any::<i64>(), any::<u64>()).prop_map(|(id, ttl_seconds)| Request::LeaseGrant { id: LeaseId(id), ttl_seconds }),
        any::<i64>().prop_map(|id| Request::LeaseRevoke(LeaseId(id))),
        (any::<u64>(), prop::collection::vec((life(), any::<u64>()), 0..4)).prop_map(|(term, leases)| {
            let leases = leases.into_iter().map(|(life, seconds)| LeaseRemaining { life, seconds }).collect();
            Request::LeaseCheckpoint { leases, decided_in: Term(term) }
        }),
        (any::<u64>(), life()).prop_map(|(term, life)| Request::LeaseExpire { life, decided_in: Term(term) }),
        alarm().prop_map(Request::AlarmActivate),
        alarm().prop_map(Request::AlarmDeactivate),
        prop::option::of(alarm()).prop_map(|alarm| Request::AlarmGet(alarm.map(|alarm| alarm.kind))),
        (any::<u64>(), ".*", prop::collection::vec(".*", 0..3)).prop_map(|(member, name, client_urls)| {
            Request::MemberPublish { member: MemberId(member), name, client_urls }
        }),
    ]
}

proptest! {
    #[test]
    fn every_request_comes_back_from_the_log(origin in any::<u64>(), id in any::<u64>(), request in request()) {
        let command = Command { origin: MemberId(origin), id, request };
        prop_assert_eq!(Command::decode(command.encode().into()).unwrap(), command);
    }

    #[test]
    fn an_entry_that_was_cut_is_refused(request in request(), cut in any::<prop::sample::Index>()) {
        let bytes: Bytes = Command { origin: MemberId(1), id: 2, request }.encode().into();
        let cut = cut.index(bytes.len());
        prop_assert!(Command::decode(bytes.slice(..cut)).is_err());
    }

    #[test]
    fn garbage_is_refused_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        if let Some(first) = bytes.first_mut() {
            *first = FORMAT;
        }
        let _ = Command::decode(Bytes::from(bytes));
    }
}

/// Logs outlive binaries: these bytes must decode to the same request for ever.
#[test]
fn the_format_of_a_put_stays_as_it_is() {
    let put = Put {
        key: Bytes::from_static(b"k"),
        value: Some(Bytes::from_static(b"v")),
        lease: LeaseChange::Set(Some(LeaseId(7))),
        prev_kv: true,
    };
    let command = Command { origin: MemberId(0x0102), id: 3, request: Request::Put(put) };
    let expected = [
        &[1, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0][..],
        &[1, 0b1101, 1, b'k', 1, b'v', 7, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    assert_eq!(&command.encode()[..], expected);
}

#[test]
fn a_newer_format_is_named() {
    let error = Command::decode(Bytes::from_static(&[9, 0])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "log entry has format 9, this version reads up to 1: run the version that wrote it, or a newer one"
    );
}

#[test]
fn a_transaction_that_nests_too_deep_is_refused() {
    let mut txn = Txn::default();
    for _ in 0..=MAX_TXN_DEPTH {
        txn = Txn { success: vec![Op::Txn(txn)], ..Txn::default() };
    }
    let bytes: Bytes = Command { origin: MemberId(1), id: 1, request: Request::Txn(txn) }.encode().into();
    assert!(matches!(Command::decode(bytes), Err(BadCommand::Malformed(_))));
}
