//! Configuration changes and configurations.

use raft_proto::prelude::*;
use raft_proto::{
    conf_state_eq, new_conf_change_single, parse_conf_change, stringify_conf_change, ConfChangeI,
};

#[test]
fn changes_are_read_as_they_are_written() {
    let changes = parse_conf_change(" v1  l2 r3\n").unwrap();
    assert_eq!(
        changes,
        [
            new_conf_change_single(1, ConfChangeType::AddNode),
            new_conf_change_single(2, ConfChangeType::AddLearnerNode),
            new_conf_change_single(3, ConfChangeType::RemoveNode),
        ]
    );
    assert_eq!(stringify_conf_change(&changes), "v1 l2 r3");
    assert_eq!(parse_conf_change("").unwrap(), []);
    assert_eq!(stringify_conf_change(&[]), "");
    for wrong in ["x1", "v", "v-1", "1", "é1", "v18446744073709551616"] {
        let error = parse_conf_change(wrong).unwrap_err();
        assert!(error.contains(wrong), "{error}");
    }
}

#[test]
fn the_old_form_is_a_joint_form_of_one_change() {
    let v1 = ConfChange {
        change_type: ConfChangeType::AddLearnerNode as i32,
        node_id: 7,
        context: "why".into(),
        id: 1,
    };
    let v2 = v1.as_v2().into_owned();
    assert_eq!(v2, v1.clone().into_v2());
    assert_eq!(stringify_conf_change(&v2.changes), "l7");
    assert_eq!(v2.get_context(), b"why");
    assert_eq!(v1.as_v1(), Some(&v1));
    assert_eq!(v2.as_v1(), None);
    assert_eq!(v2.as_v2().as_ref(), &v2);
}

#[test]
fn which_changes_go_through_a_joint_configuration() {
    use ConfChangeTransition::{Auto, Explicit, Implicit};
    let rows = [
        // transition, changes, enter, leave
        (Auto, "", None, true),
        (Auto, "v1", None, false),
        (Auto, "v1 r2", Some(true), false),
        (Implicit, "", Some(true), false),
        (Implicit, "v1", Some(true), false),
        (Explicit, "v1", Some(false), false),
        (Explicit, "v1 r2", Some(false), false),
    ];
    for (transition, changes, enter, leave) in rows {
        let change = ConfChangeV2 {
            transition: transition as i32,
            changes: parse_conf_change(changes).unwrap(),
            context: "ignored".into(),
        };
        assert_eq!(change.enter_joint(), enter, "{transition:?} {changes}");
        assert_eq!(change.leave_joint(), leave, "{transition:?} {changes}");
    }
}

#[test]
fn configurations_are_equal_as_sets() {
    let a = ConfState::from(([1, 2, 3], [4, 5]));
    let b = ConfState::from((vec![3, 1, 2], vec![5, 4]));
    assert_ne!(a, b);
    assert!(conf_state_eq(&a, &b));
    assert!(!conf_state_eq(&a, &ConfState::from(([1, 2], [4, 5]))));
    assert!(!conf_state_eq(&ConfState::from(([1, 2], [4, 5])), &a));
    assert!(!conf_state_eq(&a, &ConfState::from(([1, 2, 3], [4]))));
    let joint = ConfState {
        voters_outgoing: vec![1],
        ..a.clone()
    };
    assert!(!conf_state_eq(&a, &joint));
    let next = ConfState {
        learners_next: vec![1],
        ..a.clone()
    };
    assert!(!conf_state_eq(&a, &next));
    let leaving = ConfState {
        auto_leave: true,
        ..a.clone()
    };
    assert!(!conf_state_eq(&a, &leaving));
}
