//! Range: which keys, at which revision, in which order, and what is said about the rest.

use e2d_api::etcdserverpb::RangeRequest;
use e2d_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use tonic::Code;

use crate::client::*;
use crate::server::Server;

async fn answer(client: &Client, request: RangeRequest) -> Vec<String> {
    key_texts(
        &client
            .range(request)
            .await
            .expect("the range is answered")
            .kvs,
    )
}

#[tokio::test]
async fn an_empty_key_is_refused() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    refused(
        client.range(key("")).await,
        Code::InvalidArgument,
        KEY_NOT_PROVIDED,
    );
    refused(
        client.range(keys("", "\0")).await,
        Code::InvalidArgument,
        KEY_NOT_PROVIDED,
    );
}

#[tokio::test]
async fn an_unknown_sort_option_is_refused() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let text = "etcdserver: invalid sort option";
    refused(
        client
            .range(RangeRequest {
                sort_order: 3,
                ..key("a")
            })
            .await,
        Code::InvalidArgument,
        text,
    );
    refused(
        client
            .range(RangeRequest {
                sort_order: -1,
                ..key("a")
            })
            .await,
        Code::InvalidArgument,
        text,
    );
    refused(
        client
            .range(RangeRequest {
                sort_target: 5,
                ..key("a")
            })
            .await,
        Code::InvalidArgument,
        text,
    );
    refused(
        client
            .range(RangeRequest {
                sort_target: -1,
                ..key("a")
            })
            .await,
        Code::InvalidArgument,
        text,
    );
    assert_eq!(client.revision().await, 1, "the server goes on");
}

#[tokio::test]
async fn range_end_selects_one_key_a_range_or_everything() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for name in ["a", "aa", "ab", "b", "c"] {
        client.put_ok(name, "").await;
    }
    assert_eq!(answer(&client, key("a")).await, ["a"]);
    assert_eq!(answer(&client, keys("a", "b")).await, ["a", "aa", "ab"]);
    assert_eq!(answer(&client, keys("aa", "ab\0")).await, ["aa", "ab"]);
    assert_eq!(answer(&client, keys("ab", "\0")).await, ["ab", "b", "c"]);
    assert_eq!(
        answer(&client, all_keys()).await,
        ["a", "aa", "ab", "b", "c"]
    );
    assert_eq!(answer(&client, keys("a", "a\0")).await, ["a"]);
    for (from, to) in [("b", "a"), ("b", "b"), ("b", "aa")] {
        let empty = client
            .range(keys(from, to))
            .await
            .expect("an inverted range is no error");
        assert_eq!((empty.kvs.len(), empty.count, empty.more), (0, 0, false));
    }
}

#[tokio::test]
async fn keys_are_any_bytes_of_any_length_in_byte_order() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let prefix = vec![b'p'; 4096];
    let mut expected = vec![
        vec![0],
        vec![0, 0],
        vec![b'a', 0],
        vec![b'a', 0xff],
        vec![0x80],
        vec![0xff],
        vec![0xff, 0xff],
    ];
    for tail in [&b""[..], b"\0", b"a", b"\xff"] {
        expected.push([&prefix[..], tail].concat());
        expected.push([&prefix[..511], tail].concat());
        expected.push([&prefix[..512], tail].concat());
    }
    for name in &expected {
        client.put_ok(name, name).await;
    }
    expected.sort();
    let found = client
        .range(all_keys())
        .await
        .expect("the range is answered")
        .kvs;
    assert_eq!(
        found.iter().map(|kv| kv.key.to_vec()).collect::<Vec<_>>(),
        expected
    );
    assert!(found.iter().all(|kv| kv.key == kv.value));
    for name in &expected {
        assert_eq!(client.get(name).await.map(|kv| kv.value), Some(b(name)));
    }
}

#[tokio::test]
async fn count_ignores_limit_and_filters() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for name in ["a", "b", "c", "d"] {
        client.put_ok(name, "").await;
    }
    let limited = client
        .range(RangeRequest {
            limit: 2,
            ..all_keys()
        })
        .await
        .expect("answered");
    assert_eq!(
        (key_texts(&limited.kvs), limited.count, limited.more),
        (vec!["a".into(), "b".into()], 4, true)
    );

    let filtered = client
        .range(RangeRequest {
            min_mod_revision: 4,
            ..all_keys()
        })
        .await
        .expect("answered");
    assert_eq!(
        (key_texts(&filtered.kvs), filtered.count, filtered.more),
        (vec!["c".into(), "d".into()], 4, false)
    );

    let request = RangeRequest {
        count_only: true,
        limit: 1,
        min_mod_revision: 4,
        ..all_keys()
    };
    let counted = client.range(request).await.expect("answered");
    assert_eq!(
        (counted.kvs.len(), counted.count, counted.more),
        (0, 4, false)
    );
}

