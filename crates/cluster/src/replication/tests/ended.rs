//! The rules about writers that have ended: R28 and R30 to R36 of `docs/replication.md`.

use smg_types::ids::{Generation, NodeId, WorkerId};

use crate::replication::message::{Message, RetiredWriter};
use crate::replication::tests::by_hand::{
    applied, begin_load, claims, deltas, digest, empty_snapshot, floor, hand, load_delta, node,
    pass, receive, sent,
};
use crate::replication::tests::{at, id, spec};
use crate::replication::{Config, Replication};
use crate::state::totals::{Outcome, TotalWrite};
use crate::state::worker::WorkerWrite;
use crate::state::writers::Writers;
use crate::state::{STORES, StoreId, Write};

const WORKERS: StoreId = StoreId::Workers;

fn worker(n: u64) -> Write {
    WorkerWrite::Put((&spec(n)).into()).into()
}

fn total(count: u64) -> Write {
    TotalWrite { model: "m".into(), outcome: Outcome::Ok, count }.into()
}

/// The node `name`, which can reach b, and has forgotten d, from which it has `writes`.
fn survivor(name: &str, writes: Vec<Write>) -> Replication {
    let [b, d] = [id("b", 1), id("d", 1)];
    let mut node = node(name, &[&b, &d]);
    receive(&mut node, at(0), (&d, &d), writes);
    node.peer_forgotten(at(0), &d);
    node
}

fn adopted(node: &Replication) -> u64 {
    node.counters().adopted
}

fn is_retired(node: &Replication, writer: &NodeId) -> bool {
    let number = node.state.writers.number(writer).unwrap();
    node.state.writers.is_retired(number)
}

/// The node a, which has adopted d's only row and retired d at the time 10,000.
fn retired() -> Replication {
    let [b, d] = [id("b", 1), id("d", 1)];
    let mut a = survivor("a", vec![worker(1)]);
    hand(&mut a, at(0), &b, digest(false, &[(&d, WORKERS, 1, 0)]));
    pass(&mut a, 0, 10_000);
    assert!(is_retired(&a, &d));
    a
}

/// The writers that the messages to `to` say have ended, each with whether it is retired and its version of workers.
fn notices(sent: &[(NodeId, Message)], to: &NodeId) -> Vec<(NodeId, bool, u64)> {
    let to = sent.iter().filter(|(receiver, _)| receiver == to);
    let retired = to.filter_map(|(_, message)| match message {
        Message::Retired(retired) => Some(retired),
        _ => None,
    });
    let version = |versions: &[u64]| versions.get(WORKERS.index()).copied().unwrap_or(0);
    retired.flatten().map(|r| (r.writer.clone(), r.closed, version(&r.versions))).collect()
}

fn notice(writer: &NodeId, closed: bool, version: u64) -> Message {
    let mut versions = vec![0; STORES];
    versions[WORKERS.index()] = version;
    Message::Retired(vec![RetiredWriter { writer: writer.clone(), closed, versions }])
}

fn requests_a_snapshot(sent: &[(NodeId, Message)]) -> bool {
    sent.iter().any(|(_, message)| matches!(message, Message::SnapshotRequest(_)))
}

/// R28.
#[test]
fn measurements_end_when_a_later_generation_is_known() {
    let [b, c] = [id("b", 1), id("c", 1)];
    let mut a = node("a", &[&b, &c]);
    let entries = |a: &Replication| a.state().sizes(StoreId::Load).entries;
    hand(&mut a, at(0), &b, Message::Delta(load_delta(&b, (0, 1), &[1])));
    // A worker, so that b is not retired before c has that too.
    receive(&mut a, at(0), (&b, &b), vec![worker(1)]);
    assert_eq!(entries(&a), 1);
    a.peer_up(at(0), &id("b", 2));
    let relayed = |a: &mut Replication, from, to| {
        pass(a, from, to);
        hand(a, at(to), &c, digest(true, &[]));
        deltas(&sent(a, at(to)), &c)
    };
    let lasting = [(WORKERS.into(), b.clone())];
    assert_eq!(relayed(&mut a, 0, 2_000), lasting, "a does not say that there are no loads");
    assert_eq!(entries(&a), 0, "they are dropped");
    // c does not know yet that b has restarted.
    hand(&mut a, at(2_000), &c, Message::Delta(load_delta(&b, (1, 2), &[2])));
    assert_eq!((entries(&a), applied(&a, StoreId::Load, &b)), (0, 2), "no new ones are taken");
    let relayed = relayed(&mut a, 2_000, 4_000);
    assert!(relayed.iter().all(|of| lasting.contains(of)), "the log is not relayed: {relayed:?}");
}

