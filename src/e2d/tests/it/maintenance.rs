//! Status, alarms, hashes, defragmentation, snapshots, the member list and the health service.

use std::time::{Duration, Instant};

use e2d_api::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DefragmentRequest, DowngradeRequest,
    HashRequest, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, MoveLeaderRequest, PutRequest,
};
use e2d_api::health::HealthCheckRequest;
use e2d_api::health::health_check_response::ServingStatus;
use tonic::Code;

use crate::client::*;
use crate::server::Server;

const CORRUPT: &str = "etcdserver: corrupt cluster";
/// 13 pages: what a store with a few keys fits into, and a hundred old values of 4 KiB do not.
const SMALL_QUOTA: &str = "--quota-backend-bytes=53248";

/// Overwrites one key until the quota refuses, and checks how it does. A server that counts what it has flushed, as etcd
/// does, refuses only after a moment, so this takes as many puts as fit into that moment.
async fn fill(client: &Client) {
    let value = [b'v'; 4096];
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        let answer = client.put(put("filler", value)).await;
        if answer.is_err() {
            return refused(answer, Code::ResourceExhausted, NO_SPACE);
        }
    }
    panic!("puts of 4 KiB went into a quota of 52 KiB for 10 s");
}

async fn alarms(client: &Client) -> Vec<AlarmMember> {
    client
        .alarm(AlarmAction::Get, AlarmType::None, 0)
        .await
        .expect("listed")
        .alarms
}

#[tokio::test]
async fn status_describes_a_single_node() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "").await;
    let status = client.status().await;
    let header = status.header.expect("a header");
    assert_eq!(
        (status.leader, status.raft_term, header.revision),
        (header.member_id, header.raft_term, 2)
    );
    assert!(
        status.raft_index > 0
            && status.raft_applied_index > 0
            && status.raft_applied_index <= status.raft_index
    );
    assert!(
        status.db_size > 0 && status.db_size_in_use > 0 && status.db_size_in_use <= status.db_size,
        "{status:?}"
    );
    assert_eq!(
        (status.errors.len(), status.is_learner, status.db_size_quota),
        (0, false, 2 << 30)
    );
    assert_eq!(status.storage_version, "3.6.0");
    // Kubernetes parses it as a semantic version and wants 3.6 of it.
    let numbers: Vec<u32> = status
        .version
        .split('.')
        .map(|part| part.parse().expect("a plain number"))
        .collect();
    assert!(
        numbers.len() == 3 && (numbers[0], numbers[1]) == (3, 6),
        "{}",
        status.version
    );
    let before = status.raft_applied_index;
    client.put_ok("a", "").await;
    assert!(client.status().await.raft_applied_index > before);
}

#[tokio::test]
async fn status_tells_the_quota() {
    let Some(server) = Server::target(&["--quota-backend-bytes=123456789"]).await else {
        return;
    };
    assert_eq!(
        server.client().await.status().await.db_size_quota,
        123_456_789
    );
}

#[tokio::test]
async fn a_full_store_refuses_what_grows_it_and_accepts_the_rest() {
    let Some(server) = Server::target(&[SMALL_QUOTA]).await else {
        return;
    };
    let client = server.client().await;
    client.grant_ok(7).await;
    client.put_ok("small", "").await;
    fill(&client).await;
    let full = client.revision().await;
    let refuses = (Code::ResourceExhausted, NO_SPACE);
    refused(client.put(put("small", "")).await, refuses.0, refuses.1);
    refused(client.grant(8, 600).await, refuses.0, refuses.1);
    refused(
        client.txn(txn_if([], [put_op(put("small", ""))], [])).await,
        refuses.0,
        refuses.1,
    );
    // Also when the branch with the put does not run.
    refused(
        client.txn(txn_if([], [], [put_op(put("small", ""))])).await,
        refuses.0,
        refuses.1,
    );
    assert_eq!(client.revision().await, full);

    client.range(all_keys()).await.expect("reads are accepted");
    client
        .txn(txn([range_op(key("small"))]))
        .await
        .expect("reads are accepted");
    client
        .txn(txn([delete_op(delete("no such key"))]))
        .await
        .expect("deletes are accepted");
    client
        .delete(delete("small"))
        .await
        .expect("deletes are accepted");
    client.keep_alive(7).await.expect("leases are renewed");
    client.revoke(7).await.expect("leases are revoked");
    client
        .compact(full)
        .await
        .expect("compactions are accepted");
}

