//! What went wrong in etcd's history and must not go wrong here. Each test names the issue of etcd-io/etcd.
//!
//! Those that are answers to single requests stand with their service: #15220, #17247, #18667, #19179 and #20221 in
//! `watch` and `txn`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use e2d_api::etcdserverpb::{
    CompactionRequest, DefragmentRequest, RangeRequest, WatchCreateRequest,
};
use tokio::task::JoinSet;

use crate::client::*;
use crate::server::Server;

/// How often one key was put: with success, and at all.
#[derive(Debug, Clone, Copy, Default)]
struct Puts {
    acknowledged: i64,
    sent: i64,
    last_revision: i64,
}

/// Writers that each put a key of their own until they are told to stop or the server is gone. Each put stores how many
/// came before it.
struct Writers {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<(String, Puts)>,
}

impl Writers {
    async fn start(server: &Server, before: &BTreeMap<String, Puts>) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..8 {
            let name = format!("writer-{number}");
            let mut puts = before.get(&name).copied().unwrap_or_default();
            let (client, stop) = (server.client().await, Arc::clone(&stop));
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    puts.sent += 1;
                    let Ok(answer) = client.put(put(&name, puts.sent.to_string())).await else {
                        break;
                    };
                    puts.acknowledged = puts.sent;
                    puts.last_revision = revision(&answer.header);
                }
                (name, puts)
            });
        }
        Writers { stop, tasks }
    }

    /// What every writer did. They end by themselves once the server is gone.
    async fn finish(self) -> BTreeMap<String, Puts> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await.into_iter().collect()
    }
}

/// Waits until the store has moved on by this many revisions.
async fn advance(client: &Client, by: i64) {
    let goal = client.revision().await + by;
    while client.revision().await < goal {}
}

/// #14370: a single node acknowledged writes that a crash then lost. #13766: a crash under load applied entries twice, or
/// forgot to count them.
#[tokio::test]
async fn a_kill_under_load_neither_loses_nor_doubles_writes() {
    let Some(mut server) = Server::target(&["--unsafe-no-fsync=false"]).await else {
        return;
    };
    let mut before: BTreeMap<String, Puts> = BTreeMap::new();
    for _ in 0..4 {
        let writers = Writers::start(&server, &before).await;
        advance(&server.client().await, 200).await;
        server.kill();
        let did = writers.finish().await;
        server.restart().await;
        let client = server.client().await;
        let now = client.revision().await;
        let mut total = 0;
        for (name, puts) in &did {
            let kv = client.get(name).await.expect("the key was written");
            let stored: i64 = String::from_utf8_lossy(&kv.value)
                .parse()
                .expect("the writer stores a number");
            assert!(
                stored >= puts.acknowledged && stored <= puts.sent,
                "{name}: {puts:?}, found {kv:?}"
            );
            assert!(
                kv.mod_revision >= puts.last_revision && now >= puts.last_revision,
                "{name}: {puts:?} {kv:?} {now}"
            );
            // Every put was applied once: the version counts them.
            assert_eq!(kv.version, stored, "{name}: {puts:?}");
            total += stored;
            // What was in flight is either there or not; from here on it counts as the client would count it.
            before.insert(
                name.clone(),
                Puts {
                    acknowledged: stored,
                    sent: stored,
                    last_revision: kv.mod_revision,
                },
            );
        }
        assert_eq!(now, total + 1, "one revision for each put");
    }
}

/// #17780: after a crash during a compaction that removed the newest keys, the revision went back.
#[tokio::test]
async fn the_revision_never_goes_back_over_kills_in_a_compaction() {
    let Some(mut server) =
        Server::target(&["--unsafe-no-fsync=false", "--compaction-batch-limit=10"]).await
    else {
        return;
    };
    let mut last = 1;
    for _ in 0..5 {
        let client = server.client().await;
        for number in 0..100 {
            last = client.put_ok(format!("{number}"), "").await;
        }
        let deleted = client
            .delete(delete_keys("\0", "\0"))
            .await
            .expect("accepted");
        last = last.max(revision(&deleted.header));
        client.compact(last).await.expect("compacted");
        server.kill();
        server.restart().await;
        let client = server.client().await;
        assert_eq!(client.revision().await, last);
        let answer = client
            .range(RangeRequest {
                revision: last,
                ..all_keys()
            })
            .await
            .expect("readable");
        assert_eq!(answer.count, 0);
    }
}

