//! Txn: conditions, both branches, nesting, and the checks that come before anything runs.

use bytes::Bytes;
use e2d_api::etcdserverpb::compare::{CompareResult, TargetUnion};
use e2d_api::etcdserverpb::response_op::Response as OpResponse;
use e2d_api::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use tonic::Code;

use crate::client::*;
use crate::server::Server;

const TOO_MANY: &str = "etcdserver: too many operations in txn request";

/// Whether the conditions hold, as the server says.
async fn holds(client: &Client, compares: impl Into<Vec<Compare>>) -> bool {
    client
        .txn(txn_if(compares, [], []))
        .await
        .expect("accepted")
        .succeeded
}

fn puts(count: usize) -> Vec<RequestOp> {
    (0..count)
        .map(|number| put_op(put(format!("{number}"), "")))
        .collect()
}

#[tokio::test]
async fn an_empty_key_or_operation_is_refused_in_both_branches() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let empty = [
        (range_op(key("")), KEY_NOT_PROVIDED),
        (put_op(put("", "")), KEY_NOT_PROVIDED),
        (delete_op(delete("")), KEY_NOT_PROVIDED),
        (RequestOp { request: None }, KEY_NOT_FOUND),
        (txn_op(txn([put_op(put("", ""))])), KEY_NOT_PROVIDED),
    ];
    for (op, text) in empty {
        refused(
            client.txn(txn_if([], [op.clone()], [])).await,
            Code::InvalidArgument,
            text,
        );
        refused(
            client.txn(txn_if([], [], [op])).await,
            Code::InvalidArgument,
            text,
        );
    }
    let compare = compare("", CompareResult::Equal, TargetUnion::Version(0));
    refused(
        client.txn(txn_if([compare], [], [])).await,
        Code::InvalidArgument,
        KEY_NOT_PROVIDED,
    );
    assert_eq!(client.revision().await, 1);
}

#[tokio::test]
async fn the_checks_of_single_requests_apply_inside() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let inside = |op: RequestOp| client.txn(txn_if([], [], [op]));
    let sort = RangeRequest {
        sort_target: 9,
        ..key("a")
    };
    refused(
        inside(range_op(sort)).await,
        Code::InvalidArgument,
        "etcdserver: invalid sort option",
    );
    let value = PutRequest {
        ignore_value: true,
        ..put("a", "v")
    };
    refused(
        inside(put_op(value)).await,
        Code::InvalidArgument,
        "etcdserver: value is provided",
    );
    let lease = PutRequest {
        ignore_lease: true,
        lease: 1,
        ..put("a", "v")
    };
    refused(
        inside(put_op(lease)).await,
        Code::InvalidArgument,
        "etcdserver: lease is provided",
    );
}

#[tokio::test]
async fn at_most_max_txn_ops_in_each_list() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    assert_eq!(
        client
            .txn(txn(puts(128)))
            .await
            .expect("128 are fine")
            .responses
            .len(),
        128
    );
    refused(
        client.txn(txn(puts(129))).await,
        Code::InvalidArgument,
        TOO_MANY,
    );
    refused(
        client.txn(txn_if([], [], puts(129))).await,
        Code::InvalidArgument,
        TOO_MANY,
    );
    let compares = |count| vec![compare("k", CompareResult::Equal, TargetUnion::Version(0)); count];
    assert!(holds(&client, compares(128)).await);
    refused(
        client.txn(txn_if(compares(129), [], [])).await,
        Code::InvalidArgument,
        TOO_MANY,
    );
    // The longest list counts, not the sum.
    client
        .txn(txn_if(compares(128), puts(128), puts(128)))
        .await
        .expect("each list is counted by itself");
}

#[tokio::test]
async fn a_nested_txn_has_what_the_outer_one_left() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client
        .txn(txn([txn_op(txn(puts(127)))]))
        .await
        .expect("1 and 127 are fine");
    refused(
        client.txn(txn([txn_op(txn(puts(128)))])).await,
        Code::InvalidArgument,
        TOO_MANY,
    );
}