/// R28.
#[test]
fn measurements_are_read_only_while_their_writer_is_listed_as_present() {
    let [b, c] = [id("b", 1), id("c", 1)];
    let mut a = node("a", &[&c]);
    let read = |a: &Replication| a.state().loads(WorkerId::from_u64(1)).count();
    hand(&mut a, at(0), &c, Message::Delta(load_delta(&b, (0, 1), &[1])));
    assert_eq!(a.state().sizes(StoreId::Load).entries, 1);
    assert_eq!(read(&a), 0, "b may have crashed before a started");
    a.peer_up(at(1), &b);
    assert_eq!(read(&a), 1);
    a.peer_down(at(2), &b);
    assert_eq!(read(&a), 0);
}

/// R28.
#[test]
fn a_log_of_measurements_that_arrives_after_its_writer_ended_is_not_vouched_for() {
    let [b, c] = [id("b", 1), id("c", 1)];
    let mut a = node("a", &[&c]);
    a.peer_up(at(0), &id("b", 2));
    hand(&mut a, at(0), &c, Message::Delta(load_delta(&b, (0, 1), &[1])));
    let snapshot = a.chunk(StoreId::Load, 1, None).unwrap();
    let vouched: Vec<u64> = snapshot.claims.claims.iter().map(|claim| claim.version).collect();
    assert_eq!((applied(&a, StoreId::Load, &b), vouched), (1, vec![0]));
}

/// R30.
#[test]
fn a_node_adopts_when_it_has_had_its_peers_for_three_digests() {
    let mut a = survivor("a", vec![worker(1)]);
    hand(&mut a, at(0), &id("b", 1), digest(false, &[]));
    pass(&mut a, 0, 2_950);
    assert_eq!(adopted(&a), 0);
    pass(&mut a, 2_950, 3_500);
    assert_eq!((adopted(&a), a.state().workers().count()), (1, 1));
}

/// R30.
#[test]
fn a_node_adopts_only_when_it_has_applied_all_that_its_peers_claim() {
    let [b, d] = [id("b", 1), id("d", 1)];
    let mut a = survivor("a", vec![worker(1)]);
    pass(&mut a, 0, 5_000);
    assert_eq!(adopted(&a), 0, "b has claimed nothing yet");
    hand(&mut a, at(5_000), &b, digest(false, &[(&d, WORKERS, 2, 0)]));
    pass(&mut a, 5_000, 10_000);
    assert_eq!(adopted(&a), 0, "b has more of d");
    receive(&mut a, at(10_000), (&b, &d), vec![worker(1), worker(2)]);
    pass(&mut a, 10_000, 10_500);
    assert_eq!(adopted(&a), 2);
}

/// R30.
#[test]
fn a_node_does_not_adopt_while_it_loads_a_snapshot() {
    let b = id("b", 1);
    let mut a = survivor("a", vec![worker(1)]);
    hand(&mut a, at(0), &b, digest(false, &[]));
    let session = begin_load(&mut a, at(0), &b, StoreId::Policies);
    pass(&mut a, 0, 1_900);
    // The donor is silent, and asked again every two seconds.
    let sent = pass(&mut a, 1_900, 8_000);
    assert!(requests_a_snapshot(&sent));
    assert_eq!(adopted(&a), 0);
    for session in session..session + 10 {
        let chunk = empty_snapshot(StoreId::Policies, session, claims(&[]));
        hand(&mut a, at(8_000), &b, chunk);
    }
    pass(&mut a, 8_000, 8_500);
    assert_eq!(adopted(&a), 1);
}