#[tokio::test]
async fn more_is_set_when_the_limit_cut_the_result() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for name in ["a", "b", "c"] {
        client.put_ok(name, "").await;
    }
    for (limit, kvs, more) in [
        (1, 1, true),
        (2, 2, true),
        (3, 3, false),
        (4, 3, false),
        (0, 3, false),
        (-1, 3, false),
    ] {
        let answer = client
            .range(RangeRequest {
                limit,
                ..all_keys()
            })
            .await
            .expect("answered");
        assert_eq!(
            (answer.kvs.len(), answer.count, answer.more),
            (kvs, 3, more),
            "limit {limit}"
        );
    }
}

#[tokio::test]
async fn revision_filters_apply_before_the_limit() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for name in ["a", "b", "c", "d"] {
        client.put_ok(name, "").await; // revisions 2 to 5
    }
    client.put_ok("a", "").await; // 6
    let all = all_keys;
    for (request, expected, more) in [
        (
            RangeRequest {
                min_mod_revision: 4,
                ..all()
            },
            vec!["a", "c", "d"],
            false,
        ),
        (
            RangeRequest {
                max_mod_revision: 4,
                ..all()
            },
            vec!["b", "c"],
            false,
        ),
        (
            RangeRequest {
                min_mod_revision: 4,
                max_mod_revision: 5,
                ..all()
            },
            vec!["c", "d"],
            false,
        ),
        (
            RangeRequest {
                min_create_revision: 3,
                ..all()
            },
            vec!["b", "c", "d"],
            false,
        ),
        (
            RangeRequest {
                max_create_revision: 3,
                ..all()
            },
            vec!["a", "b"],
            false,
        ),
        (
            RangeRequest {
                min_mod_revision: 4,
                limit: 2,
                ..all()
            },
            vec!["a", "c"],
            true,
        ),
        (
            RangeRequest {
                min_mod_revision: 4,
                limit: 3,
                ..all()
            },
            vec!["a", "c", "d"],
            false,
        ),
        (
            RangeRequest {
                min_mod_revision: 9,
                ..all()
            },
            vec![],
            false,
        ),
    ] {
        let answer = client.range(request.clone()).await.expect("answered");
        assert_eq!(
            (key_texts(&answer.kvs), answer.more, answer.count),
            (own(&expected), more, 4),
            "{request:?}"
        );
    }
}

fn own(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

#[tokio::test]
async fn every_sort_order_and_target_sorts() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("b", "2").await; // created at 2
    client.put_ok("a", "3").await; // created at 3
    client.put_ok("c", "1").await; // created at 4
    client.put_ok("b", "2").await; // modified at 5, version 2
    client.put_ok("b", "2").await; // modified at 6, version 3
    client.put_ok("a", "3").await; // modified at 7, version 2
    for (target, ascending) in [
        (SortTarget::Key, ["a", "b", "c"]),
        (SortTarget::Version, ["c", "a", "b"]),
        (SortTarget::Create, ["b", "a", "c"]),
        (SortTarget::Mod, ["c", "b", "a"]),
        (SortTarget::Value, ["c", "b", "a"]),
    ] {
        let sorted = |order: SortOrder| RangeRequest {
            sort_order: order.into(),
            sort_target: target.into(),
            ..all_keys()
        };
        let mut descending = ascending;
        descending.reverse();
        assert_eq!(
            answer(&client, sorted(SortOrder::Ascend)).await,
            ascending,
            "{target:?}"
        );
        assert_eq!(
            answer(&client, sorted(SortOrder::Descend)).await,
            descending,
            "{target:?}"
        );
        // No order with a target other than the key means ascending.
        assert_eq!(
            answer(&client, sorted(SortOrder::None)).await,
            ascending,
            "{target:?}"
        );
    }
}

#[tokio::test]
async fn an_explicit_order_sorts_before_the_limit() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for name in ["d", "c", "b", "a"] {
        client.put_ok(name, "").await;
    }
    for (order, target, expected) in [
        (SortOrder::Ascend, SortTarget::Create, ["d", "c"]),
        (SortOrder::Descend, SortTarget::Create, ["a", "b"]),
        (SortOrder::Descend, SortTarget::Key, ["d", "c"]),
        (SortOrder::Ascend, SortTarget::Key, ["a", "b"]),
    ] {
        let request = RangeRequest {
            sort_order: order.into(),
            sort_target: target.into(),
            limit: 2,
            ..all_keys()
        };
        let answer = client.range(request).await.expect("answered");
        assert_eq!(
            (key_texts(&answer.kvs), answer.more),
            (own(&expected), true),
            "{order:?} {target:?}"
        );
    }
}

