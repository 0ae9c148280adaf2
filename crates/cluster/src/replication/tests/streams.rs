//! The rules about streams: R17 and R19 to R24 of `docs/replication.md`.

use smg_types::ids::{NodeId, WorkerId};

use crate::replication::message::{Delta, Message};
use crate::replication::tests::by_hand::{
    ack, applied, deltas, digest, floor, hand, load_delta, node, pass, sent,
};
use crate::replication::tests::{at, id, load};
use crate::replication::{Replication, message};
use crate::state::StoreId;
use crate::state::load::LoadWrite;

const LOAD: StoreId = StoreId::Load;

fn write(node: &mut Replication, ms: u64, worker: u64, requests: Option<u32>) {
    let worker = WorkerId::from_u64(worker);
    let load = requests.and_then(load);
    node.update(at(ms), LoadWrite { worker, load }).unwrap();
}

fn tombstones(node: &Replication) -> usize {
    node.state().sizes(LOAD).tombstones
}

/// The digests among the messages to `to`: whether each asks for `relay`, and the writers that it names.
fn digests(sent: &[(NodeId, Message)], to: &NodeId) -> Vec<(bool, Vec<NodeId>)> {
    let to = sent.iter().filter(|(receiver, _)| receiver == to);
    to.filter_map(|(_, message)| match message {
        Message::Digest(digest) => Some((digest.relay, digest.claims.writers.clone())),
        _ => None,
    })
    .collect()
}

/// R17.
#[test]
fn a_delta_that_contradicts_itself_is_refused_and_counted() {
    let b = id("b", 1);
    let of = |versions: (u64, u64), rows: &[u64]| load_delta(&b, versions, rows);
    for (what, delta) in [
        ("leads nowhere", of((0, 0), &[])),
        ("leads backward", of((2, 1), &[])),
        ("has rows out of order", of((0, 2), &[2, 1])),
        ("has a row twice", of((0, 2), &[1, 1])),
        ("has a row after its end", of((0, 1), &[1, 2])),
        ("has a row before its beginning", of((1, 2), &[1, 2])),
        ("ends after its log", Delta { upto: 1, ..of((0, 2), &[1, 2]) }),
    ] {
        let mut a = node("a", &[&b]);
        hand(&mut a, at(0), &b, Message::Delta(delta));
        let counters = a.counters();
        assert_eq!(counters.refused_messages, 1, "a delta that {what}");
        assert_eq!(counters.gaps + counters.rows_received, 0, "a delta that {what}");
        assert_eq!(applied(&a, LOAD, &b), 0, "a delta that {what}");
        // The stream goes on with a good one.
        hand(&mut a, at(1), &b, Message::Delta(of((0, 2), &[1, 2])));
        assert_eq!(applied(&a, LOAD, &b), 2, "after a delta that {what}");
    }
}

/// R19.
#[test]
fn a_claim_or_delta_beyond_the_own_log_is_a_conflict() {
    let [me, b] = [id("a", 1), id("b", 1)];
    let mut a = node("a", &[&b]);
    write(&mut a, 0, 1, Some(1));
    for (message, is_conflict) in [
        (ack(&[(&me, LOAD, 1, 0)]), false),
        (digest(false, &[(&me, LOAD, 1, 0)]), false),
        (Message::Delta(load_delta(&me, (0, 1), &[1])), false),
        (ack(&[(&me, LOAD, 2, 0)]), true),
        (digest(false, &[(&me, LOAD, 2, 0)]), true),
        (Message::Delta(load_delta(&me, (1, 2), &[2])), true),
    ] {
        let changes = hand(&mut a, at(1), &b, message.clone());
        assert_eq!(changes.conflict, is_conflict, "{message:?}");
    }
}

/// R20.
#[test]
fn the_first_digest_of_a_peer_is_answered_with_one() {
    let b = id("b", 1);
    let mut a = node("a", &[&b]);
    write(&mut a, 0, 1, Some(1));
    // The first digest to b is lost, because b has not found a yet.
    assert_eq!(digests(&sent(&mut a, at(0)), &b).len(), 1);
    hand(&mut a, at(100), &b, digest(false, &[]));
    let answer = digests(&sent(&mut a, at(100)), &b);
    assert_eq!(answer, [(false, vec![id("a", 1)])], "its versions, and nothing is asked for");
    hand(&mut a, at(200), &b, digest(false, &[]));
    assert_eq!(digests(&sent(&mut a, at(200)), &b).len(), 0, "only the first one");
    // A link that is made anew may have lost the first digest again.
    a.peer_down(at(300), &b);
    a.peer_up(at(400), &b);
    sent(&mut a, at(400));
    hand(&mut a, at(500), &b, digest(false, &[]));
    assert_eq!(digests(&sent(&mut a, at(500)), &b).len(), 1);
}

