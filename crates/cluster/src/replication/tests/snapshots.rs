//! The rules about snapshots: R12, R26 and R27 of `docs/replication.md`.

use crate::replication::message::{Delta, Message};
use crate::replication::tests::by_hand::{
    applied, begin_load, claims, empty_snapshot, hand, load_delta, node, pass, sent,
};
use crate::replication::tests::{at, id};
use crate::state::StoreId;

const WORKERS: StoreId = StoreId::Workers;

/// R26.
#[test]
fn a_snapshot_claims_the_logs_of_others_and_never_the_own_one() {
    let [me, b, c] = [id("a", 1), id("b", 1), id("c", 1)];
    let mut a = node("a", &[&b]);
    let session = begin_load(&mut a, at(0), &b, WORKERS);
    let covered = claims(&[(&me, WORKERS, 9, 0), (&c, WORKERS, 3, 0)]);
    hand(&mut a, at(0), &b, empty_snapshot(WORKERS, session, covered));
    assert_eq!((applied(&a, WORKERS, &me), applied(&a, WORKERS, &c)), (0, 3));
}

/// R27.
#[test]
fn the_next_peer_is_asked_when_a_donor_is_silent_for_two_seconds() {
    let [b, c] = [id("b", 1), id("c", 1)];
    let mut a = node("a", &[&b, &c]);
    begin_load(&mut a, at(0), &b, WORKERS);
    let mut asked = |from, to| {
        let sent = pass(&mut a, from, to).into_iter();
        let requests = sent.filter(|(_, m)| matches!(m, Message::SnapshotRequest(_)));
        requests.map(|(to, _)| to).collect::<Vec<_>>()
    };
    assert_eq!(asked(0, 1_950), []);
    assert_eq!(asked(1_950, 2_500), [c]);
    assert_eq!(asked(2_500, 4_800), [b], "one after the other");
}

/// R12.
#[test]
fn a_delta_whose_floor_is_not_reached_is_not_applied_and_a_snapshot_is_loaded() {
    let [b, c] = [id("b", 1), id("c", 1)];
    let mut a = node("a", &[&b]);
    sent(&mut a, at(0));
    let delta = Delta { floor: 2, ..load_delta(&c, (0, 3), &[3]) };
    hand(&mut a, at(0), &b, Message::Delta(delta));
    assert_eq!(applied(&a, StoreId::Load, &c), 0);
    let sent = sent(&mut a, at(0));
    assert!(matches!(&sent[..], [(to, Message::SnapshotRequest(_))] if *to == b), "{sent:?}");
}
