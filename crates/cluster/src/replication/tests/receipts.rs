//! Rows that have no effect on a peer: what the writer's receipt says of them, and stamps that are far ahead.

use std::time::Duration;

use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::{at, exchange, load, pair};
use crate::replication::{Acknowledgement, Message, Replication};
use crate::state::Version;
use crate::state::load::LoadWrite;
use crate::state::policy::{PolicyRecord, PolicyWrite};
use crate::state::table::NotAppliedReason;

fn policy_named(name: &str) -> PolicyRecord {
    PolicyRecord {
        policy: name.to_owned(),
        parameters: Default::default(),
        weights: Default::default(),
    }
}

fn set_policy(node: &mut Replication, now: Now, name: &str) -> Version {
    let write = PolicyWrite { model: "m".into(), policy: Some(policy_named(name)) };
    node.update(now, write).unwrap().unwrap()
}

fn policy_at(node: &Replication) -> Option<String> {
    node.state().policy(&"m".into()).map(|record| record.policy)
}

fn acknowledgement(node: &Replication, version: Version) -> Acknowledgement {
    node.receipt(version).next().unwrap().1
}

#[test]
fn a_write_stamped_a_day_ahead_is_applied_and_the_next_write_replaces_it_everywhere() {
    let (fast, slow) = pair();
    let mut both = [fast, slow];
    exchange(at(0), &mut both);
    let day = Duration::from_secs(24 * 3600);
    let first = set_policy(&mut both[0], Now { wall: at(0).wall + day, ..at(0) }, "first");
    exchange(at(0), &mut both);
    assert_eq!(policy_at(&both[1]).as_deref(), Some("first"));
    assert_eq!(acknowledgement(&both[0], first), Acknowledgement::Applied);
    set_policy(&mut both[1], at(1_000), "second");
    exchange(at(1_000), &mut both);
    for node in &both {
        assert_eq!(policy_at(node).as_deref(), Some("second"), "at {}", node.me());
    }
}

#[test]
fn a_row_in_quarantine_is_acknowledged_as_not_applied_until_it_is_replaced() {
    let (a, b) = pair();
    let mut both = [a, b];
    exchange(at(0), &mut both);
    let beyond = Now { wall: Duration::from_secs(1 << 40), ..at(0) };
    let write = PolicyWrite { model: "m".into(), policy: Some(policy_named("poison")) };
    let poison = both[0].update(beyond, write).unwrap().unwrap();
    let late = NotAppliedReason::StampTooLate;
    both[0].update(at(0), LoadWrite { worker: WorkerId::from_u64(1), load: load(1) }).unwrap();
    exchange(at(0), &mut both);
    assert_eq!(policy_at(&both[1]), None);
    assert_eq!(both[1].counters().quarantined_rows, 1);
    assert_eq!(both[1].state().loads(WorkerId::from_u64(1)).count(), 1, "the others are applied");
    assert_eq!(acknowledgement(&both[0], poison), Acknowledgement::NotApplied(late));
    let listed: Vec<_> = both[0].not_applied().map(|(_, version, why)| (version, why)).collect();
    assert_eq!(listed, [(poison, late)]);
    // The receiver's own writes are not held up.
    set_policy(&mut both[1], at(10), "own");
    assert_eq!(policy_at(&both[1]).as_deref(), Some("own"));
    let write = PolicyWrite { model: "m".into(), policy: None };
    both[0].update(at(2_000), write).unwrap();
    exchange(at(2_000), &mut both);
    assert_eq!(both[0].not_applied().count(), 0, "the row is gone");
}

#[test]
fn a_row_that_was_refused_is_reported_again_after_the_report_was_lost() {
    let (mut a, mut b) = pair();
    let version = set_policy(&mut a, Now { wall: Duration::from_secs(1 << 40), ..at(0) }, "x");
    while let Some((_, message, _)) = a.poll_transmit(at(0)) {
        b.handle_message(at(0), a.me(), message);
    }
    let digest = Message::Digest(a.digest(at(0), true));
    b.handle_message(at(0), a.me(), digest);
    let mut both = [a, b];
    exchange(at(0), &mut both);
    let [mut a, mut b] = both;
    assert!(matches!(acknowledgement(&a, version), Acknowledgement::NotApplied(_)));
    // The next digest carries the list, whatever was lost before.
    a.handle_message(at(0), b.me(), Message::NotApplied(Vec::new()));
    assert_eq!(acknowledgement(&a, version), Acknowledgement::Applied);
    let digest = b.digest(at(5_000), true);
    let to = a.me().name.clone();
    b.queue_digest(&to, digest);
    while let Some((_, message, _)) = b.poll_transmit(at(5_000)) {
        a.handle_message(at(5_000), b.me(), message);
    }
    assert!(matches!(acknowledgement(&a, version), Acknowledgement::NotApplied(_)));
}

#[test]
fn a_step_of_the_clock_counts_once_a_digest_has_shown_it_to_the_peer() {
    /// Milliseconds; there is a day before it.
    const START: u64 = 200_000_000;
    let (a, b) = pair();
    let mut both = [a, b];
    let day = Duration::from_secs(24 * 3600);
    for node in &mut both {
        node.cluster_time(at(START));
        let digest = node.digest(at(START), true);
        let peers: Vec<_> = node.members().map(|(peer, _)| peer.name.clone()).collect();
        peers.iter().for_each(|peer| node.queue_digest(peer, digest.clone()));
    }
    exchange(at(START), &mut both);
    let [mut a, mut b] = both;
    let behind = Now { wall: at(START + 100).wall - day, ..at(START + 100) };
    assert_eq!(a.cluster_time(behind).wall, at(START + 100).wall, "b does not know of the step");
    let digest = a.digest(at(START + 100), true);
    let to = b.me().name.clone();
    a.queue_digest(&to, digest);
    assert_eq!(a.cluster_time(behind).wall, behind.wall, "the earlier clock of two counts");
    while let Some((_, message, _)) = a.poll_transmit(at(START + 100)) {
        b.handle_message(at(START + 100), a.me(), message);
    }
    assert_eq!(b.cluster_time(at(START + 100)).wall, behind.wall, "for both");
}