/// R20.
#[test]
fn the_first_digests_name_retired_writers_and_the_regular_ones_do_not() {
    let [b, c, d] = [id("b", 1), id("c", 1), id("d", 1)];
    let mut a = node("a", &[&b]);
    sent(&mut a, at(0));
    hand(&mut a, at(0), &b, Message::Delta(load_delta(&c, (0, 1), &[1])));
    let writer = a.state.writers.number(&c).unwrap();
    a.state.writers.retire(writer, at(0));
    let answer = {
        hand(&mut a, at(100), &b, digest(false, &[]));
        digests(&sent(&mut a, at(100)), &b)
    };
    assert_eq!(answer, [(false, vec![c.clone()])], "the answer to the first digest");
    a.peer_up(at(200), &d);
    let greeting = digests(&sent(&mut a, at(200)), &d);
    assert_eq!(greeting, [(false, vec![c])], "to a peer that became reachable");
    let message::Digest { claims, .. } = a.digest(at(300), true);
    assert_eq!(claims.writers, [], "the regular digest");
}

/// R21.
#[test]
fn a_joiner_asks_only_its_first_peer_for_the_rows_of_all_writers() {
    let [b, c] = [id("b", 1), id("c", 1)];
    let mut a = node("a", &[&b, &c]);
    let sent = sent(&mut a, at(0));
    let asks = |to| digests(&sent, to).iter().map(|(relay, _)| *relay).collect::<Vec<_>>();
    assert_eq!((asks(&b), asks(&c)), (vec![true], vec![false]));
}

/// R21.
#[test]
fn the_digest_of_each_second_asks_for_the_rows_of_all_writers() {
    let b = id("b", 1);
    let mut a = node("a", &[&b]);
    sent(&mut a, at(0));
    let sent = pass(&mut a, 0, 3_000);
    let asked: Vec<bool> = digests(&sent, &b).into_iter().map(|(relay, _)| relay).collect();
    assert_eq!(asked, [true; 3]);
}

/// R21.
#[test]
fn rows_of_another_writer_are_relayed_when_they_are_old_enough_and_asked_for() {
    let [a, c] = [id("a", 1), id("c", 1)];
    let mut b = node("b", &[&a, &c]);
    hand(&mut b, at(0), &c, digest(false, &[]));
    pass(&mut b, 0, 1_000);
    hand(&mut b, at(1_000), &a, Message::Delta(load_delta(&a, (0, 1), &[1])));
    let mut relayed = |ms: u64, relay, streams: &[_]| {
        hand(&mut b, at(ms), &c, digest(relay, streams));
        let sent = sent(&mut b, at(ms));
        pass(&mut b, ms, ms + 50);
        deltas(&sent, &c)
    };
    assert_eq!(relayed(1_100, true, &[]), [], "its writer's own delta is on its way");
    assert_eq!(relayed(1_450, true, &[]), [], "after 450 ms");
    for ms in (1_500..2_150).step_by(50) {
        assert_eq!(relayed(ms, false, &[]), [], "nobody asks for it");
    }
    assert_eq!(relayed(2_150, true, &[(&a, LOAD, 1, 0)]), [], "c does not lack it");
    assert_eq!(relayed(2_200, true, &[]), [(LOAD.into(), a.clone())]);
    assert_eq!(relayed(2_300, true, &[]), [], "it is on its way");
}

/// R21.
#[test]
fn a_digest_is_answered_with_the_own_rows_that_its_sender_lacks() {
    let [me, b] = [id("a", 1), id("b", 1)];
    let mut a = node("a", &[&b]);
    write(&mut a, 0, 1, Some(1));
    sent(&mut a, at(0));
    hand(&mut a, at(100), &b, digest(false, &[(&me, LOAD, 1, 0)]));
    assert_eq!(deltas(&sent(&mut a, at(100)), &b), [], "b has it");
    // b has restarted without its rows under the same name: what its digest says counts.
    hand(&mut a, at(200), &b, digest(false, &[]));
    assert_eq!(deltas(&sent(&mut a, at(200)), &b), [(LOAD.into(), me)]);
}

