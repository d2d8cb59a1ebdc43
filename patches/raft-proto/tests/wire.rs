//! The bytes on the wire, written by hand from `eraftpb.proto`: `tag << 3 | type`, then the value.

use bytes::Bytes;
use prost::Message as _;
use raft_proto::eraftpb::*;

/// The message has these bytes, and these bytes are the message.
#[track_caller]
fn is_on_the_wire<M: prost::Message + Default + PartialEq + std::fmt::Debug>(
    message: &M,
    bytes: &[u8],
) {
    assert_eq!(message.encode_to_vec(), bytes);
    assert_eq!(message.encoded_len(), bytes.len());
    assert_eq!(&M::decode(bytes).unwrap(), message);
    assert_eq!(&M::decode(Bytes::copy_from_slice(bytes)).unwrap(), message);
}

fn entry() -> Entry {
    Entry {
        entry_type: EntryType::EntryConfChangeV2 as i32,
        term: 3,
        index: 300,
        data: Bytes::from_static(b"ab"),
        context: Bytes::from_static(b"c"),
        sync_log: true,
    }
}

// prost sorts fields by tag, whatever the order of declaration.
const ENTRY: &[u8] = b"\x08\x02\x10\x03\x18\xac\x02\x22\x02ab\x28\x01\x32\x01c";

fn conf_state() -> ConfState {
    ConfState {
        voters: vec![1, 300],
        learners: vec![2],
        voters_outgoing: vec![3],
        learners_next: vec![4],
        auto_leave: true,
    }
}

// Repeated numbers are packed.
const CONF_STATE: &[u8] = b"\x0a\x03\x01\xac\x02\x12\x01\x02\x1a\x01\x03\x22\x01\x04\x28\x01";

fn snapshot() -> Snapshot {
    Snapshot {
        data: Bytes::from_static(b"x"),
        metadata: Some(SnapshotMetadata {
            conf_state: Some(conf_state()),
            index: 7,
            term: 2,
        }),
    }
}

fn snapshot_bytes() -> Vec<u8> {
    let metadata = [&[0x0a, 16], CONF_STATE, &[0x10, 7, 0x18, 2]].concat();
    [b"\x0a\x01x\x12\x16", &metadata[..]].concat()
}

#[test]
fn empty_messages_are_no_bytes() {
    is_on_the_wire(&Entry::default(), b"");
    is_on_the_wire(&SnapshotMetadata::default(), b"");
    is_on_the_wire(&Snapshot::default(), b"");
    is_on_the_wire(&Message::default(), b"");
    is_on_the_wire(&HardState::default(), b"");
    is_on_the_wire(&ConfState::default(), b"");
    is_on_the_wire(&ConfChange::default(), b"");
    is_on_the_wire(&ConfChangeSingle::default(), b"");
    is_on_the_wire(&ConfChangeV2::default(), b"");
}

#[test]
fn an_entry() {
    is_on_the_wire(&entry(), ENTRY);
}

#[test]
fn a_hard_state() {
    let hard_state = HardState {
        term: 1,
        vote: 2,
        commit: 128,
    };
    is_on_the_wire(&hard_state, b"\x08\x01\x10\x02\x18\x80\x01");
}

#[test]
fn a_conf_state() {
    is_on_the_wire(&conf_state(), CONF_STATE);
    // A writer that does not pack is understood.
    let unpacked = ConfState::decode(&b"\x08\x01\x08\xac\x02"[..]).unwrap();
    assert_eq!(unpacked.voters, [1, 300]);
}

#[test]
fn a_snapshot() {
    is_on_the_wire(&snapshot(), &snapshot_bytes());
}

#[test]
fn conf_changes() {
    let v1 = ConfChange {
        change_type: ConfChangeType::RemoveNode as i32,
        node_id: 5,
        context: Bytes::from_static(b"z"),
        id: 9,
    };
    is_on_the_wire(&v1, b"\x08\x09\x10\x01\x18\x05\x22\x01z");
    let v2 = ConfChangeV2 {
        transition: ConfChangeTransition::Explicit as i32,
        changes: vec![
            ConfChangeSingle {
                change_type: ConfChangeType::AddLearnerNode as i32,
                node_id: 4,
            },
            ConfChangeSingle {
                change_type: ConfChangeType::AddNode as i32,
                node_id: 1,
            },
        ],
        context: Bytes::from_static(b"y"),
    };
    is_on_the_wire(
        &v2,
        b"\x08\x02\x12\x04\x08\x02\x10\x04\x12\x02\x10\x01\x1a\x01y",
    );
}

