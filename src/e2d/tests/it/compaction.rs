//! Compact: which revisions it accepts, what stays readable, and what it leaves after a restart.

use e2d_api::etcdserverpb::{CompactionRequest, RangeRequest};
use tonic::Code;

use crate::client::*;
use crate::server::Server;

#[tokio::test]
async fn a_future_revision_is_refused() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "").await;
    refused(client.compact(3).await, Code::OutOfRange, FUTURE_REVISION);
    refused(
        client.compact(i64::MAX).await,
        Code::OutOfRange,
        FUTURE_REVISION,
    );
    assert_eq!(
        revision(
            &client
                .compact(2)
                .await
                .expect("the current revision can be compacted")
                .header
        ),
        2
    );
}

#[tokio::test]
async fn a_compacted_or_negative_revision_is_refused() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    refused(client.compact(-1).await, Code::OutOfRange, COMPACTED);
    for value in ["1", "2", "3"] {
        client.put_ok("a", value).await;
    }
    client.compact(3).await.expect("compacted");
    for past in [3, 2, 1, 0, -1, i64::MIN] {
        refused(client.compact(past).await, Code::OutOfRange, COMPACTED);
    }
    client
        .compact(4)
        .await
        .expect("a later revision is compacted");
}

#[tokio::test]
async fn revision_0_is_accepted_while_nothing_is_compacted() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for value in ["1", "2"] {
        client.put_ok("a", value).await;
    }
    client.compact(0).await.expect("accepted");
    let old = client
        .range(RangeRequest {
            revision: 2,
            ..key("a")
        })
        .await
        .expect("nothing is gone");
    assert_eq!(old.kvs[0].value, "1");
    client.compact(1).await.expect("accepted");
    refused(client.compact(1).await, Code::OutOfRange, COMPACTED);
}

#[tokio::test]
async fn a_compaction_of_revision_0_leaves_hash_kv_right() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    if server.differs_on_reference("it answers HashKV(0) from a cache that is wrong then") {
        return;
    }
    let client = server.client().await;
    client.compact(0).await.expect("accepted");
    client.put_ok("a", "1").await;
    let at_2 = client.hash_kv(2).await.expect("hashed").hash;
    assert_eq!(client.hash_kv(0).await.expect("hashed").hash, at_2);
}

#[tokio::test]
async fn the_header_tells_the_current_revision() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for value in ["1", "2", "3"] {
        client.put_ok("a", value).await;
    }
    for physical in [false, true] {
        let request = CompactionRequest {
            revision: 2 + i64::from(physical),
            physical,
        };
        let answer = client.compact_request(request).await.expect("compacted");
        assert_eq!(revision(&answer.header), 4, "physical {physical}");
    }
}

#[tokio::test]
async fn the_latest_value_of_a_live_key_stays() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("old", "1").await; // 2
    client.put_ok("gone", "1").await; // 3
    client.put_ok("a", "1").await; // 4
    client.put_ok("a", "2").await; // 5
    client.delete_ok("gone").await; // 6
    client.put_ok("a", "3").await; // 7
    client
        .compact_request(CompactionRequest {
            revision: 6,
            physical: true,
        })
        .await
        .expect("compacted");
    let at = |revision| {
        let client = &client;
        async move {
            let answer = client
                .range(RangeRequest {
                    revision,
                    ..all_keys()
                })
                .await
                .expect("answered");
            let text = |kv: &e2d_api::mvccpb::KeyValue| {
                format!(
                    "{}={}",
                    String::from_utf8_lossy(&kv.key),
                    String::from_utf8_lossy(&kv.value)
                )
            };
            answer.kvs.iter().map(text).collect::<Vec<_>>()
        }
    };
    assert_eq!(at(6).await, ["a=2", "old=1"]);
    assert_eq!(at(7).await, ["a=3", "old=1"]);
    let kv = client.get("a").await.expect("the key exists");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (4, 7, 3));
}

#[tokio::test]
async fn thousands_of_revisions_are_compacted() {
    let Some(server) = Server::target(&["--compaction-batch-limit=100"]).await else {
        return;
    };
    let client = server.client().await;
    for number in 0..3000 {
        client
            .put_ok(format!("{}", number % 7), format!("{number}"))
            .await;
    }
    client
        .compact_request(CompactionRequest {
            revision: 3000,
            physical: true,
        })
        .await
        .expect("compacted");
    let answer = client
        .range(RangeRequest {
            revision: 3000,
            ..all_keys()
        })
        .await
        .expect("answered");
    assert_eq!(
        (
            answer.count,
            answer.kvs.iter().map(|kv| kv.version).sum::<i64>()
        ),
        (7, 2999)
    );
    refused(
        client
            .range(RangeRequest {
                revision: 2999,
                ..all_keys()
            })
            .await,
        Code::OutOfRange,
        COMPACTED,
    );
}

#[tokio::test]
async fn a_compaction_survives_a_kill() {
    let Some(mut server) = Server::target(&["--unsafe-no-fsync=false"]).await else {
        return;
    };
    let client = server.client().await;
    for number in 0..100 {
        client.put_ok("a", format!("{number}")).await;
    }
    client.compact(50).await.expect("compacted");
    server.kill();
    server.restart().await;
    let client = server.client().await;
    refused(
        client
            .range(RangeRequest {
                revision: 49,
                ..key("a")
            })
            .await,
        Code::OutOfRange,
        COMPACTED,
    );
    refused(client.compact(50).await, Code::OutOfRange, COMPACTED);
    let at = client
        .range(RangeRequest {
            revision: 50,
            ..key("a")
        })
        .await
        .expect("answered");
    assert_eq!((at.kvs[0].mod_revision, revision(&at.header)), (50, 101));
}
