//! raft 0.7.0 works on these messages: three nodes whose every message, entry and hard state goes through its bytes.

use prost::Message as _;
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};
use raft_proto::prelude::*;

struct Node {
    raft: RawNode<MemStorage>,
    applied: Vec<Entry>,
}

impl Node {
    fn new(id: u64) -> Node {
        let config = Config {
            id,
            pre_vote: true,
            check_quorum: true,
            // No two nodes campaign at the same tick.
            min_election_tick: 20 + id as usize,
            max_election_tick: 21 + id as usize,
            ..Config::new(id)
        };
        let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        Node {
            raft: RawNode::new(&config, storage, &logger).unwrap(),
            applied: Vec::new(),
        }
    }

    /// Performs one ready, if there is one, and gives back the messages as bytes.
    fn turn(&mut self) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        if !self.raft.has_ready() {
            return out;
        }
        let mut ready = self.raft.ready();
        let mut send = |messages: Vec<Message>| {
            out.extend(messages.iter().map(|m| (m.to, m.encode_to_vec())));
        };
        send(ready.take_messages());
        let storage = self.raft.raft.raft_log.store.clone();
        if let Some(hard_state) = ready.hs() {
            let bytes = hard_state.encode_to_vec();
            storage
                .wl()
                .set_hardstate(HardState::decode(&bytes[..]).unwrap());
        }
        let entries: Vec<Entry> = ready.entries().iter().map(through_bytes).collect();
        storage.wl().append(&entries).unwrap();
        send(ready.take_persisted_messages());
        self.applied.extend(ready.take_committed_entries());
        let mut light = self.raft.advance(ready);
        send(light.take_messages());
        self.applied.extend(light.take_committed_entries());
        self.raft.advance_apply();
        out
    }
}

fn through_bytes(entry: &Entry) -> Entry {
    Entry::decode(&entry.encode_to_vec()[..]).unwrap()
}

/// Delivers until nobody has anything to say.
fn settle(nodes: &mut [Node]) {
    loop {
        let sent: Vec<_> = nodes.iter_mut().flat_map(Node::turn).collect();
        if sent.is_empty() && !nodes.iter().any(|n| n.raft.has_ready()) {
            return;
        }
        for (to, bytes) in sent {
            let message = Message::decode(&bytes[..]).unwrap();
            assert_eq!(message.unknown_enum(), None);
            nodes[to as usize - 1].raft.step(message).unwrap();
        }
    }
}

#[test]
fn three_nodes_elect_a_leader_and_commit_a_thousand_entries() {
    let mut nodes: Vec<Node> = (1..=3).map(Node::new).collect();
    let mut leader = None;
    for _ in 0..100 {
        for node in &mut nodes {
            node.raft.tick();
        }
        settle(&mut nodes);
        leader = nodes
            .iter()
            .position(|n| n.raft.raft.state == StateRole::Leader);
        if leader.is_some() {
            break;
        }
    }
    let leader = leader.expect("nobody leads after 100 ticks");

    for i in 0..1000u32 {
        // Proposals at a follower are forwarded: both ways go over the wire.
        let at = if i % 2 == 0 { leader } else { (leader + 1) % 3 };
        nodes[at]
            .raft
            .propose(format!("context {i}").into(), format!("data {i}").into())
            .unwrap();
        settle(&mut nodes);
    }

    for node in &nodes {
        let applied: Vec<&Entry> = node.applied.iter().filter(|e| !e.data.is_empty()).collect();
        assert_eq!(applied.len(), 1000);
        for (i, entry) in applied.iter().enumerate() {
            assert_eq!(entry.get_data(), format!("data {i}").as_bytes());
            assert_eq!(entry.get_context(), format!("context {i}").as_bytes());
            let mut of_leader = nodes[leader].applied.iter();
            assert_eq!(Some(*entry), of_leader.find(|e| e.index == entry.index));
        }
    }
}

#[test]
fn a_joint_change_goes_through_the_log() {
    let mut nodes: Vec<Node> = (1..=3).map(Node::new).collect();
    nodes[0].raft.campaign().unwrap();
    settle(&mut nodes);
    assert_eq!(nodes[0].raft.raft.state, StateRole::Leader);

    let mut change = ConfChangeV2::default();
    change.set_transition(ConfChangeTransition::Explicit);
    change.set_changes(raft_proto::parse_conf_change("l3 l4").unwrap());
    nodes[0]
        .raft
        .propose_conf_change(vec![], change.clone())
        .unwrap();
    settle(&mut nodes[..]);
    for node in &mut nodes {
        let entry = node
            .applied
            .iter()
            .find(|e| e.get_entry_type() == EntryType::EntryConfChangeV2)
            .unwrap();
        let committed = ConfChangeV2::decode(entry.get_data()).unwrap();
        assert_eq!(committed, change);
        let now = node.raft.apply_conf_change(&committed).unwrap();
        let expected = ConfState {
            voters: vec![1, 2],
            learners: vec![4],
            voters_outgoing: vec![1, 2, 3],
            learners_next: vec![3],
            auto_leave: false,
        };
        assert!(raft_proto::conf_state_eq(&now, &expected), "{now:?}");
    }
}