#[tokio::test]
async fn the_space_alarm_is_listed_and_stays_until_it_is_disarmed() {
    let Some(mut server) = Server::target(&[SMALL_QUOTA]).await else {
        return;
    };
    let client = server.client().await;
    assert_eq!(alarms(&client).await, []);
    fill(&client).await;
    let status = client.status().await;
    let member_id = status.header.expect("a header").member_id;
    let raised = AlarmMember {
        member_id,
        alarm: AlarmType::Nospace.into(),
    };
    assert_eq!(alarms(&client).await, [raised]);
    assert_eq!(
        status.errors,
        [format!("memberID:{member_id} alarm:NOSPACE ")]
    );
    server.kill();
    server.restart().await;
    let client = server.client().await;
    assert_eq!(alarms(&client).await, [raised], "after a restart");
    refused(
        client.put(put("small", "")).await,
        Code::ResourceExhausted,
        NO_SPACE,
    );

    let now = client.revision().await;
    client
        .compact_request(CompactionRequest {
            revision: now,
            physical: true,
        })
        .await
        .expect("compacted");
    client
        .defragment(DefragmentRequest {})
        .await
        .expect("defragmented");
    let disarmed = client
        .alarm(AlarmAction::Deactivate, AlarmType::Nospace, member_id)
        .await
        .expect("disarmed");
    assert_eq!(disarmed.alarms, [raised]);
    assert_eq!(alarms(&client).await, []);
    assert!(client.status().await.errors.is_empty());
    client.put_ok("small", "").await;
}

#[tokio::test]
async fn a_corrupt_alarm_refuses_every_write() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "").await;
    let member_id = client.status().await.header.expect("a header").member_id;
    let raised = AlarmMember {
        member_id,
        alarm: AlarmType::Corrupt.into(),
    };
    let answer = client
        .alarm(AlarmAction::Activate, AlarmType::Corrupt, member_id)
        .await
        .expect("raised");
    assert_eq!(answer.alarms, [raised]);
    refused(client.put(put("a", "")).await, Code::DataLoss, CORRUPT);
    refused(client.delete(delete("a")).await, Code::DataLoss, CORRUPT);
    refused(
        client.txn(txn([put_op(put("a", ""))])).await,
        Code::DataLoss,
        CORRUPT,
    );
    refused(client.grant(7, 600).await, Code::DataLoss, CORRUPT);
    assert!(client.get("a").await.is_some(), "ranges are answered");
    let answer = client
        .alarm(AlarmAction::Deactivate, AlarmType::Corrupt, member_id)
        .await
        .expect("disarmed");
    assert_eq!(answer.alarms, [raised]);
    client.put_ok("a", "").await;
}

#[tokio::test]
async fn alarm_requests_without_effect_succeed() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let raised = client
        .alarm(AlarmAction::Activate, AlarmType::None, 0)
        .await
        .expect("no error");
    assert_eq!(raised.alarms, []);
    let disarmed = client
        .alarm(AlarmAction::Deactivate, AlarmType::Nospace, 1)
        .await
        .expect("no error");
    assert_eq!(disarmed.alarms, []);
    // Member 0 is nobody, not everybody.
    let member_id = client.status().await.header.expect("a header").member_id;
    client
        .alarm(AlarmAction::Activate, AlarmType::Nospace, member_id)
        .await
        .expect("raised");
    let disarmed = client
        .alarm(AlarmAction::Deactivate, AlarmType::Nospace, 0)
        .await
        .expect("no error");
    assert_eq!((disarmed.alarms.len(), alarms(&client).await.len()), (0, 1));
}

#[tokio::test]
async fn alarms_are_listed_by_kind() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for (member_id, alarm) in [(5, AlarmType::Nospace), (6, AlarmType::Corrupt)] {
        client
            .alarm(AlarmAction::Activate, alarm, member_id)
            .await
            .expect("raised");
    }
    let list = |alarm: AlarmType| {
        let request = AlarmRequest {
            action: AlarmAction::Get.into(),
            member_id: 0,
            alarm: alarm.into(),
        };
        let client = &client;
        async move {
            let mut members: Vec<_> = client
                .alarm_request(request)
                .await
                .expect("listed")
                .alarms
                .iter()
                .map(|alarm| alarm.member_id)
                .collect();
            members.sort_unstable();
            members
        }
    };
    assert_eq!(list(AlarmType::None).await, [5, 6]);
    assert_eq!(list(AlarmType::Nospace).await, [5]);
    assert_eq!(list(AlarmType::Corrupt).await, [6]);
}