/// R19: the writer must go on as a later generation, whose log begins anew.
#[test]
fn a_writer_that_has_lost_its_rows_does_not_receive_them_in_its_own_name() {
    let a = id("a", 1);
    let mut b = node("b", &[&a]);
    hand(&mut b, at(0), &a, Message::Delta(load_delta(&a, (0, 1), &[1])));
    pass(&mut b, 0, 2_000);
    hand(&mut b, at(2_000), &a, digest(true, &[]));
    assert_eq!(deltas(&sent(&mut b, at(2_000)), &a), []);
}

/// R22.
#[test]
fn a_tombstone_waits_for_members_that_can_not_be_reached_or_were_never_met() {
    let [me, b, c, d] = [id("a", 1), id("b", 1), id("c", 1), id("d", 1)];
    let mut a = node("a", &[&b, &c]);
    a.peer_down(at(0), &c);
    a.peer_down(at(0), &d);
    write(&mut a, 0, 1, Some(1));
    write(&mut a, 0, 1, None);
    pass(&mut a, 0, 20_000);
    assert_eq!(tombstones(&a), 1);
    let mut acknowledge = |ms, peer: &NodeId| {
        a.peer_up(at(ms), peer);
        hand(&mut a, at(ms), peer, ack(&[(&me, LOAD, 2, 0)]));
        pass(&mut a, ms, ms + 1_000);
        tombstones(&a)
    };
    assert_eq!(acknowledge(20_000, &b), 1, "c and d have not applied it");
    assert_eq!(acknowledge(21_000, &c), 1, "d has not applied it");
    assert_eq!(acknowledge(22_000, &d), 0);
    assert_eq!(floor(&a, LOAD, &me), 2);
}

/// R22.
#[test]
fn a_node_that_never_had_a_peer_waits_ten_seconds_before_it_collects() {
    let mut a = node("a", &[]);
    write(&mut a, 0, 1, Some(1));
    write(&mut a, 0, 1, None);
    pass(&mut a, 0, 9_900);
    assert_eq!(tombstones(&a), 1);
    pass(&mut a, 9_900, 10_500);
    assert_eq!(tombstones(&a), 0);
}

/// R23.
#[test]
fn two_tombstones_per_live_row_are_kept_and_no_more() {
    let b = id("b", 1);
    let mut a = node("a", &[&b]);
    for worker in 0..3_000 {
        write(&mut a, 0, worker, Some(1));
    }
    let mut remove = |workers: std::ops::Range<u64>| {
        workers.for_each(|worker| write(&mut a, 0, worker, None));
        tombstones(&a)
    };
    assert_eq!(remove(0..2_000), 2_000, "2,048 are free");
    // 700 rows live and 2,300 tombstones wait: too many, so that a quarter of them goes.
    assert!(remove(2_000..2_300) < 2_048, "b has acknowledged nothing");
    let mut many = node("a", &[&b]);
    for worker in 0..6_000 {
        write(&mut many, 0, worker, Some(1));
    }
    (0..3_000).for_each(|worker| write(&mut many, 0, worker, None));
    assert_eq!(tombstones(&many), 3_000, "there are 3,000 live rows");
}

/// R24.
#[test]
fn the_floor_of_a_log_is_taken_over_from_where_the_log_came() {
    let [b, c] = [id("b", 1), id("c", 1)];
    let mut a = node("a", &[&b]);
    let delta = Delta { floor: 1, ..load_delta(&c, (1, 2), &[2]) };
    hand(&mut a, at(0), &b, Message::Delta(delta.clone()));
    assert_eq!(floor(&a, LOAD, &c), 0, "the delta was not applied");
    hand(&mut a, at(0), &b, Message::Delta(load_delta(&c, (0, 1), &[1])));
    hand(&mut a, at(0), &b, Message::Delta(delta));
    assert_eq!((applied(&a, LOAD, &c), floor(&a, LOAD, &c)), (2, 1), "that of a delta");
    hand(&mut a, at(0), &b, digest(false, &[(&c, LOAD, 2, 2)]));
    assert_eq!(floor(&a, LOAD, &c), 2, "that of a claim");
    hand(&mut a, at(0), &b, digest(false, &[(&c, LOAD, 5, 4)]));
    assert_eq!(floor(&a, LOAD, &c), 2, "not one that this node has not reached");
}
