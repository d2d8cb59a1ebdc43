//! Watch: every event of every watch, once, in order, with nothing split; and the conversation around it.
//!
//! Silence is never waited for: what must not be said would stand before an answer that is sure to come.

use std::collections::BTreeMap;

use e2d_api::etcdserverpb::watch_create_request::FilterType;
use e2d_api::etcdserverpb::{PutRequest, WatchCreateRequest, WatchResponse};
use e2d_api::mvccpb::Event;
use e2d_api::mvccpb::event::EventType;
use tonic::Code;

use crate::client::*;
use crate::server::Server;

const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";

/// `PUT a@3` for a put of `a` at revision 3.
fn text(event: &Event) -> String {
    let kv = event.kv.as_ref().expect("an event has a key");
    let kind = if event.r#type() == EventType::Put {
        "PUT"
    } else {
        "DELETE"
    };
    format!(
        "{kind} {}@{}",
        String::from_utf8_lossy(&kv.key),
        kv.mod_revision
    )
}

fn texts(events: &[Event]) -> Vec<String> {
    events.iter().map(text).collect()
}

/// Reads messages until every watch has the number of events that is expected of it. Each message must be whole: the
/// events of one revision stand in one message.
async fn collect(
    stream: &mut WatchStream,
    expected: &[(i64, usize)],
) -> BTreeMap<i64, Vec<String>> {
    let mut found: BTreeMap<i64, Vec<String>> =
        expected.iter().map(|&(id, _)| (id, Vec::new())).collect();
    let mut last: BTreeMap<i64, i64> = BTreeMap::new();
    while expected.iter().any(|&(id, count)| found[&id].len() < count) {
        let message = stream.message().await;
        assert!(
            !message.events.is_empty(),
            "expected events, found {message:?}"
        );
        let revisions = message
            .events
            .iter()
            .filter_map(|event| event.kv.as_ref())
            .map(|kv| kv.mod_revision);
        let (min, max) = (
            revisions.clone().min().expect("events"),
            revisions.max().expect("events"),
        );
        assert!(
            last.get(&message.watch_id)
                .is_none_or(|&before| before < min),
            "revision {min} was split or repeated"
        );
        last.insert(message.watch_id, max);
        found
            .get_mut(&message.watch_id)
            .expect("a watch of ours")
            .extend(texts(&message.events));
    }
    found
}

#[tokio::test]
async fn created_comes_first_with_the_current_revision() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "").await;
    client.put_ok("a", "").await;
    let mut stream = client.watch_stream();
    let created = stream
        .create(WatchCreateRequest {
            start_revision: 2,
            ..watch("a")
        })
        .await;
    assert_eq!(
        (created.watch_id, created.created, created.canceled),
        (0, true, false)
    );
    assert!(
        created.events.is_empty()
            && created.compact_revision == 0
            && created.cancel_reason.is_empty()
    );
    let header = created.header.expect("a header");
    assert_eq!(header.revision, 3);
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
    let found = collect(&mut stream, &[(0, 2)]).await;
    assert_eq!(found[&0], ["PUT a@2", "PUT a@3"]);
}

#[tokio::test]
async fn ids_count_up_from_0_and_skip_those_in_use() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    assert_eq!(stream.created(watch("a")).await, 0);
    assert_eq!(
        stream
            .created(WatchCreateRequest {
                watch_id: 2,
                ..watch("a")
            })
            .await,
        2
    );
    assert_eq!(stream.created(watch("a")).await, 1);
    assert_eq!(stream.created(watch("a")).await, 3);
    assert_eq!(
        stream
            .created(WatchCreateRequest {
                watch_id: -7,
                ..watch("a")
            })
            .await,
        -7
    );
    // Another stream counts for itself.
    assert_eq!(client.watch_stream().created(watch("a")).await, 0);
}

#[tokio::test]
async fn one_stream_carries_many_watches() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    let one = stream.created(watch("b")).await;
    let range = stream.created(watch_keys("a", "c")).await;
    let from = stream.created(watch_keys("b", "\0")).await;
    let all = stream.created(watch_keys("", "\0")).await;
    for name in ["a", "b", "c"] {
        client.put_ok(name, "").await;
    }
    let found = collect(&mut stream, &[(one, 1), (range, 2), (from, 2), (all, 3)]).await;
    assert_eq!(found[&one], ["PUT b@3"]);
    assert_eq!(found[&range], ["PUT a@2", "PUT b@3"]);
    assert_eq!(found[&from], ["PUT b@3", "PUT c@4"]);
    assert_eq!(found[&all], ["PUT a@2", "PUT b@3", "PUT c@4"]);
}