#[tokio::test]
async fn hash_kv_is_a_function_of_the_history() {
    let Some(one) = Server::target(&[]).await else {
        return;
    };
    let Some(two) = Server::target(&[]).await else {
        return;
    };
    let (one, two) = (one.client().await, two.client().await);
    for client in [&one, &two] {
        client.grant_ok(7).await;
        for number in 0..20 {
            client
                .put(PutRequest {
                    lease: 7,
                    ..put(format!("{}", number % 5), format!("{number}"))
                })
                .await
                .expect("accepted");
        }
        client.delete_ok("3").await; // 22
    }
    // The second takes another way to the same history: it is compacted later, and written further.
    one.compact_request(CompactionRequest {
        revision: 10,
        physical: true,
    })
    .await
    .expect("compacted");
    two.compact_request(CompactionRequest {
        revision: 5,
        physical: true,
    })
    .await
    .expect("compacted");
    two.put_ok("later", "").await;
    two.compact_request(CompactionRequest {
        revision: 10,
        physical: true,
    })
    .await
    .expect("compacted");
    for at in [11, 15, 22] {
        let (a, b) = (
            one.hash_kv(at).await.expect("hashed"),
            two.hash_kv(at).await.expect("hashed"),
        );
        assert_eq!(
            (a.hash, a.compact_revision, a.hash_revision),
            (b.hash, b.compact_revision, b.hash_revision),
            "at {at}"
        );
        assert_eq!((a.compact_revision, a.hash_revision), (10, at));
    }
    let hashes: Vec<u32> = [one.hash_kv(15).await, one.hash_kv(22).await]
        .map(|answer| answer.expect("hashed").hash)
        .into();
    assert_ne!(hashes[0], hashes[1]);
    assert_eq!(
        one.hash_kv(0).await.expect("hashed").hash,
        hashes[1],
        "0 means the current revision"
    );
    assert_ne!(two.hash_kv(0).await.expect("hashed").hash, hashes[1]);
}

#[tokio::test]
async fn hash_kv_refuses_revisions_as_a_range_does() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for value in ["1", "2", "3"] {
        client.put_ok("a", value).await;
    }
    let never = client.hash_kv(0).await.expect("hashed");
    assert_eq!(
        (
            never.compact_revision,
            never.hash_revision,
            revision(&never.header)
        ),
        (-1, 4, 4)
    );
    client.compact(3).await.expect("compacted");
    refused(client.hash_kv(2).await, Code::OutOfRange, COMPACTED);
    refused(client.hash_kv(5).await, Code::OutOfRange, FUTURE_REVISION);
    assert_eq!(client.hash_kv(4).await.expect("hashed").compact_revision, 3);
    client
        .hash_kv(3)
        .await
        .expect("the compaction revision can be hashed");
}

#[tokio::test]
async fn hash_is_repeatable() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "").await;
    let one = client.hash(HashRequest {}).await.expect("hashed");
    let two = client.hash(HashRequest {}).await.expect("hashed");
    assert_eq!((one.hash, revision(&one.header)), (two.hash, 2));
}

#[tokio::test]
async fn defragment_keeps_everything_and_answers_without_a_header() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    for number in 0..100 {
        client.put_ok(format!("{}", number % 10), "v").await;
    }
    let before = client.range(all_keys()).await.expect("answered");
    let hash = client.hash_kv(0).await.expect("hashed").hash;
    assert_eq!(
        client
            .defragment(DefragmentRequest {})
            .await
            .expect("defragmented")
            .header,
        None
    );
    assert_eq!(
        client.range(all_keys()).await.expect("answered").kvs,
        before.kvs
    );
    assert_eq!(client.hash_kv(0).await.expect("hashed").hash, hash);
    assert_eq!(client.put_ok("after", "").await, 102);
}

#[tokio::test]
async fn a_snapshot_counts_down_and_ends_with_its_checksum() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let value = vec![b'v'; 10_000];
    for number in 0..20 {
        client.put_ok(format!("{number}"), &value).await;
    }
    let messages = client.snapshot().await.expect("a snapshot");
    let (checksum, pieces) = messages.split_last().expect("messages");
    assert_eq!((checksum.blob.len(), checksum.remaining_bytes), (32, 0));
    let total: usize = pieces.iter().map(|piece| piece.blob.len()).sum();
    // What a restore takes as the sign that a checksum follows the image.
    assert!(
        total > 200_000 && total.is_multiple_of(512),
        "{total} bytes"
    );
    let mut left = total as u64;
    for piece in pieces {
        left -= piece.blob.len() as u64;
        assert!(piece.remaining_bytes == left && piece.blob.len() <= 32 << 10);
    }
    assert!(messages.iter().all(|message| message.header.is_none()));
    assert!(
        pieces.iter().all(|piece| piece.version == "3.6.0"),
        "{:?}",
        pieces[0].version
    );
}

