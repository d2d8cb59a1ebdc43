//! Put and DeleteRange: revisions, headers, versions, leases, and what is refused before anything is written.

use e2d_api::etcdserverpb::{DeleteRangeRequest, PutRequest};
use tonic::Code;

use crate::client::*;
use crate::server::Server;

#[tokio::test]
async fn a_fresh_store_is_at_revision_1_and_the_first_write_makes_2() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    assert_eq!(client.revision().await, 1);
    assert_eq!(client.put_ok("a", "").await, 2);
    assert_eq!(client.revision().await, 2);
}

#[tokio::test]
async fn every_header_names_cluster_member_and_term() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let status = client.status().await.header.expect("a header");
    assert!(
        status.cluster_id != 0 && status.member_id != 0 && status.raft_term > 0,
        "{status:?}"
    );
    let headers = [
        client.put(put("a", "")).await.expect("accepted").header,
        client.range(key("a")).await.expect("answered").header,
        client
            .txn(txn([put_op(put("a", ""))]))
            .await
            .expect("accepted")
            .header,
        client.delete(delete("a")).await.expect("accepted").header,
        client.compact(2).await.expect("compacted").header,
        client.grant(1, 600).await.expect("granted").header,
        client
            .time_to_live(1, false)
            .await
            .expect("answered")
            .header,
        client.keep_alive(1).await.expect("renewed").header,
        client
            .leases_request(Default::default())
            .await
            .expect("listed")
            .header,
        client.revoke(1).await.expect("revoked").header,
        client
            .hash(Default::default())
            .await
            .expect("hashed")
            .header,
        client.hash_kv(0).await.expect("hashed").header,
        client
            .alarm(AlarmAction::Get, e2d_api::etcdserverpb::AlarmType::None, 0)
            .await
            .expect("listed")
            .header,
    ];
    for (index, header) in headers.into_iter().enumerate() {
        let header = header.unwrap_or_else(|| panic!("answer {index} has no header"));
        assert_eq!(
            (header.cluster_id, header.member_id, header.raft_term),
            (status.cluster_id, status.member_id, status.raft_term),
            "answer {index}"
        );
    }
}

#[tokio::test]
async fn a_write_that_changes_something_makes_exactly_one_revision() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    assert_eq!(client.put_ok("a", "same").await, 2);
    assert_eq!(
        client.put_ok("a", "same").await,
        3,
        "an equal value is a write too"
    );
    assert_eq!(client.put_ok("b", "").await, 4);
    let deleted = client
        .delete(delete_keys("a", "z"))
        .await
        .expect("accepted");
    assert_eq!((revision(&deleted.header), deleted.deleted), (5, 2));
}

#[tokio::test]
async fn a_write_that_changes_nothing_makes_no_revision() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "").await;
    let deleted = client.delete(delete("b")).await.expect("accepted");
    assert_eq!((revision(&deleted.header), deleted.deleted), (2, 0));
    let deleted = client
        .delete(delete_keys("z", "a"))
        .await
        .expect("an inverted range is no error");
    assert_eq!((revision(&deleted.header), deleted.deleted), (2, 0));
    assert_eq!(
        revision(
            &client
                .txn(txn([]))
                .await
                .expect("an empty txn is no error")
                .header
        ),
        2
    );
    let answer = client
        .txn(txn([delete_op(delete("b")), range_op(key("a"))]))
        .await
        .expect("accepted");
    assert_eq!(revision(&answer.header), 2);
    assert_eq!(client.revision().await, 2);
}

#[tokio::test]
async fn a_deleted_key_starts_again_with_version_1() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "1").await;
    client.put_ok("a", "2").await;
    let kv = client.get("a").await.expect("the key exists");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    client.delete_ok("a").await;
    assert_eq!(client.get("a").await, None);
    client.put_ok("a", "3").await;
    let kv = client.get("a").await.expect("the key exists");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