#[tokio::test]
async fn an_empty_key_means_the_first_key() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    let first = stream.created(watch("")).await;
    let sentinel = stream.created(watch("z")).await;
    client.put_ok("a", "").await;
    client.put_ok("\0", "").await;
    client.put_ok("z", "").await;
    let found = collect(&mut stream, &[(first, 1), (sentinel, 1)]).await;
    assert_eq!(found[&first], ["PUT \0@3"]);
}

#[track_caller]
fn canceled_at_once(answer: &WatchResponse, reason: &str) {
    assert_eq!(
        (
            answer.watch_id,
            answer.created,
            answer.canceled,
            answer.cancel_reason.as_str(),
            answer.compact_revision
        ),
        (-1, true, true, reason, 0)
    );
}

#[tokio::test]
async fn a_watch_that_cannot_be_is_created_and_canceled() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    stream
        .created(WatchCreateRequest {
            watch_id: 5,
            ..watch("a")
        })
        .await;
    canceled_at_once(
        &stream
            .create(WatchCreateRequest {
                watch_id: 5,
                ..watch("b")
            })
            .await,
        DUPLICATE_ID,
    );
    canceled_at_once(&stream.create(watch_keys("b", "a")).await, EMPTY_RANGE);
    canceled_at_once(&stream.create(watch_keys("b", "b")).await, EMPTY_RANGE);
    canceled_at_once(
        &stream
            .create(WatchCreateRequest {
                start_revision: -1,
                ..watch("a")
            })
            .await,
        COMPACTED,
    );
    // The stream stays open, and the watch with the duplicate id as it was.
    client.put_ok("a", "").await;
    assert_eq!(texts(&stream.events(5).await), ["PUT a@2"]);
}

#[tokio::test]
async fn a_start_below_the_compaction_is_canceled_with_its_revision() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for value in ["1", "2", "3"] {
        client.put_ok("a", value).await;
    }
    client.compact(3).await.expect("compacted");
    let mut stream = client.watch_stream();
    let id = stream
        .created(WatchCreateRequest {
            start_revision: 2,
            ..watch("a")
        })
        .await;
    let canceled = stream.message().await;
    assert_eq!(
        (canceled.watch_id, canceled.created, canceled.canceled),
        (id, false, true)
    );
    assert_eq!(
        (canceled.compact_revision, canceled.cancel_reason.as_str()),
        (3, ""),
        "the revision is the reason"
    );
    assert!(canceled.events.is_empty());
    assert_eq!(
        revision(&canceled.header),
        0,
        "the header tells no revision"
    );
    // At the compaction revision itself nothing is missing.
    let id = stream
        .created(WatchCreateRequest {
            start_revision: 3,
            ..watch("a")
        })
        .await;
    let found = collect(&mut stream, &[(id, 2)]).await;
    assert_eq!(found[&id], ["PUT a@3", "PUT a@4"]);
}

#[tokio::test]
async fn a_watch_that_was_canceled_below_the_compaction_is_forgotten() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    if server.differs_on_reference(
        "it grants the stream no progress until the client cancels",
    ) {
        return;
    }
    let client = server.client().await;
    for value in ["1", "2", "3"] {
        client.put_ok("a", value).await;
    }
    client.compact(3).await.expect("compacted");
    let mut stream = client.watch_stream();
    let live = stream.created(watch("a")).await;
    stream
        .created(WatchCreateRequest {
            start_revision: 2,
            watch_id: 9,
            ..watch("a")
        })
        .await;
    assert!(stream.message().await.canceled);
    assert_eq!(stream.progress().await, 4);
    // The id stays taken until the client cancels it, as in etcd.
    stream
        .created(WatchCreateRequest {
            watch_id: 8,
            ..watch("a")
        })
        .await;
    client.put_ok("a", "4").await;
    let found = collect(&mut stream, &[(live, 1), (8, 1)]).await;
    assert_eq!(found[&8], ["PUT a@5"]);
}

