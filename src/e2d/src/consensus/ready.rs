//! What raft wants done, in the one order in which it may be done.

use super::node::{Failed, Node};
use crate::apply::Committed;
use e2d_core::ids::{LogIndex, Term};
use raft::eraftpb::{ConfChange, ConfChangeV2, Entry, EntryType, Message};
use raft::{LightReady, Ready};
use prost::Message as _;

impl Node {
    /// Performs one [`Ready`].
    ///
    /// The order is safety itself: entries and hard state are durable before anybody hears of them, except that a
    /// leader may send its entries to others while its own disk works; what is committed is applied after it is
    /// durable here. (raft-rs' own example applies before it persists.)
    pub(super) fn perform(&mut self, mut ready: Ready) -> Result<(), Failed> {
        // 1. A leader's appends go out before its own flush.
        self.send(ready.take_messages());

        // 2. A snapshot would take the place of the log.
        assert!(ready.snapshot().is_empty(), "a log with a single voter receives no snapshot");

        // 3. Entries and hard state: one write, one flush.
        let entries = ready.take_entries();
        let durable_from = self.raft.store().mark().index;
        assert!(entries.first().is_none_or(|first| first.index > durable_from), "an entry below what is durable");
        self.write(&entries, ready.hs())?;
        self.raft.mut_store().append(&entries);

        // 4. What depends on that: votes and acknowledgements.
        self.send(ready.take_persisted_messages());
        self.answer_reads(ready.take_read_states());

        // 5. What was committed before.
        self.hand_to_apply(ready.take_committed_entries())?;

        // 6. Raft learns that its entries are durable, which may commit them.
        let mut light = self.raft.advance_append(ready);
        self.remember_commit(&light)?;
        self.send(light.take_messages());
        self.hand_to_apply(light.take_committed_entries())
    }

    /// The commit index goes with the next batch: it is learned again after a restart.
    fn remember_commit(&mut self, light: &LightReady) -> Result<(), Failed> {
        if light.commit_index().is_some() {
            let hard_state = self.raft.raft.hard_state();
            self.write(&[], Some(&hard_state))?;
        }
        Ok(())
    }

    fn send(&mut self, messages: Vec<Message>) {
        assert!(messages.is_empty(), "a single voter has nobody to send to: {messages:?}");
    }

    fn hand_to_apply(&mut self, entries: Vec<Entry>) -> Result<(), Failed> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut committed = Vec::with_capacity(entries.len());
        for entry in entries {
            assert_eq!(entry.index, self.handed.0 + 1, "committed entries have a hole");
            self.handed = LogIndex(entry.index);
            let conf_state = match entry.entry_type() {
                EntryType::EntryNormal => None,
                EntryType::EntryConfChange => {
                    let change = ConfChange::decode(&entry.data[..]).map_err(|error| Failed::log(entry.index, error))?;
                    Some(self.change_configuration(&change)?)
                }
                EntryType::EntryConfChangeV2 => {
                    let change = ConfChangeV2::decode(&entry.data[..]).map_err(|error| Failed::log(entry.index, error))?;
                    Some(self.change_configuration(&change)?)
                }
            };
            let is_command = conf_state.is_none() && !entry.data.is_empty();
            committed.push(Committed {
                index: LogIndex(entry.index),
                term: Term(entry.term),
                command: is_command.then_some(entry.data),
                conf_state: conf_state.map(|conf_state| conf_state.encode_to_vec().into()),
            });
        }
        self.apply.push(committed);
        Ok(())
    }
}