#[tokio::test]
async fn an_empty_key_is_refused() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    refused(
        client.put(put("", "v")).await,
        Code::InvalidArgument,
        KEY_NOT_PROVIDED,
    );
    refused(
        client.delete(delete("")).await,
        Code::InvalidArgument,
        KEY_NOT_PROVIDED,
    );
    refused(
        client.delete(delete_keys("", "\0")).await,
        Code::InvalidArgument,
        KEY_NOT_PROVIDED,
    );
    assert_eq!(client.revision().await, 1);
}

#[tokio::test]
async fn an_ignored_value_or_lease_must_not_be_given() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let request = PutRequest {
        ignore_value: true,
        ..put("a", "v")
    };
    refused(
        client.put(request).await,
        Code::InvalidArgument,
        "etcdserver: value is provided",
    );
    let request = PutRequest {
        ignore_lease: true,
        lease: 1,
        ..put("a", "v")
    };
    refused(
        client.put(request).await,
        Code::InvalidArgument,
        "etcdserver: lease is provided",
    );
}

#[tokio::test]
async fn ignoring_value_or_lease_needs_the_key() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let request = PutRequest {
        ignore_value: true,
        ..put("a", "")
    };
    refused(
        client.put(request).await,
        Code::InvalidArgument,
        KEY_NOT_FOUND,
    );
    let request = PutRequest {
        ignore_lease: true,
        ..put("a", "v")
    };
    refused(
        client.put(request).await,
        Code::InvalidArgument,
        KEY_NOT_FOUND,
    );
    client.put_ok("a", "").await;
    client.delete_ok("a").await;
    let request = PutRequest {
        ignore_lease: true,
        ..put("a", "v")
    };
    refused(
        client.put(request).await,
        Code::InvalidArgument,
        KEY_NOT_FOUND,
    );
    assert_eq!(client.revision().await, 3, "a refused put writes nothing");
}

#[tokio::test]
async fn an_ignored_value_or_lease_stays() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.grant_ok(7).await;
    client.grant_ok(8).await;
    client
        .put(PutRequest {
            lease: 7,
            ..put("a", "v")
        })
        .await
        .expect("accepted");
    client
        .put(PutRequest {
            ignore_value: true,
            lease: 8,
            ..put("a", "")
        })
        .await
        .expect("accepted");
    let kv = client.get("a").await.expect("the key exists");
    assert_eq!((&kv.value[..], kv.lease, kv.version), (&b"v"[..], 8, 2));
    client
        .put(PutRequest {
            ignore_lease: true,
            ..put("a", "w")
        })
        .await
        .expect("accepted");
    let kv = client.get("a").await.expect("the key exists");
    assert_eq!((&kv.value[..], kv.lease, kv.version), (&b"w"[..], 8, 3));
    client
        .put(PutRequest {
            ignore_lease: true,
            ignore_value: true,
            ..put("a", "")
        })
        .await
        .expect("accepted");
    let kv = client.get("a").await.expect("the key exists");
    assert_eq!(
        (&kv.value[..], kv.lease, kv.version, kv.mod_revision),
        (&b"w"[..], 8, 4, 5)
    );
}

#[tokio::test]
async fn a_put_with_an_unknown_lease_is_refused_and_writes_nothing() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    refused(
        client
            .put(PutRequest {
                lease: 9,
                ..put("a", "v")
            })
            .await,
        Code::NotFound,
        LEASE_NOT_FOUND,
    );
    assert_eq!(client.get("a").await, None);
    assert_eq!(client.revision().await, 1);
}

#[tokio::test]
async fn prev_kv_is_the_state_before_the_put() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let first = client
        .put(PutRequest {
            prev_kv: true,
            ..put("a", "1")
        })
        .await
        .expect("accepted");
    assert_eq!(first.prev_kv, None);
    let before = client.get("a").await;
    let second = client
        .put(PutRequest {
            prev_kv: true,
            ..put("a", "2")
        })
        .await
        .expect("accepted");
    assert_eq!(second.prev_kv, before);
    let third = client.put(put("a", "3")).await.expect("accepted");
    assert_eq!(third.prev_kv, None, "only who asks gets it");
}