#[tokio::test]
async fn max_txn_ops_is_a_flag() {
    let Some(server) = Server::target(&["--max-txn-ops=3"]).await else {
        return;
    };
    let client = server.client().await;
    client.txn(txn(puts(3))).await.expect("3 are fine");
    refused(
        client.txn(txn(puts(4))).await,
        Code::InvalidArgument,
        TOO_MANY,
    );
}

#[tokio::test]
async fn a_key_may_be_written_only_once() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let p = |name: &str| put_op(put(name, ""));
    let d = |name: &str| delete_op(delete(name));
    let dr = |from: &str, to: &str| delete_op(delete_keys(from, to));
    let nested =
        |then: Vec<RequestOp>, otherwise: Vec<RequestOp>| txn_op(txn_if([], then, otherwise));
    let duplicates = [
        vec![p("a"), p("a")],
        vec![p("a"), d("a")],
        vec![d("a"), p("a")],
        vec![p("b"), dr("a", "c")],
        vec![dr("a", "c"), p("b")],
        vec![p("a"), nested(vec![p("a")], vec![])],
        vec![p("a"), nested(vec![], vec![p("a")])],
        vec![nested(vec![p("a")], vec![]), nested(vec![p("a")], vec![])],
        vec![nested(vec![p("a")], vec![]), nested(vec![], vec![p("a")])],
        vec![nested(vec![p("a")], vec![]), d("a")],
        vec![nested(vec![dr("a", "c")], vec![]), p("b")],
        vec![nested(vec![nested(vec![p("a")], vec![])], vec![]), p("a")],
    ];
    for ops in duplicates {
        // Also in the branch that does not run.
        refused(
            client.txn(txn_if([], ops.clone(), [])).await,
            Code::InvalidArgument,
            DUPLICATE_KEY,
        );
        refused(
            client.txn(txn_if([], [], ops)).await,
            Code::InvalidArgument,
            DUPLICATE_KEY,
        );
    }
    let allowed = [
        vec![d("a"), d("a")],
        vec![dr("a", "c"), d("b")],
        // etcd reads `\0` as an end below every key when it looks for duplicates, so it never finds one.
        vec![p("b"), dr("a", "\0")],
        vec![dr("a", "\0"), p("b")],
        vec![dr("a", "c"), dr("b", "d")],
        vec![p("c"), dr("a", "c")],
        vec![p("a"), p("b")],
        vec![p("a"), range_op(key("a"))],
        vec![nested(vec![p("a")], vec![p("a")])],
        vec![nested(vec![p("a")], vec![d("a")])],
        vec![nested(vec![d("a")], vec![]), d("a")],
    ];
    for ops in allowed {
        client
            .txn(txn(ops.clone()))
            .await
            .unwrap_or_else(|status| panic!("{ops:?}: {status}"));
    }
    client
        .txn(txn_if([], [p("a")], [p("a")]))
        .await
        .expect("the two branches may share a key");
}

#[tokio::test]
async fn all_changes_share_one_revision_and_keep_their_order() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("gone", "").await;
    let mut stream = client.watch_stream();
    let id = stream.created(watch_keys("\0", "\0")).await;
    let ops = [
        put_op(put("c", "")),
        delete_op(delete("gone")),
        txn_op(txn([put_op(put("a", ""))])),
        put_op(put("b", "")),
    ];
    let answer = client.txn(txn(ops)).await.expect("accepted");
    assert_eq!(revision(&answer.header), 3);
    let events = stream.events(id).await;
    let order: Vec<_> = events
        .iter()
        .filter_map(|event| event.kv.as_ref())
        .map(|kv| (&kv.key[..], kv.mod_revision))
        .collect();
    assert_eq!(order, [(&b"c"[..], 3), (b"gone", 3), (b"a", 3), (b"b", 3)]);
}

