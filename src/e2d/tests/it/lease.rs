//! Leases: their ids and times, what hangs on them, and how they end.

use std::time::{Duration, Instant};

use e2d_api::etcdserverpb::{LeaseKeepAliveRequest, PutRequest};
use e2d_api::mvccpb::event::EventType;
use tonic::Code;

use crate::client::*;
use crate::server::Server;

async fn attach(client: &Client, name: &str, lease: i64) {
    client
        .put(PutRequest {
            lease,
            ..put(name, "")
        })
        .await
        .expect("accepted");
}

async fn attached(client: &Client, lease: i64) -> Vec<String> {
    let answer = client.time_to_live(lease, true).await.expect("answered");
    let mut names: Vec<_> = answer
        .keys
        .iter()
        .map(|key| String::from_utf8_lossy(key).into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_id_of_0_is_replaced_by_a_positive_one() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let one = client.grant(0, 600).await.expect("granted");
    let two = client.grant(0, 600).await.expect("granted");
    assert!(
        one.id > 0 && two.id > 0 && one.id != two.id,
        "{one:?} {two:?}"
    );
    assert_eq!((one.ttl, one.error.as_str()), (600, ""));
}

#[tokio::test]
async fn any_other_id_is_taken_once() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for id in [7, -7, i64::MAX, i64::MIN] {
        assert_eq!(client.grant(id, 600).await.expect("granted").id, id);
        refused(
            client.grant(id, 600).await,
            Code::FailedPrecondition,
            "etcdserver: lease already exists",
        );
    }
    assert_eq!(client.revision().await, 1, "leases make no revisions");
}

#[tokio::test]
async fn a_short_time_is_raised_to_the_minimum() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for (id, asked) in [(1, 1), (2, 0), (3, -5), (4, i64::MIN)] {
        let granted = client.grant(id, asked).await.expect("granted");
        assert_eq!(granted.ttl, 2, "asked for {asked}");
        assert_eq!(
            client
                .time_to_live(id, false)
                .await
                .expect("answered")
                .granted_ttl,
            2
        );
    }
    assert_eq!(client.grant(5, 3).await.expect("granted").ttl, 3);
}

#[tokio::test]
async fn the_minimum_follows_the_election_timeout() {
    let Some(server) =
        Server::target(&["--heartbeat-interval=100", "--election-timeout=3000"]).await
    else {
        return;
    };
    let client = server.client().await;
    assert_eq!(client.grant(1, 1).await.expect("granted").ttl, 5);
}

#[tokio::test]
async fn a_time_beyond_the_maximum_is_refused() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    assert_eq!(
        client.grant(1, 9_000_000_000).await.expect("granted").ttl,
        9_000_000_000
    );
    for ttl in [9_000_000_001, i64::MAX] {
        refused(
            client.grant(2, ttl).await,
            Code::OutOfRange,
            "etcdserver: too large lease TTL",
        );
    }
}

#[tokio::test]
async fn keep_alive_restarts_the_time() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.grant(1, 3).await.expect("granted");
    let mut stream = client.keep_alive_stream();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        stream.send(LeaseKeepAliveRequest { id: 1 });
        let renewed = stream.next().await.expect("renewed");
        assert_eq!((renewed.id, renewed.ttl), (1, 3));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(
        client.time_to_live(1, false).await.expect("answered").ttl > 0,
        "it outlived its time"
    );
}

#[tokio::test]
async fn keep_alive_of_an_unknown_lease_answers_0_and_goes_on() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.grant_ok(7).await;
    client.put_ok("a", "").await;
    let mut stream = client.keep_alive_stream();
    for (id, ttl) in [(9, 0), (7, 600), (0, 0), (7, 600)] {
        stream.send(LeaseKeepAliveRequest { id });
        let answer = stream.next().await.expect("the stream goes on");
        assert_eq!(
            (answer.id, answer.ttl, revision(&answer.header)),
            (id, ttl, 2)
        );
    }
}

#[tokio::test]
async fn the_time_to_live_of_an_unknown_lease_is_minus_1() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for keys in [false, true] {
        let answer = client.time_to_live(9, keys).await.expect("no error");
        assert_eq!(
            (answer.id, answer.ttl, answer.granted_ttl, answer.keys.len()),
            (9, -1, 0, 0)
        );
    }
}

#[tokio::test]
async fn the_time_to_live_lists_the_keys_for_who_asks() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.grant_ok(7).await;
    for name in ["b", "a", "c"] {
        attach(&client, name, 7).await;
    }
    let answer = client.time_to_live(7, false).await.expect("answered");
    assert!((590..=600).contains(&answer.ttl), "{answer:?}");
    assert_eq!(
        (answer.id, answer.granted_ttl, answer.keys.len()),
        (7, 600, 0)
    );
    assert_eq!(attached(&client, 7).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_key_hangs_on_the_lease_of_its_last_put() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.grant_ok(7).await;
    client.grant_ok(8).await;
    for name in ["moved", "freed", "deleted", "kept", "stays"] {
        attach(&client, name, 7).await;
    }
    attach(&client, "moved", 8).await;
    attach(&client, "freed", 0).await;
    client.delete_ok("deleted").await;
    client
        .put(PutRequest {
            ignore_lease: true,
            ..put("kept", "")
        })
        .await
        .expect("accepted");
    assert_eq!(attached(&client, 7).await, ["kept", "stays"]);
    assert_eq!(attached(&client, 8).await, ["moved"]);
}