#[tokio::test]
async fn prev_kvs_of_a_delete_are_the_deleted_keys_in_order() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for name in ["c", "a", "b", "x"] {
        client.put_ok(name, name).await;
    }
    let expected = client.range(keys("a", "d")).await.expect("answered").kvs;
    let request = DeleteRangeRequest {
        prev_kv: true,
        ..delete_keys("a", "d")
    };
    let answer = client.delete(request).await.expect("accepted");
    assert_eq!((answer.deleted, answer.prev_kvs), (3, expected));
    let answer = client.delete(delete("x")).await.expect("accepted");
    assert_eq!((answer.deleted, answer.prev_kvs.len()), (1, 0));
}

#[tokio::test]
async fn delete_ranges_have_the_shapes_of_ranges() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for (request, left) in [
        (delete("b"), vec!["a", "aa", "c"]),
        (delete_keys("a", "b"), vec!["b", "c"]),
        (delete_keys("aa", "\0"), vec!["a"]),
        (delete_keys("\0", "\0"), vec![]),
        (delete_keys("c", "b"), vec!["a", "aa", "b", "c"]),
    ] {
        for name in ["a", "aa", "b", "c"] {
            client.put_ok(name, "").await;
        }
        client.delete(request.clone()).await.expect("accepted");
        let found = client.range(all_keys()).await.expect("answered");
        assert_eq!(key_texts(&found.kvs), left, "{request:?}");
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_a_kill_and_a_stop() {
    let Some(mut server) = Server::target(&["--unsafe-no-fsync=false"]).await else {
        return;
    };
    let client = server.client().await;
    client.grant_ok(7).await;
    for number in 0..50 {
        client
            .put(PutRequest {
                lease: 7,
                ..put(format!("{:02}", number % 20), format!("{number}"))
            })
            .await
            .expect("accepted");
    }
    client.delete_ok("03").await;
    client
        .txn(txn([put_op(put("t1", "")), put_op(put("t2", ""))]))
        .await
        .expect("accepted");
    let before = client.range(all_keys()).await.expect("answered");
    let at_40 = client
        .range(e2d_api::etcdserverpb::RangeRequest {
            revision: 40,
            ..all_keys()
        })
        .await
        .expect("answered");
    for end in ["kill", "stop"] {
        if end == "kill" {
            server.kill();
        } else {
            server.terminate().await;
        }
        server.restart().await;
        let client = server.client().await;
        let after = client.range(all_keys()).await.expect("answered");
        assert_eq!(
            revision(&after.header),
            revision(&before.header),
            "after {end}"
        );
        assert_eq!(
            (&after.kvs, after.count),
            (&before.kvs, before.count),
            "after {end}"
        );
        let header = (
            after.header.expect("a header"),
            before.header.expect("a header"),
        );
        assert_eq!(
            (header.0.cluster_id, header.0.member_id),
            (header.1.cluster_id, header.1.member_id)
        );
        let request = e2d_api::etcdserverpb::RangeRequest {
            revision: 40,
            ..all_keys()
        };
        assert_eq!(
            client.range(request).await.expect("answered").kvs,
            at_40.kvs,
            "after {end}"
        );
        let lease = client.time_to_live(7, true).await.expect("answered");
        assert_eq!(
            (lease.granted_ttl, lease.keys.len()),
            (600, 19),
            "after {end}"
        );
    }
}

#[tokio::test]
async fn the_revision_survives_a_restart_when_its_keys_are_gone() {
    let Some(mut server) = Server::target(&["--unsafe-no-fsync=false"]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "").await;
    let last = client.delete_ok("a").await;
    client
        .compact_request(e2d_api::etcdserverpb::CompactionRequest {
            revision: last,
            physical: true,
        })
        .await
        .expect("compacted");
    server.kill();
    server.restart().await;
    let client = server.client().await;
    assert_eq!(client.revision().await, last);
    assert_eq!(client.put_ok("b", "").await, last + 1);
}