#[tokio::test]
async fn nested_headers_carry_only_a_revision() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let inner = txn([put_op(put("c", "")), range_op(key("c"))]);
    let ops = [
        put_op(put("a", "")),
        range_op(key("a")),
        delete_op(delete("b")),
        txn_op(inner),
    ];
    let answer = client.txn(txn(ops)).await.expect("accepted");
    let outer = answer.header.expect("a header");
    assert!(
        outer.cluster_id != 0
            && outer.member_id != 0
            && outer.raft_term != 0
            && outer.revision == 2
    );
    let mut revisions = Vec::new();
    let mut left = answer.responses.clone();
    while let Some(op) = left.pop() {
        let (kind, header) = match op.response.expect("every operation is answered") {
            OpResponse::ResponseRange(answer) => ("range", answer.header),
            OpResponse::ResponsePut(answer) => ("put", answer.header),
            OpResponse::ResponseDeleteRange(answer) => ("delete", answer.header),
            OpResponse::ResponseTxn(answer) => {
                left.extend(answer.responses);
                ("txn", answer.header)
            }
        };
        let header = header.expect("a header");
        assert_eq!(
            (header.cluster_id, header.member_id, header.raft_term),
            (0, 0, 0),
            "of {kind}"
        );
        revisions.push((kind, header.revision));
    }
    revisions.sort_unstable();
    assert_eq!(
        revisions,
        [
            ("delete", 2),
            ("put", 2),
            ("put", 2),
            ("range", 2),
            ("range", 2),
            ("txn", 0)
        ]
    );
}

#[tokio::test]
async fn conditions_see_the_state_before_and_reads_the_state_between() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let missing = || compare("a", CompareResult::Equal, TargetUnion::Version(0));
    // The inner condition is decided before the outer put.
    let inner = txn_if(
        [missing()],
        [range_op(key("a"))],
        [put_op(put("wrong", ""))],
    );
    let ops = [
        range_op(key("a")),
        put_op(put("a", "1")),
        range_op(key("a")),
        txn_op(inner),
    ];
    let answer = client
        .txn(txn_if([missing()], ops, []))
        .await
        .expect("accepted");
    assert!(answer.succeeded);
    assert_eq!(range_answer(&answer, 0).kvs.len(), 0);
    let between = &range_answer(&answer, 2).kvs[0];
    assert_eq!(
        (&between.value[..], between.mod_revision, between.version),
        (&b"1"[..], 2, 1)
    );
    let Some(OpResponse::ResponseTxn(inner)) = &answer.responses[3].response else {
        panic!("{answer:?}")
    };
    assert!(inner.succeeded);
    assert_eq!(range_answer(inner, 0).kvs.len(), 1);
    assert_eq!(client.get("wrong").await, None);
}

