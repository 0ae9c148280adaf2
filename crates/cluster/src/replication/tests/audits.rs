//! The rules about audits and hints: R37, R39, R40 and R51 of `docs/replication.md`.

use std::collections::BTreeSet;
use std::time::Duration;

use smg_types::ids::{NodeId, WorkerId};

use crate::replication::message::{Audit, AuditPull, AuditRows, Message};
use crate::replication::tests::by_hand::{begin_load, hand, load_delta, node, pass, receive, sent};
use crate::replication::tests::{at, id, load, pair, run, spec};
use crate::replication::{Config, Replication};
use crate::state::StoreId;
use crate::state::load::LoadWrite;
use crate::state::worker::WorkerWrite;

const LOAD: StoreId = StoreId::Load;
const WORKERS: StoreId = StoreId::Workers;

fn audits(sent: Vec<(NodeId, Message)>, to: &NodeId) -> Vec<Audit> {
    let to = sent.into_iter().filter(|(receiver, _)| receiver == to);
    to.filter_map(|(_, message)| match message {
        Message::Audit(audit) => Some(audit),
        _ => None,
    })
    .collect()
}

fn count(sent: &[(NodeId, Message)], to: &NodeId, kind: &str) -> usize {
    sent.iter().filter(|(receiver, message)| receiver == to && message.kind() == kind).count()
}

fn own_writes(node: &mut Replication) {
    let worker = WorkerId::from_u64(1);
    node.update(at(0), LoadWrite { worker, load: load(1) }).unwrap();
    node.update(at(0), WorkerWrite::Put((&spec(1)).into())).unwrap();
}

/// a and b, which hold the same, but b has lost a's rows by a bug.
fn damaged_pair() -> [Replication; 2] {
    let (a, b) = pair();
    let mut both = [a, b];
    own_writes(&mut both[0]);
    run(&mut both, 0, 1_000);
    let writer = both[1].state().writers().number(&id("a", 1)).unwrap();
    both[1].state.tables.load.lose(&WorkerId::from_u64(1), writer);
    both[1].state.tables.workers.lose(&spec(1).id(), writer);
    both
}

fn audits_of(node: &mut Replication, to: &NodeId) -> Vec<Audit> {
    sent(node, at(1_000));
    node.audit_next_peer();
    audits(sent(node, at(1_000)), to)
}

/// Whether `node` asks for rows after an audit of a.
fn asks(node: &mut Replication, audit: Audit) -> bool {
    hand(node, at(1_000), &id("a", 1), Message::Audit(audit));
    count(&sent(node, at(1_000)), &id("a", 1), "audit_pull") == 1
}

/// R37.
#[test]
fn only_the_writer_audits_its_rows_or_the_lowest_name_if_it_does_not_run() {
    let [b, d] = [id("b", 1), id("d", 1)];
    for (name, expected) in [("a", vec![id("a", 1), d.clone()]), ("z", vec![id("z", 1)])] {
        let mut node = node(name, &[&b, &d]);
        own_writes(&mut node);
        for writer in [&b, &d] {
            let write = WorkerWrite::Put((&spec(2)).into());
            receive(&mut node, at(0), (writer, writer), vec![write.into()]);
        }
        node.peer_down(at(0), &d);
        let audited = audits(pass(&mut node, 0, 2_500), &b).into_iter().map(|audit| audit.writer);
        assert_eq!(audited.collect::<BTreeSet<_>>(), expected.into_iter().collect());
    }
}

/// R37.
#[test]
fn rows_of_another_writer_or_version_are_not_given_as_the_right_ones() {
    let [me, b] = [id("a", 1), id("b", 1)];
    let mut a = node("a", &[&b]);
    own_writes(&mut a);
    hand(&mut a, at(0), &b, Message::Delta(load_delta(&b, (0, 1), &[1])));
    let mut gives = |writer: &NodeId, version| {
        sent(&mut a, at(0));
        let (store, writer, mask) = (LOAD.into(), writer.clone(), u64::MAX);
        hand(&mut a, at(0), &b, Message::AuditPull(AuditPull { store, writer, version, mask }));
        count(&sent(&mut a, at(0)), &b, "audit_rows") == 1
    };
    assert!(gives(&me, 1));
    assert!(!gives(&me, 2) && !gives(&b, 1));
}

/// R37.
#[test]
fn fingerprints_count_only_at_the_same_versions() {
    let [mut a, mut b] = damaged_pair();
    let audits = audits_of(&mut a, b.me());
    for store in [LOAD, WORKERS] {
        let audit = audits.iter().find(|audit| audit.store == store.into()).unwrap();
        assert!(asks(&mut b, audit.clone()), "{store}");
        assert!(!asks(&mut b, Audit { version: audit.version + 1, ..audit.clone() }), "{store}");
        assert!(!asks(&mut b, Audit { vector: audit.vector + 1, ..audit.clone() }), "{store}");
        assert_eq!(audit.vector == 0, store == LOAD, "only shared stores depend on all versions");
    }
    // b knows best which rows it has written.
    own_writes(&mut b);
    let of_a = audits.into_iter().find(|audit| audit.store == LOAD.into()).unwrap();
    let of_b = Audit { writer: b.me().clone(), ..of_a };
    assert!(!asks(&mut b, of_b));
}