#[tokio::test]
async fn equal_sort_values_keep_the_key_order() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for name in ["b", "a", "c"] {
        client.put_ok(name, "same").await;
    }
    for target in [SortTarget::Version, SortTarget::Value] {
        let request = RangeRequest {
            sort_order: SortOrder::Ascend.into(),
            sort_target: target.into(),
            ..all_keys()
        };
        assert_eq!(
            answer(&client, request).await,
            ["a", "b", "c"],
            "{target:?}"
        );
    }
}

#[tokio::test]
async fn keys_only_drops_the_value_and_keeps_the_rest() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.grant_ok(7).await;
    client
        .put(e2d_api::etcdserverpb::PutRequest {
            lease: 7,
            ..put("a", "value")
        })
        .await
        .expect("accepted");
    client
        .put(e2d_api::etcdserverpb::PutRequest {
            lease: 7,
            ..put("a", "other")
        })
        .await
        .expect("accepted");
    let answer = client
        .range(RangeRequest {
            keys_only: true,
            ..key("a")
        })
        .await
        .expect("answered");
    let kv = &answer.kvs[0];
    assert_eq!((&kv.key[..], &kv.value[..]), (&b"a"[..], &b""[..]));
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version, kv.lease),
        (2, 3, 2, 7)
    );
}

#[tokio::test]
async fn keys_only_still_sorts_by_value() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "2").await;
    client.put_ok("b", "1").await;
    let request = RangeRequest {
        keys_only: true,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Value.into(),
        ..all_keys()
    };
    assert_eq!(answer(&client, request).await, ["b", "a"]);
}

#[tokio::test]
async fn an_old_revision_is_read_as_it_was() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "1").await; // 2
    client.put_ok("a", "2").await; // 3
    client.put_ok("b", "1").await; // 4
    client.delete_ok("a").await; // 5
    for (revision_asked, expected) in [
        (1, vec![]),
        (2, vec!["1"]),
        (3, vec!["2"]),
        (4, vec!["2", "1"]),
        (5, vec!["1"]),
    ] {
        let answer = client
            .range(RangeRequest {
                revision: revision_asked,
                ..all_keys()
            })
            .await
            .expect("answered");
        let values: Vec<_> = answer
            .kvs
            .iter()
            .map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
            .collect();
        assert_eq!(values, own(&expected), "at revision {revision_asked}");
        assert_eq!(answer.count, expected.len() as i64);
        assert_eq!(
            revision(&answer.header),
            5,
            "the header tells the current revision"
        );
    }
    // Revision zero and below mean now.
    for now in [0, -1, i64::MIN] {
        let answer = client
            .range(RangeRequest {
                revision: now,
                ..all_keys()
            })
            .await
            .expect("answered");
        assert_eq!(key_texts(&answer.kvs), ["b"]);
    }
}

#[tokio::test]
async fn a_future_revision_is_refused() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "").await;
    for future in [3, i64::MAX] {
        let request = RangeRequest {
            revision: future,
            ..key("a")
        };
        refused(
            client.range(request).await,
            Code::OutOfRange,
            FUTURE_REVISION,
        );
    }
}

#[tokio::test]
async fn a_compacted_revision_is_refused_and_the_compaction_revision_is_readable() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for value in ["1", "2", "3"] {
        client.put_ok("a", value).await;
    }
    client.compact(3).await.expect("compacted");
    refused(
        client
            .range(RangeRequest {
                revision: 2,
                ..key("a")
            })
            .await,
        Code::OutOfRange,
        COMPACTED,
    );
    refused(
        client
            .range(RangeRequest {
                revision: 1,
                ..key("a")
            })
            .await,
        Code::OutOfRange,
        COMPACTED,
    );
    let at = client
        .range(RangeRequest {
            revision: 3,
            ..key("a")
        })
        .await
        .expect("answered");
    assert_eq!(at.kvs[0].value, "2");
}

#[tokio::test]
async fn a_serializable_range_is_answered() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "1").await;
    // On one node that has acknowledged the write, the local state holds it.
    assert_eq!(
        answer(
            &client,
            RangeRequest {
                serializable: true,
                ..key("a")
            }
        )
        .await,
        ["a"]
    );
}

#[tokio::test]
async fn an_answer_larger_than_a_request_may_be_is_sent() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let value = vec![b'v'; 1 << 20];
    for name in 0..5 {
        client.put_ok(format!("{name}"), &value).await;
    }
    let answer = client
        .range(all_keys())
        .await
        .expect("responses have no limit");
    assert_eq!(
        answer.kvs.iter().map(|kv| kv.value.len()).sum::<usize>(),
        5 << 20
    );
}