#[tokio::test]
async fn a_revoke_deletes_its_keys_in_one_revision_in_key_order() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.grant_ok(7).await;
    for name in ["c", "a", "b", "d"] {
        attach(&client, name, 7).await;
    }
    client.put_ok("free", "").await; // revision 6
    let mut stream = client.watch_stream();
    let id = stream.created(watch_keys("\0", "\0")).await;
    let revoked = client.revoke(7).await.expect("revoked");
    assert_eq!(revision(&revoked.header), 7);
    let events = stream.events(id).await;
    let told: Vec<_> = events
        .iter()
        .filter_map(|event| event.kv.as_ref())
        .map(|kv| (&kv.key[..], kv.mod_revision))
        .collect();
    assert_eq!(told, [(&b"a"[..], 7), (b"b", 7), (b"c", 7), (b"d", 7)]);
    assert!(
        events
            .iter()
            .all(|event| event.r#type() == EventType::Delete)
    );
    assert_eq!(
        key_texts(&client.range(all_keys()).await.expect("answered").kvs),
        ["free"]
    );
    assert!(client.leases().await.is_empty());
}

#[tokio::test]
async fn a_revoke_without_keys_makes_no_revision() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.grant_ok(7).await;
    attach(&client, "a", 7).await;
    client.delete_ok("a").await;
    let revoked = client.revoke(7).await.expect("revoked");
    assert_eq!(revision(&revoked.header), 3);
}

#[tokio::test]
async fn a_revoke_of_an_unknown_lease_is_refused() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for id in [9, 0, -1] {
        refused(client.revoke(id).await, Code::NotFound, LEASE_NOT_FOUND);
    }
}

#[tokio::test]
async fn leases_are_listed_by_their_end() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    assert!(client.leases().await.is_empty());
    for (id, ttl) in [(1, 300), (2, 100), (3, 200)] {
        client.grant(id, ttl).await.expect("granted");
    }
    assert_eq!(client.leases().await, [2, 3, 1]);
    client.keep_alive(2).await.expect("renewed");
    assert_eq!(client.leases().await, [2, 3, 1], "it still ends first");
    client.revoke(3).await.expect("revoked");
    assert_eq!(client.leases().await, [2, 1]);
}

#[tokio::test]
async fn an_expired_lease_deletes_its_keys_and_is_gone() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    let id = stream.created(watch_keys("\0", "\0")).await;
    let granted = Instant::now();
    client.grant(7, 2).await.expect("granted");
    let ops = ["b", "a"].map(|name| {
        put_op(PutRequest {
            lease: 7,
            ..put(name, "")
        })
    });
    client.txn(txn(ops)).await.expect("accepted");
    assert_eq!(stream.events(id).await.len(), 2);
    let events = stream.events(id).await;
    assert!(
        granted.elapsed() >= Duration::from_secs(2),
        "expired after {:?}",
        granted.elapsed()
    );
    let told: Vec<_> = events
        .iter()
        .filter_map(|event| event.kv.as_ref())
        .map(|kv| (&kv.key[..], kv.mod_revision))
        .collect();
    assert_eq!(told, [(&b"a"[..], 3), (b"b", 3)]);
    assert_eq!(
        client.time_to_live(7, false).await.expect("answered").ttl,
        -1
    );
    assert_eq!(client.keep_alive(7).await.expect("answered").ttl, 0);
    refused(client.revoke(7).await, Code::NotFound, LEASE_NOT_FOUND);
    refused(
        client
            .put(PutRequest {
                lease: 7,
                ..put("a", "")
            })
            .await,
        Code::NotFound,
        LEASE_NOT_FOUND,
    );
}

#[tokio::test]
async fn leases_survive_a_kill_with_at_least_their_time_and_then_expire() {
    let Some(mut server) = Server::target(&["--unsafe-no-fsync=false"]).await else {
        return;
    };
    let client = server.client().await;
    client.grant(7, 4).await.expect("granted");
    client.grant(8, 600).await.expect("granted");
    attach(&client, "a", 7).await;
    attach(&client, "b", 8).await;
    server.kill();
    let stopped = Instant::now();
    server.restart().await;
    let client = server.client().await;
    assert_eq!(attached(&client, 8).await, ["b"]);
    assert_eq!(
        client
            .time_to_live(8, false)
            .await
            .expect("answered")
            .granted_ttl,
        600
    );
    let mut stream = client.watch_stream();
    let id = stream.created(WatchOf { key: "a", from: 4 }.into()).await;
    let events = stream.events(id).await;
    assert_eq!(events[0].r#type(), EventType::Delete);
    // The new leader cannot know how much of the time had passed, and never ends a lease early.
    assert!(
        stopped.elapsed() >= Duration::from_secs(4),
        "expired {:?} after the kill",
        stopped.elapsed()
    );
    assert_eq!(client.leases().await, [8]);
}

/// A watch of one key from a revision on.
struct WatchOf {
    key: &'static str,
    from: i64,
}

impl From<WatchOf> for e2d_api::etcdserverpb::WatchCreateRequest {
    fn from(of: WatchOf) -> Self {
        Self {
            start_revision: of.from,
            ..watch(of.key)
        }
    }
}