/// R37.
#[test]
fn a_store_of_which_a_snapshot_is_loaded_is_not_audited() {
    let [mut a, mut b] = damaged_pair();
    let (at_a, at_b) = (a.me().clone(), b.me().clone());
    let audits = audits_of(&mut a, &at_b);
    begin_load(&mut b, at(1_000), &at_a, WORKERS);
    let mut asked = audits.iter().map(|audit| (audit.store, asks(&mut b, audit.clone())));
    assert!(asked.all(|(store, asks)| asks == (store == LOAD.into())));
    begin_load(&mut a, at(1_000), &at_b, WORKERS);
    let audited = audits_of(&mut a, &at_b).into_iter().map(|audit| audit.store);
    assert_eq!(audited.collect::<Vec<_>>(), [LOAD.into()]);
}

/// R51.
#[test]
fn rows_that_were_not_asked_for_are_refused() {
    let (mut a, mut b) = pair();
    own_writes(&mut a);
    let mut both = [a, b];
    run(&mut both, 0, 1_000);
    [a, b] = both;
    let worker = WorkerId::from_u64(1);
    let audit = audits_of(&mut a, b.me()).into_iter().find(|audit| audit.store == LOAD.into());
    let mut audit = audit.unwrap();
    let (store, writer, version) = (audit.store, audit.writer.clone(), audit.version);
    let (vector, mask, rows) = (audit.vector, u64::MAX, Vec::new());
    let nothing = Message::AuditRows(AuditRows { store, writer, version, vector, mask, rows });
    hand(&mut b, at(1_000), a.me(), nothing.clone());
    assert_eq!(b.state().loads(worker).count(), 1);
    // Fingerprints that differ make it ask.
    audit.fingerprints[0] += 1;
    assert!(asks(&mut b, audit));
    hand(&mut b, at(1_000), a.me(), nothing.clone());
    assert_eq!(b.state().loads(worker).count(), 0, "the writer knows which rows are right");
    assert_eq!(b.counters().refused_messages, 1);
}

/// R51.
#[test]
fn each_peer_is_audited_within_40_seconds() {
    let peers = ["b", "c", "d", "e"].map(|name| id(name, 1));
    let mut a = node("a", &peers.each_ref());
    own_writes(&mut a);
    pass(&mut a, 0, 20_000);
    let sent = pass(&mut a, 20_000, 60_000);
    assert_eq!(peers.each_ref().map(|peer| count(&sent, peer, "audit") > 0), [true; 4]);
}

/// R39.
#[test]
fn a_peer_is_audited_soon_after_it_came_and_every_peer_after_a_member_went() {
    let [b, c] = [id("b", 1), id("c", 1)];
    // The regular audits come later than this test ends.
    let node = || {
        let config = Config { audit_interval: Duration::from_secs(300), ..Config::default() };
        let mut a = Replication::new(id("a", 1), config, at(0));
        [&b, &c].into_iter().for_each(|peer| a.peer_up(at(0), peer));
        own_writes(&mut a);
        a
    };
    let mut a = node();
    let mut are_audited = |from, to| {
        let sent = pass(&mut a, from, to);
        [&b, &c].map(|peer| count(&sent, peer, "audit") > 0)
    };
    for second in [2, 4, 8, 16] {
        assert_eq!(are_audited(second * 1_000, second * 1_000 + 250), [true; 2], "at {second} s");
        assert_eq!(are_audited(second * 1_000 + 250, second * 2_000 - 50), [false; 2]);
        if second == 8 {
            break;
        }
    }
    let mut a = node();
    pass(&mut a, 0, 17_000);
    a.peer_down(at(17_000), &c);
    assert_eq!(count(&pass(&mut a, 17_000, 18_950), &b, "audit"), 0);
    assert!(count(&pass(&mut a, 18_950, 19_500), &b, "audit") > 0, "after c went");
}

/// R40.
#[test]
fn a_hint_is_sent_to_each_peer_once_and_not_forwarded() {
    let [b, c] = [id("b", 1), id("c", 1)];
    let mut a = node("a", &[&b, &c]);
    a.served(at(0), WorkerId::from_u64(1), &[1, 2, 3]);
    let sent = pass(&mut a, 0, 10_000);
    assert_eq!([&b, &c].map(|peer| count(&sent, peer, "hints")), [1, 1]);
    let (_, hints) = sent.into_iter().find(|(_, message)| message.kind() == "hints").unwrap();
    let mut other = node("b", &[&id("a", 1), &c]);
    assert_eq!(hand(&mut other, at(0), &id("a", 1), hints).hints, 3);
    assert_eq!(count(&pass(&mut other, 0, 10_000), &c, "hints"), 0);
}

/// R40.
#[test]
fn a_joiner_asks_its_first_peer_for_hints_if_it_has_none() {
    let [b, c] = [id("b", 1), id("c", 1)];
    let mut a = node("a", &[&b, &c]);
    let sent_by_joiner = sent(&mut a, at(0));
    assert_eq!([&b, &c].map(|peer| count(&sent_by_joiner, peer, "hot_set_request")), [1, 0]);
    let mut other = node("a", &[]);
    other.served(at(0), WorkerId::from_u64(1), &[1]);
    other.peer_up(at(0), &b);
    assert_eq!(count(&sent(&mut other, at(0)), &b, "hot_set_request"), 0);
}

/// R40.
#[test]
fn a_peer_is_given_the_hot_set_at_most_once_a_minute() {
    let b = id("b", 1);
    let mut a = node("a", &[]);
    a.served(at(0), WorkerId::from_u64(1), &[1, 2, 3]);
    pass(&mut a, 0, 100);
    a.peer_up(at(100), &b);
    let mut gives = |ms| {
        sent(&mut a, at(ms));
        hand(&mut a, at(ms), &b, Message::HotSetRequest);
        count(&sent(&mut a, at(ms)), &b, "hints")
    };
    assert_eq!([100, 60_050, 60_100].map(&mut gives), [1, 0, 1]);
}