#[tokio::test]
async fn a_delete_at_the_compaction_revision_is_still_told() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "").await;
    let deleted = client.delete_ok("a").await;
    client.put_ok("b", "").await;
    let request = e2d_api::etcdserverpb::CompactionRequest {
        revision: deleted,
        physical: true,
    };
    client.compact_request(request).await.expect("compacted");
    let mut stream = client.watch_stream();
    let id = stream
        .created(WatchCreateRequest {
            start_revision: deleted,
            ..watch_keys("\0", "\0")
        })
        .await;
    let found = collect(&mut stream, &[(id, 2)]).await;
    assert_eq!(found[&id], ["DELETE a@3", "PUT b@4"]);
}

#[tokio::test]
async fn a_cancel_is_answered_once_and_an_unknown_id_never() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    let id = stream.created(watch("a")).await;
    stream.send_cancel(99);
    stream.send_cancel(id);
    let canceled = stream.message().await;
    assert_eq!(
        (canceled.watch_id, canceled.created, canceled.canceled),
        (id, false, true)
    );
    assert_eq!(
        (canceled.cancel_reason.as_str(), canceled.compact_revision),
        ("", 0)
    );
    stream.send_cancel(id);
    client.put_ok("a", "").await;
    // The stream is still open, and nothing of the canceled watch stands before the next answer.
    let next = stream
        .created(WatchCreateRequest {
            start_revision: 2,
            ..watch("a")
        })
        .await;
    assert_eq!(texts(&stream.events(next).await), ["PUT a@2"]);
}

#[tokio::test]
async fn a_canceled_id_may_be_used_again() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    stream
        .created(WatchCreateRequest {
            watch_id: 5,
            ..watch("a")
        })
        .await;
    stream.send_cancel(5);
    assert!(stream.message().await.canceled);
    assert_eq!(
        stream
            .created(WatchCreateRequest {
                watch_id: 5,
                ..watch("b")
            })
            .await,
        5
    );
    client.put_ok("a", "").await;
    client.put_ok("b", "").await;
    assert_eq!(texts(&stream.events(5).await), ["PUT b@3"]);
}

#[tokio::test]
async fn an_event_carries_the_key_as_written() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.grant_ok(7).await;
    let mut stream = client.watch_stream();
    let id = stream.created(watch("a")).await;
    client
        .put(PutRequest {
            lease: 7,
            ..put("a", "1")
        })
        .await
        .expect("accepted");
    client.put_ok("a", "2").await;
    client.delete_ok("a").await;
    let mut events = Vec::new();
    while events.len() < 3 {
        events.extend(stream.events(id).await);
    }
    let kv = events[0].kv.clone().expect("a key");
    assert_eq!(
        (&kv.key[..], &kv.value[..], kv.lease),
        (&b"a"[..], &b"1"[..], 7)
    );
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 2, 1));
    let kv = events[1].kv.clone().expect("a key");
    assert_eq!(
        (kv.create_revision, kv.mod_revision, kv.version, kv.lease),
        (2, 3, 2, 0)
    );
    // A delete tells the key and when, and nothing else.
    let kv = events[2].kv.clone().expect("a key");
    assert_eq!(events[2].r#type(), EventType::Delete);
    assert_eq!(
        kv,
        e2d_api::mvccpb::KeyValue {
            key: b("a"),
            mod_revision: 4,
            ..Default::default()
        }
    );
    assert!(events.iter().all(|event| event.prev_kv.is_none()));
}

#[tokio::test]
async fn prev_kv_is_told_to_who_asks() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    let id = stream
        .created(WatchCreateRequest {
            prev_kv: true,
            ..watch("a")
        })
        .await;
    client.put_ok("a", "1").await;
    let first = client.get("a").await;
    assert_eq!(
        stream.events(id).await[0].prev_kv,
        None,
        "a create has none"
    );
    client.put_ok("a", "2").await;
    let second = client.get("a").await;
    assert_eq!(stream.events(id).await[0].prev_kv, first);
    client.delete_ok("a").await;
    assert_eq!(stream.events(id).await[0].prev_kv, second);
    // In a catch-up as well.
    let late = stream
        .created(WatchCreateRequest {
            prev_kv: true,
            start_revision: 3,
            ..watch("a")
        })
        .await;
    let events = stream.events(late).await;
    assert_eq!(
        events
            .iter()
            .map(|event| event.prev_kv.clone())
            .collect::<Vec<_>>(),
        [first, second]
    );
}