/// R30.
#[test]
fn a_node_without_peers_adopts_only_when_none_is_expected_any_more() {
    let mut a = survivor("a", vec![worker(1)]);
    a.peer_forgotten(at(0), &id("b", 1));
    pass(&mut a, 0, 9_950);
    assert_eq!(adopted(&a), 0);
    pass(&mut a, 9_950, 10_500);
    assert_eq!(adopted(&a), 1);
}

/// R30.
#[test]
fn a_forgotten_node_is_adopted_by_the_one_with_the_lowest_reachable_name() {
    let [b, e] = [id("b", 1), id("e", 1)];
    let mut c = survivor("c", vec![worker(1)]);
    c.peer_up(at(0), &e);
    for peer in [&b, &e] {
        hand(&mut c, at(0), peer, digest(false, &[]));
    }
    pass(&mut c, 0, 10_000);
    assert_eq!(adopted(&c), 0, "b adopts");
    c.peer_down(at(10_000), &b);
    pass(&mut c, 10_000, 10_500);
    assert_eq!(adopted(&c), 1);
}

/// R30.
#[test]
fn an_earlier_generation_is_adopted_by_the_later_one_alone() {
    let [a, b1, b2] = [id("a", 1), id("b", 1), id("b", 2)];
    let mut other = node("a", &[&b1]);
    receive(&mut other, at(0), (&b1, &b1), vec![worker(1)]);
    other.peer_up(at(0), &b2);
    hand(&mut other, at(0), &b2, digest(false, &[]));
    pass(&mut other, 0, 10_000);
    assert_eq!(adopted(&other), 0);
    let mut later = Replication::new(b2, Config::default(), at(0));
    later.peer_up(at(0), &a);
    receive(&mut later, at(0), (&a, &b1), vec![worker(1)]);
    hand(&mut later, at(0), &a, digest(false, &[]));
    pass(&mut later, 0, 10_000);
    assert_eq!(adopted(&later), 1);
}

/// R31.
#[test]
fn sums_are_adopted_only_while_every_member_is_reachable() {
    let [b, e] = [id("b", 1), id("e", 1)];
    let mut a = survivor("a", vec![worker(1), total(5)]);
    a.peer_down(at(0), &e);
    hand(&mut a, at(0), &b, digest(false, &[]));
    pass(&mut a, 0, 10_000);
    assert_eq!(adopted(&a), 1, "the worker, not the sum");
    a.peer_up(at(10_000), &e);
    hand(&mut a, at(10_000), &e, digest(false, &[]));
    hand(&mut a, at(10_000), &b, digest(false, &[]));
    pass(&mut a, 10_000, 14_000);
    assert_eq!((adopted(&a), a.state().total(&"m".into(), Outcome::Ok)), (2, 5));
}

/// R31.
#[test]
fn sums_are_adopted_only_after_each_peer_has_sent_a_digest_three_seconds_after_the_end() {
    let [b, d] = [id("b", 1), id("d", 1)];
    let total_of = |a: &Replication| a.state().total(&"m".into(), Outcome::Ok);
    let mut a = survivor("a", vec![total(5)]);
    for (from, to) in [(0, 2_000), (2_000, 8_000)] {
        hand(&mut a, at(from), &b, digest(false, &[(&d, StoreId::Totals, 1, 0)]));
        pass(&mut a, from, to);
        assert_eq!(adopted(&a), 0, "b may have received more of d since");
    }
    // It has: d's farewell was faster than its last row on the way to a.
    hand(&mut a, at(8_000), &b, digest(false, &[(&d, StoreId::Totals, 2, 0)]));
    pass(&mut a, 8_000, 9_000);
    receive(&mut a, at(9_000), (&b, &d), vec![total(5), total(7)]);
    pass(&mut a, 9_000, 10_000);
    assert_eq!((adopted(&a), total_of(&a)), (1, 7));
}