#[tokio::test]
async fn the_member_list_of_a_single_node() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    client.put_ok("a", "").await;
    let header = client.status().await.header.expect("a header");
    for linearizable in [true, false] {
        let answer = client
            .members(MemberListRequest { linearizable })
            .await
            .expect("listed");
        let [member] = &answer.members[..] else {
            panic!("{answer:?}")
        };
        assert_eq!(
            (member.id, member.name.as_str(), member.is_learner),
            (header.member_id, "it", false)
        );
        assert_eq!(member.client_ur_ls, [server.url()]);
        assert!(
            member.peer_ur_ls.len() == 1 && member.peer_ur_ls[0].starts_with("http://127.0.0.1:")
        );
        // The revision of the store is none of the cluster's business.
        let answered = answer.header.expect("a header");
        assert_eq!(
            answered,
            e2d_api::etcdserverpb::ResponseHeader {
                revision: 0,
                ..header
            }
        );
    }
}

#[tokio::test]
async fn member_changes_of_a_single_node_that_cannot_be() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let own = client
        .members(MemberListRequest { linearizable: true })
        .await
        .expect("listed")
        .members
        .remove(0);
    let add = |urls: &[&str]| MemberAddRequest {
        peer_ur_ls: urls.iter().map(|&url| url.to_owned()).collect(),
        is_learner: false,
    };
    let bad_urls = "etcdserver: given member URLs are invalid";
    for urls in [
        &[][..],
        &["nonsense"],
        &["http://127.0.0.1"],
        &["http://127.0.0.1:1/path"],
    ] {
        refused(
            client.member_add(add(urls)).await,
            Code::InvalidArgument,
            bad_urls,
        );
    }
    let exists = "etcdserver: Peer URLs already exists";
    refused(
        client.member_add(add(&[own.peer_ur_ls[0].as_str()])).await,
        Code::FailedPrecondition,
        exists,
    );
    let not_found = "etcdserver: member not found";
    refused(
        client.member_remove(MemberRemoveRequest { id: 99 }).await,
        Code::NotFound,
        not_found,
    );
    let update = MemberUpdateRequest {
        id: 99,
        peer_ur_ls: vec!["http://127.0.0.1:1".into()],
    };
    refused(
        client.member_update(update).await,
        Code::NotFound,
        not_found,
    );
    refused(
        client.member_promote(MemberPromoteRequest { id: 99 }).await,
        Code::NotFound,
        not_found,
    );
    let voter = "etcdserver: can only promote a learner member";
    refused(
        client
            .member_promote(MemberPromoteRequest { id: own.id })
            .await,
        Code::FailedPrecondition,
        voter,
    );
    let bad = "etcdserver: bad leader transferee";
    refused(
        client
            .move_leader(MoveLeaderRequest { target_id: 99 })
            .await,
        Code::FailedPrecondition,
        bad,
    );
    let answer = client
        .move_leader(MoveLeaderRequest { target_id: own.id })
        .await
        .expect("to itself is no change");
    assert_eq!(answer.header, None);
}

#[tokio::test]
async fn downgrade_checks_its_target() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let ask = |action, version: &str| {
        client.downgrade(DowngradeRequest {
            action,
            version: version.to_owned(),
        })
    };
    let format = "etcdserver: wrong downgrade target version format";
    let target = "etcdserver: invalid downgrade target version";
    refused(ask(0, "three").await, Code::InvalidArgument, format);
    refused(ask(0, "3.2.0").await, Code::InvalidArgument, target);
    refused(
        ask(9, "3.5.0").await,
        Code::Unknown,
        "etcdserver: unknown method",
    );
    ask(2, "").await.expect("nothing to cancel is no error");
}

#[tokio::test]
async fn the_health_service_knows_only_the_whole_server() {
    let Some(server) = Server::target(&[]).await else {
        return;
    };
    let client = server.client().await;
    let check = |service: &str| {
        client.health_check(HealthCheckRequest {
            service: service.to_owned(),
        })
    };
    assert_eq!(
        check("").await.expect("known").status(),
        ServingStatus::Serving
    );
    refused(
        check("etcdserverpb.KV").await,
        Code::NotFound,
        "unknown service",
    );
    assert_eq!(
        client.health_watch("").await.expect("known").status(),
        ServingStatus::Serving
    );
    assert_eq!(
        client
            .health_watch("other")
            .await
            .expect("streams")
            .status(),
        ServingStatus::ServiceUnknown
    );
}