#[tokio::test]
async fn prev_kv_is_absent_once_it_is_compacted() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "1").await;
    client.put_ok("a", "2").await;
    client.put_ok("a", "3").await;
    client.compact(3).await.expect("compacted");
    let mut stream = client.watch_stream();
    let id = stream
        .created(WatchCreateRequest {
            prev_kv: true,
            start_revision: 3,
            ..watch("a")
        })
        .await;
    let events = stream.events(id).await;
    assert_eq!(texts(&events), ["PUT a@3", "PUT a@4"]);
    assert_eq!(events[0].prev_kv, None);
    assert_eq!(
        events[1].prev_kv.as_ref().expect("not compacted").value,
        "2"
    );
}

#[tokio::test]
async fn filters_drop_events() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    let filtered = |filters: &[FilterType]| WatchCreateRequest {
        filters: filters.iter().map(|&filter| filter.into()).collect(),
        ..watch("a")
    };
    let deletes = stream.created(filtered(&[FilterType::Noput])).await;
    let puts = stream.created(filtered(&[FilterType::Nodelete])).await;
    let nothing = stream
        .created(filtered(&[FilterType::Noput, FilterType::Nodelete]))
        .await;
    let late = stream
        .created(WatchCreateRequest {
            start_revision: 2,
            ..filtered(&[FilterType::Noput])
        })
        .await;
    client.put_ok("a", "").await;
    client.delete_ok("a").await;
    client.put_ok("a", "").await;
    client.delete_ok("a").await;
    let found = collect(
        &mut stream,
        &[(deletes, 2), (puts, 2), (nothing, 0), (late, 2)],
    )
    .await;
    assert_eq!(found[&deletes], ["DELETE a@3", "DELETE a@5"]);
    assert_eq!(found[&puts], ["PUT a@2", "PUT a@4"]);
    assert_eq!(found[&late], ["DELETE a@3", "DELETE a@5"]);
    assert_eq!(stream.progress().await, 5, "nothing else was said");
}

#[tokio::test]
async fn the_header_tells_the_revision_of_the_events() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    let id = stream.created(watch("a")).await;
    for expected in 2..5 {
        client.put_ok("a", "").await;
        client.put_ok("b", "").await;
        let message = stream.message().await;
        assert_eq!(
            (message.watch_id, message.events.len()),
            (id, 1),
            "one revision, one message"
        );
        assert_eq!(revision(&message.header), expected * 2 - 2);
    }
}

#[tokio::test]
async fn the_header_of_a_catch_up_tells_the_current_revision() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for name in ["a", "a", "b", "b"] {
        client.put_ok(name, "").await;
    }
    let mut stream = client.watch_stream();
    stream
        .created(WatchCreateRequest {
            start_revision: 2,
            ..watch("a")
        })
        .await;
    let message = stream.message().await;
    assert_eq!(texts(&message.events), ["PUT a@2", "PUT a@3"]);
    assert_eq!(revision(&message.header), 5);
}

#[tokio::test]
async fn a_catch_up_is_complete_and_never_splits_a_revision() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut expected = Vec::new();
    for number in 0..30 {
        let names: Vec<_> = (0..100).map(|key| format!("{key}")).collect();
        let ops: Vec<_> = names
            .iter()
            .map(|name| put_op(put(name, format!("{number}"))))
            .collect();
        let at = revision(&client.txn(txn(ops)).await.expect("accepted").header);
        expected.extend(names.iter().map(|name| format!("PUT {name}@{at}")));
    }
    let mut stream = client.watch_stream();
    let id = stream
        .created(WatchCreateRequest {
            start_revision: 1,
            ..watch_keys("\0", "\0")
        })
        .await;
    let found = collect(&mut stream, &[(id, expected.len())]).await;
    assert_eq!(found[&id], expected);
}

