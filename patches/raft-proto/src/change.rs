//! Configuration changes: the old one-at-a-time form and the joint form, seen as one.

use std::borrow::Cow;

use crate::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2,
};

/// A change of one member.
pub fn new_conf_change_single(node_id: u64, ty: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle {
        change_type: ty as i32,
        node_id,
    }
}

/// Reads changes as raft-rs' tests write them: `v1 l2 r3` makes 1 a voter, 2 a learner, and removes 3.
///
/// # Errors
/// The word that is no such change.
pub fn parse_conf_change(s: &str) -> Result<Vec<ConfChangeSingle>, String> {
    s.split_ascii_whitespace().map(parse_one).collect()
}

fn parse_one(word: &str) -> Result<ConfChangeSingle, String> {
    let (ty, id) = if let Some(id) = word.strip_prefix('v') {
        (ConfChangeType::AddNode, id)
    } else if let Some(id) = word.strip_prefix('l') {
        (ConfChangeType::AddLearnerNode, id)
    } else if let Some(id) = word.strip_prefix('r') {
        (ConfChangeType::RemoveNode, id)
    } else {
        return Err(format!("unknown token {word}"));
    };
    match id.parse() {
        Ok(id) => Ok(new_conf_change_single(id, ty)),
        Err(e) => Err(format!("parse token {word} fail: {e}")),
    }
}

/// Writes changes so that [`parse_conf_change`] reads them back.
pub fn stringify_conf_change(changes: &[ConfChangeSingle]) -> String {
    let words: Vec<String> = changes
        .iter()
        .map(|c| {
            let letter = match c.change_type() {
                ConfChangeType::AddNode => 'v',
                ConfChangeType::AddLearnerNode => 'l',
                ConfChangeType::RemoveNode => 'r',
            };
            format!("{letter}{}", c.node_id)
        })
        .collect();
    words.join(" ")
}

/// A configuration change of either form.
pub trait ConfChangeI {
    /// The change in the joint form.
    fn into_v2(self) -> ConfChangeV2;

    /// The change in the joint form, borrowed where it is one.
    fn as_v2(&self) -> Cow<'_, ConfChangeV2>;

    /// The change in the old form, if it was made in it. A [`ConfChangeV2`] never is.
    fn as_v1(&self) -> Option<&ConfChange>;
}

impl ConfChangeI for ConfChange {
    fn into_v2(self) -> ConfChangeV2 {
        ConfChangeV2 {
            transition: ConfChangeTransition::Auto as i32,
            changes: vec![new_conf_change_single(self.node_id, self.change_type())],
            context: self.context,
        }
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Owned(self.clone().into_v2())
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        Some(self)
    }
}

impl ConfChangeI for ConfChangeV2 {
    fn into_v2(self) -> ConfChangeV2 {
        self
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Borrowed(self)
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        None
    }
}

impl ConfChangeV2 {
    /// `Some` if the change goes through a joint configuration: more than one member changes, or the transition asks
    /// for it. The value says whether raft leaves the joint configuration by itself.
    pub fn enter_joint(&self) -> Option<bool> {
        match self.transition() {
            ConfChangeTransition::Auto if self.changes.len() <= 1 => None,
            ConfChangeTransition::Auto | ConfChangeTransition::Implicit => Some(true),
            ConfChangeTransition::Explicit => Some(false),
        }
    }

    /// Whether the change is the one that leaves a joint configuration: empty, apart from its context.
    pub fn leave_joint(&self) -> bool {
        self.transition() == ConfChangeTransition::Auto && self.changes.is_empty()
    }
}