#[test]
fn a_message_with_every_field() {
    let message = Message {
        msg_type: MessageType::MsgRequestPreVoteResponse as i32,
        to: 1,
        from: 2,
        term: 3,
        log_term: 4,
        index: 5,
        entries: vec![entry(), Entry::default()],
        commit: 6,
        commit_term: 7,
        snapshot: Some(snapshot()),
        request_snapshot: 8,
        reject: true,
        reject_hint: 9,
        context: Bytes::from_static(b"q"),
        deprecated_priority: 10,
        priority: -1,
    };
    let snapshot = snapshot_bytes();
    let bytes = [
        b"\x08\x12\x10\x01\x18\x02\x20\x03\x28\x04\x30\x05\x3a\x10",
        ENTRY,
        b"\x3a\x00\x40\x06\x4a",
        &[snapshot.len() as u8],
        &snapshot,
        b"\x50\x01\x58\x09\x62\x01q\x68\x08\x70\x0a\x78\x07",
        b"\x80\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ]
    .concat();
    is_on_the_wire(&message, &bytes);
}

#[test]
fn every_message_type_has_its_number() {
    let names = [
        "MsgHup",
        "MsgBeat",
        "MsgPropose",
        "MsgAppend",
        "MsgAppendResponse",
        "MsgRequestVote",
        "MsgRequestVoteResponse",
        "MsgSnapshot",
        "MsgHeartbeat",
        "MsgHeartbeatResponse",
        "MsgUnreachable",
        "MsgSnapStatus",
        "MsgCheckQuorum",
        "MsgTransferLeader",
        "MsgTimeoutNow",
        "MsgReadIndex",
        "MsgReadIndexResp",
        "MsgRequestPreVote",
        "MsgRequestPreVoteResponse",
    ];
    for (number, name) in names.iter().enumerate() {
        let message = Message::decode(&[8, number as u8][..]).unwrap();
        assert_eq!(format!("{:?}", message.get_msg_type()), *name);
        assert_eq!(message.unknown_enum(), None);
    }
    assert!(!MessageType::is_valid(names.len() as i32));
}

#[test]
fn an_unknown_number_is_the_default_and_can_be_asked_for() {
    let message = Message::decode(&b"\x08\x63"[..]).unwrap();
    assert_eq!(message.get_msg_type(), MessageType::MsgHup);
    assert_eq!(message.unknown_enum(), Some(("msg_type", 99)));
    // It stays what it was for whoever reads it next.
    assert_eq!(message.encode_to_vec(), b"\x08\x63");

    let message = Message::decode(&b"\x08\x03\x3a\x00\x3a\x02\x08\x63"[..]).unwrap();
    assert_eq!(message.entries[1].get_entry_type(), EntryType::EntryNormal);
    assert_eq!(message.unknown_enum(), Some(("entry_type", 99)));

    let change = ConfChangeV2::decode(&b"\x08\x63\x12\x02\x08\x63"[..]).unwrap();
    assert_eq!(change.get_transition(), ConfChangeTransition::Auto);
    assert_eq!(change.changes[0].get_change_type(), ConfChangeType::AddNode);
    let change = ConfChange::decode(&b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"[..]).unwrap();
    assert_eq!(change.get_change_type(), ConfChangeType::AddNode);
}

#[test]
fn a_node_refuses_an_unknown_message_type_and_lives() {
    let storage = raft::storage::MemStorage::new_with_conf_state((vec![1, 2], vec![]));
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let mut node = raft::RawNode::new(&raft::Config::new(1), storage, &logger).unwrap();
    let message = Message::decode(&b"\x08\x63\x10\x01\x18\x02"[..]).unwrap();
    assert_eq!(node.step(message), Err(raft::Error::StepLocalMsg));
}

#[test]
fn decoded_data_shares_the_buffer_it_came_in() {
    let bytes = Bytes::from(entry().encode_to_vec());
    let entry = Entry::decode(bytes.clone()).unwrap();
    assert!(bytes.as_ptr_range().contains(&entry.data.as_ptr()));
}

#[test]
fn the_names_of_rust_protobuf_measure_encode_and_merge() {
    use protobuf::Message as _;
    let entry = entry();
    assert_eq!(entry.compute_size() as usize, ENTRY.len());
    assert_eq!(protobuf::Message::write_to_bytes(&entry).unwrap(), ENTRY);
    let mut conf_state = conf_state();
    conf_state
        .merge_from_bytes(b"\x0a\x01\x05\x28\x00")
        .unwrap();
    assert_eq!(conf_state.voters, [1, 300, 5]);
    assert!(!conf_state.auto_leave);
    let error = conf_state.merge_from_bytes(b"\x0a\x05\x05").unwrap_err();
    assert!(!error.to_string().is_empty());
}

#[test]
fn an_absent_message_reads_as_an_empty_one() {
    let mut message = Message::default();
    assert!(!message.has_snapshot());
    assert!(message.get_snapshot().is_empty());
    assert!(message
        .get_snapshot()
        .get_metadata()
        .get_conf_state()
        .voters
        .is_empty());
    message.mut_snapshot().mut_metadata().set_index(1);
    assert!(message.has_snapshot());
    assert!(!message.take_snapshot().is_empty());
    assert!(!message.has_snapshot());
}