#[tokio::test]
async fn a_catch_up_meets_new_writes_without_a_gap_or_a_repetition() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for _ in 0..1500 {
        client.put_ok("a", "").await;
    }
    let mut stream = client.watch_stream();
    let mut watches = Vec::new();
    for number in 0..1500 {
        if number % 300 == 0 {
            let start = 2 + number;
            stream.send_create(WatchCreateRequest {
                start_revision: start,
                watch_id: start,
                ..watch("a")
            });
            watches.push((start, (3001 - start + 1) as usize));
        }
        client.put_ok("a", "").await;
    }
    let mut created = 0;
    let mut found: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    while created < watches.len()
        || watches
            .iter()
            .any(|&(id, count)| found.get(&id).map_or(0, Vec::len) < count)
    {
        let message = stream.message().await;
        created += usize::from(message.created);
        let revisions = message
            .events
            .iter()
            .filter_map(|event| event.kv.as_ref())
            .map(|kv| kv.mod_revision);
        found.entry(message.watch_id).or_default().extend(revisions);
    }
    for (id, _) in watches {
        assert_eq!(
            found[&id],
            (id..=3001).collect::<Vec<_>>(),
            "the watch from {id}"
        );
    }
}

#[tokio::test]
async fn a_future_start_is_silent_until_it_is_reached() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    let future = stream
        .created(WatchCreateRequest {
            start_revision: 4,
            ..watch("a")
        })
        .await;
    let now = stream.created(watch("a")).await;
    for _ in 2..=5 {
        client.put_ok("a", "").await;
    }
    let found = collect(&mut stream, &[(future, 2), (now, 4)]).await;
    assert_eq!(found[&future], ["PUT a@4", "PUT a@5"]);
    assert_eq!(found[&now], ["PUT a@2", "PUT a@3", "PUT a@4", "PUT a@5"]);
}

#[tokio::test]
async fn progress_follows_every_event_it_covers() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(stream.created(watch("a")).await);
    }
    for expected in 2..40 {
        client.put_ok("a", "").await;
        stream.send_progress();
        let mut seen = 0;
        loop {
            let message = stream.message().await;
            if message.watch_id == -1 {
                let at = revision(&message.header);
                assert!(
                    at == expected && seen == ids.len(),
                    "progress to {at} after {seen} of {} events",
                    ids.len()
                );
                assert!(message.events.is_empty() && !message.created && !message.canceled);
                break;
            }
            assert_eq!(texts(&message.events), [format!("PUT a@{expected}")]);
            seen += 1;
        }
    }
}

#[tokio::test]
async fn progress_is_withheld_without_watches() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    stream.send_progress();
    let id = stream.created(watch("a")).await;
    assert_eq!(stream.progress().await, 1);
    stream.send_cancel(id);
    assert!(stream.message().await.canceled);
    stream.send_progress();
    stream.created(watch("a")).await;
}

#[tokio::test]
async fn progress_is_withheld_while_a_watch_waits_for_the_future() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    let future = stream
        .created(WatchCreateRequest {
            start_revision: 4,
            ..watch("a")
        })
        .await;
    let now = stream.created(watch("a")).await;
    client.put_ok("a", "").await;
    assert_eq!(texts(&stream.events(now).await), ["PUT a@2"]);
    stream.send_progress();
    client.put_ok("a", "").await;
    assert_eq!(
        texts(&stream.events(now).await),
        ["PUT a@3"],
        "no progress to a revision below the start"
    );
    client.put_ok("a", "").await;
    let found = collect(&mut stream, &[(future, 1), (now, 1)]).await;
    assert_eq!(
        (&found[&future][..], &found[&now][..]),
        (&["PUT a@4".to_owned()][..], &["PUT a@4".to_owned()][..])
    );
    assert_eq!(stream.progress().await, 4);
}