/// #14685: a crash during a defragmentation left another revision.
#[tokio::test]
async fn a_kill_in_a_defragmentation_leaves_everything() {
    let Some(mut server) = Server::target(&["--unsafe-no-fsync=false"]).await else {
        return;
    };
    let client = server.client().await;
    for number in 0..500 {
        client
            .put_ok(format!("{}", number % 50), [b'v'; 1000])
            .await;
    }
    for _ in 0..3 {
        let client = server.client().await;
        let before = client.range(all_keys()).await.expect("answered");
        let defragmenting =
            tokio::spawn(async move { client.defragment(DefragmentRequest {}).await });
        tokio::task::yield_now().await;
        server.kill();
        // It was done or it was not: the kill decides.
        let _ = defragmenting.await.expect("the request ends");
        server.restart().await;
        let after = server
            .client()
            .await
            .range(all_keys())
            .await
            .expect("answered");
        assert_eq!(
            (revision(&after.header), &after.kvs),
            (revision(&before.header), &before.kvs)
        );
    }
}

/// #18055: two snapshots in a short time ended the process.
#[tokio::test]
async fn snapshots_may_overlap_each_other_and_writes() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let writers = Writers::start(&server, &BTreeMap::new()).await;
    let client = server.client().await;
    advance(&client, 50).await;
    let (one, two, three) = tokio::join!(client.snapshot(), client.snapshot(), client.snapshot());
    for snapshot in [one, two, three] {
        let messages = snapshot.expect("a snapshot");
        assert_eq!(
            messages.last().expect("messages").blob.len(),
            32,
            "it ends with its checksum"
        );
    }
    advance(&client, 10).await;
    let did = writers.finish().await;
    assert!(
        did.values().all(|puts| puts.acknowledged == puts.sent),
        "no write failed: {did:?}"
    );
}

/// #18089: a watch behind the present lost the delete at which the store was compacted.
#[tokio::test]
async fn a_watch_sees_the_delete_that_a_compaction_meets() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for round in 0..10 {
        let name = format!("{round}");
        client.put_ok(&name, "").await;
        let deleted = client.delete_ok(&name).await;
        let (compacted, mut stream) = tokio::join!(
            client.compact_request(CompactionRequest {
                revision: deleted,
                physical: round % 2 == 0
            }),
            async {
                let mut stream = client.watch_stream();
                stream
                    .created(WatchCreateRequest {
                        start_revision: deleted,
                        ..watch(&name)
                    })
                    .await;
                stream
            }
        );
        compacted.expect("compacted");
        let events = stream.events(0).await;
        let kv = events[0].kv.as_ref().expect("a key");
        assert_eq!(
            (events.len(), kv.mod_revision, events[0].r#type),
            (1, deleted, 1)
        );
    }
}

/// #17529: streams that were kept busy lost events.
#[tokio::test]
async fn many_watches_on_one_busy_stream_lose_nothing() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    for _ in 0..100 {
        stream.created(watch("a")).await;
    }
    let writer = {
        let client = server.client().await;
        tokio::spawn(async move {
            for _ in 0..300 {
                client.put_ok("a", [b'v'; 2000]).await;
            }
        })
    };
    let mut next: BTreeMap<i64, i64> = (0..100).map(|id| (id, 2)).collect();
    while next.values().any(|&next| next < 302) {
        let message = stream.message().await;
        if message.watch_id == -1 {
            let at = revision(&message.header);
            assert!(
                next.values().all(|&next| next > at),
                "progress to {at} while watches were behind: {next:?}"
            );
            continue;
        }
        for event in &message.events {
            let found = event.kv.as_ref().expect("a key").mod_revision;
            let next = next.get_mut(&message.watch_id).expect("a watch of ours");
            assert_eq!(
                found, *next,
                "watch {} missed or repeated an event",
                message.watch_id
            );
            *next += 1;
        }
        if message.watch_id == 0 {
            stream.send_progress();
        }
    }
    writer.await.expect("all puts are accepted");
}