#[tokio::test]
async fn every_comparison_of_every_target() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.grant_ok(50).await;
    client
        .put(PutRequest {
            lease: 50,
            ..put("k", "m")
        })
        .await
        .expect("accepted"); // created at 2
    client
        .put(PutRequest {
            lease: 50,
            ..put("k", "m")
        })
        .await
        .expect("accepted"); // modified at 3, version 2
    let number = |of: fn(i64) -> TargetUnion, is: i64| [of(is - 1), of(is), of(is + 1)];
    let value = ["l", "m", "n"].map(|text| TargetUnion::Value(b(text)));
    for [below, same, above] in [
        number(TargetUnion::Version, 2),
        number(TargetUnion::CreateRevision, 2),
        number(TargetUnion::ModRevision, 3),
        number(TargetUnion::Lease, 50),
        value,
    ] {
        for (result, expected) in [
            (Equal, [false, true, false]),
            (Greater, [true, false, false]),
            (Less, [false, false, true]),
            (NotEqual, [true, false, true]),
        ] {
            for (target, expected) in [&below, &same, &above].into_iter().zip(expected) {
                let condition = compare("k", result, target.clone());
                assert_eq!(
                    holds(&client, [condition.clone()]).await,
                    expected,
                    "{condition:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn all_conditions_must_hold() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let yes = || compare("k", CompareResult::Equal, TargetUnion::Version(0));
    let no = || compare("k", CompareResult::Equal, TargetUnion::Version(1));
    assert!(holds(&client, []).await);
    assert!(holds(&client, [yes(), yes()]).await);
    assert!(!holds(&client, [yes(), no()]).await);
    assert!(!holds(&client, [no(), yes()]).await);
    let answer = client
        .txn(txn_if(
            [no()],
            [put_op(put("then", ""))],
            [put_op(put("else", ""))],
        ))
        .await
        .expect("accepted");
    assert!(!answer.succeeded);
    assert_eq!(
        (client.get("then").await, client.get("else").await.is_some()),
        (None, true)
    );
}

#[tokio::test]
async fn a_missing_key_compares_as_zero_and_its_value_as_false() {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for of in [
        TargetUnion::Version,
        TargetUnion::CreateRevision,
        TargetUnion::ModRevision,
        TargetUnion::Lease,
    ] {
        assert!(holds(&client, [compare("k", Equal, of(0))]).await);
        assert!(holds(&client, [compare("k", Less, of(1))]).await);
        assert!(holds(&client, [compare("k", Greater, of(-1))]).await);
        assert!(holds(&client, [compare("k", NotEqual, of(1))]).await);
        assert!(!holds(&client, [compare("k", NotEqual, of(0))]).await);
    }
    for result in [Equal, Greater, Less, NotEqual] {
        for text in ["", "x"] {
            assert!(
                !holds(&client, [compare("k", result, TargetUnion::Value(b(text)))]).await,
                "{result:?} {text}"
            );
        }
    }
}

#[tokio::test]
async fn an_unset_operand_is_zero_or_empty() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("k", "").await;
    // The targets version, create, mod, value, lease of a key with an empty value and no lease.
    for (target, equals_unset) in [(0, false), (1, false), (2, false), (3, true), (4, true)] {
        let condition = Compare {
            target,
            key: b("k"),
            ..Default::default()
        };
        assert_eq!(
            holds(&client, [condition]).await,
            equals_unset,
            "target {target}"
        );
    }
}

#[tokio::test]
async fn unknown_enums_of_a_condition_do_no_harm() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("k", "v").await;
    let condition = |result, target| Compare {
        result,
        target,
        key: b("k"),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::Version(77)),
    };
    assert!(
        holds(&client, [condition(9, 0)]).await,
        "an unknown result is true"
    );
    assert!(
        holds(&client, [condition(0, 9)]).await,
        "an unknown target is equal"
    );
    assert!(
        !holds(&client, [condition(1, 9)]).await,
        "and therefore not greater"
    );
}

#[tokio::test]
async fn a_condition_on_a_range_must_hold_for_every_key() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for name in ["a", "b", "b", "c"] {
        client.put_ok(name, "v").await;
    }
    let over = |from: &str, to: &str, target| Compare {
        range_end: b(to),
        ..compare(from, CompareResult::Equal, target)
    };
    assert!(holds(&client, [over("a", "z", TargetUnion::Value(b("v")))]).await);
    assert!(
        !holds(&client, [over("a", "z", TargetUnion::Version(1))]).await,
        "b has version 2"
    );
    assert!(holds(&client, [over("a", "b", TargetUnion::Version(1))]).await);
    assert!(!holds(&client, [over("a", "\0", TargetUnion::Version(1))]).await);
    assert!(holds(&client, [over("c", "\0", TargetUnion::Version(1))]).await);
    // A range without keys is one missing key.
    assert!(holds(&client, [over("x", "z", TargetUnion::Version(0))]).await);
    assert!(!holds(&client, [over("x", "z", TargetUnion::Version(1))]).await);
    assert!(!holds(&client, [over("x", "z", TargetUnion::Value(b("")))]).await);
    assert!(
        holds(&client, [over("c", "a", TargetUnion::Version(0))]).await,
        "inverted ranges have no keys"
    );
}