#[tokio::test]
async fn an_idle_watch_that_asked_is_told_progress_periodically() {
    let Some(server) = Server::target(&["--watch-progress-notify-interval=100ms"]).await else {
        return;
    };
    let client = server.client().await;
    let mut stream = client.watch_stream();
    let silent = stream.created(watch("a")).await;
    let asked = stream
        .created(WatchCreateRequest {
            progress_notify: true,
            ..watch("a")
        })
        .await;
    client.put_ok("b", "").await;
    let mut told = Vec::new();
    while told.last() != Some(&2) || told.len() < 3 {
        let message = stream.message().await;
        assert!(
            message.watch_id == asked && asked != silent,
            "expected progress of {asked}, found {message:?}"
        );
        assert!(message.events.is_empty() && !message.created && !message.canceled);
        told.push(revision(&message.header));
    }
    assert!(
        told.is_sorted() && told.iter().all(|&revision| revision == 1 || revision == 2),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_fragmented_revision_is_flagged_and_complete() {
    let Some(server) = Server::target(&["--max-txn-ops=1000"]).await else {
        return;
    };
    let client = server.client().await;
    // The request stays below its limit; with the previous values the answer is twice as large and exceeds its own.
    let value = vec![b'v'; 14_000];
    let ops: Vec<_> = (0..100)
        .map(|number| put_op(put(format!("{number:03}"), &value)))
        .collect();
    client.txn(txn(ops.clone())).await.expect("accepted");
    let mut stream = client.watch_stream();
    let whole = stream
        .created(WatchCreateRequest {
            prev_kv: true,
            ..watch_keys("\0", "\0")
        })
        .await;
    let pieces = stream
        .created(WatchCreateRequest {
            prev_kv: true,
            fragment: true,
            ..watch_keys("\0", "\0")
        })
        .await;
    client.txn(txn(ops)).await.expect("accepted");
    let mut flags = Vec::new();
    let mut events: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
    while [whole, pieces]
        .iter()
        .any(|id| events.get(id).map_or(0, Vec::len) < 100)
    {
        let message = stream.message().await;
        assert_eq!(revision(&message.header), 3);
        if message.watch_id == pieces {
            flags.push(message.fragment);
        } else {
            assert!(
                !message.fragment && message.events.len() == 100,
                "who did not ask gets it in one piece"
            );
        }
        events
            .entry(message.watch_id)
            .or_default()
            .extend(message.events);
    }
    assert_eq!(events[&whole], events[&pieces]);
    let (last, others) = flags.split_last().expect("messages");
    assert!(
        !last && !others.is_empty() && others.iter().all(|&flag| flag),
        "{flags:?}"
    );
}

#[tokio::test]
async fn a_client_may_tell_its_version_and_ask_for_a_leader() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for (name, value) in [("client-api-version", &b"3.6"[..]), ("hasleader", b"true")] {
        let mut stream = client.watch_stream_with_metadata(name, value);
        assert_eq!(stream.created(watch("a")).await, 0, "{name}");
    }
}

#[tokio::test]
async fn a_client_version_must_be_text() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let text = "etcdserver: invalid client api version";
    let mut stream = client.watch_stream_with_metadata("client-api-version", b"\xff\xfe");
    stream.send_create(watch("a"));
    refused(stream.next().await, Code::InvalidArgument, text);
    let unary = client
        .range_with_metadata(key("a"), "client-api-version", b"\xff\xfe")
        .await;
    refused(unary, Code::InvalidArgument, text);
}

#[tokio::test]
async fn a_stop_of_the_server_ends_the_stream_with_unavailable() {
    let Some(mut server) = Server::target(&[]).await else {
        return;
    };
    if server
        .differs_on_reference("it cuts the connection, which each gRPC client reports as it likes")
    {
        return;
    }
    let client = server.client().await;
    let mut stream = client.watch_stream();
    stream.created(watch("a")).await;
    server.terminate().await;
    let end = stream.next().await.expect_err("the stream ends");
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
}

#[tokio::test]
async fn a_slow_reader_gets_everything_and_delays_nobody() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    // 64 MiB of events do not fit into the buffers of a connection whose other end does not read.
    let slow_client = server.client().await;
    let mut slow = slow_client.watch_stream();
    let slow_id = slow.created(watch("a")).await;
    let mut fast = client.watch_stream();
    let fast_id = fast.created(watch("a")).await;
    let value = vec![b'v'; 256 << 10];
    for expected in 2..=257 {
        client.put_ok("a", &value).await;
        assert_eq!(
            texts(&fast.events(fast_id).await),
            [format!("PUT a@{expected}")]
        );
    }
    let found = collect(&mut slow, &[(slow_id, 256)]).await;
    assert_eq!(
        found[&slow_id],
        (2..=257)
            .map(|at| format!("PUT a@{at}"))
            .collect::<Vec<_>>()
    );
}