/// R33.
#[test]
fn a_writer_is_retired_when_every_member_has_applied_exactly_as_much_of_it() {
    let [b, d, e] = [id("b", 1), id("d", 1), id("e", 1)];
    let mut a = survivor("a", vec![worker(1)]);
    a.peer_down(at(0), &e);
    hand(&mut a, at(0), &b, digest(false, &[]));
    pass(&mut a, 0, 10_000);
    assert_eq!(adopted(&a), 1);
    let mut claim = |ms, peer: &NodeId, version| {
        a.peer_up(at(ms), peer);
        hand(&mut a, at(ms), peer, digest(false, &[(&d, WORKERS, version, 0)]));
        pass(&mut a, ms, ms + 500);
        is_retired(&a, &d)
    };
    assert!(!claim(10_000, &b, 1), "e has not applied it");
    assert!(!claim(11_000, &e, 2), "e has applied more");
    receive(&mut a, at(12_000), (&e, &d), vec![worker(1), worker(2)]);
    pass(&mut a, 12_000, 16_000);
    assert!(!is_retired(&a, &d), "b has not applied as much");
    hand(&mut a, at(16_000), &b, digest(false, &[(&d, WORKERS, 2, 0)]));
    pass(&mut a, 16_000, 16_500);
    assert!(is_retired(&a, &d));
    assert_eq!((applied(&a, WORKERS, &d), floor(&a, WORKERS, &d)), (2, 2), "its versions stay");
    assert_eq!(a.state().living_rows(WORKERS, &d, u64::MAX), [], "its rows are dropped");
    assert_eq!(a.state().workers().count(), 2);
}

/// R33.
#[test]
fn a_writer_is_not_retired_before_its_rows_are_adopted() {
    let [b, d] = [id("b", 1), id("d", 1)];
    for (store, write) in [(WORKERS, worker(1)), (StoreId::Totals, total(5))] {
        // b has the lower name and does not adopt.
        let mut c = survivor("c", vec![write]);
        hand(&mut c, at(0), &b, digest(false, &[(&d, store, 1, 0)]));
        pass(&mut c, 0, 10_000);
        assert!(!is_retired(&c, &d), "{store}");
    }
}

/// R34.
#[test]
fn a_node_that_names_a_retired_writer_receives_its_versions() {
    let [b, d] = [id("b", 1), id("d", 1)];
    let mut a = retired();
    let expected = [(d.clone(), true, 1)];
    hand(&mut a, at(10_000), &b, digest(false, &[(&d, WORKERS, 1, 0)]));
    assert_eq!(notices(&sent(&mut a, at(10_000)), &b), expected, "in a digest");
    hand(&mut a, at(10_000), &b, Message::Pull(claims(&[(&d, WORKERS, 0, 0)])));
    assert_eq!(notices(&sent(&mut a, at(10_000)), &b), expected, "in a pull");
    receive(&mut a, at(10_000), (&b, &d), vec![worker(1)]);
    assert_eq!(notices(&sent(&mut a, at(10_000)), &b), expected, "in a delta");
    hand(&mut a, at(10_000), &b, digest(false, &[]));
    assert_eq!(notices(&sent(&mut a, at(10_000)), &b), [], "it names no retired writer");
}

/// R34.
#[test]
fn a_node_that_has_applied_less_of_a_retired_writer_loads_a_snapshot() {
    let [b, d] = [id("b", 1), id("d", 1)];
    let mut a = node("a", &[&b]);
    receive(&mut a, at(0), (&b, &d), vec![worker(1)]);
    sent(&mut a, at(0));
    let mut loads = |closed, version| {
        hand(&mut a, at(0), &b, notice(&d, closed, version));
        requests_a_snapshot(&sent(&mut a, at(0)))
    };
    assert!(!loads(true, 1), "it has applied as much");
    assert!(!loads(false, 2), "d has only ended");
    assert!(loads(true, 2));
}