#[tokio::test]
async fn a_range_at_an_unreadable_revision_fails_the_whole_txn() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for value in ["1", "2", "3"] {
        client.put_ok("a", value).await; // 2 to 4
    }
    client.compact(3).await.expect("compacted");
    let attempt = |revision| {
        let read = RangeRequest {
            revision,
            ..key("a")
        };
        client.txn(txn([put_op(put("x", "")), range_op(read)]))
    };
    refused(attempt(2).await, Code::OutOfRange, COMPACTED);
    refused(attempt(-1).await, Code::OutOfRange, COMPACTED);
    refused(attempt(99).await, Code::OutOfRange, FUTURE_REVISION);
    assert_eq!((client.get("x").await, client.revision().await), (None, 4));
    let answer = attempt(3).await.expect("accepted");
    assert_eq!(range_answer(&answer, 1).kvs[0].value, "2");
    // Only the branch that runs is looked at.
    let read = RangeRequest {
        revision: 2,
        ..key("a")
    };
    client
        .txn(txn_if([], [], [range_op(read)]))
        .await
        .expect("the other branch runs");
}

#[tokio::test]
async fn an_unknown_lease_fails_the_whole_txn() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let bad = PutRequest {
        lease: 9,
        ..put("b", "")
    };
    let ops = [put_op(put("a", "")), put_op(bad.clone())];
    refused(client.txn(txn(ops)).await, Code::NotFound, LEASE_NOT_FOUND);
    let nested = txn([put_op(put("a", "")), txn_op(txn([put_op(bad.clone())]))]);
    refused(client.txn(nested).await, Code::NotFound, LEASE_NOT_FOUND);
    let ignoring = PutRequest {
        ignore_value: true,
        ..put("c", "")
    };
    refused(
        client
            .txn(txn([put_op(put("a", "")), put_op(ignoring)]))
            .await,
        Code::InvalidArgument,
        KEY_NOT_FOUND,
    );
    assert_eq!((client.get("a").await, client.revision().await), (None, 1));
    client
        .txn(txn_if([], [], [put_op(bad)]))
        .await
        .expect("the other branch runs");
}

#[tokio::test]
async fn answers_come_in_the_order_of_the_operations() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "old").await;
    client.put_ok("d", "gone").await;
    let ops = [
        delete_op(DeleteRangeRequest {
            prev_kv: true,
            ..delete("d")
        }),
        range_op(key("a")),
        put_op(PutRequest {
            prev_kv: true,
            ..put("a", "new")
        }),
        txn_op(TxnRequest::default()),
    ];
    let answer = client.txn(txn(ops)).await.expect("accepted");
    let answers: Vec<_> = answer
        .responses
        .into_iter()
        .filter_map(|op| op.response)
        .collect();
    let [
        OpResponse::ResponseDeleteRange(deleted),
        OpResponse::ResponseRange(range),
        OpResponse::ResponsePut(put),
        OpResponse::ResponseTxn(inner),
    ] = &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert_eq!(
        (deleted.deleted, &deleted.prev_kvs[0].value[..]),
        (1, &b"gone"[..])
    );
    assert_eq!(range.kvs[0].value, "old");
    assert_eq!(put.prev_kv.as_ref().expect("asked for").value, "old");
    assert!(inner.succeeded && inner.responses.is_empty());
}

#[tokio::test]
async fn a_txn_that_only_reads_makes_no_revision() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "1").await;
    for serializable in [true, false] {
        let read = RangeRequest {
            serializable,
            ..key("a")
        };
        let answer = client
            .txn(txn([range_op(read), txn_op(txn([range_op(key("a"))]))]))
            .await
            .expect("accepted");
        assert_eq!(
            (revision(&answer.header), range_answer(&answer, 0).kvs.len()),
            (2, 1)
        );
    }
}