/// R34: a writer that is not listed here ends when a peer has retired it.
#[test]
fn a_peer_has_retired_a_writer_until_it_names_it_again() {
    let [b, d] = [id("b", 1), id("d", 1)];
    let mut a = node("a", &[&b]);
    receive(&mut a, at(0), (&b, &d), vec![worker(1)]);
    let writer = a.state.writers.number(&d).unwrap();
    hand(&mut a, at(0), &b, notice(&d, false, 0));
    assert!(!a.is_retired_by_a_peer(writer));
    hand(&mut a, at(0), &b, notice(&d, true, 1));
    assert!(a.is_retired_by_a_peer(writer));
    hand(&mut a, at(0), &b, digest(false, &[(&d, WORKERS, 1, 0)]));
    assert!(!a.is_retired_by_a_peer(writer));
}

/// R34.
#[test]
fn a_node_whose_generation_has_ended_is_notified_until_it_goes_on_as_a_later_one() {
    let [me, b] = [id("a", 1), id("b", 1)];
    let mut a = node("a", &[&b]);
    a.peer_forgotten(at(0), &b);
    a.peer_up(at(0), &b);
    let expected = [(b.clone(), false, 0)];
    assert_eq!(notices(&sent(&mut a, at(0)), &b), expected, "when it can be reached");
    for ms in [1_000, 2_000] {
        hand(&mut a, at(ms), &b, digest(false, &[]));
        assert_eq!(notices(&sent(&mut a, at(ms)), &b), expected, "after each digest");
    }
    // The same at b.
    let mut ended = node("b", &[&me]);
    let changes = hand(&mut ended, at(0), &me, notice(&b, false, 0));
    assert!(changes.fenced && ended.is_fenced());
    ended.begin_generation(at(0), id("b", 2));
    assert!(!ended.is_fenced());
}

/// R35.
#[test]
fn a_claim_a_delta_or_a_snapshot_above_the_kept_versions_reopens_a_retired_writer() {
    let [b, d] = [id("b", 1), id("d", 1)];
    let mut a = retired();
    hand(&mut a, at(10_000), &b, digest(false, &[(&d, WORKERS, 1, 0)]));
    assert!(is_retired(&a, &d), "no more than what is kept");
    hand(&mut a, at(10_000), &b, digest(false, &[(&d, WORKERS, 2, 0)]));
    assert!(!is_retired(&a, &d), "a claim");
    let mut a = retired();
    receive(&mut a, at(10_000), (&b, &d), vec![worker(1), worker(2)]);
    assert!(!is_retired(&a, &d), "a delta");
    assert_eq!((applied(&a, WORKERS, &d), a.state().workers().count()), (2, 2));
    let mut a = retired();
    let session = begin_load(&mut a, at(10_000), &b, WORKERS);
    let claims = claims(&[(&d, WORKERS, 2, 0)]);
    hand(&mut a, at(10_000), &b, empty_snapshot(WORKERS, session, claims));
    assert!(!is_retired(&a, &d), "a snapshot");
}

/// R36.
#[test]
fn a_retired_writer_is_forgotten_after_two_days_if_there_are_many_and_no_row_carries_its_dots() {
    let d = id("d", 1);
    let mut a = retired();
    // d is the one that was retired first, and a row of a carries its dot.
    for n in 0..=Writers::KEPT {
        let id = NodeId { name: format!("x{n}").parse().unwrap(), generation: Generation(1) };
        let writer = a.state.writers.intern(&id).unwrap();
        a.state.writers.retire(writer, at(20_000));
    }
    let hours = |hours: u64| 20_000 + hours * 3_600_000;
    let all = a.state().writers().len();
    pass(&mut a, hours(47), hours(47) + 500);
    assert_eq!(a.state().writers().len(), all, "not within two days");
    pass(&mut a, hours(49), hours(49) + 500);
    assert_eq!(a.state().writers().len(), all - 1, "one that is not carried; 512 stay besides d");
    assert!(a.state().writers().number(&d).is_some());
}
